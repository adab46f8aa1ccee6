//! Networks: what they are made of, and who is on them.

use anyhow::{Result, ensure};
use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::link::{self, BridgeSpec};

use super::Case;
use crate::machine::IMAGE;
use crate::scene::*;

pub(crate) const CASES: &[Case] = &[
    ("the default network reaches the LAN, by the host's address", default_network),
    ("a network of one's own reaches the LAN, by the host's address", own_network),
    ("containers of one network reach each other", together),
    ("`--subnet --gateway --ip-range`", addresses),
    ("`--internal` reaches nothing outside", internal),
    ("`--ipv6`", ipv6),
    ("`--opt mtu=1400`", mtu),
    ("`--opt isolate=true`: two networks do not reach each other", isolated),
    ("`--opt vlan=100`", vlan),
    ("`--ip --ip6 --mac-address`", static_addresses),
    ("`connect` and `disconnect` while it runs", connect),
    ("`connect --alias` while it runs", connect_with_alias),
    ("`connect` and `disconnect` of a container with a published port", connect_with_port),
    ("`reload` keeps addresses, ports and names", reload),
    ("`reload` brings back what `nft flush ruleset` took", reload_after_flush),
    ("`rm` is refused while in use, then removes the bridge", remove),
    ("`rm -f` removes its containers too", remove_by_force),
    ("`prune`", prune),
    ("macvlan on the LAN", macvlan),
    ("`--network none`", none),
    ("`--network container:`", of_another),
];

fn default_network(scene: &Scene) -> Result<()> {
    let site = scene.run("site", &[])?;
    masqueraded(scene, &site)
}

fn own_network(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web"])?;
    masqueraded(scene, &site)
}

/// The neighbour has no route to containers: it answers only who comes by the host's address.
fn masqueraded(scene: &Scene, from: &Container) -> Result<()> {
    let _server = tcp_server(&scene.neighbour, 7777, "neighbour")?;
    let seen = reaches(from, at(NEIGHBOUR, 7777), "neighbour")?.to_string();
    ensure!(seen == HOST, "the neighbour sees {seen}");
    Ok(())
}

fn together(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let (a, b) = (scene.run("a", &["--network", "web"])?, scene.run("b", &["--network", "web"])?);
    says(&a, at(&b.ip("web"), 80), "b")?;
    says(&b, at(&a.ip("web"), 80), "a")?;
    says(&scene.host, at(&a.ip("web"), 80), "a")
}

fn addresses(scene: &Scene) -> Result<()> {
    scene.network("web", &["--subnet", "10.77.0.0/16", "--gateway", "10.77.7.7", "--ip-range", "10.77.9.0/24"])?;
    let site = scene.run("site", &["--network", "web"])?;
    ensure!(site.ip("web").starts_with("10.77.9."), "its address is {}", site.ip("web"));
    let routes = scene.podman(&["exec", "site", "ip", "route"])?;
    ensure!(routes.contains("default via 10.77.7.7"), "its routes are `{routes}`");
    masqueraded(scene, &site)
}

fn internal(scene: &Scene) -> Result<()> {
    scene.network("vault", &["--internal"])?;
    scene.network("web", &[])?;
    let (a, b) = (scene.run("a", &["--network", "vault"])?, scene.run("b", &["--network", "vault"])?);
    let outside = scene.run("outside", &["--network", "web"])?;
    let _server = tcp_server(&scene.neighbour, 7777, "neighbour")?;
    reaches(&outside, at(NEIGHBOUR, 7777), "neighbour")?;
    silent(&a, at(NEIGHBOUR, 7777))?;
    says(&a, at(&b.ip("vault"), 80), "b")?;
    says(&outside, at("127.0.0.1", 80), "outside")?;
    silent(&a, at(&outside.ip("web"), 80))
}

fn ipv6(scene: &Scene) -> Result<()> {
    scene.network("six", &["--ipv6", "--subnet", "fd66::/64", "--subnet", "10.66.0.0/24"])?;
    let (a, b) = (scene.run("a", &["--network", "six"])?, scene.run("b", &["--network", "six"])?);
    let (a6, b6) = (a.on("six", "GlobalIPv6Address"), b.on("six", "GlobalIPv6Address"));
    ensure!(a6.starts_with("fd66::") && b6.starts_with("fd66::"), "their addresses are `{a6}` and `{b6}`");
    says(&a, at(&b6, 80), "b")?;
    masqueraded(scene, &a)?;
    let _server = tcp_server(&scene.neighbour, 7777, "neighbour")?;
    let seen = reaches(&a, at(NEIGHBOUR6, 7777), "neighbour")?.to_string();
    ensure!(seen == HOST6, "the neighbour sees {seen}");
    Ok(())
}

