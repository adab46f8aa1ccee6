//! Network namespaces: opening, entering, pinning.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::netlink::Errno;
use crate::sys;

/// `NS_GET_NSTYPE`, ioctl_ns(2): `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
const THREAD_NETNS: &str = "/proc/thread-self/ns/net";

/// What went wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing there, or not accessible.
    #[error("open network namespace `{path}`")]
    Open {
        /// Where we looked.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// Something is there, but not a network namespace.
    #[error("`{path}` is not a network namespace but {found}")]
    NotANetns {
        /// Where we looked.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// setns(2) failed.
    #[error("enter network namespace")]
    Enter {
        /// Why.
        #[source]
        source: Errno,
    },
    /// unshare(2), or starting the thread to do it in, failed.
    #[error("create network namespace")]
    Create {
        /// Why.
        #[source]
        source: Errno,
    },
    /// The new namespace could not be given a name.
    #[error("pin network namespace at `{path}`")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The name could not be taken away.
    #[error("unpin network namespace at `{path}`")]
    Unpin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
}

impl NetnsError {
    /// The errno behind it, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open { source, .. }
            | Self::Enter { source }
            | Self::Create { source }
            | Self::Pin { source, .. }
            | Self::Unpin { source, .. } => Some(source.0),
            Self::NotANetns { .. } => None,
        }
    }

    /// The message with its cause.
    pub(crate) fn in_full(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }

    /// Whether the namespace to open is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Open { source: Errno(libc::ENOENT | libc::ESRCH), .. })
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Device and inode of a namespace: equal for two handles of the same one, and not reused while
/// any handle is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// `st_dev` of the nsfs.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// An open handle of a network namespace, keeping it alive.
#[derive(Debug)]
pub struct NetnsFd {
    fd: OwnedFd,
    id: NetnsId,
}

impl AsFd for NetnsFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl NetnsFd {
    /// Opens the namespace at `path` and makes sure it is one.
    ///
    /// # Errors
    /// [`NetnsError::Open`], or [`NetnsError::NotANetns`] telling what is there instead.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        // O_NONBLOCK: a FIFO must not keep us waiting.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|error| NetnsError::Open { path: path.into(), source: errno(&error) })?;
        Self::from_file(file, path)
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// As for [`NetnsFd::open`].
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(THREAD_NETNS)
    }

    /// The namespace of process `pid`.
    ///
    /// # Errors
    /// As for [`NetnsFd::open`].
    pub fn of_pid(pid: i32) -> Result<Self, NetnsError> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// Takes over an fd received from elsewhere, making sure it is a network namespace.
    ///
    /// # Errors
    /// As for [`NetnsFd::open`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Self::from_file(fd.into(), &path)
    }

    fn from_file(file: File, path: &Path) -> Result<Self, NetnsError> {
        let metadata =
            file.metadata().map_err(|error| NetnsError::Open { path: path.into(), source: errno(&error) })?;
        // SAFETY: NS_GET_NSTYPE takes no argument, and other files reject it.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            let found = if metadata.is_dir() {
                "a directory"
            } else if kind >= 0 {
                "a namespace of another kind"
            } else if metadata.is_file() {
                "a regular file (was it unmounted?)"
            } else {
                "a special file"
            };
            return Err(NetnsError::NotANetns { path: path.into(), found });
        }
        let id = NetnsId { dev: metadata.dev(), ino: metadata.ino() };
        Ok(Self { fd: file.into(), id })
    }

    /// Device and inode.
    pub fn identity(&self) -> NetnsId {
        self.id
    }

    /// A second handle of the same namespace.
    ///
    /// # Errors
    /// [`NetnsError::Open`] when out of descriptors.
    pub fn try_clone(&self) -> Result<Self, NetnsError> {
        let fd = self.fd.try_clone().map_err(|error| NetnsError::Open {
            path: format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into(),
            source: errno(&error),
        })?;
        Ok(Self { fd, id: self.id })
    }

    /// Creates a namespace that lives as long as the handle.
    ///
    /// # Errors
    /// [`NetnsError::Create`].
    pub fn create() -> Result<Self, NetnsError> {
        in_new_netns(Self::current)?
    }
}

