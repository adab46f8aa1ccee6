//! Rules into expressions.

use netlink_bindings::nftables::{
    PushExprBitwiseAttrs, PushExprCmpAttrs, PushExprCtAttrs, PushExprFibAttrs, PushExprImmediateAttrs,
    PushExprMetaAttrs, PushExprNatAttrs, PushExprPayloadAttrs, PushRuleAttrs,
};
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use portolan_model::Family;
use portolan_plan::ruleset::{self, EtherType, Load, Next, Part, Rule};
use portolan_plan::{Chain, DataType, Groups, Set, Table};

use super::{APPEND, CREATE, push_verdict};
use crate::netlink::{Batch, push_nfgenmsg};
use crate::nft::{comment_userdata, family, message};

pub(super) fn create_rule(batch: &mut Batch, table: &str, groups: Groups, chain: Chain, rule: &Rule) {
    let table_kind = ruleset::table(chain);
    batch.message(message(libc::NFT_MSG_NEWRULE), CREATE | APPEND, |buf| {
        push_nfgenmsg(buf, family(table_kind), 0);
        PushRuleAttrs::new(&mut *buf).push_table_bytes(table.as_bytes()).push_chain_bytes(chain.name().as_bytes());
        let list = push_nested_header(buf, NFTA_RULE_EXPRESSIONS);
        let mut expressions = Expressions { buf, table: table_kind, groups, ether_known: false, family_known: None };
        for part in &rule.parts {
            expressions.part(part);
        }
        finalize_nested_header(buf, list);
        if !rule.comment.is_empty() {
            PushRuleAttrs::new(buf).push_userdata(&comment_userdata(rule.comment));
        }
    });
}

/// Registers are numbered in words of four bytes; 8 is the first (`NFT_REG32_00`).
const REGISTER: u32 = libc::NFT_REG32_00 as u32;

/// Writes expressions in the order and shape in which nft(8) does, so that it can list them.
struct Expressions<'a> {
    buf: &'a mut Vec<u8>,
    table: Table,
    groups: Groups,
    ether_known: bool,
    /// The family that conditions so far hold for alone.
    family_known: Option<Family>,
}

