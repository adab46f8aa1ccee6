//! What one host knows of etcd.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use portolan_model::{Family, Id, Name};
use serde::de::DeserializeOwned;

use crate::key::{Key, Layout};
use crate::record::{Block, Checked, ClusterNetwork, ClusterRecord, EndpointRecord, FORMAT, HostRecord};

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It was written.
    Put {
        /// The key in full.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// By which revision.
        revision: i64,
    },
    /// It is gone.
    Delete {
        /// The key in full.
        key: Vec<u8>,
    },
}

/// What is other than before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// The cluster's record.
    Cluster,
    /// A host's record, or that it is gone for good.
    Host(Id),
    /// Whether it runs.
    Alive(Id),
    /// A network.
    Network(Id),
    /// A block of a network.
    Block(Id, IpNet),
    /// Whether a host wants addresses of a network.
    Want(Id, Id, Family),
    /// An endpoint: its network, its host and itself.
    Endpoint(Id, Id, Id),
    /// Hosts are asked to look at themselves, or not any more.
    Check(Id),
    /// What came of it at a host.
    Checked(Id, Id),
}

/// etcd shows something older than what was seen before: it was restored from a backup, or is another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WentBack {
    /// Its revision is lower.
    #[error("etcd is at revision {found}, and was at {seen} before: it was restored from a backup")]
    Revision {
        /// What was seen.
        seen: i64,
        /// What is there.
        found: i64,
    },
    /// It holds another cluster, or none.
    #[error("etcd holds {}, and not the cluster {seen} that this host is in", .found.as_ref().map_or_else(|| "no cluster".to_owned(), |id| format!("cluster {id}")))]
    Cluster {
        /// Which one was seen.
        seen: Id,
        /// Which one is there.
        found: Option<Id>,
    },
}

/// All that is there, as of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    revision: i64,
    cluster: Option<ClusterRecord>,
    networks_written: i64,
    hosts: BTreeMap<Id, HostRecord>,
    alive: BTreeMap<Id, String>,
    gone: BTreeSet<Id>,
    networks: BTreeMap<Id, ClusterNetwork>,
    blocks: BTreeMap<(Id, IpNet), Id>,
    /// By which revisions they were written.
    written: BTreeMap<(Id, IpNet), i64>,
    cuts: BTreeMap<(Id, IpNet), i64>,
    wants: BTreeSet<(Id, Id, Family)>,
    /// By host first: what a host has is asked for more often than what a network has.
    endpoints: BTreeMap<(Id, Id, Id), EndpointRecord>,
    checks: BTreeSet<Id>,
    checked: BTreeMap<(Id, Id), Checked>,
    /// Keys that are not ours or say nothing that we know, with why: somebody else's, or a later version's.
    strange: BTreeMap<String, String>,
}

impl View {
    /// Nothing, as of `revision`: what is older than that is a backup of it.
    pub fn since(revision: i64) -> Self {
        Self { revision, ..Self::default() }
    }

    /// The revision of which it is.
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// What is the same everywhere; none where no cluster has begun.
    pub const fn cluster(&self) -> Option<&ClusterRecord> {
        self.cluster.as_ref()
    }

    /// The revision by which a network last came or went.
    pub const fn networks_written(&self) -> i64 {
        self.networks_written
    }

    /// The hosts.
    pub const fn hosts(&self) -> &BTreeMap<Id, HostRecord> {
        &self.hosts
    }

    /// The host that is called so.
    pub fn host_named(&self, name: &Name) -> Option<Id> {
        self.hosts.iter().find(|(_, record)| record.name == *name).map(|(id, _)| *id)
    }

    /// Which run of a host says that it runs.
    pub fn run_of(&self, host: Id) -> Option<&str> {
        self.alive.get(&host).map(String::as_str)
    }

    /// Whether a host is not to come back.
    pub fn is_gone(&self, host: Id) -> bool {
        self.gone.contains(&host)
    }

    /// The networks.
    pub const fn networks(&self) -> &BTreeMap<Id, ClusterNetwork> {
        &self.networks
    }

    /// Who gives out a block's addresses.
    pub fn block(&self, network: Id, net: IpNet) -> Option<Id> {
        self.blocks.get(&(network, net)).copied()
    }

