//! Podman's side of the protocol: what it keeps of networks and containers, and how it calls its backend.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use portolan_kernel::netlink::Batch;
use portolan_kernel::netns::NetnsFd;
use portolan_kernel::rtnl::Family;
use portolan_kernel::rtnl::link::{self, AddrGenMode, BridgeSpec, LinkChange};
use portolan_kernel::rtnl::route::{self, Route};
use portolan_lab::{Host, InNetns, eventually, snapshot};
use serde_json::{Map, Value, json};

use crate::common::{LONG, World};

/// A world whose host calls our binary `netavark`.
#[derive(Debug)]
pub(crate) struct Podman {
    pub(crate) world: World,
    pub(crate) program: PathBuf,
}

impl Podman {
    /// Makes one without a daemon: nothing answers names. Skips loudly where no namespaces can be made.
    pub(crate) fn or_skip(name: &str) -> Option<Self> {
        let world = World::or_skip(name)?;
        let bin = world.lab.dir().join("bin");
        fs::create_dir(&bin).unwrap();
        let program = bin.join("netavark");
        symlink(env!("CARGO_BIN_EXE_portolan"), &program).unwrap();
        Some(Self { world, program })
    }

    /// The same, with the daemon.
    pub(crate) fn with_names(name: &str) -> Option<Self> {
        let mut podman = Self::or_skip(name)?;
        podman.world.daemon = true;
        Some(podman)
    }

    /// A container that is on no network yet.
    #[track_caller]
    pub(crate) fn pod(&self, name: &str) -> Pod {
        Pod {
            name: name.to_owned(),
            id: id_of(name),
            host: self.world.lab.host(name).unwrap(),
            on: Vec::new(),
            rest: json!({}),
            is_list: false,
        }
    }

    /// Our program on host `h`, with the arguments that Podman gives before `args`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.world.root);
        command.args(["--rootless=false", "--aardvark-binary=/usr/lib/podman/aardvark-dns"]).args(args);
        self.adopt(command)
    }

    /// `command` on host `h` with the environment of our programs.
    pub(crate) fn adopt(&self, mut command: Command) -> Command {
        command.envs(self.world.environment.iter().cloned());
        command.env("PORTOLAN_DAEMON", if self.world.daemon { "auto" } else { "off" });
        self.world.h.adopt(command).unwrap()
    }

    /// Calls it with `text` on standard input; what it printed, or the text of the error.
    #[track_caller]
    pub(crate) fn call(&self, args: &[&str], text: &[u8]) -> Result<Value, String> {
        answer(&output_of(self.command(args), text))
    }

    /// Puts a container on its networks.
    #[track_caller]
    pub(crate) fn setup(&self, pod: &Pod) -> Result<Value, String> {
        self.call(&["setup", pod.path()], pod.input().as_bytes())
    }

    /// The same, which has to succeed.
    #[track_caller]
    pub(crate) fn up(&self, pod: &Pod) -> Value {
        self.setup(pod).unwrap_or_else(|error| panic!("setup of {}: {error}", pod.name))
    }

    /// The text of the refusal of a setup; panics if it changed anything.
    #[track_caller]
    pub(crate) fn refused(&self, pod: &Pod) -> String {
        let before = self.world.state();
        let error = self.setup(pod).expect_err("setup should be refused");
        let is_fence = |change: &String| change.contains("portolan_fence");
        let mut after = self.world.state();
        // It stood for what was taken back, and goes after it: nobody waits for that.
        if after != before && snapshot::diff(&before.host, &after.host).iter().all(is_fence) {
            assert!(eventually(LONG, || self.world.state().host == before.host), "the fence stays");
            after = self.world.state();
        }
        before.assert_same(&after, &error);
        error
    }

    /// Takes a container off its networks; nothing may be printed.
    #[track_caller]
    pub(crate) fn teardown(&self, pod: &Pod) -> Result<(), String> {
        let answer = self.call(&["teardown", pod.path()], pod.input().as_bytes())?;
        assert_eq!(answer, Value::Null, "teardown prints nothing");
        Ok(())
    }

    /// The same, which has to succeed.
    #[track_caller]
    pub(crate) fn down(&self, pod: &Pod) {
        self.teardown(pod).unwrap_or_else(|error| panic!("teardown of {}: {error}", pod.name));
    }

    /// Makes a bridge on host `h` that is none of ours. Its MAC and addresses are given: else they would change with
    /// its ports.
    #[track_caller]
    pub(crate) fn foreign_bridge(&self, name: &str, addresses: &[&str]) {
        let mut batch = Batch::new();
        link::create_bridge(&mut batch, &BridgeSpec { name, mac: Some([2, 0, 0, 0, 0, 9]), ..BridgeSpec::default() });
        let change = LinkChange { addr_gen_mode: Some(AddrGenMode::None), up: Some(true), ..LinkChange::default() };
        link::set(&mut batch, name, &change);
        self.world.h.route_socket().unwrap().transact(&batch).unwrap();
        for address in addresses {
            self.world.h.add_address(name, address).unwrap();
        }
    }
}

/// Runs a command with `text` on standard input.
#[track_caller]
pub(crate) fn output_of(command: Command, text: &[u8]) -> Output {
    start(command, text).wait_with_output().unwrap()
}

/// Starts a command that finds `text`, and then nothing, on standard input.
#[track_caller]
pub(crate) fn start(mut command: Command, text: &[u8]) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = text.to_vec();
    // It may be longer than a pipe, and it may not be wanted.
    std::thread::spawn(move || drop(stdin.write_all(&text)));
    child
}

