//! The interface: packets between the kernel and the library.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::rtnl::link;
use portolan_kernel::tun::{self, Offload};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use super::Options;
use super::offload::{self, HEADER, Header, Joiner, LARGEST};

/// Packets to read before the others get their turn.
const BURST: usize = 128;
/// Packets that may wait to be written, and that are looked at together.
const WAITING: usize = 1024;
const TOGETHER: usize = 128;
/// Between two looks at the MTU.
const LOOK: Duration = Duration::from_millis(250);

/// An interface that packets can be read from and written to.
pub(super) struct Tun {
    fd: Arc<AsyncFd<OwnedFd>>,
    offload: Offload,
    mtu: watch::Receiver<u16>,
    gone: (Arc<watch::Sender<bool>>, watch::Receiver<bool>),
}

impl Tun {
    /// Has to be called inside of a runtime, in the namespace of the interface.
    pub(super) fn new(fd: OwnedFd, options: &Options) -> io::Result<Self> {
        tun::set_header(&fd, HEADER)?;
        // Linux before 6.17 does not do tunnels, before 6.2 no UDP.
        let offload =
            [Offload::TUNNELS, Offload::TCP_UDP].into_iter().find(|offload| tun::set_offload(&fd, *offload).is_ok());
        let offload = match offload {
            Some(offload) => offload,
            None => tun::set_offload(&fd, Offload::TCP).map(|()| Offload::TCP)?,
        };
        let (gone, seen) = watch::channel(false);
        let gone = Arc::new(gone);
        let (changed, mtu) = watch::channel(options.mtu.min(u16::MAX.into()) as u16);
        let mut socket = Socket::open(ROUTE).map_err(io::Error::other)?;
        let (name, ended) = (options.name.clone(), Arc::clone(&gone));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                match link::lookup(&mut socket, name.as_str()) {
                    Ok(Some(link)) => {
                        let mtu = link.mtu.min(u16::MAX.into()) as u16;
                        changed.send_if_modified(|known| std::mem::replace(known, mtu) != mtu);
                    }
                    Ok(None) => {
                        ended.send_replace(true);
                        return;
                    }
                    Err(error) => tracing::warn!(%error, name, "cannot look at the MTU"),
                }
            }
        });
        #[expect(
            deprecated,
            reason = "its replacement is unsafe for the sake of types that own no descriptor; this one does"
        )]
        let fd = AsyncFd::new(fd)?;
        Ok(Self { fd: Arc::new(fd), offload, mtu, gone: (gone, seen) })
    }

    /// Becomes true when the interface is removed.
    pub(super) fn gone(&self) -> watch::Receiver<bool> {
        self.gone.1.clone()
    }

    pub(super) fn into_halves(self) -> (TunWriter, TunReader) {
        let port = Arc::new(AtomicU16::new(0));
        let reader = TunReader {
            fd: Arc::clone(&self.fd),
            port: Arc::clone(&port),
            buffer: vec![0; HEADER + LARGEST].into(),
            packets: Vec::with_capacity(BURST),
            mtu: self.mtu,
            gone: self.gone.0,
        };
        let (writer, waiting) = mpsc::channel(WAITING);
        tokio::spawn(write_all(self.fd, waiting, Joiner::new(self.offload), port));
        (TunWriter(writer), reader)
    }
}

/// What the kernel sends by the interface.
pub(super) struct TunReader {
    fd: Arc<AsyncFd<OwnedFd>>,
    /// Where the kernel was seen to send VXLAN to.
    port: Arc<AtomicU16>,
    buffer: Box<[u8]>,
    packets: Vec<Packet<Ip>>,
    mtu: watch::Receiver<u16>,
    gone: Arc<watch::Sender<bool>>,
}

