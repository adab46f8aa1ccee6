//! host-local's directory in every state that it gets into, and in the hands of ours and of the original at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use portolan_lab::eventually;
use portolan_lab::probe::ping;
use serde_json::{Value, json};

use crate::beside::{Chain, ORIGINALS, Pair};
use crate::common::LONG;
use crate::ipam::{Caller, config, files, leases};
use crate::runtime::{Refusal, answer, output_of, with};

/// The original, whatever `host-local` is.
const ORIGINAL: &str = "host-local-original";

/// The names of addresses in a directory, with what their files say.
fn held(dir: &Path) -> BTreeMap<String, String> {
    files(dir).into_iter().filter(|(name, _)| name.parse::<std::net::IpAddr>().is_ok()).collect()
}

fn ip(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

fn valid<'a>(ids: impl IntoIterator<Item = &'a str>) -> Value {
    let valid: Vec<Value> = ids.into_iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
    json!({"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid})
}

/// Both plugins on the host of ours.
fn mixed(test: &str) -> Option<(Pair, PathBuf)> {
    let pair = Pair::or_skip(test)?;
    symlink(Path::new(ORIGINALS).join("host-local"), pair.ours.bin.join(ORIGINAL)).unwrap();
    let dir = leases(&pair.ours, "leases");
    Some((pair, dir))
}

fn of(dir: &Path, version: &str, subnet: &str) -> Value {
    config(version, "host-local", &json!({"dataDir": dir, "subnet": subnet}), &json!({}))
}

#[test]
fn what_a_crash_leaves() {
    let Some((pair, base)) = mixed("plugins-leases") else { return };
    let pod = pair.ours.pod("p");
    let caller = Caller::new(&pair.ours, &pod);
    let (dir, config) = (base.join("net"), of(&base, "1.1.0", "10.1.0.0/29"));
    let call = |verb: &str, id: &str, patch: Value| caller.call("host-local", verb, id, &with(&config, patch));
    let add = |id: &str| ip(&call("ADD", id, json!({})).unwrap());
    fs::create_dir_all(&dir).unwrap();
    let put = |name: &str, text: &[u8]| fs::write(dir.join(name), text).unwrap();
    // The original died between creating and writing: it is nobody's.
    put("10.1.0.2", b"");
    assert_eq!(add("c1"), "10.1.0.2");
    assert_eq!(held(&dir), BTreeMap::from([("10.1.0.2".into(), r#""c1\r\neth0""#.into())]));
    // Torn, foreign, and another plugin's: taken until somebody says who is there.
    put("10.1.0.3", b"c");
    put("10.1.0.4", b"\xff\xfe\0 what is this");
    fs::create_dir(dir.join("10.1.0.5")).unwrap();
    put("notes", b"c1\r\neth0");
    // Whatever the last address is said to be, it is only where to begin.
    put("last_reserved_ip.0", b"\0garbage");
    assert_eq!(add("c2"), "10.1.0.6");
    for strange in ["", "10.99.0.1", "fd00::1", "10.1.0.6\n"] {
        put("last_reserved_ip.0", strange.as_bytes());
        let refusal = call("ADD", "c3", json!({})).unwrap_err();
        let msg = "failed to allocate for range 0: no IP addresses available in range set: 10.1.0.1-10.1.0.6";
        assert_eq!((refusal.code, refusal.msg.as_str()), (999, msg));
    }
    call("DEL", "c", json!({})).unwrap();
    assert!(!dir.join("10.1.0.3").exists(), "before it named interfaces, the original wrote this");
    fs::remove_file(dir.join("last_reserved_ip.0")).unwrap();
    fs::create_dir(dir.join("last_reserved_ip.0")).unwrap();
    assert_eq!(add("c3"), "10.1.0.3");
    call("CHECK", "c3", json!({})).unwrap();
    fs::write(dir.join(".new"), "of one that died").unwrap();
    put("10.1.0.3", b"");
    let refusal = call("CHECK", "c3", json!({})).unwrap_err();
    assert_eq!(refusal.msg, "host-local: Failed to find address added by container c3");
    call("DEL", "c3", json!({})).unwrap();
    // GC: exactly what is not listed, of addresses alone.
    fs::remove_dir(dir.join("10.1.0.5")).unwrap();
    call("GC", "", valid(["c2", "c9"])).unwrap();
    assert_eq!(held(&dir), BTreeMap::from([("10.1.0.6".into(), r#""c2\r\neth0""#.into())]));
    assert!(dir.join("notes").exists());
    assert_eq!(add("c4"), "10.1.0.2", "the directory heals itself");
    assert_eq!(call("GC", "", json!({})).unwrap_err().code, 7, "nobody says who is there");
    call("GC", "", valid([])).unwrap();
    assert_eq!(held(&dir), BTreeMap::new());
}

#[test]
fn only_what_is_not_listed() {
    let Some((pair, base)) = mixed("plugins-leases-gc") else { return };
    let pod = pair.ours.pod("p");
    let caller = Caller::new(&pair.ours, &pod);
    let dual = json!({"dataDir": base, "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]});
    let net = config("1.1.0", "host-local", &dual, &json!({}));
    let other = with(&net, json!({"name": "other"}));
    for (config, id) in [(&net, "c1"), (&net, "c2"), (&net, "c3"), (&other, "c1")] {
        caller.call("host-local", "ADD", id, config).unwrap();
    }
    // Another interface of the same container, and an ID that begins like another.
    fs::write(base.join("net/10.1.0.77"), "c1\r\neth1").unwrap();
    fs::write(base.join("net/10.1.0.78"), "c10\r\neth0").unwrap();
    fs::write(base.join("net/10.1.0.79"), "c2").unwrap();
    let of_other = held(&base.join("other"));
    caller.call("host-local", "GC", "", &with(&net, valid(["c1", "c2"]))).unwrap();
    let left: Vec<String> = held(&base.join("net")).into_keys().collect();
    assert_eq!(left, ["10.1.0.2", "10.1.0.3", "10.1.0.79", "fd01::2", "fd01::3"]);
    assert_eq!(held(&base.join("other")), of_other);
    // DEL: whatever has become of the configuration, and as often as one likes.
    let changed = json!({"dataDir": base, "type": "host-local", "subnet": "192.168.0.0/33"});
    for _ in 0..2 {
        caller.call("host-local", "DEL", "c1", &with(&net, json!({"ipam": changed}))).unwrap();
    }
    assert_eq!(held(&base.join("net")).len(), 3);
    let nowhere = of(&base.join("nowhere"), "1.1.0", "10.1.0.0/24");
    caller.call("host-local", "DEL", "c1", &nowhere).unwrap();
    caller.call("host-local", "GC", "", &with(&nowhere, valid([]))).unwrap();
    assert!(!base.join("nowhere").exists(), "who takes nothing makes nothing");
    // CHECK: what ADD answered is still the container's.
    let result = caller.call("host-local", "ADD", "c4", &net).unwrap();
    let after = with(&net, json!({"prevResult": result}));
    caller.call("host-local", "CHECK", "c4", &after).unwrap();
    fs::write(base.join("net").join(ip(&result)), "c5\r\neth0").unwrap();
    let refusal = caller.call("host-local", "CHECK", "c4", &after).unwrap_err();
    assert_eq!(refusal.msg, format!("host-local: {} is not allocated to container c4", ip(&result)));
}

#[test]
fn status_says_why() {
    let Some((pair, base)) = mixed("plugins-leases-status") else { return };
    let pod = pair.ours.pod("p");
    let caller = Caller::new(&pair.ours, &pod);
    let small = of(&base, "1.1.0", "10.1.0.0/30");
    let status = |config: &Value| caller.call("host-local", "STATUS", "", config).map(drop);
    let refused = |config: &Value, why: &str| {
        let Refusal { code, msg, .. } = status(config).unwrap_err();
        assert!(code == 50 && msg.contains(why), "{code}: {msg}");
    };
    status(&small).unwrap();
    assert!(!base.exists(), "who asks changes nothing");
    caller.call("host-local", "ADD", "c1", &small).unwrap();
    refused(&small, "no IP addresses available in range set: 10.1.0.1-10.1.0.2");
    fs::write(base.join("net/10.1.0.2"), "").unwrap();
    status(&small).unwrap();
    refused(&of(&base, "1.1.0", "10.1.0.0/31"), "too small");
    // The original goes round the whole family from here.
    let empty = json!({"type": "host-local", "dataDir": base, "subnet": "10.1.0.0/29", "rangeStart": "10.1.0.7"});
    refused(&with(&small, json!({"ipam": empty})), "range 10.1.0.7-10.1.0.6 of network 10.1.0.0/29 is empty");
    fs::remove_file(base.join("net/lock")).unwrap();
    fs::create_dir(base.join("net/lock")).unwrap();
    refused(&small, "lock: is a directory");
    let refusal = caller.call("host-local", "ADD", "c2", &small).unwrap_err();
    assert!(refusal.msg.contains("lock: is a directory"), "{refusal:?}");
    let file = base.join("net/file");
    fs::write(&file, "").unwrap();
    refused(&of(&file, "1.1.0", "10.1.0.0/24"), "not a directory");
    fs::remove_dir(base.join("net/lock")).unwrap();

    // A file system that takes nothing.
    let after = |script: &str, verb: &str, id: &str| {
        let command = caller.command_after(script, &base, "host-local", verb, id);
        answer(&output_of(command, small.to_string().as_bytes()))
    };
    let read_only = "mount --bind $DIR $DIR; mount -o remount,bind,ro $DIR";
    fs::write(base.join("net/lock"), "").unwrap();
    fs::write(base.join("net/10.1.0.2"), "c1\r\neth0").unwrap();
    for (verb, id, is_fine) in [("STATUS", "", false), ("CHECK", "c1", true), ("DEL", "c1", false), ("DEL", "c2", true)]
    {
        match after(read_only, verb, id) {
            Ok(_) => assert!(is_fine, "{verb} {id}"),
            Err(refusal) => {
                assert!(!is_fine && refusal.msg.contains("read-only file system"), "{verb} {id} {refusal:?}")
            }
        }
    }
    caller.call("host-local", "DEL", "c1", &small).unwrap();
    let refusal = after(read_only, "ADD", "c1").unwrap_err();
    assert!(refusal.msg.contains("read-only file system"), "{refusal:?}");
    assert!(held(&base.join("net")).is_empty());
    // Room for the directory and the lock, and nothing behind.
    let full = "mount -t tmpfs -o nr_inodes=3 none $DIR; mkdir $DIR/net; touch $DIR/net/lock";
    for verb in ["STATUS", "ADD"] {
        let refusal = after(full, verb, if verb == "ADD" { "c1" } else { "" }).unwrap_err();
        assert!(
            refusal.msg.contains("no space left on device") || refusal.msg.contains("no storage space"),
            "{refusal:?}"
        );
    }
    // Room for the lease alone: where to begin the next time is not worth failing for.
    after(&full.replace('3', "4"), "ADD", "c1").unwrap();
}

#[test]
fn a_lock_dies_with_its_holder() {
    let Some((pair, base)) = mixed("plugins-leases-lock") else { return };
    let pod = pair.ours.pod("p");
    let caller = Caller::new(&pair.ours, &pod);
    let config = of(&base, "1.0.0", "10.1.0.0/24");
    fs::create_dir_all(base.join("net")).unwrap();
    let lock = base.join("net/lock");
    let mut flock = Command::new("flock");
    // It alone holds the lock; what it runs ends with our end of the pipe.
    flock.arg("--close").arg(&lock).args(["sh", "-c", "echo; read line"]);
    let mut holder = flock.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let mut add = start(caller.command("host-local", "ADD", "c1"), &config);
    // It waits, as flock(2) says of it in the kernel's list.
    let waits = || fs::read_to_string("/proc/locks").unwrap().lines().any(|line| line.contains("-> FLOCK"));
    assert!(eventually(LONG, waits) && add.try_wait().unwrap().is_none());
    holder.kill().unwrap();
    holder.wait().unwrap();
    answer(&add.wait_with_output().unwrap()).unwrap();
    assert_eq!(held(&base.join("net")).len(), 1);
}

/// Starts a plugin and gives it its configuration.
fn start(mut command: Command, config: &Value) -> Child {
    use std::io::Write as _;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    child
}

#[test]
fn in_turns_and_at_once() {
    let Some((pair, base)) = mixed("plugins-leases-mixed") else { return };
    let pod = pair.ours.pod("p");
    let caller = Caller::new(&pair.ours, &pod);
    let (dir, config) = (base.join("net"), of(&base, "1.0.0", "10.1.0.0/24"));
    let kind = |number: usize| ["host-local", ORIGINAL][number % 2];
    // In turns: the order of addresses is one.
    for number in 0..12 {
        let result = caller.call(kind(number), "ADD", &format!("t{number}"), &config).unwrap();
        assert_eq!(ip(&result), format!("10.1.0.{}", number + 2));
    }
    for number in 0..12 {
        let id = format!("t{number}");
        let refusal = caller.call(kind(number + 1), "ADD", &id, &config).unwrap_err();
        assert!(refusal.msg.ends_with(&format!("has been allocated to {id}, duplicate allocation is not allowed")));
        caller.call(kind(number + 1), "CHECK", &id, &config).unwrap();
        caller.call(kind(number + 1), "DEL", &id, &config).unwrap();
    }
    assert_eq!(held(&dir), BTreeMap::new());
    // At once.
    let started: Vec<Child> =
        (0..100).map(|number| start(caller.command(kind(number), "ADD", &format!("p{number}")), &config)).collect();
    let results = started.into_iter().map(|child| answer(&child.wait_with_output().unwrap()).unwrap());
    let given: BTreeSet<String> = results.map(|result| ip(&result)).collect();
    assert_eq!(given.len(), 100, "no address twice");
    assert_eq!(held(&dir).into_keys().collect::<BTreeSet<_>>(), given);
    let started: Vec<Child> =
        (0..100).map(|number| start(caller.command(kind(number + 1), "DEL", &format!("p{number}")), &config)).collect();
    for child in started {
        answer(&child.wait_with_output().unwrap()).unwrap();
    }
    assert_eq!(held(&dir), BTreeMap::new(), "none is lost");
}

/// The original's bridge over our host-local: packets, and leases that come and go with it.
#[test]
fn under_the_original_bridge() {
    let Some(pair) = Pair::or_skip("plugins-leases-bridge") else { return };
    let (side, base) = (&pair.theirs, leases(&pair.theirs, "leases"));
    for kind in ["host-local", "static"] {
        side.choose(kind, true);
    }
    let pods = [side.pod("a"), side.pod("b")];
    let ipam =
        json!({"type": "host-local", "dataDir": base, "subnet": "10.4.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]});
    let bridge = json!({"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": false});
    let chain = Chain::new("net", [with(&bridge, json!({"ipam": ipam}))]);
    let results = pods.each_ref().map(|pod| side.add(pod, &chain, "1.0.0", "eth0").unwrap());
    assert_eq!(results.each_ref().map(ip), ["10.4.0.2", "10.4.0.3"]);
    for to in ["10.4.0.1", "10.4.0.3"] {
        assert!(ping(&pods[0], to.parse().unwrap(), LONG).is_open(), "{to}");
    }
    for (pod, result) in pods.iter().zip(&results) {
        side.check(pod, &chain, "1.0.0", result).unwrap();
        side.del(pod, &chain, "1.0.0", Some(result), "eth0").unwrap();
    }
    assert_eq!(held(&base.join("net")), BTreeMap::new());
    let ipam = json!({"type": "static", "addresses": [{"address": "10.4.0.9/24", "gateway": "10.4.0.1"}]});
    let chain = Chain::new("net", [with(&bridge, json!({"ipam": ipam}))]);
    let result = side.add(&pods[0], &chain, "1.0.0", "eth0").unwrap();
    assert_eq!(ip(&result), "10.4.0.9");
    assert!(ping(&pods[0], "10.4.0.1".parse().unwrap(), LONG).is_open());
    side.del(&pods[0], &chain, "1.0.0", Some(&result), "eth0").unwrap();
}

/// Random steps without `PORTOLAN_STEPS`.
const STEPS: usize = 600;

/// Addresses that the range has.
const ROOM: usize = 13;

/// ADD, DEL and GC, of ours and now and then of the original, killed at any instant: no address twice, none lost.
#[test]
fn killed_at_any_instant() {
    let Some((pair, base)) = mixed("plugins-leases-random") else { return };
    let steps = std::env::var("PORTOLAN_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(STEPS);
    let pod = pair.ours.pod("p");
    let caller = Caller::new(&pair.ours, &pod);
    let (dir, config) = (base.join("net"), of(&base, "1.1.0", "10.1.0.0/28"));
    let old = with(&config, json!({"cniVersion": "1.0.0"}));
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % limit
    };
    // Whom the runtime believes to be there.
    let mut believed: BTreeMap<String, String> = BTreeMap::new();
    let (mut killed, mut full) = (0, 0);
    for step in 0..steps {
        let id = format!("c{}", below(20));
        let is_ours = below(4) > 0;
        let (kind, config) = if is_ours { ("host-local", &config) } else { (ORIGINAL, &old) };
        let (verb, id) = match below(100) {
            0..60 => ("ADD", id),
            60..92 => ("DEL", id),
            _ => ("GC", String::new()),
        };
        let kind = if verb == "GC" { "host-local" } else { kind };
        let config = if verb == "GC" {
            with(&of(&base, "1.1.0", "10.1.0.0/28"), valid(believed.keys().map(String::as_str)))
        } else {
            config.clone()
        };
        let mut child = start(caller.command(kind, verb, &id), &config);
        if below(3) == 0 {
            // Not a wait for anything: the instant is what is random.
            std::thread::sleep(Duration::from_micros(below(if is_ours { 9000 } else { 4000 })));
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let is_killed = output.status.code().is_none();
        killed += usize::from(is_killed);
        match (verb, is_killed) {
            ("ADD", false) => match answer(&output) {
                Ok(result) => {
                    let address = ip(&result);
                    assert!(!believed.values().any(|other| *other == address), "step {step}: {address} twice");
                    assert_eq!(believed.insert(id, address), None, "step {step}");
                }
                Err(refusal) if refusal.msg.contains("duplicate") => {}
                Err(refusal) => {
                    assert!(refusal.msg.contains("no IP addresses available"), "step {step}: {refusal:?}");
                    full += 1;
                    assert_eq!(held(&dir).len(), ROOM, "step {step}: full before it is");
                }
            },
            ("DEL", false) => {
                answer(&output).unwrap();
                believed.remove(&id);
                let text = format!("{:?}", format!("{id}\r\neth0"));
                assert!(!held(&dir).values().any(|other| *other == text), "step {step}: {id} is still there");
            }
            // What it has done, only the directory knows: the runtime asks again.
            ("DEL", true) => {
                caller.call("host-local", "DEL", &id, &config).unwrap();
                believed.remove(&id);
            }
            ("GC", false) => {
                answer(&output).unwrap();
                let found = held(&dir);
                let wanted =
                    believed.iter().map(|(id, address)| (address.clone(), format!("{:?}", format!("{id}\r\neth0"))));
                // One that was killed in ADD holds what its container has been believed to hold, or nothing.
                assert_eq!(found, wanted.collect::<BTreeMap<_, _>>(), "step {step}");
            }
            _ => {}
        }
    }
    eprintln!("{steps} steps, {killed} killed, {full} times full");
    let config = of(&base, "1.1.0", "10.1.0.0/28");
    caller.call("host-local", "GC", "", &with(&config, valid([]))).unwrap();
    assert_eq!(held(&dir), BTreeMap::new());
}
