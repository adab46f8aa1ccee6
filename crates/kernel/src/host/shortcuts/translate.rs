//! Packets of IPv4 as packets of IPv6 on the encrypted link, without a tunnel: 20 bytes more instead of 70, and no way through the
//! kernel's VXLAN.
//!
//! Each host has a prefix of 48 bits on the link, and whom a packet is from or for is said by that ([`Translated`]). The 80 bits
//! after it are: 16 that make the sum of the address that of the IPv4 address, so that checksums of TCP and UDP hold as they are
//! (as RFC 6296 §3.1 does); the network's number (32); the IPv4 address (32). What is lost is the identification, and that a
//! packet may be divided, for which there is no occasion on the way (RFC 7915 §4.1, RFC 6864 §4).

use std::net::Ipv6Addr;

use portolan_model::{Mac, Vni};

use super::program::{END, ETHERNET, FAR, FOUND, GIVEN, HERE, NEXT, START, far, packet};
use crate::bpf::asm::{Asm, Helper, Label, R0, R1, R2, R3, STACK, Size, When};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Bytes of a header without options (RFC 791 §3.1), and by how many that of IPv6 (RFC 8200 §3) is longer.
const SHORT: i16 = 20;
const MORE: i32 = 20;
/// Version 4, five words.
const FIRST: i32 = 0x45;
/// More fragments, or where one belongs; and that it is not to be divided.
const FRAGMENT: u16 = 0x3fff;
const WHOLE: i32 = 0x4000;

/// Places on the stack, of a word each: what of a header is kept while it changes.
const TRAFFIC_CLASS: i16 = -80;
const LENGTH: i16 = -76;
const HOPS: i16 = -72;
const PROTOCOL: i16 = -68;
const SOURCE: i16 = -88;
const DESTINATION: i16 = -84;
const KEY: i16 = -4;

/// Drops the packet (`TC_ACT_SHOT`).
const DROP: i32 = 2;
/// Into an interface instead of out by it (`BPF_F_INGRESS`).
const INGRESS: i32 = 1;

/// What a translated address of this host and network begins with.
pub(super) fn start(link: Ipv6Addr, vni: Vni) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(&link.octets()[..6]);
    bytes[8..].copy_from_slice(&vni.number().to_be_bytes());
    let sum: u32 = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    bytes[6..8].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes
}

/// Sends a packet of IPv4 translated, if its block's host takes such. Goes on at `by_tunnel` if it does not, and right after where
/// the packet does not lend itself, without having changed it.
pub(super) fn out(asm: &mut Asm, by_tunnel: Label) {
    let (left, drop) = (asm.label(), asm.label());
    asm.load(Size::Word, R1, FOUND, far::LINK as i16);
    asm.jump_if(R1, When::Equal, 0, by_tunnel);
    asm.load(Size::Byte, R1, START, ETHERNET);
    asm.jump_if(R1, When::NotEqual, FIRST, by_tunnel);
    asm.load(Size::Half, R1, START, ETHERNET + 6);
    asm.and(R1, i32::from(FRAGMENT.to_be()));
    asm.jump_if(R1, When::NotEqual, 0, by_tunnel);
    keep_byte(asm, ETHERNET + 1, TRAFFIC_CLASS);
    asm.load(Size::Half, R1, START, ETHERNET + 2);
    asm.big_endian(R1, 16);
    asm.add(R1, -i32::from(SHORT));
    asm.store(Size::Word, STACK, LENGTH, R1);
    keep_byte(asm, ETHERNET + 8, HOPS);
    keep_byte(asm, ETHERNET + 9, PROTOCOL);
    change(asm, IPV6);
    asm.jump_if(R0, When::NotEqual, 0, left);
    reload(asm, ETHERNET + SHORT + MORE as i16, drop);
    asm.store_number(Size::Half, START, ETHERNET - 2, i32::from(IPV6.to_be()));
    asm.load(Size::Word, R1, STACK, TRAFFIC_CLASS);
    asm.shift_left(R1, 20);
    asm.or(R1, 0x6000_0000);
    asm.big_endian(R1, 32);
    asm.store(Size::Word, START, ETHERNET, R1);
    asm.load(Size::Word, R1, STACK, LENGTH);
    asm.big_endian(R1, 16);
    asm.store(Size::Half, START, ETHERNET + 4, R1);
    asm.load(Size::Word, R1, STACK, PROTOCOL);
    asm.store(Size::Byte, START, ETHERNET + 6, R1);
    asm.load(Size::Word, R1, STACK, HOPS);
    asm.add(R1, -1);
    asm.store(Size::Byte, START, ETHERNET + 7, R1);
    for (at, first, last) in [(8, far::FROM, HERE + 12), (24, far::TO, FAR + 16)] {
        for word in 0..3 {
            asm.load(Size::Word, R1, FOUND, first as i16 + 4 * word);
            asm.store(Size::Word, START, ETHERNET + at + 4 * word, R1);
        }
        asm.load(Size::Word, R1, STACK, last);
        asm.store(Size::Word, START, ETHERNET + at + 12, R1);
    }
    asm.load(Size::Word, R1, FOUND, far::LINK as i16);
    asm.set(R2, 0);
    asm.call(Helper::Redirect);
    asm.exit();
    asm.place(drop);
    asm.set(R0, DROP);
    asm.exit();
    asm.place(left);
}

