//! The supervisor: starts the resident, starts it again when it dies, and keeps its sockets open meanwhile, so that what
//! is asked in between waits in their buffers.
//!
//! It speaks the part of systemd's protocol that this takes (sd_notify(3): `READY`, `FDSTORE`, `FDSTOREREMOVE`), so the
//! resident does not care which of the two it has.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_kernel::door;
use portolan_kernel::inherit;
use portolan_kernel::process::PidFd;
use portolan_kernel::signals::{self, Event, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, unlinkat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// After so many deaths in a row before it was ready, it is started more slowly.
const DEATHS: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// A message of the protocol is a few lines; one descriptor at a time comes with it.
const MESSAGE: usize = 4096;

const SOCKET: &str = "notify.sock";

/// What is started, and where it reports to.
#[derive(Debug)]
pub struct Service<'a> {
    /// The program and its arguments.
    pub command: (&'a Path, &'a [OsString]),
    /// The directory in which the notification socket is made.
    pub run: &'a Path,
    /// Held open as long as either of the two lives.
    pub lock: &'a File,
}

/// Runs the service until it ends by itself; calls `ready` when it first says that it is.
///
/// # Errors
/// When it cannot be started.
pub fn supervise(service: &Service<'_>, mut ready: impl FnMut()) -> Result<i32> {
    let signals = Signals::take(signals::SERVICE).context("take signals")?;
    let path = &service.run.join(SOCKET);
    // The lock is of this directory: in another one that is there in its place by the time we end, another supervisor may be.
    let run = File::open(service.run).with_context(|| format!("open `{}`", service.run.display()))?;
    match remove(&run) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove `{}`", path.display()));
        }
        _ => {}
    }
    let notifications = door::receive_alone(path).with_context(|| format!("bind `{}`", path.display()))?;
    notifications.set_nonblocking(true)?;
    // The resident keeps the lock if we die before it does.
    fcntl_setfd(service.lock, FdFlags::empty())?;
    let mut kept: BTreeMap<String, OwnedFd> = BTreeMap::new();
    let was_ready = Cell::new(false);
    let deaths = Cell::new(0);
    let mut ready = || {
        was_ready.set(true);
        deaths.set(0);
        ready();
    };
    loop {
        let mut child = start(service, path, &kept)?;
        let process = PidFd::open(child.id().cast_signed()).context("open the resident's process")?;
        let status = attend(&mut child, &process, &signals, &notifications, &mut kept, &mut ready)?;
        // It left because nothing needs it or it was told to; or it could not even start, and said why.
        if status.success() || !was_ready.get() {
            let _ = remove(&run);
            return Ok(status.code().unwrap_or(1));
        }
        tracing::warn!(%status, "the resident died: starting it again");
        deaths.set(deaths.get() + 1);
        if deaths.get() > DEATHS {
            std::thread::sleep(PAUSE);
        }
    }
}

fn remove(run: &File) -> io::Result<()> {
    Ok(unlinkat(run, SOCKET, AtFlags::empty())?)
}

fn start(service: &Service<'_>, socket: &Path, kept: &BTreeMap<String, OwnedFd>) -> Result<Child> {
    let numbers: Vec<String> = kept
        .values()
        .map(|fd| fd.as_raw_fd())
        .chain([service.lock.as_raw_fd()])
        .map(|number| number.to_string())
        .collect();
    let (program, arguments) = service.command;
    Command::new(program)
        // Under the name of a face it would speak that face's language.
        .arg0("portolan")
        .args(arguments)
        .env("NOTIFY_SOCKET", socket)
        .env_remove("INVOCATION_ID")
        .env_remove("LISTEN_FDS")
        .env(inherit::NUMBERS, numbers.join(","))
        .spawn()
        .with_context(|| format!("start `{}`", program.display()))
}

/// Passes signals on and takes descriptors until the resident ends.
fn attend(
    child: &mut Child,
    process: &PidFd,
    signals: &Signals,
    notifications: &UnixDatagram,
    kept: &mut BTreeMap<String, OwnedFd>,
    ready: &mut impl FnMut(),
) -> Result<ExitStatus> {
    loop {
        let entry = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut entries = [entry(process.as_fd()), entry(signals.as_fd()), entry(notifications.as_fd())];
        match poll(&mut entries, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let [ended, signalled, notified] = entries.map(|entry| !entry.revents().is_empty());
        if notified {
            while let Some((text, fds)) = receive(notifications)? {
                take(&text, fds, kept, ready);
            }
        }
        if signalled && let Some(Event::Signal { number, .. }) = signals.read()? {
            let _ = process.signal(number);
        }
        if ended {
            return child.wait().context("wait for the resident");
        }
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
    let mut text = [0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // What we keep is there to be inherited.
    let got = match recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::empty()) {
        Ok(got) => got,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Some((String::from_utf8_lossy(&text[..got.bytes]).into_owned(), fds)))
}

fn take(text: &str, fds: Vec<OwnedFd>, kept: &mut BTreeMap<String, OwnedFd>, ready: &mut impl FnMut()) {
    let has = |line: &str| text.lines().any(|other| other == line);
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    if has("READY=1") {
        ready();
    }
    if let Some(name) = name {
        if has("FDSTOREREMOVE=1") {
            kept.remove(name);
        } else if has("FDSTORE=1")
            && let Some(fd) = fds.into_iter().next()
        {
            kept.insert(name.to_owned(), fd);
        }
    }
}
