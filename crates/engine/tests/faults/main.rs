//! Whatever fails at whichever call of whichever verb: nothing is left, nothing is had twice, and nothing is open that no
//! row knows of.
//!
//! A schedule is a list of verbs of all faces, each with what goes wrong meanwhile ([`Fault`]), and of what happens beside
//! them: the machine starts anew, the clock jumps, somebody else changes what is ours. It is made from a seed;
//! `PORTOLAN_SEEDS` sets how many are run, or which (`FIRST..LAST`, without the last), `PORTOLAN_SEED` runs one. One that fails is
//! shortened and printed.

#[path = "../fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

mod check;
mod found;
mod page;
mod play;
mod schedule;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use play::{Seen, run, shorten};
use schedule::schedule;

const SEEDS: u64 = 1000;

#[test]
fn nothing_is_left_whatever_fails() {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (first, last) = match (std::env::var("PORTOLAN_SEED"), std::env::var("PORTOLAN_SEEDS")) {
        (Ok(seed), _) => (number(&seed), number(&seed) + 1),
        (_, Ok(seeds)) => match seeds.split_once("..") {
            Some((first, last)) => (number(first), number(last)),
            None => (0, number(&seeds)),
        },
        _ => (0, SEEDS),
    };
    let next = AtomicU64::new(first);
    let all = Mutex::new(Seen::default());
    let failed: Mutex<Vec<u64>> = Mutex::default();
    // What a schedule says when it fails is said once, when it is as short as can be.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut seen = Seen::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last || failed.lock().unwrap().len() >= 5 {
                        break;
                    }
                    if run(&schedule(seed), &mut seen).is_err() {
                        eprintln!("seed {seed} fails");
                        failed.lock().unwrap().push(seed);
                    }
                }
                let mut all = all.lock().unwrap();
                seen.0.into_iter().for_each(|(what, times)| all.count(what, times));
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let said: Vec<String> = failed
        .iter()
        .map(|seed| {
            let short = shorten(schedule(*seed));
            let why = run(&short, &mut Seen::default()).err().unwrap_or_default();
            format!(
                "seed {seed}: {why}\n  {}",
                short.iter().map(|event| format!("{event:?}")).collect::<Vec<_>>().join("\n  ")
            )
        })
        .collect();
    std::panic::set_hook(hook);
    assert!(said.is_empty(), "{}", said.join("\n\n"));
    let all = all.into_inner().unwrap();
    eprintln!("{} seeds", last - first);
    for (what, times) in &all.0 {
        eprintln!("{what}: in {times} verbs");
    }
    if (first, last) == (0, SEEDS) {
        page::keep(&page::page(&all));
    }
}
