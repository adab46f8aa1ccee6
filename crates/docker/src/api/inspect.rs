//! `GET /containers/{id}/json`

use std::collections::BTreeMap;

use portolan_engine::{ContainerInfo, Engine, Kernel, Store};
use portolan_model::clock;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::endpoint::{self, Settings};
use super::{Asked, Done, Version, containers, find_container, told};

/// What Go writes for a time that is not known.
const NEVER: &str = "0001-01-01T00:00:00Z";

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    id: String,
    created: String,
    path: String,
    args: Vec<String>,
    state: Value,
    image: &'static str,
    name: String,
    restart_count: u8,
    driver: &'static str,
    platform: &'static str,
    mounts: [(); 0],
    host_config: Value,
    config: Value,
    network_settings: NetworkSettings,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(rename = "SandboxID")]
    sandbox: String,
    sandbox_key: String,
    ports: Map<String, Value>,
    /// What of the first network clients looked for before there were several.
    #[serde(flatten)]
    first: First,
    networks: BTreeMap<String, Settings>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct First {
    #[serde(rename = "EndpointID")]
    endpoint: String,
    gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    address6: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    prefix6: u8,
    #[serde(rename = "IPAddress")]
    address: String,
    #[serde(rename = "IPPrefixLen")]
    prefix: u8,
    #[serde(rename = "IPv6Gateway")]
    gateway6: String,
    mac_address: String,
}

pub(super) fn container<S: Store, K: Kernel>(engine: &Engine<S, K>, asked: &Asked<'_>) -> Done {
    let info = find_container(engine, &asked.id)?;
    told(&show(&info, asked.version))
}

fn show(info: &ContainerInfo, version: Version) -> Shown {
    let container = &info.container;
    let (path, args) = container.command.split_first().map_or((String::new(), &[][..]), |(p, a)| (p.clone(), a));
    Shown {
        id: container.id.to_string(),
        created: clock::rfc3339(container.created),
        path,
        args: args.to_vec(),
        state: state(info),
        image: "",
        name: format!("/{}", container.name),
        restart_count: 0,
        driver: "",
        platform: "linux",
        mounts: [],
        host_config: host_config(info),
        config: config(info, version),
        network_settings: network_settings(info, version),
    }
}

fn state(info: &ContainerInfo) -> Value {
    let (status, exit) = containers::state(info);
    let is_up = status == "running";
    let pid = info.container.process.filter(|_| is_up).map_or(0, |process| process.pid);
    json!({
        "Status": status,
        "Running": is_up,
        "Paused": false,
        "Restarting": false,
        "OOMKilled": false,
        "Dead": status == "dead",
        "Pid": pid,
        "ExitCode": exit,
        "Error": "",
        "StartedAt": if status == "created" { NEVER.to_owned() } else { clock::rfc3339(info.container.created) },
        "FinishedAt": NEVER,
    })
}

fn ports(info: &ContainerInfo) -> Map<String, Value> {
    let mut ports = Map::new();
    for (port, protocol) in endpoint::exposed(info) {
        ports.insert(format!("{port}/{protocol}"), Value::Null);
    }
    for port in info.publications.iter().flat_map(endpoint::published) {
        let bindings = port.addresses.iter();
        let bindings = bindings.map(|address| json!({"HostIp": address, "HostPort": port.outside.to_string()}));
        match ports.entry(port.key).or_insert(Value::Null) {
            Value::Array(known) => known.extend(bindings),
            other => *other = bindings.collect(),
        }
    }
    ports
}

fn host_config(info: &ContainerInfo) -> Value {
    let container = &info.container;
    let mut bindings = Map::new();
    for port in info.publications.iter().flat_map(endpoint::published) {
        let address = if port.addresses.len() > 1 { "" } else { port.addresses[0].as_str() };
        let binding = json!({"HostIp": address, "HostPort": port.outside.to_string()});
        match bindings.entry(port.key).or_insert_with(|| json!([])) {
            Value::Array(known) => known.push(binding),
            _ => unreachable!("an array was put there"),
        }
    }
    let hosts = container.hosts.iter().map(|entry| {
        let address = entry.address.map_or_else(|| "host-gateway".to_owned(), |address| address.to_string());
        format!("{}:{address}", entry.name)
    });
    json!({
        "NetworkMode": endpoint::mode(info),
        "PortBindings": bindings,
        "PublishAllPorts": false,
        "AutoRemove": container.auto_remove,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "Dns": container.dns.servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "DnsOptions": container.dns.options,
        "DnsSearch": container.dns.search,
        "ExtraHosts": hosts.collect::<Vec<_>>(),
        "Sysctls": container.sysctls,
        "SecurityOpt": if container.no_netfilter { json!(["no-netfilter"]) } else { Value::Null },
        "LogConfig": {"Type": "", "Config": {}},
    })
}

fn config(info: &ContainerInfo, version: Version) -> Value {
    let container = &info.container;
    let exposed: Map<String, Value> = ports(info).into_iter().map(|(key, _)| (key, json!({}))).collect();
    let mut config = json!({
        "Hostname": container.hostname.as_ref().map_or_else(String::new, ToString::to_string),
        "Domainname": "",
        "User": "",
        "AttachStdin": false,
        "AttachStdout": false,
        "AttachStderr": false,
        "ExposedPorts": exposed,
        "Tty": false,
        "OpenStdin": false,
        "StdinOnce": false,
        "Env": [],
        "Cmd": container.command,
        "Image": "",
        "Volumes": null,
        "WorkingDir": "",
        "Entrypoint": null,
        "Labels": container.labels,
    });
    // Since 1.44 it is told of each network.
    if version < Version(44)
        && let Some((endpoint, _)) = info.endpoints.first().filter(|(endpoint, _)| endpoint.mac_configured)
    {
        config["MacAddress"] = endpoint.mac.to_string().into();
    }
    config
}

fn network_settings(info: &ContainerInfo, version: Version) -> NetworkSettings {
    let networks = endpoint::networks(info, version);
    let sandbox = info.container.sandbox.as_ref();
    NetworkSettings {
        sandbox: sandbox.map_or_else(String::new, |sandbox| format!("{:x}{:x}", sandbox.device, sandbox.inode)),
        sandbox_key: sandbox.map_or_else(String::new, |sandbox| sandbox.path.display().to_string()),
        ports: ports(info),
        // Docker tells of its default network only.
        first: networks.get("bridge").map_or_else(First::default, |settings| First {
            endpoint: settings.endpoint.clone(),
            gateway: settings.gateway.clone(),
            address6: settings.address6.clone(),
            prefix6: settings.prefix6,
            address: settings.address.clone(),
            prefix: settings.prefix,
            gateway6: settings.gateway6.clone(),
            mac_address: settings.mac_address.clone(),
        }),
        networks,
    }
}
