//! Everything that is printed as JSON, in Docker's shape where Docker has one; and printing itself.

mod bandwidth;
pub(crate) mod health;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use portolan_engine::{ContainerInfo, NetworkInfo, Repaired};
use portolan_model::{
    AddressRange, Container, ContainerKind, ContainerState, Driver, Endpoint, Family, HostEntry, Network, NetworkMode,
    PortRange, Publication,
};
use portolan_plan::{ContainerView, Firewall, Guard, Object, Step, published_endpoint};
use serde::Serialize;

use crate::clock;

use bandwidth::BandwidthDetails;
use health::{CheckDetails, HealthDetails};

pub(crate) use bandwidth::BandwidthRow;

/// Prints to standard output. A reader that has left is no failure: there is nobody to tell.
pub(crate) fn print(text: &str) -> Result<()> {
    match write(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("write to standard output"),
    }
}

/// Writes to standard output, whose reader may have gone.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Prints JSON, indented as Docker does.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter)).context("write JSON")?;
    text.push(b'\n');
    print(std::str::from_utf8(&text).context("write JSON")?)
}

/// Keys keep their order; Docker's are sorted.
type Map<T> = BTreeMap<String, T>;

/// Something that was made, or taken away.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Named {
    pub(crate) id: String,
    pub(crate) name: String,
}

impl From<&Network> for Named {
    fn from(network: &Network) -> Self {
        Self { id: network.id.to_string(), name: network.name.to_string() }
    }
}

impl From<&Container> for Named {
    fn from(container: &Container) -> Self {
        Self { id: container.id.to_string(), name: container.name.to_string() }
    }
}

/// A row of `network ls`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkRow {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    driver: String,
    scope: &'static str,
    #[serde(rename = "IPv4")]
    ipv4: bool,
    #[serde(rename = "IPv6")]
    ipv6: bool,
    internal: bool,
    subnets: Vec<IpNet>,
    labels: Map<String>,
    created_at: String,
}

impl From<&Network> for NetworkRow {
    fn from(network: &Network) -> Self {
        Self {
            id: network.id.to_string(),
            name: network.name.to_string(),
            driver: network.driver.to_string(),
            scope: scope(network),
            ipv4: speaks(network, Family::V4),
            ipv6: speaks(network, Family::V6),
            internal: network.internal,
            subnets: network.nets(),
            labels: network.labels.clone(),
            created_at: clock::rfc3339(network.created),
        }
    }
}

/// Whether containers of a network have addresses of `family`, or could have.
fn speaks(network: &Network, family: Family) -> bool {
    network.has(family) || *network.speaks.of(family)
}

/// Docker's scope of a network: this host's, or that of all hosts of a cluster.
pub(crate) const fn scope(network: &Network) -> &'static str {
    match network.driver {
        Driver::Bridge | Driver::Macvlan | Driver::Ipvlan | Driver::Ptp | Driver::Host | Driver::None => "local",
        Driver::Overlay => "global",
    }
}

/// `network inspect`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkDetails {
    name: String,
    id: String,
    created: String,
    scope: &'static str,
    driver: String,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_only: bool,
    containers: Map<NetworkContainer>,
    options: Map<String>,
    labels: Map<String>,
    /// What Docker leaves out: the device on the host.
    bridge: Option<String>,
    #[serde(rename = "MTU")]
    mtu: u32,
    /// What is dropped at the ports of its bridge: forged `addresses` (of IP and ARP as well), forged `macs` alone, or nothing.
    guard: Option<&'static str>,
    /// By which LANs an overlay network goes without tunnels.
    #[serde(rename = "LAN", skip_serializing_if = "Vec::is_empty")]
    lan: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    driver: String,
    options: Map<String>,
    config: Vec<IpamConfig>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct IpamConfig {
    subnet: IpNet,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    ip_range: Option<AddressRange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    auxiliary_addresses: Map<IpAddr>,
    /// What Docker does not know: it gives an address only where the one before has none free.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    fallback: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkContainer {
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    mac_address: String,
    #[serde(rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: String,
}

