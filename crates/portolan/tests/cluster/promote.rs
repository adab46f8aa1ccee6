//! Bridges of one host that become networks of all.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;
use portolan_lab::{Host, eventually};
use serde_json::Value;

use crate::failures::talk;
use crate::lossless::carried;
use crate::overlay::{Pod, ask, has, joined, reach, ways};
use crate::world::{LONG, Node, World};

/// What a network is by `network inspect`.
fn shown(node: &Node, network: &str) -> Value {
    let all: Value = serde_json::from_str(&node.ok(&format!("network inspect {network}"))).unwrap();
    all[0].clone()
}

/// Sets it when it goes.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn bridges(node: &Node) -> usize {
    let output = node.host.command("ip").unwrap().args(["-br", "link", "show", "type", "bridge"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().count()
}

#[test]
fn a_bridge_becomes_a_network_of_the_cluster_with_who_is_on_it() {
    let Some(mut world) = World::of("promote", &["a", "b"]) else { return };
    let place = world.lab.host("guest").unwrap();
    world.lan.connect(&place, "eth0", &["10.0.1.50/24"]).unwrap();
    let guest = Pod { name: "guest".to_owned(), place, addresses: Vec::new() };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.ok("network create web --subnet 10.99.0.0/24 --subnet fd99::/64");
    let (one, two) = (world.pod(a, "web", "one"), world.pod(a, "web", "two"));
    a.ok("publish add one 8080:80");
    let server = TcpServer::start(&one, SocketAddr::from(([0; 16], 80)), "one").unwrap();
    let outside = TcpServer::start(&b.host, SocketAddr::from(([0, 0, 0, 0], 90)), "b").unwrap();
    let before = shown(a, "web");
    assert_eq!(before["Driver"], "bridge");
    // One from container to container, one out by the host, and one in by a published port.
    let ways_of_talk = [
        (&two, SocketAddr::new(one.addresses[0], 80)),
        (&two, SocketAddr::new(one.addresses[1], 80)),
        (&two, SocketAddr::from(([10, 0, 1, 2], 90))),
        (&guest, SocketAddr::from(([10, 0, 1, 1], 8080))),
    ];
    let (over, counts) = (AtomicBool::new(false), ways_of_talk.each_ref().map(|_| AtomicU64::new(0)));
    std::thread::scope(|scope| {
        let talks: Vec<_> = ways_of_talk
            .iter()
            .zip(&counts)
            .map(|((near, to), count)| {
                let over = &over;
                scope.spawn(move || talk(near, *to, over, count))
            })
            .collect();
        // Whatever is wrong, those who talk end.
        let _end = End(&over);
        let goes_on = |what: &str| {
            for (count, (_, to)) in counts.iter().zip(&ways_of_talk) {
                let seen = count.load(Ordering::Relaxed);
                assert!(eventually(LONG, || count.load(Ordering::Relaxed) > seen + 3), "{what}: nothing more by {to}");
            }
        };
        goes_on("before");
        let id = a.ok("network promote web");
        assert_eq!(id.trim(), before["Id"]);
        goes_on("after");
        over.store(true, Ordering::Relaxed);
        for talk in talks {
            talk.join().unwrap().unwrap();
        }
    });
    drop((server, outside));
    let after = shown(a, "web");
    assert_eq!((&after["Driver"], &after["Scope"]), (&"overlay".into(), &"global".into()));
    for pod in [&one, &two] {
        let now = a.ok(&format!("inspect {}", pod.name));
        assert!(pod.addresses.iter().all(|address| now.contains(&format!("\"{address}\""))), "{now}");
    }
    assert_eq!(bridges(a), 0, "the bridge is gone");
    has(b, "web");
    // The others are given other addresses, and all find each other.
    let far = world.pod(b, "web", "far");
    let block: ipnet::IpNet = "10.99.0.0/28".parse().unwrap();
    assert!(!block.contains(&far.addresses[0]) && one.addresses.iter().all(|ip| ip.is_ipv6() || block.contains(ip)));
    assert!(eventually(LONG, || ping(&far, one.addresses[0], LONG).is_open()));
    for (from, to) in [(&far, &one), (&one, &far), (&far, &two), (&one, &two), (&two, &one)] {
        reach(from, to);
    }
    assert!(eventually(LONG, || ask(&far, "one", "a") == [one.addresses[0].to_string()]));
    assert!(eventually(LONG, || ask(&one, "far", "aaaa") == [far.addresses[1].to_string()]));
    let _server = TcpServer::start(&one, SocketAddr::from(([0, 0, 0, 0], 80)), "one").unwrap();
    assert_eq!(tcp_probe(&b.host, SocketAddr::from(([10, 0, 1, 1], 8080)), LONG).banner(), Some("one"));
    for node in [a, b] {
        node.ok("verify");
        node.is_well();
    }
    assert_eq!(a.ok("cluster verify"), "a: as it should be\nb: as it should be\n");
    let said = a.refused("network promote web");
    assert!(said.contains("network `web` is one of the cluster already"), "{said}");
    for (node, name) in [(a, "one"), (a, "two"), (b, "far")] {
        node.ok(&format!("detach {name}"));
    }
    b.ok("network rm web");
    assert!(eventually(LONG, || !a.ok("network ls").contains("web")));
    assert!(ways(a).concat().is_empty(), "{:?}", ways(a));
    // One that nobody is on.
    a.ok("network create empty --ipv6=false");
    a.ok("network promote empty");
    has(b, "empty");
    reach(&world.pod(b, "empty", "first"), &world.pod(b, "empty", "second"));
    a.is_well();
}

/// How long it takes the kernel at most, of several times, to let an interface leave a bridge that is nobody's.
fn slowest_leave(host: &Host) -> Duration {
    let ip = |words: &str| {
        let status = host.command("ip").unwrap().args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}: {status}");
    };
    ip("link add br0 type bridge");
    ip("link add near type veth peer name far");
    for name in ["br0", "near", "far"] {
        ip(&format!("link set {name} up"));
    }
    let leave = |_| {
        ip("link set near master br0");
        let began = Instant::now();
        ip("link set near nomaster");
        began.elapsed()
    };
    (0..8).map(leave).max().unwrap()
}

