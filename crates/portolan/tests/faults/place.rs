//! A host on which verbs fail, what it holds before and afterwards, and who puts in order what they left.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

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
use serde_json::{Value, json};

use crate::common::{LONG, World, links};

/// What a person types, but for `NS` and `NS-O`, which stand for the paths of namespaces, and `BESIDE`
/// ([`Verb::beside`]).
pub(crate) type Line = &'static str;

pub(crate) const NETWORK_A: Line = "network create --subnet 10.91.0.0/24 --subnet fd91::/64 a";
pub(crate) const PTP_A: Line = "network create -d ptp --subnet 10.91.0.0/24 --subnet fd91::/64 a";
pub(crate) const NETWORK_B: Line = "network create --subnet 10.92.0.0/24 --subnet fd92::/64 b";
pub(crate) const ON_BOTH: Line = "attach --netns NS --name c --network name=a,ip=10.91.0.5,ip6=fd91::5 \
                       --network name=b,ip=10.92.0.5,ip6=fd92::5 -p 8080:80 -p 5353:53/udp";
pub(crate) const ON_A: Line = "attach --netns NS --name c --network name=a,ip=10.91.0.5,ip6=fd91::5 -p 8080:80";
pub(crate) const CONNECT: Line = "network connect --ip 10.92.0.5 --ip6 fd92::5 --gw-priority 10 b c";
pub(crate) const PUBLISH: Line = "publish add c 9090:90 5353:53/udp 7000-7009:7000-7009 7100-7103:7200-7203";
pub(crate) const UNPUBLISH: Line = "publish rm c 9090:90 5353:53/udp 7000-7009:7000-7009 7100-7103:7200-7203";
pub(crate) const RUN: Line =
    "run -d --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -p 5353:53/udp -- sleep 1000";

// Where container `o` may be ([`Verb::beside`]).
pub(crate) const DEFAULT: &str = "name=bridge,ip=172.17.0.7";
pub(crate) const ON_NETWORK_A: &str = "name=a,ip=10.91.0.7,ip6=fd91::7";
pub(crate) const ON_NETWORK_B: &str = "name=b,ip=10.92.0.7,ip6=fd92::7";

/// A verb that is killed at each of its steps.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    /// What happened before.
    pub(crate) given: &'static [Line],
    /// The verb under test.
    pub(crate) killed: Line,
    /// The same as somebody types it again; where it differs, it lasts longer.
    pub(crate) again: Line,
    /// What takes it back.
    pub(crate) undo: Line,
    /// The network of container `o`: one that is there all the time.
    pub(crate) beside: &'static str,
    /// Fewer calls than this cannot be all.
    pub(crate) at_least: usize,
}

/// A verb that has nothing to do with the killed one: it is about container `o` and network `z` alone.
pub(crate) struct Other {
    /// What happened before, to `o` and `z`.
    pub(crate) given: &'static [Line],
    /// The verb.
    pub(crate) line: Line,
    /// How the rows about `o` and `z` begin afterwards, in order.
    pub(crate) leaves: &'static [&'static str],
}

pub(crate) const ATTACH_O: Line = "attach --netns NS-O --name o --network BESIDE -p 8090:80";
pub(crate) const NETWORK_Z: Line = "network create --subnet 10.95.0.0/24 --subnet fd95::/64 z";
pub(crate) const CONNECT_O: Line = "network connect z o";
pub(crate) const O: &str = "container o Running";
pub(crate) const O_BESIDE: &str = "o eth0 has";
pub(crate) const O_ON_Z: &str = "o eth1 has";
pub(crate) const O_PUBLISHES: &str = "o publishes 8090:80/tcp";
pub(crate) const Z: &str = "network z";

