//! Connection tracking entries: listing and deleting (nf_conntrack_netlink).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use netlink_bindings::conntrack::{
    ConntrackAttrs, IterableProtoinfoAttrs, IterableTupleAttrs, NfCtTcpState, OpGetDump, ProtoinfoAttrs,
    ProtoinfoTcpAttrs, PushConntrackAttrs, PushTupleAttrs, TupleAttrs, TupleIpAttrs, TupleProtoAttrs,
};
use netlink_bindings::traits::Pusher;

use crate::netlink::{Batch, NETFILTER, NetlinkError, Socket, push_nfgenmsg};
use crate::rtnl::Family;
use crate::{sys, sysctl};

const SUBSYSTEM: u16 = 1 << 8;
const IPCTNL_MSG_CT_NEW: u16 = SUBSYSTEM;
const IPCTNL_MSG_CT_GET: u16 = SUBSYSTEM | 1;
const IPCTNL_MSG_CT_DELETE: u16 = SUBSYSTEM | 2;
const IPCTNL_MSG_CT_GET_STATS: u16 = SUBSYSTEM | 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_STATS_GLOBAL_MAX_ENTRIES: u16 = 2;
/// `CTA_FILTER_FLAG(CTA_FILTER_F_CTA_PROTO_NUM)`, net/netfilter/nf_internals.h.
const FILTER_PROTO_NUM: u32 = 1 << 3;

/// `IPS_SEEN_REPLY`.
pub const SEEN_REPLY: u32 = 1 << 1;
/// `IPS_ASSURED`.
pub const ASSURED: u32 = 1 << 2;
/// `IPS_CONFIRMED`.
pub const CONFIRMED: u32 = 1 << 3;
/// `IPS_SRC_NAT`: the source address is translated.
pub const SRC_NAT: u32 = 1 << 4;
/// `IPS_DST_NAT`: the destination address is translated.
pub const DST_NAT: u32 = 1 << 5;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, 0 for protocols without.
    pub src_port: u16,
    /// Destination port, 0 for protocols without.
    pub dst_port: u16,
    /// ICMP identifier, type and code.
    pub icmp: Option<(u16, u8, u8)>,
}

/// A tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Kernel's identifier, telling apart successive connections of one tuple.
    pub id: Option<u32>,
    /// The first packet's direction, before translation.
    pub original: Tuple,
    /// What answers look like.
    pub reply: Tuple,
    /// `IPS_*`.
    pub status: u32,
    /// Conntrack zone.
    pub zone: u16,
    /// Connection mark.
    pub mark: u32,
    /// Seconds left.
    pub timeout: Option<u32>,
    /// Whether it is one of TCP that both ends have closed, or one has reset: nothing of use comes any more.
    pub is_closed: bool,
}

impl Entry {
    /// The addresses it is from and to, each once; a translated one is a container's by its other direction.
    pub fn ends(&self) -> impl Iterator<Item = IpAddr> {
        let ends = [self.original.src, self.original.dst, self.reply.src, self.reply.dst];
        (0..ends.len()).filter(move |at| !ends[..*at].contains(&ends[*at])).map(move |at| ends[at])
    }
}

/// How full the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Entries of the socket's namespace.
    pub entries: u32,
    /// How many there may be (`nf_conntrack_max`); none before Linux 4.18, which does not say.
    pub max: Option<u32>,
}

/// What to list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this family.
    pub family: Option<Family>,
    /// Only this IP protocol.
    pub protocol: Option<u8>,
}

impl Filter {
    fn matches(&self, entry: &Entry) -> bool {
        self.family.is_none_or(|family| family == Family::of(entry.original.src))
            && self.protocol.is_none_or(|protocol| protocol == entry.original.protocol)
    }
}

/// Lists the entries of the socket's namespace.
///
/// `socket` speaks [`crate::netlink::NETFILTER`]. Linux 5.8 and newer filter by protocol
/// themselves; what older ones list is sorted out here.
///
/// # Errors
/// The kernel's refusal.
pub fn dump(socket: &mut Socket, filter: Filter) -> Result<Vec<Entry>, NetlinkError> {
    // One table of a quarter of a million buckets serves all namespaces: the kernel takes milliseconds to walk it for one
    // that has no entry.
    if matches!(count(socket), Ok(0)) {
        return Ok(Vec::new());
    }
    match dump_with(socket, filter, filter.protocol) {
        Err(error) if matches!(error.errno(), libc::EINVAL | libc::EOPNOTSUPP) => dump_with(socket, filter, None),
        result => result,
    }
}

