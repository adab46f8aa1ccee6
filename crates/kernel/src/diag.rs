//! Who listens: socket diagnostics (sock_diag(7)), bind tests and the owners of sockets.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use netlink_bindings::inet_diag::{Msg, ReqV2};
use netlink_bindings::utils::find_attr;

use crate::netlink::{NetlinkError, SOCK_DIAG, Socket};
use crate::rtnl::Family;
use crate::{process, sys};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// States of include/net/tcp_states.h as bits. A bound UDP socket is "closed".
const TCP_LISTEN: u32 = 1 << 10;
const ALL_STATES: u32 = u32::MAX;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
            Self::Sctp => libc::IPPROTO_SCTP as u8,
        }
    }
}

/// A socket waiting for peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Protocol.
    pub transport: Transport,
    /// Local address; unspecified for all.
    pub addr: IpAddr,
    /// Local port.
    pub port: u16,
    /// Socket inode, for [`holder_of`].
    pub inode: u32,
    /// Whether an IPv6 socket is deaf to IPv4 (`IPV6_V6ONLY`); `false` for IPv4 sockets.
    pub v6only: bool,
    /// Interface it is bound to, 0 for all.
    pub ifindex: u32,
}

impl Listener {
    /// Whether a bind of `transport` to `addr` and `port` would meet this socket.
    pub fn occupies(&self, transport: Transport, addr: IpAddr, port: u16) -> bool {
        if self.transport != transport || self.port != port {
            return false;
        }
        match (self.addr, addr) {
            (IpAddr::V6(own), IpAddr::V4(_)) if own.is_unspecified() => !self.v6only,
            (IpAddr::V6(own), IpAddr::V4(other)) => {
                own.to_ipv4_mapped().is_some_and(|own| own == other || own.is_unspecified() || other.is_unspecified())
            }
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
            (own, other) => own == other || own.is_unspecified() || other.is_unspecified(),
        }
    }
}

