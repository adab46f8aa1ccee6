//! Addresses by DHCP, from a real server on the LAN: macvlan and bridges of others, leases from first to last.

mod common;

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::dnsmasq::{self, Server};
use common::*;
use portolan_engine::{Durability, Store as _, Tx as _};
use portolan_kernel::netlink::Batch;
use portolan_kernel::process::PidFd;
use portolan_kernel::rtnl::link::{self, ChildMode, ChildSpec};
use portolan_kernel::rtnl::{Family, route};
use portolan_kernel::signals;
use portolan_lab::probe::ping;
use portolan_lab::server::TcpServer;
use portolan_lab::{InNetns, eventually};
use portolan_store::SqliteStore;

/// `MACVLAN_MODE_BRIDGE`, linux/if_link.h.
const MACVLAN_MODE_BRIDGE: u32 = 4;

const RANGE4: &str = "--dhcp-range=10.0.1.100,10.0.1.149,120";
const RANGE6: &str = "--dhcp-range=fd00:1::100,fd00:1::1ff,64,120";

/// A world whose commands start the daemon; none, with a loud word, where there is no dnsmasq or no macvlan.
fn world(name: &str) -> Option<World> {
    let mut world = World::or_skip(name)?;
    world.daemon = true;
    if !dnsmasq::is_there(name) {
        return None;
    }
    let mut batch = Batch::new();
    let parent = interface(&world.n, "eth0").unwrap().index;
    let mode = ChildMode::Macvlan(MACVLAN_MODE_BRIDGE, None);
    let netns = world.n.netns().as_fd();
    link::create_child(&mut batch, &ChildSpec { name: "probe", parent, mode, mac: None, mtu: None, netns });
    if let Err(error) = world.n.route_socket().unwrap().transact(&batch) {
        let reason = format!("SKIP: `{name}`: this kernel makes no macvlan: {error}");
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("{reason}");
        return None;
    }
    let mut batch = Batch::new();
    link::delete(&mut batch, "probe");
    world.n.route_socket().unwrap().transact(&batch).unwrap();
    Some(world)
}

/// How often the daemon's thread that keeps leases has waited; none if there is no such thread.
fn waits_of_keeper(world: &World) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", status(world)["pid"])).unwrap();
    let status = tasks.flatten().find_map(|task| {
        let is_it = fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "portolan-dhcp");
        is_it.then(|| fs::read_to_string(task.path().join("status")).unwrap())
    })?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    Some(line.trim().parse().unwrap())
}

#[test]
fn between_renewals_nothing_runs() {
    let Some(world) = world("dhcp-idle") else { return };
    let _server = Server::start(&world, "dnsmasq", &[RANGE4]);
    lan(&world, &[]);
    world.portolan_ok(&["daemon", "start"]);
    assert_eq!(waits_of_keeper(&world), None, "no lease, no thread");
    world.container("c", &["--network", "lan"]);
    assert!(eventually(LONG, || waits_of_keeper(&world).is_some()));
    // What the grant itself sets off is over when nothing has moved for a while; the next renewal is a minute away.
    let mut before = waits_of_keeper(&world);
    let has_settled = || {
        std::thread::sleep(SHORT);
        std::mem::replace(&mut before, waits_of_keeper(&world)) == before
    };
    assert!(eventually(LONG, has_settled));
    let before = waits_of_keeper(&world);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(waits_of_keeper(&world), before);
}

fn lan(world: &World, options: &[&str]) {
    world.network("lan", &[&["-d", "macvlan", "-o", "parent=eth0", "--ipam-driver", "dhcp"], options].concat());
}

/// What the container's row says of its only lease.
fn address_in_row(world: &World, container: &str) -> String {
    let details = world.json(&["inspect", container]);
    details[0]["NetworkSettings"]["Networks"]["lan"]["IPAddress"].as_str().unwrap().to_owned()
}

fn v4_of(place: &impl InNetns) -> Option<IpAddr> {
    addresses(place, "eth0").into_iter().find(IpAddr::is_ipv4)
}

