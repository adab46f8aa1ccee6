//! The process that carries the packets of a device where the kernel does not.
//!
//! It outlives whoever started it. When it dies its interface stays, with addresses and routes, and drops what is sent by
//! it: nothing leaves in clear, and the next worker takes the interface over. It ends when the interface is removed, and
//! by `SIGTERM` or `SIGINT`, which leave the interface.
//!
//! The library `gotatun` does the cryptography and keeps the sessions; of its server of the configuration protocol no use
//! is made, since that one makes a peer anew, without its session, whenever anything of it is set.

mod device;
mod offload;
mod serve;
mod tun;
mod udp;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use portolan_kernel::door::{Door, DoorError};
use portolan_kernel::netlink::{Batch, NetlinkError, ROUTE, Socket};
use portolan_kernel::privilege::{self, Capability};
use portolan_kernel::rtnl::link::{self, AddrGenMode, LinkChange};
use portolan_kernel::session::{self, Side};
use portolan_kernel::signals;
use serde::{Deserialize, Serialize};

use crate::{Control, ControlError};
use tun::Tun;

/// How long a worker may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the process that was started says when the other one has said why.
const NOT_SERVING: &str = "it does not serve";

/// Numbers of errors, as the configuration protocol wants them.
const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Packets that wait for the worker: an overlay's arrive by the 45 where the kernel divides them before the interface, as it
/// does before Linux 6.17.
const QUEUE: u32 = 2000;

