//! Who gets which answer, as tables: each line is a question and what another implementation makes of our answer.

mod common;

use std::net::{IpAddr, SocketAddr};

use common::{id, parse, question, words};
use portolan_dns::wire::MAX_TCP;
use portolan_dns::{Decision, Endpoint, Local, Names, NamesError, Network, ResolvConf, Service, Transport};

fn network(number: u64, name: &str) -> Network {
    Network {
        id: id(number),
        name: name.into(),
        gateways: vec![[10, number as u8, 0, 1].into(), format!("fd00:{number}::1").parse().unwrap()],
        port: None,
        internal: false,
        upstreams: Vec::new(),
        subnets: vec![format!("10.{number}.0.0/16").parse().unwrap(), format!("fd00:{number}::/64").parse().unwrap()],
    }
}

fn endpoint(number: u64, network: u64, container: u64, name: &str, addresses: &[&str]) -> Endpoint {
    Endpoint {
        id: id(number),
        network: id(network),
        container: id(container),
        name: name.into(),
        names: Vec::new(),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        links: Vec::new(),
        services: Vec::new(),
        upstreams: Vec::new(),
        search: Vec::new(),
        is_well: true,
    }
}

/// Networks `front` (10.1), `back` (10.2), `lonely` (10.3, internal) and `far` (10.4). `web` is on `front` and
/// `back`, `db` on `back`, `cli` on `front` alone, `shy` on `lonely`, `stranger` on `far`.
fn scene() -> Names {
    let mut names = Names::new();
    names.put_network(network(1, "front"));
    names.put_network(network(2, "back"));
    names.put_network(Network { internal: true, ..network(3, "lonely") });
    names.put_network(network(4, "far.away"));
    let web = Endpoint {
        names: vec!["www".into(), "0123456789ab".into(), "My.App_1".into(), "www".into()],
        services: vec![
            Service { transport: Transport::Tcp, port: 80 },
            Service { transport: Transport::Udp, port: 8080 },
        ],
        ..endpoint(10, 1, 100, "web", &["10.1.0.2", "fd00:1::2"])
    };
    names.put_endpoint(web).unwrap();
    names.put_endpoint(endpoint(11, 2, 100, "web", &["10.2.0.2"])).unwrap();
    names.put_endpoint(endpoint(12, 2, 101, "db", &["10.2.0.3"])).unwrap();
    let cli = Endpoint {
        links: vec![("server".into(), "web".into()), ("nothing".into(), "nosuch".into())],
        names: vec!["pair".into()],
        ..endpoint(13, 1, 102, "cli", &["10.1.0.3"])
    };
    names.put_endpoint(cli).unwrap();
    let peer = Endpoint { names: vec!["pair".into()], ..endpoint(14, 1, 103, "peer", &["10.1.0.4", "fd00:1::4"]) };
    names.put_endpoint(peer).unwrap();
    names.put_endpoint(endpoint(15, 3, 104, "shy", &["10.3.0.2"])).unwrap();
    names.put_endpoint(endpoint(16, 4, 105, "stranger", &["10.4.0.2"])).unwrap();
    names.set_host(&ResolvConf::parse("nameserver 192.0.2.53\nsearch example.org corp", |_| None));
    names
}

/// Asks on `gateway` from `source`.
fn ask_at(names: &mut Names, gateway: &str, source: &str, name: &str, kind: &str) -> String {
    let bytes = question(name, kind, None);
    let mut out = Vec::new();
    let (gateway, source) = (gateway.parse().unwrap(), source.parse().unwrap());
    match names.answer(gateway, source, &parse(&bytes), MAX_TCP, &mut out) {
        Decision::Answered(_) => words(&out),
        Decision::Forward(route) => {
            let servers: Vec<_> = route.upstreams.iter().map(SocketAddr::to_string).collect();
            format!("to {}", servers.join(" "))
        }
    }
}

/// Asks as a container, on the gateway of its own subnet.
fn ask(names: &mut Names, source: &str, name: &str, kind: &str) -> String {
    let source: IpAddr = source.parse().unwrap();
    let gateway = match source {
        IpAddr::V4(addr) => IpAddr::from([addr.octets()[0], addr.octets()[1], 0, 1]),
        IpAddr::V6(addr) => format!("fd00:{:x}::1", addr.segments()[1]).parse().unwrap(),
    };
    ask_at(names, &gateway.to_string(), &source.to_string(), name, kind)
}

