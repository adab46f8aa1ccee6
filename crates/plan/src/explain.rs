//! The ruleset for people: in sentences, and in the form of `iptables -L -n`.
//!
//! Both take the elements and nothing else, so they say what is in the kernel when given what was read from it.
//! Both follow [`rules`] for the order in which a packet meets the sets, rather than keep an order of their own.

mod constant;
mod shortcuts;

use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use portolan_model::{Family, IfName};

use crate::desired::{SEAL_OWNER, is_host_end_name};
use crate::object::{Chain, Data, Element, Field};
use crate::ruleset::{Part, rules};
use crate::set::Set;

use constant::EVERY_NETWORK;

pub use constant::{constant_rules, segments};
pub use shortcuts::{inlets, shortcuts};

/// One thing that the ruleset does, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sentence {
    /// Who it is there for, e.g. `network web` or `container c1 8080:80/tcp`.
    pub owner: String,
    /// What it does, lower case and without a full stop.
    pub text: String,
}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.owner, self.text)
    }
}

/// The chains in the order a packet passes them, each followed by those that only it calls.
const PATH: [Chain; 19] = [
    Chain::Guard,
    Chain::Early,
    Chain::NatIn,
    Chain::NatOut,
    Chain::Publish,
    Chain::Forward,
    Chain::Transit,
    Chain::WithinClosed,
    Chain::Enter,
    Chain::EnterNat,
    Chain::EnterRouted,
    Chain::Input,
    Chain::Tunnel,
    Chain::ToHostInternal,
    Chain::Probe,
    Chain::Allow,
    Chain::NatSource,
    Chain::Answer,
    Chain::Hush,
];

/// What `elements` do, in sentences: the host's first, then networks, then containers; for each owner in the order
/// a packet meets them.
///
/// One sentence says it for a run of ports that lead to as many other ports.
pub fn words(elements: &[Element]) -> Vec<Sentence> {
    let order = met_in_order();
    let mut sorted: Vec<&Element> = elements.iter().collect();
    sorted.sort_by_cached_key(|e| (kind_of_owner(&e.owner), e.owner.clone(), place(&order, e.set), e.key.clone()));
    runs(&sorted).into_iter().map(|run| Sentence { owner: run.element.owner.clone(), text: run.sentence() }).collect()
}

/// What `elements` do, as `iptables -t nat -L -n` and `iptables -L FORWARD -n` would list it, then the same for IPv6.
///
/// A faithful rendering for reading: each line stands for an element or a rule of ours, in the order in which they
/// match. It is no input for iptables-restore(8): nothing of it exists in iptables' tables; interfaces stand as
/// `in:` and `out:` among the conditions, with `networks` for all our bridges and the host ends of networks without one. The guard, the checks before routing
/// and what the host itself accepts have no place in these chains: [`words`] tells of them.
pub fn iptables(elements: &[Element]) -> String {
    let mut text =
        String::from("# for reading: the rules are in nftables; `networks` stands for every bridge of ours\n");
    for family in Family::ALL {
        text.truncate(text.trim_end().len());
        let tool = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let view = View::new(family, elements);
        let _ = writeln!(text, "\n\n# {tool} -t nat -L -n\n");
        view.chain(&mut text, "PREROUTING (policy ACCEPT)", &view.prerouting());
        view.chain(&mut text, "OUTPUT (policy ACCEPT)", &view.output());
        view.chain(&mut text, "POSTROUTING (policy ACCEPT)", &view.postrouting());
        let (forward, enter, routed) = (view.forward(), view.enter(), view.enter_routed());
        let calls = |name: &str| forward.iter().chain(&enter).filter(|line| line.target == name).count();
        let _ = writeln!(text, "# {tool} -L FORWARD -n\n");
        view.chain(&mut text, "FORWARD (policy ACCEPT)", &forward);
        view.chain(&mut text, &format!("ENTER ({} references)", calls("ENTER")), &enter);
        view.chain(&mut text, &format!("ROUTED ({} references)", calls("ROUTED")), &routed);
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Every set, in the order a packet meets it.
fn met_in_order() -> Vec<Set> {
    let mut order = Vec::new();
    for part in PATH.into_iter().flat_map(rules).flat_map(|rule| rule.parts) {
        if let Part::In(_, _, set) | Part::Verdict(_, set) | Part::Dnat(_, _, set) | Part::Snat(_, _, set) = part
            && !order.contains(&set)
        {
            order.push(set);
        }
    }
    order
}

fn place(order: &[Set], set: Set) -> usize {
    order.iter().position(|s| *s == set).unwrap_or(order.len())
}

/// Where sentences of an owner come: the host's first, then networks, then containers.
pub fn kind_of_owner(owner: &str) -> u8 {
    match owner.split(' ').next() {
        Some("host") => 0,
        Some("network") => 1,
        Some("container") => 2,
        _ => 3,
    }
}

/// An element, and how many of those after it go on where it ends: the next host port to the next container port.
struct Run<'a> {
    element: &'a Element,
    more: u16,
}

/// Folds neighbours in `sorted` into runs.
fn runs<'a>(sorted: &[&'a Element]) -> Vec<Run<'a>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    for &element in sorted {
        match runs.last_mut() {
            Some(run) if run.continues_with(element) => run.more += 1,
            _ => runs.push(Run { element, more: 0 }),
        }
    }
    runs
}

