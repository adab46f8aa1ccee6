//! Starting, stopping, dying, of containers, of Docker and of us; what is left.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_lab::eventually;
use portolan_lab::snapshot::{diff, settled};

use super::Case;
use crate::machine::IMAGE;
use crate::scene::*;

pub(crate) const CASES: &[Case] = &[
    ("`restart`, `stop`, `start`, `rm`", restart),
    ("its process killed, then `start`", killed),
    ("20 containers started at once", at_once),
    ("Docker killed and started again: networks are there, containers start", docker_killed),
    ("Docker killed while it creates", killed_while_creating),
    ("Docker and a container killed, then `start`", both_killed),
    ("the plugin's daemon stopped, killed, started, upgraded while a container runs", daemon_restarts),
    ("the plugin's daemon killed while Docker creates", daemon_killed_while_creating),
    ("the host is in the end what it was before", untouched),
];

fn restart(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    for _ in 0..3 {
        scene.docker(&["restart", "-t", "0", "site"])?;
        says(&scene.neighbour, at(HOST, 8080), "site")?;
    }
    scene.docker(&["rm", "-f", "site"])?;
    silent(&scene.neighbour, at(HOST, 8080))
}

fn killed(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.machine.run("kill", &["-9", &site.details["State"]["Pid"].to_string()])?;
    let ended = || scene.docker(&["inspect", "-f", "{{.State.Running}}", "site"]).is_ok_and(|said| said == "false");
    ensure!(eventually(LONG, ended), "Docker does not notice");
    silent(&scene.neighbour, at(HOST, 8080))?;
    scene.docker(&["start", "site"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")
}

fn at_once(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let mut started = Vec::new();
    for n in 0..20 {
        let (name, port) = (format!("c{n}"), format!("{}:80", 8100 + n));
        let variable = format!("NAME={name}");
        let args = ["run", "-d", "--name", &name, "-e", &variable, "--network", "web", "-p", &port, IMAGE];
        let mut command = scene.machine.command("docker", &args);
        started.push((name, command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?));
    }
    for (name, child) in started {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "`{name}` does not start: {}", String::from_utf8_lossy(&output.stderr));
    }
    for n in 0..20 {
        says(&scene.neighbour, at(HOST, 8100 + n), &format!("c{n}"))?;
    }
    Ok(())
}

fn docker_killed(scene: &Scene) -> Result<()> {
    scene.network("web", &["--subnet", "10.60.0.0/24"])?;
    scene.run("site", &["--network", "web", "--ip", "10.60.0.9", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.kill_docker()?;
    scene.docker(&["start", "site"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.docker(&["rm", "-f", "site"])?;
    scene.docker(&["network", "rm", "web"])?;
    Ok(())
}

fn killed_while_creating(scene: &Scene) -> Result<()> {
    create_while(scene, &[20, 60, 120, 200, 300], Scene::kill_docker)
}

/// Has Docker create a container and does `harm` meanwhile, so many milliseconds later; whatever comes of it, nothing is in
/// the way of the next container, and nothing is left.
fn create_while(scene: &Scene, delays: &[u64], harm: impl Fn(&Scene) -> Result<()>) -> Result<()> {
    scene.network("web", &["--subnet", "10.60.0.0/24"])?;
    for delay in delays {
        let run = ["run", "-d", "--network", "web", "--ip", "10.60.0.9", "-p", "8080:80", IMAGE];
        let mut child = scene.machine.command("docker", &run).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // Not to wait for anything: to be somewhere else each time.
        std::thread::sleep(Duration::from_millis(*delay));
        harm(scene)?;
        child.wait()?;
        scene.clear_containers()?;
        scene.run("site", &["--network", "web", "--ip", "10.60.0.9", "-p", "8080:80"])?;
        says(&scene.neighbour, at(HOST, 8080), "site")?;
        scene.docker(&["rm", "-f", "site"])?;
    }
    scene.gone(&["type", "veth"], |line| !line.contains(" eth0"))
}

fn both_killed(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    let pid = site.details["State"]["Pid"].to_string();
    scene.kill_docker_with(|| scene.machine.run("kill", &["-9", &pid]).map(drop))?;
    scene.docker(&["start", "site"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")
}

fn daemon_restarts(scene: &Scene) -> Result<()> {
    if scene.driver == Driver::Bridge {
        return Ok(());
    }
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    scene.portolan(&["daemon", "stop"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.portolan(&["daemon", "start", "--docker"])?;
    scene.run("second", &["--network", "web", "-p", "8081:80"])?;
    scene.portolan(&["daemon", "upgrade"])?;
    scene.run("third", &["--network", "web", "-p", "8082:80"])?;
    scene.kill_daemon()?;
    scene.run("fourth", &["--network", "web", "-p", "8083:80"])?;
    for (port, name) in [(8080, "site"), (8081, "second"), (8082, "third"), (8083, "fourth")] {
        says(&scene.neighbour, at(HOST, port), name)?;
    }
    scene.portolan(&["verify"])?;
    Ok(())
}

fn daemon_killed_while_creating(scene: &Scene) -> Result<()> {
    if scene.driver == Driver::Bridge {
        return Ok(());
    }
    create_while(scene, &[20, 60, 100, 140, 180, 220, 260], Scene::kill_daemon)?;
    let left = scene.portolan(&["ps", "-q"])?;
    ensure!(left.is_empty(), "left are {left}");
    scene.portolan(&["verify"])?;
    Ok(())
}

fn untouched(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.clear()?;
    // The kernel takes namespaces down on its own time.
    let mut difference = Vec::new();
    let is_as_before = || {
        difference =
            settled(&scene.host, LONG).map_or_else(|error| vec![error.to_string()], |now| diff(&scene.before, &now));
        difference.is_empty()
    };
    ensure!(eventually(LONG, is_as_before), "it differs: {difference:?}");
    Ok(())
}
