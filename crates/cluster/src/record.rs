//! What the values in etcd say. JSON; what a later version adds is passed over.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use portolan_model::{Id, Lan, Mac, Mtu, Name, PerFamily, Vni};
use serde::{Deserialize, Serialize};

/// The format that this version reads and writes. Who finds a higher one leaves everything as it is.
pub const FORMAT: u32 = 2;

/// That of VXLAN (RFC 7348 §8).
pub const VXLAN_PORT: u16 = 4789;

const fn vxlan_port() -> u16 {
    VXLAN_PORT
}

/// What is the same on every host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Drawn at random when it began: an etcd that was emptied and begun anew holds another one.
    pub id: Id,
    /// See [`FORMAT`].
    pub format: u32,
    /// The UDP port of the tunnels between hosts.
    #[serde(default = "vxlan_port")]
    pub port: u16,
    /// What networks are cut out of for which nobody chooses a subnet.
    pub pools: PerFamily<IpNet>,
    /// How long the prefix of such a network is.
    pub lengths: PerFamily<u8>,
}

/// A host's end of the encrypted link between hosts (WireGuard).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealRecord {
    /// Its public key, as wg(8) writes it.
    pub key: String,
    /// The UDP port at which it takes packets for that key.
    pub port: u16,
    /// Where it is on that link: a link-local address drawn at random.
    pub address: Ipv6Addr,
    /// The round that the key is of ([`crate::step`]).
    #[serde(default)]
    pub round: u64,
    /// The key that takes its place, while keys change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<KeyRecord>,
    /// It sends by its key of this round alone to all that have one.
    #[serde(default)]
    pub moved: u64,
    /// Which secret it mixes into what it agrees on: a fingerprint that does not tell it. Hosts whose secrets differ do not reach
    /// each other on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// One of a host's keys for the encrypted link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The public key.
    pub key: String,
    /// The UDP port at which packets for it are taken.
    pub port: u16,
    /// Its round.
    pub round: u64,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// What it is called, in this cluster alone.
    pub name: Name,
    /// Where it takes packets of other hosts; at least one.
    pub underlay: PerFamily<Option<IpAddr>>,
    /// The LANs that those addresses are on: hosts on the same one reach each other there without a router.
    #[serde(default, skip_serializing_if = "PerFamily::is_none")]
    pub lan: PerFamily<Option<Lan>>,
    /// The MAC of its ends of tunnels, drawn at random.
    pub mac: Mac,
    /// The MTU of its way to the others.
    pub mtu: Mtu,
    /// Its end of the encrypted link between hosts, if it can have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<SealRecord>,
    /// Its version, for people.
    pub version: String,
}

impl HostRecord {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        [self.underlay.v4, self.underlay.v6].into_iter().flatten()
    }
}

/// A network that all hosts have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNetwork {
    /// Its name, in this cluster alone.
    pub name: Name,
    /// Its number.
    pub vni: Vni,
    /// Its addresses, cut into blocks; of either family one at most.
    pub prefixes: PerFamily<Option<IpNet>>,
    /// How long the prefixes of its blocks are.
    pub block_lengths: PerFamily<u8>,
    /// No way out.
    #[serde(default)]
    pub internal: bool,
    /// Options as given.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Labels, for people.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970 of its creation, by the clock of the host that made it: for people.
    pub created: u64,
}

impl ClusterNetwork {
    /// Its prefixes, those of IPv4 first.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        [self.prefixes.v4, self.prefixes.v6].into_iter().flatten()
    }
}

/// Who gives out a block's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The host.
    pub host: Id,
}

/// How a host's rows and kernel differ from what all share, when it was asked to look.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checked {
    /// A sentence each; none when all is as it should be.
    pub differences: Vec<String>,
    /// How many there are, those that are left out among them.
    pub count: usize,
}

/// A container's place on a network, as the names of other hosts need it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// The container.
    pub container: Id,
    /// What it is called.
    pub name: String,
    /// What else it is called on this network.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC, on networks that are one broadcast domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}
