//! What hosts find of the paths to each other, and say of it: measured in packets that the switch between them delays, loses, cuts off
//! or spoils.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use portolan_lab::probe::tcp_probe;
use portolan_lab::server::TcpServer;
use portolan_lab::{Host, eventually};
use serde_json::Value;

use crate::overlay::{has, joined};
use crate::world::{LONG, Node, World};

/// A blocked port is to be said within this.
const SOON: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

impl Node {
    /// What it finds of its path to another host.
    fn path(&self, to: &str, encrypted: bool) -> Value {
        let rows: Value = serde_json::from_str(&self.ok("--json cluster nodes")).unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == to).unwrap();
        let paths = row["paths"].as_array().unwrap();
        paths.iter().find(|path| path["encrypted"] == encrypted).cloned().unwrap_or_default()
    }

    #[track_caller]
    fn finds(&self, to: &str, encrypted: bool, state: &str, patience: Duration) {
        let is_so = || self.path(to, encrypted)["state"] == state;
        assert!(eventually(patience, is_so), "{} to {to}: {}", self.host.name(), self.path(to, encrypted));
    }

    /// What ip(8) shows of an interface.
    fn shown(&self, link: &str) -> Value {
        let output = self.host.command("ip").unwrap().args(["-d", "-j", "addr", "show", link]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()[0].clone()
    }

    fn metrics(&self) -> String {
        let socket = self.root.join("run/metrics.sock");
        let mut curl = self.host.command("curl").unwrap();
        let output = curl.arg("-s").arg("--unix-socket").arg(socket).arg("http://localhost/metrics").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl World {
    /// Has the switch treat what it passes on by these rules, and no others.
    #[track_caller]
    fn weather(&self, rules: &[&str]) {
        let rules = rules.join("\n");
        let text = format!(
            "table bridge weather {{}}\ndelete table bridge weather\ntable bridge weather {{ chain passing {{ type filter hook \
             forward priority 0; policy accept;\n{rules}\n}}\n}}\n"
        );
        let file = self.lab.dir().join("weather.nft");
        std::fs::write(&file, text).unwrap();
        let output = self.lan.command("nft").unwrap().arg("-f").arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn paths_are_measured_and_a_blocked_port_is_named() {
    let Some(world) = World::of("paths", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.ok("network create -d overlay --subnet 10.200.0.0/16 open");
    a.ok("network create -d overlay --opt encrypted vault");
    let mut pods = Vec::new();
    for (node, number) in [(a, 1), (b, 2)] {
        for network in ["open", "vault"] {
            has(node, network);
            pods.push(world.pod(node, network, &format!("{network}{number}")));
        }
    }
    for (node, to) in [(a, "b"), (b, "a")] {
        for encrypted in [false, true] {
            node.finds(to, encrypted, "passes", LONG);
            assert!(eventually(SOON, || node.path(to, encrypted)["full_size"] == true), "{}", node.path(to, encrypted));
            let path = node.path(to, encrypted);
            let rtt = path["rtt"].as_f64().unwrap();
            assert!(rtt > 0.0 && rtt < 0.5, "{path}");
            assert_eq!(path["size"], if encrypted { 1370 } else { 1450 }, "{path}");
        }
        node.is_well();
    }
    let table = a.ok("cluster nodes");
    assert!(table.contains("PATH") && table.contains("passes") && table.contains(" ms"), "{table}");
    let metrics = a.metrics();
    for name in ["reached", "rtt_seconds", "loss_ratio", "full_size_ok"] {
        for encrypted in ["false", "true"] {
            let sample = format!("portolan_peer_{name}{{host=\"b\",encrypted=\"{encrypted}\"}}");
            assert!(metrics.contains(&sample), "{sample}: {metrics}");
        }
    }
    let rules = a.ok("rules");
    assert!(rules.contains("are answered over IPv6 when they measure the path here"), "{rules}");

    // What measures gets in there, and nothing else; nor does a container get to where hosts ask each other.
    let is_clear = |link: &String| a.shown(link)["linkinfo"]["info_data"]["local"] == "10.0.1.1";
    let link = a.links("vx-").into_iter().find(is_clear).unwrap();
    let end: Ipv6Addr = b.shown(&link)["addr_info"][0]["local"].as_str().unwrap().parse().unwrap();
    let scope = a.host.enter(|| portolan_kernel::socket::scope(&link)).unwrap();
    let _server = TcpServer::start(&b.host, "[::]:8080".parse().unwrap(), "b").unwrap();
    assert!(tcp_probe(&a.host, "10.0.1.2:8080".parse().unwrap(), SECOND).is_open());
    assert!(!tcp_probe(&a.host, SocketAddrV6::new(end, 8080, 0, scope).into(), SECOND).is_open());
    let asked = |place: &Host, interface: &str| {
        let words = ["-c", "1", "-W", "1", &format!("{end}%{interface}")];
        place.command("ping").unwrap().args(words).output().unwrap().status.success()
    };
    assert!(asked(&a.host, &link) && !asked(&pods[0].place, "eth0"));

    let delay = |words: &str| {
        let words = words.split(' ');
        b.host.command("tc").unwrap().args(words).output().unwrap().status.success()
    };
    if delay("qdisc add dev eth0 root netem delay 50ms") {
        // Smoothed: each one that takes so long brings it an eighth nearer.
        let is_told = || a.path("b", false)["rtt"].as_f64().is_some_and(|rtt| rtt > 0.01 && rtt < 0.5);
        assert!(eventually(SOON, is_told), "{}", a.path("b", false));
        assert!(delay("qdisc del dev eth0 root"));
    } else {
        eprintln!("this kernel delays nothing (sch_netem): what takes long is not tried");
    }

    world.weather(&["udp dport 4789 numgen inc mod 3 == 0 drop"]);
    let is_told = || a.path("b", false)["loss"].as_f64().is_some_and(|loss| loss > 0.05);
    assert!(eventually(SOON, is_told), "{}", a.path("b", false));
    assert_eq!((&a.path("b", true)["state"], &a.path("b", true)["loss"]), (&"passes".into(), &0.0.into()));

    // Hosts answer still, at other ports.
    world.weather(&["udp dport { 4789, 51820 } drop"]);
    let begin = Instant::now();
    let what = "does not pass between this host and host `b` (10.0.1.2, fd00:1::2), which answers otherwise";
    let named = [format!("UDP 4789, the tunnels' port, {what}"), format!("UDP 51820, WireGuard's port, {what}")];
    let warned = || named.iter().all(|said| a.status()["warnings"].to_string().contains(said));
    assert!(eventually(SOON, warned), "{}", a.status());
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!(a.run(&["cluster", "status"]).status.code(), Some(1));
    assert_eq!((&a.path("b", false)["state"], &a.path("b", true)["state"]), (&"blocked".into(), &"blocked".into()));
    b.finds("a", false, "blocked", SOON);
    b.finds("a", true, "blocked", SOON);
    let verified = a.run(&["cluster", "verify"]);
    let said = String::from_utf8(verified.stdout).unwrap();
    assert_eq!((verified.status.code(), said.matches("UDP 4789").count()), (Some(1), 2), "{said}");
    assert!(a.metrics().contains("portolan_peer_reached{host=\"b\",encrypted=\"false\"} 0"));
    world.weather(&[]);
    a.is_well();
    b.is_well();
}

#[test]
fn what_does_not_get_through_for_its_size_or_its_sum_is_named() {
    let Some(world) = World::of("paths-size", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.ok("network create -d overlay open");
    // The one sends through something that takes less than it should. What the other one leaves to its interface is summed up by the
    // kernel after all, and spoilt afterwards: the sum in the inner UDP header, behind those of UDP, VXLAN, Ethernet and IPv6. It is
    // told by its hops from what was summed up before.
    let made = b.host.command("ethtool").unwrap().args(["-K", "eth0", "tx", "off"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    world.weather(&[
        "ip saddr 10.0.1.1 ip length > 1400 udp dport 4789 drop",
        "ip saddr 10.0.1.2 udp dport 4789 @th,288,8 17 @th,296,8 64 @th,608,16 set 0xdead",
    ]);
    for (node, name) in [(a, "c1"), (b, "c2")] {
        has(node, "open");
        world.pod(node, "open", name);
    }
    a.finds("b", false, "narrow", LONG);
    a.warns("packets of 1450 bytes do not get through to host `b` (10.0.1.2, fd00:1::2), and small ones do");
    b.finds("a", false, "corrupt", LONG);
    b.warns("packets to host `a` (10.0.1.1, fd00:1::1) do not arrive when this host's interface is to fill in their checksum");
    assert_eq!(
        (&a.path("b", false)["full_size"], a.path("b", false)["loss"].as_f64()),
        (&Value::Bool(false), Some(0.0))
    );
    world.weather(&[]);
    a.is_well();
    b.is_well();
}
