//! The face to Docker.
//!
//! Owns Docker's formats and texts, translated to the engine's verbs and back: [`plugin`], what dockerd asks its network
//! driver, and [`api`], what Docker's clients ask dockerd. Sockets are the resident's.

#![forbid(unsafe_code)]

pub mod api;
pub mod plugin;
mod refusal;

pub use refusal::Refusal;
