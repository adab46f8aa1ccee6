//! The rules around the sets for people.

use super::{PATH, Sentence, verdict};
use crate::object::{Chain, Group, Groups};
use crate::ruleset::{EtherType, Load, Part, Rule, rules};

/// The owner of what they do.
pub(super) const EVERY_NETWORK: &str = "every network";

/// What the rules around the sets do, whatever is in them, in the order a packet meets them.
pub fn constant_rules() -> Vec<Sentence> {
    path().map(sentence).collect()
}

/// Those among them that change what TCP says of its segments: no element speaks of them.
pub fn segments() -> Vec<Sentence> {
    path().filter(|(_, rule)| rule.parts.contains(&Part::ClampMss)).map(sentence).collect()
}

fn path() -> impl Iterator<Item = (Chain, Rule)> {
    PATH.into_iter().flat_map(|chain| rules(chain).into_iter().map(move |rule| (chain, rule)))
}

fn sentence((chain, rule): (Chain, Rule)) -> Sentence {
    Sentence { owner: EVERY_NETWORK.to_owned(), text: rule_sentence(chain, &rule) }
}

fn rule_sentence(chain: Chain, rule: &Rule) -> String {
    let mut conditions = Vec::new();
    let mut actions = Vec::new();
    for part in &rule.parts {
        match part {
            Part::Count => {}
            Part::SetPriority(0) => actions.push("its mark is taken away".to_owned()),
            Part::SetPriority(_) => actions.push("it is marked as allowed".to_owned()),
            Part::ClampMss => actions.push("the size of TCP segments that it tells is made to fit".to_owned()),
            Part::NoTrack => actions.push("it is not tracked".to_owned()),
            Part::Pass(_, _, by, set) => {
                actions.push(format!("it leaves by what `{}` has for {}, past all that follows", set.name(), list(by)));
            }
            Part::Masquerade => actions.push("its source becomes the address of the interface it leaves by".to_owned()),
            Part::Do(data) => actions.push(verdict(*data)),
            Part::Verdict(loads, set) => actions.push(format!("`{}` decides by {}", set.name(), list(loads))),
            Part::Dnat(family, loads, set) => {
                actions.push(format!("its {family} destination becomes what `{}` has for {}", set.name(), list(loads)));
            }
            Part::Snat(family, loads, set) => {
                actions.push(format!("its {family} source becomes what `{}` has for {}", set.name(), list(loads)));
            }
            condition => conditions.push(condition_words(condition)),
        }
    }
    let which = if conditions.is_empty() {
        "everything that gets here".to_owned()
    } else {
        format!("what {}", conditions.join(" and "))
    };
    let why = if rule.comment.is_empty() { String::new() } else { format!(" ({})", rule.comment) };
    format!("in `{}`, {which}: {}{why}", chain.name(), actions.join(" and "))
}

fn condition_words(part: &Part) -> String {
    let place = |group: Group| match group {
        Group::Bridges => "a network",
        Group::Ports => "a container's port",
    };
    match part {
        Part::IifGroup(true, group) => format!("comes from {}", place(*group)),
        Part::IifGroup(false, group) => format!("does not come from {}", place(*group)),
        Part::OifGroup(true, group) => format!("goes to {}", place(*group)),
        Part::OifGroup(false, group) => format!("does not go to {}", place(*group)),
        Part::NotFromLoopback => "does not come from the host itself".to_owned(),
        Part::ToLoopback4 => "is for 127.0.0.0/8".to_owned(),
        Part::ToLoopback6 => "is for ::1".to_owned(),
        Part::FromLoopback4 => "is from 127.0.0.0/8".to_owned(),
        Part::FromUnspecified6 => "is from ::".to_owned(),
        Part::FromLinkLocal6 => "is from fe80::/10".to_owned(),
        Part::Ether(EtherType::Ipv4) => "is IPv4".to_owned(),
        Part::Ether(EtherType::Arp) => "is ARP".to_owned(),
        Part::Ether(EtherType::Ipv6) => "is IPv6".to_owned(),
        Part::HasL4Proto => "tells what it carries".to_owned(),
        Part::UdpSource(port) => format!("is from udp port {port}"),
        Part::TcpSource(port) => format!("is from tcp port {port}"),
        Part::UdpDestination(port) => format!("is for udp port {port}"),
        Part::TcpDestination(port) => format!("is for tcp port {port}"),
        Part::OpensTcp => "opens a TCP connection or agrees to one".to_owned(),
        Part::Priority(_) => "is marked as allowed".to_owned(),
        Part::Begins => "begins a connection".to_owned(),
        Part::Established => "belongs to a known connection".to_owned(),
        Part::InvalidState => "belongs to no connection".to_owned(),
        Part::Translated => "had its destination translated".to_owned(),
        Part::ToLocal => "is for an address of the host".to_owned(),
        Part::NoWayBack => "has a source that is not routed back the way it came".to_owned(),
        Part::In(holds, loads, set) => {
            format!("has its {} {} `{}`", list(loads), if *holds { "in" } else { "not in" }, set.name())
        }
        // Protocol and type numbers have names only in nft's language.
        other => format!("matches `{}`", other.render(Groups::of("portolan"))),
    }
}

fn list(loads: &[Load]) -> String {
    let names: Vec<&str> = loads
        .iter()
        .map(|load| match load {
            Load::Protocol => "protocol",
            Load::NfProto => "family",
            Load::IifName => "input interface",
            Load::OifName => "output interface",
            Load::Source(_) => "source",
            Load::Destination(_) => "destination",
            Load::DestinationPort => "destination port",
            Load::UdpSourcePort => "udp source port",
            Load::UdpDestinationPort => "udp destination port",
            Load::EtherSource => "source MAC",
            Load::ArpSenderMac => "ARP sender's MAC",
            Load::ArpSenderAddress => "ARP sender's address",
            Load::NeighbourTarget => "neighbour asked about",
        })
        .collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, front)) => format!("{} and {last}", front.join(", ")),
        None => String::new(),
    }
}
