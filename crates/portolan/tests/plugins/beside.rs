//! Two hosts alike, one with our plugins and one with Debian's, and a runtime that calls chains of them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::symlink;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::link;
use portolan_lab::InNetns as _;
use serde_json::{Value, json};

use crate::common::World;
use crate::runtime::{Pod, Refusal, answer, output_of};

/// Where Debian's are.
pub(crate) const ORIGINALS: &str = "/usr/lib/cni";

/// The versions that results are compared in: those that Debian's speak and ours have in common.
pub(crate) const VERSIONS: [&str; 3] = ["0.3.1", "0.4.0", "1.0.0"];

/// Those of before: results have one address of a family.
pub(crate) const OLD_VERSIONS: [&str; 2] = ["0.1.0", "0.2.0"];

/// Those that have no CHECK.
const UNCHECKED: [&str; 3] = ["0.1.0", "0.2.0", "0.3.1"];

/// A network as a runtime has it: plugins to call one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    name: String,
    pub(crate) plugins: Vec<Value>,
    runtime: BTreeMap<String, Value>,
    args: String,
    differences: Vec<Difference>,
    unchecked: Option<&'static str>,
    versions: &'static [&'static str],
}

/// Where ours do not as the originals do.
#[derive(Debug, Clone)]
pub(crate) struct Difference {
    /// Why, for people.
    pub(crate) reason: &'static str,
    /// Makes of their result what ours is.
    pub(crate) amend: fn(&mut Value),
}

impl Chain {
    /// Plugins as a file of configurations lists them: without name and version.
    pub(crate) fn new(name: &str, plugins: impl IntoIterator<Item = Value>) -> Self {
        Self {
            name: name.to_owned(),
            plugins: plugins.into_iter().collect(),
            runtime: BTreeMap::new(),
            args: String::new(),
            differences: Vec::new(),
            unchecked: None,
            versions: &VERSIONS,
        }
    }

    /// The versions that Debian's plugins of this chain speak.
    pub(crate) fn versions(mut self, versions: &'static [&'static str]) -> Self {
        self.versions = versions;
        self
    }

    /// Their CHECK refuses what their ADD made, for a reason that docs/cni-plugins.md lists.
    pub(crate) fn unchecked(mut self, reason: &'static str) -> Self {
        self.unchecked = Some(reason);
        self
    }

    /// A difference that is meant; docs/cni-plugins.md lists it.
    pub(crate) fn but(mut self, reason: &'static str, amend: fn(&mut Value)) -> Self {
        self.differences.push(Difference { reason, amend });
        self
    }

    /// The original's CHECK refuses what its ADD made; ours does not.
    pub(crate) fn original_cannot_check(mut self, reason: &'static str) -> Self {
        self.unchecked = Some(reason);
        self
    }

    #[allow(dead_code, reason = "plugins without capabilities")]
    /// What the runtime says by a capability; plugins that name it get it.
    pub(crate) fn runtime(mut self, capability: &str, value: Value) -> Self {
        self.runtime.insert(capability.to_owned(), value);
        self
    }

    #[allow(dead_code, reason = "plugins without arguments")]
    /// `CNI_ARGS`.
    pub(crate) fn args(mut self, args: &str) -> Self {
        args.clone_into(&mut self.args);
        self
    }

    /// One of the versions, which differs from chain to chain, or all with `PORTOLAN_VERSIONS=all`.
    fn versions_to_try(&self) -> Vec<&'static str> {
        if std::env::var("PORTOLAN_VERSIONS").is_ok_and(|wanted| wanted == "all") {
            return self.versions.to_vec();
        }
        let text = format!("{:?} {:?} {}", self.plugins, self.runtime, self.args);
        let number: usize = text.bytes().map(usize::from).sum();
        vec![self.versions[number % self.versions.len()]]
    }

    /// What one plugin gets.
    pub(crate) fn config(&self, plugin: &Value, version: &str, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        config["cniVersion"] = json!(version);
        config["name"] = json!(self.name);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let wanted = plugin["capabilities"].as_object().into_iter().flatten();
        let wanted = wanted.filter(|(_, value)| **value == json!(true)).map(|(name, _)| name);
        let given: BTreeMap<&String, &Value> = wanted.filter_map(|name| self.runtime.get_key_value(name)).collect();
        if !given.is_empty() {
            config["runtimeConfig"] = json!(given);
        }
        config
    }
}

