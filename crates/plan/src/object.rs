//! Kernel objects as values: what each is called, and what it should look like.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use portolan_model::{
    Burst, Family, IfName, IpvlanMode, LinkAttributes, Mac, MacvlanMode, Mtu, Protocol, Rate, RouteAction, Sandbox,
    StaticRoute, SysctlKey,
};

use crate::firewall::Firewall;
use crate::set::Set;

mod objects;
mod port;
mod shortcut;
mod tunnel;

pub use objects::Objects;
pub use port::{BridgePort, HostEnd, HostRoute, Port, Routed, Way};
pub use shortcut::{Inlet, Macs, Shortcut, ShortcutKey, ShortcutPart, Translated};
pub use tunnel::{Forwarding, TunnelPort, Vxlan};

/// Which of our interfaces a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// The bridges, and the host ends of veth pairs that are on none: what is routed comes in and goes out by them.
    Bridges,
    /// The ports of bridges, host ends of veth pairs.
    Ports,
}

/// The interface groups (`ip link set group`) by which rules know our interfaces: one comparison, for all networks.
///
/// Each root has its own, as it has its own tables: to the rules of one root the networks of another are the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Of the bridges, and of host ends that are on none.
    pub bridges: u32,
    /// Of the bridge ports.
    pub ports: u32,
    /// Of interfaces that are about to be removed, all at once.
    pub doomed: u32,
}

impl Groups {
    /// The groups of the root whose tables are called `table`: "PO" and the one after for the plain name, else made of
    /// the hash that is in the name.
    pub fn of(table: &str) -> Self {
        let number = table.rsplit_once('_').and_then(|(_, hash)| u32::from_str_radix(hash, 16).ok());
        match number {
            // The sign bit keeps them away from the small numbers that people choose.
            Some(hash) => Self {
                bridges: (hash | 0x8000_0000) & !1,
                ports: hash | 0x8000_0001,
                doomed: (hash & 0x3fff_ffff) | 0x4000_0000,
            },
            None => Self { bridges: 0x504f, ports: 0x5050, doomed: 0x7052_544c },
        }
    }

    /// The number of `group`.
    pub const fn number(self, group: Group) -> u32 {
        match group {
            Group::Bridges => self.bridges,
            Group::Ports => self.ports,
        }
    }
}

/// A value in a set's key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// A transport protocol.
    Protocol(Protocol),
    /// A network protocol.
    NfProto(Family),
    /// An address.
    Address(IpAddr),
    /// All addresses that begin with the same bits; the others are zero.
    Prefix(IpNet),
    /// Ports, first and last; the same for one.
    Ports(u16, u16),
    /// An interface.
    IfName(IfName),
    /// A MAC.
    Ether(Mac),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => write!(f, "{protocol}"),
            Self::NfProto(Family::V4) => write!(f, "ipv4"),
            Self::NfProto(Family::V6) => write!(f, "ipv6"),
            Self::Address(address) => write!(f, "{address}"),
            // As nft(8) lists it.
            Self::Prefix(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Self::Prefix(net) => write!(f, "{net}"),
            Self::Ports(first, last) if first == last => write!(f, "{first}"),
            Self::Ports(first, last) => write!(f, "{first}-{last}"),
            Self::IfName(name) => write!(f, "\"{name}\""),
            Self::Ether(mac) => write!(f, "{mac}"),
        }
    }
}

/// What an element answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// It is a member.
    Member,
    /// Go on in this chain.
    Goto(Chain),
    /// Let it pass.
    Accept,
    /// Drop it.
    Drop,
    /// Go back to the calling chain.
    Return,
    /// Translate to this address.
    Address(IpAddr),
    /// Translate to this address and port.
    AddressPort(IpAddr, u16),
    /// The interface of this index.
    Interface(u32),
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member => Ok(()),
            Self::Goto(chain) => write!(f, "goto {}", chain.name()),
            Self::Accept => write!(f, "accept"),
            Self::Drop => write!(f, "drop"),
            Self::Return => write!(f, "return"),
            Self::Address(address) => write!(f, "{address}"),
            Self::AddressPort(address, port) => write!(f, "{address} . {port}"),
            Self::Interface(index) => write!(f, "{index}"),
        }
    }
}

/// The packet priority (`skb->priority`) that says that our tables let a packet pass: "PORT". On the way through
/// `forward` nothing else is in it but what the kernel makes of the type of service.
pub const ALLOWED: u32 = 0x504f_5254;

