//! The driver `iptables`: what [`portolan_plan::iptables`] writes, given to iptables-restore(8) and ip6tables-restore(8),
//! one batch for each family that a verb has rules of.

use std::collections::BTreeMap;

use portolan_engine::{KernelError, Kind};
use portolan_model::Family;
use portolan_plan::iptables::{self, Found, Saved};
use portolan_plan::{Element, Firewall, Object, Objects, Ruleset, Step};

use super::apply::Mode;
use super::changes::Changes;
use crate::iptables::{families, restore, save as read};

/// What each family's tables hold.
fn saved() -> Result<BTreeMap<Family, Saved>, KernelError> {
    families().map(|family| Ok((family, Saved::parse(&read(family)?)))).collect()
}

/// Reads our rules.
pub(super) fn observe(firewall: &Firewall) -> Result<Objects, KernelError> {
    let ruleset = |name: String| Object::Ruleset(Ruleset { firewall: Firewall { name, ..firewall.clone() } });
    Ok(match iptables::find(firewall, &saved()?) {
        Found::Nothing => Objects::new(),
        Found::Whole(elements) => {
            elements.into_iter().map(Object::Element).chain([ruleset(firewall.name.clone())]).collect()
        }
        // What somebody changed is made anew with all its elements, so it counts as another one.
        Found::Damaged => [ruleset(format!("{} (damaged)", firewall.name))].into_iter().collect(),
    })
}

/// Takes `steps`, all of them about rules, in one batch for each family.
pub(super) fn apply(firewall: &Firewall, steps: &[Step], mode: Mode) -> Result<(), KernelError> {
    let Changes { gone, new, makes, unmakes } = Changes::of(steps);
    if let Some(name) = new.iter().find_map(|element| iptables::unspeakable(element)) {
        return Err(KernelError {
            doing: format!("write rules for interface `{name}`"),
            reason: "iptables would take its name for a pattern".to_owned(),
            errno: 0,
            kind: Kind::Unsupported,
            hint: Some("rename the interface, or choose another --firewall-driver".to_owned()),
            about: None,
        });
    }
    if makes {
        each(|family| Ok(Some(iptables::create(firewall, family, &save(family)?, &new))))
    } else if unmakes {
        each(|family| Ok(iptables::delete(firewall, &save(family)?)))
    } else {
        change(firewall, &gone, &new, mode)
    }
}

fn save(family: Family) -> Result<Saved, KernelError> {
    Ok(Saved::parse(&read(family)?))
}

/// Gives each family its batch, if it has one.
fn each(batch: impl Fn(Family) -> Result<Option<String>, KernelError>) -> Result<(), KernelError> {
    for family in families() {
        if let Some(text) = batch(family)? {
            restore(family, &text)?;
        }
    }
    Ok(())
}

/// Removes and adds elements: at once where all is as expected, after a look where it need not be.
fn change(firewall: &Firewall, gone: &[&Element], new: &[&Element], mode: Mode) -> Result<(), KernelError> {
    let expected = || each(|family| Ok(iptables::change(firewall, family, gone, new)));
    let mend = || each(|family| Ok(iptables::mend(firewall, family, &save(family)?, gone, new)));
    match mode {
        // What is there already would be there twice.
        Mode::Lenient if !new.is_empty() => mend(),
        Mode::Lenient => expected().or_else(|_| mend()),
        Mode::Strict => expected().map_err(|error| match saved().map(|saved| iptables::find(firewall, &saved)) {
            // Somebody took our chains, or part of them: reconciling helps.
            Ok(Found::Nothing | Found::Damaged) => KernelError { errno: 0, kind: Kind::NotFound, ..error },
            Ok(Found::Whole(_)) | Err(_) => error,
        }),
    }
}
