//! A container runtime's side of the protocol.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use portolan_kernel::netns::NetnsFd;
use portolan_lab::{Host, InNetns};
use serde_json::{Value, json};

use crate::common::World;

/// A world whose host has a directory of plugins.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) world: World,
    pub(crate) bin: PathBuf,
}

/// A namespace, by the name that the runtime has for its container.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) host: Host,
}

impl InNetns for Pod {
    fn netns(&self) -> &NetnsFd {
        self.host.netns()
    }
}

impl Pod {
    /// The path of its namespace.
    pub(crate) fn path(&self) -> &str {
        self.host.netns_path().to_str().unwrap()
    }
}

/// What a plugin says when it refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u64,
    pub(crate) msg: String,
    pub(crate) details: String,
}

impl Runtime {
    /// Makes one without a daemon. Skips loudly where no namespaces can be made.
    pub(crate) fn or_skip(name: &str) -> Option<Self> {
        let world = World::or_skip(name)?;
        let bin = world.lab.dir().join("bin");
        fs::create_dir(&bin).unwrap();
        for name in ["portolan", "loopback"] {
            symlink(env!("CARGO_BIN_EXE_portolan"), bin.join(name)).unwrap();
        }
        Some(Self { world, bin })
    }

    /// A container that is on no network yet.
    #[track_caller]
    pub(crate) fn pod(&self, id: &str) -> Pod {
        Pod { id: id.to_owned(), host: self.world.lab.host(id).unwrap() }
    }

    /// A plugin, called for `pod` and interface `eth0`.
    pub(crate) fn command(&self, verb: &str, pod: &Pod, kind: &str) -> Command {
        let mut command = Command::new(self.bin.join(kind));
        command
            .env("PORTOLAN_ROOT", &self.world.root)
            .env("PORTOLAN_DAEMON", if self.world.daemon { "auto" } else { "off" })
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.bin);
        self.world.h.adopt(command).unwrap()
    }

    /// Calls the plugin that a configuration names.
    #[track_caller]
    pub(crate) fn call(&self, verb: &str, pod: &Pod, config: &Value) -> Result<Value, Refusal> {
        let kind = config["type"].as_str().unwrap();
        answer(&output_of(self.command(verb, pod, kind), config.to_string().as_bytes()))
    }

    /// ADD, which has to succeed.
    #[track_caller]
    pub(crate) fn add(&self, pod: &Pod, config: &Value) -> Value {
        self.call("ADD", pod, config).unwrap_or_else(|error| panic!("ADD {}: {error:?}", pod.id))
    }

    /// DEL, which has to succeed and to say nothing.
    #[track_caller]
    pub(crate) fn del(&self, pod: &Pod, config: &Value) {
        let answer = self.call("DEL", pod, config).unwrap_or_else(|error| panic!("DEL {}: {error:?}", pod.id));
        assert_eq!(answer, Value::Null, "DEL prints nothing");
    }

    /// What is refused and must change nothing.
    #[track_caller]
    pub(crate) fn refused(&self, verb: &str, pod: &Pod, config: &Value) -> Refusal {
        let before = self.world.state();
        let refusal = self.call(verb, pod, config).expect_err("should be refused");
        before.assert_same(&self.world.state(), &refusal.msg);
        refusal
    }
}

/// Runs a command with `text` on standard input.
#[track_caller]
pub(crate) fn output_of(mut command: Command, text: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = text.to_vec();
    // It may be longer than a pipe, and it may not be wanted.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&text)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// What a runtime makes of an output.
#[track_caller]
pub(crate) fn answer(output: &Output) -> Result<Value, Refusal> {
    let (text, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let what = format!("{}\n{text}{log}", output.status);
    let value: Value = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {what}"))
    };
    match output.status.code() {
        Some(0) => Ok(value),
        Some(1) => Err(Refusal {
            code: value["code"].as_u64().unwrap_or_else(|| panic!("{what}")),
            msg: value["msg"].as_str().unwrap_or_else(|| panic!("{what}")).to_owned(),
            details: value["details"].as_str().unwrap_or_default().to_owned(),
        }),
        _ => panic!("{what}"),
    }
}

/// The addresses that an ADD gave.
pub(crate) fn addresses_of(result: &Value) -> Vec<String> {
    result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap().to_owned()).collect()
}

/// A configuration of network `web` with both families.
pub(crate) fn web() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "web", "type": "portolan",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.1.0/24"}], [{"subnet": "fd09:1::/64"}]]},
    })
}

/// `base` with the keys of `patch` in place of its own.
pub(crate) fn with(base: &Value, patch: Value) -> Value {
    let mut all = base.as_object().unwrap().clone();
    all.extend(patch.as_object().unwrap().clone());
    Value::Object(all)
}
