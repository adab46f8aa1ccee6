//! Links: bridges, veth pairs and the attributes of any interface.

mod read;
mod remove;
mod vxlan;

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_bindings::rt_link::{Ifinfomsg, PushLinkAttrs, PushLinkinfoBridgeAttrs, PushLinkinfoBrportAttrs};
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};

use super::{AF_INET, AF_INET6, Mac, push_string};
use crate::netlink::{Batch, CREATE, ECHO, EXCL};

pub(crate) use read::parse_counters;
pub use read::{BridgeState, Counters, Link, counters, dump, dump_ports, lookup, parse};
pub use remove::remove;
pub(crate) use remove::wait_until_gone;
pub use vxlan::{VxlanSpec, VxlanState, create_vxlan};

const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_MACVLAN_BC_QUEUE_LEN: u16 = 7;
const IFLA_MACVLAN_BC_CUTOFF: u16 = 9;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_BRIDGE_FLAGS: u16 = 0;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_FLAGS_SELF: u16 = 2;
/// `BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED`, linux/if_bridge.h.
const PVID_UNTAGGED: u16 = 2 | 4;
const RANGE_BEGIN: u16 = 8;
const RANGE_END: u16 = 16;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IFF_UP: u32 = libc::IFF_UP as u32;
/// `IFF_PROMISC`, in [`Link::flags`].
pub const IFF_PROMISC: u32 = libc::IFF_PROMISC as u32;
/// `IFF_ALLMULTI`, in [`Link::flags`].
pub const IFF_ALLMULTI: u32 = libc::IFF_ALLMULTI as u32;
/// `IFLA_VRF_TABLE`, include/uapi/linux/if_link.h.
const IFLA_VRF_TABLE: u16 = 1;

/// How a message names the interface it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRef<'a> {
    /// By interface index.
    Index(u32),
    /// By name, at most 15 bytes.
    Name(&'a str),
}

impl From<u32> for LinkRef<'_> {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}

impl<'a> From<&'a str> for LinkRef<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

/// How the kernel makes IPv6 link-local addresses by itself (`IFLA_INET6_ADDR_GEN_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddrGenMode {
    /// From the MAC (RFC 4291 appendix A).
    Eui64,
    /// Not at all.
    None,
    /// From a secret (RFC 7217).
    StablePrivacy,
    /// From a secret that the kernel draws.
    Random,
}

impl AddrGenMode {
    fn number(self) -> u8 {
        match self {
            Self::Eui64 => 0,
            Self::None => 1,
            Self::StablePrivacy => 2,
            Self::Random => 3,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Eui64, Self::None, Self::StablePrivacy, Self::Random].into_iter().find(|mode| mode.number() == number)
    }
}

/// Per-interface IPv4 settings, the `net.ipv4.conf.<interface>` sysctls, by their number in
/// include/uapi/linux/ip.h (`IPV4_DEVCONF_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Ipv4Conf {
    /// `forwarding`
    Forwarding = 1,
    /// `proxy_arp`
    ProxyArp = 3,
    /// `accept_redirects`
    AcceptRedirects = 4,
    /// `secure_redirects`
    SecureRedirects = 5,
    /// `send_redirects`
    SendRedirects = 6,
    /// `shared_media`
    SharedMedia = 7,
    /// `rp_filter`
    RpFilter = 8,
    /// `accept_source_route`
    AcceptSourceRoute = 9,
    /// `arp_filter`
    ArpFilter = 13,
    /// `arp_announce`
    ArpAnnounce = 18,
    /// `arp_ignore`
    ArpIgnore = 19,
    /// `promote_secondaries`
    PromoteSecondaries = 20,
    /// `arp_accept`
    ArpAccept = 21,
    /// `arp_notify`
    ArpNotify = 22,
    /// `accept_local`
    AcceptLocal = 23,
    /// `route_localnet`
    RouteLocalnet = 26,
}

