//! Names on another port than 53, as Podman's `dns_bind_port` asks for where somebody else has that one.

mod common;

use std::io::Write as _;
use std::net::UdpSocket;
use std::process::{Command, Output, Stdio};

use common::{LONG, World};
use portolan_lab::{Host, eventually};

/// A network of both families with names, as Podman tells it.
const SETUP: &str = r#"{"container_id":"c1","container_name":"web","networks":{"n":{"static_ips":["10.89.0.2","fd89::2"],"interface_name":"eth0"}},"network_info":{"n":{"name":"n","id":"d2","driver":"bridge","network_interface":"podman7","subnets":[{"subnet":"10.89.0.0/24","gateway":"10.89.0.1"},{"subnet":"fd89::/64","gateway":"fd89::1"}],"dns_enabled":true}}}"#;

fn netavark(world: &World, verb: &str, container: &Host, port: Option<&str>) -> Output {
    netavark_of(world, verb, container, port, SETUP)
}

fn netavark_of(world: &World, verb: &str, container: &Host, port: Option<&str>, setup: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    command.envs(world.environment.iter().cloned());
    command.arg("netavark").arg("--config").arg(&world.root).arg(verb).arg(container.netns_path());
    match port {
        Some(port) => command.env("NETAVARK_DNS_PORT", port),
        None => command.env_remove("NETAVARK_DNS_PORT"),
    };
    let mut command = world.h.adopt(command).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(setup.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What dig(1) prints in the container.
fn dig(container: &Host, args: &[&str]) -> String {
    let mut command = container.command("dig").unwrap();
    let output = command.args(["+short", "+tries=1", "+time=5"]).args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The question is translated, so it must be tracked, whichever rules do it; and it reaches a host that drops what it does
/// not know.
#[test]
fn whichever_rules_translate() {
    for (driver, is_internal) in [("nftables", true), ("iptables", false), ("iptables", true)] {
        let Some(mut world) = World::or_skip("dns-port-rules") else { return };
        if Command::new("iptables-save").output().is_err() {
            eprintln!("SKIP: no iptables-save(8)");
            assert!(std::env::var_os("CI").is_none(), "CI must have iptables-save(8)");
            return;
        }
        world.daemon = true;
        world.environment.push(("PORTOLAN_DAEMON".into(), "auto".into()));
        world.environment.push(("PORTOLAN_FIREWALL".into(), driver.into()));
        if driver == "iptables" {
            for program in ["iptables", "ip6tables"] {
                let mut command = world.h.command(program).unwrap();
                assert!(command.args(["-w", "-P", "INPUT", "DROP"]).status().unwrap().success());
                let mut command = world.h.command(program).unwrap();
                let neighbours = ["-w", "-A", "INPUT", "-p", "ipv6-icmp", "-j", "ACCEPT"];
                if program == "ip6tables" {
                    assert!(command.args(neighbours).status().unwrap().success());
                }
            }
        }
        let container = world.lab.host("web").unwrap();
        let text = SETUP.replace("\"dns_enabled\"", &format!("\"internal\":{is_internal},\"dns_enabled\""));
        let output = netavark_of(&world, "setup", &container, Some("5353"), &text);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let saved = world.h.command("iptables-save").unwrap().output().unwrap();
        let is_there = String::from_utf8(saved.stdout).unwrap().contains("-REDIRECTED -d 10.89.0.1/32");
        assert_eq!(is_there, driver == "iptables");
        for server in ["@10.89.0.1", "@fd89::1"] {
            assert_eq!(dig(&container, &[server, "web", "A"]), "10.89.0.2", "{driver} {server}");
            assert_eq!(dig(&container, &[server, "+tcp", "web", "AAAA"]), "fd89::2", "{driver} {server}");
        }
        world.portolan_ok(&["verify"]);
        let output = netavark_of(&world, "teardown", &container, Some("5353"), &text);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn names_are_answered_beside_a_server_of_the_hosts() {
    let Some(mut world) = World::or_skip("dns-port") else { return };
    if Command::new("dig").arg("-v").output().is_err() {
        eprintln!("SKIP: no dig(1)");
        assert!(std::env::var_os("CI").is_none(), "CI must have dig(1)");
        return;
    }
    world.daemon = true;
    world.environment.push(("PORTOLAN_DAEMON".into(), "auto".into()));
    let container = world.lab.host("web").unwrap();
    let _taken = world.h.enter(|| UdpSocket::bind("0.0.0.0:53").unwrap());

    // With port 53 taken, a network with names is refused aloud, and nothing of it is left.
    let refused = netavark(&world, "setup", &container, None);
    let text = String::from_utf8(refused.stdout).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.starts_with(r#"{"error":"error while applying dns entries: names are not answered"#), "{text}");
    assert!(common::interface(&world.h, "podman7").is_none());

    for port in ["5353", "10053"] {
        let output = netavark(&world, "setup", &container, Some(port));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        for server in ["@10.89.0.1", "@fd89::1"] {
            assert_eq!(dig(&container, &[server, "web.dns.podman", "A"]), "10.89.0.2", "{port} {server}");
            assert_eq!(dig(&container, &[server, "+tcp", "web", "AAAA"]), "fd89::2", "{port} {server}");
        }
        world.portolan_ok(&["verify"]);
        let output = netavark(&world, "teardown", &container, Some(port));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(eventually(LONG, || common::interface(&world.h, "podman7").is_none()));
    }
    for (bad, why) in [("x", "invalid digit found in string"), ("70000", "number too large to fit in target type")] {
        let output = netavark(&world, "setup", &container, Some(bad));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.trim(), format!(r#"{{"error":"Invalid NETAVARK_DNS_PORT {bad}: {why}"}}"#));
    }
}
