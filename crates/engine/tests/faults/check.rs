//! What must hold of a host, whatever was done to it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portolan_engine::{Kernel as _, Store as _, Tx as _};
use portolan_model::{Family, Id, Sandbox};
use portolan_plan::{Object, Step, possible};

use crate::world::World;

impl World {
    /// Everything that somebody asked for and that lives, in words. Whoever died may be found at any time.
    pub(crate) fn asked_for(&self) -> BTreeSet<String> {
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
        let remote = self.engine.remote().unwrap();
        said.extend(remote.peers.values().map(|peer| format!("peer {peer:?}")));
        said.extend(remote.blocks.iter().map(|block| format!("block {block:?}")));
        said.extend(remote.endpoints.values().map(|endpoint| format!("far {endpoint:?}")));
        for (pool, taken) in self.engine.pools().unwrap() {
            said.insert(format!("pool {} {taken}", pool.subnet.net));
        }
        said
    }

    /// How the kernel differs from the rows, but for what it lost with a namespace.
    pub(crate) fn differences(&self) -> Vec<String> {
        let alive = |sandbox: &Sandbox| self.kernel.sandbox_alive(sandbox);
        possible(self.engine.verify().unwrap(), alive).iter().map(ToString::to_string).collect()
    }

    /// What the kernel has and no row knows of, half-made ones included.
    pub(crate) fn strays(&self) -> Vec<String> {
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
    pub(crate) fn check_rows(&self) {
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
    pub(crate) fn check(&self, what: &str) {
        self.check_rows();
        let tx = self.rows.read().unwrap();
        assert_eq!(tx.transitions(10).unwrap(), [], "{what}: half-way");
        drop(tx);
        if !self.edited.get() {
            let differences = self.differences();
            assert!(differences.is_empty(), "{what}: {differences:#?}");
        }
    }
}
