//! What was seen in etcd, made rows and kernel: by a thread of its own, for it may have to wait for the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_cluster::{Change, Checked, HostRecord, SealRecord, Step};
use portolan_kernel::rtnl::addr::Watch;
use portolan_model::{Family, Id};
use tokio::sync::mpsc as channel;
use tokio::time::timeout;

use super::agent::{Shared, lock};
use super::keys::{self, Asked};
use super::moves::Moves;
use super::plan::Here;
use super::relay::Relay;
use super::seal::{self, Seal};
use super::site::Site;
use super::ways::Ways;
use super::{Came, Membership, Reply, Sharing, Told, Wanted, join, paths};
use crate::daemon::Engine;

/// How often the encrypted link is looked at when nothing else happens.
const LOOK: Duration = Duration::from_secs(1);
/// The same while keys change.
const LOOK_CLOSELY: Duration = Duration::from_millis(200);
/// So many differences are told of one host.
const TOLD: usize = 100;

/// What the thread is to do.
pub(super) enum Job {
    /// Take in these changes.
    Changes(BTreeSet<Change>),
    /// Take in all that there is.
    Everything,
    /// Endpoints of this host came or went on these networks: see whether there is room for more, and try again what could not
    /// be done.
    Local(BTreeSet<Id>),
    /// Compare rows and kernel with the view.
    Check(Id),
    /// Give a host addresses of a network, if there are any to give.
    Give((Id, Id, Family)),
    /// Have the keys of the encrypted link change.
    Rotate(Reply),
    /// Tell him that all before is done.
    Tell(Id, Reply),
    /// End.
    Stop,
}

pub(super) struct Rows {
    membership: Membership,
    shared: Shared,
    told: channel::UnboundedSender<Told>,
    seal: Seal,
    ways: Ways,
    relay: Relay,
    moves: Moves,
    asked: Asked,
    watch: Option<Watch>,
    /// What was last seen was not all taken in.
    is_behind: bool,
    /// The hosts that are kept for the encrypted link; none as long as nothing was seen.
    link_hosts: Option<Option<BTreeMap<Id, HostRecord>>>,
}

impl Rows {
    pub(super) fn new(
        membership: Membership,
        shared: Shared,
        told: channel::UnboundedSender<Told>,
        seal: Seal,
        run: &Path,
    ) -> Self {
        let moves = Moves::new(membership.host, shared.clone(), told.clone());
        let asked = Asked::default();
        let (ways, relay) = (Ways::new(run), Relay::new(run));
        Self {
            membership,
            shared,
            told,
            seal,
            ways,
            relay,
            moves,
            asked,
            watch: None,
            is_behind: false,
            link_hosts: None,
        }
    }

    /// Goes on until it is told to end, or nobody can tell it anything any more. What is done to `site` may block.
    pub(super) async fn run(mut self, site: impl Site, mut jobs: channel::UnboundedReceiver<Job>) {
        loop {
            let has_next = self.membership.record.seal.as_ref().is_some_and(|seal| seal.next.is_some());
            let is_turning = has_next || self.asked.is_any();
            let first = match timeout(if is_turning { LOOK_CLOSELY } else { LOOK }, jobs.recv()).await {
                Ok(Some(first)) => Some(first),
                Ok(None) => return,
                Err(_) => None,
            };
            let is_quiet = first.is_none();
            let (mut changes, mut everything, mut local, mut replies) =
                (BTreeSet::new(), false, BTreeSet::new(), Vec::new());
            let (mut checks, mut wants) = (Vec::new(), BTreeSet::new());
            // What happens while the lock is waited for is done in one go.
            for job in first.into_iter().chain(std::iter::from_fn(|| jobs.try_recv().ok())) {
                match job {
                    Job::Changes(more) => changes.extend(more),
                    Job::Everything => everything = true,
                    Job::Local(networks) => local.extend(networks),
                    Job::Check(check) => checks.push(check),
                    Job::Give(want) => drop(wants.insert(want)),
                    Job::Rotate(reply) => self.asked.push(reply),
                    Job::Tell(network, reply) => replies.push((network, reply)),
                    Job::Stop => return,
                }
            }
            if let Some(engine) = site.engine() {
                if let Err(error) = self.follow_addresses(engine) {
                    tracing::warn!("cluster: {error:#}");
                }
                // Whoever carries the packets of the link may have died.
                self.keep_sealed(engine);
            }
            match self.moves.follow(&site) {
                Ok(networks) => changes.extend(networks.into_iter().map(Change::Network)),
                Err(error) => tracing::warn!("cluster: {error:#}"),
            }
            // Of one that has not seen etcd since it began, nothing is known, and rows stay as they are.
            let has_seen = lock(&self.shared).view.cluster().is_some();
            if is_quiet && changes.is_empty() && !(self.is_behind && has_seen) {
                continue;
            }
            changes.extend(self.failed());
            let mut done = Ok(());
            if has_seen {
                // Of changes that could not be written nobody tells again.
                done = self.take_in(&site, &changes, everything || self.is_behind);
                self.is_behind = done.is_err();
            }
            if let Err(error) = &done {
                let text = format!("{error:#}");
                if lock(&self.shared).problems.insert(None, text.clone()).as_ref() != Some(&text) {
                    tracing::error!("cluster: {text}");
                }
            } else {
                lock(&self.shared).problems.remove(&None);
            }
            for (network, reply) in replies {
                let problem = lock(&self.shared).problems.get(&Some(network)).cloned();
                reply(match problem {
                    None => Ok(Came::Network { network }),
                    Some(reason) => Err(portolan_cluster::Refusal::new(
                        reason,
                        "`portolan cluster status` shows what is not as it should be on this host",
                    )),
                });
            }
            for want in wants {
                if let Err(error) = self.moves.give(&site, want) {
                    tracing::warn!("cluster: {error:#}");
                }
            }
            for check in checks {
                let _ = self.told.send(Told::Checked(check, self.check(&site)));
            }
            for network in local {
                if let Err(error) = self.make_room(&site, network) {
                    tracing::warn!("cluster: {error:#}");
                }
            }
        }
    }

