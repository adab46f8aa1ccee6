//! Bad input that is refused before anything is looked at: one sentence, a hint, a status, and nothing made.
//!
//! None of these commands gets as far as the state or the kernel, so they need no privileges.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A place for state that no command of these tests may make.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portolan-bad-input-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn portolan(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_portolan"))
            .args(args)
            .env("PORTOLAN_ROOT", &self.0)
            .stdin(Stdio::null())
            .output()
            .expect("portolan runs")
    }

    /// Asserts that `args` are refused with `status` and exactly these two lines.
    #[track_caller]
    fn refuses(&self, args: &[&str], status: i32, message: &str, hint: &str) {
        let output = self.portolan(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr, format!("portolan: {message}\nhint: {hint}\n"), "{args:?}");
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}: messages go to standard error");
        assert!(!self.0.exists(), "{args:?}: made `{}`", self.0.display());
    }
}

const PUBLISH_FORM: &str =
    "write [[HOSTIP:][HOST[-HOST]]:]CONTAINER[-CONTAINER][/tcp|udp|sctp], such as 8080:80 or 127.0.0.1:5300:53/udp";
const SUBNET_FORM: &str = "write ADDRESS/LENGTH, such as 172.30.0.0/24 or fd00:1::/64";
const EITHER: &str = "leave out one of the two";

#[test]
fn unknown_commands_and_flags() {
    let root = Root::new("flags");
    for (args, message, hint) in [
        (&["frobnicate"][..], "unknown command `frobnicate`", "`portolan --help` shows what it takes"),
        (
            &["network", "craete"],
            "unknown command `craete`",
            "did you mean `create`? `portolan network --help` shows what it takes",
        ),
        (&["ps", "--everything"], "unknown flag `--everything`", "`portolan ps --help` shows what it takes"),
        (
            &["run", "--pubish", "80", "--", "true"],
            "unknown flag `--pubish`",
            "did you mean `--publish`? `portolan run --help` shows what it takes",
        ),
        (
            &["network", "create", "a", "b"],
            "unexpected argument `b`",
            "`portolan network create --help` shows what it takes",
        ),
        (&["network", "create"], "missing `NAME`", "`portolan network create --help` shows what it takes"),
        (&["run", "-d"], "missing `COMMAND`", "`portolan run --help` shows what it takes"),
        (&["attach"], "missing `--netns` or `--pid`", "`portolan attach --help` shows what it takes"),
        (
            &["attach", "--netns", "/a", "--pid", "3"],
            "`--netns` cannot be combined with `--pid`",
            "`portolan attach --help` shows what it takes",
        ),
        (
            &["network", "create", "a", "--subnet"],
            "`--subnet` needs a value",
            "`portolan network create --help` shows what it takes",
        ),
        (&["rules", "--as", "poem"], "`--as` does not take `poem`", "choose `words` or `nft` or `iptables`"),
        (
            &["--log", "loud", "ps"],
            "`--log` does not take `loud`",
            "choose `error` or `warn` or `info` or `debug` or `trace`",
        ),
        (
            &["attach", "--pid", "0"],
            "value `0` of `--pid`: 0 is not in 1..=2147483647",
            "`portolan attach --help` shows what it takes",
        ),
    ] {
        root.refuses(args, 2, message, hint);
    }
}

#[test]
fn malformed_published_ports() {
    let root = Root::new("ports");
    for (spec, reason) in [
        ("80:0", "port `0` is 0"),
        ("70000:80", "port `70000` is larger than 65535"),
        ("80:70000", "port `70000` is larger than 65535"),
        ("20-10:20-10", "port range `20-10` ends before it starts"),
        ("1-3:1-2", "maps 3 host ports to 2 container ports"),
        ("8080:80/icmp", "protocol `icmp` is not tcp, udp or sctp"),
        ("1.2.3:80:80", "`1.2.3` is not an IP address"),
        ("80:", "names no container port"),
        ("http", "port `http` is not a number or a range of two numbers"),
    ] {
        let message = format!("published port `{spec}`: {reason}");
        root.refuses(&["run", "-p", spec, "--", "true"], 2, &message, PUBLISH_FORM);
        root.refuses(&["attach", "--pid", "1", "--publish", spec], 2, &message, PUBLISH_FORM);
        root.refuses(&["publish", "add", "c", spec], 2, &message, PUBLISH_FORM);
        root.refuses(&["publish", "rm", "c", spec], 2, &message, PUBLISH_FORM);
    }
}

