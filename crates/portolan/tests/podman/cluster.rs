//! Networks of the cluster under an unchanged Podman: a host whose Podman has us as its backend, and one without Podman.

use std::env;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use portolan_kernel::netns::NetnsFd;
use portolan_lab::etcd::{Etcd, is_there};
use portolan_lab::probe::ping;
use portolan_lab::{Host, InNetns, Lab, Lan, eventually};
use serde_json::{Value, json};

use crate::machine::{self, Backend, IMAGE, Machine};
use crate::scene::{LONG, ask, at, says};

const PORTOLAN: &str = env!("CARGO_BIN_EXE_portolan");
const ETCD: &str = "http://10.0.1.11:2379";

/// A host `a` with Podman, and a host `b` with a root of its own.
struct World {
    podman: Machine,
    b: Host,
    root: PathBuf,
    _etcd: Etcd,
    _lan: Lan,
    // Last, as it removes the others.
    lab: Lab,
}

struct Place {
    addresses: Vec<IpAddr>,
    netns: NetnsFd,
}

impl InNetns for Place {
    fn netns(&self) -> &NetnsFd {
        &self.netns
    }
}

impl World {
    fn or_skip(name: &str) -> Option<Result<Self>> {
        if !is_there(name) {
            return None;
        }
        let lab = Lab::or_skip(name)?;
        if let Some(missing) = machine::missing(Backend::Portolan) {
            assert!(env::var_os("CI").is_none(), "CI must have Podman: {missing}");
            return None;
        }
        Some(Self::new(name, lab))
    }

    fn new(name: &str, lab: Lab) -> Result<Self> {
        let (a, b, n) = (lab.host("a")?, lab.host("b")?, lab.host("n")?);
        let places: [(&Host, &str, &[&str]); 3] =
            [(&a, "eth0", &["10.0.1.1/24"]), (&b, "eth0", &["10.0.1.2/24"]), (&n, "eth0", &["10.0.1.11/24"])];
        let lan = lab.lan("lan", &places)?;
        a.add_default_route("10.0.1.11")?;
        b.add_default_route("10.0.1.11")?;
        let etcd = Etcd::start(lab.dir(), &[(&n, IpAddr::from([10, 0, 1, 11]))], "http", &[])?;
        let podman = machine::start(&lab, &a, name, Backend::Portolan)?;
        let root = lab.dir().join("root-b");
        let world = Self { podman, b, root, _etcd: etcd, _lan: lan, lab };
        world.at_a(&["cluster", "init", "--etcd", ETCD, "--name", "a"])?;
        world.at_b(&["cluster", "join", "--etcd", ETCD, "--name", "b"])?;
        Ok(world)
    }

    fn at_a(&self, args: &[&str]) -> Result<String> {
        self.podman.run(PORTOLAN, args)
    }

    fn at_b(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(PORTOLAN);
        command.args(args).env("PORTOLAN_ROOT", &self.root).stdin(Stdio::null());
        machine::finished("portolan", args, &self.b.adopt(command)?.output()?)
    }

    fn podman(&self, args: &[&str]) -> Result<String> {
        self.podman.run("podman", args)
    }

    /// A container of Podman's that serves its name, as Podman sees it.
    fn run(&self, name: &str, args: &[&str], network: &str) -> Result<Place> {
        let variable = format!("NAME={name}");
        self.podman(&[&["run", "-d", "--name", name, "-e", &variable], args, &[IMAGE]].concat())?;
        let details: Value = serde_json::from_str(&self.podman(&["inspect", "--type", "container", name])?)?;
        let place = &details[0]["NetworkSettings"];
        let of = |key: &str| place["Networks"][network][key].as_str()?.parse().ok();
        let addresses = ["IPAddress", "GlobalIPv6Address"].into_iter().filter_map(of).collect();
        let netns = self.podman.netns(place["SandboxKey"].as_str().context("a container has a namespace")?)?;
        Ok(Place { addresses, netns })
    }