    /// Has this host say of itself which addresses and MTU it has now, if they are other ones.
    fn follow_addresses(&mut self, engine: &Engine) -> Result<()> {
        // Subscribed before they are listed, so that nothing is missed.
        let has_changed = match &mut self.watch {
            Some(watch) => watch.has_changed()?,
            None => {
                self.watch = Some(Watch::open().context("hear of changes of this host's addresses")?);
                true
            }
        };
        if !has_changed && lock(&self.shared).missing.is_empty() {
            return Ok(());
        }
        let there = super::own_addresses()?;
        let (record, missing) = super::follow(&self.membership.record, self.membership.is_given, &there);
        lock(&self.shared).missing = missing;
        if record == self.membership.record {
            return Ok(());
        }
        let after = Membership { record, ..self.membership.clone() };
        if join::change(engine, &after)? {
            tracing::info!(addresses = ?after.record.underlay, mtu = %after.record.mtu, "this host is somewhere else");
            self.become_(after);
            // Its ends of tunnels are there now.
            self.is_behind = true;
        }
        Ok(())
    }

    /// Is what it has written down, for all who ask.
    fn become_(&mut self, membership: Membership) {
        self.membership = membership;
        lock(&self.shared).record = self.membership.record.clone();
        // Who cannot hear is about to end.
        let _ = self.told.send(Told::Record);
    }

    /// Has the encrypted link be there if any network needs it, and what stands on it if it was not.
    fn keep_sealed(&mut self, engine: &Engine) {
        let done = self.hosts_of_link(engine).and_then(|hosts| {
            self.keep_untracked(engine, hosts.is_some())?;
            if let Some(hosts) = &hosts {
                if self.ensure_sealed(None, hosts)? {
                    engine.reconcile()?;
                }
                self.keep_ways(hosts)?;
            } else {
                self.relay.rest();
            }
            self.turn_keys(engine, hosts.as_ref())
        });
        let mut known = lock(&self.shared);
        known.link.clone_from(self.seal.figures());
        match done {
            Ok(()) => known.link_trouble = None,
            Err(error) => {
                let text = format!("{error:#}");
                self.asked.refuse_due(&format!("the encrypted link between hosts is not as it should be: {text}"));
                if known.link_trouble.replace(text.clone()).as_ref() != Some(&text) {
                    tracing::error!("cluster: {text}");
                }
            }
        }
    }

    /// Has the link's packets be no connections while it is there, unless a firewall of this host's own asks for those. Nobody tells
    /// when somebody uses iptables-legacy(8), so that this looks each time.
    fn keep_untracked(&self, engine: &Engine, is_needed: bool) -> Result<()> {
        let own = self.membership.record.seal.as_ref().filter(|_| is_needed);
        let ports = own.into_iter().flat_map(SealRecord::keys).map(|key| key.port).collect();
        let repaired = engine.set_link_ports(&ports).context("have the encrypted link's packets be tracked or not")?;
        for failure in repaired.failures {
            tracing::warn!(failure, "whether the encrypted link's packets are tracked is not as it should be");
        }
        Ok(())
    }

    /// Has the encrypted link be there, by the ways that lead to other hosts now, of this host as it is or as it is to be `after`
    /// this; whether it was not.
    fn ensure_sealed(&mut self, after: Option<&Membership>, hosts: &BTreeMap<Id, HostRecord>) -> Result<bool> {
        let membership = after.unwrap_or(&self.membership);
        let ways = self.ways.choose(membership, hosts, &lock(&self.shared).view);
        self.seal.ensure(membership, hosts, &ways)
    }

    /// Sees to it that something comes by those ways, and passes on what others send each other.
    fn keep_ways(&mut self, hosts: &BTreeMap<Id, HostRecord>) -> Result<()> {
        let Self { membership, shared, seal, ways, relay, told, .. } = self;
        if let Some(own) = &membership.record.seal {
            ways.listen(membership, own, hosts, seal);
        }
        let look = || drop(told.send(Told::Look(Box::new(|_| {}))));
        let (mut said, unreached) = ways.give_up(membership, hosts, shared, look);
        let rows = ways.rows(hosts);
        let passed = {
            let mut known = lock(shared);
            (known.ways, known.unreached) = (rows, unreached);
            // What was seen of etcd before is what is passed on until more is seen.
            if known.view.cluster().is_some() {
                relay.ensure(membership, &known.view, |key| seal.seen(key))
            } else {
                Ok(Vec::new())
            }
        };
        lock(shared).passed = relay.passed();
        said.extend(passed?);
        // Who cannot hear is about to end.
        said.into_iter().for_each(|way| drop(told.send(Told::Way(way))));
        Ok(())
    }

