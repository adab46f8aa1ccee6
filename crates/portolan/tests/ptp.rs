//! The driver `ptp`: a veth pair for each container, no bridge, and the host between them.

mod common;

use std::net::IpAddr;

use common::upstream::{short, status};
use common::{
    Container, FAMILIES, LONG, SHORT, Wire, World, any, assert_closed, assert_leads, at, gateway_of, host_ip,
    interface, links, loopback, neighbour_ip, pick, routing, subnets, udp_frame,
};
use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::{Family, addr, link, neigh, route};
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;
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

#[test]
fn containers_can_be_kept_apart() {
    let Some(world) = World::or_skip("ptp-icc") else { return };
    ptp(&world, "web", &["--opt", "icc=false"]);
    let (a, b) =
        (world.container("a", &["--network", "web", "-p", "8080:80"]), world.container("b", &["--network", "web"]));
    let _servers = [80, 81].map(|port| TcpServer::start(&a, any(Family::V6, port), "a").unwrap());
    for family in FAMILIES {
        assert_no_ping(&b, a.ip(family));
        for port in [80, 81] {
            assert_closed(&b, at(a.ip(family), port));
            assert_leads(&world.h, at(a.ip(family), port), "a");
        }
        for from in [&b.host, &a.host, &world.n] {
            assert_leads(from, at(host_ip(family), 8080), "a");
        }
        assert_leads(&b, at(b.gateway(family), 8080), "a");
        assert_pings(&b, neighbour_ip(family));
    }
    world.verify();
}

/// Two networks exchange packets when one is `false` and none is strict, with bridges or without.
#[test]
fn networks_that_are_open_to_others() {
    let Some(world) = World::or_skip("ptp-isolate") else { return };
    ptp(&world, "open", &["--opt", "isolate=false"]);
    ptp(&world, "half", &["--opt", "isolate=true"]);
    ptp(&world, "shut", &[]);
    world.network("bridged", &["--opt", "isolate=true"]);
    let of = |name: &str| world.container(&format!("in-{name}"), &["--network", name]);
    let [open, half, shut, bridged] = ["open", "half", "shut", "bridged"].map(of);
    for family in FAMILIES {
        for other in [&half, &bridged] {
            assert_pings(&open, other.ip(family));
            assert_pings(other, open.ip(family));
        }
        for (from, to) in [(&half, &bridged), (&bridged, &half), (&open, &shut), (&shut, &open)] {
            assert_no_ping(from, to.ip(family));
        }
    }
    world.verify();
}

/// Mode `routed`, interfaces that are trusted, and no masquerading.
#[test]
fn addresses_that_are_routed_to_from_outside() {
    let Some(world) = World::or_skip("ptp-routed") else { return };
    let modes = ["--opt", "gateway_mode_ipv4=routed", "--opt", "gateway_mode_ipv6=routed"];
    ptp(&world, "open", &modes);
    ptp(&world, "trusting", &["--opt", "trusted_host_interfaces=eth0", "--opt", "masquerade=false"]);
    let open = world.container("open", &["--network", "open", "-p", "8080:80"]);
    let trusting = world.container("trusting", &["--network", "trusting"]);
    world.route_back("open");
    world.route_back("trusting");
    let _servers =
        [&open, &trusting].map(|c| [80, 81].map(|port| TcpServer::start(c, any(Family::V6, port), "server").unwrap()));
    for family in FAMILIES {
        assert_leads(&world.n, at(open.ip(family), 80), "server");
        assert_closed(&world.n, at(open.ip(family), 81));
        assert_pings(&world.n, open.ip(family));
        assert_leads(&world.n, at(trusting.ip(family), 81), "server");
        for c in [&open, &trusting] {
            assert_eq!(seen_by(&world.n, neighbour_ip(family), c), c.ip(family));
        }
    }
    world.verify();
}

/// Published ports lead to a network that has rules of ours, whichever kind it is; names are those of all.
#[test]
fn a_container_on_several_networks() {
    let Some(world) = World::or_skip("ptp-several") else { return };
    ptp(&world, "a", &[]);
    ptp(&world, "b", &[]);
    world.network("c", &[]);
    let all = ["--network", "a", "--network", "b", "--network", "name=c,gw-priority=1", "-p", "8080:80"];
    let middle = world.container("middle", &all);
    let _server = TcpServer::start(&middle, any(Family::V6, 80), "middle").unwrap();
    for network in ["a", "b", "c"] {
        let other = world.container(&format!("on-{network}"), &["--network", network]);
        for family in FAMILIES {
            assert_pings(&other, middle.on(network).ip(family).unwrap());
            assert_pings(&middle, other.ip(family));
        }
    }
    for family in FAMILIES {
        assert_leads(&world.n, at(host_ip(family), 8080), "middle");
    }
    world.portolan_ok(&["network", "disconnect", "c", "middle"]);
    for family in FAMILIES {
        assert_leads(&world.n, at(host_ip(family), 8080), "middle");
    }
    world.verify();
}

