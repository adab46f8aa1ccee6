//! The bridge driver, line by line, with real packets of both families.

mod common;

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use common::{
    Container, FAMILIES, LONG, SHORT, Wire, World, addresses, any, arp_frame, at, choose, holds, host_ip, icmp6_frame,
    interface, mac, neighbour_ip, octets, pick, subnets, udp_frame,
};
use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::{Family, link};
use portolan_lab::InNetns;
use portolan_lab::probe::{Probe, ping, tcp_probe, udp_probe};
use portolan_lab::server::{TcpServer, UdpServer};

const BROADCAST: [u8; 6] = [0xff; 6];
/// Of ff02::1 (RFC 2464 §7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// The address that the neighbour sees when `from` connects to it.
#[track_caller]
fn seen_by_neighbour(world: &World, from: &impl InNetns, family: Family) -> IpAddr {
    let server = TcpServer::start(&world.n, any(family, 0), "neighbour").unwrap();
    let probe = tcp_probe(from, at(neighbour_ip(family), server.addr().port()), LONG);
    probe.seen().unwrap_or_else(|| panic!("{family:?}: {probe}")).ip()
}

#[track_caller]
fn assert_pings(from: &impl InNetns, to: IpAddr) {
    let probe = ping(from, to, LONG);
    assert!(probe.is_open(), "ping {to}: {probe}");
}

/// Runs the checks that have to wait for nothing to happen at once.
fn together(checks: &[&(dyn Fn() + Sync)]) {
    thread::scope(|scope| checks.iter().for_each(|check| drop(scope.spawn(check))));
}

#[test]
fn addresses_and_macs_can_be_chosen() {
    let Some(world) = World::or_skip("static") else { return };
    world.network("web", &["--subnet", "10.40.0.0/24", "--subnet", "fd40::/64"]);
    let chosen = ["--network", "web", "--ip", "10.40.0.77", "--ip6", "fd40::77", "--mac-address", "02:00:00:00:00:77"];
    let c = world.container("c", &chosen);
    let link = interface(&c, "eth0").unwrap();
    assert_eq!(link.mac, Some(mac("02:00:00:00:00:77")));
    let found = addresses(&c, "eth0");
    for ip in ["10.40.0.77", "fd40::77", "fe80::ff:fe00:77"] {
        assert!(found.contains(&ip.parse().unwrap()), "{ip}: {found:?}");
    }
    assert_eq!(found.len(), 3, "{found:?}");
    let d = world.container("d", &["--network", "web"]);
    for family in FAMILIES {
        assert_pings(&world.h, pick(family, "10.40.0.77", "fd40::77"));
        assert_pings(&d, pick(family, "10.40.0.77", "fd40::77"));
        assert_eq!(seen_by_neighbour(&world, &c, family), host_ip(family));
    }
    world.verify();
}

#[test]
fn the_default_route_follows_priority_then_families_then_name() {
    let Some(world) = World::or_skip("default-route") else { return };
    for (name, options) in [("a", &[][..]), ("b", &[]), ("four", &["--ipv6=false"]), ("lone", &["--internal"])] {
        world.network(name, &[&["--opt", "masquerade=false"], options].concat());
        if name != "lone" {
            world.route_back(name);
        }
    }
    let leaves_by = |c: &Container, family: Family| {
        let seen = seen_by_neighbour(&world, c, family);
        let mut networks = c.endpoints.iter().filter(|(_, endpoint)| endpoint.ip(family) == Some(seen));
        networks.next().unwrap_or_else(|| panic!("{seen} is none of {c:?}")).0.clone()
    };
    let cases: [(&[&str], [&str; 2]); 6] = [
        (&["b", "a"], ["a", "a"]),
        (&["name=a", "name=b,gw-priority=1"], ["b", "b"]),
        (&["name=a,gw-priority=-1", "b"], ["b", "b"]),
        (&["four", "b"], ["b", "b"]),
        (&["name=four,gw-priority=9", "b"], ["four", "b"]),
        (&["name=lone,gw-priority=9", "b"], ["b", "b"]),
    ];
    for (number, (networks, expected)) in cases.into_iter().enumerate() {
        let args: Vec<&str> = networks.iter().flat_map(|network| ["--network", network]).collect();
        let c = world.container(&format!("c{number}"), &args);
        let found = FAMILIES.map(|family| leaves_by(&c, family));
        assert_eq!(found, expected, "{networks:?}");
    }
    world.verify();
}

