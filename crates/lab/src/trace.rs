//! Fault injection: killing a program at a chosen system call, and proof of what it executes.
//!
//! ```no_run
//! # use std::process::Command;
//! # use portolan_lab::trace::{self, Outcome};
//! let program = || Command::new("target/debug/portolan");
//! for n in 1.. {
//!     match trace::kill_at(program(), trace::CHANGES, n)? {
//!         Outcome::Killed { syscall, .. } => println!("killed at the {n}th step, {syscall:?}"),
//!         Outcome::Finished(_) => break,
//!     }
//!     // Look at what is left, and whether the next run copes with it.
//! }
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};
use portolan_kernel::ptrace::{Stop, Traced, Verdict, trace};

/// A kind of system call, whichever of its variants a program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syscall {
    /// sendmsg(2), sendmmsg(2).
    Sendmsg,
    /// sendto(2), which send(2) is.
    Sendto,
    /// write(2) and writev(2) to anything but standard output and error.
    Write,
    /// pwrite64(2) and pwritev(2).
    Pwrite,
    /// ftruncate(2) and truncate(2).
    Truncate,
    /// fsync(2).
    Fsync,
    /// fdatasync(2).
    Fdatasync,
    /// unlink(2), unlinkat(2), rmdir(2).
    Unlink,
    /// rename(2) and its variants.
    Rename,
    /// link(2), symlink(2) and their variants.
    Link,
    /// mkdir(2), mkdirat(2).
    Mkdir,
    /// open(2) and openat(2) with `O_CREAT`, creat(2), openat2(2).
    Create,
    /// mount(2), umount2(2), move_mount(2), pivot_root(2).
    Mount,
    /// setns(2).
    Setns,
    /// unshare(2).
    Unshare,
    /// clone(2), clone3(2), fork(2), vfork(2).
    Fork,
    /// execve(2), execveat(2).
    Exec,
    /// setsockopt(2).
    Setsockopt,
    /// bind(2).
    Bind,
    /// flock(2).
    Flock,
    /// recvmsg(2), recvfrom(2): what netlink answers.
    Receive,
    /// accept(2), accept4(2).
    Accept,
}

/// All calls that change something outside of the program.
pub const CHANGES: &[Syscall] = &[
    Syscall::Sendmsg,
    Syscall::Sendto,
    Syscall::Write,
    Syscall::Pwrite,
    Syscall::Truncate,
    Syscall::Fsync,
    Syscall::Fdatasync,
    Syscall::Unlink,
    Syscall::Rename,
    Syscall::Link,
    Syscall::Mkdir,
    Syscall::Create,
    Syscall::Mount,
    Syscall::Setns,
    Syscall::Unshare,
    Syscall::Fork,
    Syscall::Exec,
];

