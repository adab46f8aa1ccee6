//! Just enough SCTP (RFC 9260) over raw sockets to see whether packets find their way: an INIT is
//! answered by an INIT ACK. Works on kernels without SCTP, which the firewall does not need either.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family;
use portolan_kernel::socket::{raw, wait_readable};

use crate::InNetns;
use crate::probe::{Probe, exchange, strip_ipv4_header};
use crate::server::Service;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const STATE_COOKIE: u16 = 7;
const COMMON_HEADER: usize = 12;
/// Chunk header, initiate tag, window, streams out and in, initial TSN.
const INIT_CHUNK: usize = 20;
const PROTOCOL: u8 = libc::IPPROTO_SCTP as u8;

/// Sends INITs from port `from_port` until an INIT ACK or ABORT comes, or `timeout` is over.
pub fn sctp_probe(from: &impl InNetns, from_port: u16, to: SocketAddr, timeout: Duration) -> Probe {
    let family = Family::of(to.ip());
    // One for each probe: until it is connected a raw socket takes the answers that others of its namespace wait for.
    static TAG: AtomicU32 = AtomicU32::new(0x5c7b_0000);
    let tag = TAG.fetch_add(1, Ordering::Relaxed);
    let request = packet(from_port, to.port(), 0, &init_chunk(INIT, tag, &[]));
    let socket = with_netns(from.netns(), || raw(family, PROTOCOL)).expect("an open namespace can be entered");
    let result = socket.and_then(|socket| {
        socket.connect((to.ip(), 0))?;
        exchange(&socket, &request, timeout, |datagram| {
            let answer = Packet::parse(strip_ipv4_header(family, datagram)?)?;
            if (answer.source, answer.destination, answer.tag) != (to.port(), from_port, tag) {
                return None;
            }
            match answer.kind {
                INIT_ACK => Some(Probe::open(&String::from_utf8_lossy(answer.cookie.unwrap_or_default()))),
                ABORT => Some(Probe::Refused),
                _ => None,
            }
        })
    });
    result.unwrap_or_else(|error| Probe::failed(&error))
}

/// Answers INITs for one port with an INIT ACK whose state cookie is `<banner> <client>\n`. Stops on
/// drop.
#[derive(Debug)]
pub struct SctpServer {
    _service: Service,
}

impl SctpServer {
    /// Starts one in the namespace of `place`, on all addresses of the family of `bind` or on one.
    ///
    /// # Errors
    /// When the raw socket cannot be had.
    pub fn start(place: &impl InNetns, bind: SocketAddr, banner: &str) -> Result<Self> {
        let family = Family::of(bind.ip());
        let socket = with_netns(place.netns(), || raw(family, PROTOCOL))?
            .with_context(|| format!("SCTP server `{banner}` on `{bind}`"))?;
        socket.set_nonblocking(true)?;
        let banner = banner.to_owned();
        let service = Service::start("sctp-server", move |stopped| {
            let mut buf = [0; 4096];
            while let Ok([false, _]) = wait_readable([stopped.as_fd(), socket.as_fd()], None) {
                let Ok((len, client)) = socket.recv_from(&mut buf) else { continue };
                if let Some(answer) = answer(family, bind, &banner, client.ip(), &buf[..len]) {
                    // An answer that cannot be sent is one that the client misses.
                    let _ = socket.send_to(&answer, (client.ip(), 0));
                }
            }
        })?;
        Ok(Self { _service: service })
    }
}

/// The answer to a datagram, if it is an INIT for us.
fn answer(family: Family, bind: SocketAddr, banner: &str, client: IpAddr, datagram: &[u8]) -> Option<Vec<u8>> {
    if family == Family::V4 && !bind.ip().is_unspecified() {
        let dst: [u8; 4] = datagram.get(16..20)?.try_into().ok()?;
        if IpAddr::from(dst) != bind.ip() {
            return None;
        }
    }
    let request = Packet::parse(strip_ipv4_header(family, datagram)?)?;
    if request.kind != INIT || request.destination != bind.port() {
        return None;
    }
    let cookie = format!("{banner} {}\n", SocketAddr::new(client, request.source));
    let mut parameters = Vec::new();
    parameters.extend_from_slice(&STATE_COOKIE.to_be_bytes());
    parameters.extend_from_slice(&(cookie.len() as u16 + 4).to_be_bytes());
    parameters.extend_from_slice(cookie.as_bytes());
    parameters.resize(parameters.len().next_multiple_of(4), 0);
    let chunk = init_chunk(INIT_ACK, 1, &parameters);
    Some(packet(request.destination, request.source, request.initiate_tag, &chunk))
}

