//! The real binary when something goes wrong at any of its system calls, or with the machine: nothing is left, and whoever
//! comes next can go on.

#[path = "../common/mod.rs"]
mod common;

mod errnos;
mod flows;
mod kills;
mod machine;
mod memory;
mod place;
mod reboot;
mod sockets;
mod stopped;
