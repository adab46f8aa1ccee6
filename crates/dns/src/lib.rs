//! Names: what a question on a network's gateway is answered with. Decisions only; sockets are elsewhere.
//!
//! [`wire`] reads questions and writes answers, [`Names`] is the index of local names with the rules of who sees
//! which, [`Forwarder`] is what becomes of the other questions, as a state machine without socket or clock, and
//! [`ResolvConf`] says where the host sends its own.
//!
//! Nothing here allocates for a question that is answered from the index, given a buffer that was used before.

#![forbid(unsafe_code)]

pub mod wire;

mod cache;
mod forward;
mod names;
mod resolv;
mod slab;
mod special;
mod table;

pub use cache::Cache;
pub use forward::{Action, Attempt, Event, Forwarder, ForwarderStats, Limits, UpstreamStats};
pub use names::{Decision, Endpoint, Local, Names, NamesError, Network, Route, Seen, Service, Tally, Transport};
pub use resolv::ResolvConf;
