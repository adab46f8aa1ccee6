//! The machine is started anew, as far as a namespace can be: processes, run-time files, namespaces and all that the kernel
//! held are gone, and the boot has another identity; the state is kept.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use portolan_lab::{Host, eventually};
use serde_json::{Value, json};

use crate::common::{LONG, World};
use crate::place::*;

/// A machine from its start to its end.
struct Boot<'a> {
    world: &'a World,
    keeper: Child,
    init: u32,
    /// Namespaces for containers: of the command line, Podman and a CNI runtime.
    guests: Vec<Host>,
}

impl<'a> Boot<'a> {
    /// None where it cannot be pretended that this is another boot.
    fn start(world: &'a World, number: usize) -> Option<Self> {
        let dir = world.lab.dir();
        let host = world.lab.host(&format!("boot{number}")).unwrap();
        let guests = (0..4).map(|n| world.lab.host(&format!("b{number}g{n}")).unwrap()).collect();
        let identity = dir.join(format!("identity{number}"));
        fs::write(&identity, format!("{number:08}-0000-4000-8000-000000000000\n")).unwrap();
        let script = format!(
            "mount --bind '{}' /proc/sys/kernel/random/boot_id && mkdir -p '{root}/run' && mount -t tmpfs tmpfs '{root}/run' \
             && echo ready && exec sleep 1000",
            identity.display(),
            root = world.root.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut keeper = host.adopt(command).unwrap().spawn().unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", keeper.id())).unwrap_or_default();
        let init = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        let boot = Self { world, keeper, init: init.unwrap_or(0), guests };
        if line.trim() != "ready" {
            eprintln!("SKIP: the identity of the boot cannot be another one here");
            return None;
        }
        Some(boot)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string()).args(["--mount", "--pid", "--net", "--"]);
        command.arg(env!("CARGO_BIN_EXE_portolan")).args(args).env("PORTOLAN_ROOT", &self.world.root);
        command.stdin(Stdio::null());
        command
    }

    fn guest(&self, number: usize) -> &str {
        self.guests[number].netns_path().to_str().unwrap()
    }

    fn run(&self, line: &str) -> Output {
        self.command(&line.split(' ').collect::<Vec<_>>()).output().unwrap()
    }

    #[track_caller]
    fn line(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "`{line}`: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fed(&self, mut command: Command, input: &Value) -> Output {
        let path = self.world.lab.dir().join("reboot.json");
        fs::write(&path, input.to_string()).unwrap();
        command.stdin(fs::File::open(path).unwrap());
        command.output().unwrap()
    }

    fn podman(&self, verb: &str) -> Output {
        let root = self.world.root.to_str().unwrap();
        let call = ["netavark", "--config", root, "--rootless=false", verb, self.guest(1)];
        self.fed(self.command(&call), &podman_input())
    }

