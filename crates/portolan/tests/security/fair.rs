//! One container takes what is there for all: entries in the kernel's table of connections, answers of the name server.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portolan_kernel::conntrack::{self, ASSURED, Fill, Filter};
use portolan_kernel::netlink::{NETFILTER, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family::V4;
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::TcpServer;
use portolan_lab::{Host, InNetns, eventually};

use crate::common::{Container, Wire, World, any, at, host_ip, interface, ip_frame, neighbour_ip};
use crate::row::{FAIR, Row};

/// How long a connection may take to come about: longer than until a lost segment is sent once more.
const PATIENCE: Duration = Duration::from_secs(3);
/// So many connections of the others tell 99.9 % from less.
const ENOUGH: usize = 1000;
/// Frames from one side before the other has its turn.
const TURN: usize = 4096;
/// Connections that the others began.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    tried: usize,
    failed: usize,
    slowest: Duration,
}

impl Tally {
    fn assert_fair(&self, what: &str) {
        eprintln!(
            "{what}: of {} connections of the others {} failed, the slowest took {:?}",
            self.tried, self.failed, self.slowest
        );
        assert!(self.tried >= ENOUGH && self.failed * 1000 <= self.tried, "{what}: {self:?}");
    }
}

/// A greedy container on a network of its own, others on another, and who answers them.
struct Stage {
    world: World,
    bad: Container,
    web: Container,
    other: Container,
    servers: Vec<TcpServer>,
    out: Wire,
    lan: Wire,
    /// Of the container and its gateway; of the neighbour and the host.
    macs: [([u8; 6], [u8; 6]); 2],
}

impl Stage {
    fn or_skip(name: &str, daemon: bool) -> Option<Self> {
        let mut world = World::or_skip(name)?;
        world.daemon = daemon;
        world.network("greedy", &["--ipv6=false"]);
        world.network("web", &["--ipv6=false"]);
        let bad = world.container("bad", &["--network", "greedy"]);
        let web = world.container("web", &["--network", "web", "-p", "8080:80"]);
        let other = world.container("other", &["--network", "web"]);
        // Nobody is to answer the flood but those who are to.
        for place in [&world.n, &bad.host] {
            silence(place);
        }
        let mac = |place: &Host, name: &str| interface(place, name).unwrap().mac.unwrap();
        let bridge = world.json(&["network", "inspect", "greedy"])[0]["Bridge"].as_str().unwrap().to_owned();
        let macs = [(bad.only().mac, mac(&world.h, &bridge)), (mac(&world.n, "eth0"), mac(&world.h, "eth0"))];
        let servers = vec![
            TcpServer::start(&web, any(V4, 80), "web").unwrap(),
            TcpServer::start(&world.n, any(V4, 80), "n").unwrap(),
        ];
        let (out, lan) = (Wire::on(&bad, "eth0"), Wire::on(&world.n, "eth0"));
        Some(Self { bad, web, other, servers, out, lan, macs, world })
    }

    /// The others begin connections in turn: to a published port from the LAN, from a container to the LAN, and from a container
    /// to the published port; until `stop`, and until there are `enough`.
    fn others(&self, stop: &AtomicBool, enough: usize) -> Tally {
        let published = at(host_ip(V4), 8080);
        let ways: [(&(dyn Fn(SocketAddr) -> bool + Sync), SocketAddr); 3] = [
            (&|to| tcp_probe(&self.world.n, to, PATIENCE).is_open(), published),
            (&|to| tcp_probe(&self.other, to, PATIENCE).is_open(), at(neighbour_ip(V4), 80)),
            (&|to| tcp_probe(&self.other, to, PATIENCE).is_open(), published),
        ];
        let mut tally = Tally::default();
        while !stop.load(Ordering::Relaxed) || tally.tried < enough {
            for (opens, to) in ways {
                let began = Instant::now();
                tally.failed += usize::from(!opens(to));
                tally.tried += 1;
                tally.slowest = tally.slowest.max(began.elapsed());
            }
        }
        tally
    }

    fn fill(&self) -> Fill {
        with_netns(self.world.h.netns(), || conntrack::fill(&mut Socket::open(NETFILTER).unwrap()).unwrap()).unwrap()
    }

    fn assured(&self) -> usize {
        let list = || conntrack::dump(&mut Socket::open(NETFILTER).unwrap(), Filter::default()).unwrap();
        with_netns(self.world.h.netns(), list).unwrap().iter().filter(|entry| entry.status & ASSURED != 0).count()
    }

