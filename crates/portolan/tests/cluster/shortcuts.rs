//! Packets between containers of different hosts go past routing, connection tracking and rules, as far as those would let them
//! pass anyway.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use portolan_lab::eventually;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;

use crate::overlay::{Pod, has, joined, reach, two_hosts};
use crate::world::{LONG, Node, World};

const SHORT: Duration = Duration::from_secs(2);

pub(crate) fn said(node: &Node, words: &[&str]) -> String {
    let output = node.host.command(words[0]).unwrap().args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The tables of shortcuts of a host.
fn tables(node: &Node) -> Vec<String> {
    let names = said(node, &["nft", "list", "tables", "netdev"]);
    names.lines().map(|line| line.trim_start_matches("table netdev ").to_owned()).collect()
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
    let ear = to.place.enter(|| UdpSocket::bind("0.0.0.0:9090")).unwrap();
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
    if tables(a).is_empty() {
        eprintln!("SKIP: this kernel cannot pass packets on at ingress (CONFIG_NFT_FWD_NETDEV, Linux 6.4)");
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
        assert_eq!(tables(node).len(), 1, "{:?}", tables(node));
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
    assert!(nft.contains("table netdev vx-") && nft.contains("fwd ip to"), "{nft}");

    // Nothing is left of them.
    for pod in [&near, &other, &long_near, &apart_near] {
        a.ok(&format!("detach {}", pod.name));
    }
    assert!(eventually(LONG, || tables(a).is_empty()), "{:?}", tables(a));
    a.ok("verify");
}

#[test]
fn connections_outlast_their_coming_and_going() {
    let Some((world, _etcd, near, far)) = two_hosts("overlay-switch", "network create -d overlay web") else { return };
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    if tables(a).is_empty() {
        eprintln!("SKIP: this kernel cannot pass packets on at ingress (CONFIG_NFT_FWD_NETDEV, Linux 6.4)");
        return;
    }
    assert!(eventually(LONG, || ping(&near, far.addresses[0], SHORT).is_open()));
    let listener = far.place.enter(|| TcpListener::bind("0.0.0.0:7777")).unwrap();
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
        let table = tables(node).remove(0);
        said(node, &["nft", "delete", "table", "netdev", &table]);
        let began = Instant::now();
        // It goes the long way meanwhile, and nobody waits.
        while tables(node).is_empty() {
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
        said(node, &["nft", "delete", "table", "netdev", &tables(node)[0]]);
        for _ in 0..100 {
            talk();
        }
        daemon.signal(portolan_kernel::signals::CONTINUE).unwrap();
        assert!(eventually(LONG, || !tables(node).is_empty()));
        talk();
    }
}
