//! Podman's network backend: what Podman says to `netavark`, translated to the engine's verbs and back.
//!
//! Owns the formats (JSON on standard input and output, the texts of errors), the checks that netavark makes before it
//! touches anything, the choice of a new network's subnet and device (`create`), and the protocol of external plugins.
//! Leaves out the command line, files, the engine and the resident: the binary has those.
//!
//! The protocol is that of netavark 2.1 and older Podman's netavark 1; unknown keys are ignored. Podman keeps the
//! networks and the addresses, so every setup says what its networks look like: they are transient to the engine
//! ([`portolan_engine::EndpointRequest::transient`]).

#![forbid(unsafe_code)]

mod cluster;
mod create;
mod failure;
mod plugin;
mod setup;
mod status;
mod wire;

pub use cluster::{
    ClusterCall, cluster_failure, cluster_network, complete_cluster, join_request, status_block, wanted_network,
};
pub use create::{Host, new_network};
pub use failure::{Failure, all, attach_failure, engine_failure};
pub use plugin::{find as find_plugin, run as run_plugin, run_create as run_create_plugin};
pub use setup::{Plan, container_id, driver, is_managed_bridge, network_id, plan};
pub use status::{SEARCH_DOMAIN, status};
pub use wire::{
    Attachment, CreateConfig, Network, PluginInput, PortMapping, Setup, StatusBlock, parse_create, parse_setup,
};

/// The version of netavark that we are compatible with, as Podman and netavark's own tests read it.
pub const COMPATIBLE: &str = "2.1.0";
