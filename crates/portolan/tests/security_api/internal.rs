//! Nothing leaves an internal network: not by routes that a container gives itself, not by what the host serves.

use std::net::IpAddr;
use std::time::Duration;

use portolan_kernel::rtnl::Family;
use portolan_lab::probe::{ping, tcp_probe, udp_probe};
use portolan_lab::server::{TcpServer, UdpServer};

use crate::common::upstream::{Upstream, output, short, status};
use crate::common::*;
use crate::table::{Row, row};

const METADATA: &str = "169.254.169.254";
const WORLD: Duration = Duration::from_secs(3);

/// Whether an IP packet came that is none of the host's own about neighbours and groups (RFC 4861, RFC 3810).
fn carries_traffic(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) != Some(&2),
        Some([0x86, 0xdd]) => match frame.get(20) {
            Some(0) => false,
            Some(58) => !frame.get(54).is_some_and(|kind| (130..=137).contains(kind) || *kind == 143),
            _ => true,
        },
        _ => false,
    }
}

type Attempt<'a> = (&'static str, Box<dyn Fn(Duration) -> bool + Sync + 'a>);

/// What a container tries, by what it is about.
fn attempts<'a>(from: &'a Container, gateways: [IpAddr; 2], name: &'a str) -> Vec<Attempt<'a>> {
    let mut all: Vec<Attempt<'a>> = Vec::new();
    for (family, gateway) in FAMILIES.into_iter().zip(gateways) {
        let (world, host) = (neighbour_ip(family), host_ip(family));
        let v = |v4, v6| choose(family, v4, v6);
        all.push((
            v("TCP to the world, IPv4", "TCP to the world, IPv6"),
            Box::new(move |patience| tcp_probe(from, at(world, 7000), patience).banner() == Some("world")),
        ));
        all.push((
            v("UDP to the world, IPv4", "UDP to the world, IPv6"),
            Box::new(move |patience| udp_probe(from, at(world, 7001), patience).banner() == Some("world")),
        ));
        all.push((
            v("ICMP to the world, IPv4", "ICMP to the world, IPv6"),
            Box::new(move |patience| ping(from, world, patience).is_open()),
        ));
        all.push((
            v("a service of the host at its address, IPv4", "a service of the host at its address, IPv6"),
            Box::new(move |patience| tcp_probe(from, at(host, 8000), patience).banner() == Some("host")),
        ));
        all.push((
            v(
                "a service of the host at the gateway's address, IPv4",
                "a service of the host at the gateway's address, IPv6",
            ),
            Box::new(move |patience| tcp_probe(from, at(gateway, 8000), patience).banner() == Some("host")),
        ));
        all.push((
            v("another network's published port, IPv4", "another network's published port, IPv6"),
            Box::new(move |patience| tcp_probe(from, at(host, 8080), patience).banner() == Some("site")),
        ));
    }
    all.push((
        "the metadata address of clouds",
        Box::new(move |patience| {
            tcp_probe(from, at(METADATA.parse().unwrap(), 80), patience).banner() == Some("metadata")
        }),
    ));
    let dns = gateways[0];
    all.push((
        "a name of the world, asked of the gateway by UDP",
        Box::new(move |_| short(from, dns, &[&format!("udp.{name}")]).is_some_and(|found| found == ["192.0.2.1"])),
    ));
    all.push((
        "a name of the world, asked of the gateway by TCP",
        Box::new(move |_| {
            short(from, dns, &[&format!("tcp.{name}"), "+tcp"]).is_some_and(|found| found == ["192.0.2.1"])
        }),
    ));
    all.push((
        "a name of the world, asked of the host's name server itself",
        Box::new(move |_| short(from, neighbour_ip(Family::V4), &[name]).is_some_and(|found| found == ["192.0.2.1"])),
    ));
    all
}

