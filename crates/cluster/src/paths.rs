//! The paths to other hosts, as this one finds them: what is sent to whom and when, and what is made of what comes back. No clock, no
//! socket.
//!
//! A path is one by tunnels, encrypted or not, to a host that this one shares a network with. Along each goes a small packet every
//! other second, which the other host's kernel sends back. What does not come back in [`PATIENCE`] is lost; after [`MISSES`] in a row
//! the path is *silent*, and whether the host answers outside of tunnels, which is asked from the first miss on, tells a blocked port
//! from a host that is not there.
//!
//! From time to time three datagrams go with it: one that is summed up when it is sent, and two whose checksum is for the sender's
//! interface to fill in, a small one and one as large as the route says. The receiver drops what does not add up, so by which of them
//! arrive a path that carries less than it should is told from an interface that fills in nonsense; and from a receiver whose firewall
//! takes none of them, of whom nothing is said.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use portolan_model::Id;
use serde::{Deserialize, Serialize};

/// How often something is sent along a path, unless there are many.
const PERIOD: Duration = Duration::from_millis(1500);
/// The same while it is in question whether anything gets through.
const IN_QUESTION: Duration = Duration::from_secs(1);
/// So many packets a second are sent along all paths.
const RATE: u32 = 500;
/// So many of them at once at most.
const BURST: u32 = 50;
/// What has not come back after this long is lost.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// After so many lost ones in a row nothing gets through.
const MISSES: u32 = 3;
/// A path is new for so long: what is at its other end may not be there yet.
const SETTLING: Duration = Duration::from_millis(300);
/// How often it is looked at what size gets through, while all does.
const SIZES: Duration = Duration::from_secs(60);
/// The same while something does not.
const SIZES_AGAIN: Duration = Duration::from_secs(5);
/// So often each size is sent before it counts as one that does not get through.
const TRIES: u32 = 4;
/// Where more than this is lost nothing is concluded of the size.
const TOO_LOSSY: f64 = 0.25;
/// Losses are counted by tenths of a minute, for one minute.
const SLOT: Duration = Duration::from_secs(10);
const SLOTS: usize = 6;

/// A path to another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathTo {
    /// The host.
    pub host: Id,
    /// Whether by the encrypted link.
    pub sealed: bool,
}

/// How a path begins, and what is to be on its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The network by whose tunnels it goes.
    pub network: Id,
    /// What the other end answers as.
    pub end: Ipv6Addr,
    /// Where the host is outside of tunnels, if that can be said.
    pub outside: Option<IpAddr>,
    /// The largest packet that the route there takes.
    pub size: u32,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// A small packet by the tunnel, summed up by the kernel.
    Small,
    /// A small datagram, summed up when it is sent.
    Plain,
    /// A small one that the interface sums up.
    Summed,
    /// One of full size that the interface sums up.
    Full,
    /// A small one outside of tunnels.
    Outside,
}

/// Something to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shot {
    /// Along which path, or to its host.
    pub to: PathTo,
    /// How it gets there.
    pub tunnel: Tunnel,
    /// What.
    pub probe: Probe,
    /// What is to come back.
    pub token: u64,
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Passage {
    /// Nothing yet.
    #[default]
    Unknown,
    /// All gets through.
    Passes,
    /// Small packets do, and those as large as they should be do not.
    Narrow,
    /// What the kernel sums up does, and what the interface is to sum up does not.
    Corrupt,
    /// Nothing does, and the host answers outside of tunnels.
    Blocked,
    /// Nothing does, and the host does not answer otherwise either.
    Silent,
}

impl Passage {
    /// As people and metrics are told, and as it is in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Passes => "passes",
            Self::Narrow => "narrow",
            Self::Corrupt => "corrupt",
            Self::Blocked => "blocked",
            Self::Silent => "silent",
        }
    }
}

