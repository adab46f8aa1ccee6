//! Networks without a bridge: the host routes to each container by a veth pair of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Container, Endpoint, Family, Network};

use super::{elements, gateway_mac, member, overlay};
use crate::object::{Element, Field, HostEnd, HostRoute, Neighbour, Object, Objects, Routed, Way};
use crate::set::Set;

/// What such a network holds whoever is on it: what may pass between its subnets, and that addresses which no container has
/// are nowhere. Else the host's default route would lead to them.
pub(super) fn network_objects(network: &Network, owner: &str, objects: &mut Objects) {
    for from in &network.subnets {
        objects.insert(Object::HostRoute(HostRoute { destination: from.net, way: Way::Unreachable }));
        for to in network.subnets_of(from.family()) {
            objects.insert(Object::Element(Element {
                set: Set::Between(from.family()),
                key: vec![Field::Prefix(from.net), Field::Prefix(to.net)],
                data: elements::within(network),
                owner: owner.to_owned(),
            }));
        }
    }
}

/// The addresses of an endpoint, each with its subnet and gateway.
fn places<'a>(network: &'a Network, endpoint: &'a Endpoint) -> impl Iterator<Item = (IpAddr, IpNet, IpAddr)> + 'a {
    endpoint.addresses.iter().map(|one| one.address.addr()).filter_map(|address| {
        let subnet = network.subnet_of(address)?;
        Some((address, subnet.net, subnet.gateway?))
    })
}

/// The subnets of an endpoint, which are behind their gateways for it.
pub(super) fn routed(network: &Network, endpoint: &Endpoint) -> BTreeMap<IpNet, IpAddr> {
    places(network, endpoint).map(|(_, subnet, gateway)| (subnet, gateway)).collect()
}

/// What the host end of such an endpoint is. Where IPv6 is off nothing has an address of it.
pub(super) fn place(network: &Network, ipv6: bool) -> HostEnd {
    HostEnd::Routed(Routed {
        mac: gateway_mac(network.id),
        gateways: elements::gateways(network).iter().map(IpNet::addr).filter(|ip| ipv6 || ip.is_ipv4()).collect(),
        ipv6,
        route_localnet: !network.internal && network.has(Family::V4),
    })
}

