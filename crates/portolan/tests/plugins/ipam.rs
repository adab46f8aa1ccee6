//! Calls of plugins that give addresses, on a pair of hosts or mixed on one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::beside::{Pair, Side};
use crate::runtime::{Pod, Refusal, answer, output_of, with};

/// A container's interface that addresses are asked for, without a namespace of its own: these plugins do not enter it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) side: &'a Side,
    pub(crate) pod: &'a Pod,
    /// `CNI_ARGS`.
    pub(crate) args: &'a str,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(side: &'a Side, pod: &'a Pod) -> Self {
        Self { side, pod, args: "" }
    }

    /// The plugin under `kind`, for container `id`.
    pub(crate) fn command(&self, kind: &str, verb: &str, id: &str) -> Command {
        let mut command = self.side.command(kind, verb, self.pod, "eth0");
        command.env("CNI_CONTAINERID", id).env("CNI_ARGS", self.args);
        command
    }

    /// The same after a script, in a mount namespace of its own: the script may mount over `$DIR`.
    pub(crate) fn command_after(&self, script: &str, dir: &Path, kind: &str, verb: &str, id: &str) -> Command {
        let plugin = self.side.bin.join(kind);
        let mut command = self.side.world.h.command("unshare").unwrap();
        let script = format!("set -e; {script}; exec {}", plugin.display());
        command.args(["--mount", "sh", "-c", &script]).env("DIR", dir);
        for (key, value) in self.command(kind, verb, id).get_envs() {
            command.env(key, value.unwrap());
        }
        command
    }

    pub(crate) fn call(&self, kind: &str, verb: &str, id: &str, config: &Value) -> Result<Value, Refusal> {
        answer(&output_of(self.command(kind, verb, id), config.to_string().as_bytes()))
    }
}

/// What is in a directory, but for the lock.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).into_iter().flatten().map(Result::unwrap);
    let file = |entry: fs::DirEntry| {
        let text = fs::read(entry.path())
            .map_or_else(|error| error.to_string(), |bytes| format!("{:?}", String::from_utf8_lossy(&bytes)));
        (entry.file_name().into_string().unwrap(), text)
    };
    entries.map(file).filter(|(name, _)| name != "lock").collect()
}

/// A configuration of network `net` for a plugin by itself.
pub(crate) fn config(version: &str, kind: &str, ipam: &Value, patch: &Value) -> Value {
    let ipam = with(ipam, json!({"type": kind}));
    with(&json!({"cniVersion": version, "name": "net", "type": kind, "ipam": ipam}), patch.clone())
}

/// Where a side keeps leases.
pub(crate) fn leases(side: &Side, what: &str) -> PathBuf {
    side.world.lab.dir().join(what)
}

/// A configuration to try on both sides.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) ipam: Value,
    /// More of the configuration.
    pub(crate) patch: Value,
    pub(crate) args: &'static str,
}

impl Case {
    pub(crate) fn new(ipam: Value) -> Self {
        Self { ipam, patch: json!({}), args: "" }
    }

    pub(crate) fn patch(self, patch: Value) -> Self {
        Self { patch, ..self }
    }

    pub(crate) fn args(self, args: &'static str) -> Self {
        Self { args, ..self }
    }
}

/// What a side answers to a sequence of calls, and what is in its directory after each.
pub(crate) type Transcript = Vec<(String, Result<Value, Refusal>, BTreeMap<String, String>)>;

/// Calls `kind` by `steps` (verb and container) on one side.
pub(crate) fn transcript(
    side: &Side,
    pod: &Pod,
    kind: &str,
    version: &str,
    case: &Case,
    dir: &str,
    steps: &[(&str, &str)],
) -> Transcript {
    let dir = leases(side, dir);
    let caller = Caller { args: case.args, ..Caller::new(side, pod) };
    let ipam = if kind == "host-local" { with(&case.ipam, json!({"dataDir": dir})) } else { case.ipam.clone() };
    let mut config = config(version, kind, &ipam, &case.patch);
    let mut seen = Vec::new();
    for (verb, id) in steps {
        let result = caller.call(kind, verb, id, &config);
        if let (&"ADD", Ok(result)) = (verb, &result) {
            config["prevResult"] = result.clone();
        }
        seen.push((format!("{verb} {id}"), result, files(&dir.join("net"))));
    }
    seen
}

/// Makes the same calls on both sides; where they part: answers, texts of refusals, or files.
///
/// In one of the versions, which differs from case to case, or in all with `PORTOLAN_VERSIONS=all`.
pub(crate) fn differences(pair: &Pair, pods: &[Pod; 2], kind: &str, cases: &[Case], steps: &[(&str, &str)]) -> String {
    const VERSIONS: [&str; 4] = ["0.2.0", "0.3.1", "0.4.0", "1.0.0"];
    let is_each = std::env::var("PORTOLAN_VERSIONS").is_ok_and(|wanted| wanted == "all");
    let mut found = String::new();
    for (number, case) in cases.iter().enumerate() {
        // The newest first, which alone has CHECK.
        let of_case = VERSIONS[VERSIONS.len() - 1 - number % VERSIONS.len()];
        for version in VERSIONS.into_iter().filter(|version| is_each || *version == of_case) {
            let steps = steps.iter().copied().filter(|(verb, _)| *verb != "CHECK" || version == "1.0.0");
            let steps: Vec<_> = steps.collect();
            let dir = format!("{kind}-{}-{number}-{version}", steps.len());
            let [ours, theirs] = [(&pair.ours, &pods[0]), (&pair.theirs, &pods[1])]
                .map(|(side, pod)| transcript(side, pod, kind, version, case, &dir, &steps));
            for (ours, theirs) in ours.iter().zip(&theirs) {
                // On purpose: a container comes off whatever its configuration has become.
                let is_lenient = ours.0.starts_with("DEL") && ours.1.is_ok() && ours.2 == theirs.2;
                if ours != theirs && !is_lenient {
                    found += &format!(
                        "{version} {} {} {}\n  ours: {ours:?}\ntheirs: {theirs:?}\n",
                        case.ipam, case.patch, case.args
                    );
                    break;
                }
            }
        }
    }
    found
}
