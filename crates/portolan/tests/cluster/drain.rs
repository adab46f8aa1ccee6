//! A host that is to take no more containers on networks of the cluster.

use std::time::Duration;

use portolan_lab::eventually;
use portolan_lab::probe::ping;

use crate::overlay::{ask, has, joined, reach};
use crate::world::{LONG, World};

/// What nobody uses goes back at once; otherwise it is kept for a minute.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_drained_host_keeps_what_runs_and_takes_nothing_more() {
    let Some(world) = World::of("drain", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    for network in ["web", "other"] {
        a.ok(&format!("network create -d overlay {network}"));
        has(b, network);
    }
    let (here, there) = (world.pod(a, "web", "here"), world.pod(b, "web", "there"));
    assert!(eventually(LONG, || there.addresses.iter().all(|to| ping(&here, *to, Duration::from_secs(1)).is_open())));
    let gone = world.pod(b, "other", "gone");
    b.ok("detach gone");
    let blocks = || {
        let keys = etcd.ctl(&["get", "--prefix", "--keys-only", "/portolan/v2/net/"]).unwrap();
        keys.lines().filter(|key| key.contains("/block/")).map(str::to_owned).collect::<Vec<String>>()
    };
    let of = |address: std::net::IpAddr| {
        let is_in = |key: &String| {
            let block = key.rsplit('/').next().unwrap().replacen('-', "/", 1);
            block.parse::<ipnet::IpNet>().unwrap().contains(&address)
        };
        blocks().iter().any(is_in)
    };
    assert!(gone.addresses.iter().all(|address| of(*address)), "{:?}", blocks());

    assert_eq!(a.ok("cluster drain b"), "b\n");
    b.sees("a up, b up");
    let is_told = || b.ok("cluster nodes").contains("up, drained");
    assert!(eventually(SOON, is_told), "{}", b.ok("cluster nodes"));
    assert!(b.ok("cluster status").contains("drained: takes no more containers"));
    let place = world.lab.host("late").unwrap();
    let attach = format!("attach --netns {} --name late --network", place.netns_path().display());
    // It is told by etcd, and writes it down under the lock.
    let refuses = || {
        let is_taken = b.run(&format!("{attach} web").split(' ').collect::<Vec<_>>()).status.success();
        if is_taken {
            b.ok("detach late");
        }
        !is_taken
    };
    assert!(eventually(SOON, refuses));
    let refused = || b.refused(&format!("{attach} web"));
    let why = "network `web` is one of the cluster's, on which this host takes no more containers: it is drained";
    assert!(refused().contains(why) && refused().contains("portolan cluster undrain"), "{}", refused());
    // What nobody uses is for others, and nothing else.
    assert!(eventually(SOON, || !gone.addresses.iter().any(|address| of(*address))), "{:?}", blocks());
    assert!(there.addresses.iter().all(|address| of(*address)));
    reach(&here, &there);
    assert_eq!(ask(&here, "there", "A"), [there.addresses[0].to_string()]);
    // Networks of its own are not the cluster's, and another daemon knows it as well.
    b.ok("network create own");
    b.ok(&format!("{attach} own"));
    b.kill_daemon();
    assert!(b.refused("network connect web late").contains("it is drained"));
    a.refused("cluster drain nobody");

    assert_eq!(b.ok("cluster undrain"), "b\n");
    b.ok("network connect web late");
    assert_eq!(b.ok("cluster undrain b"), "b\n");
    assert!(!a.ok("cluster nodes").contains("drained"));
}