#[test]
fn hardly_a_packet_is_lost_on_the_way() {
    let Some(world) = World::of("promote-lossless", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let a = &world.nodes[0];
    a.ok("network create web --subnet 10.99.0.0/24");
    let (one, two) = (world.pod(a, "web", "one"), world.pod(a, "web", "two"));
    reach(&one, &two);
    let gap = Duration::from_micros(450);
    let bare = world.lab.host("bare").unwrap();
    let mut slowest = Duration::ZERO;
    let (sent, came, how) = carried(&one, &two, gap, || {
        slowest = slowest_leave(&bare);
        a.ok("network promote web");
    });
    // While a host end leaves the bridge, neither that nor the host takes what comes in by it: from when the port is disabled the
    // kernel waits for a grace period of RCU before it takes the bridge's hand off it (nbp_vlan_flush() in del_nbp(),
    // net/bridge/br_if.c). What is lost beyond that lost its way: it would be lost for a second, or for good.
    let few = 5 + 3 * (slowest.as_micros() / gap.as_micros()) as u64;
    let most = format!("{few} may be lost, as to leave a bridge takes {slowest:?}");
    eprintln!("{most}");
    assert!(sent > 300 && sent - came <= few, "{sent} sent, {came} came, {most}: {how}");
    reach(&one, &two);
}

#[test]
fn what_cannot_be_one_of_the_cluster_stays_as_it_is() {
    let Some(world) = World::of("promote-refused", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.ok("network create lone --subnet 10.98.0.0/24");
    let alone = a.refused("network promote lone");
    assert!(alone.contains("cluster"), "{alone}");
    joined(&world, &etcd);
    let alters = [
        ("gate", "--subnet 10.96.1.0/24 --gateway 10.96.1.9", "has gateway 10.96.1.9, where each host"),
        ("range", "--subnet 10.96.2.0/24 --ip-range 10.96.2.64/26", "gives out a part of 10.96.2.0/24 alone"),
        ("names", "--subnet 10.96.3.0/24 --dns 192.0.2.53", "has name servers of its own"),
        ("route", "--subnet 10.96.4.0/24 --route 10.5.0.0/16,10.96.4.7", "has routes of its own"),
        ("many", "--subnet 10.96.5.0/24 --subnet 10.96.6.0/24", "has several subnets of IPv4"),
        ("device", "--subnet 10.96.7.0/24 --opt bridge=mine", "bridge"),
        ("point", "-d ptp --subnet 10.96.8.0/24", "only a bridge"),
    ];
    for (name, flags, why) in alters {
        a.ok(&format!("network create {name} --ipv6=false {flags}"));
        let before = shown(a, name);
        let said = a.refused(&format!("network promote {name}"));
        assert!(said.contains(why) && said.contains(&format!("`{name}`")) || name == "device", "{name}: {said}");
        assert_eq!(shown(a, name), before, "{name}");
    }
    let said = a.refused("network promote bridge");
    assert!(said.contains("only a bridge that `portolan network create` made"), "{said}");
    // What the cluster refuses leaves it whole: all of its addresses are this host's to give out.
    b.ok("network create -d overlay --subnet 10.95.0.0/24 twin");
    has(a, "twin");
    let said = a.refused("network promote twin");
    assert!(said.contains("one of the cluster already"), "{said}");
    let pod = world.pod(a, "lone", "pod");
    b.ok("network create -d overlay --subnet 10.98.0.0/16 wide");
    assert!(eventually(LONG, || a.run(&["cluster", "status"]).status.code() == Some(1)), "it cannot be here");
    let before = shown(a, "lone");
    let said = a.refused("network promote lone");
    assert!(said.contains("subnet 10.98.0.0/24 overlaps network `wide` of the cluster"), "{said}");
    assert_eq!(shown(a, "lone"), before);
    let late = world.pod(a, "lone", "late");
    reach(&pod, &late);
    a.ok("detach pod");
    a.ok("detach late");
    a.ok("verify");
}

#[test]
fn whoever_dies_on_the_way_it_is_one_or_the_other() {
    let Some(world) = World::of("promote-killed", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    let mut seen = (0, 0);
    for round in 0..12u8 {
        let name = format!("n{round}");
        a.ok(&format!("network create {name} --subnet 10.90.{round}.0/24 --ipv6=false"));
        let (one, two) = (world.pod(a, &name, &format!("x{round}")), world.pod(a, &name, &format!("y{round}")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(["network", "promote", &name]).env("PORTOLAN_ROOT", &a.root).env("PORTOLAN_DAEMON", "auto");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = a.daemon();
        let mut child = a.host.adopt(command).unwrap().spawn().unwrap();
        // The moment is what is tried.
        std::thread::sleep(Duration::from_millis(2 * u64::from(round)));
        let (with_daemon, with_command) = (round % 3 != 1, round % 3 != 2);
        if with_daemon {
            daemon.signal(portolan_kernel::signals::KILL).unwrap();
        }
        if with_command {
            let _ = child.kill();
        }
        let _ = child.wait();
        // It is one or the other, and works.
        assert!(eventually(LONG, || a.run(&["daemon", "status"]).status.success()), "no daemon in round {round}");
        assert!(eventually(LONG, || a.run(&["verify"]).status.success()), "round {round}: {:?}", a.run(&["verify"]));
        reach(&one, &two);
        let driver = |name: &str| shown(a, name)["Driver"].as_str().unwrap().to_owned();
        match driver(&name).as_str() {
            "bridge" => seen.0 += 1,
            _ => seen.1 += 1,
        }
        // Whatever it was, asking once more makes it the other, or says that it is.
        let ended = || {
            let said = a.run(&["network", "promote", &name]);
            said.status.success() || String::from_utf8_lossy(&said.stderr).contains("one of the cluster already")
        };
        assert!(eventually(LONG, ended), "round {round}: {}", a.status());
        assert_eq!(driver(&name), "overlay", "round {round}");
        has(b, &name);
        let far = world.pod(b, &name, &format!("z{round}"));
        assert!(eventually(LONG, || ping(&far, one.addresses[0], LONG).is_open()), "round {round}");
        let all: Vec<IpAddr> = [&one, &two, &far].iter().map(|pod| pod.addresses[0]).collect();
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        for (from, to) in [(&one, &two), (&two, &far), (&far, &two)] {
            reach(from, to);
        }
    }
    eprintln!("{seen:?} were still bridges, or already overlays");
    for node in [a, b] {
        node.is_well();
        node.ok("verify");
    }
    assert_eq!(a.ok("cluster verify"), "a: as it should be\nb: as it should be\n");
}