/// The default gateways inside, with metrics.
fn gateways(place: &Container) -> Vec<(IpAddr, Option<u32>)> {
    let routes = route::dump(&mut place.host.route_socket().unwrap()).unwrap();
    let is_default = |route: &&route::Route| route.is_default() && route.table == route::TABLE_MAIN;
    routes.iter().filter(is_default).filter_map(|route| Some((route.gateway?, route.metric))).collect()
}

fn status(world: &World) -> serde_json::Value {
    world.json(&["daemon", "status"])
}

fn kill_daemon(world: &World) {
    let process = PidFd::open(status(world)["pid"].as_i64().unwrap().try_into().unwrap()).unwrap();
    process.signal(signals::KILL).unwrap();
    assert!(process.wait_readable(LONG).unwrap());
}

#[test]
fn a_container_is_a_machine_of_the_lan() {
    let Some(world) = world("dhcp-macvlan") else { return };
    let server = Server::start(
        &world,
        "dnsmasq",
        &[RANGE4, "--domain=lan.example", "--dhcp-option=3,10.0.1.2", "--dhcp-option=6,10.0.1.53"],
    );
    lan(&world, &["-o", "metric=77"]);
    let c = world.container("c", &["--network", "lan", "--hostname", "printer"]);
    let ip = c.ip(Family::V4);
    let (first, last): (IpAddr, IpAddr) = ("10.0.1.100".parse().unwrap(), "10.0.1.149".parse().unwrap());
    assert!((first..=last).contains(&ip), "{ip}");
    assert_eq!(v4_of(&c), Some(ip), "it is in force when the command returns");
    assert_eq!(c.gateway(Family::V4), neighbour_ip(Family::V4));
    assert_eq!(gateways(&c), [(neighbour_ip(Family::V4), Some(77))]);
    assert!(server.has_leased(ip));
    assert!(server.log().contains("client provides name: printer"), "{}", server.log());
    world.verify();

    // Real packets, both ways, with its own address.
    let tcp = TcpServer::start(&world.n, any(Family::V4, 0), "neighbour").unwrap();
    let probe = portolan_lab::probe::tcp_probe(&c, at(neighbour_ip(Family::V4), tcp.addr().port()), LONG);
    assert_eq!(probe.seen().map(|seen| seen.ip()), Some(ip), "{probe}");
    assert!(ping(&world.n, ip, LONG).is_open());

    // Given back before the interface goes.
    world.portolan_ok(&["detach", "c"]);
    server.wait_for("DHCPRELEASE(eth0)");
    assert!(eventually(LONG, || !server.has_leased(ip)), "{}", server.log());
    assert!(!ping(&world.n, ip, SHORT).is_open());
    world.verify();
}

#[test]
fn what_the_server_says_of_names_is_in_the_resolver_file() {
    let Some(world) = world("dhcp-names") else { return };
    let _server = Server::start(&world, "dnsmasq", &[RANGE4, "--domain=lan.example", "--dhcp-option=6,10.0.1.53"]);
    lan(&world, &[]);
    let said = world.portolan_ok(&["run", "--rm", "--network", "lan", "--name", "c", "--", "cat", "/etc/resolv.conf"]);
    assert!(said.starts_with("nameserver 10.0.1.53\nsearch lan.example\n"), "{said}");
    let said = world.portolan_ok(&[
        "run",
        "--rm",
        "--network",
        "lan",
        "--dns",
        "10.9.9.9",
        "--dns-search",
        "own",
        "--",
        "cat",
        "/etc/resolv.conf",
    ]);
    assert!(said.starts_with("nameserver 10.9.9.9\nsearch own\n"), "what a person asked for goes before: {said}");
}

