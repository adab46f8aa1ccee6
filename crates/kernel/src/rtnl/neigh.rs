//! Neighbours (ARP, NDP) and the forwarding database of bridges.

use std::net::IpAddr;

use netlink_bindings::rt_neigh::{Ndmsg, NeighbourAttrs, OpGetneighDump, PushNeighbourAttrs};

use super::{AF_BRIDGE, Family, Mac};
use crate::netlink::{APPEND, Batch, CREATE, NetlinkError, REPLACE, Socket};

/// `NUD_NOARP`: valid without resolution; in a bridge, a static entry.
pub const NUD_NOARP: u16 = 0x40;
/// `NUD_PERMANENT`: valid until deleted; in a bridge, an address of the bridge itself.
pub const NUD_PERMANENT: u16 = 0x80;
/// `NTF_SELF`: the entry is in the device's own filter.
pub const NTF_SELF: u8 = 0x02;
/// `NTF_MASTER`: the entry is in the bridge the device is a port of.
pub const NTF_MASTER: u8 = 0x04;

/// A neighbour of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface.
    pub ifindex: u32,
    /// Its IP address.
    pub addr: IpAddr,
    /// Its MAC, once resolved.
    pub mac: Option<Mac>,
    /// `NUD_*`.
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
}

/// Appends a permanent neighbour, in place of any for the same address.
pub fn replace(batch: &mut Batch, ifindex: u32, addr: IpAddr, mac: Mac) -> usize {
    batch.message(libc::RTM_NEWNEIGH, CREATE | REPLACE, |buf| {
        push_header(buf, Family::of(addr).number(), ifindex, NUD_PERMANENT, 0);
        PushNeighbourAttrs::new(&mut *buf).push_dst(addr).push_lladdr(&mac);
    })
}

/// Appends the removal of a neighbour; `ENOENT` if there is none.
pub fn delete(batch: &mut Batch, ifindex: u32, addr: IpAddr) -> usize {
    batch.message(libc::RTM_DELNEIGH, 0, |buf| {
        push_header(buf, Family::of(addr).number(), ifindex, 0, 0);
        PushNeighbourAttrs::new(&mut *buf).push_dst(addr);
    })
}

/// Neighbours of one interface, or of all.
///
/// # Errors
/// The kernel's refusal.
pub fn dump(socket: &mut Socket, ifindex: Option<u32>) -> Result<Vec<Neighbour>, NetlinkError> {
    let mut neighbours = socket.dump_all(
        libc::RTM_GETNEIGH,
        0,
        |buf| {
            push_header(buf, 0, 0, 0, 0);
            if let Some(index) = ifindex {
                PushNeighbourAttrs::new(&mut *buf).push_ifindex(index);
            }
        },
        |kind, payload| {
            if kind != libc::RTM_NEWNEIGH {
                return None;
            }
            parse(payload)
        },
    )?;
    neighbours.retain(|neighbour| ifindex.is_none_or(|index| index == neighbour.ifindex));
    Ok(neighbours)
}

/// An entry of a bridge's forwarding database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdbEntry {
    /// Port the address is behind, or the bridge for its own.
    pub port: u32,
    /// Address.
    pub mac: Mac,
    /// Bridge.
    pub bridge: Option<u32>,
    /// `NUD_*`: [`NUD_NOARP`] static, [`NUD_PERMANENT`] the bridge's own, else learnt.
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
    /// VLAN.
    pub vlan: Option<u16>,
}

impl FdbEntry {
    /// Whether somebody set it, as opposed to learnt and the bridge's own.
    pub fn is_static(&self) -> bool {
        self.state & NUD_NOARP != 0
    }
}

/// Appends a static entry: `mac` is behind `port`, whatever the bridge sees.
///
/// What bridge(8) calls `master static`. The state is `NUD_NOARP` alone, as `NUD_PERMANENT` would
/// make the bridge take frames for `mac` itself (`fdb_add_entry()`, net/bridge/br_fdb.c).
pub fn fdb_replace(batch: &mut Batch, port: u32, mac: Mac) -> usize {
    batch.message(libc::RTM_NEWNEIGH, CREATE | REPLACE, |buf| {
        push_header(buf, AF_BRIDGE, port, NUD_NOARP, NTF_MASTER);
        PushNeighbourAttrs::new(&mut *buf).push_lladdr(&mac);
    })
}

/// Appends the removal of an entry; `ENOENT` if there is none.
pub fn fdb_delete(batch: &mut Batch, port: u32, mac: Mac) -> usize {
    batch.message(libc::RTM_DELNEIGH, 0, |buf| {
        push_header(buf, AF_BRIDGE, port, 0, NTF_MASTER);
        PushNeighbourAttrs::new(&mut *buf).push_lladdr(&mac);
    })
}

