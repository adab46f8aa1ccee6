//! Networks over several hosts: each host routes to its own containers as without a bridge, and to the blocks of addresses of
//! the others by tunnels.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use portolan_model::{
    Backend, Container, Endpoint, Family, Id, IfName, Mac, Mtu, Network, NetworkOptions, OF_CNI, Overlay, Peer,
    RemoteEndpoint, sealed_mtu,
};

use super::{alias_of_network, element, elements, fnv, member};
use crate::object::{
    Chain, Data, Field, Forwarding, HostRoute, Inlet, Macs, Neighbour, Object, Objects, Shortcut, ShortcutPart,
    Translated, TunnelPort, Vxlan, Way,
};
use crate::set::Set;

/// The name of a network's end of its tunnels: `vx-` and twelve digits of its id.
pub fn vxlan_name(network: Id) -> IfName {
    format!("vx-{}", network.short()).parse().expect("fifteen letters and digits")
}

/// The name of a network's bridge, where it is one broadcast domain: `br-` and twelve digits of its id.
pub fn l2_bridge_name(network: Id) -> IfName {
    format!("br-{}", network.short()).parse().expect("fifteen letters and digits")
}

/// The name of the encrypted link between hosts: `ps` and thirteen hexadecimal digits out of the root's name.
pub fn seal_name(root: &str) -> IfName {
    let hash = fnv([root.as_bytes(), b"seal"]);
    format!("ps{:013x}", hash >> 12).parse().expect("fifteen letters and digits")
}

/// Whose the elements are that speak of the encrypted link's packets.
pub(crate) const SEAL_OWNER: &str = "host link";

/// What the host holds as long as any such network is in use, whose tunnels end at `port`: whoever could send there would be on
/// all of them. Neither their packets are connections nor those of the encrypted link at the ports `untracked`.
pub fn tunnel_objects(port: u16, untracked: &BTreeSet<u16>) -> Objects {
    let key = |port: u16| vec![Field::Ports(port, port)];
    let link = untracked.iter().filter(|link| **link != port);
    let link = link.map(|link| member(Set::Untracked, key(*link), SEAL_OWNER));
    [member(Set::Tunnels, key(port), "host"), member(Set::Untracked, key(port), "host")]
        .into_iter()
        .chain(link)
        .collect()
}

/// Where another host's tunnels may come from, which the host holds as long as any such network is in use.
pub fn end_objects(peer: &Peer) -> Objects {
    let addresses = [peer.underlay.v4, peer.underlay.v6, peer.sealed.map(IpAddr::V6)];
    let owner = format!("host {}", peer.name);
    let end = |address| member(Set::Ends(Family::of(address)), vec![Field::Address(address)], &owner);
    addresses.into_iter().flatten().map(end).collect()
}

/// The end of the tunnels, and what may come out of it: what another host's containers sent to ours.
pub(super) fn network_objects(root: &str, network: &Network, owner: &str, objects: &mut Objects) {
    let Some(overlay) = &network.overlay else { return };
    let name = vxlan_name(network.id);
    let port = network.is_l2().then(|| TunnelPort { bridge: network.bridge.clone(), isolated: !network.options.icc });
    let device = || Field::IfName(network.bridge.clone());
    let is_v6 = |address: IpAddr| Family::of(address) == Family::V6;
    let is_measured = is_measured(network);
    objects.insert(Object::Vxlan(Vxlan {
        name: name.clone(),
        vni: overlay.vni,
        local: overlay.end.address,
        by: overlay.sealed.then(|| seal_name(root)),
        port: overlay.end.port,
        mac: overlay.end.mac,
        mtu: network.mtu.min(overlay.end.inner_mtu(overlay.end.mtu, network.has(Family::V6))),
        alias: alias_of_network(root, network.id),
        ipv6: port.is_none() && (network.has(Family::V6) || is_v6(overlay.end.address) || is_measured),
        on: port.clone(),
    }));
    if port.is_some() {
        objects.insert(member(Set::Quiet, vec![Field::IfName(name)], owner));
        return;
    }
    if has_shortcuts(network) {
        let part = ShortcutPart::Table { alias: alias_of_network(root, network.id) };
        objects.insert(shortcut(network, part, owner.to_owned()));
    }
    if let Some(own) = translates(network) {
        let (device, owner) = (network.bridge.clone(), owner.to_owned());
        objects.insert(Object::Inlet(Inlet {
            device,
            link: seal_name(root),
            own,
            mac: overlay.end.mac,
            vni: overlay.vni,
            owner,
        }));
    }
    for family in Family::ALL {
        let key = || vec![Field::NfProto(family), device()];
        objects.insert(element(Set::Leave, key(), Data::Drop, owner));
        objects.insert(element(Set::Enter, key(), Data::Drop, owner));
        // Containers of other hosts have nothing to say to this one. Those hosts themselves have, under link-local addresses.
        let to_host = if is_measured && family == Family::V6 { Data::Goto(Chain::Probe) } else { Data::Drop };
        objects.insert(element(Set::ToHost, key(), to_host, owner));
        if network.has(family) {
            objects.insert(member(Set::Checked, key(), owner));
        }
    }
}

