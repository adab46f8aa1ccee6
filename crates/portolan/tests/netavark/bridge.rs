//! Bridges, managed and not, with their options, and what separates them.

use std::net::IpAddr;
use std::time::Duration;

use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::Family;
use portolan_kernel::rtnl::link::{self, LinkChange};
use portolan_lab::InNetns;
use portolan_lab::probe::{Probe, ping, tcp_probe};
use portolan_lab::server::TcpServer;
use serde_json::{Value, json};

use crate::common::{FAMILIES, LONG, SHORT, addresses, any, at, choose, host_ip, interface, links, mac, neighbour_ip};
use crate::podman::{Pod, Podman, bridge, ip, merged};

/// The address that a server at neighbour `n` sees.
#[track_caller]
pub(crate) fn seen(podman: &Podman, from: &impl InNetns, to: IpAddr) -> IpAddr {
    let server = TcpServer::start(&podman.world.n, at(to, 7000), "n").unwrap();
    let probe = tcp_probe(from, at(to, 7000), LONG);
    assert_eq!(probe.banner(), Some("n"), "{to}: {probe}");
    server.last_client().unwrap().ip()
}

#[test]
fn a_managed_bridge_comes_and_goes() {
    let Some(podman) = Podman::or_skip("nv-managed") else { return };
    let host = podman.world.untouched();
    let network = bridge("web", 1);
    for is_list in [false, true] {
        let mut pod = podman.pod(if is_list { "list" } else { "object" }).at(&network, 5);
        pod.is_list = is_list;
        let status = podman.up(&pod);
        let eth0 = interface(&pod, "eth0").unwrap();
        let text: Vec<String> = eth0.mac.unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = json!({"web": {"dns_search_domains": [], "dns_server_ips": [], "interfaces": {"eth0": {
            "mac_address": text.join(":"),
            "subnets": [
                {"gateway": "10.9.1.1", "ipnet": "10.9.1.5/24"}, {"gateway": "fd09:1::1", "ipnet": "fd09:1::5/64"},
            ],
        }}}});
        assert_eq!(status, expected);
        for family in FAMILIES {
            assert!(addresses(&pod, "eth0").contains(&ip(family, 1, 5)));
            assert!(addresses(&podman.world.h, "podman1").contains(&ip(family, 1, 1)));
            assert!(ping(&pod, ip(family, 1, 1), LONG).is_open(), "its gateway");
            assert_eq!(seen(&podman, &pod, neighbour_ip(family)), host_ip(family), "masqueraded");
            assert_eq!(ping(&podman.world.n, ip(family, 1, 5), SHORT), Probe::Unreachable(101), "nobody knows the way");
        }
        podman.world.verify();
        podman.down(&pod);
        assert_eq!(interface(&pod, "eth0"), None);
        podman.world.assert_untouched(&host, "setup and teardown");
    }
}

#[test]
fn an_unmanaged_bridge_is_somebody_elses() {
    let Some(podman) = Podman::or_skip("nv-unmanaged") else { return };
    let network = merged(bridge("lan", 1), json!({"network_interface": "br0", "options": {"mode": "unmanaged"}}));
    let (one, other) = (podman.pod("one").at(&network, 5), podman.pod("other").at(&network, 6));
    assert_eq!(
        podman.refused(&one),
        "in unmanaged mode, the bridge must already exist on the host: Netlink error: No such device (os error 19)"
    );
    podman.foreign_bridge("br0", &["10.9.1.1/24", "fd09:1::1/64"]);
    let before = podman.world.untouched();
    podman.up(&one);
    podman.up(&other);
    for family in FAMILIES {
        assert!(ping(&one, ip(family, 1, 1), LONG).is_open(), "the host by its own address");
        assert!(ping(&one, ip(family, 1, 6), LONG).is_open(), "each other");
        assert_eq!(one.default_routes(family), [(ip(family, 1, 1), Some(100))]);
    }
    podman.world.verify();
    podman.down(&one);
    assert!(ping(&other, ip(FAMILIES[0], 1, 1), LONG).is_open(), "the other one stays");
    podman.down(&other);
    podman.world.assert_untouched(&before, "two containers on br0");
}

