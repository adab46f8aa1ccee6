use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ExposedPort, Health, HealthCheck, HealthState, HostName, Id, Name, Phase, Sysctl};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id in the host's pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub started: u64,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.pid.to_string())
    }
}

/// A container's network stack. Its identity is the namespace, the path is only how we got there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sandbox {
    /// Device number of the namespace file (stat(2) `st_dev`).
    pub device: u64,
    /// Inode of the namespace file (stat(2) `st_ino`).
    pub inode: u64,
    /// Where the namespace can be opened: a pinned file or `/proc/PID/ns/net`.
    pub path: PathBuf,
    /// The process that `path` speaks of, if it is one under `/proc`.
    pub process: Option<ProcessId>,
}

/// Who made the container's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerKind {
    /// `portolan run`.
    Run,
    /// Somebody else; we were shown it by `portolan attach`.
    Attached,
    /// Somebody else, who does not show it to us: interfaces are left in the host's namespace for him to take from there,
    /// and what is inside is his (Docker's network plugins).
    Handed,
}

/// The label of a container whose interfaces were handed over: the file of the namespace that they were taken to (Docker's
/// word for it).
pub const TAKEN_TO: &str = "com.docker.network.sandbox";

/// The label of a container that was attached by CNI: which container of the runtime's it is.
pub const OF_CNI: &str = "io.portolan.cni.container";

/// Whose network stack a container uses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// Its own, with an endpoint on each of its networks.
    Own,
    /// Its own, with loopback only.
    None,
    /// The host's.
    Host,
    /// That of another container.
    Container(Id),
}

/// Whether the container's process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    /// Made, its process not started.
    Created,
    /// Its process runs, or its namespace is somebody else's.
    Running,
    /// Its process ended with this exit status (128 + signal for a killed one).
    Exited(i32),
}

/// How names are resolved inside the container (resolv.conf(5)).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsConfig {
    /// `nameserver` lines; empty to follow the host.
    pub servers: Vec<IpAddr>,
    /// The `search` list; empty to follow the host.
    pub search: Vec<String>,
    /// The `options` line; empty to follow the host.
    pub options: Vec<String>,
}

/// A line of `/etc/hosts` that a person asked for with `--add-host`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// The name.
    pub name: String,
    /// The address; none for `host-gateway`, the gateway of the container's network.
    pub address: Option<IpAddr>,
}

/// The label with what a runtime calls a container that it did not name beforehand. No key: each of a runtime's places on
/// networks may be a container here, and all of them are called alike.
pub const CALLED: &str = "portolan.called";
/// The label with the other names that such a container has on its network, with commas between.
pub const ALSO_CALLED: &str = "portolan.also-called";

/// A container as Portolan sees it: a sandbox and the names and ports that go with it. One row of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The identity, drawn at random or given by the caller.
    pub id: Id,
    /// The name, unique on this host.
    pub name: Name,
    /// Who made the namespace.
    pub kind: ContainerKind,
    /// Whose stack it uses.
    pub mode: NetworkMode,
    /// Its namespace; none before it is made and after it has gone. Where interfaces are handed over, the host's.
    pub sandbox: Option<Sandbox>,
    /// The process that waits for the container's process, for `portolan run`.
    pub supervisor: Option<ProcessId>,
    /// The container's first process.
    pub process: Option<ProcessId>,
    /// Whether it lives.
    pub state: ContainerState,
    /// Its host name.
    pub hostname: Option<HostName>,
    /// What runs in it.
    pub command: Vec<String>,
    /// Ports it declares.
    pub exposed: Vec<ExposedPort>,
    /// Its resolver configuration.
    pub dns: DnsConfig,
    /// Extra lines of its hosts file.
    pub hosts: Vec<HostEntry>,
    /// Sysctls `net.*` set inside it.
    pub sysctls: BTreeMap<String, String>,
    /// Those of a namespace that somebody else made, with what they were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Sysctl>,
    /// Labels, for people.
    pub labels: BTreeMap<String, String>,
    /// Removed as soon as its process ends.
    pub auto_remove: bool,
    /// The program that listens on the published host ports, to hold them, after we are done (Podman's is conmon).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_keeper: Option<String>,
    /// Its processes, and those that are started in it later, are kept from the kernel's packet filter.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_netfilter: bool,
    /// What says how it is, asked by whoever waits for its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// How it is; none where nobody says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// The boot it was made under (`/proc/sys/kernel/random/boot_id`): no namespace outlives it.
    pub boot: String,
    /// Seconds since 1970 of its creation.
    pub created: u64,
    /// Where it stands.
    pub phase: Phase,
}

impl Container {
    /// What people call it: its runtime's name for it where that is known ([`CALLED`]), else its own.
    pub fn called(&self) -> &str {
        self.told(CALLED).unwrap_or(self.name.as_str())
    }

    /// Whether it is one of those who answer to a name that several have: nobody says that it is not well, or not yet.
    pub fn is_well(&self) -> bool {
        self.health.as_ref().is_none_or(|health| health.state == HealthState::Healthy)
    }

    /// What else its runtime calls it on its network ([`ALSO_CALLED`]).
    pub fn also_called(&self) -> impl Iterator<Item = &str> {
        self.told(ALSO_CALLED).into_iter().flat_map(|names| names.split(',')).filter(|name| !name.is_empty())
    }

    /// A label that a runtime's face gave it; people's labels of that key do not count.
    fn told(&self, key: &str) -> Option<&str> {
        self.labels.get(key).filter(|_| self.kind == ContainerKind::Handed).map(String::as_str)
    }
}