impl Run<'_> {
    fn continues_with(&self, next: &Element) -> bool {
        let first = self.element;
        let (Data::AddressPort(ip, to), Data::AddressPort(next_ip, next_to)) = (first.data, next.data) else {
            return false;
        };
        let (Some((Field::Ports(from, end), front)), Some((Field::Ports(next_from, next_end), next_front))) =
            (first.key.split_last(), next.key.split_last())
        else {
            return false;
        };
        let step = u32::from(self.more) + 1;
        first.set == next.set
            && first.owner == next.owner
            && ip == next_ip
            && front == next_front
            && from == end
            && next_from == next_end
            && u32::from(*from) + step == u32::from(*next_from)
            && u32::from(to) + step == u32::from(next_to)
    }

    fn sentence(&self) -> String {
        let Element { set, key, data, .. } = self.element;
        match (set, key.as_slice()) {
            (
                Set::Port(_) | Set::Range(_),
                [Field::Protocol(protocol), Field::Address(ip), Field::Ports(first, last)],
            ) => {
                let ports = Ports(*first, *last + self.more);
                if ip.is_loopback() && ip.is_ipv6() {
                    format!(
                        "{protocol} {ports} on {ip} {} nowhere: no route leads from ::1 to a container",
                        ports.verb("leads", "lead")
                    )
                } else {
                    format!("{protocol} {ports} on {ip} {}", self.destination(ports))
                }
            }
            (Set::AnyPort(family) | Set::AnyRange(family), [Field::Protocol(protocol), Field::Ports(first, last)]) => {
                let ports = Ports(*first, *last + self.more);
                let but = if *family == Family::V6 { " (and by the proxy on ::1)" } else { "" };
                format!("{protocol} {ports} on every {family} address of the host{but} {}", self.destination(ports))
            }
            (
                Set::Open(_) | Set::OpenRange(_),
                [Field::Address(ip), Field::Protocol(protocol), Field::Ports(first, last)],
            ) => {
                let ports = Ports(*first, *last);
                format!("{protocol} {ports} of {ip} {} open to whoever has a route to it", ports.verb("is", "are"))
            }
            (Set::Proxied, [Field::NfProto(family), Field::Protocol(protocol), Field::Ports(port, _)]) => {
                format!(
                    "{protocol} {port} on every {family} address of the host is passed on by the proxy, but not for internal networks"
                )
            }
            (Set::Tunnels, [Field::Ports(port, _)]) => {
                format!("containers send nothing to udp {port} of any host, where tunnels end")
            }
            (Set::Ends(_), [Field::Address(address)]) => format!("tunnels from {address} end here"),
            (Set::Untracked, [Field::Ports(port, _)]) if self.element.owner == SEAL_OWNER => {
                format!(
                    "encrypted packets of udp {port} are no connections: nobody else's rules on this host ask for any"
                )
            }
            (Set::Untracked, [Field::Ports(port, _)]) => {
                format!("tunnels' packets of udp {port} are no connections")
            }
            (Set::Within, [Field::IfName(from), Field::IfName(to)]) => {
                let who = if from.as_str().starts_with("vx-") {
                    format!("containers of other hosts, by {from}, and the one at {to}")
                } else if from == to {
                    format!("containers on bridge {from}")
                } else {
                    format!("containers on bridge {from} and those on {to}")
                };
                match data {
                    Data::Goto(Chain::Allow) => format!("{who} reach each other"),
                    Data::Goto(Chain::WithinClosed) => {
                        format!("{who} do not reach each other, except through published ports")
                    }
                    Data::Drop => format!("{who} do not reach each other"),
                    data => format!("for traffic from {from} to {to}: {}", verdict(*data)),
                }
            }
            (Set::Behind(_), [Field::IfName(host_end), Field::Address(ip)]) => {
                format!("what comes from {ip} behind {host_end} is from inside its network")
            }
            (Set::Between(_), [Field::Prefix(from), Field::Prefix(to)]) => {
                let who = if from == to {
                    format!("containers in {from}")
                } else {
                    format!("containers in {from} and those in {to}")
                };
                match data {
                    Data::Goto(Chain::Allow) => format!("{who} reach each other through the host"),
                    Data::Goto(Chain::WithinClosed) => {
                        format!("{who} do not reach each other, except through published ports")
                    }
                    data => format!("for traffic from {from} to {to}: {}", verdict(*data)),
                }
            }
            (Set::Direct(_), [Field::IfName(lan), Field::Prefix(block)]) => {
                format!(
                    "containers in {block} are reached by {lan} without a tunnel, and what comes from them comes there"
                )
            }
            (Set::Leave, [Field::NfProto(family), Field::IfName(bridge)]) => match data {
                Data::Goto(Chain::Enter) => {
                    format!(
                        "{family} traffic from containers {} reaches the world, and other networks as far as those let it in",
                        on(bridge)
                    )
                }
                Data::Accept => {
                    format!("{family} traffic from containers {} reaches the world and every other network", on(bridge))
                }
                Data::Drop => {
                    format!("nothing leaves {bridge} over {family}: the network has no {family} or is internal")
                }
                data => format!("for {family} traffic that leaves {bridge}: {}", verdict(*data)),
            },
            (Set::Enter, [Field::NfProto(family), Field::IfName(bridge)]) => match data {
                Data::Goto(Chain::EnterNat) => {
                    format!("what enters {bridge} over {family} must come through a published port")
                }
                Data::Goto(Chain::EnterRouted) => {
                    format!(
                        "what enters {bridge} over {family} must be for an open port of a container, come through a published port, or be ICMP"
                    )
                }
                Data::Goto(Chain::Allow) => {
                    format!("anything enters {bridge} over {family}, to every port of its containers")
                }
                Data::Drop => {
                    format!("nothing enters {bridge} over {family}: the network has no {family} or is internal")
                }
                data => format!("for {family} traffic that enters {bridge}: {}", verdict(*data)),
            },
            (Set::ToHost, [Field::NfProto(family), Field::IfName(bridge)]) => match data {
                Data::Goto(Chain::ToHostInternal) => {
                    format!("containers {} reach the host over {family} at their gateway address only", on(bridge))
                }
                Data::Goto(Chain::Probe) => format!(
                    "other hosts' ends of the tunnels by {bridge} are answered over {family} when they measure the path here; their containers do not reach the host"
                ),
                Data::Accept => format!("containers {} reach the host over {family}", on(bridge)),
                Data::Drop => format!("containers {} do not reach the host over {family}", on(bridge)),
                data => format!("for {family} traffic from {bridge} to the host: {}", verdict(*data)),
            },
            (Set::Trusted, [Field::IfName(interface), Field::IfName(bridge)]) => {
                format!(
                    "what comes in on {interface} reaches containers {} at their own addresses, every port",
                    on(bridge)
                )
            }
            (Set::Masquerade, [Field::NfProto(family), Field::IfName(bridge)]) => {
                format!(
                    "{family} traffic {} for the world is masqueraded behind the address of the interface it leaves by",
                    leaving(bridge)
                )
            }
            (Set::Snat(family), [Field::IfName(bridge)]) => {
                format!("{family} traffic {} for the world is sent from {data}", leaving(bridge))
            }
            (Set::Gateway(_), [Field::IfName(bridge), Field::Address(ip)]) => {
                format!("containers {} reach the host at {ip}", on(bridge))
            }
            (Set::Gateways(_), [Field::Address(ip)]) => {
                format!("{ip} is a gateway address: it answers its own network and the host, nobody else")
            }
            (Set::Redirected(_), [Field::Address(ip)]) => {
                format!("questions to {ip} are passed on to another port, where names are answered")
            }
            (Set::Closed, [Field::NfProto(family), Field::IfName(interface)]) => {
                format!(
                    "{family} traffic between {interface} and another interface closed like it is dropped: the host did not forward it before"
                )
            }
            (Set::Checked, [Field::NfProto(family), Field::IfName(bridge)]) => {
                format!(
                    "{family} packets that come from {} are dropped when their source address is not routed to {bridge}",
                    if is_host_end_name(bridge) { bridge.to_string() } else { format!("bridge {bridge}") }
                )
            }
            (Set::Hairpin, [Field::IfName(from), Field::IfName(to)]) => {
                let to = if from == to { "their own network".to_owned() } else { format!("bridge {to}") };
                format!(
                    "containers {} that use a published port of {to} are masqueraded, so that answers come back through the host",
                    on(from)
                )
            }
            (Set::Own(_), [Field::Address(from), Field::Address(_)]) => {
                format!(
                    "what {from} sends to its own published ports is masqueraded, so that it comes back through the host"
                )
            }
            (Set::Excess(_), [Field::Address(ip)]) => {
                format!(
                    "no connection from or to {ip} comes about for now: it has more than its share of those that the kernel remembers"
                )
            }
            (Set::Source(_), [Field::IfName(port), Field::Ether(mac), Field::Address(ip)]) => {
                format!("frames on port {port} from {mac} with source address {ip} pass; others are dropped")
            }
            (Set::Quiet, [Field::IfName(port)]) => format!("nobody is asked for addresses by {port}: all are known"),
            (Set::Unguarded, [Field::IfName(port)]) => {
                format!("frames on port {port} pass whatever their source: the guard is off")
            }
            // What we did not make, found in a set of ours.
            (set, key) => {
                let key = key.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . ");
                format!("`{key}` is in `{}`, which answers: {}", set.name(), verdict(*data))
            }
        }
    }

    /// Where `ports` lead, as the rest of a sentence.
    fn destination(&self, ports: Ports) -> String {
        let lead = ports.verb("leads", "lead");
        match self.element.data {
            Data::AddressPort(ip, to) if self.more == 0 => format!("{lead} to {}", SocketAddr::new(ip, to)),
            Data::AddressPort(ip, to) => format!("{lead} to {} of {ip}", Ports(to, to.saturating_add(self.more))),
            Data::Address(ip) => format!("{lead} to the same {} of {ip}", ports.verb("port", "ports")),
            data => format!("{lead} to: {}", verdict(data)),
        }
    }
}

