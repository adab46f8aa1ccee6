//! A new key beside the old one, and no packet lost.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::link;
use portolan_kernel::rtnl::route::{self, Route};
use portolan_lab::{Host, eventually};
use portolan_wireguard::Device as _;

use crate::world::{LONG, PORT, Tunnel, World, introduce};

/// Sends what leads to `to` by way of an interface.
fn lead(tunnel: &Tunnel<'_>, to: &[IpAddr]) {
    let mut socket = tunnel.host.route_socket().unwrap();
    let oif = link::lookup(&mut socket, tunnel.options.name.as_str()).unwrap().unwrap().index;
    let mut batch = Batch::new();
    for address in to {
        let len = if address.is_ipv4() { 32 } else { 128 };
        route::replace(&mut batch, &Route { oif: Some(oif), metric: Some(100), ..Route::new(*address, len) });
    }
    socket.transact(&batch).unwrap();
}

/// Questions and answers, a hundred a second.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(u32, BTreeSet<u32>)>,
    echo: std::thread::JoinHandle<()>,
}

impl Stream {
    pub(crate) fn start(from: &Host, source: IpAddr, at: &Host, target: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let server = at.enter(|| UdpSocket::bind((target, 0))).unwrap();
        let to: SocketAddr = server.local_addr().unwrap();
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let ended = Arc::clone(&stop);
        let echo = std::thread::spawn(move || {
            let mut buf = [0; 2048];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((len, client)) = server.recv_from(&mut buf) {
                    let _ = server.send_to(&buf[..len], client);
                }
            }
        });
        let client = from.enter(|| UdpSocket::bind((source, 0))).unwrap();
        client.connect(to).unwrap();
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut answered = BTreeSet::new();
            let mut buf = [0; 2048];
            let mut sent = 0u32;
            let hear = |answered: &mut BTreeSet<u32>, buf: &mut [u8], until: Instant| {
                loop {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    client.set_read_timeout(Some(left)).unwrap();
                    match client.recv(buf) {
                        Ok(4) => {
                            answered.insert(u32::from_be_bytes(buf[..4].try_into().unwrap()));
                        }
                        Ok(_) => {}
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
                        Err(error) => panic!("{error}"),
                    }
                }
            };
            let mut next = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                client.send(&sent.to_be_bytes()).unwrap();
                sent += 1;
                next += Duration::from_millis(10);
                hear(&mut answered, &mut buf, next);
            }
            (sent, answered)
        });
        Self { stop, thread, echo }
    }

    /// How many were sent, and which were not answered.
    pub(crate) fn end(self) -> (u32, Vec<u32>) {
        // The last answers are on their way.
        std::thread::sleep(Duration::from_millis(300));
        self.stop.store(true, Ordering::Relaxed);
        let (sent, answered) = self.thread.join().unwrap();
        self.echo.join().unwrap();
        // The last ones may not have had the time.
        (sent, (0..sent.saturating_sub(10)).filter(|number| !answered.contains(number)).collect())
    }
}

fn has_agreed(tunnel: &mut Tunnel<'_>) -> bool {
    tunnel.control().get().unwrap().status.values().all(|status| status.last_handshake.is_some())
}

#[test]
fn a_new_key_costs_no_packet() {
    let Some(world) = World::or_skip("wg-rotate", 2) else { return };
    let addressed = |number: usize| {
        let tunnel = world.device(number, PORT);
        for (address, len) in tunnel.inner().iter().zip([32, 128]) {
            tunnel.host.add_address("lo", &format!("{address}/{len}")).unwrap();
        }
        tunnel
    };
    let (mut one, mut other) = (addressed(1), addressed(2));
    introduce(&mut one, &mut other);
    lead(&one, &other.inner());
    lead(&other, &one.inner());
    one.reaches(&other);
    let streams = [0, 1].map(|family| Stream::start(one.host, one.inner()[family], other.host, other.inner()[family]));
    for round in 1..=5 {
        std::thread::sleep(Duration::from_millis(300));
        let port = PORT + round;
        let (mut new_one, mut new_other) = (world.device(1, port), world.device(2, port));
        let mut peer = new_other.as_peer();
        // An empty packet at once, and with it the handshake.
        peer.keepalive = Some(1);
        new_other.know(new_one.key(), new_one.as_peer());
        new_one.know(new_other.key(), peer);
        assert!(eventually(LONG, || has_agreed(&mut new_one)), "{}", new_one.log());
        assert!(eventually(LONG, || has_agreed(&mut new_other)), "{}", new_other.log());
        lead(&new_one, &other.inner());
        std::thread::sleep(Duration::from_millis(100));
        lead(&new_other, &one.inner());
        // What is on its way by the old devices arrives.
        std::thread::sleep(Duration::from_millis(500));
        (one, other) = (new_one, new_other);
    }
    for stream in streams {
        let (sent, lost) = stream.end();
        eprintln!("{} of {sent} lost while the key was changed five times", lost.len());
        assert!(sent > 300 && lost.is_empty(), "{sent}: {lost:?}");
    }
}
