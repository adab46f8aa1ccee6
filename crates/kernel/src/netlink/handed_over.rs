//! A message that a copy of this process sends, so that this one need not wait until the kernel is done with it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::answer::NLMSG_ERROR;
use super::{Batch, ROUTE, Socket};
use crate::sys;

/// A message on its way; the copy ends when the kernel has answered, whatever becomes of this process.
#[derive(Debug)]
pub struct HandedOver(OwnedFd);

/// Sends the one message of `batch` to rtnetlink(7) of the calling thread's namespace from a copy of this process.
///
/// The copy is no child of this process for long: it leaves nothing to be waited for. It holds none of our descriptors, so
/// whoever waits for the end of our output does not wait for it.
///
/// # Errors
/// When there is no descriptor or no process to be had; nothing was sent then.
pub fn hand_over(batch: &Batch) -> io::Result<HandedOver> {
    assert_eq!(batch.len(), 1, "one message, one answer");
    let socket = Socket::open(ROUTE).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let socket: OwnedFd = socket.into();
    let mut ends = [-1; 2];
    // SAFETY: the array has room for the two descriptors.
    sys::cvt(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    // SAFETY: both were just returned to us and nobody else owns them.
    let (outcome, tell) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    let message = &batch.buf[..];
    // SAFETY: fork(2) has no preconditions; the copies make system calls with what was prepared before, and neither
    // allocate nor take locks.
    let child = sys::cvt(unsafe { libc::fork() })?;
    if child == 0 {
        // SAFETY: this is a copy made by fork(2), and the arguments were prepared before.
        unsafe { copy(socket.as_raw_fd(), tell.as_raw_fd(), message) }
    }
    loop {
        // SAFETY: waitpid(2) of our own child; no status is asked for.
        match sys::cvt(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody who wants no children's statuses has taken it (SIGCHLD ignored).
            _ => return Ok(HandedOver(outcome)),
        }
    }
}

impl HandedOver {
    /// The error number that the kernel answered with, 0 for none; `None` while it has not answered.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the copy died without a word.
    pub fn outcome(&self) -> io::Result<Option<i32>> {
        let mut answer = [0u8; 4];
        // SAFETY: four live bytes.
        match sys::cvt_len(unsafe { libc::read(self.0.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len()) }) {
            Ok(4) => Ok(Some(i32::from_ne_bytes(answer))),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What the copies do: the first makes the second and leaves, so that nobody has to wait for it; the second sends.
///
/// # Safety
/// Only in a child of fork(2), with open descriptors.
unsafe fn copy(socket: RawFd, tell: RawFd, message: &[u8]) -> ! {
    // SAFETY: the caller's duty; every pointer is to live memory of this copy, and no call but those of
    // signal-safety(7) is made.
    unsafe {
        if libc::fork() != 0 {
            libc::_exit(0);
        }
        let (low, high) = (socket.min(tell), socket.max(tell));
        for (from, to) in [(0, low - 1), (low + 1, high - 1), (high + 1, RawFd::MAX)] {
            if from <= to {
                libc::syscall(libc::SYS_close_range, from, to, 0);
            }
        }
        // What ends our parent by its terminal or group is not meant for this.
        libc::setsid();
        let mut answer = [0u8; 1024];
        let errno = if libc::send(socket, message.as_ptr().cast(), message.len(), 0) < 0 {
            *libc::__errno_location()
        } else {
            // An acknowledgement is a message header, an error number and what it answers (netlink(7)).
            let length = libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0);
            let kind = u16::from_ne_bytes([answer[4], answer[5]]);
            let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
            if length >= 20 && kind == NLMSG_ERROR { -code } else { libc::EIO }
        };
        let bytes = errno.to_ne_bytes();
        // Whoever asked may be gone by now, which is what this is for.
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::write(tell, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(0)
    }
}
