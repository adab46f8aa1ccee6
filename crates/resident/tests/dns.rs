//! The name server in network namespaces, asked by dig(1) and by clients of our own.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portolan_dns::{Endpoint, Network, ResolvConf, Service, Transport};
use portolan_lab::{Host, Lab, Lan, eventually};
use portolan_model::Id;
use portolan_resident::dns::{Change, Config, DnsServer, HandOver, ListenerEvent};
use rustix::net::{AddressFamily, SocketType};

fn id(number: u64) -> Id {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

/// A host with a gateway address on one network, and containers on it.
struct Scene {
    host: Host,
    containers: Vec<Host>,
    lan: Lan,
    // Last, as it removes the others.
    lab: Lab,
}

const GATEWAY: &str = "10.99.0.1";
const GATEWAY6: &str = "fd00:99::1";

impl Scene {
    /// Containers `c0`, `c1`, … at 10.99.0.10, .11, … and fd00:99::10, ….
    fn new(name: &str, count: usize) -> Option<Self> {
        let lab = Lab::or_skip(name)?;
        let host = lab.host("host").unwrap();
        let mut lan = lab.lan("lan", &[(&host, "br0", &["10.99.0.1/24", "fd00:99::1/64"])]).unwrap();
        let containers = (0..count)
            .map(|number| {
                let container = lab.host(&format!("c{number}")).unwrap();
                let v4 = format!("10.99.0.{}/24", 10 + number);
                let v6 = format!("fd00:99::{}/64", 10 + number);
                lan.connect(&container, "eth0", &[&v4, &v6]).unwrap();
                container
            })
            .collect();
        Some(Self { host, containers, lan, lab })
    }

    fn serve(&self, inherited: HandOver, config: Config) -> DnsServer {
        self.host.enter(|| DnsServer::start(inherited, config)).unwrap()
    }

    /// A server that knows network `front` and the containers.
    fn server(&self) -> DnsServer {
        let server = self.serve(HandOver::default(), Config::default());
        server.update(self.changes());
        assert_eq!(server.barrier().unwrap(), []);
        server
    }

    fn changes(&self) -> Vec<Change> {
        let mut changes = vec![Change::PutNetwork(network())];
        changes.extend((0..self.containers.len() as u64).map(|number| Change::PutEndpoint(endpoint(number))));
        changes
    }

    /// What dig says in `+short` form, its lines sorted.
    fn dig(&self, container: usize, arguments: &[&str]) -> Vec<String> {
        let mut lines = self.dig_text(container, &[&["+short"], arguments].concat());
        lines.sort();
        lines
    }

    /// The status that dig sees, `NOERROR` and others.
    fn status(&self, container: usize, arguments: &[&str]) -> String {
        let lines = self.dig_text(container, arguments);
        let line = lines.iter().find_map(|line| line.split_once("status: "));
        line.and_then(|(_, rest)| rest.split(',').next()).unwrap_or("no answer").to_owned()
    }

    fn dig_text(&self, container: usize, arguments: &[&str]) -> Vec<String> {
        let mut command = self.containers[container].command("dig").unwrap();
        // No file of this machine takes part.
        command.args(["-r", "+tries=1", "+time=6", "+nocookie"]);
        if !arguments.iter().any(|argument| argument.starts_with('@')) {
            command.arg(format!("@{GATEWAY}"));
        }
        let output = command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

fn network() -> Network {
    Network {
        id: id(1000),
        name: "front".into(),
        gateways: vec![GATEWAY.parse().unwrap(), GATEWAY6.parse().unwrap()],
        port: None,
        internal: false,
        upstreams: Vec::new(),
        subnets: vec!["10.99.0.0/24".parse().unwrap(), "fd00:99::/64".parse().unwrap()],
    }
}

fn endpoint(number: u64) -> Endpoint {
    Endpoint {
        id: id(2000 + number),
        network: id(1000),
        container: id(3000 + number),
        name: format!("c{number}"),
        names: vec![format!("host{number}"), "all".into()],
        addresses: vec![
            format!("10.99.0.{}", 10 + number).parse().unwrap(),
            format!("fd00:99::{}", 10 + number).parse().unwrap(),
        ],
        links: Vec::new(),
        services: vec![Service { transport: Transport::Tcp, port: 80 }],
        upstreams: Vec::new(),
        search: Vec::new(),
        is_well: true,
    }
}

#[test]
fn local_names_over_udp_and_tcp_and_both_families() {
    let Some(scene) = Scene::new("dns local", 2) else { return };
    let server = scene.server();
    for server in [GATEWAY, GATEWAY6] {
        let at = format!("@{server}");
        for transport in ["+notcp", "+tcp"] {
            for bufsize in ["+noedns", "+bufsize=4096"] {
                let dig = |arguments: &[&str]| scene.dig(0, &[&[&at[..], transport, bufsize], arguments].concat());
                assert_eq!(dig(&["c1"]), ["10.99.0.11"]);
                assert_eq!(dig(&["C1", "AAAA"]), ["fd00:99::11"]);
                assert_eq!(dig(&["c1.front"]), ["10.99.0.11"]);
                assert_eq!(dig(&["host1.portolan.internal"]), ["10.99.0.11"]);
                assert_eq!(dig(&["all"]), ["10.99.0.10", "10.99.0.11"]);
                assert_eq!(dig(&["-x", "10.99.0.11"]), ["c1.front."]);
                assert_eq!(dig(&["-x", "fd00:99::11"]), ["c1.front."]);
                assert_eq!(dig(&["_80._tcp.c1", "SRV"]), ["0 0 80 c1.front."]);
                assert_eq!(dig(&["host.internal"]), [GATEWAY]);
            }
        }
    }
    assert_eq!(scene.status(0, &["nobody"]), "NXDOMAIN");
    assert_eq!(scene.status(0, &["c1", "MX"]), "NOERROR");
    assert_eq!(scene.status(0, &["version.bind", "CH", "TXT"]), "REFUSED");
    assert_eq!(scene.status(0, &["+opcode=NOTIFY", "c1"]), "NOTIMP");
    let stats = server.stats().unwrap();
    assert_eq!(stats.questions, 2 * 2 * 2 * 9 + 4, "{stats:?}");
    let mine = stats.by_endpoint.iter().find(|seen| seen.id == id(2000)).unwrap();
    assert_eq!(mine.tally.local, 2 * 2 * 2 * 9 + 2);
    assert_eq!(scene.lab.name(), "dns local");
}

#[test]
fn a_change_is_seen_after_the_barrier() {
    let Some(scene) = Scene::new("dns changes", 2) else { return };
    let server = scene.server();
    for round in 0..20u8 {
        let address: IpAddr = [10, 99, 0, 100 + round].into();
        server.update(vec![Change::PutEndpoint(Endpoint { addresses: vec![address], ..endpoint(1) })]);
        server.barrier().unwrap();
        assert_eq!(scene.dig(0, &["c1"]), [address.to_string()]);
        server.update(vec![Change::RemoveEndpoint(endpoint(1).id)]);
        server.barrier().unwrap();
        assert_eq!(scene.status(0, &["c1"]), "NXDOMAIN");
    }
    server.update(vec![Change::RemoveNetwork(network().id)]);
    server.barrier().unwrap();
    assert_eq!(scene.status(0, &["+time=1", "c0"]), "no answer");
    assert_eq!(server.stats().unwrap().listeners, 0);
}

/// How a server of ours misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Sends forgeries before the truth.
    Lying,
    /// Has no room over UDP.
    Truncating,
    /// Loses upper case.
    Lower,
    /// Takes questions and says nothing.
    Silent,
}

/// An upstream at 10.99.0.`last`, which says 203.0.113.7 to everything.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _host: Host,
}

impl Upstream {
    fn start(scene: &mut Scene, last: u8, manner: Manner) -> Self {
        let host = scene.lab.host(&format!("u{last}")).unwrap();
        scene.lan.connect(&host, "eth0", &[&format!("10.99.0.{last}/24")]).unwrap();
        let address: SocketAddr = format!("10.99.0.{last}:53").parse().unwrap();
        let (udp, tcp) = host.enter(|| (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap()));
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        // So that the threads see `stop`.
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let by_udp = {
            let (asked, stop) = (asked.clone(), stop.clone());
            move || {
                let mut buffer = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((len, from)) = udp.recv_from(&mut buffer) else { continue };
                    asked.fetch_add(1, Ordering::Relaxed);
                    let mut answer = truth(&buffer[..len]);
                    let name_end = answer.len() - 16 - 4;
                    match manner {
                        Manner::Silent => continue,
                        Manner::Honest => {}
                        Manner::Lying => {
                            let mut lie = answer.clone();
                            let last = lie.len() - 1;
                            lie[last] = 66;
                            lie[0] ^= 0x55;
                            udp.send_to(&lie, from).unwrap();
                            lie[0] ^= 0x55;
                            lie[12..name_end].make_ascii_uppercase();
                            lie[13] = b'x';
                            udp.send_to(&lie, from).unwrap();
                        }
                        Manner::Truncating => {
                            answer[2] |= 2;
                            answer[7] = 0;
                            answer.truncate(answer.len() - 16);
                        }
                        Manner::Lower => answer[12..name_end].make_ascii_lowercase(),
                    }
                    // Who asked may be gone.
                    let _ = udp.send_to(&answer, from);
                }
            }
        };
        let by_tcp = {
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((mut stream, _)) = tcp.accept() else {
                        std::thread::park_timeout(Duration::from_millis(5));
                        continue;
                    };
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    if let Some(question) = read_message(&mut stream) {
                        let mut answer = truth(&question);
                        if manner == Manner::Lower {
                            let name_end = answer.len() - 16 - 4;
                            answer[12..name_end].make_ascii_lowercase();
                        }
                        let _ = stream.write_all(&framed(&answer));
                    }
                }
            }
        };
        let threads = vec![std::thread::spawn(by_udp), std::thread::spawn(by_tcp)];
        Self { address, asked, stop, threads, _host: host }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// The answer 203.0.113.7 with a time to live of 60 s.