#[test]
fn both_families() {
    let Some(world) = world("dhcp-v6") else { return };
    let server = Server::start(&world, "dnsmasq", &[RANGE4, RANGE6, "--enable-ra"]);
    lan(&world, &["--ipv6"]);
    let c = world.container("c", &["--network", "lan"]);
    for family in FAMILIES {
        let ip = c.ip(family);
        assert!(addresses(&c, "eth0").contains(&ip), "{ip}");
        assert!(server.has_leased(ip), "{}", server.log());
    }
    // What is on the link, and the way out, is said by the router.
    assert!(eventually(LONG, || gateways(&c).iter().any(|(gateway, _)| gateway.is_ipv6())), "{:?}", gateways(&c));
    for family in FAMILIES {
        assert!(ping(&c, neighbour_ip(family), LONG).is_open(), "{family:?}");
        assert!(ping(&world.n, c.ip(family), LONG).is_open(), "{family:?}");
    }
    assert_eq!(addresses(&c, "eth0").len(), 3, "none but the leased ones and the link's: {:?}", addresses(&c, "eth0"));
    world.verify();
    let ip = c.ip(Family::V6);
    world.portolan_ok(&["detach", "c"]);
    server.wait_for("DHCPRELEASE(eth0) 00:");
    assert!(eventually(LONG, || !server.has_leased(ip)), "{}", server.log());
}

#[test]
fn without_a_server_nothing_is_left() {
    let Some(world) = world("dhcp-away") else { return };
    lan(&world, &[]);
    let before = world.state();
    let host = world.lab.host("c").unwrap();
    let path = host.netns_path().to_str().unwrap();
    let began = Instant::now();
    let said = world.refused(&["attach", "--netns", path, "--name", "c", "--network", "lan"]);
    let took = began.elapsed();
    let wanted = "attach `c` to `lan`: get a lease for interface `eth0` on network `lan`: \
                  no DHCP server answered within 8 s";
    assert_eq!(said, wanted);
    assert!((Duration::from_secs(7)..Duration::from_secs(12)).contains(&took), "{took:?}");
    before.assert_same(&world.state(), "an attach that failed");
    assert!(interface(&host, "eth0").is_none());
    world.verify();

    // And the same is answered where there is one.
    let _server = Server::start(&world, "dnsmasq", &[RANGE4]);
    world.portolan_ok(&["attach", "--netns", path, "--name", "c", "--network", "lan"]);
    assert!(v4_of(&host).is_some());
}

#[test]
fn a_lease_is_renewed_when_half_of_it_is_over() {
    let Some(world) = world("dhcp-renew") else { return };
    let server = Server::start(&world, "dnsmasq", &[RANGE4, "--dhcp-option-force=58,3", "--dhcp-option-force=59,60"]);
    lan(&world, &[]);
    let c = world.container("c", &["--network", "lan"]);
    let ip = c.ip(Family::V4);
    let acknowledged = || server.count("DHCPACK(eth0)");
    assert!(eventually(LONG * 2, || acknowledged() >= 3), "{}", server.log());
    assert_eq!(server.count("DHCPDISCOVER(eth0)"), 1, "by asking the server that granted it: {}", server.log());
    assert_eq!(v4_of(&c), Some(ip));
    world.verify();
}

#[test]
fn another_range_gives_another_address() {
    let Some(world) = world("dhcp-nak") else { return };
    let server = Server::start(&world, "first", &[RANGE4, "--dhcp-option-force=58,3", "--dhcp-option-force=59,60"]);
    lan(&world, &[]);
    let c = world.container("c", &["--network", "lan"]);
    let before = c.ip(Family::V4);
    drop(server);
    let server = Server::start(&world, "second", &["--dhcp-range=10.0.1.200,10.0.1.249,120"]);
    let moved = || v4_of(&c).is_some_and(|ip| ip >= "10.0.1.200".parse::<IpAddr>().unwrap());
    assert!(eventually(LONG * 4, moved), "{:?}\n{}", addresses(&c, "eth0"), server.log());
    server.wait_for("DHCPNAK(eth0)");
    let now = v4_of(&c).unwrap();
    assert!(!addresses(&c, "eth0").contains(&before), "the old one is gone");
    assert_eq!(address_in_row(&world, "c"), now.to_string(), "the row follows");
    assert!(ping(&world.n, now, LONG).is_open());
    world.verify();
}

