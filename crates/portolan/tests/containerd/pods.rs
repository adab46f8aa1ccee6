//! Sandboxes of pods, by the calls that a kubelet makes.

use std::net::IpAddr;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use portolan_lab::probe::{ping, tcp_probe, udp_probe};
use portolan_lab::server::{TcpServer, UdpServer};
use serde_json::Value;

use crate::cri::{
    Client, DnsConfig, Empty, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusResponse, PortMapping,
    RunPodSandboxRequest, Sandbox, StatusResponse,
};
use crate::scene::{HOST, HOST6, LONG, NEIGHBOUR, Place, SHORT, SOCKET, Scene, at, reaches};

/// A sandbox that runs.
struct Pod {
    id: String,
    ips: Vec<IpAddr>,
    place: Place,
}

/// A kubelet.
struct Kubelet<'a> {
    scene: &'a Scene,
    client: Client,
}

impl<'a> Kubelet<'a> {
    fn of(scene: &'a Scene) -> Self {
        Self { scene, client: Client::new(&scene.outside(SOCKET)) }
    }

    fn run(&self, name: &str, ports: Vec<PortMapping>) -> Result<Pod> {
        self.run_with(name, ports, &[])
    }

    fn run_with(&self, name: &str, ports: Vec<PortMapping>, annotations: &[(&str, &str)]) -> Result<Pod> {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "shop".to_owned(),
            }),
            hostname: name.to_owned(),
            dns: Some(DnsConfig { servers: vec![NEIGHBOUR.to_owned()], searches: vec!["shop.cluster".to_owned()] }),
            ports,
            annotations: annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let Sandbox { id, .. } = self.client.call("RunPodSandbox", &RunPodSandboxRequest { config: Some(config) })?;
        let question = Sandbox { id: id.clone(), verbose: true };
        let answer: PodSandboxStatusResponse = self.client.call("PodSandboxStatus", &question)?;
        let status = answer.status.context("a status")?;
        ensure!(status.state == 0, "sandbox `{name}` is not ready");
        let network = status.network.context("its network")?;
        let ips = std::iter::once(&network.ip).chain(network.additional.iter().map(|more| &more.ip));
        let ips = ips.map(|ip| ip.parse()).collect::<Result<_, _>>()?;
        let info: Value = serde_json::from_str(&answer.info["info"])?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().context("namespaces")?;
        let netns = namespaces.iter().find(|one| one["type"] == "network").context("a network namespace")?;
        let place = self.scene.netns(netns["path"].as_str().context("a path")?)?;
        Ok(Pod { id, ips, place })
    }

    fn call(&self, method: &str, pod: &Pod) -> Result<()> {
        self.client.call::<Empty>(method, &Sandbox { id: pod.id.clone(), verbose: false }).map(drop)
    }

    fn remove(&self, pod: &Pod) -> Result<()> {
        self.call("StopPodSandbox", pod)?;
        self.call("RemovePodSandbox", pod)
    }
}

