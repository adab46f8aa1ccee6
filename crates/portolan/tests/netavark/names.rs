//! Names: who is known by what, whom questions are passed on to, and who may not ask outside.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use portolan_kernel::process::PidFd;
use portolan_kernel::signals;
use portolan_lab::eventually;
use portolan_lab::probe::udp_probe;
use portolan_lab::server::UdpServer;
use serde_json::{Value, json};

use crate::common::upstream::{Upstream, output, short, status};
use crate::common::{FAMILIES, LONG, SHORT, at, choose, neighbour_ip};
use crate::podman::{Pod, Podman, answer, bridge, ip, merged, output_of};

fn named(name: &str, n: u8) -> Value {
    merged(bridge(name, n), json!({"dns_enabled": true}))
}

#[test]
fn everybody_is_known_by_all_names() {
    let Some(podman) = Podman::with_names("nv-names") else { return };
    let (web, far) = (named("web", 1), named("far", 2));
    let site = podman.pod("site").at_with(&web, 5, json!({"aliases": ["www", "Site-Two"]}));
    let site = site.with(json!({"container_hostname": "host-of-site"}));
    let (asks, alone) = (podman.pod("asks").at(&web, 6), podman.pod("alone").at(&far, 5));
    let both = podman.pod("both").at(&web, 7).at(&far, 7);
    let answered = podman.up(&site);
    assert_eq!(answered["web"]["dns_search_domains"], json!(["dns.podman"]));
    assert_eq!(answered["web"]["dns_server_ips"], json!(["10.9.1.1", "fd09:1::1"]));
    for pod in [&asks, &alone, &both] {
        podman.up(pod);
    }
    for family in FAMILIES {
        let gateway = ip(family, 1, 1);
        let ask = |args: &[&str]| short(&asks, gateway, args).unwrap_or_default();
        if short(&asks, gateway, &["site"]).is_none() {
            return;
        }
        for name in ["site", "SITE", "www", "site-two", "host-of-site", &site.id[..12]] {
            for ending in ["", ".dns.podman"] {
                let name = format!("{name}{ending}");
                assert_eq!(ask(&[&name]), ["10.9.1.5"], "{name}");
                assert_eq!(ask(&[&name, "AAAA"]), ["fd09:1::5"], "{name}");
                assert_eq!(ask(&[&name, "+tcp"]), ["10.9.1.5"], "{name}");
            }
        }
        for address in ["10.9.1.5", "fd09:1::5"] {
            let names = ask(&["-x", address]);
            assert!(names.iter().any(|name| name.starts_with("site.")), "{address}: {names:?}");
        }
        for name in ["alone", "alone.dns.podman", "nobody"] {
            assert_eq!(status(&asks, gateway, &[name]).unwrap(), "NXDOMAIN", "{name}");
        }
        assert_eq!(short(&both, gateway, &["alone"]).unwrap(), ["10.9.2.5"]);
    }
    podman.down(&site);
    assert_eq!(status(&asks, ip(FAMILIES[0], 1, 1), &["site"]).unwrap(), "NXDOMAIN", "gone when teardown returns");
    podman.world.verify();
}

/// A network on bridge `br0` of somebody else's.
fn unmanaged(network: Value) -> Value {
    merged(network, json!({"network_interface": "br0", "options": {"mode": "unmanaged"}}))
}

