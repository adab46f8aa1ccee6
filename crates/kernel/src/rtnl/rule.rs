//! Policy routing rules (ip-rule(8)).

use netlink_bindings::rt_rule::{FibRuleAttrs, FibRuleHdr, OpGetruleDump, PushFibRuleAttrs};

use std::net::IpAddr;

use super::Family;
use crate::netlink::{Batch, CREATE, EXCL, NetlinkError, Socket};

/// `FR_ACT_TO_TBL`: look the table up.
pub const ACTION_TABLE: u8 = 1;

/// A rule; what is `None` matches everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// Position; lower comes first.
    pub priority: Option<u32>,
    /// Source prefix.
    pub src: Option<(IpAddr, u8)>,
    /// Destination prefix.
    pub dst: Option<(IpAddr, u8)>,
    /// Incoming interface.
    pub iifname: Option<String>,
    /// Outgoing interface.
    pub oifname: Option<String>,
    /// Firewall mark.
    pub fwmark: Option<u32>,
    /// Bits of the mark that count.
    pub fwmask: Option<u32>,
    /// Table to look up.
    pub table: u32,
    /// `FR_ACT_*`.
    pub action: u8,
    /// `RTPROT_*`: who made it.
    pub protocol: u8,
}

impl Rule {
    /// A rule that sends everything of `family` to `table`.
    pub fn new(family: Family, table: u32) -> Self {
        Self {
            family,
            priority: None,
            src: None,
            dst: None,
            iifname: None,
            oifname: None,
            fwmark: None,
            fwmask: None,
            table,
            action: ACTION_TABLE,
            protocol: libc::RTPROT_STATIC,
        }
    }
}

/// Appends the addition of a rule; `EEXIST` if there is the same.
pub fn add(batch: &mut Batch, rule: &Rule) -> usize {
    batch.message(libc::RTM_NEWRULE, CREATE | EXCL, |buf| push(buf, rule))
}

/// Appends the removal of the first rule with all the given properties; `ENOENT` if none.
pub fn delete(batch: &mut Batch, rule: &Rule) -> usize {
    batch.message(libc::RTM_DELRULE, 0, |buf| push(buf, rule))
}

/// Rules of one family, in order.
///
/// # Errors
/// The kernel's refusal.
pub fn dump(socket: &mut Socket, family: Family) -> Result<Vec<Rule>, NetlinkError> {
    socket.dump_all(
        libc::RTM_GETRULE,
        0,
        |buf| {
            let mut header = FibRuleHdr::new();
            header.family = family.number();
            buf.extend_from_slice(header.as_slice());
        },
        |kind, payload| if kind == libc::RTM_NEWRULE { parse(payload) } else { None },
    )
}

/// Decodes the payload of an `RTM_NEWRULE` message; `None` for families other than IP.
pub fn parse(payload: &[u8]) -> Option<Rule> {
    let (header, attrs) = OpGetruleDump::decode_request(payload);
    let mut rule = Rule {
        action: header.action,
        protocol: 0,
        ..Rule::new(Family::from_number(header.family)?, header.table.into())
    };
    for attr in attrs.flatten() {
        match attr {
            FibRuleAttrs::Priority(priority) => rule.priority = Some(priority),
            FibRuleAttrs::Src(addr) => rule.src = Some((addr, header.src_len)),
            FibRuleAttrs::Dst(addr) => rule.dst = Some((addr, header.dst_len)),
            FibRuleAttrs::Iifname(name) => {
                rule.iifname = Some(name.to_string_lossy().into_owned());
            }
            FibRuleAttrs::Oifname(name) => {
                rule.oifname = Some(name.to_string_lossy().into_owned());
            }
            FibRuleAttrs::Fwmark(mark) => rule.fwmark = Some(mark),
            FibRuleAttrs::Fwmask(mask) => rule.fwmask = Some(mask),
            FibRuleAttrs::Table(table) => rule.table = table,
            FibRuleAttrs::Protocol(protocol) => rule.protocol = protocol,
            _ => {}
        }
    }
    Some(rule)
}

fn push(buf: &mut Vec<u8>, rule: &Rule) {
    let mut header = FibRuleHdr::new();
    header.family = rule.family.number();
    header.src_len = rule.src.map_or(0, |(_, len)| len);
    header.dst_len = rule.dst.map_or(0, |(_, len)| len);
    header.action = rule.action;
    header.table = u8::try_from(rule.table).unwrap_or(libc::RT_TABLE_UNSPEC);
    buf.extend_from_slice(header.as_slice());
    let mut attrs = PushFibRuleAttrs::new(&mut *buf).push_table(rule.table).push_protocol(rule.protocol);
    if let Some(priority) = rule.priority {
        attrs = attrs.push_priority(priority);
    }
    if let Some((addr, _)) = rule.src {
        attrs = attrs.push_src(addr);
    }
    if let Some((addr, _)) = rule.dst {
        attrs = attrs.push_dst(addr);
    }
    if let Some(name) = &rule.iifname {
        attrs = attrs.push_iifname_bytes(name.as_bytes());
    }
    if let Some(name) = &rule.oifname {
        attrs = attrs.push_oifname_bytes(name.as_bytes());
    }
    if let Some(mark) = rule.fwmark {
        attrs = attrs.push_fwmark(mark);
    }
    if let Some(mask) = rule.fwmask {
        attrs.push_fwmask(mask);
    }
}
