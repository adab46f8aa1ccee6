//! Putting in order what a killed process, a reboot or another tool left: recover, reconcile, gc, verify.

use std::collections::{BTreeMap, BTreeSet};

use portolan_model::{Container, ContainerKind, ContainerState, Id, Network};
use portolan_plan::{Object, Objects, Set, Shortcut, Step, diff, possible};

use crate::api::{Repaired, Rules, RulesOf};
use crate::engine::{Engine, called, meta};
use crate::error::{Error, Kind, Result};
use crate::kernel::{Kernel, KernelError};
use crate::store::{Durability, Store, Transition, Tx};

/// How many rows in transition are looked at before a verb; more than one verb leaves when it is killed.
const TRANSITIONS: usize = 100_000;

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Makes a new store ready, takes down the rows that died in transition, and those of an earlier boot. Answers how
    /// many.
    pub(crate) fn recover(&self, guard: &S::Guard<'_>) -> Result<usize> {
        let tx = self.store.read()?;
        if self.is_new(&tx)? {
            drop(tx);
            return self.ensure_store(guard).map(|()| 0);
        }
        self.compare_firewall(&tx)?;
        let boot = tx.meta(meta::BOOT)?;
        let transitions = tx.transitions(TRANSITIONS)?;
        drop(tx);
        let mut count = 0;
        let now = self.boot()?;
        if let Some(boot) = boot.filter(|boot| *boot != now) {
            if boot != unfinished(&now) {
                count += self.recover_from_reboot(guard, &now)?;
            }
            self.remake_after_reboot(guard, &now)?;
        }
        for (transition, _) in transitions {
            tracing::info!(?transition, "its process died: taking it down");
            count += 1;
            self.take_down_transition(guard, transition)?;
        }
        if self.store.is_doubtful(guard)? {
            tracing::info!("a command could not write down what became of it: comparing all");
            let (_, failures) = self.reconcile_kernel(guard)?;
            if failures.iter().all(|failure| failure.kind != Kind::Transient) {
                self.store.mark_doubtful(guard, false)?;
            }
        }
        Ok(count)
    }

    /// Has the next verb compare rows and kernel: the store took something of which it said that it had not, or not, and
    /// takes nothing any more.
    pub(crate) fn doubt(&self, guard: &S::Guard<'_>) {
        if let Err(error) = self.store.mark_doubtful(guard, true) {
            tracing::warn!(%error, "rows and kernel may differ: `reconcile` compares them");
        }
    }

    fn take_down_transition(&self, guard: &S::Guard<'_>, transition: Transition) -> Result<()> {
        let tx = self.store.read()?;
        match transition {
            Transition::Network(id) => match tx.network(id)? {
                Some(network) => {
                    drop(tx);
                    self.take_down_network(guard, network)
                }
                None => Ok(()),
            },
            Transition::Container(id) => match tx.container(id)? {
                Some(container) => {
                    drop(tx);
                    self.withdraw(guard, container, None)
                }
                None => Ok(()),
            },
            Transition::Endpoint { endpoint, container } => {
                let Some(endpoint) = tx.endpoint(endpoint)? else { return Ok(()) };
                drop(tx);
                self.disconnect_under(guard, &container.to_string(), &endpoint.network.to_string()).map(drop)
            }
            Transition::Publication(row) => {
                let Some(container) = tx.container(row.container)? else {
                    drop(tx);
                    let tx = self.store.write(guard)?;
                    tx.delete_publication(row.container, &row.publication)?;
                    return Ok(tx.commit(Durability::Process)?);
                };
                let view = self.view(&tx, container)?;
                drop(tx);
                let before = self.container_objects(&view);
                let mut rest = view;
                rest.publications.retain(|publication| *publication != row.publication);
                let after = self.container_objects(&rest);
                // The rest may share an element with what goes only if the row was never applied.
                self.repair(&diff(&after, &before))?;
                let tx = self.store.write(guard)?;
                tx.delete_publication(row.container, &row.publication)?;
                tx.commit(Durability::Process)?;
                self.forget_flows(&[row.publication]);
                Ok(())
            }
        }
    }

    /// Puts in order what an earlier boot left, unless somebody has by now: for who stays and shows what there is.
    ///
    /// # Errors
    /// When the store cannot serve.
    pub fn recover_if_rebooted(&self) -> Result<()> {
        let tx = self.store.read()?;
        let boot = tx.meta(meta::BOOT)?;
        drop(tx);
        match boot {
            Some(boot) if boot != self.boot()? => self.begin().map(drop),
            _ => Ok(()),
        }
    }

    /// After a reboot no namespace of ours is left: endpoints and attached containers go; networks are made again.
    fn recover_from_reboot(&self, guard: &S::Guard<'_>, boot: &str) -> Result<usize> {
        let tx = self.store.write(guard)?;
        let mut count = 0;
        for container in tx.containers()?.into_iter().filter(|container| container.boot != boot) {
            count += 1;
            let view = self.view(&tx, container)?;
            self.delete_network_rows(&tx, view.container.id, &view.endpoints, &view.publications)?;
            self.forget_idle_base(&tx)?;
            let container = view.container;
            if container.kind != ContainerKind::Run
                || container.auto_remove
                || container.state == ContainerState::Created
            {
                tx.delete_container(container.id)?;
            } else if !matches!(container.state, ContainerState::Exited(_)) {
                tx.put_container(&Container {
                    state: ContainerState::Exited(255),
                    sandbox: None,
                    process: None,
                    supervisor: None,
                    phase: portolan_model::Phase::Settled,
                    ..container
                })?;
            }
        }
        // The sysctls are what the new boot made them.
        self.forget_host(&tx)?;
        tx.put_meta(meta::BOOT, Some(&unfinished(boot)))?;
        tx.commit(Durability::Disk)?;
        Ok(count)
    }

    /// Makes the networks again. Whoever dies or runs short of something on the way leaves it to the next; what is refused for
    /// good (the parent of a macvlan network may be gone) is not tried with every verb.
    fn remake_after_reboot(&self, guard: &S::Guard<'_>, boot: &str) -> Result<()> {
        let (_, failures) = self.reconcile_kernel(guard)?;
        for failure in &failures {
            tracing::warn!(%failure, "could not be made again after the machine was started anew");
        }
        if failures.iter().all(|failure| failure.kind != Kind::Transient) {
            let tx = self.store.write(guard)?;
            tx.put_meta(meta::BOOT, Some(boot))?;
            tx.commit(Durability::Disk)?;
        }
        Ok(())
    }

    /// Writes down under which boot the kernel was written, if that is not known.
    pub(crate) fn remember_boot(&self, tx: &S::Tx<'_>, boot: &str) -> Result<()> {
        if tx.meta(meta::BOOT)?.is_none() {
            tx.put_meta(meta::BOOT, Some(boot))?;
        }
        Ok(())
    }

    /// Everything the kernel should hold.
    fn desired(&self, tx: &S::Tx<'_>) -> Result<Objects> {
        let mut objects = self.base(tx)?;
        let mut networks: BTreeMap<Id, Network> = BTreeMap::new();
        for network in tx.networks()? {
            if self.is_materialised(tx, &network)? {
                objects.extend(self.network_objects(tx, &network)?);
            }
            networks.insert(network.id, network);
        }
        for container in tx.containers()? {
            let view = self.view_among(tx, container, &mut networks)?;
            objects.extend(self.container_objects(&view));
        }
        Ok(objects)
    }

    pub(crate) fn differences(&self, tx: &S::Tx<'_>) -> Result<Vec<Step>> {
        self.compare(tx, self.desired(tx)?)
    }

    /// How the kernel differs from `desired`, and from nothing else of ours.
    fn compare(&self, tx: &S::Tx<'_>, mut desired: Objects) -> Result<Vec<Step>> {
        let table = self.table(tx)?;
        desired.retain(|object| table.holds(object));
        let observed = self
            .kernel
            .observe(&self.root, &table, &desired)
            .map_err(|source| Error::Kernel { doing: "read the kernel's state".to_owned(), source })?;
        Ok(diff(&desired, &observed))
    }

    /// Makes our tables hold what the rows say, whatever somebody else did to them. Reads nothing but rows and tables.
    ///
    /// # Errors
    /// When store or kernel cannot be read; what could not be repaired is in the answer.
    pub fn repair_rules(&self) -> Result<Repaired> {
        let guard = self.store.lock()?;
        let rows = self.recover(&guard)?;
        let tx = self.store.write(&guard)?;
        let is_rule = |object: &Object| matches!(object, Object::Ruleset(_) | Object::Element(_));
        self.look_at_link(&tx, None)?;
        let desired = self.desired(&tx)?;
        let table = self.table(&tx)?;
        let desired: Objects = desired.into_iter().filter(|o| is_rule(o) && table.holds(o)).collect();
        tx.commit(Durability::Process)?;
        let observed = self
            .kernel
            .observe_rules(&table, &desired)
            .map_err(|source| Error::Kernel { doing: "read the ruleset".to_owned(), source })?;
        let steps = diff(&desired, &observed);
        let failures = said(self.repair(&steps)?);
        Ok(Repaired { rows, steps, failures, ..Repaired::default() })
    }

    /// Takes note that these interfaces of the host are gone: where an endpoint is meant to have one, its container is
    /// taken down if its namespace died, and its links are made again if not.
    ///
    /// A container of `portolan run` whose supervisor lives is left to it.
    ///
    /// # Errors
    /// When store or kernel cannot be read; what could not be repaired is in the answer.
    pub fn repair_ports(&self, host_ends: &[String]) -> Result<Repaired> {
        let owners = |tx: &S::Tx<'_>| -> Result<Vec<Container>> {
            let mut found: BTreeMap<Id, Container> = BTreeMap::new();
            for host_end in host_ends {
                if let Some(endpoint) = tx.endpoint_at(host_end)?.filter(|endpoint| endpoint.phase.is_settled())
                    && let Some(container) = tx.container(endpoint.container)?.filter(|row| row.phase.is_settled())
                {
                    found.insert(container.id, container);
                }
            }
            Ok(found.into_values().collect())
        };
        // Verbs remove links, too: as a rule the row is gone by now.
        if owners(&self.store.read()?)?.is_empty() {
            return Ok(Repaired::default());
        }
        let guard = self.store.lock()?;
        let mut repaired = Repaired { rows: self.recover(&guard)?, ..Repaired::default() };
        let mut is_missing = false;
        for container in owners(&self.store.read()?)? {
            if self.is_alive(&container) {
                is_missing = true;
            } else if !container.supervisor.is_some_and(|process| self.kernel.process_alive(process)) {
                repaired.containers.push(container.name.clone());
                self.reap(&guard, container)?;
            }
        }
        if is_missing {
            let (steps, failures) = self.reconcile_kernel(&guard)?;
            return Ok(Repaired { steps, failures: said(failures), ..repaired });
        }
        Ok(repaired)
    }

    /// Takes note that the namespace of an endpoint's container is gone, as [`Engine::repair_ports`] does.
    ///
    /// # Errors
    /// As there.
    pub fn reap_endpoint(&self, endpoint: Id) -> Result<Repaired> {
        match self.store.read()?.endpoint(endpoint)? {
            Some(endpoint) => self.repair_ports(&[endpoint.host_end.to_string()]),
            None => Ok(Repaired::default()),
        }
    }

    /// Makes the kernel hold what the rows say; answers the steps taken and the failures.
    pub(crate) fn reconcile_kernel(&self, guard: &S::Guard<'_>) -> Result<(Vec<Step>, Vec<KernelError>)> {
        // An interface that was handed over cannot be made again where it was taken to.
        for container in self.store.read()?.containers()? {
            // One that is being made has none yet.
            if container.kind == ContainerKind::Handed && container.phase.is_settled() && !self.is_alive(&container) {
                self.reap(guard, container)?;
            }
        }
        let tx = self.store.write(guard)?;
        self.look_at_link(&tx, None)?;
        let steps = possible(self.differences(&tx)?, |sandbox| self.kernel.sandbox_alive(sandbox));
        tx.commit(Durability::Process)?;
        let failures = self.repair(&steps)?;
        Ok((steps, failures))
    }

    /// Makes the kernel hold what the rows say, and nothing else that is ours.
    ///
    /// # Errors
    /// When store or kernel cannot be read; what could not be repaired is in the answer.
    pub fn reconcile(&self) -> Result<Repaired> {
        let guard = self.store.lock()?;
        let rows = self.recover(&guard)?;
        let (steps, failures) = self.reconcile_kernel(&guard)?;
        Ok(Repaired { containers: Vec::new(), rows, steps, failures: said(failures) })
    }

    /// Containers whose namespace is gone, and which nobody has taken down yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn dead(&self) -> Result<Vec<Container>> {
        let mut all = self.store.read()?.containers()?;
        all.retain(|container| !matches!(container.state, ContainerState::Exited(_)) && !self.is_alive(container));
        Ok(all)
    }

    /// Takes down containers whose namespace is gone and rows that died in transition, then reconciles.
    ///
    /// # Errors
    /// As for [`Engine::reconcile`].
    pub fn gc(&self) -> Result<Repaired> {
        let guard = self.store.lock()?;
        let rows = self.recover(&guard)?;
        let mut repaired = Repaired { rows, ..Repaired::default() };
        for container in self.dead()? {
            repaired.containers.push(container.name.clone());
            self.reap(&guard, container)?;
        }
        let (steps, failures) = self.reconcile_kernel(&guard)?;
        Ok(Repaired { steps, failures: said(failures), ..repaired })
    }

    /// Takes down the containers of a network whose namespace is gone.
    pub(crate) fn reap_network(&self, guard: &S::Guard<'_>, network: &Network) -> Result<()> {
        let tx = self.store.read()?;
        let mut gone = Vec::new();
        for endpoint in tx.endpoints_on(network.id)? {
            if let Some(container) = tx.container(endpoint.container)?
                && !self.is_alive(&container)
            {
                gone.push(container);
            }
        }
        drop(tx);
        gone.into_iter().try_for_each(|container| self.reap(guard, container))
    }

    /// Every difference between rows and kernel, as the steps that would remove it.
    ///
    /// # Errors
    /// When store or kernel cannot be read.
    pub fn verify(&self) -> Result<Vec<Step>> {
        // Under the lock no verb is half way.
        let guard = self.store.lock()?;
        self.ensure_store(&guard)?;
        let tx = self.store.read()?;
        self.differences(&tx)
    }

    /// What the kernel lacks of one container, its networks and the host's rules, as the steps that would make it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when store or kernel cannot be read.
    pub fn missing(&self, container: &str) -> Result<Vec<Step>> {
        let guard = self.store.lock()?;
        self.ensure_store(&guard)?;
        let tx = self.store.read()?;
        let view = self.view(&tx, self.find_container(&tx, container)?)?;
        let networks: Vec<Network> = view.endpoints.iter().map(|(_, network)| network.clone()).collect();
        let mut desired = self.surroundings(&tx, &networks)?;
        desired.extend(self.container_objects(&view));
        // What others have is not among these, and so no difference.
        let is_lack = |step: &Step| !matches!(step, Step::Delete(_));
        Ok(self.compare(&tx, desired)?.into_iter().filter(is_lack).collect())
    }

    /// A network, unless a container has that for a name of which the network only has the start of its id.
    fn network_or_place(&self, tx: &S::Tx<'_>, name: &str) -> Result<Network> {
        let is_place = || Ok::<_, Error>(tx.container_named(name)?.is_some() || !called(tx, name)?.is_empty());
        match tx.network_named(name)? {
            Some(network) => Ok(network),
            None if is_place()? => Err(Error::NotFound { what: "network", name: name.to_owned() }),
            None => self.find_network(tx, name),
        }
    }

    /// The elements that the kernel holds: all, or those of one network or container.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the kernel cannot be read.
    pub fn rules(&self, of: &RulesOf) -> Result<Rules> {
        self.ensure_readable()?;
        let tx = self.store.read()?;
        let owners: Option<Vec<String>> = match of {
            RulesOf::Everything => None,
            RulesOf::Named(name) => Some(match self.network_or_place(&tx, name) {
                Ok(network) => vec![format!("network {}", network.name), format!(" on {}", network.name)],
                Err(Error::NotFound { .. }) => {
                    let places = self.find_places(&tx, name).map_err(|error| either(error, name))?;
                    places.into_iter().map(|container| format!("container {}", container.name)).collect()
                }
                Err(error) => return Err(error),
            }),
        };
        let table = self.table(&tx)?;
        let observed = self
            .kernel
            .observe(&self.root, &table, &Objects::new())
            .map_err(|source| Error::Kernel { doing: "read the ruleset".to_owned(), source })?;
        let is_asked_for =
            |comment: &str| owners.as_deref().is_none_or(|owners| owners.iter().any(|owner| is_owner(comment, owner)));
        let (mut elements, mut shortcuts, mut inlets) = (Vec::new(), Vec::new(), Vec::new());
        for object in observed {
            match object {
                Object::Element(element) if element.set == Set::Closed && owners.is_some() => {}
                Object::Element(element) if is_asked_for(&element.owner) => elements.push(element),
                Object::Shortcut(shortcut) if is_asked_for(&shortcut.owner) => shortcuts.push(shortcut),
                Object::Inlet(inlet) if is_asked_for(&inlet.owner) => inlets.push(inlet),
                _ => {}
            }
        }
        let mut by_program = BTreeSet::new();
        for device in shortcuts.iter().map(|shortcut: &Shortcut| &shortcut.device).collect::<BTreeSet<_>>() {
            let refuse = |source| Error::Kernel { doing: "look for programs".to_owned(), source };
            if self.kernel.runs_program(device).map_err(refuse)? {
                by_program.insert(device.clone());
            }
        }
        Ok(Rules { firewall: table, elements, shortcuts, inlets, by_program })
    }
}

/// What is recorded of a boot until the kernel has again what the rows say.
fn unfinished(boot: &str) -> String {
    format!("{boot} unfinished")
}

/// Failures in words.
pub(crate) fn said(failures: Vec<KernelError>) -> Vec<String> {
    failures.into_iter().map(|failure| failure.to_string()).collect()
}

/// Whether an element's comment speaks of `owner`: the same words, then nothing or a blank; or, for ` on NETWORK`,
/// at its end.
fn is_owner(comment: &str, owner: &str) -> bool {
    if owner.starts_with(" on ") {
        return comment.ends_with(owner);
    }
    comment.strip_prefix(owner).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

fn either(error: Error, name: &str) -> Error {
    match error {
        Error::NotFound { .. } => Error::NotFound { what: "network or container", name: name.to_owned() },
        error => error,
    }
}
