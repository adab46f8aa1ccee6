//! Sets of several ranges: one address of each set, of the first range that has one free.

use std::path::Path;

use portolan_kernel::rtnl::Family;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;
use serde_json::{Value, json};

use crate::common::{LONG, any, at, neighbour_ip};
use crate::runtime::{Pod, Runtime, addresses_of, answer, output_of, web, with};

/// Room for one, then for two more, and IPv6 for all of them.
fn sets() -> Value {
    json!({
        "type": "host-local",
        "ranges": [
            [
                {"subnet": "10.9.1.0/30"},
                {"subnet": "10.9.2.0/24", "rangeStart": "10.9.2.50", "rangeEnd": "10.9.2.51", "gateway": "10.9.2.254"},
            ],
            [{"subnet": "fd09:1::/64"}],
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24"}],
    })
}

fn first(result: &Value) -> String {
    addresses_of(result)[0].clone()
}

#[test]
fn alternatives() {
    let Some(runtime) = Runtime::or_skip("cni-sets") else { return };
    let untouched = runtime.world.untouched();
    let config = with(&web(), json!({"ipam": sets()}));
    let pods: [Pod; 4] = ["a", "b", "c", "d"].map(|id| runtime.pod(id));
    let given: Vec<Value> = pods[..3].iter().map(|pod| runtime.add(pod, &config)).collect();
    assert_eq!(given.iter().map(first).collect::<Vec<_>>(), ["10.9.1.2/30", "10.9.2.50/24", "10.9.2.51/24"]);
    let gateway = |result: &Value| result["ips"][0]["gateway"].as_str().unwrap().to_owned();
    assert_eq!((gateway(&given[0]).as_str(), gateway(&given[1]).as_str()), ("10.9.1.1", "10.9.2.254"));
    assert_eq!(given[1]["dns"]["nameservers"], json!(["10.9.2.254", "fd09:1::1"]));
    // The routes are by the gateway that goes with the address.
    let route = |result: &Value, dst: &str| {
        let mut routes = result["routes"].as_array().unwrap().iter();
        routes.find(|route| route["dst"] == dst).unwrap()["gw"].as_str().unwrap().to_owned()
    };
    for dst in ["0.0.0.0/0", "192.0.2.0/24"] {
        assert_eq!([&given[0], &given[1]].map(|result| route(result, dst)), ["10.9.1.1", "10.9.2.254"], "{dst}");
    }
    let servers: Vec<TcpServer> =
        pods[..3].iter().map(|pod| TcpServer::start(pod, any(Family::V4, 80), &pod.id).unwrap()).collect();
    for from in &pods[..3] {
        assert!(ping(from, neighbour_ip(Family::V4), LONG).is_open(), "{} to the world", from.id);
        for (to, result) in pods.iter().zip(&given).filter(|(to, _)| to.id != from.id) {
            let address = first(result).split('/').next().unwrap().parse().unwrap();
            assert_eq!(
                tcp_probe(from, at(address, 80), LONG).banner(),
                Some(to.id.as_str()),
                "{} to {}",
                from.id,
                to.id
            );
        }
    }
    drop(servers);
    runtime.world.verify();
    for (pod, result) in pods.iter().zip(&given) {
        runtime.call("CHECK", pod, &with(&config, json!({"prevResult": result}))).unwrap();
    }
    let refusal = runtime.refused("ADD", &pods[3], &config);
    assert_eq!(refusal.code, 101);
    assert!(refusal.msg.contains("10.9.1.0/30, 10.9.2.50/31"), "{refusal:?}");
    let status = runtime.refused("STATUS", &pods[3], &config);
    assert_eq!((status.code, status.msg), (50, refusal.msg));
    let text = runtime.world.portolan_ok(&["network", "inspect", "web"]);
    let inspected: Value = serde_json::from_str(&text).unwrap();
    let config_of = |place: usize| inspected[0]["IPAM"]["Config"][place].clone();
    assert_eq!(config_of(0), json!({"Subnet": "10.9.1.0/30", "Gateway": "10.9.1.1"}));
    let second = json!({
        "Subnet": "10.9.2.0/24", "IPRange": "10.9.2.50/31", "Gateway": "10.9.2.254", "Fallback": true,
    });
    assert_eq!(config_of(1), second);
    runtime.del(&pods[0], &config);
    assert_eq!(runtime.call("STATUS", &pods[3], &config).unwrap(), Value::Null);
    assert_eq!(first(&runtime.add(&pods[3], &config)), "10.9.1.2/30");
    assert!(ping(&pods[3], neighbour_ip(Family::V4), LONG).is_open());
    for pod in &pods {
        runtime.del(pod, &config);
    }
    // An address that is asked for is of its own range, and the runtime's ranges are sets as well.
    let asked = with(&config, json!({"runtimeConfig": {"ips": ["10.9.2.51"]}}));
    assert_eq!(addresses_of(&runtime.add(&pods[0], &asked)), ["10.9.2.51/24", "fd09:1::2/64"]);
    runtime.del(&pods[0], &asked);
    let ranges = json!({"ipRanges": [[{"subnet": "10.9.7.0/30"}, {"subnet": "10.9.8.0/30"}]]});
    let capability = with(&config, json!({"runtimeConfig": ranges}));
    assert_eq!(first(&runtime.add(&pods[0], &capability)), "10.9.7.2/30");
    assert_eq!(first(&runtime.add(&pods[1], &capability)), "10.9.8.2/30");
    assert_eq!(runtime.refused("ADD", &pods[2], &capability).code, 101);
    for pod in &pods {
        runtime.del(pod, &config);
    }
    runtime.world.assert_untouched(&untouched, "sets");
}

/// Where each container has a veth pair of its own, it is the same.
#[test]
fn without_a_bridge() {
    let Some(runtime) = Runtime::or_skip("cni-sets-ptp") else { return };
    let config = with(&web(), json!({"driver": "ptp", "ipam": sets()}));
    let pods: [Pod; 2] = ["a", "b"].map(|id| runtime.pod(id));
    let given = pods.each_ref().map(|pod| runtime.add(pod, &config));
    assert_eq!(given.each_ref().map(first), ["10.9.1.2/30", "10.9.2.50/24"]);
    for (pod, other) in [(&pods[0], &given[1]), (&pods[1], &given[0])] {
        let address = first(other).split('/').next().unwrap().parse().unwrap();
        for to in [neighbour_ip(Family::V4), address] {
            assert!(ping(pod, to, LONG).is_open(), "{} to {to}", pod.id);
        }
    }
    runtime.world.verify();
    for pod in &pods {
        runtime.del(pod, &config);
    }
}

/// The same sets, in the original's hands and in ours.
#[test]
fn beside_the_original() {
    let original = Path::new("/usr/lib/cni/host-local");
    if !original.exists() {
        assert!(std::env::var_os("CI").is_none(), "no CNI plugins in /usr/lib/cni");
        eprintln!("SKIP: `beside_the_original`: no {}: install containernetworking-plugins", original.display());
        return;
    }
    let Some(runtime) = Runtime::or_skip("cni-sets-beside") else { return };
    let pods: [Pod; 4] = ["a", "b", "c", "d"].map(|id| runtime.pod(id));
    std::os::unix::fs::symlink(original, runtime.bin.join("host-local")).unwrap();
    let leases = runtime.world.lab.dir().join("leases");
    let two =
        |first: Value, second: Value| json!({"type": "host-local", "ranges": [[first, second]], "dataDir": leases});
    let cases = [
        ("two subnets", two(json!({"subnet": "10.9.1.0/30"}), json!({"subnet": "10.9.2.0/30"}))),
        (
            "one subnet",
            two(
                json!({"subnet": "10.9.1.0/24", "rangeStart": "10.9.1.10", "rangeEnd": "10.9.1.11"}),
                json!({"subnet": "10.9.1.0/24", "rangeStart": "10.9.1.20", "rangeEnd": "10.9.1.20", "gateway": "10.9.1.2"}),
            ),
        ),
        ("all of it", with(&sets(), json!({"dataDir": leases}))),
    ];
    for (what, ipam) in cases {
        let config = with(&web(), json!({"cniVersion": "1.0.0", "name": what.replace(' ', "-"), "ipam": ipam}));
        let theirs = |verb: &str, pod: &Pod| {
            let command = runtime.command(verb, pod, "host-local");
            answer(&output_of(command, with(&config, json!({"type": "host-local"})).to_string().as_bytes()))
        };
        let given = |result: Result<Value, crate::runtime::Refusal>| {
            result.ok().map(|result| {
                let ips = result["ips"].as_array().unwrap().iter();
                ips.map(|ip| format!("{} by {}", ip["address"], ip["gateway"])).collect::<Vec<_>>()
            })
        };
        for (verb, pod) in [0, 1, 2, 3].map(|pod| ("ADD", pod)).into_iter().chain([("DEL", 0), ("ADD", 3), ("DEL", 1)])
        {
            let pod = &pods[pod];
            let ours = runtime.call(verb, pod, &config);
            let original = theirs(verb, pod);
            match verb {
                "ADD" => assert_eq!(given(ours), given(original), "{what}: {}", pod.id),
                _ => assert!(ours.is_ok() && original.is_ok(), "{what}: {}", pod.id),
            }
        }
        for pod in &pods {
            runtime.del(pod, &config);
        }
    }
}

#[test]
fn refused() {
    let Some(runtime) = Runtime::or_skip("cni-sets-refused") else { return };
    let pod = runtime.pod("c");
    let cases = [
        (json!([[]]), "empty range set"),
        (json!([[{"subnet": "10.9.1.0/24"}, {"subnet": "fd09:1::/64"}]]), "is of another family than 10.9.1.0/24"),
        (json!([[{"subnet": "10.9.1.0/24"}, {"subnet": "10.9.1.0/24"}]]), "overlaps"),
        (json!([[{"subnet": "10.9.1.0/24"}, {"subnet": "10.9.0.0/16"}]]), "overlaps"),
    ];
    for (ranges, why) in cases {
        let config = with(&web(), json!({"ipam": {"type": "host-local", "ranges": ranges}}));
        let refusal = runtime.refused("ADD", &pod, &config);
        assert!(refusal.msg.contains(why) && [7, 100].contains(&refusal.code), "{ranges}: {refusal:?}");
    }
}
