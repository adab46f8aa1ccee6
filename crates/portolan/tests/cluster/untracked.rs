//! Packets of the encrypted link, which are no connections but where the host has a firewall of its own.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use portolan_kernel::conntrack::{self, Filter};
use portolan_kernel::netlink::{NETFILTER, Socket};
use portolan_lab::eventually;
use portolan_lab::probe::ping;

use crate::overlay::{Pod, reach, two_hosts};
use crate::world::{LONG, Node};

/// WireGuard's port.
const PORT: u16 = 51820;
/// Within this a firewall has to be heard of.
const SOON: Duration = Duration::from_secs(5);

/// A firewall that lets in what answers, and what has come out of the link: of encrypted packets nothing that others begin.
const OWN: &str = "table inet own {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iif lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        iifname { \"ps*\", \"pt*\", \"vx-*\" } accept
    }
}";

fn nft(node: &Node, text: &str) {
    let mut command = node.host.command("nft").unwrap();
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
}

/// What our rules do not track; nothing while there are none.
fn untracked(node: &Node) -> String {
    let words = ["list", "set", "inet", "portolan", "untracked"];
    let output = node.host.command("nft").unwrap().args(words).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn is_untracked(node: &Node) -> bool {
    untracked(node).contains(&format!("{PORT} comment"))
}

/// How many of the connections that the host knows are the link's packets.
fn tracked(node: &Node) -> usize {
    let dump = || conntrack::dump(&mut Socket::open(NETFILTER).unwrap(), Filter::default()).unwrap();
    let entries = node.host.enter(dump);
    entries.iter().filter(|entry| format!("{entry:?}").contains(&PORT.to_string())).count()
}

fn forget_connections(node: &Node) {
    assert!(node.host.command("conntrack").unwrap().arg("-F").output().unwrap().status.success());
}

#[track_caller]
fn reach_both_ways(near: &Pod, far: &Pod) {
    for (from, to) in [(near, far), (far, near)] {
        let is_open = || to.addresses.iter().all(|address| ping(from, *address, Duration::from_secs(1)).is_open());
        assert!(eventually(SOON, is_open), "{} to {}", from.name, to.name);
    }
    for _ in 0..5 {
        reach(near, far);
        reach(far, near);
    }
}

/// Watches for a while that packets are tracked, from the moment on that there are rules.
#[track_caller]
fn stays_tracked(node: &Node) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        assert!(!is_untracked(node), "{:?} after it began", begin.elapsed());
    }
    assert!(untracked(node).contains("4789"), "there are rules: {}", untracked(node));
}

#[test]
fn encrypted_packets_are_tracked_for_a_firewall_of_the_hosts_own() {
    let create = "network create -d overlay --opt encrypted web";
    let Some((world, _etcd, near, far)) = two_hosts("overlay-untracked", create) else { return };
    let a = &world.nodes[0];
    assert!(eventually(LONG, || is_untracked(a)), "{}", untracked(a));
    // Packets of before may have been tracked.
    forget_connections(a);
    reach_both_ways(&near, &far);
    assert_eq!(tracked(a), 0, "without a firewall");
    a.ok("verify");
    let rules = a.ok("rules");
    assert!(rules.contains(&format!("encrypted packets of udp {PORT} are no connections")), "{rules}");

    nft(a, OWN);
    assert!(eventually(SOON, || !is_untracked(a)), "{}", untracked(a));
    reach_both_ways(&near, &far);
    assert!(tracked(a) > 0, "with a firewall");
    a.ok("verify");

    // Whoever begins anew has to find it before he makes rules.
    a.kill_daemon();
    stays_tracked(a);
    a.ok("daemon upgrade");
    stays_tracked(a);
    a.ok("daemon stop");
    nft(a, &format!("flush ruleset\n{OWN}"));
    a.ok("daemon start");
    assert!(eventually(LONG, || !untracked(a).is_empty()), "no rules");
    stays_tracked(a);
    reach_both_ways(&near, &far);

    nft(a, "delete table inet own");
    assert!(eventually(SOON, || is_untracked(a)), "{}", untracked(a));
    reach_both_ways(&near, &far);
    a.ok("verify");

    // While there is no daemon, nobody would hear of a firewall.
    a.ok("daemon stop");
    assert!(!is_untracked(a), "{}", untracked(a));
    nft(a, OWN);
    reach_both_ways(&near, &far);
    a.ok("daemon start");
    stays_tracked(a);
    nft(a, "delete table inet own");
    assert!(eventually(SOON, || is_untracked(a)), "{}", untracked(a));

    // Of this the kernel tells nobody, and nothing takes it away again.
    let words = ["-w", "-A", "INPUT", "-p", "udp", "--dport", "9", "-j", "ACCEPT"];
    match a.host.command("iptables-legacy").unwrap().args(words).output() {
        Ok(output) if output.status.success() => {
            assert!(eventually(SOON, || !is_untracked(a)), "{}", untracked(a));
            reach_both_ways(&near, &far);
        }
        other => eprintln!("no iptables-legacy, of which nothing is tested: {other:?}"),
    }
}
