//! Networks of other drivers than bridge: Docker's own of the same name, where it has one.

use anyhow::{Result, ensure};

use super::Case;
use crate::machine::IMAGE;
use crate::scene::*;

pub(crate) const CASES: &[Case] = &[
    ("macvlan: containers are on the LAN, with addresses of either IPAM driver", macvlan),
    ("macvlan: `-o macvlan_mode=private`", private),
    ("macvlan: `restart`, `network disconnect`, Docker killed; nothing is left", macvlan_life),
    ("macvlan: a parent that is not there", no_parent),
    ("ipvlan: containers are on the LAN; a kernel without it is told of", ipvlan),
    ("ptp, which Docker itself has not: containers reach each other and the world, in both families", ptp),
    ("ptp, which Docker itself has not: published ports, `--internal`, apart from other networks", ptp_rules),
    ("ptp, which Docker itself has not: `restart`, Docker and the daemon killed; nothing is left", ptp_life),
];

/// A part of the LAN, whose gateway is the neighbour.
const ON_LAN: [&str; 6] = ["--subnet", "10.0.1.0/24", "--ip-range", "10.0.1.128/26", "--gateway", NEIGHBOUR];
const PARENT: [&str; 2] = ["-o", "parent=eth0"];

fn on_lan(scene: &Scene, driver: &str, more: &[&str]) -> Result<()> {
    scene.network_of(driver, "lan", &[&ON_LAN[..], &PARENT, more].concat())
}

/// Fails if the host still has interfaces that containers were to have.
fn nothing_left(scene: &Scene) -> Result<()> {
    scene.clear_containers()?;
    scene.gone(&[], |line| line.contains("macvlan") || line.contains(": pd") || line.contains(": pv"))?;
    if scene.driver == Driver::Portolan {
        let left = scene.portolan(&["ps", "-q"])?;
        ensure!(left.is_empty(), "left are {left}");
        scene.portolan(&["verify"])?;
    }
    Ok(())
}

fn macvlan(scene: &Scene) -> Result<()> {
    for ipam in [&[][..], scene.ipam()] {
        on_lan(scene, "macvlan", ipam)?;
        let a = scene.run("aa", &["--network", "lan"])?;
        let b = scene.run("bb", &["--network", "lan", "--ip", "10.0.1.77"])?;
        ensure!(b.ip("lan") == "10.0.1.77" && a.ip("lan").starts_with("10.0.1.1"), "it is {}", a.ip("lan"));
        says(&scene.neighbour, at(&a.ip("lan"), 80), "aa")?;
        says(&scene.neighbour, at("10.0.1.77", 80), "bb")?;
        says(&a, at("10.0.1.77", 80), "bb")?;
        let said = scene.docker(&["exec", "aa", "wget", "-qO-", "http://bb/"])?;
        ensure!(said == "bb", "`{said}` answers to the name");
        // The neighbour sees the container itself; the way out leads there.
        let world = udp_server(&scene.neighbour, 5353, "world")?;
        let seen = reaches_by_udp(&a, at(NEIGHBOUR, 5353), "world")?;
        ensure!(seen.to_string() == a.ip("lan"), "the world sees {seen}");
        let routes = scene.docker(&["exec", "aa", "ip", "route"])?;
        ensure!(routes.contains(&format!("default via {NEIGHBOUR}")), "the routes are {routes}");
        drop(world);
        if scene.driver == Driver::Portolan {
            scene.portolan(&["verify"])?;
        }
        nothing_left(scene)?;
        scene.docker(&["network", "rm", "lan"])?;
    }
    Ok(())
}

fn private(scene: &Scene) -> Result<()> {
    on_lan(scene, "macvlan", &["-o", "macvlan_mode=private"])?;
    let a = scene.run("aa", &["--network", "lan"])?;
    let b = scene.run("bb", &["--network", "lan"])?;
    says(&scene.neighbour, at(&b.ip("lan"), 80), "bb")?;
    silent(&a, at(&b.ip("lan"), 80))
}

fn macvlan_life(scene: &Scene) -> Result<()> {
    on_lan(scene, "macvlan", &[])?;
    let run = ["--network", "lan", "--ip", "10.0.1.77", "--mac-address", "02:42:0a:00:01:4d"];
    scene.run("aa", &run)?;
    for _ in 0..2 {
        scene.docker(&["restart", "-t", "0", "aa"])?;
        says(&scene.neighbour, at("10.0.1.77", 80), "aa")?;
    }
    scene.docker(&["network", "disconnect", "lan", "aa"])?;
    silent(&scene.neighbour, at("10.0.1.77", 80))?;
    scene.docker(&["network", "connect", "--ip", "10.0.1.77", "lan", "aa"])?;
    says(&scene.neighbour, at("10.0.1.77", 80), "aa")?;
    if scene.driver == Driver::Portolan {
        scene.kill_daemon()?;
        scene.portolan(&["gc"])?;
        says(&scene.neighbour, at("10.0.1.77", 80), "aa")?;
    }
    scene.kill_docker()?;
    scene.docker(&["start", "aa"])?;
    says(&scene.neighbour, at("10.0.1.77", 80), "aa")?;
    let pid = scene.look("aa")?.details["State"]["Pid"].to_string();
    scene.kill_docker_with(|| scene.machine.run("kill", &["-9", &pid]).map(drop))?;
    scene.docker(&["start", "aa"])?;
    says(&scene.neighbour, at("10.0.1.77", 80), "aa")?;
    nothing_left(scene)
}

