//! Containers that come, change and go, also when something goes wrong in between.

use std::fs;
use std::process::Command;
use std::time::Duration;

use portolan_kernel::netns::unpin;
use portolan_kernel::process::PidFd;
use portolan_kernel::rtnl::Family;
use portolan_kernel::signals;
use portolan_lab::eventually;
use portolan_lab::probe::{ping, tcp_probe};
use portolan_lab::server::TcpServer;
use portolan_lab::snapshot::{diff, snapshot};
use serde_json::{Value, json};

use crate::common::{FAMILIES, LONG, SHORT, any, at, host_ip, interface};
use crate::podman::{Pod, Podman, answer, bridge, ip, merged, start};

#[track_caller]
fn assert_published(podman: &Podman, port: u16, banner: &str) {
    for family in FAMILIES {
        let probe = tcp_probe(&podman.world.n, at(host_ip(family), port), LONG);
        assert_eq!(probe.banner(), Some(banner), "{probe}");
    }
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    let Some(podman) = Podman::or_skip("nv-reload") else { return };
    let pod = podman.pod("c").at(&bridge("web", 1), 5).ports(&[(8080, 80, "tcp", "")]);
    podman.up(&pod);
    let _server = TcpServer::start(&pod, any(Family::V6, 80), "c").unwrap();
    assert_published(&podman, 8080, "c");
    let before = snapshot(&podman.world.h).unwrap();
    let mut flush = Command::new("nft");
    flush.args(["flush", "ruleset"]);
    assert!(podman.world.h.adopt(flush).unwrap().status().unwrap().success());
    for family in FAMILIES {
        assert!(!tcp_probe(&podman.world.n, at(host_ip(family), 8080), SHORT).is_open());
    }
    assert_eq!(podman.call(&["firewall-reload"], b""), Ok(Value::Null));
    assert_published(&podman, 8080, "c");
    let changes = diff(&before, &snapshot(&podman.world.h).unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
    podman.world.verify();
}

/// Two networks, of which the second cannot be: nothing of the first is left.
#[test]
fn all_or_nothing() {
    let Some(podman) = Podman::or_skip("nv-all") else { return };
    let unmanaged = json!({"network_interface": "nowhere", "options": {"mode": "unmanaged"}});
    let vlan = json!({"options": {"vlan": "7"}});
    let host = podman.world.untouched();
    for (name, bad) in [("missing", merged(bridge("b", 2), unmanaged)), ("kernel", merged(bridge("b", 2), vlan))] {
        let pod = podman.pod(name).at(&bridge("a", 1), 5).at(&bad, 5).ports(&[(8080, 80, "tcp", "")]);
        match podman.setup(&pod) {
            Err(_) => {}
            Ok(_) if name == "kernel" => {
                eprintln!("SKIP: the kernel filters VLANs");
                podman.down(&pod);
            }
            Ok(_) => panic!("it cannot be"),
        }
        assert_eq!((interface(&pod, "eth0"), interface(&pod, "eth1")), (None, None));
        podman.world.assert_untouched(&host, name);
        assert_eq!(podman.world.portolan_ok(&["ps", "-aq"]), "");
    }
}

#[test]
fn twice_is_once() {
    let Some(podman) = Podman::or_skip("nv-twice") else { return };
    let host = podman.world.untouched();
    let pod = podman.pod("c").at(&bridge("web", 1), 5).ports(&[(8080, 80, "tcp", "")]);
    // Before there is anything, and when all is gone.
    podman.down(&pod);
    podman.up(&pod);
    let error = podman.refused(&pod);
    assert!(error.contains("`c`") && error.contains("`web`"), "{error}");
    podman.world.verify();
    assert!(ping(&pod, ip(Family::V4, 1, 1), LONG).is_open());
    podman.down(&pod);
    podman.down(&pod);
    podman.world.assert_untouched(&host, "twice");
    assert_eq!(podman.world.portolan_ok(&["ps", "-aq"]), "");
}

#[test]
fn a_namespace_that_is_gone_already() {
    let Some(podman) = Podman::or_skip("nv-gone") else { return };
    let host = podman.world.untouched();
    let network = bridge("web", 1);
    let (pod, stays) = (podman.pod("c").at(&network, 5), podman.pod("stays").at(&network, 6));
    let pod = pod.ports(&[(8080, 80, "tcp", "")]);
    podman.up(&pod);
    podman.up(&stays);
    unpin(pod.host.netns_path()).unwrap();
    podman.down(&pod);
    podman.world.verify();
    assert!(ping(&stays, ip(Family::V4, 1, 1), LONG).is_open());
    let next = podman.pod("next").at(&network, 5).ports(&[(8080, 80, "tcp", "")]);
    podman.up(&next);
    podman.down(&next);
    podman.down(&stays);
    podman.world.assert_untouched(&host, "a namespace that was gone");
}

/// `podman network connect` is a setup with the new network alone, `disconnect` a teardown of one.
#[test]
fn networks_come_and_go_beside_others() {
    let Some(podman) = Podman::or_skip("nv-connect") else { return };
    let host = podman.world.untouched();
    let mut pod = podman.pod("c").at(&bridge("a", 1), 5).ports(&[(8080, 80, "tcp", "")]);
    podman.up(&pod);
    let _server = TcpServer::start(&pod, any(Family::V6, 80), "c").unwrap();
    let first = pod.on.remove(0);
    pod = pod.at_with(&bridge("b", 2), 5, json!({"interface_name": "eth1"}));
    let status = podman.up(&pod);
    assert_eq!(status.as_object().unwrap().keys().collect::<Vec<_>>(), ["b"], "what was asked for, no more");
    for family in FAMILIES {
        assert!(ping(&pod, ip(family, 1, 1), LONG).is_open());
        assert!(ping(&pod, ip(family, 2, 1), LONG).is_open());
        assert_eq!(pod.default_routes(family), [(ip(family, 1, 1), Some(100))], "the first still leads out");
    }
    assert_published(&podman, 8080, "c");
    podman.world.verify();
    // One that cannot be leaves both as they are.
    let taken = podman.pod("other").at(&bridge("b", 2), 9);
    podman.up(&taken);
    let second = pod.on.remove(0);
    pod =
        pod.at_with(&bridge("d", 4), 5, json!({"options": {"host_interface_name": "eth0"}, "interface_name": "eth2"}));
    podman.refused(&pod);
    pod.on[0] = second;
    let second = std::mem::replace(&mut pod.on[0], first);
    podman.down(&pod);
    for family in FAMILIES {
        assert!(ping(&pod, ip(family, 2, 1), LONG).is_open());
        assert_eq!(pod.default_routes(family), [(ip(family, 2, 1), Some(100))]);
    }
    assert_published(&podman, 8080, "c");
    podman.world.verify();
    pod.on[0] = second;
    podman.down(&pod);
    podman.down(&taken);
    podman.world.assert_untouched(&host, "coming and going");
}

/// A container that was restarted without a teardown is in a new namespace.
#[test]
fn the_same_container_in_a_new_namespace() {
    let Some(podman) = Podman::or_skip("nv-again") else { return };
    let old = podman.pod("old").at(&bridge("web", 1), 5).ports(&[(8080, 80, "tcp", "")]);
    podman.up(&old);
    let mut new = podman.pod("new").at(&bridge("web", 1), 5).ports(&[(8080, 80, "tcp", "")]);
    new.id = old.id.clone();
    podman.up(&new);
    let _server = TcpServer::start(&new, any(Family::V6, 80), "new").unwrap();
    assert_published(&podman, 8080, "new");
    assert_eq!(interface(&old, "eth0"), None);
    assert_eq!(podman.world.portolan_ok(&["ps", "-aq"]).lines().count(), 1);
    podman.world.verify();
}

/// Two containers of one name, as different stores of Podman may have them.
#[test]
fn a_name_that_two_have() {
    let Some(podman) = Podman::or_skip("nv-names-twice") else { return };
    let one = podman.pod("one").at(&bridge("web", 1), 5).with(json!({"container_name": "same"}));
    let two = podman.pod("two").at(&bridge("web", 1), 6).with(json!({"container_name": "same"}));
    podman.up(&one);
    podman.up(&two);
    podman.world.verify();
    podman.down(&one);
    assert!(ping(&two, ip(Family::V4, 1, 1), LONG).is_open());
    podman.down(&two);
}

/// While it waits for its turn it is told to stop, twice, and goes on.
#[test]
fn a_teardown_does_not_stop_halfway() {
    let Some(podman) = Podman::or_skip("nv-deaf") else { return };
    let host = podman.world.untouched();
    let pod = podman.pod("c").at(&bridge("web", 1), 5);
    podman.up(&pod);
    let lock = fs::File::open(podman.world.root.join("lock")).unwrap();
    lock.lock().unwrap();
    let child = start(podman.command(&["teardown", pod.path()]), pod.input().as_bytes());
    let process = PidFd::open(child.id() as i32).unwrap();
    // It is at the lock when it has opened it.
    let waits = || {
        let files = fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten().flatten();
        let path = podman.world.root.join("lock");
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == path)
    };
    assert!(eventually(LONG, waits));
    for signal in [signals::TERM, signals::INTERRUPT] {
        process.signal(signal).unwrap();
    }
    assert!(!process.wait_readable(SHORT).unwrap(), "it waits for its turn");
    assert!(interface(&podman.world.h, "podman1").is_some());
    lock.unlock().unwrap();
    assert_eq!(answer(&child.wait_with_output().unwrap()), Ok(Value::Null));
    podman.world.assert_untouched(&host, "a teardown under signals");
    // The twin: another command does stop.
    lock.lock().unwrap();
    let mut child = start(podman.command(&["setup", pod.path()]), pod.input().as_bytes());
    let process = PidFd::open(child.id() as i32).unwrap();
    process.signal(signals::TERM).unwrap();
    assert!(process.wait_readable(LONG).unwrap());
    assert_eq!(child.wait().unwrap().code(), None, "ended by the signal");
    lock.unlock().unwrap();
}