/// Where containers are: on a bridge, or behind a host end that is on none.
fn on(device: &IfName) -> String {
    if is_host_end_name(device) { format!("behind {device}") } else { format!("on bridge {device}") }
}

/// Which traffic: what leaves a bridge, or comes in by a host end that is on none.
fn leaving(device: &IfName) -> String {
    if is_host_end_name(device) { format!("from behind {device}") } else { format!("that leaves bridge {device}") }
}

/// First and last port, written as `port 80` or `ports 80-89`.
#[derive(Clone, Copy)]
struct Ports(u16, u16);

impl Ports {
    const fn verb(self, one: &'static str, many: &'static str) -> &'static str {
        if self.0 == self.1 { one } else { many }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb("port", "ports"), Field::Ports(self.0, self.1))
    }
}

/// What `data` means, in a few words.
fn verdict(data: Data) -> String {
    match data {
        Data::Member => "it is a member".to_owned(),
        Data::Accept | Data::Goto(Chain::Allow) => "it passes".to_owned(),
        Data::Goto(chain) => format!("it goes on in `{}`", chain.name()),
        Data::Drop => "it is dropped".to_owned(),
        Data::Return => "it is left as it is".to_owned(),
        Data::Address(ip) => format!("it is translated to {ip}"),
        Data::AddressPort(ip, port) => format!("it is translated to {}", SocketAddr::new(ip, port)),
        Data::Interface(index) => format!("it leaves by interface {index}"),
    }
}