fn mtu(scene: &Scene) -> Result<()> {
    scene.network("small", &["--opt", "mtu=1400"])?;
    scene.run("site", &["--network", "small"])?;
    let mtu = scene.podman(&["exec", "site", "cat", "/sys/class/net/eth0/mtu"])?;
    ensure!(mtu == "1400", "its MTU is {mtu}");
    Ok(())
}

fn isolated(scene: &Scene) -> Result<()> {
    for name in ["one", "two"] {
        scene.network(name, &["--opt", "isolate=true"])?;
    }
    let (a, b) = (scene.run("a", &["--network", "one"])?, scene.run("b", &["--network", "two"])?);
    let beside = scene.run("beside", &["--network", "two"])?;
    says(&beside, at(&b.ip("two"), 80), "b")?;
    says(&a, at("127.0.0.1", 80), "a")?;
    silent(&a, at(&b.ip("two"), 80))?;
    silent(&b, at(&a.ip("one"), 80))
}

fn vlan(scene: &Scene) -> Result<()> {
    if !filters_vlans(scene)? {
        return Err(Lack("bridge VLAN filtering").into());
    }
    scene.network("tagged", &["--opt", "vlan=100"])?;
    let (a, b) = (scene.run("a", &["--network", "tagged"])?, scene.run("b", &["--network", "tagged"])?);
    says(&a, at(&b.ip("tagged"), 80), "b")?;
    let mut bridges = link::dump(&mut scene.host.route_socket()?)?.into_iter().filter_map(|link| link.bridge);
    ensure!(bridges.all(|bridge| bridge.vlan_filtering), "the bridge does not know of VLANs");
    Ok(())
}

/// Whether bridges can keep VLANs apart here.
fn filters_vlans(scene: &Scene) -> Result<bool> {
    let (mut socket, mut batch) = (scene.neighbour.route_socket()?, Batch::new());
    link::create_bridge(&mut batch, &BridgeSpec { name: "probe", vlan_filtering: true, ..BridgeSpec::default() });
    let made = socket.transact(&batch);
    let mut batch = Batch::new();
    link::delete(&mut batch, "probe");
    Ok(made.is_ok() && socket.transact(&batch).is_ok())
}

fn static_addresses(scene: &Scene) -> Result<()> {
    scene.network("six", &["--ipv6", "--subnet", "fd66::/64", "--subnet", "10.66.0.0/24"])?;
    let place = ["--network", "six", "--ip", "10.66.0.50", "--ip6", "fd66::50", "--mac-address", "02:11:22:33:44:55"];
    scene.run("site", &place)?;
    let text = scene.podman(&["exec", "site", "ip", "addr", "show", "eth0"])?;
    for wanted in ["10.66.0.50/24", "fd66::50/64", "02:11:22:33:44:55"] {
        ensure!(text.contains(wanted), "it has no {wanted}: `{text}`");
    }
    let beside = scene.run("beside", &["--network", "six"])?;
    says(&beside, at("10.66.0.50", 80), "site")?;
    says(&beside, at("fd66::50", 80), "site")?;
    scene.machine.refused("podman", &["run", "-d", "--network", "six", "--ip", "10.66.0.50", IMAGE])?;
    Ok(())
}

fn connect(scene: &Scene) -> Result<()> {
    scene.network("front", &[])?;
    scene.network("back", &[])?;
    scene.run("site", &["--network", "front"])?;
    let db = scene.run("db", &["--network", "back"])?;
    scene.podman(&["network", "connect", "back", "site"])?;
    let site = scene.look("site")?;
    names(&db, &db.on("back", "Gateway"), "site", &site.ip("back"))?;
    says(&site, at(&db.ip("back"), 80), "db")?;
    says(&db, at(&site.ip("back"), 80), "site")?;
    scene.podman(&["network", "disconnect", "back", "site"])?;
    knows_not(&db, &db.on("back", "Gateway"), "site")?;
    silent(&db, at(&site.ip("back"), 80))?;
    let links = scene.podman(&["exec", "site", "ls", "/sys/class/net"])?;
    ensure!(!links.contains("eth1") && links.contains("eth0"), "its interfaces are `{links}`");
    masqueraded(scene, &site)
}

