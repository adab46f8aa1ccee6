//! Leases of DHCP servers: what a client was granted becomes the endpoint's address, and stops being it.

use portolan_model::{DhcpLease, Family, Id, Network};
use portolan_plan::{ContainerView, Object, Objects, Step, diff};

use crate::engine::{Engine, Unapplied};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::store::{Durability, Store, Tx};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Gives an endpoint what a DHCP server granted, or takes away what has ended; in row and kernel.
    ///
    /// The interface is configured anew also when nothing differs: what a process that died did not come to do is done
    /// with the next renewal. When this returns, the address answers.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the endpoint is gone or comes or goes; the kernel's refusal, and then the endpoint has
    /// what it had before.
    pub fn set_lease(&self, endpoint: Id, family: Family, lease: Option<DhcpLease>) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let gone = || Error::NotFound { what: "endpoint", name: endpoint.short() };
        let row = tx.endpoint(endpoint)?.filter(|row| row.phase.is_settled()).ok_or_else(gone)?;
        let container = tx.container(row.container)?.filter(|row| row.phase.is_settled()).ok_or_else(gone)?;
        let mut view = self.view(&tx, container)?;
        let was = view.clone();
        let before = self.container_objects(&view);
        let at = view.endpoints.iter().position(|(other, _)| other.id == endpoint).ok_or_else(gone)?;
        let (changed, network) = &mut view.endpoints[at];
        if !network.leases(family) {
            return Err(gone());
        }
        changed.set_lease(family, lease);
        let doing = doing(&view, at, family);
        tx.put_endpoint(&view.endpoints[at].0)?;
        let after = self.container_objects(&view);
        let table = self.table(&tx)?;
        tx.commit(Durability::Process)?;

        let steps = again(diff(&after, &before), &after, &view, at);
        if let Err(Unapplied { error, .. }) = self.apply(&guard, &table, &steps, || doing.clone()) {
            // Taken back one by one, routes came before the address that they need.
            self.kernel.repair(&table, &again(diff(&before, &after), &before, &was, at));
            let tx = self.store.write(&guard)?;
            tx.put_endpoint(&row)?;
            tx.commit(Durability::Process)?;
            return Err(error);
        }
        Ok(())
    }
}

fn doing(view: &ContainerView, at: usize, family: Family) -> String {
    let (endpoint, network): &(_, Network) = &view.endpoints[at];
    match endpoint.leases.of(family) {
        Some(lease) => format!("give `{}` its address {} on `{}`", view.container.name, lease.address, network.name),
        None => format!("take the {family} address on `{}` away from `{}`", network.name, view.container.name),
    }
}

/// `steps`, and all else that makes the sandbox what it is: with an address the kernel drops the routes that need it.
fn again(mut steps: Vec<Step>, after: &Objects, view: &ContainerView, at: usize) -> Vec<Step> {
    let (endpoint, _) = &view.endpoints[at];
    let here = after.iter().map(|(_, object)| object).filter(|object| match object {
        Object::Interface(interface) => interface.name == endpoint.ifname,
        Object::DefaultRoute(_) | Object::Route(_) => true,
        _ => false,
    });
    for object in here {
        if !steps.iter().any(|step| step.object().key() == object.key()) {
            steps.push(Step::Change(object.clone(), object.clone()));
        }
    }
    steps
}
