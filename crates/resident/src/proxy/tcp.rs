//! A connection that is passed on: two sockets, and for each direction a pipe while bytes are under way.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use portolan_kernel::diag::Transport;
use rustix::io::Errno;
use rustix::net::sockopt::{self, set_socket_linger, set_tcp_nodelay};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, connect, shutdown, socket_with};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::Place;
use super::hand_over::{ConnectionData, DirectionData};

/// What a pipe holds; the kernel rounds up and may refuse, and then it is 64 KiB.
const PIPE: usize = 256 << 10;

/// So often a direction is served before others have their turn.
const TURNS: usize = 16;

/// A pipe, ready for the next direction that needs one.
pub(super) type Pipe = (OwnedFd, OwnedFd);

/// One of the two directions of a connection.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    held: usize,
    /// The source has ended.
    is_ended: bool,
    /// The destination has been told.
    is_told: bool,
    /// Bytes so far.
    pub(super) passed: u64,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) place: Place,
    pub(super) target: SocketAddr,
    pub(super) client: OwnedFd,
    pub(super) server: OwnedFd,
    is_connected: bool,
    pub(super) inward: Direction,
    pub(super) outward: Direction,
}

/// What became of a connection after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It waits for the next event.
    Waits,
    /// There is more to do; others go first.
    Goes,
    /// Both ends have ended.
    Done,
    /// One end broke it off, and the other was told.
    Broken,
    /// The container did not take it.
    Refused,
}

impl Connection {
    /// Begins to connect an accepted client to where the rule leads.
    pub(super) fn begin(place: Place, target: SocketAddr, client: OwnedFd) -> io::Result<Self> {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let server = socket_with(family, SocketType::STREAM, flags, None)?;
        // Whoever sends small messages has decided so on its own connection.
        set_tcp_nodelay(&client, true)?;
        set_tcp_nodelay(&server, true)?;
        match connect(&server, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => {
                reset(&client);
                return Err(error.into());
            }
        }
        Ok(Self {
            place,
            target,
            client,
            server,
            is_connected: false,
            inward: Direction::default(),
            outward: Direction::default(),
        })
    }

    /// Does what can be done without waiting.
    pub(super) fn serve(&mut self, pool: &mut Vec<Pipe>) -> Outcome {
        if !self.is_connected {
            match sockopt::socket_error(&self.server) {
                Ok(Ok(())) => {}
                _ => {
                    reset(&self.client);
                    return Outcome::Refused;
                }
            }
            match rustix::net::getpeername(&self.server) {
                Ok(Some(_)) => self.is_connected = true,
                _ => return Outcome::Waits,
            }
        }
        let inward = self.inward.pump(&self.client, &self.server, pool);
        let outward = self.outward.pump(&self.server, &self.client, pool);
        match (inward, outward) {
            (Ok(a), Ok(b)) if a || b => Outcome::Goes,
            (Ok(_), Ok(_)) if self.inward.is_told && self.outward.is_told => Outcome::Done,
            (Ok(_), Ok(_)) => Outcome::Waits,
            _ => {
                self.break_off();
                Outcome::Broken
            }
        }
    }

    /// Ends both sides as if each had been reset by the other.
    pub(super) fn break_off(&self) {
        reset(&self.client);
        reset(&self.server);
    }

    /// Takes it apart for the next binary.
    pub(super) fn into_parts(self) -> (Vec<OwnedFd>, ConnectionData) {
        let mut fds = vec![self.client, self.server];
        let mut direction = |direction: Direction| {
            let has_pipe = direction.pipe.is_some();
            fds.extend(direction.pipe.into_iter().flat_map(|(read, write)| [read, write]));
            DirectionData {
                has_pipe,
                held: direction.held,
                is_ended: direction.is_ended,
                is_told: direction.is_told,
                passed: direction.passed,
            }
        };
        let (inward, outward) = (direction(self.inward), direction(self.outward));
        let data = ConnectionData {
            is_tcp: self.place.transport == Transport::Tcp,
            listen: self.place.listen,
            target: self.target,
            is_connected: self.is_connected,
            inward,
            outward,
        };
        (fds, data)
    }

    /// Puts it together again; none if descriptors are missing.
    pub(super) fn from_parts(fds: &mut impl Iterator<Item = OwnedFd>, data: ConnectionData) -> Option<Self> {
        let (client, server) = (fds.next()?, fds.next()?);
        let mut direction = |data: DirectionData| {
            let pipe = if data.has_pipe { Some((fds.next()?, fds.next()?)) } else { None };
            let DirectionData { held, is_ended, is_told, passed, .. } = data;
            Some(Direction { pipe, held, is_ended, is_told, passed })
        };
        let (inward, outward) = (direction(data.inward)?, direction(data.outward)?);
        let transport = if data.is_tcp { Transport::Tcp } else { Transport::Udp };
        let place = Place { transport, listen: data.listen };
        Some(Self { place, target: data.target, client, server, is_connected: data.is_connected, inward, outward })
    }
}

impl Direction {
    /// Moves bytes until one side has to be waited for; whether there is more to do.
    fn pump(&mut self, from: &OwnedFd, to: &OwnedFd, pool: &mut Vec<Pipe>) -> io::Result<bool> {
        const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);
        if self.is_told {
            return Ok(false);
        }
        let mut goes_on = false;
        for turn in 0..TURNS {
            let mut is_moved = false;
            if !self.is_ended {
                let (_, write) = match &self.pipe {
                    Some(pipe) => pipe,
                    None => self.pipe.insert(match pool.pop() {
                        Some(pipe) => pipe,
                        None => make_pipe()?,
                    }),
                };
                match splice(from, None, write, None, PIPE, FLAGS) {
                    Ok(0) => self.is_ended = true,
                    Ok(moved) => {
                        self.held += moved;
                        is_moved = true;
                    }
                    // Nothing to read, or no room in the pipe.
                    Err(Errno::AGAIN) => {}
                    Err(Errno::INTR) => is_moved = true,
                    Err(error) => return Err(error.into()),
                }
            }
            if self.held > 0
                && let Some((read, _)) = &self.pipe
            {
                match splice(read, None, to, None, self.held, FLAGS) {
                    Ok(moved) => {
                        self.held -= moved;
                        self.passed += moved as u64;
                        is_moved |= moved > 0;
                    }
                    Err(Errno::AGAIN) => {}
                    Err(Errno::INTR) => is_moved = true,
                    Err(error) => return Err(error.into()),
                }
            }
            if !is_moved {
                break;
            }
            goes_on = turn + 1 == TURNS;
        }
        if self.held == 0 {
            pool.extend(self.pipe.take());
            if self.is_ended {
                self.is_told = true;
                match shutdown(to, Shutdown::Write) {
                    // It went away by itself.
                    Ok(()) | Err(Errno::NOTCONN) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(goes_on && !self.is_told)
    }
}

fn make_pipe() -> io::Result<Pipe> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A smaller one is only slower.
    let _ = fcntl_setpipe_size(&write, PIPE);
    Ok((read, write))
}

/// Makes the close of a socket a reset (SO_LINGER of no time, socket(7)).
fn reset(socket: &impl AsFd) {
    let _ = set_socket_linger(socket, Some(std::time::Duration::ZERO));
}
