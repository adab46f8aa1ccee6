//! Networks that are one broadcast domain over several hosts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portolan_lab::eventually;
use portolan_lab::probe::ping;
use portolan_lab::server::once_free;

use crate::capture::Capture;
use crate::forged::{MARK, VXLAN, end, frame};
use crate::overlay::{Pod, ask, has, joined, passes, reach, transfer};
use crate::shortcuts::{is_heard, said};
use crate::world::{LONG, Node, World};

const SHORT: Duration = Duration::from_secs(2);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);

fn mac(pod: &Pod) -> [u8; 6] {
    let output = pod.place.command("cat").unwrap().arg("/sys/class/net/eth0/address").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let bytes: Vec<u8> = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn v4(pod: &Pod) -> Ipv4Addr {
    let IpAddr::V4(address) = pod.addresses[0] else { panic!("IPv4 first: {:?}", pod.addresses) };
    address
}

/// Forgets whom it has asked for.
fn forget(pod: &Pod) {
    for family in ["-4", "-6"] {
        assert!(pod.place.command("ip").unwrap().args([family, "neigh", "flush", "all"]).status().unwrap().success());
    }
}

fn ear(pod: &Pod) -> UdpSocket {
    let socket = pod.place.enter(|| once_free(|| UdpSocket::bind("0.0.0.0:7777"))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let own = v4(pod);
    pod.place.enter(|| socket.join_multicast_v4(&GROUP, &own)).unwrap();
    socket
}

fn hears(socket: &UdpSocket, what: &[u8]) -> bool {
    let mut buffer = [0; 64];
    socket.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == what)
}

/// What there is of a network: forwarding entries, ports, and whom the bridge answers for.
fn entries(node: &Node) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for words in [&["bridge", "fdb"][..], &["ip", "neigh", "show", "nud", "permanent"], &["bridge", "link"]] {
        let text = said(node, words);
        let ours =
            text.lines().filter(|line| line.contains("vx-") && !line.contains("permanent") || line.contains("dst"));
        // Numbers of interfaces change.
        lines.extend(ours.map(|line| line.split_once(": vx").map_or(line, |(_, rest)| rest).trim().to_owned()));
        if words[0] == "ip" {
            lines.extend(text.lines().filter(|line| line.contains("dev br-")).map(|line| line.trim().to_owned()));
        }
    }
    lines.sort();
    lines
}

