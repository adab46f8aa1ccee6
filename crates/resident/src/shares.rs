//! Fair shares of the connections that the kernel remembers.
//!
//! The table of connections is one for the host (`nf_conntrack_max`). When it is full, no connection comes about any more,
//! whoever begins it: the kernel gives up entries for new ones only while nobody has answered them. So no container may have
//! more of it than its share while others want theirs.
//!
//! One thread asks the kernel how full the table is, a few times a second, which costs microseconds; after some seconds in which
//! nothing was added it sleeps until a connection begins. Only when it is about to
//! be [`ROOM`] full, or a network has a limit of its own that may be reached, it lists the entries and counts whose they are.
//! Of who has too many those that are closed are forgotten, oldest first: the kernel would remember them for two minutes, and
//! they are of no use. Who has too many all the same begins no connection, and none leads to him, until he has few enough: his addresses go into a set that a
//! rule of our table looks up ([`Set::Excess`]). Elements of it go by themselves after [`STAY`], so nobody is kept from the
//! network by a daemon that died.
//!
//! Counting in the kernel instead (`ct count`, net/netfilter/nf_conncount.c) would look up every connection that a container
//! has each time it begins another, and leave out what is closed but still remembered.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use portolan_kernel::conntrack::{self, Begun, Entry, Fill, Filter};
use portolan_kernel::netlink::{Batch, NETFILTER, NetlinkError, Socket};
use portolan_kernel::nft::encode::{self, Insist};
use portolan_model::{Family, FirewallDriver, Id};
use portolan_plan::{Data, Element, Field, Set};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::daemon::{self, Engine};
use crate::feed::Event;

/// How much of the table all containers together may fill, in quarters, before each is held to its share.
const ROOM: u64 = 3;
/// How much of it is theirs in any case, in quarters, however much the host itself has.
const LEAST_ROOM: u64 = 1;
/// Beyond so many sixteenths, entries of who has too many are forgotten.
const CROWDED: u64 = 15;
/// So many are forgotten between two looks.
const FORGOTTEN: usize = 1 << 14;
/// So many closed ones, so that it is some time until there are too many again.
const FORGOTTEN_CLOSED: usize = 1 << 16;
/// How often to look while nothing calls for more.
const CALM: Duration = Duration::from_millis(250);
/// So many looks that find nothing new are enough: whoever begins something then has us look again.
const QUIET: u32 = 8;
/// How often to look while the table fills.
const BUSY: Duration = Duration::from_millis(50);
/// How far ahead the growth of the table is reckoned with: longer than it takes to count a full one.
const AHEAD: Duration = Duration::from_secs(1);
/// How long an address is held back, unless there is reason to go on.
const STAY: Duration = Duration::from_secs(2);

/// Where a container has connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The container's name.
    pub container: String,
    /// The network's name.
    pub network: String,
    /// The addresses there.
    pub addresses: Vec<IpAddr>,
    /// How many connections it may have there; none leaves it at its share.
    pub limit: Option<u32>,
}

/// A container came, changed or, without a place, went.
#[derive(Debug)]
pub struct Change {
    /// The container.
    pub container: Id,
    /// Where it has connections.
    pub places: Vec<Place>,
}

enum Command {
    Update(Vec<Change>),
    Stop,
}

/// Called, on the thread, with what happened.
pub type Tell = Box<dyn Fn(Event) + Send>;

/// The running thread (`portolan-shares`); dropping it ends it.
pub struct Shares {
    commands: mpsc::Sender<Command>,
    wake: Arc<OwnedFd>,
    held_back: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shares").field("held_back", &self.held_back).finish_non_exhaustive()
    }
}

impl Shares {
    /// Starts the thread for the state at `root`, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When out of descriptors or threads.
    pub fn start(root: PathBuf, tell: Tell) -> Result<Self> {
        let (commands, queue) = mpsc::channel();
        let held_back = Arc::new(AtomicU64::new(0));
        let socket = Socket::open(NETFILTER).context("open a netlink socket")?;
        let counts = held_back.clone();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let woken = wake.clone();
        let work = move || match daemon::engine(&root) {
            Ok(engine) => {
                Thread {
                    engine,
                    socket,
                    queue,
                    wake: woken,
                    tell,
                    held_back: counts,
                    places: BTreeMap::new(),
                    before: None,
                    held: BTreeMap::new(),
                    may_destroy: true,
                }
                .run();
            }
            Err(error) => tracing::error!("fair shares: {error:#}"),
        };
        let thread = std::thread::Builder::new().name("portolan-shares".into()).spawn(work)?;
        Ok(Self { commands, wake, held_back, thread: Some(thread) })
    }

