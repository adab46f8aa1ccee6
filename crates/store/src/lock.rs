//! Waiting for a lock file, but not for ever, and telling who has it.

use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use portolan_engine::{Holder, StoreError};

use crate::error::from_io;

const LOCK: &str = "lock";

/// How long one process may hold a lock for which we wait, unless the caller says otherwise. A verb holds it for
/// milliseconds; the repair of a host with thousands of containers for seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where one process stands in the queue for a lock. Its threads may wait in it at the same time.
#[derive(Debug, Default)]
pub struct Queue {
    /// Those of which nobody waits for the outcome any more, but who still wait.
    left: Mutex<Vec<Waiter>>,
}

/// Whoever waits in flock(2): the kernel knows no end to that, so it is a thread of its own.
#[derive(Debug)]
struct Waiter {
    thread: JoinHandle<()>,
    outcome: Arc<(Mutex<Outcome>, Condvar)>,
}

/// What becomes of it.
#[derive(Debug)]
enum Outcome {
    /// It waits, and somebody for it.
    Wanted,
    /// It waits, and nobody for it: it lets go of the lock as soon as it has it.
    Unwanted,
    Taken(io::Result<File>),
    /// It has ended.
    Over,
}

impl Queue {
    /// Takes flock(2) on the file that `open` opens at `path`, first come first served; gives it back with the lock.
    ///
    /// Gives up when the same process has held it for `patience`: a queue that moves is waited for however long it is.
    ///
    /// # Errors
    /// [`StoreError::Busy`] names that process; [`StoreError::Io`] is what open(2) and flock(2) say.
    pub fn lock(
        &self,
        path: &Path,
        patience: Duration,
        open: impl FnOnce() -> io::Result<File>,
    ) -> Result<File, StoreError> {
        let failed = |e| from_io(LOCK, path, e);
        let waiter = match self.waiting_already() {
            Some(waiter) => waiter,
            None => {
                let file = open().map_err(failed)?;
                match file.try_lock() {
                    Ok(()) => return Ok(file),
                    Err(TryLockError::WouldBlock) if patience.is_zero() => {
                        return Err(busy(path, patience, holder(file.metadata())));
                    }
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(e)) => return Err(failed(e)),
                }
                Waiter::start(file).map_err(failed)?
            }
        };
        let mut before = holder(fs::metadata(path));
        loop {
            if let Some(taken) = waiter.wait(patience) {
                // Who enters namespaces afterwards must be alone in its process.
                let _ = waiter.thread.join();
                return taken.map_err(failed);
            }
            let now = holder(fs::metadata(path));
            if now != before {
                before = now;
                continue;
            }
            return match waiter.leave() {
                Some(taken) => taken.map_err(failed),
                None => {
                    lock(&self.left).push(waiter);
                    Err(busy(path, patience, now))
                }
            };
        }
    }

    /// One of those that were left: else there would be more of them with each attempt.
    fn waiting_already(&self) -> Option<Waiter> {
        let mut left = lock(&self.left);
        while let Some(waiter) = left.pop() {
            let mut outcome = lock(&waiter.outcome.0);
            if matches!(*outcome, Outcome::Unwanted) {
                *outcome = Outcome::Wanted;
                drop(outcome);
                return Some(waiter);
            }
        }
        None
    }
}

impl Waiter {
    fn start(file: File) -> io::Result<Self> {
        let outcome = Arc::new((Mutex::new(Outcome::Wanted), Condvar::new()));
        let told = outcome.clone();
        let thread = thread::Builder::new().name("portolan-lock".to_owned()).spawn(move || {
            let taken = block(&file).map(|()| file);
            let mut outcome = lock(&told.0);
            *outcome = match *outcome {
                Outcome::Wanted => Outcome::Taken(taken),
                _ => Outcome::Over,
            };
            told.1.notify_one();
        })?;
        Ok(Self { thread, outcome })
    }

    /// The lock, if it comes in time.
    fn wait(&self, patience: Duration) -> Option<io::Result<File>> {
        let waits = |outcome: &mut Outcome| matches!(outcome, Outcome::Wanted);
        let (outcome, changed) = &*self.outcome;
        let (outcome, _) =
            changed.wait_timeout_while(lock(outcome), patience, waits).unwrap_or_else(PoisonError::into_inner);
        take(outcome)
    }

