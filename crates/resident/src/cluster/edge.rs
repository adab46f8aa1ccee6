//! The values of `portolan-cluster` as the client of etcd takes them.

use std::collections::BTreeSet;

use bytes::Bytes;
use portolan_cluster::{Condition, Event, Found, Layout, Operation, Part, View, Write, concerns};
use portolan_etcd::{Client, Compare, Error, Op, Txn};
use portolan_model::Id;

/// What is there of a part at `revision`, which is 0 for now.
pub(super) async fn list(
    client: &Client,
    layout: &Layout,
    part: Part,
    revision: i64,
) -> Result<(i64, impl Iterator<Item = Found<Bytes>> + use<>), Error> {
    let (revision, found) = client.range_at(layout.part(part), revision).await?;
    Ok((revision, found.into_iter().map(|found| (found.key, found.value, found.mod_revision))))
}

/// What all hosts share, and all that `host` has to know besides, all of one revision: with the networks that it is `asked` for.
pub(super) async fn look(client: &Client, layout: &Layout, host: Id, asked: &BTreeSet<Id>) -> Result<View, Error> {
    let (revision, all) = list(client, layout, Part::All, 0).await?;
    let (_, run) = list(client, layout, Part::Run(host), revision).await?;
    let (_, places) = list(client, layout, Part::Places(host), revision).await?;
    let mut view = View::of(layout, revision, all.chain(run).chain(places));
    for network in concerns(&view, host, asked) {
        let (_, found) = list(client, layout, Part::Network(network), revision).await?;
        view.add(layout, network, revision, found);
    }
    Ok(view)
}

/// A transaction; what lasts while the host is alive goes with `lease`.
pub fn transaction(layout: &Layout, write: &Write, lease: Option<i64>) -> Txn {
    let compare = |condition: &Condition| match condition {
        Condition::Absent(key) => Compare::create_revision(layout.text(key), 0),
        Condition::Present(key) => Compare::exists(layout.text(key)),
        Condition::Is(key, value) => Compare::value(layout.text(key), value.as_bytes()),
        Condition::WrittenAt(key, revision) => Compare::mod_revision(layout.text(key), *revision),
        Condition::NoEndpointsOn(network) => Compare::none_under(layout.endpoints(*network)),
        Condition::NoEndpointsAt(network, host) => Compare::none_under(layout.endpoints_at(*network, *host)),
    };
    let operation = |operation: &Operation| match operation {
        Operation::Put(key, value) => Op::put(layout.text(key), value.as_bytes(), None),
        Operation::PutWhileAlive(key, value) => Op::put(layout.text(key), value.as_bytes(), lease),
        Operation::Delete(key) => Op::delete(layout.text(key)),
        Operation::DeleteAllOf(part) => Op::delete_prefix(layout.part(*part)),
    };
    Txn { compares: write.only_if.iter().map(compare).collect(), then: write.then.iter().map(operation).collect() }
}

/// An event of a watch.
pub(super) fn event(event: portolan_etcd::Event) -> Event {
    match event {
        portolan_etcd::Event::Put(found) => {
            Event::Put { key: found.key.to_vec(), value: found.value.to_vec(), revision: found.mod_revision }
        }
        portolan_etcd::Event::Delete { key, .. } => Event::Delete { key },
    }
}
