//! The daemon as a process: when it starts and leaves, and what it survives.

mod common;

use common::*;
use portolan_kernel::process::PidFd;
use portolan_kernel::signals;

fn world(name: &str) -> Option<World> {
    let mut world = World::or_skip(name)?;
    world.daemon = true;
    Some(world)
}

/// What `daemon status` says; none if none runs.
fn status(world: &World) -> Option<serde_json::Value> {
    let output = world.portolan(&["--json", "daemon", "status"]);
    serde_json::from_slice(&output.stdout).ok()
}

fn pid(world: &World) -> i32 {
    status(world).expect("a daemon runs")["pid"].as_i64().unwrap().try_into().unwrap()
}

/// Kills a process and waits until it is gone.
fn kill(pid: i32) {
    let process = PidFd::open(pid).unwrap();
    process.signal(signals::KILL).unwrap();
    assert!(process.wait_readable(LONG).unwrap());
}

#[test]
fn it_comes_with_the_first_container_and_goes_after_the_last() {
    let Some(world) = world("on-demand") else { return };
    world.network("web", &["--subnet", "10.91.0.0/24"]);
    assert_eq!(status(&world), None, "nobody needs one yet");
    world.container("site", &["--network", "web"]);
    let first = status(&world).expect("one was started");
    assert_eq!((first["networks"].as_u64(), first["endpoints"].as_u64()), (Some(4), Some(1)), "{first}");
    assert_eq!(first["warnings"], serde_json::json!([]), "{first}");
    world.container("other", &["--network", "web"]);
    let second = status(&world).unwrap();
    assert_eq!(second["pid"], first["pid"], "the one there is serves all");
    assert_eq!(second["endpoints"], 2, "it knew before the verb returned: {second}");

    let process = PidFd::open(pid(&world)).unwrap();
    world.portolan_ok(&["detach", "site"]);
    assert_eq!(status(&world).unwrap()["endpoints"], 1);
    world.portolan_ok(&["detach", "other"]);
    assert!(process.wait_readable(LONG * 3).unwrap(), "nobody needs it any more");
    world.container("late", &["--network", "web"]);
    assert_eq!(status(&world).unwrap()["endpoints"], 1, "and another one is started");
}

#[test]
fn a_killed_one_is_back_at_once_and_knows_everything() {
    let Some(world) = world("killed") else { return };
    world.container("site", &["--network", "bridge"]);
    let mut before = pid(&world);
    for _ in 0..5 {
        kill(before);
        // The control socket was kept open: whoever asks now waits for the next one.
        let after = status(&world).expect("the next one answers");
        assert_ne!(after["pid"], before);
        assert_eq!(after["endpoints"], 1);
        before = pid(&world);
    }
}

#[test]
fn an_upgrade_keeps_the_process_and_its_start() {
    let Some(world) = world("upgrade") else { return };
    world.container("site", &["--network", "bridge"]);
    let before = status(&world).unwrap();
    for _ in 0..3 {
        world.portolan_ok(&["daemon", "upgrade"]);
        let after = status(&world).unwrap();
        assert_eq!((&after["pid"], &after["endpoints"]), (&before["pid"], &before["endpoints"]));
        assert!(after["uptime"].as_u64() >= before["uptime"].as_u64());
    }
    kill(pid(&world));
    assert_eq!(status(&world).unwrap()["endpoints"], 1, "its supervisor stands behind it as before");
}

#[test]
fn two_never_run() {
    let Some(world) = world("two") else { return };
    world.portolan_ok(&["daemon", "start"]);
    let first = pid(&world);
    world.portolan_ok(&["daemon", "start"]);
    assert_eq!(pid(&world), first);
    let output = world.portolan(&["daemon"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("another daemon runs for this root"), "{said}");

    // Many at once, none of which finds one.
    world.portolan_ok(&["daemon", "stop"]);
    assert_eq!(status(&world), None);
    let started: Vec<_> = (0..10).map(|_| world.command(&["daemon", "start"]).spawn().unwrap()).collect();
    for mut child in started {
        assert!(child.wait().unwrap().success());
    }
    assert!(status(&world).is_some());
}

#[test]
fn what_cannot_be_is_said() {
    let Some(world) = world("refused") else { return };
    for verb in ["status", "stop", "upgrade"] {
        let output = world.portolan(&["daemon", verb]);
        assert_eq!(output.status.code(), Some(1), "{verb}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("portolan: no daemon runs for this root\nhint: "), "{verb}: {said}");
    }
    world.portolan_ok(&["daemon", "start"]);
    let socket = world.root.join("run/control.sock");
    let refused = |line: &[u8]| {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(line).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    for line in [&b"{\"ask\":\"dance\"}\n"[..], b"\n", b"{\n", b"\xff\xfe\n", b"{\"ask\":\"sync\",\"x\":1}\n"] {
        let answer = refused(line);
        assert!(answer.starts_with("{\"answer\":\"refused\",\"reason\":\"read the request: "), "{answer}");
    }
    let binary = |path: &str| refused(format!("{{\"ask\":\"upgrade\",\"binary\":\"{path}\"}}\n").as_bytes());
    for path in ["/no/such/file", "/etc/passwd", "/"] {
        let answer = binary(path);
        assert!(answer.contains("refused") && answer.contains(path), "{answer}");
    }
    assert_eq!(refused(&vec![b'x'; 100_000]), "{\"answer\":\"refused\",\"reason\":\"no command is that long\"}\n");
    assert_eq!(refused(b"half a li"), "");
    assert!(status(&world).is_some(), "it is none the worse for it");
}
