//! What one host knows of etcd.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use portolan_model::{Family, Id, Name};
use serde::de::DeserializeOwned;

use crate::key::{Key, Layout, Part};
use crate::record::{
    BUNDLES, Block, Checked, ClusterNetwork, ClusterRecord, EndpointRecord, FORMAT, HostRecord, WayRecord,
};

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
    /// Whether it takes containers.
    Drained(Id),
    /// Whether it runs.
    Alive(Id),
    /// A network.
    Network(Id),
    /// A block of a network, and who had it before.
    Block(Id, IpNet, Option<Id>),
    /// Whether a host wants addresses of a network.
    Want(Id, Id, Family),
    /// An endpoint: its network, its host and itself.
    Endpoint(Id, Id, Id),
    /// Whether, or since when, a host says to be on a network.
    Place(Id, Id),
    /// Hosts are asked to look at themselves, or not any more.
    Check(Id),
    /// What came of it at a host.
    Checked(Id, Id),
    /// By which host two others send to each other.
    Way(Id, Id),
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

/// A key, its value, and the revision by which it was written.
pub type Found<B = Vec<u8>> = (B, B, i64);

/// What is there, as far as a host follows it.
///
/// Each part is as of a revision of its own: what one transaction did to two parts is seen in one before it is in the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The highest one that was seen.
    revision: i64,
    /// That of what all hosts follow.
    of_all: i64,
    cluster: Option<ClusterRecord>,
    networks_written: i64,
    hosts: BTreeMap<Id, HostRecord>,
    alive: BTreeMap<Id, String>,
    gone: BTreeSet<Id>,
    drained: BTreeSet<Id>,
    networks: BTreeMap<Id, ClusterNetwork>,
    /// With the revisions by which they were written.
    ways: BTreeMap<(Id, Id), (WayRecord, i64)>,
    checks: BTreeSet<Id>,
    checked: BTreeMap<(Id, Id), Checked>,
    /// By which revisions they were written, by host and network.
    places: BTreeMap<(Id, Id), i64>,
    /// The networks that are followed.
    followed: BTreeMap<Id, Followed>,
    /// Keys that are not ours or say nothing that we know, with why: somebody else's, or a later version's.
    strange: BTreeMap<String, String>,
}

/// What is known of a network that is followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Followed {
    revision: i64,
    /// Who has them; nobody where that cannot be read; and by which revisions they were written.
    blocks: BTreeMap<IpNet, (Option<Id>, i64)>,
    cuts: BTreeMap<IpNet, i64>,
    wants: BTreeSet<(Id, Family)>,
    /// By host and id.
    endpoints: BTreeMap<(Id, Id), EndpointRecord>,
}

impl View {
    /// Nothing, as of `revision`: what is older than that is a backup of it.
    pub fn since(revision: i64) -> Self {
        Self { revision, ..Self::default() }
    }

    /// What was `found` at `revision`. Networks are not among that ([`View::add`]).
    pub fn of<B: AsRef<[u8]>>(layout: &Layout, revision: i64, found: impl IntoIterator<Item = Found<B>>) -> Self {
        let mut view = Self { of_all: revision, ..Self::since(revision) };
        // In order, and all at once: maps that are made so have no gaps.
        let mut hosts = Vec::new();
        for (key, value, revision) in found {
            let (key, value) = (key.as_ref(), Some(value.as_ref()));
            match layout.parse(key) {
                Some(Key::Host(id)) => {
                    let record = Reader { key, value, strange: &mut view.strange }.json();
                    hosts.extend(record.map(|record: HostRecord| (id, record)));
                }
                _ => drop(view.take(layout, key, value, revision)),
            }
        }
        view.hosts = hosts.into_iter().collect();
        view
    }

    /// The highest revision of which anything was seen.
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// The revision of which that is which all hosts follow.
    pub const fn revision_of_all(&self) -> i64 {
        self.of_all
    }

