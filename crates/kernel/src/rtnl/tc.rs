//! Traffic control (tc(8)): token buckets, and leading aside what comes in or goes out at an interface.
//!
//! Only what limits the bandwidth of a port is here, and what has two interfaces be one for what is above them. Messages are `struct tcmsg` and attributes of
//! include/uapi/linux/{pkt_sched,pkt_cls}.h.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use netlink_bindings::utils::{IterableChunks, finalize_nested_header, push_header, push_nested_header};

use super::push_string;
use crate::netlink::{Batch, CREATE, ECHO, EXCL, NetlinkError, REPLACE, Socket};

/// "PO": by its handle a qdisc is known as ours, by its priority a filter. tc(8) shows the handle as `504f:`.
pub const OURS: u16 = 0x504f;

/// `struct tcmsg`: family and padding, interface, handle, parent, info.
const HEADER: usize = 20;
const TC_H_ROOT: u32 = 0xffff_ffff;
/// `TC_H_INGRESS`: where the ingress qdisc is attached, the only place it can be.
const TC_H_INGRESS: u32 = 0xffff_fff1;
/// The handle of an ingress qdisc, `ffff:`.
const INGRESS: u32 = 0xffff_0000;
/// What filters of what comes in name as their parent, whether the qdisc is `ingress` or somebody's `clsact`.
const FILTERS: u32 = 0xffff_fff2;
/// The same of what goes out; only a `clsact` has any.
const FILTERS_OUT: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: i32 = 1;
const TCA_INGRESS_REDIR: i32 = 3;
const TC_ACT_STOLEN: i32 = 4;

/// Where an IPv6 header has the destination (RFC 8200 §3).
const IPV6_DESTINATION: u32 = 24;

const NLA_TYPE_MASK: u16 = 0x3fff;

/// A token bucket (tc-tbf(8)), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Per second; at least 1.
    pub rate: u64,
    /// How many tokens it holds.
    pub burst: u32,
    /// How much waits for tokens; the rest is dropped.
    pub limit: u32,
}

