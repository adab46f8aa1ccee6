//! rtnetlink against the running kernel.

mod common;

use std::net::IpAddr;
use std::os::fd::AsFd;

use common::{in_netns, route_socket};
use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_kernel::rtnl::Family;
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::link::{self, AddrGenMode, BrPort, BridgeSpec, Ipv4Conf, LinkChange, VethPeer, VethSpec};
use portolan_kernel::rtnl::neigh;
use portolan_kernel::rtnl::route::{self, Route, RouteKind};
use portolan_kernel::rtnl::rule::{self, Rule};
use portolan_kernel::rtnl::tc::{self, Detour};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn index_of(socket: &mut Socket, name: &str) -> u32 {
    link::lookup(socket, name).unwrap().expect("link is there").index
}

fn bridge(socket: &mut Socket, name: &str) -> u32 {
    let mut batch = Batch::new();
    link::create_bridge(
        &mut batch,
        &BridgeSpec {
            name,
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: Some(1400),
            group: Some(7),
            mcast_snooping: true,
            vlan_filtering: false,
            up: true,
        },
    );
    socket.transact(&batch).unwrap();
    index_of(socket, name)
}

fn veth(socket: &mut Socket, name: &str, peer: &str) -> (u32, u32) {
    let mut batch = Batch::new();
    let peer_end = VethPeer { name: peer, ..VethPeer::default() };
    link::create_veth(&mut batch, &VethSpec { name, up: true, peer: peer_end, ..VethSpec::default() });
    link::set(&mut batch, peer, &LinkChange { up: Some(true), ..LinkChange::default() });
    socket.transact(&batch).unwrap();
    (index_of(socket, name), index_of(socket, peer))
}

#[test]
fn bridge_has_what_was_asked_for() {
    in_netns(|| {
        let mut socket = route_socket();
        let index = bridge(&mut socket, "br0");
        let mut batch = Batch::new();
        link::set(
            &mut batch,
            index,
            &LinkChange {
                alias: Some("net web"),
                addr_gen_mode: Some(AddrGenMode::None),
                ipv4_conf: &[(Ipv4Conf::RpFilter, 2), (Ipv4Conf::RouteLocalnet, 1)],
                ..LinkChange::default()
            },
        );
        socket.transact(&batch).unwrap();
        let link = link::lookup(&mut socket, "br0").unwrap().unwrap();
        assert_eq!(link.mac, Some([2, 0, 0, 0, 0, 1]));
        assert_eq!((link.mtu, link.group, link.up), (1400, 7, true));
        assert_eq!(link.alias.as_deref(), Some("net web"));
        assert_eq!(link.kind.as_deref(), Some("bridge"));
        assert_eq!(link.addr_gen_mode, Some(AddrGenMode::None));
        assert_eq!(link.ipv4_conf(Ipv4Conf::RpFilter), Some(2));
        assert_eq!(link.ipv4_conf(Ipv4Conf::RouteLocalnet), Some(1));
        let state = link.bridge.unwrap();
        assert!(!state.stp && !state.vlan_filtering && state.mcast_snooping);
        assert_eq!((state.forward_delay, state.ageing_time), (0, 30_000));

        let mut batch = Batch::new();
        link::set(&mut batch, index, &LinkChange { alias: Some(""), ..LinkChange::default() });
        socket.transact(&batch).unwrap();
        assert_eq!(link::lookup(&mut socket, index).unwrap().unwrap().alias, None);
    });
}

