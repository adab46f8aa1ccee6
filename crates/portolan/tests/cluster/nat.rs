//! Hosts behind NAT: they join, speak first, are followed where NAT puts them, and reach each other by a third one.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portolan_kernel::signals;
use portolan_lab::etcd::{Etcd, is_there};
use portolan_lab::probe::ping;
use portolan_lab::server::once_free;
use portolan_lab::{Host, Lab, eventually};
use serde_json::Value;

use crate::capture::Capture;
use crate::overlay::{Pod, has};
use crate::sealed::{MARK, times, workers};
use crate::world::{LONG, Node};

/// A router with masquerade, which gives every conversation another port: no two see a host behind it at the same place.
struct Nat {
    router: Host,
}

impl Nat {
    fn rules(&self, rules: &str) {
        let mut command = self.router.command("nft").unwrap();
        assert!(command.arg(rules).status().unwrap().success(), "{rules}");
    }

    /// It forgets all that it has translated, as when it is switched off and on: nothing comes in until something goes out, and
    /// what goes out has another port.
    fn reboot(&self) {
        let flush = || self.router.command("conntrack").unwrap().arg("-F").output().unwrap();
        assert!(flush().status.success());
    }
}

/// Hosts on a LAN that all reach, and others behind NATs, whose addresses are the same behind each.
struct World {
    /// Those that are reached.
    open: Vec<Node>,
    hidden: Vec<Node>,
    nats: Vec<Nat>,
    keeps_ports: bool,
    etcd: Etcd,
    /// Of etcd's, who is a stranger to the hosts.
    stranger: Host,
    lab: Lab,
}

/// What a router does to ports: each conversation has another one, or hosts keep theirs as far as they can.
const RANDOM: &str = "masquerade fully-random";
const SAME: &str = "masquerade";

impl World {
    /// Each of `hidden` are behind one NAT.
    fn of(name: &str, open: &[&str], hidden: &[&[&str]], masquerade: &str) -> Option<Self> {
        if !is_there(name) {
            return None;
        }
        let lab = Lab::or_skip(name)?;
        let mut lan = lab.lan("lan", &[]).unwrap();
        let stranger = lab.host("etcd").unwrap();
        lan.connect(&stranger, "eth0", &["10.0.1.11/24"]).unwrap();
        let node = |host: Host| Node { root: lab.dir().join(format!("root-{}", host.name())), host };
        let mut there = Vec::new();
        for (number, name) in (1..).zip(open) {
            let host = lab.host(name).unwrap();
            lan.connect(&host, "eth0", &[&format!("10.0.1.{number}/24")]).unwrap();
            host.add_default_route("10.0.1.11").unwrap();
            there.push(node(host));
        }
        let (mut behind, mut nats) = (Vec::new(), Vec::new());
        for (number, names) in (101..).zip(hidden) {
            let router = lab.host(&format!("nat-{number}")).unwrap();
            lan.connect(&router, "eth0", &[&format!("10.0.1.{number}/24")]).unwrap();
            let mut inside = lab.lan(&format!("lan-{number}"), &[(&router, "eth1", &["192.168.1.1/24"])]).unwrap();
            for (last, name) in (10..).zip(*names) {
                let host = lab.host(name).unwrap();
                inside.connect(&host, "eth0", &[&format!("192.168.1.{last}/24")]).unwrap();
                host.add_default_route("192.168.1.1").unwrap();
                behind.push(node(host));
            }
            router.enable_forwarding().unwrap();
            let nat = Nat { router };
            nat.rules(&format!(
                "table ip nat {{
                    chain out {{
                        type nat hook postrouting priority srcnat;
                        oifname eth0 {masquerade}
                    }}
                    chain forward {{
                        type filter hook forward priority filter; policy drop;
                        iifname eth1 accept
                        ct state established accept
                    }}
                    chain in {{
                        type filter hook input priority filter;
                        meta l4proto udp drop
                    }}
                }}"
            ));
            nats.push(nat);
        }
        let etcd = Etcd::start(lab.dir(), &[(&stranger, "10.0.1.11".parse().unwrap())], "http", &[]).unwrap();
        let keeps_ports = masquerade == SAME;
        Some(Self { open: there, hidden: behind, nats, keeps_ports, etcd, stranger, lab })
    }

    fn pod(&self, node: &Node, name: &str) -> Pod {
        let place = self.lab.host(name).unwrap();
        let path = place.netns_path().display().to_string();
        node.ok(&format!("attach --netns {path} --name {name} --network vault"));
        let inspected: Value = serde_json::from_str(&node.ok(&format!("inspect {name}"))).unwrap();
        let address = inspected[0]["NetworkSettings"]["Networks"]["vault"]["IPAddress"].as_str().unwrap();
        Pod { name: name.to_owned(), place, addresses: vec![address.parse().unwrap()] }
    }

    fn join(&self) {
        let url = self.etcd.endpoints("http").join(",");
        for (number, node) in self.open.iter().enumerate() {
            node.join(if number == 0 { "init" } else { "join" }, &self.etcd);
        }
        for (number, node) in self.hidden.iter().enumerate() {
            // Two behind one NAT cannot both keep a port.
            let port = 51820 + if self.keeps_ports { number * 10 } else { 0 };
            let name = node.host.name();
            node.ok(&format!("cluster join --etcd {url} --name {name} --behind-nat --wireguard-port {port}"));
        }
        self.open[0].ok("network create -d overlay --opt encrypted vault");
        for node in self.open.iter().chain(&self.hidden) {
            has(node, "vault");
        }
    }
}

