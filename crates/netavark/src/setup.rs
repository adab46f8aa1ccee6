//! From what Podman asks for to what the engine is asked for, with the checks that netavark makes first.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use ipnet::IpNet;
use portolan_engine::{AttachRequest, EndpointRequest, NetworkRequest};
use portolan_model::{
    DnsConfig, Driver, HostPorts, Id, IfName, Ipam, Mac, Name, PortRange, Protocol, PublishSpec, RouteAction,
    StaticRoute,
};
use sha2::{Digest as _, Sha256};

use crate::cluster::cluster_network;
use crate::failure::Failure;
use crate::status::SEARCH_DOMAIN;
use crate::wire::{Attachment, Network, PortMapping, Route, Setup, shortened};

/// The program that holds published ports for Podman's containers while they run.
pub(crate) const PORT_KEEPER: &str = "conmon";

/// The priority of default routes that netavark gives where no option says another: macvlan and ipvlan are preferred.
const BRIDGE_METRIC: u32 = 100;
const CHILD_METRIC: u32 = 99;

/// That of static routes which have none of their own, whatever the network's is.
const ROUTE_METRIC: u32 = 100;

/// A setup, ready for the engine and for plugins.
#[derive(Debug)]
pub struct Plan<'a> {
    /// For the engine; none if all networks are of plugins.
    pub attach: Option<AttachRequest>,
    /// The networks of plugins, with the container's place on each.
    pub plugins: Vec<(&'a Network, &'a Attachment)>,
    /// What is left out, a sentence each.
    pub warnings: Vec<String>,
}

/// Our id of a container that Podman, or another caller, calls `id`: the same if it has our form.
pub fn container_id(id: &str) -> Id {
    id.parse().unwrap_or_else(|_| hashed("container", id))
}

/// Our id of a network: Podman's if it has our form. Whose ids have another knows a network by its name, as the name
/// server of netavark does: such an id may be another one with every call.
pub fn network_id(network: &Network) -> Id {
    network.id.parse().unwrap_or_else(|_| hashed("network", &network.name))
}

fn hashed(kind: &str, id: &str) -> Id {
    Id::from_bytes(Sha256::new().chain_update(kind).chain_update([0]).chain_update(id).finalize().into())
}

/// Decides what is to be asked of the engine and of plugins to put the namespace at `netns` on all networks. Names are
/// answered on `names_port` of the gateways if it is given, behind port 53; on a bridge that is somebody else's at those of
/// its addresses that `addresses_of` tells, which knows nothing of a bridge that is not there.
///
/// # Errors
/// Whatever netavark refuses before it touches anything, in its words, and that such a bridge has no address.
pub fn plan<'a>(
    setup: &'a Setup,
    netns: &Path,
    names_port: Option<u16>,
    addresses_of: impl Fn(&str) -> Result<Option<Vec<IpAddr>>, Failure>,
) -> Result<Plan<'a>, Failure> {
    let mut warnings = Vec::new();
    let mut endpoints = Vec::new();
    let mut plugins = Vec::new();
    for (position, attachment) in setup.networks.iter().enumerate() {
        let network = setup.network_info.get(&attachment.name).ok_or_else(|| {
            Failure::new(format!("network info for network {} not found", shortened(&attachment.name)))
        })?;
        match driver(network).filter(|_| cluster_network(network).is_none()) {
            Some(driver) => endpoints.push(endpoint(network, attachment, driver, position, names_port, &mut warnings)?),
            None => plugins.push((network, attachment)),
        }
    }
    let asked = endpoints.iter_mut().filter_map(|endpoint| endpoint.transient.as_mut());
    for request in asked.filter(|request| request.names) {
        request.names_at = names_at(request, &addresses_of)?;
    }
    check_name_servers(setup, &endpoints)?;
    let attach =
        if endpoints.is_empty() { None } else { Some(attach_request(setup, netns, endpoints, &mut warnings)?) };
    Ok(Plan { attach, plugins, warnings })
}

