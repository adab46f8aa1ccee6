//! The binary called by the names of other programs.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use common::{LONG, World};
use portolan_kernel::netlink::{Event, Monitor};
use portolan_kernel::netns::with_netns;
use portolan_lab::{InNetns, eventually};
use serde_json::json;

/// The daemon believes the rows when we changed rules, and compares everything when somebody else did: it must know us.
#[test]
fn called_as_netavark_it_changes_rules_under_its_own_name() {
    let Some(world) = World::or_skip("called") else { return };
    let program = world.lab.dir().join("netavark");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_portolan"), &program).unwrap();
    let mut monitor = with_netns(world.h.netns(), Monitor::open).unwrap().unwrap();
    let mut authors = || {
        let mut names = Vec::new();
        let is_heard = eventually(LONG, || {
            let events = monitor.read().unwrap();
            names.extend(events.into_iter().filter_map(|event| match event {
                Event::Rules { by: (_, name), .. } => Some(name),
                _ => None,
            }));
            !names.is_empty()
        });
        assert!(is_heard, "the rules are changed");
        names
    };
    let container = world.lab.host("c").unwrap();
    let input = json!({
        "container_id": format!("{:064x}", 7), "container_name": "c",
        "networks": {"podman": {"static_ips": ["10.88.0.2"], "interface_name": "eth0"}},
        "network_info": {"podman": {
            "name": "podman", "id": format!("{:064x}", 8), "driver": "bridge", "network_interface": "podman0",
            "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}],
            "ipv6_enabled": false, "internal": false, "dns_enabled": false}},
    })
    .to_string();
    for verb in ["setup", "teardown"] {
        let mut command = Command::new(&program);
        command.arg("--config").arg(&world.root).arg(verb).arg(container.netns_path());
        command.env("PORTOLAN_DAEMON", "off").stdin(Stdio::piped());
        let mut child = world.h.adopt(command).unwrap().spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{verb}");
        let names = authors();
        assert!(names.iter().all(|name| name == "portolan"), "{verb}: {names:?}");
    }
}

/// The daemon is root and reads what strangers send: where its code is, they are not to know (elf(5), `ET_DYN`).
#[test]
fn the_binary_runs_at_any_address() {
    let header = std::fs::read(env!("CARGO_BIN_EXE_portolan")).unwrap();
    assert_eq!(header[16..18], 3u16.to_ne_bytes());
}
