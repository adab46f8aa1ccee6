//! Encrypted networks: what hosts send each other of them is not to be read, whatever happens.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use portolan_kernel::process::PidFd;
use portolan_kernel::signals;
use portolan_lab::eventually;
use portolan_lab::probe::ping;
use portolan_lab::server::once_free;
use serde_json::Value;

use crate::capture::Capture;
use crate::overlay::{Pod, has, joined, reach};
use crate::world::{LONG, Node, World};

/// What the containers say to each other.
pub(crate) const MARK: &[u8] = b"this is for your eyes only, whoever you are";

/// How often the mark is in what was captured, and how many bytes that is.
fn seen(bytes: &[u8]) -> (usize, usize) {
    (times(bytes, MARK), bytes.len())
}

/// How often something is in it.
pub(crate) fn times(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).filter(|window| *window == what).count()
}

/// Says the mark to all addresses of another container until told to stop.
fn whisper(from: &Pod, to: &Pod, over: &AtomicBool, heard: &AtomicU64) {
    let listen = to.place.enter(|| once_free(|| UdpSocket::bind("[::]:9999"))).unwrap();
    listen.set_nonblocking(true).unwrap();
    let speak = from.place.enter(|| UdpSocket::bind("[::]:0")).unwrap();
    let mut buffer = [0; 256];
    while !over.load(Ordering::Relaxed) {
        for address in &to.addresses {
            let address = match address {
                std::net::IpAddr::V4(address) => address.to_ipv6_mapped().into(),
                address => *address,
            };
            // Where nothing leads is among what is tried.
            let _ = speak.send_to(MARK, SocketAddr::new(address, 9999));
        }
        while listen.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == MARK) {
            heard.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Has three containers whisper while `meanwhile` goes on; how often they heard the mark, and how often it was on the LAN.
fn overhear(world: &World, network: &str, pods: &[Pod], meanwhile: impl FnOnce(&AtomicU64)) -> (u64, usize) {
    let captures = world.nodes.iter().map(|node| Capture::start(&world.lab, &node.host, "eth0"));
    let mut captures: Vec<Capture> = captures.collect();
    let (over, heard) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (number, from) in pods.iter().enumerate() {
            let to = &pods[(number + 1) % pods.len()];
            let (over, heard) = (&over, &heard);
            scope.spawn(move || whisper(from, to, over, heard));
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| meanwhile(&heard)));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let seen: Vec<(usize, usize)> = captures.iter_mut().map(|capture| seen(&capture.stop())).collect();
    eprintln!("{network}: heard {} times; on the LAN, times and bytes: {seen:?}", heard.load(Ordering::Relaxed));
    assert!(seen.iter().all(|(_, bytes)| *bytes > 50_000), "too little was captured: {seen:?}");
    (heard.into_inner(), seen.iter().map(|(times, _)| times).sum())
}

/// Waits until whispers are heard again.
#[track_caller]
fn goes_on(heard: &AtomicU64) {
    let before = heard.load(Ordering::Relaxed);
    // From each to the next, in both families.
    assert!(eventually(LONG, || heard.load(Ordering::Relaxed) > before + 600), "nothing is heard any more");
}

/// Those who carry its packets; a second one while keys change, and in every second round.
pub(crate) fn workers(node: &Node) -> Vec<PidFd> {
    let pattern = format!("wireguard-worker.*{}/", node.root.display());
    let output = node.host.command("pgrep").unwrap().args(["-f", &pattern]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| PidFd::open(line.parse().unwrap()).ok()).collect()
}

pub(crate) fn worker(node: &Node) -> PidFd {
    workers(node).into_iter().next().unwrap_or_else(|| panic!("{} has no worker", node.host.name()))
}

#[test]
fn nothing_is_to_be_read_whatever_happens() {
    let Some(world) = World::or_skip("overlay-secret") else { return };
    let mut etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    joined(&world, &etcd);
    // The control: without encryption all of it is to be read.
    a.ok("network create -d overlay open");
    for node in [a, b, c] {
        has(node, "open");
    }
    let pods = [world.pod(a, "open", "o1"), world.pod(b, "open", "o2"), world.pod(c, "open", "o3")];
    let (heard, seen) = overhear(&world, "open", &pods, goes_on);
    assert!(heard > 0 && seen > 0, "{heard} {seen}");

    a.ok("network create -d overlay --opt encrypted secret");
    for node in [a, b, c] {
        has(node, "secret");
    }
    // They speak from the first moment on.
    let pods = [world.pod(a, "secret", "s1"), world.pod(b, "secret", "s2"), world.pod(c, "secret", "s3")];
    let (heard, seen) = overhear(&world, "secret", &pods, |heard| {
        goes_on(heard);
        for node in [a, b] {
            node.kill_daemon();
            goes_on(heard);
            node.ok("daemon upgrade");
            goes_on(heard);
            worker(node).signal(signals::KILL).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            goes_on(heard);
            for start in ["ps", "vx-"] {
                let link = node.links(start).pop().unwrap();
                assert!(node.host.command("ip").unwrap().args(["link", "del", &link]).status().unwrap().success());
                std::thread::sleep(Duration::from_millis(300));
                goes_on(heard);
            }
            assert!(node.host.command("nft").unwrap().args(["flush", "ruleset"]).status().unwrap().success());
            goes_on(heard);
        }
        // No daemon that could make it anew.
        b.ok("daemon stop");
        worker(b).signal(signals::KILL).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        b.ok("daemon start");
        goes_on(heard);
        etcd.kill(0);
        std::thread::sleep(Duration::from_millis(500));
        worker(c).signal(signals::KILL).unwrap();
        goes_on(heard);
        etcd.launch(0).unwrap();
        a.is_well();
        // Who is there no more is not spoken to in clear either.
        c.ok("detach s3");
        c.ok("detach o3");
        c.ok("cluster leave");
        std::thread::sleep(Duration::from_millis(500));
    });
    assert!(heard > 0, "nothing was said");
    assert_eq!(seen, 0, "it is to be read on the LAN");
    assert!(c.links("ps").is_empty(), "nothing of it is left");
    for node in [a, b] {
        assert!(eventually(LONG, || node.run(&["verify"]).status.success()), "{}", node.host.name());
    }
}

/// Begins a change of keys, and goes on at once; to which round. One that is asked for in the middle of another is that one.
fn begin_rotation(node: &Node) -> u64 {
    let keys: Value = serde_json::from_str(&node.ok("cluster rotate --wait 0 --json")).unwrap();
    keys["round"].as_u64().unwrap()
}

/// Waits until all hosts have one key each, of this round or a later one.
#[track_caller]
fn have_rotated(nodes: &[&Node], round: u64) {
    for node in nodes {
        let is_done = || {
            let keys = &node.status()["keys"];
            keys["changing"] == false && keys["round"].as_u64() >= Some(round)
        };
        assert!(eventually(LONG * 2, is_done), "{}: round {round}: {}", node.host.name(), node.status());
    }
}

#[test]
fn nothing_is_to_be_read_while_keys_change() {
    let Some(world) = World::or_skip("overlay-secret-keys") else { return };
    let mut etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    joined(&world, &etcd);
    a.ok("network create -d overlay --opt encrypted secret");
    for node in [a, b, c] {
        has(node, "secret");
    }
    let pods = [world.pod(a, "secret", "s1"), world.pod(b, "secret", "s2"), world.pod(c, "secret", "s3")];
    let all = [a, b, c];
    let (heard, seen) = overhear(&world, "secret", &pods, |heard| {
        goes_on(heard);
        // Daemons are killed a bit later each time, whatever they are at then.
        for number in 0..12u64 {
            let round = begin_rotation(a);
            std::thread::sleep(Duration::from_millis(number * 150));
            all[number as usize % 3].kill_daemon();
            have_rotated(&all, round);
            goes_on(heard);
        }
        // So are those who carry the packets, by one key or the other.
        for number in 0..4u64 {
            let round = begin_rotation(b);
            std::thread::sleep(Duration::from_millis(100 + number * 300));
            let of = all[number as usize % 3];
            workers(of).iter().for_each(|worker| worker.signal(signals::KILL).unwrap());
            have_rotated(&all, round);
            goes_on(heard);
        }
        // etcd is away in the middle of it.
        for pause in [100, 600, 1200] {
            let round = begin_rotation(c);
            std::thread::sleep(Duration::from_millis(pause));
            etcd.kill(0);
            goes_on(heard);
            b.kill_daemon();
            goes_on(heard);
            etcd.launch(0).unwrap();
            have_rotated(&all, round);
            goes_on(heard);
        }
        // One is away while keys change three times, and comes back.
        let round = a.round();
        c.ok("daemon stop");
        workers(c).iter().for_each(|worker| worker.signal(signals::KILL).unwrap());
        a.sees("a up, b up, c down");
        while a.round() < round + 3 {
            have_rotated(&[a, b], begin_rotation(a));
        }
        c.ok("daemon start");
        have_rotated(&all, round + 3);
        let from_each = |from: &Pod, to: &Pod| reach_soon(from, to);
        (0..3).for_each(|at| (0..3).filter(|other| *other != at).for_each(|other| from_each(&pods[at], &pods[other])));
        // It is cut off from etcd, and goes on with the others: they wait for it.
        let rule = ["add", "rule", "inet", "cut", "out", "tcp", "dport", "2379", "drop"];
        for words in [
            &["add", "table", "inet", "cut"][..],
            &["add", "chain", "inet", "cut", "out", "{ type filter hook output priority 0; }"],
            &rule,
        ] {
            assert!(c.host.command("nft").unwrap().args(words).status().unwrap().success());
        }
        a.sees("a up, b up, c down");
        let round = begin_rotation(a);
        assert!(eventually(LONG, || a.status()["keys"]["waits_for"] == serde_json::json!(["c"])), "{}", a.status());
        goes_on(heard);
        assert!(a.refused("cluster rotate --wait 1").contains("waits for `c`"));
        assert!(c.host.command("nft").unwrap().args(["delete", "table", "inet", "cut"]).status().unwrap().success());
        have_rotated(&all, round);
        goes_on(heard);
    });
    assert!(heard > 0, "nothing was said");
    assert_eq!(seen, 0, "it is to be read on the LAN");
    for node in [a, b, c] {
        assert!(eventually(LONG, || node.run(&["verify"]).status.success()), "{}", node.host.name());
        node.is_well();
    }
}

fn reach_soon(from: &Pod, to: &Pod) {
    let is_open = || to.addresses.iter().all(|address| ping(from, *address, Duration::from_secs(1)).is_open());
    assert!(eventually(LONG, is_open), "{} to {}", from.name, to.name);
}

#[test]
fn an_encrypted_network_is_as_any_other() {
    let Some(world) = World::or_skip("overlay-sealed") else { return };
    let etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    joined(&world, &etcd);
    a.ok("network create -d overlay --opt encrypted web");
    for node in [a, b, c] {
        has(node, "web");
        node.is_well();
    }
    let pods = [world.pod(a, "web", "one"), world.pod(b, "web", "two"), world.pod(c, "web", "three")];
    for from in &pods {
        for to in &pods {
            let is_open = || to.addresses.iter().all(|address| ping(from, *address, Duration::from_secs(1)).is_open());
            assert!(eventually(LONG, is_open), "{} to {}", from.name, to.name);
            reach(from, to);
        }
    }
    for node in [a, b, c] {
        node.ok("verify");
        node.is_well();
    }
}
