//! Ports published on the host.

use anyhow::{Result, ensure};
use portolan_lab::sctp::{SctpServer, sctp_probe};

use super::Case;
use crate::machine::IMAGE;
use crate::scene::*;

pub(crate) const CASES: &[Case] = &[
    ("TCP, from the LAN, the client's address kept", from_the_lan),
    ("TCP, from the host itself, by each of its addresses", from_the_host),
    ("TCP, from another container, by the host's address", from_a_container),
    ("TCP, from itself, by the host's address", from_itself),
    ("UDP", udp),
    ("SCTP", sctp),
    ("a range", range),
    ("a port chosen by Podman", any_port),
    ("on one address of the host", one_address),
    ("on 127.0.0.1", loopback),
    ("IPv6, from the LAN and the host", ipv6),
    ("IPv6, from the host, by `[::1]`", from_loopback6),
    ("of a container without IPv4", without_ipv4),
    ("of a container without IPv6, from IPv6 clients", without_ipv6),
    ("on `[::1]` alone, where Podman itself listens: for nobody else", loopback6),
    ("on several networks", several_networks),
    ("the same port twice is refused", twice),
    ("free again when `rm` returns", free_again),
];

fn from_the_lan(scene: &Scene) -> Result<()> {
    let site = scene.run("site", &["-p", "8080:80", "-p", "8081:81"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    let _server = tcp_server(&site, 81, "tells")?;
    let seen = reaches(&scene.neighbour, at(HOST, 8081), "tells")?;
    ensure!(seen == at(NEIGHBOUR, 0).ip(), "it sees {seen}");
    silent(&scene.neighbour, at(HOST, 8082))
}

fn from_the_host(scene: &Scene) -> Result<()> {
    scene.run("site", &["-p", "8080:80"])?;
    for ip in [HOST, HOST_SECOND, "127.0.0.1"] {
        says(&scene.host, at(ip, 8080), "site")?;
    }
    Ok(())
}

fn from_a_container(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    let beside = scene.run("beside", &["--network", "web"])?;
    let elsewhere = scene.run("elsewhere", &[])?;
    says(&beside, at(HOST, 8080), "site")?;
    says(&elsewhere, at(HOST, 8080), "site")
}

fn from_itself(scene: &Scene) -> Result<()> {
    let site = scene.run("site", &["-p", "8080:80"])?;
    says(&site, at(HOST, 8080), "site")
}

fn udp(scene: &Scene) -> Result<()> {
    let site = scene.run("site", &["-p", "5300:53/udp"])?;
    let beside = scene.run("beside", &[])?;
    let _server = udp_server(&site, 53, "site")?;
    reaches_by_udp(&scene.neighbour, at(HOST, 5300), "site")?;
    reaches_by_udp(&scene.host, at(HOST, 5300), "site")?;
    reaches_by_udp(&beside, at(HOST, 5300), "site")?;
    silent(&scene.neighbour, at(HOST, 5300))
}

fn sctp(scene: &Scene) -> Result<()> {
    let site = scene.run("site", &["-p", "7000:70/sctp"])?;
    let _server = SctpServer::start(&site, at("0.0.0.0", 70), "site")?;
    opened(sctp_probe(&scene.neighbour, 4001, at(HOST, 7000), LONG), at(HOST, 7000), "site")?;
    Ok(())
}

fn range(scene: &Scene) -> Result<()> {
    let site = scene.run("site", &["-p", "9000-9009:9100-9109", "-p", "9200-9209:9200-9209/udp"])?;
    let _servers = [9100, 9105, 9109].map(|port| tcp_server(&site, port, &format!("site-{port}")));
    for port in [9100, 9105, 9109] {
        reaches(&scene.neighbour, at(HOST, port - 100), &format!("site-{port}"))?;
    }
    let _udp = udp_server(&site, 9209, "udp")?;
    reaches_by_udp(&scene.neighbour, at(HOST, 9209), "udp")?;
    Ok(())
}

fn any_port(scene: &Scene) -> Result<()> {
    scene.run("site", &["-p", "80"])?;
    let said = scene.podman(&["port", "site", "80/tcp"])?;
    let port = said.rsplit(':').next().and_then(|port| port.parse().ok());
    let Some(port) = port else { anyhow::bail!("`podman port` says `{said}`") };
    says(&scene.neighbour, at(HOST, port), "site")
}

fn one_address(scene: &Scene) -> Result<()> {
    scene.run("site", &["-p", "10.0.1.1:8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    silent(&scene.neighbour, at(HOST_SECOND, 8080))?;
    scene.run("second", &["-p", "10.0.1.11:8080:80"])?;
    says(&scene.neighbour, at(HOST_SECOND, 8080), "second")?;
    says(&scene.neighbour, at(HOST, 8080), "site")
}

fn loopback(scene: &Scene) -> Result<()> {
    scene.run("site", &["-p", "127.0.0.1:8080:80"])?;
    says(&scene.host, at("127.0.0.1", 8080), "site")?;
    silent(&scene.neighbour, at(HOST, 8080))?;
    silent(&scene.host, at(HOST, 8080))
}

fn ipv6(scene: &Scene) -> Result<()> {
    scene.network("six", &["--ipv6", "--subnet", "fd66::/64", "--subnet", "10.66.0.0/24"])?;
    scene.run("site", &["--network", "six", "-p", "8080:80"])?;
    for from in [&scene.neighbour, &scene.host] {
        says(from, at(HOST6, 8080), "site")?;
        says(from, at(HOST, 8080), "site")?;
    }
    Ok(())
}

fn from_loopback6(scene: &Scene) -> Result<()> {
    scene.network("six", &["--ipv6", "--subnet", "fd66::/64", "--subnet", "10.66.0.0/24"])?;
    scene.run("site", &["--network", "six", "-p", "8080:80"])?;
    says(&scene.host, at("::1", 8080), "site")
}

fn without_ipv4(scene: &Scene) -> Result<()> {
    scene.network("six", &["--ipv6", "--subnet", "fd66::/64"])?;
    scene.run("site", &["--network", "six", "-p", "8080:80", "-p", "[fd00:1::1]:8081:80"])?;
    says(&scene.neighbour, at(HOST6, 8080), "site")?;
    says(&scene.neighbour, at(HOST6, 8081), "site")
}

fn without_ipv6(scene: &Scene) -> Result<()> {
    scene.run("site", &["-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST6, 8080), "site")
}

/// Podman holds a port by listening on it, so what comes to `[::1]` ends there, with any backend. It has to start nonetheless.
fn loopback6(scene: &Scene) -> Result<()> {
    scene.network("six", &["--ipv6", "--subnet", "fd66::/64", "--subnet", "10.66.0.0/24"])?;
    let site = scene.run("site", &["--network", "six", "-p", "[::1]:8080:80", "-p", "[fd00:1::1]:8081:80"])?;
    says(&scene.host, at(&site.on("six", "GlobalIPv6Address"), 80), "site")?;
    says(&scene.neighbour, at(HOST6, 8081), "site")?;
    silent(&scene.neighbour, at(HOST6, 8080))
}

fn several_networks(scene: &Scene) -> Result<()> {
    scene.network("front", &[])?;
    scene.network("back", &[])?;
    scene.run("site", &["--network", "front,back", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    says(&scene.host, at("127.0.0.1", 8080), "site")
}

fn twice(scene: &Scene) -> Result<()> {
    scene.run("site", &["-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.machine.refused("podman", &["run", "-d", "--name", "second", "-p", "8080:80", IMAGE])?;
    says(&scene.neighbour, at(HOST, 8080), "site")
}

fn free_again(scene: &Scene) -> Result<()> {
    for name in ["first", "second", "third"] {
        scene.run(name, &["-p", "8080:80"])?;
        says(&scene.neighbour, at(HOST, 8080), name)?;
        scene.podman(&["rm", "-f", "-t", "0", name])?;
        silent(&scene.neighbour, at(HOST, 8080))?;
    }
    Ok(())
}
