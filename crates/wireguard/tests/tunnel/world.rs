//! Hosts on one LAN, each with a device.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use portolan_kernel::process::PidFd;
use portolan_kernel::signals;
use portolan_lab::probe::ping;
use portolan_lab::{Host, Lab, Lan, eventually};
use portolan_wireguard::worker::{self, Options};
use portolan_wireguard::{Config, Control, Device as _, Peer, PrivateKey, PublicKey, changes};

/// A worker on a busy machine answers within this.
pub(crate) const LONG: Duration = Duration::from_secs(20);
pub(crate) const MTU: u32 = 1420;
pub(crate) const PORT: u16 = 51820;

/// The example `worker`, which cargo builds along with the tests.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/worker");
    assert!(path.exists(), "`{}` is missing: cargo build -p portolan-wireguard --examples", path.display());
    path
}

/// Hosts `h1`, `h2`, … with 10.0.1.1, fd00:1::1 and so on.
pub(crate) struct World {
    pub(crate) hosts: Vec<Host>,
    pub(crate) _lan: Lan,
    // Last, as it removes the others.
    pub(crate) lab: Lab,
}

impl World {
    pub(crate) fn or_skip(name: &str, count: usize) -> Option<Self> {
        let lab = Lab::or_skip(name)?;
        let hosts: Vec<Host> = (1..=count).map(|number| lab.host(&format!("h{number}")).unwrap()).collect();
        let mut lan = lab.lan("lan", &[]).unwrap();
        for (number, host) in (1..).zip(&hosts) {
            lan.connect(host, "eth0", &[&format!("10.0.1.{number}/24"), &format!("fd00:1::{number}/64")]).unwrap();
        }
        Some(Self { hosts, _lan: lan, lab })
    }

    /// A device of host `number`, counted from 1, with 10.8.0.`number` and fd00:8::`number`.
    pub(crate) fn tunnel(&self, number: usize) -> Tunnel<'_> {
        let tunnel = self.device(number, PORT);
        tunnel.address();
        tunnel
    }

    /// The same without addresses.
    pub(crate) fn device(&self, number: usize, port: u16) -> Tunnel<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("w{}n{}", std::process::id() % 1_000_000, NEXT.fetch_add(1, Ordering::Relaxed));
        let options = Options {
            socket: self.lab.dir().join(format!("{name}.sock")),
            log: Some(self.lab.dir().join(format!("{name}.log"))),
            name,
            mtu: MTU,
        };
        let config = Config { private_key: Some(PrivateKey::random()), listen_port: port, peers: BTreeMap::new() };
        let mut tunnel = Tunnel { host: &self.hosts[number - 1], number, options, config, control: None };
        tunnel.launch();
        tunnel
    }
}

/// A device of a host.
pub(crate) struct Tunnel<'a> {
    pub(crate) host: &'a Host,
    pub(crate) number: usize,
    pub(crate) options: Options,
    /// What it is set to.
    pub(crate) config: Config,
    control: Option<Control>,
}