/// The end of a negative answer.
fn soa(owner: &str) -> String {
    format!(" | auth {owner} 0 IN SOA portolan.internal. nobody.invalid. 1 3600 600 86400 0")
}

const CLI: &str = "10.1.0.3";
const WEB: &str = "10.1.0.2";
const WEB6: &str = "fd00:1::2";
const SHY: &str = "10.3.0.2";

#[track_caller]
fn check(cases: &[(&str, &str, &str, &str)]) {
    let mut names = scene();
    for (source, name, kind, want) in cases {
        let mut got = ask(&mut names, source, name, kind);
        if let Some((front, _)) = got.split_once(" | auth")
            && !want.contains("auth")
        {
            got = front.to_owned();
        }
        assert_eq!(got, *want, "`{source}` asks for `{name}` {kind}");
    }
}

#[test]
fn names_of_the_networks_one_is_on() {
    check(&[
        (CLI, "web", "A", "NoError aa | web. 0 IN A 10.1.0.2"),
        (CLI, "WeB", "A", "NoError aa | WeB. 0 IN A 10.1.0.2"),
        (CLI, "web", "AAAA", "NoError aa | web. 0 IN AAAA fd00:1::2"),
        (CLI, "www", "A", "NoError aa | www. 0 IN A 10.1.0.2"),
        (CLI, "0123456789AB", "A", "NoError aa | 0123456789AB. 0 IN A 10.1.0.2"),
        (CLI, "my.app_1", "A", "NoError aa | my.app_1. 0 IN A 10.1.0.2"),
        (CLI, "web.front", "A", "NoError aa | web.front. 0 IN A 10.1.0.2"),
        (CLI, "web.FRONT.portolan.internal", "A", "NoError aa | web.FRONT.portolan.internal. 0 IN A 10.1.0.2"),
        (CLI, "web.portolan.internal", "A", "NoError aa | web.portolan.internal. 0 IN A 10.1.0.2"),
        (CLI, "web.dns.podman", "A", "NoError aa | web.dns.podman. 0 IN A 10.1.0.2"),
        (CLI, "cli", "A", "NoError aa | cli. 0 IN A 10.1.0.3"),
        // Both networks; the one asked on first.
        (WEB, "db", "A", "NoError aa | db. 0 IN A 10.2.0.3"),
        (WEB6, "db", "A", "NoError aa | db. 0 IN A 10.2.0.3"),
        (WEB, "web", "A", "NoError aa | web. 0 IN A 10.1.0.2"),
        ("10.2.0.2", "web", "A", "NoError aa | web. 0 IN A 10.2.0.2"),
        (WEB, "web.back", "A", "NoError aa | web.back. 0 IN A 10.2.0.2"),
        ("10.4.0.2", "stranger.far.away", "A", "NoError aa | stranger.far.away. 0 IN A 10.4.0.2"),
        // Not one's own: neither shown nor asked for elsewhere.
        (CLI, "db", "A", "NXDomain aa"),
        (CLI, "shy", "A", "NXDomain aa"),
        (CLI, "stranger", "A", "NXDomain aa"),
        ("10.4.0.2", "web", "A", "NXDomain aa"),
        (CLI, "web.back.portolan.internal", "A", "NXDomain aa"),
    ]);
}

#[test]
fn names_without_data() {
    let mut names = scene();
    // RFC 2308 §2.2: the name is there, the type is not.
    for kind in ["AAAA", "TXT", "MX", "HTTPS", "NS", "SRV", "SOA", "CNAME"] {
        let want = format!("NoError aa{}", soa("db."));
        assert_eq!(ask(&mut names, WEB, "db", kind), want, "{kind}");
    }
    assert_eq!(ask(&mut names, CLI, "db", "A"), format!("NXDomain aa{}", soa(".")));
    assert_eq!(ask(&mut names, CLI, "Foo.Front", "A"), format!("NXDomain aa{}", soa("Front.")));
    // RFC 8482 §4.1: a subset.
    let want = "NoError aa | web. 0 IN A 10.1.0.2 | web. 0 IN AAAA fd00:1::2";
    assert_eq!(ask(&mut names, CLI, "web", "ANY"), want);
}

