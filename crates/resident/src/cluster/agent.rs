//! The conversation with etcd: list, watch, say that we run.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use portolan_cluster::{Change, Event, HostRecord, Layout, View, Write};
use portolan_etcd::Client;
use portolan_model::Id;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::talk::{Ask, HostRow, Reply, Standing};
use super::{Membership, edge};

/// A host that has not said for so many seconds that it runs counts as down.
const LEASE: i64 = 15;
/// How often it says so.
const BEAT: Duration = Duration::from_secs(5);
/// How long to wait before etcd is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// A command asks.
pub(super) struct Asked(pub(super) Ask, pub(super) oneshot::Sender<Reply>);

/// What is shown of it while nothing is connected.
pub(super) type Shown = Arc<Mutex<Standing>>;

/// The last of it.
pub(super) fn shown(shown: &Shown) -> Standing {
    shown.lock().expect("nothing panics while holding it").clone()
}

pub(super) struct Agent {
    membership: Membership,
    layout: Layout,
    view: View,
    asked: mpsc::UnboundedReceiver<Asked>,
    shown: Shown,
    /// Why etcd is not reached, or what else is wrong with it.
    trouble: Option<String>,
    /// It was asked to leave: nothing is written any more.
    left: bool,
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
    pub(super) fn new(membership: Membership, asked: mpsc::UnboundedReceiver<Asked>) -> Result<(Self, Shown)> {
        let layout = Layout::new(&membership.prefix)?;
        let shown = Arc::new(Mutex::new(Standing {
            cluster: membership.cluster,
            host: membership.host,
            name: membership.record.name.clone(),
            endpoints: membership.etcd.endpoints.clone(),
            connected: false,
            revision: 0,
            warnings: vec!["etcd is not reached yet".to_owned()],
            hosts: Vec::new(),
        }));
        let view = View::default();
        Ok((Self { membership, layout, view, asked, shown: shown.clone(), trouble: None, left: false }, shown))
    }

    /// Goes on for ever.
    pub(super) async fn run(mut self) {
        loop {
            let ended = match self.connect().await {
                Ok(session) => self.serve(session).await,
                Err(error) => Err(error),
            };
            let Err(error) = ended;
            let text = format!("{error:#}");
            if self.trouble.as_ref() != Some(&text) {
                tracing::warn!("cluster: {text}");
            }
            self.trouble = Some(text);
            self.show(false);
            self.refuse_waiting();
            if self.left {
                // Until the rows say so too, and the thread ends.
                std::future::pending::<()>().await;
            }
            sleep(PAUSE).await;
        }
    }

    /// Whoever waits for something that etcd is needed for is told that it is not there.
    fn refuse_waiting(&mut self) {
        while let Ok(Asked(_, reply)) = self.asked.try_recv() {
            let why = self.trouble.as_deref().unwrap_or("it was not tried yet");
            let _ = reply.send(Reply::Refused { reason: format!("etcd does not have it: {why}") });
        }
    }

    /// Connects, lists, and sees to it that this host is known as it is.
    async fn connect(&mut self) -> Result<Session> {
        let Membership { host: me, run, last_run, .. } = self.membership.clone();
        let client = Client::connect(&self.membership.etcd).await?;
        self.list(&client).await?;
        if let Some(format) = self.view.newer_format() {
            bail!("the cluster has format {format}, which is newer than this version's: use the version that wrote it");
        }
        let Some(cluster) = self.view.cluster() else { bail!("there is no cluster under `{}`", self.layout.root()) };
        if cluster.id != self.membership.cluster {
            bail!("another cluster is under `{}` than the one that this host joined", self.layout.root());
        }
        if self.view.is_gone(me) {
            bail!("this host was removed from the cluster: `portolan cluster leave` makes it an ordinary host again");
        }
        match self.view.hosts().get(&me) {
            Some(record) if *record == self.membership.record => {}
            Some(record) => {
                let change = Write::change(me, record, &self.membership.record);
                if !self.write(&client, None, &change).await? {
                    bail!("an address of this host is another host's in the cluster");
                }
            }
            None => {
                if !self.write(&client, None, &Write::join(me, &self.membership.record)).await? {
                    bail!(
                        "another host of the cluster is called `{}`, or has an address of this host",
                        self.membership.record.name
                    );
                }
            }
        }
        let lease = client.lease_grant(LEASE).await?;
        let before = self.view.run_of(me).map(str::to_owned);
        // The run before this one is dead, for we have its lock; any other is somewhere else.
        if before.as_ref().is_some_and(|before| *before != run && *before != last_run) {
            bail!(COPY);
        }
        if !self.write(&client, Some(lease), &Write::live(me, &run, before.as_deref())).await? {
            bail!(COPY);
        }
        let watch = client.watch(self.layout.root(), self.view.revision() + 1).await?;
        self.trouble = None;
        self.show(true);
        Ok(Session { client, watch, lease })
    }