/// A line of an iptables listing.
struct Line {
    target: &'static str,
    protocol: String,
    source: Option<String>,
    destination: Option<String>,
    extra: String,
    comment: String,
}

impl Line {
    fn new(target: &'static str, extra: impl Into<String>, comment: impl Into<String>) -> Self {
        Self {
            target,
            protocol: "all".to_owned(),
            source: None,
            destination: None,
            extra: extra.into(),
            comment: comment.into(),
        }
    }

    fn constant(target: &'static str, extra: impl Into<String>, why: &str) -> Self {
        Self::new(target, extra, format!("{EVERY_NETWORK}: {why}"))
    }

    fn to(mut self, destination: impl fmt::Display) -> Self {
        self.destination = Some(destination.to_string());
        self
    }

    fn from(mut self, source: impl fmt::Display) -> Self {
        self.source = Some(source.to_string());
        self
    }

    fn protocol(mut self, protocol: impl fmt::Display) -> Self {
        self.protocol = protocol.to_string();
        self
    }
}

/// The elements as one of iptables and ip6tables would have them.
struct View<'a> {
    family: Family,
    sorted: Vec<&'a Element>,
}

impl<'a> View<'a> {
    fn new(family: Family, elements: &'a [Element]) -> Self {
        let mut sorted: Vec<&Element> = elements.iter().collect();
        sorted.sort_by(|a, b| (a.set, &a.key).cmp(&(b.set, &b.key)));
        Self { family, sorted }
    }

