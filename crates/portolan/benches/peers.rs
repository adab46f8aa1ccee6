//! Portolan beside its peers, in one run on one machine, inside namespaces of its own.
//!
//! `cargo bench -p portolan` runs everything; `cargo bench -p portolan -- attach` one part. Parts: `attach` (netavark
//! and the CNI plugins from Debian beside us), `cni` (those plugins beside ours), `scale`, `range`, `parallel`,
//! `connections`. Every figure is of a whole
//! process as its caller sees it: from spawn to reaped. The tables are printed as Markdown, for `docs/benchmarks.md`.
//!
//! The peers are found at `/usr/lib/podman/netavark` and `/usr/lib/cni`, or where `NETAVARK` and `CNI_PATH` say.

mod figures;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use figures::{median, ms, ratio};
use portolan_kernel::netns::{self, NetnsFd};
use portolan_lab::{Host, Lab};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|w| w == part);
    type Part = (&'static str, fn() -> Result<()>);
    let parts: [Part; 6] = [
        ("attach", attach),
        ("cni", cni),
        ("range", range),
        ("parallel", parallel),
        ("scale", scale),
        ("connections", connections),
    ];
    for (name, run) in parts {
        if is_wanted(name) {
            run().with_context(|| format!("benchmark `{name}`"))?;
        }
    }
    Ok(())
}

/// A host of its own with a root of its own.
struct World {
    lab: Lab,
    host: Host,
    /// The host's namespace, entered to spawn: a child that had to enter it itself would pay for that.
    ns: NetnsFd,
    root: PathBuf,
    /// Whether commands start the daemon: `auto` or `off`.
    daemon: &'static str,
    containers: Vec<PathBuf>,
}

impl World {
    fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let host = lab.host("host")?;
        let root = lab.dir().join("root");
        let ns = NetnsFd::open(host.netns_path())?;
        Ok(Self { lab, host, ns, root, daemon: "off", containers: Vec::new() })
    }

    /// A namespace without any link but loopback, as a runtime makes it for a container.
    fn container(&mut self) -> Result<PathBuf> {
        let path = self.lab.dir().join(format!("c{}", self.containers.len()));
        netns::create_pinned(&path)?;
        self.containers.push(path.clone());
        Ok(path)
    }

    fn portolan(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command
            .args(args)
            .env("PORTOLAN_ROOT", &self.root)
            .env("PORTOLAN_DAEMON", self.daemon)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Ok(command)
    }

    fn attach(&self, name: &str, netns: &Path, network: &str, publish: &[String]) -> Result<Command> {
        let netns = netns.to_str().context("a UTF-8 path")?;
        let mut command = self.portolan(&["attach", "--netns", netns, "--name", name, "--network", network])?;
        for spec in publish {
            command.args(["-p", spec]);
        }
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> Result<Duration> {
        self.timed(self.portolan(args)?)
    }

    /// From spawn to reaped.
    fn timed(&self, mut command: Command) -> Result<Duration> {
        command.env_remove(CARGOS);
        let (elapsed, status) = netns::with_netns(&self.ns, || {
            let start = Instant::now();
            let status = command.status();
            (start.elapsed(), status)
        })?;
        let status = status?;
        ensure!(status.success(), "{command:?} ended with {status}");
        Ok(elapsed)
    }

    /// As [`World::timed`], with something on standard input; answers standard output too.
    fn timed_with(&self, mut command: Command, input: &str) -> Result<(Duration, String)> {
        command.env_remove(CARGOS);
        netns::with_netns(&self.ns, || {
            let start = Instant::now();
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            child.stdin.take().context("standard input is a pipe")?.write_all(input.as_bytes())?;
            let output = child.wait_with_output()?;
            let elapsed = start.elapsed();
            ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
            Ok((elapsed, String::from_utf8(output.stdout)?))
        })?
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.daemon == "auto" {
            let _ = self.run(&["daemon", "stop"]);
        }
        for path in &self.containers {
            let _ = netns::unpin(path);
        }
    }
}

const ROUNDS: usize = 21;

/// Cargo sets it, and runtimes do not: the loader would look through a dozen directories for each library of ours.
const CARGOS: &str = "LD_LIBRARY_PATH";

