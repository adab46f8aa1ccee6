//! Kernel settings under `/proc/sys`.
//!
//! A setting is named by its path components (`["net", "ipv4", "conf", "eth0.5", "rp_filter"]`), as
//! interface names may hold the dots which sysctl(8) separates components by. What lies under
//! `net` belongs to the calling thread's network namespace.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::netlink::Errno;

/// What went wrong with a setting.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// A component is empty, a dot directory or has a slash in it.
    #[error("sysctl component `{component}` is not a file name")]
    Component {
        /// The component.
        component: String,
    },
    /// Reading failed.
    #[error("read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Writing failed.
    #[error("write `{value}` to `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// What we wanted in it.
        value: String,
        /// Why; `EROFS` where `/proc/sys` is mounted read-only.
        #[source]
        source: Errno,
    },
}

impl SysctlError {
    /// The errno behind it, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Component { .. } => None,
            Self::Read { source, .. } | Self::Write { source, .. } => Some(source.0),
        }
    }

    /// The setting, as a path below `/proc/sys`.
    pub fn setting(&self) -> Option<String> {
        match self {
            Self::Component { .. } => None,
            Self::Read { path, .. } | Self::Write { path, .. } => {
                Some(path.strip_prefix("/proc/sys").ok()?.to_string_lossy().into_owned())
            }
        }
    }

    /// Whether the kernel has no such setting.
    pub fn is_missing(&self) -> bool {
        self.errno() == Some(libc::ENOENT)
    }
}

/// What [`write()`] had to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The value was right already.
    Unchanged,
    /// It was the enclosed one before.
    Changed(String),
}

/// The value of a setting, without the trailing newline.
///
/// # Errors
/// [`SysctlError::Read`].
pub fn read(components: &[&str]) -> Result<String, SysctlError> {
    let path = path(components)?;
    read_path(&path).map_err(|error| SysctlError::Read { path, source: errno(&error) })
}

/// Makes a setting have `value`, writing only if it differs, so that a read-only `/proc/sys` is
/// good enough when nothing has to change.
///
/// # Errors
/// [`SysctlError::Read`] if there is no such setting, [`SysctlError::Write`].
pub fn write(components: &[&str], value: &str) -> Result<Written, SysctlError> {
    let path = path(components)?;
    let before = match read_path(&path) {
        Ok(before) => before,
        // Some settings can only be written (net.ipv4.route.flush).
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => String::new(),
        Err(error) => return Err(SysctlError::Read { path, source: errno(&error) }),
    };
    if is_same(&before, value) {
        return Ok(Written::Unchanged);
    }
    OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| SysctlError::Write { path, value: value.into(), source: errno(&error) })?;
    Ok(Written::Changed(before))
}

/// Makes several settings of one directory have their values, such as those of one interface.
///
/// Walks to the directory once, and in a proc file system of this process alone: every network namespace has its own
/// `/proc/sys/net/ipv6` under one name, and to find the right one the kernel compares all it has cached, one by one
/// (`proc_sys_compare`, fs/proc/proc_sysctl.c). With thousands of containers that walk is longer than everything else
/// an attach does. A `/proc/sys` that is mounted read-only is respected all the same.
///
/// # Errors
/// As for [`write()`]; settings before the failing one have been written.
pub fn write_in(directory: &[&str], values: &[(&str, &str)]) -> Result<(), SysctlError> {
    let place = path(directory)?;
    let read = |path: PathBuf, error: &io::Error| SysctlError::Read { path, source: errno(error) };
    let opened = match own_proc() {
        Some(own) => {
            let inside = place.strip_prefix("/proc").expect("a path below /proc/sys");
            let inside = CString::new(inside.as_os_str().as_bytes()).expect("checked for NUL");
            crate::sys::openat(own, &inside, libc::O_RDONLY | libc::O_DIRECTORY)
        }
        None => OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&place),
    };
    let opened = opened.map_err(|error| read(place.clone(), &error))?;
    for (name, value) in values {
        let path = path(&[name]).map(|_| place.join(name))?;
        let name = CString::new(*name).expect("checked for NUL");
        let failed =
            |error: io::Error| SysctlError::Write { path: path.clone(), value: (*value).into(), source: errno(&error) };
        match crate::sys::openat(opened.as_fd(), &name, libc::O_RDWR) {
            Ok(file) => {
                if !is_same(&read_short(&file).map_err(|error| read(path.clone(), &error))?, value) {
                    file.write_all_at(value.as_bytes(), 0).map_err(failed)?;
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
                let file = crate::sys::openat(opened.as_fd(), &name, libc::O_RDONLY)
                    .map_err(|error| read(path.clone(), &error))?;
                if !is_same(&read_short(&file).map_err(|error| read(path.clone(), &error))?, value) {
                    return Err(failed(error));
                }
            }
            Err(error) => return Err(read(path, &error)),
        }
    }
    Ok(())
}

static OWN: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// Takes what [`own_proc`] was to the program before in this process from among inherited descriptors.
pub fn adopt_own_proc(inherited: &mut Vec<OwnedFd>) {
    if let Some(at) = inherited.iter().position(|fd| crate::sys::is_proc(fd.as_fd())) {
        // One that is there already is as good.
        let _ = OWN.set(Some(inherited.swap_remove(at)));
    }
}

/// A proc file system that only this process sees, mounted nowhere; none where `/proc/sys` is read-only, or without
/// the right to mount (Linux 5.8 gives every mount of proc its own caches).
///
/// A process that is about to give up the calls that this takes has it made before; it is there for good. Over an execve(2)
/// it is passed on, and taken by [`adopt_own_proc`].
pub fn own_proc() -> Option<BorrowedFd<'static>> {
    let own = OWN.get_or_init(|| {
        if crate::sys::is_read_only(c"/proc/sys").unwrap_or(true) {
            return None;
        }
        crate::sys::mount_detached(c"proc").ok()
    });
    own.as_ref().map(|fd| fd.as_fd())
}

/// The file behind a setting.
///
/// # Errors
/// [`SysctlError::Component`].
pub fn path(components: &[&str]) -> Result<PathBuf, SysctlError> {
    let mut path = PathBuf::from("/proc/sys");
    for component in components {
        if matches!(*component, "" | "." | "..") || component.contains(['/', '\0']) {
            return Err(SysctlError::Component { component: (*component).into() });
        }
        path.push(component);
    }
    Ok(path)
}

fn read_path(path: &Path) -> io::Result<String> {
    let mut text = fs::read_to_string(path)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// A value of one line: the kernel hands out the whole of it with the first read(2) from the start.
fn read_short(file: &fs::File) -> io::Result<String> {
    let mut bytes = [0; 256];
    let length = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// Lists are separated by tabs when read and by whatever the writer likes.
/// Whether two values are the same to the kernel.
pub(crate) fn is_same(a: &str, b: &str) -> bool {
    a.split_ascii_whitespace().eq(b.split_ascii_whitespace())
}

fn errno(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_keep_their_dots() {
        let path = path(&["net", "ipv4", "conf", "eth0.5", "rp_filter"]).unwrap();
        assert_eq!(path, Path::new("/proc/sys/net/ipv4/conf/eth0.5/rp_filter"));
    }

    #[test]
    fn components_cannot_leave_proc_sys() {
        for bad in ["", ".", "..", "a/b", "a\0b"] {
            assert!(matches!(path(&["net", bad]), Err(SysctlError::Component { .. })), "{bad:?}");
        }
    }

    #[test]
    fn lists_compare_by_word() {
        assert!(is_same("32768\t60999", "32768 60999"));
        assert!(!is_same("1", "0"));
    }
}