/// On somebody else's bridge names are answered at the addresses that it has, whatever its networks call their gateway.
#[test]
fn a_bridge_of_somebody_elses() {
    let Some(mut podman) = Podman::with_names("nv-names-unmanaged") else { return };
    let servers = Servers::start(&mut podman);
    podman.foreign_bridge("br0", &[]);
    let (lan, next) = (unmanaged(named("lan", 1)), unmanaged(named("next", 2)));
    let (site, asks) = (podman.pod("site").at(&lan, 5), podman.pod("asks").at(&lan, 6));
    assert_eq!(
        podman.refused(&site),
        "bridge 'br0' in unmanaged mode has no usable IP addresses. Aardvark-dns requires at least one address (should not be \
         an IPv6 link-local address) to bind to. Please add an IP address or disable DNS for this network (--disable-dns)."
    );
    for address in ["10.9.1.100/24", "10.9.2.1/24", "fd09:1::100/64", "fe80::100/64"] {
        podman.world.h.add_address("br0", address).unwrap();
    }
    let before = podman.world.untouched();
    // As libvirt has its own on its bridges.
    let theirs = UdpServer::start(&podman.world.h, at(ip(FAMILIES[0], 1, 100), 53), "theirs").unwrap();
    let error = podman.refused(&site);
    assert!(error.starts_with("error while applying dns entries: "), "{error}");
    assert!(error.contains("10.9.1.100") && error.contains("--disable-dns"), "{error}");
    drop(theirs);
    let site = site.with(json!({"container_hostname": "host-of-site"}));
    let answered = podman.up(&site);
    assert_eq!(answered["lan"]["dns_search_domains"], json!(["dns.podman"]));
    assert_eq!(answered["lan"]["dns_server_ips"], json!(["10.9.1.100", "10.9.2.1", "fd09:1::100"]));
    podman.up(&asks);
    // Several networks on one bridge do not hear of each other.
    let far = podman.pod("far").at(&next, 5);
    podman.up(&far);
    let bystander = podman.pod("bystander").at(&unmanaged(bridge("quiet", 1)), 7);
    assert_eq!(podman.up(&bystander)["quiet"]["dns_server_ips"], json!([]));
    let bridges: Vec<IpAddr> = ["10.9.1.100", "fd09:1::100"].map(|address| address.parse().unwrap()).into();
    for server in bridges.iter().copied() {
        let Some(found) = short(&asks, server, &["site"]) else { return };
        assert_eq!(found, ["10.9.1.5"]);
        assert_eq!(short(&asks, server, &["host-of-site.dns.podman", "AAAA", "+tcp"]).unwrap(), ["fd09:1::5"]);
        assert_eq!(short(&asks, server, &["host.containers.internal"]).unwrap().len(), 2, "both of IPv4");
        assert_eq!(status(&asks, server, &["far"]).unwrap(), "NXDOMAIN");
        assert_eq!(whom(&asks, server, "example.com"), ["192.0.2.2"]);
        assert_eq!(status(&bystander, server, &["site"]).unwrap(), "REFUSED", "whoever else is on the LAN");
    }
    assert_eq!(short(&far, ip(FAMILIES[0], 2, 1), &["far"]).unwrap(), ["10.9.2.5"]);
    assert_eq!(status(&far, ip(FAMILIES[0], 2, 1), &["site"]).unwrap(), "NXDOMAIN");
    assert!(servers.asked()[0] >= 1);
    podman.world.verify();
    for pod in [&asks, &far] {
        podman.down(pod);
    }
    assert_eq!(short(&bystander, bridges[0], &["site"]).unwrap(), Vec::<String>::new());
    // With the next container, its addresses as they are then.
    podman.world.h.add_address("br0", "10.9.1.101/24").unwrap();
    let late = podman.pod("late").at(&lan, 8);
    let servers = podman.up(&late)["lan"]["dns_server_ips"].clone();
    assert_eq!(servers, json!(["10.9.1.100", "10.9.2.1", "10.9.1.101", "fd09:1::100"]));
    assert_eq!(short(&late, ip(FAMILIES[0], 1, 101), &["site"]).unwrap(), ["10.9.1.5"]);
    podman.world.h.remove_address("br0", "10.9.1.101/24").unwrap();
    for pod in [&late, &site, &bystander] {
        podman.down(pod);
    }
    podman.world.assert_untouched(&before, "names on br0");
}