/// What a worker is to serve; as text one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Name of the interface, at most 15 bytes.
    pub name: String,
    /// Bytes of a packet that it takes: the MTU of the way below less 60 for IPv4 or 80 for IPv6 (outer headers, 8 of
    /// UDP, 32 of WireGuard).
    pub mtu: u32,
    /// Where to serve the configuration protocol, for root alone; the directory is made for root alone if it is missing.
    pub socket: PathBuf,
    /// File to write warnings to; nowhere without.
    pub log: Option<PathBuf>,
}

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Options that are none.
    #[error("read options of worker")]
    Options {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The program does not run.
    #[error("start `{program}`")]
    Start {
        /// Program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The worker gave up before it served.
    #[error("start worker of `{name}`: {said}")]
    Failed {
        /// The interface.
        name: String,
        /// What it said.
        said: String,
    },
    /// It was started and does not answer.
    #[error("reach worker of `{name}`")]
    Unreachable {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: ControlError,
    },
    /// It cannot get away from whoever started it.
    #[error("go to the background")]
    Detach(#[source] io::Error),
    /// No log.
    #[error("open log `{path}`")]
    Log {
        /// File.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No interface.
    #[error("attach to TUN interface `{name}`")]
    Tun {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The interface is not as it should be.
    #[error("set up interface `{name}`")]
    Link {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// No directory for the socket.
    #[error("create directory `{path}`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No socket.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// No threads or event queue.
    #[error("start runtime")]
    Runtime(#[source] io::Error),
    /// The library does not want to.
    #[error("start device `{name}`")]
    Device {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: gotatun::device::Error,
    },
}

impl Options {
    /// Options as one argument of a program.
    pub fn to_argument(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Reads what [`Self::to_argument`] wrote.
    ///
    /// # Errors
    /// [`WorkerError::Options`].
    pub fn from_argument(text: &str) -> Result<Self, WorkerError> {
        serde_json::from_str(text).map_err(|source| WorkerError::Options { source })
    }
}

/// Starts a worker in a session of its own, in the network namespace that `program` runs in, and waits until it answers.
///
/// `program` is given the options as its last argument and has to call [`run`] with them. The worker has no key and no peers
/// yet: [`changes`](crate::changes) from a default config lead to what it is to be.
///
/// # Errors
/// [`WorkerError::Start`]; [`WorkerError::Failed`] with what it said, also when another worker has the interface or the
/// socket; [`WorkerError::Unreachable`].
pub fn start(mut program: Command, options: &Options) -> Result<Control, WorkerError> {
    program.arg(options.to_argument()).stdin(Stdio::null()).stdout(Stdio::null());
    let output = program.output().map_err(|source| WorkerError::Start {
        program: program.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().filter(|line| !line.contains(NOT_SERVING)).collect();
        let said = if said.is_empty() { output.status.to_string() } else { said.join("; ") };
        return Err(WorkerError::Failed { name: options.name.clone(), said });
    }
    Control::connect(&options.socket).map_err(|source| WorkerError::Unreachable { name: options.name.clone(), source })
}

/// Goes to the background and carries the packets of a device until its interface is removed or a signal says to stop.
///
/// The process that was started comes back from this at once, when the other one serves or has given up, and is to end.
/// To be called before the process has any other thread.
///
/// # Errors
/// [`WorkerError::Failed`] in the process that was started, after the other one said why on standard error; any
/// [`WorkerError`] in the other one when it cannot go on.
pub fn run(options: &Options) -> Result<(), WorkerError> {
    signals::unblock().map_err(WorkerError::Detach)?;
    let back = match session::detach().map_err(WorkerError::Detach)? {
        Side::Front(front) => {
            return match front.wait_for(PATIENCE) {
                Ok(Some(0)) => Ok(()),
                _ => Err(WorkerError::Failed { name: options.name.clone(), said: NOT_SERVING.into() }),
            };
        }
        Side::Back(back) => back,
    };
    let mut back = Some(back);
    let result = serve_until_told(options, || {
        let log = open_log(options)?;
        session::leave_terminal(log.as_fd()).map_err(WorkerError::Detach)?;
        if let Some(back) = back.take() {
            // Whoever started us has given up, and may start another.
            back.report(0).map_err(WorkerError::Detach)?;
        }
        Ok(())
    });
    if let Some(back) = back {
        if let Err(error) = &result {
            let _ = writeln!(io::stderr(), "{}", chain(error));
        }
        let _ = back.report(1);
        // It is said already.
        return Ok(());
    }
    result
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn open_log(options: &Options) -> Result<File, WorkerError> {
    let path = options.log.clone().unwrap_or_else(|| "/dev/null".into());
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    file.map_err(|source| WorkerError::Log { path, source })
}

/// Calls `serving` once callers are answered.
fn serve_until_told(options: &Options, serving: impl FnOnce() -> Result<(), WorkerError>) -> Result<(), WorkerError> {
    if let Some(directory) = options.socket.parent() {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| WorkerError::Directory { path: directory.into(), source })?;
    }
    let door = Door::private(&options.socket)?;
    let failed = |source| WorkerError::Tun { name: options.name.clone(), source };
    let fd = portolan_kernel::tun::attach(&options.name).map_err(failed)?;
    set_up(options).map_err(|source| WorkerError::Link { name: options.name.clone(), source })?;
    restrict();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).min(4))
        .enable_all()
        .build()
        .map_err(WorkerError::Runtime)?;
    runtime.block_on(async {
        let tun = Tun::new(fd, options).map_err(failed)?;
        let device = device::WgDevice::new(tun)
            .await
            .map_err(|source| WorkerError::Device { name: options.name.clone(), source })?;
        let device = Arc::new(device);
        let server = serve::start(&door, Arc::clone(&device)).map_err(WorkerError::Runtime)?;
        serving()?;
        let mut end = serve::Signals::take().map_err(WorkerError::Runtime)?;
        tokio::select! {
            () = end.wait() => tracing::info!(name = options.name, "told to end"),
            () = device.wait() => tracing::info!(name = options.name, "interface is gone"),
        }
        server.abort();
        Ok(())
    })
}

/// Keeps what new sockets take, for marks, buffers and ports below 1024, and keeps keys out of core dumps. A worker that is
/// less well fenced is better than none.
fn restrict() {
    let kept = privilege::keep(&[Capability::NetAdmin, Capability::NetBindService]);
    let hidden = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if let Err(error) = kept.and(hidden.map_err(io::Error::from)) {
        tracing::warn!(%error, "worker goes on with more rights than it needs");
    }
}

/// Brings the interface up, without the address that the kernel would give it.
fn set_up(options: &Options) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    let change =
        LinkChange { up: Some(true), mtu: Some(options.mtu), tx_queue_len: Some(QUEUE), ..LinkChange::default() };
    let unaddressed = LinkChange { addr_gen_mode: Some(AddrGenMode::None), ..LinkChange::default() };
    link::set(&mut batch, options.name.as_str(), &unaddressed);
    link::set(&mut batch, options.name.as_str(), &change);
    let outcome = Socket::open(ROUTE)?.transact_each(&batch)?;
    // The first is refused where IPv6 is switched off.
    match outcome.errors.into_iter().find(|error| error.index() != Some(0)) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
