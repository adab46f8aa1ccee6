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

/// Another address of the neighbour.
pub(crate) const NEIGHBOUR_SECOND: &str = "10.0.1.12";

/// What carries Docker's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Docker's own.
    Bridge,
    /// Ours.
    Portolan,
    /// Ours, as a plugin that Docker manages: a driver is called by the whole name of it then.
    Managed,
}

impl Driver {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Portolan => "portolan",
            Self::Managed => "portolan:latest",
        }
    }
}

/// A host with Docker.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) machine: Machine,
    pub(crate) driver: Driver,
    dockerd: Mutex<Option<Child>>,
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
        let mut scene = Self::without_docker(name, driver)?;
        if driver == Driver::Portolan {
            scene.portolan(&["daemon", "start", "--docker"])?;
        }
        scene.start_docker()?;
        if driver == Driver::Portolan {
            scene.open_filter()?;
        }
        scene.before = settled(&scene.host, LONG)?;
        scene.load_image()?;
        Ok(scene)
    }

    /// Makes one whose Docker leaves the host's firewall alone.
    pub(crate) fn without_iptables(name: &str, driver: Driver) -> Result<Self> {
        let mut scene = Self::without_docker(name, driver)?;
        let daemon_json = scene.machine.outside("/etc/docker/daemon.json");
        fs::create_dir_all(daemon_json.parent().context("it has a directory")?)?;
        fs::write(daemon_json, r#"{"bridge": "none", "iptables": false}"#)?;
        scene.portolan(&["daemon", "start", "--docker"])?;
        scene.start_docker()?;
        scene.before = settled(&scene.host, LONG)?;
        scene.load_image()?;
        Ok(scene)
    }

    /// Makes the host, on which neither Docker nor our daemon runs.
    pub(crate) fn without_docker(name: &str, driver: Driver) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (host, neighbour) = (lab.host("h")?, lab.host("n")?);
        let (at_host, at_neighbour) =
            (["10.0.1.1/24", "10.0.1.11/24", "fd00:1::1/64"], ["10.0.1.2/24", "10.0.1.12/24", "fd00:1::2/64"]);
        let lan = lab.lan("lan", &[(&host, "eth0", &at_host), (&neighbour, "eth0", &at_neighbour)])?;
        for gateway in [NEIGHBOUR, NEIGHBOUR6] {
            host.add_default_route(gateway)?;
        }
        let machine = Machine::start(&lab, &host, name, &PLACES, |_| Ok(()))?;
        let before = settled(&host, LONG)?;
        Ok(Self { machine, driver, dockerd: Mutex::new(None), host, neighbour, before, _lan: lan, _lab: lab })
    }

    /// Starts Docker, which does not run.
    pub(crate) fn start_docker(&self) -> Result<()> {
        *self.dockerd.lock().expect("no case panics") = Some(start_dockerd(&self.machine)?);
        Ok(())
    }

    /// Ends Docker as a service manager does.
    pub(crate) fn stop_docker(&self) -> Result<()> {
        let mut dockerd = self.dockerd.lock().expect("no case panics").take().context("Docker runs")?;
        let pid = fs::read_to_string(self.machine.outside("/run/docker.pid"))?;
        self.machine.run("kill", &[pid.trim()])?;
        dockerd.wait()?;
        Ok(())
    }

    /// Lets packets of our networks through the host's own filter, which Docker has closed.
    pub(crate) fn open_filter(&self) -> Result<()> {
        // What is to be opened for whom is known with the first network.
        self.docker(&["network", "create", "-d", self.driver.name(), "first"])?;
        self.portolan(&["doctor", "--open"])?;
        self.docker(&["network", "rm", "first"])?;
        Ok(())
    }

    /// Gives Docker the image of the cases.
    pub(crate) fn load_image(&self) -> Result<()> {
        self.docker(&["load", "-i", &self.machine.make_image()?])?;
        Ok(())
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
        let containerd = fs::read_to_string(self.machine.outside("/run/docker/containerd/containerd.pid"))?;
        dockerd.take().context("Docker runs")?.wait()?;
        // It dies with Docker (PR_SET_PDEATHSIG): another that finds it dying takes it for alive, and never starts its own.
        let containerd = self.machine.outside(&format!("/proc/{}", containerd.trim()));
        ensure!(eventually(LONG, || !containerd.exists()), "its containerd stays");
        meanwhile()?;
        *dockerd = Some(start_dockerd(&self.machine)?);
        Ok(())
    }

    /// Kills the plugin's daemon; whoever stands behind it starts it again.
    pub(crate) fn kill_daemon(&self) -> Result<()> {
        self.machine.run("kill", &["-9", &self.daemon()?])?;
        Ok(())
    }

    /// The process id of the plugin's daemon.
    pub(crate) fn daemon(&self) -> Result<String> {
        // One that was killed is not at once followed by another.
        let mut pid = None;
        let is_there = || {
            let said = self.portolan(&["daemon", "status", "--json"]).unwrap_or_default();
            pid = serde_json::from_str(&said).ok().and_then(|status: Value| status["pid"].as_u64());
            pid.is_some()
        };
        ensure!(eventually(LONG, is_there), "no daemon of the plugin runs");
        Ok(pid.context("it runs")?.to_string())
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
            Driver::Managed => &["--ipam-driver", "portolan:latest"],
        }
    }

    /// Creates a network of another driver than bridge: Docker's own of that name, or ours.
    pub(crate) fn network_of(&self, driver: &str, name: &str, args: &[&str]) -> Result<()> {
        let option = format!("driver={driver}");
        let which: &[&str] = match self.driver {
            Driver::Bridge => &["-d", driver],
            Driver::Portolan | Driver::Managed => &["-d", self.driver.name(), "-o", &option],
        };
        self.docker(&[&["network", "create"], which, args, &[name]].concat())?;
        Ok(())
    }

    /// Fails unless no interface is left of which `is_it` holds, among those that `ip link show` lists with `which`. The kernel takes
    /// down namespaces, with what is in them and its other end, on its own time.
    pub(crate) fn gone(&self, which: &[&str], is_it: impl Fn(&str) -> bool) -> Result<()> {
        let list = || self.machine.run("ip", &[&["-o", "link", "show"], which].concat());
        let mut left = Vec::new();
        let are_gone = || {
            left = match list() {
                Ok(links) => links.lines().filter(|line| is_it(line)).map(str::to_owned).collect(),
                Err(error) => vec![error.to_string()],
            };
            left.is_empty()
        };
        ensure!(eventually(LONG, are_gone), "left are {left:?}");
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
        if let Ok(Some(dockerd)) = self.dockerd.get_mut() {
            let _ = dockerd.kill();
            let _ = dockerd.wait();
        }
    }
}
