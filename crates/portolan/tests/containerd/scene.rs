//! containerd on a host with a LAN neighbour, and ways to look at what it does.

#[path = "../machine/look.rs"]
mod look;

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use portolan_kernel::netns::NetnsFd;
use portolan_lab::snapshot::{Snapshot, diff, settled, snapshot};
use portolan_lab::{Host, InNetns, Lab, Lan, eventually};
use serde_json::Value;

pub(crate) use look::*;

use crate::machine::{self, IMAGE, Machine};

/// Where containerd is spoken to.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";

/// What must be installed, with the Debian package it is in.
const PROGRAMS: [(&str, &str); 5] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/containerd-shim-runc-v2", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/busybox", "busybox-static"),
];

/// What containerd, libcni and we write to; and where plugins are: only ours are seen, in either place.
const PLACES: [&str; 5] = ["/var/lib/containerd", "/var/lib/cni", "/var/lib/portolan", "/opt/cni/bin", "/usr/lib/cni"];

/// The program.
const PORTOLAN: &str = env!("CARGO_BIN_EXE_portolan");

/// A host with containerd.
#[derive(Debug)]
pub(crate) struct Scene {
    machine: Machine,
    containerd: Child,
    pub(crate) host: Host,
    pub(crate) neighbour: Host,
    /// What the host held before containerd did anything.
    before: Snapshot,
    _lan: Lan,
    // Last, as it removes the others.
    _lab: Lab,
}

/// The network namespace of a container or sandbox.
#[derive(Debug)]
pub(crate) struct Place(NetnsFd);

impl InNetns for Place {
    fn netns(&self) -> &NetnsFd {
        &self.0
    }
}

impl Scene {
    /// Makes one; skips loudly where it cannot be had.
    pub(crate) fn or_skip(name: &str) -> Option<Self> {
        let lab = Lab::or_skip(name)?;
        if let Some(missing) = machine::missing_of(&PROGRAMS) {
            assert!(env::var_os("CI").is_none(), "CI must have containerd: {missing}");
            eprintln!("SKIP: `{name}`: {missing}");
            return None;
        }
        Some(Self::new(lab, name).expect("containerd can be had"))
    }

    fn new(lab: Lab, name: &str) -> Result<Self> {
        let (host, neighbour) = (lab.host("h")?, lab.host("n")?);
        let lan = lab.lan(
            "lan",
            &[
                (&host, "eth0", &["10.0.1.1/24", "fd00:1::1/64"]),
                (&neighbour, "eth0", &["10.0.1.2/24", "fd00:1::2/64"]),
            ],
        )?;
        for gateway in [NEIGHBOUR, NEIGHBOUR6] {
            host.add_default_route(gateway)?;
        }
        let before = settled(&host, LONG)?;
        let machine = Machine::start(&lab, &host, name, &PLACES, configure)?;
        let network = ["--name", "lab", "--subnet", "10.9.1.0/24", "--subnet", "fd09:1::/64"];
        machine.run(PORTOLAN, &[&["install", "cni", "--config", "/etc/cni/net.d"], &network[..]].concat())?;
        let log = fs::File::create(machine.outside("/run/containerd.log"))?;
        let mut command = machine.command("containerd", &["--config", "/etc/containerd/config.toml"]);
        let containerd = command.stdout(Stdio::null()).stderr(log).spawn().context("start containerd")?;
        let scene = Self { machine, containerd, host, neighbour, before, _lan: lan, _lab: lab };
        let is_there = || scene.machine.command("ctr", &["version"]).output().is_ok_and(|out| out.status.success());
        ensure!(eventually(LONG, is_there), "containerd does not answer: {}", scene.log());
        let image = scene.machine.make_image()?;
        for namespace in ["default", "k8s.io"] {
            let import = ["-n", namespace, "images", "import", "--snapshotter", "native", &image];
            scene.machine.run("ctr", &import)?;
        }
        Ok(scene)
    }

