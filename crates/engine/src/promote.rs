//! A network of this host that becomes one of all hosts of the cluster, with its containers on it.
//!
//! Its row says first that other hosts give out its addresses as well: only those blocks are this host's to give that addresses in
//! use are of. Then the cluster is asked for the network, under its id, and for those blocks, in one go. Whoever sees that it is
//! one of the cluster and finds a row that says so makes it one here ([`Engine::put_overlay`]). So it is the one or the other,
//! whoever dies at which moment, and no address is given out twice.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{ContainerKind, Driver, Family, Id, IfName, Network, NetworkOptions, Subnet};
use portolan_plan::{HostRoute, Object, Set, Step, Way, diff};

use crate::api::NetworkRequest;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::networks::check::{check_firewall, check_routed};
use crate::overlay::{begin_ranges, first_of, with_blocks};
use crate::refer;
use crate::store::{Durability, Store, Tx};

/// Whether a row is on its way.
pub(crate) fn is_begun(network: &Network) -> bool {
    network.driver == Driver::Bridge && network.subnets.iter().any(|subnet| subnet.shared)
}

fn refuse<T>(network: &Network, why: impl Into<String>, hint: &'static str) -> Result<T> {
    Err(Error::Unsupported { what: format!("network `{}`", network.name), why: why.into(), hint })
}

/// Refuses what a network over several hosts cannot be.
fn check_shape(network: &Network) -> Result<()> {
    const ANEW: &str = "create a network of driver overlay, and connect its containers to that";
    if network.is_predefined() || network.transient || network.driver != Driver::Bridge || !network.options.managed {
        let why = "cannot become one of the cluster: only a bridge that `portolan network create` made can";
        return refuse(network, why, ANEW);
    }
    let has = [
        (!network.ipam.is_local(), "no addresses that Portolan gives out"),
        (!network.dns.is_empty(), "name servers of its own"),
        (!network.routes.is_empty(), "routes of its own"),
        (network.names_port.is_some() || !network.names, "names on another port, or none"),
        (network.subinterface.is_some(), "a VLAN interface"),
    ];
    if let Some((_, what)) = has.into_iter().find(|(has, _)| *has) {
        return refuse(network, format!("has {what}, which networks over several hosts have not"), ANEW);
    }
    for family in Family::ALL {
        let mut nets: Vec<IpNet> = network.subnets_of(family).map(|subnet| subnet.net).collect();
        nets.dedup();
        if nets.len() > 1 {
            return refuse(network, format!("has several subnets of {family}; the cluster knows one of each"), ANEW);
        }
    }
    for subnet in &network.subnets {
        if subnet.pool.is_some() {
            return refuse(network, "has a subnet that Docker has, which gives out its addresses", ANEW);
        }
        if (subnet.range.is_some() && !subnet.shared) || !subnet.aux.is_empty() {
            return refuse(
                network,
                format!("gives out a part of {} alone, by --ip-range or --aux-address", subnet.net),
                ANEW,
            );
        }
        let first = first_of(subnet.net);
        if subnet.gateway != Some(first) {
            let why = match subnet.gateway {
                Some(gateway) => format!("has gateway {gateway}, where each host of the cluster has {first}"),
                None => format!("has no gateway, where each host of the cluster has {first}"),
            };
            return refuse(network, why, ANEW);
        }
    }
    let options = NetworkOptions::from_pairs(Driver::Overlay, &network.raw_options)?;
    check_routed(&options)
}

/// The subnets that `network` has, each once, as `shape` has them.
fn bases(network: &Network, shape: impl Fn(&Subnet) -> Subnet) -> Vec<Subnet> {
    network.sets().filter_map(|set| set.first()).map(shape).collect()
}

