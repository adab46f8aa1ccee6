//! A DHCP server on the neighbour.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::link::{self, BridgeSpec, LinkChange};
use portolan_lab::eventually;

use super::{LONG, World};

/// Whether there is a dnsmasq; a loud word if not.
pub(crate) fn is_there(test: &str) -> bool {
    let is_there = Command::new("dnsmasq").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !is_there {
        assert!(std::env::var_os("CI").is_none(), "dnsmasq is not installed");
        eprintln!("SKIP: `{test}`: dnsmasq is not installed");
    }
    is_there
}

/// Makes the host's LAN interface a port of a new bridge, as an administrator does.
pub(crate) fn bridge_on_lan(world: &World, name: &str) {
    let mut socket = world.h.route_socket().unwrap();
    let mut batch = Batch::new();
    link::create_bridge(&mut batch, &BridgeSpec { name, up: true, ..BridgeSpec::default() });
    socket.transact(&batch).unwrap();
    let bridge = link::lookup(&mut socket, name).unwrap().unwrap().index;
    let mut batch = Batch::new();
    link::set(&mut batch, "eth0", &LinkChange { master: Some(bridge), ..LinkChange::default() });
    socket.transact(&batch).unwrap();
}

/// dnsmasq on the neighbour, serving the LAN.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    leases: PathBuf,
}

impl Server {
    /// Starts one; `lines` are added to what it always does: no names, no probing of addresses, every step in its log.
    #[track_caller]
    pub(crate) fn start(world: &World, name: &str, lines: &[&str]) -> Self {
        let file = |what: &str| world.lab.dir().join(format!("{name}.{what}"));
        let (log, leases) = (file("log"), file("leases"));
        fs::File::create(&log).unwrap();
        let mut command = world.n.command("dnsmasq").unwrap();
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--group=root", "--pid-file="])
            .args(["--port=0", "--interface=eth0", "--no-ping", "--log-dhcp", "--dhcp-authoritative"])
            .arg(format!("--log-facility={}", log.display()))
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .args(lines);
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let server = Self { child, log, leases };
        server.wait_for("started");
        server
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn count(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        assert!(eventually(LONG * 3, || self.log().contains(text)), "no `{text}` in:\n{}", self.log());
    }

    /// What is written down of whom: time, MAC, address, name and client identifier.
    pub(crate) fn listed(&self) -> String {
        fs::read_to_string(&self.leases).unwrap_or_default()
    }

    /// Whether the server counts `address` as given out.
    pub(crate) fn has_leased(&self, address: IpAddr) -> bool {
        let address = address.to_string();
        self.listed().split_whitespace().any(|word| word == address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
