//! `portolan update`

use anyhow::Result;

use crate::cmd::endpoint::BandwidthArgs;
use crate::context::Context;
use crate::failure::Refused;
use crate::output::{self, BandwidthRow};

/// Change the limits of a running container, while its connections go on
///
/// What is not given stays as it is. When this returns, the limits are in force; if anything fails, nothing has changed.
/// Rates count whole frames, as they are on the wire: of 100mbit, TCP has some 95.5 for its data.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan update site --bandwidth-out 100mbit
  portolan update site --network web --bandwidth-in 1gbit --bandwidth-burst 1mb
  portolan update site --bandwidth-in 0 --bandwidth-out 0       no limit any more")]
pub(crate) struct Args {
    /// The container's name or id
    container: String,
    /// Only on this network (default: on each of the container's)
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Option<String>,
    #[command(flatten)]
    bandwidth: BandwidthArgs,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let change = self.bandwidth.change()?;
        if change.into.is_none() && change.out.is_none() {
            return Err(Refused::new(format!("nothing to change of `{}`", self.container))
                .hint("give --bandwidth-in, --bandwidth-out or both")
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
}
