//! What the kernel says, taken apart without a socket: the ways in for `fuzz/`, and for nothing else.

use std::fmt::Write as _;

use portolan_plan::{Element, Set};

use crate::netlink::{Event, NetlinkError};
use crate::{conntrack, diag, netlink, nft, rtnl};

/// The length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// The messages of a datagram: kind, and payload or what an acknowledgement says. As many as fit are there.
pub fn datagram(bytes: &[u8]) -> Vec<(u16, Result<Vec<u8>, NetlinkError>)> {
    netlink::messages(bytes)
}

/// What a datagram of notifications tells, of either subsystem.
pub fn notifications(bytes: &[u8]) -> Vec<Event> {
    netlink::notifications(bytes)
}

/// The elements of a set in an answer, those that are not of our making as none.
pub fn elements(set: Set, payload: &[u8]) -> Vec<Option<Element>> {
    nft::listed(set, payload.get(HEADER..).unwrap_or_default())
}

/// The request that adds elements, which is what an answer looks like too.
pub fn add_elements(table: &str, set: Set, elements: &[&Element]) -> Vec<u8> {
    nft::request(table, set, elements)
}

/// What an answer of any other kind is taken for, in words: links, addresses, routes, rules, neighbours, buckets, filters,
/// connections, listeners and rules of nftables.
pub fn everything(payload: &[u8]) -> String {
    let mut text = String::new();
    let mut say = |what: &dyn std::fmt::Debug| writeln!(text, "{what:?}").expect("a string takes all");
    say(&rtnl::link::parse(payload));
    say(&rtnl::link::parse_counters(payload));
    say(&rtnl::addr::parse(payload));
    say(&rtnl::route::parse(payload));
    say(&rtnl::rule::parse(payload));
    say(&rtnl::neigh::parse(payload));
    say(&rtnl::neigh::parse_forwarding(payload));
    say(&rtnl::tc::parse_bucket(payload));
    say(&rtnl::tc::parse_filter(payload));
    say(&conntrack::parse(payload));
    for family in [rtnl::Family::V4, rtnl::Family::V6] {
        say(&diag::parse(payload, diag::Transport::Udp, family));
    }
    say(&payload.get(HEADER..).and_then(nft::rule));
    text
}