impl Syscall {
    /// Errors that such a call may end with on a machine that runs short of something (its page of section 2).
    pub const fn errnos(self) -> &'static [i32] {
        match self {
            Self::Sendmsg | Self::Sendto => &[libc::ENOBUFS, libc::ENOMEM, libc::EINTR],
            Self::Receive => &[libc::ENOBUFS, libc::EINTR],
            Self::Accept => &[libc::EMFILE, libc::ENFILE, libc::ECONNABORTED, libc::ENOBUFS],
            Self::Write | Self::Pwrite | Self::Truncate => &[libc::ENOSPC, libc::EIO],
            Self::Fsync | Self::Fdatasync => &[libc::EIO, libc::ENOSPC],
            Self::Create => &[libc::EMFILE, libc::ENOSPC, libc::EIO],
            Self::Rename | Self::Link | Self::Mkdir => &[libc::ENOSPC, libc::EIO],
            Self::Unlink => &[libc::EBUSY, libc::EIO],
            Self::Mount => &[libc::EBUSY, libc::ENOMEM],
            Self::Setns | Self::Unshare => &[libc::ENOMEM, libc::EPERM],
            Self::Fork => &[libc::EAGAIN, libc::ENOMEM],
            _ => &[libc::ENOMEM],
        }
    }

    /// The kind of a call, if it is one of those here.
    fn classify(number: i64, args: &[u64; 6]) -> Option<Self> {
        let creates = |flags: u64| flags & libc::O_CREAT as u64 != 0;
        // Newer architectures lack the calls of the second group.
        Some(match number {
            libc::SYS_sendmsg | libc::SYS_sendmmsg => Self::Sendmsg,
            libc::SYS_sendto => Self::Sendto,
            libc::SYS_write | libc::SYS_writev if !matches!(args[0], 1 | 2) => Self::Write,
            libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2 => Self::Pwrite,
            libc::SYS_ftruncate | libc::SYS_truncate => Self::Truncate,
            libc::SYS_fsync => Self::Fsync,
            libc::SYS_fdatasync => Self::Fdatasync,
            libc::SYS_unlinkat => Self::Unlink,
            libc::SYS_renameat | libc::SYS_renameat2 => Self::Rename,
            libc::SYS_linkat | libc::SYS_symlinkat => Self::Link,
            libc::SYS_mkdirat => Self::Mkdir,
            libc::SYS_openat if creates(args[2]) => Self::Create,
            libc::SYS_openat2 => Self::Create,
            libc::SYS_mount | libc::SYS_umount2 | libc::SYS_move_mount | libc::SYS_pivot_root => Self::Mount,
            libc::SYS_setns => Self::Setns,
            libc::SYS_unshare => Self::Unshare,
            libc::SYS_clone | libc::SYS_clone3 => Self::Fork,
            libc::SYS_execve | libc::SYS_execveat => Self::Exec,
            libc::SYS_setsockopt => Self::Setsockopt,
            libc::SYS_bind => Self::Bind,
            libc::SYS_flock => Self::Flock,
            libc::SYS_recvmsg | libc::SYS_recvfrom => Self::Receive,
            libc::SYS_accept | libc::SYS_accept4 => Self::Accept,
            _ => return Self::classify_legacy(number, args),
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn classify_legacy(number: i64, args: &[u64; 6]) -> Option<Self> {
        Some(match number {
            libc::SYS_unlink | libc::SYS_rmdir => Self::Unlink,
            libc::SYS_rename => Self::Rename,
            libc::SYS_link | libc::SYS_symlink => Self::Link,
            libc::SYS_mkdir => Self::Mkdir,
            libc::SYS_creat => Self::Create,
            libc::SYS_open if args[1] & libc::O_CREAT as u64 != 0 => Self::Create,
            libc::SYS_fork | libc::SYS_vfork => Self::Fork,
            _ => return None,
        })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn classify_legacy(_number: i64, _args: &[u64; 6]) -> Option<Self> {
        None
    }
}

/// What became of a program that was to be killed.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It was killed before it made the call.
    Killed {
        /// The kind of call.
        syscall: Syscall,
        /// What it had written to standard error, if that was piped.
        stderr: Vec<u8>,
    },
    /// It made fewer calls and ended by itself.
    Finished(ExitStatus),
}

/// Runs `command` and kills it, with all the threads and processes it started, on entry to the
/// `n`-th (from 1) of the calls in `syscalls`, counted over all of them.
///
/// The call does not take place. Calls before the program is executed do not count. Kill points are
/// reproducible as far as the program's threads are.
///
/// # Errors
/// When the program cannot be started or traced.
pub fn kill_at(command: Command, syscalls: &[Syscall], n: usize) -> Result<Outcome> {
    let mut seen = 0;
    let mut last = None;
    let traced = run(command, |stop| {
        if let Some(syscall) = chosen(stop, syscalls) {
            seen += 1;
            if seen == n {
                last = Some(syscall);
                return Verdict::Kill;
            }
        }
        Verdict::Continue
    })?;
    Ok(match last {
        Some(syscall) if traced.killed => Outcome::Killed { syscall, stderr: traced.stderr },
        _ => Outcome::Finished(traced.status),
    })
}

/// How a program ended of which a call was to fail.
#[derive(Debug, Clone)]
pub struct Failing {
    /// The call that failed, and how; none if it made fewer.
    pub failed: Option<(Syscall, i32)>,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output, if that was piped.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, if that was piped.
    pub stderr: Vec<u8>,
}

/// Runs `command` to its end; the `n`-th (from 1) of the calls in `syscalls` does not take place, and fails with what
/// `errno` says for it. Counted as by [`kill_at`].
///
/// # Errors
/// When the program cannot be started or traced, or calls cannot be made to fail on this machine.
pub fn fail_at(
    command: Command,
    syscalls: &[Syscall],
    n: usize,
    mut errno: impl FnMut(Syscall) -> i32 + Send,
) -> Result<Failing> {
    let mut seen = 0;
    fail_when(command, |call| {
        if !syscalls.contains(&call.syscall) {
            return None;
        }
        seen += 1;
        (seen == n).then(|| errno(call.syscall))
    })
}

/// A call that a traced program is about to make.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its kind.
    pub syscall: Syscall,
    /// The thread.
    pub tid: i32,
    /// Its first argument: of most kinds the descriptor.
    pub fd: u64,
}

/// Runs `command` to its end; each of its calls of some kind for which `errno` says an error does not take place, and fails
/// with that. The last of them is in the answer.
///
/// # Errors
/// When the program cannot be started or traced, or calls cannot be made to fail on this machine.
pub fn fail_when(command: Command, mut errno: impl FnMut(&Call) -> Option<i32> + Send) -> Result<Failing> {
    anyhow::ensure!(portolan_kernel::ptrace::CAN_FAIL, "the registers of this machine are not known");
    let mut failed = None;
    let traced = run(command, |stop| {
        let Stop::Syscall { tid, number, args } = stop else { return Verdict::Continue };
        let Some(syscall) = Syscall::classify(*number, args) else { return Verdict::Continue };
        match errno(&Call { syscall, tid: *tid, fd: args[0] }) {
            Some(errno) => {
                failed = Some((syscall, errno));
                Verdict::Fail(errno)
            }
            None => Verdict::Continue,
        }
    })?;
    Ok(Failing { failed, status: traced.status, stdout: traced.stdout, stderr: traced.stderr })
}

/// Runs `command` to its end; on entry to the `n`-th of the calls in `syscalls` it is held, with all its processes that make
/// a call then, while `meanwhile` runs. Answers the call and how it ended.
///
/// # Errors
/// When the program cannot be started or traced.
pub fn hold_at(
    command: Command,
    syscalls: &[Syscall],
    n: usize,
    mut meanwhile: impl FnMut() + Send,
) -> Result<(Option<Syscall>, ExitStatus)> {
    let mut seen = 0;
    let mut held = None;
    let traced = run(command, |stop| {
        if let Some(syscall) = chosen(stop, syscalls) {
            seen += 1;
            if seen == n {
                held = Some(syscall);
                meanwhile();
            }
        }
        Verdict::Continue
    })?;
    Ok((held, traced.status))
}

/// Runs `command` to its end and counts its calls of the kinds in `syscalls`.
///
/// # Errors
/// When the program cannot be started or traced.
pub fn count(command: Command, syscalls: &[Syscall]) -> Result<usize> {
    let mut seen = 0;
    run(command, |stop| {
        seen += usize::from(chosen(stop, syscalls).is_some());
        Verdict::Continue
    })?;
    Ok(seen)
}

/// Runs `command` to its end and lists the calls of the kinds in `syscalls`, in order.
///
/// # Errors
/// When the program cannot be started or traced.
pub fn list(command: Command, syscalls: &[Syscall]) -> Result<Vec<Syscall>> {
    let mut seen = Vec::new();
    run(command, |stop| {
        seen.extend(chosen(stop, syscalls));
        Verdict::Continue
    })?;
    Ok(seen)
}

/// Runs `command` to its end and lists the programs that it and its descendants executed, itself not
/// counted. Of a script, it is the interpreter.
///
/// # Errors
/// When the program cannot be started or traced.
pub fn execs(command: Command) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    run(command, |stop| {
        if let Stop::Exec { program, .. } = stop {
            programs.push(program.clone());
        }
        Verdict::Continue
    })?;
    Ok(programs)
}

fn run(command: Command, observe: impl FnMut(&Stop) -> Verdict + Send) -> Result<Traced> {
    let program = command.get_program().to_owned();
    trace(command, observe).with_context(|| format!("trace `{}`", program.display()))
}

fn chosen(stop: &Stop, syscalls: &[Syscall]) -> Option<Syscall> {
    match stop {
        Stop::Syscall { number, args, .. } => {
            Syscall::classify(*number, args).filter(|syscall| syscalls.contains(syscall))
        }
        Stop::Exec { .. } => None,
    }
}