/// Where names are answered on a bridge that is somebody else's; nowhere for one of ours, whose gateways are for that.
fn names_at(
    request: &NetworkRequest,
    addresses_of: impl Fn(&str) -> Result<Option<Vec<IpAddr>>, Failure>,
) -> Result<Vec<IpAddr>, Failure> {
    let Some(bridge) = request.options.get("bridge").filter(|_| is_unmanaged(request)) else { return Ok(Vec::new()) };
    match addresses_of(bridge)? {
        Some(addresses) if addresses.is_empty() => Err(Failure::new(format!(
            "bridge '{bridge}' in unmanaged mode has no usable IP addresses. Aardvark-dns requires at least one address \
             (should not be an IPv6 link-local address) to bind to. Please add an IP address or disable DNS for this \
             network (--disable-dns)."
        ))),
        Some(addresses) => Ok(addresses),
        // That is refused as what it is.
        None => Ok(Vec::new()),
    }
}

fn is_unmanaged(request: &NetworkRequest) -> bool {
    request.driver == Driver::Bridge && request.options.get("mode").is_some_and(|mode| mode == "unmanaged")
}

/// Refuses name servers where our own answers: it would ask itself.
fn check_name_servers(setup: &Setup, endpoints: &[EndpointRequest]) -> Result<(), Failure> {
    let networks = || endpoints.iter().filter_map(|endpoint| endpoint.transient.as_ref());
    let serves = |network: &&NetworkRequest| network.names;
    let at = |server: &IpAddr| {
        let places = |network: &NetworkRequest| match is_unmanaged(network) {
            true => network.names_at.clone(),
            false => network.gateways.clone(),
        };
        networks().filter(serves).find(|network| places(network).contains(server)).map(|network| network.name.clone())
    };
    let refuse = |what: &str, name: Name| {
        Failure::new(format!(
            "{what} of network \"{name}\"; using it would cause aardvark-dns to forward queries to itself."
        ))
    };
    if networks().any(|network| serves(&network)) {
        for server in setup.dns_servers.iter().flatten() {
            at(server).map_or(Ok(()), |name| Err(refuse(&format!("DNS server {server} is the gateway"), name)))?;
        }
    }
    for server in networks().filter(serves).flat_map(|network| &network.dns) {
        at(server)
            .map_or(Ok(()), |name| Err(refuse(&format!("network DNS server {server} matches the gateway"), name)))?;
    }
    Ok(())
}

/// The driver, if it is one of ours; else it is a plugin's.
pub fn driver(network: &Network) -> Option<Driver> {
    match network.driver.as_str() {
        "bridge" => Some(Driver::Bridge),
        "macvlan" => Some(Driver::Macvlan),
        "ipvlan" => Some(Driver::Ipvlan),
        _ => None,
    }
}

fn attach_request(
    setup: &Setup,
    netns: &Path,
    endpoints: Vec<EndpointRequest>,
    warnings: &mut Vec<String>,
) -> Result<AttachRequest, Failure> {
    let name: Option<Name> = setup.container_name.parse().ok();
    if name.is_none() && !setup.container_name.is_empty() {
        warnings
            .push(format!("container name {:?} is no name: the id stands for it", shortened(&setup.container_name)));
    }
    let mut publish: Vec<PublishSpec> = Vec::new();
    for mapping in setup.port_mappings.iter().flatten() {
        for spec in published(mapping)? {
            if !publish.contains(&spec) {
                publish.push(spec);
            }
        }
    }
    Ok(AttachRequest {
        id: Some(container_id(&setup.container_id)),
        name,
        hostname: setup.container_hostname.as_ref().and_then(|name| name.parse().ok()),
        endpoints,
        publish,
        dns: DnsConfig {
            servers: setup.dns_servers.clone().unwrap_or_default(),
            search: vec![SEARCH_DOMAIN.to_owned()],
            options: Vec::new(),
        },
        port_keeper: Some(PORT_KEEPER.to_owned()),
        ..AttachRequest::namespace(netns)
    })
}

