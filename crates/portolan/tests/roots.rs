//! Two roots on one host, as Podman's beside one's own: neither hears of the other.

mod common;

use common::{FAMILIES, LONG, World, any, at, host_ip};
use portolan_lab::Host;
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::TcpServer;

/// A container of the second root, which lives in a directory of its own.
fn attach(world: &World, root: &str, name: &str, port: u16) -> Host {
    let host = world.lab.host(name).unwrap();
    let path = host.netns_path().to_str().unwrap().to_owned();
    let port = format!("{port}:80");
    world.portolan_ok(&["--root", root, "attach", "--netns", &path, "--name", name, "-p", &port]);
    host
}

/// Whether the container at `host` reaches the neighbour, and the neighbour its published port.
fn assert_connected(world: &World, host: &Host, port: u16) {
    for family in FAMILIES {
        let server = TcpServer::start(&world.n, any(family, 0), "neighbour").unwrap();
        let out = tcp_probe(host, at(common::neighbour_ip(family), server.addr().port()), LONG);
        assert!(out.is_open(), "{family:?} out: {out}");
        let inside = TcpServer::start(host, any(family, 80), "inside").unwrap();
        let into = tcp_probe(&world.n, at(host_ip(family), port), LONG);
        assert_eq!(into.banner(), Some("inside"), "{family:?} in: {into}");
        drop(inside);
    }
}

#[test]
fn what_one_root_does_is_nothing_to_the_other() {
    let Some(mut world) = World::or_skip("roots") else { return };
    let untouched = world.untouched();
    // Their residents repair what they take for theirs.
    world.daemon = true;
    let dirs = ["one", "two"].map(|name| world.lab.dir().join(name).to_str().unwrap().to_owned());
    let [one, two] = [dirs[0].as_str(), dirs[1].as_str()];
    let a = attach(&world, one, "a", 8001);
    let b = attach(&world, two, "b", 8002);
    assert_connected(&world, &a, 8001);
    assert_connected(&world, &b, 8002);
    for family in FAMILIES {
        // Each is the outside world to the other.
        let _server = TcpServer::start(&b, any(family, 80), "b").unwrap();
        assert_eq!(tcp_probe(&a, at(host_ip(family), 8002), LONG).banner(), Some("b"), "{family:?}");
    }
    world.portolan_ok(&["--root", one, "verify"]);
    world.portolan_ok(&["--root", two, "verify"]);

    // The first root's table had the usual name. Nothing of it is left, and it wants nothing.
    world.portolan_ok(&["--root", one, "detach", "a"]);
    let c = attach(&world, two, "c", 8003);
    world.portolan_ok(&["--root", two, "detach", "b"]);
    world.portolan_ok(&["--root", two, "detach", "c"]);
    drop(c);
    // Now the second one's has it, while the first looks after its own.
    let d = attach(&world, two, "d", 8004);
    for verb in ["reconcile", "gc"] {
        world.portolan_ok(&["--root", one, verb]);
    }
    world.portolan_ok(&["--root", one, "verify"]);
    world.portolan_ok(&["--root", two, "verify"]);
    assert_connected(&world, &d, 8004);
    let e = attach(&world, one, "e", 8005);
    assert_connected(&world, &e, 8005);
    for (root, name) in [(one, "e"), (two, "d")] {
        world.portolan_ok(&["--root", root, "detach", name]);
    }
    for root in [one, two] {
        let _ = world.portolan(&["--root", root, "daemon", "stop"]);
    }
    world.assert_untouched(&untouched, "two roots");
}
