//! Hosts in this process: each with the real conversation with etcd and the real plans, and with a value for rows and kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnet::IpNet;
use portolan_cluster::View;
use portolan_engine::Room;
use portolan_etcd::Config;
use portolan_lab::Host;
use portolan_model::{Family, Id, Withheld};
use portolan_resident::cluster::plan::{Here, Plan, Rows};
use portolan_resident::cluster::{Handle, Membership, Site, part};
use tokio::sync::oneshot;

use crate::world::World;

/// The hosts share so many threads.
const THREADS: usize = 2;

/// What is looked for in rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// So many peers, blocks and endpoints of others, each host's own numbers.
    Everything,
    Endpoint(Id),
    /// One more block that this host has of the network.
    Block(Id, Id),
}

/// What a host had in its rows, and when: its number, and the time at which what was looked for was there.
type Arrival = (usize, Instant);

/// What a host made of what it saw, and when it last made anything of it.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) rows: Rows,
    pub(crate) changed: Option<Instant>,
}

struct Shared {
    goal: RwLock<Goal>,
    arrivals: Mutex<Sender<Arrival>>,
}

/// How many peers, blocks and endpoints of others a host is to know.
pub(crate) type Counts = (usize, usize, usize);

/// Rows that are a value, and a kernel that is none.
struct Memory {
    number: usize,
    counts: Counts,
    rows: Arc<Mutex<Held>>,
    addresses: BTreeMap<Id, BTreeSet<IpAddr>>,
    shared: Arc<Shared>,
}

impl Memory {
    /// Whether it is among these changes, or comes with them.
    fn is_in(&self, plan: &Plan) -> bool {
        match *self.shared.goal.read().unwrap() {
            Goal::Everything => true,
            Goal::Endpoint(id) => plan.remote.endpoints.get(&id).is_some_and(Option::is_some),
            Goal::Block(network, host) => {
                plan.remote.blocks.iter().any(|((of, _), holder)| *of == network && *holder == Some(host))
            }
        }
    }

    fn is_there(&self, rows: &Rows) -> bool {
        *self.shared.goal.read().unwrap() != Goal::Everything || counts(rows) == self.counts
    }
}

pub(crate) fn counts(rows: &Rows) -> Counts {
    (rows.remote.peers.len(), rows.remote.blocks.len(), rows.remote.endpoints.len())
}

fn take<K: Ord, V>(rows: &mut BTreeMap<K, V>, changes: BTreeMap<K, Option<V>>) {
    if rows.is_empty() {
        *rows = changes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        return;
    }
    for (key, value) in changes {
        match value {
            Some(value) => drop(rows.insert(key, value)),
            None => drop(rows.remove(&key)),
        }
    }
}

impl Site for Memory {
    fn rows(&self) -> Result<Rows> {
        Ok(self.rows.lock().unwrap().rows.clone())
    }

    fn withheld(&self) -> Result<BTreeMap<Id, BTreeSet<Withheld>>> {
        Ok(self.rows.lock().unwrap().rows.withheld.clone())
    }

    fn take_in(&self, plan: Plan) -> Result<BTreeMap<Id, Option<String>>> {
        let held = &mut *self.rows.lock().unwrap();
        let is_in = self.is_in(&plan);
        if !plan.remote.is_empty() {
            held.changed = Some(Instant::now());
        }
        let rows = &mut held.rows;
        for network in &plan.networks {
            rows.overlays.insert(network.id, network.blocks.clone());
            rows.withheld.insert(network.id, network.withheld.clone());
        }
        for network in &plan.gone {
            rows.overlays.remove(network);
            rows.withheld.remove(network);
        }
        rows.withheld.retain(|_, withheld| !withheld.is_empty());
        take(&mut rows.remote.peers, plan.remote.peers);
        take(&mut rows.remote.blocks, plan.remote.blocks);
        take(&mut rows.remote.endpoints, plan.remote.endpoints);
        rows.remote.revision = plan.remote.revision;
        if is_in && self.is_there(rows) {
            let _ = self.shared.arrivals.lock().unwrap().send((self.number, Instant::now()));
        }
        let all = plan.networks.iter().map(|network| network.id).chain(plan.gone.iter().copied());
        Ok(all.map(|network| (network, None)).collect())
    }

    fn withhold(&self, network: Id, part: &Withheld, blocks: &BTreeSet<IpNet>) -> Result<bool> {
        let rows = &mut self.rows.lock().unwrap().rows;
        rows.withheld.entry(network).or_default().insert(*part);
        rows.overlays.insert(network, blocks.clone());
        Ok(true)
    }

