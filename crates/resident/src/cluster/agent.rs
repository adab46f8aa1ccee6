//! The conversation with etcd: list, watch, say that we run and what is on this host, ask for what is shared.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use portolan_cluster::{
    Change, Checked, Event, Figures as PathFigures, HostRecord, Key, Layout, Part, PathTo, Refusal, View, WentBack,
    Write, abandoned, concerns, free, turn,
};
use portolan_etcd::{Bundled, Client};
use portolan_kernel::random;
use portolan_model::{Family, Id};
use tokio::sync::mpsc as channel;
use tokio::time::{MissedTickBehavior, interval_at, sleep, sleep_until};

use super::jobs::{Job, Next};
use super::meter::Figures;
use super::ways::WayRow;
use super::{Came, Endpoints, Membership, Move, Reply, Sharing, To, ToWay, Told, edge, rows};

/// A host that has not said for so many seconds that it runs counts as down.
const LEASE: i64 = 15;
/// How often it says so.
const BEAT: Duration = Duration::from_secs(5);
/// How long to wait before etcd is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// About how often somebody sees to it that a part is there as a bundle.
const BUNDLING: Duration = Duration::from_secs(60);
/// After how long this host looks again whether it can give somebody addresses who still wants some.
const AGAIN: Duration = Duration::from_secs(1);

/// What the threads know, for whoever asks.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) view: View,
    /// What this host says of itself.
    pub(super) record: HostRecord,
    /// Why etcd is not followed; none while it is.
    pub(super) trouble: Option<String>,
    /// What of it could not be made so on this host, by network.
    pub(super) problems: BTreeMap<Option<Id>, String>,
    /// What is wrong with the encrypted link between hosts.
    pub(super) link_trouble: Option<String>,
    /// Which addresses this host says it has, and has not.
    pub(super) missing: Vec<IpAddr>,
    /// What the encrypted link knows of other hosts.
    pub(super) link: BTreeMap<Id, Figures>,
    /// By which ways this host sends to others.
    pub(super) ways: BTreeMap<Id, WayRow>,
    /// Who is reached by no way, a sentence each.
    pub(super) unreached: Vec<String>,
    /// Bytes that this host has passed on between two others.
    pub(super) passed: BTreeMap<(Id, Id), u64>,
    /// Who else has the port of the tunnels on this host, a sentence.
    pub(super) port_taken: Option<String>,
    /// The paths to other hosts.
    pub(super) paths: BTreeMap<PathTo, PathFigures>,
    /// Whom a change of keys waits for.
    pub(super) waits_for: BTreeSet<Id>,
    /// When it was last looked up which hosts run.
    pub(super) looked: Option<Instant>,
}

impl Known {
    /// Nothing yet but what this host says of itself, and that etcd was at `revision` when last something was seen.
    pub(super) fn new(record: HostRecord, revision: i64) -> Self {
        Self {
            view: View::since(revision),
            record,
            trouble: None,
            problems: BTreeMap::new(),
            link_trouble: None,
            missing: Vec::new(),
            link: BTreeMap::new(),
            ways: BTreeMap::new(),
            unreached: Vec::new(),
            passed: BTreeMap::new(),
            port_taken: None,
            paths: BTreeMap::new(),
            waits_for: BTreeSet::new(),
            looked: None,
        }
    }
}

/// It is locked for as long as it takes to look or to change it.
pub(super) type Shared = Arc<Mutex<Known>>;

pub(super) fn lock(shared: &Shared) -> MutexGuard<'_, Known> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Some part of `whole`, by chance.
pub(super) fn part_of(whole: Duration) -> Duration {
    let number = u16::from_le_bytes(random()[..2].try_into().expect("two of 32 bytes"));
    whole * u32::from(number) / (u32::from(u16::MAX) + 1)
}

pub(super) struct Agent {
    membership: Membership,
    layout: Layout,
    shared: Shared,
    hears: channel::UnboundedReceiver<Told>,
    rows: channel::UnboundedSender<rows::Job>,
    /// The endpoints of this host, by container.
    containers: BTreeMap<Id, Endpoints>,
    /// Whether those are all.
    is_complete: bool,
    /// They may be other than etcd knows.
    is_to_publish: bool,
    /// The networks that this host is to follow may be other ones.
    is_to_follow: bool,
    jobs: Vec<Job>,
    /// Who wants to know which hosts run.
    looks: Vec<Reply>,
    /// Hosts of which it is to be found out whether they run.
    silent: BTreeSet<Id>,
    /// etcd may say of this host that it wants addresses.
    has_wanted: bool,
    /// What checks found here, which is to be told.
    found: Vec<(Id, Checked)>,
    /// What is to become of parts of blocks that are withheld.
    moves: Vec<Move>,
    /// By whom two hosts are to send to each other.
    ways: Vec<ToWay>,
    /// When it is this host's turn to give addresses to who wants some.
    turns: BTreeMap<(Id, Id, Family), Instant>,
}

