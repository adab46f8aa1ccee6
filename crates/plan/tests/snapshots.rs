//! A host with networks of every kind, as nft text, in words and as iptables would list it.
//!
//! `PORTOLAN_BLESS=1 cargo test -p portolan-plan` rewrites `tests/snapshots/*.txt`; review the difference.

mod sample;

use std::path::Path;

use portolan_model::{Endpoint, Family, FirewallDriver, Network};
use portolan_plan::{
    ContainerView, Element, Firewall, Object, Objects, Setting, base_objects, container_objects, explain,
    host_end_name, iptables, network_objects, ruleset,
};
use sample::{container, endpoint, internal, network, ptp, publication};

const ROOT: &str = "/var/lib/portolan";

fn setting(path: &str) -> Setting {
    Setting { path: path.to_owned(), value: "1".to_owned(), before: "0".to_owned() }
}

/// Four bridge networks, three containers, ports published in every way.
fn on_bridges() -> Objects {
    let web = network("web", 1, &["172.20.0.0/24", "fd00:20::/64"], &[]);
    let lone = internal("lone", 2, &["172.20.1.0/24-"], &[("gateway_mode_ipv4", "isolated")]);
    let lab = network(
        "lab",
        3,
        &["203.0.113.0/24", "2001:db8::/64"],
        &[("gateway_mode_ipv4", "routed"), ("gateway_mode_ipv6", "routed")],
    );
    let quiet = network(
        "quiet",
        4,
        &["172.20.2.0/24", "172.20.3.0/24"],
        &[("icc", "false"), ("guard", "false"), ("host_ipv4", "10.0.1.9"), ("trusted_host_interfaces", "wg0")],
    );

    let c1 = container("c1", 0x11);
    let c1 = ContainerView {
        endpoints: vec![
            (endpoint(&c1, &web, 0, &["172.20.0.2", "fd00:20::2"]), web.clone()),
            (endpoint(&c1, &lone, 1, &["172.20.1.2"]), lone.clone()),
        ],
        container: c1,
        publications: [
            "1880:1880",
            "8000-17999:8000-17999",
            "2000-2003:3000-3003",
            "127.0.0.1:8080:80",
            "127.0.0.1:9000-9009:9000-9009/udp",
            "10.0.1.1:443:8443",
            "[::1]:8080:80",
            "[2001:db8:1::1]:53:5353/udp",
            "0.0.0.0:2905:2905/sctp",
        ]
        .map(publication)
        .to_vec(),
    };
    let c2 = container("c2", 0x12);
    let c2 = ContainerView {
        endpoints: vec![(endpoint(&c2, &quiet, 0, &["172.20.2.2", "172.20.3.2"]), quiet.clone())],
        container: c2,
        publications: vec![publication("53:53/udp")],
    };
    let c3 = container("c3", 0x13);
    let c3 = ContainerView {
        endpoints: vec![(endpoint(&c3, &lab, 0, &["203.0.113.2", "2001:db8::2"]), lab.clone())],
        container: c3,
        publications: vec![publication("80:8080"), publication("7000-7009:7000-7009/udp")],
    };

    let closed = ["eth0", "wlan0"].map(|name| (Family::V4, name.parse().unwrap()));
    let mut objects = base_objects(
        &Firewall::nftables("portolan"),
        &[setting("net/ipv4/ip_forward"), setting("net/ipv6/conf/all/forwarding")],
        &closed,
    );
    for network in [&web, &lone, &lab, &quiet] {
        objects.extend(network_objects(ROOT, network));
    }
    for view in [&c1, &c2, &c3] {
        objects.extend(container_objects(ROOT, view));
    }
    objects
}

