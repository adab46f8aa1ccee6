//! What was seen in etcd, as rows and kernel of one host: what they are to be, decided of values, and how they are made so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use portolan_cluster::{
    Change, ClusterNetwork, EndpointRecord, HostRecord, PathTo, Tunnel, VXLAN_PORT, View, common, own,
};
use portolan_engine::{Engine, Kernel, OverlayNetwork, Remote, RemoteChanges, Result, Store};
use portolan_model::{
    Backend, Driver, Family, Id, Lan, Mtu, NetworkOptions, Overlay, Peer, PerFamily, RemoteEndpoint, TunnelEnd,
    Withheld, sealed_mtu,
};
use portolan_plan::{ContainerView, goes_direct};

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
    /// Whether this host is to take no more containers on such networks, where that may be otherwise.
    pub drained: Option<bool>,
}

impl Plan {
    /// Has rows and kernel be so; by network, what is wrong with it, and none where nothing is. What the kernel refuses on the
    /// way to other hosts is in the log, and tried again with each repair.
    ///
    /// # Errors
    /// When it is not known that all of it was done.
    pub fn take_in<S: Store, K: Kernel>(&self, engine: &Engine<S, K>) -> Result<BTreeMap<Id, Option<String>>> {
        let mut problems = BTreeMap::new();
        if let Some(is_drained) = self.drained {
            engine.set_drained(is_drained)?;
        }
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
                Change::Drained(host) if *host == self.host => plan.drained = Some(view.is_drained(*host)),
                Change::Drained(_) | Change::Alive(_) | Change::Want(..) | Change::Place(..) => {}
                Change::Check(_) | Change::Checked(..) | Change::Way(..) => {}
                Change::Host(host) if *host == self.host => {}
                Change::Host(host) => {
                    networks
                        .extend(view.networks().iter().filter(|(_, record)| is_l2(&record.options)).map(|(id, _)| *id));
                    let peer = view.hosts().get(host).map(|record| self.peer(*host, record));
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
                peers: differences(&rows.remote.peers, others.map(|(id, record)| (*id, self.peer(*id, record)))),
                blocks: differences(&rows.remote.blocks, blocks.map(|(network, block, host)| ((network, block), host))),
                endpoints: differences(&rows.remote.endpoints, endpoints),
                revision: view.revision(),
            },
            drained: Some(view.is_drained(self.host)),
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

    /// Another host, as this one has to know it. Where it is on networks that are not encrypted is nowhere as soon as one of the two
    /// is behind NAT: somebody else may be at the address that it has there.
    fn peer(&self, host: Id, record: &HostRecord) -> Peer {
        let is_there = !record.is_behind_nat() && !self.record.is_behind_nat();
        let net = |lan: &Option<Lan>| lan.as_ref().map(|lan| lan.net).filter(|_| is_there);
        Peer {
            host,
            name: record.name.clone(),
            underlay: if is_there { record.underlay } else { PerFamily::default() },
            lan: PerFamily { v4: net(&record.lan.v4), v6: net(&record.lan.v6) },
            sealed: record.seal.as_ref().map(|seal| seal.address),
            sealed_by_ipv6: self.record.sealed_family(record) == Family::V6,
            translates: record.translates && record.seal.as_ref().is_some_and(|seal| seal.has_prefix()),
            mac: record.mac,
            mtu: record.mtu,
        }
    }

    /// The paths that lead from this host to others which containers are on that share a network with some of this one: of each kind
    /// one to each.
    pub fn paths(&self, view: &View) -> BTreeMap<PathTo, Tunnel> {
        let mut paths = BTreeMap::new();
        let is_on = |network: Id, host: Id| view.endpoints_of(network, host).next().is_some();
        for id in view.followed().filter(|id| is_on(*id, self.host)) {
            let Some(record) = view.networks().get(&id) else { continue };
            let own = self.end(view, record);
            let others = view.hosts().iter().filter(|(host, _)| **host != self.host && !view.is_gone(**host));
            for (host, other) in others {
                let to = PathTo { host: *host, sealed: own.sealed };
                if !paths.contains_key(&to) && is_on(id, *host) {
                    let there = Here { host: *host, record: other }.end(view, record);
                    let peer = self.peer(*host, other);
                    let mut families = Family::ALL.into_iter().filter(|family| record.prefixes.of(*family).is_some());
                    if families.all(|family| goes_direct(&own, &peer, family)) {
                        continue;
                    }
                    paths.extend(
                        self.path(record, &own, other, &there).map(|path| (to, Tunnel { network: id, ..path })),
                    );
                }
            }
        }
        paths
    }

    /// The path to a host by a network's tunnels; none where there is none that can be measured.
    fn path(&self, record: &ClusterNetwork, own: &Overlay, other: &HostRecord, there: &Overlay) -> Option<Tunnel> {
        if !(own.measured && there.measured) {
            return None;
        }
        // Somebody else may be at the address that a host has behind NAT.
        let is_there = !self.record.is_behind_nat() && !other.is_behind_nat();
        let outside = match own.sealed {
            // Others are not reached on the link.
            true if self.record.seal.as_ref()?.secret != other.seal.as_ref()?.secret => return None,
            true => common(self.record, other).filter(|_| is_there),
            false if !is_there => return None,
            false => Some((*other.underlay.of(Family::of(own.end.address)))?),
        };
        let has_v6 = record.prefixes.v6.is_some();
        let asked = NetworkOptions::from_pairs(Driver::Overlay, &record.options).ok()?.mtu;
        let of = |end: &TunnelEnd, mtu: Mtu| {
            let fits = end.inner_mtu(mtu, has_v6);
            asked.map_or(fits, |asked| asked.min(fits))
        };
        // Below that there is no IPv6 on one of the ends, which would answer.
        if of(&own.end, own.end.mtu).min(of(&there.end, there.end.mtu)) < Mtu::IPV6_MIN {
            return None;
        }
        let takes = if own.sealed { self.record.sealed_mtu_to(other) } else { own.end.mtu.min(there.end.mtu) };
        let size = of(&own.end, takes).bytes();
        Some(Tunnel { network: Id::from_bytes([0; 32]), end: other.mac.link_local(), outside, size })
    }

    /// What the encrypted link takes between all of these hosts, which each of them finds the same.
    fn least_sealed_mtu<'b>(&self, hosts: impl Iterator<Item = &'b HostRecord> + Clone) -> Mtu {
        let own = self.record.sealed_mtu();
        let most = hosts.clone().map(HostRecord::sealed_mtu).max().unwrap_or(own);
        let family = |other: &HostRecord| self.record.sealed_family(other);
        // As for the host whose link takes most: no other one makes packets longer than that.
        hosts.map(|other| sealed_mtu(self.record.mtu.min(other.mtu), family(other), most)).min().unwrap_or(own)
    }

