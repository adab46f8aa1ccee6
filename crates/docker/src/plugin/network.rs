//! What Docker says of networks, endpoints and ports, in the engine's words.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_engine::{AttachRequest, ContainerInfo, EndpointRequest, NetworkRequest};
use portolan_model::{
    ContainerKind, Driver, Endpoint, ExposedPort, Family, HostPorts, Id, IfName, Invalid, Ipam, Mac, Name, Network,
    NetworkOptions, PortRange, Protocol, PublishSpec, RouteAction,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::wire::{
    ADDRESS_SPACE, CONNECTED, CreateEndpoint, CreateNetwork, ENABLE_IPV4, ENABLE_IPV6, GENERIC, INTERNAL, Interface,
    InterfaceName, Joined, NEXT_HOP, Options, PORT_MAP, Pool, PortBinding, StaticRoute,
};
use crate::refusal::Refusal;

/// The label of what Docker keeps, with Docker's id of it.
pub const LABEL: &str = "com.docker.network.id";
/// The option of `docker network create` that says what carries the network.
pub(super) const DRIVER: &str = "driver";
/// The pool of Docker's IPAM driver `null`, and of ours where it gives out nothing.
const NO_POOL: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// Reads an id of Docker's.
///
/// # Errors
/// What is not 64 hexadecimal digits.
pub fn id(text: &str) -> Result<Id, Refusal> {
    Ok(text.parse::<Id>()?)
}

/// What a network or an endpoint of Docker's is called, for nobody tells us its own name.
fn name(id: Id) -> Name {
    format!("docker-{}", id.short()).parse().expect("letters, a dash and digits are a name")
}

/// The network that Docker asks for.
///
/// # Errors
/// What is malformed or cannot be.
pub fn network_request(asked: &CreateNetwork) -> Result<NetworkRequest, Refusal> {
    let id = id(&asked.network)?;
    let mut options = generic(&asked.options)?;
    let driver = match options.remove(DRIVER) {
        Some(driver) => driver.parse::<Driver>()?,
        None => Driver::Bridge,
    };
    // It adds routes without one (libnetwork, `programGateway`), and the protocol has no field for it.
    if NetworkOptions::from_pairs(driver, &options)?.metric.is_some() {
        return Err(no_metric());
    }
    let pools: Vec<&Pool> = pools(asked).collect();
    let (mut subnets, mut gateways, mut aux) = (Vec::new(), Vec::new(), BTreeMap::new());
    for pool in &pools {
        subnets.push(subnet(&pool.pool)?);
        if !pool.gateway.is_empty() {
            gateways.push(address(&pool.gateway)?);
        }
        for (name, text) in &pool.aux_addresses {
            aux.insert(name.clone(), address(text)?);
        }
    }
    let ipam = if pools.is_empty() { Ipam::None } else { Ipam::Local };
    Ok(NetworkRequest {
        id: Some(id),
        exact: true,
        pooled: pools.iter().any(|pool| pool.address_space == ADDRESS_SPACE),
        driver,
        ipam,
        subnets,
        gateways,
        aux,
        internal: flag(&asked.options, INTERNAL).unwrap_or(false),
        ipv4: flag(&asked.options, ENABLE_IPV4).unwrap_or(true),
        ipv6: flag(&asked.options, ENABLE_IPV6).unwrap_or(false),
        options,
        labels: BTreeMap::from([(LABEL.to_owned(), asked.network.clone())]),
        ..NetworkRequest::new(name(id))
    })
}

pub(super) fn no_metric() -> Refusal {
    let reason = "Docker sets the routes of its containers, and none with a priority";
    Refusal::new(format!("option `metric`: {reason} (hint: leave it out)"))
}

/// The pools that addresses are given of by Docker's IPAM driver, if it gives any.
pub(super) fn pools(asked: &CreateNetwork) -> impl Iterator<Item = &Pool> {
    let is_one = |pool: &&Pool| !pool.pool.is_empty() && !NO_POOL.contains(&pool.pool.as_str());
    asked.ipv4.iter().chain(&asked.ipv6).filter(is_one)
}

/// What `docker network create -o` was given, as text.
pub(super) fn generic(options: &Options) -> Result<BTreeMap<String, String>, Refusal> {
    let given = match options.get(GENERIC) {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(given)) => given,
        Some(other) => return Err(Refusal::new(format!("`{GENERIC}` is no object: {other}"))),
    };
    let text = |(key, value): (&String, &Value)| match value {
        Value::String(text) => Ok((key.clone(), text.clone())),
        Value::Bool(_) | Value::Number(_) => Ok((key.clone(), value.to_string())),
        other => Err(Refusal::new(format!("option `{key}` is no text: {other}"))),
    };
    given.iter().map(text).collect()
}

