//! What the kernel, or the socket to it, refused, in words.

use std::fmt;
use std::io;

/// What the kernel, or the socket to it, refused.
///
/// Displays as `file exists (EEXIST)`, followed by the kernel's own words if it gave any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkError {
    pub(super) errno: i32,
    pub(super) index: Option<usize>,
    pub(super) extack: Option<String>,
    pub(super) offset: Option<u32>,
    pub(super) interrupted: bool,
}

impl NetlinkError {
    /// An error with nothing but its errno (positive).
    pub fn from_errno(errno: i32) -> Self {
        Self { errno, index: None, extack: None, offset: None, interrupted: false }
    }

    pub(super) fn interrupted_dump() -> Self {
        Self { interrupted: true, ..Self::from_errno(libc::EINTR) }
    }

    /// The positive errno.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// Position in its [`Batch`](super::Batch) of the message which failed.
    pub fn index(&self) -> Option<usize> {
        self.index
    }

    /// The kernel's extended-ack text (`NLMSGERR_ATTR_MSG`).
    pub fn extack(&self) -> Option<&str> {
        self.extack.as_deref()
    }

    /// Byte offset in the failed message of the attribute the kernel objects to
    /// (`NLMSGERR_ATTR_OFFS`), counted from the message header.
    pub fn offset(&self) -> Option<u32> {
        self.offset
    }

    /// Whether a dump has to be repeated because the listed objects changed meanwhile
    /// (`NLM_F_DUMP_INTR`).
    pub fn interrupted(&self) -> bool {
        self.interrupted
    }

    /// Whether the errno says that the object exists already.
    pub fn is_exists(&self) -> bool {
        self.errno == libc::EEXIST
    }

    /// Whether the errno says that the kernel was built without it.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno, libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)
    }

    /// Whether the errno says that the object, or a thing it refers to, is not there.
    ///
    /// Routes answer `ESRCH`, addresses `EADDRNOTAVAIL`, links `ENODEV`, all else `ENOENT`.
    pub fn is_missing(&self) -> bool {
        matches!(self.errno, libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL)
    }
}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self::from_errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.interrupted {
            return f.write_str("listing kept changing while it was read (NLM_F_DUMP_INTR)");
        }
        write!(f, "{}", Errno(self.errno))?;
        if let Some(text) = &self.extack {
            write!(f, ": {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NetlinkError {}

/// Displays an errno as `file exists (EEXIST)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match errno_entry(self.0) {
            Some((name, text)) => write!(f, "{text} ({name})"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl std::error::Error for Errno {}

/// Symbolic name of `errno` (`"EEXIST"`), or `"errno"` for the ones networking never returns.
pub fn errno_name(errno: i32) -> &'static str {
    errno_entry(errno).map_or("errno", |(name, _)| name)
}

fn errno_entry(errno: i32) -> Option<(&'static str, &'static str)> {
    macro_rules! table {
        ($($name:ident $text:literal)*) => {
            match errno {
                $(libc::$name => Some((stringify!($name), $text)),)*
                _ => None,
            }
        };
    }
    table! {
        EPERM "operation not permitted"
        ENOENT "no such file or object"
        ESRCH "no such process or route"
        EINTR "interrupted system call"
        EIO "input/output error"
        ENXIO "no such device or address"
        E2BIG "argument list too long"
        ENOEXEC "exec format error"
        EBADF "bad file descriptor"
        ECHILD "no child processes"
        EAGAIN "timed out or temporarily unavailable"
        ENOMEM "out of memory"
        EACCES "permission denied"
        EFAULT "bad address"
        EBUSY "device or resource busy"
        EEXIST "file exists"
        EXDEV "invalid cross-device link"
        ENODEV "no such device"
        ENOTDIR "not a directory"
        EISDIR "is a directory"
        EINVAL "invalid argument"
        ENFILE "too many open files in system"
        EMFILE "too many open files"
        ENOTTY "inappropriate ioctl"
        EFBIG "file too large"
        ENOSPC "no space left on device"
        EROFS "read-only file system"
        EMLINK "too many links"
        EPIPE "broken pipe"
        EDOM "argument out of domain"
        ERANGE "result out of range"
        ENAMETOOLONG "name too long"
        ENOSYS "function not implemented"
        ENOTEMPTY "directory not empty"
        ELOOP "too many levels of nesting or symbolic links"
        ENODATA "no data available"
        EOVERFLOW "value too large"
        ENOTSOCK "not a socket"
        EMSGSIZE "message too long"
        EPROTONOSUPPORT "protocol not supported"
        ESOCKTNOSUPPORT "socket type not supported"
        EOPNOTSUPP "operation not supported"
        EAFNOSUPPORT "address family not supported"
        EADDRINUSE "address already in use"
        EADDRNOTAVAIL "address not available"
        ENETDOWN "network is down"
        ENETUNREACH "network is unreachable"
        ECONNABORTED "connection aborted"
        ECONNRESET "connection reset"
        ENOBUFS "no buffer space available"
        EISCONN "already connected"
        ENOTCONN "not connected"
        ETIMEDOUT "timed out"
        ECONNREFUSED "connection refused"
        EHOSTDOWN "host is down"
        EHOSTUNREACH "no route to host"
        EALREADY "already in progress"
        EINPROGRESS "in progress"
        ESTALE "stale handle"
        EDQUOT "quota exceeded"
        ECANCELED "cancelled"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_names_the_errno_and_keeps_the_kernels_words() {
        let mut error = NetlinkError::from_errno(libc::EEXIST);
        assert_eq!(error.to_string(), "file exists (EEXIST)");
        error.extack = Some("Table already there".into());
        assert_eq!(error.to_string(), "file exists (EEXIST): Table already there");
        assert_eq!(errno_name(libc::ENOBUFS), "ENOBUFS");
    }
}
