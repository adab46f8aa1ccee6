//! `firewall` after the originals' `bridge` and `host-local`: what passes, whatever the host's own rules are.

use std::process::Stdio;

use portolan_kernel::rtnl::Family;
use portolan_lab::Host;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;
use serde_json::{Value, json};

use crate::beside::{Chain, Pair, Side};
use crate::common::{FAMILIES, LONG, SHORT, any, at, neighbour_ip};
use crate::portmap::{bridge, originals};
use crate::runtime::Pod;

fn firewall(options: &Value) -> Value {
    // firewalld may run on this machine, and is not what these tests are about.
    let mut config = json!({"type": "firewall", "backend": "iptables"});
    config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    config
}

/// Runs a program on `host`; what it prints.
#[track_caller]
fn run(host: &Host, line: &str) -> String {
    let mut words = line.split(' ');
    let output = host.command(words.next().unwrap()).unwrap().args(words).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{line}");
    String::from_utf8(output.stdout).unwrap()
}

/// The rules of the table `filter` without comments of ours, chains in order.
pub(crate) fn rules(side: &Side) -> Vec<String> {
    ["iptables", "ip6tables"]
        .iter()
        .flat_map(|tool| {
            let text = run(&side.world.h, &format!("{tool}-save -t filter"));
            let lines: Vec<String> = text.lines().filter(|line| line.starts_with("-A ")).map(without_owner).collect();
            lines
        })
        .collect()
}

fn without_owner(line: &str) -> String {
    match line.split_once("-m comment --comment \"cni ") {
        Some((before, after)) => format!("{before}{}", after.split_once("\" ").unwrap().1),
        None => line.to_owned(),
    }
}

/// Lets the host forward nothing by itself, as Docker does.
fn close(side: &Side) {
    for tool in ["iptables", "ip6tables"] {
        run(&side.world.h, &format!("{tool} -P FORWARD DROP"));
    }
    for (to, family) in [("10.4.0.0/24", Family::V4), ("fd00:4::/64", Family::V6)] {
        let _ = side.world.n.add_route(to, &crate::common::host_ip(family).to_string());
    }
}

fn address(result: &Value, family: Family) -> std::net::IpAddr {
    let index = usize::from(family == Family::V6);
    result["ips"][index]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
}

/// Whether a connection comes about.
pub(crate) fn opens(from: &Pod, to: std::net::SocketAddr) -> bool {
    (0..6).any(|_| tcp_probe(from, to, SHORT).is_open())
}

/// Waits until the host reaches a pod's addresses, which no rule of these tests forbids: the originals' bridge looks for
/// duplicates of its own IPv6 addresses first (RFC 4862, 5.4), and asks for no neighbour before.
fn settle(side: &Side, result: &Value) {
    for family in FAMILIES {
        let pod = address(result, family);
        assert!(ping(&side.world.h, pod, LONG).is_open(), "the host does not reach {pod}");
    }
}

/// Out to the neighbour.
fn passes(side: &Side, pod: &Pod) -> Vec<String> {
    let lan = TcpServer::start(&side.world.n, any(Family::V6, 7000), "lan").unwrap();
    let mut seen = Vec::new();
    for (family, gateway) in [(Family::V4, "10.4.0.1"), (Family::V6, "fd00:4::1")] {
        // As in `settle`.
        assert!(ping(pod, gateway.parse().unwrap(), LONG).is_open(), "the pod does not reach {gateway}");
        seen.push(format!("out {family:?} {}", opens(pod, at(neighbour_ip(family), lan.addr().port()))));
    }
    seen
}

