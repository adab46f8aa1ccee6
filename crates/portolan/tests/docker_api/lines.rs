//! The lines of the script, and what came of each.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The clients that run the script: what is in the table's headings, and the program.
pub(crate) const CLIENTS: [(&str, &str); 2] =
    [("docker 20.10 of Debian 12", "/usr/bin/docker"), ("docker 28.2", "/usr/local/bin/docker")];

/// The name of what the Python SDK does, in headings.
pub(crate) const SDK: &str = "the Python SDK 7.1";

const SCRIPT: &str = include_str!("script.txt");

/// Where `./test` puts the SDK.
pub(crate) fn python() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/docker-sdk/bin/python")
}

/// What was done and what came of it, on one line.
pub(crate) type Outcome = (String, String);

/// What the script is run against.
pub(crate) trait Side {
    /// A shell with the client `program` at hand as `$CLIENT`, and `$DOCKER_HOST` where it finds the engine.
    fn shell(&self, program: &str) -> Command;
    /// A program that is told the engine's URL as its last argument.
    fn told_url(&self, program: &Path, script: &Path) -> Command;
    /// Makes a container that runs.
    fn start(&self, name: &str, network: &str) -> Result<()>;
    /// Removes one.
    fn remove(&self, name: &str) -> Result<()>;
}

/// Runs the script with a client.
pub(crate) fn run(side: &impl Side, client: &str) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for line in SCRIPT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some((name, network)) = line.strip_prefix("+ ").and_then(|rest| rest.split_once(' ')) {
            side.start(name, network).with_context(|| format!("start {name}"))?;
            continue;
        }
        if let Some(name) = line.strip_prefix("- ") {
            side.remove(name).with_context(|| format!("remove {name}"))?;
            continue;
        }
        let docker = |line: &str| {
            // What stands in parentheses is a command of its own.
            let text = format!("docker() {{ \"$CLIENT\" \"$@\"; }}; docker {line}");
            side.shell(client).args(["-c", &text]).output().context("start a shell")
        };
        // What only one of the two has made.
        if let Some(name) = line.strip_prefix("~ ") {
            docker(&format!("network rm {name}"))?;
            continue;
        }
        outcomes.push((line.to_owned(), told(&docker(line)?)));
    }
    Ok(outcomes)
}

/// Runs what the SDK does.
pub(crate) fn run_sdk(side: &impl Side) -> Result<Vec<Outcome>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/docker_api/sdk.py");
    let created =
        side.shell(CLIENTS[0].1).args(["-c", "$CLIENT network create --subnet 10.70.0.0/24 first"]).output()?;
    anyhow::ensure!(created.status.success(), "{}", told(&created));
    side.start("ann", "first")?;
    let output = side.told_url(&python(), &script).output().context("start Python")?;
    side.remove("ann")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let outcomes: Vec<Outcome> = text
        .lines()
        .map(|line| {
            let (title, outcome): (String, Value) = serde_json::from_str(line).with_context(|| line.to_owned())?;
            Ok((title, stable(outcome.as_str().unwrap_or_default())))
        })
        .collect::<Result<_>>()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(outcomes)
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    let words = [out, error].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n");
    let words = stable(&words);
    match output.status.code() {
        Some(0) => words,
        Some(code) => format!("{words} [exit {code}]"),
        None => format!("{words} [{}]", output.status),
    }
}

/// Without what differs from run to run, on one line.
fn stable(text: &str) -> String {
    let mut stable = String::new();
    let mut word = String::new();
    for letter in text.chars().chain(['\0']) {
        if letter.is_ascii_alphanumeric() {
            word.push(letter);
            continue;
        }
        let is_id = word.len() >= 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_time = word.len() == 10 && word.bytes().all(|byte| byte.is_ascii_digit());
        stable.push_str(if is_id {
            "ID"
        } else if is_time {
            "TIME"
        } else {
            &word
        });
        word.clear();
        match letter {
            '\0' => {}
            '\n' => stable.push_str(" / "),
            other => stable.push(other),
        }
    }
    stable
}