/// `steps` in an order in which packets find a way at each moment:
///
/// 1. Rules of what is to be. That a packet came from where its source is routed is not asked until that is settled; of whom an
///    address is, still is.
/// 2. The host routes to each container by its own host end, which is still a port, and sends out there as well. From here on the
///    kernel does not ask where a packet came from either.
/// 3. Containers send to their gateway what they sent to each other, and it leads there by the bridge. Were it to lead back by the
///    bridge, the host would tell them to send to each other as before (ICMP redirect), and Linux heeds that where
///    `net.ipv4.conf.all.accept_redirects` says so, whatever the interface's own setting is (`IN_DEV_RX_REDIRECTS`).
/// 4. Host ends leave the bridge.
/// 5. The rest of the rules, and last what the bridge was.
fn in_order(mut steps: Vec<Step>, tunnels: &IfName) -> Vec<Step> {
    let is_check = |object: &Object| matches!(object, Object::Element(element) if element.set == Set::Checked);
    steps.sort_by_key(|step| match (step, step.object()) {
        (Step::Delete(_), object) if is_check(object) => 0,
        (Step::Delete(_), _) => 6,
        (_, object) if is_check(object) => 5,
        (_, Object::Setting(_) | Object::Ruleset(_) | Object::Element(_)) => 1,
        (_, Object::HostRoute(HostRoute { way: Way::HostEnd { .. }, .. })) => 2,
        (_, Object::Neighbour(neighbour)) if neighbour.device != *tunnels => 2,
        (
            _,
            Object::Interface(_)
            | Object::DefaultRoute(_)
            | Object::Route(_)
            | Object::SandboxSetting(_)
            | Object::Child(_),
        ) => 3,
        (_, Object::Shortcut(_) | Object::Inlet(_)) => 5,
        _ => 4,
    });
    steps
}

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Makes a bridge network of this host one that all hosts of the cluster have. Who is on it stays, with addresses and
    /// connections.
    ///
    /// # Errors
    /// What networks over several hosts cannot be, or the cluster's refusal: it is as it was then.
    pub fn promote_network(&self, name: &str) -> Result<Network> {
        let cluster = self.in_cluster()?;
        let (network, blocks) = self.begin_promotion(name, |subnet, address| cluster.block_of(subnet, address))?;
        let request = NetworkRequest {
            driver: Driver::Overlay,
            subnets: bases(&network, Subnet::clone).into_iter().map(|subnet| subnet.net).collect(),
            internal: network.internal,
            ipv4: network.has(Family::V4),
            ipv6: network.has(Family::V6),
            options: network.raw_options.clone(),
            labels: network.labels.clone(),
            ..NetworkRequest::new(network.name.clone())
        };
        match cluster.promote_network(network.id, &request, &blocks) {
            Ok(()) => self.find_network(&self.store.read()?, &network.id.to_string()),
            Err(error) => {
                self.end_promotion(network.id)?;
                Err(Error::Cluster(error))
            }
        }
    }

    /// Has this host give out no other addresses of a network than those of blocks that some are in use of; which these are.
    fn begin_promotion(
        &self,
        name: &str,
        block_of: impl Fn(IpNet, IpAddr) -> IpNet,
    ) -> Result<(Network, BTreeSet<IpNet>)> {
        let guard = self.begin()?;
        let network = self.find_network(&self.store.read()?, name)?;
        if network.overlay.is_some() {
            return refuse(&network, "is one of the cluster already", "`portolan network ls` lists the networks");
        }
        self.reap_network(&guard, &network)?;
        let tx = self.store.write(&guard)?;
        check_shape(&network)?;
        check_firewall(Driver::Overlay, self.table(&tx)?.driver)?;
        self.check_members(&tx, &network)?;
        if refer::read(&tx)?.values().any(|id| *id == network.id) {
            let why = "is one of Docker's as well, which knows it as one of this host";
            return refuse(&network, why, "remove it from Docker first: docker network rm");
        }
        let mut blocks = BTreeSet::new();
        for (address, _) in tx.leases(network.id)? {
            let subnet = network.subnets.iter().find(|subnet| subnet.net.contains(&address));
            blocks.extend(subnet.map(|subnet| block_of(subnet.net, address)));
        }
        let bases = bases(&network, |subnet| Subnet { shared: true, range: None, fallback: false, ..subnet.clone() });
        let begun = Network { subnets: with_blocks(bases.into_iter(), &blocks), ..network.clone() };
        tx.put_network(&begun)?;
        begin_ranges(&tx, &network, &begun)?;
        tx.commit(Durability::Disk)?;
        Ok((begun, blocks))
    }

    /// Takes that back, if the network has not become one of the cluster.
    fn end_promotion(&self, id: Id) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let Some(begun) = tx.network(id)?.filter(is_begun) else { return Ok(()) };
        let subnets = bases(&begun, |subnet| Subnet { shared: false, range: None, fallback: false, ..subnet.clone() });
        let network = Network { subnets, ..begun.clone() };
        tx.put_network(&network)?;
        begin_ranges(&tx, &begun, &network)?;
        Ok(tx.commit(Durability::Disk)?)
    }

    /// Refuses containers of which we do not see the inside.
    fn check_members(&self, tx: &S::Tx<'_>, network: &Network) -> Result<()> {
        for endpoint in tx.endpoints_on(network.id)? {
            let Some(container) = tx.container(endpoint.container)? else { continue };
            if container.kind == ContainerKind::Handed {
                let why = format!("has container `{}` on it, whose routes are Docker's", container.called());
                return refuse(network, why, "disconnect it first");
            }
        }
        Ok(())
    }

    /// Makes `begun`, a bridge with those who are on it, the network over several hosts that `network` is.
    ///
    /// # Errors
    /// [`Error::NameTaken`] when nobody has begun it here; what has come in its way since. Nothing has changed then.
    pub(crate) fn convert(&self, guard: &S::Guard<'_>, begun: &Network, network: &Network) -> Result<Vec<String>> {
        if !is_begun(begun) {
            return Err(Error::NameTaken { what: "network", name: begun.name.to_string() });
        }
        let tx = self.store.write(guard)?;
        self.check_members(&tx, begun)?;
        let is_given = |address: &IpAddr| {
            let ranges = network.subnets.iter().filter_map(|subnet| subnet.range);
            ranges.into_iter().any(|range| range.contains(*address))
        };
        if let Some((address, _)) = tx.leases(begun.id)?.into_iter().find(|(address, _)| !is_given(address)) {
            return refuse(
                begun,
                format!("has address {address} in use, which is in no block of this host"),
                "`portolan network promote` goes on, once its container is disconnected or the block is free",
            );
        }
        let mut before = self.base(&tx)?;
        before.extend(self.with_containers(&tx, begun)?);
        tx.put_network(network)?;
        begin_ranges(&tx, begun, network)?;
        // The others are told of those who are on it.
        let members: BTreeSet<Id> =
            tx.endpoints_on(network.id)?.into_iter().map(|endpoint| endpoint.container).collect();
        for container in &members {
            if let Some(container) = tx.container(*container)? {
                tx.put_container(&container)?;
            }
        }
        let mut after = self.base(&tx)?;
        if self.is_materialised(&tx, network)? {
            after.extend(self.with_containers(&tx, network)?);
        }
        let table = self.table(&tx)?;
        self.forget_idle_base(&tx)?;
        let steps = in_order(diff(&after, &before), &network.bridge);
        self.in_doubt(guard, || {
            tx.commit(Durability::Disk)?;
            Ok(self.kernel.repair(&table, &steps))
        })
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::Sandbox;
    use portolan_plan::{DefaultRoute, Neighbour};

    use super::*;

    #[test]
    fn the_host_leads_by_host_ends_before_containers_send_to_it() {
        let [bridge, host_end, tunnels] = ["br0", "pv1", "vx0"].map(|name| name.parse::<IfName>().unwrap());
        let address = IpAddr::from([10, 0, 0, 2]);
        let mac = portolan_model::Mac::from_bytes([2, 0, 0, 0, 0, 1]);
        let neighbour = |device: &IfName| Object::Neighbour(Neighbour { device: device.clone(), address, mac });
        let route = |device: &IfName| {
            let way = Way::HostEnd { device: device.clone(), from: [10, 0, 0, 1].into() };
            Object::HostRoute(HostRoute { destination: address.into(), way })
        };
        let sandbox = Sandbox { device: 4, inode: 1, path: "/run/netns/1".into(), process: None };
        let inside = Object::DefaultRoute(DefaultRoute {
            sandbox,
            gateway: [10, 0, 0, 1].into(),
            interface: "eth0".parse().unwrap(),
            metric: None,
        });
        let wanted = [
            Step::Create(neighbour(&host_end)),
            Step::Create(route(&host_end)),
            Step::Create(inside),
            Step::Create(neighbour(&tunnels)),
            Step::Delete(neighbour(&bridge)),
        ];
        let mut steps = wanted.to_vec();
        steps.rotate_left(2);
        assert_eq!(in_order(steps, &tunnels), wanted);
    }
}
