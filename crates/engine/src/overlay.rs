//! Networks over several hosts: their rows on this one, and what is known of the others. What all hosts share is decided
//! elsewhere and told here ([`crate::Cluster`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{
    AddressRange, Driver, Family, Id, IfName, Ipam, Lan, Mac, Mtu, Name, Network, NetworkOptions, Overlay, Peer,
    PerFamily, Phase, RemoteBlock, RemoteEndpoint, Subnet, Withheld,
};
use portolan_plan::{
    Objects, diff, end_objects, l2_bridge_name, network_objects, peer_objects, remote_objects, seal_name, vxlan_name,
};

use crate::engine::{Engine, meta};
use crate::error::{Error, Result};
use crate::ipam::restart;
use crate::kernel::{Kernel, KernelError};
use crate::networks::check::check_firewall;
use crate::repair::said;
use crate::sets::check_claims;
use crate::store::{Durability, Remotes as _, Store, Tx};

/// A network over several hosts, as all of them have it, and what it is on this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayNetwork {
    /// Its id, the same on all hosts.
    pub id: Id,
    /// Its name.
    pub name: Name,
    /// Its subnet in either family, whose addresses the hosts give out in blocks.
    pub prefixes: PerFamily<Option<IpNet>>,
    /// No way out.
    pub internal: bool,
    /// Options as given.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970 of its creation.
    pub created: u64,
    /// What it is on this host.
    pub overlay: Overlay,
    /// The blocks that this host gives out, without what it withholds.
    pub blocks: BTreeSet<IpNet>,
    /// What it withholds.
    pub withheld: BTreeSet<Withheld>,
}

/// What is other than before at other hosts; none for what is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteChanges {
    /// Hosts.
    pub peers: BTreeMap<Id, Option<Peer>>,
    /// The host that has a block, by network and block.
    pub blocks: BTreeMap<(Id, IpNet), Option<Id>>,
    /// Endpoints, by id.
    pub endpoints: BTreeMap<Id, Option<RemoteEndpoint>>,
    /// Up to which revision of what is shared this is known.
    pub revision: i64,
}

impl RemoteChanges {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.blocks.is_empty() && self.endpoints.is_empty()
    }
}

/// What rows say of other hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remote {
    /// Hosts, by id.
    pub peers: BTreeMap<Id, Peer>,
    /// The host that has a block, by network and block.
    pub blocks: BTreeMap<(Id, IpNet), Id>,
    /// Endpoints, by id.
    pub endpoints: BTreeMap<Id, RemoteEndpoint>,
    /// Up to which revision of what is shared; 0 if nothing was ever seen.
    pub revision: i64,
}

/// How much of a network's own addresses is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Addresses that endpoints have.
    pub used: usize,
    /// Addresses that this host could give out, those among them.
    pub all: u128,
}

/// The first address of a subnet that is one of a host: the gateway, which every host of an overlay network has.
pub fn first_of(net: IpNet) -> IpAddr {
    crate::ipam::usable(net).0
}

/// The subnets of a row: a set for each family, with a range for each block of this host's, or one without any.
fn subnets(wanted: &OverlayNetwork) -> Vec<Subnet> {
    let nets = [wanted.prefixes.v4, wanted.prefixes.v6].into_iter().flatten();
    let bases = nets.map(|net| Subnet { gateway: Some(first_of(net)), shared: true, ..Subnet::new(net, true) });
    with_blocks(bases, &wanted.blocks)
}

/// Those subnets with these ranges.
pub(crate) fn with_blocks(bases: impl Iterator<Item = Subnet>, blocks: &BTreeSet<IpNet>) -> Vec<Subnet> {
    let mut subnets = Vec::new();
    for base in bases {
        let blocks = blocks.iter().filter(|block| base.net.contains(*block));
        let mut ranges: Vec<Subnet> =
            blocks.map(|block| Subnet { range: Some((*block).into()), fallback: true, ..base.clone() }).collect();
        match ranges.first_mut() {
            Some(first) => first.fallback = false,
            None => ranges.push(base),
        }
        subnets.extend(ranges);
    }
    subnets
}

