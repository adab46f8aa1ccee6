//! `portolan port`

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
    /// The container's name or id
    container: String,
    /// Only this port of the container: PORT[/tcp|udp|sctp]
    port: Option<ExposedPort>,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let info = context.engine()?.container(&self.container)?;
        if context.json && self.port.is_none() {
            output::json(&output::ports(&info))?;
            return Ok(0);
        }
        let mut lines = output::port_lines(&info);
        let Some(port) = self.port else {
            output::print(
                &lines.iter().map(|line| format!("{} -> {}\n", line.container, line.host())).collect::<String>(),
            )?;
            return Ok(0);
        };
        let wanted: Vec<String> = port.ports.ports().map(|number| format!("{number}/{}", port.protocol)).collect();
        lines.retain(|line| wanted.contains(&line.container));
        if lines.is_empty() {
            return Err(Refused::new(format!("no public port `{port}` published for `{}`", info.container.name))
                .hint(format!("publish it: portolan publish add {} {port}", info.container.name))
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
