//! What Podman says to its network backend.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use portolan_model::{Ipam, Name};
use portolan_netavark::{
    Attachment, Failure, Host, Network, PluginInput, Setup, cluster_network, container_id, join_request, new_network,
    parse_create, parse_setup, plan,
};

fn refused(failure: &Failure, said: usize) {
    assert!(failure.to_string().len() <= 1000 + 12 * said, "{} bytes of {said}", failure.to_string().len());
}

/// What `setup` and `teardown` are told.
pub fn setup(bytes: &[u8]) {
    let setup = match parse_setup(bytes) {
        Ok(setup) => setup,
        Err(failure) => return refused(&failure, bytes.len()),
    };
    let names: std::collections::BTreeSet<&str> = setup.networks.iter().map(|network| network.name.as_str()).collect();
    assert_eq!(names.len(), setup.networks.len(), "each network once");
    let id = container_id(&setup.container_id);
    assert_eq!(container_id(&id.to_string()), id);
    for network in setup.network_info.values() {
        written_again(network);
    }
    planned(&setup, bytes.len());
}

/// A host whose every bridge is there.
fn with_address(_: &str) -> Result<Option<Vec<IpAddr>>, Failure> {
    Ok(Some(vec![IpAddr::from([192, 0, 2, 1])]))
}

fn planned(setup: &Setup, said: usize) {
    let plan = match plan(setup, Path::new("/run/netns/x"), Some(1053), with_address) {
        Ok(plan) => plan,
        Err(failure) => return refused(&failure, said),
    };
    let endpoints = plan.attach.iter().flat_map(|attach| &attach.endpoints);
    let count = endpoints.clone().count() + plan.plugins.len();
    assert_eq!(count, setup.networks.len(), "every network is somebody's");
    for endpoint in endpoints {
        let network = endpoint.transient.as_ref().expect("Podman keeps its networks");
        assert!(endpoint.ifname.is_some());
        for address in &endpoint.addresses {
            assert!(network.subnets.iter().any(|subnet| subnet.contains(address)), "{address} is in no subnet");
        }
        assert!(network.ipam == Ipam::Local || endpoint.addresses.is_empty());
    }
    for (network, network_options) in
        plan.plugins.iter().copied().filter(|(network, _)| cluster_network(network).is_some())
    {
        let (container_id, container_name) = (&setup.container_id, &setup.container_name);
        let port_mappings = setup.port_mappings.as_deref();
        let input = PluginInput { container_id, container_name, port_mappings, network, network_options };
        match join_request(&input, Path::new("/run/netns/x"), false) {
            Ok(request) => assert_eq!(request.endpoints.len(), 1),
            Err(failure) => refused(&failure, said),
        }
    }
    for warning in &plan.warnings {
        assert!(warning.chars().count() <= 1000, "{warning}");
    }
}

fn written_again(network: &Network) {
    let text = serde_json::to_vec(network).expect("plain values serialise");
    let again: Network = serde_json::from_slice(&text).expect("what is written can be read");
    assert_eq!(&again, network);
}

struct Machine;

impl Host for Machine {
    fn interfaces(&self) -> Option<Vec<String>> {
        Some(["lo", "eth0", "podman1"].map(str::to_owned).into())
    }

    fn random(&self) -> [u8; 32] {
        std::array::from_fn(|at| at as u8)
    }

    fn now(&self) -> String {
        "2026-02-03T04:05:06Z".to_owned()
    }

    fn plugin(&self, network: &Network) -> Result<Network, Failure> {
        Ok(network.clone())
    }
}

/// What `create` is told.
pub fn create(bytes: &[u8]) {
    let config = match parse_create(bytes) {
        Ok(config) => config,
        Err(failure) => return refused(&failure, bytes.len()),
    };
    let used = config.used.clone();
    let (is_checked, had) = (config.options.check_used_subnets, config.network.subnets.clone().unwrap_or_default());
    let network = match new_network(config, &Machine) {
        Ok(network) => network,
        Err(failure) => return refused(&failure, bytes.len()),
    };
    written_again(&network);
    if portolan_netavark::driver(&network).is_none() {
        return;
    }
    assert!(network.name.parse::<Name>().is_ok(), "{:?}", network.name);
    let subnets: Vec<_> = network.subnets.iter().flatten().collect();
    for (position, one) in subnets.iter().enumerate() {
        for other in &subnets[position + 1..] {
            assert!(!one.subnet.contains(&other.subnet) && !other.subnet.contains(&one.subnet));
        }
        if let Some(gateway) = one.gateway {
            assert!(one.subnet.contains(&gateway), "{gateway} is outside {}", one.subnet);
        }
        // What was chosen is free.
        let is_chosen = !had.iter().any(|other| other.subnet == one.subnet);
        if is_chosen && is_checked && portolan_netavark::is_managed_bridge(&network) && network.option("vlan").is_none()
        {
            assert!(!used.subnets.iter().any(|taken| taken.contains(&one.subnet) || one.subnet.contains(taken)));
        }
    }
    // What was made can be set up.
    let addresses = subnets.iter().filter_map(|one| one.subnet.hosts().last()).collect();
    let attachment = Attachment {
        name: network.name.clone(),
        aliases: None,
        interface_name: "eth0".to_owned(),
        static_ips: Some(addresses),
        static_mac: None,
        options: None,
    };
    let setup = Setup {
        container_id: "c1".to_owned(),
        container_name: "web".to_owned(),
        container_hostname: None,
        networks: vec![attachment],
        network_info: BTreeMap::from([(network.name.clone(), network)]),
        port_mappings: None,
        dns_servers: None,
    };
    if let Err(failure) = plan(&setup, Path::new("/run/netns/x"), None, with_address) {
        panic!("what `create` made, `setup` refuses: {failure}: {:?}", setup.network_info);
    }
}
