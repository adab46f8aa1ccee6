//! Passing on what others send each other on the encrypted link who do not reach each other: a port of its own for each two of
//! them, served by a thread (`portolan-relay`). To where each packet goes is decided in [`portolan_wireguard::relay`].

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use portolan_cluster::{HostRecord, SealRecord, View, WayRecord, begins, relays};
use portolan_kernel::udp::{Inbox, Outbox, listen_udp};
use portolan_model::{Family, Id, PerFamily};
use portolan_wireguard::PublicKey;
use portolan_wireguard::relay::Between;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::sync::{mpsc, oneshot};

use super::{Membership, ToWay, note, runtime};

/// The first port is this much after that of the link's first device.
const FIRST: u16 = 2;
/// So many are tried.
const PORTS: u16 = 4096;
/// How long it is waited for two who are to meet to say something to this host: whom it did not know when they greeted it first do so
/// again after five seconds (`REKEY_TIMEOUT`, whitepaper §6.1).
const PATIENCE: Duration = Duration::from_secs(8);
/// The largest packet that there is.
const LARGEST: usize = u16::MAX as usize;

/// Two hosts, the lower id first.
type Pair = (Id, Id);
/// What is passed on between two hosts, by lane.
type Lanes = [Option<Between>; 2];

/// One of either family that this host has an address of.
type Sockets<T> = PerFamily<Option<T>>;

/// What both the thread and whoever tells it know of a pair.
#[derive(Debug, Default)]
struct Shared {
    lanes: Mutex<Lanes>,
    passed: AtomicU64,
}

/// A pair whose packets are passed on.
struct Open {
    port: u16,
    addresses: PerFamily<Option<IpAddr>>,
    shared: Arc<Shared>,
    /// Dropped, it ends.
    _stop: oneshot::Sender<()>,
}

/// The sockets of a pair, for the thread.
struct Task {
    sockets: Sockets<OwnedFd>,
    shared: Arc<Shared>,
    stopped: oneshot::Receiver<()>,
}

/// What this host passes on.
pub(super) struct Relay {
    open: BTreeMap<Pair, Open>,
    thread: Option<(mpsc::UnboundedSender<Task>, JoinHandle<()>)>,
    /// Since when it is waited for the two to be seen.
    awaited: BTreeMap<Pair, Instant>,
    /// What the process before this one knew of where hosts are.
    known: BTreeMap<Pair, Lanes>,
    file: PathBuf,
    /// How many changes are written down.
    noted: u64,
}

impl Relay {
    /// With what the process before this one wrote down in the run-time directory `run`.
    pub(super) fn new(run: &Path) -> Self {
        let file = run.join("relay.json");
        let known: Vec<(Pair, Lanes)> = note::read(&file).unwrap_or_default();
        Self {
            open: BTreeMap::new(),
            awaited: BTreeMap::new(),
            thread: None,
            known: known.into_iter().collect(),
            file,
            noted: 0,
        }
    }

    /// Passes on what it is to pass on as `view` shows, and nothing else; the ports that others do not know of yet, and where
    /// those were `seen` who are to meet.
    ///
    /// # Errors
    /// When there is no port.
    pub(super) fn ensure(
        &mut self,
        membership: &Membership,
        view: &View,
        seen: impl Fn(&str) -> Option<SocketAddr>,
    ) -> Result<Vec<ToWay>> {
        let own = &membership.record;
        let mut wanted: BTreeMap<Pair, (&WayRecord, i64)> = BTreeMap::new();
        let secret = own.seal.as_ref().map(|seal| &seal.secret);
        // Only between hosts of the cluster that could be on the link with this one.
        let is_one = |id: &Id| {
            let seal = view.hosts().get(id).and_then(|record| record.seal.as_ref());
            *id != membership.host && !view.is_gone(*id) && seal.is_some() && seal.map(|seal| &seal.secret) == secret
        };
        for ((one, other), (way, written)) in view.ways().iter().filter(|_| relays(own)) {
            if way.relay == membership.host && is_one(one) && is_one(other) {
                wanted.insert((*one, *other), (way, *written));
            }
        }
        let addresses = own.underlay;
        let mut said = Vec::new();
        self.awaited.retain(|pair, _| wanted.contains_key(pair));
        for (pair, (way, written)) in wanted.iter().filter(|(_, (way, _))| way.meets) {
            let (places, are_both) = places(view, *pair, &seen);
            let since = *self.awaited.entry(*pair).or_insert_with(Instant::now);
            // Who has not said anything to this host by now may not be able to.
            let meets = are_both || since.elapsed() < PATIENCE;
            let now = WayRecord { meets, seen: if are_both { places } else { BTreeMap::new() }, ..(*way).clone() };
            if !meets || (are_both && now.seen != way.seen) {
                said.push(ToWay { pair: *pair, written: *written, way: Some(now) });
            }
        }
        wanted.retain(|_, (way, _)| !way.meets);
        self.open.retain(|pair, _| wanted.contains_key(pair));
        for (pair, (way, written)) in wanted {
            if self.open.get(&pair).is_none_or(|open| open.addresses != addresses) {
                let lanes = match self.open.remove(&pair) {
                    Some(open) => take(&open.shared).clone(),
                    None => self.known.remove(&pair).unwrap_or_default(),
                };
                let open = self.open(own, way.port, lanes)?;
                self.open.insert(pair, open);
            }
            let open = &self.open[&pair];
            if let (Some(one), Some(other)) = (view.hosts().get(&pair.0), view.hosts().get(&pair.1)) {
                set_keys(&mut take(&open.shared), one, other);
            }
            if way.port != Some(open.port) {
                let way = WayRecord { port: Some(open.port), ..way.clone() };
                said.push(ToWay { pair, written, way: Some(way) });
            }
        }
        self.note();
        Ok(said)
    }

