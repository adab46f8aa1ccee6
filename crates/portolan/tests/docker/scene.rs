//! Docker on a host with a LAN neighbour, and ways to look at what it does.

#[path = "../machine/look.rs"]
mod look;

use std::fs;
use std::process::{Child, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use portolan_kernel::netns::NetnsFd;
use portolan_lab::snapshot::{Snapshot, settled};
use portolan_lab::{Host, InNetns, Lab, Lan, eventually};
use serde_json::Value;

pub(crate) use look::*;

use crate::machine::{IMAGE, Machine};

/// The program.
pub(crate) const PORTOLAN: &str = env!("CARGO_BIN_EXE_portolan");

/// What must be installed, with the Debian package it is in.
pub(crate) const PROGRAMS: [(&str, &str); 6] = [
    ("/usr/sbin/dockerd", "docker.io"),
    ("/usr/bin/docker", "docker.io"),
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/bin/busybox", "busybox-static"),
];

/// What Docker, containerd and we write to.
const PLACES: [&str; 4] = ["/var/lib/docker", "/var/lib/containerd", "/var/lib/portolan", "/var/tmp"];

/// What carries Docker's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Docker's own.
    Bridge,
    /// Ours.
    Portolan,
}

impl Driver {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Portolan => "portolan",
        }
    }
}

/// A host with Docker.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) machine: Machine,
    pub(crate) driver: Driver,
    dockerd: Mutex<Child>,
    pub(crate) host: Host,
    pub(crate) neighbour: Host,
    /// What the host held when Docker had just begun.
    pub(crate) before: Snapshot,
    _lan: Lan,
    // Last, as it removes the others.
    _lab: Lab,
}

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Container {
    netns: NetnsFd,
    /// What `docker inspect` says.
    pub(crate) details: Value,
}

impl InNetns for Container {
    fn netns(&self) -> &NetnsFd {
        &self.netns
    }
}

impl Container {
    /// A field of its place on a network; empty if it has none.
    pub(crate) fn on(&self, network: &str, field: &str) -> String {
        self.details["NetworkSettings"]["Networks"][network][field].as_str().unwrap_or_default().to_owned()
    }

    /// Its address on a network.
    pub(crate) fn ip(&self, network: &str) -> String {
        self.on(network, "IPAddress")
    }
}

