//! Elements as rules, and rules as elements.

use std::net::{IpAddr, SocketAddr};

use portolan_model::{Family, Protocol};

use super::chains::{Chain, Names};
use super::saved::Spec;
use crate::object::{Chain as Verdict, Data, Element, Field};
use crate::set::Set;

/// A comment has at most so many bytes (XT_MAX_COMMENT_LEN, include/uapi/linux/netfilter/xt_comment.h, with a final NUL).
const COMMENT: usize = 255;

/// Rules for `element` in the tables of `family`, each with its chain. The place in the chain is any before the constants.
///
/// Empty if the element is of the other family, or of the guard.
pub(super) fn rules(names: &Names, family: Family, element: &Element) -> Vec<(Chain, String)> {
    let plain = bodies(names, family, element);
    let mut end = element.owner.len().min(COMMENT);
    while !element.owner.is_char_boundary(end) {
        end -= 1;
    }
    let comment = &element.owner[..end];
    let with_comment = |(chain, matches, target): (Chain, String, String)| {
        let space = if matches.is_empty() { "" } else { " " };
        (chain, format!("{matches}{space}-m comment --comment \"{comment}\" {target}"))
    };
    plain.into_iter().map(with_comment).collect()
}

/// Chain, matches and target.
fn bodies(names: &Names, family: Family, element: &Element) -> Vec<(Chain, String, String)> {
    use Field::{Address, IfName, NfProto, Ports};
    let text = str::to_owned;
    let prefix = if family == Family::V4 { 32 } else { 128 };
    let verdict = |data| verdict(names, data);
    match (element.set, element.key.as_slice()) {
        (Set::Port(f), [Field::Protocol(p), Address(ip), Ports(a, b)]) if f == family => {
            vec![(Chain::Port, format!("-d {ip}/{prefix} {}", ports(*p, *a, *b)), dnat(element.data))]
        }
        (Set::Range(f), [Field::Protocol(p), Address(ip), Ports(a, b)]) if f == family => {
            vec![(Chain::Range, format!("-d {ip}/{prefix} {}", ports(*p, *a, *b)), dnat(element.data))]
        }
        (Set::AnyPort(f), [Field::Protocol(p), Ports(a, b)]) if f == family => {
            vec![(Chain::AnyPort, ports(*p, *a, *b), dnat(element.data))]
        }
        (Set::AnyRange(f), [Field::Protocol(p), Ports(a, b)]) if f == family => {
            vec![(Chain::AnyRange, ports(*p, *a, *b), dnat(element.data))]
        }
        (Set::Open(f) | Set::OpenRange(f), [Address(ip), Field::Protocol(p), Ports(a, b)]) if f == family => {
            vec![(Chain::Ports, format!("-d {ip}/{prefix} {}", ports(*p, *a, *b)), text("-j ACCEPT"))]
        }
        (Set::Proxied, [NfProto(f), Field::Protocol(p), Ports(a, b)]) if *f == family => {
            vec![(Chain::Proxied, ports(*p, *a, *b), text("-j DROP"))]
        }
        (Set::Within, [IfName(from), IfName(to)]) => {
            vec![(Chain::Within, format!("-i {from} -o {to}"), verdict(element.data))]
        }
        (Set::Trusted, [IfName(from), IfName(to)]) => {
            vec![(Chain::Trusted, format!("-i {from} -o {to}"), text("-j ACCEPT"))]
        }
        (Set::Hairpin, [IfName(from), IfName(to)]) => {
            vec![(Chain::Hairpin, format!("-i {from} -o {to}"), text("-j MASQUERADE"))]
        }
        (Set::Own(f), [Address(from), Address(to)]) if f == family => {
            vec![(Chain::Hairpin, format!("-s {from}/{prefix} -d {to}/{prefix}"), text("-j MASQUERADE"))]
        }
        (Set::Leave, [NfProto(f), IfName(bridge)]) if *f == family => {
            vec![(Chain::Leave, format!("-i {bridge}"), verdict(element.data))]
        }
        (Set::Enter, [NfProto(f), IfName(bridge)]) if *f == family => {
            vec![(Chain::Into, format!("-o {bridge}"), verdict(element.data))]
        }
        (Set::ToHost, [NfProto(f), IfName(bridge)]) if *f == family => {
            vec![(Chain::ToHost, format!("-i {bridge}"), verdict(element.data))]
        }
        (Set::Masquerade, [NfProto(f), IfName(bridge)]) if *f == family => {
            vec![(Chain::Masquerade, format!("-i {bridge}"), text("-j MASQUERADE"))]
        }
        (Set::Closed, [NfProto(f), IfName(interface)]) if *f == family => vec![
            (Chain::Transit, format!("-i {interface}"), names.jump(Chain::Closed)),
            (Chain::Closed, format!("-o {interface}"), text("-j DROP")),
        ],
        (Set::Checked, [NfProto(f), IfName(bridge)]) if *f == family => {
            vec![(Chain::Checked, format!("-i {bridge} -m rpfilter --invert"), text("-j DROP"))]
        }
        (Set::Snat(f), [IfName(bridge)]) if f == family => {
            vec![(Chain::Snat, format!("-i {bridge}"), format!("-j SNAT --to-source {}", element.data))]
        }
        (Set::Gateway(f), [IfName(bridge), Address(ip)]) if f == family => vec![
            (Chain::Gate, format!("-d {ip}/{prefix} ! -i {bridge}"), text("-j DROP")),
            (Chain::Names, format!("-d {ip}/{prefix} -i {bridge}"), text("-j CT --notrack")),
            (Chain::OwnGateway, format!("-d {ip}/{prefix} -i {bridge}"), names.goto(Chain::Gateway)),
            (Chain::AnyGateway, format!("-d {ip}/{prefix} -i {bridge}"), names.goto(Chain::Gateway)),
        ],
        (Set::Gateways(f), [Address(ip)]) if f == family => vec![
            (Chain::Gateways, format!("-d {ip}/{prefix}"), text("-j RETURN")),
            (Chain::Answers, format!("-s {ip}/{prefix}"), text("-j CT --notrack")),
        ],
        (Set::Redirected(f), [Address(ip)]) if f == family => {
            vec![(Chain::Redirected, format!("-d {ip}/{prefix}"), text("-j RETURN"))]
        }
        (Set::IsolateFalse, [IfName(bridge)]) => vec![
            (Chain::IsolateFalse, format!("-o {bridge}"), text("-j ACCEPT")),
            (Chain::Open, format!("-i {bridge}"), names.jump(Chain::NotStrict)),
        ],
        (Set::NotStrict, [IfName(bridge)]) => vec![
            (Chain::NotStrict, format!("-o {bridge}"), text("-j ACCEPT")),
            (Chain::Open, format!("-i {bridge}"), names.jump(Chain::IsolateFalse)),
        ],
        _ => Vec::new(),
    }
}