/// Appends that interface `index` sends by `bucket`, whatever it sent by before. What waits in a bucket of ours goes on
/// waiting.
pub fn replace_bucket(batch: &mut Batch, index: u32, bucket: &Bucket) -> usize {
    batch.message(libc::RTM_NEWQDISC, CREATE | REPLACE, |buf| {
        push_tcmsg(buf, index, u32::from(OURS) << 16, TC_H_ROOT, 0);
        push_string(buf, TCA_KIND, "tbf");
        let options = push_nested_header(buf, TCA_OPTIONS);
        // struct tc_tbf_qopt: rate and peak rate (struct tc_ratespec), limit, buffer, mtu.
        push_header(buf, TCA_TBF_PARMS, 36);
        buf.extend([0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
        buf.extend(u32::try_from(bucket.rate).unwrap_or(u32::MAX).to_ne_bytes());
        buf.extend([0; 12]);
        buf.extend(bucket.limit.to_ne_bytes());
        buf.extend([0; 8]);
        if u32::try_from(bucket.rate).is_err() {
            push_header(buf, TCA_TBF_RATE64, 8);
            buf.extend(bucket.rate.to_ne_bytes());
        }
        push_header(buf, TCA_TBF_BURST, 4);
        buf.extend(bucket.burst.to_ne_bytes());
        finalize_nested_header(buf, options);
    })
}

/// Appends that interface `index` sends as the kernel has it by itself; `ENOENT` if it does so already.
pub fn delete_bucket(batch: &mut Batch, index: u32) -> usize {
    batch.message(libc::RTM_DELQDISC, 0, |buf| push_tcmsg(buf, index, u32::from(OURS) << 16, TC_H_ROOT, 0))
}

/// The bucket of ours that interface `index` sends by, if it does.
///
/// # Errors
/// Any refusal but that there is no such interface.
pub fn bucket(socket: &mut Socket, index: u32) -> Result<Option<Bucket>, NetlinkError> {
    // The answer is a notification, which the asker gets if he says so; of a qdisc that nobody asked for there is none
    // (`qdisc_get_notify()`, net/sched/sch_api.c).
    let mut batch = Batch::new();
    batch.message(libc::RTM_GETQDISC, ECHO, |buf| push_tcmsg(buf, index, 0, TC_H_ROOT, 0));
    match socket.transact(&batch) {
        Ok(replies) => Ok(replies.iter().find_map(|reply| parse_bucket(&reply.payload))),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Decodes an `RTM_NEWQDISC` message; nothing of what is no bucket of ours.
pub(crate) fn parse_bucket(payload: &[u8]) -> Option<Bucket> {
    let (kind, options) = (attribute(payload.get(HEADER..)?, TCA_KIND)?, attribute(&payload[HEADER..], TCA_OPTIONS)?);
    if number(payload, 8)? != u32::from(OURS) << 16 || !kind.starts_with(b"tbf\0") {
        return None;
    }
    let parms = attribute(options, TCA_TBF_PARMS)?;
    let rate = match attribute(options, TCA_TBF_RATE64).and_then(|value| value.first_chunk()) {
        Some(rate) => u64::from_ne_bytes(*rate),
        None => number(parms, 8)?.into(),
    };
    // The kernel tells the burst as the time that it takes, in ticks of 64 ns (`PSCHED_NS2TICKS`, net/pkt_sched.h).
    let ticks = u128::from(number(parms, 28)?);
    let burst = (ticks * 64 * u128::from(rate)).div_ceil(1_000_000_000);
    Some(Bucket { rate, burst: u32::try_from(burst).unwrap_or(u32::MAX), limit: number(parms, 24)? })
}

impl Bucket {
    /// Whether this, which the kernel tells, is `wanted`: it keeps a burst as a time, which is less exact.
    pub fn is(&self, wanted: &Self) -> bool {
        let slack = u64::from(wanted.burst / 100) + self.rate.div_ceil(1_000_000) + 1;
        self.rate == wanted.rate && self.limit == wanted.limit && u64::from(self.burst.abs_diff(wanted.burst)) <= slack
    }
}

/// Appends that what comes in at interface `index` can be filtered; `EEXIST` if it can already.
pub fn create_ingress(batch: &mut Batch, index: u32) -> usize {
    batch.message(libc::RTM_NEWQDISC, CREATE | EXCL, |buf| {
        push_tcmsg(buf, index, INGRESS, TC_H_INGRESS, 0);
        push_string(buf, TCA_KIND, "ingress");
    })
}

/// Appends that what comes in at interface `index` is not filtered any more.
pub fn delete_ingress(batch: &mut Batch, index: u32) -> usize {
    batch.message(libc::RTM_DELQDISC, 0, |buf| push_tcmsg(buf, index, INGRESS, TC_H_INGRESS, 0))
}

/// Appends that all that comes in at interface `index` is sent out of interface `to` instead.
pub fn lead_aside(batch: &mut Batch, index: u32, to: u32) -> usize {
    batch.message(libc::RTM_NEWTFILTER, CREATE | EXCL, |buf| {
        push_tcmsg(buf, index, 0, FILTERS, filter_info());
        push_redirect(buf, None, TCA_EGRESS_REDIR, to);
    })
}

/// A filter that leads packets to this destination, or all, to an interface.
fn push_redirect(buf: &mut Vec<u8>, destination: Option<Ipv6Net>, how: i32, to: u32) {
    push_string(buf, TCA_KIND, "u32");
    let options = push_nested_header(buf, TCA_OPTIONS);
    // struct tc_u32_sel and its keys (mask, value, offset, offset mask); one that is empty fits everything.
    let keys: Vec<[u32; 3]> = match destination {
        None => vec![[0; 3]],
        Some(prefix) => {
            let words = |address: Ipv6Addr| {
                let octets = address.octets();
                [0, 4, 8, 12].map(|at| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]))
            };
            let places = (IPV6_DESTINATION..).step_by(4);
            let keys = words(prefix.netmask()).into_iter().zip(words(prefix.network())).zip(places);
            keys.map(|((mask, word), at)| [mask, word, at]).filter(|[mask, ..]| *mask != 0).collect()
        }
    };
    push_header(buf, TCA_U32_SEL, 16 + 16 * keys.len() as u16);
    buf.extend([TC_U32_TERMINAL, 0, keys.len() as u8, 0]);
    buf.extend([0; 12]);
    for key in keys {
        key.iter().for_each(|word| buf.extend(word.to_ne_bytes()));
        buf.extend([0; 4]);
    }
    let actions = push_nested_header(buf, TCA_U32_ACT);
    let first = push_nested_header(buf, 1);
    push_string(buf, TCA_ACT_KIND, "mirred");
    let action = push_nested_header(buf, TCA_ACT_OPTIONS);
    // struct tc_mirred: index, capab, action, refcnt, bindcnt; eaction, ifindex.
    push_header(buf, TCA_MIRRED_PARMS, 28);
    buf.extend([0; 8]);
    buf.extend(TC_ACT_STOLEN.to_ne_bytes());
    buf.extend([0; 8]);
    buf.extend(how.to_ne_bytes());
    buf.extend(to.to_ne_bytes());
    finalize_nested_header(buf, action);
    finalize_nested_header(buf, first);
    finalize_nested_header(buf, actions);
    finalize_nested_header(buf, options);
}

/// Appends that what comes in at interface `index` is not led aside any more, nor taken at another; `ENOENT` or `EINVAL` if it is not.
pub fn lead_on(batch: &mut Batch, index: u32) -> usize {
    batch.message(libc::RTM_DELTFILTER, 0, |buf| push_tcmsg(buf, index, 0, FILTERS, filter_info()))
}

/// Appends that what comes in and goes out at interface `index` can be filtered; `EEXIST` if it can already.
pub fn create_clsact(batch: &mut Batch, index: u32) -> usize {
    batch.message(libc::RTM_NEWQDISC, CREATE | EXCL, |buf| {
        push_tcmsg(buf, index, INGRESS, TC_H_INGRESS, 0);
        push_string(buf, TCA_KIND, "clsact");
    })
}

/// Appends that all that comes in at interface `index` comes in at interface `at` instead.
pub fn take_at(batch: &mut Batch, index: u32, at: u32) -> usize {
    batch.message(libc::RTM_NEWTFILTER, CREATE | EXCL, |buf| {
        push_tcmsg(buf, index, 0, FILTERS, filter_info());
        push_redirect(buf, None, TCA_INGRESS_REDIR, at);
    })
}

/// What goes out by another interface than the one that it is sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Detour {
    /// Which filter it is: those of lower numbers are asked first. Not 0.
    pub priority: u16,
    /// IPv6 packets to these addresses, or all.
    pub to: Option<Ipv6Net>,
    /// The interface.
    pub by: u32,
}

/// Appends that some of what is sent by interface `index` goes out by another.
pub fn add_detour(batch: &mut Batch, index: u32, detour: &Detour) -> usize {
    batch.message(libc::RTM_NEWTFILTER, CREATE | EXCL, |buf| {
        push_tcmsg(buf, index, 0, FILTERS_OUT, detour_info(detour.priority));
        push_redirect(buf, detour.to, TCA_EGRESS_REDIR, detour.by);
    })
}

/// Appends that it does not any more; `ENOENT` if there is no such filter.
pub fn delete_detour(batch: &mut Batch, index: u32, priority: u16) -> usize {
    batch.message(libc::RTM_DELTFILTER, 0, |buf| push_tcmsg(buf, index, 0, FILTERS_OUT, detour_info(priority)))
}

const fn detour_info(priority: u16) -> u32 {
    (priority as u32) << 16 | (libc::ETH_P_IPV6 as u16).to_be() as u32
}

/// All detours of interface `index`; others' filters are passed over.
///
/// # Errors
/// The kernel's refusal, other than that there can be none.
pub fn detours(socket: &mut Socket, index: u32) -> Result<Vec<Detour>, NetlinkError> {
    let found = socket.dump_all(
        libc::RTM_GETTFILTER,
        0,
        |buf| push_tcmsg(buf, index, 0, FILTERS_OUT, 0),
        |kind, payload| (kind == libc::RTM_NEWTFILTER).then(|| parse_detour(payload)).flatten(),
    );
    match found {
        Err(error) if error.is_missing() || error.errno() == libc::EINVAL => Ok(Vec::new()),
        other => other,
    }
}

/// Decodes an `RTM_NEWTFILTER` message; nothing of what is no detour.
pub(crate) fn parse_detour(payload: &[u8]) -> Option<Detour> {
    let priority = u16::try_from(number(payload, 16)? >> 16).ok()?;
    let options = attribute(payload.get(HEADER..)?, TCA_OPTIONS)?;
    let select = attribute(options, TCA_U32_SEL)?;
    let to = match select.get(2)? {
        1 if number(select, 16)? == 0 => None,
        keys @ 1..=4 => {
            let (mut mask, mut address) = ([0; 16], [0; 16]);
            for at in 0..usize::from(*keys) {
                let key = select.get(16 + 16 * at..)?;
                mask[4 * at..4 * at + 4].copy_from_slice(key.first_chunk::<4>()?);
                address[4 * at..4 * at + 4].copy_from_slice(key.get(4..)?.first_chunk::<4>()?);
            }
            Some(Ipv6Net::with_netmask(address.into(), mask.into()).ok()?)
        }
        _ => return None,
    };
    let (how, by) = redirection(options)?;
    (how == TCA_EGRESS_REDIR).then_some(Detour { priority, to, by })
}

/// Where what comes in at interface `index` comes in instead, if anywhere.
///
/// # Errors
/// The kernel's refusal, other than that there can be no filters.
pub fn taken_at(socket: &mut Socket, index: u32) -> Result<Option<u32>, NetlinkError> {
    let found = socket.dump_all(
        libc::RTM_GETTFILTER,
        0,
        |buf| push_tcmsg(buf, index, 0, FILTERS, 0),
        |kind, payload| {
            let options = (kind == libc::RTM_NEWTFILTER).then(|| attribute(payload.get(HEADER..)?, TCA_OPTIONS))??;
            redirection(options).filter(|(how, _)| *how == TCA_INGRESS_REDIR).map(|(_, at)| at)
        },
    );
    match found {
        Ok(found) => Ok(found.first().copied()),
        Err(error) if error.is_missing() || error.errno() == libc::EINVAL => Ok(None),
        Err(error) => Err(error),
    }
}

/// How and where to the first action of a filter leads.
fn redirection(options: &[u8]) -> Option<(i32, u32)> {
    let first = attribute(attribute(options, TCA_U32_ACT)?, 1)?;
    let parms = attribute(attribute(first, TCA_ACT_OPTIONS)?, TCA_MIRRED_PARMS)?;
    Some((i32::from_ne_bytes(*parms.get(20..)?.first_chunk()?), number(parms, 24)?))
}

/// What is done to what comes in at an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ingress {
    /// Where our filter leads all of it.
    pub to: Option<u32>,
    /// Whether there are filters of others.
    pub others: bool,
}

