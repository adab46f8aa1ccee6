//! Whether packets of the encrypted link between hosts are tracked as connections.
//!
//! They need not be, and it takes time, but a firewall of the host's own may let in only what answers. Whether there is one is
//! looked up by who keeps the link and who repairs, and written down: verbs look at no rules of others, and rows say what the
//! kernel holds.

use std::collections::BTreeSet;

use portolan_plan::diff;
use serde::{Deserialize, Serialize};

use crate::api::Repaired;
use crate::engine::{Engine, decode, encode, meta};
use crate::error::Result;
use crate::kernel::Kernel;
use crate::store::{Durability, Store, Tx};

/// What is written down of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Link {
    /// The UDP ports that this host takes its packets at.
    ports: BTreeSet<u16>,
    /// The boot in which the host was last seen without a firewall of its own, unless it was last seen with one: the next boot may
    /// have one before anybody looks.
    open: Option<String>,
}

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Takes note of the UDP ports that this host takes packets of the encrypted link at, none where there is no link, and of whether
    /// the host has a firewall of its own. Takes the lock only if either is something else than before.
    ///
    /// # Errors
    /// When the store cannot serve; what the kernel refused is in the answer.
    pub fn set_link_ports(&self, ports: &BTreeSet<u16>) -> Result<Repaired> {
        self.follow_link(Some(ports))
    }

    /// Takes note of whether the host has a firewall of its own, as [`Engine::set_link_ports`] does.
    ///
    /// # Errors
    /// As there.
    pub fn look_for_firewall(&self) -> Result<Repaired> {
        self.follow_link(None)
    }

    fn follow_link(&self, ports: Option<&BTreeSet<u16>>) -> Result<Repaired> {
        let known = decode(self.store.read()?.meta(meta::LINK)?);
        if self.link_now(&known, ports)? == known {
            return Ok(Repaired::default());
        }
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let before = self.base(&tx)?;
        self.look_at_link(&tx, ports)?;
        let steps = diff(&self.base(&tx)?, &before);
        let table = self.table(&tx)?;
        let failures = self.in_doubt(&guard, || {
            tx.commit(Durability::Process)?;
            Ok(self.kernel.repair(&table, &steps))
        })?;
        Ok(Repaired { steps, failures, ..Repaired::default() })
    }

    /// Has rows say what is to become of the link's packets, with other `ports` if there are any.
    pub(crate) fn look_at_link(&self, tx: &S::Tx<'_>, ports: Option<&BTreeSet<u16>>) -> Result<()> {
        let known = decode(tx.meta(meta::LINK)?);
        let now = self.link_now(&known, ports)?;
        if now != known {
            let text = Some(encode(&now)).filter(|_| now != Link::default());
            tx.put_meta(meta::LINK, text.as_deref())?;
        }
        Ok(())
    }

    fn link_now(&self, known: &Link, ports: Option<&BTreeSet<u16>>) -> Result<Link> {
        let ports = ports.unwrap_or(&known.ports).clone();
        let is_open = !ports.is_empty() && !self.kernel.has_other_firewall();
        Ok(Link { ports, open: is_open.then(|| self.boot()).transpose()? })
    }

    /// The ports of the link whose packets are not tracked.
    pub(crate) fn untracked_ports(&self, tx: &S::Tx<'_>) -> Result<BTreeSet<u16>> {
        let Link { ports, open } = decode(tx.meta(meta::LINK)?);
        match open {
            Some(boot) if boot == self.boot()? => Ok(ports),
            _ => Ok(BTreeSet::new()),
        }
    }
}
