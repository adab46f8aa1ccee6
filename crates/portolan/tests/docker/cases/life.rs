//! Starting, stopping, dying, of containers, of Docker and of us; what is left.

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
        started.push(scene.machine.command("docker", &args).stdout(std::process::Stdio::null()).spawn()?);
    }
    for mut child in started {
        ensure!(child.wait()?.success(), "one of them does not start");
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
    scene.network("web", &["--subnet", "10.60.0.0/24"])?;
    for delay in [20u64, 60, 120, 200, 300] {
        let run = ["run", "-d", "--network", "web", "--ip", "10.60.0.9", "-p", "8080:80", IMAGE];
        let mut child = scene
            .machine
            .command("docker", &run)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        // Not to wait for anything: to be somewhere else each time.
        std::thread::sleep(std::time::Duration::from_millis(delay));
        scene.kill_docker()?;
        child.wait()?;
        scene.clear_containers()?;
        // Whatever the dead one had got is to be had again.
        scene.run("site", &["--network", "web", "--ip", "10.60.0.9", "-p", "8080:80"])?;
        says(&scene.neighbour, at(HOST, 8080), "site")?;
        scene.docker(&["rm", "-f", "site"])?;
    }
    let links = scene.machine.run("ip", &["-o", "link", "show", "type", "veth"])?;
    let left: Vec<&str> = links.lines().filter(|line| !line.contains(" eth0")).collect();
    ensure!(left.is_empty(), "left are {left:?}");
    Ok(())
}

fn untouched(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.clear()?;
    let after = settled(&scene.host, LONG)?;
    let difference = diff(&scene.before, &after);
    ensure!(difference.is_empty(), "it differs: {difference:?}");
    Ok(())
}
