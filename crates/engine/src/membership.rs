//! What this host knows of the cluster that it is in: a text that the engine keeps and does not read.

use crate::engine::{Engine, meta};
use crate::error::Result;
use crate::kernel::Kernel;
use crate::store::{Durability, Store, Tx};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// What was kept; none if the host is in no cluster.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn cluster_settings(&self) -> Result<Option<String>> {
        Ok(self.store.read()?.meta(meta::CLUSTER)?)
    }

    /// Keeps it, or forgets it.
    ///
    /// # Errors
    /// When the store cannot be written; nothing has changed then.
    pub fn set_cluster_settings(&self, settings: Option<&str>) -> Result<()> {
        let guard = self.store.lock()?;
        self.ensure_store(&guard)?;
        let tx = self.store.write(&guard)?;
        tx.put_meta(meta::CLUSTER, settings)?;
        if settings.is_none() {
            tx.put_meta(meta::CLUSTER_SEEN, None)?;
            tx.put_meta(meta::CLUSTER_HOSTS, None)?;
            tx.put_meta(meta::DRAINED, None)?;
            tx.put_meta(meta::LINK, None)?;
        }
        Ok(tx.commit(Durability::Disk)?)
    }

    /// Keeps what `change` makes of what is kept; false when nothing is, or it makes nothing of it, and nothing has changed then.
    ///
    /// # Errors
    /// When the store cannot be read or written; nothing has changed then.
    pub fn change_cluster_settings(&self, change: impl FnOnce(&str) -> Option<String>) -> Result<bool> {
        let guard = self.store.lock()?;
        let tx = self.store.write(&guard)?;
        let Some(settings) = tx.meta(meta::CLUSTER)?.as_deref().and_then(change) else { return Ok(false) };
        tx.put_meta(meta::CLUSTER, Some(&settings))?;
        tx.commit(Durability::Disk)?;
        Ok(true)
    }

    /// Has this host take no more containers on networks over several hosts, or do so again. Those that are there stay.
    ///
    /// # Errors
    /// When the store cannot be written; nothing has changed then.
    pub fn set_drained(&self, is_drained: bool) -> Result<()> {
        if self.store.read()?.meta(meta::DRAINED)?.is_some() == is_drained {
            return Ok(());
        }
        let guard = self.store.lock()?;
        self.ensure_store(&guard)?;
        let tx = self.store.write(&guard)?;
        tx.put_meta(meta::DRAINED, is_drained.then_some("yes"))?;
        Ok(tx.commit(Durability::Disk)?)
    }

    /// The hosts that the encrypted link was last told of, as the caller wrote them; none if it is not needed.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn cluster_hosts(&self) -> Result<Option<String>> {
        Ok(self.store.read()?.meta(meta::CLUSTER_HOSTS)?)
    }

    /// Keeps them, or forgets them.
    ///
    /// # Errors
    /// When the store cannot be written; nothing has changed then.
    pub fn set_cluster_hosts(&self, hosts: Option<&str>) -> Result<()> {
        let guard = self.store.lock()?;
        self.ensure_store(&guard)?;
        let tx = self.store.write(&guard)?;
        tx.put_meta(meta::CLUSTER_HOSTS, hosts)?;
        Ok(tx.commit(Durability::Disk)?)
    }
}
