//! Attacks on the wire: each is really sent, fails here, and succeeds where the protection is off.
//!
//! `PORTOLAN_BLESS=1` writes what came of them, as a table, to `docs/security.md`; without it the page has to say the same.

#[path = "../common/mod.rs"]
mod common;

mod apart;
mod fair;
mod flushes;
mod forge;
mod ports;
mod reach;
mod row;
mod segment;
mod wire;

use std::fs;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use portolan_lab::Lab;
use row::{Row, page};

/// A group of attacks; none where one cannot be made here, which it says.
type Group = fn() -> Option<Vec<Row>>;

/// Each has hosts of its own.
const GROUPS: [Group; 6] = [wire::rows, apart::rows, reach::rows, ports::rows, flushes::rows, fair::rows];

#[test]
fn attacks_fail_that_succeed_where_the_protection_is_off() {
    if Lab::or_skip("security").is_none() {
        return;
    }
    let groups = GROUPS.map(thread::spawn).map(|group| group.join());
    let mut rows = Vec::new();
    let mut is_whole = true;
    for group in groups {
        match group {
            Ok(Some(found)) => rows.extend(found),
            Ok(None) => is_whole = false,
            Err(panic) => resume_unwind(panic),
        }
    }
    if !is_whole {
        return;
    }
    let page = page(rows);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security.md");
    if std::env::var_os("PORTOLAN_BLESS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differs: Vec<_> = page.lines().filter(|line| !written.lines().any(|other| other == *line)).collect();
    assert!(written == page, "PORTOLAN_BLESS=1 writes the page; these lines are not in it: {differs:#?}");
}
