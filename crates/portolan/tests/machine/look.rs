//! What a runtime's tests see from outside: who answers where. Errors say in one sentence what is not as it should be.

#![allow(dead_code, reason = "each runtime's tests use a part of it")]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portolan_lab::probe::{Probe, http_get, tcp_probe, udp_probe};
use portolan_lab::server::{TcpServer, UdpServer};
use portolan_lab::{InNetns, eventually};

/// How long to wait for what must come.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// How long to wait for an answer before it is asked for anew: who is slow is there as well.
const SLOW: Duration = Duration::from_secs(3);
/// How long to wait for what must not come.
pub(crate) const SHORT: Duration = Duration::from_millis(400);

/// The host on the LAN, the second address of it, and its neighbour.
pub(crate) const HOST: &str = "10.0.1.1";
pub(crate) const HOST_SECOND: &str = "10.0.1.11";
pub(crate) const HOST6: &str = "fd00:1::1";
pub(crate) const NEIGHBOUR: &str = "10.0.1.2";
pub(crate) const NEIGHBOUR6: &str = "fd00:1::2";

/// An address and port.
pub(crate) fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address of the cases"), port)
}

/// Fails unless the HTTP server at `to` says that it is `name`; the server has a moment to start.
pub(crate) fn says(from: &impl InNetns, to: SocketAddr, name: &str) -> Result<()> {
    let mut last = String::new();
    let is_there = || {
        last = http_get(from, to, "/", SLOW)
            .map_or_else(|error| format!("{error:#}"), |reply| reply.body.trim().to_owned());
        last == name
    };
    ensure!(eventually(LONG, is_there), "`{name}` does not answer at {to}: {last}");
    Ok(())
}

/// Fails if somebody answers TCP at `to`.
pub(crate) fn silent(from: &impl InNetns, to: SocketAddr) -> Result<()> {
    let probe = tcp_probe(from, to, SHORT);
    ensure!(!probe.is_open(), "somebody answers at {to}: {probe}");
    Ok(())
}

/// Fails unless somebody who says `banner` answers TCP at `to`; whom it sees.
pub(crate) fn reaches(from: &impl InNetns, to: SocketAddr, banner: &str) -> Result<IpAddr> {
    opened(tcp_probe(from, to, LONG), to, banner)
}

/// As [`reaches`], by UDP.
pub(crate) fn reaches_by_udp(from: &impl InNetns, to: SocketAddr, banner: &str) -> Result<IpAddr> {
    opened(udp_probe(from, to, LONG), to, banner)
}

pub(crate) fn opened(probe: Probe, to: SocketAddr, banner: &str) -> Result<IpAddr> {
    ensure!(probe.banner() == Some(banner), "`{banner}` does not answer at {to}: {probe}");
    Ok(probe.seen().context("the server says whom it sees")?.ip().to_canonical())
}

/// A TCP server in `place`, on all addresses.
pub(crate) fn tcp_server(place: &impl InNetns, port: u16, banner: &str) -> Result<TcpServer> {
    TcpServer::start(place, at("::", port), banner)
}

/// A UDP server in `place`, on all addresses.
pub(crate) fn udp_server(place: &impl InNetns, port: u16, banner: &str) -> Result<UdpServer> {
    UdpServer::start(place, at("::", port), banner)
}

/// What `work` takes.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}
