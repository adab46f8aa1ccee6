//! What the kernel should hold for a network, for a container, and for there being any network at all.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Container, Endpoint, Family, GatewayMode, Id, IfName, Mac, Network, Publication, Sandbox};

use crate::object::{
    Bridge, Chain, Data, DefaultRoute, Element, Field, Interface, Neighbour, Object, Objects, Port, Ruleset, Setting,
};
use crate::set::Set;

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

/// The name of a veth's end on the bridge: `pv` and 13 hexadecimal digits out of (network, container, interface).
/// `salt` is 0 unless that name is taken.
pub fn host_end_name(network: Id, container: Id, ifname: &IfName, salt: u8) -> IfName {
    let hash = fnv([&network.as_bytes()[..], container.as_bytes(), ifname.as_str().as_bytes(), &[salt]]);
    format!("pv{:013x}", hash >> 12).parse().expect("fifteen letters and digits")
}

/// The alias of a network's bridge.
pub fn alias_of_network(root: &str, network: Id) -> String {
    format!("portolan:{root}:network:{network}")
}

/// The alias of an endpoint's host end.
pub fn alias_of_endpoint(root: &str, endpoint: Id) -> String {
    format!("portolan:{root}:endpoint:{endpoint}")
}

/// What the host holds as soon as there is any network: our tables, the sysctls, and the interfaces between
/// which it did not forward before.
pub fn base_objects(table: &str, settings: &[Setting], closed: &[(Family, IfName)]) -> Objects {
    let mut objects = Objects::new();
    objects.extend(settings.iter().cloned().map(Object::Setting));
    objects.insert(Object::Ruleset(Ruleset { name: table.to_owned() }));
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

/// What a bridge network needs: its bridge, and its elements in the ruleset.
///
/// Networks of other drivers need nothing.
pub fn network_objects(root: &str, network: &Network) -> Objects {
    let mut objects = Objects::new();
    if network.driver != portolan_model::Driver::Bridge {
        return objects;
    }
    let owner = format!("network {}", network.name);
    let bridge = || Field::IfName(network.bridge.clone());
    let on_bridge: Vec<IpNet> = network
        .subnets
        .iter()
        .filter(|subnet| network.bridge_answers(subnet))
        .filter_map(|subnet| {
            subnet
                .gateway
                .map(|ip| IpNet::new(ip, subnet.net.prefix_len()).expect("the prefix of a subnet fits its family"))
        })
        .collect();
    objects.insert(Object::Bridge(Bridge {
        name: network.bridge.clone(),
        mac: bridge_mac(network.id),
        mtu: network.mtu,
        addresses: on_bridge.iter().copied().collect(),
        alias: alias_of_network(root, network.id),
        ipv6: on_bridge.iter().any(|net| matches!(net, IpNet::V6(_))),
        route_localnet: !network.internal && network.has(Family::V4),
    }));
    let within = if network.options.icc { Data::Accept } else { Data::Goto(Chain::WithinClosed) };
    objects.insert(element(Set::Within, vec![bridge(), bridge()], within, &owner));
    objects.insert(member(Set::Hairpin, vec![bridge(), bridge()], &owner));
    for interface in network.options.trusted_host_interfaces.iter().filter(|_| !network.internal) {
        objects.insert(member(Set::Trusted, vec![Field::IfName(interface.clone()), bridge()], &owner));
    }
    for address in &on_bridge {
        let family = Family::of(address.addr());
        objects.insert(member(Set::Gateway(family), vec![bridge(), Field::Address(address.addr())], &owner));
        objects.insert(member(Set::Gateways(family), vec![Field::Address(address.addr())], &owner));
    }
    for family in Family::ALL {
        let key = || vec![Field::NfProto(family), bridge()];
        let mode = network.mode(family);
        if !network.has(family) {
            // A family the network does not speak is closed both ways.
            objects.insert(element(Set::Leave, key(), Data::Drop, &owner));
            objects.insert(element(Set::Enter, key(), Data::Drop, &owner));
            continue;
        }
        if on_bridge.iter().any(|net| Family::of(net.addr()) == family) {
            objects.insert(member(Set::Checked, key(), &owner));
        }
        if network.internal {
            objects.insert(element(Set::Leave, key(), Data::Drop, &owner));
            objects.insert(element(Set::Enter, key(), Data::Drop, &owner));
            let to_host = if mode == GatewayMode::Isolated { Data::Drop } else { Data::Goto(Chain::ToHostInternal) };
            objects.insert(element(Set::ToHost, key(), to_host, &owner));
            continue;
        }
        let leave = if mode == GatewayMode::Isolated { Data::Drop } else { Data::Goto(Chain::Enter) };
        objects.insert(element(Set::Leave, key(), leave, &owner));
        let enter = match mode {
            GatewayMode::Nat => Data::Goto(Chain::EnterNat),
            GatewayMode::NatUnprotected => Data::Accept,
            GatewayMode::Routed => Data::Goto(Chain::EnterRouted),
            GatewayMode::Isolated => Data::Drop,
        };
        objects.insert(element(Set::Enter, key(), enter, &owner));
        if matches!(mode, GatewayMode::Nat | GatewayMode::NatUnprotected) {
            if let Some(address) = *network.options.snat.of(family) {
                objects.insert(element(Set::Snat(family), vec![bridge()], Data::Address(address), &owner));
            } else if network.options.masquerade {
                objects.insert(member(Set::Masquerade, key(), &owner));
            }
        }
    }
    objects
}

/// A bridge's MAC, the same whenever the bridge is made again.
fn bridge_mac(network: Id) -> Mac {
    let hash = fnv([&network.as_bytes()[..], b"bridge"]).to_be_bytes();
    Mac::local([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5]])
}

