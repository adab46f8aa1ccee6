//! Attach and detach a container, with all its endpoints and ports.

use portolan_model::{
    Container, ContainerKind, ContainerState, Health, HealthState, Network, NetworkMode, Phase, Sandbox,
};
use portolan_plan::{ContainerView, Object, Objects, Step, diff};

use crate::api::{AttachRequest, ContainerInfo};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::grow::Addition;
use crate::kernel::Kernel;
use crate::store::{Durability, Store, Tx};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Makes a container known and gives its namespace endpoints and published ports, all or nothing.
    ///
    /// When this returns, the addresses answer and the ports are open.
    ///
    /// # Errors
    /// Whatever is malformed, taken, exhausted or refused by the kernel; nothing has changed then.
    pub fn attach(&self, request: &AttachRequest) -> Result<ContainerInfo> {
        let sandbox = self.sandbox_of(request)?;
        self.with_room(|| self.attach_under(&self.begin()?, request, sandbox.clone()))
    }

    /// The namespace that a request names, if it names one.
    pub(crate) fn sandbox_of(&self, request: &AttachRequest) -> Result<Option<Sandbox>> {
        let sandbox = match (&request.kind, &request.netns) {
            (ContainerKind::Handed, _) => self.kernel.here().map(Some),
            (_, netns) => netns.as_deref().map(|path| self.kernel.sandbox(path)).transpose(),
        };
        sandbox.map_err(|source| Error::Kernel { doing: "attach".to_owned(), source })
    }

    /// The row of a container that is to be made.
    pub(crate) fn container_for(&self, request: &AttachRequest, sandbox: Option<Sandbox>) -> Result<Container> {
        let id = request.id.unwrap_or_else(|| self.random_id());
        let name = match &request.name {
            Some(name) => name.clone(),
            None => id.short().parse().expect("hexadecimal digits are a name"),
        };
        Ok(Container {
            id,
            name,
            kind: request.kind,
            mode: request.mode.clone(),
            process: request.process,
            supervisor: None,
            state: match request.kind {
                ContainerKind::Attached | ContainerKind::Handed => ContainerState::Running,
                ContainerKind::Run => ContainerState::Created,
            },
            sandbox,
            hostname: request.hostname.clone(),
            command: request.command.clone(),
            exposed: request.exposed.clone(),
            dns: request.dns.clone(),
            hosts: request.hosts.clone(),
            sysctls: request.sysctls.clone(),
            settings: Vec::new(),
            labels: request.labels.clone(),
            auto_remove: request.auto_remove,
            port_keeper: request.port_keeper.clone(),
            no_netfilter: request.no_netfilter,
            health_check: request.health_check.clone(),
            health: request.health_check.as_ref().map(|_| Health::new(HealthState::Starting)),
            boot: self.boot()?,
            created: self.kernel.now(),
            phase: self.owner(),
        })
    }

    /// [`Engine::attach`] for who holds the lock.
    pub(crate) fn attach_under(
        &self,
        guard: &S::Guard<'_>,
        request: &AttachRequest,
        sandbox: Option<Sandbox>,
    ) -> Result<ContainerInfo> {
        self.make_way(guard, &request.endpoints, &request.publish)?;
        let container = self.container_for(request, sandbox)?;
        if request.mode != NetworkMode::Own && (!request.endpoints.is_empty() || !request.publish.is_empty()) {
            let why = "has no network of its own: it can neither be connected nor publish ports";
            return Err(Error::WrongMode { container: container.name.to_string(), why });
        }

        let tx = self.free_name(guard, &container)?;
        if request.id.is_some() && tx.container(container.id)?.is_some() {
            return Err(Error::NameTaken { what: "container", name: container.id.to_string() });
        }
        self.remember_boot(&tx, &container.boot)?;
        let mut view = ContainerView { container, endpoints: Vec::new(), publications: Vec::new() };
        view.container.settings = self.settings_of(&view)?;
        tx.put_container(&view.container)?;
        let exposed = request.publish_all.then_some(&request.exposed[..]);
        self.grow(guard, tx, view, &Addition { endpoints: &request.endpoints, publish: &request.publish, exposed })
    }

    /// Begins the transaction that adds `container`, after seeing to it that no other has its name or namespace; one
    /// whose namespace is gone gives way.
    fn free_name<'a>(&'a self, guard: &'a S::Guard<'_>, container: &Container) -> Result<S::Tx<'a>> {
        let Container { name, sandbox, .. } = container;
        let tx = self.store.write(guard)?;
        let named = tx.container_named(name.as_str())?;
        let inside = match sandbox {
            // Many may leave interfaces there.
            Some(_) if container.kind == ContainerKind::Handed => None,
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
        self.delete_network_rows(&tx, view.container.id, &view.endpoints, &view.publications)?;
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
