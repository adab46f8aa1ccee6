//! A child process in network, UTS and mount namespaces of its own.
//!
//! The child is made in two steps, so that interfaces can be attached before the program runs:
//! [`SandboxChild::spawn`] returns once the namespaces exist, [`SandboxChild::release`] lets it
//! finish its set-up and execute the program. Parent and child talk over one socket: the child says
//! it is ready, the parent says go, and the socket closes by itself when the program is executed,
//! or carries the errno of what kept it from running.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::{CStrings, PidFd, raw};
use crate::confine::Netfilter;
use crate::netlink::Errno;
use crate::netns::{NetnsError, NetnsFd};
use crate::sys;
use crate::sysctl;

pub(super) const SYSFS_FLAGS: libc::c_ulong = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
const CGROUP: &std::ffi::CStr = c"/sys/fs/cgroup";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Namespaces to join instead of making new ones.
#[derive(Debug)]
pub struct JoinTarget {
    /// Network namespace.
    pub net: NetnsFd,
    /// Mount namespace; a new copy of ours without one.
    pub mnt: Option<OwnedFd>,
    /// UTS namespace (the host name); a new copy of ours without one.
    pub uts: Option<OwnedFd>,
}

impl JoinTarget {
    /// Only the network namespace.
    pub fn netns(net: NetnsFd) -> Self {
        Self { net, mnt: None, uts: None }
    }

    /// Network, mount and UTS namespace of process `pid`.
    ///
    /// # Errors
    /// As for [`NetnsFd::open`].
    pub fn of_pid(pid: i32) -> Result<Self, NetnsError> {
        let open = |kind: &str| {
            let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
            std::fs::File::open(&path)
                .map(OwnedFd::from)
                .map_err(|error| NetnsError::Open { path, source: Errno(error.raw_os_error().unwrap_or(libc::EIO)) })
        };
        Ok(Self { net: NetnsFd::of_pid(pid)?, mnt: Some(open("mnt")?), uts: Some(open("uts")?) })
    }
}

/// A program to run and what to give it.
///
/// Descriptors above 2 are not passed on.
#[derive(Debug, Default)]
pub struct SpawnSpec {
    /// Program and arguments; a program without a slash is looked for in `PATH`.
    pub argv: Vec<OsString>,
    /// Added to our environment, or replacing in it.
    pub env: Vec<(OsString, OsString)>,
    /// Host name to set. Not with a joined UTS namespace.
    pub hostname: Option<String>,
    /// Files to bind over others: (ours, where the program sees it). A target that is a symbolic
    /// link is followed and has to exist.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Directory to run in.
    pub workdir: Option<PathBuf>,
    /// Standard input, ours if `None`.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
    /// Start a session (setsid(2)), away from our terminal.
    pub new_session: bool,
    /// Kill the child when the thread that spawned it ends (`PR_SET_PDEATHSIG`).
    pub die_with_parent: bool,
    /// Namespaces to enter instead of making new ones.
    pub join: Option<JoinTarget>,
    /// Settings in sysctl(8) notation, all under `net.`, written inside after
    /// [`SandboxChild::release`]. Either separator works, the first one met counts, so that
    /// `net/ipv4/conf/eth0.5/rp_filter` names what it says.
    pub sysctls: Vec<(String, String)>,
    /// Keep the program, and all that it starts, from the kernel's packet filter: no sockets of `NETLINK_NETFILTER`, no
    /// tables of iptables-legacy, no io_uring. Takes `CAP_SYS_ADMIN`.
    pub no_netfilter: bool,
}

/// What the child was at when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Making new namespaces.
    Unshare = 1,
    /// Joining existing ones.
    Join,
    /// Detaching the mounts from the host's.
    Propagation,
    /// Binding a file over another.
    Bind,
    /// Setting the host name.
    Hostname,
    /// Writing a sysctl.
    Sysctl,
    /// Entering the working directory.
    Workdir,
    /// Placing standard input, output and error, or starting the session.
    Stdio,
    /// Putting on the filter of system calls.
    Confine,
    /// Executing the program.
    Exec,
}

