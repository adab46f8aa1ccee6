use portolan_model::FirewallDriver;

use super::*;
use crate::desired::sample::{container, endpoint, internal, network, publication};
use crate::desired::{ContainerView, base_objects, container_objects, network_objects};
use crate::object::Data;
use crate::set::{Set, Table as NftTable};

fn firewall() -> Firewall {
    Firewall { driver: FirewallDriver::Iptables, name: "portolan_1a2b3c4d".to_owned() }
}

/// Elements of every set that has a rule here.
fn elements() -> Vec<Element> {
    let both = ["172.20.0.0/24", "fd00:1::/64"];
    let mut web =
        network("web", 1, &both, &[("trusted_host_interfaces", "wg0"), ("icc", "false"), ("isolate", "false")]);
    web.names_port = Some(1053);
    let lab = network(
        "lab",
        2,
        &["172.21.0.0/24", "fd00:2::/64"],
        &[("gateway_mode_ipv4", "routed"), ("gateway_mode_ipv6", "routed"), ("isolate", "true")],
    );
    let out = network(
        "out",
        3,
        &["172.22.0.0/24", "fd00:3::/64"],
        &[("host_ipv4", "10.0.1.9"), ("host_ipv6", "fd00:9::9"), ("gateway_mode_ipv6", "nat-unprotected")],
    );
    let quiet = internal("quiet", 4, &["172.23.0.0/24", "fd00:4::/64"], &[]);
    let view = |name: &str, number, network: &portolan_model::Network, ips: [&str; 2], published: &[&str]| {
        let c = container(name, number);
        ContainerView {
            endpoints: vec![(endpoint(&c, network, 0, &ips), network.clone())],
            container: c,
            publications: published.iter().map(|text| publication(text)).collect(),
        }
    };
    let ports =
        ["8080:80", "127.0.0.1:8081:81", "[fd00:9::1]:8082:82", "9000-9009:9000-9009/udp", "7000-7001:70-71/sctp"];
    let views = [
        view("c1", 0x11, &web, ["172.20.0.2", "fd00:1::2"], &ports),
        view("c2", 0x12, &lab, ["172.21.0.2", "fd00:2::2"], &["80:80", "10.0.1.1:6000-6009:6000-6009"]),
        view("c3", 0x13, &lab, ["172.21.0.3", "fd00:2::3"], &["5000-5009:5000-5009/udp"]),
        view(
            "c4",
            0x14,
            &out,
            ["172.22.0.2", "fd00:3::2"],
            &["10.0.1.1:6100-6109:6100-6109", "[fd00:9::1]:6200-6209:6200-6209"],
        ),
    ];
    let closed = Family::ALL.map(|family| (family, "eth0".parse().unwrap()));
    let mut objects = base_objects(&firewall(), &[], &closed);
    for network in [&web, &lab, &out, &quiet] {
        objects.extend(network_objects("/root", network));
    }
    for view in &views {
        objects.extend(container_objects("/root", view));
    }
    objects
        .into_iter()
        .filter(|object| firewall().holds(object))
        .filter_map(|object| match object {
            Object::Element(element) => Some(element),
            _ => None,
        })
        .collect()
}

/// What iptables-save(8) would print after iptables-restore(8) took `text` on an empty host.
fn saved(text: &str) -> Saved {
    Saved::parse(&text.replace("\n-I ", "\n-A "))
}

fn all_saved(elements: &[Element]) -> BTreeMap<Family, Saved> {
    Family::ALL.into_iter().map(|family| (family, saved(&render(&firewall(), family, elements)))).collect()
}

#[test]
fn names_fit() {
    let names = Names::of(&firewall());
    for chain in Chain::ALL {
        assert!(names.chain(*chain).len() <= 28, "{}", names.chain(*chain));
    }
    assert_eq!(
        Names::of(&Firewall { name: "portolan".into(), ..firewall() }).chain(Chain::Forward),
        "PORTOLAN-FORWARD"
    );
}

#[test]
fn every_set_but_the_guards_is_written_and_read_back() {
    let elements = elements();
    let ours = |set: &Set| set.table() == NftTable::Inet && !set.is_of_nftables_alone();
    for set in Set::ALL.into_iter().filter(ours) {
        // Nobody's sample has a port that the proxy takes.
        let is_sampled = elements.iter().any(|element| element.set == set) || set == Set::Proxied;
        assert!(is_sampled, "no element of {}", set.name());
    }
    let mut wanted = elements.clone();
    wanted.sort_by(|a, b| (a.set, &a.key).cmp(&(b.set, &b.key)));
    assert_eq!(find(&firewall(), &all_saved(&elements)), Found::Whole(wanted));
}

#[test]
fn nothing_is_nothing_and_other_roots_are_not_ours() {
    let other = Firewall { name: "portolan".into(), ..firewall() };
    assert_eq!(find(&other, &all_saved(&elements())), Found::Nothing);
    assert_eq!(find(&firewall(), &BTreeMap::from([(Family::V4, Saved::default())])), Found::Nothing);
}

