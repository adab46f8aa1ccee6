//! The directory of a network's leases, as the original has it, so that both work on one.
//!
//! A lease is a file that is called like its address, and says `ID\r\nIFNAME`; `last_reserved_ip.N` is the address that
//! set N gave last; whoever reads to write holds flock(2) on `lock`. What a process that died left is told by the lock:
//! who sees it holds that, so its writer is no more. So a lease without a word, which the original leaves when it dies
//! between creating and writing, is nobody's. Ours are written elsewhere and renamed, and are whole or not there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use portolan_cni::Error;
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::ipam::{reason, refused};

/// Where a file is written before it gets its name. It is of whoever holds the lock, or left of who did.
const NEW: &str = ".new";

/// No lease is longer: names of containers are not, and what is longer is nobody's.
const LONGEST: u64 = 4096;

/// Whose a lease is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder<'a> {
    pub(crate) id: &'a str,
    pub(crate) ifname: &'a str,
}

impl Holder<'_> {
    fn text(&self) -> String {
        format!("{}\r\n{}", self.id, self.ifname)
    }

    /// Whether a lease's text names it. Before 0.7 the original wrote no interface.
    pub(crate) fn has(&self, lease: &Lease) -> bool {
        self.has_exactly(lease) || lease.text == self.id
    }

    fn has_exactly(&self, lease: &Lease) -> bool {
        lease.text == self.text()
    }

    /// Whether a file of so many bytes may name it, with room for white space.
    fn may_be(&self, size: u64) -> bool {
        let (least, most) = (self.id.len(), self.text().len() + 16);
        (least as u64..=most as u64).contains(&size)
    }
}

/// An address that is taken.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) address: IpAddr,
    /// What its file says, without white space around; empty if it was not asked for.
    pub(crate) text: String,
    /// Its file says nothing: it is nobody's.
    pub(crate) is_empty: bool,
    name: std::ffi::OsString,
}

/// The directory, locked.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    _lock: OwnedFd,
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> Error {
    refused(format!("{doing} {}: {}", path.display(), reason(error)))
}

impl Store {
    /// Opens the directory and makes it if it is not there; waits for the lock.
    ///
    /// # Errors
    /// What cannot be made or opened.
    pub(crate) fn make(dir: &Path) -> Result<Self, Error> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(dir).map_err(|error| failed("mkdir", dir, &error))?;
        Self::open(dir)?.ok_or_else(|| failed("open", dir, &io::ErrorKind::NotFound.into()))
    }

    /// Opens the directory and waits for the lock; none if there is no such directory.
    ///
    /// # Errors
    /// What cannot be opened.
    pub(crate) fn open(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join("lock");
        loop {
            let Some(lock) = open_lock(dir)? else { return Ok(None) };
            let locked = loop {
                match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => break other,
                }
            };
            locked.map_err(|error| failed("lock", &path, &error.into()))?;
            // Somebody may have removed the directory while we waited: then it is a lock on nothing.
            let held = rustix::fs::fstat(&lock).map_err(|error| failed("stat", &path, &error.into()))?;
            match fs::metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (held.st_dev, held.st_ino) => {
                    return Ok(Some(Self { dir: dir.to_owned(), _lock: lock }));
                }
                _ => {}
            }
        }
    }

    /// All that are taken; `read` says of which, by size, the text matters.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn leases(&self, read: impl Fn(u64) -> bool) -> Result<Vec<Lease>, Error> {
        leases(&self.dir, read)
    }

    /// Those of a container's interface, and all others without their text.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn leases_for(&self, holder: Holder<'_>) -> Result<Vec<Lease>, Error> {
        self.leases(|size| holder.may_be(size))
    }

    /// Gives an address that is not taken.
    ///
    /// # Errors
    /// What cannot be written; then nothing is.
    pub(crate) fn reserve(&self, address: IpAddr, holder: Holder<'_>) -> Result<(), Error> {
        self.replace(&address.to_string(), &holder.text())
    }

    /// Takes an address back.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub(crate) fn release(&self, lease: &Lease) -> Result<(), Error> {
        self.remove(&lease.name)
    }

    /// Takes an address back that [`Store::reserve`] gave.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub(crate) fn undo(&self, address: IpAddr) -> Result<(), Error> {
        self.remove(OsStr::new(&address.to_string()))
    }

    fn remove(&self, name: &OsStr) -> Result<(), Error> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, &error)),
            _ => Ok(()),
        }
    }

    /// The address that a set gave last. It is for the order alone, so whatever is wrong with it is none.
    pub(crate) fn last(&self, set: usize) -> Option<IpAddr> {
        let text = read_short(&self.dir.join(last_name(set))).ok()?;
        Some(text.parse::<IpAddr>().ok()?.to_canonical())
    }

    /// Remembers the address that a set gave last.
    pub(crate) fn set_last(&self, set: usize, address: IpAddr) {
        if let Err(error) = self.replace(&last_name(set), &address.to_string()) {
            tracing::warn!("the next address of the set is not the one behind {address}: {error}");
        }
    }

    /// Writes a file in one instant, in place of a file of that name.
    fn replace(&self, name: &str, text: &str) -> Result<(), Error> {
        let (new, path) = (self.dir.join(NEW), self.dir.join(name));
        let write = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
            file.write_all(text.as_bytes())?;
            drop(file);
            fs::rename(&new, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&new);
            failed("write", &path, &error)
        })
    }
}

