//! Removing an interface without waiting for all that the kernel waits for.

use std::io;

use super::delete;
use crate::netlink::{self, Batch, HandedOver};
use crate::sys;

/// Removes the interface `name` of the calling thread's namespace, and with a veth its peer; returns when nobody finds it
/// any more. Whether it was there.
///
/// It is gone for everybody a few milliseconds after the request; then the kernel waits for whoever might still hold it,
/// ten times as long, and answers last (`netdev_run_todo()`, net/core/dev.c). A copy of this process waits for that.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(name: &str) -> io::Result<bool> {
    let mut batch = Batch::new();
    delete(&mut batch, name);
    if !sys::has_interface(name) {
        return Ok(false);
    }
    match wait_until_gone(&[name], &netlink::hand_over(&batch, None)?) {
        Ok(()) => Ok(true),
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Waits until none of `names` is found, or the kernel has refused: then its error number.
pub(crate) fn wait_until_gone(names: &[&str], handed_over: &HandedOver) -> Result<(), i32> {
    loop {
        // Netlink would wait for the lock that the removal holds to its end.
        if !names.iter().any(|name| sys::has_interface(name)) {
            return Ok(());
        }
        match handed_over.outcome() {
            Ok(Some(0 | libc::ENODEV)) => return Ok(()),
            Ok(Some(errno)) => return Err(errno),
            Ok(None) => std::thread::yield_now(),
            Err(error) => return Err(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}
