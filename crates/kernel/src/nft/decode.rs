//! Listings into values.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_bindings::nftables::{
    ChainAttrs, DataAttrs, ExprAttrs, ExprListAttrs, HookDevAttrs, IterableDataAttrs, NftHookAttrs, PushRuleAttrs,
    PushSetelemListAttrs, PushTableAttrs, RuleAttrs, SetelemListAttrs, SetelemListElemAttrs, TableAttrs, VerdictAttrs,
};
use netlink_bindings::utils::{IterableChunks, find_attr};
use portolan_model::{Family, IfName, Mac, Protocol};
use portolan_plan::others::BaseChain;
use portolan_plan::{Chain, Data, DataType, Element, Field, FieldType, Set, Table};

use super::encode::{self, NFTA_SET_ELEM_KEY_END};
use super::{comment_of, family, message};
use crate::netlink::{NetlinkError, Socket, push_nfgenmsg};

/// The length of `struct nfgenmsg`, which precedes the attributes.
const NFGENMSG: usize = 4;

/// Whether `table` of this name exists.
///
/// # Errors
/// The kernel's refusal, such as `EOPNOTSUPP` where it has no nftables.
pub fn table_exists(socket: &mut Socket, table: Table, name: &str) -> Result<bool, NetlinkError> {
    let reply = socket.query_one(message(libc::NFT_MSG_GETTABLE), 0, |buf| {
        push_nfgenmsg(buf, family(table), 0);
        PushTableAttrs::new(buf).push_name_bytes(name.as_bytes());
    })?;
    Ok(reply.is_some())
}

/// The names of all tables of `table`'s family.
///
/// # Errors
/// The kernel's refusal.
pub fn table_names(socket: &mut Socket, table: Table) -> Result<Vec<String>, NetlinkError> {
    socket.dump_all(
        message(libc::NFT_MSG_GETTABLE),
        0,
        |buf| push_nfgenmsg(buf, family(table), 0),
        |_, payload| {
            TableAttrs::new(payload.get(NFGENMSG..)?).get_name().ok().map(|name| name.to_string_lossy().into_owned())
        },
    )
}

/// The ruleset's generation, which every transaction raises (`NFT_MSG_GETGEN`).
///
/// # Errors
/// The kernel's refusal.
pub fn generation(socket: &mut Socket) -> Result<u32, NetlinkError> {
    let reply = socket.query_one(message(libc::NFT_MSG_GETGEN), 0, |buf| push_nfgenmsg(buf, 0, 0))?;
    let value = reply.as_ref().and_then(|reply| find_attr(reply.payload.get(NFGENMSG..)?, NFTA_GEN_ID)?.first_chunk());
    value.map(|value| u32::from_be_bytes(*value)).ok_or_else(|| NetlinkError::from_errno(libc::EPROTO))
}

/// The element of the set and key of `like`, if it is there and of our making.
///
/// # Errors
/// The kernel's refusal; an absent table or set is no element.
pub fn element_like(socket: &mut Socket, table: &str, like: &Element) -> Result<Option<Element>, NetlinkError> {
    let reply = socket.query_one(message(libc::NFT_MSG_GETSETELEM), 0, |buf| {
        encode::push_elements(buf, table, like.set, &[like], false);
    })?;
    Ok(reply.and_then(|reply| listed(like.set, reply.payload.get(NFGENMSG..)?).into_iter().next()?))
}

/// Whether `set` has no element. The socket is of no use afterwards: what it did not read is left in it.
///
/// # Errors
/// The kernel's refusal; an absent table or set is empty.
pub fn is_empty(mut socket: Socket, table: &str, set: Set) -> Result<bool, NetlinkError> {
    let first = socket.query_one(message(libc::NFT_MSG_GETSETELEM), libc::NLM_F_DUMP as u16, |buf| {
        push_nfgenmsg(buf, family(set.table()), 0);
        PushSetelemListAttrs::new(buf).push_table_bytes(table.as_bytes()).push_set_bytes(set.name().as_bytes());
    })?;
    Ok(first.and_then(|first| Some(listed(set, first.payload.get(NFGENMSG..)?).is_empty())).unwrap_or(true))
}