    /// What containerd logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.machine.outside("/run/containerd.log")).unwrap_or_default()
    }

    /// Runs `ctr`.
    pub(crate) fn ctr(&self, args: &[&str]) -> Result<String> {
        self.machine.run("ctr", args)
    }

    /// Starts `ctr run`: a container that serves HTTP on port 80, saying its name. It has its address when this returns.
    pub(crate) fn run(&self, name: &str, args: &[&str]) -> Result<Child> {
        let variable = format!("NAME={name}");
        let run = ["run", "--cni", "--snapshotter", "native", "--env", &variable];
        let mut command = self.machine.command("ctr", &[&run, args, &[IMAGE, name]].concat());
        let child = command.stdout(Stdio::null()).spawn().context("start `ctr`")?;
        let is_there = || self.addresses(&format!("default-{name}")).is_ok();
        ensure!(eventually(LONG, is_there), "container `{name}` does not come up");
        Ok(child)
    }

    /// The namespace of a container that runs.
    pub(crate) fn place(&self, name: &str) -> Result<Place> {
        let list = self.ctr(&["task", "ls"])?;
        let pid = list.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(name)).then(|| words.next()).flatten()
        });
        self.netns(&format!("/proc/{}/ns/net", pid.with_context(|| format!("no task `{name}` in {list}"))?))
    }

    /// A namespace by its path in the machine.
    pub(crate) fn netns(&self, path: &str) -> Result<Place> {
        // A link of the machine that would lead to our own `/run`.
        let path = path.strip_prefix("/var").filter(|rest| rest.starts_with("/run/")).unwrap_or(path);
        Ok(Place(self.machine.netns(path)?))
    }

    /// Where a path of the machine is.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        self.machine.outside(path)
    }

    /// Runs our command line.
    pub(crate) fn portolan(&self, args: &[&str]) -> Result<String> {
        self.machine.run(PORTOLAN, args)
    }

    /// Runs our command line with `--json`.
    pub(crate) fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.portolan(&[&["--json"], args].concat())?)?)
    }

    /// The containers that we know, by name.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let all = self.json(&["ps", "-a"])?;
        let names = all.as_array().context("a list")?.iter();
        Ok(names.filter_map(|one| Some(one["Names"].as_str()?.to_owned())).collect())
    }

    /// The addresses that we gave a container of containerd's, IPv4 first.
    pub(crate) fn addresses(&self, container: &str) -> Result<Vec<IpAddr>> {
        let details = self.json(&["inspect", container])?;
        let networks = &details[0]["NetworkSettings"]["Networks"]["lab"];
        let address = |key: &str| Ok(networks[key].as_str().with_context(|| format!("{key} in {details}"))?.parse()?);
        ["IPAddress", "GlobalIPv6Address"].into_iter().map(address).collect()
    }

    /// Fails unless the kernel holds what our rows say.
    pub(crate) fn verify(&self) -> Result<()> {
        self.portolan(&["verify"]).map(drop)
    }

    /// Fails unless nothing is left of what was there: on the host, in our rows, of namespaces; and in libcni's cache of
    /// results nothing but `cached`.
    pub(crate) fn empty(&self, cached: &[&str]) -> Result<()> {
        let names = self.names()?;
        ensure!(names.is_empty(), "we still know {names:?}");
        let mut changes = Vec::new();
        // The daemon takes its table away a moment after the last container.
        let is_same = || {
            changes = snapshot(&self.host).map_or_else(|error| vec![error.to_string()], |now| diff(&self.before, &now));
            changes.is_empty()
        };
        ensure!(eventually(LONG, is_same), "the host is not what it was: {changes:#?}");
        for (dir, expected) in [("/run/netns", &[][..]), ("/var/lib/cni/results", cached)] {
            let left = fs::read_dir(self.outside(dir)).into_iter().flatten().flatten();
            let left: Vec<String> = left.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
            ensure!(left == expected, "`{dir}` holds {left:?}");
        }
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // What it runs goes with its machine.
        let _ = self.containerd.kill();
        let _ = self.containerd.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Writes the files that containerd reads.
fn configure(dir: &Path) -> Result<()> {
    let etc = dir.join("etc");
    fs::create_dir_all(etc.join("containerd"))?;
    // What a machine of namespaces cannot do is turned off: AppArmor, and overlays over overlays.
    fs::write(
        etc.join("containerd/config.toml"),
        format!(
            r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
        ),
    )?;
    Ok(())
}
