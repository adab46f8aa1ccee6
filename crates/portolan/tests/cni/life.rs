//! From ADD to DEL, and what becomes of those for whom no DEL comes.

use std::net::IpAddr;
use std::thread;

use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::{Family, addr};
use portolan_lab::probe::{ping, tcp_probe, udp_probe};
use portolan_lab::server::{TcpServer, UdpServer};
use portolan_lab::trace::{self, CHANGES, Outcome};
use serde_json::{Value, json};

use crate::common::{FAMILIES, LONG, SHORT, any, at, host_ip, interface, neighbour_ip};
use crate::runtime::{Pod, Runtime, answer, output_of, web, with};

fn ip(result: &Value, family: Family) -> IpAddr {
    let ips = result["ips"].as_array().unwrap().iter();
    let addresses = ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse::<IpAddr>().unwrap());
    addresses.into_iter().find(|address| Family::of(*address) == family).unwrap()
}

/// `config` with the result that its ADD had.
fn after(config: &Value, result: &Value) -> Value {
    with(config, json!({"prevResult": result}))
}

/// Each other, the world, a published port, and nothing that is not published.
#[test]
fn packets() {
    let Some(runtime) = Runtime::or_skip("cni-packets") else { return };
    let untouched = runtime.world.untouched();
    let (site, other) = (runtime.pod("site"), runtime.pod("other"));
    let published = with(
        &web(),
        json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"HostPort": 5353, "ContainerPort": 53, "Protocol": "udp", "HostIP": ""},
        ]}}),
    );
    let result = runtime.add(&site, &published);
    let plain = runtime.add(&other, &web());
    let _tcp = [80, 81].map(|port| TcpServer::start(&site, any(Family::V6, port), &format!("t{port}")).unwrap());
    let _udp = UdpServer::start(&site, any(Family::V6, 53), "u53").unwrap();
    let outside = TcpServer::start(&runtime.world.n, any(Family::V6, 99), "world").unwrap();
    for family in FAMILIES {
        let (here, there) = (ip(&result, family), ip(&plain, family));
        assert!(ping(&other, here, LONG).is_open() && ping(&site, there, LONG).is_open(), "{family:?}");
        for from in [&runtime.world.n, &runtime.world.h, &other.host] {
            assert_eq!(tcp_probe(from, at(host_ip(family), 8080), LONG).banner(), Some("t80"), "{family:?}");
            assert_eq!(udp_probe(from, at(host_ip(family), 5353), LONG).banner(), Some("u53"), "{family:?}");
        }
        assert!(!tcp_probe(&runtime.world.n, at(host_ip(family), 81), SHORT).is_open());
        assert_eq!(tcp_probe(&other, at(neighbour_ip(family), 99), LONG).banner(), Some("world"));
        assert_eq!(outside.last_client().unwrap().ip().to_canonical(), host_ip(family), "masqueraded");
    }
    runtime.world.verify();
    runtime.del(&site, &published);
    assert!(!tcp_probe(&runtime.world.n, at(host_ip(Family::V4), 8080), SHORT).is_open());
    assert!(interface(&site, "eth0").is_none());
    runtime.del(&other, &web());
    runtime.world.assert_untouched(&untouched, "ADD and DEL");
}

/// What the result says is what there is.
#[test]
fn result() {
    let Some(runtime) = Runtime::or_skip("cni-result") else { return };
    let pod = runtime.pod("c");
    let result = runtime.add(&pod, &web());
    let interfaces = result["interfaces"].as_array().unwrap();
    for (place, described) in
        [(&runtime.world.h, &interfaces[0]), (&runtime.world.h, &interfaces[1]), (&pod.host, &interfaces[2])]
    {
        let there = interface(place, described["name"].as_str().unwrap()).unwrap();
        let mac = there.mac.unwrap().map(|byte| format!("{byte:02x}")).join(":");
        assert_eq!(described["mac"], json!(mac));
        assert_eq!(described["mtu"], json!(there.mtu));
    }
    assert_eq!(interfaces[2]["sandbox"], json!(pod.path()));
    assert_eq!(interfaces[2]["name"], "eth0");
    assert!(interfaces[0].get("sandbox").is_none());
    for (ip, (address, gateway)) in
        result["ips"].as_array().unwrap().iter().zip([("10.9.1.2/24", "10.9.1.1"), ("fd09:1::2/64", "fd09:1::1")])
    {
        assert_eq!(*ip, json!({"interface": 2, "address": address, "gateway": gateway}));
    }
    let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.9.1.1"}, {"dst": "::/0", "gw": "fd09:1::1"}]);
    assert_eq!(result["routes"], routes);
    // Every other version says the same in its own words.
    runtime.del(&pod, &web());
    for (version, address) in [
        ("0.1.0", "/ip4/ip"),
        ("0.2.0", "/ip6/ip"),
        ("0.3.0", "/ips/0/address"),
        ("0.3.1", "/ips/1/address"),
        ("0.4.0", "/ips/0/version"),
        ("1.0.0", "/ips/0/gateway"),
    ] {
        let config = with(&web(), json!({"cniVersion": version}));
        let result = runtime.add(&pod, &config);
        assert_eq!(result["cniVersion"], version);
        assert!(result.pointer(address).is_some_and(Value::is_string), "{version}: {result}");
        runtime.del(&pod, &config);
    }
}