    fn of(&self, set: Set) -> impl Iterator<Item = &'a Element> {
        self.sorted.iter().copied().filter(move |e| e.set == set)
    }

    /// The interfaces of a set keyed by (family, interface), with what it answers.
    fn by_interface(&self, set: Set) -> impl Iterator<Item = (&'a Element, String)> {
        let family = self.family;
        self.of(set).filter_map(move |e| match e.key.as_slice() {
            [Field::NfProto(f), Field::IfName(name)] if *f == family => Some((e, name.to_string())),
            _ => None,
        })
    }

    /// The pairs of interfaces of a set keyed by (interface, interface).
    fn by_pair(&self, set: Set) -> impl Iterator<Item = (&'a Element, String)> {
        self.of(set).filter_map(|e| match e.key.as_slice() {
            [Field::IfName(from), Field::IfName(to)] => Some((e, format!("in:{from} out:{to}"))),
            _ => None,
        })
    }

    const fn loopback(&self) -> &'static str {
        match self.family {
            Family::V4 => "127.0.0.0/8",
            Family::V6 => "::1",
        }
    }

    fn prerouting(&self) -> Vec<Line> {
        let mut lines = vec![Line::constant("RETURN", "", "loopback is the host alone").to(self.loopback())];
        for element in self.of(Set::Gateways(self.family)) {
            if let [Field::Address(ip)] = element.key.as_slice() {
                lines.push(Line::new("RETURN", "in:!networks", &element.owner).to(ip));
            }
        }
        lines.push(Line::constant("RETURN", "ADDRTYPE match dst-type !LOCAL", "published ports are ports of the host"));
        lines.extend(self.translations(false));
        lines
    }

    fn output(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        if self.family == Family::V6 {
            lines.push(Line::constant("RETURN", "", "no route leads from ::1 to a container").to(self.loopback()));
        }
        lines.push(Line::constant("RETURN", "ADDRTYPE match dst-type !LOCAL", "published ports are ports of the host"));
        lines.extend(self.translations(true));
        lines
    }

    /// The published ports, in the order of the chain `publish`; those of loopback addresses where `loopback` asks.
    fn translations(&self, loopback: bool) -> Vec<Line> {
        let sets = rules(Chain::Publish).into_iter().flat_map(|rule| rule.parts).filter_map(|part| match part {
            Part::Dnat(family, _, set) if family == self.family => Some(set),
            _ => None,
        });
        sets.flat_map(|set| {
            let elements: Vec<&Element> = self.of(set).collect();
            runs(&elements).iter().filter_map(|run| translation(run, loopback)).collect::<Vec<_>>()
        })
        .collect()
    }

    fn postrouting(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = self
            .by_pair(Set::Hairpin)
            .map(|(e, pair)| Line::new("MASQUERADE", format!("{pair} ctstate DNAT"), &e.owner))
            .collect();
        if self.family == Family::V4 {
            lines.push(
                Line::constant("MASQUERADE", "out:networks", "from the host's 127.0.0.1 to a container")
                    .from(self.loopback()),
            );
        }
        lines.push(Line::constant("RETURN", "out:networks", "the client's address is kept"));
        for element in self.of(Set::Snat(self.family)) {
            if let [Field::IfName(bridge)] = element.key.as_slice() {
                lines.push(Line::new("SNAT", format!("in:{bridge} out:!networks to:{}", element.data), &element.owner));
            }
        }
        for (element, bridge) in self.by_interface(Set::Masquerade) {
            lines.push(Line::new("MASQUERADE", format!("in:{bridge} out:!networks"), &element.owner));
        }
        lines
    }

    fn forward(&self) -> Vec<Line> {
        let closed: Vec<(&Element, String)> = self.by_interface(Set::Closed).collect();
        let names = closed.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(",");
        let mut lines: Vec<Line> =
            closed.iter().map(|(e, from)| Line::new("DROP", format!("in:{from} out:{names}"), &e.owner)).collect();
        lines.push(Line::constant("RETURN", "in:!networks out:!networks", "neither from nor to a network"));
        lines.push(Line::constant("ACCEPT", "ctstate RELATED,ESTABLISHED", "known connections"));
        lines.push(Line::constant("DROP", "ctstate INVALID", "no connection it could belong to"));
        for (element, pair) in self.by_pair(Set::Within) {
            match element.data {
                Data::Goto(Chain::WithinClosed) => {
                    lines.push(Line::new("ACCEPT", format!("{pair} ctstate DNAT"), &element.owner));
                    lines.push(Line::new("DROP", pair, &element.owner));
                }
                data => lines.push(Line::new(target(data), pair, &element.owner)),
            }
        }
        for element in self.of(Set::Between(self.family)) {
            let [Field::Prefix(from), Field::Prefix(to)] = element.key.as_slice() else { continue };
            let line = |target, extra| Line::new(target, extra, &element.owner).from(from).to(to);
            match element.data {
                Data::Goto(Chain::WithinClosed) => {
                    lines.push(line("ACCEPT", "in:networks out:networks ctstate DNAT"));
                    lines.push(line("DROP", "in:networks out:networks"));
                }
                data => lines.push(line(target(data), "in:networks out:networks")),
            }
        }
        for (element, pair) in self.by_pair(Set::Trusted) {
            lines.push(Line::new("ACCEPT", pair, &element.owner));
        }
        for (element, bridge) in self.by_interface(Set::Leave) {
            let extra = if matches!(element.data, Data::Goto(_)) {
                format!("in:{bridge} [goto]")
            } else {
                format!("in:{bridge}")
            };
            lines.push(Line::new(target(element.data), extra, &element.owner));
        }
        lines.push(Line::constant("DROP", "in:networks", "out of a network unknown to the store"));
        lines.push(Line::constant("ENTER", "[goto]", "into a network"));
        lines
    }

    fn enter(&self) -> Vec<Line> {
        let mut lines = vec![Line::constant("ACCEPT", "out:!networks", "to the world")];
        for (element, bridge) in self.by_interface(Set::Enter) {
            match element.data {
                Data::Goto(Chain::EnterNat) => {
                    lines.push(Line::new("ACCEPT", format!("out:{bridge} ctstate DNAT"), &element.owner));
                    lines.push(Line::new("DROP", format!("out:{bridge}"), &element.owner));
                }
                Data::Goto(chain) if chain != Chain::Allow => {
                    lines.push(Line::new(target(Data::Goto(chain)), format!("out:{bridge} [goto]"), &element.owner))
                }
                data => lines.push(Line::new(target(data), format!("out:{bridge}"), &element.owner)),
            }
        }
        lines.push(Line::constant("DROP", "", "into a network unknown to the store"));
        lines
    }

    fn enter_routed(&self) -> Vec<Line> {
        let icmp = match self.family {
            Family::V4 => "icmp",
            Family::V6 => "icmpv6",
        };
        let mut lines = vec![
            Line::constant("ACCEPT", "ctstate DNAT", "through a published port"),
            Line::constant("ACCEPT", "", "errors and echo").protocol(icmp),
        ];
        for set in [Set::Open(self.family), Set::OpenRange(self.family)] {
            for element in self.of(set) {
                if let [Field::Address(ip), Field::Protocol(protocol), Field::Ports(first, last)] =
                    element.key.as_slice()
                {
                    lines.push(
                        Line::new("ACCEPT", format!("{protocol} {}", dpt(*first, *last)), &element.owner)
                            .protocol(protocol)
                            .to(ip),
                    );
                }
            }
        }
        lines.push(Line::constant("DROP", "", "not published"));
        lines
    }

    fn chain(&self, text: &mut String, header: &str, lines: &[Line]) {
        let any = match self.family {
            Family::V4 => "0.0.0.0/0",
            Family::V6 => "::/0",
        };
        let _ = writeln!(text, "Chain {header}\ntarget     prot opt source               destination");
        for Line { target, protocol, source, destination, extra, comment } in lines {
            let (source, destination) = (source.as_deref().unwrap_or(any), destination.as_deref().unwrap_or(any));
            // IPv4 alone has packets that differ in `opt`, fragments.
            let protocol =
                if self.family == Family::V4 { format!("{protocol:<4} --") } else { format!("{protocol:<7}") };
            let space = if extra.is_empty() { "" } else { " " };
            let _ =
                writeln!(text, "{target:<10} {protocol}  {source:<20} {destination:<20} {extra}{space}/* {comment} */");
        }
        text.push('\n');
    }
}

