//! Who reaches whom, and what is seen on the way.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use portolan_kernel::rtnl::link;
use portolan_kernel::socket;
use portolan_lab::probe::ping;
use portolan_lab::server::once_free;
use portolan_lab::{Host, eventually};
use portolan_wireguard::kernel::{self, Carrier, KernelError};
use portolan_wireguard::worker::WorkerError;
use portolan_wireguard::{Config, Control, ControlError, Device as _, Peer, PresharedKey, PrivateKey, changes, worker};

use crate::rotate::Stream;
use crate::world::{LONG, MTU, PORT, Tunnel, World, introduce, overlays, pair};

#[test]
fn two_hosts_reach_each_other() {
    let Some(world) = World::or_skip("wg-reach", 2) else { return };
    let (mut one, mut other) = pair(&world);
    one.reaches(&other);
    other.reaches(&one);
    let status = one.control().get().unwrap().status[&other.key()];
    assert_eq!(status.endpoint, Some(other.endpoint()));
    assert!(status.received > 0 && status.sent > 0, "{status:?}");
    let ago = SystemTime::now().duration_since(status.last_handshake.unwrap()).unwrap_or_default();
    assert!(ago < LONG, "{ago:?}");
    let mut known = other.control().get().unwrap().config;
    assert_eq!(known.peers.len(), 1);
    known.peers.values_mut().for_each(|peer| peer.endpoint = Some(one.endpoint()));
    assert_eq!(known, other.config);
}

#[test]
fn the_way_between_them_may_be_of_ipv6() {
    let Some(world) = World::or_skip("wg-outer6", 2) else { return };
    let (mut one, mut other) = (world.tunnel(1), world.tunnel(2));
    let mut peer = other.as_peer();
    peer.endpoint = Some(SocketAddr::new("fd00:1::2".parse().unwrap(), other.config.listen_port));
    one.know(other.key(), peer);
    // The other is told by the first packet where to answer.
    let mut peer = one.as_peer();
    peer.endpoint = None;
    other.know(one.key(), peer);
    one.reaches(&other);
    other.reaches(&one);
    let seen = other.control().get().unwrap().status[&one.key()].endpoint.unwrap();
    assert_eq!(seen, SocketAddr::new("fd00:1::1".parse().unwrap(), one.config.listen_port));
}

#[test]
fn a_host_with_another_key_reaches_nobody() {
    let Some(world) = World::or_skip("wg-wrong-key", 3) else { return };
    let (one, other) = pair(&world);
    let mut stranger = world.tunnel(3);
    for known in [&one, &other] {
        stranger.know(known.key(), known.as_peer());
    }
    stranger.misses(&one);
    stranger.misses(&other);
    one.reaches(&other);
    // One that is known may not speak for others.
    drop(stranger);
    let mut third = world.tunnel(3);
    let mut one = one;
    let mut peer = third.as_peer();
    peer.allowed = ["10.8.0.99/32".parse().unwrap()].into();
    one.know(third.key(), peer);
    third.know(one.key(), one.as_peer());
    third.misses(&one);
}

#[test]
fn both_have_to_have_the_same_preshared_key() {
    let Some(world) = World::or_skip("wg-preshared", 2) else { return };
    let (mut one, mut other) = (world.tunnel(1), world.tunnel(2));
    let preshared = Some(PresharedKey::random());
    let mut peer = other.as_peer();
    peer.preshared.clone_from(&preshared);
    one.know(other.key(), peer);
    other.know(one.key(), one.as_peer());
    one.misses(&other);
    let mut peer = one.as_peer();
    peer.preshared = preshared;
    other.know(one.key(), peer);
    one.reaches(&other);
    other.reaches(&one);
}