fn truth(question: &[u8]) -> Vec<u8> {
    let mut end = 12;
    while question[end] != 0 {
        end += 1 + usize::from(question[end]);
    }
    let mut answer = question[..end + 5].to_vec();
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 7]);
    answer
}

/// A question for an address, by hand.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

fn read_message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

fn resolver(servers: &[SocketAddr]) -> Change {
    Change::HostResolver(ResolvConf { nameservers: servers.to_vec(), ..ResolvConf::default() })
}

#[test]
fn foreign_names_by_upstreams_of_every_manner() {
    let Some(mut scene) = Scene::new("dns upstreams", 1) else { return };
    let server = scene.server();
    let manners = [Manner::Honest, Manner::Lying, Manner::Truncating, Manner::Lower];
    for (last, manner) in (200..).zip(manners) {
        let upstream = Upstream::start(&mut scene, last, manner);
        server.update(vec![resolver(&[upstream.address])]);
        server.barrier().unwrap();
        for transport in ["+notcp", "+tcp"] {
            for round in 0..3 {
                let name = format!("n{round}.manner{last}.example");
                assert_eq!(scene.dig(0, &[transport, &name]), ["203.0.113.7"], "{manner:?} {transport}");
            }
        }
        // Three names, each asked for twice: the cache has the second answer.
        assert!(upstream.asked() <= 3, "{manner:?}: {}", upstream.asked());
        let stats = server.stats().unwrap();
        assert_eq!(stats.forwarder.cached, 3 * u64::from(last - 199), "{manner:?}: {stats:?}");
    }
}

