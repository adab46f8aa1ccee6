//! Files that are not what they should be, and file systems that will not do.

mod common;

use std::error::Error;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::*;
use portolan_engine::{Durability, Store, StoreError, Tx};
use portolan_store::SqliteStore;
use rusqlite::Connection;

/// Makes a store with some rows, all of them in the file and none in the log.
fn make(root: &Path) {
    let store = SqliteStore::open(root).unwrap();
    let guard = store.lock().unwrap();
    let tx = store.write(&guard).unwrap();
    for number in 0..50 {
        tx.put_container(&container(number)).unwrap();
    }
    tx.put_network(&network(1, "web")).unwrap();
    tx.commit(Durability::Disk).unwrap();
    sql(root, "PRAGMA wal_checkpoint(TRUNCATE)");
}

/// Runs statements behind the store's back.
fn sql(root: &Path, statements: &str) {
    Connection::open(root.join("state.db")).unwrap().execute_batch(statements).unwrap();
}

fn assert_corrupt<T>(result: Result<T, StoreError>, what: &str) {
    match result {
        Err(StoreError::Corrupt { path, .. }) => assert!(path.ends_with("state.db"), "{what}: {path:?}"),
        Err(other) => panic!("{what}: {other}: {:?}", other.source()),
        Ok(_) => panic!("{what}: accepted"),
    }
}

#[test]
fn permissions_of_what_is_made() {
    let scratch = Scratch::new();
    let root = scratch.path().join("a/b/root");
    make(&root);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&root), 0o700);
    for name in ["state.db", "state.db-wal", "lock"] {
        assert_eq!(mode(&root.join(name)), 0o600, "{name}");
    }
}

#[test]
fn what_a_killed_creation_left_is_made_anew() {
    let scratch = Scratch::new();
    let root = scratch.root();
    fs::create_dir(&root).unwrap();
    for left in ["state.db.new", "state.db.new-wal", "state.db.new-shm"] {
        fs::write(root.join(left), "half of it").unwrap();
    }
    make(&root);
    let names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains(".new")), "{names:?}");
    SqliteStore::open(&root).unwrap();
}

#[test]
fn closing_leaves_the_log_alone() {
    let scratch = Scratch::new();
    let store = SqliteStore::open(&scratch.root()).unwrap();
    let guard = store.lock().unwrap();
    let tx = store.write(&guard).unwrap();
    tx.put_meta("a", Some("1")).unwrap();
    tx.commit(Durability::Process).unwrap();
    drop(guard);
    drop(store);
    assert!(fs::metadata(scratch.root().join("state.db-wal")).unwrap().len() > 0);
}

#[test]
fn the_log_stays_short() {
    let scratch = Scratch::new();
    let mut longest = 0;
    for number in 0..200 {
        let store = SqliteStore::open(&scratch.root()).unwrap();
        let guard = store.lock().unwrap();
        let tx = store.write(&guard).unwrap();
        tx.put_container(&container(number)).unwrap();
        tx.commit(Durability::Process).unwrap();
        drop(guard);
        longest = longest.max(fs::metadata(scratch.root().join("state.db-wal")).unwrap().len());
    }
    assert!((1..600_000).contains(&longest), "{longest} bytes");
}

#[test]
fn an_empty_file_is_filled_unless_it_has_a_log() {
    let scratch = Scratch::new();
    let root = scratch.root();
    fs::create_dir(&root).unwrap();
    fs::write(root.join("state.db"), "").unwrap();
    make(&root);
    let (path, log) = (root.join("state.db"), root.join("state.db-wal"));
    fs::write(&path, "").unwrap();
    fs::write(&log, "what was not in the file yet").unwrap();
    assert_corrupt(SqliteStore::open(&root), "empty, with a log");
    assert!(fs::metadata(&log).unwrap().len() > 0, "the log is evidence");
}

