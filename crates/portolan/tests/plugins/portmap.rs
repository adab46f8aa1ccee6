//! `portmap` after the originals' `bridge` and `host-local`: who reaches a published port, and as whom.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use portolan_kernel::rtnl::Family;
use portolan_lab::InNetns;
use portolan_lab::probe::{Probe, tcp_probe, udp_probe};
use portolan_lab::sctp::{SctpServer, sctp_probe};
use portolan_lab::server::{TcpServer, UdpServer};
use portolan_lab::snapshot::snapshot;
use serde_json::{Value, json};

use crate::beside::{Chain, Pair, Side};
use crate::common::{FAMILIES, LONG, SHORT, any, assert_leads, assert_refused, at, host_ip, loopback, neighbour_ip};
use crate::runtime::Pod;

/// A bridge of the original's, or of ours, with addresses of both families.
pub(crate) fn bridge() -> Value {
    json!({"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipam": {
        "type": "host-local", "dataDir": "$DIR/leases",
        "ranges": [[{"subnet": "10.4.0.0/24"}], [{"subnet": "fd00:4::/64"}]]}})
}

fn portmap(options: &Value) -> Value {
    let mut config = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    config
}

fn published(name: &str, options: &Value, ports: &Value) -> Chain {
    Chain::new(name, [bridge(), portmap(options)])
        .runtime("portMappings", ports.clone())
        .unchecked("Debian's portmap looks for the rules of each family in those of the other one")
}

/// Makes `bridge` and `host-local` the originals on both sides.
pub(crate) fn originals(pair: &Pair) {
    for kind in ["bridge", "host-local"] {
        pair.ours.choose(kind, false);
    }
}

fn said(probe: &Probe) -> String {
    match (probe.banner(), probe.seen()) {
        (Some(banner), Some(seen)) => format!("{banner} sees {}", seen.ip()),
        _ => "closed".to_owned(),
    }
}

/// Asks an address by TCP, or else by UDP.
type Ask<'a> = &'a dyn Fn(SocketAddr, bool) -> Probe;