/// Driver `ptp`: the same without a bridge, from ADD to DEL.
#[test]
fn without_a_bridge() {
    let Some(runtime) = Runtime::or_skip("cni-ptp") else { return };
    let untouched = runtime.world.untouched();
    let (site, other) = (runtime.pod("site"), runtime.pod("other"));
    let plain = with(&web(), json!({"driver": "ptp"}));
    let published = with(
        &plain,
        json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        ]}}),
    );
    let result = runtime.add(&site, &published);
    let interfaces = result["interfaces"].as_array().unwrap();
    let (host_end, inside) = (&interfaces[0], &interfaces[1]);
    assert_eq!(interfaces.len(), 2, "as the plugin `ptp` tells: {result}");
    for (place, described) in [(&runtime.world.h, host_end), (&site.host, inside)] {
        let there = interface(place, described["name"].as_str().unwrap()).unwrap();
        assert_eq!(described["mac"], json!(there.mac.unwrap().map(|byte| format!("{byte:02x}")).join(":")));
    }
    assert!(host_end.get("sandbox").is_none());
    assert_eq!((&inside["name"], &inside["sandbox"]), (&json!("eth0"), &json!(site.path())));
    let ips = [("10.9.1.2/24", "10.9.1.1"), ("fd09:1::2/64", "fd09:1::1")];
    let ips = ips.map(|(address, gateway)| json!({"interface": 1, "address": address, "gateway": gateway}));
    assert_eq!(result["ips"], json!(ips));
    let second = runtime.add(&other, &plain);
    let _tcp = TcpServer::start(&site, any(Family::V6, 80), "t80").unwrap();
    let _udp = UdpServer::start(&site, any(Family::V6, 53), "u53").unwrap();
    for family in FAMILIES {
        let (here, there) = (ip(&result, family), ip(&second, family));
        assert!(ping(&other, here, LONG).is_open() && ping(&site, there, LONG).is_open(), "{family:?}");
        assert!(ping(&other, neighbour_ip(family), LONG).is_open(), "{family:?}");
        for from in [&runtime.world.n, &runtime.world.h, &other.host] {
            assert_eq!(tcp_probe(from, at(host_ip(family), 8080), LONG).banner(), Some("t80"), "{family:?}");
            assert_eq!(udp_probe(from, at(host_ip(family), 5353), LONG).banner(), Some("u53"), "{family:?}");
        }
    }
    runtime.world.verify();
    assert_eq!(runtime.call("CHECK", &site, &after(&published, &result)), Ok(Value::Null));
    let mut batch = Batch::new();
    let index = interface(&runtime.world.h, host_end["name"].as_str().unwrap()).unwrap().index;
    addr::delete(&mut batch, index, ip(&web_gateway(&result), Family::V4), 32);
    runtime.world.h.route_socket().unwrap().transact(&batch).unwrap();
    let refusal = runtime.call("CHECK", &site, &after(&published, &result)).expect_err("a gateway address is gone");
    assert!(refusal.msg.contains("10.9.1.1") || refusal.details.contains("10.9.1.1"), "{refusal:?}");
    runtime.del(&site, &published);
    runtime.del(&other, &plain);
    runtime.world.assert_untouched(&untouched, "ADD and DEL");
}

/// A result whose addresses are the gateways of another.
fn web_gateway(result: &Value) -> Value {
    let gateways = result["ips"].as_array().unwrap().iter().map(|ip| json!({"address": ip["gateway"]}));
    json!({"ips": gateways.collect::<Vec<_>>()})
}

