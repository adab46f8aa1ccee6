//! Routes: which network leads out, and static ones of all types.

use std::net::IpAddr;

use portolan_kernel::rtnl::Family;
use portolan_kernel::rtnl::route::RouteKind;
use portolan_lab::probe::{Probe, ping, tcp_probe};
use portolan_lab::server::TcpServer;
use serde_json::json;

use crate::common::{FAMILIES, LONG, SHORT, any, at, choose, neighbour_ip};
use crate::podman::{Podman, bridge, ip, merged};

#[test]
fn priorities_of_default_routes() {
    let Some(podman) = Podman::or_skip("nv-metric") else { return };
    let with = |name: &str, n: u8, options| merged(bridge(name, n), json!({"options": options}));
    let first = podman.pod("plain").at(&bridge("a", 1), 5);
    let second = podman.pod("chosen").at(&with("b", 2, json!({"metric": "200"})), 5);
    podman.up(&first);
    podman.up(&second);
    for family in FAMILIES {
        assert_eq!(first.default_routes(family), [(ip(family, 1, 1), Some(100))]);
        assert_eq!(second.default_routes(family), [(ip(family, 2, 1), Some(200))]);
    }
    // The lower one wins whatever the order of interfaces; both are there.
    let both = podman.pod("both").at(&with("b", 2, json!({"metric": "200"})), 6).at(&bridge("a", 1), 6);
    podman.up(&both);
    for family in FAMILIES {
        assert_eq!(both.default_routes(family), [(ip(family, 1, 1), Some(100)), (ip(family, 2, 1), Some(200))]);
    }
    podman.world.verify();
    // Without the first, the other leads.
    let left = podman.pod("left").at(&with("b", 2, json!({"metric": "200"})), 7).at(&bridge("a", 1), 7);
    podman.up(&left);
    let mut going = left;
    let stays = going.on.remove(0);
    podman.down(&going);
    for family in FAMILIES {
        assert_eq!(going.default_routes(family), [(ip(family, 2, 1), Some(200))]);
        assert!(ping(&going, neighbour_ip(family), LONG).is_open());
    }
    assert_eq!(stays.0["name"], "b");
    let bad = podman.pod("bad").at(&with("c", 3, json!({"metric": "x"})), 5);
    assert_eq!(podman.refused(&bad), "unable to parse \"metric\": invalid digit found in string");
}

/// Of two networks with the same priority the first interface leads out.
#[test]
fn the_first_of_equals_leads_out() {
    let Some(podman) = Podman::or_skip("nv-equals") else { return };
    for (name, order) in [("ab", [1u8, 2]), ("ba", [2, 1])] {
        let host = 5 + u8::from(name == "ba");
        let network = |n: u8| bridge(if n == 1 { "a" } else { "b" }, n);
        let pod = podman.pod(name).at(&network(order[0]), host).at(&network(order[1]), host);
        podman.up(&pod);
        for family in FAMILIES {
            assert_eq!(pod.default_routes(family), [(ip(family, order[0], 1), Some(100))]);
        }
    }
}

#[test]
fn a_network_that_does_not_lead_out() {
    let Some(podman) = Podman::or_skip("nv-no-default") else { return };
    let network = merged(bridge("a", 1), json!({"options": {"no_default_route": "true"}}));
    let (alone, other) = (podman.pod("alone").at(&network, 5), podman.pod("other").at(&network, 6));
    let both = podman.pod("both").at(&network, 7).at(&bridge("b", 2), 7);
    for pod in [&alone, &other, &both] {
        podman.up(pod);
    }
    for family in FAMILIES {
        assert_eq!(alone.default_routes(family), []);
        assert!(ping(&alone, ip(family, 1, 6), LONG).is_open());
        assert!(!ping(&alone, neighbour_ip(family), SHORT).is_open());
        assert_eq!(both.default_routes(family), [(ip(family, 2, 1), Some(100))]);
        assert!(ping(&both, neighbour_ip(family), LONG).is_open());
    }
    let no = merged(bridge("c", 3), json!({"options": {"no_default_route": "false"}}));
    let pod = podman.pod("no").at(&no, 5);
    podman.up(&pod);
    assert_eq!(pod.default_routes(Family::V4), [(ip(Family::V4, 3, 1), Some(100))]);
    let bad = podman.pod("bad").at(&merged(bridge("d", 4), json!({"options": {"no_default_route": "maybe"}})), 5);
    assert!(podman.refused(&bad).starts_with("unable to parse \"no_default_route\": "));
}

