use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Family, Id, IfName, Mac, Name, Phase};

/// An address of an endpoint, with the subnet's prefix length: `172.20.0.2/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointAddress {
    /// The address and the prefix length of its subnet; host bits are kept.
    pub address: IpNet,
    /// Whether a person asked for this address.
    pub configured: bool,
}

/// Another container that this one knows under names of its own (`--link NAME:ALIAS`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The other container.
    pub container: Name,
    /// What this container calls it.
    pub alias: Name,
}

/// One sandbox's place on one network: interface, MAC, addresses, names. One row of the store,
/// unique by (network, container, interface).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The identity, drawn at random.
    pub id: Id,
    /// The network.
    pub network: Id,
    /// The container.
    pub container: Id,
    /// The interface inside the sandbox (`sandbox_end`).
    pub ifname: IfName,
    /// The veth end on the bridge.
    pub host_end: IfName,
    /// The MAC of `sandbox_end`.
    pub mac: Mac,
    /// Whether a person asked for this MAC.
    pub mac_configured: bool,
    /// Addresses, in the order of the network's subnets.
    pub addresses: Vec<EndpointAddress>,
    /// Which endpoint gives the sandbox its default route: the highest number.
    pub gateway_priority: i32,
    /// Names on this network besides the container's own.
    pub aliases: Vec<Name>,
    /// Names for others that only this container sees.
    pub links: Vec<Link>,
    /// Tell neighbours about the addresses: another MAC held one of them before.
    pub announce: bool,
    /// Where it stands.
    pub phase: Phase,
}

impl Endpoint {
    /// The first address of `family`, the one that published ports lead to.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().map(|a| a.address.addr()).find(|&ip| Family::of(ip) == family)
    }
}
