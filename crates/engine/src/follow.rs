//! Following the rows: what a process that stays needs to know of what others did.

use portolan_model::Phase;
use portolan_plan::ContainerView;

use crate::api::Changes;
use crate::engine::Engine;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::store::{Store, Touched, Tx};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// What the commits after `since` changed; everything there is without it, or when the log of changes does not
    /// reach back so far.
    ///
    /// Rows that are being made or removed count as not there.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn changes(&self, since: Option<u64>) -> Result<Changes> {
        let tx = self.store.read()?;
        let Some((revision, touched)) = since.map(|since| tx.touched_since(since)).transpose()?.flatten() else {
            let mut all = Changes { revision: tx.revision()?, everything: true, ..Changes::default() };
            for network in tx.networks()? {
                all.networks.push((network.id, network.phase.is_settled().then_some(network)));
            }
            for container in tx.containers()? {
                let id = container.id;
                let view = if container.phase.is_settled() { Some(self.view(&tx, container)?) } else { None };
                all.containers.push((id, view.map(settled)));
            }
            return Ok(all);
        };
        let mut changes = Changes { revision, ..Changes::default() };
        for what in touched {
            match what {
                Touched::Network(id) => {
                    changes.networks.push((id, tx.network(id)?.filter(|network| network.phase.is_settled())));
                }
                Touched::Container(id) => {
                    let view = match tx.container(id)?.filter(|container| container.phase.is_settled()) {
                        Some(container) => Some(settled(self.view(&tx, container)?)),
                        None => None,
                    };
                    changes.containers.push((id, view));
                }
            }
        }
        Ok(changes)
    }

    /// The number of the last commit that changed a network or a container.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn revision(&self) -> Result<u64> {
        Ok(self.store.read()?.revision()?)
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