    /// Waits no more; the lock, if it has just come.
    fn leave(&self) -> Option<io::Result<File>> {
        let mut outcome = lock(&self.outcome.0);
        if matches!(*outcome, Outcome::Wanted) {
            *outcome = Outcome::Unwanted;
        }
        take(outcome)
    }
}

fn take(mut outcome: MutexGuard<'_, Outcome>) -> Option<io::Result<File>> {
    match mem::replace(&mut *outcome, Outcome::Over) {
        Outcome::Taken(taken) => Some(taken),
        other => {
            *outcome = other;
            None
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn block(file: &File) -> io::Result<()> {
    loop {
        match file.lock() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

pub(crate) fn busy(path: &Path, waited: Duration, holder: Option<u32>) -> StoreError {
    StoreError::Busy { path: path.to_owned(), waited, holder: holder.map(process) }
}

/// The process that has a lock on the file of which this is said, as far as ours may know.
pub(crate) fn holder(file: io::Result<Metadata>) -> Option<u32> {
    holder_of(&fs::read_to_string("/proc/locks").ok()?, file.ok()?.ino())
}

/// What is to be known of a process.
pub fn process(pid: u32) -> Holder {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or_default();
    Holder { pid, name: name.trim_end().to_owned(), stopped: state.trim_start().starts_with(['T', 't']) }
}

/// Out of proc_locks(5): `1: FLOCK ADVISORY WRITE 708 08:01:1234567 0 EOF`. Who waits has `->` before the kind; a process of
/// another pid namespace is 0 or less. Only the inode is compared: some file systems have one device number there and
/// another one in stat(2).
fn holder_of(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK" | "POSIX", _, "WRITE", pid, file, ..] = words[..] else { return None };
        let is_it = file.rsplit(':').next().and_then(|inode| inode.parse().ok()) == Some(inode);
        pid.parse().ok().filter(|pid| is_it && *pid > 0)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;
    use crate::common::Scratch;

    #[test]
    fn the_holder_is_who_has_it_not_who_waits() {
        let locks = "1: FLOCK  ADVISORY  WRITE 12 00:19:7 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 13 00:19:9 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 14 00:19:9 0 EOF\n\
                     3: POSIX  ADVISORY  WRITE 15 00:19:9 120 120\n\
                     4: FLOCK  ADVISORY  WRITE 0 00:19:8 0 EOF\n";
        assert_eq!([7, 8, 9, 10].map(|inode| holder_of(locks, inode)), [Some(12), None, Some(15), None]);
        assert_eq!(holder_of("nonsense\n1: FLOCK\n", 7), None);
    }

    #[test]
    fn who_waits_gives_up_and_takes_nothing_along() {
        let scratch = Scratch::new();
        fs::create_dir_all(scratch.root()).unwrap();
        let path = scratch.root().join("lock");
        let open = || OpenOptions::new().create(true).write(true).truncate(false).open(&path);
        let (holder, queue) = (Queue::default(), Queue::default());
        let held = holder.lock(&path, Duration::ZERO, open).unwrap();
        for patience in [0, 20, 20].map(Duration::from_millis) {
            let error = queue.lock(&path, patience, open).unwrap_err();
            let StoreError::Busy { holder: Some(holder), waited, .. } = error else { panic!("{error}") };
            assert_eq!((holder.pid, holder.stopped, waited), (std::process::id(), false, patience));
        }
        assert_eq!(lock(&queue.left).len(), 1, "one thread waits, however often it is tried");
        // Nobody waits for it when it gets the lock: it gives it back.
        drop(held);
        drop(holder.lock(&path, PATIENCE, open).unwrap());
        // And if somebody does again, he gets it.
        let held = holder.lock(&path, PATIENCE, open).unwrap();
        queue.lock(&path, Duration::from_millis(5), open).unwrap_err();
        let (queue, open) = (&queue, &open);
        thread::scope(|scope| {
            let path = &path;
            let waiting = scope.spawn(move || queue.lock(path, PATIENCE, open));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
        drop(holder.lock(&path, Duration::ZERO, open).unwrap());
    }
}