fn last_name(set: usize) -> String {
    format!("last_reserved_ip.{set}")
}

/// Opens the lock's file as the original does; none if there is no directory.
fn open_lock(dir: &Path) -> Result<Option<OwnedFd>, Error> {
    let path = dir.join("lock");
    match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::from(0o750)) {
        Ok(lock) => Ok(Some(lock)),
        Err(rustix::io::Errno::NOENT) if !dir.exists() => Ok(None),
        Err(error) => Err(failed("open", &path, &error.into())),
    }
}

/// The leases of a directory; whoever wants to change it holds its lock.
pub(crate) fn leases(dir: &Path, read: impl Fn(u64) -> bool) -> Result<Vec<Lease>, Error> {
    let cannot = |error| failed("read", dir, &error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name();
        let Some(address) = name.to_str().and_then(|name| name.parse::<IpAddr>().ok()) else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        let size = metadata.len();
        let is_empty = metadata.is_file() && size == 0;
        let text = match metadata.is_file() && !is_empty && read(size) {
            true => read_short(&entry.path()).unwrap_or_default(),
            false => String::new(),
        };
        found.push(Lease { address: address.to_canonical(), text, is_empty, name });
    }
    Ok(found)
}

fn read_short(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// Whether leases could be written here, without writing one; the addresses that are taken.
///
/// # Errors
/// Why they could not.
pub(crate) fn look(dir: &Path) -> Result<BTreeSet<IpAddr>, Error> {
    // The first directory that is there is where others would be made.
    let there = dir.ancestors().find(|dir| dir.as_os_str().is_empty() || dir.exists());
    let there = there.filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !there.is_dir() {
        return Err(failed("open", there, &io::ErrorKind::NotADirectory.into()));
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(there, access).map_err(|error| failed("write to", there, &error.into()))?;
    let space = rustix::fs::statvfs(there).map_err(|error| failed("look at", there, &error.into()))?;
    if (space.f_blocks > 0 && space.f_bfree == 0) || (space.f_files > 0 && space.f_ffree == 0) {
        return Err(failed("write to", there, &io::ErrorKind::StorageFull.into()));
    }
    if there != dir {
        return Ok(BTreeSet::new());
    }
    open_lock(dir)?;
    let taken = leases(dir, |_| false)?.into_iter().filter(|lease| !lease.is_empty);
    Ok(taken.map(|lease| lease.address).collect())
}
