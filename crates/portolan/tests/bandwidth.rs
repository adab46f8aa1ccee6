//! Limits of bandwidth: what passes, what becomes of them, and that whoever is inside cannot lift them.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Container, LONG, World, any, at, neighbour_ip};
use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::tc::{self, Bucket};
use portolan_kernel::rtnl::{Family, link};
use portolan_lab::{InNetns, eventually};
use serde_json::json;

/// What passes before the measurement starts: the burst, and TCP on its way up.
const WARM_UP: Duration = Duration::from_millis(700);
const MEASURED: Duration = Duration::from_secs(3);
/// How far from the limit a rate may be.
const TOLERANCE: f64 = 0.03;
const MBIT: f64 = 1e6;

/// What a TCP segment of 1448 bytes, with its timestamps, has around it in a frame of 1514.
const TCP: f64 = 1514.0 / 1448.0;
const DATAGRAM: usize = 1400;
/// Ethernet, IPv4 and UDP headers around a datagram.
const UDP: f64 = (DATAGRAM + 42) as f64 / DATAGRAM as f64;

/// Counts what `read` gives for a while; in bits per second.
fn measured(mut read: impl FnMut() -> usize) -> f64 {
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        read();
    }
    let (started, mut bytes) = (Instant::now(), 0_u64);
    while started.elapsed() < MEASURED {
        bytes += read() as u64;
    }
    bytes as f64 * 8.0 / started.elapsed().as_secs_f64()
}

/// What TCP gets from one place to another, in bits per second of frames.
fn tcp_rate(from: &impl InNetns, to: &impl InNetns, ip: IpAddr) -> f64 {
    let listener = with_netns(to.netns(), || TcpListener::bind(SocketAddr::new(ip, 0)).unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let mut sender = with_netns(from.netns(), || TcpStream::connect_timeout(&to, LONG).unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(LONG)).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let chunk = vec![0; 1 << 16];
            while sender.write_all(&chunk).is_ok() {}
        });
        let mut buffer = vec![0; 1 << 18];
        let rate = measured(|| receiver.read(&mut buffer).unwrap());
        drop(receiver);
        rate * TCP
    })
}

/// What of a flood of datagrams arrives, in bits per second of frames.
fn udp_rate(from: &impl InNetns, to: &impl InNetns, ip: IpAddr) -> f64 {
    let receiver = with_netns(to.netns(), || UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap()).unwrap();
    let to = receiver.local_addr().unwrap();
    let sender = with_netns(from.netns(), || UdpSocket::bind(any(Family::of(ip), 0)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(LONG)).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let datagram = [0; DATAGRAM];
            // Half as much again as passes.
            let (started, mut sent) = (Instant::now(), 0_u64);
            while !stop.load(Ordering::Relaxed) {
                if sent as f64 * (DATAGRAM as f64 * 8.0) < started.elapsed().as_secs_f64() * 150.0 * MBIT {
                    let _ = sender.send_to(&datagram, to);
                    sent += 1;
                } else {
                    thread::sleep(Duration::from_micros(200));
                }
            }
        });
        let mut buffer = [0; 2048];
        let rate = measured(|| receiver.recv(&mut buffer).unwrap());
        stop.store(true, Ordering::Relaxed);
        rate * UDP
    })
}

/// Never above the limit; and near it, as far as this machine has time for us.
#[track_caller]
fn assert_holds(limit: f64, what: &str, measure: impl Fn() -> f64) {
    let mut rates = Vec::new();
    for _ in 0..3 {
        let rate = measure();
        eprintln!("{what}: {:.2} Mbit/s in frames", rate / MBIT);
        assert!(rate <= limit * (1.0 + TOLERANCE), "{what}: {rate} is more than {limit}");
        if rate >= limit * (1.0 - TOLERANCE) {
            return;
        }
        rates.push(rate);
    }
    panic!("{what}: {rates:?} are less than {limit}");
}

