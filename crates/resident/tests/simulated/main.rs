//! Hosts over an etcd that is a value, each with its own store, engine and a kernel in memory, and with the plans of the real
//! thing. Whatever is lost, late, cut off, killed or removed meanwhile: when it is over, every kernel and every row is what etcd
//! says, and no address is had twice.
//!
//! `PORTOLAN_SEEDS` sets how many schedules are run, or which (`FIRST..LAST`, without the last).

#[path = "../../../cluster/tests/shared/etcd.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod etcd;
#[path = "../../../engine/tests/fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;
mod host;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::{Seen, World};

const SEEDS: u64 = 60;
const STEPS: usize = 150;

#[test]
fn every_kernel_is_what_etcd_says() {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (first, last) = match std::env::var("PORTOLAN_SEEDS") {
        Ok(seeds) => match seeds.split_once("..") {
            Some((first, last)) => (number(first), number(last)),
            None => (0, number(&seeds)),
        },
        Err(_) => (0, SEEDS),
    };
    let next = AtomicU64::new(first);
    let all = Mutex::new(Seen::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last {
                return;
            }
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.heal();
            world.check();
            world.end();
            all.lock().unwrap().add(&world.seen);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let all = all.into_inner().unwrap();
    println!("{} schedules: {all:?}", last - first);
    all.check_that_all_came_to_pass();
}