impl Stage {
    const ALL: [Self; 10] = [
        Self::Unshare,
        Self::Join,
        Self::Propagation,
        Self::Bind,
        Self::Hostname,
        Self::Sysctl,
        Self::Workdir,
        Self::Stdio,
        Self::Confine,
        Self::Exec,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| *stage as u8 == number)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unshare => "create namespaces",
            Self::Join => "join namespaces",
            Self::Propagation => "make mounts private",
            Self::Bind => "bind over",
            Self::Hostname => "set host name",
            Self::Sysctl => "write sysctl",
            Self::Workdir => "enter directory",
            Self::Stdio => "set up standard streams",
            Self::Confine => "filter system calls of",
            Self::Exec => "execute",
        })
    }
}

/// Why a child does not run its program.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The specification makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// Starting or talking to the child failed.
    #[error("start child process")]
    Start {
        /// Why.
        #[source]
        source: Errno,
    },
    /// The child failed on its way to the program.
    #[error("{stage} `{subject}`")]
    Child {
        /// What it was at.
        stage: Stage,
        /// To what: a file, host name, sysctl or program.
        subject: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The child went away without a word.
    #[error("child process was killed before it ran `{program}`")]
    Gone {
        /// Program.
        program: String,
    },
}

impl SpawnError {
    /// The exit code a shell or container engine reports: 127 for a program not found, 126 for one
    /// that cannot be executed, 125 for anything before.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Child { stage: Stage::Exec, source, .. } => {
                if matches!(source.0, libc::ENOENT | libc::ENOTDIR) {
                    127
                } else {
                    126
                }
            }
            _ => 125,
        }
    }
}

fn start_error(error: io::Error) -> SpawnError {
    SpawnError::Start { source: Errno(error.raw_os_error().unwrap_or(libc::EIO)) }
}

/// A child that waits in its namespaces or, once released, runs its program.
///
/// Dropping one that was not released ends and reaps it. Dropping a released one leaves it running.
#[derive(Debug)]
pub struct SandboxChild {
    pid: i32,
    pidfd: PidFd,
    socket: Option<OwnedFd>,
    subjects: Subjects,
}

/// What each stage of the child is about, for errors.
#[derive(Debug)]
struct Subjects {
    program: String,
    binds: Vec<String>,
    hostname: String,
    sysctls: Vec<String>,
    workdir: String,
}

impl Subjects {
    fn describe(&self, stage: Stage, index: usize) -> String {
        match stage {
            Stage::Bind => self.binds.get(index).cloned().unwrap_or_default(),
            Stage::Sysctl => self.sysctls.get(index).cloned().unwrap_or_default(),
            Stage::Hostname => self.hostname.clone(),
            Stage::Workdir => self.workdir.clone(),
            Stage::Unshare | Stage::Join => "net, mnt, uts".into(),
            Stage::Propagation => "/".into(),
            Stage::Stdio | Stage::Confine | Stage::Exec => self.program.clone(),
        }
    }
}

static READY: u8 = 0;
const GO: u8 = b'g';

