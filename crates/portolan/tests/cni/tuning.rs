//! What the reference plugin `tuning` sets: sysctls of the namespace, attributes of the interface.

use std::fs;

use portolan_kernel::rtnl::link::{IFF_ALLMULTI, IFF_PROMISC};
use portolan_lab::trace::{self, CHANGES, Outcome};
use serde_json::{Value, json};

use crate::common::interface;
use crate::runtime::{Pod, Runtime, web, with};

const UNPRIVILEGED: &str = "net/ipv4/ip_unprivileged_port_start";

fn sysctl(pod: &Pod, path: &str) -> String {
    pod.host.enter(|| fs::read_to_string(format!("/proc/sys/{path}")).unwrap().trim().replace('\t', " "))
}

/// What of a namespace is tuned here, but for interfaces.
fn namespace(pod: &Pod) -> [String; 2] {
    [UNPRIVILEGED, "net/ipv4/ping_group_range"].map(|path| sysctl(pod, path))
}

fn tuned() -> Value {
    with(
        &web(),
        json!({
            "sysctl": {
                "net.ipv4.ip_unprivileged_port_start": "80",
                "net/ipv4/ping_group_range": "0 2147483647",
                "net.ipv4.conf.IFNAME.arp_filter": "1",
            },
            "promisc": true, "allmulti": true, "txQLen": 77, "mac": "02:11:22:33:44:55",
        }),
    )
}

#[test]
fn settings() {
    let Some(runtime) = Runtime::or_skip("cni-tuning") else { return };
    let untouched = runtime.world.untouched();
    let pod = runtime.pod("c");
    let before = namespace(&pod);
    let config = tuned();
    let result = runtime.add(&pod, &config);
    assert_eq!(result["interfaces"][2]["mac"], "02:11:22:33:44:55");
    assert_eq!(namespace(&pod), ["80", "0 2147483647"]);
    assert_eq!(sysctl(&pod, "net/ipv4/conf/eth0/arp_filter"), "1");
    let attributes = || {
        let link = interface(&pod, "eth0").unwrap();
        (link.flags & IFF_PROMISC != 0, link.flags & IFF_ALLMULTI != 0, link.tx_queue_len)
    };
    assert_eq!(attributes(), (true, true, 77));
    let check = || runtime.call("CHECK", &pod, &with(&config, json!({"prevResult": result})));
    check().unwrap();
    runtime.world.verify();
    // Each of them is looked at, and put back.
    for (path, part) in [
        (UNPRIVILEGED, "ip_unprivileged_port_start = 80"),
        ("net/ipv4/conf/eth0/arp_filter", "net.ipv4.conf.eth0.arp_filter = 1"),
    ] {
        pod.host.sysctl(&path.split('/').collect::<Vec<_>>(), "0").unwrap();
        let refusal = check().unwrap_err();
        assert!(refusal.code == 103 && refusal.msg.contains(part), "{refusal:?}");
        runtime.world.portolan_ok(&["reconcile"]);
        check().unwrap();
    }
    let link = |args: &[&str]| {
        assert!(pod.host.command("ip").unwrap().args(["link", "set", "eth0"]).args(args).status().unwrap().success());
    };
    for args in [&["promisc", "off"][..], &["allmulticast", "off"], &["txqueuelen", "5"]] {
        link(args);
        assert_eq!(check().unwrap_err().code, 103, "{args:?}");
        runtime.world.portolan_ok(&["reconcile"]);
        assert_eq!(attributes(), (true, true, 77));
    }
    // The namespace lives on, as it was.
    runtime.del(&pod, &config);
    assert_eq!(namespace(&pod), before);
    runtime.world.assert_untouched(&untouched, "tuning");
    // Who turns to promiscuous mode without being asked to is left alone.
    let plain = runtime.add(&pod, &web());
    link(&["promisc", "on"]);
    runtime.call("CHECK", &pod, &with(&web(), json!({"prevResult": plain}))).unwrap();
}

