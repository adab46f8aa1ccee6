//! Between containers of two hosts: our overlay beside a VXLAN that is routed by hand, and beside no tunnel at all.
//!
//! `cargo bench -p portolan --bench overlay` runs everything; with `-- tcp` or `-- latency` one part:
//!
//! - `tcp`: one stream of TCP (cubic), a tenth of a second.
//! - `latency`: one byte there and back over one connection, 250 times.
//!
//! All take turns, many times; what is compared are pairs of neighbouring turns, of which the median is said. Each host has a
//! processor of its own, as two machines would: whether both ends of a connection share one makes more of a difference than what is
//! compared, and the kernel would decide it anew in each turn.
//!
//! All have two hosts on a LAN, a container on each, and a veth pair between container and host. `raw` has a VXLAN interface on
//! each host and routes, as we have, but neither rules nor connection tracking; `beside` has the same on our own two hosts, beside
//! what we have there; `host-gw` has routes by the LAN instead, as Flannel's backend of that name; `docker` is Docker's own overlay,
//! of a swarm of two. An encrypted network of ours is beside a `bare` tunnel of the same WireGuard, beside one on hosts that have
//! connections `tracked` as ours do, and beside a VXLAN by hand `inside` of such a tunnel.

mod figures;
#[path = "../tests/machine/mod.rs"]
mod machine;
#[path = "../tests/docker_cluster/world.rs"]
#[allow(dead_code, reason = "it is that of the tests")]
mod world;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use figures::{bounds, median, quarters, ratio};
use portolan_lab::etcd::Etcd;
use portolan_lab::probe::ping;
use portolan_lab::{Host, Lab, Lan, eventually};
use portolan_wireguard::worker::{self, Options};
use portolan_wireguard::{Config, Device as _, Peer, PrivateKey, changes};
use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt::set_tcp_congestion};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use serde_json::Value;
use world::World;

/// Many short turns: the machine's speed drifts, and what is measured in a pair is measured side by side.
const STREAMS: usize = 201;
const CONVERSATIONS: usize = 401;
/// How long a stream is left alone at first, and how long it is measured.
const WARM_UP: Duration = Duration::from_millis(50);
const TIME: Duration = Duration::from_millis(100);
/// What is sent or received by one call.
const BLOCK: usize = 128 << 10;
/// How often a byte goes there and back before it is measured, and then.
const WARM_UP_TRIPS: usize = 25;
const TRIPS: usize = 250;
const LONG: Duration = Duration::from_secs(20);
/// The processors of the hosts on whose containers send first and answer.
const NEAR: usize = 0;
const FAR: usize = 1;

/// Two containers on two hosts.
struct Side {
    title: &'static str,
    near: Host,
    far: Host,
    to: IpAddr,
    /// The hosts, in this order. Docker's are elsewhere, and have no process that carries packets.
    hosts: Vec<Host>,
    _devices: Vec<Device>,
}

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|w| w == part);
    let lab = Lab::new("bench-overlay")?;
    let mut lan = lab.lan("lan", &[])?;
    let place = lab.host("etcd")?;
    lan.connect(&place, "eth0", &["10.0.1.250/24"])?;
    let etcd = Etcd::start(lab.dir(), &[(&place, IpAddr::from([10, 0, 1, 250]))], "http", &[])?;
    let mut hosts = Vec::new();
    let [open, sealed] = ours(&lab, &mut lan, &etcd, &mut hosts)?;
    let docker = World::docker_or_skip("bench-overlay-docker", &["a", "b"]).context("the benchmark needs Docker")?;
    let mut by_hand = |way| by_hand(&lab, &mut lan, way, &hosts);
    let open = [open, by_hand(Way::Vxlan)?, by_hand(Way::Beside)?, by_hand(Way::Lan)?, dockers(&docker)?];
    let sealed = [sealed, by_hand(Way::WireGuard)?, by_hand(Way::Tracked)?, by_hand(Way::Inside)?];
    for side in open.iter().chain(&sealed) {
        let is_reached = || ping(&side.near, side.to, Duration::from_secs(1)).is_open();
        ensure!(eventually(LONG, is_reached), "{}: the other container is not reached", side.title);
        for (host, processor) in side.hosts.iter().zip([NEAR, FAR]) {
            keep_host_on(processor, host)?;
        }
    }
    for (what, sides) in [("", &open[..]), (", encrypted", &sealed[..])] {
        if is_wanted("tcp") {
            report(&format!("tcp, time for a gigabit{what}"), sides, STREAMS, tcp)?;
        }
        if is_wanted("latency") {
            report(&format!("latency, there and back{what}"), sides, CONVERSATIONS, latency)?;
        }
    }
    Ok(())
}

