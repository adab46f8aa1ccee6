//! The daemon as a process: when it starts and leaves, and what it survives.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use portolan_kernel::netns::with_netns;
use portolan_kernel::process::PidFd;
use portolan_kernel::rtnl::Family;
use portolan_kernel::signals;
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::{TcpServer, UdpServer};
use portolan_lab::{Host, InNetns, eventually};

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

/// A caller that waits until nobody can write into its pipe any more, as test runners and shells do, waits for the command
/// alone.
#[test]
fn what_stays_holds_nothing_of_who_started_it() {
    let Some(world) = world("holds") else { return };
    world.network("web", &["--subnet", "10.91.0.0/24"]);
    let starts = |args: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 7>&1 >/dev/null 2>&1", "sh", env!("CARGO_BIN_EXE_portolan")]).args(args);
        command.env("PORTOLAN_ROOT", &world.root).env("PORTOLAN_DAEMON", "auto").stdout(Stdio::piped());
        let mut child = world.h.adopt(command).unwrap().spawn().unwrap();
        let mut pipe = child.stdout.take().unwrap();
        assert!(child.wait().unwrap().success(), "{args:?}");
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(pipe.read_to_end(&mut Vec::new())));
        told.recv_timeout(LONG).is_ok()
    };
    assert!(starts(&["daemon", "start"]), "daemon start");
    world.portolan_ok(&["daemon", "stop"]);
    assert!(
        starts(&["run", "-d", "--network", "web", "--", "sleep", "1000"]),
        "run -d, and the daemon that comes with it"
    );
    assert!(status(&world).is_some());
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
    // A verb that will need it has it stay; it has nothing to do for longer than it stays by itself.
    let mut verb = UnixStream::connect(world.root.join("run/control.sock")).unwrap();
    verb.write_all(b"{\"ask\":\"hold\"}\n").unwrap();
    assert!(!process.wait_readable(Duration::from_secs(12)).unwrap());
    drop(verb);
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

