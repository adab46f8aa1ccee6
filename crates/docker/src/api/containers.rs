//! `GET /containers/json`

use std::collections::BTreeMap;

use portolan_engine::{ContainerInfo, Engine, Kernel, Store};
use portolan_model::{ContainerState, HealthState, clock};
use serde::Serialize;

use super::endpoint::{self, Settings};
use super::failure::Failure;
use super::filters::Filters;
use super::{Asked, Done, Host, is_ours, told};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    id: String,
    names: Vec<String>,
    image: &'static str,
    #[serde(rename = "ImageID")]
    image_id: &'static str,
    command: String,
    created: u64,
    ports: Vec<Port>,
    labels: BTreeMap<String, String>,
    state: &'static str,
    status: String,
    host_config: HostConfig,
    network_settings: NetworkSettings,
    mounts: [(); 0],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Port {
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    private_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_port: Option<u16>,
    r#type: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    network_mode: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    networks: BTreeMap<String, Settings>,
}

/// What is filtered by.
const KEYS: [&str; 15] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// Docker's words for how a container is.
const STATES: [&str; 7] = ["paused", "restarting", "removing", "running", "dead", "created", "exited"];

/// Docker's word for how a container is, and the status it ended with.
pub(super) fn state(info: &ContainerInfo) -> (&'static str, i32) {
    match info.container.state {
        ContainerState::Created => ("created", 0),
        ContainerState::Running if info.alive => ("running", 0),
        // Nobody was there to see how it ended.
        ContainerState::Running => ("dead", 137),
        ContainerState::Exited(status) => ("exited", status),
    }
}

fn status(info: &ContainerInfo, now: u64) -> String {
    match state(info) {
        ("running", _) => {
            let health = info.container.health.as_ref().map(|health| match health.state {
                HealthState::Starting => " (health: starting)".to_owned(),
                state => format!(" ({state})"),
            });
            let up = clock::span(now.saturating_sub(info.container.created));
            format!("Up {up}{}", health.unwrap_or_default())
        }
        ("created", _) => "Created".to_owned(),
        ("dead", _) => "Dead".to_owned(),
        (_, status) => format!("Exited ({status})"),
    }
}

pub(super) fn list<S: Store, K: Kernel>(engine: &Engine<S, K>, host: &impl Host, asked: &Asked<'_>) -> Done {
    let filters = asked.request.filters(&KEYS)?;
    if let Some(wrong) = filters.values("status").iter().find(|state| !STATES.contains(&state.as_str())) {
        return Err(Failure::invalid(format!("invalid filter 'status={wrong}'")));
    }
    let limit = match asked.request.parameter("limit").as_str() {
        "" => 0,
        text => text.parse::<i64>().map_err(|_| Failure::invalid(format!("invalid limit: {text}")))?,
    };
    let mut all: Vec<ContainerInfo> = engine.containers()?.into_iter().filter(is_ours).collect();
    // The newest comes first.
    all.reverse();
    let place = |key| -> Result<Option<u64>, Failure> {
        let Some(term) = filters.values(key).first() else { return Ok(None) };
        Ok(Some(super::find_container(engine, term)?.container.created))
    };
    let (before, since) = (place("before")?, place("since")?);
    let is_any = asked.request.flag("all") || limit > 0 || filters.has("status") || filters.has("exited");
    all.retain(|info| {
        (is_any || state(info).0 == "running")
            && before.is_none_or(|time| info.container.created < time)
            && since.is_none_or(|time| info.container.created > time)
            && fits(info, &filters)
    });
    if let Ok(limit @ 1..) = usize::try_from(limit) {
        all.truncate(limit);
    }
    let now = host.facts().now;
    told(&all.iter().map(|info| show(info, now, asked)).collect::<Vec<_>>())
}

fn fits(info: &ContainerInfo, filters: &Filters) -> bool {
    let container = &info.container;
    let (state, status) = state(info);
    let published: Vec<String> = info.publications.iter().flat_map(endpoint::published).map(|p| p.key).collect();
    let exposed: Vec<String> = endpoint::exposed(info).map(|(port, protocol)| format!("{port}/{protocol}")).collect();
    let has = |ports: &[String], wanted: &str| {
        let wanted = if wanted.contains('/') { wanted.to_owned() } else { format!("{wanted}/tcp") };
        ports.contains(&wanted)
    };
    let is_on = |wanted: &str| {
        let mode = endpoint::mode(info);
        mode == wanted
            || info.endpoints.iter().any(|(_, network)| {
                network.name.as_str() == wanted || (!wanted.is_empty() && network.id.to_string().starts_with(wanted))
            })
    };
    filters.matches("id", &container.id.to_string())
        && (filters.matches("name", container.name.as_str()) || filters.matches("name", &format!("/{}", container.name)))
        && filters.labelled("label", &container.labels)
        && filters.is("status", state)
        && filters.any("exited", |wanted| state == "exited" && wanted == status.to_string())
        && filters.any("network", is_on)
        && filters.any("publish", |wanted| has(&published, wanted))
        && filters.any("expose", |wanted| has(&exposed, wanted) || has(&published, wanted))
        && filters.is("health", "none")
        && filters.is("isolation", "default")
        && filters.any("is-task", |wanted| matches!(wanted, "0" | "false"))
        // It has neither image nor volumes.
        && !filters.has("ancestor")
        && !filters.has("volume")
}

fn show(info: &ContainerInfo, now: u64, asked: &Asked<'_>) -> Shown {
    let container = &info.container;
    let mut ports = Vec::new();
    for port in info.publications.iter().flat_map(endpoint::published) {
        ports.extend(port.addresses.iter().map(|address| Port {
            address: Some(address.clone()),
            private_port: port.inside,
            public_port: Some(port.outside),
            r#type: port.protocol.clone(),
        }));
    }
    for (port, protocol) in endpoint::exposed(info) {
        if !ports.iter().any(|shown| shown.private_port == port && shown.r#type == protocol) {
            ports.push(Port { address: None, private_port: port, public_port: None, r#type: protocol });
        }
    }
    Shown {
        id: container.id.to_string(),
        names: vec![format!("/{}", container.name)],
        image: "",
        image_id: "",
        command: container.command.join(" "),
        created: container.created,
        ports,
        labels: container.labels.clone(),
        state: state(info).0,
        status: status(info, now),
        host_config: HostConfig { network_mode: endpoint::mode(info) },
        network_settings: NetworkSettings { networks: endpoint::networks(info, asked.version) },
        mounts: [],
    }
}
