//! From a call and its configuration to what the engine is asked for, and from what it did to the result.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_engine::{AttachRequest, ContainerInfo, EndpointRequest, NetworkRequest};
use portolan_model::{
    Bandwidth, Burst, Container, DnsConfig, Driver, Endpoint, Family, HostPorts, Id, IfName, Ipam, Limit,
    LinkAttributes, Mac, Name, Network, OF_CNI, PortRange, Protocol, PublishSpec, Rate, RouteAction, StaticRoute,
    Sysctl, SysctlKey, Tuning,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::call::Call;
use crate::config::{Config, Ipam as IpamConfig, PortMapping};
use crate::error::{Code, Error};
use crate::result::{Dns, Interface, Ip, Route, Success};
use crate::space::Space;

/// What Kubernetes says in `CNI_ARGS`, and the labels that it gives its own containers.
const POD_LABELS: [(&str, &str); 3] = [
    ("K8S_POD_NAMESPACE", "io.kubernetes.pod.namespace"),
    ("K8S_POD_NAME", "io.kubernetes.pod.name"),
    ("K8S_POD_UID", "io.kubernetes.pod.uid"),
];

/// Our id of a container that the runtime calls `name`: the same if it has our form.
pub fn container_id(name: &str) -> Id {
    name.parse().unwrap_or_else(|_| hashed("cni container", name))
}

fn hashed(kind: &str, text: &str) -> Id {
    Id::from_bytes(Sha256::new().chain_update(kind).chain_update([0]).chain_update(text).finalize().into())
}

/// The runtime's name for a container that it attached by CNI; none for one that came another way.
pub fn is_of_cni(container: &Container) -> Option<&str> {
    container.labels.get(OF_CNI).map(String::as_str)
}

/// The network that a call is about, as the rows have it, whatever became of its configuration since.
#[derive(Debug, Clone)]
pub struct Target {
    /// Of a network that a configuration describes.
    id: Id,
    /// The name or id of one that it names.
    name: String,
}

impl Target {
    /// The network that `config` is about.
    pub fn of(config: &Config) -> Self {
        Self { id: described_id(config), name: config.network.clone().unwrap_or_else(|| config.name.clone()) }
    }

    /// Whether it is this one.
    pub fn is(&self, network: &Network) -> bool {
        network.id == self.id || network.name.as_str() == self.name || network.id.to_string() == self.name
    }

    /// The endpoint that a call is about, among those of its container.
    pub fn endpoint<'a>(&self, call: &Call, info: &'a ContainerInfo) -> Option<&'a (Endpoint, Network)> {
        info.endpoints.iter().find(|(endpoint, joined)| endpoint.ifname.as_str() == call.ifname && self.is(joined))
    }
}

fn described_id(config: &Config) -> Id {
    hashed("cni network", &config.name)
}

/// What a configuration asks for, as far as it does not depend on the container.
#[derive(Debug, Clone)]
pub enum Plan {
    /// A network of the store, by name or id.
    Named(String),
    /// A network that the configuration describes.
    Described(Box<NetworkRequest>),
}

impl Plan {
    /// The network that a configuration means. `delegated` is what another IPAM plugin gave; without it, one whose
    /// addresses come from another plugin has no subnets, which does for all but ADD.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] and [`Code::Unsupported`] for what cannot be.
    pub fn of(config: &Config, delegated: Option<&Success>) -> Result<Self, Error> {
        if let Some(name) = &config.network {
            let described: [(&str, bool); 6] = [
                ("driver", config.driver.is_some()),
                ("bridge", config.bridge.is_some()),
                ("parent", config.parent.is_some()),
                ("mode", config.mode.is_some()),
                ("options", !config.options.is_empty()),
                ("ipam", config.ipam.is_some()),
            ];
            if let Some((key, _)) = described.iter().find(|(_, is_there)| *is_there) {
                return Err(invalid(format!("`network` names network `{name}`, and `{key}` would describe another"))
                    .details("leave one of them out; `portolan network create` describes networks that are named"));
            }
            return Ok(Self::Named(name.clone()));
        }
        // A name alone is a network that is known.
        if config.driver.is_none() && config.ipam.is_none() && config.bridge.is_none() && config.parent.is_none() {
            return Ok(Self::Named(config.name.clone()));
        }
        Ok(Self::Described(Box::new(describe(config, delegated)?)))
    }
}

