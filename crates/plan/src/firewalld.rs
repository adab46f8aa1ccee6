//! The rules as firewalld(1) has them: zones that hold our bridges, and policies (firewalld.policies(5)) between zones.
//!
//! Zones and policies are made once, in firewalld's permanent configuration; what changes, the interfaces in a zone and the
//! rules of a policy, is of its runtime configuration and gone with a reload, after which it is put back.
//!
//! # What differs from nftables
//!
//! A zone is of all networks of its kind, so every two networks are apart whatever `isolate` says, and `icc=false` is left
//! to the bridge. What firewalld translated it also lets pass, from internal networks too. A port published on every address
//! is translated whatever address a packet is for; the host itself reaches it at 127.0.0.1 only, since nothing in a policy
//! says "of this host".

use std::collections::{BTreeMap, BTreeSet};

use portolan_model::{Family, IfName};

use crate::firewall::Firewall;
use crate::object::{Data, Element, Field};
use crate::set::Set;

/// A zone of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Zone {
    /// Networks that leave behind the host's address.
    Masqueraded,
    /// Networks that leave with addresses of their own.
    Routed,
    /// Networks that do not leave.
    Internal,
}

impl Zone {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Masqueraded, Self::Routed, Self::Internal];

    /// Its name: at most 17 characters (`max_zone_name_len()`, firewall/functions.py).
    pub fn name(self, firewall: &Firewall) -> String {
        let suffix = match self {
            Self::Masqueraded => "nat",
            Self::Routed => "routed",
            Self::Internal => "lone",
        };
        format!("{}_{suffix}", prefix(firewall))
    }

    /// What becomes of what containers send to the host: `ACCEPT`, or `default`, which is to refuse it.
    pub const fn target(self) -> &'static str {
        match self {
            Self::Masqueraded | Self::Routed => "ACCEPT",
            Self::Internal => "default",
        }
    }
}

/// A policy of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// Between networks: nothing.
    Apart,
    /// Published ports, for who comes from outside the host.
    Publish,
    /// Published ports, for the host itself.
    Own,
    /// Out of masqueraded networks.
    Masquerade,
    /// Out of others.
    Out,
    /// From the host's 127.0.0.1 into networks.
    Loopback,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Apart, Self::Publish, Self::Own, Self::Masquerade, Self::Out, Self::Loopback];

    /// Its name: at most 17 characters, as a zone's.
    pub fn name(self, firewall: &Firewall) -> String {
        let suffix = match self {
            Self::Apart => "apart",
            Self::Publish => "public",
            Self::Own => "own",
            Self::Masquerade => "masq",
            Self::Out => "out",
            Self::Loopback => "local",
        };
        format!("{}_{suffix}", prefix(firewall))
    }

    /// What it is made of.
    pub fn definition(self, firewall: &Firewall) -> Definition {
        let any = || vec!["ANY".to_owned()];
        let zones = |zones: &[Zone]| zones.iter().map(|zone| zone.name(firewall)).collect::<Vec<_>>();
        let new =
            |target, priority, ingress, egress| Definition { target, priority, ingress, egress, rules: Vec::new() };
        match self {
            // Before what lets networks out.
            Self::Apart => new("DROP", -20, zones(&Zone::ALL), zones(&Zone::ALL)),
            Self::Publish => new("CONTINUE", -10, any(), any()),
            Self::Own => new("CONTINUE", -10, vec!["HOST".to_owned()], any()),
            // What a policy calls masquerading is of IPv4 only (firewalld.policies(5)).
            Self::Masquerade => Definition {
                rules: ["ipv4", "ipv6"].map(|family| format!(r#"rule family="{family}" masquerade"#)).to_vec(),
                ..new("ACCEPT", -5, zones(&[Zone::Masqueraded]), any())
            },
            Self::Out => new("ACCEPT", -5, zones(&[Zone::Routed]), any()),
            Self::Loopback => Definition {
                rules: vec![r#"rule family="ipv4" source address="127.0.0.0/8" masquerade"#.to_owned()],
                ..new("CONTINUE", -4, any(), zones(&[Zone::Masqueraded, Zone::Routed]))
            },
        }
    }
}

/// A policy as firewalld stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// What becomes of what no rule decides.
    pub target: &'static str,
    /// Policies of lower numbers come first.
    pub priority: i32,
    /// Where packets come from: zones, `ANY` or `HOST`.
    pub ingress: Vec<String>,
    /// Where they go to.
    pub egress: Vec<String>,
    /// Rules (firewalld.richlanguage(5)) that are always there.
    pub rules: Vec<String>,
}

fn prefix(firewall: &Firewall) -> String {
    match firewall.name.rsplit_once('_') {
        Some((_, hash)) => format!("pl{hash}"),
        None => firewall.name.clone(),
    }
}

/// What changes: the interfaces of each zone, and the rules of the two policies about published ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Bridges, by zone.
    pub interfaces: BTreeMap<Zone, BTreeSet<String>>,
    /// Rules, by policy.
    pub rules: BTreeMap<Policy, BTreeSet<String>>,
}

