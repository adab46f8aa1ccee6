//! Packets larger than the MTU: what the kernel hands over whole is divided before it is encrypted, and what comes in pieces
//! is joined before the kernel is given it. Each pass of a packet through the kernel costs about as much as encrypting it.
//!
//! That holds for packets of the overlay too, TCP in Ethernet in VXLAN, which is why this knows of two layers.
//!
//! Formats: `struct virtio_net_hdr` and what it grew to in include/uapi/linux/virtio_net.h; RFC 791, RFC 8200, RFC 9293,
//! RFC 768, RFC 1071, RFC 7348.

mod divide;
mod join;
#[cfg(test)]
mod on_device;
#[cfg(test)]
mod tests;

pub(super) use divide::divide;
pub(super) use join::Joiner;

/// Bytes of the header before each packet.
pub(super) const HEADER: usize = portolan_kernel::tun::TUNNEL_HEADER;
/// Bytes of the largest packet.
pub(super) const LARGEST: usize = 65_535;

const NEEDS_CSUM: u8 = 1;
const TUNNEL_CSUM: u8 = 8;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_TUNNEL_V4: u8 = 0x20;
const GSO_TUNNEL_V6: u8 = 0x40;
const GSO_TUNNEL: u8 = GSO_TUNNEL_V4 | GSO_TUNNEL_V6;
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Bytes of an Ethernet header and of a VXLAN header (RFC 7348 §5).
const ETHERNET: usize = 14;
const VXLAN: usize = 8;
/// The port that IANA gave to VXLAN.
const VXLAN_PORT: u16 = 4789;

/// `struct virtio_net_hdr_v1_hash_tunnel`: the first part in host byte order, where things are in a tunnel little endian.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
    /// Start of the UDP header outside, and of the IP header inside; the kernel may leave them unset for what is in no
    /// tunnel.
    outer: u16,
    inner: u16,
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
            outer: u16::from_le_bytes([bytes[20], bytes[21]]),
            inner: u16::from_le_bytes([bytes[22], bytes[23]]),
        }
    }

    pub(super) fn write(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, number) in [(2, self.hdr_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)] {
            bytes[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        }
        bytes[20..22].copy_from_slice(&self.outer.to_le_bytes());
        bytes[22..24].copy_from_slice(&self.inner.to_le_bytes());
        bytes
    }

    /// Whether several packets in a tunnel are one.
    pub(super) fn is_tunnel(self) -> bool {
        self.gso_type & GSO_TUNNEL != 0
    }

    /// The UDP port that the kernel sends this to in VXLAN: of such packets it left the checksum inside to us.
    pub(super) fn vxlan_port(self, packet: &[u8]) -> Option<u16> {
        let outer = Layout::at(packet, 0).filter(|outer| outer.protocol == UDP && self.flags & NEEDS_CSUM != 0)?;
        let network = outer.payload + VXLAN + ETHERNET;
        (usize::from(self.csum_start) >= network + 20).then(|| take(packet, outer.transport + 2))
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

/// Where things are in a TCP or UDP packet without IPv6 extension headers, which ends where the bytes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    is_v4: bool,
    protocol: u8,
    /// Start of the IP header.
    network: usize,
    /// Start of the TCP or UDP header.
    transport: usize,
    /// Start of what it carries.
    payload: usize,
}

impl Layout {
    /// The packet that starts at `network`; `None` for what is something else, or cut short.
    fn at(packet: &[u8], network: usize) -> Option<Self> {
        let bytes = packet.get(network..)?;
        let (is_v4, protocol, transport) = match bytes.first()? >> 4 {
            4 => (true, *bytes.get(9)?, usize::from(bytes[0] & 0xf) * 4),
            6 => (false, *bytes.get(6)?, 40),
            _ => return None,
        };
        let payload = transport
            + match protocol {
                TCP => usize::from(bytes.get(transport + 12)? >> 4) * 4,
                UDP => 8,
                _ => return None,
            };
        let least = if protocol == TCP { transport + 20 } else { transport + 8 };
        let enough = transport >= if is_v4 { 20 } else { 40 } && payload >= least && bytes.len() >= payload;
        let (transport, payload) = (network + transport, network + payload);
        enough.then_some(Self { is_v4, protocol, network, transport, payload })
    }