/// All elements of `set`.
///
/// Elements that are not of our making (a field or verdict we never write) are left out here and told apart by
/// `unknown`, their number.
///
/// # Errors
/// The kernel's refusal; an absent table or set is an empty list.
pub fn elements(socket: &mut Socket, table: &str, set: Set) -> Result<(Vec<Element>, usize), NetlinkError> {
    let mut unknown = 0;
    let mut dump = |read: &mut dyn FnMut(&[u8])| {
        let request = |buf: &mut Vec<u8>| {
            push_nfgenmsg(buf, family(set.table()), 0);
            PushSetelemListAttrs::new(buf).push_table_bytes(table.as_bytes()).push_set_bytes(set.name().as_bytes());
        };
        socket.dump_all(message(libc::NFT_MSG_GETSETELEM), 0, request, |_, payload| {
            read(payload.get(NFGENMSG..)?);
            Some(())
        })
    };
    let (mut lists, mut bounds) = (Vec::new(), Vec::new());
    let outcome = match set.is_tree() {
        true => dump(&mut |attrs| bounds.extend(each(attrs, |attrs| bound(set, attrs)))),
        false => dump(&mut |attrs| lists.push(listed(set, attrs))),
    };
    lists.push(ranges(set, bounds));
    match outcome.map(|_| lists) {
        Ok(lists) => {
            let mut elements = Vec::new();
            for found in lists.into_iter().flatten() {
                match found {
                    Some(element) => elements.push(element),
                    None => unknown += 1,
                }
            }
            Ok((elements, unknown))
        }
        Err(error) if error.is_missing() => Ok((Vec::new(), 0)),
        Err(error) => Err(error),
    }
}

/// Where a range of a tree begins, with what it answers and whose it is; or where one is over.
struct Bound {
    key: Vec<u8>,
    begins: Option<(Data, String)>,
}

/// Reads an element of a tree.
fn bound(set: Set, attrs: &[u8]) -> Option<Bound> {
    let (mut key, mut flags, mut data, mut owner) = (None, 0, Data::Member, String::new());
    for (header, value) in IterableChunks::new(attrs) {
        match header.r#type {
            NFTA_SET_ELEM_KEY => key = Some(DataAttrs::new(value).get_value().ok()?.to_vec()),
            NFTA_SET_ELEM_DATA => data = element_data(set, DataAttrs::new(value))?,
            NFTA_SET_ELEM_FLAGS => flags = u32::from_be_bytes(*value.first_chunk()?),
            NFTA_SET_ELEM_USERDATA => owner = comment_of(value).unwrap_or_default(),
            _ => {}
        }
    }
    let is_over = flags & libc::NFT_SET_ELEM_INTERVAL_END as u32 != 0;
    Some(Bound { key: key?, begins: (!is_over).then_some((data, owner)) })
}

/// The ranges between bounds; none for what is not of our making.
fn ranges(set: Set, bounds: Vec<Option<Bound>>) -> Vec<Option<Element>> {
    let mut unknown = bounds.iter().filter(|bound| bound.is_none()).count();
    let mut bounds: Vec<Bound> = bounds.into_iter().flatten().collect();
    // Where one range is over the next may begin.
    bounds.sort_by(|a, b| (&a.key, a.begins.is_some()).cmp(&(&b.key, b.begins.is_some())));
    let mut found = Vec::new();
    let mut bounds = bounds.into_iter().peekable();
    while let Some(Bound { key, begins }) = bounds.next() {
        // nft(8) marks the first key of all as the end of nothing.
        let Some((data, owner)) = begins else { continue };
        let over = bounds.peek().map(|next| next.key.clone());
        let last = over.map_or_else(|| vec![0xff; key.len()], before);
        match fields(&set.key(), &key, Some(&last)) {
            Some(key) => found.push(Some(Element { set, key, data, owner })),
            None => unknown += 1,
        }
    }
    found.extend(std::iter::repeat_with(|| None).take(unknown));
    found
}

