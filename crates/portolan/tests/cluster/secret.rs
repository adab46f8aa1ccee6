//! A secret that hosts have in common: without it a host is on no encrypted network, whatever etcd says.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use portolan_lab::etcd::Etcd;
use portolan_lab::eventually;
use portolan_lab::probe::ping;
use serde_json::Value;

use crate::overlay::{Pod, has};
use crate::world::{LONG, Node, World};

fn join(world: &World, node: &Node, verb: &str, etcd: &Etcd, secret: Option<&str>) {
    let mut line = format!("cluster {verb} --etcd {} --name {}", etcd.endpoints("http").join(","), node.host.name());
    if let Some(secret) = secret {
        let path = world.lab.dir().join(format!("secret-{}", node.host.name()));
        fs::write(&path, format!("{secret}\n")).unwrap();
        line.push_str(&format!(" --preshared-key-file {}", path.display()));
    }
    node.ok(&line);
}

fn reaches(from: &Pod, to: &Pod) -> bool {
    to.addresses.iter().all(|address| ping(from, *address, Duration::from_millis(500)).is_open())
}

#[test]
fn who_has_not_the_secret_is_on_no_encrypted_network() {
    let Some(world) = World::of("overlay-preshared", &["a", "b", "c", "d"]) else { return };
    let etcd = world.etcd(1);
    let [a, b, c, d] = &world.nodes[..] else { panic!("four hosts") };
    let (right, wrong) =
        ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    let path = world.lab.dir().join("short");
    fs::write(&path, "AAAA").unwrap();
    let url = "http://10.0.1.11:2379";
    let said = a.refused(&format!("cluster init --etcd {url} --name a --preshared-key-file {}", path.display()));
    assert!(said.contains("holds no secret"), "{said}");
    join(&world, a, "init", &etcd, Some(right));
    join(&world, b, "join", &etcd, Some(right));
    join(&world, c, "join", &etcd, Some(wrong));
    join(&world, d, "join", &etcd, None);
    a.sees("a up, b up, c up, d up");
    a.ok("network create -d overlay --opt encrypted vault");
    a.ok("network create -d overlay open");
    for node in [a, b, c, d] {
        has(node, "vault");
        has(node, "open");
    }
    let vault = [a, b, c, d].map(|node| world.pod(node, "vault", &format!("v{}", node.host.name())));
    let open = [a, b, c, d].map(|node| world.pod(node, "open", &format!("o{}", node.host.name())));
    let [va, vb, vc, vd] = &vault;
    assert!(eventually(LONG, || reaches(va, vb) && reaches(vb, va)));
    // The others are no worse off on networks that are not encrypted.
    for other in &open[1..] {
        assert!(eventually(LONG, || reaches(&open[0], other) && reaches(other, &open[0])), "{}", other.name);
    }
    for (from, to) in [(va, vc), (vc, va), (va, vd), (vd, va), (vc, vd), (vd, vb)] {
        assert!(
            !to.addresses.iter().any(|address| ping(from, *address, Duration::from_secs(2)).is_open()),
            "{}",
            to.name
        );
    }
    for (node, other) in [(a, "`c`"), (b, "`d`"), (c, "`d`"), (d, "`a`")] {
        node.warns(&format!("host {other} has another secret"));
    }
    assert!(!a.status()["warnings"].to_string().contains("host `b`"));
    let verified: Value = serde_json::from_slice(&a.run(&["--json", "cluster", "verify"]).stdout).unwrap();
    assert!(verified[0]["differences"].to_string().contains("host `c` has another secret"), "{verified}");
    // Nothing of it is in etcd but what does not tell it.
    let all = etcd.ctl(&["get", "--prefix", "/portolan"]).unwrap();
    assert!(all.contains("\"secret\":") && !all.contains(&right[..43]), "{all}");
    assert!(!a.ok("--json cluster nodes").contains(&right[..43]));
    // Keys change among those who have it; nobody waits for the others.
    let before = a.key().unwrap();
    assert_ne!(a.ok("cluster rotate").trim(), before);
    assert!(eventually(LONG, || reaches(va, vb) && reaches(vb, va)));
    assert!(!reaches(va, vc) && !reaches(vd, va));
    // Who comes back with it is let in.
    for name in ["vd", "od"] {
        d.ok(&format!("detach {name}"));
    }
    d.ok("cluster leave");
    join(&world, d, "join", &etcd, Some(right));
    has(d, "vault");
    let again = world.pod(d, "vault", "again");
    assert!(eventually(LONG, || reaches(va, &again) && reaches(&again, vb)));
}

/// What is told to Prometheus.
fn metrics(node: &Node) -> String {
    let mut stream = UnixStream::connect(node.root.join("run/metrics.sock")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn figures_of_hosts_are_told() {
    let Some(world) = World::of("overlay-figures", &["a", "b"]) else { return };
    let etcd = world.etcd(1);
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    a.join("init", &etcd);
    b.join("join", &etcd);
    a.sees("a up, b up");
    let link = || serde_json::from_str::<Value>(&a.ok("--json cluster nodes")).unwrap()[1]["link"].clone();
    assert_eq!(link(), Value::Null, "nothing is encrypted");
    a.ok("network create -d overlay --opt encrypted web");
    has(b, "web");
    let (near, far) = (world.pod(a, "web", "near"), world.pod(b, "web", "far"));
    assert!(eventually(LONG, || reaches(&near, &far)));
    let counts = || ["received", "sent"].map(|key| link()[key].as_u64().unwrap_or(0));
    assert!(eventually(LONG, || counts().iter().all(|count| *count > 200)), "{}", link());
    assert_eq!(link()["endpoint"], "10.0.1.2:51820");
    assert!(link()["handshake_age"].as_u64().unwrap() < 60, "{}", link());
    // They go on when keys change.
    let before = counts();
    a.ok("cluster rotate");
    assert!(eventually(LONG, || reaches(&near, &far)));
    assert!(eventually(LONG, || (0..2).all(|at| counts()[at] > before[at])), "{before:?} {}", link());
    let table = a.ok("cluster nodes");
    assert!(table.contains("RECEIVED") && table.contains("s ago"), "{table}");
    let metrics = metrics(a);
    for name in [
        "portolan_link_receive_bytes_total",
        "portolan_link_transmit_bytes_total",
        "portolan_link_handshake_age_seconds",
        "portolan_cluster_host_up",
    ] {
        assert!(metrics.contains(&format!("{name}{{host=\"b\"}}")), "{metrics}");
    }
}
