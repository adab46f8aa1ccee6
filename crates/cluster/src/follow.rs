//! Which networks a host follows, and what it says of that.
//!
//! A host has to know all of a network on which it has blocks or endpoints, before it can use them. [`Key::Place`] tells which those
//! are: it is written in the transactions that write blocks and endpoints, whoever does it, and taken back only when nothing was
//! written since of which it could tell.
//!
//! [`Key::Place`]: crate::Key::Place

use std::collections::BTreeSet;

use portolan_model::Id;

use crate::view::View;
use crate::write::Write;

/// The networks that `host` follows: those that it is on, and those that it is `asked` for, by containers here or by who wants
/// something of one.
pub fn concerns(view: &View, host: Id, asked: &BTreeSet<Id>) -> BTreeSet<Id> {
    let places = view.places(host).map(|(network, _)| network);
    // What was just given to it may be seen before that it is there.
    let has = view.followed().filter(|network| has_any(view, host, *network));
    let all = places.chain(has).chain(asked.iter().copied());
    all.filter(|network| view.networks().contains_key(network)).collect()
}

/// Has others see that `host` is not on networks any more of which it has nothing, nor is `asked` for.
pub fn abandoned(view: &View, host: Id, asked: &BTreeSet<Id>) -> Vec<Write> {
    let is_over = |(network, written): &(Id, i64)| {
        let is_gone = !view.networks().contains_key(network);
        // What was written with it is seen already, if it is there.
        let is_seen = view.revision_of(*network) >= *written;
        is_gone || (is_seen && !asked.contains(network) && !has_any(view, host, *network))
    };
    let over = view.places(host).filter(is_over);
    over.map(|(network, written)| Write::leave_place(host, network, written)).collect()
}

fn has_any(view: &View, host: Id, network: Id) -> bool {
    view.endpoints_of(network, host).next().is_some() || view.blocks_on(network).any(|(_, holder)| holder == host)
}