impl SandboxChild {
    /// Starts the child and waits until it is in its namespaces.
    ///
    /// # Errors
    /// [`SpawnError`]; no process is left behind.
    pub fn spawn(spec: &SpawnSpec) -> Result<Self, SpawnError> {
        let (plan, subjects) = Plan::new(spec)?;
        let (ours, theirs) = socket_pair().map_err(start_error)?;
        // SAFETY: fork(2) has no preconditions; the child keeps to async-signal-safe calls, see
        // `run_child`.
        let pid = sys::cvt(unsafe { libc::fork() }).map_err(start_error)?;
        if pid == 0 {
            // SAFETY: this is the child of a fork, and the arguments were prepared before.
            unsafe { run_child(&plan, theirs.as_raw_fd(), ours.as_raw_fd()) }
        }
        drop(theirs);
        // The child cannot be reaped by anybody else, so the pid is still its own.
        let pidfd = match PidFd::open(pid) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // SAFETY: kill(2) and waitpid(2) of our own unreaped child.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, std::ptr::null_mut(), 0);
                }
                return Err(start_error(error));
            }
        };
        let child = Self { pid, pidfd, socket: Some(ours), subjects };
        match child.hear() {
            Ok(Heard::Ready) => Ok(child),
            Ok(Heard::Executed) => Err(SpawnError::Gone { program: child.subjects.program.clone() }),
            Err(error) => Err(error),
        }
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The handle on the process.
    pub fn pidfd(&self) -> &PidFd {
        &self.pidfd
    }

    /// Path of the child's network namespace, good as long as the child lives.
    pub fn netns_path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    /// The child's network namespace.
    ///
    /// # Errors
    /// As for [`NetnsFd::open`].
    pub fn netns(&self) -> Result<NetnsFd, NetnsError> {
        NetnsFd::of_pid(self.pid)
    }

    /// When the child started; see [`super::pid_start_time`].
    ///
    /// # Errors
    /// As there.
    pub fn start_time(&self) -> io::Result<u64> {
        super::pid_start_time(self.pid)
    }

    /// Lets the child go on and waits until it executes the program.
    ///
    /// # Errors
    /// [`SpawnError::Child`] if it could not; the child is reaped.
    pub fn release(&mut self) -> Result<(), SpawnError> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let result = match sys::send(socket.as_fd(), &[GO], libc::MSG_NOSIGNAL) {
            Ok(_) => match self.hear() {
                Ok(Heard::Executed) => Ok(()),
                Ok(Heard::Ready) => Err(start_error(io::Error::from_raw_os_error(libc::EPROTO))),
                Err(error) => Err(error),
            },
            Err(_) => Err(SpawnError::Gone { program: self.subjects.program.clone() }),
        };
        self.socket = None;
        match result {
            Ok(()) => Ok(()),
            Err(error) => {
                self.end();
                Err(error)
            }
        }
    }

    /// Waits for the child to end and reaps it.
    ///
    /// # Errors
    /// `ECHILD` if somebody else reaped it.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.pidfd.reap()
    }

    /// Like [`SandboxChild::wait`], giving up after `timeout` with `None`.
    ///
    /// # Errors
    /// As there.
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        if self.pidfd.wait_readable(timeout)? { self.wait().map(Some) } else { Ok(None) }
    }

    /// Kills the session that the child began ([`SpawnSpec::new_session`]), whoever of it is left: for before it is reaped, as
    /// its number may be another one's afterwards.
    pub fn kill_session(&self) {
        // SAFETY: kill(2) takes no pointers; the number is our own unreaped child's, and the session's first group has it.
        let _ = sys::cvt(unsafe { libc::kill(-self.pid, libc::SIGKILL) });
    }

    fn end(&self) {
        let _ = self.pidfd.signal(libc::SIGKILL);
        let _ = self.pidfd.reap();
    }

    /// Receives the child's next message; the end of the conversation means that it was executed,
    /// or died.
    fn hear(&self) -> Result<Heard, SpawnError> {
        let socket = self.socket.as_ref().expect("called before the socket is closed");
        let mut message = [0u8; 16];
        let len = loop {
            // SAFETY: pointer and length come from one live array.
            match sys::cvt_len(unsafe { libc::recv(raw(socket), message.as_mut_ptr().cast(), message.len(), 0) }) {
                Ok(len) => break len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(start_error(error)),
            }
        };
        if len == 0 {
            // A child killed on its way closes the socket too.
            return if super::never_executed(self.pid) {
                Err(SpawnError::Gone { program: self.subjects.program.clone() })
            } else {
                Ok(Heard::Executed)
            };
        }
        if message[0] == READY {
            return Ok(Heard::Ready);
        }
        let stage = Stage::from_number(message[0]).expect("the child sends only stages");
        let number = |at: usize| i32::from_ne_bytes(message[at..at + 4].try_into().expect("four bytes"));
        let subject = self.subjects.describe(stage, number(8) as usize);
        Err(SpawnError::Child { stage, subject, source: Errno(number(4)) })
    }
}

impl Drop for SandboxChild {
    fn drop(&mut self) {
        if self.socket.is_some() {
            self.end();
        }
    }
}

enum Heard {
    Ready,
    Executed,
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: the array has room for the two descriptors.
    sys::cvt(unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr())
    })?;
    // SAFETY: both were just returned to us and nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// All that the child needs, allocated before the fork.