/// A chain of our tables. The chains and their rules never change; all that does are elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    /// Hook prerouting, priority raw: forged sources and loopback destinations.
    Early,
    /// Hook prerouting, destination translation of what comes in.
    NatIn,
    /// Hook output, destination translation of what the host sends.
    NatOut,
    /// The published ports.
    Publish,
    /// Hook postrouting, source translation.
    NatSource,
    /// Hook forward.
    Forward,
    /// Between two interfaces that are not ours.
    Transit,
    /// Towards a network or the world.
    Enter,
    /// Into a network of mode `nat`.
    EnterNat,
    /// Into a network of mode `routed`.
    EnterRouted,
    /// Inside a network with ICC off.
    WithinClosed,
    /// Hook input: what is for the host itself.
    Input,
    /// To where the tunnels of this host end.
    Tunnel,
    /// From a container of an internal network to the host.
    ToHostInternal,
    /// From another host's end of tunnels to this one's.
    Probe,
    /// What may be forwarded or come in, marked as such for the fence.
    Allow,
    /// Hook forward, after the fence: takes the mark away.
    Unmark,
    /// Hook output, priority raw: answers to questions about names.
    Answer,
    /// Bridge hook prerouting: the guard.
    Guard,
    /// Bridge hook postrouting: keeps questions for addresses away from where nobody need be asked.
    Hush,
    /// The fence's hook prerouting, for destination translation.
    FenceNatIn,
    /// The fence's hook output, for destination translation.
    FenceNatOut,
    /// The fence's hook postrouting, for source translation.
    FenceNatSource,
    /// The fence's hook forward, right after ours.
    FenceForward,
    /// The fence's hook input, right after ours.
    FenceInput,
    /// The plugins' hook prerouting, destination translation of what comes in.
    PluginNatIn,
    /// The plugins' hook output, destination translation of what the host sends.
    PluginNatOut,
    /// The ports that plugins published.
    PluginPublish,
    /// The plugins' hook postrouting, source translation.
    PluginNatSource,
    /// Hook ingress of the host ends of an overlay network: to other hosts' containers.
    ShortcutOut,
    /// Hook ingress of its end of the tunnels: to containers of this host.
    ShortcutIn,
}

impl Chain {
    /// The chains of the plugins' table, in the order they are listed.
    pub const PLUGINS: [Self; 4] = [Self::PluginPublish, Self::PluginNatIn, Self::PluginNatOut, Self::PluginNatSource];

    /// The chains of an overlay network's table of shortcuts, in the order they are listed.
    pub const SHORTCUTS: [Self; 2] = [Self::ShortcutOut, Self::ShortcutIn];

    /// Every chain of a root's tables and its fence, in the order they are listed.
    pub const ALL: [Self; 25] = [
        Self::Allow,
        Self::Publish,
        Self::Transit,
        Self::EnterNat,
        Self::EnterRouted,
        Self::Enter,
        Self::WithinClosed,
        Self::Tunnel,
        Self::ToHostInternal,
        Self::Probe,
        Self::Early,
        Self::NatIn,
        Self::NatOut,
        Self::NatSource,
        Self::Forward,
        Self::Input,
        Self::Unmark,
        Self::Answer,
        Self::Guard,
        Self::Hush,
        Self::FenceNatIn,
        Self::FenceNatOut,
        Self::FenceNatSource,
        Self::FenceForward,
        Self::FenceInput,
    ];

    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Early => "early",
            Self::NatIn => "nat_in",
            Self::NatOut => "nat_out",
            Self::Publish => "publish",
            Self::NatSource => "nat_source",
            Self::Forward => "forward",
            Self::Transit => "transit",
            Self::Enter => "enter",
            Self::EnterNat => "enter_nat",
            Self::EnterRouted => "enter_routed",
            Self::WithinClosed => "within_closed",
            Self::Input => "input",
            Self::Tunnel => "tunnel",
            Self::ToHostInternal => "to_host_internal",
            Self::Probe => "probe",
            Self::Allow => "allow",
            Self::Unmark => "unmark",
            Self::Answer => "answer",
            Self::Guard => "guard",
            Self::Hush => "hush",
            Self::FenceNatIn => "fence_nat_in",
            Self::FenceNatOut => "fence_nat_out",
            Self::FenceNatSource => "fence_nat_source",
            Self::FenceForward => "fence_forward",
            Self::FenceInput => "fence_input",
            Self::PluginNatIn => "cni_nat_in",
            Self::PluginNatOut => "cni_nat_out",
            Self::PluginPublish => "cni_publish",
            Self::PluginNatSource => "cni_nat_source",
            Self::ShortcutOut => "shortcut_out",
            Self::ShortcutIn => "shortcut_in",
        }
    }

    /// The chain of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain(Self::PLUGINS).chain(Self::SHORTCUTS).find(|chain| chain.name() == name)
    }
}

