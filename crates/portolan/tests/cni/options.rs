//! What configurations and runtimes can ask for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::Family;
use portolan_kernel::rtnl::link::{self, BridgeSpec};
use portolan_lab::probe::ping;
use serde_json::{Value, json};

use crate::common::{LONG, addresses, interface, neighbour_ip};
use crate::runtime::{Runtime, addresses_of, answer, output_of, web, with};

/// A network that people made with `portolan network create`.
#[test]
fn a_network_of_the_store() {
    let Some(runtime) = Runtime::or_skip("cni-store") else { return };
    runtime.world.network("shop", &["--subnet", "10.50.0.0/24", "--ipv6=false", "--internal"]);
    let pod = runtime.pod("c");
    for config in [
        json!({"cniVersion": "1.0.0", "name": "shop", "type": "portolan"}),
        json!({"cniVersion": "1.0.0", "name": "whatever", "type": "portolan", "network": "shop"}),
    ] {
        let result = runtime.add(&pod, &config);
        assert_eq!(addresses_of(&result).len(), 1);
        assert!(result.get("routes").is_none(), "it is internal: {result}");
        assert!(!ping(&pod, neighbour_ip(Family::V4), crate::common::SHORT).is_open());
        runtime.del(&pod, &config);
    }
    runtime.world.portolan_ok(&["network", "inspect", "shop"]);
    let both = json!({"cniVersion": "1.0.0", "name": "a", "type": "portolan", "network": "shop", "bridge": "x0"});
    let refusal = runtime.refused("ADD", &pod, &both);
    assert_eq!(refusal.code, 7);
    assert!(refusal.msg.contains("`bridge` would describe another"), "{refusal:?}");
}