/// Where no names are asked for on such a bridge, its containers are not sent to it, and come up without a daemon.
#[test]
fn a_bridge_of_somebody_elses_without_names() {
    let Some(podman) = Podman::with_names("nv-nameless-unmanaged") else { return };
    podman.foreign_bridge("br0", &["10.9.1.1/24", "fd09:1::1/64"]);
    let lan = unmanaged(bridge("lan", 1));
    // Nothing can be locked where a directory is.
    fs::create_dir_all(podman.world.root.join("run/daemon.lock")).unwrap();
    let (plain, told) = (podman.pod("plain").at(&lan, 5), podman.pod("told").at(&lan, 6));
    let status = podman.up(&plain);
    assert_eq!(status["lan"]["dns_server_ips"], json!([]));
    assert_eq!(status["lan"]["dns_search_domains"], json!([]));
    let status = podman.up(&told.with(json!({"dns_servers": ["192.0.2.53"]})));
    assert_eq!(status["lan"]["dns_server_ips"], json!(["192.0.2.53"]));
    // The twins, with names: on that bridge, and on one of ours.
    for network in [unmanaged(named("other", 1)), named("web", 2)] {
        let error = podman.refused(&podman.pod(network["name"].as_str().unwrap()).at(&network, 7));
        assert!(error.starts_with("error while applying dns entries: "), "{error}");
    }
}

/// Names that are none are left out aloud, and the container is there all the same.
#[test]
fn names_that_are_none() {
    let Some(podman) = Podman::with_names("nv-no-names") else { return };
    let web = named("web", 1);
    let aliases = ["good", "bad name", "a,b", "new\nline", ""];
    let pod = podman.pod("c").at_with(&web, 5, json!({"aliases": aliases}));
    let pod = pod.with(json!({"container_name": "not a name/", "container_hostname": "no host,name"}));
    let output = output_of(podman.command(&["setup", pod.path()]), pod.input().as_bytes());
    answer(&output).unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!log.contains("bad name"), "netavark says it as a warning, which Podman does not ask for: {log}");
    podman.down(&pod);
    let mut loud = podman.command(&["setup", pod.path()]);
    loud.env("RUST_LOG", "netavark=warn");
    let output = output_of(loud, pod.input().as_bytes());
    answer(&output).unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    for name in ["bad name", "a,b", "not a name/"] {
        assert!(log.contains(name), "{name}: {log}");
    }
    let asks = podman.pod("asks").at(&web, 6);
    podman.up(&asks);
    for name in ["good", &pod.id[..12]] {
        let Some(found) = short(&asks, ip(FAMILIES[0], 1, 1), &[name]) else { return };
        assert_eq!(found, ["10.9.1.5"], "{name}");
    }
}

/// Three name servers on neighbour `n`, by who is to be asked: the host's, a network's, a container's.
struct Servers {
    host: Upstream,
    network: Upstream,
    container: Upstream,
}

impl Servers {
    #[track_caller]
    fn start(podman: &mut Podman) -> Self {
        let resolv_conf = podman.world.lab.dir().join("resolv.conf");
        fs::write(&resolv_conf, "nameserver 10.0.1.2\n").unwrap();
        podman.world.environment.push(("PORTOLAN_RESOLV_CONF".into(), resolv_conf.into()));
        for address in ["10.0.1.3/24", "10.0.1.4/24"] {
            podman.world.second_address(address);
        }
        let start = |last: u8| {
            let place: SocketAddr = format!("10.0.1.{last}:53").parse().unwrap();
            Upstream::start(&podman.world.n, place, [192, 0, 2, last])
        };
        Self { host: start(2), network: start(3), container: start(4) }
    }

    fn asked(&self) -> [usize; 3] {
        [self.host.asked(), self.network.asked(), self.container.asked()]
    }
}

#[track_caller]
fn whom(pod: &Pod, gateway: IpAddr, name: &str) -> Vec<String> {
    short(pod, gateway, &[name]).unwrap_or_default()
}

