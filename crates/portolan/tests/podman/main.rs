//! A real Podman with Debian's netavark, and the same Podman with this binary in its place.
//!
//! Ours must do everything in [`cases`], so it is never worse. `PORTOLAN_BLESS=1` has Debian's do the same, and writes the
//! outcomes of both, as a table, to `docs/podman-outcomes.md`. `PORTOLAN_PODMAN=WORD` runs only the cases whose name has it,
//! `PORTOLAN_PODMAN_BACKEND=netavark` with Debian's alone.

mod cases;
mod machine;
mod outcome;
mod scene;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use cases::SUBJECTS;
use machine::Backend;
use outcome::{Outcome, Why, play, say, wanted};
use portolan_lab::Lab;

/// How many machines share the cases.
const LANES: usize = 2;

#[test]
fn podman_does_with_us_all_that_it_does_with_netavark() {
    if Lab::or_skip("podman").is_none() {
        return;
    }
    if let Some(missing) = machine::missing(Backend::Netavark) {
        assert!(env::var_os("CI").is_none(), "CI must have Podman: {missing}");
        eprintln!("SKIP: `podman`: {missing}");
        return;
    }
    let one = env::var("PORTOLAN_PODMAN_BACKEND").unwrap_or_default();
    let bless = env::var_os("PORTOLAN_BLESS").is_some();
    let side = |name: &'static str, backend| {
        let is_wanted = if one.is_empty() { bless || backend == Backend::Portolan } else { one == name };
        std::thread::spawn(move || if is_wanted { play(name, backend, LANES, wanted()) } else { Ok(Vec::new()) })
    };
    // Each has a machine of its own, so neither waits for the other.
    let sides = [side("netavark", Backend::Netavark), side("portolan", Backend::Portolan)];
    let [theirs, ours] = sides.map(|side| side.join().expect("a case does not panic").expect("a machine can be had"));
    let table = table(&theirs, &ours);
    println!("{table}");
    if bless && !theirs.is_empty() && !ours.is_empty() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/podman-outcomes.md");
        fs::write(path, &table).unwrap();
    }
    let mut failed = Vec::new();
    for ((name, _), outcome) in wanted().zip(&ours) {
        match outcome {
            Ok(()) => {}
            Err(Why::Lacks(lack)) => eprintln!("SKIP: `podman`: {name}: {lack}"),
            Err(Why::Fails(reason)) => failed.push((name, reason)),
        }
    }
    assert!(failed.is_empty(), "with us Podman fails at: {failed:#?}");
}

/// Both outcomes of every case, as Markdown.
fn table(theirs: &[Outcome], ours: &[Outcome]) -> String {
    let mut text = String::from(
        "# What Podman does with either backend\n\nPodman 4.3.1 of Debian 12, run by `crates/portolan/tests/podman`, with \
         Debian's netavark 1.4.0 and aardvark-dns 1.4.0 and with Portolan in their place. \
         `PORTOLAN_BLESS=1 cargo test -p portolan --test podman` writes this page.\n",
    );
    let mut place = 0;
    let wanted: Vec<&str> = wanted().map(|(name, _)| name).collect();
    for (subject, cases) in SUBJECTS {
        writeln!(text, "\n## {subject}\n\n| | netavark | Portolan |\n|---|---|---|").unwrap();
        for (name, _) in cases.iter().filter(|(name, _)| wanted.contains(name)) {
            writeln!(text, "| {name} | {} | {} |", say(theirs.get(place)), say(ours.get(place))).unwrap();
            place += 1;
        }
    }
    text
}
