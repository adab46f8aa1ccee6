//! Names that several containers have, on whichever hosts, are answered by those who are well.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use portolan_lab::eventually;
use serde_json::Value;

use crate::overlay::{Pod, ask, has, joined};
use crate::world::{LONG, Node, World};

/// The addresses that a name is answered with, in that order.
fn in_order(pod: &Pod, name: &str) -> Vec<String> {
    let server = pod.gateway();
    let output = pod.place.command("dig").unwrap().args(["+short", "+tries=1", "+time=2", &server, name, "a"]).output();
    String::from_utf8(output.unwrap().stdout).unwrap().lines().map(str::to_owned).collect()
}

fn address(node: &Node, name: &str) -> String {
    let inspected: Value = serde_json::from_str(&node.ok(&format!("inspect {name}"))).unwrap();
    inspected[0]["NetworkSettings"]["Networks"]["web"]["IPAddress"].as_str().unwrap().to_owned()
}

#[test]
fn who_is_not_well_is_not_found_by_names_of_several() {
    let Some(world) = World::or_skip("overlay-health") else { return };
    let etcd = world.etcd(1);
    joined(&world, &etcd);
    let [a, b, c] = &world.nodes[..] else { panic!("three hosts") };
    a.ok("network create -d overlay web");
    has(b, "web");
    has(c, "web");
    let askers = [world.pod(a, "web", "here"), world.pod(c, "web", "there")];
    let well = world.lab.dir().join("well");
    for (node, name) in [(a, "db1"), (b, "db2")] {
        let file = well.with_extension(name);
        fs::write(&file, "").unwrap();
        let check = format!("test -e {}", file.display());
        let words =
            ["run", "-d", "--name", name, "--network", "web", "--network-alias", "db", "--health-interval", "100ms"];
        let more = ["--health-retries", "1", "--health-cmd", &check, "--", "sleep", "100"];
        let output = node.run(&[&words[..], &more].concat());
        assert!(output.status.success(), "{output:?}");
    }
    // One that somebody else started.
    let place = world.lab.host("db3").unwrap();
    c.ok(&format!("attach --netns {} --name db3 --network web --network-alias db", place.netns_path().display()));
    let [one, two, three] = [address(a, "db1"), address(b, "db2"), address(c, "db3")];
    let answer = |wanted: &[&String]| {
        let mut wanted: Vec<String> = wanted.iter().map(|address| (*address).clone()).collect();
        wanted.sort();
        for pod in &askers {
            assert!(
                eventually(LONG, || ask(pod, "db", "a") == wanted),
                "{}: {:?} {wanted:?}",
                pod.name,
                ask(pod, "db", "a")
            );
        }
    };
    answer(&[&one, &two, &three]);
    // Each is the first one at times.
    for pod in &askers {
        let firsts: BTreeSet<String> = (0..6).map(|_| in_order(pod, "db")[0].clone()).collect();
        assert_eq!(firsts.len(), 3, "{firsts:?}");
    }
    let began = Instant::now();
    fs::remove_file(well.with_extension("db2")).unwrap();
    answer(&[&one, &three]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // By its own name it is found: whoever wants to know why has to get there.
    for pod in &askers {
        assert_eq!(ask(pod, "db2", "a"), std::slice::from_ref(&two));
    }
    assert!(b.ok("ps").contains("(unhealthy)") && b.ok("ps --filter health=healthy -q").is_empty());
    c.ok("update db3 --health unhealthy");
    answer(&[&one]);
    // With nobody who is well, whoever there is.
    fs::remove_file(well.with_extension("db1")).unwrap();
    answer(&[&one, &two, &three]);
    fs::write(well.with_extension("db2"), "").unwrap();
    answer(&[&two]);
    c.ok("update db3 --health none");
    answer(&[&two, &three]);
    // A host that starts anew knows it, and so does one that etcd does not reach.
    c.kill_daemon();
    c.ok("update db3 --health starting");
    answer(&[&two]);
    a.ok("cluster verify");
    for (node, name) in [(a, "db1"), (b, "db2")] {
        node.ok(&format!("rm -f {name}"));
    }
    answer(&[&three]);
}