#[test]
fn a_container_cannot_speak_as_another() {
    let Some(world) = World::or_skip("ptp-spoof") else { return };
    ptp(&world, "web", &[]);
    ptp(&world, "far", &["--opt", "isolate=false"]);
    world.network("bridged", &["--opt", "isolate=false"]);
    let [bad, victim, other] = ["bad", "victim", "other"].map(|name| world.container(name, &["--network", "web"]));
    let far = world.container("elsewhere", &["--network", "far"]);
    let bridged = world.container("bridged", &["--network", "bridged"]);
    let into = Wire::on(&victim, "eth0");
    let arrives = |from: &Container, ips: (IpAddr, IpAddr)| {
        let out = Wire::on(from, "eth0");
        let gateway = interface(&world.h, &bad.only().host_end).unwrap().mac.unwrap();
        let macs = (from.only().mac, gateway);
        out.send(&udp_frame(macs, ips, (4000, 4002), b"hello"));
        // What follows on the same path shows that the first one would have come by now.
        let honest = (bad.ip(Family::V4), victim.ip(Family::V4));
        let end = udp_frame((bad.only().mac, gateway), honest, (4000, 4001), b"end of test");
        Wire::on(&bad, "eth0").send(&end);
        let mut found = false;
        assert!(into.sees(LONG, |seen| {
            found |= common::holds(seen, b"hello");
            common::holds(seen, b"end of test")
        }));
        found
    };
    for family in FAMILIES {
        let target = victim.ip(family);
        assert!(arrives(&bad, (bad.ip(family), target)), "an honest packet arrives, {family:?}");
        let nobody = subnets(&world, "web").into_iter().find(|net| Family::of(net.addr()) == family).unwrap();
        for (what, ip) in [
            ("another's address", other.ip(family)),
            ("the target's own", target),
            ("the gateway's address", bad.gateway(family)),
            ("an address of the network that nobody has", nobody.hosts().nth(99).unwrap()),
            ("an address of another network", far.ip(family)),
            ("an address of nobody", pick(family, "192.0.2.66", "2001:db8::66")),
        ] {
            assert!(!arrives(&bad, (ip, target)), "{what}, {family:?}");
        }
        // Nobody gets into a network by an address that is in it.
        assert!(!arrives(&far, (other.ip(family), target)), "from another network, {family:?}");
        assert!(!arrives(&bridged, (other.ip(family), target)), "from a bridge, {family:?}");
        let lan = Wire::on(&world.n, "eth0");
        let macs = [&world.n, &world.h].map(|host| interface(host, "eth0").unwrap().mac.unwrap());
        lan.send(&udp_frame((macs[0], macs[1]), (other.ip(family), target), (4000, 4002), b"hello"));
        assert!(!into.sees(SHORT, |seen| common::holds(seen, b"hello")), "from the LAN, {family:?}");
    }
}

