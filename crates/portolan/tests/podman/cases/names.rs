//! Finding containers by name.

use anyhow::{Result, ensure};
use portolan_kernel::process::command_in;
use portolan_lab::InNetns;
use std::process::Command;

use super::Case;
use crate::machine::IMAGE;
use crate::scene::*;

pub(crate) const CASES: &[Case] = &[
    ("by name, alias and short id, directly after `run` returns", directly_after_start),
    ("ten times in a row, directly after `run` returns", ten_times),
    ("from the first instruction of the asking container", at_once_inside),
    ("its own name, from its first instruction", own_name),
    ("`nslookup` and `wget` in a container", real_programs),
    ("gone when `rm` returns", gone_after_rm),
    ("gone when `stop` returns, and back when `start` does", gone_after_stop),
    ("a container on two networks, by its address on each", two_networks),
    ("not from another network", other_network),
    ("reverse (PTR)", reverse),
    ("names of the world are forwarded", forwarded),
    ("`--disable-dns`: the host's name server is used", disabled),
    ("`--dns` of a container is asked for the world", own_server),
];

fn directly_after_start(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    let server = asks.on("web", "Gateway");
    let variable = "NAME=site";
    let args = ["run", "-d", "--name", "site", "-e", variable, "--network", "web", "--network-alias", "www", IMAGE];
    let id = scene.podman(&args)?;
    let answers =
        ["site", "www", &id[..12], "site.dns.podman", "SITE"].map(|name| (name.to_owned(), ask(&asks, &server, name)));
    let address = scene.look("site")?.ip("web");
    for (name, answer) in answers {
        let (code, addresses) = answer?;
        ensure!(addresses == [address.as_str()], "`{name}` is {addresses:?} with code {code}, not {address}");
    }
    Ok(())
}

fn ten_times(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    let server = asks.on("web", "Gateway");
    let mut missed = 0;
    for n in 0..10 {
        let name = format!("site{n}");
        scene.podman(&["run", "-d", "--name", &name, "--network", "web", IMAGE])?;
        missed += usize::from(ask(&asks, &server, &name).map_or(true, |(_, addresses)| addresses.len() != 1));
    }
    ensure!(missed == 0, "some of ten names are not there yet");
    Ok(())
}

fn at_once_inside(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web"])?;
    // So that only the name can fail.
    says(&site, at("127.0.0.1", 80), "site")?;
    let said = scene.podman(&["run", "--rm", "--network", "web", IMAGE, "wget", "-qO-", "http://site/"])?;
    ensure!(said == "site", "`site` says `{said}`");
    Ok(())
}

fn own_name(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let script = r#"nslookup "$(cat /etc/hostname).dns.podman" "$1" && ip -4 addr show eth0"#;
    let gateway = scene.podman(&["network", "inspect", "web", "--format", "{{(index .Subnets 0).Gateway}}"])?;
    let said = scene.podman(&["run", "--rm", "--network", "web", IMAGE, "sh", "-c", script, "sh", &gateway])?;
    ensure!(said.contains("Name:"), "its own name is not there");
    Ok(())
}

fn real_programs(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web"])?;
    scene.run("asks", &["--network", "web"])?;
    says(&site, at("127.0.0.1", 80), "site")?;
    let said = scene.podman(&["exec", "asks", "wget", "-qO-", "http://site/"])?;
    ensure!(said == "site", "`site` says `{said}`");
    let said = scene.podman(&["exec", "asks", "nslookup", "-type=a", "site.dns.podman"])?;
    ensure!(said.contains(&format!("Address: {}", site.ip("web"))), "nslookup says `{said}`");
    Ok(())
}

fn gone_after_rm(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "--network-alias", "www"])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    let server = asks.on("web", "Gateway");
    names(&asks, &server, "site", &site.ip("web"))?;
    scene.podman(&["rm", "-f", "-t", "0", "site"])?;
    for name in ["site", "www", &site.id[..12]] {
        knows_not(&asks, &server, name)?;
    }
    Ok(())
}

fn gone_after_stop(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web"])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    let server = asks.on("web", "Gateway");
    names(&asks, &server, "site", &site.ip("web"))?;
    scene.podman(&["stop", "-t", "1", "site"])?;
    knows_not(&asks, &server, "site")?;
    scene.podman(&["start", "site"])?;
    let answer = ask(&asks, &server, "site")?.1;
    let address = scene.look("site")?.ip("web");
    ensure!(answer == [address.as_str()], "`site` is {answer:?}, not {address}");
    Ok(())
}

fn two_networks(scene: &Scene) -> Result<()> {
    scene.network("front", &[])?;
    scene.network("back", &[])?;
    let both = scene.run("both", &["--network", "front,back"])?;
    let site = scene.run("site", &["--network", "front"])?;
    let db = scene.run("db", &["--network", "back"])?;
    names(&site, &site.on("front", "Gateway"), "both", &both.ip("front"))?;
    names(&db, &db.on("back", "Gateway"), "both", &both.ip("back"))?;
    let server = resolver(scene, &both)?;
    names(&both, &server, "site", &site.ip("front"))?;
    names(&both, &server, "db", &db.ip("back"))?;
    says(&both, at(&db.ip("back"), 80), "db")
}

fn other_network(scene: &Scene) -> Result<()> {
    scene.network("front", &[])?;
    scene.network("back", &[])?;
    let site = scene.run("site", &["--network", "front"])?;
    let beside = scene.run("beside", &["--network", "front"])?;
    let db = scene.run("db", &["--network", "back"])?;
    names(&beside, &beside.on("front", "Gateway"), "site", &site.ip("front"))?;
    knows_not(&db, &db.on("back", "Gateway"), "site")
}

fn reverse(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web"])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    let mut command = Command::new("dig");
    command.args(["-r", "+short", "+time=2", "+tries=1", &format!("@{}", asks.on("web", "Gateway")), "-x"]);
    let output = command_in(
        asks.netns(),
        {
            command.arg(site.ip("web"));
            command
        },
        false,
    )?
    .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        said.lines().any(|line| line.split('.').next() == Some("site")),
        "its address has the names `{}`",
        said.trim()
    );
    Ok(())
}

fn forwarded(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    let server = asks.on("web", "Gateway");
    names(&asks, &server, "any.world", WORLD)?;
    knows_not(&asks, &server, "any.elsewhere")
}

fn disabled(scene: &Scene) -> Result<()> {
    scene.network("plain", &["--disable-dns"])?;
    let asks = scene.run("asks", &["--network", "plain"])?;
    let server = resolver(scene, &asks)?;
    ensure!(server == NEIGHBOUR, "its name server is {server}");
    names(&asks, &server, "any.world", WORLD)
}

fn own_server(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web"])?;
    let asks = scene.run("asks", &["--network", "web", "--dns", NEIGHBOUR])?;
    let server = resolver(scene, &asks)?;
    names(&asks, &server, "any.world", WORLD)
}