#[test]
fn several_subnets_of_each_family() {
    let Some(world) = World::or_skip("subnets") else { return };
    let nets = ["10.41.0.0/24", "10.41.1.0/24", "fd41::/64", "fd41:1::/64"];
    world.network("web", &nets.iter().flat_map(|net| ["--subnet", net]).collect::<Vec<_>>());
    let (c, d) = (world.container("c", &["--network", "web"]), world.container("d", &["--network", "web"]));
    for net in nets {
        let net: ipnet::IpNet = net.parse().unwrap();
        let of = |c: &Container| addresses(c, "eth0").into_iter().find(|ip| net.contains(ip)).expect("one of each");
        assert_pings(&c, of(&d));
        assert_pings(&world.h, of(&c));
        assert_pings(&c, net.hosts().find(|ip| *ip != net.network()).unwrap());
    }
    for family in FAMILIES {
        assert_eq!(seen_by_neighbour(&world, &c, family), host_ip(family));
    }
    world.verify();
}

#[test]
fn the_mtu_is_that_of_the_path_or_the_one_chosen() {
    let Some(world) = World::or_skip("mtu") else { return };
    let mut batch = Batch::new();
    link::set(&mut batch, "eth0", &link::LinkChange { mtu: Some(1400), ..link::LinkChange::default() });
    world.h.route_socket().unwrap().transact(&batch).unwrap();
    world.network("path", &[]);
    world.network("chosen", &["--opt", "mtu=1300"]);
    for (network, mtu) in [("path", 1400), ("chosen", 1300)] {
        let c = world.container(&format!("on-{network}"), &["--network", network]);
        assert_eq!(interface(&c, "eth0").unwrap().mtu, mtu);
        assert_eq!(interface(&world.h, &c.only().host_end).unwrap().mtu, mtu);
        let bridge = world.json(&["network", "inspect", network])[0]["Bridge"].as_str().unwrap().to_owned();
        assert_eq!(interface(&world.h, &bridge).unwrap().mtu, mtu);
        for family in FAMILIES {
            let wire = Wire::on(&world.n, "eth0");
            let server = UdpServer::start(&world.n, any(family, 0), "neighbour").unwrap();
            let to = at(neighbour_ip(family), server.addr().port());
            // The largest datagram that fits arrives whole.
            let fits = vec![b'x'; mtu as usize - choose(family, 28, 48)];
            c.host.enter(|| {
                let socket = std::net::UdpSocket::bind(any(family, 0)).unwrap();
                socket.send_to(&fits, to).unwrap();
            });
            assert!(wire.sees(LONG, |frame| frame.len() == mtu as usize + 14 && holds(frame, b"xxxxxxxxxxxxxxxx")));
        }
    }
    world.verify();
}

