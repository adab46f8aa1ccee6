//! The real binary called as `netavark`, as Podman calls it: what it answers, and what becomes of packets.

mod common;

#[path = "netavark/podman.rs"]
mod podman;

#[path = "netavark/bridge.rs"]
mod bridge;
#[path = "netavark/child.rs"]
mod child;
#[path = "netavark/create.rs"]
mod create;
#[path = "netavark/input.rs"]
mod input;
#[path = "netavark/life.rs"]
mod life;
#[path = "netavark/names.rs"]
mod names;
#[path = "netavark/plugins.rs"]
mod plugins;
#[path = "netavark/ports.rs"]
mod ports;
#[path = "netavark/routes.rs"]
mod routes;
#[path = "netavark/surroundings.rs"]
mod surroundings;
