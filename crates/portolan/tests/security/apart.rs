//! Networks that are to be without something: without IPv6, without each other, without a way out.

use std::fs;
use std::net::IpAddr;

use portolan_kernel::rtnl::Family::{self, V4};
use portolan_kernel::rtnl::addr;
use portolan_lab::eventually;
use portolan_lab::server::UdpServer;

use crate::common::{
    Container, FAMILIES, LONG, SHORT, Wire, World, addresses, at, holds, host_ip, icmp6_frame, interface, octets, pick,
    udp_frame,
};
use crate::forge::{ALL_NODES_MAC, BROADCAST, Mac, all_nodes, router_advertisement};
use crate::row::Row;
use crate::segment::Segment;
use crate::wire::{prepare, three};

/// Goes to whoever is at the other end of the cable, by no bridge (IEEE 802.1Q table 8-1): of LLDP.
const NEAREST: Mac = [1, 0x80, 0xc2, 0, 0, 0x0e];

pub(crate) fn rows() -> Option<Vec<Row>> {
    let world = World::or_skip("security-apart")?;
    world.network("web", &[]);
    world.network("four", &["--ipv6=false"]);
    world.network("open", &["--opt", "guard=false"]);
    world.network("quiet", &["--opt", "icc=false"]);
    let [web, four, open, quiet] = ["web", "four", "open", "quiet"].map(|network| three(&world, network));
    world.verify();
    let mut rows =
        [unguarded(&world, &open), without_ipv6(&world, &four, &web), kept_apart(&world, &quiet, &web)].concat();
    // Last, for its control takes the rules away.
    rows.push(past_the_bridge(&world));
    Some(rows)
}

/// Whether the advertisement makes the attacker a router of the victim or the host.
fn is_router_of_any(segment: &Segment<'_>) -> bool {
    let attacker = segment.attacker.link_local();
    segment.succeeds(|| {
        segment.send(&[router_advertisement((segment.attacker.mac, attacker))]);
        [&segment.victim, &segment.gateway].into_iter().any(|party| party.routes_by(attacker))
    })
}

/// The second line of defence: nobody believes it.
fn unguarded(world: &World, open: &[Container; 3]) -> Vec<Row> {
    let segment = Segment::of_network(world, "open", open);
    let advertisement = router_advertisement((segment.attacker.mac, segment.attacker.link_local()));
    assert!(segment.arrives(std::slice::from_ref(&advertisement), &advertisement[54..]), "the guard is on");
    assert!(!is_router_of_any(&segment));
    prepare(&segment);
    assert!(is_router_of_any(&segment), "the advertisement is not one");
    vec![Row {
        number: 1,
        attack: "router advertisement where the guard is off (`guard=false`)",
        control: "a container that sets its `accept_ra`: succeeds",
        outcome: "arrives, and neither containers nor the host believe it".into(),
    }]
}

/// What `of` answers who asks it over IPv6 as its bridge would.
fn answers_ipv6(world: &World, network: &str, of: &Container) -> bool {
    let wire = Wire::on(&world.h, &of.only().host_end);
    let bridge = world.json(&["network", "inspect", network])[0]["Bridge"].as_str().unwrap().to_owned();
    let (bridge, mac) = (interface(&world.h, &bridge).unwrap().mac.unwrap(), of.only().mac);
    let (asker, asked) = (IpAddr::V6(addr::link_local(bridge)), IpAddr::V6(addr::link_local(mac)));
    let question = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &octets(asked), &[1, 1], &bridge].concat();
    for message in [&question[..], &[128, 0, 0, 0, 0, 1, 0, 1]] {
        wire.send(&icmp6_frame((bridge, ALL_NODES_MAC), (asker, all_nodes()), message));
    }
    wire.sees(SHORT, |frame| frame[6..12] == mac && frame[12..14] == [0x86, 0xdd])
}

/// The IPv6 groups that its interface has joined, but for ff01::1 and ff02::1, which the kernel notes for every interface.
fn groups(of: &Container) -> usize {
    let text = of.host.enter(|| fs::read_to_string("/proc/thread-self/net/igmp6").unwrap_or_default());
    let of_eth0 = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    of_eth0.filter(|line| line[1] == "eth0" && !line[2].ends_with("0000000000000001")).count()
}

