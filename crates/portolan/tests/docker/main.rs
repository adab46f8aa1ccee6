//! A real Docker with its own bridge driver, and the same Docker with this program's network plugin.
//!
//! Ours must do everything in [`cases`], so it is never worse. `PORTOLAN_BLESS=1` has Docker's own driver do the same, and
//! writes the outcomes of both, as a table, to `docs/docker-outcomes.md`. `PORTOLAN_DOCKER=WORD` runs only the cases whose
//! name has it, `PORTOLAN_DOCKER_DRIVER=bridge` with Docker's own driver alone.

mod cases;
mod default_network;
#[path = "../machine/mod.rs"]
mod machine;
mod managed;
mod scene;
#[path = "../common/upstream.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod upstream;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use cases::{Case, SUBJECTS};
use machine::lanes::in_lanes;
use portolan_lab::Lab;
use scene::{Driver, PROGRAMS, Scene, timed};

/// What came of a case: nothing wrong, or why not.
type Outcome = std::result::Result<(), String>;

/// How many machines share the cases: most of the time each waits.
const LANES: usize = 3;

fn wanted() -> impl Iterator<Item = Case> {
    let word = env::var("PORTOLAN_DOCKER").unwrap_or_default();
    let all = SUBJECTS.into_iter().flat_map(|(_, cases)| cases.iter().copied());
    all.filter(move |(name, _)| name.contains(&word))
}

#[test]
fn docker_does_with_us_all_that_it_does_with_its_own_driver() {
    if !has_docker("docker") {
        return;
    }
    let one = env::var("PORTOLAN_DOCKER_DRIVER").unwrap_or_default();
    let bless = env::var_os("PORTOLAN_BLESS").is_some();
    let side = |driver: Driver| {
        let is_wanted = if one.is_empty() { bless || driver == Driver::Portolan } else { one == driver.name() };
        std::thread::spawn(move || if is_wanted { play(driver) } else { Ok(Vec::new()) })
    };
    // Each has a machine of its own, so neither waits for the other.
    let sides = [Driver::Bridge, Driver::Portolan].map(side);
    let [theirs, ours] = sides.map(|side| side.join().expect("a case does not panic").expect("a machine can be had"));
    let table = table(&theirs, &ours);
    println!("{table}");
    if bless && !theirs.is_empty() && !ours.is_empty() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/docker-outcomes.md");
        fs::write(path, &table).unwrap();
    }
    let failed: Vec<_> =
        wanted().zip(&ours).filter_map(|((name, _), outcome)| Some((name, outcome.as_ref().err()?))).collect();
    assert!(failed.is_empty(), "with us Docker fails at: {failed:#?}");
}

/// Whether a lab and a Docker can be had here; says so if not.
fn has_docker(test: &str) -> bool {
    if Lab::or_skip(test).is_none() {
        return false;
    }
    let missing = machine::missing_of(&PROGRAMS);
    if let Some(missing) = &missing {
        assert!(env::var_os("CI").is_none(), "CI must have Docker: {missing}");
        eprintln!("SKIP: `{test}`: {missing}");
    }
    missing.is_none()
}

fn play(driver: Driver) -> Result<Vec<Outcome>> {
    let name = driver.name();
    let start = |lane| Scene::new(&format!("{name}-{lane}"), driver);
    in_lanes(LANES, &wanted().collect::<Vec<_>>(), start, |scene, (case, run)| {
        let (time, result) = timed(|| run(scene));
        // What cannot be cleared away is the fault of the case before.
        let outcome = result.and(scene.clear()).map_err(|error| format!("{error:#}"));
        eprintln!("{name}: {case}: {outcome:?} ({:.1} s)", time.as_secs_f64());
        outcome
    })
}

/// Both outcomes of every case, as Markdown.
fn table(theirs: &[Outcome], ours: &[Outcome]) -> String {
    let mut text = String::from(
        "# What Docker does with either driver\n\nDocker 20.10 of Debian 12, run by `crates/portolan/tests/docker`, with its \
         driver `bridge` and with the plugin `portolan`. `PORTOLAN_BLESS=1 cargo test -p portolan --test docker` writes this \
         page.\n",
    );
    let say = |outcome: Option<&Outcome>| match outcome {
        None => "not run".to_owned(),
        Some(Ok(())) => "ok".to_owned(),
        Some(Err(reason)) => format!("fails: {}", stable(reason)),
    };
    let mut place = 0;
    let wanted: Vec<&str> = wanted().map(|(name, _)| name).collect();
    for (subject, cases) in SUBJECTS {
        writeln!(text, "\n## {subject}\n\n| | Docker's bridge | Portolan |\n|---|---|---|").unwrap();
        for (name, _) in cases.iter().filter(|(name, _)| wanted.contains(name)) {
            writeln!(text, "| {name} | {} | {} |", say(theirs.get(place)), say(ours.get(place))).unwrap();
            place += 1;
        }
    }
    text
}

/// The start of a reason without what differs from run to run, in one line.
fn stable(reason: &str) -> String {
    const LONGEST: usize = 120;
    let is_id = |word: &str| word.len() >= 8 && word.chars().all(|c| c.is_ascii_hexdigit());
    let bare = |word: &str| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
    let words = reason.split_whitespace().map(|word| if is_id(&bare(word)) { "…" } else { word });
    let text = words.collect::<Vec<_>>().join(" ").replace('|', "\\|");
    if text.chars().count() <= LONGEST { text } else { text.chars().take(LONGEST).chain(['…']).collect() }
}
