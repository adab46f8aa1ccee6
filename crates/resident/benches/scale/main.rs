//! How a cluster grows: all its hosts in this process, each with the conversation and the plans of the real thing, over a real etcd.
//! Only rows and kernel are values.
//!
//! `cargo bench -p portolan-resident --bench scale` writes `docs/cluster-scale.md` and `docs/cluster-scale.svg`. Needs root or user
//! namespaces, and etcd. `PORTOLAN_SCALE=100,250` runs with so many hosts alone, `PORTOLAN_SCALE=storm` the storm; neither writes
//! anything. It fails when a bound is not kept.

mod host;
mod measure;
mod page;
mod storm;
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use portolan_etcd::Config;
use portolan_lab::etcd::{Etcd, is_there};
use portolan_lab::{Host, Lab, Lan};
use portolan_model::{Family, Id};
use portolan_resident::cluster::{Sharing, Wanted};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::{Counts, Goal, Hosts};
use crate::measure::{Spread, Usage, resident};
use crate::storm::Storm;
use crate::world::{Member, World, id};

const SIZES: [usize; 4] = [100, 250, 500, 1000];
/// So many endpoints there are for each host.
const ENDPOINTS: usize = 50;
/// So many changes are timed.
const ENDPOINT_ROUNDS: usize = 40;
const BLOCK_ROUNDS: usize = 20;
/// How long any of it may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A namespace with an etcd in it.
pub(crate) struct Place {
    pub(crate) host: Host,
    _lan: Lan,
    // Last, as it removes the others.
    lab: Lab,
}

const ADDRESS: &str = "10.0.1.1";

impl Place {
    fn or_skip() -> Option<Self> {
        if !is_there("scale") {
            return None;
        }
        let lab = Lab::or_skip("scale")?;
        let host = lab.host("all").unwrap();
        let lan = lab.lan("lan", &[(&host, "eth0", &[&format!("{ADDRESS}/24")])]).unwrap();
        Some(Self { host, _lan: lan, lab })
    }

    /// A fresh etcd, filled with `world`.
    pub(crate) fn filled(&self, name: &str, world: &World) -> (Etcd, Config) {
        let dir = self.lab.dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let address: IpAddr = ADDRESS.parse().unwrap();
        let etcd = Etcd::start(&dir, &[(&self.host, address)], "http", &[]).unwrap();
        // All hosts are on two processors: what is slow here is not cut off.
        let config = Config { endpoints: etcd.endpoints("http"), tls: None, user: None, timeout: PATIENCE };
        self.run(world.fill(&config));
        (etcd, config)
    }

    fn run<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.host.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work)
        })
    }
}

/// What was measured with so many hosts.
#[derive(Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) hosts: usize,
    pub(crate) endpoints: usize,
    /// Endpoints that hosts know of others, all together.
    pub(crate) held: usize,
    /// From nothing to the last host whose rows are complete.
    pub(crate) cold: Duration,
    /// Processor time of that: of the hosts, and of etcd.
    pub(crate) cold_usage: (Duration, Duration),
    /// Bytes that came into memory with the hosts, and with hosts that know of no endpoints, but of all else.
    pub(crate) memory: usize,
    pub(crate) bare: usize,
    /// Bytes on etcd's disk, and of that in use.
    pub(crate) etcd: (u64, u64),
    /// Processor time of a change, with all that goes on anyway: of all hosts together, and of etcd.
    pub(crate) change: (Duration, Duration),
    pub(crate) endpoint: Spread,
    pub(crate) block: Spread,
}

impl Figures {
    pub(crate) const fn per_endpoint(&self) -> usize {
        self.memory.saturating_sub(self.bare) / self.held
    }
}

