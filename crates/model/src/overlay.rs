use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Family, Id, IfName, Invalid, Mac, Mtu, Name, PerFamily};

/// A VXLAN network identifier (RFC 7348 §5): 1 to 2^24 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// # Errors
    /// When it is 0 or has more than 24 bits.
    pub fn new(number: u32) -> Result<Self, Invalid> {
        match number {
            1..0x100_0000 => Ok(Self(number)),
            _ => Err(Invalid::new("VNI", number.to_string(), "is not between 1 and 16777215")),
        }
    }

    /// The number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u32> for Vni {
    type Error = Invalid;

    fn try_from(number: u32) -> Result<Self, Invalid> {
        Self::new(number)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

/// This host's end of the tunnels between hosts (RFC 7348 calls it a VTEP).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TunnelEnd {
    /// Where it takes packets, and sends them from. Hosts without an address of this family are not reached.
    pub address: IpAddr,
    /// The UDP port, the same on all hosts.
    pub port: u16,
    /// Its MAC, which the others send to.
    pub mac: Mac,
    /// The MTU of its way to the others.
    pub mtu: Mtu,
}

impl TunnelEnd {
    /// What is left for packets inside of packets of `mtu` bytes: without an IP header, and those of UDP, VXLAN and Ethernet.
    ///
    /// IPv6 does not live below its minimum (RFC 8200 §5): there the outer packets are fragments.
    pub fn inner_mtu(&self, mtu: Mtu, speaks_ipv6: bool) -> Mtu {
        const UDP_VXLAN_ETHERNET: u32 = 8 + 8 + 14;
        let ip = match Family::of(self.address) {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        let left = Mtu::new(mtu.bytes().saturating_sub(ip + UDP_VXLAN_ETHERNET)).unwrap_or(Mtu::LEAST);
        if speaks_ipv6 { left.max(Mtu::IPV6_MIN) } else { left }
    }
}

/// What encryption takes of a packet that goes between hosts by `outer`: the headers of IP, UDP and WireGuard, and its tag
/// (whitepaper §5.4.6).
pub const fn seal_bytes(outer: Family) -> u32 {
    let ip = match outer {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    ip + 8 + 32
}

/// How large a packet for the encrypted link may be to get to a host by packets of `outer` that are to have at most `way` bytes.
/// What is encrypted is made a multiple of 16 bytes long before, but not longer than the link's own MTU, `link` (whitepaper §5.4.6;
/// `calculate_skb_padding()`, drivers/net/wireguard/send.c).
pub fn sealed_mtu(way: Mtu, outer: Family, link: Mtu) -> Mtu {
    const PADDED: u32 = 16;
    let left = way.bytes().saturating_sub(seal_bytes(outer));
    let left = if left < link.bytes() { left / PADDED * PADDED } else { link.bytes() };
    Mtu::new(left).unwrap_or(Mtu::LEAST)
}

/// The LAN that an underlay address is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lan {
    /// The interface that has the address.
    pub interface: IfName,
    /// Its subnet.
    pub net: IpNet,
}

/// What a network over several hosts is on this one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Overlay {
    /// Its number, the same on all hosts.
    pub vni: Vni,
    /// This host's end of its tunnels.
    pub end: TunnelEnd,
    /// Whether they go through the encrypted link between hosts, whose addresses the ends have then.
    #[serde(default, skip_serializing_if = "crate::network::is_no")]
    pub sealed: bool,
    /// Whether this host's ends of tunnels can answer those of others, by IPv6: so hosts measure their paths to each other.
    #[serde(default, skip_serializing_if = "crate::network::is_no")]
    pub measured: bool,
    /// Whether this host takes packets of IPv4 by the encrypted link translated, without a tunnel.
    #[serde(default, skip_serializing_if = "crate::network::is_no")]
    pub translates: bool,
    /// By which LANs it goes without tunnels to hosts that are on them as well; none where it always goes by tunnels.
    #[serde(default, skip_serializing_if = "PerFamily::is_none")]
    pub direct: PerFamily<Option<Lan>>,
}

