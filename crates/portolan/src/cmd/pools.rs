//! `portolan network pools`

use anyhow::Result;
use ipnet::IpNet;
use portolan_engine::Error;
use portolan_model::Pool;
use serde::Serialize;

use crate::context::Context;
use crate::{clock, output, spec, table};

/// List the subnets that were given to Docker, by its IPAM driver `portolan`
///
/// Docker asks for a subnet with every network that it creates with --ipam-driver portolan, whatever its driver, and for an
/// address with every container on it. Networks of Portolan's own are not among these.
///
/// What Docker no longer knows is taken back by itself, at the next thing that a Docker asks for which began while the
/// daemon ran. By hand it is only to be taken from a Docker that is gone for good.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan network pools
  portolan network pools --release 172.30.0.0/24")]
pub(crate) struct PoolsArgs {
    /// Print subnets only
    #[arg(short, long)]
    quiet: bool,
    /// Take this subnet back with all its addresses, though Docker has not given it back
    #[arg(long, value_name = "CIDR", value_parser = spec::subnet)]
    release: Vec<IpNet>,
}

/// A pool, for `--json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    subnet: IpNet,
    #[serde(rename = "IPRange")]
    range: Option<String>,
    gateway: Option<String>,
    addresses: usize,
    network: Option<String>,
    created_at: String,
}

impl PoolsArgs {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine()?;
        let mut pools = engine.pools()?;
        if !self.release.is_empty() {
            for net in &self.release {
                let missing = || Error::NotFound { what: "subnet of Docker's", name: net.to_string() };
                let (pool, _) = pools.iter().find(|(pool, _)| pool.subnet.net == *net).ok_or_else(missing)?;
                engine.release_pool(pool.id)?;
            }
            pools.retain(|(pool, _)| self.release.contains(&pool.subnet.net));
        }
        // One that is gone may still be written down.
        let networks = engine.networks()?;
        let named = |pool: &Pool| {
            let network = networks.iter().find(|network| Some(network.id) == pool.network)?;
            Some(network.name.to_string())
        };
        if self.quiet || (!self.release.is_empty() && !context.json) {
            let nets: String = pools.iter().map(|(pool, _)| format!("{}\n", pool.subnet.net)).collect();
            output::print(&nets)?;
        } else if context.json {
            let row = |(pool, addresses): &(Pool, usize)| Row {
                id: pool.id.to_string(),
                subnet: pool.subnet.net,
                range: pool.subnet.range.map(|range| range.to_string()),
                gateway: pool.subnet.gateway.map(|gateway| gateway.to_string()),
                addresses: *addresses,
                network: named(pool),
                created_at: clock::rfc3339(pool.created),
            };
            output::json(&pools.iter().map(row).collect::<Vec<_>>())?;
        } else {
            let row = |(pool, addresses): &(Pool, usize)| {
                vec![
                    pool.subnet.net.to_string(),
                    pool.subnet.range.map(|range| range.to_string()).unwrap_or_default(),
                    pool.subnet.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
                    addresses.to_string(),
                    named(pool).unwrap_or_default(),
                ]
            };
            let rows: Vec<Vec<String>> = pools.iter().map(row).collect();
            output::print(&table::render(&["SUBNET", "IP RANGE", "GATEWAY", "ADDRESSES", "NETWORK"], &rows))?;
        }
        Ok(0)
    }
}