/// What a host says of another.
fn row(node: &Node, of: &str) -> Value {
    let rows: Value = serde_json::from_str(&node.ok("--json cluster nodes")).unwrap();
    rows.as_array().unwrap().iter().find(|row| row["name"] == of).cloned().unwrap_or_default()
}

/// How long it takes until each reaches the other.
#[track_caller]
fn reach_within(limit: Duration, one: &Pod, other: &Pod) {
    let begin = Instant::now();
    for (from, to) in [(one, other), (other, one)] {
        let is_open = || ping(from, to.addresses[0], Duration::from_millis(500)).is_open();
        assert!(eventually(limit.saturating_sub(begin.elapsed()), is_open), "{} to {}", from.name, to.name);
    }
    eprintln!("{} and {}: {:?}", one.name, other.name, begin.elapsed());
}

#[test]
fn a_host_behind_nat_is_one_of_the_cluster() {
    let Some(world) = World::of("nat-one", &["a"], &[&["h"]], RANDOM) else { return };
    world.join();
    let ([a], [h], [nat]) = (&world.open[..], &world.hidden[..], &world.nats[..]) else { panic!("two hosts") };
    let (near, far) = (world.pod(a, "near"), world.pod(h, "far"));
    reach_within(LONG, &near, &far);
    assert_eq!((&row(a, "h")["way"]["by"], &row(h, "a")["way"]["by"]), (&"seen".into(), &"direct".into()));
    let seen = || row(a, "h")["link"]["endpoint"].as_str().unwrap_or_default().to_owned();
    // What is shown of the link is a second old at most.
    assert!(eventually(LONG, || seen().starts_with("10.0.1.101:")), "{}", row(a, "h"));
    assert!(a.ok("cluster nodes").contains("seen at 10.0.1.101:"), "{}", a.ok("cluster nodes"));
    // Wherever NAT puts it, it is followed: by a word of its own within a keepalive interval.
    let before = seen();
    nat.reboot();
    reach_within(Duration::from_secs(25), &near, &far);
    assert!(eventually(LONG, || seen().starts_with("10.0.1.101:") && seen() != before), "{before} {}", seen());
    // What leads to it is not what it says of itself, whoever dies.
    for node in [a, h] {
        node.kill_daemon();
        reach_within(Duration::from_secs(5), &near, &far);
        node.ok("daemon upgrade");
        reach_within(Duration::from_secs(5), &near, &far);
    }
    for node in [a, h] {
        workers(node).iter().for_each(|worker| worker.signal(signals::KILL).unwrap());
        reach_within(Duration::from_secs(10), &near, &far);
    }
    for round in 1..=2 {
        h.ok("cluster rotate");
        reach_within(Duration::from_secs(5), &near, &far);
        nat.reboot();
        reach_within(Duration::from_secs(5), &far, &near);
        assert_eq!((h.round(), a.round() >= round), (round, true));
    }
    // What is not encrypted does not go there.
    a.is_well();
    h.is_well();
    a.ok("network create -d overlay open");
    has(h, "open");
    h.warns("network `open` is not encrypted, and reaches no other host from here");
}

/// Says the mark a few times each way; whether all of it was heard.
fn say(one: &Pod, other: &Pod) {
    for (from, to) in [(one, other), (other, one)] {
        let listen = to.place.enter(|| once_free(|| UdpSocket::bind("0.0.0.0:9999"))).unwrap();
        listen.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let speak = from.place.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        for _ in 0..20 {
            speak.send_to(MARK, SocketAddr::new(to.addresses[0], 9999)).unwrap();
            let mut buffer = [0; 256];
            let length = listen.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], MARK);
        }
    }
}