/// One container with two published ports, by each of the three, in turn.
fn attach() -> Result<()> {
    let netavark = std::env::var("NETAVARK").unwrap_or_else(|_| "/usr/lib/podman/netavark".to_owned());
    if !Path::new(&netavark).exists() {
        bail!("no peer at {netavark}: install netavark");
    }
    let reference = reference()?;
    let mut ours = World::new("bench-ours")?;
    let mut theirs = World::new("bench-netavark")?;
    let mut plugins = World::new("bench-cni")?;
    ours.run(&["network", "create", "web"])?;
    let (mut up, mut down) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    for round in 0..ROUNDS {
        let name = format!("c{round}");
        let (a, b) = (8000 + round, 9000 + round);

        let ns = ours.container()?;
        let publish = [format!("{a}:80"), format!("{b}:90")];
        up[0].push(ours.timed(ours.attach(&name, &ns, "web", &publish)?)?);

        let ns = theirs.container()?;
        let config = netavark_config(round, a, b);
        let netavark = |verb: &str| -> Result<Duration> {
            let mut command = Command::new(&netavark);
            command.arg("--config").arg(theirs.lab.dir().join("netavark")).arg(verb).arg(&ns);
            Ok(theirs.timed_with(command, &config)?.0)
        };
        up[1].push(netavark("setup")?);

        let ns = plugins.container()?;
        let call = PluginCall { world: &plugins, dir: &reference, name: &name, ns: &ns };
        let (time, portmap) = call.chain_add([a, b])?;
        up[2].push(time);

        // The first round makes bridges and chains, and warms the caches of all three.
        down[0].push(ours.run(&["detach", &name])?);
        down[1].push(netavark("teardown")?);
        down[2].push(call.chain_del(&portmap)?);
        if round == 0 {
            up.iter_mut().chain(&mut down).for_each(Vec::clear);
        }
        // A container that stays keeps the bridges of all three alive, as on a host in use.
        if round == 0 {
            let publish = ["7999:80".to_owned()];
            let ns = ours.container()?;
            ours.timed(ours.attach("stays", &ns, "web", &publish)?)?;
            let ns = theirs.container()?;
            let mut command =
                Command::new(std::env::var("NETAVARK").unwrap_or_else(|_| "/usr/lib/podman/netavark".to_owned()));
            command.arg("--config").arg(theirs.lab.dir().join("netavark")).arg("setup").arg(&ns);
            theirs.timed_with(command, &netavark_config(200, 7998, 7997))?;
        }
    }
    println!("\n### One container, bridge network, two published ports (whole process, median of {})\n", ROUNDS - 1);
    println!("| | attach | times ours | detach | times ours |\n|---|---|---|---|---|");
    let names = ["portolan", "netavark (Debian)", "CNI bridge + portmap (Debian)"];
    for i in 0..3 {
        println!(
            "| {} | {} | {:.1} | {} | {:.1} |",
            names[i],
            ms(median(&up[i])),
            ratio(&up[i], &up[0]),
            ms(median(&down[i])),
            ratio(&down[i], &down[0])
        );
    }
    Ok(())
}

/// Where the reference plugins are.
fn reference() -> Result<PathBuf> {
    let dir = PathBuf::from(std::env::var("CNI_PATH").unwrap_or_else(|_| "/usr/lib/cni".to_owned()));
    for plugin in ["bridge", "host-local", "portmap"] {
        let peer = dir.join(plugin);
        ensure!(peer.exists(), "no peer at {}: install containernetworking-plugins", peer.display());
    }
    Ok(dir)
}

/// Calls of CNI plugins for one container.
struct PluginCall<'a> {
    world: &'a World,
    /// Where the plugins are.
    dir: &'a Path,
    name: &'a str,
    ns: &'a Path,
}

