//! One client must not keep the name server from the others, whatever it does with its connections.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portolan_kernel::netns::with_netns;
use portolan_lab::{InNetns, eventually};

use crate::common::*;
use crate::table::{Row, row};

/// So many answers make a median.
const ASKED: usize = 100;
/// A median under attack may be so many times that of before, some hundredths of a second: attackers, client and server share a
/// processor or two.
const SLOWER: u32 = 500;
/// What one address may have open, and more than all may have.
const MANY: usize = 1500;
/// A whole question is longer than this.
const PART: usize = 9;

/// A question for the address of `name` (RFC 1035 §4.1).
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.push(name.len() as u8);
    bytes.extend(name.as_bytes());
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The same with its length before it, as it goes over TCP.
fn framed(name: &str) -> Vec<u8> {
    let question = question(7, name);
    [&(question.len() as u16).to_be_bytes()[..], &question].concat()
}

/// Asks over a TCP connection of its own; how long that took, if it was answered within `patience`.
fn ask_by_tcp(from: &impl InNetns, server: SocketAddr, patience: Duration) -> Option<Duration> {
    let began = Instant::now();
    let mut stream = with_netns(from.netns(), || TcpStream::connect_timeout(&server, patience)).unwrap().ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(&framed("good")).ok()?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).ok()?;
    // One answer, no error.
    (answer[3] & 15 == 0 && answer[6..8] == [0, 1]).then(|| began.elapsed())
}

/// The medians over UDP and over TCP; panics if a question is not answered.
fn medians(from: &impl InNetns, server: SocketAddr, what: &str) -> [Duration; 2] {
    let socket = with_netns(from.netns(), || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let by_udp = |number: usize| {
        let began = Instant::now();
        socket.send(&question(number as u16, "good")).unwrap();
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{what}: no answer by UDP: {error}"));
        assert!(length > 12 && answer[6..8] == [0, 1], "{what}: {:?}", &answer[..length]);
        began.elapsed()
    };
    let by_tcp = |_| ask_by_tcp(from, server, LONG).unwrap_or_else(|| panic!("{what}: no answer by TCP"));
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (mut udp, mut tcp): (Vec<_>, Vec<_>) = (0..ASKED).map(|number| (by_udp(number), by_tcp(number))).unzip();
    [median(&mut udp), median(&mut tcp)]
}

/// What the malicious client does for as long as `go_on` holds.
type Nuisance = fn(&Container, SocketAddr, &AtomicBool);

fn connect(from: &Container, server: SocketAddr) -> Option<TcpStream> {
    with_netns(from.netns(), || TcpStream::connect_timeout(&server, LONG)).unwrap().ok()
}

/// Connects, says nothing, and connects again as soon as it is thrown out.
fn silent(from: &Container, server: SocketAddr, go_on: &AtomicBool) {
    let mut open = Vec::new();
    while go_on.load(Ordering::Relaxed) {
        open.extend(connect(from, server));
        if open.len() > MANY {
            open.clear();
        }
    }
}

/// Sends a byte of a question at a time, on as many connections as it may have.
fn trickling(from: &Container, server: SocketAddr, go_on: &AtomicBool) {
    let mut open: Vec<TcpStream> = Vec::new();
    while go_on.load(Ordering::Relaxed) {
        while open.len() < 32 {
            open.extend(connect(from, server));
        }
        open.retain_mut(|stream| stream.write_all(&[0]).is_ok());
    }
}

/// Begins a message and resets the connection.
fn resetting(from: &Container, server: SocketAddr, go_on: &AtomicBool) {
    while go_on.load(Ordering::Relaxed) {
        let Some(mut stream) = connect(from, server) else { continue };
        let _ = stream.write_all(&framed("good")[..PART]);
        reset(stream);
    }
}

/// Ends a connection by RST instead of FIN.
fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream.as_fd(), Some(Duration::ZERO)).unwrap();
}

/// Sends questions and never reads an answer.
fn deaf(from: &Container, server: SocketAddr, go_on: &AtomicBool) {
    while go_on.load(Ordering::Relaxed) {
        let Some(mut stream) = connect(from, server) else { continue };
        let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
        let many = framed("good").repeat(1000);
        while go_on.load(Ordering::Relaxed) && stream.write_all(&many).is_ok() {}
    }
}

/// What many name servers were: one connection after the other (CVE-2024-8418), and a read that failed is tried again
/// (CVE-2026-35406).
struct Naive {
    address: SocketAddr,
    /// Reads that failed.
    failures: &'static AtomicUsize,
}

impl Naive {
    fn start(place: &impl InNetns, ip: IpAddr) -> Self {
        let listener = with_netns(place.netns(), || TcpListener::bind((ip, 0)).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let failures: &AtomicUsize = Box::leak(Box::default());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve_naively(stream, failures);
            }
        });
        Self { address, failures }
    }
}

/// So many failures are enough to tell that it would go on for good.
const FOR_GOOD: usize = 100_000;

