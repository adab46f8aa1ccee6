//! Networks, addresses and names.

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::scene::*;

pub(crate) const CASES: &[Case] = &[
    ("containers of a network reach each other, by address and name", each_other),
    ("two networks are apart", apart),
    ("the way out takes the host's address", way_out),
    ("IPv6 beside IPv4", both_families),
    ("`--ip`, `--mac-address`", static_addresses),
    ("`--network-alias`, `--link`", aliases),
    ("`--internal`", internal),
    ("a container on two networks", two_networks),
    ("`network connect` and `disconnect` of a running container", connect),
    ("`-o com.docker.network.driver.mtu=`, `-o com.docker.network.bridge.name=`", options),
    ("`-o com.docker.network.bridge.enable_icc=false`", icc),
    ("`network inspect`, `ls`, `rm`, `prune`", inspect),
    ("refusals: the same subnet twice, a bridge's name that is taken, an unknown option", refusals),
    ("beside a network of Docker's own: neither reaches the other, both reach the world", beside),
];

fn each_other(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let a = scene.run("aa", &["--network", "web"])?;
    let b = scene.run("bb", &["--network", "web"])?;
    says(&a, at(&b.ip("web"), 80), "bb")?;
    says(&b, at(&a.ip("web"), 80), "aa")?;
    let said = scene.docker(&["exec", "aa", "wget", "-qO-", "http://bb/"])?;
    ensure!(said == "bb", "`{said}` answers to the name");
    Ok(())
}

fn apart(scene: &Scene) -> Result<()> {
    scene.network("one", &[])?;
    scene.network("two", &[])?;
    let a = scene.run("aa", &["--network", "one"])?;
    let b = scene.run("bb", &["--network", "two"])?;
    says(&scene.host, at(&b.ip("two"), 80), "bb")?;
    silent(&a, at(&b.ip("two"), 80))?;
    silent(&b, at(&a.ip("one"), 80))
}

fn way_out(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let a = scene.run("aa", &["--network", "web"])?;
    let _world = udp_server(&scene.neighbour, 5353, "world")?;
    let seen = reaches_by_udp(&a, at(NEIGHBOUR, 5353), "world")?;
    ensure!(seen.to_string() == HOST, "the world sees {seen}");
    // Unpublished ports are closed to the LAN, also for who has a route.
    silent(&scene.neighbour, at(HOST, 80))
}

fn both_families(scene: &Scene) -> Result<()> {
    scene.network("web", &["--ipv6", "--subnet", "10.60.0.0/24", "--subnet", "fd60::/64"])?;
    let a = scene.run("aa", &["--network", "web"])?;
    let b = scene.run("bb", &["--network", "web"])?;
    let address = b.on("web", "GlobalIPv6Address");
    ensure!(!address.is_empty(), "it has no IPv6 address");
    says(&a, at(&address, 80), "bb")?;
    says(&a, at(&b.ip("web"), 80), "bb")
}

fn static_addresses(scene: &Scene) -> Result<()> {
    scene.network("web", &["--subnet", "10.60.0.0/24", "--gateway", "10.60.0.254"])?;
    let a = scene.run("aa", &["--network", "web", "--ip", "10.60.0.77", "--mac-address", "02:42:0a:3c:00:4d"])?;
    ensure!(a.ip("web") == "10.60.0.77", "its address is {}", a.ip("web"));
    let link = scene.docker(&["exec", "aa", "ip", "addr", "show", "dev", "eth0"])?;
    ensure!(link.contains("02:42:0a:3c:00:4d") && link.contains("10.60.0.77/24"), "inside is {link}");
    let route = scene.docker(&["exec", "aa", "ip", "route"])?;
    ensure!(route.contains("default via 10.60.0.254"), "the routes are {route}");
    let b = scene.run("bb", &["--network", "web"])?;
    says(&b, at("10.60.0.77", 80), "aa")?;
    let refused = scene
        .machine
        .refused("docker", &["run", "--network", "web", "--ip", "10.60.0.77", crate::machine::IMAGE, "true"])?;
    ensure!(refused.contains("already in use"), "the second is refused with `{refused}`");
    Ok(())
}

fn aliases(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "--network-alias", "www"])?;
    let asks = scene.run("asks", &["--network", "web", "--link", "site:home"])?;
    // It has a moment to start; its names have none.
    says(&asks, at(&site.ip("web"), 80), "site")?;
    for name in ["site", "www", "home", "site.web"] {
        let said = scene.docker(&["exec", "asks", "wget", "-qO-", &format!("http://{name}/")])?;
        ensure!(said == "site", "`{said}` answers to `{name}`");
    }
    Ok(())
}

fn internal(scene: &Scene) -> Result<()> {
    scene.network("web", &["--internal"])?;
    let a = scene.run("aa", &["--network", "web"])?;
    let b = scene.run("bb", &["--network", "web"])?;
    says(&a, at(&b.ip("web"), 80), "bb")?;
    let _world = udp_server(&scene.neighbour, 5353, "world")?;
    let probe = portolan_lab::probe::udp_probe(&a, at(NEIGHBOUR, 5353), SHORT);
    ensure!(!probe.is_open(), "the world answers: {probe}");
    Ok(())
}

