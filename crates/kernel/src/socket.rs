//! Sockets the standard library does not offer.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::rtnl::Family;
use crate::sys;

/// Opens a raw socket (raw(7)) for an IP protocol in the calling thread's network namespace.
///
/// It comes as a [`UdpSocket`] for the sake of timeouts, `connect`, `send_to` and `recv_from`, which
/// work alike on both; ports in addresses have to be 0. IPv4 packets are received with their IP
/// header, IPv6 packets without.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`.
pub fn raw(family: Family, protocol: u8) -> io::Result<UdpSocket> {
    sys::socket(family.number().into(), libc::SOCK_RAW, protocol.into()).map(UdpSocket::from)
}

/// The number of an interface of the calling thread's network namespace, as addresses have it for their scope.
///
/// What is below `/sys/class/net` would be that of the namespace in which somebody mounted it.
pub fn scope(interface: &str) -> Option<u32> {
    sys::interface_index(interface)
}

/// Opens a packet socket (packet(7)) on an interface of the calling thread's network namespace.
///
/// It sends and receives whole frames, by `send` and `recv` of the [`UdpSocket`] it comes as, and sees what leaves the
/// interface as well as what arrives.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`, `ENODEV` for an interface that is not there.
pub fn packet(ifindex: u32) -> io::Result<UdpSocket> {
    let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    // SAFETY: sockaddr_ll is plain data for which all zeroes is valid.
    let mut on: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    on.sll_family = libc::AF_PACKET as u16;
    on.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    on.sll_ifindex = ifindex as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is live and its length is given.
    sys::cvt(unsafe { libc::bind(socket.as_raw_fd(), (&raw const on).cast(), len) })?;
    Ok(UdpSocket::from(socket))
}

/// Waits until one of `fds` can be read, is at its end, or has an error; tells which.
///
/// All are `false` after `timeout`; `None` waits for good.
///
/// # Errors
/// What poll(2) says.
pub fn wait_readable<const N: usize>(fds: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    let millis =
        timeout.map_or(-1, |timeout| i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
    let mut entries = fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    loop {
        // SAFETY: pointer and length come from one live array.
        match sys::cvt(unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, millis) }) {
            Ok(_) => return Ok(entries.map(|entry| entry.revents != 0)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