#[test]
fn a_killed_daemon_takes_the_leases_up_again() {
    let Some(world) = world("dhcp-killed") else { return };
    let server = Server::start(&world, "dnsmasq", &[RANGE4, RANGE6, "--enable-ra"]);
    lan(&world, &["--ipv6"]);
    let c = world.container("c", &["--network", "lan"]);
    let ips = FAMILIES.map(|family| c.ip(family));
    for round in 1..=2 {
        let before = (server.count("DHCPACK(eth0)"), server.count("DHCPREPLY(eth0)"));
        if round == 1 {
            kill_daemon(&world);
        } else {
            world.portolan_ok(&["daemon", "upgrade"]);
        }
        let asked = || server.count("DHCPACK(eth0)") > before.0 && server.count("DHCPREPLY(eth0)") > before.1;
        assert!(eventually(LONG * 2, asked), "round {round}: it asks early whether they still hold: {}", server.log());
    }
    assert_eq!(server.count("DHCPDISCOVER(eth0)"), 1, "for the same ones: {}", server.log());
    assert_eq!(FAMILIES.map(|family| c.ip(family)), ips);
    world.verify();
    world.portolan_ok(&["detach", "c"]);
    assert!(eventually(LONG, || ips.iter().all(|ip| !server.has_leased(*ip))), "{}", server.log());
}

#[test]
fn a_lease_that_ends_takes_the_address_along() {
    let Some(world) = world("dhcp-expired") else { return };
    // The shortest that dnsmasq gives are two minutes; the daemon is told of one that is nearly over.
    let server = Server::start(&world, "first", &[RANGE4]);
    lan(&world, &[]);
    let c = world.container("c", &["--network", "lan"]);
    let ip = c.ip(Family::V4);
    drop(server);
    world.portolan_ok(&["daemon", "stop"]);
    age_lease(&world, 115);
    world.portolan_ok(&["daemon", "start"]);
    assert_eq!(v4_of(&c), Some(ip), "it is the container's to the last");
    assert!(eventually(LONG * 2, || v4_of(&c).is_none()), "{:?}", addresses(&c, "eth0"));
    assert_eq!(address_in_row(&world, "c"), "");
    assert_eq!(gateways(&c), []);
    world.verify();
    // It goes on asking, less and less often.
    let server = Server::start(&world, "second", &[RANGE4]);
    assert!(eventually(LONG * 8, || v4_of(&c).is_some()), "{}", server.log());
    assert_eq!(address_in_row(&world, "c"), v4_of(&c).unwrap().to_string());
    world.verify();
}

/// Makes the lease of container `c` older by `seconds`, in its row.
fn age_lease(world: &World, seconds: u64) {
    let store = SqliteStore::open(&world.root).unwrap();
    let guard = store.lock().unwrap();
    let tx = store.write(&guard).unwrap();
    let container = tx.container_named("c").unwrap().unwrap();
    let mut endpoint = tx.endpoints_of(container.id).unwrap().remove(0);
    endpoint.leases.v4.as_mut().unwrap().obtained -= seconds;
    tx.put_endpoint(&endpoint).unwrap();
    tx.commit(Durability::Process).unwrap();
}

#[test]
fn containers_do_not_wait_for_each_other() {
    let Some(world) = world("dhcp-parallel") else { return };
    let server = Server::start(&world, "dnsmasq", &[RANGE4]);
    lan(&world, &[]);
    world.portolan_ok(&["daemon", "start"]);
    let hosts: Vec<_> = (0..4).map(|n| world.lab.host(&format!("c{n}")).unwrap()).collect();
    let attached: Vec<Child> = hosts
        .iter()
        .map(|host| {
            let path = host.netns_path().to_str().unwrap();
            world.command(&["attach", "--netns", path, "--name", host.name(), "--network", "lan"]).spawn().unwrap()
        })
        .collect();
    for mut child in attached {
        assert!(child.wait().unwrap().success(), "{}", server.log());
    }
    let mut ips: Vec<IpAddr> = hosts.iter().map(|host| v4_of(host).unwrap()).collect();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 4, "each has its own");
    for ip in &ips {
        assert!(ping(&world.n, *ip, LONG).is_open(), "{ip}");
    }
    assert!(ping(&hosts[0], v4_of(&hosts[1]).unwrap(), LONG).is_open(), "macvlan's bridge mode");
    world.verify();
    // Where the namespaces die, the host gives the addresses back.
    drop(hosts);
    for n in 0..4 {
        portolan_kernel::netns::unpin(world.lab.dir().join(format!("c{n}"))).unwrap();
    }
    world.portolan_ok(&["gc"]);
    assert!(eventually(LONG, || ips.iter().all(|ip| !server.has_leased(*ip))), "{}", server.log());
    assert_eq!(world.json(&["ps", "-a"]), serde_json::json!([]));
}

