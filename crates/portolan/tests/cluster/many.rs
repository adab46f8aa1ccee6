//! Six hosts with ten containers each, by three members of etcd: everybody reaches everybody, and nothing is flooded.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portolan_lab::eventually;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;

use crate::overlay::{Pod, has, joined, ways};
use crate::world::{LONG, Node, World};

const HOSTS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const EACH: usize = 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// Counts, on the way out of a host, the packets of tunnels and those of them that carry a frame for more than one.
const COUNTERS: &str = "
table inet seen {
    counter tunnel { }
    counter flooded { }
    counter clear { }
    chain out {
        type filter hook output priority 0;
        udp dport 4789 counter name tunnel
        udp dport 4789 @th,128,8 & 0x01 == 0x01 counter name flooded
        udp dport 4789 oifname eth0 counter name clear
    }
}";

fn count(node: &Node) {
    let file = node.root.join("seen.nft");
    std::fs::write(&file, COUNTERS).unwrap();
    assert!(node.host.command("nft").unwrap().arg("-f").arg(&file).status().unwrap().success());
}

fn counted(node: &Node, name: &str) -> u64 {
    let output = node.host.command("nft").unwrap().args(["list", "counter", "inet", "seen", name]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let number = text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    number.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

/// What `from` does not reach by ping in both families and by TCP, or does not know by name.
fn missed(from: &Pod, pods: &[Pod]) -> Vec<String> {
    let others = || pods.iter().filter(|to| to.name != from.name);
    let mut missed = Vec::new();
    for to in others() {
        for address in &to.addresses {
            let probe = ping(from, *address, PATIENCE);
            if !probe.is_open() {
                missed.push(format!("{} to {} at {address}: {probe:?}", from.name, to.name));
            }
            let probe = tcp_probe(from, SocketAddr::new(*address, 80), PATIENCE);
            if probe.banner() != Some(&to.name) {
                missed.push(format!("{} to {} by TCP at {address}: {probe:?}", from.name, to.name));
            }
        }
    }
    let names: Vec<&str> = others().flat_map(|to| [to.name.as_str(), "a", to.name.as_str(), "aaaa"]).collect();
    let mut dig = from.place.command("dig").unwrap();
    let output = dig.args(["+short", "+tries=2", "+time=2", &from.gateway()]).args(&names).output().unwrap();
    let told: Vec<IpAddr> =
        String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()).collect();
    let wanted: Vec<IpAddr> = others().flat_map(|to| to.addresses.iter().copied()).collect();
    if told != wanted {
        missed.push(format!("{} is told {told:?}, not {wanted:?}", from.name));
    }
    missed
}

#[test]
fn sixty_containers_on_six_hosts_reach_each_other() {
    everybody("overlay-many", "network create -d overlay web");
}

#[test]
fn sixty_containers_reach_each_other_through_encryption() {
    everybody("overlay-many-sealed", "network create -d overlay --opt encrypted web");
}

fn everybody(name: &str, create: &str) {
    let is_encrypted = create.contains("encrypted");
    let Some(world) = World::of(name, &HOSTS) else { return };
    let etcd = world.etcd(3);
    joined(&world, &etcd);
    world.nodes[0].ok(create);
    for node in &world.nodes {
        has(node, "web");
        count(node);
    }
    let mut pods = Vec::new();
    for node in &world.nodes {
        pods.extend((0..EACH).map(|number| world.pod(node, "web", &format!("{}-{number}", node.host.name()))));
    }
    // Of both families.
    let place: SocketAddr = "[::]:80".parse().unwrap();
    let servers: Vec<TcpServer> = pods.iter().map(|pod| TcpServer::start(pod, place, &pod.name).unwrap()).collect();
    // One host more is one forwarding entry and one neighbour of each family more, and a route for each of its blocks.
    let others = HOSTS.len() - 1;
    for node in &world.nodes {
        let is_whole = || ways(node)[3].len() == others && ways(node)[0].len() == others;
        assert!(eventually(LONG, is_whole), "{}: {:#?}", node.host.name(), ways(node));
        // On the link packets of IPv6 go to its address, and what measures the path to that of the tunnel's end.
        let neighbours = if is_encrypted { 3 } else { 2 };
        assert_eq!(ways(node)[2].len(), neighbours * others, "{:#?}", ways(node)[2]);
    }
    let knows_all = || missed(&pods[0], &pods).is_empty();
    assert!(eventually(LONG, knows_all), "{:#?}", missed(&pods[0], &pods));
    let missed: Vec<String> = std::thread::scope(|scope| {
        let half =
            |odd: usize| pods.iter().skip(odd).step_by(2).flat_map(|from| missed(from, &pods)).collect::<Vec<_>>();
        let other = scope.spawn(move || half(1));
        let mut all = half(0);
        all.extend(other.join().unwrap());
        all
    });
    assert!(missed.is_empty(), "{missed:#?}");
    for node in &world.nodes {
        // Hosts measure their paths all the time.
        let before = counted(node, "clear");
        let (tunnel, flooded) = (counted(node, "tunnel"), counted(node, "flooded"));
        let clear = before..=counted(node, "clear");
        assert!(tunnel > 1000, "{}: {tunnel} packets of tunnels were seen", node.host.name());
        assert_eq!(flooded, 0, "{}: of {tunnel}", node.host.name());
        // By the link alone, or by the LAN alone.
        let wanted = if is_encrypted { 0 } else { tunnel };
        assert!(clear.contains(&wanted) && (*clear.end() == 0) == is_encrypted, "{}: {clear:?}", node.host.name());
        node.ok("verify");
        node.is_well();
    }
    eprintln!("{} containers, {} servers; nothing flooded", pods.len(), servers.len());
}