fn without_ipv6(world: &World, four: &[Container; 3], web: &[Container; 3]) -> Vec<Row> {
    let has_ipv6 = |of: &Container| addresses(of, "eth0").iter().any(IpAddr::is_ipv6);
    assert!(!has_ipv6(&four[1]) && has_ipv6(&web[1]));
    assert!(groups(&four[1]) == 0 && groups(&web[1]) > 0);
    assert!(!answers_ipv6(world, "four", &four[1]));
    assert!(answers_ipv6(world, "web", &web[1]));
    let segment = Segment::of_network(world, "four", four);
    segment.victim.trust_everything();
    assert!(!is_router_of_any(&segment));
    vec![
        Row {
            number: 1,
            attack: "router advertisement on a network without IPv6, to a container that switched its own on",
            control: "plain Linux bridge: succeeds",
            outcome: "dropped at the port".into(),
        },
        Row {
            number: 12,
            attack: "looking for an IPv6 address or group of a container of `--ipv6=false`",
            control: "a network of both families: it has them",
            outcome: "none".into(),
        },
        Row {
            number: 12,
            attack: "neighbour solicitation and echo request, by IPv6 to such a container",
            control: "a network of both families: answered",
            outcome: "no answer".into(),
        },
    ]
}

/// Datagrams from the first to the second, by every way there is on layer 2: which arrive.
fn ways_in(segment: &Segment<'_>, into: &Wire, out: &Wire, family: Family) -> usize {
    let (from, to) = (&segment.attacker, &segment.victim);
    let ips = (from.ip(family), to.ip(family));
    let ways = [
        (to.mac, "straight"),
        (segment.gateway.mac, "by the gateway"),
        (BROADCAST, "to all"),
        (ALL_NODES_MAC, "to a group"),
    ];
    for (mac, text) in ways {
        out.send(&udp_frame((from.mac, mac), ips, (4000, 4002), text.as_bytes()));
    }
    let mut seen = Vec::new();
    into.sees(SHORT, |frame| {
        seen.extend(
            ways.iter().map(|(_, text)| *text).filter(|text| frame[6..12] != to.mac && holds(frame, text.as_bytes())),
        );
        false
    });
    seen.sort_unstable();
    seen.dedup();
    seen.len()
}

fn kept_apart(world: &World, quiet: &[Container; 3], web: &[Container; 3]) -> Vec<Row> {
    for (network, containers, expected) in [("quiet", quiet, 0), ("web", web, 4)] {
        let segment = Segment::of_network(world, network, containers);
        let (into, out) = (Wire::on(&containers[1], "eth0"), Wire::on(&containers[0], "eth0"));
        for family in FAMILIES {
            assert_eq!(ways_in(&segment, &into, &out, family), expected, "{network}, {family:?}");
        }
    }
    vec![Row {
        number: 17,
        attack: "`icc=false`: frames straight to another container's MAC, by the gateway's, to all, and to a group",
        control: "`icc=true`: all four arrive",
        outcome: "none arrives".into(),
    }]
}

/// What is for the nearest bridge no bridge forwards: the kernel hands it to the port itself, past the guard of the bridge.
fn past_the_bridge(world: &World) -> Row {
    world.network("vault", &["--internal"]);
    let [bad, ..] = three(world, "vault");
    let services = [9990, 9991].map(|port| UdpServer::start(&world.h, at(host_ip(V4), port), "host").unwrap());
    let heard = || services.each_ref().map(|service| service.datagrams() > 0);
    let out = Wire::on(&bad, "eth0");
    let tap = Wire::on(&world.h, &bad.only().host_end);
    let somebody = pick(V4, "10.0.1.77", "");
    let send = || {
        for (from, port) in [(bad.ip(V4), 9990), (somebody, 9991)] {
            out.send(&udp_frame((bad.only().mac, NEAREST), (from, host_ip(V4)), (4000, port), b"past the bridge"));
        }
        assert!(tap.sees(LONG, |frame| holds(frame, b"past the bridge")), "it does not even leave");
    };
    let check = |value: &str| {
        world.h.sysctl(&["net", "ipv4", "conf", &bad.only().host_end, "rp_filter"], value).unwrap();
    };
    // Either protection is enough.
    check("0");
    send();
    assert!(!eventually(SHORT, || heard() != [false; 2]), "the rules let it in: {:?}", heard());
    check("1");
    world.nft("flush chain inet portolan early");
    send();
    assert!(!eventually(SHORT, || heard() != [false; 2]), "the port lets it in: {:?}", heard());
    check("0");
    let all_heard = || {
        send();
        heard() == [true; 2]
    };
    assert!(eventually(LONG, all_heard), "without protection it does not get there either: {:?}", heard());
    Row {
        number: 0,
        attack: "IPv4 to the MAC that no bridge forwards (01:80:c2:00:00:0e), from an internal network to the host, from the own address and another's",
        control: "chain `early` flushed and `rp_filter` of the port off, all other rules in place: succeeds",
        outcome: "dropped, by either alone".into(),
    }
}