impl Scene {
    /// Makes one.
    pub(crate) fn new(name: &str, driver: Driver) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (host, neighbour) = (lab.host("h")?, lab.host("n")?);
        let (at_host, at_neighbour) =
            (["10.0.1.1/24", "10.0.1.11/24", "fd00:1::1/64"], ["10.0.1.2/24", "fd00:1::2/64"]);
        let lan = lab.lan("lan", &[(&host, "eth0", &at_host), (&neighbour, "eth0", &at_neighbour)])?;
        for gateway in [NEIGHBOUR, NEIGHBOUR6] {
            host.add_default_route(gateway)?;
        }
        let machine = Machine::start(&lab, &host, name, &PLACES, |_| Ok(()))?;
        if driver == Driver::Portolan {
            machine.run(PORTOLAN, &["daemon", "start", "--docker"])?;
        }
        let dockerd = Mutex::new(start_dockerd(&machine)?);
        if driver == Driver::Portolan {
            // What is to be opened for whom is known with the first network.
            machine.run("docker", &["network", "create", "-d", "portolan", "first"])?;
            machine.run(PORTOLAN, &["doctor", "--open"])?;
            machine.run("docker", &["network", "rm", "first"])?;
        }
        let before = settled(&host, LONG)?;
        let scene = Self { machine, driver, dockerd, host, neighbour, before, _lan: lan, _lab: lab };
        scene.docker(&["load", "-i", &scene.machine.make_image()?])?;
        Ok(scene)
    }

    /// Kills Docker as no signal handler can hear, and starts another.
    pub(crate) fn kill_docker(&self) -> Result<()> {
        self.kill_docker_with(|| Ok(()))
    }

    /// The same; does `meanwhile` before.
    pub(crate) fn kill_docker_with(&self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut dockerd = self.dockerd.lock().expect("no case panics");
        // Our child only stands before it.
        let pid = fs::read_to_string(self.machine.outside("/run/docker.pid"))?;
        self.machine.run("kill", &["-9", pid.trim()])?;
        dockerd.wait()?;
        meanwhile()?;
        *dockerd = start_dockerd(&self.machine)?;
        Ok(())
    }

    /// Kills the plugin's daemon; whoever stands behind it starts it again.
    pub(crate) fn kill_daemon(&self) -> Result<()> {
        self.machine.run("kill", &["-9", &self.daemon()?])?;
        Ok(())
    }

    /// The process id of the plugin's daemon.
    pub(crate) fn daemon(&self) -> Result<String> {
        let status: Value = serde_json::from_str(&self.portolan(&["daemon", "status", "--json"])?)?;
        Ok(status["pid"].to_string())
    }

    /// Runs `docker`.
    pub(crate) fn docker(&self, args: &[&str]) -> Result<String> {
        self.machine.run("docker", args)
    }

    /// Runs `portolan`.
    pub(crate) fn portolan(&self, args: &[&str]) -> Result<String> {
        self.machine.run(PORTOLAN, args)
    }

    /// Starts a container that serves HTTP on port 80, saying its name.
    pub(crate) fn run(&self, name: &str, args: &[&str]) -> Result<Container> {
        let variable = format!("NAME={name}");
        self.docker(&[&["run", "-d", "--name", name, "-e", &variable], args, &[IMAGE]].concat())?;
        self.look(name)
    }

    /// A container as it is now.
    pub(crate) fn look(&self, name: &str) -> Result<Container> {
        let details: Value = serde_json::from_str(&self.docker(&["container", "inspect", name])?)?;
        let details = details[0].clone();
        let pid = &details["State"]["Pid"];
        let netns = self.machine.netns(&format!("/proc/{pid}/ns/net"))?;
        Ok(Container { netns, details })
    }

    /// Creates a network of the driver that is tried.
    pub(crate) fn network(&self, name: &str, args: &[&str]) -> Result<()> {
        self.docker(&[&["network", "create", "-d", self.driver.name()], args, &[name]].concat())?;
        Ok(())
    }

    /// The same, with the IPAM driver that goes with it: ours with ours.
    pub(crate) fn addressed(&self, name: &str, args: &[&str]) -> Result<()> {
        self.network(name, &[self.ipam(), args].concat())
    }

    /// What asks for that IPAM driver.
    pub(crate) fn ipam(&self) -> &'static [&'static str] {
        match self.driver {
            Driver::Bridge => &[],
            Driver::Portolan => &["--ipam-driver", "portolan"],
        }
    }

    /// Creates a network of another driver than bridge: Docker's own of that name, or ours.
    pub(crate) fn network_of(&self, driver: &str, name: &str, args: &[&str]) -> Result<()> {
        let option = format!("driver={driver}");
        let which: &[&str] = match self.driver {
            Driver::Bridge => &["-d", driver],
            Driver::Portolan => &["-d", "portolan", "-o", &option],
        };
        self.docker(&[&["network", "create"], which, args, &[name]].concat())?;
        Ok(())
    }

    /// Removes what a case left, so that the next one finds an empty machine.
    pub(crate) fn clear(&self) -> Result<()> {
        self.clear_containers()?;
        self.docker(&["network", "prune", "--force"])?;
        Ok(())
    }

    /// Removes all containers.
    pub(crate) fn clear_containers(&self) -> Result<()> {
        let all = self.docker(&["ps", "-aq"])?;
        let all: Vec<&str> = all.split_whitespace().collect();
        if !all.is_empty() {
            self.docker(&[&["rm", "-f"], &all[..]].concat())?;
        }
        Ok(())
    }
}

fn start_dockerd(machine: &Machine) -> Result<Child> {
    // One that was killed leaves it.
    let _ = fs::remove_file(machine.outside("/run/docker.pid"));
    let log = fs::File::create(machine.outside("/run/dockerd.log"))?;
    let options = ["--storage-driver=vfs", "--exec-opt=native.cgroupdriver=cgroupfs"];
    let mut command = machine.command("dockerd", &options);
    let dockerd = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("start dockerd")?;
    let is_there = || machine.command("docker", &["version"]).output().is_ok_and(|out| out.status.success());
    let log = || fs::read_to_string(machine.outside("/run/dockerd.log")).unwrap_or_default();
    ensure!(eventually(LONG * 3, is_there), "dockerd does not answer: {}", log());
    Ok(dockerd)
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.driver == Driver::Portolan {
            let _ = self.machine.command(PORTOLAN, &["daemon", "stop"]).output();
        }
        if let Ok(mut dockerd) = self.dockerd.lock() {
            let _ = dockerd.kill();
            let _ = dockerd.wait();
        }
    }
}