fn report(what: &str, sides: &[Side], rounds: usize, run: fn(&Side) -> Result<Duration>) -> Result<()> {
    let mut figures: Vec<Vec<Duration>> = vec![Vec::new(); sides.len()];
    // In another order each time, so that none always has the same one before it.
    let (mut order, mut random): (Vec<usize>, u64) = ((0..sides.len()).collect(), 1);
    for _ in 0..rounds {
        for left in (1..order.len()).rev() {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            order.swap(left, (random >> 33) as usize % (left + 1));
        }
        for &at in &order {
            figures[at].push(run(&sides[at]).with_context(|| sides[at].title)?);
        }
    }
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!("{what}: median of {rounds} rounds in turns (middle half); of pairs the median (95 %)");
    for (side, figures) in sides.iter().zip(&figures) {
        let (low, high) = quarters(figures);
        let median = micros(median(figures));
        println!("  {:<10} {median:>9.1} µs ({:.1} to {:.1})", side.title, micros(low), micros(high));
    }
    for (side, theirs) in sides.iter().zip(&figures).skip(1) {
        let (low, high) = bounds(theirs, &figures[0]);
        let percent = 100.0 * ratio(theirs, &figures[0]);
        println!("  {percent:>6.1} % ({:.1} to {:.1}) as fast as {}", 100.0 * low, 100.0 * high, side.title);
    }
    Ok(())
}

/// Linux's own choice. The machine may have chosen BBR, which sends by timers, as fast as it believes that the path is: that says
/// more of what it believed than of the path.
const CONGESTION_CONTROL: &str = "cubic";

/// Has a thread of that number, or this one, run on one processor only.
fn keep_on(processor: usize, thread: Option<Pid>) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(thread, &set).with_context(|| format!("processor {processor}: two are needed"))
}

/// The same with what runs in a host's namespace.
fn keep_host_on(processor: usize, host: &Host) -> Result<()> {
    let netns = host.netns_path().metadata()?.ino();
    for process in std::fs::read_dir("/proc")? {
        let process = process?.path();
        // Whoever ends meanwhile needs none.
        if !process.join("ns/net").metadata().is_ok_and(|its| its.ino() == netns) {
            continue;
        }
        let Ok(threads) = std::fs::read_dir(process.join("task")) else { continue };
        for thread in threads.flatten() {
            let number = thread.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            match keep_on(processor, Some(number.context("a thread has a number")?)) {
                Err(_) if !thread.path().exists() => {}
                done => done?,
            }
        }
    }
    Ok(())
}

/// One stream of TCP: how long a gigabit takes, when it is under way.
fn tcp(side: &Side) -> Result<Duration> {
    let listener = side.far.enter(|| TcpListener::bind("0.0.0.0:7777"))?;
    let sender = side.near.enter(|| {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        set_tcp_congestion(&socket, CONGESTION_CONTROL)?;
        connect(&socket, &SocketAddr::new(side.to, 7777))?;
        anyhow::Ok(TcpStream::from(socket))
    })?;
    let (mut receiver, _) = listener.accept()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            keep_on(NEAR, None)?;
            let (mut sender, bytes) = (sender, vec![7; BLOCK]);
            // Until the other end is closed.
            while sender.write_all(&bytes).is_ok() {}
            Ok(())
        });
        keep_on(FAR, None)?;
        let mut bytes = vec![0; BLOCK];
        let mut receive = |time: Duration| -> Result<Duration> {
            let (began, mut count) = (Instant::now(), 0);
            while began.elapsed() < time {
                count += receiver.read(&mut bytes)?;
            }
            Ok(began.elapsed().mul_f64(1e9 / 8.0 / count as f64))
        };
        receive(WARM_UP)?;
        let took = receive(TIME);
        drop(receiver);
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        took
    })
}

