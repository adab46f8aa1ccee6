//! Containers as such: list, start, end, forget; and the names they see.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use portolan_model::{Container, ContainerState, Family, Health, HealthState, Id, ProcessId};
use portolan_plan::{ContainerView, default_route};

use crate::api::ContainerInfo;
use crate::engine::{Engine, called};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::store::{Durability, Store, Tx};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// All containers, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn containers(&self) -> Result<Vec<ContainerInfo>> {
        self.ensure_readable()?;
        let tx = self.store.read()?;
        tx.containers()?.into_iter().map(|container| self.info(&tx, container)).collect()
    }

    /// One container, by its name, its id or the start of it, or what its runtime calls it ([`Container::called`]).
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], [`Error::CalledAlike`].
    pub fn container(&self, name: &str) -> Result<ContainerInfo> {
        self.ensure_readable()?;
        let tx = self.store.read()?;
        let container = self.find_container(&tx, name)?;
        self.info(&tx, container)
    }

    /// The same, and where a runtime calls several so, which are its places on networks, all of them.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn places(&self, name: &str) -> Result<Vec<ContainerInfo>> {
        self.ensure_readable()?;
        let tx = self.store.read()?;
        self.find_places(&tx, name)?.into_iter().map(|container| self.info(&tx, container)).collect()
    }

    /// The rows of [`Self::places`].
    pub(crate) fn find_places(&self, tx: &S::Tx<'_>, name: &str) -> Result<Vec<Container>> {
        match self.find_container(tx, name) {
            Err(Error::CalledAlike { .. }) => called(tx, name),
            found => Ok(vec![found?]),
        }
    }

    fn info(&self, tx: &S::Tx<'_>, container: Container) -> Result<ContainerInfo> {
        let alive = self.is_alive(&container);
        let ContainerView { container, endpoints, publications } = self.view(tx, container)?;
        Ok(ContainerInfo { container, endpoints, publications, alive })
    }

    /// Records that a container's process runs, and who waits for it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it was removed meanwhile.
    pub fn started(&self, id: Id, process: ProcessId, supervisor: Option<ProcessId>) -> Result<()> {
        let guard = self.store.lock()?;
        let tx = self.store.write(&guard)?;
        let container = tx.container(id)?.ok_or_else(|| Error::NotFound { what: "container", name: id.short() })?;
        tx.put_container(&Container {
            process: Some(process),
            supervisor,
            state: ContainerState::Running,
            ..container
        })?;
        Ok(tx.commit(Durability::Process)?)
    }

    /// Adds labels to a container; those of the same keys change.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn label(&self, id: Id, labels: &BTreeMap<String, String>) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let mut container = tx.container(id)?.ok_or_else(|| Error::NotFound { what: "container", name: id.short() })?;
        container.labels.extend(labels.clone());
        tx.put_container(&container)?;
        Ok(tx.commit(Durability::Process)?)
    }

    /// Records what a container's check says. Nothing happens when it does not run any more.
    ///
    /// # Errors
    /// When the store cannot serve.
    pub fn report_health(&self, id: Id, health: &Health) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let Some(container) = tx.container(id)?.filter(|container| container.state == ContainerState::Running) else {
            return Ok(());
        };
        tx.put_container(&Container { health: Some(health.clone()), ..container })?;
        Ok(tx.commit(Durability::Process)?)
    }

    /// Says how a container is that has no check of its own; none: nobody says so any more.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unsupported`] for one that has.
    pub fn set_health(&self, name: &str, state: Option<HealthState>) -> Result<Vec<Container>> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let mut changed = Vec::new();
        for container in self.find_places(&tx, name)? {
            if container.health_check.is_some() {
                return Err(Error::Unsupported {
                    what: format!("health of container `{}`", container.name),
                    why: "is what its --health-cmd says".to_owned(),
                    hint: "have that command fail, or run the container without one",
                });
            }
            let container = Container { health: state.map(Health::new), ..container };
            tx.put_container(&container)?;
            changed.push(container);
        }
        tx.commit(Durability::Process)?;
        Ok(changed)
    }

    /// Records that a container's process ended: its endpoints and ports go; its row stays until it is removed,
    /// unless it is to remove itself. Nothing happens when it was removed before.
    ///
    /// # Errors
    /// The kernel's refusals, after everything else was done.
    pub fn exited(&self, id: Id, status: i32) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.read()?;
        let Some(container) = tx.container(id)? else { return Ok(()) };
        drop(tx);
        let keep = (!container.auto_remove).then(|| Container {
            state: ContainerState::Exited(status),
            sandbox: None,
            process: None,
            supervisor: None,
            health: None,
            ..container.clone()
        });
        self.withdraw(&guard, container, keep)
    }

    /// Forgets a container that does not run.
    ///
    /// # Errors
    /// [`Error::Running`] names its process.
    pub fn remove_container(&self, name: &str) -> Result<Container> {
        let guard = self.begin()?;
        let tx = self.store.read()?;
        let container = self.find_container(&tx, name)?;
        drop(tx);
        if let Some(process) = container.process.filter(|process| self.kernel.process_alive(*process)) {
            return Err(Error::Running { container: container.name.to_string(), pid: process.pid });
        }
        self.withdraw(&guard, container.clone(), None)?;
        Ok(container)
    }

    /// The content of a container's `/etc/hosts` (hosts(5)): loopback, its own addresses, `--add-host`, links.
    ///
    /// # Errors
    /// [`Error::NotFound`] names a linked container that is not there.
    pub fn hosts_file(&self, info: &ContainerInfo) -> Result<String> {
        let ipv6 = info.endpoints.iter().any(|(endpoint, _)| endpoint.address(Family::V6).is_some());
        let mut text = String::from("127.0.0.1\tlocalhost\n");
        if ipv6 || info.endpoints.is_empty() {
            text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n");
        }
        let view = ContainerView {
            container: info.container.clone(),
            endpoints: info.endpoints.clone(),
            publications: Vec::new(),
        };
        for entry in &info.container.hosts {
            let gateways: Vec<IpAddr> = match entry.address {
                Some(address) => vec![address],
                None => Family::ALL
                    .into_iter()
                    .filter_map(|family| default_route(&view, family))
                    .map(|(_, _, gateway)| gateway)
                    .collect(),
            };
            for gateway in gateways {
                let _ = writeln!(text, "{gateway}\t{}", entry.name);
            }
        }
        let tx = self.store.read()?;
        for (own, network) in &info.endpoints {
            for link in &own.links {
                let missing = || Error::NotFound { what: "container", name: link.container.to_string() };
                let other = self.find_container(&tx, link.container.as_str())?;
                let endpoint = tx
                    .endpoints_of(other.id)?
                    .into_iter()
                    .find(|endpoint| endpoint.network == network.id)
                    .ok_or_else(missing)?;
                for address in &endpoint.addresses {
                    let _ = writeln!(
                        text,
                        "{}\t{} {} {}",
                        address.address.addr(),
                        link.alias,
                        other.name,
                        other.id.short()
                    );
                }
            }
        }
        let hostname = info.container.hostname.as_ref().map_or_else(|| info.container.id.short(), ToString::to_string);
        for (endpoint, _) in &info.endpoints {
            for address in &endpoint.addresses {
                let _ = writeln!(text, "{}\t{hostname}", address.address.addr());
            }
        }
        Ok(text)
    }
}