#[test]
fn malformed_networks() {
    let root = Root::new("networks");
    for (args, message, hint) in [
        (&["--subnet", "172.30.0.1/24"][..], "subnet `172.30.0.1/24`: has host bits set", "write 172.30.0.0/24"),
        (&["--subnet", "fd00::1/64"], "subnet `fd00::1/64`: has host bits set", "write fd00::/64"),
        (&["--subnet", "172.30.0.0"], "subnet `172.30.0.0`: is not an address with a prefix length", SUBNET_FORM),
        (&["--subnet", "172.30.0.0/33"], "subnet `172.30.0.0/33`: is not an address with a prefix length", SUBNET_FORM),
        (&["--ip-range", "172.30.0.9/28"], "subnet `172.30.0.9/28`: has host bits set", "write 172.30.0.0/28"),
        (&["--gateway", "172.30.0"], "IP address `172.30.0`: is malformed", "write it like 172.30.0.5 or fd00:1::5"),
        (
            &["--aux-address", "172.30.0.9"],
            "auxiliary address `172.30.0.9`: is not of the form KEY=VALUE",
            "write NAME=ADDRESS, such as router=172.30.0.9",
        ),
        (&["--opt", "mtu"], "option `mtu`: is not of the form KEY=VALUE", "write KEY=VALUE, such as mtu=1400"),
        (&["--driver", "overlay"], "network driver `overlay`: is unknown", "this version has the driver `bridge`"),
        (
            &["--ipv6=maybe"],
            "value `maybe` of `--ipv6`: is neither true nor false",
            "`portolan network create --help` shows what it takes",
        ),
    ] {
        root.refuses(&[&["network", "create", "web"], args].concat(), 2, message, hint);
    }
    root.refuses(
        &["network", "create", "a/b"],
        2,
        "name `a/b`: holds the character '/'",
        "use [a-zA-Z0-9][a-zA-Z0-9_.-]*",
    );
    root.refuses(
        &["network", "create", ".."],
        2,
        "name `..`: does not start with a letter or digit",
        "use [a-zA-Z0-9][a-zA-Z0-9_.-]*",
    );
}

#[test]
fn malformed_containers() {
    let root = Root::new("containers");
    for (args, message, hint) in [
        (&["--name", "a b"][..], "name `a b`: holds the character ' '", "use [a-zA-Z0-9][a-zA-Z0-9_.-]*"),
        (
            &["--ip", "fd00::1"],
            "IPv4 address `fd00::1`: is malformed",
            "write it like 172.30.0.5; IPv6 goes into --ip6",
        ),
        (
            &["--mac-address", "01:00:5e:00:00:01"],
            "MAC address `01:00:5e:00:00:01`: is a multicast address",
            "write it as 02:42:ac:11:00:02",
        ),
        (&["--network", "container:"], "network `container:`: names no container", "write container:NAME"),
        (
            &["--network", "name=web,colour=red"],
            "network `name=web,colour=red`: key `colour` is unknown",
            "known keys: name, alias, link, ip, ip6, mac-address, gw-priority, ifname, driver-opt",
        ),
        (
            &["--sysctl", "kernel.panic=1"],
            "sysctl `kernel.panic=1`: does not belong to the network namespace",
            "only sysctls that start with `net.` can be set",
        ),
        (&["--add-host", "db"], "host entry `db`: has no address", "write NAME:ADDRESS or NAME:host-gateway"),
        (
            &["--dns", "one.one.one.one"],
            "IP address `one.one.one.one`: is malformed",
            "write it like 172.30.0.5 or fd00:1::5",
        ),
        (&["-h", "web-"], "host name `web-`: has the label \"web-\"", "labels are letters, digits and inner hyphens"),
        (&["--link", "a/b"], "link `a/b`: name `a/b` holds the character '/'", "write CONTAINER or CONTAINER:ALIAS"),
    ] {
        root.refuses(&[&["run"], args, &["--", "true"]].concat(), 2, message, hint);
    }
}