/// What lasts as long as one connection.
struct Session {
    client: Client,
    watch: portolan_etcd::Watch,
    /// What is followed, by the watch's number for it.
    parts: BTreeMap<u64, Part>,
    lease: i64,
    /// The endpoints of this host that etcd has.
    there: Endpoints,
    /// What this host last said of itself.
    said: HostRecord,
}

impl Session {
    fn follow(&mut self, layout: &Layout, part: Part, revision: i64) {
        let number = self.watch.follow(layout.part(part), revision);
        self.parts.insert(number, part);
    }

    fn leave(&mut self, part: Part) {
        let numbers: Vec<u64> = self.parts.iter().filter(|(_, of)| **of == part).map(|(number, _)| *number).collect();
        for number in numbers {
            self.watch.leave(number);
            self.parts.remove(&number);
        }
    }
}

impl Agent {
    /// # Errors
    /// When the key prefix is none.
    pub(super) fn new(
        membership: Membership,
        shared: Shared,
        hears: channel::UnboundedReceiver<Told>,
        rows: channel::UnboundedSender<rows::Job>,
    ) -> Result<Self> {
        let layout = Layout::new(&membership.prefix)?;
        lock(&shared).trouble = Some("etcd is not reached yet".to_owned());
        let containers = BTreeMap::new();
        Ok(Self {
            membership,
            layout,
            shared,
            hears,
            rows,
            containers,
            is_complete: false,
            is_to_publish: false,
            is_to_follow: false,
            jobs: Vec::new(),
            looks: Vec::new(),
            silent: BTreeSet::new(),
            has_wanted: true,
            found: Vec::new(),
            moves: Vec::new(),
            ways: Vec::new(),
            turns: BTreeMap::new(),
        })
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
            let before = lock(&self.shared).trouble.replace(text.clone());
            if before.as_ref() != Some(&text) {
                tracing::warn!("cluster: {text}");
            }
            // Nobody is to wait for what may never come.
            self.refuse_all(&text);
            self.pause(&text).await;
        }
    }

    fn refuse_all(&mut self, why: &str) {
        // Rows say again what is withheld, as long as it is.
        self.moves.clear();
        self.ways.clear();
        // They are told what was last known.
        for reply in self.looks.drain(..) {
            reply(Ok(Came::Looked {}));
        }
        for mut job in std::mem::take(&mut self.jobs) {
            job.end(Err(Refusal::new(
                format!("the cluster cannot be asked: {why}"),
                "`portolan cluster status` shows how this host stands; what it has goes on as it is",
            )));
        }
    }

    /// Waits before etcd is tried again, and hears what is told meanwhile.
    async fn pause(&mut self, why: &str) {
        let mut over = std::pin::pin!(sleep(PAUSE));
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(told) = self.hears.recv() => {
                    drop(self.hear(told));
                    self.refuse_all(why);
                }
            }
        }
    }

    /// Connects, lists, and sees to it that this host is known as it is.
    async fn connect(&mut self) -> Result<Session> {
        let asked = self.asked();
        let Membership { host: me, run, last_runs, .. } = &self.membership;
        let record = &lock(&self.shared).record.clone();
        let client = Client::connect(&self.membership.etcd).await?;
        let seen = edge::look(&client, &self.layout, *me, &asked).await?;
        let (known, before, there, revision) = {
            let mut known = lock(&self.shared);
            known.view.replace(seen)?;
            let view = &known.view;
            self.check(view)?;
            let run = view.run_of(*me).map(str::to_owned);
            (view.hosts().get(me).cloned(), run, view.endpoints_at(*me), view.revision())
        };
        match known {
            Some(known) if known == *record => {}
            Some(known) => {
                if !self.write(&client, None, &Write::change(*me, &known, record)).await? {
                    bail!(taken(&lock(&self.shared).view, *me, record));
                }
            }
            None => {
                if !self.write(&client, None, &Write::join(*me, record)).await? {
                    bail!("another host of the cluster is called `{}`, or has an address of this host", record.name);
                }
            }
        }
        // The runs before this one are dead, for we have their lock; any other is somewhere else.
        if before.as_ref().is_some_and(|before| before != run && !last_runs.contains(before)) {
            bail!(COPY);
        }
        let lease = client.lease_grant(LEASE).await?;
        if !self.write(&client, Some(lease), &Write::live(*me, run, before.as_deref())).await? {
            bail!(COPY);
        }
        let watch = client.watch(self.layout.part(Part::All), revision + 1).await?;
        let parts = BTreeMap::from([(0, Part::All)]);
        let mut session = Session { client, watch, parts, lease, there, said: record.clone() };
        let networks: Vec<Part> = lock(&self.shared).view.followed().map(Part::Network).collect();
        for part in [Part::Run(*me), Part::Places(*me)].into_iter().chain(networks) {
            session.follow(&self.layout, part, revision + 1);
        }
        lock(&self.shared).trouble = None;
        (self.is_to_follow, self.is_to_publish, self.has_wanted) = (true, true, true);
        // Who cannot hear is about to end.
        let _ = self.rows.send(rows::Job::Everything);
        Ok(session)
    }

    /// The networks that containers of this host are on, or that somebody here asks something of.
    fn asked(&self) -> BTreeSet<Id> {
        let endpoints = self.containers.values().flat_map(BTreeMap::keys).map(|(network, _)| *network);
        endpoints.chain(self.jobs.iter().filter_map(Job::network)).collect()
    }

    /// Has this host know all of the networks that it is concerned with, and nothing of others.
    async fn follow(&mut self, session: &mut Session) -> Result<()> {
        if !std::mem::take(&mut self.is_to_follow) {
            return Ok(());
        }
        let (me, asked) = (self.membership.host, self.asked());
        let (wanted, followed): (BTreeSet<Id>, BTreeSet<Id>) = {
            let view = &lock(&self.shared).view;
            (concerns(view, me, &asked), view.followed().collect())
        };
        for network in followed.difference(&wanted) {
            session.leave(Part::Network(*network));
            session.there.retain(|(of, _), _| of != network);
            let changes = lock(&self.shared).view.forget(&self.layout, *network);
            let _ = self.rows.send(rows::Job::Changes(changes));
        }
        for network in wanted.difference(&followed) {
            let part = Part::Network(*network);
            let (revision, found) = edge::list(&session.client, &self.layout, part, 0).await?;
            let changes = {
                let view = &mut lock(&self.shared).view;
                if revision < view.revision() {
                    let seen = view.revision();
                    bail!(WentBack::Revision { seen, found: revision });
                }
                view.add(&self.layout, *network, revision, found);
                session
                    .there
                    .extend(view.endpoints_of(*network, me).map(|(id, record)| ((*network, id), record.clone())));
                view.all_of(*network)
            };
            session.follow(&self.layout, part, revision + 1);
            self.is_to_publish = true;
            let _ = self.rows.send(rows::Job::Changes(changes));
        }
        // As long as not all containers are known, any network may have some.
        if self.is_complete {
            let over = abandoned(&lock(&self.shared).view, me, &asked);
            for write in over {
                // Something came there meanwhile, where it is refused.
                self.write(&session.client, None, &write).await?;
            }
        }
        Ok(())
    }

    /// Finds out which hosts run.
    async fn look(&self, session: &Session) -> Result<()> {
        let (revision, runs) = edge::list(&session.client, &self.layout, Part::Alive, 0).await?;
        let mut known = lock(&self.shared);
        known.view.take_runs(&self.layout, revision, runs);
        known.looked = Some(Instant::now());
        Ok(())
    }

    /// Finds out whether a host runs.
    async fn look_at(&self, session: &Session, host: Id) -> Result<()> {
        let part = Part::Run(host);
        let (revision, found) = edge::list(&session.client, &self.layout, part, 0).await?;
        let mut events: Vec<Event> = found
            .map(|(key, value, revision)| Event::Put { key: key.to_vec(), value: value.to_vec(), revision })
            .collect();
        if events.is_empty() {
            events.push(Event::Delete { key: self.layout.text(&Key::Alive(host)).into_bytes() });
        }
        lock(&self.shared).view.apply(&self.layout, part, revision, &events);
        Ok(())
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

    async fn serve(&mut self, mut session: Session) -> Result<Infallible> {
        // Hosts that start at once do not all speak at once from then on.
        let mut beat = interval_at((Instant::now() + part_of(BEAT)).into(), BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.say_record(&mut session).await?;
            if !self.looks.is_empty() {
                self.look(&session).await?;
                self.looks.drain(..).for_each(|reply| reply(Ok(Came::Looked {})));
            }
            for host in std::mem::take(&mut self.silent) {
                self.look_at(&session, host).await?;
            }
            self.follow(&mut session).await?;
            self.publish(&mut session).await?;
            for (check, found) in std::mem::take(&mut self.found) {
                let write = Write::checked(self.membership.host, check, &found);
                self.write(&session.client, Some(session.lease), &write).await?;
            }
            self.move_blocks(&session).await?;
            for ToWay { pair, written, way } in std::mem::take(&mut self.ways) {
                // Of two who say something at once one is heard, and both see which.
                let write = Write::way(self.membership.host, pair, written, way.as_ref());
                self.write(&session.client, None, &write).await?;
            }
            self.work(&mut session).await?;
            let turn = self.take_turns();
            let until = self.jobs.iter().map(Job::until).chain(turn).min().unwrap_or_else(|| Instant::now() + BEAT);
            tokio::select! {
                () = sleep_until(until.into()) => {}
                batch = session.watch.next() => self.see(batch?, &mut session)?,
                _ = beat.tick() => {
                    session.client.keep_alive(session.lease).await?;
                    self.bundle(&session).await;
                }
                Some(told) = self.hears.recv() => {
                    let mut touched = self.hear(told);
                    while let Ok(told) = self.hears.try_recv() {
                        touched.extend(self.hear(told));
                    }
                    if !touched.is_empty() {
                        let _ = self.rows.send(rows::Job::Local(touched));
                    }
                }
            }
        }
    }

    /// Sees to it that what many hosts ask for when they start is there as bundles, where that falls to this one: by chance, so that
    /// it need not be known who runs.
    async fn bundle(&self, session: &Session) {
        let falls_here = |hosts: usize| {
            let number = u64::from_le_bytes(random()[..8].try_into().expect("eight of 32 bytes"));
            number.is_multiple_of(hosts as u64 * (BUNDLING.as_secs() / BEAT.as_secs()))
        };
        let parts: Vec<Part> = {
            let view = &lock(&self.shared).view;
            let all = [Part::All].into_iter().chain(view.followed().map(Part::Network));
            let is_due = |part: &Part| {
                view.bundled(*part).is_some_and(|(keys, hosts)| keys >= Bundled::LEAST && falls_here(hosts))
            };
            all.filter(is_due).collect()
        };
        for part in parts {
            // It is for others only, and one of them does it the next time.
            match edge::bundle(&session.client, &self.layout, part).await {
                Ok(is_made) => tracing::debug!("cluster: bundle of {}: made: {is_made}", self.layout.part(part)),
                Err(error) => tracing::debug!("cluster: bundle of {}: {error}", self.layout.part(part)),
            }
        }
    }

    /// Takes note of what it is told; the networks on which endpoints of this host came or went.
    fn hear(&mut self, told: Told) -> BTreeSet<Id> {
        let mut touched = BTreeSet::new();
        match told {
            Told::Container(container, endpoints) => {
                (self.is_to_follow, self.is_to_publish) = (true, true);
                touched.extend(endpoints.keys().map(|(network, _)| *network));
                let before = if endpoints.is_empty() {
                    self.containers.remove(&container)
                } else {
                    self.containers.insert(container, endpoints)
                };
                touched.extend(before.iter().flat_map(|before| before.keys().map(|(network, _)| *network)));
            }
            Told::Everything(containers) => {
                self.containers.retain(|container, _| containers.contains(container));
                self.is_complete = true;
                (self.is_to_follow, self.is_to_publish) = (true, true);
            }
            Told::Checked(check, found) => self.found.push((check, found)),
            Told::Share(what, reply) => {
                self.jobs.push(Job::new(what, reply));
                self.is_to_follow = true;
            }
            Told::Look(reply) => self.looks.push(reply),
            Told::Runs(hosts) => self.silent = hosts,
            Told::Move(one) => self.moves.push(one),
            Told::Way(one) => self.ways.push(one),
            Told::Record => {}
        }
        touched
    }

    /// Has etcd know what this host says of itself.
    async fn say_record(&self, session: &mut Session) -> Result<()> {
        let record = lock(&self.shared).record.clone();
        if record == session.said {
            return Ok(());
        }
        let write = Write::change(self.membership.host, &session.said, &record);
        if !self.write(&session.client, None, &write).await? {
            bail!(taken(&lock(&self.shared).view, self.membership.host, &record));
        }
        session.said = record;
        Ok(())
    }

    /// Has etcd know the endpoints of this host.
    async fn publish(&mut self, session: &mut Session) -> Result<()> {
        if !self.is_complete || !std::mem::take(&mut self.is_to_publish) {
            return Ok(());
        }
        let wanted: Endpoints = self.containers.values().flatten().map(|(at, record)| (*at, record.clone())).collect();
        if wanted == session.there {
            return Ok(());
        }
        for write in Write::endpoints(self.membership.host, &session.there, &wanted) {
            // Where a network is gone, what is on it is nobody's any more.
            self.write(&session.client, None, &write).await?;
        }
        session.there = wanted;
        Ok(())
    }

    /// Offers what is withheld. Whatever comes of it, and whether it is known or not: rows follow what is seen.
    async fn move_blocks(&mut self, session: &Session) -> Result<()> {
        let me = self.membership.host;
        for Move { network, part, to } in std::mem::take(&mut self.moves) {
            let keep = Write::keep(me, network, &part);
            let length = lock(&self.shared).view.networks().get(&network).map(|record| record.block_lengths);
            let write = match (to, length) {
                (To::Host(other), Some(lengths)) => {
                    Write::give(me, network, &part, *lengths.of(Family::of(part.part.addr())), other)
                }
                (To::Nobody, _) => Write::release(network, &part),
                (To::Me, _) | (_, None) => keep.clone(),
            };
            if !self.write(&session.client, None, &write).await? && write != keep {
                self.write(&session.client, None, &keep).await?;
            }
        }
        Ok(())
    }

    /// Has rows see what can be given to those who want addresses, where it is this host's turn; when it is next.
    fn take_turns(&mut self) -> Option<Instant> {
        let (me, now) = (self.membership.host, Instant::now());
        let known = lock(&self.shared);
        let view = &known.view;
        self.turns.retain(|want, _| view.is_wanted(*want));
        for want in view.wants().filter(|(_, host, _)| *host != me) {
            let (network, _, family) = want;
            if self.turns.get(&want).is_some_and(|due| *due > now) {
                continue;
            }
            if self.turns.contains_key(&want) {
                let _ = self.rows.send(rows::Job::Give(want));
            }
            // Who has nothing now may have something later.
            let turn = self.turn(view, network, family).unwrap_or(AGAIN);
            let pause = if self.turns.contains_key(&want) { AGAIN } else { Duration::ZERO };
            self.turns.insert(want, now + pause + turn);
        }
        self.turns.values().min().copied()
    }

    fn turn(&self, view: &View, network: Id, family: Family) -> Option<Duration> {
        let record = view.networks().get(&network)?;
        let prefix = (*record.prefixes.of(family))?;
        let own = view.blocks_on(network).filter(|(_, host)| *host == self.membership.host);
        let own = own.map(|(block, _)| block).filter(|block| prefix.contains(block)).collect();
        let of_network = self.containers.values().flatten().filter(|((of, _), _)| *of == network);
        let in_use = of_network.flat_map(|(_, record)| record.addresses.iter().copied()).collect();
        let number = u64::from_le_bytes(random()[..8].try_into().expect("eight of 32 bytes"));
        turn(free(prefix, &own, &in_use), prefix, *record.block_lengths.of(family), view.hosts().len(), number)
    }

    /// Does what is asked for, as far as it can be done now.
    async fn work(&mut self, session: &mut Session) -> Result<()> {
        if self.jobs.is_empty() && !self.has_wanted {
            return Ok(());
        }
        let me = self.membership.host;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut left: Vec<Job> = Vec::new();
        let mut writing: Vec<Sharing> = Vec::new();
        for mut job in std::mem::take(&mut self.jobs) {
            let (next, seen) = {
                let view = &lock(&self.shared).view;
                (job.next(me, view, random(), now), job.seen(view))
            };
            match next {
                Next::Wait => left.push(job),
                Next::Refuse(refusal) => job.end(Err(refusal)),
                Next::Answered(check, hosts) => {
                    self.write(&session.client, None, &Write::end_check(check)).await?;
                    session.leave(Part::Answers(check));
                    lock(&self.shared).view.forget_answers(check);
                    job.end(Ok(Came::Verified { hosts }));
                }
                Next::Seen(network) => {
                    let _ = self.rows.send(rows::Job::Tell(network, job.into_reply()));
                }
                Next::Want(network, family) => {
                    let write = edge::transaction(&self.layout, &Write::want(me, network, family), Some(session.lease));
                    match session.client.txn(write).await {
                        Ok(answer) => {
                            let view = &lock(&self.shared).view;
                            match answer.succeeded {
                                true => job.wanting(me, view, (network, family), answer.revision),
                                false => job.written(network, seen, None),
                            }
                            left.push(job);
                        }
                        Err(error) => {
                            left.push(job);
                            self.jobs = left;
                            return Err(error.into());
                        }
                    }
                }
                // One that another asked for as well is enough for both.
                Next::Write(network, _) if writing.contains(job.what()) => {
                    job.written(network, seen, None);
                    left.push(job);
                }
                Next::Write(network, write) => {
                    let write = edge::transaction(&self.layout, &write, Some(session.lease));
                    match session.client.txn(write).await {
                        Ok(answer) if answer.succeeded && *job.what() == (Sharing::Verify {}) => {
                            session.follow(&self.layout, Part::Answers(network), answer.revision);
                            self.look(session).await?;
                            job.asked(network, &lock(&self.shared).view);
                            left.push(job);
                        }
                        Ok(answer) => {
                            job.written(network, seen, answer.succeeded.then_some(answer.revision));
                            writing.push(job.what().clone());
                            left.push(job);
                        }
                        Err(error) => {
                            left.push(job);
                            self.jobs = left;
                            return Err(error.into());
                        }
                    }
                }
            }
        }
        self.is_to_follow |= self.jobs.len() != left.len();
        self.jobs = left;
        let is_over = |(network, host, family): &(Id, Id, Family)| {
            *host == me && !self.jobs.iter().any(|job| job.wants((*network, *family)))
        };
        let over: Vec<(Id, Id, Family)> = lock(&self.shared).view.wants().filter(is_over).collect();
        for (network, _, family) in over {
            self.write(&session.client, None, &Write::end_want(me, network, family)).await?;
        }
        self.has_wanted = lock(&self.shared).view.wants().any(|(_, host, _)| host == me);
        Ok(())
    }

    /// Takes in what happened.
    fn see(&mut self, batch: portolan_etcd::Batch, session: &mut Session) -> Result<()> {
        let Some(part) = session.parts.get(&batch.of).copied() else { return Ok(()) };
        let events: Vec<Event> = batch.events.into_iter().map(edge::event).collect();
        let mut known = lock(&self.shared);
        let view = &mut known.view;
        let changes = view.apply(&self.layout, part, batch.revision, &events);
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
        for change in &changes {
            match change {
                // Somebody else wrote what is ours to write, or etcd says what we wrote.
                Change::Endpoint(network, host, endpoint) if *host == me => {
                    match view.endpoint(*network, me, *endpoint) {
                        Some(record) => session.there.insert((*network, *endpoint), record.clone()),
                        None => session.there.remove(&(*network, *endpoint)),
                    };
                    (self.is_to_follow, self.is_to_publish) = (true, true);
                }
                Change::Network(_) | Change::Place(..) => self.is_to_follow = true,
                Change::Block(network, block, before) => {
                    self.is_to_follow |= [*before, view.block(*network, *block)].contains(&Some(me));
                }
                Change::Want(_, host, _) if *host == me => self.has_wanted = true,
                _ => {}
            }
        }
        let is_asked = |id: &Id| known.view.checks().contains(id);
        let checks: Vec<Id> = changes
            .iter()
            .filter_map(|change| if let Change::Check(id) = change { Some(*id) } else { None })
            .filter(is_asked)
            .collect();
        drop(known);
        if !changes.is_empty() {
            let _ = self.rows.send(rows::Job::Changes(changes));
        }
        for check in checks {
            let _ = self.rows.send(rows::Job::Check(check));
        }
        Ok(())
    }
}

/// Why this host cannot say of itself what it is.
fn taken(view: &View, me: Id, record: &HostRecord) -> String {
    let others = view.hosts().iter().filter(|(id, _)| **id != me);
    let both = |other: &HostRecord| record.taken().find(|address| other.taken().any(|its| its == *address));
    let found = others.filter_map(|(_, other)| Some((both(other)?, &other.name))).next();
    match found {
        Some((address, name)) => format!("this host has address {address}, which is host `{name}`'s in the cluster"),
        None => "an address of this host is another host's in the cluster".to_owned(),
    }
}

/// Two hosts with one identity.
const COPY: &str = "another host runs with this host's identity: one of them is a copy, and has to leave and join anew";
