//! Published ports that the kernel cannot translate.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

use common::*;
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family;
use portolan_lab::probe::{tcp_probe, udp_probe};
use portolan_lab::server::{TcpServer, UdpServer, once_free};
use portolan_lab::{InNetns, eventually};

const LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn world(name: &str) -> Option<World> {
    let mut world = World::or_skip(name)?;
    world.daemon = true;
    Some(world)
}

fn listener(place: &impl InNetns, port: u16) -> TcpListener {
    with_netns(place.netns(), || once_free(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).unwrap()).unwrap()
}

fn connect(place: &impl InNetns, to: SocketAddr) -> TcpStream {
    let stream = with_netns(place.netns(), || TcpStream::connect_timeout(&to, LONG).unwrap()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// `[::1]` reaches containers of every kind, and nobody but the host itself reaches `[::1]`.
#[test]
fn the_hosts_own_loopback() {
    let Some(world) = world("loopback") else { return };
    world.network("v4", &["--ipv6=false"]);
    world.network("v6", &["--ipv4=false"]);
    for (number, network) in ["bridge", "v4", "v6"].into_iter().enumerate() {
        let (tcp, udp, own) = (8080 + number as u16, 5300 + number as u16, 9090 + number as u16);
        let ports = [format!("{tcp}:80"), format!("{udp}:53/udp"), format!("[::1]:{own}:80")];
        let site = world.container(network, &["--network", network, "-p", &ports[0], "-p", &ports[1], "-p", &ports[2]]);
        let _tcp = TcpServer::start(&site, any(Family::V6, 80), network).unwrap();
        let _udp = UdpServer::start(&site, any(Family::V6, 53), network).unwrap();
        for port in [tcp, own] {
            let probe = tcp_probe(&world.h, at(LOOPBACK, port), LONG);
            assert_eq!(probe.banner(), Some(network), "[::1]:{port}: {probe}");
        }
        let probe = udp_probe(&world.h, at(LOOPBACK, udp), LONG);
        assert_eq!(probe.banner(), Some(network), "[::1]:{udp}: {probe}");
        // The neighbour reaches it over both families, whichever the container has; of the host's own, nothing.
        for family in [Family::V4, Family::V6] {
            let probe = tcp_probe(&world.n, at(host_ip(family), tcp), LONG);
            assert_eq!(probe.banner(), Some(network), "{family:?} {tcp}: {probe}");
            let probe = udp_probe(&world.n, at(host_ip(family), udp), LONG);
            assert_eq!(probe.banner(), Some(network), "{family:?} {udp}: {probe}");
            assert!(!tcp_probe(&world.n, at(host_ip(family), own), SHORT).is_open(), "{family:?}");
        }
        assert!(!tcp_probe(&site, at(LOOPBACK, own), SHORT).is_open(), "the container's own ::1 is another one");
    }
    world.verify();
    // With the container its listeners go, and others may have the port.
    world.portolan_ok(&["detach", "v4"]);
    assert!(!tcp_probe(&world.h, at(LOOPBACK, 8081), SHORT).is_open());
    let _taken = with_netns(world.h.netns(), || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8081)).unwrap()).unwrap();
    world.container("again", &["--network", "v4", "-p", "8091:80"]);
}

#[test]
fn an_internal_network_reaches_no_proxied_port() {
    let Some(world) = world("internal") else { return };
    world.network("v4", &["--ipv6=false"]);
    world.network("inside", &["--internal"]);
    let site = world.container("site", &["--network", "v4", "-p", "8080:80"]);
    let inside = world.container("inside", &["--network", "inside"]);
    let _tcp = TcpServer::start(&site, any(Family::V6, 80), "site").unwrap();
    let gateway = gateway_of(&world, "inside", Family::V6);
    assert_eq!(tcp_probe(&world.n, at(host_ip(Family::V6), 8080), LONG).banner(), Some("site"), "the control");
    for to in [host_ip(Family::V6), gateway] {
        // To its own gateway it may speak, where nobody listens for it.
        assert!(!tcp_probe(&inside, at(to, 8080), SHORT).is_open(), "{to}");
    }
}

