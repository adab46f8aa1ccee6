//! The service that netavark asks for leases of DHCP servers: gRPC on a unix socket, `netavark dhcp-proxy`.
//!
//! Owns the foreign protocol ([`wire`], over HTTP/2) and the process around it. Who keeps a lease is
//! [`portolan_dhcp::Keeper`], as it is for networks of ours; addresses and default routes are set in the container here, as
//! netavark's own service does (`src/dhcp_proxy/ip.rs`): its `setup` only says what they are. No network of ours needs this service: it is for a netavark that is not ours.

#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod foreign;
mod grpc;
mod service;
pub mod wire;

use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_dhcp::Callers;
use portolan_kernel::door::{self, Door};
use tokio::runtime;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

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

/// Serves until a signal ends it, or nobody has needed it for long enough.
///
/// To be called before anything else in the process opens descriptors.
///
/// # Errors
/// When it cannot start.
pub fn run(args: &Args) -> Result<()> {
    let socket = args.socket();
    if let Some(parent) = socket.parent() {
        door::directory(parent).with_context(|| format!("listen at `{}`", socket.display()))?;
    }
    let door = Door::open(&socket)?;
    fs::create_dir_all(&args.dir).with_context(|| format!("create `{}`", args.dir.display()))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(args, &door))
}

async fn serve(args: &Args, door: &Door) -> Result<()> {
    let mut callers = Callers::new(door)?;
    let service = Rc::new(Service::start(args.dir.join("nv-proxy.lease"), args.timeout)?);
    loop {
        let changed = service.changed();
        service.sweep();
        // What is held keeps it here; the clock starts with the last question.
        let is_needed = args.activity_timeout.is_zero() || service.is_busy();
        let patience = args.activity_timeout.saturating_sub(service.idle());
        tokio::select! {
            caller = callers.next() => match caller {
                Some(stream) => drop(spawn_local(grpc::converse(stream, service.clone()))),
                None => return Ok(()),
            },
            () = changed => {}
            () = sleep(patience), if !is_needed => {
                if !service.is_busy() && service.idle() >= args.activity_timeout {
                    return Ok(());
                }
            }
        }
    }
}
