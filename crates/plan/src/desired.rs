//! What the kernel should hold for a network, for a container, and for there being any network at all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use portolan_model::{
    Container, ContainerKind, Driver, Endpoint, Family, GatewayMode, Id, IfName, Limit, Mac, Mtu, Network, Publication,
    Sandbox, StaticRoute, Sysctl,
};

use crate::firewall::Firewall;
use crate::object::{
    Bridge, BridgePort, Child, ChildKind, Data, DefaultRoute, Direction, Element, Field, HostEnd, Interface, Neighbour,
    Object, Objects, Port, Route, Routers, Ruleset, SandboxSetting, Setting, Shaper, Vlan,
};
use crate::proxy::{Proxied, proxied};
use crate::set::Set;

mod elements;
mod overlay;
mod routed;

pub(crate) use overlay::SEAL_OWNER;
pub use overlay::{
    end_objects, goes_direct, is_measured, l2_bridge_name, peer_objects, remote_objects, seal_name, tunnel_objects,
    vxlan_name,
};

/// The port of domain name servers.
const NAMES: u16 = 53;
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A container with all that decides its objects.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// The container.
    pub container: Container,
    /// Its endpoints with their networks, in the order they were made.
    pub endpoints: Vec<(Endpoint, Network)>,
    /// Its published ports, in the order they were asked for.
    pub publications: Vec<Publication>,
}

/// FNV-1a, 64 bits: names and MACs need to be spread and the same everywhere, not secret.
fn fnv<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    // The low bits of a short input's hash are poorly mixed (murmur3's finaliser).
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// The bytes of an address in network order.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The MAC of whoever has `address` on `network`, unless a person chose another: an address that moves to a new
/// container keeps its MAC, so no neighbour holds a stale one.
pub fn generated_mac(network: Id, address: IpAddr) -> Mac {
    let hash = fnv([&network.as_bytes()[..], &octets(address)]).to_be_bytes();
    Mac::local([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5]])
}

/// The name of a veth's end on the host: `pv` and 13 hexadecimal digits out of (network, container, interface).
/// `salt` is 0 unless that name is taken.
pub fn host_end_name(network: Id, container: Id, ifname: &IfName, salt: u8) -> IfName {
    let hash = fnv([&network.as_bytes()[..], container.as_bytes(), ifname.as_str().as_bytes(), &[salt]]);
    format!("pv{:013x}", hash >> 12).parse().expect("fifteen letters and digits")
}