#[test]
fn without_icc_only_published_ports_are_reached() {
    let Some(world) = World::or_skip("icc") else { return };
    world.network("web", &["--opt", "icc=false"]);
    let a = world.container("a", &["--network", "web"]);
    let b = world.container("b", &["--network", "web", "-p", "8080:80", "-p", "8053:53/udp"]);
    let _web = TcpServer::start(&b, any(Family::V6, 80), "b").unwrap();
    let _dns = UdpServer::start(&b, any(Family::V6, 53), "b").unwrap();

    for family in FAMILIES {
        // As ordinary programs, and by way of the host, which would be another door.
        let target = at(b.ip(family), 80);
        assert!(!tcp_probe(&a, target, SHORT).is_open());
        assert!(!ping(&a, b.ip(family), SHORT).is_open());
        // As one that writes its own frames.
        let (out, into) = (Wire::on(&a, "eth0"), Wire::on(&b, "eth0"));
        let macs = (a.only().mac, b.only().mac);
        out.send(&udp_frame(macs, (a.ip(family), b.ip(family)), (4000, 4001), b"by unicast"));
        out.send(&udp_frame((macs.0, BROADCAST), (a.ip(family), b.ip(family)), (4000, 4001), b"by broadcast"));
        if family == Family::V4 {
            out.send(&arp_frame((macs.0, BROADCAST), 1, (macs.0, a.ip(family)), ([0; 6], b.ip(family))));
            out.send(&arp_frame(macs, 2, (macs.0, a.ip(family)), (macs.1, b.ip(family))));
        }
        assert!(!into.sees(SHORT, |frame| frame[6..12] == macs.0), "a frame of a's reached b");
        assert_pings(&a, a.gateway(family));
        assert_eq!(seen_by_neighbour(&world, &a, family), host_ip(family));
    }
    for family in FAMILIES {
        let path = format!("{}/{}", b.ip(family), choose(family, 32, 128));
        a.host.add_route(&path, &a.gateway(family).to_string()).unwrap();
        assert!(!tcp_probe(&a, at(b.ip(family), 80), SHORT).is_open(), "through the gateway");
        assert!(!ping(&a, b.ip(family), SHORT).is_open(), "through the gateway");
    }
    // With bridge netfilter the kernel bridges what it translated from port to port, and the ports are isolated: closed
    // rather than open (docs/isolation.md).
    world.bridge_netfilter(false);
    for family in FAMILIES {
        let probe = tcp_probe(&a, at(host_ip(family), 8080), LONG);
        assert_eq!(probe.banner(), Some("b"), "{family:?}: {probe}");
        let probe = udp_probe(&a, at(host_ip(family), 8053), LONG);
        assert_eq!(probe.banner(), Some("b"), "{family:?}: {probe}");
    }
    world.verify();
}

#[test]
fn nothing_leaves_an_internal_network() {
    let Some(world) = World::or_skip("internal") else { return };
    world.network("vault", &["--internal"]);
    world.network("web", &[]);
    let (a, b) = (world.container("a", &["--network", "vault"]), world.container("b", &["--network", "vault"]));
    let wire = Wire::on(&world.n, "eth0");
    for family in FAMILIES {
        assert_pings(&a, b.ip(family));
        assert!(
            matches!(tcp_probe(&a, at(neighbour_ip(family), 53), LONG), Probe::Unreachable(_)),
            "no route leads out"
        );
        let (subnets, gateway) = (subnets(&world, "vault"), choose(family, 0, 1));
        let subnet = subnets.iter().find(|net| Family::of(net.addr()) == family).unwrap();
        let gateway = subnet.hosts().nth(gateway).unwrap();
        a.host.add_default_route(&gateway.to_string()).unwrap();
        world.n.add_route(&subnet.to_string(), &host_ip(family).to_string()).unwrap();
    }
    let web = TcpServer::start(&a, any(Family::V6, 80), "a").unwrap();
    let (a, n) = (&a, &world.n);
    for family in FAMILIES {
        let ip = neighbour_ip(family);
        together(&[
            &|| assert_eq!(udp_probe(a, at(ip, 53), SHORT), Probe::Timeout),
            &|| assert_eq!(tcp_probe(a, at(ip, 53), SHORT), Probe::Timeout),
            &|| assert_eq!(tcp_probe(a, at(ip, 443), SHORT), Probe::Timeout),
            &|| assert_eq!(ping(a, ip, SHORT), Probe::Timeout),
            &|| assert_eq!(tcp_probe(n, at(a.ip(family), 80), SHORT), Probe::Timeout),
            &|| assert_eq!(ping(n, a.ip(family), SHORT), Probe::Timeout),
        ]);
        // The host itself is let in, as Docker lets it.
        assert!(tcp_probe(&world.h, at(a.ip(family), 80), LONG).is_open());
    }
    assert_eq!(web.connections(), 2);
    let own = interface(&world.n, "eth0").unwrap().mac.unwrap();
    let strange = |frame: &Vec<u8>| FAMILIES.iter().any(|family| holds(frame, &octets(a.ip(*family))));
    let leaked: Vec<Vec<u8>> = wire.frames_not_of(own, Duration::from_millis(50)).into_iter().filter(strange).collect();
    assert!(leaked.is_empty(), "{leaked:x?}");
}