fn v4(c: &Container) -> IpAddr {
    c.endpoints["web"].v4.unwrap()
}

/// TCP both ways between a container and its neighbours.
#[track_caller]
fn assert_tcp(world: &World, c: &Container, into: f64, out: f64, what: &str) {
    assert_holds(into, &format!("{what}, tcp in"), || tcp_rate(&world.h, c, v4(c)));
    assert_holds(out, &format!("{what}, tcp out"), || tcp_rate(c, &world.n, neighbour_ip(Family::V4)));
}

/// What limits a container on host `h`: what its host end sends by, and what its packets are led through sends by.
fn buckets(world: &World, c: &Container) -> [Option<Bucket>; 2] {
    let host_end = c.endpoints["web"].host_end.clone();
    with_netns(world.h.netns(), || {
        let mut socket = Socket::open(ROUTE).unwrap();
        let port = link::lookup(&mut socket, host_end.as_str()).unwrap().unwrap().index;
        let into = tc::bucket(&mut socket, port).unwrap();
        let to = tc::ingress(&mut socket, port).unwrap().to;
        [into, to.and_then(|to| tc::bucket(&mut socket, to).unwrap())]
    })
    .unwrap()
}

fn rates(world: &World, c: &Container) -> [Option<u64>; 2] {
    buckets(world, c).map(|bucket| bucket.map(|bucket| bucket.rate * 8))
}

#[track_caller]
fn tc(place: &impl InNetns, line: &str) -> bool {
    let mut command = Command::new("tc");
    command.args(line.split(' '));
    let output = with_netns(place.netns(), || command.output().unwrap()).unwrap();
    output.status.success()
}

#[test]
fn a_cap_holds_each_way() {
    holds_each_way("cap", "bridge");
}

#[test]
fn a_cap_holds_without_a_bridge() {
    holds_each_way("cap-ptp", "ptp");
}

fn holds_each_way(name: &str, driver: &str) {
    let Some(world) = World::or_skip(name) else { return };
    let untouched = world.untouched();
    world.network("web", &["-d", driver, "--subnet", "10.40.0.0/24"]);
    let before = common_snapshot(&world);
    let limits = ["--network", "web", "--bandwidth-in", "100mbit", "--bandwidth-out", "100mbit"];
    let c = world.container("c", &limits);
    world.verify();
    assert_eq!(rates(&world, &c), [Some(100_000_000); 2]);
    assert_tcp(&world, &c, 100.0 * MBIT, 100.0 * MBIT, "100mbit");
    assert_holds(100.0 * MBIT, "100mbit, udp in", || udp_rate(&world.h, &c, v4(&c)));
    assert_holds(100.0 * MBIT, "100mbit, udp out", || udp_rate(&c, &world.n, neighbour_ip(Family::V4)));
    let details = world.json(&["inspect", "c"]);
    assert_eq!(
        details[0]["NetworkSettings"]["Networks"]["web"]["Bandwidth"],
        json!({"In": {"Rate": 100_000_000}, "Out": {"Rate": 100_000_000}})
    );
    world.verify();
    world.portolan_ok(&["detach", "c"]);
    assert_eq!(common_snapshot(&world), before, "nothing of it is left");
    world.portolan_ok(&["network", "rm", "web"]);
    world.assert_untouched(&untouched, "limits of bandwidth");
}

fn common_snapshot(world: &World) -> Vec<String> {
    portolan_lab::snapshot::snapshot(&world.h).unwrap().lines().to_vec()
}