    /// The revision of which that is which is known of a network; 0 if it is not followed.
    pub fn revision_of(&self, network: Id) -> i64 {
        self.followed.get(&network).map_or(0, |of| of.revision)
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

    /// Which run of a host says that it runs, as far as it was looked at.
    pub fn run_of(&self, host: Id) -> Option<&str> {
        self.alive.get(&host).map(String::as_str)
    }

    /// Whether a host is not to come back.
    pub fn is_gone(&self, host: Id) -> bool {
        self.gone.contains(&host)
    }

    /// By which hosts two others send to each other, and by which revision that was written; the lower id is the first.
    pub const fn ways(&self) -> &BTreeMap<(Id, Id), (WayRecord, i64)> {
        &self.ways
    }

    /// Whether a host takes no more containers on networks that all have.
    pub fn is_drained(&self, host: Id) -> bool {
        self.drained.contains(&host)
    }

    /// The networks.
    pub const fn networks(&self) -> &BTreeMap<Id, ClusterNetwork> {
        &self.networks
    }

    /// The networks of which everything is known.
    pub fn followed(&self) -> impl Iterator<Item = Id> + '_ {
        self.followed.keys().copied()
    }

    /// Whether everything of a network is known.
    pub fn follows(&self, network: Id) -> bool {
        self.followed.contains_key(&network)
    }