/// Bridge port attributes (`IFLA_BRPORT_*`); `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrPort {
    /// Isolated ports reach only ports which are not.
    pub isolated: Option<bool>,
    /// Answer ARP and neighbour solicitations from the bridge's own table.
    pub neigh_suppress: Option<bool>,
    /// Learn source addresses.
    pub learning: Option<bool>,
    /// Drop frames of sources not in the forwarding database.
    pub locked: Option<bool>,
    /// Flood unicast frames for unknown destinations to this port.
    pub unicast_flood: Option<bool>,
    /// Flood multicast without known listeners to this port.
    pub mcast_flood: Option<bool>,
    /// Flood broadcast to this port.
    pub bcast_flood: Option<bool>,
    /// Send frames back out of the port they came in by (`IFLA_BRPORT_MODE`).
    pub hairpin: Option<bool>,
    /// Send a multicast frame as one unicast frame per listener.
    pub mcast_to_ucast: Option<bool>,
}

impl BrPort {
    fn push<P: netlink_bindings::traits::Pusher>(&self, mut attrs: PushLinkinfoBrportAttrs<P>) {
        macro_rules! push {
            ($($field:ident $method:ident)*) => {
                $(if let Some(on) = self.$field { attrs = attrs.$method(on.into()); })*
            };
        }
        push! {
            isolated push_isolated
            neigh_suppress push_neigh_suppress
            learning push_learning
            locked push_locked
            unicast_flood push_unicast_flood
            mcast_flood push_mcast_flood
            bcast_flood push_bcast_flood
            hairpin push_mode
            mcast_to_ucast push_mcast_to_ucast
        }
        attrs.end_nested();
    }
}

/// A bridge to create.
///
/// It has no spanning tree and no forwarding delay. VLAN filtering is off by default and left alone unless asked for:
/// kernels built without it refuse the attribute (`EOPNOTSUPP`).
#[derive(Debug, Clone, Copy, Default)]
pub struct BridgeSpec<'a> {
    /// Interface name.
    pub name: &'a str,
    /// MAC; without one the bridge takes, and keeps changing to, the lowest of its ports'.
    pub mac: Option<Mac>,
    /// MTU; without one it follows the smallest of the ports.
    pub mtu: Option<u32>,
    /// Interface group.
    pub group: Option<u32>,
    /// Forward multicast only to ports with listeners.
    pub mcast_snooping: bool,
    /// Keep VLANs apart.
    pub vlan_filtering: bool,
    /// Bring it up at once.
    pub up: bool,
}

/// Appends the creation of a bridge; fails with `EEXIST` when the name is taken.
pub fn create_bridge(batch: &mut Batch, spec: &BridgeSpec<'_>) -> usize {
    batch.message(libc::RTM_NEWLINK, CREATE | EXCL, |buf| {
        push_ifinfo(buf, 0, spec.up.then_some(true));
        let mut attrs = PushLinkAttrs::new(&mut *buf).push_ifname_bytes(spec.name.as_bytes());
        if let Some(mac) = &spec.mac {
            attrs = attrs.push_address(mac);
        }
        if let Some(mtu) = spec.mtu {
            attrs = attrs.push_mtu(mtu);
        }
        if let Some(group) = spec.group {
            attrs = attrs.push_group(group);
        }
        drop(attrs);
        let info = push_nested_header(buf, IFLA_LINKINFO);
        push_string(buf, IFLA_INFO_KIND, "bridge");
        let data = push_nested_header(buf, IFLA_INFO_DATA);
        let attrs = PushLinkinfoBridgeAttrs::new(&mut *buf)
            .push_forward_delay(0)
            .push_stp_state(0)
            .push_mcast_snooping(spec.mcast_snooping.into());
        drop(if spec.vlan_filtering { attrs.push_vlan_filtering(1) } else { attrs });
        finalize_nested_header(buf, data);
        finalize_nested_header(buf, info);
    })
}

/// Appends the creation, down, of an interface of a kind that needs no settings of its own (`dummy`, `wireguard`); fails
/// with `EEXIST` when the name is taken, with `EOPNOTSUPP` when the kernel does not know the kind.
pub fn create_plain(batch: &mut Batch, name: &str, kind: &str, mtu: Option<u32>) -> usize {
    batch.message(libc::RTM_NEWLINK, CREATE | EXCL, |buf| {
        push_ifinfo(buf, 0, None);
        let mut attrs = PushLinkAttrs::new(&mut *buf).push_ifname_bytes(name.as_bytes());
        if let Some(mtu) = mtu {
            attrs = attrs.push_mtu(mtu);
        }
        drop(attrs);
        let info = push_nested_header(buf, IFLA_LINKINFO);
        push_string(buf, IFLA_INFO_KIND, kind);
        finalize_nested_header(buf, info);
    })
}

