//! Who carries the rules out: decided with the first network, kept until the last is gone, whatever happens between.

#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use fake::FakeKernel;
use portolan_engine::{AttachRequest, EndpointRequest, Engine, NetworkRequest, RulesOf};
use portolan_model::FirewallDriver;
use portolan_store::SqliteStore;

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("portolan-firewall-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn engine(&self, kernel: &FakeKernel, wish: Option<FirewallDriver>) -> Engine<SqliteStore, FakeKernel> {
        Engine::new("/root".to_owned(), SqliteStore::open(&self.0).unwrap(), kernel.clone()).with_firewall(wish)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_driver_outlives_a_reboot_and_goes_with_the_last_network() {
    let (scratch, kernel) = (Scratch::new(), FakeKernel::new(7));
    let request = NetworkRequest::new("web".parse().unwrap());
    let driver = |wish| scratch.engine(&kernel, wish).firewall().unwrap().driver;
    assert_eq!(driver(None), FirewallDriver::Nftables);
    assert_eq!(driver(Some(FirewallDriver::None)), FirewallDriver::None, "nothing is decided");
    scratch.engine(&kernel, Some(FirewallDriver::Iptables)).create_network(&request).unwrap();
    assert_eq!(driver(None), FirewallDriver::Iptables);
    assert_eq!(driver(Some(FirewallDriver::Nftables)), FirewallDriver::Iptables);
    kernel.reboot();
    let engine = scratch.engine(&kernel, Some(FirewallDriver::Nftables));
    engine.reconcile().unwrap();
    assert_eq!(driver(None), FirewallDriver::Iptables);
    engine.remove_network("web").unwrap();
    assert_eq!(driver(None), FirewallDriver::Nftables);
    // What is wished for counts again.
    engine.create_network(&request).unwrap();
    kernel.reboot();
    scratch.engine(&kernel, Some(FirewallDriver::None)).reconcile().unwrap();
    assert_eq!(driver(Some(FirewallDriver::None)), FirewallDriver::Nftables);
}

#[test]
fn the_rules_of_a_container_are_not_those_of_a_network_whose_id_begins_like_its_name() {
    let (scratch, kernel) = (Scratch::new(), FakeKernel::new(7));
    let engine = scratch.engine(&kernel, None);
    let mut networks = (0..).map(|number| format!("net{number}"));
    let (network, first) = loop {
        let name = networks.next().unwrap();
        let network = engine.create_network(&NetworkRequest::new(name.parse().unwrap())).unwrap();
        let first = network.id.to_string().remove(0);
        if first.is_ascii_alphabetic() {
            break (network, first.to_string());
        }
    };
    let of = |name: &str| -> Vec<String> {
        let rules = engine.rules(&RulesOf::Named(name.to_owned())).unwrap();
        let mut owners: Vec<String> = rules.elements.into_iter().map(|element| element.owner).collect();
        owners.dedup();
        owners
    };
    assert!(of(&first).contains(&format!("network {}", network.name)), "{:?}", of(&first));
    kernel.make_namespace("/ns/one".as_ref());
    let request = AttachRequest {
        name: Some(first.parse().unwrap()),
        endpoints: vec![EndpointRequest::new(network.name.to_string())],
        ..AttachRequest::namespace("/ns/one")
    };
    engine.attach(&request).unwrap();
    let owners = of(&first);
    assert!(!owners.is_empty() && owners.iter().all(|owner| owner.starts_with("container ")), "{owners:?}");
}