/// What each host is to know of others.
fn counts(world: &World) -> Vec<Counts> {
    let mut blocks: BTreeMap<Id, BTreeMap<usize, usize>> = BTreeMap::new();
    for ((network, _), host) in &world.blocks {
        *blocks.entry(*network).or_default().entry(*host).or_default() += 1;
    }
    let mut endpoints: BTreeMap<Id, usize> = BTreeMap::new();
    for (network, _) in world.members.iter().flat_map(|member| member.endpoints.keys()) {
        *endpoints.entry(*network).or_default() += 1;
    }
    let of_host = |(number, member): (usize, &Member)| {
        let on = blocks.iter().filter(|(_, hosts)| hosts.contains_key(&number));
        let (mut theirs, mut known) = (0, 0);
        for (network, hosts) in on {
            theirs += hosts.iter().filter(|(host, _)| **host != number).map(|(_, count)| count).sum::<usize>();
            known += endpoints.get(network).copied().unwrap_or(0)
                - member.endpoints.keys().filter(|(of, _)| of == network).count();
        }
        (world.members.len() - 1, theirs, known)
    };
    world.members.iter().enumerate().map(of_host).collect()
}

/// Starts all hosts of a world at once: how long that took, of the processor as well, and the memory that came with them.
fn start(place: &Place, world: &World, name: &str) -> (Etcd, Hosts, Started) {
    let (etcd, config) = place.filled(name, world);
    let counts = counts(world);
    let pid = etcd.pid(0).expect("it runs");
    let (before, usage, etcd_usage) = (resident(), Usage::now(std::process::id()), Usage::now(pid));
    let begin = Instant::now();
    let running = Hosts::start(&place.host, world, &config, &counts);
    let ready = running.wait(world.members.len(), PATIENCE);
    assert!(ready.len() == world.members.len(), "some hosts do not know all that there is: {}", running.troubles());
    let cold = *ready.values().max().expect("there are some") - begin;
    let cold_usage = (usage.since(std::process::id()), etcd_usage.since(pid));
    // What is in flight has come, and buffers are empty.
    std::thread::sleep(Duration::from_secs(2));
    (etcd, running, Started { cold, cold_usage, memory: resident().saturating_sub(before) })
}

struct Started {
    cold: Duration,
    cold_usage: (Duration, Duration),
    memory: usize,
}

/// The memory of hosts that know no endpoints, for there are none.
fn bare(place: &Place, hosts: usize) -> usize {
    let mut world = World::spread(hosts, hosts * ENDPOINTS);
    world.members.iter_mut().for_each(|member| member.endpoints.clear());
    start(place, &world, "bare").2.memory
}

fn size(place: &Place, hosts: usize) -> Figures {
    let mut world = World::spread(hosts, hosts * ENDPOINTS);
    let held = counts(&world).iter().map(|(.., endpoints)| endpoints).sum();
    let (etcd, running, Started { cold, cold_usage, memory }) = start(place, &world, "full");
    let everywhere = id(2, 0);
    let mut endpoint = Vec::new();
    let pid = etcd.pid(0).expect("it runs");
    let (usage, etcd_usage) = (Usage::now(std::process::id()), Usage::now(pid));
    for round in 0..ENDPOINT_ROUNDS {
        let writer = round * 37 % hosts;
        let address = [10, 129, 255, round as u8].into();
        let (new, record) = world.endpoint(address);
        running.look_for(Goal::Endpoint(new));
        let start = Instant::now();
        running.handles[writer].take(record.container, [((everywhere, new), record)].into());
        let arrived = running.wait(hosts - 1, PATIENCE);
        assert_eq!(arrived.len(), hosts - 1, "an endpoint does not come everywhere");
        endpoint.extend(arrived.values().map(|at| *at - start));
        std::thread::sleep(Duration::from_millis(100));
    }
    let rounds = ENDPOINT_ROUNDS as u32;
    let change = (usage.since(std::process::id()) / rounds, etcd_usage.since(pid) / rounds);
    let mut block = Vec::new();
    for round in 0..BLOCK_ROUNDS {
        let writer = (round * 37 + 11) % hosts;
        running.look_for(Goal::Block(everywhere, world.members[writer].id));
        let start = Instant::now();
        let what = Sharing::Claim { network: everywhere, wanted: Wanted::Ahead(Family::V4) };
        running.handles[writer].share(what, |outcome| assert!(outcome.is_ok(), "{outcome:?}"));
        let arrived = running.wait(hosts - 1, PATIENCE);
        assert_eq!(arrived.len(), hosts - 1, "a block does not come everywhere");
        block.extend(arrived.values().map(|at| *at - start));
        std::thread::sleep(Duration::from_millis(100));
    }
    let (endpoint, block) = (Spread::of(endpoint), Spread::of(block));
    let figures = Figures {
        hosts,
        endpoints: hosts * ENDPOINTS,
        held,
        cold,
        cold_usage,
        memory,
        bare: 0,
        etcd: measure::database(&etcd),
        change,
        endpoint,
        block,
    };
    drop(running);
    figures
}