/// A sysctl of the host that we need and give back: the documented few.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Setting {
    /// Path below `/proc/sys`, e.g. `net/ipv4/ip_forward`.
    pub path: String,
    /// What we need it to be.
    pub value: String,
    /// What it was before us, written back when our last network goes.
    pub before: String,
}

/// A sysctl in a sandbox that its attachment asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxSetting {
    /// The namespace.
    pub sandbox: Sandbox,
    /// Which one.
    pub key: SysctlKey,
    /// What it is to be.
    pub value: String,
    /// What it was before us, written back in the end if it is known.
    pub before: Option<String>,
}

/// Our rules but for what changes: of nftables the tables with all chains, rules and (empty) sets; of other drivers
/// what stands for them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ruleset {
    /// Whose they are, and how they are called. A name that is no root's stands for rules that somebody changed.
    pub firewall: Firewall,
}

/// A bridge with its gateway addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bridge {
    /// The device.
    pub name: IfName,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: Mtu,
    /// Gateway addresses with prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// The alias that says whose it is.
    pub alias: String,
    /// Whether IPv6 is to live on it at all.
    pub ipv6: bool,
    /// Whether packets from 127.0.0.0/8 may be routed out of it, for ports published on 127.0.0.1.
    pub route_localnet: bool,
    /// Whether what comes in by it has to be routed back by it (`rp_filter`).
    pub strict: bool,
    /// The VLAN that its ports and the host are in, if it keeps VLANs apart.
    pub vlan: Option<u16>,
    /// The VRF it belongs to.
    pub vrf: Option<IfName>,
}

/// A VLAN interface on an interface of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlan {
    /// The device.
    pub name: IfName,
    /// The interface that carries it.
    pub parent: IfName,
    /// The VLAN's number.
    pub id: u16,
    /// The alias that says whose it is.
    pub alias: String,
}

/// An element of a named set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// The set.
    pub set: Set,
    /// The key, field by field.
    pub key: Vec<Field>,
    /// What it answers.
    pub data: Data,
    /// Who it is there for, kept as the element's comment.
    pub owner: String,
}

/// Which way packets go, seen from the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Into the container.
    In,
    /// Out of the container.
    Out,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in",
            Self::Out => "out",
        })
    }
}

/// A limit on what passes a port in one direction: a token bucket (tc-tbf(8)) where the container cannot undo it.
///
/// Into the container it is what the host end sends by. What comes out of it is led aside to an interface of its own, a
/// bucket, and goes on from the host end when it may.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shaper {
    /// The port's end on the bridge.
    pub host_end: IfName,
    /// Which way.
    pub direction: Direction,
    /// In the long run, counted in whole frames as they are on the wire.
    pub rate: Rate,
    /// Bytes that may pass at once.
    pub burst: u32,
    /// Bytes that may wait; what comes on top of them is dropped.
    pub queue: u32,
    /// The interface that what comes out is led through; none on the way in.
    pub through: Option<IfName>,
    /// The alias that says whose that interface is.
    pub alias: String,
}

/// A permanent neighbour on a bridge or a host end: who has an address is known before anyone asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The bridge or host end.
    pub device: IfName,
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub mac: Mac,
}

/// What a child interface is to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChildKind {
    /// It has a MAC of its own.
    Macvlan {
        /// How it sees its siblings.
        mode: MacvlanMode,
        /// To how many siblings a broadcast goes before it is queued.
        bclim: Option<i32>,
    },
    /// It shares the parent's MAC.
    Ipvlan {
        /// What else it shares.
        mode: IpvlanMode,
    },
}