    /// A container at `b`.
    fn attach(&self, name: &str, network: &str) -> Result<Place> {
        let host = self.lab.host(name)?;
        let path = host.netns_path().display().to_string();
        self.at_b(&["attach", "--netns", &path, "--name", name, "--network", network])?;
        let details: Value = serde_json::from_str(&self.at_b(&["inspect", name])?)?;
        let place = &details[0]["NetworkSettings"]["Networks"][network];
        let of = |key: &str| place[key].as_str()?.parse().ok();
        let addresses = ["IPAddress", "GlobalIPv6Address"].into_iter().filter_map(of).collect();
        Ok(Place { addresses, netns: NetnsFd::open(&path)? })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.at_b(&["daemon", "stop"]);
        let _ = self.at_a(&["daemon", "stop"]);
    }
}

/// Fails unless it can be reached at all its addresses.
fn reaches(from: &Place, to: &Place) -> Result<()> {
    ensure!(to.addresses.len() == 2, "{:?}", to.addresses);
    for address in &to.addresses {
        ensure!(eventually(LONG, || ping(from, *address, LONG).is_open()), "{address} is not reached");
    }
    Ok(())
}

#[test]
fn podmans_containers_are_on_networks_of_the_cluster() {
    let Some(world) = World::or_skip("podman-cluster") else { return };
    joins(&world.unwrap()).unwrap();
}

fn joins(world: &World) -> Result<()> {
    world.at_b(&["network", "create", "-d", "overlay", "web"])?;
    ensure!(eventually(LONG, || world.at_a(&["network", "inspect", "web"]).is_ok()), "`web` is not seen");
    let label = ["--ipam-driver", "none", "--label", "portolan.network="];
    world.podman(&[&["network", "create"][..], &label, &["web"]].concat())?;
    let other = world.attach("other", "web")?;
    let site = world.run("site", &["--network", "web", "--network-alias", "shop", "-p", "8080:80"], "web")?;
    reaches(&site, &other)?;
    reaches(&other, &site)?;
    // Names either way, Podman's own resolver file among the ways.
    let shown: Value = serde_json::from_str(&world.at_b(&["inspect", "other"])?)?;
    let gateway = shown[0]["NetworkSettings"]["Networks"]["web"]["Gateway"].as_str().context("a gateway")?;
    let knows = |place: &Place, name: &str, of: &Place| {
        let wanted = [of.addresses[0].to_string()];
        eventually(LONG, || ask(place, gateway, name).is_ok_and(|(_, found)| found == wanted))
    };
    ensure!(knows(&other, "site", &site) && knows(&other, "shop", &site), "b does not know Podman's container");
    ensure!(knows(&site, "other", &other), "Podman's container does not know b's");
    let said = world.podman(&["exec", "site", "ping", "-c", "1", "other"])?;
    ensure!(other.addresses.iter().any(|address| said.contains(&address.to_string())), "{said}");
    says(&other, at(&site.addresses[0].to_string(), 80), "site")?;
    says(&world.b, at("10.0.1.1", 8080), "site")?;
    // It is in the host's own root, and both hosts' blocks are what they were given.
    ensure!(world.at_a(&["ps"])?.contains("site"), "{}", world.at_a(&["ps"])?);
    world.at_a(&["verify"])?;
    world.at_a(&["cluster", "verify"])?;
    // An address of the other host's block is refused.
    let refused = world.podman.refused(
        "podman",
        &["run", "--rm", "--network", "web", "--ip", &other.addresses[0].to_string(), IMAGE, "true"],
    )?;
    ensure!(refused.contains(&other.addresses[0].to_string()), "{refused}");
    // A network of Podman's beside it keeps the way out and the published ports.
    world.podman(&["network", "create", "own"])?;
    let both = world.run("both", &["--network", "own", "--network", "web", "-p", "8081:80"], "web")?;
    reaches(&both, &other)?;
    let routes = world.podman(&["exec", "both", "ip", "route"])?;
    let defaults: Vec<&str> = routes.lines().filter(|line| line.starts_with("default")).collect();
    ensure!(defaults.len() == 1 && !defaults[0].contains(gateway), "{routes}");
    says(&world.b, at("10.0.1.1", 8081), "both")?;
    world.podman(&["restart", "-t", "0", "site"])?;
    ensure!(world.at_a(&["ps"])?.contains("site"), "after a restart");
    // What Podman gives out addresses of cannot be one.
    world.podman(&["network", "create", "--label", "portolan.network=web", "wrong"])?;
    let refused = world.podman.refused("podman", &["run", "--rm", "--network", "wrong", IMAGE, "true"])?;
    ensure!(refused.contains("--ipam-driver none"), "{refused}");
    world.podman(
        &[&["network", "create"][..], &["--ipam-driver", "none", "--label", "portolan.network=no"], &["lost"]].concat(),
    )?;
    let refused = world.podman.refused("podman", &["run", "--rm", "--network", "lost", IMAGE, "true"])?;
    ensure!(refused.contains("`no`"), "{refused}");
    // It is gone with its containers.
    world.podman(&["rm", "-f", "-t", "0", "site", "both"])?;
    ensure!(!world.at_a(&["ps", "-a"])?.contains("site"), "{}", world.at_a(&["ps", "-a"])?);
    ensure!(
        eventually(LONG, || ask(&other, gateway, "site").is_ok_and(|(_, found)| found.is_empty())),
        "its name stays"
    );
    world.at_a(&["verify"])?;
    plugin(world, &other)
}