/// What another host's containers may send to this endpoint. That the source is another host's of this network is checked by
/// the way back to it.
pub(super) fn endpoint_objects(
    network: &Network,
    container: &Container,
    endpoint: &Endpoint,
    owner: &str,
    objects: &mut Objects,
) {
    let key = vec![Field::IfName(network.bridge.clone()), Field::IfName(endpoint.host_end.clone())];
    objects.insert(element(Set::Within, key, elements::within(network), owner));
    if takes_shortcuts(network, container, endpoint) {
        let addresses = endpoint.addresses.iter().map(|one| one.address.addr()).collect();
        let queued = endpoint.bandwidth.into.is_some();
        let part = ShortcutPart::Near { host_end: endpoint.host_end.clone(), addresses, queued };
        objects.insert(shortcut(network, part, owner.to_owned()));
    }
}

fn shortcut(network: &Network, part: ShortcutPart, owner: String) -> Object {
    Object::Shortcut(Shortcut { device: network.bridge.clone(), part, owner })
}

/// Whether the host's end of a network's tunnels answers those of other hosts. IPv6 does not live below its minimum, and what is a
/// port of a bridge answers nobody.
pub fn is_measured(network: &Network) -> bool {
    network.overlay.as_ref().is_some_and(|overlay| overlay.measured) && !network.is_l2() && network.mtu >= Mtu::IPV6_MIN
}

/// Whether rules let everything pass between containers of a network, so that packets between hosts can do without. They lead into
/// tunnels.
fn has_shortcuts(network: &Network) -> bool {
    let NetworkOptions { icc, shortcut, backend, l2, .. } = network.options;
    network.overlay.is_some() && icc && !l2 && shortcut != Some(false) && backend == Backend::Vxlan
}

/// This host on the encrypted link, if packets of a network come by that without tunnels.
fn translates(network: &Network) -> Option<Ipv6Addr> {
    let overlay = network.overlay.as_ref().filter(|overlay| overlay.sealed && overlay.translates)?;
    match overlay.end.address {
        IpAddr::V6(own) if has_shortcuts(network) && network.has(Family::V4) => Some(own),
        _ => None,
    }
}

/// Whether a container's packets can: both ways or none, for connection tracking that sees one half of a conversation takes it
/// for none.
///
/// What CNI brings is Kubernetes' more often than not, whose proxy translates services to containers of other hosts: their
/// answers have to be translated back. And what a limit holds up on the way out of the container is not seen at its ingress.
fn takes_shortcuts(network: &Network, container: &Container, endpoint: &Endpoint) -> bool {
    let asked_for = network.options.shortcut.unwrap_or_else(|| !container.labels.contains_key(OF_CNI));
    has_shortcuts(network) && asked_for && endpoint.bandwidth.out.is_none()
}

/// A block without these addresses: as few prefixes as can be.
fn without(block: IpNet, addresses: &[IpAddr]) -> Vec<IpNet> {
    if !addresses.iter().any(|address| block.contains(address)) {
        return vec![block];
    }
    // A single address has no halves.
    let halves = block.subnets(block.prefix_len() + 1).into_iter().flatten();
    halves.flat_map(|half| without(half, addresses)).collect()
}

/// Where another host takes packets of a network, if it can.
fn end_of(overlay: &Overlay, peer: &Peer) -> Option<IpAddr> {
    match overlay.sealed {
        true => peer.sealed.map(IpAddr::V6),
        false => *peer.underlay.of(Family::of(overlay.end.address)),
    }
}

/// Frames for `mac` go to another host's end of the tunnels.
fn to_end(root: &str, network: &Network, mac: Mac, to: IpAddr) -> Object {
    let is_sealed = network.overlay.as_ref().is_some_and(|overlay| overlay.sealed);
    let by = is_sealed.then(|| seal_name(root));
    let entry = Forwarding { device: vxlan_name(network.id), mac, to, by, bridged: false };
    Object::Forwarding(Forwarding { bridged: network.is_l2() && !entry.is_flood(), ..entry })
}

