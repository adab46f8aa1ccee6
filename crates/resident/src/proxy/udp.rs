//! A UDP client that is passed on: a socket of its own towards the container, until it has been silent for a while.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

/// As long as the kernel remembers a UDP flow that went both ways (`nf_conntrack_udp_timeout_stream`).
pub(super) const IDLE: Duration = Duration::from_secs(120);

/// A client.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) listen: SocketAddr,
    pub(super) client: SocketAddr,
    pub(super) target: SocketAddr,
    pub(super) server: OwnedFd,
    pub(super) used: Instant,
}

impl Flow {
    /// A socket towards where the rule leads.
    pub(super) fn begin(listen: SocketAddr, client: SocketAddr, target: SocketAddr, now: Instant) -> io::Result<Self> {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let server = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        connect(&server, &target)?;
        Ok(Self { listen, client, target, server, used: now })
    }
}