#[test]
fn a_bridge_that_is_not_ours_is_named() {
    let Some(podman) = Podman::or_skip("nv-foreign") else { return };
    podman.foreign_bridge("podman1", &["10.9.1.1/24"]);
    let pod = podman.pod("c").at(&bridge("web", 1), 5);
    let error = podman.refused(&pod);
    assert!(error.contains("podman1") && error.contains("another network backend"), "{error}");
    // What it advises, done.
    assert!(error.contains("--opt mode=unmanaged --interface-name podman1;"), "{error}");
    let joined = podman.pod("joined").at(&merged(bridge("web", 1), json!({"options": {"mode": "unmanaged"}})), 6);
    podman.up(&joined);
    assert!(ping(&joined, ip(FAMILIES[0], 1, 1), LONG).is_open());
    // Something else has the name.
    let other = podman.pod("d").at(&merged(bridge("lan", 2), json!({"network_interface": "eth0"})), 5);
    let error = podman.refused(&other);
    assert!(error.contains("`eth0`"), "{error}");
}

/// All sixteen pairs of levels, in both directions and families.
#[test]
fn levels_of_isolation() {
    let Some(podman) = Podman::or_skip("nv-isolate") else { return };
    let levels = [Some("strict"), Some("true"), Some("false"), None];
    // Two networks of each level, so that a level meets itself.
    let pods: Vec<(Option<&str>, u8, Pod)> = (0..8u8)
        .map(|n| {
            let level = levels[usize::from(n / 2)];
            let options = level.map_or(json!({}), |level| json!({"options": {"isolate": level}}));
            let pod = podman.pod(&format!("c{n}")).at(&merged(bridge(&format!("net{n}"), n), options), 5);
            podman.up(&pod);
            (level, n, pod)
        })
        .collect();
    let _servers: Vec<_> =
        pods.iter().map(|(_, n, pod)| TcpServer::start(pod, any(Family::V6, 80), &n.to_string()).unwrap()).collect();
    let is_open = |from: Option<&str>, to: Option<&str>| match (from, to) {
        (None | Some("strict"), _) | (_, None | Some("strict")) => false,
        (from, to) => from == Some("false") || to == Some("false"),
    };
    std::thread::scope(|scope| {
        for (level, n, pod) in &pods {
            for (other, m, _) in pods.iter().filter(|(_, m, _)| m != n) {
                scope.spawn(move || {
                    for family in FAMILIES {
                        let patience = if is_open(*level, *other) { LONG } else { SHORT };
                        let probe = tcp_probe(pod, at(ip(family, *m, 5), 80), patience);
                        let what = format!("{family:?} {level:?} ({n}) to {other:?} ({m}): {probe}");
                        assert_eq!(probe.is_open(), is_open(*level, *other), "{what}");
                        assert_eq!(probe.is_open(), probe.banner() == Some(m.to_string().as_str()), "{what}");
                    }
                });
            }
        }
    });
    // The twin of silence: each server is there, for its own network.
    for (_, n, pod) in &pods {
        for family in FAMILIES {
            assert!(tcp_probe(pod, at(ip(family, *n, 5), 80), LONG).is_open());
        }
    }
    podman.world.verify();
}

/// Whoever misspells it asked for a wall, so there is none to be left out.
#[test]
fn a_level_of_isolation_that_is_none() {
    let Some(podman) = Podman::or_skip("nv-isolate-bad") else { return };
    for level in ["srtict", "1", "no", "True", ""] {
        let network = merged(bridge("a", 1), json!({"options": {"isolate": level}}));
        assert_eq!(
            podman.refused(&podman.pod(&format!("c{level}")).at(&network, 5)),
            format!("invalid isolate option {level:?}")
        );
    }
}