/// Bytes in both directions, ends and resets arrive as they would without a proxy.
#[test]
fn a_connection_is_a_connection() {
    let Some(world) = world("stream") else { return };
    let site = world.container("site", &["--network", "bridge", "-p", "8080:80", "-p", "8081:81"]);
    let server = listener(&site, 80);
    let to = at(LOOPBACK, 8080);

    // The client ends first, and still gets its answer.
    let mut client = connect(&world.h, to);
    let (mut inside, _) = server.accept().unwrap();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    inside.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "question");
    inside.write_all(b"answer").unwrap();
    drop(inside);
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "answer");

    // Much in both directions at once, to a reader that takes its time.
    let block: Vec<u8> = (0..100_003u32).map(|n| (n * 31 % 251) as u8).collect();
    let (blocks, total) = (300, 300 * block.len());
    let client = connect(&world.h, to);
    let (inside, _) = server.accept().unwrap();
    let send = |mut stream: &TcpStream| {
        (0..blocks).for_each(|_| stream.write_all(&block).unwrap());
        stream.shutdown(Shutdown::Write).unwrap();
    };
    let receive = |mut stream: &TcpStream| {
        let mut chunk = vec![0; 70_001];
        let mut read = 0;
        loop {
            let length = stream.read(&mut chunk).unwrap();
            if length == 0 {
                return read;
            }
            for (offset, byte) in chunk[..length].iter().enumerate() {
                assert_eq!(*byte, block[(read + offset) % block.len()]);
            }
            read += length;
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send(&client));
        scope.spawn(|| send(&inside));
        let there = scope.spawn(|| receive(&inside));
        assert_eq!(receive(&client), total);
        assert_eq!(there.join().unwrap(), total);
    });

    // A reset is passed on.
    let client = connect(&world.h, to);
    let (inside, _) = server.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
    inside.set_read_timeout(Some(LONG)).unwrap();
    let error = (&inside).read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    // Nobody listens inside.
    let closed = at(LOOPBACK, 8081);
    let client = with_netns(world.h.netns(), || TcpStream::connect_timeout(&closed, LONG)).unwrap();
    // The reset may come before the connection is noticed.
    assert!(client.is_err() || client.is_ok_and(|mut client| client.read(&mut [0; 8]).is_err()));

    // A thousand at once.
    let clients: Vec<TcpStream> = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| (0..1000).map(|_| server.accept().unwrap().0).collect::<Vec<_>>());
        let clients = (0..1000).map(|_| connect(&world.h, to)).collect();
        for mut stream in accepted.join().unwrap() {
            stream.write_all(b"x").unwrap();
        }
        clients
    });
    for mut client in clients {
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 1);
    }
}

/// An upgrade in the middle of it, again and again: no byte is lost, none comes twice.
#[test]
fn connections_outlive_upgrades() {
    let Some(world) = world("upgrades") else { return };
    let site = world.container("site", &["--network", "bridge", "-p", "8080:80", "-p", "5300:53/udp"]);
    let server = listener(&site, 80);
    let idle = connect(&world.h, at(LOOPBACK, 8080));
    let (mut idle_inside, _) = server.accept().unwrap();
    let mut client = connect(&world.h, at(LOOPBACK, 8080));
    let (mut inside, _) = server.accept().unwrap();
    let _udp = UdpServer::start(&site, any(Family::V6, 53), "site").unwrap();
    let datagrams = with_netns(world.h.netns(), || UdpSocket::bind("[::]:0").unwrap()).unwrap();
    datagrams.connect(at(LOOPBACK, 5300)).unwrap();
    datagrams.set_read_timeout(Some(LONG)).unwrap();
    let ask = || {
        datagrams.send(b"?").unwrap();
        let mut answer = [0; 256];
        let length = datagrams.recv(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    let before = ask();
    const TOTAL: usize = 64 << 20;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let block: Vec<u8> = (0..=u16::MAX).map(|n| (n % 253) as u8).collect();
            for _ in 0..TOTAL / block.len() {
                client.write_all(&block).unwrap();
            }
        });
        let reader = scope.spawn(move || {
            let mut chunk = vec![0; 1 << 16];
            let mut read = 0;
            loop {
                let length = inside.read(&mut chunk).unwrap();
                if length == 0 {
                    return read;
                }
                for (offset, byte) in chunk[..length].iter().enumerate() {
                    assert_eq!(*byte, ((read + offset) % (1 << 16) % 253) as u8);
                }
                read += length;
            }
        });
        let mut upgrades = 0;
        while !reader.is_finished() || upgrades < 3 {
            world.portolan_ok(&["daemon", "upgrade"]);
            upgrades += 1;
        }
        eprintln!("{upgrades} upgrades");
        assert_eq!(reader.join().unwrap(), TOTAL);
    });
    // The idle one lives, and so does the UDP client: the container sees it come from the same port.
    (&idle).write_all(b"still here").unwrap();
    let mut heard = [0; 10];
    idle_inside.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still here");
    assert_eq!(ask(), before);
    assert!(eventually(LONG, || tcp_probe(&world.h, at(LOOPBACK, 8080), LONG).is_open()));
}