/// Answers a client until it goes.
fn serve_naively(mut stream: TcpStream, failures: &AtomicUsize) {
    let wanted = framed("good").len();
    let mut chunk = [0; 512];
    let mut failed = 0;
    let mut message = Vec::new();
    loop {
        while message.len() < wanted {
            match stream.read(&mut chunk) {
                Ok(length) if length > 0 => message.extend(&chunk[..length]),
                _ if message.is_empty() || failed >= FOR_GOOD => return,
                _ => {
                    failed += 1;
                    failures.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        let mut answer: Vec<u8> = message.drain(..wanted).collect();
        answer[4] = 0x81;
        answer[9] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        let length = (answer.len() as u16 - 2).to_be_bytes();
        answer[..2].copy_from_slice(&length);
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

/// What a process has worked so far, in clock ticks (`utime` and `stime`, proc_pid_stat(5)).
fn ticks_of(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(')').unwrap().1;
    rest.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

pub(crate) fn case() -> Option<Vec<Row>> {
    let mut world = World::or_skip("sec-dns")?;
    world.daemon = true;
    world.network("web", &["--subnet", "10.91.1.0/24", "--ipv6=false"]);
    let good = world.container("good", &["--network", "web"]);
    let evil = world.container("evil", &["--network", "web"]);
    let server = at("10.91.1.1".parse().unwrap(), 53);
    let pid = world.json(&["daemon", "status"])["pid"].as_i64().unwrap() as i32;
    let own_pid = std::process::id().cast_signed();
    let mut rows = Vec::new();

    // Where nothing keeps them off: a container that answers names itself.
    let naive = Naive::start(&good, good.on("web").v4.unwrap());
    assert!(ask_by_tcp(&evil, naive.address, LONG).is_some(), "it answers at all");
    let silence = connect(&evil, naive.address).unwrap();
    assert_eq!(ask_by_tcp(&good, naive.address, SHORT), None, "it was to be kept by one client");
    drop(silence);
    assert!(eventually(LONG, || ask_by_tcp(&good, naive.address, SHORT).is_some()), "it goes on");
    let mut slow = connect(&evil, naive.address).unwrap();
    slow.write_all(&[0]).unwrap();
    assert_eq!(ask_by_tcp(&good, naive.address, SHORT), None, "it was to be kept by a slow client");
    drop(slow);
    assert!(eventually(LONG, || ask_by_tcp(&good, naive.address, SHORT).is_some()), "it goes on");
    let before = naive.failures.load(Ordering::Relaxed);
    let mut half = connect(&evil, naive.address).unwrap();
    half.write_all(&framed("good")[..PART]).unwrap();
    reset(half);
    let spins = || naive.failures.load(Ordering::Relaxed) >= before + FOR_GOOD;
    assert!(eventually(LONG, spins), "it was to read on for good");

    let goes_on = || ask_by_tcp(&good, naive.address, SHORT).is_some();
    assert!(eventually(LONG, goes_on), "it goes on");
    // It writes until there is no room, and then reads no more.
    let mut full = connect(&evil, naive.address).unwrap();
    full.set_write_timeout(Some(SHORT)).unwrap();
    let many = framed("good").repeat(1000);
    while full.write_all(&many).is_ok() {}
    assert_eq!(ask_by_tcp(&good, naive.address, SHORT), None, "it was to be kept by a client that does not read");
    drop(full);
    assert!(eventually(LONG, goes_on), "it goes on");

    let calm = medians(&good, server, "before");
    let kinds: [(&str, &str, Nuisance); 4] = [
        ("connections that say nothing, as many as there can be", "one keeps all others waiting", silent),
        ("questions that come a byte at a time", "one keeps all others waiting", trickling),
        ("half a question, then RST", "read over and over: all of a processor", resetting),
        ("questions whose answers are not read", "one keeps all others waiting", deaf),
    ];
    for (what, elsewhere, nuisance) in kinds {
        let go_on = AtomicBool::new(true);
        let under = std::thread::scope(|scope| {
            let nuisances = [0; 2].map(|_| scope.spawn(|| nuisance(&evil, server, &go_on)));
            let under = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| medians(&good, server, what)));
            go_on.store(false, Ordering::Relaxed);
            nuisances.into_iter().for_each(|nuisance| nuisance.join().unwrap());
            under.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        eprintln!("{what}: medians {calm:?} before, {under:?} under it");
        for (calm, under) in calm.into_iter().zip(under) {
            assert!(under < calm * SLOWER, "{what}: {calm:?} before, {under:?} under it");
        }
        // What is over keeps nobody busy: while one thread here works so long, the daemon does next to nothing.
        let (own, daemon) = (ticks_of(own_pid), ticks_of(pid));
        while ticks_of(own_pid) < own + 50 {
            std::hint::black_box(own);
        }
        let daemon = ticks_of(pid) - daemon;
        assert!(daemon < 10, "{what}: the daemon goes on working: {daemon} ticks beside 50");
        rows.push(row(what, elsewhere, "others are answered; afterwards the daemon rests"));
    }
    assert_eq!(world.json(&["daemon", "status"])["pid"].as_i64(), Some(pid.into()), "it is the same daemon");
    Some(rows)
}