    fn cni(&self, verb: &str) -> Output {
        let mut command = self.command(&[]);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "k").env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", self.guest(2)).env("CNI_PATH", self.world.lab.dir());
        self.fed(command, &cni_input("kube"))
    }

    /// How a socket below the run-time directory is reached from outside.
    fn socket(&self, path: &Path) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root").join(path.strip_prefix("/").unwrap())
    }

    fn plugin(&self, method: &str, body: &Value) -> Value {
        let socket = self.socket(&self.world.root.join("run/plugin.sock"));
        let (status, text) = http(&socket, "POST", &format!("/NetworkDriver.{method}"), body).unwrap();
        assert_eq!(status, 200, "{method}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    fn api(&self, path: &str) -> Value {
        let socket = self.socket(&self.world.root.join("run/docker.sock"));
        let (status, text) = http(&socket, "GET", path, &Value::Null).unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// What each face gives to its container: always the same addresses and ports.
    fn attach_all(&self) -> Vec<(&'static str, bool, String)> {
        let said = |output: Output| {
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            (output.status.success(), said)
        };
        let ours = format!("attach --netns {} --name c --network name=a,ip=10.91.0.5 -p 8070:80", self.guest(0));
        let docker = self.plugin(
            "CreateEndpoint",
            &json!({"NetworkID": "ab".repeat(32), "EndpointID": "cd".repeat(32), "Interface": {"Address": "10.70.0.2/24"}, "Options": {}}),
        );
        let run = "run -d --name r --network name=a,ip=10.91.0.6 -p 8071:80 -- sleep 1000";
        let outcome = |face, (ok, said)| (face, ok, said);
        vec![
            outcome("attach", said(self.run(&ours))),
            outcome("run", said(self.run(run))),
            outcome("netavark", said(self.podman("setup"))),
            outcome("cni", said(self.cni("ADD"))),
            ("docker", docker.get("Err").is_none(), docker.to_string()),
        ]
    }

    fn serve(&self) {
        self.line(&format!("daemon start --docker {}/run/plugin.sock --api", self.world.root.display()));
    }

    /// Everything ends at once.
    fn end(mut self) {
        self.keeper.kill().unwrap();
        self.keeper.wait().unwrap();
        let init = self.init;
        assert!(
            eventually(LONG, || !Path::new(&format!("/proc/{init}/root/proc")).exists()),
            "its processes end with it"
        );
    }
}

#[test]
fn reboot() {
    let Some(world) = World::or_skip("reboot") else { return };
    let Some(first) = Boot::start(&world, 1) else { return };
    first.serve();
    for line in ["network create --subnet 10.91.0.0/24 a", "network create -d ptp --subnet 10.92.0.0/24 b"] {
        first.line(line);
    }
    let pools = json!([{"AddressSpace": "LocalDefault", "Pool": "10.70.0.0/24", "Gateway": "10.70.0.1/24"}]);
    let options = json!({"com.docker.network.enable_ipv6": false, "com.docker.network.generic": {}});
    let network = json!({"NetworkID": "ab".repeat(32), "Options": options, "IPv4Data": pools, "IPv6Data": []});
    assert_eq!(first.plugin("CreateNetwork", &network).get("Err"), None);
    for (face, is_done, said) in first.attach_all() {
        assert!(is_done, "{face}: {said}");
    }
    // While they are there nobody else has what they have.
    for taken in ["ip=10.91.0.5", "ip=10.91.0.6"] {
        let refused = first.run(&format!("attach --netns {} --name x --network name=a,{taken}", first.guest(3)));
        assert!(!refused.status.success(), "{taken}: {refused:?}");
    }
    let names = |networks: &Value| -> Vec<String> {
        let mut names: Vec<String> =
            networks.as_array().unwrap().iter().map(|network| network["Name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let before = names(&first.api("/networks"));
    assert!(["a", "b"].iter().all(|name| before.iter().any(|other| other == name)), "{before:?}");
    first.end();

    let Some(second) = Boot::start(&world, 2) else { return };
    second.serve();
    second.line("verify");
    // What Podman and a CNI runtime describe with every call goes with their containers.
    let after = names(&second.api("/networks"));
    let kept: Vec<&String> = before.iter().filter(|name| *name != "web" && *name != "kube").collect();
    assert_eq!(after.iter().collect::<Vec<_>>(), kept, "the networks are there as before");
    let containers = second.line("ps -a");
    assert!(containers.contains("Exited (255)") && !containers.contains("Up"), "{containers}");
    assert_eq!(second.api("/containers/json"), json!([]));
    second.line("rm r");
    for (face, is_done, said) in second.attach_all() {
        assert!(is_done, "{face}, after the machine was started anew: {said}");
    }
    second.line("verify");
    let status: Value = serde_json::from_str(&second.line("--json daemon status")).unwrap();
    assert_eq!((&status["endpoints"], &status["warnings"]), (&json!(5), &json!([])), "{status}");

    // And once more, with nobody but a verb, of a face that does not ask for what was there.
    second.end();
    let Some(third) = Boot::start(&world, 3) else { return };
    let added = third.cni("ADD");
    assert!(added.status.success(), "{added:?}");
    third.line("verify");
    assert!(third.cni("DEL").status.success());
    third.line("rm r");
    third.line("daemon stop");
    for name in ["a", "b"] {
        third.line(&format!("network rm {name}"));
    }
    third.end();
}