    /// What a network is on this host.
    fn end(&self, view: &View, record: &ClusterNetwork) -> Overlay {
        let HostRecord { underlay, mac, mtu, ref seal, .. } = *self.record;
        let nowhere = || IpAddr::from([0; 4]);
        let options = NetworkOptions::from_pairs(Driver::Overlay, &record.options).unwrap_or_default();
        let sealed = options.encrypted;
        let hosts = || view.hosts().values();
        // Frames are not told that they are too large for another host.
        let (mtu, sealed_mtu) = match options.l2 {
            true => (hosts().map(|host| host.mtu).chain([mtu]).min().unwrap_or(mtu), self.least_sealed_mtu(hosts())),
            false => (mtu, self.record.sealed_mtu()),
        };
        let direct = match options.backend {
            Backend::Direct => self.record.lan.clone(),
            Backend::Vxlan => PerFamily::default(),
        };
        let (address, mtu) = match (sealed, seal) {
            (false, _) => (underlay.v4.or(underlay.v6).unwrap_or_else(nowhere), mtu),
            (true, Some(seal)) => (seal.address.into(), sealed_mtu),
            // Bound to a link that is not there: it carries nothing.
            (true, None) => (IpAddr::from(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), mtu),
        };
        let port = view.cluster().map_or(VXLAN_PORT, |cluster| cluster.port);
        // What is a port of a bridge answers nobody.
        let measured = self.record.answers && !options.l2;
        let translates = sealed && self.record.translates;
        Overlay { vni: record.vni, end: TunnelEnd { address, port, mac, mtu }, sealed, measured, translates, direct }
    }