/// The program of the link on which this host is `own`: what comes translated goes into the end of tunnels that `ends` knows by the
/// network's number, as if it came out of a tunnel. `own` itself is where tunnels end.
pub(super) fn program(own: Ipv6Addr, mac: Mac, ends: i32) -> Vec<u64> {
    let mut asm = Asm::default();
    let (pass, drop, ours) = (asm.label(), asm.label(), asm.label());
    let word = |at: usize| {
        let octets = own.octets();
        i32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    };
    let half = |at: usize| i32::from(u16::from_ne_bytes([own.octets()[at], own.octets()[at + 1]]));
    asm.copy(GIVEN, R1);
    asm.load(Size::Word, R1, GIVEN, packet::PROTOCOL);
    asm.jump_if(R1, When::NotEqual, i32::from(IPV6.to_be()), pass);
    reload(&mut asm, SHORT + MORE as i16, pass);
    different(&mut asm, Size::Word, 24, word(0), pass);
    different(&mut asm, Size::Half, 28, half(4), pass);
    for at in [8, 12] {
        different(&mut asm, Size::Word, 24 + at as i16, word(at), ours);
    }
    different(&mut asm, Size::Half, 30, half(6), ours);
    asm.jump(pass);
    asm.place(ours);
    asm.load(Size::Word, R1, START, 32);
    asm.store(Size::Word, STACK, KEY, R1);
    asm.load(Size::Word, R1, START, 0);
    asm.big_endian(R1, 32);
    asm.shift_right(R1, 20);
    asm.and(R1, 0xff);
    asm.store(Size::Word, STACK, TRAFFIC_CLASS, R1);
    asm.load(Size::Half, R1, START, 4);
    asm.big_endian(R1, 16);
    asm.add(R1, i32::from(SHORT));
    asm.jump_if(R1, When::Greater, 0xffff, drop);
    asm.store(Size::Word, STACK, LENGTH, R1);
    keep_byte(&mut asm, 6, PROTOCOL);
    keep_byte(&mut asm, 7, HOPS);
    for (from, to) in [(20, SOURCE), (36, DESTINATION)] {
        asm.load(Size::Word, R1, START, from);
        asm.store(Size::Word, STACK, to, R1);
    }
    asm.map(R1, ends);
    asm.copy(R2, STACK);
    asm.add(R2, i32::from(KEY));
    asm.call(Helper::MapLookup);
    asm.jump_if(R0, When::Equal, 0, drop);
    asm.load(Size::Word, FOUND, R0, 0);
    change(&mut asm, IPV4);
    asm.jump_if(R0, When::NotEqual, 0, drop);
    // The link has no Ethernet.
    asm.copy(R1, GIVEN);
    asm.set(R2, i32::from(ETHERNET));
    asm.set(R3, 0);
    asm.call(Helper::ChangeHead);
    asm.jump_if(R0, When::NotEqual, 0, drop);
    reload(&mut asm, ETHERNET + SHORT, drop);
    let [a, b, c, d, e, f] = mac.octets();
    asm.store_number(Size::Word, START, 0, i32::from_ne_bytes([a, b, c, d]));
    asm.store_number(Size::Half, START, 4, i32::from(u16::from_ne_bytes([e, f])));
    asm.store_number(Size::Half, START, ETHERNET - 2, i32::from(IPV4.to_be()));
    header(&mut asm);
    asm.copy(R1, FOUND);
    asm.set(R2, INGRESS);
    asm.call(Helper::Redirect);
    asm.exit();
    asm.place(drop);
    asm.set(R0, DROP);
    asm.exit();
    asm.place(pass);
    asm.set(R0, NEXT);
    asm.exit();
    asm.finish()
}

