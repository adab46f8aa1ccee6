//! As Podman's network backend, beside Debian's netavark.
//!
//! `cargo bench -p portolan --bench podman` runs everything; with `-- protocol` or `-- run` one part:
//!
//! - `protocol`: `netavark setup` and `teardown` as Podman calls them, the whole process, for the first container of a host
//!   and for one among many.
//! - `first`: `netavark setup` where no daemon runs, which has to start one. With `BESIDE=PROGRAM` in the environment another
//!   build of ours is measured beside it, in turn.
//! - `run`: `podman run --rm -p 8080:80` from start to end beside the same with `--network none`: the difference is what the
//!   network costs a user.

mod figures;
#[path = "../tests/podman/machine.rs"]
mod machine;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use figures::{median, ms, ratio};
use machine::{Backend, IMAGE, Machine};
use portolan_kernel::netns::{self, NetnsFd, with_netns};
use portolan_lab::{Host, Lab};
use serde_json::json;

fn main() -> Result<()> {
    if let Some(missing) = machine::missing(machine::Backend::Netavark) {
        bail!("the benchmark needs Podman: {missing}");
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|w| w == part);
    if is_wanted("protocol") {
        protocol().context("benchmark `protocol`")?;
    }
    if is_wanted("first") {
        first().context("benchmark `first`")?;
    }
    if is_wanted("run") {
        run().context("benchmark `run`")?;
    }
    Ok(())
}

/// How many containers a host has when it is measured; netavark is measured up to the second figure.
const FILLS: [usize; 4] = [0, 1, 200, 1000];
const PEER_UP_TO: usize = 200;
/// How often each is measured at each fill.
const ROUNDS: usize = 21;

/// The kernel goes on for a while after an interface is gone and holds the lock that others need: each is measured without what the
/// other left to it.
const REST: Duration = Duration::from_millis(100);

/// A host on which one backend is called as Podman calls it.
struct Caller {
    backend: Backend,
    binary: PathBuf,
    program: PathBuf,
    ns: NetnsFd,
    containers: Vec<PathBuf>,
    _host: Host,
    lab: Lab,
}

impl Caller {
    fn new(backend: Backend) -> Result<Self> {
        Self::of(backend, Path::new(machine::programs(backend)[0]))
    }

    fn of(backend: Backend, binary: &Path) -> Result<Self> {
        let lab = Lab::new("bench-podman")?;
        let host = lab.host("host")?;
        let ns = NetnsFd::open(host.netns_path())?;
        let program = lab.dir().join("netavark");
        std::os::unix::fs::symlink(binary, &program)?;
        Ok(Self { backend, binary: binary.to_owned(), program, ns, containers: Vec::new(), _host: host, lab })
    }

    /// A namespace without any link but loopback, as a runtime makes it for a container.
    fn container(&mut self) -> Result<PathBuf> {
        let path = self.lab.dir().join(format!("c{}", self.containers.len()));
        netns::create_pinned(&path)?;
        self.containers.push(path.clone());
        Ok(path)
    }

    /// From spawn to reaped.
    fn call(&self, verb: &str, n: usize, netns: &Path) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.lab.dir().join("networks")).arg("--rootless=false");
        command.arg("--aardvark-binary=/usr/lib/podman/aardvark-dns").arg(verb).arg(netns);
        // Without names: those are measured by the benchmark of DNS.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let input = question(n);
        with_netns(&self.ns, || {
            let start = Instant::now();
            let mut child = command.spawn()?;
            child.stdin.take().context("standard input is a pipe")?.write_all(input.as_bytes())?;
            let output = child.wait_with_output()?;
            let elapsed = start.elapsed();
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "{:?} {verb}: {said}", self.backend);
            Ok(elapsed)
        })?
    }

    /// Ends the daemon of ours, if one runs.
    fn stop_daemon(&self) {
        if self.backend == Backend::Portolan {
            // Where none runs it says so.
            let mut stop = Command::new(&self.binary);
            stop.arg("--root").arg(self.lab.dir().join("networks")).args(["daemon", "stop"]);
            let _ = stop.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.stop_daemon();
        for path in &self.containers {
            let _ = netns::unpin(path);
        }
    }
}

/// What Podman says about the `n`-th container: one network, two published ports.
fn question(n: usize) -> String {
    let address = format!("10.88.{}.{}", n / 250, n % 250 + 2);
    let port = |base: usize, inside: u16| json!({"host_ip": "", "container_port": inside, "host_port": base + n, "range": 1, "protocol": "tcp"});
    json!({
        "container_id": format!("{n:064x}"),
        "container_name": format!("c{n}"),
        "networks": {"podman": {"static_ips": [address], "interface_name": "eth0"}},
        "network_info": {"podman": {
            "name": "podman", "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9", "driver": "bridge",
            "network_interface": "podman0", "created": "2026-01-01T00:00:00Z",
            "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}],
            "ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"}}},
        "port_mappings": [port(10_000, 80), port(30_000, 90)],
    })
    .to_string()
}

/// Setups and teardowns at one fill.
#[derive(Clone, Default)]
struct Times {
    setup: Vec<Duration>,
    teardown: Vec<Duration>,
}

/// Measures one container more, `ROUNDS` times for each caller, in turn. The first is not counted.
fn measure(callers: &mut [&mut Caller]) -> Result<Vec<Times>> {
    let mut times: Vec<Times> = callers.iter().map(|_| Times::default()).collect();
    for round in 0..=ROUNDS {
        for (caller, times) in callers.iter_mut().zip(&mut times) {
            let n = 2000 + round;
            let netns = caller.container()?;
            std::thread::sleep(REST);
            let setup = caller.call("setup", n, &netns)?;
            let teardown = caller.call("teardown", n, &netns)?;
            if round > 0 {
                times.setup.push(setup);
                times.teardown.push(teardown);
            }
        }
    }
    Ok(times)
}

