//! A state file that others have written into.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use portolan_engine::{AttachRequest, EndpointRequest, Engine, Error, NetworkRequest, Store, StoreError, Tx};
use portolan_store::SqliteStore;
use rusqlite::Connection;
use rusqlite::types::Value;

use super::docker::fake::FakeKernel;
use super::scratch::Scratch;

/// A state with networks, containers, ports and a pool, all of it in the file.
fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let scratch = Scratch::new();
        let (root, kernel) = (scratch.path().join("root"), FakeKernel::new(7));
        let engine = Engine::new("/root".to_owned(), SqliteStore::open(&root).expect("it can be made"), kernel.clone());
        let mut web = NetworkRequest::new("web".parse().expect("a name"));
        web.subnets = vec!["10.7.0.0/24".parse().expect("a subnet"), "fd00:7::/64".parse().expect("a subnet")];
        web.ipv6 = true;
        engine.create_network(&web).expect("it is the first");
        engine.create_network(&NetworkRequest::new("lab".parse().expect("a name"))).expect("there is room");
        for (name, network) in [("c1", "web"), ("c2", "web"), ("c3", "lab")] {
            let netns = format!("/run/netns/{name}");
            kernel.make_namespace(Path::new(&netns));
            let request = AttachRequest {
                name: Some(name.parse().expect("a name")),
                endpoints: vec![EndpointRequest::new(network)],
                publish: if name == "c1" { vec!["8080-8081:80-81".parse().expect("ports")] } else { Vec::new() },
                ..AttachRequest::namespace(&netns)
            };
            engine.attach(&request).expect("there is room");
        }
        drop(engine);
        let connection = Connection::open(root.join("state.db")).expect("it is there");
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody else has it");
        drop(connection);
        fs::read(root.join("state.db")).expect("it is there")
    })
}

/// That it is about the file, and says so.
fn named(error: &StoreError) {
    assert!(error.to_string().contains("state.db"), "{error}: {:?}", error.source());
}

/// Everything that is read at a start.
fn read(root: &Path) -> Result<(), StoreError> {
    let store = SqliteStore::open(root)?;
    let tx = store.read()?;
    let networks = tx.networks()?;
    let containers = tx.containers()?;
    tx.pools()?;
    tx.revision()?;
    tx.touched_since(0)?;
    tx.transitions(10)?;
    tx.meta("boot")?;
    for network in &networks {
        tx.endpoints_on(network.id)?;
        tx.leases(network.id)?;
    }
    for container in &containers {
        tx.endpoints_of(container.id)?;
        tx.publications_of(container.id)?;
    }
    Ok(())
}

/// The engine's verbs over it: what they say is theirs, what they must not is end.
fn work(root: &Path) {
    fn told<T>(done: Result<T, Error>) {
        if let Err(Error::Store(error)) = done {
            named(&error);
        }
    }
    let kernel = FakeKernel::new(7);
    for name in ["c1", "c2", "c3", "c4"] {
        kernel.make_namespace(Path::new(&format!("/run/netns/{name}")));
    }
    let store = match SqliteStore::open(root) {
        Ok(store) => store,
        Err(error) => return named(&error),
    };
    let engine = Engine::new("/root".to_owned(), store, kernel);
    told(engine.follow(None, |_| {}));
    told(engine.verify());
    told(engine.reconcile());
    told(engine.containers().map(|all| {
        for info in &all {
            told(engine.hosts_file(info));
        }
    }));
    let request = AttachRequest {
        name: Some("c4".parse().expect("a name")),
        endpoints: vec![EndpointRequest::new("web")],
        publish: vec!["9090:90".parse().expect("a port")],
        ..AttachRequest::namespace("/run/netns/c4")
    };
    told(engine.attach(&request));
    told(engine.publish("c1", &["8082:82".parse().expect("a port")]));
    told(engine.gc());
    told(engine.detach("c1"));
    told(engine.detach("c2"));
    told(engine.remove_network("web"));
}

fn write(file: &[u8]) -> Scratch {
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    fs::create_dir(&root).expect("it can be made");
    fs::write(root.join("state.db"), file).expect("it can be written");
    scratch
}

