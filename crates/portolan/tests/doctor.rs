//! What other firewalls drop, with real packets: found, opened on request, and closed without a trace.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Container, FAMILIES, World, any, assert_closed, assert_leads, at, choose, host_ip, neighbour_ip, pick};
use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::Family;
use portolan_kernel::rtnl::link::{self, BridgeSpec, LinkChange};
use portolan_lab::Host;
use portolan_lab::server::TcpServer;

const BACKENDS: [&str; 2] = ["nft", "legacy"];

/// A world in which programs of one backend of iptables can be run. Skips loudly without them.
fn world(name: &str, backend: &str) -> Option<World> {
    let mut world = World::or_skip(name)?;
    for family in ["iptables", "ip6tables"] {
        if !Path::new(&format!("/usr/sbin/{family}-{backend}")).exists() {
            assert!(std::env::var_os("CI").is_none(), "{family}-{backend} is missing");
            eprintln!("SKIP: {name}: no {family}-{backend}");
            return None;
        }
    }
    // The lock of iptables-legacy is the machine's otherwise.
    world.environment.push(("XTABLES_LOCKFILE".into(), world.lab.dir().join("xtables.lock").into()));
    Some(world)
}

/// Runs a program on the host; what it prints.
#[track_caller]
fn program(world: &World, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).envs(world.environment.iter().cloned());
    let output = world.h.adopt(command).unwrap().output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The same for both families: `iptables-nft-save`, `ip6tables-nft-save`.
#[track_caller]
fn both(world: &World, backend: &str, args: &str) -> String {
    ["iptables", "ip6tables"].map(|family| program(world, &format!("{family}-{backend}{args}"))).concat()
}

/// What both families hold, without times and counters.
#[track_caller]
fn saved(world: &World, backend: &str) -> String {
    let text = both(world, backend, "-save");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| format!("{}\n", line.split(" [").next().unwrap())).collect()
}