/// What we look at in a packet and its first chunk.
#[derive(Debug, PartialEq, Eq)]
struct Packet<'a> {
    source: u16,
    destination: u16,
    tag: u32,
    kind: u8,
    /// Of an INIT or INIT ACK, else 0.
    initiate_tag: u32,
    cookie: Option<&'a [u8]>,
}

impl<'a> Packet<'a> {
    /// Decodes a packet with a right checksum.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let be16 = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let be32 = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let checksum: [u8; 4] = bytes.get(8..12)?.try_into().ok()?;
        if checksum != packet_checksum(bytes) {
            return None;
        }
        let kind = *bytes.get(COMMON_HEADER)?;
        let has_init = matches!(kind, INIT | INIT_ACK);
        let mut cookie = None;
        let mut at = COMMON_HEADER + INIT_CHUNK;
        while has_init && let (Some(parameter), Some(len)) = (be16(at), be16(at + 2)) {
            if len < 4 {
                break;
            }
            if parameter == STATE_COOKIE {
                cookie = bytes.get(at + 4..at + usize::from(len));
            }
            at += usize::from(len).next_multiple_of(4);
        }
        Some(Self {
            source: be16(0)?,
            destination: be16(2)?,
            tag: be32(4)?,
            kind,
            initiate_tag: if has_init { be32(COMMON_HEADER + 4)? } else { 0 },
            cookie,
        })
    }
}

/// RFC 9260 §3.3.2 and §3.3.3.
fn init_chunk(kind: u8, initiate_tag: u32, parameters: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind, 0];
    chunk.extend_from_slice(&((INIT_CHUNK + parameters.len()) as u16).to_be_bytes());
    chunk.extend_from_slice(&initiate_tag.to_be_bytes());
    // Receive window, outbound and inbound streams, initial TSN.
    chunk.extend_from_slice(&0x1_0000u32.to_be_bytes());
    chunk.extend_from_slice(&[0, 1, 0, 1]);
    chunk.extend_from_slice(&1u32.to_be_bytes());
    chunk.extend_from_slice(parameters);
    chunk
}

/// RFC 9260 §3.1.
fn packet(source: u16, destination: u16, tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(COMMON_HEADER + chunk.len());
    packet.extend_from_slice(&source.to_be_bytes());
    packet.extend_from_slice(&destination.to_be_bytes());
    packet.extend_from_slice(&tag.to_be_bytes());
    packet.extend_from_slice(&[0; 4]);
    packet.extend_from_slice(chunk);
    let checksum = packet_checksum(&packet);
    packet[8..12].copy_from_slice(&checksum);
    packet
}

/// The checksum of a packet, as if its own field were zero, in the order it is sent: least
/// significant byte first (RFC 9260 appendix A).
fn packet_checksum(packet: &[u8]) -> [u8; 4] {
    let mut crc = crc32c(!0, &packet[..8]);
    crc = crc32c(crc, &[0; 4]);
    crc = crc32c(crc, &packet[COMMON_HEADER..]);
    (!crc).to_le_bytes()
}

/// One step of CRC-32C, reflected polynomial 0x82f63b78.
fn crc32c(mut crc: u32, bytes: &[u8]) -> u32 {
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string() {
        // RFC 3720 appendix B.4 and every catalogue of CRCs.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn init_and_its_answer_round_trip() {
        let request = packet(1000, 2000, 0, &init_chunk(INIT, 77, &[]));
        let bind = "[::]:2000".parse().unwrap();
        let reply = answer(Family::V6, bind, "s", "fd00::1".parse().unwrap(), &request).unwrap();
        let parsed = Packet::parse(&reply).unwrap();
        assert_eq!((parsed.source, parsed.destination, parsed.tag), (2000, 1000, 77));
        assert_eq!(parsed.cookie, Some(&b"s [fd00::1]:1000\n"[..]));
        let mut broken = reply.clone();
        broken[20] ^= 1;
        assert_eq!(Packet::parse(&broken), None);
    }
}