impl TunReader {
    fn read(&mut self, fd: &OwnedFd, pool: &PacketBufPool) -> io::Result<()> {
        let len = rustix::io::read(fd, &mut self.buffer[..])?;
        let Some((header, bytes)) = self.buffer[..len].split_first_chunk_mut::<HEADER>() else { return Ok(()) };
        let header = Header::read(header);
        if let Some(port) = header.vxlan_port(bytes) {
            self.port.store(port, Ordering::Relaxed);
        }
        let place = |first: &[u8], second: &[u8]| {
            let mut packet = pool.get();
            packet.buf_mut().clear();
            packet.buf_mut().extend_from_slice(first);
            packet.buf_mut().extend_from_slice(second);
            packet
        };
        let mtu = usize::from(*self.mtu.borrow());
        // What is no IP is not for us.
        offload::divide(header, bytes, place, |mut packet| {
            pad(packet.buf_mut(), mtu);
            self.packets.extend(packet.try_into_ip());
        });
        Ok(())
    }
}

/// Makes a packet as long as it is encrypted (whitepaper §5.4.6), which the library would do where another processor has it.
fn pad(packet: &mut BytesMut, mtu: usize) {
    let length = packet.len().next_multiple_of(16);
    if length <= mtu {
        packet.resize(length, 0);
    }
}

impl IpRecv for TunReader {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let fd = Arc::clone(&self.fd);
        while self.packets.is_empty() {
            let mut ready = fd.readable().await?;
            while self.packets.len() < BURST {
                match ready.try_io(|fd| self.read(fd.get_ref(), pool)) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        if error.raw_os_error() == Some(rustix::io::Errno::BADFD.raw_os_error()) {
                            self.gone.send_replace(true);
                        }
                        return Err(error);
                    }
                    Err(_) => break,
                }
            }
        }
        Ok(self.packets.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone().into()
    }
}

/// What the kernel receives by the interface. Packets wait for each other only while the one before is written.
pub(super) struct TunWriter(mpsc::Sender<Packet<Ip>>);

impl IpSend for TunWriter {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.0.send(packet).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

async fn write_all(
    fd: Arc<AsyncFd<OwnedFd>>,
    mut waiting: mpsc::Receiver<Packet<Ip>>,
    mut joiner: Joiner,
    port: Arc<AtomicU16>,
) {
    let mut packets = Vec::with_capacity(TOGETHER);
    while waiting.recv_many(&mut packets, TOGETHER).await != 0 {
        joiner.set_port(port.load(Ordering::Relaxed));
        for packet in packets.drain(..) {
            joiner.push(&packet.into_bytes());
        }
        let (mut error, mut is_refused) = (None, false);
        joiner.finish(|bytes| {
            let mut result = write(fd.get_ref(), bytes);
            if result == Err(rustix::io::Errno::INVAL) && is_tunnel(bytes) {
                is_refused = true;
                result = write_divided(fd.get_ref(), bytes);
            }
            if let Err(refused) = result {
                error = Some(refused);
            }
        });
        if is_refused {
            tracing::warn!("kernel does not take packets in tunnels together");
            joiner.leave_tunnels();
        }
        match error {
            None => {}
            Some(rustix::io::Errno::BADFD) => return,
            // It is down, or a packet makes no sense to the kernel.
            Some(error) => tracing::debug!(%error, "kernel refuses a packet"),
        }
    }
}

fn is_tunnel(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|header| Header::read(header).is_tunnel())
}

/// For a kernel that has another idea of what belongs into the header.
fn write_divided(fd: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
    let Some((header, packet)) = bytes.split_first_chunk::<HEADER>() else { return Ok(()) };
    let mut result = Ok(());
    let place = |first: &[u8], second: &[u8]| [first, second].concat();
    offload::divide(Header::read(header), &mut packet.to_vec(), place, |packet| {
        result = write(fd, &[&[0; HEADER], &packet[..]].concat());
    });
    result
}

/// The kernel takes a packet at once or refuses it: what may wait has no limit of its own (`TUNSETSNDBUF`).
fn write(fd: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
    loop {
        match rustix::io::write(fd, bytes) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(drop),
        }
    }
}