/// The forwarding database of `bridge`.
///
/// # Errors
/// The kernel's refusal.
pub fn fdb_dump(socket: &mut Socket, bridge: u32) -> Result<Vec<FdbEntry>, NetlinkError> {
    let mut entries = socket.dump_all(
        libc::RTM_GETNEIGH,
        0,
        |buf| {
            push_header(buf, AF_BRIDGE, 0, 0, 0);
            PushNeighbourAttrs::new(&mut *buf).push_master(bridge);
        },
        |kind, payload| {
            if kind != libc::RTM_NEWNEIGH {
                return None;
            }
            parse_forwarding(payload)
        },
    )?;
    // The dump also lists what the ports' own filters hold (NTF_SELF).
    entries.retain(|entry| entry.bridge == Some(bridge));
    Ok(entries)
}

/// An entry of a VXLAN interface's forwarding table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelEntry {
    /// The MAC; all zero for the way of what has no entry of its own.
    pub mac: Mac,
    /// The host that frames for it go to.
    pub to: IpAddr,
    /// The interface by which it is there.
    pub by: Option<u32>,
}

/// Appends that frames for a MAC leave the VXLAN interface `vxlan` for a host, in place of wherever they went: what bridge(8)
/// calls `replace … self permanent`.
pub fn tunnel_replace(batch: &mut Batch, vxlan: u32, entry: &TunnelEntry) -> usize {
    // Of what goes to many each is one of several, and none is replaced (`vxlan_fdb_update_existing()`).
    let how = if entry.mac == [0; 6] { APPEND } else { REPLACE };
    batch.message(libc::RTM_NEWNEIGH, CREATE | how, |buf| {
        push_header(buf, AF_BRIDGE, vxlan, NUD_PERMANENT, NTF_SELF);
        push_tunnel(buf, entry);
    })
}

/// Appends the removal of such an entry; `ENOENT` if there is none.
pub fn tunnel_delete(batch: &mut Batch, vxlan: u32, entry: &TunnelEntry) -> usize {
    batch.message(libc::RTM_DELNEIGH, 0, |buf| {
        push_header(buf, AF_BRIDGE, vxlan, 0, NTF_SELF);
        push_tunnel(buf, entry);
    })
}

fn push_tunnel(buf: &mut Vec<u8>, entry: &TunnelEntry) {
    let attrs = PushNeighbourAttrs::new(&mut *buf).push_dst(entry.to).push_lladdr(&entry.mac);
    drop(match entry.by {
        Some(by) => attrs.push_ifindex(by),
        None => attrs,
    });
}

/// The forwarding table of the VXLAN interface `vxlan`.
///
/// # Errors
/// The kernel's refusal.
pub fn tunnel_dump(socket: &mut Socket, vxlan: u32) -> Result<Vec<TunnelEntry>, NetlinkError> {
    socket.dump_all(
        libc::RTM_GETNEIGH,
        0,
        |buf| push_header(buf, AF_BRIDGE, vxlan, 0, 0),
        |kind, payload| {
            if kind != libc::RTM_NEWNEIGH {
                return None;
            }
            let (header, attrs) = OpGetneighDump::decode_request(payload);
            // What is not a host is an interface, or the addresses that it takes for itself.
            let (to, mac) = (attrs.get_dst().ok()?, attrs.get_lladdr().ok()?.try_into().ok()?);
            let by = attrs.get_ifindex().ok();
            (header.ndm_ifindex as u32 == vxlan).then_some(TunnelEntry { mac, to, by })
        },
    )
}

/// Decodes the payload of an `RTM_NEWNEIGH` message; none for families other than IP.
pub(crate) fn parse(payload: &[u8]) -> Option<Neighbour> {
    let (header, attrs) = OpGetneighDump::decode_request(payload);
    Family::from_number(header.ndm_family)?;
    Some(Neighbour {
        ifindex: header.ndm_ifindex as u32,
        addr: attrs.get_dst().ok()?,
        mac: attrs.get_lladdr().ok().and_then(|mac| mac.try_into().ok()),
        state: header.ndm_state,
        flags: header.ndm_flags,
    })
}

/// Decodes the payload of an `RTM_NEWNEIGH` message of a bridge; none of one without a MAC.
pub(crate) fn parse_forwarding(payload: &[u8]) -> Option<FdbEntry> {
    let (header, attrs) = OpGetneighDump::decode_request(payload);
    let mut entry = FdbEntry {
        port: header.ndm_ifindex as u32,
        mac: [0; 6],
        bridge: None,
        state: header.ndm_state,
        flags: header.ndm_flags,
        vlan: None,
    };
    let mut mac = None;
    for attr in attrs.flatten() {
        match attr {
            NeighbourAttrs::Lladdr(bytes) => mac = bytes.try_into().ok(),
            NeighbourAttrs::Master(index) => entry.bridge = Some(index),
            NeighbourAttrs::Vlan(vlan) => entry.vlan = Some(vlan),
            _ => {}
        }
    }
    entry.mac = mac?;
    Some(entry)
}

fn push_header(buf: &mut Vec<u8>, family: u8, ifindex: u32, state: u16, flags: u8) {
    let mut header = Ndmsg::new();
    header.ndm_family = family;
    header.ndm_ifindex = ifindex as i32;
    header.ndm_state = state;
    header.ndm_flags = flags;
    buf.extend_from_slice(header.as_slice());
}
