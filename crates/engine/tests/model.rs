//! Random verbs, refusals and deaths against a simple model: nothing is had twice, nothing is left, and the kernel is
//! what the rows say after every step.
//!
//! `PORTOLAN_SEEDS` sets how many sequences are run.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fake::{FOREIGN_PORT, FakeKernel, Random, network_request};
use portolan_engine::{AttachRequest, ContainerInfo, EndpointRequest, Engine, Error, Kernel as _, Kind};
use portolan_model::{ContainerKind, ContainerState, Family, Id, PublishSpec, Sandbox};
use portolan_plan::{Object, Set, possible};
use portolan_store::SqliteStore;

const SEEDS: u64 = 1000;
const STEPS: usize = 50;
/// Addresses of the small network that containers can have: a /29 but for network, broadcast and gateway.
const SMALL: usize = 5;

type Verbs = Engine<SqliteStore, FakeKernel>;

/// A directory of one test, gone when it ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("portolan-engine-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Random {
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, from: impl IntoIterator<Item = T>) -> Option<T> {
        let all: Vec<T> = from.into_iter().collect();
        if all.is_empty() { None } else { Some(all[self.below(all.len())].clone()) }
    }
}

/// What there should be. Names stand for everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    networks: BTreeSet<String>,
    containers: BTreeMap<String, Place>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    /// Networks with their gateway priority.
    on: BTreeMap<String, i32>,
    ports: BTreeSet<u16>,
    dead: bool,
}

impl Model {
    fn on(&self, network: &str) -> usize {
        self.containers.values().filter(|place| place.on.contains_key(network)).count()
    }

    fn has_room(&self, network: &str) -> bool {
        network != "small" || self.on(network) < SMALL
    }

    fn is_published(&self, port: u16) -> bool {
        self.containers.values().any(|place| place.ports.contains(&port))
    }

    fn without_the_dead(&self) -> Self {
        let mut rest = self.clone();
        rest.containers.retain(|_, place| !place.dead);
        rest
    }
}

/// One random step.
#[derive(Debug, Clone)]
enum Verb {
    Create(String),
    Remove(String),
    Attach {
        name: String,
        path: PathBuf,
        on: Vec<(String, i32)>,
        ports: Vec<u16>,
    },
    Connect {
        name: String,
        network: String,
        priority: i32,
    },
    Disconnect {
        name: String,
        network: String,
    },
    Publish {
        name: String,
        ports: Vec<u16>,
    },
    Unpublish {
        name: String,
        port: u16,
    },
    Detach(String),
    /// The container's namespace goes.
    Kill(String),
    Gc,
}

impl Verb {
    fn random(random: &mut Random, model: &Model) -> Self {
        const NETWORKS: [&str; 5] = ["alpha", "beta", "ptp", "small", "vault"];
        let network = |random: &mut Random| (*random.pick(NETWORKS.iter().chain(&["bridge"])).unwrap()).to_owned();
        // No hexadecimal digits, which could be the start of an id.
        let name = |random: &mut Random| format!("box{}", random.below(8));
        let ports = |random: &mut Random| -> Vec<u16> {
            (0..random.below(3)).map(|_| 8000 + random.below(10) as u16).collect()
        };
        match random.below(20) {
            0..3 => Self::Create((*random.pick(NETWORKS).unwrap()).to_owned()),
            3..5 => Self::Remove(network(random)),
            5..10 => {
                let name = name(random);
                // Now and then somebody else's namespace.
                let path =
                    if random.one_in(10) { format!("/ns/box{}", random.below(8)) } else { format!("/ns/{name}") };
                let on = (0..random.below(4)).map(|_| (network(random), random.below(3) as i32)).collect();
                Self::Attach { name, path: path.into(), on, ports: ports(random) }
            }
            10..12 => Self::Connect { name: name(random), network: network(random), priority: random.below(3) as i32 },
            12 => Self::Disconnect { name: name(random), network: network(random) },
            13..15 => Self::Publish { name: name(random), ports: ports(random) },
            15 => {
                let name = name(random);
                let mine = model.containers.get(&name).map(|place| place.ports.clone()).unwrap_or_default();
                let port = random.pick(mine).unwrap_or(8000);
                Self::Unpublish { name, port }
            }
            16..18 => Self::Detach(name(random)),
            18 => Self::Kill(name(random)),
            _ => Self::Gc,
        }
    }