#[test]
fn a_dead_upstream_and_no_upstream() {
    let Some(mut scene) = Scene::new("dns dead upstream", 1) else { return };
    let server = scene.server();
    let good = Upstream::start(&mut scene, 200, Manner::Honest);
    let silent = Upstream::start(&mut scene, 201, Manner::Silent);
    server.update(vec![resolver(&[silent.address, good.address])]);
    server.barrier().unwrap();
    for round in 0..4 {
        assert_eq!(scene.dig(0, &[&format!("n{round}.example.net")]), ["203.0.113.7"]);
    }
    assert!(silent.asked() < 4, "asked first only once, but for a probe");
    let stats = server.stats().unwrap();
    let address = silent.address;
    assert!(stats.upstreams.iter().any(|upstream| upstream.address == address && upstream.suspect), "{stats:?}");
    // Closed ports: an answer at once, which is that there is none.
    server.update(vec![resolver(&["10.99.0.10:5353".parse().unwrap()])]);
    server.barrier().unwrap();
    assert_eq!(scene.status(0, &["n.example.net"]), "SERVFAIL");
    // Our own gateway is none.
    server.update(vec![resolver(&[SocketAddr::new(GATEWAY.parse().unwrap(), 53)])]);
    server.barrier().unwrap();
    assert_eq!(scene.status(0, &["m.example.net"]), "SERVFAIL");
    assert_eq!(server.stats().unwrap().questions, 6);
}