    /// Passes on nothing: there is no link.
    pub(super) fn rest(&mut self) {
        self.open.clear();
    }

    /// Bytes passed on between two hosts.
    pub(super) fn passed(&self) -> BTreeMap<Pair, u64> {
        self.open.iter().map(|(pair, open)| (*pair, open.shared.passed.load(Ordering::Relaxed))).collect()
    }

    /// Writes down where hosts are, if that is news.
    fn note(&mut self) {
        let all: Vec<(Pair, Lanes)> =
            self.open.iter().map(|(pair, open)| (*pair, take(&open.shared).clone())).collect();
        let lanes = all.iter().flat_map(|(_, lanes)| lanes.iter().flatten());
        // A pair that comes or goes is one more or less.
        let changes = lanes.map(|between| between.changes() + 1).sum();
        if changes != self.noted {
            note::write(&self.file, &all);
            self.noted = changes;
        }
    }

    fn open(&mut self, own: &HostRecord, port: Option<u16>, lanes: Lanes) -> Result<Open> {
        let first = own.seal.as_ref().map_or(0, |seal: &SealRecord| seal.port_on(0)).saturating_add(FIRST);
        let used: Vec<u16> = self.open.values().map(|open| open.port).collect();
        let ports = port.into_iter().chain(first..=first.saturating_add(PORTS)).filter(|port| !used.contains(port));
        let addresses = own.underlay;
        let listen = |address: Option<IpAddr>, port| {
            address.map(|address| listen_udp(SocketAddr::new(address, port))).transpose().ok()
        };
        let bind = |port| Some(PerFamily { v4: listen(addresses.v4, port)?, v6: listen(addresses.v6, port)? });
        let found = ports.filter_map(|port| Some((port, bind(port)?))).next();
        let Some((port, sockets)) = found else { bail!("no UDP port from {first} on is free to pass on packets") };
        let shared = Arc::new(Shared { lanes: Mutex::new(lanes), passed: AtomicU64::new(0) });
        let (stop, stopped) = oneshot::channel();
        let task = Task { sockets, shared: shared.clone(), stopped };
        // Who cannot hear is about to end.
        let _ = self.thread()?.send(task);
        Ok(Open { port, addresses, shared, _stop: stop })
    }

    fn thread(&mut self) -> Result<&mpsc::UnboundedSender<Task>> {
        if self.thread.is_none() {
            let runtime = runtime()?;
            let (tell, mut told) = mpsc::unbounded_channel::<Task>();
            let serve = move || {
                runtime.block_on(async move {
                    let room = Arc::new(Mutex::new(Room::new()));
                    while let Some(task) = told.recv().await {
                        let room = room.clone();
                        tokio::spawn(async move {
                            if let Err(error) = task.run(room).await {
                                tracing::warn!(%error, "packets of others are not passed on");
                            }
                        });
                    }
                });
            };
            let thread = std::thread::Builder::new().name("portolan-relay".to_owned()).spawn(serve);
            self.thread = Some((tell, thread.context("start a thread that passes on packets")?));
        }
        Ok(self.thread.as_ref().map(|(tell, _)| tell).expect("it was just put there"))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Where hosts are by now, for the next process.
        self.note();
        self.open.clear();
        if let Some((tell, thread)) = self.thread.take() {
            drop(tell);
            let _ = thread.join();
        }
    }
}

/// Where the keys of two hosts are seen, and whether any of either are.
fn places(
    view: &View,
    (one, other): Pair,
    seen: impl Fn(&str) -> Option<SocketAddr>,
) -> (BTreeMap<String, SocketAddr>, bool) {
    let of = |host: Id| -> BTreeMap<String, SocketAddr> {
        let seal = view.hosts().get(&host).and_then(|record| record.seal.as_ref());
        let keys = seal.into_iter().flat_map(SealRecord::keys);
        keys.filter_map(|key| seen(&key.key).map(|at| (key.key, at))).collect()
    };
    let (one, other) = (of(one), of(other));
    let are_both = !one.is_empty() && !other.is_empty();
    (one.into_iter().chain(other).collect(), are_both)
}