#[test]
fn ranges() {
    let Some(runtime) = Runtime::or_skip("cni-ranges") else { return };
    let range =
        json!({"subnet": "10.9.1.0/24", "rangeStart": "10.9.1.50", "rangeEnd": "10.9.1.51", "gateway": "10.9.1.254"});
    let config = with(&web(), json!({"ipam": {"type": "portolan", "ranges": [[range]]}}));
    let pods = ["a", "b", "c"].map(|id| runtime.pod(id));
    let one = runtime.add(&pods[0], &config);
    assert_eq!(one["ips"][0]["gateway"], "10.9.1.254");
    let given = [addresses_of(&one), addresses_of(&runtime.add(&pods[1], &config))].concat();
    assert_eq!(given, ["10.9.1.50/24", "10.9.1.51/24"]);
    let refusal = runtime.refused("ADD", &pods[2], &config);
    assert_eq!(refusal.code, 101);
    assert!(refusal.msg.contains("10.9.1.50/31"), "{refusal:?}");
    runtime.del(&pods[0], &config);
    assert_eq!(addresses_of(&runtime.add(&pods[2], &config)), ["10.9.1.50/24"]);
    // The runtime's ranges are instead of the configuration's.
    for pod in &pods {
        runtime.del(pod, &config);
    }
    let capability = with(&config, json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.9.3.0/24"}]]}}));
    assert_eq!(addresses_of(&runtime.add(&pods[0], &capability)), ["10.9.3.2/24"]);
}

/// By the runtime, by `args.cni`, by `CNI_ARGS`.
#[test]
fn addresses_and_macs_asked_for() {
    let Some(runtime) = Runtime::or_skip("cni-asked") else { return };
    let pod = runtime.pod("c");
    let mac = "02:11:22:33:44:55";
    for (keys, args) in [
        (json!({"runtimeConfig": {"ips": ["10.9.1.77/24", "fd09:1::77"], "mac": mac}}), ""),
        (json!({"args": {"cni": {"ips": ["10.9.1.77", "fd09:1::77"], "mac": mac}}}), "MAC=02:00:00:00:00:01"),
        (json!({}), "IgnoreUnknown=1;IP=10.9.1.77,fd09:1::77;MAC=02:11:22:33:44:55"),
    ] {
        let config = with(&web(), keys);
        let mut command = runtime.command("ADD", &pod, "portolan");
        command.env("CNI_ARGS", args);
        let result = answer(&output_of(command, config.to_string().as_bytes())).unwrap();
        assert_eq!(addresses_of(&result), ["10.9.1.77/24", "fd09:1::77/64"], "{args}");
        assert_eq!(result["interfaces"][2]["mac"], mac);
        assert_eq!(interface(&pod, "eth0").unwrap().mac.unwrap(), [2, 0x11, 0x22, 0x33, 0x44, 0x55]);
        runtime.del(&pod, &config);
    }
    let outside = with(&web(), json!({"runtimeConfig": {"ips": ["10.10.1.77/24"]}}));
    assert!(runtime.refused("ADD", &pod, &outside).msg.contains("10.10.1.77"));
}

/// Kubernetes' words come back as labels, and pods are found by name and namespace.
#[test]
fn kubernetes_says_which_pod_it_is() {
    let Some(runtime) = Runtime::or_skip("cni-pod") else { return };
    let pod = runtime.pod("c");
    let mut command = runtime.command("ADD", &pod, "portolan");
    command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=till-0;K8S_POD_UID=7");
    answer(&output_of(command, web().to_string().as_bytes())).unwrap();
    let details = runtime.world.json(&["inspect", "c"]);
    let text = details.to_string();
    for part in ["io.kubernetes.pod.name\":\"till-0", "io.kubernetes.pod.namespace\":\"shop", "till-0.shop"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Addresses of another plugin, and of nobody but the configuration.
#[test]
fn other_ipam() {
    let Some(runtime) = Runtime::or_skip("cni-ipam") else { return };
    let untouched = runtime.world.untouched();
    let pod = runtime.pod("c");
    let fixed = with(
        &web(),
        json!({"ipam": {"type": "static", "addresses": [{"address": "10.9.1.9/24", "gateway": "10.9.1.1"}, {"address": "fd09:1::9/64"}],
            "routes": [{"dst": "10.60.0.0/16", "gw": "10.9.1.3"}], "dns": {"nameservers": ["10.9.1.53"]}}}),
    );
    let result = runtime.add(&pod, &fixed);
    assert_eq!(addresses_of(&result), ["10.9.1.9/24", "fd09:1::9/64"]);
    assert_eq!(result["dns"]["nameservers"], json!(["10.9.1.53"]));
    assert!(
        result["routes"].as_array().unwrap().contains(&json!({"dst": "10.60.0.0/16", "gw": "10.9.1.3"})),
        "{result}"
    );
    runtime.del(&pod, &fixed);

    let original = Path::new("/usr/lib/cni/host-local");
    if !original.exists() {
        eprintln!("SKIP: no `{}` (package containernetworking-plugins)", original.display());
        return;
    }
    symlink(original, runtime.bin.join("host-local-of-debian")).unwrap();
    let leases = runtime.world.lab.dir().join("leases");
    let ipam = json!({"type": "host-local-of-debian", "dataDir": leases, "subnet": "10.9.4.0/24", "routes": [{"dst": "0.0.0.0/0"}]});
    let theirs = with(&web(), json!({"cniVersion": "1.0.0", "driver": "bridge", "ipam": ipam}));
    let result = runtime.add(&pod, &theirs);
    assert_eq!(addresses_of(&result), ["10.9.4.2/24"]);
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.9.4.1"}]));
    assert!(addresses(&pod, "eth0").contains(&"10.9.4.2".parse().unwrap()));
    let lease = leases.join("web/10.9.4.2");
    assert!(fs::read_to_string(&lease).unwrap().starts_with("c"));
    runtime.world.verify();
    runtime.call("CHECK", &pod, &with(&theirs, json!({"prevResult": result}))).unwrap();
    // What fails after the address was given gives it back.
    let late = runtime.pod("late");
    let taken = with(&theirs, json!({"mtu": 40}));
    runtime.refused("ADD", &late, &taken);
    assert_eq!(
        fs::read_dir(leases.join("web"))
            .unwrap()
            .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with("10."))
            .count(),
        1
    );
    runtime.del(&pod, &theirs);
    assert!(!lease.exists());
    runtime.world.assert_untouched(&untouched, "another's addresses");
}

/// A bridge that somebody else made, with its address.
#[test]
fn unmanaged_bridge() {
    let Some(runtime) = Runtime::or_skip("cni-unmanaged") else { return };
    let mut batch = Batch::new();
    link::create_bridge(&mut batch, &BridgeSpec { name: "own0", up: true, ..BridgeSpec::default() });
    runtime.world.h.route_socket().unwrap().transact(&batch).unwrap();
    runtime.world.h.add_address("own0", "10.9.8.1/24").unwrap();
    let pod = runtime.pod("c");
    let config = with(
        &web(),
        json!({"bridge": "own0", "mode": "unmanaged", "ipam": {"subnet": "10.9.8.0/24", "gateway": "10.9.8.1"}}),
    );
    let result = runtime.add(&pod, &config);
    assert_eq!(result["interfaces"][0]["name"], "own0");
    assert!(ping(&pod, "10.9.8.1".parse().unwrap(), LONG).is_open());
    assert!(result["dns"].get("nameservers").is_none(), "nobody answers names there: {result}");
    runtime.del(&pod, &config);
    assert!(interface(&runtime.world.h, "own0").is_some());
}

#[test]
fn macvlan() {
    let Some(runtime) = Runtime::or_skip("cni-macvlan") else { return };
    let untouched = runtime.world.untouched();
    let pod = runtime.pod("c");
    let config = json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "portolan", "driver": "macvlan", "parent": "eth0", "mode": "bridge",
        "ipam": {"type": "host-local", "subnet": "10.0.1.0/24", "rangeStart": "10.0.1.50", "gateway": "10.0.1.2"},
    });
    let result = runtime.add(&pod, &config);
    assert_eq!(addresses_of(&result), ["10.0.1.50/24"]);
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 1);
    assert!(ping(&pod, neighbour_ip(Family::V4), LONG).is_open());
    runtime.call("CHECK", &pod, &with(&config, json!({"prevResult": result}))).unwrap();
    runtime.del(&pod, &config);
    runtime.world.assert_untouched(&untouched, "macvlan");
}