struct Plan {
    candidates: Vec<CString>,
    argv: CStrings,
    envp: CStrings,
    hostname: Option<CString>,
    binds: Vec<(CString, CString)>,
    workdir: Option<CString>,
    stdio: [Option<RawFd>; 3],
    new_session: bool,
    die_with_parent: bool,
    parent: i32,
    join_net: Option<RawFd>,
    join_mnt: Option<RawFd>,
    join_uts: Option<RawFd>,
    sysctls: Vec<(CString, Vec<u8>)>,
    fresh_sys: bool,
    confine: Option<Netfilter>,
}

impl Plan {
    fn new(spec: &SpawnSpec) -> Result<(Self, Subjects), SpawnError> {
        let program = spec.argv.first().filter(|program| !program.is_empty());
        let program = program.ok_or_else(|| SpawnError::Invalid { what: "no program to run".into() })?;
        let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        env.extend(spec.env.iter().cloned());
        let path = env.get(OsStr::new("PATH")).cloned().unwrap_or_else(|| DEFAULT_PATH.into());
        let candidates = if program.as_bytes().contains(&b'/') {
            vec![c_string(program)?]
        } else {
            std::env::split_paths(&path).map(|dir| c_string(dir.join(program))).collect::<Result<_, _>>()?
        };
        let argv = spec.argv.iter().map(c_string).collect::<Result<_, _>>()?;
        let envp = env
            .into_iter()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                c_string(name)
            })
            .collect::<Result<_, _>>()?;
        let mut sysctls = Vec::new();
        for (name, value) in &spec.sysctls {
            sysctls.push((c_string(sysctl_path(name)?)?, value.clone().into_bytes()));
        }
        if spec.hostname.is_some() && spec.join.as_ref().is_some_and(|join| join.uts.is_some()) {
            return Err(SpawnError::Invalid { what: "cannot set the host name of a joined UTS namespace".into() });
        }
        let join = spec.join.as_ref();
        let join_mnt = join.and_then(|join| join.mnt.as_ref()).map(raw);
        let plan = Self {
            candidates,
            argv: CStrings::new(argv),
            envp: CStrings::new(envp),
            hostname: spec.hostname.as_ref().map(c_string).transpose()?,
            binds: spec
                .binds
                .iter()
                .map(|(from, to)| Ok((c_string(from)?, c_string(to)?)))
                .collect::<Result<_, SpawnError>>()?,
            workdir: spec.workdir.as_ref().map(c_string).transpose()?,
            stdio: [&spec.stdin, &spec.stdout, &spec.stderr].map(|fd| fd.as_ref().map(raw)),
            new_session: spec.new_session,
            die_with_parent: spec.die_with_parent,
            parent: std::process::id() as i32,
            join_net: join.map(|join| raw(&join.net)),
            join_mnt,
            join_uts: join.and_then(|join| join.uts.as_ref()).map(raw),
            sysctls,
            fresh_sys: join_mnt.is_none(),
            confine: spec.no_netfilter.then(Netfilter::new),
        };
        let subjects = Subjects {
            program: program.to_string_lossy().into_owned(),
            binds: spec.binds.iter().map(|(_, to)| to.display().to_string()).collect(),
            hostname: spec.hostname.clone().unwrap_or_default(),
            sysctls: spec.sysctls.iter().map(|(name, _)| name.clone()).collect(),
            workdir: spec.workdir.as_deref().unwrap_or(Path::new("")).display().to_string(),
        };
        Ok((plan, subjects))
    }
}

fn c_string(text: impl AsRef<OsStr>) -> Result<CString, SpawnError> {
    let text = text.as_ref();
    CString::new(OsString::from(text).into_vec())
        .map_err(|_| SpawnError::Invalid { what: format!("`{}` contains a NUL byte", text.to_string_lossy()) })
}

/// The file of a setting in sysctl(8) notation, which has to belong to the network namespace.
fn sysctl_path(name: &str) -> Result<PathBuf, SpawnError> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
    let components: Vec<String> = name
        .split(separator)
        .map(|component| if separator == '.' { component.replace('/', ".") } else { component.into() })
        .collect();
    let components: Vec<&str> = components.iter().map(String::as_str).collect();
    if components.len() < 2 || components[0] != "net" {
        return Err(SpawnError::Invalid { what: format!("sysctl `{name}` does not belong to the network namespace") });
    }
    sysctl::path(&components).map_err(|error| SpawnError::Invalid { what: error.to_string() })
}