/// The file with changes of four bytes each: where, what, and how.
pub fn file(bytes: &[u8]) {
    let mut file = whole().to_vec();
    for change in bytes.chunks_exact(4).take(16) {
        if file.is_empty() {
            break;
        }
        let [high, low, value, how] = *change else { unreachable!("chunks of four") };
        let at = usize::from(u16::from_be_bytes([high, low])) * if how & 0x80 == 0 { 1 } else { 8 };
        let at = at % file.len();
        match how & 0x7f {
            0 => file.truncate(at),
            1 => {
                let start = at / 2048 * 2048;
                let end = (start + 2048).min(file.len());
                file[start..end].fill(value);
            }
            // Pages change places.
            2 if file.len() >= 4096 => {
                let (one, other) = (at / 2048, usize::from(value) % (file.len() / 2048));
                for byte in 0..2048 {
                    if one * 2048 + byte < file.len() {
                        file.swap(one * 2048 + byte, other * 2048 + byte);
                    }
                }
            }
            _ => file[at] = value,
        }
    }
    let scratch = write(&file);
    let root = scratch.path().join("root");
    if let Err(error) = read(&root) {
        named(&error);
    }
    work(&root);
}

/// What reading says of rows that say something else; none if it takes them.
pub fn refusal(bytes: &[u8]) -> Option<String> {
    let scratch = changed(bytes);
    read(&scratch.path().join("root")).err().map(|error| error.to_string())
}

/// The state with rows that say something else.
fn changed(bytes: &[u8]) -> Scratch {
    const TABLES: [&str; 9] =
        ["meta", "network", "claim", "container", "endpoint", "lease", "cursor", "pool", "publication"];
    let scratch = write(whole());
    let root = scratch.path().join("root");
    let connection = Connection::open(root.join("state.db")).expect("it is there");
    for line in bytes.split(|byte| *byte == b'\n').take(6) {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let (Some(table), Some(column), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
        let (Ok(table), Ok(column)) = (std::str::from_utf8(table), std::str::from_utf8(column)) else { continue };
        let is_word =
            |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if !TABLES.contains(&table) || !is_word(column) {
            continue;
        }
        // JSON may be a change of what is there: `{"key": value}`.
        let value = match std::str::from_utf8(value) {
            Ok(text) => text.parse().map_or_else(|_| Value::Text(text.to_owned()), Value::Integer),
            Err(_) => Value::Blob(value.to_vec()),
        };
        let is_patch = column == "body" && matches!(&value, Value::Text(text) if text.starts_with('+'));
        let to = if is_patch { "json_patch(body, ltrim(?1, '+'))" } else { "?1" };
        // Of tables that number their rows the first one, of the others as many as may be alike.
        let which = match table {
            "network" | "container" | "endpoint" | "publication" => {
                format!("WHERE seq = (SELECT min(seq) FROM {table})")
            }
            _ => String::new(),
        };
        let statement = format!("UPDATE OR IGNORE {table} SET {column} = {to} {which}");
        // Another column, or one that another row has: then it stays as it was.
        let _ = connection.execute(&statement, [value]);
    }
    scratch
}

/// Rows that say something else: lines of `TABLE COLUMN VALUE`, of a row each.
pub fn rows(bytes: &[u8]) {
    let scratch = changed(bytes);
    let root = scratch.path().join("root");
    match read(&root) {
        Ok(()) => written_again(&root),
        Err(error) => named(&error),
    }
    work(&root);
}

/// What can be read is the same after it was written.
fn written_again(root: &Path) {
    let store = SqliteStore::open(root).expect("it was just read");
    let guard = store.lock().expect("nobody else has it");
    let tx = store.write(&guard).expect("it was just read");
    for network in tx.networks().expect("they were just read") {
        if tx.put_network(&network).is_ok() {
            assert_eq!(tx.network(network.id).expect("it was just written"), Some(network));
        }
    }
    for container in tx.containers().expect("they were just read") {
        if tx.put_container(&container).is_ok() {
            assert_eq!(tx.container(container.id).expect("it was just written"), Some(container));
        }
    }
}
