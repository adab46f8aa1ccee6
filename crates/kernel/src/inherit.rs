//! Descriptors that come through execve(2): from systemd (sd_listen_fds(3)), from our own supervisor, or from the
//! version of us that ran before in this process.

use std::env;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

/// Our own list of descriptors: their numbers in decimal, with commas between them.
pub const NUMBERS: &str = "PORTOLAN_FDS";

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the descriptors that `PORTOLAN_FDS` lists, and those of systemd's `LISTEN_FDS` if they are meant for this
/// process; sets `FD_CLOEXEC` on them. A second call answers none.
///
/// To be called before anything else opens descriptors, so that no number on a wrong list can be one that somebody in
/// this process owns; the standard streams are never taken.
///
/// # Errors
/// `InvalidInput` for a list that is none; `EBADF` for a number that is not open.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Vec::new());
    }
    let mut numbers: Vec<RawFd> = Vec::new();
    if let Some(list) = env::var_os(NUMBERS) {
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{NUMBERS}` lists no descriptors"));
        let list = list.to_str().ok_or_else(wrong)?;
        for number in list.split(',').filter(|number| !number.is_empty()) {
            numbers.push(number.parse().map_err(|_| wrong())?);
        }
    }
    let is_for_us = env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    if is_for_us && let Some(count) = env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<RawFd>().ok()) {
        // SD_LISTEN_FDS_START is 3.
        numbers.extend((3..).take(usize::try_from(count).unwrap_or(0)));
    }
    numbers.sort_unstable();
    numbers.dedup();
    numbers.retain(|number| *number > libc::STDERR_FILENO);
    numbers.into_iter().map(adopt).collect()
}

fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) with plain numbers; a descriptor that is not open is refused.
    sys::cvt(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open; it came through execve(2) and, as `take` demands, nobody in this process owns it. Each number
    // is on the list once, and the list is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