impl Tunnel<'_> {
    /// Starts the worker and sets it to the config.
    pub(crate) fn launch(&mut self) {
        self.control = Some(self.relaunch());
    }

    pub(crate) fn relaunch(&self) -> Control {
        let program = self.host.adopt(Command::new(program())).unwrap();
        let mut control = worker::start(program, &self.options).unwrap();
        control.set(&changes(&Config::default(), &self.config)).unwrap();
        control
    }

    pub(crate) fn control(&mut self) -> &mut Control {
        self.control.as_mut().unwrap()
    }

    fn address(&self) {
        for address in self.inner() {
            let len = if address.is_ipv4() { 24 } else { 64 };
            self.host.add_address(&self.options.name, &format!("{address}/{len}")).unwrap();
        }
    }

    pub(crate) fn key(&self) -> PublicKey {
        self.config.private_key.as_ref().unwrap().public()
    }

    /// Its addresses inside of the tunnel.
    pub(crate) fn inner(&self) -> [IpAddr; 2] {
        [format!("10.8.0.{}", self.number), format!("fd00:8::{}", self.number)].map(|text| text.parse().unwrap())
    }

    /// Where others find it.
    pub(crate) fn endpoint(&self) -> SocketAddr {
        format!("10.0.1.{}:{}", self.number, self.config.listen_port).parse().unwrap()
    }

    /// It as others are to know it.
    pub(crate) fn as_peer(&self) -> Peer {
        Peer { endpoint: Some(self.endpoint()), allowed: self.inner().map(IpNet::from).into(), ..Peer::default() }
    }

    /// Makes the config another.
    pub(crate) fn become_(&mut self, config: Config) {
        let change = changes(&self.config, &config);
        self.control().set(&change).unwrap();
        self.config = config;
    }

    pub(crate) fn know(&mut self, key: PublicKey, peer: Peer) {
        let mut config = self.config.clone();
        config.peers.insert(key, peer);
        self.become_(config);
    }

    pub(crate) fn forget(&mut self, key: PublicKey) {
        let mut config = self.config.clone();
        config.peers.remove(&key);
        self.become_(config);
    }

    /// The process of the worker.
    pub(crate) fn process(&self) -> PidFd {
        PidFd::open(self.pid()).unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        let is_it = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.ends_with(format!("{}\0", self.options.to_argument()).as_bytes())
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find(is_it).expect("worker is gone")
    }

    pub(crate) fn kill(&self) {
        let process = self.process();
        process.signal(signals::KILL).unwrap();
        assert!(process.wait_readable(LONG).unwrap());
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.options.log.as_ref().unwrap()).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn reaches(&self, other: &Tunnel<'_>) {
        for address in other.inner() {
            let probe = ping(self.host, address, LONG);
            assert!(probe.is_open(), "h{} to {address}: {probe:?}; {} {}", self.number, self.log(), other.log());
        }
    }

    #[track_caller]
    pub(crate) fn misses(&self, other: &Tunnel<'_>) {
        for address in other.inner() {
            let probe = ping(self.host, address, Duration::from_secs(1));
            assert!(!probe.is_open(), "h{} to {address}: {probe:?}", self.number);
        }
    }
}

impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        // A worker ends with its interface.
        let deleted = self.host.enter(|| {
            let mut batch = portolan_kernel::netlink::Batch::new();
            portolan_kernel::rtnl::link::delete(&mut batch, self.options.name.as_str());
            portolan_kernel::netlink::Socket::open(portolan_kernel::netlink::ROUTE)?.transact(&batch)
        });
        let is_gone = eventually(LONG, || !self.options.socket.exists());
        if !std::thread::panicking() {
            assert!(deleted.is_ok() && is_gone, "{deleted:?} {is_gone}: {}", self.log());
        }
    }
}

/// Lays Ethernets over the devices, as networks of several hosts do, with 10.20.0.`number` by IPv4 and 10.21.0.`number` by
/// IPv6.
pub(crate) fn overlays(one: &Tunnel<'_>, other: &Tunnel<'_>) {
    for (here, there) in [(one, other), (other, one)] {
        let ip = |words: &str| {
            let done = here.host.command("ip").unwrap().args(words.split(' ')).status().unwrap();
            assert!(done.success(), "ip {words}");
        };
        for (at, headers) in [50, 70].into_iter().enumerate() {
            let [local, remote] = [here, there].map(|tunnel| tunnel.inner()[at].to_string());
            ip(&format!("link add vx{at} type vxlan id 7{at} local {local} remote {remote} dstport 4789"));
            ip(&format!("link set vx{at} up mtu {}", MTU - headers));
            here.host.add_address(&format!("vx{at}"), &format!("10.2{at}.0.{}/24", here.number)).unwrap();
        }
    }
}

/// Two devices that know each other.
pub(crate) fn pair<'a>(world: &'a World) -> (Tunnel<'a>, Tunnel<'a>) {
    let (mut one, mut other) = (world.tunnel(1), world.tunnel(2));
    introduce(&mut one, &mut other);
    (one, other)
}

pub(crate) fn introduce(one: &mut Tunnel<'_>, other: &mut Tunnel<'_>) {
    one.know(other.key(), other.as_peer());
    other.know(one.key(), one.as_peer());
}
