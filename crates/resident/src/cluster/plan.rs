//! What was seen in etcd, as rows and kernel of one host: what they are to be, decided of values, and how they are made so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use portolan_cluster::{Change, ClusterNetwork, EndpointRecord, HostRecord, VXLAN_PORT, View, own};
use portolan_engine::{Engine, Kernel, OverlayNetwork, Remote, RemoteChanges, Result, Store};
use portolan_model::{
    Backend, Driver, Id, Lan, Mtu, NetworkOptions, Overlay, Peer, PerFamily, RemoteEndpoint, SEAL, TunnelEnd, Withheld,
};
use portolan_plan::ContainerView;

use super::Endpoints;
use crate::feed;

/// What is withheld, by network.
type AllWithheld = BTreeMap<Id, BTreeSet<Withheld>>;

/// What rows say of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Other hosts, and what is theirs.
    pub remote: Remote,
    /// The networks over several hosts, with the blocks that this one gives out.
    pub overlays: BTreeMap<Id, BTreeSet<IpNet>>,
    /// What of its blocks it does not give out at present.
    pub withheld: AllWithheld,
}

impl Rows {
    /// As they are.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn of<S: Store, K: Kernel>(engine: &Engine<S, K>) -> Result<Self> {
        Ok(Self { remote: engine.remote()?, overlays: engine.overlays()?, withheld: engine.withheld()? })
    }
}

/// The host that it is decided for.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// Its id in the cluster.
    pub host: Id,
    /// What it says of itself.
    pub record: &'a HostRecord,
}

/// What is to be made of a view.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Networks that are to be so.
    pub networks: Vec<OverlayNetwork>,
    /// Networks that are to go.
    pub gone: BTreeSet<Id>,
    /// What is other than before at other hosts.
    pub remote: RemoteChanges,
}

impl Plan {
    /// Has rows and kernel be so; by network, what is wrong with it, and none where nothing is. What the kernel refuses on the
    /// way to other hosts is in the log, and tried again with each repair.
    ///
    /// # Errors
    /// When it is not known that all of it was done.
    pub fn take_in<S: Store, K: Kernel>(&self, engine: &Engine<S, K>) -> Result<BTreeMap<Id, Option<String>>> {
        let mut problems = BTreeMap::new();
        for network in &self.networks {
            let problem = match engine.put_overlay(network) {
                Ok(failures) => failures.into_iter().next(),
                Err(error) => Some(format!("network `{}` of the cluster is not here: {error}", network.name)),
            };
            problems.insert(network.id, problem);
        }
        for failure in engine.take_remote(&self.remote)? {
            tracing::error!(failure, "what leads to other hosts cannot be made");
        }
        for network in &self.gone {
            let problem = engine.drop_overlay(*network).err();
            let problem = problem.map(|error| format!("a network that the cluster has no more is still here: {error}"));
            problems.insert(*network, problem);
        }
        Ok(problems)
    }
}

