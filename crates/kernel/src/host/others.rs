//! Others' rules on the host.

use std::io;

use portolan_engine::KernelError;
use portolan_plan::others;

use super::{HostKernel, failure, refusal};
use crate::nft::decode;

/// The tables of iptables-legacy(8) and ip6tables-legacy(8); not there where the kernel has neither.
const LEGACY: [&str; 2] = ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];

impl HostKernel {
    pub(super) fn has_others(&self) -> bool {
        self.read_others().unwrap_or_else(|error| {
            tracing::debug!(%error, "whether the host has a firewall of its own is unknown");
            true
        })
    }

    fn read_others(&self) -> Result<bool, KernelError> {
        let mut legacy = String::new();
        for path in LEGACY {
            match std::fs::read_to_string(path) {
                Ok(names) => legacy.push_str(&names),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(0);
                    return Err(failure(format!("read `{path}`"), error.to_string(), errno));
                }
            }
        }
        if others::has_firewall(&[], &legacy) {
            return Ok(true);
        }
        self.with_netfilter(|socket| {
            let unread = |error| refusal("list nftables chains", &error);
            let generation = decode::generation(socket).map_err(unread)?;
            if let Some((of, known)) = self.others.get()
                && of == generation
            {
                return Ok(known);
            }
            let found = others::has_firewall(&decode::base_chains(socket).map_err(unread)?, &legacy);
            self.others.set(Some((generation, found)));
            Ok(found)
        })
    }
}