    /// Where the checksum is in the TCP or UDP header.
    fn checksum_offset(self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    fn addresses(self) -> std::ops::Range<usize> {
        if self.is_v4 { self.network + 12..self.network + 20 } else { self.network + 8..self.network + 40 }
    }

    /// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
    fn pseudo(self, packet: &[u8]) -> u64 {
        let len = (packet.len() - self.transport) as u32;
        sum(&packet[self.addresses()]) + sum(&len.to_be_bytes()) + sum(&[0, 0, 0, self.protocol])
    }

    /// Writes the length of the packet, and the checksum that comes with it.
    fn set_length(self, packet: &mut [u8]) {
        let at = self.network;
        if self.is_v4 {
            put(packet, at + 2, (packet.len() - at) as u16);
            put(packet, at + 10, 0);
            let checksum = !fold(sum(&packet[at..self.transport]));
            packet[at + 10..at + 12].copy_from_slice(&checksum.to_ne_bytes());
        } else {
            put(packet, at + 4, (packet.len() - at - 40) as u16);
        }
        if self.protocol == UDP {
            put(packet, self.transport + 4, (packet.len() - self.transport) as u16);
        }
    }

    fn set_checksum(self, packet: &mut [u8]) {
        self.set_checksum_with(packet, |packet| sum(&packet[self.transport..]));
    }

    /// The same where `sum_of` knows the sum of what the checksum is of.
    fn set_checksum_with(self, packet: &mut [u8], sum_of: impl Fn(&[u8]) -> u64) {
        let at = self.transport + self.checksum_offset();
        put(packet, at, 0);
        let mut checksum = !fold(self.pseudo(packet) + sum_of(packet));
        if self.protocol == UDP && checksum == 0 {
            // That would mean none.
            checksum = 0xffff;
        }
        packet[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
    }

    /// Whether it is UDP that does without: IPv4 has that, and IPv6 between tunnels (RFC 6935).
    fn is_unchecked(self, packet: &[u8]) -> bool {
        self.protocol == UDP && take(packet, self.transport + 6) == 0
    }

    fn has_checksum(self, packet: &[u8]) -> bool {
        (self.is_v4 && self.is_unchecked(packet))
            || fold(self.pseudo(packet) + sum(&packet[self.transport..])) == 0xffff
    }

    /// Whether the lengths are those of the bytes, and it is neither a fragment nor has options.
    fn is_whole(self, packet: &[u8]) -> bool {
        let at = self.network;
        let is_whole = if self.is_v4 {
            self.transport == at + 20
                && take(packet, at + 6) & 0x3fff == 0
                && usize::from(take(packet, at + 2)) == packet.len() - at
        } else {
            usize::from(take(packet, at + 4)) + 40 == packet.len() - at
        };
        let len = || usize::from(take(packet, self.transport + 4));
        is_whole && (self.protocol != UDP || len() == packet.len() - self.transport)
    }
}

/// A TCP or UDP packet, which may be in a tunnel over UDP; where it is in one, it starts at a distance from the tunnel's UDP
/// header that is even, so that sums of parts add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layers {
    outer: Option<Layout>,
    inner: Layout,
}

impl Layers {
    fn plain(packet: &[u8]) -> Option<Self> {
        Some(Self { outer: None, inner: Layout::at(packet, 0)? })
    }

    /// With the inner packet's IP header at `network`.
    fn tunnel(packet: &[u8], network: usize) -> Option<Self> {
        let outer = Layout::at(packet, 0).filter(|outer| outer.protocol == UDP && network >= outer.payload)?;
        let inner = Layout::at(packet, network)?;
        (network - outer.transport).is_multiple_of(2).then_some(Self { outer: Some(outer), inner })
    }

    /// VXLAN with nothing but a number, and an Ethernet frame with nothing but an IP packet.
    fn vxlan(packet: &[u8]) -> Option<Self> {
        let start = Layout::at(packet, 0)?.payload;
        let header = packet.get(start..start + VXLAN + ETHERNET)?;
        let layers = Self::tunnel(packet, start + VXLAN + ETHERNET)?;
        let wanted = if layers.inner.is_v4 { 0x0800 } else { 0x86dd };
        (header[..4] == [8, 0, 0, 0] && header[7] == 0 && take(header, VXLAN + 12) == wanted).then_some(layers)
    }

    /// The sum of the outer UDP header and all after it. Only the headers have to be looked at, as the rest is known to
    /// cancel out the pseudo header of the checksum inside (`lco_csum` of include/linux/skbuff.h).
    fn outer_sum(self, outer: Layout, packet: &[u8]) -> u64 {
        let headers = sum(&packet[outer.transport..self.inner.transport]);
        headers + u64::from(!fold(self.inner.pseudo(packet)))
    }

    /// Writes lengths and checksums.
    fn finish(self, packet: &mut [u8]) {
        self.inner.set_length(packet);
        self.inner.set_checksum(packet);
        if let Some(outer) = self.outer {
            outer.set_length(packet);
            if !outer.is_unchecked(packet) {
                outer.set_checksum_with(packet, |packet| self.outer_sum(outer, packet));
            }
        }
    }

    /// Whether checksums are right, but for the outer one's absence.
    fn has_checksums(self, packet: &[u8]) -> bool {
        self.inner.has_checksum(packet)
            && self.outer.is_none_or(|outer| {
                let is_right = || fold(outer.pseudo(packet) + self.outer_sum(outer, packet)) == 0xffff;
                outer.is_unchecked(packet) || is_right()
            })
    }
}