impl NetworkDetails {
    /// `firewall` is who carries out the rules.
    pub(crate) fn new(info: &NetworkInfo, firewall: &Firewall) -> Self {
        let network = &info.network;
        let is_bridge = network.driver == Driver::Bridge || network.is_l2();
        let direct = network.overlay.as_ref().map(|overlay| &overlay.direct);
        let lans = direct.into_iter().flat_map(|direct| direct.v4.iter().chain(&direct.v6));
        Self {
            name: network.name.to_string(),
            id: network.id.to_string(),
            created: clock::rfc3339(network.created),
            scope: scope(network),
            driver: network.driver.to_string(),
            enable_ipv4: speaks(network, Family::V4),
            enable_ipv6: speaks(network, Family::V6),
            ipam: Ipam {
                driver: network.ipam.to_string(),
                options: Map::new(),
                config: network
                    .subnets
                    .iter()
                    .map(|subnet| IpamConfig {
                        subnet: subnet.net,
                        ip_range: subnet.range,
                        gateway: subnet.gateway,
                        auxiliary_addresses: subnet.aux.clone(),
                        fallback: subnet.fallback,
                    })
                    .collect(),
            },
            internal: network.internal,
            attachable: false,
            ingress: false,
            config_only: false,
            containers: info
                .endpoints
                .iter()
                .map(|(endpoint, name)| {
                    let address = |family| address_of(endpoint, family).map_or_else(String::new, |net| net.to_string());
                    let container = NetworkContainer {
                        name: name.to_string(),
                        endpoint_id: endpoint.id.to_string(),
                        mac_address: endpoint.mac.to_string(),
                        ipv4_address: address(Family::V4),
                        ipv6_address: address(Family::V6),
                    };
                    (endpoint.container.to_string(), container)
                })
                .collect(),
            options: network.raw_options.clone(),
            labels: network.labels.clone(),
            bridge: is_bridge.then(|| network.bridge.to_string()),
            mtu: network.mtu.bytes(),
            guard: match firewall.guard(network) {
                Guard::Addresses => Some("addresses"),
                Guard::Macs => Some("macs"),
                Guard::Off => Some("off"),
                Guard::Elsewhere => None,
            },
            lan: lans.map(|lan| format!("{} by {}", lan.net, lan.interface)).collect(),
        }
    }
}

/// The first address of `family` with the subnet's prefix length.
pub(crate) fn address_of(endpoint: &Endpoint, family: Family) -> Option<IpNet> {
    endpoint.addresses.iter().map(|address| address.address).find(|net| Family::of(net.addr()) == family)
}

/// A row of `ps`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ContainerRow {
    #[serde(rename = "ID")]
    id: String,
    names: String,
    command: Vec<String>,
    created_at: String,
    state: &'static str,
    status: String,
    health: Option<String>,
    ports: Vec<String>,
    networks: Vec<String>,
    labels: Map<String>,
}

impl From<&ContainerInfo> for ContainerRow {
    fn from(info: &ContainerInfo) -> Self {
        let container = &info.container;
        Self {
            id: container.id.to_string(),
            names: container.called().to_owned(),
            command: container.command.clone(),
            created_at: clock::rfc3339(container.created),
            state: state(info),
            status: status(info),
            health: container.health.as_ref().map(|health| health.state.to_string()),
            ports: ports_in_short(info),
            networks: networks(info),
            labels: container.labels.clone(),
        }
    }
}

/// Docker's word for where a container stands.
pub(crate) fn state(info: &ContainerInfo) -> &'static str {
    match info.container.state {
        ContainerState::Exited(_) => "exited",
        _ if !info.alive => "dead",
        ContainerState::Created => "created",
        ContainerState::Running => "running",
    }
}

/// Where a container stands, for people.
pub(crate) fn status(info: &ContainerInfo) -> String {
    match info.container.state {
        ContainerState::Exited(code) => format!("Exited ({code})"),
        _ if !info.alive => "Dead".to_owned(),
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running => {
            format!("Up {}{}", clock::since(info.container.created), health::note(&info.container))
        }
    }
}

/// The networks of a container, or whose stack it uses.
pub(crate) fn networks(info: &ContainerInfo) -> Vec<String> {
    match &info.container.mode {
        NetworkMode::Host => vec!["host".to_owned()],
        NetworkMode::Container(other) => vec![format!("container:{}", other.short())],
        NetworkMode::None if info.endpoints.is_empty() => vec!["none".to_owned()],
        NetworkMode::Own | NetworkMode::None => {
            info.endpoints.iter().map(|(_, network)| network.name.to_string()).collect()
        }
    }
}