/// What the neighbour reaches of a container that publishes 8080:80 and listens on 80 and 81: that port of the host, the
/// port itself, the other one, a ping; and as whom the container is seen. Silence is waited for where it is `expected`.
#[track_caller]
fn from_outside(world: &World, c: &Container, family: Family, expected: [&str; 4]) -> ([String; 4], &'static str) {
    let (n, ip) = (&world.n, c.ip(family));
    let word = |probe: Probe| match probe {
        Probe::Open { .. } => "open".to_owned(),
        other => other.to_string(),
    };
    thread::scope(|scope| {
        let patience = expected.map(|word| if word == "no answer" { SHORT } else { LONG });
        let published = scope.spawn(move || word(tcp_probe(n, at(host_ip(family), 8080), patience[0])));
        let direct = scope.spawn(move || word(tcp_probe(n, at(ip, 80), patience[1])));
        let unpublished = scope.spawn(move || word(tcp_probe(n, at(ip, 81), patience[2])));
        let ping = scope.spawn(move || word(ping(n, ip, patience[3])));
        let seen = seen_by_neighbour(world, c, family);
        let seen = if seen == host_ip(family) {
            "host"
        } else if seen == ip {
            "container"
        } else {
            "somebody else"
        };
        ([published, direct, unpublished, ping].map(|thread| thread.join().unwrap()), seen)
    })
}

#[test]
fn gateway_modes_of_each_family() {
    let Some(world) = World::or_skip("modes") else { return };
    let modes = [
        ("nat", ["open", "no answer", "no answer", "no answer"], "host"),
        ("nat-unprotected", ["open", "open", "open", "open"], "host"),
        ("routed", ["refused", "open", "no answer", "open"], "container"),
    ];
    for (number, (v4, v6)) in [(0, 1), (1, 2), (2, 0)].into_iter().enumerate() {
        let network = format!("net{number}");
        let options = [v4, v6].map(|mode: usize| modes[mode].0);
        let (four, six) = (format!("gateway_mode_ipv4={}", options[0]), format!("gateway_mode_ipv6={}", options[1]));
        world.network(&network, &["--opt", &four, "--opt", &six]);
        world.route_back(&network);
        let name = format!("c{number}");
        let c = world.container(&name, &["--network", &network, "-p", "8080:80"]);
        let _servers = [80, 81].map(|port| TcpServer::start(&c, any(Family::V6, port), "c").unwrap());
        for family in FAMILIES {
            let (mode, reached, seen) = modes[choose(family, v4, v6)];
            let (found, seen_as) = from_outside(&world, &c, family, reached);
            assert_eq!((found.each_ref().map(String::as_str), seen_as), (reached, seen), "{mode} {family:?}");
            // Whatever the mode, the host is a neighbour.
            assert!(tcp_probe(&world.h, at(c.ip(family), 81), LONG).is_open());
            assert_pings(&c, c.gateway(family));
        }
        world.verify();
        world.portolan_ok(&["detach", &name]);
    }
}

