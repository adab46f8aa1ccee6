//! This host's part in a cluster. One thread (`portolan-cluster`) speaks with etcd: it follows what is there, says that this
//! host runs and what is on it, and asks for what all hosts have to agree on. Another (`portolan-overlay`) makes rows and
//! kernel what was seen, for which it may have to wait for the lock. Both are there when the host has joined.
//!
//! What is to be written when, and what is read, is decided in [`portolan_cluster`].

mod agent;
mod asked;
mod edge;
mod jobs;
mod join;
mod keys;
mod lane;
mod meter;
mod moves;
mod note;
mod paths;
pub mod plan;
mod prober;
mod relay;
mod rows;
mod seal;
mod site;
mod standing;
mod underlay;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use portolan_cluster::{Checked, EndpointRecord, HostRecord, NewNetwork, Refusal, WayRecord};
use portolan_engine::{Kernel as _, Wanting};
use portolan_model::{Family, Id, IfName, Name, Withheld};
use portolan_plan::ContainerView;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc as channel;
use tokio::sync::oneshot;

use crate::daemon::{self, Engine};

use agent::{Agent, Known, Shared};
use prober::Prober;
use rows::Rows;
use seal::Seal;

pub use asked::AtDaemon;
pub use edge::{bundle, transaction};
pub use join::{CannotJoin, Joining, forget, join, leave, leaving, membership, remove_host};
pub use lane::WORKER;
pub use meter::LinkRow;
pub use paths::PathRow;
pub use site::Site;
pub use standing::{HostRow, KeyStanding, PassedRow, Standing};
pub use underlay::{OwnAddress, follow, own_addresses, underlay};
pub use ways::WayRow;

/// What a host has to know of its cluster. It holds secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Which cluster it joined.
    pub cluster: Id,
    /// Its own id there, drawn at random.
    pub host: Id,
    /// What it says of itself.
    pub record: HostRecord,
    /// Whether its addresses were named when it joined, and stay whatever this host has; otherwise they are followed.
    #[serde(default = "yes")]
    pub is_given: bool,
    /// The secret of its end of the encrypted link between hosts; empty if it can have none.
    #[serde(default)]
    pub private_key: String,
    /// The secret of the key that takes its place, while keys change.
    #[serde(default)]
    pub next_private_key: String,
    /// What hosts have in common that can be on the encrypted link with each other, if anything.
    #[serde(default)]
    pub secret: Option<String>,
    /// When its newest key was drawn, in seconds since 1970 by this host's clock.
    #[serde(default)]
    pub drawn: u64,
    /// After how many seconds this host has keys change by itself; never without.
    #[serde(default)]
    pub rotate_after: Option<u64>,
    /// What all keys of it begin with.
    pub prefix: String,
    /// Where etcd is, and how to get in.
    pub etcd: portolan_etcd::Config,
    /// It was told to leave: nothing is written into etcd any more but that.
    pub leaving: bool,
    /// Which run of this host says in etcd that it runs; another one each time that the thread starts.
    pub run: String,
    /// Those before, the last one last: any of them may still be said to run, for etcd need not have been reached since.
    #[serde(default)]
    pub last_runs: Vec<String>,
}

const fn yes() -> bool {
    true
}

/// So many runs are remembered: as often as a daemon may start while etcd cannot be reached and the last lease holds.
const RUNS: usize = 32;

/// What a host says of its version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What all hosts have to agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "share", deny_unknown_fields)]
pub enum Sharing {
    /// A network is to be there.
    Create {
        /// What it is to be.
        network: NewNetwork,
    },
    /// A network of this host is to be one of all.
    Promote {
        /// Its id.
        id: Id,
        /// What it is.
        network: NewNetwork,
        /// Which of its addresses are in use here.
        blocks: BTreeSet<IpNet>,
    },
    /// A network is to go, if nobody is on it.
    Remove {
        /// Which one.
        network: Id,
    },
    /// All hosts are to look at themselves.
    Verify {},
    /// All hosts are to have new keys for the encrypted link.
    Rotate {},
    /// A host is to take no more containers on networks that all have, or to do so again.
    Drain {
        /// The host.
        host: Id,
        /// Whether it is to take none.
        is_drained: bool,
    },
    /// This host needs more of a network's addresses.
    Claim {
        /// The network.
        network: Id,
        /// Of this family, or those around one.
        wanted: Wanted,
    },
}

/// Which addresses a host needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// Any of this family; where no block is free, some that another host has.
    Family(Family),
    /// Any of this family, as long as a block is free: nobody waits for them yet.
    Ahead(Family),
    /// Those of the block that this one is of.
    Around(std::net::IpAddr),
}

