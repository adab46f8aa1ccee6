//! What is the host's stays as it is.

mod common;

use std::process::Command;

use common::{FAMILIES, LONG, SHORT, World, any, at, host_ip, pick};
use portolan_kernel::rtnl::Family;
use portolan_lab::probe::{Probe, tcp_probe};
use portolan_lab::server::TcpServer;
use portolan_lab::snapshot::{Snapshot, diff, snapshot};

/// Tables of somebody else's: one of nft's, and what iptables-nft makes of a firewall.
const FOREIGN: &str = r#"
table inet foreign {
    set allowed { type ipv4_addr; elements = { 10.0.1.2, 10.0.1.3 } }
    chain input { type filter hook input priority 10; policy accept; ip saddr @allowed accept; }
}
table ip filter {
    chain INPUT { type filter hook input priority filter; policy accept; tcp dport 9 drop; }
    chain FORWARD { type filter hook forward priority filter; policy accept; jump DOCKER-USER; }
    chain DOCKER-USER { return; }
}
table ip nat {
    chain PREROUTING { type nat hook prerouting priority dstnat; policy accept; tcp dport 7777 dnat to 10.0.1.2:77; }
}
"#;

/// Runs nft(8) on the host; `None` where there is none.
fn nft(world: &World, args: &[&str], input: &str) -> Option<String> {
    let file = world.lab.dir().join("nft-input");
    std::fs::create_dir_all(world.lab.dir()).unwrap();
    std::fs::write(&file, input).unwrap();
    let mut command = Command::new("nft");
    command.args(args);
    if !input.is_empty() {
        command.arg("-f").arg(&file);
    }
    let Ok(output) = world.h.adopt(command).unwrap().output() else {
        eprintln!("SKIP: no nft(8) to make foreign tables with");
        assert!(std::env::var_os("CI").is_none(), "CI must have nft(8)");
        return None;
    };
    assert!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The text of the foreign tables.
fn foreign_tables(world: &World) -> Option<String> {
    ["inet foreign", "ip filter", "ip nat"]
        .iter()
        .map(|table| {
            let (family, name) = table.split_once(' ').unwrap();
            nft(world, &["list", "table", family, name], "")
        })
        .collect()
}

/// What differs and is neither an object of ours nor one of the few settings that we say we change.
fn unexpected(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let ours = |change: &str| {
        change.starts_with("+ ")
            && ["br-", "portolan", "pv"]
                .iter()
                .any(|name| change.contains(&format!(" {name}")) || change.contains(&format!("/{name}")))
    };
    let forwarding = |change: &str| {
        change.contains("sysctl net/ipv4/ip_forward = ")
            || change.contains("/forwarding = ")
                && (change.contains("sysctl net/ipv4/conf/") || change.contains("sysctl net/ipv6/conf/"))
    };
    // What the kernel derives from forwarding: routers believe no redirects (ip-sysctl.rst), and answer at the
    // subnet-router anycast address of their subnets (RFC 4291 §2.6.1).
    let derived = |change: &str| {
        change.contains("sysctl net/ipv4/conf/all/accept_redirects = ")
            || change.starts_with("+ route ") && change.contains("/128 table 255 Other(4) dev eth0 ")
    };
    // Routers ignore advertisements unless told otherwise.
    let accept_ra = |change: &str| {
        ["- sysctl net/ipv6/conf/eth0/accept_ra = 1", "+ sysctl net/ipv6/conf/eth0/accept_ra = 2"].contains(&change)
    };
    diff(before, after)
        .into_iter()
        .filter(|change| !ours(change) && !forwarding(change) && !derived(change) && !accept_ra(change))
        .collect()
}

/// Everything there is to do, and back.
fn live_a_life(world: &World, round: u32, mut meanwhile: impl FnMut(&str)) {
    let [c_name, d_name, e_name] = ["c", "d", "e"].map(|name| format!("{name}{round}"));
    world.network("web", &[]);
    meanwhile("a network");
    world.network("lan", &["--subnet", "10.44.0.0/24", "--subnet", "fd44::/64", "--opt", "icc=false"]);
    world.network("vault", &["--internal"]);
    let c = world.container(
        &c_name,
        &["--network", "web", "-p", "8080:80", "-p", "127.0.0.1:8081:81", "-p", "9000-9099:9000-9099/udp"],
    );
    let d = world.container(&d_name, &["--network", "lan", "--network", "vault"]);
    let e = world.container(&e_name, &[]);
    meanwhile("containers");
    let _server = TcpServer::start(&c, any(Family::V6, 80), "c").unwrap();
    for family in FAMILIES {
        assert!(tcp_probe(&world.n, at(host_ip(family), 8080), LONG).is_open());
        assert!(tcp_probe(&d, at(host_ip(family), 8080), LONG).is_open());
        assert!(tcp_probe(&e, at(host_ip(family), 8080), LONG).is_open());
    }
    world.portolan_ok(&["network", "connect", "vault", &c_name]);
    world.portolan_ok(&["publish", "add", &c_name, "8443:443"]);
    world.verify();
    world.portolan_ok(&["reconcile"]);
    world.portolan_ok(&["gc"]);
    meanwhile("changes");
    for name in [&c_name, &d_name, &e_name] {
        world.portolan_ok(&["detach", name]);
    }
    world.portolan_ok(&["network", "rm", "web", "lan"]);
    meanwhile("the last but one");
    world.portolan_ok(&["network", "rm", "vault"]);
}

#[test]
fn the_host_is_the_same_before_the_first_network_and_after_the_last() {
    let Some(world) = World::or_skip("untouched") else { return };
    world.h.sysctl(&["net", "ipv6", "conf", "eth0", "accept_ra"], "1").unwrap();
    let has_foreign = nft(&world, &[], FOREIGN).is_some();
    let foreign = has_foreign.then(|| foreign_tables(&world).unwrap());
    let before = world.untouched();
    for round in 0..2 {
        live_a_life(&world, round, |when| {
            let changes = unexpected(&before, &snapshot(&world.h).unwrap());
            assert!(changes.is_empty(), "round {round}, with {when}: {changes:#?}");
            assert_eq!(foreign, has_foreign.then(|| foreign_tables(&world).unwrap()), "{when}");
        });
        world.assert_untouched(&before, &format!("round {round}"));
        assert_eq!(foreign, has_foreign.then(|| foreign_tables(&world).unwrap()));
    }
}

#[test]
fn a_router_stays_a_router() {
    let Some(world) = World::or_skip("router") else { return };
    world.h.enable_forwarding().unwrap();
    let before = world.untouched();
    live_a_life(&world, 0, |when| {
        let after = snapshot(&world.h).unwrap();
        let settings: Vec<String> = diff(&before, &after)
            .into_iter()
            .filter(|change| {
                change.contains("ip_forward = ") || change.contains("/forwarding = ") && change.starts_with("- ")
            })
            .collect();
        assert!(settings.is_empty(), "with {when}: {settings:#?}");
    });
    world.assert_untouched(&before, "a life");
}

/// Forwarding has to be on for containers; that does not make a router of a host that was none.
#[test]
fn a_host_that_did_not_forward_does_not_begin_to() {
    let Some(world) = World::or_skip("no-router") else { return };
    let (m, _lan2) = world.second_lan();
    let _server = TcpServer::start(&m, any(Family::V6, 80), "m").unwrap();
    let through = |family| tcp_probe(&world.n, at(pick(family, "10.0.2.2", "fd00:2::2"), 80), SHORT);
    let before = FAMILIES.map(through);
    assert!(before.iter().all(|probe| !probe.is_open()));
    world.network("web", &[]);
    let c = world.container("c", &["--network", "web"]);
    for family in FAMILIES {
        assert_eq!(through(family), Probe::Timeout);
        assert!(tcp_probe(&c, at(pick(family, "10.0.2.2", "fd00:2::2"), 80), LONG).is_open());
    }
    world.portolan_ok(&["detach", "c"]);
    world.portolan_ok(&["network", "rm", "web"]);
    assert!(FAMILIES.map(through).iter().all(|probe| !probe.is_open()));
}
