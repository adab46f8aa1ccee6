//! `docs/faults.md`.

use std::collections::BTreeSet;
use std::path::Path;

use crate::fake::broken::{self, ERRNOS};
use crate::play::Seen;

/// What `docs/faults.md` says: which faults came to pass in which verbs.
pub(crate) fn page(seen: &Seen) -> String {
    const HEAD: &str = include_str!("head.md");
    const FOOT: &str = include_str!("foot.md");
    let verbs: BTreeSet<&str> = seen.0.keys().filter_map(|what| Some(what.split_once(": ")?.0)).collect();
    let mut hows = vec!["death".to_owned()];
    for errno in ERRNOS {
        let name = broken::name(errno).rsplit('(').next().unwrap_or_default().trim_end_matches(')').to_owned();
        hows.extend([name.clone(), format!("{name}, answer lost")]);
    }
    let mut text = format!("{HEAD}\n| verb | {} |\n|---|{}\n", hows.join(" | "), "---|".repeat(hows.len()));
    for verb in verbs {
        let cell = |how: &String| if seen.0.contains_key(&format!("{verb}: {how}")) { "nothing left" } else { "–" };
        let cells: Vec<&str> = hows.iter().map(cell).collect();
        text.push_str(&format!("| {verb} | {} |\n", cells.join(" | ")));
    }
    format!("{text}\n{FOOT}")
}

/// Compares the page with the one in the repository, or writes it.
pub(crate) fn keep(text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/faults.md");
    if std::env::var_os("PORTOLAN_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "`docs/faults.md` is not what came of it: write it with PORTOLAN_BLESS=1\n{text}");
}
