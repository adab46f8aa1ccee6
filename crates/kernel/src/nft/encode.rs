//! Values into messages.

use std::net::IpAddr;
use std::time::Duration;

use netlink_bindings::nftables::{
    PushChainAttrs, PushDataAttrs, PushExprBitwiseAttrs, PushExprCmpAttrs, PushExprCtAttrs, PushExprFibAttrs,
    PushExprImmediateAttrs, PushExprMetaAttrs, PushExprNatAttrs, PushExprPayloadAttrs, PushRuleAttrs, PushSetAttrs,
    PushSetelemListAttrs, PushTableAttrs,
};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use portolan_model::Family;
use portolan_plan::ruleset::{self, EtherType, Load, Next, Part, Rule};
use portolan_plan::{Chain, Data, DataType, Element, Field, FieldType, Groups, Set, Table};

use super::{DESTROY_SET_ELEMENT, comment_userdata, family, message};
use crate::netlink::{Batch, push_nfgenmsg};

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;

/// Elements of one message: their list is one attribute, whose length has sixteen bits.
const ELEMENTS_PER_MESSAGE: usize = 200;

/// Whether a change insists on what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insist {
    /// What is to be added must not be there, what is to be removed must be.
    Yes,
    /// Being there already, or being gone already, is fine.
    No,
}

/// Adds both tables with all chains, sets and rules. The transaction fails when one of them exists.
pub fn create_ruleset(batch: &mut Batch, name: &str) {
    for table in Table::ALL {
        create_table(batch, name, table);
    }
}

/// Adds the plugins' table with all chains, sets and rules. The transaction fails when it exists.
pub fn create_plugins(batch: &mut Batch) {
    create_table(batch, Table::PLUGINS_NAME, Table::Plugins);
}

/// Adds the table of shortcuts of the end of tunnels `device`, with all chains, sets and rules, and with `alias` as its comment.
/// The transaction fails when it exists; `EOPNOTSUPP` or `ENOENT` say that the kernel has no such tables or no way to pass packets
/// on there (`CONFIG_NF_TABLES_NETDEV`, `CONFIG_NFT_FWD_NETDEV`), `EINVAL` that it is older than Linux 6.4.
pub fn create_shortcuts(batch: &mut Batch, device: &str, alias: &str) {
    // What has no interface left is removed before Linux 6.13, so both chains are at one that lasts.
    create_table_at(batch, device, Table::Shortcuts, alias, Some(device));
}

/// Makes a table of shortcuts at no interface and removes it again.
pub fn try_shortcuts(batch: &mut Batch) {
    const NAME: &str = "portolan_try";
    create_table(batch, NAME, Table::Shortcuts);
    delete_ruleset(batch, NAME, Table::Shortcuts);
}

/// Has the shortcuts of `device` see what comes in by `interface`, a host end; it is fine if they do already (Linux 6.4). Once in
/// a transaction.
pub fn hook_shortcuts(batch: &mut Batch, device: &str, interface: &str) {
    let chain = Chain::ShortcutOut;
    let hook = ruleset::hook(chain).expect("shortcuts are at a hook");
    batch.message(message(libc::NFT_MSG_NEWCHAIN), CREATE, |buf| {
        push_nfgenmsg(buf, family(Table::Shortcuts), 0);
        let attrs =
            PushChainAttrs::new(buf).push_table_bytes(device.as_bytes()).push_name_bytes(chain.name().as_bytes());
        let attrs = attrs.nested_hook().push_num(hook.number).push_priority(hook.priority);
        attrs.nested_devs().push_name_bytes(interface.as_bytes()).end_nested().end_nested();
    });
}

fn create_table(batch: &mut Batch, name: &str, table: Table) {
    create_table_at(batch, name, table, "", None);
}

/// The same with a comment, and with its base chains at an interface.
fn create_table_at(batch: &mut Batch, name: &str, table: Table, comment: &str, interface: Option<&str>) {
    batch.message(message(libc::NFT_MSG_NEWTABLE), CREATE | EXCLUSIVE, |buf| {
        push_nfgenmsg(buf, family(table), 0);
        let attrs = PushTableAttrs::new(buf).push_name_bytes(name.as_bytes());
        if !comment.is_empty() {
            attrs.push_userdata(&comment_userdata(comment));
        }
    });
    for (id, set) in Set::in_table(table).enumerate() {
        create_set(batch, name, set, id as u32 + 1);
    }
    for chain in ruleset::chains(table) {
        create_chain(batch, name, chain, interface);
    }
    for chain in ruleset::chains(table) {
        for rule in ruleset::rules(chain) {
            create_rule(batch, name, Groups::of(name), chain, &rule);
        }
    }
}

