//! The storm of moby#52661: of a hundred thousand endpoints on 23 hosts, thousands are made anew at once, and have the addresses of
//! those that were there before.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portolan_cluster::{Layout, Part};
use portolan_etcd::Client;
use portolan_lab::eventually;
use portolan_model::Id;
use serde::{Deserialize, Serialize};

use crate::host::Hosts;
use crate::world::World;
use crate::{PATIENCE, Place, counts};

const HOSTS: usize = 23;
const ENDPOINTS: usize = 100_000;
const AGAIN: usize = 8_500;
/// After so long nothing may be stale.
pub(crate) const SETTLED: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
pub(crate) struct Storm {
    pub(crate) hosts: usize,
    pub(crate) endpoints: usize,
    pub(crate) again: usize,
    /// From the first word to the last write in etcd.
    pub(crate) writing: Duration,
    /// After the last write, until all hosts had it.
    pub(crate) behind: Duration,
    /// Entries that were wrong on any host when they had had so long.
    pub(crate) stale: usize,
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hosts, endpoints, again, writing, behind, stale } = self;
        write!(
            f,
            "{again} of {endpoints} endpoints made anew on {hosts} hosts: written after {writing:.2?}, known everywhere {behind:.2?} \
             after the last write; {stale} stale {SETTLED:.0?} after it"
        )
    }
}

/// Who has an address.
type Holders = BTreeMap<IpAddr, Id>;

pub(crate) fn run(place: &Place) -> Storm {
    let mut world = World::new(HOSTS);
    let network = world.network("10.128.0.0/13");
    for host in 0..HOSTS {
        let share = ENDPOINTS / HOSTS + usize::from(host < ENDPOINTS % HOSTS);
        world.place(network, host, share);
    }
    let (etcd, config) = place.filled("storm", &world);
    let running = Hosts::start(&place.host, &world, &config, &counts(&world));
    let is_ready = running.wait(HOSTS, PATIENCE).len() == HOSTS;
    assert!(is_ready, "some hosts do not know all that there is: {}", running.troubles());

    // How much etcd says, and when it said something last.
    let last: Arc<Mutex<(usize, Option<Instant>)>> = Arc::default();
    let (began, begun) = std::sync::mpsc::channel();
    let watching = {
        let (last, config) = (last.clone(), config.clone());
        place.host.enter(|| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let client = Client::connect(&config).await.unwrap();
                    let mut watch = client.watch(Layout::default().part(Part::Network(network)), 0).await.unwrap();
                    began.send(()).unwrap();
                    // It ends with etcd.
                    while let Ok(batch) = watch.next().await {
                        let mut last = last.lock().unwrap();
                        if !batch.events.is_empty() {
                            *last = (last.0 + batch.events.len(), Some(Instant::now()));
                        }
                    }
                });
            })
        })
    };
    begun.recv().unwrap();

    let mut told = Vec::new();
    for host in 0..HOSTS {
        let share = AGAIN / HOSTS + usize::from(host < AGAIN % HOSTS);
        let step = world.members[host].endpoints.len() / share;
        let gone: Vec<(Id, Id)> = world.members[host].endpoints.keys().step_by(step).take(share).copied().collect();
        let old: Vec<_> = gone.iter().map(|at| world.members[host].endpoints.remove(at).unwrap()).collect();
        // Each has the address of another one.
        let addresses = old.iter().cycle().skip(1).map(|record| record.addresses[0]).take(share);
        let new: Vec<_> = addresses.collect::<Vec<_>>().into_iter().map(|address| world.endpoint(address)).collect();
        world.members[host].endpoints.extend(new.iter().map(|(id, record)| ((network, *id), record.clone())));
        told.push((old, new));
    }
    let start = Instant::now();
    for (host, (old, new)) in told.into_iter().enumerate() {
        let handle = &running.handles[host];
        old.iter().for_each(|record| handle.take(record.container, BTreeMap::new()));
        new.into_iter().for_each(|(id, record)| handle.take(record.container, [((network, id), record)].into()));
    }
    let holders = |of: usize| -> Holders {
        let others = world.members.iter().enumerate().filter(|(number, _)| *number != of);
        let all = others.flat_map(|(_, member)| &member.endpoints);
        all.map(|((_, id), record)| (record.addresses[0], *id)).collect()
    };
    let wanted: Vec<Holders> = (0..HOSTS).map(holders).collect();
    let has_written = || last.lock().unwrap().0 >= 2 * AGAIN;
    assert!(eventually(PATIENCE, has_written), "etcd was not told of all of it: {:?}", last.lock().unwrap());
    let (_, Some(written)) = *last.lock().unwrap() else { panic!("something was written") };
    std::thread::sleep((written + SETTLED).saturating_duration_since(Instant::now()));
    let changed = running.rows.iter().map(|rows| rows.lock().unwrap().changed.expect("it has rows")).max();
    let behind = changed.expect("there are hosts").saturating_duration_since(written);
    let stale = wanted.iter().enumerate().map(|(host, wanted)| wrong(&running, host, wanted)).sum();
    assert_eq!(last.lock().unwrap().0, 2 * AGAIN, "something is written that nobody asked for");
    let storm = Storm { hosts: HOSTS, endpoints: ENDPOINTS, again: AGAIN, writing: written - start, behind, stale };
    drop((running, etcd));
    watching.join().unwrap();
    storm
}

/// How many entries of a host's rows are not as they should be, and how many it lacks.
fn wrong(running: &Hosts, host: usize, wanted: &Holders) -> usize {
    let held = running.rows[host].lock().unwrap();
    let all = &held.rows.remote.endpoints;
    let is_wrong = |id: &Id, address: &IpAddr| wanted.get(address) != Some(id);
    let wrong = all.iter().filter(|(id, endpoint)| is_wrong(id, &endpoint.addresses[0])).count();
    wrong + (wanted.len() + wrong).saturating_sub(all.len())
}
