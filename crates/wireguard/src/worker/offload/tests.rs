use portolan_kernel::tun::Offload;

use super::*;

/// A packet with right lengths and checksums.
fn packet(is_v4: bool, protocol: u8, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = if is_v4 {
        vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
    } else {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfe; 16]);
        bytes
    };
    let transport = bytes.len();
    bytes.extend([0x12, 0x34, 0x12, 0xb5]);
    if protocol == TCP {
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0, 0, 0, 9, 0x80, flags, 1, 1, 0, 0, 0, 0]);
        bytes.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    } else {
        bytes.extend([0; 4]);
    }
    bytes.extend_from_slice(payload);
    let layout = Layout::at(&bytes, 0).unwrap();
    assert_eq!(layout.transport, transport);
    layout.set_length(&mut bytes);
    layout.set_checksum(&mut bytes);
    assert!(layout.has_checksum(&bytes));
    bytes
}

pub(super) fn joined(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut joiner = Joiner::new(Offload::TUNNELS);
    let mut out = Vec::new();
    for _ in 0..2 {
        out.clear();
        packets.iter().for_each(|packet| joiner.push(packet));
        joiner.finish(|bytes| out.push(bytes.to_vec()));
    }
    out
}

pub(super) fn divided(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (header, packet) = bytes.split_first_chunk::<HEADER>().unwrap();
    let mut out = Vec::new();
    let place = |first: &[u8], second: &[u8]| [first, second].concat();
    divide(Header::read(header), &mut packet.to_vec(), place, |packet| out.push(packet));
    out
}

/// IPv4 identification is counted on by whoever divides.
fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        put(&mut packet, 4, 0);
        Layout::at(&packet, 0).unwrap().set_length(&mut packet);
    }
    packet
}

#[test]
fn checksum_is_that_of_the_rfc() {
    // RFC 1071 §3.
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    assert_eq!(fold(sum(&[0xff; 7])).to_ne_bytes(), [0xff, 0x00]);
}

#[test]
fn what_is_joined_is_divided_into_the_same() {
    for is_v4 in [true, false] {
        for protocol in [TCP, UDP] {
            let mut packets: Vec<Vec<u8>> =
                (0..20).map(|n| packet(is_v4, protocol, n * 1000, ACK, &vec![n as u8; 1000])).collect();
            let last = if protocol == TCP { ACK | PSH } else { 0 };
            packets.push(packet(is_v4, protocol, 20_000, last, b"the end"));
            let whole = joined(&packets);
            assert_eq!(whole.len(), 1);
            let parts: Vec<Vec<u8>> = divided(&whole[0]).into_iter().map(without_id).collect();
            assert_eq!(parts, packets);
        }
    }
}

#[test]
fn what_does_not_follow_stays_apart() {
    let tcp = |sequence, flags, len| packet(true, TCP, sequence, flags, &vec![7; len]);
    let counts = |packets: &[Vec<u8>]| {
        let out = joined(packets);
        let parts: Vec<Vec<u8>> = out.iter().flat_map(|bytes| divided(bytes)).map(without_id).collect();
        assert_eq!(parts, packets, "in order");
        out.len()
    };
    assert_eq!(counts(&[tcp(0, ACK, 100), tcp(100, ACK, 100)]), 1);
    assert_eq!(counts(&[tcp(0, ACK, 100), tcp(200, ACK, 100)]), 2, "a gap");
    assert_eq!(counts(&[tcp(0, ACK, 100), tcp(100, ACK, 200)]), 2, "larger than the first");
    assert_eq!(counts(&[tcp(0, ACK, 100), tcp(100, ACK, 50), tcp(150, ACK, 50)]), 2, "after a shorter one");
    assert_eq!(counts(&[tcp(0, ACK | PSH, 100), tcp(100, ACK, 100)]), 2, "after a push");
    assert_eq!(counts(&[tcp(0, ACK | FIN, 100), tcp(100, ACK, 100)]), 2, "an end");
    assert_eq!(counts(&[tcp(0, ACK, 0), tcp(0, ACK, 0)]), 2, "nothing carried");
    assert_eq!(counts(&vec![tcp(0, ACK, 1000); 3]), 3, "the same thrice");
    let many: Vec<Vec<u8>> = (0..100).map(|n| tcp(n * 1400, ACK, 1400)).collect();
    assert_eq!(counts(&many), 3, "64 KiB at most");
    let mut wrong = tcp(100, ACK, 100);
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(counts(&[tcp(0, ACK, 100), wrong]), 2, "a wrong checksum");
    let mut other = tcp(100, ACK, 100);
    other[1] = 3;
    let layout = Layout::at(&other, 0).unwrap();
    layout.set_length(&mut other);
    assert_eq!(counts(&[tcp(0, ACK, 100), other]), 2, "congestion was met");
    let udp = |len| packet(false, UDP, 0, 0, &vec![7; len]);
    assert_eq!(counts(&[udp(100), udp(100), udp(99), udp(99)]), 2);
    assert_eq!(joined(&[vec![0x45; 19], vec![], vec![0x60; 3], vec![1; 100]]).len(), 4, "no packets");
}

