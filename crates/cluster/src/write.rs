//! What is written together, and on which conditions: etcd's transactions, as values.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use portolan_model::{Family, Id, Withheld};
use serde::Serialize;

use crate::blocks::{within, without};
use crate::key::{Key, Part};
use crate::record::{Block, Checked, ClusterNetwork, ClusterRecord, EndpointRecord, HostRecord, WayRecord};
use crate::view::View;

/// So many operations go into one transaction: etcd refuses more than 128 unless told otherwise (`--max-txn-ops`), and each may be of
/// a part of its own, of which it is written that something was ([`crate::Layout::written`]).
const OPERATIONS: usize = 60;

/// What must be so for a transaction to do anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// There is no such key.
    Absent(Key),
    /// There is one.
    Present(Key),
    /// Its value is this.
    Is(Key, String),
    /// It was last written by this revision; 0 for never.
    WrittenAt(Key, i64),
    /// There is no key of an endpoint on this network.
    NoEndpointsOn(Id),
    /// There is none of this network on this host.
    NoEndpointsAt(Id, Id),
}

/// What it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Writes a value.
    Put(Key, String),
    /// Writes a value that goes with the host's lease.
    PutWhileAlive(Key, String),
    /// Removes a key, if it is there.
    Delete(Key),
    /// Removes all keys of a part.
    DeleteAllOf(Part),
}

/// A transaction: all of `then` if all of `only_if`, otherwise nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The conditions.
    pub only_if: Vec<Condition>,
    /// The operations.
    pub then: Vec<Operation>,
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain values serialise")
}

/// What every host writes only as long as it belongs to the cluster.
fn belongs(host: Id) -> [Condition; 2] {
    [Condition::Present(Key::Host(host)), Condition::Absent(Key::Gone(host))]
}

impl Write {
    /// Begins a cluster where there is none.
    pub fn begin(cluster: &ClusterRecord) -> Self {
        Self { only_if: vec![Condition::Absent(Key::Cluster)], then: vec![Operation::Put(Key::Cluster, json(cluster))] }
    }

    /// Makes a host known, if neither its id, its name nor any of its addresses is another's.
    pub fn join(host: Id, record: &HostRecord) -> Self {
        let own = [Key::Host(host), Key::HostName(record.name.clone())];
        let own: Vec<Key> = own.into_iter().chain(record.taken().map(Key::HostAddress)).collect();
        let absent = own.iter().cloned().chain([Key::Gone(host)]).map(Condition::Absent);
        let value = |key: &Key| if *key == Key::Host(host) { json(record) } else { host.to_string() };
        Self {
            only_if: absent.chain([Condition::Present(Key::Cluster)]).collect(),
            then: own.iter().map(|key| Operation::Put(key.clone(), value(key))).collect(),
        }
    }

    /// Changes what a host says of itself: its addresses, its MTU, its version.
    pub fn change(host: Id, before: &HostRecord, after: &HostRecord) -> Self {
        let index = |record: &HostRecord| -> Vec<Key> {
            let name = [Key::HostName(record.name.clone())];
            name.into_iter().chain(record.taken().map(Key::HostAddress)).collect()
        };
        let (old, new) = (index(before), index(after));
        let come: Vec<Key> = new.iter().filter(|key| !old.contains(key)).cloned().collect();
        let go = old.into_iter().filter(|key| !new.contains(key));
        Self {
            only_if: belongs(host).into_iter().chain(come.iter().cloned().map(Condition::Absent)).collect(),
            then: [Operation::Put(Key::Host(host), json(after))]
                .into_iter()
                .chain(come.into_iter().map(|key| Operation::Put(key, host.to_string())))
                .chain(go.map(Operation::Delete))
                .collect(),
        }
    }