impl Expressions<'_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
        let element = push_nested_header(self.buf, NFTA_LIST_ELEM);
        push_header(self.buf, NFTA_EXPR_NAME, name.len() as u16 + 1);
        self.buf.extend(name.as_bytes());
        self.buf.push(0);
        let nested = push_nested_header(self.buf, NFTA_EXPR_DATA);
        data(self.buf);
        finalize_nested_header(self.buf, nested);
        finalize_nested_header(self.buf, element);
    }

    fn meta(&mut self, key: i32, register: u32) {
        self.expression("meta", |buf| {
            PushExprMetaAttrs::new(buf).push_dreg(register).push_key(key as u32);
        });
    }

    fn payload(&mut self, base: i32, offset: u32, len: u32, register: u32) {
        self.expression("payload", |buf| {
            PushExprPayloadAttrs::new(buf).push_dreg(register).push_base(base as u32).push_offset(offset).push_len(len);
        });
    }

    fn compare(&mut self, equal: bool, value: &[u8]) {
        self.compare_by(if equal { libc::NFT_CMP_EQ } else { libc::NFT_CMP_NEQ }, value);
    }

    fn compare_by(&mut self, operation: i32, value: &[u8]) {
        self.expression("cmp", |buf| {
            PushExprCmpAttrs::new(buf).push_sreg(REGISTER).push_op(operation as u32).nested_data().push_value(value);
        });
    }

    fn meta_is(&mut self, key: i32, equal: bool, value: &[u8]) {
        self.meta(key, REGISTER);
        self.compare(equal, value);
    }

    /// The network header's offsets mean something only for the family they belong to.
    fn only_family(&mut self, family: Family) {
        if self.family_known == Some(family) {
            return;
        }
        match self.table {
            Table::Inet | Table::Fence | Table::Plugins => {
                self.meta_is(libc::NFT_META_NFPROTO, true, &[number(family)]);
                self.family_known = Some(family);
            }
            Table::Shortcuts => {
                let protocol = match family {
                    Family::V4 => EtherType::Ipv4,
                    Family::V6 => EtherType::Ipv6,
                };
                self.meta_is(libc::NFT_META_PROTOCOL, true, &protocol.number().to_be_bytes());
                self.family_known = Some(family);
            }
            Table::Bridge => {
                assert!(self.ether_known, "a rule of the bridge table names the link layer protocol first");
            }
        }
    }

    /// The port at `offset` of the transport header.
    fn port(&mut self, protocol: i32, offset: u32, port: u16) {
        self.meta_is(libc::NFT_META_L4PROTO, true, &[protocol as u8]);
        self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2, REGISTER);
        self.compare(true, &port.to_be_bytes());
    }

    /// A bit of a `ct` key is set.
    fn ct_bits(&mut self, key: i32, bits: u32) {
        self.expression("ct", |buf| {
            PushExprCtAttrs::new(buf).push_dreg(REGISTER).push_key(key as u32);
        });
        self.mask(&bits.to_ne_bytes());
        self.compare(false, &[0; 4]);
    }

    fn mask(&mut self, bits: &[u8]) {
        self.expression("bitwise", |buf| {
            PushExprBitwiseAttrs::new(buf)
                .push_sreg(REGISTER)
                .push_dreg(REGISTER)
                .push_len(bits.len() as u32)
                .nested_mask()
                .push_value(bits)
                .end_nested()
                .nested_xor()
                .push_value(&[0; 16][..bits.len()]);
        });
    }

    fn fib(&mut self, result: i32, flags: i32) {
        self.expression("fib", |buf| {
            PushExprFibAttrs::new(buf).push_dreg(REGISTER).push_result(result as u32).push_flags(flags as u32);
        });
    }

    /// Loads values into consecutive registers.
    fn load(&mut self, loads: &[Load]) {
        self.load_to(loads, REGISTER);
    }

    /// The same, from a register on.
    fn load_to(&mut self, loads: &[Load], first: u32) {
        for load in loads {
            if let Load::Source(family) | Load::Destination(family) = load {
                self.only_family(*family);
                break;
            }
        }
        if loads.iter().any(|load| matches!(load, Load::UdpSourcePort | Load::UdpDestinationPort)) {
            self.part(&Part::L4Proto(libc::IPPROTO_UDP as u8));
        }
        let mut register = first;
        for load in loads {
            let len = match load {
                Load::Protocol => {
                    self.meta(libc::NFT_META_L4PROTO, register);
                    1
                }
                Load::NfProto => {
                    self.meta(libc::NFT_META_NFPROTO, register);
                    1
                }
                Load::IifName => {
                    self.meta(libc::NFT_META_IIFNAME, register);
                    16
                }
                Load::OifName => {
                    self.meta(libc::NFT_META_OIFNAME, register);
                    16
                }
                Load::Source(Family::V4) => {
                    self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 12, 4, register);
                    4
                }
                Load::Source(Family::V6) => {
                    self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 8, 16, register);
                    16
                }
                Load::Destination(Family::V4) => {
                    self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 16, 4, register);
                    4
                }
                Load::Destination(Family::V6) => {
                    self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 24, 16, register);
                    16
                }
                Load::UdpSourcePort => {
                    self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, register);
                    2
                }
                Load::DestinationPort | Load::UdpDestinationPort => {
                    self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, register);
                    2
                }
                Load::EtherSource => {
                    self.payload(libc::NFT_PAYLOAD_LL_HEADER, 6, 6, register);
                    6
                }
                Load::ArpSenderMac => {
                    self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 8, 6, register);
                    6
                }
                Load::ArpSenderAddress => {
                    self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 14, 4, register);
                    4
                }
                Load::NeighbourTarget => {
                    self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 8, 16, register);
                    16
                }
            };
            register += u32::div_ceil(len, 4);
        }
    }

    fn lookup(&mut self, set: Set, destination: Option<u32>, inverted: bool) {
        self.lookup_from(REGISTER, set, destination, inverted);
    }

    fn lookup_from(&mut self, source: u32, set: Set, destination: Option<u32>, inverted: bool) {
        self.expression("lookup", |buf| {
            // By hand: the codec's specification numbers these attributes in another order than the kernel does.
            push_header(buf, NFTA_LOOKUP_SET, set.name().len() as u16 + 1);
            buf.extend(set.name().as_bytes());
            buf.push(0);
            let mut number = |kind: u16, value: u32| {
                push_header(buf, kind, 4);
                buf.extend(value.to_be_bytes());
            };
            number(NFTA_LOOKUP_SREG, source);
            if let Some(register) = destination {
                number(NFTA_LOOKUP_DREG, register);
            }
            if inverted {
                number(NFTA_LOOKUP_FLAGS, libc::NFT_LOOKUP_F_INV as u32);
            }
        });
    }

    fn nat(&mut self, kind: i32, family: Family, loads: &[Load], set: Set) {
        self.load(loads);
        self.lookup(set, Some(REGISTER), false);
        let (number, words) = match family {
            Family::V4 => (libc::NFPROTO_IPV4, 1),
            Family::V6 => (libc::NFPROTO_IPV6, 4),
        };
        self.expression("nat", |buf| {
            let attrs = PushExprNatAttrs::new(buf)
                .push_type(kind as u32)
                .push_family(number as u32)
                .push_reg_addr_min(REGISTER);
            if matches!(set.data(), DataType::AddressPort(_)) {
                attrs.push_reg_proto_min(REGISTER + words).push_flags(NF_NAT_RANGE_PROTO_SPECIFIED);
            }
        });
    }

    /// The registers are those that nft(8) takes: it reads them back.
    fn pass(&mut self, family: Family, next: Next, by: &[Load], set: Set) {
        const NEXT: u32 = REGISTER + 4;
        self.load(by);
        self.lookup(set, Some(REGISTER), false);
        self.load_to(&[Load::Destination(family)], NEXT);
        if let Next::Of(set) = next {
            self.lookup_from(NEXT, set, Some(NEXT), false);
        }
        self.expression("fwd", |buf| {
            for (kind, value) in
                [(NFTA_FWD_SREG_DEV, REGISTER), (NFTA_FWD_SREG_ADDR, NEXT), (NFTA_FWD_NFPROTO, number(family).into())]
            {
                push_header(buf, kind, 4);
                buf.extend(value.to_be_bytes());
            }
        });
    }

    /// The attributes by hand: the codec knows neither `rt` nor how to write options.
    fn clamp_mss(&mut self) {
        let attributes = |buf: &mut Vec<u8>, all: &[(u16, u32)]| {
            for (kind, value) in all {
                push_header(buf, *kind, 4);
                buf.extend(value.to_be_bytes());
            }
        };
        self.expression("rt", |buf| attributes(buf, &[(NFTA_RT_DREG, REGISTER), (NFTA_RT_KEY, NFT_RT_TCPMSS)]));
        self.expression("byteorder", |buf| {
            let to_network = [
                (NFTA_BYTEORDER_SREG, REGISTER),
                (NFTA_BYTEORDER_DREG, REGISTER),
                (NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON),
                (NFTA_BYTEORDER_LEN, 2),
                (NFTA_BYTEORDER_SIZE, 2),
            ];
            attributes(buf, &to_network);
        });
        self.expression("exthdr", |buf| {
            attributes(buf, &[(NFTA_EXTHDR_SREG, REGISTER)]);
            push_header(buf, NFTA_EXTHDR_TYPE, 1);
            buf.extend([TCPOPT_MAXSEG, 0, 0, 0]);
            attributes(buf, &[(NFTA_EXTHDR_OFFSET, 2), (NFTA_EXTHDR_LEN, 2), (NFTA_EXTHDR_OP, NFT_EXTHDR_OP_TCPOPT)]);
        });
    }

    fn part(&mut self, part: &Part) {
        match part {
            Part::IifGroup(equal, group) => {
                self.meta_is(libc::NFT_META_IIFGROUP, *equal, &self.groups.number(*group).to_ne_bytes());
            }
            Part::OifGroup(equal, group) => {
                self.meta_is(libc::NFT_META_OIFGROUP, *equal, &self.groups.number(*group).to_ne_bytes());
            }
            Part::NotFromLoopback => self.meta_is(libc::NFT_META_IIF, false, &LOOPBACK_INDEX.to_ne_bytes()),
            Part::ToLoopback4 | Part::FromLoopback4 => {
                self.only_family(Family::V4);
                // The first byte says it all.
                self.payload(
                    libc::NFT_PAYLOAD_NETWORK_HEADER,
                    if *part == Part::ToLoopback4 { 16 } else { 12 },
                    1,
                    REGISTER,
                );
                self.compare(true, &[127]);
            }
            Part::ToLoopback6 | Part::FromUnspecified6 => {
                self.only_family(Family::V6);
                let (offset, last) = if *part == Part::ToLoopback6 { (24, 1) } else { (8, 0) };
                self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, 16, REGISTER);
                self.compare(true, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
            }
            Part::FromLinkLocal6 => {
                self.only_family(Family::V6);
                self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 8, 16, REGISTER);
                let start = |first: u8, second: u8| [first, second, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                self.mask(&start(0xff, 0xc0));
                self.compare(true, &start(0xfe, 0x80));
            }
            Part::ToMulticast(Family::V4) => {
                self.only_family(Family::V4);
                self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 16, 4, REGISTER);
                self.mask(&[0xf0, 0, 0, 0]);
                self.compare(true, &[0xe0, 0, 0, 0]);
            }
            Part::ToMulticast(Family::V6) => {
                self.only_family(Family::V6);
                self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 24, 1, REGISTER);
                self.compare(true, &[0xff]);
            }
            Part::Ether(kind) => {
                self.payload(libc::NFT_PAYLOAD_LL_HEADER, 12, 2, REGISTER);
                self.compare(true, &kind.number().to_be_bytes());
                self.ether_known = true;
            }
            // Without a transport header the kernel has nothing to compare, and the rule does not apply.
            Part::HasL4Proto => self.meta_is(libc::NFT_META_L4PROTO, false, &[libc::IPPROTO_RAW as u8]),
            Part::L4Proto(number) => self.meta_is(libc::NFT_META_L4PROTO, true, &[*number]),
            Part::Icmp4Type(kind) => {
                self.part(&Part::Ether(EtherType::Ipv4));
                self.meta_is(libc::NFT_META_L4PROTO, true, &[libc::IPPROTO_ICMP as u8]);
                self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, REGISTER);
                self.compare(true, &[*kind]);
            }
            Part::Icmp6Type(kind) | Part::NotIcmp6Type(kind) => {
                self.meta_is(libc::NFT_META_L4PROTO, true, &[libc::IPPROTO_ICMPV6 as u8]);
                self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, REGISTER);
                self.compare(matches!(part, Part::Icmp6Type(_)), &[*kind]);
            }
            Part::HopLimit6(hops) => {
                self.only_family(Family::V6);
                self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 7, 1, REGISTER);
                self.compare(true, &[*hops]);
            }
            Part::MayGoOn(family) => {
                self.only_family(*family);
                let offset = match family {
                    Family::V4 => 8,
                    Family::V6 => 7,
                };
                self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, 1, REGISTER);
                self.compare_by(libc::NFT_CMP_GT, &[1]);
            }
            Part::Pass(family, next, by, set) => self.pass(*family, *next, by, *set),
            Part::UdpSource(port) => self.port(libc::IPPROTO_UDP, 0, *port),
            Part::TcpSource(port) => self.port(libc::IPPROTO_TCP, 0, *port),
            Part::UdpDestination(port) => self.port(libc::IPPROTO_UDP, 2, *port),
            Part::TcpDestination(port) => self.port(libc::IPPROTO_TCP, 2, *port),
            Part::OpensTcp => {
                self.meta_is(libc::NFT_META_L4PROTO, true, &[libc::IPPROTO_TCP as u8]);
                self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1, REGISTER);
                self.mask(&[TCP_SYN]);
                self.compare(false, &[0]);
            }
            Part::ClampMss => self.clamp_mss(),
            Part::Priority(number) => self.meta_is(libc::NFT_META_PRIORITY, true, &number.to_ne_bytes()),
            Part::SetPriority(number) => {
                self.expression("immediate", |buf| {
                    PushExprImmediateAttrs::new(buf)
                        .push_dreg(REGISTER)
                        .nested_data()
                        .push_value(&number.to_ne_bytes());
                });
                self.expression("meta", |buf| {
                    PushExprMetaAttrs::new(buf).push_key(libc::NFT_META_PRIORITY as u32).push_sreg(REGISTER);
                });
            }
            Part::NoTrack => self.expression("notrack", |_| {}),
            Part::Begins => self.ct_bits(libc::NFT_CT_STATE, CT_NEW),
            Part::Established => self.ct_bits(libc::NFT_CT_STATE, CT_ESTABLISHED | CT_RELATED),
            Part::InvalidState => self.ct_bits(libc::NFT_CT_STATE, CT_INVALID),
            Part::Translated => self.ct_bits(libc::NFT_CT_STATUS, IPS_DST_NAT),
            Part::ToLocal => {
                self.fib(NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR);
                self.compare(true, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
            }
            Part::NoWayBack => {
                self.fib(NFT_FIB_RESULT_OIF, NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF | NFTA_FIB_F_PRESENT);
                self.compare(true, &[0; 4]);
            }
            Part::In(holds, loads, set) => {
                self.load(loads);
                self.lookup(*set, None, !holds);
            }
            Part::Verdict(loads, set) => {
                self.load(loads);
                self.lookup(*set, Some(libc::NFT_REG_VERDICT as u32), false);
            }
            Part::Dnat(family, loads, set) => self.nat(libc::NFT_NAT_DNAT, *family, loads, *set),
            Part::Snat(family, loads, set) => self.nat(libc::NFT_NAT_SNAT, *family, loads, *set),
            Part::Masquerade => self.expression("masq", |_| {}),
            Part::Count => self.expression("counter", |_| {}),
            Part::Do(verdict) => {
                let verdict = *verdict;
                self.expression("immediate", |buf| {
                    push_verdict(
                        PushExprImmediateAttrs::new(buf).push_dreg(libc::NFT_REG_VERDICT as u32).nested_data(),
                        verdict,
                    );
                });
            }
        }
    }
}