#[test]
fn an_isolated_network_has_no_host_on_it() {
    let Some(world) = World::or_skip("isolated") else { return };
    for (network, families) in [("both", &FAMILIES[..]), ("four", &FAMILIES[..1]), ("six", &FAMILIES[1..])] {
        let options: Vec<String> = families
            .iter()
            .map(|family| format!("gateway_mode_{}=isolated", choose(*family, "ipv4", "ipv6")))
            .collect();
        let options: Vec<&str> = options.iter().flat_map(|option| ["--opt", option.as_str()]).collect();
        world.network(network, &[&["--internal"], &options[..]].concat());
        let a = world.container(&format!("{network}-a"), &["--network", network]);
        let b = world.container(&format!("{network}-b"), &["--network", network]);
        for family in FAMILIES {
            assert_pings(&a, b.ip(family));
            let isolated = families.contains(&family);
            let net = subnets(&world, network).into_iter().find(|net| Family::of(net.addr()) == family).unwrap();
            let bridge = world.json(&["network", "inspect", network])[0]["Bridge"].as_str().unwrap().to_owned();
            let on_bridge = addresses(&world.h, &bridge).iter().any(|ip| net.contains(ip));
            assert_eq!(on_bridge, !isolated, "{network} {family:?}");
            assert_eq!(
                ping(&world.h, a.ip(family), if isolated { SHORT } else { LONG }).is_open(),
                !isolated,
                "{network} {family:?}"
            );
            let gateway = net.hosts().nth(choose(family, 0, 1)).unwrap();
            if !isolated {
                assert_pings(&a, gateway);
            }
        }
    }
    world.verify();
}

#[test]
fn what_leaves_is_seen_as_the_host_a_chosen_address_or_itself() {
    let Some(world) = World::or_skip("snat") else { return };
    // On loopback: which of several addresses of one interface the kernel masquerades with is its own choice.
    for address in ["10.0.1.77/32", "fd00:1::77/128"] {
        world.h.add_address("lo", address).unwrap();
    }
    let host = [host_ip(Family::V4), host_ip(Family::V6)].map(|ip| ip.to_string());
    world.n.add_route("10.0.1.77/32", &host[0]).unwrap();
    world.n.add_route("fd00:1::77/128", &host[1]).unwrap();
    world.network("masquerade", &[]);
    world.network("chosen", &["--opt", "host_ipv4=10.0.1.77", "--opt", "host_ipv6=fd00:1::77"]);
    world.network("itself", &["--opt", "masquerade=false"]);
    world.route_back("itself");
    for family in FAMILIES {
        for network in ["masquerade", "chosen", "itself"] {
            let c = world.container(&format!("{network}-{family:?}"), &["--network", network]);
            let expected = match network {
                "masquerade" => host_ip(family),
                "chosen" => pick(family, "10.0.1.77", "fd00:1::77"),
                _ => c.ip(family),
            };
            assert_eq!(seen_by_neighbour(&world, &c, family), expected, "{network}");
            // Datagrams as well.
            let server = UdpServer::start(&world.n, any(family, 0), "neighbour").unwrap();
            let probe = udp_probe(&c, at(neighbour_ip(family), server.addr().port()), LONG);
            assert_eq!(probe.seen().map(|seen| seen.ip()), Some(expected), "{network}: {probe}");
            assert_pings(&c, neighbour_ip(family));
        }
    }
    world.verify();
}

#[test]
fn a_container_reaches_itself_by_its_published_port() {
    let Some(world) = World::or_skip("hairpin") else { return };
    world.network("web", &[]);
    let c = world.container("c", &["--network", "web", "-p", "8080:80", "-p", "8053:53/udp"]);
    let _web = TcpServer::start(&c, any(Family::V6, 80), "c").unwrap();
    let _dns = UdpServer::start(&c, any(Family::V6, 53), "c").unwrap();
    for bridge_netfilter in [false, true] {
        if !world.bridge_netfilter(bridge_netfilter) && bridge_netfilter {
            eprintln!("SKIP: the module br_netfilter is not loaded");
            continue;
        }
        for family in FAMILIES {
            for ip in [host_ip(family), c.gateway(family)] {
                let probe = tcp_probe(&c, at(ip, 8080), LONG);
                assert_eq!(probe.banner(), Some("c"), "bridge netfilter {bridge_netfilter}, {ip}: {probe}");
                assert_eq!(probe.seen().unwrap().ip().to_canonical(), c.gateway(family), "{ip}");
                let probe = udp_probe(&c, at(ip, 8053), LONG);
                assert_eq!(probe.banner(), Some("c"), "bridge netfilter {bridge_netfilter}, {ip}: {probe}");
            }
        }
    }
}