    /// What the model becomes, or none where the verb is to be refused. Some refusals find out about the dead.
    fn predict(&self, model: &Model, namespaces: &BTreeSet<PathBuf>) -> (Model, bool) {
        let mut next = model.clone();
        let done = self.predict_on(&mut next, namespaces);
        (next, done)
    }

    fn predict_on(&self, model: &mut Model, namespaces: &BTreeSet<PathBuf>) -> bool {
        let exists = |model: &Model, network: &str| network == "bridge" || model.networks.contains(network);
        match self {
            Self::Create(name) => model.networks.insert(name.clone()),
            Self::Remove(name) => {
                if name == "bridge" || !model.networks.contains(name) {
                    return false;
                }
                model.containers.retain(|_, place| !place.dead || !place.on.contains_key(name));
                model.on(name) == 0 && model.networks.remove(name)
            }
            Self::Attach { name, path, on, ports } => {
                if !namespaces.contains(path) {
                    return false;
                }
                make_way(model, ports);
                match model.containers.get(name) {
                    Some(holder) if !holder.dead => return false,
                    _ => model.containers.remove(name),
                };
                // Whoever was in a namespace that is gone was in another one.
                if model.containers.values().any(|place| place.path == *path && !place.dead) {
                    return false;
                }
                let saved = model.clone();
                let place = Place { path: path.clone(), ..Place::default() };
                model.containers.insert(name.clone(), place);
                for (network, priority) in on {
                    if !exists(model, network)
                        || !model.has_room(network)
                        || model.containers[name].on.contains_key(network)
                    {
                        *model = saved;
                        return false;
                    }
                    model.containers.get_mut(name).unwrap().on.insert(network.clone(), *priority);
                }
                if !publish(model, name, ports) {
                    *model = saved;
                    return false;
                }
                true
            }
            Self::Connect { name, network, priority } => {
                let on_it = |place: &Place| place.dead || place.on.contains_key(network);
                if model.containers.get(name).is_none_or(on_it) || !exists(model, network) || !model.has_room(network) {
                    return false;
                }
                model.containers.get_mut(name).unwrap().on.insert(network.clone(), *priority);
                true
            }
            Self::Disconnect { name, network } => {
                model.containers.get_mut(name).is_some_and(|place| place.on.remove(network).is_some())
            }
            Self::Publish { name, ports } => {
                if model.containers.get(name).is_none_or(|place| place.dead) {
                    return false;
                }
                make_way(model, ports);
                let saved = model.clone();
                let done = publish(model, name, ports);
                if !done {
                    *model = saved;
                }
                done
            }
            Self::Unpublish { name, port } => {
                model.containers.get_mut(name).is_some_and(|place| place.ports.remove(port))
            }
            Self::Detach(name) => model.containers.remove(name).is_some(),
            Self::Kill(name) => {
                if let Some(place) = model.containers.get_mut(name) {
                    place.dead = true;
                }
                true
            }
            Self::Gc => {
                *model = model.without_the_dead();
                true
            }
        }
    }
}

/// The dead do not keep the ports that somebody wants.
fn make_way(model: &mut Model, ports: &[u16]) {
    model.containers.retain(|_, place| !place.dead || ports.iter().all(|port| !place.ports.contains(port)));
}

fn publish(model: &mut Model, name: &str, ports: &[u16]) -> bool {
    for port in ports {
        if *port == FOREIGN_PORT || model.is_published(*port) {
            return false;
        }
        model.containers.get_mut(name).unwrap().ports.insert(*port);
    }
    true
}

fn spec(port: u16) -> PublishSpec {
    // All protocols and shapes, the same for the same port.
    let text = match port % 4 {
        0 => format!("{port}:80"),
        1 => format!("{port}:53/udp"),
        2 => format!("127.0.0.1:{port}:80"),
        _ => format!("{port}:{port}/sctp"),
    };
    text.parse().unwrap()
}

/// One host, its state, and what both should be.
struct World {
    kernel: FakeKernel,
    engine: Verbs,
    model: Model,
    namespaces: BTreeSet<PathBuf>,
    _scratch: Scratch,
}

