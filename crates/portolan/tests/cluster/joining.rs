//! Hosts that join a cluster: who knows whom, what survives, and what is refused.

use std::fs;
use std::time::{Duration, Instant};

use portolan_lab::eventually;
use serde_json::Value;

use crate::world::{LONG, Node, World};

#[test]
fn hosts_know_each_other() {
    let Some(world) = World::or_skip("cluster-hosts") else { return };
    let etcd = world.etcd(1);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    a.join("init", &etcd);
    a.sees("a up");
    b.join("join", &etcd);
    c.join("join", &etcd);
    for node in [a, b, c] {
        node.sees("a up, b up, c up");
        node.is_well();
    }
    let nodes: Value = serde_json::from_str(&a.ok("--json cluster nodes")).unwrap();
    assert_eq!(nodes[1]["addresses"], serde_json::json!(["10.0.1.2", "fd00:1::2"]));
    assert_eq!(nodes[1]["mtu"], "1500");
    let table = a.ok("cluster nodes");
    assert!(table.starts_with("HOST ID") && table.lines().count() == 4, "{table}");

    // A daemon that is killed, or becomes another binary, is the same host; nothing keeps it but the cluster.
    b.kill_daemon();
    b.is_well();
    b.ok("daemon upgrade");
    b.is_well();
    a.sees("a up, b up, c up");
    // One that was stopped is down for the others, and back when it is back.
    b.ok("daemon stop");
    a.sees("a up, b down, c up");
    b.ok("daemon start");
    a.sees("a up, b up, c up");
    b.is_well();

    // Who leaves leaves nothing, and may come back under its name.
    c.ok("cluster leave");
    a.sees("a up, b up");
    assert!(c.refused("cluster status").contains("is in no cluster"));
    c.join("join", &etcd);
    a.sees("a up, b up, c up");

    // A command that dies while it leaves, in the middle of which the row says so: nothing makes the host known again.
    let said = {
        let settings = c.settings();
        let text = settings.replace("\"leaving\":false", "\"leaving\":true");
        assert_ne!(text, settings);
        c.set_settings(&text);
        c.kill_daemon();
        c.refused("cluster status")
    };
    assert!(said.contains("about to leave"), "{said}");
    a.sees("a up, b up, c down");
    c.ok("cluster leave");
    a.sees("a up, b up");
    c.join("join", &etcd);
    a.sees("a up, b up, c up");

    // With etcd away, only by force; for the others it is down then, and its name taken.
    drop(etcd);
    a.warns("etcd");
    let said = c.refused("cluster leave");
    assert!(said.contains("etcd"), "{said}");
    let output = c.run(&["cluster", "leave", "--force"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(c.refused("cluster nodes").contains("is in no cluster"));
}

#[test]
fn etcd_comes_and_goes() {
    let Some(world) = World::or_skip("cluster-etcd") else { return };
    let mut etcd = world.etcd(3);
    let [a, b, _] = &world.nodes[..] else { panic!("three hosts") };
    a.join("init", &etcd);
    b.join("join", &etcd);
    // Whichever member is killed, the leader among them: the others do.
    for number in 0..3 {
        etcd.kill(number);
        a.is_well();
        b.is_well();
        a.sees("a up, b up");
        etcd.restart(number).unwrap();
    }
    for number in 0..3 {
        etcd.kill(number);
    }
    a.warns("no member of etcd is reached");
    // What is known stays known, and is said in no time; a daemon that starts meanwhile waits.
    let began = Instant::now();
    assert!(a.nodes().contains("b "), "{}", a.nodes());
    assert!(began.elapsed() < Duration::from_secs(5));
    b.kill_daemon();
    b.warns("etcd");
    assert_eq!(b.status()["connected"], false);
    etcd.launch(0).unwrap();
    etcd.launch(1).unwrap();
    a.is_well();
    b.is_well();
    a.sees("a up, b up");
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(world) = World::or_skip("cluster-refused") else { return };
    let etcd = world.etcd(1);
    let url = "http://10.0.1.11:2379";
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    for (line, why) in [
        ("cluster status".to_owned(), "is in no cluster"),
        ("cluster leave".to_owned(), "is in no cluster"),
        (format!("cluster join --etcd {url} --name a"), "no cluster under `/portolan`"),
        (format!("cluster init --etcd {url} --name a --address 10.0.1.99"), "no interface of this host has address"),
        (format!("cluster init --etcd {url} --name a --address 10.0.1.1 --address 10.0.1.1"), "another one of IPv4"),
        (format!("cluster init --etcd {url} --name a/b"), "a/b"),
        (format!("cluster init --etcd {url} --name a --prefix nowhere"), "does not begin with a slash"),
        ("cluster init --etcd 10.0.1.11:2379 --name a".to_owned(), "http://"),
        ("cluster init --etcd https://10.0.1.11:2379 --name a".to_owned(), "--cacert"),
    ] {
        let said = a.refused(&line);
        assert!(said.contains(why), "{line}: {said}");
    }
    let began = Instant::now();
    let said = a.refused("cluster init --etcd http://10.0.1.12:2379 --name a");
    assert!(said.contains("no member of etcd is reached") && said.contains("10.0.1.12"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(30));
    assert!(a.refused("cluster status").contains("is in no cluster"), "nothing of it is left");

    a.join("init", &etcd);
    assert!(a.refused(&format!("cluster join --etcd {url} --name a")).contains("is in cluster"));
    assert!(b.refused(&format!("cluster init --etcd {url} --name b")).contains("already"));
    let said = b.refused(&format!("cluster join --etcd {url} --name a"));
    assert!(said.contains("a host `a` is in the cluster already"), "{said}");
    assert!(b.refused("cluster status").contains("is in no cluster"));
    // Another cluster beside it.
    b.ok(&format!("cluster init --etcd {url} --name a --prefix /other"));
    b.sees("a up");

    // What others write under our keys is left alone, and said.
    etcd.ctl(&["put", "/portolan/v2/all/host/nobody", "garbage"]).unwrap();
    a.warns("is no key of this version");
    etcd.ctl(&["del", "/portolan/v2/all/host/nobody"]).unwrap();
    a.is_well();
    // An operator said that it is not to come back.
    let host = a.status()["host"].as_str().unwrap().to_owned();
    etcd.ctl(&["put", &format!("/portolan/v2/all/gone/{host}"), "x"]).unwrap();
    a.warns("not one of the cluster any more");
    etcd.ctl(&["del", &format!("/portolan/v2/all/gone/{host}")]).unwrap();
    a.is_well();
    // Later versions know what this one does not.
    let (id, format) = ("11".repeat(32), portolan_cluster::FORMAT + 1);
    let later = format!(
        r#"{{"id":"{id}","format":{format},"pools":{{"v4":"10.0.0.0/8","v6":"fd00::/48"}},"lengths":{{"v4":18,"v6":64}}}}"#
    );
    etcd.ctl(&["put", "/later/v2/all/cluster", &later]).unwrap();
    let said = c.refused(&format!("cluster join --etcd {url} --name c --prefix /later"));
    assert!(said.contains(&format!("format {format}")), "{said}");
    // etcd was emptied, or is another one: nothing is written into it.
    etcd.ctl(&["del", "--prefix", "/portolan/"]).unwrap();
    a.kill_daemon();
    a.warns("there is no cluster under");
}

/// Two hosts with one identity: a machine that was copied.
#[test]
fn a_copy_is_noticed() {
    let Some(world) = World::or_skip("cluster-copy") else { return };
    let etcd = world.etcd(1);
    let [a, b, _] = &world.nodes[..] else { panic!("three hosts") };
    a.join("init", &etcd);
    a.is_well();
    fs::create_dir(&b.root).unwrap();
    for file in fs::read_dir(&a.root).unwrap().flatten().filter(|file| file.file_type().unwrap().is_file()) {
        fs::copy(file.path(), b.root.join(file.file_name())).unwrap();
    }
    b.ok("daemon start");
    // Each has the other's word against it; one of them sees that first.
    let knows = |node: &Node| node.status()["warnings"].to_string().contains("runs with this host's identity");
    assert!(eventually(LONG, || knows(a) || knows(b)), "{} {}", a.status(), b.status());
    b.ok("daemon stop");
    a.is_well();
}

/// A host that is let in by a user of etcd who may do no more than he has to.
#[test]
fn a_user_of_etcd_with_one_prefix_is_enough() {
    let Some(world) = World::or_skip("cluster-user") else { return };
    let etcd = world.etcd(1);
    etcd.let_in_users("/portolan/").unwrap();
    let [a, ..] = &world.nodes[..] else { panic!("three hosts") };
    let password = world.lab.dir().join("password");
    fs::write(&password, "word\n").unwrap();
    let with = |prefix: &str| {
        let password = password.display();
        format!(
            "cluster init --etcd http://10.0.1.11:2379 --name a --user host --password-file {password} --prefix {prefix}"
        )
    };
    let output = a.run(&with("/other").split(' ').collect::<Vec<_>>());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("permission denied"), "{said}");
    a.ok(&with("/portolan"));
    a.is_well();
    a.kill_daemon();
    a.is_well();
    for file in fs::read_dir(&a.root).unwrap().flatten().filter(|file| file.file_type().unwrap().is_file()) {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "the password is in there: {}", file.path().display());
    }
    assert!(!a.ok("--json cluster status").contains("word"));
}