/// Writes a header of IPv4 from what was kept, its checksum last.
fn header(asm: &mut Asm) {
    const SUM: crate::bpf::asm::Reg = R3;
    asm.store_number(Size::Byte, START, ETHERNET, FIRST);
    asm.load(Size::Word, SUM, STACK, TRAFFIC_CLASS);
    asm.store(Size::Byte, START, ETHERNET + 1, SUM);
    asm.add(SUM, FIRST << 8);
    asm.load(Size::Word, R1, STACK, LENGTH);
    asm.sum(SUM, R1);
    asm.big_endian(R1, 16);
    asm.store(Size::Half, START, ETHERNET + 2, R1);
    asm.store_number(Size::Half, START, ETHERNET + 4, 0);
    asm.store_number(Size::Half, START, ETHERNET + 6, i32::from((WHOLE as u16).to_be()));
    asm.add(SUM, WHOLE);
    asm.load(Size::Word, R1, STACK, HOPS);
    asm.store(Size::Byte, START, ETHERNET + 8, R1);
    asm.shift_left(R1, 8);
    asm.sum(SUM, R1);
    asm.load(Size::Word, R1, STACK, PROTOCOL);
    asm.store(Size::Byte, START, ETHERNET + 9, R1);
    asm.sum(SUM, R1);
    for (from, at) in [(SOURCE, 12), (DESTINATION, 16)] {
        asm.load(Size::Word, R1, STACK, from);
        asm.store(Size::Word, START, ETHERNET + at, R1);
        asm.big_endian(R1, 32);
        asm.copy(R2, R1);
        asm.shift_right(R2, 16);
        asm.and(R1, 0xffff);
        asm.sum(SUM, R1);
        asm.sum(SUM, R2);
    }
    for _ in 0..2 {
        asm.copy(R1, SUM);
        asm.shift_right(R1, 16);
        asm.and(SUM, 0xffff);
        asm.sum(SUM, R1);
    }
    asm.xor(SUM, 0xffff);
    asm.big_endian(SUM, 16);
    asm.store(Size::Half, START, ETHERNET + 10, SUM);
}

/// Makes room for a header of the other family. Register 0 is 0 if that can be: not for UDP that is several packets.
fn change(asm: &mut Asm, to: u16) {
    asm.copy(R1, GIVEN);
    asm.set(R2, i32::from(to.to_be()));
    asm.set(R3, 0);
    asm.call(Helper::ChangeProtocol);
}

/// Looks again where the packet is, of which so many bytes are needed.
fn reload(asm: &mut Asm, length: i16, short: Label) {
    asm.load(Size::Word, START, GIVEN, packet::START);
    asm.load(Size::Word, END, GIVEN, packet::END);
    asm.copy(R1, START);
    asm.add(R1, i32::from(length));
    asm.jump_if_reg(R1, When::Greater, END, short);
}

fn keep_byte(asm: &mut Asm, at: i16, to: i16) {
    asm.load(Size::Byte, R1, START, at);
    asm.store(Size::Word, STACK, to, R1);
}

/// Goes on there if something else is at a place of the packet.
fn different(asm: &mut Asm, size: Size, at: i16, number: i32, there: Label) {
    asm.load(size, R1, START, at);
    // A number that is compared is taken for one with a sign (RFC 9669 §4.2): what is loaded has none.
    asm.set(R2, number);
    asm.shift_left(R2, 32);
    asm.shift_right(R2, 32);
    asm.jump_if_reg(R1, When::NotEqual, R2, there);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071.
    fn sum(bytes: &[u8]) -> u16 {
        let mut sum: u32 = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn an_address_has_the_sum_of_the_one_in_it() {
        for (link, vni) in [
            ("fe9c:493:4156:c1f8:7805:5fe5:430c:a9e4", 11_457_725),
            ("febf:ffff:ffff::1", 0xff_ffff),
            ("fe80:0:1::", 1),
        ] {
            let start = start(link.parse().unwrap(), Vni::new(vni).unwrap());
            for address in [[10, 173, 30, 64], [255; 4], [0, 0, 0, 1], [172, 16, 255, 254]] {
                let translated = [&start[..], &address].concat();
                // 0 and 0xffff are the same there.
                assert_eq!(sum(&translated) % 0xffff, sum(&address) % 0xffff, "{link} {address:?}");
                assert_eq!(translated[..6], link.parse::<Ipv6Addr>().unwrap().octets()[..6]);
                assert_eq!(translated[8..12], vni.to_be_bytes());
            }
        }
    }
}
