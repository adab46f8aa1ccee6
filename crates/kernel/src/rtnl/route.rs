//! Routes.

use std::net::IpAddr;

use netlink_bindings::rt_route::{OpGetrouteDump, PushRouteAttrs, RouteAttrs, Rtmsg};
use netlink_bindings::utils::{IterableChunks, parse_ip, push_header};

use super::Family;
use crate::netlink::{Batch, CREATE, EXCL, NetlinkError, REPLACE, Socket};

/// The main table.
pub const TABLE_MAIN: u32 = libc::RT_TABLE_MAIN as u32;
/// The table of local addresses.
pub const TABLE_LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
/// `RTPROT_KERNEL`: made by the kernel.
pub const PROTOCOL_KERNEL: u8 = libc::RTPROT_KERNEL;
/// `RTPROT_BOOT`: what iproute2 writes by default.
pub const PROTOCOL_BOOT: u8 = libc::RTPROT_BOOT;
/// `RTPROT_STATIC`: made by an administrator, or on his behalf.
pub const PROTOCOL_STATIC: u8 = libc::RTPROT_STATIC;

const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;

/// What happens to packets that match (`RTN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// Forwarded.
    Unicast,
    /// Delivered here.
    Local,
    /// Delivered here as broadcast.
    Broadcast,
    /// Dropped silently.
    Blackhole,
    /// Answered with ICMP host unreachable.
    Unreachable,
    /// Answered with ICMP administratively prohibited.
    Prohibit,
    /// Any other type.
    Other(u8),
}

impl RouteKind {
    fn number(self) -> u8 {
        match self {
            Self::Unicast => libc::RTN_UNICAST,
            Self::Local => libc::RTN_LOCAL,
            Self::Broadcast => libc::RTN_BROADCAST,
            Self::Blackhole => libc::RTN_BLACKHOLE,
            Self::Unreachable => libc::RTN_UNREACHABLE,
            Self::Prohibit => libc::RTN_PROHIBIT,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        [Self::Unicast, Self::Local, Self::Broadcast, Self::Blackhole, Self::Unreachable, Self::Prohibit]
            .into_iter()
            .find(|kind| kind.number() == number)
            .unwrap_or(Self::Other(number))
    }
}

/// One of several ways of a multipath route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// Outgoing interface.
    pub oif: Option<u32>,
    /// Router.
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix; the unspecified address for a default route. Host bits are zero.
    pub dst: IpAddr,
    /// Length of the destination prefix, 0 for a default route.
    pub prefix_len: u8,
    /// Router; may be an IPv6 address for an IPv4 destination (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub oif: Option<u32>,
    /// Priority, lower wins. IPv6 turns 0 into 1024.
    pub metric: Option<u32>,
    /// Table.
    pub table: u32,
    /// Type.
    pub kind: RouteKind,
    /// `RT_SCOPE_*`; derived from gateway and type without one. IPv6 has none.
    pub scope: Option<u8>,
    /// `RTPROT_*`: who made it.
    pub protocol: u8,
    /// The gateway is on the link even if no subnet of the interface says so.
    pub onlink: bool,
    /// Source address for packets of this host.
    pub prefsrc: Option<IpAddr>,
    /// Path MTU.
    pub mtu: Option<u32>,
    /// The segment size to announce (RTAX_ADVMSS).
    pub advertised_mss: Option<u32>,
    /// The ways of a multipath route, which then has no `gateway` and `oif` of its own. Only
    /// decoded, never sent.
    pub nexthops: Vec<NextHop>,
}

impl Route {
    /// A unicast route of the main table with protocol static.
    pub fn new(dst: IpAddr, prefix_len: u8) -> Self {
        Self {
            dst,
            prefix_len,
            gateway: None,
            oif: None,
            metric: None,
            table: TABLE_MAIN,
            kind: RouteKind::Unicast,
            scope: None,
            protocol: PROTOCOL_STATIC,
            onlink: false,
            prefsrc: None,
            mtu: None,
            advertised_mss: None,
            nexthops: Vec::new(),
        }
    }

    /// A default route of `family`.
    pub fn default_of(family: Family) -> Self {
        Self::new(family.unspecified(), 0)
    }

    /// The family of the destination.
    pub fn family(&self) -> Family {
        Family::of(self.dst)
    }

    /// Whether it is a default route.
    pub fn is_default(&self) -> bool {
        self.prefix_len == 0
    }
}

