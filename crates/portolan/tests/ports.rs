//! Published ports, line by line, with real packets of both families.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use common::{
    Container, FAMILIES, LONG, SHORT, World, any, assert_leads, assert_refused, at, host_ip, loopback, neighbour_ip,
    pick,
};
use portolan_kernel::conntrack::{self, Filter};
use portolan_kernel::netlink::{NETFILTER, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family;
use portolan_lab::InNetns;
use portolan_lab::probe::{Probe, tcp_probe, udp_probe};
use portolan_lab::sctp::{SctpServer, sctp_probe};
use portolan_lab::server::{TcpServer, UdpServer, once_free};

/// The host ports that container port `port` has, in the order they were published.
#[track_caller]
fn host_ports(world: &World, container: &str, port: &str) -> Vec<String> {
    let text = |value: &serde_json::Value| value.to_string().trim_matches('"').to_owned();
    let rows = world.json(&["publish", "ls", container]);
    let rows = rows.as_array().unwrap().iter().filter(|row| text(&row["ContainerPort"]) == port);
    rows.map(|row| text(&row["HostPort"])).collect()
}

/// Servers on TCP ports of both families that call themselves by their port.
fn listen(c: &Container, ports: impl IntoIterator<Item = u16>) -> Vec<TcpServer> {
    ports.into_iter().map(|port| TcpServer::start(c, any(Family::V6, port), &port.to_string()).unwrap()).collect()
}

#[test]
fn every_form_of_publish() {
    let Some(world) = World::or_skip("forms") else { return };
    for address in ["10.0.1.9/24", "fd00:1::9/64"] {
        world.h.add_address("eth0", address).unwrap();
    }
    world.network("web", &[]);
    // Somebody has the first of the range already.
    let _foreign = TcpServer::start(&world.h, any(Family::V6, 9000), "foreign").unwrap();
    let forms = [
        "8080:80",
        "127.0.0.1:8081:81",
        "10.0.1.1:8082:82",
        "[fd00:1::1]:8083:83",
        "8090-8092:90-92",
        "9000-9010:95",
        "96",
        "0.0.0.0:8097:97",
        "[::]:8098:98",
        "8085-8087:85-87/tcp",
        "10.0.1.9::99",
        "70-71",
        "5353:53/udp",
        "5400-5402:5400-5402/udp",
        "5500:55/sctp",
    ];
    let args: Vec<&str> = ["--network", "web"].into_iter().chain(forms.iter().flat_map(|form| ["-p", form])).collect();
    let c = world.container("c", &args);
    let _servers = listen(&c, [80, 81, 82, 83, 85, 86, 87, 90, 91, 92, 95, 96, 97, 98, 99, 70, 71]);
    let n = &world.n;
    let other = |family| pick(family, "10.0.1.9", "fd00:1::9");
    for family in FAMILIES {
        let ip = host_ip(family);
        assert_leads(n, at(ip, 8080), "80");
        assert_leads(n, at(other(family), 8080), "80");
        for (host, port) in [(8085, "85"), (8086, "86"), (8087, "87"), (8090, "90"), (8091, "91"), (8092, "92")] {
            assert_leads(n, at(ip, host), port);
        }
        assert_refused(n, at(ip, 8093));
        assert_refused(n, at(ip, 8081));
        assert_refused(n, at(other(family), 8082));
        assert_refused(n, at(other(family), 8083));
        match family {
            Family::V4 => {
                assert_leads(&world.h, at(loopback(family), 8081), "81");
                assert_leads(n, at(ip, 8082), "82");
                assert_leads(n, at(ip, 8097), "97");
                assert_refused(n, at(ip, 8083));
                assert_refused(n, at(ip, 8098));
            }
            Family::V6 => {
                assert_leads(n, at(ip, 8083), "83");
                assert_leads(n, at(ip, 8098), "98");
                assert_refused(n, at(ip, 8082));
                assert_refused(n, at(ip, 8097));
            }
        }
        assert_eq!(host_ports(&world, "c", "95"), ["9001"], "the first free one");
        assert_leads(n, at(ip, 9001), "95");
        assert_leads(n, at(ip, 9000), "foreign");
        for port in ["96", "70", "71"] {
            let host = host_ports(&world, "c", port);
            assert_eq!(host.len(), 1, "{port}: {host:?}");
            let host: u16 = host[0].parse().unwrap();
            assert!((32768..=60999).contains(&host), "an ephemeral one: {host}");
            assert_leads(n, at(ip, host), port);
        }
        let host: u16 = host_ports(&world, "c", "99")[0].parse().unwrap();
        if family == Family::V4 {
            assert_leads(n, at(other(family), host), "99");
        }
        assert_refused(n, at(ip, host));

        for (host, port) in [(5353, 53), (5400, 5400), (5402, 5402)] {
            let _server = UdpServer::start(&c, any(family, port), "udp").unwrap();
            let probe = udp_probe(n, at(ip, host), LONG);
            assert_eq!(probe.banner(), Some("udp"), "{host}: {probe}");
            assert_eq!(probe.seen().unwrap().ip(), neighbour_ip(family));
            assert_refused(n, at(ip, host));
        }
        let _server = SctpServer::start(&c, any(family, 55), "sctp").unwrap();
        let probe = sctp_probe(n, 4000, at(ip, 5500), LONG);
        assert_eq!(probe.banner(), Some("sctp"), "{probe}");
        assert_eq!(probe.seen().unwrap().ip(), neighbour_ip(family));
    }
    world.verify();
}

#[test]
fn exposed_ports_are_published_on_demand() {
    let Some(world) = World::or_skip("expose") else { return };
    let c = world.container("c", &["-P", "--expose", "80", "--expose", "53/udp", "-p", "8081:81"]);
    let _servers = listen(&c, [80, 81]);
    let _dns = UdpServer::start(&c, any(Family::V6, 53), "53").unwrap();
    let port = |of| host_ports(&world, "c", of)[0].parse::<u16>().unwrap();
    for family in FAMILIES {
        assert_leads(&world.n, at(host_ip(family), port("80")), "80");
        assert_leads(&world.n, at(host_ip(family), 8081), "81");
        assert_eq!(udp_probe(&world.n, at(host_ip(family), port("53")), LONG).banner(), Some("53"));
    }
}

#[test]
fn a_clash_is_named_before_anything_changes() {
    let Some(world) = World::or_skip("clash") else { return };
    world.network("web", &[]);
    let held = ["8080:80", "127.0.0.1:8081:81", "8090-8099:90-99", "5353:53/udp"];
    let args: Vec<&str> = ["--network", "web"].into_iter().chain(held.iter().flat_map(|form| ["-p", form])).collect();
    let holder = world.container("holder", &args);
    let free = world.lab.host("free").unwrap();
    let path = free.netns_path().to_str().unwrap();
    let tcp4 = TcpServer::start(&world.h, "0.0.0.0:8500".parse().unwrap(), "foreign").unwrap();
    let _tcp6 = TcpServer::start(&world.h, "[fd00:1::1]:8501".parse().unwrap(), "foreign").unwrap();
    let _udp = UdpServer::start(&world.h, "127.0.0.1:8502".parse().unwrap(), "foreign").unwrap();
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    let process = comm.trim();
    let before = world.state();
    let by_container = |spec: &str, port: &str| {
        for args in [
            vec!["attach", "--netns", path, "--name", "late", "--network", "web", "-p", "7000:70", "-p", spec],
            vec!["publish", "add", "holder", "7000:70", spec],
        ] {
            let message = world.refused(&args);
            assert!(message.contains("`holder`") && message.contains(port), "{spec}: {message}");
            before.assert_same(&world.state(), spec);
        }
    };
    by_container("8080:81", "8080");
    by_container("10.0.1.1:8080:81", "8080");
    by_container("8081:81", "8081");
    by_container("8095:1", "8095");
    by_container("8085-8090:1-6", "8085-8090");
    by_container("5353:54/udp", "5353");
    for (spec, port) in [
        ("8500:80", "8500/tcp"),
        ("8499-8501:1-3", "8500/tcp"),
        ("[::]:8501:80", "8501/tcp"),
        ("8502:80/udp", "8502/udp"),
        ("127.0.0.1:8500:80", "8500/tcp"),
    ] {
        let args = ["attach", "--netns", path, "--name", "late", "--network", "web", "-p", "7000:70", "-p", spec];
        let message = world.refused(&args);
        assert!(message.contains(port) && message.contains(process), "{spec}: {message}");
        before.assert_same(&world.state(), spec);
    }
    // What does not clash is not refused.
    for spec in ["8080:80/udp", "8502:80", "10.0.1.1:8081:81", "10.0.1.1:8502:82/udp", "10.0.1.1:8501:83"] {
        world.portolan_ok(&["publish", "add", "holder", spec]);
    }
    // Once the listener is gone the port can be had.
    drop(tcp4);
    world.portolan_ok(&["publish", "add", "holder", "8500:80"]);
    let _server = listen(&holder, [80]);
    for family in FAMILIES {
        assert_leads(&world.n, at(host_ip(family), 8500), "80");
    }
    world.verify();
}

/// A connection that has to go on.
struct Line(TcpStream);

impl Line {
    fn open(from: &impl InNetns, to: SocketAddr) -> Self {
        let stream = with_netns(from.netns(), || TcpStream::connect_timeout(&to, LONG)).unwrap().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut greeting = [0; 256];
        let len = (&stream).read(&mut greeting).unwrap();
        assert!(greeting[..len].ends_with(b"\n"));
        Self(stream)
    }

    #[track_caller]
    fn assert_flows(&mut self) {
        self.0.write_all(b"are you there?").unwrap();
        let mut answer = [0; 14];
        self.0.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"are you there?");
    }
}