/// Whether a name has the form of [`host_end_name`]: nobody else's has it.
pub fn is_host_end_name(name: &IfName) -> bool {
    let digits = name.as_str().strip_prefix("pv").unwrap_or_default();
    digits.len() == 13 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The alias of a network's bridge.
pub fn alias_of_network(root: &str, network: Id) -> String {
    format!("portolan:{root}:network:{network}")
}

/// The alias of an endpoint's host end.
pub fn alias_of_endpoint(root: &str, endpoint: Id) -> String {
    format!("portolan:{root}:endpoint:{endpoint}")
}

/// The name of the interface that what comes out at `host_end` is led through: `pb` and 13 hexadecimal digits.
pub fn shaper_name(host_end: &IfName) -> IfName {
    let hash = fnv([host_end.as_str().as_bytes(), b"bandwidth"]);
    format!("pb{:013x}", hash >> 12).parse().expect("fifteen letters and digits")
}

/// The alias of the interface that what comes out at `host_end` is led through.
pub fn alias_of_shaper(root: &str, host_end: &IfName) -> String {
    format!("portolan:{root}:bandwidth:{host_end}")
}

/// What the host holds as soon as there is any network: our rules, the sysctls, and the interfaces between
/// which it did not forward before.
pub fn base_objects(firewall: &Firewall, settings: &[Setting], closed: &[(Family, IfName)]) -> Objects {
    let mut objects = Objects::new();
    objects.extend(settings.iter().cloned().map(Object::Setting));
    objects.insert(Object::Ruleset(Ruleset { firewall: firewall.clone() }));
    for (family, interface) in closed {
        objects.insert(member(Set::Closed, vec![Field::NfProto(*family), Field::IfName(interface.clone())], "host"));
    }
    objects
}

fn element(set: Set, key: Vec<Field>, data: Data, owner: &str) -> Object {
    Object::Element(Element { set, key, data, owner: owner.to_owned() })
}

fn member(set: Set, key: Vec<Field>, owner: &str) -> Object {
    element(set, key, Data::Member, owner)
}

/// What a bridge network needs: its bridge, and its elements in the ruleset. Of a bridge that is not ours, nothing. What a
/// network without a bridge needs before anybody is on it.
///
/// A macvlan or ipvlan network needs its VLAN interface, if it has one; networks of other drivers need nothing.
pub fn network_objects(root: &str, network: &Network) -> Objects {
    let mut objects = Objects::new();
    if let Some(vlan) = &network.subinterface {
        objects.insert(Object::Vlan(Vlan {
            name: network.bridge.clone(),
            parent: vlan.parent.clone(),
            id: vlan.vlan,
            alias: alias_of_network(root, network.id),
        }));
    }
    if !network.is_ruled() {
        return objects;
    }
    let owner = format!("network {}", network.name);
    elements::of_gateways(network, &owner, &mut objects);
    if network.is_routed() {
        routed::network_objects(network, &owner, &mut objects);
        overlay::network_objects(root, network, &owner, &mut objects);
        return objects;
    }
    let bridge = || Field::IfName(network.bridge.clone());
    let on_bridge = elements::gateways(network);
    objects.insert(Object::Bridge(Bridge {
        name: network.bridge.clone(),
        mac: gateway_mac(network.id),
        mtu: network.mtu,
        addresses: on_bridge.iter().copied().collect(),
        alias: alias_of_network(root, network.id),
        ipv6: on_bridge.iter().any(|net| matches!(net, IpNet::V6(_))),
        route_localnet: !network.internal && network.has(Family::V4),
        strict: true,
        vlan: network.options.vlan,
        vrf: network.options.vrf.clone(),
    }));
    objects.insert(element(Set::Within, vec![bridge(), bridge()], elements::within(network), &owner));
    objects.insert(member(Set::Hairpin, vec![bridge(), bridge()], &owner));
    elements::of_device(network, &network.bridge, &owner, &mut objects);
    overlay::network_objects(root, network, &owner, &mut objects);
    objects
}

/// The MAC of a network's bridge, or of its host ends where it has none: the same whenever they are made again.
fn gateway_mac(network: Id) -> Mac {
    let hash = fnv([&network.as_bytes()[..], b"bridge"]).to_be_bytes();
    Mac::local([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5]])
}

/// The ways out of a container in `family`, best first: endpoint, network and gateway.
///
/// The kernel obeys the priority of routes before anything that we decide.
fn ways_out(view: &ContainerView, family: Family) -> impl Iterator<Item = (&Endpoint, &Network, IpAddr)> {
    let mut ways: Vec<_> = view
        .endpoints
        .iter()
        .filter_map(|(endpoint, network)| {
            let gateway = match endpoint.leases.of(family) {
                Some(lease) => lease.gateway.filter(|_| !network.internal)?,
                None => {
                    let address = endpoint.address(family)?;
                    network.gateway_for(address).filter(|_| network.routes_out(family))?
                }
            };
            Some((endpoint, network, gateway))
        })
        .collect();
    ways.sort_by_key(|(endpoint, network, _)| {
        let both = Family::ALL.into_iter().all(|family| network.routes_out(family) || network.leases(family));
        // What the kernel takes for none (`IP6_RT_PRIO_USER`, include/uapi/linux/ipv6_route.h).
        let usual = if family == Family::V6 { 1024 } else { 0 };
        (
            network.options.metric.unwrap_or(usual),
            std::cmp::Reverse(endpoint.gateway_priority),
            !both,
            network.name.clone(),
        )
    });
    ways.into_iter()
}

/// Where published ports of a container lead in `family`: the best of its networks with rules of ours and a way out.
pub fn published_endpoint(view: &ContainerView, family: Family) -> Option<(&Endpoint, &Network)> {
    ways_out(view, family).find(|(_, network, _)| network.is_ruled()).map(|(endpoint, network, _)| (endpoint, network))
}

/// Which endpoint of a container gives it its default route in `family`, and the gateway.
///
/// A pure function of the rows: the lowest metric wins, then the highest gateway priority; then, as Docker breaks ties, a
/// network that speaks both families before one that speaks one, then the network's name in byte order.
pub fn default_route(view: &ContainerView, family: Family) -> Option<(&Endpoint, &Network, IpAddr)> {
    ways_out(view, family).find(|(endpoint, network, _)| gives_default_route(endpoint, network))
}