/// What a client asks beyond that is not read until the first are answered, or given up after seconds.
#[test]
fn one_connection_has_64_questions_under_way() {
    let Some(mut scene) = Scene::new("dns under way", 1) else { return };
    let server = scene.server();
    let silent = Upstream::start(&mut scene, 201, Manner::Silent);
    server.update(vec![resolver(&[silent.address])]);
    server.barrier().unwrap();
    let all: Vec<u8> =
        (0..200).flat_map(|number| framed(&question(number, &format!("n{number}.example.net")))).collect();
    let mut client = scene.containers[0].enter(|| TcpStream::connect((GATEWAY, 53)).unwrap());
    client.write_all(&all).unwrap();
    assert!(eventually(Duration::from_secs(5), || server.stats().unwrap().forwarded >= 64));
    server.barrier().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!((stats.forwarded, stats.forwarder.failed), (64, 0), "{stats:?}");
}

#[test]
fn an_internal_network_asks_nobody() {
    let Some(mut scene) = Scene::new("dns internal", 1) else { return };
    let server = scene.server();
    let upstream = Upstream::start(&mut scene, 200, Manner::Honest);
    server.update(vec![resolver(&[upstream.address]), Change::PutNetwork(Network { internal: true, ..network() })]);
    server.barrier().unwrap();
    for name in ["www.example.net", "c0.example.net", "metadata.google.internal"] {
        assert_eq!(scene.status(0, &[name]), "NXDOMAIN");
    }
    assert_eq!(scene.dig(0, &["c0"]), ["10.99.0.10"]);
    assert_eq!(upstream.asked(), 0);
}

