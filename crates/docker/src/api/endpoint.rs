//! A container's place on its networks, as `docker ps` and `docker inspect` show it.

use std::collections::BTreeMap;

use portolan_engine::ContainerInfo;
use portolan_model::{Endpoint, Family, Network, NetworkMode, Publication};
use serde::Serialize;

use super::Version;

/// `NetworkSettings.Networks.NAME`
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Settings {
    #[serde(rename = "IPAMConfig")]
    ipam: Option<Configured>,
    links: Option<Vec<String>>,
    aliases: Option<Vec<String>>,
    pub(super) mac_address: String,
    driver_opts: Option<BTreeMap<String, String>>,
    /// Since 1.48.
    #[serde(skip_serializing_if = "Option::is_none")]
    gw_priority: Option<i32>,
    #[serde(rename = "NetworkID")]
    network: String,
    #[serde(rename = "EndpointID")]
    pub(super) endpoint: String,
    pub(super) gateway: String,
    #[serde(rename = "IPAddress")]
    pub(super) address: String,
    #[serde(rename = "IPPrefixLen")]
    pub(super) prefix: u8,
    #[serde(rename = "IPv6Gateway")]
    pub(super) gateway6: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub(super) address6: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub(super) prefix6: u8,
    /// Since 1.44.
    #[serde(rename = "DNSNames", skip_serializing_if = "Option::is_none")]
    names: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
struct Configured {
    #[serde(rename = "IPv4Address", skip_serializing_if = "Option::is_none")]
    v4: Option<String>,
    #[serde(rename = "IPv6Address", skip_serializing_if = "Option::is_none")]
    v6: Option<String>,
}

/// All of them; a stack that is not the container's own is one network.
pub(super) fn networks(info: &ContainerInfo, version: Version) -> BTreeMap<String, Settings> {
    let alone = |name: &str| BTreeMap::from([(name.to_owned(), Settings::default())]);
    match info.container.mode {
        NetworkMode::Host => return alone("host"),
        NetworkMode::None => return alone("none"),
        NetworkMode::Container(_) => return BTreeMap::new(),
        NetworkMode::Own => {}
    }
    let of = |(endpoint, network): &(Endpoint, Network)| {
        (network.name.to_string(), settings(info, endpoint, network, version))
    };
    info.endpoints.iter().map(of).collect()
}

fn settings(info: &ContainerInfo, endpoint: &Endpoint, network: &Network, version: Version) -> Settings {
    let address = |family| endpoint.addresses.iter().find(|found| Family::of(found.address.addr()) == family);
    let configured = |family| address(family).filter(|found| found.configured).map(|a| a.address.addr().to_string());
    let gateway = |family| {
        let gateway = network.subnets_of(family).find_map(|subnet| subnet.gateway);
        gateway.filter(|_| address(family).is_some() && network.routes_out(family))
    };
    let text = |of: Option<String>| of.unwrap_or_default();
    let container = &info.container;
    let aliases: Vec<String> = endpoint.aliases.iter().map(ToString::to_string).collect();
    let (v4, v6) = (configured(Family::V4), configured(Family::V6));
    let links = endpoint.links.iter().map(|link| format!("{}:{}", link.container, link.alias)).collect::<Vec<_>>();
    let mut names = vec![container.name.to_string()];
    names.extend(aliases.iter().cloned());
    names.push(container.id.short());
    names.extend(container.hostname.iter().map(ToString::to_string));
    Settings {
        ipam: (v4.is_some() || v6.is_some()).then_some(Configured { v4, v6 }),
        links: (!links.is_empty()).then_some(links),
        aliases: (!aliases.is_empty()).then_some(aliases),
        mac_address: endpoint.mac.to_string(),
        driver_opts: None,
        gw_priority: (version >= Version(48)).then_some(endpoint.gateway_priority),
        network: network.id.to_string(),
        endpoint: endpoint.id.to_string(),
        gateway: text(gateway(Family::V4).map(|gateway| gateway.to_string())),
        address: text(address(Family::V4).map(|found| found.address.addr().to_string())),
        prefix: address(Family::V4).map_or(0, |found| found.address.prefix_len()),
        gateway6: text(gateway(Family::V6).map(|gateway| gateway.to_string())),
        address6: text(address(Family::V6).map(|found| found.address.addr().to_string())),
        prefix6: address(Family::V6).map_or(0, |found| found.address.prefix_len()),
        names: (version >= Version(44)).then_some(names),
    }
}

/// Docker's word for whose network stack a container uses: the first network, `host`, `none` or `container:ID`.
pub(super) fn mode(info: &ContainerInfo) -> String {
    match info.container.mode {
        NetworkMode::Host => "host".to_owned(),
        NetworkMode::None => "none".to_owned(),
        NetworkMode::Container(other) => format!("container:{other}"),
        NetworkMode::Own => {
            info.endpoints.first().map_or_else(|| "none".to_owned(), |(_, network)| network.name.to_string())
        }
    }
}

/// A published port: the addresses it is open at, the port of the host and that of the container.
pub(super) struct Published {
    /// `80/tcp`
    pub(super) key: String,
    pub(super) protocol: String,
    pub(super) inside: u16,
    pub(super) addresses: Vec<String>,
    pub(super) outside: u16,
}

/// Every single published port.
pub(super) fn published(publication: &Publication) -> impl Iterator<Item = Published> {
    let addresses: Vec<String> = match publication.host_ip {
        Some(address) => vec![address.to_string()],
        None => vec!["0.0.0.0".to_owned(), "::".to_owned()],
    };
    let protocol = publication.protocol.to_string();
    publication.container.ports().zip(publication.host.ports()).map(move |(inside, outside)| Published {
        key: format!("{inside}/{protocol}"),
        protocol: protocol.clone(),
        inside,
        addresses: addresses.clone(),
        outside,
    })
}

/// `80/tcp` of every port that a container declares.
pub(super) fn exposed(info: &ContainerInfo) -> impl Iterator<Item = (u16, String)> {
    let all = info.container.exposed.iter();
    all.flat_map(|exposed| exposed.ports.ports().map(|port| (port, exposed.protocol.to_string())))
}
