//! `/_ping`, `/version` and `/info`: who serves.

use portolan_engine::{ContainerInfo, Engine, Kernel, Store};
use serde_json::{Value, json};

use super::failure::Failure;
use super::{Answer, Facts, Reply, Version, containers, is_ours};

/// Our version, by which clients know the engine.
const SERVER: &str = env!("CARGO_PKG_VERSION");

pub(super) fn ping() -> Answer {
    Answer::Reply(Reply { status: 200, content: "text/plain; charset=utf-8", body: b"OK".to_vec() })
}

/// The word of Go, and so of Docker, for a processor.
fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(super) fn version(facts: &Facts) -> Value {
    let (oldest, newest) = (Version::OLDEST.to_string(), Version::NEWEST.to_string());
    let machine = architecture(&facts.machine);
    json!({
        "Platform": {"Name": "Portolan"},
        "Components": [{
            "Name": "Engine",
            "Version": SERVER,
            "Details": {
                "ApiVersion": newest,
                "MinAPIVersion": oldest,
                "Os": "linux",
                "Arch": machine,
                "KernelVersion": facts.kernel,
                "Experimental": "false",
                "GitCommit": "",
                "GoVersion": "",
                "BuildTime": "",
            },
        }],
        "Version": SERVER,
        "ApiVersion": newest,
        "MinAPIVersion": oldest,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": machine,
        "KernelVersion": facts.kernel,
        "BuildTime": "",
    })
}

pub(super) fn info<S: Store, K: Kernel>(engine: &Engine<S, K>, facts: &Facts) -> Result<Value, Failure> {
    let containers: Vec<ContainerInfo> = engine.containers()?.into_iter().filter(is_ours).collect();
    let running = containers.iter().filter(|info| containers::state(info).0 == "running").count();
    let is_on = |path| engine.kernel().setting(path).as_deref() == Some("1");
    Ok(json!({
        // One for each root of each host, so that clients tell engines apart.
        "ID": format!("portolan:{}:{}", facts.name, facts.root),
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": 0,
        "ContainersStopped": containers.len() - running,
        "Images": 0,
        "Driver": "none",
        "DriverStatus": [],
        "Plugins": {
            "Volume": [],
            "Network": ["bridge", "host", "ipvlan", "macvlan", "null", "ptp"],
            "Authorization": null,
            "Log": [],
        },
        "IPv4Forwarding": is_on("net/ipv4/ip_forward"),
        "BridgeNfIptables": is_on("net/bridge/bridge-nf-call-iptables"),
        "BridgeNfIp6tables": is_on("net/bridge/bridge-nf-call-ip6tables"),
        "SystemTime": portolan_model::clock::rfc3339(facts.now),
        "LoggingDriver": "none",
        "CgroupDriver": "none",
        "NEventsListener": facts.listeners,
        "KernelVersion": facts.kernel,
        "OperatingSystem": facts.system,
        "OSType": "linux",
        "Architecture": facts.machine,
        "NCPU": facts.processors,
        "MemTotal": facts.memory,
        "RegistryConfig": null,
        "DockerRootDir": facts.root,
        "Name": facts.name,
        "Labels": [],
        "ServerVersion": SERVER,
        "Runtimes": {},
        "DefaultRuntime": "",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": false,
            "Error": "",
            "RemoteManagers": null,
        },
        "LiveRestoreEnabled": false,
        "SecurityOptions": [],
        "Warnings": [],
    }))
}
