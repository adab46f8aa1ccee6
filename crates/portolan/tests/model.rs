//! Random verbs on a real kernel against a simple model, with namespaces that vanish and processes that are killed.
//!
//! `PORTOLAN_MODEL_STEPS` sets how many steps are taken, by all hosts together.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{LONG, Random, World, links};
use portolan_engine::{AttachRequest, ContainerInfo, EndpointRequest, Engine, Error, Kind, NetworkRequest};
use portolan_kernel::host::HostKernel;
use portolan_kernel::netns;
use portolan_lab::eventually;
use portolan_lab::trace::{CHANGES, Outcome, kill_at};
use portolan_model::IfName;
use portolan_store::SqliteStore;

const STEPS: usize = 10_000;
const HOSTS: usize = 4;
const NETWORKS: usize = 4;
const CONTAINERS: usize = 12;
const PORTS: usize = 20;

type Verbs = Engine<SqliteStore, HostKernel>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    networks: BTreeSet<usize>,
    containers: BTreeMap<usize, Place>,
}

impl Model {
    /// The dead do not keep the ports that somebody wants, and go when they are found.
    fn make_way(&mut self, is_wanted: impl Fn(&u16) -> bool) {
        self.containers.retain(|_, place| !place.dead || !place.ports.iter().any(&is_wanted));
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    on: BTreeSet<usize>,
    ports: BTreeSet<u16>,
    dead: bool,
}

#[derive(Debug, Clone)]
enum Verb {
    Create(usize),
    Remove(usize),
    Attach {
        container: usize,
        on: BTreeSet<usize>,
        ports: BTreeSet<u16>,
        /// The kernel has given the new namespace the number of this dead one's, which gives it away.
        unmasked: Option<usize>,
    },
    Detach(usize),
    Connect {
        container: usize,
        network: usize,
    },
    Disconnect {
        container: usize,
        network: usize,
    },
    Publish {
        container: usize,
        port: u16,
    },
    Unpublish {
        container: usize,
        port: u16,
    },
    Kill(usize),
    Gc,
}

impl Verb {
    fn random(random: &mut Random) -> Self {
        let port = |random: &mut Random| 8000 + random.below(PORTS) as u16;
        let container = random.below(CONTAINERS);
        let network = random.below(NETWORKS);
        match random.below(100) {
            0..10 => Self::Create(network),
            10..16 => Self::Remove(network),
            16..50 => Self::Attach {
                container,
                on: (0..=random.below(2)).map(|_| random.below(NETWORKS)).collect(),
                ports: (0..random.below(3)).map(|_| port(random)).collect(),
                unmasked: None,
            },
            50..65 => Self::Detach(container),
            65..70 => Self::Connect { container, network },
            70..74 => Self::Disconnect { container, network },
            74..80 => Self::Publish { container, port: port(random) },
            80..86 => Self::Unpublish { container, port: port(random) },
            86..97 => Self::Kill(container),
            _ => Self::Gc,
        }
    }