impl Config {
    /// The IPAM plugin that has to be asked, if addresses are another's.
    pub fn ipam_plugin(&self) -> Option<&str> {
        let kind = self.ipam.as_ref()?.kind.as_str();
        (!matches!(kind, "" | "portolan" | "host-local" | "static" | "dhcp")).then_some(kind)
    }
}

pub(crate) fn invalid(msg: impl Into<String>) -> Error {
    Error::new(Code::InvalidConfig, msg)
}

fn driver(config: &Config) -> Result<Driver, Error> {
    match config.driver.as_deref() {
        None if config.parent.is_some() => Ok(Driver::Macvlan),
        None => Ok(Driver::Bridge),
        Some(text) => {
            let driver: Driver = text.parse()?;
            if !driver.holds_endpoints() {
                return Err(invalid(format!("driver `{text}` holds no containers"))
                    .details("choose bridge, macvlan, ipvlan or ptp"));
            }
            Ok(driver)
        }
    }
}

/// What the engine is told of a network.
fn describe(config: &Config, delegated: Option<&Success>) -> Result<NetworkRequest, Error> {
    let driver = driver(config)?;
    let name: Name = config.name.parse()?;
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    let mut put = |key: &str, value: Option<String>| options.extend(value.map(|value| (key.to_owned(), value)));
    put("bridge", config.bridge.clone());
    put("parent", config.parent.clone());
    put("mode", config.mode.clone());
    put("mtu", config.mtu.filter(|mtu| *mtu > 0).map(|mtu| mtu.to_string()));
    put("masquerade", config.masquerade.map(|masquerade| masquerade.to_string()));
    options.extend(config.options.iter().map(|(key, value)| (key.clone(), value.to_string())));
    let none = IpamConfig::default();
    let ipam_config = config.ipam.as_ref().unwrap_or(&none);
    let ipam = match (ipam_config.kind.as_str(), &config.ipam) {
        ("dhcp", _) => Ipam::Dhcp,
        (_, None) => Ipam::None,
        _ => Ipam::Local,
    };
    let mut space = Space::default();
    match delegated {
        Some(result) => space.take_addresses(result.ips.iter().map(|ip| (ip.address, ip.gateway)))?,
        None if config.ipam_plugin().is_some() => {}
        None if ipam_config.kind == "static" => {
            space.take_addresses(ipam_config.addresses.iter().map(|one| (one.address, one.gateway)))?;
        }
        None if ipam == Ipam::Local => space.take_ranges(config, ipam_config)?,
        None => {}
    }
    let given = delegated.map(|result| {
        let routes = result.routes.iter();
        routes.map(|route| (route.dst, route.gw, route.priority)).collect::<Vec<_>>()
    });
    let wanted =
        given.unwrap_or_else(|| ipam_config.routes.iter().map(|route| (route.dst, route.gw, route.priority)).collect());
    let mut routes = Vec::new();
    for (dst, gw, priority) in wanted {
        let gateways = space.gateways_of(Family::of(dst.addr()));
        if dst.prefix_len() == 0 {
            if gateways.iter().all(|gateway| gw.is_none_or(|gw| gw == *gateway)) && !gateways.is_empty() {
                continue;
            }
            options.insert("no_default_route".to_owned(), "true".to_owned());
        }
        let routers = gw.map_or(gateways, |gw| vec![gw]);
        if routers.is_empty() {
            return Err(invalid(format!("route {dst} has no gateway")));
        }
        // Which of them is a container's depends on its address.
        let to = |router| StaticRoute { destination: dst.trunc(), action: RouteAction::Via(router), metric: priority };
        routes.extend(routers.into_iter().map(to));
    }
    let has = |family| match ipam {
        Ipam::Local => space.nets().any(|net| Family::of(net.addr()) == family),
        Ipam::Dhcp => family == Family::V4,
        Ipam::None => true,
    };
    Ok(NetworkRequest {
        id: Some(described_id(config)),
        exact: true,
        driver,
        ipv4: has(Family::V4),
        ipv6: has(Family::V6),
        ipam,
        subnets: space.subnets,
        gateways: space.gateways,
        sets: space.sets,
        internal: config.internal,
        options,
        labels: config.labels.clone(),
        routes,
        names: driver == Driver::Bridge || driver.is_routed(),
        ..NetworkRequest::new(name)
    })
}

