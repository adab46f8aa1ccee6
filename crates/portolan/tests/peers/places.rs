//! Where the suites run: a machine of their own for each, out of namespaces, and what is called as the peers there.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::{Lab, eventually};

use crate::common::{LONG, World};
use crate::machine::any::Machine;
use crate::machine::{self, Backend};
use crate::page::{Outcome, Verdict};
use crate::{Suite, fetched, theirs};

/// What the suites write to besides `/run` and `/etc`.
const PLACES: [&str; 4] = ["/tmp", "/var/log", "/var/lib/misc", "/var/tmp"];

/// How long a file of a suite may take, in seconds.
const LONGEST: &str = "1800";

/// The programs of the peers that belong to their suites, and what the suites are about.
fn tools() -> PathBuf {
    fetched().join("tools/bin")
}

/// Programs for what a kernel lacks, or a Debian, before all others.
fn shims() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers/shims")
}

/// A machine, and a directory in it with this program as `netavark` and `aardvark-dns`, or the originals.
fn plain(suite: &Suite) -> Result<(Lab, Machine, PathBuf)> {
    let lab = Lab::new(&format!("peers-{}", suite.name))?;
    let host = lab.host("h")?;
    let mut bin = PathBuf::new();
    let machine = Machine::start(&lab, &host, suite.name, &PLACES, |dir| {
        bin = dir.join("bin");
        fs::create_dir(&bin)?;
        for name in ["netavark", "aardvark-dns"] {
            let ours = PathBuf::from(env!("CARGO_BIN_EXE_portolan"));
            // The file itself: one that is built meanwhile has its place.
            fs::hard_link(if theirs() { tools().join(name) } else { ours }, bin.join(name))?;
        }
        Ok(())
    })?;
    // The suites take a machine without this for one that belongs to a user; nobody listens here.
    machine.run("sh", &["-c", "mkdir -p /run/dbus /run/sysctl.d && : >/run/dbus/system_bus_socket"])?;
    // Where the other ends are of what stands for dummy interfaces.
    machine.run("ip", &["netns", "add", "far"])?;
    Ok((lab, machine, bin))
}

/// `PATH` in a machine.
fn path() -> String {
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", shims().display())
}

/// Runs files of a suite in Bash's test runner.
fn bats(machine: &Machine, dir: &Path, files: &[String], variables: &[(&str, &Path)]) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for file in files.iter().filter(|file| is_wanted(file)) {
        let place = dir.to_str().context("a UTF-8 path")?;
        let mut command = machine.command("env", &["-C", place, "timeout", LONGEST, "bats", "--tap", file]);
        command.env("PATH", path()).envs(variables.iter().copied());
        let output = command.output().context("start bats(1)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        eprintln!("{file}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
        let found = tap(file, &text);
        let planned = text.lines().find_map(|line| line.strip_prefix("1..")?.parse().ok());
        ensure!(planned == Some(found.len()), "{file}: {} of {planned:?} tests came to an end", found.len());
        outcomes.extend(found);
    }
    Ok(outcomes)
}

/// Whether `PORTOLAN_FILES`, words of which the name has one, leaves a file in.
fn is_wanted(file: &str) -> bool {
    let words = env::var("PORTOLAN_FILES").unwrap_or_default();
    words.is_empty() || words.split_whitespace().any(|word| file.contains(word))
}

/// The outcomes in what bats(1) prints (the Test Anything Protocol).
fn tap(file: &str, text: &str) -> Vec<Outcome> {
    let file = file.strip_prefix("test/system/").or(file.strip_prefix("test/")).unwrap_or(file);
    let outcome = |line: &str| {
        let (passed, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, line.strip_prefix("ok ")?),
        };
        let (_, test) = rest.split_once(' ')?;
        let (test, verdict) = match test.split_once(" # skip") {
            Some((test, why)) => (test, Verdict::Skipped(why.trim().to_owned())),
            None => (test, if passed { Verdict::Passed } else { Verdict::Failed }),
        };
        Some(Outcome { file: file.to_owned(), test: test.to_owned(), verdict })
    };
    text.lines().filter_map(outcome).collect()
}

/// The files of a suite, in order.
fn files(dir: &Path, below: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let place = dir.join(below);
    for entry in fs::read_dir(&place).with_context(|| format!("`{}`: run ./test peers", place.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".bats") {
            files.push(format!("{below}/{name}"));
        }
    }
    files.sort();
    Ok(files)
}

