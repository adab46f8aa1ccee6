//! What the cases have to work with: Podman on a host with a LAN neighbour, and ways to look at what it does.

#[path = "../machine/look.rs"]
mod look;

use std::fmt;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_lab::snapshot::{Snapshot, settled};
use portolan_lab::{Host, InNetns, Lab, Lan};
use serde_json::Value;

pub(crate) use look::*;

use crate::machine::{self, Backend, IMAGE, Machine};

/// What the neighbour's name server says of every name below `world`.
pub(crate) const WORLD: &str = "198.51.100.7";

/// What the kernel lacks for a case to be tried.
#[derive(Debug)]
pub(crate) struct Lack(pub(crate) &'static str);

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this kernel lacks {}", self.0)
    }
}

impl std::error::Error for Lack {}

/// One host with Podman, for one backend.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) machine: Machine,
    pub(crate) host: Host,
    pub(crate) neighbour: Host,
    /// What the host held before Podman did anything.
    pub(crate) before: Snapshot,
    _upstream: Upstream,
    _lan: Lan,
    // Last, as it removes the others.
    _lab: Lab,
}

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) id: String,
    netns: NetnsFd,
    /// What `podman inspect` says.
    pub(crate) details: Value,
}

impl InNetns for Container {
    fn netns(&self) -> &NetnsFd {
        &self.netns
    }
}

impl Container {
    /// A field of its place on a network; empty if it has none.
    pub(crate) fn on(&self, network: &str, field: &str) -> String {
        self.details["NetworkSettings"]["Networks"][network][field].as_str().unwrap_or_default().to_owned()
    }

    /// Its address on a network.
    pub(crate) fn ip(&self, network: &str) -> String {
        self.on(network, "IPAddress")
    }

    /// Its process, and the one that watches it, in the machine's numbers.
    pub(crate) fn processes(&self) -> [String; 2] {
        ["Pid", "ConmonPid"].map(|key| self.details["State"][key].to_string())
    }
}

impl Scene {
    /// Makes one.
    pub(crate) fn new(name: &str, backend: Backend) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (host, neighbour) = (lab.host("h")?, lab.host("n")?);
        let (at_host, at_neighbour) =
            (["10.0.1.1/24", "10.0.1.11/24", "fd00:1::1/64"], ["10.0.1.2/24", "fd00:1::2/64"]);
        let lan = lab.lan("lan", &[(&host, "eth0", &at_host), (&neighbour, "eth0", &at_neighbour)])?;
        for gateway in [NEIGHBOUR, NEIGHBOUR6] {
            host.add_default_route(gateway)?;
        }
        let before = settled(&host, LONG)?;
        let upstream = Upstream::start(&neighbour)?;
        let machine = machine::start(&lab, &host, name, backend)?;
        Ok(Self { machine, host, neighbour, before, _upstream: upstream, _lan: lan, _lab: lab })
    }

    /// Runs `podman`.
    pub(crate) fn podman(&self, args: &[&str]) -> Result<String> {
        self.machine.run("podman", args)
    }

    /// Starts a container that serves HTTP on port 80, saying its name.
    pub(crate) fn run(&self, name: &str, args: &[&str]) -> Result<Container> {
        let variable = format!("NAME={name}");
        self.podman(&[&["run", "-d", "--name", name, "-e", &variable], args, &[IMAGE]].concat())?;
        self.look(name)
    }

    /// A container as it is now.
    pub(crate) fn look(&self, name: &str) -> Result<Container> {
        let details: Value = serde_json::from_str(&self.podman(&["inspect", "--type", "container", name])?)?;
        let details = details[0].clone();
        let path = details["NetworkSettings"]["SandboxKey"].as_str().context("a container has a namespace")?;
        let netns = self.machine.netns(path)?;
        let id = details["Id"].as_str().context("a container has an id")?.to_owned();
        Ok(Container { name: name.to_owned(), id, netns, details })
    }

    /// Creates a network.
    pub(crate) fn network(&self, name: &str, args: &[&str]) -> Result<()> {
        self.podman(&[&["network", "create"], args, &[name]].concat())?;
        Ok(())
    }

    /// Removes what a case left, so that the next one finds an empty machine.
    pub(crate) fn clear(&self) -> Result<()> {
        // The first process of a pod goes with it.
        self.podman(&["pod", "rm", "--all", "--force", "--time", "0"])?;
        self.podman(&["rm", "--all", "--force", "--time", "0"])?;
        self.podman(&["network", "prune", "--force"])?;
        Ok(())
    }
}

