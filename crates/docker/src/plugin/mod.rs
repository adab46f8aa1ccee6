//! The plugin protocol: what Docker asks its network and IPAM drivers, one JSON object for another.
//!
//! Docker repeats a call that got no answer, so each is the same when it comes twice.

mod ipam;
pub mod network;
mod reference;
pub mod wire;

use std::collections::BTreeMap;
use std::net::IpAddr;

use portolan_engine::{ContainerInfo, Engine, Error, Kernel, Store};
use portolan_model::{ContainerKind, Endpoint, HostPorts, Id, ProcessId, PublishSpec, TAKEN_TO};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::refusal::Refusal;
use wire::{CreateEndpoint, CreateNetwork, EndpointOnly, Join, NetworkOnly};

/// An answer: what goes back, and whether rows have changed, which whoever serves names and ports is to take in before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The body.
    pub body: Value,
    /// Whether anything was committed that names and ports depend on.
    pub changed: bool,
    /// What to tell [`Engine::answered`] before it is sent.
    pub number: Option<u64>,
}

/// Does what `method` (`NetworkDriver.Join`) says; none if there is no such method. `caller` is Docker's process, if that
/// can be told.
pub fn answer<S: Store, K: Kernel>(
    engine: &Engine<S, K>,
    method: &str,
    body: &[u8],
    caller: Option<ProcessId>,
) -> Option<Answer> {
    let (kind, verb) = method.split_once('.')?;
    let (done, error) = match kind {
        "Plugin" => (activate(engine, verb, caller)?, "Err"),
        "NetworkDriver" => (drive(engine, verb, body)?, "Err"),
        "IpamDriver" => (ipam::give(engine, verb, body)?, "Error"),
        _ => return None,
    };
    Some(done.unwrap_or_else(|refusal| {
        tracing::warn!(method, "refused: {refusal}");
        Answer { body: json!({ error: refusal.to_string() }), changed: false, number: None }
    }))
}

type Done = Result<Answer, Refusal>;

pub(crate) fn told(body: impl Serialize) -> Done {
    Ok(Answer { body: serde_json::to_value(body).expect("plain values serialise"), changed: false, number: None })
}

pub(crate) fn changed(body: impl Serialize) -> Done {
    told(body).map(|answer| Answer { changed: true, ..answer })
}

/// Reads a body; Docker sends none where there is nothing to say.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let body = body.trim_ascii();
    let body = if body.is_empty() { b"{}" } else { body };
    // A list would be read as the fields in their order.
    if !body.starts_with(b"{") {
        return Err(Refusal::new("read the request: it is no object"));
    }
    serde_json::from_slice(body).map_err(|error| Refusal::new(format!("read the request: {error}")))
}

/// Docker begins: what it made and never put into a container belongs to a Docker that is dead. So does what it put into one
/// that is gone: a Docker that was killed with its containers does not say so of networks whose driver it has not loaded yet.
fn activate<S: Store, K: Kernel>(engine: &Engine<S, K>, verb: &str, caller: Option<ProcessId>) -> Option<Done> {
    if verb != "Activate" {
        return None;
    }
    if let Err(refusal) = reap_unclaimed(engine) {
        tracing::warn!("endpoints that nobody claims stay: {refusal}");
    }
    if let Err(error) = engine.begin_claims(caller) {
        tracing::warn!("what Docker claims is not known: {}", Refusal::from(error));
    }
    Some(changed(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })))
}

fn reap_unclaimed<S: Store, K: Kernel>(engine: &Engine<S, K>) -> Result<(), Refusal> {
    for info in engine.containers()? {
        let container = &info.container;
        let is_claimed = info.alive && container.labels.contains_key(TAKEN_TO);
        if container.kind == ContainerKind::Handed && !is_claimed {
            tracing::info!(container = %container.name, "nobody has claimed it: taking it down");
            engine.detach(&container.id.to_string())?;
        }
    }
    Ok(())
}