fn gives_default_route(endpoint: &Endpoint, network: &Network) -> bool {
    network.options.default_route && !endpoint.tuning.no_default_route
}

/// What DHCP servers say about names to a container: the name servers and the domains, those of its first leases first.
pub fn leased_names(view: &ContainerView) -> (Vec<IpAddr>, Vec<String>) {
    let leases = || view.endpoints.iter().flat_map(|(endpoint, _)| endpoint.leases());
    let (mut servers, mut domains) = (Vec::new(), Vec::new());
    for server in leases().flat_map(|lease| &lease.dns) {
        if !servers.contains(server) {
            servers.push(*server);
        }
    }
    for domain in leases().flat_map(|lease| &lease.domains) {
        if !domains.contains(domain) {
            domains.push(domain.clone());
        }
    }
    (servers, domains)
}

/// Whom a container asks for names: in each family, IPv4 first, the best way out whose gateway is ours to answer on; of a
/// container without one, those of its first network that answers. The gateways of other networks are strangers.
///
/// Whichever it asks, it is told the names of all networks it is on.
pub fn name_servers(view: &ContainerView) -> Vec<IpAddr> {
    let out: Vec<IpAddr> = Family::ALL
        .into_iter()
        .filter_map(|family| {
            ways_out(view, family).find_map(|(_, network, gateway)| network.name_server(family, Some(gateway)))
        })
        .collect();
    if !out.is_empty() {
        return out;
    }
    let mut on = view.endpoints.iter().filter(|(_, network)| network.answers_names());
    let Some((endpoint, network)) = on.next() else { return Vec::new() };
    let of = |family| network.name_server(family, network.gateway_for(endpoint.address(family)?));
    Family::ALL.into_iter().filter_map(of).collect()
}

/// The default routes of a container's sandbox: in each family the best one, and one more for every other priority that
/// networks ask for.
pub fn default_routes(view: &ContainerView) -> Vec<DefaultRoute> {
    let Some(sandbox) = &view.container.sandbox else { return Vec::new() };
    let mut routes: Vec<DefaultRoute> = Vec::new();
    for family in Family::ALL {
        for (endpoint, network, gateway) in ways_out(view, family) {
            let metric = network.options.metric;
            let is_taken = |other: &DefaultRoute| Family::of(other.gateway) == family && other.metric == metric;
            if gives_default_route(endpoint, network) && !routes.iter().any(is_taken) {
                let interface = endpoint.ifname.clone();
                routes.push(DefaultRoute { sandbox: sandbox.clone(), gateway, interface, metric });
            }
        }
    }
    routes
}

/// What a container needs: for each endpoint a port, neighbours, guard elements and an interface; then routes, and
/// the elements of its published ports, which lead to the first network that is a way out and has rules of ours.
///
/// Nothing for a container whose namespace is not there.
pub fn container_objects(root: &str, view: &ContainerView) -> Objects {
    let mut objects = Objects::new();
    let Some(sandbox) = &view.container.sandbox else { return objects };
    for (endpoint, network) in &view.endpoints {
        endpoint_objects(root, view, sandbox, endpoint, network, &mut objects);
    }
    objects.extend(default_routes(view).into_iter().map(Object::DefaultRoute));
    let of_endpoints = view.endpoints.iter().flat_map(|(endpoint, _)| &endpoint.tuning.sysctls);
    objects.extend(view.container.settings.iter().chain(of_endpoints).cloned().map(|Sysctl { key, value, before }| {
        Object::SandboxSetting(SandboxSetting { sandbox: sandbox.clone(), key, value, before })
    }));
    if view.container.kind == ContainerKind::Handed {
        objects.retain(|object| object.sandbox_path().is_none() || matches!(object, Object::Child(_)));
    }
    // No route leads from ::1 to a container: the proxy passes it on.
    for publication in view.publications.iter().filter(|publication| publication.host_ip != Some(LOOPBACK6)) {
        for family in Family::ALL.into_iter().filter(|family| publication.covers(*family)) {
            if let Some((endpoint, network)) = published_endpoint(view, family) {
                let address = endpoint.address(family).expect("a way out has an address of its family");
                let owner = format!("container {} {publication}", view.container.name);
                publication_objects(publication, family, address, network.mode(family), &owner, &mut objects);
                if matches!(network.mode(family), GatewayMode::Nat | GatewayMode::NatUnprotected) {
                    let owner = format!("container {}", view.container.name);
                    let itself = vec![Field::Address(address), Field::Address(address)];
                    objects.insert(member(Set::Own(family), itself, &owner));
                }
            }
        }
    }
    // Where the proxy listens on every address, rules keep those away whom translation would not serve.
    for Proxied { protocol, listen, owner, .. } in proxied(view) {
        if listen.ip().is_unspecified() {
            let family = Field::NfProto(Family::of(listen.ip()));
            let port = Field::Ports(listen.port(), listen.port());
            objects.insert(member(Set::Proxied, vec![family, Field::Protocol(protocol), port], &owner));
        }
    }
    objects
}