impl World {
    fn new(seed: u64) -> Self {
        let scratch = Scratch::new();
        let kernel = FakeKernel::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let engine = Engine::new("/root".to_owned(), SqliteStore::open(&scratch.0).unwrap(), kernel.clone());
        Self { kernel, engine, model: Model::default(), namespaces: BTreeSet::new(), _scratch: scratch }
    }

    fn run(&self, verb: &Verb) -> Result<(), Error> {
        let engine = &self.engine;
        match verb {
            Verb::Create(name) => engine.create_network(&network_request(name)).map(drop),
            Verb::Remove(name) => engine.remove_network(name).map(drop),
            Verb::Attach { name, path, on, ports } => engine
                .attach(&AttachRequest {
                    name: Some(name.parse().unwrap()),
                    endpoints: on
                        .iter()
                        .map(|(network, priority)| EndpointRequest {
                            gateway_priority: *priority,
                            ..EndpointRequest::new(network)
                        })
                        .collect(),
                    publish: ports.iter().map(|port| spec(*port)).collect(),
                    ..AttachRequest::namespace(path)
                })
                .map(drop),
            Verb::Connect { name, network, priority } => engine
                .connect(name, &EndpointRequest { gateway_priority: *priority, ..EndpointRequest::new(network) })
                .map(drop),
            Verb::Disconnect { name, network } => engine.disconnect(name, network).map(drop),
            Verb::Publish { name, ports } => {
                engine.publish(name, &ports.iter().map(|port| spec(*port)).collect::<Vec<_>>()).map(drop)
            }
            Verb::Unpublish { name, port } => engine.unpublish(name, &[spec(*port)]).map(drop),
            Verb::Detach(name) => engine.detach(name).map(drop),
            Verb::Kill(_) => Ok(()),
            Verb::Gc => engine.gc().map(|repaired| assert!(repaired.failures.is_empty(), "{repaired:?}")),
        }
    }

    fn step(&mut self, random: &mut Random, log: &mut Vec<String>) {
        let verb = Verb::random(random, &self.model);
        // Whoever brings a namespace has one.
        if let Verb::Attach { path, .. } = &verb
            && !random.one_in(20)
        {
            self.kernel.make_namespace(path);
            self.namespaces.insert(path.clone());
        }
        if let Verb::Kill(name) = &verb
            && let Some(place) = self.model.containers.get(name)
        {
            self.kernel.remove_namespace(&place.path);
            self.namespaces.remove(&place.path);
        }
        let (next, done) = verb.predict(&self.model, &self.namespaces);
        match random.below(10) {
            // It dies somewhere.
            0..3 => {
                let n = 1 + random.below(40);
                let result = self.kernel.dying_at(n, || self.run(&verb));
                log.push(format!("{verb:?}, dying at {n}: {result:?}"));
                match result {
                    Some(result) => self.finished(&verb, result, next, done),
                    None => self.bury(&next, random.one_in(2), log),
                }
            }
            // The kernel refuses a step.
            3 => {
                let n = 1 + random.below(12);
                let (result, refused) = self.kernel.failing_at(n, || self.run(&verb));
                log.push(format!("{verb:?}, step {n} refused: {result:?}"));
                if refused {
                    let error = result.expect_err("a refused step is a refused verb");
                    assert_eq!(error.kind(), Kind::Transient, "{error}");
                    // Nothing has changed, but for the dead that it found.
                    let found = self.observe();
                    let mut before = self.model.clone();
                    before.containers.retain(|name, place| !place.dead || found.containers.contains_key(name));
                    self.model = before;
                } else {
                    self.finished(&verb, result, next, done);
                }
            }
            _ => {
                let result = self.run(&verb);
                log.push(format!("{verb:?}: {result:?}"));
                self.finished(&verb, result, next, done);
            }
        }
        self.check();
    }

    fn finished(&mut self, verb: &Verb, result: Result<(), Error>, next: Model, done: bool) {
        match result {
            Ok(()) => assert!(done, "{verb:?} should be refused: {:#?}", self.model),
            Err(error) => {
                assert!(!done, "{verb:?}: {error}");
                assert!(!matches!(error.kind(), Kind::Bug | Kind::Transient), "{verb:?}: {error}");
            }
        }
        self.model = next;
    }

