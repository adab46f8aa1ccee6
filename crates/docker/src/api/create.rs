//! `POST /networks/create`

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_engine::{Engine, Kernel, NetworkRequest, Store};
use portolan_model::{Driver, Family, Ipam, Name};
use serde::{Deserialize, Serialize};

use super::failure::{Failure, Kind};
use super::networks::ATTACHABLE;
use super::{Answer, Asked, Done, Host, Reply, Version, or_default};
use crate::plugin::wire::{ENABLE_IPV4, ENABLE_IPV6};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Body {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    driver: String,
    #[serde(deserialize_with = "or_default")]
    scope: String,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: Option<bool>,
    #[serde(rename = "IPAM")]
    ipam: Option<Addresses>,
    #[serde(deserialize_with = "or_default")]
    internal: bool,
    #[serde(deserialize_with = "or_default")]
    attachable: bool,
    #[serde(deserialize_with = "or_default")]
    ingress: bool,
    #[serde(deserialize_with = "or_default")]
    config_only: bool,
    config_from: Option<ConfigFrom>,
    #[serde(deserialize_with = "or_default")]
    options: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigFrom {
    #[serde(deserialize_with = "or_default")]
    network: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Addresses {
    #[serde(deserialize_with = "or_default")]
    driver: String,
    options: Option<BTreeMap<String, String>>,
    #[serde(deserialize_with = "or_default")]
    config: Vec<Config>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    #[serde(deserialize_with = "or_default")]
    subnet: String,
    #[serde(rename = "IPRange", deserialize_with = "or_default")]
    range: String,
    #[serde(deserialize_with = "or_default")]
    gateway: String,
    #[serde(deserialize_with = "or_default")]
    auxiliary_addresses: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
    warning: String,
}

pub(super) fn create<S: Store, K: Kernel>(engine: &Engine<S, K>, host: &impl Host, asked: &Asked<'_>) -> Done {
    let body: Body = asked.request.json()?;
    // Ours is what a swarm is to Docker.
    if body.driver == "overlay" && engine.cluster_settings()?.is_none() {
        return Err(no_swarm());
    }
    let (request, mut warning) = request(body, asked.version)?;
    let network = engine.create_network(&request)?;
    if let Some(unguarded) = engine.firewall()?.warning(&network) {
        warning = if warning.is_empty() { unguarded } else { format!("{warning}\n{unguarded}") };
    }
    host.settle("create a network");
    Ok(Answer::Reply(Reply::json(201, &Created { id: network.id.to_string(), warning })))
}

/// The network that is asked for, and what of it is not heeded.
fn request(body: Body, version: Version) -> Result<(NetworkRequest, String), Failure> {
    let name = name(&body.name)?;
    refuse(&body)?;
    let driver = driver(&body.driver)?;
    let mut options = body.options;
    let mut option = |key: &str| {
        let Some(value) = options.remove(key) else { return Ok(None) };
        match value.as_str() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Some(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Some(false)),
            _ => Err(Failure::invalid(format!("driver-opt {key:?} is not a valid bool"))),
        }
    };
    let (ipv4_option, ipv6_option) = (option(ENABLE_IPV4)?, option(ENABLE_IPV6)?);
    let ipv4 = body.enable_ipv4.filter(|_| version >= Version(48)).or(ipv4_option).unwrap_or(true);
    let ipv6 = body.enable_ipv6.or(ipv6_option).unwrap_or(false);
    if !ipv4 && !ipv6 {
        return Err(Failure::invalid("IPv4 or IPv6 must be enabled"));
    }
    let mut labels = body.labels;
    if body.attachable {
        labels.insert(ATTACHABLE.to_owned(), "true".to_owned());
    }
    let asked =
        NetworkRequest { driver, internal: body.internal, ipv4, ipv6, options, labels, ..NetworkRequest::new(name) };
    addresses(body.ipam.unwrap_or_default(), asked)
}

fn name(text: &str) -> Result<Name, Failure> {
    if text.trim().is_empty() {
        return Err(Failure::invalid("invalid name: name is empty"));
    }
    text.parse::<Name>().map_err(|invalid| Failure::invalid(format!("invalid name: {invalid}")))
}

fn no_swarm() -> Failure {
    Failure::new(
        Kind::Forbidden,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to \
         swarm and try again.",
    )
}

/// What dockerd has and we have not.
fn refuse(body: &Body) -> Result<(), Failure> {
    let forbidden = |why: &str| Err(Failure::new(Kind::Forbidden, why));
    if body.ingress {
        return forbidden("Ingress network can only be global scope network");
    }
    if body.scope == "swarm" && body.driver != "overlay" {
        return forbidden("cannot create a swarm scoped network when swarm is not active");
    }
    if !matches!(body.scope.as_str(), "" | "local" | "swarm") {
        return Err(Failure::invalid(format!("invalid scope: {}", body.scope)));
    }
    let is_configured = |from: &ConfigFrom| !from.network.is_empty();
    if body.config_only || body.config_from.as_ref().is_some_and(is_configured) {
        return Err(Failure::unsupported("configuration-only networks", "give each network its own options"));
    }
    Ok(())
}

fn driver(text: &str) -> Result<Driver, Failure> {
    let driver = match text {
        "" | "default" => Driver::Bridge,
        text => text.parse().map_err(|_| {
            Failure::new(
                Kind::NotFound,
                format!("plugin {text:?} not found (Portolan has bridge, macvlan, ipvlan, ptp and overlay)"),
            )
        })?,
    };
    if !driver.holds_endpoints() {
        return Err(Failure::new(
            Kind::Forbidden,
            format!("only one instance of {:?} network is allowed", driver.to_string()),
        ));
    }
    Ok(driver)
}

/// Adds what is said of addresses.
fn addresses(ipam: Addresses, mut asked: NetworkRequest) -> Result<(NetworkRequest, String), Failure> {
    asked.ipam = match ipam.driver.as_str() {
        "" | "default" => Ipam::Local,
        "null" => Ipam::None,
        "dhcp" => Ipam::Dhcp,
        other => {
            return Err(Failure::new(
                Kind::NotFound,
                format!("plugin {other:?} not found (Portolan has the IPAM drivers default, null and dhcp)"),
            ));
        }
    };
    if let Some(key) = ipam.options.iter().flat_map(BTreeMap::keys).next() {
        return Err(Failure::unsupported(format!("IPAM option `{key}`"), "leave it out"));
    }
    asked.ipam_options = ipam.options;
    let (mut wrong, mut warnings) = (Vec::new(), Vec::new());
    for config in &ipam.config {
        match part(config, &mut asked) {
            Ok(None) => {}
            Ok(Some(unused)) => warnings.push(unused),
            Err(lines) => wrong.extend(lines),
        }
    }
    if !wrong.is_empty() {
        return Err(Failure::invalid(format!("invalid network config:\n{}", wrong.join("\n"))));
    }
    Ok((asked, warnings.join("\n")))
}

/// Adds one subnet with what belongs to it; a warning if it is not used, all that is wrong with it otherwise.
fn part(config: &Config, asked: &mut NetworkRequest) -> Result<Option<String>, Vec<String>> {
    if config.subnet.is_empty() {
        return match (config.gateway.is_empty(), config.range.is_empty() && config.auxiliary_addresses.is_empty()) {
            (true, true) => Ok(None),
            _ => Err(vec!["invalid subnet : invalid CIDR block notation".to_owned()]),
        };
    }
    let subnet = network("subnet", &config.subnet).map_err(|line| vec![line])?;
    let is_on = match Family::of(subnet.addr()) {
        Family::V4 => asked.ipv4,
        Family::V6 => asked.ipv6,
    };
    if !is_on {
        return Ok(Some(format!("{} is off for this network: subnet {subnet} is not used", Family::of(subnet.addr()))));
    }
    let mut wrong = Vec::new();
    let mut keep = |line: Result<(), String>| wrong.extend(line.err());
    asked.subnets.push(subnet);
    if !config.range.is_empty() {
        keep(range(&config.range, subnet).map(|range| asked.ranges.push(range.into())));
    }
    if !config.gateway.is_empty() {
        let gateway = inside(&config.gateway, subnet).map(|gateway| asked.gateways.push(gateway));
        keep(gateway.map_err(|why| format!("invalid gateway {}: {why}", config.gateway)));
    }
    for (name, text) in &config.auxiliary_addresses {
        let address = inside(text, subnet).map(|address| {
            asked.aux.insert(name.clone(), address);
        });
        keep(address.map_err(|why| format!("invalid auxiliary address {name}: {why}")));
    }
    if wrong.is_empty() { Ok(None) } else { Err(wrong) }
}

fn network(what: &str, text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| format!("invalid {what} {text}: invalid CIDR block notation"))?;
    if net.trunc() == net { Ok(net) } else { Err(format!("invalid {what} {net}: it should be {}", net.trunc())) }
}

