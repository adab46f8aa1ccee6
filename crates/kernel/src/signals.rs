//! Signals as events: taken off their default action and read one by one (signalfd(2)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::process::PidFd;
use crate::sys;

/// Ends a process, whatever it does about it.
pub const KILL: i32 = libc::SIGKILL;

/// Asks a process to end.
pub const TERM: i32 = libc::SIGTERM;

/// Has a process stand still, whatever it does about it.
pub const STOP: i32 = libc::SIGSTOP;

/// Has it go on.
pub const CONTINUE: i32 = libc::SIGCONT;

/// What a terminal sends at Ctrl-C.
pub const INTERRUPT: i32 = libc::SIGINT;

/// Tells a service to look at its configuration again.
pub const HANGUP: i32 = libc::SIGHUP;

/// What ends a service, from a terminal or a service manager, or tells it to look at its configuration again.
pub const SERVICE: &[i32] = &[libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

/// What a process that stands for another one passes on to it.
pub const FORWARDED: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGWINCH,
];

/// Takes all signals again in this thread and those it starts from now on: whoever started the process may have blocked some for
/// itself.
///
/// # Errors
/// None that is known: the mask is valid.
pub fn unblock() -> io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset(3) initialises the set, which lives as long as the calls; the old mask is not asked for.
    let ret = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    if ret == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(ret)) }
}

/// Signals of this thread, blocked and waiting to be read.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A signal.
    Signal {
        /// Its number.
        number: i32,
        /// Whether the kernel itself sent it, as the terminal does to its whole foreground process group.
        from_kernel: bool,
    },
    /// The process ended.
    Ended,
}

impl Signals {
    /// Blocks `signals` in this thread and those it starts from now on.
    ///
    /// [`crate::process::SandboxChild`] unblocks all signals in the child, so what is taken here is not inherited.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn take(signals: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset(3) initialises the set, which lives as long as the calls; bad numbers are refused.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
        }
        // SAFETY: the set was initialised above; the old mask is not asked for.
        let ret = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
        if ret != 0 {
            return Err(io::Error::from_raw_os_error(ret));
        }
        // SAFETY: the set was initialised above.
        let fd = sys::cvt(unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
        // SAFETY: the fd was just returned to us and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits for a signal or for the end of `process`; signals first.
    ///
    /// # Errors
    /// What poll(2) and read(2) say.
    pub fn wait(&self, process: &PidFd) -> io::Result<Event> {
        loop {
            let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut entries = [entry(self.0.as_raw_fd()), entry(process.as_fd().as_raw_fd())];
            // SAFETY: two live entries, and the count says two.
            match sys::cvt(unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if entries[0].revents != 0
                && let Some(event) = self.read()?
            {
                return Ok(event);
            }
            if entries[1].revents != 0 {
                return Ok(Event::Ended);
            }
        }
    }

    /// The next signal, if one waits.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn read(&self) -> io::Result<Option<Event>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is live and as long as the size says.
        match sys::cvt_len(unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) }) {
            Ok(len) if len == size => {
                // SAFETY: read(2) filled all of it.
                let info = unsafe { info.assume_init() };
                Ok(Some(Event::Signal { number: info.ssi_signo as i32, from_kernel: info.ssi_code == libc::SI_KERNEL }))
            }
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
