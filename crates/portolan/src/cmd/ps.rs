//! `portolan ps`

use anyhow::Result;
use portolan_engine::ContainerInfo;

use crate::cmd::network::{Filters, id};
use crate::context::Context;
use crate::output::{self, ContainerRow};
use crate::{clock, spec, table};

/// List containers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan ps
  portolan ps -a --filter network=web
  portolan rm -f $(portolan ps -q)

Filters: name=PART, id=START, network=NAME, label=NAME[=VALUE],
status=created|running|exited|dead, health=starting|healthy|unhealthy|none. Several of one kind are
alternatives; different kinds must all hold.")]
pub(crate) struct Args {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Only containers for which this holds
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = spec::filter)]
    filter: Vec<(String, String)>,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let filters = Filters::new(&self.filter, &["name", "id", "network", "label", "status", "health"])?;
        let all = self.all || self.filter.iter().any(|(key, _)| key == "status");
        let mut containers = context.engine()?.containers()?;
        containers.retain(|info| (all || output::state(info) == "running") && is_wanted(info, &filters));
        // Newest first, as Docker lists them.
        containers.reverse();
        if self.quiet {
            let ids: String =
                containers.iter().map(|info| format!("{}\n", id(info.container.id, self.no_trunc))).collect();
            output::print(&ids)?;
        } else if context.json {
            output::json(&containers.iter().map(ContainerRow::from).collect::<Vec<_>>())?;
        } else {
            let rows: Vec<Vec<String>> = containers.iter().map(|info| self.row(info)).collect();
            output::print(&table::render(
                &["CONTAINER ID", "COMMAND", "CREATED", "STATUS", "PORTS", "NETWORKS", "NAMES"],
                &rows,
            ))?;
        }
        Ok(0)
    }

    fn row(&self, info: &ContainerInfo) -> Vec<String> {
        let container = &info.container;
        vec![
            id(container.id, self.no_trunc),
            format!("\"{}\"", self.command(&container.command)),
            format!("{} ago", clock::since(container.created)),
            output::status(info),
            output::ports_in_short(info).join(", "),
            output::networks(info).join(","),
            container.called().to_owned(),
        ]
    }

    fn command(&self, command: &[String]) -> String {
        let text: String = command.join(" ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if self.no_trunc || text.chars().count() <= 20 { text } else { text.chars().take(19).chain(['…']).collect() }
    }
}

fn is_wanted(info: &ContainerInfo, filters: &Filters<'_>) -> bool {
    let container = &info.container;
    filters.any("name", |name| container.called().contains(name) || container.name.as_str().contains(name))
        && filters.any("id", |start| container.id.to_string().starts_with(start))
        && filters.any("network", |network| output::networks(info).iter().any(|name| name == network))
        && filters.any("status", |status| output::state(info) == status)
        && filters.any("health", |health| output::health::word(container) == health)
        && filters.labels(&container.labels)
}