    /// The networks that a host says to be on, with the revisions by which it last said so.
    pub fn places(&self, host: Id) -> impl Iterator<Item = (Id, i64)> + '_ {
        let from = (host, Id::from_bytes([0; 32]));
        let of_host = self.places.range(from..).take_while(move |((of, _), _)| *of == host);
        of_host.map(|((_, network), written)| (*network, *written))
    }

    /// Who gives out a block's addresses.
    pub fn block(&self, network: Id, net: IpNet) -> Option<Id> {
        self.followed.get(&network)?.blocks.get(&net)?.0
    }

    /// The blocks of a network that are taken, with who has them.
    pub fn blocks_on(&self, network: Id) -> impl Iterator<Item = (IpNet, Id)> + '_ {
        let blocks = self.followed.get(&network).into_iter().flat_map(|of| &of.blocks);
        blocks.filter_map(|(net, (host, _))| Some((*net, (*host)?)))
    }

    /// By which revision a block was written; 0 if nobody has it.
    pub fn written(&self, network: Id, net: IpNet) -> i64 {
        self.followed.get(&network).and_then(|of| of.blocks.get(&net)).map_or(0, |(_, written)| *written)
    }

    /// By which revision it was written that one of the blocks that a network is cut into was cut further, or claimed in parts; 0 for
    /// never.
    pub fn cut(&self, network: Id, net: IpNet) -> i64 {
        self.followed.get(&network).and_then(|of| of.cuts.get(&net)).copied().unwrap_or(0)
    }

    /// Who wants addresses: network, host and family.
    pub fn wants(&self) -> impl Iterator<Item = (Id, Id, Family)> + '_ {
        self.followed.iter().flat_map(|(network, of)| of.wants.iter().map(|(host, family)| (*network, *host, *family)))
    }

    /// Whether a host wants addresses of a network.
    pub fn is_wanted(&self, (network, host, family): (Id, Id, Family)) -> bool {
        self.followed.get(&network).is_some_and(|of| of.wants.contains(&(host, family)))
    }

    /// All blocks, with their networks and who has them.
    pub fn blocks(&self) -> impl Iterator<Item = (Id, IpNet, Id)> + '_ {
        self.followed.keys().flat_map(|of| self.blocks_on(*of).map(|(net, host)| (*of, net, host)))
    }

    /// The endpoints on a host, by network and id.
    pub fn endpoints_at(&self, host: Id) -> BTreeMap<(Id, Id), EndpointRecord> {
        let networks = self.followed.keys();
        let all = networks.flat_map(|of| self.endpoints_of(*of, host).map(|(id, record)| ((*of, id), record.clone())));
        all.collect()
    }

    /// The endpoints of a network on a host.
    pub fn endpoints_of(&self, network: Id, host: Id) -> impl Iterator<Item = (Id, &EndpointRecord)> {
        let from = (host, Id::from_bytes([0; 32]));
        let all = self.followed.get(&network).into_iter().flat_map(move |of| of.endpoints.range(from..));
        all.take_while(move |((on, _), _)| *on == host).map(|((_, id), record)| (*id, record))
    }

    /// An endpoint.
    pub fn endpoint(&self, network: Id, host: Id, endpoint: Id) -> Option<&EndpointRecord> {
        self.followed.get(&network)?.endpoints.get(&(host, endpoint))
    }

    /// All endpoints: network, host, and its id.
    pub fn endpoints(&self) -> impl Iterator<Item = ((Id, Id, Id), &EndpointRecord)> {
        self.followed
            .iter()
            .flat_map(|(network, of)| of.endpoints.iter().map(|((host, id), record)| ((*network, *host, *id), record)))
    }

    /// The names of the hosts that have endpoints on a network.
    pub fn hosts_on(&self, network: Id) -> BTreeSet<&Name> {
        let on = self.followed.get(&network).into_iter().flat_map(|of| of.endpoints.keys());
        let hosts: BTreeSet<Id> = on.map(|(host, _)| *host).collect();
        hosts.iter().filter_map(|host| Some(&self.hosts.get(host)?.name)).collect()
    }

    /// About how many keys a bundle of a part would have, and how many hosts ask for it when they start; none of parts that have
    /// no bundles, nor in a cluster of a format that has none.
    pub fn bundled(&self, part: Part) -> Option<(usize, usize)> {
        let format = self.cluster.as_ref()?.format;
        let (keys, hosts) = match part {
            Part::All => (self.hosts.len() + self.networks.len() + self.ways.len(), self.hosts.len()),
            Part::Network(network) => {
                let of = self.followed.get(&network)?;
                // Most hosts have one block of a network.
                (of.blocks.len() + of.cuts.len() + of.endpoints.len(), of.blocks.len())
            }
            Part::Alive | Part::Run(_) | Part::Places(_) | Part::Answers(_) => return None,
        };
        (format >= BUNDLES).then_some((keys, hosts.max(1)))
    }

    /// How many endpoints there are.
    pub fn endpoint_count(&self) -> usize {
        self.followed.values().map(|of| of.endpoints.len()).sum()
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

    /// Takes in what happened to a part up to `revision`; what is other than before, each once. Of a network that is not followed
    /// nothing is taken in.
    pub fn apply(&mut self, layout: &Layout, part: Part, revision: i64, events: &[Event]) -> BTreeSet<Change> {
        let seen = match part {
            Part::All => Some(&mut self.of_all),
            Part::Network(network) => match self.followed.get_mut(&network) {
                Some(of) => Some(&mut of.revision),
                None => return BTreeSet::new(),
            },
            Part::Alive | Part::Run(_) | Part::Places(_) | Part::Answers(_) => None,
        };
        if let Some(seen) = seen {
            *seen = revision.max(*seen);
        }
        self.revision = self.revision.max(revision);
        let take = |event: &Event| match event {
            Event::Put { key, value, revision } => self.take(layout, key, Some(value), *revision),
            Event::Delete { key } => self.take(layout, key, None, 0),
        };
        events.iter().filter_map(take).collect()
    }

    /// Takes in what was found of a network at `revision`: from now on everything of it is known.
    pub fn add<B: AsRef<[u8]>>(
        &mut self,
        layout: &Layout,
        network: Id,
        revision: i64,
        found: impl IntoIterator<Item = Found<B>>,
    ) {
        self.revision = self.revision.max(revision);
        self.followed.insert(network, Followed { revision, ..Followed::default() });
        // As in `of`.
        let (mut blocks, mut endpoints) = (Vec::new(), Vec::new());
        for (key, value, revision) in found {
            let (key, value) = (key.as_ref(), Some(value.as_ref()));
            match layout.parse(key) {
                Some(Key::Block(of, net)) if of == network => {
                    let block: Option<Block> = Reader { key, value, strange: &mut self.strange }.json();
                    blocks.push((net, (block.map(|block| block.host), revision)));
                }
                Some(Key::Endpoint { network: of, host, endpoint }) if of == network => {
                    let record = Reader { key, value, strange: &mut self.strange }.json();
                    endpoints.extend(record.map(|record| ((host, endpoint), compact(record))));
                }
                _ => drop(self.take(layout, key, value, revision)),
            }
        }
        let of = self.followed.get_mut(&network).expect("it was just put there");
        (of.blocks, of.endpoints) = (blocks.into_iter().collect(), endpoints.into_iter().collect());
    }

    /// Forgets what is in a network; what is other than before.
    pub fn forget(&mut self, layout: &Layout, network: Id) -> BTreeSet<Change> {
        let changes = self.all_of(network);
        self.followed.remove(&network);
        let prefix = layout.part(Part::Network(network));
        self.strange.retain(|key, _| !key.starts_with(&prefix));
        changes
    }

    /// All that there is in a network, as changes.
    pub fn all_of(&self, network: Id) -> BTreeSet<Change> {
        let Some(of) = self.followed.get(&network) else { return BTreeSet::new() };
        let blocks = of.blocks.iter().map(|(net, (host, _))| Change::Block(network, *net, *host));
        let endpoints = of.endpoints.keys().map(|(host, id)| Change::Endpoint(network, *host, *id));
        blocks.chain(endpoints).chain([Change::Network(network)]).collect()
    }

    /// Forgets what came of a check.
    pub fn forget_answers(&mut self, check: Id) {
        self.checked.retain(|(of, _), _| *of != check);
    }

    /// Takes in which hosts run, as was `found` at `revision`.
    pub fn take_runs<B: AsRef<[u8]>>(
        &mut self,
        layout: &Layout,
        revision: i64,
        found: impl IntoIterator<Item = Found<B>>,
    ) {
        self.revision = self.revision.max(revision);
        self.alive.clear();
        for (key, value, revision) in found {
            self.take(layout, key.as_ref(), Some(value.as_ref()), revision);
        }
    }

    /// Becomes another one, of what was found anew.
    ///
    /// # Errors
    /// [`WentBack`], when that is older than what was seen before; nothing has changed then.
    pub fn replace(&mut self, now: Self) -> Result<(), WentBack> {
        if now.revision < self.revision {
            return Err(WentBack::Revision { seen: self.revision, found: now.revision });
        }
        if let Some(seen) = self.cluster.as_ref().map(|cluster| cluster.id) {
            let found = now.cluster.as_ref().map(|cluster| cluster.id);
            if found != Some(seen) {
                return Err(WentBack::Cluster { seen, found });
            }
        }
        *self = now;
        Ok(())
    }

    /// Takes in that a key has a value since `revision`, or is gone.
    fn take(&mut self, layout: &Layout, key: &[u8], value: Option<&[u8]>, revision: i64) -> Option<Change> {
        if !self.strange.is_empty() {
            self.strange.remove(&*String::from_utf8_lossy(key));
        }
        let Some(parsed) = layout.parse(key) else {
            if value.is_some() {
                let text = String::from_utf8_lossy(key).into_owned();
                self.strange.insert(text, "is no key of this version".to_owned());
            }
            return None;
        };
        let mut reader = Reader { key, value, strange: &mut self.strange };
        match parsed {
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
            Key::Gone(id) => put_one(&mut self.gone, id, value.is_some()).then_some(Change::Host(id)),
            Key::Drained(id) => put_one(&mut self.drained, id, value.is_some()).then_some(Change::Drained(id)),
            Key::Check(id) => put_one(&mut self.checks, id, value.is_some()).then_some(Change::Check(id)),
            Key::Checked(id, host) => {
                put(&mut self.checked, (id, host), reader.json()).then_some(Change::Checked(id, host))
            }
            Key::Way(one, other) => {
                let record: Option<WayRecord> = reader.json();
                put(&mut self.ways, (one, other), record.map(|record| (record, revision)))
                    .then_some(Change::Way(one, other))
            }
            Key::Network(id) => {
                let record: Option<ClusterNetwork> = reader.json();
                put(&mut self.networks, id, record).then_some(Change::Network(id))
            }
            Key::Place(host, network) => {
                // Who was to take it back has to look again, also when it was only written anew.
                put(&mut self.places, (host, network), value.is_some().then_some(revision))
                    .then_some(Change::Place(host, network))
            }
            Key::Block(network, net) => {
                let of = self.followed.get_mut(&network)?;
                let host = reader.json().map(|block: Block| block.host);
                let before = match value {
                    Some(_) => of.blocks.insert(net, (host, revision)),
                    None => of.blocks.remove(&net),
                };
                let before = before.and_then(|(host, _)| host);
                // Written anew by the one who has it: what counts for rows is the same.
                (before != host).then_some(Change::Block(network, net, before))
            }
            Key::Cut(network, net) => {
                let of = self.followed.get_mut(&network)?;
                put(&mut of.cuts, net, value.is_some().then_some(revision));
                None
            }
            Key::Want(network, host, family) => {
                let of = self.followed.get_mut(&network)?;
                put_one(&mut of.wants, (host, family), value.is_some()).then_some(Change::Want(network, host, family))
            }
            Key::Endpoint { network, host, endpoint } => {
                let of = self.followed.get_mut(&network)?;
                put(&mut of.endpoints, (host, endpoint), reader.json().map(compact))
                    .then_some(Change::Endpoint(network, host, endpoint))
            }
            // They are looked at by conditions alone.
            Key::HostName(_) | Key::HostAddress(_) | Key::NetworkName(_) | Key::Vni(_) => None,
        }
    }
}

