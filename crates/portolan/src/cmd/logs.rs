//! `portolan logs`

use std::fs::File;
use std::io;

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::failure::Refused;
use crate::runtime;

/// Print what a container that was started with `run -d` has written so far
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The container's name or id
    container: String,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let info = context.engine()?.container(&self.container)?;
        let path = runtime::dir(&context.run, info.container.id).join("log");
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Refused::new(format!("container `{}` has no log", info.container.name))
                    .hint("only what `portolan run -d` starts has one")
                    .into());
            }
            Err(error) => return Err(error).with_context(|| format!("open `{}`", path.display())),
        };
        match io::copy(&mut file, &mut io::stdout().lock()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
            result => result.map(|_| 0).with_context(|| format!("copy `{}` to standard output", path.display())),
        }
    }
}