#[test]
fn veth_and_its_bridge_port_take_one_batch() {
    in_netns(|| {
        let sandbox = NetnsFd::create().unwrap();
        let mut socket = route_socket();
        let master = bridge(&mut socket, "br0");
        let brport = BrPort {
            isolated: Some(true),
            neigh_suppress: Some(true),
            learning: Some(false),
            locked: Some(true),
            unicast_flood: Some(false),
            mcast_flood: Some(false),
            bcast_flood: Some(false),
            hairpin: Some(true),
            mcast_to_ucast: Some(true),
        };
        let mut batch = Batch::new();
        let created = link::create_veth(
            &mut batch,
            &VethSpec {
                name: "veth1",
                mac: Some([2, 0, 0, 0, 0, 2]),
                mtu: Some(1400),
                group: Some(7),
                master: Some(master),
                echo: true,
                peer: VethPeer {
                    name: "eth0",
                    mac: Some([2, 0, 0, 0, 0, 3]),
                    mtu: Some(1400),
                    netns: Some(sandbox.as_fd()),
                    ..VethPeer::default()
                },
                ..VethSpec::default()
            },
        );
        link::set(
            &mut batch,
            "veth1",
            &LinkChange {
                alias: Some("c1"),
                addr_gen_mode: Some(AddrGenMode::None),
                brport: Some(brport),
                up: Some(true),
                ..LinkChange::default()
            },
        );
        let replies = socket.transact(&batch).unwrap();
        let host = link::lookup(&mut socket, "veth1").unwrap().unwrap();
        assert_eq!(host.brport, Some(brport));
        assert_eq!(host.slave_kind.as_deref(), Some("bridge"));
        assert_eq!(host.master, Some(master));
        assert_eq!(host.addr_gen_mode, Some(AddrGenMode::None));
        assert_eq!(host.alias.as_deref(), Some("c1"));
        assert!(host.up && host.link_netnsid.is_some());

        let mut inside = with_netns(&sandbox, || Socket::open(ROUTE)).unwrap().unwrap();
        let peer = link::lookup(&mut inside, "eth0").unwrap().unwrap();
        assert_eq!(peer.mac, Some([2, 0, 0, 0, 0, 3]));
        assert_eq!((peer.mtu, peer.up), (1400, false));
        assert_eq!(host.link, Some(peer.index));
        // Kernels before 6.2 do not echo.
        if let Some(reply) = replies.iter().find(|reply| reply.index == created) {
            let echoed = link::parse(&reply.payload);
            assert_eq!((echoed.index, echoed.link), (host.index, Some(peer.index)));
        }
        let ports = link::dump_ports(&mut socket, master).unwrap();
        assert_eq!(ports.iter().map(|link| link.index).collect::<Vec<_>>(), [host.index]);
    });
}

#[test]
fn refusals_name_errno_and_message() {
    in_netns(|| {
        let mut socket = route_socket();
        bridge(&mut socket, "br0");
        let mut batch = Batch::new();
        link::delete(&mut batch, "absent");
        link::create_bridge(&mut batch, &BridgeSpec { name: "br1", ..BridgeSpec::default() });
        link::create_bridge(&mut batch, &BridgeSpec { name: "br0", ..BridgeSpec::default() });
        let results = socket.transact_each(&batch).unwrap().results();
        assert_eq!(results[0].as_ref().unwrap_err().errno(), libc::ENODEV);
        assert_eq!(results[1], Ok(()));
        let error = results[2].as_ref().unwrap_err();
        assert!(error.is_exists());
        assert_eq!(error.index(), Some(2));
        assert!(error.to_string().starts_with("file exists (EEXIST)"), "{error}");
        assert_eq!(link::lookup(&mut socket, "absent").unwrap(), None);
        assert_eq!(link::lookup(&mut socket, 4711).unwrap(), None);

        let mut batch = Batch::new();
        link::set(&mut batch, "br1", &LinkChange { mtu: Some(70_000), ..LinkChange::default() });
        let error = socket.transact(&batch).unwrap_err();
        assert!(error.extack().is_some(), "the kernel says why: {error}");
    });
}

#[test]
fn renaming_and_moving() {
    in_netns(|| {
        let other = NetnsFd::create().unwrap();
        let mut socket = route_socket();
        let (a, b) = veth(&mut socket, "a", "b");
        let mut batch = Batch::new();
        link::set(&mut batch, a, &LinkChange { up: Some(false), ..LinkChange::default() });
        link::rename(&mut batch, a, "renamed");
        link::set(
            &mut batch,
            b,
            &LinkChange { netns: Some(other.as_fd()), name: Some("eth0"), ..LinkChange::default() },
        );
        socket.transact(&batch).unwrap();
        assert_eq!(index_of(&mut socket, "renamed"), a);
        let mut inside = with_netns(&other, || Socket::open(ROUTE)).unwrap().unwrap();
        assert!(link::lookup(&mut inside, "eth0").unwrap().is_some());
        let mut batch = Batch::new();
        link::delete(&mut batch, a);
        socket.transact(&batch).unwrap();
        assert!(link::lookup(&mut inside, "eth0").unwrap().is_none());
    });
}

#[test]
fn addresses_come_and_go() {
    in_netns(|| {
        let mut socket = route_socket();
        let (a, b) = veth(&mut socket, "a", "b");
        let v4 = Address::new(a, ip("10.0.0.1"), 24);
        let v6 = Address::new(a, ip("fd00::1"), 64).without_prefix_route();
        let mut batch = Batch::new();
        addr::add(&mut batch, &v4);
        addr::add(&mut batch, &v6);
        addr::add(&mut batch, &Address::new(b, ip("10.0.1.1"), 32));
        socket.transact(&batch).unwrap();

        let addresses = addr::dump(&mut socket, Some(a)).unwrap();
        assert!(addresses.iter().all(|address| address.ifindex == a));
        let found = addresses.iter().find(|address| address.addr == v4.addr).unwrap();
        assert_eq!((found.prefix_len, found.broadcast), (24, Some("10.0.0.255".parse().unwrap())));
        let found = addresses.iter().find(|address| address.addr == v6.addr).unwrap();
        assert_eq!(found.flags & addr::TENTATIVE, 0);
        assert_ne!(found.flags & addr::NOPREFIXROUTE, 0);
        let all = addr::dump(&mut socket, None).unwrap();
        assert!(all.iter().any(|address| address.ifindex == b));

        let error = socket
            .transact(&{
                let mut batch = Batch::new();
                addr::add(&mut batch, &v4);
                batch
            })
            .unwrap_err();
        assert!(error.is_exists());
        let mut batch = Batch::new();
        addr::replace(&mut batch, &v4);
        addr::delete(&mut batch, a, v4.addr, 24);
        addr::delete(&mut batch, a, v4.addr, 24);
        let results = socket.transact_each(&batch).unwrap().results();
        assert_eq!(results[..2], [Ok(()), Ok(())]);
        assert!(results[2].as_ref().unwrap_err().is_missing());
    });
}

