//! Frames that a container sends: as router, as DHCP server, as somebody else, and such as no filter looks into.

use std::net::IpAddr;

use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::Family::{V4, V6};
use portolan_kernel::rtnl::route;
use portolan_lab::Lab;

use crate::common::{
    Container, World, arp_frame, icmp6_frame, interface, ip_frame, octets, pick, route_socket, udp_frame,
};
use crate::forge::{
    ALL_NODES_MAC, BROADCAST, Mac, all_nodes, behind_options, fragments4, fragments6, frame, hidden_in_fragments6,
    neighbour_advertisement, redirect4, redirect6, router_advertisement, source_routed, tagged,
};
use crate::row::Row;
use crate::segment::{Party, Segment, is_about, plain_hosts};

/// What is tried, and whether it came off.
pub(crate) type Attack = (u8, &'static str, fn(&Segment<'_>) -> bool);

const MARK: &[u8] = b"from nobody";

/// A MAC of nobody.
const MADE_UP: Mac = [2, 0x66, 0x66, 0x66, 0x66, 0x66];

const C_TAG: u16 = 0x8100;
const S_TAG: u16 = 0x88a8;

pub(crate) const ATTACKS: [Attack; 52] = [
    (1, "router advertisement to all", |s| advertises(s, &[router_advertisement(own(s))])),
    (1, "router advertisement to the host", |s| {
        s.succeeds(|| {
            s.send(&[router_advertisement(own(s))]);
            s.gateway.routes_by(s.attacker.link_local())
        })
    }),
    (1, "router advertisement behind hop-by-hop and destination options", |s| {
        advertises(s, &[behind_options(&router_advertisement(own(s)))])
    }),
    (1, "router advertisement in two fragments, to one that puts such together", |s| {
        advertises(s, &fragments6(&router_advertisement(own(s)), 8))
    }),
    (1, "the same behind destination options, fragmented", |s| {
        advertises(s, &fragments6(&behind_options(&router_advertisement(own(s))), 16))
    }),
    (1, "fragments of which the first does not show the type of the router advertisement", |s| {
        s.arrives(&hidden_in_fragments6(&router_advertisement(own(s)), false), &[0x66, 0x66, 58, 1])
    }),
    (1, "fragments of which the first does not even tell that it is ICMPv6", |s| {
        s.arrives(&hidden_in_fragments6(&router_advertisement(own(s)), true), &[0x66, 0x66, 60, 1])
    }),
    (1, "router advertisement with a priority tag (VLAN 0)", |s| {
        advertises(s, &[tagged(&router_advertisement(own(s)), &[(C_TAG, 0)])])
    }),
    (1, "router advertisement with two priority tags", |s| {
        let twice = tagged(&router_advertisement(own(s)), &[(S_TAG, 0), (C_TAG, 0)]);
        s.arrives(&[twice], &router_advertisement(own(s))[54..])
    }),
    (1, "router advertisement as the gateway", |s| {
        let forged = router_advertisement((s.attacker.mac, s.gateway.link_local()));
        s.arrives(std::slice::from_ref(&forged), &forged[12..])
    }),
    (1, "ICMPv6 redirect as the gateway", |s| {
        let (by, about) = ((s.attacker.mac, s.attacker.link_local()), pick(V6, "", "2001:db8:99::1"));
        let ips = (s.gateway.link_local(), s.victim.v6);
        s.diverts(about, &[redirect6((s.attacker.mac, s.victim.mac), ips, about, by)])
    }),
    (1, "ICMP redirect as the gateway", |s| {
        let about = pick(V4, "198.51.100.9", "");
        let macs = (s.attacker.mac, s.victim.mac);
        s.diverts(about, &[redirect4(macs, (s.gateway.v4, s.victim.v4), about, s.attacker.v4)])
    }),
    (1, "ICMP redirect to the host, as the container that it routes by", |s| {
        let about = pick(V4, "198.51.101.9", "");
        let macs = (s.attacker.mac, s.gateway.mac);
        route_by(&s.gateway, "198.51.101.0", 24, s.other.v4);
        s.diverts_host(about, &redirect4(macs, (s.other.v4, s.gateway.v4), about, s.attacker.v4), &s.attacker)
    }),
    (1, "ICMPv6 redirect to the host, as the container that it routes by", |s| {
        let (by, about) = ((s.attacker.mac, s.attacker.link_local()), pick(V6, "", "2001:db8:98::1"));
        let ips = (s.other.link_local(), s.gateway.v6);
        route_by(&s.gateway, "2001:db8:98::", 64, s.other.link_local());
        s.diverts_host(about, &redirect6((s.attacker.mac, s.gateway.mac), ips, about, by), &s.attacker)
    }),
    (1, "ICMP redirect to the host, from the own address, to another container", |s| {
        let about = pick(V4, "198.51.102.9", "");
        let macs = (s.attacker.mac, s.gateway.mac);
        route_by(&s.gateway, "198.51.102.0", 24, s.attacker.v4);
        s.diverts_host(about, &redirect4(macs, (s.attacker.v4, s.gateway.v4), about, s.victim.v4), &s.victim)
    }),
    (1, "ICMPv6 redirect to the host, from the own address, to another container", |s| {
        let (by, about) = ((s.victim.mac, s.victim.link_local()), pick(V6, "", "2001:db8:97::1"));
        let ips = (s.attacker.link_local(), s.gateway.v6);
        route_by(&s.gateway, "2001:db8:97::", 64, s.attacker.link_local());
        s.diverts_host(about, &redirect6((s.attacker.mac, s.gateway.mac), ips, about, by), &s.victim)
    }),
    (1, "DHCP offer", |s| s.is_heard(&s.victim.socket(V4, 68), &[offer4(s, 67)])),
    (1, "DHCP offer from another port than a server's", |s| s.is_heard(&s.victim.socket(V4, 68), &[offer4(s, 1067)])),
    (1, "DHCP offer to the host", |s| s.is_heard(&s.gateway.socket(V4, 68), &[offer4(s, 67), offer4(s, 1067)])),
    (1, "DHCPv6 answer", |s| s.is_heard(&s.victim.socket(V6, 546), &[answer6(s, to_victim(s), 547)])),
    (1, "DHCPv6 answer from another port than a server's", |s| {
        s.is_heard(&s.victim.socket(V6, 546), &[answer6(s, to_victim(s), 1547)])
    }),
    (1, "DHCPv6 answer to the host", |s| {
        let to = (s.gateway.mac, s.gateway.link_local());
        s.is_heard(&s.gateway.socket(V6, 546), &[answer6(s, to, 547), answer6(s, to, 1547)])
    }),
    (17, "IPv4 from another container's address", |s| spoofs(s, s.attacker.mac, s.other.v4)),
    (17, "IPv6 from another container's address", |s| spoofs(s, s.attacker.mac, s.other.v6)),
    (17, "IPv4 from the gateway's address", |s| spoofs(s, s.attacker.mac, s.gateway.v4)),
    (17, "IPv6 from the gateway's address", |s| spoofs(s, s.attacker.mac, s.gateway.v6)),
    (17, "IPv4 from an address of nobody", |s| spoofs(s, s.attacker.mac, pick(V4, "192.0.2.66", ""))),
    (17, "IPv6 from an address of nobody", |s| spoofs(s, s.attacker.mac, pick(V6, "", "2001:db8::66"))),
    (17, "another container's MAC and address", |s| spoofs(s, s.other.mac, s.other.v4)),
    (17, "a MAC of nobody", |s| spoofs(s, MADE_UP, s.attacker.v4)),
    (17, "ARP answer for another container", |s| claims(s, s.other.v4)),
    (17, "ARP answer for the gateway", |s| claims(s, s.gateway.v4)),
    (17, "gratuitous ARP for the gateway, to all", |s| {
        let (mac, ip) = (s.attacker.mac, s.gateway.v4);
        s.poisons(ip, &[arp_frame((mac, BROADCAST), 1, (mac, ip), ([0; 6], ip))])
    }),
    (17, "neighbour advertisement of another container's address, from the own one", |s| {
        advertises_neighbour(s, s.attacker.v6, s.other.v6)
    }),
    (17, "neighbour advertisement of the gateway's address, from the own one", |s| {
        advertises_neighbour(s, s.attacker.link_local(), s.gateway.v6)
    }),
    (17, "neighbour advertisement of another container's address, from that", |s| {
        advertises_neighbour(s, s.other.v6, s.other.v6)
    }),
    (17, "neighbour advertisement of another container's address, in fragments, to one that puts such together", |s| {
        let message = neighbour_advertisement(s.other.v6, s.attacker.mac);
        let whole = icmp6_frame((s.attacker.mac, s.victim.mac), (s.attacker.v6, s.victim.v6), &message);
        s.poisons(s.other.v6, &fragments6(&whole, 8))
    }),
    (17, "claim to another container's address while that is looked for (DAD)", |s| {
        let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &octets(s.other.v6)].concat();
        let nobody = pick(V6, "", "::");
        let asked = icmp6_frame((s.attacker.mac, ALL_NODES_MAC), (nobody, all_nodes()), &message);
        s.arrives(&[asked], &is_about(s.other.v6))
    }),
    (17, "fragments of IPv4 from another's address", |s| {
        s.arrives(&fragments4(&spoofed(s, s.attacker.mac, s.other.v4), 8), MARK)
    }),
    (17, "fragments of IPv6 from another's address", |s| {
        s.arrives(&fragments6(&spoofed(s, s.attacker.mac, s.other.v6), 8), MARK)
    }),
    (17, "IPv4 with a source route from another's address", |s| {
        s.arrives(&[source_routed(&spoofed(s, s.attacker.mac, s.other.v4), s.victim.v4)], MARK)
    }),
    (0, "another's address behind a VLAN tag", |s| {
        s.arrives(&[tagged(&spoofed(s, s.attacker.mac, s.other.v4), &[(C_TAG, 5)])], MARK)
    }),
    (0, "another's address behind a priority tag", |s| {
        s.arrives(&[tagged(&spoofed(s, s.attacker.mac, s.other.v6), &[(C_TAG, 0)])], MARK)
    }),
    (0, "another's address behind two tags (QinQ)", |s| {
        s.arrives(&[tagged(&spoofed(s, s.attacker.mac, s.other.v4), &[(S_TAG, 5), (C_TAG, 6)])], MARK)
    }),
    (0, "another's address in PPPoE", |s| {
        let packet = [&[0x11, 0, 0, 1, 0, 60, 0, 0x21][..], &spoofed(s, s.attacker.mac, s.other.v4)[14..]].concat();
        odd(s, s.victim.mac, 0x8864, &packet)
    }),
    (0, "IEEE 802.3 with LLC and SNAP, which carries IPv4", |s| {
        let packet = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &spoofed(s, s.attacker.mac, s.other.v4)[14..]].concat();
        odd(s, s.victim.mac, packet.len() as u16, &packet)
    }),
    (0, "an ethertype of nobody", |s| odd(s, s.victim.mac, 0x88b5, MARK)),
    (0, "LLDP to one container", |s| odd(s, s.victim.mac, 0x88cc, MARK)),
    (0, "a BPDU that would make the sender root of a spanning tree, to the others", |s| {
        let id = [0, 0, 2, 0x66, 0x66, 0x66, 0x66, 0x66];
        let times = [0, 0, 20, 0, 2, 0, 15, 0];
        let bpdu = [&[0x42, 0x42, 3, 0, 0, 0, 0, 0][..], &id, &[0; 4], &id, &[0x80, 1], &times, MARK].concat();
        odd(s, [1, 0x80, 0xc2, 0, 0, 0], bpdu.len() as u16, &bpdu)
    }),
    (0, "IGMP query of a would-be multicast querier", |s| {
        let query = [0x11, 100, 0xee, 0x9b, 0, 0, 0, 0];
        let ips = (s.attacker.v4, "224.0.0.1".parse().unwrap());
        let query = ip_frame((s.attacker.mac, [1, 0, 0x5e, 0, 0, 1]), ips, 2, &query);
        s.arrives(std::slice::from_ref(&query), &query[14..])
    }),
    (0, "MLD query of a would-be multicast querier", |s| {
        let query = [&[130, 0, 0, 0, 0, 100, 0, 0][..], &[0; 16]].concat();
        let query = icmp6_frame((s.attacker.mac, ALL_NODES_MAC), (s.attacker.link_local(), all_nodes()), &query);
        s.arrives(std::slice::from_ref(&query), &query[14..])
    }),
    (0, "the same behind hop-by-hop and destination options", |s| {
        let query = [&[130, 0, 0, 0, 0, 100, 0, 0][..], &[0; 16]].concat();
        let query = icmp6_frame((s.attacker.mac, ALL_NODES_MAC), (s.attacker.link_local(), all_nodes()), &query);
        let query = behind_options(&query);
        s.arrives(std::slice::from_ref(&query), &query[14..])
    }),
];

