//! What was seen in etcd, made rows and kernel: by a thread of its own, for it may have to wait for the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use portolan_cluster::{Change, Checked, ClusterNetwork, EndpointRecord, HostRecord, VXLAN_PORT, View, own};
use portolan_engine::{OverlayNetwork, RemoteChanges};
use portolan_model::{
    Driver, Family, Id, Mtu, NetworkOptions, Overlay, Peer, RemoteEndpoint, SEAL, TunnelEnd, Withheld,
};
use tokio::sync::mpsc as channel;

use super::agent::{Shared, lock};
use super::moves::Moves;
use super::seal::{self, Seal};
use super::{Came, Membership, Reply, Sharing, Told, Wanted};
use crate::daemon::{self, Engine};

/// How often the encrypted link is looked at when nothing else happens.
const LOOK: Duration = Duration::from_secs(1);
/// So many differences are told of one host.
const TOLD: usize = 100;

/// What the thread is to do.
pub(super) enum Job {
    /// Take in these changes.
    Changes(BTreeSet<Change>),
    /// Take in all that there is.
    Everything,
    /// Endpoints of this host came or went on these networks: see whether there is room for more, and try again what could not
    /// be done.
    Local(BTreeSet<Id>),
    /// Compare rows and kernel with the view.
    Check(Id),
    /// Give a host addresses of a network, if there are any to give.
    Give((Id, Id, Family)),
    /// Tell him that all before is done.
    Tell(Id, Reply),
    /// End.
    Stop,
}

pub(super) struct Rows {
    root: PathBuf,
    membership: Membership,
    shared: Shared,
    told: channel::UnboundedSender<Told>,
    seal: Seal,
    moves: Moves,
}

/// What is withheld, by network.
type AllWithheld = BTreeMap<Id, BTreeSet<Withheld>>;

/// What is to be made of the view.
#[derive(Debug, Default)]
struct Plan {
    networks: Vec<OverlayNetwork>,
    gone: BTreeSet<Id>,
    remote: RemoteChanges,
}

impl Rows {
    pub(super) fn new(
        root: PathBuf,
        membership: Membership,
        shared: Shared,
        told: channel::UnboundedSender<Told>,
        seal: Seal,
    ) -> Self {
        let moves = Moves::new(membership.host, shared.clone(), told.clone());
        Self { root, membership, shared, told, seal, moves }
    }

