//! Attach and detach a container, with all its endpoints and ports.

use portolan_model::{
    Container, ContainerKind, ContainerState, Driver, Endpoint, EndpointAddress, Family, Id, IfName, Invalid, Mac,
    Network, NetworkMode, Phase, Sandbox,
};
use portolan_plan::{ContainerView, Object, Objects, Step, diff, generated_mac, host_end_name};

use crate::api::{AttachRequest, ContainerInfo, EndpointRequest, NetworkRequest};
use crate::engine::{Engine, meta};
use crate::error::{Error, Result};
use crate::ipam;
use crate::kernel::Kernel;
use crate::store::{Durability, PublicationRow, Store, Tx};

/// A Linux bridge has at most this many ports (`BR_MAX_PORTS`, net/bridge/br_private.h: 10 bits, port 0 unused).
const BRIDGE_PORTS: usize = 1023;

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Makes a container known and gives its namespace endpoints and published ports, all or nothing.
    ///
    /// When this returns, the addresses answer and the ports are open.
    ///
    /// # Errors
    /// Whatever is malformed, taken, exhausted or refused by the kernel; nothing has changed then.
    pub fn attach(&self, request: &AttachRequest) -> Result<ContainerInfo> {
        let sandbox = match &request.netns {
            Some(path) => {
                Some(self.kernel.sandbox(path).map_err(|source| Error::Kernel { doing: "attach".to_owned(), source })?)
            }
            None => None,
        };
        let guard = self.begin()?;
        self.attach_under(&guard, request, sandbox)
    }

    /// [`Engine::attach`] for who holds the lock.
    pub(crate) fn attach_under(
        &self,
        guard: &S::Guard<'_>,
        request: &AttachRequest,
        sandbox: Option<Sandbox>,
    ) -> Result<ContainerInfo> {
        self.make_way(guard, &request.endpoints)?;
        let id = request.id.unwrap_or_else(|| self.random_id());
        let name = match &request.name {
            Some(name) => name.clone(),
            None => id.short().parse().expect("hexadecimal digits are a name"),
        };
        let container = Container {
            id,
            name,
            kind: request.kind,
            mode: request.mode.clone(),
            process: request.process,
            supervisor: None,
            state: if request.kind == ContainerKind::Attached {
                ContainerState::Running
            } else {
                ContainerState::Created
            },
            sandbox,
            hostname: request.hostname.clone(),
            command: request.command.clone(),
            exposed: request.exposed.clone(),
            dns: request.dns.clone(),
            hosts: request.hosts.clone(),
            sysctls: request.sysctls.clone(),
            labels: request.labels.clone(),
            auto_remove: request.auto_remove,
            port_keeper: request.port_keeper.map(str::to_owned),
            boot: self.kernel.boot(),
            created: self.kernel.now(),
            phase: self.owner(),
        };
        if request.mode != NetworkMode::Own && (!request.endpoints.is_empty() || !request.publish.is_empty()) {
            let why = "has no network of its own: it can neither be connected nor publish ports";
            return Err(Error::WrongMode { container: container.name.to_string(), why });
        }

        let tx = self.free_name(guard, &container)?;
        if request.id.is_some() && tx.container(id)?.is_some() {
            return Err(Error::NameTaken { what: "container", name: id.to_string() });
        }
        let mut networks: Vec<Network> = Vec::new();
        for wanted in &request.endpoints {
            networks.push(self.network_for(&tx, wanted)?);
        }
        let first = self.is_edge(&tx, &networks, 0)?;
        let before = if first { self.surroundings(&tx, &networks)? } else { Objects::new() };
        for network in networks.iter().filter(|network| network.transient) {
            tx.put_network(network)?;
        }
        tx.put_container(&container)?;
        let mut view = ContainerView { container, endpoints: Vec::new(), publications: Vec::new() };
        for (wanted, network) in request.endpoints.iter().zip(&networks) {
            self.plan_endpoint(&tx, &mut view, network, wanted)?;
        }
        let publications = self.plan_publications(
            &tx,
            &view,
            &request.publish,
            request.publish_all.then_some(&request.exposed[..]),
            request.port_keeper,
        )?;
        for publication in &publications {
            tx.put_publication(&PublicationRow {
                container: view.container.id,
                publication: *publication,
                phase: self.owner(),
            })?;
        }
        view.publications = publications;
        let mut after = if first { self.surroundings(&tx, &networks)? } else { Objects::new() };
        after.extend(self.container_objects(&view));
        if tx.meta(meta::BOOT)?.as_deref() != Some(view.container.boot.as_str()) {
            tx.put_meta(meta::BOOT, Some(&view.container.boot))?;
        }
        let table = self.table(&tx)?;
        tx.commit(Durability::Process)?;

        let steps = diff(&after, &before);
        let doing = || match networks.as_slice() {
            [] => format!("attach `{}`", view.container.name),
            networks => format!(
                "attach `{}` to `{}`",
                view.container.name,
                networks.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join("`, `")
            ),
        };
        if let Err(error) = self.apply(guard, &table, &steps, doing) {
            let tx = self.store.write(guard)?;
            self.delete_rows(&tx, &view)?;
            tx.commit(Durability::Process)?;
            return Err(explain_full_bridge(error, &networks));
        }
        self.forget_flows(&view.publications);
        self.settle(guard, &mut view)?;
        Ok(ContainerInfo {
            container: view.container,
            endpoints: view.endpoints,
            publications: view.publications,
            alive: true,
        })
    }

    /// Marks a container, its endpoints and its ports as settled.
    pub(crate) fn settle(&self, guard: &S::Guard<'_>, view: &mut ContainerView) -> Result<()> {
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

    /// Removes a container's rows, and what was recorded about the host if nothing needs it any more.
    pub(crate) fn delete_rows(&self, tx: &S::Tx<'_>, view: &ContainerView) -> Result<()> {
        self.delete_network_rows(tx, view)?;
        tx.delete_container(view.container.id)?;
        Ok(())
    }

    /// Removes a container's endpoints and ports, and what was recorded about the host if nothing needs it any more.
    pub(crate) fn delete_network_rows(&self, tx: &S::Tx<'_>, view: &ContainerView) -> Result<()> {
        for publication in &view.publications {
            tx.delete_publication(view.container.id, publication)?;
        }
        for (endpoint, _) in &view.endpoints {
            tx.delete_endpoint(endpoint.id)?;
        }
        self.forget_transient(tx, view.endpoints.iter().map(|(_, network)| network))?;
        if !self.is_base_needed(tx)? {
            self.forget_base(tx)?;
        }
        Ok(())
    }

    /// Removes the rows of those transient networks that nobody is on any more.
    pub(crate) fn forget_transient<'n>(
        &self,
        tx: &S::Tx<'_>,
        networks: impl IntoIterator<Item = &'n Network>,
    ) -> Result<()> {
        for network in networks.into_iter().filter(|network| network.transient) {
            if tx.endpoint_count(network.id, 1)? == 0 {
                tx.delete_network(network.id)?;
            }
        }
        Ok(())
    }

    /// Takes down containers that have died but are in the way on transient networks: on an address asked for, or on a
    /// network that has become another. Whoever keeps those networks has forgotten them.
    pub(crate) fn make_way(&self, guard: &S::Guard<'_>, endpoints: &[EndpointRequest]) -> Result<()> {
        for wanted in endpoints {
            let Some(request) = &wanted.transient else { continue };
            let tx = self.store.read()?;
            if let Some(other) = tx.network_named(request.name.as_str())?.filter(|n| Some(n.id) != request.id) {
                drop(tx);
                self.reap_network(guard, &other)?;
                continue;
            }
            let existing = request.id.map(|id| tx.network(id)).transpose()?.flatten();
            let Some(network) = existing else { continue };
            if !is_as_asked(&network, request) {
                drop(tx);
                self.reap_network(guard, &network)?;
                continue;
            }
            let mut dead = Vec::new();
            for address in wanted.wanted() {
                let Some(holder) = tx.lease(network.id, address)?.and_then(|lease| lease.endpoint) else { continue };
                let Some(endpoint) = tx.endpoint(holder)? else { continue };
                dead.extend(tx.container(endpoint.container)?.filter(|container| !self.is_alive(container)));
            }
            drop(tx);
            dead.into_iter().try_for_each(|container| self.reap(guard, container))?;
        }
        Ok(())
    }

    /// The network that an endpoint is to be on. A transient one as it should be; its row may not be there yet.
    pub(crate) fn network_for(&self, tx: &S::Tx<'_>, wanted: &EndpointRequest) -> Result<Network> {
        let Some(request) = &wanted.transient else { return self.find_network(tx, &wanted.network) };
        let existing = request.id.map(|id| tx.network(id)).transpose()?.flatten();
        match existing {
            Some(existing) if is_as_asked(&existing, request) => {
                Ok(Network { dns: request.dns.clone(), labels: request.labels.clone(), ..existing })
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
                Ok(Network { transient: true, phase: Phase::Settled, ..network })
            }
        }
    }

    /// Begins the transaction that adds `container`, after seeing to it that no other has its name or namespace; one
    /// whose namespace is gone gives way.
    fn free_name<'a>(&'a self, guard: &'a S::Guard<'_>, container: &Container) -> Result<S::Tx<'a>> {
        let Container { name, sandbox, .. } = container;
        let tx = self.store.write(guard)?;
        let named = tx.container_named(name.as_str())?;
        let inside = match sandbox {
            Some(sandbox) => tx.container_in(sandbox.device, sandbox.inode)?,
            None => None,
        };
        if named.is_none() && inside.is_none() {
            return Ok(tx);
        }
        drop(tx);
        if let Some(holder) = named {
            let finished = matches!(holder.state, ContainerState::Exited(_));
            if finished || self.is_alive(&holder) {
                return Err(Error::NameTaken { what: "container", name: name.to_string() });
            }
            let id = holder.id;
            self.reap(guard, holder)?;
            // A command that ran keeps its name until it is removed.
            if self.store.read()?.container(id)?.is_some() {
                return Err(Error::NameTaken { what: "container", name: name.to_string() });
            }
        }
        if let (Some(holder), Some(sandbox)) = (inside, sandbox) {
            if self.is_alive(&holder) {
                return Err(Error::SandboxTaken {
                    path: sandbox.path.display().to_string(),
                    container: holder.name.to_string(),
                });
            }
            self.reap(guard, holder)?;
        }
        Ok(self.store.write(guard)?)
    }

    /// Whether the host itself gains or loses objects with an endpoint on one of `networks`: the predefined bridge and
    /// transient networks come with their first endpoint and go with their last. `members` is how many it has before (0) or after (1)
    /// all.
    pub(crate) fn is_edge(&self, tx: &S::Tx<'_>, networks: &[Network], members: usize) -> Result<bool> {
        for network in networks.iter().filter(|network| network.comes_and_goes()) {
            if tx.endpoint_count(network.id, members + 1)? <= members {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Decides an endpoint on `network`, takes its leases and adds it to `view`.
    pub(crate) fn plan_endpoint(
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
        if network.driver == Driver::Bridge && tx.endpoint_count(network.id, BRIDGE_PORTS)? >= BRIDGE_PORTS {
            return Err(Error::BridgeFull { network: network.name.to_string() });
        }
        let id = self.random_id();
        let mut found = Vec::new();
        if let Some(address) = wanted.wanted().next().filter(|_| !network.ipam.is_local()) {
            let why = format!("cannot be asked for: network `{}` has IPAM driver `{}`", network.name, network.ipam);
            return Err(Invalid::new("address", address.to_string(), why)
                .hint("leave it out; with dhcp, a server can reserve one for a --mac-address")
                .into());
        }
        for address in wanted.wanted() {
            if found.iter().any(|(found, _): &(ipam::Found, bool)| found.address.addr() == address) {
                return Err(Invalid::new("address", address.to_string(), "is asked for twice").into());
            }
            let holder = |endpoint| self.name_of_endpoint(tx, endpoint);
            found.push((ipam::request(tx, network, address, holder)?, true));
        }
        // One address of every subnet, unless the caller chose those of the family.
        for family in Family::ALL.into_iter().filter(|_| !wanted.exact) {
            if found.iter().any(|(found, _)| Family::of(found.address.addr()) == family) {
                continue;
            }
            let mut exhausted = None;
            let before = found.len();
            for subnet in network.subnets_of(family) {
                match ipam::allocate(tx, network, subnet) {
                    Ok(address) => found.push((address, false)),
                    Err(error @ Error::AddressesExhausted { .. }) => exhausted = Some(error),
                    Err(error) => return Err(error),
                }
            }
            if let Some(error) = exhausted.filter(|_| found.len() == before) {
                return Err(error);
            }
        }
        found.sort_by_key(|(found, _)| Family::of(found.address.addr()));
        let mac = wanted.mac.unwrap_or_else(|| match found.first() {
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
        let chosen = wanted.host_end.clone();
        let mut host_end = chosen.clone().unwrap_or_else(|| host_end_name(network.id, view.container.id, &ifname, 0));
        for salt in 1..=u8::MAX {
            if chosen.is_some() {
                let doing = || format!("find interface `{host_end}`");
                let there = self.kernel.find_interface(host_end.as_str());
                let there = there.map_err(|source| Error::Kernel { doing: doing(), source })?;
                if there.is_some() || tx.host_end_taken(host_end.as_str())? {
                    return Err(Error::NameTaken { what: "interface", name: host_end.to_string() });
                }
                break;
            }
            if !tx.host_end_taken(host_end.as_str())? {
                break;
            }
            host_end = host_end_name(network.id, view.container.id, &ifname, salt);
        }
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

    fn name_of_endpoint(&self, tx: &S::Tx<'_>, endpoint: Id) -> Result<String> {
        let Some(endpoint) = tx.endpoint(endpoint)? else { return Ok("?".to_owned()) };
        Ok(tx
            .container(endpoint.container)?
            .map_or_else(|| endpoint.container.short(), |container| container.name.to_string()))
    }

    /// Takes the kernel from `before` to `after`, then commits; forgets about the host what nothing needs any more.
    pub(crate) fn take_down(
        &self,
        tx: S::Tx<'_>,
        after: &Objects,
        before: &Objects,
        doing: impl Fn() -> String,
    ) -> Result<()> {
        let table = self.table(&tx)?;
        let steps = diff(after, before);
        if steps.iter().any(|step| matches!(step, Step::Delete(Object::Ruleset(_)))) {
            self.forget_base(&tx)?;
        }
        let failures = self.kernel.repair(&table, &steps);
        if let Some(source) = failures.into_iter().next() {
            return Err(Error::Kernel { doing: doing(), source });
        }
        Ok(tx.commit(Durability::Process)?)
    }

    /// Takes a container's endpoints and ports away and forgets it.
    ///
    /// Works as well when its namespace is gone.
    ///
    /// # Errors
    /// [`Error::NotFound`]; the kernel's refusals, after everything else was done.
    pub fn detach(&self, container: &str) -> Result<Container> {
        let guard = self.begin()?;
        let tx = self.store.read()?;
        let container = self.find_container(&tx, container)?;
        drop(tx);
        self.withdraw(&guard, container.clone(), None)?;
        Ok(container)
    }

    /// Takes away a container's endpoints and ports; the container's row is removed too, or becomes `keep`.
    pub(crate) fn withdraw(&self, guard: &S::Guard<'_>, container: Container, keep: Option<Container>) -> Result<()> {
        let tx = self.store.write(guard)?;
        let view = self.view(&tx, container)?;
        let networks: Vec<Network> = view.endpoints.iter().map(|(_, network)| network.clone()).collect();
        let last = self.is_edge(&tx, &networks, 1)?;
        let mut before = if last { self.surroundings(&tx, &networks)? } else { Objects::new() };
        before.extend(self.container_objects(&view));
        let phase = Phase::Leaving(self.kernel.this_process());
        tx.put_container(&Container { phase, ..view.container.clone() })?;
        tx.commit(Durability::Process)?;

        let tx = self.store.write(guard)?;
        for publication in &view.publications {
            tx.delete_publication(view.container.id, publication)?;
        }
        for (endpoint, _) in &view.endpoints {
            tx.delete_endpoint(endpoint.id)?;
        }
        self.forget_transient(&tx, &networks)?;
        match keep {
            Some(container) => tx.put_container(&Container { phase: Phase::Settled, ..container })?,
            None => tx.delete_container(view.container.id)?,
        }
        let after = if last { self.surroundings(&tx, &networks)? } else { Objects::new() };
        self.take_down(tx, &after, &before, || format!("detach `{}`", view.container.name))?;
        self.forget_flows(&view.publications);
        Ok(())
    }

    /// Takes down a container whose namespace is gone; of one whose command ran, the row stays until it is removed.
    pub(crate) fn reap(&self, guard: &S::Guard<'_>, container: Container) -> Result<()> {
        tracing::info!(container = %container.name, "its namespace is gone: taking it down");
        let ran = container.kind == ContainerKind::Run && container.state == ContainerState::Running;
        let keep = (ran && !container.auto_remove && container.phase.is_settled()).then(|| Container {
            state: ContainerState::Exited(255),
            sandbox: None,
            process: None,
            supervisor: None,
            ..container.clone()
        });
        self.withdraw(guard, container, keep)
    }
}

/// A MAC for an interface whose addresses nobody knows.
fn random_mac(random: [u8; 32]) -> Mac {
    Mac::local([random[0], random[1], random[2], random[3], random[4], random[5]])
}

/// Whether a transient network is what is asked for, but for what may change while it is in use: its servers and labels.
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
        && network.subnets.iter().map(|subnet| subnet.net).eq(request.subnets.iter().copied())
        && gateways().all(|gateway| request.gateways.contains(&gateway))
        && gateways().count() == request.gateways.len()
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

/// The kernel says `EXFULL` for a bridge without a free port.
pub(crate) fn explain_full_bridge(error: Error, networks: &[Network]) -> Error {
    match &error {
        Error::Kernel { source, .. } if source.reason.contains("EXFULL") => {
            Error::BridgeFull { network: networks.last().map_or_else(String::new, |network| network.name.to_string()) }
        }
        _ => error,
    }
}
