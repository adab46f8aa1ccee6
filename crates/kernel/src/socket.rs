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