/// The key before one.
fn before(mut key: Vec<u8>) -> Vec<u8> {
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            break;
        }
    }
    key
}

/// What `read` makes of each element in a message.
fn each<T>(attrs: &[u8], mut read: impl FnMut(&[u8]) -> T) -> Vec<T> {
    let mut found = Vec::new();
    for attr in SetelemListAttrs::new(attrs) {
        let Ok(SetelemListAttrs::Elements(list)) = attr else { continue };
        for item in list {
            let Ok(SetelemListElemAttrs::Elem(item)) = item else { continue };
            found.push(read(item.get_buf()));
        }
    }
    found
}

/// The elements in a message; none for those that are not of our making.
pub(crate) fn listed(set: Set, attrs: &[u8]) -> Vec<Option<Element>> {
    each(attrs, |attrs| element(set, attrs))
}

/// Reads one element, by attribute number: the codec's specification numbers some of them unlike the kernel.
fn element(set: Set, attrs: &[u8]) -> Option<Element> {
    let (mut key, mut end, mut data, mut owner) = (None, None, Data::Member, String::new());
    for (header, value) in IterableChunks::new(attrs) {
        match header.r#type {
            NFTA_SET_ELEM_KEY => key = Some(DataAttrs::new(value).get_value().ok()?),
            NFTA_SET_ELEM_KEY_END => end = Some(DataAttrs::new(value).get_value().ok()?),
            NFTA_SET_ELEM_DATA => data = element_data(set, DataAttrs::new(value))?,
            NFTA_SET_ELEM_USERDATA => owner = comment_of(value).unwrap_or_default(),
            _ => {}
        }
    }
    // The kernel takes an end in sets of intervals only.
    if end.is_some() && !set.interval() {
        return None;
    }
    Some(Element { set, key: fields(&set.key(), key?, end)?, data, owner })
}

/// `enum nft_gen_attributes` and `nft_set_elem_attributes`, nf_tables.h.
const NFTA_GEN_ID: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_USERDATA: u16 = 6;

/// Splits the registers' bytes into fields.
fn fields(types: &[FieldType], key: &[u8], end: Option<&[u8]>) -> Option<Vec<Field>> {
    let mut at = 0;
    types
        .iter()
        .map(|kind| {
            let bytes = key.get(at..at + kind.len())?;
            let last = end.and_then(|end| end.get(at..at + kind.len())).unwrap_or(bytes);
            at += kind.padded();
            field(*kind, bytes, last)
        })
        .collect()
}

fn field(kind: FieldType, bytes: &[u8], last: &[u8]) -> Option<Field> {
    Some(match kind {
        FieldType::Protocol => Field::Protocol(Protocol::from_number(bytes[0])?),
        FieldType::NfProto if bytes[0] == libc::NFPROTO_IPV4 as u8 => Field::NfProto(Family::V4),
        FieldType::NfProto if bytes[0] == libc::NFPROTO_IPV6 as u8 => Field::NfProto(Family::V6),
        FieldType::NfProto => return None,
        FieldType::Address(family) => Field::Address(address(family, bytes)?),
        FieldType::Prefix(family) => Field::Prefix(prefix(address(family, bytes)?, address(family, last)?)?),
        FieldType::Port => {
            Field::Ports(u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([last[0], last[1]]))
        }
        FieldType::IfName => {
            let text = bytes.split(|b| *b == 0).next()?;
            Field::IfName(std::str::from_utf8(text).ok()?.parse::<IfName>().ok()?)
        }
        // Keys have names; an index is what some answer.
        FieldType::IfIndex => return None,
        FieldType::Ether => Field::Ether(Mac::from_bytes(bytes.try_into().ok()?)),
    })
}