/// The filters of what comes in at interface `index`.
///
/// # Errors
/// The kernel's refusal, other than that there can be none.
pub fn ingress(socket: &mut Socket, index: u32) -> Result<Ingress, NetlinkError> {
    let found = socket.dump_all(
        libc::RTM_GETTFILTER,
        0,
        |buf| push_tcmsg(buf, index, 0, FILTERS, 0),
        |kind, payload| (kind == libc::RTM_NEWTFILTER).then(|| parse_filter(payload)),
    );
    let found = match found {
        Ok(found) => found,
        Err(error) if error.is_missing() || error.errno() == libc::EINVAL => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(Ingress {
        to: found.iter().find_map(|(is_ours, to)| to.filter(|_| *is_ours)),
        others: found.iter().any(|(is_ours, _)| !is_ours),
    })
}

/// Whether a filter is ours, and where it leads everything, if it does.
pub(crate) fn parse_filter(payload: &[u8]) -> (bool, Option<u32>) {
    let is_ours = number(payload, 16).is_some_and(|info| info >> 16 == u32::from(OURS));
    let to = || {
        let attributes = payload.get(HEADER..)?;
        let options = attribute(attributes, TCA_OPTIONS)?;
        let select = attribute(options, TCA_U32_SEL)?;
        // One key with an empty mask.
        if *select.get(2)? != 1 || number(select, 16)? != 0 {
            return None;
        }
        redirection(options).filter(|(how, _)| *how == TCA_EGRESS_REDIR).map(|(_, to)| to)
    };
    (is_ours, to())
}

/// Priority, and the protocol of every packet in network order.
fn filter_info() -> u32 {
    u32::from(OURS) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be())
}

fn push_tcmsg(buf: &mut Vec<u8>, index: u32, handle: u32, parent: u32, info: u32) {
    buf.extend([0; 4]);
    for field in [index, handle, parent, info] {
        buf.extend(field.to_ne_bytes());
    }
}

fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    IterableChunks::new(attributes).find(|(header, _)| header.r#type & NLA_TYPE_MASK == wanted).map(|(_, value)| value)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
