//! A new network: what Podman leaves open is chosen, what it asks for is checked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portolan_model::Driver;

use crate::failure::Failure;
use crate::setup::{self, check_subnets, overlap};
use crate::wire::{CreateConfig, CreateOptions, LeaseRange, Network, Route, Subnet, SubnetPool, Used, shortened};

/// Interface names have at most 15 bytes (`IFNAMSIZ`, linux/if.h).
const LONGEST_INTERFACE: usize = 15;

/// Options that bridges take, netavark's and those that it honours at setup but forgets here.
const BRIDGE_OPTIONS: [&str; 9] =
    ["mode", "mtu", "isolate", "metric", "no_default_route", "vrf", "vlan", "outbound_addr4", "outbound_addr6"];
const CHILD_OPTIONS: [&str; 5] = ["mode", "mtu", "metric", "no_default_route", "bclim"];

/// What a new network depends on beside what Podman tells.
pub trait Host {
    /// The names of the host's interfaces; none if they cannot be read.
    fn interfaces(&self) -> Option<Vec<String>>;

    /// Random bytes.
    fn random(&self) -> [u8; 32];

    /// The time (RFC 3339).
    fn now(&self) -> String;

    /// What the plugin of `network`'s driver makes of it.
    ///
    /// # Errors
    /// The plugin's, or that there is none.
    fn plugin(&self, network: &Network) -> Result<Network, Failure>;
}

/// Completes a network: device, subnets and gateways; refuses what cannot be.
///
/// # Errors
/// In netavark's words.
pub fn new_network(config: CreateConfig, host: &impl Host) -> Result<Network, Failure> {
    let CreateConfig { mut network, used, options } = config;
    check_name(&network, &used)?;
    if let Some(name) = &network.network_interface {
        check_interface(name)?;
    }
    check_ipam(&network)?;
    let driver = setup::driver(&network);
    if driver.is_some() {
        setup::network_name(&network)?;
    }
    let mut is_alone = false;
    match driver {
        Some(Driver::Bridge) => is_alone = complete_bridge(&mut network, &used, &options, host)?,
        Some(driver) => complete_child(&mut network, driver, host)?,
        None => network = host.plugin(&network)?,
    }
    if network.ipam() == "none" {
        network.dns_enabled = false;
    }
    if network.network_dns_servers.is_some() && !network.dns_enabled {
        return Err(Failure::new("cannot set NetworkDNSServers if DNS is not enabled for the network"));
    }
    complete_subnets(&mut network, is_alone.then_some(&used))?;
    network.routes.iter().flatten().try_for_each(check_route)?;
    network.created = Some(host.now());
    Ok(network)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_name(network: &Network, used: &Used) -> Result<(), Failure> {
    let Network { name, id, .. } = network;
    if name.is_empty() {
        return Err(Failure::new("Network name must be supplied"));
    }
    if !is_name(name) {
        return Err(Failure::new(format!(
            "Invalid characters in network name {:?}: must match [a-zA-Z0-9][a-zA-Z0-9_.-]*",
            shortened(name)
        )));
    }
    if used.names.contains_key(name) {
        return Err(Failure::new(format!("network already exists {}", shortened(name))));
    }
    if id.is_empty() {
        return Err(Failure::new("Network id must be supplied"));
    }
    if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Failure::new(format!("Network id must be a hexadecimal string {:?}", shortened(id))));
    }
    Ok(())
}

fn check_interface(name: &str) -> Result<(), Failure> {
    if name.len() > LONGEST_INTERFACE {
        return Err(Failure::new(format!(
            "Interface name is too long: interface names must be {LONGEST_INTERFACE} characters or less: {}",
            shortened(name)
        )));
    }
    if matches!(name, "" | "." | "..") {
        return Err(Failure::new("Interface name cannot be . or .."));
    }
    match name.chars().find(|&c| matches!(c, '/' | ':' | '\0') || c.is_whitespace()) {
        Some(bad) => Err(Failure::new(format!("Interface name cannot contain{:?}", bad.to_string()))),
        None => Ok(()),
    }
}

fn check_ipam(network: &Network) -> Result<(), Failure> {
    match network.ipam() {
        "" | "host-local" | "dhcp" => Ok(()),
        "none" if network.subnets.iter().flatten().next().is_some() => {
            Err(Failure::new("None ipam driver is set but subnets are given"))
        }
        "none" => Ok(()),
        driver => Err(Failure::new(format!("Unsupported ipam driver: {}", shortened(driver)))),
    }
}

/// Refuses options that setup would refuse, and those that it does not know.
fn check_options(network: &Network, driver: Driver, known: &[&str], kind: &str) -> Result<(), Failure> {
    let unknown = network.options.iter().flatten().map(|(key, _)| key).find(|key| !known.contains(&key.as_str()));
    if let Some(key) = unknown {
        return Err(Failure::new(format!("unsupported {kind} network option: {}", shortened(key))));
    }
    setup::options(network, driver).map(drop)
}

