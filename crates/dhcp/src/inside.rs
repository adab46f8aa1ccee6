//! Futures that live in another network namespace.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use portolan_kernel::netns::{NetnsError, NetnsFd, with_netns};
use portolan_model::Sandbox;

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    /// It is gone, or another one is in its place.
    #[error("namespace `{0}` is gone")]
    Gone(String),
    /// It is there.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// Enters `sandbox` for as long as `f` takes, and lets go of it.
///
/// It is opened each time: a descriptor that we kept would keep a namespace that everybody else has left.
pub(crate) fn enter<T>(sandbox: &Sandbox, f: impl FnOnce() -> T) -> Result<T, Closed> {
    let gone = |path: &Path| Closed::Gone(path.display().to_string());
    let ns = match NetnsFd::open(&sandbox.path) {
        Err(error) if error.is_missing() || matches!(error, NetnsError::NotANetns { .. }) => {
            return Err(gone(&sandbox.path));
        }
        other => other?,
    };
    let id = ns.identity();
    if (id.dev, id.ino) != (sandbox.device, sandbox.inode) {
        return Err(gone(&sandbox.path));
    }
    Ok(with_netns(&ns, f)?)
}

/// Runs `future` in `sandbox`: whatever it opens, it opens there.
///
/// The thread is inside for as long as each poll takes and outside in between, so that one thread serves any number of
/// sandboxes.
pub(crate) fn inside<F: Future>(sandbox: &Sandbox, future: F) -> Inside<'_, F> {
    Inside { sandbox, future: Box::pin(future) }
}

/// See [`inside`].
pub(crate) struct Inside<'a, F> {
    sandbox: &'a Sandbox,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Inside<'_, F> {
    type Output = Result<F::Output, Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match enter(this.sandbox, || this.future.as_mut().poll(context)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}