#[test]
fn networks_come_and_go_on_a_live_container() {
    let Some(world) = World::or_skip("connect") else { return };
    world.network("a", &[]);
    world.network("b", &[]);
    let c = world.container("c", &["--network", "a"]);
    let d = world.container("d", &["--network", "b"]);
    let e = world.container("e", &["--network", "a"]);
    let before = world.state();
    let echo = TcpServer::start(&e, any(Family::V6, 7), "echo").unwrap();
    let stream = c.host.enter(|| std::net::TcpStream::connect(at(e.ip(Family::V4), echo.addr().port())).unwrap());
    let connected = common::endpoints(&world.json(&["network", "connect", "b", "c"]));
    assert_eq!((connected["a"].ifname.as_str(), connected["b"].ifname.as_str()), ("eth0", "eth1"));
    for family in FAMILIES {
        let ip = connected["b"].ip(family).unwrap();
        assert!(addresses(&c, "eth1").contains(&ip));
        assert_pings(&c, d.ip(family));
        assert_pings(&d, ip);
        assert_pings(&c, e.ip(family));
    }
    world.verify();
    world.portolan_ok(&["network", "disconnect", "b", "c"]);
    assert!(interface(&c, "eth1").is_none());
    before.assert_same(&world.state(), "connect and disconnect");
    for family in FAMILIES {
        assert!(!ping(&c, d.ip(family), SHORT).is_open());
        assert_pings(&c, e.ip(family));
    }
    // The network that gave the default route can go as well; the other one takes over.
    world.portolan_ok(&["network", "connect", "b", "c"]);
    world.portolan_ok(&["network", "disconnect", "a", "c"]);
    for family in FAMILIES {
        assert_pings(&c, d.ip(family));
        assert_eq!(seen_by_neighbour(&world, &c, family), host_ip(family));
    }
    drop(stream);
    world.verify();
}

#[test]
fn the_smallest_subnets_hold_one_container() {
    let Some(world) = World::or_skip("small") else { return };
    world.network("pair", &["--subnet", "10.42.0.0/31", "--subnet", "fd42::/127"]);
    let c = world.container("c", &["--network", "pair"]);
    for family in FAMILIES {
        assert_eq!(c.ip(family), pick(family, "10.42.0.1", "fd42::1"));
        assert_eq!(c.gateway(family), pick(family, "10.42.0.0", "fd42::"));
        assert_pings(&c, c.gateway(family));
        assert_pings(&world.h, c.ip(family));
        assert_eq!(seen_by_neighbour(&world, &c, family), host_ip(family));
    }
    world.verify();
}