    /// The blocks of a network that are taken, with who has them.
    pub fn blocks_on(&self, network: Id) -> impl Iterator<Item = (IpNet, Id)> + '_ {
        let from = (network, "0.0.0.0/0".parse().expect("a prefix"));
        self.blocks.range(from..).take_while(move |((of, _), _)| *of == network).map(|((_, net), host)| (*net, *host))
    }

    /// By which revision a block was written; 0 if nobody has it.
    pub fn written(&self, network: Id, net: IpNet) -> i64 {
        self.written.get(&(network, net)).copied().unwrap_or(0)
    }

    /// By which revision it was written that one of the blocks that a network is cut into was cut further, or claimed in parts; 0 for
    /// never.
    pub fn cut(&self, network: Id, net: IpNet) -> i64 {
        self.cuts.get(&(network, net)).copied().unwrap_or(0)
    }

    /// Who wants addresses: network, host and family.
    pub const fn wants(&self) -> &BTreeSet<(Id, Id, Family)> {
        &self.wants
    }

    /// The blocks that a host has, with their networks (a list over all blocks).
    pub fn blocks_of(&self, host: Id) -> impl Iterator<Item = (Id, IpNet)> + '_ {
        self.blocks.iter().filter(move |(_, owner)| **owner == host).map(|(at, _)| *at)
    }

    /// The endpoints on a host, by network and id.
    pub fn endpoints_at(&self, host: Id) -> BTreeMap<(Id, Id), EndpointRecord> {
        let from = (host, Id::from_bytes([0; 32]), Id::from_bytes([0; 32]));
        let of_host = self.endpoints.range(from..).take_while(move |((on, _, _), _)| *on == host);
        of_host.map(|((_, network, endpoint), record)| ((*network, *endpoint), record.clone())).collect()
    }

    /// An endpoint.
    pub fn endpoint(&self, network: Id, host: Id, endpoint: Id) -> Option<&EndpointRecord> {
        self.endpoints.get(&(host, network, endpoint))
    }

    /// All blocks, by network, with who has them.
    pub const fn blocks(&self) -> &BTreeMap<(Id, IpNet), Id> {
        &self.blocks
    }

    /// All endpoints: their hosts, networks and ids.
    pub const fn endpoints(&self) -> &BTreeMap<(Id, Id, Id), EndpointRecord> {
        &self.endpoints
    }

    /// The names of the hosts that have endpoints on a network (a list over all endpoints).
    pub fn hosts_on(&self, network: Id) -> impl Iterator<Item = &Name> + '_ {
        let on = self.endpoints.keys().filter(move |(_, of, _)| *of == network);
        on.filter_map(|(host, _, _)| Some(&self.hosts.get(host)?.name))
    }

    /// How many endpoints there are.
    pub fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    /// What hosts are asked to look at.
    pub const fn checks(&self) -> &BTreeSet<Id> {
        &self.checks
    }

    /// What a host found when it was asked to look.
    pub fn checked(&self, check: Id, host: Id) -> Option<&Checked> {
        self.checked.get(&(check, host))
    }

    /// Keys under our prefix that mean nothing to this version, with why.
    pub const fn strange(&self) -> &BTreeMap<String, String> {
        &self.strange
    }

    /// The format of what is there, if it is newer than this version's.
    pub fn newer_format(&self) -> Option<u32> {
        self.cluster.as_ref().map(|cluster| cluster.format).filter(|format| *format > FORMAT)
    }

    /// Takes in what happened up to `revision`; what is other than before, each once.
    pub fn apply(&mut self, layout: &Layout, revision: i64, events: &[Event]) -> BTreeSet<Change> {
        self.revision = self.revision.max(revision);
        events.iter().filter_map(|event| self.take(layout, event)).collect()
    }

    /// Takes in all that there is at `revision`, as (key, value, revision by which it was written); what is other than
    /// before.
    ///
    /// # Errors
    /// [`WentBack`], when it is older than what was seen before; nothing has changed then.
    pub fn replace(
        &mut self,
        layout: &Layout,
        revision: i64,
        all: impl IntoIterator<Item = (Vec<u8>, Vec<u8>, i64)>,
    ) -> Result<BTreeSet<Change>, WentBack> {
        if revision < self.revision {
            return Err(WentBack::Revision { seen: self.revision, found: revision });
        }
        let mut now = Self::default();
        for (key, value, revision) in all {
            now.take(layout, &Event::Put { key, value, revision });
        }
        now.revision = revision;
        if let Some(seen) = self.cluster.as_ref().map(|cluster| cluster.id) {
            let found = now.cluster.as_ref().map(|cluster| cluster.id);
            if found != Some(seen) {
                return Err(WentBack::Cluster { seen, found });
            }
        }
        let mut changes = BTreeSet::new();
        if self.cluster != now.cluster {
            changes.insert(Change::Cluster);
        }
        changes.extend(differing(&self.hosts, &now.hosts).map(|id| Change::Host(*id)));
        changes.extend(self.gone.symmetric_difference(&now.gone).map(|id| Change::Host(*id)));
        changes.extend(differing(&self.alive, &now.alive).map(|id| Change::Alive(*id)));
        changes.extend(differing(&self.networks, &now.networks).map(|id| Change::Network(*id)));
        changes.extend(differing(&self.blocks, &now.blocks).map(|(network, net)| Change::Block(*network, *net)));
        changes.extend(
            self.wants.symmetric_difference(&now.wants).map(|(of, host, kind)| Change::Want(*of, *host, *kind)),
        );
        changes.extend(
            differing(&self.endpoints, &now.endpoints)
                .map(|(host, network, endpoint)| Change::Endpoint(*network, *host, *endpoint)),
        );
        changes.extend(self.checks.symmetric_difference(&now.checks).map(|id| Change::Check(*id)));
        changes.extend(differing(&self.checked, &now.checked).map(|(id, host)| Change::Checked(*id, *host)));
        *self = now;
        Ok(changes)
    }

    fn take(&mut self, layout: &Layout, event: &Event) -> Option<Change> {
        let (key, value, revision) = match event {
            Event::Put { key, value, revision } => (key, Some(&value[..]), *revision),
            Event::Delete { key } => (key, None, 0),
        };
        let text = String::from_utf8_lossy(key).into_owned();
        self.strange.remove(&text);
        let Some(key) = layout.parse(key) else {
            if value.is_some() {
                self.strange.insert(text, "is no key of this version".to_owned());
            }
            return None;
        };
        let mut reader = Reader { text, value, strange: &mut self.strange };
        match key {
            Key::Cluster => {
                let now: Option<ClusterRecord> = reader.json();
                let differs = self.cluster != now;
                self.cluster = now;
                differs.then_some(Change::Cluster)
            }
            Key::Networks => {
                self.networks_written = revision;
                None
            }
            Key::Host(id) => put(&mut self.hosts, id, reader.json()).then_some(Change::Host(id)),
            Key::Alive(id) => put(&mut self.alive, id, reader.text()).then_some(Change::Alive(id)),
            Key::Gone(id) => {
                let differs = if value.is_some() { self.gone.insert(id) } else { self.gone.remove(&id) };
                differs.then_some(Change::Host(id))
            }
            Key::Check(id) => {
                let differs = if value.is_some() { self.checks.insert(id) } else { self.checks.remove(&id) };
                differs.then_some(Change::Check(id))
            }
            Key::Checked(id, host) => {
                put(&mut self.checked, (id, host), reader.json()).then_some(Change::Checked(id, host))
            }
            Key::Network(id) => {
                let record: Option<ClusterNetwork> = reader.json();
                put(&mut self.networks, id, record).then_some(Change::Network(id))
            }
            Key::Block(network, net) => {
                let block: Option<Block> = reader.json();
                put(&mut self.written, (network, net), value.is_some().then_some(revision));
                // Written anew by the one who has it: what counts for rows is the same.
                put(&mut self.blocks, (network, net), block.map(|block| block.host))
                    .then_some(Change::Block(network, net))
            }
            Key::Cut(network, net) => {
                put(&mut self.cuts, (network, net), value.is_some().then_some(revision));
                None
            }
            Key::Want(network, host, family) => {
                let at = (network, host, family);
                let differs = if value.is_some() { self.wants.insert(at) } else { self.wants.remove(&at) };
                differs.then_some(Change::Want(network, host, family))
            }
            Key::Endpoint { network, host, endpoint } => {
                put(&mut self.endpoints, (host, network, endpoint), reader.json())
                    .then_some(Change::Endpoint(network, host, endpoint))
            }
            // They are looked at by conditions alone.
            Key::HostName(_) | Key::HostAddress(_) | Key::NetworkName(_) | Key::Vni(_) => None,
        }
    }
}

/// The value of a key; what cannot be read counts as not there, and is written down.
struct Reader<'a> {
    text: String,
    value: Option<&'a [u8]>,
    strange: &'a mut BTreeMap<String, String>,
}

impl Reader<'_> {
    fn json<T: DeserializeOwned>(&mut self) -> Option<T> {
        match serde_json::from_slice(self.value?) {
            Ok(record) => Some(record),
            Err(error) => {
                self.strange
                    .insert(std::mem::take(&mut self.text), format!("says nothing that this version knows: {error}"));
                None
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(self.value?).into_owned())
    }
}

/// Whether that made a difference.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    if map.get(&key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
    true
}

/// The keys whose values differ, those of one alone among them.
fn differing<'a, K: Ord, V: PartialEq>(
    before: &'a BTreeMap<K, V>,
    now: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let new = now.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(key, _)| key);
    new.chain(before.keys().filter(|key| !now.contains_key(key)))
}