    /// As many connections to the neighbour as the table holds, their handshakes completed by frames alone; how many the
    /// kernel counts on, so that it gives none of them up.
    fn handshakes(&self) -> usize {
        let max = self.fill().max.unwrap() as usize;
        for begin in (0..max + TURN).step_by(TURN) {
            self.shake(begin..begin + TURN);
        }
        self.assured()
    }

    /// As many that are ended at once by both, of which the kernel remembers each for two minutes; who makes them has the
    /// decency to wait while an eighth of the table is left.
    fn brief(&self) {
        let max = self.fill().max.unwrap();
        let (from, to) = (self.bad.ip(V4), neighbour_ip(V4));
        let mut first = Flood::tcp(self.macs[0], (from, to), FIN | ACK, (1, 1));
        let mut second = Flood::tcp(self.macs[1], (to, host_ip(V4)), FIN | ACK, (1, 2));
        let mut third = Flood::tcp(self.macs[0], (from, to), ACK, (2, 2));
        for begin in (0..max as usize + TURN).step_by(TURN) {
            let has_room = || self.fill().entries < max / 8 * 7;
            assert!(eventually(PATIENCE * 5, has_room), "after {begin}: {:?}", self.fill());
            let turn = begin..begin + TURN;
            self.shake(turn.clone());
            first.send(&self.out, turn.clone(), |from, to| (from, to));
            second.send(&self.lan, turn.clone(), |from, to| (to, from));
            third.send(&self.out, turn, |from, to| (from, to));
        }
    }

    /// The handshakes of some connections to the neighbour.
    fn shake(&self, turn: Range<usize>) {
        let (from, to) = (self.bad.ip(V4), neighbour_ip(V4));
        let mut first = Flood::tcp(self.macs[0], (from, to), SYN, (0, 0));
        // To the address that the container is masqueraded behind.
        let mut second = Flood::tcp(self.macs[1], (to, host_ip(V4)), SYN | ACK, (0, 1));
        let mut third = Flood::tcp(self.macs[0], (from, to), ACK, (1, 1));
        first.send(&self.out, turn.clone(), |from, to| (from, to));
        second.send(&self.lan, turn.clone(), |from, to| (to, from));
        third.send(&self.out, turn, |from, to| (from, to));
    }

    /// The first segments of as many connections as the table has entries.
    fn scan(&self) {
        let count = self.fill().max.unwrap() as usize;
        let mut scan = Flood::tcp(self.macs[0], (self.bad.ip(V4), "198.51.100.9".parse().unwrap()), SYN, (0, 0));
        scan.send(&self.out, 0..count, |from, to| (from, to));
    }

    fn under(&self, attack: impl FnOnce(), enough: usize) -> Tally {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let others = scope.spawn(|| self.others(&stop, enough));
            attack();
            stop.store(true, Ordering::Relaxed);
            others.join().unwrap()
        })
    }
}

/// Has the stack of `place` take no notice of the flood: it would reset what it knows nothing of.
fn silence(place: &Host) {
    for line in [
        "add table ip flood",
        "add chain ip flood in { type filter hook prerouting priority raw ; }",
        "add rule ip flood in tcp sport 1000-1999 drop",
        "add rule ip flood in tcp dport 1000-1999 drop",
    ] {
        let mut command = Command::new("nft");
        command.args(line.split(' '));
        assert!(place.adopt(command).unwrap().status().unwrap().success(), "nft {line}");
    }
}

/// Flags of TCP (RFC 9293 §3.1).
const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A TCP segment that is sent over and over with other ports.
struct Flood {
    frame: Vec<u8>,
    /// What the checksum comes to without the ports.
    sum: u32,
}

/// Ethernet and IPv4 without options.
const PORTS: usize = 34;
const CHECKSUM: usize = PORTS + 16;

impl Flood {
    /// With `numbers` of sequence and acknowledgement.
    fn tcp(macs: ([u8; 6], [u8; 6]), ips: (IpAddr, IpAddr), flags: u8, numbers: (u32, u32)) -> Self {
        let window = [0xff, 0xff, 0, 0, 0, 0];
        let numbers = [numbers.0.to_be_bytes(), numbers.1.to_be_bytes()].concat();
        let segment = [&[0; 4][..], &numbers, &[5 << 4, flags], &window].concat();
        let frame = ip_frame(macs, ips, 6, &segment);
        let pseudo = [&frame[26..34], &[0, 6, 0, segment.len() as u8]].concat();
        let words = pseudo.chunks_exact(2).chain(segment.chunks_exact(2));
        let sum = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        Self { frame, sum }
    }

