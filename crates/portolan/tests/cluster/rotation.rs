//! The keys of the encrypted link change, and nobody notices.

use std::collections::BTreeSet;
use std::time::Duration;

use portolan_lab::eventually;
use portolan_lab::probe::ping;

use crate::lossless::stream;
use crate::overlay::{Pod, has, two_hosts};
use crate::world::{LONG, Node, World};

impl Node {
    /// The public key that it has, when it has but one.
    pub(crate) fn key(&self) -> Option<String> {
        let keys = self.status()["keys"].clone();
        keys["changing"].as_bool().filter(|changing| !changing)?;
        keys["key"].as_str().map(str::to_owned)
    }

    pub(crate) fn round(&self) -> u64 {
        self.status()["keys"]["round"].as_u64().unwrap()
    }
}

fn reaches(from: &Pod, to: &Pod) -> bool {
    eventually(LONG, || ping(from, to.addresses[0], Duration::from_secs(1)).is_open())
}

#[test]
fn no_packet_is_lost_while_keys_change() {
    let Some((world, _etcd, near, far)) = two_hosts("rotate-lossless", "network create -d overlay --opt encrypted web")
    else {
        return;
    };
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    assert!(reaches(&near, &far) && reaches(&far, &near));
    let gap = Duration::from_millis(1);
    let mut keys = BTreeSet::from([a.key().unwrap()]);
    stream(&near, &far, gap, || {
        stream(&far, &near, gap, || {
            for number in 0..12 {
                match number % 3 {
                    0 => keys.insert(a.ok("cluster rotate")),
                    1 => keys.insert(b.ok("cluster rotate")),
                    _ => std::thread::scope(|scope| {
                        let both = [a, b].map(|node| scope.spawn(|| node.ok("cluster rotate")));
                        both.into_iter().fold(true, |is_new, key| is_new & keys.insert(key.join().unwrap()))
                    }),
                };
            }
        });
    });
    assert_eq!(keys.len(), 1 + 4 + 4 + 8, "keys are new ones");
    for node in [a, b] {
        assert!(node.round() >= 12, "{}", node.status());
        node.is_well();
        node.ok("verify");
    }
}

#[test]
fn old_keys_change_by_themselves() {
    let Some(world) = World::of("rotate-old", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.join("init", &etcd);
    let url = etcd.endpoints("http").join(",");
    assert!(b.run(&["cluster", "join", "--etcd", &url, "--rotate-keys", "30"]).status.code() == Some(2));
    b.ok(&format!("cluster join --etcd {url} --name b --rotate-keys 30d"));
    a.sees("a up, b up");
    let keys = [a.key().unwrap(), b.key().unwrap()];
    b.ok("daemon stop");
    let settings = b.settings();
    assert!(settings.contains("\"rotate_after\":2592000"), "{settings}");
    let drawn = settings.split("\"drawn\":").nth(1).unwrap().split(',').next().unwrap();
    let then = drawn.parse::<u64>().unwrap() - 2_592_000;
    b.set_settings(&settings.replace(&format!("\"drawn\":{drawn}"), &format!("\"drawn\":{then}")));
    b.ok("daemon start");
    for (node, key) in [a, b].into_iter().zip(&keys) {
        let is_other = || node.key().is_some_and(|now| now != *key) && node.round() == 1;
        assert!(eventually(LONG, is_other), "{}: {}", node.host.name(), node.status());
    }
    // It is young again; and what nobody used until now works by it.
    a.ok("network create -d overlay --opt encrypted web");
    has(b, "web");
    let (near, far) = (world.pod(a, "web", "near"), world.pod(b, "web", "far"));
    assert!(reaches(&near, &far) && reaches(&far, &near));
    assert_eq!((a.round(), b.round()), (1, 1));
    for (node, key) in [a, b].into_iter().zip(&keys) {
        assert!(!node.settings().contains(key), "{}", node.settings());
        node.is_well();
    }
    // Nobody could be told of another one.
    drop(etcd);
    a.warns("etcd");
    let said = a.refused("cluster rotate");
    assert!(said.contains("no other host could be told"), "{said}");
    assert_eq!(a.round(), 1);
}
