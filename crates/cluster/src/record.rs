//! What the values in etcd say. JSON; what a later version adds is passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use portolan_model::{Family, Id, Lan, Mac, Mtu, Name, PerFamily, Vni, seal_bytes, sealed_mtu};
use serde::{Deserialize, Serialize};

use crate::common;

/// The format that this version reads and writes. Who finds a higher one leaves everything as it is.
pub const FORMAT: u32 = 3;

/// From this one on everybody writes [`crate::Layout::written`], so that there can be bundles.
pub const BUNDLES: u32 = 3;

/// That of VXLAN (RFC 7348 §8).
pub const VXLAN_PORT: u16 = 4789;

const fn vxlan_port() -> u16 {
    VXLAN_PORT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_no(flag: &bool) -> bool {
    !*flag
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
    /// Where it is on that link: a link-local address drawn at random ([`SealRecord::address_of`]).
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

impl SealRecord {
    /// How long the prefix is that all addresses on the link have (RFC 4291 §2.4).
    pub const LINK: u8 = 10;
    /// How long the prefix is that a host has there for itself. Whom a packet is for is looked up bit by bit by whoever carries
    /// it where the kernel does not, so it is as short as 2^38 of them are enough for.
    const OWN: u8 = 48;
    /// How many bits of it tell most hosts of a cluster from all others: 14 of them are random.
    const TOLD: u8 = 24;

    /// The address that is made of a random number. Other than those that are made of MACs (RFC 4291 §2.5.6), which are alike in
    /// their first half, it is told from others by its first bits.
    pub fn address_of(random: u128) -> Ipv6Addr {
        Ipv6Addr::from_bits((0xfe80_u128 << 112) | (random >> Self::LINK))
    }

    /// The addresses from which a host takes packets of this one, and to which it sends them.
    pub fn allowed(&self) -> Ipv6Net {
        if self.has_prefix() { self.own() } else { self.address.into() }
    }

    fn own(&self) -> Ipv6Net {
        self.prefix(Self::OWN)
    }

    fn prefix(&self, length: u8) -> Ipv6Net {
        Ipv6Net::new(self.address, length).expect("a length of an IPv6 prefix").trunc()
    }

    /// What each of these hosts is told from the others by, in their order: as few bits as do, for that is what whoever carries
    /// packets looks through for each. Nobody else is in what a host has so beside its own prefix.
    pub fn told_by<'a>(all: impl IntoIterator<Item = &'a Self>) -> Vec<Ipv6Net> {
        let all: Vec<&Self> = all.into_iter().collect();
        let mut sharing: BTreeMap<Ipv6Net, usize> = BTreeMap::new();
        for seal in &all {
            *sharing.entry(seal.prefix(Self::TOLD)).or_default() += 1;
        }
        let one = |seal: &&Self| {
            let short = seal.prefix(Self::TOLD);
            if sharing[&short] == 1 { short } else { seal.allowed() }
        };
        all.iter().map(one).collect()
    }

    /// Whether it has more than one address there. Not one that was drawn by a host of an earlier version.
    pub fn has_prefix(&self) -> bool {
        self.own().network() != Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)
    }
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
    /// Whether others come to it by themselves.
    #[serde(default, skip_serializing_if = "Reach::is_open")]
    pub reach: Reach,
    /// Whether it takes packets of IPv4 on the encrypted link translated, in its prefix there, without a tunnel.
    #[serde(default, skip_serializing_if = "is_no")]
    pub translates: bool,
    /// Whether its ends of tunnels answer who measures the path to them.
    #[serde(default, skip_serializing_if = "is_no")]
    pub answers: bool,
    /// Its version, for people.
    pub version: String,
}

/// Whether others come to a host by themselves, at the addresses that it says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// They do, and it passes on what hosts send each other by the encrypted link that do not reach each other.
    #[default]
    Open,
    /// They do, and it passes on nothing.
    NoRelay,
    /// They do not: its addresses are its own affair, and it has to speak first.
    BehindNat,
}

impl Reach {
    const fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }
}

/// By which host two others send on the encrypted link, for they do not reach each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayRecord {
    /// The one who passes on what they send.
    pub relay: Id,
    /// The UDP port at which he takes it, once he has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// They are to try it by themselves first, at the places where he sees them: behind most NATs that works when both begin.
    #[serde(default, skip_serializing_if = "is_no")]
    pub meets: bool,
    /// Those places, by public key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub seen: BTreeMap<String, SocketAddr>,
    /// Where the two could be reached when they chose it: elsewhere, they try it by themselves again.
    #[serde(default)]
    pub instead_of: BTreeSet<IpAddr>,
}

impl HostRecord {
    /// Whether it is behind NAT.
    pub const fn is_behind_nat(&self) -> bool {
        matches!(self.reach, Reach::BehindNat)
    }

    /// The addresses that no other host can have: those of hosts behind NAT are their own affair.
    pub fn taken(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses().filter(|_| !self.is_behind_nat())
    }

    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        [self.underlay.v4, self.underlay.v6].into_iter().flatten()
    }

    /// The family of the packets that encrypted ones go to `other` in: IPv4 if both have it. Else one that passes packets on may do so
    /// by IPv6.
    pub fn sealed_family(&self, other: &Self) -> Family {
        common(self, other).map_or(Family::V6, Family::of)
    }

    /// What the encrypted link takes on the way to `other`.
    pub fn sealed_mtu_to(&self, other: &Self) -> Mtu {
        sealed_mtu(self.mtu.min(other.mtu), self.sealed_family(other), self.sealed_mtu())
    }

    /// What the encrypted link takes at most of this host's MTU: over IPv4, where it has it; to those who do not have it, it is
    /// less.
    pub fn sealed_mtu(&self) -> Mtu {
        let family = if self.underlay.v4.is_some() { Family::V4 } else { Family::V6 };
        Mtu::new(self.mtu.bytes().saturating_sub(seal_bytes(family))).unwrap_or(Mtu::LEAST)
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
    /// It is not healthy, or not yet: hosts answer names that it shares with others by those. Older versions answer by all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unwell: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_from_others_by_its_first_bits() {
        let seal = |address| SealRecord {
            key: String::new(),
            port: 51820,
            address,
            round: 0,
            next: None,
            moved: 0,
            secret: None,
        };
        for random in [0x1234_5678_9abc_def0_u128 << 64, u128::MAX, 1 << 127] {
            let address = SealRecord::address_of(random);
            assert!(address.is_unicast_link_local(), "{address}");
            let allowed = seal(address).allowed();
            assert!(allowed.prefix_len() == 48 && allowed.contains(&address), "{allowed}");
        }
        let drawn_before = "fe80::42:acff:fe11:2".parse().unwrap();
        assert_eq!(seal(drawn_before).allowed(), Ipv6Net::from(drawn_before));
        // Two that begin alike, one that does not, and two of before.
        let alike = ["fe92:1234:5678::1", "fe92:12ff::1", "fea0:1::1", "fe80::42:acff:fe11:2", "fe80::1"];
        let seals = alike.map(|address| seal(address.parse().unwrap()));
        let told: Vec<String> = SealRecord::told_by(&seals).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            ["fe92:1234:5678::/48", "fe92:12ff::/48", "fea0::/24", "fe80::42:acff:fe11:2/128", "fe80::1/128"]
        );
        for (at, net) in SealRecord::told_by(&seals).iter().enumerate() {
            let inside: Vec<usize> = (0..seals.len()).filter(|other| net.contains(&seals[*other].address)).collect();
            assert_eq!(inside, [at], "{net}");
        }
    }
}
