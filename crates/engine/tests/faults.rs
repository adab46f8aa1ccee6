//! Whatever fails at whichever call of whichever verb: nothing is left, nothing is had twice, and nothing is open that no
//! row knows of.
//!
//! A schedule is a list of verbs of all faces, each with what goes wrong meanwhile ([`Fault`]), and of what happens beside
//! them: the machine starts anew, the clock jumps, somebody else changes what is ours. It is made from a seed;
//! `PORTOLAN_SEEDS` sets how many are run, `PORTOLAN_SEED` runs one. One that fails is shortened and printed.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fake::broken::{self, Ack, BrokenStore, ERRNOS, Fault, How, Site};
use fake::{FakeKernel, Random};
use portolan_engine::{
    AddressRequest, AttachRequest, Call, EndpointRequest, Engine, Error, NetworkRequest, PoolNet, PoolRequest,
    RangeRequest, Repaired, Store as _, Tx as _,
};
use portolan_model::{ContainerKind, DhcpLease, DhcpServer, Driver, Family, Id, Ipam, PublishSpec};
use portolan_plan::{Data, Object, Step};
use portolan_store::SqliteStore;

const SEEDS: u64 = 1000;
const EVENTS: usize = 16;

/// The networks that a person makes.
const NETWORKS: [&str; 5] = ["alpha", "ptp", "small", "vault", "lan"];

/// What is done. Numbers stand for names, taken modulo how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Create(u8),
    Remove(u8),
    Attach {
        who: u8,
        on: [u8; 2],
        port: u8,
    },
    Connect {
        who: u8,
        to: u8,
    },
    Disconnect {
        who: u8,
        from: u8,
    },
    Publish {
        who: u8,
        port: u8,
    },
    Unpublish {
        who: u8,
        port: u8,
    },
    Detach(u8),
    /// As netavark and CNI attach: to all networks at once, which they describe with every call.
    Join {
        who: u8,
        on: [u8; 2],
        port: u8,
    },
    Leave {
        who: u8,
        from: u8,
    },
    /// As Docker attaches.
    Hand {
        who: u8,
        on: u8,
    },
    RequestPool(u8),
    ReleasePool(u8),
    RequestAddress {
        pool: u8,
        free: bool,
    },
    ReleaseAddress {
        pool: u8,
        address: u8,
    },
    /// A network on a pool.
    CreateOn(u8),
    Lease {
        who: u8,
        granted: bool,
    },
    ForwardNames(u8),
    Prune,
    Gc,
    Reconcile,
    RepairRules,
    RepairPorts(u8),
    /// The daemon follows what happens.
    Follow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Do(Verb, Option<Fault>, Next),
    /// The container's namespace goes.
    Die(u8),
    Reboot,
    /// The clock is set, by years.
    Clock(i8),
    /// Somebody removes, changes or adds something of ours.
    Edit(Edit, u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit {
    Remove,
    Change,
    Add,
}

/// Who puts in order what a failed verb left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Gc,
    /// Any verb, one that is refused as well.
    Anybody,
    /// The verb once more.
    Again,
    /// The machine starts anew.
    Reboot,
}

impl Random {
    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

fn verb(random: &mut Random) -> Verb {
    let mut byte = || random.byte();
    let (who, a, b, port) = (byte(), byte(), byte(), byte());
    match random.below(40) {
        0..5 => Verb::Create(who),
        5..7 => Verb::Remove(who),
        7..12 => Verb::Attach { who, on: [a, b], port },
        12 => Verb::Connect { who, to: a },
        13 => Verb::Disconnect { who, from: a },
        14 => Verb::Publish { who, port },
        15 => Verb::Unpublish { who, port },
        16..18 => Verb::Detach(who),
        18..22 => Verb::Join { who, on: [a, b], port },
        22..24 => Verb::Leave { who, from: a },
        24..26 => Verb::Hand { who, on: a },
        26 | 27 => Verb::RequestPool(who),
        28 => Verb::ReleasePool(who),
        29 => Verb::RequestAddress { pool: who, free: a.is_multiple_of(2) },
        30 => Verb::ReleaseAddress { pool: who, address: a },
        31 => Verb::CreateOn(who),
        32 => Verb::Lease { who, granted: !a.is_multiple_of(3) },
        33 => Verb::ForwardNames(who),
        34 => Verb::Prune,
        35 => Verb::Gc,
        36 => Verb::Reconcile,
        37 => Verb::RepairRules,
        38 => Verb::RepairPorts(who),
        _ => Verb::Follow,
    }
}

fn fault(random: &mut Random) -> Option<Fault> {
    let errno = ERRNOS[random.below(ERRNOS.len())];
    let how = match random.below(8) {
        0..3 => return None,
        3 | 4 => How::Death,
        5 | 6 => How::Errno(errno, Ack::Refused),
        _ => How::Errno(errno, Ack::Lost),
    };
    let site = [None, Some(Site::Kernel), Some(Site::Store)][random.below(3)];
    let at = 1 + random.below(if site == Some(Site::Kernel) { 40 } else { 120 });
    Some(Fault { at, site, how, lasting: random.below(3) == 0 })
}

fn schedule(seed: u64) -> Vec<Event> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let random = &mut random;
    let event = |_| match random.below(20) {
        0 => Event::Die(random.byte()),
        1 if random.below(2) == 0 => Event::Reboot,
        1 => Event::Clock([-10, 10][random.below(2)]),
        2 => Event::Edit([Edit::Remove, Edit::Change, Edit::Add][random.below(3)], random.byte()),
        _ => {
            let next = [Next::Gc, Next::Anybody, Next::Again, Next::Reboot][random.below(16).min(12) / 4];
            Event::Do(verb(random), fault(random), next)
        }
    };
    (0..EVENTS).map(event).collect()
}