/// A container and its endpoints, as plans look at them.
pub(crate) fn view(info: &ContainerInfo) -> ContainerView {
    ContainerView { container: info.container.clone(), endpoints: info.endpoints.clone(), publications: Vec::new() }
}

/// The families in which a published port leads somewhere: those of its bridge networks with a way out.
fn published_families(info: &ContainerInfo) -> Vec<Family> {
    let view = view(info);
    Family::ALL.into_iter().filter(|family| published_endpoint(&view, *family).is_some()).collect()
}

/// The host addresses of a publication: one for each family if it is on all of them.
fn host_addresses(publication: &Publication, families: &[Family]) -> Vec<IpAddr> {
    match publication.host_ip {
        Some(address) => vec![address],
        None => families
            .iter()
            .map(|family| match family {
                Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            })
            .collect(),
    }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Published and exposed ports as `docker ps` prints them.
pub(crate) fn ports_in_short(info: &ContainerInfo) -> Vec<String> {
    let families = published_families(info);
    let mut ports = Vec::new();
    for publication in &info.publications {
        for address in host_addresses(publication, &families) {
            ports.push(format!(
                "{}:{}->{}/{}",
                bracketed(address),
                publication.host,
                publication.container,
                publication.protocol
            ));
        }
    }
    let is_published = |range: PortRange, protocol| {
        info.publications.iter().any(|p| p.protocol == protocol && p.container.overlaps(range))
    };
    ports.extend(
        info.container.exposed.iter().filter(|port| !is_published(port.ports, port.protocol)).map(ToString::to_string),
    );
    ports
}

/// Where one container port is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortLine {
    /// `80/tcp`.
    pub(crate) container: String,
    pub(crate) host_ip: IpAddr,
    pub(crate) host_port: u16,
}

impl PortLine {
    /// `0.0.0.0:8080` or `[::]:8080`.
    pub(crate) fn host(&self) -> String {
        format!("{}:{}", bracketed(self.host_ip), self.host_port)
    }
}

/// Every published port on its own, in order of the container's ports.
pub(crate) fn port_lines(info: &ContainerInfo) -> Vec<PortLine> {
    let families = published_families(info);
    let mut publications: Vec<&Publication> = info.publications.iter().collect();
    publications.sort_by_key(|publication| (publication.container.first(), publication.protocol));
    let mut lines = Vec::new();
    for publication in publications {
        for (container, host_port) in publication.container.ports().zip(publication.host.ports()) {
            for host_ip in host_addresses(publication, &families) {
                lines.push(PortLine { container: format!("{container}/{}", publication.protocol), host_ip, host_port });
            }
        }
    }
    lines
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PortBinding {
    host_ip: String,
    host_port: String,
}

/// Docker's `Ports`: container port to host ports, null for those that are exposed only.
pub(crate) fn ports(info: &ContainerInfo) -> Map<Option<Vec<PortBinding>>> {
    let mut all: Map<Option<Vec<PortBinding>>> = Map::new();
    for port in &info.container.exposed {
        for number in port.ports.ports() {
            all.insert(format!("{number}/{}", port.protocol), None);
        }
    }
    for line in port_lines(info) {
        let binding = PortBinding { host_ip: line.host_ip.to_string(), host_port: line.host_port.to_string() };
        all.entry(line.container).or_default().get_or_insert_default().push(binding);
    }
    all
}

/// `inspect` of a container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ContainerDetails {
    id: String,
    created: String,
    path: String,
    args: Vec<String>,
    state: State,
    name: String,
    config: Config,
    host_config: HostConfig,
    network_settings: NetworkSettings,
    /// What Docker leaves out: who made the namespace.
    kind: ContainerKind,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: &'static str,
    running: bool,
    dead: bool,
    pid: i32,
    exit_code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<HealthDetails>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    hostname: String,
    cmd: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<CheckDetails>,
    exposed_ports: Map<Empty>,
    labels: Map<String>,
}