/// What leads to a container of another host on a network that is one broadcast domain, answers for it, and lets in what comes from
/// it. Nothing on other networks: there its address is in a block, and that leads to its host.
pub fn remote_objects(root: &str, network: &Network, peer: &Peer, endpoint: &RemoteEndpoint) -> Objects {
    let mut objects = Objects::new();
    let Some(overlay) = network.overlay.as_ref().filter(|_| network.is_l2()) else { return objects };
    let (Some(mac), Some(to)) = (endpoint.mac, end_of(overlay, peer)) else { return objects };
    let owner = format!("host {} on {}", peer.name, network.name);
    objects.insert(to_end(root, network, mac, to));
    let link_local = network.has(Family::V6).then(|| IpAddr::V6(mac.link_local()));
    for address in endpoint.addresses.iter().copied().chain(link_local) {
        if super::bridge_answers(network, address) {
            objects.insert(Object::Neighbour(Neighbour { device: network.bridge.clone(), address, mac }));
        }
        let key = vec![Field::IfName(vxlan_name(network.id)), Field::Ether(mac), Field::Address(address)];
        objects.insert(member(Set::Source(Family::of(address)), key, &owner));
    }
    objects
}

/// The address of another host on the LAN that this one is on as well, and this one's interface there, if packets of `family` go by
/// that. Both have to think so: a host takes them by the way that it sends by.
fn on_lan<'a>(overlay: &'a Overlay, peer: &Peer, family: Family) -> Option<(IpAddr, &'a IfName)> {
    let lan = overlay.direct.of(family).as_ref()?;
    let (theirs, to) = ((*peer.lan.of(family))?, (*peer.underlay.of(family))?);
    (lan.net == theirs && lan.net.contains(&to)).then_some((to, &lan.interface))
}

/// Whether packets of `family` go to another host without a tunnel.
pub fn goes_direct(overlay: &Overlay, peer: &Peer, family: Family) -> bool {
    on_lan(overlay, peer, family).is_some()
}

/// What leads to `block` of another host on the same LAN, and lets packets pass there and from there.
fn direct_objects(
    network: &Network,
    peer: &Peer,
    block: IpNet,
    (via, lan): (IpAddr, &IfName),
    fits: Mtu,
    objects: &mut Objects,
) {
    let mtu = Some(fits).filter(|fits| *fits < network.mtu);
    let way = Way::Lan { device: lan.clone(), via, mtu };
    objects.insert(Object::HostRoute(HostRoute { destination: block, way }));
    let key = vec![Field::IfName(lan.clone()), Field::Prefix(block)];
    let owner = format!("host {} on {}", peer.name, network.name);
    objects.insert(member(Set::Direct(Family::of(block.addr())), key, &owner));
}