impl State {
    /// What stands for these elements.
    pub fn of<'a>(elements: impl IntoIterator<Item = &'a Element>) -> Self {
        let elements: Vec<&Element> = elements.into_iter().collect();
        let mut state = Self::default();
        for element in &elements {
            if let (Set::Within, [Field::IfName(bridge), _]) = (element.set, element.key.as_slice()) {
                let zone = zone_of(&elements, bridge);
                state.interfaces.entry(zone).or_default().insert(bridge.to_string());
            }
            for (policy, rule) in rules(element) {
                state.rules.entry(policy).or_default().insert(rule);
            }
        }
        state
    }

    /// This without what is in `other`.
    #[must_use]
    pub fn without(mut self, other: &Self) -> Self {
        for (zone, interfaces) in &other.interfaces {
            self.interfaces.entry(*zone).or_default().retain(|interface| !interfaces.contains(interface));
        }
        for (policy, rules) in &other.rules {
            self.rules.entry(*policy).or_default().retain(|rule| !rules.contains(rule));
        }
        self.trimmed()
    }

    /// This and what is in `other`.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        for (zone, interfaces) in &other.interfaces {
            self.interfaces.entry(*zone).or_default().extend(interfaces.iter().cloned());
        }
        for (policy, rules) in &other.rules {
            self.rules.entry(*policy).or_default().extend(rules.iter().cloned());
        }
        self
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.interfaces.values().all(BTreeSet::is_empty) && self.rules.values().all(BTreeSet::is_empty)
    }

    /// The same without entries for what is empty.
    #[must_use]
    pub fn trimmed(mut self) -> Self {
        self.interfaces.retain(|_, interfaces| !interfaces.is_empty());
        self.rules.retain(|_, rules| !rules.is_empty());
        self
    }
}

fn zone_of(elements: &[&Element], bridge: &IfName) -> Zone {
    let has = |is_it: &dyn Fn(&Element) -> bool| {
        elements.iter().any(|element| is_it(element) && element.key.contains(&Field::IfName(bridge.clone())))
    };
    if has(&|element| matches!(element.set, Set::Masquerade | Set::Snat(_))) {
        Zone::Masqueraded
    } else if has(&|element| element.set == Set::Leave && matches!(element.data, Data::Goto(_))) {
        Zone::Routed
    } else {
        Zone::Internal
    }
}