/// Routes of all four types in both families, each with what it does to packets.
#[test]
fn static_routes() {
    let Some(podman) = Podman::or_skip("nv-routes") else { return };
    let routes = json!([
        {"destination": "10.89.1.0/24", "gateway": "10.9.1.9"},
        {"destination": "fd89:1::/64", "gateway": "fd09:1::9", "metric": 50},
        {"destination": "10.89.2.0/24", "route_type": "blackhole"},
        {"destination": "fd89:2::/64", "route_type": "blackhole"},
        {"destination": "10.89.3.0/24", "route_type": "unreachable", "metric": 77},
        {"destination": "fd89:3::/64", "route_type": "unreachable"},
        {"destination": "10.89.4.0/24", "route_type": "prohibit"},
        {"destination": "fd89:4::/64", "route_type": "prohibit"},
        {"destination": "10.89.5.0/24", "gateway": "10.9.1.9", "route_type": "unicast"},
        {"destination": "fd89:5::/64", "gateway": "fd09:1::9", "route_type": "unicast"},
    ]);
    // The network's own priority is that of the default route alone.
    let network = merged(bridge("a", 1), json!({"routes": routes, "options": {"metric": "200"}}));
    let pod = podman.pod("c").at(&network, 5);
    podman.up(&pod);
    let expected = |family| {
        let text = |n: u8| choose(family, format!("10.89.{n}.0"), format!("fd89:{n}::")).parse::<IpAddr>().unwrap();
        let via = Some(ip(family, 1, 9));
        let special = |v4| if family == Family::V4 { v4 } else { 100 };
        [
            (text(1), RouteKind::Unicast, via, choose(family, 100, 50)),
            (text(2), RouteKind::Blackhole, None, 100),
            (text(3), RouteKind::Unreachable, None, special(77)),
            (text(4), RouteKind::Prohibit, None, 100),
            (text(5), RouteKind::Unicast, via, 100),
        ]
    };
    for family in FAMILIES {
        let routes = pod.routes(family);
        for (dst, kind, gateway, metric) in expected(family) {
            let found = routes.iter().find(|route| route.dst == dst).unwrap_or_else(|| panic!("{dst}: {routes:?}"));
            assert_eq!((found.kind, found.gateway, found.metric), (kind, gateway, Some(metric)), "{dst}");
        }
        let probe = |n: u8| {
            let to = choose(family, format!("10.89.{n}.1"), format!("fd89:{n}::1")).parse().unwrap();
            tcp_probe(&pod, at(to, 80), LONG)
        };
        assert_eq!(probe(2), Probe::Unreachable(22), "blackhole: EINVAL");
        assert_eq!(probe(3), Probe::Unreachable(113), "unreachable: EHOSTUNREACH");
        assert_eq!(probe(4), Probe::Unreachable(13), "prohibit: EACCES");
    }
    podman.world.verify();
    // Two networks with one way each, and back to nothing.
    podman.down(&pod);
    for family in FAMILIES {
        let left: Vec<_> = pod.routes(family).into_iter().filter(|route| !route.dst.is_loopback()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Packets follow a static route to a router on the network: here one that leads a second network.
#[test]
fn a_router_of_the_network() {
    let Some(podman) = Podman::or_skip("nv-router") else { return };
    podman.foreign_bridge("br0", &[]);
    let routes = json!([
        {"destination": "10.89.1.0/24", "gateway": "10.9.1.9"}, {"destination": "fd89:1::/64", "gateway": "fd09:1::9"},
    ]);
    let lan = json!({"network_interface": "br0", "options": {"mode": "unmanaged"}, "routes": routes});
    let network = merged(bridge("lan", 1), lan);
    let plain = merged(network.clone(), json!({"name": "lan2", "id": crate::podman::id_of("lan2"), "routes": null}));
    let pod = podman.pod("c").at(&network, 5);
    let router = podman.pod("router").at(&plain, 9);
    podman.up(&pod);
    podman.up(&router);
    for family in FAMILIES {
        let far = choose(family, "10.89.1.1", "fd89:1::1");
        router.host.add_address("lo", &format!("{far}/{}", choose(family, 32, 128))).unwrap();
        let _server = TcpServer::start(&router, any(family, 80), "far").unwrap();
        let probe = tcp_probe(&pod, at(far.parse().unwrap(), 80), LONG);
        assert_eq!(probe.banner(), Some("far"), "{probe}");
    }
}

#[test]
fn routes_that_cannot_be() {
    let Some(podman) = Podman::or_skip("nv-bad-routes") else { return };
    let refused = |name: &str, route| {
        let network = merged(bridge("a", 1), json!({"routes": [route]}));
        podman.refused(&podman.pod(name).at(&network, 5))
    };
    assert_eq!(
        refused("c1", json!({"destination": "10.89.0.0/24"})),
        "route 10.89.0.0/24 requires a gateway for type unicast"
    );
    assert_eq!(
        refused("c2", json!({"destination": "10.89.0.0/24", "gateway": "10.9.1.9", "route_type": "blackhole"})),
        "route 10.89.0.0/24 must not have a gateway for type blackhole"
    );
    assert_eq!(
        refused("c3", json!({"destination": "10.89.0.0/24", "route_type": "magic"})),
        "invalid route type \"magic\""
    );
    // A gateway that nobody can reach is the kernel's to refuse, and everything is taken back.
    let error = refused("c4", json!({"destination": "10.89.0.0/24", "gateway": "203.0.113.1"}));
    assert!(error.contains("10.89.0.0/24") && error.contains("203.0.113.1"), "{error}");
}