#[test]
fn two_behind_different_nats_reach_each_other_by_a_third() {
    let Some(world) = World::of("nat-two", &["c", "d"], &[&["g"], &["h"]], RANDOM) else { return };
    world.join();
    let ([c, d], [g, h], [nat, _]) = (&world.open[..], &world.hidden[..], &world.nats[..]) else { panic!("four") };
    let (one, other) = (world.pod(g, "one"), world.pod(h, "other"));
    reach_within(LONG, &one, &other);
    let by = |node: &Node, of: &str| row(node, of)["way"].clone();
    assert_eq!(by(g, "h"), by(h, "g"));
    let at: SocketAddr = by(g, "h")["at"].as_str().unwrap().parse().unwrap();
    let (relay, rest) = if by(g, "h")["relay"] == "c" { (c, d) } else { (d, c) };
    assert_eq!(by(g, "h")["by"], "relay", "{}", by(g, "h"));
    assert!(g.ok("cluster nodes").contains(&format!("by {}", relay.host.name())), "{}", g.ok("cluster nodes"));
    assert_eq!((&by(g, "c")["by"], &by(c, "g")["by"]), (&"direct".into(), &"seen".into()));
    for (node, public) in [(g, relay), (h, rest)] {
        reach_within(
            LONG,
            &world.pod(public, &format!("{}-{}", node.host.name(), public.host.name())),
            match node.host.name() {
                "g" => &one,
                _ => &other,
            },
        );
    }

    // Whoever passes it on cannot read it, and passes on nothing of strangers'.
    let mut captures = [relay, g, h].map(|node| Capture::start(&world.lab, &node.host, "eth0"));
    say(&one, &other);
    let stranger = world.stranger.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let sent = 50;
    for number in 0..sent {
        // The first bytes of each of WireGuard's messages, and others.
        let mut message = vec![number as u8 % 6, 0, 0, 0];
        message.resize(148 - STRANGE.len(), number as u8);
        message.extend(STRANGE);
        stranger.send_to(&message, at).unwrap();
    }
    reach_within(Duration::from_secs(5), &one, &other);
    let passed = || relay.status()["passed"][0].clone();
    let is_counted = || passed()["bytes"].as_u64() > Some(40 * MARK.len() as u64);
    assert!(eventually(LONG, is_counted) && passed()["between"] == serde_json::json!(["g", "h"]), "{}", passed());
    let seen = captures.each_mut().map(Capture::stop);
    assert!(seen.iter().all(|bytes| times(bytes, MARK) == 0 && bytes.len() > 5_000), "it is to be read");
    assert_eq!(seen.each_ref().map(|bytes| times(bytes, STRANGE)), [sent, 0, 0], "it arrives, and goes nowhere");

    // Whoever dies, and wherever NAT puts them.
    for node in [relay, g, h] {
        node.kill_daemon();
        reach_within(Duration::from_secs(10), &one, &other);
    }
    relay.ok("daemon upgrade");
    reach_within(Duration::from_secs(10), &one, &other);
    workers(g).iter().for_each(|worker| worker.signal(signals::KILL).unwrap());
    reach_within(Duration::from_secs(20), &one, &other);
    nat.reboot();
    reach_within(Duration::from_secs(20), &one, &other);
    for round in 1..=2 {
        h.ok("cluster rotate");
        reach_within(Duration::from_secs(5), &one, &other);
        assert_eq!(h.round(), round);
    }
    for node in [c, d, g, h] {
        node.is_well();
    }
    // He leaves: there is another one.
    for pod in ["g-c", "g-d", "h-c", "h-d"] {
        let _ = relay.run(&["detach", pod]);
    }
    relay.ok("cluster leave");
    reach_within(Duration::from_secs(20), &one, &other);
    assert_eq!(by(g, "h")["relay"], rest.host.name());
    // And then there is none.
    for pod in ["g-c", "g-d", "h-c", "h-d"] {
        let _ = rest.run(&["detach", pod]);
    }
    rest.ok("cluster leave");
    g.warns("host `h` runs, and is not reached on encrypted networks: no other host that both reach passes on packets");
    assert_eq!(by(g, "h")["by"], "nothing");
}

/// What strangers say.
const STRANGE: &[u8] = b"let me in, let me in";