/// The child's side: never returns.
///
/// # Safety
/// Must run in the child of a fork. The parent may have had other threads, one of them in the
/// allocator: nothing here allocates, locks or unwinds, there are only system calls on memory
/// prepared before the fork (signal-safety(7)).
unsafe fn run_child(plan: &Plan, socket: RawFd, other_end: RawFd) -> ! {
    let mut index = 0;
    // SAFETY: as for this function.
    let (stage, errno) = unsafe { child_steps(plan, socket, other_end, &mut index) };
    let mut message = [0u8; 16];
    message[0] = stage as u8;
    message[4..8].copy_from_slice(&errno.to_ne_bytes());
    message[8..12].copy_from_slice(&(index as u32).to_ne_bytes());
    // SAFETY: the message is live; _exit(2) runs no destructors of the parent's.
    unsafe {
        libc::send(socket, message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL);
        libc::_exit(125)
    }
}

/// Does everything up to the program; returns where and why it failed, and in `index` at which of
/// several.
///
/// # Safety
/// As for [`run_child`].
unsafe fn child_steps(plan: &Plan, socket: RawFd, other_end: RawFd, index: &mut usize) -> (Stage, i32) {
    // SAFETY: errno of this thread.
    let errno = || unsafe { *libc::__errno_location() };
    macro_rules! check {
        ($stage:expr, $call:expr) => {
            // SAFETY: strings and buffers belong to `plan` and outlive the call; descriptors are
            // inherited from the parent.
            if unsafe { $call } < 0 {
                return ($stage, errno());
            }
        };
    }
    // SAFETY: system calls on live local memory.
    unsafe {
        libc::close(other_end);
        // Rust ignores SIGPIPE, and ignored signals stay ignored across execve(2).
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        if plan.die_with_parent {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != plan.parent {
                libc::_exit(125);
            }
        }
    }

    if let Some(fd) = plan.join_net {
        check!(Stage::Join, libc::setns(fd, libc::CLONE_NEWNET));
    }
    if let Some(fd) = plan.join_uts {
        check!(Stage::Join, libc::setns(fd, libc::CLONE_NEWUTS));
    }
    if let Some(fd) = plan.join_mnt {
        check!(Stage::Join, libc::setns(fd, libc::CLONE_NEWNS));
    }
    let mut new = 0;
    for (joined, flag) in
        [(plan.join_net, libc::CLONE_NEWNET), (plan.join_uts, libc::CLONE_NEWUTS), (plan.join_mnt, libc::CLONE_NEWNS)]
    {
        if joined.is_none() {
            new |= flag;
        }
    }
    check!(Stage::Unshare, libc::unshare(new));
    if plan.join_mnt.is_none() {
        // Our mounts stay ours. Slave rather than private: when the host unmounts something it
        // goes here as well, so that no child keeps the host's mounts (and pinned network
        // namespaces) alive.
        check!(
            Stage::Propagation,
            libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_SLAVE,
                std::ptr::null(),
            )
        );
    }

    // Before waiting: a lock held through an inherited descriptor (flock(2)) would outlive its owner
    // here, and the inherited end of another child's socket keep that one from noticing our
    // parent's death.
    close_all_but(socket, &plan.stdio);

    // SAFETY: one live byte each way.
    unsafe {
        if libc::send(socket, (&raw const READY).cast(), 1, libc::MSG_NOSIGNAL) != 1 {
            libc::_exit(125);
        }
        let mut go = 0u8;
        loop {
            match libc::recv(socket, (&raw mut go).cast(), 1, 0) {
                1 if go == GO => break,
                -1 if errno() == libc::EINTR => {}
                // The parent gave up or died.
                _ => libc::_exit(125),
            }
        }
    }

    for (at, (from, to)) in plan.binds.iter().enumerate() {
        *index = at;
        check!(
            Stage::Bind,
            libc::mount(from.as_ptr(), to.as_ptr(), std::ptr::null(), libc::MS_BIND, std::ptr::null(),)
        );
    }
    for (at, (path, value)) in plan.sysctls.iter().enumerate() {
        *index = at;
        // SAFETY: path and value belong to `plan`.
        let written = unsafe { write_file(path, value) };
        if written < 0 {
            return (Stage::Sysctl, errno());
        }
    }
    *index = 0;
    if plan.fresh_sys {
        // SAFETY: constant strings only.
        unsafe { mount_sys() };
    }
    if let Some(name) = &plan.hostname {
        check!(Stage::Hostname, libc::sethostname(name.as_ptr(), name.as_bytes().len()));
    }
    if plan.new_session {
        check!(Stage::Stdio, libc::setsid());
    }
    // First out of the way of 0 to 2, then into place: one may be the source of another.
    let mut moved = [-1; 3];
    for (slot, fd) in moved.iter_mut().zip(plan.stdio) {
        if let Some(fd) = fd {
            // SAFETY: fcntl(2) without pointers.
            *slot = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
            if *slot < 0 {
                return (Stage::Stdio, errno());
            }
        }
    }
    for (target, fd) in (0..).zip(moved) {
        if fd >= 0 {
            check!(Stage::Stdio, libc::dup2(fd, target));
        }
    }
    if let Some(dir) = &plan.workdir {
        check!(Stage::Workdir, libc::chdir(dir.as_ptr()));
    }
    if let Some(filter) = &plan.confine
        && let Err(error) = filter.install()
    {
        return (Stage::Confine, error.raw_os_error().unwrap_or(libc::EINVAL));
    }
    let mut worst = libc::ENOENT;
    for candidate in &plan.candidates {
        // SAFETY: NUL-terminated strings and NULL-terminated arrays belonging to `plan`.
        unsafe { libc::execve(candidate.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr()) };
        let error = errno();
        // As execvp(3): a directory further on may have what this one lacks or withholds.
        match error {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => worst = error,
            _ => return (Stage::Exec, error),
        }
    }
    (Stage::Exec, worst)
}

