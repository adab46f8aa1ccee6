//! Hosts behind NAT: they join, speak first, are followed where NAT puts them, and reach each other by a third one.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portolan_kernel::signals;
use portolan_lab::etcd::{Etcd, is_there};
use portolan_lab::probe::ping;
use portolan_lab::{Host, Lab, eventually};
use serde_json::Value;

use crate::overlay::{Pod, has};
use crate::sealed::{Capture, MARK, workers};
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

/// Hosts on a LAN that all reach, and others behind a NAT each, all with the same address.
struct World {
    /// Those that are reached.
    open: Vec<Node>,
    hidden: Vec<Node>,
    nats: Vec<Nat>,
    etcd: Etcd,
    _etcd_host: Host,
    lab: Lab,
}

/// What hosts behind NAT have.
const INSIDE: &str = "192.168.1.10";

impl World {
    fn of(name: &str, open: &[&str], hidden: &[&str]) -> Option<Self> {
        if !is_there(name) {
            return None;
        }
        let lab = Lab::or_skip(name)?;
        let mut lan = lab.lan("lan", &[]).unwrap();
        let etcd_host = lab.host("etcd").unwrap();
        lan.connect(&etcd_host, "eth0", &["10.0.1.11/24"]).unwrap();
        let node = |host: Host| Node { root: lab.dir().join(format!("root-{}", host.name())), host };
        let mut world_open = Vec::new();
        for (number, name) in (1..).zip(open) {
            let host = lab.host(name).unwrap();
            lan.connect(&host, "eth0", &[&format!("10.0.1.{number}/24")]).unwrap();
            host.add_default_route("10.0.1.11").unwrap();
            world_open.push(node(host));
        }
        let (mut world_hidden, mut nats) = (Vec::new(), Vec::new());
        for (number, name) in (101..).zip(hidden) {
            let (host, router) = (lab.host(name).unwrap(), lab.host(&format!("nat-{name}")).unwrap());
            lan.connect(&router, "eth0", &[&format!("10.0.1.{number}/24")]).unwrap();
            let inside = format!("{INSIDE}/24");
            lab.lan(&format!("lan-{name}"), &[(&host, "eth0", &[&inside]), (&router, "eth1", &["192.168.1.1/24"])]).unwrap();
            host.add_default_route("192.168.1.1").unwrap();
            router.enable_forwarding().unwrap();
            let nat = Nat { router };
            nat.rules(
                "table ip nat {
                    chain out {
                        type nat hook postrouting priority srcnat;
                        oifname eth0 masquerade fully-random
                    }
                    chain forward {
                        type filter hook forward priority filter; policy drop;
                        iifname eth1 accept
                        ct state established accept
                    }
                }",
            );
            world_hidden.push(node(host));
            nats.push(nat);
        }
        let etcd = Etcd::start(lab.dir(), &[(&etcd_host, "10.0.1.11".parse().unwrap())], "http", &[]).unwrap();
        Some(Self { open: world_open, hidden: world_hidden, nats, etcd, _etcd_host: etcd_host, lab })
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
        for node in &self.hidden {
            node.ok(&format!("cluster join --etcd {url} --name {} --behind-nat", node.host.name()));
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
    let Some(world) = World::of("nat-one", &["a"], &["h"]) else { return };
    world.join();
    let ([a], [h], [nat]) = (&world.open[..], &world.hidden[..], &world.nats[..]) else { panic!("two hosts") };
    let (near, far) = (world.pod(a, "near"), world.pod(h, "far"));
    reach_within(LONG, &near, &far);
    assert_eq!((&row(a, "h")["way"]["by"], &row(h, "a")["way"]["by"]), (&"seen".into(), &"direct".into()));
    let seen = || row(a, "h")["link"]["endpoint"].as_str().unwrap_or_default().to_owned();
    assert!(seen().starts_with("10.0.1.101:"), "{}", row(a, "h"));
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