/// A path in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Figures {
    /// What gets through.
    pub passage: Passage,
    /// How long a small packet takes there and back, smoothed as by RFC 6298 §2.
    pub rtt: Option<Duration>,
    /// How many of a hundred small packets of the last minute did not come back, divided by a hundred.
    pub loss: Option<f64>,
    /// Whether packets of full size get through.
    pub full_size: Option<bool>,
    /// What full size is, in bytes.
    pub size: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    number: u64,
    settled: u32,
    lost: u32,
}

/// Whether the host answers outside of tunnels, while the path is in question.
#[derive(Debug, Clone, Copy, Default)]
struct Outside {
    asked: u32,
    answers: bool,
}

/// What size gets through.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    due: Instant,
    tries: u32,
    plain: bool,
    summed: bool,
    full: bool,
    /// What came of it the last time: whether what the interface sums up arrives, and what is of full size.
    last: Option<(bool, bool)>,
}

#[derive(Debug)]
struct Path {
    tunnel: Tunnel,
    due: Instant,
    rtt: Option<Duration>,
    slots: [Slot; SLOTS],
    missed: u32,
    is_heard: bool,
    outside: Outside,
    sizes: Sizes,
}

impl Path {
    fn new(tunnel: Tunnel, due: Instant) -> Self {
        let sizes = Sizes { due, tries: 0, plain: false, summed: false, full: false, last: None };
        let slots = [Slot::default(); SLOTS];
        Self { tunnel, due, rtt: None, slots, missed: 0, is_heard: false, outside: Outside::default(), sizes }
    }

    fn settle(&mut self, number: u64, is_lost: bool) {
        let slot = &mut self.slots[number as usize % SLOTS];
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot.settled += 1;
        slot.lost += u32::from(is_lost);
    }

    fn loss(&self, number: u64) -> Option<f64> {
        let recent = self.slots.iter().filter(|slot| slot.number + SLOTS as u64 > number);
        let (settled, lost) = recent.fold((0, 0), |(settled, lost), slot| (settled + slot.settled, lost + slot.lost));
        (settled > 0).then(|| f64::from(lost) / f64::from(settled))
    }

    fn passage(&self) -> Passage {
        match (self.missed >= MISSES, self.is_heard, self.sizes.last) {
            // Asked twice at least: one of them may be lost.
            (true, ..) if self.outside.answers => Passage::Blocked,
            (true, ..) if self.outside.asked >= MISSES => Passage::Silent,
            (true, ..) | (_, false, _) => Passage::Unknown,
            (_, _, Some((false, _))) => Passage::Corrupt,
            (_, _, Some((true, false))) => Passage::Narrow,
            (_, _, Some((true, true)) | None) => Passage::Passes,
        }
    }
}

/// The paths to all hosts that this one shares a network with.
#[derive(Debug)]
pub struct Paths {
    began: Instant,
    paths: BTreeMap<PathTo, Path>,
    /// When something is to be sent along which path.
    agenda: BTreeSet<(Instant, PathTo)>,
    /// What was sent and has neither come back nor is lost; later ones have higher tokens.
    under_way: BTreeMap<u64, (PathTo, Probe, Instant)>,
    next_token: u64,
    /// What may still be sent, as of when.
    budget: (u32, Instant),
}

impl Paths {
    /// None yet. Tokens go up from `token`.
    pub fn new(token: u64, now: Instant) -> Self {
        Self {
            began: now,
            paths: BTreeMap::new(),
            agenda: BTreeSet::new(),
            under_way: BTreeMap::new(),
            next_token: token,
            budget: (BURST, now),
        }
    }