/// Adds the fence beside the tables `name`, owned by the socket that sends this, to stay when that is closed.
///
/// If there is one, the kernel answers `EEXIST`: see [`adopt_fence`]. The flags take Linux 6.9; before it the kernel answers
/// `EOPNOTSUPP` or `EINVAL`.
pub fn create_fence(batch: &mut Batch, name: &str) {
    let table = Table::fence_name(name);
    own_fence(batch, &table, CREATE | EXCLUSIVE);
    fill_fence(batch, name, &table);
}

/// Makes the fence beside the tables `name` the socket's that sends this, and fills it anew: one whose owner is dead, or
/// the socket's own.
///
/// What goes in such a transaction the kernel frees after an RCU grace period, some ten milliseconds, and whoever closes a
/// netfilter socket waits for that. So it is not the first that is tried.
pub fn adopt_fence(batch: &mut Batch, name: &str) {
    let table = Table::fence_name(name);
    // To adopt is to add what is there; to have just one content, it goes first, in the same transaction.
    own_fence(batch, &table, CREATE);
    delete_ruleset(batch, &table, Table::Fence);
    own_fence(batch, &table, CREATE);
    fill_fence(batch, name, &table);
}

fn own_fence(batch: &mut Batch, table: &str, flags: u16) {
    batch.message(message(libc::NFT_MSG_NEWTABLE), flags, |buf| {
        push_nfgenmsg(buf, family(Table::Fence), 0);
        let attrs = PushTableAttrs::new(buf).push_name_bytes(table.as_bytes());
        attrs.push_flags(NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST);
    });
}

fn fill_fence(batch: &mut Batch, name: &str, table: &str) {
    let chains = || Chain::ALL.into_iter().filter(|chain| ruleset::table(*chain) == Table::Fence);
    for chain in chains() {
        create_chain(batch, table, chain, None);
    }
    for chain in chains() {
        for rule in ruleset::rules(chain) {
            create_rule(batch, table, Groups::of(name), chain, &rule);
        }
    }
}

/// Removes the fence beside the tables `name`; its owner alone may.
pub fn delete_fence(batch: &mut Batch, name: &str) {
    delete_ruleset(batch, &Table::fence_name(name), Table::Fence);
}

/// Removes both tables with all they hold; `destroy` does not mind their absence (Linux 6.3).
pub fn delete_ruleset(batch: &mut Batch, name: &str, table: Table) {
    batch.message(message(libc::NFT_MSG_DELTABLE), 0, |buf| {
        push_nfgenmsg(buf, family(table), 0);
        PushTableAttrs::new(buf).push_name_bytes(name.as_bytes());
    });
}

fn create_chain(batch: &mut Batch, table: &str, chain: Chain, interface: Option<&str>) {
    batch.message(message(libc::NFT_MSG_NEWCHAIN), CREATE | EXCLUSIVE, |buf| {
        push_nfgenmsg(buf, family(ruleset::table(chain)), 0);
        let mut attrs =
            PushChainAttrs::new(buf).push_table_bytes(table.as_bytes()).push_name_bytes(chain.name().as_bytes());
        if let Some(hook) = ruleset::hook(chain) {
            let mut at = attrs.nested_hook().push_num(hook.number).push_priority(hook.priority);
            if let Some(interface) = interface {
                at = at.nested_devs().push_name_bytes(interface.as_bytes()).end_nested();
            }
            attrs = at.end_nested();
            attrs.push_policy(libc::NF_ACCEPT as u32).push_type_bytes(hook.kind.as_bytes());
        }
    });
}