    /// Does to `model` what the verb should do; whether it should succeed.
    fn predict(&self, model: &mut Model) -> bool {
        match self {
            Self::Create(network) => model.networks.insert(*network),
            Self::Remove(network) => {
                if !model.networks.contains(network) {
                    return false;
                }
                // The dead do not keep a network, and go when they are found.
                model.containers.retain(|_, place| !place.dead || !place.on.contains(network));
                !model.containers.values().any(|place| place.on.contains(network)) && model.networks.remove(network)
            }
            Self::Attach { container, on, ports, unmasked } => {
                model.make_way(|port| ports.contains(port));
                if model.containers.get(container).is_some_and(|holder| !holder.dead) {
                    return false;
                }
                model.containers.remove(container);
                if let Some(unmasked) = unmasked {
                    model.containers.remove(unmasked);
                }
                let is_free = |port: &u16| !model.containers.values().any(|place| place.ports.contains(port));
                if !on.is_subset(&model.networks) || !ports.iter().all(is_free) {
                    return false;
                }
                model.containers.insert(*container, Place { on: on.clone(), ports: ports.clone(), dead: false });
                true
            }
            Self::Detach(container) => model.containers.remove(container).is_some(),
            Self::Connect { container, network } => {
                let exists = model.networks.contains(network);
                model
                    .containers
                    .get_mut(container)
                    .is_some_and(|place| exists && !place.dead && place.on.insert(*network))
            }
            Self::Disconnect { container, network } => {
                model.containers.get_mut(container).is_some_and(|place| place.on.remove(network))
            }
            Self::Publish { container, port } => {
                if model.containers.get(container).is_some_and(|place| !place.dead) {
                    model.make_way(|wanted| wanted == port);
                }
                let is_free = !model.containers.values().any(|place| place.ports.contains(port));
                model
                    .containers
                    .get_mut(container)
                    .is_some_and(|place| is_free && !place.dead && place.ports.insert(*port))
            }
            Self::Unpublish { container, port } => {
                model.containers.get_mut(container).is_some_and(|place| place.ports.remove(port))
            }
            Self::Kill(container) => {
                if let Some(place) = model.containers.get_mut(container) {
                    place.dead = true;
                }
                true
            }
            Self::Gc => {
                model.containers.retain(|_, place| !place.dead);
                true
            }
        }
    }
}

// No hexadecimal digits, which could be the start of an id.
fn network_name(network: usize) -> String {
    format!("net{network}")
}

/// Every other one is without a bridge.
fn driver(network: usize) -> &'static str {
    if network.is_multiple_of(2) { "bridge" } else { "ptp" }
}

fn container_name(container: usize) -> String {
    format!("box{container}")
}

fn number_of(name: &str) -> usize {
    name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

fn subnets(network: usize) -> [String; 2] {
    [format!("10.50.{network}.0/24"), format!("fd50:{network}::/64")]
}

/// Every third on UDP, every fourth for the host alone.
fn spec(port: u16) -> String {
    let address = if port.is_multiple_of(4) { "127.0.0.1:" } else { "" };
    let protocol = if port.is_multiple_of(3) { "/udp" } else { "" };
    format!("{address}{port}:80{protocol}")
}

struct Host<'a> {
    world: &'a World,
    engine: Verbs,
    model: Model,
    /// How many namespaces each container has had: the kernel gives the number of one that is gone to the next.
    lives: [usize; CONTAINERS],
}