/// Two networks of one container ask for the same setting; what was there before both comes back with the last.
#[test]
fn two_attachments() {
    let Some(runtime) = Runtime::or_skip("cni-tuning-two") else { return };
    let pod = runtime.pod("c");
    let before = namespace(&pod);
    let port = |name: &str, subnet: &str, port: &str| {
        json!({"cniVersion": "1.1.0", "name": name, "type": "portolan", "ipam": {"type": "host-local", "subnet": subnet},
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": port}})
    };
    let call = |verb: &str, config: &Value, ifname: &str| {
        let mut command = runtime.command(verb, &pod, "portolan");
        command.env("CNI_IFNAME", ifname);
        let output = crate::runtime::output_of(command, config.to_string().as_bytes());
        crate::runtime::answer(&output).unwrap();
        sysctl(&pod, UNPRIVILEGED)
    };
    for (second, first_goes) in [("80", "80"), ("90", "90")] {
        let (one, two) = (port("one", "10.9.1.0/24", "80"), port("two", "10.9.2.0/24", second));
        assert_eq!(call("ADD", &one, "eth0"), "80");
        assert_eq!(call("ADD", &two, "eth1"), second);
        assert_eq!(call("DEL", &one, "eth0"), first_goes);
        runtime.world.verify();
        call("DEL", &two, "eth1");
        assert_eq!(namespace(&pod), before);
        // And the other way round.
        call("ADD", &one, "eth0");
        call("ADD", &two, "eth1");
        assert_eq!(call("DEL", &two, "eth1"), "80");
        call("DEL", &one, "eth0");
        assert_eq!(namespace(&pod), before);
    }
    // What somebody has changed since is theirs.
    let one = port("one", "10.9.1.0/24", "80");
    call("ADD", &one, "eth0");
    pod.host.sysctl(&["net", "ipv4", "ip_unprivileged_port_start"], "81").unwrap();
    assert_eq!(call("DEL", &one, "eth0"), "81");
}

#[test]
fn refused() {
    let Some(runtime) = Runtime::or_skip("cni-tuning-refused") else { return };
    let pod = runtime.pod("c");
    let before = namespace(&pod);
    for (key, value, part) in [
        ("kernel.hostname", "x", "does not belong to the network namespace"),
        ("net/../kernel/hostname", "x", "has an empty part"),
        ("../net/ipv4/ip_forward", "1", "does not belong"),
        ("net", "1", "does not belong"),
        ("net.ipv4.no_such", "1", "no_such"),
        ("net.ipv4.conf.IFNAME.no_such", "1", "no_such"),
        ("net/ipv4/ping_group_range", "no numbers", "ping_group_range"),
        ("net.ipv4.ping_group_range", "0 0", "is given twice"),
    ] {
        let mut config = tuned();
        config["sysctl"][key] = json!(value);
        let refusal = runtime.refused("ADD", &pod, &config);
        assert!(refusal.code == 7 && refusal.msg.contains(part), "{key}: {refusal:?}");
        assert_eq!(namespace(&pod), before, "{key}");
        assert!(interface(&pod, "eth0").is_none(), "{key}");
        if part.starts_with("does not") {
            assert_eq!(runtime.refused("STATUS", &pod, &config).code, 50, "{key}");
        }
    }
    let twice =
        tuned().to_string().replacen("\"sysctl\":{", "\"sysctl\":{\"net.ipv4.ip_unprivileged_port_start\":\"81\",", 1);
    let output = crate::runtime::output_of(runtime.command("ADD", &pod, "portolan"), twice.as_bytes());
    let refusal = crate::runtime::answer(&output).unwrap_err();
    assert_eq!((refusal.code, refusal.msg.as_str()), (7, "duplicated sysctl keys are not allowed"));
    assert_eq!(namespace(&pod), before);
}

/// An ADD that is killed at any change leaves nothing that DEL does not take back.
#[test]
fn killed_anywhere() {
    let Some(runtime) = Runtime::or_skip("cni-tuning-killed") else { return };
    let pod = runtime.pod("c");
    let before = namespace(&pod);
    let config = tuned();
    let file = runtime.world.lab.dir().join("config");
    fs::write(&file, config.to_string()).unwrap();
    let (mut deaths, mut after) = (0, 0);
    for n in 1.. {
        let mut command = runtime.command("ADD", &pod, "portolan");
        command.stdin(fs::File::open(&file).unwrap()).stdout(std::process::Stdio::null());
        match trace::kill_at(command, CHANGES, n).unwrap() {
            Outcome::Killed { .. } => deaths += 1,
            Outcome::Finished(status) => {
                assert!(status.success());
                break;
            }
        }
        after += usize::from(namespace(&pod) != before);
        runtime.del(&pod, &config);
        assert_eq!(namespace(&pod), before, "death at step {n}");
    }
    runtime.del(&pod, &config);
    assert_eq!(namespace(&pod), before);
    assert!(deaths > 10 && after > 0, "{deaths} deaths, {after} of them after a setting was changed");
}

/// `portolan attach --sysctl`.
#[test]
fn for_people() {
    let Some(runtime) = Runtime::or_skip("cni-tuning-people") else { return };
    let pod = runtime.pod("c");
    let before = namespace(&pod);
    let setting = "net.ipv4.ip_unprivileged_port_start=80";
    for network in ["none", "bridge"] {
        let world = &runtime.world;
        world.portolan_ok(&["attach", "--netns", pod.path(), "--name", "c", "--network", network, "--sysctl", setting]);
        assert_eq!(namespace(&pod)[0], "80", "{network}");
        let details: Value = serde_json::from_str(&world.portolan_ok(&["inspect", "c"])).unwrap();
        assert_eq!(details.pointer("/0/HostConfig/Sysctls/net.ipv4.ip_unprivileged_port_start"), Some(&json!("80")));
        world.verify();
        pod.host.sysctl(&["net", "ipv4", "ip_unprivileged_port_start"], "82").unwrap();
        assert!(!world.portolan(&["verify"]).status.success(), "{network}");
        world.portolan_ok(&["reconcile"]);
        assert_eq!(namespace(&pod)[0], "80", "{network}");
        world.portolan_ok(&["detach", "c"]);
        assert_eq!(namespace(&pod), before, "{network}");
    }
    let wrong = ["attach", "--netns", pod.path(), "--network", "bridge", "--sysctl", "net.ipv4.no_such=1"];
    assert!(runtime.world.refused(&wrong).contains("no_such"));
    assert_eq!(namespace(&pod), before);
}

/// What we set on every interface ourselves, such as the reverse-path filter, is as it was asked for after a repair, too.
#[test]
fn repaired() {
    let Some(runtime) = Runtime::or_skip("cni-tuning-repaired") else { return };
    let pod = runtime.pod("c");
    let config = with(&web(), json!({"sysctl": {"net.ipv4.conf.IFNAME.rp_filter": "1"}}));
    runtime.add(&pod, &config);
    assert_eq!(sysctl(&pod, "net/ipv4/conf/eth0/rp_filter"), "1");
    let flushed = pod.host.command("ip").unwrap().args(["addr", "flush", "dev", "eth0", "scope", "global"]).status();
    assert!(flushed.unwrap().success());
    runtime.world.portolan_ok(&["reconcile"]);
    assert_eq!(sysctl(&pod, "net/ipv4/conf/eth0/rp_filter"), "1");
    runtime.world.verify();
}

/// Interfaces without an end on the host have the same attributes.
#[test]
fn on_macvlan() {
    let Some(runtime) = Runtime::or_skip("cni-tuning-macvlan") else { return };
    let pod = runtime.pod("c");
    let lan = json!({"parent": "eth0", "ipam": {"type": "host-local", "subnet": "10.0.1.0/24", "rangeStart": "10.0.1.100",
        "gateway": "10.0.1.2"}});
    let config = with(&with(&tuned(), lan), json!({"mac": ""}));
    let before = namespace(&pod);
    let result = runtime.add(&pod, &config);
    let link = interface(&pod, "eth0").unwrap();
    assert_eq!((link.flags & IFF_PROMISC != 0, link.flags & IFF_ALLMULTI != 0, link.tx_queue_len), (true, true, 77));
    assert_eq!(namespace(&pod)[0], "80");
    runtime.call("CHECK", &pod, &with(&config, json!({"prevResult": result}))).unwrap();
    runtime.del(&pod, &config);
    assert_eq!(namespace(&pod), before);
}
