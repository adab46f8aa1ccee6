//! On encrypted networks packets of IPv4 go from host to host as packets of IPv6, without a tunnel, as far as they can be made that.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use portolan_kernel::host;
use portolan_lab::eventually;
use portolan_lab::probe::ping;
use portolan_lab::server::once_free;

use crate::capture::Capture;
use crate::overlay::{Pod, has, joined, reach, two_hosts};
use crate::shortcuts::{ends, has_none};
use crate::world::{LONG, Node, World};

const SHORT: Duration = Duration::from_secs(2);
const ENCRYPTED: &str = "network create -d overlay --opt encrypted web";
/// What takes a tunnel there.
const TUNNEL: &str = "udp dst port 4789 and greater 600";

fn link(node: &Node) -> String {
    node.links("ps").pop().expect("an encrypted link")
}

fn v4(pod: &Pod) -> IpAddr {
    pod.addresses.iter().copied().find(IpAddr::is_ipv4).unwrap()
}

/// Captures what leaves a host by the link while something goes on; the lines of what one filter and another lets pass.
fn leaving(world: &World, node: &Node, what: impl FnOnce(), filters: [&str; 2]) -> [Vec<String>; 2] {
    let mut capture = Capture::start(&world.lab, &node.host, &link(node));
    what();
    capture.stop();
    filters.map(|filter| capture.packets(&node.host, filter))
}

/// Sends datagrams of so many bytes in one go; how many were heard.
fn datagrams(from: &Pod, to: &Pod, count: usize, length: usize) -> usize {
    let ear = to.place.enter(|| once_free(|| UdpSocket::bind("0.0.0.0:9090"))).unwrap();
    ear.set_read_timeout(Some(SHORT)).unwrap();
    let mouth = from.place.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    for number in 0..count {
        mouth.send_to(&vec![number as u8; length], (v4(to), 9090)).unwrap();
    }
    let mut bytes = vec![0; length + 1];
    let right = |number: &usize| {
        ear.recv(&mut bytes).is_ok_and(|got| got == length && bytes[..length].iter().all(|byte| *byte == *number as u8))
    };
    (0..count).take_while(right).count()
}

/// Bytes of which each says where it belongs.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Sends a stream, which has to come as it is.
fn stream(from: &Pod, to: &Pod, length: usize) {
    let listener = to.place.enter(|| once_free(|| TcpListener::bind("0.0.0.0:9091"))).unwrap();
    let mut sender = from.place.enter(|| TcpStream::connect(SocketAddr::new(v4(to), 9091))).unwrap();
    let (mut receiver, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), v4(from), "its own address");
    let bytes = pattern(length);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sender.write_all(&bytes).unwrap();
            drop(sender);
        });
        let mut came = Vec::new();
        receiver.set_read_timeout(Some(LONG)).unwrap();
        receiver.read_to_end(&mut came).unwrap();
        assert!(came == bytes, "{} bytes of {length} came, or others", came.len());
    });
}

