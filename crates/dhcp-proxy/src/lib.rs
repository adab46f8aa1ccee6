//! The service that netavark asks for leases of DHCP servers: gRPC on a unix socket, `netavark dhcp-proxy`.
//!
//! Owns the foreign protocol ([`wire`], over HTTP/2) and the process around it. Who keeps a lease is
//! [`portolan_dhcp::Keeper`], as it is for networks of ours; netavark itself gives the container its first address, and
//! later ones are put in place here. No network of ours needs this service: it is for a netavark that is not ours.

#![forbid(unsafe_code)]

mod grpc;
mod service;
pub mod wire;

use std::fs;
use std::io;
use std::os::unix::net::UnixListener as Listener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use portolan_kernel::inherit;
use tokio::net::UnixListener;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

use crate::service::Service;

/// How the service is to run.
#[derive(Debug, Clone)]
pub struct Args {
    /// Where the socket and the file of leases are (`--dir`).
    pub dir: PathBuf,
    /// The socket, or the directory that it is in, if not there (`--uds`).
    pub uds: Option<PathBuf>,
    /// How long a server may take to grant a lease (`--timeout`).
    pub timeout: Duration,
    /// How long to stay without leases and questions; zero for good (`--activity-timeout`).
    pub activity_timeout: Duration,
}

/// How long to let nobody in after a failure to: out of descriptors, the next try would fail as well.
const PAUSE: Duration = Duration::from_millis(100);
/// The name of the socket in its directory.
const SOCKET: &str = "nv-proxy.sock";

impl Args {
    fn socket(&self) -> PathBuf {
        match &self.uds {
            Some(socket) if !socket.is_dir() => socket.clone(),
            Some(directory) => directory.join(SOCKET),
            None => self.dir.join(SOCKET),
        }
    }
}

/// Where connections come in.
struct Door {
    listener: Listener,
    /// The socket to be removed, unless it is the service manager's.
    own: Option<PathBuf>,
}

impl Door {
    /// The socket that a service manager passes (sd_listen_fds(3)), or a new one.
    fn open(args: &Args) -> Result<Self> {
        let mut passed = inherit::take().context("take inherited descriptors")?;
        if passed.len() > 1 {
            bail!("the service manager passes {} sockets, one is expected", passed.len());
        }
        if let Some(fd) = passed.pop() {
            return Ok(Self { listener: Listener::from(fd), own: None });
        }
        let path = args.socket();
        let doing = || format!("listen at `{}`", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(doing)?;
        }
        let listener = match Listener::bind(&path) {
            // Left by one that was killed, unless somebody answers.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(&path) => {
                fs::remove_file(&path).with_context(doing)?;
                Listener::bind(&path).with_context(doing)?
            }
            other => other.with_context(doing)?,
        };
        Ok(Self { listener, own: Some(path) })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(path) = &self.own {
            let _ = fs::remove_file(path);
        }
    }
}

fn is_dead(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// Serves until a signal ends it, or nobody has needed it for long enough.
///
/// To be called before anything else in the process opens descriptors.
///
/// # Errors
/// When it cannot start.
pub fn run(args: &Args) -> Result<()> {
    let door = Door::open(args)?;
    fs::create_dir_all(&args.dir).with_context(|| format!("create `{}`", args.dir.display()))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(args, &door))
}

async fn serve(args: &Args, door: &Door) -> Result<()> {
    let listener = door.listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let service = Rc::new(Service::start(args.dir.join("nv-proxy.lease"), args.timeout)?);
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut closed_until: Option<Instant> = None;
    loop {
        let changed = service.changed();
        service.sweep();
        // What is held keeps it here; the clock starts with the last question.
        let is_needed = args.activity_timeout.is_zero() || service.is_busy();
        let patience = args.activity_timeout.saturating_sub(service.idle());
        tokio::select! {
            accepted = listener.accept(), if closed_until.is_none() => match accepted {
                Ok((stream, _)) => drop(spawn_local(grpc::converse(stream, service.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "a caller could not be let in");
                    closed_until = Some(Instant::now() + PAUSE);
                }
            },
            () = sleep_until(closed_until.unwrap_or_else(Instant::now)), if closed_until.is_some() => closed_until = None,
            _ = terminated.recv() => return Ok(()),
            _ = interrupted.recv() => return Ok(()),
            () = changed => {}
            () = sleep(patience), if !is_needed => {
                if !service.is_busy() && service.idle() >= args.activity_timeout {
                    return Ok(());
                }
            }
        }
    }
}