#[test]
fn whom_questions_are_passed_on_to() {
    let Some(mut podman) = Podman::with_names("nv-forward") else { return };
    let servers = Servers::start(&mut podman);
    let plain = named("plain", 1);
    let chosen = merged(named("chosen", 2), json!({"network_dns_servers": ["10.0.1.3"]}));
    let by_host = podman.pod("by-host").at(&plain, 5);
    let by_network = podman.pod("by-network").at(&chosen, 5);
    let own = json!({"dns_servers": ["10.0.1.4"]});
    let by_container = podman.pod("by-container").at(&chosen, 6).with(own.clone());
    let on_plain = podman.pod("on-plain").at(&plain, 6).with(own);
    for pod in [&by_host, &by_network, &by_container, &on_plain] {
        podman.up(pod);
    }
    for family in FAMILIES {
        if short(&by_host, ip(family, 1, 1), &["example.com"]).is_none() {
            return;
        }
        assert_eq!(whom(&by_host, ip(family, 1, 1), "example.com"), ["192.0.2.2"]);
        assert_eq!(whom(&by_network, ip(family, 2, 1), "example.com"), ["192.0.2.3"]);
        assert_eq!(whom(&by_container, ip(family, 2, 1), "example.com"), ["192.0.2.4"]);
        assert_eq!(whom(&on_plain, ip(family, 1, 1), "example.com"), ["192.0.2.4"]);
    }
    // Ours never leave, with the ending or without.
    let before = servers.asked();
    for name in ["by-host", "by-host.dns.podman", "nobody.dns.podman", "nobody"] {
        whom(&by_host, ip(FAMILIES[0], 1, 1), name);
    }
    assert_eq!(servers.asked(), before);
    assert!(before.iter().all(|asked| *asked > 0), "{before:?}");
}

#[test]
fn servers_of_a_network_change_at_once() {
    let Some(mut podman) = Podman::with_names("nv-update") else { return };
    let servers = Servers::start(&mut podman);
    let update = |podman: &Podman, name: &str, list: &str| {
        podman.call(&["update", name, "--network-dns-servers", list], b"null\n")
    };
    // Before there is anything at all.
    assert_eq!(update(&podman, "web", "10.0.1.3"), Ok(Value::Null));
    let pod = podman.pod("c").at(&named("web", 1), 5);
    podman.up(&pod);
    let gateway = ip(FAMILIES[0], 1, 1);
    if short(&pod, gateway, &["one.example"]).is_none() {
        return;
    }
    assert_eq!(whom(&pod, gateway, "one.example"), ["192.0.2.2"]);
    assert_eq!(update(&podman, "web", "10.0.1.3,10.0.1.4"), Ok(Value::Null));
    assert_eq!(whom(&pod, gateway, "two.example"), ["192.0.2.3"]);
    assert_eq!(update(&podman, "nobody-knows-it", "10.0.1.4"), Ok(Value::Null));
    assert_eq!(update(&podman, "web", ""), Ok(Value::Null));
    assert_eq!(whom(&pod, gateway, "three.example"), ["192.0.2.2"]);
    let error = update(&podman, "web", "10.0.1.3,x").unwrap_err();
    assert_eq!(error, "unable to modify network dns servers: \"x\" is not an IP address");
    assert!(servers.asked()[0] > 0 && servers.asked()[1] > 0);
    podman.world.verify();
    // What the network says with the next container holds for all of it.
    let changed = merged(named("web", 1), json!({"network_dns_servers": ["10.0.1.4"]}));
    podman.up(&podman.pod("d").at(&changed, 6));
    assert_eq!(whom(&pod, gateway, "four.example"), ["192.0.2.4"]);
}

#[test]
fn nothing_is_asked_outside_for_an_internal_network() {
    let Some(mut podman) = Podman::with_names("nv-inside") else { return };
    let servers = Servers::start(&mut podman);
    let inside = merged(named("inside", 1), json!({"internal": true, "network_dns_servers": ["10.0.1.3"]}));
    let one = podman.pod("one").at(&inside, 5).with(json!({"dns_servers": ["10.0.1.4"]}));
    let two = podman.pod("two").at(&inside, 6);
    let open = podman.pod("open").at(&named("open", 2), 5);
    for pod in [&one, &two, &open] {
        podman.up(pod);
    }
    for family in FAMILIES {
        let gateway = ip(family, 1, 1);
        let Some(found) = short(&one, gateway, &["two"]) else { return };
        assert_eq!(found, ["10.9.1.6"]);
        for pod in [&one, &two] {
            assert_eq!(pod.default_routes(family), []);
            assert_eq!(status(pod, gateway, &["example.com"]).unwrap(), "NXDOMAIN");
            assert!(!udp_probe(pod, at(neighbour_ip(family), 53), SHORT).is_open());
        }
    }
    assert_eq!(servers.asked(), [0, 0, 0]);
    assert_eq!(whom(&open, ip(FAMILIES[0], 2, 1), "example.com"), ["192.0.2.2"], "the twin that is not internal");
    assert_eq!(servers.asked(), [1, 0, 0]);
    podman.world.verify();
}

