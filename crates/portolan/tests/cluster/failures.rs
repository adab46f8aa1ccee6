//! Loss, partitions, etcd's members and daemons killed, in an order that a seed says: established connections go on, and
//! when all is well again every kernel is what etcd says, within ten seconds.
//!
//! `PORTOLAN_CLUSTER_SEEDS` sets how many schedules are run, or which (`FIRST..LAST`, without the last).

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portolan_lab::etcd::Etcd;
use portolan_lab::eventually;
use portolan_lab::probe::ping;
use portolan_lab::server::TcpServer;

use crate::overlay::{Pod, ask, has, joined};
use crate::world::{LONG, Node, World, etcd_address};

const SEEDS: u64 = 3;
const EVENTS: usize = 10;
/// How long until all is as it should be again.
const HEALED: Duration = Duration::from_secs(10);

/// Marsaglia's xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end as u64) as usize
    }
}

/// Has a host drop what these rules say, in place of what it dropped before.
fn drop_what(node: &Node, rules: &[String]) {
    let rules = rules.iter().map(|rule| format!("        {rule} drop\n")).collect::<String>();
    let hook =
        |name: &str| format!("    chain {name} {{\n        type filter hook {name} priority -350;\n{rules}    }}\n");
    let text = format!(
        "table inet weather {{ }}\ndelete table inet weather\ntable inet weather {{\n{}{}}}\n",
        hook("input"),
        hook("output")
    );
    let file = node.root.join("weather.nft");
    std::fs::write(&file, text).unwrap();
    assert!(node.host.command("nft").unwrap().arg("-f").arg(&file).status().unwrap().success());
}

/// A connection from `near` to `far` that is used until told to stop: how often, and why no more.
pub(crate) fn talk(near: &Pod, to: SocketAddr, over: &AtomicBool, count: &AtomicU64) -> Result<(), String> {
    let said = |error: std::io::Error| format!("{} to {to}: {error}", near.name);
    let mut stream = near.place.enter(|| TcpStream::connect(to)).map_err(said)?;
    // Longer than anything lasts here.
    stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(said)?;
    let mut banner = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).map_err(said)?;
        banner.push(byte[0]);
    }
    let mut number = 0u64;
    while !over.load(Ordering::Relaxed) {
        stream.write_all(&number.to_be_bytes()).map_err(said)?;
        let mut echo = [0; 8];
        stream.read_exact(&mut echo).map_err(said)?;
        if echo != number.to_be_bytes() {
            return Err(format!("{} to {to}: another echo came", near.name));
        }
        number += 1;
        count.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What is wrong with one of the hosts, and who is on them.
struct Play<'a> {
    world: &'a World,
    etcd: &'a mut Etcd,
    random: Random,
    dead: Option<usize>,
    guests: Vec<(usize, Pod)>,
    guest: usize,
    log: Vec<String>,
}

impl Play<'_> {
    fn event(&mut self) {
        let at = self.random.below(3);
        let other = (at + 1 + self.random.below(2)) % 3;
        let node = &self.world.nodes[at];
        let name = node.host.name();
        let what = match self.random.below(10) {
            0 => {
                drop_what(node, &["udp dport 4789 numgen random mod 5 == 0".to_owned()]);
                format!("{name} loses every fifth packet of tunnels")
            }
            1 => {
                drop_what(node, &["tcp dport 2379".to_owned(), "tcp sport 2379".to_owned()]);
                format!("{name} is cut off from etcd")
            }
            2 => {
                let address = format!("10.0.1.{}", other + 1);
                drop_what(
                    node,
                    &[format!("ip saddr {address} udp dport 4789"), format!("ip daddr {address} udp dport 4789")],
                );
                format!("{name} is cut off from host {other}")
            }
            3 => {
                drop_what(node, &[]);
                format!("{name} has fair weather")
            }
            4 => match self.dead.take() {
                Some(member) => {
                    self.etcd.launch(member).unwrap();
                    format!("member {member} of etcd is back")
                }
                None => {
                    let leader = leader(self.world, self.etcd).unwrap_or(at);
                    self.etcd.kill(leader);
                    self.dead = Some(leader);
                    format!("member {leader} of etcd, the leader, is killed")
                }
            },
            5 => {
                node.kill_daemon();
                format!("{name}'s daemon is killed")
            }
            6 => {
                let _ = node.run(&["daemon", "upgrade"]);
                format!("{name}'s daemon becomes another")
            }
            7 | 8 => {
                let guest = format!("guest{}", self.guest);
                self.guest += 1;
                let place = self.world.lab.host(&guest).unwrap();
                let path = place.netns_path().display().to_string();
                let output = node.run(&["attach", "--netns", &path, "--name", &guest, "--network", "web"]);
                if output.status.success() {
                    let pod = self.world.known(node, "web", &guest, place);
                    self.guests.push((at, pod));
                    format!("{guest} comes to {name}")
                } else {
                    format!("{guest} does not come to {name}: {}", String::from_utf8_lossy(&output.stderr).trim())
                }
            }
            _ if self.guests.is_empty() => "nobody goes".to_owned(),
            _ => {
                let (at, pod) = self.guests.swap_remove(self.random.below(self.guests.len()));
                self.world.nodes[at].ok(&format!("detach {}", pod.name));
                format!("{} goes", pod.name)
            }
        };
        self.log.push(what);
        std::thread::sleep(Duration::from_millis(100 * (1 + self.random.below(10) as u64)));
    }

    fn heal(&mut self) {
        if let Some(member) = self.dead.take() {
            self.etcd.launch(member).unwrap();
        }
        for node in &self.world.nodes {
            drop_what(node, &[]);
        }
        self.log.push("all is well again".to_owned());
    }
}