/// One simulated host.
struct World {
    kernel: FakeKernel,
    engine: Engine<BrokenStore, FakeKernel>,
    /// Beside the store that fails.
    rows: SqliteStore,
    /// Somebody changed what is ours, and nobody has put it in order.
    edited: Cell<bool>,
    scratch: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

fn id(what: &str, number: u8) -> Id {
    let mut bytes = [number; 32];
    bytes.iter_mut().zip(what.bytes()).for_each(|(byte, letter)| *byte = letter);
    Id::from_bytes(bytes)
}

fn spec(port: u8) -> PublishSpec {
    let port = 8000 + u16::from(port % 6);
    let text = match port % 4 {
        0 => format!("{port}:80"),
        1 => format!("{port}:53/udp"),
        2 => format!("127.0.0.1:{port}:80"),
        _ => "7100-7102:7100-7102/tcp".to_owned(),
    };
    text.parse().unwrap()
}

fn network_request(name: &str) -> NetworkRequest {
    let mut request = NetworkRequest::new(name.parse().unwrap());
    match name {
        "ptp" => {
            request.ipv6 = false;
            request.driver = Driver::Ptp;
        }
        "small" => request.subnets.push("10.77.0.0/29".parse().unwrap()),
        "vault" => request.internal = true,
        "lan" => {
            request.driver = Driver::Macvlan;
            request.ipam = Ipam::Dhcp;
            request.ipv6 = false;
            request.options = BTreeMap::from([("parent".to_owned(), "eth0".to_owned())]);
        }
        _ => {}
    }
    request
}

/// A network that its keeper describes: of one subnet, or of sets of ranges.
fn transient(number: u8) -> EndpointRequest {
    let number = number % 3;
    let name = format!("podnet{number}");
    let mut request =
        NetworkRequest { id: Some(id("net", number)), exact: true, ..NetworkRequest::new(name.parse().unwrap()) };
    let net = format!("10.88.{number}.0/24").parse().unwrap();
    if number == 2 {
        let range = |net: &str| RangeRequest { net: net.parse().unwrap(), range: None, gateway: None };
        request.sets = vec![vec![range("10.88.2.0/29"), range("10.88.3.0/29")], vec![range("fd88::/64")]];
    } else {
        request.subnets = vec![net];
        request.gateways = vec![format!("10.88.{number}.1").parse().unwrap()];
    }
    EndpointRequest { transient: Some(request), ..EndpointRequest::new(name) }
}

fn known_network(number: u8) -> &'static str {
    let all = NETWORKS.len() + 1;
    NETWORKS.get(usize::from(number) % all).copied().unwrap_or("bridge")
}

fn container(number: u8) -> String {
    format!("box{}", number % 5)
}

fn namespace(number: u8) -> PathBuf {
    format!("/ns/{}", container(number)).into()
}

/// The same once, however often it is asked for.
fn distinct(numbers: [u8; 2], of: u8) -> Vec<u8> {
    let mut numbers: Vec<u8> = numbers.iter().map(|number| number % of).collect();
    numbers.dedup();
    numbers
}

