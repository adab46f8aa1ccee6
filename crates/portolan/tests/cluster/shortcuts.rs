//! Packets between containers of different hosts go past routing, connection tracking and rules, as far as those would let them
//! pass anyway.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use portolan_kernel::host::{self, EndOfTunnels};
use portolan_lab::eventually;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::{TcpServer, once_free};

use crate::overlay::{Pod, has, joined, reach, two_hosts};
use crate::world::{LONG, Node, World};

const SHORT: Duration = Duration::from_secs(2);

pub(crate) fn said(node: &Node, words: &[&str]) -> String {
    let output = node.host.command(words[0]).unwrap().args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The ends of tunnels of a host that have shortcuts.
pub(crate) fn ends(node: &Node) -> Vec<EndOfTunnels> {
    let ends = node.host.enter(host::programs).unwrap();
    ends.into_iter().filter(|end| end.is_whole.is_some()).collect()
}

/// Somebody else takes the shortcuts of a host away.
fn take_away(node: &Node) {
    let end = ends(node).remove(0);
    node.host.enter(|| host::remove_program(end.index)).unwrap();
}

/// Whether a host can have any.
pub(crate) fn has_none(node: &Node) -> bool {
    let is_without = ends(node).is_empty();
    if is_without {
        eprintln!("SKIP: this kernel runs no programs at interfaces (CONFIG_BPF_SYSCALL, Linux 6.6)");
    }
    is_without
}

/// Whether the host remembers a connection from one of the pod's addresses.
fn remembers(node: &Node, pod: &Pod) -> bool {
    pod.addresses.iter().any(|address| {
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        !said(node, &["conntrack", "-L", "-f", family, "-s", &address.to_string()]).is_empty()
    })
}

/// Whether a datagram from `from`, under `source` if that is given, is heard by `to`.
pub(crate) fn is_heard(from: &Pod, source: Option<IpAddr>, to: &Pod) -> bool {
    let ear = to.place.enter(|| once_free(|| UdpSocket::bind("0.0.0.0:9090"))).unwrap();
    ear.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mouth = from.place.enter(|| UdpSocket::bind((source.unwrap_or([0, 0, 0, 0].into()), 0))).unwrap();
    // Where no route leads is an answer too.
    let _ = mouth.send_to(b"here", SocketAddr::new(to.addresses[0], 9090));
    ear.recv(&mut [0; 16]).is_ok()
}

#[test]
fn packets_take_them_only_where_they_are_meant_to() {
    let Some(world) = World::of("overlay-shortcuts", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.ok("network create -d overlay web");
    a.ok("network create -d overlay --opt shortcut=false long");
    a.ok("network create -d overlay --opt icc=false apart");
    for network in ["web", "long", "apart"] {
        has(b, network);
    }
    let pair = |network: &str| {
        let (near, far) = (format!("{network}-near"), format!("{network}-far"));
        (world.pod(a, network, &near), world.pod(b, network, &far))
    };
    let ((near, far), (long_near, long_far), (apart_near, apart_far)) = (pair("web"), pair("long"), pair("apart"));
    if has_none(a) {
        return;
    }
    for (near, far) in [(&near, &far), (&long_near, &long_far)] {
        let knows = || far.addresses.iter().all(|address| ping(near, *address, SHORT).is_open());
        assert!(eventually(LONG, knows), "{}", near.name);
        reach(far, near);
        let server = TcpServer::start(far, SocketAddr::new([0, 0, 0, 0].into(), 80), "far").unwrap();
        let probe = tcp_probe(near, SocketAddr::new(far.addresses[0], 80), SHORT);
        assert_eq!(probe.banner(), Some("far"), "{probe:?}");
        assert_eq!(server.last_client().map(|client| client.ip()), Some(near.addresses[0]), "its own address");
    }
    for node in [a, b] {
        assert!(!remembers(node, &near) && !remembers(node, &far), "{}: it was not past tracking", node.host.name());
        assert!(remembers(node, &long_near), "{}: the control", node.host.name());
        assert_eq!(ends(node).len(), 1, "{:?}", ends(node));
        node.ok("verify");
        node.is_well();
    }
    // Who passes on packets says when there were too many to pass them on.
    let far_address = far.addresses[0].to_string();
    let output = near.place.command("ping").unwrap().args(["-c", "1", "-W", "2", "-t", "1", &far_address]).output();
    let told = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(told.contains("Time to live exceeded"), "{told}");

    assert!(is_heard(&near, None, &far), "the control");
    assert!(!is_heard(&near, None, &apart_far) && !is_heard(&near, None, &long_far), "another network is another one");
    assert!(!is_heard(&apart_near, None, &apart_far), "these do not reach each other");
    // Under an address that is another's: of its own network, and of none.
    let other = world.pod(a, "web", "web-other");
    for forged in [other.addresses[0], [10, 99, 0, 1].into(), far.addresses[0]] {
        // A repair takes it away again, whenever that comes.
        let words = ["address", "replace", &format!("{forged}/32"), "dev", "eth0"];
        assert!(near.place.command("ip").unwrap().args(words).status().unwrap().success());
        // To itself it says nothing.
        let to = if forged == far.addresses[0] { &other } else { &far };
        assert!(!is_heard(&near, Some(forged), to), "under {forged}");
    }
    // They say what they are there for.
    let rules = a.ok("rules web");
    assert!(rules.contains("go past routing, connection tracking and all rules"), "{rules}");
    assert!(rules.contains("host b on web"), "{rules}");
    assert!(!a.ok("rules long").contains("past routing"), "there are none");
    let nft = a.ok("rules --as nft web");
    assert!(nft.contains("# by a program, before all rules:") && nft.contains("host b on web"), "{nft}");

    // Nothing is left of them.
    for pod in [&near, &other, &long_near, &apart_near] {
        a.ok(&format!("detach {}", pod.name));
    }
    assert!(eventually(LONG, || ends(a).is_empty()), "{:?}", ends(a));
    a.ok("verify");
}

#[test]
fn connections_outlast_their_coming_and_going() {
    let Some((world, _etcd, near, far)) = two_hosts("overlay-switch", "network create -d overlay web") else { return };
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    if has_none(a) {
        return;
    }
    assert!(eventually(LONG, || ping(&near, far.addresses[0], SHORT).is_open()));
    let listener = far.place.enter(|| once_free(|| TcpListener::bind("0.0.0.0:7777"))).unwrap();
    let mut stream = near.place.enter(|| TcpStream::connect((far.addresses[0], 7777))).unwrap();
    let (mut other, _) = listener.accept().unwrap();
    for side in [&stream, &other] {
        side.set_nodelay(true).unwrap();
        side.set_read_timeout(Some(LONG)).unwrap();
    }
    let mut talk = || {
        stream.write_all(b"ping").unwrap();
        other.read_exact(&mut [0; 4]).unwrap();
        other.write_all(b"pong").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    };
    talk();
    for node in [a, b, a] {
        take_away(node);
        let began = Instant::now();
        // It goes the long way meanwhile, and nobody waits.
        while ends(node).is_empty() {
            talk();
            assert!(began.elapsed() < Duration::from_secs(5), "it does not come back");
            std::thread::sleep(Duration::from_millis(1));
        }
        talk();
        assert!(eventually(LONG, || node.run(&["verify"]).status.success()), "{}", node.ok("verify"));
        talk();
    }
    // For as long as somebody says so.
    for node in [a, b] {
        let daemon = node.daemon();
        daemon.signal(portolan_kernel::signals::STOP).unwrap();
        take_away(node);
        for _ in 0..100 {
            talk();
        }
        daemon.signal(portolan_kernel::signals::CONTINUE).unwrap();
        assert!(eventually(LONG, || !ends(node).is_empty()));
        talk();
    }
}

/// What a shortcut takes past a host end is counted, and what a limit holds up waits in the host end's queue.
#[test]
fn host_ends_know_what_they_did_not_see_and_hold_up_what_they_are_to() {
    let Some((world, _etcd, near, far)) = two_hosts("overlay-counted", "network create -d overlay web") else { return };
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    if has_none(a) {
        return;
    }
    assert!(eventually(LONG, || ping(&near, far.addresses[0], SHORT).is_open()));
    let received = || {
        let stats: serde_json::Value = serde_json::from_str(&b.ok("--json stats --no-stream far")).unwrap();
        let row = &stats[0];
        (row["rx_packets"].as_u64().unwrap(), row["rx_bytes"].as_u64().unwrap())
    };
    let send = |count: u64| {
        let ear = far.place.enter(|| once_free(|| UdpSocket::bind("0.0.0.0:9091"))).unwrap();
        ear.set_read_timeout(Some(LONG)).unwrap();
        let mouth = near.place.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        for _ in 0..count {
            mouth.send_to(&[7; 1000], (far.addresses[0], 9091)).unwrap();
            assert_eq!(ear.recv(&mut [0; 2000]).unwrap(), 1000);
        }
    };
    let queued = || {
        let said = said(b, &["tc", "-s", "-j", "qdisc", "show"]);
        let all: serde_json::Value = serde_json::from_str(&said).unwrap();
        let of_limits = all.as_array().unwrap().iter().filter(|qdisc| qdisc["kind"] == "tbf");
        of_limits.map(|qdisc| qdisc["packets"].as_u64().unwrap()).sum::<u64>()
    };
    let before = received();
    send(50);
    let after = received();
    assert!(after.0 - before.0 >= 50 && after.1 - before.1 >= 50 * 1042, "{before:?} {after:?}");
    assert!(after.0 - before.0 < 100, "once: {before:?} {after:?}");
    b.ok("update far --bandwidth-in 100mbit");
    b.ok("verify");
    send(50);
    let held = received();
    assert!(held.0 - after.0 >= 50 && held.0 - after.0 < 100, "{after:?} {held:?}");
    assert!(queued() >= 50, "{}", queued());
    b.ok("update far --bandwidth-in 0");
    b.ok("verify");
    send(50);
    let free = received();
    assert!(free.0 - held.0 >= 50 && queued() == 0, "{held:?} {free:?}");
    assert!(b.ok("rules far").contains("go past routing"), "{}", b.ok("rules far"));
    for node in [a, b] {
        node.is_well();
    }
}