/// A macvlan or ipvlan interface in a sandbox, on an interface of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Child {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its name there.
    pub name: IfName,
    /// The interface of the host.
    pub parent: IfName,
    /// Macvlan or ipvlan.
    pub kind: ChildKind,
    /// Its MAC; none for the parent's.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Mtu,
    /// It is left in the host's namespace for somebody to take from there: where it is then nobody looks.
    pub handed: bool,
}

/// What a sandbox's interface believes of routers that advertise themselves (RFC 4861 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Routers {
    /// Whether they may be its way out.
    pub default_route: bool,
    /// The priority of that route; none for the kernel's own choice.
    pub metric: Option<u32>,
}

/// What the sandbox holds on one interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// The interface.
    pub name: IfName,
    /// Its MAC; none where it is somebody else's.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Mtu,
    /// Addresses with prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// Subnets of those that are not on the link, each with the gateway by which they are reached, and which is.
    pub routed: BTreeMap<IpNet, IpAddr>,
    /// Whether IPv6 is to live on it at all.
    pub ipv6: bool,
    /// Send unsolicited ARP replies and neighbour advertisements this many times once it is up.
    pub announce: u8,
    /// What it learns from routers; none where it does not listen to them.
    pub routers: Option<Routers>,
    /// What else it is asked to be.
    pub attributes: LinkAttributes,
}

/// A default route of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DefaultRoute {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// The gateway; its family is the route's.
    pub gateway: IpAddr,
    /// The interface.
    pub interface: IfName,
    /// Its priority; none for the kernel's own choice.
    pub metric: Option<u32>,
}

/// A static route of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// The route, with its priority.
    pub route: StaticRoute,
}

/// Anything that the kernel holds for us.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A sysctl of the host.
    Setting(Setting),
    /// Our tables.
    Ruleset(Ruleset),
    /// A bridge.
    Bridge(Bridge),
    /// An element.
    Element(Element),
    /// A VLAN interface.
    Vlan(Vlan),
    /// A veth pair.
    Port(Port),
    /// A limit on what passes a port.
    Shaper(Shaper),
    /// A macvlan or ipvlan interface in a sandbox.
    Child(Child),
    /// An end of tunnels.
    Vxlan(Vxlan),
    /// Where an end of tunnels sends frames.
    Forwarding(Forwarding),
    /// A permanent neighbour.
    Neighbour(Neighbour),
    /// A route of the host.
    HostRoute(HostRoute),
    /// What takes packets between hosts past routing and rules.
    Shortcut(Shortcut),
    /// Where what comes without a tunnel comes in.
    Inlet(Inlet),
    /// An interface in a sandbox.
    Interface(Interface),
    /// A default route in a sandbox.
    DefaultRoute(DefaultRoute),
    /// A static route in a sandbox.
    Route(Route),
    /// A sysctl in a sandbox.
    SandboxSetting(SandboxSetting),
}

/// What makes an object the same object, whatever its attributes. The order is the order of creation: an
/// interface comes up only after everything that restricts it is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// By driver and name.
    Ruleset(Firewall),
    /// By name.
    Bridge(IfName),
    /// By name.
    Vlan(IfName),
    /// By set and key.
    Element(Set, Vec<Field>),
    /// By path. The host forwards only after the rules that keep it from forwarding what it did not before.
    Setting(String),
    /// By name. Packets come out of it as soon as it is there, so it comes after the rules.
    Vxlan(IfName),
    /// By the host end's name.
    Port(IfName),
    /// By the port's host end and direction.
    Shaper(IfName, Direction),
    /// By device and MAC; what goes to many hosts also by host.
    Forwarding(IfName, Mac, Option<IpAddr>),
    /// By device and address.
    Neighbour(IfName, IpAddr),
    /// By destination.
    HostRoute(IpNet),
    /// By the end of the tunnels, and the part. After both interfaces and the neighbours that it leads to.
    Shortcut(IfName, ShortcutKey),
    /// By the end of the tunnels. After all that leads on from there.
    Inlet(IfName),
    /// By namespace and name.
    Child(u64, u64, IfName),
    /// By namespace and name.
    Interface(u64, u64, IfName),
    /// By namespace, family and priority.
    DefaultRoute(u64, u64, Family, Option<u32>),
    /// By namespace, destination and priority.
    Route(u64, u64, IpNet, Option<u32>),
    /// By namespace and name. Last, for those of interfaces that have just come.
    SandboxSetting(u64, u64, SysctlKey),
}