#[test]
fn the_mtu_is_the_options_or_the_uplinks() {
    let Some(podman) = Podman::or_skip("nv-mtu") else { return };
    let mtus = |pod: &Pod, bridge: &str| {
        (interface(pod, "eth0").unwrap().mtu, interface(&podman.world.h, bridge).unwrap().mtu)
    };
    let chosen = podman.pod("chosen").at(&merged(bridge("a", 1), json!({"options": {"mtu": "1350"}})), 5);
    podman.up(&chosen);
    assert_eq!(mtus(&chosen, "podman1"), (1350, 1350));
    let mut batch = Batch::new();
    link::set(&mut batch, "eth0", &LinkChange { mtu: Some(1400), ..LinkChange::default() });
    podman.world.h.route_socket().unwrap().transact(&batch).unwrap();
    let followed = podman.pod("followed").at(&bridge("b", 2), 5);
    podman.up(&followed);
    assert_eq!(mtus(&followed, "podman2"), (1400, 1400));
    let zero = podman.pod("zero").at(&merged(bridge("z", 4), json!({"options": {"mtu": "0"}})), 5);
    podman.up(&zero);
    assert_eq!(mtus(&zero, "podman4"), (1400, 1400), "0 is none");
    let bad = podman.pod("bad").at(&merged(bridge("c", 3), json!({"options": {"mtu": "abc"}})), 5);
    assert_eq!(podman.refused(&bad), "unable to parse \"mtu\": invalid digit found in string");
    let small = podman.pod("small").at(&merged(bridge("s", 5), json!({"options": {"mtu": "10"}})), 5);
    let error = podman.refused(&small);
    assert!(error.contains("`mtu=10`"), "{error}");
}

#[test]
fn names_of_interfaces_on_the_host() {
    let Some(podman) = Podman::or_skip("nv-host-end") else { return };
    let network = bridge("web", 1);
    let named = |name: &str, end: &str, host| {
        podman.pod(name).at_with(&network, host, json!({"options": {"host_interface_name": end}}))
    };
    let one = named("one", "web0", 5);
    podman.up(&one);
    let end = interface(&podman.world.h, "web0").expect("the name asked for");
    assert_eq!(end.master, interface(&podman.world.h, "podman1").map(|bridge| bridge.index));
    // One of ours, one of the host, one in the container, and no name at all.
    let taken = |end: &str| {
        format!(
            "create veth pair: interface eth0 already exists on container namespace or {end} exists on host namespace: \
             Netlink error: File exists (os error 17)"
        )
    };
    assert_eq!(podman.refused(&named("two", "web0", 6)), taken("web0"));
    assert_eq!(podman.refused(&named("three", "eth0", 7)), taken("eth0"));
    let inside = named("inside", "web1", 9);
    let _lan = podman.world.lab.lan("inner", &[(&inside.host, "eth0", &[])]).unwrap();
    assert_eq!(podman.refused(&inside), taken("web1"));
    let bad = podman.refused(&named("four", "far/too", 8));
    assert!(bad.contains("`far/too`"), "{bad}");
    podman.down(&one);
    assert!(!links(&podman.world.h).iter().any(|link| link.name == "web0"));
}

#[test]
fn a_chosen_mac() {
    let Some(podman) = Podman::or_skip("nv-mac") else { return };
    let network = bridge("web", 1);
    let forms = [("c1", "aa:bb:cc:dd:ee:01", 5), ("c2", "AA-BB-CC-DD-EE-02", 6)];
    for (name, text, host) in forms {
        let pod = podman.pod(name).at_with(&network, host, json!({"static_mac": text}));
        let status = podman.up(&pod);
        let canonical = text.to_lowercase().replace('-', ":");
        assert_eq!(status["web"]["interfaces"]["eth0"]["mac_address"], canonical);
        assert_eq!(interface(&pod, "eth0").unwrap().mac, Some(mac(&canonical)));
        assert!(FAMILIES.iter().all(|family| ping(&pod, ip(*family, 1, 1), LONG).is_open()));
    }
    let again = podman.pod("c3").at_with(&network, 7, json!({"static_mac": "aa:bb:cc:dd:ee:01"}));
    assert!(podman.refused(&again).contains("aa:bb:cc:dd:ee:01"));
    let bad = podman.pod("c4").at_with(&network, 8, json!({"static_mac": "abc"}));
    assert!(podman.refused(&bad).starts_with("unable to parse mac address abc: "));
}

