//! The values of `portolan-cluster` as the client of etcd takes them.

use portolan_cluster::{Condition, Event, Layout, Operation, Write};
use portolan_etcd::{Client, Compare, Error, Op, Txn};

/// All that is there: the revision, and each key with its value and the revision that wrote it.
pub(super) async fn list(client: &Client, layout: &Layout) -> Result<(i64, Vec<(Vec<u8>, Vec<u8>, i64)>), Error> {
    let (revision, all) = client.range_all(layout.root()).await?;
    Ok((revision, all.into_iter().map(|found| (found.key, found.value, found.mod_revision)).collect()))
}

/// A transaction; what lasts while the host is alive goes with `lease`.
pub(super) fn transaction(layout: &Layout, write: &Write, lease: Option<i64>) -> Txn {
    let compare = |condition: &Condition| match condition {
        Condition::Absent(key) => Compare::create_revision(layout.text(key), 0),
        Condition::Present(key) => Compare::exists(layout.text(key)),
        Condition::Is(key, value) => Compare::value(layout.text(key), value.as_bytes()),
        Condition::WrittenAt(key, revision) => Compare::mod_revision(layout.text(key), *revision),
        Condition::NoEndpointsOn(network) => Compare::none_under(layout.endpoints(*network)),
    };
    let operation = |operation: &Operation| match operation {
        Operation::Put(key, value) => Op::put(layout.text(key), value.as_bytes(), None),
        Operation::PutWhileAlive(key, value) => Op::put(layout.text(key), value.as_bytes(), lease),
        Operation::Delete(key) => Op::delete(layout.text(key)),
        Operation::DeleteBlocksOf(network) => Op::delete_prefix(layout.blocks(*network)),
        Operation::DeleteAnswersTo(check) => Op::delete_prefix(layout.answers(*check)),
    };
    Txn { compares: write.only_if.iter().map(compare).collect(), then: write.then.iter().map(operation).collect() }
}

/// An event of a watch.
pub(super) fn event(event: portolan_etcd::Event) -> Event {
    match event {
        portolan_etcd::Event::Put(found) => {
            Event::Put { key: found.key, value: found.value, revision: found.mod_revision }
        }
        portolan_etcd::Event::Delete { key, .. } => Event::Delete { key },
    }
}
