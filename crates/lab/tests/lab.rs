//! The lab against the running kernel.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use portolan_kernel::netns::with_netns;
use portolan_lab::probe::{Probe, http_get, ping, tcp_probe, udp_probe};
use portolan_lab::sctp::{SctpServer, sctp_probe};
use portolan_lab::server::{TcpServer, UdpServer};
use portolan_lab::snapshot::{diff, snapshot};
use portolan_lab::trace::{self, Outcome, Syscall};
use portolan_lab::{Host, InNetns, Lab, eventually};

const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(300);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Two hosts with a router in between.
fn routed(lab: &Lab) -> (Host, Host, Host) {
    let (a, router, b) = (lab.host("a").unwrap(), lab.host("router").unwrap(), lab.host("b").unwrap());
    lab.lan(
        "left",
        &[(&a, "eth0", &["10.0.1.2/24", "fd00:1::2/64"]), (&router, "eth0", &["10.0.1.1/24", "fd00:1::1/64"])],
    )
    .unwrap();
    lab.lan(
        "right",
        &[(&b, "eth0", &["10.0.2.2/24", "fd00:2::2/64"]), (&router, "eth1", &["10.0.2.1/24", "fd00:2::1/64"])],
    )
    .unwrap();
    router.enable_forwarding().unwrap();
    for gateway in ["10.0.1.1", "fd00:1::1"] {
        a.add_default_route(gateway).unwrap();
    }
    b.add_route("10.0.1.0/24", "10.0.2.1").unwrap();
    b.add_route("fd00:1::/64", "fd00:2::1").unwrap();
    (a, router, b)
}

#[test]
fn probes_tell_who_answers_and_whom_it_sees() {
    let Some(lab) = Lab::or_skip("probes") else { return };
    let (a, _router, b) = routed(&lab);
    for (bind, target, seen) in [("0.0.0.0:80", "10.0.2.2:80", "10.0.1.2"), ("[::]:81", "[fd00:2::2]:81", "fd00:1::2")]
    {
        let tcp = TcpServer::start(&b, at(bind), "web of b").unwrap();
        let udp = UdpServer::start(&b, at(bind), "dns of b").unwrap();
        let _sctp = SctpServer::start(&b, at(bind), "sctp of b").unwrap();
        let probe = tcp_probe(&a, at(target), LONG);
        assert_eq!(probe.banner(), Some("web of b"), "{target}: {probe}");
        assert_eq!(probe.seen().unwrap().ip().to_string(), seen);
        assert_eq!((tcp.connections(), tcp.last_client()), (1, probe.seen()));
        let probe = udp_probe(&a, at(target), LONG);
        assert_eq!(probe.banner(), Some("dns of b"), "{probe}");
        assert_eq!((udp.datagrams(), udp.last_client()), (1, probe.seen()));
        let probe = sctp_probe(&a, 4000, at(target), LONG);
        assert_eq!(probe.banner(), Some("sctp of b"), "{probe}");
        assert_eq!(probe.seen().unwrap().to_string(), SocketAddr::new(seen.parse().unwrap(), 4000).to_string());
        assert!(ping(&a, at(target).ip(), LONG).is_open());
    }
    assert_eq!(tcp_probe(&a, at("10.0.2.2:80"), LONG), Probe::Refused, "the server is stopped");
    assert_eq!(udp_probe(&a, at("[fd00:2::2]:81"), LONG), Probe::Refused);
    assert_eq!(udp_probe(&a, at("10.0.1.77:1"), SHORT), Probe::Timeout);
    assert_eq!(ping(&a, "10.0.1.77".parse().unwrap(), SHORT), Probe::Timeout);
    assert_eq!(ping(&b, "192.0.2.1".parse().unwrap(), LONG), Probe::Unreachable(libc::ENETUNREACH));
    assert!(matches!(sctp_probe(&a, 4000, at("10.0.2.2:9"), LONG), Probe::Unreachable(_) | Probe::Refused));
}

#[test]
fn connections_stay_open_and_http_is_spoken() {
    let Some(lab) = Lab::or_skip("http") else { return };
    let host = lab.host("h").unwrap();
    let web = TcpServer::start_http(&host, at("127.0.0.1:0"), "hello").unwrap();
    let reply = http_get(&host, web.addr(), "/", LONG).unwrap();
    assert_eq!(reply.status, 200);
    assert!(reply.body.starts_with("hello 127.0.0.1:"), "{}", reply.body);
    let echo = TcpServer::start(&host, at("127.0.0.1:0"), "echo").unwrap();
    let mut stream = with_netns(host.netns(), || TcpStream::connect(echo.addr())).unwrap().unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("echo "));
    stream.write_all(b"ping\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "ping");
    drop(echo);
    assert!(lines.next().is_none_or(|line| line.is_err()), "stopping closes connections");
}

