//! The program that passes packets on, at the ingress of an overlay network's end of the tunnels and of host ends on it.
//!
//! What it does not know goes on as if it were not there. It reads three headers' worth of fields and asks two maps, whatever the
//! number of containers and hosts.

use portolan_model::Family;

use super::translate;

use crate::bpf::asm::{Asm, Helper, Label, R0, R1, R2, R3, R4, R6, R7, R8, R9, Reg, STACK, Size, When};

/// Offsets in what a program is given (`struct __sk_buff`, linux/bpf.h).
pub(super) mod packet {
    pub(in super::super) const LENGTH: i16 = 0;
    pub(in super::super) const KIND: i16 = 4;
    pub(in super::super) const PROTOCOL: i16 = 16;
    pub(in super::super) const HAS_VLAN: i16 = 20;
    pub(in super::super) const INTERFACE: i16 = 40;
    pub(in super::super) const START: i16 = 76;
    pub(in super::super) const END: i16 = 80;
}

/// Sent to this host (`PACKET_HOST`, linux/if_packet.h).
const TO_US: i32 = 0;
/// Whatever comes next at the interface, or the stack (`TCX_NEXT`).
pub(super) const NEXT: i32 = -1;

/// Offsets in the value of `here`: what a container is behind.
pub(super) mod here {
    pub(in super::super) const INTERFACE: usize = 0;
    /// Not 0 where its packets wait in the queue of that.
    pub(in super::super) const QUEUED: usize = 4;
    pub(in super::super) const PACKETS: usize = 8;
    pub(in super::super) const BYTES: usize = 16;
    pub(in super::super) const OWNER: usize = 24;
}

/// Offsets in the value of `far`: where the containers of a block are.
pub(super) mod far {
    /// The neighbour at the tunnels, for us alone: a family, and an address of at most 16 bytes.
    pub(in super::super) const NEIGHBOUR: usize = 20;
    /// The index of the link by which packets go translated; 0 if they do not.
    pub(in super::super) const LINK: usize = 20;
    /// What translated addresses there begin with, and what those of containers here do.
    pub(in super::super) const TO: usize = 24;
    pub(in super::super) const FROM: usize = 36;
    /// The other end of the tunnel and this one, as a frame begins.
    pub(in super::super) const MACS: usize = 48;
    pub(in super::super) const OWNER: usize = 60;
}

/// Where things are in an Ethernet frame with a packet of a family (RFC 791 §3.1, RFC 8200 §3).
struct Frame {
    ether_type: u16,
    length: i16,
    /// Time to live, or hops.
    hops: i16,
    /// The header's checksum.
    checksum: Option<i16>,
    source: i16,
    destination: i16,
    /// `AF_INET` or `AF_INET6`.
    family: i32,
}

pub(super) const ETHERNET: i16 = 14;

fn frame(family: Family) -> Frame {
    match family {
        Family::V4 => Frame {
            ether_type: 0x0800,
            length: ETHERNET + 20,
            hops: ETHERNET + 8,
            checksum: Some(ETHERNET + 10),
            source: ETHERNET + 12,
            destination: ETHERNET + 16,
            family: libc::AF_INET,
        },
        Family::V6 => Frame {
            ether_type: 0x86dd,
            length: ETHERNET + 40,
            hops: ETHERNET + 7,
            checksum: None,
            source: ETHERNET + 8,
            destination: ETHERNET + 24,
            family: libc::AF_INET6,
        },
    }
}

/// Places on the stack: a key of `here` (an address, IPv4 as `::ffff:0:0/96`), one of `far` (a number of bits, and an address), and
/// a neighbour.
pub(super) const HERE: i16 = -16;
pub(super) const FAR: i16 = -40;
const TO: i16 = -64;
/// Bytes of that (`struct bpf_redir_neigh`): a family, and an address of at most 16.
const NEIGHBOUR: i32 = 20;

/// Registers that outlast calls: what the program is given, the start of the packet, its end, and what was found of its container.
pub(super) const GIVEN: Reg = R6;
pub(super) const START: Reg = R7;
pub(super) const END: Reg = R8;
pub(super) const FOUND: Reg = R9;

