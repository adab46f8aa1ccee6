//! Hosts of one cluster, on each of which a real Docker has our plugin; and a neighbour of theirs, where etcd is.

#[path = "../machine/look.rs"]
mod look;

use std::env;
use std::fs;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use portolan_kernel::netns::NetnsFd;
use portolan_lab::etcd::{self, Etcd};
use portolan_lab::snapshot::{Snapshot, settled};
use portolan_lab::{Host, Lab, Lan, eventually};
use serde_json::Value;

pub(crate) use look::*;

use crate::machine::{self, IMAGE, Machine};

/// The program.
pub(crate) const PORTOLAN: &str = env!("CARGO_BIN_EXE_portolan");

/// What must be installed, with the Debian package it is in.
const PROGRAMS: [(&str, &str); 6] = [
    ("/usr/sbin/dockerd", "docker.io"),
    ("/usr/bin/docker", "docker.io"),
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/bin/busybox", "busybox-static"),
];

const RECIPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/docker-plugin/build");

/// What Docker, containerd and we write to.
const PLACES: [&str; 4] = ["/var/lib/docker", "/var/lib/containerd", "/var/lib/portolan", "/var/tmp"];

/// Hosts of a cluster.
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) neighbour: Host,
    etcd: Etcd,
    _lan: Lan,
    // Last, as it removes the others.
    _lab: Lab,
}

/// A host with Docker.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) machine: Machine,
    pub(crate) host: Host,
    dockerd: Mutex<Option<Child>>,
}

impl World {
    /// Hosts of these names on one LAN, whose Docker has begun; none, and a loud word, where something is missing.
    pub(crate) fn or_skip(name: &str, names: &[&str]) -> Option<Self> {
        Self::with_or_skip(name, names, |node| node.portolan(&["daemon", "start", "--docker"]).map(drop))
    }

    /// The same, in a swarm as well, the first as its manager; our plugin is one that Docker manages.
    pub(crate) fn swarm_or_skip(name: &str, names: &[&str]) -> Option<Self> {
        let world = Self::with_or_skip(name, names, |_| Ok(()))?;
        world.make_swarm().expect("there can be a swarm");
        Some(world)
    }

    /// Hosts with Docker alone, in a swarm.
    #[allow(dead_code, reason = "a benchmark has them")]
    pub(crate) fn docker_or_skip(name: &str, names: &[&str]) -> Option<Self> {
        let world = Self::with_or_skip(name, names, |_| Ok(()))?;
        world.begin_swarm().expect("there can be a swarm");
        Some(world)
    }

    fn with_or_skip(name: &str, names: &[&str], before: impl Fn(&Node) -> Result<()> + Sync) -> Option<Self> {
        if !etcd::is_there(name) {
            return None;
        }
        let lab = Lab::or_skip(name)?;
        if let Some(missing) = machine::missing_of(&PROGRAMS) {
            assert!(env::var_os("CI").is_none(), "CI must have Docker: {missing}");
            eprintln!("SKIP: `{name}`: {missing}");
            return None;
        }
        Some(Self::new(lab, names, before).expect("hosts can be had"))
    }

    /// Makes them; `before` is done on each before Docker begins, or we are in the cluster.
    fn new(lab: Lab, names: &[&str], before: impl Fn(&Node) -> Result<()> + Sync) -> Result<Self> {
        let neighbour = lab.host("n")?;
        let mut lan =
            lab.lan("lan", &[(&neighbour, "eth0", &[&format!("{NEIGHBOUR}/24"), &format!("{NEIGHBOUR6}/64")])])?;
        let mut nodes = Vec::new();
        for (number, name) in (101..).zip(names) {
            let host = lab.host(name)?;
            let address = format!("10.0.1.{number}");
            lan.connect(&host, "eth0", &[&format!("{address}/24"), &format!("fd00:1::{number}/64")])?;
            for gateway in [NEIGHBOUR, NEIGHBOUR6] {
                host.add_default_route(gateway)?;
            }
            let machine = Machine::start(&lab, &host, name, &PLACES, |_| Ok(()))?;
            machine.run("hostname", &[name])?;
            nodes.push(Node { name: (*name).to_owned(), address, machine, host, dockerd: Mutex::new(None) });
        }
        let address: IpAddr = NEIGHBOUR.parse()?;
        let etcd = Etcd::start(lab.dir(), &[(&neighbour, address)], "http", &[])?;
        let world = Self { nodes, neighbour, etcd, _lan: lan, _lab: lab };
        // Most of the time each waits.
        world.at_all(|node| {
            before(node)?;
            node.start_docker()?;
            node.docker(&["load", "-i", &node.machine.make_image()?])?;
            Ok(())
        })?;
        if world.nodes.iter().all(Node::has_daemon) {
            world.join()?;
        }
        Ok(world)
    }