fn dump_with(socket: &mut Socket, filter: Filter, kernel_protocol: Option<u8>) -> Result<Vec<Entry>, NetlinkError> {
    socket.dump_all(
        IPCTNL_MSG_CT_GET,
        0,
        |buf| {
            push_nfgenmsg(buf, filter.family.map_or(0, Family::number), 0);
            if let Some(protocol) = kernel_protocol {
                PushConntrackAttrs::new(&mut *buf)
                    .nested_tuple_orig()
                    .nested_tuple_proto()
                    .push_proto_num(protocol)
                    .end_nested()
                    .end_nested()
                    .nested_filter()
                    .push_orig_flags(FILTER_PROTO_NUM)
                    .push_reply_flags(0);
            }
        },
        |kind, payload| {
            if kind != IPCTNL_MSG_CT_NEW {
                return None;
            }
            parse(payload).filter(|entry| filter.matches(entry))
        },
    )
}

/// Number of entries in the socket's namespace.
///
/// # Errors
/// The kernel's refusal.
pub fn count(socket: &mut Socket) -> Result<u32, NetlinkError> {
    Ok(fill(socket)?.entries)
}

/// How full the table is, of the socket's namespace.
///
/// # Errors
/// The kernel's refusal.
pub fn fill(socket: &mut Socket) -> Result<Fill, NetlinkError> {
    let reply = socket.query_one(IPCTNL_MSG_CT_GET_STATS, 0, |buf| push_nfgenmsg(buf, 0, 0))?;
    let number = |kind| {
        let value = netlink_bindings::utils::find_attr(reply.as_ref()?.payload.get(4..)?, kind)?;
        value.first_chunk().map(|value| u32::from_be_bytes(*value))
    };
    Ok(Fill { entries: number(CTA_STATS_GLOBAL_ENTRIES).unwrap_or(0), max: number(CTA_STATS_GLOBAL_MAX_ENTRIES) })
}

/// Waits for a connection to begin: readable from the first one on that begins in the namespace in which it was opened.
///
/// Each that begins costs a message as long as this is open, so it is for who closes it then.
#[derive(Debug)]
pub struct Begun(Socket);

/// `NFNLGRP_CONNTRACK_NEW` (include/uapi/linux/netfilter/nfnetlink_compat.h).
const GROUP_NEW: i32 = 1;

impl Begun {
    /// Subscribes in the calling thread's namespace.
    ///
    /// # Errors
    /// The errno of socket(2) or of joining the group; `EOPNOTSUPP` where connections begin without a word
    /// (`net.netfilter.nf_conntrack_events`).
    pub fn open() -> Result<Self, NetlinkError> {
        if sysctl::read(&["net", "netfilter", "nf_conntrack_events"]).is_ok_and(|value| value.trim() == "0") {
            return Err(NetlinkError::from_errno(libc::EOPNOTSUPP));
        }
        let socket = Socket::open(NETFILTER)?;
        sys::bind_netlink(socket.as_fd())?;
        sys::setsockopt_int(socket.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, GROUP_NEW)?;
        Ok(Self(socket))
    }
}

impl AsFd for Begun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Appends the deletion of one entry; `ENOENT` if it is gone.
///
/// The identifier keeps a successor with the same tuple alive.
pub fn delete(batch: &mut Batch, entry: &Entry) -> usize {
    batch.message(IPCTNL_MSG_CT_DELETE, 0, |buf| {
        push_nfgenmsg(buf, Family::of(entry.original.src).number(), 0);
        let mut attrs = PushConntrackAttrs::new(&mut *buf);
        attrs = push_tuple(attrs.nested_tuple_orig(), &entry.original).end_nested();
        if entry.zone != 0 {
            attrs = attrs.push_zone(entry.zone);
        }
        if let Some(id) = entry.id {
            attrs.push_id(id);
        }
    })
}

