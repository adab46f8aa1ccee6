//! `portolan port`

use std::collections::BTreeMap;

use anyhow::Result;
use portolan_model::ExposedPort;

use crate::context::Context;
use crate::failure::Refused;
use crate::output;

/// List where a container's ports are published
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan port site             80/tcp -> 0.0.0.0:8080
  portolan port site 80          0.0.0.0:8080
  portolan port site 53/udp")]
pub(crate) struct Args {
    /// The container's name or id; of one of Docker's, that of Docker
    container: String,
    /// Only this port of the container: PORT[/tcp|udp|sctp]
    port: Option<ExposedPort>,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let places = context.engine()?.places(&self.container)?;
        if context.json && self.port.is_none() {
            let mut ports: BTreeMap<_, _> = places.iter().flat_map(output::ports).collect();
            // What one place publishes, another declares.
            ports.extend(places.iter().flat_map(output::ports).filter(|(_, bindings)| bindings.is_some()));
            output::json(&ports)?;
            return Ok(0);
        }
        let mut lines: Vec<_> = places.iter().flat_map(output::port_lines).collect();
        let Some(port) = self.port else {
            output::print(
                &lines.iter().map(|line| format!("{} -> {}\n", line.container, line.host())).collect::<String>(),
            )?;
            return Ok(0);
        };
        let wanted: Vec<String> = port.ports.ports().map(|number| format!("{number}/{}", port.protocol)).collect();
        lines.retain(|line| wanted.contains(&line.container));
        if lines.is_empty() {
            let name = places.first().map_or(self.container.as_str(), |info| info.container.name.as_str());
            return Err(Refused::new(format!("no public port `{port}` published for `{}`", self.container))
                .hint(format!("publish it: portolan publish add {name} {port}"))
                .into());
        }
        if context.json {
            output::json(&lines.iter().map(output::PortLine::host).collect::<Vec<_>>())?;
        } else {
            output::print(&lines.iter().map(|line| format!("{}\n", line.host())).collect::<String>())?;
        }
        Ok(0)
    }
}