#[test]
fn containers_of_all_hosts_are_in_one_broadcast_domain() {
    let Some(world) = World::or_skip("overlay-l2") else { return };
    let etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    joined(&world, &etcd);
    let refused = a.refused("network create -d overlay --opt mode=l2 --opt backend=direct lan");
    assert!(refused.contains("mode=l2"), "{refused}");
    a.ok("network create -d overlay --opt mode=l2 lan");
    has(b, "lan");
    has(c, "lan");
    // Nobody is asked across hosts who has an address, whether anybody has it or not, and nothing goes to who is not known; not even
    // at first.
    let mut captures = [Capture::start(&world.lab, &a.host, "eth0"), Capture::start(&world.lab, &b.host, "eth0")];
    let (near, beside) = (world.pod(a, "lan", "near"), world.pod(a, "lan", "beside"));
    let (far, third) = (world.pod(b, "lan", "far"), world.pod(c, "lan", "third"));
    let pods = [&near, &beside, &far, &third];
    let all = || pods.iter().flat_map(|from| pods.iter().map(move |to| (*from, *to)));
    for (from, to) in all() {
        let is_open = || to.addresses.iter().all(|address| ping(from, *address, SHORT).is_open());
        assert!(eventually(LONG, is_open), "{} to {}", from.name, to.name);
    }
    for node in [a, b, c] {
        node.ok("verify");
        node.is_well();
    }
    assert!(a.run(&["cluster", "verify"]).status.success(), "{}", a.ok("cluster verify"));

    pods.iter().for_each(|pod| forget(pod));
    for (from, to) in all() {
        reach(from, to);
    }
    let nobody = Ipv4Addr::from_bits(v4(&near).to_bits() | 63);
    assert!(!ping(&near, nobody.into(), SHORT).is_open());
    let unknown = ["neigh", "replace", &nobody.to_string(), "lladdr", "02:de:ad:00:00:01", "dev", "eth0"];
    assert!(near.place.command("ip").unwrap().args(unknown).status().unwrap().success());
    assert!(!ping(&near, nobody.into(), SHORT).is_open());
    assert!(ask(&near, "far", "a").contains(&far.addresses[0].to_string()), "by name");
    assert!(ping(&near, "10.0.1.11".parse().unwrap(), SHORT).is_open(), "the way out is the host's own");
    for (node, capture) in [a, b].into_iter().zip(&mut captures) {
        capture.stop();
        let tunnels = capture.packets(&node.host, "udp port 4789");
        assert!(tunnels.iter().filter(|line| line.contains("ICMP echo request")).count() >= 4, "{tunnels:?}");
        let asks = |line: &&String| {
            ["ARP", "neighbor", "solicitation", "listener", "igmp"].iter().any(|word| line.contains(word))
        };
        let asked: Vec<&String> = tunnels.iter().filter(asks).collect();
        assert!(asked.is_empty(), "{}: {asked:?}", node.host.name());
        assert!(!tunnels.iter().any(|line| line.contains(&nobody.to_string())), "to nobody: {tunnels:?}");
    }
    // What is for all reaches all.
    let ears = [&beside, &far, &third].map(ear);
    let mouth = near.place.enter(|| UdpSocket::bind((v4(&near), 0))).unwrap();
    mouth.set_broadcast(true).unwrap();
    for (to, what) in [(Ipv4Addr::BROADCAST, &b"to all"[..]), (GROUP, b"to many")] {
        mouth.send_to(what, (to, 7777)).unwrap();
        for (ear, pod) in ears.iter().zip(["beside", "far", "third"]) {
            assert!(hears(ear, what), "{} at {pod}", String::from_utf8_lossy(what));
        }
    }
    // Under another's address nobody speaks, here or out of a tunnel.
    assert!(is_heard(&near, None, &far), "the control");
    let words = ["address", "add", &format!("{}/32", v4(&beside)), "dev", "eth0"];
    assert!(near.place.command("ip").unwrap().args(words).status().unwrap().success());
    assert!(!is_heard(&near, Some(beside.addresses[0]), &far), "under a neighbour's address");
    let tunnel = |source: ([u8; 6], Ipv4Addr)| {
        let (vni, _) = end(b);
        let socket = a.host.enter(|| UdpSocket::bind("10.0.1.1:0")).unwrap();
        let to: SocketAddr = ("10.0.1.2".parse::<IpAddr>().unwrap(), VXLAN).into();
        socket.send_to(&frame((vni, mac(&far)), source, v4(&far)), to).unwrap();
        hears(&ears[1], MARK)
    };
    assert!(tunnel((mac(&near), v4(&near))), "the control");
    assert!(!tunnel((mac(&near), v4(&beside))), "a neighbour's address");
    assert!(!tunnel((mac(&far), v4(&far))), "its own");
    assert!(!tunnel(([2, 0, 0, 0, 0, 9], nobody)), "nobody's");
    drop(ears);
    let rules = a.ok("rules lan");
    assert!(rules.contains("nobody is asked for addresses by vx-"), "{rules}");

    // What others take away is back.
    let whole = entries(a);
    let of_far: String = mac(&far).map(|byte| format!("{byte:02x}")).join(":");
    let vxlan = a.links("vx-").remove(0);
    let bridge = a.links("br-").remove(0);
    let far_address = v4(&far).to_string();
    for words in [
        &["bridge", "fdb", "del", &of_far, "dev", &vxlan, "dst", "10.0.1.2", "self"][..],
        &["bridge", "fdb", "del", &of_far, "dev", &vxlan, "master"],
        &["bridge", "fdb", "del", "00:00:00:00:00:00", "dev", &vxlan, "dst", "10.0.1.3", "self"],
        &["ip", "neigh", "del", &far_address, "dev", &bridge],
        &["ip", "link", "del", &vxlan],
        &["ip", "link", "del", &bridge],
        &["nft", "flush", "ruleset"],
    ] {
        said(a, words);
        let began = Instant::now();
        assert!(eventually(LONG, || entries(a) == whole), "{words:?}: {:#?} {whole:#?}", entries(a));
        assert!(began.elapsed() < Duration::from_secs(5), "{words:?}: {:?}", began.elapsed());
        assert!(eventually(LONG, || a.run(&["verify"]).status.success()), "{words:?}: {:?}", a.run(&["verify"]));
        reach(&near, &far);
        reach(&third, &near);
    }
    // A container moves, and its MAC with it.
    b.ok("detach far");
    assert!(eventually(LONG, || !said(a, &["bridge", "fdb"]).contains(&of_far)), "{:?}", entries(a));
    let place = world.lab.host("moved").unwrap();
    let path = place.netns_path().display().to_string();
    c.ok(&format!("attach --netns {path} --name far --network lan --mac-address {of_far}"));
    let moved = world.known(c, "lan", "far", place);
    assert!(eventually(LONG, || moved.addresses.iter().all(|address| ping(&near, *address, SHORT).is_open())));
    let leads = said(a, &["bridge", "fdb"]);
    assert!(leads.lines().any(|line| line.contains(&of_far) && line.contains("dst 10.0.1.3")), "{leads}");
    // Nothing is left.
    for pod in [&near, &beside] {
        a.ok(&format!("detach {}", pod.name));
    }
    assert_eq!(entries(a), Vec::<String>::new());
    assert!(a.links("vx-").is_empty() && a.links("br-").is_empty());
    a.ok("verify");
}

