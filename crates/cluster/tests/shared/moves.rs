//! Blocks move between hosts that are cut off, restart, die, and hear late or never what became of what they wrote.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_cluster::{Key, Operation, Own, View, Write, choose, free, offer, own};
use portolan_model::{Family, Id, Withheld};

use crate::etcd::{Etcd, Random, begun, host, id, network, seeds};

const PREFIX: &str = "10.128.0.0/27";
const LENGTH: u8 = 29;
const HOSTS: u64 = 4;
const STEPS: usize = 400;

/// One host. What is on disk is what it gives out and withholds, and what is in use.
struct Member {
    id: Id,
    view: View,
    /// How much of the log it has seen.
    seen: usize,
    own: Own,
    in_use: BTreeSet<IpAddr>,
    is_cut_off: bool,
    is_gone: bool,
}

struct World {
    etcd: Etcd,
    net: Id,
    prefix: IpNet,
    members: Vec<Member>,
    /// What is on its way to etcd.
    late: Vec<Write>,
    random: Random,
    seed: u64,
    gifts: usize,
    /// Gifts that took place when nobody waited for the answer any more.
    late_gifts: usize,
}

fn addresses(net: &IpNet) -> impl Iterator<Item = IpAddr> {
    match net {
        IpNet::V4(net) => (net.network().to_bits()..=net.broadcast().to_bits()).map(|bits| IpAddr::V4(bits.into())),
        IpNet::V6(_) => panic!("of IPv4"),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut etcd = begun();
        let (net, mut record) = (id(2, 1), network(1, PREFIX));
        record.block_lengths.v4 = LENGTH;
        assert!(etcd.write(&Write::create_network(net, &record, 0)));
        for number in 0..HOSTS {
            assert!(etcd.write(&Write::join(id(1, number), &host(number))));
        }
        let member = |number| Member {
            id: id(1, number),
            view: etcd.list(),
            seen: etcd.log.len(),
            own: Own::default(),
            in_use: BTreeSet::new(),
            is_cut_off: false,
            is_gone: false,
        };
        let members = (0..HOSTS).map(member).collect();
        Self {
            net,
            prefix: PREFIX.parse().unwrap(),
            members,
            etcd,
            late: Vec::new(),
            random: Random(seed),
            seed,
            gifts: 0,
            late_gifts: 0,
        }
    }

    /// Sends a transaction: it takes place or not, now or later, and nobody hears of it but by what he sees.
    fn send(&mut self, at: usize, write: Write) {
        if self.members[at].is_cut_off {
            return;
        }
        match self.random.below(8) {
            0 => {}
            1 | 2 => self.late.push(write),
            _ => {
                let is_gift = is_gift(&write);
                if self.etcd.write(&write) && is_gift {
                    self.gifts += 1;
                }
            }
        }
    }

    fn arrive(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let write = self.late.swap_remove(self.random.below(self.late.len()));
        if self.etcd.write(&write) && is_gift(&write) {
            self.late_gifts += 1;
        }
    }

    /// Has a host see what happened, or some of it.
    fn watch(&mut self, at: usize, upto: usize) {
        let (member, etcd) = (&mut self.members[at], &self.etcd);
        etcd.show(&mut member.view, &etcd.log[member.seen..upto]);
        member.seen = upto;
        self.settle(at);
    }

    fn settle(&mut self, at: usize) {
        let (net, seed) = (self.net, self.seed);
        let member = &mut self.members[at];
        member.own = own(&member.view, member.id, net, &member.own.withheld);
        for address in &member.in_use {
            let is_own = member.own.blocks.iter().any(|block| block.contains(address));
            assert!(is_own, "seed {seed}: {address} is in use at a host that does not give it out");
        }
    }

    fn list(&mut self, at: usize) {
        self.members[at].view = self.etcd.list();
        self.members[at].seen = self.etcd.log.len();
        self.settle(at);
    }

    /// A free address of those that a host gives out, without asking anybody.
    fn attach(&mut self, at: usize) -> bool {
        let (first, last) = (self.prefix.hosts().next().unwrap(), self.prefix.broadcast());
        let member = &self.members[at];
        let is_free = |address: &IpAddr| *address > first && *address < last && !member.in_use.contains(address);
        let all: Vec<IpAddr> = member.own.blocks.iter().flat_map(addresses).filter(is_free).collect();
        if all.is_empty() {
            return false;
        }
        let address = all[self.random.below(all.len())];
        for other in self.members.iter().filter(|other| !other.is_gone) {
            assert!(!other.in_use.contains(&address), "seed {}: {address} is in use twice", self.seed);
        }
        self.members[at].in_use.insert(address);
        true
    }

    /// Asks for more: a block that is free, or one of others.
    fn ask(&self, at: usize, random: u64) -> Write {
        let member = &self.members[at];
        let taken: BTreeSet<IpNet> = member.view.blocks_on(self.net).map(|(block, _)| block).collect();
        match choose(self.prefix, LENGTH, &taken, random) {
            Some(block) => Write::claim(member.id, self.net, block, LENGTH, &member.view),
            None => Write::want(member.id, self.net, Family::V4),
        }
    }

    fn give(&mut self, at: usize) -> Option<Write> {
        let (net, prefix) = (self.net, self.prefix);
        let member = &mut self.members[at];
        let others = member.view.wants().filter(|(_, host, _)| *host != member.id).collect::<Vec<_>>().into_iter();
        let (_, other, _) = others.clone().nth(self.random.below(others.len().max(1)))?;
        let offered = offer(&member.view, member.id, net, prefix, &member.own, &member.in_use)?;
        self.withhold(at, offered);
        Some(Write::give(self.members[at].id, net, &offered, LENGTH, other))
    }

    fn release(&mut self, at: usize) -> Option<Write> {
        let member = &self.members[at];
        let is_idle = |block: &&IpNet| {
            view_has(member, self.net, **block) && !member.in_use.iter().any(|address| block.contains(address))
        };
        let block = *member.own.blocks.iter().find(is_idle)?;
        let offered = Withheld { block, part: block, written: member.view.written(self.net, block) };
        self.withhold(at, offered);
        Some(Write::release(self.net, &offered))
    }

    /// As the engine does: only that of which nothing is in use, and in one step with the row.
    fn withhold(&mut self, at: usize, offered: Withheld) {
        let (net, seed) = (self.net, self.seed);
        let member = &mut self.members[at];
        assert!(!member.in_use.iter().any(|address| offered.part.contains(address)), "seed {seed}");
        member.own.withheld.insert(offered);
        member.own = own(&member.view, member.id, net, &member.own.withheld);
    }

    fn step(&mut self) {
        let at = self.random.below(self.members.len());
        if self.members[at].is_gone {
            return self.arrive();
        }
        let number = self.random.next();
        match number % 32 {
            0..9 => {
                if !self.attach(at) {
                    let write = self.ask(at, self.random.0);
                    self.send(at, write);
                }
            }
            9..12 => {
                let count = self.members[at].in_use.len();
                let some = self.members[at].in_use.iter().nth(self.random.below(count.max(1))).copied();
                some.map(|address| self.members[at].in_use.remove(&address));
            }
            12..18 => {
                if !self.members[at].is_cut_off {
                    let seen = self.members[at].seen;
                    let upto = seen + self.random.below(self.etcd.log.len() - seen + 1);
                    self.watch(at, upto);
                }
            }
            18..22 => {
                if let Some(write) = self.give(at) {
                    self.send(at, write);
                }
            }
            22 | 23 => {
                if let Some(write) = self.release(at) {
                    self.send(at, write);
                }
            }
            24 | 25 => {
                for one in self.members[at].own.withheld.clone() {
                    let write = Write::keep(self.members[at].id, self.net, &one);
                    self.send(at, write);
                }
            }
            26 | 27 => self.arrive(),
            28 => {
                self.members[at].is_cut_off = (number / 32).is_multiple_of(2);
                if !self.members[at].is_cut_off {
                    self.list(at);
                }
            }
            // A restart: what is on disk is there, and nothing is seen until etcd is listed.
            29 => {
                self.members[at].view = View::since(self.members[at].view.revision());
                self.members[at].own.withheld =
                    own(&self.members[at].view, self.members[at].id, self.net, &self.members[at].own.withheld).withheld;
                if self.members[at].is_cut_off {
                    self.members[at].seen = self.etcd.log.len();
                    self.members[at].is_cut_off = !(number / 32).is_multiple_of(4);
                }
                if !self.members[at].is_cut_off {
                    self.list(at);
                }
            }
            30 => {
                // The lease of somebody who is cut off is over, or he wants no more.
                let wants = Write::end_want(self.members[at].id, self.net, Family::V4);
                self.etcd.write(&wants);
            }
            _ => {
                if (number / 32).is_multiple_of(16) && self.members.iter().filter(|member| !member.is_gone).count() > 2
                {
                    self.leave(at);
                }
            }
        }
    }

    /// A host is gone for good, and somebody says so.
    fn leave(&mut self, at: usize) {
        let host = self.members[at].id;
        self.members[at].is_gone = true;
        self.members[at].in_use.clear();
        let gone = Write { only_if: vec![], then: vec![Operation::Put(Key::Gone(host), String::new())] };
        assert!(self.etcd.write(&gone));
        self.etcd.write(&Write::end_want(host, self.net, Family::V4));
        for write in Write::leave(host, &self.etcd.list()) {
            assert!(self.etcd.write(&write));
        }
    }

    /// No address is given out by two.
    fn check(&self) {
        let mut all: Vec<&IpNet> =
            self.members.iter().filter(|member| !member.is_gone).flat_map(|member| &member.own.blocks).collect();
        all.sort_unstable();
        for pair in all.windows(2) {
            assert!(!pair[0].contains(pair[1]), "seed {}: {} and {} are given out", self.seed, pair[0], pair[1]);
        }
    }

    /// All is well again: every address of the network is found.
    fn fill(&mut self) {
        while !self.late.is_empty() {
            self.arrive();
        }
        let alive: Vec<usize> = (0..self.members.len()).filter(|at| !self.members[*at].is_gone).collect();
        for at in &alive {
            self.members[*at].is_cut_off = false;
            self.list(*at);
            for one in self.members[*at].own.withheld.clone() {
                assert!(self.etcd.write(&Write::keep(self.members[*at].id, self.net, &one)));
            }
            self.list(*at);
            assert_eq!(self.members[*at].own.withheld, BTreeSet::new(), "seed {}", self.seed);
            self.etcd.write(&Write::end_want(self.members[*at].id, self.net, Family::V4));
        }
        let mut refused = 0;
        while refused < alive.len() {
            let at = alive[self.random.below(alive.len())];
            refused = 0;
            while !self.attach(at) {
                let write = self.ask(at, self.random.0);
                assert!(self.etcd.write(&write));
                alive.iter().for_each(|at| self.list(*at));
                let gift = alive.iter().find_map(|at| self.give(*at));
                match gift {
                    Some(gift) => assert!(self.etcd.write(&gift)),
                    None if self.members[at].own.blocks.is_empty() || !self.has_room(at) => {
                        refused = alive.len();
                        break;
                    }
                    None => {}
                }
                alive.iter().for_each(|at| self.list(*at));
                self.check();
            }
        }
        let count: usize = alive.iter().map(|at| self.members[*at].in_use.len()).sum();
        assert_eq!(count, 32 - 3, "seed {}: some address is lost", self.seed);
    }

    fn has_room(&self, at: usize) -> bool {
        free(self.prefix, &self.members[at].own.blocks, &self.members[at].in_use) > 0
    }
}

fn view_has(member: &Member, net: Id, block: IpNet) -> bool {
    member.view.block(net, block) == Some(member.id) && !member.own.withheld.iter().any(|one| one.block == block)
}

fn is_gift(write: &Write) -> bool {
    matches!(write.then.first(), Some(Operation::Delete(Key::Want(..)))) && write.then.len() > 1
}

#[test]
fn no_address_is_in_use_twice_and_none_is_lost() {
    let (mut gifts, mut late) = (0, 0);
    for seed in 0..seeds() {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
            world.check();
        }
        world.fill();
        (gifts, late) = (gifts + world.gifts, late + world.late_gifts);
    }
    println!("{} schedules, {gifts} gifts, and {late} of which nobody waited for the answer", seeds());
    assert!(gifts > seeds() as usize && late > 0, "{gifts} {late}");
}
