//! The plugin `bridge` in trouble: damage, callers in the wrong order, deaths, crowds, chains with originals.

use std::fs::File;
use std::net::IpAddr;
use std::process::Stdio;
use std::thread;

use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::link::{self, LinkChange};
use portolan_kernel::rtnl::{addr, route};
use portolan_lab::trace::{self, Outcome, Syscall};
use portolan_lab::{InNetns, eventually};
use serde_json::{Value, json};

use crate::beside::{Chain, Pair, Side};
use crate::bridge::{dual, gateway, is_open};
use crate::common::{FAMILIES, LONG, assert_leads, at, host_ip, interface, links, neighbour_ip};
use crate::runtime::{Pod, Refusal, with};

fn plain() -> Value {
    json!({"type": "bridge", "bridge": "br1", "isGateway": true, "ipam": dual()})
}

fn web() -> Chain {
    Chain::new("web", [plain()])
}

/// Sends one message in a namespace.
fn send(place: &impl InNetns, build: impl FnOnce(&mut Batch) -> usize) {
    let mut batch = Batch::new();
    build(&mut batch);
    with_netns(place.netns(), || Socket::open(ROUTE)).unwrap().unwrap().transact(&batch).unwrap();
}

fn veths(side: &Side) -> Vec<String> {
    links(&side.world.h).into_iter().map(|link| link.name).filter(|name| name.starts_with("veth")).collect()
}

/// How many addresses are taken. An original host-local that is killed leaves empty files, which nobody gives back
/// (containernetworking/plugins#498).
fn leases(side: &Side, network: &str) -> usize {
    let dir = side.world.lab.dir().join("ipam").join(network);
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_lease = |name: &str| name.parse::<IpAddr>().is_ok();
    let taken = files.filter(|file| {
        file.file_name().to_str().is_some_and(is_lease) && file.metadata().is_ok_and(|metadata| metadata.len() > 0)
    });
    taken.count()
}

/// Any verb, with more in the configuration.
fn call(side: &Side, verb: &str, pod: &Pod, chain: &Chain, patch: Value) -> Result<Value, Refusal> {
    let config = with(&chain.config(&chain.plugins[0], "1.1.0", None), patch);
    side.call(verb, pod, chain, &config, "eth0")
}

/// CHECK sees every damage, and says what it is.
#[test]
fn check_sees_damage() {
    let Some(pair) = Pair::or_skip("plugins-bridge-check") else { return };
    let side = &pair.ours;
    let h = &side.world.h;
    let chain = web();
    type Damage = fn(&Side, &Pod, u32, &str);
    let table: [(&str, &str, Damage); 8] = [
        ("address", "Failed to match addr", |_, pod, eth0, _| {
            let mut socket = with_netns(pod.netns(), || Socket::open(ROUTE)).unwrap().unwrap();
            let found = addr::dump(&mut socket, Some(eth0)).unwrap();
            let found = found.iter().find(|found| found.addr.is_ipv4()).unwrap();
            send(pod, |batch| addr::delete(batch, eth0, found.addr, found.prefix_len));
        }),
        ("route", "Expected Route ::/0", |_, pod, eth0, _| {
            let gone = route::Route { oif: Some(eth0), ..route::Route::default_of(portolan_kernel::rtnl::Family::V6) };
            let gone = route::Route { protocol: route::PROTOCOL_BOOT, ..gone };
            send(pod, |batch| route::delete(batch, &gone));
        }),
        ("down", "Interface eth0 is down", |_, pod, eth0, _| {
            // What goes with it comes back, so that only this is amiss.
            send(pod, |batch| link::set(batch, eth0, &LinkChange { up: Some(false), ..LinkChange::default() }));
        }),
        ("mac", "Interface eth0 Mac", |_, pod, eth0, _| {
            let change = LinkChange { mac: Some([2, 0, 0, 0, 0, 1]), ..LinkChange::default() };
            send(pod, |batch| link::set(batch, eth0, &change));
        }),
        ("port", "is not a port of bridge br1", |side, _, _, port| {
            let change = LinkChange { master: Some(0), ..LinkChange::default() };
            send(&side.world.h, |batch| link::set(batch, port, &change));
        }),
        ("port-down", "is down", |side, _, _, port| {
            let change = LinkChange { up: Some(false), ..LinkChange::default() };
            send(&side.world.h, |batch| link::set(batch, port, &change));
        }),
        ("gone", "Container Interface name in prevResult: eth0 not found", |side, _, _, port| {
            send(&side.world.h, |batch| link::delete(batch, port));
        }),
        ("gateway", "bridge br1 lacks address", |side, _, _, _| {
            let bridge = interface(&side.world.h, "br1").unwrap().index;
            let gateway = gateway(portolan_kernel::rtnl::Family::V4);
            send(&side.world.h, |batch| addr::delete(batch, bridge, gateway, 24));
        }),
    ];
    for (name, msg, damage) in table {
        let pod = side.pod(name);
        let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
        side.check(&pod, &chain, "1.0.0", &result).unwrap();
        let port = result["interfaces"][1]["name"].as_str().unwrap();
        damage(side, &pod, interface(&pod, "eth0").unwrap().index, port);
        let refusal = side.check(&pod, &chain, "1.0.0", &result).unwrap_err();
        assert!(refusal.code == 103 && refusal.msg.contains(msg), "{name}: {refusal:?}");
        side.del(&pod, &chain, "1.0.0", Some(&result), "eth0").unwrap();
    }
    assert_eq!((veths(side).len(), leases(side, "web")), (0, 0));
    send(h, |batch| link::delete(batch, "br1"));
}