#[test]
fn a_broadcast_domain_has_one_mtu_and_may_be_encrypted_or_keep_containers_apart() {
    let Some(world) = World::of("overlay-l2-sealed", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    joined(&world, &etcd);
    let pair = |network: &str, options: &str| {
        a.ok(&format!("network create -d overlay --opt mode=l2{options} {network}"));
        has(b, network);
        let (near, far) = (format!("{network}-near"), format!("{network}-far"));
        (world.pod(a, network, &near), world.pod(b, network, &far))
    };
    let mut capture = Capture::start(&world.lab, &b.host, "eth0");
    let (sealed, vault) = pair("vault", " --opt encrypted");
    let is_open = |from: &Pod, to: &Pod| to.addresses.iter().all(|address| ping(from, *address, SHORT).is_open());
    assert!(eventually(LONG, || is_open(&sealed, &vault)));
    reach(&vault, &sealed);
    capture.stop();
    assert_eq!(capture.packets(&b.host, "udp port 4789"), Vec::<String>::new(), "in clear");
    assert!(!capture.packets(&b.host, "udp port 51820").is_empty());
    let ((near, far), (alone, apart)) = (pair("lan", ""), pair("apart", " --opt icc=false"));
    assert!(eventually(LONG, || is_open(&near, &far)));
    assert!(!is_heard(&alone, None, &apart) && !is_heard(&apart, None, &alone), "these do not reach each other");
    assert!(ping(&alone, "10.0.1.11".parse().unwrap(), SHORT).is_open(), "but the world");
    // The least of all hosts is everybody's: nothing tells a container that a frame is too large for another host.
    let mtu = |pod: &Pod| {
        let output = pod.place.command("cat").unwrap().arg("/sys/class/net/eth0/mtu").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!((mtu(&near).as_str(), mtu(&sealed).as_str()), ("1450", "1370"));
    b.set_mtu(1430);
    for pod in [&near, &far] {
        assert!(eventually(LONG, || mtu(pod) == "1380"), "{}: {}", pod.name, mtu(pod));
    }
    for (from, to) in [(&near, &far), (&far, &near), (&sealed, &vault)] {
        for address in &to.addresses {
            transfer(&from.place, &to.place, SocketAddr::new(*address, 5201));
        }
    }
    for address in &far.addresses {
        assert!(passes(&near, *address, 1380) && !passes(&near, *address, 1381), "{address}");
    }
    for node in [a, b] {
        node.is_well();
        assert!(eventually(LONG, || node.run(&["verify"]).status.success()), "{:?}", node.run(&["verify"]));
    }
}
