//! Encrypted networks: what hosts send each other of them is not to be read, whatever happens.

use std::time::Duration;

use portolan_lab::eventually;
use portolan_lab::probe::ping;

use crate::overlay::{has, joined, reach};
use crate::world::{LONG, World};

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