impl PluginCall<'_> {
    /// One plugin: the time, and what it answers.
    fn plugin(&self, verb: &str, plugin: &str, input: &Value) -> Result<(Duration, String)> {
        let mut command = Command::new(self.dir.join(plugin));
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", self.name).env("CNI_NETNS", self.ns);
        command.env("CNI_IFNAME", "eth0").env("CNI_PATH", self.dir).env("PORTOLAN_ROOT", &self.world.root);
        command.env("PORTOLAN_DAEMON", self.world.daemon);
        self.world.timed_with(command, &input.to_string())
    }

    fn bridge(&self) -> Value {
        json!({"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
            "ipam": {"type": "host-local", "subnet": "10.77.0.0/16", "dataDir": self.world.lab.dir().join("cni")}})
    }

    /// ADD of the reference chain; answers also what its second plugin was told, for DEL.
    fn chain_add(&self, ports: [usize; 2]) -> Result<(Duration, Value)> {
        let (first, result) = self.plugin("ADD", "bridge", &self.bridge())?;
        let portmap = json!({"cniVersion": "1.0.0", "name": "bench", "type": "portmap", "snat": true,
            "prevResult": serde_json::from_str::<Value>(&result)?, "runtimeConfig": port_mappings(ports)});
        let (second, _) = self.plugin("ADD", "portmap", &portmap)?;
        Ok((first + second, portmap))
    }

    fn chain_del(&self, portmap: &Value) -> Result<Duration> {
        Ok(self.plugin("DEL", "portmap", portmap)?.0 + self.plugin("DEL", "bridge", &self.bridge())?.0)
    }

    /// The same by our plugin.
    fn ours(&self, verb: &str, ports: [usize; 2]) -> Result<Duration> {
        let config = json!({"cniVersion": "1.0.0", "name": "bench", "type": "portolan", "bridge": "cni0", "ipMasq": true,
            "ipam": {"type": "host-local", "subnet": "10.77.0.0/16"}, "runtimeConfig": port_mappings(ports)});
        Ok(self.plugin(verb, "portolan", &config)?.0)
    }
}

fn port_mappings([a, b]: [usize; 2]) -> Value {
    json!({"portMappings": [{"hostPort": a, "containerPort": 80, "protocol": "tcp"},
                            {"hostPort": b, "containerPort": 90, "protocol": "tcp"}]})
}

/// ADD and DEL as a runtime calls them: the reference chain, and our plugin without and with its daemon.
fn cni() -> Result<()> {
    let reference = reference()?;
    let ours = Path::new(env!("CARGO_BIN_EXE_portolan")).parent().context("it is in a directory")?;
    let mut worlds = [World::new("bench-cni")?, World::new("bench-plugin")?, World::new("bench-daemon")?];
    worlds[2].daemon = "auto";
    let (mut up, mut down) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    for round in 0..=ROUNDS {
        // A container that stays keeps the bridges, as on a host in use.
        let name = if round == 0 { "stays".to_owned() } else { format!("c{round}") };
        let ports = [8000 + round, 9000 + round];
        for (i, world) in worlds.iter_mut().enumerate() {
            let ns = world.container()?;
            let dir = if i == 0 { &reference } else { ours };
            let call = PluginCall { world, dir, name: &name, ns: &ns };
            let (added, told) = match i {
                0 => call.chain_add(ports)?,
                _ => (call.ours("ADD", ports)?, Value::Null),
            };
            if round == 0 {
                continue;
            }
            up[i].push(added);
            down[i].push(if i == 0 { call.chain_del(&told)? } else { call.ours("DEL", ports)? });
        }
        // The first after that warms caches.
        if round == 1 {
            up.iter_mut().chain(&mut down).for_each(Vec::clear);
        }
    }
    println!("\n### CNI: a bridge, masquerade, two port mappings (whole processes, median of {})\n", ROUNDS - 1);
    println!("| | ADD | times as long as ours | DEL | times as long as ours |\n|---|---|---|---|---|");
    let chain = "bridge + host-local + portmap (Debian)";
    for (name, i, beside) in [
        ("portolan", 1, 1),
        (chain, 0, 1),
        ("portolan, its daemon answers names", 2, 2),
        ("the same chain beside that", 0, 2),
    ] {
        println!(
            "| {name} | {} | {:.1} | {} | {:.1} |",
            ms(median(&up[i])),
            ratio(&up[i], &up[beside]),
            ms(median(&down[i])),
            ratio(&down[i], &down[beside])
        );
    }
    Ok(())
}

fn netavark_config(n: usize, a: usize, b: usize) -> String {
    json!({
        "container_id": format!("{n:064x}"),
        "container_name": format!("c{n}"),
        "networks": {"bench": {"static_ips": [format!("10.88.0.{}", n + 2)], "interface_name": "eth0"}},
        "network_info": {"bench": {
            "name": "bench", "id": format!("{:064x}", 0xbe), "driver": "bridge", "network_interface": "podman9",
            "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}],
            "ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"}}},
        "port_mappings": [
            {"host_ip": "", "container_port": 80, "host_port": a, "range": 1, "protocol": "tcp"},
            {"host_ip": "", "container_port": 90, "host_port": b, "range": 1, "protocol": "tcp"}],
    })
    .to_string()
}