#[test]
fn publishing_on_a_live_container_disturbs_nobody() {
    let Some(world) = World::or_skip("live") else { return };
    world.network("web", &[]);
    let c = world.container("c", &["--network", "web", "-p", "8080:80"]);
    let d = world.container("d", &["--network", "web"]);
    let _servers = listen(&c, [80, 81]);
    let mut lines: Vec<Line> = FAMILIES
        .iter()
        .flat_map(|family| [Line::open(&world.n, at(host_ip(*family), 8080)), Line::open(&d, at(c.ip(*family), 80))])
        .collect();
    let before = world.state();
    for _ in 0..3 {
        world.portolan_ok(&["publish", "add", "c", "8081:81", "8100-8199:100-199/udp"]);
        for family in FAMILIES {
            assert_leads(&world.n, at(host_ip(family), 8081), "81");
        }
        lines.iter_mut().for_each(Line::assert_flows);
        world.verify();
        world.portolan_ok(&["publish", "rm", "c", "8081:81", "8100-8199:100-199/udp"]);
        for family in FAMILIES {
            assert_refused(&world.n, at(host_ip(family), 8081));
        }
        lines.iter_mut().for_each(Line::assert_flows);
        before.assert_same(&world.state(), "publishing and taking back");
    }
    world.verify();
}