/// Appends the addition of a route; `EEXIST` if there is one with the same prefix, metric and
/// table.
pub fn add(batch: &mut Batch, route: &Route) -> usize {
    batch.message(libc::RTM_NEWROUTE, CREATE | EXCL, |buf| push(buf, route))
}

/// Appends the addition of a route that may stand beside others: IPv6 makes one route of several ways of those with the
/// same prefix, metric and table; IPv4 says `EEXIST` for the very same alone.
pub fn add_beside(batch: &mut Batch, route: &Route) -> usize {
    batch.message(libc::RTM_NEWROUTE, CREATE, |buf| push(buf, route))
}

/// Appends a route that takes the place of one with the same prefix, metric and table.
pub fn replace(batch: &mut Batch, route: &Route) -> usize {
    batch.message(libc::RTM_NEWROUTE, CREATE | REPLACE, |buf| push(buf, route))
}

/// Appends the removal of the first route that has all of the given properties; `ESRCH` if none.
pub fn delete(batch: &mut Batch, route: &Route) -> usize {
    batch.message(libc::RTM_DELROUTE, 0, |buf| push(buf, route))
}

/// Routes of all tables and both families.
///
/// # Errors
/// The kernel's refusal.
pub fn dump(socket: &mut Socket) -> Result<Vec<Route>, NetlinkError> {
    let mut routes = dump_family(socket, Family::V4)?;
    routes.extend(dump_family(socket, Family::V6)?);
    Ok(routes)
}

/// Routes of all tables of one family.
///
/// # Errors
/// The kernel's refusal.
pub fn dump_family(socket: &mut Socket, family: Family) -> Result<Vec<Route>, NetlinkError> {
    dump_where(socket, family, None)
}

/// Linux 5.0 and newer leave the other tables out (`ip_valid_fib_dump_req`, net/ipv4/fib_frontend.c); before, they are
/// told too.
fn dump_where(socket: &mut Socket, family: Family, table: Option<u32>) -> Result<Vec<Route>, NetlinkError> {
    socket.dump_all(
        libc::RTM_GETROUTE,
        0,
        |buf| {
            let mut header = Rtmsg::new();
            header.rtm_family = family.number();
            buf.extend_from_slice(header.as_slice());
            if let Some(table) = table {
                PushRouteAttrs::new(&mut *buf).push_table(table);
            }
        },
        |kind, payload| if kind == libc::RTM_NEWROUTE { parse(payload) } else { None },
    )
}

/// Where packets to the rest of the world leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultPath {
    /// Outgoing interface.
    pub oif: u32,
    /// Path MTU set on the route, if any.
    pub mtu: Option<u32>,
    /// Router, if any.
    pub gateway: Option<IpAddr>,
}

/// The unicast default route of the main table with the lowest metric; `None` without one.
///
/// # Errors
/// The kernel's refusal.
pub fn default_route_path(socket: &mut Socket, family: Family) -> Result<Option<DefaultPath>, NetlinkError> {
    let routes = match dump_where(socket, family, Some(TABLE_MAIN)) {
        // A namespace has no main table before its first route (`inet_dump_fib()`, net/ipv4/fib_frontend.c).
        Err(error) if error.errno() == libc::ENOENT => return Ok(None),
        routes => routes?,
    };
    Ok(routes
        .into_iter()
        .filter(|route| route.is_default() && route.table == TABLE_MAIN && route.kind == RouteKind::Unicast)
        .filter_map(|route| {
            let first = route.nexthops.first();
            let oif = route.oif.or_else(|| first?.oif)?;
            let gateway = route.gateway.or_else(|| first?.gateway);
            Some((route.metric.unwrap_or(0), DefaultPath { oif, mtu: route.mtu, gateway }))
        })
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, path)| path))
}