#[test]
fn flows_that_take_turns_are_joined() {
    let of = |port: u8, sequence| {
        let mut bytes = packet(true, TCP, sequence, ACK, &[7; 100]);
        bytes[21] = port;
        Layout::at(&bytes, 0).unwrap().set_checksum(&mut bytes);
        bytes
    };
    let packets: Vec<Vec<u8>> = (0..10).flat_map(|n| [of(1, n * 100), of(2, n * 100)]).collect();
    assert_eq!(joined(&packets).len(), 2);
}

#[test]
fn a_checksum_that_was_left_to_us_is_written() {
    for protocol in [TCP, UDP] {
        let whole = packet(true, protocol, 5, ACK, b"some words");
        let layout = Layout::at(&whole, 0).unwrap();
        let at = layout.transport + layout.checksum_offset();
        let mut partial = whole.clone();
        let pseudo = fold(layout.pseudo(&partial));
        partial[at..at + 2].copy_from_slice(&pseudo.to_ne_bytes());
        let header = Header {
            flags: NEEDS_CSUM,
            csum_start: layout.transport as u16,
            csum_offset: layout.checksum_offset() as u16,
            ..Header::default()
        };
        assert_eq!(divided(&[&header.write()[..], &partial].concat()), [whole]);
    }
}

/// Which families and checksums a tunnel has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) outer_v4: bool,
    inner_v4: bool,
    is_checked: bool,
}

pub(super) const KINDS: [Kind; 8] = {
    let mut kinds = [Kind { outer_v4: true, inner_v4: true, is_checked: true }; 8];
    let mut at = 0;
    while at < 8 {
        kinds[at] = Kind { outer_v4: at & 1 == 0, inner_v4: at & 2 == 0, is_checked: at & 4 == 0 };
        at += 1;
    }
    kinds
};

/// Writes the id of each IPv4 header, and what follows from it.
fn identify(packet: &mut [u8], id: u16) {
    let layers = Layers::vxlan(packet).unwrap();
    for layout in layers.outer.into_iter().chain([layers.inner]).filter(|layout| layout.is_v4) {
        put(packet, layout.network + 4, id);
    }
    layers.finish(packet);
}