/// The far end of a veth pair to create.
///
/// It cannot be brought up in the same message: the kernel would open it before it has a peer
/// (`veth_open()` says `ENOTCONN`, drivers/net/veth.c).
#[derive(Debug, Clone, Copy, Default)]
pub struct VethPeer<'a> {
    /// Interface name.
    pub name: &'a str,
    /// MAC; random without one.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: Option<u32>,
    /// Interface group.
    pub group: Option<u32>,
    /// Network namespace to create it in; the socket's own without one.
    pub netns: Option<BorrowedFd<'a>>,
    /// Interface index; honoured only when [`VethSpec::index`] is given too.
    pub index: Option<u32>,
}

/// A veth pair to create; the near end belongs to the socket's namespace.
#[derive(Debug, Clone, Copy, Default)]
pub struct VethSpec<'a> {
    /// Interface name.
    pub name: &'a str,
    /// MAC; random without one.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: Option<u32>,
    /// Interface group.
    pub group: Option<u32>,
    /// Index of the bridge to enslave the near end to.
    pub master: Option<u32>,
    /// Interface index; chosen by the kernel without one.
    pub index: Option<u32>,
    /// Bring the near end up at once.
    pub up: bool,
    /// Have the kernel answer with the near end as created ([`parse`] it for both indexes;
    /// Linux 6.2 and newer, older ones only acknowledge).
    pub echo: bool,
    /// The far end.
    pub peer: VethPeer<'a>,
}

/// Appends the creation of both ends of a veth pair, the far one right in its namespace, in one
/// message.
///
/// Each end has one queue: without a word about it the kernel makes as many as the host has processors and then takes
/// all but one out of use, for which it waits until nobody looks at them any more (`veth_init_queues()`,
/// drivers/net/veth.c).
///
/// Fails with `EEXIST` when either name is taken. Settings of the near end that the kernel does not
/// take at creation (alias, bridge port, address generation mode) go into a following [`set`] of the
/// same batch.
pub fn create_veth(batch: &mut Batch, spec: &VethSpec<'_>) -> usize {
    let echo = if spec.echo { ECHO } else { 0 };
    batch.message(libc::RTM_NEWLINK, CREATE | EXCL | echo, |buf| {
        push_ifinfo(buf, spec.index.unwrap_or(0), spec.up.then_some(true));
        let mut attrs = one_queue(PushLinkAttrs::new(&mut *buf)).push_ifname_bytes(spec.name.as_bytes());
        if let Some(mac) = &spec.mac {
            attrs = attrs.push_address(mac);
        }
        if let Some(mtu) = spec.mtu {
            attrs = attrs.push_mtu(mtu);
        }
        if let Some(group) = spec.group {
            attrs = attrs.push_group(group);
        }
        if let Some(master) = spec.master {
            attrs = attrs.push_master(master);
        }
        drop(attrs);

        let info = push_nested_header(buf, IFLA_LINKINFO);
        push_string(buf, IFLA_INFO_KIND, "veth");
        let data = push_nested_header(buf, IFLA_INFO_DATA);
        // The generated bindings lack this attribute: a whole ifinfomsg with attributes.
        let peer = push_nested_header(buf, VETH_INFO_PEER);
        push_ifinfo(buf, spec.peer.index.unwrap_or(0), None);
        let mut attrs = one_queue(PushLinkAttrs::new(&mut *buf)).push_ifname_bytes(spec.peer.name.as_bytes());
        if let Some(mac) = &spec.peer.mac {
            attrs = attrs.push_address(mac);
        }
        if let Some(mtu) = spec.peer.mtu {
            attrs = attrs.push_mtu(mtu);
        }
        if let Some(group) = spec.peer.group {
            attrs = attrs.push_group(group);
        }
        if let Some(netns) = spec.peer.netns {
            attrs = attrs.push_net_ns_fd(netns.as_raw_fd() as u32);
        }
        drop(attrs);
        finalize_nested_header(buf, peer);
        finalize_nested_header(buf, data);
        finalize_nested_header(buf, info);
    })
}