/// Whether the bridge has an address of the family of `address`.
fn bridge_answers(network: &Network, address: IpAddr) -> bool {
    network.subnets_of(Family::of(address)).any(|subnet| subnet.gateway.is_some() && network.host_answers(subnet))
}

fn endpoint_objects(
    root: &str,
    view: &ContainerView,
    sandbox: &Sandbox,
    endpoint: &Endpoint,
    network: &Network,
    objects: &mut Objects,
) {
    let owner = format!("container {} on {}", view.container.name, network.name);
    let addresses: Vec<IpAddr> = endpoint.addresses.iter().map(|one| one.address.addr()).collect();
    for route in network.routes_for(&addresses).iter().chain(endpoint.leases().flat_map(|lease| &lease.routes)) {
        let metric = route.metric.or(network.options.metric);
        let route = StaticRoute { metric, ..*route };
        objects.insert(Object::Route(Route { sandbox: sandbox.clone(), route }));
    }
    let child = match network.driver {
        Driver::Macvlan => {
            Some(ChildKind::Macvlan { mode: network.options.macvlan_mode, bclim: network.options.bclim })
        }
        Driver::Ipvlan => Some(ChildKind::Ipvlan { mode: network.options.ipvlan_mode }),
        Driver::Bridge | Driver::Ptp | Driver::Overlay | Driver::Host | Driver::None => None,
    };
    let is_routed = network.is_routed();
    let ipv6 = endpoint.address(Family::V6).is_some() || *network.speaks.of(Family::V6);
    // DHCPv6 tells an address, but neither what is on the link nor a way out.
    let routers = network.leases(Family::V6).then_some(Routers {
        default_route: network.options.default_route && !network.internal,
        metric: network.options.metric,
    });
    let mac = (!network.shares_parents_mac()).then_some(endpoint.mac);
    objects.insert(Object::Interface(Interface {
        sandbox: sandbox.clone(),
        name: endpoint.ifname.clone(),
        mac,
        mtu: network.mtu,
        addresses: endpoint.addresses.iter().map(|a| a.address).collect(),
        routed: if is_routed { routed::routed(network, endpoint) } else { BTreeMap::new() },
        ipv6,
        // The host knows by itself.
        announce: if endpoint.announce && !is_routed { network.options.advertise } else { 0 },
        routers,
        attributes: endpoint.tuning.attributes,
    }));
    if let Some(kind) = child {
        objects.insert(Object::Child(Child {
            sandbox: sandbox.clone(),
            name: endpoint.ifname.clone(),
            parent: network.bridge.clone(),
            kind,
            mac,
            mtu: network.mtu,
            handed: view.container.kind == ContainerKind::Handed,
        }));
        return;
    }
    // Who has no address that we know, or is on somebody else's bridge, cannot be told from who forges one.
    let guard = network.options.guard && network.options.managed && !endpoint.addresses.is_empty();
    let port = || Field::IfName(endpoint.host_end.clone());
    let place = if is_routed {
        routed::place(network, ipv6)
    } else {
        HostEnd::Bridge(BridgePort {
            bridge: network.bridge.clone(),
            isolated: !network.options.icc,
            locked: guard,
            asks: network.is_l2(),
            ruled: network.options.managed,
            vlan: network.options.vlan,
        })
    };
    objects.insert(Object::Port(Port {
        host_end: endpoint.host_end.clone(),
        place,
        mac: endpoint.mac,
        mtu: network.mtu,
        alias: alias_of_endpoint(root, endpoint.id),
        sandbox: sandbox.clone(),
        sandbox_end: endpoint.ifname.clone(),
    }));
    for (direction, limit) in [(Direction::In, endpoint.bandwidth.into), (Direction::Out, endpoint.bandwidth.out)] {
        objects.extend(limit.map(|limit| Object::Shaper(shaper(root, endpoint, network.mtu, direction, limit))));
    }
    if is_routed {
        routed::endpoint_objects(network, &view.container, endpoint, &owner, objects);
        return;
    }
    let link_local = ipv6.then(|| IpAddr::V6(endpoint.mac.link_local()));
    // Where the bridge has no address it speaks to nobody, and a bridge without IPv6 takes no such neighbours.
    for address in endpoint.addresses.iter().map(|a| a.address.addr()).filter(|ip| bridge_answers(network, *ip)) {
        objects.insert(Object::Neighbour(Neighbour { device: network.bridge.clone(), address, mac: endpoint.mac }));
    }
    if guard {
        for address in endpoint.addresses.iter().map(|a| a.address.addr()).chain(link_local) {
            let key = vec![port(), Field::Ether(endpoint.mac), Field::Address(address)];
            objects.insert(member(Set::Source(Family::of(address)), key, &owner));
        }
    } else if network.options.managed {
        objects.insert(member(Set::Unguarded, vec![port()], &owner));
    }
}

