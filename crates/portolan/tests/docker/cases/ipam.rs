//! Subnets and addresses that an IPAM driver gives: ours to networks of either driver.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use portolan_lab::eventually;
use serde_json::Value;

use super::Case;
use crate::machine::IMAGE;
use crate::scene::*;

pub(crate) const CASES: &[Case] = &[
    ("`--subnet`, `--ip-range`, `--gateway`, `--aux-address`", chosen),
    ("subnets that are chosen for networks overlap nothing", free),
    ("`--ipv6`", both_families),
    ("`--ip`, and the same once more", static_address),
    ("a full subnet, and room again", full),
    ("the same subnet twice", twice),
    ("on a network of driver `bridge`", dockers_bridge),
    ("addresses are still taken when the plugin's daemon was killed", daemon_killed),
    ("addresses are still taken when Docker was killed", docker_killed),
    ("Docker killed while it creates containers: no address is lost", killed_at_containers),
    ("Docker killed while it creates networks: no subnet is lost", killed_at_networks),
    ("what is given to a Docker that was killed meanwhile is had again", given_to_nobody),
    ("the plugin's daemon killed while Docker creates: no address is lost", daemon_killed_while_creating),
];

fn chosen(scene: &Scene) -> Result<()> {
    let subnet = ["--subnet", "10.60.0.0/16", "--ip-range", "10.60.7.0/28", "--gateway", "10.60.9.9"];
    let aux = ["--aux-address", "a=10.60.7.1", "--aux-address", "b=10.60.8.8"];
    scene.addressed("web", &[&subnet[..], &aux].concat())?;
    let a = scene.run("aa", &["--network", "web"])?;
    let b = scene.run("bb", &["--network", "web"])?;
    let range: IpNet = "10.60.7.0/28".parse()?;
    for container in [&a, &b] {
        let ip = container.ip("web");
        ensure!(range.contains(&ip.parse::<std::net::IpAddr>()?) && ip != "10.60.7.1", "its address is {ip}");
    }
    let inside = scene.docker(&["exec", "aa", "ip", "route"])?;
    ensure!(inside.contains("default via 10.60.9.9") && inside.contains("10.60.0.0/16"), "the routes are {inside}");
    says(&a, at(&b.ip("web"), 80), "bb")?;
    let _world = udp_server(&scene.neighbour, 5353, "world")?;
    reaches_by_udp(&a, at(NEIGHBOUR, 5353), "world")?;
    for taken in ["10.60.8.8", "10.60.9.9"] {
        scene.machine.refused("docker", &["run", "--network", "web", "--ip", taken, IMAGE, "true"])?;
    }
    Ok(())
}

fn subnet_of(scene: &Scene, network: &str) -> Result<IpNet> {
    let said = scene.docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", network])?;
    said.parse().with_context(|| format!("`{said}` is the subnet of {network}"))
}

fn free(scene: &Scene) -> Result<()> {
    // The host knows the way to the first that would be taken.
    scene.machine.run("ip", &["route", "add", "172.18.0.0/16", "via", NEIGHBOUR])?;
    let outcome = chosen_apart(scene);
    scene.machine.run("ip", &["route", "del", "172.18.0.0/16"])?;
    outcome
}