/// Closes all descriptors above 2 except those named.
fn close_all_but(socket: RawFd, stdio: &[Option<RawFd>; 3]) {
    let keep = |fd: RawFd| fd == socket || stdio.contains(&Some(fd));
    let highest = stdio.iter().flatten().copied().fold(socket, RawFd::max);
    let mut from = 3;
    for fd in 3..=highest {
        if keep(fd) {
            close_range(from, fd - 1);
            from = fd + 1;
        }
    }
    close_range(from, RawFd::MAX);
}

fn close_range(from: RawFd, to: RawFd) {
    if from <= to {
        // SAFETY: close_range(2) takes no pointers; the process is about to execute another program
        // or exit, and uses none of these descriptors on its way. Linux before 5.9 lacks the call
        // and keeps them until then.
        unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
    }
}

/// # Safety
/// As for [`run_child`].
unsafe fn write_file(path: &CString, value: &[u8]) -> libc::c_int {
    // SAFETY: path and value are live.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return -1;
        }
        let written = libc::write(fd, value.as_ptr().cast(), value.len());
        let error = *libc::__errno_location();
        libc::close(fd);
        *libc::__errno_location() = error;
        if written < 0 { -1 } else { 0 }
    }
}

/// Mounts a sysfs of the new network namespace, so that `/sys/class/net` shows its devices, and
/// puts the control groups back on top. The program also runs without: containers may not mount.
///
/// # Safety
/// As for [`run_child`].
unsafe fn mount_sys() {
    // SAFETY: constant strings only.
    unsafe {
        let cgroup = libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            CGROUP.as_ptr(),
            libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint,
        );
        let mounted =
            libc::mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), SYSFS_FLAGS, std::ptr::null());
        if mounted == 0 && cgroup >= 0 {
            libc::syscall(
                libc::SYS_move_mount,
                cgroup,
                c"".as_ptr(),
                libc::AT_FDCWD,
                CGROUP.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            );
        }
        if cgroup >= 0 {
            libc::close(cgroup as RawFd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_follow_sysctl_8() {
        let path = |name| sysctl_path(name).map(|path| path.display().to_string());
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/conf/eth0.5/rp_filter").unwrap(), "/proc/sys/net/ipv4/conf/eth0.5/rp_filter");
        assert_eq!(path("net.ipv4.conf.eth0/5.rp_filter").unwrap(), "/proc/sys/net/ipv4/conf/eth0.5/rp_filter");
        assert!(path("kernel.hostname").is_err());
        assert!(path("net").is_err());
        assert!(path("net/../kernel/panic").is_err());
    }
}