/// What leads to another host that gives out `blocks` of an overlay network. Nothing where it has no address of the family
/// that this host's end of the tunnels has, or is not on the encrypted link that the network goes by.
///
/// The other host is a neighbour at the tunnels under its own address, so that a route shows where it leads; where it has none
/// that serves, under the link-local address that is made of its MAC.
pub fn peer_objects(root: &str, network: &Network, peer: &Peer, blocks: &[IpNet]) -> Objects {
    let mut objects = Objects::new();
    let Some(overlay) = &network.overlay else { return objects };
    let outer = Family::of(overlay.end.address);
    let to = end_of(overlay, peer);
    if network.is_l2() {
        // Who gives out addresses has containers, which what is broadcast is for as well.
        if let Some(to) = to.filter(|_| !blocks.is_empty()) {
            objects.insert(to_end(root, network, Mac::from_bytes([0; 6]), to));
        }
        return objects;
    }
    let takes = match overlay.sealed {
        true => {
            let by = if peer.sealed_by_ipv6 { Family::V6 } else { Family::V4 };
            sealed_mtu(peer.mtu, by, overlay.end.mtu)
        }
        false => peer.mtu,
    };
    let device = || network.bridge.clone();
    let is_by_tunnel = |block: &IpNet| on_lan(overlay, peer, Family::of(block.addr())).is_none();
    if is_measured(network) && to.is_some() && blocks.iter().any(is_by_tunnel) {
        // It asks, and is asked, under this address.
        let address = IpAddr::V6(peer.mac.link_local());
        objects.insert(Object::Neighbour(Neighbour { device: device(), address, mac: peer.mac }));
    }
    for block in blocks {
        let inner = Family::of(block.addr());
        if let Some(place) = on_lan(overlay, peer, inner) {
            direct_objects(network, peer, *block, place, overlay.end.mtu.min(takes), &mut objects);
            continue;
        }
        let Some(to) = to else { continue };
        // IPv6 takes no global address for a neighbour where routes lead to it elsewhere (ip6_route_check_nh_onlink()).
        let own = match (inner == outer, inner) {
            (true, _) => Some(to),
            (false, Family::V4) => peer.underlay.v4,
            (false, Family::V6) => None,
        };
        let via = own.unwrap_or_else(|| IpAddr::V6(peer.mac.link_local()));
        let fits = overlay.end.inner_mtu(overlay.end.mtu.min(takes), inner == Family::V6);
        let mtu = Some(fits).filter(|fits: &Mtu| *fits < network.mtu);
        objects.insert(to_end(root, network, peer.mac, to));
        objects.insert(Object::Neighbour(Neighbour { device: device(), address: via, mac: peer.mac }));
        objects.insert(Object::HostRoute(HostRoute {
            destination: *block,
            way: Way::Tunnel { device: device(), via, mtu },
        }));
        // A packet that is too large for its way is told so by the route.
        if has_shortcuts(network) && mtu.is_none() {
            // Shortcuts know neighbours of the packet's own family alone. Nobody else is one under a block's first address.
            let via = if Family::of(via) == inner { via } else { block.network() };
            objects.insert(Object::Neighbour(Neighbour { device: device(), address: via, mac: peer.mac }));
            let owner = format!("host {} on {}", peer.name, network.name);
            // Every host has the gateway's address, whoever gives out those beside it.
            let both = translates(network).zip(peer.sealed.filter(|_| peer.translates && inner == Family::V4));
            let fits = network.mtu.bytes() + Translated::MORE <= overlay.end.mtu.min(takes).bytes();
            let by =
                both.filter(|_| fits).map(|(own, to)| Translated { link: seal_name(root), own, to, vni: overlay.vni });
            let macs = Macs { own: overlay.end.mac, to: peer.mac };
            for block in without(*block, &network.gateways()) {
                let part = ShortcutPart::Far { block, via, macs, by: by.clone() };
                objects.insert(shortcut(network, part, owner.clone()));
            }
        }
    }
    objects
}

#[cfg(test)]
mod tests {
    use portolan_model::{Limit, PerFamily, Rate, Subnet};

    use super::super::sample::{container, endpoint, overlay};
    use super::super::{ContainerView, container_objects, network_objects};
    use super::*;

    fn peer(v4: Option<&str>, v6: Option<&str>, mtu: u32) -> Peer {
        let address = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        Peer {
            host: Id::from_bytes([9; 32]),
            name: "b".parse().unwrap(),
            underlay: PerFamily { v4: address(v4), v6: address(v6) },
            lan: PerFamily::default(),
            sealed: None,
            sealed_by_ipv6: false,
            translates: false,
            mac: "02:00:00:00:00:0b".parse().unwrap(),
            mtu: Mtu::new(mtu).unwrap(),
        }
    }

    fn said(objects: &Objects) -> Vec<String> {
        objects.iter().map(|(_, object)| object.to_string()).collect()
    }

    fn blocks() -> [IpNet; 2] {
        ["10.1.0.64/26", "fd01::1:0/112"].map(|net| net.parse().unwrap())
    }

    #[test]
    fn another_host_is_one_entry_and_a_route_for_each_block() {
        let network = overlay("n", 1, &["10.1.0.0/16", "fd01::/64"], "192.0.2.1");
        assert_eq!(
            said(&peer_objects("/r", &network, &peer(Some("192.0.2.2"), None, 1500), &blocks())),
            [
                "forwarding of 02:00:00:00:00:0b on `vx-000100000000` to 192.0.2.2",
                "neighbour 192.0.2.2 is 02:00:00:00:00:0b on `vx-000100000000`",
                "neighbour fe80::ff:fe00:b is 02:00:00:00:00:0b on `vx-000100000000`",
                "route of the host to 10.1.0.64/26 via 192.0.2.2 on `vx-000100000000`",
                "route of the host to fd01::1:0/112 via fe80::ff:fe00:b on `vx-000100000000`",
                "shortcut of `vx-000100000000` to 10.1.0.64/26 via 192.0.2.2 (host b on n)",
                "shortcut of `vx-000100000000` to fd01::1:0/112 via fe80::ff:fe00:b (host b on n)",
            ]
        );
    }

