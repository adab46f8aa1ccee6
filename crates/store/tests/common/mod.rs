//! Rows to store, and directories to store them in.

#![allow(dead_code, unreachable_pub, missing_docs)]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;
use portolan_engine::PublicationRow;
use portolan_model::{
    Container, ContainerKind, ContainerState, Driver, Endpoint, EndpointAddress, Id, Mac, Mtu, Network, NetworkMode,
    NetworkOptions, Peer, PerFamily, Phase, Pool, ProcessId, Publication, RemoteEndpoint, Sandbox, Subnet,
};

/// A directory of one test, gone when it ends.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("portolan-store-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A root that does not exist yet.
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn parse<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is well formed"))
}

pub fn id(kind: u8, number: u32) -> Id {
    let mut bytes = [0; 32];
    bytes[0] = kind;
    bytes[1..5].copy_from_slice(&number.to_be_bytes());
    bytes[31] = 0xaa;
    Id::from_bytes(bytes)
}

pub fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac::local([2, 66, a, b, c, d])
}

pub fn pending() -> Phase {
    Phase::Pending(ProcessId { pid: 4711, started: 12345 })
}

pub fn leaving() -> Phase {
    Phase::Leaving(ProcessId { pid: 4712, started: 12346 })
}

pub fn network(number: u32, name: &str) -> Network {
    Network {
        id: id(1, number),
        name: parse(name),
        driver: Driver::Bridge,
        internal: false,
        subnets: vec![Subnet {
            net: parse("10.0.0.0/8"),
            range: None,
            gateway: Some(parse("10.0.0.1")),
            aux: Default::default(),
            configured: false,
            fallback: false,
            pool: None,
            shared: false,
        }],
        options: NetworkOptions::default(),
        dns: Vec::new(),
        raw_options: Default::default(),
        ipam_options: None,
        labels: [("made by".to_owned(), "a test, \"quoted\"".to_owned())].into(),
        bridge: parse(&format!("pt{number}")),
        subinterface: None,
        overlay: None,
        routes: Vec::new(),
        names: true,
        names_at: Vec::new(),
        names_port: None,
        transient: false,
        ipam: portolan_model::Ipam::Local,
        speaks: Default::default(),
        mtu: Mtu::ETHERNET,
        created: 1_800_000_000,
        phase: Phase::Settled,
    }
}

pub fn container(number: u32) -> Container {
    Container {
        id: id(2, number),
        name: parse(&format!("c{number}")),
        kind: ContainerKind::Run,
        mode: NetworkMode::Own,
        sandbox: None,
        supervisor: None,
        process: Some(ProcessId { pid: 99, started: 100 }),
        state: ContainerState::Running,
        hostname: Some(parse("host")),
        command: vec!["sleep".into(), "1".into()],
        exposed: vec![],
        dns: Default::default(),
        hosts: vec![],
        sysctls: Default::default(),
        settings: Vec::new(),
        labels: Default::default(),
        auto_remove: true,
        port_keeper: None,
        no_netfilter: false,
        health_check: None,
        health: None,
        boot: "0c5b3d2e-31a7-4a77-8b1a-2f3a7f1d1c55".into(),
        created: 1_800_000_000,
        phase: Phase::Settled,
    }
}

pub fn sandbox(device: u64, inode: u64) -> Sandbox {
    Sandbox { device, inode, path: "/proc/99/ns/net".into(), process: None }
}

/// Endpoint `number` of a container on a network, with an address of each subnet given.
pub fn endpoint(number: u32, container: Id, network: Id, addresses: &[&str]) -> Endpoint {
    Endpoint {
        id: id(3, number),
        network,
        container,
        ifname: parse(&format!("eth{number}")),
        host_end: parse(&format!("pv{number}")),
        mac: mac(number),
        mac_configured: false,
        addresses: addresses
            .iter()
            .map(|a| EndpointAddress { address: parse::<IpNet>(a), configured: false })
            .collect(),
        gateway_priority: 0,
        aliases: vec![],
        links: vec![],
        bandwidth: Default::default(),
        tuning: Default::default(),
        announce: false,
        leases: Default::default(),
        phase: Phase::Settled,
    }
}

pub fn publication(container: Id, protocol: &str, host_ip: Option<&str>, host: &str) -> PublicationRow {
    let publication = Publication {
        protocol: parse(protocol),
        host_ip: host_ip.map(parse::<IpAddr>),
        host: parse(host),
        container: parse(host),
    };
    PublicationRow { container, publication, phase: Phase::Settled }
}

pub fn pool(number: u32, net: &str) -> Pool {
    Pool {
        id: id(4, number),
        holder: id(5, 1),
        subnet: Subnet::new(parse(net), true),
        network: None,
        created: 1_800_000_000,
    }
}

/// A command that runs the test named `role` of this very binary, which must be an ignored one, in `directory`.
pub fn role(role: &str, directory: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(role_args(role)).env(DIRECTORY, directory);
    command
}

pub fn role_args(role: &str) -> [&str; 4] {
    ["--exact", role, "--ignored", "--nocapture"]
}

pub const DIRECTORY: &str = "PORTOLAN_STORE_TEST_DIRECTORY";

/// The directory given to a role; none when somebody merely runs all ignored tests.
pub fn directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

pub fn peer(number: u32) -> Peer {
    Peer {
        host: id(7, number),
        name: parse(&format!("host-{number}")),
        underlay: PerFamily { v4: Some(parse("192.0.2.7")), v6: None },
        lan: PerFamily::default(),
        sealed: None,
        sealed_by_ipv6: false,
        translates: false,
        mac: mac(number),
        mtu: Mtu::ETHERNET,
    }
}

pub fn remote_endpoint(number: u32, network: Id, host: Id) -> RemoteEndpoint {
    RemoteEndpoint {
        id: id(8, number),
        network,
        host,
        container: id(9, number),
        name: format!("far-{number}"),
        aliases: vec!["db".to_owned()],
        addresses: vec![parse("10.0.0.65")],
        mac: None,
        unwell: false,
    }
}
