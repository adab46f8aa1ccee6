//! The rules as iptables(8) and ip6tables(8) have them: the same decisions as [`crate::ruleset`], for hosts without
//! nftables or whose rules live in iptables.
//!
//! Chains of our own, called from those of the tables; constant rules in constant chains, and for each kind of element a
//! chain in which one element is one rule, so that an attach appends and a detach deletes. Everything here is text for
//! iptables-restore(8) or from iptables-save(8).
//!
//! # What differs from nftables
//!
//! The guard has no counterpart: these tables see no frames. Nor have networks without a bridge, which are refused: that a
//! gateway answers its own network only is a rule here that knows one interface. An `ACCEPT` ends a table, so what our `FORWARD` lets pass
//! later rules do not see; towards the host itself we accept only names, and leave the rest to the rules that follow.

mod chains;
mod door;
mod elements;
mod saved;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use portolan_model::{Family, IfName};

pub use chains::{Chain, Table};
pub use door::{Closed, Door, Obstacle, State};
pub use saved::Saved;

use crate::firewall::Firewall;
use crate::object::{Element, Field, Object, Objects};
use chains::Names;
use saved::Spec;

/// What iptables-save(8) showed of a root's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Neither chains nor calls.
    Nothing,
    /// All chains with exactly their rules and those of these elements.
    Whole(Vec<Element>),
    /// Something else.
    Damaged,
}

/// Tells what is there of `firewall`'s rules, from what was saved of each family. One that is not in `saved` is one that
/// the host does not speak.
pub fn find(firewall: &Firewall, saved: &BTreeMap<Family, Saved>) -> Found {
    let names = Names::of(firewall);
    let is_there = |saved: &Saved| {
        Chain::ALL.iter().any(|chain| saved.rules(chain.table(), &names.chain(*chain)).is_some())
            || calls_in(&names, saved).any(|found| !found.is_empty())
    };
    if !saved.values().any(is_there) {
        return Found::Nothing;
    }
    let mut elements: Objects = Objects::new();
    for (family, saved) in saved {
        for chain in Chain::ALL {
            let rules = saved.rules(chain.table(), &names.chain(*chain)).unwrap_or_default();
            elements.extend(
                rules
                    .iter()
                    .filter_map(|(_, spec)| elements::element(&names, *family, *chain, spec))
                    .map(Object::Element),
            );
        }
    }
    let elements: Vec<Element> = elements
        .into_iter()
        .filter_map(|object| match object {
            Object::Element(element) => Some(element),
            _ => None,
        })
        .collect();
    if saved.iter().all(|(family, saved)| is_whole(&names, *family, saved, &elements)) {
        Found::Whole(elements)
    } else {
        Found::Damaged
    }
}

/// For each of our calls, the rules that make it, as printed.
fn calls_in<'a>(names: &Names, saved: &'a Saved) -> impl Iterator<Item = Vec<&'a str>> {
    names.calls().into_iter().map(|(table, chain, call)| {
        let call = Spec::parse(&call);
        let rules = saved.rules(table, chain).unwrap_or_default();
        rules.iter().filter(|(_, spec)| *spec == call).map(|(text, _)| text.as_str()).collect()
    })
}

fn is_whole(names: &Names, family: Family, saved: &Saved, elements: &[Element]) -> bool {
    let mut of_elements = by_chain(names, family, elements);
    let has_its_rules = |chain: &Chain| {
        let Some(found) = saved.rules(chain.table(), &names.chain(*chain)) else { return false };
        let constants = names.constants(*chain, family);
        let Some(split) = found.len().checked_sub(constants.len()) else { return false };
        let (changing, constant) = found.split_at(split);
        let mut changing: Vec<&Spec> = changing.iter().map(|(_, spec)| spec).collect();
        changing.sort();
        let wanted = of_elements.entry(*chain).or_default();
        wanted.sort();
        changing.into_iter().eq(wanted.iter())
            && constant.iter().map(|(_, spec)| spec.clone()).eq(constants.iter().map(|rule| Spec::parse(rule)))
    };
    Chain::ALL.iter().all(has_its_rules) && calls_in(names, saved).all(|found| found.len() == 1)
}

fn by_chain(names: &Names, family: Family, elements: &[Element]) -> BTreeMap<Chain, Vec<Spec>> {
    let mut found: BTreeMap<Chain, Vec<Spec>> = BTreeMap::new();
    for (chain, rule) in elements.iter().flat_map(|element| elements::rules(names, family, element)) {
        found.entry(chain).or_default().push(Spec::parse(&rule));
    }
    found
}

/// Lines for iptables-restore(8), by table. Each table is one transaction.
#[derive(Debug, Default)]
struct Batch(BTreeMap<Table, String>);

impl Batch {
    fn line(&mut self, table: Table, line: impl std::fmt::Display) {
        let _ = writeln!(self.0.entry(table).or_default(), "{line}");
    }

    /// Adds a rule where it is before the constants of its chain: at the end where there are none.
    fn add(&mut self, names: &Names, family: Family, chain: Chain, rule: &str) {
        let how = if names.constants(chain, family).is_empty() { "-A" } else { "-I" };
        self.line(chain.table(), format_args!("{how} {} {rule}", names.chain(chain)));
    }