/// Without names nobody listens at the gateway.
#[test]
fn a_network_without_names() {
    let Some(podman) = Podman::with_names("nv-nameless") else { return };
    let (plain, with) = (podman.pod("plain").at(&bridge("plain", 1), 5), podman.pod("with").at(&named("with", 2), 5));
    let status = podman.up(&plain);
    assert_eq!((&status["plain"]["dns_server_ips"], &status["plain"]["dns_search_domains"]), (&json!([]), &json!([])));
    podman.up(&with);
    let Some(found) = short(&with, ip(FAMILIES[0], 2, 1), &["with"]) else { return };
    assert_eq!(found, ["10.9.2.5"]);
    for family in FAMILIES {
        let answered = output(&plain, "dig", &[&format!("@{}", ip(family, 1, 1)), "+time=1", "+tries=1", "plain"]);
        assert!(!answered.unwrap().contains("status:"), "nobody answers");
    }
}

/// Debian's name server, killed when dropped. Some versions go to the background by themselves.
struct Aardvark {
    child: Child,
    config: PathBuf,
}

impl Drop for Aardvark {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let pid = fs::read_to_string(self.config.join("aardvark.pid")).ok();
        let process = pid.and_then(|text| PidFd::open(text.trim().parse().ok()?).ok());
        if let Some(process) = process {
            let _ = process.signal(signals::KILL);
            let _ = process.wait_readable(LONG);
        }
    }
}

/// What another backend left listening at the gateway is named, and everything is taken back.
#[test]
fn somebody_else_answers_at_the_gateway() {
    const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";
    let Some(podman) = Podman::with_names("nv-aardvark") else { return };
    if output(&podman.world.h, "dig", &["-v"]).is_none() {
        return;
    }
    if !Path::new(AARDVARK).exists() {
        assert!(std::env::var_os("CI").is_none(), "CI must have aardvark-dns");
        eprintln!("SKIP: no {AARDVARK}");
        return;
    }
    // Its bridge is gone, or has another name; the address is there.
    for address in FAMILIES.map(|family| format!("{}/{}", ip(family, 1, 1), choose(family, 32, 128))) {
        podman.world.h.add_address("lo", &address).unwrap();
    }
    let config = podman.world.lab.dir().join("aardvark");
    fs::create_dir(&config).unwrap();
    fs::write(config.join("web"), format!("10.9.1.1,fd09:1::1\n{} 10.9.1.99 fd09:1::99 old\n", "ab".repeat(32)))
        .unwrap();
    let mut command = Command::new(AARDVARK);
    command.arg("--config").arg(&config).args(["-p", "53", "run"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let aardvark = Aardvark { child: podman.world.h.adopt(command).unwrap().spawn().unwrap(), config };
    assert!(eventually(LONG, || {
        status(&podman.world.h, ip(FAMILIES[0], 1, 1), &["old"]).is_some_and(|status| status != "none")
    }));
    let pod = podman.pod("c").at(&named("web", 1), 5);
    let error = podman.refused(&pod);
    assert!(error.starts_with("error while applying dns entries: "), "{error}");
    assert!(error.contains("10.9.1.1") && error.contains("aardvark-dns"), "{error}");
    // It goes: so does the trouble.
    drop(aardvark);
    podman.up(&pod);
    assert_eq!(whom(&pod, ip(FAMILIES[0], 1, 1), "c"), ["10.9.1.5"]);
}