#[test]
fn whatever_is_changed_is_seen() {
    let elements = elements();
    let text = render(&firewall(), Family::V4, &elements);
    let v6 = saved(&render(&firewall(), Family::V6, &elements));
    let whole = find(&firewall(), &all_saved(&elements));
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with('-')) {
        let without: String =
            lines.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, l)| format!("{l}\n")).collect();
        let twice: String = lines
            .iter()
            .enumerate()
            .map(|(n, l)| if n == at { format!("{l}\n{l}\n") } else { format!("{l}\n") })
            .collect();
        for changed in [without, twice] {
            let changed = BTreeMap::from([(Family::V4, saved(&changed)), (Family::V6, v6.clone())]);
            assert_ne!(find(&firewall(), &changed), whole, "{line}");
        }
    }
}

#[test]
fn a_change_is_what_is_between() {
    let all = elements();
    let (gone, kept): (Vec<&Element>, Vec<&Element>) = all.iter().partition(|element| element.owner.contains("c1"));
    assert!(gone.len() > 5 && !kept.is_empty());
    let text = change(&firewall(), Family::V4, &gone, &[]).unwrap();
    assert!(
        text.lines().all(|line| line.starts_with("-D PORTOLAN-1A2B3C4D-") || line.starts_with('*') || line == "COMMIT")
    );
    // Taken out line by line, the rest is what the others alone would be.
    let mut left: Vec<String> = render(&firewall(), Family::V4, &all).lines().map(str::to_owned).collect();
    for line in text.lines().filter_map(|line| line.strip_prefix("-D ")) {
        let at = left.iter().position(|l| l.strip_prefix("-A ") == Some(line)).unwrap_or_else(|| panic!("no {line}"));
        left.remove(at);
    }
    let kept: Vec<Element> = kept.into_iter().cloned().collect();
    assert_eq!(left.join("\n") + "\n", render(&firewall(), Family::V4, &kept));
    // Of one family only, the other has nothing to do.
    let one: Vec<&Element> = all.iter().filter(|element| element.set == Set::AnyPort(Family::V6)).collect();
    assert_eq!(change(&firewall(), Family::V4, &[], &one), None);
    assert!(change(&firewall(), Family::V6, &[], &one).unwrap().contains("--to-destination [fd00:1::2]:80"));
}

#[test]
fn mending_does_only_what_is_not_so() {
    let all = elements();
    let before = saved(&render(&firewall(), Family::V4, &all));
    let every: Vec<&Element> = all.iter().collect();
    assert_eq!(mend(&firewall(), Family::V4, &before, &[], &every), None);
    assert_eq!(mend(&firewall(), Family::V4, &Saved::default(), &every, &every), None, "no chain, no rule");
    let port = all.iter().find(|element| element.set == Set::AnyPort(Family::V4)).unwrap();
    let moved = Element { data: Data::AddressPort("172.20.0.9".parse().unwrap(), 80), ..port.clone() };
    assert_eq!(mend(&firewall(), Family::V4, &before, &[&moved], &[]), None, "it is not there");
    let text = mend(&firewall(), Family::V4, &before, &[port], &[&moved]).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("-D")).count(), 1, "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("-A")).count(), 1, "{text}");
}

#[test]
fn what_goes_is_what_is_there() {
    assert_eq!(delete(&firewall(), &Saved::default()), None);
    let text = delete(&firewall(), &saved(&render(&firewall(), Family::V4, &[]))).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("-X ")).count(), Chain::ALL.len());
    assert_eq!(text.lines().filter(|line| line.starts_with("-D ")).count(), 7);
    // A call that is there stays where it is, and one that is there twice becomes one.
    let twice = Saved::parse(
        "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j PORTOLAN-1A2B3C4D-FORWARD\n-A FORWARD -j PORTOLAN-1A2B3C4D-FORWARD\n",
    );
    let text = create(&firewall(), Family::V4, &twice, &[]);
    assert_eq!(text.matches("-D FORWARD -j PORTOLAN-1A2B3C4D-FORWARD\n").count(), 1);
    assert!(!text.contains("-I FORWARD"));
}

#[test]
fn interfaces_that_would_mean_others_are_refused() {
    let trusted = |name: &str| Element {
        set: Set::Trusted,
        key: vec![Field::IfName(name.parse().unwrap()), Field::IfName("br-web".parse().unwrap())],
        data: Data::Member,
        owner: "network web".to_owned(),
    };
    for name in ["eth'0", "e!0"] {
        assert_eq!(unspeakable(&trusted(name)).map(IfName::as_str), Some(name));
    }
    for name in ["eth0", "a+b", "wg0.1", "x@y"] {
        assert_eq!(unspeakable(&trusted(name)), None);
    }
    // No name of ours is one of these.
    for name in ["eth+", "-j", "!"] {
        assert!(name.parse::<IfName>().is_err(), "{name}");
    }
}
