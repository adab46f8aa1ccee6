//! `portolan run` and what goes with it: processes with network stacks of their own, in a lab.

mod common;

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{LONG, World};
use portolan_kernel::process::PidFd;
use portolan_kernel::signals::KILL;
use portolan_lab::eventually;
use serde_json::Value;

/// SIGTERM, signal(7).
const TERM: i32 = 15;

impl World {
    /// Runs `script` in a container and returns the exit status with what it printed.
    fn script(&self, flags: &[&str], script: &str) -> (i32, String) {
        let output = self.portolan(&[&["run", "--rm"], flags, &["--", "sh", "-c", script]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().expect("portolan itself is not killed"), text)
    }

    fn inspect(&self, name: &str) -> Value {
        self.json(&["inspect", name])[0].clone()
    }

    /// Process ids of the command and of its supervisor.
    fn processes(&self, name: &str) -> (PidFd, PidFd) {
        let pid = self.inspect(name)["State"]["Pid"].as_i64().expect("a number") as i32;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the command runs");
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("every process has a parent");
        let open = |pid| PidFd::open(pid).expect("it runs");
        (open(pid), open(parent.trim().parse().expect("a number")))
    }

    /// Asserts that there is no container, and nothing of one.
    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.json(&["ps", "-a"]), Value::Array(Vec::new()));
        assert_eq!(self.run_time_dirs(), 0);
        self.verify();
    }
}

#[test]
fn the_status_is_the_commands() {
    let Some(world) = World::or_skip("run-status") else { return };
    assert_eq!(world.script(&[], "exit 7").0, 7);
    assert_eq!(world.script(&[], "kill -9 $$").0, 128 + 9);
    for flags in [&["run"][..], &["run", "-d"]] {
        for (command, status) in [("no-such-command", 127), ("/etc/hosts", 126)] {
            let args = [flags, &["--", command]].concat();
            let output = world.portolan(&args);
            common::check_refusal(&args, &output);
            assert_eq!(output.status.code(), Some(status), "{args:?}");
            world.nothing_is_left();
        }
        let args = [flags, &["--network", "nosuch", "--", "true"]].concat();
        assert_eq!(world.refused(&args), "no network `nosuch`");
        assert_eq!(world.portolan(&args).status.code(), Some(125));
        world.nothing_is_left();
    }
    world.portolan_ok(&["run", "--name", "stays", "--", "true"]);
    assert_eq!(world.inspect("stays")["State"]["Status"], "exited");
    assert_eq!(world.refused(&["run", "--name", "stays", "--", "true"]), "container `stays` exists already");
    world.portolan_ok(&["rm", "stays"]);
    world.nothing_is_left();
}