fn create_set(batch: &mut Batch, table: &str, set: Set, id: u32) {
    batch.message(message(libc::NFT_MSG_NEWSET), CREATE | EXCLUSIVE, |buf| {
        push_nfgenmsg(buf, family(set.table()), 0);
        let key = set.key();
        let mut flags = 0;
        if set.data() != DataType::Member {
            flags |= libc::NFT_SET_MAP as u32;
        }
        if set.interval() {
            flags |= libc::NFT_SET_INTERVAL as u32;
        }
        let is_concatenation = set.interval() && !set.is_tree();
        if is_concatenation {
            flags |= NFT_SET_CONCAT;
        }
        if set.expires() {
            flags |= libc::NFT_SET_TIMEOUT as u32;
        }
        let mut attrs = PushSetAttrs::new(buf)
            .push_table_bytes(table.as_bytes())
            .push_name_bytes(set.name().as_bytes())
            .push_flags(flags)
            .push_key_type(type_number(&key))
            .push_key_len(padded_len(&key))
            .push_id(id);
        attrs = match set.data() {
            DataType::Member => attrs,
            // NFT_DATA_VERDICT
            DataType::Verdict => attrs.push_data_type(0xffff_ff00).push_data_len(0),
            data => attrs.push_data_type(type_number(&data.fields())).push_data_len(padded_len(&data.fields())),
        };
        if is_concatenation {
            let mut fields = attrs.nested_desc().nested_concat();
            for field in &key {
                fields = fields.nested_elem().push_len(field.len() as u32).end_nested();
            }
            attrs = fields.end_nested().end_nested();
        }
        // NFTNL_UDATA_SET_KEYBYTEORDER and _DATABYTEORDER, by which nft(8) lists single keys the right way round.
        let mut userdata = Vec::new();
        for (kind, order) in [(0u8, byte_order(&key)), (1, byte_order(&set.data().fields()))] {
            userdata.extend([kind, 4]);
            userdata.extend(order.to_ne_bytes());
        }
        attrs.push_userdata(&userdata);
    });
}

/// nft's number of a key: six bits for each field.
fn type_number(fields: &[FieldType]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.number())
}

fn padded_len(fields: &[FieldType]) -> u32 {
    match fields {
        [one] => one.len() as u32,
        many => many.iter().map(|f| f.padded() as u32).sum(),
    }
}

/// `enum byteorder` of nft: 0 for concatenations, 1 for the host's, 2 for the network's.
fn byte_order(fields: &[FieldType]) -> u32 {
    match fields {
        [one] if one.host_order() => 1,
        [_] => 2,
        _ => 0,
    }
}

/// Adds `elements`.
pub fn add_elements(batch: &mut Batch, table: &str, elements: &[&Element], insist: Insist) {
    let flags = match insist {
        Insist::Yes => CREATE | EXCLUSIVE,
        Insist::No => CREATE,
    };
    each_set(elements, |set, elements| {
        batch.message(message(libc::NFT_MSG_NEWSETELEM), flags, |buf| push_elements(buf, table, set, elements, true));
    });
}

/// Adds `elements` of sets whose elements go by themselves ([`Set::expires`]), to stay for `time`. Those that are there
/// already have to be removed first, in the same transaction: that a second addition prolongs the first takes Linux 6.12.
pub fn add_passing_elements(batch: &mut Batch, table: &str, elements: &[&Element], time: Duration) {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    each_set(elements, |set, elements| {
        batch.message(message(libc::NFT_MSG_NEWSETELEM), CREATE, |buf| {
            push_elements_for(buf, table, set, elements, true, Some(millis));
        });
    });
}

/// Removes `elements`, known by their keys.
pub fn delete_elements(batch: &mut Batch, table: &str, elements: &[&Element], insist: Insist) {
    let kind = match insist {
        Insist::Yes => libc::NFT_MSG_DELSETELEM,
        Insist::No => DESTROY_SET_ELEMENT,
    };
    each_set(elements, |set, elements| {
        batch.message(message(kind), 0, |buf| push_elements(buf, table, set, elements, false));
    });
}

/// Calls `each` with runs of elements of one set, short enough for a message.
fn each_set(elements: &[&Element], mut each: impl FnMut(Set, &[&Element])) {
    for run in elements.chunk_by(|a, b| a.set == b.set) {
        // In a tree each is two.
        let most = if run[0].set.is_tree() { ELEMENTS_PER_MESSAGE / 2 } else { ELEMENTS_PER_MESSAGE };
        for part in run.chunks(most) {
            each(part[0].set, part);
        }
    }
}

/// Writes a message about `elements`, all of `set`; with their data and comments, or their keys alone.
pub(super) fn push_elements(buf: &mut Vec<u8>, table: &str, set: Set, elements: &[&Element], with_data: bool) {
    push_elements_for(buf, table, set, elements, with_data, None);
}

