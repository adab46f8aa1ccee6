//! The conversation with etcd: list, watch, say that we run.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use portolan_cluster::{Change, Event, Layout, View, Write};
use portolan_etcd::Client;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Membership, edge};

/// A host that has not said for so many seconds that it runs counts as down.
const LEASE: i64 = 15;
/// How often it says so.
const BEAT: Duration = Duration::from_secs(5);
/// How long to wait before etcd is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What the thread knows, for whoever asks.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) view: View,
    /// Why etcd is not followed; none while it is.
    pub(super) trouble: Option<String>,
}

/// It is locked for as long as it takes to look or to change it.
pub(super) type Shared = Arc<Mutex<Known>>;

pub(super) fn lock(shared: &Shared) -> MutexGuard<'_, Known> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Agent {
    membership: Membership,
    layout: Layout,
    shared: Shared,
}

/// What lasts as long as one connection.
struct Session {
    client: Client,
    watch: portolan_etcd::Watch,
    lease: i64,
}

impl Agent {
    /// # Errors
    /// When the key prefix is none.
    pub(super) fn new(membership: Membership, shared: Shared) -> Result<Self> {
        let layout = Layout::new(&membership.prefix)?;
        lock(&shared).trouble = Some("etcd is not reached yet".to_owned());
        Ok(Self { membership, layout, shared })
    }

    /// Goes on for ever.
    pub(super) async fn run(self) {
        loop {
            let ended = match self.connect().await {
                Ok(session) => self.serve(session).await,
                Err(error) => Err(error),
            };
            let Err(error) = ended;
            let text = format!("{error:#}");
            let before = lock(&self.shared).trouble.replace(text.clone());
            if before.as_ref() != Some(&text) {
                tracing::warn!("cluster: {text}");
            }
            sleep(PAUSE).await;
        }
    }

    /// Connects, lists, and sees to it that this host is known as it is.
    async fn connect(&self) -> Result<Session> {
        let Membership { host: me, run, last_run, record, .. } = &self.membership;
        let client = Client::connect(&self.membership.etcd).await?;
        let (revision, all) = edge::list(&client, &self.layout).await?;
        let (known, before) = {
            let mut known = lock(&self.shared);
            known.view.replace(&self.layout, revision, all)?;
            self.check(&known.view)?;
            (known.view.hosts().get(me).cloned(), known.view.run_of(*me).map(str::to_owned))
        };
        match known {
            Some(known) if known == *record => {}
            Some(known) => {
                if !self.write(&client, None, &Write::change(*me, &known, record)).await? {
                    bail!("an address of this host is another host's in the cluster");
                }
            }
            None => {
                if !self.write(&client, None, &Write::join(*me, record)).await? {
                    bail!("another host of the cluster is called `{}`, or has an address of this host", record.name);
                }
            }
        }
        // The run before this one is dead, for we have its lock; any other is somewhere else.
        if before.as_ref().is_some_and(|before| before != run && before != last_run) {
            bail!(COPY);
        }
        let lease = client.lease_grant(LEASE).await?;
        if !self.write(&client, Some(lease), &Write::live(*me, run, before.as_deref())).await? {
            bail!(COPY);
        }
        let watch = client.watch(self.layout.root(), revision + 1).await?;
        lock(&self.shared).trouble = None;
        Ok(Session { client, watch, lease })
    }

    /// Whether this is what this host may write into.
    fn check(&self, view: &View) -> Result<()> {
        if let Some(format) = view.newer_format() {
            bail!("the cluster has format {format}, which is newer than this version's: use the version that wrote it");
        }
        let Some(cluster) = view.cluster() else { bail!("there is no cluster under `{}`", self.layout.root()) };
        if cluster.id != self.membership.cluster {
            bail!("another cluster is under `{}` than the one that this host joined", self.layout.root());
        }
        if view.is_gone(self.membership.host) {
            bail!("this host was removed from the cluster: `portolan cluster leave` makes it an ordinary host again");
        }
        Ok(())
    }

    async fn write(&self, client: &Client, lease: Option<i64>, write: &Write) -> Result<bool> {
        Ok(client.txn(edge::transaction(&self.layout, write, lease)).await?.succeeded)
    }

    async fn serve(&self, mut session: Session) -> Result<Infallible> {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                batch = session.watch.next() => self.see(batch?)?,
                _ = beat.tick() => session.client.keep_alive(session.lease).await.map(drop)?,
            }
        }
    }

    /// Takes in what happened.
    fn see(&self, batch: portolan_etcd::Batch) -> Result<()> {
        let events: Vec<Event> = batch.events.into_iter().map(edge::event).collect();
        let view = &mut lock(&self.shared).view;
        let changes = view.apply(&self.layout, batch.revision, &events);
        let me = self.membership.host;
        if changes.contains(&Change::Alive(me)) {
            match view.run_of(me) {
                Some(run) if run == self.membership.run => {}
                Some(_) => bail!(COPY),
                // etcd took too long over a beat of ours: it has to be told anew.
                None => bail!("etcd takes this host for dead"),
            }
        }
        if changes.contains(&Change::Host(me)) && (view.is_gone(me) || !view.hosts().contains_key(&me)) {
            bail!("this host is not one of the cluster any more");
        }
        Ok(())
    }
}

/// Two hosts with one identity.
const COPY: &str = "another host runs with this host's identity: one of them is a copy, and has to leave and join anew";
