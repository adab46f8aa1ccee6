//! The daemon, `dhcp daemon`: it holds the leases of containers for as long as they are there.
//!
//! One thread serves callers, and another ([`portolan_dhcp::Keeper`]) keeps all leases. They are listed in a file beside
//! the socket, so that a daemon that comes after this one goes on with them.

mod connection;
mod flags;
mod held;
mod list;
mod service;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use portolan_kernel::door::Door;
use tokio::net::UnixListener;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until};

pub use self::flags::{Flags, USAGE};
use self::service::Service;

/// How long to let nobody in after a failure to: out of descriptors, the next try would fail as well.
const PAUSE: Duration = Duration::from_millis(100);

/// The file with the number of the process, which goes with it.
struct Pidfile<'a>(&'a Path);

impl<'a> Pidfile<'a> {
    fn write(path: &'a Path) -> Result<Self> {
        if !path.is_absolute() {
            bail!("Error writing pidfile {path:?}: path not absolute");
        }
        fs::write(path, std::process::id().to_string()).with_context(|| format!("Error writing pidfile {path:?}"))?;
        Ok(Self(path))
    }
}

impl Drop for Pidfile<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

/// Serves until a signal ends it; leases stay with their containers then.
///
/// To be called before anything else in the process opens descriptors.
///
/// # Errors
/// When it cannot start.
pub fn run(flags: &Flags) -> Result<()> {
    let socket = flags.socket();
    if let Some(parent) = socket.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.with_context(|| format!("Error getting listener: create `{}`", parent.display()))?;
    }
    let claim = Door::claim(&socket).context("Error getting listener")?;
    // Who is not let in has not overwritten the file of the one that is there, and who finds the socket finds the file.
    let _pidfile = flags.pidfile.as_deref().map(Pidfile::write).transpose()?;
    let door = claim.open().context("Error getting listener")?;
    if flags.broadcast {
        tracing::warn!("-broadcast makes no difference: servers answer to the interface's own address");
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(flags, &door, list(&socket)))
}

/// Where leases are listed: beside the socket, under a name that is not its own whatever that is.
fn list(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".leases");
    path.into()
}

async fn serve(flags: &Flags, door: &Door, list: PathBuf) -> Result<()> {
    let listener = door.listener().try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let service = Rc::new(Service::start(flags, list)?);
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut closed_until: Option<Instant> = None;
    loop {
        let changed = service.changed();
        service.sweep();
        tokio::select! {
            accepted = listener.accept(), if closed_until.is_none() => match accepted {
                Ok((stream, _)) => drop(spawn_local(connection::converse(stream, service.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "a caller could not be let in");
                    closed_until = Some(Instant::now() + PAUSE);
                }
            },
            () = sleep_until(closed_until.unwrap_or_else(Instant::now)), if closed_until.is_some() => closed_until = None,
            _ = terminated.recv() => return Ok(()),
            _ = interrupted.recv() => return Ok(()),
            () = changed => {}
        }
    }
}