#[test]
fn check_looks_at_the_kernel() {
    let Some(runtime) = Runtime::or_skip("cni-check") else { return };
    let pod = runtime.pod("c");
    let config = with(&web(), json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}));
    let result = runtime.add(&pod, &config);
    let check = |config: &Value| runtime.call("CHECK", &pod, &after(config, &result));
    assert_eq!(check(&config).unwrap(), Value::Null);
    assert_eq!(runtime.call("CHECK", &pod, &config).unwrap_err().msg, "Required prevResult missing");
    // An address that somebody took away.
    let index = interface(&pod, "eth0").unwrap().index;
    let mut batch = Batch::new();
    addr::delete(&mut batch, index, "10.9.1.2".parse().unwrap(), 24);
    pod.host.route_socket().unwrap().transact(&batch).unwrap();
    let refusal = check(&config).unwrap_err();
    assert_eq!(refusal.code, 103, "{refusal:?}");
    assert!(refusal.msg.contains("10.9.1.2"), "{refusal:?}");
    runtime.world.portolan_ok(&["reconcile"]);
    check(&config).unwrap();
    // Rules that somebody flushed.
    let flush = runtime.world.h.command("nft").unwrap().args(["delete", "table", "inet", "portolan"]).status();
    assert!(flush.unwrap().success());
    assert_eq!(check(&config).unwrap_err().code, 103);
    runtime.world.portolan_ok(&["reconcile"]);
    // Somebody else's result, and one who was never added.
    let mut other = result.clone();
    other["ips"][0]["address"] = json!("10.9.1.77/24");
    let refusal = runtime.call("CHECK", &pod, &after(&config, &other)).unwrap_err();
    assert_eq!((refusal.code, refusal.msg.as_str()), (103, "interface `eth0` has no address 10.9.1.77/24"));
    runtime.del(&pod, &config);
    assert_eq!(check(&config).unwrap_err().code, 3);
}

/// Twice, never added, without the namespace, and with a configuration that is another by now.
#[test]
fn del_always_succeeds() {
    let Some(runtime) = Runtime::or_skip("cni-del") else { return };
    let untouched = runtime.world.untouched();
    let pod = runtime.pod("c");
    runtime.del(&pod, &web());
    for later in [
        web(),
        with(&web(), json!({"ipam": {"type": "host-local", "subnet": "10.44.0.0/24"}})),
        with(&web(), json!({"ipam": null, "bridge": "cni7"})),
        json!({"cniVersion": "0.3.1", "name": "web", "type": "portolan"}),
    ] {
        runtime.add(&pod, &web());
        runtime.del(&pod, &later);
        runtime.del(&pod, &later);
        runtime.world.assert_untouched(&untouched, &later.to_string());
    }
    runtime.add(&pod, &web());
    // Another interface of the same container is not this one.
    let mut other = runtime.command("DEL", &pod, "portolan");
    other.env("CNI_IFNAME", "eth7");
    answer(&output_of(other, web().to_string().as_bytes())).unwrap();
    assert!(interface(&pod, "eth0").is_some());
    let mut gone = runtime.command("DEL", &pod, "portolan");
    gone.env("CNI_NETNS", "/run/netns/that-is-gone");
    answer(&output_of(gone, web().to_string().as_bytes())).unwrap();
    runtime.world.assert_untouched(&untouched, "DEL without a namespace");
}

