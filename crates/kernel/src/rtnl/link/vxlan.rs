//! VXLAN interfaces (RFC 7348; drivers/net/vxlan) whose entries somebody writes: they learn nothing and ask nobody.

use std::net::IpAddr;

use netlink_bindings::rt_link::{Ifinfomsg, PushLinkAttrs};
use netlink_bindings::utils::{IterableChunks, finalize_nested_header, push_header, push_nested_header};

use super::{IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, push_ifinfo, push_string, push_u32};
use crate::netlink::{Batch, CREATE, EXCL};
use crate::rtnl::Mac;

/// `IFLA_VXLAN_*`, include/uapi/linux/if_link.h.
const ID: u16 = 1;
const LINK: u16 = 3;
const LOCAL: u16 = 4;
const TTL: u16 = 5;
const LEARNING: u16 = 7;
const PORT: u16 = 15;
const LOCAL6: u16 = 17;
const UDP_ZERO_CSUM6_TX: u16 = 19;
const UDP_ZERO_CSUM6_RX: u16 = 20;

const NLA_TYPE_MASK: u16 = 0x3fff;

/// As far as packets go through routers: the usual one of IP (`IPDEFTTL`), not the inner packet's.
const HOPS: u8 = 64;

/// A VXLAN interface to create.
#[derive(Debug, Clone, Copy)]
pub struct VxlanSpec<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Its number.
    pub vni: u32,
    /// The address that it sends from and takes packets at; its family is that of all other ends.
    pub local: IpAddr,
    /// Index of the interface that its packets come and go by; for link-local addresses no other is taken (`VXLAN_F_IPV6_LINKLOCAL`,
    /// drivers/net/vxlan/vxlan_core.c). It goes with that interface.
    pub by: Option<u32>,
    /// Whether its packets over IPv6 do without UDP's checksum (RFC 6935).
    pub unchecked: bool,
    /// The UDP port of all ends.
    pub port: u16,
    /// Its MAC.
    pub mac: Mac,
    /// MTU.
    pub mtu: u32,
    /// Interface group.
    pub group: u32,
}

/// A VXLAN interface, as far as it is told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanState {
    /// Its number.
    pub vni: u32,
    /// The address that it sends from.
    pub local: Option<IpAddr>,
    /// The interface that its packets come and go by.
    pub by: Option<u32>,
    /// Whether it takes and sends packets over IPv6 without UDP's checksum.
    pub unchecked: bool,
    /// The UDP port.
    pub port: u16,
    /// Whether it takes note of where frames come from.
    pub learning: bool,
}

/// Appends the creation of a VXLAN interface, down; `EEXIST` when its name is taken, or its number and port are.
pub fn create_vxlan(batch: &mut Batch, spec: &VxlanSpec<'_>) -> usize {
    batch.message(libc::RTM_NEWLINK, CREATE | EXCL, |buf| {
        push_ifinfo(buf, 0, None);
        PushLinkAttrs::new(&mut *buf)
            .push_ifname_bytes(spec.name.as_bytes())
            .push_address(&spec.mac)
            .push_mtu(spec.mtu)
            .push_group(spec.group);
        let info = push_nested_header(buf, IFLA_LINKINFO);
        push_string(buf, IFLA_INFO_KIND, "vxlan");
        let data = push_nested_header(buf, IFLA_INFO_DATA);
        push_u32(buf, ID, spec.vni);
        match spec.local {
            IpAddr::V4(ip) => push_bytes(buf, LOCAL, &ip.octets()),
            IpAddr::V6(ip) => push_bytes(buf, LOCAL6, &ip.octets()),
        }
        if let Some(by) = spec.by {
            push_u32(buf, LINK, by);
        }
        push_bytes(buf, TTL, &[HOPS]);
        push_bytes(buf, LEARNING, &[0]);
        push_bytes(buf, PORT, &spec.port.to_be_bytes());
        if spec.unchecked {
            push_bytes(buf, UDP_ZERO_CSUM6_TX, &[1]);
            push_bytes(buf, UDP_ZERO_CSUM6_RX, &[1]);
        }
        finalize_nested_header(buf, data);
        finalize_nested_header(buf, info);
    })
}

/// An attribute with the padding that attributes end on (`NLA_ALIGN`).
fn push_bytes(buf: &mut Vec<u8>, kind: u16, value: &[u8]) {
    push_header(buf, kind, value.len() as u16);
    buf.extend_from_slice(value);
    buf.resize(buf.len() + (value.len().next_multiple_of(4) - value.len()), 0);
}

/// What the payload of an `RTM_NEWLINK` message of a VXLAN interface says of it.
pub(super) fn state(payload: &[u8]) -> Option<VxlanState> {
    let mut inside = payload.get(Ifinfomsg::len()..)?;
    for wanted in [IFLA_LINKINFO, IFLA_INFO_DATA] {
        inside = IterableChunks::new(inside).find(|(header, _)| header.r#type & NLA_TYPE_MASK == wanted)?.1;
    }
    let mut state = VxlanState { vni: 0, local: None, by: None, unchecked: true, port: 0, learning: false };
    for (header, value) in IterableChunks::new(inside) {
        match header.r#type & NLA_TYPE_MASK {
            ID => state.vni = u32::from_ne_bytes(*value.first_chunk()?),
            LINK => state.by = Some(u32::from_ne_bytes(*value.first_chunk()?)),
            LOCAL => state.local = Some(IpAddr::from(*value.first_chunk::<4>()?)),
            LOCAL6 => state.local = Some(IpAddr::from(*value.first_chunk::<16>()?)),
            PORT => state.port = u16::from_be_bytes(*value.first_chunk()?),
            UDP_ZERO_CSUM6_TX | UDP_ZERO_CSUM6_RX => state.unchecked &= *value.first()? != 0,
            LEARNING => state.learning = *value.first()? != 0,
            _ => {}
        }
    }
    Some(state)
}
