//! The real binary, killed on entry to each of the system calls by which it changes anything: whoever comes next
//! completes or undoes what it was at, and leaves nothing else.

mod common;

use std::collections::BTreeSet;
use std::process::{Output, Stdio};

use common::{LONG, World};
use portolan_engine::{Store as _, Tx as _};
use portolan_kernel::netlink::{NETFILTER, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::probe::nft_tables;
use portolan_kernel::rtnl::link;
use portolan_lab::snapshot::{self, snapshot};
use portolan_lab::trace::{CHANGES, Outcome, kill_at};
use portolan_lab::{Host, InNetns as _, eventually};
use portolan_model::{ContainerKind, ContainerState, Driver, Family};
use portolan_store::SqliteStore;

/// What a person types, but for `NS`, which stands for the path of the container's namespace.
type Line = &'static str;

const NETWORK_A: Line = "network create --subnet 10.91.0.0/24 --subnet fd91::/64 a";
const NETWORK_B: Line = "network create --subnet 10.92.0.0/24 --subnet fd92::/64 b";
const ON_BOTH: Line = "attach --netns NS --name c --network name=a,ip=10.91.0.5,ip6=fd91::5 \
                       --network name=b,ip=10.92.0.5,ip6=fd92::5 -p 8080:80 -p 5353:53/udp";
const ON_A: Line = "attach --netns NS --name c --network name=a,ip=10.91.0.5,ip6=fd91::5 -p 8080:80";
const CONNECT: Line = "network connect --ip 10.92.0.5 --ip6 fd92::5 --gw-priority 10 b c";
const PUBLISH: Line = "publish add c 9090:90 5353:53/udp 7000-7009:7000-7009 7100-7103:7200-7203";
const UNPUBLISH: Line = "publish rm c 9090:90 5353:53/udp 7000-7009:7000-7009 7100-7103:7200-7203";
const RUN: Line = "run -d --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -p 5353:53/udp -- sleep 1000";

/// A verb that is killed at each of its steps.
struct Verb {
    name: &'static str,
    /// What happened before.
    given: &'static [Line],
    /// The verb under test.
    killed: Line,
    /// The same as somebody types it again; where it differs, it lasts longer.
    again: Line,
    /// What takes it back.
    undo: Line,
    /// Fewer calls than this cannot be all.
    at_least: usize,
}

/// What comes after the kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// `portolan gc`.
    Gc,
    /// The same verb again.
    Again,
}

/// A host with one namespace to attach.
struct Place {
    world: World,
    container: Host,
}

impl Place {
    fn or_skip(name: &str) -> Option<Self> {
        let world = World::or_skip(name)?;
        let container = world.lab.host("c").unwrap();
        // The LAN's routes appear a little after its links.
        let is_up =
            || snapshot(&world.h).unwrap().lines().iter().any(|line| line.starts_with("route fd00:1::1/128 table 255"));
        assert!(eventually(LONG, is_up));
        Some(Self { world, container })
    }

    fn args<'a>(&'a self, line: &'a str) -> Vec<&'a str> {
        let path = self.container.netns_path().to_str().unwrap();
        line.split_whitespace().map(|word| if word == "NS" { path } else { word }).collect()
    }

    fn try_line(&self, line: &str) -> Output {
        self.world.portolan(&self.args(line))
    }

    #[track_caller]
    fn line(&self, line: &str) -> String {
        self.world.portolan_ok(&self.args(line))
    }

    /// What the rows say, as far as it was asked for.
    fn rows(&self) -> BTreeSet<String> {
        let store = SqliteStore::open(&self.world.root).unwrap();
        let tx = store.read().unwrap();
        let mut rows = BTreeSet::new();
        let mut endpoints = 0;
        let networks = tx.networks().unwrap();
        for network in networks.iter().filter(|network| !network.is_predefined()) {
            rows.insert(format!("network {}", network.name));
        }
        for container in tx.containers().unwrap() {
            let state = match container.state {
                ContainerState::Exited(_) => "exited".to_owned(),
                other => format!("{other:?}"),
            };
            rows.insert(format!("container {} {state}", container.name));
            for endpoint in tx.endpoints_of(container.id).unwrap() {
                endpoints += 1;
                let addresses: Vec<String> =
                    endpoint.addresses.iter().filter(|a| a.configured).map(|a| a.address.to_string()).collect();
                rows.insert(format!("{} {} has {}", container.name, endpoint.ifname, addresses.join(" ")));
                for address in &endpoint.addresses {
                    let lease = tx.lease(endpoint.network, address.address.addr()).unwrap();
                    assert_eq!(lease.unwrap().endpoint, Some(endpoint.id), "the lease of {address:?}");
                }
            }
            for row in tx.publications_of(container.id).unwrap() {
                rows.insert(format!("{} publishes {}", container.name, row.publication));
            }
        }
        let on_networks: usize = networks.iter().map(|n| tx.endpoint_count(n.id, 1000).unwrap()).sum();
        assert_eq!(on_networks, endpoints, "an endpoint is nobody's");
        let leases: usize = networks
            .iter()
            .flat_map(|network| Family::ALL.map(|family| tx.lease_count(network.id, family).unwrap()))
            .sum();
        assert_eq!(leases, 2 * endpoints, "a lease is nobody's: {rows:?}");
        assert_eq!(tx.transitions(10).unwrap(), [], "something is half-way");
        rows
    }

