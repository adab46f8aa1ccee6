//! Names per second beside Debian's aardvark-dns: the same names, the same client, turn by turn in one run.
//!
//! `cargo bench -p portolan-resident --bench dns`. Needs root; without aardvark-dns only ours is measured.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portolan_dns::{Endpoint, Network};
use portolan_kernel::udp::{BATCH, Inbox, Outbox};
use portolan_lab::{Host, Lab, eventually};
use portolan_model::Id;
use portolan_resident::dns::{Change, Config, DnsServer, HandOver};

const PEER: &str = "/usr/lib/podman/aardvark-dns";
const GATEWAY: &str = "10.98.0.1";
const NAMES: u64 = 100;
const ROUNDS: usize = 5;
const SPAN: Duration = Duration::from_secs(2);
/// Questions in flight when as many as possible are asked.
const WINDOW: usize = 2 * BATCH;
/// Asked one after the other, for how long one takes.
const SERIAL: usize = 20_000;

fn id(kind: u8, number: u64) -> Id {
    let mut bytes = [kind; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

fn address(number: u64) -> IpAddr {
    [10, 98, 1 + (number / 250) as u8, 1 + (number % 250) as u8].into()
}

fn network(number: u64, gateway: IpAddr) -> Network {
    Network {
        id: id(1, number),
        name: format!("network{number}"),
        gateways: vec![gateway],
        port: None,
        internal: false,
        upstreams: Vec::new(),
        subnets: vec!["10.98.0.0/16".parse().expect("a subnet")],
    }
}

fn endpoint(number: u64, network: u64, address: IpAddr) -> Endpoint {
    Endpoint {
        id: id(2, number),
        network: id(1, network),
        container: id(3, number),
        name: format!("container{number:03}"),
        names: vec![format!("{number:012x}"), format!("alias{number}")],
        addresses: vec![address],
        links: Vec::new(),
        services: Vec::new(),
        upstreams: Vec::new(),
        search: Vec::new(),
        is_well: true,
    }
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8]);
    bytes.extend(name.bytes());
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

fn client(container: &Host) -> UdpSocket {
    let socket = container.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    socket
}

/// Answers per second with [`WINDOW`] questions in flight, and those lost.
fn throughput(container: &Host, server: SocketAddr) -> (f64, usize) {
    let socket = client(container);
    let questions: Vec<_> =
        (0..NAMES).map(|number| question(number as u16, &format!("container{number:03}"))).collect();
    let (mut inbox, mut outbox) = (Inbox::new(512), Outbox::new());
    let (mut next, mut answered, mut lost, mut in_flight) = (0, 0, 0, 0);
    let start = Instant::now();
    while start.elapsed() < SPAN {
        while in_flight < WINDOW {
            let count = BATCH.min(WINDOW - in_flight);
            for _ in 0..count {
                outbox.message(server).extend_from_slice(&questions[next % questions.len()]);
                next += 1;
            }
            in_flight += count - outbox.send(socket.as_fd());
        }
        let readable = portolan_kernel::socket::wait_readable([socket.as_fd()], Some(Duration::from_millis(200)));
        if !readable.expect("poll works")[0] {
            lost += in_flight;
            in_flight = 0;
            continue;
        }
        let count = inbox.receive(socket.as_fd()).unwrap_or(0);
        for index in 0..count {
            let (bytes, _) = inbox.message(index).expect("short answers");
            assert!(bytes[3] & 15 == 0 && bytes[7] == 1, "one address: {bytes:02x?}");
        }
        answered += count;
        in_flight = in_flight.saturating_sub(count);
    }
    (answered as f64 / start.elapsed().as_secs_f64(), lost)
}

/// How long each answer takes, asked one after the other; a lost one counts as the second that was waited for it.
fn serial(container: &Host, server: SocketAddr) -> Vec<Duration> {
    let socket = client(container);
    let start = Instant::now();
    (0..SERIAL)
        .take_while(|_| start.elapsed() < 5 * SPAN)
        .map(|number| {
            let bytes = question(number as u16, &format!("container{:03}", number as u64 % NAMES));
            let sent = Instant::now();
            socket.send_to(&bytes, server).expect("the network is up");
            let mut answer = [0; 512];
            let _ = socket.recv(&mut answer);
            sent.elapsed()
        })
        .collect()
}

/// So many of a thousand answers took no longer than this.
fn quantile(times: &mut [Duration], thousandth: usize) -> Duration {
    times.sort();
    times[times.len() * thousandth / 1000]
}

/// How long each answer takes while another container asks as fast as it can and reads no answer; how fast that was.
fn beside_a_flood(container: &Host, other: &Host, server: SocketAddr) -> (Vec<Duration>, f64) {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let socket = client(other);
            let bytes = question(9, "container009");
            let (mut outbox, mut sent, start) = (Outbox::new(), 0, Instant::now());
            while !is_done.load(Ordering::Relaxed) && start.elapsed() < 10 * SPAN {
                (0..BATCH).for_each(|_| outbox.message(server).extend_from_slice(&bytes));
                sent += BATCH - outbox.send(socket.as_fd());
            }
            sent as f64 / start.elapsed().as_secs_f64()
        });
        let times = std::panic::catch_unwind(|| serial(container, server));
        is_done.store(true, Ordering::Relaxed);
        let rate = flood.join().expect("it only sends");
        (times.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), rate)
    })
}

