//! Podman's containers on networks of the cluster: what Podman has of such a network is no more than its name, for it is made
//! and its addresses are given out elsewhere.

use std::collections::BTreeMap;
use std::path::Path;

use portolan_engine::{AttachRequest, ContainerInfo, EndpointRequest, Error, NetworkRequest};
use portolan_model::{DnsConfig, Driver, Endpoint, Name, Network as EngineNetwork, Tuning};
use serde::Deserialize;

use crate::failure::Failure;
use crate::setup::{PORT_KEEPER, container_id, interface, mac, network_name, published};
use crate::status::{SEARCH_DOMAIN, interface_of};
use crate::wire::{Attachment, Network, PluginInput, PortMapping, StatusBlock, shortened};

/// The driver that stands for one.
const DRIVER: &str = "overlay";
/// The label by which a network of another driver does: Podman before 4.4 knows no other drivers than its own.
const LABEL: &str = "portolan.network";
/// The option with its name in the cluster, where Podman has another one for it.
const OPTION: &str = "network";

/// What a plugin is told on standard input at `setup` and `teardown`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ClusterCall {
    container_id: String,
    #[serde(default)]
    container_name: String,
    #[serde(default)]
    port_mappings: Option<Vec<PortMapping>>,
    network: Network,
    network_options: Attachment,
}

impl ClusterCall {
    /// Reads it.
    ///
    /// # Errors
    /// With the place in the text.
    pub fn parse(text: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(text).map_err(|error| Failure::new(format!("JSON Decoding error: {error}")))
    }

    /// The same, as others are told it.
    pub fn input(&self) -> PluginInput<'_> {
        PluginInput {
            container_id: &self.container_id,
            container_name: &self.container_name,
            port_mappings: self.port_mappings.as_deref(),
            network: &self.network,
            network_options: &self.network_options,
        }
    }
}

/// What the network that Podman's stands for is called, if it stands for one of ours.
pub fn cluster_network(network: &Network) -> Option<&str> {
    let label = network.labels.as_ref().and_then(|labels| labels.get(LABEL)).map(String::as_str);
    let said = network.option(OPTION).filter(|_| network.driver == DRIVER);
    let is_one = network.driver == DRIVER || label.is_some();
    is_one.then(|| said.or(label).filter(|name| !name.is_empty()).unwrap_or(&network.name))
}

/// What has to be made for a new network of Podman's, if none of its name is there.
///
/// # Errors
/// What Podman would have to decide about such a network, and cannot.
pub fn wanted_network(network: &Network) -> Result<NetworkRequest, Failure> {
    network_name(network)?;
    let called = cluster_network(network).unwrap_or(&network.name);
    let called: Name = called.parse().map_err(|error| Failure::new(format!("invalid network name: {error}")))?;
    let mut options = network.options.clone().unwrap_or_default();
    options.remove(OPTION);
    let subnets: Vec<_> = network.subnets.iter().flatten().collect();
    if subnets.iter().any(|subnet| subnet.lease_range.is_some()) {
        return Err(foreign("--ip-range"));
    }
    if subnets.iter().any(|subnet| subnet.gateway.is_some()) {
        return Err(foreign("--gateway"));
    }
    Ok(NetworkRequest {
        driver: Driver::Overlay,
        subnets: subnets.iter().map(|subnet| subnet.subnet).collect(),
        internal: network.internal,
        options,
        labels: network.labels.clone().unwrap_or_default(),
        ..NetworkRequest::new(called)
    })
}

fn foreign(flag: &str) -> Failure {
    Failure::new(format!("a network of the cluster has no {flag}: each host gives out addresses of its own blocks"))
}

/// What Podman is to keep of a network that stands for `there`.
///
/// # Errors
/// When it asks for another one than there is.
pub fn complete_cluster(mut network: Network, there: &EngineNetwork) -> Result<Network, Failure> {
    let wanted = wanted_network(&network)?;
    let differs = |what: &str| {
        Err(Failure::new(format!("network `{}` is there with other {what} (leave them out to use it)", there.name)))
    };
    let nets: Vec<_> = there.subnets.iter().map(|subnet| subnet.net).collect();
    if wanted.subnets.iter().any(|net| !nets.contains(net)) {
        return differs("subnets");
    }
    if wanted.options.iter().any(|(key, value)| there.raw_options.get(key) != Some(value)) {
        return differs("options");
    }
    if wanted.internal && !there.internal {
        return Err(Failure::new(format!("network `{}` is there, and not internal", there.name)));
    }
    // With subnets Podman would give out their addresses, which are not this host's alone.
    network.subnets = None;
    network.ipam_options.get_or_insert_with(BTreeMap::new).insert("driver".to_owned(), "none".to_owned());
    network.dns_enabled = false;
    network.ipv6_enabled = there.subnets.iter().any(|subnet| subnet.net.addr().is_ipv6());
    Ok(network)
}