#[test]
fn a_network_of_one_family_has_nothing_of_the_other() {
    let Some(world) = World::or_skip("families") else { return };
    world.network("four", &["--ipv6=false"]);
    world.network("six", &["--ipv4=false"]);
    let (four, six) = (world.container("c4", &["--network", "four"]), world.container("c6", &["--network", "six"]));
    assert!(addresses(&four, "eth0").iter().all(IpAddr::is_ipv4), "{:?}", addresses(&four, "eth0"));
    assert!(addresses(&six, "eth0").iter().all(IpAddr::is_ipv6), "{:?}", addresses(&six, "eth0"));
    assert_eq!((four.only().v6, six.only().v4), (None, None));
    assert_eq!(seen_by_neighbour(&world, &four, Family::V4), host_ip(Family::V4));
    assert_eq!(seen_by_neighbour(&world, &six, Family::V6), host_ip(Family::V6));
    for (c, family) in [(&four, Family::V6), (&six, Family::V4)] {
        assert!(matches!(tcp_probe(c, at(neighbour_ip(family), 80), LONG), Probe::Unreachable(_)));
    }

    // Asked as its bridge would ask, it says nothing: it has no address to say it from.
    let wire = Wire::on(&world.h, &four.only().host_end);
    let bridge = interface(&world.h, world.json(&["network", "inspect", "four"])[0]["Bridge"].as_str().unwrap());
    let (bridge, mac) = (bridge.unwrap().mac.unwrap(), four.only().mac);
    let link_local = IpAddr::V6(portolan_kernel::rtnl::addr::link_local(mac));
    let asker = IpAddr::V6(portolan_kernel::rtnl::addr::link_local(bridge));
    let question = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &octets(link_local), &[1, 1], &bridge].concat();
    wire.send(&icmp6_frame((bridge, ALL_NODES_MAC), (asker, "ff02::1".parse().unwrap()), &question));
    let echo = [128, 0, 0, 0, 0, 1, 0, 1];
    wire.send(&icmp6_frame((bridge, ALL_NODES_MAC), (asker, "ff02::1".parse().unwrap()), &echo));
    assert!(!wire.sees(SHORT, |frame| frame[6..12] == mac && frame[12..14] == [0x86, 0xdd]), "it answered");
    world.verify();
}

#[test]
fn a_freed_address_rests_as_long_as_there_are_others() {
    let Some(world) = World::or_skip("rest") else { return };
    // Room for four beside the gateway.
    world.network("web", &["--subnet", "10.43.0.0/29", "--ip-range", "10.43.0.0/29", "--subnet", "fd43::/125"]);
    let mut given = Vec::new();
    for number in 0..7 {
        let name = format!("c{number}");
        let c = world.container(&name, &["--network", "web"]);
        given.push(FAMILIES.map(|family| octets(c.ip(family)).pop().unwrap()));
        world.portolan_ok(&["detach", &name]);
    }
    let v4: Vec<u8> = given.iter().map(|[v4, _]| *v4).collect();
    assert_eq!(v4, [2, 3, 4, 5, 6, 2, 3], "the one that rested longest comes first");
    let v6: Vec<u8> = given.iter().map(|[_, v6]| *v6).collect();
    assert_eq!(v6, [2, 3, 4, 5, 6, 7, 2]);
    world.verify();
}

#[test]
fn interfaces_are_numbered_or_named_by_choice() {
    let Some(world) = World::or_skip("names") else { return };
    world.network("a", &[]);
    world.network("b", &[]);
    world.network("lan", &["--opt", "interface_prefix=lan"]);
    let c = world.container("c", &["--network", "b", "--network", "a", "--network", "lan"]);
    let names = ["b", "a", "lan"].map(|network| c.on(network).ifname.as_str());
    assert_eq!(names, ["eth0", "eth1", "lan0"]);
    let d = world.container("d", &["--network", "name=a,ifname=wan7"]);
    assert_eq!(d.on("a").ifname, "wan7");
    for (place, names) in [(&c, &names[..]), (&d, &["wan7"])] {
        for name in names {
            assert!(interface(place, name).unwrap().up, "{name}");
        }
    }
    let e = world.container("e", &["--network", "a"]);
    assert_ne!(e.only().host_end, c.on("a").host_end);
    for family in FAMILIES {
        assert_pings(&c, d.on("a").ip(family).unwrap());
    }
}

