//! The face to Docker.
//!
//! Owns Docker's formats and texts, translated to the engine's verbs and back: [`plugin`], what dockerd asks its network
//! driver, [`api`], what Docker's clients ask dockerd, and [`names`], what Docker's own API says of the names of containers.
//! Sockets are the resident's.

#![forbid(unsafe_code)]

pub mod api;
pub mod names;
pub mod plugin;
mod refusal;

pub use refusal::Refusal;