pub(crate) fn case() -> Option<Vec<Row>> {
    let mut world = World::or_skip("sec-internal")?;
    world.daemon = true;
    output(&world.n, "dig", &["-v"])?;
    let resolv_conf = world.lab.dir().join("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 10.0.1.2\n").unwrap();
    world.environment.push(("PORTOLAN_RESOLV_CONF".into(), resolv_conf.into()));
    let upstream = Upstream::start(&world.n, "10.0.1.2:53".parse().unwrap(), [192, 0, 2, 1]);
    world.second_address(&format!("{METADATA}/32"));
    let _metadata = TcpServer::start(&world.n, at(METADATA.parse().unwrap(), 80), "metadata").unwrap();
    world.network("plain", &["--subnet", "10.91.1.0/24", "--subnet", "fd91:1::/64"]);
    world.network("inside", &["--subnet", "10.91.2.0/24", "--subnet", "fd91:2::/64", "--internal"]);
    let site = world.container("site", &["--network", "plain", "-p", "8080:80"]);
    let plain = world.container("plain", &["--network", "plain"]);
    let inside = world.container("inside", &["--network", "inside"]);
    // Of both families.
    let _host = TcpServer::start(&world.h, any(Family::V6, 8000), "host").unwrap();
    let _site = TcpServer::start(&site, any(Family::V6, 80), "site").unwrap();
    let _servers: Vec<_> = FAMILIES
        .into_iter()
        .map(|family| {
            (
                TcpServer::start(&world.n, at(neighbour_ip(family), 7000), "world").unwrap(),
                UdpServer::start(&world.n, at(neighbour_ip(family), 7001), "world").unwrap(),
            )
        })
        .collect();
    let gateways = |n: u8| FAMILIES.map(|family| pick(family, &format!("10.91.{n}.1"), &format!("fd91:{n}::1")));
    // What no decent container does: it gives itself the way out that it was not given.
    for gateway in gateways(2) {
        inside.host.add_default_route(&gateway.to_string()).unwrap();
    }

    let run = |from: &Container, n: u8, name: &str, patience: Duration| {
        let wire = Wire::on(&world.n, "eth0");
        let asked = upstream.asked();
        let all = attempts(from, gateways(n), name);
        let reached: Vec<bool> = std::thread::scope(|scope| {
            let tried: Vec<_> = all.iter().map(|(_, attempt)| scope.spawn(move || attempt(patience))).collect();
            tried.into_iter().map(|attempt| attempt.join().unwrap()).collect()
        });
        let neighbour = interface(&world.n, "eth0").unwrap().mac.unwrap();
        let mut packets = 0;
        wire.sees(Duration::ZERO, |frame| {
            packets += usize::from(frame[6..12] != neighbour && carries_traffic(frame));
            false
        });
        (all.into_iter().map(|(what, _)| what).zip(reached).collect::<Vec<_>>(), packets, upstream.asked() - asked)
    };
    let (kept, packets, asked) = run(&inside, 2, "inside.example.com", SHORT);
    let (free, packets_of_plain, asked_of_plain) = run(&plain, 1, "plain.example.com", WORLD);
    let word = |reached: bool| if reached { "reached" } else { "not reached" };
    let mut rows = Vec::new();
    for ((what, kept), (_, free)) in kept.into_iter().zip(free) {
        // Among themselves networks are apart, internal or not; what is published is everybody's.
        assert!(free, "{what}: a plain network does not get there");
        // The gateway's address is the network's own, as with Docker: all of the host that it reaches.
        let is_own = what.starts_with("a service of the host at the gateway");
        assert_eq!(kept, is_own, "{what}: an internal network gets there: {kept}");
        let why = if is_own { ": that address is the network's own ([isolation.md](isolation.md))" } else { "" };
        rows.push(row(what, word(free), format!("{}{why}", word(kept))));
    }
    assert_eq!((packets, asked), (0, 0), "packets and questions that left the internal network");
    assert!(packets_of_plain > 0 && asked_of_plain >= 3, "{packets_of_plain} packets, {asked_of_plain} questions");
    rows.push(row("packets of all that which the world sees", "some", packets));
    let denied = status(&inside, gateways(2)[0], &["example.com"]).unwrap();
    assert_eq!(denied, "NXDOMAIN");
    assert_eq!(short(&inside, gateways(2)[0], &["inside"]).unwrap().len(), 1, "its own names are answered");
    rows.push(row("what the name server says of names of the world", "their addresses", denied));
    world.verify();
    Some(rows)
}