fn chosen_apart(scene: &Scene) -> Result<()> {
    let mut nets: Vec<IpNet> = vec!["172.18.0.0/16".parse()?, "172.17.0.0/16".parse()?, "10.0.1.0/24".parse()?];
    for name in ["one", "two"] {
        scene.addressed(name, &[])?;
        nets.push(subnet_of(scene, name)?);
    }
    scene.docker(&[&["network", "create", "-d", "bridge"], scene.ipam(), &["three"]].concat())?;
    nets.push(subnet_of(scene, "three")?);
    if scene.driver == Driver::Portolan {
        scene.portolan(&["network", "create", "--ipv6=false", "ours"])?;
        let said: Value = serde_json::from_str(&scene.portolan(&["network", "inspect", "ours"])?)?;
        let net = said.pointer("/0/IPAM/Config/0/Subnet").and_then(|net| net.as_str()).context("it has a subnet")?;
        nets.push(net.parse()?);
        let refused =
            scene.machine.refused(PORTOLAN, &["network", "create", "--subnet", &nets[3].to_string(), "other"])?;
        ensure!(refused.contains("overlaps"), "it is refused with `{refused}`");
        let net = net.to_owned();
        let said = scene.machine.refused(
            "docker",
            &[&["network", "create", "-d", "bridge"], scene.ipam(), &["--subnet", &net, "four"]].concat(),
        )?;
        ensure!(said.contains("overlaps"), "it is refused with `{said}`");
        scene.portolan(&["network", "rm", "ours"])?;
    }
    for (place, net) in nets.iter().enumerate() {
        let other = nets[place + 1..].iter().find(|other| net.contains(*other) || other.contains(net));
        ensure!(other.is_none(), "{net} and {other:?} overlap, of {nets:?}");
    }
    Ok(())
}

fn both_families(scene: &Scene) -> Result<()> {
    // Docker's own has no subnets of IPv6 to choose from.
    let subnets: &[&str] = match scene.driver {
        Driver::Bridge => &["--subnet", "10.60.0.0/24", "--subnet", "fd60::/64"],
        Driver::Portolan | Driver::Managed => &[],
    };
    scene.addressed("web", &[&["--ipv6"], subnets].concat())?;
    let a = scene.run("aa", &["--network", "web"])?;
    let b = scene.run("bb", &["--network", "web"])?;
    says(&a, at(&b.on("web", "GlobalIPv6Address"), 80), "bb")?;
    says(&a, at(&b.ip("web"), 80), "bb")
}

fn static_address(scene: &Scene) -> Result<()> {
    scene.addressed("web", &["--subnet", "10.60.0.0/24"])?;
    let run = ["--network", "web", "--ip", "10.60.0.77"];
    let a = scene.run("aa", &run)?;
    ensure!(a.ip("web") == "10.60.0.77", "its address is {}", a.ip("web"));
    let b = scene.run("bb", &["--network", "web"])?;
    says(&b, at("10.60.0.77", 80), "aa")?;
    let refused = scene.machine.refused("docker", &[&["run"], &run[..], &[IMAGE, "true"]].concat())?;
    ensure!(refused.contains("already in use"), "the second is refused with `{refused}`");
    scene.docker(&["rm", "-f", "aa"])?;
    scene.run("cc", &run)?;
    says(&b, at("10.60.0.77", 80), "cc")
}

/// Starts as many containers as a /29 has addresses for, and no more.
fn fill(scene: &Scene) -> Result<()> {
    for n in 0..5 {
        scene.run(&format!("c{n}"), &["--network", "web"])?;
    }
    let refused = scene.machine.refused("docker", &["run", "--network", "web", IMAGE, "true"])?;
    ensure!(refused.contains("no ") && refused.contains("address"), "the sixth is refused with `{refused}`");
    Ok(())
}

fn full(scene: &Scene) -> Result<()> {
    scene.addressed("web", &["--subnet", "10.60.0.0/29"])?;
    fill(scene)?;
    scene.docker(&["rm", "-f", "c3"])?;
    let again = scene.run("again", &["--network", "web"])?;
    let other = scene.look("c0")?;
    says(&other, at(&again.ip("web"), 80), "again")
}

fn twice(scene: &Scene) -> Result<()> {
    scene.addressed("web", &["--subnet", "10.60.0.0/24"])?;
    let a = scene.run("aa", &["--network", "web"])?;
    let driver = scene.driver.name();
    for _ in 0..2 {
        let create = [&["network", "create", "-d", driver], scene.ipam(), &["--subnet", "10.60.0.0/16", "again"]];
        let refused = scene.machine.refused("docker", &create.concat())?;
        ensure!(refused.contains("overlap"), "it is refused with `{refused}`");
    }
    let b = scene.run("bb", &["--network", "web"])?;
    ensure!(a.ip("web") != b.ip("web"), "both have {}", a.ip("web"));
    says(&a, at(&b.ip("web"), 80), "bb")
}

