//! An etcd that is a value.

use std::collections::{BTreeMap, BTreeSet};

use portolan_cluster::{
    Change, ClusterNetwork, ClusterRecord, Condition, Event, FORMAT, Found, HostRecord, Key, Layout, Operation, Part,
    VXLAN_PORT, View, Write, concerns,
};
use portolan_model::{Id, Mac, Mtu, PerFamily, Vni};

/// etcd, as far as transactions and watches go.
#[derive(Default)]
pub(crate) struct Etcd {
    pub(crate) layout: Layout,
    pub(crate) revision: i64,
    pub(crate) keys: BTreeMap<String, (String, i64)>,
    /// What each revision did.
    pub(crate) log: Vec<(i64, Vec<Event>)>,
}

impl Etcd {
    pub(crate) fn under(&self, prefix: &str) -> Vec<String> {
        self.keys
            .range(prefix.to_owned()..)
            .map(|(key, _)| key.clone())
            .take_while(|key| key.starts_with(prefix))
            .collect()
    }

    fn holds(&self, condition: &Condition) -> bool {
        let found = |key: &Key| self.keys.get(&self.layout.text(key));
        match condition {
            Condition::Absent(key) => found(key).is_none(),
            Condition::Present(key) => found(key).is_some(),
            Condition::Is(key, value) => found(key).is_some_and(|(found, _)| found == value),
            Condition::WrittenAt(key, revision) => found(key).map_or(0, |(_, at)| *at) == *revision,
            Condition::NoEndpointsOn(network) => self.under(&self.layout.endpoints(*network)).is_empty(),
            Condition::NoEndpointsAt(network, host) => {
                self.under(&self.layout.endpoints_at(*network, *host)).is_empty()
            }
        }
    }

    /// Whether its conditions held, and it was done.
    pub(crate) fn write(&mut self, write: &Write) -> bool {
        assert!(write.then.len() <= 128, "etcd takes no more");
        if !write.only_if.iter().all(|condition| self.holds(condition)) {
            return false;
        }
        self.revision += 1;
        let mut events = Vec::new();
        let mut written = BTreeSet::new();
        for operation in &write.then {
            let gone = match operation {
                Operation::Put(key, value) | Operation::PutWhileAlive(key, value) => {
                    let text = self.layout.text(key);
                    assert!(written.insert(text.clone()), "etcd refuses to write `{text}` twice");
                    self.keys.insert(text.clone(), (value.clone(), self.revision));
                    let (key, value) = (text.into_bytes(), value.clone().into_bytes());
                    events.push(Event::Put { key, value, revision: self.revision });
                    continue;
                }
                Operation::Delete(key) => vec![self.layout.text(key)],
                Operation::DeleteAllOf(part) => self.under(&self.layout.part(*part)),
            };
            let gone = gone.into_iter().filter(|key| self.keys.remove(key).is_some());
            events.extend(gone.collect::<Vec<_>>().into_iter().map(|key| Event::Delete { key: key.into_bytes() }));
        }
        self.log.push((self.revision, events));
        true
    }

    /// What is there of a part.
    pub(crate) fn found(&self, part: Part) -> Vec<Found> {
        let all = self.under(&self.layout.part(part)).into_iter();
        all.map(|key| {
            let (value, at) = self.keys[&key].clone();
            (key.into_bytes(), value.into_bytes(), at)
        })
        .collect()
    }

    /// What a host sees when it lists: what all share, which hosts run, and on which networks it is; of networks nothing.
    pub(crate) fn glance(&self, host: Id) -> View {
        let parts = [Part::All, Part::Alive, Part::Places(host)];
        View::of(&self.layout, self.revision, parts.into_iter().flat_map(|part| self.found(part)))
    }

    /// What a host sees when it begins to follow, with the networks that it is asked for.
    pub(crate) fn look(&self, host: Id, asked: &BTreeSet<Id>) -> View {
        let mut view = self.glance(host);
        for network in concerns(&view, host, asked) {
            view.add(&self.layout, network, self.revision, self.found(Part::Network(network)));
        }
        view
    }

