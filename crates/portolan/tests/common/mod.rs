//! A host with a neighbour on its LAN, and the real binary on it.
//!
//! Everything is in namespaces of a [`Lab`] and goes with it.

#![allow(dead_code, reason = "each test crate uses its part")]

pub(crate) mod dnsmasq;
pub(crate) mod firewalld;
pub(crate) mod upstream;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::str::FromStr;
use std::time::{Duration, Instant};

use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_kernel::rtnl::link::Link;
use portolan_kernel::rtnl::{Family, addr, link};
use portolan_kernel::socket::{packet, wait_readable};
use portolan_lab::probe::{Probe, tcp_probe};
use portolan_lab::snapshot::{self, Snapshot, snapshot};
use portolan_lab::{Host, InNetns, Lab, Lan, eventually};
use serde_json::Value;

/// How long to wait for what must come.
pub(crate) const LONG: Duration = Duration::from_secs(10);
/// How long to wait for what must not come.
pub(crate) const SHORT: Duration = Duration::from_millis(400);

/// Both, in the order checks are made.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A connection to `to` gets to the server that calls itself `banner`.
#[track_caller]
pub(crate) fn assert_leads(from: &impl InNetns, to: SocketAddr, banner: &str) {
    let probe = tcp_probe(from, to, LONG);
    assert_eq!(probe.banner(), Some(banner), "{to}: {probe}");
}

/// No connection to `to` comes about.
#[track_caller]
pub(crate) fn assert_closed(from: &impl InNetns, to: SocketAddr) {
    let probe = tcp_probe(from, to, SHORT);
    assert!(!probe.is_open(), "{to}: {probe}");
}

/// It is refused at once.
#[track_caller]
pub(crate) fn assert_refused(from: &impl InNetns, to: SocketAddr) {
    assert_eq!(tcp_probe(from, to, LONG), Probe::Refused, "{to}");
}

/// The host's address on the LAN.
pub(crate) fn host_ip(family: Family) -> IpAddr {
    pick(family, "10.0.1.1", "fd00:1::1")
}

/// The neighbour's address on the LAN.
pub(crate) fn neighbour_ip(family: Family) -> IpAddr {
    pick(family, "10.0.1.2", "fd00:1::2")
}

/// 127.0.0.1 or ::1.
pub(crate) fn loopback(family: Family) -> IpAddr {
    pick(family, "127.0.0.1", "::1")
}

/// The address of `family`.
pub(crate) fn pick(family: Family, v4: &str, v6: &str) -> IpAddr {
    choose(family, v4, v6).parse().unwrap()
}

/// The one of two for `family`.
pub(crate) fn choose<T>(family: Family, v4: T, v6: T) -> T {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// `0.0.0.0:port` or `[::]:port`.
pub(crate) fn any(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.unspecified(), port)
}

/// An address and port.
pub(crate) fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Host `h` (eth0 10.0.1.1/24, fd00:1::1/64), its LAN neighbour `n` (eth0 10.0.1.2/24, fd00:1::2/64), through which
/// the host's default routes lead, and a root of Portolan's for `h`.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) h: Host,
    pub(crate) n: Host,
    pub(crate) lan: Lan,
    pub(crate) root: PathBuf,
    /// Whether commands start the daemon when they need it.
    pub(crate) daemon: bool,
    /// What else is in the environment of commands.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) lab: Lab,
}

impl World {
    /// Makes one; skips loudly where no namespaces can be made.
    pub(crate) fn or_skip(name: &str) -> Option<Self> {
        let lab = Lab::or_skip(name)?;
        let (h, n) = (lab.host("h").unwrap(), lab.host("n").unwrap());
        let lan = lab
            .lan(
                "lan",
                &[(&h, "eth0", &["10.0.1.1/24", "fd00:1::1/64"]), (&n, "eth0", &["10.0.1.2/24", "fd00:1::2/64"])],
            )
            .unwrap();
        for gateway in ["10.0.1.2", "fd00:1::2"] {
            h.add_default_route(gateway).unwrap();
        }
        let root = lab.dir().join("root");
        let world = Self { h, n, lan, root, daemon: false, environment: Vec::new(), lab };
        // A new namespace has it on wherever the module is loaded, which is chance.
        world.bridge_netfilter(false);
        Some(world)
    }

    /// Gives the neighbour one more address.
    pub(crate) fn second_address(&self, address: &str) {
        self.n.add_address("eth0", address).unwrap();
    }

