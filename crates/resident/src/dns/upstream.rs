//! One question at one upstream server: a socket of its own, so that its port is as hard to guess as its number.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with};

/// Answers of one socket read in a row: more than one come only of strangers.
const MAX_REPLIES: usize = 4;

/// A socket of an attempt at an upstream.
#[derive(Debug)]
pub(super) enum Upstream {
    Udp(OwnedFd),
    Tcp { fd: OwnedFd, output: Vec<u8>, sent: usize, input: Vec<u8> },
}

impl Upstream {
    /// Opens a socket and asks; the kernel draws its port (`udp_lib_get_port`, net/ipv4/udp.c). `epoll` tells by `data` when
    /// it is ready.
    pub(super) fn ask(
        epoll: &OwnedFd,
        data: EventData,
        to: SocketAddr,
        stream: bool,
        message: &[u8],
    ) -> Result<Self, Errno> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = if stream { SocketType::STREAM } else { SocketType::DGRAM };
        let fd = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        let connected = rustix::net::connect(&fd, &to);
        if !stream {
            connected?;
            send(&fd, message, SendFlags::NOSIGNAL)?;
            epoll::add(epoll, &fd, data, EventFlags::IN)?;
            return Ok(Self::Udp(fd));
        }
        match connected {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        epoll::add(epoll, &fd, data, EventFlags::OUT)?;
        let mut output = (message.len() as u16).to_be_bytes().to_vec();
        output.extend_from_slice(message);
        Ok(Self::Tcp { fd, output, sent: 0, input: Vec::new() })
    }

    /// Goes on when the socket is ready; what has come whole is given to `reply`.
    ///
    /// # Errors
    /// When nothing more will come.
    pub(super) fn ready(
        &mut self,
        epoll: &OwnedFd,
        data: EventData,
        scratch: &mut [u8],
        mut reply: impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        match self {
            Self::Udp(fd) => {
                for _ in 0..MAX_REPLIES {
                    match rustix::io::read(&*fd, &mut *scratch) {
                        Ok(len) => reply(&scratch[..len]),
                        Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
            Self::Tcp { fd, output, sent, .. } if *sent < output.len() => {
                write_some(fd, output, sent)?;
                if *sent == output.len() {
                    epoll::modify(epoll, &*fd, data, EventFlags::IN)?;
                }
                Ok(())
            }
            Self::Tcp { fd, input, .. } => {
                let result = read_some(fd, scratch, input);
                if let Some((len, rest)) = input.split_first_chunk::<2>()
                    && let Some(bytes) = rest.get(..usize::from(u16::from_be_bytes(*len)))
                {
                    reply(bytes);
                    return Ok(());
                }
                result
            }
        }
    }
}

fn write_some(fd: &OwnedFd, output: &[u8], sent: &mut usize) -> Result<(), Errno> {
    match send(fd, &output[*sent..], SendFlags::NOSIGNAL) {
        Ok(len) => *sent += len,
        Err(Errno::AGAIN | Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

fn read_some(fd: &OwnedFd, scratch: &mut [u8], input: &mut Vec<u8>) -> Result<(), Errno> {
    match rustix::io::read(fd, &mut *scratch) {
        Ok(0) => Err(Errno::CONNRESET),
        Ok(len) => {
            input.extend_from_slice(&scratch[..len]);
            Ok(())
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}