fn own(s: &Segment<'_>) -> (Mac, IpAddr) {
    (s.attacker.mac, s.attacker.link_local())
}

/// The victim takes the attacker for its router.
fn advertises(s: &Segment<'_>, frames: &[Vec<u8>]) -> bool {
    s.succeeds(|| {
        s.send(frames);
        s.victim.routes_by(s.attacker.link_local())
    })
}

fn offer4(s: &Segment<'_>, port: u16) -> Vec<u8> {
    let to = "255.255.255.255".parse().unwrap();
    udp_frame((s.attacker.mac, BROADCAST), (s.attacker.v4, to), (port, 68), b"offer")
}

fn answer6(s: &Segment<'_>, to: (Mac, IpAddr), port: u16) -> Vec<u8> {
    udp_frame((s.attacker.mac, to.0), (s.attacker.link_local(), to.1), (port, 546), b"reply")
}

fn to_victim(s: &Segment<'_>) -> (Mac, IpAddr) {
    (s.victim.mac, s.victim.link_local())
}

fn spoofed(s: &Segment<'_>, mac: Mac, ip: IpAddr) -> Vec<u8> {
    let to = if ip.is_ipv4() { s.victim.v4 } else { s.victim.v6 };
    udp_frame((mac, s.victim.mac), (ip, to), (4000, 4002), MARK)
}