    /// Sees everything that there is.
    async fn list(&mut self, client: &Client) -> Result<BTreeSet<Change>> {
        let (revision, all) = client.range_all(self.layout.root()).await?;
        let all = all.into_iter().map(|found| (found.key, found.value, found.mod_revision));
        Ok(self.view.replace(&self.layout, revision, all)?)
    }

    async fn write(&self, client: &Client, lease: Option<i64>, write: &Write) -> Result<bool> {
        Ok(client.txn(edge::transaction(&self.layout, write, lease)).await?.succeeded)
    }

    async fn serve(&mut self, mut session: Session) -> Result<Infallible> {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                batch = session.watch.next() => self.see(batch?)?,
                _ = beat.tick() => session.client.keep_alive(session.lease).await.map(drop)?,
                asked = self.asked.recv() => {
                    let Asked(ask, reply) = asked.context("nobody is there to ask")?;
                    self.answer(&session, &ask, reply).await?;
                }
            }
        }
    }

    /// Takes in what happened.
    fn see(&mut self, batch: portolan_etcd::Batch) -> Result<()> {
        let events: Vec<Event> = batch.events.into_iter().map(edge::event).collect();
        let changes = self.view.apply(&self.layout, batch.revision, &events);
        let me = self.membership.host;
        if changes.contains(&Change::Alive(me)) {
            match self.view.run_of(me) {
                Some(run) if run == self.membership.run => {}
                Some(_) => bail!(COPY),
                // etcd took too long over a beat of ours: it has to be told anew.
                None => bail!("etcd takes this host for dead"),
            }
        }
        if changes.contains(&Change::Host(me)) && (self.view.is_gone(me) || !self.view.hosts().contains_key(&me)) {
            bail!("this host is not one of the cluster any more");
        }
        Ok(())
    }

    async fn answer(&mut self, session: &Session, ask: &Ask, reply: oneshot::Sender<Reply>) -> Result<()> {
        let done = match ask {
            Ask::Status {} => Ok(Reply::Status(Box::new(self.standing(true)))),
            Ask::Leave {} => self.leave(session).await.map(|()| Reply::Done {}),
        };
        match done {
            Ok(answer) => {
                let _ = reply.send(answer);
                if self.left { bail!("this host has left the cluster") } else { Ok(()) }
            }
            Err(error) => {
                let _ = reply.send(Reply::Refused { reason: format!("{error:#}") });
                Err(error)
            }
        }
    }

    async fn leave(&mut self, session: &Session) -> Result<()> {
        for write in Write::leave(self.membership.host, &self.view) {
            self.write(&session.client, None, &write).await?;
        }
        self.left = true;
        Ok(())
    }

    /// Who asks while there is a connection is answered by the thread itself.
    fn show(&self, connected: bool) {
        let mut shown = self.shown.lock().expect("nothing panics while holding it");
        match connected {
            true => shown.connected = true,
            false => *shown = self.standing(false),
        }
    }

    fn standing(&self, connected: bool) -> Standing {
        let state = |id: Id| match (self.view.is_gone(id), self.view.run_of(id)) {
            (true, _) => "gone",
            (false, Some(_)) => "up",
            (false, None) => "down",
        };
        let row = |(id, record): (&Id, &HostRecord)| HostRow {
            id: *id,
            name: record.name.clone(),
            addresses: record.addresses().collect(),
            mtu: record.mtu,
            version: record.version.clone(),
            state: state(*id).to_owned(),
        };
        let mut hosts: Vec<HostRow> = self.view.hosts().iter().map(row).collect();
        hosts.sort_by(|one, other| one.name.cmp(&other.name));
        let strange = self.view.strange();
        let strange = strange.iter().next().map(|(key, why)| match strange.len() {
            1 => format!("etcd has a key that is left alone: `{}` {why}", key.escape_debug()),
            count => {
                format!("etcd has {count} keys that are left alone, such as `{}`, which {why}", key.escape_debug())
            }
        });
        Standing {
            cluster: self.membership.cluster,
            host: self.membership.host,
            name: self.membership.record.name.clone(),
            endpoints: self.membership.etcd.endpoints.clone(),
            connected,
            revision: self.view.revision(),
            warnings: self.trouble.iter().cloned().chain(strange).collect(),
            hosts,
        }
    }
}

/// Two hosts with one identity.
const COPY: &str = "another host runs with this host's identity: one of them is a copy, and has to leave and join anew";
