//! What faces ask of the engine, and what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use portolan_model::{
    AddressRange, Bandwidth, Container, ContainerKind, DnsConfig, Driver, Endpoint, ExposedPort, HealthCheck,
    HostEntry, HostName, Id, IfName, Ipam, Link, Mac, Name, Network, NetworkMode, ProcessId, Publication, PublishSpec,
    RemoteEndpoint, StaticRoute, Tuning,
};
use portolan_plan::{ContainerView, Element, Firewall, Inlet, Shortcut, Step};

/// A network to be made.
#[derive(Debug, Clone)]
pub struct NetworkRequest {
    /// Its name.
    pub name: Name,
    /// What carries it.
    pub driver: Driver,
    /// Who gives out addresses; with [`Ipam::Dhcp`] and [`Ipam::None`] there are no subnets.
    pub ipam: Ipam,
    /// Subnets asked for, of any family; a family without one is given one, if enabled.
    pub subnets: Vec<IpNet>,
    /// Gateways, each inside one of the subnets.
    pub gateways: Vec<IpAddr>,
    /// Where leases come from, each inside one of the subnets.
    pub ranges: Vec<AddressRange>,
    /// Sets of ranges in place of subnets, gateways and ranges, for faces whose callers decide about addresses
    /// ([`NetworkRequest::exact`]). An endpoint gets one address of each set: of its first range that has one free.
    pub sets: Vec<Vec<RangeRequest>>,
    /// Addresses never leased.
    pub aux: BTreeMap<String, IpAddr>,
    /// No way out.
    pub internal: bool,
    /// Whether it speaks IPv4.
    pub ipv4: bool,
    /// Whether it speaks IPv6.
    pub ipv6: bool,
    /// Name servers that its questions are forwarded to; none for the host's.
    pub dns: Vec<IpAddr>,
    /// Options as given.
    pub options: BTreeMap<String, String>,
    /// Options for whoever gives out addresses, of which there are none: whether they were spoken of.
    pub ipam_options: Option<BTreeMap<String, String>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The identity, for faces whose callers bring one.
    pub id: Option<Id>,
    /// The subnets and gateways are all there are to be: none is taken from the pool, no gateway is chosen, and routes
    /// of the host are not looked at. For faces whose callers decide about addresses.
    pub exact: bool,
    /// The subnets are pools that were given out before ([`crate::Engine::request_pool`]), and that no other network is on.
    pub pooled: bool,
    /// Routes that every container gets.
    pub routes: Vec<StaticRoute>,
    /// Whether names are answered on its gateway addresses.
    pub names: bool,
    /// Where they are answered instead, on a bridge that is somebody else's: addresses that it has.
    pub names_at: Vec<IpAddr>,
    /// The port that they are answered on behind port 53; none for 53 itself.
    pub names_port: Option<u16>,
}

impl NetworkRequest {
    /// A bridge network of both families with all defaults.
    pub fn new(name: Name) -> Self {
        Self {
            id: None,
            exact: false,
            pooled: false,
            routes: Vec::new(),
            names: true,
            names_at: Vec::new(),
            names_port: None,
            name,
            driver: Driver::Bridge,
            ipam: Ipam::Local,
            subnets: Vec::new(),
            gateways: Vec::new(),
            ranges: Vec::new(),
            sets: Vec::new(),
            aux: BTreeMap::new(),
            internal: false,
            ipv4: true,
            ipv6: true,
            dns: Vec::new(),
            options: BTreeMap::new(),
            ipam_options: None,
            labels: BTreeMap::new(),
        }
    }
}

/// A subnet, or a part of one, that addresses are to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeRequest {
    /// The subnet.
    pub net: IpNet,
    /// The part of it; none for all of it.
    pub range: Option<AddressRange>,
    /// Its gateway, inside it.
    pub gateway: Option<IpAddr>,
}

/// An endpoint to be made.
#[derive(Debug, Clone)]
pub struct EndpointRequest {
    /// The network's name, id or unique start of its id.
    pub network: String,
    /// What the network looks like, if somebody else keeps that: it is made with its first endpoint and goes with its
    /// last. [`EndpointRequest::network`] is not looked at then.
    pub transient: Option<NetworkRequest>,
    /// More addresses asked for, of either family.
    pub addresses: Vec<IpAddr>,
    /// Take no other address than those asked for.
    pub exact: bool,
    /// The name of the veth's end on the host asked for.
    pub host_end: Option<IfName>,
    /// The IPv4 address asked for.
    pub ip: Option<Ipv4Addr>,
    /// The IPv6 address asked for.
    pub ip6: Option<Ipv6Addr>,
    /// The MAC asked for.
    pub mac: Option<Mac>,
    /// The interface name asked for.
    pub ifname: Option<IfName>,
    /// Names on this network besides the container's own.
    pub aliases: Vec<Name>,
    /// Names for others that only this container sees.
    pub links: Vec<Link>,
    /// Which endpoint gives the default route: the highest number.
    pub gateway_priority: i32,
    /// How much may pass between it and its network; bridge networks only.
    pub bandwidth: Bandwidth,
    /// What else its interface and its namespace are to be. What sysctls were is found out.
    pub tuning: Tuning,
}

