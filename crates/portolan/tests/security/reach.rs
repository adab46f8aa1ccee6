//! Ways to containers, gateways and the host's loopback that no published port opens.
//!
//! One host makes both: first as it is, then, the rules flushed and nobody there to put them back, as the control.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portolan_kernel::rtnl::Family::{self, V4, V6};
use portolan_lab::eventually;
use portolan_lab::server::UdpServer;

use crate::common::{
    Container, FAMILIES, LONG, SHORT, Wire, World, any, at, gateway_of, host_ip, interface, loopback, neighbour_ip,
    udp_frame,
};
use crate::forge::{Mac, source_routed};
use crate::row::Row;

const FLUSHED: &str = "the rules flushed: succeeds";

/// One attack: how it is sent, and the server that must not hear of it.
struct Shot<'a> {
    row: (u8, &'static str, &'static str),
    send: Box<dyn Fn() + 'a>,
    server: UdpServer,
}

/// A host, networks `web`, `other` and `vault`, and who is on them.
struct Stage {
    world: World,
    c: Container,
    other: Container,
    vault: Container,
    /// Of the neighbour's LAN interface, the host's, and `web`'s bridge.
    macs: [Mac; 3],
    lan: Wire,
    port: Wire,
    bridge: String,
}

impl Stage {
    fn or_skip() -> Option<Self> {
        let world = World::or_skip("security-reach")?;
        world.network("web", &[]);
        world.network("other", &[]);
        world.network("vault", &["--internal"]);
        let c = world.container("c", &["--network", "web", "-p", "127.0.0.1:8082:82/udp"]);
        let other = world.container("other", &["--network", "other"]);
        let vault = world.container("vault", &["--network", "vault"]);
        for family in FAMILIES {
            vault.host.add_default_route(&gateway_of(&world, "vault", family).to_string()).unwrap();
        }
        world.route_back("web");
        let bridge = world.json(&["network", "inspect", "web"])[0]["Bridge"].as_str().unwrap().to_owned();
        let macs = [(&world.n, "eth0"), (&world.h, "eth0"), (&world.h, bridge.as_str())]
            .map(|(host, name)| interface(host, name).unwrap().mac.unwrap());
        let (lan, port) = (Wire::on(&world.n, "eth0"), Wire::on(&c, "eth0"));
        Some(Self { world, c, other, vault, macs, lan, port, bridge })
    }

    /// A datagram from `from` to `to`.
    fn plain<'a>(&'a self, from: &'a portolan_kernel::netns::NetnsFd, to: (IpAddr, u16)) -> Box<dyn Fn() + 'a> {
        let socket = portolan_kernel::netns::with_netns(from, || {
            std::net::UdpSocket::bind((Family::of(to.0).unspecified(), 0)).unwrap()
        })
        .unwrap();
        // That nobody wants it is what is hoped for.
        Box::new(move || drop(socket.send_to(b"?", to)))
    }