    /// Has them be these. One that begins otherwise than before is measured anew.
    pub fn set(&mut self, wanted: &BTreeMap<PathTo, Tunnel>, now: Instant) {
        let gone: Vec<PathTo> = self.paths.keys().filter(|to| !wanted.contains_key(to)).copied().collect();
        for to in gone {
            self.forget(to);
        }
        let period = period(wanted.len());
        for (to, tunnel) in wanted {
            match self.paths.get_mut(to) {
                Some(path) if path.tunnel == *tunnel => {}
                // Another network leads to the same place.
                Some(path) if (Tunnel { network: tunnel.network, ..path.tunnel }) == *tunnel => path.tunnel = *tunnel,
                _ => {
                    self.forget(*to);
                    // Spread by what is as good as chance.
                    let [first, second] = *to.host.as_bytes().first_chunk().expect("32 bytes");
                    let due = now + SETTLING + period * u32::from(u16::from_le_bytes([first, second])) / 0x1_0000;
                    self.paths.insert(*to, Path::new(*tunnel, due));
                    self.agenda.insert((due, *to));
                }
            }
        }
    }

    fn forget(&mut self, to: PathTo) {
        if let Some(path) = self.paths.remove(&to) {
            self.agenda.remove(&(path.due, to));
            self.under_way.retain(|_, (of, ..)| *of != to);
        }
    }

    /// What is to be sent now.
    pub fn due(&mut self, now: Instant) -> Vec<Shot> {
        self.lose(now);
        let period = period(self.paths.len());
        let refill = (now.saturating_duration_since(self.budget.1).as_micros() * u128::from(RATE) / 1_000_000) as u64;
        if refill > 0 {
            self.budget = (u64::from(self.budget.0).saturating_add(refill).min(BURST.into()) as u32, now);
        }
        let mut shots = Vec::new();
        while let Some((due, to)) = self.agenda.first().copied().filter(|(due, _)| *due <= now) {
            let path = self.paths.get_mut(&to).expect("what is on the agenda is there");
            let mut probes = vec![Probe::Small];
            if path.missed > 0 {
                path.outside.asked += 1;
                probes.extend(path.tunnel.outside.map(|_| Probe::Outside));
            } else if path.is_heard && path.sizes.due <= now && path.sizes.tries < TRIES {
                path.sizes.tries += 1;
                let Sizes { plain, summed, full, .. } = path.sizes;
                let sizes = [(plain, Probe::Plain), (summed, Probe::Summed), (full, Probe::Full)];
                probes.extend(sizes.into_iter().filter(|(has_arrived, _)| !has_arrived).map(|(_, probe)| probe));
            }
            self.agenda.remove(&(due, to));
            path.due = now + if (1..MISSES).contains(&path.missed) { IN_QUESTION.min(period) } else { period };
            self.agenda.insert((path.due, to));
            let tunnel = path.tunnel;
            for probe in probes {
                let token = self.next_token;
                self.next_token += 1;
                self.under_way.insert(token, (to, probe, now));
                shots.push(Shot { to, tunnel, probe, token });
            }
            self.budget.0 = self.budget.0.saturating_sub(1);
            if self.budget.0 == 0 {
                break;
            }
        }
        shots
    }

    /// When something is to be done next.
    pub fn next(&self) -> Option<Instant> {
        let sent = self.under_way.first_key_value().map(|(_, (_, _, sent))| *sent + PATIENCE);
        let due = self.agenda.first().map(|(due, _)| *due);
        let due = if self.budget.0 == 0 {
            due.map(|due| due.max(self.budget.1 + Duration::from_secs(1) / RATE))
        } else {
            due
        };
        due.into_iter().chain(sent).min()
    }

    /// Takes note of what came back.
    pub fn heard(&mut self, token: u64, now: Instant) {
        let slot = self.slot(now);
        let Some((to, probe, sent)) = self.under_way.remove(&token) else { return };
        let Some(path) = self.paths.get_mut(&to) else { return };
        match probe {
            Probe::Small => {
                let took = now.saturating_duration_since(sent);
                path.rtt = Some(path.rtt.map_or(took, |rtt| (rtt * 7 + took) / 8));
                path.settle(slot, false);
                (path.missed, path.is_heard, path.outside) = (0, true, Outside::default());
            }
            Probe::Plain => path.sizes.plain = true,
            Probe::Summed => path.sizes.summed = true,
            Probe::Full => path.sizes.full = true,
            Probe::Outside => path.outside.answers = true,
        }
        // What gets through at full size is small as well.
        if path.sizes.full {
            conclude(path, Some((true, true)), now + SIZES);
        }
    }

