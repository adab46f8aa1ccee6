//! The rules as nft(8) writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use portolan_model::{Family, IfName};

use super::*;
use crate::object::{Element, Field, Groups, Shortcut, ShortcutPart};

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "meta l4proto",
            Self::NfProto => "meta nfproto",
            Self::IifName => "iifname",
            Self::OifName => "oifname",
            Self::Source(Family::V4) => "ip saddr",
            Self::Source(Family::V6) => "ip6 saddr",
            Self::Destination(Family::V4) => "ip daddr",
            Self::Destination(Family::V6) => "ip6 daddr",
            Self::DestinationPort => "th dport",
            Self::UdpSourcePort => "udp sport",
            Self::UdpDestinationPort => "udp dport",
            Self::EtherSource => "ether saddr",
            Self::ArpSenderMac => "arp saddr ether",
            Self::ArpSenderAddress => "arp saddr ip",
            Self::NeighbourTarget => "icmpv6 taddr",
        })
    }
}

/// A packet priority as nft(8) writes it: a class of tc(8).
struct Handle(u32);

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => write!(f, "none"),
            number => write!(f, "{:04x}:{:04x}", number >> 16, number & 0xffff),
        }
    }
}

fn concat(loads: &[Load]) -> String {
    loads.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . ")
}

/// A part as nft(8) writes it, with the numbers of a root's interface groups.
struct Rendered<'a>(&'a Part, Groups);

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(part, groups) = self;
        let not = |holds: &bool| if *holds { "" } else { "!= " };
        match part {
            Part::IifGroup(holds, group) => write!(f, "iifgroup {}{}", not(holds), groups.number(*group)),
            Part::OifGroup(holds, group) => write!(f, "oifgroup {}{}", not(holds), groups.number(*group)),
            Part::NotFromLoopback => write!(f, "iif != \"lo\""),
            Part::ToLoopback4 => write!(f, "ip daddr 127.0.0.0/8"),
            Part::ToLoopback6 => write!(f, "ip6 daddr ::1"),
            Part::ToMulticast(Family::V4) => write!(f, "ip daddr 224.0.0.0/4"),
            Part::ToMulticast(Family::V6) => write!(f, "ip6 daddr ff00::/8"),
            Part::FromLoopback4 => write!(f, "ip saddr 127.0.0.0/8"),
            Part::FromUnspecified6 => write!(f, "ip6 saddr ::"),
            Part::FromLinkLocal6 => write!(f, "ip6 saddr fe80::/10"),
            Part::Ether(EtherType::Ipv4) => write!(f, "ether type ip"),
            Part::Ether(EtherType::Arp) => write!(f, "ether type arp"),
            Part::Ether(EtherType::Ipv6) => write!(f, "ether type ip6"),
            Part::L4Proto(ICMP6) => write!(f, "meta l4proto ipv6-icmp"),
            Part::L4Proto(ICMP) => write!(f, "meta l4proto icmp"),
            Part::L4Proto(UDP) => write!(f, "meta l4proto udp"),
            Part::L4Proto(IGMP) => write!(f, "meta l4proto igmp"),
            Part::L4Proto(number) => write!(f, "meta l4proto {number}"),
            Part::Icmp4Type(REDIRECT4) => write!(f, "icmp type redirect"),
            Part::Icmp4Type(number) => write!(f, "icmp type {number}"),
            Part::NotIcmp6Type(ROUTER_ADVERTISEMENT) => write!(f, "icmpv6 type != nd-router-advert"),
            Part::NotIcmp6Type(number) => write!(f, "icmpv6 type != {number}"),
            Part::MayGoOn(Family::V4) => write!(f, "ip ttl > 1"),
            Part::MayGoOn(Family::V6) => write!(f, "ip6 hoplimit > 1"),
            Part::Pass(family, next, by, set) => {
                write!(f, "fwd {} to {}", ip(*family), Load::Destination(*family))?;
                if let Next::Of(set) = next {
                    write!(f, " map @{}", set.name())?;
                }
                write!(f, " device {} map @{}", concat(by), set.name())
            }
            Part::HopLimit6(hops) => write!(f, "ip6 hoplimit {hops}"),
            Part::HasL4Proto => write!(f, "meta l4proto != 255"),
            Part::Icmp6Type(ECHO_REQUEST6) => write!(f, "icmpv6 type echo-request"),
            Part::Icmp6Type(LISTENER_QUERY) => write!(f, "icmpv6 type mld-listener-query"),
            Part::Icmp6Type(ROUTER_SOLICITATION) => write!(f, "icmpv6 type nd-router-solicit"),
            Part::Icmp6Type(ROUTER_ADVERTISEMENT) => write!(f, "icmpv6 type nd-router-advert"),
            Part::Icmp6Type(NEIGHBOUR_SOLICITATION) => write!(f, "icmpv6 type nd-neighbor-solicit"),
            Part::Icmp6Type(NEIGHBOUR_ADVERTISEMENT) => write!(f, "icmpv6 type nd-neighbor-advert"),
            Part::Icmp6Type(LISTENER_REPORT) => write!(f, "icmpv6 type mld2-listener-report"),
            Part::Icmp6Type(REDIRECT) => write!(f, "icmpv6 type nd-redirect"),
            Part::Icmp6Type(number) => write!(f, "icmpv6 type {number}"),
            Part::UdpSource(port) => write!(f, "udp sport {port}"),
            Part::TcpSource(port) => write!(f, "tcp sport {port}"),
            Part::UdpDestination(port) => write!(f, "udp dport {port}"),
            Part::TcpDestination(port) => write!(f, "tcp dport {port}"),
            Part::OpensTcp => write!(f, "tcp flags syn"),
            Part::ClampMss => write!(f, "tcp option maxseg size set rt mtu"),
            Part::Priority(number) => write!(f, "meta priority {}", Handle(*number)),
            Part::SetPriority(number) => write!(f, "meta priority set {}", Handle(*number)),
            Part::NoTrack => write!(f, "notrack"),
            Part::Begins => write!(f, "ct state new"),
            Part::Established => write!(f, "ct state established,related"),
            Part::InvalidState => write!(f, "ct state invalid"),
            Part::Translated => write!(f, "ct status dnat"),
            Part::ToLocal => write!(f, "fib daddr type local"),
            Part::NoWayBack => write!(f, "fib saddr . iif oif missing"),
            Part::In(holds, loads, set) => write!(f, "{} {}@{}", concat(loads), not(holds), set.name()),
            Part::Verdict(loads, set) => write!(f, "{} vmap @{}", concat(loads), set.name()),
            Part::Dnat(family, loads, set) => {
                write!(f, "dnat {} to {} map @{}", ip(*family), concat(loads), set.name())
            }
            Part::Snat(family, loads, set) => {
                write!(f, "snat {} to {} map @{}", ip(*family), concat(loads), set.name())
            }
            Part::Masquerade => write!(f, "masquerade"),
            Part::Count => write!(f, "counter"),
            Part::Do(data) => write!(f, "{data}"),
        }
    }
}

const fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

impl Part {
    /// The part as nft(8) writes it, for the root with these interface groups.
    pub fn render(&self, groups: Groups) -> String {
        Rendered(self, groups).to_string()
    }
}

impl Rule {
    /// The rule as nft(8) writes it, for the root with these interface groups.
    pub fn render(&self, groups: Groups) -> String {
        let parts: Vec<String> = self.parts.iter().map(|part| part.render(groups)).collect();
        let mut text = parts.join(" ");
        if !self.comment.is_empty() {
            let _ = write!(text, " comment \"{}\"", self.comment);
        }
        text
    }
}

/// The whole ruleset as nft(8) reads it, tables named `name`, sets filled with `elements`.
pub fn render<'a>(name: &str, elements: impl IntoIterator<Item = &'a Element>) -> String {
    let elements: Vec<&Element> = elements.into_iter().collect();
    let mut text = String::new();
    for table_kind in Table::ALL {
        render_table(&mut text, table_kind, name, Groups::of(name), of_set(&elements), nowhere);
    }
    text
}

/// The fence beside the tables `name`, as nft(8) reads it, without its flags: nft cannot own a table for long.
pub fn render_fence(name: &str) -> String {
    let mut text = String::new();
    let (table, groups) = (Table::fence_name(name), Groups::of(name));
    render_table(&mut text, Table::Fence, &table, groups, of_set(&[]), nowhere);
    text
}

/// The plugins' table as nft(8) reads it, sets filled with `elements`.
pub fn render_plugins<'a>(elements: impl IntoIterator<Item = &'a Element>) -> String {
    let elements: Vec<&Element> = elements.into_iter().collect();
    let mut text = String::new();
    let name = Table::PLUGINS_NAME;
    render_table(&mut text, Table::Plugins, name, Groups::of(name), of_set(&elements), nowhere);
    text
}

/// What a program does, which nft(8) has no words for, as comments.
pub fn render_program(parts: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let lines = parts.into_iter().map(|part| format!("#   {part}\n"));
    let mut text = String::from("# by a program, before all rules:\n");
    text.extend(lines);
    text
}

