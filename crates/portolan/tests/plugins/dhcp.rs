//! `dhcp` beside the original, and each of them with the other's daemon, under interface plugins of either.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use portolan_kernel::process::PidFd;
use portolan_kernel::rtnl::Family;
use portolan_kernel::signals;
use portolan_lab::eventually;
use portolan_lab::probe::ping;
use serde_json::{Value, json};

use crate::beside::{Chain, ORIGINALS, Pair, Side};
use crate::bridge::routes;
use crate::common::dnsmasq::{self, Server};
use crate::common::{LONG, addresses, interface, neighbour_ip};
use crate::runtime::{Pod, with};

/// One address, so that both sides get the same.
pub(crate) const ONE: &str = "--dhcp-range=10.0.1.100,10.0.1.100,120";
pub(crate) const MANY: &str = "--dhcp-range=10.0.1.100,10.0.1.149,120";

/// A daemon on a side; it ends with this.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) log: PathBuf,
}

impl Daemon {
    /// Ours or the original's, at `dhcp.sock` in the side's directory.
    pub(crate) fn start(side: &Side, is_ours: bool, flags: &[&str]) -> Self {
        let daemon = Self::begin(side, is_ours, flags);
        let socket = Self::socket(side);
        let is_up = || UnixStream::connect(&socket).is_ok();
        assert!(eventually(LONG, is_up), "{}", daemon.log());
        daemon
    }

    pub(crate) fn begin(side: &Side, is_ours: bool, flags: &[&str]) -> Self {
        Self::spawn(side, is_ours, flags, |program| {
            let mut command = Command::new(program);
            command.stdin(Stdio::null());
            command
        })
    }

    /// By a command that `by` makes of the program.
    pub(crate) fn spawn(side: &Side, is_ours: bool, flags: &[&str], by: impl FnOnce(&Path) -> Command) -> Self {
        let dir = side.world.lab.dir();
        let program = if is_ours {
            let link = dir.join("daemon").join("dhcp");
            let _ = fs::create_dir(link.parent().unwrap());
            let _ = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_portolan"), &link);
            link
        } else {
            Path::new(ORIGINALS).join("dhcp")
        };
        let log = dir.join("daemon.log");
        let mut command = by(&program);
        command.arg("daemon").arg("-socketpath").arg(Self::socket(side)).args(flags);
        command.stdout(Stdio::null()).stderr(File::options().create(true).append(true).open(&log).unwrap());
        Self { child: side.world.h.adopt(command).unwrap().spawn().unwrap(), log }
    }

