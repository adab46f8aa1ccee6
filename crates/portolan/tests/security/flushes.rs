//! What is closed stays closed while others flush the ruleset over and over.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family;
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::{TcpServer, UdpServer};
use portolan_lab::{InNetns, eventually};

use crate::common::{FAMILIES, LONG, Wire, World, any, at, host_ip, interface, loopback, udp_frame};
use crate::row::Row;

const FLUSHES: usize = 200;

/// Sends a datagram to each of `targets` from `place` every millisecond, until told to stop; how many.
fn probes(place: &(impl InNetns + Sync), targets: &[SocketAddr], stop: &AtomicBool) -> usize {
    let open = |to: &SocketAddr| {
        let any = Family::of(to.ip()).unspecified();
        (with_netns(place.netns(), || UdpSocket::bind((any, 0)).unwrap()).unwrap(), *to)
    };
    let sockets: Vec<(UdpSocket, SocketAddr)> = targets.iter().map(open).collect();
    let mut sent = 0;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for (socket, to) in &sockets {
            // Refusals are what is hoped for.
            let _ = socket.send_to(b"?", to);
            sent += 1;
        }
        next += Duration::from_millis(1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    sent
}

/// The same with a frame.
fn frames(wire: &Wire, frame: &[u8], stop: &AtomicBool) -> usize {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        wire.send(frame);
        sent += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

struct Attack {
    sent: usize,
    /// Of the neighbour, of the other network, and of the host's own 127.0.0.1.
    hits: [usize; 3],
    /// From a flush until the published port answered.
    slowest: Option<Duration>,
}

/// Probes what is closed while the ruleset is flushed `flushes` times.
fn attack(world: &World, flushes: usize, is_repaired: bool) -> Attack {
    world.network("red", &["--subnet", "10.91.1.0/24", "--subnet", "fd91:1::/64"]);
    world.network("blue", &["--subnet", "10.91.2.0/24", "--subnet", "fd91:2::/64"]);
    let red = world.container(
        "red",
        &["--network", "name=red,ip=10.91.1.9,ip6=fd91:1::9", "-p", "8080:80", "-p", "127.0.0.1:5300:53/udp"],
    );
    let blue = world.container("blue", &["--network", "blue"]);
    // The neighbour knows the way.
    for (net, gateway) in [("10.91.0.0/16", "10.0.1.1"), ("fd91::/16", "fd00:1::1")] {
        world.n.add_route(net, gateway).unwrap();
    }
    // 53 is published on 127.0.0.1 alone, the others nowhere; 98 is asked for by the other network alone.
    let servers = [53, 99, 98].map(|port| UdpServer::start(&red, any(Family::V6, port), "red").unwrap());
    // Where names are asked for, which the fence lets pass.
    let own = UdpServer::start(&world.h, at(loopback(Family::V4), 53), "host").unwrap();
    let bridge = world.json(&["network", "inspect", "red"])[0]["Bridge"].as_str().unwrap().to_owned();
    let macs = (red.only().mac, interface(&world.h, &bridge).unwrap().mac.unwrap());
    let frame = udp_frame(macs, (red.ip(Family::V4), loopback(Family::V4)), (4000, 53), b"?");
    let wire = Wire::on(&red, "eth0");
    let hits = || {
        let [local, closed, isolated] = servers.each_ref().map(UdpServer::datagrams);
        [local + closed, isolated, own.datagrams()]
    };
    let published = TcpServer::start(&red, any(Family::V4, 80), "red").unwrap();
    let both = |port| FAMILIES.map(|family| at(red.ip(family), port));
    let by_blue = both(98);
    let host = FAMILIES.map(|family| at(host_ip(family), 5300));
    let by_neighbour = [both(53), both(99), host].concat();

    let stop = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    let mut slowest = None;
    std::thread::scope(|scope| {
        let (stop, sent) = (&stop, &sent);
        let (blue, neighbour) = (&blue, &world.n);
        let (wire, frame) = (&wire, &frame);
        scope.spawn(move || sent.fetch_add(frames(wire, frame, stop), Ordering::Relaxed));
        scope.spawn(move || sent.fetch_add(probes(blue, &by_blue, stop), Ordering::Relaxed));
        scope.spawn(move || sent.fetch_add(probes(neighbour, &by_neighbour, stop), Ordering::Relaxed));
        for n in 0..flushes {
            // At no fixed distance from the repair before.
            std::thread::sleep(Duration::from_millis((n as u64 * 7919) % 23));
            let started = Instant::now();
            world.nft("flush ruleset");
            if is_repaired {
                let is_back = || tcp_probe(&world.n, at(host_ip(Family::V4), 8080), LONG).banner() == Some("red");
                assert!(eventually(LONG, is_back), "the published port comes back");
                slowest = slowest.max(Some(started.elapsed()));
            }
        }
        if !is_repaired {
            let all_open = || hits().iter().all(|hits| *hits > 0);
            assert!(eventually(LONG, all_open), "it does not open: then the probes prove nothing: {:?}", hits());
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(published);
    Attack { sent: sent.into_inner(), hits: hits(), slowest }
}

pub(crate) fn rows() -> Option<Vec<Row>> {
    let mut world = World::or_skip("security-flushes")?;
    world.daemon = true;
    let alone = World::or_skip("security-open")?;
    let control = std::thread::spawn(move || attack(&alone, 1, false));
    let Attack { sent, hits, slowest } = attack(&world, FLUSHES, true);
    eprintln!("{sent} probes through {FLUSHES} flushes: {hits:?} hits; the port was back after {slowest:?} at most");
    assert_eq!(hits, [0; 3], "of {sent} probes");
    assert!(sent > 1000, "only {sent} probes");
    world.verify();
    let Attack { sent, hits, .. } = control.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    eprintln!("{sent} probes after a flush that nobody repairs: {hits:?} hits");
    let row = |number, attack| Row {
        number,
        attack,
        control: "the same without the daemon: hits at once",
        outcome: format!("no hit through {FLUSHES} flushes"),
    };
    Some(vec![
        row(
            3,
            "a LAN neighbour with a route probes, every millisecond, a port published on 127.0.0.1 and one published nowhere, while `nft flush ruleset` comes again and again",
        ),
        row(4, "a container of another network does"),
        row(
            2,
            "a container's frames to 127.0.0.1, every millisecond, for a service at port 53 there, while `nft flush ruleset` comes again and again",
        ),
    ])
}
