//! Networks over several hosts: packets, addresses and names.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use portolan_kernel::netns::NetnsFd;
use portolan_kernel::signals;
use portolan_lab::etcd::Etcd;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;
use portolan_lab::{Host, InNetns, eventually};
use serde_json::Value;

use crate::sealed::worker;
use crate::world::{LONG, Node, World};

const SHORT: Duration = Duration::from_secs(2);

/// A container on one network.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) place: Host,
    pub(crate) addresses: Vec<IpAddr>,
}

impl InNetns for Pod {
    fn netns(&self) -> &NetnsFd {
        self.place.netns()
    }
}

impl World {
    pub(crate) fn pod(&self, node: &Node, network: &str, name: &str) -> Pod {
        let place = self.lab.host(name).unwrap();
        let path = place.netns_path().display().to_string();
        node.ok(&format!("attach --netns {path} --name {name} --network {network}"));
        self.known(node, network, name, place)
    }

    /// A container that is there.
    pub(crate) fn known(&self, node: &Node, network: &str, name: &str, place: Host) -> Pod {
        let inspected: Value = serde_json::from_str(&node.ok(&format!("inspect {name}"))).unwrap();
        let network = &inspected[0]["NetworkSettings"]["Networks"][network];
        let addresses = ["IPAddress", "GlobalIPv6Address"].iter().filter_map(|key| network[key].as_str()?.parse().ok());
        Pod { name: name.to_owned(), place, addresses: addresses.collect() }
    }
}

#[track_caller]
pub(crate) fn reach(from: &Pod, to: &Pod) {
    for address in &to.addresses {
        let probe = ping(from, *address, SHORT);
        assert!(probe.is_open(), "{} to {} at {address}: {probe:?}", from.name, to.name);
    }
}

#[test]
fn containers_of_different_hosts_reach_each_other() {
    let Some(world) = World::or_skip("overlay-reach") else { return };
    let etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    a.join("init", &etcd);
    b.join("join", &etcd);
    c.join("join", &etcd);
    let id = a.ok("network create -d overlay web");
    for node in [a, b, c] {
        assert!(eventually(LONG, || node.ok("network ls --no-trunc").contains(id.trim())), "{}", node.ok("network ls"));
    }
    let pods =
        [world.pod(a, "web", "a1"), world.pod(a, "web", "a2"), world.pod(b, "web", "b1"), world.pod(c, "web", "c1")];
    for pod in &pods {
        assert_eq!(pod.addresses.len(), 2, "{}: {:?}", pod.name, pod.addresses);
    }
    let knows = |node: &Node, count: usize| {
        let routes = node.host.command("ip").unwrap().args(["route"]).output().unwrap();
        String::from_utf8_lossy(&routes.stdout).lines().filter(|line| line.contains("dev vx-")).count() == count
    };
    for node in [a, b, c] {
        assert!(eventually(LONG, || knows(node, 2)), "{}", node.host.name());
    }
    for from in &pods {
        for to in &pods {
            reach(from, to);
        }
    }
    let server = TcpServer::start(&pods[3], SocketAddr::new([0, 0, 0, 0].into(), 80), "c1").unwrap();
    let probe = tcp_probe(&pods[0], SocketAddr::new(pods[3].addresses[0], 80), SHORT);
    assert_eq!(probe.banner(), Some("c1"), "{probe:?}");
    assert_eq!(server.last_client().map(|client| client.ip()), Some(pods[0].addresses[0]), "its own address");
    for node in [a, b, c] {
        node.ok("verify");
        node.is_well();
        assert_eq!(node.ok("cluster verify"), "a: as it should be\nb: as it should be\nc: as it should be\n");
    }
    // A host that cannot look.
    let daemon = b.daemon();
    daemon.signal(signals::STOP).unwrap();
    let output = a.run(&["cluster", "verify"]);
    daemon.signal(signals::CONTINUE).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && said.contains("b: says nothing"), "{said}");
}

/// The lines of `ip` with these words that are about tunnels.
fn lines(node: &Node, words: &[&str]) -> Vec<String> {
    let output = node.host.command(words[0]).unwrap().args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.contains("vx-")).map(|line| line.trim().to_owned()).collect()
}