#[test]
fn the_source_towards_the_world() {
    let Some(podman) = Podman::or_skip("nv-outbound") else { return };
    for address in ["10.0.1.77/24", "fd00:1::77/64"] {
        podman.world.h.add_address("eth0", address).unwrap();
    }
    let chosen = json!({"options": {"outbound_addr4": "10.0.1.77", "outbound_addr6": "fd00:1::77"}});
    let pod = podman.pod("chosen").at(&merged(bridge("a", 1), chosen), 5);
    let plain = podman.pod("plain").at(&bridge("b", 2), 5);
    podman.up(&pod);
    podman.up(&plain);
    for family in FAMILIES {
        let expected: IpAddr = choose(family, "10.0.1.77", "fd00:1::77").parse().unwrap();
        assert_eq!(seen(&podman, &pod, neighbour_ip(family)), expected);
        let own = seen(&podman, &podman.world.h, neighbour_ip(family));
        assert_eq!(seen(&podman, &plain, neighbour_ip(family)), own, "what the host takes for itself");
    }
    for (key, value) in [("outbound_addr4", "fd00::1"), ("outbound_addr6", "10.0.0.1"), ("outbound_addr4", "x")] {
        let bad = merged(bridge("c", 3), json!({"options": {key: value}}));
        let pod = podman.pod(&format!("bad-{}", value.replace(':', "-"))).at(&bad, 5);
        let error = podman.refused(&pod);
        assert!(error.starts_with(&format!("unable to parse \"{key}\": ")), "{error}");
    }
}

