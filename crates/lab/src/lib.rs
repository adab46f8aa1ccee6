//! Hosts, LANs and containers as network namespaces, for tests, the demo and benchmarks.
//!
//! A [`Lab`] makes [`Host`]s and connects them by [`Lan`]s; all of it disappears when the lab is
//! dropped, also by a panic, and what a killed process leaves is removed by the next one's
//! [`Lab::new`]. [`probe`] and [`server`] tell who can talk to whom, [`snapshot`] what a namespace
//! holds, and [`trace`] kills a program at a chosen system call.
//!
//! Needs root. Other programs are started only where a caller asks for one.

#![forbid(unsafe_code)]

pub mod etcd;
pub mod probe;
pub mod sctp;
pub mod server;
pub mod snapshot;
pub mod trace;

mod program;
mod topology;
mod wait;

pub use program::write_program;
pub use topology::{Host, InNetns, Lab, Lan};
pub use wait::eventually;
