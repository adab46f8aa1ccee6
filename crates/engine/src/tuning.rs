//! Sysctls of sandboxes: what they were before they are changed.

use portolan_model::{ContainerKind, IfName, Sandbox, Sysctl};
use portolan_plan::ContainerView;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::store::Store;

impl<S: Store, K: Kernel> Engine<S, K> {
    /// What a container's sysctls come to in a namespace that somebody else made. Who makes one sets them himself.
    pub(crate) fn settings_of(&self, view: &ContainerView) -> Result<Vec<Sysctl>> {
        if view.container.kind != ContainerKind::Attached {
            return Ok(Vec::new());
        }
        let wanted = view
            .container
            .sysctls
            .iter()
            .map(|(key, value)| Ok(Sysctl { key: key.parse()?, value: value.clone(), before: None }));
        let wanted = wanted.collect::<Result<Vec<_>>>()?;
        self.remember(view, &wanted, None)
    }

    /// What is `wanted` of `view`'s sandbox, with what is to be given back in the end. Settings of `interface`, which is
    /// yet to come, go with it.
    pub(crate) fn remember(
        &self,
        view: &ContainerView,
        wanted: &[Sysctl],
        interface: Option<&IfName>,
    ) -> Result<Vec<Sysctl>> {
        let endpoints = view.endpoints.iter().flat_map(|(endpoint, _)| &endpoint.tuning.sysctls);
        let known: Vec<&Sysctl> = view.container.settings.iter().chain(endpoints).collect();
        let before = |sandbox: &Sandbox, one: &Sysctl| {
            if interface.is_some_and(|interface| one.key.is_of(interface)) {
                return Ok(None);
            }
            // What another attachment found is what was there before us.
            if let Some(other) = known.iter().find(|other| other.key == one.key) {
                return Ok(other.before.clone());
            }
            self.kernel
                .setting_in(sandbox, one.key.path())
                .map_err(|source| Error::Kernel { doing: format!("attach `{}`", view.container.name), source })
        };
        let Some(sandbox) = &view.container.sandbox else { return Ok(Vec::new()) };
        wanted.iter().map(|one| Ok(Sysctl { before: before(sandbox, one)?, ..one.clone() })).collect()
    }
}
