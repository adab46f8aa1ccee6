//! New keys for the encrypted link between hosts, without a packet lost: what a host does next, and which key it sends by.
//!
//! Keys have rounds, which all hosts go through together. A host has the key of one round or, while keys change, of two; the
//! keys of even rounds are on one lane, those of odd rounds on the other, and a lane is a device of its own. What comes by
//! either lane is taken, so each host moves what it sends when it has agreed on keys with whom it sends to, one host after the
//! other, and no two have to do anything at the same time:
//!
//! 1. a host *draws* a key of the next round and makes it known; who sees that draws one as well;
//! 2. when it has agreed with all others on the new lane, and sends by it alone, it says that it has *moved*;
//! 3. when all others have, nothing comes by the old lane any more, and it *drops* the old key.
//!
//! Who does not run and is not heard on the link either is not waited for. Everything is written down by the one whom it
//! concerns before it is made known, and nothing that was made known is taken back: whatever dies in between goes on from there.

use std::collections::{BTreeMap, BTreeSet};

use portolan_model::Id;

use crate::record::{KeyRecord, SealRecord};

/// Where the packets of a round's keys go: 0 or 1.
pub const fn lane(round: u64) -> usize {
    (round % 2) as usize
}

/// Another host that can be on the link.
#[derive(Debug, Clone, Copy)]
pub struct Other<'a> {
    /// What it says of its end.
    pub seal: &'a SealRecord,
    /// It runs, or it is heard on the link although it does not say so.
    pub is_here: bool,
    /// Keys were agreed on with it, on the lane of this host's newest key and by the keys that both have there now.
    pub has_agreed: bool,
}

/// What a host is to do about its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Have a key of this round, besides the one that it has.
    Draw(u64),
    /// Have a key of this round in place of all that it has: this host was away for more than a round.
    Replace(u64),
    /// Say that it sends by its new key alone.
    Moved(u64),
    /// Forget the old key.
    Drop,
    /// Wait for these hosts.
    Wait(BTreeSet<Id>),
}

/// What comes next for a host with `own` keys; `is_wanted` when somebody asked for new ones, or they are old.
pub fn step(own: &SealRecord, others: &BTreeMap<Id, Other<'_>>, is_wanted: bool) -> Step {
    let newest = others.values().map(|other| other.seal.newest()).chain([own.newest()]).max().unwrap_or(0);
    let Some(next) = &own.next else {
        return match own.round {
            round if round < newest && lane(round) == lane(newest) => Step::Replace(newest),
            round if round < newest => Step::Draw(newest),
            round if is_wanted => Step::Draw(round + 1),
            _ => Step::Rest,
        };
    };
    // They have dropped what this host is about to move to.
    let is_left = others.values().any(|other| other.is_here && other.seal.round > next.round);
    if is_left {
        return Step::Replace(newest);
    }
    let (is_over, done) = match own.moved < next.round {
        true => (is_ready as fn(&Other<'_>, &SealRecord, u64) -> bool, Step::Moved(next.round)),
        false => (is_off as fn(&Other<'_>, &SealRecord, u64) -> bool, Step::Drop),
    };
    let waits = others.iter().filter(|(_, other)| other.is_here && !is_over(other, own, next.round));
    let waits: BTreeSet<Id> = waits.map(|(id, _)| *id).collect();
    if waits.is_empty() { done } else { Step::Wait(waits) }
}

/// Whether a host can be sent to by the key of `round`.
fn is_ready(other: &Other<'_>, _own: &SealRecord, round: u64) -> bool {
    other.has_agreed && other.seal.follows(round)
}

/// Whether it sends nothing any more to the key before `round`.
fn is_off(other: &Other<'_>, own: &SealRecord, round: u64) -> bool {
    other.seal.moved >= round || other.seal.on(lane(own.round)).is_none()
}

/// By which lane a host with `own` keys sends to another; none where they have none in common. `has_agreed` as for [`Other`].
pub fn lane_to(own: &SealRecord, other: &SealRecord, has_agreed: bool) -> Option<usize> {
    let on = |round: u64| other.on(lane(round)).map(|_| lane(round));
    let Some(next) = &own.next else { return on(own.round) };
    let has_moved = own.moved >= next.round || has_agreed;
    match on(own.round) {
        Some(old) if !(has_moved && other.follows(next.round)) => Some(old),
        _ => on(next.round),
    }
}

impl SealRecord {
    /// Its keys, the old one first.
    pub fn keys(&self) -> impl Iterator<Item = KeyRecord> + '_ {
        let first = KeyRecord { key: self.key.clone(), port: self.port, round: self.round };
        [first].into_iter().chain(self.next.clone())
    }

    /// Its key on a lane.
    pub fn on(&self, on: usize) -> Option<KeyRecord> {
        self.keys().find(|key| lane(key.round) == on)
    }

    /// The round of its newest key.
    pub fn newest(&self) -> u64 {
        self.next.as_ref().map_or(self.round, |next| next.round)
    }

    /// Whether it has a key on the lane of `round` that is of that round or a later one.
    fn follows(&self, round: u64) -> bool {
        self.on(lane(round)).is_some_and(|key| key.round >= round)
    }

    /// Its port on a lane: the one after that of the first.
    pub fn port_on(&self, on: usize) -> u16 {
        let first = self.port.saturating_sub(lane(self.round) as u16);
        first.saturating_add(on as u16)
    }

    /// It with a key of `round` besides the one that it has.
    #[must_use]
    pub fn with(&self, key: String, round: u64) -> Self {
        Self { next: Some(KeyRecord { key, port: self.port_on(lane(round)), round }), ..self.clone() }
    }

    /// It with a key of `round` in place of all that it has.
    #[must_use]
    pub fn anew(&self, key: String, round: u64) -> Self {
        Self { key, port: self.port_on(lane(round)), round, next: None, moved: round, ..self.clone() }
    }

    /// It without its old key.
    #[must_use]
    pub fn without_old(&self) -> Self {
        match self.next.clone() {
            Some(KeyRecord { key, port, round }) => Self { key, port, round, next: None, ..self.clone() },
            None => self.clone(),
        }
    }
}