    /// Goes on with a change of keys.
    fn turn_keys(&mut self, engine: &Engine, hosts: Option<&BTreeMap<Id, HostRecord>>) -> Result<()> {
        let Self { membership, shared, seal, asked, told, .. } = self;
        // Who cannot hear is about to end.
        let look = || drop(told.send(Told::Look(Box::new(|_| {}))));
        let Some((after, step)) = keys::turn(engine, membership, shared, seal, asked, hosts, look)? else {
            return Ok(());
        };
        // Whoever hears of a key is to be understood when he uses it.
        let done = match hosts {
            Some(hosts) => self.ensure_sealed(Some(&after), hosts).map(drop),
            None => Ok(()),
        };
        self.become_(after);
        // Whoever is told sees it.
        if let Step::Draw(round) | Step::Replace(round) = step {
            self.asked.answer(round);
        }
        done
    }

    /// The hosts that the encrypted link is to lead to; none where there is to be no link, and there is none then.
    ///
    /// Before anything was seen of etcd they are those of the process before this one, whose link goes on.
    fn hosts_of_link(&mut self, engine: &Engine) -> Result<Option<BTreeMap<Id, HostRecord>>> {
        let seen = {
            let view = &lock(&self.shared).view;
            view.cluster().map(|_| seal::is_needed(view).then(|| view.hosts().clone()))
        };
        let Some(hosts) = seen else {
            let kept = engine.cluster_hosts()?;
            return kept
                .map(|text| serde_json::from_str(&text).context("read the hosts of the encrypted link"))
                .transpose();
        };
        if self.link_hosts.as_ref() != Some(&hosts) {
            let text = hosts.as_ref().map(|hosts| serde_json::to_string(hosts).expect("plain values serialise"));
            engine.set_cluster_hosts(text.as_deref())?;
            self.link_hosts = Some(hosts.clone());
        }
        if hosts.is_none() {
            self.seal.remove()?;
        }
        Ok(hosts)
    }

    /// The networks that could not be made what they should be.
    fn failed(&self) -> Vec<Change> {
        lock(&self.shared).problems.keys().filter_map(|network| network.map(Change::Network)).collect()
    }

    const fn here(&self) -> Here<'_> {
        Here { host: self.membership.host, record: &self.membership.record }
    }

    fn take_in(&self, site: &impl Site, changes: &BTreeSet<Change>, everything: bool) -> Result<()> {
        let here = self.here();
        let plan = match everything {
            true => {
                let rows = site.rows()?;
                here.everything(&lock(&self.shared).view, &rows)
            }
            false => {
                let withheld = site.withheld()?;
                here.changes(&lock(&self.shared).view, &withheld, changes)
            }
        };
        let problems = site.take_in(plan)?;
        let mut known = lock(&self.shared);
        for (network, problem) in problems {
            match problem {
                Some(problem) => {
                    if known.problems.insert(Some(network), problem.clone()).as_ref() != Some(&problem) {
                        tracing::warn!("cluster: {problem}");
                    }
                }
                None => drop(known.problems.remove(&Some(network))),
            }
        }
        Ok(())
    }

    /// How rows and kernel differ from what is in etcd.
    fn check(&self, site: &impl Site) -> Checked {
        let mut all: Vec<String> = lock(&self.shared).problems.values().cloned().collect();
        let (view, known_paths, port_taken) = {
            let known = lock(&self.shared);
            (known.view.clone(), known.paths.clone(), known.port_taken.clone())
        };
        all.extend(seal::other_secrets(self.membership.host, &view));
        all.extend(port_taken);
        all.extend(paths::warnings(&view, self.membership.host, &known_paths));
        match site.compare(self.here(), &view) {
            Ok(differences) => all.extend(differences),
            Err(error) => all.push(format!("it cannot be told: {error:#}")),
        }
        let count = all.len();
        all.truncate(TOLD);
        Checked { differences: all, count }
    }

    /// Claims another block when most addresses of the ones there are taken, so that nobody has to wait for it.
    fn make_room(&self, site: &impl Site, network: Id) -> Result<()> {
        if lock(&self.shared).view.is_drained(self.membership.host) {
            return Ok(());
        }
        for family in Family::ALL {
            let Some(room) = site.room(network, family)? else { return Ok(()) };
            // Who has none is not asked for any until somebody attaches.
            if room.all > 0 && room.used as u128 * 4 > room.all * 3 {
                let what = Sharing::Claim { network, wanted: Wanted::Ahead(family) };
                let _ = self.told.send(Told::Share(what, Box::new(|_| {})));
            }
        }
        Ok(())
    }
}