/// Completes a bridge network; whether its subnets may not overlap others.
fn complete_bridge(
    network: &mut Network,
    used: &Used,
    options: &CreateOptions,
    host: &impl Host,
) -> Result<bool, Failure> {
    // Docker's names, which people bring along.
    if let Some(given) = &mut network.options {
        if let Some(mtu) = given.remove("com.docker.network.driver.mtu") {
            given.insert("mtu".to_owned(), mtu);
        }
        if let Some(name) = given.remove("com.docker.network.bridge.name") {
            check_interface(&name)?;
            network.network_interface = Some(name);
        }
    }
    check_options(network, Driver::Bridge, &BRIDGE_OPTIONS, "bridge")?;
    // Several networks may be on a bridge of somebody else's. One of ours is one network's, also where that is a VLAN.
    let is_managed = setup::is_managed_bridge(network);
    let is_vlan = network.option("vlan").is_some();
    match &network.network_interface {
        Some(name) if is_managed && used.interfaces.contains(name) => {
            let why = if is_vlan { ": VLANs share a bridge only where all of them have mode=unmanaged" } else { "" };
            return Err(Failure::new(format!("bridge name {name} already in use{why}")));
        }
        Some(_) => {}
        None => network.network_interface = Some(free_device(options, used, host)?),
    }
    // Also one that was chosen: what it begins with is the caller's.
    if let Some(name) = network.network_interface.as_ref().filter(|name| !is_name(name)) {
        return Err(Failure::new(format!("bridge name {} is invalid", shortened(name))));
    }
    let is_checked = is_managed && !is_vlan && options.check_used_subnets;
    if matches!(network.ipam(), "" | "host-local") {
        let subnets = network.subnets.get_or_insert_default();
        let has = |subnets: &[Subnet], v4| subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv4() == v4);
        let of_its_own = |net| Subnet { subnet: net, gateway: None, lease_range: None };
        if subnets.is_empty() || (network.ipv6_enabled && !has(subnets, true)) {
            let taken: &[IpNet] = if is_checked { &used.subnets } else { &[] };
            subnets.push(of_its_own(free_v4(taken, &options.subnet_pools)?));
        }
        if network.ipv6_enabled && !has(subnets, false) {
            subnets.push(of_its_own(free_v6(&used.subnets, host)?));
        }
        choose_ipam(network, "host-local");
    }
    Ok(is_checked)
}

fn choose_ipam(network: &mut Network, driver: &str) {
    network.ipam_options.get_or_insert_with(BTreeMap::new).insert("driver".to_owned(), driver.to_owned());
}

/// The first name of the prefix that neither the host nor another network has.
fn free_device(options: &CreateOptions, used: &Used, host: &impl Host) -> Result<String, Failure> {
    let prefix = options.default_interface_name.as_deref();
    let prefix = prefix.ok_or_else(|| Failure::new("default interface name is not set"))?;
    let there = host.interfaces().unwrap_or_default();
    let is_taken =
        |name: &String| there.contains(name) || used.interfaces.contains(name) || used.names.contains_key(name);
    (1..1_000_000u32)
        .map(|number| format!("{prefix}{number}"))
        .take_while(|name| name.len() <= LONGEST_INTERFACE)
        .find(|name| !is_taken(name))
        .ok_or_else(|| {
            Failure::new(format!("could not find a free device name that starts with {}", shortened(prefix)))
        })
}

/// The first free IPv4 subnet of the pools.
fn free_v4(taken: &[IpNet], pools: &[SubnetPool]) -> Result<IpNet, Failure> {
    for pool in pools {
        let IpNet::V4(base) = pool.base else { continue };
        let size = u8::try_from(pool.size).ok().filter(|size| (base.prefix_len()..=32).contains(size));
        let Some(size) = size else {
            return Err(Failure::new(format!("subnet pool {base} has no subnets of /{}", pool.size)));
        };
        let step = 1u64 << (32 - size);
        let (mut at, end) = (u64::from(u32::from(base.network())), u64::from(u32::from(base.broadcast())));
        while at <= end {
            let address = u32::try_from(at).expect("it is within the pool");
            let net = IpNet::V4(Ipv4Net::new(address.into(), size).expect("the length was checked"));
            match taken.iter().find(|other| overlap(&net, other)) {
                None => return Ok(net),
                // Past all of what is in the way: a pool may be large and full.
                Some(IpNet::V4(other)) => {
                    let next = u64::from(u32::from(other.broadcast())) + 1;
                    at = (at + step).max(next.next_multiple_of(step));
                }
                Some(IpNet::V6(_)) => unreachable!("the families are the same where two overlap"),
            }
        }
    }
    Err(Failure::new("could not find free subnet from subnet pools"))
}

