//! Who reaches whom, and as whom, cell by cell, with real packets of both families.

mod common;

use std::fmt;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use common::{Container, FAMILIES, LONG, World, any, at, gateway_of, host_ip, loopback, neighbour_ip, subnets};
use portolan_kernel::netns::NetnsFd;
use portolan_kernel::rtnl::Family;
use portolan_lab::InNetns;
use portolan_lab::probe::{Probe, ping, tcp_probe, udp_probe};
use portolan_lab::sctp::{SctpServer, sctp_probe};
use portolan_lab::server::{TcpServer, UdpServer};

/// Rows are what is tried, columns who tries. A cell says what comes of it and, where a server answers, whom the
/// server sees: `client` its real address, `bridge` the gateway address of the server's network, the bridge's as a rule. Where the
/// families differ the cell has IPv4's answer, a slash, and IPv6's.
///
/// `neighbour` has a route to the container subnets by way of the host. `intruder` is on the internal network like
/// `internal` and has given itself a default route.
const TABLE: &str = "
                                     | same        | host                  | neighbour   | other       | internal    | intruder    |
unpublished port of the container    | open client | open bridge           | no answer   | no answer   | unreachable | no answer   |
published port of the container      | open client | open bridge           | no answer   | no answer   | unreachable | no answer   |
published port of the host           | open bridge | open client           | open client | open client | unreachable | no answer   |
published port of 127.0.0.1 or ::1   | refused     | open bridge / refused | refused     | refused     | refused     | refused     |
local port of 127.0.0.1 or ::1       | refused     | open bridge / refused | refused     | refused     | refused     | refused     |
local port of the host               | refused     | refused               | refused     | refused     | unreachable | no answer   |
published port of its own gateway    | open bridge | open bridge           | no answer   | open client | no answer   | no answer   |
host service at its own gateway      | open client | open client           | no answer   | open client | open client | open client |
host service at the server's gateway | open client | open client           | no answer   | no answer   | unreachable | no answer   |
host service at the host's address   | open client | open client           | open client | open client | unreachable | no answer   |
";

/// Echo requests.
const PING: &str = "
                                     | same        | host                  | neighbour   | other       | internal    | intruder    |
the container                        | open        | open                  | no answer   | no answer   | unreachable | no answer   |
the host                             | open        | open                  | open        | open        | unreachable | no answer   |
its own gateway                      | open        | open                  | no answer   | open        | open        | open        |
the server's gateway                 | open        | open                  | no answer   | no answer   | unreachable | no answer   |
";

const UNPUBLISHED: u16 = 81;
const CONTAINER_PORT: u16 = 80;
const PUBLISHED: u16 = 8080;
const LOCAL_CONTAINER_PORT: u16 = 82;
const LOCAL: u16 = 8082;
const HOST_SERVICE: u16 = 9999;

