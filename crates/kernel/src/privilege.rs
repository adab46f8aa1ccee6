//! Giving up what a long-running process does not need (capabilities(7)).

use std::io;

use crate::{confine, sys};

/// What a thread does with its rights that serves sockets: ports below 1024, and room for what waits in them. With no other
/// sockets than those of IP, the latter changes nothing else.
const SERVING: &[Capability] = &[Capability::NetBindService, Capability::NetAdmin];

/// A capability, by its number in linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Capability {
    /// Give files to a group.
    Chown = 0,
    /// Read files of others: the namespaces of containers, the sockets behind a port.
    DacReadSearch = 2,
    /// Listen on ports below 1024.
    NetBindService = 10,
    /// Change interfaces, rules and routes.
    NetAdmin = 12,
    /// Send neighbour announcements.
    NetRaw = 13,
    /// Open the namespaces of other users' processes.
    SysPtrace = 19,
    /// Enter namespaces.
    SysAdmin = 21,
}

/// Keeps only these capabilities for the calling thread and what it starts, also over an execve(2).
///
/// Threads that run already keep theirs: a process calls this before it starts any.
///
/// # Errors
/// What capset(2) and prctl(2) say.
pub fn keep(kept: &[Capability]) -> io::Result<()> {
    let mask = kept.iter().fold(0u64, |mask, capability| mask | 1 << *capability as u32);
    for number in 0..64u32 {
        if mask & (1 << number) != 0 {
            continue;
        }
        let ask = |what| {
            // SAFETY: prctl(2) with plain numbers.
            sys::cvt(unsafe { libc::prctl(what, u64::from(number), 0, 0, 0) })
        };
        match ask(libc::PR_CAPBSET_READ) {
            // Given up before an execve(2), and with it the right to give up more.
            Ok(0) => {}
            Ok(_) => drop(ask(libc::PR_CAPBSET_DROP)?),
            // The first number that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    restrict(mask)
}

/// Leaves the calling thread, which talks to strangers, what it takes to serve sockets of IP and nothing else.
///
/// Where that cannot be, it is logged: a service that is less well fenced is better than none.
pub fn serve_only() {
    let kept = SERVING.iter().fold(0u64, |mask, capability| mask | 1 << *capability as u32);
    // The filter keeps execve(2) away, by which root would have the others back.
    if let Err(error) = restrict(kept).and_then(|()| confine::server_thread()) {
        tracing::warn!(%error, "a thread goes on with more rights than it needs");
    }
}

fn restrict(mask: u64) -> io::Result<()> {
    let has = sys::permitted_capabilities()?;
    sys::set_capabilities(has & mask)
}