fn address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(..16)?).ok()?)),
    })
}

/// The prefix that reaches from one address to another, if one does.
fn prefix(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let (same, max) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => ((first.to_bits() ^ last.to_bits()).leading_zeros(), 32),
        (IpAddr::V6(first), IpAddr::V6(last)) => ((first.to_bits() ^ last.to_bits()).leading_zeros(), 128),
        _ => return None,
    };
    let net = IpNet::new(first, same.min(max) as u8).ok()?;
    (net.network() == first && net.broadcast() == last).then_some(net)
}

fn element_data(set: Set, value: IterableDataAttrs<'_>) -> Option<Data> {
    match value.into_iter().next()?.ok()? {
        DataAttrs::Value(bytes) => match set.data() {
            DataType::Address(family) => Some(Data::Address(address(family, bytes)?)),
            DataType::AddressPort(family) => {
                let at = FieldType::Address(family).padded();
                let port = bytes.get(at..at + 2)?;
                Some(Data::AddressPort(address(family, bytes)?, u16::from_be_bytes([port[0], port[1]])))
            }
            DataType::Interface => Some(Data::Interface(u32::from_ne_bytes(*bytes.first_chunk()?))),
            DataType::Member | DataType::Verdict => None,
        },
        DataAttrs::Verdict(verdict) => {
            let (mut code, mut chain) = (None, None);
            for attr in verdict {
                match attr.ok()? {
                    VerdictAttrs::Code(value) => code = Some(value as i32),
                    VerdictAttrs::Chain(name) => chain = Chain::named(name.to_str().ok()?),
                    VerdictAttrs::ChainId(_) => {}
                }
            }
            match code? {
                libc::NF_ACCEPT => Some(Data::Accept),
                libc::NF_DROP => Some(Data::Drop),
                libc::NFT_RETURN => Some(Data::Return),
                libc::NFT_GOTO => Some(Data::Goto(chain?)),
                _ => None,
            }
        }
    }
}

/// The names and comments of all tables of `table`'s family.
///
/// # Errors
/// The kernel's refusal.
pub fn tables(socket: &mut Socket, table: Table) -> Result<Vec<(String, Option<String>)>, NetlinkError> {
    let read = |payload: &[u8]| {
        let attrs = TableAttrs::new(payload.get(NFGENMSG..)?);
        let name = attrs.get_name().ok()?.to_string_lossy().into_owned();
        Some((name, attrs.get_userdata().ok().and_then(comment_of)))
    };
    let request = |buf: &mut Vec<u8>| push_nfgenmsg(buf, family(table), 0);
    socket.dump_all(message(libc::NFT_MSG_GETTABLE), 0, request, |_, payload| read(payload))
}

/// The chains of the shortcuts of `device`, by name, with the interfaces at whose ingress they are.
///
/// # Errors
/// The kernel's refusal.
pub fn hooked(socket: &mut Socket, device: &str) -> Result<BTreeMap<String, BTreeSet<String>>, NetlinkError> {
    let read = |payload: &[u8]| {
        let attrs = ChainAttrs::new(payload.get(NFGENMSG..)?);
        if attrs.get_table().ok()?.to_bytes() != device.as_bytes() {
            return None;
        }
        let mut interfaces = BTreeSet::new();
        for attr in attrs.get_hook().ok().into_iter().flatten().flatten() {
            match attr {
                NftHookAttrs::Dev(name) => drop(interfaces.insert(name.to_string_lossy().into_owned())),
                NftHookAttrs::Devs(devs) => {
                    interfaces
                        .extend(devs.flatten().map(|HookDevAttrs::Name(name)| name.to_string_lossy().into_owned()));
                }
                NftHookAttrs::Num(_) | NftHookAttrs::Priority(_) => {}
            }
        }
        Some((attrs.get_name().ok()?.to_string_lossy().into_owned(), interfaces))
    };
    let request = |buf: &mut Vec<u8>| push_nfgenmsg(buf, family(Table::Shortcuts), 0);
    let chains = socket.dump_all(message(libc::NFT_MSG_GETCHAIN), 0, request, |_, payload| read(payload))?;
    Ok(chains.into_iter().collect())
}

