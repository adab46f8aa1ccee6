//! Networks without tunnels between hosts of one LAN.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::{TcpServer, once_free};
use portolan_lab::{Host, eventually};

use crate::capture::Capture;
use crate::overlay::{Pod, has, joined, passes, reach, transfer};
use crate::shortcuts::{is_heard, said};
use crate::world::{LONG, Node, World};

const SHORT: Duration = Duration::from_secs(2);

/// Has a host move to a LAN of its own behind a router.
fn move_behind(world: &World, router: &Host, node: &Node) {
    world.lan.disconnect(&node.host, "eth0").unwrap();
    let mut lan = world.lab.lan("behind", &[]).unwrap();
    lan.connect(router, "eth1", &["10.0.9.254/24", "fd00:9::ff/64"]).unwrap();
    lan.connect(&node.host, "eth0", &["10.0.9.3/24", "fd00:9::3/64"]).unwrap();
    node.host.add_default_route("10.0.9.254").unwrap();
    node.host.add_route("fd00:1::/64", "fd00:9::ff").unwrap();
}

/// The routes to another host's blocks, of both families.
fn routes(node: &Node, pod: &Pod) -> Vec<String> {
    let block = |address: &IpAddr| match address {
        IpAddr::V4(ip) => format!("{}/26", std::net::Ipv4Addr::from_bits(ip.to_bits() & !63)),
        IpAddr::V6(ip) => format!("{}/112", std::net::Ipv6Addr::from_bits(ip.to_bits() & !0xffff)),
    };
    pod.addresses
        .iter()
        .map(|address| {
            said(node, &["ip", if address.is_ipv4() { "-4" } else { "-6" }, "route", "show", &block(address)])
                .trim()
                .to_owned()
        })
        .collect()
}

/// Whether a datagram that somebody sends under an address is heard by a pod.
fn is_heard_from(place: &Host, source: &str, to: &Pod) -> bool {
    let ear = to.place.enter(|| once_free(|| UdpSocket::bind("0.0.0.0:9090"))).unwrap();
    ear.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mouth = place.enter(|| UdpSocket::bind((source, 0))).unwrap();
    let _ = mouth.send_to(b"here", SocketAddr::new(to.addresses[0], 9090));
    ear.recv(&mut [0; 16]).is_ok()
}

