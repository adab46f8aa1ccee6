//! Values into messages.

mod expressions;

use std::net::IpAddr;
use std::time::Duration;

use netlink_bindings::nftables::{PushChainAttrs, PushDataAttrs, PushSetAttrs, PushSetelemListAttrs, PushTableAttrs};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use portolan_model::Family;
use portolan_plan::ruleset;
use portolan_plan::{Chain, Data, DataType, Element, Field, FieldType, Groups, Set, Table};

use expressions::create_rule;

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

/// `enum nft_set_elem_attributes`, nf_tables.h.
pub(super) const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
/// Numbers of nf_tables.h that the libc crate lacks.
const NFT_SET_CONCAT: u32 = 0x80;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFT_TABLE_F_PERSIST: u32 = 4;
