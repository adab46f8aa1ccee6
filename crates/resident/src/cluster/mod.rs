//! This host's part in a cluster: a thread (`portolan-cluster`) that follows what etcd says of the hosts, and says there that
//! this one runs. It is there when the host has joined.
//!
//! What is to be written when, and what is read, is decided in [`portolan_cluster`].

mod agent;
mod edge;
mod join;
pub mod talk;

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_cluster::HostRecord;
use portolan_engine::Kernel as _;
use portolan_kernel::door::Door;
use portolan_model::Id;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

use crate::daemon::Engine;

use agent::{Agent, Asked, Shown};
use talk::{Ask, Reply};

pub use join::{CannotJoin, Joining, forget, join, membership};

/// A command's line is no longer than this.
const LINE: u64 = 64 << 10;
/// How long to wait where no command can be accepted.
const PAUSE: Duration = Duration::from_millis(100);

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
    /// Which run of this host says in etcd that it runs; another one each time that the thread starts.
    pub run: String,
    /// The one before, which may still be said to run.
    pub last_run: String,
}

/// The running thread; dropping it ends it. What it learnt stays.
#[derive(Debug)]
pub struct Cluster {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    _door: Door,
}

impl Cluster {
    /// Starts it for a host that has joined, and serves commands at [`talk::path`].
    ///
    /// # Errors
    /// When the state cannot be written, or the socket or the thread cannot be made.
    pub fn start(engine: &Engine, run: &Path, membership: Membership) -> Result<Self> {
        let last_run = membership.run;
        let membership =
            Membership { run: Id::from_bytes(engine.kernel().random()).to_string(), last_run, ..membership };
        join::remember(engine, &membership)?;
        let door = Door::private(&talk::path(run)).context("serve commands of the cluster")?;
        let listener = door.listener().try_clone().context("duplicate a descriptor")?;
        listener.set_nonblocking(true)?;
        let (asks, asked) = mpsc::unbounded_channel();
        let (stop, mut stopped) = watch::channel(false);
        let (agent, shown) = Agent::new(membership, asked)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let work = move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = agent.run() => {}
                    error = serve(listener, asks, shown) => tracing::error!("cluster: {error:#}"),
                    _ = stopped.changed() => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("portolan-cluster".to_owned()).spawn(work)?;
        Ok(Self { stop, thread: Some(thread), _door: door })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes commands' lines; goes on until the socket fails.
async fn serve(
    listener: std::os::unix::net::UnixListener,
    asks: mpsc::UnboundedSender<Asked>,
    shown: Shown,
) -> anyhow::Error {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error.into(),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (asks, shown) = (asks.clone(), shown.clone());
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, asks, shown).await {
                        tracing::debug!("cluster: a command did not wait: {error:#}");
                    }
                });
            }
            // The next one may find a descriptor.
            Err(error) => {
                tracing::warn!("cluster: accept a command: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, asks: mpsc::UnboundedSender<Asked>, shown: Shown) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(LINE)).read_line(&mut line).await?;
    let reply = match serde_json::from_str::<Ask>(&line) {
        Err(error) => Reply::Refused { reason: format!("read the request: {error}") },
        Ok(ask) => {
            let standing = agent::shown(&shown);
            // While nothing is connected the thread may be waiting for somebody who does not answer.
            if matches!(ask, Ask::Status {}) && !standing.connected {
                Reply::Status(Box::new(standing))
            } else {
                let (reply, answer) = oneshot::channel();
                asks.send(Asked(ask, reply)).ok().context("the thread has ended")?;
                answer.await.context("the thread has ended")?
            }
        }
    };
    let mut text = serde_json::to_string(&reply).expect("plain values serialise");
    text.push('\n');
    write.write_all(text.as_bytes()).await?;
    Ok(())
}