    /// Sends those of `range`, each with two ports of its own, of which `sides` says which is which.
    fn send(&mut self, wire: &Wire, range: Range<usize>, sides: impl Fn(u16, u16) -> (u16, u16)) {
        for number in range {
            let (from, to) = sides((2000 + number % 60_000) as u16, (1000 + number / 60_000) as u16);
            self.frame[PORTS..PORTS + 2].copy_from_slice(&from.to_be_bytes());
            self.frame[PORTS + 2..PORTS + 4].copy_from_slice(&to.to_be_bytes());
            let mut sum = self.sum + u32::from(from) + u32::from(to);
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            self.frame[CHECKSUM..CHECKSUM + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            wire.send(&self.frame);
        }
    }
}

/// How long an answer may take; nobody asks twice.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// A question for the IPv4 address of `web` (RFC 1035 §4.1).
fn question(id: u16) -> Vec<u8> {
    let head = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&id.to_be_bytes()[..], &head, b"\x03web\x00", &[0, 1, 0, 1]].concat()
}

fn asking(from: &impl InNetns, server: SocketAddr) -> UdpSocket {
    let socket = with_netns(from.netns(), || UdpSocket::bind(any(V4, 0)).unwrap()).unwrap();
    socket.connect(server).unwrap();
    socket
}

/// What comes of `count` questions of one container while another asks as fast as two threads can and reads no answer.
fn questions(asker: &impl InNetns, flooder: &impl InNetns, server: SocketAddr, count: usize) -> Tally {
    let socket = asking(asker, server);
    socket.set_read_timeout(Some(ANSWERED_WITHIN)).unwrap();
    let is_answered = |id: u16| {
        socket.send(&question(id)).unwrap();
        let mut answer = [0; 512];
        // Late ones of earlier questions are passed over.
        std::iter::repeat_with(|| socket.recv(&mut answer).map(|_| answer[..2] == id.to_be_bytes()))
            .take_while(Result::is_ok)
            .any(|is_it| matches!(is_it, Ok(true)))
    };
    assert!(is_answered(0), "it answers at all");
    let stop = AtomicBool::new(false);
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let flood = asking(flooder, server);
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = flood.send(&question(1));
                }
            });
        }
        for id in (2..).take(count) {
            let began = Instant::now();
            tally.failed += usize::from(!is_answered(id));
            tally.tried += 1;
            tally.slowest = tally.slowest.max(began.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
    });
    tally
}

/// How long [`naive`] thinks about an answer: as if it looked it up somewhere.
const THOUGHT: Duration = Duration::from_micros(200);

/// A name server that answers in the order in which it is asked; its port.
fn naive(place: &impl InNetns) -> u16 {
    let socket = with_netns(place.netns(), || UdpSocket::bind(any(V4, 0)).unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut message) {
            let asked = Instant::now();
            while asked.elapsed() < THOUGHT {
                std::hint::spin_loop();
            }
            message[2] |= 0x80;
            let _ = socket.send_to(&message[..length], from);
        }
    });
    port
}

/// One container floods the name server of the network that it shares with another.
fn names(stage: &Stage) -> Row {
    let flooder = stage.world.container("chatty", &["--network", "web"]);
    let server = at(stage.other.gateway(V4), 53);
    questions(&stage.other, &flooder, server, ENOUGH).assert_fair("questions");
    let naive = at(stage.web.ip(V4), naive(&stage.web));
    let control = questions(&stage.other, &flooder, naive, 20);
    eprintln!(
        "a name server that answers in order: of {} questions {} were not answered",
        control.tried, control.failed
    );
    assert!(control.failed > 1, "nothing is lost, this proves nothing: {control:?}");
    Row {
        number: FAIR,
        attack: "a container asks the name server as fast as it can and reads no answer, while another on its network asks",
        control: "a name server that answers in the order in which it is asked, each in 0.2 ms: questions are lost",
        outcome: "at least 99.9 % of the other's are answered within a second, without asking twice".into(),
    }
}

/// How many connections each container has on the network of [`limited`], and how many are begun at most: what can be begun
/// while they are counted is far less.
const LIMIT: usize = 40;
const BEGUN: usize = 500 * LIMIT;

