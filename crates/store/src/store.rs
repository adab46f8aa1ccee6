use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use portolan_engine::{Store, StoreError};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::{Fault, Misuse, OPEN, SYNC, WRITE, corrupt, from_io, from_sqlite, other};
use crate::lock::{PATIENCE, Queue};
use crate::migrations::{self, FORMAT};
use crate::{SqliteTx, sql};

/// Bytes of a page. The log grows by whole pages, and an attach touches some twenty: at 4096 it doubles, at 1024
/// bodies spill over.
const PAGE: i64 = 2048;

/// Bytes of write-ahead log above which the lock's holder moves it into the file before it lets go.
///
/// A process that is alone has to read the whole log when it opens the file, about 1 µs a page; emptying it costs
/// three disk flushes. Here an attach writes 50 KiB, and the two costs balance between 256 KiB and 1 MiB.
const LOG_LIMIT: u64 = 512 << 10;

/// How long SQLite itself waits for another process. Writers queue on the lock file; what is left is another
/// opener that reads the log after a crash.
pub(crate) const BUSY: Duration = Duration::from_secs(10);

const MARK: &str = "mark";

/// The mode bit of the lock file by which the rows are marked as perhaps not what the kernel has.
const DOUBTFUL: u32 = 0o100;

/// Idle connections kept for the next transaction.
const IDLE: usize = 8;

/// The state of one root in an SQLite file.
///
/// Threads may share it: each transaction has a connection to itself, and the idle ones are kept. A process that
/// forks must not use it on both sides.
#[derive(Debug)]
pub struct SqliteStore {
    root: PathBuf,
    path: PathBuf,
    log: PathBuf,
    /// How long one process may hold the lock for which we wait.
    patience: Duration,
    queue: Queue,
    idle: Mutex<Vec<Connection>>,
}

/// The write lock of a [`SqliteStore`].
#[derive(Debug)]
pub struct SqliteGuard<'a> {
    store: &'a SqliteStore,
    file: File,
}