impl EndpointRequest {
    /// All addresses asked for.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = IpAddr> {
        let first = [self.ip.map(IpAddr::V4), self.ip6.map(IpAddr::V6)];
        first.into_iter().flatten().chain(self.addresses.iter().copied())
    }

    /// An endpoint on `network` with all defaults.
    pub fn new(network: impl Into<String>) -> Self {
        Self {
            network: network.into(),
            transient: None,
            addresses: Vec::new(),
            exact: false,
            host_end: None,
            ip: None,
            ip6: None,
            mac: None,
            ifname: None,
            aliases: Vec::new(),
            links: Vec::new(),
            gateway_priority: 0,
            bandwidth: Bandwidth::default(),
            tuning: Tuning::default(),
        }
    }
}

/// A container to be made known, with its sandbox, endpoints and ports, all or nothing.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The name; one made of the id when none is given.
    pub name: Option<Name>,
    /// The identity, for faces whose callers bring one.
    pub id: Option<Id>,
    /// Who made the namespace.
    pub kind: ContainerKind,
    /// Whose network stack; endpoints only with [`NetworkMode::Own`].
    pub mode: NetworkMode,
    /// Where the namespace is (`/run/netns/x`, `/proc/PID/ns/net`); none for a mode without one of its own.
    pub netns: Option<PathBuf>,
    /// The container's first process, if known.
    pub process: Option<ProcessId>,
    /// Endpoints, in order.
    pub endpoints: Vec<EndpointRequest>,
    /// Ports to publish.
    pub publish: Vec<PublishSpec>,
    /// Publish all exposed ports on free host ports.
    pub publish_all: bool,
    /// Declared ports.
    pub exposed: Vec<ExposedPort>,
    /// Its host name.
    pub hostname: Option<HostName>,
    /// What runs in it.
    pub command: Vec<String>,
    /// Its resolver configuration.
    pub dns: DnsConfig,
    /// Extra lines of its hosts file.
    pub hosts: Vec<HostEntry>,
    /// Sysctls `net.*` inside it. In a namespace that somebody else made they are set, and given back in the end.
    pub sysctls: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Removed as soon as its process ends.
    pub auto_remove: bool,
    /// The program that holds host ports for containers on behalf of whoever asks (Podman's is conmon): what it holds is
    /// not taken.
    pub port_keeper: Option<String>,
    /// Whether its processes are kept from the kernel's packet filter; who starts them sees to that.
    pub no_netfilter: bool,
    /// What says how it is; whoever waits for its process sees to that.
    pub health_check: Option<HealthCheck>,
}

impl AttachRequest {
    /// A namespace that somebody else made, on `networks`.
    pub fn namespace(netns: impl Into<PathBuf>) -> Self {
        Self {
            name: None,
            id: None,
            kind: ContainerKind::Attached,
            mode: NetworkMode::Own,
            netns: Some(netns.into()),
            process: None,
            endpoints: Vec::new(),
            publish: Vec::new(),
            publish_all: false,
            exposed: Vec::new(),
            hostname: None,
            command: Vec::new(),
            dns: DnsConfig::default(),
            hosts: Vec::new(),
            sysctls: BTreeMap::new(),
            labels: BTreeMap::new(),
            auto_remove: false,
            port_keeper: None,
            no_netfilter: false,
            health_check: None,
        }
    }
}

/// A container with everything that belongs to it.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// The container.
    pub container: Container,
    /// Its endpoints with their networks, in the order they were made.
    pub endpoints: Vec<(Endpoint, Network)>,
    /// Its published ports.
    pub publications: Vec<Publication>,
    /// Whether its namespace (or, for a mode without one, its process) is there.
    pub alive: bool,
}

/// A network with who is on it.
#[derive(Debug, Clone)]
pub struct NetworkInfo {
    /// The network.
    pub network: Network,
    /// Its endpoints with the names of their containers.
    pub endpoints: Vec<(Endpoint, Name)>,
}

/// Something that changed in the rows, as it is now.
#[derive(Debug, Clone)]
pub enum Change {
    /// A network; none if it is gone.
    Network(Id, Option<Network>),
    /// A container, or its endpoints or ports; none if it is gone.
    Container(Id, Option<ContainerView>),
    /// An endpoint at another host; none if it is gone.
    Remote(Id, Option<RemoteEndpoint>),
}

/// How far [`crate::Engine::follow`] came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// The number of the last commit that was seen.
    pub revision: u64,
    /// What was shown is all there is: what was not is gone.
    pub is_everything: bool,
    /// Of the containers that were shown as not there, those that are being made.
    pub coming: Vec<Id>,
}

/// What `gc`, `reconcile` and the like did.
#[derive(Debug, Clone, Default)]
pub struct Repaired {
    /// Containers whose namespace was gone.
    pub containers: Vec<Name>,
    /// Half-made or half-removed rows that were taken down.
    pub rows: usize,
    /// What was changed in the kernel.
    pub steps: Vec<Step>,
    /// What could not be.
    pub failures: Vec<String>,
}

/// Which rules to explain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulesOf {
    /// All of them.
    Everything,
    /// A network's or a container's, by name or id.
    Named(String),
}

/// Elements of the ruleset as the driver of rules holds them, with its name.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Who carries them out, and under which name.
    pub firewall: Firewall,
    /// The elements, by set.
    pub elements: Vec<Element>,
    /// What takes packets past all of them.
    pub shortcuts: Vec<Shortcut>,
    /// Where what other hosts send without a tunnel comes in.
    pub inlets: Vec<Inlet>,
    /// The ends of tunnels whose shortcuts are programs, and no rules.
    pub by_program: BTreeSet<IfName>,
}
