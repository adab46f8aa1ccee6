//! Published ports, from every side.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use portolan_kernel::conntrack::{self, Filter};
use portolan_kernel::netlink::{Batch, NETFILTER, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::{Family, addr};
use portolan_lab::probe::{tcp_probe, udp_probe};
use portolan_lab::sctp::{SctpServer, sctp_probe};
use portolan_lab::server::{TcpServer, UdpServer};
use portolan_lab::{InNetns, eventually};
use serde_json::json;

use crate::common::{FAMILIES, LONG, SHORT, any, assert_closed, assert_leads, at, host_ip, interface, loopback, pick};
use crate::podman::{Podman, bridge, ip, merged};

/// From the neighbour, the host, the container itself, another of its network, and one of another network.
#[test]
fn from_everywhere() {
    let Some(podman) = Podman::with_names("nv-ports") else { return };
    let network = bridge("web", 1);
    let site = podman.pod("site").at(&network, 5).ports(&[
        (8080, 80, "tcp", ""),
        (5353, 53, "udp", ""),
        (8081, 81, "tcp,udp", ""),
        (8500, 85, "sctp", ""),
    ]);
    let other = podman.pod("other").at(&network, 6);
    let far = podman.pod("far").at(&bridge("far", 2), 5);
    for pod in [&site, &other, &far] {
        podman.up(pod);
    }
    let _tcp = [80, 81].map(|port| TcpServer::start(&site, any(Family::V6, port), &format!("t{port}")).unwrap());
    let _udp = [53, 81].map(|port| UdpServer::start(&site, any(Family::V6, port), &format!("u{port}")).unwrap());
    for family in FAMILIES {
        let to = host_ip(family);
        let udp = |from: &dyn Fn(SocketAddr) -> portolan_lab::probe::Probe, port: u16, banner: &str| {
            let probe = from(at(to, port));
            assert_eq!(probe.banner(), Some(banner), "{to} {port}/udp: {probe}");
        };
        for from in [podman.world.n.netns(), podman.world.h.netns(), site.netns(), other.netns(), far.netns()] {
            assert_leads(from, at(to, 8080), "t80");
            assert_leads(from, at(to, 8081), "t81");
            udp(&|to| udp_probe(from, to, LONG), 5353, "u53");
            udp(&|to| udp_probe(from, to, LONG), 8081, "u81");
        }
        assert_leads(&podman.world.h, at(loopback(family), 8080), "t80");
        assert_leads(&other, at(ip(family, 1, 1), 8080), "t80");
        assert_closed(&podman.world.n, at(to, 8082));
        let sctp = SctpServer::start(&site, any(family, 85), "s85").unwrap();
        let probe = sctp_probe(&podman.world.n, 4000, at(to, 8500), LONG);
        assert!(probe.is_open(), "{probe}");
        drop(sctp);
    }
    podman.world.verify();
    podman.down(&site);
    for family in FAMILIES {
        assert_closed(&podman.world.n, at(host_ip(family), 8080));
        assert!(!udp_probe(&podman.world.n, at(host_ip(family), 5353), SHORT).is_open());
    }
}

#[test]
fn on_one_address_of_the_host() {
    let Some(podman) = Podman::with_names("nv-host-ip") else { return };
    for address in ["10.0.1.77/24", "fd00:1::77/64"] {
        podman.world.h.add_address("eth0", address).unwrap();
    }
    let pod = podman.pod("site").at(&bridge("web", 1), 5).ports(&[
        (8080, 80, "tcp", "10.0.1.77"),
        (8080, 81, "tcp", "fd00:1::77"),
        (8082, 80, "tcp", "0.0.0.0"),
        (8083, 80, "tcp", "::"),
        (8084, 80, "tcp", "127.0.0.1"),
        (8085, 80, "tcp", "::1"),
    ]);
    podman.up(&pod);
    let _servers = [80, 81].map(|port| TcpServer::start(&pod, any(Family::V6, port), &port.to_string()).unwrap());
    let (n, h) = (&podman.world.n, &podman.world.h);
    let second = |family| pick(family, "10.0.1.77", "fd00:1::77");
    assert_leads(n, at(second(Family::V4), 8080), "80");
    assert_leads(n, at(second(Family::V6), 8080), "81");
    for (family, open) in [(Family::V4, true), (Family::V6, false)] {
        assert_closed(n, at(host_ip(family), 8080));
        let check = |from: &dyn Fn(SocketAddr, bool), v4: u16, v6: u16, to: IpAddr| {
            from(at(to, v4), open);
            from(at(to, v6), !open);
        };
        let try_from = |from: &portolan_lab::Host, to, open| {
            if open { assert_leads(from, to, "80") } else { assert_closed(from, to) }
        };
        check(&|to, open| try_from(n, to, open), 8082, 8083, host_ip(family));
        try_from(h, at(loopback(family), 8084), open);
        // On ::1 Podman itself listens; no kernel translates from there.
        assert_closed(h, at(loopback(family), 8085));
        assert_closed(n, at(host_ip(family), 8084));
        assert_closed(n, at(host_ip(family), 8085));
    }
    let strange = podman.pod("strange").at(&bridge("web", 1), 6).ports(&[(8080, 80, "tcp", "abcd")]);
    assert_eq!(podman.refused(&strange), "invalid host ip \"abcd\" provided for port 8080");
    let foreign = podman.pod("foreign").at(&bridge("web", 1), 7).ports(&[(9999, 80, "tcp", "203.0.113.9")]);
    let error = podman.refused(&foreign);
    assert!(error.contains("203.0.113.9"), "{error}");
}

/// While duplicate address detection runs nobody can bind to the address, and it is the host's all the same.
#[test]
fn on_an_address_that_is_still_tentative() {
    let Some(podman) = Podman::with_names("nv-tentative") else { return };
    let (n, h) = (&podman.world.n, &podman.world.h);
    // A minute of it.
    h.sysctl(&["net", "ipv6", "conf", "eth0", "dad_transmits"], "60").unwrap();
    let tentative = |address: &str| {
        let mut batch = Batch::new();
        let index = interface(h, "eth0").unwrap().index;
        let address = address.parse().unwrap();
        addr::add(&mut batch, &addr::Address { flags: 0, ..addr::Address::new(index, address, 64) });
        h.route_socket().unwrap().transact(&batch).unwrap();
        let flags = addr::dump(&mut h.route_socket().unwrap(), Some(index)).unwrap();
        let flags = flags.into_iter().find(|found| found.addr == address).unwrap().flags;
        assert_ne!(flags & addr::TENTATIVE, 0);
    };
    tentative("fd00:1::77");
    let web = bridge("web", 1);
    let site =
        podman.pod("site").at(&web, 5).ports(&[(8080, 80, "tcp", "fd00:1::77"), (5353, 53, "udp", "fd00:1::77")]);
    podman.up(&site);
    let _tcp = TcpServer::start(&site, any(Family::V6, 80), "t80").unwrap();
    let _udp = UdpServer::start(&site, any(Family::V6, 53), "u53").unwrap();
    podman.world.verify();
    // Found to be nobody else's.
    h.remove_address("eth0", "fd00:1::77/64").unwrap();
    h.add_address("eth0", "fd00:1::77/64").unwrap();
    let place = |port| at("fd00:1::77".parse().unwrap(), port);
    assert_leads(n, place(8080), "t80");
    let probe = udp_probe(n, place(5353), LONG);
    assert_eq!(probe.banner(), Some("u53"), "{probe}");
    // Whoever has a port on all addresses has it there as well.
    tentative("fd00:1::78");
    let taken = TcpServer::start(h, any(Family::V6, 8081), "taken").unwrap();
    let other = podman.pod("other").at(&web, 6).ports(&[(8081, 80, "tcp", "fd00:1::78")]);
    let error = podman.refused(&other);
    assert!(error.contains("8081"), "{error}");
    drop(taken);
    podman.up(&other);
    // The twin: an address that the host is not about to have.
    let absent = podman.pod("absent").at(&web, 7).ports(&[(8082, 80, "tcp", "fd00:1::79")]);
    let error = podman.refused(&absent);
    assert!(error.contains("fd00:1::79"), "{error}");
}

#[test]
fn ranges() {
    let Some(podman) = Podman::or_skip("nv-ranges") else { return };
    let mapping = json!([
        {"host_ip": "", "host_port": 9000, "container_port": 9000, "range": 5, "protocol": "tcp"},
        {"host_ip": "", "host_port": 9100, "container_port": 80, "range": 3, "protocol": "tcp"},
        {"host_port": 9200, "container_port": 80, "range": 0, "protocol": ""},
    ]);
    let pod = podman.pod("site").at(&bridge("web", 1), 5).with(json!({"port_mappings": mapping}));
    podman.up(&pod);
    let ports = [9000, 9001, 9004, 80, 81, 82];
    let _servers = ports.map(|port| TcpServer::start(&pod, any(Family::V6, port), &port.to_string()).unwrap());
    for family in FAMILIES {
        let leads = |host, banner| assert_leads(&podman.world.n, at(host_ip(family), host), banner);
        for (host, banner) in
            [(9000, "9000"), (9001, "9001"), (9004, "9004"), (9100, "80"), (9101, "81"), (9102, "82"), (9200, "80")]
        {
            leads(host, banner);
        }
        for port in [8999, 9005, 9103, 9201] {
            assert_closed(&podman.world.n, at(host_ip(family), port));
        }
    }
    let after = json!([{"host_port": 65535, "container_port": 80, "range": 2, "protocol": "tcp"}]);
    let bad = podman.pod("bad").at(&bridge("web", 1), 6).with(json!({"port_mappings": after}));
    assert_eq!(podman.refused(&bad), "port range of 2 from 65535 on ends after 65535");
    let odd = podman.pod("odd").at(&bridge("web", 1), 7).ports(&[(1, 1, "icmp", "")]);
    assert_eq!(podman.refused(&odd), "unknown port protocol \"icmp\"");
}

#[test]
fn a_port_that_is_taken() {
    let Some(podman) = Podman::or_skip("nv-taken") else { return };
    let network = bridge("web", 1);
    let first = podman.pod("first").at(&network, 5).ports(&[(8080, 80, "tcp", "")]);
    podman.up(&first);
    let _server = TcpServer::start(&first, any(Family::V6, 80), "first").unwrap();
    let second = podman.pod("second").at(&network, 6).ports(&[(8080, 80, "tcp", "")]);
    let error = podman.refused(&second);
    assert!(error.contains("8080") && error.contains("`first`"), "{error}");
    assert_leads(&podman.world.n, at(host_ip(Family::V4), 8080), "first");
    // The same in one container, once more and on one address.
    let twice = podman.pod("twice").at(&network, 7).ports(&[(8090, 80, "tcp", ""), (8090, 81, "tcp", "10.0.1.1")]);
    assert!(podman.refused(&twice).contains("8090"));
    // A process of the host's own.
    let busy = TcpServer::start(&podman.world.h, any(Family::V4, 8070), "busy").unwrap();
    let third = podman.pod("third").at(&network, 8).ports(&[(8070, 80, "tcp", "")]);
    let error = podman.refused(&third);
    assert!(error.contains("8070") && error.contains("process"), "{error}");
    drop(busy);
    podman.up(&third);
}

/// Podman has conmon(8) hold the ports while the container runs.
#[test]
fn a_port_that_conmon_holds() {
    let Some(podman) = Podman::or_skip("nv-conmon") else { return };
    let Some(ncat) = ["/usr/bin/ncat", "/bin/ncat"].into_iter().find(|path| std::path::Path::new(path).exists()) else {
        assert!(std::env::var_os("CI").is_none(), "CI must have ncat");
        eprintln!("SKIP: no ncat");
        return;
    };
    let conmon = podman.world.lab.dir().join("bin/conmon");
    portolan_lab::write_program(&conmon, std::fs::read(ncat).unwrap()).unwrap();
    let hold = |program: &std::path::Path, port: &str| {
        let mut command = Command::new(program);
        command.args(["-4", "-l", "-k", port]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = podman.world.h.adopt(command).unwrap().spawn().unwrap();
        let to = at(loopback(Family::V4), port.parse().unwrap());
        assert!(eventually(LONG, || tcp_probe(&podman.world.h, to, SHORT).is_open()), "{program:?} listens");
        child
    };
    let mut keeper = hold(&conmon, "8080");
    let mut other = hold(std::path::Path::new(ncat), "8081");
    let network = bridge("web", 1);
    let good = podman.pod("good").at(&network, 5).ports(&[(8080, 80, "tcp", "")]);
    podman.up(&good);
    let _server = TcpServer::start(&good, any(Family::V6, 80), "good").unwrap();
    assert_leads(&podman.world.n, at(host_ip(Family::V4), 8080), "good");
    assert_leads(&podman.world.h, at(loopback(Family::V4), 8080), "good");
    let bad = podman.pod("bad").at(&network, 6).ports(&[(8081, 80, "tcp", "")]);
    let error = podman.refused(&bad);
    assert!(error.contains("8081") && error.contains("ncat"), "{error}");
    for child in [&mut keeper, &mut other] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// A client that keeps sending from one port reaches the new container, not the flow of before.
#[test]
fn flows_of_before_are_forgotten() {
    let Some(podman) = Podman::or_skip("nv-flows") else { return };
    let network = bridge("web", 1);
    for (family, port) in [(Family::V4, 4000), (Family::V6, 4001)] {
        let client = with_netns(podman.world.n.netns(), || std::net::UdpSocket::bind((family.unspecified(), port)))
            .unwrap()
            .unwrap();
        client.set_read_timeout(Some(SHORT)).unwrap();
        let to = at(host_ip(family), 5353);
        // Nobody there yet: the flow that this makes is to the host itself.
        client.send_to(b"x", to).unwrap();
        for name in ["one", "two"] {
            let name = format!("{name}-{family:?}").to_lowercase();
            let pod = podman.pod(&name).at(&network, 5).ports(&[(5353, 53, "udp", "")]);
            podman.up(&pod);
            let _server = UdpServer::start(&pod, any(family, 53), &name).unwrap();
            let mut buf = [0; 256];
            let answered = eventually(LONG, || {
                client.send_to(b"x", to).unwrap();
                client.recv_from(&mut buf).is_ok_and(|(len, _)| String::from_utf8_lossy(&buf[..len]).starts_with(&name))
            });
            assert!(answered, "{name}");
            podman.down(&pod);
            let mut socket = with_netns(podman.world.h.netns(), || Socket::open(NETFILTER)).unwrap().unwrap();
            let left = conntrack::dump(&mut socket, Filter { family: None, protocol: Some(17) }).unwrap();
            let stale = left.iter().filter(|entry| entry.original.dst_port == 5353 && entry.reply.src != to.ip());
            assert_eq!(stale.count(), 0, "no flow leads to {name} any more: {left:?}");
        }
    }
}

/// Ports stay with a container that loses the network they led by.
#[test]
fn ports_follow_the_networks_that_are_left() {
    let Some(podman) = Podman::or_skip("nv-follow") else { return };
    let mut pod = podman.pod("c").at(&bridge("a", 1), 5).at(&bridge("b", 2), 5).ports(&[(8080, 80, "tcp", "")]);
    podman.up(&pod);
    let _server = TcpServer::start(&pod, any(Family::V6, 80), "c").unwrap();
    let both = |what: &str| {
        for family in FAMILIES {
            let probe = tcp_probe(&podman.world.n, at(host_ip(family), 8080), LONG);
            assert_eq!(probe.banner(), Some("c"), "{what}: {probe}");
        }
    };
    both("on two networks");
    let second = pod.on.pop().unwrap();
    podman.down(&pod);
    both("network disconnect");
    pod.on = vec![second];
    podman.down(&pod);
    assert_closed(&podman.world.n, at(host_ip(Family::V4), 8080));
    assert_eq!(podman.world.portolan_ok(&["ps", "-aq"]), "");
}

/// A network that is internal publishes nothing.
#[test]
fn an_internal_network_publishes_nothing() {
    let Some(podman) = Podman::or_skip("nv-internal-ports") else { return };
    let inside = podman.pod("inside").at(&merged(bridge("in", 1), json!({"internal": true})), 5);
    let inside = inside.ports(&[(8080, 80, "tcp", "")]);
    podman.up(&inside);
    let _server = TcpServer::start(&inside, any(Family::V6, 80), "inside").unwrap();
    for family in FAMILIES {
        assert_closed(&podman.world.n, at(host_ip(family), 8080));
        assert_leads(&podman.world.h, at(ip(family, 1, 5), 80), "inside");
    }
}