/// A host and the plugins on it.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) world: World,
    /// Links to the plugins.
    pub(crate) bin: PathBuf,
}

impl Side {
    fn or_skip(test: &str, name: &'static str) -> Option<Self> {
        let world = World::or_skip(&format!("{test}-{name}"))?;
        let bin = world.lab.dir().join("bin");
        fs::create_dir(&bin).unwrap();
        Some(Self { name, world, bin })
    }

    /// Makes `kind` ours (`true`) or the original.
    pub(crate) fn choose(&self, kind: &str, is_ours: bool) {
        let link = self.bin.join(kind);
        let _ = fs::remove_file(&link);
        let program =
            if is_ours { PathBuf::from(env!("CARGO_BIN_EXE_portolan")) } else { Path::new(ORIGINALS).join(kind) };
        symlink(program, link).unwrap();
    }

    /// A container that is on no network yet.
    pub(crate) fn pod(&self, id: &str) -> Pod {
        Pod { id: id.to_owned(), host: self.world.lab.host(id).unwrap() }
    }

    /// A plugin, called for `pod` and interface `ifname`.
    pub(crate) fn command(&self, kind: &str, verb: &str, pod: &Pod, ifname: &str) -> Command {
        let mut command = Command::new(self.bin.join(kind));
        command
            .env("PORTOLAN_ROOT", &self.world.root)
            .env("PORTOLAN_DAEMON", "off")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", ifname)
            .env("CNI_PATH", &self.bin)
            .envs(self.world.environment.iter().cloned());
        self.world.h.adopt(command).unwrap()
    }

    pub(crate) fn call(
        &self,
        verb: &str,
        pod: &Pod,
        chain: &Chain,
        config: &Value,
        ifname: &str,
    ) -> Result<Value, Refusal> {
        let mut command = self.command(config["type"].as_str().unwrap(), verb, pod, ifname);
        command.env("CNI_ARGS", &chain.args);
        answer(&output_of(command, self.text(config).as_bytes()))
    }

    /// A configuration as it is given: `$DIR` is this side's directory, where plugins keep their files.
    pub(crate) fn text(&self, config: &Value) -> String {
        config.to_string().replace("$DIR", self.world.lab.dir().to_str().unwrap())
    }

    /// ADD, plugin by plugin; what the last one answers.
    pub(crate) fn add(&self, pod: &Pod, chain: &Chain, version: &str, ifname: &str) -> Result<Value, Refusal> {
        let mut previous = None;
        for plugin in &chain.plugins {
            let config = chain.config(plugin, version, previous.as_ref());
            previous = Some(self.call("ADD", pod, chain, &config, ifname)?);
        }
        Ok(previous.unwrap_or_default())
    }

    /// CHECK, plugin by plugin.
    pub(crate) fn check(&self, pod: &Pod, chain: &Chain, version: &str, result: &Value) -> Result<(), Refusal> {
        for plugin in &chain.plugins {
            let config = chain.config(plugin, version, Some(result));
            self.call("CHECK", pod, chain, &config, "eth0")?;
        }
        Ok(())
    }

    /// DEL, last plugin first; `result` is what the runtime kept of ADD, if it kept it.
    pub(crate) fn del(
        &self,
        pod: &Pod,
        chain: &Chain,
        version: &str,
        result: Option<&Value>,
        ifname: &str,
    ) -> Result<(), Refusal> {
        for plugin in chain.plugins.iter().rev() {
            let config = chain.config(plugin, version, result);
            self.call("DEL", pod, chain, &config, ifname)?;
        }
        Ok(())
    }

    /// Whether an interface of `pod` is up.
    pub(crate) fn up(&self, pod: &Pod, ifname: &str) -> bool {
        let look = || link::lookup(&mut Socket::open(ROUTE).unwrap(), ifname).unwrap();
        with_netns(pod.netns(), look).unwrap().is_some_and(|link| link.up)
    }
}