#[test]
fn what_can_be_translated_takes_no_tunnel() {
    let Some((world, _etcd, near, far)) = two_hosts("overlay-translated", ENCRYPTED) else { return };
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    if has_none(a) {
        return;
    }
    assert!(eventually(LONG, || ping(&near, v4(&far), SHORT).is_open()));
    reach(&near, &far);
    reach(&far, &near);
    let [direct, tunnel] = leaving(
        &world,
        a,
        || {
            // As many as are together on the way, and are not to be made one there.
            assert_eq!(datagrams(&near, &far, 60, 1000), 60);
            stream(&near, &far, 30 << 20);
            stream(&far, &near, 3 << 20);
        },
        ["ip6 and not udp port 4789 and greater 600", TUNNEL],
    );
    assert!(direct.len() > 100, "{} and {}", direct.len(), tunnel.len());
    // What hosts measure does.
    let of_containers = |line: &&String| line.starts_with("IP 10.");
    assert_eq!(tunnel.iter().filter(of_containers).count(), 0, "{tunnel:#?}");
    // A datagram in pieces, one of which the kernel makes several, and what is not IPv4 take the tunnel.
    let segments = format!(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(17, 103, 1000); \
         s.sendto(bytes(7000), ('{}', 9092))",
        v4(&far)
    );
    let [_, tunnel] = leaving(
        &world,
        a,
        || {
            assert_eq!(datagrams(&near, &far, 3, 4000), 3, "in pieces");
            let ear = far.place.enter(|| once_free(|| UdpSocket::bind("0.0.0.0:9092"))).unwrap();
            ear.set_read_timeout(Some(SHORT)).unwrap();
            assert!(near.place.command("python3").unwrap().args(["-c", &segments]).status().unwrap().success());
            for number in 0..7 {
                assert_eq!(ear.recv(&mut [0; 2000]).unwrap(), 1000, "segment {number}");
            }
        },
        ["ip6", TUNNEL],
    );
    assert!(tunnel.iter().filter(of_containers).count() >= 4, "{tunnel:#?}");
    // Hops and marks are those of the packet.
    let address = v4(&far).to_string();
    let output = near.place.command("ping").unwrap().args(["-c", "1", "-W", "2", "-t", "1", &address]).output();
    let told = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(told.contains("Time to live exceeded"), "{told}");
    let mut capture = Capture::start(&world.lab, &far.place, "eth0");
    let words = ["-c", "1", "-W", "2", "-Q", "0x2a", "-t", "40", &address];
    assert!(near.place.command("ping").unwrap().args(words).status().unwrap().success());
    capture.stop();
    let heard = capture.packets(&far.place, "icmp and ip[1] = 0x2a and ip[8] = 38");
    assert!(heard.len() >= 2 || heard.iter().any(|line| line.contains("echo request")), "{heard:?}");
    let rules = a.ok("rules web");
    assert!(
        rules.contains("translated instead of in a tunnel") && rules.contains("goes on as if it had come out"),
        "{rules}"
    );
    for node in [a, b] {
        node.ok("verify");
        node.is_well();
    }
    comes_back(&near, &far, b);
}

/// Whoever carries out no rules has no shortcuts, and is sent what is translated as everybody: it has to come in.
#[test]
fn a_host_without_rules_takes_it_too() {
    let Some(world) = World::of("overlay-ruleless", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    // With the first network it is decided, and warned of.
    assert!(b.run(&["--firewall-driver", "none", "network", "create", "first"]).status.success());
    joined(&world, &etcd);
    a.ok(ENCRYPTED);
    has(b, "web");
    let (near, far) = (world.pod(a, "web", "near"), world.pod(b, "web", "far"));
    if has_none(a) {
        return;
    }
    assert!(eventually(LONG, || ping(&near, v4(&far), SHORT).is_open()));
    b.ok("verify");
    // Who looks at everything leaves it there.
    b.kill_daemon();
    b.is_well();
    b.ok("reconcile");
    b.ok("verify");
    let [direct, tunnel] = leaving(
        &world,
        a,
        || {
            stream(&near, &far, 1 << 20);
            reach(&far, &near);
        },
        ["ip6 and not udp port 4789 and greater 600", TUNNEL],
    );
    assert!(direct.len() > 10, "{} and {tunnel:#?}", direct.len());
    assert!(b.ok("rules web").contains("goes on as if it had come out"), "{}", b.ok("rules web"));
}

/// Without the program of the link what comes translated is lost, as it is without the link, and not for long.
fn comes_back(near: &Pod, far: &Pod, node: &Node) {
    let of_link = || ends(node).into_iter().find(|end| end.name.starts_with("ps"));
    let index = of_link().expect("a program at the link").index;
    node.host.enter(|| host::remove_program(index)).unwrap();
    assert!(of_link().is_none() && !ping(near, v4(far), Duration::from_millis(200)).is_open(), "the control");
    let began = Instant::now();
    assert!(eventually(LONG, || of_link().is_some()));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(ping(near, v4(far), SHORT).is_open());
    assert!(eventually(LONG, || node.run(&["verify"]).status.success()), "{}", node.ok("verify"));
}
