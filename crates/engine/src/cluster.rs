//! The port through which verbs ask for what all hosts of a cluster have to agree on.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Family, Id};

use crate::api::NetworkRequest;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::store::Store;

/// Why the cluster did not do what a verb asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ClusterError {
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What is missing to give an endpoint of an overlay network an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanting {
    /// A block of this family: there is none, or all addresses of those are taken.
    Block(Family),
    /// The block that this address is of.
    BlockOf(IpAddr),
}

/// The cluster that this host is in. A call returns when rows and kernel are what it says; the lock is not held meanwhile.
pub trait Cluster: fmt::Debug + Send + Sync {
    /// Makes a network that all hosts have; its id. Subnets that nobody chose keep away from `avoid`, what this host has in use.
    ///
    /// # Errors
    /// Why there is none; nothing has changed then.
    fn create_network(&self, request: &NetworkRequest, avoid: &[IpNet]) -> Result<Id, ClusterError>;

    /// Removes one.
    ///
    /// # Errors
    /// Why it stays: containers of other hosts are on it, or etcd cannot be asked.
    fn remove_network(&self, network: Id) -> Result<(), ClusterError>;

    /// The block that `address` is of, of those that hosts give out `subnet` in.
    fn block_of(&self, subnet: IpNet, address: IpAddr) -> IpNet;

    /// Makes a network of this host one that all have, under the id that it has here, and `blocks` of its addresses this host's.
    ///
    /// # Errors
    /// Why it is not; it may still come to be if etcd did not answer in time.
    fn promote_network(
        &self,
        network: Id,
        request: &NetworkRequest,
        blocks: &BTreeSet<IpNet>,
    ) -> Result<(), ClusterError>;

    /// Sees to it that this host has more of a network's addresses to give out.
    ///
    /// # Errors
    /// Why it has not.
    fn claim(&self, network: Id, wanting: Wanting) -> Result<(), ClusterError>;
}

/// So often a verb asks for addresses at most: once for each family, and again if others were faster. Of a network that is nearly
/// full it may be given single ones.
const CLAIMS: usize = 16;

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Asks `cluster` for what this host cannot decide by itself.
    #[must_use]
    pub fn with_cluster(mut self, cluster: Box<dyn Cluster>) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// The cluster.
    ///
    /// # Errors
    /// When this host is in none that could be asked.
    pub(crate) fn in_cluster(&self) -> Result<&dyn Cluster> {
        let refused = || ClusterError {
            reason: "networks over several hosts need a cluster, and this host is in none".to_owned(),
            hint: Some(
                "`portolan cluster init` begins one, `portolan cluster join` makes this host one of it".to_owned(),
            ),
        };
        self.cluster.as_deref().ok_or_else(|| Error::Cluster(refused()))
    }

    /// Does `verb`; as often as it wants for a block of addresses, the cluster is asked for one and it is done anew.
    pub(crate) fn with_room<T>(&self, verb: impl Fn() -> Result<T>) -> Result<T> {
        for _ in 0..CLAIMS {
            match verb() {
                Err(Error::NoBlock { network, wanting, .. }) if self.cluster.is_some() => {
                    self.in_cluster()?.claim(network, wanting).map_err(Error::Cluster)?;
                }
                done => return done,
            }
        }
        verb()
    }
}
