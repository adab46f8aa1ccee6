//! Published ports.

use anyhow::{Result, ensure};

use super::Case;
use crate::machine::IMAGE;
use crate::scene::*;

pub(crate) const CASES: &[Case] = &[
    ("`-p` of TCP: from the LAN, from the host by any address of it, from itself", tcp),
    ("`-p` of UDP", udp),
    ("`-p` of a range, and of any port", ranges),
    ("`-p` on one address of the host", one_address),
    ("`-p` by IPv6", ipv6),
    ("two containers and one port", taken),
    ("a port opens with `start` and closes with `stop`", start_and_stop),
    ("206 ports", many),
];

fn tcp(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    for address in [HOST, HOST_SECOND, "127.0.0.1"] {
        says(&scene.host, at(address, 8080), "site")?;
    }
    says(&site, at(HOST, 8080), "site")?;
    if scene.driver != Driver::Bridge {
        let ports = scene.portolan(&["ps"])?;
        ensure!(ports.contains("8080"), "`portolan` does not show it: {ports}");
    }
    Ok(())
}

fn udp(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "-p", "5300:53/udp"])?;
    let _server = udp_server(&site, 53, "datagrams")?;
    reaches_by_udp(&scene.neighbour, at(HOST, 5300), "datagrams")?;
    reaches_by_udp(&scene.host, at("127.0.0.1", 5300), "datagrams").map(drop)
}

fn ranges(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8079-8081:79-81"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.run("first", &["--network", "web", "-p", "8080-8090:80"])?;
    says(&scene.neighbour, at(HOST, 8082), "first")?;
    scene.run("any", &["--network", "web", "-p", "80"])?;
    Ok(())
}

fn one_address(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "10.0.1.11:8080:80", "-p", "127.0.0.1:8081:80"])?;
    says(&scene.neighbour, at(HOST_SECOND, 8080), "site")?;
    silent(&scene.neighbour, at(HOST, 8080))?;
    says(&scene.host, at("127.0.0.1", 8081), "site")?;
    silent(&scene.neighbour, at(HOST, 8081))
}

fn ipv6(scene: &Scene) -> Result<()> {
    scene.network("web", &["--ipv6", "--subnet", "10.60.0.0/24", "--subnet", "fd60::/64"])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    says(&scene.neighbour, at(HOST6, 8080), "site")?;
    says(&scene.host, at("::1", 8080), "site")
}

fn taken(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    let said = scene
        .machine
        .refused("docker", &["run", "-d", "--name", "late", "--network", "web", "-p", "8080:80", IMAGE])?;
    ensure!(said.contains("8080"), "it is refused with `{said}`");
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.docker(&["rm", "-f", "site"])?;
    scene.docker(&["start", "late"])?;
    Ok(())
}

fn start_and_stop(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    for _ in 0..3 {
        says(&scene.neighbour, at(HOST, 8080), "site")?;
        scene.docker(&["stop", "-t", "0", "site"])?;
        silent(&scene.neighbour, at(HOST, 8080))?;
        scene.docker(&["start", "site"])?;
    }
    Ok(())
}

fn many(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "9000-9205:80-285"])?;
    says(&scene.neighbour, at(HOST, 9000), "site")
}