/// What `portolan doctor` prints, and its status.
fn doctor(world: &World, args: &[&str]) -> (String, Option<i32>) {
    let output = world.portolan(&[&["doctor"], args].concat());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

/// A bridge that is not ours, with a host behind it that has a way back.
fn foreign(world: &World) -> Host {
    let host = world.lab.host("behind").unwrap();
    world.lab.lan("foreign", &[(&host, "eth0", &["10.0.7.2/24", "fd00:7::2/64"]), (&world.h, "eth7", &[])]).unwrap();
    let mut socket = world.h.route_socket().unwrap();
    let mut batch = Batch::new();
    link::create_bridge(&mut batch, &BridgeSpec { name: "br-foreign", up: true, ..BridgeSpec::default() });
    socket.transact(&batch).unwrap();
    let bridge = link::lookup(&mut socket, "br-foreign").unwrap().unwrap().index;
    let mut batch = Batch::new();
    link::set(&mut batch, "eth7", &LinkChange { master: Some(bridge), ..LinkChange::default() });
    socket.transact(&batch).unwrap();
    for family in FAMILIES {
        world.h.add_address("br-foreign", choose(family, "10.0.7.1/24", "fd00:7::1/64")).unwrap();
        host.add_default_route(choose(family, "10.0.7.1", "fd00:7::1")).unwrap();
    }
    host
}

struct Stage {
    world: World,
    c: Container,
    other: Container,
    behind: Host,
    _servers: [TcpServer; 4],
}

impl Stage {
    fn set(world: World) -> Self {
        let behind = foreign(&world);
        for name in ["web", "back"] {
            world.network(name, &[]);
        }
        let c = world.container("c", &["--network", "web", "-p", "8080:80"]);
        let other = world.container("other", &["--network", "back"]);
        let server = |banner: &str, of: &Host| TcpServer::start(of, any(Family::V6, 80), banner).unwrap();
        let servers =
            [server("c", &c.host), server("other", &other.host), server("n", &world.n), server("behind", &behind)];
        Self { world, c, other, behind, _servers: servers }
    }

    /// The host behind the foreign bridge.
    fn behind(family: Family) -> std::net::IpAddr {
        pick(family, "10.0.7.2", "fd00:7::2")
    }

    #[track_caller]
    fn assert_dropped(&self) {
        for family in FAMILIES {
            assert_closed(&self.world.n, at(host_ip(family), 8080));
            assert_closed(&self.c, at(neighbour_ip(family), 80));
        }
    }

    #[track_caller]
    fn assert_passing(&self) {
        for family in FAMILIES {
            assert_leads(&self.world.n, at(host_ip(family), 8080), "c");
            assert_leads(&self.c, at(neighbour_ip(family), 80), "n");
        }
    }

    #[track_caller]
    fn assert_apart(&self) {
        for family in FAMILIES {
            assert_closed(&self.c, at(self.other.ip(family), 80));
            assert_closed(&self.other, at(self.c.ip(family), 80));
            assert_closed(&self.c, at(Self::behind(family), 80));
            assert_closed(&self.behind, at(self.c.ip(family), 80));
            assert_closed(&self.behind, at(host_ip(family), 8080));
        }
    }
}

/// From a host that drops to one that lets our packets pass, and back. `at` is the chain that is to call our rules.
fn opens_and_closes(world: World, backend: &str, at_chain: &str) {
    let stage = Stage::set(world);
    let world = &stage.world;
    stage.assert_passing();
    for family in FAMILIES {
        assert_leads(&stage.c, at(Stage::behind(family), 80), "behind");
        assert_leads(&stage.behind, at(host_ip(family), 8080), "c");
    }
    both(world, backend, " -P FORWARD DROP");
    let before = saved(world, backend);
    stage.assert_dropped();

    let (text, status) = doctor(world, &[]);
    assert_eq!(status, Some(1), "{text}");
    assert_eq!(text.matches("policy DROP of FORWARD").count(), 2, "one for each family: {text}");
    assert_eq!(text.matches("to open it: portolan --root").count(), 2, "{text}");
    assert_eq!(saved(world, backend), before, "looking changes nothing");

    let (text, status) = doctor(world, &["--open"]);
    assert_eq!(status, Some(0), "{text}");
    stage.assert_passing();
    stage.assert_apart();
    let open = saved(world, backend);
    let call = format!(
        "-A {at_chain} -m comment --comment \"portolan: networks of {}\" -j PORTOLAN-DOOR\n",
        world.root.display()
    );
    assert_eq!(open.matches(&call).count(), 2, "{open}");
    let (text, status) = doctor(world, &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("nothing is closed"), "{text}");
    assert_eq!(doctor(world, &["--open"]).1, Some(0));
    assert_eq!(saved(world, backend), open, "a second time adds nothing");
    world.verify();

    assert_eq!(doctor(world, &["--close"]).1, Some(0));
    assert_eq!(saved(world, backend), before, "it is as it was");
    stage.assert_dropped();
    assert_eq!(doctor(world, &["--close"]).1, Some(0));
    assert_eq!(saved(world, backend), before);
}

#[test]
fn a_policy_that_drops_is_opened_and_closed() {
    for backend in BACKENDS {
        let Some(world) = world(&format!("doctor-{backend}"), backend) else { continue };
        opens_and_closes(world, backend, "FORWARD");
    }
}

#[test]
fn rules_go_to_docker_user_where_it_is() {
    let Some(world) = world("doctor-docker", "nft") else { return };
    for line in [" -N DOCKER-USER", " -A DOCKER-USER -j RETURN", " -A FORWARD -j DOCKER-USER"] {
        both(&world, "nft", line);
    }
    opens_and_closes(world, "nft", "DOCKER-USER");
}

#[test]
fn a_rule_at_the_end_is_found_and_what_follows_ours_still_decides() {
    let Some(world) = world("doctor-rule", "nft") else { return };
    let stage = Stage::set(world);
    let world = &stage.world;
    both(world, "nft", " -A FORWARD -j REJECT");
    let (text, status) = doctor(world, &[]);
    assert!(status == Some(1) && text.contains("rule `-A FORWARD -j REJECT"), "{text}");
    assert_eq!(doctor(world, &["--open"]).1, Some(0));
    stage.assert_passing();
    // The policy accepts: only that the rule comes after ours keeps them apart.
    stage.assert_apart();
}

#[test]
fn chains_of_nftables_are_named_with_what_opens_them() {
    let Some(world) = world("doctor-nftables", "nft") else { return };
    let stage = Stage::set(world);
    let world = &stage.world;
    program(world, "nft add table inet admin");
    program(world, "nft add chain inet admin transit { type filter hook forward priority 0 ; policy drop ; }");
    stage.assert_dropped();
    let output = world.portolan(&["--json", "doctor", "--open"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found[0]["What"], "policy drop of chain `inet admin transit`");
    for command in found[0]["Open"].as_array().unwrap() {
        program(world, command.as_str().unwrap());
    }
    assert_eq!(doctor(world, &[]).1, Some(0));
    stage.assert_passing();
}

#[test]
fn ours_are_no_finding() {
    let Some(mut world) = world("doctor-ours", "nft") else { return };
    let (text, status) = doctor(&world, &[]);
    assert!(status == Some(0) && text.contains("no network on this host yet"), "{text}");
    assert!(world.refused(&["doctor", "--open"]).contains("no network on this host yet"));
    world.environment.push(("PORTOLAN_FIREWALL".into(), "iptables".into()));
    // What `iptables` is on this host.
    for family in ["iptables", "ip6tables"] {
        program(&world, &format!("{family} -P FORWARD DROP"));
    }
    world.network("web", &[]);
    let c = world.container("c", &["--network", "web"]);
    let _n = TcpServer::start(&world.n, any(Family::V6, 80), "n").unwrap();
    for family in FAMILIES {
        assert_leads(&c, at(neighbour_ip(family), 80), "n");
    }
    let (text, status) = doctor(&world, &[]);
    assert_eq!(status, Some(0), "the driver iptables accepts in FORWARD itself: {text}");
}