/// Deletes the entries that `filter` and `matches` agree on; returns how many were there.
///
/// Entries that expire meanwhile do not count.
///
/// # Errors
/// The first refusal other than `ENOENT`, after all deletions were tried.
pub fn delete_matching(
    socket: &mut Socket,
    filter: Filter,
    mut matches: impl FnMut(&Entry) -> bool,
) -> Result<usize, NetlinkError> {
    let mut batch = Batch::new();
    for entry in dump(socket, filter)? {
        if matches(&entry) {
            delete(&mut batch, &entry);
        }
    }
    if batch.is_empty() {
        return Ok(0);
    }
    let mut deleted = 0;
    let mut failure = None;
    for result in socket.transact_each(&batch)?.results() {
        match result {
            Ok(()) => deleted += 1,
            Err(error) if error.errno() == libc::ENOENT => {}
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(deleted), Err)
}

pub(crate) fn parse(payload: &[u8]) -> Option<Entry> {
    let (_, attrs) = OpGetDump::decode_request(payload);
    let (mut original, mut reply) = (None, None);
    let (mut id, mut status, mut zone, mut mark, mut timeout, mut is_closed) = (None, 0, 0, 0, None, false);
    for attr in attrs.flatten() {
        match attr {
            ConntrackAttrs::TupleOrig(tuple) => original = parse_tuple(tuple),
            ConntrackAttrs::TupleReply(tuple) => reply = parse_tuple(tuple),
            ConntrackAttrs::Id(value) => id = Some(value),
            ConntrackAttrs::Status(value) => status = value,
            ConntrackAttrs::Zone(value) => zone = value,
            ConntrackAttrs::Mark(value) => mark = value,
            ConntrackAttrs::Timeout(value) => timeout = Some(value),
            ConntrackAttrs::Protoinfo(info) => is_closed = is_closed_tcp(info),
            _ => {}
        }
    }
    Some(Entry { id, original: original?, reply: reply?, status, zone, mark, timeout, is_closed })
}

/// By what tcp_packet() of net/netfilter/nf_conntrack_proto_tcp.c calls it.
fn is_closed_tcp(info: IterableProtoinfoAttrs<'_>) -> bool {
    info.flatten().any(|attr| match attr {
        ProtoinfoAttrs::ProtoinfoTcp(attrs) => attrs.flatten().any(|attr| match attr {
            ProtoinfoTcpAttrs::TcpState(state) => {
                [NfCtTcpState::TimeWait as u8, NfCtTcpState::Close as u8].contains(&state)
            }
            _ => false,
        }),
        _ => false,
    })
}

fn parse_tuple(attrs: IterableTupleAttrs<'_>) -> Option<Tuple> {
    let (mut src, mut dst) = (None, None);
    let (mut protocol, mut src_port, mut dst_port) = (0, 0, 0);
    let mut icmp = (0, 0, 0);
    for attr in attrs.flatten() {
        match attr {
            TupleAttrs::TupleIp(ip) => {
                for attr in ip.flatten() {
                    match attr {
                        TupleIpAttrs::IpV4Src(addr) => src = Some(IpAddr::V4(addr)),
                        TupleIpAttrs::IpV4Dst(addr) => dst = Some(IpAddr::V4(addr)),
                        TupleIpAttrs::IpV6Src(addr) => src = Some(IpAddr::V6(addr)),
                        TupleIpAttrs::IpV6Dst(addr) => dst = Some(IpAddr::V6(addr)),
                    }
                }
            }
            TupleAttrs::TupleProto(proto) => {
                for attr in proto.flatten() {
                    match attr {
                        TupleProtoAttrs::ProtoNum(number) => protocol = number,
                        TupleProtoAttrs::ProtoSrcPort(port) => src_port = port,
                        TupleProtoAttrs::ProtoDstPort(port) => dst_port = port,
                        TupleProtoAttrs::ProtoIcmpId(id) | TupleProtoAttrs::ProtoIcmpv6Id(id) => {
                            icmp.0 = id;
                        }
                        TupleProtoAttrs::ProtoIcmpType(kind) | TupleProtoAttrs::ProtoIcmpv6Type(kind) => icmp.1 = kind,
                        TupleProtoAttrs::ProtoIcmpCode(code) | TupleProtoAttrs::ProtoIcmpv6Code(code) => icmp.2 = code,
                    }
                }
            }
            TupleAttrs::TupleZone(_) => {}
        }
    }
    let icmp = is_icmp(protocol).then_some(icmp);
    Some(Tuple { src: src?, dst: dst?, protocol, src_port, dst_port, icmp })
}

fn is_icmp(protocol: u8) -> bool {
    matches!(i32::from(protocol), libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6)
}

fn push_tuple<P: Pusher>(attrs: PushTupleAttrs<P>, tuple: &Tuple) -> PushTupleAttrs<P> {
    let ip = attrs.nested_tuple_ip();
    let attrs = match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ip.push_ip_v4_src(src).push_ip_v4_dst(dst),
        (src, dst) => ip.push_ip_v6_src(to_v6(src)).push_ip_v6_dst(to_v6(dst)),
    }
    .end_nested();
    let mut proto = attrs.nested_tuple_proto().push_proto_num(tuple.protocol);
    proto = match tuple.icmp {
        Some((id, kind, code)) if i32::from(tuple.protocol) == libc::IPPROTO_ICMPV6 => {
            proto.push_proto_icmpv6_id(id).push_proto_icmpv6_type(kind).push_proto_icmpv6_code(code)
        }
        Some((id, kind, code)) => proto.push_proto_icmp_id(id).push_proto_icmp_type(kind).push_proto_icmp_code(code),
        None => proto.push_proto_src_port(tuple.src_port).push_proto_dst_port(tuple.dst_port),
    };
    proto.end_nested()
}

fn to_v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
        IpAddr::V6(v6) => v6,
    }
}
