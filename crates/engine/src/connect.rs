//! Endpoints of a container that is known: more of them, and fewer.

use std::net::IpAddr;

use portolan_model::{Container, Endpoint, Network, NetworkMode, Phase, Publication, PublishSpec, Sandbox};
use portolan_plan::{ContainerView, Objects};

use crate::api::{AttachRequest, ContainerInfo, EndpointRequest};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::grow::{Addition, names};
use crate::kernel::Kernel;
use crate::store::{Durability, Store, Tx};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Connects a container to one more network.
    ///
    /// # Errors
    /// As for [`Engine::attach`]; [`Error::AlreadyConnected`], [`Error::WrongMode`], [`Error::NotRunning`].
    pub fn connect(&self, container: &str, wanted: &EndpointRequest) -> Result<ContainerInfo> {
        self.with_room(|| {
            let guard = self.begin()?;
            let container = self.find_container(&self.store.read()?, container)?;
            self.extend(&guard, container, std::slice::from_ref(wanted), &[])
        })
    }

    /// Attaches a container, or, if one of this id is in the namespace already, connects it to these networks as well
    /// and publishes those ports that it does not publish yet; all or nothing.
    ///
    /// For callers who do not tell the two apart. A container of this id in another namespace is taken down first: its
    /// keeper has given it a new one.
    ///
    /// # Errors
    /// As for [`Engine::attach`] and [`Engine::connect`].
    pub fn join(&self, request: &AttachRequest) -> Result<ContainerInfo> {
        let sandbox = self.sandbox_of(request)?;
        self.with_room(|| self.join_with(request, sandbox.clone()))
    }

    fn join_with(&self, request: &AttachRequest, sandbox: Option<Sandbox>) -> Result<ContainerInfo> {
        let guard = self.begin()?;
        let known = match request.id {
            Some(id) => self.store.read()?.container(id)?,
            None => None,
        };
        let Some(known) = known else { return self.attach_under(&guard, request, sandbox) };
        let is_same = match (&known.sandbox, &sandbox) {
            (Some(known), Some(now)) => (known.device, known.inode) == (now.device, now.inode),
            _ => false,
        };
        if is_same && self.is_alive(&known) {
            return self.extend(&guard, known, &request.endpoints, &request.publish);
        }
        self.withdraw(&guard, known, None)?;
        self.attach_under(&guard, request, sandbox)
    }

    /// Gives a container more endpoints and ports, all or nothing. Ports that it publishes just so already stay.
    fn extend(
        &self,
        guard: &S::Guard<'_>,
        container: Container,
        endpoints: &[EndpointRequest],
        publish: &[PublishSpec],
    ) -> Result<ContainerInfo> {
        self.check_own_stack(&container)?;
        self.make_way(guard, endpoints, publish)?;
        let tx = self.store.write(guard)?;
        let view = self.view(&tx, container)?;
        let new: Vec<PublishSpec> = publish.iter().filter(|spec| !is_published(&view, spec)).cloned().collect();
        self.grow(guard, tx, view, &Addition { endpoints, publish: &new, exposed: None })
    }

    /// Refuses containers without a live network stack of their own.
    pub(crate) fn check_own_stack(&self, container: &Container) -> Result<()> {
        let wrong = |why| Err(Error::WrongMode { container: container.name.to_string(), why });
        match container.mode {
            NetworkMode::Own | NetworkMode::None => {}
            NetworkMode::Host => return wrong("uses the host's network stack"),
            NetworkMode::Container(_) => return wrong("uses another container's network stack"),
        }
        if !self.is_alive(container) {
            return Err(Error::NotRunning { container: container.name.to_string() });
        }
        Ok(())
    }

    /// Disconnects a container from one of its networks.
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::NotFound`].
    pub fn disconnect(&self, container: &str, network: &str) -> Result<ContainerInfo> {
        let guard = self.begin()?;
        self.disconnect_under(&guard, container, network)
    }

    /// [`Engine::disconnect`] for who holds the lock.
    pub(crate) fn disconnect_under(
        &self,
        guard: &S::Guard<'_>,
        container: &str,
        network: &str,
    ) -> Result<ContainerInfo> {
        let tx = self.store.read()?;
        let container = self.find_container(&tx, container)?;
        let network = self.find_network(&tx, network)?;
        let view = self.view(&tx, container)?;
        drop(tx);
        if !view.endpoints.iter().any(|(endpoint, _)| endpoint.network == network.id) {
            return Err(Error::NotConnected {
                container: view.container.name.to_string(),
                network: network.name.to_string(),
            });
        }
        self.shrink(guard, view, |other| other.id == network.id)
    }

    /// Takes a container off those of `networks`, by name or id, that it is on; with its last endpoint it is forgotten.
    /// What is not there is fine. Its ports lead to the networks that are left.
    ///
    /// The mirror of [`Engine::join`].
    ///
    /// # Errors
    /// The kernel's refusals, after everything else was done.
    pub fn leave(&self, container: &str, networks: &[String]) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.read()?;
        let container = match self.find_container(&tx, container) {
            Ok(container) => container,
            Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let view = self.view(&tx, container)?;
        drop(tx);
        let goes = |network: &Network| {
            networks.iter().any(|name| *name == network.id.to_string() || name == network.name.as_str())
        };
        let going = view.endpoints.iter().filter(|(_, network)| goes(network)).count();
        if going == view.endpoints.len() {
            return self.withdraw(&guard, view.container, None);
        }
        if going == 0 {
            return Ok(());
        }
        self.shrink(&guard, view, goes).map(drop)
    }

    /// Takes away those endpoints of a container that `goes` says; at least one stays or the container does.
    fn shrink(
        &self,
        guard: &S::Guard<'_>,
        mut view: ContainerView,
        goes: impl Fn(&Network) -> bool,
    ) -> Result<ContainerInfo> {
        let networks: Vec<Network> =
            view.endpoints.iter().map(|(_, network)| network).filter(|network| goes(network)).cloned().collect();
        let tx = self.store.write(guard)?;
        let last = self.is_edge(&tx, &networks, 1)?;
        let mut before = if last { self.surroundings(&tx, &networks)? } else { Objects::new() };
        before.extend(self.container_objects(&view));
        let (going, staying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut view.endpoints).into_iter().partition(|(_, network)| goes(network));
        view.endpoints = staying;
        for (endpoint, _) in &going {
            let phase = Phase::Leaving(self.kernel.this_process());
            tx.put_endpoint(&Endpoint { phase, ..endpoint.clone() })?;
        }
        tx.commit(Durability::Process)?;

        let tx = self.store.write(guard)?;
        self.delete_network_rows(&tx, view.container.id, &going, &[])?;
        let mut after = if last { self.surroundings(&tx, &networks)? } else { Objects::new() };
        after.extend(self.container_objects(&view));
        self.take_down(tx, &after, &before, || {
            format!("disconnect `{}` from {}", view.container.name, names(&networks).unwrap_or_default())
        })?;
        self.forget_flows(&view.publications);
        let alive = self.is_alive(&view.container);
        Ok(ContainerInfo {
            container: view.container,
            endpoints: view.endpoints,
            publications: view.publications,
            alive,
        })
    }

    /// Has questions from a network forwarded to `servers`, or where the host asks if there are none. Nothing happens if
    /// nobody is on a network of this name.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn forward_names(&self, network: &str, servers: &[IpAddr]) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let Some(network) = tx.network_named(network)? else { return Ok(()) };
        tx.put_network(&Network { dns: servers.to_vec(), ..network })?;
        Ok(tx.commit(Durability::Disk)?)
    }
}

/// Whether a container publishes just this.
fn is_published(view: &ContainerView, spec: &PublishSpec) -> bool {
    let is_it = |publication: &Publication| {
        spec.protocol == publication.protocol
            && spec.host_ip == publication.host_ip
            && spec.container == publication.container
            && spec.host == portolan_model::HostPorts::Exact(publication.host)
    };
    view.publications.iter().any(is_it)
}
