//! What others write, taken apart without anything else of a plugin: the ways in for `fuzz/`, and for nothing else.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_cni::{Call, Config, Dns, Error, Success};

use crate::dhcp::foreign;
use crate::host_local;

/// What a stream of `net/rpc` has in it, in words, when it comes in pieces of `piece` bytes; and why it ends, if it does.
pub fn calls(bytes: &[u8], piece: usize) -> (Vec<String>, Option<String>) {
    foreign::calls(bytes, piece)
}

/// How much of what a caller says first is its head, and why it is refused, if it is.
pub fn greeting(said: &[u8]) -> (usize, Option<&'static str>) {
    foreign::greeting(said)
}

/// What a daemon answers to a call, if it is a lease.
pub fn lease(bytes: &[u8]) -> Option<Success> {
    foreign::lease(bytes)
}

/// The same as a daemon of ours writes it.
pub fn write_lease(lease: &Success) -> Vec<u8> {
    foreign::write_lease(lease)
}

/// What a configuration of `dhcp` asks for.
///
/// # Errors
/// As the plugin refuses.
pub fn dhcp_options(text: &[u8]) -> Result<String, Error> {
    foreign::options(text)
}

/// What host-local would give by a configuration: of each set the addresses that come first, with their gateways, behind
/// the one that was given last.
///
/// # Errors
/// As the plugin refuses.
pub fn host_local(
    call: &Call,
    config: &Config,
    text: &[u8],
    last: Option<IpAddr>,
) -> Result<Vec<Vec<(IpNet, IpAddr)>>, Error> {
    host_local::first(call, config, text, last)
}

/// What a resolver's file says.
pub fn resolv_conf(text: &str) -> Dns {
    host_local::resolv_conf(text)
}

/// The files of a directory of leases: address, and whose it is.
///
/// # Errors
/// When there is no such directory.
pub fn leases(dir: &std::path::Path) -> Result<Vec<(IpAddr, String)>, Error> {
    host_local::listed(dir)
}
