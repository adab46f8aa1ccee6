//! The DNS server: sockets around `portolan-dns`.
//!
//! One thread waits for all of them (epoll(7)): a UDP and a TCP socket for each gateway address, clients'
//! connections, and one socket for each question at an upstream. It holds no lock while it answers; the rest of the
//! process sends it changes through a queue, and [`DnsServer::barrier`] returns when they are in effect. Nothing is
//! timed while nothing is pending, so an idle server sleeps.

mod connection;
mod flood;
mod hand_over;
mod listener;
mod server;
mod upstream;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use portolan_dns::{Endpoint, ForwarderStats, Limits, Network, ResolvConf, Seen, UpstreamStats};
use portolan_kernel::diag::Transport;
use portolan_kernel::privilege;
use portolan_kernel::udp::ListenError;
use portolan_model::Id;
use rustix::event::{EventfdFlags, eventfd};

pub use hand_over::{HandOver, HandOverData, PartsError};

/// What the server has to be told at its start.
pub struct Config {
    /// The port to listen on where a network does not say another: 53.
    pub port: u16,
    /// Called, on the server's thread, whenever a listening socket was opened or is about to be closed; so that a
    /// supervisor can keep a duplicate for [`HandOver::from_sockets`]. Inherited sockets are not reported when they
    /// are taken over.
    pub on_listener: Option<ListenerHook>,
    /// Limits of what is forwarded.
    pub limits: Limits,
}

/// See [`Config::on_listener`].
pub type ListenerHook = Box<dyn Fn(ListenerEvent<'_>) + Send>;

impl Default for Config {
    fn default() -> Self {
        Self { port: 53, on_listener: None, limits: Limits::default() }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("port", &self.port).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// A listening socket came or goes.
#[derive(Debug, Clone, Copy)]
pub enum ListenerEvent<'a> {
    /// It is open.
    Opened {
        /// The socket, to be duplicated.
        fd: BorrowedFd<'a>,
        /// Its address.
        address: SocketAddr,
        /// Its protocol.
        transport: Transport,
    },
    /// It is about to be closed.
    Closed {
        /// Its address.
        address: SocketAddr,
        /// Its protocol.
        transport: Transport,
    },
}

/// A change of what is answered.
#[derive(Debug, Clone)]
pub enum Change {
    /// A network is new, or is other than it was. Its gateways are listened on.
    PutNetwork(Network),
    /// A network and its endpoints are gone.
    RemoveNetwork(Id),
    /// An endpoint is new, or is other than it was. Its network has to be there.
    PutEndpoint(Endpoint),
    /// An endpoint is gone.
    RemoveEndpoint(Id),
    /// The host asks other servers, or searches other domains. The cache is emptied.
    HostResolver(ResolvConf),
}

/// A gateway address that could not be listened on. It is tried again with every update and barrier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ListenFailure {
    /// The address.
    pub address: SocketAddr,
    /// The protocol.
    pub transport: Transport,
    /// The error and its cause, with the process in the way if it is known.
    pub message: String,
    /// The kernel's code.
    pub errno: Option<i32>,
}

impl From<ListenError> for ListenFailure {
    fn from(error: ListenError) -> Self {
        let message = format!("{error}: {}", error.source);
        Self { address: error.address, transport: error.transport, message, errno: error.source.raw_os_error() }
    }
}

/// Counters since the start of the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Messages that came, over UDP and TCP.
    pub questions: u64,
    /// Of these, over TCP.
    pub tcp: u64,
    /// Answered from the index, negative answers included.
    pub local: u64,
    /// Passed on, the cached ones included.
    pub forwarded: u64,
    /// Refused, because who asked is not on the network.
    pub refused: u64,
    /// Answered with an error, or dropped, because they were no proper questions.
    pub malformed: u64,
    /// Answers that a full or closed socket did not take.
    pub unsent: u64,
    /// Dropped unread, because one address sent more than its share while the socket was crowded; what the kernel is told not
    /// to let in is not counted.
    pub shed: u64,
    /// Clients' connections now.
    pub connections: usize,
    /// Connections ended for lateness or for want of room.
    pub evicted: u64,
    /// Listening sockets now.
    pub listeners: usize,
    /// The forwarder's.
    pub forwarder: ForwarderStats,
    /// Questions in flight, and clients waiting for them.
    pub in_flight: (usize, usize),
    /// Each upstream ever asked.
    pub upstreams: Vec<UpstreamStats>,
    /// Questions of each network's gateway that came from the host, or were refused.
    pub by_network: Vec<Seen>,
    /// Questions of each endpoint.
    pub by_endpoint: Vec<Seen>,
}