/// What everybody gets of the host's `port`, TCP and UDP.
fn everybody(side: &Side, pod: &Pod, peer: &Pod, ports: &[u16]) -> Vec<String> {
    let mut seen = Vec::new();
    for family in FAMILIES {
        let places: [(&str, Ask<'_>, IpAddr); 5] = [
            ("neighbour", &|to, tcp| ask(&side.world.n, to, tcp), host_ip(family)),
            ("host", &|to, tcp| ask(&side.world.h, to, tcp), host_ip(family)),
            ("loopback", &|to, tcp| ask(&side.world.h, to, tcp), loopback(family)),
            ("itself", &|to, tcp| ask(pod, to, tcp), host_ip(family)),
            ("peer", &|to, tcp| ask(peer, to, tcp), host_ip(family)),
        ];
        for (who, probe, ip) in places {
            // No route leads from ::1 to a container: the originals translate what then goes nowhere.
            if (who, family) == ("loopback", Family::V6) {
                continue;
            }
            for port in ports {
                for tcp in [true, false] {
                    let kind = if tcp { "tcp" } else { "udp" };
                    seen.push(format!("{who} {kind} {port} {family:?}: {}", said(&probe(at(ip, *port), tcp))));
                }
            }
        }
    }
    seen
}

fn ask(from: &impl InNetns, to: SocketAddr, tcp: bool) -> Probe {
    let ask = |patience| if tcp { tcp_probe(from, to, patience) } else { udp_probe(from, to, patience) };
    match ask(SHORT) {
        Probe::Timeout => ask(SHORT),
        probe => probe,
    }
}

/// Servers on `ports` that call themselves by them.
fn servers(pod: &Pod, ports: &[u16]) -> (Vec<TcpServer>, Vec<UdpServer>) {
    let tcp = ports.iter().map(|port| TcpServer::start(pod, any(Family::V6, *port), &port.to_string()).unwrap());
    let udp = ports.iter().map(|port| UdpServer::start(pod, any(Family::V6, *port), &port.to_string()).unwrap());
    (tcp.collect(), udp.collect())
}

/// What `chain` does for everybody, on both sides.
fn same(pair: &Pair, chain: &Chain, ports: &[u16]) {
    let peers = Chain::new("peers", [bridge()]);
    pair.same(chain, |side, pod| {
        let peer = side.pod(&format!("peer-of-{}", pod.id));
        let result = side.add(&peer, &peers, "1.0.0", "eth0").unwrap();
        let _servers = servers(pod, &[80, 81]);
        let seen = everybody(side, pod, &peer, ports);
        side.del(&peer, &peers, "1.0.0", Some(&result), "eth0").unwrap();
        seen
    });
}

#[test]
fn options() {
    let Some(pair) = Pair::or_skip("portmap-options") else { return };
    originals(&pair);
    let ports = json!([{"hostPort": 80, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 80, "containerPort": 80, "protocol": "udp"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "udp"}]);
    same(&pair, &published("plain", &json!({}), &ports), &[80, 8081]);
    same(&pair, &published("snat", &json!({"snat": false}), &ports), &[8081]);
    same(&pair, &published("bit", &json!({"markMasqBit": 5}), &ports), &[8081]);
    // One address of the host alone.
    let on = |ip: &str, host: u16, protocol: &str| json!({"hostPort": host, "containerPort": 80, "protocol": protocol, "hostIP": ip});
    let ports = ["10.0.1.1", "fd00:1::1"].map(|ip| ["tcp", "udp"].map(|protocol| on(ip, 8080, protocol))).concat();
    same(&pair, &published("one", &json!({}), &json!(ports)), &[8080]);
    let ports = ["127.0.0.1", "0.0.0.0"].into_iter().zip([8082, 8083]).map(|(ip, port)| on(ip, port, "tcp"));
    same(&pair, &published("two", &json!({}), &Value::Array(ports.collect())), &[8082, 8083]);
    same(&pair, &published("none", &json!({}), &json!([])), &[80]);
}

#[test]
fn options_newer_than_debians() {
    let Some(pair) = Pair::or_skip("portmap-newer") else { return };
    originals(&pair);
    let side = &pair.ours;
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let pod = side.pod("c1");
    let _server = TcpServer::start(&pod, any(Family::V6, 80), "80").unwrap();
    for (options, is_masked) in [
        (json!({"masqAll": true}), true),
        (json!({"backend": "nftables", "externalSetMarkChain": "KUBE-MARK-MASQ"}), false),
    ] {
        let chain = published("newer", &options, &ports);
        let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
        for family in FAMILIES {
            let probe = tcp_probe(&side.world.n, at(host_ip(family), 8080), LONG);
            // Which of the host's addresses it is, the kernel chooses: that of a new bridge takes a while to be one.
            let is_neighbour = probe.seen().unwrap().ip().to_canonical() == neighbour_ip(family);
            assert_eq!(!is_neighbour, is_masked, "{options}: {probe}");
        }
        side.check(&pod, &chain, "1.0.0", &result).unwrap();
        side.del(&pod, &chain, "1.0.0", Some(&result), "eth0").unwrap();
    }
}

#[test]
fn sctp() {
    let Some(pair) = Pair::or_skip("portmap-sctp") else { return };
    originals(&pair);
    let ports = json!([{"hostPort": 5500, "containerPort": 55, "protocol": "sctp"}]);
    // The flow of a container before, from the same port, would go on to it.
    let from = AtomicU16::new(4000);
    pair.same(&published("sctp", &json!({}), &ports), |side, pod| {
        FAMILIES.map(|family| {
            let from = from.fetch_add(1, Ordering::Relaxed);
            let _server = SctpServer::start(pod, any(family, 55), "sctp").unwrap();
            said(&sctp_probe(&side.world.n, from, at(host_ip(family), 5500), LONG))
        })
    });
}

#[test]
fn each_mixture() {
    let Some(pair) = Pair::or_skip("portmap-mixture") else { return };
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let chain = published("mix", &json!({}), &ports);
    let side = &pair.ours;
    for bridge_is_ours in [false, true] {
        // Whoever merges before `bridge` is here has the originals alone.
        side.choose("bridge", bridge_is_ours && portolan_has("bridge"));
        side.choose("host-local", !bridge_is_ours && portolan_has("host-local"));
        for portmap_is_ours in [true, false] {
            side.choose("portmap", portmap_is_ours);
            let pod = side.pod(&format!("mix-{bridge_is_ours}-{portmap_is_ours}"));
            let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
            let server = TcpServer::start(&pod, any(Family::V6, 80), "80").unwrap();
            for family in FAMILIES {
                assert_leads(&side.world.n, at(host_ip(family), 8080), "80");
            }
            if portmap_is_ours {
                side.check(&pod, &chain, "1.0.0", &result).unwrap();
            }
            drop(server);
            side.del(&pod, &chain, "1.0.0", Some(&result), "eth0").unwrap();
            for family in FAMILIES {
                assert_refused(&side.world.n, at(host_ip(family), 8080));
            }
        }
    }
}

/// Whether a plugin of this name is part of the program yet.
pub(crate) fn portolan_has(kind: &str) -> bool {
    portolan_plugins::TYPES.contains(&kind)
}

#[test]
fn a_port_has_one_holder() {
    let Some(pair) = Pair::or_skip("portmap-holder") else { return };
    originals(&pair);
    let side = &pair.ours;
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let chain = published("web", &json!({}), &ports);
    let (first, second) = (side.pod("first"), side.pod("second"));
    let result = side.add(&first, &chain, "1.0.0", "eth0").unwrap();
    let _server = TcpServer::start(&first, any(Family::V6, 80), "first").unwrap();
    let refusal = side.add(&second, &chain, "1.0.0", "eth0").unwrap_err();
    assert!(refusal.msg.contains("tcp 8080") && refusal.msg.contains("`first`"), "{refusal:?}");
    assert_eq!(refusal.code, 100);
    assert_leads(&side.world.n, at(host_ip(Family::V4), 8080), "first");
    // A DEL of who was refused takes nothing from the holder, and neither does one of who never was.
    side.del(&second, &chain, "1.0.0", None, "eth0").unwrap();
    side.del(&second, &chain, "1.0.0", Some(&result), "eth0").unwrap();
    assert_leads(&side.world.n, at(host_ip(Family::V4), 8080), "first");
    side.del(&first, &chain, "1.0.0", Some(&result), "eth0").unwrap();
    side.del(&first, &chain, "1.0.0", Some(&result), "eth0").unwrap();
    let result = side.add(&second, &chain, "1.0.0", "eth0").unwrap();
    // Late, and without effect.
    side.del(&first, &chain, "1.0.0", Some(&result), "eth0").unwrap();
    side.check(&second, &chain, "1.0.0", &result).unwrap();
}

/// What one plugin of `chain` is asked directly.
fn ask_portmap(side: &Side, verb: &str, pod: &Pod, config: &Value) -> Result<Value, crate::runtime::Refusal> {
    let command = side.command("portmap", verb, pod, "eth0");
    crate::runtime::answer(&crate::runtime::output_of(command, config.to_string().as_bytes()))
}

#[test]
fn del_gc_and_check_look_at_the_kernel() {
    let Some(pair) = Pair::or_skip("portmap-kernel") else { return };
    originals(&pair);
    let side = &pair.ours;
    let peers = Chain::new("peers", [bridge()]);
    let keeper = side.pod("keeper");
    side.add(&keeper, &peers, "1.0.0", "eth0").unwrap();
    let before = side.world.untouched();
    let assert_nothing_left = |what: &str| {
        let now = snapshot(&side.world.h).unwrap();
        let rules: Vec<String> = portolan_lab::snapshot::diff(&before, &now);
        let rules: Vec<&String> = rules.iter().filter(|line| line.contains("portolan")).collect();
        assert!(rules.is_empty(), "{what}: {rules:#?}");
    };
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.1.1"}]);
    let config = |version: &str, result: Option<&Value>| {
        let mut config = json!({"cniVersion": version, "name": "web", "type": "portmap",
            "runtimeConfig": {"portMappings": ports}});
        if let Some(result) = result {
            config["prevResult"] = result.clone();
        }
        config
    };
    let pod = side.pod("c1");
    let bridged = side.add(&pod, &Chain::new("web", [bridge()]), "1.1.0", "eth0").err();
    assert!(bridged.is_some(), "Debian's speaks no 1.1.0");
    let bridged = side.add(&pod, &Chain::new("web", [bridge()]), "1.0.0", "eth0").unwrap();
    let add = || ask_portmap(side, "ADD", &pod, &config("1.1.0", Some(&bridged))).unwrap();
    let result = add();
    assert_eq!(result["ips"], bridged["ips"]);
    // Again: nothing changes.
    assert_eq!(add(), result);
    let check = || ask_portmap(side, "CHECK", &pod, &config("1.1.0", Some(&bridged)));
    check().unwrap();

    // Without anything that tells.
    let mut bare = config("1.1.0", None);
    bare.as_object_mut().unwrap().remove("runtimeConfig");
    ask_portmap(side, "DEL", &pod, &bare).unwrap();
    assert_nothing_left("DEL without prevResult and ports");
    let refusal = check().unwrap_err();
    assert_eq!((refusal.code, refusal.msg.as_str()), (103, "ports of container `c1` are not published"));
    // With a configuration that is none any more.
    add();
    let mut changed = config("1.1.0", None);
    changed["conditionsV4"] = json!(["-s", "10.0.0.0/8"]);
    ask_portmap(side, "DEL", &pod, &changed).unwrap();
    assert_nothing_left("DEL with another configuration");

    add();
    let gc = |valid: Value| {
        let mut config = config("1.1.0", None);
        config["cni.dev/valid-attachments"] = valid;
        ask_portmap(side, "GC", &pod, &config).unwrap();
    };
    gc(json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]));
    check().unwrap();
    gc(json!([{"containerID": "c1", "ifname": "eth1"}]));
    assert_nothing_left("GC");
    ask_portmap(side, "STATUS", &pod, &config("1.1.0", None)).unwrap();

    // Somebody takes a rule away, or everything.
    add();
    let nft = |line: &str| {
        let mut command = side.world.h.command("nft").unwrap();
        assert!(command.args(line.split(' ')).status().unwrap().success(), "{line}");
    };
    nft("flush chain inet portolan_cni cni_publish");
    assert_eq!(check().unwrap_err().code, 103);
    let other = side.pod("c2");
    let mut second = config("1.1.0", Some(&bridged));
    second["prevResult"]["ips"] = json!([{"interface": 2, "address": "10.4.0.77/24"}]);
    second["runtimeConfig"]["portMappings"] = json!([{"hostPort": 99, "containerPort": 99, "protocol": "tcp"}]);
    ask_portmap(side, "ADD", &other, &second).unwrap();
    nft("list chain inet portolan_cni cni_publish");
    check().unwrap();
    nft("flush ruleset");
    assert_eq!(check().unwrap_err().code, 103);
    ask_portmap(side, "DEL", &pod, &config("1.1.0", Some(&bridged))).unwrap();
}