impl Object {
    /// What makes it the same object.
    pub fn key(&self) -> Key {
        match self {
            Self::Setting(o) => Key::Setting(o.path.clone()),
            Self::Ruleset(o) => Key::Ruleset(o.firewall.clone()),
            Self::Bridge(o) => Key::Bridge(o.name.clone()),
            Self::Element(o) => Key::Element(o.set, o.key.clone()),
            Self::Vlan(o) => Key::Vlan(o.name.clone()),
            Self::Vxlan(o) => Key::Vxlan(o.name.clone()),
            Self::Forwarding(o) => Key::Forwarding(o.device.clone(), o.mac, o.is_flood().then_some(o.to)),
            Self::Child(o) => Key::Child(o.sandbox.device, o.sandbox.inode, o.name.clone()),
            Self::Route(o) => Key::Route(o.sandbox.device, o.sandbox.inode, o.route.destination, o.route.metric),
            Self::SandboxSetting(o) => Key::SandboxSetting(o.sandbox.device, o.sandbox.inode, o.key.clone()),
            Self::Port(o) => Key::Port(o.host_end.clone()),
            Self::Shaper(o) => Key::Shaper(o.host_end.clone(), o.direction),
            Self::Neighbour(o) => Key::Neighbour(o.device.clone(), o.address),
            Self::HostRoute(o) => Key::HostRoute(o.destination),
            Self::Shortcut(o) => Key::Shortcut(o.device.clone(), o.part.key()),
            Self::Inlet(o) => Key::Inlet(o.device.clone()),
            Self::Interface(o) => Key::Interface(o.sandbox.device, o.sandbox.inode, o.name.clone()),
            Self::DefaultRoute(o) => {
                Key::DefaultRoute(o.sandbox.device, o.sandbox.inode, Family::of(o.gateway), o.metric)
            }
        }
    }

