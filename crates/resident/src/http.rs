//! HTTP on a unix socket, in a thread of its own, and how what it serves comes into force.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use portolan_kernel::door::Door;
use portolan_kernel::process;
use portolan_model::ProcessId;
use tokio::net::UnixListener;
use tokio::runtime;
use tokio::sync::oneshot;

use crate::control::{Client, Request};

/// How long a call may go on when the thread is to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who calls, if that can be told: not if it is in another namespace of process ids.
#[derive(Debug, Clone, Copy)]
pub struct Caller(pub Option<ProcessId>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let pid = stream.io().peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        Self(pid.and_then(|pid| Some(ProcessId { pid, started: process::pid_start_time(pid).ok()? })))
    }
}

/// The running thread; dropping it ends it and removes the socket.
#[derive(Debug)]
pub struct Service {
    door: Option<Door>,
    stop: Option<oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
}

impl Service {
    /// Serves `app` to who comes in by `door`, in a thread of this name; of calls that block, so many go on at once.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be had.
    pub fn start(name: &'static str, door: Door, calls: usize, app: Router) -> Result<Self> {
        let listener = door.listener().try_clone()?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = mpsc::channel();
        let runtime = runtime::Builder::new_current_thread().enable_all().max_blocking_threads(calls).build()?;
        let serve = async move {
            let listener = UnixListener::from_std(listener)?;
            axum::serve(listener, app.into_make_service_with_connect_info::<Caller>())
                .with_graceful_shutdown(async { drop(stopped.await) })
                .await
        };
        let work = move || {
            if let Err(error) = runtime.block_on(serve) {
                tracing::error!("{name}: {error}");
            }
            drop(end);
        };
        std::thread::Builder::new().name(name.into()).spawn(work)?;
        Ok(Self { door: Some(door), stop: Some(stop), ended })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop((self.door.take(), self.stop.take()));
        // Idle connections stay open: it is enough that no call is under way.
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}

/// Waits until what a call committed is in force, as every command does; `call` is its name in the log. What is not in
/// force is no reason to refuse what is done.
pub fn settle(run: &Path, call: &str) {
    let settled = || -> Result<()> {
        let mut client = Client::connect(run)?.context("the control socket is gone")?;
        let done = client.tell(&Request::Sync { command: None })?.unwrap_or_default();
        done.warnings.iter().for_each(|warning| tracing::warn!("{call}: {warning}"));
        Ok(())
    };
    if let Err(error) = settled() {
        tracing::warn!("{call}: names and proxied ports are not served: {error:#}");
    }
}