    /// A process died: whoever comes next completes or undoes what it was at.
    fn bury(&mut self, next: &Model, gc: bool, log: &mut Vec<String>) {
        let (before, after) = (self.model.clone(), next.clone());
        let options = if gc {
            let repaired = self.engine.gc().unwrap();
            assert!(repaired.failures.is_empty(), "{repaired:?}");
            log.push(format!("gc: {repaired:?}"));
            vec![before.without_the_dead(), after.without_the_dead()]
        } else {
            // Any verb will do, one that is refused as well.
            let refused = self.engine.detach("nobody").unwrap_err();
            assert_eq!(refused.kind(), Kind::NotFound, "{refused}");
            vec![before, after]
        };
        let found = self.observe();
        // Of the dead, some may have been found.
        let matching = options.into_iter().find(|option| {
            let mut option = option.clone();
            option.containers.retain(|name, place| !place.dead || found.containers.contains_key(name));
            option == found
        });
        assert!(matching.is_some(), "neither done nor undone: {found:#?}");
        self.model = found;
    }

    /// What the engine says there is.
    fn observe(&self) -> Model {
        self.observe_with(&self.engine.containers().unwrap())
    }

    fn observe_with(&self, containers: &[ContainerInfo]) -> Model {
        let networks = self.engine.networks().unwrap();
        Model {
            networks: networks
                .iter()
                .filter(|network| !network.is_predefined())
                .map(|network| network.name.to_string())
                .collect(),
            containers: containers
                .iter()
                .map(|info| {
                    let place = Place {
                        path: info.container.sandbox.as_ref().unwrap().path.clone(),
                        on: info
                            .endpoints
                            .iter()
                            .map(|(endpoint, network)| (network.name.to_string(), endpoint.gateway_priority))
                            .collect(),
                        ports: info.publications.iter().map(|publication| publication.host.first()).collect(),
                        dead: !info.alive,
                    };
                    (info.container.name.to_string(), place)
                })
                .collect(),
        }
    }

    fn check(&self) {
        let containers = self.engine.containers().unwrap();
        assert_eq!(self.observe_with(&containers), self.model);
        let objects = self.kernel.objects();
        let alive = |sandbox: &Sandbox| self.kernel.sandbox_alive(sandbox);
        // What the dead lack is no surprise.
        let differences = possible(self.engine.verify().unwrap(), alive);
        assert!(differences.is_empty(), "{:#?}", differences.iter().map(ToString::to_string).collect::<Vec<_>>());

        // Nothing twice.
        let mut leases: BTreeSet<(Id, IpAddr)> = BTreeSet::new();
        let mut macs = BTreeSet::new();
        let mut ports = BTreeSet::new();
        for info in &containers {
            for (endpoint, network) in &info.endpoints {
                for address in &endpoint.addresses {
                    let ip = address.address.addr();
                    assert!(leases.insert((network.id, ip)), "{ip} twice");
                    assert!(
                        network.subnets.iter().any(|subnet| subnet.net.contains(&ip) && subnet.gateway != Some(ip)),
                        "{ip}"
                    );
                }
                let families = Family::ALL.into_iter().filter(|family| network.has(*family)).count();
                assert_eq!(endpoint.addresses.len(), families);
                assert!(macs.insert((network.id, endpoint.mac)), "{} twice", endpoint.mac);
            }
            for publication in &info.publications {
                for port in publication.host.ports() {
                    assert!(ports.insert((publication.protocol, port)), "port {port} twice");
                }
            }
            self.check_default_route(info, &objects);
        }
        let alive: usize = containers.iter().filter(|info| info.alive).map(|info| info.endpoints.len()).sum();
        assert_eq!(objects.iter().filter(|(_, object)| matches!(object, Object::Port(_))).count(), alive);

        if self.model.networks.is_empty() && self.model.on("bridge") == 0 {
            assert!(
                objects.is_empty(),
                "{:?}",
                objects.iter().map(|(_, object)| object.to_string()).collect::<Vec<_>>()
            );
            assert_eq!(self.kernel.sysctls(), FakeKernel::new(1).sysctls());
        } else {
            assert_eq!(self.kernel.sysctls()["net/ipv4/ip_forward"], "1");
            assert_eq!(self.kernel.sysctls()["net/ipv6/conf/eth0/accept_ra"], "2");
            assert_eq!(fake::count_elements(&objects, Set::Closed), 2);
        }
    }

