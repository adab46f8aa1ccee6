//! Networks of ours that somebody else has under ids of its own: Docker, to which a network that was there before it, as one
//! of a cluster, cannot be given by ours.
//!
//! Whoever refers to a network does not hold it: it may be gone, and be there again.

use std::collections::BTreeMap;

use portolan_model::Id;

use crate::engine::{Engine, encode, meta};
use crate::error::Result;
use crate::kernel::Kernel;
use crate::store::{Durability, Store, Tx};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Our networks' ids, by what others have for ids of them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn references(&self) -> Result<BTreeMap<String, Id>> {
        self.ensure_readable()?;
        read(&self.store.read()?)
    }

    /// Takes note that others call `network` by the id `theirs`.
    ///
    /// # Errors
    /// When the store cannot be written; nothing has changed then.
    pub fn refer(&self, theirs: &str, network: Id) -> Result<()> {
        self.change_references(|references| references.insert(theirs.to_owned(), network) != Some(network))
    }

    /// Forgets that anything is called so.
    ///
    /// # Errors
    /// When the store cannot be written; nothing has changed then.
    pub fn forget_reference(&self, theirs: &str) -> Result<()> {
        self.change_references(|references| references.remove(theirs).is_some())
    }

    fn change_references(&self, change: impl FnOnce(&mut BTreeMap<String, Id>) -> bool) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let mut references = read(&tx)?;
        if !change(&mut references) {
            return Ok(());
        }
        let text = (!references.is_empty()).then(|| encode(&references));
        tx.put_meta(meta::REFERENCES, text.as_deref())?;
        Ok(tx.commit(Durability::Disk)?)
    }
}

pub(crate) fn read<T: Tx>(tx: &T) -> Result<BTreeMap<String, Id>> {
    Ok(tx.meta(meta::REFERENCES)?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}
