//! The engine's rows in SQLite: one file that any number of short-lived processes and the daemon open together.
//!
//! Owns the file format, its migrations, the write lock and how long a commit lasts. What rows mean, and which
//! of them may exist together, is `portolan-engine`'s; the schema repeats the uniqueness rules as a last line
//! of defence. No other program writes the file; [`SqliteStore`] is the only way in.
//!
//! A root holds `state.db` (with SQLite's `state.db-wal` and `state.db-shm` beside it) and `lock`, which
//! writers hold by flock(2).

#![forbid(unsafe_code)]

mod error;
mod lock;
mod migrations;
mod remotes;
mod sql;
mod store;
mod tx;

pub use lock::{PATIENCE, Queue, process};
pub use store::{SqliteGuard, SqliteStore};
pub use tx::SqliteTx;

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