/// A container's place on a network of ours.
fn endpoint(
    network: &Network,
    attachment: &Attachment,
    driver: Driver,
    position: usize,
    names_port: Option<u16>,
    warnings: &mut Vec<String>,
) -> Result<EndpointRequest, Failure> {
    let is_bridge = driver == Driver::Bridge;
    if is_bridge && network.network_interface.as_deref().unwrap_or_default().is_empty() {
        return Err(Failure::new("no bridge interface name given"));
    }
    if attachment.interface_name.is_empty() {
        return Err(Failure::new("no container interface name given"));
    }
    let ifname = interface(&attachment.interface_name)?;
    let ipam = ipam(network, driver)?;
    let addresses = if ipam == Ipam::Local { addresses(network, attachment)? } else { Vec::new() };
    let mac = attachment.static_mac.as_deref().filter(|mac| !mac.is_empty()).map(mac).transpose()?;
    let host_end = match attachment.options.as_ref().and_then(|options| options.get("host_interface_name")) {
        Some(name) if is_bridge && !name.is_empty() => Some(interface(name)?),
        _ => None,
    };
    let mut aliases = Vec::new();
    for alias in attachment.aliases.iter().flatten() {
        match alias.parse::<Name>() {
            Ok(name) => aliases.push(name),
            Err(error) => {
                warnings.push(format!("invalid network alias {:?}: {error}, ignoring this name", shortened(alias)))
            }
        }
    }
    let request = network_request(network, driver, ipam, names_port)?;
    Ok(EndpointRequest {
        addresses,
        exact: true,
        host_end,
        mac: mac.filter(|_| driver != Driver::Ipvlan),
        ifname: Some(ifname),
        aliases,
        // The first network gives the default route, where options do not say otherwise.
        gateway_priority: i32::try_from(position).map_or(i32::MIN, |position| -position),
        transient: Some(request),
        ..EndpointRequest::new(&network.name)
    })
}

/// What the engine is told of a network.
fn network_request(
    network: &Network,
    driver: Driver,
    ipam: Ipam,
    names_port: Option<u16>,
) -> Result<NetworkRequest, Failure> {
    // Where addresses are somebody else's, subnets say nothing.
    let known = network.subnets.iter().flatten().filter(|_| ipam == Ipam::Local);
    let subnets: Vec<IpNet> = known.clone().map(|subnet| subnet.subnet).collect();
    let has = |v4| match ipam {
        Ipam::Local => subnets.iter().any(|subnet| subnet.addr().is_ipv4() == v4),
        Ipam::Dhcp => v4 || network.ipv6_enabled,
        Ipam::None => true,
    };
    let routes = network.routes.iter().flatten().map(route).collect::<Result<_, _>>()?;
    let mut options = options(network, driver)?;
    let device = network.network_interface.as_ref().filter(|device| !device.is_empty());
    if let Some(device) = device.map(|device| interface(device)).transpose()? {
        options.insert(if driver == Driver::Bridge { "bridge" } else { "parent" }.to_owned(), device.to_string());
    }
    Ok(NetworkRequest {
        id: Some(network_id(network)),
        exact: true,
        driver,
        gateways: known.filter_map(|subnet| subnet.gateway).collect(),
        ipv4: has(true),
        ipv6: has(false),
        ipam,
        subnets,
        internal: network.internal,
        dns: network.network_dns_servers.clone().unwrap_or_default(),
        options,
        labels: network.labels.clone().unwrap_or_default(),
        routes,
        // Of whom no address is known, nothing could be told, nor by whom it is asked.
        names: network.dns_enabled && driver == Driver::Bridge && (is_managed_bridge(network) || ipam != Ipam::None),
        names_port,
        ..NetworkRequest::new(network_name(network)?)
    })
}

/// The name, as the engine takes it.
pub(crate) fn network_name(network: &Network) -> Result<Name, Failure> {
    let name = network.name.parse();
    name.map_err(|error| Failure::new(format!("invalid network name {:?}: {error}", shortened(&network.name))))
}

