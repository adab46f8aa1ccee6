//! The keys of the encrypted link change, and nobody notices.

use std::collections::BTreeSet;
use std::time::Duration;

use portolan_lab::eventually;
use portolan_lab::probe::ping;

use crate::lossless::stream;
use crate::overlay::{Pod, has, joined};
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
    let Some(world) = World::of("rotate-lossless", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.ok("network create -d overlay --opt encrypted web");
    has(b, "web");
    let (near, far) = (world.pod(a, "web", "near"), world.pod(b, "web", "far"));
    assert!(reaches(&near, &far) && reaches(&far, &near));
    let gap = Duration::from_millis(1);
    let mut keys = BTreeSet::from([a.key().unwrap()]);
    stream(&near, &far, gap, || {
        stream(&far, &near, gap, || {
            let began = std::time::Instant::now();
            for number in 0..12 {
                eprintln!("{} at {:?}", number, began.elapsed());
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
