//! What a reload of firewalld takes away, and putting it back.
//!
//! firewalld forgets with a reload what is of its runtime configuration only, and flushes what it made. Rules of ours that
//! are elsewhere stay, but bridges it does not know are blocked.

use anyhow::Result;
use portolan_engine::{Kernel as _, Repaired};
use portolan_model::FirewallDriver;

use crate::daemon::Engine;

/// Makes the kernel hold what the rows say, and firewalld, where it runs, let our bridges pass.
///
/// # Errors
/// When store, kernel or firewalld cannot be read; what could not be repaired is in the answer.
pub fn reload(engine: &Engine) -> Result<Repaired> {
    let repaired = engine.reconcile()?;
    if matches!(engine.firewall()?.driver, FirewallDriver::Nftables | FirewallDriver::Iptables) {
        let mut bridges = Vec::new();
        for network in engine.networks()?.into_iter().filter(|network| network.is_ruled()) {
            // Without a bridge, its host ends are what has to be let pass.
            if network.is_routed() {
                let endpoints = engine.network(&network.id.to_string())?.endpoints;
                bridges.extend(endpoints.into_iter().map(|(endpoint, _)| endpoint.host_end.to_string()));
            }
            if engine.kernel().find_interface(network.bridge.as_str())?.is_some() {
                bridges.push(network.bridge.to_string());
            }
        }
        engine.kernel().trust(&bridges)?;
    }
    Ok(repaired)
}

/// [`reload`]s whenever firewalld has reloaded or has come up, and tells `told` of it, for good. Returns at once where
/// there is no system bus.
///
/// # Errors
/// When the bus does not let us in, or goes.
pub fn follow(engine: &Engine, mut told: impl FnMut(Result<Repaired>)) -> Result<()> {
    Ok(portolan_firewalld::follow(|| told(reload(engine)))?)
}