    pub(crate) fn socket(side: &Side) -> PathBuf {
        side.world.lab.dir().join("dhcp.sock")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it by a signal, and waits.
    pub(crate) fn end(&mut self, signal: i32) -> Option<i32> {
        let process = PidFd::open(self.child.id().try_into().unwrap()).unwrap();
        process.signal(signal).unwrap();
        assert!(process.wait_readable(LONG).unwrap());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two hosts on bridges of their LANs; none, with a loud word, without a server or the originals.
pub(crate) fn pair(test: &str) -> Option<Pair> {
    let pair = Pair::or_skip(test).filter(|_| dnsmasq::is_there(test))?;
    if !Path::new(ORIGINALS).join("dhcp").exists() {
        assert!(std::env::var_os("CI").is_none(), "no `dhcp` in {ORIGINALS}");
        eprintln!("SKIP: `{test}`: no `dhcp` in {ORIGINALS}");
        return None;
    }
    Some(pair)
}

pub(crate) fn ipam(more: Value) -> Value {
    with(&json!({"type": "dhcp", "daemonSocketPath": "$DIR/dhcp.sock"}), more)
}

pub(crate) fn macvlan(more: Value) -> Chain {
    macvlan_on("lan", more)
}

fn macvlan_on(name: &str, more: Value) -> Chain {
    Chain::new(name, [json!({"type": "macvlan", "master": "eth0", "ipam": ipam(more)})])
}

pub(crate) fn bridge(more: Value) -> Chain {
    Chain::new("lan", [json!({"type": "bridge", "bridge": "lan0", "ipam": ipam(more)})])
}

pub(crate) fn v4_of(pod: &Pod) -> Option<IpAddr> {
    addresses(pod, "eth0").into_iter().find(IpAddr::is_ipv4)
}

/// What is to be seen of a container that has a lease.
fn look(side: &Side, server: &Server, pod: &Pod) -> (bool, Vec<IpAddr>, Vec<String>, bool, bool) {
    let mut inside = addresses(pod, "eth0");
    inside.retain(IpAddr::is_ipv4);
    let is_open = ping(pod, neighbour_ip(Family::V4), LONG).is_open() && ping(&side.world.n, inside[0], LONG).is_open();
    let is_listed = server.has_leased(inside[0]);
    (interface(pod, "eth0").unwrap().up, inside, routes(pod), is_open, is_listed)
}

/// Adds a container on both sides, and takes it off again.
#[track_caller]
fn same(pair: &Pair, chain: &Chain, lines: &[&str], original_gives_back: bool) {
    let all = [&[ONE], lines].concat();
    let servers = [&pair.ours, &pair.theirs].map(|side| Server::start(&side.world, "dnsmasq", &all));
    let of = |side: &Side| if side.name == "ours" { &servers[0] } else { &servers[1] };
    pair.same(chain, |side, pod| look(side, of(side), pod));
    for server in &servers[..if original_gives_back { 2 } else { 1 }] {
        assert!(eventually(LONG, || server.listed().is_empty()), "given back: {}", server.log());
        assert!(server.log().contains("DHCPRELEASE"), "{}", server.log());
    }
}

#[test]
fn macvlan_has_the_same_lease() {
    let Some(pair) = pair("plugins-dhcp-macvlan") else { return };
    let _daemons = [Daemon::start(&pair.ours, true, &[]), Daemon::start(&pair.theirs, false, &[])];
    let router = "--dhcp-option=3,10.0.1.2";
    same(&pair, &macvlan_on("router", json!({})), &[router], true);
    same(&pair, &macvlan_on("alone", json!({})), &["--dhcp-option=3"], true);
    let asked = json!({"request": [{"option": "121"}, {"option": "33"}]});
    let classless = "--dhcp-option=121,10.9.0.0/16,10.0.1.7,0.0.0.0/0,10.0.1.8";
    same(&pair, &macvlan_on("classless", asked.clone()), &[router, classless], true);
    same(&pair, &macvlan_on("classful", asked), &[router, "--dhcp-option=33,172.16.0.0,10.0.1.9"], true);
}

#[test]
fn bridge_has_the_same_lease() {
    let Some(pair) = pair("plugins-dhcp-bridge") else { return };
    let _daemons = [Daemon::start(&pair.ours, true, &[]), Daemon::start(&pair.theirs, false, &[])];
    for side in [&pair.ours, &pair.theirs] {
        dnsmasq::bridge_on_lan(&side.world, "lan0");
    }
    // The original removes the interface first, and its daemon finds none to give the lease back from: the only address is
    // taken for minutes, so there is no other version after this.
    same(&pair, &bridge(json!({})).versions(&["1.0.0"]), &["--dhcp-option=3,10.0.1.2"], false);
}

/// Interface plugin, `dhcp` and daemon: each of them ours or the original.
#[test]
fn any_of_three_may_be_the_originals() {
    let Some(pair) = pair("plugins-dhcp-mixed") else { return };
    let side = &pair.ours;
    dnsmasq::bridge_on_lan(&side.world, "lan0");
    let server = Server::start(&side.world, "dnsmasq", &[MANY, "--dhcp-option=3,10.0.1.2"]);
    let mut number = 0;
    for is_our_daemon in [true, false] {
        let mut daemon = Daemon::start(side, is_our_daemon, &[]);
        for (is_our_interface, is_our_plugin) in [(true, true), (true, false), (false, true), (false, false)] {
            // The originals alone are the other side of the other tests.
            if (is_our_daemon, is_our_interface, is_our_plugin) == (false, false, false) {
                continue;
            }
            side.choose("bridge", is_our_interface);
            side.choose("dhcp", is_our_plugin);
            number += 1;
            let what = format!("bridge {is_our_interface}, dhcp {is_our_plugin}, daemon {is_our_daemon}");
            let (pod, chain) = (side.pod(&format!("m{number}")), bridge(json!({})));
            let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let ip = v4_of(&pod).unwrap();
            assert_eq!(result["ips"][0]["address"], format!("{ip}/24"), "{what}");
            assert!(ping(&pod, neighbour_ip(Family::V4), LONG).is_open(), "{what}");
            assert!(server.has_leased(ip), "{what}");
            side.check(&pod, &chain, "1.0.0", &result).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            side.del(&pod, &chain, "1.0.0", Some(&result), "eth0").unwrap();
            // The daemon of the original cannot give back what the bridge of the original has taken away already.
            if is_our_daemon || is_our_interface {
                assert!(eventually(LONG, || !server.has_leased(ip)), "{what}: {}\n{}", server.log(), daemon.log());
            }
            side.del(&pod, &chain, "1.0.0", Some(&result), "eth0").unwrap();
        }
        // The original does not begin where a socket is left over.
        daemon.end(signals::TERM);
    }
}

/// What the server hears of both.
#[test]
fn the_server_is_told_and_asked_the_same() {
    let Some(pair) = pair("plugins-dhcp-options") else { return };
    let more = json!({
        "provide": [{"option": "host-name", "fromArg": "NAME"}],
        "request": [{"option": "6"}, {"option": "119"}]});
    let named = json!({"provide": [{"option": "dhcp-client-identifier", "value": "me"}, {"option": "12", "value": "x"}],
        "request": [{"skipDefault": true, "option": "3"}]});
    let chains = [macvlan(more).args("IgnoreUnknown=1;NAME=printer"), macvlan(named)];
    let [ours, theirs] = [&pair.ours, &pair.theirs].map(|side| {
        let _daemon = Daemon::start(side, side.name == "ours", &[]);
        let mut heard = Vec::new();
        for (number, chain) in chains.iter().enumerate() {
            let server = Server::start(&side.world, &format!("dnsmasq{number}"), &[ONE, "--dhcp-option=6,10.0.1.53"]);
            let pod = side.pod(&format!("p{number}"));
            side.add(&pod, chain, "1.0.0", "eth0").unwrap();
            let log = server.log();
            let after = |what: &str| {
                let said = log.lines().filter_map(|line| line.split_once(what)).map(|(_, rest)| rest.to_owned());
                let mut said: Vec<String> =
                    said.flat_map(|rest| rest.split(", ").map(str::to_owned).collect::<Vec<_>>()).collect();
                said.retain(|text| !text.is_empty());
                said.sort();
                said.dedup();
                said
            };
            // The last word is the client identifier.
            let listed = server.listed();
            let identity = listed.split_whitespace().last().unwrap().to_owned();
            // By itself, in versions that no runtime of today asks for.
            let old = ["0.1.0", "0.2.0"].map(|version| {
                let config = with(&chain.config(&chain.plugins[0], version, None), json!({"type": "dhcp"}));
                side.call("ADD", &pod, chain, &config, "eth0").unwrap()
            });
            heard.push((after("requested options: "), after("client provides name: "), identity, old));
            side.del(&pod, chain, "1.0.0", None, "eth0").unwrap();
            if side.name == "ours" {
                assert!(eventually(LONG, || server.listed().is_empty()), "{}", server.log());
            }
        }
        heard
    });
    assert_eq!(ours, theirs);
    assert_eq!(ours[0].1, ["printer"]);
    assert_eq!(ours[0].2, "00:70:30:2f:6c:61:6e:2f:65:74:68:30", "p0/lan/eth0");
    assert_eq!(ours[1].2, "6d:65");
}

#[test]
fn refusals_are_the_originals() {
    let Some(pair) = pair("plugins-dhcp-refusals") else { return };
    let pods = [pair.ours.pod("p"), pair.theirs.pod("p")];
    let config = |ipam: Value| json!({"cniVersion": "1.0.0", "name": "lan", "type": "dhcp", "ipam": ipam});
    let call =
        |side: &Side, pod: &Pod, verb: &str, config: &Value| side.call(verb, pod, &macvlan(json!({})), config, "eth0");
    let both = |verb: &str, config: &Value| {
        let text = |side: &Side, pod: &Pod| call(side, pod, verb, config).unwrap_err().msg;
        let [ours, theirs] = [text(&pair.ours, &pods[0]), text(&pair.theirs, &pods[1])];
        let dir = |side: &Side| side.world.lab.dir().to_str().unwrap().to_owned();
        assert_eq!(ours.replace(&dir(&pair.ours), "$DIR"), theirs.replace(&dir(&pair.theirs), "$DIR"));
        ours
    };
    let gone = both("ADD", &config(ipam(json!({}))));
    assert!(
        gone.starts_with("error dialing DHCP daemon: dial unix ")
            && gone.ends_with("connect: no such file or directory"),
        "{gone}"
    );
    // Without a daemon there is nothing to give back.
    call(&pair.ours, &pods[0], "DEL", &config(ipam(json!({})))).unwrap();
    let newest = with(&config(ipam(json!({}))), json!({"cniVersion": "1.1.0"}));
    assert_eq!(call(&pair.ours, &pods[0], "STATUS", &newest).unwrap_err().code, 50);

    let _daemons = [Daemon::start(&pair.ours, true, &[]), Daemon::start(&pair.theirs, false, &[])];
    call(&pair.ours, &pods[0], "STATUS", &newest).unwrap();
    for more in [
        json!({"provide": [{"option": "nonsense", "value": "x"}]}),
        json!({"provide": [{"option": "12", "value": "x".repeat(256)}]}),
        json!({"request": [{"option": "256"}]}),
        json!({"request": [{"option": ""}]}),
    ] {
        both("ADD", &config(ipam(more)));
    }
    // There is no such interface.
    both("ADD", &config(ipam(json!({}))));
    let vendor = config(ipam(json!({"provide": [{"option": "60", "value": "x"}]})));
    for (verb, version) in [("ADD", "1.0.0"), ("STATUS", "1.1.0")] {
        let refusal = call(&pair.ours, &pods[0], verb, &with(&vendor, json!({"cniVersion": version}))).unwrap_err();
        assert!(refusal.msg.contains("option \"60\" cannot be provided here"), "{refusal:?}");
    }
    let ours = call(&pair.ours, &pods[0], "ADD", &json!({"cniVersion": "1.0.0", "name": "lan", "type": "dhcp"}));
    assert_eq!(ours.unwrap_err().msg, "IPAM config missing 'ipam' key");
    // DEL knows the lease by names alone.
    let mut command = pair.ours.command("dhcp", "DEL", &pods[0], "eth0");
    command.env_remove("CNI_NETNS");
    let text = pair.ours.text(&config(ipam(json!({}))));
    crate::runtime::answer(&crate::runtime::output_of(command, text.as_bytes())).unwrap();
}

/// A server that is silent is given up on, and an ADD that fails leaves nothing.
#[test]
fn silence_has_an_end() {
    let Some(pair) = pair("plugins-dhcp-silence") else { return };
    let side = &pair.ours;
    let mut daemon = Daemon::start(side, true, &["-timeout", "300ms", "-resendtimeout", "1s"]);
    let pod = side.pod("p");
    let refusal = side.add(&pod, &macvlan(json!({})), "1.0.0", "eth0").unwrap_err();
    assert_eq!(refusal.msg, "error calling DHCP.Allocate: no more tries");
    assert!(interface(&pod, "eth0").is_none());
    assert_eq!(daemon.end(signals::TERM), Some(0));
    assert!(!Daemon::socket(side).exists());
}
