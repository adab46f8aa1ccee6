//! The life of the daemon of `dhcp`: callers that say nonsense, many at once, renewals, deaths.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::{Family, link};
use portolan_kernel::signals;
use portolan_lab::eventually;
use portolan_lab::probe::ping;
use serde_json::{Value, json};

use crate::beside::{Pair, Side};
use crate::common::dnsmasq::Server;
use crate::common::{LONG, neighbour_ip};
use crate::dhcp::{Daemon, MANY, macvlan, pair, v4_of};
use crate::runtime::{Pod, with};

/// A side with our daemon and a server.
fn served(test: &str, lines: &[&str]) -> Option<(Pair, Server, Daemon)> {
    let pair = pair(test)?;
    let server = Server::start(&pair.ours.world, "dnsmasq", lines);
    let daemon = Daemon::start(&pair.ours, true, &[]);
    Some((pair, server, daemon))
}

fn add(side: &Side, pod: &Pod) -> (Value, IpAddr) {
    let result = side.add(pod, &macvlan(json!({})), "1.0.0", "eth0").unwrap();
    (result, v4_of(pod).unwrap())
}

fn check(side: &Side, pod: &Pod, result: &Value) -> Result<(), crate::runtime::Refusal> {
    side.check(pod, &macvlan(json!({})), "1.0.0", result)
}

#[test]
fn it_is_asked_by_many_at_once() {
    const COUNT: usize = 20;
    // No more addresses than containers: some are offered to two at a time, and one of those is refused.
    let Some((pair, server, daemon)) = served("plugins-dhcp-many", &["--dhcp-range=10.0.1.100,10.0.1.119,120"]) else {
        return;
    };
    let side = &pair.ours;
    let pods: Vec<Pod> = (0..COUNT).map(|number| side.pod(&format!("p{number}"))).collect();
    let ips: BTreeSet<IpAddr> = std::thread::scope(|scope| {
        let adding: Vec<_> = pods.iter().map(|pod| scope.spawn(|| add(side, pod).1)).collect();
        adding.into_iter().map(|adding| adding.join().unwrap()).collect()
    });
    assert_eq!(ips.len(), COUNT, "{}", daemon.log());
    assert!(ips.iter().all(|ip| server.has_leased(*ip)));
    for pod in &pods {
        assert!(ping(pod, neighbour_ip(Family::V4), LONG).is_open());
    }
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| side.del(pod, &macvlan(json!({})), "1.0.0", None, "eth0").unwrap());
        }
    });
    assert!(eventually(LONG, || server.listed().is_empty()), "{}", server.listed());
}

/// Whatever comes over the socket, others are served.
#[test]
fn nonsense_is_no_matter_to_others() {
    let Some((pair, server, mut daemon)) = served("plugins-dhcp-nonsense", &[MANY]) else { return };
    let side = &pair.ours;
    let socket = Daemon::socket(side);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let hello = b"CONNECT /_goRPC_ HTTP/1.0\n\n";
    for round in 0..300 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        if round % 4 != 0 {
            stream.write_all(hello).unwrap();
            let mut answer = [0; 33];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.0 200 Connected to Go RPC\n");
        }
        let nonsense: Vec<u8> = (0..next() % 200).map(|_| next().to_le_bytes()[0]).collect();
        // It may have been hung up on already.
        let _ = stream.write_all(&nonsense);
    }
    for (head, status) in [
        (&b"GET /_goRPC_ HTTP/1.0\r\n\r\n"[..], "HTTP/1.0 405"),
        (b"CONNECT /x HTTP/1.0\n\n", "HTTP/1.0 404"),
        (b"nonsense\n\n", "HTTP/1.0 400"),
        (&[b'x'; 5000], "HTTP/1.0 400"),
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let _ = stream.write_all(head);
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(std::str::from_utf8(&answer).unwrap(), status);
    }
    // Announced, and never sent: a gigabyte.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&[&hello[..], &[0xfc, 0x40, 0, 0, 0, 1, 2, 3]].concat()).unwrap();
    let pod = side.pod("p");
    let (_, ip) = add(side, &pod);
    assert!(server.has_leased(ip));
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 200 << 10, "{peak} kB");
    assert_eq!(daemon.end(signals::INTERRUPT), Some(0), "{}", daemon.log());
}

