//! Bad input: a clear error with the spec's code, and nothing changes.

use serde_json::{Value, json};

use crate::runtime::{Refusal, Runtime, answer, output_of, web, with};

#[test]
fn environment() {
    let Some(runtime) = Runtime::or_skip("cni-environment") else { return };
    let pod = runtime.pod("c");
    let refused = |key: &str, value: Option<&str>| -> Refusal {
        let before = runtime.world.state();
        let mut command = runtime.command("ADD", &pod, "portolan");
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
        let refusal = answer(&output_of(command, web().to_string().as_bytes())).unwrap_err();
        before.assert_same(&runtime.world.state(), &refusal.msg);
        refusal
    };
    for key in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
        assert_eq!(
            refused(key, None),
            Refusal { code: 4, msg: format!("required env variables [{key}] missing"), details: String::new() }
        );
    }
    for (key, value, code) in [
        ("CNI_COMMAND", "PUT", 4),
        ("CNI_CONTAINERID", "../../etc", 4),
        ("CNI_IFNAME", "interface-of-16b", 4),
        ("CNI_IFNAME", "a/b", 4),
        ("CNI_IFNAME", ".", 4),
        ("CNI_IFNAME", "lo", 100),
        ("CNI_NETNS", "/run/netns/that-is-gone", 8),
        ("CNI_NETNS", "/etc/passwd", 8),
        ("CNI_NETNS", "/proc/self/ns/net", 8),
        ("CNI_ARGS", "IP", 4),
        ("CNI_ARGS", "IP=x", 7),
        ("CNI_ARGS", "MAC=x", 7),
    ] {
        let refusal = refused(key, Some(value));
        assert_eq!(refusal.code, code, "{key}={value}: {refusal:?}");
    }
}

#[test]
fn configuration() {
    let Some(runtime) = Runtime::or_skip("cni-configuration") else { return };
    let pod = runtime.pod("c");
    let huge = format!(r#"{{"cniVersion":"1.0.0","name":"{}"}}"#, "x".repeat(20 << 20));
    for (text, code) in [
        (String::new(), 6),
        ("{".to_owned(), 6),
        ("[]".to_owned(), 6),
        ("\0".to_owned(), 6),
        ("[".repeat(100_000), 6),
        (huge, 6),
        (r#"{"cniVersion":"1.0.0"}"#.to_owned(), 7),
        (r#"{"cniVersion":"1.0.0","name":"../x"}"#.to_owned(), 7),
        (r#"{"cniVersion":"7.0.0","name":"x"}"#.to_owned(), 1),
    ] {
        let before = runtime.world.state();
        let refusal = answer(&output_of(runtime.command("ADD", &pod, "portolan"), text.as_bytes())).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal:?}");
        before.assert_same(&runtime.world.state(), &refusal.msg);
    }
    let port = |mapping: Value| json!({"runtimeConfig": {"portMappings": [mapping]}});
    for (keys, code, part) in [
        (json!({"driver": "token-ring"}), 7, "token-ring"),
        (json!({"driver": "host"}), 7, "holds no containers"),
        (json!({"driver": "macvlan", "parent": "eth9"}), 7, "eth9"),
        (json!({"driver": "ptp", "bridge": "br0"}), 7, "is for bridges"),
        (json!({"driver": "ptp", "mode": "unmanaged"}), 7, "is for bridges"),
        (json!({"driver": "ptp", "parent": "eth0"}), 7, "parent"),
        (json!({"driver": "ptp", "ipam": null}), 50, "with ptp"),
        (json!({"driver": "ptp", "ipam": {"type": "dhcp"}}), 50, "with ptp"),
        (
            json!({"driver": "ptp", "ipam": {"type": "static", "addresses": [{"address": "10.9.1.7/24"}]}}),
            7,
            "no gateway",
        ),
        (json!({"ipam": {"type": "host-local"}}), 7, "no IP ranges specified"),
        (json!({"ipam": {"type": "host-local", "subnet": "10.9.1.7/24"}}), 7, "host bits"),
        (json!({"ipam": {"type": "host-local", "subnet": "10.9.1.0/24", "rangeStart": "10.9.2.1"}}), 7, "range"),
        (json!({"ipam": {"type": "../../bin/sh", "subnet": "10.9.1.0/24"}}), 7, "invalid plugin name"),
        (json!({"ipam": {"type": "nobody", "subnet": "10.9.1.0/24"}}), 7, "failed to find plugin"),
        (json!({"ipam": {"type": "host-local", "ranges": [[]]}}), 7, "empty range set"),
        (json!({"options": {"colour": "red"}}), 7, "colour"),
        (json!({"mtu": 40}), 7, "mtu=40"),
        (port(json!({"hostPort": 0, "containerPort": 80})), 7, "Invalid host port number: 0"),
        (port(json!({"hostPort": 80, "containerPort": 70000})), 7, "Invalid container port number: 70000"),
        (port(json!({"hostPort": 80, "containerPort": 80, "protocol": "icmp"})), 7, "icmp"),
        (port(json!({"hostPort": 80, "containerPort": 80, "hostIP": "x"})), 7, "Invalid host IP"),
        (port(json!({"hostPort": 80, "containerPort": 80, "hostIP": "203.0.113.9"})), 7, "203.0.113.9"),
    ] {
        let refusal = runtime.refused("ADD", &pod, &with(&web(), keys.clone()));
        assert_eq!(refusal.code, code, "{keys}: {refusal:?}");
        assert!(refusal.msg.contains(part), "{keys}: {refusal:?}");
    }
}

/// Ports and containers are had once.
#[test]
fn taken() {
    let Some(runtime) = Runtime::or_skip("cni-taken") else { return };
    let (one, two) = (runtime.pod("one"), runtime.pod("two"));
    let config = with(&web(), json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}));
    runtime.add(&one, &config);
    let refusal = runtime.refused("ADD", &two, &config);
    assert_eq!(refusal.code, 100);
    assert!(refusal.msg.contains("8080") && refusal.msg.contains("`one`"), "{refusal:?}");
    assert_eq!(runtime.refused("ADD", &one, &config).code, 100, "it is there already");
    // A network keeps its shape while somebody is on it.
    let other = with(&web(), json!({"ipam": {"type": "host-local", "subnet": "10.44.0.0/24"}}));
    let refusal = runtime.refused("ADD", &two, &other);
    assert_eq!(refusal.code, 100);
    assert!(refusal.msg.contains("in another shape"), "{refusal:?}");
}

#[test]
fn verbs_have_their_versions() {
    let Some(runtime) = Runtime::or_skip("cni-verbs") else { return };
    let pod = runtime.pod("c");
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        let refusal = runtime.refused(verb, &pod, &with(&web(), json!({"cniVersion": version})));
        assert_eq!((refusal.code, refusal.msg), (1, format!("config version does not allow {verb}")));
    }
    let versions = runtime.call("VERSION", &pod, &web()).unwrap();
    assert_eq!(versions["supportedVersions"].as_array().unwrap().len(), 7);
    // Without a verb it says what it is, as the reference plugins do.
    let mut command = runtime.command("ADD", &pod, "loopback");
    command.env_remove("CNI_COMMAND");
    let output = output_of(command, b"");
    assert!(output.status.success() && output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("CNI loopback plugin v1."), "{said}");
    assert!(said.contains("CNI protocol versions supported: 0.1.0, 0.2.0"), "{said}");
}