/// A container that publishes a range of 10,000 ports beside one that publishes a single port.
fn range() -> Result<()> {
    let mut world = World::new("bench-range")?;
    world.run(&["network", "create", "web"])?;
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let ns = world.container()?;
        one.push(world.timed(world.attach("one", &ns, "web", &["7999:7999".to_owned()])?)?);
        world.run(&["detach", "one"])?;
        let ns = world.container()?;
        many.push(world.timed(world.attach("many", &ns, "web", &["20000-29999:20000-29999".to_owned()])?)?);
        if round == 0 {
            let mut rules = world.portolan(&["rules", "many", "--as", "nft"])?;
            let output = netns::with_netns(&world.ns, || rules.stdout(Stdio::piped()).output())??;
            let text = String::from_utf8(output.stdout)?;
            println!("\n### A range of 10,000 ports (median of {ROUNDS})\n");
            println!("elements that name it: {}\n", text.matches("20000-29999 comment").count());
        }
        world.run(&["detach", "many"])?;
    }
    println!("| attach with one port | with 10,000 | added |\n|---|---|---|");
    let (one, many) = (median(&one), median(&many));
    println!("| {} | {} | {} |", ms(one), ms(many), ms(many.saturating_sub(one)));
    Ok(())
}

/// 200 attaches started at once.
fn parallel() -> Result<()> {
    const AT_ONCE: usize = 200;
    let mut world = World::new("bench-parallel")?;
    world.run(&["network", "create", "web"])?;
    let mut single = Vec::new();
    for i in 0..ROUNDS {
        let ns = world.container()?;
        single.push(world.timed(world.attach(&format!("s{i}"), &ns, "web", &[format!("{}:80", 7000 + i)])?)?);
    }
    let spaces: Vec<PathBuf> = (0..AT_ONCE).map(|_| world.container()).collect::<Result<_>>()?;
    let start = Instant::now();
    let children: Vec<Child> = spaces
        .iter()
        .enumerate()
        .map(|(i, ns)| {
            let mut command = world.attach(&format!("p{i}"), ns, "web", &[format!("{}:80", 8000 + i)])?;
            Ok(netns::with_netns(&world.ns, || command.spawn())??)
        })
        .collect::<Result<_>>()?;
    for mut child in children {
        ensure!(child.wait()?.success(), "an attach failed");
    }
    let all = start.elapsed();
    let one = median(&single);
    println!("\n### {AT_ONCE} attaches started at once\n");
    println!("| one attach (median of {ROUNDS}) | all {AT_ONCE} | {AT_ONCE} × one | share |\n|---|---|---|---|");
    println!(
        "| {} | {} | {} | {:.2} |",
        ms(one),
        ms(all),
        ms(one * AT_ONCE as u32),
        all.as_secs_f64() / (one * AT_ONCE as u32).as_secs_f64()
    );
    Ok(())
}

