//! The real binary, killed on entry to each of the system calls by which it changes anything: whoever comes next
//! completes or undoes what it was at, and leaves nothing else.

mod common;

use std::collections::BTreeSet;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Instant;

use common::{LONG, World, links};
use portolan_engine::{Store as _, Tx as _};
use portolan_kernel::netlink::{NETFILTER, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::probe::nft_tables;
use portolan_kernel::rtnl::link::Link;
use portolan_lab::snapshot::Snapshot;
use portolan_lab::trace::{CHANGES, Outcome, kill_at};
use portolan_lab::{Host, InNetns as _, eventually};
use portolan_model::{ContainerKind, ContainerState, Driver, Family};
use portolan_store::SqliteStore;

/// What a person types, but for `NS` and `NS-O`, which stand for the paths of namespaces, and `BESIDE`
/// ([`Verb::beside`]).
type Line = &'static str;

const NETWORK_A: Line = "network create --subnet 10.91.0.0/24 --subnet fd91::/64 a";
const PTP_A: Line = "network create -d ptp --subnet 10.91.0.0/24 --subnet fd91::/64 a";
const NETWORK_B: Line = "network create --subnet 10.92.0.0/24 --subnet fd92::/64 b";
const ON_BOTH: Line = "attach --netns NS --name c --network name=a,ip=10.91.0.5,ip6=fd91::5 \
                       --network name=b,ip=10.92.0.5,ip6=fd92::5 -p 8080:80 -p 5353:53/udp";
const ON_A: Line = "attach --netns NS --name c --network name=a,ip=10.91.0.5,ip6=fd91::5 -p 8080:80";
const CONNECT: Line = "network connect --ip 10.92.0.5 --ip6 fd92::5 --gw-priority 10 b c";
const PUBLISH: Line = "publish add c 9090:90 5353:53/udp 7000-7009:7000-7009 7100-7103:7200-7203";
const UNPUBLISH: Line = "publish rm c 9090:90 5353:53/udp 7000-7009:7000-7009 7100-7103:7200-7203";
const RUN: Line = "run -d --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -p 5353:53/udp -- sleep 1000";

// Where container `o` may be ([`Verb::beside`]).
const DEFAULT: &str = "name=bridge,ip=172.17.0.7";
const ON_NETWORK_A: &str = "name=a,ip=10.91.0.7,ip6=fd91::7";
const ON_NETWORK_B: &str = "name=b,ip=10.92.0.7,ip6=fd92::7";

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
    /// The network of container `o`: one that is there all the time.
    beside: &'static str,
    /// Fewer calls than this cannot be all.
    at_least: usize,
}

/// A verb that has nothing to do with the killed one: it is about container `o` and network `z` alone.
struct Other {
    /// What happened before, to `o` and `z`.
    given: &'static [Line],
    /// The verb.
    line: Line,
    /// How the rows about `o` and `z` begin afterwards, in order.
    leaves: &'static [&'static str],
}

const ATTACH_O: Line = "attach --netns NS-O --name o --network BESIDE -p 8090:80";
const NETWORK_Z: Line = "network create --subnet 10.95.0.0/24 --subnet fd95::/64 z";
const CONNECT_O: Line = "network connect z o";
const O: &str = "container o Running";
const O_BESIDE: &str = "o eth0 has";
const O_ON_Z: &str = "o eth1 has";
const O_PUBLISHES: &str = "o publishes 8090:80/tcp";
const Z: &str = "network z";