/// The value of a key; what cannot be read counts as not there, and is written down.
struct Reader<'a> {
    key: &'a [u8],
    value: Option<&'a [u8]>,
    strange: &'a mut BTreeMap<String, String>,
}

impl Reader<'_> {
    fn json<T: DeserializeOwned>(&mut self) -> Option<T> {
        // As text at once: strings in it are not looked through one by one then.
        let read = match std::str::from_utf8(self.value?) {
            Ok(text) => serde_json::from_str(text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(record) => Some(record),
            Err(error) => {
                let key = String::from_utf8_lossy(self.key).into_owned();
                self.strange.insert(key, format!("says nothing that this version knows: {error}"));
                None
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(self.value?).into_owned())
    }
}

/// In as little memory as it needs: there are many of them.
fn compact(mut record: EndpointRecord) -> EndpointRecord {
    record.name.shrink_to_fit();
    record.aliases.shrink_to_fit();
    record.addresses.shrink_to_fit();
    record
}

/// Whether that made a difference.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match (map.entry(key), value) {
        (Entry::Occupied(there), None) => drop(there.remove()),
        (Entry::Occupied(there), Some(value)) if *there.get() == value => return false,
        (Entry::Occupied(mut there), Some(value)) => drop(there.insert(value)),
        (Entry::Vacant(_), None) => return false,
        (Entry::Vacant(place), Some(value)) => {
            place.insert(value);
        }
    }
    true
}

/// Whether that made a difference.
fn put_one<K: Ord>(set: &mut BTreeSet<K>, key: K, is_there: bool) -> bool {
    if is_there { set.insert(key) } else { set.remove(&key) }
}