    /// A frame of the neighbour's to the host.
    fn lan_frame(&self, ips: (IpAddr, IpAddr), port: u16) -> Box<dyn Fn() + '_> {
        self.lan_frame_of(ips, (4000, port))
    }

    /// The same from another port.
    fn lan_frame_of(&self, ips: (IpAddr, IpAddr), ports: (u16, u16)) -> Box<dyn Fn() + '_> {
        let frame = udp_frame((self.macs[0], self.macs[1]), ips, ports, b"?");
        Box::new(move || self.lan.send(&frame))
    }

    /// A frame of the container's to the host.
    fn container_frame(&self, ips: (IpAddr, IpAddr), port: u16) -> Box<dyn Fn() + '_> {
        let frame = udp_frame((self.c.only().mac, self.macs[2]), ips, (4000, port), b"?");
        Box::new(move || self.port.send(&frame))
    }

    fn shots<'a>(&'a self) -> Vec<Shot<'a>> {
        use portolan_lab::InNetns as _;
        let Self { world, c, other, vault, .. } = self;
        let (h, n) = (&world.h, &world.n);
        let mut shots = Vec::new();
        let mut ports = 20000u16..;
        let mut add = |row, place: &dyn Fn(u16) -> UdpServer, send: &dyn Fn(u16) -> Box<dyn Fn() + 'a>| {
            let port = ports.next().unwrap();
            shots.push(Shot { row, send: send(port), server: place(port) });
        };
        let inside = |port| UdpServer::start(c, any(V6, port), "c").unwrap();
        for family in FAMILIES {
            let on_host = |ip: IpAddr| move |port| UdpServer::start(h, at(ip, port), "h").unwrap();
            let (ip, gateway) = (c.ip(family), c.gateway(family));
            add(
                (18, "a LAN neighbour with a route to a container's own address, over both families", FLUSHED),
                &inside,
                &|port| self.plain(n.netns(), (ip, port)),
            );
            add(
                (
                    18,
                    "a LAN neighbour with a route to the gateway's address, for a service of the host, over both families",
                    FLUSHED,
                ),
                &on_host(gateway),
                &|port| self.plain(n.netns(), (gateway, port)),
            );
            add(
                (18, "a container to another network's gateway, over both families", FLUSHED),
                &on_host(gateway),
                &|port| self.plain(other.netns(), (gateway, port)),
            );
            add((18, "a container to a container of another network, over both families", FLUSHED), &inside, &|port| {
                self.plain(other.netns(), (ip, port))
            });
            add(
                (
                    18,
                    "a container of an internal network that guesses its gateway, to a container of another network, over both families",
                    FLUSHED,
                ),
                &inside,
                &|port| self.plain(vault.netns(), (ip, port)),
            );
            add(
                (
                    18,
                    "a container of an internal network that guesses its gateway, to the host, over both families",
                    FLUSHED,
                ),
                &on_host(host_ip(family)),
                &|port| self.plain(vault.netns(), (host_ip(family), port)),
            );
            add(
                (
                    18,
                    "a container of an internal network that guesses its gateway, to the world, over both families",
                    FLUSHED,
                ),
                &|port| UdpServer::start(n, at(neighbour_ip(family), port), "n").unwrap(),
                &|port| self.plain(vault.netns(), (neighbour_ip(family), port)),
            );
            add(
                (17, "a LAN neighbour from a container's address, to another container, over both families", FLUSHED),
                &inside,
                &|port| {
                    let sibling = pick_sibling(ip);
                    self.lan_frame((sibling, ip), port)
                },
            );
        }
        let (host, local, neighbour) = (host_ip(V4), loopback(V4), neighbour_ip(V4));
        let on_loopback = |port| UdpServer::start(h, at(local, port), "h").unwrap();
        let on_host = |port| UdpServer::start(h, at(host, port), "h").unwrap();
        add(
            (18, "a source route (RFC 791) by way of a host that takes such, to a container", FLUSHED),
            &inside,
            &|port| {
                let (ip, macs) = (c.ip(V4), (self.macs[0], self.macs[1]));
                let mut frame = source_routed(&udp_frame(macs, (neighbour, host), (4000, port), b"?"), ip);
                // The checksum counts the last destination; none is fine too (RFC 768).
                let at = frame.len() - 3;
                frame[at..at + 2].fill(0);
                Box::new(move || self.lan.send(&frame))
            },
        );
        add(
            (
                2,
                "a LAN neighbour's frame to 127.0.0.1, for a service there",
                "`route_localnet` of the LAN interface set: succeeds",
            ),
            &on_loopback,
            &|port| self.lan_frame((neighbour, local), port),
        );
        add(
            (
                2,
                "a LAN neighbour's frame from 127.0.0.1 to the host",
                "`route_localnet` and `accept_local` set: succeeds",
            ),
            &on_host,
            &|port| self.lan_frame((local, host), port),
        );
        add((2, "a container's frame to 127.0.0.1, for a service there", FLUSHED), &on_loopback, &|port| {
            self.container_frame((c.ip(V4), local), port)
        });
        add(
            (
                2,
                "a container's frame from 127.0.0.1 to the host",
                "the rules flushed, `accept_local` set, `rp_filter` off: succeeds",
            ),
            &on_host,
            &|port| self.container_frame((local, host), port),
        );
        shots
    }
}

/// Another address of the same network.
fn pick_sibling(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + 5).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + 5).into()),
    }
}