#[test]
fn commands_see_the_devices_of_their_host() {
    let Some(lab) = Lab::or_skip("commands") else { return };
    let host = lab.host("h").unwrap();
    let mut lan = lab.lan("lan", &[(&host, "eth0", &["10.0.0.1/24"])]).unwrap();
    let output = host.command("ls").unwrap().arg("/sys/class/net").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "eth0\nlo\n");
    let ino = host.enter(|| fs::read_link("/proc/thread-self/ns/net").unwrap());
    let mut plain = Command::new("readlink");
    plain.arg("/proc/self/ns/net");
    let output = host.adopt(plain).unwrap().output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), ino.to_string_lossy());
    assert!(host.netns_path().exists());
    let other = lab.host("other").unwrap();
    lan.connect(&other, "eth0", &["10.0.0.2/24"]).unwrap();
    assert!(ping(&other, "10.0.0.1".parse().unwrap(), LONG).is_open());
    lan.disconnect(&host, "eth0").unwrap();
    assert!(!ping(&other, "10.0.0.1".parse().unwrap(), SHORT).is_open());
    assert!(lab.host("other").is_err(), "the name is taken");
    assert!(host.add_address("eth9", "10.0.0.3/24").is_err());
    assert!(host.add_address("lo", "10.0.0.3").is_err());
    host.add_address("lo", "10.0.0.3/32").unwrap();
}

#[test]
fn nothing_is_left_by_a_panic_or_a_killed_process() {
    let Some(lab) = Lab::or_skip("leftovers") else { return };
    let dir = lab.dir().to_owned();
    let path = lab.host("h").unwrap().netns_path().to_owned();
    let panicked = std::panic::catch_unwind(move || {
        let _lab = lab;
        panic!("on purpose");
    });
    assert!(panicked.is_err());
    assert!(!dir.exists() && !path.exists());

    // As a killed process would leave it: a live pid, but not the process it was.
    let leftover = dir.with_file_name("1-1-0");
    fs::create_dir_all(&leftover).unwrap();
    portolan_kernel::netns::create_pinned(leftover.join("h")).unwrap();
    let _lab = Lab::new("next").unwrap();
    assert!(!leftover.exists());
}

#[test]
fn snapshots_show_what_changed() {
    let Some(lab) = Lab::or_skip("snapshots") else { return };
    let host = lab.host("h").unwrap();
    let before = snapshot(&host).unwrap();
    assert_eq!(diff(&before, &snapshot(&host).unwrap()), Vec::<String>::new());
    host.add_address("lo", "192.0.2.1/32").unwrap();
    host.enable_forwarding().unwrap();
    let changes = diff(&before, &snapshot(&host).unwrap());
    let has = |line: &str| changes.iter().any(|change| change.contains(line));
    assert!(has("+ address 192.0.2.1/32 dev lo"), "{changes:#?}");
    assert!(has("+ route 192.0.2.1/32 table 255 Local"), "{changes:#?}");
    assert!(has("- sysctl net/ipv4/ip_forward = 0") && has("+ sysctl net/ipv4/ip_forward = 1"));
}

#[test]
fn programs_are_killed_at_the_chosen_call() {
    let dir = std::env::temp_dir().join(format!("portolan-trace-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let program = || {
        let mut command = Command::new("sh");
        command.args(["-c", "mkdir one; mkdir two; (mkdir three; true); rmdir one two three"]);
        command.current_dir(&dir).stdout(Stdio::null());
        command
    };
    let calls = [Syscall::Mkdir, Syscall::Unlink];
    match trace::list(program(), &calls) {
        Ok(list) => {
            use Syscall::{Mkdir, Unlink};
            assert_eq!(list, [Mkdir, Mkdir, Mkdir, Unlink, Unlink, Unlink]);
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "SKIP: {error:#}");
            eprintln!("SKIP: cannot trace: {error:#}");
            return;
        }
    }
    assert_eq!(trace::count(program(), &calls).unwrap(), 6);
    let left = || {
        let mut names: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        for name in &names {
            fs::remove_dir(dir.join(name)).unwrap();
        }
        names
    };
    for (n, wanted) in [(1, vec![]), (2, vec!["one"]), (3, vec!["one", "two"]), (5, vec!["three", "two"])] {
        let outcome = trace::kill_at(program(), &calls, n).unwrap();
        assert!(matches!(outcome, Outcome::Killed { .. }), "{outcome:?}");
        assert_eq!(left(), wanted, "killed at {n}");
    }
    let outcome = trace::kill_at(program(), &calls, 7).unwrap();
    assert!(matches!(outcome, Outcome::Finished(status) if status.success()), "{outcome:?}");
    let programs = trace::execs(program()).unwrap();
    assert_eq!(programs.len(), 4, "{programs:?}");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn threads_die_with_the_program() {
    // A shell that starts a long-lived process and gets killed afterwards.
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1234 & mkdir /nonexistent-portolan/x"]).stderr(Stdio::piped());
    let start = std::time::Instant::now();
    match trace::kill_at(command, &[Syscall::Mkdir], 1) {
        Ok(outcome) => assert!(matches!(outcome, Outcome::Killed { syscall: Syscall::Mkdir, .. })),
        Err(error) => eprintln!("SKIP: cannot trace: {error:#}"),
    }
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(eventually(LONG, || true));
}
