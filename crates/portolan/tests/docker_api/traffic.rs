//! What is asked by the API moves packets, and what happens elsewhere is told by it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use portolan_kernel::rtnl::Family;
use portolan_lab::eventually;
use portolan_lab::server::TcpServer;
use serde_json::{Value, json};

use crate::common::dnsmasq::{self, Server};
use crate::common::*;
use crate::lines::CLIENTS;
use crate::served::Served;

impl Served {
    /// Runs Debian's client.
    #[track_caller]
    fn docker(&self, args: &[&str]) -> String {
        let output = self.client(args).output().unwrap();
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new(CLIENTS[0].1);
        command.args(args).env("DOCKER_HOST", format!("unix://{}", self.socket.display()));
        command.env("DOCKER_CONFIG", self.world.lab.dir());
        command
    }

    /// A field of a container's place on a network.
    fn on(&self, container: &str, network: &str, field: &str) -> String {
        let shown = self.get(&format!("/containers/{container}/json")).json();
        shown["NetworkSettings"]["Networks"][network][field].as_str().unwrap_or_default().to_owned()
    }
}

/// Whether an address answers echo requests, from inside.
fn pings(from: &Container, to: &str) -> bool {
    let mut ping = Command::new("/usr/bin/busybox");
    ping.args(["ping", "-c", "1", "-W", "1", to]).stdout(Stdio::null()).stderr(Stdio::null());
    from.host.adopt(ping).unwrap().status().unwrap().success()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn packets_pass_after_connect_and_none_after_disconnect() {
    let Some(served) = Served::or_skip("docker-api-packets") else { return };
    served.docker(&["network", "create", "--subnet", "10.80.0.0/24", "one"]);
    served.docker(&["network", "create", "--ipv6", "--subnet", "10.81.0.0/24", "--subnet", "fd81::/64", "two"]);
    let a = served.world.container("aa", &["--network", "one"]);
    let b = served.world.container("bb", &["--network", "two", "-p", "8080:80"]);
    served.run("cc", &["--network", "one"]);
    let at_b = served.on("bb", "two", "IPAddress");
    let at_b6 = served.on("bb", "two", "GlobalIPv6Address");
    assert!(!pings(&a, &at_b) && !pings(&a, &at_b6), "two networks are apart");
    for _ in 0..3 {
        served.docker(&["network", "connect", "--ip", "10.81.0.77", "--alias", "www", "two", "aa"]);
        assert!(pings(&a, &at_b) && pings(&a, &at_b6));
        assert!(pings(&b, "10.81.0.77"));
        served.docker(&["network", "disconnect", "two", "aa"]);
        assert!(!pings(&a, &at_b) && !pings(&b, "10.81.0.77"));
    }
    served.world.verify();

    // A container of `portolan run`: names and its files follow as well.
    served.docker(&["network", "connect", "--alias", "www", "two", "cc"]);
    let shown = served.get("/containers/cc/json").json();
    let pid = shown["State"]["Pid"].as_i64().unwrap();
    let at_c = served.on("cc", "two", "IPAddress");
    assert!(pings(&b, &at_c));
    let hosts = std::fs::read_to_string(format!("/proc/{pid}/root/etc/hosts")).unwrap();
    assert!(hosts.contains(&at_c), "{hosts}");
    let looked = served.world.portolan_ok(&["exec", "cc", "--", "busybox", "nslookup", "bb"]);
    assert!(looked.contains(&at_b), "{looked}");
    served.docker(&["network", "disconnect", "two", "cc"]);
    assert!(!pings(&b, &at_c));
    let hosts = std::fs::read_to_string(format!("/proc/{pid}/root/etc/hosts")).unwrap();
    assert!(!hosts.contains(&at_c), "{hosts}");

    // Published ports, as `docker ps` shows them, are open.
    assert_eq!(
        served.docker(&["ps", "--filter", "name=bb", "--format", "{{.Ports}}"]),
        "0.0.0.0:8080->80/tcp, :::8080->80/tcp"
    );
    let _server = TcpServer::start(&b, any(Family::V4, 80), "inside").unwrap();
    assert_leads(&served.world.n, SocketAddr::new(host_ip(Family::V4), 8080), "inside");
    served.world.verify();
}

#[test]
fn events_of_what_other_processes_do() {
    let Some(served) = Served::or_skip("docker-api-events") else { return };
    let follow = ["events", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"];
    let mut client = served.client(&follow).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(client.stdout.take().unwrap());
    let follows = || served.get("/info").json()["NEventsListener"] == 1;
    assert!(eventually(LONG, follows), "it is counted");
    let began = now();

    let world = &served.world;
    world.network("web", &[]);
    world.network("more", &[]);
    let attached = world.container("aa", &["--network", "web", "--label", "of=test"]);
    world.portolan_ok(&["network", "connect", "more", "aa"]);
    world.portolan_ok(&["network", "disconnect", "more", "aa"]);
    world.portolan_ok(&["detach", "aa"]);
    let ended = world.portolan(&["run", "--name", "bb", "--network", "web", "--", "sh", "-c", "exit 3"]);
    assert_eq!(ended.status.code(), Some(3));
    world.portolan_ok(&["rm", "bb"]);
    world.portolan_ok(&["network", "rm", "web"]);
    served.docker(&["network", "prune", "--force"]);
    drop(attached);

    let expected = [
        "network create web",
        "network create more",
        "container create aa",
        "network connect web",
        "container start aa",
        "network connect more",
        "network disconnect more",
        "container die aa",
        "network disconnect web",
        "container destroy aa",
        "container create bb",
        "network connect web",
        "container start bb",
        "container die bb",
        "network disconnect web",
        "container destroy bb",
        "network destroy web",
        "network destroy more",
        "network prune <no value>",
    ];
    let told: Vec<String> = lines.lines().map(|line| line.unwrap()).take(expected.len()).collect();
    assert_eq!(told, expected);
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(eventually(LONG, || served.get("/info").json()["NEventsListener"] == 0), "one that went is let go");

    let until = now() + 1;
    let filters = "%7B%22event%22%3A%5B%22die%22%5D%7D";
    let reply = served.get(&format!("/v1.41/events?since={began}&until={until}&filters={filters}"));
    let events: Vec<Value> = reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 2, "{reply:?}");
    assert_eq!(events[0]["Actor"]["Attributes"]["of"], "test");
    assert_eq!(events[1]["Actor"]["Attributes"]["exitCode"], "3");
    assert_eq!((&events[1]["status"], &events[1]["scope"]), (&json!("die"), &json!("local")));
    served.world.verify();
}

/// One that follows events and goes without a word is noticed, and the daemon ends although somebody follows.
#[test]
fn followers_keep_nobody() {
    let Some(served) = Served::or_skip("docker-api-followers") else { return };
    let mut streams: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all(b"GET /events HTTP/1.1\r\nHost: docker\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let listeners = |count: usize| eventually(LONG, || served.get("/info").json()["NEventsListener"] == count);
    assert!(listeners(50));
    streams.truncate(10);
    assert!(listeners(10));
    let began = Instant::now();
    served.world.portolan_ok(&["daemon", "stop"]);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!served.socket.exists());
    for stream in &mut streams {
        let reply = crate::served::read(stream);
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

#[test]
fn addresses_of_a_dhcp_server() {
    let name = "docker-api-dhcp";
    let Some(served) = Served::or_skip(name) else { return };
    if !dnsmasq::is_there(name) {
        return;
    }
    let world = &served.world;
    dnsmasq::bridge_on_lan(world, "lan0");
    served.docker(&["network", "create", "--ipam-driver", "dhcp", "-o", "mode=unmanaged", "-o", "bridge=lan0", "lan"]);
    let a = world.container("aa", &[]);
    // Where nobody answers, the container stays where it is.
    let refused = served.post("/networks/lan/connect", &json!({"Container": "aa"}));
    assert!(refused.status == 500 && refused.message().contains("DHCP"), "{refused:?}");
    assert_eq!(served.get("/networks/lan").json()["Containers"], json!({}));
    world.verify();

    let server = Server::start(world, "dnsmasq", &["--dhcp-range=10.0.1.100,10.0.1.149,120"]);
    served.docker(&["network", "connect", "lan", "aa"]);
    let ip = served.on("aa", "lan", "IPAddress");
    assert!(server.has_leased(ip.parse().unwrap()), "{ip}: {}", server.log());
    assert!(pings(&a, "10.0.1.2"));
    served.docker(&["network", "disconnect", "lan", "aa"]);
    assert!(eventually(LONG, || !server.has_leased(ip.parse().unwrap())), "{}", server.log());
    world.verify();
}

/// The first network decides who carries out the rules, also when it is made here.
#[test]
fn the_firewall_that_is_asked_for() {
    let Some(mut served) = Served::or_skip("docker-api-firewall") else { return };
    served.world.portolan_ok(&["daemon", "stop"]);
    served.world.environment.push(("PORTOLAN_FIREWALL".into(), "none".into()));
    served.world.portolan_ok(&["daemon", "start", "--api"]);
    served.world.environment.clear();
    served.docker(&["network", "create", "web"]);
    let tables = served.world.h.command("nft").unwrap().args(["list", "tables"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&tables.stdout).contains("portolan"), "{tables:?}");
}
