//! Asking other hosts' kernels for a sign of life: echo requests (RFC 792, RFC 4443), and datagrams of which the answer may be an
//! error.

use std::io;
use std::mem::{offset_of, size_of};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use crate::rtnl::Family;
use crate::{socket, sys};

const ECHO_REPLY4: u8 = 0;
const ECHO_REQUEST4: u8 = 8;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;
/// `ICMP_FILTER` of `SOL_RAW` (linux/icmp.h): a bit for each type that is not to be received.
const ICMP_FILTER: i32 = 1;
const SOL_RAW: i32 = 255;
/// `ICMPV6_FILTER` (linux/icmpv6.h): the same.
const ICMPV6_FILTER: i32 = 1;
/// `ICMPV6_DEST_UNREACH`.
const UNREACHABLE6: u8 = 1;
/// A neighbour's packet comes with as many (RFC 5082).
const HOPS: u8 = 255;
const HEADER: usize = 8;
/// Of IPv4, which packets of raw sockets come with.
const HEADER4: usize = 20;

/// Opens a raw socket that receives answers to echo requests and nothing else, without waiting ([`UdpSocket::recv_from`], then
/// [`echoed`]).
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`, `EAFNOSUPPORT` where the kernel lacks the family.
pub fn echo_socket(family: Family) -> io::Result<UdpSocket> {
    let protocol = match family {
        Family::V4 => libc::IPPROTO_ICMP,
        Family::V6 => libc::IPPROTO_ICMPV6,
    };
    let socket = socket::raw(family, protocol as u8)?;
    match family {
        Family::V4 => set(&socket, SOL_RAW, ICMP_FILTER, &(!(1u32 << ECHO_REPLY4)))?,
        Family::V6 => {
            let mut filter = [u32::MAX; 8];
            filter[usize::from(ECHO_REPLY6) / 32] &= !(1 << (ECHO_REPLY6 % 32));
            set(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
        }
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn set<T>(socket: &UdpSocket, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer is to a live value of plain numbers, and the length says so.
    sys::cvt(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), len) }).map(drop)
}

/// An echo request with this in it. The kernel fills in the checksum of one over IPv6.
pub fn echo_request(family: Family, id: u16, payload: &[u8]) -> Vec<u8> {
    let kind = match family {
        Family::V4 => ECHO_REQUEST4,
        Family::V6 => ECHO_REQUEST6,
    };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    if family == Family::V4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The identifier and what came back in an answer to an echo request, as a socket of [`echo_socket`] received it.
pub fn echoed(family: Family, packet: &[u8]) -> Option<(u16, &[u8])> {
    let (message, kind) = match family {
        Family::V4 => {
            let length = usize::from(packet.first()? & 0xf) * 4;
            (packet.get(length.max(HEADER4)..)?, ECHO_REPLY4)
        }
        Family::V6 => (packet, ECHO_REPLY6),
    };
    let header = message.get(..HEADER)?;
    (header[0] == kind).then(|| (u16::from_be_bytes([header[4], header[5]]), &message[HEADER..]))
}

/// Opens a socket that sends packets of IPv6 as they are, and receives nothing.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`, `EAFNOSUPPORT` where the kernel lacks IPv6.
pub fn packet_socket() -> io::Result<UdpSocket> {
    let socket = socket::raw(Family::V6, libc::IPPROTO_RAW as u8)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A datagram of UDP in a packet of IPv6, with its checksum: nobody has anything to fill in.
pub fn datagram((from, source): (Ipv6Addr, u16), (to, destination): (Ipv6Addr, u16), payload: &[u8]) -> Vec<u8> {
    let length = (HEADER + payload.len()) as u16;
    let mut udp: Vec<u8> = [source, destination, length, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    udp.extend(payload);
    // Over a pseudo-header as well (RFC 8200 §8.1).
    let mut summed: Vec<u8> = [from.octets(), to.octets()].concat();
    summed.extend(u32::from(length).to_be_bytes());
    summed.extend([0, 0, 0, libc::IPPROTO_UDP as u8]);
    summed.extend(&udp);
    let sum = match checksum(&summed) {
        // That would say that there is none.
        0 => u16::MAX,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([libc::IPPROTO_UDP as u8, HOPS]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(udp);
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Opens a UDP socket of IPv6 that is told what ICMP says of what it sent ([`refused`]), and whose packets are never cut: what the
/// interface does not take is refused with `EMSGSIZE`, whatever is known of the path. It has a port, and waits for nothing.
///
/// # Errors
/// `EAFNOSUPPORT` where the kernel lacks IPv6.
pub fn refusal_socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::from(sys::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?);
    for (name, value) in
        [(libc::IPV6_RECVERR, 1), (libc::IPV6_DONTFRAG, 1), (libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)]
    {
        sys::setsockopt_int(socket.as_fd(), libc::IPPROTO_IPV6, name, value)?;
    }
    sys::bind(socket.as_fd(), (Ipv6Addr::UNSPECIFIED, 0).into())?;
    Ok(socket)
}

/// Room for what ip(7) calls an extended error, with who told of it.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    error: libc::sock_extended_err,
    offender: libc::sockaddr_in6,
    /// For what else there may be.
    rest: [u64; 16],
}

/// The next of what ICMP said of what was sent from a port of [`refusal_socket`]: who did not take it, because nobody listens or a
/// firewall does not let it in, with the beginning of it, in `payload`; none for anything else that was said.
///
/// # Errors
/// `WouldBlock` when there is nothing more.
pub fn refused<'a>(socket: &UdpSocket, payload: &'a mut [u8]) -> io::Result<Option<(Ipv6Addr, &'a [u8])>> {
    // SAFETY: all of it is plain data for which all zeroes is valid.
    let mut control: Control = unsafe { std::mem::zeroed() };
    let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: as above.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = size_of::<Control>();
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header points to a vector, a buffer and room for control messages that outlive the call, with their lengths.
    let length = sys::cvt_len(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })?;
    let is_error = header.msg_controllen >= offset_of!(Control, rest)
        && (control.header.cmsg_level, control.header.cmsg_type) == (libc::SOL_IPV6, libc::IPV6_RECVERR)
        && control.error.ee_origin == libc::SO_EE_ORIGIN_ICMP6
        && control.error.ee_type == UNREACHABLE6;
    let from = Ipv6Addr::from(control.offender.sin6_addr.s6_addr);
    Ok(is_error.then(|| (from, &payload[..length.min(payload.len())])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_summed_up_and_answers_read() {
        let mut packet = echo_request(Family::V4, 7, b"odd");
        assert_eq!(checksum(&packet), 0);
        packet[0] = ECHO_REPLY4;
        let mut whole = vec![0x46; 24];
        whole.extend(&packet);
        assert_eq!(echoed(Family::V4, &whole), Some((7, &b"odd"[..])), "with an option in the header");
        assert_eq!(echoed(Family::V4, &whole[..28]), None);
        assert_eq!(echoed(Family::V4, &[]), None);
        let mut packet = echo_request(Family::V6, 0x1234, &[]);
        assert_eq!(echoed(Family::V6, &packet), None, "it is a request");
        packet[0] = ECHO_REPLY6;
        assert_eq!(echoed(Family::V6, &packet), Some((0x1234, &[][..])));
    }

    #[test]
    fn datagrams_add_up() {
        let (from, to): (Ipv6Addr, Ipv6Addr) = ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap());
        let packet = datagram((from, 1000), (to, 7), b"odd");
        assert_eq!((packet.len(), packet[5], packet[6]), (40 + 8 + 3, 11, 17));
        let mut summed = packet[8..].to_vec();
        summed.splice(32..32, [0, 0, 0, 11, 0, 0, 0, 17]);
        assert_eq!(checksum(&summed), 0);
        assert_eq!(packet[40..44], [3, 232, 0, 7]);
    }
}
