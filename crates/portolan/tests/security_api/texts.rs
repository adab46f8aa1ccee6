//! Names from outside become paths, interface names, rules and arguments of programs: none is anything but a name.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::common::*;
use crate::table::{Row, row};

/// What is no name anywhere. `NUL` cannot be told in arguments and environments, only in texts.
fn nasty() -> Vec<String> {
    let long = "x".repeat(10_000);
    [
        "../../etc/cron.d/x",
        "..",
        ".",
        "/etc/passwd",
        "a/b",
        "a\\..\\b",
        "-rf",
        "e+",
        "!e",
        "--root=/tmp/x",
        "a b",
        "a\tb",
        "a\nb",
        " ",
        "",
        "a;b",
        "$(id)",
        "`id`",
        "a\"b",
        "a'b",
        "{x}",
        "名前",
        "a\u{202e}b",
        "\u{feff}a",
        "é",
        long.as_str(),
    ]
    .map(str::to_owned)
    .into()
}

/// The kernel takes these for interfaces, and no shell ever sees them.
const FINE_FOR_INTERFACES: [&str; 5] = ["a;b", "$(id)", "`id`", "a'b", "{x}"];

/// Everything below the lab's directory and the places that names with `..` would lead to, but for what changes with time.
fn files(world: &World) -> Vec<PathBuf> {
    fn all(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                all(&entry.path(), found);
            }
            found.push(entry.path());
        }
    }
    let mut found = Vec::new();
    all(world.lab.dir(), &mut found);
    for directory in ["/etc", "/etc/cron.d", "/tmp", "/run"] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        found.extend(entries.filter(|path| path.ends_with("x") || path.ends_with("b")));
    }
    found.retain(|path| !path.to_string_lossy().contains("state.db-"));
    found.sort();
    found
}

struct Scene {
    world: World,
    plugin: PathBuf,
    bin: PathBuf,
}

impl Scene {
    fn http(&self, socket: &Path, path: &str, body: &Value) -> (u16, String) {
        let body = body.to_string();
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Whether Docker's API does it.
    fn api(&self, path: &str, body: &Value) -> bool {
        (200..300).contains(&self.http(&self.world.root.join("run/docker.sock"), path, body).0)
    }

    /// Whether Docker's plugin does it.
    fn call(&self, method: &str, body: &Value) -> bool {
        let (status, answer) = self.http(&self.plugin, &format!("/{method}"), body);
        let answer: Value = serde_json::from_str(&answer).unwrap_or(Value::Null);
        status == 200 && answer["Err"].as_str().is_none_or(str::is_empty)
    }

    fn output(&self, mut command: Command, text: &str) -> Output {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.world.h.adopt(command).unwrap().spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Whether the CNI plugin does it.
    fn cni(&self, verb: &str, environment: &[(&str, &str)], patch: Value) -> bool {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "cni", "type": "portolan",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.1.0/24"}]]},
        });
        config.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        let mut command = Command::new(self.bin.join("portolan"));
        command
            .env("PORTOLAN_ROOT", &self.world.root)
            .env("PORTOLAN_DAEMON", "auto")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "legal")
            .env("CNI_IFNAME", "eth9")
            .env("CNI_PATH", &self.bin)
            .envs(environment.iter().copied());
        self.output(command, &config.to_string()).status.success()
    }

    fn portolan(&self, args: &[&str]) -> bool {
        self.world.portolan(args).status.success()
    }
}

