//! Interfaces of the host's own links: macvlan and ipvlan.

use portolan_kernel::rtnl::Family;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;
use serde_json::{Value, json};

use crate::common::upstream::output;
use crate::common::{FAMILIES, LONG, SHORT, addresses, any, at, host_ip, interface, neighbour_ip, pick};
use crate::podman::{Podman, id_of, merged};

/// A network on the LAN of host `h`, whose gateway is the neighbour.
fn on_lan(name: &str, driver: &str) -> Value {
    json!({
        "name": name, "id": id_of(name), "driver": driver, "network_interface": "eth0", "subnets": [
            {"subnet": "10.0.1.0/24", "gateway": "10.0.1.2"}, {"subnet": "fd00:1::/64", "gateway": "fd00:1::2"},
        ],
        "ipv6_enabled": true, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"},
    })
}

fn mode(name: &str, mode: &str) -> Value {
    merged(on_lan(name, "macvlan"), json!({"options": {"mode": mode}}))
}

fn ip(family: Family, host: u8) -> std::net::IpAddr {
    pick(family, &format!("10.0.1.{host}"), &format!("fd00:1::{host:x}"))
}

/// Named as the host's own `eth0`, on it, and a neighbour to the LAN.
#[test]
fn a_macvlan_is_a_neighbour_of_the_lan() {
    let Some(podman) = Podman::or_skip("nv-macvlan") else { return };
    let host = podman.world.untouched();
    let network = on_lan("lan", "macvlan");
    let (one, two) = (podman.pod("one").at(&network, 50), podman.pod("two").at(&network, 51));
    let status = podman.up(&one);
    podman.up(&two);
    assert_eq!(status["lan"]["dns_server_ips"], json!([]));
    let eth0 = interface(&one, "eth0").unwrap();
    assert_eq!(eth0.kind.as_deref(), Some("macvlan"));
    let mac: Vec<String> = eth0.mac.unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(status["lan"]["interfaces"]["eth0"]["mac_address"], mac.join(":"));
    let _server = TcpServer::start(&one, any(Family::V6, 80), "one").unwrap();
    for family in FAMILIES {
        assert!(addresses(&one, "eth0").contains(&ip(family, 50)));
        assert_eq!(one.default_routes(family), [(neighbour_ip(family), Some(99))]);
        for from in [&podman.world.n, &two.host] {
            let probe = tcp_probe(from, at(ip(family, 50), 80), LONG);
            assert_eq!(probe.banner(), Some("one"), "{probe}");
        }
        assert!(!ping(&one, host_ip(family), SHORT).is_open(), "the parent is no neighbour");
    }
    podman.world.verify();
    podman.down(&one);
    podman.down(&two);
    assert_eq!(interface(&one, "eth0"), None);
    podman.world.assert_untouched(&host, "macvlan");
}

#[test]
fn modes_of_macvlan() {
    let Some(podman) = Podman::or_skip("nv-macvlan-modes") else { return };
    // What they can reach: each other, and the neighbour.
    for (n, name, each_other, neighbour) in [
        (0u8, "bridge", true, true),
        (1, "private", false, true),
        (2, "vepa", false, true),
        (3, "source", false, false),
    ] {
        let network = mode(&format!("in-{name}"), name);
        let pod = |which: u8| podman.pod(&format!("{name}{which}")).at(&network, 60 + 10 * n + which);
        let (one, two) = (pod(1), pod(2));
        podman.up(&one);
        podman.up(&two);
        let shown = output(&one, "ip", &["-d", "link", "show", "eth0"]);
        assert!(shown.is_none_or(|text| text.contains(&format!("macvlan mode {name} "))), "{name}");
        for family in FAMILIES {
            let patience = |is_open| if is_open { LONG } else { SHORT };
            let reaches = ping(&one, ip(family, 62 + 10 * n), patience(each_other)).is_open();
            assert_eq!(reaches, each_other, "{name}: each other");
            let reaches = ping(&one, neighbour_ip(family), patience(neighbour)).is_open();
            assert_eq!(reaches, neighbour, "{name}: the neighbour");
        }
        podman.world.verify();
        podman.down(&one);
        podman.down(&two);
    }
    let bad = podman.pod("bad").at(&mode("bad", "l2"), 50);
    assert_eq!(podman.refused(&bad), "invalid macvlan mode \"l2\"");
}