fn dockers_bridge(scene: &Scene) -> Result<()> {
    let create = [&["network", "create", "-d", "bridge"], scene.ipam(), &["--subnet", "10.60.0.0/24", "web"]];
    scene.docker(&create.concat())?;
    let a = scene.run("aa", &["--network", "web", "-p", "8080:80"])?;
    let b = scene.run("bb", &["--network", "web", "--ip", "10.60.0.77"])?;
    says(&a, at("10.60.0.77", 80), "bb")?;
    says(&scene.neighbour, at(HOST, 8080), "aa")?;
    let _world = udp_server(&scene.neighbour, 5353, "world")?;
    reaches_by_udp(&b, at(NEIGHBOUR, 5353), "world")?;
    scene.kill_docker()?;
    scene.docker(&["start", "aa", "bb"])?;
    ensure!(scene.look("bb")?.ip("web") == "10.60.0.77", "its address has changed");
    // Those that were killed still answer for a while: Docker's bridge driver forgets them with their interfaces on.
    let (c, d) = (scene.run("cc", &["--network", "web"])?, scene.run("dd", &["--network", "web"])?);
    says(&c, at(&d.ip("web"), 80), "dd")?;
    let refused = scene.machine.refused("docker", &["run", "--network", "web", "--ip", "10.60.0.77", IMAGE, "true"])?;
    ensure!(refused.contains("already in use"), "it is refused with `{refused}`");
    Ok(())
}

fn daemon_killed(scene: &Scene) -> Result<()> {
    scene.addressed("web", &["--subnet", "10.60.0.0/24"])?;
    let a = scene.run("aa", &["--network", "web", "--ip", "10.60.0.3"])?;
    if scene.driver == Driver::Portolan {
        scene.kill_daemon()?;
    }
    let refused = scene.machine.refused("docker", &["run", "--network", "web", "--ip", "10.60.0.3", IMAGE, "true"])?;
    ensure!(refused.contains("already in use"), "it is refused with `{refused}`");
    for name in ["bb", "cc", "dd"] {
        let other = scene.run(name, &["--network", "web"])?;
        ensure!(other.ip("web") != a.ip("web"), "{name} has the same address");
        says(&a, at(&other.ip("web"), 80), name)?;
    }
    Ok(())
}

fn docker_killed(scene: &Scene) -> Result<()> {
    scene.addressed("web", &["--subnet", "10.60.0.0/29"])?;
    fill(scene)?;
    scene.kill_docker()?;
    scene.docker(&["start", "c0", "c1", "c2", "c3", "c4"])?;
    let refused = scene.machine.refused("docker", &["run", "--network", "web", IMAGE, "true"])?;
    ensure!(refused.contains("no ") && refused.contains("address"), "the sixth is refused with `{refused}`");
    says(&scene.look("c0")?, at(&scene.look("c4")?.ip("web"), 80), "c4")?;
    // One network more, and both go.
    scene.addressed("other", &[])?;
    scene.clear()?;
    scene.addressed("web", &["--subnet", "10.60.0.0/29"])
}

/// Has Docker do something and does `harm` meanwhile, so many milliseconds later.
fn disturbed(scene: &Scene, delay: u64, args: &[&str], harm: impl Fn(&Scene) -> Result<()>) -> Result<()> {
    let mut child = scene.machine.command("docker", args).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // Not to wait for anything: to be somewhere else each time.
    std::thread::sleep(Duration::from_millis(delay));
    harm(scene)?;
    child.wait()?;
    scene.clear_containers()
}

fn containers_while(scene: &Scene, delays: &[u64], harm: impl Fn(&Scene) -> Result<()>) -> Result<()> {
    scene.addressed("web", &["--subnet", "10.60.0.0/29"])?;
    for delay in delays {
        disturbed(scene, *delay, &["run", "-d", "--network", "web", IMAGE], &harm)?;
    }
    fill(scene)
}