#[test]
fn a_lease_is_renewed_and_another_address_put_in_its_place() {
    let short = ["--dhcp-option-force=58,3", "--dhcp-option-force=59,60"];
    let lines = [&[MANY], &short[..]].concat();
    let Some((pair, server, daemon)) = served("plugins-dhcp-renewed", &lines) else { return };
    let side = &pair.ours;
    let pod = side.pod("p");
    let (result, ip) = add(side, &pod);
    assert!(eventually(LONG * 2, || server.count("DHCPACK(eth0)") >= 3), "{}", server.log());
    assert_eq!(server.count("DHCPDISCOVER(eth0)"), 1, "{}", server.log());
    assert_eq!(v4_of(&pod), Some(ip));
    check(side, &pod, &result).unwrap();
    // Asking again is answered from what is held.
    let acknowledged = server.count("DHCPDISCOVER(eth0)");
    let config = with(&macvlan(json!({})).plugins[0], json!({"cniVersion": "1.0.0", "name": "lan", "type": "dhcp"}));
    let again = side.call("ADD", &pod, &macvlan(json!({})), &config, "eth0").unwrap();
    assert_eq!(again["ips"][0]["address"], format!("{ip}/24"));
    assert_eq!(server.count("DHCPDISCOVER(eth0)"), acknowledged);
    drop(server);
    let server = Server::start(&side.world, "second", &["--dhcp-range=10.0.1.200,10.0.1.249,120"]);
    let moved = || v4_of(&pod).is_some_and(|ip| ip >= IpAddr::from([10, 0, 1, 200]));
    assert!(eventually(LONG * 4, moved), "{}\n{}", server.log(), daemon.log());
    assert!(ping(&side.world.n, v4_of(&pod).unwrap(), LONG).is_open());
    let refusal = check(side, &pod, &result).unwrap_err();
    assert_eq!(refusal.code, 103, "{refusal:?}");
    side.del(&pod, &macvlan(json!({})), "1.0.0", Some(&result), "eth0").unwrap();
    assert!(eventually(LONG, || server.listed().is_empty()), "{}", server.log());
}

#[test]
fn whoever_comes_after_a_killed_daemon_holds_its_leases() {
    let pidfile = "/pid";
    let Some((pair, server, mut daemon)) = served("plugins-dhcp-killed", &[MANY]) else { return };
    let side = &pair.ours;
    let pods = ["p0", "p1"].map(|id| side.pod(id));
    let [(result, ip), (_, other)] = [&pods[0], &pods[1]].map(|pod| add(side, pod));
    assert_eq!(daemon.end(signals::KILL), None);
    assert!(Daemon::socket(side).exists(), "it is left over");
    // One of them is gone without a word.
    let [pod, gone] = pods;
    portolan_kernel::netns::unpin(gone.host.netns_path()).unwrap();
    drop(gone);
    let pidfile = format!("{}{pidfile}", side.world.lab.dir().display());
    let mut daemon = Daemon::start(side, true, &["-pidfile", &pidfile]);
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), daemon.child.id().to_string());
    assert!(eventually(LONG, || !server.has_leased(other)), "given back from the host: {}", daemon.log());
    check(side, &pod, &result).unwrap();
    // A second one is not let in, and takes nothing away from the first.
    let mut second = Daemon::begin(side, true, &["-pidfile", &pidfile]);
    assert_eq!(second.child.wait().unwrap().code(), Some(1));
    assert!(second.log().contains("another process answers there"), "{}", second.log());
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), daemon.child.id().to_string());
    check(side, &pod, &result).unwrap();
    // Stopped, it leaves leases to whom they were given.
    assert_eq!(daemon.end(signals::TERM), Some(0));
    assert!(!Daemon::socket(side).exists() && !Path::new(&pidfile).exists());
    assert!(server.has_leased(ip));
    let _daemon = Daemon::start(side, true, &[]);
    side.del(&pod, &macvlan(json!({})), "1.0.0", Some(&result), "eth0").unwrap();
    assert!(eventually(LONG, || !server.has_leased(ip)), "{}", server.log());
}

#[test]
fn what_nobody_lists_is_given_back() {
    let Some((pair, server, _daemon)) = served("plugins-dhcp-gc", &[MANY]) else { return };
    let side = &pair.ours;
    let pods = ["p0", "p1"].map(|id| side.pod(id));
    let [(result, kept), (_, left)] = [&pods[0], &pods[1]].map(|pod| add(side, pod));
    let mut config = macvlan(json!({})).plugins.remove(0);
    config = with(
        &config,
        json!({"cniVersion": "1.1.0", "name": "lan",
        "cni.dev/valid-attachments": [{"containerID": "p0", "ifname": "eth0"}]}),
    );
    side.call("GC", &pods[0], &macvlan(json!({})), &config, "eth0").unwrap();
    assert!(eventually(LONG, || !server.has_leased(left)), "{}", server.log());
    assert!(server.has_leased(kept));
    check(side, &pods[0], &result).unwrap();
    let refusal = check(side, &pods[1], &result).unwrap_err();
    assert!(refusal.msg.contains("no lease is held for p1/lan/eth0"), "{refusal:?}");
}