impl World {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scratch = base.join(format!("portolan-faults-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&scratch);
        let kernel = FakeKernel::new(5);
        let open = || SqliteStore::open(&scratch).unwrap();
        let engine = Engine::new("/root".to_owned(), BrokenStore(open()), kernel.clone());
        Self { kernel, engine, rows: open(), edited: Cell::new(false), scratch }
    }

    fn pool(&self, number: u8) -> Option<Id> {
        let pools = self.rows.read().unwrap().pools().unwrap();
        (!pools.is_empty()).then(|| pools[usize::from(number) % pools.len()].id)
    }

    fn run(&self, verb: Verb) -> Result<(), Error> {
        let engine = &self.engine;
        let call = |method| Call { method, body: "any" };
        let answered = |number| engine.answered(number);
        match verb {
            Verb::Create(n) => engine.create_network(&network_request(NETWORKS[usize::from(n) % 5])).map(drop),
            Verb::Remove(n) => engine.remove_network(known_network(n)).map(drop),
            Verb::Attach { who, on, port } => {
                let on = distinct(on, 6).into_iter().map(|n| EndpointRequest::new(known_network(n))).collect();
                let request = AttachRequest {
                    name: Some(container(who).parse().unwrap()),
                    endpoints: on,
                    publish: (port > 100).then(|| spec(port)).into_iter().collect(),
                    ..AttachRequest::namespace(namespace(who))
                };
                engine.attach(&request).map(drop)
            }
            Verb::Connect { who, to } => {
                engine.connect(&container(who), &EndpointRequest::new(known_network(to))).map(drop)
            }
            Verb::Disconnect { who, from } => engine.disconnect(&container(who), known_network(from)).map(drop),
            Verb::Publish { who, port } => {
                engine.publish(&container(who), &[spec(port), spec(port.wrapping_add(1))]).map(drop)
            }
            Verb::Unpublish { who, port } => engine.unpublish(&container(who), &[spec(port)]).map(drop),
            Verb::Detach(who) => engine.detach(&container(who)).map(drop),
            Verb::Join { who, on, port } => {
                let request = AttachRequest {
                    id: Some(id("pod", who % 5)),
                    name: Some(container(who).parse().unwrap()),
                    endpoints: distinct(on, 3).into_iter().map(transient).collect(),
                    publish: (port > 100).then(|| spec(port)).into_iter().collect(),
                    ..AttachRequest::namespace(namespace(who))
                };
                engine.join(&request).map(drop)
            }
            Verb::Leave { who, from } => {
                engine.leave(&id("pod", who % 5).to_string(), &[id("net", from % 3).to_string()])
            }
            Verb::Hand { who, on } => {
                let request = AttachRequest {
                    id: Some(id("dock", who % 5)),
                    name: Some(format!("docker{}", who % 5).parse().unwrap()),
                    kind: ContainerKind::Handed,
                    netns: None,
                    endpoints: vec![EndpointRequest::new(["alpha", "small", "bridge"][usize::from(on) % 3])],
                    ..AttachRequest::namespace("")
                };
                engine.attach(&request).map(drop)
            }
            Verb::RequestPool(n) => {
                let net = match n % 2 {
                    0 => PoolNet::Free(Family::V4, None),
                    _ => PoolNet::Exactly(format!("10.99.{}.0/24", n % 4).parse().unwrap()),
                };
                let given = engine.request_pool(call("RequestPool"), &PoolRequest { net, range: None })?;
                answered(given.number)
            }
            Verb::ReleasePool(n) => self.pool(n).map_or(Ok(()), |id| {
                let on_it = self.rows.read().unwrap().pool(id).unwrap().unwrap().network;
                // Docker removes the network before its pool.
                if let Some(network) = on_it {
                    engine.remove_network(&network.to_string()).map(drop)?
                }
                engine.release_pool(id)
            }),
            Verb::RequestAddress { pool, free } => {
                let Some(id) = self.pool(pool) else { return Ok(()) };
                let request = AddressRequest { gateway: !free, ..AddressRequest::default() };
                let given = engine.request_address(call("RequestAddress"), id, &request)?;
                answered(given.number)
            }
            Verb::ReleaseAddress { pool, address } => {
                let Some(id) = self.pool(pool) else { return Ok(()) };
                let leases = self.rows.read().unwrap().leases(id).unwrap();
                match leases.get(usize::from(address) % leases.len().max(1)) {
                    Some((address, _)) => engine.release_address(id, *address),
                    None => Ok(()),
                }
            }
            Verb::CreateOn(n) => {
                let Some(id) = self.pool(n) else { return Ok(()) };
                let net = self.rows.read().unwrap().pool(id).unwrap().unwrap().subnet.net;
                let request = NetworkRequest {
                    subnets: vec![net],
                    exact: true,
                    pooled: true,
                    ipv6: false,
                    ..NetworkRequest::new(format!("onpool{}", n % 3).parse().unwrap())
                };
                engine.create_network(&request).map(drop)
            }
            Verb::Lease { who, granted } => {
                let rows = self.rows.read().unwrap();
                let lan = rows.network_named("lan").unwrap();
                let on_it = lan.map(|lan| rows.endpoints_on(lan.id).unwrap()).unwrap_or_default();
                drop(rows);
                let Some(endpoint) = on_it.get(usize::from(who) % on_it.len().max(1)) else { return Ok(()) };
                engine.set_lease(endpoint.id, Family::V4, granted.then(|| lease(who)))
            }
            Verb::ForwardNames(n) => engine.forward_names(known_network(n), &["10.0.0.53".parse().unwrap()]),
            Verb::Prune => engine.prune_networks().map(drop),
            Verb::Gc => engine.gc().and_then(whole),
            Verb::Reconcile => engine.reconcile().and_then(whole),
            Verb::RepairRules => engine.repair_rules().and_then(whole),
            Verb::RepairPorts(_) => {
                let ports = self.kernel.objects();
                let ports = ports.iter().filter_map(|(_, object)| match object {
                    Object::Port(port) => Some(port.host_end.to_string()),
                    _ => None,
                });
                let ports: Vec<String> = ports.collect();
                engine.repair_ports(&ports).and_then(whole)
            }
            Verb::Follow => engine.follow(None, |_| {}).map(drop),
        }
    }

    /// Everything that somebody asked for and that lives, in words. Whoever died may be found at any time.
    fn asked_for(&self) -> BTreeSet<String> {
        let mut said = BTreeSet::new();
        // Those that come with an endpoint go with it; labels and name servers may change with any.
        for network in self.engine.networks().unwrap().into_iter().filter(|network| !network.transient) {
            said.insert(format!("network {} {:?}", network.name, network.subnets));
        }
        for info in self.engine.containers().unwrap().into_iter().filter(|info| info.alive) {
            let name = &info.container.name;
            said.insert(format!("container {name}"));
            for (endpoint, network) in &info.endpoints {
                said.insert(format!("{name} on {} {:?}", network.name, endpoint.addresses));
            }
            said.extend(info.publications.iter().map(|publication| format!("{name} publishes {publication}")));
        }
        for (pool, taken) in self.engine.pools().unwrap() {
            said.insert(format!("pool {} {taken}", pool.subnet.net));
        }
        said
    }

    /// The dead, and so what of the kernel is gone with them.
    fn is_of_the_dead(&self, step: &Step) -> bool {
        let dead: BTreeSet<u64> = self
            .engine
            .containers()
            .unwrap()
            .iter()
            .filter(|info| !info.alive)
            .filter_map(|info| info.container.sandbox.as_ref().map(|sandbox| sandbox.inode))
            .collect();
        match step {
            Step::Create(Object::Port(port)) => dead.contains(&port.sandbox.inode),
            Step::Create(Object::Child(child)) => dead.contains(&child.sandbox.inode),
            Step::Create(Object::Interface(interface)) => dead.contains(&interface.sandbox.inode),
            Step::Create(Object::DefaultRoute(route)) => dead.contains(&route.sandbox.inode),
            _ => false,
        }
    }

    fn differences(&self) -> Vec<String> {
        let steps = self.engine.verify().unwrap();
        steps.iter().filter(|step| !self.is_of_the_dead(step)).map(ToString::to_string).collect()
    }

    /// What the kernel has and no row knows of, half-made ones included.
    fn strays(&self) -> Vec<String> {
        let known: BTreeSet<String> =
            self.engine.containers().unwrap().iter().map(|info| info.container.name.to_string()).collect();
        // Whose endpoint is half-made may still have what it had before.
        let is_of_somebody = |object: &Object| match object {
            Object::Element(element) => element.owner.split(' ').nth(1).is_some_and(|name| known.contains(name)),
            _ => false,
        };
        let steps = self.engine.verify().unwrap();
        let strays = steps.iter().filter(|step| matches!(step, Step::Delete(object) if !is_of_somebody(object)));
        strays.map(ToString::to_string).collect()
    }

    /// Nothing twice, and nothing without an owner.
    fn check_rows(&self) {
        let tx = self.rows.read().unwrap();
        let (networks, containers) = (tx.networks().unwrap(), tx.containers().unwrap());
        let mut held: BTreeSet<(Id, IpAddr)> = BTreeSet::new();
        let mut endpoints = 0;
        let mut ports = BTreeSet::new();
        for container in &containers {
            for endpoint in tx.endpoints_of(container.id).unwrap() {
                endpoints += 1;
                let network = networks.iter().find(|network| network.id == endpoint.network).expect("its network");
                for address in endpoint.addresses.iter().filter(|_| network.ipam.is_local()) {
                    let ip = address.address.addr();
                    assert!(held.insert((endpoint.network, ip)), "{ip} is had twice");
                    let lease = tx.lease(endpoint.network, ip).unwrap().and_then(|lease| lease.endpoint);
                    assert_eq!(lease, Some(endpoint.id), "the lease of {ip}");
                }
            }
            for row in tx.publications_of(container.id).unwrap() {
                for port in row.publication.host.ports() {
                    assert!(ports.insert((row.publication.protocol, row.publication.host_ip, port)), "{port} twice");
                }
            }
        }
        let on_networks: usize = networks.iter().map(|n| tx.endpoint_count(n.id, 1000).unwrap()).sum();
        assert_eq!(on_networks, endpoints, "an endpoint is nobody's");
        let leased: usize = networks
            .iter()
            .flat_map(|network| Family::ALL.map(|family| tx.lease_count(network.id, family).unwrap()))
            .sum();
        assert_eq!(leased, held.len(), "a lease is nobody's");
        for network in networks.iter().filter(|network| network.transient) {
            assert!(tx.endpoint_count(network.id, 1).unwrap() > 0, "nobody is on `{}`", network.name);
        }
    }

    /// Kernel and rows agree, and nothing is half-way.
    fn check(&self, what: &str) {
        self.check_rows();
        let tx = self.rows.read().unwrap();
        assert_eq!(tx.transitions(10).unwrap(), [], "{what}: half-way");
        drop(tx);
        if !self.edited.get() {
            let differences = self.differences();
            assert!(differences.is_empty(), "{what}: {differences:#?}");
        }
    }

    /// Runs `verb` with `fault`; none if its process died. Says also how often the fault came to pass.
    fn attempt(&self, verb: Verb, fault: Option<Fault>) -> (Option<Result<(), Error>>, usize) {
        broken::arm(fault);
        let result = catch_unwind(AssertUnwindSafe(|| self.run(verb)));
        let hits = broken::disarm();
        match result {
            Ok(result) => (Some(result), hits),
            Err(payload) if payload.is::<broken::Death>() => (None, hits),
            Err(payload) => resume_unwind(payload),
        }
    }

    fn put_in_order(&self, verb: Verb, next: Next) {
        match next {
            Next::Gc => whole(self.engine.gc().unwrap()).unwrap(),
            Next::Anybody => drop(self.engine.detach("nobody").unwrap_err()),
            Next::Again => drop(self.run(verb)),
            Next::Reboot => {
                self.kernel.reboot();
                drop(self.engine.detach("nobody").unwrap_err());
            }
        }
        if next == Next::Gc || next == Next::Reboot {
            self.edited.set(false);
        }
    }

    fn step(&self, event: Event, seen: &mut Seen) {
        match event {
            Event::Do(verb, fault, next) => self.verb(verb, fault, next, seen),
            Event::Die(who) => {
                self.kernel.remove_namespace(&namespace(who));
                self.check_rows();
            }
            Event::Reboot => {
                self.kernel.reboot();
                self.edited.set(false);
                drop(self.engine.detach("nobody").unwrap_err());
                self.check("after a reboot");
                seen.count("reboot", 1);
            }
            Event::Clock(years) => {
                let now = 1_800_000_000_i64 + i64::from(years) * 365 * 86_400;
                self.kernel.set_clock(now.unsigned_abs());
                seen.count("clock", 1);
            }
            Event::Edit(edit, which) => self.edit(edit, which, seen),
        }
    }

    fn verb(&self, verb: Verb, fault: Option<Fault>, next: Next, seen: &mut Seen) {
        // Whoever attaches has a namespace.
        if let Verb::Attach { who, .. } | Verb::Join { who, .. } = verb {
            self.kernel.make_namespace(&namespace(who));
        }
        let before = self.asked_for();
        let (result, hits) = self.attempt(verb, fault);
        let what = format!("{verb:?} with {fault:?}: {result:?}");
        if let (Some(fault), true) = (fault, hits > 0) {
            seen.fault(verb, fault);
        }
        self.check_rows();
        if !self.edited.get() && hits > 0 {
            // Who died may have left anything that a row knows of; nobody anything else.
            let strays = self.strays();
            assert!(strays.is_empty(), "{what}: no row knows of {strays:#?}");
        }
        match result {
            Some(Ok(())) => {
                if matches!(verb, Verb::Gc | Verb::Reconcile) {
                    self.edited.set(false);
                }
                self.check(&what);
            }
            Some(Err(error)) if hits == 0 => {
                // A refusal: nothing has changed.
                let is_quiet = matches!(error.kind(), portolan_engine::Kind::Bug | portolan_engine::Kind::Transient);
                assert!(self.edited.get() || !is_quiet, "{what}");
                assert_eq!(self.asked_for(), before, "{what}");
                if !self.edited.get() {
                    self.check(&what);
                }
                self.finish_edits();
            }
            _ => {
                let error = result.and_then(Result::err).map(|error| error.to_string());
                assert!(error.is_none_or(|text| !text.is_empty()));
                self.finish_edits();
                let next = if fault.is_some_and(is_untold) && next != Next::Reboot { Next::Gc } else { next };
                let reboots = next == Next::Reboot;
                self.put_in_order(verb, next);
                self.check(&format!("{what}, then {next:?}"));
                let after = self.asked_for();
                if after == before || reboots || next == Next::Again {
                    return;
                }
                // Done, then: as who asks again finds out. What asks for any is given another one.
                let asks_for_any = matches!(verb, Verb::RequestPool(_) | Verb::RequestAddress { .. });
                let takes_any = matches!(verb, Verb::ReleasePool(_) | Verb::ReleaseAddress { .. });
                // All or nothing is what one verb is; these are several.
                if !asks_for_any && !takes_any && !matches!(verb, Verb::Prune | Verb::Lease { .. } | Verb::CreateOn(_))
                {
                    drop(self.run(verb));
                    assert_eq!(
                        self.asked_for(),
                        after,
                        "{what}, then {next:?}: neither done nor undone, was {before:#?}"
                    );
                }
            }
        }
    }

    /// Puts in order what somebody else changed.
    fn finish_edits(&self) {
        if self.edited.get() {
            whole(self.engine.reconcile().unwrap()).unwrap();
            self.edited.set(false);
        }
    }

    fn edit(&self, edit: Edit, which: u8, seen: &mut Seen) {
        let objects: Vec<Object> = self.kernel.objects().into_iter().collect();
        if objects.is_empty() {
            return;
        }
        let object = &objects[usize::from(which) % objects.len()];
        let mut elements = objects.iter().filter_map(|object| match object {
            Object::Element(element) => Some(element.clone()),
            _ => None,
        });
        match edit {
            Edit::Remove => self.kernel.remove(object),
            Edit::Change | Edit::Add => {
                let mut all: Vec<_> = elements.by_ref().collect();
                if all.is_empty() {
                    return;
                }
                let mut element = all.swap_remove(usize::from(which) % all.len());
                if edit == Edit::Change {
                    "somebody else's".clone_into(&mut element.owner);
                } else {
                    // The same in another set of the same kind, or with nothing behind it.
                    element.key.reverse();
                    element.data = Data::Accept;
                }
                self.kernel.put(Object::Element(element));
            }
        }
        seen.count(
            match edit {
                Edit::Remove => "removed",
                Edit::Change => "changed",
                Edit::Add => "added",
            },
            1,
        );
        self.edited.set(true);
        if which.is_multiple_of(2) {
            self.finish_edits();
            self.check("after an edit");
        }
    }

    /// Everything is taken back by plain verbs; then nothing is left and all can be had.
    fn finish(&self) {
        self.finish_edits();
        for info in self.engine.containers().unwrap() {
            // Of the dead some may be found meanwhile.
            match self.engine.detach(&info.container.id.to_string()) {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        for network in self.engine.networks().unwrap().into_iter().filter(|network| !network.is_predefined()) {
            self.engine.remove_network(&network.id.to_string()).unwrap();
        }
        for (pool, _) in self.engine.pools().unwrap() {
            self.engine.release_pool(pool.id).unwrap();
        }
        self.check("in the end");
        let left: Vec<String> = self.kernel.objects().iter().map(|(_, object)| object.to_string()).collect();
        assert!(left.is_empty(), "left in the kernel: {left:#?}");
        assert_eq!(self.kernel.sysctls(), FakeKernel::new(1).sysctls(), "sysctls are as they were");
        let asked = self.asked_for();
        assert!(asked.iter().all(|line| line.starts_with("network ")) && asked.len() == 3, "{asked:#?}");
        for name in ["alpha", "small"] {
            self.engine.create_network(&network_request(name)).unwrap();
        }
        let path = PathBuf::from("/ns/last");
        self.kernel.make_namespace(&path);
        let ip = Some("10.77.0.2".parse().unwrap());
        self.engine
            .attach(&AttachRequest {
                endpoints: vec![EndpointRequest { ip, ..EndpointRequest::new("small") }, EndpointRequest::new("alpha")],
                publish: (0..6).map(spec).collect::<Vec<_>>().into_iter().fold(Vec::new(), |mut all, spec| {
                    if !all.contains(&spec) {
                        all.push(spec)
                    }
                    all
                }),
                ..AttachRequest::namespace(path)
            })
            .unwrap();
        self.check("once more");
    }
}

fn lease(who: u8) -> DhcpLease {
    DhcpLease {
        address: format!("10.0.1.{}/24", 10 + who % 50).parse().unwrap(),
        gateway: Some([10, 0, 1, 2].into()),
        routes: Vec::new(),
        dns: Vec::new(),
        domains: Vec::new(),
        server: DhcpServer::V4([10, 0, 1, 2].into()),
        obtained: 0,
        renew_after: 60,
        rebind_after: 105,
        valid_for: 120,
    }
}

fn whole(repaired: Repaired) -> Result<(), Error> {
    match repaired.failures.first() {
        None => Ok(()),
        Some(failure) => Err(Error::Unsupported { what: failure.clone(), why: String::new(), hint: "" }),
    }
}

/// What came to pass, and how often.
#[derive(Default)]
struct Seen(BTreeMap<String, u64>);

impl Seen {
    fn count(&mut self, what: impl Into<String>, times: u64) {
        *self.0.entry(what.into()).or_default() += times;
    }

    fn fault(&mut self, verb: Verb, fault: Fault) {
        let name = format!("{verb:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default().to_owned();
        let how = match fault.how {
            How::Death => "death".to_owned(),
            How::Errno(errno, ack) => {
                let errno = broken::name(errno).rsplit('(').next().unwrap_or_default().trim_end_matches(')').to_owned();
                format!("{errno}{}", if ack == Ack::Lost { ", answer lost" } else { "" })
            }
        };
        self.count(format!("{name}: {how}"), 1);
    }
}

fn run(schedule: &[Event], seen: &mut Seen) -> Result<(), String> {
    let world = World::new();
    let done = catch_unwind(AssertUnwindSafe(|| {
        schedule.iter().for_each(|event| world.step(*event, seen));
        world.finish();
    }));
    done.map_err(|panic| {
        broken::disarm();
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// The shortest schedule that still fails, found by leaving out events one by one and faults where they do not matter.
/// Whether the store may have taken what it said that it had not, and then said nothing more: what was made is taken back, so
/// nothing is open, and a row may tell of it all the same, which only who compares finds.
fn is_untold(fault: Fault) -> bool {
    fault.lasting && fault.site != Some(Site::Kernel) && matches!(fault.how, How::Errno(_, Ack::Lost))
}

fn shorten(mut schedule: Vec<Event>) -> Vec<Event> {
    let fails = |schedule: &[Event]| run(schedule, &mut Seen::default()).is_err();
    loop {
        let length = schedule.len();
        for at in (0..schedule.len()).rev() {
            let mut less = schedule.clone();
            less.remove(at);
            if fails(&less) {
                schedule = less;
            }
        }
        for at in 0..schedule.len() {
            if let Event::Do(verb, Some(_), next) = schedule[at] {
                let mut less = schedule.clone();
                less[at] = Event::Do(verb, None, next);
                if fails(&less) {
                    schedule = less;
                }
            }
        }
        if schedule.len() == length {
            return schedule;
        }
    }
}

#[test]
fn nothing_is_left_whatever_fails() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (first, last) = match number("PORTOLAN_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, number("PORTOLAN_SEEDS").unwrap_or(SEEDS)),
    };
    let next = AtomicU64::new(first);
    let all = Mutex::new(Seen::default());
    let failed: Mutex<Vec<u64>> = Mutex::default();
    // What a schedule says when it fails is said once, when it is as short as can be.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut seen = Seen::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last || failed.lock().unwrap().len() >= 5 {
                        break;
                    }
                    if run(&schedule(seed), &mut seen).is_err() {
                        eprintln!("seed {seed} fails");
                        failed.lock().unwrap().push(seed);
                    }
                }
                let mut all = all.lock().unwrap();
                seen.0.into_iter().for_each(|(what, times)| all.count(what, times));
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let said: Vec<String> = failed
        .iter()
        .map(|seed| {
            let short = shorten(schedule(*seed));
            let why = run(&short, &mut Seen::default()).err().unwrap_or_default();
            format!(
                "seed {seed}: {why}\n  {}",
                short.iter().map(|event| format!("{event:?}")).collect::<Vec<_>>().join("\n  ")
            )
        })
        .collect();
    std::panic::set_hook(hook);
    assert!(said.is_empty(), "{}", said.join("\n\n"));
    let all = all.into_inner().unwrap();
    eprintln!("{} seeds", last - first);
    for (what, times) in &all.0 {
        eprintln!("{what}: in {times} verbs");
    }
    if (first, last) == (0, SEEDS) {
        keep_page(&page(&all));
    }
}

/// What `docs/faults.md` says: which faults came to pass in which verbs.
fn page(seen: &Seen) -> String {
    const HEAD: &str = include_str!("faults.head.md");
    const FOOT: &str = include_str!("faults.foot.md");
    let verbs: BTreeSet<&str> = seen.0.keys().filter_map(|what| Some(what.split_once(": ")?.0)).collect();
    let mut hows = vec!["death".to_owned()];
    for errno in ERRNOS {
        let name = broken::name(errno).rsplit('(').next().unwrap_or_default().trim_end_matches(')').to_owned();
        hows.extend([name.clone(), format!("{name}, answer lost")]);
    }
    let mut text = format!("{HEAD}\n| verb | {} |\n|---|{}\n", hows.join(" | "), "---|".repeat(hows.len()));
    for verb in verbs {
        let cell = |how: &String| if seen.0.contains_key(&format!("{verb}: {how}")) { "nothing left" } else { "–" };
        let cells: Vec<&str> = hows.iter().map(cell).collect();
        text.push_str(&format!("| {verb} | {} |\n", cells.join(" | ")));
    }
    format!("{text}\n{FOOT}")
}

/// Compares the page with the one in the repository, or writes it.
fn keep_page(text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/faults.md");
    if std::env::var_os("PORTOLAN_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "`docs/faults.md` is not what came of it: write it with PORTOLAN_BLESS=1\n{text}");
}

/// What schedules found, at each call in turn.
#[test]
fn an_undo_that_fails_leaves_the_rows_for_the_next_verb() {
    let attach = Verb::Attach { who: 1, on: [2, 5], port: 200 };
    let join = Verb::Join { who: 2, on: [0, 2], port: 201 };
    for verb in [Verb::Create(0), attach, join, Verb::Hand { who: 3, on: 2 }] {
        let mut hits = 0;
        for at in (1..60).step_by(4) {
            let fault = Fault { at, site: Some(Site::Kernel), how: How::Errno(16, Ack::Refused), lasting: true };
            let given = Event::Do(Verb::Create(2), None, Next::Gc);
            let mut seen = Seen::default();
            let events = [given, Event::Do(verb, Some(fault), Next::Anybody)];
            run(&events, &mut seen).unwrap_or_else(|why| panic!("{events:?}: {why}"));
            hits += seen.0.values().sum::<u64>();
        }
        assert!(hits > 4, "{verb:?}: {hits}");
    }
}

#[test]
fn what_cannot_be_written_down_is_not_left_open() {
    let mut failures = 0;
    for at in 1..200 {
        let world = World::new();
        world.kernel.make_namespace(&namespace(1));
        let fault = Fault { at, site: Some(Site::Store), how: How::Errno(28, Ack::Refused), lasting: true };
        let (result, hits) = world.attempt(Verb::Attach { who: 1, on: [5, 5], port: 200 }, Some(fault));
        if hits == 0 {
            break;
        }
        let error = result.unwrap().unwrap_err();
        failures += 1;
        let open: Vec<String> = world.kernel.objects().iter().map(|(_, object)| object.to_string()).collect();
        assert!(open.is_empty(), "call {at}, {error}: {open:#?}");
    }
    assert!(failures > 20, "{failures}");
}

#[test]
fn whoever_dies_after_a_reboot_leaves_the_rest_to_the_next_verb() {
    let world = World::new();
    world.engine.create_network(&network_request("alpha")).unwrap();
    world.engine.create_network(&network_request("vault")).unwrap();
    for how in [How::Death, How::Errno(105, Ack::Refused)] {
        for at in 1.. {
            world.kernel.reboot();
            let fault = Fault { at, site: None, how, lasting: false };
            let (_, hits) = world.attempt(Verb::ForwardNames(0), Some(fault));
            drop(world.engine.detach("nobody").unwrap_err());
            world.check(&format!("{how:?} at {at}"));
            if hits == 0 {
                assert!(at > 20, "{at}");
                break;
            }
        }
    }
}

#[test]
fn what_docker_is_given_after_a_flush_is_there() {
    let world = World::new();
    world.engine.create_network(&network_request("alpha")).unwrap();
    let ruleset = world.kernel.objects().into_iter().find(|object| matches!(object, Object::Ruleset(_))).unwrap();
    world.kernel.remove(&ruleset);
    world.run(Verb::Hand { who: 1, on: 0 }).unwrap();
    world.check("after a flush");
    assert_eq!(world.engine.containers().unwrap().len(), 1);
}

#[test]
fn what_was_written_down_although_it_was_not_said_is_there() {
    let attach = Verb::Attach { who: 1, on: [0, 0], port: 200 };
    let verbs = [
        (Verb::Create(1), Next::Anybody),
        (Verb::Attach { who: 2, on: [0, 1], port: 201 }, Next::Gc),
        (Verb::Connect { who: 1, to: 1 }, Next::Gc),
        (Verb::Publish { who: 1, port: 210 }, Next::Gc),
    ];
    for (verb, next) in verbs {
        let mut failures = 0;
        for at in 1..200 {
            let world = World::new();
            (1..=2).for_each(|who| world.kernel.make_namespace(&namespace(who)));
            world.run(Verb::Create(0)).unwrap();
            if verb != Verb::Create(1) {
                world.run(Verb::Create(1)).unwrap();
            }
            world.run(attach).unwrap();
            let fault = Fault { at, site: Some(Site::Store), how: How::Errno(5, Ack::Lost), lasting: true };
            let (result, hits) = world.attempt(verb, Some(fault));
            if hits == 0 {
                break;
            }
            failures += 1;
            world.put_in_order(verb, next);
            world.check(&format!("{verb:?}, call {at}: {result:?}"));
        }
        assert!(failures > 10, "{verb:?}: {failures}");
    }
}

#[test]
fn a_network_that_went_with_its_last_container_is_not_removed_once_more() {
    let mut failures = 0;
    for at in 1..200 {
        let world = World::new();
        world.kernel.make_namespace(&namespace(1));
        world.run(Verb::Join { who: 1, on: [0, 0], port: 200 }).unwrap();
        world.kernel.remove_namespace(&namespace(1));
        let fault = Fault { at, site: None, how: How::Errno(16, Ack::Refused), lasting: false };
        let (_, hits) = world.attempt(Verb::Prune, Some(fault));
        if hits == 0 {
            break;
        }
        failures += 1;
        world.check_rows();
    }
    assert!(failures > 10, "{failures}");
}