/// A label of libnetwork, which is a boolean or the text of one.
pub(super) fn flag(options: &Options, key: &str) -> Option<bool> {
    match options.get(key)? {
        Value::Bool(value) => Some(*value),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

pub(super) fn subnet(text: &str) -> Result<IpNet, Refusal> {
    text.parse().map_err(|_| Refusal::new(format!("`{text}` is no subnet")))
}

/// An address, with or without prefix length.
pub(super) fn address(text: &str) -> Result<IpAddr, Refusal> {
    let bare = text.split_once('/').map_or(text, |(address, _)| address);
    bare.parse().map_err(|_| Refusal::new(format!("`{text}` is no IP address")))
}

/// The endpoint that Docker asks for: a container of its own to the engine, since Docker does not say whose it is. It is on
/// the network `referred` if Docker's is that one of ours, and gets addresses of it.
///
/// # Errors
/// What is malformed.
pub fn attach_request(asked: &CreateEndpoint, referred: Option<Id>, source: IfName) -> Result<AttachRequest, Refusal> {
    let endpoint = id(&asked.which.endpoint)?;
    let Interface { address: v4, address6: v6, mac_address: mac } = &asked.interface;
    let mut addresses = Vec::new();
    for text in [v4, v6].into_iter().filter(|text| !text.is_empty()) {
        addresses.push(address(text)?);
    }
    let network = match referred {
        Some(ours) => ours,
        None => id(&asked.which.network)?,
    };
    let wanted = EndpointRequest {
        addresses,
        exact: referred.is_none(),
        mac: if mac.is_empty() { None } else { Some(mac.parse::<Mac>()?) },
        ifname: Some(source),
        ..EndpointRequest::new(network.to_string())
    };
    Ok(AttachRequest {
        id: Some(endpoint),
        name: Some(name(endpoint)),
        kind: ContainerKind::Handed,
        netns: None,
        endpoints: vec![wanted],
        exposed: exposed(&asked.options)?,
        labels: BTreeMap::from([(LABEL.to_owned(), asked.which.endpoint.clone())]),
        ..AttachRequest::namespace("")
    })
}

/// What Docker did not decide and we did.
pub fn decided(asked: &Interface, made: &ContainerInfo) -> Option<Interface> {
    let (endpoint, network) = made.endpoints.first()?;
    let of = |family| {
        let addresses = endpoint.addresses.iter().map(|address| address.address);
        addresses.filter(|address| Family::of(address.addr()) == family).map(|address| address.to_string()).next()
    };
    // The MAC of an interface that shares its parent's is not ours to say.
    let mac = (!network.shares_parents_mac()).then(|| endpoint.mac.to_string());
    let missing =
        |asked: &str, ours: Option<String>| if asked.is_empty() { ours.unwrap_or_default() } else { String::new() };
    let interface = Interface {
        address: missing(&asked.address, of(Family::V4)),
        address6: missing(&asked.address6, of(Family::V6)),
        mac_address: missing(&asked.mac_address, mac),
    };
    (interface != Interface::default()).then_some(interface)
}

/// How Docker is to put the interface into the container.
pub fn joined(made: &ContainerInfo) -> Option<Joined> {
    let (endpoint, network) = made.endpoints.first()?;
    let gateway = |family| {
        let has = endpoint.address(family).is_some() && network.routes_out(family) && network.options.default_route;
        let of = network.subnets_of(family).find_map(|subnet| subnet.gateway);
        of.filter(|_| has).map(|gateway| gateway.to_string()).unwrap_or_default()
    };
    let (gateway, gateway6) = (gateway(Family::V4), gateway(Family::V6));
    let asked = network.routes.iter().filter_map(|route| match route.action {
        RouteAction::Via(next_hop) => Some(by(route.destination, next_hop)),
        _ => None,
    });
    let routes = behind_gateways(endpoint, network).into_iter().chain(asked);
    Some(Joined {
        interface_name: InterfaceName {
            src_name: endpoint.ifname.to_string(),
            dst_prefix: network.options.interface_prefix.clone(),
        },
        static_routes: routes.collect(),
        // Where there is no way out, none is to be had by another bridge either.
        disable_gateway_service: gateway.is_empty(),
        gateway,
        gateway6,
    })
}

fn by(destination: IpNet, next_hop: IpAddr) -> StaticRoute {
    StaticRoute { destination: destination.to_string(), route_type: NEXT_HOP, next_hop: next_hop.to_string() }
}

/// What leads containers without a bridge to their own subnets.
fn behind_gateways(endpoint: &Endpoint, network: &Network) -> Vec<StaticRoute> {
    if !network.is_routed() {
        return Vec::new();
    }
    let addresses = endpoint.addresses.iter().map(|one| one.address);
    let routes = addresses.filter_map(|address| Some(behind(address, network.gateway_for(address.addr())?)));
    routes.flatten().collect()
}

/// What leads whoever has `address` to its subnet, all of which is behind `gateway`.
///
/// Docker gives the address its prefix length, and the kernel takes the subnet to be on the link. That route is in the way of
/// another one to the same subnet, but not of one to each half, which goes before it; and it leads to the gateway no more once
/// those are there, so that has one of its own.
fn behind(address: IpNet, gateway: IpAddr) -> Vec<StaticRoute> {
    let to_gateway =
        StaticRoute { destination: IpNet::from(gateway).to_string(), route_type: CONNECTED, next_hop: String::new() };
    let halves = address.trunc().subnets(address.prefix_len() + 1).into_iter().flatten();
    // Of two addresses the other one is the gateway's.
    let halves = halves.filter(|half| half.prefix_len() < half.max_prefix_len());
    std::iter::once(to_gateway).chain(halves.map(|half| by(half, gateway))).collect()
}

/// The ports that Docker asks to publish.
///
/// # Errors
/// What are no port bindings.
pub fn ports(options: &Options) -> Result<Vec<PublishSpec>, Refusal> {
    let bindings: Vec<PortBinding> = list(options, PORT_MAP)?;
    bindings.iter().map(port).collect()
}

fn port(binding: &PortBinding) -> Result<PublishSpec, Refusal> {
    let host = match (binding.host_port, binding.host_port_end) {
        (0, _) => HostPorts::Ephemeral,
        (first, last) if last <= first => HostPorts::Exact(PortRange::single(first)?),
        (first, last) => HostPorts::FirstFree(PortRange::new(first, last)?),
    };
    Ok(PublishSpec {
        protocol: protocol(binding.proto)?,
        host_ip: if binding.host_ip.is_empty() { None } else { Some(address(&binding.host_ip)?) },
        host,
        container: PortRange::single(binding.port)?,
    })
}

fn exposed(options: &Options) -> Result<Vec<ExposedPort>, Refusal> {
    let ports: Vec<super::wire::TransportPort> = list(options, super::wire::EXPOSED)?;
    let one = |port: &super::wire::TransportPort| {
        Ok(ExposedPort { protocol: protocol(port.proto)?, ports: PortRange::single(port.port)? })
    };
    ports.iter().map(one).collect()
}

fn protocol(number: u8) -> Result<Protocol, Refusal> {
    Protocol::from_number(number).ok_or_else(|| Refusal::new(format!("protocol {number} has no ports")))
}

fn list<T: DeserializeOwned>(options: &Options, key: &str) -> Result<Vec<T>, Refusal> {
    match options.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => serde_json::from_value(value.clone()).map_err(|error| Refusal::new(format!("`{key}`: {error}"))),
    }
}

/// Whether `network` is the one that Docker asks for once more: a call that got no answer is repeated.
pub fn is_same(network: &Network, asked: &NetworkRequest) -> bool {
    network.driver == asked.driver
        && network.internal == asked.internal
        && network.raw_options == asked.options
        && network.subnets.iter().map(|subnet| subnet.net).eq(asked.subnets.iter().copied())
}

/// The name of the interface on the host that Docker is to move: `pd` and 13 digits of the endpoint's id.
///
/// # Errors
/// Never for an id.
pub fn source_name(endpoint: Id) -> Result<IfName, Invalid> {
    format!("pd{}", &endpoint.to_string()[..13]).parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Docker 20.10 asks for `docker network create -d portolan --internal -o driver=bridge -o … --aux-address`.
    const CREATE: &str = r#"{"NetworkID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "Options":{"com.docker.network.enable_ipv6":true,"com.docker.network.internal":true,
        "com.docker.network.generic":{"driver":"bridge","com.docker.network.driver.mtu":"1400"}},
        "IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"172.20.0.0/16","Gateway":"172.20.0.1/16",
        "AuxAddresses":{"printer":"172.20.0.5/16"}}],
        "IPv6Data":[{"AddressSpace":"LocalDefault","Pool":"fd60::/64","Gateway":"fd60::1/64"}]}"#;

    #[test]
    fn a_network() {
        let request = network_request(&serde_json::from_str(CREATE).unwrap()).unwrap();
        assert_eq!(
            (request.driver, request.ipam, request.internal, request.ipv6),
            (Driver::Bridge, Ipam::Local, true, true)
        );
        assert_eq!(request.subnets, ["172.20.0.0/16".parse::<IpNet>().unwrap(), "fd60::/64".parse().unwrap()]);
        assert_eq!(request.gateways, ["172.20.0.1".parse::<IpAddr>().unwrap(), "fd60::1".parse().unwrap()]);
        assert_eq!(request.aux["printer"].to_string(), "172.20.0.5");
        assert_eq!(request.options, BTreeMap::from([("com.docker.network.driver.mtu".to_owned(), "1400".to_owned())]));
        assert_eq!(request.name.as_str(), "docker-0123456789ab");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (text, why) in [
            (CREATE.replace("0123456789abcdef0123", "xyz"), "hexadecimal"),
            (CREATE.replace("172.20.0.0/16", "172.20.0.0/77"), "is no subnet"),
            (CREATE.replace("172.20.0.1/16", "gate"), "is no IP address"),
            (CREATE.replace(r#""driver":"bridge""#, r#""driver":"carrier-pigeon""#), "carrier-pigeon"),
            (CREATE.replace(r#""1400""#, "[1400]"), "is no text"),
            (CREATE.replace("com.docker.network.driver.mtu", "metric"), "none with a priority"),
        ] {
            let refusal = network_request(&serde_json::from_str(&text).unwrap()).unwrap_err();
            assert!(refusal.to_string().contains(why), "{refusal}");
        }
    }

    #[test]
    fn no_pool_is_no_address() {
        let null = r#"{"NetworkID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","Options":null,
            "IPv4Data":[{"AddressSpace":"null","Pool":"0.0.0.0/0"}],"IPv6Data":null}"#;
        let request = network_request(&serde_json::from_str(null).unwrap()).unwrap();
        assert_eq!((request.ipam, request.subnets), (Ipam::None, vec![]));
    }

    #[test]
    fn a_subnet_without_a_bridge_is_behind_its_gateway() {
        let routes = |address: &str, gateway: &str| {
            let routes = behind(address.parse().unwrap(), gateway.parse().unwrap());
            let text = |route: &StaticRoute| format!("{} {} {}", route.route_type, route.destination, route.next_hop);
            routes.iter().map(|route| text(route).trim_end().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            routes("10.1.0.77/24", "10.1.0.1"),
            ["1 10.1.0.1/32", "0 10.1.0.0/25 10.1.0.1", "0 10.1.0.128/25 10.1.0.1"]
        );
        assert_eq!(
            routes("fd01::9/64", "fd01::1"),
            ["1 fd01::1/128", "0 fd01::/65 fd01::1", "0 fd01::8000:0:0:0/65 fd01::1"]
        );
        assert_eq!(routes("10.1.0.1/31", "10.1.0.0"), ["1 10.1.0.0/32"]);
    }

    #[test]
    fn a_pool_of_ours_is_known_by_its_address_space() {
        let request = |text: &str| network_request(&serde_json::from_str(text).unwrap()).unwrap();
        assert!(!request(CREATE).pooled);
        assert!(request(&CREATE.replace("LocalDefault", ADDRESS_SPACE)).pooled);
    }

    #[test]
    fn port_bindings() {
        let options: Options = serde_json::from_str(
            r#"{"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080},
            {"Proto":17,"Port":53,"HostIP":"127.0.0.1","HostPort":5300,"HostPortEnd":5310},{"Proto":132,"Port":9,"HostPort":0}]}"#,
        )
        .unwrap();
        let ports = ports(&options).unwrap();
        assert_eq!(ports[0], "8080:80".parse().unwrap());
        assert_eq!((ports[1].protocol, ports[1].host_ip), (Protocol::Udp, Some("127.0.0.1".parse().unwrap())));
        assert_eq!(ports[1].host, HostPorts::FirstFree(PortRange::new(5300, 5310).unwrap()));
        assert_eq!((ports[2].protocol, ports[2].host), (Protocol::Sctp, HostPorts::Ephemeral));
        assert!(super::ports(&serde_json::from_str(r#"{"com.docker.network.portmap":"80"}"#).unwrap()).is_err());
    }
}
