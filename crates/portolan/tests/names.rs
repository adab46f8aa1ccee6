//! Names, as real resolvers see them: dig(1), the C libraries, and a client that asks a great deal.
//!
//! `PORTOLAN_PAIRS` sets how many pairs of questions that one asks.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use common::upstream::{Upstream, output, short, status};
use common::*;
use portolan_kernel::netns::with_netns;
use portolan_kernel::process::PidFd;
use portolan_kernel::rtnl::Family;
use portolan_kernel::signals;
use portolan_lab::{InNetns, eventually};

/// Kills take from a server what it has read. How much that is depends on its share of the machine, so the test that
/// counts it is alone.
static TURN: RwLock<()> = RwLock::new(());

fn beside_others() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

fn world(name: &str) -> Option<World> {
    let mut world = World::or_skip(name)?;
    world.daemon = true;
    Some(world)
}

#[test]
fn dig_finds_everybody_on_its_networks() {
    let _turn = beside_others();
    let Some(world) = world("dig") else { return };
    world.network("web", &["--subnet", "10.91.1.0/24", "--subnet", "fd91:1::/64"]);
    world.network("far", &["--subnet", "10.91.2.0/24", "--ipv6=false"]);
    world.container(
        "site",
        &["--network", "name=web,alias=www,ip=10.91.1.9,ip6=fd91:1::9", "-p", "8080:80", "--hostname", "host-of-site"],
    );
    world.container("alone", &["--network", "name=far,ip=10.91.2.9"]);
    let asks = world.container("asks", &["--network", "name=web,link=site:db"]);
    let both = world.container("both", &["--network", "web", "--network", "far"]);
    let other = world.container("other", &["--network", "web"]);
    for family in [Family::V4, Family::V6] {
        let gateway = pick(family, "10.91.1.1", "fd91:1::1");
        let Some(first) = short(&asks, gateway, &["site"]) else { return };
        assert_eq!(first, ["10.91.1.9"], "asked at {gateway}");
        let ask = |args: &[&str]| short(&asks, gateway, args).unwrap();
        let id = world.json(&["inspect", "site"])[0]["Id"].as_str().unwrap()[..12].to_owned();
        for name in ["site", "www", "host-of-site", "SiTe", "site.web", "www.web.", "db", &id, "site.portolan.internal"]
        {
            assert_eq!(ask(&[name]), ["10.91.1.9"], "{name}");
            assert_eq!(ask(&[name, "AAAA"]), ["fd91:1::9"], "{name}");
            assert_eq!(ask(&[name, "+tcp"]), ["10.91.1.9"], "{name}");
        }
        assert_eq!(ask(&["-x", "10.91.1.9"]), ["site.web."]);
        assert_eq!(ask(&["-x", "fd91:1::9"]), ["site.web."]);
        assert_eq!(ask(&["_80._tcp.site", "SRV"]), ["0 0 80 site.web."]);
        for bufsize in ["512", "1232", "4096"] {
            assert_eq!(ask(&["site", &format!("+bufsize={bufsize}")]), ["10.91.1.9"]);
        }
        assert_eq!(ask(&["site", "+noedns"]), ["10.91.1.9"]);
        for host in ["host.internal", "host.docker.internal", "host.containers.internal"] {
            assert_eq!(ask(&[host]), ["10.91.1.1"], "{host}");
        }
        // A name on a network that one is not on is no name; a link is for the one that has it.
        assert_eq!(status(&asks, gateway, &["alone"]).unwrap(), "NXDOMAIN");
        assert_eq!(short(&both, gateway, &["alone"]).unwrap(), ["10.91.2.9"]);
        assert_eq!(status(&other, gateway, &["db"]).unwrap(), "NXDOMAIN");
        // A name that has no address of the family is there all the same.
        assert_eq!(status(&both, gateway, &["alone", "AAAA"]).unwrap(), "NOERROR");
        assert_eq!(ask(&["alone", "AAAA"]), [""; 0]);
        assert_eq!(status(&asks, gateway, &["site", "TXT"]).unwrap(), "NOERROR");
    }
    world.portolan_ok(&["detach", "site"]);
    assert_eq!(
        status(&asks, pick(Family::V4, "10.91.1.1", ""), &["site"]).unwrap(),
        "NXDOMAIN",
        "gone when the verb returns"
    );
    world.verify();
}

