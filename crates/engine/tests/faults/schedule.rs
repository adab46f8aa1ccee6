//! What is done, and what goes wrong meanwhile: made from a seed.
//!
//! The numbers are drawn in one order: another one makes something else of every seed.

use crate::fake::Random;
use crate::fake::broken::{Ack, ERRNOS, Fault, How, Site};

const EVENTS: usize = 16;

/// What is done. Numbers stand for names, taken modulo how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Create(u8),
    Remove(u8),
    Attach {
        who: u8,
        on: [u8; 2],
        port: u8,
    },
    Connect {
        who: u8,
        to: u8,
    },
    Disconnect {
        who: u8,
        from: u8,
    },
    Publish {
        who: u8,
        port: u8,
    },
    Unpublish {
        who: u8,
        port: u8,
    },
    Detach(u8),
    /// As netavark and CNI attach: to all networks at once, which they describe with every call.
    Join {
        who: u8,
        on: [u8; 2],
        port: u8,
    },
    Leave {
        who: u8,
        from: u8,
    },
    /// As Docker attaches.
    Hand {
        who: u8,
        on: u8,
    },
    RequestPool(u8),
    ReleasePool(u8),
    RequestAddress {
        pool: u8,
        free: bool,
    },
    ReleaseAddress {
        pool: u8,
        address: u8,
    },
    /// A network on a pool.
    CreateOn(u8),
    Lease {
        who: u8,
        granted: bool,
    },
    ForwardNames(u8),
    /// The cluster has a network, with some blocks of this host's.
    Overlay(u8),
    /// It has it no more.
    DropOverlay,
    /// Something is other than before at another host.
    Remote(u8),
    Prune,
    Gc,
    Reconcile,
    RepairRules,
    RepairPorts(u8),
    /// The daemon follows what happens.
    Follow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Do(Verb, Option<Fault>, Next),
    /// The container's namespace goes.
    Die(u8),
    Reboot,
    /// The clock is set, by years.
    Clock(i8),
    /// Somebody removes, changes or adds something of ours.
    Edit(Edit, u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edit {
    Remove,
    Change,
    Add,
}

/// Who puts in order what a failed verb left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Gc,
    /// Any verb, one that is refused as well.
    Anybody,
    /// The verb once more.
    Again,
    /// The machine starts anew.
    Reboot,
}

impl Random {
    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

pub(crate) fn verb(random: &mut Random) -> Verb {
    let mut byte = || random.byte();
    let (who, a, b, port) = (byte(), byte(), byte(), byte());
    match random.below(46) {
        0..5 => Verb::Create(who),
        5..7 => Verb::Remove(who),
        7..12 => Verb::Attach { who, on: [a, b], port },
        12 => Verb::Connect { who, to: a },
        13 => Verb::Disconnect { who, from: a },
        14 => Verb::Publish { who, port },
        15 => Verb::Unpublish { who, port },
        16..18 => Verb::Detach(who),
        18..22 => Verb::Join { who, on: [a, b], port },
        22..24 => Verb::Leave { who, from: a },
        24..26 => Verb::Hand { who, on: a },
        26 | 27 => Verb::RequestPool(who),
        28 => Verb::ReleasePool(who),
        29 => Verb::RequestAddress { pool: who, free: a.is_multiple_of(2) },
        30 => Verb::ReleaseAddress { pool: who, address: a },
        31 => Verb::CreateOn(who),
        32 => Verb::Lease { who, granted: !a.is_multiple_of(3) },
        33 => Verb::ForwardNames(who),
        34 => Verb::Prune,
        35 => Verb::Gc,
        36 => Verb::Reconcile,
        37 => Verb::RepairRules,
        38 => Verb::RepairPorts(who),
        39 => Verb::Follow,
        40 | 41 => Verb::Overlay(who),
        42 => Verb::DropOverlay,
        _ => Verb::Remote(who),
    }
}

pub(crate) fn fault(random: &mut Random) -> Option<Fault> {
    let errno = ERRNOS[random.below(ERRNOS.len())];
    let how = match random.below(8) {
        0..3 => return None,
        3 | 4 => How::Death,
        5 | 6 => How::Errno(errno, Ack::Refused),
        _ => How::Errno(errno, Ack::Lost),
    };
    let site = [None, Some(Site::Kernel), Some(Site::Store)][random.below(3)];
    let at = 1 + random.below(if site == Some(Site::Kernel) { 40 } else { 120 });
    Some(Fault { at, site, how, lasting: random.below(3) == 0 })
}

pub(crate) fn schedule(seed: u64) -> Vec<Event> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let random = &mut random;
    let event = |_| match random.below(20) {
        0 => Event::Die(random.byte()),
        1 if random.below(2) == 0 => Event::Reboot,
        1 => Event::Clock([-10, 10][random.below(2)]),
        2 => Event::Edit([Edit::Remove, Edit::Change, Edit::Add][random.below(3)], random.byte()),
        _ => {
            let next = [Next::Gc, Next::Anybody, Next::Again, Next::Reboot][random.below(16).min(12) / 4];
            Event::Do(verb(random), fault(random), next)
        }
    };
    (0..EVENTS).map(event).collect()
}