#[test]
fn on_the_bridge_of_somebody_else() {
    let Some(world) = world("dhcp-unmanaged") else { return };
    // The host's LAN interface is a port of a bridge that the administrator made.
    dnsmasq::bridge_on_lan(&world, "lan0");

    let server = Server::start(&world, "dnsmasq", &[RANGE4, "--dhcp-option=3,10.0.1.2"]);
    world.network(
        "lan",
        &[
            "-o",
            "mode=unmanaged",
            "-o",
            "bridge=lan0",
            "--ipam-driver",
            "host-local",
            "--ipv6=false",
            "--subnet",
            "10.7.0.0/24",
        ],
    );
    world.portolan_ok(&["network", "rm", "lan"]);
    world.network(
        "lan",
        &["-o", "mode=unmanaged", "-o", "bridge=lan0", "--ipam-driver", "dhcp", "-o", "no_default_route=true"],
    );
    let c = world.container("c", &["--network", "lan"]);
    let ip = c.ip(Family::V4);
    assert_eq!(v4_of(&c), Some(ip));
    assert!(server.has_leased(ip));
    assert_eq!(gateways(&c), [], "no_default_route");
    assert!(ping(&c, neighbour_ip(Family::V4), LONG).is_open());
    assert!(ping(&world.n, ip, LONG).is_open());
    world.verify();
    world.portolan_ok(&["network", "disconnect", "lan", "c"]);
    assert!(eventually(LONG, || !server.has_leased(ip)), "{}", server.log());
    let info = world.json(&["network", "connect", "lan", "c"]);
    let again: IpAddr = endpoints(&info)["lan"].v4.unwrap();
    assert_eq!(v4_of(&c), Some(again));
    world.verify();
}

#[test]
fn a_command_gives_its_address_back_when_it_ends() {
    let Some(world) = world("dhcp-run") else { return };
    let server = Server::start(&world, "dnsmasq", &[RANGE4]);
    lan(&world, &[]);
    let said = world.portolan_ok(&["run", "--rm", "--network", "lan", "--", "ip", "-4", "-br", "addr", "show", "eth0"]);
    let ip: IpAddr = said.split_whitespace().nth(2).unwrap().split('/').next().unwrap().parse().unwrap();
    server.wait_for(&format!("DHCPRELEASE(eth0) {ip}"));
    assert!(eventually(LONG, || !server.has_leased(ip)), "{}", server.log());
}