/// Sends on one socket until `banner` answers; what answered last.
fn talk_until(socket: &UdpSocket, banner: &str) -> String {
    let end = Instant::now() + LONG;
    let mut last = String::new();
    let mut buf = [0; 256];
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while Instant::now() < end {
        let _ = socket.send(b"who is there?");
        if let Ok(len) = socket.recv(&mut buf) {
            last = String::from_utf8_lossy(&buf[..len]).into_owned();
            if last.starts_with(banner) {
                break;
            }
        }
    }
    last
}

#[test]
fn a_datagram_client_follows_a_port_that_moves() {
    let Some(world) = World::or_skip("udp-moves") else { return };
    world.network("web", &[]);
    let a = world.container("a", &["--network", "web", "-p", "5353:53/udp", "-p", "5354:54/udp"]);
    let b = world.container("b", &["--network", "web"]);
    let _servers: Vec<UdpServer> = [(&a, 53, "a"), (&a, 54, "stays"), (&b, 530, "b")]
        .map(|(c, port, banner)| UdpServer::start(c, any(Family::V6, port), banner).unwrap())
        .into();
    let client = |family, from: u16, to: u16| {
        let socket = with_netns(world.n.netns(), || once_free(|| UdpSocket::bind(at(neighbour_ip(family), from))))
            .unwrap()
            .unwrap();
        socket.connect(at(host_ip(family), to)).unwrap();
        socket
    };
    let mut netlink = with_netns(world.h.netns(), || Socket::open(NETFILTER)).unwrap().unwrap();
    let mut flows_to = |port: u16| {
        let all = conntrack::dump(&mut netlink, Filter::default()).unwrap();
        let mut ids: Vec<_> = all.iter().filter(|flow| flow.original.dst_port == port).map(|flow| flow.id).collect();
        ids.sort();
        ids
    };
    let moving = FAMILIES.map(|family| client(family, 4000, 5353));
    let staying = FAMILIES.map(|family| client(family, 4001, 5354));
    // One that came before the port was published has a flow to nowhere.
    let early = FAMILIES.map(|family| client(family, 4002, 5355));
    for index in 0..2 {
        assert!(talk_until(&moving[index], "a").starts_with("a "));
        assert!(talk_until(&staying[index], "stays").starts_with("stays "));
        let _ = early[index].send(b"who is there?");
    }
    let before = flows_to(5354);
    assert_eq!(before.len(), 2);

    world.portolan_ok(&["publish", "rm", "a", "5353:53/udp"]);
    assert_eq!(flows_to(5353).len(), 0, "flows by the host's port are forgotten");
    let _ = moving.iter().map(|socket| socket.send(b"meanwhile")).collect::<Vec<_>>();
    world.portolan_ok(&["publish", "add", "b", "5353:530/udp", "5355:530/udp"]);
    for index in 0..2 {
        assert!(talk_until(&moving[index], "b").starts_with("b "), "reaches the new one");
        assert!(talk_until(&early[index], "b").starts_with("b "), "reaches the new one");
    }
    assert_eq!(flows_to(5354), before, "other flows stay");
    for socket in &staying {
        assert!(talk_until(socket, "stays").starts_with("stays "));
    }

    // The same when the container goes, and another one takes the port.
    world.portolan_ok(&["detach", "b"]);
    world.portolan_ok(&["publish", "add", "a", "5353:53/udp"]);
    for socket in &moving {
        assert!(talk_until(socket, "a").starts_with("a "));
    }
    assert_eq!(flows_to(5354), before, "other flows stay");
    world.verify();
}