/// The shortcuts of `device` as nft(8) reads them, from the parts of its table.
pub fn render_shortcuts<'a>(device: &IfName, parts: impl IntoIterator<Item = &'a Shortcut>) -> String {
    let mut lines: BTreeMap<Set, Vec<String>> = BTreeMap::new();
    // Both chains are at the end of the tunnels, which lasts.
    let mut ends = BTreeSet::from([device]);
    for Shortcut { part, owner, .. } in parts {
        match part {
            ShortcutPart::Table { .. } => {}
            ShortcutPart::Near { host_end, addresses, .. } => {
                ends.insert(host_end);
                for address in addresses {
                    let family = Family::of(*address);
                    let near = format!("\"{host_end}\" . {address} comment \"{owner}\" : \"{device}\"");
                    lines.entry(Set::Near(family)).or_default().push(near);
                    let here = format!("{address} comment \"{owner}\" : \"{host_end}\"");
                    lines.entry(Set::Here(family)).or_default().push(here);
                }
            }
            ShortcutPart::Far { block, via, .. } => {
                let (family, block) = (Family::of(block.addr()), Field::Prefix(*block));
                let far = format!("{block} comment \"{owner}\" : {via}");
                lines.entry(Set::Far(family)).or_default().push(far);
                lines.entry(Set::Beyond(family)).or_default().push(format!("{block} comment \"{owner}\""));
            }
        }
    }
    let (mut text, name) = (String::new(), device.as_str());
    let hooked = |chain: Chain| if chain == Chain::ShortcutOut { ends.clone() } else { BTreeSet::from([device]) };
    render_table(
        &mut text,
        Table::Shortcuts,
        name,
        Groups::of(name),
        |set| lines.remove(&set).unwrap_or_default(),
        hooked,
    );
    text
}

/// No interface: chains of other families are at none.
const fn nowhere<'a>(_: Chain) -> BTreeSet<&'a IfName> {
    BTreeSet::new()
}

fn render_table<'a>(
    text: &mut String,
    table_kind: Table,
    name: &str,
    groups: Groups,
    mut elements: impl FnMut(Set) -> Vec<String>,
    hooked: impl Fn(Chain) -> BTreeSet<&'a IfName>,
) {
    let family = match table_kind {
        Table::Inet | Table::Fence | Table::Plugins => "inet",
        Table::Bridge => "bridge",
        Table::Shortcuts => "netdev",
    };
    let _ = writeln!(text, "table {family} {name} {{");
    for set in Set::in_table(table_kind) {
        render_set(text, set, &elements(set));
    }
    for chain in chains(table_kind) {
        let _ = writeln!(text, "\tchain {} {{", chain.name());
        if let Some(hook) = hook(chain) {
            let devices: Vec<String> = hooked(chain).into_iter().map(ToString::to_string).collect();
            let devices = match devices.as_slice() {
                [] => String::new(),
                [one] => format!(" device \"{one}\""),
                many => format!(" devices = {{ {} }}", many.join(", ")),
            };
            let _ = writeln!(
                text,
                "\t\ttype {} hook {}{devices} priority {}; policy accept;",
                hook.kind, hook.hook, hook.priority_name
            );
        }
        for rule in rules(chain) {
            let _ = writeln!(text, "\t\t{}", rule.render(groups));
        }
        let _ = writeln!(text, "\t}}\n");
    }
    let _ = writeln!(text, "}}");
}

/// Those of `elements` that are in a set.
fn of_set<'a>(elements: &'a [&'a Element]) -> impl FnMut(Set) -> Vec<String> + 'a {
    move |set| elements.iter().filter(|element| element.set == set).map(|element| render_element(element)).collect()
}

fn render_set(text: &mut String, set: Set, elements: &[String]) {
    let key = set.key().iter().map(|f| f.name()).collect::<Vec<_>>().join(" . ");
    let data = match set.data() {
        crate::DataType::Member => String::new(),
        crate::DataType::Verdict => " : verdict".to_owned(),
        data => format!(" : {}", data.fields().iter().map(|f| f.name()).collect::<Vec<_>>().join(" . ")),
    };
    let kind = if set.data() == crate::DataType::Member { "set" } else { "map" };
    let _ = writeln!(text, "\t{kind} {} {{\n\t\ttype {key}{data}", set.name());
    if set.interval() {
        let _ = writeln!(text, "\t\tflags interval");
    }
    if set.expires() {
        let _ = writeln!(text, "\t\tflags timeout");
    }
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "));
    }
    let _ = writeln!(text, "\t}}\n");
}

/// One element as nft(8) writes it inside a set.
pub fn render_element(element: &Element) -> String {
    let key: Vec<String> = element.key.iter().map(ToString::to_string).collect();
    let mut text = format!("{} comment \"{}\"", key.join(" . "), element.owner);
    if element.data != Data::Member {
        let _ = write!(text, " : {}", element.data);
    }
    text
}