/// What leads to other hosts.
pub(crate) fn ways(node: &Node) -> [Vec<String>; 4] {
    [
        lines(node, &["ip", "route"]),
        lines(node, &["ip", "-6", "route"]),
        lines(node, &["ip", "neigh", "show", "nud", "permanent"]),
        lines(node, &["bridge", "fdb"]).into_iter().filter(|line| line.contains("dst")).collect(),
    ]
}

/// Two hosts of a cluster, with a container of each on the network `web`, which `create` makes.
pub(crate) fn two_hosts(name: &str, create: &str) -> Option<(World, Etcd, Pod, Pod)> {
    let world = World::of(name, &["a", "b"])?;
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.ok(create);
    has(b, "web");
    let (near, far) = (world.pod(a, "web", "near"), world.pod(b, "web", "far"));
    Some((world, etcd, near, far))
}

pub(crate) fn joined(world: &World, etcd: &Etcd) {
    for (number, node) in world.nodes.iter().enumerate() {
        node.join(if number == 0 { "init" } else { "join" }, etcd);
    }
}

/// Waits until a network that was made elsewhere is here.
#[track_caller]
pub(crate) fn has(node: &Node, network: &str) {
    let is_there = || node.run(&["network", "inspect", network]).status.success();
    assert!(eventually(LONG, is_there), "{} has no `{network}`: {}", node.host.name(), node.status());
}