fn two_networks(scene: &Scene) -> Result<()> {
    scene.network("one", &[])?;
    scene.network("two", &[])?;
    let a = scene.run("aa", &["--network", "one"])?;
    let b = scene.run("bb", &["--network", "two"])?;
    scene.docker(&["create", "--name", "both", "-e", "NAME=both", "--network", "one", crate::machine::IMAGE])?;
    scene.docker(&["network", "connect", "two", "both"])?;
    scene.docker(&["start", "both"])?;
    let both = scene.look("both")?;
    says(&both, at(&a.ip("one"), 80), "aa")?;
    says(&both, at(&b.ip("two"), 80), "bb")?;
    says(&a, at(&both.ip("one"), 80), "both")?;
    says(&b, at(&both.ip("two"), 80), "both")?;
    silent(&a, at(&b.ip("two"), 80))
}

fn connect(scene: &Scene) -> Result<()> {
    scene.network("one", &[])?;
    scene.network("two", &["--subnet", "10.61.0.0/24"])?;
    scene.run("aa", &["--network", "one"])?;
    let b = scene.run("bb", &["--network", "two"])?;
    for _ in 0..3 {
        scene.docker(&["network", "connect", "--ip", "10.61.0.9", "--alias", "www", "two", "aa"])?;
        let a = scene.look("aa")?;
        ensure!(a.ip("two") == "10.61.0.9", "its address is {}", a.ip("two"));
        says(&b, at("10.61.0.9", 80), "aa")?;
        let said = scene.docker(&["exec", "bb", "wget", "-qO-", "http://www/"])?;
        ensure!(said == "aa", "`{said}` answers to the alias");
        scene.docker(&["network", "disconnect", "two", "aa"])?;
        silent(&b, at("10.61.0.9", 80))?;
    }
    Ok(())
}

fn options(scene: &Scene) -> Result<()> {
    let given = ["-o", "com.docker.network.driver.mtu=1400", "-o", "com.docker.network.bridge.name=br-mine"];
    scene.network("web", &given)?;
    scene.run("aa", &["--network", "web"])?;
    let link = scene.docker(&["exec", "aa", "ip", "link", "show", "dev", "eth0"])?;
    ensure!(link.contains("mtu 1400"), "inside is {link}");
    let bridge = scene.machine.run("ip", &["link", "show", "dev", "br-mine"])?;
    ensure!(bridge.contains("br-mine"), "the bridge is {bridge}");
    Ok(())
}

fn icc(scene: &Scene) -> Result<()> {
    scene.network("web", &["-o", "com.docker.network.bridge.enable_icc=false"])?;
    let a = scene.run("aa", &["--network", "web"])?;
    let b = scene.run("bb", &["--network", "web"])?;
    says(&scene.host, at(&b.ip("web"), 80), "bb")?;
    silent(&a, at(&b.ip("web"), 80))
}

fn inspect(scene: &Scene) -> Result<()> {
    scene.network("web", &["--subnet", "10.60.0.0/24", "--label", "of=case"])?;
    scene.network("other", &[])?;
    scene.run("aa", &["--network", "web"])?;
    let inspected: serde_json::Value = serde_json::from_str(&scene.docker(&["network", "inspect", "web"])?)?;
    let inside = inspected[0]["Containers"].as_object().context("it lists containers")?;
    ensure!(inside.len() == 1, "on it are {inside:?}");
    ensure!(inspected[0]["IPAM"]["Config"][0]["Subnet"] == "10.60.0.0/24", "it is {inspected}");
    let refused = scene.machine.refused("docker", &["network", "rm", "web"])?;
    ensure!(refused.contains("active endpoints"), "it is refused with `{refused}`");
    scene.docker(&["rm", "-f", "aa"])?;
    let gone = scene.docker(&["network", "prune", "--force"])?;
    ensure!(gone.contains("web") && gone.contains("other"), "pruned was `{gone}`");
    let left = scene.docker(&["network", "ls", "--filter", "type=custom", "-q"])?;
    ensure!(left.is_empty(), "left are `{left}`");
    Ok(())
}

fn refusals(scene: &Scene) -> Result<()> {
    let driver = scene.driver.name();
    let refused =
        |args: &[&str]| scene.machine.refused("docker", &[&["network", "create", "-d", driver], args].concat());
    scene.network("web", &["--subnet", "10.60.0.0/24", "-o", "com.docker.network.bridge.name=br-mine"])?;
    let said = refused(&["--subnet", "10.60.0.0/24", "again"])?;
    ensure!(said.contains("overlap"), "the subnet is refused with `{said}`");
    let said = refused(&["-o", "com.docker.network.bridge.name=br-mine", "again"])?;
    ensure!(said.contains("bridge device") || said.contains("bridge name"), "the name is refused with `{said}`");
    let said = refused(&["-o", "com.docker.network.driver.mtu=many", "again"])?;
    ensure!(said.contains("many"), "the option is refused with `{said}`");
    let left = scene.docker(&["network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"])?;
    ensure!(left == "web", "there are `{left}`");
    Ok(())
}

fn beside(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.docker(&["network", "create", "-d", "bridge", "dockers"])?;
    let ours = scene.run("ours", &["--network", "web"])?;
    let theirs = scene.run("theirs", &["--network", "dockers"])?;
    silent(&ours, at(&theirs.ip("dockers"), 80))?;
    silent(&theirs, at(&ours.ip("web"), 80))?;
    scene.run("open", &["--network", "web", "-p", "8081:80"])?;
    scene.run("theirs-open", &["--network", "dockers", "-p", "8082:80"])?;
    let _world = udp_server(&scene.neighbour, 5353, "world")?;
    for (port, name, place) in [(8081, "open", &ours), (8082, "theirs-open", &theirs)] {
        reaches_by_udp(place, at(NEIGHBOUR, 5353), "world")?;
        says(&scene.neighbour, at(HOST, port), name)?;
    }
    says(&ours, at(HOST, 8082), "theirs-open")?;
    says(&theirs, at(HOST, 8081), "open")
}
