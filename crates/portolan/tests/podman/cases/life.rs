//! Starting, stopping, dying; pods; many at once; what is left.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use portolan_lab::eventually;
use portolan_lab::snapshot::{Snapshot, diff, snapshot};

use super::Case;
use crate::machine::{IMAGE, finished};
use crate::scene::*;

pub(crate) const CASES: &[Case] = &[
    ("a pod: one namespace, a published port", pod),
    ("`restart`", restart),
    ("`stop` and `start`", stop_and_start),
    ("`pause` and `unpause`", pause),
    ("its process killed, then `start`", killed_then_start),
    ("its process and its monitor killed, then `rm -f` and `run` again", killed_then_rm),
    ("20 containers started at once", many_at_once),
    ("`system prune -f`", system_prune),
    ("`run --rm` leaves nothing", leaves_nothing),
    ("the host is in the end what it was before", untouched),
];

fn pod(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.podman(&[
        "pod",
        "create",
        "--name",
        "pod",
        "--network",
        "web",
        "-p",
        "8080:80",
        "--infra-command",
        "/bin/sleep 1000000",
    ])?;
    scene.podman(&["run", "-d", "--pod", "pod", "--name", "site", "-e", "NAME=site", IMAGE])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    let said = scene.podman(&["run", "--rm", "--pod", "pod", IMAGE, "wget", "-qO-", "http://127.0.0.1/"])?;
    ensure!(said == "site", "`{said}` answers inside the pod");
    let asks = scene.run("asks", &["--network", "web"])?;
    let (_, addresses) = ask(&asks, &asks.on("web", "Gateway"), "pod")?;
    ensure!(addresses.len() == 1, "the pod's name is {addresses:?}");
    says(&asks, at(&addresses[0], 80), "site")?;
    scene.podman(&["pod", "rm", "-f", "-t", "0", "pod"])?;
    silent(&scene.neighbour, at(HOST, 8080))
}

fn restart(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    for _ in 0..3 {
        scene.podman(&["restart", "-t", "0", "site"])?;
        let (_, addresses) = ask(&asks, &asks.on("web", "Gateway"), "site")?;
        ensure!(addresses == [scene.look("site")?.ip("web")], "its name is {addresses:?}");
        says(&scene.neighbour, at(HOST, 8080), "site")?;
    }
    Ok(())
}

fn stop_and_start(scene: &Scene) -> Result<()> {
    scene.run("site", &["-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.podman(&["stop", "-t", "0", "site"])?;
    silent(&scene.neighbour, at(HOST, 8080))?;
    scene.podman(&["start", "site"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")
}

fn pause(scene: &Scene) -> Result<()> {
    scene.run("site", &["-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    scene.podman(&["pause", "site"])?;
    ensure!(
        portolan_lab::probe::http_get(&scene.neighbour, at(HOST, 8080), "/", SHORT).is_err(),
        "it answers while paused"
    );
    scene.podman(&["unpause", "site"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")
}

/// Kills the monitor first, so that nobody learns of the container's end. Podman itself cannot start such a container again,
/// with any backend: it can only remove it.
fn kill(scene: &Scene, container: &Container) -> Result<()> {
    let [process, monitor] = container.processes();
    scene.machine.run("kill", &["-KILL", &monitor])?;
    scene.machine.run("kill", &["-KILL", &process])?;
    let path = scene.machine.outside(&format!("/proc/{process}"));
    ensure!(eventually(LONG, || !path.exists()), "the container lives on");
    Ok(())
}

fn killed_then_start(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let site = scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    let [process, _] = site.processes();
    scene.machine.run("kill", &["-KILL", &process])?;
    scene.podman(&["wait", "site"])?;
    scene.podman(&["start", "site"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    names(&asks, &asks.on("web", "Gateway"), "site", &scene.look("site")?.ip("web"))
}

fn killed_then_rm(scene: &Scene) -> Result<()> {
    scene.run("stays", &[])?;
    let before = settled(scene)?;
    let site = scene.run("site", &["-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    kill(scene, &site)?;
    scene.podman(&["rm", "-f", "-t", "0", "site"])?;
    same(&before, scene)?;
    scene.run("site", &["-p", "8080:80"])?;
    says(&scene.neighbour, at(HOST, 8080), "site")
}

fn many_at_once(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    let asks = scene.run("asks", &["--network", "web"])?;
    let mut children = Vec::new();
    for n in 0..20 {
        let (name, port) = (format!("c{n}"), format!("{}:80", 8100 + n));
        let variable = format!("NAME={name}");
        let args = ["run", "-d", "--name", &name, "-e", &variable, "--network", "web", "-p", &port, IMAGE];
        let mut command = scene.machine.command("podman", &args);
        children.push(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    }
    for child in children {
        finished("podman", &["run"], &child.wait_with_output()?)?;
    }
    let mut addresses = BTreeSet::new();
    for n in 0..20 {
        let name = format!("c{n}");
        says(&scene.neighbour, at(HOST, 8100 + n), &name)?;
        let (_, found) = ask(&asks, &asks.on("web", "Gateway"), &name)?;
        ensure!(found.len() == 1, "a name is {found:?}");
        addresses.extend(found);
    }
    ensure!(addresses.len() == 20, "twenty containers have {} addresses", addresses.len());
    Ok(())
}

fn system_prune(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.network("unused", &[])?;
    scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    scene.run("ended", &[])?;
    scene.podman(&["stop", "-t", "0", "ended"])?;
    scene.podman(&["system", "prune", "-f"])?;
    ensure!(scene.podman(&["ps", "-a", "--format", "{{.Names}}"])? == "site", "the wrong containers are left");
    says(&scene.neighbour, at(HOST, 8080), "site")
}

fn leaves_nothing(scene: &Scene) -> Result<()> {
    scene.network("web", &[])?;
    scene.run("stays", &["--network", "web", "-p", "8079:80"])?;
    // A neighbour's first packet makes the kernel learn things: let it happen before.
    says(&scene.neighbour, at(HOST, 8079), "stays")?;
    let before = settled(scene)?;
    for _ in 0..3 {
        scene.podman(&["run", "--rm", "--network", "web", "-p", "8080:80", IMAGE, "true"])?;
        scene.podman(&["run", "--rm", "-p", "8080:80/udp", IMAGE, "true"])?;
    }
    same(&before, scene)?;
    let pins = std::fs::read_dir(scene.machine.outside("/run/netns"))?.count();
    ensure!(pins == 1, "{pins} namespaces are left");
    Ok(())
}

/// What the host holds when nothing has changed for a while: a link's own addresses and routes come only after duplicate
/// address detection (RFC 4862 §5.4), which waits for up to a second and then takes one.
fn settled(scene: &Scene) -> Result<Snapshot> {
    let (mut last, mut since) = (snapshot(&scene.host)?, Instant::now());
    let is_settled = || {
        let now = snapshot(&scene.host).unwrap_or_else(|_| last.clone());
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(2500)
    };
    ensure!(eventually(LONG * 2, is_settled), "the host does not come to rest");
    Ok(last)
}

/// Fails unless the host is soon what it was.
fn same(before: &Snapshot, scene: &Scene) -> Result<()> {
    let mut changes = Vec::new();
    let is_same = || {
        changes = snapshot(&scene.host).map_or_else(|error| vec![error.to_string()], |now| diff(before, &now));
        changes.is_empty()
    };
    let is_same = eventually(LONG, is_same);
    ensure!(is_same, "{} lines of the host's state differ, such as `{}`", changes.len(), changes[0]);
    Ok(())
}

fn untouched(scene: &Scene) -> Result<()> {
    same(&scene.before, scene)
}
