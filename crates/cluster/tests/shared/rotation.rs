//! Keys change while hosts are slow, cut off from etcd, die in the middle of it or are away: who is there is always reached.

use std::collections::{BTreeMap, BTreeSet};

use portolan_cluster::{Other, SealRecord, Step, lane, lane_to, step};
use portolan_model::Id;

use crate::etcd::id;

/// SplitMix64 (Steele, Lea, Flood 2014): a seed is enough to repeat a run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % limit as u64) as usize
    }
}

/// A device: the host's own key and those of the others.
#[derive(Debug, Clone, Default, PartialEq)]
struct Device {
    own: Option<String>,
    peers: BTreeMap<usize, String>,
}

struct Host {
    /// As on disk.
    own: SealRecord,
    /// As last made known.
    known: SealRecord,
    /// How much of the log it has seen.
    seen: usize,
    devices: [Device; 2],
    /// By which lane it sends.
    to: BTreeMap<usize, Option<usize>>,
    is_cut_off: bool,
    is_away: bool,
    was_away: bool,
    is_wanted: bool,
}

struct World {
    random: Random,
    hosts: Vec<Host>,
    /// What hosts made known, in order.
    log: Vec<(usize, SealRecord)>,
    drawn: usize,
    /// Keys that were agreed on: by whom and with whom, on which lane.
    agreed: BTreeSet<(usize, usize, usize, String, String)>,
    steps: BTreeMap<&'static str, usize>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random(seed),
            hosts: Vec::new(),
            log: Vec::new(),
            drawn: 0,
            agreed: BTreeSet::new(),
            steps: BTreeMap::new(),
        };
        let count = 2 + world.random.below(4);
        for number in 0..count {
            let own = SealRecord {
                key: world.draw(),
                port: 51820,
                address: std::net::Ipv6Addr::from_bits((0xfe80 << 112) + number as u128),
                round: 0,
                next: None,
                moved: 0,
                secret: None,
            };
            world.log.push((number, own.clone()));
            world.hosts.push(Host {
                known: own.clone(),
                own,
                seen: count,
                devices: Default::default(),
                to: BTreeMap::new(),
                is_cut_off: false,
                is_away: false,
                was_away: false,
                is_wanted: false,
            });
        }
        (0..count).for_each(|host| world.apply(host));
        (0..count).for_each(|host| world.greet_all(host));
        (0..count).for_each(|host| world.apply(host));
        world
    }

    fn draw(&mut self) -> String {
        self.drawn += 1;
        format!("key {}", self.drawn)
    }

    /// The others as a host has seen them.
    fn view(&self, host: usize) -> BTreeMap<usize, SealRecord> {
        let seen = self.log[..self.hosts[host].seen].iter().filter(|(whose, _)| *whose != host);
        seen.map(|(whose, record)| (*whose, record.clone())).collect()
    }

    fn has_agreed(&self, host: usize, other: usize, record: &SealRecord) -> bool {
        let own = &self.hosts[host].own;
        let on = lane(own.newest());
        let (Some(mine), Some(theirs)) = (own.on(on), record.on(on)) else { return false };
        self.agreed.contains(&(host, other, on, mine.key, theirs.key))
    }

    /// Makes the devices of a host what disk and view say, and then what it sends by.
    fn apply(&mut self, host: usize) {
        let view = self.view(host);
        for on in 0..2 {
            let own = self.hosts[host].own.on(on).map(|key| key.key);
            let peers = view.iter().filter_map(|(at, record)| Some((*at, record.on(on)?.key)));
            self.hosts[host].devices[on] = Device { own, peers: peers.collect() };
        }
        self.send_by(host);
    }

    fn send_by(&mut self, host: usize) {
        let view = self.view(host);
        let to = view
            .iter()
            .map(|(at, record)| (*at, lane_to(&self.hosts[host].own, record, self.has_agreed(host, *at, record))));
        self.hosts[host].to = to.collect();
    }

    /// Two agree on keys on a lane, where both know the other's.
    fn greet(&mut self, one: usize, other: usize, on: usize) {
        let (a, b) = (&self.hosts[one].devices[on], &self.hosts[other].devices[on]);
        let (Some(mine), Some(theirs)) = (a.own.clone(), b.own.clone()) else { return };
        if !self.hosts[one].is_away
            && !self.hosts[other].is_away
            && a.peers.get(&other) == Some(&theirs)
            && b.peers.get(&one) == Some(&mine)
        {
            self.agreed.insert((one, other, on, mine.clone(), theirs.clone()));
            self.agreed.insert((other, one, on, theirs, mine));
        }
    }

    fn greet_all(&mut self, host: usize) {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            (0..2).for_each(|on| self.greet(host, other, on));
        }
    }

    /// A host decides and writes it down; it may die before any of it is in force.
    fn decide(&mut self, host: usize) {
        let me = &self.hosts[host];
        let view = self.view(host);
        // What it decides on is in force.
        let is_in_force = view
            .iter()
            .all(|(at, record)| me.to.get(at) == Some(&lane_to(&me.own, record, self.has_agreed(host, *at, record))));
        if me.is_cut_off || me.is_away || !is_in_force {
            return;
        }
        let others: BTreeMap<Id, Other<'_>> = view
            .iter()
            .map(|(at, seal)| {
                let has_agreed = self.has_agreed(host, *at, seal);
                (id(1, *at as u64), Other { seal, is_here: !self.hosts[*at].is_away, has_agreed })
            })
            .collect();
        let next = step(&me.own, &others, me.is_wanted);
        let (name, own) = match &next {
            Step::Rest | Step::Wait(_) => return,
            Step::Draw(round) => ("draw", me.own.with(String::new(), *round)),
            Step::Replace(round) => ("replace", me.own.anew(String::new(), *round)),
            Step::Moved(round) => ("moved", SealRecord { moved: *round, ..me.own.clone() }),
            Step::Drop => ("drop", me.own.without_old()),
        };
        assert!(name != "replace" || me.was_away, "a host that was there all the time is behind");
        let key = self.draw();
        let me = &mut self.hosts[host];
        me.own = own;
        if me.own.key.is_empty() {
            me.own.key = key;
        } else if let Some(next) = me.own.next.as_mut().filter(|next| next.key.is_empty()) {
            next.key = key;
        }
        if name != "moved" {
            me.is_wanted = false;
        }
        *self.steps.entry(name).or_default() += 1;
    }

    /// Whoever was there all the time reaches all others of whom that is so.
    fn check(&self, seed: u64) {
        for (at, from) in self.hosts.iter().enumerate().filter(|(_, host)| !host.was_away) {
            for (other, to) in self.hosts.iter().enumerate().filter(|(other, host)| *other != at && !host.was_away) {
                assert!(
                    self.is_reached(at, other),
                    "{seed}: {at} {other}: {:?} {:?} {:?} {:?}",
                    from.own,
                    to.own,
                    from.to,
                    to.devices
                );
            }
        }
    }

    fn is_reached(&self, from: usize, to: usize) -> bool {
        let Some(Some(on)) = self.hosts[from].to.get(&to) else { return false };
        let (sends, takes) = (&self.hosts[from].devices[*on], &self.hosts[to].devices[*on]);
        sends.own.is_some()
            && sends.peers.get(&to) == takes.own.as_ref()
            && takes.peers.get(&from) == sends.own.as_ref()
    }

    fn happen(&mut self) {
        let count = self.hosts.len();
        let host = self.random.below(count);
        match self.random.below(100) {
            0..3 => self.hosts[host].is_wanted = true,
            3..6 => self.hosts[host].is_cut_off = true,
            6..12 => self.hosts[host].is_cut_off = false,
            12 => (self.hosts[host].is_away, self.hosts[host].was_away) = (true, true),
            13..16 if self.hosts[host].is_away => {
                self.hosts[host].is_away = false;
                self.apply(host);
            }
            _ if self.hosts[host].is_away => {}
            16..40 if !self.hosts[host].is_cut_off => {
                let left = self.log.len() - self.hosts[host].seen;
                self.hosts[host].seen += self.random.below(left + 1);
            }
            40..55 => self.apply(host),
            55..70 => self.decide(host),
            70..80 if !self.hosts[host].is_cut_off => self.make_known(host),
            80.. => {
                let other = self.random.below(count);
                let on = self.random.below(2);
                if other != host {
                    self.greet(host, other, on);
                }
                // It looks at its devices now and then.
                if self.random.below(2) == 0 {
                    self.send_by(host);
                }
            }
            _ => {}
        }
    }

    fn make_known(&mut self, host: usize) {
        if self.hosts[host].known != self.hosts[host].own {
            self.hosts[host].known = self.hosts[host].own.clone();
            self.log.push((host, self.hosts[host].own.clone()));
        }
    }
}