/// Decodes the payload of an `RTM_NEWROUTE` message; `None` for families other than IP and for
/// cached entries.
pub fn parse(payload: &[u8]) -> Option<Route> {
    let (header, attrs) = OpGetrouteDump::decode_request(payload);
    let family = Family::from_number(header.rtm_family)?;
    if header.rtm_flags & RTM_F_CLONED != 0 {
        return None;
    }
    let mut route = Route {
        table: header.rtm_table.into(),
        kind: RouteKind::from_number(header.rtm_type),
        scope: Some(header.rtm_scope),
        protocol: header.rtm_protocol,
        onlink: header.rtm_flags & RTNH_F_ONLINK != 0,
        ..Route::new(family.unspecified(), header.rtm_dst_len)
    };
    for attr in attrs.flatten() {
        match attr {
            RouteAttrs::Dst(addr) => route.dst = addr,
            RouteAttrs::Gateway(addr) => route.gateway = Some(addr),
            RouteAttrs::Oif(index) => route.oif = Some(index),
            RouteAttrs::Priority(metric) => route.metric = Some(metric),
            RouteAttrs::Table(table) => route.table = table,
            RouteAttrs::Prefsrc(addr) => route.prefsrc = Some(addr),
            RouteAttrs::Metrics(metrics) => {
                route.mtu = metrics.get_mtu().ok();
                route.advertised_mss = metrics.get_advmss().ok();
            }
            RouteAttrs::Multipath(bytes) => route.nexthops = parse_nexthops(bytes),
            _ => {}
        }
    }
    if route.gateway.is_none() {
        // The generated decoder takes RTA_VIA for a bare address.
        route.gateway = IterableChunks::new(payload.get(Rtmsg::len()..).unwrap_or(&[]))
            .find(|(header, _)| header.r#type == RTA_VIA)
            .and_then(|(_, via)| parse_ip(via.get(2..)?));
    }
    Some(route)
}

/// Decodes `struct rtnexthop` records (rtnetlink(7)): length, flags, weight, interface, attributes.
fn parse_nexthops(mut bytes: &[u8]) -> Vec<NextHop> {
    const HEADER: usize = 8;
    let mut nexthops = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(attrs) = bytes.get(HEADER..len) else { break };
        let oif = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
        let gateway = IterableChunks::new(attrs).find_map(|(header, value)| match header.r#type {
            RTA_GATEWAY => parse_ip(value),
            RTA_VIA => parse_ip(value.get(2..)?),
            _ => None,
        });
        nexthops.push(NextHop { oif: (oif != 0).then_some(oif), gateway });
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    nexthops
}

fn push(buf: &mut Vec<u8>, route: &Route) {
    let family = route.family();
    let mut header = Rtmsg::new();
    header.rtm_family = family.number();
    header.rtm_dst_len = route.prefix_len;
    header.rtm_protocol = route.protocol;
    header.rtm_type = route.kind.number();
    header.rtm_table = u8::try_from(route.table).unwrap_or(libc::RT_TABLE_UNSPEC);
    header.rtm_scope = route.scope.unwrap_or(match (family, route.kind, route.gateway) {
        (Family::V4, RouteKind::Unicast, None) => libc::RT_SCOPE_LINK,
        (Family::V4, RouteKind::Local, _) => libc::RT_SCOPE_HOST,
        _ => libc::RT_SCOPE_UNIVERSE,
    });
    if route.onlink {
        header.rtm_flags |= RTNH_F_ONLINK;
    }
    buf.extend_from_slice(header.as_slice());
    let mut attrs = PushRouteAttrs::new(&mut *buf).push_table(route.table);
    if route.prefix_len > 0 {
        attrs = attrs.push_dst(route.dst);
    }
    match route.gateway {
        Some(gateway) if Family::of(gateway) == family => attrs = attrs.push_gateway(gateway),
        _ => {}
    }
    if let Some(oif) = route.oif {
        attrs = attrs.push_oif(oif);
    }
    if let Some(metric) = route.metric {
        attrs = attrs.push_priority(metric);
    }
    if let Some(prefsrc) = route.prefsrc {
        attrs = attrs.push_prefsrc(prefsrc);
    }
    if route.mtu.is_some() || route.advertised_mss.is_some() {
        let mut metrics = attrs.nested_metrics();
        if let Some(mtu) = route.mtu {
            metrics = metrics.push_mtu(mtu);
        }
        if let Some(mss) = route.advertised_mss {
            metrics = metrics.push_advmss(mss);
        }
        attrs = metrics.end_nested();
    }
    drop(attrs);
    if let Some(gateway) = route.gateway
        && Family::of(gateway) != family
    {
        let bytes: &[u8] = match &gateway {
            IpAddr::V4(v4) => &v4.octets(),
            IpAddr::V6(v6) => &v6.octets(),
        };
        // struct rtvia: family, then the address.
        push_header(buf, RTA_VIA, bytes.len() as u16 + 2);
        buf.extend_from_slice(&u16::from(Family::of(gateway).number()).to_ne_bytes());
        buf.extend_from_slice(bytes);
    }
}
