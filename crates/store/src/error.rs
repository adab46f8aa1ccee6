use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;

use portolan_engine::StoreError;
use rusqlite::ErrorCode;
use rusqlite::ffi::{SQLITE_IOERR_CORRUPTFS, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_SHORT_READ};

use crate::lock;
use crate::store::BUSY;

pub(crate) const OPEN: &str = "open state file";
pub(crate) const READ: &str = "read state file";
pub(crate) const WRITE: &str = "write state file";
pub(crate) const COMMIT: &str = "commit to state file";
pub(crate) const SYNC: &str = "sync state file";

/// What is wrong with a file that SQLite itself accepts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Tables, but no format number.
    #[error("it holds another program's tables")]
    Foreign,
    /// A format number we never wrote.
    #[error("its format {0} never existed")]
    Format(i64),
    /// The log of changes is there, the file they belong to is empty.
    #[error("it is empty, but its write-ahead log is not")]
    Emptied,
    /// Less than the smallest database.
    #[error("it has only {0} bytes")]
    Short(u64),
    /// Bytes that are no address.
    #[error("an address of {0} bytes")]
    Address(usize),
    /// A text that is no block of addresses.
    #[error("a block of addresses `{0}`")]
    Block(String),
    /// A change that names nothing.
    #[error("a change of {0} bytes")]
    Touched(usize),
}

/// What a caller did that the engine never does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Misuse {
    /// A change in a read-only transaction.
    #[error("the transaction is read-only")]
    ReadOnly,
    /// A lease of an address that somebody else holds.
    #[error("address `{0}` is leased to another endpoint")]
    Leased(std::net::IpAddr),
    /// The file system cannot do what the write-ahead log needs.
    #[error("the file system has no shared memory for a write-ahead log: journal mode is `{0}`")]
    Journal(String),
}

pub(crate) fn corrupt(path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), source: source.into() }
}

pub(crate) fn other(doing: &'static str, path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Io { doing, path: path.to_owned(), source: source.into() }
}

/// Sorts an error of the operating system.
pub(crate) fn from_io(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full { path: path.to_owned(), source: source.into() }
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreError::Denied { doing, path: path.to_owned(), source: source.into() }
        }
        _ => other(doing, path, source),
    }
}

/// Sorts an error of SQLite.
///
/// Our statements are constant, so one that does not compile means that the schema is not ours, and a column of
/// the wrong type that somebody else wrote it.
pub(crate) fn from_sqlite(doing: &'static str, path: &Path, source: rusqlite::Error) -> StoreError {
    use rusqlite::Error as E;
    let (code, extended) = match &source {
        E::SqliteFailure(e, _) | E::SqlInputError { error: e, .. } => (e.code, e.extended_code),
        E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::InvalidColumnType(..)
        | E::Utf8Error(..) => return corrupt(path, source),
        _ => return other(doing, path, source),
    };
    match (code, extended) {
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown, _)
        | (_, SQLITE_IOERR_SHORT_READ | SQLITE_IOERR_CORRUPTFS) => corrupt(path, source),
        // The shared memory file could not grow: SQLite keeps the errno to itself, but nothing else fails there.
        (ErrorCode::DiskFull, _) | (_, SQLITE_IOERR_SHMSIZE) => {
            StoreError::Full { path: path.to_owned(), source: source.into() }
        }
        (ErrorCode::ReadOnly | ErrorCode::PermissionDenied, _) => {
            StoreError::Denied { doing, path: path.to_owned(), source: source.into() }
        }
        // Readers and writers wait for nobody here but for who opens the state first and reads its log.
        (ErrorCode::DatabaseBusy | ErrorCode::FileLockingProtocolFailed, _) => {
            let mut shared = path.as_os_str().to_owned();
            shared.push("-shm");
            // Not opened: whoever closes a file lets go of SQLite's locks on it (fcntl(2)).
            lock::busy(Path::new(&shared), BUSY, lock::holder(fs::metadata(&shared)))
        }
        _ => other(doing, path, source),
    }
}
