//! The names that containers have, and who is told of them.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::eventually;

use super::Case;
use crate::scene::*;
use crate::upstream::{Upstream, short};

pub(crate) const CASES: &[Case] = &[
    ("the name, `--network-alias`, `--link`, the start of the id, each also with the network's name", all_names),
    ("as Compose names: a service by its alias, and each of its containers by name", services),
    ("names of a network are for those on it, also for who joins it later", joined),
    ("names after `restart`, `rename`, `disconnect` and `connect`, and of none that has gone", life),
    ("an address is asked for its name", reverse),
    ("names of the world are asked for where the host asks, and where `--dns` says", world),
    ("what Portolan shows goes by Docker's names", shown),
    ("the gateway answers Docker's names as well", at_gateway),
];

/// What a name leads to, asked for inside a container.
fn lookup(scene: &Scene, from: &str, name: &str) -> Result<Vec<IpAddr>> {
    let said = scene.docker(&["exec", from, "nslookup", name])?;
    // The server's own address comes first.
    let answer = said.split_once("\n\n").map_or("", |(_, answer)| answer);
    let addresses = answer.lines().filter_map(|line| line.strip_prefix("Address")?.split_whitespace().next_back());
    Ok(addresses.filter_map(|address| address.parse().ok()).collect())
}

fn leads(scene: &Scene, from: &str, name: &str, to: &[&Container], network: &str) -> Result<()> {
    let mut expected: Vec<IpAddr> = to.iter().map(|one| one.ip(network).parse()).collect::<Result<_, _>>()?;
    let mut found = lookup(scene, from, name).with_context(|| format!("`{name}` from `{from}`"))?;
    expected.sort();
    found.sort();
    ensure!(found == expected, "`{name}` leads to {found:?} from `{from}`, not to {expected:?}");
    Ok(())
}

/// A name server of the world, which is asked for what Docker does not know.
fn start_world(scene: &Scene) -> Upstream {
    Upstream::start(&scene.neighbour, at(NEIGHBOUR, 53), [192, 0, 2, 7])
}

/// Fails unless the world is asked for a name ([`start_world`]).
fn unknown(scene: &Scene, from: &str, name: &str) -> Result<()> {
    let found = lookup(scene, from, name)?;
    ensure!(found == ["192.0.2.7".parse::<IpAddr>()?], "`{name}` leads to {found:?} from `{from}`");
    Ok(())
}

fn all_names(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "--network-alias", "www", "--hostname", "host.example"])?;
    scene.run("asks", &["--network", "web", "--link", "site:home"])?;
    let id = site.details["Id"].as_str().context("it has an id")?[..12].to_owned();
    for name in ["site", "www", "home", &id, "site.web", "www.web"] {
        leads(scene, "asks", name, &[&site], "web")?;
    }
    Ok(())
}

fn services(scene: &Scene) -> Result<()> {
    scene.network("project_default", &[])?;
    let service = |name: &str| scene.run(name, &["--network", "project_default", "--network-alias", "web"]);
    let (one, two) = (service("project_web_1")?, service("project_web_2")?);
    scene.run("project_db_1", &["--network", "project_default", "--network-alias", "db"])?;
    leads(scene, "project_db_1", "web", &[&one, &two], "project_default")?;
    leads(scene, "project_db_1", "project_web_1", &[&one], "project_default")?;
    leads(scene, "project_db_1", "project_web_2.project_default", &[&two], "project_default")?;
    says_in(scene, "project_db_1", "project_web_2", &two.ip("project_default"), "project_web_2")
}

/// Fails unless the HTTP server by this name, which is at `ip`, says that it is `who`. It has a moment to start; its name has none.
fn says_in(scene: &Scene, from: &str, name: &str, ip: &str, who: &str) -> Result<()> {
    says(&scene.look(from)?, at(ip, 80), who)?;
    let said = scene.docker(&["exec", from, "wget", "-qO-", &format!("http://{name}/")])?;
    ensure!(said == who, "`{said}` answers to `{name}`");
    Ok(())
}

fn joined(scene: &Scene) -> Result<()> {
    let _world = start_world(scene);
    scene.network("one", &[])?;
    scene.network("two", &[])?;
    let site = scene.run("site", &["--network", "one"])?;
    scene.run("asks", &["--network", "two"])?;
    unknown(scene, "asks", "site")?;
    scene.docker(&["network", "connect", "--alias", "www", "two", "site"])?;
    let both = scene.look("site")?;
    for name in ["site", "www", "site.two"] {
        leads(scene, "asks", name, &[&both], "two")?;
    }
    says_in(scene, "asks", "www", &both.ip("two"), "site")?;
    scene.docker(&["network", "connect", "one", "asks"])?;
    leads(scene, "asks", "site.one", &[&site], "one")
}

