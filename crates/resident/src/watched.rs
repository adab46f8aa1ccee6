//! The files whose changes the main thread hears of: the log of the state, and the host's resolver file.

use std::ffi::{CStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

/// The files whose changes concern us.
pub(crate) struct Watched {
    inotify: OwnedFd,
    /// The watch on the state's directory.
    state: i32,
    /// Watches on the directories of the resolver file and of what it links to.
    resolver: Vec<i32>,
    resolver_names: Vec<OsString>,
}

/// What happened to them.
pub(crate) struct Changed {
    /// Something may have been committed.
    pub(crate) state: bool,
    /// The resolver file may be another one.
    pub(crate) resolver: bool,
}

impl Watched {
    /// Watches the state at `root` and the resolver file.
    ///
    /// # Errors
    /// When the state cannot be watched.
    pub(crate) fn new(root: &Path, resolv_conf: &Path) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // What is written is not a commit yet when it is: that it is one by the time that its writer lets go of the lock.
        let written = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        let state = inotify::add_watch(&inotify, root, written)?;
        let mut resolver = Vec::new();
        let mut resolver_names = Vec::new();
        // Directories, because the file is replaced as a rule; where it is a link, also that which it leads to.
        let real = resolv_conf.canonicalize().ok();
        for path in [Some(resolv_conf), real.as_deref()].into_iter().flatten() {
            let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let closed = WatchFlags::CLOSE_WRITE | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
            if let Ok(watch) = inotify::add_watch(&inotify, directory, closed) {
                resolver.push(watch);
                resolver_names.push(name.to_owned());
            }
        }
        Ok(Self { inotify, state, resolver, resolver_names })
    }

    /// What happened since it was last asked.
    ///
    /// # Errors
    /// What read(2) says.
    pub(crate) fn read(&self) -> Result<Changed> {
        let mut changed = Changed { state: false, resolver: false };
        let mut space = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut space);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(changed),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error).context("read what changed"),
            };
            let lost = event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
            let name = event.file_name().map(CStr::to_bytes).unwrap_or_default();
            let is_let_go = event.events().contains(inotify::ReadFlags::CLOSE_WRITE);
            let is_state = if is_let_go { name == b"lock" } else { name.starts_with(b"state.db-wal") };
            changed.state |= lost || (event.wd() == self.state && is_state);
            changed.resolver |= lost
                || (self.resolver.contains(&event.wd())
                    && self.resolver_names.iter().any(|resolver| resolver.as_bytes() == name));
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
