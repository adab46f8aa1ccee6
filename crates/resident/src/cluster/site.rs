//! What a host's part in a cluster works on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use portolan_cluster::View;
use portolan_engine::Room;
use portolan_model::{Family, Id, Withheld};

use super::plan::{Here, Plan, Rows};
use crate::daemon::Engine;

/// Rows and kernel of one host: the engine over them, or what stands for it where many hosts are in one process.
pub trait Site {
    /// What rows say of the cluster.
    ///
    /// # Errors
    /// When they cannot be read.
    fn rows(&self) -> Result<Rows>;

    /// What this host withholds of its blocks, by network.
    ///
    /// # Errors
    /// When it cannot be read.
    fn withheld(&self) -> Result<BTreeMap<Id, BTreeSet<Withheld>>>;

    /// Has rows and kernel be so; by network, what is wrong with it, and none where nothing is.
    ///
    /// # Errors
    /// When it is not known that all of it was done.
    fn take_in(&self, plan: Plan) -> Result<BTreeMap<Id, Option<String>>>;

    /// Gives nothing out of a part of a block any more, but `blocks`; false when some of it is in use.
    ///
    /// # Errors
    /// When it cannot be written.
    fn withhold(&self, network: Id, part: &Withheld, blocks: &BTreeSet<IpNet>) -> Result<bool>;

    /// The addresses of a network that endpoints of this host have.
    ///
    /// # Errors
    /// When they cannot be read.
    fn addresses_in_use(&self, network: Id) -> Result<BTreeSet<IpAddr>>;

    /// How much of a network's own addresses is used; none if it is no network over several hosts.
    ///
    /// # Errors
    /// When it cannot be read.
    fn room(&self, network: Id, family: Family) -> Result<Option<Room>>;

    /// How rows and kernel differ from `view`, a sentence each.
    ///
    /// # Errors
    /// When they cannot be read.
    fn compare(&self, here: Here<'_>, view: &View) -> Result<Vec<String>>;

    /// The engine, where there is one: the encrypted link between hosts is its kernel's.
    fn engine(&self) -> Option<&Engine> {
        None
    }
}

impl Site for Engine {
    fn rows(&self) -> Result<Rows> {
        Ok(Rows::of(self)?)
    }

    fn withheld(&self) -> Result<BTreeMap<Id, BTreeSet<Withheld>>> {
        Ok(self.withheld()?)
    }

    fn take_in(&self, plan: Plan) -> Result<BTreeMap<Id, Option<String>>> {
        Ok(plan.take_in(self)?)
    }

    fn withhold(&self, network: Id, part: &Withheld, blocks: &BTreeSet<IpNet>) -> Result<bool> {
        Ok(self.withhold(network, part, blocks)?)
    }

    fn addresses_in_use(&self, network: Id) -> Result<BTreeSet<IpAddr>> {
        Ok(self.addresses_in_use(network)?)
    }

    fn room(&self, network: Id, family: Family) -> Result<Option<Room>> {
        Ok(self.room(network, family)?)
    }

    fn compare(&self, here: Here<'_>, view: &View) -> Result<Vec<String>> {
        Ok(here.compare(view, self)?)
    }

    fn engine(&self) -> Option<&Engine> {
        Some(self)
    }
}
