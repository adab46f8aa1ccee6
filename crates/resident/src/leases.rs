//! Leases of DHCP servers: what the rows ask for is kept ([`portolan_dhcp`]), and what is granted goes into the rows.
//!
//! The rows say everything: an endpoint of a network with DHCP that has no lease gets one, whoever made it and whichever
//! process is the resident by then. The thread is started with the first of them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_dhcp::{ClientId, Happened, Keeper, Place};
use portolan_model::{DhcpLease, Family, Id, Name, Phase};
use portolan_plan::ContainerView;

use crate::daemon::{self, Engine};
use crate::feed::Event;

/// How long giving back may take: as long as it takes to send a frame.
const PATIENCE: Duration = Duration::from_secs(2);

/// How an endpoint stands in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// It has a lease, and the address is in force.
    InForce,
    /// It has none yet; why not, as far as anything is known.
    Waiting(Option<String>),
}

type Key = (Id, Family);
type Standings = Arc<Mutex<BTreeMap<Key, Standing>>>;

fn lock(standings: &Standings) -> MutexGuard<'_, BTreeMap<Key, Standing>> {
    standings.lock().expect("nothing panics while holding it")
}

/// An endpoint and family that is to have a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    place: Place,
    network: Id,
    network_name: Name,
}

impl Wanted {
    fn key(&self) -> Key {
        (self.place.endpoint, self.place.family)
    }
}

/// Why a container's addresses are not all there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The network.
    pub network: Name,
    /// The interface in the container.
    pub interface: String,
    /// The family.
    pub family: Family,
    /// What went wrong, if anything is known but that nobody answers.
    pub reason: Option<String>,
}

impl Missing {
    /// The sentence that says so after a wait of `seconds`.
    pub fn explain(&self, seconds: u32) -> String {
        let Self { network, interface, family, reason } = self;
        let why = match reason {
            Some(reason) => reason.clone(),
            None => {
                let server = if *family == Family::V6 { "DHCPv6 server" } else { "DHCP server" };
                format!("no {server} answered within {seconds} s")
            }
        };
        format!("get a lease for interface `{interface}` on network `{network}`: {why}")
    }
}

/// All leases that the rows ask for.
pub struct Leases {
    root: PathBuf,
    tell: mpsc::Sender<Event>,
    wake: Arc<OwnedFd>,
    keeper: Option<Keeper>,
    standings: Standings,
    containers: BTreeMap<Id, Vec<Wanted>>,
}

impl Leases {
    /// Nothing yet. `tell` gets what happens, and then `wake` is written to.
    pub fn new(root: PathBuf, tell: mpsc::Sender<Event>, wake: Arc<OwnedFd>) -> Self {
        Self { root, tell, wake, keeper: None, standings: Standings::default(), containers: BTreeMap::new() }
    }

    /// Takes note of a container as it is now; none if it is gone.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn take(&mut self, id: Id, view: Option<&ContainerView>) -> Result<()> {
        let wanted = view.map(wanted).unwrap_or_default();
        let before = self.containers.remove(&id).unwrap_or_default();
        for gone in before.iter().filter(|gone| !has(&wanted, gone.key())) {
            lock(&self.standings).remove(&gone.key());
            if let Some(keeper) = &self.keeper {
                keeper.leave(gone.place.endpoint, gone.place.family);
            }
        }
        for (new, lease) in &wanted {
            if before.iter().any(|known| known == new) {
                continue;
            }
            // What was held before may have got lost: it is in force when a server has said so again.
            lock(&self.standings).entry(new.key()).or_insert(Standing::Waiting(None));
            self.keeper()?.keep(new.place.clone(), lease.clone());
        }
        if !wanted.is_empty() {
            self.containers.insert(id, wanted.into_iter().map(|(wanted, _)| wanted).collect());
        }
        Ok(())
    }

    /// Ends the thread; leases stay with their containers, and what was given back is on its way.
    pub fn stop(&mut self) {
        self.keeper = None;
        self.containers.clear();
        lock(&self.standings).clear();
    }

    /// The containers that have or want leases.
    pub fn containers(&self) -> impl Iterator<Item = Id> + '_ {
        self.containers.keys().copied()
    }

    fn keeper(&mut self) -> Result<&Keeper> {
        if self.keeper.is_none() {
            let (root, standings) = (self.root.clone(), self.standings.clone());
            let (tell, wake) = (self.tell.clone(), self.wake.clone());
            let mut engine: Option<Engine> = None;
            let work = move |place: &Place, happened| {
                if engine.is_none() {
                    engine = daemon::engine(&root).inspect_err(|error| tracing::error!("dhcp: {error:#}")).ok();
                }
                let Some(engine) = &engine else { return };
                if let Some(event) = enforce(engine, &standings, place, happened) {
                    let _ = tell.send(event);
                }
                let _ = rustix::io::write(&wake, &1u64.to_ne_bytes());
            };
            self.keeper = Some(Keeper::start(Box::new(work)).context("start the thread that keeps leases")?);
        }
        self.keeper.as_ref().context("the thread that keeps leases was just started")
    }

    /// What a container still lacks; none if it has all that it is to have, or is not known.
    pub fn missing(&self, container: Id) -> Vec<Missing> {
        let standings = lock(&self.standings);
        let wanted = self.containers.get(&container).into_iter().flatten();
        wanted
            .filter_map(|wanted| match standings.get(&wanted.key()) {
                Some(Standing::InForce) => None,
                other => Some(Missing {
                    network: wanted.network_name.clone(),
                    interface: wanted.place.ifname.to_string(),
                    family: wanted.place.family,
                    reason: match other {
                        Some(Standing::Waiting(reason)) => reason.clone(),
                        _ => None,
                    },
                }),
            })
            .collect()
    }

    /// Gives back what a container holds, on `network` or on all, while its interfaces are there.
    pub fn release(&mut self, container: Id, network: Option<Id>) {
        let wanted = self.containers.get(&container).into_iter().flatten();
        let keys: Vec<Key> =
            wanted.filter(|wanted| network.is_none_or(|id| wanted.network == id)).map(Wanted::key).collect();
        if let Some(keeper) = self.keeper.as_ref().filter(|_| !keys.is_empty()) {
            keeper.release(keys, PATIENCE);
        }
    }
}

