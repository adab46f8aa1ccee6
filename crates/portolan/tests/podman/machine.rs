//! A Podman that has a machine to itself.

#![allow(dead_code, reason = "the benchmark uses a part of it, the test another")]

#[path = "../machine/mod.rs"]
pub(crate) mod any;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result};
use portolan_lab::{Host, Lab};

pub(crate) use any::{IMAGE, Machine, finished};

/// What must be installed, with the Debian package it is in.
const PROGRAMS: [(&str, &str); 4] = [
    ("/usr/bin/podman", "podman"),
    ("/usr/bin/conmon", "conmon"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/busybox", "busybox-static"),
];
const NETAVARK_PROGRAMS: [(&str, &str); 2] = [(NETAVARK, "netavark"), (AARDVARK, "aardvark-dns")];
const PLUGINS: [(&str, &str); 1] = [("/usr/lib/cni/bridge", "containernetworking-plugins")];
const NETAVARK: &str = "/usr/lib/podman/netavark";
const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";

/// What Podman leaves networks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Debian's netavark.
    Netavark,
    /// This program in its place.
    Portolan,
    /// Debian's CNI plugins.
    Plugins,
    /// This program in the place of every one of them.
    PortolanPlugins,
}

impl Backend {
    fn is_cni(self) -> bool {
        matches!(self, Self::Plugins | Self::PortolanPlugins)
    }
}

/// The first program that Podman needs and is not there.
pub(crate) fn missing(backend: Backend) -> Option<String> {
    let more: &[(&str, &str)] = if backend.is_cni() { &PLUGINS } else { &NETAVARK_PROGRAMS };
    any::missing_of(&PROGRAMS).or_else(|| any::missing_of(more))
}

/// What is called `netavark` and `aardvark-dns`.
pub(crate) fn programs(backend: Backend) -> [&'static str; 2] {
    match backend {
        Backend::Netavark | Backend::Plugins => [NETAVARK, AARDVARK],
        Backend::Portolan | Backend::PortolanPlugins => [env!("CARGO_BIN_EXE_portolan"); 2],
    }
}

/// Starts a machine with Podman on `host`; see [`Machine::start`].
///
/// # Errors
/// When Podman is not installed, or a machine cannot be had.
pub(crate) fn start(lab: &Lab, host: &Host, name: &str, backend: Backend) -> Result<Machine> {
    let places = ["/var/lib/containers", "/var/lib/cni", "/var/lib/portolan", "/var/tmp"];
    let machine = Machine::start(lab, host, name, &places, |dir| configure(dir, backend))?;
    machine.run("podman", &["load", "-i", &machine.make_image()?])?;
    Ok(machine)
}

/// Writes the files that Podman reads.
fn configure(dir: &Path, backend: Backend) -> Result<()> {
    let bin = dir.join("bin");
    fs::create_dir(&bin)?;
    let containers = dir.join("etc/containers");
    fs::create_dir_all(containers.join("networks"))?;
    let kind = if backend.is_cni() {
        for entry in fs::read_dir("/usr/lib/cni")? {
            let original = entry?.path();
            let link = bin.join(original.file_name().context("a file of a directory has a name")?);
            let is_ours = backend == Backend::PortolanPlugins;
            symlink(if is_ours { Path::new(env!("CARGO_BIN_EXE_portolan")) } else { &original }, link)?;
        }
        "cni"
    } else {
        let [netavark, aardvark] = programs(backend);
        symlink(netavark, bin.join("netavark"))?;
        symlink(aardvark, bin.join("aardvark-dns"))?;
        "netavark"
    };
    fs::write(
        containers.join("containers.conf"),
        format!(
            r#"[containers]
apparmor_profile = ""
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["{}"]
infra_command = "/bin/sleep 1000000"
infra_image = "{IMAGE}"
pull_policy = "never"
runtime = "runc"
[network]
network_backend = "{kind}"
network_config_dir = "/etc/containers/networks"
cni_plugin_dirs = ["{0}"]
"#,
            bin.display()
        ),
    )?;
    let storage = "[storage]\ndriver = \"vfs\"\ngraphroot = \"/var/lib/containers/storage\"\nrunroot = \"/run/containers/storage\"\n";
    fs::write(containers.join("storage.conf"), storage)?;
    fs::write(containers.join("registries.conf"), "unqualified-search-registries = []\n")?;
    fs::write(containers.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
    Ok(())
}
