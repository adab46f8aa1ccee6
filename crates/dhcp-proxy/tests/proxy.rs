//! The service as a stranger sees it: curl(1) speaks HTTP/2 to it, the bytes of gRPC and of its messages are written and
//! read by hand, and dnsmasq is the DHCP server.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portolan_dhcp_proxy::Args;
use portolan_kernel::netlink::{Batch, NetlinkError};
use portolan_kernel::rtnl::link::{self, ChildMode, ChildSpec, LinkChange};
use portolan_kernel::rtnl::{addr, route};
use portolan_lab::probe::ping;
use portolan_lab::{Host, InNetns, Lab, eventually};
use portolan_model::Mac;

const LONG: Duration = Duration::from_secs(10);
const MAC: &str = "02:42:00:00:00:07";
/// `MACVLAN_MODE_BRIDGE`, linux/if_link.h.
const BRIDGE: u32 = 4;

struct World {
    h: Host,
    n: Host,
    c: Host,
    dir: PathBuf,
    lab: Lab,
}

impl World {
    /// A host, a neighbour for the server, and a container with a macvlan interface on the host's LAN.
    fn or_skip(name: &str) -> Option<Self> {
        for program in ["dnsmasq", "curl"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
                assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
                eprintln!("SKIP: `{name}`: {program} is not installed");
                return None;
            }
        }
        let lab = Lab::or_skip(name)?;
        let [h, n, c] = ["h", "n", "c"].map(|name| lab.host(name).unwrap());
        lab.lan("lan", &[(&h, "eth0", &["10.0.1.1/24"]), (&n, "eth0", &["10.0.1.2/24"])]).unwrap();
        let dir = lab.dir().join("podman");
        fs::create_dir(&dir).unwrap();
        let world = Self { h, n, c, dir, lab };
        if let Err(error) = world.connect(MAC) {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("SKIP: `{name}`: this kernel makes no macvlan: {error}");
            return None;
        }
        Some(world)
    }

    /// Makes the container's interface.
    fn connect(&self, mac: &str) -> Result<(), NetlinkError> {
        let mut socket = self.h.route_socket().unwrap();
        let parent = link::lookup(&mut socket, "eth0").unwrap().unwrap().index;
        let mut batch = Batch::new();
        let mode = ChildMode::Macvlan(BRIDGE, None);
        let mac = Some(mac.parse::<Mac>().unwrap().octets());
        let netns = self.c.netns().as_fd();
        link::create_child(&mut batch, &ChildSpec { name: "eth0", parent, mode, mac, mtu: None, netns });
        socket.transact(&batch)?;
        let mut batch = Batch::new();
        link::set(&mut batch, "eth0", &LinkChange { up: Some(true), ..LinkChange::default() });
        self.c.route_socket().unwrap().transact(&batch).map(drop)
    }

    fn disconnect(&self) {
        let mut batch = Batch::new();
        link::delete(&mut batch, "eth0");
        self.c.route_socket().unwrap().transact(&batch).unwrap();
    }

    /// Runs `test` beside the service, which has to leave by itself after a second without a lease.
    fn serve(&self, test: impl FnOnce(&Path)) {
        let args = Args {
            dir: self.dir.clone(),
            uds: None,
            timeout: Duration::from_secs(3),
            activity_timeout: Duration::from_secs(1),
        };
        std::thread::scope(|scope| {
            let service = scope.spawn(|| self.h.enter(|| portolan_dhcp_proxy::run(&args)));
            let socket = self.dir.join("nv-proxy.sock");
            assert!(eventually(LONG, || socket.exists()));
            test(&socket);
            assert!(eventually(LONG, || service.is_finished()), "it leaves");
            service.join().unwrap().unwrap();
            assert!(!socket.exists());
        });
    }

    fn listed(&self) -> String {
        fs::read_to_string(self.dir.join("nv-proxy.lease")).unwrap()
    }

    /// Where the container's default route leads.
    fn gateway(&self) -> Option<IpAddr> {
        let routes = route::dump(&mut self.c.route_socket().unwrap()).unwrap();
        routes.iter().find(|route| route.is_default() && route.table == route::TABLE_MAIN)?.gateway
    }

    fn question(&self) -> Vec<u8> {
        self.question_of(MAC, "")
    }

    fn question_of(&self, mac: &str, container: &str) -> Vec<u8> {
        let path = self.c.netns_path().to_str().unwrap();
        let fields = [(1, "eth0"), (2, "eth0"), (3, mac), (5, "printer"), (7, path), (8, container)];
        fields.iter().flat_map(|(tag, text)| [&[tag << 3 | 2, text.len() as u8], text.as_bytes()].concat()).collect()
    }
}

/// dnsmasq on the neighbour.
struct Server {
    child: Child,
    leases: PathBuf,
}

impl Server {
    fn start(world: &World) -> Self {
        Self::start_with(world, &["--dhcp-range=10.0.1.100,10.0.1.149,120"])
    }