    fn join(&self) -> Result<()> {
        for (number, node) in self.nodes.iter().enumerate() {
            let verb = if number == 0 { "init" } else { "join" };
            let etcd = self.etcd.endpoints("http").join(",");
            node.portolan(&["cluster", verb, "--etcd", &etcd, "--name", &node.name])?;
        }
        Ok(())
    }

    fn make_swarm(&self) -> Result<()> {
        self.at_all(|node| {
            node.machine.run("mkdir", &["-p", "/var/lib/portolan", "/run/portolan"])?;
            let (program, parts) = ("/var/tmp/portolan", "/var/tmp/plugin");
            // Docker packs all of it: without what is for debuggers it takes a third of the time.
            if node.machine.run("strip", &["-o", program, PORTOLAN]).is_err() {
                node.machine.run("cp", &[PORTOLAN, program])?;
            }
            node.machine.run(RECIPE, &[program, parts])?;
            node.docker(&["plugin", "create", "portolan", parts])?;
            node.docker(&["plugin", "enable", "portolan"])?;
            Ok(())
        })?;
        self.join()?;
        self.begin_swarm()
    }

    fn begin_swarm(&self) -> Result<()> {
        let manager = &self.nodes[0];
        // Docker's second network would have the subnet of the hosts' LAN.
        let init = ["swarm", "init", "--default-addr-pool", "10.77.0.0/16", "--advertise-addr", &manager.address];
        manager.docker(&init)?;
        let token = manager.docker(&["swarm", "join-token", "-q", "worker"])?;
        for node in &self.nodes[1..] {
            node.docker(&["swarm", "join", "--token", &token, &format!("{}:2377", manager.address)])?;
        }
        Ok(())
    }

    /// Does `work` on all hosts at once.
    pub(crate) fn at_all(&self, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
        thread::scope(|scope| {
            let work = &work;
            let all: Vec<_> = self.nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
            all.into_iter().try_for_each(|one| one.join().expect("nothing panics"))
        })
    }
}

/// A container that runs.
pub(crate) struct Container {
    pub(crate) netns: NetnsFd,
    details: Value,
}

impl portolan_lab::InNetns for Container {
    fn netns(&self) -> &NetnsFd {
        &self.netns
    }
}

impl Container {
    /// Its addresses on a network.
    pub(crate) fn addresses(&self, network: &str) -> Vec<IpAddr> {
        let place = &self.details["NetworkSettings"]["Networks"][network];
        let of = |key: &str| place[key].as_str().and_then(|text| text.parse().ok());
        ["IPAddress", "GlobalIPv6Address"].into_iter().filter_map(of).collect()
    }
}

impl Node {
    /// Runs `docker`.
    pub(crate) fn docker(&self, args: &[&str]) -> Result<String> {
        self.machine.run("docker", args).with_context(|| format!("on host {}", self.name))
    }

