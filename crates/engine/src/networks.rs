//! Networks: create, remove, list.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{
    Driver, Family, GatewayMode, Id, IfName, Invalid, Ipam, Mtu, Network, NetworkOptions, PerFamily, Phase, Pool,
    Subinterface, Subnet,
};
use portolan_plan::diff;

use crate::api::{NetworkInfo, NetworkRequest};
use crate::engine::{Engine, Unapplied, meta};
use crate::error::{Error, Result};
use crate::ipam::{self, Occupied};
use crate::kernel::Kernel;
use crate::sets::{check_claims, check_gateway};
use crate::store::{Durability, Store, Tx};

pub(crate) mod check;

use check::{check_connections, check_firewall, check_ipam, check_routed, check_subnet};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Makes a network.
    ///
    /// # Errors
    /// Any malformed part of the request, a taken name, an overlapping subnet, an exhausted pool, a device that is in
    /// the way; nothing has changed then.
    pub fn create_network(&self, request: &NetworkRequest) -> Result<Network> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        if request.driver == Driver::Overlay {
            let avoid = self.check_overlay(&tx, request)?;
            drop(tx);
            drop(guard);
            let id = self.in_cluster()?.create_network(request, &avoid).map_err(Error::Cluster)?;
            return self.find_network(&self.store.read()?, &id.to_string());
        }
        if let Some(taken) = tx.network_named(request.name.as_str())? {
            if taken.is_predefined() {
                return Err(Error::Predefined { name: taken.name.to_string(), verb: "created" });
            }
            return Err(Error::NameTaken { what: "network", name: request.name.to_string() });
        }
        if !request.driver.holds_endpoints() {
            return Err(Error::Unsupported {
                what: format!("network driver `{}`", request.driver),
                why: "cannot be used for a new network".to_owned(),
                hint: "use the predefined networks `host` and `none`",
            });
        }
        let network = self.plan_network(&tx, request, None)?;
        let (boot, before) = (self.boot()?, self.base(&tx)?);
        tx.put_network(&network)?;
        for id in network.subnets.iter().filter_map(|subnet| subnet.pool) {
            if let Some(pool) = tx.pool(id)? {
                tx.put_pool(&Pool { network: Some(network.id), ..pool })?;
            }
        }
        let mut after = self.base(&tx)?;
        after.extend(self.network_objects(&tx, &network)?);
        let table = self.table(&tx)?;
        tx.commit(Durability::Disk)?;

        let doing = || format!("create network `{}`", network.name);
        let steps = diff(&after, &before);
        let made = self.apply(&guard, &table, &steps, doing).and_then(|()| {
            // What the row says is not known then, nor is anything open yet: a row that is half-made is taken down by the next
            // command, with what the kernel has, and one that was settled all the same holds with it.
            self.settle_network(&guard, &network, &boot).map_err(|error| Unapplied { undone: false, error })
        });
        match made {
            Ok(()) => {
                if let Some(warning) = table.warning(&network) {
                    tracing::warn!("{warning}");
                }
                Ok(Network { phase: Phase::Settled, ..network })
            }
            Err(Unapplied { error, undone }) => {
                if undone && let Err(error) = self.forget_network(&guard, &network) {
                    tracing::warn!(%error, "the row of the network stays: the next command takes it down");
                }
                Err(error)
            }
        }
    }

    fn settle_network(&self, guard: &S::Guard<'_>, network: &Network, boot: &str) -> Result<()> {
        let tx = self.store.write(guard)?;
        tx.put_network(&Network { phase: Phase::Settled, ..network.clone() })?;
        self.remember_boot(&tx, boot)?;
        Ok(tx.commit(Durability::Disk)?)
    }

    /// Removes the row of a network that the kernel holds nothing of.
    fn forget_network(&self, guard: &S::Guard<'_>, network: &Network) -> Result<()> {
        let tx = self.store.write(guard)?;
        tx.delete_network(network.id)?;
        self.forget_idle_base(&tx)?;
        Ok(tx.commit(Durability::Disk)?)
    }

    /// Decides everything about a network but whether its name is free.
    pub(crate) fn plan_network(
        &self,
        tx: &S::Tx<'_>,
        request: &NetworkRequest,
        device: Option<&str>,
    ) -> Result<Network> {
        if request.driver == Driver::Overlay {
            return Err(Error::Unsupported {
                what: format!("network `{}` of driver `{}`", request.name, request.driver),
                why: "cannot be described by one host: all of them have it".to_owned(),
                hint: "make it with `portolan network create -d overlay`, and refer to it by its name",
            });
        }
        let options = NetworkOptions::from_pairs(request.driver, &request.options)?;
        let id = request.id.unwrap_or_else(|| self.random_id());
        if !request.exact && !request.ipv4 && !request.ipv6 {
            return Err(Invalid::new("network", request.name.as_str(), "has neither IPv4 nor IPv6")
                .hint("enable one of them")
                .into());
        }
        for family in Family::ALL {
            if options.gateway_mode.of(family) == &GatewayMode::Isolated && !request.internal {
                return Err(Invalid::new("gateway mode", "isolated", "is for internal networks")
                    .hint("add --internal")
                    .into());
            }
        }
        check_ipam(request, &options)?;
        if options.connections.is_some() {
            check_connections(&options, self.table(tx)?.driver)?;
        }
        if request.driver == Driver::Ptp {
            check_routed(&options)?;
            check_firewall(request.driver, self.table(tx)?.driver)?;
        }
        let (speaks, subnets) = match request.ipam {
            Ipam::Local => (PerFamily::default(), self.plan_subnets(tx, request, &options)?),
            Ipam::Dhcp | Ipam::None => (PerFamily { v4: request.ipv4, v6: request.ipv6 }, Vec::new()),
        };
        if let Some(subnet) = subnets.iter().find(|subnet| request.driver == Driver::Ptp && subnet.gateway.is_none()) {
            return Err(Invalid::new("subnet", subnet.net.to_string(), "has no gateway")
                .hint("give it one: containers of a ptp network reach everything by it")
                .into());
        }
        let (bridge, subinterface, mtu) = self.plan_device(tx, request, &options, device, id)?;
        let ipv6 = speaks.v6 || subnets.iter().any(|subnet| subnet.family() == Family::V6);
        if ipv6 && mtu < Mtu::IPV6_MIN {
            return Err(Invalid::new("MTU", mtu.to_string(), "is below IPv6's minimum of 1280")
                .hint("choose a larger --opt mtu=, or --ipv6=false")
                .into());
        }
        Ok(Network {
            id,
            name: request.name.clone(),
            driver: request.driver,
            internal: request.internal,
            ipam: request.ipam,
            speaks,
            subnets,
            options,
            dns: request.dns.clone(),
            raw_options: request.options.clone(),
            ipam_options: request.ipam_options.clone(),
            labels: request.labels.clone(),
            bridge,
            subinterface,
            overlay: None,
            routes: request.routes.clone(),
            names: request.names,
            names_at: request.names_at.clone(),
            names_port: request.names_port,
            transient: false,
            mtu,
            created: self.kernel.now(),
            phase: self.owner(),
        })
    }

    /// Decides a network's device on the host: a bridge that is free, or one or a parent that is there; and the MTU.
    fn plan_device(
        &self,
        tx: &S::Tx<'_>,
        request: &NetworkRequest,
        options: &NetworkOptions,
        device: Option<&str>,
        id: Id,
    ) -> Result<(IfName, Option<Subinterface>, Mtu)> {
        let kernel = |source| Error::Kernel { doing: format!("create network `{}`", request.name), source };
        let find = |name: &str| self.kernel.find_interface(name).map_err(kernel);
        let there =
            |what, name: &IfName| find(name.as_str())?.ok_or_else(|| Error::NotFound { what, name: name.to_string() });
        if let Some(vrf) = &options.vrf {
            there("VRF", vrf)?;
        }
        let path_mtu = || options.mtu.map_or_else(|| self.kernel.path_mtu().map_err(kernel), Ok);
        if request.driver == Driver::Ptp {
            return Ok(("none".parse().expect("a valid interface name"), None, path_mtu()?));
        }
        if request.driver != Driver::Bridge {
            let parent = match options.parent.clone() {
                Some(parent) => Some(parent),
                None => self.kernel.default_interface().map_err(kernel)?,
            };
            let Some(parent) = parent else {
                return Err(Invalid::new("network", request.name.as_str(), "has no parent interface")
                    .hint("say which interface of the host it is on: --opt parent=eth0")
                    .into());
            };
            let subinterface = if find(parent.as_str())?.is_some() {
                None
            } else {
                let missing = || Error::NotFound { what: "interface", name: parent.to_string() };
                Some(subinterface(&parent).ok_or_else(missing)?)
            };
            // Whoever made it takes it along.
            if let Some(other) = tx.network_of_device(parent.as_str())?.filter(|other| other.subinterface.is_some()) {
                return Err(Error::NameTaken { what: "VLAN interface of network", name: other.name.to_string() });
            }
            let below = subinterface.as_ref().map_or(&parent, |subinterface| &subinterface.parent);
            let found = there("interface", below)?;
            return Ok((parent, subinterface, options.mtu.unwrap_or(found.mtu)));
        }
        if !options.managed {
            let Some(bridge) = &options.bridge else {
                return Err(Invalid::new("network", request.name.as_str(), "has no bridge")
                    .hint("say which bridge it is: --opt bridge=br0")
                    .into());
            };
            let found = there("bridge", bridge)?;
            return Ok((bridge.clone(), None, options.mtu.unwrap_or(found.mtu)));
        }
        let is_taken = |name: &str| Ok::<_, Error>(find(name)?.is_some());
        let bridge: IfName = match (&options.bridge, device) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) if !is_taken(name)? => name.parse().expect("a valid interface name"),
            _ => format!("br-{}", id.short()).parse().expect("fifteen letters and digits"),
        };
        let holder = tx.network_of_device(bridge.as_str())?;
        if !holder.as_ref().is_some_and(Network::is_managed_bridge) && is_taken(bridge.as_str())? {
            return Err(Error::DeviceTaken { name: bridge.to_string() });
        }
        if let Some(taken) = holder {
            return Err(Error::NameTaken { what: "bridge device of network", name: taken.name.to_string() });
        }
        Ok((bridge, None, path_mtu()?))
    }

    /// Decides a network's subnets: those asked for, checked, and one from the pool for a family without.
    fn plan_subnets(&self, tx: &S::Tx<'_>, request: &NetworkRequest, options: &NetworkOptions) -> Result<Vec<Subnet>> {
        // What has a parent, or is on somebody else's bridge, shares a subnet with an interface of the host.
        let is_ours = matches!(request.driver, Driver::Bridge | Driver::Ptp) && options.managed;
        // Who decides by himself has looked, but for our other bridges.
        let networks = if request.exact { Vec::new() } else { tx.networks()? };
        let routes = if is_ours && !request.exact {
            let doing = || "list the host's routes".to_owned();
            self.kernel.routes().map_err(|source| Error::Kernel { doing: doing(), source })?
        } else {
            Vec::new()
        };
        if !request.sets.is_empty() {
            return self.plan_sets(tx, request, is_ours);
        }
        let interface_name = |index| self.kernel.interface_name(index);
        let pools = if request.exact { Vec::new() } else { tx.pools()? };
        let mut occupied = Occupied::new(&networks, &routes, &interface_name).with_pools(&pools);
        let mut subnets: Vec<Subnet> = Vec::new();
        for net in &request.subnets {
            let family = Family::of(net.addr());
            if !request.exact && !enabled(request, family) {
                return Err(Invalid::new(
                    "subnet",
                    net.to_string(),
                    format!("is {family}, which is off for this network"),
                )
                .into());
            }
            check_subnet(*net)?;
            if let Some(other) = occupied.collision(*net) {
                return Err(Error::Overlap { subnet: *net, other });
            }
            let pool = if request.pooled { Some(self.pool_for_network(tx, *net)?) } else { None };
            if is_ours && request.exact {
                check_claims(tx, *net, pool.as_ref())?;
            }
            occupied.add(*net, &request.name);
            subnets.push(Subnet {
                range: pool.as_ref().and_then(|pool| pool.subnet.range),
                pool: pool.map(|pool| pool.id),
                ..Subnet::new(*net, true)
            });
        }
        for family in Family::ALL {
            if !request.exact && enabled(request, family) && !subnets.iter().any(|subnet| subnet.family() == family) {
                let net = match family {
                    Family::V4 => IpNet::V4(occupied.free_v4(ipam::POOL_PREFIX)?),
                    Family::V6 => IpNet::V6(occupied.free_v6(&tx.meta(meta::ULA)?.unwrap_or_default(), &request.name)?),
                };
                occupied.add(net, &request.name);
                subnets.push(Subnet::new(net, false));
            }
        }
        for range in &request.ranges {
            let subnet = containing(&mut subnets, "IP range", range.to_string(), |net| range.is_in(net))?;
            if subnet.range.replace(*range).is_some() {
                return Err(Invalid::new(
                    "IP range",
                    range.to_string(),
                    format!("is the second one of subnet {}", subnet.net),
                )
                .into());
            }
        }
        for gateway in &request.gateways {
            let subnet = containing(&mut subnets, "gateway", gateway.to_string(), |net| net.contains(gateway))?;
            check_gateway(subnet.net, *gateway)?;
            if subnet.gateway.replace(*gateway).is_some() {
                return Err(Invalid::new(
                    "gateway",
                    gateway.to_string(),
                    format!("is the second one of subnet {}", subnet.net),
                )
                .into());
            }
        }
        for (name, address) in &request.aux {
            let subnet = containing(&mut subnets, "auxiliary address", format!("{name}={address}"), |net| {
                net.contains(address)
            })?;
            subnet.aux.insert(name.clone(), *address);
        }
        for subnet in &mut subnets {
            if subnet.gateway.is_none()
                && !request.exact
                && options.gateway_mode.of(subnet.family()) != &GatewayMode::Isolated
            {
                subnet.gateway = Some(default_gateway(subnet)?);
            }
            if let Some((name, _)) = subnet.aux.iter().find(|(_, address)| Some(**address) == subnet.gateway) {
                return Err(Invalid::new("auxiliary address", name.clone(), "is the gateway's address").into());
            }
        }
        Ok(subnets)
    }

    /// Removes a network. Endpoints whose namespace is gone do not keep it.
    ///
    /// # Errors
    /// [`Error::InUse`] names each live holder; [`Error::Predefined`], [`Error::NotFound`].
    pub fn remove_network(&self, name: &str) -> Result<Network> {
        let guard = self.begin()?;
        let tx = self.store.read()?;
        let network = self.find_network(&tx, name)?;
        if network.is_predefined() {
            return Err(Error::Predefined { name: network.name.to_string(), verb: "removed" });
        }
        drop(tx);
        self.reap_network(&guard, &network)?;
        let tx = self.store.read()?;
        if tx.network(network.id)?.is_none() {
            // It went with the last that was on it.
            return Ok(network);
        }
        let holders = self.holders(&tx, &network)?;
        drop(tx);
        if !holders.is_empty() {
            return Err(Error::InUse { name: network.name.to_string(), holders: holders.join(", ") });
        }
        if network.overlay.is_some() {
            drop(guard);
            self.in_cluster()?.remove_network(network.id).map_err(Error::Cluster)?;
            return Ok(network);
        }
        self.take_down_network(&guard, network.clone())?;
        Ok(network)
    }

    /// Who is on a network: containers with their processes.
    pub(crate) fn holders(&self, tx: &S::Tx<'_>, network: &Network) -> Result<Vec<String>> {
        let mut holders = Vec::new();
        for endpoint in tx.endpoints_on(network.id)? {
            let Some(container) = tx.container(endpoint.container)? else { continue };
            let process = container.process.or(container.sandbox.as_ref().and_then(|sandbox| sandbox.process));
            let process = process.map_or_else(String::new, |process| format!(" (process {process})"));
            holders.push(format!("container `{}`{process}", container.name));
        }
        Ok(holders)
    }

    /// Removes a network that nobody is on: its objects, then its row.
    pub(crate) fn take_down_network(&self, guard: &S::Guard<'_>, network: Network) -> Result<()> {
        let tx = self.store.write(guard)?;
        let mut before = self.base(&tx)?;
        before.extend(self.network_objects(&tx, &network)?);
        tx.put_network(&Network { phase: Phase::Leaving(self.kernel.this_process()), ..network.clone() })?;
        tx.commit(Durability::Disk)?;

        let tx = self.store.write(guard)?;
        tx.delete_network(network.id)?;
        let after = self.base(&tx)?;
        let table = self.table(&tx)?;
        if after.is_empty() {
            self.forget_base(&tx)?;
        }
        let failures = self.kernel.repair(&table, &diff(&after, &before));
        if let Some(source) = failures.into_iter().next() {
            return Err(Error::Kernel { doing: format!("remove network `{}`", network.name), source });
        }
        Ok(tx.commit(Durability::Disk)?)
    }

    /// Removes every network that a person made on this host and nobody is on. Those of a cluster are all hosts'.
    ///
    /// # Errors
    /// As for [`Engine::remove_network`], but for networks in use, which stay.
    pub fn prune_networks(&self) -> Result<Vec<Network>> {
        let mut removed = Vec::new();
        let is_ours = |network: &Network| !network.is_predefined() && network.overlay.is_none();
        for network in self.networks()?.into_iter().filter(is_ours) {
            match self.remove_network(&network.id.to_string()) {
                Ok(network) => removed.push(network),
                Err(Error::InUse { .. } | Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// All networks, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn networks(&self) -> Result<Vec<Network>> {
        self.ensure_readable()?;
        Ok(self.store.read()?.networks()?)
    }

    /// A network with who is on it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn network(&self, name: &str) -> Result<NetworkInfo> {
        self.ensure_readable()?;
        let tx = self.store.read()?;
        let network = self.find_network(&tx, name)?;
        let mut endpoints = Vec::new();
        for endpoint in tx.endpoints_on(network.id)? {
            if let Some(container) = tx.container(endpoint.container)? {
                endpoints.push((endpoint, container.name));
            }
        }
        Ok(NetworkInfo { network, endpoints })
    }

    /// Sees to it that the predefined networks are there to be read.
    pub(crate) fn ensure_readable(&self) -> Result<()> {
        if self.is_new(&self.store.read()?)? {
            let guard = self.store.lock()?;
            self.ensure_store(&guard)?;
        }
        Ok(())
    }
}

const fn enabled(request: &NetworkRequest, family: Family) -> bool {
    match family {
        Family::V4 => request.ipv4,
        Family::V6 => request.ipv6,
    }
}

/// The VLAN interface that a name like `eth0.50` asks for.
fn subinterface(name: &IfName) -> Option<Subinterface> {
    let (parent, vlan) = name.as_str().rsplit_once('.')?;
    let vlan = vlan.parse().ok().filter(|vlan| (1..=4094).contains(vlan))?;
    Some(Subinterface { parent: parent.parse().ok()?, vlan })
}

fn containing<'a>(
    subnets: &'a mut [Subnet],
    what: &'static str,
    value: String,
    fits: impl Fn(&IpNet) -> bool,
) -> Result<&'a mut Subnet> {
    let all: Vec<String> = subnets.iter().map(|subnet| subnet.net.to_string()).collect();
    subnets.iter_mut().find(|subnet| fits(&subnet.net)).ok_or_else(|| {
        Invalid::new(what, value, "is in none of the network's subnets")
            .hint(format!("the subnets are {}", all.join(", ")))
            .into()
    })
}

/// The first address of the subnet that is not set aside.
fn default_gateway(subnet: &Subnet) -> Result<IpAddr> {
    let (first, last) = ipam::usable(subnet.net);
    let mut hosts = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            Box::new((u32::from(a)..=u32::from(b)).map(|ip| IpAddr::V4(ip.into()))) as Box<dyn Iterator<Item = IpAddr>>
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => Box::new((u128::from(a)..=u128::from(b)).map(|ip| IpAddr::V6(ip.into()))),
        _ => unreachable!("both ends are of one family"),
    };
    hosts
        .find(|ip| !subnet.aux.values().any(|taken| taken == ip))
        .ok_or_else(|| Invalid::new("subnet", subnet.net.to_string(), "has no address left for a gateway").into())
}
