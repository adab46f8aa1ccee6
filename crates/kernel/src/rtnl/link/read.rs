//! Links as the kernel has them: listing, looking one up, decoding, counters.

use std::collections::BTreeMap;

use netlink_bindings::rt_link::{
    Ifinfomsg, LinkAttrs, LinkinfoAttrs, LinkinfoMemberDataMsg, OpGetlinkDump, PushLinkAttrs,
};
use netlink_bindings::utils::IterableChunks;

use super::vxlan::{self, VxlanState};
use super::{AddrGenMode, BrPort, IFF_UP, IFLA_INFO_DATA, IFLA_LINKINFO, Ipv4Conf, LinkRef, push_ifinfo, push_ref};
use crate::netlink::{NetlinkError, Socket};
use crate::rtnl::Mac;

/// `RTEXT_FILTER_SKIP_STATS`, include/uapi/linux/rtnetlink.h: leave counters out of the answer.
const SKIP_STATS: u32 = 1 << 3;
const IFF_LOWER_UP: u32 = libc::IFF_LOWER_UP as u32;

/// An interface as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MAC, unless the link layer is not Ethernet-like.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: u32,
    /// `IFF_*` flags.
    pub flags: u32,
    /// Packets that may wait to be sent.
    pub tx_queue_len: u32,
    /// Table of routes, if it is a VRF.
    pub vrf_table: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// The carrier is there.
    pub lower_up: bool,
    /// Index of the bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// Interface group.
    pub group: u32,
    /// Alias, if one is set.
    pub alias: Option<String>,
    /// `bridge`, `veth`, …; hardware and loopback have none.
    pub kind: Option<String>,
    /// Mode of a macvlan or ipvlan interface (`MACVLAN_MODE_*`, `IPVLAN_MODE_*`), or the VLAN of a VLAN interface.
    pub mode: Option<u32>,
    /// What it is, if it is a VXLAN interface.
    pub vxlan: Option<VxlanState>,
    /// Kind of what it sends by: `noqueue`, `tbf`, …
    pub qdisc: Option<String>,
    /// Kind of the master.
    pub slave_kind: Option<String>,
    /// Port attributes, if the master is a bridge.
    pub brport: Option<BrPort>,
    /// Bridge attributes, if it is one.
    pub bridge: Option<BridgeState>,
    /// Identifier, in the namespace asked, of the one that the peer lives in.
    pub link_netnsid: Option<i32>,
    /// `IFLA_LINK`: index of the veth peer or of the lower interface, in that namespace.
    pub link: Option<u32>,
    /// IPv6 address generation, if IPv6 is enabled.
    pub addr_gen_mode: Option<AddrGenMode>,
    /// IPv4 settings by number (`IPV4_DEVCONF_*`).
    pub ipv4_conf: BTreeMap<u16, u32>,
}

impl Link {
    /// Value of an IPv4 setting.
    pub fn ipv4_conf(&self, setting: Ipv4Conf) -> Option<u32> {
        self.ipv4_conf.get(&(setting as u16)).copied()
    }
}

/// The bridge attributes we set or depend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgeState {
    /// Spanning tree is on.
    pub stp: bool,
    /// Forwarding delay in 1/100 s.
    pub forward_delay: u32,
    /// VLAN filtering is on.
    pub vlan_filtering: bool,
    /// Multicast snooping is on.
    pub mcast_snooping: bool,
    /// Ageing time of learnt addresses in 1/100 s.
    pub ageing_time: u32,
    /// The VLAN that new ports are in, of a bridge that keeps VLANs apart; 0 for none.
    pub default_pvid: u16,
}

/// All interfaces of the socket's namespace.
///
/// # Errors
/// The kernel's refusal.
pub fn dump(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    dump_where(socket, None)
}

/// What an interface has counted since it was made (`struct rtnl_link_stats64`, linux/if_link.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Packets to be sent and dropped.
    pub tx_dropped: u64,
}

/// The counters of all interfaces of the socket's namespace, by name.
///
/// # Errors
/// The kernel's refusal.
pub fn counters(socket: &mut Socket) -> Result<BTreeMap<String, Counters>, NetlinkError> {
    const HEADER: usize = 16;
    let all = socket.dump_all(
        libc::RTM_GETLINK,
        0,
        |buf| buf.extend([0; HEADER]),
        |kind, payload| if kind == libc::RTM_NEWLINK { parse_counters(payload) } else { None },
    )?;
    Ok(all.into_iter().collect())
}

