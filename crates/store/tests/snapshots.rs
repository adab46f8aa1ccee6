//! The file format, as reviewed text: the schema and one row of each kind.
//!
//! A difference here is a new format. It needs a migration and a new number, unless no version with the old one
//! was released: then `PORTOLAN_BLESS=1` rewrites the snapshot.

mod common;

use std::path::Path;

use common::*;
use portolan_engine::{Durability, Remotes, Store, Tx};
use portolan_model::{Driver, Network, RemoteBlock};
use portolan_store::SqliteStore;
use rusqlite::{Connection, params};

/// A connection of its own to a file with one row of each kind.
fn filled(scratch: &Scratch) -> Connection {
    let store = SqliteStore::open(&scratch.root()).unwrap();
    let guard = store.lock().unwrap();
    let tx = store.write(&guard).unwrap();
    let mut one = container(1);
    one.sandbox = Some(sandbox(4, 4026532000));
    let mut row = endpoint(1, one.id, id(1, 1), &["10.0.0.2/8", "fd00::2/64"]);
    row.phase = pending();
    tx.put_meta("boot", Some("x")).unwrap();
    tx.put_network(&network(1, "web")).unwrap();
    tx.put_container(&one).unwrap();
    tx.put_endpoint(&row).unwrap();
    tx.take_lease(row.network, parse("10.0.0.2"), row.id, row.mac).unwrap();
    tx.put_lease_cursor(row.network, parse("10.0.0.0/8"), parse("10.0.0.2")).unwrap();
    tx.put_publication(&publication(one.id, "tcp", Some("127.0.0.1"), "8080-8081")).unwrap();
    tx.put_pool(&pool(1, "10.9.0.0/24")).unwrap();
    let other = peer(1);
    let block = RemoteBlock { network: id(1, 1), block: parse("10.0.0.64/26"), host: other.host };
    tx.put_peer(&other).unwrap();
    tx.put_remote_block(&block).unwrap();
    tx.put_remote_endpoint(&remote_endpoint(1, id(1, 1), other.host)).unwrap();
    tx.commit(Durability::Process).unwrap();
    Connection::open(store.path()).unwrap()
}

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("PORTOLAN_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(reviewed == text, "`{}` differs; it is now:\n{text}", path.display());
}

#[test]
fn schema() {
    let scratch = Scratch::new();
    let connection = filled(&scratch);
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).unwrap();
    let mut text = format!("-- user_version {}, page_size {}\n", number("user_version"), number("page_size"));
    let mut statement =
        connection.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid").unwrap();
    for sql in statement.query_map([], |row| row.get::<_, String>(0)).unwrap() {
        text.push_str(&sql.unwrap());
        text.push_str(";\n");
    }
    compare("schema-v5.sql", &text);
}

#[test]
fn rows() {
    let scratch = Scratch::new();
    let connection = filled(&scratch);
    let mut text = String::new();
    let tables = ["meta", "network", "container", "endpoint", "lease", "cursor", "publication", "pool", "peer"];
    for table in tables.into_iter().chain(["remote_block", "remote_endpoint", "change"]) {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let names: Vec<_> = statement.column_names().map(str::to_owned).collect();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            text.push_str(&format!("{table}\n"));
            for (index, name) in names.iter().enumerate() {
                use rusqlite::types::ValueRef;
                let value = match row.get_ref(index).unwrap() {
                    ValueRef::Null => "-".to_owned(),
                    // When it left the settled state depends on the clock.
                    ValueRef::Integer(_) if name == "moving" => "(time)".to_owned(),
                    ValueRef::Integer(number) => number.to_string(),
                    ValueRef::Real(number) => number.to_string(),
                    ValueRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                    ValueRef::Blob(bytes) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
                };
                text.push_str(&format!("  {name}: {value}\n"));
            }
        }
    }
    compare("rows-v5.txt", &text);
}

/// A file of every earlier format becomes the same as a new one.
#[test]
fn earlier_formats_are_brought_up_to_date() {
    for format in [1, 2, 3, 4] {
        bring_up_to_date(format);
    }
}

fn bring_up_to_date(format: i64) {
    let snapshots = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.root()).unwrap();
    let connection = Connection::open(scratch.root().join("state.db")).unwrap();
    let schema = std::fs::read_to_string(snapshots.join(format!("schema-v{format}.sql"))).unwrap();
    connection.pragma_update(None, "page_size", 2048).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.execute_batch(&schema).unwrap();
    connection.execute("INSERT INTO meta VALUES ('boot', 'before')", []).unwrap();
    let web = network(1, "web");
    let lan = Network { driver: Driver::Macvlan, ..network(2, "lan") };
    for row in [&web, &lan] {
        let body = serde_json::to_string(row).unwrap();
        let columns = params![row.id.as_bytes(), row.name.as_str(), body];
        connection.execute("INSERT INTO network (id, name, body) VALUES (?1, ?2, ?3)", columns).unwrap();
        if format >= 3 && row.driver == Driver::Bridge {
            let device = params![row.id.as_bytes(), row.bridge.as_str()];
            connection.execute("UPDATE network SET device = ?2, ruled = 1 WHERE id = ?1", device).unwrap();
            let claim = params![[10u8, 0, 0, 0], [10u8, 255, 255, 255], row.id.as_bytes()];
            connection.execute("INSERT INTO claim VALUES (4, ?1, ?2, ?3)", claim).unwrap();
        }
    }
    connection.pragma_update(None, "user_version", format).unwrap();
    drop(connection);

    let store = SqliteStore::open(&scratch.root()).unwrap();
    let tx = store.read().unwrap();
    assert_eq!(tx.meta("boot").unwrap().as_deref(), Some("before"));
    assert_eq!(tx.revision().unwrap(), 0);
    assert_eq!(tx.network_of_device(web.bridge.as_str()).unwrap(), Some(web.clone()));
    assert_eq!(tx.network_of_device(lan.bridge.as_str()).unwrap(), None, "its parent is the host's");
    assert_eq!(tx.claimant(parse("10.9.0.0/16")).unwrap(), Some(web.id));
    assert!(tx.has_user_bridges().unwrap());
    assert_eq!(tx.pools().unwrap(), []);
    drop(tx);
    let connection = Connection::open(store.path()).unwrap();
    let mut statement =
        connection.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid").unwrap();
    let now: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let reviewed = std::fs::read_to_string(snapshots.join("schema-v5.sql")).unwrap();
    assert_eq!(now.join(";\n") + ";\n", reviewed.split_once('\n').unwrap().1);
}