/// Whoever may come next instead.
pub(crate) const OTHERS: &[Other] = &[
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
pub(crate) enum Next {
    /// `portolan gc`.
    Gc,
    /// The same verb again.
    Again,
    /// Another verb.
    Other(&'static Other),
}

/// A host with two namespaces to attach.
pub(crate) struct Place {
    pub(crate) world: World,
    pub(crate) container: Host,
    pub(crate) other: Host,
    /// Where Podman and a CNI runtime have their containers, if not at `container` as well.
    pub(crate) guests: Option<[Host; 2]>,
    pub(crate) beside: &'static str,
    pub(crate) untouched: Snapshot,
}

/// Which socket of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    /// Docker's.
    Plugin,
    /// Of Docker's clients.
    Api,
}

impl Place {
    pub(crate) fn or_skip(name: &str, beside: &'static str) -> Option<Self> {
        let world = World::or_skip(name)?;
        let (container, other) = (world.lab.host("c").unwrap(), world.lab.host("o").unwrap());
        let untouched = world.untouched();
        Some(Self { world, container, other, guests: None, beside, untouched })
    }

    pub(crate) fn args<'a>(&'a self, line: &'a str) -> Vec<&'a str> {
        let word = |word| match word {
            "NS" => self.container.netns_path().to_str().unwrap(),
            "NS-O" => self.other.netns_path().to_str().unwrap(),
            "BESIDE" => self.beside,
            _ => word,
        };
        line.split_whitespace().map(word).collect()
    }

    /// The same with a daemon that serves Docker and its clients, and places of their own for Podman and a CNI runtime.
    pub(crate) fn served(name: &str) -> Option<Self> {
        let mut place = Self::or_skip(name, ON_NETWORK_A)?;
        place.guests = Some(["p", "k"].map(|name| place.world.lab.host(name).unwrap()));
        place.world.daemon = true;
        let plugin = place.socket(Face::Plugin);
        place.line(&format!("daemon start --docker {} --api", plugin.display()));
        Some(place)
    }

    /// Ends the daemon, and starts no other one.
    pub(crate) fn unserve(&mut self) {
        self.line("daemon stop");
        self.world.daemon = false;
    }

    /// The process of the daemon.
    pub(crate) fn daemon(&self) -> u32 {
        let pid = self.world.json(&["daemon", "status"])["pid"].as_u64();
        pid.and_then(|pid| pid.try_into().ok()).expect("a daemon runs")
    }

    pub(crate) fn socket(&self, face: Face) -> PathBuf {
        match face {
            Face::Plugin => self.world.lab.dir().join("plugin.sock"),
            Face::Api => self.world.root.join("run/docker.sock"),
        }
    }

    /// What a socket answers, if it does.
    pub(crate) fn try_http(&self, face: Face, method: &str, path: &str, body: &Value) -> Option<(u16, String)> {
        http(&self.socket(face), method, path, body).ok()
    }

    #[track_caller]
    pub(crate) fn http(&self, face: Face, method: &str, path: &str, body: &Value) -> (u16, String) {
        self.try_http(face, method, path, body).unwrap_or_else(|| panic!("{method} {path}: no answer"))
    }

    fn guest(&self, number: usize) -> &str {
        let guest = self.guests.as_ref().map_or(&self.container, |guests| &guests[number]);
        guest.netns_path().to_str().unwrap()
    }

    /// The program as a person calls it, or as Podman (`netavark VERB`) and container runtimes (`cni VERB`) do.
    pub(crate) fn command(&self, line: &str) -> Command {
        let args = self.args(line);
        let mut command = match *args.as_slice() {
            ["netavark", verb] => {
                let root = self.world.root.to_str().unwrap();
                self.world.command(&["netavark", "--config", root, "--rootless=false", verb, self.guest(0)])
            }
            ["cni", verb] => {
                let mut command = self.world.command(&[]);
                let name = if self.guests.is_some() { "k" } else { "c" };
                command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", name).env("CNI_IFNAME", "eth0");
                command.env("CNI_NETNS", self.guest(1)).env("CNI_PATH", self.world.lab.dir());
                command
            }
            _ => self.world.command(&args),
        };
        command.stdin(self.input(line));
        command
    }

    /// What such a call is fed.
    pub(crate) fn input(&self, line: &str) -> Stdio {
        let (face, text) = match line.split(' ').next() {
            Some("netavark") => ("netavark", podman_input()),
            // Two faces do not describe one network.
            Some("cni") => ("cni", cni_input(if self.guests.is_some() { "kube" } else { "web" })),
            _ => return Stdio::null(),
        };
        let path = self.world.lab.dir().join(format!("{face}.json"));
        fs::write(&path, text.to_string()).unwrap();
        Stdio::from(File::open(path).unwrap())
    }

    pub(crate) fn try_line(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn line(&self, line: &str) -> String {
        let output = self.try_line(line);
        assert!(output.status.success(), "`{line}`: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the rows say, as far as it was asked for, of all but `o` and `z`.
    pub(crate) fn rows(&self) -> BTreeSet<String> {
        self.all_rows().into_iter().filter(|row| !is_of_the_other(row)).collect()
    }

    pub(crate) fn all_rows(&self) -> BTreeSet<String> {
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

    /// Whether a row is half-way.
    pub(crate) fn is_half_way(&self) -> bool {
        let store = SqliteStore::open(&self.world.root).unwrap();
        let tx = store.read().unwrap();
        !tx.transitions(1).unwrap().is_empty()
    }

    /// Panics unless host and run-time files hold what the rows claim and no more, by counting.
    #[track_caller]
    pub(crate) fn nothing_left(&self, what: &str) {
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
    pub(crate) fn clear(&self, what: &str) {
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
    pub(crate) fn kill(&self, line: Line, n: usize) -> (String, Option<ExitStatus>) {
        let mut command = self.command(line);
        command.stdout(Stdio::null()).stderr(Stdio::null());
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
    pub(crate) fn another(&self, other: &Other, what: &str) -> bool {
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
pub(crate) fn is_of_the_other(row: &str) -> bool {
    row == Z || row.starts_with("o ") || row.starts_with("container o ")
}

/// A verb to which something happens over and over, on one host.
pub(crate) struct Trial<'a> {
    pub(crate) place: Place,
    verb: &'a Verb,
    /// The rows before the verb, and after it, when nothing happens to it.
    pub(crate) before: BTreeSet<String>,
    pub(crate) after: BTreeSet<String>,
    state: State,
    rounds: usize,
}

/// What is there now.
enum State {
    Nothing,
    Before,
    After,
}

/// All is taken away, and the host compared with what it was, after so many rounds; else the verb is taken back.
const CLEAR: usize = 6;

impl<'a> Trial<'a> {
    /// Finds out what the verb does, and that it can be taken back.
    #[track_caller]
    pub(crate) fn new(place: Place, verb: &'a Verb) -> Self {
        let (before, after) = (BTreeSet::new(), BTreeSet::new());
        let mut trial = Self { place, verb, before, after, state: State::Nothing, rounds: 0 };
        verb.given.iter().for_each(|line| drop(trial.place.line(line)));
        trial.place.line("verify");
        trial.before = trial.place.rows();
        trial.place.line(verb.again);
        trial.after = trial.place.rows();
        trial.state = State::After;
        trial
    }

    /// All that the verb needs is there, and it has not happened.
    #[track_caller]
    pub(crate) fn ready(&mut self) {
        match self.state {
            State::Nothing => self.verb.given.iter().for_each(|line| drop(self.place.line(line))),
            State::Before => return,
            State::After => {
                self.place.line(self.verb.undo);
                assert_eq!(self.place.rows(), self.before, "`{}` takes `{}` back", self.verb.undo, self.verb.again);
            }
        }
        self.state = State::Before;
    }

    /// The verb has happened, after all, and nothing else is left.
    #[track_caller]
    pub(crate) fn done(&mut self, what: &str) {
        let verified = self.place.try_line("verify");
        assert!(verified.status.success(), "{what}: verify: {verified:?}");
        assert_eq!(self.place.rows(), self.after, "{what}");
        self.place.nothing_left(what);
        self.state = State::After;
        self.rounds += 1;
        if self.rounds.is_multiple_of(CLEAR) {
            self.clear(what);
        }
    }

    /// Takes all away: the host is as it was.
    #[track_caller]
    pub(crate) fn clear(&mut self, what: &str) {
        self.place.clear(what);
        self.state = State::Nothing;
    }

    /// `gc` completes or undoes; then the verb succeeds, unless it was complete.
    #[track_caller]
    pub(crate) fn after_gc(&self, what: &str) {
        let gc = self.place.try_line("gc");
        assert!(gc.status.success(), "{what}: gc: {gc:?}");
        let verified = self.place.try_line("verify");
        assert!(verified.status.success() && verified.stdout.is_empty(), "{what}: verify: {verified:?}");
        self.place.nothing_left(what);
        self.once_more(what);
    }

    /// The verb is done or undone, and can be repeated: nobody keeps its name, addresses and ports.
    #[track_caller]
    pub(crate) fn once_more(&self, what: &str) {
        let Self { place, verb, before, after, .. } = self;
        let found = place.rows();
        if found == *after {
            // Complete: what is there can be taken back, as is seen when the next round begins.
            return;
        } else if let Some(exited) =
            found.iter().find_map(|row| row.strip_suffix(" exited")?.strip_prefix("container "))
        {
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
    #[track_caller]
    pub(crate) fn after_itself(&self, what: &str) {
        let Self { place, verb, after, .. } = self;
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
}

/// How many hosts a verb is tried on at once: most of the time each waits for the kernel.
pub(crate) const LANES: usize = 3;

/// A verb on several hosts at once.
pub(crate) struct Lanes<'a>(Vec<Trial<'a>>);

impl<'a> Lanes<'a> {
    pub(crate) fn or_skip(name: &str, verb: &'a Verb) -> Option<Self> {
        let trial = || Place::or_skip(name, verb.beside).map(|place| Trial::new(place, verb));
        thread::scope(|scope| {
            let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(trial)).collect();
            let trials: Option<Vec<Trial<'a>>> = lanes.into_iter().map(joined).collect();
            trials.map(Self)
        })
    }

    /// Has the next host that is free play the next case, until one says that there is no such case; answers how many there
    /// were.
    pub(crate) fn play<C: Send>(
        &mut self,
        cases: impl Iterator<Item = C> + Send,
        play: impl Fn(&mut Trial<'a>, C) -> bool + Sync,
    ) -> usize {
        let (cases, count) = (Mutex::new(cases.fuse()), AtomicUsize::new(0));
        let next = || cases.lock().unwrap().next();
        let lane = |trial: &mut Trial<'a>| {
            while let Some(case) = next()
                && play(trial, case)
            {
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        thread::scope(|scope| {
            let lane = &lane;
            let lanes: Vec<_> = self.0.iter_mut().map(|trial| scope.spawn(move || lane(trial))).collect();
            lanes.into_iter().for_each(joined);
        });
        count.into_inner()
    }

    /// Takes all away: the hosts are as they were.
    pub(crate) fn clear(&mut self, what: &str) {
        self.0.iter_mut().for_each(|trial| trial.clear(what));
    }
}

/// What a thread came to; it panicked if that did.
pub(crate) fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Asks a server at a unix socket, and waits as long as it takes: its status and body.
///
/// # Errors
/// When it does not answer, or not in full.
pub(crate) fn http(socket: &Path, method: &str, path: &str, body: &Value) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let none = || io::Error::other(format!("no answer: {answer:?}"));
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(none)?;
    Ok((status.ok_or_else(none)?, body.to_owned()))
}

/// What Podman says of container `c`: its place on network `web`, with two published ports.
pub(crate) fn podman_input() -> serde_json::Value {
    let subnets =
        json!([{"subnet": "10.93.0.0/24", "gateway": "10.93.0.1"}, {"subnet": "fd93::/64", "gateway": "fd93::1"}]);
    let port = |host: u16, container: u16, protocol: &str| json!({"host_ip": "", "host_port": host, "container_port": container, "range": 1, "protocol": protocol});
    json!({
        "container_id": "c0ffee", "container_name": "c",
        "networks": {"web": {"static_ips": ["10.93.0.5", "fd93::5"], "interface_name": "eth0"}},
        "network_info": {"web": {
            "name": "web", "id": "77".repeat(32), "driver": "bridge", "network_interface": "podman7", "subnets": subnets,
            "ipv6_enabled": true, "internal": false, "dns_enabled": true, "ipam_options": {"driver": "host-local"},
        }},
        "port_mappings": [port(8080, 80, "tcp"), port(5353, 53, "udp")],
    })
}

/// The configuration that a container runtime has of a network.
pub(crate) fn cni_input(name: &str) -> serde_json::Value {
    json!({
        "cniVersion": "1.1.0", "name": name, "type": "portolan",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.94.0.0/24"}], [{"subnet": "fd94::/64"}]]},
        "runtimeConfig": {"portMappings": [{"hostPort": 8300, "containerPort": 80, "protocol": "tcp"}]},
    })
}
