//! The proxy: what the kernel cannot translate. `[::1]`, clients of one address family and containers of the other.
//!
//! One thread for all ports. Bytes of a connection stay in the kernel (splice(2) through a pipe that a connection has
//! only while bytes are under way); nothing is timed while nothing is pending. All state of a connection is in its
//! descriptors, so an upgrade carries it over an execve(2).

mod hand_over;
mod server;
mod tcp;
mod udp;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use portolan_kernel::diag::Transport;
use portolan_kernel::privilege;
use portolan_kernel::udp::ListenError;
use rustix::event::{EventfdFlags, eventfd};

pub use hand_over::{HandOver, HandOverData};

/// Where the proxy listens: one rule for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// TCP or UDP.
    pub transport: Transport,
    /// The address.
    pub listen: SocketAddr,
}

/// A port that is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where clients come in.
    pub place: Place,
    /// Where they are passed on to.
    pub target: SocketAddr,
    /// Whose it is, e.g. `container web 8080:80/tcp`.
    pub owner: String,
}

/// A change of what is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A rule is new, or leads elsewhere. Connections to where it led before are ended.
    Put(Rule),
    /// A rule is gone, and its connections with it.
    Remove(Place),
}

/// A listening socket comes or goes.
#[derive(Debug, Clone, Copy)]
pub enum ListenerEvent<'a> {
    /// It is open.
    Opened(Place, BorrowedFd<'a>),
    /// It is about to be closed.
    Closed(Place),
}

/// Called, on the proxy's thread, whenever a listening socket was opened or is about to be closed, so that a supervisor
/// can keep a duplicate.
pub type ListenerHook = Box<dyn Fn(ListenerEvent<'_>) + Send>;

/// Counters of a rule, since it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The rule.
    pub rule: Rule,
    /// Connections, or for UDP clients.
    pub connections: u64,
    /// Of these, open now.
    pub open: u64,
    /// Connections that the container did not take.
    pub failed: u64,
    /// Bytes to the container.
    pub bytes_in: u64,
    /// Bytes from the container.
    pub bytes_out: u64,
}

/// The proxy's thread is gone.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It could not be started.
    #[error("start the proxy")]
    Start(#[source] io::Error),
    /// It ended before its time.
    #[error("the proxy has ended")]
    Ended,
}

enum Command {
    Update(Vec<Change>),
    Barrier(mpsc::Sender<Vec<ListenError>>),
    Stats(mpsc::Sender<Vec<Seen>>),
    HandOver(mpsc::Sender<HandOver>),
    Stop,
}

/// The running proxy; dropping it ends it and every connection.
pub struct Proxy {
    commands: mpsc::Sender<Command>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

impl Proxy {
    /// Starts the thread (`portolan-proxy`) in the network namespace of the calling thread.
    ///
    /// What is inherited goes on at once; sockets that no rule wants by the first [`Proxy::barrier`] are closed then.
    ///
    /// # Errors
    /// [`ProxyError::Start`] when out of descriptors or threads.
    pub fn start(inherited: HandOver, on_listener: Option<ListenerHook>) -> Result<Self, ProxyError> {
        let start = |error: rustix::io::Errno| ProxyError::Start(error.into());
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(start)?);
        let (commands, queue) = mpsc::channel();
        let server = server::Server::new(inherited, on_listener, wake.clone(), queue).map_err(ProxyError::Start)?;
        let thread = std::thread::Builder::new()
            .name("portolan-proxy".into())
            .spawn(move || {
                privilege::serve_only();
                server.run();
            })
            .map_err(ProxyError::Start)?;
        Ok(Self { commands, wake, thread: Some(thread) })
    }

    /// Takes over changes, in their order; returns at once.
    pub fn update(&self, changes: Vec<Change>) {
        // Without its thread the next barrier tells.
        let _ = self.send(Command::Update(changes));
    }

    /// Returns when all updates before it are in force, with the places that could not be listened on. These are tried
    /// again with every barrier. The process in the way is looked for by the calling thread, in its network namespace.
    ///
    /// # Errors
    /// [`ProxyError::Ended`].
    pub fn barrier(&self) -> Result<Vec<ListenError>, ProxyError> {
        Ok(self.ask(Command::Barrier)?.into_iter().map(ListenError::find_holder).collect())
    }

    /// The counters of every rule.
    ///
    /// # Errors
    /// [`ProxyError::Ended`].
    pub fn stats(&self) -> Result<Vec<Seen>, ProxyError> {
        self.ask(Command::Stats)
    }

    /// Ends the thread; all sockets and connections for the next one.
    ///
    /// # Errors
    /// [`ProxyError::Ended`].
    pub fn hand_over(mut self) -> Result<HandOver, ProxyError> {
        let handed = self.ask(Command::HandOver);
        self.join();
        handed
    }

    fn ask<T>(&self, command: impl FnOnce(mpsc::Sender<T>) -> Command) -> Result<T, ProxyError> {
        let (reply, answer) = mpsc::channel();
        self.send(command(reply))?;
        answer.recv().map_err(|_| ProxyError::Ended)
    }

    fn send(&self, command: Command) -> Result<(), ProxyError> {
        self.commands.send(command).map_err(|_| ProxyError::Ended)?;
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        Ok(())
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the proxy panicked");
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
        self.join();
    }
}