    /// Says that this run of a host is the one that runs, after `before` said so, or none.
    pub fn live(host: Id, run: &str, before: Option<&str>) -> Self {
        let [present, absent] = belongs(host);
        let last = match before {
            Some(before) => Condition::Is(Key::Alive(host), before.to_owned()),
            None => Condition::Absent(Key::Alive(host)),
        };
        Self {
            only_if: vec![present, absent, last],
            then: vec![Operation::PutWhileAlive(Key::Alive(host), run.to_owned())],
        }
    }

    /// Has two hosts send to each other by another one, or by themselves again, as `host` says, who is one of the three; `written` is
    /// the revision by which it was last written, as far as he knows.
    pub fn way(host: Id, (one, other): (Id, Id), written: i64, way: Option<&WayRecord>) -> Self {
        let key = Key::Way(one, other);
        let all = [Some(one), Some(other), way.map(|way| way.relay)].into_iter().flatten();
        let are_there = all.flat_map(belongs);
        Self {
            only_if: belongs(host)
                .into_iter()
                .chain(are_there)
                .chain([Condition::WrittenAt(key.clone(), written)])
                .collect(),
            then: vec![match way {
                Some(way) => Operation::Put(key, json(way)),
                None => Operation::Delete(key),
            }],
        }
    }

    /// Says that a host which does not run is not to come back. From then on it can write nothing.
    pub fn remove_host(host: Id) -> Self {
        Self {
            only_if: vec![Condition::Present(Key::Host(host)), Condition::Absent(Key::Alive(host))],
            then: vec![Operation::Put(Key::Gone(host), String::new())],
        }
    }

    /// Says that a host takes no more containers on networks that all have, or does so again.
    pub fn drain(host: Id, is_drained: bool) -> Self {
        let key = Key::Drained(host);
        let then = if is_drained { Operation::Put(key, String::new()) } else { Operation::Delete(key) };
        Self { only_if: belongs(host).into(), then: vec![then] }
    }

    /// Removes a host and all that it has, as far as `view` shows, which follows all networks that the host is on: first what is
    /// there, then that it is there, and its record last, so that what is begun can be ended.
    pub fn leave(host: Id, view: &View) -> Vec<Self> {
        let endpoints = view.endpoints_at(host).into_keys();
        let endpoints = endpoints.map(|(network, endpoint)| Key::Endpoint { network, host, endpoint });
        let blocks = view.blocks().filter(|(.., holder)| *holder == host);
        let blocks = blocks.map(|(network, net, _)| Key::Block(network, net));
        let places = view.places(host).map(|(network, _)| Key::Place(host, network));
        let mut all: Vec<Operation> = endpoints.chain(blocks).chain(places).map(Operation::Delete).collect();
        let ways = view.ways().iter().filter(|((one, other), (way, _))| [*one, *other, way.relay].contains(&host));
        all.extend(ways.map(|((one, other), _)| Operation::Delete(Key::Way(*one, *other))));
        all.push(Operation::Delete(Key::Alive(host)));
        all.push(Operation::Delete(Key::Drained(host)));
        if let Some(record) = view.hosts().get(&host) {
            all.push(Operation::Delete(Key::HostName(record.name.clone())));
            all.extend(record.taken().map(|address| Operation::Delete(Key::HostAddress(address))));
        }
        all.push(Operation::Delete(Key::Host(host)));
        in_parts(&[], all)
    }

    /// Makes a network. `written` is the revision at which the writer saw that no other network is in its way.
    pub fn create_network(network: Id, record: &ClusterNetwork, written: i64) -> Self {
        let value = network.to_string();
        Self {
            only_if: vec![
                Condition::Present(Key::Cluster),
                Condition::WrittenAt(Key::Networks, written),
                Condition::Absent(Key::Network(network)),
                Condition::Absent(Key::NetworkName(record.name.clone())),
                Condition::Absent(Key::Vni(record.vni)),
            ],
            then: vec![
                Operation::Put(Key::Networks, value.clone()),
                Operation::Put(Key::Network(network), json(record)),
                Operation::Put(Key::NetworkName(record.name.clone()), value.clone()),
                Operation::Put(Key::Vni(record.vni), value),
            ],
        }
    }

