//! `portolan man`, for packagers

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::output;

/// Write man pages of all commands into a directory, or print the first one
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory; made if it is not there
    dir: Option<PathBuf>,
}

impl Args {
    pub(crate) fn run(self) -> Result<i32> {
        let Some(dir) = self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).context("render the page")?;
            output::print(&String::from_utf8_lossy(&page))?;
            return Ok(0);
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("create directory `{}`", dir.display()))?;
        clap_mangen::generate_to(Cli::command(), &dir)
            .with_context(|| format!("write pages into `{}`", dir.display()))?;
        Ok(0)
    }
}