#[test]
fn what_is_never_asked_elsewhere() {
    check(&[
        (CLI, "nosuch", "A", "NXDomain aa"),
        (CLI, "com", "NS", "NXDomain aa"),
        (CLI, "nosuch.front", "A", "NXDomain aa"),
        (CLI, "a.b.front", "A", "NXDomain aa"),
        (CLI, "portolan.internal", "A", "NXDomain aa"),
        (CLI, "x.portolan.internal", "A", "NXDomain aa"),
        (CLI, "x.dns.podman", "A", "NXDomain aa"),
        (CLI, "x.host.internal", "A", "NXDomain aa"),
        (CLI, "nosuch.local.far.away", "A", "to 192.0.2.53:53"),
        ("10.4.0.2", "nosuch.far.away", "A", "NXDomain aa"),
        // The search list of the host.
        (CLI, "web.example.org", "A", "NXDomain aa"),
        (CLI, "web.CORP", "A", "NXDomain aa"),
        (CLI, "web.front.example.org", "A", "NXDomain aa"),
        (CLI, "server.corp", "A", "NXDomain aa"),
        // RFC 6761 §6.3.
        (CLI, "localhost", "A", "NoError aa | localhost. 0 IN A 127.0.0.1"),
        (CLI, "x.LocalHost", "AAAA", "NoError aa | x.LocalHost. 0 IN AAAA ::1"),
        (CLI, "localhost", "MX", "NoError aa"),
        // And what is.
        (CLI, "db.example.org", "A", "to 192.0.2.53:53"),
        (CLI, "webexample.org", "A", "to 192.0.2.53:53"),
        (CLI, "web.example.net", "A", "to 192.0.2.53:53"),
        (CLI, "front.example.net", "A", "to 192.0.2.53:53"),
        (CLI, "metadata.google.internal", "A", "to 192.0.2.53:53"),
        (CLI, ".", "NS", "to 192.0.2.53:53"),
    ]);
}

#[test]
fn a_network_without_a_way_out_forwards_nothing() {
    check(&[
        (SHY, "shy", "A", "NoError aa | shy. 0 IN A 10.3.0.2"),
        (SHY, "www.example.net", "A", "NXDomain aa"),
        (SHY, "www.example.net", "TXT", "NXDomain aa"),
        (SHY, ".", "NS", "NXDomain aa"),
        (SHY, "9.113.0.203.in-addr.arpa", "PTR", "NXDomain aa"),
        (SHY, "host.internal", "A", "NoError aa | host.internal. 0 IN A 10.3.0.1"),
    ]);
}

#[test]
fn a_container_on_an_internal_and_another_network_asks_by_each() {
    let mut names = scene();
    names.put_endpoint(endpoint(20, 3, 100, "web", &["10.3.0.9"])).unwrap();
    assert_eq!(ask(&mut names, WEB, "www.example.net", "A"), "to 192.0.2.53:53");
    assert!(ask(&mut names, "10.3.0.9", "www.example.net", "A").starts_with("NXDomain"));
    // Which network is asked does not change what is visible.
    assert_eq!(ask(&mut names, "10.3.0.9", "db", "A"), "NoError aa | db. 0 IN A 10.2.0.3");
}

#[test]
fn the_host_by_its_names() {
    for name in ["host.internal", "host.docker.internal", "host.containers.internal", "gateway.docker.internal"] {
        let mut names = scene();
        assert_eq!(ask(&mut names, CLI, name, "A"), format!("NoError aa | {name}. 0 IN A 10.1.0.1"));
        assert_eq!(ask(&mut names, WEB6, name, "AAAA"), format!("NoError aa | {name}. 0 IN AAAA fd00:1::1"));
        assert_eq!(ask(&mut names, "10.2.0.3", name, "TXT"), format!("NoError aa{}", soa(&format!("{name}."))));
    }
}

#[test]
fn the_host_asks_too() {
    let mut names = scene();
    assert_eq!(ask(&mut names, "10.1.0.1", "web", "A"), "NoError aa | web. 0 IN A 10.1.0.2");
    assert!(ask(&mut names, "10.1.0.1", "db", "A").starts_with("NXDomain"));
    assert_eq!(ask(&mut names, "10.1.0.1", "example.net", "A"), "to 192.0.2.53:53");
    assert_eq!(ask_at(&mut names, "fd00:1::1", "10.1.0.1", "web", "A"), "NoError aa | web. 0 IN A 10.1.0.2");
}

