//! `portolan version`

use anyhow::Result;

use crate::context::Context;
use crate::output::{self, Version};

/// Print the version
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let version = Version {
            version: env!("CARGO_PKG_VERSION"),
            kernel,
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
        };
        if context.json {
            output::json(&version)?;
        } else {
            output::print(&format!("portolan {} (Linux {}, {})\n", version.version, version.kernel, version.arch))?;
        }
        Ok(0)
    }
}