/// Decodes the name and the counters of an `RTM_NEWLINK` message.
pub(crate) fn parse_counters(payload: &[u8]) -> Option<(String, Counters)> {
    const HEADER: usize = 16;
    let (mut name, mut counters) = (None, None);
    for (header, value) in IterableChunks::new(payload.get(HEADER..)?) {
        match header.r#type {
            libc::IFLA_IFNAME => {
                let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                name = Some(String::from_utf8_lossy(text).into_owned());
            }
            libc::IFLA_STATS64 => {
                let field = |number: usize| {
                    let bytes = value.get(number * 8..).and_then(|rest| rest.first_chunk());
                    bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
                };
                counters = Some(Counters {
                    rx_packets: field(0),
                    tx_packets: field(1),
                    rx_bytes: field(2),
                    tx_bytes: field(3),
                    rx_dropped: field(6),
                    tx_dropped: field(7),
                });
            }
            _ => {}
        }
    }
    Some((name?, counters?))
}

/// The interfaces whose master has index `master`.
///
/// # Errors
/// The kernel's refusal.
pub fn dump_ports(socket: &mut Socket, master: u32) -> Result<Vec<Link>, NetlinkError> {
    let mut links = dump_where(socket, Some(master))?;
    // Linux before 4.20 ignores the filter without strict checking.
    links.retain(|link| link.master == Some(master));
    Ok(links)
}

fn dump_where(socket: &mut Socket, master: Option<u32>) -> Result<Vec<Link>, NetlinkError> {
    socket.dump_all(
        libc::RTM_GETLINK,
        0,
        |buf| {
            push_ifinfo(buf, 0, None);
            let attrs = PushLinkAttrs::new(&mut *buf).push_ext_mask(SKIP_STATS);
            if let Some(master) = master {
                attrs.push_master(master);
            }
        },
        |kind, payload| (kind == libc::RTM_NEWLINK).then(|| parse(payload)),
    )
}

/// One interface of the socket's namespace; `None` if there is no such.
///
/// # Errors
/// Any refusal but `ENODEV`.
pub fn lookup<'a>(socket: &mut Socket, link: impl Into<LinkRef<'a>>) -> Result<Option<Link>, NetlinkError> {
    let link = link.into();
    let reply = socket.query_one(libc::RTM_GETLINK, 0, |buf| {
        push_ref(buf, link);
        PushLinkAttrs::new(&mut *buf).push_ext_mask(SKIP_STATS);
    })?;
    Ok(reply.map(|reply| parse(&reply.payload)))
}

/// Decodes the payload of an `RTM_NEWLINK` message.
pub fn parse(payload: &[u8]) -> Link {
    let (header, attrs) = OpGetlinkDump::decode_request(payload);
    let mut link = Link {
        index: header.ifi_index as u32,
        flags: header.ifi_flags,
        up: header.ifi_flags & IFF_UP != 0,
        lower_up: header.ifi_flags & IFF_LOWER_UP != 0,
        ..Link::default()
    };
    for attr in attrs.flatten() {
        match attr {
            LinkAttrs::Ifname(name) => link.name = name.to_string_lossy().into_owned(),
            LinkAttrs::Address(address) => link.mac = address.try_into().ok(),
            LinkAttrs::Mtu(mtu) => link.mtu = mtu,
            LinkAttrs::Txqlen(len) => link.tx_queue_len = len,
            LinkAttrs::Master(master) => link.master = Some(master),
            LinkAttrs::Group(group) => link.group = group,
            LinkAttrs::Ifalias(alias) => link.alias = Some(alias.to_string_lossy().into_owned()),
            LinkAttrs::Qdisc(kind) => link.qdisc = Some(kind.to_string_lossy().into_owned()),
            LinkAttrs::Link(index) => link.link = Some(index),
            LinkAttrs::LinkNetnsid(id) => link.link_netnsid = Some(id),
            LinkAttrs::Linkinfo(info) => {
                for attr in info.flatten() {
                    parse_info(&mut link, attr);
                }
            }
            LinkAttrs::AfSpec(spec) => {
                if let Ok(inet) = spec.get_inet()
                    && let Ok(conf) = inet.get_conf()
                {
                    // An array of u32 counted from setting 1.
                    link.ipv4_conf = (1..)
                        .zip(conf.chunks_exact(4))
                        .map(|(number, value)| (number, u32::from_ne_bytes([value[0], value[1], value[2], value[3]])))
                        .collect();
                }
                if let Ok(inet6) = spec.get_inet6()
                    && let Ok(mode) = inet6.get_addr_gen_mode()
                {
                    link.addr_gen_mode = AddrGenMode::from_number(mode);
                }
            }
            _ => {}
        }
    }
    if matches!(link.kind.as_deref(), Some("macvlan" | "ipvlan" | "vlan")) {
        link.mode = mode(payload);
    }
    if link.kind.as_deref() == Some("vxlan") {
        link.vxlan = vxlan::state(payload);
    }
    link
}

