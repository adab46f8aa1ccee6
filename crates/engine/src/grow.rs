//! More endpoints and ports for a container: decided in rows, then made in the kernel, all or nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portolan_model::{
    Bandwidth, ContainerKind, Driver, Endpoint, EndpointAddress, ExposedPort, Family, HostPorts, Id, IfName, Invalid,
    Mac, Network, Phase, Publication, PublishSpec, Tuning,
};
use portolan_plan::{ContainerView, Objects, diff, generated_mac, host_end_name, in_order_of};

use crate::api::{AttachRequest, ContainerInfo, EndpointRequest, NetworkRequest};
use crate::cluster::Wanting;
use crate::engine::{Engine, Unapplied, meta};
use crate::error::{Error, Result};
use crate::ipam::{self, Space};
use crate::kernel::Kernel;
use crate::overlay;
use crate::promote;
use crate::sets;
use crate::store::{Durability, PublicationRow, Store, Tx};

/// A Linux bridge has at most this many ports (`BR_MAX_PORTS`, net/bridge/br_private.h: 10 bits, port 0 unused).
const BRIDGE_PORTS: usize = 1023;

/// What a container is to get.
#[derive(Default)]
pub(crate) struct Addition<'a> {
    pub(crate) endpoints: &'a [EndpointRequest],
    pub(crate) publish: &'a [PublishSpec],
    /// Ports that are published on any free one of the host.
    pub(crate) exposed: Option<&'a [ExposedPort]>,
}