/// What can go wrong with the server as a whole.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// It could not be started.
    #[error("start the name server")]
    Start(#[source] io::Error),
    /// Its thread ended before its time.
    #[error("the name server has ended")]
    Ended,
}

pub(crate) enum Command {
    Update(Vec<Change>),
    Barrier(mpsc::Sender<Vec<ListenError>>),
    Stats(mpsc::Sender<Stats>),
    HandOver(mpsc::Sender<HandOver>),
    Stop,
}

/// A barrier that was raised ([`DnsServer::raise_barrier`]).
#[derive(Debug)]
pub struct Barrier(mpsc::Receiver<Vec<ListenError>>);

impl Barrier {
    /// Waits as [`DnsServer::barrier`].
    ///
    /// # Errors
    /// [`DnsError::Ended`].
    pub fn wait(self) -> Result<Vec<ListenFailure>, DnsError> {
        let failures = self.0.recv().map_err(|_| DnsError::Ended)?;
        Ok(failures.into_iter().map(|error| error.find_holder().into()).collect())
    }
}

/// A running server; dropping it ends it and closes its sockets.
#[derive(Debug)]
pub struct DnsServer {
    commands: mpsc::Sender<Command>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Starts the server on a thread of its own (`portolan-dns`), in the network namespace of the calling thread.
    ///
    /// It knows no names and opens no socket before it is told to. With inherited sockets it answers nothing before
    /// the first [`DnsServer::barrier`], lest it deny names it has not been told yet; questions wait meanwhile. The
    /// process's soft limit of open files is raised to the hard one.
    ///
    /// # Errors
    /// [`DnsError::Start`] when out of descriptors or threads.
    pub fn start(inherited: HandOver, config: Config) -> Result<Self, DnsError> {
        let start = |error: rustix::io::Errno| DnsError::Start(error.into());
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(start)?);
        let (commands, queue) = mpsc::channel();
        let server = server::Server::new(inherited, config, wake.clone(), queue).map_err(DnsError::Start)?;
        let thread = std::thread::Builder::new()
            .name("portolan-dns".into())
            .spawn(move || {
                privilege::serve_only();
                server.run();
            })
            .map_err(DnsError::Start)?;
        Ok(Self { commands, wake, thread: Some(thread) })
    }

    /// Takes over changes, in their order and all at once: no question sees half of them.
    ///
    /// Returns at once; [`DnsServer::barrier`] waits. A change that makes no sense (an endpoint of an unknown
    /// network) is logged and passed over.
    pub fn update(&self, changes: Vec<Change>) {
        // Without its thread the next barrier tells.
        let _ = self.send(Command::Update(changes));
    }

    /// Returns when all updates before it are answered from, with the gateways that could not be listened on.
    ///
    /// Inherited sockets that no network wants by now are closed. The process in the way of a socket is looked for here, by
    /// the calling thread, which has to be in the server's network namespace for that.
    ///
    /// # Errors
    /// [`DnsError::Ended`].
    pub fn barrier(&self) -> Result<Vec<ListenFailure>, DnsError> {
        self.raise_barrier()?.wait()
    }

    /// The same without waiting: what answers it can be waited for later.
    ///
    /// # Errors
    /// [`DnsError::Ended`].
    pub fn raise_barrier(&self) -> Result<Barrier, DnsError> {
        let (reply, answer) = mpsc::channel();
        self.send(Command::Barrier(reply))?;
        Ok(Barrier(answer))
    }

    /// The counters.
    ///
    /// # Errors
    /// [`DnsError::Ended`].
    pub fn stats(&self) -> Result<Stats, DnsError> {
        self.ask(Command::Stats)
    }

    /// Ends the server and returns its sockets, with what was read and not yet answered.
    ///
    /// No question is lost: those not yet read wait in the sockets.
    ///
    /// # Errors
    /// [`DnsError::Ended`].
    pub fn hand_over(mut self) -> Result<HandOver, DnsError> {
        let result = self.ask(Command::HandOver);
        self.join();
        result
    }

    fn ask<T>(&self, command: impl FnOnce(mpsc::Sender<T>) -> Command) -> Result<T, DnsError> {
        let (reply, answer) = mpsc::channel();
        self.send(command(reply))?;
        answer.recv().map_err(|_| DnsError::Ended)
    }

    fn send(&self, command: Command) -> Result<(), DnsError> {
        self.commands.send(command).map_err(|_| DnsError::Ended)?;
        // Refused only when it holds its greatest value, and then it wakes already.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        Ok(())
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the name server panicked");
        }
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
        self.join();
    }
}

/// The place of a listening socket: one for each.
type Place = (SocketAddr, Transport);