    /// The sandbox that it cannot be without; a port's other end is in one.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        match self {
            Self::Port(o) => Some(&o.sandbox),
            Self::Child(o) => Some(&o.sandbox),
            Self::Interface(o) => Some(&o.sandbox),
            Self::DefaultRoute(o) => Some(&o.sandbox),
            Self::Route(o) => Some(&o.sandbox),
            Self::SandboxSetting(o) => Some(&o.sandbox),
            _ => None,
        }
    }

    /// The interface of the host that it goes with.
    pub fn device(&self) -> Option<&IfName> {
        match self {
            Self::Neighbour(o) => Some(&o.device),
            Self::Forwarding(o) => Some(&o.device),
            Self::HostRoute(o) => o.way.device(),
            Self::Shortcut(o) => Some(&o.device),
            Self::Inlet(o) => Some(&o.device),
            Self::Shaper(o) => Some(&o.host_end),
            _ => None,
        }
    }

    /// Whether it stands on `port`.
    pub fn is_on(&self, port: &Port) -> bool {
        let Self::Shortcut(shortcut) = self else { return self.device() == Some(&port.host_end) };
        matches!(&shortcut.part, ShortcutPart::Near { host_end, .. } if *host_end == port.host_end)
    }

    /// The namespace the object lives in, if not the host's.
    pub fn sandbox_path(&self) -> Option<&PathBuf> {
        match self {
            Self::Interface(o) => Some(&o.sandbox.path),
            Self::DefaultRoute(o) => Some(&o.sandbox.path),
            Self::Route(o) => Some(&o.sandbox.path),
            Self::Child(o) => Some(&o.sandbox.path),
            Self::SandboxSetting(o) => Some(&o.sandbox.path),
            _ => None,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(o) => write!(f, "sysctl {} = {}", o.path.replace('/', "."), o.value),
            Self::SandboxSetting(o) => write!(f, "sysctl {} = {} in {}", o.key, o.value, o.sandbox.path.display()),
            Self::Ruleset(o) => write!(f, "{}", o.firewall),
            Self::Bridge(o) => {
                write!(f, "bridge `{}` mtu {} mac {} addresses {}", o.name, o.mtu, o.mac, list(&o.addresses))?;
                o.vlan.map_or(Ok(()), |vlan| write!(f, " vlan {vlan}"))?;
                o.vrf.as_ref().map_or(Ok(()), |vrf| write!(f, " vrf `{vrf}`"))
            }
            Self::Vlan(o) => write!(f, "vlan {} `{}` on `{}`", o.id, o.name, o.parent),
            Self::Child(o) => {
                let place = (&o.name, o.sandbox.path.display(), &o.parent);
                match o.kind {
                    ChildKind::Macvlan { mode, .. } => {
                        write!(f, "macvlan `{}` in {} on `{}` mode {mode}", place.0, place.1, place.2)
                    }
                    ChildKind::Ipvlan { mode } => {
                        write!(f, "ipvlan `{}` in {} on `{}` mode {mode}", place.0, place.1, place.2)
                    }
                }
            }
            Self::Route(o) => {
                match o.route.action {
                    RouteAction::Via(gateway) => write!(f, "route {} via {gateway}", o.route.destination)?,
                    RouteAction::Blackhole => write!(f, "route blackhole {}", o.route.destination)?,
                    RouteAction::Unreachable => write!(f, "route unreachable {}", o.route.destination)?,
                    RouteAction::Prohibit => write!(f, "route prohibit {}", o.route.destination)?,
                }
                o.route.metric.map_or(Ok(()), |metric| write!(f, " metric {metric}"))?;
                write!(f, " in {}", o.sandbox.path.display())
            }
            Self::Element(o) => {
                write!(f, "element of `{}`: {}", o.set.name(), join(&o.key, " . "))?;
                if o.data != Data::Member {
                    write!(f, " : {}", o.data)?;
                }
                write!(f, " ({})", o.owner)
            }
            Self::Port(o) => {
                write!(f, "veth `{}`", o.host_end)?;
                if let HostEnd::Bridge(port) = &o.place {
                    write!(f, " on `{}`", port.bridge)?;
                }
                write!(f, " to `{}` in {} mac {}", o.sandbox_end, o.sandbox.path.display(), o.mac)?;
                match &o.place {
                    HostEnd::Bridge(port) => port.vlan.map_or(Ok(()), |vlan| write!(f, " vlan {vlan}")),
                    HostEnd::Routed(routed) => write!(f, " gateways {}", join(&routed.gateways, ", ")),
                }
            }
            Self::Shaper(o) => {
                let burst =
                    Burst::new(u64::from(o.burst) * 8).map_or_else(|_| "0b".to_owned(), |burst| burst.to_string());
                write!(f, "limit of {} {} burst {burst} at `{}`", o.rate, o.direction, o.host_end)?;
                o.through.as_ref().map_or(Ok(()), |through| write!(f, " through `{through}`"))
            }
            Self::Neighbour(o) => write!(f, "neighbour {} is {} on `{}`", o.address, o.mac, o.device),
            Self::Vxlan(o) => o.fmt(f),
            Self::Forwarding(o) => o.fmt(f),
            Self::Shortcut(o) => o.fmt(f),
            Self::Inlet(o) => o.fmt(f),
            Self::HostRoute(o) => match &o.way {
                Way::HostEnd { device, from } => {
                    write!(f, "route of the host to {} by `{device}` from {from}", o.destination.addr())
                }
                Way::Tunnel { device, via, mtu } | Way::Lan { device, via, mtu } => {
                    write!(f, "route of the host to {} via {via} on `{device}`", o.destination)?;
                    mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
                }
                Way::Unreachable => write!(f, "route of the host: {} is unreachable", o.destination),
            },
            Self::Interface(o) => {
                write!(
                    f,
                    "interface `{}` in {}{} mtu {} addresses {}",
                    o.name,
                    o.sandbox.path.display(),
                    o.mac.map_or_else(String::new, |mac| format!(" mac {mac}")),
                    o.mtu,
                    list(&o.addresses)
                )?;
                o.routed.iter().try_for_each(|(subnet, gateway)| write!(f, " route {subnet} via {gateway}"))
            }
            Self::DefaultRoute(o) => {
                write!(f, "default route via {} on `{}`", o.gateway, o.interface)?;
                o.metric.map_or(Ok(()), |metric| write!(f, " metric {metric}"))?;
                write!(f, " in {}", o.sandbox.path.display())
            }
        }
    }
}

fn list(addresses: &BTreeSet<IpNet>) -> String {
    if addresses.is_empty() { "none".to_owned() } else { join(addresses, ", ") }
}

fn join<'a, T: fmt::Display + 'a>(items: impl IntoIterator<Item = &'a T>, by: &str) -> String {
    items.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(by)
}