#[test]
fn names_are_answered_at_the_gateway() {
    let Some(mut world) = World::or_skip("ptp-names") else { return };
    world.daemon = true;
    ptp(&world, "web", &["--subnet", "10.61.0.0/24", "--subnet", "fd61::/64"]);
    ptp(&world, "vault", &["--internal", "--subnet", "10.62.0.0/24", "--subnet", "fd62::/64"]);
    let first = world.container("first", &["--network", "name=web,ip=10.61.0.9,ip6=fd61::9"]);
    let second = world.container("second", &["--network", "name=web,alias=deux,ip=10.61.0.10,ip6=fd61::10"]);
    let inner = world.container("inner", &["--network", "name=vault,ip=10.62.0.9,ip6=fd62::9"]);
    let deeper = world.container("deeper", &["--network", "name=vault,ip=10.62.0.10,ip6=fd62::10"]);
    for family in FAMILIES {
        let cases = [
            (&first, pick(family, "10.61.0.1", "fd61::1"), "deux", "10.61.0.10"),
            (&second, pick(family, "10.61.0.1", "fd61::1"), "first", "10.61.0.9"),
            (&inner, pick(family, "10.62.0.1", "fd62::1"), "deeper", "10.62.0.10"),
            (&deeper, pick(family, "10.62.0.1", "fd62::1"), "inner", "10.62.0.9"),
        ];
        for (from, gateway, name, address) in cases {
            for transport in ["+notcp", "+tcp"] {
                let Some(found) = short(from, gateway, &[name, transport]) else { return };
                assert_eq!(found, [address], "{name} asked at {gateway} {transport}");
            }
        }
        let stranger = status(&first, pick(family, "10.61.0.1", "fd61::1"), &["inner"]).unwrap();
        assert_eq!(stranger, "NXDOMAIN", "a name of another network");
        let elsewhere = at(pick(family, "10.62.0.1", "fd62::1"), 53);
        assert_closed(&first, elsewhere);
    }
    world.portolan_ok(&["detach", "second"]);
    assert_eq!(status(&first, "10.61.0.1".parse().unwrap(), &["second"]).unwrap(), "NXDOMAIN");
    world.verify();
}

#[test]
fn everything_that_goes_comes_back() {
    let Some(mut world) = World::or_skip("ptp-repair") else { return };
    world.daemon = true;
    ptp(&world, "web", &["--subnet", "10.63.0.0/24", "--subnet", "fd63::/64"]);
    let site = world.container("site", &["--network", "name=web,ip=10.63.0.9,ip6=fd63::9", "-p", "8080:80"]);
    let other = world.container("other", &["--network", "web"]);
    let host_end = || interface(&world.h, &site.only().host_end).expect("the host end is there").index;
    let repaired = |what: &str| {
        let is_whole = || world.portolan(&["verify"]).status.success();
        assert!(eventually(LONG, is_whole), "{what}: {}", String::from_utf8_lossy(&world.portolan(&["verify"]).stdout));
    };
    let nft = |line: &str| {
        let mut command = std::process::Command::new("nft");
        command.args(line.split(' '));
        assert!(world.h.adopt(command).unwrap().status().unwrap().success(), "nft {line}");
        repaired(line);
    };
    nft("flush ruleset");
    nft("delete element inet portolan between4 { 10.63.0.0/24 . 10.63.0.0/24 }");
    nft(&format!("delete element inet portolan behind6 {{ {} . fd63::9 }}", site.only().host_end));
    for (address, len) in [("10.63.0.9", 32), ("fd63::9", 128), ("10.63.0.0", 24), ("fd63::", 64)] {
        routing(&world, |socket, batch| {
            let is_it =
                |r: &route::Route| (r.dst, r.prefix_len, r.table) == (address.parse().unwrap(), len, route::TABLE_MAIN);
            let gone = route::dump(socket).unwrap().into_iter().find(is_it).expect("such a route");
            route::delete(batch, &gone);
        });
        repaired(&format!("the route to {address}/{len} removed"));
    }
    for (gateway, len) in [("10.63.0.1", 32), ("fd63::1", 128)] {
        routing(&world, |_, batch| {
            addr::delete(batch, host_end(), gateway.parse().unwrap(), len);
        });
        repaired("a gateway address removed");
        assert!(common::addresses(&world.h, &site.only().host_end).contains(&gateway.parse().unwrap()));
    }
    routing(&world, |_, batch| {
        for family in FAMILIES {
            neigh::delete(batch, host_end(), site.ip(family));
        }
    });
    repaired("the neighbours removed");
    let down = link::LinkChange { up: Some(false), ..link::LinkChange::default() };
    routing(&world, |_, batch| {
        link::set(batch, host_end(), &down);
    });
    repaired("a host end set down");
    routing(&world, |_, batch| {
        link::delete(batch, site.only().host_end.as_str());
    });
    repaired("a host end deleted");
    for family in FAMILIES {
        let _server = TcpServer::start(&site, any(family, 80), "site").unwrap();
        assert_leads(&world.n, at(host_ip(family), 8080), "site");
        assert_leads(&world.h, at(loopback(family), 8080), "site");
        assert_leads(&other, at(site.ip(family), 80), "site");
    }
}

