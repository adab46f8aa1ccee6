//! One host of a simulated cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use portolan_cluster::{Change, HostRecord, Part, View, Write, abandoned, concerns, own};
use portolan_engine::{Change as Local, Engine, Error};
use portolan_model::{Id, Withheld};
use portolan_resident::cluster::Endpoints;
use portolan_resident::cluster::plan::{Here, Rows, endpoints_of};
use portolan_store::SqliteStore;

use crate::etcd::Etcd;
use crate::fake::FakeKernel;

pub(crate) struct Host {
    pub(crate) id: Id,
    pub(crate) record: HostRecord,
    pub(crate) kernel: FakeKernel,
    pub(crate) engine: Engine<SqliteStore, FakeKernel>,
    pub(crate) view: View,
    /// How much of etcd's log it has seen of each part that it follows.
    seen: BTreeMap<Part, usize>,
    /// The networks that somebody here asks something of.
    pub(crate) asking: BTreeSet<Id>,
    /// What it missed is not to be had any more.
    pub(crate) is_behind: bool,
    pub(crate) is_cut_off: bool,
    pub(crate) namespaces: BTreeSet<u8>,
    scratch: PathBuf,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

pub(crate) fn namespace(number: u8) -> PathBuf {
    format!("/ns/box{number}").into()
}

impl Host {
    pub(crate) fn new(id: Id, record: HostRecord, seed: u64) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scratch = base.join(format!("portolan-simulated-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&scratch);
        let kernel = FakeKernel::new(seed);
        let engine = open(&scratch, &kernel);
        Self {
            id,
            record,
            kernel,
            engine,
            view: View::default(),
            seen: BTreeMap::new(),
            asking: BTreeSet::new(),
            is_behind: true,
            is_cut_off: false,
            namespaces: BTreeSet::new(),
            scratch,
        }
    }

    /// Its daemon is gone, and another comes: what is known is what is in its store.
    pub(crate) fn restart(&mut self) {
        self.engine = open(&self.scratch, &self.kernel);
        self.view = View::since(self.engine.remote().unwrap().revision);
        self.is_behind = true;
    }

    const fn here(&self) -> Here<'_> {
        Here { host: self.id, record: &self.record }
    }

    fn asked(&self) -> BTreeSet<Id> {
        self.wanted().into_keys().map(|(network, _)| network).chain(self.asking.iter().copied()).collect()
    }

    /// Sees what happened, of each part that it follows as far as `upto` says of how much it has seen, and takes it in; the process
    /// dies at the `dies`-th call meanwhile, if there are as many.
    pub(crate) fn watch(&mut self, etcd: &Etcd, upto: &mut dyn FnMut(usize) -> usize, dies: Option<usize>) -> bool {
        let everything = std::mem::take(&mut self.is_behind);
        let mut changes: BTreeSet<Change> = BTreeSet::new();
        if everything {
            self.view.replace(etcd.look(self.id, &self.asked())).unwrap();
            let networks = self.view.followed().map(Part::Network);
            let parts = networks.chain([Part::All, Part::Places(self.id)]);
            self.seen = parts.map(|part| (part, etcd.log.len())).collect();
        } else {
            for (part, seen) in &mut self.seen {
                let now = upto(*seen);
                for (revision, events) in etcd.events(*part, &etcd.log[*seen..now]) {
                    // How far etcd is, it says with what happened.
                    if !events.is_empty() {
                        changes.extend(self.view.apply(&etcd.layout, *part, revision, &events));
                    }
                }
                *seen = now;
            }
            changes.extend(self.follow(etcd));
        }
        // What came of an offer may be nothing that changes the view otherwise.
        changes
            .extend(self.open().into_iter().filter(|(_, (all, open))| all != open).map(|(of, _)| Change::Network(of)));
        let take_in = || {
            let plan = match everything {
                true => self.here().everything(&self.view, &Rows::of(&self.engine).unwrap()),
                false => self.here().changes(&self.view, &self.engine.withheld().unwrap(), &changes),
            };
            plan.take_in(&self.engine)
        };
        let done = match dies {
            Some(n) => self.kernel.dying_at(n, take_in),
            None => Some(take_in()),
        };
        match done {
            None => {
                self.restart();
                true
            }
            Some(Ok(problems)) => {
                // As the thread does, which tries those again with the next change.
                self.is_behind = problems.values().any(Option::is_some);
                false
            }
            Some(Err(error)) => panic!("{error}"),
        }
    }