fn drive<S: Store, K: Kernel>(engine: &Engine<S, K>, verb: &str, body: &[u8]) -> Option<Done> {
    Some(match verb {
        // Each Docker keeps its networks for itself, and in a swarm they tell each other the names of what is on them: the only
        // ones of a swarm are those of a cluster.
        "GetCapabilities" => told(json!({ "Scope": "local", "ConnectivityScope": "global" })),
        "CreateNetwork" => read(body).and_then(|asked| create_network(engine, &asked)),
        "DeleteNetwork" => read(body).and_then(|asked| delete_network(engine, &asked)),
        "CreateEndpoint" => read(body).and_then(|asked| create_endpoint(engine, &asked)),
        "EndpointOperInfo" => read(body).and_then(|asked| describe(engine, &asked)),
        "Join" => read(body).and_then(|asked| join(engine, &asked)),
        // Docker has moved the interface back; it goes with the endpoint.
        "Leave" => read::<EndpointOnly>(body).and_then(|_| told(json!({}))),
        "ProgramExternalConnectivity" => read(body).and_then(|asked| open(engine, &asked)),
        "RevokeExternalConnectivity" => read(body).and_then(|asked| close(engine, &asked)),
        "DeleteEndpoint" => read(body).and_then(|asked| delete_endpoint(engine, &asked)),
        // Of one host there are no others to hear of.
        "DiscoverNew" | "DiscoverDelete" => told(json!({})),
        _ => return None,
    })
}

