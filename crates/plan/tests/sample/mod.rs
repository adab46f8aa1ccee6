//! Networks and containers made of few words, for tests here and (by path) for the unit tests of `desired.rs`.
//!
//! Names only `portolan-model`, so that both can include it.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{
    Container, ContainerKind, ContainerState, DnsConfig, Driver, Endpoint, EndpointAddress, HostPorts, Id, Mac, Mtu,
    Network, NetworkMode, NetworkOptions, Overlay, Phase, Publication, PublishSpec, Sandbox, Subnet, TunnelEnd, Vni,
};

/// The id whose first two bytes are `number`.
pub(crate) fn id(number: u16) -> Id {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

/// A bridge network `br-NAME`. A subnet is written `172.20.0.0/24` for a gateway at its first address, or
/// `172.20.0.0/24-` for none.
pub(crate) fn network(name: &str, number: u16, subnets: &[&str], options: &[(&str, &str)]) -> Network {
    let pairs = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    Network {
        id: id(number),
        name: name.parse().unwrap(),
        driver: Driver::Bridge,
        internal: false,
        subnets: subnets.iter().map(|text| subnet(text)).collect(),
        options: NetworkOptions::from_pairs(Driver::Bridge, &pairs).unwrap(),
        dns: Vec::new(),
        raw_options: pairs,
        ipam_options: None,
        labels: BTreeMap::new(),
        bridge: format!("br-{name}").parse().unwrap(),
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
        created: 0,
        phase: Phase::Settled,
    }
}

/// As [`network`], without a bridge.
pub(crate) fn ptp(name: &str, number: u16, subnets: &[&str], options: &[(&str, &str)]) -> Network {
    let pairs = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    Network {
        driver: Driver::Ptp,
        options: NetworkOptions::from_pairs(Driver::Ptp, &pairs).unwrap(),
        raw_options: pairs,
        bridge: "none".parse().unwrap(),
        ..network(name, number, subnets, &[])
    }
}

/// As [`network`], over several hosts; this one is at `address`.
pub(crate) fn overlay(name: &str, number: u16, subnets: &[&str], address: &str) -> Network {
    let end = TunnelEnd {
        address: address.parse().unwrap(),
        port: 4789,
        mac: Mac::from_bytes([2, 0, 0, 0, 0, 0x0a]),
        mtu: Mtu::ETHERNET,
    };
    let network = network(name, number, subnets, &[]);
    Network {
        driver: Driver::Overlay,
        bridge: format!("vx-{}", network.id.short()).parse().unwrap(),
        subnets: network.subnets.iter().cloned().map(|subnet| Subnet { shared: true, ..subnet }).collect(),
        overlay: Some(Overlay {
            vni: Vni::new(4097).unwrap(),
            end,
            sealed: false,
            measured: true,
            translates: false,
            direct: Default::default(),
        }),
        mtu: end.inner_mtu(end.mtu, false),
        ..network
    }
}

/// As [`network`], internal.
pub(crate) fn internal(name: &str, number: u16, subnets: &[&str], options: &[(&str, &str)]) -> Network {
    Network { internal: true, ..network(name, number, subnets, options) }
}

fn subnet(text: &str) -> Subnet {
    let net: IpNet = text.trim_end_matches('-').parse().unwrap();
    let gateway = (!text.ends_with('-')).then(|| net.hosts().find(|ip| *ip != net.network()).unwrap());
    Subnet {
        net,
        range: None,
        gateway,
        aux: BTreeMap::new(),
        configured: true,
        fallback: false,
        pool: None,
        shared: false,
    }
}

/// A running container with its own namespace, whose inode is `number`.
pub(crate) fn container(name: &str, number: u16) -> Container {
    Container {
        id: id(number),
        name: name.parse().unwrap(),
        kind: ContainerKind::Attached,
        mode: NetworkMode::Own,
        sandbox: Some(Sandbox {
            device: 4,
            inode: number.into(),
            path: format!("/run/netns/{name}").into(),
            process: None,
        }),
        supervisor: None,
        process: None,
        state: ContainerState::Running,
        hostname: None,
        command: Vec::new(),
        exposed: Vec::new(),
        dns: DnsConfig::default(),
        hosts: Vec::new(),
        sysctls: BTreeMap::new(),
        settings: Vec::new(),
        labels: BTreeMap::new(),
        auto_remove: false,
        port_keeper: None,
        no_netfilter: false,
        health_check: None,
        health: None,
        boot: String::new(),
        created: 0,
        phase: Phase::Settled,
    }
}

/// The endpoint `eth{index}` of `container` on `network` with these addresses, its MAC and host end after both.
pub(crate) fn endpoint(container: &Container, network: &Network, index: u8, addresses: &[&str]) -> Endpoint {
    let [a, b, ..] = *container.id.as_bytes();
    let [c, d, ..] = *network.id.as_bytes();
    let subnet_of = |ip: IpAddr| network.subnets.iter().find(|subnet| subnet.net.contains(&ip)).expect("in a subnet");
    let addresses = addresses.iter().map(|text| text.parse::<IpAddr>().unwrap());
    Endpoint {
        id: id(u16::from_be_bytes([b, d])),
        network: network.id,
        container: container.id,
        ifname: format!("eth{index}").parse().unwrap(),
        host_end: format!("pv{a:02x}{b:02x}{c:02x}{d:02x}").parse().unwrap(),
        mac: Mac::from_bytes([0x02, 0x42, a, b, c, d]),
        mac_configured: false,
        addresses: addresses
            .map(|ip| EndpointAddress {
                address: IpNet::new(ip, subnet_of(ip).net.prefix_len()).unwrap(),
                configured: false,
            })
            .collect(),
        gateway_priority: 0,
        aliases: Vec::new(),
        links: Vec::new(),
        bandwidth: Default::default(),
        tuning: Default::default(),
        announce: false,
        leases: Default::default(),
        phase: Phase::Settled,
    }
}

/// The publication that `--publish TEXT` asks for; host ports are exact ones.
pub(crate) fn publication(text: &str) -> Publication {
    let spec: PublishSpec = text.parse().unwrap();
    let HostPorts::Exact(host) = spec.host else { panic!("`{text}` leaves the host port open") };
    Publication { protocol: spec.protocol, host_ip: spec.host_ip, host, container: spec.container }
}
