//! The values of `portolan-cluster` as the client of etcd takes them.

use std::collections::BTreeSet;

use bytes::Bytes;
use portolan_cluster::{Condition, Event, Found, Layout, Operation, Part, View, Write, concerns};
use portolan_etcd::{Client, Compare, Error, KeyValue, Op, Txn};
use portolan_model::Id;

/// What is there of a part at `revision`, which is 0 for now.
pub(super) async fn list(
    client: &Client,
    layout: &Layout,
    part: Part,
    revision: i64,
) -> Result<(i64, impl Iterator<Item = Found<Bytes>> + use<>), Error> {
    let (revision, found) = client.range_at(layout.part(part), revision).await?;
    Ok((revision, found.into_iter().map(as_found)))
}

/// The same of several parts, of each what is there.
async fn list_all(
    client: &Client,
    layout: &Layout,
    parts: &[Part],
    revision: i64,
) -> Result<(i64, Vec<Vec<KeyValue>>), Error> {
    let prefixes: Vec<Vec<u8>> = parts.iter().map(|part| layout.part(*part).into()).collect();
    client.ranges_at(&prefixes, revision).await
}

fn as_found(found: KeyValue) -> Found<Bytes> {
    (found.key, found.value, found.mod_revision)
}

/// What all hosts share, and all that `host` has to know besides, all of one revision: with the networks that it is `asked` for.
pub(super) async fn look(client: &Client, layout: &Layout, host: Id, asked: &BTreeSet<Id>) -> Result<View, Error> {
    let parts = [Part::All, Part::Run(host), Part::Places(host)];
    let (revision, found) = list_all(client, layout, &parts, 0).await?;
    let mut view = View::of(layout, revision, found.into_iter().flatten().map(as_found));
    let networks = concerns(&view, host, asked);
    let parts: Vec<Part> = networks.iter().copied().map(Part::Network).collect();
    let (_, found) = list_all(client, layout, &parts, revision).await?;
    for (network, found) in networks.into_iter().zip(found) {
        view.add(layout, network, revision, found.into_iter().map(as_found));
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