impl Host<'_> {
    fn path(&self, container: usize) -> PathBuf {
        self.world.lab.dir().join(format!("{}-{}", container_name(container), self.lives[container]))
    }

    /// Sees to it that there is a namespace to attach.
    fn make_namespace(&self, container: usize) {
        let path = self.path(container);
        if !path.exists() {
            netns::create_pinned(&path).unwrap();
        }
    }

    fn kill(&mut self, container: usize) {
        let path = self.path(container);
        if path.exists() {
            netns::unpin(&path).unwrap();
            self.lives[container] += 1;
        }
    }

    fn dead_with_the_number_of(&self, container: usize) -> Option<usize> {
        let number = std::fs::metadata(self.path(container)).unwrap().ino();
        let all = self.engine.containers().unwrap();
        let dead = all.into_iter().filter(|info| !info.alive);
        let mut same =
            dead.filter(|info| info.container.sandbox.as_ref().is_some_and(|sandbox| sandbox.inode == number));
        same.next().map(|info| number_of(info.container.name.as_str()))
    }

    /// In this process.
    fn run(&self, verb: &Verb) -> Result<(), Error> {
        let engine = &self.engine;
        let parse = |port: &u16| spec(*port).parse().unwrap();
        match verb {
            Verb::Create(network) => {
                let request = NetworkRequest {
                    driver: driver(*network).parse().unwrap(),
                    subnets: subnets(*network).map(|subnet| subnet.parse().unwrap()).to_vec(),
                    ..NetworkRequest::new(network_name(*network).parse().unwrap())
                };
                engine.create_network(&request).map(drop)
            }
            Verb::Remove(network) => engine.remove_network(&network_name(*network)).map(drop),
            Verb::Attach { container, on, ports, .. } => engine
                .attach(&AttachRequest {
                    name: Some(container_name(*container).parse().unwrap()),
                    endpoints: on.iter().map(|network| EndpointRequest::new(network_name(*network))).collect(),
                    publish: ports.iter().map(parse).collect(),
                    ..AttachRequest::namespace(self.path(*container))
                })
                .map(drop),
            Verb::Detach(container) => engine.detach(&container_name(*container)).map(drop),
            Verb::Connect { container, network } => {
                engine.connect(&container_name(*container), &EndpointRequest::new(network_name(*network))).map(drop)
            }
            Verb::Disconnect { container, network } => {
                engine.disconnect(&container_name(*container), &network_name(*network)).map(drop)
            }
            Verb::Publish { container, port } => engine.publish(&container_name(*container), &[parse(port)]).map(drop),
            Verb::Unpublish { container, port } => {
                engine.unpublish(&container_name(*container), &[parse(port)]).map(drop)
            }
            Verb::Kill(_) => Ok(()),
            Verb::Gc => engine.gc().map(|repaired| assert!(repaired.failures.is_empty(), "{repaired:?}")),
        }
    }

    /// The same for the binary; none where there is nothing to start.
    fn line(&self, verb: &Verb) -> Option<Vec<String>> {
        let words: Vec<String> = match verb {
            Verb::Create(network) => {
                let [v4, v6] = subnets(*network);
                return Some(
                    [
                        "network",
                        "create",
                        "-d",
                        driver(*network),
                        "--subnet",
                        &v4,
                        "--subnet",
                        &v6,
                        &network_name(*network),
                    ]
                    .map(String::from)
                    .to_vec(),
                );
            }
            Verb::Remove(network) => vec!["network".into(), "rm".into(), network_name(*network)],
            Verb::Attach { container, on, ports, .. } => {
                let path = self.path(*container).to_str().unwrap().to_owned();
                let mut words = vec![
                    "attach".to_owned(),
                    "--netns".to_owned(),
                    path,
                    "--name".to_owned(),
                    container_name(*container),
                ];
                words.extend(on.iter().flat_map(|network| ["--network".to_owned(), network_name(*network)]));
                words.extend(ports.iter().flat_map(|port| ["-p".to_owned(), spec(*port)]));
                words
            }
            Verb::Detach(container) => vec!["detach".into(), container_name(*container)],
            Verb::Connect { container, network } => {
                vec!["network".into(), "connect".into(), network_name(*network), container_name(*container)]
            }
            Verb::Disconnect { container, network } => {
                vec!["network".into(), "disconnect".into(), network_name(*network), container_name(*container)]
            }
            Verb::Publish { container, port } => {
                vec!["publish".into(), "add".into(), container_name(*container), spec(*port)]
            }
            Verb::Unpublish { container, port } => {
                vec!["publish".into(), "rm".into(), container_name(*container), spec(*port)]
            }
            Verb::Kill(_) => return None,
            Verb::Gc => vec!["gc".into()],
        };
        Some(words)
    }

    fn step(&mut self, random: &mut Random, number: usize) {
        let mut verb = Verb::random(random);
        match &mut verb {
            Verb::Attach { container, unmasked, .. } => {
                self.make_namespace(*container);
                *unmasked = self.dead_with_the_number_of(*container);
            }
            Verb::Kill(container) => self.kill(*container),
            _ => {}
        }
        let before = self.model.clone();
        let mut after = before.clone();
        let done = verb.predict(&mut after);
        let line = if random.below(50) == 0 { self.line(&verb) } else { None };
        match line {
            Some(line) => self.step_of_the_binary(random, &verb, &line, before, after, done),
            None => {
                match self.run(&verb) {
                    Ok(()) => assert!(done, "step {number}: {verb:?} should be refused: {:?}", self.model),
                    Err(error) => {
                        assert!(!done, "step {number}: {verb:?}: {error}: {:?}", std::error::Error::source(&error));
                        assert!(
                            !matches!(error.kind(), Kind::Bug | Kind::Transient),
                            "step {number}: {verb:?}: {error}"
                        );
                    }
                }
                self.model = after;
            }
        }
        let found = self.observe();
        assert_eq!(found, self.model, "step {number}: {verb:?}");
        if number.is_multiple_of(25) {
            self.check(&format!("step {number}: {verb:?}"));
        }
    }

    /// Every other one is killed somewhere.
    fn step_of_the_binary(
        &mut self,
        random: &mut Random,
        verb: &Verb,
        line: &[String],
        before: Model,
        after: Model,
        done: bool,
    ) {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        if random.below(2) == 0 {
            let output = self.world.portolan(&line);
            assert_eq!(output.status.success(), done, "{verb:?}: {output:?}");
            self.model = after;
            return;
        }
        let mut command = self.world.command(&line);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let n = 1 + random.below(60);
        match kill_at(command, CHANGES, n).unwrap() {
            Outcome::Finished(status) => {
                assert_eq!(status.success(), done, "{verb:?}: {status}");
                self.model = after;
            }
            Outcome::Killed { syscall, .. } => {
                let what = format!("{verb:?}, killed at step {n}, {syscall:?}");
                if random.below(2) == 0 {
                    let repaired = self.engine.gc().unwrap();
                    assert!(repaired.failures.is_empty(), "{what}: {repaired:?}");
                } else {
                    let refused = self.engine.detach("nobody").unwrap_err();
                    assert_eq!(refused.kind(), Kind::NotFound, "{what}: {refused}");
                }
                let found = self.observe();
                let is_found = |mut option: Model| {
                    option.containers.retain(|name, place| !place.dead || found.containers.contains_key(name));
                    option == found
                };
                assert!(is_found(before) || is_found(after), "{what}: neither done nor undone: {found:#?}");
                self.model = found;
                self.check(&what);
            }
        }
    }

    /// What the engine says there is.
    fn observe(&self) -> Model {
        let networks = self.engine.networks().unwrap();
        let containers = self.engine.containers().unwrap();
        Model {
            networks: networks
                .iter()
                .filter(|network| !network.is_predefined())
                .map(|network| number_of(network.name.as_str()))
                .collect(),
            containers: containers
                .iter()
                .map(|info| {
                    let place = Place {
                        on: info.endpoints.iter().map(|(_, network)| number_of(network.name.as_str())).collect(),
                        ports: info.publications.iter().map(|publication| publication.host.first()).collect(),
                        dead: !info.alive,
                    };
                    (number_of(info.container.name.as_str()), place)
                })
                .collect(),
        }
    }

    /// The kernel is what the rows say, but for what the dead lack.
    fn check(&self, what: &str) {
        let all = self.engine.containers().unwrap();
        let dead: Vec<ContainerInfo> = all.into_iter().filter(|info| !info.alive).collect();
        let is_dead = |path: &PathBuf| {
            dead.iter().any(|info| info.container.sandbox.as_ref().is_some_and(|sandbox| sandbox.path == *path))
        };
        let was_behind =
            |device: &IfName| dead.iter().any(|info| info.endpoints.iter().any(|(one, _)| one.host_end == *device));
        let is_of_the_dead = |step: &portolan_plan::Step| {
            use portolan_plan::{Object, Step};
            let path = match step {
                Step::Create(object) | Step::Change(_, object) => match object {
                    Object::Port(port) => &port.sandbox.path,
                    Object::Interface(interface) => &interface.sandbox.path,
                    Object::DefaultRoute(route) => &route.sandbox.path,
                    Object::Neighbour(neighbour) => return was_behind(&neighbour.device),
                    Object::HostRoute(route) => return route.way.device().is_some_and(was_behind),
                    _ => return false,
                },
                Step::Delete(_) => return false,
            };
            is_dead(path)
        };
        let differences = self.engine.verify().unwrap();
        let unexpected: Vec<String> =
            differences.iter().filter(|step| !is_of_the_dead(step)).map(ToString::to_string).collect();
        assert!(unexpected.is_empty(), "{what}: {unexpected:#?}");
        let alive: usize = self.model.containers.values().filter(|place| !place.dead).map(|place| place.on.len()).sum();
        // The kernel takes its time to bury a namespace.
        let settled = eventually(LONG, || self.veths() == alive);
        assert!(settled, "{what}: {} veths for {alive} live endpoints", self.veths());
    }

    fn veths(&self) -> usize {
        links(&self.world.h).iter().filter(|link| link.kind.as_deref() == Some("veth") && link.name != "eth0").count()
    }
}

