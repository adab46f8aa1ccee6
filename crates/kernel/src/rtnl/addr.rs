//! Addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr};

use netlink_bindings::rt_addr::{AddrAttrs, Ifaddrmsg, OpGetaddrDump, PushAddrAttrs};

use super::Family;
use crate::netlink::{Batch, CREATE, EXCL, NetlinkError, REPLACE, Socket};

/// `IFA_F_NODAD`: usable at once, without duplicate address detection (RFC 4862 §5.4).
pub const NODAD: u32 = 0x02;
/// `IFA_F_DADFAILED`.
pub const DADFAILED: u32 = 0x08;
/// `IFA_F_TENTATIVE`.
pub const TENTATIVE: u32 = 0x40;
/// `IFA_F_PERMANENT`.
pub const PERMANENT: u32 = 0x80;
/// `IFA_F_NOPREFIXROUTE`: no route to the subnet comes with the address.
pub const NOPREFIXROUTE: u32 = 0x200;

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Interface.
    pub ifindex: u32,
    /// The local address.
    pub addr: IpAddr,
    /// Length of the subnet prefix.
    pub prefix_len: u8,
    /// IPv4 broadcast address, if any.
    pub broadcast: Option<Ipv4Addr>,
    /// `IFA_F_*`.
    pub flags: u32,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// IPv4 label, if it differs from the interface name it is an alias.
    pub label: Option<String>,
}

impl Address {
    /// An address as we assign it: global, with the subnet's broadcast address in IPv4 (none for
    /// /31, RFC 3021, and /32) and without duplicate address detection in IPv6.
    pub fn new(ifindex: u32, addr: IpAddr, prefix_len: u8) -> Self {
        let broadcast = match addr {
            IpAddr::V4(v4) if prefix_len < 31 => Some(Ipv4Addr::from_bits(v4.to_bits() | (u32::MAX >> prefix_len))),
            _ => None,
        };
        Self {
            ifindex,
            addr,
            prefix_len,
            broadcast,
            flags: if addr.is_ipv6() { NODAD } else { 0 },
            scope: libc::RT_SCOPE_UNIVERSE,
            label: None,
        }
    }

    /// The same without the route to the subnet.
    #[must_use]
    pub fn without_prefix_route(mut self) -> Self {
        self.flags |= NOPREFIXROUTE;
        self
    }
}

/// Appends the assignment of an address; `EEXIST` if the interface has it.
pub fn add(batch: &mut Batch, address: &Address) -> usize {
    batch.message(libc::RTM_NEWADDR, CREATE | EXCL, |buf| push(buf, address))
}

/// Appends the assignment of an address that may be there already.
pub fn replace(batch: &mut Batch, address: &Address) -> usize {
    batch.message(libc::RTM_NEWADDR, CREATE | REPLACE, |buf| push(buf, address))
}

/// Appends the removal of an address; `EADDRNOTAVAIL` if the interface lacks it.
pub fn delete(batch: &mut Batch, ifindex: u32, addr: IpAddr, prefix_len: u8) -> usize {
    batch.message(libc::RTM_DELADDR, 0, |buf| {
        push_header(buf, ifindex, addr, prefix_len, 0);
        PushAddrAttrs::new(&mut *buf).push_local(addr);
    })
}

/// Addresses of one interface, or of all, both families.
///
/// # Errors
/// The kernel's refusal.
pub fn dump(socket: &mut Socket, ifindex: Option<u32>) -> Result<Vec<Address>, NetlinkError> {
    let mut addresses = socket.dump_all(
        libc::RTM_GETADDR,
        0,
        |buf| {
            let mut header = Ifaddrmsg::new();
            header.ifa_index = ifindex.unwrap_or(0);
            buf.extend_from_slice(header.as_slice());
        },
        |kind, payload| if kind == libc::RTM_NEWADDR { parse(payload) } else { None },
    )?;
    // Linux before 4.20 ignores the filter.
    addresses.retain(|address| ifindex.is_none_or(|index| index == address.ifindex));
    Ok(addresses)
}

/// Decodes the payload of an `RTM_NEWADDR` message; `None` for families other than IP.
pub fn parse(payload: &[u8]) -> Option<Address> {
    let (header, attrs) = OpGetaddrDump::decode_request(payload);
    let family = Family::from_number(header.ifa_family)?;
    let mut address = Address {
        ifindex: header.ifa_index,
        addr: family.unspecified(),
        prefix_len: header.ifa_prefixlen,
        broadcast: None,
        flags: header.ifa_flags.into(),
        scope: header.ifa_scope,
        label: None,
    };
    // On a point-to-point interface IFA_ADDRESS is the peer; IFA_LOCAL always is ours. IPv6 has
    // IFA_LOCAL only with a peer.
    let (mut local, mut other) = (None, None);
    for attr in attrs.flatten() {
        match attr {
            AddrAttrs::Local(addr) => local = Some(addr),
            AddrAttrs::Address(addr) => other = Some(addr),
            AddrAttrs::Broadcast(addr) => address.broadcast = Some(addr),
            AddrAttrs::Flags(flags) => address.flags = flags,
            AddrAttrs::Label(label) => address.label = Some(label.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    address.addr = local.or(other)?;
    Some(address)
}

fn push_header(buf: &mut Vec<u8>, ifindex: u32, addr: IpAddr, prefix_len: u8, scope: u8) {
    let mut header = Ifaddrmsg::new();
    header.ifa_family = Family::of(addr).number();
    header.ifa_prefixlen = prefix_len;
    header.ifa_scope = scope;
    header.ifa_index = ifindex;
    buf.extend_from_slice(header.as_slice());
}

fn push(buf: &mut Vec<u8>, address: &Address) {
    push_header(buf, address.ifindex, address.addr, address.prefix_len, address.scope);
    let mut attrs = PushAddrAttrs::new(&mut *buf).push_local(address.addr).push_address(address.addr);
    if let Some(broadcast) = address.broadcast {
        attrs = attrs.push_broadcast(broadcast);
    }
    if let Some(label) = &address.label {
        attrs = attrs.push_label_bytes(label.as_bytes());
    }
    if address.flags != 0 {
        attrs.push_flags(address.flags);
    }
}