/// Whoever may come next instead.
const OTHERS: &[Other] = &[
    Other { given: &[ATTACH_O], line: "detach o", leaves: &[] },
    Other { given: &[ATTACH_O, NETWORK_Z], line: CONNECT_O, leaves: &[O, Z, O_BESIDE, O_ON_Z, O_PUBLISHES] },
    Other {
        given: &[ATTACH_O],
        line: "publish add o 9191:91 7300-7303:7400-7403",
        leaves: &[O, O_BESIDE, "o publishes 7300-7303:7400-7403/tcp", O_PUBLISHES, "o publishes 9191:91/tcp"],
    },
    Other { given: &[], line: NETWORK_Z, leaves: &[Z] },
    Other { given: &[], line: ATTACH_O, leaves: &[O, O_BESIDE, O_PUBLISHES] },
    Other {
        given: &[ATTACH_O, NETWORK_Z, CONNECT_O],
        line: "network disconnect z o",
        leaves: &[O, Z, O_BESIDE, O_PUBLISHES],
    },
    Other { given: &[ATTACH_O], line: "publish rm o 8090:80", leaves: &[O, O_BESIDE] },
    Other { given: &[NETWORK_Z], line: "network rm z", leaves: &[] },
    Other { given: &[], line: "run --rm --name o --network BESIDE -p 8090:80 -- true", leaves: &[] },
];

/// What comes after the kill.
#[derive(Clone, Copy)]
enum Next {
    /// `portolan gc`.
    Gc,
    /// The same verb again.
    Again,
    /// Another verb.
    Other(&'static Other),
}

/// A host with two namespaces to attach.
struct Place {
    world: World,
    container: Host,
    other: Host,
    beside: &'static str,
    untouched: Snapshot,
}

impl Place {
    fn or_skip(name: &str, beside: &'static str) -> Option<Self> {
        let world = World::or_skip(name)?;
        let (container, other) = (world.lab.host("c").unwrap(), world.lab.host("o").unwrap());
        let untouched = world.untouched();
        Some(Self { world, container, other, beside, untouched })
    }

    fn args<'a>(&'a self, line: &'a str) -> Vec<&'a str> {
        let word = |word| match word {
            "NS" => self.container.netns_path().to_str().unwrap(),
            "NS-O" => self.other.netns_path().to_str().unwrap(),
            "BESIDE" => self.beside,
            _ => word,
        };
        line.split_whitespace().map(word).collect()
    }

    fn try_line(&self, line: &str) -> Output {
        self.world.portolan(&self.args(line))
    }

    #[track_caller]
    fn line(&self, line: &str) -> String {
        self.world.portolan_ok(&self.args(line))
    }

    /// What the rows say, as far as it was asked for, of all but `o` and `z`.
    fn rows(&self) -> BTreeSet<String> {
        self.all_rows().into_iter().filter(|row| !is_of_the_other(row)).collect()
    }

    fn all_rows(&self) -> BTreeSet<String> {
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
                let addresses: String =
                    endpoint.addresses.iter().filter(|a| a.configured).map(|a| format!(" {}", a.address)).collect();
                rows.insert(format!("{} {} has{addresses}", container.name, endpoint.ifname));
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
        let networks = tx.networks().unwrap();
        let ruled = || {
            let mut ruled: Vec<_> = networks.iter().filter(|n| n.is_ruled()).collect();
            ruled.retain(|n| !n.is_predefined() || tx.endpoint_count(n.id, 1).unwrap() > 0);
            ruled
        };
        let bridges = ruled().iter().filter(|n| n.driver == Driver::Bridge).count();
        let directories = containers.iter().filter(|c| c.kind == ContainerKind::Run).count();

        let links_of_host = links(&self.world.h);
        let names = |wanted: &dyn Fn(&Link) -> bool| -> Vec<&str> {
            links_of_host.iter().filter(|link| wanted(link)).map(|link| link.name.as_str()).collect()
        };
        let veths = names(&|link| link.kind.as_deref() == Some("veth") && link.name != "eth0");
        assert_eq!(veths.len(), endpoints, "{what}: {veths:?}");
        let found = names(&|link| link.kind.as_deref() == Some("bridge"));
        assert_eq!(found.len(), bridges, "{what}: {found:?}");
        for (name, place) in [("c", &self.container), ("o", &self.other)] {
            let attached: usize = containers
                .iter()
                .filter(|c| c.kind == ContainerKind::Attached && c.name.as_str() == name)
                .map(|c| tx.endpoints_of(c.id).unwrap().len())
                .sum();
            let inside = links(place);
            assert_eq!(inside.len(), 1 + attached, "{what}: {:?}", inside.iter().map(|l| &l.name).collect::<Vec<_>>());
        }
        let tables =
            with_netns(self.world.h.netns(), || nft_tables(&mut Socket::open(NETFILTER).unwrap()).unwrap()).unwrap();
        assert_eq!(tables.len(), if ruled().is_empty() { 0 } else { 2 }, "{what}: {tables:?}");
        // Whoever waited for a command that was killed lets go of its files a little later.
        let are_gone = eventually(LONG, || self.world.run_time_dirs() == directories);
        assert!(are_gone, "{what}: {} run-time directories instead of {directories}", self.world.run_time_dirs());
    }