    /// Panics unless host and run-time files hold what the rows claim and no more, by counting.
    #[track_caller]
    fn nothing_left(&self, what: &str) {
        let store = SqliteStore::open(&self.world.root).unwrap();
        let tx = store.read().unwrap();
        let containers = tx.containers().unwrap();
        let endpoints: usize = containers.iter().map(|c| tx.endpoints_of(c.id).unwrap().len()).sum();
        let bridges = tx
            .networks()
            .unwrap()
            .iter()
            .filter(|n| n.driver == Driver::Bridge)
            .filter(|n| !n.is_predefined() || tx.endpoint_count(n.id, 1).unwrap() > 0)
            .count();
        let directories = containers.iter().filter(|c| c.kind == ContainerKind::Run).count();

        let links = link::dump(&mut self.world.h.route_socket().unwrap()).unwrap();
        let names = |wanted: &dyn Fn(&link::Link) -> bool| -> Vec<String> {
            links.iter().filter(|link| wanted(link)).map(|link| link.name.clone()).collect()
        };
        let veths = names(&|link| link.kind.as_deref() == Some("veth") && link.name != "eth0");
        assert_eq!(veths.len(), endpoints, "{what}: {veths:?}");
        let found = names(&|link| link.kind.as_deref() == Some("bridge"));
        assert_eq!(found.len(), bridges, "{what}: {found:?}");
        let inside = link::dump(&mut self.container.route_socket().unwrap()).unwrap();
        let attached: usize = containers
            .iter()
            .filter(|c| c.kind == ContainerKind::Attached)
            .map(|c| tx.endpoints_of(c.id).unwrap().len())
            .sum();
        assert_eq!(inside.len(), 1 + attached, "{what}: {:?}", inside.iter().map(|l| &l.name).collect::<Vec<_>>());
        let tables =
            with_netns(self.world.h.netns(), || nft_tables(&mut Socket::open(NETFILTER).unwrap()).unwrap()).unwrap();
        assert_eq!(tables.len(), if bridges > 0 { 2 } else { 0 }, "{what}: {tables:?}");
        let directories_left = || std::fs::read_dir(self.world.root.join("run/containers")).map_or(0, Iterator::count);
        // Whoever waited for a command that was killed lets go of its files a little later.
        let are_gone = eventually(LONG, || directories_left() == directories);
        assert!(are_gone, "{what}: {} run-time directories instead of {directories}", directories_left());
    }

    /// Everything goes.
    #[track_caller]
    fn clear(&self, networks: bool) {
        for row in self.rows() {
            if let Some(name) = row.strip_prefix("container ").and_then(|rest| rest.split(' ').next()) {
                self.line(&format!("rm -f {name}"));
            }
        }
        for row in self.rows().iter().filter(|_| networks) {
            if let Some(name) = row.strip_prefix("network ") {
                self.line(&format!("network rm {name}"));
            }
        }
    }
}