/// No packet from another machine or container is for ::1, whatever is set (`ip6_rcv_core()`, net/ipv6/ip6_input.c).
fn loopback6(stage: &Stage) -> Vec<Row> {
    let Stage { world, c, .. } = stage;
    let start = |ip, port| UdpServer::start(&world.h, at(ip, port), "h").unwrap();
    let server = start(any(V6, 0).ip(), 30000);
    let from_host = start(host_ip(V6), 30001);
    for (way, from) in [(0, neighbour_ip(V6)), (1, c.ip(V6))] {
        let frame = |to, port| {
            if way == 0 { stage.lan_frame((from, to), port) } else { stage.container_frame((from, to), port) }
        };
        let before = from_host.datagrams();
        frame(loopback(V6), 30000)();
        assert!(eventually(LONG, || {
            frame(host_ip(V6), 30001)();
            from_host.datagrams() > before
        }));
    }
    assert_eq!(server.datagrams(), 0);
    vec![Row {
        number: 2,
        attack: "frames of a LAN neighbour and of a container to ::1",
        control: "the same frames to the host's address: succeed (the kernel has no switch for ::1)",
        outcome: "dropped".into(),
    }]
}

pub(crate) fn rows() -> Option<Vec<Row>> {
    let stage = Stage::or_skip()?;
    let world = &stage.world;
    // An administrator's choice, with which the attacks must fail as well.
    for host in [&world.h, &stage.c.host] {
        for which in ["all", "eth0"] {
            host.sysctl(&["net", "ipv4", "conf", which, "accept_source_route"], "1").unwrap();
        }
    }
    let mut rows = loopback6(&stage);
    let shots = stage.shots();
    for _ in 0..3 {
        shots.iter().for_each(|shot| (shot.send)());
    }
    let heard = |shots: &[Shot<'_>]| {
        let heard = shots.iter().filter(|shot| shot.server.datagrams() > 0);
        heard.map(|shot| format!("{:?}", shot.row)).collect::<Vec<_>>()
    };
    assert!(!eventually(SHORT, || !heard(&shots).is_empty()), "these succeed: {:#?}", heard(&shots));

    // A port of 127.0.0.1 is nobody's from outside even where the administrator lets such addresses in.
    world.h.sysctl(&["net", "ipv4", "conf", "eth0", "route_localnet"], "1").unwrap();
    let local = UdpServer::start(&stage.c, at(stage.c.ip(V4), 82), "c").unwrap();
    let send = [
        stage.lan_frame((neighbour_ip(V4), loopback(V4)), 8082),
        stage.container_frame((stage.c.ip(V4), loopback(V4)), 8082),
        stage.plain(portolan_lab::InNetns::netns(&world.n), (host_ip(V4), 8082)),
    ];
    send.iter().for_each(|send| send());
    assert!(!eventually(SHORT, || local.datagrams() > 0), "the port of 127.0.0.1 is open");
    world.verify();

    world.nft("flush ruleset");
    for (interface, name, value) in
        [("eth0", "accept_local", "1"), (&stage.bridge, "accept_local", "1"), (&stage.bridge, "rp_filter", "0")]
    {
        world.h.sysctl(&["net", "ipv4", "conf", interface, name], value).unwrap();
    }
    let all_heard = || {
        shots.iter().filter(|shot| shot.server.datagrams() == 0).for_each(|shot| (shot.send)());
        heard(&shots).len() == shots.len()
    };
    let all_heard = eventually(LONG, all_heard);
    let in_vain: Vec<_> = shots.iter().filter(|shot| shot.server.datagrams() == 0).map(|shot| shot.row).collect();
    assert!(all_heard, "these prove nothing, they fail without rules as well: {in_vain:#?}");
    for line in [
        "add table ip naive",
        "add chain ip naive in { type nat hook prerouting priority dstnat ; }",
        &format!("add rule ip naive in udp dport 8082 dnat to {}:82", stage.c.ip(V4)),
    ] {
        world.nft(line);
    }
    // From another port: the connection of before is one with the host.
    let send = stage.lan_frame_of((neighbour_ip(V4), loopback(V4)), (4001, 8082));
    let reached = || {
        send();
        local.datagrams() > 0
    };
    assert!(eventually(LONG, reached), "a translation without our rules does not lead there either");
    let of_shots: BTreeSet<Row> = shots
        .iter()
        .map(|shot| {
            let (number, attack, control) = shot.row;
            Row { number, attack, control, outcome: "dropped".into() }
        })
        .collect();
    rows.extend(of_shots);
    rows.push(Row {
        number: 2,
        attack: "frames to a port published on 127.0.0.1, by LAN neighbour (with `route_localnet` set) and container",
        control: "a rule that translates the port alone, as others make: succeeds",
        outcome: "dropped".into(),
    });
    Some(rows)
}
