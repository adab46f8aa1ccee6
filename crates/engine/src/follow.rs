//! Following the rows: what a process that stays needs to know of what others did.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portolan_model::{Endpoint, Family, Id, Mtu, Network, Phase};
use portolan_plan::{ContainerView, Firewall};

use crate::api::{Change, Followed, Repaired};
use crate::engine::{Engine, meta};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::repair::said;
use crate::store::{Durability, Remotes as _, Store, Touched, Tx};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Shows what the commits after `since` changed, networks first; everything there is without it, or when the log of
    /// changes does not reach back so far.
    ///
    /// Rows that are being made or removed count as not there.
    ///
    /// # Errors
    /// When the store cannot be read; what was shown before that may be incomplete.
    pub fn follow(&self, since: Option<u64>, mut show: impl FnMut(Change)) -> Result<Followed> {
        let tx = self.store.read()?;
        let touched = since.map(|since| tx.touched_since(since)).transpose()?.flatten();
        let is_everything = touched.is_none();
        let (revision, touched) = match touched {
            Some(touched) => touched,
            None => {
                let networks = tx.networks()?.into_iter().map(|network| Touched::Network(network.id));
                let containers = tx.container_ids()?.into_iter().map(Touched::Container);
                let remote = tx.remote_endpoints()?.into_iter().map(|endpoint| Touched::Remote(endpoint.id));
                (tx.revision()?, networks.chain(containers).chain(remote).collect())
            }
        };
        let mut networks = BTreeMap::new();
        let mut coming = Vec::new();
        for what in touched {
            show(match what {
                Touched::Network(id) => Change::Network(id, tx.network(id)?.filter(|row| row.phase.is_settled())),
                Touched::Remote(id) => Change::Remote(id, tx.remote_endpoint(id)?),
                Touched::Container(id) => {
                    let row = tx.container(id)?;
                    coming.extend(row.as_ref().filter(|row| matches!(row.phase, Phase::Pending(_))).map(|_| id));
                    let view = match row.filter(|row| row.phase.is_settled()) {
                        Some(container) => Some(settled(self.view_among(&tx, container, &mut networks)?)),
                        None => None,
                    };
                    Change::Container(id, view)
                }
            });
        }
        Ok(Followed { revision, is_everything, coming })
    }

    /// The number of the last commit that changed a network or a container.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn revision(&self) -> Result<u64> {
        Ok(self.store.read()?.revision()?)
    }

    /// Who carries our rules out, and under which name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn firewall(&self) -> Result<Firewall> {
        let tx = self.store.read()?;
        self.table(&tx)
    }

    /// The same while there are rules of ours; none before the first network's objects are made, when the name is open.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn firewall_in_force(&self) -> Result<Option<Firewall>> {
        let tx = self.store.read()?;
        Ok(if tx.meta(meta::TABLE)?.is_some() { Some(self.table(&tx)?) } else { None })
    }

    /// Whether an interface of the host belongs to an endpoint that neither comes nor goes.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_host_end(&self, name: &str) -> Result<bool> {
        let tx = self.store.read()?;
        match tx.endpoint_at(name)? {
            Some(endpoint) => self.is_settled(&tx, &endpoint),
            None => Ok(false),
        }
    }

    /// Whether the endpoint at this host end is settled and has a limit of bandwidth.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_limited(&self, host_end: &str) -> Result<bool> {
        let tx = self.store.read()?;
        match tx.endpoint_at(host_end)? {
            Some(endpoint) => Ok(!endpoint.bandwidth.is_unlimited() && self.is_settled(&tx, &endpoint)?),
            None => Ok(false),
        }
    }

    /// The host end whose packets are led through an interface with this alias, if it is one of ours.
    pub fn limited_through(&self, alias: &str) -> Option<String> {
        alias.strip_prefix(&format!("portolan:{}:bandwidth:", self.root)).map(str::to_owned)
    }

    /// The network that an interface with this alias routes for, if it is one of ours and neither comes nor goes: its
    /// bridge, or the host end of an endpoint where there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn network_of_device(&self, alias: &str) -> Result<Option<Network>> {
        let Some(ours) = alias.strip_prefix(&format!("portolan:{}:", self.root)) else { return Ok(None) };
        let tx = self.store.read()?;
        let id = match ours.split_once(':') {
            Some(("network", id)) => id.parse().ok(),
            Some(("endpoint", id)) => match id.parse().map(|id| tx.endpoint(id)) {
                Ok(endpoint) => match endpoint? {
                    Some(endpoint) if self.is_settled(&tx, &endpoint)? => Some(endpoint.network),
                    _ => None,
                },
                Err(_) => None,
            },
            _ => None,
        };
        let Some(network) = id.map(|id| tx.network(id)).transpose()?.flatten() else { return Ok(None) };
        let is_it = ours.starts_with("network:") || network.is_routed();
        match Some(network).filter(|_| is_it).filter(|network| network.phase.is_settled()) {
            Some(network) => Ok(self.is_materialised(&tx, &network)?.then_some(network)),
            None => Ok(None),
        }
    }

    /// Whether `address` is leased to an endpoint of `network` that neither comes nor goes.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_leased(&self, network: Id, address: IpAddr) -> Result<bool> {
        let tx = self.store.read()?;
        let Some(holder) = tx.lease(network, address)?.and_then(|lease| lease.endpoint) else { return Ok(false) };
        match tx.endpoint(holder)? {
            Some(endpoint) => self.is_settled(&tx, &endpoint),
            None => Ok(false),
        }
    }

    fn is_settled(&self, tx: &S::Tx<'_>, endpoint: &Endpoint) -> Result<bool> {
        let container = tx.container(endpoint.container)?;
        Ok(endpoint.phase.is_settled() && container.is_some_and(|container| container.phase.is_settled()))
    }

    /// Gives networks whose MTU nobody chose that of the path to the world, as it is now.
    ///
    /// # Errors
    /// When store or kernel cannot be read; what could not be changed is in the answer.
    pub fn follow_path_mtu(&self) -> Result<Repaired> {
        let guard = self.begin()?;
        let mtu =
            self.kernel.path_mtu().map_err(|source| Error::Kernel { doing: "read the path MTU".to_owned(), source })?;
        let tx = self.store.write(&guard)?;
        let mut is_other = false;
        for network in tx.networks()? {
            // What fits through tunnels is told by whoever knows of the way to the other hosts.
            let is_ours = network.is_ruled() && network.overlay.is_none();
            let follows = is_ours && network.options.mtu.is_none() && network.mtu != mtu;
            // IPv6 does not live below its minimum (RFC 8200 §5).
            if follows && (mtu >= Mtu::IPV6_MIN || !network.has(Family::V6)) {
                tx.put_network(&Network { mtu, ..network })?;
                is_other = true;
            }
        }
        if !is_other {
            return Ok(Repaired::default());
        }
        tx.commit(Durability::Disk)?;
        let (steps, failures) = self.reconcile_kernel(&guard)?;
        Ok(Repaired { steps, failures: said(failures), ..Repaired::default() })
    }

    /// Whether there are networks without a bridge, whose subnets are unreachable but for what is there.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn has_routed_networks(&self) -> Result<bool> {
        Ok(self.store.read()?.networks()?.iter().any(|network| network.is_routed()))
    }

    /// Whether anybody is on any network: then there are names to be answered and rules to be kept.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn has_endpoints(&self) -> Result<bool> {
        let tx = self.store.read()?;
        for network in tx.networks()? {
            if tx.endpoint_count(network.id, 1)? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Without the endpoints that come or go.
fn settled(mut view: ContainerView) -> ContainerView {
    view.endpoints.retain(|(endpoint, _)| matches!(endpoint.phase, Phase::Settled));
    view
}