#[test]
fn flags_that_do_not_go_together() {
    let root = Root::new("conflicts");
    for (args, message) in [
        (
            &["--network", "host", "--network", "web"][..],
            "container sharing network namespace with another container or host cannot be connected to any other network",
        ),
        (
            &["--network", "web", "--network", "none"],
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ),
        (
            &["--network", "container:a", "-p", "80"],
            "conflicting options: port publishing and the container type network mode",
        ),
        (
            &["--network", "container:a", "--expose", "80"],
            "conflicting options: port exposing and the container type network mode",
        ),
        (&["--network", "container:a", "-h", "web"], "conflicting options: hostname and the network mode"),
        (&["--network", "container:a", "--dns", "1.1.1.1"], "conflicting options: dns and the network mode"),
        (
            &["--network", "container:a", "--add-host", "b:1.1.1.1"],
            "conflicting options: custom host-to-IP mapping and the network mode",
        ),
        (
            &["--network", "container:a", "--mac-address", "02:42:ac:11:00:02"],
            "conflicting options: mac-address and the network mode",
        ),
        (
            &["--network", "name=web,ip=10.0.0.2", "--ip", "10.0.0.3"],
            "conflicting options: cannot specify both --ip and per-network IPv4 address",
        ),
        (
            &["--network", "host", "--sysctl", "net.ipv4.ip_forward=1"],
            "sysctl `net.ipv4.ip_forward` not allowed in host network namespace",
        ),
    ] {
        // Docker's status for what it refuses to run.
        root.refuses(&[&["run"], args, &["--", "true"]].concat(), 125, message, EITHER);
    }
}

#[test]
fn without_privileges_nothing_is_begun() {
    let root = Root::new("privileges");
    for (args, verb, status) in [
        (&["network", "create", "web"][..], "network create", 1),
        (&["network", "rm", "web"], "network rm", 1),
        (&["network", "prune", "-f"], "network prune", 1),
        (&["network", "connect", "web", "c"], "network connect", 1),
        (&["network", "disconnect", "web", "c"], "network disconnect", 1),
        (&["run", "--", "true"], "run", 125),
        (&["run", "-d", "--", "true"], "run", 125),
        (&["exec", "c", "--", "true"], "exec", 1),
        (&["rm", "-f", "c"], "rm", 1),
        (&["attach", "--netns", "/run/netns/c"], "attach", 1),
        (&["detach", "c"], "detach", 1),
        (&["publish", "add", "c", "80"], "publish add", 1),
        (&["publish", "rm", "c", "80"], "publish rm", 1),
        (&["verify"], "verify", 1),
        (&["reconcile"], "reconcile", 1),
        (&["gc"], "gc", 1),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(args).env("PORTOLAN_ROOT", &root.0).stdin(Stdio::null());
        if is_root() {
            // nobody, who has no capabilities.
            command.uid(65_534).gid(65_534);
        }
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                eprintln!("SKIPPED: nobody may not execute {}", env!("CARGO_BIN_EXE_portolan"));
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let expected = format!(
            "portolan: `portolan {verb}` needs CAP_NET_ADMIN and CAP_SYS_ADMIN, which this process lacks\nhint: run it as root, for example with sudo\n"
        );
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected, "{args:?}");
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert!(output.stdout.is_empty() && !root.0.exists(), "{args:?}");
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[test]
fn version_and_completions_need_no_state() {
    let root = Root::new("stateless");
    for args in [
        &["version"][..],
        &["version", "--json"],
        &["--version"],
        &["completion", "bash"],
        &["completion", "zsh"],
        &["man"],
    ] {
        let output = root.portolan(args);
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
        assert!(!root.0.exists(), "{args:?}: made `{}`", root.0.display());
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let root = Root::new("pipe");
    let mut child = Command::new(env!("CARGO_BIN_EXE_portolan"))
        .args(["completion", "bash"])
        .env("PORTOLAN_ROOT", &root.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portolan runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("portolan ends");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