/// What the engine is asked for a container on such a network. Whose namespace `has_way_out` is on another network as well, by
/// which it is also reached at published ports.
///
/// # Errors
/// What cannot be; that Podman has chosen an address itself.
pub fn join_request(input: &PluginInput<'_>, netns: &Path, has_way_out: bool) -> Result<AttachRequest, Failure> {
    let (network, place) = (input.network, input.network_options);
    let Some(called) = cluster_network(network) else {
        return Err(Failure::new(format!("network {} is none of the cluster", shortened(&network.name))));
    };
    let is_podmans = network.subnets.iter().flatten().next().is_some() || !matches!(network.ipam(), "" | "none");
    if is_podmans {
        return Err(Failure::new(format!(
            "network {} is one of the cluster, where Podman cannot give out addresses: each host has blocks of its own \
             (make Podman's network anew, with --ipam-driver none)",
            shortened(called)
        )));
    }
    if place.interface_name.is_empty() {
        return Err(Failure::new("no container interface name given"));
    }
    let mac = place.static_mac.as_deref().filter(|text| !text.is_empty()).map(mac).transpose()?;
    let mut publish = Vec::new();
    for mapping in input.port_mappings.iter().copied().flatten().filter(|_| !has_way_out) {
        publish.extend(published(mapping)?);
    }
    let endpoint = EndpointRequest {
        addresses: place.static_ips.clone().unwrap_or_default(),
        mac,
        ifname: Some(interface(&place.interface_name)?),
        aliases: place.aliases.iter().flatten().filter_map(|alias| alias.parse().ok()).collect(),
        tuning: Tuning { no_default_route: has_way_out, ..Tuning::default() },
        ..EndpointRequest::new(called)
    };
    Ok(AttachRequest {
        id: Some(container_id(input.container_id)),
        name: input.container_name.parse().ok(),
        endpoints: vec![endpoint],
        publish,
        dns: DnsConfig { search: vec![SEARCH_DOMAIN.to_owned()], ..DnsConfig::default() },
        port_keeper: Some(PORT_KEEPER.to_owned()),
        ..AttachRequest::namespace(netns)
    })
}

/// What Podman is answered of a container's place on such a network.
pub fn status_block(info: &ContainerInfo, input: &PluginInput<'_>) -> Option<StatusBlock> {
    let called = cluster_network(input.network)?;
    let (endpoint, network): &(Endpoint, EngineNetwork) = info
        .endpoints
        .iter()
        .find(|(_, network)| network.name.as_str() == called || network.id.to_string() == called)?;
    let servers = network.names_places();
    Some(StatusBlock {
        dns_search_domains: Some(if servers.is_empty() { Vec::new() } else { vec![SEARCH_DOMAIN.to_owned()] }),
        dns_server_ips: Some(servers),
        interfaces: Some(BTreeMap::from([(endpoint.ifname.to_string(), interface_of(endpoint, network))])),
    })
}

/// A refusal of the engine, with its advice: it is our networks that it speaks of.
pub fn cluster_failure(error: &Error) -> Failure {
    let mut text = error.to_string();
    if let Error::Kernel { source, .. } = error {
        text = format!("{text}: {source}");
    }
    if let Some(hint) = error.hint() {
        text = format!("{text} ({hint})");
    }
    Failure::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(json: &str) -> Network {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn by_driver_by_option_and_by_label() {
        let called = |rest: &str| {
            let id = "0".repeat(64);
            let network = network(&format!(r#"{{"name":"web","id":"{id}",{rest}}}"#));
            cluster_network(&network).map(str::to_owned)
        };
        assert_eq!(called(r#""driver":"bridge""#), None);
        assert_eq!(called(r#""driver":"bridge","options":{"network":"shop"}"#), None);
        assert_eq!(called(r#""driver":"overlay""#).as_deref(), Some("web"));
        assert_eq!(called(r#""driver":"overlay","options":{"network":"shop"}"#).as_deref(), Some("shop"));
        assert_eq!(called(r#""driver":"bridge","labels":{"portolan.network":""}"#).as_deref(), Some("web"));
        assert_eq!(called(r#""driver":"bridge","labels":{"portolan.network":"shop"}"#).as_deref(), Some("shop"));
    }

    #[test]
    fn podman_chooses_no_addresses() {
        let text = r#"{"container_id":"c","container_name":"c","network":{"name":"web","id":"1","driver":"bridge",
            "labels":{"portolan.network":"web"},"subnets":[{"subnet":"10.89.0.0/24","gateway":"10.89.0.1"}]},
            "network_options":{"interface_name":"eth0","static_ips":["10.89.0.2"]}}"#;
        let call = ClusterCall::parse(text.as_bytes()).unwrap();
        let refused = join_request(&call.input(), Path::new("/run/netns/x"), false).unwrap_err().to_string();
        assert!(refused.contains("--ipam-driver none"), "{refused}");
    }

    #[test]
    fn whose_default_route_is_anothers_publishes_nothing() {
        let text = r#"{"container_id":"c","container_name":"c",
            "port_mappings":[{"host_ip":"","container_port":80,"host_port":8080,"range":1,"protocol":"tcp"}],
            "network":{"name":"web","id":"1","driver":"overlay"},"network_options":{"interface_name":"eth0"}}"#;
        let call = ClusterCall::parse(text.as_bytes()).unwrap();
        let request = |has| join_request(&call.input(), Path::new("/run/netns/x"), has).unwrap();
        assert_eq!((request(false).publish.len(), request(true).publish.len()), (1, 0));
        assert!(request(true).endpoints[0].tuning.no_default_route);
    }

    #[test]
    fn what_podman_would_decide_is_refused() {
        for (subnet, flag) in [
            (r#"{"subnet":"10.5.0.0/16","gateway":"10.5.0.9"}"#, "--gateway"),
            (r#"{"subnet":"10.5.0.0/16","lease_range":{"start_ip":"10.5.0.9"}}"#, "--ip-range"),
        ] {
            let text = format!(r#"{{"name":"web","id":"1","driver":"overlay","subnets":[{subnet}]}}"#);
            let refused = wanted_network(&network(&text)).unwrap_err().to_string();
            assert!(refused.contains(flag), "{refused}");
        }
    }
}