    /// Else what containers here ask their gateway would go to the host that gives out the addresses beside it.
    #[test]
    fn a_shortcut_to_the_gateways_block_leaves_the_gateway_out() {
        let network = overlay("n", 1, &["10.1.0.0/16"], "192.0.2.1");
        let first: IpNet = "10.1.0.0/29".parse().unwrap();
        let objects = said(&peer_objects("/r", &network, &peer(Some("192.0.2.2"), None, 1500), &[first]));
        let to: Vec<&str> = objects.iter().filter_map(|said| said.split(" to ").nth(1)?.split(' ').next()).collect();
        assert!(to.contains(&"10.1.0.0/29"), "the route is whole: {objects:?}");
        assert_eq!(&to[to.len() - 3..], ["10.1.0.0/32", "10.1.0.2/31", "10.1.0.4/30"], "{objects:?}");
    }

    #[test]
    fn a_host_behind_a_smaller_mtu_gets_smaller_packets() {
        let network = overlay("n", 1, &["10.1.0.0/16", "fd01::/64"], "192.0.2.1");
        let objects = peer_objects("/r", &network, &peer(Some("192.0.2.2"), None, 1300), &blocks());
        let routes: Vec<String> = said(&objects).split_off(3);
        assert!(routes[0].ends_with(" mtu 1250") && routes[1].ends_with(" mtu 1280"), "{routes:?}");
        assert_eq!(routes.len(), 2, "what is too large is told by the route, so there is no other way");
    }

    #[test]
    fn an_encrypted_network_goes_by_the_link_and_by_nothing_else() {
        let mut network = overlay("n", 1, &["10.1.0.0/16", "fd01::/64"], "fe80::1");
        let overlay = network.overlay.as_mut().unwrap();
        (overlay.sealed, overlay.end.mtu) = (true, Mtu::new(1440).unwrap());
        network.mtu = Mtu::new(1370).unwrap();
        let clear = peer(Some("192.0.2.2"), Some("fd00::2"), 1500);
        assert!(peer_objects("/r", &network, &clear, &blocks()).is_empty(), "it has no such link");
        let sealed = Peer { sealed: Some("fe80::2".parse().unwrap()), ..clear };
        let link = seal_name("/r");
        let vxlan = said(&network_objects("/r", &network)).into_iter().find(|said| said.starts_with("vxlan")).unwrap();
        assert!(vxlan.contains(&format!("at fe80::1 on `{link}` port")), "{vxlan}");
        assert_eq!(
            said(&peer_objects("/r", &network, &sealed, &blocks())),
            [
                format!("forwarding of 02:00:00:00:00:0b on `vx-000100000000` to fe80::2 by `{link}`"),
                "neighbour 192.0.2.2 is 02:00:00:00:00:0b on `vx-000100000000`".to_owned(),
                "neighbour fe80::2 is 02:00:00:00:00:0b on `vx-000100000000`".to_owned(),
                "neighbour fe80::ff:fe00:b is 02:00:00:00:00:0b on `vx-000100000000`".to_owned(),
                "route of the host to 10.1.0.64/26 via 192.0.2.2 on `vx-000100000000`".to_owned(),
                "route of the host to fd01::1:0/112 via fe80::2 on `vx-000100000000`".to_owned(),
                "shortcut of `vx-000100000000` to 10.1.0.64/26 via 192.0.2.2 (host b on n)".to_owned(),
                "shortcut of `vx-000100000000` to fd01::1:0/112 via fe80::2 (host b on n)".to_owned(),
            ]
        );
    }

    #[test]
    fn an_encrypted_packet_has_less_room_over_ipv6() {
        let mut network = overlay("n", 1, &["10.1.0.0/16", "fd01::/64"], "fe80::1");
        let overlay = network.overlay.as_mut().unwrap();
        (overlay.sealed, overlay.end.mtu) = (true, Mtu::new(1440).unwrap());
        network.mtu = Mtu::new(1370).unwrap();
        let sealed = Some("fe80::2".parse().unwrap());
        let peer = Peer { sealed, sealed_by_ipv6: true, ..peer(None, Some("fd00::2"), 1500) };
        let routes: Vec<String> = said(&peer_objects("/r", &network, &peer, &blocks()));
        let routes: Vec<&String> = routes.iter().filter(|said| said.starts_with("route")).collect();
        assert!(
            routes.len() == 2 && routes.iter().all(|route| route.ends_with(" mtu 1338")),
            "a multiple of 16: {routes:?}"
        );
    }

