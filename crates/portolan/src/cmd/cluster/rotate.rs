//! `portolan cluster rotate`

use std::time::{Duration, Instant};

use anyhow::Result;
use portolan_resident::cluster::{Came, KeyStanding, Sharing};
use portolan_resident::control::{Answer, Client, Request};

use super::standing;
use crate::context::Context;
use crate::failure::Refused;
use crate::output;

/// How often it is looked whether it is done.
const LOOK: Duration = Duration::from_millis(200);

/// Have all hosts draw new keys for the encrypted link between them
///
/// No packet is lost, and none leaves in clear: each host has both keys until all others send by the new one, and forgets the
/// old one then. Hosts that do not run, and are not heard on the link either, are not waited for; they draw new keys when they are
/// back. Keys of every second round are at the UDP port after that of `--wireguard-port`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan cluster rotate
  portolan cluster rotate --wait 0 && portolan cluster status --json | jq .keys

`portolan cluster join --rotate-keys 30d` has a host do so by itself.")]
pub(crate) struct RotateArgs {
    /// How long to wait until the old key of this host is gone; it goes on also when nobody waits
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

impl RotateArgs {
    pub(super) fn run(self, context: &Context) -> Result<i32> {
        let until = Instant::now() + Duration::from_secs(self.wait);
        standing(context)?;
        let Some(mut client) = Client::connect(&context.run)? else { anyhow::bail!("the daemon has left") };
        let round = match client.ask(&Request::Share { what: Box::new(Sharing::Rotate {}) })? {
            Some(Answer::Shared { came: Came::Rotating { round } }) => round,
            Some(Answer::Refused { reason, hint }) => {
                let refused = Refused::new(reason);
                return Err(hint.into_iter().fold(refused, Refused::hint).into());
            }
            other => anyhow::bail!("the daemon answered something else: {other:?}"),
        };
        let keys = loop {
            let keys = standing(context)?.keys;
            let Some(keys) = keys else { anyhow::bail!("this host has no key any more") };
            if self.wait == 0 || (keys.round >= round && !keys.changing) {
                break keys;
            }
            if Instant::now() >= until {
                return Err(late(&keys));
            }
            std::thread::sleep(LOOK);
        };
        if context.json {
            output::json(&keys)?;
        } else {
            output::print(&format!("{}\n", keys.key))?;
        }
        Ok(0)
    }
}

fn late(keys: &KeyStanding) -> anyhow::Error {
    let names: Vec<String> = keys.waits_for.iter().map(|name| format!("`{name}`")).collect();
    let whom = if names.is_empty() { "etcd".to_owned() } else { names.join(", ") };
    Refused::new(format!("keys change, and are not changed yet: this host waits for {whom}"))
        .hint(
            "it goes on by itself; `portolan cluster status` says whom it waits for, and UDP has to pass at both ports",
        )
        .into()
}