/// One container begins more connections than its network lets each have.
fn limited(stage: &Stage) -> Row {
    let world = &stage.world;
    world.network("few", &["--ipv6=false", "-o", &format!("connections={LIMIT}")]);
    let [hasty, modest] = ["hasty", "modest"].map(|name| world.container(name, &["--network", "few"]));
    let begins = |from: &Container| tcp_probe(from, at(neighbour_ip(V4), 80), PATIENCE).is_open();
    let begun = (0..BEGUN).take_while(|_| begins(&hasty)).count();
    assert!((LIMIT..BEGUN).contains(&begun), "{begun}");
    assert_eq!((0..LIMIT / 2).filter(|_| begins(&modest)).count(), LIMIT / 2, "others have as many as before");
    let told = world.portolan_ok(&["rules", "hasty"]);
    assert!(told.contains("more than its share"), "{begun}: {told}");
    let more = (0..begun + LIMIT).filter(|_| begins(&stage.other)).count();
    assert!(more > begun, "where there is no limit: {more}");
    // What is closed is remembered for two minutes; when it is not any more, it goes on.
    let mut forget = Command::new("conntrack");
    forget.args(["-D", "-s", &hasty.ip(V4).to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(world.h.adopt(forget).unwrap().status().unwrap().success());
    assert!(eventually(PATIENCE * 5, || begins(&hasty)), "it begins none any more");
    world.verify();
    Row {
        number: FAIR,
        attack: "a container begins connections, one after the other, on a network that lets it have 40 (`-o connections=40`)",
        control: "a container on a network without that: all come about",
        outcome: "soon it begins none any more, until it has few enough; another one on its network does".into(),
    }
}

/// How often the daemon held a container back.
fn held_back(world: &World) -> u64 {
    let ask = || {
        let mut stream = UnixStream::connect(world.root.join("run/metrics.sock")).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        // While it has other things to do it says so.
        text.lines().find_map(|line| line.strip_prefix("portolan_held_back_total "))?.parse().ok()
    };
    let mut count = None;
    assert!(
        eventually(PATIENCE * 5, || {
            count = ask();
            count.is_some()
        }),
        "no metrics"
    );
    count.unwrap()
}

/// One container has as many connections that are over soon. The control is an attack that follows.
fn brief(stage: &Stage) -> Row {
    let before = held_back(&stage.world);
    stage.brief();
    assert_eq!(held_back(&stage.world), before, "it is held back");
    assert!(tcp_probe(&stage.bad, at(neighbour_ip(V4), 80), PATIENCE).is_open(), "and goes on");
    Row {
        number: FAIR,
        attack: "a container and the neighbour complete and end as many connections as the table has entries, a few thousand at a time while there is room",
        control: "where they are not ended (above) the container is held back",
        outcome: "it is not: closed ones are forgotten, and it goes on".into(),
    }
}

pub(crate) fn rows() -> Option<Vec<Row>> {
    let here = Stage::or_skip("security-fair", true)?;
    let alone = Stage::or_skip("security-greedy", false)?;
    let began = Instant::now();
    let control = std::thread::spawn(move || {
        let assured = alone.handshakes();
        let fill = alone.fill();
        let tally = alone.under(|| {}, 9);
        eprintln!(
            "without the daemon: {fill:?}, {assured} of them; of {} connections of the others {} failed",
            tally.tried, tally.failed
        );
        assert!(tally.failed * 2 > tally.tried, "the table is not full, this proves nothing: {fill:?} {tally:?}");
    });
    let limited = limited(&here);
    let brief = brief(&here);
    let before = held_back(&here.world);
    here.under(|| here.scan(), ENOUGH).assert_fair("a scan");
    let mut left = 0;
    let attack = || {
        let is_told = || here.world.portolan_ok(&["rules", "bad"]).contains("more than its share");
        let told = std::thread::scope(|scope| {
            let told = scope.spawn(|| eventually(Duration::from_secs(120), is_told));
            left = here.handshakes();
            told.join().unwrap()
        });
        assert!(told, "`portolan rules` says nothing of it");
    };
    here.under(attack, ENOUGH).assert_fair("handshakes");
    let Fill { entries, max } = here.fill();
    eprintln!("{left} connections are left of them, {entries} of {max:?} entries, after {:?}", began.elapsed());
    assert!(entries < max.unwrap(), "the table is full");
    assert!(held_back(&here.world) > before, "it is told nowhere");
    here.world.verify();
    let names = names(&here);
    assert!(here.servers.iter().all(|server| server.connections() > 0));
    control.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let row = |attack, outcome: &str| Row {
        number: FAIR,
        attack,
        control: "the second one without the daemon: the table is full, and the others' connections fail",
        outcome: outcome.into(),
    };
    let fair = "at least 99.9 % of them come about";
    Some(vec![
        row(
            "a container sends first segments (SYN) as fast as it can, as many as the kernel's table of connections has room for, while others connect to a published port, to the LAN, and to each other through the host",
            fair,
        ),
        row(
            "a container and its accomplice on the LAN complete as many handshakes as the table has entries, of which the kernel gives up none, while the others do the same",
            fair,
        ),
        brief,
        names,
        limited,
    ])
}
