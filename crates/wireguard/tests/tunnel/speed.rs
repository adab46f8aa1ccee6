//! How much a device carries: `cargo test --release -p portolan-wireguard --test tunnel -- --ignored --nocapture speed`,
//! of which `speed::of_overlay` is what VXLAN in it costs.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use portolan_lab::{Host, eventually};

use crate::world::{World, overlays, pair};

const SECONDS: &str = "5";
/// Measurements that take turns, as a machine is not as fast at all times.
const ROUNDS: usize = 9;

/// An iperf3 that answers once.
struct Server(Child);

impl Server {
    fn start(host: &Host) -> Self {
        let mut command = host.command("iperf3").unwrap();
        let child = command.args(["-s", "-1"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = eventually(Duration::from_secs(2), || self.0.try_wait().is_ok_and(|status| status.is_some()));
        if !ended {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Gbit/s received, and what was sent again.
fn measure(from: &Host, at: &Host, to: &str, words: &[&str]) -> (f64, u64) {
    let _server = Server::start(at);
    let output = from.command("iperf3").unwrap().args(["-J", "-t", SECONDS, "-c", to]).args(words).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let end = &said["end"];
    let received = end["sum_received"]["bits_per_second"].as_f64().or(end["sum"]["bits_per_second"].as_f64());
    (received.unwrap_or_default() / 1e9, end["sum_sent"]["retransmits"].as_u64().unwrap_or_default())
}

/// Seconds of processor that a process used (proc_pid_stat(5), fields 14 and 15).
fn processor(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

#[test]
#[ignore = "measures"]
fn speed() {
    let Some(world) = World::or_skip("wg-speed", 2) else { return };
    if !Path::new("/usr/bin/iperf3").exists() {
        eprintln!("SKIP: `wg-speed`: no iperf3");
        return;
    }
    let (one, other) = pair(&world);
    one.reaches(&other);
    overlays(&one, &other);
    for tunnel in [&one, &other] {
        let words = ["link", "set", &tunnel.options.name, "mtu", "1440"];
        assert!(tunnel.host.command("ip").unwrap().args(words).status().unwrap().success());
    }
    // The worker looks at the MTU every two seconds.
    std::thread::sleep(Duration::from_secs(3));
    for (what, to, words) in [
        ("veth, TCP", "10.0.1.2", &[][..]),
        ("tunnel, TCP", "10.8.0.2", &[]),
        ("tunnel, TCP back", "10.8.0.2", &["-R"]),
        ("tunnel, TCP of IPv6", "fd00:8::2", &[]),
        ("tunnel, TCP, 4 streams", "10.8.0.2", &["-P", "4"]),
        ("tunnel, TCP in small segments", "10.8.0.2", &["-M", "600"]),
        ("VXLAN in the tunnel, TCP", "10.20.0.2", &[]),
        ("tunnel, UDP of 1 Gbit/s", "10.8.0.2", &["-u", "-b", "1G"]),
    ] {
        let before = [&one, &other].map(|tunnel| processor(tunnel.pid()));
        let (rate, again) = measure(one.host, other.host, to, words);
        let used = [&one, &other].map(|tunnel| processor(tunnel.pid()));
        let load = std::fs::read_to_string("/proc/loadavg").unwrap();
        eprintln!(
            "{what}: {rate:.2} Gbit/s, {again} sent again, processor {:.1} s and {:.1} s, load {}",
            used[0] - before[0],
            used[1] - before[1],
            load.split(' ').next().unwrap()
        );
    }
    for tunnel in [&one, &other] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", tunnel.pid())).unwrap();
        let of = |key: &str| status.lines().find(|line| line.starts_with(key)).unwrap().replace('\t', " ");
        eprintln!("{}, {}, {}", of("VmRSS"), of("VmHWM"), of("Threads"));
    }
}

#[test]
#[ignore = "measures"]
fn of_overlay() {
    let Some(world) = World::or_skip("wg-vxlan", 2) else { return };
    if !Path::new("/usr/bin/iperf3").exists() {
        eprintln!("SKIP: `wg-vxlan`: no iperf3");
        return;
    }
    let (one, other) = pair(&world);
    one.reaches(&other);
    overlays(&one, &other);
    let ways = [("tunnel", "10.8.0.2"), ("VXLAN by IPv4 in it", "10.20.0.2"), ("VXLAN by IPv6 in it", "10.21.0.2")];
    let mut rates = [const { Vec::new() }; 3];
    let mut costs = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for at in (0..3).map(|at| (at + round) % 3) {
            let used = || processor(one.pid()) + processor(other.pid());
            let before = used();
            let (rate, _) = measure(one.host, other.host, ways[at].1, &["-t", "3"]);
            costs[at].push((used() - before) / (rate * 3.0));
            rates[at].push(rate);
        }
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let [rate, cost] = [&mut rates, &mut costs].map(|all| all.each_mut().map(median));
    for (at, (what, _)) in ways.iter().enumerate() {
        let share = |values: [f64; 3]| values[at] / values[0] * 100.0;
        eprintln!(
            "{what}: {:.2} Gbit/s ({:.0} %), workers' processor {:.2} s per Gbit ({:.0} %), {:.2?}",
            rate[at],
            share(rate),
            cost[at],
            share(cost),
            rates[at]
        );
    }
    for tunnel in [&one, &other] {
        assert!(!tunnel.log().contains("WARN"), "{}", tunnel.log());
    }
}
