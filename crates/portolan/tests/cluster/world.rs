//! Hosts on one LAN with an etcd, each with a root of its own, and containers on them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use portolan_engine::{Durability, Store as _, Tx as _};
use portolan_kernel::process::PidFd;
use portolan_kernel::signals;
use portolan_lab::etcd::{Etcd, is_there};
use portolan_lab::{Host, Lab, Lan, eventually};
use portolan_store::SqliteStore;
use serde_json::Value;

/// A host is down some 15 s after its last word.
pub(crate) const LONG: Duration = Duration::from_secs(40);

/// A host with a root of its own.
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) root: PathBuf,
}

/// Hosts `a`, `b`, … and those of etcd on one LAN.
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    etcds: Vec<Host>,
    pub(crate) lan: Lan,
    // Last, as it removes the others.
    pub(crate) lab: Lab,
}

pub(crate) fn etcd_address(number: usize) -> IpAddr {
    IpAddr::from([10, 0, 1, 11 + number as u8])
}

impl World {
    /// Three hosts.
    pub(crate) fn or_skip(name: &str) -> Option<Self> {
        Self::of(name, &["a", "b", "c"])
    }

    /// Hosts of these names.
    pub(crate) fn of(name: &str, hosts: &[&str]) -> Option<Self> {
        if !is_there(name) {
            return None;
        }
        let lab = Lab::or_skip(name)?;
        let hosts: Vec<Host> = hosts.iter().map(|name| lab.host(name).unwrap()).collect();
        let etcds: Vec<Host> = (0..3).map(|number| lab.host(&format!("e{number}")).unwrap()).collect();
        let mut lan = lab.lan("lan", &[]).unwrap();
        for (number, host) in (1..).zip(&hosts) {
            let addresses = [format!("10.0.1.{number}/24"), format!("fd00:1::{number}/64")];
            lan.connect(host, "eth0", &addresses.each_ref().map(String::as_str)).unwrap();
            host.add_default_route("10.0.1.11").unwrap();
        }
        for (number, host) in etcds.iter().enumerate() {
            lan.connect(host, "eth0", &[&format!("{}/24", etcd_address(number))]).unwrap();
        }
        let nodes = hosts
            .into_iter()
            .map(|host| Node { root: lab.dir().join(format!("root-{}", host.name())), host })
            .collect();
        Some(Self { nodes, etcds, lan, lab })
    }

    /// The host of a member of etcd.
    pub(crate) fn etcd_host(&self, number: usize) -> &Host {
        &self.etcds[number]
    }

    pub(crate) fn etcd(&self, members: usize) -> Etcd {
        let places: Vec<(&Host, IpAddr)> =
            self.etcds.iter().zip(0..members).map(|(host, at)| (host, etcd_address(at))).collect();
        Etcd::start(self.lab.dir(), &places, "http", &[]).unwrap()
    }
}

impl Node {
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(words).env("PORTOLAN_ROOT", &self.root).env("PORTOLAN_DAEMON", "auto").stdin(Stdio::null());
        self.host.adopt(command).unwrap().output().unwrap()
    }

    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> String {
        let output = self.run(&line.split(' ').collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {line}: {said}", self.host.name());
        assert_eq!(said, "", "{}: {line}", self.host.name());
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn refused(&self, line: &str) -> String {
        let output = self.run(&line.split(' ').collect::<Vec<_>>());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains("\nhint: "), "{line}: {said}");
        assert_eq!(output.stdout, b"", "{line}");
        said
    }

    pub(crate) fn join(&self, verb: &str, etcd: &Etcd) {
        let etcd = etcd.endpoints("http").join(",");
        self.ok(&format!("cluster {verb} --etcd {etcd} --name {}", self.host.name()));
    }

    /// What `cluster status` says, whatever it thinks of it.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_slice(&self.run(&["--json", "cluster", "status"]).stdout).unwrap_or_default()
    }

    /// The hosts and how they are, as this one sees it.
    pub(crate) fn nodes(&self) -> String {
        let nodes: Value = serde_json::from_str(&self.ok("--json cluster nodes")).unwrap();
        let one = |node: &Value| format!("{} {}", node["name"].as_str().unwrap(), node["state"].as_str().unwrap());
        nodes.as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[track_caller]
    pub(crate) fn sees(&self, nodes: &str) {
        assert!(eventually(LONG, || self.nodes() == nodes), "{} sees {}, not {nodes}", self.host.name(), self.nodes());
    }

    #[track_caller]
    pub(crate) fn is_well(&self) {
        assert!(eventually(LONG, || self.run(&["cluster", "status"]).status.success()), "{}", self.status());
    }

    /// Waits until it is not, and says so.
    #[track_caller]
    pub(crate) fn warns(&self, of: &str) {
        let has_said = || self.status()["warnings"].to_string().contains(of);
        assert!(eventually(LONG, has_said), "{of}: {}", self.status());
        assert_eq!(self.run(&["cluster", "status"]).status.code(), Some(1));
    }

    pub(crate) fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.root).unwrap()
    }

    /// What it knows of its cluster.
    pub(crate) fn settings(&self) -> String {
        let store = self.store();
        store.read().unwrap().meta("cluster").unwrap().unwrap()
    }

    pub(crate) fn set_settings(&self, text: &str) {
        let store = self.store();
        let guard = store.lock().unwrap();
        let tx = store.write(&guard).unwrap();
        tx.put_meta("cluster", Some(text)).unwrap();
        tx.commit(Durability::Disk).unwrap();
    }

    pub(crate) fn daemon(&self) -> PidFd {
        let status: Value = serde_json::from_str(&self.ok("--json daemon status")).unwrap();
        PidFd::open(status["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
    }

    /// The interfaces whose names begin so.
    pub(crate) fn links(&self, start: &str) -> Vec<String> {
        let output = self.host.command("ip").unwrap().args(["-br", "link"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let names = text.lines().filter_map(|line| line.split([' ', '@']).next());
        names.filter(|name| name.starts_with(start)).map(str::to_owned).collect()
    }

    pub(crate) fn kill_daemon(&self) {
        let daemon = self.daemon();
        daemon.signal(signals::KILL).unwrap();
        assert!(daemon.wait_readable(LONG).unwrap());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.run(&["daemon", "stop"]);
        // Who carries encrypted packets stays, and would keep the namespace.
        for link in ["ps", "pt"].into_iter().flat_map(|start| self.links(start)) {
            let _ = self.host.command("ip").unwrap().args(["link", "del", &link]).status();
        }
    }
}
