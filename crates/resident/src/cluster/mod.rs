//! This host's part in a cluster: a thread (`portolan-cluster`) that follows what etcd says of the hosts, and says there that
//! this one runs. It is there when the host has joined.
//!
//! What is to be written when, and what is read, is decided in [`portolan_cluster`].

mod agent;
mod edge;
mod join;
mod standing;

use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use portolan_cluster::HostRecord;
use portolan_engine::Kernel as _;
use portolan_model::Id;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::daemon::Engine;

use agent::{Agent, Shared};

pub use join::{CannotJoin, Joining, forget, join, leave, leaving, membership};
pub use standing::{HostRow, Standing};

/// What a host has to know of its cluster. It holds secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Which cluster it joined.
    pub cluster: Id,
    /// Its own id there, drawn at random.
    pub host: Id,
    /// What it says of itself.
    pub record: HostRecord,
    /// What all keys of it begin with.
    pub prefix: String,
    /// Where etcd is, and how to get in.
    pub etcd: portolan_etcd::Config,
    /// It was told to leave: nothing is written into etcd any more but that.
    pub leaving: bool,
    /// Which run of this host says in etcd that it runs; another one each time that the thread starts.
    pub run: String,
    /// The one before, which may still be said to run.
    pub last_run: String,
}

/// What a host says of its version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The running thread; dropping it ends it.
#[derive(Debug)]
pub struct Cluster {
    membership: Membership,
    shared: Shared,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Cluster {
    /// Starts it for a host that has joined.
    ///
    /// # Errors
    /// When the state cannot be written, or the thread cannot be made.
    pub fn start(engine: &Engine, membership: Membership) -> Result<Self> {
        let last_run = membership.run;
        let run = Id::from_bytes(engine.kernel().random()).to_string();
        let record = HostRecord { version: VERSION.to_owned(), ..membership.record };
        let membership = Membership { run, last_run, record, ..membership };
        join::remember(engine, &membership)?;
        let shared = Shared::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let agent = Agent::new(membership.clone(), shared.clone())?;
        let runtime = runtime()?;
        let work = move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = agent.run() => {}
                    _ = stopped => {}
                }
            });
            // Who is asked for the address of a name may take his time.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("portolan-cluster".to_owned()).spawn(work)?;
        Ok(Self { membership, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// How this host stands.
    pub fn standing(&self) -> Standing {
        let known = agent::lock(&self.shared);
        Standing::new(&self.membership, &known.view, known.trouble.as_deref())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")
}