#[test]
fn limits_change_while_a_connection_goes_on() {
    let Some(world) = World::or_skip("cap-live") else { return };
    world.network("web", &["--subnet", "10.40.0.0/24"]);
    let c = world.container("c", &["--network", "web"]);
    let bare = common_snapshot(&world);
    assert_eq!(rates(&world, &c), [None; 2]);

    let listener = with_netns(world.n.netns(), || TcpListener::bind(any(Family::V4, 0)).unwrap()).unwrap();
    let to = at(neighbour_ip(Family::V4), listener.local_addr().unwrap().port());
    let mut sender = with_netns(c.netns(), || TcpStream::connect_timeout(&to, LONG).unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(LONG)).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let chunk = vec![0; 1 << 16];
            while sender.write_all(&chunk).is_ok() {}
        });
        let mut buffer = vec![0; 1 << 18];
        let mut rate = || measured(|| receiver.read(&mut buffer).unwrap()) * TCP;
        assert!(rate() > 300.0 * MBIT, "nothing limits it yet");
        for limit in ["50mbit", "20mbit", "80mbit"] {
            let text = world.portolan_ok(&["update", "c", "--bandwidth-out", limit]);
            assert_eq!(text, format!("web: {limit} out\n"));
            // What was under way when packets began to be dropped arrives with those that are sent again.
            rate();
            let (found, wanted) = (rate(), limit.trim_end_matches("mbit").parse::<f64>().unwrap() * MBIT);
            eprintln!("{limit}: {:.2} Mbit/s in frames", found / MBIT);
            assert!(found < wanted * (1.0 + TOLERANCE), "{limit}: {found}");
            assert!(found > wanted * 0.8, "{limit}: {found}");
            world.verify();
        }
        let rows =
            world.json(&["update", "c", "--network", "web", "--bandwidth-in", "1gbit", "--bandwidth-burst", "1mb"]);
        let limits = json!({"In": {"Rate": 1_000_000_000, "Burst": 8 << 20}, "Out": {"Rate": 80_000_000}});
        assert_eq!(rows, json!([{"Network": "web", "InterfaceName": "eth0", "Bandwidth": limits}]));
        assert_eq!(rates(&world, &c), [Some(1_000_000_000), Some(80_000_000)]);
        world.verify();
        world.portolan_ok(&["update", "c", "--bandwidth-in", "0", "--bandwidth-out", "none"]);
        assert!(rate() > 300.0 * MBIT, "nothing limits it any more");
        drop(receiver);
    });
    assert_eq!(rates(&world, &c), [None; 2]);
    assert_eq!(common_snapshot(&world), bare);
    world.verify();
}

#[test]
fn what_is_inside_cannot_lift_it() {
    let Some(world) = World::or_skip("cap-inside") else { return };
    world.network("web", &["--subnet", "10.40.0.0/24"]);
    let limits = ["--network", "web", "--bandwidth-in", "20mbit", "--bandwidth-out", "20mbit"];
    let c = world.container("c", &limits);
    // With every capability that there is, in its own namespace.
    for line in [
        "qdisc del dev eth0 root",
        "qdisc del dev eth0 ingress",
        "qdisc del dev eth0 clsact",
        "qdisc replace dev eth0 root handle 504f: tbf rate 10gbit burst 10mb limit 100mb",
        "qdisc add dev eth0 ingress",
    ] {
        tc(&c, line);
    }
    assert_eq!(rates(&world, &c), [Some(20_000_000); 2]);
    assert_holds(20.0 * MBIT, "inside, udp out", || udp_rate(&c, &world.n, neighbour_ip(Family::V4)));
    assert_holds(20.0 * MBIT, "inside, udp in", || udp_rate(&world.h, &c, v4(&c)));
    world.verify();
}