#[test]
fn two_behind_nats_that_keep_ports_meet() {
    let Some(world) = World::of("nat-meet", &["c"], &[&["f", "g"], &["h"]], SAME) else { return };
    world.join();
    let ([c], [f, g, h]) = (&world.open[..], &world.hidden[..]) else { panic!("four") };
    let pods = [world.pod(f, "of-f"), world.pod(g, "of-g"), world.pod(h, "of-h")];
    let reach_all = |limit| {
        reach_within(limit, &pods[0], &pods[1]);
        reach_within(limit, &pods[1], &pods[2]);
        reach_within(limit, &pods[2], &pods[0]);
    };
    reach_all(LONG);
    let is_at = |node: &Node, of: &str, at: &str| {
        let row = || row(node, of);
        let is_it = || row()["way"]["by"] == "meet" && row()["link"]["endpoint"].to_string().contains(at);
        assert!(eventually(LONG, is_it), "{}", row());
    };
    let all_meet = || {
        is_at(h, "g", "10.0.1.101:");
        is_at(g, "h", "10.0.1.102:");
        // Who is behind the same one is a neighbour.
        is_at(f, "g", "192.168.1.11:");
        is_at(g, "f", "192.168.1.10:");
    };
    all_meet();
    for round in 1..=2 {
        h.ok("cluster rotate");
        reach_all(LONG);
        assert_eq!(f.round(), round);
    }
    all_meet();
    for node in [c, f, g, h] {
        node.kill_daemon();
    }
    reach_all(Duration::from_secs(5));
    for node in [c, f, g, h] {
        node.is_well();
    }
    assert_eq!(c.status()["passed"], serde_json::json!([]));
    // A line for each packet to somebody who has not spoken yet would fill a disk.
    for node in [c, f, g, h] {
        let log = std::fs::read_to_string(node.root.join("run/wireguard.log")).unwrap();
        assert!(!log.contains("endpoint"), "{log}");
    }
    world.nats[0].reboot();
    reach_all(Duration::from_secs(25));
}

/// Has two hosts drop what comes from each other.
fn part(one: &Node, other: &Node) {
    for (node, from) in [(one, other), (other, one)] {
        let address = row(from, from.host.name())["addresses"][0].as_str().unwrap().to_owned();
        let rules = format!(
            "table ip part {{ chain in {{ type filter hook input priority 0; ip saddr {address} udp dport 0-65535 drop\n }}\n }}"
        );
        assert!(node.host.command("nft").unwrap().arg(rules).status().unwrap().success());
    }
}

#[test]
fn two_whom_a_firewall_parts_reach_each_other_by_whoever_is_there() {
    let Some(world) = World::of("nat-parted", &["a", "b", "c", "d"], &[], RANDOM) else { return };
    world.join();
    let [a, b, c, d] = &world.open[..] else { panic!("four hosts") };
    let (one, other) = (world.pod(a, "one"), world.pod(b, "other"));
    reach_within(LONG, &one, &other);
    assert_eq!(row(a, "b")["way"]["by"], "direct");
    part(a, b);
    // They try it for as long as an answer may take.
    reach_within(LONG, &one, &other);
    let relay = || row(a, "b")["way"]["relay"].as_str().unwrap_or_default().to_owned();
    let (first, second) = if relay() == "c" { (c, d) } else { (d, c) };
    assert_eq!(row(b, "a")["way"]["relay"], first.host.name());
    // It is there, and passes on nothing any more.
    first.ok("daemon stop");
    let begin = Instant::now();
    assert!(eventually(LONG * 2, || relay() == second.host.name()), "{}", row(a, "b"));
    reach_within(LONG, &one, &other);
    eprintln!("another one: {:?}", begin.elapsed());
    // The two are somewhere else, where nothing is in the way.
    for (node, number) in [(a, 1), (b, 2)] {
        assert!(node.host.command("nft").unwrap().args(["delete", "table", "ip", "part"]).status().unwrap().success());
        node.host.remove_address("eth0", &format!("10.0.1.{number}/24")).unwrap();
        node.host.add_address("eth0", &format!("10.0.1.2{number}/24")).unwrap();
        node.host.add_default_route("10.0.1.11").unwrap();
    }
    assert!(eventually(LONG, || row(a, "b")["way"]["by"] == "direct"), "{}", row(a, "b"));
    reach_within(LONG, &one, &other);
    let ways = || world.etcd.ctl(&["get", "--prefix", "--keys-only", "/portolan/v2/all/way/"]).unwrap();
    assert!(eventually(LONG, || ways().trim().is_empty()), "{}", ways());
}
