//! Veth pairs, and what leads to those that are on no bridge.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{IfName, Mac, Mtu, Sandbox};

/// A veth pair: `host_end` on a bridge or by itself, `sandbox_end` in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// The end on the host.
    pub host_end: IfName,
    /// What that end is.
    pub place: HostEnd,
    /// The MAC of the end in the sandbox.
    pub mac: Mac,
    /// The MTU of both ends.
    pub mtu: Mtu,
    /// The alias that says whose it is.
    pub alias: String,
    /// Where the other end is.
    pub sandbox: Sandbox,
    /// The name of the other end.
    pub sandbox_end: IfName,
}

/// What the host end of a veth pair is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostEnd {
    /// A port of a bridge.
    Bridge(BridgePort),
    /// An interface that the host routes by.
    Routed(Routed),
}

/// A host end on a bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BridgePort {
    /// The bridge.
    pub bridge: IfName,
    /// Whether the bridge keeps it from other isolated ports (ICC off).
    pub isolated: bool,
    /// Whether frames from any other MAC are dropped.
    pub locked: bool,
    /// Whether it asks by itself: the bridge answers for those behind tunnels, but not what is asked at a port that it keeps
    /// questions from (`BR_NEIGH_SUPPRESS`, `br_do_proxy_suppress_arp()`).
    pub asks: bool,
    /// Whether our rules see it: not on somebody else's bridge, which may be there without any rule of ours.
    pub ruled: bool,
    /// The VLAN it is in, untagged, where the bridge keeps VLANs apart.
    pub vlan: Option<u16>,
}

/// A host end that is on no bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Routed {
    /// Its MAC, the gateway's.
    pub mac: Mac,
    /// The gateway addresses, which every host end of a network has.
    pub gateways: BTreeSet<IpAddr>,
    /// Whether IPv6 is to live on it at all.
    pub ipv6: bool,
    /// Whether packets from 127.0.0.0/8 may be routed out of it, for ports published on 127.0.0.1.
    pub route_localnet: bool,
}

impl Port {
    /// The bridge that its host end is on.
    pub fn bridge(&self) -> Option<&IfName> {
        match &self.place {
            HostEnd::Bridge(port) => Some(&port.bridge),
            HostEnd::Routed(_) => None,
        }
    }
}

/// Where the host sends what is for an address, a subnet or a part of one, of a network without a bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostRoute {
    /// All of a container's address, a subnet, or a block of one.
    pub destination: IpNet,
    /// How it gets there.
    pub way: Way,
}

/// The way that the host sends packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// To a container, by its host end.
    HostEnd {
        /// The host end.
        device: IfName,
        /// The gateway address that the host itself sends from.
        from: IpAddr,
    },
    /// To another host, by this one's end of the tunnels.
    Tunnel {
        /// That end.
        device: IfName,
        /// The other host, as a neighbour there.
        via: IpAddr,
        /// What fits through, if that is less than elsewhere.
        mtu: Option<Mtu>,
    },
    /// To another host, by a LAN that both are on.
    Lan {
        /// The interface that is on it.
        device: IfName,
        /// The other host.
        via: IpAddr,
        /// What fits through, if that is less than elsewhere.
        mtu: Option<Mtu>,
    },
    /// Nowhere: no container has it, and the host's other routes must not lead there.
    Unreachable,
}

impl Way {
    /// The interface that it leads out of.
    pub const fn device(&self) -> Option<&IfName> {
        match self {
            Self::HostEnd { device, .. } | Self::Tunnel { device, .. } | Self::Lan { device, .. } => Some(device),
            Self::Unreachable => None,
        }
    }
}