#[test]
fn a_host_that_forwards_nothing() {
    let Some(pair) = Pair::or_skip("firewall-drop") else { return };
    originals(&pair);
    [&pair.ours, &pair.theirs].into_iter().for_each(close);
    for (name, options) in [
        ("open", json!({})),
        ("admin", json!({"iptablesAdminChainName": "MY-ADMIN"})),
        ("same", json!({"ingressPolicy": "same-bridge"})),
    ] {
        let chain = Chain::new(name, [bridge(), firewall(&options)]).versions(&["0.4.0", "1.0.0"]);
        pair.same(&chain, |side, pod| (passes(side, pod), rules(side)));
        let [ours, theirs] = [&pair.ours, &pair.theirs].map(rules);
        let isolation = |rules: &[String]| rules.iter().filter(|rule| rule.contains("ISOLATION")).count();
        assert_eq!(isolation(&ours), 0, "{ours:#?}");
        if name == "same" {
            assert!(isolation(&theirs) > 0, "theirs stay, which is a difference: {theirs:#?}");
        } else {
            assert_eq!(ours, theirs, "{name}");
        }
    }
}

#[test]
fn without_it_nothing_passes() {
    let Some(pair) = Pair::or_skip("firewall-without") else { return };
    originals(&pair);
    close(&pair.ours);
    pair.ours.choose("firewall", true);
    let pod = pair.ours.pod("c1");
    pair.ours.add(&pod, &Chain::new("bare", [bridge()]), "1.0.0", "eth0").unwrap();
    assert_eq!(passes(&pair.ours, &pod), ["out V4 false", "out V6 false"]);
}

