//! `portolan verify`, `reconcile` and `gc`

use anyhow::Result;
use portolan_engine::{Error, Repaired};
use portolan_resident::firewall;

use crate::cmd::daemon;
use crate::context::{Context, Engine};
use crate::failure::{self, Refused};
use crate::output::{self, Difference, RepairReport};
use crate::runtime;

/// Compare the kernel with the state and print every difference
///
/// Exits with 0 if there is none, with 1 otherwise. Nothing is changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  portolan verify || portolan reconcile")]
pub(crate) struct VerifyArgs {}

impl VerifyArgs {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("verify")?;
        let differences: Vec<Difference> = engine.verify()?.iter().map(Difference::from).collect();
        if context.json {
            output::json(&differences)?;
        } else {
            output::print(
                &differences.iter().map(|difference| format!("{}\n", difference.line())).collect::<String>(),
            )?;
            // A host of which nothing is missing is not looked through for them.
            if !differences.is_empty() {
                tell_of_the_dead(&engine)?;
            }
        }
        Ok(i32::from(!differences.is_empty()))
    }
}

/// Make the kernel hold what the state says
///
/// Missing links, addresses, routes and rules are put back, changed ones are corrected, and those of ours that nothing
/// claims are removed. What is not ours is left alone. Containers whose namespace is gone are named: `portolan gc` takes
/// them down.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan reconcile
  portolan reconcile --follow        for a service that runs beside firewalld")]
pub(crate) struct ReconcileArgs {
    /// Stay, and do it again whenever firewalld reloads or starts
    #[arg(long)]
    follow: bool,
}

impl ReconcileArgs {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("reconcile")?;
        let repaired = firewall::reload(&engine)?;
        daemon::settle(context, engine.has_endpoints()?);
        let status = show(context, &repaired, 0)?;
        tell_of_the_dead(&engine)?;
        if !self.follow {
            return Ok(status);
        }
        firewall::follow(&engine, |result| {
            let shown = result.and_then(|repaired| show(context, &repaired, 0));
            if let Err(error) = shown {
                failure::report(&error, 1);
            }
        })?;
        Err(Refused::new("there is no system bus on which firewalld could be heard")
            .hint("`--follow` is of use beside firewalld only")
            .into())
    }
}

/// Clean up after containers that are gone and commands that were killed
///
/// Takes down containers whose namespace is gone, with their addresses and ports, and whatever a killed command left
/// half-made; then makes the kernel hold what the state says.
#[derive(Debug, clap::Args)]
pub(crate) struct GcArgs {}

impl GcArgs {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("gc")?;
        let repaired = engine.gc()?;
        let directories = runtime::collect(&context.run, |id| match engine.container(&id.to_string()) {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        })?;
        daemon::settle(context, engine.has_endpoints()?);
        show(context, &repaired, directories)
    }
}

/// Says for whom nothing can be put back.
fn tell_of_the_dead(engine: &Engine) -> Result<()> {
    let dead = engine.dead()?;
    if !dead.is_empty() {
        let names = dead.iter().map(|container| format!("`{}`", container.name)).collect::<Vec<_>>().join(", ");
        failure::print(&format!("their namespace is gone: {names}"), Some("`portolan gc` takes them down"));
    }
    Ok(())
}

fn show(context: &Context, repaired: &Repaired, directories: usize) -> Result<i32> {
    if context.json {
        output::json(&RepairReport::new(repaired, directories))?;
    } else {
        let mut text: String = repaired.containers.iter().map(|name| format!("took down container {name}\n")).collect();
        if repaired.rows > 0 {
            text.push_str(&format!("took down {} half-made or half-removed\n", repaired.rows));
        }
        text.extend(repaired.steps.iter().map(|step| format!("{step}\n")));
        if directories > 0 {
            text.push_str(&format!("removed {directories} left-over run-time directories\n"));
        }
        output::print(&text)?;
        for failed in &repaired.failures {
            failure::print(failed, None);
        }
    }
    Ok(i32::from(!repaired.failures.is_empty()))
}