/// How many containers on each of the five networks, and ports of each.
fn size() -> usize {
    std::env::var("PORTOLAN_BENCH_CONTAINERS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000)
}
const NETWORKS: usize = 5;
const PORTS: usize = 10;

/// Fills a host: `per_network` containers on each of five networks, ten ports each. Answers each attach's time, by
/// place on its network.
fn fill(world: &mut World, per_network: usize) -> Result<Vec<Vec<Duration>>> {
    for network in 0..NETWORKS {
        world.run(&[
            "network",
            "create",
            "--subnet",
            &format!("10.{}.0.0/20", 100 + network),
            &format!("net{network}"),
        ])?;
    }
    let mut times = vec![Vec::new(); per_network];
    let mut port = 10_000;
    let started = Instant::now();
    for (place, times) in times.iter_mut().enumerate() {
        for network in 0..NETWORKS {
            let ns = world.container()?;
            let publish: Vec<String> = (port..port + PORTS).map(|port| format!("{port}:{}", port % 1000 + 1)).collect();
            port += PORTS;
            times.push(world.timed(world.attach(
                &format!("c{network}-{place}"),
                &ns,
                &format!("net{network}"),
                &publish,
            )?)?);
        }
        if place % 200 == 199 {
            eprintln!("{} containers after {:.0} s", (place + 1) * NETWORKS, started.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}

/// The last containers of a full host beside the tenth ones.
fn scale() -> Result<()> {
    let count = size();
    let mut world = World::new("bench-scale")?;
    let times = fill(&mut world, count)?;
    let around = |place: usize| {
        let from = place.saturating_sub(10);
        median(&times[from..(place + 10).min(times.len())].concat())
    };
    let (first, last) = (around(10), around(count));
    println!("\n### {count} containers on each of {NETWORKS} networks, {PORTS} ports each\n");
    println!("| around the 10th | around the {count}th | ratio |\n|---|---|---|");
    println!("| {} | {} | {:.2} |", ms(first), ms(last), last.as_secs_f64() / first.as_secs_f64());
    Ok(())
}

/// New connections a second to a published port: a host with one container and a full one, in turn.
fn connections() -> Result<()> {
    const TURNS: usize = 9;
    let count = size();
    let mut empty = World::new("bench-one")?;
    let mut full = World::new("bench-full")?;
    let mut rates = [Vec::new(), Vec::new()];
    let clients: Vec<Host> = [&empty, &full]
        .into_iter()
        .map(|world| {
            let neighbour = world.lab.host("neighbour")?;
            world.lab.lan("lan", &[(&world.host, "eth0", &["10.0.1.1/24"]), (&neighbour, "eth0", &["10.0.1.2/24"])])?;
            Ok(neighbour)
        })
        .collect::<Result<_>>()?;
    fill(&mut full, count)?;
    let mut servers = Vec::new();
    for world in [&mut empty, &mut full] {
        world.run(&["network", "create", "served"])?;
        let ns = world.container()?;
        world.timed(world.attach("server", &ns, "served", &["1880:80".to_owned()])?)?;
        servers.push(Accepting::start(&ns)?);
    }
    let target = SocketAddr::from((Ipv4Addr::new(10, 0, 1, 1), 1880));
    for turn in 0..=TURNS {
        for (client, rates) in clients.iter().zip(&mut rates) {
            let rate = client.enter(|| connect_for(target, Duration::from_millis(700)))?;
            if turn > 0 {
                rates.push(rate);
            }
        }
    }
    let mut shares: Vec<f64> = rates[1].iter().zip(&rates[0]).map(|(full, empty)| full / empty).collect();
    shares.sort_by(f64::total_cmp);
    let middle = |rates: &[f64]| {
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    println!("\n### New connections to a published port (median of {TURNS} turns)\n");
    println!("| with one container | with {} containers × {PORTS} ports | share |\n|---|---|---|", count * NETWORKS);
    println!("| {:.0}/s | {:.0}/s | {:.3} |", middle(&rates[0]), middle(&rates[1]), shares[shares.len() / 2]);
    Ok(())
}

/// A server in a namespace that accepts and closes.
struct Accepting {
    stop: std::sync::Arc<AtomicBool>,
    address: SocketAddr,
    namespace: PathBuf,
}

impl Accepting {
    fn start(namespace: &Path) -> Result<Self> {
        let ns = netns::NetnsFd::open(namespace)?;
        let listener = netns::with_netns(&ns, || TcpListener::bind("0.0.0.0:80"))??;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let address = listener.local_addr()?;
        let flag = stop.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if flag.load(Ordering::Relaxed) {
                    break;
                }
                if let Ok(mut stream) = stream {
                    let _ = stream.write_all(b"x");
                }
            }
        });
        Ok(Self { stop, address, namespace: namespace.to_owned() })
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Ok(ns) = netns::NetnsFd::open(&self.namespace) {
            let _ = netns::with_netns(&ns, || TcpStream::connect((Ipv4Addr::LOCALHOST, self.address.port())));
        }
    }
}

/// Connects, reads one byte and closes, over and over; answers how often a second.
fn connect_for(target: SocketAddr, time: Duration) -> Result<f64> {
    let done = AtomicUsize::new(0);
    let start = Instant::now();
    while start.elapsed() < time {
        let mut stream = TcpStream::connect(target).context("connect to the published port")?;
        let mut byte = [0u8; 1];
        stream.read_exact(&mut byte)?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}