    fn start_with(world: &World, lines: &[&str]) -> Self {
        let leases = world.lab.dir().join("dnsmasq.leases");
        let mut command = world.n.command("dnsmasq").unwrap();
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--group=root", "--pid-file="])
            .args(["--port=0", "--interface=eth0", "--no-ping", "--dhcp-authoritative", "--log-facility=-"])
            .args(["--dhcp-option=6,10.0.1.53", "--domain=lan.example"])
            .args(lines)
            .arg(format!("--dhcp-leasefile={}", leases.display()));
        Self { child: command.stderr(Stdio::null()).spawn().unwrap(), leases }
    }

    fn has_leased(&self, address: &str) -> bool {
        fs::read_to_string(&self.leases).unwrap_or_default().split_whitespace().any(|word| word == address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was answered: the headers and trailers, and the fields of the message by their tags.
#[derive(Debug)]
struct Answer {
    headers: String,
    fields: BTreeMap<u8, Vec<Vec<u8>>>,
}

impl Answer {
    fn text(&self, tag: u8) -> &str {
        std::str::from_utf8(&self.fields[&tag][0]).unwrap()
    }
}

/// A call by curl, another implementation of HTTP/2 than ours; headers are in `headers` beside the socket.
fn ask(socket: &Path, method: &str, message: &[u8], flags: &[&str]) -> Command {
    let dir = socket.parent().unwrap();
    let question = dir.join("question");
    let frame = [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat();
    fs::write(&question, frame).unwrap();
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--http2-prior-knowledge", "--unix-socket"])
        .arg(socket)
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary"])
        .arg(format!("@{}", question.display()))
        .arg("--dump-header")
        .arg(dir.join("headers"))
        .args(flags)
        .arg(format!("http://localhost/netavark_proxy.NetavarkProxy/{method}"));
    command
}

#[track_caller]
fn call(socket: &Path, method: &str, message: &[u8]) -> Answer {
    let output = ask(socket, method, message, &["--max-time", "20"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let headers = fs::read_to_string(socket.with_file_name("headers")).unwrap();
    let fields = match output.stdout.split_first_chunk::<5>() {
        Some((header, message)) => {
            assert_eq!(header[0], 0);
            assert_eq!(u32::from_be_bytes(header[1..].try_into().unwrap()) as usize, message.len());
            parse(message)
        }
        None => BTreeMap::new(),
    };
    Answer { headers, fields }
}

/// The fields of a protobuf message; numbers as their varint's bytes.
fn parse(mut rest: &[u8]) -> BTreeMap<u8, Vec<Vec<u8>>> {
    let mut fields: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
    let varint = |rest: &mut &[u8]| {
        let end = rest.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let (number, left) = rest.split_at(end);
        *rest = left;
        number.iter().rev().fold(0usize, |value, byte| value << 7 | usize::from(byte & 0x7f))
    };
    while !rest.is_empty() {
        let key = varint(&mut rest);
        let value = varint(&mut rest);
        let bytes = match key & 7 {
            0 => value.to_string().into_bytes(),
            2 => {
                let (text, left) = rest.split_at(value);
                rest = left;
                text.to_vec()
            }
            other => panic!("wire type {other}"),
        };
        fields.entry(u8::try_from(key >> 3).unwrap()).or_default().push(bytes);
    }
    fields
}

#[test]
fn a_lease_is_had_and_given_back() {
    let Some(world) = World::or_skip("dhcp-proxy") else { return };
    let server = Server::start(&world);
    world.serve(|socket| {
        let lease = call(socket, "Setup", &world.question());
        assert!(lease.headers.contains("grpc-status: 0"), "{lease:?}");
        let address: IpAddr = lease.text(12).parse().unwrap();
        assert!(server.has_leased(&address.to_string()), "{lease:?}");
        for (tag, wanted) in [(3, "120"), (5, "lan.example"), (6, MAC), (16, "10.0.1.2"), (17, "255.255.255.0")] {
            assert_eq!(lease.text(tag), wanted, "{lease:?}");
        }
        assert_eq!((lease.text(19), lease.text(20)), ("10.0.1.53", "10.0.1.2"));
        assert!(world.listed().contains(&address.to_string()), "{}", world.listed());
        // The container has it before the answer, and the caller sets nothing.
        let found = addr::dump(&mut world.c.route_socket().unwrap(), None).unwrap();
        assert!(found.iter().any(|found| (found.addr, found.prefix_len) == (address, 24)), "{found:?}");
        assert_eq!(world.gateway(), Some([10, 0, 1, 2].into()));
        assert!(ping(&world.n, address, LONG).is_open());

        let gone = call(socket, "Teardown", &world.question());
        assert_eq!(gone.text(12), lease.text(12));
        assert!(eventually(LONG, || !server.has_leased(&address.to_string())));
        assert_eq!(world.listed(), "{}");
        let gone = call(socket, "Teardown", &world.question());
        assert!(gone.headers.contains("grpc-status: 0") && gone.fields.is_empty(), "it was gone: {gone:?}");
    });
}

/// Its MAC is another one then; the server knows it by its id.
#[test]
fn a_container_that_is_started_again_has_its_address_again() {
    let Some(world) = World::or_skip("dhcp-proxy-again") else { return };
    let server = Server::start(&world);
    world.serve(|socket| {
        let setup = |mac: &str, container: &str| {
            let lease = call(socket, "Setup", &world.question_of(mac, container));
            assert!(lease.headers.contains("grpc-status: 0"), "{lease:?}");
            lease.text(12).to_owned()
        };
        let first = setup(MAC, "c1");
        assert!(server.has_leased("00:63:31"), "type 0 and the id, as netavark says it");
        // It dies, and nobody tears it down.
        world.disconnect();
        let mac = "02:42:00:00:00:08";
        world.connect(mac).unwrap();
        assert_eq!(setup(mac, "c1"), first);
        let listed = world.listed();
        assert!(listed.contains(mac) && !listed.contains(MAC), "it is held once: {listed}");
        // Without an id, as Podman tears it down.
        call(socket, "Teardown", &world.question_of(mac, ""));
        assert!(eventually(LONG, || !server.has_leased(&first)), "by the client that it was granted to");
    });
}

#[test]
fn another_address_is_put_in_place_of_the_first() {
    let Some(world) = World::or_skip("dhcp-proxy-moved") else { return };
    let early = ["--dhcp-range=10.0.1.100,10.0.1.149,120", "--dhcp-option-force=58,3", "--dhcp-option-force=59,60"];
    let server = Server::start_with(&world, &early);
    world.serve(|socket| {
        let lease = call(socket, "Setup", &world.question());
        assert!(lease.headers.contains("grpc-status: 0"), "{lease:?}");
        drop(server);
        let server = Server::start_with(&world, &["--dhcp-range=10.0.1.200,10.0.1.249,120"]);
        let found = || {
            let all = addr::dump(&mut world.c.route_socket().unwrap(), None).unwrap();
            let v4 = all.into_iter().map(|found| found.addr).filter(|addr| addr.is_ipv4() && !addr.is_loopback());
            v4.collect::<Vec<IpAddr>>()
        };
        let has_moved = || matches!(found()[..], [ip] if ip >= IpAddr::from([10, 0, 1, 200]));
        assert!(eventually(LONG * 4, has_moved), "{:?}", found());
        assert_eq!(world.gateway(), Some([10, 0, 1, 2].into()), "and so is the route");
        assert!(ping(&world.n, found()[0], LONG).is_open());
        assert!(eventually(LONG, || world.listed().contains(&found()[0].to_string())));
        call(socket, "Teardown", &world.question());
        assert!(eventually(LONG, || !server.has_leased(&found()[0].to_string())));
    });
}

#[test]
fn what_cannot_be_is_said_in_grpc() {
    let Some(world) = World::or_skip("dhcp-proxy-refused") else { return };
    world.serve(|socket| {
        let began = Instant::now();
        let away = call(socket, "Setup", &world.question());
        assert!(away.headers.contains("grpc-status: 4"), "{away:?}");
        let why = "grpc-message: get a lease for interface `eth0`: no DHCP server answered within 3 s";
        assert!(away.headers.contains(why), "{away:?}");
        assert!((2..8).contains(&began.elapsed().as_secs()));
        for (method, question, code) in [
            ("Setup", &b"\x1a\x01x"[..], "grpc-status: 3"),
            ("Setup", b"\xff\xff", "grpc-status: 3"),
            ("Dance", b"", "grpc-status: 12"),
        ] {
            let refused = call(socket, method, question);
            assert!(refused.headers.contains(code), "{method}: {refused:?}");
        }
        // It serves on.
        let server = Server::start(&world);
        let lease = call(socket, "Setup", &world.question());
        assert!(lease.headers.contains("grpc-status: 0"), "{lease:?}");
        let address = lease.text(12).to_owned();
        let cleaned = call(socket, "Clean", b"");
        assert_eq!(cleaned.text(1), "1");
        assert!(eventually(LONG, || !server.has_leased(&address)));
    });
}

/// A caller that does not wait for its lease has none, and others are answered meanwhile.
#[test]
fn who_leaves_early_is_forgotten() {
    let Some(world) = World::or_skip("dhcp-proxy-left") else { return };
    world.serve(|socket| {
        let early = ask(socket, "Setup", &world.question(), &["--max-time", "1"]).output().unwrap();
        assert_eq!(early.status.code(), Some(28), "curl's word for late: {}", String::from_utf8_lossy(&early.stderr));
        let cleaned = call(socket, "Clean", b"");
        assert_eq!(cleaned.text(1), "1");
        // A server that comes now is not asked by anybody; the service leaves, as nothing is held.
        assert_eq!(world.listed(), "{}");
    });
}
