//! `portolan stats` and `portolan events`

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Result, bail};
use portolan_resident::control::{Answer, Client, Request};
use portolan_resident::stats::EndpointStats;

use crate::cmd::daemon;
use crate::context::Context;
use crate::{output, table};

/// Show what containers send and receive
///
/// By container and network, since it is there: bytes, packets, drops at its port, connections that the kernel tracks now,
/// and questions about names. On a terminal the table is renewed every second.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan stats
  portolan stats --no-stream site db
  curl --unix-socket /run/portolan/metrics.sock http://localhost/metrics     the same and more, for Prometheus")]
pub(crate) struct Args {
    /// Names of containers (default: all)
    containers: Vec<String>,
    /// Show it once
    #[arg(long)]
    no_stream: bool,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let mut client = daemon::client(context)?;
        let streams = !self.no_stream && !context.json && std::io::stdout().is_terminal();
        loop {
            let mut endpoints = ask(&mut client)?;
            endpoints.retain(|endpoint| self.containers.is_empty() || self.containers.contains(&endpoint.container));
            if context.json {
                output::json(&endpoints)?;
                return Ok(0);
            }
            let table = render(&endpoints);
            if !streams {
                output::print(&table)?;
                return Ok(0);
            }
            // Home, the table, and nothing below it.
            let mut out = std::io::stdout().lock();
            write!(out, "\x1b[H\x1b[2J{table}")?;
            out.flush()?;
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

fn ask(client: &mut Client) -> Result<Vec<EndpointStats>> {
    match client.ask(&Request::Stats {})? {
        Some(Answer::Stats { endpoints }) => Ok(endpoints),
        Some(Answer::Refused { reason, .. }) => bail!(reason),
        _ => bail!("the daemon has left"),
    }
}

fn render(endpoints: &[EndpointStats]) -> String {
    let header =
        ["CONTAINER", "NETWORK", "RECEIVED", "SENT", "PACKETS IN / OUT", "DROPPED", "CONNECTIONS", "QUESTIONS"];
    let row = |e: &EndpointStats| {
        vec![
            e.container.clone(),
            e.network.clone(),
            bytes(e.rx_bytes),
            bytes(e.tx_bytes),
            format!("{} / {}", e.rx_packets, e.tx_packets),
            e.dropped.to_string(),
            e.connections.to_string(),
            e.questions.to_string(),
        ]
    };
    table::render(&header, &endpoints.iter().map(row).collect::<Vec<_>>())
}

/// As Docker writes it: powers of a thousand, three digits.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { usize::from(value < 9.995) + 1 };
    format!("{value:.digits$}{}", units[unit])
}

/// Follow what happens, as JSON, a line each
///
/// Networks made and removed, containers connected and disconnected, and what was repaired and why. Ends when the daemon
/// does; an upgrade does not end it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  portolan events | jq -c 'select(.event == \"repaired\") | {because, steps, micros}'")]
pub(crate) struct EventsArgs {}

impl EventsArgs {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let mut client = daemon::client(context)?;
        client.tell(&Request::Events {})?;
        client.wait_forever()?;
        while let Some(line) = client.line()? {
            output::print(&line)?;
            std::io::stdout().flush()?;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        for (count, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (12_345, "12.3kB"),
            (123_456, "123kB"),
            (5_000_000_000, "5.00GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