#[test]
fn hosts_of_one_lan_do_without_tunnels() {
    let Some(mut world) = World::or_skip("overlay-direct") else { return };
    let router = world.lab.host("router").unwrap();
    world.lan.connect(&router, "eth0", &["10.0.1.254/24", "fd00:1::ff/64"]).unwrap();
    router.enable_forwarding().unwrap();
    let etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    move_behind(&world, &router, c);
    for host in [&a.host, &b.host, world.etcd_host(0)] {
        host.add_route("10.0.9.0/24", "10.0.1.254").unwrap();
    }
    joined(&world, &etcd);
    let refused = a.refused("network create -d overlay --opt backend=direct --opt encrypted web");
    assert!(refused.contains("exclude each other"), "{refused}");
    a.ok("network create -d overlay --opt backend=direct web");
    a.ok("network create -d overlay --opt backend=direct other");
    a.ok("network create -d overlay --opt backend=direct --opt icc=false apart");
    for network in ["web", "other", "apart"] {
        has(b, network);
        has(c, network);
    }
    let (near, far, off) = (world.pod(a, "web", "near"), world.pod(b, "web", "far"), world.pod(c, "web", "off"));
    let is_whole = |node: &Node, pods: [&Pod; 2]| {
        pods.iter().all(|pod| routes(node, pod).iter().all(|route| route.contains(" via ")))
    };
    for (node, pods) in [(a, [&far, &off]), (b, [&near, &off]), (c, [&near, &far])] {
        assert!(
            eventually(LONG, || is_whole(node, pods)),
            "{}: {:?}",
            node.host.name(),
            pods.map(|pod| routes(node, pod))
        );
    }
    // By the LAN to whom is on it, by the tunnel to whom is not.
    let by_lan = routes(a, &far);
    assert!(by_lan[0].contains("via 10.0.1.2 dev eth0") && by_lan[1].contains("via fd00:1::2 dev eth0"), "{by_lan:?}");
    assert!(by_lan.iter().all(|route| !route.contains("mtu")), "all of the LAN's MTU: {by_lan:?}");
    let by_tunnel = routes(a, &off);
    assert!(by_tunnel.iter().all(|route| route.contains("dev vx-") && route.contains("mtu 1450")), "{by_tunnel:?}");

    let mut captures = [Capture::start(&world.lab, &b.host, "eth0"), Capture::start(&world.lab, &c.host, "eth0")];
    for (from, to) in [(&near, &far), (&far, &near), (&near, &off), (&off, &near)] {
        reach(from, to);
        let fits = if from.name == "off" || to.name == "off" { 1450 } else { 1500 };
        for address in &to.addresses {
            transfer(&from.place, &to.place, SocketAddr::new(*address, 5201));
            let _ = passes(from, *address, fits + 1);
            assert!(passes(from, *address, fits) && !passes(from, *address, fits + 1), "{} to {address}", from.name);
        }
    }
    let server = TcpServer::start(&far, SocketAddr::new([0, 0, 0, 0].into(), 80), "far").unwrap();
    assert_eq!(tcp_probe(&near, SocketAddr::new(far.addresses[0], 80), SHORT).banner(), Some("far"));
    assert_eq!(server.last_client().map(|client| client.ip()), Some(near.addresses[0]), "its own address");
    drop(server);
    captures.iter_mut().for_each(|capture| drop(capture.stop()));
    let [at_b, at_c] = &captures;
    let tunnels = at_b.packets(&b.host, "udp port 4789 and host 10.0.1.1");
    assert_eq!(tunnels, Vec::<String>::new(), "a tunnel on the LAN");
    let between = format!("host {} and host {}", near.addresses[0], far.addresses[0]);
    assert!(at_b.packets(&b.host, &between).len() > 100, "they pass as they are");
    assert!(at_c.packets(&c.host, "udp port 4789").len() > 100, "a tunnel to whom is elsewhere");
    let inside = format!("host {} or host {}", near.addresses[0], off.addresses[0]);
    assert_eq!(at_c.packets(&c.host, &inside), Vec::<String>::new(), "nothing as it is");

    // Networks are kept apart as ever.
    let (stranger, alone) = (world.pod(a, "other", "stranger"), world.pod(a, "apart", "alone"));
    let apart = world.pod(b, "apart", "apart");
    a.ok("network create here");
    let local = world.pod(a, "here", "local");
    assert!(eventually(LONG, || is_whole(a, [&apart, &far])), "{:?}", routes(a, &apart));
    assert!(is_heard(&near, None, &far), "the control");
    for (from, to) in [(&stranger, &far), (&local, &far), (&alone, &apart), (&near, &apart)] {
        assert!(!is_heard(from, None, to), "{} to {}", from.name, to.name);
    }
    // Who is on the LAN, and what should come by the tunnel.
    let intruder = world.etcd_host(1);
    intruder.add_route(&format!("{}/32", far.addresses[0]), "10.0.1.2").unwrap();
    assert!(!is_heard_from(intruder, "10.0.1.12", &far), "a stranger");
    intruder.add_address("eth0", &format!("{}/32", off.addresses[0])).unwrap();
    assert!(!is_heard_from(intruder, &off.addresses[0].to_string(), &far), "by the LAN, from whom the tunnel leads to");
    for (node, name) in [(a, "a"), (b, "b")] {
        node.ok("verify");
        node.is_well();
        let rules = node.ok("rules web");
        assert!(rules.contains("are reached by eth0 without a tunnel"), "{name}: {rules}");
    }
    assert!(a.run(&["cluster", "verify"]).status.success());
    let inspected = a.ok("network inspect web");
    assert!(inspected.contains("10.0.1.0/24 by eth0") && inspected.contains("fd00:1::/64 by eth0"), "{inspected}");

    // What others take away is back.
    let addresses = said(a, &["ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"]);
    let link_local = addresses.split_whitespace().find(|word| word.starts_with("fe80:")).unwrap().to_owned();
    for words in [
        &["ip", "route", "del", by_lan[0].split(' ').next().unwrap()][..],
        &["ip", "-6", "route", "del", by_lan[1].split(' ').next().unwrap()],
        &["nft", "flush", "ruleset"],
        &["ip", "link", "set", "eth0", "down"],
    ] {
        said(a, words);
        if words.contains(&"down") {
            said(a, &["ip", "link", "set", "eth0", "up"]);
            // Those of IPv6 go with it.
            a.host.add_address("eth0", "fd00:1::1/64").unwrap();
            a.host.add_address("eth0", &link_local).unwrap();
            a.host.add_default_route("10.0.1.11").unwrap();
            a.host.add_route("10.0.9.0/24", "10.0.1.254").unwrap();
        }
        let began = Instant::now();
        assert!(eventually(LONG, || routes(a, &far) == by_lan), "{words:?}: {:?}", routes(a, &far));
        assert!(began.elapsed() < Duration::from_secs(5), "{words:?}: {:?}", began.elapsed());
        assert!(eventually(LONG, || a.run(&["verify"]).status.success()), "{words:?}: {:?}", a.run(&["verify"]));
        assert!(eventually(LONG, || ping(&near, far.addresses[1], SHORT).is_open()), "{words:?}");
        reach(&near, &far);
    }
    // Nothing is left of them.
    for pod in [&near, &stranger, &alone, &local] {
        a.ok(&format!("detach {}", pod.name));
    }
    assert_eq!(routes(a, &far), ["", ""]);
    a.ok("verify");
}