#[test]
fn nobody_gives_addresses() {
    let Some(world) = world("ipam-none") else { return };
    world.network("bare", &["--ipam-driver", "none"]);
    let c = world.container("c", &["--network", "bare"]);
    let link = interface(&c, "eth0").unwrap();
    assert!(link.up);
    assert_eq!(v4_of(&c), None);
    assert!(addresses(&c, "eth0").iter().all(|ip| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())));
    assert_eq!(gateways(&c), []);
    let d = world.container("d", &["--network", "bare"]);
    // Whoever is inside gives them himself.
    c.host.add_address("eth0", "10.66.0.1/24").unwrap();
    d.host.add_address("eth0", "10.66.0.2/24").unwrap();
    assert!(ping(&c, "10.66.0.2".parse().unwrap(), LONG).is_open());
    world.network("wire", &["-d", "macvlan", "-o", "parent=eth0", "--ipam-driver", "none", "--ipv6=false"]);
    let e = world.container("e", &["--network", "wire"]);
    assert!(interface(&e, "eth0").unwrap().up);
    assert_eq!(addresses(&e, "eth0"), Vec::<IpAddr>::new());
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(world) = world("dhcp-refused") else { return };
    let create = |args: &[&str]| world.refused(&[&["network", "create", "lan"], args].concat());
    let said = create(&["-d", "ipvlan", "-o", "parent=eth0", "--ipam-driver", "dhcp"]);
    assert_eq!(said, "ipam driver dhcp is not supported with ipvlan");
    let said = create(&["--ipam-driver", "dhcp"]);
    assert_eq!(said, "ipam driver dhcp is not supported on a bridge of ours");
    for ipam in ["dhcp", "none"] {
        let said = create(&["-d", "macvlan", "-o", "parent=eth0", "--ipam-driver", ipam, "--subnet", "10.0.1.0/24"]);
        assert_eq!(said, format!("IPAM driver `{ipam}`: no subnet goes with it, as it gives none of our addresses"));
    }
    assert!(create(&["--ipam-driver", "static"]).contains("`static`"));
    lan(&world, &[]);
    let host = world.lab.host("c").unwrap();
    let path = host.netns_path().to_str().unwrap();
    let said = world.refused(&["attach", "--netns", path, "--network", "lan", "--ip", "10.0.1.9"]);
    assert!(said.contains("network `lan` has IPAM driver `dhcp`"), "{said}");
    let mut off = world.command(&["attach", "--netns", path, "--name", "c", "--network", "lan"]);
    let output = off.env("PORTOLAN_DAEMON", "off").output().unwrap();
    let said = check_refusal(&["attach"], &output);
    assert!(said.contains("the daemon that gets them is switched off"), "{said}");
    assert!(interface(&host, "eth0").is_none(), "nothing is left");
}

