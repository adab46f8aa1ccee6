//! Running a program under observation of its system calls (ptrace(2)), for fault injection.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

use crate::sys;

/// A traced process or thread at a point of interest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// About to make a system call.
    Syscall {
        /// Thread.
        tid: i32,
        /// Number of the call (`SYS_*`).
        number: i64,
        /// Its arguments, as registers hold them.
        args: [u64; 6],
    },
    /// Has executed another program.
    Exec {
        /// Process.
        pid: i32,
        /// The program; of a script, its interpreter.
        program: PathBuf,
    },
}

/// What to do with a stopped process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let it go on.
    Continue,
    /// Kill it and all others that are traced; a system call it is about to make does not happen.
    Kill,
    /// Have the system call that it is about to make fail with this error (errno(3)); it does not happen. Where this
    /// machine's registers are not known, or the process makes no call, it goes on.
    Fail(i32),
}

/// How a traced program ended.
#[derive(Debug, Clone)]
pub struct Traced {
    /// Status of the program; that of its death by `SIGKILL` after [`Verdict::Kill`].
    pub status: ExitStatus,
    /// Whether the observer had it killed.
    pub killed: bool,
    /// What it wrote to standard output, if that was piped.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, if that was piped.
    pub stderr: Vec<u8>,
}

/// Runs `command` with all threads and processes it starts, and shows every system call and every
/// further program executed to `observe`.
///
/// Returns when all of them have ended. The first program itself is not reported as
/// [`Stop::Exec`], and what it does before is not seen.
///
/// # Errors
/// When the program cannot be started, or tracing is not allowed.
pub fn trace(command: Command, observe: impl FnMut(&Stop) -> Verdict + Send) -> io::Result<Traced> {
    // A thread of its own: tracees belong to the thread that starts them, and waiting for all
    // children of this thread must not reap those of others.
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("tracer".into()).spawn_scoped(scope, || trace_here(command, observe))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn trace_here(mut command: Command, observe: impl FnMut(&Stop) -> Verdict) -> io::Result<Traced> {
    // SAFETY: the closure runs between fork and exec and makes one system call.
    unsafe {
        command.pre_exec(|| {
            sys::cvt_len(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) as libc::ssize_t)?;
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    std::thread::scope(|scope| {
        let stdout = child.stdout.take().map(|pipe| scope.spawn(move || read_all(pipe)));
        let stderr = child.stderr.take().map(|pipe| scope.spawn(move || read_all(pipe)));
        let mut tracer = Tracer { root: child.id() as i32, tracees: BTreeSet::new(), observe, killed: false };
        let result = tracer.run();
        if result.is_err() {
            tracer.kill_all();
            reap(&mut child);
        }
        let text = |reader: Option<std::thread::ScopedJoinHandle<'_, _>>| {
            reader.and_then(|r| r.join().ok()).unwrap_or_default()
        };
        let status = result?;
        Ok(Traced { status, killed: tracer.killed, stdout: text(stdout), stderr: text(stderr) })
    })
}

fn reap(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn read_all(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before an error still counts.
    let _ = pipe.read_to_end(&mut bytes);
    bytes
}

const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_EXITKILL;
/// Marks system call stops (`PTRACE_O_TRACESYSGOOD`).
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

struct Tracer<F> {
    root: i32,
    tracees: BTreeSet<i32>,
    observe: F,
    killed: bool,
}

impl<F: FnMut(&Stop) -> Verdict> Tracer<F> {
    fn run(&mut self) -> io::Result<ExitStatus> {
        // Stopped by the trap that ends its execve(2).
        let (_, status) = wait_for(self.root)?;
        if !libc::WIFSTOPPED(status) {
            return Ok(ExitStatus::from_raw(status));
        }
        // SAFETY: the tracee is stopped; the data argument is a number.
        sys::cvt_len(unsafe {
            libc::ptrace(libc::PTRACE_SETOPTIONS, self.root, 0, libc::c_long::from(OPTIONS)) as libc::ssize_t
        })?;
        self.tracees.insert(self.root);
        resume(self.root, 0);
        let mut root_status = None;
        loop {
            let (tid, status) = match wait_for(-1) {
                Ok(reported) => reported,
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => break,
                Err(error) => return Err(error),
            };
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                self.tracees.remove(&tid);
                if tid == self.root {
                    root_status = Some(ExitStatus::from_raw(status));
                }
            } else if libc::WIFSTOPPED(status) {
                self.stopped(tid, status);
            }
        }
        root_status.ok_or_else(|| io::Error::other("the traced program ended without a status"))
    }

    fn stopped(&mut self, tid: i32, status: i32) {
        let known = !self.tracees.insert(tid);
        if self.killed {
            // One that was being born when the others were killed.
            kill(tid);
            resume(tid, 0);
            return;
        }
        let signal = libc::WSTOPSIG(status);
        let event = status >> 16;
        let (stop, deliver) = if signal == SYSCALL_STOP {
            (syscall_entry(tid), 0)
        } else if event == libc::PTRACE_EVENT_EXEC {
            let program = fs::read_link(format!("/proc/{tid}/exe")).unwrap_or_default();
            (Some(Stop::Exec { pid: tid, program }), 0)
        } else if event != 0 || (signal == libc::SIGSTOP && !known) {
            // A child was made, or is here for the first time.
            (None, 0)
        } else {
            (None, signal)
        };
        match stop.map(|stop| (self.observe)(&stop)) {
            Some(Verdict::Kill) => {
                self.killed = true;
                self.kill_all();
            }
            Some(Verdict::Fail(errno)) => fail_syscall(tid, errno),
            Some(Verdict::Continue) | None => {}
        }
        resume(tid, deliver);
    }

    fn kill_all(&self) {
        for tid in &self.tracees {
            kill(*tid);
        }
    }
}

fn kill(tid: i32) {
    // SAFETY: kill(2) takes no pointers. A thread id reaches its whole process; the ids are those of
    // tracees not reaped yet, so none can have been reused.
    unsafe { libc::kill(tid, libc::SIGKILL) };
}

/// Whether a call can be made to fail here ([`Verdict::Fail`]).
pub const CAN_FAIL: bool = cfg!(target_arch = "x86_64");

/// Has the call that `tid` is stopped on the way into fail. A call without a number is not made, and what the register for
/// the result holds is its result (`do_syscall_64()`, arch/x86/entry/syscall_64.c).
#[cfg(target_arch = "x86_64")]
fn fail_syscall(tid: i32, errno: i32) {
    let word = size_of::<libc::c_long>();
    for (register, value) in [(libc::ORIG_RAX, -1), (libc::RAX, -libc::c_long::from(errno))] {
        // SAFETY: the tracee is stopped; address and data are numbers.
        unsafe { libc::ptrace(libc::PTRACE_POKEUSER, tid, register as usize * word, value) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fail_syscall(_tid: i32, _errno: i32) {}

/// Lets a stopped tracee run to its next stop. Fails harmlessly for one that was just killed.
fn resume(tid: i32, signal: i32) {
    // SAFETY: the data argument is a number.
    unsafe { libc::ptrace(libc::PTRACE_SYSCALL, tid, 0, libc::c_long::from(signal)) };
}

/// Waits for children of this thread alone, tracees and their threads included.
fn wait_for(pid: i32) -> io::Result<(i32, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is live for the call.
        match sys::cvt(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::__WNOTHREAD) }) {
            Ok(tid) => return Ok((tid, status)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The system call that `tid`, in a system call stop, is about to make; `None` if it is coming back
/// from one.
fn syscall_entry(tid: i32) -> Option<Stop> {
    // SAFETY: plain data for which all zeroes is valid.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to `info` and the address argument holds its size.
    let len = unsafe {
        libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO as _, tid, size_of::<libc::ptrace_syscall_info>(), &raw mut info)
    };
    if len <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that this member of the union is the valid one.
    let entry = unsafe { info.u.entry };
    Some(Stop::Syscall { tid, number: entry.nr as i64, args: entry.args })
}