/// Beside networks of the engine, which know nothing of each other.
#[test]
fn many_at_once() {
    let Some(pair) = Pair::or_skip("portmap-many") else { return };
    let side = &pair.ours;
    side.world.network("web", &[]);
    let before = side.world.untouched();
    let pods: Vec<Pod> = (0..8).map(|number| side.pod(&format!("c{number}"))).collect();
    let each = |verb: &str, with_all: bool| {
        std::thread::scope(|scope| {
            for (number, pod) in pods.iter().enumerate() {
                scope.spawn(move || {
                    let mut config = json!({"cniVersion": "1.1.0", "name": "many", "type": "portmap"});
                    if with_all {
                        config["runtimeConfig"] = json!({"portMappings": [
                            {"hostPort": 9000 + number, "containerPort": 80, "protocol": "tcp"}]});
                        config["prevResult"] = json!({"cniVersion": "1.1.0",
                            "ips": [{"address": format!("10.9.0.{}/24", number + 2)}]});
                    }
                    ask_portmap(side, verb, pod, &config).unwrap_or_else(|refusal| panic!("{verb}: {refusal:?}"))
                });
            }
        });
    };
    for knows in [true, false] {
        each("ADD", true);
        each("CHECK", true);
        side.world.verify();
        each("DEL", knows);
        let changes = portolan_lab::snapshot::diff(&before, &snapshot(&side.world.h).unwrap());
        assert!(changes.is_empty(), "{changes:#?}");
    }
    side.world.verify();
}

