use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Bandwidth, DhcpLease, Family, Id, IfName, Mac, Name, PerFamily, Phase, Tuning};

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
    /// What DHCP servers granted; their addresses are among `addresses`.
    #[serde(default, skip_serializing_if = "is_unleased")]
    pub leases: PerFamily<Option<DhcpLease>>,
    /// Which endpoint gives the sandbox its default route: the highest number.
    pub gateway_priority: i32,
    /// Names on this network besides the container's own.
    pub aliases: Vec<Name>,
    /// Names for others that only this container sees.
    pub links: Vec<Link>,
    /// How much may pass between it and its network.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// What else its interface and its namespace are to be.
    #[serde(default, skip_serializing_if = "Tuning::is_none")]
    pub tuning: Tuning,
    /// Tell neighbours about the addresses: another MAC held one of them before.
    pub announce: bool,
    /// Where it stands.
    pub phase: Phase,
}

const fn is_unleased(leases: &PerFamily<Option<DhcpLease>>) -> bool {
    leases.v4.is_none() && leases.v6.is_none()
}

impl Endpoint {
    /// Takes over `lease` as the only address of its family, or with none has no address of that family.
    pub fn set_lease(&mut self, family: Family, lease: Option<DhcpLease>) {
        self.addresses.retain(|address| Family::of(address.address.addr()) != family);
        if let Some(lease) = &lease {
            self.addresses.push(EndpointAddress { address: lease.address, configured: false });
            self.addresses.sort_by_key(|address| Family::of(address.address.addr()));
        }
        *self.leases.of_mut(family) = lease;
    }

    /// All that it holds by DHCP.
    pub fn leases(&self) -> impl Iterator<Item = &DhcpLease> {
        Family::ALL.into_iter().filter_map(|family| self.leases.of(family).as_ref())
    }

    /// The first address of `family`, the one that published ports lead to.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().map(|a| a.address.addr()).find(|&ip| Family::of(ip) == family)
    }
}
