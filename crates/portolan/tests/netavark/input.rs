//! Input that no decent Podman gives.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};

use portolan_lab::probe::ping;
use portolan_lab::snapshot::snapshot;
use serde_json::{Value, json};

use crate::common::upstream::short;
use crate::common::{FAMILIES, LONG};
use crate::podman::{Podman, answer, bridge, ip, merged, output_of};

/// A state in which something runs, so that there is something to break.
#[track_caller]
fn busy(name: &str) -> Option<(Podman, crate::podman::Pod)> {
    let podman = Podman::or_skip(name)?;
    let pod = podman.pod("runs").at(&bridge("web", 1), 250);
    podman.up(&pod);
    Some((podman, pod))
}

#[test]
fn text_that_is_no_setup() {
    let Some((podman, _runs)) = busy("nv-bad-json") else { return };
    let pod = podman.pod("c").at(&bridge("web", 1), 5);
    let good = pod.input();
    let before = podman.world.state();
    let mut texts: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("null", b"null\n".to_vec()),
        ("a list", b"[]".to_vec()),
        ("not UTF-8", b"{\"container_id\":\"\xff\"}".to_vec()),
        ("NUL", b"\0\0\0".to_vec()),
        ("deep", "[".repeat(100_000).into_bytes()),
        ("twice", good.repeat(2).into_bytes()),
        ("wrong type", good.replace("\"container_name\":\"c\"", "\"container_name\":7").into_bytes()),
        ("bad subnet", good.replace("10.9.1.0/24", "10.9.1.0/99").into_bytes()),
        ("bad address", good.replace("\"10.9.1.5\"", "\"10.9.1.500\"").into_bytes()),
        ("too long", format!("{{\"x\":\"{}\"}}", "x".repeat(17 << 20)).into_bytes()),
    ];
    for cut in (0..good.len() - 2).step_by(97) {
        texts.push(("truncated", good.as_bytes()[..cut].to_vec()));
    }
    for (what, text) in texts {
        for verb in ["setup", "teardown"] {
            let error = podman.call(&[verb, pod.path()], &text).expect_err(what);
            assert!(error.starts_with("failed to load network options: "), "{verb} {what}: {error}");
            assert!(error.len() < 1000, "{verb} {what}: {} bytes", error.len());
        }
    }
    before.assert_same(&podman.world.state(), "bad input");
    let twice = good.replace("\"networks\":{\"web\":{", "\"networks\":{\"web\":{\"interface_name\":\"x\"},\"web\":{");
    let error = podman.call(&["setup", pod.path()], twice.as_bytes()).unwrap_err();
    assert!(error.contains("duplicate network \"web\""), "{error}");
    // Keys that nobody knows, at every level, are fine.
    let novel = good.replace('{', "{\"novel\":{},").replace("{\"novel\":{\"novel\":{},},", "{\"novel\":{},");
    let novel = novel.replace("\"networks\":{\"novel\":{},", "\"networks\":{");
    let novel = novel
        .replace("\"network_info\":{\"novel\":{},", "\"network_info\":{")
        .replace("\"novel\":{\"novel\":{},}", "\"novel\":{}");
    let novel = novel.replace("\"ipam_options\":{\"novel\":{},", "\"ipam_options\":{");
    podman.call(&["setup", pod.path()], novel.as_bytes()).unwrap_or_else(|error| panic!("{error}: {novel}"));
}

#[test]
fn names_of_all_kinds() {
    let Some((podman, runs)) = busy("nv-bad-names") else { return };
    let before = podman.world.state();
    let long = "x".repeat(10_000);
    let odd = ["a/b", "a\0b", "a b", "..", "", "-x", "a\nb", "%n", long.as_str()];
    for (n, name) in odd.into_iter().enumerate() {
        // As a container's name it is none, and the id stands for it.
        let pod = podman.pod(&format!("c{n}")).at(&bridge("web", 1), 5);
        let named = podman.pod(&format!("d{n}")).at(&bridge("web", 1), 5);
        let named = named.with(json!({"container_name": name, "container_hostname": name}));
        podman.up(&named);
        podman.down(&named);
        // As a container's id it is as good as another.
        let known = podman.pod(&format!("e{n}")).at(&bridge("web", 1), 5).with(json!({"container_id": name}));
        podman.up(&known);
        podman.down(&known);
        // As an interface it is refused, but for those that the kernel takes.
        let is_device = matches!(name, "-x" | "%n");
        if !is_device {
            let mut bad = pod;
            bad.on[0].1["interface_name"] = json!(name);
            let error = podman.setup(&bad).expect_err(name);
            assert!(error.len() < 1000, "{} bytes for {:.20}", error.len(), name);
        }
        // As a network or its bridge.
        let network = merged(bridge("web2", 2), json!({"name": name}));
        let error = podman.setup(&podman.pod(&format!("f{n}")).at(&network, 5)).expect_err(name);
        assert!(error.len() < 1000, "{} bytes for {:.20}", error.len(), name);
        if !is_device {
            let network = merged(bridge("web3", 3), json!({"network_interface": name}));
            let error = podman.setup(&podman.pod(&format!("g{n}")).at(&network, 5)).expect_err(name);
            assert!(error.len() < 1000, "{} bytes for {:.20}", error.len(), name);
        }
        before.assert_same(&podman.world.state(), &format!("{name:.20}"));
    }
    assert!(FAMILIES.iter().all(|family| ping(&runs, ip(*family, 1, 1), LONG).is_open()));
}

