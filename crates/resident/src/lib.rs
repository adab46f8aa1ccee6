//! The resident process: names, repair, the proxy, metrics. One for each root.
//!
//! Commands do their work themselves, with or without it. It follows what they commit ([`daemon`]), and serves what
//! needs somebody who stays.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod control;
pub mod daemon;
pub mod dns;
pub mod docker;
pub mod docker_api;
mod docker_names;
pub mod feed;
pub mod firewall;
#[doc(hidden)]
pub mod foreign;
pub mod http;
pub mod leases;
pub mod notify;
pub mod proxy;
pub mod repair;
pub mod scrape;
pub mod services;
pub mod shares;
pub mod stats;
pub mod supervise;
mod watched;