/// Takes random steps on each of several hosts, then takes everything down.
#[test]
fn random_verbs_on_a_real_kernel_follow_the_model() {
    // Most of the time each waits for the kernel.
    let worlds: Option<Vec<World>> = (0..HOSTS).map(|host| World::or_skip(&format!("model-{host}"))).collect();
    let Some(worlds) = worlds else { return };
    let steps = std::env::var("PORTOLAN_MODEL_STEPS")
        .map_or(STEPS, |steps| steps.parse().expect("PORTOLAN_MODEL_STEPS is a number"));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let hosts: Vec<_> = (1u64..)
            .zip(&worlds)
            .map(|(seed, world)| {
                let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                scope.spawn(move || random_verbs(world, steps.div_ceil(HOSTS), random))
            })
            .collect();
        hosts.into_iter().for_each(|host| host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
    eprintln!("{steps} steps in {:?}", started.elapsed());
}

fn random_verbs(world: &World, steps: usize, mut random: Random) {
    let untouched = world.untouched();
    world.portolan_ok(&["network", "ls"]);
    world.h.enter(|| {
        let root = world.root.canonicalize().unwrap().to_str().unwrap().to_owned();
        let engine = Engine::new(root, SqliteStore::open(&world.root).unwrap(), HostKernel::new());
        let mut host = Host { world, engine, model: Model::default(), lives: [0; CONTAINERS] };
        for number in 1..=steps {
            host.step(&mut random, number);
        }
        // A network with none but dead endpoints goes at the first word.
        host.check("the end");
        (0..CONTAINERS).for_each(|container| host.kill(container));
        for network in std::mem::take(&mut host.model.networks) {
            host.engine.remove_network(&network_name(network)).unwrap();
        }
        host.engine.gc().unwrap();
        host.model = Model::default();
        assert_eq!(host.observe(), host.model);
        host.check("after the end");
        assert_eq!(host.veths(), 0);
    });
    world.assert_untouched(&untouched, "the test");
}

#[test]
fn the_dead_do_not_keep_a_network_and_the_living_are_named() {
    let Some(world) = World::or_skip("network rm") else { return };
    world.network("web", &[]);
    for (name, port) in [("blue", "8080:80"), ("green", "8081:80")] {
        let path = world.lab.dir().join(name);
        netns::create_pinned(&path).unwrap();
        world.portolan_ok(&[
            "attach",
            "--netns",
            path.to_str().unwrap(),
            "--name",
            name,
            "--network",
            "web",
            "-p",
            port,
        ]);
        netns::unpin(&path).unwrap();
    }
    world.portolan_ok(&["network", "rm", "web"]);
    assert_eq!(world.json(&["ps", "-a"]), serde_json::json!([]));
    world.verify();

    world.network("web", &[]);
    world.portolan_ok(&["run", "-d", "--name", "site", "--network", "web", "--", "sleep", "1000"]);
    let attached = world.container("blue2", &["--network", "web"]);
    let pid = world.json(&["inspect", "site"])[0]["State"]["Pid"].as_i64().unwrap();
    let why = world.refused(&["network", "rm", "web"]);
    assert!(why.contains("container `site`") && why.contains(&pid.to_string()), "{why}");
    assert!(why.contains("container `blue2`"), "{why}");

    // Killed from outside, with whoever waits for it: the network goes at the first word all the same.
    let supervisor = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    let process = portolan_kernel::process::PidFd::open(pid as i32).unwrap();
    process.signal(portolan_kernel::signals::KILL).unwrap();
    assert!(eventually(Duration::from_secs(10), || !supervisor()));
    world.portolan_ok(&["detach", &attached.name]);
    world.portolan_ok(&["network", "rm", "web"]);
    world.verify();
}
