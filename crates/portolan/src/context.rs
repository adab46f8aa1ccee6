//! Where things are, and the engine over them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use portolan_kernel::probe;
use portolan_model::FirewallDriver;
use portolan_resident::cluster::AtDaemon;
use portolan_resident::daemon;

use crate::cli::DEFAULT_ROOT;
use crate::failure::Refused;

pub(crate) use portolan_resident::daemon::Engine;

/// What all commands share.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where state is.
    pub(crate) root: PathBuf,
    /// Where run-time files are.
    pub(crate) run: PathBuf,
    /// Print JSON.
    pub(crate) json: bool,
    /// Who is to carry out the rules; none for the usual one.
    pub(crate) firewall: Option<FirewallDriver>,
    /// How long to wait for another command that holds the state.
    pub(crate) wait: Duration,
    /// The command's name.
    pub(crate) command: String,
    /// When this command began.
    pub(crate) started: Instant,
}

impl Context {
    pub(crate) fn new(
        command: impl Into<String>,
        root: Option<PathBuf>,
        json: bool,
        firewall: Option<FirewallDriver>,
    ) -> Self {
        let root = root.filter(|root| !root.as_os_str().is_empty()).unwrap_or_else(|| DEFAULT_ROOT.into());
        let root = std::path::absolute(&root).unwrap_or(root);
        let run = if root == Path::new(DEFAULT_ROOT) { "/run/portolan".into() } else { root.join("run") };
        Self {
            root,
            run,
            json,
            firewall,
            wait: wait_of_environment(),
            command: command.into(),
            started: Instant::now(),
        }
    }

    /// Waits so many seconds, if that is said.
    #[must_use]
    pub(crate) fn waiting(mut self, seconds: Option<u64>) -> Self {
        self.wait = seconds.map_or(self.wait, Duration::from_secs);
        self
    }

    /// Opens the state and puts the engine over it.
    pub(crate) fn engine(&self) -> Result<Engine> {
        let engine = daemon::engine_within(&self.root, self.wait)?.with_firewall(self.firewall);
        let engine = engine.with_cluster(Box::new(AtDaemon::new(self.run.clone())));
        engine.kernel().leave_waits_to_a_copy();
        Ok(engine)
    }

    /// The engine, for a verb that changes the kernel.
    ///
    /// # Errors
    /// Before anything is touched, when this process may not.
    pub(crate) fn engine_for(&self, verb: &str) -> Result<Engine> {
        Self::require_privileges(verb)?;
        self.engine()
    }

    /// Refuses early what the kernel would refuse half-way.
    pub(crate) fn require_privileges(verb: &str) -> Result<()> {
        let may = probe::privileges();
        let missing = match (may.net_admin, may.sys_admin) {
            (true, true) => return Ok(()),
            (false, true) => "CAP_NET_ADMIN",
            (true, false) => "CAP_SYS_ADMIN",
            (false, false) => "CAP_NET_ADMIN and CAP_SYS_ADMIN",
        };
        Err(Refused::new(format!("`portolan {verb}` needs {missing}, which this process lacks"))
            .hint("run it as root, for example with sudo")
            .into())
    }
}

/// What a person or service set for all commands, those that others call included: they have no flags of ours.
fn wait_of_environment() -> Duration {
    let said = std::env::var("PORTOLAN_WAIT").ok().and_then(|text| text.parse().ok());
    said.map_or(portolan_store::PATIENCE, Duration::from_secs)
}