/// The target that stands for `data` in a filter chain.
const fn target(data: Data) -> &'static str {
    match data {
        Data::Accept | Data::Goto(Chain::Allow) => "ACCEPT",
        Data::Drop => "DROP",
        Data::Goto(Chain::Enter) => "ENTER",
        Data::Goto(Chain::EnterRouted) => "ROUTED",
        _ => "RETURN",
    }
}

fn dpt(first: u16, last: u16) -> String {
    if first == last { format!("dpt:{first}") } else { format!("dpts:{first}:{last}") }
}

/// The DNAT line of a run, unless it is for a loopback address that the chain never gets to.
fn translation(run: &Run<'_>, loopback: bool) -> Option<Line> {
    let element = run.element;
    let (protocol, address, first, last) = match element.key.as_slice() {
        [Field::Protocol(protocol), Field::Address(ip), Field::Ports(first, last)] => {
            (protocol, Some(ip), *first, *last)
        }
        [Field::Protocol(protocol), Field::Ports(first, last)] => (protocol, None, *first, *last),
        _ => return None,
    };
    if address.is_some_and(|ip| ip.is_loopback() && (ip.is_ipv6() || !loopback)) {
        return None;
    }
    // iptables writes a range that changes its numbers as FIRST-LAST/BASE (iptables-extensions(8), DNAT).
    let to = match element.data {
        Data::AddressPort(ip, port) if run.more > 0 => {
            format!("{}-{}/{first}", SocketAddr::new(ip, port), port + run.more)
        }
        Data::AddressPort(ip, port) => SocketAddr::new(ip, port).to_string(),
        data => data.to_string(),
    };
    let line = Line::new("DNAT", format!("{protocol} {} to:{to}", dpt(first, last + run.more)), &element.owner)
        .protocol(protocol);
    Some(match address {
        Some(ip) => line.to(ip),
        None => line,
    })
}