#[test]
fn truncated_and_garbled_files_are_corrupt() {
    let scratch = Scratch::new();
    let root = scratch.root();
    make(&root);
    let path = root.join("state.db");
    let whole = fs::read(&path).unwrap();
    let length = whole.len();
    assert_eq!(length % 2048, 0, "whole pages of {length} bytes");
    for cut in [1, 15, 16, 60, 99, 100, 511, 512, 2047, 2048, 4096, length / 2, length - 2048] {
        fs::write(&path, &whole[..cut]).unwrap();
        assert_corrupt(SqliteStore::open(&root), &format!("{cut} of {length} bytes"));
        assert_eq!(fs::read(&path).unwrap(), whole[..cut], "left alone");
    }
    // SQLite fills a part of a page with zeros, as a crash while the log is moved leaves one; the row tells.
    fs::write(&path, &whole[..length - 1]).unwrap();
    let read = SqliteStore::open(&root).and_then(|store| {
        let tx = store.read()?;
        tx.networks()?;
        tx.containers()
    });
    assert_corrupt(read, "all but the last byte");
    fs::write(&path, "this is a text file, and no short one at that\n".repeat(200)).unwrap();
    assert_corrupt(SqliteStore::open(&root), "text");
    fs::write(&path, vec![0; 8192]).unwrap();
    assert_corrupt(SqliteStore::open(&root), "zeros");
    // Pages of nonsense behind a whole header are found when they are read.
    let mut garbled = whole.clone();
    garbled[2048..].fill(0xa5);
    fs::write(&path, &garbled).unwrap();
    assert_corrupt(SqliteStore::open(&root).and_then(|store| store.read()?.containers()), "garbled pages");
    fs::write(&path, &whole).unwrap();
    assert_eq!(SqliteStore::open(&root).unwrap().read().unwrap().containers().unwrap().len(), 50);
}

#[test]
fn anothers_tables_and_wrong_rows_are_corrupt() {
    let read = |statements: &str| {
        let scratch = Scratch::new();
        make(&scratch.root());
        sql(&scratch.root(), statements);
        let store = SqliteStore::open(&scratch.root())?;
        let tx = store.read()?;
        tx.networks()?;
        tx.networks_with_prefix("01")?;
        tx.lease(id(1, 1), parse("10.0.0.2"))?;
        tx.lease_cursor(id(1, 1), parse("10.0.0.0/8"))?;
        tx.containers().map(drop)
    };
    read("").unwrap();
    for statements in [
        "PRAGMA user_version = 0",
        "PRAGMA user_version = -1",
        "DROP TABLE network",
        "ALTER TABLE network DROP COLUMN body",
        "UPDATE network SET body = '{'",
        "UPDATE network SET body = '{}'",
        "UPDATE network SET body = json_set(body, '$.mtu', '1')",
        "UPDATE network SET body = CAST(x'ff22' AS TEXT)",
        "INSERT INTO lease SELECT id, 4, x'0a000002', x'00', NULL, NULL FROM network",
        "INSERT INTO cursor SELECT id, '10.0.0.0/8', x'0a0000' FROM network",
    ] {
        assert_corrupt(read(statements), statements);
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.root()).unwrap();
    sql(&scratch.root(), "CREATE TABLE theirs (a)");
    let before = fs::read(scratch.root().join("state.db")).unwrap();
    assert_corrupt(SqliteStore::open(&scratch.root()), "another program's file");
    assert_eq!(fs::read(scratch.root().join("state.db")).unwrap(), before);
}

#[test]
fn a_newer_format_is_left_alone() {
    let scratch = Scratch::new();
    let root = scratch.root();
    make(&root);
    sql(&root, "PRAGMA user_version = 7; DROP TABLE network; PRAGMA wal_checkpoint(TRUNCATE)");
    let before = fs::read(root.join("state.db")).unwrap();
    let error = SqliteStore::open(&root).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 7, supported: 5, .. }), "{error}");
    assert_eq!(fs::read(root.join("state.db")).unwrap(), before);
}

#[test]
fn a_format_that_changes_under_an_open_store_is_noticed() {
    let scratch = Scratch::new();
    let store = SqliteStore::open(&scratch.root()).unwrap();
    let guard = store.lock().unwrap();
    sql(&scratch.root(), "PRAGMA user_version = 6");
    assert!(matches!(store.read(), Err(StoreError::Newer { found: 6, .. })));
    assert!(matches!(store.write(&guard), Err(StoreError::Newer { found: 6, .. })));
}

/// The id of nobody, who may write nothing here.
const NOBODY: u32 = 65534;

#[test]
fn no_permission_names_the_path() {
    let scratch = Scratch::new();
    // Whoever runs this, the files belong to the runner; root has to become somebody else to be refused.
    let root = chown(scratch.path(), Some(0), Some(0)).is_ok();
    if !root {
        return refused_in(scratch.path());
    }
    fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["unreadable", "readable", "frozen"] {
        make(&scratch.path().join(name));
    }
    let mode =
        |path: &str, mode| fs::set_permissions(scratch.path().join(path), PermissionsExt::from_mode(mode)).unwrap();
    mode("readable", 0o755);
    mode("readable/state.db", 0o644);
    mode("frozen", 0o755);
    mode("frozen/state.db", 0o666);
    let status = role("refused", scratch.path()).uid(NOBODY).gid(NOBODY).status();
    match status {
        Ok(status) => assert!(status.success()),
        Err(e) => eprintln!("SKIPPED: nobody cannot run the test binary: {e}"),
    }
}

