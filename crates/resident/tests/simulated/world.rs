//! The hosts, what they do, and what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_cluster::{
    HostRecord, Key, NewNetwork, Operation, SealRecord, View, Write, choose, free_around, plan_network,
};
use portolan_engine::{AttachRequest, EndpointRequest, Error, Wanting};
use portolan_model::{Family, Id, Lan, Mtu, PerFamily};
use portolan_plan::Object;

use crate::etcd::{Etcd, Random, begun, host, id};
use crate::host::{Host, namespace};

const HOSTS: u64 = 4;
const NETWORKS: u64 = 3;
const CONTAINERS: u8 = 5;
/// What is said of networks when they are made.
const KINDS: [&[(&str, &str)]; 6] = [
    &[],
    &[],
    &[("mode", "l2")],
    &[("mode", "l2"), ("encrypted", "true")],
    &[("backend", "direct")],
    &[("encrypted", "true")],
];

/// How often something came to pass.
#[derive(Debug, Default)]
pub(crate) struct Seen(BTreeMap<&'static str, usize>);

impl Seen {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    /// A schedule in which nothing happens shows nothing.
    pub(crate) fn check_that_all_came_to_pass(&self) {
        for what in [
            "attached",
            "attached as one domain",
            "attached encrypted",
            "attached by LAN",
            "detached",
            "claimed",
            "network made",
            "network removed",
            "write lost",
            "answer lost",
            "write late",
            "compaction",
            "cut off",
            "died",
            "reboot",
            "restart",
            "kernel edited",
            "host moved",
            "host left",
            "container died",
            "block given back",
            "followed for somebody",
            "no more on a network",
        ] {
            assert!(self.0.contains_key(what), "`{what}` never came to pass: {self:?}");
        }
    }
}

pub(crate) struct World {
    seed: u64,
    etcd: Etcd,
    hosts: Vec<Host>,
    /// What is on its way to etcd.
    late: Vec<Write>,
    random: Random,
    next_host: u64,
    pub(crate) seen: Seen,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            seed,
            etcd: begun(),
            hosts: Vec::new(),
            late: Vec::new(),
            random: Random(seed),
            next_host: 0,
            seen: Seen::default(),
        };
        for _ in 0..HOSTS {
            world.join();
        }
        world.make_network(0);
        for host in &mut world.hosts {
            host.is_behind = true;
            host.watch(&world.etcd, &mut |seen| seen, None);
        }
        world
    }

    fn join(&mut self) {
        let number = self.next_host;
        let record = self.record(number);
        self.next_host += 1;
        assert!(self.etcd.write(&Write::join(id(1, number), &record)));
        let random = self.random.next();
        self.hosts.push(Host::new(id(1, number), record, random));
    }

    /// On one LAN or the other, and most have an end of the encrypted link.
    fn record(&mut self, number: u64) -> HostRecord {
        let lan = |net: &str| Lan { interface: "eth0".parse().unwrap(), net: net.parse().unwrap() };
        let random = u128::from_le_bytes(self.draw()[..16].try_into().unwrap());
        let seal = SealRecord {
            key: format!("key-{number}"),
            port: 51820,
            address: SealRecord::address_of(random),
            round: 0,
            next: None,
            moved: 0,
            secret: None,
        };
        HostRecord {
            lan: PerFamily {
                v4: Some(lan(if number.is_multiple_of(3) { "10.0.0.0/25" } else { "10.0.0.0/24" })),
                v6: None,
            },
            seal: (!self.chance(5)).then_some(seal),
            answers: self.chance(2),
            translates: self.chance(2),
            ..host(number)
        }
    }

    fn chance(&mut self, of: usize) -> bool {
        self.random.below(of) == 0
    }

    /// Sends a transaction: it takes place now, later or never, and its answer may be lost.
    fn send(&mut self, at: usize, write: Write) -> bool {
        if self.hosts[at].is_cut_off {
            return false;
        }
        match self.random.below(10) {
            0 => {
                self.seen.count("write lost");
                false
            }
            1 => {
                self.seen.count("write late");
                self.late.push(write);
                false
            }
            2 => {
                self.seen.count("answer lost");
                self.etcd.write(&write);
                false
            }
            _ => self.etcd.write(&write),
        }
    }

    fn arrive(&mut self) {
        if !self.late.is_empty() {
            let write = self.late.swap_remove(self.random.below(self.late.len()));
            self.etcd.write(&write);
        }
    }

    fn draw(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.random.next().to_le_bytes()));
        bytes
    }

    pub(crate) fn step(&mut self) {
        let at = self.random.below(self.hosts.len());
        match self.random.below(100) {
            0..4 => self.make_network(at),
            4 => self.remove_network(at),
            5..35 => self.attach(at),
            35..42 => self.detach(at),
            42..45 => {
                let number = self.random.below(usize::from(CONTAINERS)) as u8;
                if self.hosts[at].namespaces.remove(&number) {
                    self.hosts[at].kernel.remove_namespace(&namespace(number));
                    self.seen.count("container died");
                }
            }
            45..70 => self.watch(at),
            70..73 => {
                // Who is cut off does not see it, and lists anew.
                for host in self.hosts.iter_mut().filter(|host| host.is_cut_off) {
                    host.is_behind = true;
                }
                self.seen.count("compaction");
            }
            73 | 74 => {
                self.hosts[at].is_cut_off = true;
                self.seen.count("cut off");
            }
            75..79 => self.hosts[at].is_cut_off = false,
            79..81 => self.arrive(),
            81 | 82 => {
                self.hosts[at].restart();
                self.seen.count("restart");
            }
            83 => {
                let host = &mut self.hosts[at];
                host.kernel.reboot();
                host.namespaces.clear();
                host.restart();
                self.seen.count("reboot");
            }
            84..88 => self.edit_kernel(at),
            88 => {
                self.hosts[at].engine.reconcile().unwrap();
            }
            89 => self.move_host(at),
            90 => self.leave(at),
            91..93 => {
                if let Some(write) = self.hosts[at].release()
                    && self.send(at, write)
                {
                    self.seen.count("block given back");
                }
            }
            93 => {
                for write in self.hosts[at].keeps() {
                    self.send(at, write);
                }
            }
            _ => self.publish(at),
        }
        self.check_addresses();
    }

    fn make_network(&mut self, at: usize) {
        let number = self.random.below(NETWORKS as usize);
        let kind = KINDS[self.random.below(KINDS.len())];
        let wanted = NewNetwork {
            name: format!("net-{number}").parse().unwrap(),
            subnets: vec![format!("10.128.{number}.0/26").parse().unwrap()],
            speaks: PerFamily { v4: true, v6: self.chance(2) },
            internal: self.chance(4),
            options: kind.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            labels: BTreeMap::new(),
            avoid: Vec::new(),
        };
        let random = self.draw();
        let is_new = self.hosts[at].view.cluster().is_none();
        if is_new {
            self.hosts[at].watch(&self.etcd, &mut |seen| seen, None);
        }
        let view = &self.hosts[at].view;
        let Ok((network, record)) = plan_network(view, &wanted, random, 0) else { return };
        let write = Write::create_network(network, &record, view.networks_written());
        if self.send(at, write) {
            self.seen.count("network made");
        }
    }

    fn remove_network(&mut self, at: usize) {
        let view = &self.hosts[at].view;
        let all: Vec<Id> = view.networks().keys().copied().collect();
        if all.is_empty() {
            return;
        }
        let network = all[self.random.below(all.len())];
        self.ask(at, network);
        let view = &self.hosts[at].view;
        if view.follows(network) && view.hosts_on(network).is_empty() {
            let write = Write::remove_network(network, &view.networks()[&network]);
            if self.send(at, write) {
                self.seen.count("network removed");
            }
        }
    }

    fn attach(&mut self, at: usize) {
        let number = self.random.below(usize::from(CONTAINERS)) as u8;
        let all: Vec<Id> = self.hosts[at].engine.overlays().unwrap().into_keys().collect();
        if all.is_empty() || self.hosts[at].namespaces.contains(&number) {
            return;
        }
        let network = all[self.random.below(all.len())];
        let dies = self.chance(6).then(|| 1 + self.random.below(40));
        let host = &mut self.hosts[at];
        host.kernel.make_namespace(&namespace(number));
        let request = AttachRequest {
            name: Some(format!("box{number}").parse().unwrap()),
            endpoints: vec![EndpointRequest::new(network.to_string())],
            ..AttachRequest::namespace(namespace(number))
        };
        let attach = || host.engine.attach(&request);
        let done = match dies {
            Some(n) => host.kernel.dying_at(n, attach),
            None => Some(attach()),
        };
        match done {
            Some(Ok(_)) => {
                host.namespaces.insert(number);
                let networks = host.view.networks();
                let options: Vec<String> =
                    networks.get(&network).into_iter().flat_map(|record| record.options.keys().cloned()).collect();
                self.seen.count("attached");
                for (option, what) in [
                    ("mode", "attached as one domain"),
                    ("encrypted", "attached encrypted"),
                    ("backend", "attached by LAN"),
                ] {
                    if options.iter().any(|given| given == option) {
                        self.seen.count(what);
                    }
                }
            }
            Some(Err(Error::NoBlock { network, wanting, .. })) => {
                host.kernel.remove_namespace(&namespace(number));
                self.claim(at, network, wanting);
                self.watch(at);
            }
            Some(Err(_)) => host.kernel.remove_namespace(&namespace(number)),
            None => {
                host.kernel.remove_namespace(&namespace(number));
                host.restart();
                self.seen.count("died");
            }
        }
    }

    /// Something is asked of a network: the host has to know all of it.
    fn ask(&mut self, at: usize, network: Id) {
        let host = &mut self.hosts[at];
        host.asking.insert(network);
        if !host.view.follows(network) && !host.is_cut_off {
            self.seen.count("followed for somebody");
            host.watch(&self.etcd, &mut |seen| seen, None);
        }
    }

    /// Asks for a block, as the thread does on what it has seen.
    fn claim(&mut self, at: usize, network: Id, wanting: Wanting) {
        self.ask(at, network);
        let number = self.random.next();
        let Host { id, view, .. } = &self.hosts[at];
        let Some(record) = view.networks().get(&network).filter(|_| view.follows(network)) else { return };
        let family = match wanting {
            Wanting::Block(family) => family,
            Wanting::BlockOf(address) => Family::of(address),
        };
        let Some(prefix) = *record.prefixes.of(family) else { return };
        let length = *record.block_lengths.of(family);
        let taken: BTreeSet<_> =
            view.blocks_on(network).map(|(block, _)| block).filter(|block| prefix.contains(block)).collect();
        let block = match wanting {
            Wanting::Block(_) => choose(prefix, length, &taken, number),
            Wanting::BlockOf(address) => free_around(address, length, &taken),
        };
        let Some(block) = block else { return };
        let write = Write::claim(*id, network, block, length, view);
        if self.send(at, write) {
            self.seen.count("claimed");
        }
    }

    fn detach(&mut self, at: usize) {
        let number = self.random.below(usize::from(CONTAINERS)) as u8;
        let host = &mut self.hosts[at];
        if host.namespaces.remove(&number) {
            host.detach(number).unwrap();
            host.kernel.remove_namespace(&namespace(number));
            self.seen.count("detached");
        }
    }

    fn watch(&mut self, at: usize) {
        if self.hosts[at].is_cut_off {
            return;
        }
        let dies = self.chance(5).then(|| 1 + self.random.below(30));
        if self.chance(4) {
            self.hosts[at].asking.clear();
        }
        let (random, last) = (&mut self.random, self.etcd.log.len());
        if self.hosts[at].watch(&self.etcd, &mut |seen| seen + random.below(last - seen + 1), dies) {
            self.seen.count("died");
        }
    }

    /// Something that leads to other hosts is removed by somebody else.
    fn edit_kernel(&mut self, at: usize) {
        let kernel = self.hosts[at].kernel.clone();
        let all: Vec<Object> =
            kernel.objects().iter().map(|(_, object)| object.clone()).filter(is_of_overlay).collect();
        if !all.is_empty() {
            kernel.remove(&all[self.random.below(all.len())]);
            self.seen.count("kernel edited");
        }
    }

    /// It has another MTU, and says so; its daemon is another.
    fn move_host(&mut self, at: usize) {
        let mtu = Mtu::new(1300 + self.random.below(3) as u32 * 100).unwrap();
        let host = &self.hosts[at];
        let known = host.view.hosts().get(&host.id).cloned();
        let Some(known) = known else { return };
        let after = HostRecord { mtu, ..host.record.clone() };
        let write = Write::change(host.id, &known, &after);
        if self.send(at, write) {
            self.hosts[at].record = after;
            self.hosts[at].restart();
            self.seen.count("host moved");
        }
    }

    /// It leaves, when nobody is on it, and another comes.
    fn leave(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.is_cut_off || !host.engine.on_overlays().unwrap().is_empty() {
            return;
        }
        host.is_behind = true;
        host.watch(&self.etcd, &mut |seen| seen, None);
        if !host.engine.on_overlays().unwrap().is_empty() {
            return;
        }
        for write in Write::leave(host.id, &host.view) {
            assert!(self.etcd.write(&write), "seed {}", self.seed);
        }
        host.engine.forget_cluster().unwrap();
        let rest: Vec<Object> =
            host.kernel.objects().iter().map(|(_, object)| object.clone()).filter(is_of_overlay).collect();
        assert!(rest.is_empty(), "seed {}: of a host that left there is {rest:?}", self.seed);
        self.hosts.remove(at);
        self.seen.count("host left");
        self.join();
    }

    /// Has others know what is on it, as far as it has seen what they know.
    fn publish(&mut self, at: usize) {
        for write in self.hosts[at].says() {
            if self.send(at, write.clone()) && matches!(write.then[..], [Operation::Delete(Key::Place(..))]) {
                self.seen.count("no more on a network");
            }
        }
    }

    fn check_addresses(&self) {
        let mut had: BTreeMap<(Id, IpAddr), Id> = BTreeMap::new();
        for host in &self.hosts {
            for (network, blocks) in host.engine.overlays().unwrap() {
                for address in host.addresses(network) {
                    let other = had.insert((network, address), host.id);
                    assert!(other.is_none(), "seed {}: {address} is had twice", self.seed);
                    let is_own = blocks.iter().any(|block| block.contains(&address));
                    assert!(is_own, "seed {}: {address} is in none of the blocks {blocks:?}", self.seed);
                }
            }
        }
    }

    /// All is reached again, and time passes: nothing is lost any more.
    pub(crate) fn heal(&mut self) {
        while !self.late.is_empty() {
            self.arrive();
        }
        for at in 0..self.hosts.len() {
            self.hosts[at].is_cut_off = false;
            self.hosts[at].asking.clear();
            self.hosts[at].engine.gc().unwrap();
        }
        let mut quiet = 0;
        for _ in 0..20 {
            let before = self.etcd.revision;
            for host in &mut self.hosts {
                let last = self.etcd.log.len();
                host.watch(&self.etcd, &mut |_| last, None);
                for write in host.says().into_iter().chain(host.keeps()) {
                    self.etcd.write(&write);
                }
            }
            quiet = if self.etcd.revision == before { quiet + 1 } else { 0 };
            if quiet == 2 {
                break;
            }
        }
        for host in &self.hosts {
            let repaired = host.engine.reconcile().unwrap();
            assert!(repaired.failures.is_empty(), "seed {}: {:?}", self.seed, repaired.failures);
        }
    }

    pub(crate) fn check(&self) {
        let all = self.etcd.list();
        for host in &self.hosts {
            let mut said = host.differences();
            // Who came to a network before the cluster knew of him, and when it was on its way out, stays until he leaves: it is
            // said, and where he is another network of that name or those addresses is not yet.
            let overlays = host.engine.overlays().unwrap();
            if overlays.keys().any(|id| !all.networks().contains_key(id) && !host.addresses(*id).is_empty()) {
                said.retain(|said| !said.ends_with("is not known elsewhere") && !said.ends_with("is not here"));
            }
            assert!(said.is_empty(), "seed {}: {}: {said:#?}", self.seed, host.record.name);
            assert_eq!(host.view.networks(), all.networks(), "seed {}", self.seed);
            self.check_what_is_followed(host, &all);
            let known = all.endpoints_at(host.id);
            let mut wanted = host.wanted();
            // A network that is gone cannot be told of.
            wanted.retain(|(network, _), _| all.networks().contains_key(network));
            assert_eq!(known, wanted, "seed {}: {}", self.seed, host.record.name);
        }
        self.check_addresses();
    }

    /// It knows all of the networks that it has something on, and of no other anything.
    fn check_what_is_followed(&self, host: &Host, all: &View) {
        let has_block = |network: &Id| all.blocks_on(*network).any(|(_, holder)| holder == host.id);
        let has_endpoint = |network: &Id| all.endpoints_of(*network, host.id).next().is_some();
        let there: BTreeSet<Id> =
            all.networks().keys().copied().filter(|network| has_block(network) || has_endpoint(network)).collect();
        let said: BTreeSet<Id> = all.places(host.id).map(|(network, _)| network).collect();
        assert_eq!(said, there, "seed {}: {}", self.seed, host.record.name);
        assert_eq!(host.view.followed().collect::<BTreeSet<Id>>(), there, "seed {}", self.seed);
        for network in there {
            assert!(host.view.blocks_on(network).eq(all.blocks_on(network)), "seed {}", self.seed);
            let of = |view: &View| -> Vec<_> {
                let endpoints = view.endpoints().filter(|((on, ..), _)| *on == network);
                endpoints.map(|(at, record)| (at, record.clone())).collect()
            };
            assert_eq!(of(&host.view), of(all), "seed {}", self.seed);
        }
    }

    /// All containers end and all networks go: nothing of them is left anywhere.
    pub(crate) fn end(&mut self) {
        for host in &mut self.hosts {
            for number in std::mem::take(&mut host.namespaces) {
                host.detach(number).unwrap();
                host.kernel.remove_namespace(&namespace(number));
            }
            host.engine.gc().unwrap();
        }
        self.heal();
        let all = self.etcd.list();
        for (network, record) in all.networks() {
            assert!(self.etcd.write(&Write::remove_network(*network, record)), "seed {}", self.seed);
        }
        self.heal();
        let all = self.etcd.list();
        assert_eq!((all.endpoint_count(), all.blocks().count()), (0, 0), "seed {}", self.seed);
        for host in &self.hosts {
            assert!(host.engine.overlays().unwrap().is_empty(), "seed {}", self.seed);
            let rest: Vec<Object> =
                host.kernel.objects().iter().map(|(_, object)| object.clone()).filter(is_of_overlay).collect();
            assert!(rest.is_empty(), "seed {}: {rest:?}", self.seed);
        }
    }
}

fn is_of_overlay(object: &Object) -> bool {
    matches!(
        object,
        Object::Vxlan(_)
            | Object::Forwarding(_)
            | Object::Neighbour(_)
            | Object::HostRoute(_)
            | Object::Shortcut(_)
            | Object::Inlet(_)
    )
}