#[test]
fn tcp_clients_that_dribble_stall_reset_and_pipeline() {
    let Some(scene) = Scene::new("dns tcp", 3) else { return };
    let server = scene.server();
    let to: SocketAddr = SocketAddr::new(GATEWAY.parse().unwrap(), 53);
    let connect = || {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    let began = Instant::now();
    // Stalled in the middle of a question, more of them than one client may have.
    let mut stalled: Vec<TcpStream> = scene.containers[1].enter(|| {
        (0..40)
            .map(|_| {
                let mut stream = connect();
                // Those over the limit are closed.
                let _ = stream.write_all(&[0x10, 0x00, 0, 1, 1]);
                stream
            })
            .collect()
    });
    assert!(eventually(Duration::from_secs(5), || server.stats().unwrap().connections == 32));
    scene.containers[2].enter(|| {
        for round in 0..200u16 {
            let mut stream = connect();
            let bytes = framed(&question(round, "c0"));
            stream.write_all(&bytes[..usize::from(round) % bytes.len()]).unwrap();
            // Unread data makes it a reset.
            drop(stream);
        }
        // A hundred questions at once, in two writes that split one of them, and the end before the answers.
        let mut stream = connect();
        let all: Vec<u8> = (0..100).flat_map(|number| framed(&question(number, "c0"))).collect();
        stream.write_all(&all[..31]).unwrap();
        stream.write_all(&all[31..]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        for number in 0..100u16 {
            let answer = read_message(&mut stream).unwrap();
            assert_eq!(answer[..2], number.to_be_bytes());
            assert_eq!(answer[answer.len() - 4..], [10, 99, 0, 10]);
        }
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "then it is closed");
        // What is no question ends a connection: it says at once that it is longer than one is, by a byte.
        let mut stream = connect();
        stream.write_all(&[0x10, 0x01, 1, 2, 3]).unwrap();
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
    });
    // One that asks and does not read: what the server keeps for it is bounded, and it stops reading.
    let mut greedy = scene.containers[2].enter(connect);
    greedy.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let burst: Vec<u8> = (0..1000).flat_map(|number| framed(&question(number, "c0"))).collect();
    let mut written = 0;
    while written < 64 << 20 {
        match greedy.write(&burst) {
            Ok(len) => written += len,
            Err(_) => break,
        }
    }
    assert!(written < 64 << 20, "the server reads no more");
    assert_eq!(scene.dig(0, &["+tcp", "c0"]), ["10.99.0.10"], "others are served");
    assert_eq!(scene.dig(0, &["c0"]), ["10.99.0.10"]);
    // They are put out in the end, dribbling or not.
    let mut dribbled = 0;
    let ended = eventually(Duration::from_secs(30), || {
        dribbled += usize::from(stalled[0].write_all(&[0]).is_ok());
        server.stats().unwrap().connections == 0
    });
    assert!(ended, "{:?}", server.stats());
    assert!(began.elapsed() >= Duration::from_secs(10), "not before their time");
    assert!(stalled.iter_mut().all(|stream| !matches!(stream.read(&mut [0; 8]), Ok(1..))));
}

#[test]
fn a_successor_answers_what_was_asked_before() {
    let Some(mut scene) = Scene::new("dns hand-over", 2) else { return };
    let silent = Upstream::start(&mut scene, 201, Manner::Silent);
    let good = Upstream::start(&mut scene, 200, Manner::Honest);
    let server = scene.server();
    server.update(vec![resolver(&[silent.address])]);
    server.barrier().unwrap();
    let to: SocketAddr = SocketAddr::new(GATEWAY.parse().unwrap(), 53);
    let (udp, mut tcp) = scene.containers[0].enter(|| {
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        udp.connect(to).unwrap();
        (udp, TcpStream::connect(to).unwrap())
    });
    udp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    udp.send(&question(1, "a.example.net")).unwrap();
    let half = framed(&question(3, "c1"));
    tcp.write_all(&framed(&question(2, "b.example.net"))).unwrap();
    tcp.write_all(&half[..9]).unwrap();
    let waits = eventually(Duration::from_secs(4), || server.stats().unwrap().in_flight == (2, 2));
    assert!(waits, "{:?}", server.stats());
    let (fds, data) = server.hand_over().unwrap().into_parts();
    // Two of each family, and the connection.
    assert_eq!(fds.len(), 5);
    let text = serde_json::to_string(&data).unwrap();
    let data = serde_json::from_str(&text).unwrap();
    // Asked while nobody is there.
    udp.send(&question(4, "c1")).unwrap();
    let next = scene.serve(HandOver::from_parts(fds, data).unwrap(), Config::default());
    // Names come in pieces; nothing is denied meanwhile.
    next.update(vec![Change::PutNetwork(network())]);
    next.update(vec![Change::PutEndpoint(endpoint(0)), resolver(&[good.address])]);
    next.update(vec![Change::PutEndpoint(endpoint(1))]);
    assert_eq!(next.barrier().unwrap(), []);
    tcp.write_all(&half[9..]).unwrap();
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut buffer = [0; 512];
        let len = udp.recv(&mut buffer).unwrap();
        answers.push((buffer[1], buffer[len - 4..len].to_vec()));
        let answer = read_message(&mut tcp).unwrap();
        answers.push((answer[1], answer[answer.len() - 4..].to_vec()));
    }
    answers.sort();
    let foreign = vec![203, 0, 113, 7];
    let local = vec![10, 99, 0, 11];
    assert_eq!(answers, [(1, foreign.clone()), (2, foreign), (3, local.clone()), (4, local)]);
    // What no network wants is closed with the barrier.
    let (fds, _) = next.hand_over().unwrap().into_parts();
    let last = scene.serve(HandOver::from_sockets(fds), Config::default());
    assert_eq!(last.stats().unwrap().listeners, 4);
    last.update(vec![Change::PutNetwork(Network { gateways: vec![to.ip()], ..network() })]);
    last.barrier().unwrap();
    assert_eq!(last.stats().unwrap().listeners, 2);
}