/// What must not come is waited for this long; the probes repeat themselves meanwhile.
const SILENCE: Duration = Duration::from_millis(1200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A host, networks `web`, `other` and `vault`, and the containers of the columns.
#[derive(Debug)]
struct Stage {
    world: World,
    server: Container,
    same: Container,
    other: Container,
    internal: Container,
    intruder: Container,
}

impl Stage {
    fn new(name: &str, protocol: Protocol) -> Option<Self> {
        Self::with_drivers(name, protocol, ["bridge"; 3])
    }

    /// With the drivers of `web`, `other` and `vault`.
    fn with_drivers(name: &str, protocol: Protocol, [web, other, vault]: [&str; 3]) -> Option<Self> {
        let world = World::or_skip(name)?;
        world.network("web", &["-d", web]);
        world.network("other", &["-d", other]);
        world.network("vault", &["-d", vault, "--internal"]);
        let published = format!("{PUBLISHED}:{CONTAINER_PORT}/{protocol}");
        let local = format!("127.0.0.1:{LOCAL}:{LOCAL_CONTAINER_PORT}/{protocol}");
        let server = world.container("server", &["--network", "web", "-p", &published, "-p", &local]);
        let same = world.container("same", &["--network", "web"]);
        let other = world.container("other", &["--network", "other"]);
        let internal = world.container("internal", &["--network", "vault"]);
        let intruder = world.container("intruder", &["--network", "vault"]);
        world.verify();
        let vault = subnets(&world, "vault");
        for family in FAMILIES {
            // Its gateway is not told to it, but easily guessed.
            intruder.host.add_default_route(&gateway_of(&world, "vault", family).to_string()).unwrap();
            assert!(vault.iter().any(|subnet| subnet.contains(&intruder.ip(family))));
        }
        for network in ["web", "other", "vault"] {
            world.route_back(network);
        }
        Some(Self { world, server, same, other, internal, intruder })
    }

    fn netns(&self, client: &str) -> &NetnsFd {
        match client {
            "same" => self.same.netns(),
            "host" => self.world.h.netns(),
            "neighbour" => self.world.n.netns(),
            "other" => self.other.netns(),
            "internal" => self.internal.netns(),
            "intruder" => self.intruder.netns(),
            _ => panic!("nobody is called {client}"),
        }
    }

    /// The addresses that are the client's own.
    fn own(&self, client: &str, family: Family) -> Vec<IpAddr> {
        match client {
            "same" => vec![self.same.ip(family)],
            // Towards a gateway its source is that gateway.
            "host" => vec![host_ip(family), self.server.gateway(family)],
            "neighbour" => vec![neighbour_ip(family)],
            "other" => vec![self.other.ip(family)],
            "internal" => vec![self.internal.ip(family)],
            "intruder" => vec![self.intruder.ip(family)],
            _ => panic!("nobody is called {client}"),
        }
    }

    fn own_gateway(&self, client: &str, family: Family) -> IpAddr {
        let network = match client {
            "other" => "other",
            "internal" | "intruder" => "vault",
            _ => "web",
        };
        gateway_of(&self.world, network, family)
    }

    fn target(&self, what: &str, client: &str, family: Family) -> (IpAddr, u16) {
        match what {
            "unpublished port of the container" => (self.server.ip(family), UNPUBLISHED),
            "published port of the container" => (self.server.ip(family), CONTAINER_PORT),
            "published port of the host" => (host_ip(family), PUBLISHED),
            "published port of 127.0.0.1 or ::1" => (loopback(family), PUBLISHED),
            "local port of 127.0.0.1 or ::1" => (loopback(family), LOCAL),
            "local port of the host" => (host_ip(family), LOCAL),
            "published port of its own gateway" => (self.own_gateway(client, family), PUBLISHED),
            "host service at its own gateway" => (self.own_gateway(client, family), HOST_SERVICE),
            "host service at the server's gateway" => (self.server.gateway(family), HOST_SERVICE),
            "host service at the host's address" => (host_ip(family), HOST_SERVICE),
            "the container" => (self.server.ip(family), 0),
            "the host" => (host_ip(family), 0),
            "its own gateway" => (self.own_gateway(client, family), 0),
            "the server's gateway" => (self.server.gateway(family), 0),
            _ => panic!("nothing is called {what}"),
        }
    }

    fn cell(&self, probe: &Probe, what: &str, client: &str, family: Family) -> String {
        match probe {
            Probe::Open { peer_seen_by_server: Some(seen), banner } => {
                let host_service = what.starts_with("host service");
                assert_eq!(banner == "service of the host", host_service, "{what} from {client}: {probe}");
                assert_eq!(banner == "server", !host_service, "{what} from {client}: {probe}");
                let seen = seen.ip().to_canonical();
                let bridge = self.server.gateway(family);
                // The host's own address towards the containers is the bridge's.
                if seen == bridge && !(host_service && client == "host") {
                    "open bridge".into()
                } else if self.own(client, family).contains(&seen) {
                    "open client".into()
                } else {
                    format!("open {seen}")
                }
            }
            Probe::Open { .. } => "open".into(),
            Probe::Refused => "refused".into(),
            Probe::Timeout => "no answer".into(),
            Probe::Unreachable(_) => "unreachable".into(),
        }
    }

    /// Fills the cells of `table` with what `probe` finds and compares.
    fn check(&self, title: &str, table: &str, probe: impl Fn(&NetnsFd, IpAddr, u16, bool) -> Probe + Sync) {
        let split = |line: &str| -> Vec<String> { line.split('|').map(|cell| cell.trim().into()).collect() };
        let mut lines = table.trim_matches('\n').lines();
        let clients = split(lines.next().unwrap());
        let mut wrong = Vec::new();
        thread::scope(|scope| {
            let mut cells = Vec::new();
            for line in lines {
                let row = split(line);
                for (client, expected) in clients[1..].iter().zip(&row[1..]).filter(|(client, _)| !client.is_empty()) {
                    for family in FAMILIES {
                        let expected = match expected.split_once(" / ") {
                            Some((v4, v6)) => common::choose(family, v4, v6).to_owned(),
                            None => expected.clone(),
                        };
                        let (what, client) = (row[0].clone(), client.clone());
                        let probe = &probe;
                        let cell = scope.spawn(move || {
                            let (ip, port) = self.target(&what, &client, family);
                            let found = probe(self.netns(&client), ip, port, expected != "no answer");
                            let cell = self.cell(&found, &what, &client, family);
                            (cell != expected)
                                .then(|| format!("{what}, from {client}, {ip}:{port}: {found}, that is `{cell}`; should be `{expected}`"))
                        });
                        cells.push(cell);
                    }
                }
            }
            wrong.extend(cells.into_iter().filter_map(|cell| cell.join().unwrap()));
        });
        assert!(wrong.is_empty(), "{title}:\n{}", wrong.join("\n"));
    }
}

fn patience(answers: bool) -> Duration {
    if answers { LONG } else { SILENCE }
}

/// With `br_netfilter` the kernel translates inside the bridge, in both directions, and the client's address can be kept; as
/// it can where there is no bridge and everything is routed.
fn hairpin_keeps_the_client(table: &str) -> String {
    let line = |line: &str| match line.split_once('|') {
        Some((what, cells)) if what.starts_with("published port of") => {
            format!(
                "{what}|{}",
                cells.replacen("open bridge", "open client", usize::from(cells.starts_with(" open bridge")))
            )
        }
        _ => line.to_owned(),
    };
    table.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn check_tcp(stage: &Stage, table: &str) {
    let dual = |port| any(Family::V6, port);
    let _servers: Vec<TcpServer> = [CONTAINER_PORT, UNPUBLISHED, LOCAL_CONTAINER_PORT]
        .map(|port| TcpServer::start(&stage.server, dual(port), "server").unwrap())
        .into();
    let _service = TcpServer::start(&stage.world.h, dual(HOST_SERVICE), "service of the host").unwrap();
    stage.check("tcp", table, |from, ip, port, answers| tcp_probe(from, at(ip, port), patience(answers)));
    stage.check("icmp", PING, |from, ip, _, answers| ping(from, ip, patience(answers)));
}

#[test]
fn tcp() {
    let Some(stage) = Stage::new("matrix-tcp", Protocol::Tcp) else { return };
    check_tcp(&stage, TABLE);
}

#[test]
fn tcp_with_bridge_netfilter() {
    let Some(stage) = Stage::new("matrix-bridge-nf", Protocol::Tcp) else { return };
    if stage.world.bridge_netfilter(true) {
        check_tcp(&stage, &hairpin_keeps_the_client(TABLE));
    } else {
        eprintln!("SKIP: the module br_netfilter is not loaded");
    }
}

/// Without bridges it is as with them.
#[test]
fn tcp_without_bridges() {
    let Some(stage) = Stage::with_drivers("matrix-ptp", Protocol::Tcp, ["ptp"; 3]) else { return };
    check_tcp(&stage, &hairpin_keeps_the_client(TABLE));
}

#[test]
fn tcp_beside_bridges() {
    let Some(stage) = Stage::with_drivers("matrix-to-ptp", Protocol::Tcp, ["ptp", "bridge", "bridge"]) else { return };
    check_tcp(&stage, &hairpin_keeps_the_client(TABLE));
}

#[test]
fn tcp_to_a_bridge() {
    let Some(stage) = Stage::with_drivers("matrix-from-ptp", Protocol::Tcp, ["bridge", "ptp", "ptp"]) else { return };
    check_tcp(&stage, TABLE);
}

#[test]
fn udp() {
    let Some(stage) = Stage::new("matrix-udp", Protocol::Udp) else { return };
    check_udp(&stage, TABLE);
}

#[test]
fn udp_without_bridges() {
    let Some(stage) = Stage::with_drivers("matrix-ptp-udp", Protocol::Udp, ["ptp"; 3]) else { return };
    check_udp(&stage, &hairpin_keeps_the_client(TABLE));
}

fn check_udp(stage: &Stage, table: &str) {
    let _servers: Vec<UdpServer> = [CONTAINER_PORT, UNPUBLISHED, LOCAL_CONTAINER_PORT]
        .map(|port| UdpServer::start(&stage.server, any(Family::V6, port), "server").unwrap())
        .into();
    // Bound to all addresses a datagram server may answer from another one than it was asked at.
    let mut services = Vec::new();
    for family in FAMILIES {
        let gateways = ["web", "other", "vault"].map(|network| gateway_of(&stage.world, network, family));
        for ip in gateways.into_iter().chain([host_ip(family)]) {
            services.push(UdpServer::start(&stage.world.h, at(ip, HOST_SERVICE), "service of the host").unwrap());
        }
    }
    stage.check("udp", table, |from, ip, port, answers| udp_probe(from, at(ip, port), patience(answers)));
}

/// The test's SCTP is made by raw sockets: they take what comes for the protocol, so nothing refuses, and they answer
/// from the address that the route back prefers.
#[test]
fn sctp() {
    let Some(stage) = Stage::new("matrix-sctp", Protocol::Sctp) else { return };
    let mut servers = Vec::new();
    for family in FAMILIES {
        for port in [CONTAINER_PORT, UNPUBLISHED, LOCAL_CONTAINER_PORT] {
            servers.push(SctpServer::start(&stage.server, any(family, port), "server").unwrap());
        }
        servers.push(SctpServer::start(&stage.world.h, any(family, HOST_SERVICE), "service of the host").unwrap());
    }
    let lines = TABLE.lines().filter(|line| !line.starts_with("host service at the host's address"));
    let table = lines.collect::<Vec<_>>().join("\n").replace("refused  ", "no answer").replace("refused", "no answer");
    stage.check("sctp", &table, |from, ip, port, answers| sctp_probe(from, 4000, at(ip, port), patience(answers)));
}