impl SqliteStore {
    /// Opens the state under `root`; makes the directory (mode 0700) and an empty state in it (mode 0600) if they
    /// are not there, and brings an older format up to date.
    ///
    /// Making and migrating happen under the write lock, so the caller must not hold that of another
    /// `SqliteStore` of the same root.
    ///
    /// # Errors
    /// [`StoreError::Newer`] before anything else is looked at; [`StoreError::Corrupt`] for a file that is none
    /// of ours; [`StoreError::Denied`], [`StoreError::Full`], [`StoreError::Io`] name the path.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_within(root, PATIENCE)
    }

    /// The same, for who waits for the write lock until one process has held it for `patience`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_within(root: &Path, patience: Duration) -> Result<Self, StoreError> {
        // An absolute path never looks like an URI to SQLite and outlives a change of directory.
        let root = std::path::absolute(root).map_err(|e| from_io(OPEN, root, e))?;
        let path = root.join("state.db");
        let log = root.join("state.db-wal");
        let store = Self { root, path, log, patience, queue: Queue::default(), idle: Mutex::default() };
        match fs::metadata(&store.path) {
            // SQLite would delete the log of an empty file.
            Ok(found) if found.len() == 0 => store.create()?,
            // SQLite takes a file of one byte for an empty one (unixFileSize, os_unix.c), and would fill it.
            Ok(found) if found.is_file() && found.len() < 512 => {
                return Err(corrupt(&store.path, Fault::Short(found.len())));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => store.create()?,
            Err(e) => return Err(from_io(OPEN, &store.path, e)),
        }
        let mut connection = store.connect()?;
        if store.format(&connection)? != FORMAT {
            store.migrate(&mut connection)?;
        }
        store.give_back(connection);
        Ok(store)
    }

    /// The directory it was opened under.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The state file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes what is missing: the directory, and in it a file of our format without rows.
    fn create(&self) -> Result<(), StoreError> {
        const CREATE: &str = "create state directory";
        let make = || DirBuilder::new().mode(0o700).create(&self.root);
        let made = match make() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.root.parent() {
                Some(parent) => DirBuilder::new().recursive(true).mode(0o755).create(parent).and_then(|()| make()),
                None => Err(e),
            },
            made => made,
        };
        match made {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(from_io(CREATE, &self.root, e)),
        }
        let _guard = self.lock()?;
        let length = |path| fs::metadata(path).map_or(0, |m| m.len());
        if length(&self.path) > 0 {
            return Ok(());
        }
        if length(&self.log) > 0 {
            return Err(corrupt(&self.path, Fault::Emptied));
        }
        self.fill()
    }

    /// Makes the file beside its place and moves it there: who finds it finds all of it.
    ///
    /// Two disk flushes and one of the directory above, where SQLite, which cannot know that nobody has the file yet,
    /// would make ten.
    fn fill(&self) -> Result<(), StoreError> {
        const CREATE: &str = "create state file";
        let new = self.root.join("state.db.new");
        for left in ["state.db.new", "state.db.new-journal", "state.db.new-wal", "state.db.new-shm"] {
            match fs::remove_file(self.root.join(left)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(from_io(CREATE, &self.root.join(left), e)),
                _ => {}
            }
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        let file = file.map_err(|e| from_io(CREATE, &self.path, e))?;
        let fail = |e| from_sqlite(CREATE, &self.path, e);
        let mut connection = Connection::open_with_flags(&new, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(fail)?;
        connection.pragma_update(None, "synchronous", "off").map_err(fail)?;
        self.lay_out(&connection)?;
        migrations::run(&mut connection, 0).map_err(fail)?;
        checkpoint(&connection).map_err(fail)?;
        connection.close().map_err(|(_, e)| fail(e))?;
        file.sync_all().map_err(|e| from_io(SYNC, &self.path, e))?;
        fs::rename(&new, &self.path).map_err(|e| from_io(CREATE, &self.path, e))?;
        self.sync_directories()
    }

    /// Settles how an empty file is written.
    fn lay_out(&self, connection: &Connection) -> Result<(), StoreError> {
        let fail = |e| from_sqlite(WRITE, &self.path, e);
        // Before the first page is written, and before the log mode, which fixes it.
        connection.pragma_update(None, "page_size", PAGE).map_err(fail)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(fail)?;
        if mode == "wal" { Ok(()) } else { Err(other(WRITE, &self.path, Misuse::Journal(mode))) }
    }

    /// Brings the file to our format, unless another process has by now.
    fn migrate(&self, connection: &mut Connection) -> Result<(), StoreError> {
        let fail = |e| from_sqlite(WRITE, &self.path, e);
        let _guard = self.lock()?;
        let found = self.format(connection)?;
        if found == FORMAT {
            return Ok(());
        }
        if found == 0 {
            let tables: i64 =
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(fail)?;
            if tables > 0 {
                return Err(corrupt(&self.path, Fault::Foreign));
            }
            self.lay_out(connection)?;
        }
        migrations::run(connection, found).map_err(fail)?;
        // Not in the log only: the format is what the next version decides by.
        checkpoint(connection).map_err(fail)?;
        self.sync_directories()
    }

    /// Makes the names of new files survive a power cut.
    fn sync_directories(&self) -> Result<(), StoreError> {
        let sync = |path: &Path| File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| from_io(SYNC, path, e));
        sync(&self.root)?;
        self.root.parent().map_or(Ok(()), sync)
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(|e| self.explain(e))?;
        let fail = |e| from_sqlite(OPEN, &self.path, e);
        // SQLite falls back to reading when it may not write.
        if connection.is_readonly("main").map_err(fail)? {
            drop(connection);
            return Err(self.denied());
        }
        // Without this the last process to close would empty the log, with three disk flushes.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(fail)?;
        connection.busy_timeout(BUSY).map_err(fail)?;
        connection.set_prepared_statement_cache_capacity(128);
        Ok(connection)
    }

    /// Finds the cause of a failed open, which SQLite keeps to itself.
    fn explain(&self, error: rusqlite::Error) -> StoreError {
        if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) {
            self.denied()
        } else {
            from_sqlite(OPEN, &self.path, error)
        }
    }

    /// Repeats an open that SQLite failed at, for its errno.
    ///
    /// Closing any descriptor of the file drops this process's locks on it (fcntl(2)), so this is for a file that
    /// we cannot have open otherwise.
    fn denied(&self) -> StoreError {
        let failed = OpenOptions::new().read(true).write(true).open(&self.path).err();
        from_io(OPEN, &self.path, failed.unwrap_or_else(|| io::ErrorKind::PermissionDenied.into()))
    }

    /// The file's format, no newer than ours.
    fn format(&self, connection: &Connection) -> Result<i64, StoreError> {
        let found: i64 = connection
            .prepare_cached(sql::FORMAT)
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(|e| self.explain_read(e))?;
        match found {
            ..0 => Err(corrupt(&self.path, Fault::Format(found))),
            0..=FORMAT => Ok(found),
            _ => Err(StoreError::Newer { path: self.path.clone(), found, supported: FORMAT }),
        }
    }

    /// A first read fails to open when the files of the log cannot be made.
    fn explain_read(&self, error: rusqlite::Error) -> StoreError {
        if error.sqlite_error_code() != Some(ErrorCode::CannotOpen) {
            return from_sqlite(OPEN, &self.path, error);
        }
        let shared = self.root.join("state.db-shm");
        for path in [&self.log, &shared] {
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
            if let Err(e) = opened {
                return from_io(OPEN, path, e);
            }
        }
        other(OPEN, &self.path, error)
    }

    fn begin(&self, writable: bool) -> Result<SqliteTx<'_>, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let tx = SqliteTx::begin(self, connection, writable)?;
        // Also takes the snapshot, which a bare BEGIN leaves to the first read. Another version may have
        // changed the format since we opened the file.
        match self.format(tx.connection())? {
            FORMAT => Ok(tx),
            found => Err(corrupt(&self.path, Fault::Format(found))),
        }
    }

    pub(crate) fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(connection);
        }
    }

    /// Makes what is committed survive a power cut.
    ///
    /// The log needs no more than its bytes on the disk: the next opener replays it.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        // A descriptor of the log carries none of SQLite's locks, so closing it is harmless.
        File::open(&self.log).and_then(|log| log.sync_data()).map_err(|e| from_io(SYNC, &self.log, e))
    }

    /// Moves the log into the file once it has grown long.
    ///
    /// By truncation, because what a plain checkpoint leaves behind is only known to the shared memory, which
    /// dies with the last process: the next opener would read the log again and move it again. A failure costs
    /// nothing but time: the next holder of the lock tries again.
    fn trim(&self) {
        if fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_LIMIT) {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if let Some(connection) = idle {
                let _ = connection.busy_timeout(Duration::ZERO);
                let _ = checkpoint(&connection);
                let _ = connection.busy_timeout(BUSY);
                self.give_back(connection);
            }
        }
    }
}