/// Those, and a container on two networks without a bridge.
fn objects() -> Objects {
    let direct = ptp("direct", 5, &["172.20.4.0/24", "172.20.5.0/24", "fd00:24::/64"], &[]);
    let hushed =
        Network { internal: true, ..ptp("hushed", 6, &["172.20.6.0/24"], &[("icc", "false"), ("isolate", "true")]) };
    let c4 = container("c4", 0x14);
    let endpoint = |network: &Network, index: u8, addresses: &[&str]| {
        let made = endpoint(&c4, network, index, addresses);
        let host_end = host_end_name(network.id, c4.id, &made.ifname, 0);
        (Endpoint { host_end, ..made }, network.clone())
    };
    let c4 = ContainerView {
        endpoints: vec![
            endpoint(&direct, 0, &["172.20.4.2", "172.20.5.2", "fd00:24::2"]),
            endpoint(&hushed, 1, &["172.20.6.2"]),
        ],
        container: c4.clone(),
        publications: vec![publication("8888:88")],
    };
    let mut objects = on_bridges();
    for network in [&direct, &hushed] {
        objects.extend(network_objects(ROOT, network));
    }
    objects.extend(container_objects(ROOT, &c4));
    objects
}

fn elements() -> Vec<Element> {
    elements_of(objects())
}

fn elements_of(objects: Objects) -> Vec<Element> {
    let only_elements = |object| match object {
        Object::Element(element) => Some(element),
        _ => None,
    };
    objects.into_iter().filter_map(only_elements).collect()
}

/// Compares `actual` with `tests/snapshots/NAME.txt`, or makes it so.
fn assert_snapshot(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name).with_extension("txt");
    if std::env::var_os("PORTOLAN_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (number, (was, is)) in expected.lines().zip(actual.lines()).enumerate() {
        assert_eq!(is, was, "{}:{} differs (PORTOLAN_BLESS=1 accepts)", path.display(), number + 1);
    }
    assert_eq!(actual, expected, "{} differs in length (PORTOLAN_BLESS=1 accepts)", path.display());
}

fn sentences(all: &[explain::Sentence]) -> String {
    let mut text = String::new();
    let mut owner = "";
    for sentence in all {
        if sentence.owner != owner {
            owner = &sentence.owner;
            text += &format!("{owner}\n");
        }
        text += &format!("  {}\n", sentence.text);
    }
    text
}

#[test]
fn ruleset_as_nft_text() {
    assert_snapshot("ruleset", &ruleset::render("portolan", &elements()));
}

#[test]
fn ruleset_in_words() {
    assert_snapshot("words", &sentences(&explain::words(&elements())));
}

#[test]
fn constant_rules_in_words() {
    assert_snapshot("constant_rules", &sentences(&explain::constant_rules()));
}

#[test]
fn ruleset_as_iptables() {
    assert_snapshot("iptables", &explain::iptables(&elements()));
}

#[test]
fn rules_for_iptables_restore() {
    let firewall = Firewall { driver: FirewallDriver::Iptables, name: "portolan".to_owned() };
    for (family, name) in [(Family::V4, "iptables_restore"), (Family::V6, "ip6tables_restore")] {
        assert_snapshot(name, &iptables::render(&firewall, family, &elements_of(on_bridges())));
    }
}

#[test]
fn objects_in_order_of_creation() {
    let text: String = objects().iter().map(|(_, object)| format!("{object}\n")).collect();
    assert_snapshot("objects", &text);
}

#[test]
fn order_of_the_elements_does_not_matter() {
    let forward = elements();
    let backward: Vec<Element> = forward.iter().rev().cloned().collect();
    assert_eq!(explain::words(&forward), explain::words(&backward));
    assert_eq!(explain::iptables(&forward), explain::iptables(&backward));
}

#[test]
fn every_sentence_has_words_of_its_own() {
    for sentence in explain::words(&elements()) {
        assert!(!sentence.text.starts_with('`'), "no sentence for {sentence}");
        assert!(!sentence.text.contains('_') && !sentence.text.ends_with('.'), "{sentence}");
    }
}

#[test]
fn plugins_table_as_nft_text() {
    assert_snapshot("plugins", &ruleset::render_plugins([]));
}