    #[test]
    fn ends_of_tunnels_answer_each_other_where_there_is_ipv6() {
        let asked = "element of `to_host`: ipv6 . \"vx-000100000000\" : goto probe (network n)";
        let neighbour = "neighbour fe80::ff:fe00:b is";
        let paths = |network: &Network| {
            let said = (
                said(&network_objects("/r", network)),
                said(&peer_objects("/r", network, &peer(Some("192.0.2.2"), None, 1500), &blocks()[..1])),
            );
            let Some(Object::Vxlan(end)) = network_objects("/r", network)
                .iter()
                .map(|(_, object)| object)
                .find(|object| matches!(object, Object::Vxlan(_)))
                .cloned()
            else {
                panic!("no end")
            };
            (end.ipv6, said.0.iter().any(|said| said == asked), said.1.iter().any(|said| said.starts_with(neighbour)))
        };
        let mut network = overlay("n", 1, &["10.1.0.0/16"], "192.0.2.1");
        assert_eq!(paths(&network), (true, true, true));
        network.mtu = Mtu::new(1279).unwrap();
        assert_eq!(paths(&network), (false, false, false), "IPv6 does not live there");
        network.mtu = Mtu::new(1450).unwrap();
        network.overlay.as_mut().unwrap().measured = false;
        assert_eq!(paths(&network), (false, false, false), "the host has none");
    }

    #[test]
    fn a_host_on_the_same_lan_is_reached_without_a_tunnel() {
        let mut network = overlay("n", 1, &["10.1.0.0/16", "fd01::/64"], "192.0.2.1");
        network.options.backend = Backend::Direct;
        network.mtu = Mtu::ETHERNET;
        let lan =
            |net: &str| Some(portolan_model::Lan { interface: "eth0".parse().unwrap(), net: net.parse().unwrap() });
        network.overlay.as_mut().unwrap().direct = PerFamily { v4: lan("192.0.2.0/24"), v6: lan("fd00::/64") };
        let with = |v4: Option<&str>, v6: Option<&str>, mtu| {
            let net = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            let mut other = peer(Some("192.0.2.2"), Some("fd00::2"), mtu);
            other.lan = PerFamily { v4: net(v4), v6: net(v6) };
            said(&peer_objects("/r", &network, &other, &blocks()))
        };
        assert_eq!(
            with(Some("192.0.2.0/24"), Some("fd00::/64"), 1400),
            [
                "element of `direct4`: \"eth0\" . 10.1.0.64/26 (host b on n)",
                "element of `direct6`: \"eth0\" . fd01::1:0/112 (host b on n)",
                "route of the host to 10.1.0.64/26 via 192.0.2.2 on `eth0` mtu 1400",
                "route of the host to fd01::1:0/112 via fd00::2 on `eth0` mtu 1400",
            ]
        );
        // It thinks so in one family alone: the other one takes the tunnel, where less fits.
        let routes = with(Some("192.0.2.0/24"), None, 1500).split_off(3);
        assert_eq!(routes[0], "route of the host to 10.1.0.64/26 via 192.0.2.2 on `eth0`");
        assert!(routes[1].ends_with("on `vx-000100000000` mtu 1450"), "{routes:?}");
        // Its LAN is another one, or as wide as this host's is not.
        for net in ["198.51.100.0/24", "192.0.2.0/25"] {
            assert!(with(Some(net), None, 1500).iter().all(|said| !said.contains("eth0")), "{net}");
        }
    }

