//! Packets of the encrypted link, which are tracked where the host has a firewall of its own.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fake::FakeKernel;
use portolan_engine::{AttachRequest, EndpointRequest, Engine};
use portolan_model::{Id, PerFamily};
use portolan_plan::{Object, Set};
use portolan_store::SqliteStore;

struct World {
    kernel: FakeKernel,
    dir: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl World {
    /// A host with a network over several hosts, and nobody on it.
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("portolan-engine-link-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let world = Self { kernel: FakeKernel::new(7), dir };
        let prefixes = PerFamily { v4: Some("10.99.0.0/24".parse().unwrap()), v6: None };
        let blocks = BTreeSet::from(["10.99.0.0/26".parse().unwrap()]);
        let of = (Id::from_bytes([7; 32]), "web");
        let wanted = fake::overlay::overlay(of, prefixes, blocks, ("192.0.2.1".parse().unwrap(), 1500));
        world.engine().put_overlay(&wanted).unwrap();
        world
    }

    /// A process of its own.
    fn engine(&self) -> Engine<SqliteStore, FakeKernel> {
        Engine::new("/root".to_owned(), SqliteStore::open(&self.dir).unwrap(), self.kernel.clone())
    }

    fn attach(&self, name: &str) {
        let path = format!("/ns/{name}");
        self.kernel.make_namespace(Path::new(&path));
        let mut request = AttachRequest::namespace(&path);
        request.name = Some(name.parse().unwrap());
        request.endpoints.push(EndpointRequest::new("web"));
        self.engine().attach(&request).unwrap();
    }

    fn set_ports(&self, ports: &[u16]) {
        assert!(self.engine().set_link_ports(&ports.iter().copied().collect()).unwrap().failures.is_empty());
    }

    /// The ports whose packets are not tracked, of tunnels and of the link.
    #[track_caller]
    fn has(&self, untracked: &[u16]) {
        let objects = self.kernel.objects();
        let of_set = objects.iter().filter_map(|(_, object)| match object {
            Object::Element(element) if element.set == Set::Untracked => Some(element.key[0].to_string()),
            _ => None,
        });
        let found: BTreeSet<String> = of_set.collect();
        assert_eq!(found, untracked.iter().map(u16::to_string).collect());
        assert_eq!(self.engine().verify().unwrap(), []);
    }
}

#[test]
fn packets_of_the_link_are_tracked_while_the_host_has_a_firewall() {
    let world = World::new("firewall");
    world.set_ports(&[51820]);
    world.has(&[]);
    world.attach("one");
    world.has(&[4789, 51820]);
    world.set_ports(&[51820, 51821]);
    world.has(&[4789, 51820, 51821]);
    world.set_ports(&[51821]);
    world.has(&[4789, 51821]);
    world.kernel.set_firewall(true);
    world.has(&[4789, 51821]);
    assert_eq!(world.engine().look_for_firewall().unwrap().steps.len(), 1);
    world.has(&[4789]);
    assert_eq!(world.engine().look_for_firewall().unwrap().steps, []);
    world.kernel.set_firewall(false);
    // Whoever keeps the link looks as well.
    world.set_ports(&[51821]);
    world.has(&[4789, 51821]);
    world.engine().detach("one").unwrap();
    world.has(&[]);
    world.attach("two");
    world.has(&[4789, 51821]);
    world.set_ports(&[]);
    world.has(&[4789]);
}

#[test]
fn what_puts_rules_back_looks_for_a_firewall_first() {
    type Repair = fn(&Engine<SqliteStore, FakeKernel>);
    let repairs: [(&str, Repair); 2] = [
        ("reconcile", |engine| drop(engine.reconcile().unwrap())),
        ("rules", |engine| drop(engine.repair_rules().unwrap())),
    ];
    for (name, repair) in repairs {
        let world = World::new(name);
        world.set_ports(&[51820]);
        world.attach("one");
        let rules: Vec<Object> =
            world.kernel.objects().into_iter().filter(|o| matches!(o, Object::Ruleset(_))).collect();
        // As whoever loads rules of his own flushes all others'.
        world.kernel.set_firewall(true);
        rules.iter().for_each(|object| world.kernel.remove(object));
        repair(&world.engine());
        world.has(&[4789]);
        world.kernel.set_firewall(false);
        repair(&world.engine());
        world.has(&[4789, 51820]);
    }
}

#[test]
fn what_was_seen_in_an_earlier_boot_says_nothing() {
    let world = World::new("boot");
    world.set_ports(&[51820]);
    world.kernel.reboot();
    world.kernel.set_firewall(true);
    world.attach("one");
    world.has(&[4789]);
    world.kernel.set_firewall(false);
    world.set_ports(&[51820]);
    world.has(&[4789, 51820]);
}
