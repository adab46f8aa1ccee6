//! `portolan exec`

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use portolan_engine::{Error, Kernel as _};
use portolan_kernel::netns::NetnsFd;
use portolan_kernel::process::{JoinTarget, SandboxChild, SpawnSpec};
use portolan_kernel::signals::{FORWARDED, Signals};
use portolan_model::{ContainerKind, NetworkMode};

use crate::cmd::run::{environment, stand_for, status_code};
use crate::context::{Context, Engine};
use crate::spec;

/// Run a command in a running container
///
/// It sees the container's network, hosts file, resolver and host name, and ends with the command's exit status: 126 if
/// it cannot be executed, 127 if it is not found, 128 and the signal's number if it was killed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan exec site -- ip addr
  portolan exec site -- sh")]
pub(crate) struct Args {
    /// Set an environment variable; NAME alone passes ours on
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = spec::environment)]
    env: Vec<(String, Option<String>)>,
    /// Directory to run in (default: this one)
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// The container's name or id
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("exec")?;
        let info = engine.container(&self.container)?;
        if !info.alive {
            return Err(Error::NotRunning { container: info.container.name.to_string() }.into());
        }
        let join = inside(&engine, &info.container)?;
        let no_netfilter = info.container.no_netfilter;
        drop(engine);
        // Joining a mount namespace leads to its root directory; in one that we made, ours is there too.
        let here = if info.container.kind == ContainerKind::Run { std::env::current_dir().ok() } else { None };
        let workdir = self.workdir.or(here).unwrap_or_else(|| "/".into());
        let signals = Signals::take(FORWARDED).context("take signals")?;
        let mut child = SandboxChild::spawn(&SpawnSpec {
            argv: self.command,
            env: environment(self.env),
            workdir: Some(workdir),
            die_with_parent: true,
            join: Some(join),
            no_netfilter,
            ..SpawnSpec::default()
        })?;
        child.release()?;
        Ok(status_code(stand_for(&mut child, &signals)?))
    }
}

/// The namespaces of a container: those of its process or, for one that we only know the network of, that.
fn inside(engine: &Engine, container: &portolan_model::Container) -> Result<JoinTarget> {
    let process = container.process.filter(|process| engine.kernel().process_alive(*process));
    if let Some(process) = process {
        let join = JoinTarget::of_pid(process.pid)?;
        if engine.kernel().process_alive(process) {
            return Ok(join);
        }
    }
    match (&container.mode, &container.sandbox) {
        (NetworkMode::Own | NetworkMode::None, Some(sandbox)) => Ok(JoinTarget::netns(NetnsFd::open(&sandbox.path)?)),
        _ => Err(Error::NotRunning { container: container.name.to_string() }.into()),
    }
}