impl From<Wanting> for Wanted {
    fn from(wanting: Wanting) -> Self {
        match wanting {
            Wanting::Block(family) => Self::Family(family),
            Wanting::BlockOf(address) => Self::Around(address),
        }
    }
}

/// What came of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "came")]
pub enum Came {
    /// It is so: of this network.
    Network {
        /// Which one.
        network: Id,
    },
    /// A host takes no more containers, or does so again.
    Drained {
        /// Which one.
        host: Id,
    },
    /// Keys change.
    Rotating {
        /// To those of this round.
        round: u64,
    },
    /// It was looked at which hosts run, if etcd was reached.
    Looked {},
    /// What each host found.
    Verified {
        /// The hosts, by name.
        hosts: Vec<VerifiedRow>,
    },
}

/// What a host found when it looked at itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedRow {
    /// The host.
    pub id: Id,
    /// What it is called.
    pub name: Name,
    /// Whether it said anything.
    pub answered: bool,
    /// How its rows and kernel differ from what all share, a sentence each; the first of many.
    pub differences: Vec<String>,
    /// How many differences there are.
    pub count: usize,
}

/// Hears what came of what was asked for under a number.
pub type Tell = Arc<dyn Fn(u64, Result<Came, Refusal>) + Send + Sync>;

/// Endpoints of a container on overlay networks, by network and id.
pub type Endpoints = BTreeMap<(Id, Id), EndpointRecord>;

/// What the thread that speaks with etcd is told.
enum Told {
    /// What a container of this host has on overlay networks.
    Container(Id, Endpoints),
    /// There are no others than these.
    Everything(BTreeSet<Id>),
    /// Somebody asks for something; who wants to hear what comes of it.
    Share(Sharing, Reply),
    /// Somebody wants to know which hosts run, and to hear when that is known.
    Look(Reply),
    /// It is to be found out whether these hosts run: nothing comes back from them.
    Runs(BTreeSet<Id>),
    /// What came of a check here.
    Checked(Id, Checked),
    /// A part of a block is withheld, and something is to come of it.
    Move(Move),
    /// By whom two hosts are to send to each other on the encrypted link.
    Way(ToWay),
    /// What this host says of itself is something else.
    Record,
}

/// What is to become of a withheld part of a network's block.
struct Move {
    network: Id,
    part: Withheld,
    to: To,
}

/// By whom two hosts, the lower id first, are to send to each other; nobody for by themselves.
struct ToWay {
    pair: (Id, Id),
    /// By which revision that was written before.
    written: i64,
    way: Option<WayRecord>,
}

/// Whose it is to be.
enum To {
    /// A host's that wants it.
    Host(Id),
    /// Nobody's.
    Nobody,
    /// This host's, as before.
    Me,
}

/// Hears what came of it.
type Reply = Box<dyn FnOnce(Result<Came, Refusal>) + Send>;

/// A host's part in its cluster, which has seen etcd up to `revision`: by what it is told things, the conversation with etcd, and
/// what makes rows and kernel what was seen. What it has of the encrypted link is called `link`, with its files at `run`.
///
/// # Errors
/// When the key prefix is none.
pub fn part(membership: Membership, revision: i64, link: IfName, run: &Path) -> Result<(Handle, Conversation, Worker)> {
    let shared = Shared::new(Known::new(membership.record.clone(), revision).into());
    let (told, hears) = channel::unbounded_channel();
    let (rows, jobs) = channel::unbounded_channel();
    let worker = Rows::new(membership.clone(), shared.clone(), told.clone(), Seal::new(link, run), run);
    let agent = Agent::new(membership.clone(), shared.clone(), hears, rows.clone())?;
    Ok((Handle { membership, shared, told, rows }, Conversation(agent), Worker { rows: worker, jobs }))
}

/// The conversation with etcd.
pub struct Conversation(Agent);

impl Conversation {
    /// Goes on for ever.
    pub async fn run(self) {
        self.0.run().await;
    }
}

/// What makes rows and kernel what was seen.
pub struct Worker {
    rows: Rows,
    jobs: channel::UnboundedReceiver<rows::Job>,
}

impl Worker {
    /// Goes on until it is told to end ([`Handle::stop`]). It waits as long as `site` takes for anything.
    pub async fn run(self, site: impl Site) {
        self.rows.run(site, self.jobs).await;
    }
}

/// By what a host's part in its cluster is told things, and asked what it knows. Who cannot hear is about to end.
#[derive(Clone)]
pub struct Handle {
    membership: Membership,
    shared: Shared,
    told: channel::UnboundedSender<Told>,
    rows: channel::UnboundedSender<rows::Job>,
}

impl Handle {
    /// How this host stands.
    pub fn standing(&self) -> Standing {
        let known = agent::lock(&self.shared);
        Standing::new(&self.membership, &known)
    }