/// One byte there and back.
fn latency(side: &Side) -> Result<Duration> {
    let listener = side.far.enter(|| TcpListener::bind("0.0.0.0:7777"))?;
    let place = SocketAddr::new(side.to, 7777);
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            keep_on(FAR, None)?;
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
            Ok(())
        });
        keep_on(NEAR, None)?;
        let mut stream = side.near.enter(|| TcpStream::connect(place))?;
        stream.set_nodelay(true)?;
        let mut trips = |count: usize| -> Result<Duration> {
            let began = Instant::now();
            for _ in 0..count {
                stream.write_all(&[1])?;
                stream.read_exact(&mut [0])?;
            }
            Ok(began.elapsed())
        };
        trips(WARM_UP_TRIPS)?;
        let took = trips(TRIPS)?;
        drop(stream);
        echo.join().map_err(|_| anyhow::anyhow!("the other end panicked"))??;
        Ok(took / TRIPS as u32)
    })
}

/// The program of a device, which is told its options last. In a session of its own, as that of a daemon's device is: what is in one
/// session with those who send and receive here shares its part of the processors (`autogroup`, sched(7)), and is woken otherwise.
fn worker_program() -> Command {
    let mut command = Command::new("setsid");
    command.args([env!("CARGO_BIN_EXE_portolan"), "wireguard-worker"]);
    command
}

fn portolan(host: Option<&Host>, root: &Path, words: &[&str]) -> Result<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    command.args(words).env("PORTOLAN_ROOT", root).env("PORTOLAN_DAEMON", "auto").stdin(Stdio::null());
    let mut command = match host {
        Some(host) => host.adopt(command)?,
        None => command,
    };
    let output = command.output()?;
    if !output.status.success() {
        bail!("portolan {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A host of ours. In the end its daemon ends, and whoever carries its encrypted packets, who would outlive it.
struct Ours {
    host: Host,
    root: PathBuf,
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = portolan(None, &self.root, &["daemon", "stop"]);
        let Ok(mut ip) = self.host.command("ip") else { return };
        let Ok(output) = ip.args(["-j", "link", "show"]).output() else { return };
        let links: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
        for name in names.filter(|name| name.starts_with("ps") || name.starts_with("pt")) {
            delete(&self.host, name);
        }
    }
}

/// Two of our hosts, with a network of each kind.
fn ours(lab: &Lab, lan: &mut Lan, etcd: &Etcd, hosts: &mut Vec<Ours>) -> Result<[Side; 2]> {
    let endpoint = etcd.endpoints("http").join(",");
    for (number, name) in ["ours-a", "ours-b"].into_iter().enumerate() {
        let host = lab.host(name)?;
        lan.connect(&host, "eth0", &[&format!("10.0.1.{}/24", 1 + number)])?;
        host.add_default_route("10.0.1.250")?;
        // It may pass on what is not ours, as it did before: who is `beside` wants that.
        host.enable_forwarding()?;
        let root = lab.dir().join(format!("root-{name}"));
        hosts.push(Ours { host: host.again()?, root: root.clone() });
        let verb = if number == 0 { "init" } else { "join" };
        portolan(Some(&host), &root, &["cluster", verb, "--etcd", &endpoint, "--name", name])?;
    }
    let create = |words: &[&str]| {
        portolan(Some(&hosts[0].host), &hosts[0].root, &[&["network", "create", "-d", "overlay"], words].concat())
    };
    create(&["web"])?;
    create(&["--opt", "encrypted", "vault"])?;
    let side = |network: &str, title| -> Result<Side> {
        let mut pods = Vec::new();
        for Ours { host, root } in &*hosts {
            let has = || portolan(Some(host), root, &["network", "inspect", network]).is_ok();
            ensure!(eventually(LONG, has), "{} has no network", host.name());
            let name = format!("{network}-{}", host.name());
            let pod = lab.host(&name)?;
            let path = pod.netns_path().display().to_string();
            portolan(Some(host), root, &["attach", "--netns", &path, "--name", &name, "--network", network])?;
            let inspected: Value = serde_json::from_str(&portolan(Some(host), root, &["inspect", &name])?)?;
            let address = &inspected[0]["NetworkSettings"]["Networks"][network]["IPAddress"];
            pods.push((pod, address.as_str().context("no address")?.parse::<IpAddr>()?));
        }
        let ((far, to), (near, _)) = (pods.remove(1), pods.remove(0));
        let hosts = hosts.iter().map(|ours| ours.host.again()).collect::<Result<_>>()?;
        Ok(Side { title, near, far, to, hosts, _devices: Vec::new() })
    };
    Ok([side("web", "portolan")?, side("vault", "portolan")?])
}

/// Docker's own overlay.
fn dockers(world: &World) -> Result<Side> {
    let [a, b] = &world.nodes[..] else { bail!("two hosts") };
    // Docker would have the subnet of our own hosts' networks.
    a.docker(&["network", "create", "-d", "overlay", "--attachable", "--subnet", "10.99.0.0/24", "web"])?;
    let mut pods = Vec::new();
    for node in [a, b] {
        let container = node.run(&format!("web-{}", node.name), &["--network", "web"])?;
        let address = container.addresses("web").first().copied().context("no address")?;
        pods.push((Host::of(&node.name, container.netns), address));
    }
    let ((far, to), (near, _)) = (pods.remove(1), pods.remove(0));
    Ok(Side { title: "docker", near, far, to, hosts: Vec::new(), _devices: Vec::new() })
}

/// How hosts reach each other's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Vxlan,
    /// On our own hosts.
    Beside,
    Lan,
    /// By the process that carries our own encrypted networks, with nothing but IP in it.
    WireGuard,
    /// The same on hosts that track connections, as all do that masquerade or have a firewall with a state.
    Tracked,
    /// A VXLAN by hand in such a tunnel.
    Inside,
}