#[test]
fn what_passes_through_is_not_stolen() {
    let Some(world) = World::or_skip("transit") else { return };
    // A router before it had containers.
    world.h.enable_forwarding().unwrap();
    let (m, _lan2) = world.second_lan();
    world.network("web", &[]);
    let c = world.container("c", &["--network", "web", "-p", "8080:80", "-p", "8053:53/udp"]);
    let _c = (listen(&c, [80]), UdpServer::start(&c, any(Family::V6, 53), "53").unwrap());
    let _n = TcpServer::start(&world.n, any(Family::V6, 8080), "n").unwrap();
    let _m = TcpServer::start(&m, any(Family::V6, 8080), "m").unwrap();
    let _m_udp = UdpServer::start(&m, any(Family::V6, 8053), "m").unwrap();
    for family in FAMILIES {
        let m_ip = pick(family, "10.0.2.2", "fd00:2::2");
        for (from, seen) in
            [(world.n.netns(), neighbour_ip(family)), (c.netns(), pick(family, "10.0.2.1", "fd00:2::1"))]
        {
            let probe = tcp_probe(from, at(m_ip, 8080), LONG);
            assert_eq!(probe.banner(), Some("m"), "{probe}");
            assert_eq!(probe.seen().unwrap().ip().to_canonical(), seen);
            assert_eq!(udp_probe(from, at(m_ip, 8053), LONG).banner(), Some("m"));
        }
        assert_leads(&m, at(neighbour_ip(family), 8080), "n");
        assert_leads(&world.h, at(m_ip, 8080), "m");
        assert_leads(&m, at(host_ip(family), 8080), "80");
        assert_leads(&world.n, at(pick(family, "10.0.2.1", "fd00:2::1"), 8080), "80");
    }
    // Neither LAN reaches the containers themselves.
    world.route_back("web");
    for family in FAMILIES {
        for from in [&m, &world.n] {
            assert_eq!(tcp_probe(from, at(c.ip(family), 80), SHORT), Probe::Timeout);
        }
    }
    world.verify();
}

#[test]
fn a_range_is_one_element_per_family_and_protocol() {
    let Some(world) = World::or_skip("range") else { return };
    world.network("web", &[]);
    let ranges = ["-p", "10000-19999:10000-19999", "-p", "10000-19999:10000-19999/udp"];
    let c = world.container("c", &[&["--network", "web"][..], &ranges].concat());
    let text = world.portolan_ok(&["rules", "--as", "nft"]);
    let elements: Vec<&str> = text.lines().filter(|line| line.contains("10000-19999")).collect();
    assert_eq!(elements.len(), 4, "{elements:#?}");
    for protocol in ["tcp", "udp"] {
        assert_eq!(elements.iter().filter(|line| line.contains(&format!("{protocol} . 10000-19999"))).count(), 2);
    }
    let _tcp = listen(&c, [9999, 10000, 15000, 19999, 20000]);
    let _udp: Vec<UdpServer> =
        [10000, 19999].map(|port| UdpServer::start(&c, any(Family::V6, port), &port.to_string()).unwrap()).into();
    for family in FAMILIES {
        for port in [10000, 15000, 19999] {
            assert_leads(&world.n, at(host_ip(family), port), &port.to_string());
        }
        for port in [9999, 20000] {
            assert_refused(&world.n, at(host_ip(family), port));
        }
        for port in [10000, 19999] {
            assert_eq!(udp_probe(&world.n, at(host_ip(family), port), LONG).banner(), Some(port.to_string().as_str()));
        }
    }
    world.verify();
    world.portolan_ok(&["publish", "rm", "c", "10000-19999:10000-19999", "10000-19999:10000-19999/udp"]);
    assert!(!world.portolan_ok(&["rules", "--as", "nft"]).contains("10000-19999"));
    for family in FAMILIES {
        assert_refused(&world.n, at(host_ip(family), 15000));
    }
}