    /// Makes frames inside a bridge pass the IP hooks (`br_netfilter`) or not; `false` where the module is not loaded.
    pub(crate) fn bridge_netfilter(&self, on: bool) -> bool {
        let value = if on { "1" } else { "0" };
        ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"]
            .iter()
            .all(|name| self.h.sysctl(&["net", "bridge", name], value).is_ok())
    }

    /// The binary on host `h`, not yet started.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(args).env("PORTOLAN_ROOT", &self.root);
        command.envs(self.environment.iter().cloned());
        command.env("PORTOLAN_DAEMON", if self.daemon { "auto" } else { "off" });
        self.h.adopt(command).unwrap()
    }

    /// Runs nft(8) on host `h`, as others do: another process with another socket.
    #[track_caller]
    pub(crate) fn nft(&self, line: &str) {
        let mut command = Command::new("nft");
        command.args(line.split(' '));
        let output = self.h.adopt(command).unwrap().output().unwrap();
        assert!(output.status.success(), "nft {line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs the binary on host `h`.
    pub(crate) fn portolan(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it and returns what it prints; panics with its messages if it fails.
    #[track_caller]
    pub(crate) fn portolan_ok(&self, args: &[&str]) -> String {
        let output = self.portolan(args);
        assert!(
            output.status.success(),
            "portolan {}: {}\n{}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it with `--json` and parses what it prints.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let text = self.portolan_ok(&[&["--json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Runs what must be refused; returns the sentence that says why, after checking that it is one, that a hint
    /// follows, and that nothing is printed on standard output.
    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        check_refusal(args, &self.portolan(args))
    }

    /// Creates a network.
    #[track_caller]
    pub(crate) fn network(&self, name: &str, args: &[&str]) {
        self.portolan_ok(&[&["network", "create", name], args].concat());
    }

    /// Makes a namespace and attaches it.
    #[track_caller]
    pub(crate) fn container(&self, name: &str, args: &[&str]) -> Container {
        let host = self.lab.host(name).unwrap();
        let path = host.netns_path().to_str().unwrap().to_owned();
        let attached = self.json(&[&["attach", "--netns", &path, "--name", name], args].concat());
        Container { name: name.into(), endpoints: endpoints(&attached), host }
    }

    /// A process in a namespace that nobody else holds, and that goes with it.
    #[track_caller]
    pub(crate) fn mortal(&self) -> Child {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "1000"]);
        let process = self.h.adopt(command).unwrap().spawn().unwrap();
        let is_apart = || {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
            let host = with_netns(self.h.netns(), || fs::read_link("/proc/thread-self/ns/net").ok()).unwrap();
            of(&process.id().to_string()).is_some_and(|own| Some(own) != host)
        };
        assert!(eventually(LONG, is_apart));
        process
    }

    /// What host `h` and the store hold.
    #[track_caller]
    pub(crate) fn state(&self) -> State {
        let mut containers = self.json(&["ps", "-a"]);
        for container in containers.as_array_mut().unwrap() {
            // Says how long ago.
            container.as_object_mut().unwrap().remove("Status");
        }
        State { host: snapshot(&self.h).unwrap(), networks: self.json(&["network", "ls"]), containers }
    }

    /// What host `h` holds before anything of ours; waits for the LAN's routes, which appear a little after its links.
    #[track_caller]
    pub(crate) fn untouched(&self) -> Snapshot {
        snapshot::settled(&self.h, LONG).unwrap()
    }

    /// Panics with the differences if host `h` does not become what it was before `what`: the daemon takes its fence down a moment
    /// after the verb by which none is needed any more.
    #[track_caller]
    pub(crate) fn assert_untouched(&self, untouched: &Snapshot, what: &str) {
        let changes = || snapshot::diff(untouched, &snapshot(&self.h).unwrap());
        assert!(eventually(LONG, || changes().is_empty()), "{what} changed the host: {:#?}", changes());
    }

    /// A second LAN of host `h` (eth1 10.0.2.1/24, fd00:2::1/64) with a neighbour `m` (eth0 10.0.2.2/24,
    /// fd00:2::2/64); both neighbours route to the other one by `h`.
    #[track_caller]
    pub(crate) fn second_lan(&self) -> (Host, Lan) {
        let m = self.lab.host("m").unwrap();
        let (at_m, at_h) = (["10.0.2.2/24", "fd00:2::2/64"], ["10.0.2.1/24", "fd00:2::1/64"]);
        let lan = self.lab.lan("lan2", &[(&m, "eth0", &at_m), (&self.h, "eth1", &at_h)]).unwrap();
        for family in FAMILIES {
            m.add_default_route(choose(family, "10.0.2.1", "fd00:2::1")).unwrap();
            let to = choose(family, "10.0.2.0/24", "fd00:2::/64");
            self.n.add_route(to, &host_ip(family).to_string()).unwrap();
        }
        (m, lan)
    }

    /// Lets neighbour `n` answer the containers of a network at their own addresses.
    #[track_caller]
    pub(crate) fn route_back(&self, network: &str) {
        for subnet in subnets(self, network) {
            self.n.add_route(&subnet.to_string(), &host_ip(Family::of(subnet.addr())).to_string()).unwrap();
        }
    }

    /// How many containers have run-time files.
    pub(crate) fn run_time_dirs(&self) -> usize {
        fs::read_dir(self.root.join("run/containers")).map_or(0, Iterator::count)
    }

    /// Panics unless the kernel holds what the store says, no more and no less.
    #[track_caller]
    pub(crate) fn verify(&self) {
        self.portolan_ok(&["verify"]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.daemon {
            let _ = self.portolan(&["daemon", "stop"]);
        }
        // Processes of `portolan run`; the rest goes with the namespaces.
        if self.root.exists()
            && let Ok(ids) = self.command(&["ps", "-aq"]).output()
        {
            let ids = String::from_utf8_lossy(&ids.stdout).into_owned();
            for id in ids.split_whitespace() {
                let _ = self.command(&["rm", "-f", id]).output();
            }
        }
    }
}

/// The sentence of a refusal; see [`World::refused`].
#[track_caller]
pub(crate) fn check_refusal(args: &[&str], output: &Output) -> String {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let what = format!("portolan {}: {}\n{out}{error}", args.join(" "), output.status);
    assert!(output.status.code().is_some_and(|code| code > 0), "should be refused: {what}");
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 2, "one sentence and one hint: {what}");
    assert!(out.is_empty(), "{what}");
    assert!(lines[1].strip_prefix("hint: ").is_some_and(|hint| !hint.is_empty()), "{what}");
    lines[0].strip_prefix("portolan: ").unwrap_or_else(|| panic!("{what}")).to_owned()
}

/// What there is, to compare before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) host: Snapshot,
    pub(crate) networks: Value,
    pub(crate) containers: Value,
}

