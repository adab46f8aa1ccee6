//! Processes: starting one in namespaces of its own or of others, and handles on running ones.

mod pidfd;
mod spawn;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

pub use pidfd::PidFd;
pub use spawn::{JoinTarget, SandboxChild, SpawnError, SpawnSpec, Stage};

use crate::netns::NetnsFd;

/// When process `pid` started, in clock ticks since boot (`starttime`, proc_pid_stat(5)).
///
/// Together with the pid it names a process for good: pids are reused, the pair is not.
///
/// # Errors
/// `NotFound` if there is no such process.
pub fn pid_start_time(pid: i32) -> io::Result<u64> {
    stat_field(pid, 22)
}

/// Whether child `pid` still is, or was when it died, the copy of its parent that fork(2) made
/// (`PF_FORKNOEXEC`, include/linux/sched.h).
fn never_executed(pid: i32) -> bool {
    const PF_FORKNOEXEC: u64 = 0x40;
    stat_field(pid, 9).is_ok_and(|flags| flags & PF_FORKNOEXEC != 0)
}

/// Field `number` of proc_pid_stat(5), counted from 1 as there; 3 is the first after the name.
fn stat_field(pid: i32, number: usize) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    fields_of(&stat)
        .and_then(|mut fields| fields.nth(number - 3)?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed /proc/<pid>/stat"))
}

/// The fields of proc_pid_stat(5) from the third on.
///
/// The second is the process's name in parentheses, which may hold spaces and parentheses itself, and bytes that are no
/// text: the process chooses it (`PR_SET_NAME`, prctl(2)), and the kernel cuts it off after 15 bytes.
pub(crate) fn fields_of(stat: &[u8]) -> Option<impl Iterator<Item = &str>> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    Some(std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace())
}

/// What the kernel says as text, such as the name of a process, as a message can show it: others may have chosen it.
pub(crate) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text.trim_ascii_end());
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Makes `command` run in `ns`.
///
/// With `own_sys` it also gets a mount namespace in which `/sys` shows the devices of `ns`;
/// mounting that needs `CAP_SYS_ADMIN` and is an error of the spawn if refused.
///
/// # Errors
/// When out of descriptors.
pub fn command_in(ns: &NetnsFd, mut command: Command, own_sys: bool) -> io::Result<Command> {
    let ns = ns.try_clone().map_err(|error| io::Error::from_raw_os_error(error.errno().unwrap_or(libc::EIO)))?;
    let enter = move || {
        crate::sys::setns(ns.as_fd(), libc::CLONE_NEWNET)?;
        if own_sys {
            crate::sys::unshare(libc::CLONE_NEWNS)?;
            crate::sys::mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_SLAVE)?;
            crate::sys::mount(c"sysfs", c"/sys", c"sysfs", spawn::SYSFS_FLAGS)?;
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it makes system calls with arguments prepared
    // beforehand, and neither allocates nor takes locks.
    unsafe { command.pre_exec(enter) };
    Ok(command)
}

/// NUL-terminated strings and the pointers to them that execve(2) wants.
struct CStrings {
    /// Owns what `pointers` refers to.
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl CStrings {
    fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { _strings: strings, pointers }
    }

    fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

fn raw(fd: &impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