#[test]
fn several_addresses_and_subnets() {
    let Some(podman) = Podman::or_skip("nv-addresses") else { return };
    let network = merged(
        bridge("many", 1),
        json!({"subnets": [
            {"subnet": "10.9.1.0/24", "gateway": "10.9.1.1"}, {"subnet": "10.9.2.0/24", "gateway": "10.9.2.1"},
            {"subnet": "fd09:1::/64", "gateway": "fd09:1::1"}, {"subnet": "fd09:2::/64", "gateway": "fd09:2::1"},
        ]}),
    );
    let ips = ["10.9.1.5", "10.9.1.6", "10.9.2.5", "fd09:1::5", "fd09:1::6", "fd09:2::5"];
    let pod = podman.pod("c").at_with(&network, 5, json!({"static_ips": ips}));
    let status = podman.up(&pod);
    let nets: Vec<&str> = status["many"]["interfaces"]["eth0"]["subnets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|subnet| subnet["ipnet"].as_str().unwrap().split('/').next().unwrap())
        .collect();
    assert_eq!(nets, ips);
    for text in ips {
        let ip: IpAddr = text.parse().unwrap();
        assert!(addresses(&pod, "eth0").contains(&ip), "{ip}");
        assert!(ping(&podman.world.h, ip, LONG).is_open(), "{ip}");
    }
    // Neighbours by every address.
    let other = podman.pod("d").at_with(&network, 7, json!({"static_ips": ["10.9.2.7", "fd09:2::7"]}));
    podman.up(&other);
    for text in ["10.9.2.5", "fd09:2::5", "10.9.1.6", "fd09:1::6"] {
        assert!(ping(&other, text.parse().unwrap(), LONG).is_open(), "{text}");
    }
    let outside = podman.pod("e").at_with(&network, 8, json!({"static_ips": ["10.9.3.5"]}));
    assert_eq!(podman.refused(&outside), "not all static IPs matched a subnet: expected 1, got 0");
    let taken = podman.pod("f").at_with(&network, 8, json!({"static_ips": ["10.9.1.6"]}));
    let error = podman.refused(&taken);
    assert!(error.contains("10.9.1.6") && error.contains("`c`"), "{error}");
}

#[test]
fn an_internal_network_leads_nowhere() {
    let Some(podman) = Podman::or_skip("nv-internal") else { return };
    let network = merged(bridge("inside", 1), json!({"internal": true}));
    let (pod, other) = (podman.pod("c").at(&network, 5), podman.pod("d").at(&network, 6));
    let open = podman.pod("open").at(&bridge("open", 2), 5);
    for pod in [&pod, &other, &open] {
        podman.up(pod);
    }
    for family in FAMILIES {
        assert_eq!(pod.default_routes(family), []);
        assert!(ping(&pod, ip(family, 1, 6), LONG).is_open(), "its own network");
        assert!(!ping(&pod, neighbour_ip(family), SHORT).is_open());
        assert!(ping(&open, neighbour_ip(family), LONG).is_open(), "another network's twin");
        // Even by a route that somebody adds.
        pod.host.add_default_route(&ip(family, 1, 1).to_string()).unwrap();
        assert!(!ping(&pod, neighbour_ip(family), SHORT).is_open());
        assert!(!ping(&pod, ip(family, 2, 5), SHORT).is_open());
        assert!(!ping(&open, ip(family, 1, 5), SHORT).is_open());
    }
    podman.world.verify();
}

/// Nobody chooses addresses: the interface is there, on the bridge, and bare.
#[test]
fn no_addresses_at_all() {
    let Some(podman) = Podman::or_skip("nv-ipam-none") else { return };
    let network = merged(bridge("bare", 1), json!({"subnets": null, "ipam_options": {"driver": "none"}}));
    let pod = podman.pod("c").at(&network, 0);
    let status = podman.up(&pod);
    assert_eq!(status["bare"]["interfaces"]["eth0"]["subnets"], json!([]));
    assert!(addresses(&pod, "eth0").iter().all(|ip| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())));
    let end = interface(&pod, "eth0").unwrap();
    assert!(end.up && end.lower_up);
    // Two of them give themselves addresses, and reach each other.
    let other = podman.pod("d").at(&network, 0);
    podman.up(&other);
    pod.host.add_address("eth0", "10.77.0.1/24").unwrap();
    other.host.add_address("eth0", "10.77.0.2/24").unwrap();
    assert!(ping(&pod, "10.77.0.2".parse().unwrap(), LONG).is_open());
    podman.down(&pod);
    podman.down(&other);
}

/// A network that `create` of another backend has put on the bridge of one that is there.
#[test]
fn a_bridge_of_another_network() {
    let Some(podman) = Podman::or_skip("nv-shared") else { return };
    let shared =
        |name: &str, n: u8, keys| merged(merged(bridge(name, n), json!({"network_interface": "podman9"})), keys);
    podman.up(&podman.pod("first").at(&shared("a", 1, json!({})), 5));
    for options in [json!({}), json!({"options": {"vlan": "20"}})] {
        assert_eq!(
            podman.refused(
                &podman.pod(&format!("c{}", options.as_object().unwrap().len())).at(&shared("b", 2, options), 5)
            ),
            "network `a` has that bridge already: several networks, as VLANs or not, share one only with mode=unmanaged"
        );
    }
}