#[derive(Debug, Serialize)]
struct Empty {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    network_mode: String,
    port_bindings: Map<Vec<PortBinding>>,
    auto_remove: bool,
    dns: Vec<IpAddr>,
    dns_search: Vec<String>,
    dns_options: Vec<String>,
    extra_hosts: Vec<String>,
    sysctls: Map<String>,
    security_opt: &'static [&'static str],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(rename = "SandboxID")]
    sandbox_id: String,
    sandbox_key: String,
    ports: Map<Option<Vec<PortBinding>>>,
    networks: Map<EndpointDetails>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointDetails {
    #[serde(rename = "IPAMConfig")]
    ipam_config: Option<EndpointIpam>,
    links: Vec<String>,
    aliases: Vec<String>,
    mac_address: String,
    gw_priority: i32,
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    gateway: String,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    global_ipv6_prefix_len: u8,
    #[serde(rename = "DNSNames")]
    dns_names: Vec<String>,
    /// What Docker leaves out: the ends of the veth pair.
    interface_name: String,
    host_interface_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<BandwidthDetails>,
}

#[derive(Debug, Serialize)]
struct EndpointIpam {
    #[serde(rename = "IPv4Address", skip_serializing_if = "Option::is_none")]
    ipv4: Option<IpAddr>,
    #[serde(rename = "IPv6Address", skip_serializing_if = "Option::is_none")]
    ipv6: Option<IpAddr>,
}

fn endpoint_details(container: &Container, endpoint: &Endpoint, network: &Network) -> EndpointDetails {
    let address = |family| address_of(endpoint, family);
    let text = |family| address(family).map_or_else(String::new, |net| net.addr().to_string());
    let length = |family| address(family).map_or(0, |net| net.prefix_len());
    let gateway = |family| {
        if let Some(lease) = endpoint.leases.of(family) {
            return lease.gateway.map_or_else(String::new, |gateway| gateway.to_string());
        }
        let gateway = address(family).and_then(|net| network.gateway_for(net.addr()));
        let gateway = gateway.filter(|_| network.routes_out(family));
        gateway.map_or_else(String::new, |gateway| gateway.to_string())
    };
    let configured = |family| {
        endpoint
            .addresses
            .iter()
            .find(|a| a.configured && Family::of(a.address.addr()) == family)
            .map(|a| a.address.addr())
    };
    let ipam = EndpointIpam { ipv4: configured(Family::V4), ipv6: configured(Family::V6) };
    let mut dns_names: Vec<String> = vec![container.name.to_string()];
    let others = endpoint
        .aliases
        .iter()
        .map(ToString::to_string)
        .chain([container.id.short()])
        .chain(container.hostname.iter().map(ToString::to_string));
    for name in others {
        if !dns_names.contains(&name) {
            dns_names.push(name);
        }
    }
    EndpointDetails {
        ipam_config: (ipam.ipv4.is_some() || ipam.ipv6.is_some()).then_some(ipam),
        links: endpoint.links.iter().map(|link| format!("{}:{}", link.container, link.alias)).collect(),
        aliases: endpoint.aliases.iter().map(ToString::to_string).collect(),
        mac_address: endpoint.mac.to_string(),
        gw_priority: endpoint.gateway_priority,
        network_id: network.id.to_string(),
        endpoint_id: endpoint.id.to_string(),
        gateway: gateway(Family::V4),
        ip_address: text(Family::V4),
        ip_prefix_len: length(Family::V4),
        ipv6_gateway: gateway(Family::V6),
        global_ipv6_address: text(Family::V6),
        global_ipv6_prefix_len: length(Family::V6),
        dns_names,
        interface_name: endpoint.ifname.to_string(),
        host_interface_name: endpoint.host_end.to_string(),
        bandwidth: (!endpoint.bandwidth.is_unlimited()).then(|| endpoint.bandwidth.into()),
    }
}

fn network_settings(info: &ContainerInfo) -> NetworkSettings {
    let container = &info.container;
    let sandbox = container.sandbox.as_ref();
    NetworkSettings {
        sandbox_id: sandbox.map_or_else(String::new, |sandbox| format!("{}:{}", sandbox.device, sandbox.inode)),
        sandbox_key: sandbox.map_or_else(String::new, |sandbox| sandbox.path.display().to_string()),
        ports: ports(info),
        networks: info
            .endpoints
            .iter()
            .map(|(endpoint, network)| (network.name.to_string(), endpoint_details(container, endpoint, network)))
            .collect(),
    }
}

fn extra_host(entry: &HostEntry) -> String {
    match entry.address {
        Some(address) => format!("{}:{address}", entry.name),
        None => format!("{}:host-gateway", entry.name),
    }
}