fn has(wanted: &[(Wanted, Option<DhcpLease>)], key: Key) -> bool {
    wanted.iter().any(|(wanted, _)| wanted.key() == key)
}

/// The leases that a container is to have, with those that it has.
fn wanted(view: &ContainerView) -> Vec<(Wanted, Option<DhcpLease>)> {
    let container = &view.container;
    let Some(sandbox) = &container.sandbox else { return Vec::new() };
    let mut all = Vec::new();
    for (endpoint, network) in view.endpoints.iter().filter(|(endpoint, _)| endpoint.phase == Phase::Settled) {
        for family in Family::ALL.into_iter().filter(|family| network.leases(*family)) {
            let hostname = container.hostname.as_ref().map(ToString::to_string);
            // Who chose a MAC did so for servers that know the container by it.
            let is_known_by_id = !endpoint.mac_configured;
            let client_id = is_known_by_id.then(|| ClientId::new(&container.id.to_string(), &endpoint.ifname));
            let place = Place {
                endpoint: endpoint.id,
                family,
                sandbox: sandbox.clone(),
                ifname: endpoint.ifname.clone(),
                mac: endpoint.mac,
                client_id: client_id.flatten(),
                hostname: hostname.unwrap_or_else(|| container.name.to_string()),
                requested: None,
                parent: Some(network.bridge.clone()),
            };
            let wanted = Wanted { place, network: network.id, network_name: network.name.clone() };
            all.push((wanted, endpoint.leases.of(family).clone()));
        }
    }
    all
}

/// Makes rows and kernel say what happened to a lease; what is to be told of it.
fn enforce(engine: &Engine, standings: &Standings, place: &Place, happened: Happened) -> Option<Event> {
    let key = (place.endpoint, place.family);
    let stand = |standing| {
        // One that is gone by now stays so.
        if let Some(known) = lock(standings).get_mut(&key) {
            *known = standing;
        }
    };
    let endpoint = place.endpoint.to_string();
    match happened {
        Happened::Granted(lease, _) => {
            let address = lease.address.addr();
            match engine.set_lease(place.endpoint, place.family, Some(lease)) {
                Ok(()) => {
                    stand(Standing::InForce);
                    Some(Event::Leased { endpoint, address })
                }
                Err(error) => {
                    tracing::warn!("dhcp: {:#}", anyhow::Error::new(error).context("a lease is not in force"));
                    stand(Standing::Waiting(Some(format!("{address} was granted, but is not in force"))));
                    None
                }
            }
        }
        Happened::Ended => {
            stand(Standing::Waiting(None));
            match engine.set_lease(place.endpoint, place.family, None) {
                Ok(()) => Some(Event::LeaseEnded { endpoint, family: place.family.to_string() }),
                Err(error) => {
                    tracing::warn!("dhcp: {:#}", anyhow::Error::new(error).context("a lease has ended"));
                    None
                }
            }
        }
        Happened::Failed(reason) => {
            stand(Standing::Waiting(Some(reason)));
            None
        }
        Happened::SandboxGone => {
            let error = match engine.reap_endpoint(place.endpoint) {
                Ok(_) => return None,
                Err(error) => anyhow::Error::new(error),
            };
            tracing::warn!("dhcp: {:#}", error.context("a namespace is gone"));
            None
        }
    }
}