    /// A network as it is on this host.
    fn overlay(&self, view: &View, withheld: &AllWithheld, id: Id, record: &ClusterNetwork) -> OverlayNetwork {
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
            overlay: self.end(view, record),
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
            unwell: !view.container.is_well(),
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
        unwell: record.unwell,
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

#[cfg(test)]
mod tests {
    use portolan_cluster::{Event, Key, Layout, Part};
    use portolan_model::{Mac, PerFamily, Vni};
    use serde::Serialize;

    use super::*;

    fn id(byte: u8) -> Id {
        Id::from_bytes([byte; 32])
    }

    fn host(number: u8, mtu: u32) -> HostRecord {
        HostRecord {
            lan: PerFamily::default(),
            name: format!("host-{number}").parse().unwrap(),
            underlay: PerFamily { v4: Some(IpAddr::from([192, 0, 2, number])), v6: None },
            mac: Mac::from_bytes([2, 0, 0, 0, 0, number]),
            mtu: Mtu::new(mtu).unwrap(),
            reach: portolan_cluster::Reach::Open,
            answers: true,
            translates: false,
            seal: None,
            version: String::new(),
        }
    }

    fn network(number: u32) -> ClusterNetwork {
        ClusterNetwork {
            name: format!("net-{number}").parse().unwrap(),
            vni: Vni::new(number).unwrap(),
            prefixes: PerFamily { v4: Some("10.1.0.0/16".parse().unwrap()), v6: None },
            block_lengths: PerFamily { v4: 26, v6: 112 },
            internal: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            created: 0,
        }
    }

    fn put(layout: &Layout, key: &Key, value: &impl Serialize) -> Event {
        let value = serde_json::to_vec(value).unwrap();
        Event::Put { key: layout.text(key).into_bytes(), value, revision: 1 }
    }

    /// The hosts to which there is a path from the first one, with the size of what it takes, when the second network is of all of
    /// them and the first one of the first two.
    fn paths(hosts: &[HostRecord]) -> Vec<(u8, u8, u32)> {
        let layout = Layout::default();
        let mut view = View::default();
        let records = (1u8..).zip(hosts).map(|(number, record)| put(&layout, &Key::Host(id(number)), record));
        let networks = [1u8, 2].map(|number| put(&layout, &Key::Network(id(100 + number)), &network(number.into())));
        view.apply(&layout, Part::All, 1, &records.chain(networks).collect::<Vec<Event>>());
        for network in [101, 102] {
            let record = EndpointRecord {
                mac: None,
                container: id(50),
                name: String::new(),
                aliases: Vec::new(),
                addresses: Vec::new(),
                unwell: false,
            };
            view.add(&layout, id(network), 1, Vec::<(Vec<u8>, Vec<u8>, i64)>::new());
            let on = (1..=hosts.len() as u8).filter(|number| network == 102 || *number <= 2);
            let endpoints =
                on.map(|number| Key::Endpoint { network: id(network), host: id(number), endpoint: id(number) });
            let events: Vec<Event> = endpoints.map(|key| put(&layout, &key, &record)).collect();
            view.apply(&layout, Part::Network(id(network)), 1, &events);
        }
        let paths = Here { host: id(1), record: &hosts[0] }.paths(&view);
        let said = paths.into_iter().map(|(to, tunnel)| {
            assert_eq!(tunnel.outside.unwrap().to_string(), format!("192.0.2.{}", to.host.as_bytes()[0]));
            (to.host.as_bytes()[0], tunnel.network.as_bytes()[0], tunnel.size)
        });
        said.collect()
    }

    #[test]
    fn paths_lead_to_who_is_on_the_same_networks_and_answers() {
        let hosts = [host(1, 1500), host(2, 1500), host(3, 1400), host(4, 1500)];
        assert_eq!(paths(&hosts), [(2, 101, 1450), (3, 102, 1350), (4, 102, 1450)]);
        // One of an earlier version, one on whose end IPv6 does not live, and one without an address of the family.
        let mut others = hosts.clone();
        others[1].answers = false;
        others[2].mtu = Mtu::new(1300).unwrap();
        others[3].underlay = PerFamily { v4: None, v6: Some("fd00::4".parse().unwrap()) };
        assert_eq!(paths(&others), []);
        others[0].answers = false;
        assert_eq!(paths(&others[..1]), []);
    }
}
