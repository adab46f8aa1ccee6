//! `bandwidth`, `tuning`, `sbr` and `vrf` after the originals' `bridge` and `host-local`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::link::{IFF_ALLMULTI, IFF_PROMISC};
use portolan_kernel::rtnl::{Family, link, route, rule};
use portolan_lab::InNetns;
use portolan_lab::server::UdpServer;
use serde_json::{Value, json};

use crate::beside::{Chain, Pair, Side};
use crate::common::{FAMILIES, LONG, any, at, neighbour_ip};
use crate::portmap::{bridge, originals};
use crate::runtime::{Pod, Refusal, answer, output_of};

/// One plugin, called directly.
fn ask(side: &Side, verb: &str, pod: &Pod, config: &Value) -> Result<Value, Refusal> {
    let text = config.to_string().replace("$DIR", side.world.lab.dir().to_str().unwrap());
    answer(&output_of(side.command(config["type"].as_str().unwrap(), verb, pod, "eth0"), text.as_bytes()))
}

/// A configuration of `plugin` in version 1.1.0, after what the bridge answered.
fn config(plugin: &Value, result: Option<&Value>) -> Value {
    let mut config = plugin.clone();
    config["cniVersion"] = json!("1.1.0");
    config["name"] = json!("web");
    if let Some(result) = result {
        config["prevResult"] = result.clone();
    }
    config
}

/// A container on the originals' bridge.
fn bridged(side: &Side, id: &str) -> (Pod, Value) {
    let pod = side.pod(id);
    let result = side.add(&pod, &Chain::new("web", [bridge()]), "1.0.0", "eth0").unwrap();
    (pod, result)
}

fn inside<T: Send>(place: &impl InNetns, f: impl FnOnce(&mut Socket) -> T + Send) -> T {
    with_netns(place.netns(), || f(&mut Socket::open(ROUTE).unwrap())).unwrap()
}

/// The rates and bursts of every token bucket on the host, as tc(8) tells them, by kind of interface.
fn buckets(side: &Side) -> Vec<String> {
    let output = side.world.h.command("tc").unwrap().args(["-j", "qdisc", "show"]).output().unwrap();
    let qdiscs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = Vec::new();
    for qdisc in qdiscs.as_array().unwrap() {
        let dev = qdisc["dev"].as_str().unwrap();
        let dev = dev.get(..3).unwrap_or(dev);
        match qdisc["kind"].as_str().unwrap() {
            "tbf" => found.push(format!("{dev} {} {}", qdisc["options"]["rate"], qdisc["options"]["burst"])),
            "ingress" => found.push(format!("{dev} ingress")),
            _ => {}
        }
    }
    found.sort();
    found
}

#[test]
fn limits() {
    let Some(pair) = Pair::or_skip("bandwidth") else { return };
    originals(&pair);
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let both =
        json!({"ingressRate": 80_000_000, "ingressBurst": 800_000, "egressRate": 40_000_000, "egressBurst": 400_000});
    let into = json!({"ingressRate": 80_000_000, "ingressBurst": 800_000});
    for (name, limits) in [("both", both.clone()), ("into", into), ("none", json!({}))] {
        let chain = Chain::new(name, [bridge(), bandwidth.clone()]).runtime("bandwidth", limits);
        pair.same(&chain, |side, _| buckets(side));
        assert_eq!(buckets(&pair.ours), buckets(&pair.theirs), "nothing is left");
    }
    // In the configuration itself.
    let mut own = bandwidth;
    own.as_object_mut().unwrap().extend(both.as_object().unwrap().clone());
    pair.same(&Chain::new("own", [bridge(), own]), |side, _| buckets(side));
}

/// What TCP gets from one place to another, in bits per second of frames of 1514 bytes with 1448 in each.
fn tcp_rate(from: &impl InNetns, to: &impl InNetns, ip: IpAddr) -> f64 {
    let listener = with_netns(to.netns(), || TcpListener::bind(SocketAddr::new(ip, 0)).unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let mut sender = with_netns(from.netns(), || TcpStream::connect_timeout(&to, LONG).unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(LONG)).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let chunk = vec![0; 1 << 16];
            while sender.write_all(&chunk).is_ok() {}
        });
        let mut buffer = vec![0; 1 << 18];
        let warm = Instant::now();
        while warm.elapsed() < Duration::from_millis(700) {
            let _ = receiver.read(&mut buffer).unwrap();
        }
        let (started, mut bytes) = (Instant::now(), 0);
        while started.elapsed() < Duration::from_secs(3) {
            bytes += receiver.read(&mut buffer).unwrap();
        }
        let rate = bytes as f64 * 8.0 / started.elapsed().as_secs_f64();
        drop(receiver);
        rate * 1514.0 / 1448.0
    })
}