#[test]
fn refusals() {
    let Some(pair) = Pair::or_skip("portmap-refusals") else { return };
    originals(&pair);
    let pod = pair.ours.pod("c1");
    let config = |more: Value| {
        let mut config = json!({"cniVersion": "1.0.0", "name": "web", "type": "portmap",
            "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]}});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    for more in [
        json!({}),
        json!({"markMasqBit": 32}),
        json!({"markMasqBit": 3, "externalSetMarkChain": "KUBE-MARK-MASQ"}),
        json!({"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}]}}),
        json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": -7, "protocol": "tcp"}]}}),
    ] {
        let [ours, theirs] = [&pair.ours, &pair.theirs].map(|side| {
            let pod = if side.name == "ours" { &pod } else { &side.pod(&format!("r{}", more.to_string().len())) };
            ask_portmap(side, "ADD", pod, &config(more.clone())).unwrap_err()
        });
        // Theirs says what it was doing before the reason.
        assert!(theirs.msg.ends_with(&ours.msg), "{ours:?} {theirs:?}");
    }
    let refusal =
        ask_portmap(&pair.ours, "ADD", &pod, &config(json!({"conditionsV4": ["-s", "10.0.0.0/8"]}))).unwrap_err();
    assert_eq!((refusal.code, refusal.msg.as_str()), (2, "conditionsV4 is not supported"));
}

/// A port of a container on two networks leads to the one that it came to last, and to the other when that goes.
#[test]
fn two_networks_of_one_container() {
    let Some(pair) = Pair::or_skip("portmap-two") else { return };
    originals(&pair);
    let side = &pair.ours;
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "10.0.1.1"}]);
    let on = |name: &str, number: u8| {
        let bridge = json!({"type": "bridge", "bridge": format!("cni{number}"), 
            "isDefaultGateway": true, "ipam": {"type": "host-local", "dataDir": "$DIR/leases",
            "ranges": [[{"subnet": format!("10.{number}.0.0/24")}], [{"subnet": format!("fd00:{number}::/64")}]]}});
        // What comes by a network is answered by it.
        let plugins =
            [bridge, json!({"type": "sbr"}), json!({"type": "portmap", "capabilities": {"portMappings": true}})];
        Chain::new(name, plugins).runtime("portMappings", ports.clone())
    };
    let (first, second) = (on("first", 4), on("second", 5));
    let before = side.world.untouched();
    for (round, goes_first) in ["second", "first", "GC"].into_iter().enumerate() {
        let pod = side.pod(&format!("c{round}"));
        let add = |chain: &Chain, ifname: &str| side.add(&pod, chain, "1.0.0", ifname).unwrap();
        let one = add(&first, "eth0");
        let address = |result: &Value, place: usize| -> IpAddr {
            result["ips"][place]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
        };
        let serve = |result: &Value, text: &str| {
            [0, 1].map(|place| TcpServer::start(&pod, SocketAddr::new(address(result, place), 80), text).unwrap())
        };
        let _first = serve(&one, "first");
        let leads = |to: &str| {
            for family in FAMILIES {
                for from in [&side.world.n, &side.world.h] {
                    assert_leads(from, at(host_ip(family), 8080), to);
                }
            }
            assert_leads(&side.world.n, at(host_ip(Family::V4), 8081), to);
        };
        leads("first");
        let two = add(&second, "eth1");
        let _second = serve(&two, "second");
        leads("second");
        let check = |chain: &Chain, result: &Value, ifname: &str| {
            let config = chain.config(&chain.plugins[2], "1.0.0", Some(result));
            side.call("CHECK", &pod, chain, &config, ifname)
        };
        check(&first, &one, "eth0").unwrap();
        check(&second, &two, "eth1").unwrap();
        let del = |chain: &Chain, result: &Value, ifname: &str| {
            side.del(&pod, chain, "1.0.0", Some(result), ifname).unwrap();
        };
        match goes_first {
            "second" => {
                // Again, and back again: the last one counts.
                let portmap = first.config(&first.plugins[2], "1.0.0", Some(&one));
                side.call("ADD", &pod, &first, &portmap, "eth0").unwrap();
                leads("first");
                check(&second, &two, "eth1").unwrap();
                let portmap = second.config(&second.plugins[2], "1.0.0", Some(&two));
                side.call("ADD", &pod, &second, &portmap, "eth1").unwrap();
                leads("second");
                del(&second, &two, "eth1");
                leads("first");
                check(&first, &one, "eth0").unwrap();
                del(&first, &one, "eth0");
            }
            "first" => {
                del(&first, &one, "eth0");
                leads("second");
                check(&second, &two, "eth1").unwrap();
                assert_eq!(check(&first, &one, "eth0").unwrap_err().code, 103);
                del(&second, &two, "eth1");
            }
            _ => {
                // A table of before there was anybody to wait: it is made anew.
                let gc = json!({"cniVersion": "1.1.0", "name": "second", "type": "portmap",
                    "cni.dev/valid-attachments": []});
                ask_portmap(side, "GC", &pod, &gc).unwrap();
                leads("first");
                let mut command = side.world.h.command("nft").unwrap();
                let line = "delete map inet portolan_cni cni_waiting4 ; delete map inet portolan_cni cni_waiting6";
                assert!(command.args(line.split(' ')).status().unwrap().success());
                let portmap = second.config(&second.plugins[2], "1.0.0", Some(&two));
                side.call("ADD", &pod, &second, &portmap, "eth1").unwrap();
                leads("second");
                del(&second, &two, "eth1");
                leads("first");
                del(&first, &one, "eth0");
            }
        }
        for family in FAMILIES {
            assert_refused(&side.world.n, at(host_ip(family), 8080));
        }
        let left: Vec<String> = portolan_lab::snapshot::diff(&before, &snapshot(&side.world.h).unwrap());
        assert!(!left.iter().any(|line| line.contains("portolan")), "{left:#?}");
    }
}
