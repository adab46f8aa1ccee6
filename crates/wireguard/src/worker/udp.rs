//! The sockets between hosts.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use portolan_kernel::udp::{BATCH, Outbox};
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
use tokio::io::Interest;

/// Bytes that may wait in the kernel in either direction.
const BUFFER: usize = 4 << 20;
/// How long the library may take to close the socket it had.
const CLOSING: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// Makes sockets of the library's, and waits for a port that the library itself is about to free: its tasks that have the
/// old socket end after the new one is asked for.
pub(super) struct Factory(UdpSocketFactory);

impl Factory {
    pub(super) fn new() -> Self {
        Self(UdpSocketFactory::default())
    }
}

impl UdpTransportFactory for Factory {
    type Send = Sender;
    type Recv = Receiver;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Sender, Receiver)> {
        let end = Instant::now() + CLOSING;
        loop {
            match self.0.bind(params).await {
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
                Ok((sender, receiver)) => {
                    let forced = set_socket_recv_buffer_size_force(&receiver, BUFFER)
                        .and_then(|()| set_socket_send_buffer_size_force(&receiver, BUFFER));
                    if let Err(error) = forced {
                        tracing::warn!(%error, "socket has small buffers");
                    }
                    return Ok((Sender(sender), Receiver(receiver)));
                }
            }
        }
    }
}

/// A socket that sends datagrams of one size to one address as one packet, which is divided at the last moment
/// (`UDP_SEGMENT`, udp(7)).
#[derive(Clone)]
pub(super) struct Sender(UdpSocket);

/// A socket whose errors end nothing: the library would stop receiving at the first.
pub(super) struct Receiver(UdpSocket);

impl UdpRecv for Receiver {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        loop {
            match self.0.recv_from(pool).await {
                Ok(received) => return Ok(received),
                Err(error) => pause(&error).await,
            }
        }
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        loop {
            match self.0.recv_many_from(buffer, pool, packets).await {
                Ok(()) => return Ok(()),
                Err(error) => pause(&error).await,
            }
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "cannot receive");
    tokio::time::sleep(PAUSE).await;
}

/// An [`Outbox`] of its own for each task that sends.
pub(super) struct Batch(Outbox);

impl Default for Batch {
    fn default() -> Self {
        // A path that takes less refuses them together, and then they are sent one by one.
        Self(Outbox::with_segments(usize::from(u16::MAX)))
    }
}

impl UdpSend for Sender {
    type SendManyBuf = Batch;

    async fn send_to(&self, packet: Packet, to: SocketAddr) -> io::Result<()> {
        UdpSend::send_to(&self.0, packet, to).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        BATCH
    }

    async fn send_many_to(&self, batch: &mut Batch, packets: &mut Vec<(Packet, SocketAddr)>) -> io::Result<()> {
        for (packet, to) in packets.drain(..) {
            if batch.0.is_full() {
                self.flush(&mut batch.0).await?;
            }
            batch.0.message(to).extend_from_slice(&packet);
        }
        self.flush(&mut batch.0).await
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        UdpSend::local_addr(&self.0)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        UdpSend::set_fwmark(&self.0, mark)
    }
}

impl Sender {
    async fn flush(&self, outbox: &mut Outbox) -> io::Result<()> {
        let socket = self.0.socket();
        let refused = socket.async_io(Interest::WRITABLE, || outbox.send_what_fits(self.0.as_fd())).await?;
        if refused > 0 {
            tracing::debug!(refused, "kernel refuses datagrams");
        }
        Ok(())
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