fn life(scene: &Scene) -> Result<()> {
    let _world = start_world(scene);
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "--network-alias", "www"])?;
    scene.run("asks", &["--network", "web"])?;
    scene.docker(&["restart", "-t", "0", "site"])?;
    leads(scene, "asks", "site", &[&scene.look("site")?], "web")?;
    scene.docker(&["rename", "site", "other"])?;
    leads(scene, "asks", "other", &[&scene.look("other")?], "web")?;
    unknown(scene, "asks", "site")?;
    scene.docker(&["network", "disconnect", "web", "other"])?;
    for name in ["other", "www"] {
        unknown(scene, "asks", name)?;
    }
    scene.docker(&["network", "connect", "--alias", "again", "web", "other"])?;
    for name in ["other", "again"] {
        leads(scene, "asks", name, &[&scene.look("other")?], "web")?;
    }
    says_in(scene, "asks", "again", &scene.look("other")?.ip("web"), "site")?;
    scene.docker(&["rm", "-f", "other"])?;
    unknown(scene, "asks", "other")
}

fn reverse(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web"])?;
    scene.run("asks", &["--network", "web"])?;
    let said = scene.docker(&["exec", "asks", "nslookup", &site.ip("web")])?;
    ensure!(said.contains("name = site.web"), "it is `{said}`");
    Ok(())
}

fn world(scene: &Scene) -> Result<()> {
    let _host = start_world(scene);
    // One that only a container is told of.
    let _other = Upstream::start(&scene.neighbour, at(NEIGHBOUR_SECOND, 53), [192, 0, 2, 8]);
    scene.network("web", &[])?;
    scene.run("asks", &["--network", "web"])?;
    scene.run("told", &["--network", "web", "--dns", NEIGHBOUR_SECOND])?;
    for (from, expected) in [("asks", "192.0.2.7"), ("told", "192.0.2.8")] {
        let found = lookup(scene, from, "example.org")?;
        ensure!(found == [expected.parse::<IpAddr>()?], "it leads to {found:?} from `{from}`");
    }
    Ok(())
}

/// Waits until `portolan` with these arguments says `words`: it hears of names when Docker's call is over.
pub(crate) fn portolan_says(scene: &Scene, args: &[&str], words: &[&str]) -> Result<()> {
    let mut said = String::new();
    let is_said = || {
        said = scene.portolan(args).unwrap_or_else(|error| format!("{error:#}"));
        words.iter().all(|word| said.contains(word))
    };
    ensure!(eventually(LONG, is_said), "`portolan {}` does not say {words:?} but `{said}`", args.join(" "));
    Ok(())
}

fn shown(scene: &Scene) -> Result<()> {
    if scene.driver == Driver::Bridge {
        return Ok(());
    }
    scene.network("web", &[])?;
    scene.network("more", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    portolan_says(scene, &["ps"], &["   site"])?;
    portolan_says(scene, &["ps", "--filter", "name=site", "--json"], &["\"Names\": \"site\""])?;
    portolan_says(scene, &["port", "site"], &["80/tcp -> 0.0.0.0:8080"])?;
    portolan_says(scene, &["rules", "site"], &["container site (docker-", "tcp port 8080"])?;
    portolan_says(scene, &["inspect", "site"], &["portolan.called\": \"site\""])?;
    scene.docker(&["rename", "site", "other"])?;
    portolan_says(scene, &["port", "other", "80"], &["0.0.0.0:8080"])?;
    scene.docker(&["network", "connect", "more", "other"])?;
    portolan_says(scene, &["ps", "-q", "--filter", "name=other"], &["\n"])?; // both places
    portolan_says(scene, &["port", "other"], &["80/tcp -> 0.0.0.0:8080"])?;
    let refused = scene.machine.refused(PORTOLAN, &["inspect", "other"])?;
    ensure!(refused.contains("is on more than one network\nhint: say which place: `docker-"), "it says `{refused}`");
    // Names are asked for again by a daemon that was away when they changed.
    scene.portolan(&["daemon", "stop"])?;
    scene.docker(&["rename", "other", "third"])?;
    scene.portolan(&["daemon", "start", "--docker"])?;
    portolan_says(scene, &["port", "third"], &["80/tcp -> 0.0.0.0:8080"])?;
    // A Docker that is away is not missed, and heard again when it is back.
    scene.kill_docker()?;
    scene.run("fourth", &["--network", "web", "-p", "8081:80"])?;
    portolan_says(scene, &["port", "fourth"], &["80/tcp -> 0.0.0.0:8081"])
}

fn at_gateway(scene: &Scene) -> Result<()> {
    if scene.driver == Driver::Bridge {
        return Ok(());
    }
    scene.network("web", &["--subnet", "10.60.0.0/24", "--gateway", "10.60.0.1"])?;
    let site = scene.run("site", &["--network", "web", "--network-alias", "www"])?;
    let gateway = "10.60.0.1".parse()?;
    let leads = |name: &str| {
        let mut found = Vec::new();
        let is_known = || {
            found = short(&site, gateway, &[name]).unwrap_or_default();
            found == [site.ip("web")]
        };
        ensure!(eventually(LONG, is_known), "`{name}` leads to {found:?} at the gateway");
        Ok(())
    };
    leads("site")?;
    leads("www")?;
    // Each alone, so that nothing else makes the daemon look.
    for n in 0..10 {
        let name = format!("site{n}");
        scene.docker(&["rename", site.details["Id"].as_str().context("it has an id")?, &name])?;
        leads(&name)?;
    }
    Ok(())
}