/// What leads to an endpoint, and what it may do: as for a bridge, but by its own host end.
pub(super) fn endpoint_objects(
    network: &Network,
    container: &Container,
    endpoint: &Endpoint,
    owner: &str,
    objects: &mut Objects,
) {
    let device = &endpoint.host_end;
    elements::of_device(network, device, owner, objects);
    for (address, _, gateway) in places(network, endpoint) {
        let key = vec![Field::IfName(device.clone()), Field::Address(address)];
        objects.insert(member(Set::Behind(Family::of(address)), key, owner));
        objects.insert(Object::Neighbour(Neighbour { device: device.clone(), address, mac: endpoint.mac }));
        let way = Way::HostEnd { device: device.clone(), from: gateway };
        objects.insert(Object::HostRoute(HostRoute { destination: address.into(), way }));
    }
    if network.overlay.is_some() {
        overlay::endpoint_objects(network, container, endpoint, owner, objects);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{container, endpoint, ptp, publication};
    use super::super::*;

    fn view(network: &Network) -> ContainerView {
        let container = container("c1", 0x11);
        let endpoints = vec![(endpoint(&container, network, 0, &["10.1.0.2", "fd01::2"]), network.clone())];
        ContainerView { container, endpoints, publications: vec![publication("8080:80")] }
    }

    fn net(options: &[(&str, &str)]) -> Network {
        ptp("n", 1, &["10.1.0.0/24", "fd01::/64"], options)
    }

    fn keys(objects: &Objects, set: Set) -> Vec<String> {
        let elements = objects.iter().filter_map(|(_, object)| match object {
            Object::Element(element) if element.set == set => Some(element),
            _ => None,
        });
        elements
            .map(|element| {
                let key: Vec<String> = element.key.iter().map(ToString::to_string).collect();
                key.join(" ").replace('"', "")
            })
            .collect()
    }

    #[test]
    fn a_network_without_a_bridge_holds_no_interface() {
        let objects = network_objects("/r", &net(&[]));
        let others = objects.iter().filter(|(_, object)| !matches!(object, Object::Element(_) | Object::HostRoute(_)));
        assert_eq!(others.count(), 0);
        assert_eq!(keys(&objects, Set::Between(Family::V4)), ["10.1.0.0/24 10.1.0.0/24"]);
        assert_eq!(keys(&objects, Set::Between(Family::V6)), ["fd01::/64 fd01::/64"]);
        assert_eq!(keys(&objects, Set::Gateways(Family::V4)), ["10.1.0.1"]);
        assert!(keys(&objects, Set::Leave).is_empty(), "what may leave is said of each host end");
    }

    #[test]
    fn each_host_end_is_what_a_bridge_is_to_others() {
        let objects = container_objects("/r", &view(&net(&[])));
        let host_end = "pv00110001";
        assert_eq!(keys(&objects, Set::Gateway(Family::V4)), [format!("{host_end} 10.1.0.1")]);
        assert_eq!(keys(&objects, Set::Behind(Family::V6)), [format!("{host_end} fd01::2")]);
        for set in [Set::Leave, Set::Enter, Set::Checked, Set::Masquerade] {
            assert_eq!(keys(&objects, set), [format!("ipv4 {host_end}"), format!("ipv6 {host_end}")], "{}", set.name());
        }
        assert!(keys(&objects, Set::Source(Family::V4)).is_empty(), "no frame is bridged");
        assert_eq!(keys(&objects, Set::AnyPort(Family::V4)), ["tcp 8080"]);
        let found: Vec<String> = objects
            .iter()
            .filter(|(_, object)| matches!(object, Object::HostRoute(_) | Object::Neighbour(_) | Object::Port(_)))
            .map(|(_, object)| object.to_string())
            .collect();
        assert_eq!(
            found,
            [
                "veth `pv00110001` to `eth0` in /run/netns/c1 mac 02:42:00:11:00:01 gateways 10.1.0.1, fd01::1",
                "neighbour 10.1.0.2 is 02:42:00:11:00:01 on `pv00110001`",
                "neighbour fd01::2 is 02:42:00:11:00:01 on `pv00110001`",
                "route of the host to 10.1.0.2 by `pv00110001` from 10.1.0.1",
                "route of the host to fd01::2 by `pv00110001` from fd01::1",
            ]
        );
    }

    #[test]
    fn who_has_no_ipv6_has_no_gateway_of_it() {
        let mut view = view(&net(&[]));
        view.endpoints[0].0.addresses.retain(|one| one.address.addr().is_ipv4());
        let objects = container_objects("/r", &view);
        let place = objects.iter().find_map(|(_, object)| match object {
            Object::Port(Port { place: HostEnd::Routed(routed), .. }) => Some(routed),
            _ => None,
        });
        let gateways: Vec<String> = place.unwrap().gateways.iter().map(ToString::to_string).collect();
        assert_eq!(gateways, ["10.1.0.1"]);
    }

    #[test]
    fn an_internal_network_has_gateways_and_no_way_out() {
        let view = view(&Network { internal: true, ..net(&[("icc", "false")]) });
        let objects = container_objects("/r", &view);
        assert_eq!(keys(&objects, Set::ToHost).len(), 2);
        assert!(keys(&objects, Set::AnyPort(Family::V4)).is_empty() && default_routes(&view).is_empty());
        let interface = objects.iter().find_map(|(_, object)| match object {
            Object::Interface(interface) => Some(interface),
            _ => None,
        });
        assert_eq!(interface.unwrap().routed.len(), 2, "its containers find each other by the gateway");
        let network = network_objects("/r", &view.endpoints[0].1);
        let within = network.iter().find_map(|(_, object)| match object {
            Object::Element(element) if element.set == Set::Between(Family::V4) => Some(element.data),
            _ => None,
        });
        assert_eq!(within, Some(Data::Goto(crate::object::Chain::WithinClosed)));
    }
}