#[test]
fn who_is_not_on_the_network_is_refused() {
    let mut names = scene();
    for source in ["10.1.0.77", "10.2.0.3", "192.0.2.1", "127.0.0.1", "::1", "fe80::1", "10.2.0.1"] {
        assert_eq!(ask_at(&mut names, "10.1.0.1", source, "web", "A"), "Refused", "{source}");
        assert_eq!(ask_at(&mut names, "10.1.0.1", source, "example.net", "A"), "Refused", "{source}");
    }
    assert_eq!(ask_at(&mut names, "192.0.2.99", CLI, "web", "A"), "Refused", "no gateway");
    let refused: u64 = names.tallies().0.iter().map(|seen| seen.tally.refused).sum();
    assert_eq!(refused, 14);
}

#[test]
fn links_are_private() {
    check(&[
        (CLI, "server", "A", "NoError aa | server. 0 IN A 10.1.0.2"),
        (CLI, "SERVER.front", "A", "NXDomain aa"),
        (CLI, "nothing", "A", "NXDomain aa"),
        ("10.1.0.4", "server", "A", "NXDomain aa"),
    ]);
    // A link leads to the container of that name, and not to who calls himself so.
    let mut names = scene();
    let thief = Endpoint { names: vec!["web".into()], ..endpoint(20, 1, 120, "thief", &["10.1.0.66"]) };
    names.put_endpoint(thief).unwrap();
    for _ in 0..4 {
        assert_eq!(ask(&mut names, CLI, "server", "A"), "NoError aa | server. 0 IN A 10.1.0.2");
    }
}

#[test]
fn several_of_one_name_take_turns() {
    let mut names = scene();
    let bytes = question("pair", "A", None);
    let mut firsts = Vec::new();
    for _ in 0..4 {
        let mut out = Vec::new();
        let gateway = "10.1.0.1".parse().unwrap();
        names.answer(gateway, CLI.parse().unwrap(), &parse(&bytes), MAX_TCP, &mut out);
        assert_eq!(words(&out), "NoError aa | pair. 0 IN A 10.1.0.3 | pair. 0 IN A 10.1.0.4");
        firsts.push(out[out.len() - 17]);
        // As resolvers do, the other family in between.
        ask(&mut names, CLI, "pair", "AAAA");
    }
    assert_eq!(firsts[0], firsts[2]);
    assert_ne!(firsts[0], firsts[1]);
}

/// Names that several have are answered by those who are well.
#[test]
fn who_is_not_well_leaves_shared_names_to_others() {
    let mut names = scene();
    let sick = |number: u64, container, name: &str, address: &str| Endpoint {
        names: vec!["pair".into()],
        services: vec![Service { transport: Transport::Tcp, port: 80 }],
        is_well: false,
        ..endpoint(number, 1, container, name, &[address])
    };
    names.put_endpoint(sick(15, 104, "sick", "10.1.0.5")).unwrap();
    // Those who are well take turns as if they were alone.
    let mut firsts = std::collections::BTreeMap::new();
    for _ in 0..6 {
        let mut out = Vec::new();
        let bytes = question("pair", "A", None);
        names.answer("10.1.0.1".parse().unwrap(), CLI.parse().unwrap(), &parse(&bytes), MAX_TCP, &mut out);
        assert_eq!(words(&out), "NoError aa | pair. 0 IN A 10.1.0.3 | pair. 0 IN A 10.1.0.4");
        *firsts.entry(out[out.len() - 17]).or_insert(0) += 1;
    }
    assert_eq!(firsts.values().copied().collect::<Vec<i32>>(), [3, 3]);
    // A name of its own stays, and so do those who ask for services and addresses.
    assert_eq!(ask(&mut names, CLI, "sick", "A"), "NoError aa | sick. 0 IN A 10.1.0.5");
    assert!(ask(&mut names, CLI, "_80._tcp.pair", "SRV").contains("sick.front."), "nobody else has the service");
    assert!(ask(&mut names, CLI, "5.0.1.10.in-addr.arpa", "PTR").contains("sick.front."));
    let fit = Endpoint { is_well: true, ..sick(16, 105, "fit", "10.1.0.6") };
    names.put_endpoint(fit.clone()).unwrap();
    let services = ask(&mut names, CLI, "_80._tcp.pair", "SRV");
    assert!(services.contains("fit.front.") && !services.contains("sick"), "{services}");
    // Where nobody is well, whoever is there may be better than nobody.
    names.put_endpoint(Endpoint { is_well: false, ..fit }).unwrap();
    for number in [13, 14] {
        names.remove_endpoint(&id(number));
    }
    assert_eq!(ask(&mut names, WEB, "pair", "A"), "NoError aa | pair. 0 IN A 10.1.0.5 | pair. 0 IN A 10.1.0.6");
}

