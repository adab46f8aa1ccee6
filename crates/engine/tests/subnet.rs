//! A /24 whose containers come, die, go and are forgotten at random: no address is had twice, and none is lost.
//!
//! `PORTOLAN_STEPS` sets how many steps are taken.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use fake::FakeKernel;
use portolan_engine::{AttachRequest, EndpointRequest, Engine, Error, NetworkRequest};
use portolan_model::Id;
use portolan_store::SqliteStore;

const STEPS: u64 = 2000;
/// Containers that there may be: more than the subnet has addresses for.
const CONTAINERS: u64 = 300;
/// Addresses of a /24 but for network, broadcast and gateway.
const ROOM: usize = 253;

struct World {
    kernel: FakeKernel,
    engine: Engine<SqliteStore, FakeKernel>,
    scratch: PathBuf,
    random: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

fn id(number: u64) -> Id {
    format!("{number:064x}").parse().unwrap()
}

fn path(number: u64) -> PathBuf {
    format!("/ns/c{number}").into()
}

fn network() -> NetworkRequest {
    NetworkRequest {
        id: Some(id(0xffff)),
        exact: true,
        ipv6: false,
        subnets: vec!["10.9.0.0/24".parse().unwrap()],
        gateways: vec!["10.9.0.1".parse().unwrap()],
        ..NetworkRequest::new("pods".parse().unwrap())
    }
}

impl World {
    fn new() -> Self {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let scratch = base.join(format!("portolan-subnet-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&scratch);
        let kernel = FakeKernel::new(11);
        let engine = Engine::new("/root".to_owned(), SqliteStore::open(&scratch).unwrap(), kernel.clone());
        Self { kernel, engine, scratch, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Marsaglia's xorshift64: the same numbers in every run.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }

    fn add(&self, number: u64) -> Result<(), Error> {
        self.kernel.make_namespace(&path(number));
        let endpoint = EndpointRequest { transient: Some(network()), ..EndpointRequest::new("pods") };
        let request = AttachRequest {
            id: Some(id(number)),
            name: Some(format!("c{number}").parse().unwrap()),
            endpoints: vec![endpoint],
            ..AttachRequest::namespace(path(number))
        };
        self.engine.join(&request).map(drop)
    }

    fn del(&self, number: u64) -> Result<(), Error> {
        self.engine.leave(&id(number).to_string(), &[id(0xffff).to_string()])
    }

    /// Who has which address.
    fn held(&self) -> BTreeMap<IpAddr, String> {
        let mut held = BTreeMap::new();
        for info in self.engine.containers().unwrap() {
            for (endpoint, _) in &info.endpoints {
                let [address] = endpoint.addresses.as_slice() else { panic!("{endpoint:?}") };
                let other = held.insert(address.address.addr(), info.container.name.to_string());
                assert_eq!(other, None, "{} twice", address.address);
            }
        }
        held
    }

    /// Takes off all but `valid`.
    fn gc(&self, valid: &BTreeSet<u64>) {
        for info in self.engine.containers().unwrap() {
            if !valid.iter().any(|number| id(*number) == info.container.id) {
                self.engine.leave(&info.container.id.to_string(), &[id(0xffff).to_string()]).unwrap();
            }
        }
    }
}

#[test]
fn no_address_is_lost_or_had_twice() {
    let steps = std::env::var("PORTOLAN_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(STEPS);
    let mut world = World::new();
    // Whom the runtime believes to be there.
    let mut believed: BTreeSet<u64> = BTreeSet::new();
    let (mut deaths, mut full) = (0, 0);
    for step in 0..steps {
        let number = world.below(CONTAINERS);
        let dies_at = 1 + world.below(40) as usize;
        let (kind, dies) = (world.below(100), world.below(3) == 0);
        match kind {
            0..60 => {
                let done =
                    if dies { world.kernel.dying_at(dies_at, || world.add(number)) } else { Some(world.add(number)) };
                match done {
                    Some(Ok(())) => drop(believed.insert(number)),
                    Some(Err(Error::AlreadyConnected { .. })) => assert!(believed.contains(&number), "step {step}"),
                    Some(Err(Error::AddressesExhausted { .. })) => {
                        full += 1;
                        assert_eq!(world.held().len(), ROOM, "step {step}: full before it is");
                    }
                    Some(Err(error)) => panic!("step {step}: {error}"),
                    // A runtime whose plugin died does not know; GC or the next call is for that.
                    None => deaths += 1,
                }
            }
            60..85 => {
                let done =
                    if dies { world.kernel.dying_at(dies_at, || world.del(number)) } else { Some(world.del(number)) };
                match done {
                    Some(result) => {
                        result.unwrap();
                        believed.remove(&number);
                    }
                    None => {
                        deaths += 1;
                        // The runtime tries again, as it has to.
                        world.del(number).unwrap();
                        believed.remove(&number);
                    }
                }
            }
            85..95 => {
                // The machine lost the namespace, and no DEL comes.
                world.kernel.remove_namespace(&path(number));
                believed.remove(&number);
            }
            95..99 => world.gc(&believed),
            _ => {
                world.gc(&BTreeSet::new());
                believed.clear();
                assert!(world.held().is_empty());
                assert!(world.kernel.objects().is_empty(), "step {step}: {:?}", world.kernel.objects());
                // Nothing was lost: all of it can be had.
                if step % 10 == 0 {
                    for number in 0..ROOM as u64 {
                        world.add(number).unwrap_or_else(|error| panic!("step {step}, container {number}: {error}"));
                        believed.insert(number);
                    }
                    assert!(matches!(world.add(ROOM as u64), Err(Error::AddressesExhausted { .. })));
                }
            }
        }
        if step % 50 == 0 {
            world.held();
        }
    }
    eprintln!("{steps} steps, {deaths} deaths, {full} times full");
    assert!(deaths > steps / 100);
}