/// Which endpoint of a container gives it its default route in `family`, and the gateway.
///
/// A pure function of the rows: the highest gateway priority wins; then, as Docker breaks ties, a network that
/// speaks both families before one that speaks one, then the network's name in byte order.
pub fn default_route(view: &ContainerView, family: Family) -> Option<(&Endpoint, &Network, IpAddr)> {
    view.endpoints
        .iter()
        .filter_map(|(endpoint, network)| {
            let address = endpoint.address(family)?;
            let subnet = network.subnets_of(family).find(|subnet| subnet.net.contains(&address))?;
            let gateway = subnet.gateway.filter(|_| network.routes_out(family))?;
            Some((endpoint, network, gateway))
        })
        .min_by_key(|(endpoint, network, _)| {
            let both = network.routes_out(Family::V4) && network.routes_out(Family::V6);
            (std::cmp::Reverse(endpoint.gateway_priority), !both, network.name.clone())
        })
}

/// Both default routes of a container's sandbox.
pub fn default_routes(view: &ContainerView) -> Vec<DefaultRoute> {
    let Some(sandbox) = &view.container.sandbox else { return Vec::new() };
    Family::ALL
        .into_iter()
        .filter_map(|family| default_route(view, family))
        .map(|(endpoint, _, gateway)| DefaultRoute {
            sandbox: sandbox.clone(),
            gateway,
            interface: endpoint.ifname.clone(),
        })
        .collect()
}