/// Fails unless a name server answers with exactly this address, at the first time of asking.
pub(crate) fn names(from: &impl InNetns, server: &str, name: &str, address: &str) -> Result<()> {
    let (code, addresses) = ask(from, server, name)?;
    ensure!(addresses == [address], "`{name}` is {addresses:?} with code {code}, not {address}");
    Ok(())
}

/// Fails if a name server knows an address of a name.
pub(crate) fn knows_not(from: &impl InNetns, server: &str, name: &str) -> Result<()> {
    let (_, addresses) = ask(from, server, name)?;
    ensure!(addresses.is_empty(), "`{name}` is {addresses:?}");
    Ok(())
}

/// Asks once for the IPv4 addresses of a name; answers the code (RFC 1035 §4.1.1) and the addresses, sorted.
pub(crate) fn ask(from: &impl InNetns, server: &str, name: &str) -> Result<(u8, Vec<String>)> {
    let socket = with_netns(from.netns(), || UdpSocket::bind("0.0.0.0:0"))??;
    socket.connect(at(server, 53))?;
    let mut query = vec![0x5a, 0x17, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send(&query)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = [0; 1500];
    let Ok(len) = socket.recv(&mut answer) else { bail!("no answer of {server} for `{name}`") };
    let answer = &answer[..len];
    ensure!(answer[..2] == query[..2], "an answer to another question");
    let mut addresses = addresses_of(answer, query.len()).context("an answer that makes no sense")?;
    addresses.sort();
    Ok((answer[3] & 0xf, addresses))
}

/// The A records of an answer whose first `from` bytes are header and question.
fn addresses_of(answer: &[u8], from: usize) -> Option<Vec<String>> {
    let count = u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?]);
    let (mut place, mut addresses) = (from, Vec::new());
    for _ in 0..count {
        loop {
            match *answer.get(place)? {
                0 => break place += 1,
                // A pointer ends the name (RFC 1035 §4.1.4).
                pointer if pointer >= 0xc0 => break place += 2,
                len => place += 1 + usize::from(len),
            }
        }
        let [kind, len] =
            [0, 8].map(|at| Some(u16::from_be_bytes([*answer.get(place + at)?, *answer.get(place + at + 1)?])));
        let data = answer.get(place + 10..place + 10 + usize::from(len?))?;
        if kind? == 1 {
            let octets: [u8; 4] = data.try_into().ok()?;
            addresses.push(IpAddr::from(octets).to_string());
        }
        place += 10 + data.len();
    }
    Some(addresses)
}

/// The neighbour's name server: names below `world` have one address, others are not there.
#[derive(Debug)]
struct Upstream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    fn start(place: &Host) -> Result<Self> {
        let socket = with_netns(place.netns(), || UdpSocket::bind(at(NEIGHBOUR, 53)))??;
        // So that the thread sees `stop`.
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !flag.load(Ordering::Relaxed) {
                let Ok((len, client)) = socket.recv_from(&mut buffer) else { continue };
                if let Some(answer) = truth(&buffer[..len]) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer to a question.
fn truth(query: &[u8]) -> Option<Vec<u8>> {
    let mut place = 12;
    while *query.get(place)? != 0 {
        place += 1 + usize::from(query[place]);
    }
    let end = place + 5;
    let is_a = query.get(place + 1..end)? == [0, 1, 0, 1];
    let is_world = query[..place].to_ascii_lowercase().ends_with(b"\x05world");
    let mut answer = query[..end].to_vec();
    // A response, recursion available; without the additional records of the question.
    answer[2] |= 0x80;
    answer[3] = if is_world { 0x80 } else { 0x83 };
    answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(is_world && is_a), 0, 0, 0, 0]);
    if is_world && is_a {
        let IpAddr::V4(address) = at(WORLD, 0).ip() else { return None };
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The name server that a container's resolver file names first.
pub(crate) fn resolver(scene: &Scene, container: &Container) -> Result<String> {
    let file = scene.podman(&["exec", &container.name, "cat", "/etc/resolv.conf"])?;
    match file.lines().find_map(|line| line.strip_prefix("nameserver ")) {
        Some(server) => Ok(server.trim().to_owned()),
        None => bail!("`{}` has no name server", container.name),
    }
}
