//! Hearing of what others change: multicast groups of rtnetlink(7) and nfnetlink.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use netlink_bindings::utils::IterableChunks;

use super::answer::{Messages, NLMSG_OVERRUN};
use super::{NETFILTER, NetlinkError, ROUTE, Socket};
use crate::rtnl::link::{self, Link};
use crate::{process, sys};

/// Something that happened in the namespace that the monitor was opened in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A transaction changed these nftables tables. A table of several families appears once.
    Rules {
        /// Names of tables, each once.
        tables: Vec<String>,
        /// The process that did it, and its name; the name is no proof of anything.
        by: (u32, String),
    },
    /// An interface is new or changed.
    Link(Box<Link>),
    /// An interface is gone.
    LinkGone(Box<Link>),
    /// An address of an interface is gone.
    AddressGone {
        /// The interface.
        index: u32,
        /// The address.
        address: IpAddr,
    },
    /// A route is gone.
    RouteGone {
        /// The interface it led out of, if it did.
        index: Option<u32>,
        /// Whether it was a default route.
        is_default: bool,
        /// Where it led, unless it was a default route.
        destination: Option<IpNet>,
    },
    /// A default route is new.
    DefaultRoute,
    /// A neighbour or forwarding entry is gone.
    NeighbourGone {
        /// The interface; for a forwarding entry, the bridge's port.
        index: u32,
        /// The neighbour's address; none for a forwarding entry.
        address: Option<IpAddr>,
        /// The MAC.
        mac: Option<[u8; 6]>,
    },
    /// What limited an interface, or led its packets aside, is gone.
    LimitGone {
        /// The interface.
        index: u32,
    },
    /// There was more than fits into the buffer: anything may have changed.
    Lost,
}

/// Both subscriptions.
#[derive(Debug)]
pub struct Monitor {
    rules: Socket,
    routing: Socket,
    /// Tables of the transaction that is being told.
    tables: Vec<String>,
}

/// `enum nfnetlink_groups` and `enum rtnetlink_groups` of include/uapi/linux.
const NFNLGRP_NFTABLES: i32 = 7;
const RTNLGRP_LINK: i32 = 1;
const RTNLGRP_NEIGH: i32 = 3;
const RTNLGRP_TC: i32 = 4;
const RTNLGRP_IPV4_IFADDR: i32 = 5;
const RTNLGRP_IPV4_ROUTE: i32 = 7;
const RTNLGRP_IPV6_IFADDR: i32 = 9;
const RTNLGRP_IPV6_ROUTE: i32 = 11;

const NLA_TYPE_MASK: u16 = 0x3fff;

impl Monitor {
    /// Subscribes in the calling thread's namespace. What is listed from now on misses nothing.
    ///
    /// # Errors
    /// The errno of socket(2) or of joining a group.
    pub fn open() -> Result<Self, NetlinkError> {
        let join = |socket: &Socket, group| {
            sys::setsockopt_int(socket.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)
        };
        // Without an address of its own, a socket counts as the kernel's, which does not hear itself
        // (do_one_broadcast(), net/netlink/af_netlink.c).
        let rules = Socket::open(NETFILTER)?;
        sys::bind_netlink(rules.as_fd())?;
        join(&rules, NFNLGRP_NFTABLES)?;
        let routing = Socket::open(ROUTE)?;
        sys::bind_netlink(routing.as_fd())?;
        for group in [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_TC,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ] {
            join(&routing, group)?;
        }
        Ok(Self { rules, routing, tables: Vec::new() })
    }

    /// What to wait for: either is readable when there is something to read.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.rules.as_fd(), self.routing.as_fd()]
    }

    /// All that has happened and was not read yet; returns at once.
    ///
    /// # Errors
    /// What recv(2) says, other than that messages were lost.
    pub fn read(&mut self) -> Result<Vec<Event>, NetlinkError> {
        let mut events = Vec::new();
        let Self { rules, routing, tables } = self;
        drain(rules, &mut events, |kind, payload| rule_event(kind, payload, tables))?;
        drain(routing, &mut events, routing_event)?;
        Ok(events)
    }
}

fn drain(
    socket: &mut Socket,
    events: &mut Vec<Event>,
    mut event: impl FnMut(u16, &[u8]) -> Option<Event>,
) -> Result<(), NetlinkError> {
    loop {
        match socket.receive_now() {
            Ok(Some(datagram)) => take(datagram, events, &mut event),
            Ok(None) => return Ok(()),
            // The next datagram is whole again.
            Err(error) if matches!(error.errno(), libc::ENOBUFS | libc::EMSGSIZE) => events.push(Event::Lost),
            Err(error) => return Err(error),
        }
    }
}