#[test]
fn limits_hold() {
    let Some(pair) = Pair::or_skip("bandwidth-rate") else { return };
    originals(&pair);
    let side = &pair.ours;
    let (pod, result) = bridged(side, "c1");
    let address: IpAddr = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    let plugin = |rate: u64| json!({"type": "bandwidth", "ingressRate": rate, "ingressBurst": 400_000, "egressRate": rate, "egressBurst": 400_000});
    side.world.h.enable_forwarding().unwrap();
    side.world.n.add_route("10.4.0.0/24", "10.0.1.1").unwrap();
    for rate in [20_000_000, 100_000_000] {
        let config = config(&plugin(rate), Some(&result));
        ask(side, "ADD", &pod, &config).unwrap();
        // What waited while this machine had no time for us is read late, and counts for the wrong second.
        let near = |measure: &dyn Fn() -> f64| {
            let mut rates = Vec::new();
            let is_near = (0..6).any(|_| {
                rates.push(measure());
                (rates[rates.len() - 1] / rate as f64 - 1.0).abs() <= 0.03
            });
            assert!(is_near, "{rate}: {rates:?}");
        };
        near(&|| tcp_rate(&side.world.h, &pod, address));
        near(&|| tcp_rate(&pod, &side.world.n, neighbour_ip(Family::V4)));
    }
}

#[test]
fn limits_of_the_kernel_are_looked_at() {
    let Some(pair) = Pair::or_skip("bandwidth-kernel") else { return };
    originals(&pair);
    let side = &pair.ours;
    let (pod, result) = bridged(side, "c1");
    let plugin = json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 8_000_000, "egressBurst": 80_000});
    let with = config(&plugin, Some(&result));
    let added = ask(side, "ADD", &pod, &with).unwrap();
    let ifb = added["interfaces"].as_array().unwrap().last().unwrap()["name"].as_str().unwrap().to_owned();
    assert_eq!(ask(side, "ADD", &pod, &with).unwrap(), added, "again");
    ask(side, "CHECK", &pod, &with).unwrap();
    let tc = |line: &str| {
        let done = side.world.h.command("tc").unwrap().args(line.split(' ')).status().unwrap();
        assert!(done.success(), "{line}");
    };
    tc(&format!("qdisc del dev {ifb} root"));
    let refusal = ask(side, "CHECK", &pod, &with).unwrap_err();
    assert!(refusal.code == 103 && refusal.msg.contains(&ifb), "{refusal:?}");
    let gc = |valid: Value| {
        let mut config = config(&plugin, None);
        config["cni.dev/valid-attachments"] = valid;
        ask(side, "GC", &pod, &config).unwrap();
        inside(&side.world.h, |socket| link::lookup(socket, ifb.as_str()).unwrap().is_some())
    };
    assert!(gc(json!([{"containerID": "c1", "ifname": "eth0"}])));
    assert!(!gc(json!([])));
    ask(side, "ADD", &pod, &with).unwrap();
    ask(side, "DEL", &pod, &config(&json!({"type": "bandwidth", "ingressRate": 1}), None)).unwrap();
    assert!(inside(&side.world.h, |socket| link::lookup(socket, ifb.as_str()).unwrap().is_none()));
    for (more, msg) in [
        (json!({"ingressRate": 8}), "if rate is set, burst must also be set"),
        (json!({"egressBurst": 8}), "if burst is set, rate must also be set"),
        (json!({"ingressRate": 8, "ingressBurst": 8, "prevResult": null}), "must be called as chained plugin"),
        (
            json!({"ingressRate": 8, "ingressBurst": 8, "shapedSubnets": ["10.0.0.0/8"]}),
            "shapedSubnets and unshapedSubnets are not supported",
        ),
    ] {
        let mut config = config(&json!({"type": "bandwidth"}), Some(&result));
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(ask(side, "ADD", &pod, &config).unwrap_err().msg, msg);
    }
}

