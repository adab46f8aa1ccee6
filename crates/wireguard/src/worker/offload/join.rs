//! What the kernel is given whole.

use super::{
    ACK, ETHERNET, GSO_TCPV4, GSO_TCPV6, GSO_TUNNEL_V4, GSO_TUNNEL_V6, GSO_UDP_L4, HEADER, Header, LARGEST, Layers,
    Layout, NEEDS_CSUM, PSH, TCP, TUNNEL_CSUM, UDP, VXLAN_PORT, fold, take,
};
use portolan_kernel::tun::Offload;

/// A packet that more may be joined to.
#[derive(Debug)]
struct Group {
    layers: Option<Layers>,
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
pub(in crate::worker) struct Joiner {
    groups: Vec<Group>,
    used: usize,
    with_udp: bool,
    with_tunnels: bool,
    port: u16,
}

impl Joiner {
    /// For a kernel that takes this in segments.
    pub(in crate::worker) fn new(taken: Offload) -> Self {
        let has = |wanted: Offload| taken.0 & wanted.0 == wanted.0;
        let (with_udp, with_tunnels) = (has(Offload::TCP_UDP), has(Offload::TUNNELS));
        Self { with_udp, with_tunnels, port: VXLAN_PORT, ..Self::default() }
    }

    /// The port that VXLAN is at, beside the usual one. Whoever is no tunnel must not be given several packets as one.
    pub(in crate::worker) fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// Joins nothing in tunnels from now on.
    pub(in crate::worker) fn leave_tunnels(&mut self) {
        self.with_tunnels = false;
    }

    /// Takes one packet, to be given out by [`Self::finish`].
    pub(in crate::worker) fn push(&mut self, packet: &[u8]) {
        let layers = self.joinable(packet);
        let has_push = layers.is_some_and(|layers| has_push(layers.inner, packet));
        if let Some(layers) = layers {
            let is_same = |group: &&mut Group| {
                group.layers == Some(layers) && is_same_flow(layers, &group.bytes[HEADER..], packet)
            };
            // The last of its flow: order within a flow stays.
            if let Some(group) = self.groups[..self.used].iter_mut().rev().find(is_same) {
                let inner = layers.inner;
                if group.open && group.takes(layers, packet) {
                    group.bytes.extend_from_slice(&packet[inner.payload..]);
                    group.count += 1;
                    group.open = packet.len() - inner.payload == group.size && !has_push;
                    if has_push {
                        group.bytes[HEADER + inner.transport + 13] |= PSH;
                    }
                    return;
                }
                group.open = false;
            }
        }
        if self.used == self.groups.len() {
            self.groups.push(Group { layers: None, bytes: Vec::new(), size: 0, count: 0, open: false });
        }
        let group = &mut self.groups[self.used];
        self.used += 1;
        group.bytes.clear();
        group.bytes.resize(HEADER, 0);
        group.bytes.extend_from_slice(packet);
        group.layers = layers;
        group.size = layers.map_or(0, |layers| packet.len() - layers.inner.payload);
        group.count = 1;
        group.open = layers.is_some() && !has_push;
    }

    /// Where things are, if the packet may be joined with others.
    fn joinable(&self, packet: &[u8]) -> Option<Layers> {
        self.in_tunnel(packet).or_else(|| {
            let layers = Layers::plain(packet)?;
            (self.is_joinable(layers, packet)).then_some(layers)
        })
    }

    /// TCP in a tunnel; of other things the tunnel's packets are joined.
    fn in_tunnel(&self, packet: &[u8]) -> Option<Layers> {
        let outer = Layout::at(packet, 0).filter(|outer| self.with_tunnels && outer.protocol == UDP)?;
        let layers = match take(packet, outer.transport + 2) {
            port if port == self.port || port == VXLAN_PORT => Layers::vxlan(packet)?,
            _ => return None,
        };
        let is_tcp = layers.inner.protocol == TCP && outer.is_whole(packet);
        (is_tcp && self.is_joinable(layers, packet)).then_some(layers)
    }

    fn is_joinable(&self, layers: Layers, packet: &[u8]) -> bool {
        let inner = layers.inner;
        let is_plain = match inner.protocol {
            TCP => packet[inner.transport + 13] & !PSH == ACK,
            // What is translated is made IPv4 again by the kernel, which does not do that to several datagrams at once
            // (`bpf_skb_proto_6_to_4`, net/core/filter.c).
            _ => self.with_udp && (layers.outer.is_some() || !is_link_local(inner, packet)),
        };
        inner.is_whole(packet) && is_plain && packet.len() > inner.payload && layers.has_checksums(packet)
    }

