//! Following the rows: what a process that stays needs to know of what others did.

use std::collections::BTreeMap;

use portolan_model::Phase;
use portolan_plan::ContainerView;

use crate::api::{Change, Followed};
use crate::engine::Engine;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::store::{Store, Touched, Tx};

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
                (tx.revision()?, networks.chain(tx.container_ids()?.into_iter().map(Touched::Container)).collect())
            }
        };
        let mut networks = BTreeMap::new();
        for what in touched {
            show(match what {
                Touched::Network(id) => Change::Network(id, tx.network(id)?.filter(|row| row.phase.is_settled())),
                Touched::Container(id) => {
                    let view = match tx.container(id)?.filter(|row| row.phase.is_settled()) {
                        Some(container) => Some(settled(self.view_among(&tx, container, &mut networks)?)),
                        None => None,
                    };
                    Change::Container(id, view)
                }
            });
        }
        Ok(Followed { revision, is_everything })
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