fn connect_with_alias(scene: &Scene) -> Result<()> {
    scene.network("front", &[])?;
    scene.network("back", &[])?;
    scene.run("site", &["--network", "front"])?;
    let db = scene.run("db", &["--network", "back"])?;
    scene.podman(&["network", "connect", "--alias", "www", "--ip", &neighbour_of(&db.ip("back")), "back", "site"])?;
    let site = scene.look("site")?;
    ensure!(site.ip("back") == neighbour_of(&db.ip("back")), "its address is {}", site.ip("back"));
    names(&db, &db.on("back", "Gateway"), "www", &site.ip("back"))?;
    scene.podman(&["network", "disconnect", "back", "site"])?;
    knows_not(&db, &db.on("back", "Gateway"), "www")
}

/// An address of the same /24 that nobody was given yet.
fn neighbour_of(ip: &str) -> String {
    let prefix = ip.rsplit_once('.').map_or(ip, |(prefix, _)| prefix);
    format!("{prefix}.77")
}

fn connect_with_port(scene: &Scene) -> Result<()> {
    scene.network("front", &[])?;
    scene.network("back", &[])?;
    scene.run("site", &["--network", "front", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.podman(&["network", "connect", "back", "site"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.podman(&["network", "disconnect", "front", "site"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")
}

fn reload(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    scene.podman(&["network", "reload", "--all"])?;
    let after = scene.look("site")?;
    ensure!(after.ip("web") == site.ip("web"), "its address was {} and is {}", site.ip("web"), after.ip("web"));
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    names(&asks, &asks.on("web", "Gateway"), "site", &after.ip("web"))
}

fn reload_after_flush(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.machine.run("nft", &["flush", "ruleset"])?;
    scene.podman(&["network", "reload", "site"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    masqueraded(scene, &site)
}

/// The names of the host's bridges.
fn bridges(scene: &Scene) -> Result<Vec<String>> {
    let links = link::dump(&mut scene.host.route_socket()?)?;
    Ok(links.into_iter().filter(|link| link.bridge.is_some()).map(|link| link.name).collect())
}

fn remove(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web"])?;
    ensure!(bridges(scene)?.len() == 1, "bridges: {:?}", bridges(scene)?);
    scene.machine.refused("podman", &["network", "rm", "web"])?;
    scene.podman(&["rm", "-f", "-t", "0", "site"])?;
    scene.podman(&["network", "rm", "web"])?;
    ensure!(bridges(scene)?.is_empty(), "the bridge {:?} stays", bridges(scene)?);
    Ok(())
}

fn remove_by_force(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web"])?;
    scene.podman(&["network", "rm", "-f", "-t", "0", "web"])?;
    ensure!(scene.podman(&["ps", "-aq"])?.is_empty(), "the container stays");
    ensure!(bridges(scene)?.is_empty(), "the bridge {:?} stays", bridges(scene)?);
    Ok(())
}

fn prune(scene: &Scene) -> Result<()> {
    scene.network("used", &[])?;
    scene.network("unused", &[])?;
    scene.run("site", &["--network", "used"])?;
    scene.podman(&["network", "prune", "-f"])?;
    let left = scene.podman(&["network", "ls", "-q"])?;
    ensure!(left.contains("used") && !left.contains("unused"), "left are `{left}`");
    masqueraded(scene, &scene.look("site")?)
}

fn macvlan(scene: &Scene) -> Result<()> {
    let args = ["-d", "macvlan", "-o", "parent=eth0", "--subnet", "10.0.1.0/24", "--gateway", NEIGHBOUR];
    scene.network("lan", &args)?;
    let site = scene.run("site", &["--network", "lan", "--ip", "10.0.1.50"])?;
    let _server = tcp_server(&scene.neighbour, 7777, "neighbour")?;
    let seen = reaches(&site, at(NEIGHBOUR, 7777), "neighbour")?.to_string();
    ensure!(seen == "10.0.1.50", "the neighbour sees {seen}");
    says(&scene.neighbour, at("10.0.1.50", 80), "site")
}

fn none(scene: &Scene) -> Result<()> {
    let said = scene.podman(&["run", "--rm", "--network", "none", IMAGE, "ls", "/sys/class/net"])?;
    ensure!(said == "lo", "its interfaces are `{said}`");
    Ok(())
}

fn of_another(scene: &Scene) -> Result<()> {
    let site = scene.run("site", &["-p", "8080:80"])?;
    says(&site, at("127.0.0.1", 80), "site")?;
    let said =
        scene.podman(&["run", "--rm", "--network", "container:site", IMAGE, "wget", "-qO-", "http://127.0.0.1/"])?;
    ensure!(said == "site", "`{said}` answers");
    says(&scene.neighbour, at(HOST, 8080), "site")
}