/// The token bucket that holds an endpoint to `limit`.
fn shaper(root: &str, endpoint: &Endpoint, mtu: Mtu, direction: Direction, limit: Limit) -> Shaper {
    /// An Ethernet header, with a VLAN's.
    const HEADER: u64 = 18;
    /// Of a second: what may pass at once unless somebody says how much. Packets come in bundles of up to 64 KiB, and the
    /// kernel's timers are late by less.
    const BURST: u64 = 100;
    /// Of a second: how long packets wait at most.
    const QUEUE: u64 = 20;
    /// Packets that may wait at any rate: less, and TCP does not get going.
    const PACKETS: u64 = 10;
    /// Seconds: the kernel counts the time that a burst takes in 32 bits of 64 ns.
    const LONGEST: u64 = 240;
    let bytes = limit.rate.bytes();
    let frame = u64::from(mtu.bytes()) + HEADER;
    // A bucket that is smaller than a frame lets none through.
    let burst = limit.burst.map_or((bytes / BURST).max(2 * frame), |burst| burst.bytes().max(frame));
    let burst = burst.min((bytes * LONGEST).max(1));
    let queue = burst + (bytes / QUEUE).max(PACKETS * frame);
    let fits = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    Shaper {
        host_end: endpoint.host_end.clone(),
        direction,
        rate: limit.rate,
        burst: fits(burst),
        queue: fits(queue),
        through: (direction == Direction::Out).then(|| shaper_name(&endpoint.host_end)),
        alias: alias_of_shaper(root, &endpoint.host_end),
    }
}

fn publication_objects(
    publication: &Publication,
    family: Family,
    address: IpAddr,
    mode: GatewayMode,
    owner: &str,
    objects: &mut Objects,
) {
    let protocol = Field::Protocol(publication.protocol);
    let (host, container) = (publication.host, publication.container);
    match mode {
        GatewayMode::Isolated => {}
        // The host alone: it reaches the container's own address anyway.
        GatewayMode::Routed if publication.bound_to().is_some_and(|ip| ip.is_loopback()) => {}
        GatewayMode::Routed => {
            let set = if container.is_single() { Set::Open(family) } else { Set::OpenRange(family) };
            objects.insert(member(
                set,
                vec![Field::Address(address), protocol, Field::Ports(container.first(), container.last())],
                owner,
            ));
        }
        GatewayMode::Nat | GatewayMode::NatUnprotected => {
            let key = |first: u16, last: u16| match publication.bound_to() {
                Some(ip) => vec![protocol.clone(), Field::Address(ip), Field::Ports(first, last)],
                None => vec![protocol.clone(), Field::Ports(first, last)],
            };
            let (one, many) = match publication.bound_to() {
                Some(_) => (Set::Port(family), Set::Range(family)),
                None => (Set::AnyPort(family), Set::AnyRange(family)),
            };
            if !host.is_single() && host == container {
                objects.insert(element(many, key(host.first(), host.last()), Data::Address(address), owner));
                return;
            }
            // A range that changes its numbers has no one element in nftables: its NAT statement knows no offset.
            for (from, to) in host.ports().zip(container.ports()) {
                objects.insert(element(one, key(from, from), Data::AddressPort(address, to), owner));
            }
        }
    }
}

#[cfg(test)]
#[path = "../tests/sample/mod.rs"]
pub(crate) mod sample;

#[cfg(test)]
mod tests;