#[test]
fn a_new_namespace_has_no_default_route() {
    in_netns(|| {
        let mut socket = route_socket();
        for family in [Family::V4, Family::V6] {
            assert_eq!(route::default_route_path(&mut socket, family).unwrap(), None, "before the first route");
        }
    });
}

#[test]
fn routes_of_all_kinds_round_trip() {
    in_netns(|| {
        let mut socket = route_socket();
        let (a, _) = veth(&mut socket, "a", "b");
        let mut batch = Batch::new();
        addr::add(&mut batch, &Address::new(a, ip("10.0.0.1"), 24));
        addr::add(&mut batch, &Address::new(a, ip("fd00::1"), 64));
        let wanted = [
            Route {
                gateway: Some(ip("10.0.0.254")),
                oif: Some(a),
                metric: Some(100),
                mtu: Some(1380),
                scope: Some(0),
                ..Route::default_of(Family::V4)
            },
            Route {
                gateway: Some(ip("fd00::fe")),
                oif: Some(a),
                metric: Some(1024),
                scope: Some(0),
                ..Route::default_of(Family::V6)
            },
            Route {
                kind: RouteKind::Unreachable,
                metric: Some(4000),
                table: 1000,
                scope: Some(0),
                ..Route::new(ip("10.9.0.0"), 16)
            },
            Route {
                gateway: Some(ip("192.0.2.1")),
                oif: Some(a),
                onlink: true,
                prefsrc: Some(ip("10.0.0.1")),
                scope: Some(0),
                protocol: 99,
                ..Route::new(ip("198.51.100.0"), 24)
            },
            Route { gateway: Some(ip("fd00::ff")), oif: Some(a), scope: Some(0), ..Route::new(ip("203.0.113.0"), 24) },
        ];
        for route in &wanted {
            route::add(&mut batch, route);
        }
        let blackhole = Route { kind: RouteKind::Blackhole, ..Route::new(ip("10.8.0.0"), 16) };
        route::replace(&mut batch, &blackhole);
        route::replace(&mut batch, &blackhole);
        route::add(&mut batch, &Route { oif: Some(a), ..Route::new(ip("10.7.0.0"), 16) });
        socket.transact(&batch).unwrap();

        let routes = route::dump(&mut socket).unwrap();
        for route in &wanted {
            assert!(routes.contains(route), "{route:#?} in {routes:#?}");
        }
        assert_eq!(routes.iter().filter(|route| route.kind == RouteKind::Blackhole).count(), 1);
        assert!(routes.iter().any(|route| route.table == route::TABLE_LOCAL));
        let path = route::default_route_path(&mut socket, Family::V4).unwrap().unwrap();
        assert_eq!((path.oif, path.mtu), (a, Some(1380)));
        let path = route::default_route_path(&mut socket, Family::V6).unwrap().unwrap();
        assert_eq!((path.oif, path.mtu), (a, None));

        let mut batch = Batch::new();
        route::delete(&mut batch, &wanted[0]);
        route::delete(&mut batch, &wanted[0]);
        let results = socket.transact_each(&batch).unwrap().results();
        assert_eq!(results[0], Ok(()));
        assert!(results[1].as_ref().unwrap_err().is_missing());
        assert_eq!(route::default_route_path(&mut socket, Family::V4).unwrap(), None);
    });
}

#[test]
fn rules_round_trip() {
    in_netns(|| {
        let mut socket = route_socket();
        let wanted = Rule {
            priority: Some(100),
            iifname: Some("br0".into()),
            src: Some((ip("fd00::"), 64)),
            fwmark: Some(1),
            fwmask: Some(0xff),
            ..Rule::new(Family::V6, 1000)
        };
        let mut batch = Batch::new();
        rule::add(&mut batch, &wanted);
        socket.transact(&batch).unwrap();
        assert!(rule::dump(&mut socket, Family::V6).unwrap().contains(&wanted));
        assert_eq!(rule::dump(&mut socket, Family::V4).unwrap().len(), 3);
        let mut batch = Batch::new();
        rule::delete(&mut batch, &wanted);
        socket.transact(&batch).unwrap();
        assert!(!rule::dump(&mut socket, Family::V6).unwrap().contains(&wanted));
    });
}