/// What the engine is asked for by an ADD.
///
/// # Errors
/// Whatever is malformed; nothing has changed then.
pub fn plan(call: &Call, config: &Config, network: &Plan, delegated: Option<&Success>) -> Result<AttachRequest, Error> {
    let ipam = config.ipam.as_ref();
    let is_static = ipam.is_some_and(|ipam| ipam.kind == "static");
    let mut addresses = match delegated {
        Some(result) => result.ips.iter().map(|ip| ip.address.addr()).collect(),
        None => asked_addresses(call, config)?,
    };
    if is_static && addresses.is_empty() {
        addresses = ipam.into_iter().flat_map(|ipam| &ipam.addresses).map(|one| one.address.addr()).collect();
    }
    let mut labels = BTreeMap::from([(OF_CNI.to_owned(), call.container.clone())]);
    labels.extend(POD_LABELS.iter().filter_map(|(key, label)| Some((label.to_string(), call.arg(key)?.to_owned()))));
    let mut aliases: Vec<Name> = Vec::new();
    for alias in config.runtime.aliases.get(&config.name).into_iter().flatten() {
        aliases.push(alias.parse()?);
    }
    // Pods of one name are told apart by their namespace.
    if let (Some(pod), Some(namespace)) = (call.arg("K8S_POD_NAME"), call.arg("K8S_POD_NAMESPACE")) {
        aliases.extend(format!("{pod}.{namespace}").parse::<Name>());
    }
    let ifname: IfName = call
        .ifname
        .parse()
        .map_err(|error: portolan_model::Invalid| Error::new(Code::Environment, error.to_string()))?;
    let endpoint = EndpointRequest {
        addresses,
        exact: delegated.is_some() || is_static,
        mac: mac(call, config)?,
        ifname: Some(ifname),
        aliases,
        bandwidth: bandwidth(config)?,
        tuning: tuning(call, config)?,
        ..match network {
            Plan::Named(name) => EndpointRequest::new(name),
            Plan::Described(request) => EndpointRequest {
                transient: Some((**request).clone()),
                ..EndpointRequest::new(request.name.to_string())
            },
        }
    };
    let dns = merged_dns(config);
    Ok(AttachRequest {
        id: Some(container_id(&call.container)),
        name: call.container.parse().ok(),
        endpoints: vec![endpoint],
        publish: config.ports()?.iter().map(published).collect::<Result<_, _>>()?,
        dns: DnsConfig {
            servers: dns.nameservers.iter().filter_map(|server| server.parse().ok()).collect(),
            search: dns.search,
            options: dns.options,
        },
        labels,
        ..AttachRequest::namespace(&call.netns)
    })
}

