//! Networks: list, inspect, remove.

use std::collections::BTreeMap;
use std::time::Duration;

use portolan_engine::{Engine, Error, Kernel, NetworkInfo, Store};
use portolan_model::{ContainerKind, Family, Id, Ipam, Network, Subnet, clock};
use serde::Serialize;

use super::events::Message;
use super::failure::{Failure, Kind};
use super::filters::Filters;
use super::{Answer, Asked, Done, Host, Reply, Version, find_network, networks, told};

/// The label by which a network is known that was asked for with `Attachable`, which is about swarms.
pub(super) const ATTACHABLE: &str = "portolan.docker.attachable";

/// What a network looks like to clients.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    name: String,
    id: String,
    created: String,
    scope: &'static str,
    driver: String,
    /// Since 1.48.
    #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Addresses,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: ConfigFrom,
    config_only: bool,
    containers: BTreeMap<String, Member>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigFrom {
    network: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Addresses {
    driver: &'static str,
    options: Option<BTreeMap<String, String>>,
    config: Vec<Config>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    range: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    auxiliary_addresses: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint: String,
    mac_address: String,
    #[serde(rename = "IPv4Address")]
    v4: String,
    #[serde(rename = "IPv6Address")]
    v6: String,
}

/// Whether a network speaks a family.
fn speaks(network: &Network, family: Family) -> bool {
    network.has(family) || *network.speaks.of(family)
}

fn config(subnet: &Subnet) -> Config {
    Config {
        subnet: subnet.net.to_string(),
        range: subnet.range.map(|range| range.to_string()),
        gateway: subnet.gateway.map(|gateway| gateway.to_string()),
        auxiliary_addresses: subnet.aux.iter().map(|(name, address)| (name.clone(), address.to_string())).collect(),
    }
}

fn show(network: &Network, containers: BTreeMap<String, Member>, version: Version) -> Shown {
    let mut labels = network.labels.clone();
    Shown {
        name: network.name.to_string(),
        id: network.id.to_string(),
        created: clock::rfc3339(network.created),
        scope: "local",
        driver: network.driver.to_string(),
        enable_ipv4: (version >= Version(48)).then(|| speaks(network, Family::V4)),
        enable_ipv6: speaks(network, Family::V6),
        ipam: Addresses {
            driver: match network.ipam {
                Ipam::Local => "default",
                Ipam::Dhcp => "dhcp",
                Ipam::None => "null",
            },
            options: network.ipam_options.clone(),
            config: network.subnets.iter().map(config).collect(),
        },
        internal: network.internal,
        attachable: labels.remove(ATTACHABLE).is_some(),
        ingress: false,
        config_from: ConfigFrom { network: "" },
        config_only: false,
        containers,
        options: network.raw_options.clone(),
        labels,
    }
}

/// Who is on a network, as `inspect` lists them.
fn members<S: Store, K: Kernel>(
    engine: &Engine<S, K>,
    info: &NetworkInfo,
) -> Result<BTreeMap<String, Member>, Failure> {
    let mut members = BTreeMap::new();
    for (endpoint, name) in &info.endpoints {
        let address = |family| {
            let mut all = endpoint.addresses.iter().map(|address| address.address);
            all.find(|address| Family::of(address.addr()) == family).map(|address| address.to_string())
        };
        let kind = match engine.container(&endpoint.container.to_string()) {
            Ok(container) => container.container.kind,
            Err(Error::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let key = match kind {
            // Docker does not say whose it is.
            ContainerKind::Handed => format!("ep-{}", endpoint.container),
            ContainerKind::Run | ContainerKind::Attached => endpoint.container.to_string(),
        };
        let member = Member {
            name: name.to_string(),
            endpoint: endpoint.id.to_string(),
            mac_address: endpoint.mac.to_string(),
            v4: address(Family::V4).unwrap_or_default(),
            v6: address(Family::V6).unwrap_or_default(),
        };
        members.insert(key, member);
    }
    Ok(members)
}

/// What `GET /networks` filters by.
const KEYS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

fn fits(network: &Network, filters: &Filters) -> bool {
    let kind = if network.is_predefined() { "builtin" } else { "custom" };
    filters.is("driver", &network.driver.to_string())
        && filters.matches("id", &network.id.to_string())
        && filters.matches("name", network.name.as_str())
        && filters.labelled("label", &network.labels)
        && filters.is("scope", "local")
        && filters.is("type", kind)
}

pub(super) fn list<S: Store, K: Kernel>(engine: &Engine<S, K>, asked: &Asked<'_>) -> Done {
    let filters = asked.request.filters(&KEYS)?;
    if let Some(unknown) = filters.values("type").iter().find(|kind| !["builtin", "custom"].contains(&kind.as_str())) {
        return Err(Failure::invalid(format!("invalid filter: 'type'='{unknown}'")));
    }
    let dangling = filters.flag("dangling")?;
    let mut shown = Vec::new();
    for network in networks(engine)?.iter().filter(|network| fits(network, &filters)) {
        let info = (dangling.is_some() || asked.version < Version(28)).then(|| engine.network(&network.id.to_string()));
        let info = info.transpose()?;
        let is_dangling = || !network.is_predefined() && info.as_ref().is_some_and(|info| info.endpoints.is_empty());
        if dangling.is_some_and(|wanted| wanted != is_dangling()) {
            continue;
        }
        let containers = match info.filter(|_| asked.version < Version(28)) {
            Some(info) => members(engine, &info)?,
            None => BTreeMap::new(),
        };
        shown.push(show(network, containers, asked.version));
    }
    told(&shown)
}

pub(super) fn inspect<S: Store, K: Kernel>(engine: &Engine<S, K>, asked: &Asked<'_>) -> Done {
    let network = find_network(engine, &asked.id)?;
    let scope = asked.request.parameter("scope");
    if !scope.is_empty() && scope != "local" {
        return Err(Failure::new(Kind::NotFound, format!("network {} not found", asked.id)));
    }
    let info = engine.network(&network.id.to_string())?;
    told(&show(&info.network, members(engine, &info)?, asked.version))
}

pub(super) fn remove<S: Store, K: Kernel>(engine: &Engine<S, K>, host: &impl Host, asked: &Asked<'_>) -> Done {
    let network = find_network(engine, &asked.id)?;
    match engine.remove_network(&network.id.to_string()) {
        Ok(_) => {}
        Err(Error::InUse { name, .. }) => return Err(in_use(engine, network.id, &name)?),
        Err(error) => return Err(error.into()),
    }
    host.settle("remove a network");
    Ok(Answer::Reply(Reply::empty(204)))
}

fn in_use<S: Store, K: Kernel>(engine: &Engine<S, K>, id: Id, name: &str) -> Result<Failure, Failure> {
    let endpoints = engine.network(&id.to_string())?.endpoints;
    let named = endpoints.iter().map(|(endpoint, name)| format!("name:\"{name}\" id:\"{}\"", endpoint.id.short()));
    let named = named.collect::<Vec<_>>().join(", ");
    Ok(Failure::new(
        Kind::Forbidden,
        format!("error while removing network: network {name} has active endpoints ({named})"),
    ))
}

/// What `POST /networks/prune` filters by.
const PRUNED: [&str; 3] = ["label", "label!", "until"];

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Pruned {
    networks_deleted: Option<Vec<String>>,
}

pub(super) fn prune<S: Store, K: Kernel>(engine: &Engine<S, K>, host: &impl Host, asked: &Asked<'_>) -> Done {
    let filters = asked.request.filters(&PRUNED)?;
    let until = match filters.values("until") {
        [] => None,
        [until] => Some(super::times::read(until, Duration::from_secs(host.facts().now))?.as_secs()),
        _ => return Err(Failure::invalid("more than one until filter specified")),
    };
    let goes = |network: &Network| {
        !network.is_predefined()
            && !network.transient
            && until.is_none_or(|until| network.created <= until)
            && filters.labelled("label", &network.labels)
            && !(filters.has("label!") && filters.labelled("label!", &network.labels))
    };
    let pruned = host.alone(|| -> Result<Vec<String>, Failure> {
        let mut gone = Vec::new();
        for network in networks(engine)?.into_iter().filter(goes) {
            match engine.remove_network(&network.id.to_string()) {
                Ok(_) => gone.push(network.name.to_string()),
                Err(Error::InUse { .. } | Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(gone)
    });
    let Some(gone) = pruned else {
        return Err(Failure::new(Kind::Conflict, "a prune operation is already running"));
    };
    let gone = gone?;
    host.settle("prune networks");
    host.tell(Message::pruned());
    told(&Pruned { networks_deleted: (!gone.is_empty()).then_some(gone) })
}