    #[test]
    fn one_broadcast_domain_is_a_bridge_with_the_tunnels_as_a_port() {
        let mut network = overlay("n", 1, &["10.1.0.0/16", "fd01::/64"], "192.0.2.1");
        network.options.l2 = true;
        network.bridge = l2_bridge_name(network.id);
        let of_network = said(&network_objects("/r", &network));
        for wanted in [
            "element of `within`: \"br-000100000000\" . \"br-000100000000\" : goto allow (network n)",
            "element of `quiet`: \"vx-000100000000\" (network n)",
            "vxlan `vx-000100000000` vni 4097 at 192.0.2.1 port 4789 mac 02:00:00:00:00:0a mtu 1450 on bridge `br-000100000000`",
        ] {
            assert!(of_network.iter().any(|said| said == wanted), "{wanted}: {of_network:#?}");
        }
        let of_bridge = |said: &&String| said.starts_with("bridge `br-000100000000` mtu 1450");
        assert!(of_network.iter().any(|said| of_bridge(&said)), "{of_network:#?}");
        assert!(!of_network.iter().any(|said| said.starts_with("shortcut") || said.contains("unreachable")));
        // A host is where what is for all goes, and each of its containers an entry of its own.
        let other = peer(Some("192.0.2.2"), None, 1500);
        let many = "forwarding of 00:00:00:00:00:00 on `vx-000100000000` to 192.0.2.2";
        assert_eq!(said(&peer_objects("/r", &network, &other, &blocks())), [many]);
        assert!(peer_objects("/r", &network, &other, &[]).is_empty(), "it has no containers there");
        let endpoint = RemoteEndpoint {
            unwell: false,
            id: Id::from_bytes([8; 32]),
            network: network.id,
            host: other.host,
            container: Id::from_bytes([7; 32]),
            name: "far".to_owned(),
            aliases: Vec::new(),
            addresses: vec!["10.1.0.65".parse().unwrap()],
            mac: Some("02:00:00:00:00:65".parse().unwrap()),
        };
        let objects = remote_objects("/r", &network, &other, &endpoint);
        assert_eq!(
            said(&objects),
            [
                "element of `source4`: \"vx-000100000000\" . 02:00:00:00:00:65 . 10.1.0.65 (host b on n)",
                "element of `source6`: \"vx-000100000000\" . 02:00:00:00:00:65 . fe80::ff:fe00:65 (host b on n)",
                "forwarding of 02:00:00:00:00:65 on `vx-000100000000` to 192.0.2.2",
                "neighbour 10.1.0.65 is 02:00:00:00:00:65 on `br-000100000000`",
                "neighbour fe80::ff:fe00:65 is 02:00:00:00:00:65 on `br-000100000000`",
            ]
        );
        // Its host says no MAC, or the network is routed.
        let silent = RemoteEndpoint { mac: None, ..endpoint.clone() };
        assert!(remote_objects("/r", &network, &other, &silent).is_empty());
        network.options.l2 = false;
        assert!(remote_objects("/r", &network, &other, &endpoint).is_empty());
    }

    #[test]
    fn a_host_without_an_address_of_the_family_is_not_reached() {
        let network = overlay("n", 1, &["10.1.0.0/16"], "fd00::1");
        assert!(peer_objects("/r", &network, &peer(Some("192.0.2.2"), None, 1500), &blocks()).is_empty());
        assert!(!peer_objects("/r", &network, &peer(None, Some("fd00::2"), 1500), &blocks()).is_empty());
    }

    #[test]
    fn packets_take_shortcuts_where_rules_let_them_all_pass() {
        fn limit() -> Limit {
            Limit { rate: Rate::new(1_000_000).unwrap(), burst: None }
        }
        type Alter = fn(&mut Network, &mut Container, &mut Endpoint);
        let cases: [(&str, Alter, [bool; 3]); 7] = [
            ("as it is made", |_, _, _| {}, [true; 3]),
            ("containers do not reach each other", |network, _, _| network.options.icc = false, [false; 3]),
            ("switched off", |network, _, _| network.options.shortcut = Some(false), [false; 3]),
            (
                "what comes out of the container is held up",
                |_, _, endpoint| endpoint.bandwidth.out = Some(limit()),
                [true, true, false],
            ),
            (
                "what goes into it is held up, by the host end itself",
                |_, _, endpoint| endpoint.bandwidth.into = Some(limit()),
                [true; 3],
            ),
            (
                "by CNI",
                |_, container, _| drop(container.labels.insert(OF_CNI.to_owned(), "pod".to_owned())),
                [true, true, false],
            ),
            (
                "by CNI, and switched on",
                |network, container, _| {
                    container.labels.insert(OF_CNI.to_owned(), "pod".to_owned());
                    network.options.shortcut = Some(true);
                },
                [true; 3],
            ),
        ];
        for (case, alter, [table, far, near]) in cases {
            let mut network = overlay("n", 1, &["10.1.0.0/16", "fd01::/64"], "192.0.2.1");
            let mut container = container("c1", 0x11);
            let mut endpoint = endpoint(&container, &network, 0, &["10.1.0.65", "fd01::65"]);
            alter(&mut network, &mut container, &mut endpoint);
            let has = |objects: Objects, start: &str| said(&objects).iter().any(|said| said.starts_with(start));
            assert_eq!(has(network_objects("/r", &network), "shortcuts of"), table, "{case}");
            let peer = peer(Some("192.0.2.2"), None, 1500);
            assert_eq!(has(peer_objects("/r", &network, &peer, &blocks()), "shortcut of"), far, "{case}");
            let view = ContainerView { container, endpoints: vec![(endpoint, network)], publications: Vec::new() };
            let queue = if view.endpoints[0].0.bandwidth.into.is_some() { " and its queue" } else { "" };
            let by = format!(
                "shortcut of `vx-000100000000` to 10.1.0.65, fd01::65 by `pv00110001`{queue} (container c1 on n)"
            );
            assert_eq!(has(container_objects("/r", &view), &by), near, "{case}");
        }
    }