/// Killed anywhere in a setup or a teardown: `gc` leaves nothing, and what comes next works.
#[test]
fn killed_at_any_moment() {
    const KILLS: u32 = 60;
    let Some(podman) = Podman::or_skip("nv-killed") else { return };
    let host = podman.world.untouched();
    let pod = podman.pod("c").at(&bridge("a", 1), 5).at(&bridge("b", 2), 5);
    let pod = pod.ports(&[(8080, 80, "tcp", ""), (5353, 53, "udp", "")]);
    let began = std::time::Instant::now();
    podman.up(&pod);
    let (up, began) = (began.elapsed(), std::time::Instant::now());
    podman.down(&pod);
    let down = began.elapsed();
    let mut killed = 0;
    for n in 0..KILLS {
        let (verb, whole) = if n % 2 == 0 { ("setup", up) } else { ("teardown", down) };
        if verb == "teardown" {
            podman.up(&pod);
        }
        let mut child = start(podman.command(&[verb, pod.path()]), pod.input().as_bytes());
        // Spread over the whole of it: the point is another one each time.
        std::thread::sleep(whole * n / KILLS);
        killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        podman.world.portolan_ok(&["gc"]);
        podman.world.verify();
        podman.down(&pod);
        assert_eq!((interface(&pod, "eth0"), interface(&pod, "eth1")), (None, None), "kill {n} in {verb}");
        podman.world.assert_untouched(&host, &format!("kill {n} in {verb}"));
    }
    assert!(killed > KILLS / 4, "only {killed} were still running: the test shows little");
    podman.up(&pod);
    podman.down(&pod);
}

