//! Several hosts with a real Docker each, whose containers are on one network of Portolan's; without a swarm, and in one.

#[path = "../machine/mod.rs"]
mod machine;
mod swarm;
mod world;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::eventually;
use portolan_lab::probe::ping;
use portolan_lab::snapshot::diff;
use serde_json::Value;
use world::{Container, LONG, Node, World, at, reaches, says, tcp_server};

/// What has Docker's network be one of ours.
const REFERS: [&str; 7] = ["network", "create", "-d", "portolan", "--ipam-driver", "null", "-o"];

#[test]
fn dockers_of_several_hosts_share_a_network() {
    let Some(world) = World::or_skip("docker-cluster", &["a", "b"]) else { return };
    share(&world).expect("Docker does as asked");
}

fn inspect(node: &Node, network: &str) -> Result<Value> {
    let inspected: Value = serde_json::from_str(&node.portolan(&["network", "inspect", network])?)?;
    Ok(inspected[0].clone())
}

/// Where a network's containers ask for names.
fn gateway(node: &Node, network: &str) -> Result<String> {
    let gateway = inspect(node, network)?["IPAM"]["Config"][0]["Gateway"].as_str().map(str::to_owned);
    gateway.context("it has a gateway")
}

fn identity(node: &Node, network: &str) -> Result<String> {
    Ok(inspect(node, network)?["Id"].to_string())
}

fn reach(from: &Container, to: &Container) -> Result<()> {
    let addresses = to.addresses("web");
    ensure!(addresses.len() == 2, "{addresses:?}");
    for address in addresses {
        let mut last = None;
        let is_open = || last.insert(ping(from, address, Duration::from_secs(2))).is_open();
        ensure!(eventually(LONG, is_open), "{address} is not reached: {last:?}");
    }
    Ok(())
}

fn share(world: &World) -> Result<()> {
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    let before = [a.snapshot()?, b.snapshot()?];

    // What would have addresses that somebody else gives is refused with what to do, and so is what is not there.
    let said = a.machine.refused("docker", &["network", "create", "-d", "portolan", "-o", "network=web", "web"])?;
    ensure!(said.contains("--ipam-driver null"), "{said}");
    let said = a.machine.refused("docker", &[&REFERS[..], &["network=nowhere", "web"]].concat())?;
    ensure!(said.contains("`nowhere` is not there"), "{said}");

    a.portolan(&["network", "create", "-d", "overlay", "web"])?;
    world.at_all(|node| node.docker(&[&REFERS[..], &["network=web", "web"]].concat()).map(drop))?;
    let dns = gateway(a, "web")?;
    let on: [&str; 4] = ["--network", "web", "--dns", &dns];
    let a1 = a.run("a1", &on)?;
    let b1 = b.run("b1", &[&on[..], &["--network-alias", "db", "-p", "8080:80"]].concat())?;
    let b2 = b.run("b2", &on)?;
    world.at_all(|node| node.portolan(&["doctor", "--open"]).map(drop))?;

    // By address, and by name.
    for (from, to) in [(&a1, &b1), (&b1, &a1), (&b1, &b2), (&b2, &a1)] {
        reach(from, to)?;
    }
    says(&a1, SocketAddr::new(b1.addresses("web")[0], 80), "b1")?;
    for (node, from, called, name) in [
        (a, "a1", "b1", "b1"),
        (a, "a1", "db", "b1"),
        (b, "b1", "a1", "a1"),
        (b, "b2", "b1", "b1"),
        (b, "b2", "db", "b1"),
    ] {
        node.finds(from, called, name)?;
    }

    // Published ports, and the way out.
    says(&world.neighbour, at(&b.address, 8080), "b1")?;
    says(&a.host, at(&b.address, 8080), "b1")?;
    let ports = b.portolan(&["port", "b1"])?;
    ensure!(ports.contains("80/tcp -> 0.0.0.0:8080"), "{ports}");
    let server = tcp_server(&world.neighbour, 9000, "outside")?;
    let seen = reaches(&a1, at(world::NEIGHBOUR, 9000), "outside")?;
    ensure!(seen.to_string() == a.address, "it leaves as {seen}");
    drop(server);

    // Another name, another start, and somebody who goes.
    b.docker(&["rename", "b2", "other"])?;
    a.finds("a1", "other", "b2")?;
    b.docker(&["restart", "-t", "0", "b1"])?;
    a.finds("a1", "db", "b1")?;
    says(&world.neighbour, at(&b.address, 8080), "b1")?;
    b.docker(&["rm", "-f", "other"])?;
    ensure!(eventually(LONG, || a.resolves("a1", "other").is_empty()), "`other` is still known");

    // Our daemon dies: packets go on, and what Docker asks for afterwards is done.
    let target = b.look("b1")?.addresses("web")[0];
    a.kill_daemon()?;
    says(&a1, SocketAddr::new(target, 80), "b1")?;
    a.portolan(&["daemon", "start", "--docker"])?;
    let late = a.run("late", &on)?;
    says(&late, SocketAddr::new(target, 80), "b1")?;
    a.finds("late", "b1", "b1")?;
    b.finds("b1", "late", "late")?;

    // Docker dies with its containers: nothing of them stays, here or there, and all of it can be started again.
    b.kill_docker()?;
    b.start_docker()?;
    ensure!(
        eventually(LONG, || a.resolves("a1", "db").is_empty()),
        "`db` is still known: {:?}",
        a.resolves("a1", "db")
    );
    b.docker(&["start", "b1"])?;
    a.finds("a1", "db", "b1")?;
    reach(&a1, &b.look("b1")?)?;
    says(&world.neighbour, at(&b.address, 8080), "b1")?;

    // Docker's network is one of several that refer to ours, which goes when nobody is on it.
    world.at_all(|node| {
        let all = node.docker(&["ps", "-aq"])?;
        let all: Vec<&str> = all.split_whitespace().collect();
        node.docker(&[&["rm", "-f"], &all[..]].concat())?;
        node.docker(&["network", "rm", "web"])?;
        node.portolan(&["verify"])?;
        Ok(())
    })?;
    let mut last = String::new();
    let is_gone = || {
        let output = a.machine.command(world::PORTOLAN, &["network", "rm", "web"]).output();
        output.is_ok_and(|output| {
            last = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success()
        })
    };
    ensure!(eventually(LONG, is_gone), "{last}");

    // One that is made where it is asked for first.
    let made = [&REFERS[..], &["network=own", "-o", "driver=overlay", "mine"]].concat();
    world.at_all(|node| node.docker(&made).map(drop))?;
    ensure!(identity(a, "own")? == identity(b, "own")?, "it is another network on each host");
    world.at_all(|node| node.docker(&["network", "rm", "mine"]).map(drop))?;
    b.portolan(&["network", "rm", "own"])?;

    world.at_all(|node| node.portolan(&["doctor", "--close"]).map(drop))?;
    for (node, before) in [a, b].iter().zip(before) {
        let mut last = String::new();
        let is_same = || {
            last = node.snapshot().map_or_else(|error| error.to_string(), |now| diff(&before, &now).join("\n"));
            last.is_empty()
        };
        ensure!(eventually(LONG, is_same), "host {} keeps: {last}", node.name);
    }
    Ok(())
}
