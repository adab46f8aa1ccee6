//! Removing interfaces of the host.
//!
//! An interface is gone for everybody a few milliseconds after the request; then the kernel waits for whoever might still
//! hold it (`netdev_run_todo()`, net/core/dev.c), ten times as long, and answers last. So all that go together go in one
//! request, and a process that has nothing else to do leaves the wait to a copy of itself.

use portolan_engine::KernelError;

use super::{HostKernel, failure, refusal};
use crate::netlink::{self, Batch, NetlinkError, Socket};
use crate::rtnl::link::{self, LinkChange};

/// Removes the interfaces called `names`, and with veth their peers; returns when nobody finds them any more. Those that
/// are not there are fine.
///
/// They are moved into group `doomed` first, which nobody else may use.
pub(super) fn remove(
    kernel: &HostKernel,
    socket: &mut Socket,
    names: &[&str],
    doomed: u32,
    is_forgiven: impl Fn(&NetlinkError) -> bool,
) -> Vec<KernelError> {
    let mut failures = Vec::new();
    let mut batch = Batch::new();
    for name in names {
        link::set(&mut batch, *name, &LinkChange { group: Some(doomed), ..LinkChange::default() });
    }
    let outcome = match socket.transact_each(&batch) {
        Ok(outcome) => outcome,
        Err(error) => return vec![refusal("remove interfaces", &error)],
    };
    let mut left: Vec<&str> = names.to_vec();
    for error in outcome.errors {
        let Some(name) = error.index().and_then(|index| names.get(index)) else { continue };
        left.retain(|other| other != name);
        if !is_forgiven(&error) {
            failures.push(refusal(format!("remove interface `{name}`"), &error));
        }
    }
    if left.is_empty() {
        return failures;
    }
    let mut batch = Batch::new();
    link::delete_group(&mut batch, doomed);
    let doing = || format!("remove interfaces `{}`", left.join("`, `"));
    if kernel.leaves_waits_to_a_copy() {
        let handed_over = kernel.with_netfilter_kept(|netfilter| netlink::hand_over(&batch, netfilter));
        match handed_over {
            Ok(handed_over) => {
                failures.extend(
                    link::wait_until_gone(&left, &handed_over)
                        .err()
                        .map(|errno| failure(doing(), std::io::Error::from_raw_os_error(errno).to_string(), errno)),
                );
                return failures;
            }
            // Without another process this one waits itself.
            Err(error) => tracing::debug!(%error, "no copy of this process to be had"),
        }
    }
    if let Err(error) = socket.transact(&batch)
        && !is_forgiven(&error)
    {
        failures.push(refusal(doing(), &error));
    }
    failures
}