    /// Has it be found out which hosts run, and `reply` be told then; false where nothing can be found out, for etcd is not reached.
    pub fn look(&self, reply: impl FnOnce() + Send + 'static) -> bool {
        let is_connected = agent::lock(&self.shared).trouble.is_none();
        if is_connected {
            let _ = self.told.send(Told::Look(Box::new(move |_| reply())));
        }
        is_connected
    }

    /// Takes note of what a container of this host has on networks of the cluster now; nothing if it is gone.
    pub fn take(&self, container: Id, endpoints: Endpoints) {
        let _ = self.told.send(Told::Container(container, endpoints));
    }

    /// Takes note that there are no containers but these.
    pub fn took_everything(&self, containers: BTreeSet<Id>) {
        let _ = self.told.send(Told::Everything(containers));
    }

    /// Does what all hosts have to agree on, and tells `reply` what came of it.
    pub fn share(&self, what: Sharing, reply: impl FnOnce(Result<Came, Refusal>) + Send + 'static) {
        let reply: Reply = Box::new(reply);
        let _ = match what {
            Sharing::Rotate {} => self.rows.send(rows::Job::Rotate(reply)).is_ok(),
            other => self.told.send(Told::Share(other, reply)).is_ok(),
        };
    }

    /// Has the worker end.
    pub fn stop(&self) {
        let _ = self.rows.send(rows::Job::Stop);
    }
}

/// The running threads; dropping it ends them.
pub struct Cluster {
    handle: Handle,
    tell: Tell,
    stop: Option<oneshot::Sender<()>>,
    prober: Option<Prober>,
    threads: Vec<JoinHandle<()>>,
}

impl Cluster {
    /// Starts them for a host that has joined, whose state is at `root` and whose run-time files are at `run`.
    ///
    /// # Errors
    /// When the state cannot be read or written, or a thread cannot be made.
    pub fn start(root: &Path, run: &Path, engine: &Engine, membership: Membership, tell: Tell) -> Result<Self> {
        let mut last_runs = membership.last_runs;
        last_runs.extend(Some(membership.run).filter(|run| !run.is_empty()));
        last_runs.drain(..last_runs.len().saturating_sub(RUNS));
        let this_run = Id::from_bytes(engine.kernel().random()).to_string();
        // An earlier version has said nothing of that.
        let answers = join::answers(engine, membership.record.seal.as_ref());
        let translates = join::translates(engine, membership.record.seal.as_ref());
        let record = HostRecord { version: VERSION.to_owned(), answers, translates, ..membership.record };
        let membership = Membership { run: this_run, last_runs, record, ..membership };
        join::remember(engine, &membership)?;
        let (handle, conversation, worker) = part(membership, engine.remote()?.revision, engine.seal_name(), run)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (talking, working) = (runtime()?, runtime()?);
        let talk = move || {
            talking.block_on(async move {
                tokio::select! {
                    () = conversation.run() => {}
                    _ = stopped => {}
                }
            });
            // Who is asked for the address of a name may take his time.
            talking.shutdown_background();
        };
        let root = root.to_owned();
        let work = move || match daemon::engine(&root) {
            Ok(engine) => working.block_on(worker.run(engine)),
            Err(error) => tracing::error!("cluster: {error:#}"),
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = vec![thread("portolan-cluster").spawn(talk)?, thread("portolan-overlay").spawn(work)?];
        let prober = Prober::start(handle.membership.host, handle.shared.clone(), handle.told.clone())?;
        Ok(Self { handle, tell, stop: Some(stop), prober: Some(prober), threads })
    }

    /// How this host stands.
    pub fn standing(&self) -> Standing {
        self.handle.standing()
    }

    /// Has it be found out which hosts run: [`Came::Looked`] is told under `token`. False where nothing can be found out.
    pub fn look(&self, token: u64) -> bool {
        let tell = self.tell.clone();
        self.handle.look(move || tell(token, Ok(Came::Looked {})))
    }

    /// Takes note of what a container of this host is now, or that it is gone.
    pub fn take(&self, container: Id, view: Option<&ContainerView>) {
        self.handle.take(container, view.map(plan::endpoints_of).unwrap_or_default());
    }

    /// Takes note that there are no containers but these.
    pub fn took_everything(&self, containers: &BTreeSet<Id>) {
        self.handle.took_everything(containers.clone());
    }

    /// Does what all hosts have to agree on; what came of it is told under `token`.
    pub fn share(&self, token: u64, what: Sharing) {
        let tell = self.tell.clone();
        self.handle.share(what, move |outcome| tell(token, outcome));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (self.stop, self.prober) = (None, None);
        self.handle.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")
}