/// Kills `verb` at each of its steps, and looks at what comes of it.
fn kill_everywhere(verb: &Verb, nexts: &[Next]) {
    let Some(place) = Place::or_skip(verb.name) else { return };
    let started = std::time::Instant::now();
    let untouched = snapshot(&place.world.h).unwrap();
    let give = || verb.given.iter().for_each(|line| drop(place.line(line)));

    // What there is before and after the verb, when nobody is killed.
    give();
    place.line("verify");
    let before = place.rows();
    place.line(verb.again);
    let after = place.rows();
    place.line(verb.undo);
    assert_eq!(place.rows(), before, "`{}` takes `{}` back", verb.undo, verb.again);
    place.clear(true);

    let mut points = 0;
    for next in nexts {
        points = 0;
        // What is taken down is the same; who does it matters less: that is tried at every third step.
        for n in (1..).step_by(if *next == Next::Gc { 1 } else { 3 }) {
            give();
            let mut command = place.world.command(&place.args(verb.killed));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let (what, last) = match kill_at(command, CHANGES, n).unwrap() {
                Outcome::Killed { syscall, .. } => (format!("{}, killed at step {n}, {syscall:?}", verb.name), false),
                Outcome::Finished(status) => (format!("{}, which ended with {status}", verb.name), true),
            };
            match next {
                Next::Gc => after_gc(&place, verb, &what, &before, &after),
                Next::Again => after_itself(&place, verb, &what, &after),
            }
            place.line("verify");
            assert_eq!(place.rows(), after, "{what}");
            if *next == Next::Again {
                // Run-time directories are all that is left to it.
                let found: serde_json::Value = place.world.json(&["gc"]);
                assert_eq!(place.rows(), after, "{what}: {found}");
            }
            place.nothing_left(&what);

            place.clear(true);
            let changes = snapshot::diff(&untouched, &snapshot(&place.world.h).unwrap());
            assert!(changes.is_empty(), "{what}: after the last network the host is not what it was: {changes:#?}");
            place.nothing_left(&what);
            if last {
                break;
            }
            points = points.max(n);
        }
    }
    eprintln!("{}: killed at {points} steps, {:?}", verb.name, started.elapsed());
    assert!(points >= verb.at_least, "{} has {points} steps: is that all?", verb.name);
}

/// `gc` completes or undoes; then the verb succeeds, unless it was complete.
fn after_gc(place: &Place, verb: &Verb, what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let gc = place.try_line("gc");
    assert!(gc.status.success(), "{what}: gc: {gc:?}");
    let verified = place.try_line("verify");
    assert!(verified.status.success() && verified.stdout.is_empty(), "{what}: verify: {verified:?}");
    place.nothing_left(what);
    let found = place.rows();
    if found == *after {
        let undo = place.try_line(verb.undo);
        assert!(undo.status.success(), "{what}: `{}`: {undo:?}", verb.undo);
    } else if let Some(exited) = found.iter().find_map(|row| row.strip_suffix(" exited")?.strip_prefix("container ")) {
        // A command that ran and ended stays, without network, until it is removed.
        let rest: BTreeSet<String> = found.iter().filter(|row| !row.ends_with(" exited")).cloned().collect();
        let without: BTreeSet<String> =
            before.iter().filter(|row| !row.split(' ').any(|word| word == exited)).cloned().collect();
        assert_eq!(rest, without, "{what}: an ended command has no network");
        if before.contains(&format!("container {exited} Running")) {
            // It was to be removed anyway.
            place.line(&format!("rm {exited}"));
            return;
        }
        place.line(&format!("rm {exited}"));
    } else {
        assert_eq!(found, *before, "{what}: neither done nor undone");
    }
    let again = place.try_line(verb.again);
    assert!(again.status.success(), "{what}: once more: {again:?}");
}

/// The same verb completes or undoes what is left of its predecessor, and then does its own work.
fn after_itself(place: &Place, verb: &Verb, what: &str, after: &BTreeSet<String>) {
    let again = place.try_line(verb.again);
    if again.status.success() {
        return;
    }
    // Refused, because it was done already.
    let found = place.rows();
    if let Some(exited) = found.iter().find_map(|row| row.strip_suffix(" exited")?.strip_prefix("container ")) {
        place.line(&format!("rm {exited}"));
        place.line(verb.again);
        return;
    }
    assert_eq!(found, *after, "{what}: once more: {again:?}");
}

const BOTH: &[Next] = &[Next::Gc, Next::Again];

#[test]
fn network_create() {
    kill_everywhere(
        &Verb {
            name: "network create",
            given: &[],
            killed: NETWORK_A,
            again: NETWORK_A,
            undo: "network rm a",
            at_least: 20,
        },
        BOTH,
    );
}

#[test]
fn network_create_beside_another() {
    kill_everywhere(
        &Verb {
            name: "second network create",
            given: &[NETWORK_B],
            killed: NETWORK_A,
            again: NETWORK_A,
            undo: "network rm a",
            at_least: 15,
        },
        BOTH,
    );
}