/// What the row of a network becomes when an endpoint joins it.
enum Row {
    Stays,
    Comes,
    /// It was this one.
    Changes(Box<Network>),
}

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Gives `view`'s container more endpoints and ports, in rows and kernel. One that is new, whose row `tx` has added,
    /// goes again when the kernel refuses.
    ///
    /// When this returns, the addresses answer and the ports are open.
    pub(crate) fn grow(
        &self,
        guard: &S::Guard<'_>,
        tx: S::Tx<'_>,
        mut view: ContainerView,
        more: &Addition<'_>,
    ) -> Result<ContainerInfo> {
        let id = view.container.id;
        let is_new = !view.container.phase.is_settled();
        let (mut networks, mut rows): (Vec<Network>, Vec<Row>) = (Vec::new(), Vec::new());
        for wanted in more.endpoints {
            let (network, row) = self.network_for(&tx, wanted)?;
            networks.push(network);
            rows.push(row);
        }
        let is_first = self.is_edge(&tx, &networks, 0)?;
        let mut before = if is_first { self.surroundings(&tx, &networks)? } else { Objects::new() };
        if !is_new {
            before.extend(self.container_objects(&view));
        }
        for (network, _) in networks.iter().zip(&rows).filter(|(_, row)| !matches!(row, Row::Stays)) {
            tx.put_network(network)?;
        }
        let (had, published) = (view.endpoints.len(), view.publications.len());
        for (wanted, network) in more.endpoints.iter().zip(&networks) {
            self.plan_endpoint(&tx, &mut view, network, wanted)?;
        }
        for publication in self.plan_publications(&tx, &view, more.publish, more.exposed)? {
            tx.put_publication(&PublicationRow { container: id, publication, phase: self.owner() })?;
            view.publications.push(publication);
        }
        let mut after = if is_first { self.surroundings(&tx, &networks)? } else { Objects::new() };
        after.extend(self.container_objects(&view));
        let table = self.table(&tx)?;
        tx.commit(Durability::Process)?;

        let doing = || {
            let name = &view.container.name;
            match (is_new, names(&networks)) {
                (true, None) => format!("attach `{name}`"),
                (true, Some(networks)) => format!("attach `{name}` to {networks}"),
                (false, None) => format!("publish ports of `{name}`"),
                (false, Some(networks)) => format!("connect `{name}` to {networks}"),
            }
        };
        let steps = in_order_of(&view, diff(&after, &before));
        let mut made = self.apply(guard, &table, &steps, doing);
        let mut is_settling = false;
        if made.is_ok() {
            // A new endpoint may move the ports that were there, a new port moves none.
            let moved = if networks.is_empty() { published } else { 0 };
            self.forget_flows(&view.publications[moved..]);
            made = self.settle(guard, &mut view).map_err(|error| {
                is_settling = true;
                Unapplied { undone: self.undo(&table, &steps), error }
            });
        }
        if let Err(Unapplied { error, undone }) = made {
            let new = (&view.endpoints[had..], &view.publications[published..]);
            let forgotten = if undone { self.forget_new(guard, is_new, id, new, rows) } else { Ok(()) };
            if let Err(error) = &forgotten {
                tracing::warn!(%error, "rows stay as they are: the next command takes them down");
            }
            // They may tell of what the kernel has no more, without telling that they are half-made.
            if is_settling && (!undone || forgotten.is_err()) {
                self.doubt(guard);
            }
            return Err(explain_full_bridge(error, &networks));
        }
        let ContainerView { container, endpoints, publications } = view;
        Ok(ContainerInfo { container, endpoints, publications, alive: true })
    }

    /// Removes the rows of what a container was to get, and its own if it is new; the kernel holds nothing of them.
    fn forget_new(
        &self,
        guard: &S::Guard<'_>,
        is_new: bool,
        id: Id,
        (endpoints, publications): (&[(Endpoint, Network)], &[Publication]),
        rows: Vec<Row>,
    ) -> Result<()> {
        let tx = self.store.write(guard)?;
        self.delete_network_rows(&tx, id, endpoints, publications)?;
        if is_new {
            tx.delete_container(id)?;
        }
        for row in rows {
            if let Row::Changes(was) = row {
                tx.put_network(&was)?;
            }
        }
        self.forget_idle_base(&tx)?;
        Ok(tx.commit(Durability::Process)?)
    }

    /// Whether a container could be given this endpoint now; nothing is changed.
    ///
    /// # Errors
    /// Why it could not, as [`Engine::attach`] would say it; what only the kernel knows is not found out.
    pub fn could_join(&self, wanted: &EndpointRequest) -> Result<()> {
        self.with_room(|| self.could_join_now(wanted))
    }

    fn could_join_now(&self, wanted: &EndpointRequest) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let (network, _) = self.network_for(&tx, wanted)?;
        let container = self.container_for(&AttachRequest::namespace(""), None)?;
        let mut view = ContainerView { container, endpoints: Vec::new(), publications: Vec::new() };
        // The transaction is dropped: all of it was for the answer.
        self.plan_endpoint(&tx, &mut view, &network, wanted)
    }

    /// Marks a container, its endpoints and its ports as settled.
    fn settle(&self, guard: &S::Guard<'_>, view: &mut ContainerView) -> Result<()> {
        let tx = self.store.write(guard)?;
        if !view.container.phase.is_settled() {
            view.container.phase = Phase::Settled;
            tx.put_container(&view.container)?;
        }
        for (endpoint, _) in view.endpoints.iter_mut().filter(|(endpoint, _)| !endpoint.phase.is_settled()) {
            endpoint.phase = Phase::Settled;
            tx.put_endpoint(endpoint)?;
        }
        for row in tx.publications_of(view.container.id)?.into_iter().filter(|row| !row.phase.is_settled()) {
            tx.put_publication(&PublicationRow { phase: Phase::Settled, ..row })?;
        }
        Ok(tx.commit(Durability::Process)?)
    }

    /// Removes endpoints and ports of a container, and transient networks that nobody is on then.
    pub(crate) fn delete_network_rows(
        &self,
        tx: &S::Tx<'_>,
        container: Id,
        endpoints: &[(Endpoint, Network)],
        publications: &[Publication],
    ) -> Result<()> {
        for publication in publications {
            tx.delete_publication(container, publication)?;
        }
        for (endpoint, _) in endpoints {
            tx.delete_endpoint(endpoint.id)?;
        }
        for (_, network) in endpoints.iter().filter(|(_, network)| network.transient) {
            if tx.endpoint_count(network.id, 1)? == 0 {
                tx.delete_network(network.id)?;
            }
        }
        Ok(())
    }

    /// Forgets what was recorded about the host if nothing needs it any more.
    pub(crate) fn forget_idle_base(&self, tx: &S::Tx<'_>) -> Result<()> {
        if !self.is_base_needed(tx)? {
            self.forget_base(tx)?;
        }
        Ok(())
    }

    /// Takes down containers that have died but are in the way: on an address, a MAC, a link or a port that is asked for,
    /// or on a network that has become another. Whoever started them need not have told us.
    pub(crate) fn make_way(
        &self,
        guard: &S::Guard<'_>,
        endpoints: &[EndpointRequest],
        publish: &[PublishSpec],
    ) -> Result<()> {
        let tx = self.store.read()?;
        let mut holders: BTreeSet<Id> = BTreeSet::new();
        let mut others: Vec<Network> = Vec::new();
        for wanted in endpoints {
            let network = match &wanted.transient {
                None => self.find_network(&tx, &wanted.network).ok(),
                Some(request) => match request.id.map(|id| tx.network(id)).transpose()?.flatten() {
                    Some(network) if is_as_asked(&network, request) => Some(network),
                    Some(other) => {
                        others.push(other);
                        continue;
                    }
                    None => {
                        others.extend(tx.network_named(request.name.as_str())?);
                        continue;
                    }
                },
            };
            let Some(network) = network else { continue };
            let mut found: Vec<Id> = Vec::new();
            for address in wanted.wanted() {
                found.extend(tx.lease(network.id, address)?.and_then(|lease| lease.endpoint));
            }
            if let Some(mac) = wanted.mac {
                found.extend(tx.mac_holder(network.id, mac)?);
            }
            for endpoint in found {
                holders.extend(tx.endpoint(endpoint)?.map(|endpoint| endpoint.container));
            }
            if let Some(name) = &wanted.host_end {
                holders.extend(tx.endpoint_at(name.as_str())?.map(|endpoint| endpoint.container));
            }
        }
        for spec in publish {
            if let HostPorts::Exact(host) = spec.host {
                holders.extend(tx.publications_overlapping(spec.protocol, host)?.into_iter().map(|row| row.container));
            }
        }
        let mut dead = Vec::new();
        for holder in holders {
            dead.extend(tx.container(holder)?.filter(|container| !self.is_alive(container)));
        }
        drop(tx);
        others.iter().try_for_each(|network| self.reap_network(guard, network))?;
        for container in dead {
            // One that was on such a network is gone by now.
            if self.store.read()?.container(container.id)?.is_some() {
                self.reap(guard, container)?;
            }
        }
        Ok(())
    }

    /// The network that an endpoint is to be on, and what its row becomes.
    fn network_for(&self, tx: &S::Tx<'_>, wanted: &EndpointRequest) -> Result<(Network, Row)> {
        let Some(request) = &wanted.transient else { return Ok((self.find_network(tx, &wanted.network)?, Row::Stays)) };
        let existing = request.id.map(|id| tx.network(id)).transpose()?.flatten();
        match existing {
            Some(existing) if is_as_asked(&existing, request) => {
                let changed = Network {
                    dns: request.dns.clone(),
                    labels: request.labels.clone(),
                    names_at: request.names_at.clone(),
                    ..existing.clone()
                };
                if changed == existing {
                    return Ok((existing, Row::Stays));
                }
                Ok((changed, Row::Changes(Box::new(existing))))
            }
            Some(existing) => Err(Error::InUse {
                name: existing.name.to_string(),
                holders: format!("{}, in another shape", self.holders(tx, &existing)?.join(", ")),
            }),
            None if tx.network_named(request.name.as_str())?.is_some() => {
                Err(Error::NameTaken { what: "network", name: request.name.to_string() })
            }
            None => {
                let network = self.plan_network(tx, request, None)?;
                Ok((Network { transient: true, phase: Phase::Settled, ..network }, Row::Comes))
            }
        }
    }

    /// Whether the host itself gains or loses objects with an endpoint on one of `networks`: the predefined bridge and
    /// transient networks come with their first endpoint and go with their last. `members` is how many it has before (0)
    /// or after (1) all.
    pub(crate) fn is_edge(&self, tx: &S::Tx<'_>, networks: &[Network], members: usize) -> Result<bool> {
        for network in networks.iter().filter(|network| network.comes_and_goes()) {
            if tx.endpoint_count(network.id, members + 1)? <= members {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Decides an endpoint on `network`, takes its leases and adds it to `view`.
    fn plan_endpoint(
        &self,
        tx: &S::Tx<'_>,
        view: &mut ContainerView,
        network: &Network,
        wanted: &EndpointRequest,
    ) -> Result<()> {
        if !network.driver.holds_endpoints() {
            return Err(Error::Predefined { name: network.name.to_string(), verb: "connected" });
        }
        if view.endpoints.iter().any(|(_, other)| other.id == network.id) {
            return Err(Error::AlreadyConnected {
                container: view.container.name.to_string(),
                network: network.name.to_string(),
            });
        }
        if network.overlay.is_some() && tx.meta(meta::DRAINED)?.is_some() {
            return Err(Error::Drained { network: network.name.to_string() });
        }
        if (network.driver == Driver::Bridge || network.is_l2())
            && tx.endpoint_count(network.id, BRIDGE_PORTS)? >= BRIDGE_PORTS
        {
            return Err(Error::BridgeFull { network: network.name.to_string() });
        }
        check_bandwidth(network, wanted.bandwidth)?;
        let id = self.random_id();
        let mut found = Vec::new();
        if let Some(address) = wanted.wanted().next().filter(|_| !network.ipam.is_local()) {
            let why = format!("cannot be asked for: network `{}` has IPAM driver `{}`", network.name, network.ipam);
            return Err(Invalid::new("address", address.to_string(), why)
                .hint("leave it out; with dhcp, a server can reserve one for a --mac-address")
                .into());
        }
        // Who brings an address of a pool has asked for it there.
        let space = match view.container.kind {
            ContainerKind::Handed => Space::beside_pools(network),
            ContainerKind::Attached | ContainerKind::Run => Space::of(network),
        };
        for address in wanted.wanted() {
            if found.iter().any(|(found, _): &(ipam::Found, bool)| found.address.addr() == address) {
                return Err(Invalid::new("address", address.to_string(), "is asked for twice").into());
            }
            let holder = |endpoint| Ok(format!("container `{}`", self.name_of_endpoint(tx, endpoint)?));
            if !overlay::is_own(network, address) && promote::is_begun(network) {
                return Err(Error::Unsupported {
                    what: format!("address {address}"),
                    why: format!("is in no block that network `{}` takes along to the cluster", network.name),
                    hint: "`portolan network promote` goes on with what was begun; then ask for it again",
                });
            }
            if !overlay::is_own(network, address) {
                return Err(no_block(network, Wanting::BlockOf(address)));
            }
            found.push((ipam::request(tx, &space, address, holder)?, true));
        }
        if !wanted.exact {
            let chosen: Vec<IpAddr> = found.iter().map(|(found, _)| found.address.addr()).collect();
            let more = ipam::complete(tx, network, &chosen).map_err(|error| match error {
                Error::AddressesExhausted { family, .. } if network.overlay.is_some() => {
                    no_block(network, Wanting::Block(family))
                }
                Error::AddressesExhausted { .. } if promote::is_begun(network) => Error::Unsupported {
                    what: format!("network `{}`", network.name),
                    why: "has no free address left in the blocks that it takes along to the cluster".to_owned(),
                    hint: "`portolan network promote` goes on with what was begun",
                },
                error => error,
            });
            found.extend(more?.into_iter().map(|found| (found, false)));
        }
        found.sort_by_key(|(found, _)| Family::of(found.address.addr()));
        if let Some(mac) = wanted.mac.filter(|_| network.shares_parents_mac()) {
            let why = format!("cannot be chosen: interfaces on network `{}` have their parent's", network.name);
            return Err(Invalid::new("MAC", mac.to_string(), why).hint("leave it out").into());
        }
        let mac = wanted.mac.unwrap_or_else(|| match found.first() {
            // On a LAN nobody can announce it from a namespace that we are not shown: whoever has an address, by whichever
            // network, has its MAC.
            Some((found, _)) if view.container.kind == ContainerKind::Handed && network.driver == Driver::Macvlan => {
                mac_of(found.address.addr())
            }
            // Nobody remembers it but the host, which is told: an address may be another container's on another host next.
            Some(_) if network.overlay.is_some() => random_mac(self.kernel.random()),
            Some((found, _)) => generated_mac(network.id, found.address.addr()),
            None => random_mac(self.kernel.random()),
        });
        if let Some(holder) = tx.mac_holder(network.id, mac)? {
            return Err(Error::MacTaken {
                mac,
                network: network.name.to_string(),
                holder: self.name_of_endpoint(tx, holder)?,
            });
        }
        let ifname = match &wanted.ifname {
            Some(name) => name.clone(),
            None => free_ifname(view, &network.options.interface_prefix),
        };
        if view.endpoints.iter().any(|(endpoint, _)| endpoint.ifname == ifname) {
            return Err(Error::NameTaken { what: "interface", name: ifname.to_string() });
        }
        let host_end = match &wanted.host_end {
            Some(name) => self.check_host_end(tx, name)?,
            None => free_host_end(tx, network.id, view.container.id, &ifname)?,
        };
        let tuning = Tuning {
            sysctls: self.remember(view, &wanted.tuning.sysctls, Some(&ifname))?,
            attributes: wanted.tuning.attributes,
            no_default_route: wanted.tuning.no_default_route,
        };
        let endpoint = Endpoint {
            id,
            network: network.id,
            container: view.container.id,
            ifname,
            host_end,
            mac,
            mac_configured: wanted.mac.is_some(),
            addresses: found
                .iter()
                .map(|(found, configured)| EndpointAddress { address: found.address, configured: *configured })
                .collect(),
            leases: Default::default(),
            gateway_priority: wanted.gateway_priority,
            aliases: wanted.aliases.clone(),
            links: wanted.links.clone(),
            bandwidth: wanted.bandwidth,
            tuning,
            announce: found.iter().any(|(found, _)| found.previous.is_some_and(|previous| previous != mac)),
            phase: self.owner(),
        };
        tx.put_endpoint(&endpoint)?;
        for (found, _) in &found {
            tx.take_lease(network.id, found.address.addr(), id, mac)?;
        }
        view.endpoints.push((endpoint, network.clone()));
        Ok(())
    }

    /// The name of a link on the host that was asked for.
    fn check_host_end(&self, tx: &S::Tx<'_>, name: &IfName) -> Result<IfName> {
        let there = self.kernel.find_interface(name.as_str());
        let there = there.map_err(|source| Error::Kernel { doing: format!("find interface `{name}`"), source })?;
        if there.is_some() || tx.host_end_taken(name.as_str())? {
            return Err(Error::NameTaken { what: "interface", name: name.to_string() });
        }
        Ok(name.clone())
    }

    fn name_of_endpoint(&self, tx: &S::Tx<'_>, endpoint: Id) -> Result<String> {
        let Some(endpoint) = tx.endpoint(endpoint)? else { return Ok("?".to_owned()) };
        Ok(tx
            .container(endpoint.container)?
            .map_or_else(|| endpoint.container.short(), |container| container.name.to_string()))
    }
}

/// Whether an endpoint of `network` can have its bandwidth limited: only what the host passes on can be held back where
/// the container cannot undo it.
pub(crate) fn check_bandwidth(network: &Network, wanted: Bandwidth) -> Result<()> {
    if wanted.is_unlimited() || network.driver == Driver::Bridge || network.driver.is_routed() {
        return Ok(());
    }
    let why = format!(
        "cannot be limited: network `{}` has driver `{}`, whose interfaces have no end on the host",
        network.name, network.driver
    );
    Err(Invalid::new("bandwidth", wanted.to_string(), why).hint("leave it out, or use a bridge or ptp network").into())
}

fn no_block(network: &Network, wanting: Wanting) -> Error {
    Error::NoBlock { network: network.id, of: format!("network `{}`", network.name), wanting }
}

/// The MAC that Docker's own driver gives to whoever has `address` (libnetwork, `netutils.GenerateMACFromIP`).
fn mac_of(address: IpAddr) -> Mac {
    let [.., a, b, c, d] = match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    Mac::local([0x02, 0x42, a, b, c, d])
}

/// A MAC for an interface whose addresses nobody knows.
fn random_mac(random: [u8; 32]) -> Mac {
    Mac::local([random[0], random[1], random[2], random[3], random[4], random[5]])
}

/// Whether a transient network is what is asked for, but for what may change while it is in use: its servers, its labels
/// and the addresses of a bridge that is somebody else's.
fn is_as_asked(network: &Network, request: &NetworkRequest) -> bool {
    let gateways = || network.subnets.iter().filter_map(|subnet| subnet.gateway);
    network.name == request.name
        && network.driver == request.driver
        && network.ipam == request.ipam
        && (network.ipam.is_local() || (network.speaks.v4, network.speaks.v6) == (request.ipv4, request.ipv6))
        && network.internal == request.internal
        && network.names == request.names
        && network.names_port == request.names_port
        && network.raw_options == request.options
        && network.routes == request.routes
        && if request.sets.is_empty() {
            network.subnets.iter().map(|subnet| subnet.net).eq(request.subnets.iter().copied())
                && gateways().all(|gateway| request.gateways.contains(&gateway))
                && gateways().count() == request.gateways.len()
        } else {
            sets::are_as_asked(network, &request.sets)
        }
}

/// The first `eth0`, `eth1`, … that no endpoint of the container has.
fn free_ifname(view: &ContainerView, prefix: &str) -> IfName {
    (0u16..)
        .map(|n| format!("{prefix}{n}"))
        .find(|name| !view.endpoints.iter().any(|(endpoint, _)| endpoint.ifname.as_str() == name))
        .expect("there are more numbers than endpoints")
        .parse()
        .expect("the prefix leaves room for a number")
}

/// Networks by name, for a sentence; nothing of none.
pub(crate) fn names(networks: &[Network]) -> Option<String> {
    let names: Vec<String> = networks.iter().map(|network| format!("`{}`", network.name)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// A name for a link on the host that no other endpoint has.
fn free_host_end<T: Tx>(tx: &T, network: Id, container: Id, ifname: &IfName) -> Result<IfName> {
    let candidates = (0..=u8::MAX).map(|salt| host_end_name(network, container, ifname, salt));
    let mut last = None;
    for name in candidates {
        if !tx.host_end_taken(name.as_str())? {
            return Ok(name);
        }
        last = Some(name);
    }
    Err(Error::NameTaken { what: "interface", name: last.map_or_else(String::new, |name| name.to_string()) })
}

/// The kernel says `EXFULL` for a bridge without a free port.
fn explain_full_bridge(error: Error, networks: &[Network]) -> Error {
    match &error {
        Error::Kernel { source, .. } if source.reason.contains("EXFULL") => {
            Error::BridgeFull { network: networks.last().map_or_else(String::new, |network| network.name.to_string()) }
        }
        _ => error,
    }
}