/// The root may be gone before the supervisor has noticed that its daemon left, and another one be there in its place.
#[test]
fn one_that_left_takes_nothing_from_the_next() {
    let Some(world) = world("left") else { return };
    world.portolan_ok(&["daemon", "start"]);
    let parent = fs::read_to_string(format!("/proc/{}/stat", pid(&world))).unwrap();
    let parent = parent.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let supervisor = PidFd::open(parent).unwrap();
    let signal =
        |signal| rustix::process::kill_process(rustix::process::Pid::from_raw(parent).unwrap(), signal).unwrap();
    signal(rustix::process::Signal::STOP);
    world.portolan_ok(&["daemon", "stop"]);
    fs::remove_dir_all(&world.root).unwrap();
    world.portolan_ok(&["daemon", "start"]);
    signal(rustix::process::Signal::CONT);
    assert!(supervisor.wait_readable(LONG).unwrap());
    // Ready, and restarted after it, is what the supervisor is told by its socket.
    for _ in 0..2 {
        let before = pid(&world);
        kill(before);
        assert_ne!(pid(&world), before);
    }
    assert!(world.root.join("run/notify.sock").exists());
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

/// What an iperf3 client reports, as JSON; none, with a loud skip, where there is no iperf3.
fn iperf(world: &World, server: &impl InNetns, seconds: u32) -> Option<[std::process::Child; 2]> {
    let command = |args: &[&str]| {
        let mut command = Command::new("iperf3");
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    if Command::new("iperf3").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have iperf3");
        eprintln!("SKIP: no iperf3");
        return None;
    }
    let listen = portolan_kernel::process::command_in(server.netns(), command(&["-s", "-1", "-p", "5201"]), false);
    let listen = listen.unwrap().spawn().unwrap();
    let is_up = || tcp_listens(server, 5201);
    assert!(eventually(LONG, is_up));
    let seconds = seconds.to_string();
    let args = ["-c", "10.0.1.1", "-p", "5201", "-t", &seconds, "-b", "200M", "-J"];
    let client = portolan_kernel::process::command_in(world.n.netns(), command(&args), false);
    Some([client.unwrap().spawn().unwrap(), listen])
}

fn tcp_listens(place: &impl InNetns, port: u16) -> bool {
    let listening = with_netns(place.netns(), || portolan_kernel::diag::listeners().unwrap()).unwrap();
    listening.iter().any(|listener| listener.port == port)
}

/// Tells others to end.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Published ports are the kernel's: whatever becomes of the daemon, nothing that uses them notices.
#[test]
fn traffic_goes_on_whatever_becomes_of_it() {
    const SECONDS: u32 = 8;
    let Some(world) = world("traffic") else { return };
    world.network("web", &["--subnet", "10.91.0.0/16"]);
    let site = world.container("site", &["--network", "web", "-p", "8080:80", "-p", "5300:53/udp", "-p", "5201:5201"]);
    let others: Vec<Host> = (0..199).map(|n| world.lab.host(&format!("o{n}")).unwrap()).collect();
    for (number, other) in others.iter().enumerate() {
        let path = other.netns_path().to_str().unwrap();
        world.portolan_ok(&["attach", "--netns", path, "--name", &format!("o{number}"), "--network", "web"]);
    }
    let _tcp = TcpServer::start(&site, any(Family::V4, 80), "site").unwrap();
    let _udp = UdpServer::start(&site, any(Family::V4, 53), "site").unwrap();
    let mut bulk = iperf(&world, &site, SECONDS);

    let is_done = AtomicBool::new(false);
    let (datagrams, connections, kills, starts, upgrades) = std::thread::scope(|scope| {
        let (is_done, world) = (&is_done, &world);
        let datagrams = scope.spawn(move || {
            let socket = with_netns(world.n.netns(), || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
            socket.connect(at(host_ip(Family::V4), 5300)).unwrap();
            socket.set_nonblocking(true).unwrap();
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20).unwrap();
            let (mut sent, mut answered, mut buffer) = (0, 0, [0; 256]);
            let started = Instant::now();
            while !is_done.load(Ordering::Relaxed) {
                socket.send(b"?").unwrap();
                sent += 1;
                while socket.recv(&mut buffer).is_ok() {
                    answered += 1;
                }
                std::thread::sleep(Duration::from_millis(sent).saturating_sub(started.elapsed()));
            }
            let all = || {
                while socket.recv(&mut buffer).is_ok() {
                    answered += 1;
                }
                answered == sent
            };
            let _ = eventually(SHORT, all);
            (sent, answered)
        });
        let connections = scope.spawn(move || {
            let (mut tried, mut failed) = (0u64, Vec::new());
            let started = Instant::now();
            while !is_done.load(Ordering::Relaxed) {
                let probe = tcp_probe(&world.n, at(host_ip(Family::V4), 8080), LONG);
                tried += 1;
                if probe.banner() != Some("site") {
                    failed.push(format!("{probe} after {:?}", started.elapsed()));
                }
                std::thread::sleep(Duration::from_millis(10 * tried).saturating_sub(started.elapsed()));
            }
            (tried, failed)
        });
        // Also if this fails.
        let done = Done(is_done);
        let (mut kills, mut starts, mut upgrades) = (0, 0, 0);
        let started = Instant::now();
        // A busy machine takes its time for each.
        while kills < 3 || started.elapsed() < Duration::from_secs(SECONDS.into()) {
            kill(pid(world));
            kills += 1;
            world.portolan_ok(&["daemon", "upgrade"]);
            upgrades += 1;
            world.portolan_ok(&["daemon", "stop"]);
            world.portolan_ok(&["daemon", "start"]);
            starts += 1;
        }
        drop(done);
        (datagrams.join().unwrap(), connections.join().unwrap(), kills, starts, upgrades)
    });
    eprintln!(
        "{kills} kills, {starts} stops and starts, {upgrades} upgrades: {} of {} datagrams answered, {} of {} connections failed",
        datagrams.1,
        datagrams.0,
        connections.1.len(),
        connections.0
    );
    assert_eq!(datagrams.0, datagrams.1, "datagrams sent, and answered");
    assert!(connections.1.is_empty(), "{:?}", connections.1);
    if let Some([bulk, listen]) = &mut bulk {
        let mut report = String::new();
        bulk.stdout.take().unwrap().read_to_string(&mut report).unwrap();
        assert!(bulk.wait().unwrap().success(), "{report}");
        listen.wait().unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let sum = &report["end"]["sum_received"];
        eprintln!("iperf3: {} bytes in {} s", sum["bytes"], sum["seconds"]);
        assert!(sum["bytes"].as_u64().unwrap() > 10_000_000, "{sum}");
    }
    world.verify();
}

/// What `GET path` answers on the metrics socket.
fn get(world: &World, request: &str) -> String {
    use std::io::Write as _;
    let mut stream = std::os::unix::net::UnixStream::connect(world.root.join("run/metrics.sock")).unwrap();
    // One that is cut short is reset.
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn what_happens_is_counted_and_told() {
    let Some(world) = world("metrics") else { return };
    world.portolan_ok(&["daemon", "start"]);
    let mut command = world.command(&["events"]);
    let mut events = command.stdout(Stdio::piped()).spawn().unwrap();
    // Its request is answered before ours.
    let follows =
        || fs::read_to_string(format!("/proc/{}/wchan", events.id())).is_ok_and(|at| at.contains("unix_stream"));
    assert!(eventually(LONG, follows));
    world.network("web", &["--subnet", "10.91.0.0/24"]);
    let site = world.container("site", &["--network", "name=web,ip=10.91.0.9", "-p", "8080:80"]);
    world.portolan_ok(&["daemon", "upgrade"]);
    world.portolan_ok(&["publish", "add", "site", "8081:81"]);
    let _tcp = TcpServer::start(&site, any(Family::V6, 80), "site").unwrap();
    for _ in 0..5 {
        assert!(tcp_probe(&world.n, at(host_ip(Family::V4), 8080), LONG).is_open());
        assert!(tcp_probe(&world.h, "[::1]:8080".parse().unwrap(), LONG).is_open());
    }

    let stats = world.json(&["stats"]);
    let site_on_web = &stats[0];
    assert_eq!((&site_on_web["container"], &site_on_web["network"]), (&"site".into(), &"web".into()), "{stats}");
    for counted in ["rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "connections"] {
        assert!(site_on_web[counted].as_u64().unwrap() >= 5, "{counted}: {stats}");
    }
    let table = world.portolan_ok(&["stats", "--no-stream", "site"]);
    assert!(
        table.starts_with("CONTAINER   NETWORK   RECEIVED   SENT") && table.contains("\nsite        web"),
        "{table}"
    );
    assert_eq!(world.json(&["stats", "nobody"]), serde_json::json!([]));

    let metrics = get(&world, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {metrics}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(value("portolan_endpoints "), 1.0);
    assert!(value("portolan_endpoint_receive_bytes_total{container=\"site\",network=\"web\"}") > 100.0);
    assert!(value("portolan_proxy_connections_total{owner=\"container site 8080:80/tcp\"") >= 5.0);
    assert!(value("portolan_command_seconds_count{command=\"publish\"}") >= 1.0);
    assert!(get(&world, "GET /x HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(get(&world, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    for garbage in ["", "\r\n", "GET /metrics", &"x".repeat(20_000)] {
        assert!(get(&world, garbage).starts_with("HTTP/1.1 400 ") || garbage.len() > 8192, "{garbage}");
    }

    assert_eq!(world.portolan_ok(&["update", "site", "--health", "unhealthy"]), "site unhealthy\n");
    world.portolan_ok(&["update", "site", "--health", "none"]);
    world.portolan_ok(&["detach", "site"]);
    world.portolan_ok(&["network", "rm", "web"]);
    world.portolan_ok(&["daemon", "stop"]);
    let mut told = String::new();
    events.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(events.wait().unwrap().success());
    let told: Vec<serde_json::Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is_it = |event: &serde_json::Value, name| event["event"] == name && event["network"] == "web";
    let of = |name| told.iter().find(|event| is_it(event, name)).unwrap_or_else(|| panic!("{name} in {told:?}"));
    of("network-create");
    let health: Vec<&serde_json::Value> = told.iter().filter(|event| event["event"] == "health").collect();
    assert!(health.len() == 2 && health[0]["health"] == "unhealthy" && health[1]["health"].is_null(), "{health:?}");
    assert_eq!(of("connect")["container"], "site");
    assert_eq!(of("connect")["addresses"][0], "10.91.0.9");
    assert_eq!(of("disconnect")["container"], "site");
    of("network-remove");
    assert!(told.iter().all(|event| event["time"].as_f64().unwrap() > 1.7e9));
}

/// What a process has used of processors, in ticks, and how often its threads have been woken.
fn activity(pid: i32) -> (u64, u64) {
    let mut sum = (0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = task.unwrap().path();
        let stat = fs::read_to_string(path.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        sum.0 += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let status = fs::read_to_string(path.join("status")).unwrap();
        let switches = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        sum.1 += switches.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum::<u64>();
    }
    sum
}

/// A thousand networks of ten names cost little memory, and nothing at all while nobody asks.
#[test]
fn many_networks_cost_little_and_nothing_when_idle() {
    const NETWORKS: usize = 1000;
    const EACH: usize = 20;
    const LIMIT: u64 = 20 << 10;
    const QUIET: Duration = Duration::from_secs(3);
    let Some(world) = world("idle") else { return };
    let began = Instant::now();
    for container in 0..NETWORKS / EACH {
        let mut on = Vec::new();
        for number in container * EACH..(container + 1) * EACH {
            let network = format!("n{number}");
            world.network(&network, &["--subnet", &format!("10.{}.{}.0/24", 100 + number / 250, number % 250)]);
            // With its name and its short id, the container has ten.
            let mut words = format!("name={network},ifname=e{number}");
            (0..8).for_each(|alias| words += &format!(",alias=alias{alias}"));
            on.extend(["--network".to_owned(), words]);
        }
        world.container(&format!("c{container}"), &on.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let pid = pid(&world);
    let told = status(&world).unwrap();
    assert_eq!((told["networks"].as_u64(), told["endpoints"].as_u64()), (Some(1003), Some(1000)), "{told}");
    // Its own: how much of its file is mapped is the page cache's affair, and most of that is what a debugger wants.
    let memory = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().trim();
        line.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    // What the verbs left to do is done once a whole while passes without anything.
    let mut before = activity(pid);
    let is_quiet = eventually(LONG * 3, || {
        std::thread::sleep(QUIET);
        let now = activity(pid);
        std::mem::replace(&mut before, now) == now
    });
    let first = memory(pid);
    // One that has read everything anew, as after a start of the machine.
    world.portolan_ok(&["daemon", "upgrade"]);
    let second = memory(pid);
    eprintln!("{NETWORKS} networks in {:?}: {first} KiB, {second} KiB after an upgrade", began.elapsed());
    assert!(is_quiet, "something wakes it: {before:?}, then {:?}", activity(pid));
    assert!(first < LIMIT && second < LIMIT, "{first} and {second} KiB");
}
