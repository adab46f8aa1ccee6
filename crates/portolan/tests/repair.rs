//! What others break is put back, and nothing opens meanwhile.

mod common;

use std::time::{Duration, Instant};

use common::*;
use portolan_kernel::rtnl::{Family, addr, link, neigh, route};
use portolan_lab::eventually;
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::TcpServer;

fn world(name: &str) -> Option<World> {
    let mut world = World::or_skip(name)?;
    world.daemon = true;
    Some(world)
}

/// Waits until the kernel holds what the rows say; how long that took.
#[track_caller]
fn repaired(world: &World, what: &str) -> Duration {
    let started = Instant::now();
    let is_whole = || world.portolan(&["verify"]).status.success();
    assert!(eventually(LONG, is_whole), "{what}: {}", String::from_utf8_lossy(&world.portolan(&["verify"]).stdout));
    let took = started.elapsed();
    eprintln!("{what}: back after {took:?}");
    took
}

fn index_of(world: &World, alias: &str) -> (u32, String) {
    let found = links(&world.h).into_iter().find(|link| link.alias.as_ref().is_some_and(|a| a.contains(alias)));
    let link = found.expect("such an interface is there");
    (link.index, link.name)
}

#[test]
fn everything_that_goes_comes_back() {
    let Some(world) = world("repair") else { return };
    world.network("web", &["--subnet", "10.91.0.0/24", "--subnet", "fd91::/64"]);
    let site = world.container("site", &["--network", "web", "-p", "8080:80"]);
    let bridge = || index_of(&world, ":network:");
    let port = || index_of(&world, ":endpoint:");

    world.nft("flush ruleset");
    repaired(&world, "nft flush ruleset");
    world.nft("delete table inet portolan");
    repaired(&world, "the table deleted");
    world.nft("delete table bridge portolan");
    repaired(&world, "the guard deleted");
    world.nft("delete element inet portolan any_port4 { tcp . 8080 }");
    repaired(&world, "an element deleted");
    world.nft("add element inet portolan gateways4 { 192.0.2.1 }");
    repaired(&world, "an element added");
    world.nft("flush chain inet portolan forward");
    repaired(&world, "a chain flushed");
    routing(&world, |_, batch| link::delete(batch, port().1.as_str()));
    repaired(&world, "a port deleted");
    routing(&world, |_, batch| link::delete(batch, bridge().1.as_str()));
    repaired(&world, "the bridge deleted");
    let down = link::LinkChange { up: Some(false), ..link::LinkChange::default() };
    routing(&world, |_, batch| link::set(batch, port().0, &down));
    repaired(&world, "a port set down");
    routing(&world, |_, batch| link::set(batch, bridge().0, &down));
    repaired(&world, "the bridge set down");
    routing(&world, |_, batch| addr::delete(batch, bridge().0, "10.91.0.1".parse().unwrap(), 24));
    repaired(&world, "a gateway address removed");
    for (net, prefix) in [("10.91.0.0", 24), ("fd91::", 64)] {
        routing(&world, |_, batch| {
            let gone = route::Route {
                oif: Some(bridge().0),
                protocol: route::PROTOCOL_KERNEL,
                ..route::Route::new(net.parse().unwrap(), prefix)
            };
            route::delete(batch, &gone);
        });
        repaired(&world, "the route to the network removed");
    }
    routing(&world, |socket, batch| {
        let (bridge, _) = bridge();
        let permanent =
            |n: &neigh::Neighbour| n.ifindex == bridge && n.state & neigh::NUD_PERMANENT != 0 && n.mac.is_some();
        for neighbour in neigh::dump(socket, None).unwrap().into_iter().filter(permanent) {
            neigh::delete(batch, bridge, neighbour.addr);
        }
    });
    repaired(&world, "the neighbours removed");
    routing(&world, |socket, batch| {
        let entries = neigh::fdb_dump(socket, bridge().0).unwrap();
        let entry = entries.into_iter().find(neigh::FdbEntry::is_static).expect("an entry for the port");
        neigh::fdb_delete(batch, entry.port, entry.mac);
    });
    repaired(&world, "a forwarding entry removed");

    for family in [Family::V4, Family::V6] {
        let _server = TcpServer::start(&site, any(family, 80), "site").unwrap();
        let probe = tcp_probe(&world.n, at(host_ip(family), 8080), LONG);
        assert_eq!(probe.banner(), Some("site"), "{probe}");
    }
}

#[test]
fn a_container_whose_namespace_dies_is_taken_down() {
    let Some(world) = world("reap") else { return };
    world.container("stays", &["--network", "bridge"]);
    let mut gone = world.mortal();
    world.portolan_ok(&[
        "attach",
        "--pid",
        &gone.id().to_string(),
        "--name",
        "gone",
        "--network",
        "bridge",
        "-p",
        "8080:80",
    ]);
    assert_eq!(world.portolan_ok(&["ps", "-aq"]).lines().count(), 2);
    let started = Instant::now();
    gone.kill().unwrap();
    gone.wait().unwrap();
    assert!(eventually(LONG, || world.portolan_ok(&["ps", "-aq"]).lines().count() == 1));
    eprintln!("taken down after {:?}", started.elapsed());
    world.verify();
    world.container("next", &["--network", "bridge", "-p", "8080:80"]);
}

#[test]
fn the_mtu_follows_the_uplink() {
    let Some(world) = world("uplink") else { return };
    world.network("follows", &[]);
    world.network("chosen", &["--opt", "mtu=1400"]);
    let site = world.container("site", &["--network", "follows", "--network", "chosen"]);
    let mtus = || ["eth0", "eth1"].map(|name| interface(&site, name).map_or(0, |link| link.mtu));
    assert_eq!(mtus(), [1500, 1400]);
    let smaller = link::LinkChange { mtu: Some(1450), ..link::LinkChange::default() };
    routing(&world, |_, batch| link::set(batch, "eth0", &smaller));
    assert!(eventually(LONG, || mtus() == [1450, 1400]), "{:?}", mtus());
    world.verify();
    assert_eq!(world.json(&["network", "inspect", "follows"])[0]["MTU"], 1450);
}