#[test]
fn neighbours_and_forwarding_database() {
    in_netns(|| {
        let mut socket = route_socket();
        let master = bridge(&mut socket, "br0");
        let (a, _) = veth(&mut socket, "a", "b");
        let mac = [2, 0, 0, 0, 1, 1];
        let mut batch = Batch::new();
        link::set(&mut batch, a, &LinkChange { master: Some(master), ..LinkChange::default() });
        neigh::replace(&mut batch, master, ip("10.0.0.2"), mac);
        neigh::replace(&mut batch, master, ip("fd00::2"), mac);
        neigh::fdb_replace(&mut batch, a, mac);
        neigh::fdb_replace(&mut batch, a, mac);
        socket.transact(&batch).unwrap();

        let neighbours = neigh::dump(&mut socket, Some(master)).unwrap();
        for addr in ["10.0.0.2", "fd00::2"] {
            let found = neighbours.iter().find(|neighbour| neighbour.addr == ip(addr)).unwrap();
            assert_eq!((found.mac, found.state), (Some(mac), neigh::NUD_PERMANENT));
        }
        let entries = neigh::fdb_dump(&mut socket, master).unwrap();
        let ours: Vec<_> = entries.iter().filter(|entry| entry.is_static()).collect();
        assert_eq!(ours.len(), 1, "{entries:#?}");
        assert_eq!((ours[0].port, ours[0].mac), (a, mac));

        let mut batch = Batch::new();
        neigh::delete(&mut batch, master, ip("10.0.0.2"));
        neigh::delete(&mut batch, master, ip("10.0.0.2"));
        neigh::fdb_delete(&mut batch, a, mac);
        neigh::fdb_delete(&mut batch, a, mac);
        let results = socket.transact_each(&batch).unwrap().results();
        assert_eq!((&results[0], &results[2]), (&Ok(()), &Ok(())));
        assert!(results[1].as_ref().unwrap_err().is_missing());
        assert!(results[3].as_ref().unwrap_err().is_missing());
    });
}

#[test]
fn ten_thousand_messages_go_through() {
    in_netns(|| {
        let mut socket = route_socket();
        let (a, _) = veth(&mut socket, "a", "b");
        let mut batch = Batch::new();
        let routes: Vec<Route> = (0..10_000u32)
            .map(|n| {
                let dst = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into();
                Route { oif: Some(a), ..Route::new(dst, 32) }
            })
            .collect();
        for route in &routes {
            route::add(&mut batch, route);
        }
        socket.transact(&batch).unwrap();
        let listed = route::dump_family(&mut socket, Family::V4).unwrap();
        assert!(listed.len() >= routes.len());
        // All fail, each with its own error.
        let outcome = socket.transact_each(&batch).unwrap();
        assert_eq!(outcome.errors.len(), routes.len());
    });
}

#[test]
fn detours_are_read_as_they_were_written() {
    in_netns(|| {
        let mut socket = route_socket();
        let ((one, _), (other, _)) = (veth(&mut socket, "a0", "a1"), veth(&mut socket, "b0", "b1"));
        assert_eq!(tc::detours(&mut socket, one).unwrap(), []);
        assert_eq!(tc::taken_at(&mut socket, other).unwrap(), None);
        let detours = [
            Detour { priority: 7, to: Some("fe80::1234:5678:9abc:def0/128".parse().unwrap()), by: other },
            Detour { priority: 8, to: Some("fe92:1234:5678::/48".parse().unwrap()), by: other },
            Detour { priority: 9, to: None, by: other },
        ];
        let mut batch = Batch::new();
        tc::create_clsact(&mut batch, one);
        tc::create_clsact(&mut batch, other);
        tc::take_at(&mut batch, other, one);
        for detour in &detours {
            tc::add_detour(&mut batch, one, detour);
        }
        socket.transact(&batch).unwrap();
        assert_eq!(tc::detours(&mut socket, one).unwrap(), detours);
        assert_eq!(tc::taken_at(&mut socket, other).unwrap(), Some(one));
        let mut batch = Batch::new();
        tc::create_clsact(&mut batch, one);
        assert!(socket.transact(&batch).unwrap_err().is_exists());
        let mut batch = Batch::new();
        tc::delete_detour(&mut batch, one, 7);
        socket.transact(&batch).unwrap();
        assert_eq!(tc::detours(&mut socket, one).unwrap(), detours[1..]);
        let mut batch = Batch::new();
        tc::delete_detour(&mut batch, one, 7);
        assert!(socket.transact(&batch).unwrap_err().is_missing());
    });
}