/// What is inside a container is put back by hand.
#[test]
fn verify_tells_what_is_not_as_it_should_be() {
    let Some(world) = World::or_skip("ptp-verify") else { return };
    ptp(&world, "web", &["--subnet", "10.64.0.0/24", "--ipv6=false"]);
    let c = world.container("c", &["--network", "name=web,ip=10.64.0.9"]);
    world.verify();
    let differs = |what: &str| {
        let found = world.portolan(&["verify"]);
        assert!(!found.status.success(), "{what} is not told");
        String::from_utf8(found.stdout).unwrap()
    };
    with_netns(c.netns(), || {
        let mut socket = Socket::open(ROUTE).unwrap();
        let mut batch = Batch::new();
        let gateway = Some("10.64.0.1".parse().unwrap());
        route::delete(&mut batch, &route::Route { gateway, ..route::Route::new("10.64.0.0".parse().unwrap(), 24) });
        socket.transact(&batch).unwrap();
    })
    .unwrap();
    let text = differs("a route inside");
    assert!(text.contains("10.64.0.0/24 via 10.64.0.1"), "{text}");
    world.portolan_ok(&["reconcile"]);
    world.verify();
    // Somebody leads a container's address elsewhere.
    routing(&world, |socket, batch| {
        let lan = link::lookup(socket, "eth0").unwrap().unwrap().index;
        let route = route::Route { oif: Some(lan), ..route::Route::new("10.64.0.9".parse().unwrap(), 32) };
        route::replace(batch, &route);
    });
    let text = differs("a route of the host that leads elsewhere");
    assert!(text.contains("10.64.0.9"), "{text}");
    world.portolan_ok(&["reconcile"]);
    world.verify();
    assert_pings(&world.h, c.ip(Family::V4));
    routing(&world, |socket, batch| {
        let host_end = link::lookup(socket, c.only().host_end.as_str()).unwrap().unwrap().index;
        let stray = route::Route { oif: Some(host_end), ..route::Route::new("198.51.100.0".parse().unwrap(), 24) };
        route::add(batch, &stray);
    });
    let text = differs("a stray route by a host end");
    assert!(text.contains("198.51.100.0"), "{text}");
    world.portolan_ok(&["reconcile"]);
    world.verify();
}

#[test]
fn nothing_is_left_behind() {
    let Some(world) = World::or_skip("ptp-untouched") else { return };
    let untouched = world.untouched();
    ptp(&world, "web", &[]);
    let empty = world.state();
    for round in 0..2 {
        let limits = ["--bandwidth-in", "50mbit", "--bandwidth-out", "50mbit"];
        let c = world.container(&format!("c{round}"), &[&["--network", "web", "-p", "8080:80"][..], &limits].concat());
        let d = world.container(&format!("d{round}"), &["--network", "web"]);
        for family in FAMILIES {
            assert_pings(&c, d.ip(family));
        }
        world.verify();
        world.portolan_ok(&["detach", &c.name]);
        world.portolan_ok(&["detach", &d.name]);
        empty.assert_same(&world.state(), "attach and detach");
    }
    // One whose namespace goes without a word.
    let mut gone = world.mortal();
    world.portolan_ok(&[
        "attach",
        "--pid",
        &gone.id().to_string(),
        "--name",
        "gone",
        "--network",
        "web",
        "-p",
        "8080:80",
    ]);
    gone.kill().unwrap();
    gone.wait().unwrap();
    // Nothing is made for it, nor said to be.
    let reconciled = world.portolan(&["reconcile"]);
    let told = String::from_utf8_lossy(&reconciled.stderr);
    assert_eq!((reconciled.status.code(), &*String::from_utf8_lossy(&reconciled.stdout)), (Some(0), ""), "{told}");
    assert_eq!(told, "portolan: their namespace is gone: `gone`\nhint: `portolan gc` takes them down\n");
    world.portolan_ok(&["gc"]);
    empty.assert_same(&world.state(), "a container that died");
    world.verify();
    world.portolan_ok(&["network", "rm", "web"]);
    world.assert_untouched(&untouched, "a network without a bridge");
}

/// Theirs are rules that know one interface of a network.
#[test]
fn other_drivers_of_rules_are_refused() {
    let Some(world) = World::or_skip("ptp-iptables") else { return };
    let before = world.state();
    for driver in ["iptables", "firewalld"] {
        let message = world.refused(&["--firewall-driver", driver, "network", "create", "-d", "ptp", "web"]);
        assert!(message.contains("`ptp`") && message.contains(driver), "{message}");
        before.assert_same(&world.state(), driver);
    }
}
