//! The machines, and our own command line on one of them.

use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use portolan_kernel::netns::NetnsFd;
use portolan_kernel::process::PidFd;
use portolan_kernel::signals::{Event, Signals};
use portolan_lab::snapshot::{Snapshot, snapshot};
use portolan_lab::{Host, Lab, Lan, eventually};
use serde_json::Value;

use super::report::Report;

/// SIGHUP, SIGINT and SIGTERM; the same numbers everywhere (signal(7)).
const ENDING: [i32; 3] = [1, 2, 15];

/// Somebody wants us to stop.
#[derive(Debug, Clone)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Watches for it from now on. The first signal ends the demo at the next command, and what it made is removed; the
    /// second ends the process.
    pub(super) fn watch() -> Result<Self> {
        let signals = Signals::take(&ENDING).context("take signals")?;
        let ourselves = PidFd::open(i32::try_from(std::process::id())?).context("open our own process")?;
        let happened = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&happened);
        std::thread::spawn(move || {
            while let Ok(Event::Signal { .. }) = signals.wait(&ourselves) {
                if flag.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
        Ok(Self(happened))
    }

    pub(super) fn happened(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one command printed.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) exit: i32,
    pub(super) output: String,
}

/// A container, as `portolan inspect` tells.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) netns: NetnsFd,
    pub(super) v4: IpAddr,
    pub(super) v6: IpAddr,
    pub(super) prefix_v4: u64,
    pub(super) prefix_v6: u64,
    pub(super) ifname: String,
    pub(super) host_end: String,
    pub(super) command: String,
}

impl Container {
    /// Its two addresses.
    pub(super) fn addresses(&self) -> [IpAddr; 2] {
        [self.v4, self.v6]
    }
}

/// The network, as `portolan network inspect` tells.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) bridge: String,
    pub(super) gateways: Vec<String>,
}

/// A host and its neighbour on a LAN.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) host: Host,
    pub(super) neighbour: Host,
    _lan: Lan,
    /// What the host held before we came.
    pub(super) before: Snapshot,
    pub(super) network: Option<Network>,
    pub(super) containers: Vec<Container>,
    interrupt: Interrupt,
    cleared: bool,
    /// Dropped last: the machines are in it.
    lab: Lab,
}

impl Stage {
    pub(super) fn set(interrupt: &Interrupt) -> Result<Self> {
        let lab = Lab::new("demo")?;
        let host = lab.host("host")?;
        let neighbour = lab.host("neighbour")?;
        let ours = &["10.0.1.1/24", "fd00:1::1/64"][..];
        let theirs = &["10.0.1.2/24", "fd00:1::2/64"][..];
        let lan = lab.lan("lan", &[(&host, "eth0", ours), (&neighbour, "eth0", theirs)])?;
        // So that the command lines we print are the ones we run.
        fs::create_dir(lab.dir().join("bin")).context("create a directory for the program")?;
        let program = std::env::current_exe().context("find our own program")?;
        symlink(program, lab.dir().join("bin/portolan")).context("link our own program")?;
        let before = settled(&host)?;
        Ok(Self {
            host,
            neighbour,
            _lan: lan,
            before,
            network: None,
            containers: Vec::new(),
            interrupt: interrupt.clone(),
            cleared: false,
            lab,
        })
    }

    /// Where everything is that the demo makes.
    pub(super) fn dir(&self) -> PathBuf {
        self.lab.dir().to_owned()
    }

    /// Runs `portolan` on the host with the words of `line` as arguments, and shows all it prints.
    pub(super) fn run(&self, report: &mut Report, line: &str) -> Result<Ran> {
        self.run_showing(report, line, str::to_owned)
    }

    /// The same, where people see what `excerpt` makes of it.
    pub(super) fn run_showing(
        &self,
        report: &mut Report,
        line: &str,
        excerpt: impl FnOnce(&str) -> String,
    ) -> Result<Ran> {
        let ran = self.ask(report, line)?;
        report.command(&format!("portolan {line}"), ran.exit, &ran.output, &excerpt(&ran.output));
        Ok(ran)
    }

    /// The same without a word, unless somebody wants us to stop.
    fn ask(&self, report: &Report, line: &str) -> Result<Ran> {
        if self.interrupt.happened() || report.is_unread() {
            bail!("stopped");
        }
        self.execute(line)
    }