/// What a container needs: for each endpoint a port, neighbours, guard elements and an interface; then default
/// routes, and the elements of its published ports, which lead to the endpoint that has the default route.
///
/// Nothing for a container whose namespace is not there.
pub fn container_objects(root: &str, view: &ContainerView) -> Objects {
    let mut objects = Objects::new();
    let Some(sandbox) = &view.container.sandbox else { return objects };
    for (endpoint, network) in &view.endpoints {
        endpoint_objects(root, view, sandbox, endpoint, network, &mut objects);
    }
    objects.extend(default_routes(view).into_iter().map(Object::DefaultRoute));
    for publication in &view.publications {
        for family in Family::ALL.into_iter().filter(|family| publication.covers(*family)) {
            if let Some((endpoint, network, _)) = default_route(view, family) {
                let address =
                    endpoint.address(family).expect("the default route's endpoint has an address of the family");
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
    objects
}

/// Whether the bridge has an address of the family of `address`.
fn host_answers(network: &Network, address: IpAddr) -> bool {
    network.subnets_of(Family::of(address)).any(|subnet| subnet.gateway.is_some() && network.bridge_answers(subnet))
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
    let guard = network.options.guard;
    let port = || Field::IfName(endpoint.host_end.clone());
    let ipv6 = endpoint.address(Family::V6).is_some();
    objects.insert(Object::Port(Port {
        host_end: endpoint.host_end.clone(),
        bridge: network.bridge.clone(),
        mac: endpoint.mac,
        mtu: network.mtu,
        isolated: !network.options.icc,
        locked: guard,
        alias: alias_of_endpoint(root, endpoint.id),
        sandbox: sandbox.clone(),
        sandbox_end: endpoint.ifname.clone(),
    }));
    let link_local = ipv6.then(|| IpAddr::V6(endpoint.mac.link_local()));
    // Where the bridge has no address it speaks to nobody, and a bridge without IPv6 takes no such neighbours.
    for address in endpoint.addresses.iter().map(|a| a.address.addr()).filter(|ip| host_answers(network, *ip)) {
        objects.insert(Object::Neighbour(Neighbour { bridge: network.bridge.clone(), address, mac: endpoint.mac }));
    }
    if guard {
        for address in endpoint.addresses.iter().map(|a| a.address.addr()).chain(link_local) {
            let key = vec![port(), Field::Ether(endpoint.mac), Field::Address(address)];
            objects.insert(member(Set::Source(Family::of(address)), key, &owner));
        }
    } else {
        objects.insert(member(Set::Unguarded, vec![port()], &owner));
    }
    objects.insert(Object::Interface(Interface {
        sandbox: sandbox.clone(),
        name: endpoint.ifname.clone(),
        mac: endpoint.mac,
        mtu: network.mtu,
        addresses: endpoint.addresses.iter().map(|a| a.address).collect(),
        ipv6,
        announce: if endpoint.announce { network.options.advertise } else { 0 },
    }));
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
mod sample;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use portolan_model::Driver;

    use super::sample::{container, endpoint, id, internal, network, publication};
    use super::*;
    use crate::object::Key;

    const DUAL: [&str; 2] = ["172.20.0.0/24", "fd00::/64"];

    /// The elements of `set`, as `KEY` or `KEY : DATA`.
    fn elements(objects: &Objects, set: Set) -> Vec<String> {
        let text = |e: &Element| {
            let key = e.key.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . ").replace('"', "");
            if e.data == Data::Member { key } else { format!("{key} : {}", e.data) }
        };
        objects
            .iter()
            .filter_map(|(_, o)| if let Object::Element(e) = o { Some(e) } else { None })
            .filter(|e| e.set == set)
            .map(text)
            .collect()
    }

    fn bridge(objects: &Objects) -> &Bridge {
        objects
            .iter()
            .find_map(|(_, o)| if let Object::Bridge(bridge) = o { Some(bridge) } else { None })
            .expect("a bridge")
    }

    fn ports(objects: &Objects) -> Vec<&Port> {
        objects.iter().filter_map(|(_, o)| if let Object::Port(port) = o { Some(port) } else { None }).collect()
    }

    fn interfaces(objects: &Objects) -> Vec<&Interface> {
        objects
            .iter()
            .filter_map(|(_, o)| if let Object::Interface(interface) = o { Some(interface) } else { None })
            .collect()
    }

    fn nothing_else(objects: &Objects, sets: &[Set]) {
        for set in Set::ALL.into_iter().filter(|set| !sets.contains(set)) {
            assert_eq!(elements(objects, set), [""; 0], "{}", set.name());
        }
    }

    /// A container with an endpoint on each of `networks`, at host number `2` of each of their subnets.
    fn view(networks: &[&Network], publications: &[&str]) -> ContainerView {
        let container = container("c1", 0x11);
        let endpoints = networks.iter().enumerate().map(|(index, &network)| {
            let second = |net: IpNet| net.hosts().find(|ip| octets(*ip).last() == Some(&2)).unwrap().to_string();
            let addresses: Vec<String> = network.subnets.iter().map(|subnet| second(subnet.net)).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            (endpoint(&container, network, index as u8, &addresses), network.clone())
        });
        ContainerView {
            endpoints: endpoints.collect(),
            publications: publications.iter().map(|p| publication(p)).collect(),
            container,
        }
    }

    fn default_network(view: &ContainerView, family: Family) -> Option<&str> {
        default_route(view, family).map(|(_, network, _)| network.name.as_str())
    }

    #[test]
    fn mode_nat_lets_in_published_ports_and_masquerades() {
        let objects = network_objects("/r", &network("n", 1, &DUAL, &[]));
        assert_eq!(elements(&objects, Set::Enter), ["ipv4 . br-n : goto enter_nat", "ipv6 . br-n : goto enter_nat"]);
        assert_eq!(elements(&objects, Set::Leave), ["ipv4 . br-n : goto enter", "ipv6 . br-n : goto enter"]);
        assert_eq!(elements(&objects, Set::Masquerade), ["ipv4 . br-n", "ipv6 . br-n"]);
        assert_eq!(elements(&objects, Set::Checked), ["ipv4 . br-n", "ipv6 . br-n"]);
        assert_eq!(elements(&objects, Set::Within), ["br-n . br-n : accept"]);
        assert_eq!(elements(&objects, Set::Hairpin), ["br-n . br-n"]);
        assert_eq!(elements(&objects, Set::Gateway(Family::V4)), ["br-n . 172.20.0.1"]);
        assert_eq!(elements(&objects, Set::Gateways(Family::V4)), ["172.20.0.1"]);
        assert_eq!(elements(&objects, Set::Gateway(Family::V6)), ["br-n . fd00::1"]);
        assert_eq!(elements(&objects, Set::Gateways(Family::V6)), ["fd00::1"]);
        nothing_else(
            &objects,
            &[
                Set::Enter,
                Set::Leave,
                Set::Masquerade,
                Set::Checked,
                Set::Within,
                Set::Hairpin,
                Set::Gateway(Family::V4),
                Set::Gateways(Family::V4),
                Set::Gateway(Family::V6),
                Set::Gateways(Family::V6),
            ],
        );
        let bridge = bridge(&objects);
        assert!(bridge.ipv6 && bridge.route_localnet);
        assert_eq!(bridge.addresses, ["172.20.0.1/24", "fd00::1/64"].map(|net| net.parse().unwrap()).into());
        assert_eq!(bridge.alias, format!("portolan:/r:network:{}", id(1)));
    }

    #[test]
    fn mode_nat_unprotected_lets_everything_in_and_masquerades() {
        let objects = network_objects("/r", &network("n", 1, &DUAL, &[("gateway_mode_ipv6", "nat-unprotected")]));
        assert_eq!(elements(&objects, Set::Enter), ["ipv4 . br-n : goto enter_nat", "ipv6 . br-n : accept"]);
        assert_eq!(elements(&objects, Set::Masquerade), ["ipv4 . br-n", "ipv6 . br-n"]);
    }

    #[test]
    fn mode_routed_translates_nothing() {
        let options = [("gateway_mode_ipv4", "routed"), ("host_ipv4", "10.0.0.9")];
        let objects = network_objects("/r", &network("n", 1, &DUAL, &options));
        assert_eq!(elements(&objects, Set::Enter), ["ipv4 . br-n : goto enter_routed", "ipv6 . br-n : goto enter_nat"]);
        assert_eq!(elements(&objects, Set::Masquerade), ["ipv6 . br-n"]);
        assert_eq!(elements(&objects, Set::Snat(Family::V4)), [""; 0]);
    }

    #[test]
    fn snat_replaces_masquerading_in_its_family() {
        let objects = network_objects("/r", &network("n", 1, &DUAL, &[("host_ipv4", "10.0.0.9")]));
        assert_eq!(elements(&objects, Set::Snat(Family::V4)), ["br-n : 10.0.0.9"]);
        assert_eq!(elements(&objects, Set::Snat(Family::V6)), [""; 0]);
        assert_eq!(elements(&objects, Set::Masquerade), ["ipv6 . br-n"]);

        let objects =
            network_objects("/r", &network("n", 1, &DUAL, &[("host_ipv6", "2001:db8::9"), ("masquerade", "false")]));
        assert_eq!(elements(&objects, Set::Snat(Family::V6)), ["br-n : 2001:db8::9"]);
        assert_eq!(elements(&objects, Set::Masquerade), [""; 0]);
    }

    #[test]
    fn an_internal_network_neither_leaves_nor_is_entered() {
        let objects = network_objects("/r", &internal("n", 1, &DUAL, &[("host_ipv4", "10.0.0.9")]));
        assert_eq!(elements(&objects, Set::Enter), ["ipv4 . br-n : drop", "ipv6 . br-n : drop"]);
        assert_eq!(elements(&objects, Set::Leave), ["ipv4 . br-n : drop", "ipv6 . br-n : drop"]);
        assert_eq!(
            elements(&objects, Set::ToHost),
            ["ipv4 . br-n : goto to_host_internal", "ipv6 . br-n : goto to_host_internal"]
        );
        assert_eq!(elements(&objects, Set::Masquerade), [""; 0]);
        assert_eq!(elements(&objects, Set::Snat(Family::V4)), [""; 0]);
        assert!(!bridge(&objects).route_localnet);
        assert_eq!(bridge(&objects).addresses.len(), 2);
    }

    #[test]
    fn an_isolated_network_does_not_even_know_the_host() {
        let options = [("gateway_mode_ipv4", "isolated"), ("gateway_mode_ipv6", "isolated")];
        // Whether or not the subnets have gateways, the bridge has no address.
        for subnets in [DUAL, ["172.20.0.0/24-", "fd00::/64-"]] {
            let objects = network_objects("/r", &internal("n", 1, &subnets, &options));
            assert_eq!(elements(&objects, Set::ToHost), ["ipv4 . br-n : drop", "ipv6 . br-n : drop"]);
            assert_eq!(elements(&objects, Set::Gateways(Family::V4)), [""; 0]);
            assert_eq!(elements(&objects, Set::Checked), [""; 0]);
            let bridge = bridge(&objects);
            assert!(bridge.addresses.is_empty() && !bridge.ipv6 && !bridge.route_localnet);
        }
    }

    #[test]
    fn each_family_has_its_own_mode_on_an_internal_network() {
        let objects = network_objects("/r", &internal("n", 1, &DUAL, &[("gateway_mode_ipv4", "isolated")]));
        assert_eq!(elements(&objects, Set::ToHost), ["ipv4 . br-n : drop", "ipv6 . br-n : goto to_host_internal"]);
        assert_eq!(elements(&objects, Set::Gateway(Family::V6)), ["br-n . fd00::1"]);
        assert_eq!(bridge(&objects).addresses, ["fd00::1/64".parse().unwrap()].into());
    }

    #[test]
    fn icc_off_isolates_ports_and_routes() {
        let closed = network("n", 1, &DUAL, &[("icc", "false")]);
        assert_eq!(elements(&network_objects("/r", &closed), Set::Within), ["br-n . br-n : goto within_closed"]);
        assert!(ports(&container_objects("/r", &view(&[&closed], &[])))[0].isolated);
        let open = network("n", 1, &DUAL, &[]);
        assert!(!ports(&container_objects("/r", &view(&[&open], &[])))[0].isolated);
    }

    #[test]
    fn the_guard_knows_every_address_and_the_link_local_one() {
        let objects = container_objects("/r", &view(&[&network("n", 1, &DUAL, &[])], &[]));
        let mac = "02:42:00:11:00:01";
        assert_eq!(elements(&objects, Set::Source(Family::V4)), [format!("pv00110001 . {mac} . 172.20.0.2")]);
        assert_eq!(
            elements(&objects, Set::Source(Family::V6)),
            [format!("pv00110001 . {mac} . fd00::2"), format!("pv00110001 . {mac} . fe80::42:ff:fe11:1")]
        );
        assert_eq!(elements(&objects, Set::Unguarded), [""; 0]);
        assert!(ports(&objects)[0].locked);
    }

    #[test]
    fn guard_off_lets_any_frame_pass() {
        let objects = container_objects("/r", &view(&[&network("n", 1, &DUAL, &[("guard", "false")])], &[]));
        assert_eq!(elements(&objects, Set::Unguarded), ["pv00110001"]);
        assert_eq!(elements(&objects, Set::Source(Family::V4)), [""; 0]);
        assert_eq!(elements(&objects, Set::Source(Family::V6)), [""; 0]);
        assert!(!ports(&objects)[0].locked);
    }

    #[test]
    fn a_network_of_one_family_is_closed_to_the_other() {
        for (subnet, has, lacks) in [("172.20.0.0/24", Family::V4, Family::V6), ("fd00::/64", Family::V6, Family::V4)] {
            let network = network("n", 1, &[subnet], &[]);
            let objects = network_objects("/r", &network);
            let drop = format!("{} . br-n : drop", Field::NfProto(lacks));
            assert!(elements(&objects, Set::Leave).contains(&drop), "{lacks}");
            assert!(elements(&objects, Set::Enter).contains(&drop), "{lacks}");
            assert_eq!(elements(&objects, Set::Masquerade), [format!("{} . br-n", Field::NfProto(has))]);
            assert_eq!(elements(&objects, Set::Gateways(lacks)), [""; 0]);
            assert_eq!(bridge(&objects).ipv6, has == Family::V6);
            assert_eq!(bridge(&objects).route_localnet, has == Family::V4);

            let objects = container_objects("/r", &view(&[&network], &["80:80"]));
            assert_eq!(elements(&objects, Set::Source(lacks)), [""; 0], "no link-local address either");
            assert_eq!(elements(&objects, Set::AnyPort(has)).len(), 1);
            assert_eq!(elements(&objects, Set::AnyPort(lacks)), [""; 0]);
            assert_eq!(interfaces(&objects)[0].ipv6, has == Family::V6);
        }
    }

    #[test]
    fn several_subnets_of_a_family_each_have_their_gateway() {
        let network =
            network("n", 1, &["172.20.0.0/24", "172.20.1.0/24-", "172.20.2.0/24", "fd00::/64", "fd01::/64"], &[]);
        let objects = network_objects("/r", &network);
        assert_eq!(elements(&objects, Set::Gateway(Family::V4)), ["br-n . 172.20.0.1", "br-n . 172.20.2.1"]);
        assert_eq!(elements(&objects, Set::Gateway(Family::V6)), ["br-n . fd00::1", "br-n . fd01::1"]);
        assert_eq!(elements(&objects, Set::Masquerade), ["ipv4 . br-n", "ipv6 . br-n"]);

        let view = view(&[&network], &["80:80"]);
        let objects = container_objects("/r", &view);
        assert_eq!(elements(&objects, Set::Source(Family::V4)).len(), 3);
        assert_eq!(objects.iter().filter(|(_, o)| matches!(o, Object::Neighbour(_))).count(), 5);
        assert_eq!(interfaces(&objects)[0].addresses.len(), 5);
        assert_eq!(default_routes(&view).len(), 2, "one of each family");
        assert_eq!(
            elements(&objects, Set::AnyPort(Family::V4)),
            ["tcp . 80 : 172.20.0.2 . 80"],
            "to the first address"
        );
    }

    #[test]
    fn a_gateway_elsewhere_leaves_the_bridge_without_address() {
        let network = network("n", 1, &DUAL, &[("inhibit_ipv4", "true")]);
        let objects = network_objects("/r", &network);
        assert_eq!(bridge(&objects).addresses, ["fd00::1/64".parse().unwrap()].into());
        assert_eq!(elements(&objects, Set::Gateways(Family::V4)), [""; 0]);
        assert_eq!(default_route(&view(&[&network], &[]), Family::V4).unwrap().2.to_string(), "172.20.0.1");
    }

    #[test]
    fn trusted_interfaces_are_trusted_towards_the_network_alone() {
        let objects = network_objects("/r", &network("n", 1, &DUAL, &[("trusted_host_interfaces", "eth1:wg0")]));
        assert_eq!(elements(&objects, Set::Trusted), ["eth1 . br-n", "wg0 . br-n"]);
    }

    #[test]
    fn networks_without_a_bridge_need_nothing() {
        for driver in [Driver::Host, Driver::None] {
            assert!(network_objects("/r", &Network { driver, ..network("host", 1, &[], &[]) }).is_empty());
        }
    }

    #[test]
    fn a_container_without_namespace_needs_nothing() {
        let mut view = view(&[&network("n", 1, &DUAL, &[])], &["80:80"]);
        view.container.sandbox = None;
        assert!(container_objects("/r", &view).is_empty());
    }

    #[test]
    fn base_objects_close_what_was_closed() {
        let settings =
            [Setting { path: "net/ipv4/ip_forward".to_owned(), value: "1".to_owned(), before: "0".to_owned() }];
        let objects = base_objects("t", &settings, &[(Family::V4, "eth0".parse().unwrap())]);
        assert_eq!(elements(&objects, Set::Closed), ["ipv4 . eth0"]);
        assert!(objects.find(&Key::Ruleset("t".to_owned())).is_some());
        assert_eq!(objects.len(), 3);
    }

    #[test]
    fn the_default_route_follows_priority_then_families_then_name() {
        let both = |name, number: u16| {
            network(name, number, &[&format!("172.20.{number}.0/24"), &format!("fd00:{number}::/64")], &[])
        };
        let v4 = |name, number: u16| network(name, number, &[&format!("172.20.{number}.0/24")], &[]);
        let v6 = |name, number: u16| network(name, number, &[&format!("fd00:{number}::/64")], &[]);

        // Name, in byte order, whatever the order of the endpoints.
        for networks in [[both("b", 1), both("a", 2)], [both("a", 2), both("b", 1)]] {
            let view = view(&[&networks[0], &networks[1]], &[]);
            assert_eq!(default_network(&view, Family::V4), Some("a"));
            assert_eq!(default_network(&view, Family::V6), Some("a"));
        }
        assert_eq!(default_network(&view(&[&v4("a", 1), &v4("B", 2)], &[]), Family::V4), Some("B"));

        // Both families before the name.
        let view_ = view(&[&v4("a", 1), &both("z", 2)], &[]);
        assert_eq!(default_network(&view_, Family::V4), Some("z"));
        assert_eq!(default_network(&view_, Family::V6), Some("z"));

        // Priority before all, and each family by itself.
        let mut view_ = view(&[&v4("a", 1), &both("z", 2)], &[]);
        view_.endpoints[0].0.gateway_priority = 1;
        assert_eq!(default_network(&view_, Family::V4), Some("a"));
        assert_eq!(default_network(&view_, Family::V6), Some("z"));
        view_.endpoints[1].0.gateway_priority = 2;
        assert_eq!(default_network(&view_, Family::V4), Some("z"));
        view_.endpoints[1].0.gateway_priority = -1;
        assert_eq!(default_network(&view_, Family::V4), Some("a"));

        // One family each.
        let view_ = view(&[&v4("b", 1), &v6("a", 2)], &[]);
        assert_eq!(default_network(&view_, Family::V4), Some("b"));
        assert_eq!(default_network(&view_, Family::V6), Some("a"));
        let routes = default_routes(&view_);
        assert_eq!(
            routes.iter().map(|r| (r.gateway.to_string(), r.interface.as_str())).collect::<Vec<_>>(),
            [("172.20.1.1".to_owned(), "eth0"), ("fd00:2::1".to_owned(), "eth1")]
        );

        // Internal networks and those without a gateway never, whatever their priority.
        let lone = internal("a", 1, &["172.20.1.0/24"], &[]);
        let mut view_ = view(&[&lone, &v4("z", 2)], &[]);
        view_.endpoints[0].0.gateway_priority = 9;
        assert_eq!(default_network(&view_, Family::V4), Some("z"));
        assert_eq!(default_network(&view(&[&lone], &[]), Family::V4), None);
        assert_eq!(default_network(&view(&[&network("a", 1, &["172.20.1.0/24-"], &[])], &[]), Family::V4), None);
        assert_eq!(default_routes(&view(&[], &[])), []);
    }

    #[test]
    fn published_ports_lead_to_the_default_route_of_each_family() {
        let (four, six) = (network("four", 1, &["172.20.1.0/24"], &[]), network("six", 2, &["fd00:2::/64"], &[]));
        let objects = container_objects("/r", &view(&[&four, &six], &["8080:80"]));
        assert_eq!(elements(&objects, Set::AnyPort(Family::V4)), ["tcp . 8080 : 172.20.1.2 . 80"]);
        assert_eq!(elements(&objects, Set::AnyPort(Family::V6)), ["tcp . 8080 : fd00:2::2 . 80"]);

        let objects = container_objects("/r", &view(&[&internal("lone", 3, &["172.20.3.0/24"], &[])], &["8080:80"]));
        assert_eq!(elements(&objects, Set::AnyPort(Family::V4)), [""; 0], "an internal network publishes nothing");
    }

    fn published(text: &str, options: &[(&str, &str)]) -> Objects {
        let objects = container_objects("/r", &view(&[&network("n", 1, &DUAL, options)], &[text]));
        let owner = format!("container c1 {}", publication(text));
        objects.into_iter().filter(|o| matches!(o, Object::Element(e) if e.owner == owner)).collect()
    }

    #[test]
    fn a_range_that_keeps_its_numbers_is_one_element_per_family() {
        let objects = published("8000-17999:8000-17999/udp", &[]);
        assert_eq!(objects.len(), 2);
        assert_eq!(elements(&objects, Set::AnyRange(Family::V4)), ["udp . 8000-17999 : 172.20.0.2"]);
        assert_eq!(elements(&objects, Set::AnyRange(Family::V6)), ["udp . 8000-17999 : fd00::2"]);
        let objects = published("127.0.0.1:8000-8009:8000-8009", &[]);
        assert_eq!(objects.len(), 1);
        assert_eq!(elements(&objects, Set::Range(Family::V4)), ["tcp . 127.0.0.1 . 8000-8009 : 172.20.0.2"]);
    }

    #[test]
    fn a_range_that_changes_its_numbers_is_one_element_per_port() {
        let objects = published("8000-8002:9000-9002", &[]);
        assert_eq!(objects.len(), 6);
        assert_eq!(
            elements(&objects, Set::AnyPort(Family::V4)),
            ["tcp . 8000 : 172.20.0.2 . 9000", "tcp . 8001 : 172.20.0.2 . 9001", "tcp . 8002 : 172.20.0.2 . 9002"]
        );
        let objects = published("65534-65535:1-2", &[]);
        assert_eq!(
            elements(&objects, Set::AnyPort(Family::V6)),
            ["tcp . 65534 : fd00::2 . 1", "tcp . 65535 : fd00::2 . 2"]
        );
    }

    #[test]
    fn an_address_binds_to_itself_and_a_wildcard_to_its_family() {
        let objects = published("127.0.0.1:80:80", &[]);
        assert_eq!(elements(&objects, Set::Port(Family::V4)), ["tcp . 127.0.0.1 . 80 : 172.20.0.2 . 80"]);
        assert_eq!(objects.len(), 1, "nothing in the other family, nothing on every address");
        let objects = published("[2001:db8::1]:80:80/sctp", &[]);
        assert_eq!(elements(&objects, Set::Port(Family::V6)), ["sctp . 2001:db8::1 . 80 : fd00::2 . 80"]);
        assert_eq!(objects.len(), 1);
        let objects = published("0.0.0.0:80:80", &[]);
        assert_eq!(elements(&objects, Set::AnyPort(Family::V4)), ["tcp . 80 : 172.20.0.2 . 80"]);
        assert_eq!(objects.len(), 1);
        let objects = published("[::]:80:80", &[]);
        assert_eq!(elements(&objects, Set::AnyPort(Family::V6)), ["tcp . 80 : fd00::2 . 80"]);
        assert_eq!(objects.len(), 1);
    }

    #[test]
    fn a_routed_network_opens_the_containers_own_ports() {
        let routed = [("gateway_mode_ipv4", "routed")];
        let objects = published("8080:80", &routed);
        assert_eq!(elements(&objects, Set::Open(Family::V4)), ["172.20.0.2 . tcp . 80"]);
        assert_eq!(
            elements(&objects, Set::AnyPort(Family::V6)),
            ["tcp . 8080 : fd00::2 . 80"],
            "the other family is translated"
        );
        assert_eq!(objects.len(), 2);
        let objects = published("8000-8009:9000-9009", &routed);
        assert_eq!(elements(&objects, Set::OpenRange(Family::V4)), ["172.20.0.2 . tcp . 9000-9009"]);
    }

    #[test]
    fn nat_unprotected_publishes_as_nat_does_and_isolated_nothing() {
        let elements_of = |mode| published("8080:80", &[("gateway_mode_ipv4", mode)]);
        assert_eq!(elements_of("nat-unprotected"), elements_of("nat"));
        assert_eq!(elements(&elements_of("isolated"), Set::AnyPort(Family::V4)), [""; 0]);
    }

    #[test]
    fn elements_say_whom_they_are_for() {
        let network = network("web", 1, &DUAL, &[]);
        let objects = container_objects("/r", &view(&[&network], &["127.0.0.1:80:8080"]));
        let owners: HashSet<&str> = objects
            .iter()
            .filter_map(|(_, o)| if let Object::Element(e) = o { Some(e.owner.as_str()) } else { None })
            .collect();
        assert_eq!(
            owners,
            HashSet::from(["container c1", "container c1 on web", "container c1 127.0.0.1:80:8080/tcp"])
        );
        let all_of_network = network_objects("/r", &network);
        assert!(all_of_network.iter().all(|(_, o)| !matches!(o, Object::Element(e) if e.owner != "network web")));
    }

    #[test]
    fn an_address_that_moved_is_announced_as_often_as_the_network_says() {
        let mut view = view(&[&network("n", 1, &DUAL, &[("advertise", "2")])], &[]);
        assert_eq!(interfaces(&container_objects("/r", &view))[0].announce, 0);
        view.endpoints[0].0.announce = true;
        assert_eq!(interfaces(&container_objects("/r", &view))[0].announce, 2);
    }

    #[test]
    fn elements_have_the_fields_of_their_set() {
        let network = network("n", 1, &DUAL, &[("trusted_host_interfaces", "eth1"), ("host_ipv6", "2001:db8::9")]);
        let publications = ["80:80", "127.0.0.1:81:81", "90-99:90-99", "[2001:db8::1]:90-99:90-99/udp"];
        let mut objects = network_objects("/r", &network);
        objects.extend(container_objects("/r", &view(&[&network], &publications)));
        for element in objects.iter().filter_map(|(_, o)| if let Object::Element(e) = o { Some(e) } else { None }) {
            let types: Vec<crate::FieldType> = element.key.iter().map(field_type).collect();
            assert_eq!(types, element.set.key(), "{}", element.set.name());
            let data = match element.data {
                Data::Member => crate::DataType::Member,
                Data::Address(ip) => crate::DataType::Address(Family::of(ip)),
                Data::AddressPort(ip, _) => crate::DataType::AddressPort(Family::of(ip)),
                _ => crate::DataType::Verdict,
            };
            assert_eq!(data, element.set.data(), "{}", element.set.name());
        }
    }

    fn field_type(field: &Field) -> crate::FieldType {
        match field {
            Field::Protocol(_) => crate::FieldType::Protocol,
            Field::NfProto(_) => crate::FieldType::NfProto,
            Field::Address(ip) => crate::FieldType::Address(Family::of(*ip)),
            Field::Ports(..) => crate::FieldType::Port,
            Field::IfName(_) => crate::FieldType::IfName,
            Field::Ether(_) => crate::FieldType::Ether,
        }
    }

    #[test]
    fn names_of_host_ends_are_full_length_and_spread() {
        let eth0: IfName = "eth0".parse().unwrap();
        let name = host_end_name(id(1), id(2), &eth0, 0);
        assert_eq!(name.as_str().len(), 15);
        assert!(name.as_str().starts_with("pv"));
        assert_eq!(name, host_end_name(id(1), id(2), &eth0, 0));
        let others = [
            host_end_name(id(1), id(2), &eth0, 1),
            host_end_name(id(2), id(1), &eth0, 0),
            host_end_name(id(1), id(3), &eth0, 0),
            host_end_name(id(1), id(2), &"eth1".parse().unwrap(), 0),
        ];
        assert_eq!(others.iter().chain([&name]).collect::<HashSet<_>>().len(), 5);
    }

    #[test]
    fn a_hundred_thousand_names_do_not_collide() {
        let eth0: IfName = "eth0".parse().unwrap();
        let sequential = |number: u32| {
            let mut bytes = [0; 32];
            bytes[28..].copy_from_slice(&number.to_be_bytes());
            Id::from_bytes(bytes)
        };
        let names: HashSet<IfName> = (0..100_000).map(|n| host_end_name(id(1), sequential(n), &eth0, 0)).collect();
        assert_eq!(names.len(), 100_000);
        let macs: HashSet<Mac> =
            (0..100_000).map(|n: u32| generated_mac(id(1), IpAddr::from(n.to_be_bytes()))).collect();
        assert_eq!(macs.len(), 100_000);
    }

    #[test]
    fn generated_macs_are_local_unicast_and_belong_to_the_address() {
        for last in 0..=255 {
            let mac = generated_mac(id(1), [10, 0, 0, last].into());
            assert_eq!(mac.octets()[0] & 0b11, 0b10, "{mac}");
            assert_eq!(mac, generated_mac(id(1), [10, 0, 0, last].into()));
            assert_ne!(mac, generated_mac(id(2), [10, 0, 0, last].into()));
        }
        assert_eq!(bridge_mac(id(1)).octets()[0] & 0b11, 0b10);
        assert_ne!(bridge_mac(id(1)), bridge_mac(id(2)));
    }
}
