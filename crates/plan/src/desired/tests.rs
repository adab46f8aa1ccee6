use std::collections::HashSet;

use portolan_model::{Bandwidth, Burst, DhcpLease, DhcpServer, Driver, Ipam, PerFamily, RouteAction};

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

/// The first port, which is on a bridge.
fn on_bridge(objects: &Objects) -> &BridgePort {
    match &ports(objects)[0].place {
        HostEnd::Bridge(port) => port,
        HostEnd::Routed(routed) => panic!("on no bridge: {routed:?}"),
    }
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
    assert_eq!(elements(&objects, Set::Within), ["br-n . br-n : goto allow"]);
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
    assert_eq!(elements(&objects, Set::Enter), ["ipv4 . br-n : goto enter_nat", "ipv6 . br-n : goto allow"]);
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
    assert!(on_bridge(&container_objects("/r", &view(&[&closed], &[]))).isolated);
    let open = network("n", 1, &DUAL, &[]);
    assert!(!on_bridge(&container_objects("/r", &view(&[&open], &[]))).isolated);
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
    assert!(on_bridge(&objects).locked);
}

#[test]
fn guard_off_lets_any_frame_pass() {
    let objects = container_objects("/r", &view(&[&network("n", 1, &DUAL, &[("guard", "false")])], &[]));
    assert_eq!(elements(&objects, Set::Unguarded), ["pv00110001"]);
    assert_eq!(elements(&objects, Set::Source(Family::V4)), [""; 0]);
    assert_eq!(elements(&objects, Set::Source(Family::V6)), [""; 0]);
    assert!(!on_bridge(&objects).locked);
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
    let network = network("n", 1, &["172.20.0.0/24", "172.20.1.0/24-", "172.20.2.0/24", "fd00::/64", "fd01::/64"], &[]);
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
    assert_eq!(elements(&objects, Set::AnyPort(Family::V4)), ["tcp . 80 : 172.20.0.2 . 80"], "to the first address");
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
    let settings = [Setting { path: "net/ipv4/ip_forward".to_owned(), value: "1".to_owned(), before: "0".to_owned() }];
    let objects = base_objects(&Firewall::nftables("t"), &settings, &[(Family::V4, "eth0".parse().unwrap())]);
    assert_eq!(elements(&objects, Set::Closed), ["ipv4 . eth0"]);
    assert!(objects.find(&Key::Ruleset(Firewall::nftables("t"))).is_some());
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
    assert_eq!(owners, HashSet::from(["container c1", "container c1 on web", "container c1 127.0.0.1:80:8080/tcp"]));
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
        Field::Prefix(net) => crate::FieldType::Prefix(Family::of(net.addr())),
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
    let macs: HashSet<Mac> = (0..100_000).map(|n: u32| generated_mac(id(1), IpAddr::from(n.to_be_bytes()))).collect();
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
    assert_eq!(gateway_mac(id(1)).octets()[0] & 0b11, 0b10);
    assert_ne!(gateway_mac(id(1)), gateway_mac(id(2)));
}

#[test]
fn a_lease_gives_address_route_and_names() {
    let lan = Network {
        driver: Driver::Macvlan,
        ipam: Ipam::Dhcp,
        speaks: PerFamily { v4: true, v6: true },
        ..network("lan", 1, &[], &[("metric", "7")])
    };
    let mut view = view(&[&lan], &[]);
    let before = container_objects("/r", &view);
    assert!(interfaces(&before)[0].addresses.is_empty(), "up, until there is one");
    assert_eq!(interfaces(&before)[0].routers, Some(Routers { default_route: true, metric: Some(7) }));
    let lease = DhcpLease {
        address: "10.0.1.50/24".parse().unwrap(),
        gateway: Some([10, 0, 1, 2].into()),
        routes: vec![StaticRoute {
            destination: "10.9.0.0/16".parse().unwrap(),
            action: RouteAction::Via([10, 0, 1, 7].into()),
            metric: None,
        }],
        dns: vec![[10, 0, 1, 53].into()],
        domains: vec!["lan.example".to_owned()],
        server: DhcpServer::V4([10, 0, 1, 2].into()),
        obtained: 0,
        renew_after: 60,
        rebind_after: 105,
        valid_for: 120,
    };
    view.endpoints[0].0.set_lease(Family::V4, Some(lease.clone()));
    let objects = container_objects("/r", &view);
    assert_eq!(interfaces(&objects)[0].addresses, [lease.address].into());
    let routes = default_routes(&view);
    assert_eq!((routes.len(), routes[0].gateway, routes[0].metric), (1, [10, 0, 1, 2].into(), Some(7)));
    assert!(objects.iter().any(|(_, object)| matches!(object, Object::Route(route) if route.route.metric == Some(7))));
    assert_eq!(name_servers(&view), Vec::<IpAddr>::new(), "its router answers no names of ours");
    assert_eq!(leased_names(&view), (lease.dns, lease.domains));
    view.endpoints[0].1.options.default_route = false;
    assert_eq!(default_routes(&view), []);
}

