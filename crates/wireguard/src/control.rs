//! A client of the configuration protocol.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portolan_kernel::netlink::Errno;

use crate::uapi::{UapiError, parse_answer};
use crate::{Changes, Device, State};

const PATIENCE: Duration = Duration::from_secs(10);
/// A thousand peers with some ranges each say less.
const LONGEST: u64 = 16 << 20;

/// Why a device could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody is there.
    #[error("connect to device at `{path}`")]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It went away, or says nothing.
    #[error("talk to device at `{path}`")]
    Talk {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It says what is not understood.
    #[error("read answer of device at `{path}`")]
    Answer {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: UapiError,
    },
    /// It refuses.
    #[error("{asked} device at `{path}`")]
    Refused {
        /// `ask` or `configure`.
        asked: &'static str,
        /// Its socket.
        path: PathBuf,
        /// Why, by its word.
        #[source]
        source: Errno,
    },
}

/// A device that a process serves at a unix socket, in the cross-platform configuration protocol.
///
/// Blocking, with a timeout of ten seconds. Each request is a connection of its own, so that a `Control` outlives the
/// process it talks to and talks to the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// The device at `path` (wg(8) looks at `/var/run/wireguard/NAME.sock`), which has to answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn connect(path: impl Into<PathBuf>) -> Result<Self, ControlError> {
        let mut control = Self { path: path.into() };
        control.get()?;
        Ok(control)
    }

    /// Where its socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn exchange(&self, request: &str, asked: &'static str) -> Result<State, ControlError> {
        let path = || self.path.clone();
        let mut stream =
            UnixStream::connect(&self.path).map_err(|source| ControlError::Connect { path: path(), source })?;
        let answer = talk(&mut stream, request).map_err(|source| ControlError::Talk { path: path(), source })?;
        match parse_answer(&answer).map_err(|source| ControlError::Answer { path: path(), source })? {
            (0, state) => Ok(state),
            (errno, _) => Err(ControlError::Refused { asked, path: path(), source: Errno(errno) }),
        }
    }
}

fn talk(stream: &mut UnixStream, request: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer)?;
    Ok(answer)
}

impl Device for Control {
    type Error = ControlError;

    fn get(&mut self) -> Result<State, ControlError> {
        self.exchange("get=1\n\n", "ask")
    }

    fn set(&mut self, changes: &Changes) -> Result<(), ControlError> {
        self.exchange(&format!("set=1\n{changes}\n"), "configure").map(drop)
    }
}