/// The peer, which goes with this value.
struct Peer {
    child: Child,
    pid: Option<i32>,
}

impl Peer {
    fn start(host: &Host, directory: &Path) -> Self {
        let config = directory.join("peer");
        fs::create_dir_all(&config).expect("a directory");
        let mut text = format!("{GATEWAY}\n");
        for number in 0..NAMES {
            let id = id(3, number);
            text += &format!("{id} {}  container{number:03},{number:012x},alias{number}\n", address(number));
        }
        fs::write(config.join("network0"), text).expect("a file");
        let mut command = host.adopt(Command::new(PEER)).expect("a command in the namespace");
        command.arg("--config").arg(&config).args(["-p", "53", "run"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it was looked for");
        let mut pid = None;
        let started = eventually(Duration::from_secs(10), || {
            let text = fs::read_to_string(config.join("aardvark.pid")).unwrap_or_default();
            pid = text.trim().parse().ok();
            pid.is_some()
        });
        assert!(started, "aardvark-dns writes its process id");
        Self { child, pid }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/status").expect("there is a /proc");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has a size");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn main() {
    let Some(lab) = Lab::or_skip("dns bench") else { return };
    let host = lab.host("host").expect("a host");
    let container = lab.host("container").expect("a container");
    let other = lab.host("other").expect("a container");
    let addresses = [0, 1].map(|number| format!("{}/16", address(number)));
    let ends: [(&Host, &str, &[&str]); 3] =
        [(&host, "br0", &["10.98.0.1/16"]), (&container, "eth0", &[&addresses[0]]), (&other, "eth0", &[&addresses[1]])];
    let _lan = lab.lan("lan", &ends).expect("a network");
    let at: SocketAddr = SocketAddr::new(GATEWAY.parse().expect("an address"), 53);
    let has_peer = Path::new(PEER).exists();
    let mut rates: [Vec<f64>; 2] = Default::default();
    let mut times: [Vec<Duration>; 2] = Default::default();
    let mut flooded: [Vec<Duration>; 2] = Default::default();
    let mut report = |name: &str, place: usize| {
        // The peer has no way to say that it is ready.
        let socket = client(&container);
        assert!(eventually(Duration::from_secs(10), || {
            let _ = socket.send_to(&question(0, "container000"), at);
            socket.recv(&mut [0; 512]).is_ok()
        }));
        let (rate, lost) = throughput(&container, at);
        let mut alone = serial(&container, at);
        let (mut beside, flood) = beside_a_flood(&container, &other, at);
        println!(
            "{name:14} {rate:9.0} answers/s ({lost} lost), one by one: median {:?}, p99 {:?}, beside {flood:.0}/s: p99 {:?}",
            quantile(&mut alone, 500),
            quantile(&mut alone, 990),
            quantile(&mut beside, 990)
        );
        rates[place].push(rate);
        times[place].extend(alone);
        flooded[place].extend(beside);
    };
    for _ in 0..ROUNDS {
        let server = host.enter(|| DnsServer::start(HandOver::default(), Config::default())).expect("a server");
        let mut changes = vec![Change::PutNetwork(network(0, at.ip()))];
        changes.extend((0..NAMES).map(|number| Change::PutEndpoint(endpoint(number, 0, address(number)))));
        server.update(changes);
        assert_eq!(server.barrier().expect("it runs"), []);
        report("portolan", 0);
        drop(server);
        if has_peer {
            let peer = Peer::start(&host, lab.dir());
            report("aardvark-dns", 1);
            drop(peer);
            fs::remove_dir_all(lab.dir().join("peer")).expect("it was there");
        }
    }
    let best = |place: usize| rates[place].iter().copied().fold(0.0, f64::max);
    if has_peer {
        println!("best of {ROUNDS}: {:.1} times the answers of aardvark-dns", best(0) / best(1));
        for (what, times) in [("alone", &mut times), ("beside a flood", &mut flooded)] {
            let [ours, peer] = times.each_mut().map(|times| quantile(times, 990));
            println!("p99 of all rounds, {what}: {ours:?}, aardvark-dns {peer:?}");
        }
    }

    let before = resident_bytes();
    let server = host.enter(|| DnsServer::start(HandOver::default(), Config::default())).expect("a server");
    let mut changes = Vec::new();
    for number in 0..1000u64 {
        let gateway = IpAddr::from([172, 16 + (number >> 8) as u8, number as u8, 1]);
        changes.push(Change::PutNetwork(network(number, gateway)));
        for place in 0..10 {
            changes.push(Change::PutEndpoint(endpoint(number * 10 + place, number, address(place))));
        }
    }
    let start = Instant::now();
    server.update(changes);
    assert_eq!(server.barrier().expect("it runs"), []);
    let took = start.elapsed();
    let one = Instant::now();
    server.update(vec![Change::PutEndpoint(endpoint(3, 0, address(200)))]);
    server.barrier().expect("it runs");
    println!(
        "1,000 networks of 10 containers: {:.1} MiB, {took:?} to load; then one change takes {:?}",
        (resident_bytes() - before) as f64 / f64::from(1 << 20),
        one.elapsed()
    );
}
