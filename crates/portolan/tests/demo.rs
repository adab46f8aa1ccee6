//! `portolan demo`, as a person runs it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use portolan_kernel::process::PidFd;
use portolan_lab::{Lab, eventually};
use serde_json::Value;

const SIGINT: i32 = 2;
/// Long enough for anything that will come at all.
const LONG: Duration = Duration::from_secs(30);

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    command.arg("demo").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end; its pid and what it printed.
fn played(arguments: &[&str]) -> (u32, Output) {
    let child = demo().args(arguments).spawn().unwrap();
    (child.id(), child.wait_with_output().unwrap())
}

/// Starts it; both containers run by now, and most is still to come.
fn half_way() -> (Child, BufReader<ChildStdout>) {
    let mut child = demo().spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("4/9") {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "it ended early");
    }
    (child, reader)
}

/// Neither directories nor processes of the demo with this pid are there.
fn assert_nothing_left(pid: u32) {
    let ours = format!("/run/portolan-lab/{pid}-");
    let directories = fs::read_dir("/run/portolan-lab").into_iter().flatten().flatten();
    let left: Vec<_> =
        directories.map(|entry| entry.path()).filter(|path| path.to_string_lossy().starts_with(&ours)).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&ours), "{mounts}");
    let root = format!("PORTOLAN_ROOT={ours}");
    let processes = || {
        let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("environ"));
        all.filter(|environ| contains(environ, root.as_bytes())).collect::<Vec<_>>()
    };
    assert!(eventually(LONG, || processes().is_empty()), "{:?}", processes());
}

fn contains(path: &Path, what: &[u8]) -> bool {
    fs::read(path).is_ok_and(|content| content.windows(what.len()).any(|part| part == what))
}

#[test]
fn it_shows_every_step_and_leaves_nothing() {
    let Some(_) = Lab::or_skip("demo") else { return };
    let (pid, output) = played(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*errors), (Some(0), ""), "{text}");
    for part in [
        "1/9 ",
        "neighbour pings host fd00:1::1: reply in ",
        "$ portolan network create web",
        "$ portolan run -d --name site --network web -p 1880:80 -- portolan demo-serve",
        "┌─ neighbour ─",
        "in by port 1880 → site:80",
        "site pings db ",
        "the neighbour sees 10.0.1.1, the host",
        "the neighbour sees fd00:1::1, the host",
        "neighbour → http://10.0.1.1:1880/: 200 `hello 10.0.1.2:",
        "neighbour → http://[fd00:1::1]:1880/: 200 `hello [fd00:1::2]:",
        "neighbour → the host 10.0.1.1:5432 stays closed: refused",
        "container site 1880:80/tcp\n      tcp port 1880 on every IPv4 address of the host leads to ",
        "Chain PREROUTING (policy ACCEPT)\n      DNAT ",
        "MASQUERADE all ",
        "$ portolan verify\n    ✔ ok  ",
        "9/9 Nothing is left",
        "✔ ok  the machines themselves are gone too",
        "✔ all 9 steps ok, ",
    ] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    assert!(!text.contains('✘') && !text.contains("FAILED"), "{text}");
    assert_nothing_left(pid);
}

#[test]
fn json_has_the_same_for_programs() {
    let Some(_) = Lab::or_skip("demo-json") else { return };
    let (pid, output) = played(&["--json"]);
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{whole:#}");
    assert_eq!((whole["Ok"].as_bool(), whole["Interrupted"].as_bool()), (Some(true), Some(false)));
    let steps = whole["Steps"].as_array().unwrap();
    let numbers: Vec<u64> = steps.iter().map(|step| step["Number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=9).collect::<Vec<_>>());
    let evidence: Vec<&Value> = steps.iter().flat_map(|step| step["Evidence"].as_array().unwrap()).collect();
    let of_kind = |kind: &str| evidence.iter().filter(|one| one["Kind"] == kind).count();
    assert!(of_kind("Command") >= 10 && of_kind("Check") >= 20, "{whole:#}");
    assert!(evidence.iter().filter(|one| one["Kind"] == "Command").all(|one| one["Exit"] == 0), "{whole:#}");
    assert_nothing_left(pid);
}

#[test]
fn stopped_half_way_it_cleans_up() {
    let Some(_) = Lab::or_skip("demo-stopped") else { return };
    let (mut child, mut reader) = half_way();
    PidFd::open(child.id() as i32).unwrap().signal(SIGINT).unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("✘ stopped before the end"), "{rest}");
    assert_nothing_left(child.id());
}

#[test]
fn a_reader_that_leaves_is_no_reason_to_leave_things_behind() {
    let Some(_) = Lab::or_skip("demo-unread") else { return };
    let (mut child, reader) = half_way();
    drop(reader);
    child.wait().unwrap();
    assert_nothing_left(child.id());
}

#[test]
fn help_teaches() {
    let output = demo().arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for part in ["Nothing of this machine's network is", "portolan run -d --name site", "Ctrl-C", "--json"] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
}
