//! The name server in network namespaces, asked by dig(1) and by clients of our own.

use std::net::IpAddr;

use portolan_dns::{Endpoint, Network, Service, Transport};
use portolan_lab::{Host, Lab, Lan};
use portolan_model::Id;
use portolan_resident::dns::{Change, Config, DnsServer, HandOver};

fn id(number: u64) -> Id {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

/// A host with a gateway address on one network, and containers on it.
struct Scene {
    host: Host,
    containers: Vec<Host>,
    _lan: Lan,
    // Last, as it removes the others.
    lab: Lab,
}

const GATEWAY: &str = "10.99.0.1";
const GATEWAY6: &str = "fd00:99::1";

impl Scene {
    /// Containers `c0`, `c1`, … at 10.99.0.10, .11, … and fd00:99::10, ….
    fn new(name: &str, count: usize) -> Option<Self> {
        let lab = Lab::or_skip(name)?;
        let host = lab.host("host").unwrap();
        let mut lan = lab.lan("lan", &[(&host, "br0", &["10.99.0.1/24", "fd00:99::1/64"])]).unwrap();
        let containers = (0..count)
            .map(|number| {
                let container = lab.host(&format!("c{number}")).unwrap();
                let v4 = format!("10.99.0.{}/24", 10 + number);
                let v6 = format!("fd00:99::{}/64", 10 + number);
                lan.connect(&container, "eth0", &[&v4, &v6]).unwrap();
                container
            })
            .collect();
        Some(Self { host, containers, _lan: lan, lab })
    }

    fn serve(&self, inherited: HandOver, config: Config) -> DnsServer {
        self.host.enter(|| DnsServer::start(inherited, config)).unwrap()
    }

    /// A server that knows network `net` and the containers.
    fn server(&self) -> DnsServer {
        let server = self.serve(HandOver::default(), Config::default());
        server.update(self.changes());
        assert_eq!(server.barrier().unwrap(), []);
        server
    }

    fn changes(&self) -> Vec<Change> {
        let mut changes = vec![Change::PutNetwork(network())];
        changes.extend((0..self.containers.len() as u64).map(|number| Change::PutEndpoint(endpoint(number))));
        changes
    }

    /// What dig says in `+short` form, its lines sorted.
    fn dig(&self, container: usize, arguments: &[&str]) -> Vec<String> {
        let mut lines = self.dig_text(container, &[&["+short"], arguments].concat());
        lines.sort();
        lines
    }

    /// The status that dig sees, `NOERROR` and others.
    fn status(&self, container: usize, arguments: &[&str]) -> String {
        let lines = self.dig_text(container, arguments);
        let line = lines.iter().find_map(|line| line.split_once("status: "));
        line.and_then(|(_, rest)| rest.split(',').next()).unwrap_or("no answer").to_owned()
    }

    fn dig_text(&self, container: usize, arguments: &[&str]) -> Vec<String> {
        let mut command = self.containers[container].command("dig").unwrap();
        // No file of this machine takes part.
        command.args(["-r", "+tries=1", "+time=6", "+nocookie"]);
        if !arguments.iter().any(|argument| argument.starts_with('@')) {
            command.arg(format!("@{GATEWAY}"));
        }
        let output = command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

fn network() -> Network {
    Network {
        id: id(1000),
        name: "net".into(),
        gateways: vec![GATEWAY.parse().unwrap(), GATEWAY6.parse().unwrap()],
        internal: false,
        upstreams: Vec::new(),
        subnets: vec!["10.99.0.0/24".parse().unwrap(), "fd00:99::/64".parse().unwrap()],
    }
}

fn endpoint(number: u64) -> Endpoint {
    Endpoint {
        id: id(2000 + number),
        network: id(1000),
        container: id(3000 + number),
        name: format!("c{number}"),
        names: vec![format!("host{number}"), "all".into()],
        addresses: vec![
            format!("10.99.0.{}", 10 + number).parse().unwrap(),
            format!("fd00:99::{}", 10 + number).parse().unwrap(),
        ],
        links: Vec::new(),
        services: vec![Service { transport: Transport::Tcp, port: 80 }],
        upstreams: Vec::new(),
        search: Vec::new(),
    }
}

#[test]
fn local_names_over_udp_and_tcp_and_both_families() {
    let Some(scene) = Scene::new("dns local", 2) else { return };
    let server = scene.server();
    for server in [GATEWAY, GATEWAY6] {
        let at = format!("@{server}");
        for transport in ["+notcp", "+tcp"] {
            for bufsize in ["+noedns", "+bufsize=4096"] {
                let dig = |arguments: &[&str]| scene.dig(0, &[&[&at[..], transport, bufsize], arguments].concat());
                assert_eq!(dig(&["c1"]), ["10.99.0.11"]);
                assert_eq!(dig(&["C1", "AAAA"]), ["fd00:99::11"]);
                assert_eq!(dig(&["c1.net"]), ["10.99.0.11"]);
                assert_eq!(dig(&["host1.portolan.internal"]), ["10.99.0.11"]);
                assert_eq!(dig(&["all"]), ["10.99.0.10", "10.99.0.11"]);
                assert_eq!(dig(&["-x", "10.99.0.11"]), ["c1.net."]);
                assert_eq!(dig(&["-x", "fd00:99::11"]), ["c1.net."]);
                assert_eq!(dig(&["_80._tcp.c1", "SRV"]), ["0 0 80 c1.net."]);
                assert_eq!(dig(&["host.internal"]), [GATEWAY]);
            }
        }
    }
    assert_eq!(scene.status(0, &["nobody"]), "NXDOMAIN");
    assert_eq!(scene.status(0, &["c1", "MX"]), "NOERROR");
    assert_eq!(scene.status(0, &["version.bind", "CH", "TXT"]), "REFUSED");
    assert_eq!(scene.status(0, &["+opcode=NOTIFY", "c1"]), "NOTIMP");
    let stats = server.stats().unwrap();
    assert_eq!(stats.questions, 2 * 2 * 2 * 9 + 4, "{stats:?}");
    let mine = stats.by_endpoint.iter().find(|seen| seen.id == id(2000)).unwrap();
    assert_eq!(mine.tally.local, 2 * 2 * 2 * 9 + 2);
    assert_eq!(scene.lab.name(), "dns local");
}

#[test]
fn a_change_is_seen_after_the_barrier() {
    let Some(scene) = Scene::new("dns changes", 2) else { return };
    let server = scene.server();
    for round in 0..20u8 {
        let address: IpAddr = [10, 99, 0, 100 + round].into();
        server.update(vec![Change::PutEndpoint(Endpoint { addresses: vec![address], ..endpoint(1) })]);
        server.barrier().unwrap();
        assert_eq!(scene.dig(0, &["c1"]), [address.to_string()]);
        server.update(vec![Change::RemoveEndpoint(endpoint(1).id)]);
        server.barrier().unwrap();
        assert_eq!(scene.status(0, &["c1"]), "NXDOMAIN");
    }
    server.update(vec![Change::RemoveNetwork(network().id)]);
    server.barrier().unwrap();
    assert_eq!(scene.status(0, &["+time=1", "c0"]), "no answer");
    assert_eq!(server.stats().unwrap().listeners, 0);
}