/// Has the addresses of `after` be found that no range of `before` gave out: a cursor that is past a block says nothing of a part of
/// it, nor of the whole one that comes back.
pub(crate) fn begin_ranges<T: Tx>(tx: &T, before: &Network, after: &Network) -> Result<()> {
    let had = |range: Option<AddressRange>| before.subnets.iter().any(|subnet| subnet.range == range);
    for subnet in after.subnets.iter().filter(|subnet| subnet.range.is_some() && !had(subnet.range)) {
        restart(tx, after, subnet)?;
    }
    Ok(())
}

type AllWithheld = BTreeMap<Id, BTreeSet<Withheld>>;

fn all_withheld<T: Tx>(tx: &T) -> Result<AllWithheld> {
    let text = tx.meta(meta::WITHHELD)?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

/// Whether that made a difference.
fn put_withheld<T: Tx>(tx: &T, network: Id, withheld: &BTreeSet<Withheld>) -> Result<bool> {
    let before = all_withheld(tx)?;
    let mut now = before.clone();
    now.insert(network, withheld.clone());
    now.retain(|_, withheld| !withheld.is_empty());
    if now == before {
        return Ok(false);
    }
    let text = serde_json::to_string(&now).expect("plain values serialise");
    tx.put_meta(meta::WITHHELD, Some(&text).filter(|_| !now.is_empty()).map(String::as_str))?;
    Ok(true)
}

/// The addresses that this host has to go on giving out, besides `blocks`: those that endpoints have.
fn add_used<T: Tx>(tx: &T, network: Id, blocks: &mut BTreeSet<IpNet>) -> Result<()> {
    let used = tx.leases(network)?.into_iter().map(|(address, _)| address);
    let others: Vec<IpAddr> = used.filter(|address| !blocks.iter().any(|block| block.contains(address))).collect();
    blocks.extend(others.into_iter().map(IpNet::from));
    Ok(())
}

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Makes the row of an overlay network what `wanted` says, and the kernel with it if anybody is on the network. Addresses
    /// that endpoints have stay.
    ///
    /// # Errors
    /// When another network has its name or addresses that overlap; nothing has changed then. What the kernel refused is in
    /// the answer, and is tried again with each repair.
    pub fn put_overlay(&self, wanted: &OverlayNetwork) -> Result<Vec<String>> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let existing = tx.network(wanted.id)?;
        if let Some(other) = tx.network_named(wanted.name.as_str())?.filter(|other| other.id != wanted.id) {
            return Err(Error::NameTaken { what: "network", name: other.name.to_string() });
        }
        if let Some(local) = existing.as_ref().filter(|network| network.overlay.is_none()) {
            check_firewall(Driver::Overlay, self.table(&tx)?.driver)?;
            drop(tx);
            return self.convert(&guard, local, &plan(wanted)?);
        }
        if existing.is_none() {
            check_firewall(Driver::Overlay, self.table(&tx)?.driver)?;
            for net in [wanted.prefixes.v4, wanted.prefixes.v6].into_iter().flatten() {
                check_claims(&tx, net, None)?;
            }
        }
        let mut wanted = wanted.clone();
        if existing.is_some() {
            add_used(&tx, wanted.id, &mut wanted.blocks)?;
        }
        let network = plan(&wanted)?;
        let is_told = put_withheld(&tx, wanted.id, &wanted.withheld)?;
        if existing.as_ref() == Some(&network) {
            if is_told {
                tx.commit(Durability::Disk)?;
            }
            return Ok(Vec::new());
        }
        let is_there = existing.is_some() && self.is_materialised(&tx, &network)?;
        let before = match &existing {
            Some(existing) if is_there => self.with_containers(&tx, existing)?,
            _ => Objects::new(),
        };
        tx.put_network(&network)?;
        if let Some(existing) = &existing {
            begin_ranges(&tx, existing, &network)?;
        }
        let after = if is_there { self.with_containers(&tx, &network)? } else { Objects::new() };
        let table = self.table(&tx)?;
        self.in_doubt(&guard, || {
            tx.commit(Durability::Disk)?;
            Ok(self.kernel.repair(&table, &diff(&after, &before)))
        })
    }

    /// Changes rows and kernel by `change`. If it dies or fails in between, the next verb compares the two.
    pub(crate) fn in_doubt(
        &self,
        guard: &S::Guard<'_>,
        change: impl FnOnce() -> Result<Vec<KernelError>>,
    ) -> Result<Vec<String>> {
        let was_doubtful = self.store.is_doubtful(guard)?;
        self.store.mark_doubtful(guard, true)?;
        let failures = change()?;
        if failures.is_empty() && !was_doubtful {
            self.store.mark_doubtful(guard, false)?;
        }
        Ok(said(failures))
    }

    /// A network's objects, and those of all containers on it.
    pub(crate) fn with_containers(&self, tx: &S::Tx<'_>, network: &Network) -> Result<Objects> {
        let mut objects = self.network_objects(tx, network)?;
        for endpoint in tx.endpoints_on(network.id)? {
            if let Some(container) = tx.container(endpoint.container)? {
                objects.extend(self.container_objects(&self.view(tx, container)?));
            }
        }
        Ok(objects)
    }

    /// Has this host give nothing out of a part of a block any more, so that it can be offered to others: from now on it gives out
    /// `blocks`. False when an endpoint has an address of it, or there is no such network; nothing has changed then.
    ///
    /// It is on disk before anybody is offered it: after a power cut this host may have to go on from its rows, without etcd.
    ///
    /// # Errors
    /// When the store cannot serve.
    pub fn withhold(&self, network: Id, part: &Withheld, blocks: &BTreeSet<IpNet>) -> Result<bool> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let Some(existing) = tx.network(network)?.filter(|network| network.overlay.is_some()) else { return Ok(false) };
        if tx.leases(network)?.iter().any(|(address, _)| part.part.contains(address)) {
            return Ok(false);
        }
        let mut blocks = blocks.clone();
        add_used(&tx, network, &mut blocks)?;
        let mut withheld = all_withheld(&tx)?.remove(&network).unwrap_or_default();
        withheld.insert(*part);
        put_withheld(&tx, network, &withheld)?;
        let firsts = existing.sets().filter_map(|set| set.first());
        let bases = firsts.map(|subnet| Subnet { range: None, fallback: false, ..subnet.clone() });
        // What the kernel holds of a network does not depend on which of its addresses are given out here.
        let after = Network { subnets: with_blocks(bases, &blocks), ..existing.clone() };
        tx.put_network(&after)?;
        begin_ranges(&tx, &existing, &after)?;
        tx.commit(Durability::Disk)?;
        Ok(true)
    }

    /// What this host withholds, by network.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn withheld(&self) -> Result<BTreeMap<Id, BTreeSet<Withheld>>> {
        all_withheld(&self.store.read()?)
    }

    /// The addresses of a network that endpoints of this host have (a list).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn addresses_in_use(&self, network: Id) -> Result<BTreeSet<IpAddr>> {
        Ok(self.store.read()?.leases(network)?.into_iter().map(|(address, _)| address).collect())
    }

    /// Removes the row of an overlay network that is gone elsewhere.
    ///
    /// # Errors
    /// [`Error::InUse`] as long as there are live endpoints on it.
    pub fn drop_overlay(&self, id: Id) -> Result<()> {
        let guard = self.begin()?;
        let Some(network) = self.store.read()?.network(id)?.filter(|network| network.overlay.is_some()) else {
            return Ok(());
        };
        self.reap_network(&guard, &network)?;
        let holders = self.holders(&self.store.read()?, &network)?;
        if !holders.is_empty() {
            return Err(Error::InUse { name: network.name.to_string(), holders: holders.join(", ") });
        }
        self.take_down_network(&guard, network)?;
        let tx = self.store.write(&guard)?;
        if put_withheld(&tx, id, &BTreeSet::new())? {
            tx.commit(Durability::Disk)?;
        }
        Ok(())
    }

    /// Who is on networks over several hosts: networks and containers by name, a sentence each.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn on_overlays(&self) -> Result<Vec<String>> {
        let tx = self.store.read()?;
        let mut said = Vec::new();
        for network in tx.networks()?.into_iter().filter(|network| network.overlay.is_some()) {
            let holders = self.holders(&tx, &network)?;
            if !holders.is_empty() {
                said.push(format!("network `{}` is in use by {}", network.name, holders.join(", ")));
            }
        }
        Ok(said)
    }

    /// Forgets the networks over several hosts, the other hosts and the cluster.
    ///
    /// # Errors
    /// [`Error::InUse`] as long as somebody is on one of the networks.
    pub fn forget_cluster(&self) -> Result<()> {
        for network in self.overlays()?.into_keys() {
            self.drop_overlay(network)?;
        }
        let Remote { peers, blocks, endpoints, .. } = self.remote()?;
        let gone = RemoteChanges {
            peers: peers.into_keys().map(|id| (id, None)).collect(),
            blocks: blocks.into_keys().map(|at| (at, None)).collect(),
            endpoints: endpoints.into_keys().map(|id| (id, None)).collect(),
            revision: 0,
        };
        self.take_remote(&gone)?;
        self.set_cluster_settings(None)
    }

    /// What rows say of other hosts.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn remote(&self) -> Result<Remote> {
        let tx = self.store.read()?;
        Ok(Remote {
            peers: tx.peers()?.into_iter().map(|peer| (peer.host, peer)).collect(),
            blocks: tx.remote_blocks()?.into_iter().map(|row| ((row.network, row.block), row.host)).collect(),
            endpoints: tx.remote_endpoints()?.into_iter().map(|row| (row.id, row)).collect(),
            revision: tx.meta(meta::CLUSTER_SEEN)?.and_then(|text| text.parse().ok()).unwrap_or(0),
        })
    }

    /// Takes in what is other than before at other hosts: in the rows, and in the kernel where anybody is on a network.
    ///
    /// # Errors
    /// When the store cannot serve. What the kernel refused is in the answer, and is tried again with each repair.
    pub fn take_remote(&self, changes: &RemoteChanges) -> Result<Vec<String>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        // Which hosts are to be looked at, by network.
        let mut places: BTreeSet<(Id, Id)> = BTreeSet::new();
        for ((network, block), host) in &changes.blocks {
            let before = tx.remote_block(*network, *block)?;
            places.extend(before.into_iter().chain(*host).map(|host| (*network, host)));
        }
        for host in changes.peers.keys() {
            places.extend(tx.remote_blocks_at(*host)?.into_iter().map(|row| (row.network, *host)));
        }
        // Which endpoints were or will be there, by network.
        let mut guests: BTreeSet<(Id, Id)> = BTreeSet::new();
        for (id, endpoint) in &changes.endpoints {
            let (before, after) = (tx.remote_endpoint(*id)?, endpoint.as_ref());
            guests.extend(before.iter().chain(after).map(|endpoint| (endpoint.network, *id)));
        }
        let mut networks: BTreeMap<Id, Network> = BTreeMap::new();
        for id in places.iter().chain(&guests).map(|(network, _)| *network).collect::<BTreeSet<Id>>() {
            if let Some(network) = tx.network(id)?
                && self.is_materialised(&tx, &network)?
            {
                networks.insert(id, network);
            }
        }
        places.retain(|(network, _)| networks.contains_key(network));
        guests.retain(|(network, _)| networks.get(network).is_some_and(Network::is_l2));
        for network in networks.values().filter(|network| network.is_l2() && !changes.peers.is_empty()) {
            let of_peer = |row: &RemoteEndpoint| changes.peers.contains_key(&row.host);
            let theirs = tx.remote_endpoints_of(network.id)?.into_iter().filter(of_peer);
            guests.extend(theirs.map(|row| (network.id, row.id)));
        }
        let is_in_use = tx.overlay_in_use()?.is_some();
        let objects = |tx: &S::Tx<'_>| -> Result<Objects> {
            let mut all = Objects::new();
            for host in changes.peers.keys().filter(|_| is_in_use) {
                all.extend(tx.peer(*host)?.iter().flat_map(end_objects));
            }
            for (network, host) in &places {
                let Some(peer) = tx.peer(*host)? else { continue };
                let of_network = |row: &RemoteBlock| row.network == *network;
                let blocks = tx.remote_blocks_at(*host)?.into_iter().filter(of_network).map(|row| row.block);
                all.extend(peer_objects(&self.root, &networks[network], &peer, &blocks.collect::<Vec<IpNet>>()));
            }
            for (network, id) in &guests {
                let Some(row) = tx.remote_endpoint(*id)?.filter(|row| row.network == *network) else { continue };
                if let Some(peer) = tx.peer(row.host)? {
                    all.extend(remote_objects(&self.root, &networks[network], &peer, &row));
                }
            }
            Ok(all)
        };
        let before = objects(&tx)?;
        write(&tx, changes)?;
        tx.put_meta(meta::CLUSTER_SEEN, Some(&changes.revision.to_string()))?;
        let after = objects(&tx)?;
        let table = self.table(&tx)?;
        let steps = diff(&after, &before);
        if steps.is_empty() {
            tx.commit(Durability::Process)?;
            return Ok(Vec::new());
        }
        self.in_doubt(&guard, || {
            tx.commit(Durability::Process)?;
            Ok(self.kernel.repair(&table, &steps))
        })
    }

    /// The overlay networks, with the blocks that this host gives out.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn overlays(&self) -> Result<BTreeMap<Id, BTreeSet<IpNet>>> {
        let networks = self.store.read()?.networks()?;
        Ok(networks.iter().filter(|network| network.overlay.is_some()).map(|n| (n.id, blocks_of(n))).collect())
    }

    /// What the encrypted link between hosts is called on this one.
    pub fn seal_name(&self) -> IfName {
        seal_name(&self.root)
    }

    /// How much of its own addresses of an overlay network this host has given out; none if there is no such network.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn room(&self, network: Id, family: Family) -> Result<Option<Room>> {
        let tx = self.store.read()?;
        let Some(network) = tx.network(network)? else { return Ok(None) };
        let size = |block: &IpNet| 1u128 << (block.max_prefix_len() - block.prefix_len()).min(64);
        let blocks = blocks_of(&network);
        let all = blocks.iter().filter(|block| Family::of(block.addr()) == family).map(size).sum();
        Ok(Some(Room { used: tx.lease_count(network.id, family)?, all }))
    }

    /// What a network needs of the kernel; of one over several hosts also what leads to the others.
    pub(crate) fn network_objects(&self, tx: &S::Tx<'_>, network: &Network) -> Result<Objects> {
        let mut objects = network_objects(&self.root, network);
        if network.overlay.is_none() {
            return Ok(objects);
        }
        let mut blocks: BTreeMap<Id, Vec<IpNet>> = BTreeMap::new();
        for row in tx.remote_blocks_of(network.id)? {
            blocks.entry(row.host).or_default().push(row.block);
        }
        for (host, blocks) in blocks {
            if let Some(peer) = tx.peer(host)? {
                objects.extend(peer_objects(&self.root, network, &peer, &blocks));
            }
        }
        if network.is_l2() {
            let peers: BTreeMap<Id, Peer> = tx.peers()?.into_iter().map(|peer| (peer.host, peer)).collect();
            for row in tx.remote_endpoints_of(network.id)? {
                if let Some(peer) = peers.get(&row.host) {
                    objects.extend(remote_objects(&self.root, network, peer, &row));
                }
            }
        }
        Ok(objects)
    }

    /// Whether a route of the host to `destination` should be there because another host gives out addresses of `network`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_remote_block(&self, network: Id, destination: IpNet) -> Result<bool> {
        Ok(self.store.read()?.remote_block(network, destination)?.is_some())
    }

    /// By which MACs and addresses containers of other hosts are on a network that is one broadcast domain (a list).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn remote_places(&self, network: Id) -> Result<(BTreeSet<Mac>, BTreeSet<IpAddr>)> {
        let rows = self.store.read()?.remote_endpoints_of(network)?;
        let macs: BTreeSet<Mac> = rows.iter().filter_map(|row| row.mac).collect();
        let link_local = macs.iter().map(|mac| IpAddr::V6(mac.link_local()));
        let addresses = rows.iter().flat_map(|row| row.addresses.iter().copied()).chain(link_local).collect();
        Ok((macs, addresses))
    }

    /// Whether a route of the host to `destination` by an interface that is not ours should be there: another host on the same LAN
    /// gives out its addresses.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_way_by_lan(&self, destination: IpNet) -> Result<bool> {
        let tx = self.store.read()?;
        for network in direct_networks(&tx)? {
            if tx.remote_block(network.id, destination)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether packets of networks in use go by an interface that is not ours, without tunnels: routes go when it does, and do not
    /// come back with it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn goes_by_lan(&self, interface: &str) -> Result<bool> {
        let is_it = |lan: &Option<Lan>| lan.as_ref().is_some_and(|lan| lan.interface.as_str() == interface);
        let goes = |overlay: Overlay| is_it(&overlay.direct.v4) || is_it(&overlay.direct.v6);
        Ok(direct_networks(&self.store.read()?)?.into_iter().filter_map(|network| network.overlay).any(goes))
    }
}