    fn delete(&mut self, names: &Names, chain: Chain, rule: &str) {
        self.line(chain.table(), format_args!("-D {} {rule}", names.chain(chain)));
    }

    /// The text; none if there is nothing to do.
    fn finish(self) -> Option<String> {
        let table = |(table, lines): (Table, String)| format!("*{}\n{lines}COMMIT\n", table.name());
        (!self.0.is_empty()).then(|| self.0.into_iter().map(table).collect())
    }
}

/// Makes all chains, with the rules of `elements`, and calls them first of all from the chains of the tables, whatever
/// `saved` shows of them.
pub fn create(firewall: &Firewall, family: Family, saved: &Saved, elements: &[&Element]) -> String {
    let names = Names::of(firewall);
    let mut batch = Batch::default();
    // A declared chain that is there is emptied.
    for chain in Chain::ALL {
        batch.line(chain.table(), format_args!(":{} - [0:0]", names.chain(*chain)));
    }
    for (chain, rule) in elements.iter().flat_map(|element| elements::rules(&names, family, element)) {
        batch.line(chain.table(), format_args!("-A {} {rule}", names.chain(chain)));
    }
    for chain in Chain::ALL {
        for rule in names.constants(*chain, family) {
            batch.line(chain.table(), format_args!("-A {} {rule}", names.chain(*chain)));
        }
    }
    let found: Vec<Vec<&str>> = calls_in(&names, saved).collect();
    for ((table, chain, call), found) in names.calls().into_iter().zip(found) {
        // One that is there stays where its owner wants it.
        for extra in found.iter().skip(1) {
            batch.line(table, format_args!("-D {chain} {extra}"));
        }
        if found.is_empty() {
            batch.line(table, format_args!("-I {chain} {call}"));
        }
    }
    batch.finish().expect("there are chains")
}

/// Removes all that `saved` shows of our rules; none if that is nothing.
pub fn delete(firewall: &Firewall, saved: &Saved) -> Option<String> {
    let names = Names::of(firewall);
    let mut batch = Batch::default();
    let found: Vec<Vec<&str>> = calls_in(&names, saved).collect();
    for ((table, chain, _), found) in names.calls().into_iter().zip(found) {
        for call in found {
            batch.line(table, format_args!("-D {chain} {call}"));
        }
    }
    let there = || Chain::ALL.iter().filter(|chain| saved.rules(chain.table(), &names.chain(**chain)).is_some());
    for verb in ["-F", "-X"] {
        for chain in there() {
            batch.line(chain.table(), format_args!("{verb} {}", names.chain(*chain)));
        }
    }
    batch.finish()
}

/// Removes and adds the rules of elements, all of which must be there or not be there. None if this family has none.
pub fn change(firewall: &Firewall, family: Family, gone: &[&Element], new: &[&Element]) -> Option<String> {
    let names = Names::of(firewall);
    let mut batch = Batch::default();
    for (chain, rule) in gone.iter().flat_map(|element| elements::rules(&names, family, element)) {
        batch.delete(&names, chain, &rule);
    }
    for (chain, rule) in new.iter().flat_map(|element| elements::rules(&names, family, element)) {
        batch.add(&names, family, chain, &rule);
    }
    batch.finish()
}

/// Removes and adds the rules of elements as far as `saved` shows that they are there, or are not: none if all is so.
///
/// Rules for chains that are not there are left out.
pub fn mend(firewall: &Firewall, family: Family, saved: &Saved, gone: &[&Element], new: &[&Element]) -> Option<String> {
    let names = Names::of(firewall);
    let mut batch = Batch::default();
    let holders = |chain: Chain, rule: &str| {
        let spec = Spec::parse(rule);
        let rules = saved.rules(chain.table(), &names.chain(chain))?;
        Some(rules.iter().filter(|(_, found)| *found == spec).count())
    };
    for (chain, rule) in gone.iter().flat_map(|element| elements::rules(&names, family, element)) {
        for _ in 0..holders(chain, &rule).unwrap_or_default() {
            batch.delete(&names, chain, &rule);
        }
    }
    let goes = |element: &Element| gone.contains(&element);
    for element in new {
        for (chain, rule) in elements::rules(&names, family, element) {
            if holders(chain, &rule).is_some_and(|holders| holders == 0 || goes(element)) {
                batch.add(&names, family, chain, &rule);
            }
        }
    }
    batch.finish()
}

/// The interface of `element` that iptables cannot name: `+` at the end stands for any further characters, and some others
/// for something else than themselves (iptables(8), `-i`).
pub fn unspeakable(element: &Element) -> Option<&IfName> {
    let is_pattern = |name: &str| name.ends_with('+') || name.starts_with('-') || name.contains(['\'', '!']);
    element.key.iter().find_map(|field| match field {
        Field::IfName(name) if is_pattern(name.as_str()) => Some(name),
        _ => None,
    })
}

/// All rules with those of `elements`, as iptables-save(8) prints them.
pub fn render(firewall: &Firewall, family: Family, elements: &[Element]) -> String {
    create(firewall, family, &Saved::default(), &elements.iter().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