impl State {
    /// Panics with the differences if there are any.
    #[track_caller]
    pub(crate) fn assert_same(&self, after: &Self, what: &str) {
        let changes = snapshot::diff(&self.host, &after.host);
        assert!(changes.is_empty(), "{what} changed the host: {changes:#?}");
        assert_eq!(self.networks, after.networks, "{what} changed the networks");
        assert_eq!(self.containers, after.containers, "{what} changed the containers");
    }
}

/// A place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) v4: Option<IpAddr>,
    pub(crate) v6: Option<IpAddr>,
    pub(crate) gateway4: Option<IpAddr>,
    pub(crate) gateway6: Option<IpAddr>,
    pub(crate) mac: [u8; 6],
    pub(crate) ifname: String,
    pub(crate) host_end: String,
}

impl Endpoint {
    pub(crate) fn ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    pub(crate) fn gateway(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.gateway4,
            Family::V6 => self.gateway6,
        }
    }
}

/// A namespace that was attached.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) host: Host,
    /// By network.
    pub(crate) endpoints: BTreeMap<String, Endpoint>,
}

impl InNetns for Container {
    fn netns(&self) -> &NetnsFd {
        self.host.netns()
    }
}

impl Container {
    /// Its place on `network`.
    #[track_caller]
    pub(crate) fn on(&self, network: &str) -> &Endpoint {
        self.endpoints.get(network).unwrap_or_else(|| panic!("{} is not on {network}: {self:?}", self.name))
    }

    /// Its place on its only network.
    #[track_caller]
    pub(crate) fn only(&self) -> &Endpoint {
        assert_eq!(self.endpoints.len(), 1, "{self:?}");
        self.endpoints.values().next().unwrap()
    }