/// DEL without namespace, twice, before ADD, after the configuration changed; ADD twice.
#[test]
fn orders() {
    let Some(pair) = Pair::or_skip("plugins-bridge-orders") else { return };
    let side = &pair.ours;
    let chain = web();
    let pod = side.pod("c1");
    side.del(&pod, &chain, "1.0.0", None, "eth0").unwrap();
    side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
    let refusal = side.add(&pod, &chain, "1.0.0", "eth0").unwrap_err();
    assert_eq!((refusal.code, refusal.msg.as_str()), (100, "container already has an interface \"eth0\""));
    assert_eq!((veths(side).len(), leases(side, "web")), (1, 2), "the refused ADD took nothing away");
    assert!(is_open(&pod, gateway(FAMILIES[0]), true));
    // Without the namespace, and by a configuration of which little is left.
    let config = json!({"cniVersion": "1.0.0", "name": "web", "type": "bridge", "vlan": 99999,
                        "ipam": {"type": "host-local", "dataDir": "$DIR/ipam", "ranges": [[{"subnet": "10.9.1.0/24"}]]}});
    for netns in ["", "/nowhere"] {
        let mut command = side.command("bridge", "DEL", &pod, "eth0");
        command.env("CNI_NETNS", netns);
        let done = crate::runtime::output_of(command, side.text(&config).as_bytes());
        crate::runtime::answer(&done).unwrap();
        assert_eq!((veths(side).len(), leases(side, "web")), (0, 0));
    }
    assert!(interface(&pod, "eth0").is_none());
    // Made by the original, removed by ours, and the other way round.
    for (maker, remover) in [(false, true), (true, false)] {
        side.choose("bridge", maker);
        let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
        side.choose("bridge", remover);
        side.check(&pod, &chain, "1.0.0", &result).unwrap();
        side.del(&pod, &chain, "1.0.0", Some(&result), "eth0").unwrap();
        assert_eq!((veths(side).len(), leases(side, "web")), (0, 0));
    }
    side.choose("bridge", true);
    // What is in the way is left alone, and nothing is taken.
    send(&side.world.h, |batch| {
        let peer = link::VethPeer { name: "x1", ..link::VethPeer::default() };
        link::create_veth(batch, &link::VethSpec { name: "x0", peer, ..link::VethSpec::default() })
    });
    let other = Chain::new("web", [with(&plain(), json!({"bridge": "x0"}))]);
    let refusal = side.add(&pod, &other, "1.0.0", "eth0").unwrap_err();
    assert_eq!(refusal.msg, "failed to create bridge \"x0\": \"x0\" already exists but is not a bridge");
    let elsewhere = json!({"type": "host-local", "dataDir": "$DIR/ipam", "subnet": "10.9.2.0/24"});
    let other = Chain::new("other", [with(&plain(), json!({"ipam": elsewhere}))]);
    let refusal = side.add(&pod, &other, "1.0.0", "eth0").unwrap_err();
    assert_eq!(refusal.msg, "failed to set bridge addr: \"br1\" already has an IP address different from 10.9.2.1/24");
    assert_eq!((veths(side).len(), leases(side, "other")), (0, 0));
    let forced = Chain::new("other", [with(&other.plugins[0], json!({"forceAddress": true}))]);
    side.add(&pod, &forced, "1.0.0", "eth0").unwrap();
    assert!(is_open(&pod, "10.9.2.1".parse().unwrap(), true));
}

