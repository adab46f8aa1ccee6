//! Tunnels between hosts.

use std::fmt;
use std::net::IpAddr;

use portolan_model::{IfName, Mac, Mtu, Vni};

/// The host's end of an overlay network's tunnels: a VXLAN interface that learns nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vxlan {
    /// The device.
    pub name: IfName,
    /// The network's number.
    pub vni: Vni,
    /// Where it takes packets, and sends them from.
    pub local: IpAddr,
    /// The interface that its packets come and go by, and no other; none for wherever routes lead.
    pub by: Option<IfName>,
    /// The UDP port of all ends.
    pub port: u16,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: Mtu,
    /// The alias that says whose it is.
    pub alias: String,
    /// Whether IPv6 is to live on it at all.
    pub ipv6: bool,
    /// What it is on a bridge; none where the host routes by it.
    pub on: Option<TunnelPort>,
}

/// An end of tunnels as a port of a bridge: what is broadcast goes by it, what is for an unknown MAC does not, and the bridge answers
/// for those behind it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelPort {
    /// The bridge.
    pub bridge: IfName,
    /// Whether the bridge keeps it from containers (ICC off).
    pub isolated: bool,
}

impl Vxlan {
    /// Whether its packets need no checksums of their own: the encrypted link tells its own packets from all others
    /// (RFC 6936 §3.1 wants that whoever carries them does).
    pub const fn is_unchecked(&self) -> bool {
        self.by.is_some()
    }

    /// Whether one can become the other. The kernel changes neither number, address nor port of one that is there: it is made
    /// anew then, without its neighbours, forwarding entries and routes.
    pub fn is_same_end(&self, other: &Self) -> bool {
        (self.vni, self.local, &self.by, self.port, self.mac)
            == (other.vni, other.local, &other.by, other.port, other.mac)
    }
}

impl fmt::Display for Vxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, vni, local, by, port, mac, mtu, .. } = self;
        write!(f, "vxlan `{name}` vni {vni} at {local}")?;
        by.as_ref().map_or(Ok(()), |by| write!(f, " on `{by}`"))?;
        write!(f, " port {port} mac {mac} mtu {mtu}")?;
        self.on.as_ref().map_or(Ok(()), |on| write!(f, " on bridge `{}`", on.bridge))
    }
}

/// Where frames for another host's end of the tunnels go: an entry of a VXLAN interface's forwarding table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Forwarding {
    /// The VXLAN interface.
    pub device: IfName,
    /// The other end, or on a bridge a container there; all zero for what goes to many.
    pub mac: Mac,
    /// The other host.
    pub to: IpAddr,
    /// The interface by which it is there; none for wherever routes lead.
    pub by: Option<IfName>,
    /// The bridge that the interface is a port of sends frames for it there as well.
    pub bridged: bool,
}

impl Forwarding {
    /// Whether it is where frames for many go, one of several such.
    pub fn is_flood(&self) -> bool {
        self.mac.octets() == [0; 6]
    }
}

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "forwarding of {} on `{}` to {}", self.mac, self.device, self.to)?;
        self.by.as_ref().map_or(Ok(()), |by| write!(f, " by `{by}`"))
    }
}