    /// Follows the networks that it is concerned with, and no others, as the thread does.
    fn follow(&mut self, etcd: &Etcd) -> BTreeSet<Change> {
        let wanted = concerns(&self.view, self.id, &self.asked());
        let followed: BTreeSet<Id> = self.view.followed().collect();
        let mut changes = BTreeSet::new();
        for network in followed.difference(&wanted) {
            self.seen.remove(&Part::Network(*network));
            changes.extend(self.view.forget(&etcd.layout, *network));
        }
        for network in wanted.difference(&followed) {
            let part = Part::Network(*network);
            self.view.add(&etcd.layout, *network, etcd.revision, etcd.found(part));
            changes.extend(self.view.all_of(*network));
            self.seen.insert(part, etcd.log.len());
        }
        changes
    }

    /// What it withholds, and what of that is still offered, by network that it has.
    fn open(&self) -> BTreeMap<Id, (BTreeSet<Withheld>, BTreeSet<Withheld>)> {
        let all = self.engine.withheld().unwrap().into_iter().filter(|(of, _)| self.view.networks().contains_key(of));
        let open = |network, all: &BTreeSet<Withheld>| own(&self.view, self.id, network, all).withheld;
        let mut both = BTreeMap::new();
        for (network, all) in all {
            let open = open(network, &all);
            both.insert(network, (all, open));
        }
        both
    }

    /// Gives back a block of which nothing is in use, if it has one: nothing of it is given out from then on.
    pub(crate) fn release(&self) -> Option<Write> {
        let withheld = self.engine.withheld().unwrap();
        let is_idle = |(network, block): &(Id, IpNet)| {
            let is_offered = withheld.get(network).is_some_and(|all| all.iter().any(|one| one.block == *block));
            !is_offered && !self.addresses(*network).iter().any(|address| block.contains(address))
        };
        let own_blocks = self.view.blocks().filter(|(.., holder)| *holder == self.id);
        let (network, block) = own_blocks.map(|(network, block, _)| (network, block)).find(is_idle)?;
        let part = Withheld { block, part: block, written: self.view.written(network, block) };
        let all = withheld.get(&network).cloned().unwrap_or_default().into_iter().chain([part]).collect();
        let left = own(&self.view, self.id, network, &all);
        let is_withheld = left.withheld.contains(&part) && self.engine.withhold(network, &part, &left.blocks).unwrap();
        is_withheld.then(|| Write::release(network, &part))
    }

    /// Takes back what is still offered.
    pub(crate) fn keeps(&self) -> Vec<Write> {
        let open = self.open().into_iter().flat_map(|(of, (_, open))| open.into_iter().map(move |one| (of, one)));
        open.map(|(network, one)| Write::keep(self.id, network, &one)).collect()
    }

    /// What it says of itself: its endpoints, and where it is no more.
    pub(crate) fn says(&self) -> Vec<Write> {
        let mut writes = Write::endpoints(self.id, &self.view.endpoints_at(self.id), &self.wanted());
        writes.extend(abandoned(&self.view, self.id, &self.asked()));
        writes
    }

    /// What others are to know of it.
    pub(crate) fn wanted(&self) -> Endpoints {
        let mut wanted = Endpoints::new();
        let show = |change| {
            if let Local::Container(_, Some(view)) = change {
                wanted.extend(endpoints_of(&view));
            }
        };
        self.engine.follow(None, show).unwrap();
        wanted
    }

    pub(crate) fn addresses(&self, network: Id) -> BTreeSet<IpAddr> {
        self.engine.addresses_in_use(network).unwrap()
    }

    pub(crate) fn differences(&self) -> Vec<String> {
        self.here().compare(&self.view, &self.engine).unwrap()
    }

    pub(crate) fn detach(&mut self, number: u8) -> Result<(), Error> {
        self.engine.detach(&format!("box{number}")).map(drop)
    }
}

fn open(scratch: &Path, kernel: &FakeKernel) -> Engine<SqliteStore, FakeKernel> {
    Engine::new("/root".to_owned(), SqliteStore::open(scratch).unwrap(), kernel.clone())
}
