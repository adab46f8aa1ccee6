//! `POST /networks/{id}/connect` and `/disconnect`

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use portolan_engine::{ContainerInfo, EndpointRequest, Engine, Error, Kernel, Store};
use portolan_model::{ContainerKind, Driver, Family, Link, Network, NetworkMode};
use serde::Deserialize;

use super::failure::{Failure, Kind, SHARED};
use super::{Answer, Asked, Done, Host, Reply, find_container, find_network, or_default};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Connect {
    #[serde(deserialize_with = "or_default")]
    container: String,
    #[serde(deserialize_with = "or_default")]
    endpoint_config: EndpointConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct EndpointConfig {
    #[serde(rename = "IPAMConfig", deserialize_with = "or_default")]
    ipam: AddressConfig,
    #[serde(deserialize_with = "or_default")]
    links: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    aliases: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    mac_address: String,
    #[serde(deserialize_with = "or_default")]
    driver_opts: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    gw_priority: i32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AddressConfig {
    #[serde(rename = "IPv4Address", deserialize_with = "or_default")]
    v4: String,
    #[serde(rename = "IPv6Address", deserialize_with = "or_default")]
    v6: String,
    #[serde(rename = "LinkLocalIPs", deserialize_with = "or_default")]
    link_local: Vec<String>,
}

/// The option of an endpoint that names its interface.
const IFNAME: &str = "com.docker.network.endpoint.ifname";

pub(super) fn connect<S: Store, K: Kernel>(engine: &Engine<S, K>, host: &impl Host, asked: &Asked<'_>) -> Done {
    let body: Connect = asked.request.json()?;
    let network = find_network(engine, &asked.id)?;
    let container = named(engine, &body.container)?;
    check_modes(&network, &container)?;
    let request = request(&network, body.endpoint_config)?;
    let (id, on) = (container.container.id, network.id.to_string());
    let mut info = engine.connect(&id.to_string(), &request)?;
    host.settle("connect");
    if Family::ALL.into_iter().any(|family| network.leases(family)) {
        if let Err(why) = host.acquire(id) {
            host.release(id, network.id);
            let undone = engine.disconnect(&id.to_string(), &on);
            host.settle("disconnect");
            undone?;
            return Err(Failure::new(Kind::System, why));
        }
        info = engine.container(&id.to_string())?;
    }
    host.refresh(&info);
    Ok(Answer::Reply(Reply::empty(200)))
}

fn named<S: Store, K: Kernel>(engine: &Engine<S, K>, term: &str) -> Result<ContainerInfo, Failure> {
    if term.is_empty() {
        return Err(Failure::invalid("invalid container name or ID: value is empty"));
    }
    find_container(engine, term)
}

/// Refuses what has no network stack of its own, and networks that are none.
fn check_modes(network: &Network, container: &ContainerInfo) -> Result<(), Failure> {
    let refused = match (network.driver, &container.container.mode) {
        (Driver::Host, _) => {
            "cannot connect container to host network - container must be created in host network mode"
        }
        (_, NetworkMode::Host | NetworkMode::Container(_)) => SHARED,
        (Driver::None, _) | (_, NetworkMode::None) => {
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        }
        _ => return Ok(()),
    };
    Err(Failure::invalid(refused))
}

/// The endpoint that is asked for.
fn request(network: &Network, config: EndpointConfig) -> Result<EndpointRequest, Failure> {
    let AddressConfig { v4, v6, link_local } = config.ipam;
    let mut wrong = Vec::new();
    if network.is_predefined() {
        if !v4.is_empty() || !v6.is_empty() {
            wrong.push("user-specified IP address is supported on user-defined networks only".to_owned());
        }
        if !config.aliases.is_empty() {
            wrong.push("network-scoped aliases are only supported for user-defined networks".to_owned());
        }
    }
    let ip = given::<Ipv4Addr>(&v4).map_err(|()| wrong.push(format!("invalid IPv4 address: {v4}"))).ok().flatten();
    let ip6 = given::<Ipv6Addr>(&v6).map_err(|()| wrong.push(format!("invalid IPv6 address: {v6}"))).ok().flatten();
    if !wrong.is_empty() {
        return Err(Failure::invalid(format!("invalid endpoint settings:\n{}", wrong.join("\n"))));
    }
    for (family, is_given) in [(Family::V4, ip.is_some()), (Family::V6, ip6.is_some())] {
        if is_given && !network.subnets_of(family).any(|subnet| subnet.configured) {
            return Err(Failure::invalid(
                "invalid endpoint settings:\nuser specified IP address is supported only when connecting to networks \
                 with user configured subnets",
            ));
        }
    }
    if !link_local.is_empty() {
        return Err(Failure::unsupported("link-local addresses of choice", "leave out --link-local-ip"));
    }
    let mac = match config.mac_address.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| Failure::invalid(format!("invalid MAC address: {text}")))?),
    };
    let mut request = EndpointRequest {
        ip,
        ip6,
        mac,
        aliases: config.aliases.iter().map(|alias| alias.parse()).collect::<Result<_, _>>()?,
        links: config.links.iter().map(|text| link(text)).collect::<Result<_, _>>()?,
        gateway_priority: config.gw_priority,
        ..EndpointRequest::new(network.id.to_string())
    };
    for (key, value) in &config.driver_opts {
        match key.as_str() {
            IFNAME => request.ifname = Some(value.parse()?),
            _ => return Err(Failure::unsupported(format!("endpoint option `{key}`"), &format!("it has {IFNAME}"))),
        }
    }
    Ok(request)
}

