//! Who carries the rules out: decided with the first network, kept until the last is gone, whatever happens between.

#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use fake::FakeKernel;
use portolan_engine::{Engine, NetworkRequest};
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