#[test]
fn back_from_addresses() {
    check(&[
        (CLI, "2.0.1.10.in-addr.arpa", "PTR", "NoError aa | 2.0.1.10.in-addr.arpa. 0 IN PTR web.front."),
        (WEB, "3.0.2.10.IN-ADDR.arpa", "PTR", "NoError aa | 3.0.2.10.IN-ADDR.arpa. 0 IN PTR db.back."),
        (CLI, "1.0.1.10.in-addr.arpa", "PTR", "NoError aa | 1.0.1.10.in-addr.arpa. 0 IN PTR host.internal."),
        (CLI, "1.0.0.127.in-addr.arpa", "PTR", "NoError aa | 1.0.0.127.in-addr.arpa. 0 IN PTR localhost."),
        (CLI, "2.0.1.10.in-addr.arpa", "TXT", "NoError aa"),
        // Ours, and nobody's, or none of its business.
        (CLI, "9.0.1.10.in-addr.arpa", "PTR", "NXDomain aa"),
        (CLI, "3.0.2.10.in-addr.arpa", "PTR", "NXDomain aa"),
        // Others'.
        (CLI, "1.0.168.192.in-addr.arpa", "PTR", "to 192.0.2.53:53"),
        (CLI, "0.1.10.in-addr.arpa", "PTR", "to 192.0.2.53:53"),
        (CLI, "02.0.1.10.in-addr.arpa", "PTR", "to 192.0.2.53:53"),
        (CLI, "256.0.1.10.in-addr.arpa", "PTR", "to 192.0.2.53:53"),
        (CLI, "1.2.0.1.10.in-addr.arpa", "PTR", "to 192.0.2.53:53"),
    ]);
    let mut names = scene();
    let v6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa";
    let want = format!("NoError aa | {v6}. 0 IN PTR web.front.");
    assert_eq!(ask(&mut names, CLI, v6, "PTR"), want);
    assert!(ask(&mut names, CLI, &v6.replacen('2', "9", 1), "PTR").starts_with("NXDomain"));
    assert_eq!(ask(&mut names, CLI, &v6[2..], "PTR"), "to 192.0.2.53:53");
}

#[test]
fn services() {
    let more = " | more web.front. 0 IN A 10.1.0.2 | more web.front. 0 IN AAAA fd00:1::2";
    check(&[
        (CLI, "_80._tcp.web", "SRV", &format!("NoError aa | _80._tcp.web. 0 IN SRV 0 0 80 web.front.{more}")),
        (CLI, "_8080._UDP.www", "SRV", &format!("NoError aa | _8080._UDP.www. 0 IN SRV 0 0 8080 web.front.{more}")),
        (CLI, "_80._tcp.web", "A", "NoError aa"),
        (CLI, "_81._tcp.web", "SRV", "NXDomain aa"),
        (CLI, "_80._udp.web", "SRV", "NXDomain aa"),
        (CLI, "_80._tcp.db", "SRV", "to 192.0.2.53:53"),
        (CLI, "_080._tcp.web", "SRV", "to 192.0.2.53:53"),
        (CLI, "_http._tcp.example.net", "SRV", "to 192.0.2.53:53"),
    ]);
}