#[test]
fn loopback() {
    let Some(runtime) = Runtime::or_skip("cni-loopback") else { return };
    let pod = runtime.pod("c");
    let config = json!({"cniVersion": "0.4.0", "name": "lo", "type": "loopback"});
    // The lab's hosts have it up.
    runtime.del(&pod, &config);
    assert!(!interface(&pod, "lo").unwrap().up);
    let result = runtime.add(&pod, &config);
    assert!(interface(&pod, "lo").unwrap().up);
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(addresses_of(&result), ["127.0.0.1/8", "::1/128"]);
    let check = with(&config, json!({"prevResult": result}));
    runtime.call("CHECK", &pod, &check).unwrap();
    let chained = runtime.add(&pod, &check);
    assert_eq!(chained, result);
    runtime.del(&pod, &config);
    assert_eq!(runtime.call("CHECK", &pod, &check).unwrap_err().msg, "loopback interface is down");
}

/// Limits of bandwidth by the runtime, as containerd writes them, and by the configuration.
#[test]
fn bandwidth() {
    let Some(runtime) = Runtime::or_skip("cni-bandwidth") else { return };
    let pod = runtime.pod("c");
    let untouched = runtime.world.untouched();
    let limits = || {
        let details = runtime.world.json(&["inspect", "c"]);
        let networks = details[0]["NetworkSettings"]["Networks"].as_object().unwrap().clone();
        networks.values().next().unwrap().get("Bandwidth").cloned()
    };
    let flat = json!({"ingressRate": 1_000_000, "ingressBurst": 80_000, "egressRate": 0, "egressBurst": 0});
    let containerd = json!({"IngressRate": 2_000_000, "IngressBurst": u32::MAX, "EgressRate": 3_000_000,
        "EgressBurst": u32::MAX});
    for (keys, wanted) in [
        (flat.clone(), Some(json!({"In": {"Rate": 1_000_000, "Burst": 80_000}}))),
        (
            json!({"runtimeConfig": {"bandwidth": containerd}}),
            Some(json!({"In": {"Rate": 2_000_000}, "Out": {"Rate": 3_000_000}})),
        ),
        (json!({"runtimeConfig": {"bandwidth": {}}}), None),
        (json!({"runtimeConfig": {"bandwidth": null}}), None),
    ] {
        let config = with(&web(), keys);
        let result = runtime.add(&pod, &config);
        assert_eq!(limits(), wanted, "{config}");
        runtime.world.verify();
        let check = with(&config, json!({"prevResult": result}));
        assert_eq!(runtime.call("CHECK", &pod, &check), Ok(Value::Null));
        if wanted.is_some() {
            // CHECK asks the kernel.
            let end = result["interfaces"][1]["name"].as_str().unwrap();
            let mut command = std::process::Command::new("tc");
            command.args(["qdisc", "del", "dev", end, "root"]);
            assert!(runtime.world.h.adopt(command).unwrap().status().unwrap().success());
            let refusal = runtime.refused("CHECK", &pod, &check);
            assert!(refusal.msg.contains("limit of "), "{refusal:?}");
        }
        runtime.del(&pod, &config);
        runtime.world.assert_untouched(&untouched, "a limited container");
    }
    for (keys, part) in [
        (json!({"ingressRate": 1_000_000}), "if rate is set, burst must also be set"),
        (json!({"egressBurst": 1_000_000}), "if burst is set, rate must also be set"),
        (json!({"egressRate": 1, "egressBurst": 8_u64 << 32}), "burst cannot be more than 4GB"),
        (json!({"egressRate": u64::MAX, "egressBurst": 80_000}), "rate `18446744073709551615`"),
        (json!({"runtimeConfig": {"bandwidth": {"EgressRate": 8000}}}), "if rate is set, burst must also be set"),
        (with(&flat, json!({"unshapedSubnets": ["10.0.0.0/8"]})), "`unshapedSubnets` is not supported"),
    ] {
        let refusal = runtime.refused("ADD", &pod, &with(&web(), keys));
        assert_eq!(refusal.code, 7, "{refusal:?}");
        assert!(refusal.msg.contains(part), "{part}: {refusal:?}");
    }
    let child = json!({"cniVersion": "1.0.0", "name": "lan", "type": "portolan", "driver": "macvlan", "parent": "eth0",
        "ipam": {"type": "portolan", "subnet": "10.0.1.0/24"}, "ingressRate": 8000, "ingressBurst": 8000});
    let refusal = runtime.refused("ADD", &pod, &child);
    assert_eq!(refusal.code, 7, "{refusal:?}");
    assert!(refusal.msg.contains("driver `macvlan`"), "{refusal:?}");
}