fn given<T: std::str::FromStr>(text: &str) -> Result<Option<T>, ()> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| ()) }
}

/// `NAME` or `NAME:ALIAS`.
fn link(text: &str) -> Result<Link, Failure> {
    let (container, alias) = text.split_once(':').unwrap_or((text, text));
    let name = |text: &str| text.parse().map_err(|_| Failure::invalid(format!("bad format for links: {text}")));
    Ok(Link { container: name(container)?, alias: name(alias)? })
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Disconnect {
    #[serde(deserialize_with = "or_default")]
    container: String,
    #[serde(deserialize_with = "or_default")]
    force: bool,
}

pub(super) fn disconnect<S: Store, K: Kernel>(engine: &Engine<S, K>, host: &impl Host, asked: &Asked<'_>) -> Done {
    let body: Disconnect = asked.request.json()?;
    let network = find_network(engine, &asked.id)?;
    let container = match named(engine, &body.container) {
        Err(failure) if body.force && failure.kind == Kind::NotFound => {
            return forget(engine, host, &network, &body.container);
        }
        found => found?,
    };
    let (is_alive, container) = (container.alive, container.container);
    if network.driver == Driver::Host && container.mode == NetworkMode::Host {
        return Err(Failure::invalid(
            "cannot disconnect container from host network - container was created in host network mode",
        ));
    }
    host.release(container.id, network.id);
    let info = match engine.disconnect(&container.id.to_string(), &network.id.to_string()) {
        Err(Error::NotConnected { .. }) => {
            let the = if is_alive { "" } else { "the " };
            return Err(Failure::new(
                Kind::System,
                format!("container {} is not connected to {the}network {}", container.id, network.name),
            ));
        }
        done => done?,
    };
    host.refresh(&info);
    host.settle("disconnect");
    Ok(Answer::Reply(Reply::empty(200)))
}

/// Takes an endpoint off a network that stands for one of Docker's, as `--force` does with those whose container is gone.
fn forget<S: Store, K: Kernel>(engine: &Engine<S, K>, host: &impl Host, network: &Network, name: &str) -> Done {
    let missing = || Failure::new(Kind::NotFound, format!("endpoint {name} not found"));
    let endpoints = engine.network(&network.id.to_string())?.endpoints;
    let (endpoint, _) = endpoints.iter().find(|(_, found)| found.as_str() == name).ok_or_else(missing)?;
    let id = endpoint.container.to_string();
    if engine.container(&id)?.container.kind != ContainerKind::Handed {
        return Err(missing());
    }
    engine.detach(&id)?;
    host.settle("disconnect");
    Ok(Answer::Reply(Reply::empty(200)))
}