/// A namespace that goes while it is set up: an error or not, nothing is left once it is taken down.
#[test]
fn a_namespace_that_vanishes_halfway() {
    const TIMES: u32 = 20;
    let Some(podman) = Podman::or_skip("nv-vanishes") else { return };
    let host = podman.world.untouched();
    let probe = podman.pod("probe").at(&bridge("web", 1), 5);
    let began = std::time::Instant::now();
    podman.up(&probe);
    let whole = began.elapsed();
    podman.down(&probe);
    let mut failed = 0;
    for n in 0..TIMES {
        let pod = podman.pod(&format!("c{n}")).at(&bridge("web", 1), 5).ports(&[(8080, 80, "tcp", "")]);
        let path = pod.host.netns_path().to_owned();
        let input = pod.input();
        let child = start(podman.command(&["setup", pod.path()]), input.as_bytes());
        let (pod_path, Pod { host: gone, .. }) = (pod.path().to_owned(), pod);
        std::thread::sleep(whole * n / TIMES);
        unpin(&path).unwrap();
        drop(gone);
        let result = answer(&child.wait_with_output().unwrap());
        failed += u32::from(result.is_err());
        assert_eq!(podman.call(&["teardown", &pod_path], input.as_bytes()), Ok(Value::Null), "{result:?}");
        podman.world.verify();
        let is_back = || diff(&host, &snapshot(&podman.world.h).unwrap()).is_empty();
        assert!(eventually(LONG, is_back), "{n}: {:#?}", diff(&host, &snapshot(&podman.world.h).unwrap()));
    }
    assert!(failed > 0, "it never went in time: the test shows nothing");
    assert_eq!(podman.world.portolan_ok(&["ps", "-aq"]), "");
}

/// A hundred containers, five at a time, all on one network, with a port each.
#[test]
fn many_at_once() {
    const LANES: u8 = 5;
    const EACH: u8 = 20;
    let Some(podman) = Podman::with_names("nv-many") else { return };
    let network = merged(bridge("web", 1), json!({"dns_enabled": true}));
    let pods: Vec<Vec<Pod>> = (0..LANES)
        .map(|lane| {
            (0..EACH)
                .map(|n| {
                    let number = 10 + lane * EACH + n;
                    let port = 8000 + u16::from(number);
                    podman.pod(&format!("c{number}")).at(&network, number).ports(&[(port, 80, "tcp", "")])
                })
                .collect()
        })
        .collect();
    std::thread::scope(|scope| {
        for lane in &pods {
            scope.spawn(|| lane.iter().for_each(|pod| drop(podman.up(pod))));
        }
    });
    podman.world.verify();
    assert_eq!(podman.world.portolan_ok(&["ps", "-q"]).lines().count(), usize::from(LANES * EACH));
    for pod in pods.iter().filter_map(|lane| lane.last()) {
        assert!(ping(pod, ip(Family::V4, 1, 1), LONG).is_open());
    }
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for lane in &pods {
            scope.spawn(|| lane.iter().for_each(|pod| podman.down(pod)));
        }
    });
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(podman.world.portolan_ok(&["ps", "-aq"]), "");
    assert_eq!(interface(&podman.world.h, "podman1"), None);
}
