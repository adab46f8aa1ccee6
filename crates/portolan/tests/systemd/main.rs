//! Our units under a systemd(1) of their own: what they keep from the daemon is nothing that it needs, and what they keep for it
//! outlives it.

#[path = "../machine/mod.rs"]
mod machine;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use machine::{IMAGE, Machine, missing_of};
use portolan_lab::{Host, Lab, eventually};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

const PROGRAMS: [(&str, &str); 3] =
    [("/lib/systemd/systemd", "systemd"), ("/usr/bin/busybox", "busybox-static"), ("/usr/bin/dig", "bind9-dnsutils")];
const DOCKER: [(&str, &str); 5] = [
    ("/usr/sbin/dockerd", "docker.io"),
    ("/usr/bin/docker", "docker.io"),
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/sbin/iptables", "iptables"),
];

/// What systemd and its services write to.
const PLACES: [&str; 8] = [
    "/tmp",
    "/usr/local/bin",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/portolan",
    "/var/lib/systemd",
    "/var/log",
    "/var/tmp",
];

/// A machine whose first process is systemd.
struct Booted {
    machine: Machine,
    init: String,
    outer: Child,
    _host: Host,
    // Last, as it removes the others.
    _lab: Lab,
}

impl Booted {
    /// Boots one that has `portolan` in /usr/local/bin and starts nothing by itself.
    fn or_skip(name: &str, programs: &[(&str, &str)]) -> Option<Self> {
        if let Some(missing) = missing_of(&[&PROGRAMS, programs].concat()) {
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            eprintln!("SKIP: {missing}");
            return None;
        }
        let lab = Lab::or_skip(name)?;
        let host = lab.host("host").unwrap();
        let configure = |dir: &Path| {
            let units = dir.join("etc/systemd/system");
            fs::create_dir_all(&units)?;
            fs::write(units.join("quiet.target"), "[Unit]\nDescription=Nothing but what is asked for\n")?;
            // What prepares a machine would prepare this one, its sysctls and modules among them.
            for wanted in fs::read_dir("/lib/systemd/system/sysinit.target.wants")? {
                let name = wanted?.file_name();
                if !name.to_string_lossy().contains("journal") {
                    symlink("/dev/null", units.join(name))?;
                }
            }
            fs::write(dir.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n")?;
            fs::write(dir.join("var/log/console"), "")?;
            fs::copy(env!("CARGO_BIN_EXE_portolan"), dir.join("usr/local/bin/portolan"))?;
            Ok(())
        };
        let machine = Machine::start(&lab, &host, "systemd", &PLACES, configure).unwrap();
        let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/systemd/boot.sh");
        let mut command = machine.command("unshare", &["--pid", "--fork", "--kill-child", "--mount", "sh"]);
        let outer = command.arg(boot).stdin(Stdio::null()).spawn().unwrap();
        let mut booted = Self { machine, init: String::new(), outer, _host: host, _lab: lab };
        let is_up = eventually(LONG, || {
            booted.find_init().is_some_and(|init| {
                booted.init = init;
                booted.run(&["systemctl", "show", "-P", "Version"]).is_ok()
            })
        });
        assert!(is_up, "{}", booted.console());
        booted.line("ip link set lo up");
        Some(booted)
    }

    /// systemd, as we count: the child of unshare(1), which is the child of nsenter(1).
    fn find_init(&self) -> Option<String> {
        let mut pid = self.outer.id().to_string();
        while fs::read_to_string(format!("/proc/{pid}/comm")).ok()? != "systemd\n" {
            pid = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.split(' ').next()?.to_owned();
        }
        Some(pid)
    }

    /// What systemd wrote.
    fn console(&self) -> String {
        fs::read_to_string(self.machine.outside("/var/log/console")).unwrap_or_default()
    }

    /// Runs a program where systemd is the first process; what it printed, trimmed, or what it said.
    fn run(&self, words: &[&str]) -> Result<String, String> {
        let mut command = std::process::Command::new("nsenter");
        command
            .args(["--target", &self.init, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
            .args(words);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(format!("{}{}", text(output.stdout), text(output.stderr)))
        }
    }

    /// As [`Self::run`], of words with a blank between them; it has to work.
    #[track_caller]
    fn line(&self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        self.run(&words).unwrap_or_else(|said| panic!("`{line}`: {said}\n{}", self.console()))
    }

    /// A unit of ours, with the daemon's path as it is.
    fn install_unit(&self, name: &str) {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd").join(name));
        fs::write(self.machine.outside(&format!("/etc/systemd/system/{name}")), text.unwrap()).unwrap();
        self.line("systemctl daemon-reload");
    }

    fn main_pid(&self, unit: &str) -> String {
        self.line(&format!("systemctl show -P MainPID {unit}"))
    }

    /// Asks the name server at `gateway` from the namespace `from`.
    fn dig(&self, from: &str, gateway: &str, name: &str) -> String {
        self.line(&format!("ip netns exec {from} dig +short +time=5 +tries=1 @{gateway} {name}"))
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.line("portolan --json daemon status")).unwrap()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Everything in its PID namespace goes with it.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

/// The daemon of the unit does all that it does for containers; what it leaves to systemd outlives its death, its restart and its
/// upgrade, and containers outlive its end.
#[test]
fn the_service_outlives_what_happens_to_it() {
    let Some(booted) = Booted::or_skip("systemd", &[]) else { return };
    booted.install_unit("portolan.service");
    booted.line("systemctl start portolan");
    assert_eq!(booted.status()["supervisor"], "systemd");
    let pid = booted.main_pid("portolan");
    let status = booted.line(&format!("cat /proc/{pid}/status"));
    for fence in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(fence), "{status}");
    }
    // Namespaces that are made after it was started.
    booted.line("portolan network create net");
    for name in ["a", "b"] {
        booted.line(&format!("ip netns add {name}"));
        booted.line(&format!("portolan attach --netns /run/netns/{name} --name {name} --network net"));
    }
    booted.line("portolan run -d --name r --network net -- sleep 1000");
    let network: Value = serde_json::from_str(&booted.line("portolan network inspect net")).unwrap();
    let gateway = network[0]["IPAM"]["Config"][0]["Gateway"].as_str().unwrap().to_owned();
    let b = booted.dig("a", &gateway, "b");
    assert!(!b.is_empty());
    booted.line("portolan verify");
    let r = booted.dig("a", &gateway, "r");

    booted.line(&format!("kill -9 {pid}"));
    assert_eq!(booted.dig("a", &gateway, "b"), b, "the question waits in a socket that systemd keeps");
    assert_ne!(booted.main_pid("portolan"), pid);
    assert_eq!(booted.line("systemctl show -P NRestarts portolan"), "1");
    booted.line("systemctl restart portolan");
    assert_eq!(booted.dig("a", &gateway, "b"), b);
    let pid = booted.main_pid("portolan");
    booted.line("systemctl reload portolan");
    assert_eq!(booted.dig("a", &gateway, "b"), b);
    assert_eq!(booted.main_pid("portolan"), pid, "an upgrade is no new process");

    booted.line("nft flush ruleset");
    assert!(eventually(LONG, || booted.run(&["portolan", "verify"]).is_ok()), "{}", booted.console());
    booted.line("ip netns del b");
    assert!(eventually(LONG, || booted.dig("a", &gateway, "b").is_empty()), "{}", booted.console());
    assert!(!booted.line("portolan --json ps").contains("\"b\""));
    booted.line("systemctl stop portolan");
    let ps = booted.line("portolan ps");
    assert!(ps.contains("sleep 1000") && !ps.contains("Exited"), "{ps}");
    booted.line(&format!("ip netns exec a busybox ping -c 1 -W 5 {r}"));
}

/// Docker from its own unit, and its networks from ours: in order, and each restarted without the other.
#[test]
fn docker_and_its_networks_are_two_services() {
    let Some(booted) = Booted::or_skip("systemd-docker", &DOCKER) else { return };
    fs::create_dir_all(booted.machine.outside("/etc/docker")).unwrap();
    fs::write(booted.machine.outside("/etc/docker/daemon.json"), r#"{"storage-driver": "vfs"}"#).unwrap();
    booted.line("portolan install docker");
    booted.line("systemctl daemon-reload");
    booted.line("systemctl enable portolan-docker.service");
    booted.line("systemctl start docker");
    let began = |unit: &str| -> u64 {
        booted.line(&format!("systemctl show -P ActiveEnterTimestampMonotonic {unit}")).parse().unwrap()
    };
    assert!(began("portolan-docker") < began("docker"), "it is there when Docker asks");
    let image = booted.machine.make_image().unwrap();
    fs::copy(&image, booted.machine.outside("/tmp/image.tar")).unwrap();
    booted.line("docker load -q -i /tmp/image.tar");
    booted.line("docker network create -d portolan net");
    booted.line("portolan doctor --open");
    for name in ["one", "two"] {
        booted.line(&format!("docker run -d --restart always --network net --name {name} {IMAGE} sleep 1000"));
    }
    // By name, so that Docker's resolver and our name server take part.
    let reaches = || booted.run(&["docker", "exec", "one", "ping", "-c", "1", "-W", "5", "two"]);
    reaches().unwrap();
    booted.line("systemctl restart portolan-docker");
    reaches().unwrap();
    let pid = booted.main_pid("portolan-docker");
    booted.line(&format!("kill -9 {pid}"));
    reaches().unwrap();
    booted.line("docker rm -f two");
    booted.line(&format!("docker run -d --restart always --network net --name two {IMAGE} sleep 1000"));
    reaches().unwrap();
    booted.line("systemctl restart docker");
    assert!(eventually(LONG, || reaches().is_ok()), "{}", booted.console());
    booted.line("docker rm -f one two");
    booted.line("docker network rm net");
    booted.line("portolan verify");
    assert_eq!(booted.line("portolan --json ps"), "[]");
}