fn take(datagram: &[u8], events: &mut Vec<Event>, mut event: impl FnMut(u16, &[u8]) -> Option<Event>) {
    for message in Messages::new(datagram) {
        match message.kind {
            NLMSG_OVERRUN => events.push(Event::Lost),
            kind => events.extend(event(kind, message.payload)),
        }
    }
}

/// What a datagram tells, taken for one of nfnetlink, and for one of rtnetlink.
pub(crate) fn notifications(datagram: &[u8]) -> Vec<Event> {
    let (mut events, mut tables) = (Vec::new(), Vec::new());
    take(datagram, &mut events, |kind, payload| rule_event(kind, payload, &mut tables));
    take(datagram, &mut events, routing_event);
    events
}

/// The notifications of a transaction precede that of its generation (`nft_commit_notify()` and `nf_tables_gen_notify()`,
/// net/netfilter/nf_tables_api.c).
fn rule_event(kind: u16, payload: &[u8], tables: &mut Vec<String>) -> Option<Event> {
    /// `struct nfgenmsg`.
    const HEADER: usize = 4;
    const NFTA_GEN_PROC_PID: u16 = 2;
    const NFTA_GEN_PROC_NAME: u16 = 3;
    /// The first attribute of every object: the table it is in, or its name if it is one.
    const TABLE: u16 = 1;

    let attributes = || {
        IterableChunks::new(payload.get(HEADER..).unwrap_or_default())
            .map(|(header, value)| (header.r#type & NLA_TYPE_MASK, value))
    };
    if i32::from(kind & 0xff) != libc::NFT_MSG_NEWGEN {
        if let Some((_, name)) = attributes().find(|(kind, _)| *kind == TABLE) {
            let name = text(name);
            if !tables.contains(&name) {
                tables.push(name);
            }
        }
        return None;
    }
    let mut by = (0, String::new());
    for (kind, value) in attributes() {
        match kind {
            NFTA_GEN_PROC_PID => by.0 = value.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)),
            NFTA_GEN_PROC_NAME => by.1 = process::shown(value.split(|byte| *byte == 0).next().unwrap_or_default()),
            _ => {}
        }
    }
    Some(Event::Rules { tables: std::mem::take(tables), by })
}

fn routing_event(kind: u16, payload: &[u8]) -> Option<Event> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    let number = |at: usize| Some(u32::from_ne_bytes(*payload.get(at..)?.first_chunk()?));
    let attribute = |header: usize, wanted: u16| {
        IterableChunks::new(payload.get(header..)?)
            .find(|(header, _)| header.r#type & NLA_TYPE_MASK == wanted)
            .map(|(_, value)| value)
    };
    match kind {
        libc::RTM_NEWLINK => Some(Event::Link(Box::new(link::parse(payload)))),
        libc::RTM_DELLINK => Some(Event::LinkGone(Box::new(link::parse(payload)))),
        libc::RTM_DELADDR => {
            // struct ifaddrmsg: family, prefix length, flags, scope, interface.
            let value = attribute(8, IFA_LOCAL).or_else(|| attribute(8, IFA_ADDRESS))?;
            Some(Event::AddressGone { index: number(4)?, address: address(value)? })
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            // struct rtmsg: family, destination's prefix length, …
            let is_default = *payload.get(1)? == 0;
            if kind == libc::RTM_NEWROUTE {
                return is_default.then_some(Event::DefaultRoute);
            }
            let index = attribute(12, libc::RTA_OIF).and_then(|value| value.first_chunk());
            let dst = attribute(12, libc::RTA_DST).and_then(address);
            let destination = dst.and_then(|dst| IpNet::new(dst, *payload.get(1)?).ok());
            Some(Event::RouteGone { index: index.map(|bytes| u32::from_ne_bytes(*bytes)), is_default, destination })
        }
        libc::RTM_DELNEIGH => {
            // struct ndmsg: family and padding, interface, …
            let is_forwarding = i32::from(*payload.first()?) == libc::AF_BRIDGE;
            let address = if is_forwarding { None } else { attribute(12, NDA_DST).and_then(address) };
            let mac = attribute(12, NDA_LLADDR).and_then(|value| value.first_chunk().copied());
            Some(Event::NeighbourGone { index: number(4)?, address, mac })
        }
        // struct tcmsg: family and padding, interface, …
        libc::RTM_DELQDISC | libc::RTM_DELTFILTER => Some(Event::LimitGone { index: number(4)? }),
        _ => None,
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(*value.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
        _ => None,
    }
}
