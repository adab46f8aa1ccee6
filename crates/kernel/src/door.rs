//! The unix socket of a service: the one that a service manager passes, or a new one at a path.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::{inherit, sys};

/// Why nobody can be let in.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// What was passed cannot be taken.
    #[error("take inherited descriptors")]
    Inherit(#[source] io::Error),
    /// A service has one door.
    #[error("the service manager passes {0} sockets, one is expected")]
    TooMany(usize),
    /// Somebody else's is there.
    #[error("listen at `{}`: another process answers there", path.display())]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("listen at `{}`", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Listens at `path` for who runs this process alone, from the first moment and whatever the umask.
///
/// # Errors
/// What bind(2) says: `AddrInUse` where something is.
pub fn listen_alone(path: &Path) -> io::Result<UnixListener> {
    let socket = bind_alone(libc::SOCK_STREAM, path)?;
    // As many wait as the kernel lets.
    // SAFETY: listen(2) takes no pointers.
    sys::cvt(unsafe { libc::listen(socket.as_raw_fd(), -1) })?;
    Ok(UnixListener::from(socket))
}

/// The same for datagrams.
///
/// # Errors
/// As there.
pub fn receive_alone(path: &Path) -> io::Result<UnixDatagram> {
    bind_alone(libc::SOCK_DGRAM, path).map(UnixDatagram::from)
}

/// Set after bind(2), a mode leaves a moment in which others may connect. The file gets what the socket itself has by then,
/// less the umask (`unix_bind_bsd()`, net/unix/af_unix.c).
fn bind_alone(kind: i32, path: &Path) -> io::Result<OwnedFd> {
    let socket = File::from(sys::socket(libc::AF_UNIX, kind, 0)?);
    socket.set_permissions(fs::Permissions::from_mode(0o600))?;
    sys::bind_path(socket.as_fd(), path)?;
    Ok(socket.into())
}

/// Makes a directory for sockets, and those above it: whatever the umask, nobody else puts another socket in the place of one.
///
/// # Errors
/// What mkdir(2) says; that it is there is none.
pub fn directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Where callers come in. A socket of its own goes when this is dropped.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    /// The socket to be removed, and which file it is, unless it is the service manager's.
    own: Option<(PathBuf, (u64, u64))>,
}

/// A door that nobody finds yet: what callers may rely on is made before it is opened. No other process claims one of the
/// same directory meanwhile.
#[derive(Debug)]
pub struct Claim {
    /// At another path until it is opened.
    door: Door,
    /// Where it is to be, and the lock; none of the service manager's.
    to: Option<(PathBuf, File)>,
}

impl Claim {
    /// Lets callers find it.
    ///
    /// # Errors
    /// [`DoorError::Listen`].
    pub fn open(mut self) -> Result<Door, DoorError> {
        if let (Some((path, _lock)), Some((at, _))) = (self.to.take(), &mut self.door.own) {
            fs::rename(&*at, &path).map_err(|source| DoorError::Listen { path: path.clone(), source })?;
            *at = path;
        }
        Ok(self.door)
    }
}

impl Door {
    /// The socket that a service manager passes (sd_listen_fds(3)), or a new one at `path`, for root alone, whose directory is
    /// there. One
    /// that nobody answers at, left by a process that was killed, is replaced.
    ///
    /// To be called before anything else in the process opens descriptors ([`inherit::take`]).
    ///
    /// # Errors
    /// See [`DoorError`].
    pub fn open(path: &Path) -> Result<Self, DoorError> {
        Self::claim(path)?.open()
    }

    /// A new one at `path` for root alone, in a process that takes what is passed itself.
    ///
    /// # Errors
    /// See [`DoorError`].
    pub fn private(path: &Path) -> Result<Self, DoorError> {
        Self::restricted(path, 0o600, None)
    }

    /// The same for root and a group, by its number; for root and its own group without.
    ///
    /// # Errors
    /// See [`DoorError`]; also when this process may not give files to the group (`CAP_CHOWN`).
    pub fn for_group(path: &Path, group: Option<u32>) -> Result<Self, DoorError> {
        Self::restricted(path, 0o660, group)
    }

    fn restricted(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, DoorError> {
        let claim = Self::make(path)?;
        if let Some((at, _)) = &claim.door.own {
            let failed = |source| DoorError::Listen { path: path.to_owned(), source };
            if group.is_some() {
                chown(at, None, group).map_err(failed)?;
            }
            fs::set_permissions(at, fs::Permissions::from_mode(mode)).map_err(failed)?;
        }
        claim.open()
    }

    /// The same as [`Door::open`], in two steps.
    ///
    /// # Errors
    /// See [`DoorError`].
    pub fn claim(path: &Path) -> Result<Claim, DoorError> {
        let mut passed = inherit::take().map_err(DoorError::Inherit)?;
        if passed.len() > 1 {
            return Err(DoorError::TooMany(passed.len()));
        }
        match passed.pop() {
            Some(fd) => Ok(Claim { door: Self { listener: UnixListener::from(fd), own: None }, to: None }),
            None => Self::make(path),
        }
    }

    fn make(path: &Path) -> Result<Claim, DoorError> {
        let failed = |source| DoorError::Listen { path: path.to_owned(), source };
        // Of two that find a left-over at the same time, the second must not remove what the first has just made.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = File::open(directory).map_err(failed)?;
        directory.lock().map_err(failed)?;
        if fs::symlink_metadata(path).is_ok() && !is_dead(path) {
            return Err(DoorError::Taken { path: path.to_owned() });
        }
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = listen_alone(&fresh).map_err(failed)?;
        let identity = identity(&fresh).map_err(failed)?;
        Ok(Claim { door: Self { listener, own: Some((fresh, identity)) }, to: Some((path.to_owned(), directory)) })
    }

    /// The socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some((path, own)) = &self.own
            && identity(path).is_ok_and(|found| found == *own)
        {
            let _ = fs::remove_file(path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

fn is_dead(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_over_is_replaced_and_a_door_that_is_answered_is_not() {
        let dir = std::env::temp_dir().join(format!("portolan-door-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("sock");
        drop(UnixListener::bind(&path).unwrap());
        let door = Door::make(&path).unwrap().open().unwrap();
        let second = Door::make(&path);
        UnixStream::connect(&path).unwrap();
        // Somebody put another in its place: that one stays.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(door);
        let stayed = path.exists();
        drop(other);
        fs::write(dir.join("file"), "").unwrap();
        let file = Door::make(&dir.join("file"));
        let kept = dir.join("file").exists();
        let claim = Door::make(&path).unwrap();
        let unfound = UnixStream::connect(&path).is_err();
        drop(claim.open().unwrap());
        let gone = !path.exists();
        drop(Door::make(&path).unwrap());
        let left = fs::read_dir(&dir).unwrap().count();
        fs::remove_dir_all(&dir).unwrap();
        assert!(matches!(second, Err(DoorError::Taken { .. })), "{second:?}");
        assert!(stayed && unfound && gone);
        assert_eq!(left, 1, "a door that is not opened leaves nothing");
        assert!(file.is_err() && kept, "what is no socket stays");
    }
}