    /// Says what changed; a thread that has ended keeps nobody from anything.
    pub fn update(&self, changes: Vec<Change>) {
        self.send(Command::Update(changes));
    }

    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// How often a container was held back.
    pub fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for fair shares panicked");
        }
    }
}

struct Thread {
    engine: Engine,
    socket: Socket,
    queue: mpsc::Receiver<Command>,
    wake: Arc<OwnedFd>,
    tell: Tell,
    held_back: Arc<AtomicU64>,
    places: BTreeMap<Id, Vec<Place>>,
    /// When it was last looked, and how many entries there were.
    before: Option<(Instant, u32)>,
    /// Who is held back, since when that is in the kernel.
    held: BTreeMap<IpAddr, Instant>,
    /// Whether the kernel removes elements that may not be there (Linux 6.3).
    may_destroy: bool,
}

impl Thread {
    fn run(mut self) {
        let mut due = Instant::now() + CALM;
        // What wakes us, after so many looks that found nothing new.
        let (mut begun, mut quiet): (Option<Begun>, u32) = (None, 0);
        loop {
            // Without containers there is nobody to look after.
            let is_asleep = begun.is_some() || self.places.is_empty();
            match self.wait(begun.as_ref(), (!is_asleep).then_some(due)) {
                Ok(true) => begun = None,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!("fair shares: {error}");
                    return;
                }
            }
            while let Ok(command) = self.queue.try_recv() {
                match command {
                    Command::Update(changes) => changes.into_iter().for_each(|change| self.take(change)),
                    Command::Stop => return,
                }
            }
            if begun.is_some() || self.places.is_empty() || Instant::now() < due {
                continue;
            }
            let entries = self.before.map_or(0, |(_, entries)| entries);
            // A kernel without connection tracking has none to share.
            let (pause, is_calm) = self.look().unwrap_or_else(|error| {
                tracing::debug!(%error, "the table of connections cannot be read");
                (AHEAD, false)
            });
            due = Instant::now() + pause;
            let is_quiet = is_calm && self.before.is_some_and(|(_, now)| now <= entries);
            quiet = if is_quiet { quiet + 1 } else { 0 };
            if quiet >= QUIET {
                // Where it cannot be heard of we go on looking.
                (begun, quiet) = (Begun::open().ok(), 0);
            }
        }
    }

    /// Waits for a command, for a connection that begins, and until `due`; whether a connection began.
    fn wait(&self, begun: Option<&Begun>, due: Option<Instant>) -> Result<bool, Errno> {
        let entry = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut entries = vec![entry(self.wake.as_fd())];
        entries.extend(begun.map(|begun| entry(begun.as_fd())));
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut entries, left.as_ref()) {
            Err(Errno::INTR) => return Ok(false),
            other => other?,
        };
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        Ok(entries.get(1).is_some_and(|entry| !entry.revents().is_empty()))
    }

    fn take(&mut self, change: Change) {
        if change.places.is_empty() {
            self.places.remove(&change.container);
        } else {
            self.places.insert(change.container, change.places);
        }
    }

    /// Looks once; when to look again, and whether nobody can have too many.
    fn look(&mut self) -> Result<(Duration, bool), NetlinkError> {
        let now = Instant::now();
        let fill = conntrack::fill(&mut self.socket)?;
        let growth = self.before.map_or(0, |(then, entries)| growth(entries, fill.entries, now - then));
        self.before = Some((now, fill.entries));
        let limits = || self.places.values().flatten().filter_map(|place| place.limit);
        let is_tight = is_tight(fill, growth);
        if !is_tight && limits().min().is_none_or(|limit| fill.entries < limit) {
            // A limit is reached sooner than a table is filled.
            let is_near = limits().next().is_some() || fill.max.is_some_and(|max| fill.entries > max / 4);
            return Ok((if is_near { BUSY } else { CALM }, true));
        }
        let mut fill = fill;
        let mut entries = conntrack::dump(&mut self.socket, Filter::default())?;
        let mut excess = excess(&self.places, &counts(&entries), fill, growth);
        if is_tight {
            let closed = closed(&mut entries, &excess);
            if !closed.is_empty() {
                fill.entries = fill.entries.saturating_sub(closed.len() as u32);
                self.before = Some((now, fill.entries));
                self.forget(&closed)?;
                excess = self::excess(&self.places, &counts(&entries), fill, growth);
            }
        }
        if let Err(error) = self.hold(&excess) {
            tracing::warn!("{error:#}");
        }
        if fill.max.is_some_and(|max| u64::from(fill.entries) * 16 > u64::from(max) * CROWDED) {
            self.forget(&beyond(&entries, &excess))?;
        }
        // Counting is not to take more than a tenth of the time, or half of it while nobody is held back who should be.
        let is_urgent = is_tight && excess.is_empty();
        Ok((BUSY.max(now.elapsed() * if is_urgent { 1 } else { 9 }).min(STAY / 4), false))
    }

    /// Keeps those who have too many from beginning connections, for [`STAY`].
    fn hold(&mut self, excess: &[Excess]) -> Result<()> {
        self.held.retain(|_, since| since.elapsed() < STAY);
        if excess.is_empty() {
            return Ok(());
        }
        let firewall = self.engine.firewall()?;
        if firewall.driver != FirewallDriver::Nftables {
            return Ok(());
        }
        let is_fresh = |address: &IpAddr| self.held.get(address).is_some_and(|since| since.elapsed() < STAY / 4);
        let mut elements = Vec::new();
        for Excess { place, count, .. } in excess {
            if !place.addresses.iter().any(|address| self.held.contains_key(address)) {
                let Place { container, network, .. } = place;
                tracing::warn!(%container, %network, connections = count, "has more than its share of connections");
                self.held_back.fetch_add(1, Ordering::Relaxed);
                (self.tell)(Event::HeldBack {
                    container: container.clone(),
                    network: network.clone(),
                    connections: *count,
                });
            }
            let owner = format!("container {} on {}", place.container, place.network);
            elements.extend(place.addresses.iter().filter(|address| !is_fresh(address)).map(|address| Element {
                set: Set::Excess(Family::of(*address)),
                key: vec![Field::Address(*address)],
                data: Data::Member,
                owner: owner.clone(),
            }));
        }
        elements.sort();
        if elements.is_empty() {
            return Ok(());
        }
        let mut sent = self.put(&firewall.name, &elements);
        if sent.is_err() && self.may_destroy {
            self.may_destroy = false;
            sent = self.put(&firewall.name, &elements);
            // The table may have been away.
            self.may_destroy = sent.is_err();
        }
        sent.context("hold back who has too many connections")?;
        let since = Instant::now();
        let addresses = excess.iter().flat_map(|excess| &excess.place.addresses);
        self.held.extend(addresses.map(|address| (*address, since)));
        Ok(())
    }

    fn put(&mut self, table: &str, elements: &[Element]) -> Result<(), NetlinkError> {
        let elements: Vec<&Element> = elements.iter().collect();
        let mut batch = Batch::new();
        batch.begin_nft(None);
        if self.may_destroy {
            encode::delete_elements(&mut batch, table, &elements, Insist::No);
        }
        encode::add_passing_elements(&mut batch, table, &elements, STAY);
        batch.end_nft();
        self.socket.transact(&batch).map(drop)
    }

    fn forget(&mut self, entries: &[Entry]) -> Result<(), NetlinkError> {
        for entries in entries.chunks(FORGOTTEN) {
            let mut batch = Batch::new();
            for entry in entries {
                conntrack::delete(&mut batch, entry);
            }
            // Those that went by themselves are gone as well.
            self.socket.transact_each(&batch)?;
        }
        Ok(())
    }
}