/// The resolvers of glibc and musl, by way of the files that `run` writes.
#[test]
fn the_c_libraries_find_names() {
    let _turn = beside_others();
    let Some(world) = world("libc") else { return };
    world.network("web", &["--subnet", "10.91.1.0/24", "--subnet", "fd91:1::/64"]);
    world.container("site", &["--network", "name=web,ip=10.91.1.9,ip6=fd91:1::9"]);
    let run = |args: &[&str]| world.portolan_ok(&[&["run", "--rm", "--network", "web", "--"], args].concat());
    assert!(run(&["getent", "ahostsv4", "site"]).starts_with("10.91.1.9 "));
    assert!(run(&["getent", "ahostsv6", "site"]).starts_with("fd91:1::9 "));
    assert!(run(&["getent", "hosts", "10.91.1.9"]).ends_with("site.web\n"));

    let source = world.lab.dir().join("ask.c");
    let program = world.lab.dir().join("ask");
    std::fs::write(
        &source,
        r#"#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *all;
    int error = getaddrinfo(argv[1], 0, &hints, &all);
    if (error) { puts(gai_strerror(error)); return 1; }
    for (struct addrinfo *a = all; a; a = a->ai_next) {
        char text[64];
        getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
        puts(text);
    }
}"#,
    )
    .unwrap();
    let compiled = Command::new("musl-gcc").args(["-static", "-o"]).args([&program, &source]).status();
    if !compiled.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI must have musl-gcc");
        eprintln!("SKIP: no musl-gcc");
        return;
    }
    let program = program.to_str().unwrap();
    for name in ["site", "site.web", "SITE"] {
        let mut found: Vec<String> = run(&[program, name]).lines().map(str::to_owned).collect();
        found.sort();
        assert_eq!(found, ["10.91.1.9", "fd91:1::9"], "{name}");
    }
    let missing = world.portolan(&["run", "--rm", "--network", "web", "--", program, "nobody"]);
    assert_eq!(String::from_utf8_lossy(&missing.stdout), "Name does not resolve\n");
}

#[test]
fn what_is_not_ours_is_asked_upstream() {
    let _turn = beside_others();
    let Some(mut world) = world("upstream") else { return };
    let resolv_conf = world.lab.dir().join("resolv.conf");
    let write = |server: &str| {
        // As tools do it: a new file in place of the old.
        let fresh = resolv_conf.with_extension("new");
        std::fs::write(&fresh, format!("nameserver {server}\nsearch example.org\n")).unwrap();
        std::fs::rename(&fresh, &resolv_conf).unwrap();
    };
    write("10.0.1.2");
    world.environment.push(("PORTOLAN_RESOLV_CONF".into(), resolv_conf.clone().into()));
    let first = Upstream::start(&world.n, "10.0.1.2:53".parse().unwrap(), [192, 0, 2, 1]);
    world.second_address("10.0.1.3/24");
    world.second_address("10.0.1.4/24");
    let second = Upstream::start(&world.n, "10.0.1.3:53".parse().unwrap(), [192, 0, 2, 2]);
    let own = Upstream::start(&world.n, "10.0.1.4:53".parse().unwrap(), [192, 0, 2, 3]);

    world.network("web", &["--subnet", "10.91.1.0/24"]);
    world.network("inside", &["--subnet", "10.91.2.0/24", "--internal"]);
    world.network("chosen", &["--subnet", "10.91.3.0/24", "--dns", "10.0.1.4"]);
    let asks = world.container("asks", &["--network", "web"]);
    let inside = world.container("inside", &["--network", "inside"]);
    let chosen = world.container("chosen", &["--network", "chosen"]);
    let gateway = |n: u8| IpAddr::from([10, 91, n, 1]);
    let Some(answer) = short(&asks, gateway(1), &["example.com"]) else { return };
    assert_eq!(answer, ["192.0.2.1"]);
    assert_eq!(first.asked(), 1);
    assert_eq!(short(&asks, gateway(1), &["EXAMPLE.com"]).unwrap(), ["192.0.2.1"]);
    assert_eq!(first.asked(), 1, "it was remembered");

    // Names of ours never leave, whatever the search list makes of them; nor do names without a dot.
    for name in ["asks", "asks.web", "asks.example.org", "nobody", "nobody.web"] {
        status(&asks, gateway(1), &[name]).unwrap();
    }
    assert_eq!(first.asked(), 1);
    // Nothing leaves an internal network.
    assert_eq!(status(&inside, gateway(2), &["example.com"]).unwrap(), "NXDOMAIN");
    assert_eq!(first.asked(), 1);
    // A network's own servers, and a container's.
    assert_eq!(short(&chosen, gateway(3), &["example.com"]).unwrap(), ["192.0.2.3"]);
    assert_eq!(own.asked(), 1);
    let text = world.portolan_ok(&[
        "run",
        "--rm",
        "--network",
        "web",
        "--dns",
        "10.0.1.4",
        "--",
        "dig",
        "+short",
        "example.net",
    ]);
    assert_eq!(text, "192.0.2.3\n");
    assert_eq!((first.asked(), own.asked()), (1, 2));

    // The host changes its mind.
    write("10.0.1.3");
    let started = Instant::now();
    assert!(eventually(LONG, || short(&asks, gateway(1), &["example.com"]).unwrap() == ["192.0.2.2"]));
    eprintln!("followed after {:?}", started.elapsed());
    assert!(second.asked() >= 1);
}