/// Somebody removed it, and the namespace stays.
#[test]
fn an_interface_that_is_gone_holds_no_lease() {
    let lines = [MANY, "--dhcp-option-force=58,3", "--dhcp-option-force=59,60"];
    let Some((pair, server, daemon)) = served("plugins-dhcp-gone", &lines) else { return };
    let side = &pair.ours;
    let pod = side.pod("p");
    let (_, ip) = add(side, &pod);
    let mut batch = Batch::new();
    link::delete(&mut batch, "eth0");
    pod.host.route_socket().unwrap().transact(&batch).unwrap();
    assert!(eventually(LONG * 4, || !server.has_leased(ip)), "{}\n{}", server.log(), daemon.log());
}

/// Who asks and does not wait has nothing.
#[test]
fn a_caller_that_leaves_takes_its_question_along() {
    let Some(pair) = pair("plugins-dhcp-leaves") else { return };
    let side = &pair.ours;
    let daemon = Daemon::start(side, true, &[]);
    let pod = side.pod("p");
    let mut command = side.command("macvlan", "ADD", &pod, "eth0");
    let chain = macvlan(json!({}));
    let text = side.text(&chain.config(&chain.plugins[0], "1.0.0", None));
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(eventually(LONG, || daemon.log().contains("acquiring a lease")), "{}", daemon.log());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(eventually(LONG, || daemon.log().contains("releasing the lease")), "{}", daemon.log());
    let server = Server::start(&side.world, "dnsmasq", &[MANY]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.listed().is_empty());
}

/// sd_listen_fds(3)
#[test]
fn the_socket_may_be_a_service_managers() {
    let Some(pair) = pair("plugins-dhcp-passed") else { return };
    let side = &pair.ours;
    let (socket, pod) = (Daemon::socket(side), side.pod("p"));
    let listener = UnixListener::bind(&socket).unwrap();
    let passed = |count: &str| {
        Daemon::spawn(side, true, &[], |program| {
            let mut command = Command::new("sh");
            let script = "exec 3<&0 4<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\"";
            command.arg("-c").arg(script).arg(program).env("LISTEN_FDS", count);
            command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
            command
        })
    };
    assert_eq!(passed("2").child.wait().unwrap().code(), Some(1));
    let mut child = passed("1");
    let config = with(&macvlan(json!({})).plugins[0], json!({"cniVersion": "1.1.0", "name": "lan", "type": "dhcp"}));
    side.call("STATUS", &pod, &macvlan(json!({})), &config, "eth0").unwrap();
    assert_eq!(child.end(signals::TERM), Some(0), "{}", child.log());
    assert!(child.log().contains("the service manager passes 2 sockets"), "{}", child.log());
    assert!(socket.exists(), "it is not the daemon's to remove");
}

/// A daemon in a container sees the host's files somewhere else.
#[test]
fn paths_of_the_host_have_their_prefix() {
    let Some(pair) = pair("plugins-dhcp-prefix") else { return };
    let side = &pair.ours;
    let _server = Server::start(&side.world, "dnsmasq", &[MANY]);
    let host = side.world.lab.dir().join("host");
    fs::create_dir(&host).unwrap();
    let flags = ["-hostprefix", host.to_str().unwrap(), "-socketpath", "/sock"];
    let _daemon = Daemon::begin(side, true, &flags);
    let socket = host.join("sock");
    assert!(eventually(LONG, || UnixStream::connect(&socket).is_ok()));
    let chain = macvlan(json!({"daemonSocketPath": socket}));
    let pod = side.pod("p");
    let refusal = side.add(&pod, &chain, "1.0.0", "eth0").unwrap_err();
    let path = format!("{}{}", host.display(), pod.path());
    assert_eq!(
        refusal.msg,
        format!("error calling DHCP.Allocate: failed to Statfs {path:?}: no such file or directory")
    );
    let top = Path::new(pod.path()).components().nth(1).unwrap();
    std::os::unix::fs::symlink(Path::new("/").join(top), host.join(top)).unwrap();
    side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
    assert!(ping(&pod, neighbour_ip(Family::V4), LONG).is_open());
}