/// Runs `f` on a thread of its own in a new network namespace.
fn in_new_netns<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let failed = |error: &io::Error| NetnsError::Create { source: errno(error) };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("new-netns".into())
            .spawn_scoped(scope, || {
                sys::unshare(libc::CLONE_NEWNET).map_err(|error| failed(&error))?;
                Ok(f())
            })
            .map_err(|error| failed(&error))?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Brings the thread back to the namespace it came from.
struct Return {
    home: NetnsFd,
    /// Entering and leaving have to happen on the same thread.
    not_send: PhantomData<*const ()>,
}

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = sys::setns(self.home.as_fd(), libc::CLONE_NEWNET) {
            // Going on would change the wrong namespace.
            eprintln!("cannot return to the original network namespace: {error}");
            std::process::abort();
        }
    }
}

/// Runs `f` in `ns` on the calling thread and comes back, also when `f` panics.
///
/// Sockets opened inside stay in `ns` and can be used outside. Threads that `f` starts begin in
/// `ns` and stay there.
///
/// # Errors
/// [`NetnsError::Enter`] or [`NetnsError::Open`]; `f` did not run.
pub fn with_netns<T>(ns: &NetnsFd, f: impl FnOnce() -> T) -> Result<T, NetnsError> {
    let home = NetnsFd::current()?;
    if home.identity() == ns.identity() {
        return Ok(f());
    }
    sys::setns(ns.as_fd(), libc::CLONE_NEWNET).map_err(|error| NetnsError::Enter { source: errno(&error) })?;
    let _return = Return { home, not_send: PhantomData };
    Ok(f())
}

/// Moves the calling thread to `ns` for good.
///
/// # Errors
/// [`NetnsError::Enter`].
pub fn enter_for_good(ns: &NetnsFd) -> Result<(), NetnsError> {
    sys::setns(ns.as_fd(), libc::CLONE_NEWNET).map_err(|error| NetnsError::Enter { source: errno(&error) })
}

/// Creates a namespace and pins it at `path`, which must not exist; its directory must.
///
/// # Errors
/// [`NetnsError::Create`] or [`NetnsError::Pin`]; nothing is left behind.
pub fn create_pinned(path: impl AsRef<Path>) -> Result<NetnsFd, NetnsError> {
    let path = path.as_ref();
    let failed = |error: &io::Error| NetnsError::Pin { path: path.into(), source: errno(error) };
    let target = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| NetnsError::Pin { path: path.into(), source: Errno(libc::EINVAL) })?;
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map_err(|error| failed(&error))?;
    let result = in_new_netns(|| {
        sys::mount(c"/proc/thread-self/ns/net", &target, c"none", libc::MS_BIND).map_err(|error| failed(&error))?;
        NetnsFd::current()
    })
    .and_then(|inner| inner);
    if result.is_err() {
        let _ = sys::umount(&target, libc::MNT_DETACH);
        let _ = fs::remove_file(path);
    }
    result
}

/// Removes a pin; the namespace goes when its last process and handle do.
///
/// # Errors
/// [`NetnsError::Unpin`]. A missing or unmounted `path` is no error.
pub fn unpin(path: impl AsRef<Path>) -> Result<(), NetnsError> {
    let path = path.as_ref();
    let failed = |error: &io::Error| NetnsError::Unpin { path: path.into(), source: errno(error) };
    let target = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| NetnsError::Unpin { path: path.into(), source: Errno(libc::EINVAL) })?;
    match sys::umount(&target, libc::MNT_DETACH) {
        Ok(()) => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
        Err(error) => return Err(failed(&error)),
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(&error)),
    }
}