const fn number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::NFPROTO_IPV4 as u8,
        Family::V6 => libc::NFPROTO_IPV6 as u8,
    }
}

/// Numbers of nf_tables.h that the libc crate lacks.
const NFTA_FWD_SREG_DEV: u16 = 1;
const NFTA_FWD_SREG_ADDR: u16 = 2;
const NFTA_FWD_NFPROTO: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_LOOKUP_FLAGS: u16 = 5;
/// `enum nft_rt_attributes`, `nft_rt_keys`, `nft_byteorder_attributes`, `nft_byteorder_ops`, `nft_exthdr_attributes`,
/// `nft_exthdr_op`, nf_tables.h.
const NFTA_RT_DREG: u16 = 1;
const NFTA_RT_KEY: u16 = 2;
const NFT_RT_TCPMSS: u32 = 3;
const NFTA_BYTEORDER_SREG: u16 = 1;
const NFTA_BYTEORDER_DREG: u16 = 2;
const NFTA_BYTEORDER_OP: u16 = 3;
const NFTA_BYTEORDER_LEN: u16 = 4;
const NFTA_BYTEORDER_SIZE: u16 = 5;
const NFT_BYTEORDER_HTON: u32 = 1;
const NFTA_EXTHDR_TYPE: u16 = 2;
const NFTA_EXTHDR_OFFSET: u16 = 3;
const NFTA_EXTHDR_LEN: u16 = 4;
const NFTA_EXTHDR_OP: u16 = 6;
const NFTA_EXTHDR_SREG: u16 = 7;
const NFT_EXTHDR_OP_TCPOPT: u32 = 1;
/// include/net/tcp.h.
const TCPOPT_MAXSEG: u8 = 2;
const TCP_SYN: u8 = 2;
/// The loopback device of every namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK_INDEX: u32 = 1;
/// `NF_CT_STATE_*_BIT`, include/uapi/linux/netfilter/nf_conntrack_common.h.
const CT_INVALID: u32 = 1;
const CT_ESTABLISHED: u32 = 2;
const CT_RELATED: u32 = 4;
const CT_NEW: u32 = 8;
/// `IPS_DST_NAT`, same file.
const IPS_DST_NAT: u32 = 1 << 5;
/// include/uapi/linux/netfilter/nf_nat.h.
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
/// `enum nft_fib_result` and `nft_fib_flags`, nf_tables.h.
const NFT_FIB_RESULT_OIF: i32 = 1;
const NFT_FIB_RESULT_ADDRTYPE: i32 = 3;
const NFTA_FIB_F_SADDR: i32 = 1;
const NFTA_FIB_F_DADDR: i32 = 2;
const NFTA_FIB_F_IIF: i32 = 8;
const NFTA_FIB_F_PRESENT: i32 = 32;