/// Takes the parent over: one only, with its MAC.
#[test]
fn passthru_takes_the_parent_over() {
    let Some(podman) = Podman::or_skip("nv-passthru") else { return };
    let (m, _lan) = podman.world.second_lan();
    let network = merged(
        mode("pass", "passthru"),
        json!({"network_interface": "eth1", "subnets": [{"subnet": "10.0.2.0/24", "gateway": "10.0.2.2"}]}),
    );
    let (one, two) = (podman.pod("one").at(&network, 50), podman.pod("two").at(&network, 51));
    let status = podman.up(&one);
    let mac = interface(&podman.world.h, "eth1").unwrap().mac;
    let eth0 = interface(&one, "eth0").unwrap();
    assert_eq!(eth0.mac, mac, "that of the parent");
    let text: Vec<String> = mac.unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(status["pass"]["interfaces"]["eth0"]["mac_address"], text.join(":"));
    assert!(ping(&one, "10.0.2.2".parse().unwrap(), LONG).is_open());
    assert!(ping(&m, "10.0.2.50".parse().unwrap(), LONG).is_open());
    podman.world.verify();
    let error = podman.refused(&two);
    assert!(error.contains("macvlan") && error.contains("`eth1`"), "{error}");
    assert!(ping(&one, "10.0.2.2".parse().unwrap(), LONG).is_open(), "the first is left alone");
    podman.down(&one);
    podman.up(&two);
}

#[test]
fn options_of_macvlan() {
    let Some(podman) = Podman::or_skip("nv-macvlan-options") else { return };
    let with = |name: &str, keys| merged(on_lan(name, "macvlan"), keys);
    // Without a parent: the interface that the default route leads out of.
    let free = podman.pod("free").at(&with("free", json!({"network_interface": null})), 50);
    podman.up(&free);
    assert_eq!(interface(&free, "eth0").unwrap().link, interface(&podman.world.h, "eth0").map(|link| link.index));
    let options = json!({"metric": "42", "mtu": "1300", "bclim": "5"});
    let chosen = podman.pod("chosen").at(&with("chosen", json!({"options": options})), 51);
    podman.up(&chosen);
    assert_eq!(interface(&chosen, "eth0").unwrap().mtu, 1300);
    assert_eq!(chosen.default_routes(Family::V4), [(neighbour_ip(Family::V4), Some(42))]);
    let shown = output(&chosen, "ip", &["-d", "link", "show", "eth0"]).unwrap_or_default();
    if shown.contains("bclim") {
        assert!(shown.contains("bclim 5"), "{shown}");
    } else {
        eprintln!("SKIP: `ip` shows no bclim");
    }
    let quiet = podman.pod("quiet").at(&with("quiet", json!({"options": {"no_default_route": "true"}})), 52);
    let inside = podman.pod("inside").at(&with("inside", json!({"internal": true})), 53);
    for pod in [&quiet, &inside] {
        podman.up(pod);
        for family in FAMILIES {
            assert_eq!(pod.default_routes(family), [], "{}", pod.name);
            assert!(ping(pod, neighbour_ip(family), LONG).is_open(), "the link is there");
        }
    }
    let mac = podman.pod("mac").at_with(&with("mac", json!({})), 54, json!({"static_mac": "aa:bb:cc:dd:ee:07"}));
    podman.up(&mac);
    assert_eq!(interface(&mac, "eth0").unwrap().mac, Some([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 7]));
    let bare = with("bare", json!({"subnets": null, "ipam_options": {"driver": "none"}}));
    let bare = podman.pod("bare").at(&bare, 0);
    podman.up(&bare);
    bare.host.add_address("eth0", "10.0.1.90/24").unwrap();
    assert!(ping(&bare, neighbour_ip(Family::V4), LONG).is_open(), "addresses are somebody else's to give");
    let routes = json!({"routes": [{"destination": "10.89.0.0/24", "route_type": "blackhole"}]});
    let routed = podman.pod("routed").at(&with("routed", routes), 55);
    podman.up(&routed);
    let routes = routed.routes(Family::V4);
    let found = routes.iter().find(|route| route.dst.to_string() == "10.89.0.0").unwrap();
    assert_eq!(found.metric, Some(100), "not that of the default route");
    podman.world.verify();
    let bad = podman.pod("bad").at(&with("bad", json!({"network_interface": "nothere"})), 56);
    let error = podman.refused(&bad);
    assert!(error.contains("`nothere`"), "{error}");
    for pod in [&free, &chosen, &quiet, &inside, &mac, &bare, &routed] {
        podman.down(pod);
    }
}

