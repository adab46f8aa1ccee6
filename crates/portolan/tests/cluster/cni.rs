//! Networks of the cluster by CNI: our plugin, called as a container runtime calls it.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use portolan_lab::eventually;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;
use serde_json::{Value, json};

use crate::overlay::{Pod, ask, has, joined, reach, ways};
use crate::world::{LONG, Node, World};

/// What containerd, nerdctl among those who use it, has in `/etc/cni/net.d` for one plugin of a list.
fn config(patch: Value) -> Value {
    let mut all = json!({"cniVersion": "1.1.0", "name": "pods", "type": "portolan", "network": "web"});
    all.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
    all
}

/// The directory of plugins.
fn plugins(world: &World) -> PathBuf {
    let bin = world.lab.dir().join("bin");
    fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_portolan"), bin.join("portolan")).unwrap();
    bin
}

/// Calls it for container `id`; what it answers, or the code with which it refuses.
#[track_caller]
fn call(world: &World, node: &Node, verb: &str, id: &str, netns: &str, config: &Value) -> Result<Value, u64> {
    let bin = world.lab.dir().join("bin");
    let mut command = Command::new(bin.join("portolan"));
    command.env("PORTOLAN_ROOT", &node.root).env("PORTOLAN_DAEMON", "auto");
    command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id).env("CNI_NETNS", netns).env("CNI_IFNAME", "eth0");
    command
        .env("CNI_PATH", &bin)
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=".to_owned() + id);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = node.host.adopt(command).unwrap().spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    match output.status.success() {
        true => Ok(value),
        false => Err(value["code"].as_u64().unwrap_or_else(|| panic!("{text}"))),
    }
}

#[test]
fn by_cni_containers_are_on_the_network() {
    let Some(world) = World::of("overlay-cni", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    plugins(&world);
    // Before there is one, a runtime is told that no container could be started.
    let nowhere = world.lab.host("nowhere").unwrap();
    let path = nowhere.netns_path().display().to_string();
    assert_eq!(call(&world, a, "STATUS", "x", "", &config(json!({}))), Err(50));
    assert_eq!(call(&world, a, "ADD", "x", &path, &config(json!({}))), Err(7));
    a.ok("network create -d overlay web");
    has(b, "web");
    let add = |node: &Node, id: &str, patch: Value| -> (Pod, Value) {
        assert_eq!(call(&world, node, "STATUS", id, "", &config(json!({}))), Ok(Value::Null));
        let place = world.lab.host(id).unwrap();
        let path = place.netns_path().display().to_string();
        let config = config(patch);
        let result = call(&world, node, "ADD", id, &path, &config).unwrap();
        let ips = result["ips"].as_array().unwrap().iter();
        let address =
            |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse::<IpAddr>().unwrap();
        let pod = Pod { name: id.to_owned(), addresses: ips.map(address).collect(), place };
        let mut after = config;
        after.as_object_mut().unwrap().insert("prevResult".to_owned(), result);
        assert_eq!(call(&world, node, "CHECK", id, &path, &after), Ok(Value::Null));
        (pod, after)
    };
    let ports = json!({"capabilities": {"portMappings": true, "aliases": true}, "runtimeConfig": {
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp"}], "aliases": {"pods": ["shop"]}}});
    let ((one, first), (other, second)) = (add(a, "one", ports), add(b, "other", json!({})));
    let third = world.pod(b, "web", "third");
    assert!(one.addresses.len() == 2 && other.addresses.len() == 2, "{:?} {:?}", one.addresses, other.addresses);
    assert!(eventually(LONG, || ping(&one, other.addresses[0], LONG).is_open()));
    for (from, to) in [(&one, &other), (&other, &one), (&third, &one), (&one, &third)] {
        reach(from, to);
    }
    for name in ["one.default", "shop"] {
        for pod in [&other, &third] {
            assert!(
                eventually(LONG, || ask(pod, name, "a") == [one.addresses[0].to_string()]),
                "{name} by {}",
                pod.name
            );
        }
    }
    let _server = TcpServer::start(&one, SocketAddr::from(([0, 0, 0, 0], 80)), "one").unwrap();
    let published = SocketAddr::from(([10, 0, 1, 1], 8080));
    assert_eq!(tcp_probe(&b.host, published, LONG).banner(), Some("one"), "a port of the host that it is on");
    // What is lost is found.
    let path = |pod: &Pod| pod.place.netns_path().display().to_string();
    let output = other.place.command("ip").unwrap().args(["route", "del", "default"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(call(&world, b, "CHECK", "other", &path(&other), &second), Err(103));
    b.ok("reconcile");
    assert_eq!(call(&world, b, "CHECK", "other", &path(&other), &second), Ok(Value::Null));
    // GC takes off what came by CNI and is not listed, here alone; people's stay, and other hosts'.
    let listed = |ids: &[&str]| {
        let all: Vec<Value> = ids.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        config(json!({"cni.dev/valid-attachments": all, "cni.dev/attachments": all}))
    };
    assert_eq!(call(&world, b, "GC", "x", "", &listed(&["other"])), Ok(Value::Null));
    reach(&other, &third);
    assert_eq!(call(&world, b, "GC", "x", "", &listed(&[])), Ok(Value::Null));
    assert!(!b.ok("ps -a").contains("other") && b.ok("ps -a").contains("third"), "{}", b.ok("ps -a"));
    reach(&third, &one);
    // DEL leaves nothing, and does not mind being called twice or for a namespace that is gone.
    for netns in [path(&one), "/run/netns/gone".to_owned()] {
        assert_eq!(call(&world, a, "DEL", "one", &netns, &first), Ok(Value::Null));
    }
    assert!(eventually(LONG, || ask(&third, "shop", "a").is_empty()), "its name is forgotten");
    b.ok("detach third");
    for node in [a, b] {
        assert!(eventually(LONG, || ways(node).concat().is_empty()), "{:?}", ways(node));
        assert!(node.links("vx-").is_empty() && node.links("pv").is_empty(), "{:?}", node.links(""));
        node.ok("verify");
        node.is_well();
    }
    a.ok("network rm web");
}