    /// Gives up what was not heard of in time.
    fn lose(&mut self, now: Instant) {
        let slot = self.slot(now);
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.get().2 + PATIENCE <= now) {
            let (to, probe, _) = entry.remove();
            let Some(path) = self.paths.get_mut(&to) else { continue };
            match probe {
                Probe::Small => {
                    path.settle(slot, true);
                    path.missed += 1;
                    if path.missed == 1 {
                        // What size gets through is to be found out anew.
                        (path.sizes.tries, path.sizes.due) = (0, now);
                        self.agenda.remove(&(path.due, to));
                        path.due = path.due.min(now);
                        self.agenda.insert((path.due, to));
                    }
                }
                Probe::Plain | Probe::Summed | Probe::Full if path.sizes.tries >= TRIES && path.missed == 0 => {
                    let is_lossy = path.loss(slot).is_none_or(|loss| loss > TOO_LOSSY);
                    let Sizes { plain, summed, full, .. } = path.sizes;
                    match (is_lossy, plain || summed) {
                        (true, _) => begin_sizes(path, now + SIZES_AGAIN),
                        (false, true) => conclude(path, Some((summed, full)), now + SIZES_AGAIN),
                        (false, false) => conclude(path, None, now + SIZES),
                    }
                }
                Probe::Plain | Probe::Summed | Probe::Full | Probe::Outside => {}
            }
        }
    }

    /// What is known of each.
    pub fn figures(&self, now: Instant) -> BTreeMap<PathTo, Figures> {
        let slot = self.slot(now);
        let figures = |path: &Path| Figures {
            passage: path.passage(),
            rtt: path.rtt.filter(|_| path.missed < MISSES),
            loss: path.loss(slot),
            full_size: path.sizes.last.map(|(_, full)| full),
            size: path.tunnel.size,
        };
        self.paths.iter().map(|(to, path)| (*to, figures(path))).collect()
    }

    fn slot(&self, now: Instant) -> u64 {
        // From 1 on: no slot is of the number that empty ones have.
        now.saturating_duration_since(self.began).as_secs() / SLOT.as_secs() + SLOTS as u64
    }
}

fn period(paths: usize) -> Duration {
    PERIOD.max(Duration::from_secs(1) * u32::try_from(paths).unwrap_or(u32::MAX) / RATE)
}

fn conclude(path: &mut Path, found: Option<(bool, bool)>, next: Instant) {
    path.sizes.last = found;
    begin_sizes(path, next);
}

