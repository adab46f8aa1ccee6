//! One simulated host, and its verbs.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use portolan_engine::{
    AddressRequest, AttachRequest, Call, EndpointRequest, Engine, Error, NetworkRequest, OverlayNetwork, PoolNet,
    PoolRequest, RangeRequest, RemoteChanges, Repaired, Store as _, Tx as _,
};
use portolan_model::{ContainerKind, Family, Id, Mac, Mtu, Peer, PerFamily, PublishSpec, RemoteEndpoint};
use portolan_plan::Object;
use portolan_store::SqliteStore;

use crate::fake::broken::BrokenStore;
use crate::fake::{self, FakeKernel, network_request};
use crate::schedule::Verb;

/// The networks that a person makes.
pub(crate) const NETWORKS: [&str; 5] = ["alpha", "ptp", "small", "vault", "lan"];

/// One simulated host.
pub(crate) struct World {
    pub(crate) kernel: FakeKernel,
    pub(crate) engine: Engine<BrokenStore, FakeKernel>,
    /// Beside the store that fails.
    pub(crate) rows: SqliteStore,
    /// Somebody changed what is ours, and nobody has put it in order.
    pub(crate) edited: Cell<bool>,
    pub(crate) scratch: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

pub(crate) fn id(what: &str, number: u8) -> Id {
    let mut bytes = [number; 32];
    bytes.iter_mut().zip(what.bytes()).for_each(|(byte, letter)| *byte = letter);
    Id::from_bytes(bytes)
}

pub(crate) fn spec(port: u8) -> PublishSpec {
    let port = 8000 + u16::from(port % 6);
    let text = match port % 4 {
        0 => format!("{port}:80"),
        1 => format!("{port}:53/udp"),
        2 => format!("127.0.0.1:{port}:80"),
        _ => "7100-7102:7100-7102/tcp".to_owned(),
    };
    text.parse().unwrap()
}

/// A network that its keeper describes: of one subnet, or of sets of ranges.
pub(crate) fn transient(number: u8) -> EndpointRequest {
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

pub(crate) fn known_network(number: u8) -> &'static str {
    let all = NETWORKS.len() + 2;
    let named = NETWORKS.get(usize::from(number) % all).copied();
    named.unwrap_or(if usize::from(number) % all == NETWORKS.len() { "bridge" } else { "over" })
}

pub(crate) fn container(number: u8) -> String {
    format!("box{}", number % 5)
}

pub(crate) fn namespace(number: u8) -> PathBuf {
    format!("/ns/{}", container(number)).into()
}

/// The same once, however often it is asked for.
pub(crate) fn distinct(numbers: [u8; 2], of: u8) -> Vec<u8> {
    let mut numbers: Vec<u8> = numbers.iter().map(|number| number % of).collect();
    numbers.dedup();
    numbers
}

impl World {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn pool(&self, number: u8) -> Option<Id> {
        let pools = self.rows.read().unwrap().pools().unwrap();
        (!pools.is_empty()).then(|| pools[usize::from(number) % pools.len()].id)
    }

    pub(crate) fn run(&self, verb: Verb) -> Result<(), Error> {
        let engine = &self.engine;
        let call = |method| Call { method, body: "any" };
        let answered = |number| engine.answered(number);
        match verb {
            Verb::Create(n) => engine.create_network(&network_request(NETWORKS[usize::from(n) % 5])).map(drop),
            Verb::Remove(n) => engine.remove_network(known_network(n)).map(drop),
            Verb::Attach { who, on, port } => {
                let on = distinct(on, 7).into_iter().map(|n| EndpointRequest::new(known_network(n))).collect();
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
                engine.set_lease(
                    endpoint.id,
                    Family::V4,
                    granted.then(|| fake::lease(&format!("10.0.1.{}/24", 10 + who % 50))),
                )
            }
            Verb::ForwardNames(n) => engine.forward_names(known_network(n), &["10.0.0.53".parse().unwrap()]),
            Verb::Overlay(n) => engine.put_overlay(&overlay(n)).and_then(none_failed),
            Verb::DropOverlay => engine.drop_overlay(id("over", 0)),
            Verb::Remote(n) => engine.take_remote(&remote(n)).and_then(none_failed),
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
}

/// A network over several hosts, of which this one gives out two parts of eight.
fn overlay(number: u8) -> OverlayNetwork {
    let block = |n: u8| format!("10.66.0.{}/27", n % 8 * 32).parse().unwrap();
    let address = if number.is_multiple_of(5) { "192.0.2.2" } else { "192.0.2.1" };
    let mtu = if number.is_multiple_of(2) { 1500 } else { 1400 };
    let prefixes = PerFamily { v4: Some("10.66.0.0/24".parse().unwrap()), v6: None };
    let blocks = [block(number), block(number / 8)].into_iter().collect();
    fake::overlay::overlay((id("over", 0), "over"), prefixes, blocks, (address.parse().unwrap(), mtu))
}

/// Another host comes, goes, moves, or has or has not a block; and who is there.
fn remote(number: u8) -> RemoteChanges {
    let host = id("host", number % 3);
    let mut changes = RemoteChanges { revision: number.into(), ..RemoteChanges::default() };
    let peer = Peer {
        host,
        name: format!("host{}", number % 3).parse().unwrap(),
        underlay: PerFamily { v4: Some([192, 0, 2, 10 + number % 7].into()), v6: None },
        lan: PerFamily::default(),
        sealed: None,
        sealed_by_ipv6: false,
        translates: false,
        mac: Mac::from_bytes([2, 0, 0, 0, 1, number % 3]),
        mtu: Mtu::new(1300 + u32::from(number % 2) * 200).unwrap(),
    };
    let block = format!("10.66.0.{}/27", number / 3 % 8 * 32).parse().unwrap();
    let holder = (!number.is_multiple_of(4)).then_some(host);
    if number.is_multiple_of(2) {
        changes.peers.insert(host, (!number.is_multiple_of(10)).then_some(peer));
    }
    changes.blocks.insert((id("over", 0), block), holder);
    let endpoint = RemoteEndpoint {
        id: id("far", number % 4),
        network: id("over", 0),
        host,
        container: id("box", number % 4),
        name: format!("far{}", number % 4),
        aliases: Vec::new(),
        addresses: vec![[10, 66, 0, number].into()],
        mac: None,
        unwell: false,
    };
    changes.endpoints.insert(endpoint.id, (!number.is_multiple_of(3)).then_some(endpoint));
    changes
}

fn none_failed(failures: Vec<String>) -> Result<(), Error> {
    match failures.into_iter().next() {
        None => Ok(()),
        Some(failure) => Err(Error::Unsupported { what: failure, why: String::new(), hint: "" }),
    }
}

pub(crate) fn whole(repaired: Repaired) -> Result<(), Error> {
    match repaired.failures.first() {
        None => Ok(()),
        Some(failure) => Err(Error::Unsupported { what: failure.clone(), why: String::new(), hint: "" }),
    }
}
