//! The reference plugins of the Container Network Interface, by their names.
//!
//! Each takes the reference configuration and gives the reference result, alone, in chains, and beside the originals. So
//! they keep what the originals keep, where the originals look for it: the kernel's own objects, and host-local's
//! directory of leases. There is no row of theirs in the store, and the resident knows nothing of them. The plugin
//! `portolan`, which does a whole chain over the engine, is the binary's.
//!
//! `dhcp` asks a daemon, as its original does, and that daemon is here as well ([`dhcp::daemon`]).
//!
//! A plugin is a module with `run`, which is given a call that has been checked and a configuration.

#![forbid(unsafe_code)]

mod addresses;
mod bandwidth;
mod bridge;
mod chain;
mod check;
mod child;
mod conf;
mod configure;
pub mod delegate;
pub mod dhcp;
mod firewall;
#[doc(hidden)]
pub mod foreign;
mod forward;
mod host_device;
mod host_end;
mod host_local;
mod inside;
mod ipam;
mod loopback;
mod nat;
mod portmap;
mod ptp;
mod sbr;
mod single;
mod static_;
mod table;
mod tap;
mod tuning;
mod vrf;
mod waiting;

use portolan_cni::{Call, Config, Error, Success, Version};

/// The plugins here, by name.
#[rustfmt::skip]
pub const TYPES: [&str; 18] = [
    "bridge",
    "ptp",
    "macvlan",
    "ipvlan",
    "vlan",
    "host-device",
    "dummy",
    "tap",
    "loopback",
    "host-local",
    "static",
    "dhcp",
    "portmap",
    "bandwidth",
    "firewall",
    "tuning",
    "vrf",
    "sbr",
];

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
        "bridge" => bridge::run(call, config, text),
        "ptp" => ptp::run(call, config, text),
        "macvlan" => child::macvlan(call, config, text),
        "ipvlan" => child::ipvlan(call, config, text),
        "vlan" => child::vlan(call, config, text),
        "host-device" => host_device::run(call, config, text),
        "dummy" => child::dummy(call, config, text),
        "tap" => tap::run(call, config, text),
        "loopback" => loopback::run(call, config),
        "bandwidth" => bandwidth::run(call, config),
        "firewall" => firewall::run(call, config, text),
        "portmap" => portmap::run(call, config, text),
        "sbr" => sbr::run(call, config, text),
        "tuning" => tuning::run(call, config, text),
        "vrf" => vrf::run(call, config, text),
        "host-local" => host_local::run(call, config, text),
        "static" => static_::run(call, config, text),
        "dhcp" => dhcp::run(call, config, text),
        _ => unreachable!("`{kind}` is no plugin here"),
    }
}
