//! The interface: packets between the kernel and the library.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::rtnl::link;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::Options;

/// `struct virtio_net_hdr`.
const HEADER: usize = 10;
/// Bytes of the largest packet.
const LARGEST: usize = 65_535;
/// Packets to read before the others get their turn.
const BURST: usize = 64;
/// Between two looks at the MTU.
const LOOK: Duration = Duration::from_secs(2);

/// An interface that packets can be read from and written to.
pub(super) struct Tun {
    fd: Arc<AsyncFd<OwnedFd>>,
    mtu: watch::Receiver<u16>,
    gone: (Arc<watch::Sender<bool>>, watch::Receiver<bool>),
}

impl Tun {
    /// Has to be called inside of a runtime, in the namespace of the interface.
    pub(super) fn new(fd: OwnedFd, options: &Options) -> io::Result<Self> {
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
        Ok(Self { fd: Arc::new(fd), mtu, gone: (gone, seen) })
    }

    /// Becomes true when the interface is removed.
    pub(super) fn gone(&self) -> watch::Receiver<bool> {
        self.gone.1.clone()
    }

    pub(super) fn into_halves(self) -> (TunWriter, TunReader) {
        let reader = TunReader {
            fd: Arc::clone(&self.fd),
            buffer: vec![0; HEADER + LARGEST].into(),
            packets: Vec::with_capacity(BURST),
            mtu: self.mtu,
            gone: self.gone.0,
        };
        (TunWriter { fd: self.fd, buffer: Vec::with_capacity(HEADER + LARGEST) }, reader)
    }
}

/// What the kernel sends by the interface.
pub(super) struct TunReader {
    fd: Arc<AsyncFd<OwnedFd>>,
    buffer: Box<[u8]>,
    packets: Vec<Packet<Ip>>,
    mtu: watch::Receiver<u16>,
    gone: Arc<watch::Sender<bool>>,
}

impl TunReader {
    fn read(&mut self, fd: &OwnedFd, pool: &PacketBufPool) -> io::Result<()> {
        let len = rustix::io::read(fd, &mut self.buffer[..])?;
        let Some(bytes) = self.buffer.get(HEADER..len) else { return Ok(()) };
        let mut packet = pool.get();
        packet.buf_mut().clear();
        packet.buf_mut().extend_from_slice(bytes);
        // What is no IP is not for us.
        self.packets.extend(packet.try_into_ip());
        Ok(())
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

/// What the kernel receives by the interface.
pub(super) struct TunWriter {
    fd: Arc<AsyncFd<OwnedFd>>,
    buffer: Vec<u8>,
}

impl IpSend for TunWriter {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.resize(HEADER, 0);
        self.buffer.extend_from_slice(&packet.into_bytes());
        loop {
            match rustix::io::write(self.fd.get_ref(), &self.buffer) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => {
                    let mut ready = self.fd.writable().await?;
                    ready.clear_ready();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
