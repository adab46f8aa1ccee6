//! A socket that waits for questions.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use portolan_kernel::diag::Transport;
use portolan_kernel::{sieve, udp};

use super::Place;
use super::flood::Held;

/// Bytes waiting, overhead included, that make a flood: some hundred questions.
const FLOOD: u32 = 384 << 10;

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) fd: OwnedFd,
    pub(super) place: Place,
    pub(super) polled: bool,
    held: Held,
}

impl Listener {
    pub(super) fn new(fd: OwnedFd, place: Place) -> Self {
        Self { fd, place, polled: false, held: Held::default() }
    }

    /// One that another process had, which may have held somebody back.
    pub(super) fn inherited(fd: OwnedFd, place: Place) -> Self {
        let listener = Self::new(fd, place);
        listener.sift();
        listener
    }

    /// Whether more waits than a crowd of honest clients asks for, and whether others soon find no room.
    pub(super) fn is_flooded(&self) -> (bool, bool) {
        let (waiting, room) = udp::backlog(self.fd.as_fd());
        (waiting > FLOOD, waiting > room / 4)
    }

    /// There was hardly room; of what was read then so many questions were of each, and of whom there were more than `share` may be held
    /// back.
    pub(super) fn flooded(&mut self, of_each: &BTreeMap<IpAddr, u32>, share: u32, now: Instant) {
        let before = self.held.shifts().count();
        if self.held.crowded(of_each, share, now) {
            self.sift();
            if before == 0 {
                let of: Vec<String> = self.held.shifts().map(|(ip, _)| ip.to_string()).collect();
                tracing::info!(at = %self.place.0, of = of.join(", "), "questions are held back, so that others have their turn");
            }
        }
    }

    /// When more may be let in.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.held.deadline()
    }

    pub(super) fn relax(&mut self, now: Instant) {
        if self.held.relax(now) {
            self.sift();
        }
    }

    fn sift(&self) {
        let (address, transport) = self.place;
        if transport != Transport::Udp {
            return;
        }
        if let Err(error) = sieve::sieve(self.fd.as_fd(), self.held.shifts(), address.is_ipv4()) {
            tracing::warn!(%error, %address, "hold back who floods the name server");
        }
    }
}

/// A question beyond its address's share.
#[derive(Debug)]
pub(super) struct Deferred {
    /// The number of the listener that it came to.
    pub(super) listener: u64,
    pub(super) from: SocketAddr,
    pub(super) bytes: Box<[u8]>,
}