#[test]
fn traffic_goes_on_after_the_worker_was_killed() {
    let Some(world) = World::or_skip("wg-killed", 2) else { return };
    let (mut one, other) = pair(&world);
    one.reaches(&other);
    for _ in 0..3 {
        one.kill();
        other.misses(&one);
        one.launch();
        let began = Instant::now();
        // The one that knows nothing of it.
        other.reaches(&one);
        eprintln!("reached again {:?} after the worker was started", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        one.reaches(&other);
    }
    for (from, to) in [(&one, &other), (&other, &one)] {
        from.reaches(to);
        let stream = Stream::start(from.host, from.inner()[0], to.host, to.inner()[0]);
        std::thread::sleep(Duration::from_millis(500));
        one.kill();
        one.relaunch();
        std::thread::sleep(Duration::from_secs(1));
        let (sent, lost) = stream.end();
        eprintln!("{} of {sent} lost, one each 10 ms, while the worker was started again", lost.len());
        assert!(lost.len() < 100, "{sent}: {lost:?}");
    }
    assert!(one.host.enter(|| link_of(&one.options.name)).is_some_and(|link| link.mtu == MTU));
}

fn link_of(name: &str) -> Option<link::Link> {
    let mut socket = portolan_kernel::netlink::Socket::open(portolan_kernel::netlink::ROUTE).unwrap();
    link::lookup(&mut socket, name).unwrap()
}

#[test]
fn a_peer_that_changes_keeps_its_session() {
    let Some(world) = World::or_skip("wg-change", 2) else { return };
    let (mut one, other) = pair(&world);
    one.reaches(&other);
    let before = one.control().get().unwrap().status[&other.key()];
    let mut peer = other.as_peer();
    peer.keepalive = Some(25);
    peer.allowed.insert("10.9.0.0/16".parse().unwrap());
    one.know(other.key(), peer.clone());
    peer.allowed.remove(&"10.9.0.0/16".parse().unwrap());
    one.know(other.key(), peer);
    // A range goes from one to the other and back.
    let key = PrivateKey::random().public();
    one.know(key, other.as_peer());
    one.misses(&other);
    one.forget(key);
    let mut config = one.config.clone();
    config.peers.insert(other.key(), Peer::default());
    one.config = config;
    one.know(other.key(), other.as_peer());
    one.reaches(&other);
    let after = one.control().get().unwrap().status[&other.key()];
    let apart = |one: SystemTime, other: SystemTime| one.duration_since(other).unwrap_or_else(|error| error.duration());
    let apart = apart(after.last_handshake.unwrap(), before.last_handshake.unwrap());
    assert!(apart < Duration::from_millis(500), "a new handshake: {before:?} {after:?}");
    assert!(after.sent > before.sent);
}

/// Frames on an interface of a host, looked through for a word.
struct Capture(UdpSocket);

impl Capture {
    fn on(host: &Host, name: &str) -> Self {
        let socket = host.enter(|| socket::packet(link_of(name).unwrap().index)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self(socket)
    }

    /// Bytes since the last call, and how many frames have `word` in them.
    fn count(&self, word: &[u8]) -> (usize, usize) {
        let mut buf = [0; 65_536];
        let (mut all, mut with) = (0, 0);
        loop {
            match self.0.recv(&mut buf) {
                Ok(len) => {
                    all += len;
                    with += usize::from(buf[..len].windows(word.len()).any(|bytes| bytes == word));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return (all, with),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn nothing_leaves_in_clear() {
    const WORD: &[u8] = b"not to be seen by anybody else";
    let Some(world) = World::or_skip("wg-clear", 2) else { return };
    let (mut one, other) = pair(&world);
    one.reaches(&other);
    let capture = Capture::on(one.host, "eth0");
    let inside = Capture::on(one.host, &one.options.name);
    let sockets = [0, 1].map(|family| {
        let socket = one.host.enter(|| UdpSocket::bind((one.inner()[family], 0))).unwrap();
        (socket, SocketAddr::new(other.inner()[family], 9))
    });
    let say = || {
        for (socket, to) in &sockets {
            for _ in 0..20 {
                // Nobody may be there any more.
                let _ = socket.send_to(WORD, to);
            }
        }
    };
    say();
    let (all, clear) = capture.count(WORD);
    assert!(all >= 40 * WORD.len() && clear == 0, "{clear} frames of {all} bytes in clear");
    assert!(inside.count(WORD).1 >= 40, "the capture sees what there is to see");
    one.forget(other.key());
    one.misses(&other);
    say();
    let (all, clear) = capture.count(WORD);
    assert_eq!(clear, 0, "of {all} bytes without the peer");
    one.know(other.key(), other.as_peer());
    one.reaches(&other);
    one.kill();
    say();
    let (all, clear) = capture.count(WORD);
    assert_eq!(clear, 0, "of {all} bytes without the worker");
    one.launch();
    one.reaches(&other);
    capture.count(WORD);
    say();
    let (all, clear) = capture.count(WORD);
    assert!(all >= 40 * WORD.len() && clear == 0, "{clear} frames of {all} bytes in clear");
}

#[test]
fn wg_shows_the_peers() {
    let Some(world) = World::or_skip("wg-show", 2) else { return };
    if !Path::new("/usr/bin/wg").exists() {
        eprintln!("SKIP: `wg-show`: no wg(8) (Debian: wireguard-tools)");
        return;
    }
    let (mut one, mut other) = (world.tunnel(1), world.tunnel(2));
    introduce(&mut one, &mut other);
    one.reaches(&other);
    // wg(8) looks there and nowhere else.
    let link = PathBuf::from(format!("/var/run/wireguard/{}.sock", one.options.name));
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&one.options.socket, &link).unwrap();
    let wg = |words: &[&str]| {
        let output = Command::new("wg").args(words).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let name = one.options.name.clone();
    let shown = wg(&["show", &name]);
    let set = wg(&["set", &name, "peer", &other.key().to_base64(), "persistent-keepalive", "7"]);
    let peers = one.control().get().unwrap().config.peers;
    std::fs::remove_file(&link).unwrap();
    for word in [
        format!("public key: {}", one.key()),
        format!("peer: {}", other.key()),
        format!("endpoint: {}", other.endpoint()),
        "allowed ips: 10.8.0.2/32, fd00:8::2/128".into(),
        "listening port: 51820".into(),
        "latest handshake: ".into(),
    ] {
        assert!(shown.0.contains(&word), "{word}: {shown:?}");
    }
    assert_eq!(set, (String::new(), String::new()));
    assert_eq!(peers[&other.key()].keepalive, Some(7));
    assert_eq!(peers[&other.key()].allowed, other.as_peer().allowed);
    one.reaches(&other);
}

/// A process that ends with the test, and its socket.
struct Ended(Child, PathBuf);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_file(&self.1);
    }
}

#[test]
fn another_implementation_reaches_us() {
    let Some(world) = World::or_skip("wg-other", 2) else { return };
    if !Path::new("/usr/bin/wireguard-go").exists() {
        eprintln!("SKIP: `wg-other`: no wireguard-go");
        return;
    }
    let mut one = world.tunnel(1);
    let host = &world.hosts[1];
    let name = format!("wgo{}", std::process::id() % 1_000_000);
    let mut command = host.adopt(Command::new("wireguard-go")).unwrap();
    let command = command.args(["-f", &name]).stdout(Stdio::null()).stderr(Stdio::null());
    let socket = PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
    let _other = Ended(command.spawn().unwrap(), socket.clone());
    assert!(eventually(LONG, || Control::connect(&socket).is_ok()));
    let mut control = Control::connect(&socket).unwrap();
    let key = PrivateKey::random();
    let preshared = Some(PresharedKey::random());
    let mut config = Config { private_key: Some(key.clone()), listen_port: PORT, ..Config::default() };
    config.peers.insert(one.key(), Peer { preshared: preshared.clone(), ..one.as_peer() });
    control.set(&changes(&Config::default(), &config)).unwrap();
    assert_eq!(control.get().unwrap().config, config);
    host.add_address(&name, "10.8.0.2/24").unwrap();
    assert!(host.command("ip").unwrap().args(["link", "set", &name, "up", "mtu", "1420"]).status().unwrap().success());
    let endpoint = Some(SocketAddr::new("10.0.1.2".parse().unwrap(), PORT));
    let allowed = ["10.8.0.2/32".parse().unwrap()].into();
    one.know(key.public(), Peer { preshared, endpoint, allowed, ..Peer::default() });
    let there = ping(one.host, "10.8.0.2".parse().unwrap(), LONG);
    let back = ping(host, one.inner()[0], LONG);
    assert!(there.is_open() && back.is_open(), "{there:?} {back:?}");
    let status = control.get().unwrap().status[&one.key()];
    assert!(status.last_handshake.is_some() && status.received > 0, "{status:?}");
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(world) = World::or_skip("wg-refused", 2) else { return };
    let (mut one, other) = pair(&world);
    one.reaches(&other);
    // Another is at the port.
    let holder = one.host.enter(|| UdpSocket::bind("0.0.0.0:51999")).unwrap();
    let mut config = one.config.clone();
    config.listen_port = 51999;
    let change = changes(&one.config, &config);
    let error = one.control().set(&change).unwrap_err();
    assert!(matches!(&error, ControlError::Refused { source, .. } if source.0 == 98), "{error:?}");
    one.reaches(&other);
    drop(holder);
    one.control().set(&change).unwrap();
    one.config = config;
    one.reaches(&other);
    // A second worker of the same interface.
    let mut options = one.options.clone();
    options.socket.set_extension("second");
    let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/worker");
    let error = worker::start(one.host.adopt(Command::new(&program)).unwrap(), &options).unwrap_err();
    let said = format!(
        "start worker of `{0}`: attach to TUN interface `{0}`: Device or resource busy (os error 16)",
        options.name
    );
    assert!(matches!(&error, WorkerError::Failed { .. }) && error.to_string() == said, "{error}");
    assert!(!options.socket.exists());
    let error = worker::start(one.host.adopt(Command::new(&program)).unwrap(), &one.options).unwrap_err();
    assert!(matches!(&error, WorkerError::Failed { .. }), "{error}");
    one.reaches(&other);
    // Peers without a key of ours.
    let (mut none, some) = (Config::default(), one.config.peers.clone());
    none.peers = some;
    let bare = world.device(2, 0);
    let mut fresh = bare;
    fresh.kill();
    fresh.config = Config::default();
    fresh.launch();
    let error = fresh.control().set(&changes(&Config::default(), &none)).unwrap_err();
    assert!(matches!(&error, ControlError::Refused { source, .. } if source.0 == 22), "{error:?}");
    assert!(fresh.control().get().unwrap().config.peers.is_empty());
}

#[test]
fn a_device_takes_another_key() {
    let Some(world) = World::or_skip("wg-rekey", 2) else { return };
    let (mut one, mut other) = pair(&world);
    one.reaches(&other);
    let old = one.key();
    let mut config = one.config.clone();
    config.private_key = Some(PrivateKey::random());
    one.become_(config);
    one.misses(&other);
    other.forget(old);
    other.know(one.key(), one.as_peer());
    one.reaches(&other);
    other.reaches(&one);
}

#[test]
fn a_worker_ends_when_it_is_told_and_leaves_the_interface() {
    let Some(world) = World::or_skip("wg-told", 2) else { return };
    let (mut one, other) = pair(&world);
    one.reaches(&other);
    let process = one.process();
    process.signal(portolan_kernel::signals::TERM).unwrap();
    assert!(process.wait_readable(LONG).unwrap());
    assert!(eventually(LONG, || !one.options.socket.exists()));
    assert!(one.host.enter(|| link_of(&one.options.name)).is_some());
    one.launch();
    one.reaches(&other);
}

#[test]
fn an_overlay_goes_through() {
    let Some(world) = World::or_skip("wg-overlay", 2) else { return };
    let (one, other) = pair(&world);
    overlays(&one, &other);
    for address in ["10.20.0.2:80", "10.21.0.2:80"] {
        goes_through(&one, &other, address.parse().unwrap());
    }
}

/// There and back.
fn goes_through(one: &Tunnel<'_>, other: &Tunnel<'_>, to: SocketAddr) {
    const LEN: usize = 8 << 20;
    let listener = other.host.enter(|| once_free(|| TcpListener::bind(to))).unwrap();
    let content: Vec<u8> = (0..LEN).map(|at| ((at * at) >> 7) as u8).collect();
    let expected = content.clone();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&content).unwrap();
        drop(stream.shutdown(Shutdown::Write));
        let mut echoed = Vec::new();
        stream.read_to_end(&mut echoed).unwrap();
        echoed == content
    });
    let mut stream = one.host.enter(|| TcpStream::connect_timeout(&to, LONG)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    stream.write_all(&received).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(received == expected && server.join().unwrap());
}

/// Where the kernel has WireGuard, both kinds reach each other; where it has not, it says so.
#[test]
fn the_kernel_is_asked_whether_it_can() {
    let Some(world) = World::or_skip("wg-kernel", 2) else { return };
    let mut other = world.tunnel(2);
    let carrier = kernel::probe().unwrap();
    eprintln!("devices are carried by: {carrier:?}");
    let name = "wgk0";
    let created = world.hosts[0].enter(|| kernel::Link::create(name, MTU));
    if carrier == Carrier::User {
        assert!(matches!(created, Err(KernelError::Unsupported)), "{created:?}");
        return;
    }
    let mut link = created.unwrap();
    let key = PrivateKey::random();
    let mut config = Config { private_key: Some(key.clone()), listen_port: PORT, ..Config::default() };
    config.peers.insert(other.key(), other.as_peer());
    link.set(&changes(&Config::default(), &config)).unwrap();
    assert_eq!(link.get().unwrap().config, config);
    let ranges = ["10.8.0.1/32", "fd00:8::1/128"].map(|range| range.parse().unwrap());
    let endpoint = Some(SocketAddr::new("10.0.1.1".parse().unwrap(), PORT));
    other.know(key.public(), Peer { endpoint, allowed: ranges.into(), ..Peer::default() });
    world.hosts[0].add_address(name, "10.8.0.1/24").unwrap();
    let probe = ping(&world.hosts[0], other.inner()[0], LONG);
    assert!(probe.is_open(), "{probe:?}");
    link.remove().unwrap();
}