/// A published port 53 does not catch questions, and no question is tracked as a connection.
#[test]
fn questions_cross_neither_translation_nor_tracking() {
    let _turn = beside_others();
    let Some(world) = world("notrack") else { return };
    world.network("web", &["--subnet", "10.91.1.0/24", "--subnet", "fd91:1::/64"]);
    let site = world.container("site", &["--network", "web", "-p", "53:53/udp", "-p", "53:53/tcp"]);
    let thief = portolan_lab::server::UdpServer::start(&site, any(Family::V6, 53), "thief").unwrap();
    let asks = world.container("asks", &["--network", "name=web,ip=10.91.1.9"]);
    for family in [Family::V4, Family::V6] {
        let gateway = pick(family, "10.91.1.1", "fd91:1::1");
        let Some(found) = short(&asks, gateway, &["asks"]) else { return };
        assert_eq!(found, ["10.91.1.9"]);
        assert_eq!(short(&asks, gateway, &["asks", "+tcp"]).unwrap(), ["10.91.1.9"]);
    }
    assert_eq!(thief.datagrams(), 0);
    let tracked = output(&world.h, "conntrack", &["-L"]);
    assert!(!tracked.unwrap_or_default().contains("dport=53 "), "no question is a connection");
    // The world still reaches the published port.
    let probe = portolan_lab::probe::udp_probe(&world.n, at(host_ip(Family::V4), 53), LONG);
    assert_eq!(probe.banner(), Some("thief"), "{probe}");
}

