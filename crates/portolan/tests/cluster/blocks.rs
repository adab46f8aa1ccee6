//! Blocks of addresses that move between hosts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use portolan_lab::probe::ping;
use portolan_lab::{Host, eventually};

use crate::overlay::Pod;
use crate::world::{LONG, Node, World};

const SHORT: Duration = Duration::from_secs(2);
/// As long as a host takes to give some of its addresses.
const GIVING: Duration = Duration::from_secs(5);
/// As long as a host keeps a block that it does not use, and a while.
const REST: Duration = Duration::from_secs(100);

fn attach(node: &Node, place: &Host, name: &str) -> Result<(), String> {
    let path = place.netns_path().display().to_string();
    let line = format!("attach --netns {path} --name {name} --network small");
    let output = node.run(&line.split(' ').collect::<Vec<_>>());
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// One reaches the other, as soon as both hosts know where it is.
#[track_caller]
fn reach(from: &Pod, to: &Pod) {
    let is_open = || ping(from, to.addresses[0], SHORT).is_open();
    assert!(eventually(LONG, is_open), "{} to {} at {}", from.name, to.name, to.addresses[0]);
}

#[track_caller]
fn are_well(nodes: &[Node]) {
    for node in nodes {
        node.ok("verify");
        node.is_well();
        let as_it_should_be = || node.run(&["cluster", "verify"]).status.success();
        assert!(
            eventually(LONG, as_it_should_be),
            "{}",
            String::from_utf8_lossy(&node.run(&["cluster", "verify"]).stdout)
        );
    }
}

#[test]
fn addresses_come_from_hosts_that_have_some() {
    let Some(world) = World::or_skip("overlay-blocks") else { return };
    let etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    a.join("init", &etcd);
    b.join("join", &etcd);
    c.join("join", &etcd);
    let id = a.ok("network create -d overlay --subnet 10.9.0.0/28 --ipv6=false small");
    for node in [b, c] {
        assert!(eventually(LONG, || node.ok("network ls --no-trunc").contains(id.trim())));
    }
    let blocks = || etcd.ctl(&["get", "--prefix", "--keys-only", "/portolan/v2/net/"]).unwrap();
    let has = |part: &str| blocks().contains(&format!("/block{part}"));
    let mut pods = vec![world.pod(a, "small", "a0"), world.pod(b, "small", "b0")];
    assert!(has("/10.9.0.0-29") && has("/10.9.0.8-29"), "{}", blocks());

    // No block is free: somebody gives a part of one.
    let place = world.lab.host("c0").unwrap();
    let start = Instant::now();
    attach(c, &place, "c0").unwrap();
    let took = start.elapsed();
    println!("a host without addresses has one after {took:.1?}");
    assert!(took < GIVING, "{took:?}");
    pods.push(world.known(c, "small", "c0", place));
    assert!(!has("/10.9.0.0-29") || !has("/10.9.0.8-29"), "{}", blocks());
    for from in &pods {
        for to in &pods {
            reach(from, to);
        }
    }
    are_well(&world.nodes);

    // Down to the last address, wherever it is.
    let is_in_use = |pods: &[Pod], address: IpAddr| pods.iter().any(|pod| pod.addresses[0] == address);
    for number in 1..=10 {
        let node = &world.nodes[number % 3];
        let name = format!("{}{number}", node.host.name());
        let place = world.lab.host(&name).unwrap();
        attach(node, &place, &name).unwrap();
        let pod = world.known(node, "small", &name, place);
        assert!(!is_in_use(&pods, pod.addresses[0]), "{name}: {:?}", pod.addresses);
        pods.push(pod);
    }
    let all: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.addresses[0]).collect();
    let expected: BTreeSet<IpAddr> = (2..15).map(|last| IpAddr::from([10, 9, 0, last])).collect();
    assert_eq!(all, expected, "{}", blocks());
    let place = world.lab.host("late").unwrap();
    for node in &world.nodes {
        let said = attach(node, &place, "late").unwrap_err();
        assert!(said.contains("no free block of addresses left in 10.9.0.0/28"), "{said}");
    }
    for (from, to) in pods.iter().zip(pods.iter().cycle().skip(1)) {
        reach(from, to);
    }
    are_well(&world.nodes);

    // What one host frees, another one has.
    let freed = pods.remove(0);
    a.ok("detach a0");
    attach(c, &place, "late").unwrap();
    pods.push(world.known(c, "small", "late", place));
    assert_eq!(pods[pods.len() - 1].addresses, freed.addresses);
    reach(&pods[0], &pods[pods.len() - 1]);

    // Who does not need its blocks any more gives them back, and keeps those that somebody is on.
    for pod in pods.iter().filter(|pod| pod.name != "b0") {
        let node = world.nodes.iter().find(|node| pod.name.starts_with(node.host.name()));
        node.unwrap_or(c).ok(&format!("detach {}", pod.name));
    }
    let count = || blocks().lines().filter(|key| key.contains("/block/10.9.0.")).count();
    assert!(eventually(REST, || (1..4).contains(&count())), "{}", blocks());
    // They can be had by anybody.
    let place = world.lab.host("again").unwrap();
    attach(a, &place, "again").unwrap();
    let again = world.known(a, "small", "again", place);
    let kept = pods.iter().find(|pod| pod.name == "b0").unwrap();
    reach(kept, &again);
    reach(&again, kept);
    are_well(&world.nodes);
}