fn take(shared: &Shared) -> std::sync::MutexGuard<'_, Lanes> {
    shared.lanes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has each lane be between the keys that two hosts have there; what is known of keys that stay, stays.
fn set_keys(lanes: &mut Lanes, one: &HostRecord, other: &HostRecord) {
    let key = |record: &HostRecord, on: usize| Some(record.seal.as_ref()?.on(on)?.key);
    for (on, lane) in lanes.iter_mut().enumerate() {
        let keys = key(one, on).zip(key(other, on)).and_then(|(first, second)| {
            let both: [PublicKey; 2] = [first.parse().ok()?, second.parse().ok()?];
            let [ours, theirs] = both;
            Some(if begins((one, &first), (other, &second)) { [ours, theirs] } else { [theirs, ours] })
        });
        match keys {
            Some(keys) if lane.as_ref().is_some_and(|between| between.keys() == keys) => {}
            Some([first, second]) => *lane = Some(Between::new(first, second)),
            None => *lane = None,
        }
    }
}

impl Task {
    /// Goes on until it is stopped.
    async fn run(self, room: Arc<Mutex<Room>>) -> io::Result<()> {
        let Self { sockets, shared, mut stopped } = self;
        #[expect(
            deprecated,
            reason = "its replacement is unsafe for the sake of types that own no descriptor; these do"
        )]
        let wait = |socket: Option<OwnedFd>| socket.map(AsyncFd::new).transpose();
        let sockets = PerFamily { v4: wait(sockets.v4)?, v6: wait(sockets.v6)? };
        loop {
            let mut ready = tokio::select! {
                _ = &mut stopped => return Ok(()),
                ready = readable(&sockets) => ready?,
            };
            {
                let room = &mut *room.lock().unwrap_or_else(PoisonError::into_inner);
                match ready.try_io(|socket| room.inbox.receive(socket.as_fd())) {
                    Ok(Ok(count)) => room.pass(count, &shared, &sockets),
                    // What an ICMP error said of somebody.
                    Ok(Err(error)) => tracing::debug!(%error, "cannot receive"),
                    Err(_) => {}
                }
            }
            drop(ready);
            // Others have their turn.
            tokio::task::yield_now().await;
        }
    }
}

/// One at which something has arrived.
async fn readable(sockets: &Sockets<AsyncFd<OwnedFd>>) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
    match (&sockets.v4, &sockets.v6) {
        (Some(one), Some(other)) => tokio::select! {
            ready = one.readable() => ready,
            ready = other.readable() => ready,
        },
        (Some(one), None) | (None, Some(one)) => one.readable().await,
        (None, None) => std::future::pending().await,
    }
}

/// Sends what there is to send; what the kernel does not take is lost, as with any router.
fn flush(outbox: &mut Outbox, socket: Option<&AsyncFd<OwnedFd>>) {
    match socket {
        Some(socket) => drop(outbox.send(socket.as_fd())),
        None => *outbox = Outbox::with_segments(LARGEST),
    }
}

/// Room for what is passed on in one go: all that the thread does has it by turns.
struct Room {
    inbox: Inbox,
    outbox: PerFamily<Outbox>,
}

impl Room {
    fn new() -> Self {
        // A path that takes less refuses them together, and then they are sent one by one.
        let outbox = || Outbox::with_segments(LARGEST);
        Self { inbox: Inbox::new(LARGEST), outbox: PerFamily { v4: outbox(), v6: outbox() } }
    }

    fn pass(&mut self, count: usize, shared: &Shared, sockets: &Sockets<AsyncFd<OwnedFd>>) {
        let now = Instant::now();
        let mut passed = 0;
        {
            let mut lanes = take(shared);
            let outboxes = &mut self.outbox;
            let mut send = |message: &[u8], to: SocketAddr| {
                let outbox = outboxes.of_mut(Family::of(to.ip()));
                if outbox.is_full() {
                    flush(outbox, sockets.of(Family::of(to.ip())).as_ref());
                }
                outbox.message(to).extend_from_slice(message);
                passed += message.len() as u64;
            };
            for (message, from) in (0..count).filter_map(|at| self.inbox.message(at)) {
                for between in lanes.iter_mut().flatten() {
                    let places = between.pass(message, from, now);
                    places.into_iter().flatten().flatten().for_each(|to| send(message, to));
                    if let Some((greeting, to)) = between.release() {
                        send(&greeting, to);
                    }
                    if places.is_some() {
                        break;
                    }
                }
            }
        }
        for family in Family::ALL {
            flush(self.outbox.of_mut(family), sockets.of(family).as_ref());
        }
        shared.passed.fetch_add(passed, Ordering::Relaxed);
    }
}