/// Lists TCP listeners, and UDP and SCTP sockets with a local port, of the calling thread's
/// namespace. UDP sockets connected to one peer are left out.
///
/// # Errors
/// The kernel's refusal; protocols that the kernel lacks are skipped.
pub fn listeners() -> Result<Vec<Listener>, NetlinkError> {
    let mut socket = Socket::open(SOCK_DIAG)?;
    let mut all = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
        for family in [Family::V4, Family::V6] {
            match listeners_of(&mut socket, transport, family) {
                Ok(found) => all.extend(found),
                // No handler for the protocol or the family.
                Err(error) if matches!(error.errno(), libc::ENOENT | libc::EAFNOSUPPORT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(all)
}

/// Lists the sockets of one protocol and family; `socket` speaks [`SOCK_DIAG`].
///
/// # Errors
/// The kernel's refusal; `ENOENT` if it cannot list the protocol.
pub fn listeners_of(socket: &mut Socket, transport: Transport, family: Family) -> Result<Vec<Listener>, NetlinkError> {
    socket.dump_all(
        SOCK_DIAG_BY_FAMILY,
        0,
        |buf| {
            let mut request = ReqV2::new();
            request.family = family.number();
            request.protocol = transport.number();
            request.states = if transport == Transport::Udp { ALL_STATES } else { TCP_LISTEN };
            buf.extend_from_slice(request.as_slice());
        },
        |_, payload| parse(payload, transport, family),
    )
}

pub(crate) fn parse(payload: &[u8], transport: Transport, family: Family) -> Option<Listener> {
    let message = Msg::new_from_slice(payload.get(..Msg::len())?)?;
    let peer_port = u16::from_be(message.sockid._dport_be);
    let port = u16::from_be(message.sockid._sport_be);
    if port == 0 || (transport == Transport::Udp && peer_port != 0) {
        return None;
    }
    let src = message.sockid.src;
    let addr = match family {
        Family::V4 => Ipv4Addr::from([src[0], src[1], src[2], src[3]]).into(),
        Family::V6 => Ipv6Addr::from(src).into(),
    };
    // The generated decoder takes this byte for a flag without a value.
    let v6only = find_attr(&payload[Msg::len()..], INET_DIAG_SKV6ONLY).is_some_and(|value| value.first() == Some(&1));
    Some(Listener { transport, addr, port, inode: message.inode, v6only, ifindex: message.sockid.r#if })
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id as seen in `/proc`.
    pub pid: i32,
    /// Its name (`/proc/<pid>/comm`).
    pub comm: String,
}

/// Finds a process with the socket `inode` open, by looking through `/proc/*/fd`.
///
/// Takes milliseconds on a busy host: for error messages only. Processes we may not look into are
/// passed over.
pub fn holder_of(inode: u32) -> Option<Holder> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
        for fd in fds.flatten() {
            let is_it = fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str().as_bytes() == wanted.as_bytes());
            if is_it {
                let comm = fs::read(process.path().join("comm")).unwrap_or_default();
                return Some(Holder { pid, comm: process::shown(&comm) });
            }
        }
    }
    None
}

/// Tests whether `addr` and `port` can be bound, in the calling thread's namespace; never listens.
///
/// TCP is tried with `SO_REUSEADDR`, so that connections in TIME-WAIT do not count; UDP without,
/// as it would allow to share the port. An IPv6 address is tried for IPv6 only. Where the kernel
/// lacks SCTP, no SCTP socket can be in the way.
///
/// # Errors
/// What bind(2) says: `EADDRINUSE`, or `EADDRNOTAVAIL` for an address this host does not have.
pub fn probe_bind(transport: Transport, addr: IpAddr, port: u16) -> io::Result<()> {
    probe(transport, addr, port, false)
}

/// The same, whether the host has the IPv6 address or not: one that is tentative (RFC 4862 §5.4) cannot be bound to yet.
///
/// # Errors
/// What bind(2) says: `EADDRINUSE`.
pub fn probe_bind_ahead(transport: Transport, addr: Ipv6Addr, port: u16) -> io::Result<()> {
    probe(transport, addr.into(), port, true)
}

fn probe(transport: Transport, addr: IpAddr, port: u16, ahead: bool) -> io::Result<()> {
    let family = i32::from(Family::of(addr).number());
    let kind = match transport {
        Transport::Udp => libc::SOCK_DGRAM,
        Transport::Tcp | Transport::Sctp => libc::SOCK_STREAM,
    };
    let socket = match sys::socket(family, kind, transport.number().into()) {
        Err(error)
            if transport == Transport::Sctp
                && matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::ESOCKTNOSUPPORT)) =>
        {
            return Ok(());
        }
        result => result?,
    };
    if transport != Transport::Udp {
        sys::setsockopt_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    }
    if addr.is_ipv6() {
        sys::setsockopt_int(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    if ahead {
        sys::setsockopt_int(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1)?;
    }
    sys::bind(socket.as_fd(), SocketAddr::new(addr, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(addr: &str, v6only: bool) -> Listener {
        Listener { transport: Transport::Tcp, addr: addr.parse().unwrap(), port: 80, inode: 1, v6only, ifindex: 0 }
    }

    #[test]
    fn a_dual_stack_socket_occupies_ipv4_too() {
        let v4 = "192.0.2.1".parse().unwrap();
        assert!(listener("::", false).occupies(Transport::Tcp, v4, 80));
        assert!(!listener("::", true).occupies(Transport::Tcp, v4, 80));
        assert!(!listener("::", false).occupies(Transport::Udp, v4, 80));
        assert!(listener("0.0.0.0", false).occupies(Transport::Tcp, v4, 80));
        assert!(!listener("192.0.2.2", false).occupies(Transport::Tcp, v4, 80));
        assert!(listener("192.0.2.2", false).occupies(Transport::Tcp, IpAddr::V4(Ipv4Addr::UNSPECIFIED), 80));
    }
}