/// The maps that a program asks, by descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maps {
    pub(super) here: i32,
    pub(super) far: i32,
    /// Not asked: it is kept because the program knows it.
    pub(super) whose: i32,
}

/// The program of the end of tunnels with the index `device`.
pub(super) fn program(device: u32, maps: Maps) -> Vec<u64> {
    let mut asm = Asm::default();
    let (pass, out) = (asm.label(), asm.label());
    asm.map(R2, maps.whose);
    asm.copy(GIVEN, R1);
    asm.load(Size::Word, R1, GIVEN, packet::KIND);
    asm.jump_if(R1, When::NotEqual, TO_US, pass);
    asm.load(Size::Word, R1, GIVEN, packet::HAS_VLAN);
    asm.jump_if(R1, When::NotEqual, 0, pass);
    asm.load(Size::Word, START, GIVEN, packet::START);
    asm.load(Size::Word, END, GIVEN, packet::END);
    asm.load(Size::Word, R1, GIVEN, packet::INTERFACE);
    asm.jump_if(R1, When::NotEqual, device.cast_signed(), out);
    by_family(&mut asm, pass, |asm, family| into_container(asm, family, maps, pass));
    asm.place(out);
    by_family(&mut asm, pass, |asm, family| out_of_container(asm, family, maps, device, pass));
    asm.place(pass);
    asm.set(R0, NEXT);
    asm.exit();
    asm.finish()
}

/// Goes on with `one` for packets of each family that may go on: whole headers, and hops left.
fn by_family(asm: &mut Asm, pass: Label, one: impl Fn(&mut Asm, Family)) {
    for family in Family::ALL {
        let Frame { ether_type, length, hops, .. } = frame(family);
        let other = asm.label();
        asm.load(Size::Word, R1, GIVEN, packet::PROTOCOL);
        asm.jump_if(R1, When::NotEqual, i32::from(ether_type.to_be()), other);
        asm.copy(R1, START);
        asm.add(R1, i32::from(length));
        asm.jump_if_reg(R1, When::Greater, END, pass);
        asm.load(Size::Byte, R1, START, hops);
        asm.jump_if(R1, When::AtMost, 1, pass);
        one(asm, family);
        asm.place(other);
    }
    asm.set(R0, NEXT);
    asm.exit();
}

/// What comes out of the tunnels: from an address that another host gives out, for a container of this one.
fn into_container(asm: &mut Asm, family: Family, maps: Maps, pass: Label) {
    let Frame { source, destination, family: number, .. } = frame(family);
    find_here(asm, family, destination, maps, pass);
    find_far(asm, family, source, maps, pass);
    one_hop_less(asm, family);
    let queue = asm.label();
    asm.load(Size::Word, R1, FOUND, here::QUEUED as i16);
    asm.jump_if(R1, When::NotEqual, 0, queue);
    // Nothing else counts it: it is the container's own end that receives it next.
    asm.load(Size::Word, R1, GIVEN, packet::LENGTH);
    asm.count(FOUND, here::BYTES as i16, R1);
    asm.set(R1, 1);
    asm.count(FOUND, here::PACKETS as i16, R1);
    asm.load(Size::Word, R1, FOUND, here::INTERFACE as i16);
    asm.set(R2, 0);
    asm.call(Helper::RedirectPeer);
    asm.exit();
    asm.place(queue);
    asm.store_number(Size::Word, STACK, TO, number);
    let words = if family == Family::V4 { 1 } else { 4 };
    for word in 0..4 {
        let to = TO + 4 + 4 * word;
        if word < words {
            asm.load(Size::Word, R1, START, destination + 4 * word);
            asm.store(Size::Word, STACK, to, R1);
        } else {
            asm.store_number(Size::Word, STACK, to, 0);
        }
    }
    asm.load(Size::Word, R1, FOUND, here::INTERFACE as i16);
    asm.copy(R2, STACK);
    asm.add(R2, i32::from(TO));
    asm.set(R3, NEIGHBOUR);
    asm.set(R4, 0);
    asm.call(Helper::RedirectNeigh);
    asm.exit();
}