/// The chains at hooks, of everybody's tables of the families `inet`, `ip` and `ip6`.
///
/// # Errors
/// The kernel's refusal.
pub fn base_chains(socket: &mut Socket) -> Result<Vec<BaseChain>, NetlinkError> {
    let read = |payload: &[u8]| {
        let family = i32::from(*payload.first()?);
        if !matches!(family, libc::NFPROTO_INET | libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6) {
            return None;
        }
        let attrs = ChainAttrs::new(payload.get(NFGENMSG..)?);
        let number = |hook: NftHookAttrs<'_>| if let NftHookAttrs::Num(number) = hook { Some(number) } else { None };
        // Chains that are only called have none.
        let hook = attrs.get_hook().ok()?.into_iter().flatten().find_map(number)?;
        Some(BaseChain {
            is_inet: family == libc::NFPROTO_INET,
            table: attrs.get_table().ok()?.to_string_lossy().into_owned(),
            hook,
            drops: attrs.get_policy() != Ok(libc::NF_ACCEPT as u32),
            // No rule leads to a chain at a hook, so that what uses it are its own rules (`nf_tables_newrule()`,
            // net/netfilter/nf_tables_api.c).
            has_rules: attrs.get_use() != Ok(0),
        })
    };
    let request = |buf: &mut Vec<u8>| push_nfgenmsg(buf, libc::NFPROTO_UNSPEC as u8, 0);
    socket.dump_all(message(libc::NFT_MSG_GETCHAIN), 0, request, |_, payload| read(payload))
}

/// A rule's shape: what it says it is for, and the kinds of its expressions in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleShape {
    /// The comment, empty for none.
    pub comment: String,
    /// Names of expressions, such as `meta`, `cmp`, `lookup`.
    pub expressions: Vec<String>,
}

/// The rules of every chain of `table`, in order.
///
/// # Errors
/// The kernel's refusal; an absent table is an empty list.
pub fn rules(socket: &mut Socket, table: Table, name: &str) -> Result<BTreeMap<String, Vec<RuleShape>>, NetlinkError> {
    let listed = socket.dump_all(
        message(libc::NFT_MSG_GETRULE),
        0,
        |buf| {
            push_nfgenmsg(buf, family(table), 0);
            PushRuleAttrs::new(buf).push_table_bytes(name.as_bytes());
        },
        |_, payload| rule(payload.get(NFGENMSG..)?),
    );
    let mut chains: BTreeMap<String, Vec<RuleShape>> = BTreeMap::new();
    match listed {
        Ok(listed) => listed.into_iter().for_each(|(chain, shape)| chains.entry(chain).or_default().push(shape)),
        Err(error) if error.is_missing() => {}
        Err(error) => return Err(error),
    }
    Ok(chains)
}

pub(crate) fn rule(payload: &[u8]) -> Option<(String, RuleShape)> {
    let text = |name: &CStr| name.to_string_lossy().into_owned();
    let mut chain = None;
    let mut shape = RuleShape { comment: String::new(), expressions: Vec::new() };
    for attr in RuleAttrs::new(payload) {
        match attr.ok()? {
            RuleAttrs::Chain(name) => chain = Some(text(name)),
            RuleAttrs::Userdata(userdata) => shape.comment = comment_of(userdata).unwrap_or_default(),
            RuleAttrs::Expressions(list) => {
                for item in list {
                    let Ok(ExprListAttrs::Elem(item)) = item else { continue };
                    // The name comes first; the data that follows may be of a kind the codec does not know.
                    if let Some(Ok(ExprAttrs::Name(name))) = item.into_iter().next() {
                        shape.expressions.push(text(name));
                    }
                }
            }
            _ => {}
        }
    }
    Some((chain?, shape))
}
