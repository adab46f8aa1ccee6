use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::hand_over::ConnectionData;

/// How long a client may take for its next question, or to read an answer (RFC 7766 §6.2.3 leaves it to us).
pub(super) const IDLE: Duration = Duration::from_secs(10);
/// The longest question: a name, an OPT record, and whatever else may be in it.
pub(super) const MAX_QUESTION: usize = 4096;
/// Answers that a client has not read; beyond, its questions are not read.
const MAX_OUTPUT: usize = 64 << 10;
/// Questions of one connection that wait for upstreams; beyond, no more are read.
const MAX_PENDING: usize = 64;

/// A client's TCP connection: messages with their length in two bytes before them (RFC 1035 §4.2.2), as many at a
/// time as it likes (RFC 7766 §6.2.1.1).
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    pub(super) gateway: IpAddr,
    pub(super) peer: SocketAddr,
    /// Moves on with every question and whenever the client reads; not with single bytes.
    pub(super) deadline: Instant,
    /// What is waited for; `None` before the first time.
    pub(super) interest: Option<EventFlags>,
    /// Questions that wait for upstreams.
    pub(super) pending: usize,
    input: Vec<u8>,
    /// What of `input` was taken out.
    taken: usize,
    output: Vec<u8>,
    sent: usize,
    at_end: bool,
}

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Goes,
    Stays,
}

impl Connection {
    pub(super) fn new(fd: OwnedFd, gateway: IpAddr, peer: SocketAddr, data: ConnectionData, now: Instant) -> Self {
        Self {
            fd,
            gateway,
            peer,
            deadline: now + IDLE,
            interest: None,
            pending: 0,
            input: data.input,
            taken: 0,
            output: data.output,
            sent: 0,
            at_end: false,
        }
    }

    pub(super) fn into_data(mut self, unanswered: &[Box<[u8]>]) -> (OwnedFd, ConnectionData) {
        let mut input = Vec::new();
        for question in unanswered {
            input.extend_from_slice(&(question.len() as u16).to_be_bytes());
            input.extend_from_slice(question);
        }
        input.extend_from_slice(&self.input[self.taken..]);
        self.output.drain(..self.sent);
        (self.fd, ConnectionData { input, output: self.output })
    }

    /// Reads once, at most as much as `scratch` holds.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> Fate {
        if !self.wants_input() {
            return Fate::Stays;
        }
        match rustix::io::read(&self.fd, &mut *scratch) {
            Ok(0) => {
                self.at_end = true;
                Fate::Stays
            }
            Ok(len) => {
                self.input.extend_from_slice(&scratch[..len]);
                Fate::Stays
            }
            Err(Errno::AGAIN | Errno::INTR) => Fate::Stays,
            Err(_) => Fate::Goes,
        }
    }

    /// Takes out the next question, if it is there as a whole and may be answered now; `Err` for one that is none.
    pub(super) fn next_question(&mut self, now: Instant) -> Result<Option<Vec<u8>>, ()> {
        if !self.has_room() {
            return Ok(None);
        }
        let rest = &self.input[self.taken..];
        let Some((len, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes(*len));
        if len > MAX_QUESTION {
            return Err(());
        }
        let Some(question) = rest.get(..len).map(<[u8]>::to_vec) else { return Ok(None) };
        self.taken += 2 + len;
        if self.taken == self.input.len() {
            self.input.clear();
            self.taken = 0;
        } else if self.taken > MAX_QUESTION {
            self.input.drain(..self.taken);
            self.taken = 0;
        }
        self.deadline = now + IDLE;
        Ok(Some(question))
    }

    pub(super) fn push(&mut self, answer: &[u8]) {
        self.output.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        self.output.extend_from_slice(answer);
    }

    /// Writes what the client takes.
    pub(super) fn flush(&mut self, now: Instant) -> Fate {
        while self.sent < self.output.len() {
            match send(&self.fd, &self.output[self.sent..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(len) => {
                    self.sent += len;
                    self.deadline = now + IDLE;
                }
                Err(Errno::AGAIN) => return Fate::Stays,
                Err(Errno::INTR) => {}
                Err(_) => return Fate::Goes,
            }
        }
        self.output.clear();
        self.sent = 0;
        // A client that is done asking gets what it asked for.
        if self.at_end && self.pending == 0 && !self.has_question() { Fate::Goes } else { Fate::Stays }
    }

    /// Whether a whole question was read that may be answered now.
    pub(super) fn has_question(&self) -> bool {
        let rest = &self.input[self.taken..];
        self.has_room()
            && rest
                .split_first_chunk::<2>()
                .is_some_and(|(len, rest)| rest.len() >= usize::from(u16::from_be_bytes(*len)))
    }

    /// What to wait for. Nothing but an error, if a question is out and no more may come; what is read and still to be
    /// answered makes it ready at once.
    pub(super) fn wanted(&self) -> EventFlags {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, self.wants_input());
        wanted.set(EventFlags::OUT, self.sent < self.output.len() || self.has_question());
        wanted
    }

    fn wants_input(&self) -> bool {
        !self.at_end && self.has_room()
    }

    fn has_room(&self) -> bool {
        self.pending < MAX_PENDING && self.output.len() - self.sent < MAX_OUTPUT
    }
}
