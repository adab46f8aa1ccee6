//! `portolan update`

use anyhow::Result;
use portolan_model::{HealthState, Invalid};

use crate::cmd::daemon;
use crate::cmd::endpoint::BandwidthArgs;
use crate::context::Context;
use crate::failure::Refused;
use crate::output::{self, BandwidthRow};

/// Change the limits of a running container, while its connections go on; or say how it is
///
/// What is not given stays as it is. When this returns, the limits are in force; if anything fails, nothing has changed.
/// Rates count whole frames, as they are on the wire: of 100mbit, TCP has some 95.5 for its data.
///
/// With --health, names that a container has in common with others are answered by those who are healthy, on all hosts that have
/// the network. It is for containers without a --health-cmd of `portolan run`: those of Podman, Docker or CNI, and namespaces.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan update site --bandwidth-out 100mbit
  portolan update site --network web --bandwidth-in 1gbit --bandwidth-burst 1mb
  portolan update site --bandwidth-in 0 --bandwidth-out 0       no limit any more
  portolan update site --health unhealthy       answer its shared names by others for now
  portolan update site --health none            as if nobody had said anything")]
pub(crate) struct Args {
    /// The container's name or id
    container: String,
    /// Only on this network (default: on each of the container's)
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Option<String>,
    #[command(flatten)]
    bandwidth: BandwidthArgs,
    /// How it is: healthy, unhealthy, starting; or none, when nobody is to say
    #[arg(long, value_name = "STATE", value_parser = health, conflicts_with_all = ["network", "bandwidth_in", "bandwidth_out", "bandwidth_burst"])]
    health: Option<Said>,
}

/// What somebody says of a container's health.
#[derive(Debug, Clone, Copy)]
struct Said(Option<HealthState>);

fn health(text: &str) -> Result<Said, Invalid> {
    if text == "none" { Ok(Said(None)) } else { Ok(Said(Some(text.parse()?))) }
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        if let Some(Said(state)) = self.health {
            return self.say(context, state);
        }
        let change = self.bandwidth.change()?;
        if change.into.is_none() && change.out.is_none() {
            return Err(Refused::new(format!("nothing to change of `{}`", self.container))
                .hint("give --bandwidth-in, --bandwidth-out or both, or --health")
                .into());
        }
        let engine = context.engine_for("update")?;
        let info = engine.set_bandwidth(&self.container, self.network.as_deref(), change)?;
        let rows: Vec<BandwidthRow> = info.endpoints.iter().map(BandwidthRow::from).collect();
        if context.json {
            output::json(&rows)?;
        } else {
            output::print(&rows.iter().map(|row| format!("{row}\n")).collect::<String>())?;
        }
        Ok(0)
    }

    fn say(&self, context: &Context, state: Option<HealthState>) -> Result<i32> {
        let changed = context.engine_for("update")?.set_health(&self.container, state)?;
        daemon::settle(context, false);
        let word = state.map_or_else(|| "none".to_owned(), |state| state.to_string());
        if context.json {
            let rows = changed.iter().map(|container| serde_json::json!({"Name": container.called(), "Health": word}));
            output::json(&rows.collect::<Vec<_>>())?;
        } else {
            let rows = changed.iter().map(|container| format!("{} {word}\n", container.called()));
            output::print(&rows.collect::<String>())?;
        }
        Ok(0)
    }
}
