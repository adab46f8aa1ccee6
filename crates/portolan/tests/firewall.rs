//! The drivers of rules: the same outcomes with real packets, or the documented difference.

mod common;

use common::{FAMILIES, LONG, SHORT, World, any, at, host_ip};
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::TcpServer;

/// A world whose commands ask for `driver`.
fn world(name: &str, driver: &str) -> Option<World> {
    let mut world = World::or_skip(name)?;
    world.environment.push(("PORTOLAN_FIREWALL".into(), driver.into()));
    Some(world)
}

#[test]
fn none_has_no_rules_and_all_else() {
    let Some(world) = world("none", "none") else { return };
    let untouched = world.untouched();
    world.network("web", &[]);
    world.network("other", &[]);
    let c = world.container("c", &["--network", "web", "-p", "8080:80"]);
    let d = world.container("d", &["--network", "other"]);
    let _server = TcpServer::start(&c, any(portolan_kernel::rtnl::Family::V6, 80), "c").unwrap();
    assert_eq!(world.portolan_ok(&["rules"]), "");
    world.route_back("web");
    for family in FAMILIES {
        assert_eq!(tcp_probe(&world.h, at(c.ip(family), 80), LONG).banner(), Some("c"), "from the host");
        assert_eq!(tcp_probe(&world.n, at(c.ip(family), 80), LONG).banner(), Some("c"), "nothing keeps it closed");
        assert_eq!(tcp_probe(&d, at(c.ip(family), 80), LONG).banner(), Some("c"), "nothing keeps networks apart");
        assert!(tcp_probe(&world.n, at(host_ip(family), 8080), SHORT).banner().is_none(), "nothing translates");
    }
    world.verify();
    world.portolan_ok(&["reconcile"]);
    for name in ["c", "d"] {
        world.portolan_ok(&["detach", name]);
    }
    for name in ["web", "other"] {
        world.portolan_ok(&["network", "rm", name]);
    }
    drop(_server);
    world.assert_untouched(&untouched, "driver none");
}

#[test]
fn the_first_network_decides_the_driver() {
    let Some(mut world) = world("decides", "none") else { return };
    world.network("web", &[]);
    world.environment[0].1 = "nftables".into();
    let output = world.portolan(&["network", "create", "more"]);
    assert!(output.status.success());
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.contains("`nftables`") && warning.contains("`none`"), "{warning}");
    world.environment.clear();
    let output = world.portolan(&["network", "create", "third"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(world.portolan_ok(&["rules"]), "");
    for name in ["web", "more", "third"] {
        world.portolan_ok(&["network", "rm", name]);
    }
    // Nothing is left that remembers.
    world.network("web", &[]);
    assert!(world.portolan_ok(&["rules", "web"]).contains("network web"));
    world.environment.push(("PORTOLAN_FIREWALL".into(), "sieve".into()));
    assert!(world.refused(&["network", "ls"]).contains("`sieve`"));
}
