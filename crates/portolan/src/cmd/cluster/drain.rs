//! `portolan cluster drain` and `undrain`

use anyhow::Result;
use portolan_model::Id;
use portolan_resident::cluster::{Came, HostRow, Sharing, Standing};
use portolan_resident::control::{Answer, Client, Request};

use super::standing;
use crate::context::Context;
use crate::failure::Refused;
use crate::output;

/// So many digits of an id at least say whose it is.
const SHORTEST: usize = 4;

/// Have hosts take no more containers on networks of the cluster
///
/// As before work on a host: whoever starts containers goes to others, and what the host does not use of the addresses that it gives
/// out goes back at once. Containers that run go on, with their names and published ports, until somebody stops them; networks that
/// are the host's alone are as before. It stays so over restarts, and also of a host that is down, until `portolan cluster undrain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan cluster drain
  portolan cluster drain node-7 && portolan cluster nodes")]
pub(crate) struct DrainArgs {
    /// Names or ids of hosts (default: this one)
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
}

/// Have hosts take containers on networks of the cluster again
///
/// Ends what `portolan cluster drain` began.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan cluster undrain
  portolan cluster nodes --json | jq -r '.[] | select(.drained) | .name' | xargs portolan cluster undrain")]
pub(crate) struct UndrainArgs {
    /// Names or ids of hosts (default: this one)
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
}

impl DrainArgs {
    pub(super) fn run(self, context: &Context) -> Result<i32> {
        drain(context, &self.hosts, true)
    }
}

impl UndrainArgs {
    pub(super) fn run(self, context: &Context) -> Result<i32> {
        drain(context, &self.hosts, false)
    }
}

fn drain(context: &Context, hosts: &[String], is_drained: bool) -> Result<i32> {
    let standing = standing(context)?;
    let here = [standing.host];
    let all: Vec<Id> = match hosts {
        [] => here.to_vec(),
        named => named.iter().map(|host| find(&standing, host)).collect::<Result<_>>()?,
    };
    let Some(mut client) = Client::connect(&context.run)? else { anyhow::bail!("the daemon has left") };
    for host in &all {
        match client.ask(&Request::Share { what: Box::new(Sharing::Drain { host: *host, is_drained }) })? {
            Some(Answer::Shared { came: Came::Drained { .. } }) => {}
            Some(Answer::Refused { reason, hint }) => {
                let refused = Refused::new(reason);
                return Err(hint.into_iter().fold(refused, Refused::hint).into());
            }
            other => anyhow::bail!("the daemon answered something else: {other:?}"),
        }
        let named = standing.hosts.iter().find(|row| row.id == *host).map(|row| &row.name);
        // Of the others a daemon that has just begun knows nothing yet.
        let name = named.or_else(|| (*host == standing.host).then_some(&standing.name));
        if !context.json {
            output::print(&format!("{}\n", name.map_or_else(|| host.short(), ToString::to_string)))?;
        }
    }
    if context.json {
        let done = if is_drained { "drained" } else { "undrained" };
        output::json(&serde_json::json!({ done: all }))?;
    }
    Ok(0)
}

/// The host that is called so, or whose id begins so.
fn find(standing: &Standing, which: &str) -> Result<Id> {
    let is_it = |row: &&HostRow| {
        row.name.as_str() == which || (which.len() >= SHORTEST && row.id.to_string().starts_with(which))
    };
    if standing.name.as_str() == which {
        return Ok(standing.host);
    }
    let mut found = standing.hosts.iter().filter(is_it);
    match (found.next(), found.next()) {
        (Some(row), None) => Ok(row.id),
        (None, _) if !standing.connected => Err(Refused::new(format!(
            "it is not known which host `{which}` is: {}",
            standing.warnings.first().map_or("etcd is not reached yet", String::as_str)
        ))
        .hint("`portolan cluster status` shows how this host stands")
        .into()),
        (None, _) => Err(Refused::new(format!("no host of the cluster is called `{which}`"))
            .hint("`portolan cluster nodes` lists them")
            .into()),
        (Some(_), Some(_)) => Err(Refused::new(format!("`{which}` is several hosts"))
            .hint("give the name of one, or more of its id")
            .into()),
    }
}