#[test]
fn sockets_kept_by_another_outlive_a_server() {
    let Some(scene) = Scene::new("dns kept sockets", 1) else { return };
    let (kept, sockets) = std::sync::mpsc::channel();
    let hook = move |event: ListenerEvent<'_>| {
        if let ListenerEvent::Opened { fd, .. } = event {
            kept.send(fd.try_clone_to_owned().unwrap()).unwrap();
        }
    };
    let server = scene.serve(HandOver::default(), Config { on_listener: Some(Box::new(hook)), ..Config::default() });
    server.update(scene.changes());
    server.barrier().unwrap();
    drop(server);
    let fds: Vec<_> = sockets.iter().collect();
    assert_eq!(fds.len(), 4);
    let udp = scene.containers[0].enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    udp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    udp.send_to(&question(7, "c0"), (GATEWAY, 53)).unwrap();
    let next = scene.serve(HandOver::from_sockets(fds), Config::default());
    next.update(scene.changes());
    assert_eq!(next.barrier().unwrap(), []);
    let mut buffer = [0; 512];
    let len = udp.recv(&mut buffer).unwrap();
    assert_eq!(buffer[len - 4..len], [10, 99, 0, 10], "asked while there was no server");
}

#[test]
fn a_port_in_use_is_reported_with_its_holder_and_taken_once_free() {
    let Some(scene) = Scene::new("dns port", 1) else { return };
    // Not this process: what it closes stays open in what a neighbouring test is about to start.
    let mut holder = scene.host.command("ncat").unwrap().args(["-ul", GATEWAY, "53"]).spawn().unwrap();
    let sockets = || scene.host.enter(|| std::fs::read_to_string("/proc/thread-self/net/udp").unwrap());
    assert!(eventually(Duration::from_secs(10), || sockets().contains(":0035 ")), "ncat listens");
    let server = scene.serve(HandOver::default(), Config::default());
    server.update(scene.changes());
    // Who is in the way is looked for where the caller is.
    let failures = scene.host.enter(|| server.barrier().unwrap());
    assert_eq!(failures.len(), 1, "{failures:?}");
    let message = failures[0].to_string();
    let pid = format!("process {}: ", holder.id());
    assert!(message.starts_with("listen on `10.99.0.1:53` (UDP): held by `"), "{message}");
    assert!(message.contains(&pid), "{message}");
    assert_eq!(scene.dig(0, &["+tcp", "c0"]), ["10.99.0.10"], "the rest is served");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(server.barrier().unwrap(), []);
    assert_eq!(scene.dig(0, &["c0"]), ["10.99.0.10"]);
}

#[test]
fn there_are_1024_connections_and_the_idlest_gives_way() {
    let Some(scene) = Scene::new("dns crowd", 2) else { return };
    let server = scene.server();
    let addresses: Vec<IpAddr> = (0..33).map(|number| IpAddr::from([10, 99, 0, 100 + number])).collect();
    for address in &addresses {
        scene.containers[0].add_address("eth0", &format!("{address}/24")).unwrap();
    }
    let to: SocketAddr = SocketAddr::new(GATEWAY.parse().unwrap(), 53);
    let connect = |from: IpAddr| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::new(from, 0)).unwrap();
        rustix::net::connect(&socket, &to).unwrap();
        TcpStream::from(socket)
    };
    // One at a time, so that all of one address have waited longer than those of the next.
    let crowd: Vec<TcpStream> = scene.containers[0].enter(|| {
        let mut crowd = Vec::new();
        for (number, from) in addresses.iter().enumerate() {
            crowd.extend((0..32).map(|_| connect(*from)));
            let served = (32 * (number + 1)).min(1024);
            assert!(eventually(Duration::from_secs(5), || server.stats().unwrap().connections == served));
        }
        crowd
    });
    assert!(eventually(Duration::from_secs(5), || server.stats().unwrap().evicted == 32), "{:?}", server.stats());
    let is_open = |stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        (&*stream).read(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let open: Vec<bool> = crowd.iter().map(is_open).collect();
    assert_eq!(open, [vec![false; 32], vec![true; 1024]].concat());
    assert_eq!(scene.dig(1, &["+tcp", "c0"]), ["10.99.0.10"], "who comes is served");
    assert_eq!(scene.dig(1, &["c0"]), ["10.99.0.10"]);
}

