//! Going to the background: a copy of this process that outlives its terminal.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::sys;

/// Which of the two processes this is, after [`detach`].
#[derive(Debug)]
pub enum Side {
    /// The one that was started; it answers whoever waits for it.
    Front(Front),
    /// The copy, in a session of its own.
    Back(Back),
}

/// The front's end of the conversation.
#[derive(Debug)]
pub struct Front(OwnedFd);

/// The back's end of the conversation.
#[derive(Debug)]
pub struct Back(OwnedFd);

/// Splits this process in two, the second in a session of its own (setsid(2)), both with the standard streams of the
/// first.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] when this process has other threads: they and their locks would be missing in the copy.
pub fn detach() -> io::Result<Side> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "process has several threads"));
    }
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for the two descriptors.
    sys::cvt(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    // SAFETY: both were just returned to us and nobody else owns them.
    let (front, back) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    // SAFETY: there is one thread, so the copy finds all memory and every lock as this one left it.
    if sys::cvt(unsafe { libc::fork() })? != 0 {
        return Ok(Side::Front(Front(front)));
    }
    // SAFETY: setsid(2) takes no arguments; a child just forked leads no process group, so it cannot fail.
    unsafe { libc::setsid() };
    Ok(Side::Back(Back(back)))
}

impl Front {
    /// Waits for the other's exit status; none if it died without a word.
    ///
    /// # Errors
    /// What recv(2) says.
    pub fn wait(self) -> io::Result<Option<u8>> {
        let mut status = 0u8;
        loop {
            // SAFETY: one live byte.
            match sys::cvt_len(unsafe { libc::recv(self.0.as_raw_fd(), (&raw mut status).cast(), 1, 0) }) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(status)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The same, for `patience`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`]; what recv(2) says.
    pub fn wait_for(self, patience: Duration) -> io::Result<Option<u8>> {
        if !sys::poll(self.0.as_fd(), libc::POLLIN, patience)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.wait()
    }
}

impl Back {
    /// Tells the front what to exit with.
    ///
    /// # Errors
    /// When the front is gone: somebody gave up on it.
    pub fn report(self, status: u8) -> io::Result<()> {
        sys::send(self.0.as_fd(), &[status], libc::MSG_NOSIGNAL).map(drop)
    }

    /// Whether the front is gone: somebody gave up on it.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn is_abandoned(&self) -> io::Result<bool> {
        // The front never sends; what can be read is its end.
        sys::poll(self.0.as_fd(), libc::POLLIN, Duration::ZERO)
    }
}

/// Puts `/dev/null` in place of standard input and output, and `error` in place of standard error, and closes all else that
/// came from whoever started us: a reader of the other end of a pipe would wait for us.
///
/// # Errors
/// When `/dev/null` cannot be opened, or `/proc` is missing.
pub fn leave_terminal(error: BorrowedFd<'_>) -> io::Result<()> {
    close_inherited()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let put = |fd: RawFd, over: RawFd| {
        // SAFETY: dup2(2) over a standard stream, which nobody owns as an `OwnedFd`.
        sys::cvt(unsafe { libc::dup2(fd, over) }).map(drop)
    };
    put(null.as_raw_fd(), libc::STDIN_FILENO)?;
    put(null.as_raw_fd(), libc::STDOUT_FILENO)?;
    put(error.as_raw_fd(), libc::STDERR_FILENO)
}

/// Closes the descriptors above 2 that are left open by execve(2): all that we open ourselves are not.
fn close_inherited() -> io::Result<()> {
    let numbers = fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for number in numbers.collect::<Vec<RawFd>>().into_iter().filter(|number| *number > libc::STDERR_FILENO) {
        // SAFETY: fcntl(2) with plain numbers; the directory that was read is not open any more, and refused.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: nothing in this process owns it.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}
