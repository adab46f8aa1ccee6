//! One host of a simulated cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use portolan_cluster::{Change, HostRecord, View};
use portolan_engine::{Change as Local, Engine, Error};
use portolan_model::Id;
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
    /// How much of etcd's log it has seen.
    pub(crate) seen: usize,
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
            seen: 0,
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

    /// Sees what happened up to there, and takes it in; the process dies at the `dies`-th call meanwhile, if there are as many.
    pub(crate) fn watch(&mut self, etcd: &Etcd, upto: usize, dies: Option<usize>) -> bool {
        let everything = std::mem::take(&mut self.is_behind);
        let mut changes: BTreeSet<Change> = BTreeSet::new();
        if everything {
            self.view.replace(&etcd.layout, etcd.revision, etcd.all()).unwrap();
            self.seen = etcd.log.len();
        } else {
            for (revision, events) in &etcd.log[self.seen..upto] {
                changes.extend(self.view.apply(&etcd.layout, *revision, events));
            }
            self.seen = upto;
        }
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