/// Asks `count` times and returns how long each answer took, in order of length; lost ones are counted apart.
fn measure(container: &Host, count: u16) -> (Vec<Duration>, usize) {
    let socket = container.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut times = Vec::new();
    let mut lost = 0;
    for number in 0..count {
        let sent = Instant::now();
        socket.send_to(&question(number, "c0"), (GATEWAY, 53)).unwrap();
        let mut buffer = [0; 512];
        match socket.recv(&mut buffer) {
            Ok(_) => times.push(sent.elapsed()),
            Err(_) => lost += 1,
        }
    }
    times.sort();
    (times, lost)
}

#[test]
fn one_container_that_floods_does_not_starve_another() {
    let Some(scene) = Scene::new("dns flood", 2) else { return };
    let server = scene.server();
    let (quiet, lost) = measure(&scene.containers[0], 500);
    assert_eq!(lost, 0);
    let stop = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    let (busy, lost, asked) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let socket = scene.containers[1].enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            socket.set_nonblocking(true).unwrap();
            let bytes = question(9, "c1");
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..64 {
                    let is_sent = socket.send_to(&bytes, (GATEWAY, 53)).is_ok();
                    sent.fetch_add(usize::from(is_sent), Ordering::Relaxed);
                }
            }
        });
        let (mut times, mut lost, mut asked) = (Vec::new(), 0, 0);
        // Until the other one was a flood, however fast this one is answered.
        while asked == 0 || sent.load(Ordering::Relaxed) < 20_000 {
            let (more, missing) = measure(&scene.containers[0], 500);
            times.extend(more);
            lost += missing;
            asked += 500;
            assert!(asked <= 50_000, "no flood: {} questions", sent.load(Ordering::Relaxed));
        }
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap();
        times.sort();
        (times, lost, asked)
    });
    let p99 = |times: &[Duration]| times[times.len() * 99 / 100];
    let stats = server.stats().unwrap();
    println!(
        "p99 alone {:?}, beside a flood of {} questions {:?}; {lost} of {asked} lost",
        p99(&quiet),
        stats.questions + stats.shed,
        p99(&busy)
    );
    assert!(stats.questions + stats.shed > asked as u64, "the flood came in: {stats:?}");
    assert!(lost * 20 < asked, "{lost} of {asked} lost");
}

/// The server and who asks have one processor together with a flood that is before them whenever it has something to send: what
/// fits into the socket's buffer is there long before the server has its turn.
#[test]
fn a_flood_is_held_back_before_a_server_that_has_little_time() {
    let Some(scene) = Scene::new("dns slow", 2) else { return };
    let stop = AtomicBool::new(false);
    let begins = std::sync::Barrier::new(2);
    let (lost, stats) = std::thread::scope(|scope| {
        scope.spawn(|| {
            on_one_processor();
            let socket = scene.containers[1].enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            begins.wait();
            while !stop.load(Ordering::Relaxed) {
                let _ = socket.send_to(&question(9, "c1"), (GATEWAY, 53));
            }
        });
        let others = scope.spawn(|| {
            on_one_processor();
            rustix::process::nice(15).unwrap();
            let server = scene.server();
            let socket = scene.containers[0].enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let is_answered = |number: u16| {
                let _ = socket.send_to(&question(number, "c0"), (GATEWAY, 53));
                let mut answer = [0; 512];
                let mut answers =
                    std::iter::repeat_with(|| socket.recv(&mut answer).map(|_| answer[..2] == number.to_be_bytes()));
                answers.find(|answer| !matches!(answer, Ok(false))).is_some_and(|answer| answer.is_ok())
            };
            begins.wait();
            // Until it is known who floods, anybody's may be lost.
            assert!((0..10).any(is_answered), "none of the first is answered");
            let lost = (10..60).filter(|number| !is_answered(*number)).count();
            stop.store(true, Ordering::Relaxed);
            (lost, server.stats().unwrap())
        });
        let outcome = others.join();
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap()
    });
    println!("{lost} of 50 lost: {stats:?}");
    // Where nothing is held back it is most of them.
    assert!(lost <= 2, "{lost} of 50: {stats:?}");
}

/// Has this thread, and those that it starts, on the first processor alone.
fn on_one_processor() {
    let mut first = rustix::thread::CpuSet::new();
    first.set(0);
    rustix::thread::sched_setaffinity(None, &first).unwrap();
}