#[test]
fn what_somebody_takes_away_is_put_back() {
    let Some(mut world) = World::or_skip("cap-repair") else { return };
    world.network("web", &["--subnet", "10.40.0.0/24"]);
    let limits = ["--network", "web", "--bandwidth-in", "30mbit", "--bandwidth-out", "40mbit"];
    let c = world.container("c", &limits);
    let end = c.endpoints["web"].host_end.clone();
    let aside = portolan_plan::shaper_name(&end.parse().unwrap());
    let wanted = buckets(&world, &c);
    let ways = [
        format!("qdisc del dev {end} root"),
        format!("qdisc del dev {end} ingress"),
        format!("filter del dev {end} ingress"),
        format!("qdisc del dev {aside} root"),
        format!("qdisc change dev {aside} root handle 504f: tbf rate 10gbit burst 10mb limit 100mb"),
        format!("qdisc replace dev {end} root handle 1: tbf rate 10gbit burst 10mb limit 100mb"),
    ];
    for way in &ways {
        assert!(tc(&world.h, way), "{way}");
        assert_ne!(buckets(&world, &c), wanted, "{way}");
        let verified = world.portolan(&["verify"]);
        assert_eq!(verified.status.code(), Some(1), "{way}");
        assert!(String::from_utf8_lossy(&verified.stdout).contains("limit of "), "{way}");
        world.portolan_ok(&["reconcile"]);
        world.verify();
        assert_eq!(buckets(&world, &c), wanted, "{way}");
    }
    let gone = |name: &str| {
        let mut batch = portolan_kernel::netlink::Batch::new();
        link::delete(&mut batch, name);
        world.h.route_socket().unwrap().transact(&batch).unwrap();
    };
    gone(aside.as_str());
    assert_eq!(world.portolan(&["verify"]).status.code(), Some(1));
    world.portolan_ok(&["reconcile"]);
    assert_eq!(buckets(&world, &c), wanted);
    gone(&end);
    world.portolan_ok(&["reconcile"]);
    world.verify();
    assert_eq!(buckets(&world, &c), wanted, "a port that is made again is limited again");
    // What is left of a limit that no row speaks of goes.
    world.portolan_ok(&["update", "c", "--bandwidth-in", "0"]);
    assert!(tc(&world.h, &format!("qdisc replace dev {end} root handle 504f: tbf rate 1gbit burst 1mb limit 2mb")));
    assert_eq!(world.portolan(&["verify"]).status.code(), Some(1));
    world.portolan_ok(&["reconcile"]);
    assert_eq!(rates(&world, &c), [None, Some(40_000_000)]);
    world.verify();

    // The daemon hears of it and does so by itself.
    world.daemon = true;
    world.portolan_ok(&["update", "c", "--bandwidth-in", "30mbit"]);
    world.portolan_ok(&["daemon", "start"]);
    for way in &ways[..4] {
        assert!(tc(&world.h, way), "{way}");
        assert!(eventually(LONG, || buckets(&world, &c) == wanted), "{way}: nobody put it back");
    }
    gone(aside.as_str());
    assert!(eventually(LONG, || buckets(&world, &c) == wanted), "nobody made `{aside}` again");
    world.portolan_ok(&["detach", "c"]);
}

#[test]
fn somebody_elses_filters_stay() {
    let Some(world) = World::or_skip("cap-others") else { return };
    world.network("web", &["--subnet", "10.40.0.0/24"]);
    let c = world.container("c", &["--network", "web"]);
    let end = c.endpoints["web"].host_end.clone();
    assert!(tc(&world.h, &format!("qdisc add dev {end} clsact")));
    let filter = format!("filter add dev {end} ingress protocol ip prio 7 u32 match u32 0 0 flowid 1:1");
    assert!(tc(&world.h, &filter));
    world.portolan_ok(&["update", "c", "--bandwidth-out", "40mbit"]);
    assert_eq!(rates(&world, &c), [None, Some(40_000_000)]);
    world.verify();
    world.portolan_ok(&["update", "c", "--bandwidth-out", "0"]);
    assert!(tc(&world.h, &format!("filter del dev {end} ingress protocol ip prio 7 u32")), "it is still there");
    assert!(tc(&world.h, &format!("qdisc del dev {end} clsact")), "it is still there");
    world.verify();
}

