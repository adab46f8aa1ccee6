//! The reference plugins of the Container Network Interface, by their names.
//!
//! Each takes the reference configuration and gives the reference result, alone, in chains, and beside the originals. So
//! they keep what the originals keep, where the originals look for it: the kernel's own objects, and host-local's
//! directory of leases. There is no row of theirs in the store, and the resident knows nothing of them. The plugin
//! `portolan`, which does a whole chain over the engine, is the binary's.
//!
//! A plugin is a module with `run`, which is given a call that has been checked and a configuration.

#![forbid(unsafe_code)]

pub mod delegate;
mod host_local;
mod inside;
mod ipam;
mod loopback;
mod static_;

use portolan_cni::{Call, Config, Error, Success, Version};

/// The plugins here, by name.
pub const TYPES: [&str; 3] = ["loopback", "host-local", "static"];

/// What a verb answers: a result and the version it is written in, or nothing.
pub type Answer = Result<Option<(Success, Version)>, Error>;

/// Does as the plugin called `kind` does. `text` is the configuration as it came.
///
/// # Errors
/// As the plugin does.
///
/// # Panics
/// If `kind` is none of [`TYPES`].
pub fn run(kind: &str, call: &Call, config: &Config, text: &[u8]) -> Answer {
    match kind {
        "loopback" => loopback::run(call, config),
        "host-local" => host_local::run(call, config, text),
        "static" => static_::run(call, config, text),
        _ => unreachable!("`{kind}` is no plugin here"),
    }
}