fn no_parent(scene: &Scene) -> Result<()> {
    let option = ["-o", "driver=macvlan"];
    let which: &[&str] = if scene.driver == Driver::Bridge { &["-d", "macvlan"] } else { &["-d", "portolan"] };
    let option = if scene.driver == Driver::Bridge { &option[..0] } else { &option[..] };
    let create = [&["network", "create"], which, option, &["-o", "parent=eth7", "lan"]].concat();
    let refused = scene.machine.refused("docker", &create)?;
    ensure!(refused.contains("eth7") || refused.contains("parent"), "it is refused with `{refused}`");
    Ok(())
}

fn ipvlan(scene: &Scene) -> Result<()> {
    let add = ["link", "add", "link", "eth0", "name", "try", "type", "ipvlan"];
    let has_ipvlan = scene.machine.command("ip", &add).output()?.status.success();
    if !has_ipvlan {
        eprintln!("SKIP: ipvlan with {}: this kernel has none", scene.driver.name());
        if scene.driver == Driver::Portolan {
            on_lan(scene, "ipvlan", &[])?;
            let said = scene.machine.refused("docker", &["run", "--network", "lan", IMAGE, "true"])?;
            ensure!(said.contains("ipvlan") && said.contains("hint:"), "it is refused with `{said}`");
            scene.clear_containers()?;
            nothing_left(scene)?;
        }
        return Ok(());
    }
    scene.machine.run("ip", &["link", "del", "try"])?;
    on_lan(scene, "ipvlan", &[])?;
    let a = scene.run("aa", &["--network", "lan"])?;
    let b = scene.run("bb", &["--network", "lan"])?;
    says(&scene.neighbour, at(&a.ip("lan"), 80), "aa")?;
    says(&a, at(&b.ip("lan"), 80), "bb")?;
    nothing_left(scene)
}

const BOTH: [&str; 5] = ["--ipv6", "--subnet", "10.62.0.0/24", "--subnet", "fd62::/64"];

fn ptp(scene: &Scene) -> Result<()> {
    // Docker has no such driver.
    if scene.driver == Driver::Bridge {
        return Ok(());
    }
    for ipam in [&[][..], scene.ipam()] {
        scene.network_of("ptp", "routed", &[&BOTH, ipam].concat())?;
        let a = scene.run("aa", &["--network", "routed"])?;
        // In either half of the subnet.
        let b = scene.run("bb", &["--network", "routed", "--ip", "10.62.0.200", "--ip6", "fd62::8000:0:0:9"])?;
        for address in ["10.62.0.200", "fd62::8000:0:0:9"] {
            says(&a, at(address, 80), "bb")?;
            says(&scene.host, at(address, 80), "bb")?;
        }
        says(&b, at(&a.ip("routed"), 80), "aa")?;
        says(&b, at(&a.on("routed", "GlobalIPv6Address"), 80), "aa")?;
        let said = scene.docker(&["exec", "aa", "wget", "-qO-", "http://bb/"])?;
        ensure!(said == "bb", "`{said}` answers to the name");
        let _world = udp_server(&scene.neighbour, 5353, "world")?;
        for (there, here) in [(NEIGHBOUR, HOST), (NEIGHBOUR6, HOST6)] {
            let seen = reaches_by_udp(&a, at(there, 5353), "world")?;
            ensure!(seen.to_string() == here, "the world sees {seen}");
        }
        scene.portolan(&["verify"])?;
        nothing_left(scene)?;
        scene.docker(&["network", "rm", "routed"])?;
    }
    Ok(())
}

fn ptp_rules(scene: &Scene) -> Result<()> {
    if scene.driver == Driver::Bridge {
        return Ok(());
    }
    scene.network_of("ptp", "routed", &BOTH)?;
    scene.network("web", &[])?;
    let a = scene.run("aa", &["--network", "routed", "-p", "8080:80"])?;
    let b = scene.run("bb", &["--network", "web"])?;
    says(&scene.neighbour, at(HOST, 8080), "aa")?;
    says(&scene.neighbour, at(HOST6, 8080), "aa")?;
    silent(&a, at(&b.ip("web"), 80))?;
    silent(&b, at(&a.ip("routed"), 80))?;
    scene.network_of("ptp", "inner", &["--internal", "--subnet", "10.63.0.0/24"])?;
    let c = scene.run("cc", &["--network", "inner"])?;
    let d = scene.run("dd", &["--network", "inner"])?;
    says(&c, at(&d.ip("inner"), 80), "dd")?;
    let _world = udp_server(&scene.neighbour, 5353, "world")?;
    let probe = portolan_lab::probe::udp_probe(&c, at(NEIGHBOUR, 5353), SHORT);
    ensure!(!probe.is_open(), "the world answers: {probe}");
    silent(&c, at(&a.ip("routed"), 80))
}

fn ptp_life(scene: &Scene) -> Result<()> {
    if scene.driver == Driver::Bridge {
        return Ok(());
    }
    scene.network_of("ptp", "routed", &BOTH)?;
    scene.run("aa", &["--network", "routed", "-p", "8080:80"])?;
    scene.docker(&["restart", "-t", "0", "aa"])?;
    says(&scene.neighbour, at(HOST, 8080), "aa")?;
    scene.kill_daemon()?;
    says(&scene.neighbour, at(HOST, 8080), "aa")?;
    scene.kill_docker()?;
    scene.docker(&["start", "aa"])?;
    says(&scene.neighbour, at(HOST, 8080), "aa")?;
    scene.docker(&["network", "disconnect", "routed", "aa"])?;
    scene.docker(&["network", "connect", "routed", "aa"])?;
    let a = scene.look("aa")?;
    says(&scene.host, at(&a.ip("routed"), 80), "aa")?;
    nothing_left(scene)
}