#[test]
fn namespaces_that_are_none() {
    let Some((podman, _runs)) = busy("nv-bad-ns") else { return };
    let pod = podman.pod("c").at(&bridge("web", 1), 5);
    let before = podman.world.state();
    let refused = |path: &str| podman.call(&["setup", path], pod.input().as_bytes()).unwrap_err();
    assert_eq!(refused("/does/not/exist"), "invalid namespace path: IO error: No such file or directory (os error 2)");
    let error = refused("/etc/passwd");
    assert!(error.contains("/etc/passwd") && error.contains("not a network namespace"), "{error}");
    let error = refused(podman.world.h.netns_path().to_str().unwrap());
    assert!(error.contains("host's own"), "{error}");
    assert!(refused(&"x".repeat(5000)).contains("invalid namespace path"));
    before.assert_same(&podman.world.state(), "no namespaces");
}

/// A directory whose name is not UTF-8 is as good as another.
#[test]
fn a_directory_with_any_name() {
    let Some(podman) = Podman::with_names("nv-utf8") else { return };
    let config = podman.world.lab.dir().join(OsStr::from_bytes(b"st\xffate"));
    let network = merged(bridge("web", 1), json!({"dns_enabled": true}));
    let pod = podman.pod("c").at(&network, 5);
    let call = |verb: &str| {
        let mut command = Command::new(&podman.program);
        command.arg("--config").arg(&config).args([verb, pod.path()]);
        answer(&output_of(podman.adopt(command), pod.input().as_bytes()))
    };
    let host = podman.world.untouched();
    call("setup").unwrap();
    assert!(FAMILIES.iter().all(|family| ping(&pod, ip(*family, 1, 1), LONG).is_open()));
    assert!(config.join("state.db").exists());
    if let Some(found) = short(&pod, ip(FAMILIES[0], 1, 1), &["c"]) {
        assert_eq!(found, ["10.9.1.5"]);
    }
    assert_eq!(call("teardown"), Ok(Value::Null));
    podman.world.assert_untouched(&host, "a state elsewhere");
}

/// Who has rules put back need not know where Podman keeps its state.
#[test]
fn reloads_without_a_directory() {
    /// A `/run` of its own, in which the lab is where it was and the state where Podman as root has it.
    const SCRIPT: &str = "\
        mount -t tmpfs none /mnt\n\
        mkdir -p /mnt/containers/networks /mnt/portolan-lab\n\
        mount --rbind /run/portolan-lab /mnt/portolan-lab\n\
        mount --bind \"$STATE\" /mnt/containers/networks\n\
        mount --rbind /mnt /run\n\
        exec \"$0\" \"$@\"";
    let Some(podman) = Podman::or_skip("nv-bare-reload") else { return };
    let pod = podman.pod("c").at(&bridge("web", 1), 5);
    std::fs::create_dir_all(&podman.world.root).unwrap();
    let call = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", SCRIPT]).arg(&podman.program).args(args);
        command.env("STATE", &podman.world.root);
        answer(&output_of(podman.adopt(command), pod.input().as_bytes()))
    };
    call(&["--config", "/run/containers/networks", "setup", pod.path()]).unwrap();
    let before = snapshot(&podman.world.h).unwrap();
    for (verb, answer) in [
        ("firewall-reload", Ok(Value::Null)),
        ("firewalld-reload", Err("no system bus on which firewalld could be heard".to_owned())),
    ] {
        let mut flush = Command::new("nft");
        flush.args(["flush", "ruleset"]);
        assert!(podman.adopt(flush).status().unwrap().success());
        assert_eq!(call(&[verb]), answer);
        podman.world.assert_untouched(&before, verb);
    }
}

/// Who asks may be gone before the answer is there.
#[test]
fn answers_that_nobody_reads() {
    let Some(podman) = Podman::or_skip("nv-unread") else { return };
    for (args, status) in [(&["version"][..], 0), (&["setup", "/does/not/exist"], 1)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = podman.command(args);
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn command_lines_that_are_none() {
    let Some(podman) = Podman::or_skip("nv-args") else { return };
    let pod = podman.pod("c").at(&bridge("web", 1), 5);
    let bare = |args: &[&str]| {
        let mut command = Command::new(&podman.program);
        command.args(args);
        output_of(podman.adopt(command), pod.input().as_bytes())
    };
    for verb in ["setup", "teardown"] {
        let missing = format!("--config not specified but required for netavark {verb}");
        assert_eq!(answer(&bare(&[verb, pod.path()])), Err(missing));
    }
    let missing = "--config not specified but required for netavark update".to_owned();
    assert_eq!(answer(&bare(&["update", "web", "--network-dns-servers", ""])), Err(missing));
    // What Podman is configured with counts in any case.
    let unknown = "Must provide a valid firewall backend, got ipchains".to_owned();
    for verb in ["setup", "teardown"] {
        assert_eq!(
            podman.call(&["--firewall-driver", "IPChains", verb, pod.path()], pod.input().as_bytes()),
            Err(unknown.clone())
        );
        podman.call(&["--firewall-driver", "NFTables", verb, pod.path()], pod.input().as_bytes()).unwrap();
    }
    for args in [&["setup"][..], &["frobnicate"], &["--frobnicate", "version"], &[]] {
        let output = bare(args);
        assert!(output.status.code().is_some_and(|code| code != 0), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    // The input can be a file.
    let file = podman.world.lab.dir().join("input.json");
    std::fs::write(&file, pod.input()).unwrap();
    let file = file.to_str().unwrap();
    podman.call(&["--file", file, "setup", pod.path()], b"").unwrap();
    podman.call(&["-f", file, "teardown", pod.path()], b"").unwrap();
    let error = podman.call(&["-f", "/does/not/exist", "setup", pod.path()], b"").unwrap_err();
    assert!(error.starts_with("failed to load network options: IO error: No such file"), "{error}");
}