    fn addresses_in_use(&self, network: Id) -> Result<BTreeSet<IpAddr>> {
        Ok(self.addresses.get(&network).cloned().unwrap_or_default())
    }

    fn room(&self, _: Id, _: Family) -> Result<Option<Room>> {
        Ok(None)
    }

    fn compare(&self, here: Here<'_>, view: &View) -> Result<Vec<String>> {
        Ok(here.differences(view, &self.rows.lock().unwrap().rows))
    }
}

/// Hosts that run; they end when this is dropped.
pub(crate) struct Hosts {
    pub(crate) handles: Vec<Handle>,
    pub(crate) rows: Vec<Arc<Mutex<Held>>>,
    shared: Arc<Shared>,
    arrivals: Receiver<Arrival>,
    stop: Vec<oneshot::Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Hosts {
    /// Starts all hosts of `world` at once, in the namespace of `place`.
    pub(crate) fn start(place: &Host, world: &World, config: &Config, counts: &[Counts]) -> Self {
        let (arrived, arrivals) = channel();
        let shared = Arc::new(Shared { goal: RwLock::new(Goal::Everything), arrivals: Mutex::new(arrived) });
        let (mut handles, mut rows, mut running) = (Vec::new(), Vec::new(), Vec::new());
        for (number, member) in world.members.iter().enumerate() {
            let membership = Membership {
                cluster: world.cluster(),
                host: member.id,
                record: member.record.clone(),
                is_given: true,
                private_key: String::new(),
                next_private_key: String::new(),
                secret: None,
                drawn: 0,
                rotate_after: None,
                prefix: "/portolan".to_owned(),
                etcd: config.clone(),
                leaving: false,
                run: format!("run-{number}"),
                last_runs: Vec::new(),
            };
            let (handle, conversation, worker) =
                part(membership, 0, "none".parse().unwrap(), Path::new("/nonexistent")).unwrap();
            let mut addresses: BTreeMap<Id, BTreeSet<IpAddr>> = BTreeMap::new();
            let mut containers = BTreeSet::new();
            for (at, record) in &member.endpoints {
                addresses.entry(at.0).or_default().extend(&record.addresses);
                handle.take(record.container, [(*at, record.clone())].into());
                containers.insert(record.container);
            }
            handle.took_everything(containers);
            let held = Arc::new(Mutex::new(Held::default()));
            let site = Memory { number, counts: counts[number], rows: held.clone(), addresses, shared: shared.clone() };
            handles.push(handle);
            rows.push(held);
            running.push((conversation, worker, site));
        }
        let (mut stop, mut threads) = (Vec::new(), Vec::new());
        place.enter(|| {
            for _ in 0..THREADS {
                let part = running.split_off(running.len() - running.len().div_ceil(THREADS - threads.len()));
                let (stopping, stopped) = oneshot::channel();
                let work = move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    let local = tokio::task::LocalSet::new();
                    for (conversation, worker, site) in part {
                        local.spawn_local(conversation.run());
                        local.spawn_local(worker.run(site));
                    }
                    let _ = local.block_on(&runtime, stopped);
                };
                threads.push(std::thread::spawn(work));
                stop.push(stopping);
            }
        });
        Self { handles, rows, shared, arrivals, stop, threads }
    }

    /// Has `goal` be looked for from now on.
    pub(crate) fn look_for(&self, goal: Goal) {
        while self.arrivals.try_recv().is_ok() {}
        *self.shared.goal.write().unwrap() = goal;
    }

    /// What hosts say that is not as it should be, and how many say so.
    pub(crate) fn troubles(&self) -> String {
        let mut all: BTreeMap<String, usize> = BTreeMap::new();
        for warning in self.handles.iter().flat_map(|handle| handle.standing().warnings) {
            *all.entry(warning).or_default() += 1;
        }
        let said: Vec<String> = all.into_iter().map(|(warning, hosts)| format!("{hosts} say: {warning}")).collect();
        said.join("; ")
    }

    /// When each of so many hosts had what is looked for; as many as had it within `patience`.
    pub(crate) fn wait(&self, hosts: usize, patience: Duration) -> BTreeMap<usize, Instant> {
        let until = Instant::now() + patience;
        let mut all = BTreeMap::new();
        while all.len() < hosts {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((host, at)) = self.arrivals.recv_timeout(left) else { break };
            all.entry(host).or_insert(at);
        }
        all
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.stop.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
