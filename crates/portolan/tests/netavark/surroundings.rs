//! Places where Podman runs besides a machine's own root: read-only settings, no privileges, a user namespace.

use std::fs;
use std::os::unix::fs::chown;
use std::process::{Command, Output};

use portolan_kernel::rtnl::Family;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;
use serde_json::{Value, json};

use crate::common::{FAMILIES, LONG, any, at, host_ip, neighbour_ip};
use crate::podman::{Pod, Podman, answer, bridge, ip, merged, output_of};

/// Whether `program` can be run; says loudly if not.
fn has(program: &str, args: &[&str]) -> bool {
    let found = Command::new(program).args(args).output().is_ok_and(|output| output.status.success());
    if !found {
        assert!(std::env::var_os("CI").is_none(), "CI must have {program}");
        eprintln!("SKIP: `{program} {}` does not run here", args.join(" "));
    }
    found
}

/// Calls the binary where `/proc/sys` is mounted read-only.
#[track_caller]
fn read_only(podman: &Podman, verb: &str, pod: &Pod) -> Result<Value, String> {
    let mut command = Command::new("unshare");
    let script = "mount --bind /proc/sys /proc/sys\nmount -o remount,bind,ro /proc/sys\nexec \"$0\" \"$@\"";
    command.args(["--mount", "sh", "-ec", script]).arg(&podman.program);
    command.arg("--config").arg(&podman.world.root).args([verb, pod.path()]);
    answer(&output_of(podman.adopt(command), pod.input().as_bytes()))
}

/// With the right values there is nothing to write, with wrong ones the first is named.
#[test]
fn settings_that_cannot_be_written() {
    let Some(podman) = Podman::or_skip("nv-read-only") else { return };
    if !has("unshare", &["--mount", "true"]) {
        return;
    }
    let v4 = |name: &str, n: u8| {
        merged(
            bridge(name, n),
            json!({"ipv6_enabled": false, "subnets": [
                {"subnet": format!("10.9.{n}.0/24"), "gateway": format!("10.9.{n}.1")},
            ]}),
        )
    };
    let pod = podman.pod("v4").at(&v4("v4", 1), 5).ports(&[(8080, 80, "tcp", "")]);
    let host = podman.world.untouched();
    for value in ["0", "1"] {
        podman.world.h.sysctl(&["net", "ipv4", "ip_forward"], value).unwrap();
        if value == "0" {
            assert_eq!(
                read_only(&podman, "setup", &pod),
                Err("set sysctl net/ipv4/ip_forward: IO error: Read-only file system (os error 30)".into())
            );
            podman.world.assert_untouched(&host, "a refused setup");
        }
    }
    // A host that does not forward IPv6 can have networks without it.
    let before = podman.world.untouched();
    read_only(&podman, "setup", &pod).unwrap();
    let _server = TcpServer::start(&pod, any(Family::V4, 80), "v4").unwrap();
    assert!(ping(&pod, neighbour_ip(Family::V4), LONG).is_open());
    let probe = tcp_probe(&podman.world.n, at(host_ip(Family::V4), 8080), LONG);
    assert_eq!(probe.banner(), Some("v4"), "{probe}");
    assert_eq!(read_only(&podman, "teardown", &pod), Ok(Value::Null));
    podman.world.assert_untouched(&before, "with IPv4 alone");

    let dual = podman.pod("dual").at(&bridge("dual", 2), 5);
    let error = read_only(&podman, "setup", &dual).unwrap_err();
    assert!(error.starts_with("set sysctl net/ipv6/conf/podman2/") && error.contains("os error 30"), "{error}");
    podman.world.assert_untouched(&before, "a refused setup");
    // Everything right, on the host and for what comes in the container.
    podman.world.h.sysctl(&["net", "ipv6", "conf", "all", "forwarding"], "1").unwrap();
    for (place, interface) in [(&podman.world.h, "default"), (&dual.host, "default")] {
        for name in ["accept_ra", "accept_redirects", "accept_dad"] {
            place.sysctl(&["net", "ipv6", "conf", interface, name], "0").unwrap();
        }
    }
    read_only(&podman, "setup", &dual).unwrap();
    for family in FAMILIES {
        assert!(ping(&dual, neighbour_ip(family), LONG).is_open());
    }
    podman.world.verify();
    assert_eq!(read_only(&podman, "teardown", &dual), Ok(Value::Null));
    // And IPv4 alone, where all of what we want of the kernel is there.
    read_only(&podman, "setup", &pod).unwrap();
    podman.world.verify();
    assert_eq!(read_only(&podman, "teardown", &pod), Ok(Value::Null));
}

/// IPv6 that the administrator turned off is refused in netavark's words.
#[test]
fn a_host_without_ipv6() {
    let Some(podman) = Podman::or_skip("nv-no-ipv6") else { return };
    podman.world.h.sysctl(&["net", "ipv6", "conf", "all", "disable_ipv6"], "1").unwrap();
    let dual = podman.pod("dual").at(&bridge("dual", 1), 5);
    assert_eq!(
        podman.refused(&dual),
        "add ip addr to bridge: failed to add ipv6 address, is ipv6 enabled in the kernel?: \
         Netlink error: Permission denied (os error 13)"
    );
    // A bridge that somebody else made gets no address of ours.
    podman.foreign_bridge("br0", &["10.9.2.1/24"]);
    let lan = merged(bridge("lan", 2), json!({"network_interface": "br0", "options": {"mode": "unmanaged"}}));
    let (one, two) = (podman.pod("one").at(&lan, 5), podman.pod("two").at(&lan, 6));
    podman.up(&one);
    podman.up(&two);
    for family in FAMILIES {
        assert!(ping(&one, ip(family, 2, 6), LONG).is_open());
    }
}

