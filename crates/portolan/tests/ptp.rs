//! The driver `ptp`: a veth pair for each container, no bridge, and the host between them.

mod common;

use std::net::IpAddr;
use std::process::Command;

use common::{
    Container, FAMILIES, LONG, SHORT, Wire, World, any, assert_closed, assert_leads, at, choose, gateway_of, host_ip,
    interface, links, loopback, neighbour_ip, pick, subnets, udp_frame,
};
use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::{Family, addr, link, neigh, route};
use portolan_lab::probe::{ping, tcp_probe, udp_probe};
use portolan_lab::server::{TcpServer, UdpServer};
use portolan_lab::{InNetns, eventually};

const PTP: [&str; 2] = ["-d", "ptp"];

fn ptp(world: &World, name: &str, more: &[&str]) {
    world.network(name, &[&PTP, more].concat());
}

#[track_caller]
fn assert_pings(from: &impl InNetns, to: IpAddr) {
    let probe = ping(from, to, LONG);
    assert!(probe.is_open(), "ping {to}: {probe}");
}

#[track_caller]
fn assert_no_ping(from: &impl InNetns, to: IpAddr) {
    let probe = ping(from, to, SHORT);
    assert!(!probe.is_open(), "ping {to}: {probe}");
}

/// What `from` is seen as by a TCP server of `of`.
#[track_caller]
fn seen_by(of: &impl InNetns, address: IpAddr, from: &impl InNetns) -> IpAddr {
    let server = TcpServer::start(of, any(Family::of(address), 0), "server").unwrap();
    let probe = tcp_probe(from, at(address, server.addr().port()), LONG);
    probe.seen().unwrap_or_else(|| panic!("{address}: {probe}")).ip()
}

fn routes_of(place: &impl InNetns) -> Vec<route::Route> {
    with_netns(place.netns(), || route::dump(&mut Socket::open(ROUTE).unwrap()).unwrap()).unwrap()
}

fn routing(world: &World, build: impl FnOnce(&mut Socket, &mut Batch) + Send) {
    with_netns(world.h.netns(), || {
        let mut socket = Socket::open(ROUTE).unwrap();
        let mut batch = Batch::new();
        build(&mut socket, &mut batch);
        socket.transact(&batch).unwrap();
    })
    .unwrap();
}

#[test]
fn containers_reach_each_other_the_host_and_the_world() {
    let Some(world) = World::or_skip("ptp-reach") else { return };
    ptp(&world, "web", &[]);
    let (a, b) = (world.container("a", &["--network", "web"]), world.container("b", &["--network", "web"]));
    assert!(!links(&world.h).iter().any(|link| link.bridge.is_some()), "there is no bridge");
    for family in FAMILIES {
        assert_eq!(a.gateway(family), gateway_of(&world, "web", family));
        for (from, to) in [(&a, &b), (&b, &a)] {
            assert_pings(from, to.ip(family));
            assert_eq!(seen_by(to, to.ip(family), from), from.ip(family), "nobody translates inside a network");
        }
        assert_pings(&a, a.gateway(family));
        assert_pings(&world.h, a.ip(family));
        assert_eq!(seen_by(&b, b.ip(family), &world.h), b.gateway(family));
        assert_eq!(seen_by(&world.n, neighbour_ip(family), &a), host_ip(family), "the world sees the host");
        // What no container has is nowhere, not wherever the host's default route leads.
        let tap = Wire::on(&world.n, "eth0");
        let nobody = subnets(&world, "web").into_iter().find(|net| Family::of(net.addr()) == family).unwrap();
        let nobody = nobody.hosts().nth(99).unwrap();
        assert_no_ping(&a, nobody);
        assert!(!tap.sees(SHORT, |frame| common::holds(frame, &common::octets(nobody))), "{nobody} is on the LAN");
    }
    world.verify();
}

/// As the plugin `ptp` has it.
#[test]
fn everything_goes_by_the_gateway() {
    let Some(world) = World::or_skip("ptp-routes") else { return };
    let nets = ["10.60.0.0/24", "10.60.1.0/24", "fd60::/64", "fd60:1::/64"];
    let options = ["--opt", "mtu=1400"];
    ptp(&world, "web", &[&nets.map(|net| ["--subnet", net]).concat()[..], &options].concat());
    let chosen = ["--network", "web", "--ip", "10.60.0.77", "--ip6", "fd60::77", "--mac-address", "02:00:00:00:00:77"];
    let a = world.container("a", &chosen);
    let b = world.container("b", &["--network", "web"]);
    let (inside, host_end) = (interface(&a, "eth0").unwrap(), interface(&world.h, &a.only().host_end).unwrap());
    assert_eq!((inside.mtu, host_end.mtu), (1400, 1400));
    assert_eq!(inside.mac, Some(common::mac("02:00:00:00:00:77")));
    let (inner, outer) = (routes_of(&a), routes_of(&world.h));
    let has = |routes: &[route::Route], oif: u32, dst: &str, len: u8, via: Option<&str>| {
        let via = via.map(|via| via.parse().unwrap());
        let is_it = |r: &route::Route| {
            (r.dst, r.prefix_len, r.gateway, r.oif) == (dst.parse().unwrap(), len, via, Some(oif))
                && r.table == route::TABLE_MAIN
        };
        routes.iter().any(is_it)
    };
    for (net, gateway, len) in [("10.60.0.0", "10.60.0.1", 24), ("fd60::", "fd60::1", 64)] {
        let whole = if len == 24 { 32 } else { 128 };
        let default = if len == 24 { "0.0.0.0" } else { "::" };
        assert!(has(&inner, inside.index, gateway, whole, None), "{inner:#?}");
        assert!(has(&inner, inside.index, net, len, Some(gateway)), "{inner:#?}");
        assert!(!has(&inner, inside.index, net, len, None), "{inner:#?}");
        assert!(has(&inner, inside.index, default, 0, Some(gateway)), "{inner:#?}");
    }
    for (address, len) in [("10.60.0.77", 32), ("fd60::77", 128)] {
        assert!(has(&outer, host_end.index, address, len, None), "{outer:#?}");
    }
    for container in [&a, &b] {
        let at_host = common::addresses(&world.h, &container.only().host_end);
        for gateway in ["10.60.0.1", "10.60.1.1", "fd60::1", "fd60:1::1"] {
            assert!(at_host.contains(&gateway.parse().unwrap()), "{at_host:?}");
        }
    }
    // b has an address of each subnet; a chose its own of the first.
    for net in nets {
        let net: ipnet::IpNet = net.parse().unwrap();
        let of_b = common::addresses(&b, "eth0").into_iter().find(|ip| net.contains(ip)).expect("one of each");
        assert_pings(&a, of_b);
        assert_pings(&b, net.hosts().find(|ip| *ip != net.network()).unwrap());
    }
    for family in FAMILIES {
        assert_pings(&b, pick(family, "10.60.0.77", "fd60::77"));
    }
    world.verify();
}