    /// Runs `portolan`.
    pub(crate) fn portolan(&self, args: &[&str]) -> Result<String> {
        self.machine.run(PORTOLAN, args).with_context(|| format!("on host {}", self.name))
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

    /// Fails unless the container `from` of this host finds a server that says `name` by asking for `called`.
    pub(crate) fn finds(&self, from: &str, called: &str, name: &str) -> Result<()> {
        let mut last = String::new();
        let is_there = || {
            let url = format!("http://{called}/");
            // Its own time limit (`-T`) has busybox crash.
            let words = ["exec", from, "timeout", "2", "wget", "-qO-", &url];
            let output = self.machine.command("docker", &words).output();
            last = output.map_or_else(
                |error| error.to_string(),
                |output| {
                    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
                },
            );
            last.trim() == name
        };
        ensure!(eventually(LONG, is_there), "`{from}` does not find `{name}` by `{called}`: {last}");
        Ok(())
    }

    /// The addresses that a container's resolver knows for a name.
    pub(crate) fn resolves(&self, from: &str, name: &str) -> Vec<String> {
        let output = self.machine.command("docker", &["exec", from, "nslookup", name, "127.0.0.11"]).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let answer = text.split("Name:").skip(1).flat_map(str::lines);
        let mut found: Vec<String> =
            answer.filter_map(|line| line.strip_prefix("Address: ")).map(|a| a.trim().to_owned()).collect();
        found.sort();
        found.dedup();
        found
    }

    /// What the server at `to` says, if one answers the container `from` of this host.
    pub(crate) fn fetch(&self, from: &str, to: &str) -> Option<String> {
        let to = if to.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{to}]") } else { to.to_owned() };
        let words = ["exec", from, "timeout", "2", "wget", "-qO-", &format!("http://{to}/")];
        let output = self.machine.command("docker", &words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Whether our daemon runs.
    fn has_daemon(&self) -> bool {
        self.machine.command(PORTOLAN, &["daemon", "status"]).output().is_ok_and(|out| out.status.success())
    }

    /// Starts Docker, which does not run.
    pub(crate) fn start_docker(&self) -> Result<()> {
        let machine = &self.machine;
        // One that was killed leaves it.
        let _ = fs::remove_file(machine.outside("/run/docker.pid"));
        let log = fs::File::options().create(true).append(true).open(machine.outside("/run/dockerd.log"))?;
        let options = ["--storage-driver=vfs", "--exec-opt=native.cgroupdriver=cgroupfs"];
        let mut command = machine.command("dockerd", &options);
        let dockerd =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("start dockerd")?;
        let is_there = || machine.command("docker", &["version"]).output().is_ok_and(|out| out.status.success());
        ensure!(eventually(LONG * 3, is_there), "dockerd does not answer: {}", self.log());
        *self.dockerd.lock().expect("nothing panics") = Some(dockerd);
        Ok(())
    }

    /// What Docker said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.machine.outside("/run/dockerd.log")).unwrap_or_default()
    }

    /// Kills Docker as no signal handler can hear.
    pub(crate) fn kill_docker(&self) -> Result<()> {
        // Our child only stands before it.
        let pid = fs::read_to_string(self.machine.outside("/run/docker.pid"))?;
        self.machine.run("kill", &["-9", pid.trim()])?;
        let containerd = fs::read_to_string(self.machine.outside("/run/docker/containerd/containerd.pid"))?;
        self.dockerd.lock().expect("nothing panics").take().context("Docker runs")?.wait()?;
        let containerd = self.machine.outside(&format!("/proc/{}", containerd.trim()));
        ensure!(eventually(LONG, || !containerd.exists()), "its containerd stays");
        Ok(())
    }

    /// Kills our daemon.
    pub(crate) fn kill_daemon(&self) -> Result<()> {
        let status: Value = serde_json::from_str(&self.portolan(&["daemon", "status", "--json"])?)?;
        let pid = status["pid"].to_string();
        self.machine.run("kill", &["-9", &pid])?;
        let process = self.machine.outside(&format!("/proc/{pid}"));
        ensure!(eventually(LONG, || !process.exists()), "the daemon stays");
        Ok(())
    }

    /// What its kernel holds.
    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        settled(&self.host, LONG)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.machine.command(PORTOLAN, &["daemon", "stop"]).output();
        if let Ok(Some(dockerd)) = self.dockerd.get_mut() {
            let _ = dockerd.kill();
            let _ = dockerd.wait();
        }
    }
}