/// Says to a process of this program which part it is, and has it write down what came of it in this file.
const PART: &str = "PORTOLAN_SCALE_PART";
const FILE: &str = "PORTOLAN_SCALE_FILE";

/// Runs a part in a process of its own, whose memory is that of the part alone.
fn apart<T: DeserializeOwned>(part: &str) -> T {
    let file = std::env::temp_dir().join(format!("portolan-scale-{}", std::process::id()));
    let program = std::env::current_exe().unwrap();
    let status = Command::new(program).env(PART, part).env(FILE, &file).status().unwrap();
    assert!(status.success(), "{part} failed");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Is such a process.
fn be(place: &Place, part: &str) {
    let done = match part.split_once(' ') {
        Some(("size", hosts)) => serde_json::to_string(&size(place, hosts.parse().unwrap())),
        Some(("bare", hosts)) => serde_json::to_string(&bare(place, hosts.parse().unwrap())),
        _ => serde_json::to_string(&storm::run(place)),
    };
    std::fs::write(std::env::var_os(FILE).unwrap(), done.unwrap()).unwrap();
}

fn main() {
    let Some(place) = Place::or_skip() else { return };
    if let Ok(part) = std::env::var(PART) {
        return be(&place, &part);
    }
    let chosen = std::env::var("PORTOLAN_SCALE").unwrap_or_default();
    let parts: Vec<&str> = chosen.split(',').filter(|part| !part.is_empty()).collect();
    let sizes: Vec<usize> = match parts.is_empty() {
        true => SIZES.into(),
        false => parts.iter().filter_map(|part| part.parse().ok()).collect(),
    };
    let busy = measure::load();
    let mut figures: Vec<Figures> = Vec::new();
    for hosts in sizes {
        let bare = apart(&format!("bare {hosts}"));
        let one = Figures { bare, ..apart(&format!("size {hosts}")) };
        println!(
            "{hosts} hosts: start {:.2?} (processor: hosts {:.1?}, etcd {:.1?}); {} endpoints known, {} B each, {} B with all; \
             an endpoint: {} (processor: hosts {:.1?}, etcd {:.1?}); a block: {}",
            one.cold,
            one.cold_usage.0,
            one.cold_usage.1,
            one.held,
            one.per_endpoint(),
            one.memory / one.held,
            one.endpoint,
            one.change.0,
            one.change.1,
            one.block,
        );
        figures.push(one);
    }
    let storm: Option<Storm> = (parts.is_empty() || parts.contains(&"storm")).then(|| apart("storm"));
    if let Some(storm) = &storm {
        println!("{storm}");
    }
    let missed = page::missed(&figures, storm.as_ref());
    if let (true, Some(storm)) = (parts.is_empty(), &storm) {
        page::write(&figures, storm, &missed, &format!("{busy}, {}", measure::load()));
    }
    assert!(missed.is_empty(), "not as it should be: {}", missed.join("; "));
}