/// Addresses that the runtime asks for, by whichever of the three ways there are.
fn asked_addresses(call: &Call, config: &Config) -> Result<Vec<IpAddr>, Error> {
    let mut texts: Vec<String> = config.runtime.ips.clone();
    match config.cni_arg("ips") {
        Some(Value::Array(ips)) => texts.extend(ips.iter().filter_map(|ip| Some(ip.as_str()?.to_owned()))),
        Some(Value::String(ips)) => texts.push(ips.clone()),
        _ => {}
    }
    texts.extend(call.arg("IP").map(str::to_owned));
    let mut found: Vec<IpAddr> = Vec::new();
    for text in texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty()) {
        let address = text.split_once('/').map_or(text, |(address, _)| address);
        let address = address.parse().map_err(|_| invalid(format!("{text:?} is no IP address")))?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

/// The MAC that is asked for: by the runtime, else in `args.cni`, else in `CNI_ARGS`, else by the configuration itself.
fn mac(call: &Call, config: &Config) -> Result<Option<Mac>, Error> {
    let arg = config.cni_arg("mac").and_then(Value::as_str);
    let wanted = [Some(config.runtime.mac.as_str()), arg, call.arg("MAC"), Some(config.mac.as_str())];
    let Some(text) = wanted.into_iter().flatten().find(|text| !text.is_empty()) else { return Ok(None) };
    Ok(Some(text.replace('-', ":").to_ascii_lowercase().parse()?))
}

/// What the reference plugin `tuning` sets.
///
/// # Errors
/// [`Code::InvalidConfig`] for sysctls that do not belong to a network namespace.
pub fn tuning(call: &Call, config: &Config) -> Result<Tuning, Error> {
    let sysctl = |(key, value): (&String, &String)| {
        let ifname = Some(call.ifname.as_str()).filter(|name| !name.is_empty());
        Ok(Sysctl { key: SysctlKey::parse(key, ifname)?, value: value.clone(), before: None })
    };
    let sysctls = config.sysctl.iter().map(sysctl).collect::<Result<Vec<_>, Error>>()?;
    // Dots or slashes, it is the same one.
    for (position, one) in sysctls.iter().enumerate() {
        if sysctls[..position].iter().any(|other| other.key == one.key) {
            return Err(invalid(format!("sysctl `{}` is given twice", one.key)));
        }
    }
    Ok(Tuning {
        sysctls,
        attributes: LinkAttributes {
            promiscuous: config.promisc.then_some(true),
            all_multicast: config.allmulti,
            tx_queue_len: config.tx_queue_len,
        },
        no_default_route: false,
    })
}

/// The limits that are asked for.
fn bandwidth(config: &Config) -> Result<Bandwidth, Error> {
    let Some(wanted) = config.bandwidth() else { return Ok(Bandwidth::default()) };
    for (key, subnets) in [("shapedSubnets", &wanted.shaped), ("unshapedSubnets", &wanted.unshaped)] {
        if !subnets.is_empty() {
            return Err(invalid(format!("`{key}` is not supported: a limit is for everything that passes"))
                .details("leave it out"));
        }
    }
    Ok(Bandwidth {
        into: limit("ingress", wanted.ingress_rate, wanted.ingress_burst)?,
        out: limit("egress", wanted.egress_rate, wanted.egress_burst)?,
    })
}

/// One direction's, in the reference plugin's words.
fn limit(direction: &str, rate: Option<u64>, burst: Option<u64>) -> Result<Option<Limit>, Error> {
    /// What containerd and CRI-O say when a pod says nothing of bursts (`math.MaxUint32`): 43 seconds at 100 Mbit/s, and
    /// the limit would not be felt.
    const UNSAID: u64 = u32::MAX as u64;
    let refuse = |msg: &str| Err(invalid(msg).details(direction.to_owned()));
    let burst = match (rate.unwrap_or(0), burst.unwrap_or(0)) {
        (0, 0) => return Ok(None),
        (_, 0) => return refuse("if rate is set, burst must also be set"),
        (0, _) => return refuse("if burst is set, rate must also be set"),
        (_, burst) if burst / 8 >= UNSAID => return refuse("burst cannot be more than 4GB"),
        (_, burst) => Some(burst).filter(|burst| *burst < UNSAID),
    };
    // Less than a byte is one: the reference plugin rounds down to none and fails.
    let rate = Rate::new(rate.unwrap_or(0).max(8))?;
    Ok(Some(Limit { rate, burst: burst.map(|burst| Burst::new(burst.max(8))).transpose()? }))
}

fn published(mapping: &PortMapping) -> Result<PublishSpec, Error> {
    let port = |what: &str, number: i64| {
        let port = u16::try_from(number).ok().and_then(|number| PortRange::single(number).ok());
        port.ok_or_else(|| invalid(format!("Invalid {what} port number: {number}")))
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| invalid(format!("Invalid host IP {text:?}")))?),
    };
    let protocol: Protocol = if mapping.protocol.is_empty() { Protocol::Tcp } else { mapping.protocol.parse()? };
    Ok(PublishSpec {
        protocol,
        host_ip,
        host: HostPorts::Exact(port("host", mapping.host)?),
        container: port("container", mapping.container)?,
    })
}

/// What is said about names: by the runtime before the configuration, and before the IPAM's.
fn merged_dns(config: &Config) -> Dns {
    let ipam = config.ipam.as_ref().and_then(|ipam| ipam.dns.as_ref());
    let mut dns = config.dns.as_ref().filter(|dns| !dns.is_empty()).or(ipam).cloned().unwrap_or_default();
    if let Some(runtime) = &config.runtime.dns {
        let given = |list: &Vec<String>, said: Vec<String>| if list.is_empty() { said } else { list.clone() };
        dns.nameservers = given(&runtime.servers, dns.nameservers);
        dns.search = given(&runtime.searches, dns.search);
        dns.options = given(&runtime.options, dns.options);
    }
    dns
}

