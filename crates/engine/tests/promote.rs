//! A bridge on its way to be a network of all hosts: whoever dies at which step, rows and kernel are the one or the other.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fake::FakeKernel;
use ipnet::IpNet;
use portolan_engine::{
    AttachRequest, Cluster, ClusterError, EndpointRequest, Engine, NetworkRequest, OverlayNetwork, Wanting,
};
use portolan_model::{Driver, Id, PerFamily};
use portolan_store::SqliteStore;

/// What was asked of the cluster: the network, and what was taken along.
type Asked = Arc<Mutex<Option<(Id, BTreeSet<IpNet>)>>>;

/// One that takes note, or refuses.
#[derive(Debug)]
struct Notes {
    asked: Asked,
    refuses: bool,
}

impl Cluster for Notes {
    fn create_network(&self, _: &NetworkRequest, _: &[IpNet]) -> Result<Id, ClusterError> {
        unreachable!("nobody creates one")
    }

    fn remove_network(&self, _: Id) -> Result<(), ClusterError> {
        unreachable!("nobody removes one")
    }

    fn block_of(&self, subnet: IpNet, address: IpAddr) -> IpNet {
        let length = if subnet.addr().is_ipv4() { 28 } else { 112 };
        IpNet::new(address, length).unwrap().trunc()
    }

    fn promote_network(&self, id: Id, _: &NetworkRequest, blocks: &BTreeSet<IpNet>) -> Result<(), ClusterError> {
        if self.refuses {
            return Err(ClusterError { reason: "no".to_owned(), hint: None });
        }
        *self.asked.lock().unwrap() = Some((id, blocks.clone()));
        Ok(())
    }

    fn claim(&self, _: Id, _: Wanting) -> Result<(), ClusterError> {
        Err(ClusterError { reason: "nothing to claim".to_owned(), hint: None })
    }
}

struct World {
    kernel: FakeKernel,
    dir: PathBuf,
    asked: Asked,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl World {
    fn new(name: &str) -> Self {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let dir = base.join(format!("portolan-engine-promote-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let world = Self { kernel: FakeKernel::new(7), dir, asked: Asked::default() };
        let request = NetworkRequest {
            subnets: vec!["10.99.0.0/24".parse().unwrap(), "fd99::/64".parse().unwrap()],
            ..NetworkRequest::new("web".parse().unwrap())
        };
        world.engine(false).create_network(&request).unwrap();
        world.attach("one").unwrap();
        world.attach("two").unwrap();
        world
    }

    /// A process of its own.
    fn engine(&self, refuses: bool) -> Engine<SqliteStore, FakeKernel> {
        let engine = Engine::new("/root".to_owned(), SqliteStore::open(&self.dir).unwrap(), self.kernel.clone());
        engine.with_cluster(Box::new(Notes { asked: self.asked.clone(), refuses }))
    }

    fn attach(&self, name: &str) -> Result<(), String> {
        let path = format!("/ns/{name}");
        self.kernel.make_namespace(Path::new(&path));
        let mut request = AttachRequest::namespace(&path);
        request.name = Some(name.parse().unwrap());
        request.endpoints.push(EndpointRequest::new("web"));
        self.engine(false).attach(&request).map(drop).map_err(|error| error.to_string())
    }

    fn driver(&self) -> Driver {
        self.engine(false).network("web").unwrap().network.driver
    }

    /// The network as the daemon sees it in etcd.
    fn seen(&self) -> OverlayNetwork {
        let (id, blocks) = self.asked.lock().unwrap().clone().unwrap();
        let prefixes = PerFamily { v4: Some("10.99.0.0/24".parse().unwrap()), v6: Some("fd99::/64".parse().unwrap()) };
        fake::overlay::overlay((id, "web"), prefixes, blocks, ("192.0.2.1".parse().unwrap(), 1500))
    }

    /// Rows and kernel agree, and containers have the addresses that they had.
    fn is_whole(&self, when: &str) {
        let engine = self.engine(false);
        engine.reconcile().unwrap();
        assert_eq!(engine.verify().unwrap(), [], "{when}");
        for (name, address) in [("one", "10.99.0.2"), ("two", "10.99.0.3")] {
            let info = engine.container(name).unwrap();
            assert_eq!(info.endpoints[0].0.addresses[0].address.addr().to_string(), address, "{when}");
        }
    }
}

#[test]
fn whoever_dies_at_any_step() {
    for step in 1.. {
        let world = World::new("dies");
        world.engine(false).promote_network("web").unwrap();
        assert_eq!(world.driver(), Driver::Bridge, "until the daemon has seen it");
        let wanted = world.seen();
        let done = world.kernel.dying_at(step, || world.engine(false).put_overlay(&wanted).unwrap());
        world.is_whole(&format!("after a death at step {step}"));
        world.engine(false).put_overlay(&wanted).unwrap();
        assert_eq!(world.driver(), Driver::Overlay);
        world.is_whole("in the end");
        if done.is_some() {
            assert!(step > 20, "{step} steps are too few to be all");
            return;
        }
    }
}

#[test]
fn no_address_is_given_out_that_is_not_taken_along() {
    let world = World::new("blocks");
    world.engine(false).promote_network("web").unwrap();
    let (_, blocks) = world.asked.lock().unwrap().clone().unwrap();
    let all: Vec<String> = blocks.iter().map(ToString::to_string).collect();
    assert_eq!(all, ["10.99.0.0/28", "fd99::/112"]);
    // Of sixteen, the network's own and the gateway's are none, and two are given out.
    for number in 0..12 {
        world.attach(&format!("more{number}")).unwrap();
    }
    let refused = world.attach("late").unwrap_err();
    assert!(refused.contains("in the blocks that it takes along"), "{refused}");
    world.engine(false).put_overlay(&world.seen()).unwrap();
    assert_eq!(world.driver(), Driver::Overlay);
    world.is_whole("full");
}

#[test]
fn what_the_cluster_refuses_is_as_it_was() {
    let world = World::new("refused");
    let before = world.engine(false).network("web").unwrap().network;
    world.engine(true).promote_network("web").unwrap_err();
    assert_eq!(world.engine(false).network("web").unwrap().network, before);
    // A network that somebody put there under its id is not taken for it.
    *world.asked.lock().unwrap() = Some((before.id, BTreeSet::new()));
    let refused = world.engine(false).put_overlay(&world.seen()).unwrap_err();
    assert_eq!(refused.to_string(), "network `web` exists already");
    assert_eq!(world.engine(false).network("web").unwrap().network, before);
    for number in 0..30 {
        world.attach(&format!("more{number}")).unwrap();
    }
    world.is_whole("refused");
}

#[test]
fn addresses_of_no_block_keep_it_a_bridge() {
    let world = World::new("uncovered");
    world.engine(false).promote_network("web").unwrap();
    let mut wanted = world.seen();
    wanted.blocks.retain(|block| block.addr().is_ipv6());
    let refused = world.engine(false).put_overlay(&wanted).unwrap_err().to_string();
    assert!(refused.contains("10.99.0.2") && refused.contains("no block of this host"), "{refused}");
    assert_eq!(world.driver(), Driver::Bridge);
    world.is_whole("uncovered");
}
