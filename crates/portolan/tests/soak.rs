//! Random verbs of all faces at once, with packets through published ports, and kills of verbs and of the daemon, for as long
//! as `PORTOLAN_SOAK` says, in seconds: in the end all is as before, and the daemon has not grown.
//!
//! What there is each second is written to `target/soak/samples.csv`, and drawn in `target/soak/soak.svg`.

mod common;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::*;
use portolan_kernel::rtnl::Family;
use portolan_lab::server::TcpServer;
use portolan_lab::snapshot::snapshot;
use portolan_lab::trace::{CHANGES, kill_at};
use portolan_lab::{Host, eventually};
use serde_json::{Value, json};

/// How long without `PORTOLAN_SOAK`.
const BRIEFLY: u64 = 20;
/// What is sampled, as the columns are called.
const COLUMNS: [&str; 7] = ["rss_kib", "fds", "threads", "kernel_objects", "rows", "files", "verbs"];

struct Soak {
    world: World,
    plugin: PathBuf,
    api: PathBuf,
    /// Containers of the command line, of Podman and of a CNI runtime.
    places: Vec<Host>,
    random: Random,
    verbs: u64,
    refused: u64,
    killed: u64,
    daemons_killed: u64,
    packets: u64,
    samples: Vec<[u64; 7]>,
}

impl Soak {
    fn start_daemon(&self) {
        let plugin = self.plugin.to_str().unwrap();
        let output = self.world.portolan(&["daemon", "start", "--docker", plugin, "--api"]);
        assert!(output.status.success(), "{output:?}");
    }

