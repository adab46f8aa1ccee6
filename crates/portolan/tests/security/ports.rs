//! Published ports: whose traffic they take, and whom the server sees.

use std::io::copy;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family::{V4, V6};
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::TcpServer;
use portolan_lab::{InNetns, eventually};

use crate::common::{
    Container, FAMILIES, LONG, SHORT, World, any, assert_leads, at, host_ip, loopback, neighbour_ip, pick,
};
use crate::row::Row;

pub(crate) fn rows() -> Option<Vec<Row>> {
    let rows = [transit()?, clash()?, clients()?];
    Some(rows.concat())
}

/// Adds what is often found: a translation that looks at nothing but the port.
fn naive(world: &World, matches: &str, to: &str) {
    for line in [
        "add table ip naive",
        "add chain ip naive in { type nat hook prerouting priority dstnat - 1 ; }",
        &format!("add rule ip naive in {matches} tcp dport 8080 dnat to {to}"),
    ] {
        world.nft(line);
    }
}

fn transit() -> Option<Vec<Row>> {
    let world = World::or_skip("security-transit")?;
    // A router before it had containers.
    world.h.enable_forwarding().unwrap();
    let (m, _lan2) = world.second_lan();
    world.network("web", &[]);
    let c = world.container("c", &["--network", "web", "-p", "8080:80"]);
    let _c = TcpServer::start(&c, any(V6, 80), "c").unwrap();
    let _m = TcpServer::start(&m, any(V6, 8080), "m").unwrap();
    for family in FAMILIES {
        let to = at(pick(family, "10.0.2.2", "fd00:2::2"), 8080);
        for from in [world.n.netns(), c.netns()] {
            assert_leads(from, to, "m");
        }
    }
    world.verify();
    naive(&world, "iifname eth0", &format!("{}:80", c.ip(V4)));
    assert_leads(&world.n, at(pick(V4, "10.0.2.2", ""), 8080), "c");
    Some(vec![Row {
        number: 5,
        attack: "a container publishes port 8080; a LAN neighbour and another container connect, through the host, to port 8080 of another machine",
        control: "a rule that translates by port alone: the container gets it",
        outcome: "it reaches the other machine".into(),
    }])
}

fn clash() -> Option<Vec<Row>> {
    let world = World::or_skip("security-clash")?;
    world.network("web", &[]);
    let holder = world.container("holder", &["--network", "web", "-p", "8080:80", "-p", "10.0.1.1:8081:80"]);
    let thief = world.container("thief", &["--network", "web"]);
    let _servers =
        [(&holder, "holder"), (&thief, "thief")].map(|(c, name)| TcpServer::start(c, any(V6, 80), name).unwrap());
    for spec in ["10.0.1.1:8080:80", "8080:80", "0.0.0.0:8081:80", "8070-8090:70-90"] {
        let message = world.refused(&["publish", "add", "thief", spec]);
        assert!(message.contains("`holder`"), "{spec}: {message}");
    }
    for port in [8080, 8081] {
        assert_leads(&world.n, at(host_ip(V4), port), "holder");
    }
    // The other address is free, and the more specific one decides by itself.
    world.second_lan();
    world.portolan_ok(&["publish", "add", "thief", "10.0.2.1:8081:80"]);
    assert_leads(&world.n, at(host_ip(V4), 8081), "holder");
    world.verify();
    naive(&world, "ip daddr 10.0.1.1", &format!("{}:80", thief.ip(V4)));
    assert_leads(&world.n, at(host_ip(V4), 8080), "thief");
    Some(vec![Row {
        number: 6,
        attack: "a container publishes a port that another has: on one address, on every address, as part of a range",
        control: "a rule of its own before the other's: it takes the traffic",
        outcome: "refused, and the holder is named; its traffic stays its own".into(),
    }])
}

/// Hands a connection on as a user's process does that runs inside the container's namespace.
fn relay(world: &World, listen: SocketAddr, c: &Container, to: SocketAddr) {
    let listener = with_netns(world.h.netns(), || TcpListener::bind(listen)).unwrap().unwrap();
    let inside = with_netns(c.netns(), || TcpStream::connect(to)).unwrap().unwrap();
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        // Until either goes away.
        let _ = copy(&mut &inside, &mut &client);
    });
}

fn clients() -> Option<Vec<Row>> {
    let mut world = World::or_skip("security-clients")?;
    world.daemon = true;
    world.network("web", &[]);
    world.network("four", &["--ipv6=false"]);
    let c = world.container("c", &["--network", "web", "-p", "8080:80", "-p", "8088:88"]);
    let d = world.container("d", &["--network", "four", "-p", "8090:80", "-p", "8098:88"]);
    let _open = [&c, &d].map(|c| TcpServer::start(c, any(V6, 80), "open").unwrap());
    let _local = [&c, &d].map(|c| TcpServer::start(c, at(loopback(V4), 88), "local").unwrap());
    let _local6 = TcpServer::start(&c, at(loopback(V6), 88), "local").unwrap();
    for family in FAMILIES {
        for (port, who) in
            [(8080, neighbour_ip(family)), (8090, if family == V4 { neighbour_ip(V4) } else { d.gateway(V4) })]
        {
            let from_lan = tcp_probe(&world.n, at(host_ip(family), port), LONG);
            assert_eq!(from_lan.seen().map(|seen| seen.ip().to_canonical()), Some(who), "{from_lan}");
            let local = || tcp_probe(&world.h, at(loopback(family), port), LONG).seen();
            // The resident begins to listen when it has heard of the port.
            assert!(eventually(LONG, || local().is_some()));
            assert!(!local().unwrap().ip().to_canonical().is_loopback());
        }
        for port in [8088, 8098] {
            // Where the resident hands on, it takes a connection before it knows that nobody will have it.
            for (from, to) in [(world.n.netns(), host_ip(family)), (world.h.netns(), loopback(family))] {
                let probe = tcp_probe(from, at(to, port), SHORT);
                assert_ne!(probe.banner(), Some("local"), "{to}:{port}: {probe}");
            }
        }
    }
    let relayed = |port, to| {
        let listen = at(host_ip(V4), port);
        relay(&world, listen, &c, at(loopback(V4), to));
        tcp_probe(&world.n, listen, LONG)
    };
    let seen = relayed(7080, 80).seen().unwrap();
    assert!(seen.ip().to_canonical().is_loopback(), "{seen}");
    assert_eq!(relayed(7088, 88).banner(), Some("local"));
    world.verify();
    Some(vec![
        Row {
            number: 15,
            attack: "clients of a published port, from the LAN and from the host's 127.0.0.1 and ::1, also by IPv6 to a container without it: as whom the server sees them",
            control: "a user's process that hands connections on inside: as 127.0.0.1",
            outcome: "never as a loopback address; those from the LAN over the container's own family as themselves"
                .into(),
        },
        Row {
            number: 15,
            attack: "a published port behind which the server listens on the container's 127.0.0.1 or ::1 alone",
            control: "the same process: it is reached",
            outcome: "not reached".into(),
        },
    ])
}