fn one_queue<P: netlink_bindings::traits::Pusher>(attrs: PushLinkAttrs<P>) -> PushLinkAttrs<P> {
    attrs.push_num_tx_queues(1).push_num_rx_queues(1)
}

/// What a child interface is, with what the kernel calls the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildMode {
    /// `MACVLAN_MODE_*` and, if not the kernel's own, the broadcast cut-off (Linux 6.4).
    Macvlan(u32, Option<i32>),
    /// `MACVLAN_MODE_*` and how many broadcasts may wait (Linux 5.11).
    MacvlanQueue(u32, u32),
    /// `IPVLAN_MODE_*`.
    Ipvlan(u16),
    /// A VLAN of IEEE 802.1Q.
    Vlan(u16),
    /// No child: it swallows what it is given. It has no parent.
    Dummy,
}

/// A macvlan, ipvlan or VLAN interface, or one without a parent, to create.
#[derive(Debug, Clone, Copy)]
pub struct ChildSpec<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Index of the parent in the socket's namespace; 0 for none.
    pub parent: u32,
    /// Kind and mode.
    pub mode: ChildMode,
    /// MAC; random for macvlan, the parent's for ipvlan without one.
    pub mac: Option<Mac>,
    /// MTU; the parent's without one.
    pub mtu: Option<u32>,
    /// The network namespace to create it in.
    pub netns: BorrowedFd<'a>,
}

/// Appends the creation of a macvlan, ipvlan or VLAN interface, or one without a parent, right in its namespace.
pub fn create_child(batch: &mut Batch, spec: &ChildSpec<'_>) -> usize {
    batch.message(libc::RTM_NEWLINK, CREATE | EXCL, |buf| {
        push_ifinfo(buf, 0, None);
        let mut attrs = PushLinkAttrs::new(&mut *buf)
            .push_ifname_bytes(spec.name.as_bytes())
            .push_net_ns_fd(spec.netns.as_raw_fd() as u32);
        if spec.parent != 0 {
            attrs = attrs.push_link(spec.parent);
        }
        if let Some(mac) = &spec.mac {
            attrs = attrs.push_address(mac);
        }
        if let Some(mtu) = spec.mtu {
            attrs = attrs.push_mtu(mtu);
        }
        drop(attrs);
        let info = push_nested_header(buf, IFLA_LINKINFO);
        push_string(
            buf,
            IFLA_INFO_KIND,
            match spec.mode {
                ChildMode::Macvlan(..) | ChildMode::MacvlanQueue(..) => "macvlan",
                ChildMode::Ipvlan(_) => "ipvlan",
                ChildMode::Vlan(_) => "vlan",
                ChildMode::Dummy => "dummy",
            },
        );
        let data = push_nested_header(buf, IFLA_INFO_DATA);
        match spec.mode {
            ChildMode::Macvlan(mode, cutoff) => {
                push_u32(buf, IFLA_MACVLAN_MODE, mode);
                if let Some(cutoff) = cutoff {
                    push_u32(buf, IFLA_MACVLAN_BC_CUTOFF, cutoff.cast_unsigned());
                }
            }
            ChildMode::MacvlanQueue(mode, length) => {
                push_u32(buf, IFLA_MACVLAN_MODE, mode);
                push_u32(buf, IFLA_MACVLAN_BC_QUEUE_LEN, length);
            }
            ChildMode::Ipvlan(mode) => push_u16(buf, IFLA_IPVLAN_MODE, mode),
            ChildMode::Vlan(id) => push_u16(buf, IFLA_VLAN_ID, id),
            ChildMode::Dummy => {}
        }
        finalize_nested_header(buf, data);
        finalize_nested_header(buf, info);
    })
}