#[test]
#[ignore = "a role of no_permission_names_the_path"]
fn refused() {
    if let Some(directory) = directory() {
        refused_in(&directory);
    }
}

fn refused_in(directory: &Path) {
    let denied = |name: &str, wanted: &str| match SqliteStore::open(&directory.join(name)).unwrap_err() {
        StoreError::Denied { path, .. } => assert_eq!(path, directory.join(wanted), "{name}"),
        other => panic!("{name}: {other}: {:?}", other.source()),
    };
    if directory.join("readable").exists() {
        denied("new", "new");
        denied("unreadable", "unreadable/state.db");
        denied("readable", "readable/state.db");
        denied("frozen", "frozen/state.db-wal");
    } else {
        let locked = directory.join("locked");
        fs::create_dir(&locked).unwrap();
        fs::set_permissions(&locked, PermissionsExt::from_mode(0o500)).unwrap();
        denied("locked/new", "locked/new");
    }
}

#[test]
fn a_path_that_cannot_be_is_an_io_error() {
    let scratch = Scratch::new();
    fs::write(scratch.root(), "a file").unwrap();
    assert!(matches!(SqliteStore::open(&scratch.root()), Err(StoreError::Io { .. })));
}

/// Runs a role with a small file system of its own mounted on its directory, in a mount namespace of its own.
fn with_small_disk(name: &str) {
    let scratch = Scratch::new();
    let script = r#"mount -t tmpfs -o size=1m none "$1" || exit 77; shift; exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(scratch.path());
    command.arg(std::env::current_exe().unwrap()).args(role_args(name)).env(DIRECTORY, scratch.path());
    match command.status() {
        Ok(status) if status.success() => {}
        // 77: mount refused; 1: unshare itself.
        Ok(status) if matches!(status.code(), Some(77 | 1)) => eprintln!("SKIPPED: no mount namespace here: {status}"),
        Ok(status) => panic!("{status}"),
        Err(e) => eprintln!("SKIPPED: no unshare(1): {e}"),
    }
}

#[test]
fn a_full_disk_is_told_from_other_errors() {
    with_small_disk("full");
}

#[test]
#[ignore = "a role of a_full_disk_is_told_from_other_errors"]
fn full() {
    let Some(directory) = directory() else { return };
    let root = directory.join("root");
    let ballast = directory.join("ballast");
    fs::write(&ballast, vec![0; 256 << 10]).unwrap();
    let store = SqliteStore::open(&root).unwrap();
    let write = |number: u32| -> Result<(), StoreError> {
        let guard = store.lock()?;
        let tx = store.write(&guard)?;
        let mut row = container(number);
        row.command = vec!["x".repeat(20_000)];
        tx.put_container(&row)?;
        tx.commit(Durability::Disk)
    };
    let mut written = 0;
    let error = loop {
        match write(written) {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
        assert!(written < 1000, "the disk never fills");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}: {:?}", error.source());
    assert_eq!(store.read().unwrap().containers().unwrap().len(), written as usize, "nothing has changed");
    assert!(matches!(write(written), Err(StoreError::Full { .. })), "and it stays so");

    // The rest of the room, down to the last byte.
    let filler = directory.join("filler");
    let _ = fs::write(&filler, vec![0; 2 << 20]);
    let error = SqliteStore::open(&directory.join("another")).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}: {:?}", error.source());
    drop(store);
    match SqliteStore::open(&root).and_then(|store| store.read()?.containers()) {
        Ok(rows) => assert_eq!(rows.len(), written as usize),
        Err(error) => assert!(matches!(error, StoreError::Full { .. }), "{error}: {:?}", error.source()),
    }
    fs::remove_file(&filler).unwrap();
    fs::remove_file(&ballast).unwrap();
    let store = SqliteStore::open(&root).unwrap();
    let guard = store.lock().unwrap();
    let tx = store.write(&guard).unwrap();
    assert_eq!(tx.containers().unwrap().len(), written as usize);
    tx.put_meta("a", Some("1")).unwrap();
    tx.commit(Durability::Disk).unwrap();
}

#[test]
fn a_read_only_file_system_denies() {
    with_small_disk("read_only");
}

#[test]
#[ignore = "a role of a_read_only_file_system_denies"]
fn read_only() {
    let Some(directory) = directory() else { return };
    let root = directory.join("root");
    make(&root);
    let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(&directory).status().unwrap();
    assert!(remount.success());
    for name in ["root", "another"] {
        let error = SqliteStore::open(&directory.join(name)).unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{name}: {error}: {:?}", error.source());
    }
}