fn spoofs(s: &Segment<'_>, mac: Mac, ip: IpAddr) -> bool {
    s.arrives(&[spoofed(s, mac, ip)], MARK)
}

fn claims(s: &Segment<'_>, ip: IpAddr) -> bool {
    let (mac, victim) = (s.attacker.mac, s.victim.mac);
    s.poisons(ip, &[arp_frame((mac, victim), 2, (mac, ip), (victim, s.victim.v4))])
}

fn advertises_neighbour(s: &Segment<'_>, from: IpAddr, about: IpAddr) -> bool {
    let macs = (s.attacker.mac, s.victim.mac);
    s.poisons(about, &[icmp6_frame(macs, (from, s.victim.v6), &neighbour_advertisement(about, s.attacker.mac))])
}

fn odd(s: &Segment<'_>, to: Mac, kind: u16, payload: &[u8]) -> bool {
    s.arrives(&[frame((s.attacker.mac, to), kind, payload)], MARK)
}

/// Has the victim believe everything, and know a far network behind the gateway's link-local address.
pub(crate) fn prepare(segment: &Segment<'_>) {
    segment.victim.trust_everything();
    route_by(&segment.victim, "2001:db8:99::", 64, segment.gateway.link_local());
}

/// Has `party` send by `gateway` what is for a far network.
fn route_by(party: &Party<'_>, net: &str, prefix_len: u8, gateway: IpAddr) {
    let mut socket = route_socket(party);
    let mut batch = Batch::new();
    let route = route::Route {
        gateway: Some(gateway),
        oif: Some(interface(party, &party.interface).unwrap().index),
        ..route::Route::new(net.parse().unwrap(), prefix_len)
    };
    route::add(&mut batch, &route);
    socket.transact(&batch).unwrap();
}