/// A question on the wire (RFC 1035 §4.1).
fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// A hundred thousand questions while names come and go, and the daemon is upgraded and killed.
#[test]
fn no_question_is_lost() {
    const SOCKETS: usize = 4;
    const EACH: usize = 25_000;
    const STAY: usize = 8;
    let _alone = TURN.write().unwrap_or_else(PoisonError::into_inner);
    let Some(world) = world("storm") else { return };
    world.network("web", &["--subnet", "10.91.0.0/16"]);
    let names: Vec<String> = (0..STAY).map(|n| format!("stays{n}")).collect();
    let _stay: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| world.container(name, &["--network", &format!("name=web,ip=10.91.1.{n}")]))
        .collect();
    let asks = world.container("asks", &["--network", "web"]);
    let spare: Vec<_> = (0..4).map(|n| world.lab.host(&format!("s{n}")).unwrap()).collect();
    // When which question was asked, and whether it was answered.
    let logs: [Mutex<Vec<(Duration, Answered)>>; SOCKETS] = Default::default();
    let all_answered = |from: Duration, to: Duration| {
        logs.iter().all(|log| {
            let log = log.lock().unwrap();
            let within = log.iter().rev().skip_while(|(at, _)| *at > to).take_while(|(at, _)| *at >= from);
            within.into_iter().all(|(_, answered)| *answered != Answered::Never)
        })
    };

    let began = Instant::now();
    let is_done = AtomicBool::new(false);
    let (kills, upgrades) = std::thread::scope(|scope| {
        let clients: Vec<_> = logs
            .iter()
            .map(|log| {
                let socket = with_netns(asks.netns(), || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
                socket.connect("10.91.0.1:53").unwrap();
                // What the client itself has no time to read is not lost.
                rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20).unwrap();
                let names = &names;
                scope.spawn(move || client(&socket, names, EACH, began, log))
            })
            .collect();
        let disturber = scope.spawn(|| {
            let (mut kills, mut upgrades) = (Vec::<(Duration, Duration)>::new(), 0);
            for round in 0.. {
                if is_done.load(Ordering::Relaxed) {
                    break;
                }
                let host = &spare[round % spare.len()];
                let path = host.netns_path().to_str().unwrap();
                let name = format!("comes{}", round % spare.len());
                world.portolan_ok(&["attach", "--netns", path, "--name", &name, "--network", "web"]);
                match round % 3 {
                    0 => {
                        world.portolan_ok(&["daemon", "upgrade"]);
                        upgrades += 1;
                    }
                    1 => {
                        let status = world.json(&["daemon", "status"]);
                        let process = PidFd::open(status["pid"].as_i64().unwrap() as i32).unwrap();
                        // What was asked until now is answered, or it was lost without anybody's being killed.
                        let since = kills.last().map_or(Duration::ZERO, |(_, killed)| *killed);
                        let now = began.elapsed();
                        assert!(eventually(LONG, || all_answered(since, now)), "lost between {since:?} and {now:?}");
                        process.signal(signals::KILL).unwrap();
                        // Until it is gone it may have read.
                        assert!(process.wait_readable(LONG).unwrap(), "it outlives the signal");
                        kills.push((now, began.elapsed()));
                    }
                    _ => {}
                }
                world.portolan_ok(&["detach", &name]);
            }
            (kills, upgrades)
        });
        for client in clients {
            client.join().unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
        disturber.join().unwrap()
    });
    let asked: Vec<(Duration, Answered)> = logs.into_iter().flat_map(|log| log.into_inner().unwrap()).collect();
    let wrong = asked.iter().filter(|(_, answered)| *answered == Answered::Wrongly).count();
    let lost: Vec<Duration> = asked.iter().filter(|(_, a)| *a == Answered::Never).map(|(at, _)| *at).collect();
    eprintln!(
        "{} questions in {:?}, {upgrades} upgrades, {} kills: {} lost, {wrong} wrong",
        asked.len(),
        began.elapsed(),
        kills.len(),
        lost.len()
    );
    assert_eq!(wrong, 0);
    assert!(upgrades > 2 && kills.len() > 2);
    // What a killed process had read is gone with it; nothing else is.
    let is_by_kill = |at: &Duration| kills.iter().any(|(asked, killed)| at >= asked && at <= killed);
    let beyond: Vec<&Duration> = lost.iter().filter(|at| !is_by_kill(at)).collect();
    assert!(beyond.is_empty(), "lost at {beyond:?}, killed at {kills:?}");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Never,
    Rightly,
    Wrongly,
}