    #[test]
    fn an_encrypted_packet_is_translated_where_both_hosts_can() {
        let mut network = overlay("n", 1, &["10.1.0.0/16", "fd01::/64"], "fe92:1:2:3::1");
        let own = network.overlay.as_mut().unwrap();
        (own.sealed, own.translates, own.end.mtu) = (true, true, Mtu::new(1440).unwrap());
        network.mtu = Mtu::new(1370).unwrap();
        let sealed = Some("fe93:4:5:6::1".parse().unwrap());
        let other = Peer { sealed, translates: true, ..peer(Some("192.0.2.2"), Some("fd00::2"), 1500) };
        let link = seal_name("/r");
        let comes = format!(
            "inlet of `vx-000100000000` for what comes by `{link}` translated for fe92:1:2:3::1, vni 4097 (network n)"
        );
        let goes = format!("translated by `{link}` to fe93:4:5:6::1 (host b on n)");
        let says = |network: &Network, peer: &Peer| {
            let said = (said(&network_objects("/r", network)), said(&peer_objects("/r", network, peer, &blocks())));
            let all = said.1.iter().filter(|said| said.starts_with("shortcut of")).count();
            (said.0.contains(&comes), said.1.iter().filter(|said| said.ends_with(&goes)).count(), all)
        };
        // IPv4 alone, as far as it takes shortcuts at all.
        assert_eq!(says(&network, &other), (true, 1, 2));
        assert_eq!(says(&network, &Peer { translates: false, ..other.clone() }), (true, 0, 2), "an older one");
        type Alter = fn(&mut Network);
        let alters: [(&str, Alter, usize); 4] = [
            ("this host cannot", |network| network.overlay.as_mut().unwrap().translates = false, 2),
            ("it is not encrypted", |network| network.overlay.as_mut().unwrap().sealed = false, 0),
            ("containers are apart", |network| network.options.icc = false, 0),
            ("switched off", |network| network.options.shortcut = Some(false), 0),
        ];
        for (case, alter, all) in alters {
            let mut network = network.clone();
            alter(&mut network);
            let (comes, goes, there) = says(&network, &other);
            assert!(!comes && goes == 0 && (there == all || case == "it is not encrypted"), "{case}: {there}");
        }
    }

    #[test]
    fn what_comes_out_of_the_tunnels_reaches_containers_of_the_network_alone() {
        let mut network = overlay("n", 1, &["10.1.0.0/16"], "192.0.2.1");
        let block = Subnet { range: Some("10.1.0.64/26".parse().unwrap()), ..network.subnets[0].clone() };
        network.subnets = vec![block];
        let container = container("c1", 0x11);
        let endpoints = vec![(endpoint(&container, &network, 0, &["10.1.0.65"]), network.clone())];
        let of_network = said(&network_objects("/r", &network));
        for wanted in [
            "vxlan `vx-000100000000` vni 4097 at 192.0.2.1 port 4789 mac 02:00:00:00:00:0a mtu 1450",
            "element of `leave`: ipv4 . \"vx-000100000000\" : drop (network n)",
            "element of `enter`: ipv6 . \"vx-000100000000\" : drop (network n)",
            "element of `to_host`: ipv4 . \"vx-000100000000\" : drop (network n)",
            "element of `checked`: ipv4 . \"vx-000100000000\" (network n)",
            "route of the host: 10.1.0.0/16 is unreachable",
        ] {
            assert!(of_network.iter().any(|said| said == wanted), "{wanted}: {of_network:#?}");
        }
        let of_container =
            said(&container_objects("/r", &ContainerView { container, endpoints, publications: Vec::new() }));
        for wanted in [
            "element of `within`: \"vx-000100000000\" . \"pv00110001\" : goto allow (container c1 on n)",
            "element of `behind4`: \"pv00110001\" . 10.1.0.65 (container c1 on n)",
            "route of the host to 10.1.0.65 by `pv00110001` from 10.1.0.1",
        ] {
            assert!(of_container.iter().any(|said| said == wanted), "{wanted}: {of_container:#?}");
        }
    }
}