/// Appends the creation of an interface (ifb) that gives back what it is led to the interface it was led from.
pub fn create_ifb(batch: &mut Batch, name: &str) -> usize {
    batch.message(libc::RTM_NEWLINK, CREATE | EXCL, |buf| {
        push_ifinfo(buf, 0, None);
        PushLinkAttrs::new(&mut *buf).push_ifname_bytes(name.as_bytes());
        let info = push_nested_header(buf, IFLA_LINKINFO);
        push_string(buf, IFLA_INFO_KIND, "ifb");
        finalize_nested_header(buf, info);
    })
}

/// Appends the creation of a VRF: interfaces that belong to it look routes up in `table`.
pub fn create_vrf(batch: &mut Batch, name: &str, table: u32) -> usize {
    batch.message(libc::RTM_NEWLINK, CREATE | EXCL, |buf| {
        push_ifinfo(buf, 0, None);
        PushLinkAttrs::new(&mut *buf).push_ifname_bytes(name.as_bytes());
        let info = push_nested_header(buf, IFLA_LINKINFO);
        push_string(buf, IFLA_INFO_KIND, "vrf");
        let data = push_nested_header(buf, IFLA_INFO_DATA);
        push_header(buf, IFLA_VRF_TABLE, 4);
        buf.extend(table.to_ne_bytes());
        finalize_nested_header(buf, data);
        finalize_nested_header(buf, info);
    })
}

/// Appends the creation of a VLAN interface (IEEE 802.1Q) on the interface with index `parent`.
pub fn create_vlan(batch: &mut Batch, name: &str, parent: u32, id: u16) -> usize {
    batch.message(libc::RTM_NEWLINK, CREATE | EXCL, |buf| {
        push_ifinfo(buf, 0, None);
        PushLinkAttrs::new(&mut *buf).push_ifname_bytes(name.as_bytes()).push_link(parent);
        let info = push_nested_header(buf, IFLA_LINKINFO);
        push_string(buf, IFLA_INFO_KIND, "vlan");
        let data = push_nested_header(buf, IFLA_INFO_DATA);
        push_u16(buf, IFLA_VLAN_ID, id);
        finalize_nested_header(buf, data);
        finalize_nested_header(buf, info);
    })
}

/// Appends that what comes in untagged at a bridge port, or with `is_bridge` from the host at the bridge itself, is in
/// VLAN `id`, and leaves untagged.
pub fn set_bridge_vlan(batch: &mut Batch, index: u32, id: u16, is_bridge: bool) -> usize {
    batch.message(libc::RTM_SETLINK, 0, |buf| {
        let mut header = Ifinfomsg::new();
        header.ifi_family = libc::AF_BRIDGE as u8;
        header.ifi_index = index as i32;
        buf.extend_from_slice(header.as_slice());
        let spec = push_nested_header(buf, IFLA_AF_SPEC);
        if is_bridge {
            push_u16(buf, IFLA_BRIDGE_FLAGS, BRIDGE_FLAGS_SELF);
        }
        push_header(buf, IFLA_BRIDGE_VLAN_INFO, 4);
        buf.extend(PVID_UNTAGGED.to_ne_bytes());
        buf.extend(id.to_ne_bytes());
        finalize_nested_header(buf, spec);
    })
}

/// Appends that frames tagged with one of the VLANs `first` to `last` pass a bridge port, tagged.
pub fn add_bridge_vlans(batch: &mut Batch, port: u32, first: u16, last: u16) -> usize {
    bridge_vlans(batch, libc::RTM_SETLINK, port, first, last)
}

/// Appends that a bridge port is in VLAN `id` no more; fine if it was not.
pub fn delete_bridge_vlan(batch: &mut Batch, port: u32, id: u16) -> usize {
    bridge_vlans(batch, libc::RTM_DELLINK, port, id, id)
}

fn bridge_vlans(batch: &mut Batch, kind: u16, port: u32, first: u16, last: u16) -> usize {
    batch.message(kind, 0, |buf| {
        let mut header = Ifinfomsg::new();
        header.ifi_family = libc::AF_BRIDGE as u8;
        header.ifi_index = port as i32;
        buf.extend_from_slice(header.as_slice());
        let spec = push_nested_header(buf, IFLA_AF_SPEC);
        let ends: &[(u16, u16)] =
            if first == last { &[(0, first)] } else { &[(RANGE_BEGIN, first), (RANGE_END, last)] };
        for (flags, id) in ends {
            push_header(buf, IFLA_BRIDGE_VLAN_INFO, 4);
            buf.extend(flags.to_ne_bytes());
            buf.extend(id.to_ne_bytes());
        }
        finalize_nested_header(buf, spec);
    })
}