/// A host with our plugins, and one with Debian's.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) ours: Side,
    pub(crate) theirs: Side,
}

impl Pair {
    /// Makes them. Skips loudly where no namespaces can be made, or without Debian's plugins.
    pub(crate) fn or_skip(test: &str) -> Option<Self> {
        if !Path::new(ORIGINALS).join("bridge").exists() {
            assert!(std::env::var_os("CI").is_none(), "no CNI plugins in {ORIGINALS}");
            eprintln!("SKIP: `{test}`: no CNI plugins in {ORIGINALS}: install containernetworking-plugins");
            return None;
        }
        let (ours, theirs) = (Side::or_skip(test, "ours")?, Side::or_skip(test, "theirs")?);
        for entry in fs::read_dir(ORIGINALS).unwrap() {
            let kind = entry.unwrap().file_name().into_string().unwrap();
            ours.choose(&kind, true);
            theirs.choose(&kind, false);
        }
        Some(Self { ours, theirs })
    }

    /// Adds a container on both sides, checks it, and takes it off: results are the same, and what `look`
    /// sees of a container that is on the network, and what CHECK says of it.
    ///
    /// Both at once: much of it is waiting for addresses.
    #[track_caller]
    pub(crate) fn same<T: Debug + PartialEq + Send>(&self, chain: &Chain, look: impl Fn(&Side, &Pod) -> T + Sync) {
        for version in chain.versions_to_try() {
            let [ours, mut theirs] = self.both(|side| {
                let pod = side.pod(&format!("{}-{}", chain.name, version.replace('.', "")));
                // To see once that IPv6 addresses are waited for is enough: it takes the originals seconds.
                if Some(&version) != chain.versions.last() {
                    pod.host.sysctl(&["net", "ipv6", "conf", "default", "accept_dad"], "0").unwrap();
                }
                let result = side.add(&pod, chain, version, "eth0");
                let seen = result.as_ref().ok().map(|_| look(side, &pod));
                let mut is_as_it_was = true;
                if let Ok(result) = &result {
                    if let Some(reason) = chain.unchecked.filter(|_| side.name == "theirs") {
                        eprintln!("{} {version}: no CHECK of theirs: {reason}", chain.name);
                    } else if !UNCHECKED.contains(&version)
                        && let Err(refusal) = side.check(&pod, chain, version, result)
                    {
                        eprintln!("{}: CHECK {version}: {refusal:?}", side.name);
                        is_as_it_was = false;
                    }
                    side.del(&pod, chain, version, Some(result), "eth0")
                        .unwrap_or_else(|refusal| panic!("{}: DEL {version}: {refusal:?}", side.name));
                }
                (result.map(|result| without_chance(&result)).map_err(|refusal| refusal.code), seen, is_as_it_was)
            });
            if let (Ok(theirs), ..) = &mut theirs {
                for difference in &chain.differences {
                    eprintln!("{} {version}: differs on purpose: {}", chain.name, difference.reason);
                    (difference.amend)(theirs);
                }
            }
            assert_eq!(ours, theirs, "{version} {chain:#?}");
        }
    }

    /// What is done on each side, on both at the same time: ours, theirs.
    fn both<T: Send>(&self, side: impl Fn(&Side) -> T + Sync) -> [T; 2] {
        thread::scope(|scope| {
            let theirs = scope.spawn(|| side(&self.theirs));
            let ours = side(&self.ours);
            [ours, theirs.join().unwrap_or_else(|panic| resume_unwind(panic))]
        })
    }
}

/// A result without what is chance: MACs, names of veths, and where the namespace's file is.
pub(crate) fn without_chance(result: &Value) -> Value {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        for (key, instead) in [("mac", "MAC"), ("sandbox", "NETNS")] {
            if interface[key].as_str().is_some_and(|value| !value.is_empty() && value != "00:00:00:00:00:00") {
                interface[key] = json!(instead);
            }
        }
        if interface["name"].as_str().is_some_and(|name| name.starts_with("veth")) {
            interface["name"] = json!("VETH");
        }
    }
    result
}