/// netavark's, those of its DHCP service included.
pub(crate) fn netavark(suite: &Suite) -> Result<Vec<Outcome>> {
    let (_lab, machine, bin) = plain(suite)?;
    let (dir, tools) = (suite.dir(), tools());
    let all = [files(&dir, "test")?, files(&dir, "test-dhcp")?].concat();
    bats(
        &machine,
        &dir,
        &all,
        &[
            ("NETAVARK", &bin.join("netavark")),
            ("NETAVARK_CONNECTION_TESTER", &tools.join("netavark-connection-tester")),
            ("NETAVARK_DHCP_PROXY_CLIENT", &tools.join("netavark-dhcp-proxy-client")),
            ("TEST_PLUGINS", &tools),
        ],
    )
}

/// aardvark-dns's, which goes by way of netavark.
pub(crate) fn aardvark(suite: &Suite) -> Result<Vec<Outcome>> {
    let (_lab, machine, bin) = plain(suite)?;
    let dir = suite.dir();
    let programs = [("NETAVARK", bin.join("netavark")), ("AARDVARK", bin.join("aardvark-dns"))];
    let variables: Vec<(&str, &Path)> = programs.iter().map(|(name, path)| (*name, &**path)).collect();
    bats(&machine, &dir, &files(&dir, "test")?, &variables)
}

/// Podman's about networks, with an image of busybox in the place of theirs.
pub(crate) fn podman(suite: &Suite) -> Result<Vec<Outcome>> {
    let lab = Lab::new("peers-podman")?;
    let host = lab.host("h")?;
    let backend = if theirs() { Backend::Netavark } else { Backend::Portolan };
    let machine = machine::start(&lab, &host, suite.name, backend)?;
    machine.run("podman", &["tag", machine::IMAGE, "quay.io/libpod/testimage:20220615"])?;
    machine.run("podman", &["untag", machine::IMAGE, machine::IMAGE])?;
    machine.run(
        "sed",
        &["-i", "s#localhost/lab:latest#quay.io/libpod/testimage:20220615#", "/etc/containers/containers.conf"],
    )?;
    // Some tests have a configuration of their own, and find backends where Debian has them.
    for name in ["netavark", "aardvark-dns"] {
        let ours = env!("CARGO_BIN_EXE_portolan");
        if !theirs() {
            machine.run("mount", &["--bind", ours, &format!("/usr/lib/podman/{name}")])?;
        }
    }
    let dir = suite.dir();
    let podman = PathBuf::from("/usr/bin/podman");
    bats(&machine, &dir, &["test/system/500-networking.bats".to_owned()], &[("PODMAN", &podman)])
}

/// Those of Docker's SDK about networks, against our API.
pub(crate) fn docker_sdk(suite: &Suite) -> Result<Vec<Outcome>> {
    let mut world = World::or_skip("peers-docker").context("no namespaces")?;
    world.daemon = true;
    world.portolan_ok(&["daemon", "start", "--api"]);
    let socket = world.root.join("run/docker.sock");
    ensure!(eventually(LONG, || socket.exists()), "nobody serves `{}`", socket.display());
    let mut outcomes = Vec::new();
    // Their `conftest.py` fetches an image for the containers that they make, which this API has none of.
    for file in ["api_network_test.py", "models_networks_test.py"] {
        let mut command = Command::new(fetched().join("docker-sdk/bin/python"));
        command.args(["-m", "pytest", "-v", "--noconftest", "-p", "no:cacheprovider", "--color=no", "--tb=short"]);
        command.arg(format!("tests/integration/{file}")).current_dir(suite.dir());
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        let output = world.h.adopt(command)?.output().context("start pytest")?;
        let text = String::from_utf8_lossy(&output.stdout);
        eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
        let mut found: Vec<Outcome> = text.lines().filter_map(|line| pytest(file, line)).collect();
        // What fails while it is cleared away has a second line.
        found.sort_by_key(|outcome| (outcome.test.clone(), outcome.verdict == Verdict::Passed));
        found.dedup_by(|one, before| one.test == before.test);
        ensure!(!found.is_empty(), "{file}: no test came to an end");
        outcomes.extend(found);
    }
    Ok(outcomes)
}

/// The outcome in a line of pytest's.
fn pytest(file: &str, line: &str) -> Option<Outcome> {
    let (test, rest) = line.strip_prefix("tests/integration/")?.split_once("::")?.1.split_once(' ')?;
    let verdict = match rest.split_whitespace().next()? {
        "PASSED" => Verdict::Passed,
        "SKIPPED" => Verdict::Skipped(String::new()),
        _ => Verdict::Failed,
    };
    Some(Outcome { file: file.to_owned(), test: test.replace("::", " "), verdict })
}