/// How many connections each address has.
fn counts(entries: &[Entry]) -> BTreeMap<IpAddr, u64> {
    let mut counts = BTreeMap::new();
    for end in entries.iter().flat_map(Entry::ends) {
        *counts.entry(end).or_default() += 1;
    }
    counts
}

/// Who of `excess` an address is of, by number.
fn owners(excess: &[Excess]) -> BTreeMap<IpAddr, usize> {
    let addresses = |(at, excess): (usize, &Excess)| {
        excess.place.addresses.iter().map(move |address| (*address, at)).collect::<Vec<_>>()
    };
    excess.iter().enumerate().flat_map(addresses).collect()
}

/// What gives others room again: what those who are held back have beyond their share.
fn beyond(entries: &[Entry], excess: &[Excess]) -> Vec<Entry> {
    let owners = owners(excess);
    let mut beyond: Vec<u64> = excess.iter().map(|excess| excess.count.saturating_sub(excess.share)).collect();
    let is_beyond = |entry: &&Entry| {
        let owner = entry.ends().find_map(|end| owners.get(&end));
        owner.is_some_and(|at| beyond[*at].checked_sub(1).map(|less| beyond[*at] = less).is_some())
    };
    entries.iter().filter(is_beyond).take(FORGOTTEN).cloned().collect()
}

