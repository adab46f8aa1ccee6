//! The resident process: names, repair, the proxy, metrics. One for each root.

#![forbid(unsafe_code)]

pub mod dns;
pub mod proxy;
pub mod repair;
