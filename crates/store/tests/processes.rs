//! Several threads, several processes, and processes that die.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::*;
use portolan_engine::{Durability, Store, Tx};
use portolan_store::SqliteStore;

const WORKERS: usize = 8;
const INCREMENTS: usize = 200;

fn count(tx: &impl Tx) -> usize {
    tx.meta("count").unwrap().map_or(0, |text| text.parse().unwrap())
}

fn increment(store: &SqliteStore, durability: Durability) {
    let guard = store.lock().unwrap();
    let tx = store.write(&guard).unwrap();
    tx.put_meta("count", Some(&(count(&tx) + 1).to_string())).unwrap();
    tx.commit(durability).unwrap();
}

#[test]
fn threads_lose_no_update() {
    let scratch = Scratch::new();
    let store = SqliteStore::open(&scratch.root()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| (0..INCREMENTS).for_each(|_| increment(&store, Durability::Process)));
        }
    });
    assert_eq!(count(&store.read().unwrap()), WORKERS * INCREMENTS);
}

#[test]
fn processes_lose_no_update() {
    let scratch = Scratch::new();
    // They also race to make the root.
    let children: Vec<_> =
        (0..WORKERS).map(|_| role("incrementer", scratch.path()).stdout(Stdio::null()).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let store = SqliteStore::open(&scratch.root()).unwrap();
    assert_eq!(count(&store.read().unwrap()), WORKERS * INCREMENTS);
}

#[test]
#[ignore = "a role of processes_lose_no_update"]
fn incrementer() {
    let Some(directory) = directory() else { return };
    for _ in 0..INCREMENTS {
        // As short-lived processes do: open, change, close.
        increment(&SqliteStore::open(&directory.join("root")).unwrap(), Durability::Process);
    }
}

/// Starts a role and waits until it says that it is where the test wants it.
fn start(name: &str, directory: &Path) -> Child {
    let mut child = role(name, directory).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).any(|line| line.ends_with("ready"));
    assert!(ready, "`{name}` ended before it was ready");
    child
}

/// Kills it with SIGKILL.
fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn death_in_a_transaction_undoes_it_and_frees_the_lock() {
    let scratch = Scratch::new();
    let child = start("hanger", scratch.path());
    let store = SqliteStore::open(&scratch.root()).unwrap();
    assert_eq!(count(&store.read().unwrap()), 1, "views do not wait for the writer");
    kill(child);
    increment(&store, Durability::Disk);
    assert_eq!(count(&store.read().unwrap()), 2);
}

#[test]
#[ignore = "a role of death_in_a_transaction_undoes_it_and_frees_the_lock"]
fn hanger() {
    let Some(directory) = directory() else { return };
    let store = SqliteStore::open(&directory.join("root")).unwrap();
    increment(&store, Durability::Process);
    let guard = store.lock().unwrap();
    let tx = store.write(&guard).unwrap();
    tx.put_meta("count", Some("1000")).unwrap();
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
    drop(tx);
}

#[test]
fn the_lock_excludes_other_processes() {
    let scratch = Scratch::new();
    let store = SqliteStore::open(&scratch.root()).unwrap();
    let guard = store.lock().unwrap();
    let mut child = role("locker", scratch.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("waiting")));
    let tx = store.write(&guard).unwrap();
    tx.put_meta("count", Some("7")).unwrap();
    tx.commit(Durability::Process).unwrap();
    drop(guard);
    assert!(child.wait().unwrap().success());
    assert_eq!(count(&store.read().unwrap()), 8);
}

#[test]
#[ignore = "a role of the_lock_excludes_other_processes"]
fn locker() {
    let Some(directory) = directory() else { return };
    let store = SqliteStore::open(&directory.join("root")).unwrap();
    println!("waiting");
    increment(&store, Durability::Process);
}

#[test]
fn killed_writers_leave_a_consistent_file() {
    let scratch = Scratch::new();
    let mut before = 0;
    for round in 0..20u64 {
        let child = start("writer", scratch.path());
        let deadline = Instant::now() + Duration::from_millis(3 + 7 * round);
        // An arbitrary point of its work, not a condition to wait for.
        std::thread::sleep(deadline - Instant::now());
        kill(child);
        let store = SqliteStore::open(&scratch.root()).unwrap();
        drop(store.lock().unwrap());
        let tx = store.read().unwrap();
        let written = count(&tx);
        assert!(written >= before, "{written} of {before} are left");
        assert_eq!(tx.containers().unwrap().len(), written);
        assert_eq!(tx.endpoints_on(id(1, 1)).unwrap().len(), written);
        assert_eq!(tx.lease_count(id(1, 1), portolan_model::Family::V4).unwrap(), written);
        drop(tx);
        before = written;
        let connection = rusqlite::Connection::open(store.path()).unwrap();
        let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");
    }
    assert!(before > 100, "only {before} transactions in all");
    let moved = std::fs::metadata(scratch.root().join("state.db")).unwrap().len();
    assert!(moved > 200_000, "the log was never moved into the file, which has {moved} bytes");
}

#[test]
#[ignore = "a role of killed_writers_leave_a_consistent_file"]
fn writer() {
    let Some(directory) = directory() else { return };
    let store = SqliteStore::open(&directory.join("root")).unwrap();
    println!("ready");
    loop {
        let guard = store.lock().unwrap();
        let tx = store.write(&guard).unwrap();
        let number = count(&tx) as u32 + 1;
        let address = std::net::Ipv4Addr::from(0x0a00_0002 + number);
        let row = endpoint(number, id(2, number), id(1, 1), &[&format!("{address}/8")]);
        tx.put_container(&container(number)).unwrap();
        tx.put_endpoint(&row).unwrap();
        tx.take_lease(row.network, address.into(), row.id, row.mac).unwrap();
        tx.put_meta("count", Some(&number.to_string())).unwrap();
        tx.commit(if number.is_multiple_of(8) { Durability::Disk } else { Durability::Process }).unwrap();
    }
}
