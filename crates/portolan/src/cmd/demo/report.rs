//! What the demo has to say, as it happens for people and at the end for programs.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::output;

/// Steps with their evidence.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    planned: usize,
    steps: Vec<Step>,
    /// Nobody reads any more.
    unread: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Step {
    number: usize,
    title: String,
    about: String,
    ok: bool,
    evidence: Vec<Evidence>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase", tag = "Kind", rename_all_fields = "PascalCase")]
enum Evidence {
    /// A command line and what it printed.
    Command { line: String, exit: i32, output: String },
    /// Something to look at.
    Text { text: String },
    /// Something that had to be so.
    Check { ok: bool, what: String, seen: String },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Whole<'a> {
    ok: bool,
    interrupted: bool,
    seconds: f64,
    steps: &'a [Step],
}

impl Report {
    pub(super) fn new(json: bool, planned: usize) -> Self {
        Self { json, planned, steps: Vec::new(), unread: false }
    }

    /// Whether whoever read us has left.
    pub(super) fn is_unread(&self) -> bool {
        self.unread
    }

    /// What comes, before the first step.
    pub(super) fn introduce(&mut self, text: &str) {
        self.say(text);
    }

    /// Starts step `number`, counted from 1.
    pub(super) fn step(&mut self, number: usize, title: &str, about: &str) {
        self.say(&format!("\n{number}/{} {title}", self.planned));
        self.say(&indent(about));
        self.steps.push(Step {
            number,
            title: title.to_owned(),
            about: about.to_owned(),
            ok: true,
            evidence: Vec::new(),
        });
    }

    /// A command that ran. People see `shown` of its output, programs all of it.
    pub(super) fn command(&mut self, line: &str, exit: i32, output: &str, shown: &str) {
        self.say(&indent(&format!("$ {line}")));
        self.say(&indent(shown));
        self.keep(Evidence::Command { line: line.to_owned(), exit, output: output.to_owned() });
    }

    /// Something to look at.
    pub(super) fn text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.say(&indent(text));
        self.keep(Evidence::Text { text: text.to_owned() });
    }

    /// Something to look at, with room around it.
    pub(super) fn drawing(&mut self, text: &str) {
        self.say(&format!("\n{}", indent(text)));
        self.keep(Evidence::Text { text: text.to_owned() });
    }

    /// Something that has to be so, and what was seen of it.
    pub(super) fn check(&mut self, ok: bool, what: &str, seen: &str) {
        let mark = if ok { "✔ ok" } else { "✘ FAILED" };
        let text = if seen.is_empty() { what.to_owned() } else { format!("{what}: {seen}") };
        self.say(&indent(&format!("{mark}  {text}")));
        if let Some(step) = self.steps.last_mut() {
            step.ok &= ok;
        }
        self.keep(Evidence::Check { ok, what: what.to_owned(), seen: seen.to_owned() });
    }

    /// The end; the exit status.
    pub(super) fn finish(mut self, took: Duration, interrupted: bool) -> Result<i32> {
        let failed: Vec<String> =
            self.steps.iter().filter(|step| !step.ok).map(|step| step.number.to_string()).collect();
        let checks = self
            .steps
            .iter()
            .flat_map(|step| &step.evidence)
            .filter(|one| matches!(one, Evidence::Check { .. }))
            .count();
        let seconds = (took.as_secs_f64() * 100.0).round() / 100.0;
        let ok = failed.is_empty() && !interrupted;
        let verdict = match (interrupted, failed.is_empty()) {
            (true, _) => "✘ stopped before the end; what it made was taken down".to_owned(),
            (false, true) => format!("✔ all {} steps ok, {checks} checks, {seconds} s", self.steps.len()),
            (false, false) => format!("✘ FAILED: step {} of {}, {seconds} s", failed.join(", "), self.planned),
        };
        self.say(&format!("\n{verdict}"));
        if self.json {
            output::json(&Whole { ok, interrupted, seconds, steps: &self.steps })?;
        }
        Ok(match (interrupted, ok) {
            (true, _) => 130,
            (false, ok) => i32::from(!ok),
        })
    }

    fn keep(&mut self, evidence: Evidence) {
        if let Some(step) = self.steps.last_mut() {
            step.evidence.push(evidence);
        }
    }

    fn say(&mut self, text: &str) {
        if self.json || self.unread || text.is_empty() {
            return;
        }
        let mut out = io::stdout().lock();
        // Not `output::print`, which leaves at once: there is a stage to clear.
        self.unread = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()).is_err();
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("    {line}\n") }).collect()
}