/// Docker's flags, states and words.
#[test]
fn a_containers_health_is_what_its_command_says() {
    let Some(world) = World::or_skip("run-health") else { return };
    let file = world.lab.dir().join("well");
    let (path, mark) = (file.display().to_string(), "MARK=of-the-container");
    let check = format!("echo $MARK $(hostname) >&2; cat {path}");
    let health = |name: &str| world.inspect(name)["State"]["Health"].clone();
    let is = |name: &str, state: &str| {
        let has = || health(name)["Status"] == state;
        assert!(eventually(LONG, has), "not {state}: {}", health(name));
    };
    let flags = ["--health-interval", "50ms", "--health-retries", "3", "--hostname", "box", "-e", mark];
    let run = |name: &str, command: &str, more: &[&str]| {
        let args = [&["run", "-d", "--name", name, "--health-cmd", command], &flags[..], more, &["--", "sleep", "100"]];
        world.portolan_ok(&args.concat());
    };
    run("site", &check, &[]);
    is("site", "unhealthy");
    let failed = health("site");
    assert!(failed["FailingStreak"].as_u64().unwrap() >= 3, "{failed}");
    let said = failed["Log"][0]["Output"].as_str().unwrap();
    assert!(said.starts_with("of-the-container box\n") && failed["Log"][0]["ExitCode"] == 1, "{failed}");
    fs::write(&file, "").unwrap();
    is("site", "healthy");
    assert_eq!(health("site")["FailingStreak"], 0);
    assert!(world.portolan_ok(&["ps", "--filter", "health=healthy"]).contains("(healthy)"));
    assert_eq!(world.json(&["ps"])[0]["Health"], "healthy");
    assert_eq!(world.inspect("site")["Config"]["Healthcheck"]["Interval"], 50_000_000);
    let refused = world.refused(&["update", "site", "--health", "unhealthy"]);
    assert_eq!(refused, "health of container `site` is what its --health-cmd says");
    // What hangs has failed, and nothing of it stays.
    let marker = "86399.5";
    run("slow", &format!("sleep {marker} & sleep {marker}; true"), &["--health-timeout", "100ms"]);
    is("slow", "unhealthy");
    assert_eq!(health("slow")["Log"][0]["ExitCode"], -1);
    assert!(health("slow")["Log"][0]["Output"].as_str().unwrap().contains("exceeded timeout (100ms)"));
    // Failures at the start do not count.
    run("early", "false", &["--health-start-period", "1h", "--health-start-interval", "20ms"]);
    assert!(!eventually(Duration::from_millis(500), || health("early")["Status"] != "starting"), "{}", health("early"));
    assert!(world.portolan_ok(&["ps", "--filter", "name=early"]).contains("(health: starting)"));
    world.portolan_ok(&["rm", "-f", "early", "slow", "site"]);
    let runs = || {
        let sleeps = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .map(sleeps)
            .any(|line| line.windows(marker.len()).any(|at| at == marker.as_bytes()))
    };
    assert!(eventually(LONG, || !runs()), "a check goes on");
    world.nothing_is_left();
    for (flags, why) in [
        (&["--no-healthcheck", "--health-cmd", "true"][..], "--no-healthcheck conflicts with --health-* options"),
        (&["--health-retries", "2"], "--health-* options are given without --health-cmd"),
        (&["--health-cmd", "true", "--health-interval", "0.5ms"], "500µs is too short for a health check"),
    ] {
        assert_eq!(world.refused(&[&["run"], flags, &["--", "true"]].concat()), why);
    }
}

#[test]
fn the_command_sees_files_of_its_own() {
    let Some(world) = World::or_skip("run-files") else { return };
    world.network("web", &["--subnet", "172.30.0.0/24", "--subnet", "fd30::/64"]);
    let flags = [
        "--network",
        "web",
        "--ip",
        "172.30.0.9",
        "--ip6",
        "fd30::9",
        "-h",
        "site",
        "--add-host",
        "db:10.9.9.9",
        "--add-host",
        "gw:host-gateway",
        "--dns",
        "10.9.9.53",
        "--dns-search",
        "lan",
        "--dns-opt",
        "ndots:2",
        "--sysctl",
        "net.ipv4.ip_default_ttl=33",
        "-e",
        "COLOUR=red",
    ];
    let script = "hostname; cat /etc/hostname /proc/sys/net/ipv4/ip_default_ttl; echo $COLOUR $HOSTNAME; cat /etc/resolv.conf /etc/hosts";
    let (code, seen) = world.script(&flags, script);
    assert_eq!(code, 0, "{seen}");
    assert!(
        seen.starts_with("site\nsite\n33\nred site\nnameserver 10.9.9.53\nsearch lan\noptions ndots:2\n"),
        "{seen}"
    );
    for line in
        ["127.0.0.1\tlocalhost", "172.30.0.9\tsite", "fd30::9\tsite", "10.9.9.9\tdb", "172.30.0.1\tgw", "fd30::1\tgw"]
    {
        assert!(seen.lines().any(|found| found == line), "{line}: {seen}");
    }
    assert_eq!(world.script(&["--network", "none"], "ls /sys/class/net").1, "lo\n");
    let (_, links) = world.script(&["--network", "host"], "ls /sys/class/net");
    assert!(links.lines().any(|link| link == "eth0"), "{links}");
    world.nothing_is_left();
}

