//! What is answered to a setup.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portolan_engine::ContainerInfo;
use portolan_model::{Endpoint, Mac, Network as EngineNetwork};

use crate::setup::network_id;
use crate::wire::{Address, Interface, Setup, StatusBlock};

/// What containers' resolvers append to names, for those who write it out.
pub const SEARCH_DOMAIN: &str = "dns.podman";

/// The status of each of the networks of `setup` that the container is on, by name; plugins have answered for theirs.
///
/// `mac_of` tells the MAC of an interface of the host: that of an ipvlan or passthru interface is its parent's.
pub fn status(
    setup: &Setup,
    info: &ContainerInfo,
    mac_of: impl Fn(&str) -> Option<Mac>,
) -> BTreeMap<String, StatusBlock> {
    let mut all = BTreeMap::new();
    for attachment in &setup.networks {
        let Some(network) = setup.network_info.get(&attachment.name) else { continue };
        let id = network_id(network);
        let Some((endpoint, joined)) = info.endpoints.iter().find(|(_, joined)| joined.id == id) else { continue };
        let (servers, search) = if joined.names {
            let servers = if joined.is_managed_bridge() {
                network.subnets.iter().flatten().filter_map(|subnet| subnet.gateway).collect()
            } else {
                joined.names_at.clone()
            };
            (servers, vec![SEARCH_DOMAIN.to_owned()])
        } else {
            // What a person chose with --dns is Podman's to write down, before what a DHCP server says.
            let leased = || endpoint.leases().flat_map(|lease| lease.dns.iter().copied()).collect();
            let mut domains: Vec<String> = Vec::new();
            for domain in endpoint.leases().flat_map(|lease| &lease.domains) {
                if !domains.contains(domain) {
                    domains.push(domain.clone());
                }
            }
            (setup.dns_servers.clone().unwrap_or_else(leased), domains)
        };
        let block = StatusBlock {
            dns_search_domains: Some(search),
            dns_server_ips: Some(servers),
            interfaces: Some(BTreeMap::from([(endpoint.ifname.to_string(), interface(endpoint, joined, &mac_of))])),
        };
        all.insert(attachment.name.clone(), block);
    }
    all
}

/// A place on a network that we give out the addresses of.
pub(crate) fn interface_of(endpoint: &Endpoint, network: &EngineNetwork) -> Interface {
    interface(endpoint, network, |_| None)
}

fn interface(endpoint: &Endpoint, network: &EngineNetwork, mac_of: impl Fn(&str) -> Option<Mac>) -> Interface {
    let mac = if network.shares_parents_mac() { mac_of(network.bridge.as_str()) } else { None };
    let mac = mac.unwrap_or(endpoint.mac);
    let gateway = |ip: IpAddr| {
        let leased = endpoint.leases().find(|lease| lease.address.addr() == ip);
        match leased {
            Some(lease) => lease.gateway,
            None => network.gateway_for(ip),
        }
    };
    let subnets = endpoint
        .addresses
        .iter()
        .map(|address| Address { gateway: gateway(address.address.addr()), ipnet: address.address });
    Interface { mac_address: mac.to_string(), subnets: Some(subnets.collect()) }
}
