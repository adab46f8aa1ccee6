//! A client of etcd's v3 API (gRPC), as far as a cluster of hosts needs it: ranges at one revision, transactions, leases,
//! watches; TLS, users, several endpoints.
//!
//! The transport is the library `tonic`'s. Messages are written down in [`wire`], for etcd's own are to be compiled by a
//! program that machines which build us need not have.

#![forbid(unsafe_code)]

mod bundle;
mod client;
mod config;
mod error;
mod watch;
mod wire;

pub use bundle::Bundled;
pub use client::{Answer, Client, Compare, KeyValue, Op, Txn};
pub use config::{Config, Tls};
pub use error::Error;
pub use watch::{Batch, Event, Watch};
