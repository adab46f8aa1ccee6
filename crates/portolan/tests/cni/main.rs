//! The real binary called as a CNI plugin, as runtimes call it: what it answers, and what becomes of packets.

#[path = "../common/mod.rs"]
mod common;

mod runtime;

mod input;
mod life;
mod options;
mod sets;
mod tuning;