    /// Removes all containers and networks; then the host is what it was.
    #[track_caller]
    fn clear(&self, what: &str) {
        for row in self.all_rows() {
            if let Some(name) = row.strip_prefix("container ").and_then(|rest| rest.split(' ').next()) {
                self.line(&format!("rm -f {name}"));
            }
        }
        for row in self.all_rows() {
            if let Some(name) = row.strip_prefix("network ") {
                self.line(&format!("network rm {name}"));
            }
        }
        self.world.assert_untouched(&self.untouched, what);
        self.nothing_left(what);
    }

    /// Kills `line` on entry to its `n`th change; says what happened, and whether it was over before.
    fn kill(&self, line: Line, n: usize) -> (String, Option<ExitStatus>) {
        let mut command = self.world.command(&self.args(line));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match kill_at(command, CHANGES, n).unwrap() {
            Outcome::Killed { syscall, .. } => (format!("`{line}`, killed at step {n}, {syscall:?}"), None),
            Outcome::Finished(status) => (format!("`{line}`, which ended with {status}"), Some(status)),
        }
    }

    /// Runs another verb, which succeeds, does its own work, and leaves nothing half-way of whom it follows.
    ///
    /// Answers whether there is a container whose command is dead: what `run` had settled when it was killed stays
    /// until `gc`, `rm`, or somebody asks for its name.
    #[track_caller]
    fn another(&self, other: &Other, what: &str) -> bool {
        let output = self.try_line(other.line);
        assert!(output.status.success(), "{what}: {output:?}");
        let has_dead = !self.line("ps -aq --filter status=dead").is_empty();
        let differences = String::from_utf8(self.try_line("verify").stdout).unwrap();
        let is_dead = |line: &str| !line.starts_with("unexpected: ") && line.contains(" in /proc/");
        assert!(differences.lines().all(|line| has_dead && is_dead(line)), "{what}: verify: {differences}");
        let rows: Vec<String> = self.all_rows().into_iter().filter(|row| is_of_the_other(row)).collect();
        let is_done = rows.len() == other.leaves.len() && rows.iter().zip(other.leaves).all(|(a, b)| a.starts_with(b));
        assert!(is_done, "{what}: {rows:?} instead of {:?}", other.leaves);
        has_dead
    }
}

/// Whether a row is about container `o` or network `z`.
fn is_of_the_other(row: &str) -> bool {
    row == Z || row.starts_with("o ") || row.starts_with("container o ")
}

/// Kills `verb` at each of its steps, and looks at what comes of it.
fn kill_everywhere(verb: &Verb) {
    let Some(place) = Place::or_skip(verb.name, verb.beside) else { return };
    let started = Instant::now();
    let give = || verb.given.iter().for_each(|line| drop(place.line(line)));

    // What there is before and after the verb, when nobody is killed.
    give();
    place.line("verify");
    let before = place.rows();
    place.line(verb.again);
    let after = place.rows();
    place.line(verb.undo);
    assert_eq!(place.rows(), before, "`{}` takes `{}` back", verb.undo, verb.again);
    place.clear(verb.name);

    // Whether there was an nth step.
    let kill_at_step = |n: usize, next: Next| {
        give();
        if let Next::Other(other) = next {
            other.given.iter().for_each(|line| drop(place.line(line)));
        }
        let (what, ended) = place.kill(verb.killed, n);
        match next {
            Next::Gc => after_gc(&place, verb, &what, &before, &after),
            Next::Again => after_itself(&place, verb, &what, &after),
            Next::Other(other) => {
                let what = format!("{what}, then `{}`", other.line);
                if place.another(other, &what) {
                    after_itself(&place, verb, &what, &after);
                } else {
                    once_more(&place, verb, &what, &before, &after);
                }
            }
        }
        place.line("verify");
        assert_eq!(place.rows(), after, "{what}");
        if !matches!(next, Next::Gc) {
            // Run-time directories are all that is left to it.
            let found: serde_json::Value = place.world.json(&["gc"]);
            assert_eq!(place.rows(), after, "{what}: {found}");
        }
        place.nothing_left(&what);
        place.clear(&what);
        ended.is_none()
    };
    let points = (1..).take_while(|n| kill_at_step(*n, Next::Gc)).count();
    assert!(points >= verb.at_least, "{} has {points} steps: is that all?", verb.name);
    // What is taken down is the same; who does it matters less: that is tried at every third step, and by turns.
    for n in (1..=points + 3).step_by(3) {
        kill_at_step(n, Next::Again);
    }
    let apart = (points / OTHERS.len()).clamp(1, 3);
    for (n, other) in (1..=points).step_by(apart).zip(OTHERS.iter().cycle()) {
        kill_at_step(n, Next::Other(other));
    }
    eprintln!("{}: killed at {points} steps, {:?}", verb.name, started.elapsed());
}

/// `gc` completes or undoes; then the verb succeeds, unless it was complete.
fn after_gc(place: &Place, verb: &Verb, what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let gc = place.try_line("gc");
    assert!(gc.status.success(), "{what}: gc: {gc:?}");
    let verified = place.try_line("verify");
    assert!(verified.status.success() && verified.stdout.is_empty(), "{what}: verify: {verified:?}");
    place.nothing_left(what);
    once_more(place, verb, what, before, after);
}

/// The verb is done or undone, and can be repeated: nobody keeps its name, addresses and ports.
fn once_more(place: &Place, verb: &Verb, what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) {
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

#[test]
fn network_create() {
    kill_everywhere(&Verb {
        name: "network create",
        given: &[],
        killed: NETWORK_A,
        again: NETWORK_A,
        undo: "network rm a",
        beside: DEFAULT,
        at_least: 20,
    });
}

#[test]
fn network_create_beside_another() {
    kill_everywhere(&Verb {
        name: "second network create",
        given: &[NETWORK_B],
        killed: NETWORK_A,
        again: NETWORK_A,
        undo: "network rm a",
        beside: ON_NETWORK_B,
        at_least: 15,
    });
}

#[test]
fn attach() {
    kill_everywhere(&Verb {
        name: "attach",
        given: &[NETWORK_A, NETWORK_B],
        killed: ON_BOTH,
        again: ON_BOTH,
        undo: "detach c",
        beside: ON_NETWORK_A,
        at_least: 20,
    });
}

#[test]
fn attach_without_a_bridge() {
    kill_everywhere(&Verb {
        name: "attach-ptp",
        given: &[PTP_A],
        killed: ON_A,
        again: ON_A,
        undo: "detach c",
        beside: ON_NETWORK_A,
        at_least: 15,
    });
}

#[test]
fn attach_to_the_default_network() {
    const VERB: Line = "attach --netns NS --name c --ip 172.17.0.9 -p 8080:80 -p 127.0.0.1:5353:53/udp";
    kill_everywhere(&Verb {
        name: "first attach",
        given: &[],
        killed: VERB,
        again: VERB,
        undo: "detach c",
        beside: DEFAULT,
        at_least: 20,
    });
}

#[test]
fn network_connect() {
    kill_everywhere(&Verb {
        name: "network connect",
        given: &[NETWORK_A, NETWORK_B, ON_A],
        killed: CONNECT,
        again: CONNECT,
        undo: "network disconnect b c",
        beside: ON_NETWORK_A,
        at_least: 15,
    });
}

#[test]
fn network_disconnect() {
    kill_everywhere(&Verb {
        name: "network disconnect",
        given: &[NETWORK_A, NETWORK_B, ON_A, CONNECT],
        killed: "network disconnect b c",
        again: "network disconnect b c",
        undo: CONNECT,
        beside: ON_NETWORK_A,
        at_least: 10,
    });
}

#[test]
fn publish_add() {
    kill_everywhere(&Verb {
        name: "publish add",
        given: &[NETWORK_A, ON_A],
        killed: PUBLISH,
        again: PUBLISH,
        undo: UNPUBLISH,
        beside: ON_NETWORK_A,
        at_least: 8,
    });
}

#[test]
fn publish_rm() {
    kill_everywhere(&Verb {
        name: "publish rm",
        given: &[NETWORK_A, ON_A, PUBLISH],
        killed: UNPUBLISH,
        again: UNPUBLISH,
        undo: PUBLISH,
        beside: ON_NETWORK_A,
        at_least: 8,
    });
}

#[test]
fn detach() {
    kill_everywhere(&Verb {
        name: "detach",
        given: &[NETWORK_A, NETWORK_B, ON_BOTH],
        killed: "detach c",
        again: "detach c",
        undo: ON_BOTH,
        beside: ON_NETWORK_A,
        at_least: 10,
    });
}

#[test]
fn network_rm() {
    kill_everywhere(&Verb {
        name: "network rm",
        given: &[NETWORK_A],
        killed: "network rm a",
        again: "network rm a",
        undo: NETWORK_A,
        beside: DEFAULT,
        at_least: 10,
    });
}

#[test]
fn run_in_the_background() {
    kill_everywhere(&Verb {
        name: "run -d",
        given: &[NETWORK_A],
        killed: "run -d --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -p 5353:53/udp -- sleep 0.01",
        again: RUN,
        undo: "rm -f r",
        beside: ON_NETWORK_A,
        at_least: 40,
    });
}

#[test]
fn rm_force() {
    kill_everywhere(&Verb {
        name: "rm -f",
        given: &[NETWORK_A, RUN],
        killed: "rm -f r",
        again: "rm -f r",
        undo: RUN,
        beside: ON_NETWORK_A,
        at_least: 3,
    });
}

/// A command in the foreground that removes itself: nothing is left, wherever it is killed.
#[test]
fn run_in_the_foreground() {
    const RUN_RM: Line =
        "run --rm --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -p 5353:53/udp -- true";
    let Some(place) = Place::or_skip("run --rm", ON_NETWORK_A) else { return };
    place.line(NETWORK_A);
    let before = place.rows();
    for n in 1.. {
        let other = (n % 4 == 1).then(|| &OTHERS[n / 4 % OTHERS.len()]);
        for line in other.into_iter().flat_map(|other| other.given) {
            place.line(line);
        }
        let (what, ended) = place.kill(RUN_RM, n);
        if let Some(status) = ended {
            eprintln!("run --rm: killed at {} steps", n - 1);
            assert!(status.success() && n > 40, "{status} after {n} steps");
            break;
        }
        if n % 2 == 0 {
            place.line("gc");
            place.line("verify");
            assert_eq!(place.rows(), before, "{what}");
            place.nothing_left(&what);
        }
        // At every other step without gc, and at every fourth after another verb.
        if let Some(other) = other {
            place.another(other, &format!("{what}, then `{}`", other.line));
        }
        place.line(RUN_RM);
        assert_eq!(place.rows(), before, "{what}");
        place.line("gc");
        place.nothing_left(&what);
        place.line("verify");
        if other.is_some() {
            place.clear(&what);
            place.line(NETWORK_A);
        }
    }
    place.clear("run --rm");
}
