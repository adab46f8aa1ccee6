//! Trying to reach something from inside a namespace.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portolan_kernel::netlink::Errno;
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family;
use portolan_kernel::socket::{raw, wait_readable};

use crate::InNetns;

/// How often a request over an unreliable transport is repeated.
const RETRY: Duration = Duration::from_millis(250);

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Somebody answered.
    Open {
        /// Who, by the word of the server; empty if it said nothing.
        banner: String,
        /// The client's address and port as the server sees them.
        peer_seen_by_server: Option<SocketAddr>,
    },
    /// The port is closed: TCP reset, ICMP port unreachable, SCTP abort.
    Refused,
    /// No answer in time.
    Timeout,
    /// The network says no, with this errno.
    Unreachable(i32),
}

impl Probe {
    /// Whether somebody answered.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// Who answered.
    pub fn banner(&self) -> Option<&str> {
        match self {
            Self::Open { banner, .. } => Some(banner),
            _ => None,
        }
    }

    /// The client's address as the server sees it.
    pub fn seen(&self) -> Option<SocketAddr> {
        match self {
            Self::Open { peer_seen_by_server, .. } => *peer_seen_by_server,
            _ => None,
        }
    }

    /// Takes `<banner> <client>\n` apart.
    pub(crate) fn open(greeting: &str) -> Self {
        let line = greeting.trim_end();
        match line.rsplit_once(' ').and_then(|(banner, seen)| Some((banner, seen.parse().ok()?))) {
            Some((banner, seen)) => Self::Open { banner: banner.into(), peer_seen_by_server: Some(seen) },
            None => Self::Open { banner: line.into(), peer_seen_by_server: None },
        }
    }

    pub(crate) fn failed(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Timeout,
            _ => Self::Unreachable(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { banner, peer_seen_by_server: Some(seen) } => write!(f, "open: `{banner}` sees {seen}"),
            Self::Open { banner, .. } => write!(f, "open: `{banner}`"),
            Self::Refused => f.write_str("refused"),
            Self::Timeout => f.write_str("no answer"),
            Self::Unreachable(errno) => write!(f, "unreachable: {}", Errno(*errno)),
        }
    }
}

fn enter<T>(from: &impl InNetns, f: impl FnOnce() -> T) -> T {
    with_netns(from.netns(), f).expect("an open namespace can be entered")
}

/// Connects over TCP and reads a line, all within `timeout`.
///
/// A server that accepts and says nothing counts as open.
pub fn tcp_probe(from: &impl InNetns, to: SocketAddr, timeout: Duration) -> Probe {
    let end = Instant::now() + timeout;
    let stream = match enter(from, || TcpStream::connect_timeout(&to, timeout)) {
        Ok(stream) => stream,
        Err(error) => return Probe::failed(&error),
    };
    let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut line = String::new();
    // Whatever keeps the line from coming, the connection was there.
    let _ = stream.set_read_timeout(Some(left)).and_then(|()| BufReader::new(&stream).read_line(&mut line));
    Probe::open(&line)
}

/// Sends a UDP datagram, repeatedly, until an answer comes or `timeout` is over.
pub fn udp_probe(from: &impl InNetns, to: SocketAddr, timeout: Duration) -> Probe {
    let any = Family::of(to.ip()).unspecified();
    let result = enter(from, || UdpSocket::bind((any, 0))).and_then(|socket| {
        socket.connect(to)?;
        let answer =
            exchange(&socket, b"probe\n", timeout, |datagram| Some(Probe::open(&String::from_utf8_lossy(datagram))))?;
        Ok(answer)
    });
    result.unwrap_or_else(|error| Probe::failed(&error))
}

/// Sends `request` on a connected socket every [`RETRY`] until `accept` takes an answer.
pub(crate) fn exchange(
    socket: &UdpSocket,
    request: &[u8],
    timeout: Duration,
    mut accept: impl FnMut(&[u8]) -> Option<Probe>,
) -> io::Result<Probe> {
    let end = Instant::now() + timeout;
    let mut buf = [0; 4096];
    let mut next_send = Instant::now();
    socket.set_nonblocking(true)?;
    loop {
        let now = Instant::now();
        if now >= end {
            return Ok(Probe::Timeout);
        }
        if now >= next_send {
            socket.send(request)?;
            next_send = now + RETRY;
        }
        let left = end.min(next_send).saturating_duration_since(now);
        if !wait_readable([socket.as_fd()], Some(left))?[0] {
            continue;
        }
        match socket.recv(&mut buf) {
            Ok(len) => {
                if let Some(probe) = accept(&buf[..len]) {
                    return Ok(probe);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends ICMP echo requests (RFC 792, RFC 4443 §4) until a reply comes or `timeout` is over.
pub fn ping(from: &impl InNetns, to: IpAddr, timeout: Duration) -> Probe {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let family = Family::of(to);
    let (protocol, request, reply) = match family {
        Family::V4 => (libc::IPPROTO_ICMP, 8, 0),
        Family::V6 => (libc::IPPROTO_ICMPV6, 128, 129),
    };
    let result = enter(from, || raw(family, protocol as u8)).and_then(|socket| {
        socket.connect((to, 0))?;
        let id = (std::process::id() as u16).to_be_bytes();
        let sequence = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let mut message = [request, 0, 0, 0, id[0], id[1], sequence[0], sequence[1]];
        if family == Family::V4 {
            // The kernel fills it in for ICMPv6 only (ipv6(7)).
            let sum = internet_checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        exchange(&socket, &message, timeout, |packet| {
            let answer = strip_ipv4_header(family, packet)?;
            (answer.first() == Some(&reply) && answer.get(4..8) == message.get(4..8))
                .then(|| Probe::Open { banner: String::new(), peer_seen_by_server: None })
        })
    });
    result.unwrap_or_else(|error| Probe::failed(&error))
}

/// Raw IPv4 sockets receive the IP header, IPv6 ones do not (raw(7)).
pub(crate) fn strip_ipv4_header(family: Family, packet: &[u8]) -> Option<&[u8]> {
    match family {
        Family::V4 => packet.get(usize::from(packet.first()? & 0xf) * 4..),
        Family::V6 => Some(packet),
    }
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpReply {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// Gets `path` over HTTP/1.0.
///
/// # Errors
/// When there is no connection, no complete answer within `timeout`, or it is not HTTP.
pub fn http_get(from: &impl InNetns, to: SocketAddr, path: &str, timeout: Duration) -> Result<HttpReply> {
    let end = Instant::now() + timeout;
    let mut stream =
        enter(from, || TcpStream::connect_timeout(&to, timeout)).with_context(|| format!("connect {to}"))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buf = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("answer of {to} incomplete after {timeout:?}");
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buf).with_context(|| format!("read from {to}"))? {
            0 => break,
            len => answer.extend_from_slice(&buf[..len]),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("answer of {to} is not HTTP"))?;
    let status = head
        .strip_prefix("HTTP/1.")
        .and_then(|line| line.split_ascii_whitespace().nth(1))
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("answer of {to} has no status"))?;
    Ok(HttpReply { status, body: body.into() })
}
