//! Packets larger than the MTU: what the kernel hands over whole is divided before it is encrypted, and what comes in pieces
//! is joined before the kernel is given it. Each pass of a packet through the kernel costs about as much as encrypting it.
//!
//! Formats: `struct virtio_net_hdr` of include/uapi/linux/virtio_net.h; RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 1071.

/// Bytes of `struct virtio_net_hdr`.
pub(super) const HEADER: usize = 10;
/// Bytes of the largest packet.
pub(super) const LARGEST: usize = 65_535;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// `struct virtio_net_hdr`, in host byte order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    pub(super) fn read(bytes: &[u8; HEADER]) -> Self {
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: number(2),
            gso_size: number(4),
            csum_start: number(6),
            csum_offset: number(8),
        }
    }

    pub(super) fn write(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, number) in [(2, self.hdr_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)] {
            bytes[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

/// The sum of RFC 1071 over `bytes`, not yet folded, in host byte order.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]])));
    words.sum::<u64>() + u64::from(u32::from_ne_bytes(last))
}

fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn take(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Where things are in a TCP or UDP packet without IPv6 extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    is_v4: bool,
    protocol: u8,
    /// Start of the TCP or UDP header.
    transport: usize,
    /// Start of what it carries.
    payload: usize,
}

impl Layout {
    /// `None` for what is something else, or cut short.
    fn of(packet: &[u8]) -> Option<Self> {
        let (is_v4, protocol, transport) = match packet.first()? >> 4 {
            4 => (true, *packet.get(9)?, usize::from(packet[0] & 0xf) * 4),
            6 => (false, *packet.get(6)?, 40),
            _ => return None,
        };
        let payload = transport
            + match protocol {
                TCP => usize::from(packet.get(transport + 12)? >> 4) * 4,
                UDP => 8,
                _ => return None,
            };
        let least = if protocol == TCP { transport + 20 } else { transport + 8 };
        let enough = transport >= if is_v4 { 20 } else { 40 } && payload >= least && packet.len() >= payload;
        enough.then_some(Self { is_v4, protocol, transport, payload })
    }

    /// Where the checksum is in the TCP or UDP header.
    fn checksum_offset(self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    /// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
    fn pseudo(self, packet: &[u8]) -> u64 {
        let addresses = if self.is_v4 { &packet[12..20] } else { &packet[8..40] };
        let len = (packet.len() - self.transport) as u32;
        sum(addresses) + sum(&len.to_be_bytes()) + sum(&[0, 0, 0, self.protocol])
    }

    /// Writes the length of the packet, and the checksum that comes with it.
    fn set_length(self, packet: &mut [u8]) {
        if self.is_v4 {
            put(packet, 2, packet.len() as u16);
            put(packet, 10, 0);
            let checksum = !fold(sum(&packet[..self.transport]));
            packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
        } else {
            put(packet, 4, (packet.len() - 40) as u16);
        }
        if self.protocol == UDP {
            put(packet, self.transport + 4, (packet.len() - self.transport) as u16);
        }
    }

    fn set_checksum(self, packet: &mut [u8]) {
        let at = self.transport + self.checksum_offset();
        put(packet, at, 0);
        let mut checksum = !fold(self.pseudo(packet) + sum(&packet[self.transport..]));
        if self.protocol == UDP && checksum == 0 {
            // That would mean none.
            checksum = 0xffff;
        }
        packet[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
    }

    fn has_checksum(self, packet: &[u8]) -> bool {
        let at = self.transport + self.checksum_offset();
        // IPv4 has UDP without.
        (self.protocol == UDP && self.is_v4 && take(packet, at) == 0)
            || fold(self.pseudo(packet) + sum(&packet[self.transport..])) == 0xffff
    }
}

/// Divides what the kernel sent into packets of their own, with checksums, and hands each to `emit`; what makes no sense is
/// dropped.
pub(super) fn divide(header: Header, packet: &mut [u8], mut emit: impl FnMut(&[u8])) {
    if header.gso_type == GSO_NONE {
        if header.flags & NEEDS_CSUM != 0 {
            let start = usize::from(header.csum_start);
            let at = start + usize::from(header.csum_offset);
            if packet.len() < at + 2 || start > packet.len() {
                return;
            }
            // The field has the sum of the pseudo header.
            let checksum = !fold(sum(&packet[start..]));
            let is_udp = header.csum_offset == 6;
            let checksum = if is_udp && checksum == 0 { 0xffff } else { checksum };
            packet[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
        }
        return emit(packet);
    }
    let wanted = match header.gso_type & !GSO_ECN {
        GSO_TCPV4 | GSO_TCPV6 => TCP,
        GSO_UDP_L4 => UDP,
        _ => return,
    };
    let size = usize::from(header.gso_size);
    let Some(layout) = Layout::of(packet).filter(|layout| layout.protocol == wanted && size > 0) else { return };
    let (headers, payload) = packet.split_at(layout.payload);
    let id = if layout.is_v4 { take(headers, 4) } else { 0 };
    let transport = layout.transport;
    let sequence = |bytes: &[u8]| u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let sequence = sequence(&headers[transport..]);
    let count = payload.len().div_ceil(size);
    let mut segment = Vec::with_capacity(layout.payload + size);
    for (number, part) in payload.chunks(size).enumerate() {
        segment.clear();
        segment.extend_from_slice(headers);
        segment.extend_from_slice(part);
        if layout.is_v4 {
            put(&mut segment, 4, id.wrapping_add(number as u16));
        }
        layout.set_length(&mut segment);
        if layout.protocol == TCP {
            let at = sequence.wrapping_add((number * size) as u32);
            segment[transport + 4..transport + 8].copy_from_slice(&at.to_be_bytes());
            let flags = &mut segment[transport + 13];
            if number + 1 < count {
                *flags &= !(FIN | PSH);
            }
            if number > 0 {
                *flags &= !CWR;
            }
        }
        layout.set_checksum(&mut segment);
        emit(&segment);
    }
}

/// A packet that more may be joined to.
#[derive(Debug)]
struct Group {
    layout: Option<Layout>,
    /// Room for a [`Header`], and the packet.
    bytes: Vec<u8>,
    /// Bytes that each part but the last carries.
    size: usize,
    count: usize,
    /// Whether more may come.
    open: bool,
}

/// Joins packets that follow each other.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    groups: Vec<Group>,
    used: usize,
    with_udp: bool,
}

impl Joiner {
    /// `with_udp`: the kernel takes UDP in segments too.
    pub(super) fn new(with_udp: bool) -> Self {
        Self { with_udp, ..Self::default() }
    }

    /// Takes one packet, to be given out by [`Self::finish`].
    pub(super) fn push(&mut self, packet: &[u8]) {
        let layout = self.joinable(packet);
        if let Some(layout) = layout {
            let is_same = |group: &&mut Group| {
                group.layout == Some(layout) && is_same_flow(layout, &group.bytes[HEADER..], packet)
            };
            // The last of its flow: order within a flow stays.
            if let Some(group) = self.groups[..self.used].iter_mut().rev().find(is_same) {
                if group.open && group.takes(layout, packet) {
                    group.bytes.extend_from_slice(&packet[layout.payload..]);
                    group.count += 1;
                    group.open = packet.len() - layout.payload == group.size && !has_push(layout, packet);
                    if has_push(layout, packet) {
                        group.bytes[HEADER + layout.transport + 13] |= PSH;
                    }
                    return;
                }
                group.open = false;
            }
        }
        if self.used == self.groups.len() {
            self.groups.push(Group { layout: None, bytes: Vec::new(), size: 0, count: 0, open: false });
        }
        let group = &mut self.groups[self.used];
        self.used += 1;
        group.bytes.clear();
        group.bytes.resize(HEADER, 0);
        group.bytes.extend_from_slice(packet);
        group.layout = layout;
        group.size = layout.map_or(0, |layout| packet.len() - layout.payload);
        group.count = 1;
        group.open = layout.is_some_and(|layout| !has_push(layout, packet));
    }

    /// Where things are, if the packet may be joined with others.
    fn joinable(&self, packet: &[u8]) -> Option<Layout> {
        let layout = Layout::of(packet)?;
        let is_whole = if layout.is_v4 {
            // No options, no fragment.
            layout.transport == 20 && take(packet, 6) & 0x3fff == 0 && usize::from(take(packet, 2)) == packet.len()
        } else {
            usize::from(take(packet, 4)) + 40 == packet.len()
        };
        let is_plain = match layout.protocol {
            TCP => packet[layout.transport + 13] & !PSH == ACK,
            _ => self.with_udp && usize::from(take(packet, layout.transport + 4)) == packet.len() - layout.transport,
        };
        (is_whole && is_plain && packet.len() > layout.payload && layout.has_checksum(packet)).then_some(layout)
    }

    /// Hands all out, each behind its header, and is empty again.
    pub(super) fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        for group in &mut self.groups[..self.used] {
            group.seal();
            each(&group.bytes);
        }
        self.used = 0;
    }
}

fn has_push(layout: Layout, packet: &[u8]) -> bool {
    layout.protocol == TCP && packet[layout.transport + 13] & PSH != 0
}

/// Whether addresses and ports are the same.
fn is_same_flow(layout: Layout, one: &[u8], other: &[u8]) -> bool {
    let addresses = if layout.is_v4 { 12..20 } else { 8..40 };
    let ports = layout.transport..layout.transport + 4;
    one[addresses.clone()] == other[addresses] && one[ports.clone()] == other[ports]
}

impl Group {
    /// Whether a packet of the same flow goes on where this ends.
    fn takes(&self, layout: Layout, packet: &[u8]) -> bool {
        let first = &self.bytes[HEADER..];
        let len = packet.len() - layout.payload;
        if len > self.size || first.len() + len > LARGEST {
            return false;
        }
        // Type of service, hops and whether it may be divided.
        let is_like = if layout.is_v4 {
            first[1] == packet[1] && first[8] == packet[8] && first[6] & 0x40 == packet[6] & 0x40
        } else {
            first[..4] == packet[..4] && first[7] == packet[7]
        };
        let transport = layout.transport;
        let goes_on = layout.protocol != TCP || {
            let sequence = |bytes: &[u8]| {
                let at = transport + 4;
                u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            let carried = (first.len() - layout.payload) as u32;
            sequence(packet) == sequence(first).wrapping_add(carried)
                && first[transport + 8..transport + 12] == packet[transport + 8..transport + 12]
                && first[transport + 20..layout.payload] == packet[transport + 20..layout.payload]
        };
        // Without a checksum of UDP it stays as it is.
        let checked = |bytes: &[u8]| layout.protocol == TCP || take(bytes, transport + 6) != 0;
        is_like && goes_on && checked(first) == checked(packet)
    }

    /// Writes what says that it is several.
    fn seal(&mut self) {
        let Some(layout) = self.layout.filter(|_| self.count > 1) else { return };
        let (header, packet) = self.bytes.split_at_mut(HEADER);
        layout.set_length(packet);
        let at = layout.transport + layout.checksum_offset();
        let pseudo = fold(layout.pseudo(packet));
        packet[at..at + 2].copy_from_slice(&pseudo.to_ne_bytes());
        let sealed = Header {
            flags: NEEDS_CSUM,
            gso_type: match (layout.protocol, layout.is_v4) {
                (UDP, _) => GSO_UDP_L4,
                (_, true) => GSO_TCPV4,
                (_, false) => GSO_TCPV6,
            },
            hdr_len: layout.payload as u16,
            gso_size: self.size as u16,
            csum_start: layout.transport as u16,
            csum_offset: layout.checksum_offset() as u16,
        };
        header.copy_from_slice(&sealed.write());
    }
}

#[cfg(test)]
mod tests {
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
        let layout = Layout::of(&bytes).unwrap();
        assert_eq!(layout.transport, transport);
        layout.set_length(&mut bytes);
        layout.set_checksum(&mut bytes);
        assert!(layout.has_checksum(&bytes));
        bytes
    }

    fn joined(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut joiner = Joiner::new(true);
        let mut out = Vec::new();
        for _ in 0..2 {
            out.clear();
            packets.iter().for_each(|packet| joiner.push(packet));
            joiner.finish(|bytes| out.push(bytes.to_vec()));
        }
        out
    }

    fn divided(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (header, packet) = bytes.split_first_chunk::<HEADER>().unwrap();
        let mut out = Vec::new();
        divide(Header::read(header), &mut packet.to_vec(), |packet| out.push(packet.to_vec()));
        out
    }

    /// IPv4 identification is counted on by whoever divides.
    fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
        if packet[0] >> 4 == 4 {
            put(&mut packet, 4, 0);
            Layout::of(&packet).unwrap().set_length(&mut packet);
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
        let layout = Layout::of(&other).unwrap();
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
            Layout::of(&bytes).unwrap().set_checksum(&mut bytes);
            bytes
        };
        let packets: Vec<Vec<u8>> = (0..10).flat_map(|n| [of(1, n * 100), of(2, n * 100)]).collect();
        assert_eq!(joined(&packets).len(), 2);
    }

    #[test]
    fn a_checksum_that_was_left_to_us_is_written() {
        for protocol in [TCP, UDP] {
            let whole = packet(true, protocol, 5, ACK, b"some words");
            let layout = Layout::of(&whole).unwrap();
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

    #[test]
    fn what_the_kernel_would_not_send_is_dropped() {
        let mut random = 1u64;
        for _ in 0..100_000 {
            let mut bytes = vec![0u8; 10 + (random >> 33) as usize % 90];
            for byte in &mut bytes {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (random >> 56) as u8;
            }
            bytes[1] %= 8;
            if bytes.len() > 20 {
                bytes[10] = [0x45, 0x60, 0x46][random as usize % 3];
            }
            divided(&bytes);
            joined(&[bytes[10..].to_vec()]);
        }
    }
}