    /// The highest priority, then both families, then the name: of each family.
    fn check_default_route(&self, info: &ContainerInfo, objects: &portolan_plan::Objects) {
        if !info.alive {
            return;
        }
        let mut wanted = BTreeSet::new();
        for family in Family::ALL {
            let mut best: Option<(i32, bool, String, IpAddr)> = None;
            for (endpoint, network) in &info.endpoints {
                let name = network.name.to_string();
                if name == "vault" || (name == "ptp" && family == Family::V6) {
                    continue;
                }
                let gateway = network.subnets_of(family).next().unwrap().gateway.unwrap();
                let candidate = (endpoint.gateway_priority, name != "ptp", name, gateway);
                let is_better = best.as_ref().is_none_or(|best| {
                    (candidate.0, candidate.1) > (best.0, best.1)
                        || ((candidate.0, candidate.1) == (best.0, best.1) && candidate.2 < best.2)
                });
                if is_better {
                    best = Some(candidate);
                }
            }
            wanted.extend(best.map(|best| best.3));
        }
        let path = &info.container.sandbox.as_ref().unwrap().path;
        assert_eq!(fake::gateways(objects, path), wanted, "{}", info.container.name);
    }

    /// Everything goes, and everything can be had again at once.
    fn finish(&mut self) {
        self.engine.gc().unwrap();
        self.model = self.model.without_the_dead();
        self.check();
        for name in std::mem::take(&mut self.model.containers).into_keys() {
            self.engine.detach(&name).unwrap();
        }
        for name in std::mem::take(&mut self.model.networks) {
            self.engine.remove_network(&name).unwrap();
        }
        self.check();
        self.engine.create_network(&network_request("small")).unwrap();
        let path = PathBuf::from("/ns/last");
        self.kernel.make_namespace(&path);
        let request = AttachRequest {
            name: Some("c0".parse().unwrap()),
            endpoints: vec![EndpointRequest {
                ip: Some("10.77.0.2".parse().unwrap()),
                ..EndpointRequest::new("small")
            }],
            publish: (8000..FOREIGN_PORT).map(spec).collect(),
            ..AttachRequest::namespace(path)
        };
        self.engine.attach(&request).unwrap();
        assert!(self.engine.verify().unwrap().is_empty());
        self.engine.detach("c0").unwrap();
        self.engine.remove_network("small").unwrap();
        self.check();
    }
}

fn sequence(seed: u64) {
    let mut world = World::new(seed);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut log = Vec::new();
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            world.step(&mut random, &mut log);
        }
        world.finish();
    }));
    if let Err(panic) = run {
        eprintln!("seed {seed}:\n{}", log.join("\n"));
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn random_verbs_refusals_and_deaths_follow_the_model() {
    let seeds =
        std::env::var("PORTOLAN_SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("PORTOLAN_SEEDS is a number"));
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    sequence(seed);
                }
            });
        }
    });
}

/// Every place where attach can die, one after the other.
#[test]
fn an_attach_that_dies_anywhere_can_be_repeated_at_once() {
    let mut world = World::new(7);
    for name in ["alpha", "beta"] {
        world.engine.create_network(&network_request(name)).unwrap();
        world.model.networks.insert(name.to_owned());
    }
    let path = PathBuf::from("/ns/c");
    world.kernel.make_namespace(&path);
    let request = AttachRequest {
        name: Some("c".parse().unwrap()),
        endpoints: ["alpha", "beta"].map(EndpointRequest::new).to_vec(),
        publish: vec![spec(8000), spec(8001)],
        ..AttachRequest::namespace(path)
    };
    for n in 1.. {
        if world.kernel.dying_at(n, || world.engine.attach(&request)).is_some() {
            assert!(n > 15, "{n}");
            break;
        }
        world.engine.gc().unwrap();
        world.check();
        world.engine.attach(&request).unwrap();
        assert!(world.engine.verify().unwrap().is_empty());
        world.engine.detach("c").unwrap();
        world.check();
    }
}