/// A device of that process, which ends with it.
struct Device(Host);

impl Drop for Device {
    fn drop(&mut self) {
        delete(&self.0, "wg");
    }
}

fn delete(host: &Host, link: &str) {
    if let Ok(mut ip) = host.command("ip") {
        let _ = ip.args(["link", "delete", link]).status();
    }
}

/// What our own link takes over IPv4, where a plain tunnel leaves room for IPv6.
const INSIDE_OF: u32 = 1440;

/// The same by hand.
fn by_hand(lab: &Lab, lan: &mut Lan, way: Way, ours: &[Ours]) -> Result<Side> {
    let (title, net, mtu) = match way {
        Way::Vxlan => ("raw", 2, 1450),
        Way::Beside => ("beside", 7, 1450),
        Way::Lan => ("host-gw", 3, 1500),
        Way::WireGuard => ("bare", 4, 1420),
        Way::Inside => ("inside", 5, INSIDE_OF - 70),
        Way::Tracked => ("tracked", 6, 1420),
    };
    let (mut hosts, mut pods, mut devices) = (Vec::new(), Vec::new(), Vec::new());
    let keys = [PrivateKey::random(), PrivateKey::random()];
    let names = [format!("{title}-a"), format!("{title}-b")];
    for (number, name) in names.iter().enumerate() {
        let address = |number: usize| match way {
            Way::Beside => format!("10.0.1.{}", 1 + number),
            _ => format!("10.0.1.{}", net * 10 + number),
        };
        let (own, other) = (address(number), address(1 - number));
        let host = if way == Way::Beside {
            ours[number].host.again()?
        } else {
            let host = lab.host(name)?;
            lan.connect(&host, "eth0", &[&format!("{own}/24")])?;
            host.enable_forwarding()?;
            host
        };
        if way == Way::Tracked {
            let rules = "add table inet t; add chain inet t c { type filter hook forward priority 0; }; \
                         add rule inet t c ct state invalid drop";
            ensure!(host.command("nft")?.arg(rules).status()?.success(), "nft {rules}");
        }
        let pod = lab.host(&format!("{name}-pod"))?;
        let (inside, theirs) = (format!("10.{net}.{number}.2"), format!("10.{net}.{}.0/24", 1 - number));
        let netns = pod.netns_path().display().to_string();
        let ip = |place: &Host, line: &str| -> Result<()> {
            let status = place.command("ip")?.args(line.split(' ')).status()?;
            ensure!(status.success(), "ip {line}");
            Ok(())
        };
        ip(
            &host,
            &format!(
                "link add pod mtu {mtu} numtxqueues 1 numrxqueues 1 type veth peer name tmp mtu {mtu} numtxqueues 1 numrxqueues 1"
            ),
        )?;
        let status = host.command("ip")?.args(["link", "set", "tmp", "netns", &netns, "name", "eth0"]).status()?;
        ensure!(status.success(), "the interface cannot be moved");
        ip(&host, "link set pod up")?;
        ip(&host, &format!("address add 10.{net}.{number}.1/32 dev pod"))?;
        ip(&host, &format!("route add {inside}/32 dev pod"))?;
        ip(&pod, &format!("address add {inside}/32 dev eth0"))?;
        ip(&pod, "link set eth0 up")?;
        ip(&pod, &format!("route add 10.{net}.{number}.1/32 dev eth0 scope link"))?;
        ip(&pod, &format!("route add default via 10.{net}.{number}.1"))?;
        // Ends that are addresses of the link have these words say which.
        let vxlan = |(own_end, their_end): (&str, &str), words: &str| -> Result<()> {
            let mac = |number: usize| format!("02:00:00:00:00:0{number}");
            let own_mac = mac(number);
            ip(
                &host,
                &format!(
                    "link add vx address {own_mac} mtu {mtu} type vxlan id 77 local {own_end}{words} dstport 4789 nolearning ttl 64"
                ),
            )?;
            ip(&host, "link set vx up")?;
            ip(&host, &format!("neigh add {other} lladdr {} dev vx nud permanent", mac(1 - number)))?;
            let words = ["fdb", "add", &mac(1 - number), "dev", "vx", "dst", their_end, "self", "permanent"];
            ensure!(host.command("bridge")?.args(words).status()?.success(), "bridge fdb");
            ip(&host, &format!("route add {theirs} via {other} dev vx onlink"))
        };
        match way {
            Way::Vxlan | Way::Beside => vxlan((&own, &other), "")?,
            Way::Lan => ip(&host, &format!("route add {theirs} via {other}"))?,
            Way::WireGuard | Way::Tracked | Way::Inside => {
                let end = |number: usize| format!("fe80:{}::1", 7 + number);
                let ends = (end(number), end(1 - number));
                let (mtu, allowed) = match way {
                    Way::Inside => (INSIDE_OF, format!("fe80:{}::/48", 8 - number)),
                    _ => (mtu, theirs.clone()),
                };
                // Names of interfaces are unique where their processes say so to each other.
                let options = Options {
                    name: "wg".to_owned(),
                    mtu,
                    socket: lab.dir().join(format!("{name}.sock")),
                    log: Some(lab.dir().join(format!("{name}.log"))),
                };
                let mut control = worker::start(host.adopt(worker_program())?, &options)?;
                devices.push(Device(host.again()?));
                let endpoint = Some(SocketAddr::new(other.parse()?, 51820));
                let peer = Peer { endpoint, allowed: [allowed.parse()?].into(), ..Peer::default() };
                let config = Config {
                    private_key: Some(keys[number].clone()),
                    listen_port: 51820,
                    peers: [(keys[1 - number].public(), peer)].into(),
                };
                control.set(&changes(&Config::default(), &config))?;
                if way == Way::Inside {
                    ip(&host, &format!("address add {}/10 dev wg scope link nodad", ends.0))?;
                    vxlan((&ends.0, &ends.1), " dev wg udp6zerocsumtx udp6zerocsumrx")?;
                } else {
                    ip(&host, &format!("route add {theirs} dev wg"))?;
                }
            }
        }
        pods.push((pod, inside.parse::<IpAddr>()?));
        hosts.push(host);
    }
    let ((far, to), (near, _)) = (pods.remove(1), pods.remove(0));
    Ok(Side { title, near, far, to, hosts, _devices: devices })
}