#[track_caller]
pub(crate) fn ask(pod: &Pod, name: &str, kind: &str) -> Vec<String> {
    let server = pod.gateway();
    let output =
        pod.place.command("dig").unwrap().args(["+short", "+tries=1", "+time=2", &server, name, kind]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let mut found: Vec<String> = text.lines().map(str::to_owned).collect();
    found.sort();
    found
}

impl Pod {
    /// Whom it asks for names.
    pub(crate) fn gateway(&self) -> String {
        let output = self.place.command("ip").unwrap().args(["-4", "route", "show", "default"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        format!("@{}", text.split(' ').nth(2).unwrap())
    }
}

#[test]
fn names_are_known_on_all_hosts_within_a_second() {
    let Some(world) = World::or_skip("overlay-names") else { return };
    let etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    joined(&world, &etcd);
    a.ok("network create -d overlay web");
    has(b, "web");
    has(c, "web");
    let (one, other) = (world.pod(a, "web", "one"), world.pod(b, "web", "other"));
    // Whoever comes is known at once, and whoever goes is forgotten.
    for round in 0..5 {
        let name = format!("guest{round}");
        let guest = world.pod(c, "web", &name);
        let began = std::time::Instant::now();
        for pod in [&one, &other] {
            let is_known = || ask(pod, &name, "a") == [guest.addresses[0].to_string()];
            assert!(eventually(LONG, is_known), "{name} by {}", pod.name);
        }
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(ask(&one, &name, "aaaa"), [guest.addresses[1].to_string()]);
        reach(&one, &guest);
        c.ok(&format!("detach {name}"));
        assert!(eventually(LONG, || ask(&one, &name, "a").is_empty()), "{name} is gone");
    }
    // Several by one name, on different hosts.
    let mut addresses = Vec::new();
    let mut pods = Vec::new();
    for (node, name) in [(a, "db1"), (b, "db2"), (c, "db3")] {
        let place = world.lab.host(name).unwrap();
        let path = place.netns_path().display().to_string();
        node.ok(&format!("attach --netns {path} --name {name} --network web --network-alias db"));
        let inspected: Value = serde_json::from_str(&node.ok(&format!("inspect {name}"))).unwrap();
        let address = &inspected[0]["NetworkSettings"]["Networks"]["web"]["IPAddress"];
        addresses.push(address.as_str().unwrap().to_owned());
        pods.push(place);
    }
    addresses.sort();
    for pod in [&one, &other] {
        assert!(eventually(LONG, || ask(pod, "db", "a") == addresses), "{:?} {addresses:?}", ask(pod, "db", "a"));
    }
}

#[test]
fn what_others_take_away_comes_back() {
    let Some(world) = World::or_skip("overlay-repair") else { return };
    let etcd = world.etcd(1);
    let [a, b, _] = &world.nodes[..] else { panic!("three hosts") };
    joined(&world, &etcd);
    a.ok("network create -d overlay web");
    has(b, "web");
    let (one, other) = (world.pod(a, "web", "one"), world.pod(b, "web", "other"));
    let is_whole = || ways(a).iter().all(|ways| !ways.is_empty());
    assert!(eventually(LONG, is_whole), "{:?}", ways(a));
    reach(&one, &other);
    let whole = ways(a);
    let vxlan = whole[3][0].split("dev ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mac = whole[3][0].split(' ').next().unwrap().to_owned();
    let via = whole[2][0].split(' ').next().unwrap().to_owned();
    let route = whole[0][0].split(' ').next().unwrap().to_owned();
    let route6 = whole[1].iter().find(|line| line.contains(" via ")).unwrap().split(' ').next().unwrap().to_owned();
    for words in [
        vec!["bridge", "fdb", "del", &mac, "dev", &vxlan, "dst", "10.0.1.2", "self"],
        vec!["ip", "neigh", "del", &via, "dev", &vxlan],
        vec!["ip", "route", "del", &route],
        vec!["ip", "-6", "route", "del", &route6],
        vec!["ip", "link", "set", &vxlan, "down"],
        vec!["ip", "link", "del", &vxlan],
        vec!["nft", "flush", "ruleset"],
    ] {
        let done = a.host.command(words[0]).unwrap().args(&words[1..]).status().unwrap();
        assert!(done.success(), "{words:?}");
        let began = std::time::Instant::now();
        assert!(eventually(LONG, || ways(a) == whole), "{words:?}: {:?} {whole:?}", ways(a));
        assert!(began.elapsed() < Duration::from_secs(5), "{words:?}: {:?}", began.elapsed());
        assert!(eventually(LONG, || a.run(&["verify"]).status.success()), "{words:?}");
        reach(&one, &other);
        reach(&other, &one);
    }
}

#[test]
fn a_port_that_somebody_has_is_named() {
    let Some(world) = World::of("overlay-port", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.ok("network create -d overlay web");
    has(b, "web");
    let holder = b.host.enter(|| UdpSocket::bind("0.0.0.0:4789")).unwrap();
    let place = world.lab.host("late").unwrap();
    let path = place.netns_path().display().to_string();
    let said = b.refused(&format!("attach --netns {path} --name late --network web"));
    assert!(said.contains("address already in use") && said.contains("hint: ") && said.contains("ss -lunp"), "{said}");
    assert!(ways(b).concat().is_empty(), "nothing has changed: {:?}", ways(b));
    b.ok("verify");
    b.warns("UDP 4789, the tunnels' port, is another program's on this host (`");
    drop(holder);
    b.is_well();
    b.ok(&format!("attach --netns {path} --name late --network web"));
    let (near, late) = (world.pod(a, "web", "near"), world.known(b, "web", "late", place));
    assert!(eventually(LONG, || ping(&near, late.addresses[0], SHORT).is_open()));
}

fn index(node: &Node, link: &str) -> u64 {
    let output = node.host.command("ip").unwrap().args(["-j", "link", "show", link]).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    shown[0]["ifindex"].as_u64().unwrap()
}

#[test]
fn a_host_without_etcd_goes_on() {
    goes_on_without_etcd("overlay-cut-off", "network create -d overlay web");
}

#[test]
fn an_encrypting_host_without_etcd_goes_on() {
    goes_on_without_etcd("overlay-cut-sealed", "network create -d overlay --opt encrypted web");
}

fn goes_on_without_etcd(name: &str, create: &str) {
    let Some(world) = World::or_skip(name) else { return };
    let mut etcd = world.etcd(1);
    let [a, b, _] = &world.nodes[..] else { panic!("three hosts") };
    joined(&world, &etcd);
    a.ok(create);
    has(b, "web");
    let (one, other) = (world.pod(a, "web", "one"), world.pod(b, "web", "other"));
    assert!(eventually(LONG, || ask(&one, "other", "a").len() == 1));
    assert!(eventually(LONG, || ping(&one, other.addresses[0], SHORT).is_open()));
    let link = || a.links("ps").into_iter().map(|link| index(a, &link)).collect::<Vec<u64>>();
    let links = link();
    let whole = ways(a);
    etcd.kill(0);
    a.warns("no member of etcd is reached");
    a.kill_daemon();
    a.warns("no member of etcd is reached");
    // It knows what it knew, and gives out of what it has.
    assert_eq!(ways(a), whole);
    // Also where its interface is not what it was when it ended.
    a.ok("daemon stop");
    a.set_mtu(1490);
    a.ok("daemon start");
    a.warns("no member of etcd is reached");
    // Who carries encrypted packets is looked after each second, and so is whether addresses are there.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(ways(a), whole);
    assert_eq!(link(), links, "the link is the one that was there");
    if !links.is_empty() {
        let carrier = worker(a);
        carrier.signal(signals::KILL).unwrap();
        assert!(carrier.wait_readable(LONG).unwrap());
        assert!(eventually(LONG, || ping(&one, other.addresses[0], SHORT).is_open()));
    }
    let late = world.pod(a, "web", "late");
    for pod in [&one, &late] {
        reach(pod, &other);
        reach(&other, pod);
        assert_eq!(ask(pod, "other", "a"), [other.addresses[0].to_string()]);
    }
    a.ok("detach one");
    let said = a.refused("network create -d overlay more");
    assert!(said.contains("etcd"), "{said}");
    let said = a.refused("network rm web");
    assert!(said.contains("in use by container `late`"), "{said}");
    etcd.launch(0).unwrap();
    a.is_well();
    b.is_well();
    // The others hear of all that happened meanwhile.
    assert!(eventually(LONG, || ask(&other, "late", "a") == [late.addresses[0].to_string()]));
    assert!(eventually(LONG, || ask(&other, "one", "a").is_empty()));
}

#[test]
fn hosts_give_out_blocks_until_there_are_none() {
    let Some(world) = World::or_skip("overlay-blocks") else { return };
    let etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    joined(&world, &etcd);
    // Two blocks of eight: the network's own address, the gateway and the broadcast address are nobody's.
    a.ok("network create -d overlay --subnet 10.9.0.0/28 --ipv6=false small");
    has(b, "small");
    has(c, "small");
    let mut pods: Vec<Pod> = (0..3).map(|n| world.pod(a, "small", &format!("a{n}"))).collect();
    pods.extend((0..3).map(|n| world.pod(b, "small", &format!("b{n}"))));
    let block = |pod: &Pod| match pod.addresses[0] {
        IpAddr::V4(address) => address.octets()[3] / 8,
        IpAddr::V6(_) => panic!("{:?}", pod.addresses),
    };
    assert!(pods[..3].iter().all(|pod| block(pod) == block(&pods[0])));
    assert!(pods[3..].iter().all(|pod| block(pod) == 1 - block(&pods[0])), "each host has one");
    for pod in &pods[1..] {
        assert!(eventually(LONG, || ping(&pods[0], pod.addresses[0], SHORT).is_open()), "{}", pod.name);
    }
    let place = world.lab.host("c0").unwrap();
    let path = place.netns_path().display().to_string();
    // An address is asked for where it is given out.
    let theirs = pods[3].addresses[0];
    let said = a.refused(&format!("attach --netns {path} --name c0 --network small --ip {theirs}"));
    assert!(said.contains("is host `b`'s to give out"), "{said}");
    let said = a.refused(&format!("attach --netns {path} --name c0 --network small --ip {}", pods[0].addresses[0]));
    assert!(said.contains("is taken by container `a0`"), "{said}");

    // What somebody is on stays, whoever asks; what nobody is on is gone everywhere.
    let said = c.refused("network rm small");
    assert!(said.contains("in use by containers of host `a`, `b`"), "{said}");
    for pod in &pods {
        let node = if pod.name.starts_with('a') { a } else { b };
        node.ok(&format!("detach {}", pod.name));
    }
    assert!(eventually(LONG, || c.run(&["network", "rm", "small"]).status.success()));
    for node in [a, b, c] {
        assert!(eventually(LONG, || !node.run(&["network", "inspect", "small"]).status.success()));
        assert!(ways(node).concat().is_empty(), "{}: {:?}", node.host.name(), ways(node));
        node.ok("verify");
    }
    // A host that leaves takes nothing of it along.
    a.ok("network create -d overlay web");
    has(c, "web");
    let pod = world.pod(c, "web", "last");
    assert!(c.refused("cluster leave").contains("network `web` is in use by container `last`"));
    drop(pod);
    c.ok("detach last");
    c.ok("cluster leave");
    assert!(!c.run(&["network", "inspect", "web"]).status.success());
    c.ok("verify");
}

#[test]
fn a_host_that_will_not_come_back_is_removed() {
    let Some(world) = World::of("overlay-removed", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.ok("network create -d overlay --subnet 10.9.0.0/28 --ipv6=false small");
    has(b, "small");
    let (near, far) = (world.pod(a, "small", "near"), world.pod(b, "small", "far"));
    let is_reached = |from: &Pod, to: &Pod| ping(from, to.addresses[0], SHORT).is_open();
    assert!(eventually(LONG, || is_reached(&near, &far)));
    for (line, why) in [
        ("cluster rm b", "host `b` runs"),
        ("cluster rm a", "host `a` is this one"),
        ("cluster rm nobody", "no host of the cluster is called `nobody`"),
    ] {
        let said = a.refused(line);
        assert!(said.contains(why) && said.contains("hint: "), "{line}: {said}");
    }
    let daemon = b.daemon();
    daemon.signal(signals::STOP).unwrap();
    a.sees("a up, b down");
    assert!(is_reached(&near, &far), "who is down is reached still");
    a.ok("cluster rm b");
    a.sees("a up");
    assert!(eventually(LONG, || !is_reached(&near, &far)));
    assert!(!is_reached(&far, &near), "what it sends is dropped");
    // What it had is given to others.
    let place = world.lab.host("heir").unwrap();
    let path = place.netns_path().display().to_string();
    a.ok(&format!("attach --netns {path} --name heir --network small --ip {}", far.addresses[0]));
    let heir = world.known(a, "small", "heir", place);
    assert!(is_reached(&near, &heir));
    a.ok("verify");
    assert_eq!(a.ok("cluster verify"), "a: as it should be\n");
    // It comes back, and is told.
    daemon.signal(signals::CONTINUE).unwrap();
    b.warns("was removed from the cluster");
    assert!(b.refused("cluster leave").contains("network `small` is in use by container `far`"));
    b.ok("detach far");
    b.ok("cluster leave");
    b.join("join", &etcd);
    a.sees("a up, b up");
    b.is_well();
}

impl Node {
    /// Has its interface take packets of so many bytes.
    pub(crate) fn set_mtu(&self, mtu: u32) {
        let words = ["link", "set", "eth0", "mtu", &mtu.to_string()];
        assert!(self.host.command("ip").unwrap().args(words).status().unwrap().success());
    }
}

/// Sends a megabyte by TCP to `to`, which is reached at `at`.
#[track_caller]
pub(crate) fn transfer(from: &Host, to: &Host, at: SocketAddr) {
    transfer_by(from, to, at, &[]);
}

/// The same with words of iperf3(1).
#[track_caller]
pub(crate) fn transfer_by(from: &Host, to: &Host, at: SocketAddr, words: &[&str]) {
    let mut server = to.command("iperf3").unwrap();
    let mut server = server.args(["-s", "-1"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let is_open = || tcp_listens(to, 5201);
    assert!(eventually(LONG, is_open), "{}", to.name());
    let mut client = from.command("timeout").unwrap();
    let (address, port) = (at.ip().to_string(), at.port().to_string());
    client.args(["10", "iperf3", "-c", &address, "-p", &port, "-n", "1M"]).args(words);
    let output = client.output().unwrap();
    if !output.status.success() {
        let _ = server.kill();
    }
    let _ = server.wait();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} to {} at {at} {words:?}: {said}", from.name(), to.name());
}

/// Whether anybody listens; found out without a connection.
fn tcp_listens(place: &Host, port: u16) -> bool {
    let output = place.command("ss").unwrap().args(["-Hltn", &format!("sport = :{port}")]).output().unwrap();
    !output.stdout.is_empty()
}

/// Whether an echo request of so many bytes passes whole.
pub(crate) fn passes(from: &Pod, to: IpAddr, size: u32) -> bool {
    let header = if to.is_ipv4() { 28 } else { 48 };
    let words = ["-c", "1", "-W", "0.3", "-M", "do", "-s", &(size - header).to_string(), &to.to_string()];
    from.place.command("ping").unwrap().args(words).output().unwrap().status.success()
}

/// What is encrypted is made longer than it has to be where the sender's own way takes that, and may not get too long for the
/// receiver's.
#[test]
fn no_mtu_is_a_black_hole_for_what_is_encrypted() {
    let Some(world) = World::of("overlay-sealed-mtu", &["a", "b"]) else { return };
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    world.lan.set_mtu(9000).unwrap();
    // Without the 60 bytes of WireGuard, a multiple of 16 where the sender's link takes more, without 70 of VXLAN.
    for (number, (wide, fits)) in [(1500, [1290, 1300]), (9000, [1290, 1300])].into_iter().enumerate() {
        let etcd = world.etcd(1);
        a.set_mtu(wide);
        b.set_mtu(1430);
        joined(&world, &etcd);
        a.ok("network create -d overlay --opt encrypted vault");
        has(b, "vault");
        let near = world.pod(a, "vault", &format!("near{number}"));
        let far = world.pod(b, "vault", &format!("far{number}"));
        assert!(eventually(LONG, || ping(&near, far.addresses[0], SHORT).is_open()));
        for ((from, to), fits) in [(&near, &far), (&far, &near)].into_iter().zip(fits) {
            for address in &to.addresses {
                transfer(&from.place, &to.place, SocketAddr::new(*address, 5201));
                // The first that is too large is told so, the answer's too.
                let _ = (passes(from, *address, fits + 1), passes(from, *address, fits));
                let is_exact = (passes(from, *address, fits), passes(from, *address, fits + 1));
                assert_eq!(is_exact, (true, false), "{wide} {} to {address}: {fits}", from.name);
            }
        }
        a.ok(&format!("detach near{number}"));
        b.ok(&format!("detach far{number}"));
        for node in [a, b] {
            node.ok("cluster leave");
        }
        etcd.ctl(&["del", "--prefix", "/portolan"]).unwrap();
    }
}

#[test]
fn no_mtu_is_a_black_hole() {
    let Some(world) = World::or_skip("overlay-mtu") else { return };
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    world.lan.set_mtu(9000).unwrap();
    for (number, (one, other)) in
        [(1280, 1280), (1400, 1400), (1500, 1500), (9000, 9000), (9000, 1400)].into_iter().enumerate()
    {
        let etcd = world.etcd(1);
        a.set_mtu(one);
        b.set_mtu(other);
        c.set_mtu(1500);
        joined(&world, &etcd);
        a.ok("network create -d overlay both");
        a.ok("network create -d overlay --ipv6=false v4");
        has(b, "both");
        has(b, "v4");
        for network in ["both", "v4"] {
            let near = world.pod(a, network, &format!("near{number}-{network}"));
            let far = world.pod(b, network, &format!("far{number}-{network}"));
            assert!(eventually(LONG, || ping(&near, far.addresses[0], SHORT).is_open()));
            for (from, to) in [(&near, &far), (&far, &near)] {
                for address in &to.addresses {
                    transfer(&from.place, &to.place, SocketAddr::new(*address, 5201));
                    // Below what IPv6 needs, the outer packets are fragments.
                    let fits = one.min(other) - 50;
                    let fits = if address.is_ipv6() { fits.max(1280) } else { fits };
                    // The first that is too large is told so.
                    let _ = passes(from, *address, fits + 1);
                    let is_exact = (passes(from, *address, fits), passes(from, *address, fits + 1));
                    assert_eq!(is_exact, (true, false), "{one} {other} {} to {address}: {fits}", from.name);
                }
            }
            a.ok(&format!("detach near{number}-{network}"));
            b.ok(&format!("detach far{number}-{network}"));
        }
        for node in [a, b, c] {
            node.ok("cluster leave");
        }
        etcd.ctl(&["del", "--prefix", "/portolan"]).unwrap();
    }
}