/// Appends that a bridge keeps VLANs apart; `EOPNOTSUPP` of kernels built without that.
pub fn set_vlan_filtering(batch: &mut Batch, bridge: u32) -> usize {
    batch.message(libc::RTM_NEWLINK, 0, |buf| {
        push_ifinfo(buf, bridge, None);
        let info = push_nested_header(buf, IFLA_LINKINFO);
        push_string(buf, IFLA_INFO_KIND, "bridge");
        let data = push_nested_header(buf, IFLA_INFO_DATA);
        drop(PushLinkinfoBridgeAttrs::new(&mut *buf).push_vlan_filtering(1));
        finalize_nested_header(buf, data);
        finalize_nested_header(buf, info);
    })
}

fn push_u32(buf: &mut Vec<u8>, kind: u16, value: u32) {
    push_header(buf, kind, 4);
    buf.extend(value.to_ne_bytes());
}

/// An attribute of two bytes, with the padding that attributes end on (`NLA_ALIGN`).
fn push_u16(buf: &mut Vec<u8>, kind: u16, value: u16) {
    push_header(buf, kind, 2);
    buf.extend(value.to_ne_bytes());
    buf.extend([0; 2]);
}

/// Changes to one interface; what is `None` or empty stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkChange<'a> {
    /// Administrative state.
    pub up: Option<bool>,
    /// Take frames for anybody.
    pub promisc: Option<bool>,
    /// Take frames for every group.
    pub allmulti: Option<bool>,
    /// Packets that may wait to be sent.
    pub tx_queue_len: Option<u32>,
    /// MTU.
    pub mtu: Option<u32>,
    /// Index of the bridge to join, 0 to leave.
    pub master: Option<u32>,
    /// Free text of at most 255 bytes; empty clears it.
    pub alias: Option<&'a str>,
    /// Interface group.
    pub group: Option<u32>,
    /// New name; the interface has to be given by index. Linux before 6.2 wants it down.
    pub name: Option<&'a str>,
    /// MAC.
    pub mac: Option<Mac>,
    /// Network namespace to move to; the other changes are made there.
    pub netns: Option<BorrowedFd<'a>>,
    /// IPv6 address generation; `EAFNOSUPPORT` where IPv6 is disabled.
    pub addr_gen_mode: Option<AddrGenMode>,
    /// IPv4 settings, applied in order.
    pub ipv4_conf: &'a [(Ipv4Conf, u32)],
    /// Bridge port attributes. The interface has to be a port already when the message is handled:
    /// `master` of the same change comes too late.
    pub brport: Option<BrPort>,
}

