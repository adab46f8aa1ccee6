//! The same clients, the same script: what dockerd makes of it and what we make of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::differences::{DIFFERENCES, Difference};
use crate::lines::{self, CLIENTS, Outcome, SDK, Side};
use crate::scene::{Driver, PROGRAMS, Scene};
use crate::served::Served;
use crate::{common::World, machine};

/// By what it was done, and what came of it.
type Chapter = (String, Vec<Outcome>);

impl Side for Served {
    fn shell(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.env("CLIENT", program).env("DOCKER_HOST", self.url()).env("DOCKER_CONFIG", self.world.lab.dir());
        command
    }

    fn told_url(&self, program: &Path, script: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg(script).arg(self.url());
        command
    }

    fn start(&self, name: &str, network: &str) -> Result<()> {
        self.run(name, &["--network", network]);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.world.portolan_ok(&["rm", "-f", name]);
        Ok(())
    }
}

impl Served {
    fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

impl Side for Scene {
    fn shell(&self, program: &str) -> Command {
        let mut command = self.machine.command("sh", &[]);
        command.env("CLIENT", program);
        command
    }

    fn told_url(&self, program: &Path, script: &Path) -> Command {
        let text = |path: &Path| path.to_str().expect("a UTF-8 path").to_owned();
        self.machine.command(&text(program), &[&text(script), "unix:///run/docker.sock"])
    }

