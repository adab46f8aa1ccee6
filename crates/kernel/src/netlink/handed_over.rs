//! What copies of this process do, so that this one need not wait until the kernel is done with it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::answer::NLMSG_ERROR;
use super::{Batch, ROUTE, Socket};
use crate::sys;

/// A message on its way; the copy ends when the kernel has answered, whatever becomes of this process.
#[derive(Debug)]
pub struct HandedOver(OwnedFd);

/// Sends the one message of `batch` to rtnetlink(7) of the calling thread's namespace from a copy of this process.
///
/// The copy is no child of this process for long: it leaves nothing to be waited for. It holds none of our descriptors, so
/// whoever waits for the end of our output does not wait for it; but it keeps `held` open until it ends.
///
/// # Errors
/// When there is no descriptor or no process to be had; nothing was sent then.
pub fn hand_over(batch: &Batch, held: Option<BorrowedFd<'_>>) -> io::Result<HandedOver> {
    assert_eq!(batch.len(), 1, "one message, one answer");
    let socket = Socket::open(ROUTE).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let socket: OwnedFd = socket.into();
    let (outcome, tell) = pipe(libc::O_NONBLOCK)?;
    let message = &batch.buf[..];
    let (socket, tell) = (socket.as_raw_fd(), tell.as_raw_fd());
    let kept: Vec<RawFd> = [socket, tell].into_iter().chain(held.map(|fd| fd.as_raw_fd())).collect();
    // SAFETY: `send` makes calls of signal-safety(7) only, with what was prepared before.
    unsafe { in_a_copy(kept, || send(socket, tell, message)) }?;
    Ok(HandedOver(outcome))
}

/// Has a copy of this process hold `socket` open until this one has ended, and close it then.
///
/// To close a netfilter socket takes as long as the kernel is busy with what was removed (`nft_rcv_nl_event()`,
/// net/netfilter/nf_tables_api.c), whichever way it is closed.
///
/// # Errors
/// When there is no descriptor or no process to be had; then this process waits itself.
pub fn outlive(socket: BorrowedFd<'_>) -> io::Result<()> {
    let (end, ours) = pipe(0)?;
    let (socket, end) = (socket.as_raw_fd(), end.as_raw_fd());
    // SAFETY: read(2) into a live byte is all that the copy does.
    unsafe {
        in_a_copy(vec![socket, end], || {
            let mut byte = 0u8;
            // Nobody writes: it returns when the other end is closed.
            libc::read(end, (&raw mut byte).cast(), 1);
        })
    }?;
    // Closed by the end of this process.
    std::mem::forget(ours);
    Ok(())
}

fn pipe(flags: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the array has room for the two descriptors.
    sys::cvt(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | flags) })?;
    // SAFETY: both were just returned to us and nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Runs `act` in a copy of this process that is no child of it for long: it leaves nothing to be waited for. Of our
/// descriptors it has the `kept` ones only.
///
/// # Safety
/// This process may have other threads: `act` makes calls of signal-safety(7) only, with what was prepared before.
unsafe fn in_a_copy(mut kept: Vec<RawFd>, act: impl FnOnce()) -> io::Result<()> {
    kept.sort_unstable();
    // SAFETY: fork(2) has no preconditions; what follows in the child are calls of signal-safety(7).
    let child = sys::cvt(unsafe { libc::fork() })?;
    if child == 0 {
        // SAFETY: as above; nothing is borrowed from the parent but memory of this copy's own.
        unsafe {
            // The first copy makes the second and leaves, so that nobody has to wait for that.
            if libc::fork() != 0 {
                libc::_exit(0);
            }
            let mut from = 0;
            for &fd in &kept {
                if from < fd {
                    libc::syscall(libc::SYS_close_range, from, fd - 1, 0);
                }
                from = fd + 1;
            }
            libc::syscall(libc::SYS_close_range, from, RawFd::MAX, 0);
            // What ends our parent by its terminal or group is not meant for this.
            libc::setsid();
            act();
            libc::_exit(0)
        }
    }
    loop {
        // SAFETY: waitpid(2) of our own child; no status is asked for.
        match sys::cvt(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody who wants no children's statuses has taken it (SIGCHLD ignored).
            _ => return Ok(()),
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

/// Sends `message`, waits for the answer and tells its error number.
fn send(socket: RawFd, tell: RawFd, message: &[u8]) {
    let mut answer = [0u8; 1024];
    // SAFETY: every pointer is to live memory and the lengths say how much.
    unsafe {
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
    }
}