    fn daemon(&self) -> Option<u32> {
        let output = self.world.portolan(&["--json", "daemon", "status"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        status["pid"].as_u64().map(|pid| pid as u32)
    }

    fn command(&self, words: &[&str], input: Option<Value>) -> std::process::Command {
        let mut command = self.world.command(words);
        command.stdin(match input {
            Some(text) => {
                let path = self.world.lab.dir().join("input.json");
                fs::write(&path, text.to_string()).unwrap();
                Stdio::from(File::open(path).unwrap())
            }
            None => Stdio::null(),
        });
        command
    }

    fn podman(&self, verb: &str, n: usize) -> std::process::Command {
        let subnets = json!([{"subnet": "10.93.0.0/24", "gateway": "10.93.0.1"}]);
        let input = json!({
            "container_id": format!("c0ffee{n}"), "container_name": format!("pod{n}"),
            "networks": {"web": {"static_ips": [format!("10.93.0.{}", 5 + n)], "interface_name": "eth0"}},
            "network_info": {"web": {
                "name": "web", "id": "77".repeat(32), "driver": "bridge", "network_interface": "podman7",
                "subnets": subnets, "ipv6_enabled": false, "internal": false, "dns_enabled": true,
                "ipam_options": {"driver": "host-local"},
            }},
            "port_mappings": [{"host_ip": "", "host_port": 8200 + n, "container_port": 80, "range": 1, "protocol": "tcp"}],
        });
        let (root, path) = (self.world.root.to_str().unwrap(), self.places[n].netns_path().to_str().unwrap());
        self.command(&["netavark", "--config", root, "--rootless=false", verb, path], Some(input))
    }

    fn cni(&self, verb: &str, n: usize) -> std::process::Command {
        let input = json!({
            "cniVersion": "1.1.0", "name": "kube", "type": "portolan",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.94.0.0/24"}], [{"subnet": "fd94::/64"}]]},
            "runtimeConfig": {"portMappings": [{"hostPort": 8300 + n, "containerPort": 80, "protocol": "tcp"}]},
        });
        let mut command = self.command(&[], Some(input));
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", format!("kube{n}")).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", self.places[n].netns_path()).env("CNI_PATH", self.world.lab.dir());
        command
    }

    /// What a socket answers; none if nobody is there, as while a killed daemon comes back.
    fn http(&self, socket: &PathBuf, method: &str, path: &str, body: &Value) -> Option<String> {
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(LONG)).ok()?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn call(&mut self, socket: &PathBuf, method: &str, path: &str, body: Value) {
        self.refused += u64::from(self.http(socket, method, path, &body).is_none());
    }

    /// Some verb of some face: started by nobody else, it is refused or done.
    fn verb(&mut self) {
        self.verbs += 1;
        let (n, m, kind) = (self.random.below(3), self.random.below(3), self.random.below(20));
        let name = format!("box{n}");
        let network = format!("net{m}");
        let subnet = format!("10.{}.0.0/24", 60 + m);
        let port = format!("{}:80", 8100 + n);
        let path = self.places[n].netns_path().to_str().unwrap().to_owned();
        let hex = |start: &str, n: usize| format!("{start}{n}").repeat(32);
        let (plugin, api) = (self.plugin.clone(), self.api.clone());
        let command = match kind {
            0 | 1 => self.command(&["network", "create", "--subnet", &subnet, &network], None),
            2 => self.command(&["network", "rm", &network], None),
            3..6 => {
                self.command(&["attach", "--netns", &path, "--name", &name, "--network", &network, "-p", &port], None)
            }
            6 => self.command(&["network", "connect", &network, &name], None),
            7 => self.command(&["network", "disconnect", &network, &name], None),
            8 => self.command(&["publish", "add", &name, &format!("{}:90", 8400 + m)], None),
            9 => self.command(&["detach", &name], None),
            10 => self.podman("setup", 3 + n),
            11 => self.podman("teardown", 3 + n),
            12 => self.cni("ADD", 6 + n),
            13 => self.cni("DEL", 6 + n),
            14 => return self.call(&api, "POST", "/networks/create", json!({"Name": format!("api{m}")})),
            15 => return self.call(&api, "DELETE", &format!("/networks/api{m}"), Value::Null),
            16 => return self.call(&api, "GET", "/containers/json", Value::Null),
            17 => {
                let pool = json!([{"AddressSpace": "LocalDefault", "Pool": format!("10.7{m}.0.0/24"), "Gateway": format!("10.7{m}.0.1/24")}]);
                let options = json!({"com.docker.network.enable_ipv6": false, "com.docker.network.generic": {}});
                let body = json!({"NetworkID": hex("a", m), "Options": options, "IPv4Data": pool, "IPv6Data": []});
                return self.call(&plugin, "POST", "/NetworkDriver.CreateNetwork", body);
            }
            18 => {
                let body = json!({"NetworkID": hex("a", m), "EndpointID": hex("b", n), "Interface": {"Address": format!("10.7{m}.0.{}/24", 2 + n)}, "Options": {}});
                return self.call(&plugin, "POST", "/NetworkDriver.CreateEndpoint", body);
            }
            _ => {
                for n in 0..3 {
                    let body = json!({"NetworkID": hex("a", m), "EndpointID": hex("b", n)});
                    self.http(&plugin, "POST", "/NetworkDriver.DeleteEndpoint", &body);
                }
                return self.call(&plugin, "POST", "/NetworkDriver.DeleteNetwork", json!({"NetworkID": hex("a", m)}));
            }
        };
        let mut command = command;
        if self.random.below(12) == 0 {
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let at = 1 + self.random.below(60);
            kill_at(command, CHANGES, at).unwrap();
            self.killed += 1;
            return;
        }
        let output: Output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked") && output.status.code().is_some(), "{output:?}");
        self.refused += u64::from(!output.status.success());
        if output.status.success() && (3..6).contains(&kind) {
            self.traffic(n);
        }
    }

    /// A connection to the port of a container that was just attached gets there.
    fn traffic(&mut self, n: usize) {
        let _server = TcpServer::start(&self.places[n], any(Family::V4, 80), "here").unwrap();
        assert_leads(&self.world.n, at(host_ip(Family::V4), 8100 + n as u16), "here");
        self.packets += 1;
    }

    fn sample(&mut self) {
        let Some(pid) = self.daemon() else { return };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let number = |key: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let count = |path: PathBuf| fs::read_dir(path).map_or(0, |entries| entries.count() as u64);
        let rows = ["ps", "network"].iter().map(|what| {
            let args: &[&str] = if *what == "ps" { &["ps", "-aq"] } else { &["network", "ls", "-q"] };
            self.world.portolan_ok(args).lines().count() as u64
        });
        let sample = [
            number("VmRSS:"),
            count(format!("/proc/{pid}/fd").into()),
            number("Threads:"),
            snapshot(&self.world.h).unwrap().lines().len() as u64,
            rows.sum(),
            count(self.world.root.clone()) + count(self.world.root.join("run")),
            self.verbs,
        ];
        self.samples.push(sample);
    }

    fn write(&self) {
        let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/soak");
        fs::create_dir_all(&target).unwrap();
        let mut text = format!("second,{}\n", COLUMNS.join(","));
        for (second, sample) in self.samples.iter().enumerate() {
            let numbers: Vec<String> = sample.iter().map(ToString::to_string).collect();
            writeln!(text, "{second},{}", numbers.join(",")).unwrap();
        }
        fs::write(target.join("samples.csv"), text).unwrap();
        fs::write(target.join("soak.svg"), self.draw()).unwrap();
    }

    /// One strip for each column, from zero to its greatest.
    fn draw(&self) -> String {
        let (width, height) = (720, 70);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            width + 40,
            (height + 30) * COLUMNS.len() + 10
        );
        for (column, name) in COLUMNS.iter().enumerate() {
            let values: Vec<u64> = self.samples.iter().map(|sample| sample[column]).collect();
            let most = values.iter().max().copied().unwrap_or(0).max(1);
            let top = column * (height + 30) + 22;
            // One point for each of its width, the greatest of what falls on it.
            let step = values.len().div_ceil(width).max(1);
            let points: Vec<String> = values
                .chunks(step)
                .enumerate()
                .map(|(at, values_here)| {
                    let value = values_here.iter().max().copied().unwrap_or(0);
                    let x = 20.0 + (at * step) as f64 * width as f64 / values.len().max(2) as f64;
                    let y = (top + height) as f64 - value as f64 * height as f64 / most as f64;
                    format!("{x:.1},{y:.1}")
                })
                .collect();
            let last = values.last().copied().unwrap_or(0);
            writeln!(svg, "<text x=\"20\" y=\"{}\">{name}: at most {most}, in the end {last}</text>", top - 5).unwrap();
            writeln!(svg, "<path d=\"M20 {0}H{1}\" stroke=\"#bbb\"/>", top + height, width + 20).unwrap();
            writeln!(svg, "<polyline fill=\"none\" stroke=\"#1f5fa8\" points=\"{}\"/>", points.join(" ")).unwrap();
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Everything is taken back by plain verbs.
    fn clear(&mut self) {
        for n in 0..3 {
            drop(self.podman("teardown", 3 + n).output().unwrap());
            drop(self.cni("DEL", 6 + n).output().unwrap());
        }
        for name in self.world.portolan_ok(&["ps", "-aq"]).lines() {
            self.world.portolan_ok(&["rm", "-f", name]);
        }
        self.world.portolan_ok(&["gc"]);
        self.world.portolan_ok(&["network", "prune", "-f"]);
    }

    fn mean(&self, column: usize, quarter: usize) -> f64 {
        let part = self.samples.len() / 4;
        let values = &self.samples[part * quarter..part * (quarter + 1)];
        values.iter().map(|sample| sample[column] as f64).sum::<f64>() / values.len().max(1) as f64
    }
}

#[test]
fn soak() {
    let Some(mut world) = World::or_skip("soak") else { return };
    world.daemon = true;
    let untouched = world.untouched();
    let places = (0..9).map(|n| world.lab.host(&format!("p{n}")).unwrap()).collect();
    let (plugin, api) = (world.lab.dir().join("docker/portolan.sock"), world.root.join("run/docker.sock"));
    let mut soak = Soak {
        world,
        plugin,
        api,
        places,
        random: Random(0x9e37_79b9_7f4a_7c15),
        verbs: 0,
        refused: 0,
        killed: 0,
        daemons_killed: 0,
        packets: 0,
        samples: Vec::new(),
    };
    soak.start_daemon();
    let seconds = std::env::var("PORTOLAN_SOAK").map_or(BRIEFLY, |text| text.parse().expect("a number of seconds"));
    let (started, all) = (Instant::now(), Duration::from_secs(seconds));
    let mut sampled = Instant::now();
    while started.elapsed() < all {
        soak.verb();
        // In the first quarter: what it keeps would go with it.
        if started.elapsed() < all / 4
            && soak.random.below(40) == 0
            && let Some(pid) = soak.daemon()
        {
            let kill = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
            soak.daemons_killed += u64::from(kill.success());
            assert!(eventually(LONG, || soak.daemon().is_some_and(|now| now != pid)), "its supervisor starts it again");
        }
        if sampled.elapsed() >= Duration::from_secs(1) {
            sampled = Instant::now();
            soak.sample();
            if soak.samples.len().is_multiple_of(30) {
                soak.write();
            }
        }
    }
    soak.write();
    let Soak { verbs, refused, killed, daemons_killed, packets, .. } = soak;
    eprintln!(
        "soak: {seconds} s, {verbs} verbs, {refused} refused, {killed} killed, {daemons_killed} daemons killed, {packets} \
         connections; {} samples",
        soak.samples.len()
    );
    for (column, name) in COLUMNS.iter().enumerate() {
        let quarters: Vec<String> = (0..4).map(|quarter| format!("{:.1}", soak.mean(column, quarter))).collect();
        eprintln!("soak: {name}: mean of each quarter {}", quarters.join(", "));
    }
    soak.clear();
    soak.world.verify();
    soak.world.portolan_ok(&["daemon", "stop"]);
    soak.world.assert_untouched(&untouched, "in the end");
    assert!(verbs > seconds && killed > 0 && packets > 0, "is that all?");
    if soak.samples.len() >= 60 {
        // Between the second and the last quarter a quarter more, and two megabytes, is what an allocator may keep.
        let (early, late) = (soak.mean(0, 1), soak.mean(0, 3));
        assert!(late < early * 1.25 + 2048.0, "it grew from {early} to {late} KiB");
        let (early, late) = (soak.mean(1, 1), soak.mean(1, 3));
        assert!(late < early * 1.25 + 8.0, "it had {early} descriptors, and has {late}");
    }
}