/// The driver as a netavark of others starts it: since 1.5, which Debian 12 does not have.
fn plugin(world: &World, other: &Place) -> Result<()> {
    let program = world.lab.dir().join("bin-overlay").join("overlay");
    fs::create_dir(program.parent().context("it is in a directory")?)?;
    symlink(PORTOLAN, &program)?;
    let call = |args: &[&str], input: &Value| -> Result<Output> {
        let mut command = Command::new(&program);
        command.args(args).env("PORTOLAN_ROOT", &world.root);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = world.b.adopt(command)?.spawn()?;
        child.stdin.take().context("it has a pipe")?.write_all(input.to_string().as_bytes())?;
        Ok(child.wait_with_output()?)
    };
    let said = |output: Output| -> Result<Value> {
        ensure!(output.status.success(), "{output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    ensure!(said(call(&["info"], &Value::Null)?)?["api_version"] == "1.0.0", "info");
    // One that is not there yet is made, with what Podman is told of it; one that is there is used.
    let asked = json!({"name": "lan", "id": "5".repeat(64), "driver": "overlay", "dns_enabled": true,
        "subnets": [{"subnet": "10.77.0.0/24"}], "ipv6_enabled": false, "internal": false});
    let made = said(call(&["create"], &asked)?)?;
    ensure!(made["ipam_options"]["driver"] == "none" && made.get("subnets").is_none(), "{made}");
    ensure!(made["id"] == asked["id"] && made["name"] == "lan", "{made}");
    ensure!(
        eventually(LONG, || world.at_a(&["network", "inspect", "lan"]).is_ok_and(|s| s.contains("10.77.0.0/24"))),
        "lan"
    );
    ensure!(said(call(&["create"], &asked)?)? == made, "again");
    let differs = call(
        &["create"],
        &json!({"name": "web", "id": "6".repeat(64), "driver": "overlay",
        "subnets": [{"subnet": "10.78.0.0/24"}]}),
    )?;
    ensure!(String::from_utf8_lossy(&differs.stdout).contains("other subnets"), "{differs:?}");
    // A container on it.
    let host = world.lab.host("pod")?;
    let path = host.netns_path().display().to_string();
    let setup = json!({"container_id": "7".repeat(64), "container_name": "pod", "port_mappings": null,
        "network": {"name": "mine", "id": "8".repeat(64), "driver": "overlay", "options": {"network": "web"},
            "ipam_options": {"driver": "none"}},
        "network_options": {"interface_name": "eth3", "aliases": ["pea"]}});
    let block = said(call(&["setup", &path], &setup)?)?;
    let subnets = block["interfaces"]["eth3"]["subnets"].as_array().context("an interface")?.clone();
    let address = |at: usize| subnets.get(at)?["ipnet"].as_str()?.split('/').next()?.parse().ok();
    let pod = Place { addresses: (0..2).filter_map(address).collect(), netns: NetnsFd::open(&path)? };
    reaches(&pod, other)?;
    let server = block["dns_server_ips"][0].as_str().context("a name server")?;
    ensure!(ask(other, server, "pea")?.1 == [pod.addresses[0].to_string()], "its alias");
    for _ in 0..2 {
        let gone = call(&["teardown", &path], &setup)?;
        ensure!(gone.status.success() && gone.stdout.is_empty(), "{gone:?}");
    }
    ensure!(!world.at_b(&["ps", "-a"])?.contains("pod"), "it stays");
    Ok(())
}