/// The options of a network by our names, checked as netavark checks them. Others are not looked at. Its device, which it
/// may not have yet, is not among them.
pub(crate) fn options(network: &Network, driver: Driver) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    let mut put = |key: &str, value: String| found.insert(key.to_owned(), value);
    let mode = network.option("mode").filter(|mode| !mode.is_empty());
    if let Some(mtu) = parsed::<u32>(network, "mtu")?.filter(|mtu| *mtu > 0) {
        put("mtu", mtu.to_string());
    }
    let default = if driver == Driver::Bridge { BRIDGE_METRIC } else { CHILD_METRIC };
    put("metric", parsed::<u32>(network, "metric")?.unwrap_or(default).to_string());
    if parsed::<bool>(network, "no_default_route")? == Some(true) {
        put("no_default_route", "true".to_owned());
    }
    match driver {
        Driver::Macvlan | Driver::Ipvlan => {
            if let Some(mode) = mode {
                let is_known = match driver {
                    Driver::Macvlan => mode.parse::<portolan_model::MacvlanMode>().is_ok(),
                    _ => mode.parse::<portolan_model::IpvlanMode>().is_ok(),
                };
                if !is_known {
                    return Err(Failure::new(format!("invalid {driver} mode {mode:?}")));
                }
                put("mode", mode.to_owned());
            }
            if let Some(limit) = parsed::<i32>(network, "bclim")?.filter(|_| driver == Driver::Macvlan) {
                put("bclim", limit.to_string());
            }
        }
        Driver::Bridge | Driver::Ptp | Driver::Overlay | Driver::Host | Driver::None => {
            match mode {
                None | Some("managed") => {}
                Some("unmanaged") => drop(put("mode", "unmanaged".to_owned())),
                Some(mode) => return Err(Failure::new(format!("invalid bridge mode {mode:?}"))),
            }
            // Older netavark takes what it does not know for open.
            match network.option("isolate") {
                None => {}
                Some(level @ ("strict" | "true" | "false")) => drop(put("isolate", level.to_owned())),
                Some(other) => return Err(Failure::new(format!("invalid isolate option {:?}", shortened(other)))),
            }
            if let Some(vlan) = parsed::<u16>(network, "vlan")?.filter(|vlan| *vlan > 0) {
                if vlan > 4094 {
                    return Err(Failure::new("vlan must be between 0 and 4094"));
                }
                put("vlan", vlan.to_string());
            }
            if let Some(vrf) = network.option("vrf").filter(|vrf| !vrf.is_empty()) {
                put("vrf", interface(vrf)?.to_string());
            }
            if let Some(address) = parsed::<Ipv4Addr>(network, "outbound_addr4")? {
                put("host_ipv4", address.to_string());
            }
            if let Some(address) = parsed::<Ipv6Addr>(network, "outbound_addr6")? {
                put("host_ipv6", address.to_string());
            }
        }
    }
    Ok(found)
}

/// An option that has to be of a type.
fn parsed<T: FromStr<Err: Display>>(network: &Network, key: &str) -> Result<Option<T>, Failure> {
    let parse =
        |value: &str| value.parse().map_err(|error| Failure::new(format!("unable to parse \"{key}\": {error}")));
    network.option(key).map(parse).transpose()
}

pub(crate) fn interface(name: &str) -> Result<IfName, Failure> {
    name.parse().map_err(|error: portolan_model::Invalid| Failure::new(error.to_string()))
}

/// Refuses subnets of one network that are the same or overlap.
pub(crate) fn check_subnets(subnets: &[IpNet]) -> Result<(), Failure> {
    for (position, one) in subnets.iter().enumerate() {
        for other in &subnets[position + 1..] {
            if one == other {
                return Err(Failure::new(format!("duplicate subnet defined: {one}")));
            }
            if overlap(one, other) {
                return Err(Failure::new(format!("overlapping subnets: {one} and {other}")));
            }
        }
    }
    Ok(())
}

pub(crate) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Whether it has a bridge that is made for it, and not somebody else's.
pub fn is_managed_bridge(network: &Network) -> bool {
    driver(network) == Some(Driver::Bridge) && network.option("mode") != Some("unmanaged")
}

/// Who gives out addresses.
fn ipam(network: &Network, driver: Driver) -> Result<Ipam, Failure> {
    match network.ipam() {
        // Without so much as an empty list of subnets no address is given, whichever the container is said to have.
        "" | "host-local" if network.subnets.is_none() => Ok(Ipam::None),
        "" | "host-local" => Ok(Ipam::Local),
        "none" => Ok(Ipam::None),
        "dhcp" if is_managed_bridge(network) => {
            Err(Failure::new("cannot use dhcp ipam driver without using the option mode=unmanaged"))
        }
        "dhcp" if driver == Driver::Ipvlan => Err(Failure::new("ipam driver dhcp is not supported with ipvlan")),
        "dhcp" => Ok(Ipam::Dhcp),
        other => Err(Failure::new(format!("unsupported ipam driver {}", shortened(other)))),
    }
}

