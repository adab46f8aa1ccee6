//! The sockets between hosts.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket as StdSocket};
use std::time::{Duration, Instant};

use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpTransportFactory, UdpTransportFactoryParams};

/// Bytes that may wait in the kernel in either direction; `net.core.rmem_max` and `wmem_max` cut it short.
const BUFFER: usize = 4 << 20;
/// How long the library may take to close the socket it had.
const CLOSING: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// Makes sockets of the library's, and waits for a port that the library itself is about to free: its tasks that have the
/// old socket end after the new one is asked for.
pub(super) struct Factory(UdpSocketFactory);

impl Factory {
    pub(super) fn new() -> Self {
        Self(UdpSocketFactory { recv_buffer_size: Some(BUFFER), send_buffer_size: Some(BUFFER) })
    }
}

impl UdpTransportFactory for Factory {
    type Send = UdpSocket;
    type Recv = UdpSocket;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(UdpSocket, UdpSocket)> {
        let end = Instant::now() + CLOSING;
        loop {
            match self.0.bind(params).await {
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                    tokio::time::sleep(PAUSE).await;
                }
                bound => return bound,
            }
        }
    }
}

/// Whether a port can be had.
///
/// # Errors
/// What bind(2) says.
pub(super) fn try_port(port: u16) -> io::Result<()> {
    match StdSocket::bind((Ipv6Addr::UNSPECIFIED, port)) {
        // No IPv6 here.
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable || error.kind() == ErrorKind::Unsupported => {
            StdSocket::bind((Ipv4Addr::UNSPECIFIED, port)).map(drop)
        }
        bound => bound.map(drop),
    }
}
