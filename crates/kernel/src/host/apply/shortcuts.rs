//! Tables of shortcuts, and what is in them.

use std::collections::{BTreeMap, BTreeSet};

use portolan_model::IfName;
use portolan_plan::{Element, Object, Shortcut, ShortcutPart, Step, Table};

use super::super::{HostKernel, refusal, shortcuts};
use super::{Context, Mode};
use crate::netlink::{Batch, NetlinkError, Socket};
use crate::nft::decode;
use crate::nft::encode::{self, Insist};

/// What happens to one table.
#[derive(Default)]
struct Changes {
    unmake: bool,
    /// Under which comment.
    make: Option<String>,
    deleted: Vec<Element>,
    created: Vec<Element>,
    hooked: BTreeSet<IfName>,
}

impl Context<'_> {
    pub(super) fn shortcuts(&mut self, steps: &[Step]) {
        let kernel = self.kernel;
        let planned = kernel.with_route(|socket| Ok(self.planned(socket, steps)));
        let tables = match planned {
            Ok(tables) => tables,
            Err(error) => return self.failures.push(error),
        };
        if self.mode == Mode::Strict && !self.failures.is_empty() {
            return;
        }
        for (device, changes) in tables {
            let doing = match (&changes.make, changes.unmake) {
                (Some(_), _) => format!("create shortcuts of `{device}`"),
                (None, true) => format!("delete shortcuts of `{device}`"),
                (None, false) => format!("change shortcuts of `{device}`"),
            };
            let insist = self.insist();
            let outcome = kernel.with_netfilter(|socket| {
                carry_out(socket, kernel, &device, &changes, insist).map_err(|error| refusal(&doing, &error))
            });
            self.failures.extend(outcome.err());
        }
    }

    fn planned(&mut self, socket: &mut Socket, steps: &[Step]) -> BTreeMap<IfName, Changes> {
        let mut tables: BTreeMap<IfName, Changes> = BTreeMap::new();
        for step in steps {
            let (before, after) = step.sides();
            if let Some(Object::Shortcut(shortcut)) = before {
                let changes = tables.entry(shortcut.device.clone()).or_default();
                match shortcut.part {
                    ShortcutPart::Table { .. } => changes.unmake = true,
                    // Keys are all it takes.
                    _ => changes.deleted.extend(shortcuts::elements(shortcut, 0, 0)),
                }
            }
            if let Some(Object::Shortcut(shortcut)) = after {
                let Some((device, end)) = self.interfaces_of(socket, shortcut) else { continue };
                let changes = tables.entry(shortcut.device.clone()).or_default();
                changes.created.extend(shortcuts::elements(shortcut, device, end));
                match &shortcut.part {
                    ShortcutPart::Table { alias } => changes.make = Some(alias.clone()),
                    ShortcutPart::Near { host_end, .. } => drop(changes.hooked.insert(host_end.clone())),
                    ShortcutPart::Far { .. } => {}
                }
            }
        }
        tables
    }

    /// The indexes of the end of the tunnels and of the host end; the latter 0 for what has none.
    fn interfaces_of(&mut self, socket: &mut Socket, shortcut: &Shortcut) -> Option<(u32, u32)> {
        let end = match &shortcut.part {
            ShortcutPart::Near { host_end, .. } => self.index(socket, host_end)?,
            ShortcutPart::Table { .. } | ShortcutPart::Far { .. } => 0,
        };
        Some((self.index(socket, &shortcut.device)?, end))
    }
}

/// Changes a table in one transaction.
fn carry_out(
    socket: &mut Socket,
    kernel: &HostKernel,
    device: &IfName,
    changes: &Changes,
    insist: Insist,
) -> Result<(), NetlinkError> {
    let name = device.as_str();
    let is_there = match insist {
        Insist::Yes => changes.unmake || changes.make.is_none(),
        Insist::No => decode::table_exists(socket, Table::Shortcuts, name)?,
    };
    let mut batch = Batch::new();
    batch.begin_nft(None);
    if changes.unmake || changes.make.is_some() {
        if is_there {
            encode::delete_ruleset(&mut batch, name, Table::Shortcuts);
        }
        if let Some(alias) = &changes.make {
            encode::create_shortcuts(&mut batch, name, alias);
        }
    } else if !is_there {
        // It is made anew with all that belongs into it as soon as somebody looks.
        return Ok(());
    } else {
        encode::delete_elements(&mut batch, name, &in_order(&changes.deleted), insist);
        if insist == Insist::No {
            // What is there with other data cannot be overwritten.
            encode::delete_elements(&mut batch, name, &in_order(&changes.created), insist);
        }
    }
    if changes.make.is_some() || !changes.unmake {
        for interface in &changes.hooked {
            encode::hook_shortcuts(&mut batch, name, interface.as_str());
        }
        encode::add_elements(&mut batch, name, &in_order(&changes.created), insist);
    }
    batch.end_nft();
    if batch.len() <= 2 {
        return Ok(());
    }
    match socket.transact(&batch) {
        Ok(_) => Ok(()),
        // Packets take the long way then.
        Err(_) if !kernel.has_shortcuts(socket)? => Ok(()),
        Err(error) => Err(error),
    }
}

/// Elements set by set.
fn in_order(elements: &[Element]) -> Vec<&Element> {
    let mut ordered: Vec<&Element> = elements.iter().collect();
    ordered.sort_by_key(|element| element.set);
    ordered
}
