//! `portolan demo`: a host, its neighbour and two containers, inside namespaces that go away again

mod http;
mod picture;
mod report;
mod stage;
mod steps;

use std::time::Instant;

use anyhow::Result;

use crate::context::Context;
use report::Report;
use stage::Interrupt;

/// Build a small network of hosts and containers and show that it works
///
/// Nothing of this machine's network is read or changed. A host and its neighbour on a LAN are made out of network
/// namespaces; on that host the demo runs the very commands you would type, and prints them behind a `$`. Then it sends
/// real packets and says what came of them: two containers talk to each other and to the neighbour, a web server is
/// published on port 1880, what is not published stays closed, and at the end nothing is left behind.
///
/// Every check is a line that starts with "✔ ok" or "✘ FAILED". The exit status is 0 if all of them are ok, 1 otherwise,
/// 130 if you stop it with Ctrl-C, which cleans up as well. What a demo that was killed leaves behind ends by itself
/// within a minute, and the next demo removes the rest.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo portolan demo                 all of it, in a second or two
  sudo portolan demo --json          the steps, commands and checks for programs

To do the same on this machine:
  portolan network create web
  portolan run -d --name site --network web -p 1880:80 -- portolan demo-serve
  curl http://127.0.0.1:1880/
  portolan rules site
  portolan rm -f site && portolan network rm web

State is kept in a directory of the demo's own; --root has no effect.")]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        run(context)
    }
}

/// The demonstration; 1 if a check failed.
pub(crate) fn run(context: &Context) -> Result<i32> {
    Context::require_privileges("demo")?;
    let started = Instant::now();
    // Before any thread starts: they inherit what is blocked.
    let interrupt = Interrupt::watch()?;
    let mut report = Report::new(context.json, steps::COUNT);
    report.introduce(
        "A host, its neighbour on the LAN and two containers, all in network namespaces of their own.\n\
         This machine's network is not touched.",
    );
    steps::play(&mut report, &interrupt);
    report.finish(started.elapsed(), interrupt.happened())
}

/// Serve HTTP: answer every request with who asked and who answers
///
/// What `portolan demo` runs in its containers. It stops by itself after a minute, or the time given with --seconds.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Port to listen on, all addresses, IPv4 and IPv6
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Stop after this long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

impl ServeArgs {
    pub(crate) fn run(self) -> Result<i32> {
        http::serve(self.port, std::time::Duration::from_secs(self.seconds))
    }
}