#[test]
fn gc_takes_those_that_are_not_listed() {
    let Some(runtime) = Runtime::or_skip("cni-gc") else { return };
    let pods: Vec<Pod> = ["a", "b", "c"].map(|id| runtime.pod(id)).into();
    for pod in &pods {
        runtime.add(pod, &web());
    }
    let far = with(&web(), json!({"name": "far", "ipam": {"type": "host-local", "subnet": "10.9.2.0/24"}}));
    let other = runtime.pod("far");
    runtime.add(&other, &far);
    // One that came another way is not CNI's to take.
    let person = runtime.pod("person");
    runtime.world.portolan_ok(&["attach", "--netns", person.path(), "--name", "person", "--network", "web"]);
    let names = || -> Vec<String> {
        let all = runtime.world.json(&["ps", "-a"]);
        let mut names: Vec<_> =
            all.as_array().unwrap().iter().map(|one| one["Names"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let gc = |valid: Value| runtime.call("GC", &pods[0], &with(&web(), valid)).unwrap();
    gc(json!({"cni.dev/valid-attachments": [
        {"containerID": "b", "ifname": "eth0"}, {"containerID": "c", "ifname": "eth1"},
    ]}));
    assert_eq!(names(), ["b", "far", "person"]);
    assert!(interface(&pods[0], "eth0").is_none() && interface(&pods[1], "eth0").is_some());
    runtime.world.verify();
    let refusal = runtime.refused("GC", &pods[0], &web());
    assert_eq!((refusal.code, refusal.msg.as_str()), (7, "cni.dev/valid-attachments is missing"));
    gc(json!({"cni.dev/attachments": []}));
    assert_eq!(names(), ["far", "person"]);
}

#[test]
fn status_tells_what_an_add_would_say() {
    let Some(runtime) = Runtime::or_skip("cni-status") else { return };
    let (pod, late) = (runtime.pod("c"), runtime.pod("late"));
    let small = with(&web(), json!({"ipam": {"type": "host-local", "subnet": "10.9.1.0/30"}}));
    let before = runtime.world.state();
    assert_eq!(runtime.call("STATUS", &pod, &small).unwrap(), Value::Null);
    before.assert_same(&runtime.world.state(), "STATUS");
    runtime.add(&pod, &small);
    let status = runtime.refused("STATUS", &late, &small);
    let add = runtime.refused("ADD", &late, &small);
    assert_eq!((status.code, add.code), (50, 101));
    assert_eq!(status.msg, add.msg);
    assert!(status.msg.contains("10.9.1.0/30"), "{status:?}");
    let unknown = json!({"cniVersion": "1.1.0", "name": "nowhere", "type": "portolan"});
    assert_eq!(runtime.refused("STATUS", &pod, &unknown).msg, "no network `nowhere`");
}

/// No caller's lock is needed.
#[test]
fn in_parallel() {
    let Some(runtime) = Runtime::or_skip("cni-parallel") else { return };
    let untouched = runtime.world.untouched();
    let pods: Vec<Pod> = (0..100).map(|n| runtime.pod(&format!("c{n}"))).collect();
    let each = |act: &(dyn Fn(&Pod) -> Result<Value, crate::runtime::Refusal> + Sync)| -> Vec<Value> {
        thread::scope(|scope| {
            let all: Vec<_> = pods.iter().map(|pod| scope.spawn(move || act(pod))).collect();
            all.into_iter().map(|one| one.join().unwrap().unwrap()).collect()
        })
    };
    let results = each(&|pod| runtime.call("ADD", pod, &web()));
    let mut addresses: Vec<IpAddr> = results.iter().map(|result| ip(result, Family::V4)).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), pods.len(), "every one has its own");
    for (pod, _) in pods.iter().zip(&results).skip(1) {
        assert!(ping(pod, addresses[0], LONG).is_open());
    }
    runtime.world.verify();
    each(&|pod| runtime.call("DEL", pod, &web()));
    runtime.world.assert_untouched(&untouched, "parallel callers");
}

/// Killed at any step, an ADD leaves what DEL or GC takes away.
#[test]
fn killed_anywhere() {
    let Some(runtime) = Runtime::or_skip("cni-killed") else { return };
    let untouched = runtime.world.untouched();
    let config = with(&web(), json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}));
    let file = runtime.world.lab.dir().join("config");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut deaths = 0;
    for n in 1.. {
        let pod = runtime.pod(&format!("c{n}"));
        let mut command = runtime.command("ADD", &pod, "portolan");
        command.stdin(std::fs::File::open(&file).unwrap()).stdout(std::process::Stdio::null());
        let done = match trace::kill_at(command, CHANGES, n).unwrap() {
            Outcome::Killed { .. } => false,
            Outcome::Finished(status) => {
                assert!(status.success());
                true
            }
        };
        deaths += usize::from(!done);
        if n % 2 == 0 {
            runtime.del(&pod, &config);
        } else {
            let none = with(&config, json!({"cni.dev/valid-attachments": []}));
            runtime.call("GC", &pod, &none).unwrap();
        }
        runtime.world.assert_untouched(&untouched, &format!("death at step {n}"));
        if done {
            break;
        }
    }
    assert!(deaths > 10, "{deaths}");
}