    /// All that is there, as nobody sees it who is on some networks alone.
    pub(crate) fn list(&self) -> View {
        let all = self.keys.iter();
        let all = all.map(|(key, (value, at))| (key.clone().into_bytes(), value.clone().into_bytes(), *at));
        let mut view = View::of(&self.layout, self.revision, all);
        for network in view.networks().keys().copied().collect::<Vec<Id>>() {
            view.add(&self.layout, network, self.revision, self.found(Part::Network(network)));
        }
        view
    }

    /// What some revisions did to a part.
    pub(crate) fn events<'a>(&'a self, part: Part, log: &'a [(i64, Vec<Event>)]) -> Vec<(i64, Vec<Event>)> {
        let prefix = self.layout.part(part).into_bytes();
        let of_part = |event: &&Event| match event {
            Event::Put { key, .. } | Event::Delete { key } => key.starts_with(&prefix),
        };
        let all = log.iter().map(|(revision, events)| (*revision, events.iter().filter(of_part).cloned().collect()));
        all.collect()
    }

    /// Has somebody who sees everything see what these revisions did, the networks that came among it.
    pub(crate) fn show(&self, view: &mut View, log: &[(i64, Vec<Event>)]) -> BTreeSet<Change> {
        let mut changes = BTreeSet::new();
        for (revision, events) in log {
            let mut see = |view: &mut View, part| {
                for (revision, events) in self.events(part, &[(*revision, events.clone())]) {
                    changes.extend(view.apply(&self.layout, part, revision, &events));
                }
            };
            see(view, Part::All);
            let (networks, followed): (BTreeSet<Id>, BTreeSet<Id>) =
                (view.networks().keys().copied().collect(), view.followed().collect());
            for network in networks.difference(&followed) {
                view.add::<Vec<u8>>(&self.layout, *network, *revision, []);
            }
            for network in &followed {
                see(view, Part::Network(*network));
            }
            for network in followed.difference(&networks) {
                view.forget(&self.layout, *network);
            }
            for part in self.hosts_of(events).into_iter().map(Part::Places).chain([Part::Alive]) {
                see(view, part);
            }
        }
        changes
    }

    /// The hosts whose places are among these.
    fn hosts_of(&self, events: &[Event]) -> BTreeSet<Id> {
        let place = |event: &Event| {
            let (Event::Put { key, .. } | Event::Delete { key }) = event;
            match self.layout.parse(key) {
                Some(Key::Place(host, _)) => Some(host),
                _ => None,
            }
        };
        events.iter().filter_map(place).collect()
    }
}

pub(crate) fn id(kind: u8, number: u64) -> Id {
    let mut bytes = [kind; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

pub(crate) fn host(number: u64) -> HostRecord {
    HostRecord {
        name: format!("host-{number}").parse().unwrap(),
        underlay: PerFamily { v4: Some(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number as u32).into()), v6: None },
        lan: PerFamily::default(),
        mac: Mac::local([number as u8; 6]),
        mtu: Mtu::ETHERNET,
        seal: None,
        reach: portolan_cluster::Reach::Open,
        answers: false,
        translates: false,
        version: "0".to_owned(),
    }
}

pub(crate) fn network(number: u64, prefix: &str) -> ClusterNetwork {
    ClusterNetwork {
        name: format!("net-{number}").parse().unwrap(),
        vni: Vni::new(4097 + number as u32).unwrap(),
        prefixes: PerFamily { v4: Some(prefix.parse().unwrap()), v6: None },
        block_lengths: PerFamily { v4: 26, v6: 112 },
        internal: false,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        created: 0,
    }
}

pub(crate) fn begun() -> Etcd {
    let mut etcd = Etcd::default();
    let cluster = ClusterRecord {
        id: id(9, 9),
        format: FORMAT,
        port: VXLAN_PORT,
        pools: PerFamily { v4: "10.128.0.0/9".parse().unwrap(), v6: "fd00::/48".parse().unwrap() },
        lengths: PerFamily { v4: 18, v6: 64 },
    };
    assert!(etcd.write(&Write::begin(&cluster)));
    assert!(!etcd.write(&Write::begin(&cluster)), "one begins it");
    etcd
}

/// A generator that a seed determines (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// `PORTOLAN_SEEDS`, as many as say something in a second or two without it.
pub(crate) fn seeds() -> u64 {
    std::env::var("PORTOLAN_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}