/// What comes out of a container: from its own address, for one that another host gives out.
fn out_of_container(asm: &mut Asm, family: Family, maps: Maps, device: u32, pass: Label) {
    let Frame { source, destination, length, .. } = frame(family);
    find_here(asm, family, source, maps, pass);
    asm.load(Size::Word, R1, GIVEN, packet::INTERFACE);
    asm.load(Size::Word, R2, FOUND, here::INTERFACE as i16);
    asm.jump_if_reg(R1, When::NotEqual, R2, pass);
    find_far(asm, family, destination, maps, pass);
    asm.copy(FOUND, R0);
    let by_tunnel = asm.label();
    if family == Family::V4 {
        translate::out(asm, by_tunnel);
        // It was left as it is, wherever that may be now.
        asm.load(Size::Word, START, GIVEN, packet::START);
        asm.load(Size::Word, END, GIVEN, packet::END);
        asm.copy(R1, START);
        asm.add(R1, i32::from(length));
        asm.jump_if_reg(R1, When::Greater, END, pass);
    }
    asm.place(by_tunnel);
    one_hop_less(asm, family);
    for word in 0..3 {
        asm.load(Size::Word, R1, FOUND, far::MACS as i16 + 4 * word);
        asm.store(Size::Word, START, 4 * word, R1);
    }
    asm.set(R1, device.cast_signed());
    asm.set(R2, 0);
    asm.call(Helper::Redirect);
    asm.exit();
}

/// Has `FOUND` lead to what `here` knows of the address at `from`.
fn find_here(asm: &mut Asm, family: Family, from: i16, maps: Maps, pass: Label) {
    address(asm, family, from, HERE);
    ask(asm, maps.here, HERE, pass);
    asm.copy(FOUND, R0);
}

/// Has register 0 lead to what `far` knows of the address at `from`.
fn find_far(asm: &mut Asm, family: Family, from: i16, maps: Maps, pass: Label) {
    asm.store_number(Size::Word, STACK, FAR, 128);
    address(asm, family, from, FAR + 4);
    ask(asm, maps.far, FAR, pass);
}

fn ask(asm: &mut Asm, map: i32, key: i16, pass: Label) {
    asm.map(R1, map);
    asm.copy(R2, STACK);
    asm.add(R2, i32::from(key));
    asm.call(Helper::MapLookup);
    asm.jump_if(R0, When::Equal, 0, pass);
}

/// Copies an address of the packet to the stack.
fn address(asm: &mut Asm, family: Family, from: i16, to: i16) {
    // The first words of an IPv4 address in `::ffff:0:0/96`.
    const MAPPED: [i32; 3] = [0, 0, (0xffff_u32.to_be()).cast_signed()];
    for word in 0..4 {
        let at = to + 4 * word;
        let from = match (family, MAPPED.get(word as usize)) {
            (Family::V4, Some(first)) => {
                asm.store_number(Size::Word, STACK, at, *first);
                continue;
            }
            (Family::V4, None) => from,
            (Family::V6, _) => from + 4 * word,
        };
        asm.load(Size::Word, R1, START, from);
        asm.store(Size::Word, STACK, at, R1);
    }
}

/// As a router does; register 0 is lost where a header has no checksum.
fn one_hop_less(asm: &mut Asm, family: Family) {
    let Frame { hops, checksum, .. } = frame(family);
    asm.load(Size::Byte, R1, START, hops);
    asm.add(R1, -1);
    asm.store(Size::Byte, START, hops, R1);
    match checksum {
        // The sum of the header stays what it was (`ip_decrease_ttl()`, include/net/ip.h; RFC 1141).
        Some(at) => {
            asm.load(Size::Half, R1, START, at);
            asm.add(R1, i32::from(0x0100_u16.to_be()));
            asm.copy(R2, R1);
            asm.add(R2, 1);
            asm.shift_right(R2, 16);
            asm.sum(R1, R2);
            asm.store(Size::Half, START, at, R1);
        }
        // What an interface summed up of the whole packet changes by as much; the hops are the second byte of two.
        None => {
            asm.copy(R1, GIVEN);
            asm.set(R2, !i32::from(1_u16.to_be()));
            asm.call(Helper::ChecksumUpdate);
        }
    }
}
