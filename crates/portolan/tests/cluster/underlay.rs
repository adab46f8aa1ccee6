//! A host is somewhere else: its address or its MTU changes while it is in the cluster.

use std::net::IpAddr;
use std::time::Duration;

use portolan_lab::eventually;
use portolan_lab::probe::ping;
use serde_json::Value;

use crate::overlay::{Pod, has, joined};
use crate::world::{LONG, Node, World};

impl Node {
    /// Its interface has another address, as when a DHCP server gives it another one.
    fn move_to(&self, from: &str, to: &str) {
        self.host.remove_address("eth0", from).unwrap();
        self.host.add_address("eth0", to).unwrap();
        if !to.contains(':') {
            self.host.add_default_route("10.0.1.11").unwrap();
        }
    }

    /// What the cluster says of a host, as this one sees it.
    fn row(&self, name: &str) -> Value {
        let rows: Value = serde_json::from_str(&self.ok("--json cluster nodes")).unwrap();
        rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone()
    }
}

/// Whether what is as large as IPv6 has to have it arrives whole.
fn passes_large(from: &Pod, to: IpAddr) -> bool {
    let size = 1280 - if to.is_ipv4() { 28 } else { 48 };
    let words = ["-c", "1", "-W", "1", "-s", &size.to_string(), &to.to_string()];
    from.place.command("ping").unwrap().args(words).output().unwrap().status.success()
}

#[track_caller]
fn all_reach(pods: &[Pod]) {
    for (from, to) in pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to))) {
        let is_open = || to.addresses.iter().all(|address| ping(from, *address, Duration::from_secs(1)).is_open());
        assert!(eventually(LONG, is_open), "{} to {}", from.name, to.name);
    }
}

#[test]
fn who_moves_is_followed() {
    let Some(world) = World::or_skip("underlay-moves") else { return };
    let etcd = world.etcd(1);
    let all @ [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    joined(&world, &etcd);
    a.ok("network create -d overlay open");
    a.ok("network create -d overlay --opt encrypted vault");
    for node in all {
        has(node, "open");
        has(node, "vault");
    }
    let open = [world.pod(a, "open", "o1"), world.pod(b, "open", "o2"), world.pod(c, "open", "o3")];
    let vault = [world.pod(a, "vault", "v1"), world.pod(b, "vault", "v2"), world.pod(c, "vault", "v3")];
    all_reach(&open);
    all_reach(&vault);
    let id = b.row("b")["id"].clone();
    b.move_to("10.0.1.2/24", "10.0.1.22/24");
    for node in all {
        let knows = || node.row("b")["addresses"] == serde_json::json!(["10.0.1.22", "fd00:1::2"]);
        assert!(eventually(LONG, knows), "{}: {}", node.host.name(), node.row("b"));
    }
    all_reach(&open);
    all_reach(&vault);
    // Two at once, of whom one has what the other one had.
    c.host.remove_address("eth0", "10.0.1.3/24").unwrap();
    a.move_to("10.0.1.1/24", "10.0.1.3/24");
    c.host.add_address("eth0", "10.0.1.33/24").unwrap();
    c.host.add_default_route("10.0.1.11").unwrap();
    for node in all {
        let knows = || node.row("a")["addresses"][0] == "10.0.1.3" && node.row("c")["addresses"][0] == "10.0.1.33";
        assert!(eventually(LONG, knows), "{}: {}", node.host.name(), node.nodes());
    }
    all_reach(&open);
    all_reach(&vault);
    // Its way takes less.
    assert!(b.host.command("ip").unwrap().args(["link", "set", "eth0", "mtu", "1440"]).status().unwrap().success());
    for node in all {
        assert!(eventually(LONG, || node.row("b")["mtu"] == "1440"), "{}: {}", node.host.name(), node.row("b"));
    }
    for pods in [&open, &vault] {
        all_reach(pods);
        for (from, to) in [(0, 1), (1, 0), (1, 2)] {
            for address in &pods[to].addresses {
                assert!(eventually(LONG, || passes_large(&pods[from], *address)), "{} to {address}", pods[from].name);
            }
        }
    }
    for node in all {
        node.is_well();
        let verify = || node.run(&["verify"]);
        assert!(eventually(LONG, || verify().status.success()), "{}: {:?}", node.host.name(), verify());
    }
    assert!(eventually(LONG, || a.run(&["cluster", "verify"]).status.success()), "{}", a.ok("cluster verify"));
    // Nobody left or joined.
    assert_eq!(b.row("b")["id"], id);
    // The keys of where they were are free for others.
    let keys = etcd.ctl(&["get", "--prefix", "--keys-only", "/portolan/v2/taken/address/"]).unwrap();
    assert!(!keys.contains("10.0.1.2\n") && !keys.contains("10.0.1.1\n") && keys.contains("10.0.1.22"), "{keys}");
}

#[test]
fn an_address_of_another_host_is_not_taken() {
    let Some(world) = World::of("underlay-taken", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    joined(&world, &etcd);
    b.move_to("fd00:1::2/64", "fd00:1::1/64");
    // A default route leads out of the interface by IPv4.
    b.warns("this host has address fd00:1::1, which is host `a`'s in the cluster");
    assert_eq!(a.row("a")["addresses"][1], "fd00:1::1");
    b.move_to("fd00:1::1/64", "fd00:1::5/64");
    b.is_well();
    assert!(eventually(LONG, || a.row("b")["addresses"][1] == "fd00:1::5"), "{}", a.row("b"));
}

#[test]
fn an_address_that_was_named_stays() {
    let Some(world) = World::of("underlay-named", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.join("init", &etcd);
    let url = etcd.endpoints("http").join(",");
    b.ok(&format!("cluster join --etcd {url} --name b --address 10.0.1.2"));
    a.sees("a up, b up");
    b.move_to("10.0.1.2/24", "10.0.1.22/24");
    b.warns(
        "address 10.0.1.2, at which this host takes packets of the others, is on none of its interfaces: it was named",
    );
    assert_eq!(a.row("b")["addresses"], serde_json::json!(["10.0.1.2"]));
    b.move_to("10.0.1.22/24", "10.0.1.2/24");
    b.is_well();
}