/// Appends changes to an existing interface.
pub fn set<'a>(batch: &mut Batch, link: impl Into<LinkRef<'a>>, change: &LinkChange<'_>) -> usize {
    let link = link.into();
    // RTM_NEWLINK without NLM_F_CREATE: RTM_SETLINK ignores IFLA_LINKINFO and with it the bridge
    // port attributes (rtnl_newlink() and rtnl_setlink(), net/core/rtnetlink.c).
    batch.message(libc::RTM_NEWLINK, 0, |buf| {
        let name = match link {
            LinkRef::Index(index) => {
                push_flags(buf, index, change);
                change.name
            }
            LinkRef::Name(name) => {
                push_flags(buf, 0, change);
                Some(name)
            }
        };
        let mut attrs = PushLinkAttrs::new(&mut *buf);
        if let Some(name) = name {
            attrs = attrs.push_ifname_bytes(name.as_bytes());
        }
        if let Some(netns) = change.netns {
            attrs = attrs.push_net_ns_fd(netns.as_raw_fd() as u32);
        }
        if let Some(mac) = &change.mac {
            attrs = attrs.push_address(mac);
        }
        if let Some(mtu) = change.mtu {
            attrs = attrs.push_mtu(mtu);
        }
        if let Some(len) = change.tx_queue_len {
            attrs = attrs.push_txqlen(len);
        }
        if let Some(master) = change.master {
            attrs = attrs.push_master(master);
        }
        if let Some(group) = change.group {
            attrs = attrs.push_group(group);
        }
        drop(attrs);
        if let Some(alias) = change.alias {
            // No trailing NUL: an empty attribute is what clears the alias.
            push_header(buf, libc::IFLA_IFALIAS, alias.len() as u16);
            buf.extend_from_slice(alias.as_bytes());
        }
        if change.addr_gen_mode.is_some() || !change.ipv4_conf.is_empty() {
            let spec = push_nested_header(buf, IFLA_AF_SPEC);
            if !change.ipv4_conf.is_empty() {
                let inet = push_nested_header(buf, AF_INET.into());
                let conf = push_nested_header(buf, IFLA_INET_CONF);
                for (setting, value) in change.ipv4_conf {
                    push_header(buf, *setting as u16, 4);
                    buf.extend_from_slice(&value.to_ne_bytes());
                }
                finalize_nested_header(buf, conf);
                finalize_nested_header(buf, inet);
            }
            if let Some(mode) = change.addr_gen_mode {
                let inet6 = push_nested_header(buf, AF_INET6.into());
                push_header(buf, IFLA_INET6_ADDR_GEN_MODE, 1);
                buf.push(mode.number());
                finalize_nested_header(buf, inet6);
            }
            finalize_nested_header(buf, spec);
        }
        if let Some(brport) = &change.brport {
            let info = push_nested_header(buf, IFLA_LINKINFO);
            push_string(buf, IFLA_INFO_SLAVE_KIND, "bridge");
            let data = push_nested_header(buf, IFLA_INFO_SLAVE_DATA);
            brport.push(PushLinkinfoBrportAttrs::new(&mut *buf));
            finalize_nested_header(buf, data);
            finalize_nested_header(buf, info);
        }
    })
}

/// Appends a change of name.
pub fn rename(batch: &mut Batch, index: u32, name: &str) -> usize {
    set(batch, index, &LinkChange { name: Some(name), ..LinkChange::default() })
}

/// Appends the deletion of an interface, and of its veth peer.
pub fn delete<'a>(batch: &mut Batch, link: impl Into<LinkRef<'a>>) -> usize {
    let link = link.into();
    batch.message(libc::RTM_DELLINK, 0, |buf| push_ref(buf, link))
}

/// Appends the deletion of all interfaces of `group`, in one go: the kernel waits for the end of them all at once
/// (`rtnl_group_dellink()`, net/core/rtnetlink.c).
pub fn delete_group(batch: &mut Batch, group: u32) -> usize {
    batch.message(libc::RTM_DELLINK, 0, |buf| {
        push_ifinfo(buf, 0, None);
        PushLinkAttrs::new(&mut *buf).push_group(group);
    })
}

fn push_ifinfo(buf: &mut Vec<u8>, index: u32, up: Option<bool>) {
    let mut header = Ifinfomsg::new();
    header.ifi_index = index as i32;
    if let Some(up) = up {
        header.ifi_change = IFF_UP;
        header.ifi_flags = if up { IFF_UP } else { 0 };
    }
    buf.extend_from_slice(header.as_slice());
}

fn push_flags(buf: &mut Vec<u8>, index: u32, change: &LinkChange<'_>) {
    let mut header = Ifinfomsg::new();
    header.ifi_index = index as i32;
    for (flag, wanted) in [(IFF_UP, change.up), (IFF_PROMISC, change.promisc), (IFF_ALLMULTI, change.allmulti)] {
        if let Some(on) = wanted {
            header.ifi_change |= flag;
            header.ifi_flags |= if on { flag } else { 0 };
        }
    }
    buf.extend_from_slice(header.as_slice());
}

fn push_ref(buf: &mut Vec<u8>, link: LinkRef<'_>) {
    match link {
        LinkRef::Index(index) => push_ifinfo(buf, index, None),
        LinkRef::Name(name) => {
            push_ifinfo(buf, 0, None);
            PushLinkAttrs::new(&mut *buf).push_ifname_bytes(name.as_bytes());
        }
    }
}