/// VLANs on the bridge; kernels without them are named in the refusal.
#[test]
fn vlans_on_a_bridge() {
    let Some(podman) = Podman::or_skip("nv-vlan") else { return };
    let tagged = |name: &str, n: u8, vlan: &str| {
        merged(bridge(name, n), json!({"network_interface": "podman9", "options": {"vlan": vlan}}))
    };
    let pod = podman.pod("c").at(&tagged("a", 1, "20"), 5);
    let bad = podman.pod("bad").at(&tagged("b", 2, "4095"), 5);
    assert_eq!(podman.refused(&bad), "vlan must be between 0 and 4094");
    match podman.setup(&pod) {
        Ok(_) => {}
        Err(error) if error.contains("VLAN filtering") => {
            assert!(error.contains("this kernel lacks"), "{error}");
            eprintln!("SKIP: `nv-vlan`: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let state = interface(&podman.world.h, "podman9").unwrap().bridge.unwrap();
    assert!(state.vlan_filtering);
    let same = podman.pod("d").at(&tagged("a", 1, "20"), 6);
    podman.up(&same);
    assert!(ping(&pod, ip(FAMILIES[0], 1, 6), LONG).is_open());
    podman.world.verify();
}

/// A bridge in a VRF that is there; one that is not is refused in netavark's words.
#[test]
fn a_bridge_in_a_vrf() {
    let Some(podman) = Podman::or_skip("nv-vrf") else { return };
    let network = merged(bridge("a", 1), json!({"options": {"vrf": "blue"}}));
    let pod = podman.pod("c").at(&network, 5);
    let error = podman.refused(&pod);
    assert_eq!(error, "get vrf to set up bridge interface: Netlink error: No such device (os error 19)");
    let mut ip = std::process::Command::new("ip");
    ip.args(["link", "add", "blue", "type", "vrf", "table", "100"]);
    let made = podman.world.h.adopt(ip).unwrap().output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP: `nv-vrf`: the kernel makes no VRF");
        return;
    }
    podman.up(&pod);
    let (vrf, made) = (interface(&podman.world.h, "blue").unwrap(), interface(&podman.world.h, "podman1").unwrap());
    assert_eq!(made.master, Some(vrf.index));
}

#[test]
fn two_networks_of_one_container() {
    let Some(podman) = Podman::or_skip("nv-two") else { return };
    let pod = podman.pod("c").at(&bridge("a", 1), 5).at(&bridge("b", 2), 5);
    let status = podman.up(&pod);
    assert_eq!(status.as_object().unwrap().keys().collect::<Vec<_>>(), ["a", "b"]);
    assert!(status["b"]["interfaces"]["eth1"].is_object(), "{status}");
    for family in FAMILIES {
        for n in [1, 2] {
            assert!(ping(&pod, ip(family, n, 1), LONG).is_open());
        }
        assert!(ping(&pod, neighbour_ip(family), Duration::from_secs(5)).is_open());
    }
    podman.world.verify();
}

/// The kernel numbers interfaces as they come, and who lists them sees them so: in the order of the request, whatever they are
/// called.
#[test]
fn interfaces_are_made_in_the_order_of_the_request() {
    let Some(podman) = Podman::or_skip("nv-order") else { return };
    let lan = merged(bridge("lan", 9), json!({"driver": "macvlan", "network_interface": "eth0"}));
    let networks = [("z", 1), ("a", 2), ("m", 3), ("k", 4)].map(|(name, n)| bridge(name, n));
    for (name, reversed) in [("forth", false), ("back", true)] {
        let mut order: Vec<_> = networks.iter().take(2).chain([&lan]).chain(&networks[2..]).collect();
        if reversed {
            order.reverse();
        }
        let mut pod = podman.pod(name);
        pod.is_list = true;
        for network in &order {
            let ifname = format!("if-{}", network["name"].as_str().unwrap());
            pod = pod.at_with(network, if reversed { 6 } else { 5 }, json!({"interface_name": ifname}));
        }
        podman.up(&pod);
        let index = |network: &&Value| {
            let ifname = format!("if-{}", network["name"].as_str().unwrap());
            interface(&pod, &ifname).unwrap().index
        };
        let indexes: Vec<u32> = order.iter().map(index).collect();
        assert!(indexes.is_sorted(), "{name}: {indexes:?}");
        for n in 1..=4 {
            assert!(ping(&pod, ip(FAMILIES[0], n, 1), LONG).is_open());
        }
        podman.world.verify();
        podman.down(&pod);
    }
}