#[test]
fn nobody_in_particular() {
    let Some(podman) = Podman::or_skip("nv-nobody") else { return };
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let runs = [&nobody[..], &[env!("CARGO_BIN_EXE_portolan"), "version"]].concat();
    if !has("setpriv", &runs) {
        return;
    }
    let config = podman.world.lab.dir().join("state");
    fs::create_dir(&config).unwrap();
    chown(&config, Some(65534), Some(65534)).unwrap();
    let pod = podman.pod("c").at(&bridge("web", 1), 5);
    let before = podman.world.untouched();
    let call = |config: &std::path::Path| {
        let mut command = Command::new("setpriv");
        command.args(nobody).arg("--bounding-set=-all").arg(&podman.program);
        command.arg("--config").arg(config).args(["setup", pod.path()]);
        answer(&output_of(podman.adopt(command), pod.input().as_bytes())).expect_err("nobody may not")
    };
    let error = call(&config);
    assert!(error.contains("permitted") || error.contains("denied"), "{error}");
    fs::create_dir_all(&podman.world.root).unwrap();
    let error = call(&podman.world.root);
    assert!(error.contains("denied") && error.contains(podman.world.root.to_str().unwrap()), "{error}");
    podman.world.assert_untouched(&before, "nobody");
}

/// Where `podman unshare --rootless-netns` would be: root of a user namespace of somebody who has nothing outside, with
/// a `/run` of its own and no systemd.
#[test]
fn root_of_a_user_namespace() {
    const SCRIPT: &str = r#"
        mount -t tmpfs none /run
        ln -s "$BIN" /run/netavark
        ip link set lo up
        unshare --net sleep 100 >/dev/null 2>&1 &
        pid=$!
        trap 'kill $pid $server 2>/dev/null || true' EXIT
        server=
        for n in $(seq 200); do
            [ "$(readlink /proc/$pid/ns/net)" = "$(readlink /proc/self/ns/net)" ] || break
            sleep 0.02
        done
        call() { printf %s "$INPUT" | /run/netavark --config /run/state --rootless=true "$1" /proc/$pid/ns/net; }
        call setup
        echo
        inside() { nsenter -t $pid -n "$@"; }
        inside dig @10.9.1.1 +short +time=2 c
        inside dig @fd09:1::1 +short +time=2 c AAAA
        nsenter -t $pid -n ncat -l -k 80 -c "echo served" >/dev/null 2>&1 &
        server=$!
        for to in 127.0.0.1 ::1 10.9.1.1; do
            for n in $(seq 100); do
                said=$(ncat --recv-only -w 5 $to 8080 </dev/null 2>/dev/null) && break
                sleep 0.05
            done
            echo "$said by $to"
        done
        call teardown
        ip -o link show | grep -c podman || true
        kill $server
        echo done
    "#;
    let Some(podman) = Podman::or_skip("nv-userns") else { return };
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urnm"];
    if !has("setpriv", &[&nobody[..], &[env!("CARGO_BIN_EXE_portolan"), "version"]].concat()) {
        return;
    }
    for program in ["ncat", "dig"] {
        if !has(program, &[if program == "dig" { "-v" } else { "--version" }]) {
            return;
        }
    }
    let network = merged(bridge("web", 1), json!({"dns_enabled": true}));
    let pod = podman.pod("c").at(&network, 5).ports(&[(8080, 80, "tcp", "")]);
    let mut command = Command::new("setpriv");
    command.args(nobody).args(["sh", "-ec", SCRIPT]).env("BIN", env!("CARGO_BIN_EXE_portolan"));
    command.env("INPUT", pod.input()).env("PORTOLAN_DAEMON", "auto");
    let output: Output = output_of(podman.world.h.adopt(command).unwrap(), b"");
    let (text, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{log}");
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let status: Value =
        serde_json::from_str(lines.next().unwrap()).unwrap_or_else(|error| panic!("{error}: {text}{log}"));
    assert_eq!(status["web"]["dns_server_ips"], json!([ip(Family::V4, 1, 1), ip(Family::V6, 1, 1)]));
    assert_eq!(
        lines.collect::<Vec<_>>(),
        ["10.9.1.5", "fd09:1::5", "served by 127.0.0.1", "served by ::1", "served by 10.9.1.1", "0", "done"],
        "{text}{log}"
    );
}

/// The other name that Podman looks for: it says its version, and that it is not needed.
#[test]
fn called_by_its_companions_name() {
    let Some(podman) = Podman::or_skip("nv-companion") else { return };
    let program = podman.program.with_file_name("aardvark-dns");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_portolan"), &program).unwrap();
    let call = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args);
        output_of(podman.adopt(command), b"")
    };
    for args in [&["version"][..], &["--version"]] {
        let output = call(args);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("aardvark-dns 2."), "{output:?}");
    }
    let output = call(&["--config", "/does/not/exist", "-p", "53", "run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stderr.is_empty());
}
