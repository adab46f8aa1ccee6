//! What host-local reads of a configuration.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use portolan_cni::{Call, Config, Error, Route, read};
use serde::Deserialize;

use super::range::{RangeSet, Spoken, WireRange};
use crate::ipam::{Args, WireRoute, check_args, check_families, or_default, refused, routes};

/// Where leases are, unless a configuration says otherwise.
const DATA_DIR: &str = "/var/lib/cni/networks";

#[derive(Debug, Deserialize)]
struct Wire {
    #[serde(default)]
    ipam: Option<WireIpam>,
    #[serde(default, rename = "runtimeconfig", deserialize_with = "or_default")]
    runtime: WireRuntime,
    #[serde(default, deserialize_with = "or_default")]
    args: Args,
}

#[derive(Debug, Deserialize)]
struct WireIpam {
    #[serde(flatten)]
    range: WireRange,
    #[serde(default, deserialize_with = "or_default")]
    ranges: Vec<Vec<WireRange>>,
    #[serde(default, deserialize_with = "or_default")]
    routes: Vec<WireRoute>,
    #[serde(default, rename = "resolvconf", deserialize_with = "or_default")]
    resolv_conf: String,
}

#[derive(Debug, Default, Deserialize)]
struct WireRuntime {
    #[serde(default, rename = "ipranges", deserialize_with = "or_default")]
    ranges: Vec<Vec<WireRange>>,
    #[serde(default, deserialize_with = "or_default")]
    ips: Vec<String>,
}

/// What is to be given.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// An address of each.
    pub(crate) sets: Vec<RangeSet>,
    /// Addresses that were asked for, each once.
    pub(crate) ips: Vec<IpAddr>,
    /// Routes of the container.
    pub(crate) routes: Vec<Route>,
    /// The file that says what names the result has; empty for none.
    pub(crate) resolv_conf: String,
}

/// The directory of a network's leases. Whatever else is wrong with a configuration, it is found.
///
/// # Errors
/// For what is no such JSON, or without `ipam`.
pub(crate) fn directory(config: &Config, text: &[u8]) -> Result<PathBuf, Error> {
    #[derive(Deserialize)]
    struct Wire {
        #[serde(default)]
        ipam: Option<WireIpam>,
    }
    #[derive(Deserialize)]
    struct WireIpam {
        #[serde(default, rename = "datadir", deserialize_with = "or_default")]
        data_dir: String,
    }
    let wire: Wire = read(text)?;
    let ipam = wire.ipam.ok_or_else(no_ipam)?;
    let base = if ipam.data_dir.is_empty() { Path::new(DATA_DIR) } else { Path::new(&ipam.data_dir) };
    Ok(base.join(&config.name))
}

fn no_ipam() -> Error {
    refused("IPAM config missing 'ipam' key")
}

/// What a configuration wants.
///
/// # Errors
/// As the original refuses.
pub(crate) fn wanted(call: &Call, config: &Config, text: &[u8]) -> Result<Wanted, Error> {
    let wire: Wire = read(text)?;
    let ipam = wire.ipam.ok_or_else(no_ipam)?;
    let mut ips = Vec::new();
    for text in wire.args.ips().iter().chain(&wire.runtime.ips) {
        ips.push(with_or_without_length(text)?);
    }
    let routes = routes(&ipam.routes)?;
    let flat = ipam.range.subnet.is_some().then(|| vec![ipam.range]);
    let sets = parse(wire.runtime.ranges.into_iter().chain(flat).chain(ipam.ranges))?;
    check_args(call, &["IP"])?;
    if let Some(text) = call.arg("IP") {
        let address = with_or_without_length(text)
            .map_err(|error| refused(format!("ARGS: error parsing value of pair \"IP={text}\": {}", error.msg)))?;
        ips.insert(0, address);
    }
    let sets = sets.iter().enumerate().map(|(index, spoken)| {
        RangeSet::new(spoken).map_err(|error| refused(format!("invalid range set {index}: {}", error.msg)))
    });
    let sets: Vec<RangeSet> = sets.collect::<Result<_, _>>()?;
    if sets.is_empty() {
        return Err(refused("no IP ranges specified"));
    }
    check_families(config.version(), sets.iter().map(RangeSet::first))?;
    for (index, one) in sets.iter().enumerate() {
        if let Some(step) = sets[index + 1..].iter().position(|other| one.overlaps(other)) {
            return Err(refused(format!("range set {index} overlaps with {}", index + step + 1)));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    ips.retain(|ip| seen.insert(*ip));
    Ok(Wanted { sets, ips, routes, resolv_conf: ipam.resolv_conf })
}

fn parse(sets: impl Iterator<Item = Vec<WireRange>>) -> Result<Vec<Vec<Spoken>>, Error> {
    sets.map(|set| set.iter().map(WireRange::parse).collect()).collect()
}

fn with_or_without_length(text: &str) -> Result<IpAddr, Error> {
    let parsed = match text.contains('/') {
        true => text.parse::<IpNet>().ok().map(|net| net.addr()),
        false => text.parse().ok(),
    };
    parsed.map(|ip| ip.to_canonical()).ok_or_else(|| refused(format!("invalid IP address {text}")))
}
