//! What the kernel hands over whole.

use std::ops::DerefMut;

use super::{
    CWR, FIN, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_TUNNEL, GSO_UDP_L4, Header, Layers, Layout, NEEDS_CSUM, PSH,
    TCP, UDP, fold, put, sum, take,
};

/// Divides what the kernel sent into packets of their own, with checksums, and hands each to `emit`; what makes no sense is
/// dropped. `place` puts the bytes of both that it is given to where the packet is to be.
pub(in crate::worker) fn divide<P: DerefMut<Target = [u8]>>(
    header: Header,
    packet: &mut [u8],
    mut place: impl FnMut(&[u8], &[u8]) -> P,
    mut emit: impl FnMut(P),
) {
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
        return emit(place(packet, &[]));
    }
    let wanted = match header.gso_type & !(GSO_ECN | GSO_TUNNEL) {
        GSO_TCPV4 | GSO_TCPV6 => TCP,
        GSO_UDP_L4 => UDP,
        _ => return,
    };
    let layers = if header.is_tunnel() { Layers::tunnel(packet, header.inner.into()) } else { Layers::plain(packet) };
    let size = usize::from(header.gso_size);
    let Some(layers) = layers.filter(|layers| layers.inner.protocol == wanted && size > 0) else { return };
    let inner = layers.inner;
    let (headers, payload) = packet.split_at(inner.payload);
    let identified = |layout: &Layout| layout.is_v4.then(|| (layout.network + 4, take(headers, layout.network + 4)));
    let ids = [layers.outer.as_ref().and_then(identified), identified(&inner)];
    let transport = inner.transport;
    let sequence = |bytes: &[u8]| u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let sequence = sequence(&headers[transport..]);
    let count = payload.len().div_ceil(size);
    for (number, part) in payload.chunks(size).enumerate() {
        let mut segment = place(headers, part);
        for (at, id) in ids.into_iter().flatten() {
            put(&mut segment, at, id.wrapping_add(number as u16));
        }
        if inner.protocol == TCP {
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
        layers.finish(&mut segment);
        emit(segment);
    }
}
