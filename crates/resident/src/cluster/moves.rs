//! Blocks that this host has and does not need: to others who want some, or back. What is offered is first taken out of the row,
//! under its lock, and used again only when it is seen that the offer came to nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnet::IpNet;
use portolan_cluster::{Idle, offer, own, unused};
use portolan_model::{Family, Id, Withheld};
use tokio::sync::mpsc as channel;

use super::agent::{Shared, lock, part_of};
use super::site::Site;
use super::{Move, To, Told};

/// How often it is looked at which blocks are not in use.
const LOOK: Duration = Duration::from_secs(10);
/// After how long an offer whose outcome is not known is taken back.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) struct Moves {
    me: Id,
    shared: Shared,
    told: channel::UnboundedSender<Told>,
    idle: Idle,
    looked: Instant,
    /// When something was last written for what is withheld.
    offered: BTreeMap<(Id, Withheld), Instant>,
}

impl Moves {
    pub(super) fn new(me: Id, shared: Shared, told: channel::UnboundedSender<Told>) -> Self {
        Self {
            me,
            shared,
            told,
            idle: Idle::default(),
            looked: Instant::now() - part_of(LOOK),
            offered: BTreeMap::new(),
        }
    }

    /// Sees to what is withheld, and to what this host does not need; the networks of which it is known what came of an offer.
    pub(super) fn follow(&mut self, site: &impl Site) -> Result<BTreeSet<Id>> {
        let now = Instant::now();
        let all = site.withheld()?;
        let mut over = BTreeSet::new();
        let mut open: BTreeSet<(Id, Withheld)> = BTreeSet::new();
        let (is_connected, is_drained) = {
            let known = lock(&self.shared);
            for (network, withheld) in &all {
                let still = own(&known.view, self.me, *network, withheld).withheld;
                if still != *withheld && known.view.networks().contains_key(network) {
                    over.insert(*network);
                }
                open.extend(still.into_iter().map(|part| (*network, part)));
            }
            (known.trouble.is_none(), known.view.is_drained(self.me))
        };
        self.offered.retain(|at, _| open.contains(at));
        for (network, part) in open {
            // One of the process before this one is as old.
            let last = self.offered.entry((network, part)).or_insert(now);
            if is_connected && now.saturating_duration_since(*last) >= PATIENCE {
                *last = now;
                let _ = self.told.send(Told::Move(Move { network, part, to: To::Me }));
            }
        }
        // Who takes no more containers has nothing to wait for.
        if is_connected && (is_drained || now.saturating_duration_since(self.looked) >= LOOK) {
            self.looked = now;
            self.release(site, &all, now)?;
        }
        Ok(over)
    }

    /// Gives back what nobody on this host has used for a while.
    fn release(&mut self, site: &impl Site, all: &BTreeMap<Id, BTreeSet<Withheld>>, now: Instant) -> Result<()> {
        let networks: Vec<Id> = lock(&self.shared).view.followed().collect();
        self.idle.retain(|network| networks.contains(&network));
        for network in networks {
            let in_use = site.addresses_in_use(network)?;
            for family in Family::ALL {
                let parts: Vec<Withheld> = {
                    let view = &lock(&self.shared).view;
                    let Some(record) = view.networks().get(&network) else { continue };
                    let Some(prefix) = *record.prefixes.of(family) else { continue };
                    let is_offered =
                        |block: &IpNet| all.get(&network).is_some_and(|all| all.iter().any(|one| one.block == *block));
                    let own = view.blocks_on(network).filter(|(_, host)| *host == self.me);
                    let blocks: BTreeSet<IpNet> = own
                        .map(|(block, _)| block)
                        .filter(|block| prefix.contains(block) && !is_offered(block))
                        .collect();
                    let over = match view.is_drained(self.me) {
                        true => unused(&blocks, &in_use),
                        false => self.idle.look(network, prefix, &blocks, &in_use, now).into_iter().collect(),
                    };
                    let whole = |block| Withheld { block, part: block, written: view.written(network, block) };
                    over.into_iter().map(whole).collect()
                };
                for part in parts {
                    self.offer(site, Move { network, part, to: To::Nobody })?;
                }
            }
        }
        Ok(())
    }

    /// Gives addresses to a host that wants some.
    pub(super) fn give(&mut self, site: &impl Site, (network, host, family): (Id, Id, Family)) -> Result<()> {
        let withheld = site.withheld()?.remove(&network).unwrap_or_default();
        let in_use = site.addresses_in_use(network)?;
        let part = {
            let view = &lock(&self.shared).view;
            let prefix = view.networks().get(&network).and_then(|record| *record.prefixes.of(family));
            match prefix.filter(|_| view.is_wanted((network, host, family))) {
                Some(prefix) => {
                    let own = own(view, self.me, network, &withheld);
                    offer(view, self.me, network, prefix, &own, &in_use)
                }
                None => None,
            }
        };
        match part {
            Some(part) => self.offer(site, Move { network, part, to: To::Host(host) }),
            None => Ok(()),
        }
    }

    /// Has it be written, once nothing of it is given out any more.
    fn offer(&mut self, site: &impl Site, one: Move) -> Result<()> {
        let mut withheld = site.withheld()?.remove(&one.network).unwrap_or_default();
        withheld.insert(one.part);
        let left = own(&lock(&self.shared).view, self.me, one.network, &withheld);
        // Its block is another's meanwhile, or was written anew: there is nothing to offer.
        if left.withheld.contains(&one.part) && site.withhold(one.network, &one.part, &left.blocks)? {
            self.offered.insert((one.network, one.part), Instant::now());
            let _ = self.told.send(Told::Move(one));
        }
        Ok(())
    }
}