    /// Hands all out, each behind its header, and is empty again.
    pub(in crate::worker) fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        for group in &mut self.groups[..self.used] {
            group.seal();
            each(&group.bytes);
        }
        self.used = 0;
    }
}

/// Whether it is from an address of the link alone (RFC 4291 §2.5.6).
fn is_link_local(layout: Layout, packet: &[u8]) -> bool {
    !layout.is_v4 && take(packet, layout.network + 8) & 0xffc0 == 0xfe80
}

fn has_push(layout: Layout, packet: &[u8]) -> bool {
    layout.protocol == TCP && packet[layout.transport + 13] & PSH != 0
}

/// Whether addresses, ports and tunnel are the same.
fn is_same_flow(layers: Layers, one: &[u8], other: &[u8]) -> bool {
    let is_same = |layout: Layout| {
        let ports = layout.transport..layout.transport + 4;
        one[layout.addresses()] == other[layout.addresses()] && one[ports.clone()] == other[ports]
    };
    is_same(layers.inner)
        && layers.outer.is_none_or(|outer| {
            let tunnel = outer.payload..layers.inner.network;
            is_same(outer) && one[tunnel.clone()] == other[tunnel]
        })
}

/// Whether type of service, hops and whether it may be divided are the same.
fn is_like(layout: Layout, one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (&one[layout.network..], &other[layout.network..]);
    if layout.is_v4 {
        one[1] == other[1] && one[8] == other[8] && one[6] & 0x40 == other[6] & 0x40
    } else {
        one[..4] == other[..4] && one[7] == other[7]
    }
}

impl Group {
    /// Whether a packet of the same flow goes on where this ends.
    fn takes(&self, layers: Layers, packet: &[u8]) -> bool {
        let first = &self.bytes[HEADER..];
        let inner = layers.inner;
        let len = packet.len() - inner.payload;
        if len > self.size || first.len() + len > LARGEST {
            return false;
        }
        let transport = inner.transport;
        let goes_on = inner.protocol != TCP || {
            let sequence = |bytes: &[u8]| {
                let at = transport + 4;
                u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            let carried = (first.len() - inner.payload) as u32;
            sequence(packet) == sequence(first).wrapping_add(carried)
                && first[transport + 8..transport + 12] == packet[transport + 8..transport + 12]
                && first[transport + 20..inner.payload] == packet[transport + 20..inner.payload]
        };
        // Without a checksum of UDP it stays as it is.
        let is_like = |layout: Layout| {
            is_like(layout, first, packet) && layout.is_unchecked(first) == layout.is_unchecked(packet)
        };
        goes_on && is_like(inner) && layers.outer.is_none_or(is_like)
    }

    /// Writes what says that it is several.
    fn seal(&mut self) {
        let Some(layers) = self.layers.filter(|_| self.count > 1) else { return };
        let inner = layers.inner;
        let (header, packet) = self.bytes.split_at_mut(HEADER);
        let mut sealed = Header {
            flags: NEEDS_CSUM,
            gso_type: match (inner.protocol, inner.is_v4) {
                (UDP, _) => GSO_UDP_L4,
                (_, true) => GSO_TCPV4,
                (_, false) => GSO_TCPV6,
            },
            hdr_len: inner.payload as u16,
            gso_size: self.size as u16,
            csum_start: inner.transport as u16,
            csum_offset: inner.checksum_offset() as u16,
            ..Header::default()
        };
        // The kernel wants sums of pseudo headers alone where it would have to go on with the rest (`udp_set_csum`).
        let seal = |layout: Layout, packet: &mut [u8]| {
            layout.set_length(packet);
            let at = layout.transport + layout.checksum_offset();
            let pseudo = fold(layout.pseudo(packet));
            packet[at..at + 2].copy_from_slice(&pseudo.to_ne_bytes());
        };
        seal(inner, packet);
        if let Some(outer) = layers.outer {
            sealed.gso_type |= if outer.is_v4 { GSO_TUNNEL_V4 } else { GSO_TUNNEL_V6 };
            if outer.is_unchecked(packet) {
                outer.set_length(packet);
            } else {
                sealed.flags |= TUNNEL_CSUM;
                seal(outer, packet);
            }
            // The kernel counts an Ethernet header that packets of TUN have not (`outer_l3min` in
            // `virtio_net_hdr_tnl_to_skb`, include/linux/virtio_net.h, Linux 6.17), and looks for the UDP header by itself
            // when it receives the packet or divides it (`ip_rcv_core`, `ip6_rcv_core`, `inet_gso_segment`).
            sealed.outer = (outer.transport + ETHERNET) as u16;
            sealed.inner = inner.network as u16;
        }
        header.copy_from_slice(&sealed.write());
    }
}
