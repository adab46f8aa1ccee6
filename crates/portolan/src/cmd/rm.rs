//! `portolan rm`

use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_engine::Error;
use portolan_kernel::process::PidFd;
use portolan_kernel::signals;
use portolan_model::{Container, ContainerKind, ProcessId};

use crate::cmd::{daemon, each, list};
use crate::context::{Context, Engine};
use crate::failure::Refused;
use crate::output::{self, Named};
use crate::runtime;

/// How long a killed process has to be gone. One that waits for hardware can take longer than any patience.
const PATIENCE: Duration = Duration::from_secs(10);

/// Remove containers that do not run, with their logs
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "remove",
    after_help = "\
Examples:
  portolan rm site
  portolan rm -f site db"
)]
pub(crate) struct Args {
    /// Names, ids or unique starts of ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Kill those that run; say nothing of those that do not exist
    #[arg(short, long)]
    force: bool,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("rm")?;
        let (removed, code) = each(&self.containers, |name| {
            let removed = remove(context, &engine, name, self.force)?;
            if let Some(container) = &removed {
                runtime::remove(&context.run, container.id);
            }
            Ok(removed.map(|container| (name.to_owned(), container)))
        });
        daemon::settle(context, false);
        let removed: Vec<(String, Container)> = removed.into_iter().flatten().collect();
        if context.json {
            list(&removed.iter().map(|(_, container)| Named::from(container)).collect::<Vec<_>>(), code)?;
        } else {
            output::print(&removed.iter().map(|(name, _)| format!("{name}\n")).collect::<String>())?;
        }
        Ok(code)
    }
}

fn remove(context: &Context, engine: &Engine, name: &str, force: bool) -> Result<Option<Container>> {
    let info = match engine.container(name) {
        Ok(info) => info,
        Err(Error::NotFound { .. }) if force => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if force {
        daemon::release(context, &info, None);
    }
    let container = info.container;
    let id = container.id.to_string();
    if container.kind != ContainerKind::Run {
        if info.alive && !force {
            return Err(Refused::new(format!(
                "container `{}` is a namespace that somebody else made, and is there",
                container.name
            ))
            .hint(format!("take it off its networks: portolan detach {}", container.name))
            .into());
        }
        return Ok(Some(engine.detach(&id)?));
    }
    if force && let Some(process) = container.process {
        kill(process).with_context(|| format!("kill container `{}`", container.name))?;
    }
    let supervisor = container.supervisor.and_then(open);
    match engine.remove_container(&id) {
        Ok(_) | Err(Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(supervisor) = supervisor {
        // It has nothing left to do; nobody should find it afterwards all the same.
        let _ = supervisor.wait_readable(PATIENCE);
    }
    Ok(Some(container))
}

/// A handle on this very process, if it is there.
fn open(process: ProcessId) -> Option<PidFd> {
    let handle = PidFd::open(process.pid).ok()?;
    // Read after opening: the number cannot be given to another process while we hold the handle of a living one.
    portolan_kernel::process::pid_start_time(process.pid)
        .is_ok_and(|started| started == process.started)
        .then_some(handle)
}

fn kill(process: ProcessId) -> Result<()> {
    let Some(handle) = open(process) else { return Ok(()) };
    if handle.signal(signals::KILL).is_err() {
        return Ok(());
    }
    if !handle.wait_readable(PATIENCE)? {
        return Err(Refused::new(format!("process {} is still there after {} s", process.pid, PATIENCE.as_secs()))
            .hint("it waits for something in the kernel; try again later")
            .into());
    }
    Ok(())
}