/// What `tuning` changes of a container.
fn tuned(pod: &Pod) -> String {
    let link = inside(pod, |socket| link::lookup(socket, "eth0").unwrap().unwrap());
    let filter = pod.host.enter(|| fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/arp_filter").unwrap());
    format!(
        "{:02x?} {} promisc {} allmulti {} queue {} filter {}",
        link.mac.unwrap(),
        link.mtu,
        link.flags & IFF_PROMISC != 0,
        link.flags & IFF_ALLMULTI != 0,
        link.tx_queue_len,
        filter.trim()
    )
}

fn tuning() -> Value {
    json!({"type": "tuning", "dataDir": "$DIR/tuning", "mac": "c2:11:22:33:44:55", "mtu": 1400, "promisc": true,
        "allmulti": true, "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}})
}

#[test]
fn settings() {
    let Some(pair) = Pair::or_skip("tuning") else { return };
    originals(&pair);
    let mut by_runtime = tuning();
    by_runtime["capabilities"] = json!({"mac": true});
    pair.same(&Chain::new("all", [bridge(), tuning()]), |_, pod| tuned(pod));
    let chain = Chain::new("mac", [bridge(), by_runtime.clone()]).runtime("mac", json!("c2:11:22:33:44:66"));
    pair.same(&chain, |_, pod| tuned(pod));
    pair.same(&Chain::new("args", [bridge(), by_runtime]).args("IgnoreUnknown=1;MAC=c2:11:22:33:44:77"), |_, pod| {
        tuned(pod)
    });
    let mut args = json!({"type": "tuning", "dataDir": "$DIR/tuning"});
    args["args"] = json!({"cni": {"mac": "c2:11:22:33:44:88", "mtu": 1300}});
    pair.same(&Chain::new("cni", [bridge(), args]), |_, pod| tuned(pod));
}

#[test]
fn either_takes_back_what_the_other_did() {
    let Some(pair) = Pair::or_skip("tuning-mixture") else { return };
    originals(&pair);
    let side = &pair.ours;
    for (add, del) in [(true, true), (true, false), (false, true)] {
        let (pod, result) = bridged(side, &format!("c-{add}-{del}"));
        let before = tuned(&pod);
        let mut config = config(&tuning(), Some(&result));
        config["cniVersion"] = json!("1.0.0");
        config.as_object_mut().unwrap().remove("sysctl");
        side.choose("tuning", add);
        let tuned_result = ask(side, "ADD", &pod, &config).unwrap();
        assert_eq!(tuned_result["interfaces"][2]["mac"], "c2:11:22:33:44:55");
        assert_ne!(tuned(&pod), before);
        side.choose("tuning", del);
        ask(side, "CHECK", &pod, &config).unwrap();
        ask(side, "DEL", &pod, &config).unwrap();
        ask(side, "DEL", &pod, &config).unwrap();
        assert_eq!(tuned(&pod), before, "{add} {del}");
        assert_eq!(fs::read_dir(side.world.lab.dir().join("tuning")).unwrap().count(), 0);
    }
}

#[test]
fn settings_are_looked_at_and_taken_back() {
    let Some(pair) = Pair::or_skip("tuning-kernel") else { return };
    originals(&pair);
    let side = &pair.ours;
    let (pod, result) = bridged(side, "c1");
    let before = tuned(&pod);
    let mut plugin = tuning();
    plugin["txQLen"] = json!(77);
    plugin["sysctl"] = json!({"net.ipv4.conf.IFNAME.arp_filter": "1"});
    let with = config(&plugin, Some(&result));
    ask(side, "ADD", &pod, &with).unwrap();
    ask(side, "CHECK", &pod, &with).unwrap();
    assert!(tuned(&pod).contains("queue 77 filter 1"), "{}", tuned(&pod));
    pod.host.sysctl(&["net", "ipv4", "conf", "eth0", "arp_filter"], "0").unwrap();
    let refusal = ask(side, "CHECK", &pod, &with).unwrap_err();
    assert!(refusal.code == 103 && refusal.msg.contains("arp_filter is 1, current value is 0"), "{refusal:?}");
    ask(side, "DEL", &pod, &with).unwrap();
    assert_eq!(tuned(&pod), before);
    // What fails changes nothing.
    for (more, part) in [
        (json!({"sysctl": {"net.ipv4.conf.eth0.arp_filter": "1", "net.ipv4.no_such": "1"}}), "no_such"),
        (json!({"sysctl": {"kernel.hostname": "x"}}), "invalid net sysctl key: \"kernel/hostname\""),
        (json!({"mac": "none"}), "invalid args none for MAC addr"),
        (json!({"mtu": 7, "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}}), "change interface \"eth0\""),
        (json!({"prevResult": null}), "Required prevResult missing"),
    ] {
        let mut config = with.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let refusal = ask(side, "ADD", &pod, &config).unwrap_err();
        assert!(refusal.msg.contains(part), "{refusal:?}");
        assert_eq!(tuned(&pod), before, "{more}");
    }
    // A container that is gone leaves its file, until GC or DEL.
    let kept = || fs::read_dir(side.world.lab.dir().join("tuning")).unwrap().count();
    ask(side, "ADD", &pod, &with).unwrap();
    let gc = |valid: Value| {
        let mut config = config(&plugin, None);
        config["cni.dev/valid-attachments"] = valid;
        ask(side, "GC", &pod, &config).unwrap();
        kept()
    };
    assert_eq!(gc(json!([{"containerID": "c1", "ifname": "eth0"}])), 1);
    assert_eq!(gc(json!([])), 0);
}

#[test]
fn the_administrator_allows() {
    let Some(pair) = Pair::or_skip("tuning-allowed") else { return };
    originals(&pair);
    let side = &pair.ours;
    let (pod, result) = bridged(side, "c1");
    // In a mount namespace of its own, where /etc is another.
    let script = "mount -t tmpfs none /etc && mkdir -p /etc/cni/tuning \
        && printf '%s\\n' '^net\\.ipv4\\.conf\\.[a-z0-9]+\\.arp_filter$' '' > /etc/cni/tuning/allowlist.conf && exec \"$0\"";
    let ask = |sysctl: Value| {
        let inner = side.command("tuning", "ADD", &pod, "eth0");
        let mut outer = Command::new("unshare");
        outer.args(["--mount", "sh", "-c", script]).arg(inner.get_program());
        outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let config = config(&json!({"type": "tuning", "sysctl": sysctl}), Some(&result)).to_string();
        answer(&output_of(side.world.h.adopt(outer).unwrap(), config.as_bytes()))
    };
    ask(json!({"net.ipv4.conf.eth0.arp_filter": "1"})).unwrap();
    let refusal = ask(json!({"net.ipv4.conf.eth0.arp_announce": "1"})).unwrap_err();
    let wanted = "Sysctl net.ipv4.conf.eth0.arp_announce is not allowed. Only the following sysctls are allowed: \
        [^net\\.ipv4\\.conf\\.[a-z0-9]+\\.arp_filter$]";
    assert_eq!(refusal.msg, wanted);
}

/// Rules by source, and the routes of the tables that they lead to and of the main one.
fn routing(pod: &Pod) -> Vec<String> {
    inside(pod, |socket| {
        let mut found = Vec::new();
        for family in FAMILIES {
            for rule in rule::dump(socket, family).unwrap() {
                found.extend(rule.src.map(|(src, len)| format!("from {src}/{len} table {}", rule.table)));
            }
            for route in route::dump_family(socket, family).unwrap() {
                if route.table < 255 {
                    found.push(format!(
                        "{}/{} via {:?} table {}",
                        route.dst, route.prefix_len, route.gateway, route.table
                    ));
                }
            }
        }
        found.sort();
        found
    })
}

/// Whether a datagram from each address of the container is answered.
fn answered(side: &Side, pod: &Pod) -> Vec<bool> {
    FAMILIES
        .map(|family| {
            let server = UdpServer::start(&side.world.n, any(Family::V6, 0), "n").unwrap();
            let own = inside(pod, |socket| {
                let index = link::lookup(socket, "eth0").unwrap().unwrap().index;
                let all = portolan_kernel::rtnl::addr::dump(socket, Some(index)).unwrap();
                all.into_iter()
                    .map(|address| address.addr)
                    .find(|ip| Family::of(*ip) == family && !ip.to_string().starts_with("fe80"))
            });
            let socket = with_netns(pod.netns(), || UdpSocket::bind((own.unwrap(), 0)).unwrap()).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
            (0..10).any(|_| {
                socket.send_to(b"?", at(neighbour_ip(family), server.addr().port())).is_ok()
                    && socket.recv(&mut [0; 64]).is_ok()
            })
        })
        .to_vec()
}

#[test]
fn routes_by_source() {
    let Some(pair) = Pair::or_skip("sbr") else { return };
    originals(&pair);
    for side in [&pair.ours, &pair.theirs] {
        for (to, gateway) in [("10.4.0.0/24", "10.0.1.1"), ("fd00:4::/64", "fd00:1::1")] {
            side.world.n.add_route(to, gateway).unwrap();
        }
    }
    let chain = Chain::new("sbr", [bridge(), json!({"type": "sbr"})]);
    pair.same(&chain, |side, pod| (routing(pod), answered(side, pod)));

    let side = &pair.ours;
    let (pod, result) = bridged(side, "c1");
    let with = config(&json!({"type": "sbr"}), Some(&result));
    ask(side, "ADD", &pod, &with).unwrap();
    let added = routing(&pod);
    ask(side, "ADD", &pod, &with).unwrap();
    assert_eq!(routing(&pod), added, "again");
    ask(side, "CHECK", &pod, &with).unwrap();
    let from = |line: &&String| line.starts_with("from 10.4") || line.starts_with("from fd00:4");
    inside(&pod, |socket| {
        let mut batch = Batch::new();
        for rule in rule::dump(socket, Family::V4).unwrap().iter().filter(|rule| rule.src.is_some()) {
            rule::delete(&mut batch, rule);
        }
        socket.transact(&batch).unwrap();
    });
    assert_eq!(ask(side, "CHECK", &pod, &with).unwrap_err().code, 103);
    ask(side, "DEL", &pod, &config(&json!({"type": "sbr"}), None)).unwrap();
    assert_eq!(routing(&pod).iter().filter(from).count(), 0);
    // A table of somebody else's.
    let with = config(&json!({"type": "sbr", "table": 7}), Some(&result));
    ask(side, "ADD", &pod, &with).unwrap();
    ask(side, "CHECK", &pod, &with).unwrap();
    assert!(routing(&pod).iter().filter(from).all(|line| line.ends_with("table 7")));
    ask(side, "DEL", &pod, &with).unwrap();
    assert_eq!(routing(&pod).iter().filter(from).count(), 0);
    let refusal = ask(side, "ADD", &pod, &config(&json!({"type": "sbr"}), None)).unwrap_err();
    assert_eq!(refusal.msg, "This plugin must be called as chained plugin");
}

#[test]
fn routing_domains() {
    let Some(pair) = Pair::or_skip("vrf") else { return };
    originals(&pair);
    let side = &pair.ours;
    let (pod, result) = bridged(side, "c1");
    let with = config(&json!({"type": "vrf", "vrfname": "red"}), Some(&result));
    let unnamed = ask(side, "ADD", &pod, &config(&json!({"type": "vrf"}), Some(&result))).unwrap_err();
    assert_eq!(unnamed.msg, "configuration is expected to have a valid vrf name");
    let orphan = ask(side, "ADD", &pod, &config(&json!({"type": "vrf", "vrfname": "red"}), None)).unwrap_err();
    assert_eq!(orphan.msg, "missing prevResult from earlier plugin");
    match ask(side, "ADD", &pod, &with) {
        Err(refusal) if refusal.code == 50 => {
            eprintln!("SKIP: {}: {}", refusal.msg, refusal.details);
            ask(side, "DEL", &pod, &with).unwrap();
            return;
        }
        other => assert_eq!(other.unwrap()["ips"], result["ips"]),
    }
    ask(side, "CHECK", &pod, &with).unwrap();
    ask(side, "DEL", &pod, &with).unwrap();
    assert_eq!(ask(side, "CHECK", &pod, &with).unwrap_err().code, 103);
    let chain = Chain::new("vrf", [bridge(), json!({"type": "vrf", "vrfname": "red", "table": 9})]);
    pair.same(&chain, |_, pod| routing(pod));
}
