//! What comes of the cases on a machine, as text.

use std::env;

use anyhow::Result;

use crate::cases::{Case, SUBJECTS};
use crate::machine::Backend;
use crate::machine::any::lanes::in_lanes;
use crate::scene::{Lack, Scene, timed};

/// What came of a case: nothing wrong, or why not.
pub(crate) type Outcome = std::result::Result<(), Why>;

/// One sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// It cannot be tried on this kernel.
    Lacks(String),
    /// It was tried.
    Fails(String),
}

/// The cases to run, in order: all, or those whose name has `PORTOLAN_PODMAN`.
pub(crate) fn wanted() -> impl Iterator<Item = Case> {
    let word = env::var("PORTOLAN_PODMAN").unwrap_or_default();
    let all = SUBJECTS.into_iter().flat_map(|(_, cases)| cases.iter().copied());
    all.filter(move |(name, _)| name.contains(&word))
}

/// Runs cases on as many machines as there are to be lanes, with one backend.
pub(crate) fn play(
    name: &str,
    backend: Backend,
    lanes: usize,
    cases: impl Iterator<Item = Case>,
) -> Result<Vec<Outcome>> {
    let start = |lane| Scene::new(&format!("{name}-{lane}"), backend);
    in_lanes(lanes, &cases.collect::<Vec<_>>(), start, |scene, (case, run)| {
        let (time, result) = timed(|| run(scene));
        let cleared = scene.clear();
        // What cannot be cleared away is the fault of the case before.
        let outcome = result.and(cleared).map_err(|error| match error.downcast_ref::<Lack>() {
            Some(lack) => Why::Lacks(lack.to_string()),
            None => Why::Fails(reason(&format!("{error:#}"))),
        });
        eprintln!("{name}: {case}: {outcome:?} ({:.1} s)", time.as_secs_f64());
        outcome
    })
}

/// A reason without what differs from run to run: ids, times, several lines.
fn reason(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(stable).collect();
    words.join(" ").replace('|', "\\|")
}

fn stable(word: &str) -> String {
    let is_id = |part: &str| part.len() >= 8 && part.chars().all(|c| c.is_ascii_hexdigit());
    let mut out = String::new();
    for part in word.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let bare = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        if is_id(bare) {
            out.push('…');
            out.push_str(&part[bare.len()..]);
        } else {
            out.push_str(part);
        }
    }
    out
}

/// In one phrase.
pub(crate) fn say(outcome: Option<&Outcome>) -> String {
    match outcome {
        None => "not run".to_owned(),
        Some(Ok(())) => "ok".to_owned(),
        Some(Err(Why::Lacks(lack))) => format!("not tried: {lack}"),
        Some(Err(Why::Fails(reason))) => format!("fails: {reason}"),
    }
}