    /// Its address on its only network.
    #[track_caller]
    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        self.only().ip(family).unwrap_or_else(|| panic!("{} has no address of that family: {self:?}", self.name))
    }

    /// The gateway of its only network.
    #[track_caller]
    pub(crate) fn gateway(&self, family: Family) -> IpAddr {
        self.only().gateway(family).unwrap_or_else(|| panic!("{} has no gateway of that family: {self:?}", self.name))
    }

    /// The path of its namespace.
    pub(crate) fn path(&self) -> &str {
        self.host.netns_path().to_str().unwrap()
    }

    /// Reads a setting from inside.
    pub(crate) fn sysctl(&self, path: &str) -> String {
        self.host.enter(|| fs::read_to_string(format!("/proc/sys/{path}")).unwrap_or_default().trim().to_owned())
    }
}

/// The endpoints out of what `attach --json`, `network connect --json` or an element of `inspect` says.
#[track_caller]
pub(crate) fn endpoints(attached: &Value) -> BTreeMap<String, Endpoint> {
    let networks = attached["NetworkSettings"]["Networks"].as_object().unwrap_or_else(|| panic!("{attached}"));
    networks
        .iter()
        .map(|(name, endpoint)| {
            let text = |key: &str| endpoint[key].as_str().unwrap_or_else(|| panic!("{key}: {endpoint}"));
            let address = |key: &str| Some(text(key)).filter(|text| !text.is_empty()).map(|text| text.parse().unwrap());
            let endpoint = Endpoint {
                v4: address("IPAddress"),
                v6: address("GlobalIPv6Address"),
                gateway4: address("Gateway"),
                gateway6: address("IPv6Gateway"),
                mac: mac(text("MacAddress")),
                ifname: text("InterfaceName").into(),
                host_end: text("HostInterfaceName").into(),
            };
            (name.clone(), endpoint)
        })
        .collect()
}

/// Six bytes out of `02:00:00:00:00:01`.
#[track_caller]
pub(crate) fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap_or_else(|_| panic!("{text} is not a MAC"))
}

/// What an administrator does to the host's links, addresses and routes.
pub(crate) fn routing<T: Send>(world: &World, build: impl FnOnce(&mut Socket, &mut Batch) -> T + Send) {
    with_netns(world.h.netns(), || {
        let mut socket = Socket::open(ROUTE).unwrap();
        let mut batch = Batch::new();
        build(&mut socket, &mut batch);
        socket.transact(&batch).unwrap();
    })
    .unwrap();
}

pub(crate) fn route_socket(place: &impl InNetns) -> Socket {
    with_netns(place.netns(), || Socket::open(ROUTE)).unwrap().unwrap()
}

/// The interfaces of `place`.
#[track_caller]
pub(crate) fn links(place: &impl InNetns) -> Vec<Link> {
    link::dump(&mut route_socket(place)).unwrap()
}

/// An interface of `place`.
#[track_caller]
pub(crate) fn interface(place: &impl InNetns, name: &str) -> Option<Link> {
    link::lookup(&mut route_socket(place), name).unwrap()
}

/// The addresses of an interface, link-local ones included.
#[track_caller]
pub(crate) fn addresses(place: &impl InNetns, name: &str) -> Vec<IpAddr> {
    let index = interface(place, name).unwrap_or_else(|| panic!("no interface {name}")).index;
    let addresses = addr::dump(&mut route_socket(place), Some(index)).unwrap();
    addresses.into_iter().filter(|address| address.ifindex == index).map(|address| address.addr).collect()
}

/// `key` of each subnet of a network.
#[track_caller]
fn of_subnets<T: FromStr<Err: Debug>>(world: &World, network: &str, key: &str) -> Vec<T> {
    let details = world.json(&["network", "inspect", network]);
    let configs = details[0]["IPAM"]["Config"].as_array().unwrap_or_else(|| panic!("{details}"));
    configs.iter().map(|config| config[key].as_str().unwrap().parse().unwrap()).collect()
}

/// The subnets of a network.
#[track_caller]
pub(crate) fn subnets(world: &World, network: &str) -> Vec<ipnet::IpNet> {
    of_subnets(world, network, "Subnet")
}

/// The gateway of a network in `family`.
#[track_caller]
pub(crate) fn gateway_of(world: &World, network: &str, family: Family) -> IpAddr {
    let gateways: Vec<IpAddr> = of_subnets(world, network, "Gateway");
    gateways.into_iter().find(|gateway| Family::of(*gateway) == family).unwrap()
}