    fn execute(&self, line: &str) -> Result<Ran> {
        let bin = self.lab.dir().join("bin");
        let mut path = OsString::from(&bin);
        if let Some(others) = std::env::var_os("PATH") {
            path.push(":");
            path.push(others);
        }
        let mut command = std::process::Command::new(bin.join("portolan"));
        command
            .args(line.split_whitespace())
            .env("PATH", path)
            .env("PORTOLAN_ROOT", self.lab.dir().join("state"))
            .env("PORTOLAN_DAEMON", "off")
            .stdin(Stdio::null());
        let output = self.host.adopt(command)?.output().with_context(|| format!("run `portolan {line}`"))?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Ran { exit: output.status.code().unwrap_or(-1), output: String::from_utf8_lossy(&text).into_owned() })
    }

    fn inspect(&self, report: &Report, line: &str) -> Result<Value> {
        let ran = self.ask(report, line)?;
        if ran.exit != 0 {
            bail!("`portolan {line}` failed: {}", ran.output.trim_end());
        }
        serde_json::from_str(&ran.output).with_context(|| format!("read what `portolan {line}` printed"))
    }

    /// Learns about the network.
    pub(super) fn learn_network(&mut self, report: &Report) -> Result<&Network> {
        let found = self.inspect(report, "network inspect web")?;
        let configs = found[0]["IPAM"]["Config"].as_array().context("no subnets")?;
        let gateways = configs.iter().map(|config| {
            let length = text(&config["Subnet"])?.rsplit('/').next().unwrap_or_default().to_owned();
            Ok(format!("{}/{length}", text(&config["Gateway"])?))
        });
        let network = Network { bridge: text(&found[0]["Bridge"])?, gateways: gateways.collect::<Result<_>>()? };
        Ok(self.network.insert(network))
    }

    /// Learns about a container that was just started.
    pub(super) fn learn_container(&mut self, report: &Report, name: &str) -> Result<()> {
        let found = self.inspect(report, &format!("inspect {name}"))?;
        let settings = &found[0]["NetworkSettings"];
        let endpoint = &settings["Networks"]["web"];
        let address = |key: &str| -> Result<IpAddr> { Ok(text(&endpoint[key])?.parse()?) };
        let number = |key: &str| endpoint[key].as_u64().with_context(|| format!("no {key}"));
        let words = std::iter::once(&found[0]["Path"]).chain(found[0]["Args"].as_array().into_iter().flatten());
        let container = Container {
            name: name.to_owned(),
            netns: NetnsFd::open(text(&settings["SandboxKey"])?)?,
            v4: address("IPAddress")?,
            v6: address("GlobalIPv6Address")?,
            prefix_v4: number("IPPrefixLen")?,
            prefix_v6: number("GlobalIPv6PrefixLen")?,
            ifname: text(&endpoint["InterfaceName"])?,
            host_end: text(&endpoint["HostInterfaceName"])?,
            command: words.filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        };
        self.containers.push(container);
        Ok(())
    }

    /// How many networks and containers the state holds beside the predefined ones.
    pub(super) fn rows(&self, report: &Report) -> Result<(usize, usize)> {
        let networks = self.inspect(report, "network ls --json")?;
        let containers = self.inspect(report, "ps -a --json")?;
        let predefined = |row: &&Value| !matches!(row["Name"].as_str(), Some("bridge" | "host" | "none"));
        let count = |rows: &Value| rows.as_array().map_or(0, |rows| rows.iter().filter(predefined).count());
        Ok((count(&networks), count(&containers)))
    }

    /// Everything was removed, command by command.
    pub(super) fn cleared(&mut self) {
        self.cleared = true;
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.cleared {
            // The containers' processes are what would outlive the lab. Whoever reads us knows already that it failed.
            let _ = self.execute("rm -f site db");
            let _ = self.execute("network rm web");
        }
    }
}

/// The host once the kernel is through with giving it addresses: it makes the local route of an IPv6 address later, on
/// a work queue of its own (addrconf_dad_work, net/ipv6/addrconf.c).
fn settled(host: &Host) -> Result<Snapshot> {
    let mut last = None;
    let complete = eventually(Duration::from_secs(3), || {
        let taken = snapshot(host);
        let complete = taken.as_ref().is_ok_and(|snapshot| has_local_routes(snapshot.lines()));
        last = Some(taken);
        complete
    });
    let taken = last.context("no snapshot")??;
    if !complete {
        bail!("the host's IPv6 addresses are not usable yet");
    }
    Ok(taken)
}

fn has_local_routes(lines: &[String]) -> bool {
    let address = |line: &String| Some(line.strip_prefix("address ")?.split_once('/')?.0.to_owned());
    lines.iter().filter_map(address).filter(|address| address.contains(':')).all(|address| {
        let route = format!("route {address}/128 table 255 Local ");
        lines.iter().any(|line| line.starts_with(&route))
    })
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().with_context(|| format!("`{value}` is no text"))?.to_owned())
}