#[test]
fn what_somebody_else_removed_is_put_back() {
    let world = World::new(3);
    world.engine.create_network(&network_request("alpha")).unwrap();
    let attach = |name: &str| {
        let path = PathBuf::from(format!("/ns/{name}"));
        world.kernel.make_namespace(&path);
        world.engine.attach(&AttachRequest {
            name: Some(name.parse().unwrap()),
            endpoints: vec![EndpointRequest::new("alpha")],
            ..AttachRequest::namespace(path)
        })
    };
    attach("first").unwrap();
    let all: Vec<Object> = world.kernel.objects().into_iter().collect();
    for object in &all {
        world.kernel.remove(object);
        assert!(!world.engine.verify().unwrap().is_empty(), "{object}");
        let repaired = world.engine.reconcile().unwrap();
        assert!(repaired.failures.is_empty() && world.engine.verify().unwrap().is_empty(), "{object}: {repaired:?}");
    }
    // An attach that finds its ground gone puts it back by itself.
    for (n, object) in all.iter().filter(|object| matches!(object, Object::Ruleset(_) | Object::Bridge(_))).enumerate()
    {
        world.kernel.remove(object);
        attach(&format!("next{n}")).unwrap();
        assert!(world.engine.verify().unwrap().is_empty(), "{object}");
    }
}

#[test]
fn a_command_that_never_ran_leaves_nothing_and_one_that_ran_its_row() {
    let world = World::new(5);
    let request = |pid: i32| {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        world.kernel.make_namespace(&path);
        AttachRequest {
            name: Some("site".parse().unwrap()),
            kind: ContainerKind::Run,
            process: Some(world.kernel.start_process(pid)),
            endpoints: vec![EndpointRequest::new("bridge")],
            publish: vec![spec(8000)],
            ..AttachRequest::namespace(path)
        }
    };
    let die = |pid: i32| {
        world.kernel.remove_namespace(Path::new(&format!("/proc/{pid}/ns/net")));
        world.kernel.end_process(pid);
    };
    // Killed before it was started: the name is free, with and without gc.
    for (pid, gc) in [(10, true), (11, false)] {
        world.engine.attach(&request(pid)).unwrap();
        die(pid);
        if gc {
            world.engine.gc().unwrap();
            assert!(world.engine.containers().unwrap().is_empty());
        }
    }
    // Killed afterwards: it keeps its name, and nothing else.
    for (pid, gc) in [(12, true), (13, false)] {
        let info = world.engine.attach(&request(pid)).unwrap();
        world.engine.started(info.container.id, info.container.process.unwrap(), None).unwrap();
        die(pid);
        if gc {
            world.engine.gc().unwrap();
        }
        let again = world.engine.attach(&request(pid + 10)).unwrap_err();
        assert!(matches!(again, Error::NameTaken { .. }), "{again}");
        die(pid + 10);
        let left = world.engine.container("site").unwrap();
        assert_eq!(left.container.state, ContainerState::Exited(255));
        assert!(left.endpoints.is_empty() && left.publications.is_empty());
        assert!(world.kernel.objects().is_empty() && world.engine.verify().unwrap().is_empty());
        world.engine.remove_container("site").unwrap();
    }
}

#[test]
fn after_a_reboot_networks_come_back_and_containers_do_not() {
    let world = World::new(9);
    world.engine.create_network(&network_request("alpha")).unwrap();
    let path = PathBuf::from("/ns/c");
    let attach = || {
        world.kernel.make_namespace(&path);
        world.engine.attach(&AttachRequest {
            name: Some("c".parse().unwrap()),
            endpoints: vec![EndpointRequest::new("alpha"), EndpointRequest::new("bridge")],
            publish: vec![spec(8000)],
            ..AttachRequest::namespace(&path)
        })
    };
    let before = attach().unwrap();
    world.kernel.reboot();
    assert!(!world.engine.verify().unwrap().is_empty());
    // The next verb that changes anything, also one that is refused.
    world.engine.detach("nobody").unwrap_err();
    assert!(world.engine.containers().unwrap().is_empty());
    assert!(world.engine.verify().unwrap().is_empty());
    assert_eq!(world.engine.networks().unwrap().len(), 4);
    let after = attach().unwrap();
    assert!(world.engine.verify().unwrap().is_empty());
    assert_eq!(before.publications, after.publications);
    // It dies while it puts things in order, wherever.
    for n in 1.. {
        world.kernel.reboot();
        let result = world.kernel.dying_at(n, || world.engine.reconcile());
        if let Some(result) = result {
            result.unwrap();
            assert!(n > 5);
            break;
        }
        world.engine.gc().unwrap();
        assert!(world.engine.verify().unwrap().is_empty(), "dying at {n}");
    }
    assert!(world.engine.containers().unwrap().is_empty());
}
