//! `portolan wireguard-worker`, which the daemon starts.

use anyhow::Result;
use portolan_wireguard::worker::{self, Options};

/// Carry the packets of the encrypted link between hosts
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to carry, as the daemon says it
    options: String,
}

impl Args {
    pub(crate) fn run(self) -> Result<i32> {
        worker::run(&Options::from_argument(&self.options)?)?;
        Ok(0)
    }
}