/// The rules for a published port, as firewalld writes them itself (`Rich_Rule.__str__`, firewall/core/rich.py).
fn rules(element: &Element) -> Vec<(Policy, String)> {
    let (family, protocol, host, first, last) = match (element.set, element.key.as_slice()) {
        (
            Set::Port(family) | Set::Range(family),
            [Field::Protocol(protocol), Field::Address(ip), Field::Ports(first, last)],
        ) => (family, protocol, Some(*ip), first, last),
        (Set::AnyPort(family) | Set::AnyRange(family), [Field::Protocol(protocol), Field::Ports(first, last)]) => {
            (family, protocol, None, first, last)
        }
        _ => return Vec::new(),
    };
    let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
    let to = match element.data {
        Data::AddressPort(ip, port) => format!(r#"to-port="{port}" to-addr="{ip}""#),
        data => format!(r#"to-addr="{data}""#),
    };
    let version = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let rule = |destination: Option<String>| {
        let destination = destination.map_or_else(String::new, |ip| format!(r#" destination address="{ip}""#));
        format!(r#"rule family="{version}"{destination} forward-port port="{ports}" protocol="{protocol}" {to}"#)
    };
    match host {
        Some(ip) if ip.is_loopback() => vec![(Policy::Own, rule(Some(ip.to_string())))],
        Some(ip) => vec![(Policy::Publish, rule(Some(ip.to_string()))), (Policy::Own, rule(Some(ip.to_string())))],
        None if family == Family::V4 => {
            vec![(Policy::Publish, rule(None)), (Policy::Own, rule(Some("127.0.0.1".to_owned())))]
        }
        // No route leads from ::1 to a container.
        None => vec![(Policy::Publish, rule(None))],
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::{FirewallDriver, Protocol};

    use super::*;
    use crate::object::Chain;

    fn element(set: Set, key: Vec<Field>, data: Data) -> Element {
        Element { set, key, data, owner: String::new() }
    }

    #[test]
    fn names_fit() {
        for name in ["portolan", "portolan_1a2b3c4d"] {
            let firewall = Firewall { driver: FirewallDriver::Firewalld, name: name.to_owned() };
            let zones = Zone::ALL.map(|zone| zone.name(&firewall));
            let policies = Policy::ALL.map(|policy| policy.name(&firewall));
            for name in zones.iter().chain(&policies) {
                assert!(name.len() <= 17, "{name}");
                // A policy may not be called as a zone is.
                assert_eq!(zones.iter().chain(&policies).filter(|other| *other == name).count(), 1);
            }
        }
    }

    #[test]
    fn networks_are_in_the_zone_of_their_kind() {
        let bridge = |name: &str| Field::IfName(name.parse().unwrap());
        let v4 = || Field::NfProto(Family::V4);
        let within = |name| element(Set::Within, vec![bridge(name), bridge(name)], Data::Goto(Chain::Allow));
        let leave = |name, data| element(Set::Leave, vec![v4(), bridge(name)], data);
        let elements = [
            within("a"),
            leave("a", Data::Goto(Chain::Enter)),
            element(Set::Masquerade, vec![v4(), bridge("a")], Data::Member),
            within("b"),
            leave("b", Data::Goto(Chain::Enter)),
            within("c"),
            leave("c", Data::Drop),
        ];
        let state = State::of(&elements);
        let zones = Zone::ALL.map(|zone| state.interfaces[&zone].iter().cloned().collect::<Vec<_>>().join(","));
        assert_eq!(zones, ["a", "b", "c"]);
    }

    #[test]
    fn ports_are_rules_as_firewalld_writes_them() {
        let tcp = || Field::Protocol(Protocol::Tcp);
        let to = Data::AddressPort("10.88.0.2".parse().unwrap(), 80);
        let any = rules(&element(Set::AnyPort(Family::V4), vec![tcp(), Field::Ports(8080, 8080)], to));
        let plain = r#"rule family="ipv4" forward-port port="8080" protocol="tcp" to-port="80" to-addr="10.88.0.2""#;
        assert_eq!(any[0], (Policy::Publish, plain.to_owned()));
        assert_eq!(any[1].1, plain.replace("ipv4\"", "ipv4\" destination address=\"127.0.0.1\""));
        let ip = Field::Address("fd00::9".parse().unwrap());
        let range = rules(&element(
            Set::Range(Family::V6),
            vec![tcp(), ip, Field::Ports(1, 9)],
            Data::Address("fd00::2".parse().unwrap()),
        ));
        assert_eq!(
            range[0].1,
            r#"rule family="ipv6" destination address="fd00::9" forward-port port="1-9" protocol="tcp" to-addr="fd00::2""#
        );
        let local = Field::Address("127.0.0.1".parse().unwrap());
        let own = rules(&element(Set::Port(Family::V4), vec![tcp(), local, Field::Ports(80, 80)], to));
        assert!(matches!(own.as_slice(), [(Policy::Own, _)]), "{own:?}");
    }
}