fn begin_sizes(path: &mut Path, due: Instant) {
    path.sizes = Sizes { due, tries: 0, plain: false, summed: false, full: false, last: path.sizes.last };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts that answer as told, and the time.
    struct World {
        paths: Paths,
        wanted: BTreeMap<PathTo, Tunnel>,
        now: Instant,
        began: Instant,
        /// Along which path, of what kind and when something was sent.
        sent: Vec<(PathTo, Probe, Duration)>,
    }

    const RTT: Duration = Duration::from_millis(20);

    fn host(number: u16) -> PathTo {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.wrapping_mul(0x9e37).to_le_bytes());
        bytes[2..4].copy_from_slice(&number.to_le_bytes());
        PathTo { host: Id::from_bytes(bytes), sealed: false }
    }

    fn tunnel() -> Tunnel {
        Tunnel {
            network: Id::from_bytes([1; 32]),
            end: "fe80::1".parse().unwrap(),
            outside: Some("192.0.2.1".parse().unwrap()),
            size: 1450,
        }
    }

    impl World {
        fn of(count: u16) -> Self {
            let now = Instant::now();
            let wanted: BTreeMap<PathTo, Tunnel> = (0..count).map(|number| (host(number), tunnel())).collect();
            let mut paths = Paths::new(0, now);
            paths.set(&wanted, now);
            Self { paths, wanted, now, began: now, sent: Vec::new() }
        }

        /// Lets time pass, in which `answers` tells what comes back.
        fn pass(&mut self, time: Duration, mut answers: impl FnMut(&Shot) -> bool) {
            let end = self.now + time;
            let mut coming: BTreeMap<(Instant, u64), u64> = BTreeMap::new();
            loop {
                for shot in self.paths.due(self.now) {
                    self.sent.push((shot.to, shot.probe, self.now - self.began));
                    if answers(&shot) {
                        coming.insert((self.now + RTT, shot.token), shot.token);
                    }
                }
                let answer = coming.first_key_value().map(|((at, _), _)| *at);
                let next = self.paths.next().into_iter().chain(answer).min().unwrap_or(end);
                if next >= end {
                    self.now = end;
                    return;
                }
                assert!(next >= self.now || self.paths.next() >= Some(self.now), "it comes to an end");
                self.now = self.now.max(next);
                while let Some(entry) = coming.first_entry().filter(|entry| entry.key().0 <= self.now) {
                    let token = entry.remove();
                    self.paths.heard(token, self.now);
                }
            }
        }

        fn figures(&self) -> Figures {
            self.paths.figures(self.now)[&host(0)]
        }

        fn count(&self, probe: Probe) -> usize {
            self.sent.iter().filter(|(_, of, _)| *of == probe).count()
        }
    }

    const fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn a_path_that_is_as_it_should_be_is_measured() {
        let mut world = World::of(1);
        assert_eq!(world.figures(), Figures { size: 1450, ..Figures::default() });
        world.pass(seconds(121), |_| true);
        let figures = world.figures();
        assert_eq!((figures.passage, figures.rtt, figures.loss), (Passage::Passes, Some(RTT), Some(0.0)));
        assert_eq!(figures.full_size, Some(true));
        let small = world.count(Probe::Small);
        assert!((75..=82).contains(&small), "every one and a half seconds: {small}");
        assert_eq!((world.count(Probe::Full), world.count(Probe::Outside)), (2, 0), "{:?}", world.sent);
    }

    #[test]
    fn what_is_lost_is_counted_for_a_minute() {
        let mut world = World::of(1);
        let mut number = 0;
        world.pass(seconds(90), |shot| {
            number += u32::from(shot.probe == Probe::Small);
            shot.probe != Probe::Small || !number.is_multiple_of(5)
        });
        let loss = world.figures().loss.unwrap();
        assert!((0.15..0.25).contains(&loss), "{loss}");
        assert_eq!(world.figures().passage, Passage::Passes);
        world.pass(seconds(71), |_| true);
        assert_eq!(world.figures().loss, Some(0.0));
    }

    #[test]
    fn a_blocked_port_is_told_from_a_host_that_is_not_there_within_ten_seconds() {
        for (answers_outside, passage) in [(true, Passage::Blocked), (false, Passage::Silent)] {
            // Whenever it happens.
            for after in (20_000..21_500).step_by(100) {
                let mut world = World::of(1);
                world.pass(Duration::from_millis(after), |_| true);
                world.pass(seconds(9), |shot| answers_outside && shot.probe == Probe::Outside);
                assert_eq!(world.figures().passage, passage, "{after}");
                assert_eq!(world.figures().rtt, None);
                world.pass(seconds(4), |_| true);
                assert_eq!(world.figures().passage, Passage::Passes, "{after}");
            }
        }
    }

    #[test]
    fn one_packet_that_is_lost_says_nothing() {
        let mut world = World::of(1);
        world.pass(seconds(10), |_| true);
        let mut lost = 0;
        world.pass(seconds(3), |shot| {
            lost += u32::from(shot.probe == Probe::Small);
            shot.probe != Probe::Small || lost > 2
        });
        assert_eq!(world.figures().passage, Passage::Passes);
    }

    #[test]
    fn what_does_not_get_through_is_told_by_its_size_and_sum() {
        let cases: [(&str, &[Probe], Passage, Option<bool>); 3] = [
            ("a smaller MTU in between", &[Probe::Full], Passage::Narrow, Some(false)),
            ("sums that are wrong", &[Probe::Full, Probe::Summed], Passage::Corrupt, Some(false)),
            ("a firewall at the other end", &[Probe::Full, Probe::Summed, Probe::Plain], Passage::Passes, None),
        ];
        for (case, lost, passage, full_size) in cases {
            let mut world = World::of(1);
            world.pass(seconds(10), |shot| !lost.contains(&shot.probe));
            assert_eq!((world.figures().passage, world.figures().full_size), (passage, full_size), "{case}");
            // It is seen when that is over, soon if it was said.
            world.pass(seconds(if full_size.is_some() { 15 } else { 75 }), |_| true);
            assert_eq!((world.figures().passage, world.figures().full_size), (Passage::Passes, Some(true)), "{case}");
            // One that begins later is seen with the next look.
            world.pass(seconds(75), |shot| !lost.contains(&shot.probe));
            assert_eq!(world.figures().passage, passage, "{case}");
        }
    }

    #[test]
    fn nothing_is_said_of_the_size_where_much_is_lost() {
        let mut world = World::of(1);
        let mut number = 0;
        world.pass(seconds(120), |shot| {
            number += u32::from(shot.probe == Probe::Small);
            shot.probe == Probe::Small && !number.is_multiple_of(3)
        });
        assert_eq!((world.figures().passage, world.figures().full_size), (Passage::Passes, None));
    }

    #[test]
    fn another_size_is_looked_at_at_once_and_another_network_leads_to_the_same() {
        let mut world = World::of(1);
        world.pass(seconds(20), |_| true);
        let other = Tunnel { network: Id::from_bytes([2; 32]), ..tunnel() };
        world.paths.set(&BTreeMap::from([(host(0), other)]), world.now);
        world.pass(seconds(5), |_| true);
        assert_eq!((world.count(Probe::Full), world.figures().rtt), (1, Some(RTT)));
        let other = Tunnel { size: 1400, ..tunnel() };
        world.paths.set(&BTreeMap::from([(host(0), other)]), world.now);
        world.pass(seconds(5), |_| true);
        assert_eq!((world.count(Probe::Full), world.figures().size), (2, 1400));
        world.paths.set(&BTreeMap::new(), world.now);
        world.pass(seconds(5), |_| panic!("nobody is left"));
        assert!(world.paths.figures(world.now).is_empty());
    }

    #[test]
    fn a_thousand_hosts_are_measured_one_after_the_other() {
        let mut world = World::of(1000);
        world.pass(seconds(20), |_| true);
        let in_second = |second: u64| {
            let small = world.sent.iter().filter(|(_, probe, _)| *probe == Probe::Small);
            small.filter(|(.., at)| at.as_secs() == second).count()
        };
        for second in 3..20 {
            assert!((300..=560).contains(&in_second(second)), "{second}: {}", in_second(second));
        }
        assert!(world.paths.figures(world.now).values().all(|figures| figures.full_size == Some(true)));
        // All that is blocked is known in time.
        world.pass(seconds(10), |shot| shot.probe == Probe::Outside);
        let blocked = |figures: &&Figures| figures.passage == Passage::Blocked;
        let count = world.paths.figures(world.now).values().filter(blocked).count();
        assert_eq!(count, 1000);
        assert_eq!(world.wanted.len(), 1000);
    }
}
