//! The daemon, `dhcp daemon`: it holds the leases of containers for as long as they are there.
//!
//! One thread serves callers, and another ([`portolan_dhcp::Keeper`]) keeps all leases. They are listed in a file beside
//! the socket, so that a daemon that comes after this one goes on with them.

pub(super) mod connection;
mod flags;
mod held;
mod list;
mod service;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use portolan_dhcp::Callers;
use portolan_kernel::door::Door;
use tokio::runtime;
use tokio::task::{LocalSet, spawn_local};

pub use self::flags::{Flags, USAGE};
use self::service::Service;

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
    let mut callers = Callers::new(door)?;
    let service = Rc::new(Service::start(flags, list)?);
    loop {
        let changed = service.changed();
        service.sweep();
        tokio::select! {
            caller = callers.next() => match caller {
                Some(stream) => drop(spawn_local(connection::converse(stream, service.clone()))),
                None => return Ok(()),
            },
            () = changed => {}
        }
    }
}