impl From<&ContainerInfo> for ContainerDetails {
    fn from(info: &ContainerInfo) -> Self {
        let container = &info.container;
        let state_word = state(info);
        let running = matches!(state_word, "running" | "created") && container.state == ContainerState::Running;
        let mode = match &container.mode {
            NetworkMode::Container(other) => format!("container:{other}"),
            _ => networks(info).into_iter().next().unwrap_or_else(|| "none".to_owned()),
        };
        Self {
            id: container.id.to_string(),
            created: clock::rfc3339(container.created),
            path: container.command.first().cloned().unwrap_or_default(),
            args: container.command.iter().skip(1).cloned().collect(),
            state: State {
                status: state_word,
                running,
                dead: state_word == "dead",
                pid: container.process.filter(|_| info.alive).map_or(0, |process| process.pid),
                exit_code: match container.state {
                    ContainerState::Exited(code) => code,
                    _ => 0,
                },
                health: container.health.as_ref().map(HealthDetails::from),
            },
            name: container.name.to_string(),
            config: Config {
                hostname: container.hostname.as_ref().map_or_else(String::new, ToString::to_string),
                cmd: container.command.clone(),
                healthcheck: container.health_check.as_ref().map(CheckDetails::from),
                exposed_ports: ports(info).into_keys().map(|port| (port, Empty {})).collect(),
                labels: container.labels.clone(),
            },
            host_config: HostConfig {
                network_mode: mode,
                port_bindings: ports(info).into_iter().filter_map(|(port, bindings)| Some((port, bindings?))).collect(),
                auto_remove: container.auto_remove,
                dns: container.dns.servers.clone(),
                dns_search: container.dns.search.clone(),
                dns_options: container.dns.options.clone(),
                extra_hosts: container.hosts.iter().map(extra_host).collect(),
                sysctls: container.sysctls.clone(),
                security_opt: if container.no_netfilter { &["no-netfilter"] } else { &[] },
            },
            network_settings: network_settings(info),
            kind: container.kind,
        }
    }
}

/// What `attach`, `connect` and the like answer: who, and its addresses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Attached {
    id: String,
    name: String,
    network_settings: NetworkSettings,
}

impl From<&ContainerInfo> for Attached {
    fn from(info: &ContainerInfo) -> Self {
        Self {
            id: info.container.id.to_string(),
            name: info.container.name.to_string(),
            network_settings: network_settings(info),
        }
    }
}

/// A published port.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PublicationRow {
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_ip: Option<IpAddr>,
    host_port: PortRange,
    container_port: PortRange,
}

impl From<&Publication> for PublicationRow {
    fn from(publication: &Publication) -> Self {
        Self {
            protocol: publication.protocol.to_string(),
            host_ip: publication.host_ip,
            host_port: publication.host,
            container_port: publication.container,
        }
    }
}

/// A difference between store and kernel.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Difference {
    difference: &'static str,
    object: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<String>,
    step: String,
}

impl From<&Step> for Difference {
    fn from(step: &Step) -> Self {
        let (difference, object, found): (_, &Object, _) = match step {
            Step::Create(object) => ("missing", object, None),
            Step::Change(found, wanted) => ("different", wanted, Some(found.to_string())),
            Step::Delete(object) => ("unexpected", object, None),
        };
        Self { difference, object: object.to_string(), found, step: step.to_string() }
    }
}

impl Difference {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        match &self.found {
            Some(found) => format!("{}: {found}; should be {}", self.difference, self.object),
            None => format!("{}: {}", self.difference, self.object),
        }
    }
}

/// What `gc` and `reconcile` did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RepairReport {
    containers: Vec<String>,
    rows: usize,
    directories: usize,
    steps: Vec<String>,
    failures: Vec<String>,
}

impl RepairReport {
    pub(crate) fn new(repaired: &Repaired, directories: usize) -> Self {
        Self {
            containers: repaired.containers.iter().map(ToString::to_string).collect(),
            rows: repaired.rows,
            directories,
            steps: repaired.steps.iter().map(ToString::to_string).collect(),
            failures: repaired.failures.clone(),
        }
    }
}

/// A rule in words.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RuleSentence {
    pub(crate) owner: String,
    pub(crate) text: String,
}

/// Rules as text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RuleText {
    pub(crate) table: String,
    pub(crate) text: String,
}

/// `version`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version {
    pub(crate) version: &'static str,
    pub(crate) kernel: String,
    pub(crate) os: &'static str,
    pub(crate) arch: &'static str,
}