fn create_network<S: Store, K: Kernel>(engine: &Engine<S, K>, asked: &CreateNetwork) -> Done {
    if let Some(reference) = reference::asked(asked)? {
        ipam::settle_claims(engine);
        return reference::refer(engine, &asked.network, &reference);
    }
    let request = network::network_request(asked)?;
    ipam::settle_claims(engine);
    match engine.network(&asked.network) {
        Ok(info) if network::is_same(&info.network, &request) => return told(json!({})),
        Ok(_) => return Err(Refusal::new(format!("network {} is there in another shape", asked.network))),
        Err(Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    engine.create_network(&request)?;
    changed(json!({}))
}

fn delete_network<S: Store, K: Kernel>(engine: &Engine<S, K>, asked: &NetworkOnly) -> Done {
    // It is not Docker's: other hosts may have it.
    if reference::ours(engine, &asked.network)?.is_some() {
        engine.forget_reference(&asked.network)?;
        return told(json!({}));
    }
    network::id(&asked.network)?;
    match engine.remove_network(&asked.network) {
        Ok(_) | Err(Error::NotFound { .. }) => changed(json!({})),
        Err(error) => Err(error.into()),
    }
}

/// The container that stands for an endpoint of Docker's, if it is there.
fn find<S: Store, K: Kernel>(engine: &Engine<S, K>, endpoint: &str) -> Result<Option<ContainerInfo>, Refusal> {
    let id = network::id(endpoint)?;
    match engine.container(&id.to_string()) {
        Ok(info) if info.container.kind == ContainerKind::Handed => Ok(Some(info)),
        Ok(info) => Err(Refusal::new(format!("`{}` is no endpoint of Docker's", info.container.name))),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Docker's endpoint on a network that has this address, if one has.
fn forgotten<S: Store, K: Kernel>(
    engine: &Engine<S, K>,
    network: &str,
    address: IpAddr,
) -> Result<Option<Id>, Refusal> {
    let endpoints = engine.network(network)?.endpoints;
    let has = |endpoint: &Endpoint| endpoint.addresses.iter().any(|one| one.address.addr() == address);
    let Some((endpoint, _)) = endpoints.iter().find(|(endpoint, _)| has(endpoint)) else { return Ok(None) };
    let container = engine.container(&endpoint.container.to_string())?.container;
    Ok((container.kind == ContainerKind::Handed).then_some(container.id))
}

/// The same, where Docker takes it to be there.
fn expect<S: Store, K: Kernel>(engine: &Engine<S, K>, which: &EndpointOnly) -> Result<ContainerInfo, Refusal> {
    let missing = || Refusal::new(format!("endpoint {} is not there", which.endpoint));
    find(engine, &which.endpoint)?.ok_or_else(missing)
}

fn create_endpoint<S: Store, K: Kernel>(engine: &Engine<S, K>, asked: &CreateEndpoint) -> Done {
    let endpoint: Id = network::id(&asked.which.endpoint)?;
    // What is wrong with the ports is better said before there is anything.
    network::ports(&asked.options)?;
    if let Some(made) = find(engine, &asked.which.endpoint)? {
        return told(json!({ "Interface": network::decided(&asked.interface, &made) }));
    }
    ipam::settle_claims(engine);
    let referred = reference::ours(engine, &asked.which.network)?;
    let request = network::attach_request(asked, referred, network::source_name(endpoint)?)?;
    let made = match engine.attach(&request) {
        // Docker gives an address to one endpoint at a time: it has forgotten the one that has it, having been killed, and
        // may take a minute to let go of its namespace.
        Err(error @ Error::AddressTaken { address, .. }) if referred.is_none() => {
            let Some(holder) = forgotten(engine, &asked.which.network, address)? else { return Err(error.into()) };
            tracing::warn!(%holder, "{address} is given to another endpoint: taking it down");
            engine.detach(&holder.to_string())?;
            engine.attach(&request)?
        }
        attached => attached?,
    };
    changed(json!({ "Interface": network::decided(&asked.interface, &made) }))
}

fn describe<S: Store, K: Kernel>(engine: &Engine<S, K>, which: &EndpointOnly) -> Done {
    let made = expect(engine, which)?;
    let ports: Vec<String> = made.publications.iter().map(ToString::to_string).collect();
    let host_end = made.endpoints.first().map(|(endpoint, _)| endpoint.host_end.to_string());
    told(
        json!({ "Value": { "portolan.container": made.container.name, "portolan.interface": host_end, "portolan.ports": ports } }),
    )
}

fn join<S: Store, K: Kernel>(engine: &Engine<S, K>, asked: &Join) -> Done {
    let made = expect(engine, &asked.which)?;
    engine.label(made.container.id, &BTreeMap::from([(TAKEN_TO.to_owned(), asked.sandbox_key.clone())]))?;
    told(network::joined(&made).ok_or_else(|| Refusal::new("the endpoint has no interface"))?)
}

/// Publishes ports: of those asked for what is not published yet.
fn open<S: Store, K: Kernel>(engine: &Engine<S, K>, asked: &Join) -> Done {
    let made = expect(engine, &asked.which)?;
    let ports = network::ports(&asked.options)?;
    if ports.is_empty() || !made.publications.is_empty() {
        return told(json!({}));
    }
    // As Docker's own drivers do: on the LAN a container's ports are reached at its own address.
    if made.endpoints.iter().all(|(_, network)| !network.is_ruled()) {
        tracing::warn!(container = %made.container.name, "its network publishes no ports: they are not the host's");
        return told(json!({}));
    }
    engine.publish(&made.container.id.to_string(), &ports)?;
    changed(json!({}))
}

fn close<S: Store, K: Kernel>(engine: &Engine<S, K>, which: &EndpointOnly) -> Done {
    let Some(made) = find(engine, &which.endpoint)?.filter(|made| !made.publications.is_empty()) else {
        return told(json!({}));
    };
    let all: Vec<PublishSpec> = made
        .publications
        .iter()
        .map(|publication| PublishSpec {
            protocol: publication.protocol,
            host_ip: publication.host_ip,
            host: HostPorts::Exact(publication.host),
            container: publication.container,
        })
        .collect();
    engine.unpublish(&made.container.id.to_string(), &all)?;
    changed(json!({}))
}

fn delete_endpoint<S: Store, K: Kernel>(engine: &Engine<S, K>, which: &EndpointOnly) -> Done {
    let Some(made) = find(engine, &which.endpoint)? else { return told(json!({})) };
    match engine.detach(&made.container.id.to_string()) {
        Ok(_) | Err(Error::NotFound { .. }) => changed(json!({})),
        Err(error) => Err(error.into()),
    }
}