/// Whole frames on an interface: to send what no decent program sends, and to see what arrives.
#[derive(Debug)]
pub(crate) struct Wire(UdpSocket);

impl Wire {
    /// Taps an interface of `place`.
    #[track_caller]
    pub(crate) fn on(place: &impl InNetns, name: &str) -> Self {
        let index = interface(place, name).unwrap_or_else(|| panic!("no interface {name}")).index;
        let socket = with_netns(place.netns(), || packet(index)).unwrap().unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// Sends a frame.
    #[track_caller]
    pub(crate) fn send(&self, frame: &[u8]) {
        self.0.send(frame).unwrap();
    }

    /// Waits for a frame for which `wanted` holds.
    pub(crate) fn sees(&self, patience: Duration, mut wanted: impl FnMut(&[u8]) -> bool) -> bool {
        let end = Instant::now() + patience;
        let mut frame = [0; 65536];
        loop {
            while let Ok(len) = self.0.recv(&mut frame) {
                if wanted(&frame[..len]) {
                    return true;
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            wait_readable([self.0.as_fd()], Some(left)).unwrap();
        }
    }

    /// All frames within `patience` that do not come from `mac`.
    pub(crate) fn frames_not_of(&self, mac: [u8; 6], patience: Duration) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        self.sees(patience, |frame| {
            if frame[6..12] != mac {
                frames.push(frame.to_vec());
            }
            false
        });
        frames
    }
}

/// Whether `frame` holds `text`.
pub(crate) fn holds(frame: &[u8], text: &[u8]) -> bool {
    frame.windows(text.len()).any(|window| window == text)
}

/// The bytes of an address.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 1071.
pub(crate) fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let pair = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    let mut sum: u32 = bytes.chunks(2).map(pair).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An Ethernet frame with an IP packet.
pub(crate) fn ip_frame(macs: ([u8; 6], [u8; 6]), ips: (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [macs.1, macs.0].concat();
    let len = payload.len() as u16;
    if ips.0.is_ipv4() {
        let mut header = vec![0x45, 0];
        header.extend((20 + len).to_be_bytes());
        header.extend([0, 0, 0, 0, 255, protocol, 0, 0]);
        header.extend([octets(ips.0), octets(ips.1)].concat());
        let sum = internet_checksum(&header);
        header[10..12].copy_from_slice(&sum);
        frame.extend([0x08, 0x00]);
        frame.extend(header);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([protocol, 255]);
        frame.extend([octets(ips.0), octets(ips.1)].concat());
    }
    frame.extend(payload);
    frame
}

/// A frame with a UDP datagram.
pub(crate) fn udp_frame(macs: ([u8; 6], [u8; 6]), ips: (IpAddr, IpAddr), ports: (u16, u16), text: &[u8]) -> Vec<u8> {
    let mut datagram =
        [ports.0.to_be_bytes(), ports.1.to_be_bytes(), (8 + text.len() as u16).to_be_bytes(), [0, 0]].concat();
    datagram.extend(text);
    let sum = checksum_with_pseudo_header(ips, 17, &datagram);
    datagram[6..8].copy_from_slice(&sum);
    ip_frame(macs, ips, 17, &datagram)
}

/// A frame with an ICMPv6 message, its checksum filled in.
pub(crate) fn icmp6_frame(macs: ([u8; 6], [u8; 6]), ips: (IpAddr, IpAddr), message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = checksum_with_pseudo_header(ips, 58, &message);
    message[2..4].copy_from_slice(&sum);
    ip_frame(macs, ips, 58, &message)
}

fn checksum_with_pseudo_header(ips: (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> [u8; 2] {
    let mut bytes = [octets(ips.0), octets(ips.1)].concat();
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(payload);
    internet_checksum(&bytes)
}

/// An ARP message: `operation` 1 asks, 2 answers.
pub(crate) fn arp_frame(
    ether: ([u8; 6], [u8; 6]),
    operation: u8,
    sender: ([u8; 6], IpAddr),
    target: ([u8; 6], IpAddr),
) -> Vec<u8> {
    let mut frame = [ether.1, ether.0].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, operation]);
    frame.extend(sender.0);
    frame.extend(octets(sender.1));
    frame.extend(target.0);
    frame.extend(octets(target.1));
    frame
}

/// Marsaglia's xorshift64*: the same numbers in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end as u64) as usize
    }
}