#[test]
fn the_nearest_upstreams_are_asked_and_never_ourselves() {
    let mut names = scene();
    let upstream = |text: &str| vec![text.parse::<SocketAddr>().unwrap()];
    names.put_network(Network {
        upstreams: vec!["10.2.0.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap()],
        ..network(1, "front")
    });
    assert_eq!(ask(&mut names, CLI, "example.net", "A"), "to 192.0.2.2:53", "a gateway is left out");
    assert_eq!(ask(&mut names, "10.2.0.3", "example.net", "A"), "to 192.0.2.53:53", "of its own network only");
    let own = Endpoint { upstreams: upstream("192.0.2.7:5353"), ..endpoint(13, 1, 102, "cli", &[CLI]) };
    names.put_endpoint(own).unwrap();
    assert_eq!(ask(&mut names, CLI, "example.net", "A"), "to 192.0.2.7:5353");
    let own = Endpoint { search: vec!["lan".into()], ..endpoint(13, 1, 102, "cli", &[CLI]) };
    names.put_endpoint(own).unwrap();
    assert!(ask(&mut names, CLI, "web.lan", "A").starts_with("NXDomain"), "its own search list");
    assert_eq!(ask(&mut names, CLI, "web.example.org", "A"), "to 192.0.2.2:53", "instead of the host's");
    assert_eq!(ask(&mut names, "fd00:1::4", "example.net", "A"), "to 192.0.2.2:53");
}

#[test]
fn changes_leave_nothing_behind() {
    let mut names = scene();
    names.put_endpoint(endpoint(10, 1, 100, "renamed", &["10.1.0.5"])).unwrap();
    for gone in ["web", "www", "0123456789ab"] {
        assert!(ask(&mut names, CLI, gone, "A").starts_with("NXDomain"), "{gone}");
    }
    assert_eq!(ask(&mut names, CLI, "renamed", "A"), "NoError aa | renamed. 0 IN A 10.1.0.5");
    assert_eq!(ask_at(&mut names, "10.1.0.1", WEB, "cli", "A"), "Refused");
    // An address that moved before its old holder went.
    names.put_endpoint(endpoint(21, 1, 121, "next", &["10.1.0.5"])).unwrap();
    assert!(names.remove_endpoint(&id(10)));
    assert!(!names.remove_endpoint(&id(10)));
    assert_eq!(ask(&mut names, "10.1.0.5", "next", "A"), "NoError aa | next. 0 IN A 10.1.0.5");
    // A network by another name and gateway.
    let moved = Network { gateways: vec!["10.1.0.254".parse().unwrap()], ..network(1, "edge") };
    names.put_network(moved);
    assert_eq!(ask_at(&mut names, "10.1.0.1", CLI, "cli", "A"), "Refused");
    assert_eq!(ask_at(&mut names, "10.1.0.254", CLI, "cli.edge", "A"), "NoError aa | cli.edge. 0 IN A 10.1.0.3");
    assert!(names.remove_network(&id(1)));
    assert!(!names.remove_network(&id(1)));
    assert_eq!(ask_at(&mut names, "10.1.0.254", CLI, "cli", "A"), "Refused");
    for number in 2..5 {
        names.remove_network(&id(number));
    }
    assert_eq!(names.gateways().count(), 0);
    let (networks, endpoints) = names.tallies();
    assert!(networks.is_empty() && endpoints.is_empty());
}

#[test]
fn a_network_whose_name_is_no_domain_name_has_the_names_of_its_containers() {
    for name in ["x".repeat(64), "a..b".into(), "x.".repeat(128)] {
        let mut names = scene();
        names.put_network(network(9, &name));
        names.put_endpoint(endpoint(90, 9, 190, "solo", &["10.9.0.2"])).unwrap();
        let asker = "10.9.0.2";
        assert_eq!(ask(&mut names, asker, "solo", "A"), "NoError aa | solo. 0 IN A 10.9.0.2");
        let back = ask(&mut names, asker, "2.0.9.10.in-addr.arpa", "PTR");
        assert_eq!(back, "NoError aa | 2.0.9.10.in-addr.arpa. 0 IN PTR solo.");
        assert!(ask(&mut names, asker, "solo.example.net", "A").starts_with("to "), "only local names stay here");
    }
}

/// As on a bridge of somebody else's that several networks are on.
#[test]
fn networks_with_a_gateway_in_common_are_told_apart_by_who_asks() {
    let gateway = |number, name| Network { gateways: vec!["10.9.0.1".parse().unwrap()], ..network(number, name) };
    let mut names = Names::new();
    names.put_network(gateway(1, "one"));
    names.put_network(Network { internal: true, ..gateway(2, "other") });
    names.put_endpoint(endpoint(11, 1, 101, "aa", &["10.9.0.11"])).unwrap();
    names.put_endpoint(endpoint(12, 1, 102, "bb", &["10.9.0.12"])).unwrap();
    names.put_endpoint(endpoint(21, 2, 201, "cc", &["10.9.0.21"])).unwrap();
    let asks = |names: &mut Names, last: u8, name: &str| ask(names, &format!("10.9.0.{last}"), name, "A");
    assert_eq!(asks(&mut names, 11, "bb"), "NoError aa | bb. 0 IN A 10.9.0.12");
    assert!(asks(&mut names, 11, "cc").starts_with("NXDomain"), "it is on the other network");
    assert_eq!(asks(&mut names, 21, "cc"), "NoError aa | cc. 0 IN A 10.9.0.21");
    assert!(asks(&mut names, 21, "bb").starts_with("NXDomain"));
    assert!(asks(&mut names, 11, "example.net").starts_with("to "));
    assert!(asks(&mut names, 21, "example.net").starts_with("NXDomain"), "that one is internal");
    assert_eq!(asks(&mut names, 1, "bb"), "NoError aa | bb. 0 IN A 10.9.0.12", "the host itself");
    assert!(asks(&mut names, 99, "bb").starts_with("Refused"), "somebody on the LAN");
    // The place stays while one of them is there.
    assert!(names.remove_network(&id(1)));
    assert_eq!(names.gateways().collect::<Vec<_>>(), [("10.9.0.1".parse().unwrap(), None)]);
    assert_eq!(asks(&mut names, 21, "cc"), "NoError aa | cc. 0 IN A 10.9.0.21");
    assert!(asks(&mut names, 11, "bb").starts_with("Refused"));
    names.put_network(network(2, "other"));
    assert!(!names.is_gateway("10.9.0.1".parse().unwrap()), "it has moved");
    assert!(names.remove_network(&id(2)));
    assert_eq!(names.gateways().count(), 0);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let mut names = scene();
    let error = names.put_endpoint(endpoint(30, 77, 1, "x", &[])).unwrap_err();
    assert!(matches!(error, NamesError::UnknownNetwork { .. }));
    // A name that nobody can ask for does not keep its endpoint from its other names.
    let long = Endpoint { names: vec!["short".into()], ..endpoint(31, 1, 131, &"y".repeat(100), &["10.1.0.31"]) };
    names.put_endpoint(long).unwrap();
    assert_eq!(ask(&mut names, CLI, "short", "A"), "NoError aa | short. 0 IN A 10.1.0.31");
    assert!(ask(&mut names, CLI, "31.0.1.10.in-addr.arpa", "PTR").starts_with("NoError aa | auth"));
}

#[test]
fn a_crowd_is_truncated_over_udp_and_whole_over_tcp() {
    let mut names = Names::new();
    names.put_network(network(1, "front"));
    for number in 0..200u64 {
        let crowd = Endpoint {
            names: vec!["crowd".into()],
            ..endpoint(100 + number, 1, 300 + number, &format!("n{number}"), &[&format!("10.1.1.{number}")])
        };
        names.put_endpoint(crowd).unwrap();
    }
    for (edns, limit, records) in [(None, 512, 30), (Some(800), 800, 47), (Some(4096), 1232, 74), (Some(0), 512, 29)] {
        let bytes = question("crowd", "A", edns);
        let query = parse(&bytes);
        assert_eq!(query.udp_limit(), limit);
        let mut out = Vec::new();
        let (gateway, source) = ("10.1.0.1".parse().unwrap(), "10.1.1.7".parse().unwrap());
        let decision = names.answer(gateway, source, &query, query.udp_limit(), &mut out);
        assert_eq!(decision, Decision::Answered(Local::Found));
        assert!(out.len() <= limit && out.len() + 16 > limit, "{} of {limit}", out.len());
        let text = words(&out);
        assert!(text.starts_with("NoError aa tc |"), "{text}");
        assert_eq!(text.matches(" IN A ").count(), records);
        names.answer(gateway, source, &query, MAX_TCP, &mut out);
        assert_eq!(words(&out).matches(" IN A ").count(), 200);
    }
}
