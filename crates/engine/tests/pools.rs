//! Pools, as Docker asks for them: it dies before it has written down what it was given, and we before it was told.
//!
//! `PORTOLAN_STEPS` sets how many steps the random test takes.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use fake::FakeKernel;
use ipnet::IpNet;
use portolan_engine::{
    AddressRequest, AttachRequest, Call, EndpointRequest, Engine, Error, NetworkRequest, PoolNet, PoolRequest,
};
use portolan_model::{Family, Id, Pool, ProcessId};
use portolan_store::SqliteStore;

const STEPS: u64 = 3000;
/// Addresses of a /26 but for network, broadcast and gateway.
const ROOM: usize = 61;
const ANY: Call<'static> = Call { method: "RequestAddress", body: "any" };

struct World {
    kernel: FakeKernel,
    engine: Engine<SqliteStore, FakeKernel>,
    scratch: PathBuf,
    random: u64,
    dockers: i32,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn exactly(net: &str) -> PoolRequest {
    PoolRequest { net: PoolNet::Exactly(net.parse().unwrap()), range: None }
}

const FREE: PoolRequest = PoolRequest { net: PoolNet::Free(Family::V4, None), range: None };

impl World {
    fn new(name: &str) -> Self {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let scratch = base.join(format!("portolan-pools-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&scratch);
        let kernel = FakeKernel::new(11);
        let engine = Self::open(&scratch, &kernel);
        Self { kernel, engine, scratch, random: 0x9e37_79b9_7f4a_7c15, dockers: 5000 }
    }

    fn open(scratch: &Path, kernel: &FakeKernel) -> Engine<SqliteStore, FakeKernel> {
        let engine = Engine::new("/root".to_owned(), SqliteStore::open(scratch).unwrap(), kernel.clone());
        engine.begin_answering().unwrap();
        engine
    }

    /// Our process dies, and another takes its place.
    fn restart(&mut self) {
        self.engine = Self::open(&self.scratch, &self.kernel);
    }

    /// Docker dies, and another begins.
    fn restart_docker(&mut self) -> ProcessId {
        self.kernel.end_process(self.dockers);
        self.dockers += 1;
        let docker = self.kernel.start_process(self.dockers);
        self.engine.begin_claims(Some(docker)).unwrap();
        docker
    }

    /// Marsaglia's xorshift64: the same numbers in every run.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }

    fn pool(&self, request: &PoolRequest) -> Result<Pool, Error> {
        let given = self.engine.request_pool(Call { method: "RequestPool", body: "x" }, request)?;
        self.engine.answered(given.number).unwrap();
        Ok(given.what)
    }

    fn ask(&self, pool: Id, request: &AddressRequest) -> Result<IpAddr, Error> {
        let body = format!("{request:?}");
        let given = self.engine.request_address(Call { body: &body, ..ANY }, pool, request)?;
        self.engine.answered(given.number).unwrap();
        Ok(given.what.addr())
    }

    fn any(&self, pool: Id) -> Result<IpAddr, Error> {
        self.ask(pool, &AddressRequest::default())
    }

    fn exact(&self, pool: Id, address: IpAddr) -> Result<IpAddr, Error> {
        self.ask(pool, &AddressRequest { address: Some(address), ..AddressRequest::default() })
    }

    fn gateway(&self, pool: Id, address: Option<IpAddr>) -> Result<IpAddr, Error> {
        self.ask(pool, &AddressRequest { address, gateway: true, mac: None })
    }

    /// Makes the network of the driver's side, as Docker does.
    fn network(&self, pool: &Pool) -> Result<(), Error> {
        let gateway = self.gateway(pool.id, None)?;
        let request = NetworkRequest {
            exact: true,
            pooled: true,
            ipv6: false,
            subnets: vec![pool.subnet.net],
            gateways: vec![gateway],
            ..NetworkRequest::new("docker-net".parse().unwrap())
        };
        self.engine.create_network(&request).map(drop)
    }

    /// Docker's endpoint with an address that it was given.
    fn hand(&self, address: IpAddr) -> Result<(), Error> {
        let endpoint = EndpointRequest { addresses: vec![address], exact: true, ..EndpointRequest::new("docker-net") };
        let request = AttachRequest {
            name: Some(format!("e{address}").parse().unwrap()),
            kind: portolan_model::ContainerKind::Handed,
            netns: None,
            endpoints: vec![endpoint],
            ..AttachRequest::namespace("")
        };
        self.engine.attach(&request).map(drop)
    }

    /// A container that Docker does not know, on the same network.
    fn attach(&self, number: u64) -> Result<IpAddr, Error> {
        let path: PathBuf = format!("/ns/c{number}").into();
        self.kernel.make_namespace(&path);
        let request = AttachRequest {
            name: Some(format!("c{number}").parse().unwrap()),
            endpoints: vec![EndpointRequest::new("docker-net")],
            ..AttachRequest::namespace(path)
        };
        let info = self.engine.attach(&request)?;
        Ok(info.endpoints[0].0.addresses[0].address.addr())
    }

    fn nets(&self) -> Vec<String> {
        self.engine.pools().unwrap().iter().map(|(pool, _)| pool.subnet.net.to_string()).collect()
    }
}

#[test]
fn pools_keep_clear_of_networks_routes_and_each_other() {
    let world = World::new("clear");
    let web = NetworkRequest { ipv6: false, ..NetworkRequest::new("web".parse().unwrap()) };
    let web = world.engine.create_network(&web).unwrap().subnets[0].net;
    let (one, two) = (world.pool(&FREE).unwrap().subnet.net, world.pool(&FREE).unwrap().subnet.net);
    let route: IpNet = "172.17.0.0/16".parse().unwrap();
    let all = [web, one, two, route];
    for (place, net) in all.iter().enumerate() {
        let apart = |other: &IpNet| !net.contains(other) && !other.contains(net);
        assert!(all[place + 1..].iter().all(apart), "{all:?}");
    }
    // What is named may be on a route, as that of a LAN, but is nobody else's.
    world.pool(&exactly("10.0.1.0/24")).unwrap();
    for taken in [web, one] {
        for net in [taken, taken.supernet().unwrap(), taken.subnets(26).unwrap().next().unwrap()] {
            let refusal = world.pool(&exactly(&net.to_string())).unwrap_err();
            assert!(matches!(refusal, Error::Overlap { .. }), "{net}: {refusal}");
        }
    }
    // The other way round.
    let named = |net: IpNet| NetworkRequest {
        ipv6: false,
        subnets: vec![net],
        ..NetworkRequest::new("other".parse().unwrap())
    };
    let refusal = world.engine.create_network(&named(two)).unwrap_err();
    assert!(refusal.to_string().contains("given to Docker"), "{refusal}");
    let exact = NetworkRequest { exact: true, ..named(two) };
    assert!(matches!(world.engine.create_network(&exact), Err(Error::Overlap { .. })));
    let free = NetworkRequest { ipv6: false, ..NetworkRequest::new("other".parse().unwrap()) };
    let other = world.engine.create_network(&free).unwrap().subnets[0].net;
    assert!(all.iter().all(|net| !net.contains(&other)), "{other}");
    let small = world.pool(&PoolRequest { net: PoolNet::Free(Family::V4, Some(28)), range: None }).unwrap();
    assert_eq!(small.subnet.net.prefix_len(), 28);
    let v6 = world.pool(&PoolRequest { net: PoolNet::Free(Family::V6, Some(80)), range: None }).unwrap();
    assert!(v6.subnet.net.to_string().starts_with("fd") && v6.subnet.net.prefix_len() == 80);
    assert!(world.pool(&PoolRequest { net: PoolNet::Free(Family::V6, Some(48)), range: None }).is_err());
}

#[test]
fn both_faces_know_what_the_other_gave() {
    let world = World::new("faces");
    let pool = world.pool(&exactly("10.9.0.0/26")).unwrap();
    world.network(&pool).unwrap();
    let again = NetworkRequest {
        exact: true,
        pooled: true,
        subnets: vec![pool.subnet.net],
        gateways: vec![address("10.9.0.1")],
        ..NetworkRequest::new("again".parse().unwrap())
    };
    assert!(matches!(world.engine.create_network(&again), Err(Error::Overlap { .. })));
    let docker = world.any(pool.id).unwrap();
    let ours = world.attach(1).unwrap();
    assert_ne!(docker, ours);
    assert!(matches!(world.exact(pool.id, ours), Err(Error::AddressTaken { .. })));
    assert_ne!(world.any(pool.id).unwrap(), ours);
    // What comes from the pool is not in its own way.
    world.hand(docker).unwrap();
    let endpoint = EndpointRequest { addresses: vec![docker], exact: true, ..EndpointRequest::new("docker-net") };
    let mine = AttachRequest { endpoints: vec![endpoint], ..AttachRequest::namespace("/ns/mine") };
    world.kernel.make_namespace(Path::new("/ns/mine"));
    assert!(matches!(world.engine.attach(&mine), Err(Error::AddressTaken { .. })));
}

#[test]
fn gateways_and_ranges() {
    let world = World::new("gateways");
    let range = "10.9.0.32/27".parse::<IpNet>().unwrap();
    let pool = world.pool(&PoolRequest { range: Some(range.into()), ..exactly("10.9.0.0/26") }).unwrap();
    assert_eq!(world.gateway(pool.id, None).unwrap(), address("10.9.0.1"));
    assert_eq!(world.gateway(pool.id, None).unwrap(), address("10.9.0.1"), "a pool has one");
    assert!(range.contains(&world.any(pool.id).unwrap()));
    assert_eq!(world.exact(pool.id, address("10.9.0.7")).unwrap(), address("10.9.0.7"), "named ones may be outside");
    for (wrong, is_taken) in [("10.9.0.1", true), ("10.9.0.7", true), ("10.9.0.0", true), ("10.9.1.1", false)] {
        let refusal = world.exact(pool.id, address(wrong)).unwrap_err();
        assert_eq!(matches!(refusal, Error::AddressTaken { .. }), is_taken, "{wrong}: {refusal}");
        assert!(is_taken || matches!(refusal, Error::AddressOutside { .. }), "{refusal}");
    }
    for _ in 0..30 {
        world.any(pool.id).unwrap();
    }
    assert!(matches!(world.any(pool.id), Err(Error::AddressesExhausted { .. })));
    world.engine.release_address(pool.id, address("10.9.0.40")).unwrap();
    world.engine.release_address(pool.id, address("10.9.0.40")).unwrap();
    assert_eq!(world.any(pool.id).unwrap(), address("10.9.0.40"));
    world.engine.release_pool(pool.id).unwrap();
    world.engine.release_pool(pool.id).unwrap();
    assert!(matches!(world.any(pool.id), Err(Error::NotFound { .. })));
}

#[test]
fn what_was_given_and_not_said_is_given_next_time() {
    let mut world = World::new("lost");
    let call = |body| Call { method: "RequestPool", body };
    let first = world.engine.request_pool(call("a"), &exactly("10.9.0.0/26")).unwrap();
    let again = world.engine.request_pool(call("a"), &exactly("10.9.0.0/26"));
    assert!(matches!(again, Err(Error::Overlap { .. })), "it may still be said");
    for _ in 0..2 {
        world.restart();
        let other = world.engine.request_pool(call("b"), &exactly("10.9.0.0/26"));
        assert!(matches!(other, Err(Error::Overlap { .. })), "somebody else asks");
        let again = world.engine.request_pool(call("a"), &exactly("10.9.0.0/26")).unwrap();
        assert_eq!(again.what, first.what);
        if again.number == first.number + 2 {
            world.engine.answered(again.number).unwrap();
        }
    }
    world.restart();
    assert!(world.engine.request_pool(call("a"), &exactly("10.9.0.0/26")).is_err(), "somebody has it");
    let ask = |world: &World, body| {
        let call = Call { body, ..ANY };
        world.engine.request_address(call, first.what.id, &AddressRequest::default()).unwrap().what
    };
    let (a, b) = (ask(&world, "a"), ask(&world, "b"));
    world.restart();
    assert_eq!((ask(&world, "b"), ask(&world, "a")), (b, a));
    assert!(![a, b].contains(&ask(&world, "a")), "once");
    // With its Docker goes whoever could ask again.
    world.restart();
    world.restart_docker();
    assert!(world.engine.pools().unwrap()[0].1 >= 3);
    assert!(![a, b].contains(&ask(&world, "a")));
}

#[test]
fn what_the_next_docker_does_not_claim_is_nobodys() {
    let mut world = World::new("claims");
    world.restart_docker();
    let (kept, lost, own) =
        (world.pool(&exactly("10.9.0.0/26")).unwrap(), world.pool(&FREE).unwrap(), exactly("10.10.0.0/26"));
    let own = world.pool(&own).unwrap();
    world.network(&own).unwrap();
    let (one, two) = (world.any(kept.id).unwrap(), world.any(kept.id).unwrap());
    world.restart_docker();
    assert_eq!(world.pool(&exactly("10.9.0.0/26")).unwrap().id, kept.id, "it is what it was");
    assert_eq!(world.exact(kept.id, two).unwrap(), two);
    assert!(world.exact(kept.id, two).is_err(), "once");
    assert_eq!(world.nets().len(), 3, "it may not have said all");
    world.engine.end_claims().unwrap();
    assert_eq!(world.nets(), ["10.9.0.0/26"], "{lost:?} and its network are gone");
    assert!(matches!(world.engine.network("docker-net"), Err(Error::NotFound { .. })));
    assert_eq!(world.exact(kept.id, one).unwrap(), one);
    // A network with somebody on it stays, and so does its pool.
    let own = world.pool(&exactly("10.10.0.0/26")).unwrap();
    world.network(&own).unwrap();
    world.attach(1).unwrap();
    world.restart_docker();
    world.engine.end_claims().unwrap();
    assert_eq!(world.nets(), ["10.10.0.0/26"]);
    world.engine.network("docker-net").unwrap();
}

/// Who was not heard from its beginning, or speaks for itself only, has nothing taken back.
#[test]
fn nothing_is_taken_back_on_a_guess() {
    let mut world = World::new("guess");
    let docker = world.restart_docker();
    let pool = world.pool(&exactly("10.9.0.0/26")).unwrap();
    let one = world.any(pool.id).unwrap();
    let is_there = |world: &World| {
        world.engine.end_claims().unwrap();
        assert_eq!(world.nets(), ["10.9.0.0/26"]);
        assert!(world.pool(&exactly("10.9.0.0/26")).is_err() && world.exact(pool.id, one).is_err());
    };
    world.engine.begin_claims(Some(docker)).unwrap();
    is_there(&world);
    let second = world.kernel.start_process(7000);
    world.engine.begin_claims(Some(second)).unwrap();
    is_there(&world);
    // It began before us, so it may have found nobody to say it to.
    world.kernel.end_process(docker.pid);
    world.engine.begin_claims(Some(ProcessId { started: 0, ..second })).unwrap();
    is_there(&world);
    world.kernel.end_process(7000);
    // Who cannot be told may say what it has, but not by silence that it has no more.
    world.engine.begin_claims(None).unwrap();
    world.engine.end_claims().unwrap();
    assert_eq!(world.nets(), ["10.9.0.0/26"]);
    assert_eq!(world.pool(&exactly("10.9.0.0/26")).unwrap().id, pool.id);
    assert_eq!(world.exact(pool.id, one).unwrap(), one);
    is_there(&world);
    // We died while it spoke: it may have gone unheard.
    world.restart_docker();
    world.restart();
    world.engine.end_claims().unwrap();
    assert_eq!(world.nets(), ["10.9.0.0/26"]);
}

/// What Docker and others believe to have.
#[derive(Default)]
struct Believed {
    docker: BTreeSet<IpAddr>,
    others: BTreeMap<u64, IpAddr>,
}

impl Believed {
    fn is_free(&self, address: IpAddr) -> bool {
        !self.docker.contains(&address) && !self.others.values().any(|other| *other == address)
    }

    fn count(&self) -> usize {
        self.docker.len() + self.others.len()
    }
}

#[test]
fn no_address_of_a_pool_is_lost_or_given_twice() {
    let steps = std::env::var("PORTOLAN_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(STEPS);
    let mut world = World::new("random");
    world.restart_docker();
    let request = exactly("10.9.0.0/26");
    let pool = world.pool(&request).unwrap().id;
    world.network(&world.engine.pools().unwrap()[0].0.clone()).unwrap();
    let gateway = address("10.9.0.1");
    let mut believed = Believed::default();
    let (mut full, mut deaths, mut lost, mut unsaid) = (0, 0, 0, 0);
    for step in 0..steps {
        let (kind, number) = (world.below(100), world.below(62));
        let named: IpAddr = format!("10.9.0.{}", number + 1).parse().unwrap();
        match kind {
            0..40 => match world.engine.request_address(ANY, pool, &AddressRequest::default()) {
                Ok(given) => {
                    let mut told = given;
                    // Sometimes nobody is told, and it is asked for again.
                    while world.below(4) == 0 {
                        world.restart();
                        lost += 1;
                        let again = world.engine.request_address(ANY, pool, &AddressRequest::default()).unwrap();
                        assert_eq!(again.what, told.what, "step {step}");
                        told = again;
                    }
                    world.engine.answered(told.number).unwrap();
                    assert!(believed.is_free(told.what.addr()), "step {step}: {} twice", told.what);
                    // Sometimes Docker dies before it has written it down.
                    if world.below(5) > 0 {
                        world.hand(told.what.addr()).unwrap();
                        believed.docker.insert(told.what.addr());
                        continue;
                    }
                    // Sometimes the answer did not come; nobody knows, but that no endpoint has the address.
                    if world.below(2) == 0 {
                        world.restart();
                        unsaid += 1;
                        let again = world.engine.request_address(ANY, pool, &AddressRequest::default()).unwrap();
                        assert_eq!(again.what, told.what, "step {step}: lost");
                        world.engine.answered(again.number).unwrap();
                        world.engine.release_address(pool, again.what.addr()).unwrap();
                        continue;
                    }
                    deaths += 1;
                    world.restart_docker();
                    assert_eq!(world.pool(&request).unwrap().id, pool);
                    assert_eq!(world.gateway(pool, Some(gateway)).unwrap(), gateway);
                    for address in &believed.docker {
                        world.exact(pool, *address).unwrap();
                    }
                    world.engine.end_claims().unwrap();
                    let taken = world.engine.pools().unwrap()[0].1;
                    assert_eq!(taken, believed.docker.len() + 1, "step {step}: one was lost or kept");
                }
                Err(Error::AddressesExhausted { .. }) => {
                    full += 1;
                    assert_eq!(believed.count(), ROOM, "step {step}: full before it is");
                }
                Err(error) => panic!("step {step}: {error}"),
            },
            40..55 => match world.exact(pool, named) {
                Ok(given) => {
                    assert!(believed.is_free(given) && given != gateway, "step {step}: {given} twice");
                    world.hand(given).unwrap();
                    believed.docker.insert(given);
                }
                Err(Error::AddressTaken { .. }) => assert!(!believed.is_free(named) || named == gateway),
                Err(error) => panic!("step {step}: {error}"),
            },
            55..75 => {
                if believed.docker.remove(&named) {
                    world.engine.detach(&format!("e{named}")).unwrap();
                    world.engine.release_address(pool, named).unwrap();
                }
            }
            75..85 if !believed.others.contains_key(&number) => match world.attach(number) {
                Ok(given) => {
                    assert!(believed.is_free(given), "step {step}: {given} twice");
                    believed.others.insert(number, given);
                }
                Err(Error::AddressesExhausted { .. }) => assert_eq!(believed.count(), ROOM, "step {step}"),
                Err(error) => panic!("step {step}: {error}"),
            },
            75..95 => {
                if believed.others.remove(&number).is_some() {
                    world.engine.detach(&format!("c{number}")).unwrap();
                }
            }
            _ => world.restart(),
        }
    }
    eprintln!(
        "{steps} steps, {full} times full, {deaths} deaths of Docker, {lost} answers lost, {unsaid} on their way"
    );
    assert!(full > 0 && deaths > 0 && lost > 0 && unsaid > 0);
    // Nothing was lost: all of it can be had.
    while believed.count() < ROOM {
        let given = world.any(pool).unwrap();
        assert!(believed.is_free(given), "{given} twice");
        believed.docker.insert(given);
    }
    assert!(matches!(world.any(pool), Err(Error::AddressesExhausted { .. })));
}