/// What Podman makes of an output: the value, null if there is none, or the text of the one key of the error.
#[track_caller]
pub(crate) fn answer(output: &Output) -> Result<Value, String> {
    let (text, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let what = format!("{}\n{text}{log}", output.status);
    assert!(output.stdout.len() < 64 << 10, "nobody drains the pipe before it exits");
    let value = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {what}"))
    };
    match output.status.code() {
        Some(0) => Ok(value),
        Some(1) => {
            let keys = value.as_object().unwrap_or_else(|| panic!("{what}"));
            assert_eq!(keys.len(), 1, "{what}");
            Err(keys["error"].as_str().unwrap_or_else(|| panic!("{what}")).to_owned())
        }
        _ => panic!("{what}"),
    }
}

/// A container as Podman knows it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) host: Host,
    /// Networks, with its place on each.
    pub(crate) on: Vec<(Value, Value)>,
    /// Keys of the input that are there for the whole container.
    pub(crate) rest: Value,
    /// Whether `networks` is a list, as newer Podman writes it.
    pub(crate) is_list: bool,
}

impl InNetns for Pod {
    fn netns(&self) -> &NetnsFd {
        self.host.netns()
    }
}

impl Pod {
    /// Puts it on a network of [`bridge`] as host number `host`.
    pub(crate) fn at(self, network: &Value, host: u8) -> Self {
        self.at_with(network, host, json!({}))
    }

    /// The same, with more keys of its place.
    pub(crate) fn at_with(mut self, network: &Value, host: u8, keys: Value) -> Self {
        let ips: Vec<String> = network["subnets"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|subnet| {
                let net: ipnet::IpNet = subnet["subnet"].as_str().unwrap().parse().unwrap();
                match net.network() {
                    IpAddr::V4(ip) => IpAddr::from((u32::from(ip) + u32::from(host)).to_be_bytes()).to_string(),
                    IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + u128::from(host)).to_be_bytes()).to_string(),
                }
            })
            .collect();
        let place = json!({"static_ips": ips, "interface_name": format!("eth{}", self.on.len())});
        self.on.push((network.clone(), merged(place, keys)));
        self
    }

    /// More keys of the input.
    pub(crate) fn with(mut self, keys: Value) -> Self {
        self.rest = merged(self.rest, keys);
        self
    }

    /// Ports: host port, port in the container, protocol, address of the host.
    pub(crate) fn ports(self, ports: &[(u16, u16, &str, &str)]) -> Self {
        let mapping = |(host, container, protocol, ip): &(u16, u16, &str, &str)| json!({"host_ip": ip, "host_port": host, "container_port": container, "range": 1, "protocol": protocol});
        let all: Vec<Value> = ports.iter().map(mapping).collect();
        self.with(json!({"port_mappings": all}))
    }

    /// The path of its namespace.
    pub(crate) fn path(&self) -> &str {
        self.host.netns_path().to_str().unwrap()
    }

    /// What Podman writes to standard input.
    pub(crate) fn input(&self) -> String {
        let named = |network: &Value| network["name"].as_str().unwrap().to_owned();
        let networks = if self.is_list {
            let one = |(network, place): &(Value, Value)| merged(place.clone(), json!({"name": named(network)}));
            Value::Array(self.on.iter().map(one).collect())
        } else {
            Value::Object(self.on.iter().map(|(network, place)| (named(network), place.clone())).collect())
        };
        let info: Map<String, Value> = self.on.iter().map(|(network, _)| (named(network), network.clone())).collect();
        let input = json!({
            "container_id": self.id, "container_name": self.name, "networks": networks, "network_info": info,
        });
        format!("{}\n", merged(input, self.rest.clone()))
    }

    /// Its default routes in `family`, best first: gateway and metric.
    #[track_caller]
    pub(crate) fn default_routes(&self, family: Family) -> Vec<(IpAddr, Option<u32>)> {
        let mut routes: Vec<_> = self.routes(family).into_iter().filter(Route::is_default).collect();
        routes.sort_by_key(|route| route.metric);
        routes.into_iter().map(|route| (route.gateway.unwrap(), route.metric)).collect()
    }

    /// The routes of its main table.
    #[track_caller]
    pub(crate) fn routes(&self, family: Family) -> Vec<Route> {
        let routes = route::dump_family(&mut self.host.route_socket().unwrap(), family).unwrap();
        routes.into_iter().filter(|route| route.table == 254).collect()
    }
}

/// A network on bridge `podmanN` with the subnets 10.9.N.0/24 and fd09:N::/64, whose first addresses are the gateways.
pub(crate) fn bridge(name: &str, n: u8) -> Value {
    json!({
        "name": name, "id": id_of(name), "driver": "bridge", "network_interface": format!("podman{n}"),
        "created": "2026-01-01T00:00:00Z", "subnets": [
            {"subnet": format!("10.9.{n}.0/24"), "gateway": format!("10.9.{n}.1")},
            {"subnet": format!("fd09:{n}::/64"), "gateway": format!("fd09:{n}::1")},
        ],
        "ipv6_enabled": true, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"},
    })
}

/// The address of host number `host` on network number `n`.
pub(crate) fn ip(family: Family, n: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => format!("10.9.{n}.{host}"),
        Family::V6 => format!("fd09:{n}::{host:x}"),
    }
    .parse()
    .unwrap()
}

/// `base` with the keys of `patch`, level by level; null takes a key away.
pub(crate) fn merged(mut base: Value, patch: Value) -> Value {
    let (Some(keys), Value::Object(patch)) = (base.as_object_mut(), patch.clone()) else { return patch };
    for (key, value) in patch {
        if value.is_null() {
            keys.remove(&key);
        } else {
            let before = keys.remove(&key).unwrap_or_default();
            keys.insert(key, merged(before, value));
        }
    }
    base
}

/// 64 hexadecimal digits that are the same for the same name.
pub(crate) fn id_of(name: &str) -> String {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}").repeat(4)
}
