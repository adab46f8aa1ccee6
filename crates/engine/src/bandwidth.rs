//! Limits of bandwidth, changed while packets flow.

use portolan_model::{Bandwidth, Endpoint, Limit, Network};
use portolan_plan::{Object, Objects, Step, diff};

use crate::api::ContainerInfo;
use crate::engine::{Engine, Unapplied};
use crate::error::{Error, Result};
use crate::grow::check_bandwidth;
use crate::kernel::Kernel;
use crate::store::{Durability, Store, Tx};

/// What becomes of the limits of an endpoint; what is none stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BandwidthChange {
    /// Into the container: a limit, or none any more.
    pub into: Option<Option<Limit>>,
    /// Out of the container: a limit, or none any more.
    pub out: Option<Option<Limit>>,
}

impl BandwidthChange {
    fn on(self, was: Bandwidth) -> Bandwidth {
        Bandwidth { into: self.into.unwrap_or(was.into), out: self.out.unwrap_or(was.out) }
    }
}

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Limits what passes between a container and `network`, or all its networks; in rows and kernel. Connections go on.
    ///
    /// A limit that stays is set again all the same: what a process that died did not come to do is done then.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotConnected`], [`Error::WrongMode`] for a container on no network, a network that
    /// cannot be limited; the kernel's refusal, and then everything is as before.
    pub fn set_bandwidth(
        &self,
        container: &str,
        network: Option<&str>,
        change: BandwidthChange,
    ) -> Result<ContainerInfo> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let container = self.find_container(&tx, container)?;
        let network = network.map(|name| self.find_network(&tx, name)).transpose()?;
        let mut view = self.view(&tx, container)?;
        let name = view.container.name.to_string();
        let is_meant = |on: &Network| network.as_ref().is_none_or(|network| network.id == on.id);
        if let Some(network) = network.as_ref().filter(|_| !view.endpoints.iter().any(|(_, on)| is_meant(on))) {
            return Err(Error::NotConnected { container: name, network: network.name.to_string() });
        }
        if view.endpoints.is_empty() {
            return Err(Error::WrongMode { container: name, why: "is on no network: there is nothing to limit" });
        }
        let before = self.container_objects(&view);
        let mut rows: Vec<Endpoint> = Vec::new();
        for (endpoint, on) in view.endpoints.iter_mut().filter(|(_, on)| is_meant(on)) {
            let wanted = change.on(endpoint.bandwidth);
            check_bandwidth(on, wanted)?;
            rows.push(endpoint.clone());
            endpoint.bandwidth = wanted;
            tx.put_endpoint(endpoint)?;
        }
        let after = self.container_objects(&view);
        let table = self.table(&tx)?;
        tx.commit(Durability::Process)?;

        let steps = again(diff(&after, &before), &after);
        let doing = || format!("limit the bandwidth of `{name}`");
        if let Err(Unapplied { error, .. }) = self.apply(&guard, &table, &steps, doing) {
            self.kernel.repair(&table, &again(diff(&before, &after), &before));
            let tx = self.store.write(&guard)?;
            for row in &rows {
                tx.put_endpoint(row)?;
            }
            tx.commit(Durability::Process)?;
            return Err(error);
        }
        let alive = self.is_alive(&view.container);
        Ok(ContainerInfo {
            container: view.container,
            endpoints: view.endpoints,
            publications: view.publications,
            alive,
        })
    }
}

/// `steps`, and all limits that stay.
fn again(mut steps: Vec<Step>, after: &Objects) -> Vec<Step> {
    for (key, object) in after.iter().filter(|(_, object)| matches!(object, Object::Shaper(_))) {
        if !steps.iter().any(|step| step.object().key() == *key) {
            steps.push(Step::Change(object.clone(), object.clone()));
        }
    }
    steps
}
