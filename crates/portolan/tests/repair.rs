//! What others break is put back, and nothing opens meanwhile.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::*;
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::{Family, addr, link, neigh, route};
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::{TcpServer, UdpServer};
use portolan_lab::{InNetns, eventually};

fn world(name: &str) -> Option<World> {
    let mut world = World::or_skip(name)?;
    world.daemon = true;
    Some(world)
}

/// As `nft` does, another process with another socket: the monitor tells ours by the name alone.
fn nft(world: &World, line: &str) {
    let mut command = std::process::Command::new("nft");
    command.args(line.split(' '));
    let output = world.h.adopt(command).unwrap().output().unwrap();
    assert!(output.status.success(), "nft {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until the kernel holds what the rows say; how long that took.
#[track_caller]
fn repaired(world: &World, what: &str) -> Duration {
    let started = Instant::now();
    let is_whole = || world.portolan(&["verify"]).status.success();
    assert!(eventually(LONG, is_whole), "{what}: {}", String::from_utf8_lossy(&world.portolan(&["verify"]).stdout));
    let took = started.elapsed();
    eprintln!("{what}: back after {took:?}");
    took
}

fn index_of(world: &World, alias: &str) -> (u32, String) {
    let found = links(&world.h).into_iter().find(|link| link.alias.as_ref().is_some_and(|a| a.contains(alias)));
    let link = found.expect("such an interface is there");
    (link.index, link.name)
}

#[test]
fn everything_that_goes_comes_back() {
    let Some(world) = world("repair") else { return };
    world.network("web", &["--subnet", "10.91.0.0/24", "--subnet", "fd91::/64"]);
    let site = world.container("site", &["--network", "web", "-p", "8080:80"]);
    let bridge = || index_of(&world, ":network:");
    let port = || index_of(&world, ":endpoint:");

    nft(&world, "flush ruleset");
    repaired(&world, "nft flush ruleset");
    nft(&world, "delete table inet portolan");
    repaired(&world, "the table deleted");
    nft(&world, "delete table bridge portolan");
    repaired(&world, "the guard deleted");
    nft(&world, "delete element inet portolan any_port4 { tcp . 8080 }");
    repaired(&world, "an element deleted");
    nft(&world, "add element inet portolan gateways4 { 192.0.2.1 }");
    repaired(&world, "an element added");
    nft(&world, "flush chain inet portolan forward");
    repaired(&world, "a chain flushed");
    routing(&world, |_, batch| link::delete(batch, port().1.as_str()));
    repaired(&world, "a port deleted");
    routing(&world, |_, batch| link::delete(batch, bridge().1.as_str()));
    repaired(&world, "the bridge deleted");
    let down = link::LinkChange { up: Some(false), ..link::LinkChange::default() };
    routing(&world, |_, batch| link::set(batch, port().0, &down));
    repaired(&world, "a port set down");
    routing(&world, |_, batch| link::set(batch, bridge().0, &down));
    repaired(&world, "the bridge set down");
    routing(&world, |_, batch| addr::delete(batch, bridge().0, "10.91.0.1".parse().unwrap(), 24));
    repaired(&world, "a gateway address removed");
    for (net, prefix) in [("10.91.0.0", 24), ("fd91::", 64)] {
        routing(&world, |_, batch| {
            let gone = route::Route {
                oif: Some(bridge().0),
                protocol: route::PROTOCOL_KERNEL,
                ..route::Route::new(net.parse().unwrap(), prefix)
            };
            route::delete(batch, &gone);
        });
        repaired(&world, "the route to the network removed");
    }
    routing(&world, |socket, batch| {
        let (bridge, _) = bridge();
        let permanent =
            |n: &neigh::Neighbour| n.ifindex == bridge && n.state & neigh::NUD_PERMANENT != 0 && n.mac.is_some();
        for neighbour in neigh::dump(socket, None).unwrap().into_iter().filter(permanent) {
            neigh::delete(batch, bridge, neighbour.addr);
        }
    });
    repaired(&world, "the neighbours removed");
    routing(&world, |socket, batch| {
        let entries = neigh::fdb_dump(socket, bridge().0).unwrap();
        let entry = entries.into_iter().find(neigh::FdbEntry::is_static).expect("an entry for the port");
        neigh::fdb_delete(batch, entry.port, entry.mac);
    });
    repaired(&world, "a forwarding entry removed");

    for family in [Family::V4, Family::V6] {
        let _server = TcpServer::start(&site, any(family, 80), "site").unwrap();
        let probe = tcp_probe(&world.n, at(host_ip(family), 8080), LONG);
        assert_eq!(probe.banner(), Some("site"), "{probe}");
    }
}

#[test]
fn a_container_whose_namespace_dies_is_taken_down() {
    let Some(world) = world("reap") else { return };
    world.container("stays", &["--network", "bridge"]);
    let mut gone = world.mortal();
    world.portolan_ok(&[
        "attach",
        "--pid",
        &gone.id().to_string(),
        "--name",
        "gone",
        "--network",
        "bridge",
        "-p",
        "8080:80",
    ]);
    assert_eq!(world.portolan_ok(&["ps", "-aq"]).lines().count(), 2);
    let started = Instant::now();
    gone.kill().unwrap();
    gone.wait().unwrap();
    assert!(eventually(LONG, || world.portolan_ok(&["ps", "-aq"]).lines().count() == 1));
    eprintln!("taken down after {:?}", started.elapsed());
    world.verify();
    world.container("next", &["--network", "bridge", "-p", "8080:80"]);
}

#[test]
fn the_mtu_follows_the_uplink() {
    let Some(world) = world("uplink") else { return };
    world.network("follows", &[]);
    world.network("chosen", &["--opt", "mtu=1400"]);
    let site = world.container("site", &["--network", "follows", "--network", "chosen"]);
    let mtus = || ["eth0", "eth1"].map(|name| interface(&site, name).map_or(0, |link| link.mtu));
    assert_eq!(mtus(), [1500, 1400]);
    let smaller = link::LinkChange { mtu: Some(1450), ..link::LinkChange::default() };
    routing(&world, |_, batch| link::set(batch, "eth0", &smaller));
    assert!(eventually(LONG, || mtus() == [1450, 1400]), "{:?}", mtus());
    world.verify();
    assert_eq!(world.json(&["network", "inspect", "follows"])[0]["MTU"], 1450);
}

/// Sends a datagram to each of `targets` from `place` every millisecond, until told to stop; how many.
fn probes(place: &(impl InNetns + Sync), targets: &[SocketAddr], stop: &AtomicBool) -> usize {
    let open = |to: &SocketAddr| {
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
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

struct Attack {
    sent: usize,
    hits: usize,
    /// From the flush until the published port answered.
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
    let (v4, v6): (IpAddr, IpAddr) = ("10.91.1.9".parse().unwrap(), "fd91:1::9".parse().unwrap());
    // 53 is published on 127.0.0.1 alone, 99 nowhere.
    let servers = [53, 99].map(|port| UdpServer::start(&red, any(Family::V6, port), "red").unwrap());
    let published = TcpServer::start(&red, any(Family::V4, 80), "red").unwrap();
    let targets = [at(v4, 53), at(v4, 99), at(v6, 53), at(v6, 99)];
    let from_host = [at(host_ip(Family::V4), 5300), at(host_ip(Family::V6), 5300)];

    let stop = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    let mut slowest = None;
    std::thread::scope(|scope| {
        let (stop, sent) = (&stop, &sent);
        let (blue, neighbour) = (&blue, &world.n);
        scope.spawn(move || sent.fetch_add(probes(blue, &targets, stop), Ordering::Relaxed));
        let all = [&targets[..], &from_host].concat();
        scope.spawn(move || sent.fetch_add(probes(neighbour, &all, stop), Ordering::Relaxed));
        for n in 0..flushes {
            // At no fixed distance from the repair before.
            std::thread::sleep(Duration::from_millis((n as u64 * 7919) % 23));
            let started = Instant::now();
            nft(world, "flush ruleset");
            if is_repaired {
                let is_back = || tcp_probe(&world.n, at(host_ip(Family::V4), 8080), LONG).banner() == Some("red");
                assert!(eventually(LONG, is_back), "the published port comes back");
                slowest = slowest.max(Some(started.elapsed()));
            }
        }
        if !is_repaired {
            let hits = || servers.iter().map(UdpServer::datagrams).sum::<usize>();
            assert!(eventually(LONG, || hits() > 0), "nothing opens: then the probes prove nothing");
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(published);
    let hits = servers.iter().map(UdpServer::datagrams).sum();
    Attack { sent: sent.into_inner(), hits, slowest }
}

#[test]
fn nothing_opens_while_the_rules_are_away() {
    let Some(world) = world("flushes") else { return };
    let Attack { sent, hits, slowest } = attack(&world, 200, true);
    eprintln!("{sent} probes through 200 flushes: {hits} hits; the published port was back after {slowest:?} at most");
    assert_eq!(hits, 0, "of {sent} probes");
    assert!(sent > 1000, "only {sent} probes");
    world.verify();
}

/// The control of the one above: the same probes find what is open without the daemon.
#[test]
fn without_the_daemon_a_flush_opens_everything() {
    let Some(mut world) = world("open") else { return };
    world.daemon = false;
    let Attack { sent, hits, .. } = attack(&world, 1, false);
    eprintln!("{sent} probes after a flush that nobody repairs: {hits} hits");
    assert!(hits > 0, "of {sent} probes");
}
