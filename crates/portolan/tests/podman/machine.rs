//! A Podman that has a machine to itself.

#![allow(dead_code, reason = "the benchmark uses a part of it, the test another")]

#[path = "../machine/mod.rs"]
mod any;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Result;
use portolan_lab::{Host, Lab};

pub(crate) use any::{IMAGE, Machine, finished};

/// What must be installed, with the Debian package it is in.
const PROGRAMS: [(&str, &str); 6] = [
    ("/usr/bin/podman", "podman"),
    ("/usr/bin/conmon", "conmon"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/busybox", "busybox-static"),
    (NETAVARK, "netavark"),
    (AARDVARK, "aardvark-dns"),
];
const NETAVARK: &str = "/usr/lib/podman/netavark";
const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";

/// What Podman calls `netavark`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Debian's.
    Netavark,
    /// Ours.
    Portolan,
}

/// The first program that Podman needs and is not there.
pub(crate) fn missing() -> Option<String> {
    any::missing_of(&PROGRAMS)
}

/// What is called `netavark` and `aardvark-dns`.
pub(crate) fn programs(backend: Backend) -> [&'static str; 2] {
    match backend {
        Backend::Netavark => [NETAVARK, AARDVARK],
        Backend::Portolan => [env!("CARGO_BIN_EXE_portolan"); 2],
    }
}

/// Starts a machine with Podman on `host`; see [`Machine::start`].
///
/// # Errors
/// When Podman is not installed, or a machine cannot be had.
pub(crate) fn start(lab: &Lab, host: &Host, name: &str, backend: Backend) -> Result<Machine> {
    let machine = Machine::start(lab, host, name, &["/var/lib/containers", "/var/tmp"], |dir| configure(dir, backend))?;
    machine.run("podman", &["load", "-i", &machine.make_image()?])?;
    Ok(machine)
}

/// Writes the files that Podman reads.
fn configure(dir: &Path, backend: Backend) -> Result<()> {
    let bin = dir.join("bin");
    fs::create_dir(&bin)?;
    let [netavark, aardvark] = programs(backend);
    symlink(netavark, bin.join("netavark"))?;
    symlink(aardvark, bin.join("aardvark-dns"))?;
    let containers = dir.join("etc/containers");
    fs::create_dir_all(containers.join("networks"))?;
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
network_backend = "netavark"
network_config_dir = "/etc/containers/networks"
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
