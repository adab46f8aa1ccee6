//! A daemon that stands still (SIGSTOP): verbs are done all the same, in bounded time, and say what does not work; when it
//! goes on, so does everything that waits for it.

use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use portolan_lab::eventually;
use serde_json::{Value, json};

use crate::common::LONG;
use crate::place::*;

/// As long as a verb waits for the daemon (`control::PATIENCE`), and a busy machine's share.
const BOUND: Duration = Duration::from_secs(60);

const NETWORK_Y: Line = "network create --subnet 10.97.0.0/24 y";
const ATTACH_O: Line = "attach --netns NS-O --name o --network a -p 8090:80";

/// What asks the daemon for nothing.
const QUIET: &[Line] =
    &["ps", "inspect c", "network ls", "network inspect a", "port c", "rules c", "verify", NETWORK_Z];

/// Verbs that tell the daemon what they did; each is about something else.
const CHANGES: &[Line] = &[
    "network rm y",
    ATTACH_O,
    CONNECT,
    "publish add c 9090:90",
    "run -d --name r --network a -- true",
    "cni ADD",
    "gc",
    "reconcile",
];

/// What cannot be had without it.
const QUESTIONS: &[Line] = &["daemon status", "stats", "daemon start", "netavark setup"];

fn signal(pid: u32, signal: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

/// A process that stands still, but does not stay so when a test fails.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Self {
        signal(pid, "STOP");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

#[test]
fn daemon() {
    let Some(mut place) = Place::served("stopped daemon") else { return };
    for line in [NETWORK_A, NETWORK_B, NETWORK_Y, "attach --netns NS --name c --network a"] {
        place.line(line);
    }
    let pid = place.daemon();
    let stopped = Stopped::new(pid);
    let asked = Instant::now();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    for line in QUIET {
        let answer = place.try_line(line);
        assert!(answer.status.success() && answer.stderr.is_empty(), "`{line}`: {answer:?}");
    }
    let by_them = asked.elapsed();
    assert!(by_them < LONG, "{by_them:?} for those who do not ask the daemon");

    let silent = format!("the daemon, process {pid} (`portolan`, stopped), did not answer within 30 s");
    let place_ref = &place;
    let waiting: Vec<_> = thread::scope(move |scope| {
        let run = |line: &'static str| {
            scope.spawn(move || {
                let asked = Instant::now();
                (line, place_ref.try_line(line), asked.elapsed())
            })
        };
        // Docker and its clients have patience of their own: they are answered when it goes on.
        let plugin =
            scope.spawn(move || place_ref.http(Face::Plugin, "POST", "/NetworkDriver.GetCapabilities", &json!({})));
        let create = json!({"Name": "docker", "IPAM": {"Config": [{"Subnet": "10.96.0.0/24"}]}});
        let api = scope.spawn(move || place_ref.http(Face::Api, "POST", "/networks/create", &create));
        let lines: Vec<_> = CHANGES.iter().chain(QUESTIONS).map(|line| run(line)).collect();
        let outcomes: Vec<_> = lines.into_iter().map(|line| line.join().unwrap()).collect();
        for (line, output, took) in outcomes {
            assert!(took < BOUND, "`{line}` took {took:?}");
            let is_done = CHANGES.contains(&line);
            assert_eq!(output.status.success(), is_done, "`{line}`: {output:?}");
            // Podman is told by netavark's own words, on standard output.
            let all = format!("{}{}", said(&output), String::from_utf8_lossy(&output.stdout));
            assert!(all.contains(&silent), "`{line}`: {output:?}");
            let has_hint = said(&output).contains(&format!("hint: `kill -CONT {pid}` lets it go on"));
            assert!(has_hint || line.starts_with("netavark") || line.starts_with("cni"), "`{line}`: {output:?}");
        }
        assert!(!plugin.is_finished() && !api.is_finished(), "nobody is there to answer");
        drop(stopped);
        [plugin.join().unwrap(), api.join().unwrap()].into()
    });
    for (status, body) in waiting {
        assert!(status == 200 || status == 201, "{status} {body}");
    }
    let status: Value = place.world.json(&["daemon", "status"]);
    assert_eq!(status["pid"], pid, "it is the one that was there");
    let rows = place.all_rows();
    let endpoints = rows.iter().filter(|row| row.contains(" has")).count();
    let knows_all = || place.world.json(&["daemon", "status"])["endpoints"] == endpoints;
    assert!(eventually(LONG, knows_all), "{rows:?}: {}", place.world.json(&["daemon", "status"]));
    for row in ["network z", "network docker", "container o Running", "c publishes 9090:90/tcp"] {
        assert!(rows.contains(row), "{row}: {rows:?}");
    }
    assert!(!rows.contains("network y") && !rows.contains("container r Running"), "{rows:?}");
    place.line("verify");
    place.unserve();
    place.nothing_left("stopped daemon");
    place.clear("stopped daemon");
}