/// The attribute that tells the mode is number 1 of all kinds that have one (`IFLA_MACVLAN_MODE`, `IFLA_IPVLAN_MODE`,
/// `IFLA_VLAN_ID`); the generated decoder knows the last alone.
fn mode(payload: &[u8]) -> Option<u32> {
    let mut inside = payload.get(Ifinfomsg::len()..)?;
    for wanted in [IFLA_LINKINFO, IFLA_INFO_DATA, 1] {
        inside = IterableChunks::new(inside).find(|(header, _)| header.r#type == wanted)?.1;
    }
    match inside {
        [a, b] => Some(u16::from_ne_bytes([*a, *b]).into()),
        [a, b, c, d] => Some(u32::from_ne_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

fn parse_info(link: &mut Link, attr: LinkinfoAttrs<'_>) {
    use netlink_bindings::rt_link::LinkinfoBridgeAttrs as Br;
    use netlink_bindings::rt_link::LinkinfoBrportAttrs as Port;
    use netlink_bindings::rt_link::LinkinfoDataMsg;

    match attr {
        LinkinfoAttrs::Kind(kind) => link.kind = Some(kind.to_string_lossy().into_owned()),
        LinkinfoAttrs::SlaveKind(kind) => {
            link.slave_kind = Some(kind.to_string_lossy().into_owned());
        }
        LinkinfoAttrs::Data(LinkinfoDataMsg::Vrf(data)) => link.vrf_table = data.get_table().ok(),
        LinkinfoAttrs::Data(LinkinfoDataMsg::Bridge(data)) => {
            let mut bridge = BridgeState::default();
            for attr in data.flatten() {
                match attr {
                    Br::StpState(state) => bridge.stp = state != 0,
                    Br::ForwardDelay(delay) => bridge.forward_delay = delay,
                    Br::VlanFiltering(on) => bridge.vlan_filtering = on != 0,
                    Br::McastSnooping(on) => bridge.mcast_snooping = on != 0,
                    Br::AgeingTime(time) => bridge.ageing_time = time,
                    Br::VlanDefaultPvid(id) => bridge.default_pvid = id,
                    _ => {}
                }
            }
            link.bridge = Some(bridge);
        }
        LinkinfoAttrs::SlaveData(LinkinfoMemberDataMsg::Bridge(data)) => {
            let mut port = BrPort::default();
            for attr in data.flatten() {
                match attr {
                    Port::Isolated(on) => port.isolated = Some(on != 0),
                    Port::NeighSuppress(on) => port.neigh_suppress = Some(on != 0),
                    Port::Learning(on) => port.learning = Some(on != 0),
                    Port::Locked(on) => port.locked = Some(on != 0),
                    Port::UnicastFlood(on) => port.unicast_flood = Some(on != 0),
                    Port::McastFlood(on) => port.mcast_flood = Some(on != 0),
                    Port::BcastFlood(on) => port.bcast_flood = Some(on != 0),
                    Port::Mode(on) => port.hairpin = Some(on != 0),
                    Port::McastToUcast(on) => port.mcast_to_ucast = Some(on != 0),
                    _ => {}
                }
            }
            link.brport = Some(port);
        }
        _ => {}
    }
}
