//! What `--help` says, of every command: reviewed text in `tests/snapshots/help/`.
//!
//! `PORTOLAN_BLESS=1 cargo test -p portolan --test help` rewrites it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn help(path: &[String]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_portolan"))
        .args(path)
        .arg("--help")
        .env_remove("COLUMNS")
        .env_remove("PORTOLAN_ROOT")
        .output()
        .expect("portolan runs");
    assert!(output.status.success(), "{path:?} --help: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "help is data: it goes to standard output");
    // Clap leaves blanks at the ends of lines, which editors take away.
    let text = String::from_utf8(output.stdout).expect("help is UTF-8");
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The names under `Commands:`.
fn subcommands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A name is indented by two; a description that goes on is indented further.
    let names = list.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn visit(path: &[String], found: &mut Vec<(String, String)>) {
    let text = help(path);
    for name in subcommands(&text) {
        visit(&[path, &[name]].concat(), found);
    }
    let name = if path.is_empty() { "portolan".to_owned() } else { format!("portolan-{}", path.join("-")) };
    found.push((name, text));
}

#[test]
fn help_of_every_command_is_as_reviewed() {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/help");
    let mut found = Vec::new();
    visit(&[], &mut found);
    visit(&["man".to_owned()], &mut found);
    assert!(found.len() > 25, "only {} commands", found.len());

    let bless = std::env::var_os("PORTOLAN_BLESS").is_some();
    if bless {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("make the directory of snapshots");
    }
    let mut differing = Vec::new();
    for (name, text) in &found {
        let path = dir.join(format!("{name}.txt"));
        if bless {
            fs::write(&path, text).expect("write a snapshot");
        } else if fs::read_to_string(&path).ok().as_deref() != Some(text) {
            differing.push(name.as_str());
        }
    }
    assert!(differing.is_empty(), "help has changed: {differing:?}; review it with PORTOLAN_BLESS=1 and git diff");
    let known: BTreeSet<String> = found.iter().map(|(name, _)| format!("{name}.txt")).collect();
    for entry in fs::read_dir(&dir).expect("snapshots are there") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        assert!(known.contains(&name), "snapshot {name} belongs to no command");
    }
}

#[test]
fn every_command_teaches() {
    let mut found = Vec::new();
    visit(&[], &mut found);
    for (name, text) in found {
        let first = text.lines().next().unwrap_or_default();
        assert!(
            first.len() > 10 && !first.ends_with('.'),
            "{name}: one sentence without a full stop comes first: {first:?}"
        );
    }
}
