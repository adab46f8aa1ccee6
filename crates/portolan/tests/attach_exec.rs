//! What an attach starts (nothing), and what it and its successors make of a reboot, of somebody else's flush, and of
//! single objects that are gone.

mod common;

use std::net::IpAddr;
use std::process::Stdio;

use common::{Container, FAMILIES, LONG, World, any, at, host_ip, links};
use portolan_engine::{Durability, Store as _, Tx as _};
use portolan_kernel::netlink::{Batch, NETFILTER, ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::nft::encode::Insist;
use portolan_kernel::nft::{decode, encode};
use portolan_kernel::rtnl::route::{self, Route};
use portolan_kernel::rtnl::{Family, addr, link, neigh};
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::TcpServer;
use portolan_lab::snapshot::Snapshot;
use portolan_lab::{InNetns, trace};
use portolan_model::Container as Row;
use portolan_plan::{Element, Set, Table};
use portolan_store::SqliteStore;

const TABLE: &str = "portolan";
const WEB: [&str; 4] = ["--subnet", "10.91.0.0/24", "--subnet", "fd91::/64"];
const SITE: [&str; 6] = ["--network", "name=web,ip=10.91.0.5,ip6=fd91::5", "-p", "8080:80", "-p", "5353:53/udp"];

/// A world whose links are up, and what its host held then.
fn world(name: &str) -> Option<(World, Snapshot)> {
    let world = World::or_skip(name)?;
    let untouched = world.untouched();
    Some((world, untouched))
}

/// Runs `change` on a routing socket of `place`.
fn routing(place: &impl InNetns, change: impl FnOnce(&mut Socket, &mut Batch)) {
    with_netns(place.netns(), || {
        let mut socket = Socket::open(ROUTE).unwrap();
        let mut batch = Batch::new();
        change(&mut socket, &mut batch);
        socket.transact(&batch).unwrap();
    })
    .unwrap();
}

/// Runs `change` as one nftables transaction of the host's.
fn nftables(world: &World, change: impl FnOnce(&mut Batch)) {
    with_netns(world.h.netns(), || {
        let mut batch = Batch::new();
        batch.begin_nft(None);
        change(&mut batch);
        batch.end_nft();
        Socket::open(NETFILTER).unwrap().transact(&batch).unwrap();
    })
    .unwrap();
}

fn elements(world: &World, set: Set) -> Vec<Element> {
    with_netns(world.h.netns(), || decode::elements(&mut Socket::open(NETFILTER).unwrap(), TABLE, set).unwrap().0)
        .unwrap()
}

/// As `nft flush ruleset` does.
fn flush(world: &World) {
    nftables(world, |batch| Table::ALL.into_iter().for_each(|table| encode::delete_ruleset(batch, TABLE, table)));
}

fn delete_link(place: &impl InNetns, name: &str) {
    routing(place, |_, batch| {
        link::delete(batch, name);
    });
}

/// The device of a network.
fn bridge(world: &World, network: &str) -> String {
    let details = world.json(&["network", "inspect", network]);
    let id = details[0]["Id"].as_str().unwrap();
    let ours = |link: &link::Link| link.alias.as_ref().is_some_and(|alias| alias.ends_with(&format!(":network:{id}")));
    links(&world.h).into_iter().find(ours).unwrap().name
}

/// The neighbour reaches port 8080 of the host, in both families.
#[track_caller]
fn assert_published(world: &World, container: &Container) {
    for family in FAMILIES {
        let _server = TcpServer::start(container, any(family, 80), "site").unwrap();
        let probe = tcp_probe(&world.n, at(host_ip(family), 8080), LONG);
        assert_eq!(probe.banner(), Some("site"), "{probe}");
    }
}

#[test]
fn nothing_else_is_executed() {
    let Some((world, untouched)) = world("exec") else { return };
    let container = world.lab.host("site").unwrap();
    let path = container.netns_path().to_str().unwrap();
    let executed = |args: &[&str]| {
        let mut command = world.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        trace::execs(command).unwrap()
    };
    let nothing: [std::path::PathBuf; 0] = [];
    assert_eq!(executed(&[&["network", "create", "web"], &WEB[..]].concat()), nothing);
    assert_eq!(executed(&[&["attach", "--netns", path, "--name", "site"], &SITE[..]].concat()), nothing);
    world.verify();
    assert_eq!(executed(&["publish", "add", "site", "8443:443"]), nothing);
    assert_eq!(executed(&["rules", "site"]), nothing);
    assert_eq!(executed(&["reconcile"]), nothing);
    assert_eq!(executed(&["detach", "site"]), nothing);
    let run = executed(&["run", "--rm", "--network", "web", "--", "true"]);
    assert_eq!(run.len(), 1, "the command itself: {run:?}");
    assert_eq!(executed(&["network", "rm", "web"]), nothing);
    world.assert_untouched(&untouched, "the test");
}

#[test]
fn a_reboot_takes_containers_and_brings_networks_back() {
    let Some((world, untouched)) = world("reboot") else { return };
    world.network("web", &WEB);
    let site = world.container("site", &SITE);
    world.container("other", &["--network", "bridge"]);
    world.portolan_ok(&["run", "-d", "--name", "gone", "--network", "web", "--", "sleep", "1000"]);
    let before = world.json(&["network", "ls"]);

    // What a new boot would find: rows of the one before, and nothing in the kernel.
    {
        let store = SqliteStore::open(&world.root).unwrap();
        let guard = store.lock().unwrap();
        let tx = store.write(&guard).unwrap();
        tx.put_meta("boot", Some("the one before")).unwrap();
        for row in tx.containers().unwrap() {
            tx.put_container(&Row { boot: "the one before".into(), ..row }).unwrap();
        }
        tx.commit(Durability::Disk).unwrap();
    }
    flush(&world);
    let links = links(&world.h);
    for bridge in links.iter().filter(|link| link.kind.as_deref() == Some("bridge")) {
        delete_link(&world.h, &bridge.name);
    }
    for veth in links.iter().filter(|link| link.name.starts_with("pv")) {
        delete_link(&world.h, &veth.name);
    }
    world.h.sysctl(&["net", "ipv4", "ip_forward"], "0").unwrap();
    world.h.sysctl(&["net", "ipv6", "conf", "all", "forwarding"], "0").unwrap();
    world.h.sysctl(&["net", "ipv6", "conf", "eth0", "accept_ra"], "1").unwrap();

    assert_eq!(world.portolan(&["verify"]).status.code(), Some(1));
    // Any verb that changes something, also for a container that does not exist.
    let why = world.refused(&["detach", "nobody"]);
    assert!(why.contains("nobody"), "{why}");
    world.verify();
    assert_eq!(world.json(&["network", "ls"]), before, "the networks are what they were");
    let left = world.json(&["ps", "-a"]);
    let left = left.as_array().unwrap();
    assert_eq!(left.len(), 1, "of containers, only what ran is still known, and has ended: {left:?}");
    world.portolan_ok(&["rm", "gone"]);

    // The same name, address and ports.
    let path = site.path().to_owned();
    let again = world.json(&[&["attach", "--netns", &path, "--name", "site"], &SITE[..]].concat());
    let again = Container { name: site.name.clone(), endpoints: common::endpoints(&again), host: site.host };
    assert_eq!(again.on("web").v4, Some(IpAddr::from([10, 91, 0, 5])));
    world.verify();
    assert_published(&world, &again);
    world.portolan_ok(&["detach", "site"]);
    world.portolan_ok(&["network", "rm", "web"]);
    world.assert_untouched(&untouched, "the test");
}

#[test]
fn an_attach_after_somebody_elses_flush_heals_everything() {
    let Some((world, untouched)) = world("flush") else { return };
    world.network("web", &WEB);
    let site = world.container("site", &SITE);
    let mut number = 0;
    let mut attach = || {
        number += 1;
        world.container(&format!("next{number}"), &["--network", "web", "-p", &format!("{}:80", 9000 + number)])
    };
    flush(&world);
    attach();
    world.verify();
    assert_published(&world, &site);

    flush(&world);
    world.portolan_ok(&["publish", "add", "site", "8443:443"]);
    world.verify();

    // One of the two tables alone.
    for table in Table::ALL {
        nftables(&world, |batch| encode::delete_ruleset(batch, TABLE, table));
        let damaged = attach();
        // Where that did not stand in the way, it is seen all the same.
        world.portolan(&["reconcile"]);
        world.verify();
        assert!(damaged.only().v4.is_some());
        assert_published(&world, &site);
    }

    delete_link(&world.h, &bridge(&world, "web"));
    attach();
    world.verify();
    assert_published(&world, &site);

    flush(&world);
    delete_link(&world.h, &bridge(&world, "web"));
    attach();
    world.verify();
    assert_published(&world, &site);

    // Nor do flush and deletion keep anything from going.
    flush(&world);
    delete_link(&world.h, &bridge(&world, "web"));
    for name in ["site", "next1", "next2", "next3", "next4", "next5"] {
        world.portolan_ok(&["detach", name]);
    }
    world.portolan_ok(&["network", "rm", "web"]);
    world.assert_untouched(&untouched, "the test");
}

#[test]
fn reconcile_puts_back_what_is_gone() {
    let Some((world, untouched)) = world("reconcile") else { return };
    world.network("web", &WEB);
    world.network("lan", &["--opt", "icc=false"]);
    let site = world.container("site", &[&SITE[..], &["--network", "lan", "-p", "7000-7009:7000-7009"]].concat());
    let bridge = bridge(&world, "web");
    let host_end = site.on("web").host_end.clone();
    let inside = site.on("web").ifname.clone();
    let index = |socket: &mut Socket, name: &str| link::lookup(socket, name).unwrap().unwrap().index;

    #[track_caller]
    fn heals(world: &World, site: &Container, what: &str) {
        let verify = world.portolan(&["verify"]);
        assert_eq!(verify.status.code(), Some(1), "{what} is not missed");
        assert!(!verify.stdout.is_empty(), "{what} is not named");
        world.portolan_ok(&["reconcile"]);
        let verify = world.portolan(&["verify"]);
        assert!(verify.status.success(), "{what}: {}", String::from_utf8_lossy(&verify.stdout));
        assert_published(world, site);
    }

    for set in Set::ALL {
        for element in elements(&world, set) {
            nftables(&world, |batch| encode::delete_elements(batch, TABLE, &[&element], Insist::Yes));
            let missed = world.portolan(&["verify"]).status.code() == Some(1);
            assert!(missed, "an element of {} is not missed: {element:?}", set.name());
            world.portolan_ok(&["reconcile"]);
            world.verify();
        }
    }
    assert_published(&world, &site);

    delete_link(&world.h, &host_end);
    heals(&world, &site, "a veth");
    delete_link(&site, &inside);
    heals(&world, &site, "the other end of a veth");
    delete_link(&world.h, &bridge);
    heals(&world, &site, "a bridge");
    for name in [&bridge, &host_end] {
        routing(&world.h, |_, batch| {
            link::set(batch, name.as_str(), &link::LinkChange { up: Some(false), ..link::LinkChange::default() });
        });
        heals(&world, &site, "an interface that is down");
    }
    routing(&site, |_, batch| {
        link::set(batch, inside.as_str(), &link::LinkChange { up: Some(false), ..link::LinkChange::default() });
    });
    heals(&world, &site, "an interface in the sandbox that is down");
    routing(&world.h, |_, batch| {
        link::set(batch, bridge.as_str(), &link::LinkChange { mtu: Some(1300), ..link::LinkChange::default() });
    });
    heals(&world, &site, "another MTU");
    for gateway in ["10.91.0.1/24", "fd91::1/64"] {
        let (ip, len) = gateway.split_once('/').unwrap();
        routing(&world.h, |socket, batch| {
            let index = index(socket, &bridge);
            addr::delete(batch, index, ip.parse().unwrap(), len.parse().unwrap());
        });
        heals(&world, &site, "an address of a bridge");
    }
    for address in ["10.91.0.5/24", "fd91::5/64"] {
        let (ip, len) = address.split_once('/').unwrap();
        routing(&site, |socket, batch| {
            let index = index(socket, &inside);
            addr::delete(batch, index, ip.parse().unwrap(), len.parse().unwrap());
        });
        heals(&world, &site, "an address in the sandbox");
    }
    for address in ["10.91.0.5", "fd91::5"] {
        routing(&world.h, |socket, batch| {
            let index = index(socket, &bridge);
            neigh::delete(batch, index, address.parse().unwrap());
        });
        heals(&world, &site, "a neighbour");
    }
    routing(&world.h, |socket, batch| {
        let index = index(socket, &host_end);
        neigh::fdb_delete(batch, index, site.on("web").mac);
    });
    heals(&world, &site, "a forwarding entry");
    for family in [Family::V4, Family::V6] {
        routing(&site, |socket, batch| {
            let found = route::dump_family(socket, family).unwrap();
            let default =
                found.into_iter().find(|r| r.is_default() && r.table == route::TABLE_MAIN && r.gateway.is_some());
            let Route { gateway, oif, .. } = default.unwrap();
            route::delete(batch, &Route { gateway, oif, ..Route::default_of(family) });
        });
        heals(&world, &site, "a default route");
    }
    world.h.sysctl(&["net", "ipv4", "ip_forward"], "0").unwrap();
    heals(&world, &site, "a sysctl");

    // What is ours and nobody's goes.
    let mut stray = elements(&world, Set::AnyPort(portolan_model::Family::V4)).remove(0);
    stray.key[1] = portolan_plan::Field::Ports(1, 1);
    stray.owner = "container nobody 1:1/tcp".into();
    nftables(&world, |batch| encode::add_elements(batch, TABLE, &[&stray], Insist::Yes));
    heals(&world, &site, "a stray element");

    world.portolan_ok(&["detach", "site"]);
    world.portolan_ok(&["network", "rm", "web", "lan"]);
    world.assert_untouched(&untouched, "the test");
}
