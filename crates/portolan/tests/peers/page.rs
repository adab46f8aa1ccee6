//! `docs/peers.md`: what came of every test, and why where it did not pass.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// What came of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) file: String,
    pub(crate) test: String,
    pub(crate) verdict: Verdict,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    /// By the suite's own choice, with its words.
    Skipped(String),
    Failed,
}

/// A file of a suite on the page: its title, and a line for each test.
#[derive(Debug)]
pub(crate) struct Section {
    title: String,
    passed: usize,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    test: String,
    cells: String,
    is_unexplained: bool,
}

/// Why tests do not pass: `SUITE-FILE|BEGINNING OF THE TEST'S NAME|REASON`, the first that fits.
const REASONS: &str = include_str!("reasons.txt");

impl Section {
    /// That of one file of a suite.
    pub(crate) fn of(suite: &str, outcomes: &[Outcome]) -> Self {
        let title = format!("{suite}: {}", outcomes.first().map_or("", |outcome| &outcome.file));
        let passed = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Passed).count();
        Self { title, passed, lines: outcomes.iter().map(line).collect() }
    }

    /// The tests that fail without a reason.
    pub(crate) fn unexplained(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().filter(|line| line.is_unexplained).map(|line| &*line.test)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("## {}\n\n{} of {} pass.\n\n", self.title, self.passed, self.lines.len());
        text.push_str("| | |\n|---|---|\n");
        for Line { test, cells, .. } in &self.lines {
            writeln!(text, "| {test} | {cells} |").unwrap();
        }
        text
    }
}

fn line(outcome: &Outcome) -> Line {
    let plain = |text: &str| text.replace('|', "\\|");
    let reason = || reasons().find(|(file, test, _)| *file == outcome.file && outcome.test.starts_with(test));
    let (cells, is_unexplained) = match &outcome.verdict {
        Verdict::Passed => ("ok".to_owned(), false),
        Verdict::Skipped(why) => (format!("skipped by itself: {}", plain(why)), false),
        Verdict::Failed => match reason() {
            Some((_, _, why)) => (why.to_owned(), false),
            None => ("fails".to_owned(), true),
        },
    };
    Line { test: plain(&outcome.test), cells, is_unexplained }
}

fn reasons() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    REASONS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let mut fields = line.splitn(3, '|');
        let mut next = || fields.next().unwrap_or_else(|| panic!("reasons.txt: `{line}`"));
        (next(), next(), next())
    })
}

const HEAD: &str = "# The peers' own test suites\n\n\
    What the programs that Portolan stands in for are tested with by those who make them, unchanged, run with Portolan in \
    their place by `./test peers` (`crates/portolan/tests/peers`); `PORTOLAN_BLESS=1 ./test peers` writes this page. The kernel \
    that it was last run on has no dummy interfaces, ipvlan, VLANs, VRFs and SCTP sockets; where a suite wants a dummy interface to \
    stand on, one end of a veth pair is in its place.\n";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/peers.md")
}

/// The sections of the page as it is, each with its title.
fn sections() -> Vec<String> {
    let text = fs::read_to_string(path()).unwrap_or_default();
    text.split("\n## ").skip(1).map(|section| format!("## {}\n", section.trim_end())).collect()
}

/// Puts a section in the place that it has, or last.
pub(crate) fn write(section: &Section) {
    let (mut all, text) = (sections(), section.text());
    let title = text.lines().next().unwrap_or_default();
    match all.iter_mut().find(|there| there.lines().next() == Some(title)) {
        Some(there) => *there = text,
        None => all.push(text),
    }
    all.sort();
    fs::write(path(), format!("{HEAD}\n{}", all.join("\n"))).unwrap();
}

/// The lines in which the page says something else.
pub(crate) fn differences(section: &Section) -> Vec<String> {
    let text = section.text();
    let title = text.lines().next().unwrap_or_default();
    let there = sections().into_iter().find(|there| there.lines().next() == Some(title)).unwrap_or_default();
    let only = |these: &str, those: &str, mark: char| -> Vec<String> {
        these
            .lines()
            .filter(|line| !those.lines().any(|other| other == *line))
            .map(|line| format!("{mark} {line}"))
            .collect()
    };
    [only(&there, &text, '-'), only(&text, &there, '+')].concat()
}