#[test]
fn attach() {
    kill_everywhere(
        &Verb {
            name: "attach",
            given: &[NETWORK_A, NETWORK_B],
            killed: ON_BOTH,
            again: ON_BOTH,
            undo: "detach c",
            at_least: 20,
        },
        BOTH,
    );
}

#[test]
fn attach_to_the_default_network() {
    const VERB: Line = "attach --netns NS --name c --ip 172.17.0.9 -p 8080:80 -p 127.0.0.1:5353:53/udp";
    kill_everywhere(
        &Verb { name: "first attach", given: &[], killed: VERB, again: VERB, undo: "detach c", at_least: 20 },
        BOTH,
    );
}

#[test]
fn network_connect() {
    kill_everywhere(
        &Verb {
            name: "network connect",
            given: &[NETWORK_A, NETWORK_B, ON_A],
            killed: CONNECT,
            again: CONNECT,
            undo: "network disconnect b c",
            at_least: 15,
        },
        BOTH,
    );
}

#[test]
fn network_disconnect() {
    kill_everywhere(
        &Verb {
            name: "network disconnect",
            given: &[NETWORK_A, NETWORK_B, ON_A, CONNECT],
            killed: "network disconnect b c",
            again: "network disconnect b c",
            undo: CONNECT,
            at_least: 10,
        },
        BOTH,
    );
}

#[test]
fn publish_add() {
    kill_everywhere(
        &Verb {
            name: "publish add",
            given: &[NETWORK_A, ON_A],
            killed: PUBLISH,
            again: PUBLISH,
            undo: UNPUBLISH,
            at_least: 8,
        },
        BOTH,
    );
}

#[test]
fn publish_rm() {
    kill_everywhere(
        &Verb {
            name: "publish rm",
            given: &[NETWORK_A, ON_A, PUBLISH],
            killed: UNPUBLISH,
            again: UNPUBLISH,
            undo: PUBLISH,
            at_least: 8,
        },
        BOTH,
    );
}

#[test]
fn detach() {
    kill_everywhere(
        &Verb {
            name: "detach",
            given: &[NETWORK_A, NETWORK_B, ON_BOTH],
            killed: "detach c",
            again: "detach c",
            undo: ON_BOTH,
            at_least: 10,
        },
        BOTH,
    );
}

#[test]
fn network_rm() {
    kill_everywhere(
        &Verb {
            name: "network rm",
            given: &[NETWORK_A],
            killed: "network rm a",
            again: "network rm a",
            undo: NETWORK_A,
            at_least: 10,
        },
        BOTH,
    );
}

#[test]
fn run_in_the_background() {
    kill_everywhere(
        &Verb {
            name: "run -d",
            given: &[NETWORK_A],
            killed: "run -d --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -p 5353:53/udp -- sleep 0.01",
            again: RUN,
            undo: "rm -f r",
            at_least: 40,
        },
        BOTH,
    );
}

#[test]
fn rm_force() {
    kill_everywhere(
        &Verb { name: "rm -f", given: &[NETWORK_A, RUN], killed: "rm -f r", again: "rm -f r", undo: RUN, at_least: 3 },
        BOTH,
    );
}

/// A command in the foreground that removes itself: nothing is left, wherever it is killed.
#[test]
fn run_in_the_foreground() {
    const RUN_RM: Line =
        "run --rm --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -p 5353:53/udp -- true";
    let Some(place) = Place::or_skip("run --rm") else { return };
    let untouched = snapshot(&place.world.h).unwrap();
    place.line(NETWORK_A);
    let before = place.rows();
    for n in 1.. {
        let mut command = place.world.command(&place.args(RUN_RM));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let what = match kill_at(command, CHANGES, n).unwrap() {
            Outcome::Killed { syscall, .. } => format!("killed at step {n}, {syscall:?}"),
            Outcome::Finished(status) => {
                eprintln!("run --rm: killed at {} steps", n - 1);
                assert!(status.success() && n > 40, "{status} after {n} steps");
                break;
            }
        };
        if n % 2 == 0 {
            place.line("gc");
            place.line("verify");
            assert_eq!(place.rows(), before, "{what}");
            place.nothing_left(&what);
        }
        // At every other step without gc.
        place.line(RUN_RM);
        assert_eq!(place.rows(), before, "{what}");
        place.line("gc");
        place.nothing_left(&what);
        place.line("verify");
    }
    place.clear(true);
    let changes = snapshot::diff(&untouched, &snapshot(&place.world.h).unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
}