#[test]
fn no_rule_of_ours_concerns_the_bridge_of_somebody_else() {
    let objects = |options: &[(&str, &str)]| {
        container_objects("/r", &view(&[&Network { ipam: Ipam::None, ..network("n", 1, &[], options) }], &[]))
    };
    let other = objects(&[("mode", "unmanaged"), ("bridge", "br0")]);
    nothing_else(&other, &[]);
    assert!(!on_bridge(&other).ruled);
    let ours = objects(&[]);
    assert!(on_bridge(&ours).ruled);
    assert_eq!(elements(&ours, Set::Unguarded).len(), 1);
}

fn shapers(objects: &Objects) -> Vec<&Shaper> {
    objects.iter().filter_map(|(_, o)| if let Object::Shaper(shaper) = o { Some(shaper) } else { None }).collect()
}

/// An endpoint's limits as objects; of networks of 1500 bytes.
fn limited(into: Option<(&str, Option<&str>)>, out: Option<(&str, Option<&str>)>) -> Objects {
    let limit = |(rate, burst): (&str, Option<&str>)| Limit {
        rate: rate.parse().unwrap(),
        burst: burst.map(|burst| burst.parse::<Burst>().unwrap()),
    };
    let mut view = view(&[&network("n", 1, &DUAL, &[])], &[]);
    view.endpoints[0].0.bandwidth = Bandwidth { into: into.map(limit), out: out.map(limit) };
    container_objects("/r", &view)
}

#[test]
fn limits_stand_on_the_host_and_come_before_the_interface_is_up() {
    assert_eq!(shapers(&limited(None, None)), Vec::<&Shaper>::new());
    let objects = limited(Some(("100mbit", None)), Some(("1gbit", Some("1mb"))));
    let texts: Vec<String> = crate::diff(&objects, &Objects::new()).iter().map(ToString::to_string).collect();
    let of = |part: &str| texts.iter().position(|text| text.contains(part)).unwrap_or_else(|| panic!("{texts:#?}"));
    let end = shapers(&objects)[0].host_end.clone();
    let through = shaper_name(&end);
    let into = of(&format!("create limit of 100mbit in burst 125000b at `{end}`"));
    let out = of(&format!("create limit of 1gbit out burst 1mb at `{end}` through `{through}`"));
    assert!(of("create veth") < into && into < out && out < of("create interface"), "{texts:#?}");
    assert!(through.as_str().len() == 15 && through.as_str().starts_with("pb"));
}

#[test]
fn a_changed_limit_is_one_step_and_one_taken_off_another() {
    let was = limited(Some(("100mbit", None)), Some(("1gbit", None)));
    let now = limited(Some(("200mbit", None)), None);
    let steps: Vec<String> = crate::diff(&now, &was).iter().map(ToString::to_string).collect();
    assert_eq!(steps.len(), 2, "{steps:?}");
    assert!(steps[0].starts_with("delete limit of 1gbit out burst 1250000b at "), "{steps:?}");
    assert!(steps[1].starts_with("change limit of 100mbit in burst 125000b at "), "{steps:?}");
    assert!(steps[1].contains(" into limit of 200mbit in burst 250000b at "), "{steps:?}");
}

#[test]
fn a_bucket_holds_a_frame_and_fits_the_kernels_numbers() {
    for (rate, burst, wanted) in [
        ("100mbit", None, (125_000, 750_000)),
        ("1mbit", None, (3036, 3036 + 15_180)),
        ("8bit", None, (240, 240 + 15_180)),
        ("100mbit", Some("1"), (1518, 1518 + 625_000)),
        ("100mbit", Some("4194303kb"), (3_000_000_000, 3_000_625_000)),
        ("1kbit", Some("4194303kb"), (30_000, 45_180)),
        ("10tbit", None, (u32::MAX, u32::MAX)),
    ] {
        let objects = limited(Some((rate, burst)), None);
        let shaper = shapers(&objects)[0];
        assert_eq!((shaper.burst, shaper.queue), wanted, "{rate} {burst:?}");
    }
}

/// Whoever takes interfaces away sets them up as well.
#[test]
fn what_is_handed_over_is_made_on_the_host_and_not_looked_for() {
    let lan = Network { driver: Driver::Macvlan, ..network("lan", 1, &["10.0.1.0/24"], &[]) };
    let routed = sample::ptp("routed", 2, &["10.1.0.0/24"], &[]);
    let mut view = view(&[&lan, &routed], &[]);
    let child = |objects: &Objects| {
        let mut all = objects.iter().filter_map(|(_, object)| match object {
            Object::Child(child) => Some(child.handed),
            _ => None,
        });
        (all.next(), all.next())
    };
    assert_eq!(child(&container_objects("/r", &view)), (Some(false), None));
    view.container.kind = ContainerKind::Handed;
    let objects = container_objects("/r", &view);
    assert_eq!(child(&objects), (Some(true), None));
    let inside = objects.iter().filter(|(_, object)| object.sandbox_path().is_some()).count();
    assert_eq!(inside, 1, "the interface alone, and nothing in it: {objects:?}");
    assert!(objects.iter().any(|(_, object)| matches!(object, Object::Port(_))), "the routed one has its pair");
}