#[test]
fn a_detached_container_lives_on_and_is_removed_as_a_whole() {
    let Some(world) = World::or_skip("run-detached") else { return };
    world.network("web", &["--subnet", "172.30.0.0/24", "--ipv6=false"]);
    let before = world.state();
    let id = world.portolan_ok(&[
        "run",
        "-d",
        "--name",
        "site",
        "--network",
        "web",
        "-p",
        "8080:80",
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]);
    assert_eq!(id.trim(), world.inspect("site")["Id"]);
    assert!(eventually(LONG, || world.portolan_ok(&["logs", "site"]) == "up\n"));
    assert_eq!(world.portolan_ok(&["port", "site"]), "80/tcp -> 0.0.0.0:8080\n");

    let exec =
        world.portolan(&["exec", "site", "--", "sh", "-c", "cat /etc/hostname; ip -o -4 address show eth0; exit 3"]);
    let text = String::from_utf8_lossy(&exec.stdout).into_owned();
    assert_eq!(exec.status.code(), Some(3));
    assert!(text.starts_with(&id[..12]) && text.contains("172.30.0.2/24"), "{text}");
    assert_eq!(world.portolan(&["exec", "site", "--", "no-such-command"]).status.code(), Some(127));

    let (code, shared) =
        world.script(&["--network", "container:site"], "cat /etc/hostname; ip -o -4 address show eth0");
    assert!(code == 0 && shared == text, "{shared}");

    // What connects later is in the hosts file that the command already has.
    world.network("lan", &["--subnet", "172.31.0.0/24", "--ipv6=false"]);
    world.portolan_ok(&["network", "connect", "--ip", "172.31.0.7", "lan", "site"]);
    let hosts = || world.portolan_ok(&["exec", "site", "--", "cat", "/etc/hosts"]);
    assert!(hosts().contains("172.31.0.7"), "{}", hosts());
    world.portolan_ok(&["network", "disconnect", "lan", "site"]);
    assert!(!hosts().contains("172.31.0.7"), "{}", hosts());
    world.portolan_ok(&["network", "rm", "lan"]);

    assert!(world.refused(&["rm", "site"]).starts_with("container `site` is running as process "));
    let (command, supervisor) = world.processes("site");
    world.portolan_ok(&["rm", "-f", "site"]);
    for process in [command, supervisor] {
        assert!(process.wait_readable(Duration::ZERO).expect("poll"), "nothing is left of it when `rm` returns");
    }
    world.nothing_is_left();
    before.assert_same(&world.state(), "run and rm");
}

#[test]
fn a_killed_supervisor_leaves_what_gc_takes_down() {
    let Some(world) = World::or_skip("run-killed") else { return };
    for flags in [&["--name", "r"][..], &["--name", "r", "--rm"]] {
        world.portolan_ok(&[&["run", "-d", "-p", "8080:80"], flags, &["--", "sleep", "1000"]].concat());
        let (command, supervisor) = world.processes("r");
        supervisor.signal(KILL).expect("kill it");
        assert!(command.wait_readable(LONG).expect("poll"), "the command ends with who waits for it");
        world.portolan_ok(&["gc"]);
        world.verify();
        if flags.contains(&"--rm") {
            world.nothing_is_left();
        } else {
            assert_eq!(world.inspect("r")["State"]["Status"], "exited");
            world.portolan_ok(&["rm", "r"]);
        }
        // Its name and port are free again.
        world.portolan_ok(&[&["run", "-p", "8080:80"], flags, &["--", "true"]].concat());
        world.portolan_ok(&["rm", "-f", "r"]);
        world.nothing_is_left();
    }
}

#[test]
fn signals_are_passed_on() {
    let Some(world) = World::or_skip("run-signals") else { return };
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command = world.command(&["run", "--rm", "--name", "s", "--", "sh", "-c", script]);
    let mut child: Child = command.stdout(Stdio::piped()).spawn().expect("portolan runs");
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut ready).expect("the command prints");
    PidFd::open(child.id() as i32).and_then(|portolan| portolan.signal(TERM)).expect("signal it");
    assert_eq!(child.wait().expect("it ends").code(), Some(9));
    world.nothing_is_left();
}

#[test]
fn without_interest_it_goes_away_by_itself() {
    let Some(world) = World::or_skip("run-auto-remove") else { return };
    world.portolan_ok(&["run", "-d", "--rm", "--name", "brief", "--", "sleep", "0.2"]);
    assert!(eventually(LONG, || world.json(&["ps", "-a"]) == Value::Array(Vec::new())));
    assert!(eventually(LONG, || world.run_time_dirs() == 0));
    world.nothing_is_left();
}
