//! `ptp`, `macvlan` and `portmap` in trouble: damage, deaths at any step, many at once, flows that go on.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::Instant;

use portolan_kernel::rtnl::Family;
use portolan_lab::server::UdpServer;
use portolan_lab::snapshot::{diff, snapshot};
use portolan_lab::trace::{self, CHANGES, Outcome};
use serde_json::{Value, json};

use crate::beside::{Chain, Pair, Side};
use crate::bridge::dual;
use crate::common::{LONG, at, host_ip, interface};
use crate::portmap::{bridge, originals};
use crate::runtime::{Pod, answer, output_of, with};

fn ptp() -> Value {
    json!({"type": "ptp", "ipMasq": true, "ipam": dual()})
}

fn macvlan() -> Value {
    json!({"type": "macvlan", "master": "eth0", "ipam": dual()})
}

fn ip(pod: &Pod, line: &str) {
    assert!(pod.host.command("ip").unwrap().args(line.split(' ')).status().unwrap().success(), "{line}");
}

#[test]
fn check_sees_damage() {
    let Some(pair) = Pair::or_skip("plugins-links-check") else { return };
    let side = &pair.ours;
    for (plugin, damages) in [
        (
            ptp(),
            &["link set eth0 down", "addr flush dev eth0 scope global", "link delete eth0", "route del default"][..],
        ),
        (macvlan(), &["link set eth0 down", "addr flush dev eth0 scope global", "link delete eth0"][..]),
    ] {
        let chain = Chain::new("web", [plugin]);
        for (number, damage) in damages.iter().enumerate() {
            let pod = side.pod(&format!("{}-{number}", chain.plugins[0]["type"].as_str().unwrap()));
            let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
            side.check(&pod, &chain, "1.0.0", &result).unwrap();
            ip(&pod, damage);
            let refusal = side.check(&pod, &chain, "1.0.0", &result).unwrap_err();
            assert_eq!(refusal.code, 103, "{damage}: {refusal:?}");
            side.del(&pod, &chain, "1.0.0", Some(&result), "eth0").unwrap();
            assert!(interface(&pod, "eth0").is_none(), "{damage}");
        }
    }
}

/// Kills `kind` at one change after the other, until it gets through; `after` looks at what is left of each and cleans up.
fn killed(
    side: &Side,
    verb: &str,
    chain: &Chain,
    kind: usize,
    pod: &dyn Fn(usize) -> (Pod, Value),
    after: &dyn Fn(&Pod, usize),
) {
    let file = side.world.lab.dir().join("config");
    let mut deaths = 0;
    for n in 1.. {
        let (pod, more) = pod(n);
        let config = with(&chain.config(&chain.plugins[kind], "1.0.0", None), more);
        std::fs::write(&file, side.text(&config)).unwrap();
        let mut command = side.command(config["type"].as_str().unwrap(), verb, &pod, "eth0");
        command.stdin(File::open(&file).unwrap()).stdout(Stdio::null());
        let outcome = trace::kill_at(command, CHANGES, n).unwrap();
        after(&pod, n);
        match outcome {
            Outcome::Killed { .. } => deaths += 1,
            Outcome::Finished(status) => {
                assert!(status.success());
                break;
            }
        }
    }
    assert!(deaths > 1, "{deaths}");
}

#[test]
fn killed_anywhere() {
    let Some(pair) = Pair::or_skip("plugins-links-killed") else { return };
    let side = &pair.ours;
    for plugin in [ptp(), macvlan()] {
        let chain = Chain::new("web", [plugin.clone()]);
        let kind = plugin["type"].as_str().unwrap();
        // Forwarding stays on.
        let first = side.pod(&format!("{kind}-first"));
        side.add(&first, &chain, "1.0.0", "eth0").unwrap();
        side.del(&first, &chain, "1.0.0", None, "eth0").unwrap();
        let untouched = side.world.untouched();
        let pod = |n: usize| (side.pod(&format!("{kind}{n}")), json!({}));
        killed(side, "ADD", &chain, 0, &pod, &|pod, n| {
            side.del(pod, &chain, "1.0.0", None, "eth0").unwrap();
            side.world.assert_untouched(&untouched, &format!("{kind}: death at step {n}"));
            assert!(interface(pod, "eth0").is_none(), "{kind}: death at step {n}");
        });
    }
}

#[test]
fn many_at_once() {
    let Some(pair) = Pair::or_skip("plugins-links-many") else { return };
    let side = &pair.ours;
    for plugin in [ptp(), macvlan()] {
        let chain = Chain::new("web", [plugin.clone()]);
        let kind = plugin["type"].as_str().unwrap();
        let pods: Vec<Pod> = (0..12).map(|n| side.pod(&format!("{kind}{n}"))).collect();
        let each = |call: &(dyn Fn(&Pod) -> Value + Sync)| -> Vec<Value> {
            std::thread::scope(|scope| {
                let all: Vec<_> = pods.iter().map(|pod| scope.spawn(move || call(pod))).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            })
        };
        let results = each(&|pod| side.add(pod, &chain, "1.0.0", "eth0").unwrap());
        let given: BTreeSet<String> = results.iter().map(|result| result["ips"][0]["address"].to_string()).collect();
        assert_eq!(given.len(), pods.len(), "{given:?}");
        for (pod, result) in pods.iter().zip(&results) {
            side.check(pod, &chain, "1.0.0", result).unwrap();
        }
        each(&|pod| side.del(pod, &chain, "1.0.0", None, "eth0").map(|()| Value::Null).unwrap());
        assert!(pods.iter().all(|pod| interface(pod, "eth0").is_none()));
    }
}