/// What an ADD answers. `mac_of` tells the MAC of an interface of the host.
pub fn result(
    call: &Call,
    config: &Config,
    endpoint: &Endpoint,
    network: &Network,
    mac_of: impl Fn(&str) -> Option<Mac>,
) -> Success {
    let mtu = Some(network.mtu.bytes());
    let text = |mac: Option<Mac>| mac.map(|mac| mac.to_string()).unwrap_or_default();
    let on_host = |name: &IfName| Interface {
        name: name.to_string(),
        mac: text(mac_of(name.as_str())),
        mtu,
        ..Interface::default()
    };
    let mut interfaces = Vec::new();
    if network.driver == Driver::Bridge || network.is_l2() {
        interfaces.push(on_host(&network.bridge));
    }
    if network.driver == Driver::Bridge || network.driver.is_routed() {
        interfaces.push(on_host(&endpoint.host_end));
    }
    let mac = if network.shares_parents_mac() { mac_of(network.bridge.as_str()) } else { Some(endpoint.mac) };
    interfaces.push(Interface {
        name: endpoint.ifname.to_string(),
        mac: text(mac),
        mtu,
        sandbox: call.netns.to_string_lossy().into_owned(),
        ..Interface::default()
    });
    let inside = interfaces.len() - 1;
    let gateway = |address: IpAddr| match endpoint.leases().find(|lease| lease.address.addr() == address) {
        Some(lease) => lease.gateway,
        None => network.gateway_for(address),
    };
    let ips: Vec<Ip> = endpoint
        .addresses
        .iter()
        .map(|one| Ip { interface: Some(inside), address: one.address, gateway: gateway(one.address.addr()) })
        .collect();
    let mut routes: Vec<Route> = Vec::new();
    if network.options.default_route && !network.internal {
        for ip in &ips {
            let dst: IpNet = match ip.address {
                IpNet::V4(_) => "0.0.0.0/0".parse().expect("a prefix"),
                IpNet::V6(_) => "::/0".parse().expect("a prefix"),
            };
            if ip.gateway.is_some() && !routes.iter().any(|route| route.dst == dst) {
                routes.push(Route { priority: network.options.metric, ..Route::new(dst, ip.gateway) });
            }
        }
    }
    for route in network.routes_for(&ips.iter().map(|ip| ip.address.addr()).collect::<Vec<_>>()) {
        if let RouteAction::Via(gateway) = route.action {
            routes.push(Route { priority: route.metric, ..Route::new(route.destination, Some(gateway)) });
        }
    }
    let mut dns = merged_dns(config);
    if network.answers_names() && dns.nameservers.is_empty() {
        for gateway in ips.iter().filter_map(|ip| ip.gateway).map(|gateway| gateway.to_string()) {
            if !dns.nameservers.contains(&gateway) {
                dns.nameservers.push(gateway);
            }
        }
    }
    Success { interfaces, ips, routes, dns }
}

/// How what an ADD answered differs from what there is; nothing if it does not.
pub fn differs(call: &Call, previous: &Success, endpoint: &Endpoint) -> Option<String> {
    let is_inside = |index: Option<usize>| {
        index.is_none_or(|index| {
            previous
                .interfaces
                .get(index)
                .is_some_and(|interface| interface.name == call.ifname && !interface.sandbox.is_empty())
        })
    };
    for ip in previous.ips.iter().filter(|ip| is_inside(ip.interface)) {
        if !endpoint.addresses.iter().any(|one| one.address == ip.address) {
            return Some(format!("interface `{}` has no address {}", call.ifname, ip.address));
        }
    }
    let inside = previous.interfaces.iter().find(|one| one.name == call.ifname && !one.sandbox.is_empty());
    match inside {
        Some(inside) if !inside.mac.is_empty() && inside.mac.to_ascii_lowercase() != endpoint.mac.to_string() => {
            Some(format!("interface `{}` has MAC {}, not {}", call.ifname, endpoint.mac, inside.mac))
        }
        _ => None,
    }
}