/// The same, each for so many milliseconds.
fn push_elements_for(
    buf: &mut Vec<u8>,
    table: &str,
    set: Set,
    elements: &[&Element],
    with_data: bool,
    millis: Option<u64>,
) {
    push_nfgenmsg(buf, family(set.table()), 0);
    let mut list = PushSetelemListAttrs::new(buf)
        .push_table_bytes(table.as_bytes())
        .push_set_bytes(set.name().as_bytes())
        .nested_elements();
    for element in elements {
        let mut attrs = list.nested_elem().nested_key().push_value(&key_bytes(element, false)).end_nested();
        if set.interval() && !set.is_tree() {
            // By hand: the codec's specification gives this attribute another number than the kernel does.
            let buf = attrs.as_vec_mut();
            let nested = push_nested_header(buf, NFTA_SET_ELEM_KEY_END);
            PushDataAttrs::new(&mut *buf).push_value(&key_bytes(element, true));
            finalize_nested_header(buf, nested);
        }
        if with_data {
            attrs = match element.data {
                Data::Member => attrs,
                Data::Address(_) | Data::AddressPort(..) | Data::Interface(_) => {
                    attrs.nested_data().push_value(&data_bytes(element.data)).end_nested()
                }
                verdict => push_verdict(attrs.nested_data(), verdict).end_nested(),
            };
            if let Some(millis) = millis {
                push_header(attrs.as_vec_mut(), NFTA_SET_ELEM_TIMEOUT, 8);
                attrs.as_vec_mut().extend(millis.to_be_bytes());
            }
            attrs = attrs.push_userdata(&comment_userdata(&element.owner));
        }
        list = attrs.end_nested();
        if let Some(over) = set.is_tree().then(|| over(element)).flatten() {
            let end = list.nested_elem().push_flags(&(libc::NFT_SET_ELEM_INTERVAL_END as u32).to_be_bytes());
            list = end.nested_key().push_value(&over).end_nested().end_nested();
        }
    }
}

/// The first key of a tree that an element does not cover any more; none where it covers the last one there is.
fn over(element: &Element) -> Option<Vec<u8>> {
    let mut bytes = key_bytes(element, true);
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(bytes);
        }
    }
    None
}

fn push_verdict<P: Pusher>(data: PushDataAttrs<P>, verdict: Data) -> PushDataAttrs<P> {
    let attrs = data.nested_verdict();
    match verdict {
        Data::Accept => attrs.push_code(libc::NF_ACCEPT as u32),
        Data::Drop => attrs.push_code(libc::NF_DROP as u32),
        Data::Return => attrs.push_code(libc::NFT_RETURN as u32),
        Data::Goto(chain) => attrs.push_code(libc::NFT_GOTO as u32).push_chain_bytes(chain.name().as_bytes()),
        Data::Member | Data::Address(_) | Data::AddressPort(..) | Data::Interface(_) => unreachable!("not a verdict"),
    }
    .end_nested()
}

/// The bytes of a key as the registers hold them; of its end, for ranges.
pub(super) fn key_bytes(element: &Element, end: bool) -> Vec<u8> {
    let single = element.key.len() == 1;
    let mut bytes = Vec::with_capacity(40);
    for field in &element.key {
        match field {
            Field::Protocol(protocol) => bytes.push(protocol.number()),
            Field::NfProto(Family::V4) => bytes.push(libc::NFPROTO_IPV4 as u8),
            Field::NfProto(Family::V6) => bytes.push(libc::NFPROTO_IPV6 as u8),
            Field::Address(address) => push_address(&mut bytes, *address),
            Field::Prefix(net) => push_address(&mut bytes, if end { net.broadcast() } else { net.network() }),
            Field::Ports(first, last) => bytes.extend(if end { last } else { first }.to_be_bytes()),
            Field::IfName(name) => {
                bytes.extend(name.as_str().as_bytes());
                bytes.extend(std::iter::repeat_n(0, 16 - name.as_str().len()));
            }
            Field::Ether(mac) => bytes.extend(mac.octets()),
        }
        if !single {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

fn push_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    }
}

fn data_bytes(data: Data) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20);
    match data {
        Data::Address(address) => push_address(&mut bytes, address),
        Data::AddressPort(address, port) => {
            push_address(&mut bytes, address);
            bytes.extend(port.to_be_bytes());
            bytes.extend([0, 0]);
        }
        Data::Interface(index) => bytes.extend(index.to_ne_bytes()),
        _ => unreachable!("a verdict has no bytes"),
    }
    bytes
}

fn create_rule(batch: &mut Batch, table: &str, groups: Groups, chain: Chain, rule: &Rule) {
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

/// `enum nft_set_elem_attributes`, nf_tables.h.
pub(super) const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;

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

    fn mask(&mut self, bits: &[u8; 4]) {
        self.expression("bitwise", |buf| {
            PushExprBitwiseAttrs::new(buf)
                .push_sreg(REGISTER)
                .push_dreg(REGISTER)
                .push_len(4)
                .nested_mask()
                .push_value(bits)
                .end_nested()
                .nested_xor()
                .push_value(&[0; 4]);
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
                Load::DestinationPort => {
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
const NFT_SET_CONCAT: u32 = 0x80;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFT_TABLE_F_PERSIST: u32 = 4;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_LOOKUP_FLAGS: u16 = 5;
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
