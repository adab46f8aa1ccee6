//! The values of `portolan-cluster` as the client of etcd takes them.

use std::collections::BTreeSet;

use bytes::Bytes;
use portolan_cluster::{Condition, Event, Found, Layout, Operation, Part, View, Write, concerns};
use portolan_etcd::{Bundled, Client, Compare, Error, KeyValue, Op, Txn};
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

/// The same of several parts, of each what is there; from bundles where there are any.
async fn look_at(
    client: &Client,
    layout: &Layout,
    parts: &[Part],
    revision: i64,
) -> Result<(i64, Vec<Vec<KeyValue>>), Error> {
    let (bundled, others): (Vec<Part>, Vec<Part>) = parts.iter().partition(|part| part.is_bundled());
    let bundled: Vec<Bundled> = bundled.into_iter().map(|part| bundled_part(layout, part)).collect();
    let others: Vec<Vec<u8>> = others.into_iter().map(|part| layout.part(part).into()).collect();
    client.look_at(&bundled, &others, revision).await
}

fn bundled_part(layout: &Layout, part: Part) -> Bundled {
    Bundled {
        prefix: layout.part(part).into(),
        apart: layout.leased(part).into(),
        written: layout.written(part).into(),
        bundle: layout.bundle(part).into(),
    }
}

/// Has a part be there as a bundle, too, if that is worth it; whether it was made.
///
/// # Errors
/// What etcd says.
pub async fn bundle(client: &Client, layout: &Layout, part: Part) -> Result<bool, Error> {
    client.bundle(&bundled_part(layout, part)).await
}

fn as_found(found: KeyValue) -> Found<Bytes> {
    (found.key, found.value, found.mod_revision)
}

/// What all hosts share, and all that `host` has to know besides, all of one revision: with the networks that it is `asked` for.
pub(super) async fn look(client: &Client, layout: &Layout, host: Id, asked: &BTreeSet<Id>) -> Result<View, Error> {
    let parts = [Part::All, Part::Run(host), Part::Places(host)];
    let (revision, found) = look_at(client, layout, &parts, 0).await?;
    let mut view = View::of(layout, revision, found.into_iter().flatten().map(as_found));
    let networks = concerns(&view, host, asked);
    let parts: Vec<Part> = networks.iter().copied().map(Part::Network).collect();
    let (_, found) = look_at(client, layout, &parts, revision).await?;
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
    let then = write.then.iter().map(operation).chain(written(layout, write));
    Txn { compares: write.only_if.iter().map(compare).collect(), then: then.collect() }
}

/// What goes with it for the sake of bundles: of each part in which something is written, that it is; of each that goes, that and its
/// bundle go with it.
fn written(layout: &Layout, write: &Write) -> impl Iterator<Item = Op> {
    let part = |operation: &Operation| match operation {
        Operation::Put(key, _) | Operation::PutWhileAlive(key, _) | Operation::Delete(key) => key.bundled(),
        Operation::DeleteAllOf(_) => None,
    };
    let gone = |operation: &Operation| match operation {
        Operation::DeleteAllOf(part) => Some(*part).filter(|part| part.is_bundled()),
        _ => None,
    };
    let gone: BTreeSet<Part> = write.then.iter().filter_map(gone).collect();
    let touched: BTreeSet<Part> = write.then.iter().filter_map(part).filter(|part| !gone.contains(part)).collect();
    let puts: Vec<Op> = touched.into_iter().map(|part| Op::put(layout.written(part), "", None)).collect();
    let deletes =
        gone.into_iter().flat_map(|part| [Op::delete(layout.written(part)), Op::delete_prefix(layout.bundle(part))]);
    puts.into_iter().chain(deletes.collect::<Vec<Op>>())
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use portolan_cluster::{ClusterNetwork, EndpointRecord, Key};
    use portolan_model::{PerFamily, Vni};

    use super::*;

    fn id(byte: u8) -> Id {
        Id::from_bytes([byte; 32])
    }

    fn endpoint() -> EndpointRecord {
        EndpointRecord {
            container: id(9),
            name: "c".to_owned(),
            aliases: Vec::new(),
            addresses: Vec::new(),
            mac: None,
            unwell: false,
        }
    }

    fn network() -> ClusterNetwork {
        ClusterNetwork {
            name: "web".parse().unwrap(),
            vni: Vni::new(4097).unwrap(),
            prefixes: PerFamily { v4: Some("10.1.0.0/16".parse().unwrap()), v6: None },
            block_lengths: PerFamily { v4: 26, v6: 112 },
            internal: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            created: 0,
        }
    }

    /// The parts in which a transaction says that something was written.
    fn said(write: &Write, of: &[Part]) -> Vec<Part> {
        let layout = Layout::default();
        let txn = transaction(&layout, write, Some(7));
        assert!(txn.then.len() <= 128, "{} operations", txn.then.len());
        let is_said = |part: &Part| txn.then.contains(&Op::put(layout.written(*part), "", None));
        of.iter().copied().filter(is_said).collect()
    }

    #[test]
    fn whoever_writes_says_in_which_part() {
        let (me, web) = (id(1), id(2));
        let parts = [Part::All, Part::Network(web)];
        let none = BTreeMap::new();
        let one = BTreeMap::from([((web, id(3)), endpoint())]);
        assert_eq!(said(&Write::create_network(web, &network(), 0), &parts), [Part::All]);
        assert_eq!(said(&Write::drain(me, true), &parts), [Part::All]);
        assert_eq!(said(&Write::remove_host(me), &parts), [Part::All]);
        assert_eq!(said(&Write::endpoints(me, &none, &one)[0], &parts), [Part::Network(web)]);
        assert_eq!(said(&Write::endpoints(me, &one, &none)[0], &parts), [Part::Network(web)]);
        let block = "10.1.0.0/26".parse().unwrap();
        assert_eq!(said(&Write::claim(me, web, block, 26, &View::default()), &parts), [Part::Network(web)]);
        let promoted = Write::promote_network(me, web, &network(), &BTreeSet::from([block]), 0);
        assert_eq!(said(&promoted, &parts), parts);
        // They go with leases, of whose end nobody says anything.
        assert_eq!(said(&Write::want(me, web, portolan_model::Family::V4), &parts), []);
        assert_eq!(said(&Write::check(me, id(4)), &parts), []);
        assert_eq!(said(&Write::live(me, "run", None), &parts), []);
    }

    #[test]
    fn each_may_be_in_another_part() {
        let wanted = (0..=255).map(|number| ((id(number), id(3)), endpoint())).collect();
        for write in Write::endpoints(id(1), &wanted, &BTreeMap::new()) {
            let networks = write.then.iter().map(|operation| match operation {
                portolan_cluster::Operation::Delete(Key::Endpoint { network, .. }) => Part::Network(*network),
                other => panic!("{other:?}"),
            });
            let networks: Vec<Part> = networks.collect();
            assert_eq!(said(&write, &networks), networks);
        }
    }

    #[test]
    fn a_bundle_goes_with_its_network() {
        let layout = Layout::default();
        let part = Part::Network(id(2));
        let txn = transaction(&layout, &Write::remove_network(id(2), &network()), None);
        for op in [
            Op::put(layout.written(Part::All), "", None),
            Op::delete(layout.written(part)),
            Op::delete_prefix(layout.bundle(part)),
        ] {
            assert!(txn.then.contains(&op), "{op:?}");
        }
        assert!(!txn.then.contains(&Op::put(layout.written(part), "", None)));
    }
}
