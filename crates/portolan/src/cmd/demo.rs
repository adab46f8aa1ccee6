//! `portolan demo`

use anyhow::Result;

use crate::context::Context;
use crate::failure::Refused;

/// Build a small network of hosts and containers and show that it works
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        run(context)
    }
}

/// The demonstration.
pub(crate) fn run(_context: &Context) -> Result<i32> {
    Err(Refused::new("this build has no demo").into())
}