fn killed_at_containers(scene: &Scene) -> Result<()> {
    containers_while(scene, &[60, 90, 120, 150, 180, 210, 240], Scene::kill_docker)
}

fn killed_at_networks(scene: &Scene) -> Result<()> {
    for delay in [10, 20, 30, 40, 50, 70, 90] {
        let create = ["network", "create", "-d", scene.driver.name()];
        disturbed(scene, delay, &[&create, scene.ipam(), &["one"]].concat(), Scene::kill_docker)?;
        scene.docker(&["network", "prune", "--force"])?;
    }
    scene.addressed("one", &[])?;
    let a = scene.run("aa", &["--network", "one"])?;
    says(&scene.host, at(&a.ip("one"), 80), "aa")?;
    if scene.driver == Driver::Portolan {
        let pools = scene.portolan(&["network", "pools", "-q"])?;
        ensure!(pools.lines().count() == 1, "given are {pools}");
        let networks = scene.portolan(&["network", "ls", "-q"])?;
        ensure!(networks.lines().count() == 4, "there are {networks}");
    }
    Ok(())
}

/// Has Docker ask for something that it does not live to be given; done when we have given it.
fn ask_and_die(scene: &Scene, args: &[&str], is_given: impl Fn(&Value) -> bool) -> Result<()> {
    // Whoever holds the lock keeps the daemon from giving anything.
    let hold = "echo $$ > /run/holder; exec 9<> /var/lib/portolan/lock; flock 9; exec sleep 600";
    let mut holder = scene.machine.command("sh", &["-c", hold]).spawn().context("start flock")?;
    let daemon = scene.daemon()?;
    let is_holding = || scene.machine.run("flock", &["-n", "/var/lib/portolan/lock", "true"]).is_err();
    ensure!(eventually(LONG, is_holding), "the lock cannot be had");
    let mut child = scene.machine.command("docker", args).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // It waits for the lock (fs/locks.c, `flock_lock_inode_wait`).
    let at = format!("cat /proc/{daemon}/task/*/wchan");
    let is_asked = || scene.machine.run("sh", &["-c", &at]).is_ok_and(|said| said.contains("lock_inode_wait"));
    let was_asked = eventually(LONG, is_asked);
    scene.kill_docker_with(|| {
        scene.machine.run("sh", &["-c", "kill $(cat /run/holder)"])?;
        holder.wait()?;
        let pools = || serde_json::from_str(&scene.portolan(&["network", "pools", "--json"])?).context("it is JSON");
        ensure!(was_asked, "Docker does not ask");
        ensure!(eventually(LONG, || pools().is_ok_and(|pools: Value| is_given(&pools))), "nobody is given it");
        Ok(())
    })?;
    child.wait()?;
    Ok(())
}

fn given_to_nobody(scene: &Scene) -> Result<()> {
    if scene.driver == Driver::Bridge {
        return Ok(());
    }
    scene.addressed("web", &["--subnet", "10.60.0.0/29"])?;
    let taken = |count: u64| {
        move |pools: &Value| pools.as_array().is_some_and(|all| all.iter().any(|pool| pool["Addresses"] == count))
    };
    ask_and_die(scene, &["run", "-d", "--network", "web", IMAGE], taken(2))?;
    fill(scene)?;
    scene.clear_containers()?;
    let create = [&["network", "create", "-d", "portolan"], scene.ipam(), &["two"]].concat();
    ask_and_die(scene, &create, |pools| pools.as_array().is_some_and(|all| all.len() == 2))?;
    scene.run("cc", &["--network", "web"])?;
    let pools = scene.portolan(&["network", "pools", "-q"])?;
    ensure!(pools == "10.60.0.0/29", "given are {pools}");
    Ok(())
}

fn daemon_killed_while_creating(scene: &Scene) -> Result<()> {
    if scene.driver == Driver::Bridge {
        return Ok(());
    }
    containers_while(scene, &[40, 60, 80, 100, 120, 140, 160, 180], Scene::kill_daemon)
}