impl Here<'_> {
    /// What comes of `changes`, after which the view is `view`.
    pub fn changes(&self, view: &View, withheld: &AllWithheld, changes: &BTreeSet<Change>) -> Plan {
        let mut plan = Plan::default();
        plan.remote.revision = view.revision();
        let mut networks: BTreeSet<Id> = BTreeSet::new();
        for change in changes {
            match change {
                Change::Cluster => networks.extend(view.networks().keys()),
                Change::Alive(_) | Change::Want(..) | Change::Place(..) | Change::Check(_) | Change::Checked(..) => {}
                Change::Host(host) if *host == self.host => {}
                Change::Host(host) => {
                    networks
                        .extend(view.networks().iter().filter(|(_, record)| is_l2(&record.options)).map(|(id, _)| *id));
                    let peer = view.hosts().get(host).map(|record| peer(*host, record));
                    plan.remote.peers.insert(*host, peer);
                }
                Change::Network(network) => {
                    networks.insert(*network);
                }
                Change::Block(network, block, before) => {
                    let holder = view.block(*network, *block);
                    if [holder, *before].contains(&Some(self.host)) {
                        networks.insert(*network);
                    }
                    let holder = holder.filter(|host| *host != self.host);
                    plan.remote.blocks.insert((*network, *block), holder);
                }
                Change::Endpoint(network, host, id) if *host != self.host => {
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

    /// What comes of all that is there.
    pub fn everything(&self, view: &View, rows: &Rows) -> Plan {
        let networks =
            view.networks().iter().map(|(id, record)| self.overlay(view, &rows.withheld, *id, record)).collect();
        let gone = rows.overlays.keys().filter(|id| !view.networks().contains_key(id)).copied().collect();
        let others = view.hosts().iter().filter(|(id, _)| **id != self.host);
        let blocks = view.blocks().filter(|(.., host)| *host != self.host);
        let endpoints = view.endpoints().filter(|((_, host, _), _)| *host != self.host);
        let endpoints = endpoints.map(|((network, host, id), record)| (id, endpoint(network, host, id, record)));
        Plan {
            networks,
            gone,
            remote: RemoteChanges {
                peers: differences(&rows.remote.peers, others.map(|(id, record)| (*id, peer(*id, record)))),
                blocks: differences(&rows.remote.blocks, blocks.map(|(network, block, host)| ((network, block), host))),
                endpoints: differences(&rows.remote.endpoints, endpoints),
                revision: view.revision(),
            },
        }
    }

    /// How rows and kernel differ from `view`, a sentence each.
    ///
    /// # Errors
    /// When the store or the kernel cannot be read.
    pub fn compare<S: Store, K: Kernel>(&self, view: &View, engine: &Engine<S, K>) -> Result<Vec<String>> {
        let mut said = self.differences(view, &Rows::of(engine)?);
        said.extend(engine.verify()?.iter().map(|step| format!("the kernel: {step}")));
        Ok(said)
    }

    /// How rows differ from `view`, a sentence each.
    pub fn differences(&self, view: &View, rows: &Rows) -> Vec<String> {
        let plan = self.everything(view, rows);
        let mut said: Vec<String> =
            plan.gone.iter().map(|id| format!("network {} is not known elsewhere", id.short())).collect();
        for network in &plan.networks {
            match rows.overlays.get(&network.id) {
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
        said
    }

    /// A network as it is on this host.
    fn overlay(&self, view: &View, withheld: &AllWithheld, id: Id, record: &ClusterNetwork) -> OverlayNetwork {
        let HostRecord { underlay, mac, mtu, ref seal, .. } = *self.record;
        let nowhere = || IpAddr::from([0; 4]);
        let options = NetworkOptions::from_pairs(Driver::Overlay, &record.options).unwrap_or_default();
        let sealed = options.encrypted;
        // Frames are not told that they are too large for another host.
        let mtu = match options.l2 {
            true => view.hosts().values().map(|host| host.mtu).chain([mtu]).min().unwrap_or(mtu),
            false => mtu,
        };
        let direct = match options.backend {
            Backend::Direct => self.record.lan.clone(),
            Backend::Vxlan => PerFamily::default(),
        };
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
        let own = own(view, self.host, id, withheld.get(&id).unwrap_or(&none));
        OverlayNetwork {
            id,
            name: record.name.clone(),
            prefixes: record.prefixes,
            internal: record.internal,
            options: record.options.clone(),
            labels: record.labels.clone(),
            created: record.created,
            overlay: Overlay { vni: record.vni, end: TunnelEnd { address, port, mac, mtu }, sealed, direct },
            blocks: own.blocks,
            withheld: own.withheld,
        }
    }
}

/// What other hosts are told of a container.
pub fn endpoints_of(view: &ContainerView) -> Endpoints {
    let on = view.endpoints.iter().filter(|(_, network)| network.overlay.is_some());
    on.map(|(endpoint, network)| {
        let record = EndpointRecord {
            container: view.container.id,
            name: view.container.called().to_owned(),
            aliases: feed::names_of(&view.container, endpoint),
            addresses: endpoint.addresses.iter().map(|one| one.address.addr()).collect(),
            mac: network.is_l2().then_some(endpoint.mac),
        };
        ((network.id, endpoint.id), record)
    })
    .collect()
}

/// Whether options of a network ask for encryption. Those that cannot be read are refused where they are.
pub(super) fn is_encrypted(options: &BTreeMap<String, String>) -> bool {
    NetworkOptions::from_pairs(Driver::Overlay, options).is_ok_and(|options| options.encrypted)
}

/// Whether options of a network ask for one broadcast domain.
fn is_l2(options: &BTreeMap<String, String>) -> bool {
    NetworkOptions::from_pairs(Driver::Overlay, options).is_ok_and(|options| options.l2)
}

fn peer(host: Id, record: &HostRecord) -> Peer {
    let HostRecord { underlay, mac, mtu, .. } = *record;
    let net = |lan: &Option<Lan>| lan.as_ref().map(|lan| lan.net);
    let lan = PerFamily { v4: net(&record.lan.v4), v6: net(&record.lan.v6) };
    let sealed = record.seal.as_ref().map(|seal| seal.address);
    Peer { host, name: record.name.clone(), underlay, lan, sealed, mac, mtu }
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
        mac: record.mac,
    }
}

/// What leads from `before` to `now`.
fn differences<K: Ord + Copy, V: PartialEq>(
    before: &BTreeMap<K, V>,
    now: impl Iterator<Item = (K, V)>,
) -> BTreeMap<K, Option<V>> {
    let mut differences: Vec<(K, Option<V>)> = Vec::new();
    let mut kept: BTreeSet<K> = BTreeSet::new();
    for (key, value) in now {
        let known = before.get(&key);
        if known.is_some() {
            kept.insert(key);
        }
        if known != Some(&value) {
            differences.push((key, Some(value)));
        }
    }
    differences.extend(before.keys().filter(|key| !kept.contains(key)).map(|key| (*key, None)));
    // All at once: it is mostly everything or nothing.
    differences.into_iter().collect()
}
