//! What takes packets between containers of different hosts past routing, connection tracking and rules.
//!
//! An overlay network has a table of its own at the ingress of its interfaces (nftables' family `netdev`), called as its end of
//! the tunnels is. What a container sends from its own address to another host's block goes right into the tunnel, and what comes
//! out of it from such a block, for a container of this host, right to that one's host end. All else goes on as if there were no
//! such table: what it does not know is routed and judged by the rules.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use portolan_model::{IfName, Mac, Vni};

use super::join;

/// A part of such a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shortcut {
    /// The end of the tunnels, by whose name the table goes.
    pub device: IfName,
    /// What it is.
    pub part: ShortcutPart,
    /// Who it is there for, e.g. `network web`.
    pub owner: String,
}

/// The table, or what is in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShortcutPart {
    /// The table with its chains, rules and empty sets.
    Table {
        /// What says whose it is: the alias of the end of the tunnels.
        alias: String,
    },
    /// A container of this host.
    Near {
        /// Its host end.
        host_end: IfName,
        /// What it sends from, and takes.
        addresses: BTreeSet<IpAddr>,
        /// Whether what it takes waits in the queue of its host end, where a limit holds it up.
        queued: bool,
    },
    /// Addresses that another host gives out.
    Far {
        /// Those.
        block: IpNet,
        /// That host as a neighbour at the tunnels, of the block's family.
        via: IpAddr,
        /// The MACs of both ends of the tunnel.
        macs: Macs,
        /// How packets get there without a tunnel, if they do.
        by: Option<Translated>,
    },
}

/// From where to where frames go in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Macs {
    /// This host's end.
    pub own: Mac,
    /// The other host's.
    pub to: Mac,
}

/// Packets of IPv4 as packets of IPv6 on the encrypted link: each host has a prefix of 48 bits there, in which addresses of its
/// containers are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Translated {
    /// The link's interface.
    pub link: IfName,
    /// This host there.
    pub own: Ipv6Addr,
    /// The other host there.
    pub to: Ipv6Addr,
    /// The network's number.
    pub vni: Vni,
}

impl Translated {
    /// By how many bytes a packet becomes longer: IPv6 has a longer header (RFC 8200 §3, RFC 791 §3.1).
    pub const MORE: u32 = 20;
}

/// Where they come in: what other hosts send to a network so goes on as if it had come out of its tunnels. A program does that,
/// whoever carries out the rules, and whether or not this host has shortcuts itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inlet {
    /// The end of the tunnels.
    pub device: IfName,
    /// The link's interface.
    pub link: IfName,
    /// This host there: where tunnels end, which this is not about.
    pub own: Ipv6Addr,
    /// The MAC of the end of tunnels.
    pub mac: Mac,
    /// The network's number.
    pub vni: Vni,
    /// Who it is there for, e.g. `network web`.
    pub owner: String,
}

impl fmt::Display for Inlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, link, own, vni, owner, .. } = self;
        write!(f, "inlet of `{device}` for what comes by `{link}` translated for {own}, vni {vni} ({owner})")
    }
}

/// What makes it the same part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShortcutKey {
    /// The only one.
    Table,
    /// By host end.
    Near(IfName),
    /// By block.
    Far(IpNet),
}

impl ShortcutPart {
    /// What makes it the same part.
    pub fn key(&self) -> ShortcutKey {
        match self {
            Self::Table { .. } => ShortcutKey::Table,
            Self::Near { host_end, .. } => ShortcutKey::Near(host_end.clone()),
            Self::Far { block, .. } => ShortcutKey::Far(*block),
        }
    }
}

impl fmt::Display for Shortcut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        match &self.part {
            ShortcutPart::Table { .. } => write!(f, "shortcuts of `{device}`")?,
            ShortcutPart::Near { host_end, addresses, queued } => {
                write!(f, "shortcut of `{device}` to {} by `{host_end}`", join(addresses, ", "))?;
                f.write_str(if *queued { " and its queue" } else { "" })?;
            }
            // The neighbour's entry tells its MAC.
            ShortcutPart::Far { block, via, by, .. } => {
                write!(f, "shortcut of `{device}` to {block} via {via}")?;
                by.as_ref().map_or(Ok(()), |by| write!(f, ", translated by `{}` to {}", by.link, by.to))?;
            }
        }
        write!(f, " ({})", self.owner)
    }
}