/// Puts a packet into Ethernet in VXLAN in UDP.
fn wrapped(kind: Kind, port: u16, id: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![8, 0, 0, 0, 0, 0, 7, 0];
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame.extend(if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend_from_slice(packet);
    let mut bytes = self::packet(kind.outer_v4, UDP, 0, 0, &frame);
    let outer = Layout::at(&bytes, 0).unwrap();
    put(&mut bytes, outer.transport + 2, port);
    put(&mut bytes, outer.transport + 6, kind.is_checked.into());
    identify(&mut bytes, id);
    // Not by the shorter way alone.
    assert_eq!(outer.is_unchecked(&bytes), !kind.is_checked);
    assert!(!kind.is_checked || outer.has_checksum(&bytes));
    assert!(Layers::vxlan(&bytes).unwrap().inner.has_checksum(&bytes));
    bytes
}

/// As many segments of TCP in a tunnel, the last of them short and pushed.
pub(super) fn stream(kind: Kind, count: u32) -> Vec<Vec<u8>> {
    let segment = |n: u32| {
        let is_last = n + 1 == count;
        let (flags, len) = if is_last { (ACK | PSH, 77) } else { (ACK, 1001) };
        let start = u32::MAX - 2500;
        packet(kind.inner_v4, TCP, start.wrapping_add(n * 1001), flags, &vec![n as u8 ^ 0x5a; len])
    };
    (0..count).map(|n| wrapped(kind, VXLAN_PORT, 65_530u16.wrapping_add(n as u16), &segment(n))).collect()
}

#[test]
fn what_is_joined_in_tunnels_is_divided_into_the_same() {
    for kind in KINDS {
        let packets = stream(kind, 40);
        let whole = joined(&packets);
        assert_eq!(whole.len(), 1, "{kind:?}");
        assert!(Header::read(whole[0].first_chunk().unwrap()).is_tunnel());
        assert_eq!(divided(&whole[0]), packets, "{kind:?}");
    }
}

#[test]
fn what_does_not_follow_in_tunnels_stays_apart() {
    for kind in KINDS {
        let base = stream(kind, 3);
        let outer = Layout::at(&base[0], 0).unwrap();
        let inner = Layers::vxlan(&base[0]).unwrap().inner;
        let count = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
            let mut packets = base.clone();
            change(&mut packets[1]);
            let out = joined(&packets);
            let parts: Vec<Vec<u8>> = out.iter().flat_map(|bytes| divided(bytes)).collect();
            // What is joined as datagrams has none of the ids inside counted.
            assert_eq!(parts.len(), 3, "{what}");
            assert!(packets.iter().all(|packet| parts.contains(packet)), "{kind:?}: {what}");
            out.iter().filter(|bytes| Header::read(bytes.first_chunk().unwrap()).is_tunnel()).count()
        };
        let whole = |packet: &mut Vec<u8>| Layers::vxlan(packet).unwrap().finish(packet);
        assert_eq!(count("nothing", &|_| {}), 1);
        for (what, at) in [
            ("number", outer.payload + 5),
            ("address of Ethernet", outer.payload + 9),
            ("port outside", outer.transport + 1),
            ("port inside", inner.transport + 1),
            ("sequence", inner.transport + 7),
            ("acknowledgement", inner.transport + 11),
            ("timestamp", inner.transport + 31),
            ("hops outside", if kind.outer_v4 { 8 } else { 7 }),
            ("hops inside", inner.network + if kind.inner_v4 { 8 } else { 7 }),
            ("congestion outside", 1),
            ("congestion inside", inner.network + 1),
        ] {
            let change = |packet: &mut Vec<u8>| {
                packet[at] ^= 0x10;
                whole(packet);
            };
            assert_eq!(count(what, &change), 0, "{kind:?}: {what}");
        }
        assert_eq!(
            count("no tunnel's port", &|packet| {
                put(packet, outer.transport + 2, 4790);
                whole(packet);
            }),
            0
        );
        assert_eq!(
            count("end inside", &|packet| {
                packet[inner.transport + 13] |= FIN;
                whole(packet);
            }),
            0
        );
        for at in [inner.payload, inner.transport + 16] {
            assert_eq!(count("wrong checksum inside", &|packet| packet[at] ^= 1), 0);
        }
        let wrong = |packet: &mut Vec<u8>| packet[outer.transport + 6] ^= 2;
        assert_eq!(count("other checksum outside", &wrong), 0);
        for at in [outer.payload, outer.payload + 7, outer.payload + 21] {
            assert_eq!(count("something else than VXLAN of IP", &|packet| packet[at] ^= 4), 0);
        }
    }
}

#[test]
fn only_tunnels_are_given_several_as_one() {
    let of = |taken: Offload, port: u16, learned: u16| {
        let segment = |n: u32| packet(true, TCP, n * 100, ACK, &[7; 100]);
        let mut joiner = Joiner::new(taken);
        joiner.set_port(learned);
        (0..3).for_each(|n| joiner.push(&wrapped(KINDS[0], port, n as u16, &segment(n))));
        let mut kinds = Vec::new();
        joiner.finish(|bytes| kinds.push(Header::read(bytes.first_chunk().unwrap()).gso_type));
        kinds
    };
    assert_eq!(of(Offload::TUNNELS, 4789, 0), [GSO_TCPV4 | GSO_TUNNEL_V4]);
    assert_eq!(of(Offload::TUNNELS, 8472, 0), [GSO_UDP_L4]);
    assert_eq!(of(Offload::TUNNELS, 8472, 8472), [GSO_TCPV4 | GSO_TUNNEL_V4]);
    assert_eq!(of(Offload::TCP_UDP, 4789, 4789), [GSO_UDP_L4]);
    assert_eq!(of(Offload::TCP, 4789, 4789), [GSO_NONE; 3]);
    // What the kernel says of its own: a checksum that it left to us starts in the frame.
    let bytes = wrapped(KINDS[0], 8472, 0, &packet(true, TCP, 0, ACK, b""));
    let header = |csum_start| Header { flags: NEEDS_CSUM, csum_start, csum_offset: 16, ..Header::default() };
    assert_eq!(header(70).vxlan_port(&bytes), Some(8472));
    assert_eq!(header(20).vxlan_port(&bytes), None);
    assert_eq!(Header { flags: 0, ..header(70) }.vxlan_port(&bytes), None);
}