#[test]
fn a_container_cannot_speak_as_another() {
    let Some(world) = World::or_skip("spoof") else { return };
    world.network("web", &[]);
    let [bad, victim, other] = ["bad", "victim", "other"].map(|name| world.container(name, &["--network", "web"]));
    let (out, into) = (Wire::on(&bad, "eth0"), Wire::on(&victim, "eth0"));
    let (own, to, foreign) = (bad.only().mac, victim.only().mac, other.only().mac);
    let made_up = mac("02:66:66:66:66:66");
    let arrives = |frame: Vec<u8>| {
        out.send(&frame);
        // What follows on the same path shows that the first one would have come by now.
        let end = udp_frame((own, to), (bad.ip(Family::V4), victim.ip(Family::V4)), (4000, 4001), b"end of test");
        out.send(&end);
        let mut found = false;
        assert!(into.sees(LONG, |seen| {
            found |= seen == frame;
            seen == end
        }));
        found
    };
    for family in FAMILIES {
        let (mine, theirs, target) = (bad.ip(family), other.ip(family), victim.ip(family));
        let unused = pick(family, "192.0.2.66", "2001:db8::66");
        let udp = |mac, ip| udp_frame((mac, to), (ip, target), (4000, 4002), b"hello");
        assert!(arrives(udp(own, mine)), "an honest frame arrives, {family:?}");
        for (what, mac, ip) in [
            ("another's address", own, theirs),
            ("another's MAC", foreign, mine),
            ("another's MAC and address", foreign, theirs),
            ("the gateway's address", own, bad.gateway(family)),
            ("an address of nobody", own, unused),
            ("a MAC of nobody", made_up, mine),
        ] {
            assert!(!arrives(udp(mac, ip)), "{what}, {family:?}");
        }
    }

    let (mine, theirs, target) = (bad.ip(Family::V4), other.ip(Family::V4), victim.ip(Family::V4));
    assert!(arrives(arp_frame((own, to), 2, (own, mine), (to, target))), "an honest ARP reply arrives");
    for (what, ether, sender) in [
        ("ARP for another's address", own, (own, theirs)),
        ("ARP for the gateway", own, (own, bad.gateway(Family::V4))),
        ("ARP with another's MAC inside", own, (foreign, mine)),
        ("ARP with another's MAC", foreign, (foreign, theirs)),
    ] {
        for operation in [1, 2] {
            assert!(!arrives(arp_frame((ether, to), operation, sender, (to, target))), "{what}");
            assert!(!arrives(arp_frame((ether, BROADCAST), operation, sender, ([0; 6], target))), "{what}, to all");
        }
    }

    let (mine, theirs, target) = (bad.ip(Family::V6), other.ip(Family::V6), victim.ip(Family::V6));
    let link_local = IpAddr::V6(portolan_kernel::rtnl::addr::link_local(own));
    let advertisement =
        |about: IpAddr, mac: [u8; 6]| [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &octets(about), &[2, 1], &mac].concat();
    let send = |from: IpAddr, message: &[u8]| arrives(icmp6_frame((own, to), (from, target), message));
    assert!(send(mine, &advertisement(mine, own)), "an honest advertisement arrives");
    assert!(send(link_local, &advertisement(link_local, own)), "an honest advertisement arrives");
    assert!(!send(theirs, &advertisement(theirs, own)), "another's address as source");
    let router = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    for from in [mine, link_local] {
        assert!(!send(from, &router), "a router advertisement");
        let to_all = icmp6_frame((own, ALL_NODES_MAC), (from, "ff02::1".parse().unwrap()), &router);
        assert!(!arrives(to_all), "a router advertisement to all");
    }
    let redirect = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &octets(mine), &octets(theirs)].concat();
    assert!(!send(link_local, &redirect), "a redirect");

    // And nothing of it reached the host: its neighbours are where they were.
    for family in FAMILIES {
        assert_pings(&world.h, other.ip(family));
        assert_pings(&victim, other.ip(family));
    }
    world.verify();
}

/// The kernel keeps the route to a bridge's own address a little longer than the bridge.
#[test]
fn a_subnet_is_free_as_soon_as_its_network_is_gone() {
    let Some(world) = World::or_skip("again") else { return };
    for _ in 0..40 {
        world.network("a", &["--subnet", "10.91.0.0/24", "--subnet", "fd91::/64"]);
        world.portolan_ok(&["network", "rm", "a"]);
    }
}