fn range(text: &str, subnet: IpNet) -> Result<IpNet, String> {
    let wrong = |why: String| Err(format!("invalid ip-range {text}: {why}"));
    let Ok(range) = text.parse::<IpNet>() else { return wrong("invalid CIDR block notation".to_owned()) };
    let family = Family::of(subnet.addr());
    if Family::of(range.addr()) != family {
        return wrong(format!("parent subnet is an {family} block"));
    }
    if range.prefix_len() < subnet.prefix_len() {
        return wrong(format!("CIDR block is bigger than its parent subnet {subnet}"));
    }
    if range.trunc() != range {
        return wrong(format!("it should be {}", range.trunc()));
    }
    if !subnet.contains(&range) {
        return wrong(format!("parent subnet {subnet} doesn't contain ip-range"));
    }
    Ok(range)
}

fn inside(text: &str, subnet: IpNet) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| "invalid address".to_owned())?;
    let family = Family::of(subnet.addr());
    if Family::of(address) != family {
        return Err(format!("parent subnet is an {family} block"));
    }
    if subnet.contains(&address) {
        Ok(address)
    } else {
        Err(format!("parent subnet {subnet} doesn't contain this address"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(body: Value, version: u16) -> Result<(NetworkRequest, String), Failure> {
        request(serde_json::from_value(body).unwrap(), Version(version))
    }

    /// As `docker network create` of 20.10 asks.
    #[test]
    fn a_network() {
        let (asked, warning) = read(
            json!({"CheckDuplicate": true, "Driver": "bridge", "Scope": "", "EnableIPv6": true,
                "IPAM": {"Driver": "default", "Options": {}, "Config": [
                    {"Subnet": "10.60.0.0/24", "IPRange": "10.60.0.128/25", "Gateway": "10.60.0.254",
                     "AuxiliaryAddresses": {"printer": "10.60.0.5"}},
                    {"Subnet": "fd60::/64"}]},
                "Internal": true, "Attachable": true, "Ingress": false, "ConfigOnly": false, "ConfigFrom": null,
                "Options": {"com.docker.network.driver.mtu": "1400"}, "Labels": {"a": "b"}, "Name": "web"}),
            41,
        )
        .unwrap();
        assert_eq!((asked.name.as_str(), asked.driver, asked.internal), ("web", Driver::Bridge, true));
        assert_eq!((asked.ipv4, asked.ipv6, warning.as_str()), (true, true, ""));
        assert_eq!(asked.subnets, ["10.60.0.0/24".parse::<IpNet>().unwrap(), "fd60::/64".parse().unwrap()]);
        assert_eq!(asked.ranges[0].to_string(), "10.60.0.128/25");
        assert_eq!(asked.gateways, ["10.60.0.254".parse::<IpAddr>().unwrap()]);
        assert_eq!(asked.aux["printer"].to_string(), "10.60.0.5");
        assert_eq!(asked.options["com.docker.network.driver.mtu"], "1400");
        assert_eq!((asked.labels["a"].as_str(), asked.labels[ATTACHABLE].as_str()), ("b", "true"));
        assert_eq!(asked.ipam_options, Some(BTreeMap::new()));
    }

    #[test]
    fn families() {
        let families = |body: Value, version| {
            let mut body = body;
            body["Name"] = "web".into();
            read(body, version).map(|(asked, _)| (asked.ipv4, asked.ipv6)).map_err(|failure| failure.message)
        };
        assert_eq!(families(json!({}), 51), Ok((true, false)));
        assert_eq!(families(json!({"EnableIPv4": false, "EnableIPv6": true}), 48), Ok((false, true)));
        assert_eq!(families(json!({"EnableIPv4": false, "EnableIPv6": true}), 47), Ok((true, true)));
        assert_eq!(families(json!({"EnableIPv4": false}), 51), Err("IPv4 or IPv6 must be enabled".to_owned()));
        assert_eq!(families(json!({"Options": {ENABLE_IPV6: "1"}}), 41), Ok((true, true)));
        let refused = families(json!({"Options": {ENABLE_IPV4: "perhaps"}}), 51).unwrap_err();
        assert_eq!(refused, r#"driver-opt "com.docker.network.enable_ipv4" is not a valid bool"#);
        let off = json!({"Name": "web", "IPAM": {"Config": [{"Subnet": "fd60::/64"}]}});
        let (asked, warning) = read(off, 51).unwrap();
        assert!(asked.subnets.is_empty() && warning.contains("fd60::/64 is not used"), "{warning}");
    }

    #[test]
    fn what_is_refused() {
        let said = |body: Value| {
            let mut named = json!({"Name": "web"});
            named.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            let failure = read(named, 51).unwrap_err();
            (failure.status(), failure.message)
        };
        for (body, status, text) in [
            (json!({"Name": " "}), 400, "invalid name: name is empty"),
            (json!({"Name": "a/b"}), 400, "invalid name: "),
            (json!({"Scope": "swarm"}), 403, "cannot create a swarm scoped network when swarm is not active"),
            (json!({"Scope": "galaxy"}), 400, "invalid scope: galaxy"),
            (json!({"Ingress": true}), 403, "Ingress network can only be global scope network"),
            (json!({"Driver": "host"}), 403, r#"only one instance of "host" network is allowed"#),
            (json!({"Driver": "null"}), 403, r#"only one instance of "null" network is allowed"#),
            (json!({"Driver": "pigeon"}), 404, r#"plugin "pigeon" not found"#),
            (json!({"IPAM": {"Driver": "pigeon"}}), 404, r#"plugin "pigeon" not found"#),
            (json!({"IPAM": {"Options": {"a": "b"}}}), 501, "IPAM option `a`"),
            (json!({"ConfigOnly": true}), 501, "configuration-only networks"),
            (json!({"ConfigFrom": {"Network": "web"}}), 501, "configuration-only networks"),
        ] {
            let (found, message) = said(body.clone());
            assert!(found == status && message.starts_with(text), "{body}: {found} {message}");
        }
    }

    #[test]
    fn every_line_that_is_wrong_with_addresses() {
        let said = |config: Value| {
            read(json!({"Name": "web", "EnableIPv6": true, "IPAM": {"Config": config}}), 51).unwrap_err().message
        };
        for (config, lines) in [
            (json!([{"Subnet": "10.0.0.1/24"}]), "invalid subnet 10.0.0.1/24: it should be 10.0.0.0/24"),
            (json!([{"Subnet": "ten"}]), "invalid subnet ten: invalid CIDR block notation"),
            (json!([{"Gateway": "10.0.0.1"}]), "invalid subnet : invalid CIDR block notation"),
            (
                json!([{"Subnet": "10.0.0.0/24", "IPRange": "fd00::/64", "Gateway": "10.1.0.1",
                    "AuxiliaryAddresses": {"a": "x"}}, {"Subnet": "fd01::/64", "Gateway": "10.0.0.1"}]),
                "invalid ip-range fd00::/64: parent subnet is an IPv4 block\n\
                 invalid gateway 10.1.0.1: parent subnet 10.0.0.0/24 doesn't contain this address\n\
                 invalid auxiliary address a: invalid address\n\
                 invalid gateway 10.0.0.1: parent subnet is an IPv6 block",
            ),
            (
                json!([{"Subnet": "10.0.0.0/24", "IPRange": "10.0.0.0/16"}]),
                "invalid ip-range 10.0.0.0/16: CIDR block is bigger than its parent subnet 10.0.0.0/24",
            ),
            (
                json!([{"Subnet": "10.0.0.0/24", "IPRange": "10.0.0.1/25"}]),
                "invalid ip-range 10.0.0.1/25: it should be 10.0.0.0/25",
            ),
            (
                json!([{"Subnet": "10.0.0.0/24", "IPRange": "10.0.1.0/25"}]),
                "invalid ip-range 10.0.1.0/25: parent subnet 10.0.0.0/24 doesn't contain ip-range",
            ),
        ] {
            assert_eq!(said(config), format!("invalid network config:\n{lines}"));
        }
    }

    #[test]
    fn nothing_is_what_null_says() {
        let (asked, _) = read(
            json!({"Name": "web", "Driver": null, "IPAM": {"Driver": null, "Options": null, "Config": null},
                "Options": null, "Labels": null, "Internal": null, "EnableIPv6": null}),
            41,
        )
        .unwrap();
        assert_eq!((asked.driver, asked.ipv6, asked.ipam_options), (Driver::Bridge, false, None));
    }
}