/// An interface of that name in the container stays what it is.
#[test]
fn a_name_that_is_taken_in_the_container() {
    let Some(podman) = Podman::or_skip("nv-inside-taken") else { return };
    let macvlan = podman.pod("m").at(&on_lan("lan", "macvlan"), 50);
    let bridged = podman.pod("b").at(&crate::podman::bridge("web", 1), 5);
    let lan = [(&macvlan.host, "eth0", &["10.77.0.1/24"][..]), (&bridged.host, "eth0", &["10.77.0.2/24"])];
    let _lan = podman.world.lab.lan("inside", &lan).unwrap();
    for (pod, doing) in [
        (&macvlan, "rename tmp macvlan interface"),
        (&bridged, "create veth pair: interface eth0 already exists on container namespace"),
    ] {
        let before = interface(pod, "eth0");
        assert_eq!(podman.refused(pod), format!("{doing}: Netlink error: File exists (os error 17)"));
        assert_eq!(interface(pod, "eth0"), before);
        assert!(addresses(pod, "eth0").iter().any(|ip| ip.to_string().starts_with("10.77.0.")));
    }
    assert!(ping(&macvlan, "10.77.0.2".parse().unwrap(), LONG).is_open());
}

/// A bridge and a macvlan together: the macvlan's route is preferred, published ports lead over the bridge.
#[test]
fn a_macvlan_beside_a_bridge() {
    let Some(podman) = Podman::or_skip("nv-mixed") else { return };
    let pod = podman.pod("c").at(&crate::podman::bridge("web", 1), 5).at(&on_lan("lan", "macvlan"), 50);
    let pod = pod.ports(&[(8080, 80, "tcp", "")]);
    podman.up(&pod);
    let _server = TcpServer::start(&pod, any(Family::V6, 80), "c").unwrap();
    for family in FAMILIES {
        let routes = [(neighbour_ip(family), Some(99)), (crate::podman::ip(family, 1, 1), Some(100))];
        assert_eq!(pod.default_routes(family), routes);
        assert!(tcp_probe(&podman.world.n, at(ip(family, 50), 80), LONG).is_open(), "at its own address");
        assert!(tcp_probe(&podman.world.h, at(crate::podman::ip(family, 1, 5), 80), LONG).is_open(), "by the bridge");
    }
    podman.world.verify();
    podman.down(&pod);
}

/// Where the kernel has no ipvlan, the refusal says so.
#[test]
fn an_ipvlan_shares_its_parents_mac() {
    let Some(podman) = Podman::or_skip("nv-ipvlan") else { return };
    let bad = merged(on_lan("bad", "ipvlan"), json!({"options": {"mode": "bridge"}}));
    assert_eq!(podman.refused(&podman.pod("bad").at(&bad, 50)), "invalid ipvlan mode \"bridge\"");
    for mode in ["l2", "l3", "l3s"] {
        let network = merged(on_lan(mode, "ipvlan"), json!({"options": {"mode": mode}}));
        let pod = podman.pod(&format!("c-{mode}")).at(&network, 50);
        let before = podman.world.state();
        match podman.setup(&pod) {
            Ok(status) => {
                let mac = interface(&podman.world.h, "eth0").unwrap().mac.unwrap();
                let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(status[mode]["interfaces"]["eth0"]["mac_address"], mac.join(":"));
                if mode == "l2" {
                    assert!(ping(&pod, neighbour_ip(Family::V4), LONG).is_open());
                }
                podman.world.verify();
                podman.down(&pod);
            }
            Err(error) => {
                assert!(error.contains("ipvlan"), "{error}");
                before.assert_same(&podman.world.state(), "ipvlan");
                assert!(error.contains("EOPNOTSUPP"), "{error}");
                eprintln!("SKIP: `nv-ipvlan`: {error}");
            }
        }
    }
}