    pub(super) fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        let engine = match daemon::engine(&self.root) {
            Ok(engine) => engine,
            Err(error) => return tracing::error!("cluster: {error:#}"),
        };
        loop {
            let first = match jobs.recv_timeout(LOOK) {
                Ok(first) => Some(first),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => None,
            };
            let is_quiet = first.is_none();
            let (mut changes, mut everything, mut local, mut replies) =
                (BTreeSet::new(), false, BTreeSet::new(), Vec::new());
            let (mut checks, mut wants) = (Vec::new(), BTreeSet::new());
            // What happens while the lock is waited for is done in one go.
            for job in first.into_iter().chain(jobs.try_iter()) {
                match job {
                    Job::Changes(more) => changes.extend(more),
                    Job::Everything => everything = true,
                    Job::Local(networks) => local.extend(networks),
                    Job::Check(check) => checks.push(check),
                    Job::Give(want) => drop(wants.insert(want)),
                    Job::Tell(network, reply) => replies.push((network, reply)),
                    Job::Stop => return,
                }
            }
            // Whoever carries the packets of the link may have died.
            self.keep_sealed(&engine);
            match self.moves.follow(&engine) {
                Ok(networks) => changes.extend(networks.into_iter().map(Change::Network)),
                Err(error) => tracing::warn!("cluster: {error:#}"),
            }
            if is_quiet && changes.is_empty() {
                continue;
            }
            changes.extend(self.failed());
            let done = self.take_in(&engine, &changes, everything);
            if let Err(error) = &done {
                tracing::error!("cluster: {error:#}");
                lock(&self.shared).problems.insert(None, format!("{error:#}"));
            } else {
                lock(&self.shared).problems.remove(&None);
            }
            for (network, reply) in replies {
                let problem = lock(&self.shared).problems.get(&Some(network)).cloned();
                reply(match problem {
                    None => Ok(Came::Network { network }),
                    Some(reason) => Err(portolan_cluster::Refusal::new(
                        reason,
                        "`portolan cluster status` shows what is not as it should be on this host",
                    )),
                });
            }
            for want in wants {
                if let Err(error) = self.moves.give(&engine, want) {
                    tracing::warn!("cluster: {error:#}");
                }
            }
            for check in checks {
                let _ = self.told.send(Told::Checked(check, self.check(&engine)));
            }
            for network in local {
                if let Err(error) = self.make_room(&engine, network) {
                    tracing::warn!("cluster: {error:#}");
                }
            }
        }
    }

    /// Has the encrypted link be there if any network needs it, and what stands on it if it was not.
    fn keep_sealed(&mut self, engine: &Engine) {
        let (is_needed, hosts) = {
            let view = &lock(&self.shared).view;
            (seal::is_needed(view), view.hosts().clone())
        };
        let done = match is_needed {
            true => self.seal.ensure(&self.membership, &hosts),
            false => self.seal.remove().map(|()| false),
        };
        let done = done.and_then(|is_new| {
            if is_new {
                engine.reconcile()?;
            }
            Ok(())
        });
        let mut known = lock(&self.shared);
        match done {
            Ok(()) => known.link_trouble = None,
            Err(error) => {
                let text = format!("{error:#}");
                if known.link_trouble.replace(text.clone()).as_ref() != Some(&text) {
                    tracing::error!("cluster: {text}");
                }
            }
        }
    }

    /// The networks that could not be made what they should be.
    fn failed(&self) -> Vec<Change> {
        lock(&self.shared).problems.keys().filter_map(|network| network.map(Change::Network)).collect()
    }

    fn take_in(&self, engine: &Engine, changes: &BTreeSet<Change>, everything: bool) -> Result<()> {
        let withheld = engine.withheld()?;
        let plan = match everything {
            true => {
                let (remote, overlays) = (engine.remote()?, engine.overlays()?);
                self.plan_everything(&lock(&self.shared).view, &withheld, &remote, overlays.keys())
            }
            false => self.plan_changes(&lock(&self.shared).view, &withheld, changes),
        };
        let mut problems: BTreeMap<Option<Id>, Option<String>> = BTreeMap::new();
        for network in &plan.networks {
            let problem = match engine.put_overlay(network) {
                Ok(failures) => failures.into_iter().next(),
                Err(error) => Some(format!("network `{}` of the cluster is not here: {error}", network.name)),
            };
            problems.insert(Some(network.id), problem);
        }
        let failures = engine.take_remote(&plan.remote)?;
        for failure in &failures {
            tracing::error!(failure, "what leads to other hosts cannot be made");
        }
        for network in &plan.gone {
            let problem = engine.drop_overlay(*network).err();
            problems.insert(
                Some(*network),
                problem.map(|error| format!("a network that the cluster has no more is still here: {error}")),
            );
        }
        let mut known = lock(&self.shared);
        for (network, problem) in problems {
            match problem {
                Some(problem) => {
                    if known.problems.insert(network, problem.clone()).as_ref() != Some(&problem) {
                        tracing::warn!("cluster: {problem}");
                    }
                }
                None => drop(known.problems.remove(&network)),
            }
        }
        Ok(())
    }

    fn plan_changes(&self, view: &View, withheld: &AllWithheld, changes: &BTreeSet<Change>) -> Plan {
        let mut plan = Plan::default();
        plan.remote.revision = view.revision();
        let mut networks: BTreeSet<Id> = BTreeSet::new();
        for change in changes {
            match change {
                Change::Cluster => networks.extend(view.networks().keys()),
                Change::Alive(_) | Change::Want(..) | Change::Check(_) | Change::Checked(..) => {}
                Change::Host(host) if *host == self.membership.host => {}
                Change::Host(host) => {
                    let peer = view.hosts().get(host).map(|record| peer(*host, record));
                    plan.remote.peers.insert(*host, peer);
                }
                Change::Network(network) => {
                    networks.insert(*network);
                }
                Change::Block(network, block) => {
                    // One that was ours or is.
                    networks.insert(*network);
                    let holder = view.block(*network, *block).filter(|host| *host != self.membership.host);
                    plan.remote.blocks.insert((*network, *block), holder);
                }
                Change::Endpoint(network, host, id) if *host != self.membership.host => {
                    let record = view.endpoint(*network, *host, *id);
                    plan.remote.endpoints.insert(*id, record.map(|record| endpoint(*network, *host, *id, record)));
                }
                Change::Endpoint(..) => {}
            }
        }
        for id in networks {
            match view.networks().get(&id) {
                Some(record) => plan.networks.push(self.overlay(view, withheld, id, record)),
                None => drop(plan.gone.insert(id)),
            }
        }
        plan
    }

    fn plan_everything<'a>(
        &self,
        view: &View,
        withheld: &AllWithheld,
        rows: &portolan_engine::Remote,
        overlays: impl Iterator<Item = &'a Id>,
    ) -> Plan {
        let me = self.membership.host;
        let networks = view.networks().iter().map(|(id, record)| self.overlay(view, withheld, *id, record)).collect();
        let gone = overlays.filter(|id| !view.networks().contains_key(id)).copied().collect();
        let peers: BTreeMap<Id, Peer> =
            view.hosts().iter().filter(|(id, _)| **id != me).map(|(id, record)| (*id, peer(*id, record))).collect();
        let blocks: BTreeMap<(Id, IpNet), Id> =
            view.blocks().iter().filter(|(_, host)| **host != me).map(|(at, host)| (*at, *host)).collect();
        let there = view.endpoints().iter().filter(|((host, ..), _)| *host != me);
        let endpoints: BTreeMap<Id, RemoteEndpoint> =
            there.map(|((host, network, id), record)| (*id, endpoint(*network, *host, *id, record))).collect();
        Plan {
            networks,
            gone,
            remote: RemoteChanges {
                peers: differences(&rows.peers, &peers),
                blocks: differences(&rows.blocks, &blocks),
                endpoints: differences(&rows.endpoints, &endpoints),
                revision: view.revision(),
            },
        }
    }

    /// A network as it is on this host.
    fn overlay(&self, view: &View, withheld: &AllWithheld, id: Id, record: &ClusterNetwork) -> OverlayNetwork {
        let HostRecord { underlay, mac, mtu, ref seal, .. } = self.membership.record;
        let nowhere = || IpAddr::from([0; 4]);
        let sealed = is_encrypted(&record.options);
        let (address, mtu) = match (sealed, seal) {
            (false, _) => (underlay.v4.or(underlay.v6).unwrap_or_else(nowhere), mtu),
            (true, Some(seal)) => {
                (seal.address.into(), Mtu::new(mtu.bytes().saturating_sub(SEAL)).unwrap_or(Mtu::LEAST))
            }
            // Bound to a link that is not there: it carries nothing.
            (true, None) => (IpAddr::from(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), mtu),
        };
        let port = view.cluster().map_or(VXLAN_PORT, |cluster| cluster.port);
        let none = BTreeSet::new();
        let own = own(view, self.membership.host, id, withheld.get(&id).unwrap_or(&none));
        OverlayNetwork {
            id,
            name: record.name.clone(),
            prefixes: record.prefixes,
            internal: record.internal,
            options: record.options.clone(),
            labels: record.labels.clone(),
            created: record.created,
            overlay: Overlay { vni: record.vni, end: TunnelEnd { address, port, mac, mtu }, sealed },
            blocks: own.blocks,
            withheld: own.withheld,
        }
    }

    /// How rows and kernel differ from what is in etcd.
    fn check(&self, engine: &Engine) -> Checked {
        let mut all: Vec<String> = lock(&self.shared).problems.values().cloned().collect();
        match self.compare(engine) {
            Ok(differences) => all.extend(differences),
            Err(error) => all.push(format!("it cannot be told: {error:#}")),
        }
        let count = all.len();
        all.truncate(TOLD);
        Checked { differences: all, count }
    }

    fn compare(&self, engine: &Engine) -> Result<Vec<String>> {
        let (remote, overlays) = (engine.remote()?, engine.overlays()?);
        let withheld = engine.withheld()?;
        let plan = self.plan_everything(&lock(&self.shared).view, &withheld, &remote, overlays.keys());
        let mut said: Vec<String> =
            plan.gone.iter().map(|id| format!("network {} is not known elsewhere", id.short())).collect();
        for network in &plan.networks {
            match overlays.get(&network.id) {
                None => said.push(format!("network `{}` is not here", network.name)),
                Some(blocks) if *blocks != network.blocks => {
                    let differ: Vec<String> =
                        blocks.symmetric_difference(&network.blocks).map(ToString::to_string).collect();
                    said.push(format!("network `{}`: blocks of this host differ: {}", network.name, differ.join(", ")));
                }
                Some(_) => {}
            }
        }
        let RemoteChanges { peers, blocks, endpoints, .. } = &plan.remote;
        said.extend(peers.keys().map(|host| format!("host {} is not known as it is", host.short())));
        said.extend(blocks.keys().map(|(_, block)| format!("block {block} is not known as it is")));
        said.extend(endpoints.keys().map(|endpoint| format!("endpoint {} is not known as it is", endpoint.short())));
        said.extend(engine.verify()?.iter().map(|step| format!("the kernel: {step}")));
        Ok(said)
    }

    /// Claims another block when most addresses of the ones there are taken, so that nobody has to wait for it.
    fn make_room(&self, engine: &Engine, network: Id) -> Result<()> {
        for family in Family::ALL {
            let Some(room) = engine.room(network, family)? else { return Ok(()) };
            // Who has none is not asked for any until somebody attaches.
            if room.all > 0 && room.used as u128 * 4 > room.all * 3 {
                let what = Sharing::Claim { network, wanted: Wanted::Ahead(family) };
                let _ = self.told.send(Told::Share(what, Box::new(|_| {})));
            }
        }
        Ok(())
    }
}

fn peer(host: Id, record: &HostRecord) -> Peer {
    let sealed = record.seal.as_ref().map(|seal| seal.address);
    Peer { host, name: record.name.clone(), underlay: record.underlay, sealed, mac: record.mac, mtu: record.mtu }
}

/// Whether options of a network ask for encryption. Those that cannot be read are refused where they are.
pub(super) fn is_encrypted(options: &BTreeMap<String, String>) -> bool {
    NetworkOptions::from_pairs(Driver::Overlay, options).is_ok_and(|options| options.encrypted)
}

fn endpoint(network: Id, host: Id, id: Id, record: &EndpointRecord) -> RemoteEndpoint {
    RemoteEndpoint {
        id,
        network,
        host,
        container: record.container,
        name: record.name.clone(),
        aliases: record.aliases.clone(),
        addresses: record.addresses.clone(),
    }
}

/// What leads from `before` to `now`.
fn differences<K: Ord + Copy, V: Clone + PartialEq>(
    before: &BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let new = now.iter().filter(|(key, value)| before.get(key) != Some(value));
    let gone = before.keys().filter(|key| !now.contains_key(key));
    new.map(|(key, value)| (*key, Some(value.clone()))).chain(gone.map(|key| (*key, None))).collect()
}
