//! `portolan publish …`

use anyhow::Result;
use clap::Subcommand;
use portolan_model::{Publication, PublishSpec};

use crate::cmd::daemon;
use crate::context::Context;
use crate::output::{self, PublicationRow};

/// Publish more ports of a running container, or take some back
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Command {
    Add(AddArgs),
    Rm(RmArgs),
    Ls(LsArgs),
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        match self {
            Self::Add(args) => {
                let changed = context.engine_for("publish add")?.publish(&args.container, &args.specs)?;
                daemon::settle(context, true);
                show(context, &changed)
            }
            Self::Rm(args) => {
                let changed = context.engine_for("publish rm")?.unpublish(&args.container, &args.specs)?;
                daemon::settle(context, false);
                show(context, &changed)
            }
            Self::Ls(args) => show(context, &context.engine()?.container(&args.container)?.publications),
        }
    }
}

/// Publish ports of a running container
///
/// Other connections of the container are not disturbed. All ports are published, or none.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan publish add site 8443:443
  portolan publish add site 127.0.0.1:5300:53/udp 2000-2009:2000-2009")]
pub(crate) struct AddArgs {
    /// The container's name or id
    container: String,
    /// [[HOSTIP:][HOST[-HOST]]:]PORT[-PORT][/tcp|udp|sctp]
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<PublishSpec>,
}

/// Take published ports back
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan publish rm site 8443:443
  portolan publish rm site 80                 wherever port 80 is published")]
pub(crate) struct RmArgs {
    /// The container's name or id
    container: String,
    /// What to take back, written as it was published
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<PublishSpec>,
}

/// List published ports of a container
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// The container's name or id
    container: String,
}

fn show(context: &Context, publications: &[Publication]) -> Result<i32> {
    if context.json {
        output::json(&publications.iter().map(PublicationRow::from).collect::<Vec<_>>())?;
    } else {
        output::print(&publications.iter().map(|publication| format!("{publication}\n")).collect::<String>())?;
    }
    Ok(0)
}