#[test]
fn sandbox() -> Result<()> {
    let Some(scene) = Scene::or_skip("containerd-cri") else { return Ok(()) };
    let kubelet = Kubelet::of(&scene);
    let status: StatusResponse = kubelet.client.call("Status", &Empty {})?;
    let conditions = status.status.context("a status")?.conditions;
    assert!(conditions.len() == 2 && conditions.iter().all(|one| one.status), "{conditions:?}");

    let port = |protocol, host, container| PortMapping { protocol, container, host };
    let site = kubelet.run("site", vec![port(0, 8080, 81), port(1, 5353, 53)])?;
    let slow = [("kubernetes.io/ingress-bandwidth", "10M"), ("kubernetes.io/egress-bandwidth", "20M")];
    let other = kubelet.run_with("other", vec![], &slow)?;
    let limits = scene.json(&["inspect", &other.id])?[0]["NetworkSettings"]["Networks"]["lab"]["Bandwidth"].to_string();
    assert!(limits.contains("10000000") && limits.contains("20000000"), "{limits}");
    assert_eq!(scene.addresses(&site.id)?, site.ips);
    let details = scene.json(&["inspect", &site.id])?.to_string();
    for part in ["\"io.kubernetes.pod.name\":\"site\"", "\"io.kubernetes.pod.uid\":\"uid-of-site\"", "site.shop"] {
        assert!(details.contains(part), "{part}: {details}");
    }
    let _tcp = TcpServer::start(&site.place, at("::", 81), "t81")?;
    let _udp = UdpServer::start(&site.place, at("::", 53), "u53")?;
    for host in [HOST, HOST6] {
        reaches(&scene.neighbour, at(host, 8080), "t81")?;
        reaches(&scene.host, at(host, 8080), "t81")?;
        reaches(&other.place, at(host, 8080), "t81")?;
        assert_eq!(udp_probe(&scene.neighbour, at(host, 5353), LONG).banner(), Some("u53"));
        assert!(!tcp_probe(&scene.neighbour, at(host, 81), SHORT).is_open(), "nobody published that");
    }
    for ip in &site.ips {
        assert!(ping(&other.place, *ip, LONG).is_open(), "{ip}");
    }
    let _world = TcpServer::start(&scene.neighbour, at(NEIGHBOUR, 99), "world")?;
    assert_eq!(reaches(&site.place, at(NEIGHBOUR, 99), "world")?.to_string(), HOST, "masqueraded");
    // `lo` is up: containerd asked our `loopback`.
    reaches(&site.place, at("127.0.0.1", 81), "t81")?;
    scene.verify()?;
    // A port that is taken is refused, and what was made for the sandbox goes.
    let refusal = kubelet.run("late", vec![port(0, 8080, 81)]).map(|pod| pod.id).unwrap_err();
    assert!(format!("{refusal:#}").contains("8080"), "{refusal:#}");
    assert_eq!(scene.names()?.len(), 2);

    kubelet.call("StopPodSandbox", &site)?;
    assert!(!tcp_probe(&scene.neighbour, at(HOST, 8080), SHORT).is_open());
    // A kubelet stops what is stopped already.
    kubelet.remove(&site)?;
    kubelet.remove(&other)?;
    scene.empty(&[])
}

/// No lock of containerd's keeps them apart.
#[test]
fn sandboxes_in_parallel() -> Result<()> {
    const COUNT: u16 = 50;
    let Some(scene) = Scene::or_skip("containerd-parallel") else { return Ok(()) };
    let kubelet = Kubelet::of(&scene);
    let all = |act: &(dyn Fn(u16) -> Result<Option<Pod>> + Sync)| -> Result<Vec<Pod>> {
        thread::scope(|scope| {
            let calls: Vec<_> = (0..COUNT).map(|n| scope.spawn(move || act(n))).collect();
            let done = calls.into_iter().filter_map(|call| call.join().expect("a call does not panic").transpose());
            done.collect()
        })
    };
    let start = Instant::now();
    let pods = all(&|n| {
        let port = PortMapping { protocol: 0, container: 81, host: i32::from(8000 + n) };
        kubelet.run(&format!("pod{n}"), vec![port]).map(Some)
    })?;
    eprintln!("{COUNT} sandboxes run after {:.1} s", start.elapsed().as_secs_f64());
    let mut ips: Vec<IpAddr> = pods.iter().flat_map(|pod| &pod.ips).copied().collect();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 2 * usize::from(COUNT), "every one has its own");
    scene.verify()?;
    for (n, pod) in pods.iter().enumerate().step_by(7) {
        let _server = TcpServer::start(&pod.place, at("::", 81), "here")?;
        reaches(&scene.neighbour, at(HOST, 8000 + n as u16), "here")?;
    }
    let start = Instant::now();
    all(&|n| kubelet.remove(&pods[usize::from(n)]).map(|()| None))?;
    eprintln!("{COUNT} sandboxes removed after {:.1} s", start.elapsed().as_secs_f64());
    scene.empty(&[])
}