/// What netavark's protocol says of a container on macvlan with DHCP; `driver` and `options` may make it impossible.
fn netavark(world: &World, verb: &str, container: &portolan_lab::Host, network: &str) -> (bool, serde_json::Value) {
    let attachment = r#""lan":{"interface_name":"eth0","static_mac":"02:00:00:00:00:77"}"#;
    let network = format!(r#""lan":{{"name":"lan","id":"d1","ipam_options":{{"driver":"dhcp"}},{network}}}"#);
    speak(world, verb, container, "c1", attachment, &network)
}

/// Starts the front door with what Podman says: of a container, its attachments, and the networks.
fn speak(
    world: &World,
    verb: &str,
    container: &portolan_lab::Host,
    id: &str,
    attachments: &str,
    networks: &str,
) -> (bool, serde_json::Value) {
    let text = format!(
        r#"{{"container_id":"{id}","container_name":"web","container_hostname":"web","networks":{{{attachments}}},"network_info":{{{networks}}}}}"#
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    command.arg("netavark").arg("--config").arg(&world.root).arg(verb).arg(container.netns_path());
    let mut command = world.h.adopt(command).unwrap();
    command.env("PORTOLAN_DAEMON", "auto").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

#[test]
fn podman_is_told_what_the_server_said() {
    let Some(world) = world("dhcp-netavark") else { return };
    let names = ["--dhcp-option=option:dns-server,10.0.1.53", "--dhcp-option=option:domain-name,lan.example"];
    let router = "--dhcp-option=option:router,10.0.1.2";
    let host = "--dhcp-host=02:00:00:00:00:77,10.0.1.111";
    let server = Server::start(&world, "dnsmasq", &[RANGE4, names[0], names[1], router, host]);
    let container = world.lab.host("web").unwrap();
    let macvlan = r#""driver":"macvlan","network_interface":"eth0""#;
    let (done, status) = netavark(&world, "setup", &container, macvlan);
    assert!(done, "{status}");
    let expected = serde_json::json!({"lan": {
        "dns_search_domains": ["lan.example"],
        "dns_server_ips": ["10.0.1.53"],
        "interfaces": {"eth0": {
            "mac_address": "02:00:00:00:00:77",
            "subnets": [{"gateway": "10.0.1.2", "ipnet": "10.0.1.111/24"}],
        }},
    }});
    assert_eq!(status, expected);
    let probe = ping(&container, neighbour_ip(Family::V4), LONG);
    assert!(probe.is_open(), "{probe}");
    let (done, status) = netavark(&world, "teardown", &container, macvlan);
    assert!(done, "{status}");
    server.wait_for("DHCPRELEASE(eth0) 10.0.1.111");
    assert_eq!(interface(&container, "eth0"), None);

    for (network, why) in [
        (
            r#""driver":"bridge","network_interface":"br0""#,
            "cannot use dhcp ipam driver without using the option mode=unmanaged",
        ),
        (r#""driver":"ipvlan","network_interface":"eth0""#, "ipam driver dhcp is not supported with ipvlan"),
    ] {
        let (done, answer) = netavark(&world, "setup", &container, network);
        assert!(!done);
        assert_eq!(answer, serde_json::json!({ "error": why }));
    }
    drop(server);
    let (done, answer) = netavark(&world, "setup", &container, macvlan);
    assert!(!done && answer["error"].as_str().is_some_and(|text| text.contains("`lan`")), "{answer}");
    assert_eq!(interface(&container, "eth0"), None);
}

/// Has the host speak no IPv6 on the LAN: it can give no IPv6 lease back for a container that is gone, so that what is given
/// back was given back from the container's own interface.
fn silence_host_v6(world: &World) {
    world.h.sysctl(&["net", "ipv6", "conf", "eth0", "disable_ipv6"], "1").unwrap();
}

/// The IPv6 addresses that the server has ever granted.
fn granted_v6(server: &Server) -> Vec<IpAddr> {
    let log = server.log();
    let granted = log.lines().filter(|line| line.contains("DHCPREPLY(eth0)"));
    let mut ips: Vec<IpAddr> =
        granted.filter_map(|line| line.split_whitespace().find_map(|word| word.parse().ok())).collect();
    ips.sort();
    ips.dedup();
    ips
}

#[test]
fn podmans_teardown_gives_back_from_the_container() {
    let Some(world) = world("dhcp-netavark-release") else { return };
    let server = Server::start(&world, "dnsmasq", &[RANGE4, RANGE6, "--enable-ra"]);
    silence_host_v6(&world);
    let container = world.lab.host("web").unwrap();
    let macvlan = r#""driver":"macvlan","network_interface":"eth0","ipv6_enabled":true"#;
    let (done, status) = netavark(&world, "setup", &container, macvlan);
    assert!(done, "{status}\n{}", server.log());
    let ips = granted_v6(&server);
    assert!(!ips.is_empty() && ips.iter().any(|ip| server.has_leased(*ip)), "{}", server.log());
    let (done, status) = netavark(&world, "teardown", &container, macvlan);
    assert!(done, "{status}");
    assert!(eventually(LONG, || ips.iter().all(|ip| !server.has_leased(*ip))), "{}", server.log());
    assert_eq!(interface(&container, "eth0"), None);
}

/// One family's address comes, the other's does not.
#[test]
fn what_fails_half_way_gives_back_what_it_got() {
    let Some(world) = world("dhcp-half") else { return };
    let server = Server::start(&world, "dnsmasq", &[RANGE6, "--enable-ra"]);
    silence_host_v6(&world);
    let container = world.lab.host("web").unwrap();
    let macvlan = r#""driver":"macvlan","network_interface":"eth0","ipv6_enabled":true"#;
    let (done, answer) = netavark(&world, "setup", &container, macvlan);
    let said = answer["error"].as_str().unwrap_or_default();
    assert!(!done && said.contains("no DHCP server answered"), "{answer}");
    let by_podman = granted_v6(&server);
    assert!(!by_podman.is_empty(), "{}", server.log());
    assert!(eventually(LONG, || by_podman.iter().all(|ip| !server.has_leased(*ip))), "setup: {}", server.log());
    assert_eq!(interface(&container, "eth0"), None);

    lan(&world, &["--ipv6"]);
    let host = world.lab.host("c").unwrap();
    let path = host.netns_path().to_str().unwrap();
    let said = world.refused(&["attach", "--netns", path, "--name", "c", "--network", "lan"]);
    assert!(said.contains("no DHCP server answered"), "{said}");
    assert!(granted_v6(&server).len() > by_podman.len(), "{}", server.log());
    let given_back = || granted_v6(&server).iter().all(|ip| !server.has_leased(*ip));
    assert!(eventually(LONG, given_back), "attach: {}", server.log());

    let said = world.refused(&["run", "--network", "lan", "--name", "r", "--", "sleep", "60"]);
    assert!(said.contains("no DHCP server answered"), "{said}");
    assert!(eventually(LONG, given_back), "run: {}", server.log());
}

/// Its MACs are others then; the server knows it by its id, as it does with netavark.
#[test]
fn a_container_that_is_started_again_has_its_address_again() {
    let Some(world) = world("dhcp-again") else { return };
    let id = "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9";
    let hex: Vec<String> = id.bytes().map(|byte| format!("{byte:02x}")).collect();
    let client = format!("00:{}", hex.join(":"));
    let server = Server::start(&world, "dnsmasq", &[RANGE4]);
    let attachments = r#""lan":{"interface_name":"eth0"},"also":{"interface_name":"eth1"}"#;
    let network = |name: &str, id: &str| {
        format!(
            r#""{name}":{{"name":"{name}","id":"{id}","driver":"macvlan","network_interface":"eth0","ipam_options":{{"driver":"dhcp"}}}}"#
        )
    };
    let networks = [network("lan", "d1"), network("also", "d2")].join(",");
    let setup = |server: &Server, container: &portolan_lab::Host| {
        let (done, status) = speak(&world, "setup", container, id, attachments, &networks);
        assert!(done, "{status}\n{}", server.log());
        [("lan", "eth0"), ("also", "eth1")].map(|(network, interface)| {
            let interface = &status[network]["interfaces"][interface];
            let address = interface["subnets"][0]["ipnet"].as_str().unwrap().split('/').next().unwrap();
            (interface["mac_address"].clone(), address.parse::<IpAddr>().unwrap())
        })
    };
    let container = world.lab.host("web").unwrap();
    let first = setup(&server, &container);
    assert_ne!(first[0].1, first[1].1, "on one LAN, each interface is a client");
    let leases = || server.listed();
    assert!(leases().lines().any(|line| line.ends_with(&client)), "{}", leases());

    // The machine starts anew: namespaces and the run-time directory are gone, and nothing was given back.
    world.portolan_ok(&["daemon", "stop"]);
    fs::remove_dir_all(&world.root).unwrap();
    portolan_kernel::netns::unpin(container.netns_path()).unwrap();
    drop(container);
    let container = world.lab.host("web-again").unwrap();
    let second = setup(&server, &container);
    for (first, second) in first.iter().zip(&second) {
        assert_ne!(first.0, second.0, "another MAC");
        assert_eq!(first.1, second.1, "{}", server.log());
    }
    let teardown = || {
        let (done, status) = speak(&world, "teardown", &container, id, attachments, &networks);
        assert!(done, "{status}");
    };
    teardown();
    assert!(eventually(LONG, || second.iter().all(|(_, ip)| !server.has_leased(*ip))), "{}", server.log());

    // What was given back is forgotten by this server; a reservation is by id.
    drop(server);
    let reserved = format!("--dhcp-host=id:{client},10.0.1.77");
    let server = Server::start(&world, "reserved", &[RANGE4, &reserved]);
    for _ in 0..2 {
        let [(_, ip), _] = setup(&server, &container);
        assert_eq!(ip.to_string(), "10.0.1.77", "{}", server.log());
        teardown();
    }
}

/// As netavark's own tests and its units of systemd start it.
#[test]
fn the_service_for_other_netavarks_takes_their_flags() {
    let Some(world) = world("dhcp-proxy-flags") else { return };
    let [leases, socket] = ["leases", "socket"].map(|name| world.lab.dir().join(name));
    fs::create_dir(&socket).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    command.args(["netavark", "dhcp-proxy", "-a", "1", "-t", "3", "-d"]).arg(&leases).arg("-u").arg(&socket);
    let mut service = world.h.adopt(command).unwrap().spawn().unwrap();
    assert!(eventually(LONG, || socket.join("nv-proxy.sock").exists()), "the socket is in the directory");
    assert!(service.wait().unwrap().success(), "it leaves, for nobody has asked");
    assert!(leases.join("nv-proxy.lease").exists());
}