/// The networks that go by a LAN, if any overlay network is in use.
fn direct_networks<T: Tx>(tx: &T) -> Result<Vec<Network>> {
    if tx.overlay_in_use()?.is_none() {
        return Ok(Vec::new());
    }
    let mut networks = tx.networks()?;
    networks.retain(|network| network.overlay.as_ref().is_some_and(|overlay| !overlay.direct.is_none()));
    Ok(networks)
}

/// The blocks that this host gives out.
fn blocks_of(network: &Network) -> BTreeSet<IpNet> {
    let ranges = network.subnets.iter().filter(|subnet| subnet.shared).filter_map(|subnet| subnet.range);
    ranges.filter_map(|range| range.prefix()).collect()
}

fn plan(wanted: &OverlayNetwork) -> Result<Network> {
    let options = NetworkOptions::from_pairs(Driver::Overlay, &wanted.options)?;
    let (end, is_l2) = (wanted.overlay.end, options.l2);
    // Who goes by a LAN has all of it; routes by tunnels have less.
    let fits = match wanted.overlay.direct.is_none() {
        true => end.inner_mtu(end.mtu, wanted.prefixes.v6.is_some()),
        false => end.mtu,
    };
    let mtu: Mtu = options.mtu.map_or(fits, |asked| asked.min(fits));
    Ok(Network {
        id: wanted.id,
        name: wanted.name.clone(),
        driver: Driver::Overlay,
        internal: wanted.internal,
        ipam: Ipam::Local,
        speaks: PerFamily::default(),
        subnets: subnets(wanted),
        options,
        dns: Vec::new(),
        raw_options: wanted.options.clone(),
        ipam_options: None,
        labels: wanted.labels.clone(),
        bridge: if is_l2 { l2_bridge_name(wanted.id) } else { vxlan_name(wanted.id) },
        subinterface: None,
        overlay: Some(wanted.overlay.clone()),
        routes: Vec::new(),
        names: true,
        names_at: Vec::new(),
        names_port: None,
        transient: false,
        mtu,
        created: wanted.created,
        phase: Phase::Settled,
    })
}

fn write<T: Tx>(tx: &T, changes: &RemoteChanges) -> Result<()> {
    for (host, peer) in &changes.peers {
        match peer {
            Some(peer) => tx.put_peer(peer)?,
            None => tx.delete_peer(*host)?,
        }
    }
    for ((network, block), host) in &changes.blocks {
        match host {
            Some(host) => tx.put_remote_block(&RemoteBlock { network: *network, block: *block, host: *host })?,
            None => tx.delete_remote_block(*network, *block)?,
        }
    }
    for (id, endpoint) in &changes.endpoints {
        match endpoint {
            Some(endpoint) => tx.put_remote_endpoint(endpoint)?,
            None => tx.delete_remote_endpoint(*id)?,
        }
    }
    Ok(())
}

/// Whether this host is the one that gives out `address`.
pub(crate) fn is_own(network: &Network, address: IpAddr) -> bool {
    let is_in = |range: AddressRange| range.contains(address);
    let of_it = network.subnets.iter().filter(|subnet| subnet.net.contains(&address));
    of_it.clone().all(|subnet| !subnet.shared) || of_it.filter_map(|subnet| subnet.range).any(is_in)
}
