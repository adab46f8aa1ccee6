//! A table of connections that is full (`nf_conntrack_max`, which counts each namespace by itself).

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use portolan_kernel::rtnl::Family;
use portolan_lab::probe::tcp_probe;
use portolan_lab::server::TcpServer;

use crate::common::*;
use crate::place::*;

/// More entries than this are not made.
const MOST: usize = 300_000;

/// Fills the table with connections that nobody may drop for others (`early_drop()`), and answers how many there are.
fn fill(place: &Place, most: usize) -> usize {
    let mut lines = String::new();
    for n in 0..most {
        let (port, address) = (1 + n % 60_000, 1 + n / 60_000);
        let _ = writeln!(
            lines,
            "-A -s 192.0.2.{address} -d 198.51.100.1 -r 198.51.100.1 -q 192.0.2.{address} -p udp --sport {port} \
             --dport 9 --reply-port-src 9 --reply-port-dst {port} -t 1000 -u ASSURED,SEEN_REPLY"
        );
    }
    let path = place.world.lab.dir().join("flows");
    fs::write(&path, lines).unwrap();
    let mut command = Command::new("conntrack");
    command.arg("-R").arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
    place.world.h.adopt(command).unwrap().status().unwrap();
    count(place)
}

fn count(place: &Place) -> usize {
    let read = || fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or_default();
    place.world.h.enter(read).trim().parse().unwrap_or(0)
}

#[test]
fn full_table_of_connections() {
    let Some(place) = Place::or_skip("full table", ON_NETWORK_A) else { return };
    let max = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap_or_default();
    let Some(max) = max.trim().parse::<usize>().ok().filter(|max| *max <= MOST) else {
        return eprintln!("SKIP: the table is too large to be filled: {max}");
    };
    place.line(NETWORK_A);
    place.line(ON_A);
    let server = TcpServer::start(&place.container, any(Family::V4, 80), "c").unwrap();
    let port = at(host_ip(Family::V4), 8080);
    assert_leads(&place.world.n, port, "c");
    let started = Instant::now();
    let made = fill(&place, max + 2000);
    eprintln!("full table: {made} of {max} entries in {:?}", started.elapsed());
    assert!(made + 10 >= max, "{made} of {max}");
    // It is full indeed: nobody gets in.
    let probe = tcp_probe(&place.world.n, port, SHORT);
    assert!(!probe.is_open(), "{probe}");

    // Verbs need no room in it.
    let started = Instant::now();
    for line in [
        "attach --netns NS-O --name o --network BESIDE -p 8090:80 -p 5353:53/udp",
        "publish add c 9090:90",
        "publish rm c 9090:90",
        "detach o",
        NETWORK_B,
        CONNECT,
        "network disconnect b c",
        "network rm b",
        "gc",
        "verify",
    ] {
        let output = place.try_line(line);
        assert!(output.status.success() && output.stderr.is_empty(), "`{line}`: {output:?}");
    }
    eprintln!("full table: ten verbs in {:?}", started.elapsed());
    assert!(count(&place) + 100 >= max, "nobody else's flows are forgotten: {}", count(&place));
    // With room again, the port leads where it did.
    let mut flush = Command::new("conntrack");
    flush.arg("-F").stdout(Stdio::null()).stderr(Stdio::null());
    place.world.h.adopt(flush).unwrap().status().unwrap();
    assert_leads(&place.world.n, port, "c");
    drop(server);
    place.nothing_left("full table");
    place.clear("full table");
}