/// Moves the log into the file and empties it.
fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

impl Store for SqliteStore {
    type Tx<'a> = SqliteTx<'a>;
    type Guard<'a> = SqliteGuard<'a>;

    fn lock(&self) -> Result<SqliteGuard<'_>, StoreError> {
        let path = self.root.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = self.queue.lock(&path, self.patience, || options.open(&path))?;
        Ok(SqliteGuard { store: self, file })
    }

    fn read(&self) -> Result<SqliteTx<'_>, StoreError> {
        self.begin(false)
    }

    fn write<'a>(&'a self, guard: &'a SqliteGuard<'_>) -> Result<SqliteTx<'a>, StoreError> {
        debug_assert_eq!(guard.store.root, self.root, "the guard is of another root");
        self.begin(true)
    }

    fn mark_doubtful(&self, guard: &SqliteGuard<'_>, doubtful: bool) -> Result<(), StoreError> {
        // An inode that is there can be changed where no block is to be had.
        let mode = if doubtful { 0o600 | DOUBTFUL } else { 0o600 };
        guard.file.set_permissions(Permissions::from_mode(mode)).map_err(|e| from_io(MARK, &self.root.join("lock"), e))
    }

    fn is_doubtful(&self, guard: &SqliteGuard<'_>) -> Result<bool, StoreError> {
        let found = guard.file.metadata().map_err(|e| from_io(MARK, &self.root.join("lock"), e))?;
        Ok(found.permissions().mode() & DOUBTFUL != 0)
    }
}

impl Drop for SqliteGuard<'_> {
    fn drop(&mut self) {
        self.store.trim();
        // Closing alone would not do if a child of ours inherited the descriptor (flock(2)).
        let _ = self.file.unlock();
    }
}
