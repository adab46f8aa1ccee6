//! Frames that no decent program sends.

use std::net::IpAddr;

use crate::common::{icmp6_frame, internet_checksum, ip_frame, octets};

pub(crate) type Mac = [u8; 6];

pub(crate) const BROADCAST: Mac = [0xff; 6];
/// Of ff02::1 (RFC 2464 §7).
pub(crate) const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

const ETHERNET: usize = 14;
const IPV6: usize = 40;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Six bytes of PadN (RFC 8200 §4.2).
const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];

pub(crate) fn all_nodes() -> IpAddr {
    "ff02::1".parse().unwrap()
}

/// A router advertisement (RFC 4861 §4.2): default router for half an hour.
pub(crate) fn router_advertisement(from: (Mac, IpAddr)) -> Vec<u8> {
    let message = [&[134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0][..], &[1, 1], &from.0].concat();
    icmp6_frame((from.0, ALL_NODES_MAC), (from.1, all_nodes()), &message)
}

/// A neighbour advertisement (RFC 4861 §4.4) with the override flag.
pub(crate) fn neighbour_advertisement(about: IpAddr, mac: Mac) -> Vec<u8> {
    [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &octets(about), &[2, 1], &mac].concat()
}

/// The frame, an IPv6 one, with headers of padding before what it carries.
pub(crate) fn behind_options(frame: &[u8]) -> Vec<u8> {
    let carried = frame[ETHERNET + 6];
    let headers = [&[DESTINATION_OPTIONS, 0][..], &PADDING, &[carried, 0], &PADDING].concat();
    rebuilt(frame, HOP_BY_HOP, &[&headers, &frame[ETHERNET + IPV6..]].concat())
}

/// The frame, an IPv6 one, in two fragments: the first holds `first` bytes of what it carries, a multiple of eight.
pub(crate) fn fragments6(frame: &[u8], first: usize) -> [Vec<u8>; 2] {
    let (carried, payload) = (frame[ETHERNET + 6], &frame[ETHERNET + IPV6..]);
    let part = |bytes: &[u8], offset: usize, more: u16| {
        let header = [&[carried, 0][..], &(offset as u16 | more).to_be_bytes(), &[0, 0, 0x66, 0x66]].concat();
        rebuilt(frame, FRAGMENT, &[&header, bytes].concat())
    };
    [part(&payload[..first], 0, 1), part(&payload[first..], first, 0)]
}

/// Two fragments of which the first ends before it says what is carried: inside of destination options, or of the first of two.
pub(crate) fn hidden_in_fragments6(frame: &[u8], is_twice: bool) -> [Vec<u8>; 2] {
    let carried = frame[ETHERNET + 6];
    let padding = [1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let last = [&[carried, 1][..], &padding].concat();
    let first = if is_twice { [&[DESTINATION_OPTIONS, 1][..], &padding].concat() } else { Vec::new() };
    let payload = [&first, &last, &frame[ETHERNET + IPV6..]].concat();
    fragments6(&rebuilt(frame, DESTINATION_OPTIONS, &payload), 8)
}

fn rebuilt(frame: &[u8], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame[..ETHERNET + IPV6].to_vec();
    bytes[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    bytes[ETHERNET + 6] = next;
    bytes.extend(payload);
    bytes
}

/// The frame, an IPv4 one without options, in two fragments of which the first holds `first` bytes.
pub(crate) fn fragments4(frame: &[u8], first: usize) -> [Vec<u8>; 2] {
    let header = &frame[ETHERNET..ETHERNET + 20];
    let payload = &frame[ETHERNET + 20..];
    let part = |bytes: &[u8], offset: usize, more: u16| {
        let mut ip = header.to_vec();
        ip[2..4].copy_from_slice(&(20 + bytes.len() as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&[0x66, 0x66]);
        ip[6..8].copy_from_slice(&((offset / 8) as u16 | more).to_be_bytes());
        ip[10..12].fill(0);
        let sum = internet_checksum(&ip);
        ip[10..12].copy_from_slice(&sum);
        [&frame[..ETHERNET], &ip, bytes].concat()
    };
    [part(&payload[..first], 0, 0x2000), part(&payload[first..], first, 0)]
}

/// The frame with tags (protocol, VLAN), the outermost first.
pub(crate) fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut bytes = frame[..12].to_vec();
    for (protocol, vlan) in tags {
        bytes.extend([protocol.to_be_bytes(), vlan.to_be_bytes()].concat());
    }
    bytes.extend(&frame[12..]);
    bytes
}

/// A frame of any kind; a number below 1536 is a length (IEEE 802.3).
pub(crate) fn frame(macs: (Mac, Mac), kind: u16, payload: &[u8]) -> Vec<u8> {
    [&macs.1[..], &macs.0, &kind.to_be_bytes(), payload].concat()
}

/// An ICMP redirect (RFC 792): to reach `about`, which `victim` sent to, take `by`.
pub(crate) fn redirect4(macs: (Mac, Mac), ips: (IpAddr, IpAddr), about: IpAddr, by: IpAddr) -> Vec<u8> {
    let mut sent = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    sent.extend([octets(ips.1), octets(about)].concat());
    // An echo reply: of that the kernel keeps no socket that it would ask.
    sent.extend([0; 8]);
    let mut message = vec![5, 1, 0, 0];
    message.extend(octets(by));
    message.extend(sent);
    let sum = internet_checksum(&message);
    message[2..4].copy_from_slice(&sum);
    ip_frame(macs, ips, 1, &message)
}

/// An ICMPv6 redirect (RFC 4861 §4.5).
pub(crate) fn redirect6(macs: (Mac, Mac), ips: (IpAddr, IpAddr), about: IpAddr, by: (Mac, IpAddr)) -> Vec<u8> {
    let message = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &octets(by.1), &octets(about), &[2, 1], &by.0].concat();
    icmp6_frame(macs, ips, &message)
}

/// The frame, an IPv4 one, with a loose source route (RFC 791) by way of its destination to `last`.
pub(crate) fn source_routed(frame: &[u8], last: IpAddr) -> Vec<u8> {
    let mut ip = frame[ETHERNET..ETHERNET + 20].to_vec();
    ip[0] = 0x47;
    let len = (frame.len() - ETHERNET + 8) as u16;
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    ip.extend([&[131, 7, 4][..], &octets(last), &[0]].concat());
    ip[10..12].fill(0);
    let sum = internet_checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    [&frame[..ETHERNET], &ip, &frame[ETHERNET + 20..]].concat()
}