    /// Makes a network that one host has one of all, with the blocks of its addresses that are in use there.
    pub fn promote_network(
        host: Id,
        network: Id,
        record: &ClusterNetwork,
        blocks: &BTreeSet<IpNet>,
        written: i64,
    ) -> Self {
        let mut write = Self::create_network(network, record, written);
        write.only_if.extend(belongs(host));
        let own = blocks.iter().map(|block| Operation::Put(Key::Block(network, *block), json(&Block { host })));
        write.then.extend(own);
        write.then.extend((!blocks.is_empty()).then(|| on(host, network)));
        write
    }

    /// Both, or neither.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.only_if.extend(other.only_if);
        self.then
            .extend(other.then.into_iter().filter(|operation| !matches!(operation, Operation::Put(Key::Place(..), _))));
        self
    }

    /// Removes a network on which nobody is, with its blocks. Who says to be on it takes that back ([`crate::abandoned`]).
    pub fn remove_network(network: Id, record: &ClusterNetwork) -> Self {
        Self {
            only_if: vec![Condition::Present(Key::Network(network)), Condition::NoEndpointsOn(network)],
            then: vec![
                Operation::Put(Key::Networks, network.to_string()),
                Operation::Delete(Key::Network(network)),
                Operation::Delete(Key::NetworkName(record.name.clone())),
                Operation::Delete(Key::Vni(record.vni)),
                Operation::DeleteAllOf(Part::Network(network)),
            ],
        }
    }

    /// Takes a block that nobody has, as `view` shows: one of those that the network is cut into, or a part of one.
    ///
    /// What is free in a block that was cut becomes less only by claims, each of which writes [`Key::Cut`] or the block itself: as
    /// long as both are as they were seen, so is all that looked free.
    pub fn claim(host: Id, network: Id, block: IpNet, length: u8, view: &View) -> Self {
        let [present, absent] = belongs(host);
        let whole = within(block, length);
        let cut = Key::Cut(network, whole);
        let seen = view.cut(network, whole);
        let note = match block == whole {
            true => (seen != 0).then(|| Operation::Delete(cut.clone())),
            false => Some(Operation::Put(cut.clone(), host.to_string())),
        };
        Self {
            only_if: vec![
                present,
                absent,
                Condition::Present(Key::Network(network)),
                Condition::Absent(Key::Block(network, whole)),
                Condition::WrittenAt(cut, seen),
            ],
            then: [Operation::Put(Key::Block(network, block), json(&Block { host })), on(host, network)]
                .into_iter()
                .chain(note)
                .collect(),
        }
    }

    /// Says that a host needs addresses of a network of which no block is free.
    pub fn want(host: Id, network: Id, family: Family) -> Self {
        Self {
            only_if: belongs(host).into_iter().chain([Condition::Present(Key::Network(network))]).collect(),
            then: vec![Operation::PutWhileAlive(Key::Want(network, host, family), host.to_string())],
        }
    }

    /// Takes that back.
    pub fn end_want(host: Id, network: Id, family: Family) -> Self {
        Self { only_if: Vec::new(), then: vec![Operation::Delete(Key::Want(network, host, family))] }
    }

    /// Gives a withheld part of a block of `host` to `other`, who wants it.
    ///
    /// The block's revision says that the block is the host's: whoever gives or takes it writes it.
    pub fn give(host: Id, network: Id, withheld: &Withheld, length: u8, other: Id) -> Self {
        let Withheld { block, part, written } = *withheld;
        let want = Key::Want(network, other, Family::of(part.addr()));
        let only_if = belongs(host).into_iter().chain(belongs(other));
        let own = without(block, part).into_iter().map(|rest| (rest, host)).chain([(part, other)]);
        let mut then: Vec<Operation> = vec![Operation::Delete(want.clone()), on(other, network)];
        if part != block {
            then.push(Operation::Delete(Key::Block(network, block)));
            then.push(Operation::Put(Key::Cut(network, within(block, length)), host.to_string()));
        }
        then.extend(own.map(|(net, host)| Operation::Put(Key::Block(network, net), json(&Block { host }))));
        Self {
            only_if: only_if
                .chain([Condition::Present(want), Condition::WrittenAt(Key::Block(network, block), written)])
                .collect(),
            then,
        }
    }

    /// Gives a withheld block back, of which the host uses nothing any more.
    pub fn release(network: Id, withheld: &Withheld) -> Self {
        let key = Key::Block(network, withheld.block);
        Self { only_if: vec![Condition::WrittenAt(key.clone(), withheld.written)], then: vec![Operation::Delete(key)] }
    }

    /// Has a host keep a block of which it has withheld a part: whatever it wrote before that may still be on its way comes to
    /// nothing, once this is seen.
    pub fn keep(host: Id, network: Id, withheld: &Withheld) -> Self {
        let key = Key::Block(network, withheld.block);
        Self {
            only_if: vec![Condition::WrittenAt(key.clone(), withheld.written)],
            then: vec![Operation::Put(key, json(&Block { host }))],
        }
    }

    /// Asks all hosts to look at themselves.
    pub fn check(host: Id, check: Id) -> Self {
        Self {
            only_if: belongs(host).into(),
            then: vec![Operation::PutWhileAlive(Key::Check(check), host.to_string())],
        }
    }

    /// Says what a host found, as long as somebody wants to know.
    pub fn checked(host: Id, check: Id, found: &Checked) -> Self {
        Self {
            only_if: vec![Condition::Present(Key::Check(check))],
            then: vec![Operation::PutWhileAlive(Key::Checked(check, host), json(found))],
        }
    }

    /// Takes a check back, with what came of it.
    pub fn end_check(check: Id) -> Self {
        Self {
            only_if: Vec::new(),
            then: vec![Operation::Delete(Key::Check(check)), Operation::DeleteAllOf(Part::Answers(check))],
        }
    }

    /// Has the endpoints of a host, of which these are `there`, be `wanted`, by network and id; nothing where they are.
    ///
    /// A network that is gone meanwhile refuses only the part that it is in.
    pub fn endpoints(
        host: Id,
        there: &BTreeMap<(Id, Id), EndpointRecord>,
        wanted: &BTreeMap<(Id, Id), EndpointRecord>,
    ) -> Vec<Self> {
        let key = |(network, endpoint): (Id, Id)| Key::Endpoint { network, host, endpoint };
        let gone = there.keys().filter(|at| !wanted.contains_key(at)).map(|at| Operation::Delete(key(*at)));
        let mut writes = in_parts(&[], gone.collect());
        let mut new: BTreeMap<Id, Vec<Operation>> = BTreeMap::new();
        for (at, record) in wanted {
            if there.get(at) != Some(record) {
                new.entry(at.0).or_default().push(Operation::Put(key(*at), json(record)));
            }
        }
        for (network, operations) in new {
            let [present, absent] = belongs(host);
            let parts = in_parts(&[present, absent, Condition::Present(Key::Network(network))], operations);
            writes.extend(parts.into_iter().map(|mut part| {
                part.then.push(on(host, network));
                part
            }));
        }
        writes
    }

    /// Takes back that a host is on a network, as it was last said by the revision `written`: it has no blocks since, and no
    /// endpoints.
    pub fn leave_place(host: Id, network: Id, written: i64) -> Self {
        let key = Key::Place(host, network);
        Self {
            only_if: vec![Condition::WrittenAt(key.clone(), written), Condition::NoEndpointsAt(network, host)],
            then: vec![Operation::Delete(key)],
        }
    }
}

/// Says that a host is on a network. Goes with whatever it is given there.
fn on(host: Id, network: Id) -> Operation {
    Operation::Put(Key::Place(host, network), String::new())
}

fn in_parts(only_if: &[Condition], then: Vec<Operation>) -> Vec<Write> {
    then.chunks(OPERATIONS).map(|part| Write { only_if: only_if.to_vec(), then: part.to_vec() }).collect()
}