    fn start(&self, name: &str, network: &str) -> Result<()> {
        self.run(name, &["--network", network]).map(drop)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.docker(&["rm", "-f", name]).map(drop)
    }
}

/// All chapters whose client is on this machine.
fn play(side: &impl Side) -> Result<Vec<Chapter>> {
    let mut chapters = Vec::new();
    for (title, client) in CLIENTS.iter().filter(|(_, client)| Path::new(client).exists()) {
        chapters.push(((*title).to_owned(), lines::run(side, client)?));
    }
    if lines::python().exists() {
        chapters.push((SDK.to_owned(), lines::run_sdk(side)?));
    }
    Ok(chapters)
}

/// Whether there is what the test cannot do without; what else there could be is said.
fn has_clients() -> bool {
    let (_, debians) = CLIENTS[0];
    let python = lines::python();
    let needed = [(debians, "docker.io"), (python.to_str().expect("a UTF-8 path"), "made by ./test")];
    if let Some(missing) = machine::missing_of(&needed) {
        assert!(std::env::var_os("CI").is_none(), "CI must have Docker's clients: {missing}");
        eprintln!("SKIP: `docker_api`: {missing}");
    }
    for (title, client) in CLIENTS.iter().filter(|(_, client)| !Path::new(client).exists()) {
        eprintln!("SKIP: `docker_api`: no {title} at `{client}`");
    }
    Path::new(debians).exists()
}

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn recorded() -> Result<Vec<Chapter>> {
    let text = fs::read_to_string(here("tests/docker_api/dockerd.json")).context("read what dockerd made of it")?;
    Ok(serde_json::from_str(&text)?)
}

fn record() -> Result<Vec<Chapter>> {
    if let Some(missing) = machine::missing_of(&PROGRAMS) {
        anyhow::bail!("a dockerd is to be asked: {missing}");
    }
    let chapters = play(&Scene::new("dockerd", Driver::Bridge)?)?;
    let json = serde_json::to_string_pretty(&chapters)?;
    fs::write(here("tests/docker_api/dockerd.json"), json + "\n")?;
    Ok(chapters)
}

#[test]
fn clients_are_told_what_dockerd_tells_them() {
    let Some(served) = Served::or_skip("docker-api") else { return };
    if !has_clients() {
        return;
    }
    let ours = play(&served).unwrap();
    served.world.verify();
    let bless = std::env::var_os("PORTOLAN_BLESS").is_some();
    let theirs = if bless { record() } else { recorded() }.unwrap();
    let (table, unexplained) = table(&theirs, &ours).unwrap();
    let page = here("../../docs/docker-api-outcomes.md");
    if bless {
        fs::write(&page, &table).unwrap();
    }
    assert!(unexplained.is_empty(), "without a reason: {unexplained:#?}");
    // A client that is not on this machine is in the page nevertheless.
    if ours.len() == CLIENTS.len() + 1 {
        let written = fs::read_to_string(&page).unwrap();
        let other: Vec<_> = written.lines().zip(table.lines()).filter(|(written, now)| written != now).collect();
        assert!(other.is_empty() && written.len() == table.len(), "PORTOLAN_BLESS=1 writes the page: {other:#?}");
    }
}

/// Both outcomes of every line, as Markdown; and those that differ for no reason.
fn table(theirs: &[Chapter], ours: &[Chapter]) -> Result<(String, Vec<String>)> {
    let mut text = String::from(
        "# What Docker's clients are told, by dockerd and by Portolan\n\ndockerd 20.10 of Debian 12 and `portolan daemon \
         --api`, asked the same by `crates/portolan/tests/docker_api`. `ID` stands for an id, ` / ` for the end of a line. \
         `PORTOLAN_BLESS=1 cargo test -p portolan --test docker_api` writes this page.\n",
    );
    let mut unexplained = Vec::new();
    let mut used = BTreeSet::new();
    let mut same = 0;
    for (title, ours) in ours {
        let theirs = theirs.iter().find(|(of, _)| of == title);
        let (_, theirs) = theirs.with_context(|| format!("dockerd was not asked by {title}"))?;
        ensure!(theirs.len() == ours.len(), "{title}: dockerd was asked something else");
        writeln!(text, "\n## By {title}\n\n| | dockerd | Portolan | why they differ |\n|---|---|---|---|")?;
        for ((line, theirs), (asked, ours)) in theirs.iter().zip(ours) {
            ensure!(line == asked, "{title}: dockerd was asked `{line}`, we were asked `{asked}`");
            let reason = if theirs == ours {
                same += 1;
                ""
            } else if let Some((at, difference)) = explained(line, theirs, ours) {
                used.insert(at);
                difference.why
            } else {
                unexplained.push(format!("{title}: {line}\n  dockerd:  {theirs}\n  Portolan: {ours}"));
                "?"
            };
            let ours = if theirs == ours { "the same".to_owned() } else { cell(ours) };
            writeln!(text, "| {} | {} | {ours} | {reason} |", cell(line), cell(theirs))?;
        }
    }
    let all: usize = ours.iter().map(|(_, outcomes)| outcomes.len()).sum();
    writeln!(text, "\n{same} of {all} answers are the same to the letter.")?;
    let is_whole = ours.len() == CLIENTS.len() + 1;
    let unused = DIFFERENCES.iter().enumerate().filter(|(at, _)| is_whole && !used.contains(at));
    unexplained.extend(unused.map(|(_, difference)| format!("nothing differs like this: {difference:?}")));
    Ok((text, unexplained))
}

fn explained(line: &str, theirs: &str, ours: &str) -> Option<(usize, &'static Difference)> {
    let fits = |difference: &&Difference| {
        line.contains(difference.line) && theirs.contains(difference.theirs) && ours.contains(difference.ours)
    };
    DIFFERENCES.iter().enumerate().find(|(_, difference)| fits(difference))
}

fn cell(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{}`", text.replace('`', "'").replace('|', "\\|")) }
}

/// The newest client needs nothing but this to talk to the engine as its only one.
#[test]
fn a_context_of_the_client() {
    let Some(served) = Served::or_skip("docker-api-context") else { return };
    let World { lab, .. } = &served.world;
    let (_, debians) = CLIENTS[0];
    for (_, client) in CLIENTS.iter().filter(|(_, client)| Path::new(client).exists()) {
        let run = |args: &[&str]| {
            let config = lab.dir().join(Path::new(client).parent().unwrap().strip_prefix("/").unwrap());
            let output =
                Command::new(client).args(args).env("DOCKER_CONFIG", config).env_remove("DOCKER_HOST").output();
            let output = output.unwrap();
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let host = format!("host={}", served.url());
        run(&["context", "create", "portolan", "--docker", &host]);
        run(&["context", "use", "portolan"]);
        run(&["network", "create", "web"]);
        let names = run(&["network", "ls", "--format", "{{.Name}}"]);
        assert_eq!(names.split_whitespace().collect::<Vec<_>>(), ["bridge", "host", "none", "web"]);
        let versions =
            run(&["version", "--format", "{{.Client.APIVersion}} {{.Server.APIVersion}} {{.Server.Version}}"]);
        let newest = if *client == debians { "1.41" } else { "1.50" };
        assert_eq!(versions.trim(), format!("{newest} 1.51 {}", env!("CARGO_PKG_VERSION")));
        let info: Value = serde_json::from_str(&run(&["info", "--format", "{{json .}}"])).unwrap();
        assert_eq!((&info["Name"].is_string(), &info["ServerErrors"]), (&true, &Value::Null), "{info}");
        assert!(run(&["info"]).contains("Server Version"), "what people read is written as well");
        assert!(run(&["ps"]).starts_with("CONTAINER ID"));
        run(&["network", "rm", "web"]);
    }
}