/// A sequence of numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

#[test]
fn any_mixture_of_streams_comes_out_as_it_was() {
    let mut random = Random(7);
    for _ in 0..100 {
        let flows: Vec<Kind> = (0..1 + random.below(3)).map(|_| KINDS[random.below(8)]).collect();
        let mut next = vec![0u32; flows.len()];
        let mut ids = vec![0u16; flows.len()];
        let size = 1 + random.below(1300);
        let packets: Vec<(usize, Vec<u8>)> = (0..random.below(130))
            .map(|_| {
                let flow = random.below(flows.len());
                let flags = if random.below(10) == 0 { ACK | PSH } else { ACK };
                let len = if random.below(10) == 0 { random.below(size + 10) } else { size };
                let lost = if random.below(20) == 0 { 10 } else { 0 };
                let payload: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
                let mut inner = packet(flows[flow].inner_v4, TCP, next[flow].wrapping_add(lost), flags, &payload);
                let layout = Layout::at(&inner, 0).unwrap();
                put(&mut inner, layout.transport, flow as u16);
                layout.set_checksum(&mut inner);
                next[flow] = next[flow].wrapping_add(lost + len as u32);
                // What carries nothing is not joined, and would leave a gap.
                ids[flow] = ids[flow].wrapping_add((len > 0).into());
                (flow, wrapped(flows[flow], VXLAN_PORT, ids[flow], &inner))
            })
            .collect();
        let out = joined(&packets.iter().map(|(_, packet)| packet.clone()).collect::<Vec<_>>());
        let parts: Vec<Vec<u8>> = out.iter().flat_map(|bytes| divided(bytes)).collect();
        assert_eq!(parts.len(), packets.len());
        for (flow, kind) in flows.iter().enumerate() {
            let carries = |packet: &[u8]| {
                let inner = Layers::vxlan(packet).unwrap().inner;
                packet.len() > inner.payload && usize::from(take(packet, inner.transport)) == flow
            };
            let sent: Vec<&Vec<u8>> = packets.iter().map(|(_, packet)| packet).filter(|one| carries(one)).collect();
            let came: Vec<&Vec<u8>> = parts.iter().filter(|one| carries(one)).collect();
            assert!(came == sent, "{kind:?}");
        }
    }
}

#[test]
fn bytes_that_were_changed_do_no_harm() {
    let mut random = Random(11);
    for kind in KINDS {
        let packets = stream(kind, 4);
        let whole = joined(&packets).remove(0);
        let headers = HEADER + Layers::vxlan(&packets[0]).unwrap().inner.payload;
        for _ in 0..2_000 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(3) {
                bytes[random.below(headers)] = random.below(256) as u8;
            }
            if random.below(4) == 0 {
                bytes.truncate(HEADER + random.below(headers));
            }
            // A size of 1 is as the kernel says, and slow.
            let size = Header::read(bytes.first_chunk().unwrap()).gso_size;
            if size > 50 {
                divided(&bytes);
            }
            let mut packet = packets[1].clone();
            packet[random.below(headers - HEADER)] = random.below(256) as u8;
            packet.truncate(if random.below(4) == 0 { random.below(headers) } else { packet.len() });
            let out = joined(&[packets[0].clone(), packet, packets[2].clone()]);
            out.iter().for_each(|bytes| drop(divided(bytes)));
        }
    }
}

#[test]
fn what_the_kernel_would_not_send_is_dropped() {
    let mut random = 1u64;
    for _ in 0..100_000 {
        let mut bytes = vec![0u8; HEADER + (random >> 33) as usize % 90];
        for byte in &mut bytes {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (random >> 56) as u8;
        }
        bytes[1] &= 0x67;
        if bytes.len() > HEADER + 10 {
            bytes[HEADER] = [0x45, 0x60, 0x46][random as usize % 3];
        }
        divided(&bytes);
        joined(&[bytes[HEADER..].to_vec()]);
    }
}
