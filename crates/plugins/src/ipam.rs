//! What the plugins that give addresses read alike: addresses, routes and arguments, refused in the originals' words.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_cni::{Call, Code, Error, Route};
use serde::{Deserialize, Deserializer};

/// A refusal. The originals know one code for all that is wrong with what is under `ipam`.
pub(crate) fn refused(msg: impl Into<String>) -> Error {
    Error::new(Code::Internal, msg)
}

/// What the system says, as Go has it: without its number, in lower case.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// `null` is nothing: Go reads and writes it so.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// An address without prefix length; one of IPv4 in IPv6's clothes is one of IPv4.
pub(crate) fn address(text: &str) -> Result<IpAddr, Error> {
    let parsed = text.parse::<IpAddr>().map_err(|_| refused(format!("invalid IP address: {text}")))?;
    Ok(parsed.to_canonical())
}

/// An address that may be left out: an empty one is none, too.
pub(crate) fn optional_address(text: Option<&str>) -> Result<Option<IpAddr>, Error> {
    text.filter(|text| !text.is_empty()).map(address).transpose()
}

/// An address with prefix length; host bits stay.
pub(crate) fn cidr(text: &str) -> Result<IpNet, Error> {
    text.parse().map_err(|_| refused(format!("invalid CIDR address: {text}")))
}

/// A route as a configuration has it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct WireRoute {
    #[serde(default)]
    dst: String,
    #[serde(default)]
    gw: Option<String>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default, rename = "advmss")]
    advertised_mss: Option<u32>,
    #[serde(default)]
    priority: Option<u32>,
    #[serde(default)]
    table: Option<u32>,
    #[serde(default)]
    scope: Option<u8>,
}

/// What the result says of the routes of a configuration.
pub(crate) fn routes(wire: &[WireRoute]) -> Result<Vec<Route>, Error> {
    let route = |wire: &WireRoute| {
        Ok(Route {
            mtu: wire.mtu,
            advertised_mss: wire.advertised_mss,
            priority: wire.priority,
            table: wire.table,
            scope: wire.scope,
            ..Route::new(cidr(&wire.dst)?, optional_address(wire.gw.as_deref())?)
        })
    };
    wire.iter().map(route).collect()
}

/// What `args.cni` says (CNI conventions, "args in network config").
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Args {
    // Keys of arguments come as they were written.
    #[serde(default, alias = "CNI")]
    cni: Option<CniArgs>,
}

#[derive(Debug, Default, Deserialize)]
struct CniArgs {
    #[serde(default, alias = "IPs", alias = "IPS")]
    ips: Option<Vec<String>>,
}

impl Args {
    /// Addresses asked for.
    pub(crate) fn ips(&self) -> &[String] {
        self.cni.as_ref().and_then(|cni| cni.ips.as_deref()).unwrap_or_default()
    }
}

/// Refuses keys of `CNI_ARGS` that are not `known`, unless the caller says that there may be others.
pub(crate) fn check_args(call: &Call, known: &[&str]) -> Result<(), Error> {
    let mut is_lax = false;
    let mut unknown = Vec::new();
    for (key, value) in &call.args {
        if key == "IgnoreUnknown" {
            is_lax = match value.to_ascii_lowercase().as_str() {
                "1" | "true" => true,
                "0" | "false" => false,
                other => {
                    let why = format!("boolean unmarshal error: invalid input {other}");
                    return Err(refused(format!("ARGS: error parsing value of pair \"{key}={value}\": {why}")));
                }
            };
        } else if !known.contains(&key.as_str()) {
            unknown.push(format!("{:?}", format!("{key}={value}")));
        }
    }
    if is_lax || unknown.is_empty() {
        return Ok(());
    }
    Err(refused(format!("ARGS: unknown args [{}]", unknown.join(" "))))
}

/// Refuses more than one address of a family where the result has no place for them (before 0.3.0).
pub(crate) fn check_families(
    version: portolan_cni::Version,
    addresses: impl Iterator<Item = IpAddr> + Clone,
) -> Result<(), Error> {
    let count = |is_v4| addresses.clone().filter(|address| address.is_ipv4() == is_v4).count();
    if version.has_one_address() && (count(true) > 1 || count(false) > 1) {
        let msg = format!("CNI version {version} does not support more than 1 address per family");
        return Err(refused(msg));
    }
    Ok(())
}