/// The addresses that Podman chose, each in a subnet of the network.
fn addresses(network: &Network, attachment: &Attachment) -> Result<Vec<IpAddr>, Failure> {
    let Some(wanted) = &attachment.static_ips else { return Err(Failure::new("no static ips provided")) };
    let subnets: Vec<IpNet> = network.subnets.iter().flatten().map(|subnet| subnet.subnet).collect();
    check_subnets(&subnets)?;
    // In the order of the subnets, as they are answered.
    let found: Vec<IpAddr> =
        subnets.iter().flat_map(|subnet| wanted.iter().copied().filter(|ip| subnet.contains(ip))).collect();
    if found.len() != wanted.len() {
        return Err(Failure::new(format!(
            "not all static IPs matched a subnet: expected {}, got {}",
            wanted.len(),
            found.len()
        )));
    }
    Ok(found)
}

pub(crate) fn mac(text: &str) -> Result<Mac, Failure> {
    let bytes = text.split([':', '-']).map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<u8>, _>>();
    let bytes =
        bytes.map_err(|error| Failure::new(format!("unable to parse mac address {}: {error}", shortened(text))))?;
    if bytes.len() != 6 {
        return Err(Failure::new(format!("invalid mac length for address: {}", shortened(text))));
    }
    let canonical = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    canonical.parse().map_err(|error: portolan_model::Invalid| Failure::new(error.to_string()))
}

pub(crate) fn route(route: &Route) -> Result<StaticRoute, Failure> {
    let destination = route.destination;
    let kind = route.route_type.as_deref().unwrap_or_default();
    let action = match (kind, route.gateway) {
        ("" | "unicast", Some(gateway)) if gateway.is_ipv4() != destination.addr().is_ipv4() => {
            return Err(Failure::new(format!("route {destination} has a gateway of another family: {gateway}")));
        }
        ("" | "unicast", Some(gateway)) => RouteAction::Via(gateway),
        ("" | "unicast", None) => {
            return Err(Failure::new(format!("route {destination} requires a gateway for type unicast")));
        }
        ("blackhole", None) => RouteAction::Blackhole,
        ("unreachable", None) => RouteAction::Unreachable,
        ("prohibit", None) => RouteAction::Prohibit,
        ("blackhole" | "unreachable" | "prohibit", Some(_)) => {
            return Err(Failure::new(format!("route {destination} must not have a gateway for type {kind}")));
        }
        (kind, _) => return Err(Failure::new(format!("invalid route type \"{}\"", shortened(kind)))),
    };
    Ok(StaticRoute { destination: destination.trunc(), action, metric: Some(route.metric.unwrap_or(ROUTE_METRIC)) })
}

/// The publications that a port mapping stands for, one for each protocol.
pub(crate) fn published(mapping: &PortMapping) -> Result<Vec<PublishSpec>, Failure> {
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            Failure::new(format!("invalid host ip {:?} provided for port {}", shortened(text), mapping.host_port))
        })?),
    };
    let range = |first: u16| {
        let last = u32::from(first) + u32::from(mapping.range.max(1)) - 1;
        let last = u16::try_from(last)
            .map_err(|_| Failure::new(format!("port range of {} from {first} on ends after 65535", mapping.range)))?;
        PortRange::new(first, last).map_err(|error| Failure::new(error.to_string()))
    };
    let (host, container) = (range(mapping.host_port)?, range(mapping.container_port)?);
    let protocols = if mapping.protocol.is_empty() { "tcp" } else { &mapping.protocol };
    let spec = |protocol: &str| {
        let protocol: Protocol =
            protocol.parse().map_err(|_| Failure::new(format!("unknown port protocol {:?}", shortened(protocol))))?;
        Ok(PublishSpec { protocol, host_ip, host: HostPorts::Exact(host), container })
    };
    protocols.split(',').map(|protocol| spec(protocol.trim())).collect()
}

#[cfg(test)]
#[path = "setup_tests.rs"]
mod tests;
