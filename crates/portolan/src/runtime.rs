//! The run-time files of containers: `<run>/containers/<id>/{hosts,resolv.conf,hostname,log}`.
//!
//! A directory is locked (flock(2)) by the process that waits for its container. The kernel lets go when that process
//! dies, so that a directory nobody has locked and no row knows is a left-over.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use portolan_model::Id;

/// The directory of one container, locked; removed on drop unless kept.
#[derive(Debug)]
pub(crate) struct RuntimeDir {
    path: PathBuf,
    lock: File,
    keep: bool,
}

fn containers(run: &Path) -> PathBuf {
    run.join("containers")
}

/// Where the files of container `id` are.
pub(crate) fn dir(run: &Path, id: Id) -> PathBuf {
    containers(run).join(id.to_string())
}

impl RuntimeDir {
    /// Makes the directory of container `id` and locks it.
    pub(crate) fn create(run: &Path, id: Id) -> Result<Self> {
        let all = containers(run);
        let doing = || format!("create run-time directory `{}`", all.display());
        DirBuilder::new().recursive(true).mode(0o755).create(&all).with_context(doing)?;
        // Shared with other makers, exclusive for whoever collects left-overs: none sees ours before it is locked.
        let makers = File::open(&all).with_context(doing)?;
        makers.lock_shared().with_context(doing)?;
        let path = dir(run, id);
        let doing = || format!("create run-time directory `{}`", path.display());
        DirBuilder::new().mode(0o700).create(&path).with_context(doing)?;
        let lock = File::open(&path).with_context(doing)?;
        lock.lock().with_context(doing)?;
        Ok(Self { path, lock, keep: false })
    }

    /// The path of one of its files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes one of its files, readable for everybody who gets it bound into its view.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.file(name);
        write(&path, content).with_context(|| format!("write `{}`", path.display()))?;
        Ok(path)
    }

    /// Opens the log, for the command to write to.
    pub(crate) fn log(&self) -> Result<File> {
        let path = self.file("log");
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("create `{}`", path.display()))
    }

    /// Leaves the directory where it is.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }

    /// Removes the directory on drop after all.
    pub(crate) fn discard(&mut self) {
        self.keep = false;
    }

    /// Lets go of the directory, and then removes it if nobody is left to want it.
    ///
    /// In this order: whoever forgets the container before `is_unwanted` looks finds the directory locked and leaves
    /// it to us; whoever does so later finds it unlocked.
    pub(crate) fn let_go(mut self, is_unwanted: impl FnOnce() -> bool) {
        let _ = self.lock.unlock();
        self.keep = !is_unwanted();
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn write(path: &Path, content: &str) -> io::Result<()> {
    use std::io::Write as _;
    // In place: the file may be bound over another one, and the binding holds the inode.
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?.write_all(content.as_bytes())
}

/// Replaces a file of a container that has it.
pub(crate) fn rewrite(run: &Path, id: Id, name: &str, content: &str) -> Result<()> {
    let path = dir(run, id).join(name);
    if path.exists() {
        write(&path, content).with_context(|| format!("write `{}`", path.display()))?;
    }
    Ok(())
}

/// Removes the files of container `id`, if there are any.
pub(crate) fn remove(run: &Path, id: Id) {
    let _ = fs::remove_dir_all(dir(run, id));
}

/// Removes the directories that nobody has locked and `known` does not know; answers how many.
pub(crate) fn collect(run: &Path, mut known: impl FnMut(Id) -> Result<bool>) -> Result<usize> {
    let all = containers(run);
    let Ok(makers) = File::open(&all) else { return Ok(0) };
    let doing = || format!("list `{}`", all.display());
    makers.lock().with_context(doing)?;
    let mut removed = 0;
    for entry in fs::read_dir(&all).with_context(doing)? {
        let entry = entry.with_context(doing)?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<Id>().ok()) else { continue };
        let Ok(lock) = File::open(entry.path()) else { continue };
        if lock.try_lock().is_ok() && !known(id)? {
            match fs::remove_dir_all(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove `{}`", entry.path().display()));
                }
                _ => removed += 1,
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_overs_are_what_is_neither_locked_nor_known() {
        let run = std::env::temp_dir().join(format!("portolan-runtime-{}", std::process::id()));
        let id = |n: u8| Id::from_bytes([n; 32]);
        let held = RuntimeDir::create(&run, id(1)).unwrap();
        let mut kept = RuntimeDir::create(&run, id(2)).unwrap();
        kept.keep();
        drop(kept);
        let mut left = RuntimeDir::create(&run, id(3)).unwrap();
        left.write("hosts", "x").unwrap();
        left.keep();
        drop(left);
        drop(RuntimeDir::create(&run, id(4)).unwrap());
        assert!(!dir(&run, id(4)).exists());
        assert_eq!(collect(&run, |known| Ok(known == id(2))).unwrap(), 1);
        assert!(dir(&run, id(1)).exists() && dir(&run, id(2)).exists() && !dir(&run, id(3)).exists());
        drop(held);
        fs::remove_dir_all(&run).unwrap();
    }
}