pub(crate) fn case() -> Option<Vec<Row>> {
    let mut world = World::or_skip("sec-texts")?;
    world.daemon = true;
    let plugin = world.lab.dir().join("docker.sock");
    world.portolan_ok(&["daemon", "start", "--api", "--docker", plugin.to_str().unwrap()]);
    world.network("web", &["--subnet", "10.91.1.0/24"]);
    let _c = world.container("c", &["--network", "web"]);
    let pod = world.lab.host("pod").unwrap();
    let netns = pod.netns_path().to_str().unwrap().to_owned();
    let (bin, elsewhere) = (world.lab.dir().join("bin"), world.lab.dir().join("evil"));
    fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_portolan"), bin.join("portolan")).unwrap();
    // What a plugin type with `..` would start.
    let script = format!("#!/bin/sh\ntouch '{}/started-x'\n", world.lab.dir().display());
    portolan_lab::write_program(&elsewhere, script).unwrap();
    assert!(Command::new(bin.join("../evil")).status().unwrap().success(), "a runtime that joins the two starts it");
    fs::remove_file(world.lab.dir().join("started-x")).unwrap();
    let scene = Scene { world, plugin, bin };
    let id = "11111111111111111111111111111111111111111111111111111111111111aa";
    let pool = json!([{"AddressSpace": "LocalDefault", "Pool": "10.70.0.0/24", "Gateway": "10.70.0.1/24"}]);
    let on = |network: &str, key: &str, value: &str| format!("name={network},{key}={value}");

    type Tell<'a> = Box<dyn Fn(&str) -> bool + 'a>;
    // Who is told the name, a legal one and how it is undone, and whether it is done.
    let doors: Vec<(&str, &str, Tell<'_>, Tell<'_>)> = vec![
        (
            "`portolan network create NAME`",
            "legal",
            Box::new(|name| scene.portolan(&["network", "create", "--", name])),
            Box::new(|name| scene.portolan(&["network", "rm", name])),
        ),
        (
            "`portolan network create --opt bridge=NAME`",
            "legal0",
            Box::new(|name| scene.portolan(&["network", "create", "named", "--opt", &format!("bridge={name}")])),
            Box::new(|_| scene.portolan(&["network", "rm", "named"])),
        ),
        (
            "`portolan attach --name NAME`",
            "legal",
            Box::new(|name| {
                scene.portolan(&["attach", "--netns", &netns, "--network", "web", &format!("--name={name}")])
            }),
            Box::new(|name| scene.portolan(&["detach", name])),
        ),
        (
            "`portolan attach --network ifname=NAME`",
            "legal0",
            Box::new(|name| {
                scene.portolan(&["attach", "--netns", &netns, "--name", "p", "--network", &on("web", "ifname", name)])
            }),
            Box::new(|_| scene.portolan(&["detach", "p"])),
        ),
        (
            "`portolan attach --network alias=NAME`",
            "legal",
            Box::new(|name| {
                scene.portolan(&["attach", "--netns", &netns, "--name", "p", "--network", &on("web", "alias", name)])
            }),
            Box::new(|_| scene.portolan(&["detach", "p"])),
        ),
        (
            "`portolan attach --hostname NAME`",
            "legal",
            Box::new(|name| {
                scene.portolan(&[
                    "attach",
                    "--netns",
                    &netns,
                    "--name",
                    "p",
                    "--network",
                    "web",
                    &format!("--hostname={name}"),
                ])
            }),
            Box::new(|_| scene.portolan(&["detach", "p"])),
        ),
        (
            "`CNI_CONTAINERID`",
            "legal",
            Box::new(|name| scene.cni("ADD", &[("CNI_NETNS", &netns), ("CNI_CONTAINERID", name)], json!({}))),
            Box::new(|name| scene.cni("DEL", &[("CNI_NETNS", &netns), ("CNI_CONTAINERID", name)], json!({}))),
        ),
        (
            "`CNI_IFNAME`",
            "legal0",
            Box::new(|name| scene.cni("ADD", &[("CNI_NETNS", &netns), ("CNI_IFNAME", name)], json!({}))),
            Box::new(|name| scene.cni("DEL", &[("CNI_NETNS", &netns), ("CNI_IFNAME", name)], json!({}))),
        ),
        (
            "a CNI configuration's `name`",
            "legal",
            Box::new(|name| scene.cni("ADD", &[("CNI_NETNS", &netns)], json!({"name": name}))),
            Box::new(|name| scene.cni("DEL", &[("CNI_NETNS", &netns)], json!({"name": name}))),
        ),
        (
            "a CNI configuration's `ipam.type`",
            "host-local",
            Box::new(|name| {
                let ipam = json!({"type": name, "ranges": [[{"subnet": "10.9.1.0/24"}]]});
                scene.cni("ADD", &[("CNI_NETNS", &netns)], json!({"ipam": ipam}))
            }),
            Box::new(|_| scene.cni("DEL", &[("CNI_NETNS", &netns)], json!({}))),
        ),
        (
            "Docker's API: a network's `Name`",
            "legal",
            Box::new(|name| scene.api("/networks/create", &json!({"Name": name}))),
            Box::new(|name| scene.portolan(&["network", "rm", name])),
        ),
        (
            "Docker's API: a network's bridge",
            "legal0",
            Box::new(|name| {
                let options = json!({"com.docker.network.bridge.name": name});
                scene.api("/networks/create", &json!({"Name": "named", "Options": options}))
            }),
            Box::new(|_| scene.portolan(&["network", "rm", "named"])),
        ),
        (
            "Docker's API: the container of `/networks/web/connect`",
            "c",
            Box::new(|name| scene.api("/networks/extra/connect", &json!({"Container": name}))),
            Box::new(|name| scene.api("/networks/extra/disconnect", &json!({"Container": name}))),
        ),
        (
            "Docker's plugin: `NetworkID`",
            id,
            Box::new(|name| {
                let options = json!({"com.docker.network.enable_ipv6": false, "com.docker.network.generic": {}});
                let body = json!({"NetworkID": name, "Options": options, "IPv4Data": pool, "IPv6Data": []});
                scene.call("NetworkDriver.CreateNetwork", &body)
            }),
            Box::new(|name| scene.call("NetworkDriver.DeleteNetwork", &json!({"NetworkID": name}))),
        ),
    ];
    scene.world.network("extra", &["--subnet", "10.91.3.0/24"]);
    let mut rows = Vec::new();
    for (door, legal, tell, undo) in &doors {
        let (before, files_before) = (scene.world.state(), files(&scene.world));
        for name in nasty() {
            if *legal == "legal0" && FINE_FOR_INTERFACES.contains(&name.as_str()) {
                continue;
            }
            // An empty value is none given, which is as good as a name.
            if name.is_empty() && ["bridge", "alias", "ifname", "ipam"].iter().any(|word| door.contains(word)) {
                continue;
            }
            assert!(!tell(&name), "{door} takes {:?}", &name.chars().take(20).collect::<String>());
        }
        if door.contains("Docker") || door.contains("configuration") {
            assert!(!tell("a\0b"), "{door} takes NUL");
        }
        before.assert_same(&scene.world.state(), door);
        assert_eq!(files(&scene.world), files_before, "{door} made or removed files");
        assert!(tell(legal), "{door} does not take `{legal}`");
        assert!(undo(legal), "{door}: `{legal}` is not undone");
        rows.push(row(door, "a legal name is taken", "refused, nothing changed"));
    }
    scene.world.verify();
    Some(rows)
}