/// Another host of the cluster, as packets to it need it. One row of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id in the cluster.
    pub host: Id,
    /// What it is called there.
    pub name: Name,
    /// Where it takes packets.
    pub underlay: PerFamily<Option<IpAddr>>,
    /// The subnets of the LANs that those addresses are on.
    #[serde(default, skip_serializing_if = "PerFamily::is_none")]
    pub lan: PerFamily<Option<IpNet>>,
    /// Where it is on the encrypted link between hosts, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Ipv6Addr>,
    /// Whether what is encrypted goes to it by IPv6, because the two hosts do not both have IPv4.
    #[serde(default, skip_serializing_if = "crate::network::is_no")]
    pub sealed_by_ipv6: bool,
    /// Whether it takes packets of IPv4 by that link translated, without a tunnel.
    #[serde(default, skip_serializing_if = "crate::network::is_no")]
    pub translates: bool,
    /// The MAC of its ends of tunnels.
    pub mac: Mac,
    /// The MTU of its way to the others.
    pub mtu: Mtu,
}

/// Addresses of an overlay network that another host gives out. One row of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RemoteBlock {
    /// The network.
    pub network: Id,
    /// The addresses.
    pub block: IpNet,
    /// The host.
    pub host: Id,
}

/// A part of a block that its host gives no address out of, for it is offered to the cluster or to another host: what came of that
/// is known as soon as the block's key is seen to be written by another revision, or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Withheld {
    /// The block as it was.
    pub block: IpNet,
    /// Which addresses of it.
    pub part: IpNet,
    /// The revision of etcd that had written the block's key: what was offered is offered on the condition that it still is.
    pub written: i64,
}

/// A container's place on an overlay network at another host. One row of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteEndpoint {
    /// Its id.
    pub id: Id,
    /// The network.
    pub network: Id,
    /// The host.
    pub host: Id,
    /// The container.
    pub container: Id,
    /// What the container is called.
    pub name: String,
    /// What else it is called on this network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC, on networks where other hosts need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Whether those who are well answer in its place to names that it shares with them.
    #[serde(default, skip_serializing_if = "crate::network::is_no")]
    pub unwell: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_take_their_part() {
        let end = |address: &str| TunnelEnd {
            address: address.parse().unwrap(),
            port: 4789,
            mac: Mac::from_bytes([2; 6]),
            mtu: Mtu::ETHERNET,
        };
        let left = |address: &str, mtu: u32, ipv6| end(address).inner_mtu(Mtu::new(mtu).unwrap(), ipv6).bytes();
        assert_eq!(left("10.0.0.1", 1500, true), 1450);
        assert_eq!(left("fd00::1", 1500, true), 1430);
        assert_eq!(left("10.0.0.1", 1280, false), 1230);
        assert_eq!(left("10.0.0.1", 1280, true), 1280);
        assert_eq!(left("fd00::1", 9000, false), 8930);
    }

    #[test]
    fn what_is_encrypted_fits_when_it_is_padded() {
        let mtu = |bytes| Mtu::new(bytes).unwrap();
        let to = |way, outer, link| sealed_mtu(mtu(way), outer, mtu(link)).bytes();
        assert_eq!(to(1500, Family::V4, 1440), 1440, "the link's own");
        assert_eq!(to(9000, Family::V4, 1370), 1370, "no more than that");
        assert_eq!(to(1430, Family::V4, 1440), 1360);
        assert_eq!(to(1500, Family::V6, 1440), 1408);
    }

    #[test]
    fn vnis_have_24_bits() {
        assert!(Vni::new(0).is_err() && Vni::new(1 << 24).is_err());
        assert_eq!(Vni::new(0xff_ffff).unwrap().number(), 0xff_ffff);
    }
}