/// A port to publish, by networks that a plugin before gave these addresses on.
fn published(name: &str) -> Chain {
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    Chain::new(name, [portmap])
        .runtime("portMappings", json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
}

fn given(address: &str) -> Value {
    json!({"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": address}]}})
}

/// Where port 8080 leads, by the table's text.
fn destination(side: &Side) -> Option<String> {
    let mut command = side.world.h.command("nft").unwrap();
    let output = command.args(["list", "map", "inet", "portolan_cni", "cni_any_port4"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, rest) = text.split_once("tcp . 8080")?;
    Some(rest.split(" : ").nth(1)?.split(' ').next()?.to_owned())
}

/// A port that goes from one network of its container to another is never closed and never lost.
#[test]
fn killed_while_a_port_changes_hands() {
    let Some(pair) = Pair::or_skip("plugins-portmap-killed") else { return };
    let side = &pair.ours;
    let pod = side.pod("c");
    let (first, second) = (published("first"), published("second"));
    let ask = |verb: &str, chain: &Chain, address: &str| {
        let config = with(&chain.config(&chain.plugins[0], "1.0.0", None), given(address));
        answer(&output_of(side.command("portmap", verb, &pod, "eth0"), config.to_string().as_bytes())).unwrap();
    };
    let before = side.world.untouched();
    let add_both = || {
        ask("ADD", &first, "10.4.0.2/24");
        ask("ADD", &second, "10.5.0.2/24");
        assert_eq!(destination(side).as_deref(), Some("10.5.0.2"));
    };
    for (chain, address, other, verb) in [
        (&second, "10.5.0.2/24", "10.4.0.2", "DEL"),
        (&first, "10.4.0.2/24", "10.5.0.2", "DEL"),
        (&first, "10.4.0.2/24", "10.5.0.2", "ADD"),
    ] {
        let pod = |n: usize| {
            add_both();
            let _ = n;
            (
                Pod { id: pod.id.clone(), host: side.world.lab.host(&format!("same{verb}{other}{n}")).unwrap() },
                given(address),
            )
        };
        killed(side, verb, chain, 0, &pod, &|_, n| {
            let leads = destination(side);
            assert!(leads.is_some(), "{verb}: death at step {n} closes the port");
            ask("DEL", chain, address);
            assert_eq!(destination(side).as_deref(), Some(other), "{verb}: death at step {n}");
            ask("DEL", &first, "10.4.0.2/24");
            ask("DEL", &second, "10.5.0.2/24");
            let left = diff(&before, &snapshot(&side.world.h).unwrap());
            assert!(left.is_empty(), "{verb}: death at step {n}: {left:#?}");
        });
    }
}

/// A client that goes on sending from its port reaches whoever has the port now.
#[test]
fn datagrams_follow_the_port() {
    let Some(pair) = Pair::or_skip("plugins-portmap-udp") else { return };
    originals(&pair);
    for side in [&pair.ours, &pair.theirs] {
        let ports = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]);
        let on = |name: &str, bridge: Value| {
            let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
            let sbr = json!({"type": "sbr"});
            Chain::new(name, [bridge, sbr, portmap]).runtime("portMappings", ports.clone())
        };
        let web = on("web", bridge());
        let client = side.world.n.enter(|| UdpSocket::bind("0.0.0.0:4567")).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        client.connect(at(host_ip(Family::V4), 5353)).unwrap();
        // What it hears, once it is not what it heard before.
        let hears = |wanted: &str| {
            let begin = Instant::now();
            let mut heard = String::new();
            while begin.elapsed() < LONG && !heard.starts_with(wanted) {
                // A port that is closed for a moment is told to the client.
                let _ = client.send(b"?");
                let mut buffer = [0; 512];
                if let Ok(length) = client.recv(&mut buffer) {
                    heard = String::from_utf8_lossy(&buffer[..length]).into_owned();
                }
            }
            assert!(heard.starts_with(wanted), "{}: {heard:?} instead of {wanted:?}", side.name);
        };
        // Answers that say by which address they are sent leave by its network.
        let to = |result: &Value| -> SocketAddr {
            let address: IpAddr =
                result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
            SocketAddr::new(address, 53)
        };
        let pods = ["one", "two"].map(|id| side.pod(id));
        let result = side.add(&pods[0], &web, "1.0.0", "eth0").unwrap();
        let _one = UdpServer::start(&pods[0], to(&result), "one").unwrap();
        hears("one");
        side.del(&pods[0], &web, "1.0.0", Some(&result), "eth0").unwrap();
        let first = side.add(&pods[1], &web, "1.0.0", "eth0").unwrap();
        let _two = UdpServer::start(&pods[1], to(&first), "two by web").unwrap();
        hears("two by web");
        if side.name == "ours" {
            // And from one network of a container to the other, and back.
            let other = on(
                "other",
                json!({"type": "bridge", "bridge": "cni1", "isDefaultGateway": true, "ipam": {
                "type": "host-local", "dataDir": "$DIR/leases", "subnet": "10.5.0.0/24"}}),
            );
            let second = side.add(&pods[1], &other, "1.0.0", "eth1").unwrap();
            let _other = UdpServer::start(&pods[1], to(&second), "two by other").unwrap();
            hears("two by other");
            side.del(&pods[1], &other, "1.0.0", Some(&second), "eth1").unwrap();
            hears("two by web");
        }
        side.del(&pods[1], &web, "1.0.0", Some(&first), "eth0").unwrap();
    }
}
