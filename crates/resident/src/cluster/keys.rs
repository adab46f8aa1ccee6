//! New keys for the encrypted link between hosts: what was decided ([`portolan_cluster::step`]) is written down, and then done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use portolan_cluster::{HostRecord, Other, Refusal, SealRecord, Step, step};
use portolan_model::Id;
use portolan_wireguard::PrivateKey;

use super::agent::{Shared, lock};
use super::seal::Seal;
use super::{Came, Membership, Reply, join};
use crate::daemon::Engine;

/// How long whoever asks for new keys waits until they can be drawn.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which hosts run is not followed: for so long it is known once it was looked up.
const FRESH: Duration = Duration::from_secs(1);

/// Who asks for new keys, and until when.
#[derive(Default)]
pub(super) struct Asked(Vec<(Reply, Instant)>);

impl Asked {
    pub(super) fn push(&mut self, reply: Reply) {
        self.0.push((reply, Instant::now() + PATIENCE));
    }

    pub(super) const fn is_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Says to which round keys change.
    pub(super) fn answer(&mut self, round: u64) {
        self.0.drain(..).for_each(|(reply, _)| reply(Ok(Came::Rotating { round })));
    }

    /// Refuses who has waited long enough.
    pub(super) fn refuse_due(&mut self, reason: &str) {
        let now = Instant::now();
        self.refuse(reason, TRY, |until| now >= until);
    }

    fn refuse(&mut self, reason: &str, hint: &str, is_due: impl Fn(Instant) -> bool) {
        let (due, left) = std::mem::take(&mut self.0).into_iter().partition(|(_, until)| is_due(*until));
        self.0 = left;
        let due: Vec<(Reply, Instant)> = due;
        due.into_iter().for_each(|(reply, _)| reply(Err(Refusal::new(reason, hint))));
    }
}

/// Seconds since 1970 by this host's clock, to which alone they are compared.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Membership {
    /// Whether its newest key is as old as a key may be.
    fn is_old(&self) -> bool {
        self.rotate_after.is_some_and(|seconds| now().saturating_sub(self.drawn) >= seconds)
    }

    /// It after a step; none if nothing changes by it.
    fn after(&self, step: &Step) -> Option<Self> {
        let seal = self.record.seal.as_ref()?;
        let draw = || {
            let private = PrivateKey::random();
            let public = private.public().to_base64();
            (private.to_base64(), public)
        };
        let with = |seal: SealRecord| HostRecord { seal: Some(seal), ..self.record.clone() };
        Some(match step {
            Step::Rest | Step::Wait(_) => return None,
            Step::Draw(round) => {
                let (next_private_key, public) = draw();
                Self { next_private_key, drawn: now(), record: with(seal.with(public, *round)), ..self.clone() }
            }
            Step::Replace(round) => {
                let (private_key, public) = draw();
                let record = with(seal.anew(public, *round));
                Self { private_key, next_private_key: String::new(), drawn: now(), record, ..self.clone() }
            }
            Step::Moved(round) => Self { record: with(SealRecord { moved: *round, ..seal.clone() }), ..self.clone() },
            Step::Drop => Self {
                private_key: self.next_private_key.clone(),
                next_private_key: String::new(),
                record: with(seal.without_old()),
                ..self.clone()
            },
        })
    }
}

/// Takes the next step of a change of keys, if there is one to be taken now; what this host is then, on disk, and which step it
/// was. `hosts` are those of the link, none if there is to be none.
///
/// # Errors
/// When the state cannot be written; nothing has changed then.
pub(super) fn turn(
    engine: &Engine,
    membership: &Membership,
    shared: &Shared,
    seal: &mut Seal,
    asked: &mut Asked,
    hosts: Option<&BTreeMap<Id, HostRecord>>,
    look: impl FnOnce(),
) -> Result<Option<(Membership, Step)>> {
    let Some(own) = &membership.record.seal else {
        asked.refuse("this host has no IPv6, and no key for the encrypted link between hosts", NO_IPV6, |_| true);
        return Ok(None);
    };
    if let Some(next) = &own.next {
        asked.answer(next.round);
    }
    let is_at_it = own.next.is_some() || asked.is_any() || membership.is_old();
    let (all, up, is_known, is_fresh) = {
        let known = lock(shared);
        let is_fresh = known.looked.is_some_and(|when| when.elapsed() < FRESH);
        let view = &known.view;
        let there = |id: &Id| !view.is_gone(*id);
        let all: BTreeMap<Id, HostRecord> =
            view.hosts().iter().filter(|(id, _)| there(id)).map(|(id, record)| (*id, record.clone())).collect();
        let up: BTreeSet<Id> = all.keys().filter(|id| view.run_of(**id).is_some()).copied().collect();
        let is_known = view.hosts().get(&membership.host).is_some_and(|record| record.seal.as_ref() == Some(own));
        (all, up, known.trouble.is_none() && is_known, is_fresh)
    };
    // What others do not know of it yet is not to be followed by more.
    if !is_known {
        asked.refuse_due("etcd is not reached: no other host could be told of a new key");
        return Ok(None);
    }
    if is_at_it && !is_fresh {
        look();
        return Ok(None);
    }
    let others: BTreeMap<Id, Other<'_>> = match hosts {
        Some(_) => seal.others(membership, &all, |id| up.contains(&id)),
        // There is nothing to lose.
        None => {
            let others = all.iter().filter(|(id, _)| **id != membership.host);
            let others = others.filter_map(|(id, record)| Some((*id, record.seal.as_ref()?)));
            let others = others.filter(|(_, seal)| seal.secret == own.secret);
            others.map(|(id, seal)| (id, Other { seal, is_here: up.contains(&id), has_agreed: true })).collect()
        }
    };
    if hosts.is_some() && own.next.is_some() {
        seal.probe(own.address, others.values().map(|other| other.seal));
    }
    let next = step(own, &others, asked.is_any() || membership.is_old());
    let waits = if let Step::Wait(hosts) = &next { hosts.clone() } else { BTreeSet::new() };
    lock(shared).waits_for = waits;
    // What was sent the old way arrives first.
    if matches!(next, Step::Moved(_)) && hosts.is_some() && !seal.is_settled() {
        return Ok(None);
    }
    let Some(after) = membership.after(&next) else { return Ok(None) };
    if !join::change(engine, &after).context("write down the keys of the encrypted link")? {
        return Ok(None);
    }
    tracing::info!(step = ?next, "keys of the encrypted link change");
    Ok(Some((after, next)))
}

const TRY: &str = "`portolan cluster status` shows how this host stands; try again";
const NO_IPV6: &str = "`cluster leave` and `cluster join`, once the host has IPv6";