/// A random /64 of unique local addresses (RFC 4193).
fn free_v6(taken: &[IpNet], host: &impl Host) -> Result<IpNet, Failure> {
    const TRIES: usize = 10_000;
    for _ in 0..TRIES {
        let random = host.random();
        let mut octets = [0; 16];
        octets[0] = 0xfd;
        octets[1..8].copy_from_slice(&random[..7]);
        let net = IpNet::V6(Ipv6Net::new(octets.into(), 64).expect("a valid length"));
        if !taken.iter().any(|other| overlap(&net, other)) {
            return Ok(net);
        }
    }
    Err(Failure::new("failed to get random ipv6 subnet"))
}

fn complete_child(network: &mut Network, driver: Driver, host: &impl Host) -> Result<(), Failure> {
    if let Some(parent) = &network.network_interface
        && let Some(there) = host.interfaces()
        && !there.contains(parent)
    {
        return Err(Failure::new(format!("parent interface {parent} does not exist")));
    }
    let is_ipvlan = driver == Driver::Ipvlan;
    // The host does not see what they send, so it cannot answer names to them.
    network.dns_enabled = false;
    let has_subnets = network.subnets.iter().flatten().next().is_some();
    let no_dhcp = || Err(Failure::new("ipam driver dhcp is not supported with ipvlan"));
    match network.ipam() {
        "" if has_subnets => choose_ipam(network, "host-local"),
        "" | "dhcp" if is_ipvlan => return no_dhcp(),
        "" => choose_ipam(network, "dhcp"),
        "host-local" if !has_subnets => {
            return Err(Failure::new(format!(
                "{} driver needs at least one subnet specified when the host-local ipam driver is set",
                network.driver
            )));
        }
        "dhcp" if has_subnets => return Err(Failure::new("ipam driver dhcp set but subnets are set")),
        _ => {}
    }
    check_options(network, driver, &CHILD_OPTIONS, "vlan")?;
    if is_ipvlan && network.option("bclim").is_some() {
        return Err(Failure::new("unsupported ipvlan network option bclim"));
    }
    Ok(())
}

/// Checks the subnets, against `used` if there is any, and gives each a gateway that is to have one.
fn complete_subnets(network: &mut Network, used: Option<&Used>) -> Result<(), Failure> {
    let needs_gateway = !network.internal || network.dns_enabled;
    let Some(subnets) = &mut network.subnets else { return Ok(()) };
    check_subnets(&subnets.iter().map(|subnet| subnet.subnet).collect::<Vec<_>>())?;
    for Subnet { subnet, gateway, lease_range } in subnets {
        if used.is_some_and(|used| used.subnets.iter().any(|other| overlap(subnet, other))) {
            return Err(Failure::new(format!("subnet {subnet} is already used on the host or by another config")));
        }
        match gateway {
            Some(gateway) if !subnet.contains(&*gateway) => {
                return Err(Failure::new(format!("gateway {gateway} not in subnet {subnet}")));
            }
            None if needs_gateway => *gateway = Some(first_address(subnet)?),
            _ => {}
        }
        if let Some(range) = lease_range {
            check_range(range, subnet)?;
        }
        network.ipv6_enabled |= subnet.addr().is_ipv6();
    }
    Ok(())
}

/// The address after the network's own. IPv4 subnets of two have none: the other one is for broadcasts.
fn first_address(subnet: &IpNet) -> Result<IpAddr, Failure> {
    let limit = match subnet {
        IpNet::V4(_) => 31,
        IpNet::V6(_) => 128,
    };
    if subnet.prefix_len() >= limit {
        return Err(Failure::new(format!(
            "could not create gateway for subnet {subnet} because it has a {limit} or greater subnet prefix"
        )));
    }
    Ok(match subnet {
        IpNet::V4(net) => IpAddr::V4((u32::from(net.network()) + 1).into()),
        IpNet::V6(net) => IpAddr::V6((u128::from(net.network()) + 1).into()),
    })
}

fn check_range(range: &LeaseRange, subnet: &IpNet) -> Result<(), Failure> {
    let read = |what: &str, text: &Option<String>| -> Result<Option<IpAddr>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let ip: IpAddr = text.parse().map_err(|error| Failure::new(format!("invalid {what}: {error}")))?;
        if !subnet.contains(&ip) {
            return Err(Failure::new(format!("lease range {what} {ip} not in subnet {subnet}")));
        }
        Ok(Some(ip))
    };
    match (read("start_ip", &range.start_ip)?, read("end_ip", &range.end_ip)?) {
        (Some(start), Some(end)) if start > end => {
            Err(Failure::new(format!("lease range start_ip {start} must be less than or equal to end_ip {end}")))
        }
        _ => Ok(()),
    }
}

/// Refuses a route that setup would refuse, and one to what is no network.
fn check_route(route: &Route) -> Result<(), Failure> {
    if route.destination != route.destination.trunc() {
        return Err(Failure::new("route destination invalid"));
    }
    setup::route(route).map(drop)
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
