//! Telling a link that an address has moved: gratuitous ARP and unsolicited neighbour
//! advertisements.
//!
//! Frames are sent whole from a packet socket (packet(7)), so that nothing depends on the state the
//! address is in on the interface.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use crate::rtnl::Mac;
use crate::sys;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Announces `addr` at `mac` on an interface of the calling thread's namespace: an ARP announcement
/// (RFC 5227 §3) or an unsolicited neighbour advertisement (RFC 4861 §7.2.6).
///
/// # Errors
/// What the packet socket says: `EPERM` without `CAP_NET_RAW`, `ENETDOWN` for an interface that is
/// down, `ENXIO` for one that is not there.
pub fn announce(ifindex: u32, mac: Mac, addr: IpAddr) -> io::Result<()> {
    announce_all(ifindex, mac, &[addr])
}

/// Announces several addresses through one socket.
///
/// # Errors
/// As for [`announce`], of the first that fails.
pub fn announce_all(ifindex: u32, mac: Mac, addrs: &[IpAddr]) -> io::Result<()> {
    if addrs.is_empty() {
        return Ok(());
    }
    // Protocol 0: we want to receive nothing.
    let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    for addr in addrs {
        let frame = match addr {
            IpAddr::V4(addr) => arp_announcement(mac, *addr),
            IpAddr::V6(addr) => neighbour_advertisement(mac, *addr),
        };
        // SAFETY: sockaddr_ll is plain data for which all zeroes is valid.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
        to.sll_ifindex = ifindex as i32;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&frame[..6]);
        // SAFETY: frame and address are live and their lengths are given.
        sys::cvt_len(unsafe {
            libc::sendto(
                socket.as_fd().as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        })?;
    }
    Ok(())
}

/// A broadcast ARP request by `addr` for itself (RFC 826, RFC 5227 §3).
fn arp_announcement(mac: Mac, addr: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    // Ethernet, IPv4, address lengths 6 and 4, request.
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&addr.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&addr.octets());
    frame
}

/// An advertisement to all nodes that overrides what they have (RFC 4861 §4.4).
fn neighbour_advertisement(mac: Mac, addr: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut icmp = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    icmp.extend_from_slice(&addr.octets());
    // Target link-layer address option, in units of 8 bytes.
    icmp.extend_from_slice(&[2, 1]);
    icmp.extend_from_slice(&mac);
    let checksum = icmpv6_checksum(addr, all_nodes, &icmp);
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = Vec::with_capacity(86);
    // RFC 2464 §7: 33:33 and the last four bytes of the group.
    frame.extend_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&(icmp.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[libc::IPPROTO_ICMPV6 as u8, 255]);
    frame.extend_from_slice(&addr.octets());
    frame.extend_from_slice(&all_nodes.octets());
    frame.extend_from_slice(&icmp);
    frame
}

/// RFC 4443 §2.3, with the checksum field of `message` zero.
fn icmpv6_checksum(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let next_header = [0, 0, 0, libc::IPPROTO_ICMPV6 as u8];
    let parts: [&[u8]; 5] = [&src.octets(), &dst.octets(), &length, &next_header, message];
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn arp_announcement_asks_for_its_own_address() {
        let frame = arp_announcement(MAC, Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], frame[38..42]);
    }

    #[test]
    fn advertisement_checksum_verifies() {
        let addr: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let frame = neighbour_advertisement(MAC, addr);
        assert_eq!(frame.len(), 14 + 40 + 32);
        // Summed over a message with its checksum in place, the result is zero.
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        assert_eq!(icmpv6_checksum(addr, all_nodes, &frame[54..]), 0);
    }
}