/// Takes those out that are closed, of who has too many: the ones that would go soonest.
fn closed(entries: &mut Vec<Entry>, excess: &[Excess]) -> Vec<Entry> {
    let owners = owners(excess);
    let is_closed = |entry: &Entry| entry.is_closed && entry.ends().any(|end| owners.contains_key(&end));
    let mut closed: Vec<Entry> = entries.extract_if(.., |entry| is_closed(entry)).collect();
    closed.sort_by_key(|entry| entry.timeout);
    entries.extend(closed.split_off(closed.len().min(FORGOTTEN_CLOSED)));
    closed
}

/// How many entries more there will be after [`AHEAD`], if it goes on like this.
fn growth(before: u32, now: u32, time: Duration) -> u64 {
    let grown = f64::from(now.saturating_sub(before));
    (grown * AHEAD.as_secs_f64() / time.as_secs_f64().max(0.001)) as u64
}

/// Whether containers may fill more of the table than there is room, now or soon.
fn is_tight(fill: Fill, growth: u64) -> bool {
    fill.max.is_some_and(|max| (u64::from(fill.entries) + growth) * 4 > u64::from(max) * ROOM)
}

/// A place with too many connections.
#[derive(Debug, PartialEq, Eq)]
struct Excess {
    place: Place,
    count: u64,
    /// How many it may have.
    share: u64,
}

/// Who has more connections than its share, or than the limit of a network.
fn excess(places: &BTreeMap<Id, Vec<Place>>, counts: &BTreeMap<IpAddr, u64>, fill: Fill, growth: u64) -> Vec<Excess> {
    let at = |place: &Place| -> u64 { place.addresses.iter().filter_map(|address| counts.get(address)).sum() };
    let of = |places: &Vec<Place>| -> u64 { places.iter().map(at).sum() };
    let room = fill.max.filter(|_| is_tight(fill, growth)).map(|max| {
        let quarter = u64::from(max) / 4;
        // A connection between two containers is both one's and the other's.
        let others = u64::from(fill.entries).saturating_sub(places.values().map(of).sum());
        (quarter * ROOM).saturating_sub(others + growth).max(quarter * LEAST_ROOM)
    });
    let share = room.and_then(|room| share(places.values().map(of).collect(), room));
    let mut all = Vec::new();
    for places in places.values() {
        let over = share.filter(|share| of(places) > *share);
        for place in places {
            let count = at(place);
            // What it has elsewhere counts as well.
            let share = over.map(|share| share.saturating_sub(of(places) - count));
            let limit = place.limit.map(u64::from).filter(|limit| count >= *limit);
            if let Some(share) = [share, limit].into_iter().flatten().min() {
                all.push(Excess { place: place.clone(), count, share });
            }
        }
    }
    all
}

