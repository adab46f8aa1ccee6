//! TCP passes where the way is narrower than the network and nobody hears that (RFC 2923 §2.1).

use std::net::SocketAddr;
use std::time::Duration;

use portolan_lab::probe::ping;
use portolan_lab::{Host, eventually};

use crate::overlay::{has, joined, transfer_by};
use crate::world::{LONG, World};

/// Drops what says that packets are too large.
const DEAF: &str = "table inet deaf { chain input { type filter hook input priority -300; icmp type \
                    destination-unreachable counter drop; icmpv6 type packet-too-big counter drop; }; }";

fn deafen(place: &Host) {
    assert!(place.command("nft").unwrap().arg(DEAF).status().unwrap().success(), "{}", place.name());
}

fn set_mtu(host: &Host, link: &str, mtu: &str) {
    assert!(host.command("ip").unwrap().args(["link", "set", link, "mtu", mtu]).status().unwrap().success());
}

#[test]
fn tcp_passes_where_nobody_hears_that_packets_are_too_large() {
    let Some(world) = World::of("overlay-segments", &["a", "b"]) else { return };
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    b.set_mtu(1340);
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    // By another interface of the host, behind which less passes: two routers, and beyond them a server.
    let (router, server) = (world.lab.host("router").unwrap(), world.lab.host("server").unwrap());
    let mut lan = world.lab.lan("narrow", &[]).unwrap();
    lan.connect(&a.host, "eth1", &["10.0.2.1/24", "fd00:2::1/64"]).unwrap();
    lan.connect(&router, "eth0", &["10.0.2.254/24", "fd00:2::ff/64"]).unwrap();
    let mut lan = world.lab.lan("beyond", &[]).unwrap();
    lan.connect(&router, "eth1", &["10.0.3.254/24", "fd00:3::ff/64"]).unwrap();
    lan.connect(&server, "eth0", &["10.0.3.9/24", "fd00:3::9/64"]).unwrap();
    router.enable_forwarding().unwrap();
    set_mtu(&a.host, "eth1", "1320");
    set_mtu(&router, "eth0", "1320");
    for (host, to, by) in [
        (&a.host, "10.0.3.0/24", "10.0.2.254"),
        (&a.host, "fd00:3::/64", "fd00:2::ff"),
        (&server, "10.0.2.0/24", "10.0.3.254"),
        (&server, "fd00:2::/64", "fd00:3::ff"),
    ] {
        host.add_route(to, by).unwrap();
    }
    a.ok("network create -d overlay web");
    has(b, "web");
    let (place, name) = (world.lab.host("near").unwrap(), "near");
    let path = place.netns_path().display().to_string();
    a.ok(&format!("attach --netns {path} --name {name} --network web --publish 8080:5201"));
    let (near, far) = (world.known(a, "web", name, place), world.pod(b, "web", "far"));
    for place in [&near.place, &far.place, &server] {
        deafen(place);
    }
    assert!(eventually(LONG, || ping(&near, far.addresses[0], Duration::from_secs(2)).is_open()));
    for way in [&[][..], &["-R"]] {
        for address in ["10.0.3.9", "fd00:3::9"] {
            transfer_by(&near.place, &server, SocketAddr::new(address.parse().unwrap(), 5201), way);
        }
        for address in ["10.0.2.1", "fd00:2::1"] {
            transfer_by(&server, &near.place, SocketAddr::new(address.parse().unwrap(), 8080), way);
        }
        for address in &far.addresses {
            transfer_by(&near.place, &far.place, SocketAddr::new(*address, 5201), way);
        }
    }
    assert!(a.ok("rules web").contains("segments fit the smaller MTU"), "it says so");
}