/// Asks `count` questions at a steady rate, whether answers come or not; waits for the last of them.
fn client(socket: &UdpSocket, names: &[String], count: usize, began: Instant, log: &Mutex<Vec<(Duration, Answered)>>) {
    // The server's socket has room for some seconds of this: a machine that is busy elsewhere loses none.
    const RATE: u32 = 1250;
    socket.set_nonblocking(true).unwrap();
    let mut bytes = [0; 512];
    let mut receive = || {
        while let Ok(length) = socket.recv(&mut bytes) {
            let id = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
            let right = [10, 91, 1, (id % names.len()) as u8];
            let is_right = bytes[3] & 15 == 0 && bytes[7] == 1 && bytes[length - 4..length] == right;
            log.lock().unwrap()[id].1 = if is_right { Answered::Rightly } else { Answered::Wrongly };
        }
    };
    let started = Instant::now();
    for id in 0..count {
        receive();
        log.lock().unwrap().push((began.elapsed(), Answered::Never));
        let sent = socket.send(&question(id as u16, &names[id % names.len()], 1));
        assert!(sent.is_ok(), "{sent:?}");
        let due = Duration::from_secs(1) / RATE * (id as u32 + 1);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
    }
    let is_answered = |(_, answered): &(Duration, Answered)| *answered != Answered::Never;
    let last = Instant::now();
    while last.elapsed() < Duration::from_secs(3) && !log.lock().unwrap().iter().all(is_answered) {
        receive();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The C libraries ask for both families at once from one socket, and wait five seconds where one answer gets lost.
///
/// Half of the names are ours, one of them with both families, the other half are an upstream's.
#[test]
fn parallel_pairs_are_all_answered() {
    const PAIRS: usize = 200_000;
    const SOCKETS: usize = 64;
    const AT_ONCE: usize = 4;
    const UPSTREAM: [u8; 4] = [198, 51, 100, 99];
    let _turn = beside_others();
    let pairs =
        std::env::var("PORTOLAN_PAIRS").map_or(PAIRS, |pairs| pairs.parse().expect("PORTOLAN_PAIRS is a number"));
    let Some(mut world) = world("pairs") else { return };
    let upstream = Upstream::start(&world.n, at(neighbour_ip(Family::V4), 53), UPSTREAM);
    let resolv = world.lab.dir().join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {}\n", neighbour_ip(Family::V4))).unwrap();
    world.environment.push(("PORTOLAN_RESOLV_CONF".into(), resolv.into()));
    world.network("web", &["--ipv6", "--subnet", "10.91.0.0/16", "--subnet", "fd00:91::/64"]);
    let both = world.container("both", &["--network", "web"]);
    let asks = world.container("asks", &["--network", "web"]);
    let server = SocketAddr::new(asks.gateway(Family::V4), 53);
    let (v4, v6) = (octets(both.ip(Family::V4)), octets(both.ip(Family::V6)));
    // Each name with the addresses it has by either family.
    let names: [(&str, Vec<u8>, Vec<u8>); 4] = [
        ("both", v4.clone(), v6.clone()),
        ("first.example.org", UPSTREAM.to_vec(), Vec::new()),
        ("both.web", v4, v6),
        ("second.example.org", UPSTREAM.to_vec(), Vec::new()),
    ];

    let sockets: Vec<UdpSocket> = (0..SOCKETS)
        .map(|_| {
            let socket = with_netns(asks.netns(), || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
            socket.connect(server).unwrap();
            // What the C libraries wait before they ask again.
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        })
        .collect();
    let (mut asked, mut longest) = (0, Duration::ZERO);
    let began = Instant::now();
    while asked < pairs {
        let mut sent = Vec::new();
        for (place, socket) in sockets.iter().enumerate() {
            for turn in 0..AT_ONCE {
                let name = (place + turn) % names.len();
                for kind in [1, 28] {
                    let id = (name << 8 | turn << 6 | kind) as u16;
                    socket.send(&question(id, names[name].0, kind as u16)).unwrap();
                }
            }
            sent.push(Instant::now());
        }
        for (place, socket) in sockets.iter().enumerate() {
            let mut seen = Vec::new();
            for _ in 0..2 * AT_ONCE {
                let mut bytes = [0; 512];
                let length = socket.recv(&mut bytes).unwrap_or_else(|error| {
                    panic!("{error} after {asked} pairs; {} had answers {seen:x?}", names[place % names.len()].0)
                });
                let id = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
                let (_, v4, v6) = &names[id >> 8];
                let wanted = if id & 63 == 1 { v4 } else { v6 };
                assert_eq!((bytes[3] & 15, usize::from(bytes[7])), (0, usize::from(!wanted.is_empty())), "{id:x}");
                assert!(bytes[..length].ends_with(wanted), "{id:x}: {:02x?}", &bytes[..length]);
                assert!(!seen.contains(&id), "{id:x} was answered twice");
                seen.push(id);
            }
            longest = longest.max(sent[place].elapsed());
        }
        asked += SOCKETS * AT_ONCE;
    }
    eprintln!("{asked} pairs in {:?}, the longest took {longest:?}; upstream: {}", began.elapsed(), upstream.asked());
    assert!(upstream.asked() < 100, "answers are kept");
}
