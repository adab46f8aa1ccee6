//! A thousand hosts share a network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use portolan_cluster::{Change, Own, View, Write, choose, offer, turn};
use portolan_model::{Family, Id, Withheld};

use crate::etcd::{Etcd, Random, begun, host, id, network};

const HOSTS: usize = 1000;
const LENGTH: u8 = 26;

struct Member {
    id: Id,
    own: BTreeSet<IpNet>,
    free: BTreeSet<IpAddr>,
    in_use: BTreeSet<IpAddr>,
}

struct World {
    etcd: Etcd,
    /// What all of them see: at once here.
    view: View,
    members: Vec<Member>,
    net: Id,
    prefix: IpNet,
    /// Transactions after all hosts had joined.
    writes: usize,
}

impl World {
    fn write(&mut self, write: &Write) {
        self.writes += 1;
        assert!(self.etcd.write(write));
        let last = self.etcd.log.len() - 1;
        let changes = self.etcd.show(&mut self.view, &self.etcd.log[last..]);
        for change in changes {
            let Change::Block(_, block, _) = change else { continue };
            let owner = self.view.block(self.net, block);
            let is_usable = |address: &IpAddr| self.is_usable(*address);
            let all: Vec<IpAddr> = block.hosts_and_ends().filter(is_usable).collect();
            // Those of other blocks that have the same addresses come in the same revision: what is taken away comes first.
            for member in &mut self.members {
                if Some(member.id) != owner && member.own.remove(&block) {
                    member.free.retain(|address| !block.contains(address));
                }
            }
            if let Some(member) = self.members.iter_mut().find(|member| Some(member.id) == owner) {
                member.own.insert(block);
                member.free.extend(all.into_iter().filter(|address| !member.in_use.contains(address)));
            }
        }
    }

    fn is_usable(&self, address: IpAddr) -> bool {
        let first = self.prefix.hosts().next().unwrap();
        address > first && address < self.prefix.broadcast()
    }

    fn claim(&mut self, at: usize, random: &mut Random) -> bool {
        let taken: BTreeSet<IpNet> = self.view.blocks_on(self.net).map(|(block, _)| block).collect();
        let Some(block) = choose(self.prefix, LENGTH, &taken, random.next()) else { return false };
        self.write(&Write::claim(self.members[at].id, self.net, block, LENGTH, &self.view));
        true
    }

    /// Whoever is first gives some.
    fn want(&mut self, at: usize, random: &mut Random) -> bool {
        let wanting = self.members[at].id;
        self.write(&Write::want(wanting, self.net, Family::V4));
        let mut turns: Vec<(Duration, usize)> = Vec::new();
        for (number, member) in self.members.iter().enumerate() {
            let free = member.free.len() as u128;
            turns.extend(turn(free, self.prefix, LENGTH, HOSTS, random.next()).map(|turn| (turn, number)));
        }
        let Some((_, giver)) = turns.into_iter().min() else { return false };
        let giver = &self.members[giver];
        let own = Own { blocks: giver.own.clone(), withheld: BTreeSet::new() };
        let given: Withheld = offer(&self.view, giver.id, self.net, self.prefix, &own, &giver.in_use).unwrap();
        self.write(&Write::give(giver.id, self.net, &given, LENGTH, wanting));
        assert_eq!(self.view.wants().count(), 0);
        true
    }
}

trait Ends {
    fn hosts_and_ends(&self) -> Box<dyn Iterator<Item = IpAddr>>;
}

impl Ends for IpNet {
    fn hosts_and_ends(&self) -> Box<dyn Iterator<Item = IpAddr>> {
        match self {
            IpNet::V4(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                Box::new((first..=last).map(|bits| IpAddr::V4(bits.into())))
            }
            IpNet::V6(_) => panic!("of IPv4"),
        }
    }
}

/// Containers come to hosts at random, until one finds no address: nearly all are in use then.
#[test]
fn a_thousand_hosts_fill_a_network() {
    let mut etcd = begun();
    let (net, prefix) = (id(2, 1), "10.128.0.0/16");
    assert!(etcd.write(&Write::create_network(net, &network(1, prefix), 0)));
    let members = (0..HOSTS as u64).map(|number| {
        assert!(etcd.write(&Write::join(id(1, number), &host(number))));
        Member { id: id(1, number), own: BTreeSet::new(), free: BTreeSet::new(), in_use: BTreeSet::new() }
    });
    let members = members.collect();
    let mut world = World { view: etcd.list(), etcd, members, net, prefix: prefix.parse().unwrap(), writes: 0 };
    let mut random = Random(1);
    let (mut is_full, mut claims, mut gifts, mut before) = (false, 0, 0, 0);
    let refused = loop {
        let at = random.below(HOSTS);
        if world.members[at].free.is_empty() {
            let has_claimed = !is_full && world.claim(at, &mut random);
            claims += usize::from(has_claimed);
            if !has_claimed {
                if gifts == 0 {
                    before = world.members.iter().map(|member| member.in_use.len()).sum();
                }
                is_full = true;
                if !world.want(at, &mut random) {
                    break at;
                }
                gifts += 1;
            }
        }
        let member = &mut world.members[at];
        let address = member.free.pop_first().expect("it was given some");
        member.in_use.insert(address);
        // In time, as the daemon does.
        if !is_full && member.in_use.len() > member.free.len() * 3 {
            is_full = !world.claim(at, &mut random);
            claims += usize::from(!is_full);
        }
    };
    let mut all = BTreeSet::new();
    for member in &world.members {
        assert!(member.in_use.iter().all(|address| all.insert(*address)), "an address is in use twice");
    }
    let blocks = world.view.blocks_on(net).count();
    let part = 100.0 * all.len() as f64 / 65_536.0;
    println!(
        "{} of 65,536 addresses in use ({part:.3} %) when host {refused} finds none; {before} when the first one wants some; \
         {claims} claims, {gifts} gifts, {blocks} blocks, {} transactions",
        all.len(),
        world.writes,
    );
    assert!(part >= 98.0, "{part} %");
    assert_eq!(all.len(), 65_536 - 3, "all but those of the network, its gateway and broadcast");
    // An address within a block costs no request.
    assert!(world.writes < all.len() / 2, "{}", world.writes);
}
