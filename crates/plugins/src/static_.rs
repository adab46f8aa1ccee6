//! The IPAM plugin `static`: the addresses that somebody wrote down.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_cni::{Call, Code, Config, Dns, Error, Ip, Route, Success, Verb, read};
use serde::Deserialize;

use crate::Answer;
use crate::ipam::{Args, WireRoute, check_args, check_families, optional_address, or_default, refused, routes};

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
    #[serde(default, deserialize_with = "or_default")]
    addresses: Vec<WireAddress>,
    #[serde(default, deserialize_with = "or_default")]
    routes: Vec<WireRoute>,
    #[serde(default, deserialize_with = "or_default")]
    dns: WireDns,
}

#[derive(Debug, Deserialize)]
struct WireAddress {
    #[serde(default, deserialize_with = "or_default")]
    address: String,
    #[serde(default)]
    gateway: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct WireDns {
    #[serde(default, deserialize_with = "or_default")]
    nameservers: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    domain: String,
    #[serde(default, deserialize_with = "or_default")]
    search: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    options: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct WireRuntime {
    #[serde(default, deserialize_with = "or_default")]
    ips: Vec<String>,
}

/// What is written down.
#[derive(Debug)]
struct Wanted {
    addresses: Vec<(IpNet, Option<IpAddr>)>,
    routes: Vec<Route>,
    dns: Dns,
}

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    match call.verb {
        Verb::Add => Ok(Some((success(wanted(call, config, text)?), config.version()))),
        Verb::Check => check(call, config, &wanted(call, config, text)?).map(|()| None),
        Verb::Status => {
            let wanted = wanted(call, config, text);
            wanted.map(|_| None).map_err(|error| Error { code: Code::NotAvailable, ..error })
        }
        // Nothing is kept.
        Verb::Del | Verb::Gc | Verb::Version => Ok(None),
    }
}

fn wanted(call: &Call, config: &Config, text: &[u8]) -> Result<Wanted, Error> {
    let wire: Wire = read(text)?;
    let ipam = wire.ipam.ok_or_else(|| refused("IPAM config missing 'ipam' key"))?;
    let routes = routes(&ipam.routes)?;
    let mut written = Vec::new();
    for WireAddress { address, gateway } in &ipam.addresses {
        written.push((address.as_str(), optional_address(gateway.as_deref())?));
    }
    check_args(call, &["IP", "GATEWAY"])?;
    let not_cidr = |what: &str, text: &str| refused(format!("{what} CIDR notation, got: '{text}'"));
    let mut added: Vec<(IpNet, Option<IpAddr>)> = Vec::new();
    for text in call.arg("IP").into_iter().flat_map(|list| list.split(',')).map(str::trim) {
        added.push((parse(text).ok_or_else(|| not_cidr("the 'ip' field is expected to be in", text))?, None));
    }
    // It is of the addresses beside it alone.
    for text in call.arg("GATEWAY").into_iter().flat_map(|list| list.split(',')) {
        let invalid = |_| refused(format!("invalid gateway address: {text}"));
        let gateway: IpAddr = text.trim().parse().map_err(invalid)?;
        for (_, own) in added.iter_mut().filter(|(address, _)| address.contains(&gateway)) {
            *own = Some(gateway);
        }
    }
    // What the runtime asks for, or else a person, is instead of all that.
    let asked = if wire.runtime.ips.is_empty() { wire.args.ips() } else { &wire.runtime.ips };
    let mut addresses = Vec::new();
    if asked.is_empty() {
        for (text, gateway) in written {
            let address = parse(text).ok_or_else(|| not_cidr("the 'address' field is expected to be in", text))?;
            addresses.push((address, gateway));
        }
        addresses.extend(added);
    } else {
        for text in asked {
            let address = parse(text).ok_or_else(|| not_cidr("an entry in the 'ips' field is NOT in", text))?;
            addresses.push((address, None));
        }
    }
    check_families(config.version(), addresses.iter().map(|(address, _)| address.addr()))?;
    let WireDns { nameservers, domain, search, options } = ipam.dns;
    Ok(Wanted { addresses, routes, dns: Dns { nameservers, domain, search, options } })
}

fn parse(text: &str) -> Option<IpNet> {
    text.parse().ok()
}

fn success(wanted: Wanted) -> Success {
    let ip = |(address, gateway)| Ip { interface: None, address, gateway };
    let ips = wanted.addresses.into_iter().map(ip).collect();
    Success { ips, routes: wanted.routes, dns: wanted.dns, ..Success::default() }
}

fn check(call: &Call, config: &Config, wanted: &Wanted) -> Result<(), Error> {
    let previous = config.previous()?.ok_or_else(|| refused("Required prevResult missing"))?;
    for (address, gateway) in &wanted.addresses {
        let found = previous.ips.iter().find(|ip| ip.address.addr() == address.addr());
        if !found.is_some_and(|ip| gateway.is_none() || ip.gateway == *gateway) {
            let (address, ifname) = (address.addr(), &call.ifname);
            return Err(refused(format!("static: Failed to match addr {address} on interface {ifname}")));
        }
    }
    Ok(())
}