/// GC takes the ends that are not listed, STATUS tells what would fail.
#[test]
fn gc_and_status() {
    let Some(pair) = Pair::or_skip("plugins-bridge-gc") else { return };
    let side = &pair.ours;
    let (chain, other) = (web(), Chain::new("web2", [with(&plain(), json!({"bridge": "br2", "ipam": {}}))]));
    let pods = ["a", "b", "c"].map(|id| side.pod(id));
    for pod in &pods[..2] {
        side.add(pod, &chain, "1.0.0", "eth0").unwrap();
    }
    side.add(&pods[2], &other, "1.0.0", "eth0").unwrap();
    let none = side.pod("none");
    assert_eq!(call(side, "GC", &none, &chain, json!({})).unwrap_err().code, 7);
    let listed = json!({"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]});
    for _ in 0..2 {
        call(side, "GC", &none, &chain, listed.clone()).unwrap();
        let are = pods.each_ref().map(|pod| interface(pod, "eth0").is_some());
        assert_eq!(are, [false, true, true]);
    }
    call(side, "STATUS", &none, &chain, json!({})).unwrap();
    let refusal = call(side, "STATUS", &none, &chain, json!({"bridge": "eth0"})).unwrap_err();
    assert_eq!(refusal.code, 50, "{refusal:?}");
    let refusal = call(side, "STATUS", &none, &chain, json!({"hairpinMode": true, "promiscMode": true})).unwrap_err();
    assert_eq!(refusal.code, 50, "{refusal:?}");
}

/// System calls that change something outside of the process.
const CHANGES: &[Syscall] = &[
    Syscall::Sendmsg,
    Syscall::Sendto,
    Syscall::Write,
    Syscall::Pwrite,
    Syscall::Rename,
    Syscall::Link,
    Syscall::Mkdir,
    Syscall::Create,
    Syscall::Setns,
    Syscall::Fork,
];

/// Killed at any step, an ADD leaves what DEL or GC takes away.
#[test]
fn killed_anywhere() {
    let Some(pair) = Pair::or_skip("plugins-bridge-killed") else { return };
    let side = &pair.ours;
    let chain = Chain::new("web", [with(&plain(), json!({"ipMasq": true}))]);
    let file = side.world.lab.dir().join("config");
    std::fs::write(&file, side.text(&chain.config(&chain.plugins[0], "1.0.0", None))).unwrap();
    // The bridge, the plugins' table and forwarding stay.
    let first = side.pod("first");
    side.add(&first, &chain, "1.0.0", "eth0").unwrap();
    side.del(&first, &chain, "1.0.0", None, "eth0").unwrap();
    let untouched = side.world.untouched();
    let mut deaths = 0;
    for n in 1.. {
        let pod = side.pod(&format!("c{n}"));
        let mut command = side.command("bridge", "ADD", &pod, "eth0");
        command.stdin(File::open(&file).unwrap()).stdout(Stdio::null());
        let done = match trace::kill_at(command, CHANGES, n).unwrap() {
            Outcome::Killed { .. } => false,
            Outcome::Finished(status) => {
                assert!(status.success());
                true
            }
        };
        deaths += usize::from(!done);
        if n % 2 == 0 {
            call(side, "GC", &pod, &chain, json!({"cni.dev/valid-attachments": []})).unwrap();
            side.world.assert_untouched(&untouched, &format!("GC after death at step {n}"));
        }
        side.del(&pod, &chain, "1.0.0", None, "eth0").unwrap();
        side.world.assert_untouched(&untouched, &format!("death at step {n}"));
        assert!(interface(&pod, "eth0").is_none(), "death at step {n}");
        // An original IPAM plugin outlives us: what it takes after our DEL, another DEL gives back.
        let all_are_back = || {
            side.del(&pod, &chain, "1.0.0", None, "eth0").unwrap();
            leases(side, "web") == 0
        };
        assert!(eventually(LONG, all_are_back), "death at step {n}");
        if done {
            break;
        }
    }
    assert!(deaths > 5, "{deaths}");
}

/// A hundred at once, on a bridge that is not there yet.
#[test]
fn crowd() {
    let Some(pair) = Pair::or_skip("plugins-bridge-crowd") else { return };
    let side = &pair.ours;
    let chain = web();
    let pods: Vec<Pod> = (0..100).map(|n| side.pod(&format!("c{n}"))).collect();
    let each = |f: &(dyn Fn(&Pod) -> Result<(), Refusal> + Sync)| {
        thread::scope(|scope| {
            let all: Vec<_> = pods.iter().map(|pod| scope.spawn(move || f(pod))).collect();
            all.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
    };
    each(&|pod| side.add(pod, &chain, "1.0.0", "eth0").map(drop));
    assert_eq!((veths(side).len(), leases(side, "web")), (100, 200));
    for pod in pods.iter().step_by(25) {
        for family in FAMILIES {
            assert!(is_open(pod, gateway(family), true));
        }
    }
    each(&|pod| side.del(pod, &chain, "1.0.0", None, "eth0"));
    assert_eq!((veths(side).len(), leases(side, "web")), (0, 0));
}

/// With `ipMasq` the LAN is reached, and sees the host's address.
#[test]
fn masquerade() {
    let Some(pair) = Pair::or_skip("plugins-bridge-masquerade") else { return };
    for kind in ["bridge", "ptp"] {
        let plugin = with(&plain(), json!({"type": kind, "ipMasq": true}));
        let chain = Chain::new(kind, [plugin]);
        let seen = [&pair.ours, &pair.theirs].map(|side| {
            let pod = side.pod(kind);
            let result = match side.add(&pod, &chain, "1.0.0", "eth0") {
                Ok(result) => result,
                Err(refusal) if side.name == "theirs" => {
                    eprintln!("SKIP: `{kind}` beside the original: {refusal:?}");
                    return None;
                }
                Err(refusal) => panic!("{refusal:?}"),
            };
            side.check(&pod, &chain, "1.0.0", &result).unwrap();
            let seen = FAMILIES.map(|family| {
                let server = portolan_lab::server::TcpServer::start(
                    &side.world.n,
                    crate::common::any(family, 8000),
                    "neighbour",
                )
                .unwrap();
                assert_leads(&pod, at(neighbour_ip(family), server.addr().port()), "neighbour");
                server.last_client().map(|client| client.ip()) == Some(host_ip(family))
            });
            side.del(&pod, &chain, "1.0.0", Some(&result), "eth0").unwrap();
            Some(seen)
        });
        assert_eq!(seen[0], Some([true; 2]), "{kind}");
        assert!(seen[1].is_none_or(|seen| seen == [true; 2]));
    }
}

/// What Debian's does not know yet.
#[test]
fn newer_options() {
    let Some(pair) = Pair::or_skip("plugins-bridge-newer") else { return };
    let side = &pair.ours;
    let port = |result: &Value| {
        let name = result["interfaces"][1]["name"].as_str().unwrap();
        interface(&side.world.h, name).unwrap().brport.unwrap()
    };
    // Isolated ports reach the bridge and not each other.
    let chain = Chain::new("isolated", [with(&plain(), json!({"portIsolation": true}))]);
    let pods = ["i1", "i2"].map(|id| side.pod(id));
    let results = pods.each_ref().map(|pod| side.add(pod, &chain, "1.0.0", "eth0").unwrap());
    assert_eq!(port(&results[0]).isolated, Some(true));
    let other = results[1]["ips"][0]["address"].as_str().unwrap().trim_end_matches("/24").parse().unwrap();
    assert!(is_open(&pods[0], gateway(FAMILIES[0]), true) && !is_open(&pods[0], other, false));
    side.check(&pods[0], &chain, "1.0.0", &results[0]).unwrap();
    // Another MAC than its own gets nothing through.
    let chain = Chain::new("spoof", [with(&plain(), json!({"macspoofchk": true}))]);
    let pod = side.pod("spoof");
    let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
    assert!(is_open(&pod, gateway(FAMILIES[0]), true));
    side.check(&pod, &chain, "1.0.0", &result).unwrap();
    let forged = LinkChange { mac: Some([2, 0, 0, 0, 0, 1]), ..LinkChange::default() };
    send(&pod, |batch| link::set(batch, "eth0", &forged));
    assert!(!is_open(&pod, gateway(FAMILIES[0]), false));
    // Down until somebody brings it up.
    let down = json!({"disableContainerInterface": true, "ipam": {}});
    let chain = Chain::new("down", [with(&plain(), down)]);
    let pod = side.pod("down");
    let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
    assert!(!interface(&pod, "eth0").unwrap().up);
    side.check(&pod, &chain, "1.0.0", &result).unwrap();
    // Bridges that keep VLANs apart.
    for patch in [json!({"vlan": 7}), json!({"vlanTrunk": [{"minID": 5, "maxID": 9}], "preserveDefaultVlan": false})] {
        let chain = Chain::new("vlan", [with(&plain(), with(&patch, json!({"bridge": "br7"})))]);
        let pod = side.pod(&format!("vlan{}", patch.to_string().len()));
        match side.add(&pod, &chain, "1.0.0", "eth0") {
            Ok(result) => {
                assert!(interface(&side.world.h, "br7").unwrap().bridge.unwrap().vlan_filtering);
                assert_eq!(result["interfaces"].as_array().unwrap().len(), if patch["vlan"] == 7 { 4 } else { 3 });
                assert!(patch["vlan"] != 7 || is_open(&pod, gateway(FAMILIES[0]), true));
            }
            Err(refusal) => {
                assert_eq!(refusal.code, 50, "{refusal:?}");
                assert!(refusal.msg.contains("do not keep VLANs apart"), "{refusal:?}");
                assert!(interface(&pod, "eth0").is_none() && leases(side, "vlan") == 0);
                eprintln!("SKIP: VLANs of a bridge: this kernel's bridges do not keep them apart");
            }
        }
    }
}

/// Originals after ours, and ours alone of the originals.
#[test]
fn chains_with_originals() {
    let Some(pair) = Pair::or_skip("plugins-bridge-chains") else { return };
    for kind in ["portmap", "firewall", "tuning", "bandwidth"] {
        pair.ours.choose(kind, false);
    }
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    let tuning = json!({"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}, "mtu": 1400, "dataDir": "$DIR/tuning"});
    let bandwidth = json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000});
    for (name, next) in [
        ("tuning", tuning),
        ("bandwidth", bandwidth),
        ("portmap", portmap),
        ("firewall", json!({"type": "firewall", "backend": "iptables"})),
    ] {
        let v4 = json!({"type": "host-local", "dataDir": "$DIR/ipam4", "subnet": "10.9.1.0/24", "routes": [{"dst": "0.0.0.0/0"}]});
        let chain = Chain::new(name, [with(&plain(), json!({"ipam": v4})), next])
            .runtime("portMappings", json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
        let seen = [&pair.ours, &pair.theirs].map(|side| {
            let pod = side.pod(&format!("pod-{name}"));
            let added = side.add(&pod, &chain, "1.0.0", "eth0");
            let seen = match &added {
                Ok(result) => {
                    // Debian's portmap looks for IPv6 rules that it did not make.
                    let checked = side.check(&pod, &chain, "1.0.0", result).map_err(|refusal| refusal.code);
                    let reached = name == "portmap" && {
                        let server = portolan_lab::server::TcpServer::start(&pod, "0.0.0.0:80".parse().unwrap(), "web");
                        let server = server.unwrap();
                        assert_leads(&side.world.n, at(host_ip(FAMILIES[0]), 8080), "web");
                        server.connections() > 0
                    };
                    let mtu = interface(&pod, "eth0").unwrap().mtu;
                    Ok((checked, is_open(&pod, gateway(FAMILIES[0]), true), mtu, reached))
                }
                Err(refusal) => Err(refusal.msg.clone()),
            };
            side.del(&pod, &chain, "1.0.0", added.as_ref().ok(), "eth0").unwrap();
            assert!(interface(&pod, "eth0").is_none());
            (added.map(|result| crate::beside::without_chance(&result)).ok(), seen)
        });
        if let Err(msg) = &seen[1].1 {
            eprintln!("SKIP: {name}: the original refuses both: {msg}");
        }
        assert_eq!(seen[0], seen[1], "{name}");
    }
}