fn ports(protocol: Protocol, first: u16, last: u16) -> String {
    let range = if first == last { first.to_string() } else { format!("{first}:{last}") };
    format!("-p {protocol} -m {protocol} --dport {range}")
}

fn dnat(data: Data) -> String {
    match data {
        Data::AddressPort(ip, port) => format!("-j DNAT --to-destination {}", SocketAddr::new(ip, port)),
        data => format!("-j DNAT --to-destination {data}"),
    }
}

/// What a map answers, and where that leads.
const VERDICTS: [(Data, Chain); 5] = [
    (Data::Goto(Verdict::WithinClosed), Chain::WithinClosed),
    (Data::Goto(Verdict::Enter), Chain::Enter),
    (Data::Goto(Verdict::EnterNat), Chain::IntoNat),
    (Data::Goto(Verdict::EnterRouted), Chain::IntoRouted),
    (Data::Goto(Verdict::ToHostInternal), Chain::ToHostInternal),
];

fn verdict(names: &Names, data: Data) -> String {
    match VERDICTS.iter().find(|(of, _)| *of == data) {
        Some((_, chain)) => names.goto(*chain),
        None if data == Data::Drop => "-j DROP".to_owned(),
        None => "-j ACCEPT".to_owned(),
    }
}

/// The element that a rule was written for; none for rules that no element has, and for all but the first of several
/// that one has.
pub(super) fn element(names: &Names, family: Family, chain: Chain, spec: &Spec) -> Option<Element> {
    let interface = |flag: &str| Some(Field::IfName(spec.value(flag)?.parse().ok()?));
    let protocol = || Some(Field::Protocol(spec.value("-p")?.parse().ok()?));
    let ports = || {
        let text = spec.value("--dport")?;
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        Some(Field::Ports(first.parse().ok()?, last.parse().ok()?))
    };
    let address = |flag: &str| {
        let (ip, _) = spec.value(flag)?.split_once('/')?;
        Some(Field::Address(ip.parse().ok()?))
    };
    let of_family = || Field::NfProto(family);
    let is_range = || matches!(ports(), Some(Field::Ports(first, last)) if first != last);
    let member = Some(Data::Member);
    // What has no family in its key stands in the tables of both.
    let in_both = |set| (family == Family::V4).then_some(set);
    let (set, key, data) = match chain {
        Chain::Port => (Set::Port(family), vec![protocol()?, address("-d")?, ports()?], translation(spec)),
        Chain::Range => (Set::Range(family), vec![protocol()?, address("-d")?, ports()?], translation(spec)),
        Chain::AnyPort => (Set::AnyPort(family), vec![protocol()?, ports()?], translation(spec)),
        Chain::AnyRange => (Set::AnyRange(family), vec![protocol()?, ports()?], translation(spec)),
        Chain::Ports => {
            let set = if is_range() { Set::OpenRange(family) } else { Set::Open(family) };
            (set, vec![address("-d")?, protocol()?, ports()?], member)
        }
        Chain::Proxied => (Set::Proxied, vec![of_family(), protocol()?, ports()?], member),
        Chain::Within => (in_both(Set::Within)?, vec![interface("-i")?, interface("-o")?], answer(names, chain, spec)),
        Chain::Trusted => (in_both(Set::Trusted)?, vec![interface("-i")?, interface("-o")?], member),
        Chain::Hairpin if spec.value("-s").is_some() => {
            (Set::Own(family), vec![address("-s")?, address("-d")?], member)
        }
        Chain::Hairpin => (in_both(Set::Hairpin)?, vec![interface("-i")?, interface("-o")?], member),
        Chain::Leave => (Set::Leave, vec![of_family(), interface("-i")?], answer(names, chain, spec)),
        Chain::Into => (Set::Enter, vec![of_family(), interface("-o")?], answer(names, chain, spec)),
        Chain::ToHost => (Set::ToHost, vec![of_family(), interface("-i")?], answer(names, chain, spec)),
        Chain::Masquerade => (Set::Masquerade, vec![of_family(), interface("-i")?], member),
        Chain::Closed => (Set::Closed, vec![of_family(), interface("-o")?], member),
        Chain::Checked => (Set::Checked, vec![of_family(), interface("-i")?], member),
        Chain::Snat => {
            let to: IpAddr = spec.value("--to-source")?.parse().ok()?;
            (Set::Snat(family), vec![interface("-i")?], Some(Data::Address(to)))
        }
        Chain::Gate => (Set::Gateway(family), vec![interface("! -i")?, address("-d")?], member),
        Chain::Gateways => (Set::Gateways(family), vec![address("-d")?], member),
        Chain::Redirected => (Set::Redirected(family), vec![address("-d")?], member),
        Chain::IsolateFalse => (in_both(Set::IsolateFalse)?, vec![interface("-o")?], member),
        Chain::NotStrict => (in_both(Set::NotStrict)?, vec![interface("-o")?], member),
        _ => return None,
    };
    Some(Element { set, key, data: data?, owner: spec.value("--comment")?.to_owned() })
}

fn translation(spec: &Spec) -> Option<Data> {
    let to = spec.value("--to-destination")?;
    match to.parse::<SocketAddr>() {
        Ok(to) => Some(Data::AddressPort(to.ip(), to.port())),
        Err(_) => Some(Data::Address(to.parse().ok()?)),
    }
}

/// What the map answers that is written in `chain`. Two of them let pass by the same name.
fn answer(names: &Names, chain: Chain, spec: &Spec) -> Option<Data> {
    if let Some(to) = spec.value("-g") {
        return VERDICTS.iter().find(|(_, chain)| names.chain(*chain) == to).map(|(data, _)| *data);
    }
    match (spec.value("-j")?, chain) {
        ("DROP", _) => Some(Data::Drop),
        ("ACCEPT", Chain::Within | Chain::Into) => Some(Data::Goto(Verdict::Allow)),
        _ => None,
    }
}