/// Which member leads.
fn leader(world: &World, etcd: &Etcd) -> Option<usize> {
    let output = world.etcd_host(0).command("etcdctl").ok()?;
    let mut output = output;
    let endpoints = etcd.endpoints("http").join(",");
    let output =
        output.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints, "endpoint", "status"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().find(|line| line.split(", ").nth(4) == Some("true"))?;
    (0..3).find(|number| line.contains(&format!("//{}:", etcd_address(*number))))
}

fn schedule(seed: u64) {
    let Some(world) = World::or_skip(&format!("overlay-failures-{seed}")) else { return };
    let mut etcd = world.etcd(3);
    joined(&world, &etcd);
    world.nodes[0].ok("network create -d overlay web");
    for node in &world.nodes {
        has(node, "web");
    }
    let stays: Vec<Pod> =
        world.nodes.iter().map(|node| world.pod(node, "web", &format!("stays-{}", node.host.name()))).collect();
    let place: SocketAddr = "[::]:80".parse().unwrap();
    let _servers: Vec<TcpServer> = stays.iter().map(|pod| TcpServer::start(pod, place, &pod.name).unwrap()).collect();
    for pod in &stays {
        let reaches =
            |to: &Pod| to.addresses.iter().all(|address| ping(pod, *address, Duration::from_secs(1)).is_open());
        assert!(eventually(LONG, || stays.iter().all(reaches)), "{}", pod.name);
    }
    let (over, count, broken) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
    let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut play =
        Play { world: &world, etcd: &mut etcd, random, dead: None, guests: Vec::new(), guest: 0, log: Vec::new() };
    std::thread::scope(|scope| {
        for near in &stays {
            for far in stays.iter().filter(|far| far.name != near.name) {
                for address in &far.addresses {
                    let (over, count, broken) = (&over, &count, &broken);
                    scope.spawn(move || {
                        if let Err(why) = talk(near, SocketAddr::new(*address, 80), over, count) {
                            broken.lock().unwrap().push(why);
                        }
                    });
                }
            }
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..EVENTS {
                play.event();
            }
            play.heal();
            let began = Instant::now();
            // Who is asked before all are back waits for those who are not.
            let is_well = || world.nodes.iter().all(|node| node.run(&["cluster", "status"]).status.success());
            let is_whole = || is_well() && world.nodes[0].run(&["cluster", "verify"]).status.success();
            let whole = eventually(LONG, is_whole);
            let took = began.elapsed();
            let said = || String::from_utf8_lossy(&world.nodes[0].run(&["cluster", "verify"]).stdout).into_owned();
            assert!(whole && took < HEALED, "seed {seed}: {took:?}: {}\n{:#?}", said(), play.log);
            // Who talks has said something since.
            let before = count.load(Ordering::Relaxed);
            assert!(eventually(LONG, || count.load(Ordering::Relaxed) > before + 100), "seed {seed}: nobody talks");
            took
        }));
        over.store(true, Ordering::Relaxed);
        match done {
            Ok(took) => eprintln!("seed {seed}: whole after {took:?}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    let broken = broken.into_inner().unwrap();
    assert!(broken.is_empty(), "seed {seed}: {broken:#?} {:#?}", play.log);
    // Nobody has another's address, everybody is reached, and known by name.
    let all: Vec<&Pod> = stays.iter().chain(play.guests.iter().map(|(_, pod)| pod)).collect();
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for pod in &all {
        for address in &pod.addresses {
            assert!(addresses.insert(*address), "seed {seed}: {address} is had twice: {:#?}", play.log);
            for from in &stays {
                assert!(
                    ping(from, *address, LONG).is_open(),
                    "seed {seed}: {} to {}: {:#?}",
                    from.name,
                    pod.name,
                    play.log
                );
            }
        }
        for from in &stays {
            let wanted = pod.addresses[0].to_string();
            assert!(eventually(LONG, || ask(from, &pod.name, "a") == [wanted.clone()]), "seed {seed}: {}", pod.name);
        }
    }
}

#[test]
fn connections_survive_whatever_fails() {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (first, last) = match std::env::var("PORTOLAN_CLUSTER_SEEDS") {
        Ok(seeds) => match seeds.split_once("..") {
            Some((first, last)) => (number(first), number(last)),
            None => (0, number(&seeds)),
        },
        Err(_) => (0, SEEDS),
    };
    (first..last).for_each(schedule);
}
