//! As a plugin that Docker manages: made by the recipe in `packaging/docker-plugin`, enabled, used, disabled.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::cases;
use crate::has_docker;
use crate::scene::*;

const RECIPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/docker-plugin/build");

#[test]
fn docker_manages_the_plugin() {
    if has_docker("managed") {
        managed().expect("Docker does as asked");
    }
}

fn managed() -> Result<()> {
    let scene = Scene::without_docker("managed", Driver::Managed)?;
    let (run, docker) = (|args: &[&str]| scene.machine.run(args[0], &args[1..]), |args: &[&str]| scene.docker(args));
    run(&["mkdir", "-p", "/var/lib/portolan", "/run/portolan"])?;
    scene.start_docker()?;
    let parts = "/var/tmp/plugin";
    run(&[RECIPE, PORTOLAN, parts])?;
    docker(&["plugin", "create", "portolan", parts])?;
    docker(&["plugin", "enable", "portolan"])?;
    let at = scene.machine.outside("/run/docker/plugins/portolan.sock");
    ensure!(!Path::new(&at).exists(), "it is served where Docker put it, and nowhere else");
    scene.open_filter()?;
    scene.load_image()?;

    for (name, case) in cases::SUBJECTS.iter().flat_map(|(_, cases)| *cases) {
        if CASES.contains(name) {
            case(&scene).and(scene.clear()).map_err(|error| error.context(*name))?;
        }
    }

    // Without it packets go on; with it again the networks are there.
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    says(&scene.neighbour, at_host(), "site")?;
    // State, daemon and Docker's API are those of the host.
    cases::names::portolan_says(&scene, &["port", "site"], &["80/tcp -> 0.0.0.0:8080"])?;
    docker(&["plugin", "disable", "--force", "portolan"])?;
    says(&scene.neighbour, at_host(), "site")?;
    docker(&["plugin", "enable", "portolan"])?;
    docker(&["restart", "-t", "0", "site"])?;
    says(&scene.neighbour, at_host(), "site")?;

    // Docker starts it again, before the containers that need it.
    docker(&["update", "--restart", "always", "site"])?;
    scene.stop_docker()?;
    scene.start_docker()?;
    says(&scene.neighbour, at_host(), "site")?;

    scene.clear()?;
    docker(&["plugin", "disable", "portolan"])?;
    docker(&["plugin", "rm", "portolan"])?;
    Ok(())
}

/// The published port.
fn at_host() -> std::net::SocketAddr {
    at(HOST, 8080)
}

/// What only a plugin in a container of its own could fail at: settings of interfaces, names, ports by other processes.
const CASES: [&str; 5] = [
    "containers of a network reach each other, by address and name",
    "IPv6 beside IPv4",
    "`-p` of TCP: from the LAN, from the host by any address of it, from itself",
    "`-p` by IPv6",
    "20 containers started at once",
];