/// A bridge of another name and subnet.
fn second_bridge() -> Value {
    json!({"type": "bridge", "bridge": "cni1", "isDefaultGateway": true, "ipam": {
        "type": "host-local", "dataDir": "$DIR/leases",
        "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]]}})
}

#[test]
fn bridges_with_a_policy_are_kept_apart() {
    let Some(pair) = Pair::or_skip("firewall-policy") else { return };
    originals(&pair);
    let reach = |side: &Side, policy: &str, is_netfiltered: bool| -> Vec<bool> {
        close(side);
        let options = json!({"ingressPolicy": policy});
        let chains = [bridge(), second_bridge()].map(|bridge| Chain::new("nets", [bridge, firewall(&options)]));
        let pods = ["a", "b", "c"].map(|name| side.pod(&format!("{name}-{policy}-{is_netfiltered}")));
        let mut results = Vec::new();
        for (pod, chain) in pods.iter().zip([&chains[0], &chains[0], &chains[1]]) {
            let result = side.add(pod, chain, "1.0.0", "eth0").unwrap();
            settle(side, &result);
            results.push(result);
        }
        side.world.bridge_netfilter(is_netfiltered);
        let mut seen = Vec::new();
        for family in FAMILIES {
            for (to, result) in [(1, &results[1]), (2, &results[2])] {
                let _server = TcpServer::start(&pods[to], any(Family::V6, 80), "80").unwrap();
                seen.push(opens(&pods[0], at(address(result, family), 80)));
            }
            seen.push(ping(&pods[0], neighbour_ip(family), LONG).is_open());
        }
        side.world.bridge_netfilter(false);
        for (pod, (chain, result)) in pods.iter().zip([&chains[0], &chains[0], &chains[1]].into_iter().zip(&results)) {
            side.check(pod, chain, "1.0.0", result).unwrap();
            side.del(pod, chain, "1.0.0", Some(result), "eth0").unwrap();
        }
        seen
    };
    let apart = [true, false, true, true, false, true];
    assert_eq!(reach(&pair.ours, "open", false), [true; 6]);
    assert_eq!(reach(&pair.ours, "same-bridge", false), apart);
    assert_eq!(reach(&pair.theirs, "same-bridge", false), apart);
    assert!(!rules(&pair.ours).iter().any(|rule| rule.contains("ISOLATION")));
    // Newer than Debian's. Frames inside a bridge pass iptables where br_netfilter says so.
    if pair.ours.world.bridge_netfilter(true) {
        assert_eq!(reach(&pair.ours, "isolated", true), [false, false, true, false, false, true]);
    } else {
        eprintln!("SKIP: ingressPolicy isolated: no br_netfilter");
    }
}

#[test]
fn each_mixture() {
    let Some(pair) = Pair::or_skip("firewall-mixture") else { return };
    originals(&pair);
    let side = &pair.ours;
    close(side);
    let chain = Chain::new("mix", [bridge(), firewall(&json!({}))]);
    // Made by one, taken back by the other.
    for (add, del) in [(false, true), (true, true), (false, false)] {
        side.choose("firewall", add);
        let pod = side.pod(&format!("mix-{add}-{del}"));
        let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
        assert_eq!(passes(side, &pod), ["out V4 true", "out V6 true"]);
        side.choose("firewall", del);
        side.check(&pod, &chain, "1.0.0", &result).unwrap();
        side.del(&pod, &chain, "1.0.0", Some(&result), "eth0").unwrap();
        let left: Vec<String> =
            rules(side).into_iter().filter(|rule| rule.contains("10.4.0") || rule.contains("fd00:4")).collect();
        assert!(left.is_empty(), "{left:#?}");
    }
}

#[test]
fn del_gc_and_check_look_at_the_kernel() {
    let Some(pair) = Pair::or_skip("firewall-kernel") else { return };
    originals(&pair);
    let side = &pair.ours;
    let pod = side.pod("c1");
    let bridged = side.add(&pod, &Chain::new("web", [bridge()]), "1.0.0", "eth0").unwrap();
    let ask = |verb: &str, more: Value| {
        let mut config = json!({"cniVersion": "1.1.0", "name": "web", "type": "firewall", "backend": "iptables",
            "ingressPolicy": "same-bridge"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let command = side.command("firewall", verb, &pod, "eth0");
        crate::runtime::answer(&crate::runtime::output_of(command, config.to_string().as_bytes()))
    };
    let with = || json!({"prevResult": bridged});
    let of_ours = || rules(side).iter().filter(|rule| rule.contains("10.4.0") || rule.contains("fd00:4")).count();
    ask("STATUS", json!({})).unwrap();
    ask("ADD", with()).unwrap();
    ask("ADD", with()).unwrap();
    assert_eq!(of_ours(), 4);
    ask("CHECK", with()).unwrap();
    run(&side.world.h, "iptables -F CNI-ISOLATION-STAGE-2");
    let refusal = ask("CHECK", with()).unwrap_err();
    assert!(refusal.code == 103 && refusal.msg.contains("CNI-ISOLATION-STAGE-2"), "{refusal:?}");
    // Without anything that tells, and with a configuration that is none.
    ask("DEL", json!({"ingressPolicy": "whatever"})).unwrap();
    assert_eq!(of_ours(), 0);
    ask("ADD", with()).unwrap();
    ask("GC", json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})).unwrap();
    assert_eq!(of_ours(), 4);
    ask("GC", json!({"cni.dev/valid-attachments": []})).unwrap();
    assert_eq!(of_ours(), 0);

    for (more, msg) in [
        (json!({}), "missing prevResult from earlier plugin"),
        (json!({"prevResult": bridged, "ingressPolicy": "mine"}), r#"unknown ingress policy: "mine""#),
        (json!({"prevResult": bridged, "iptablesAdminChainName": "a b"}), r#"invalid iptablesAdminChainName "a b""#),
    ] {
        assert_eq!(ask("ADD", more).unwrap_err().msg, msg);
        assert_eq!(of_ours(), 0);
    }
}

/// nerdctl looks which version of the plugin it has before it uses `ingressPolicy`.
#[test]
fn what_nerdctl_looks_for() {
    let Some(pair) = Pair::or_skip("firewall-version") else { return };
    let output = std::process::Command::new(pair.ours.bin.join("firewall")).env_clear().output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    let first = text.lines().next().unwrap();
    let version = first.strip_prefix("CNI firewall plugin v").unwrap_or_else(|| panic!("{first}"));
    let numbers: Vec<u32> = version.split('.').map(|number| number.parse().unwrap()).collect();
    assert!(numbers >= vec![1, 1, 0], "{version}");
}
