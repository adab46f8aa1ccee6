//! Who comes to a service's socket, until a signal ends it.

use std::io;
use std::time::Duration;

use portolan_kernel::door::Door;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

/// How long to let nobody in after a failure to: out of descriptors, the next try would fail as well.
const PAUSE: Duration = Duration::from_millis(100);

/// The callers of a service, one by one.
#[derive(Debug)]
pub struct Callers {
    listener: UnixListener,
    terminated: Signal,
    interrupted: Signal,
    closed_until: Option<Instant>,
}

impl Callers {
    /// Those that come in by `door`; SIGTERM and SIGINT are taken note of from now on.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn new(door: &Door) -> io::Result<Self> {
        let listener = door.listener().try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            terminated: signal(SignalKind::terminate())?,
            interrupted: signal(SignalKind::interrupt())?,
            closed_until: None,
        })
    }

    /// The next one; none when the service is to end. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<UnixStream> {
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if self.closed_until.is_none() => match accepted {
                    Ok((stream, _)) => return Some(stream),
                    Err(error) => {
                        tracing::warn!(%error, "a caller could not be let in");
                        self.closed_until = Some(Instant::now() + PAUSE);
                    }
                },
                () = sleep_until(self.closed_until.unwrap_or_else(Instant::now)), if self.closed_until.is_some() => {
                    self.closed_until = None;
                }
                _ = self.terminated.recv() => return None,
                _ = self.interrupted.recv() => return None,
            }
        }
    }
}
