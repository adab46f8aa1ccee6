//! Process file descriptors (pidfd_open(2)): signals and waiting without races over reused pids.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::sys;

/// A handle on one process, never on a successor with the same pid.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PidFd {
    /// Opens process `pid`.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the fd was just returned to us and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `ESRCH` once the process is gone.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: pidfd_send_signal(2) accepts a null siginfo.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for the process to end; `false` if it still runs after `timeout`.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        sys::poll(self.0.as_fd(), libc::POLLIN, timeout)
    }

    /// Reaps the process, a child of ours, waiting until it ends.
    ///
    /// # Errors
    /// `ECHILD` if it is no child of ours or was reaped before.
    pub fn reap(&self) -> io::Result<ExitStatus> {
        loop {
            // SAFETY: siginfo_t is plain data for which all zeroes is valid.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: `info` is live for the call.
            let ret = sys::cvt(unsafe {
                libc::waitid(libc::P_PIDFD, self.0.as_raw_fd() as libc::id_t, &raw mut info, libc::WEXITED)
            });
            match ret {
                Ok(_) => {
                    // SAFETY: waitid(2) filled in the SIGCHLD members.
                    let status = unsafe { info.si_status() };
                    // Back to the encoding of wait(2): exit code in bits 8-15, or the signal below.
                    return Ok(ExitStatus::from_raw(if info.si_code == libc::CLD_EXITED {
                        (status & 0xff) << 8
                    } else {
                        status & 0x7f
                    }));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