/// The most that each may have, so that together they have no more than `room`, and none is cut that has less; none if all
/// have room.
fn share(mut counts: Vec<u64>, mut room: u64) -> Option<u64> {
    counts.sort_unstable();
    let mut left = counts.len() as u64;
    for count in counts {
        let level = room / left;
        if count > level {
            return Some(level);
        }
        room -= count;
        left -= 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(container: &str, address: &str, limit: Option<u32>) -> Place {
        Place { container: container.into(), network: "web".into(), addresses: vec![address.parse().unwrap()], limit }
    }

    fn held(counts: &[(&str, &str, u64, Option<u32>)], fill: (u32, u32), growth: u64) -> Vec<(String, u64)> {
        let mut places: BTreeMap<Id, Vec<Place>> = BTreeMap::new();
        let mut found = BTreeMap::new();
        for (container, address, count, limit) in counts {
            let mut id = [0; 32];
            id[..container.len()].copy_from_slice(container.as_bytes());
            places.entry(Id::from_bytes(id)).or_default().push(place(container, address, *limit));
            found.insert(address.parse().unwrap(), *count);
        }
        let fill = Fill { entries: fill.0, max: Some(fill.1) };
        excess(&places, &found, fill, growth).into_iter().map(|one| (one.place.container, one.share)).collect()
    }

    #[test]
    fn the_greatest_are_cut_to_what_is_left() {
        assert_eq!(share(vec![], 10), None);
        assert_eq!(share(vec![4, 6], 10), None);
        assert_eq!(share(vec![9, 2], 10), Some(8));
        assert_eq!(share(vec![50, 2, 60], 10), Some(4));
        assert_eq!(share(vec![5, 5, 5], 10), Some(3));
        assert_eq!(share(vec![1], 0), Some(0));
    }

    #[test]
    fn who_has_more_than_its_share_is_held_back_when_the_table_fills() {
        let two = [("a", "10.0.0.2", 700, None), ("b", "10.0.0.3", 20, None)];
        assert_eq!(held(&two, (720, 1000), 0), []);
        // Soon there will be no room.
        assert_eq!(held(&two, (720, 1000), 100), [("a".into(), 630)]);
        let two = [("a", "10.0.0.2", 800, None), ("b", "10.0.0.3", 20, None)];
        assert_eq!(held(&two, (820, 1000), 0), [("a".into(), 730)]);
        // The host's own are not the containers' fault, who have a quarter in any case.
        assert_eq!(held(&[("a", "10.0.0.2", 200, None)], (950, 1000), 0), []);
        assert_eq!(held(&[("a", "10.0.0.2", 300, None)], (950, 1000), 0), [("a".into(), 250)]);
        // One container, whichever of its addresses it uses.
        let both = [("a", "10.0.0.2", 500, None), ("a", "fd00::2", 400, None), ("b", "10.0.0.3", 20, None)];
        assert_eq!(held(&both, (920, 1000), 0), [("a".into(), 330), ("a".into(), 230)]);
    }

    #[test]
    fn a_limit_holds_in_an_empty_table_as_well() {
        let two = [("a", "10.0.0.2", 30, Some(30)), ("b", "10.0.0.3", 29, Some(30))];
        assert_eq!(held(&two, (59, 1000), 0), [("a".into(), 30)]);
        let fill = Fill { entries: 59, max: None };
        let id = Id::from_bytes([1; 32]);
        let places = BTreeMap::from([(id, vec![place("a", "10.0.0.2", Some(30))])]);
        let counts = BTreeMap::from([("10.0.0.2".parse().unwrap(), 31)]);
        assert_eq!(excess(&places, &counts, fill, 0).len(), 1);
    }

    #[test]
    fn the_oldest_closed_ones_of_who_has_too_many_are_forgotten() {
        let tuple = |from: &str| conntrack::Tuple {
            src: from.parse().unwrap(),
            dst: "10.9.9.9".parse().unwrap(),
            protocol: 6,
            src_port: 1,
            dst_port: 2,
            icmp: None,
        };
        let entry = |from: &str, timeout, is_closed| Entry {
            id: None,
            original: tuple(from),
            reply: tuple(from),
            status: 0,
            zone: 0,
            mark: 0,
            timeout: Some(timeout),
            is_closed,
        };
        let excess = [Excess { place: place("a", "10.0.0.2", None), count: 9, share: 4 }];
        let open = entry("10.0.0.2", 5, false);
        let of_another = entry("10.0.0.3", 5, true);
        let mut entries =
            vec![entry("10.0.0.2", 9, true), open.clone(), of_another.clone(), entry("10.0.0.2", 7, true)];
        let closed = closed(&mut entries, &excess);
        assert_eq!(closed, [entry("10.0.0.2", 7, true), entry("10.0.0.2", 9, true)]);
        assert_eq!(entries, [open.clone(), of_another.clone()]);
        let mut many = vec![entry("10.0.0.2", 9, true); FORGOTTEN_CLOSED + 3];
        assert_eq!(self::closed(&mut many, &excess).len(), FORGOTTEN_CLOSED);
        assert_eq!(many.len(), 3);
        // Of open ones as many as it has too many.
        let entries = [vec![open; 20], vec![of_another; 20]].concat();
        assert_eq!(beyond(&entries, &excess), entries[..5]);
    }

    #[test]
    fn growth_is_that_of_a_second() {
        assert_eq!(growth(100, 200, Duration::from_millis(250)), 400);
        assert_eq!(growth(200, 100, Duration::from_millis(250)), 0);
    }
}