/// Adds containers until there are `count`.
fn fill(caller: &mut Caller, from: usize, count: usize) -> Result<()> {
    for n in from..count {
        let netns = caller.container()?;
        caller.call("setup", n, &netns)?;
    }
    Ok(())
}

fn protocol() -> Result<()> {
    let mut ours = Caller::new(Backend::Portolan)?;
    let mut theirs = Caller::new(Backend::Netavark)?;
    println!("\n### `netavark setup` and `teardown`, two published ports (whole process, median of {ROUNDS})\n");
    println!(
        "| containers there | portolan setup | netavark setup | ratio | portolan teardown | netavark teardown | ratio |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut from = 0;
    for count in FILLS {
        fill(&mut ours, from, count)?;
        let is_beside = count <= PEER_UP_TO;
        let times = if is_beside {
            fill(&mut theirs, from, count)?;
            measure(&mut [&mut ours, &mut theirs])?
        } else {
            measure(&mut [&mut ours])?
        };
        let column = |pick: fn(&Times) -> &Vec<Duration>| {
            let ours = pick(&times[0]);
            match times.get(1).map(pick) {
                Some(theirs) => format!("{} | {} | {:.1}", ms(median(ours)), ms(median(theirs)), ratio(theirs, ours)),
                None => format!("{} | – | –", ms(median(ours))),
            }
        };
        println!("| {count} | {} | {} |", column(|times| &times.setup), column(|times| &times.teardown));
        from = count;
    }
    Ok(())
}

fn first() -> Result<()> {
    let mut callers = vec![("portolan", Caller::new(Backend::Portolan)?)];
    if let Some(other) = std::env::var_os("BESIDE") {
        callers.push(("portolan beside", Caller::of(Backend::Portolan, Path::new(&other))?));
    }
    let mut times = vec![Times::default(); callers.len()];
    for round in 0..=ROUNDS {
        // Whoever comes first finds what the last one's daemon leaves behind: each is first as often.
        let mut turns: Vec<usize> = (0..callers.len()).collect();
        turns.rotate_left(round % callers.len());
        for turn in turns {
            let (caller, times) = (&mut callers[turn].1, &mut times[turn]);
            let n = 2000 + round;
            let netns = caller.container()?;
            let setup = caller.call("setup", n, &netns)?;
            let teardown = caller.call("teardown", n, &netns)?;
            caller.stop_daemon();
            if round > 0 {
                times.setup.push(setup);
                times.teardown.push(teardown);
            }
        }
    }
    println!("\n### `netavark setup` with the daemon to start (whole process, median of {ROUNDS})\n");
    println!("| build | setup | fastest | ratio | teardown |\n|---|---|---|---|---|");
    for ((name, _), other) in callers.iter().zip(&times) {
        let fastest = other.setup.iter().min().copied().unwrap_or_default();
        let ratio = ratio(&other.setup, &times[0].setup);
        let (setup, teardown) = (ms(median(&other.setup)), ms(median(&other.teardown)));
        println!("| {name} | {setup} | {} | {ratio:.2} | {teardown} |", ms(fastest));
    }
    Ok(())
}

/// One run of Podman, from spawn to reaped.
fn podman(machine: &Machine, args: &[&str]) -> Result<Duration> {
    let mut command = machine.command("podman", args);
    let start = Instant::now();
    let output = command.output()?;
    let elapsed = start.elapsed();
    machine::finished("podman", args, &output)?;
    Ok(elapsed)
}

fn run() -> Result<()> {
    const TURNS: usize = 60;
    let mut machines = Vec::new();
    for (name, backend) in [("portolan", Backend::Portolan), ("netavark", Backend::Netavark)] {
        let lab = Lab::new(name)?;
        let host = lab.host("host")?;
        let machine = machine::start(&lab, &host, name, backend)?;
        // One that stays keeps the bridge, as on a host in use.
        machine.run("podman", &["run", "-d", "--name", "stays", "-p", "8079:80", IMAGE])?;
        // The lab last: it goes after the machine in it.
        machines.push((machine, host, lab));
    }
    let mut added = [Vec::new(), Vec::new()];
    let mut whole = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for turn in 0..=TURNS {
        for (i, (machine, ..)) in machines.iter().enumerate() {
            let with = || podman(machine, &["run", "--rm", "-p", "8080:80", IMAGE, "true"]);
            let without = || podman(machine, &["run", "--rm", "--network", "none", IMAGE, "true"]);
            // Each goes first as often: what one leaves to the kernel to do, the other has beside it.
            let (with, without) = if turn % 2 == 0 {
                let with = with()?;
                (with, without()?)
            } else {
                let without = without()?;
                (with()?, without)
            };
            // The first warms caches.
            if turn > 0 {
                whole[i][0].push(with);
                whole[i][1].push(without);
                added[i].push(with.as_secs_f64() - without.as_secs_f64());
            }
        }
    }
    println!("\n### `podman run --rm -p 8080:80 IMAGE true` (median of {TURNS} pairs)\n");
    println!(
        "| backend | with a network | `--network none` | what the network adds | middle half |\n|---|---|---|---|---|"
    );
    for ((name, whole), added) in ["portolan", "netavark (Debian)"].iter().zip(&whole).zip(&mut added) {
        added.sort_by(f64::total_cmp);
        let quarter = |n: usize| added[added.len() * n / 4] * 1e3;
        println!(
            "| {name} | {} | {} | {:.1} ms | {:.1}–{:.1} ms |",
            ms(median(&whole[0])),
            ms(median(&whole[1])),
            quarter(2),
            quarter(1),
            quarter(3)
        );
    }
    Ok(())
}