#[test]
fn who_is_there_is_reached_while_keys_change() {
    let mut all: BTreeMap<&'static str, usize> = BTreeMap::new();
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        world.check(seed);
        for _ in 0..600 {
            world.happen();
            world.check(seed);
        }
        // Everybody is back, and nobody wants anything new.
        for host in &mut world.hosts {
            (host.is_away, host.is_cut_off, host.is_wanted) = (false, false, false);
        }
        for _ in 0..40 {
            for host in 0..world.hosts.len() {
                world.hosts[host].seen = world.log.len();
                world.apply(host);
                world.greet_all(host);
                world.send_by(host);
                world.decide(host);
                world.make_known(host);
                world.check(seed);
            }
        }
        let rounds: BTreeSet<(u64, bool)> =
            world.hosts.iter().map(|host| (host.own.round, host.own.next.is_none())).collect();
        let all_owned: Vec<&SealRecord> = world.hosts.iter().map(|host| &host.own).collect();
        assert!(rounds.len() == 1 && rounds.iter().all(|(_, is_one)| *is_one), "{seed}: {all_owned:?}");
        for (one, other) in (0..world.hosts.len()).flat_map(|one| (0..world.hosts.len()).map(move |two| (one, two))) {
            assert!(one == other || world.is_reached(one, other), "{seed}: {one} does not reach {other}");
        }
        for (name, count) in world.steps {
            *all.entry(name).or_default() += count;
        }
        *all.entry("rounds").or_default() += world.hosts[0].own.round as usize;
    }
    eprintln!("{all:?}");
    assert!(["draw", "replace", "moved", "drop"].iter().all(|name| all[name] > 50), "too little happened: {all:?}");
}