/// Makes the attacks in turn: which came off.
pub(crate) fn attempt(segment: &Segment<'_>, attacks: &[Attack]) -> Vec<&'static str> {
    attacks.iter().filter(|(_, _, run)| run(segment)).map(|(_, name, _)| *name).collect()
}

pub(crate) fn three(world: &World, network: &str) -> [Container; 3] {
    ["bad", "victim", "other"].map(|name| world.container(&format!("{name}-{network}"), &["--network", network]))
}

/// Attacks on one segment.
pub(crate) fn rows() -> Option<Vec<Row>> {
    let world = World::or_skip("security-wire")?;
    let lab = Lab::or_skip("security-plain")?;
    let (hosts, _lan) = plain_hosts(&lab);
    let names = |attacks: &[Attack]| attacks.iter().map(|(_, name, _)| *name).collect::<Vec<_>>();
    let control = || {
        let plain = Segment::plain(&hosts);
        prepare(&plain);
        plain.gateway.trust_everything();
        attempt(&plain, &ATTACKS)
    };
    let here = || {
        world.network("web", &[]);
        let containers = three(&world, "web");
        let segment = Segment::of_network(&world, "web", &containers);
        prepare(&segment);
        let successes = attempt(&segment, &ATTACKS);
        world.verify();
        successes
    };
    let (came_off, here) = std::thread::scope(|scope| {
        let control = scope.spawn(control);
        (control.join().unwrap(), here())
    });
    assert!(here.is_empty(), "these succeed: {here:#?}");
    let in_vain: Vec<_> = names(&ATTACKS).into_iter().filter(|name| !came_off.contains(name)).collect();
    assert!(in_vain.is_empty(), "these prove nothing, they fail on a plain bridge as well: {in_vain:#?}");
    let row = |(number, attack, _): Attack| Row {
        number,
        attack,
        control: "plain Linux bridge: succeeds",
        outcome: "dropped at the port".into(),
    };
    Some(ATTACKS.map(row).into())
}
