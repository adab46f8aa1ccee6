//! Ports that a container publishes by several networks: one of them is in the map that packets are led by, the others wait
//! in a map that no rule looks at, until it goes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portolan_model::Family;
use portolan_plan::{Element, Field, Set};

/// The sets that ports wait in.
pub(crate) const WAITING: [Set; 2] = [Set::PluginWaiting(Family::V4), Set::PluginWaiting(Family::V6)];

/// Whether an element says where a published port leads.
pub(crate) fn is_port(element: &Element) -> bool {
    matches!(element.set, Set::PluginPort(_) | Set::PluginAnyPort(_))
}

/// A port that waits, and its place: the highest came last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    port: Element,
    place: u16,
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl Waiting {
    fn of(element: &Element) -> Option<Self> {
        let Set::PluginWaiting(family) = element.set else { return None };
        let [protocol, Field::Address(address), ports, Field::Ports(place, _)] = element.key.as_slice() else {
            return None;
        };
        let (set, key) = match *address == unspecified(family) {
            true => (Set::PluginAnyPort(family), vec![protocol.clone(), ports.clone()]),
            false => (Set::PluginPort(family), vec![protocol.clone(), Field::Address(*address), ports.clone()]),
        };
        Some(Self { port: Element { set, key, ..element.clone() }, place: *place })
    }

    fn element(&self) -> Option<Element> {
        let (family, address) = match (self.port.set, self.port.key.as_slice()) {
            (Set::PluginPort(family), [_, Field::Address(address), _]) => (family, *address),
            (Set::PluginAnyPort(family), [_, _]) => (family, unspecified(family)),
            _ => return None,
        };
        let (protocol, ports) = (self.port.key.first()?.clone(), self.port.key.last()?.clone());
        let key = vec![protocol, Field::Address(address), ports, Field::Ports(self.place, self.place)];
        Some(Element { set: Set::PluginWaiting(family), key, ..self.port.clone() })
    }
}

fn is_same_port(a: &Element, b: &Element) -> bool {
    a.set == b.set && a.key == b.key
}

/// What has to change among those that wait (`there`) where `wanted` comes in place of `replaced`: elements to take out,
/// and elements to put in. What was another network's waits from now on; who comes back waits no longer.
pub(crate) fn replaced_by(wanted: &[Element], replaced: &[Element], there: &[Element]) -> (Vec<Element>, Vec<Element>) {
    let waiting = || there.iter().filter_map(|element| Some((element, Waiting::of(element)?)));
    let comes_back =
        |one: &Waiting| wanted.iter().any(|wanted| is_same_port(wanted, &one.port) && wanted.owner == one.port.owner);
    let gone = waiting().filter(|(_, one)| comes_back(one)).map(|(element, _)| element.clone()).collect();
    let waits = |port: &&Element| {
        is_port(port) && wanted.iter().any(|wanted| is_same_port(wanted, port) && wanted.owner != port.owner)
    };
    let behind = |port: &Element| {
        let places = waiting().filter(|(_, one)| is_same_port(&one.port, port)).map(|(_, one)| one.place);
        let place = places.max().map_or(0, |place| place.saturating_add(1));
        Waiting { port: port.clone(), place }.element()
    };
    (gone, replaced.iter().filter(waits).filter_map(behind).collect())
}

/// Who takes over where the ports among `gone` go: of each, the element that waits, and the port that it becomes.
pub(crate) fn heirs(gone: &[Element], there: &[Element]) -> Vec<(Element, Element)> {
    let stays = |element: &&Element| !gone.contains(element);
    let heir = |port: &Element| {
        let waiting = there.iter().filter(stays).filter_map(|element| Some((element, Waiting::of(element)?)));
        let (element, next) =
            waiting.filter(|(_, one)| is_same_port(&one.port, port)).max_by_key(|(_, one)| one.place)?;
        Some((element.clone(), next.port))
    };
    gone.iter().filter(|element| is_port(element)).filter_map(heir).collect()
}

/// Whether `port` waits.
pub(crate) fn waits(port: &Element, there: &[Element]) -> bool {
    there.iter().filter_map(Waiting::of).any(|waiting| waiting.port == *port)
}

#[cfg(test)]
mod tests {
    use portolan_model::Protocol;
    use portolan_plan::Data;

    use super::*;

    fn port(host: Option<&str>, network: &str, to: &str) -> Element {
        let to: IpAddr = to.parse().unwrap();
        let family = Family::of(to);
        let (protocol, ports) = (Field::Protocol(Protocol::Tcp), Field::Ports(8080, 8080));
        let (set, key) = match host {
            Some(host) => (Set::PluginPort(family), vec![protocol, Field::Address(host.parse().unwrap()), ports]),
            None => (Set::PluginAnyPort(family), vec![protocol, ports]),
        };
        Element { set, key, data: Data::AddressPort(to, 80), owner: format!("cni {network} c1 eth0") }
    }

    /// A table of ports and of those that wait, changed as it is in the kernel.
    #[derive(Default)]
    struct Table {
        port: Option<Element>,
        waiting: Vec<Element>,
    }

    impl Table {
        fn add(&mut self, port: Element) {
            let replaced: Vec<Element> = self.port.take().into_iter().filter(|is| *is != port).collect();
            let (gone, new) = replaced_by(std::slice::from_ref(&port), &replaced, &self.waiting);
            self.waiting.retain(|one| !gone.contains(one));
            self.waiting.extend(new);
            self.port = Some(port);
        }

        fn del(&mut self, owner: &str) {
            let of = |one: &&Element| one.owner.contains(owner);
            let gone: Vec<Element> = self.port.iter().chain(&self.waiting).filter(of).cloned().collect();
            let heirs = heirs(&gone, &self.waiting);
            self.waiting.retain(|one| !gone.contains(one) && !heirs.iter().any(|(element, _)| element == one));
            self.port = self.port.take().filter(|port| !gone.contains(port));
            self.port = heirs.into_iter().map(|(_, port)| port).next().or(self.port.take());
        }
    }

    #[test]
    fn who_came_last_comes_next() {
        let v4 = ["10.4.0.2", "10.5.0.2", "10.6.0.2"];
        let v6 = ["fd00:4::2", "fd00:5::2", "fd00:6::2"];
        for (host, to) in [(None, v4), (None, v6), (Some("10.0.1.1"), v4), (Some("fd00:1::1"), v6)] {
            let [a, b, c] = [0, 1, 2].map(|n| port(host, ["a", "b", "c"][n], to[n]));
            let mut table = Table::default();
            for one in [&a, &b, &c] {
                table.add(one.clone());
            }
            assert_eq!((table.port.as_ref(), table.waiting.len()), (Some(&c), 2));
            assert!(waits(&a, &table.waiting) && waits(&b, &table.waiting) && !waits(&c, &table.waiting));
            // Again, and back again: nobody waits twice.
            table.add(c.clone());
            table.add(a.clone());
            assert_eq!((table.port.as_ref(), table.waiting.len()), (Some(&a), 2));
            table.del("cni a ");
            assert_eq!(table.port.as_ref(), Some(&c), "it came after b");
            table.del("cni b ");
            assert_eq!((table.port.as_ref(), table.waiting.len()), (Some(&c), 0));
            table.del("cni c ");
            assert_eq!(table.port, None);
        }
    }

    #[test]
    fn all_of_a_container_at_once() {
        let mut table = Table::default();
        for (network, to) in [("a", "10.4.0.2"), ("b", "10.5.0.2")] {
            table.add(port(None, network, to));
        }
        table.del("c1");
        assert_eq!((table.port, table.waiting.len()), (None, 0));
    }
}