#[test]
fn what_cannot_be_limited() {
    let Some(world) = World::or_skip("cap-refused") else { return };
    world.network("web", &["--subnet", "10.40.0.0/24"]);
    world.network("lan", &["-d", "macvlan", "--opt", "parent=eth0", "--subnet", "10.0.1.0/24", "--ipv6=false"]);
    let limit = ["--bandwidth-out", "1mbit"];
    let netns = world.lab.host("x").unwrap();
    let path = netns.netns_path().to_str().unwrap().to_owned();
    let attach = |args: &[&str]| world.refused(&[&["attach", "--netns", &path], args, &limit].concat());
    let why = attach(&["--network", "lan"]);
    assert!(why.contains("bandwidth `1mbit out`: cannot be limited: network `lan` has driver `macvlan`"), "{why}");
    let why = attach(&["--network", "none"]);
    assert!(why.contains("--bandwidth-out and the network mode `none`"), "{why}");
    let why = attach(&["--network", "name=web,bandwidth-out=2mbit"]);
    assert!(why.contains("both --bandwidth-out and per-network bandwidth"), "{why}");
    let c = world.container("c", &["--network", "web", "--network", "lan"]);
    let state = world.state();
    for (args, part) in [
        (&["update", "c", "--bandwidth-in", "1mbit"][..], "network `lan` has driver `macvlan`"),
        (&["update", "c", "--network", "lan", "--bandwidth-in", "1mbit"], "network `lan` has driver `macvlan`"),
        (&["update", "c", "--network", "bridge", "--bandwidth-in", "1mbit"], "is not connected to network `bridge`"),
        (&["update", "nobody", "--bandwidth-in", "1mbit"], "no container `nobody`"),
        (&["update", "c"], "nothing to change of `c`"),
        (&["update", "c", "--bandwidth-burst", "64kb"], "without a rate"),
        (&["update", "c", "--bandwidth-in", "fast"], "rate `fast`:"),
        (&["update", "c", "--bandwidth-in", "100tbit"], "rate `100tbit`:"),
        (&["update", "c", "--bandwidth-in", "1mbit", "--bandwidth-burst", "8gb"], "burst `8gb`:"),
    ] {
        let why = world.refused(args);
        assert!(why.contains(part), "{args:?}: {why}");
        state.assert_same(&world.state(), &args.join(" "));
    }
    assert_eq!(rates(&world, &c), [None; 2]);
    // The limit of the one network is no business of the other.
    world.portolan_ok(&["update", "c", "--network", "web", "--bandwidth-in", "1mbit"]);
    world.portolan_ok(&["network", "disconnect", "web", "c"]);
    world.portolan_ok(&["network", "connect", "web", "c", "--bandwidth-out", "3mbit", "--bandwidth-burst", "32kb"]);
    let details = world.json(&["inspect", "c"]);
    assert_eq!(
        details[0]["NetworkSettings"]["Networks"]["web"]["Bandwidth"],
        json!({"Out": {"Rate": 3_000_000, "Burst": 8 * 32768}})
    );
    world.verify();
}

/// `run` takes the same flags.
#[test]
fn a_command_with_limits() {
    let Some(world) = World::or_skip("cap-run") else { return };
    world.portolan_ok(&[
        "run",
        "-d",
        "--name",
        "c",
        "--bandwidth-in",
        "5mbit",
        "--bandwidth-out",
        "6mbit",
        "--",
        "sleep",
        "1000",
    ]);
    let details = world.json(&["inspect", "c"]);
    assert_eq!(
        details[0]["NetworkSettings"]["Networks"]["bridge"]["Bandwidth"],
        json!({"In": {"Rate": 5_000_000}, "Out": {"Rate": 6_000_000}})
    );
    world.verify();
    world.portolan_ok(&["rm", "-f", "c"]);
    assert!(!common_snapshot(&world).iter().any(|line| line.contains("ifb") || line.contains("tbf")));
}
