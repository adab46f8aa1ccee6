//! Shortcuts: programs with what they know, or tables with what is in them.

use std::collections::BTreeMap;
use std::io;

use portolan_engine::KernelError;
use portolan_model::IfName;
use portolan_plan::{Element, Object, Shortcut, ShortcutPart, Step, Table};

use super::super::shortcuts::programs::{self, Running};
use super::super::shortcuts::{self, table};
use super::super::{HostKernel, refusal};
use super::{Context, Mode};
use crate::netlink::{Batch, NetlinkError, Socket};
use crate::nft::decode;
use crate::nft::encode::{self, Insist};
use crate::sys;

/// What happens to those of one network.
#[derive(Default)]
struct Changes<'a> {
    unmake: bool,
    /// Under which comment.
    make: Option<String>,
    deleted: Vec<&'a Shortcut>,
    created: Vec<Created<'a>>,
}

/// A part that is to be there.
struct Created<'a> {
    part: &'a Shortcut,
    /// The index of the end of tunnels.
    device: u32,
    /// The index of the host end; 0 for what has none.
    end: u32,
}

impl Context<'_> {
    pub(super) fn shortcuts(&mut self, steps: &[Step]) {
        let kernel = self.kernel;
        let planned = kernel.with_route(|socket| Ok(self.planned(socket, steps)));
        let networks = match planned {
            Ok(networks) => networks,
            Err(error) => return self.failures.push(error),
        };
        if self.mode == Mode::Strict && !self.failures.is_empty() {
            return;
        }
        for (device, changes) in networks {
            let doing = match (&changes.make, changes.unmake) {
                (Some(_), _) => format!("create shortcuts of `{device}`"),
                (None, true) => format!("delete shortcuts of `{device}`"),
                (None, false) => format!("change shortcuts of `{device}`"),
            };
            let outcome = match by_program(kernel, &doing, &device, &changes) {
                Ok(true) => Ok(()),
                Ok(false) => {
                    let insist = self.insist();
                    kernel.with_netfilter(|socket| {
                        by_table(socket, kernel, &device, &changes, insist).map_err(|error| refusal(&doing, &error))
                    })
                }
                Err(error) => Err(error),
            };
            self.failures.extend(outcome.err());
        }
    }

    fn planned<'a>(&mut self, socket: &mut Socket, steps: &'a [Step]) -> BTreeMap<IfName, Changes<'a>> {
        let mut networks: BTreeMap<IfName, Changes<'a>> = BTreeMap::new();
        for step in steps {
            let (before, after) = step.sides();
            if let Some(Object::Shortcut(shortcut)) = before {
                let changes = networks.entry(shortcut.device.clone()).or_default();
                match shortcut.part {
                    ShortcutPart::Table { .. } => changes.unmake = true,
                    _ => changes.deleted.push(shortcut),
                }
            }
            if let Some(Object::Shortcut(shortcut)) = after {
                let Some((device, end)) = self.interfaces_of(socket, shortcut) else { continue };
                let changes = networks.entry(shortcut.device.clone()).or_default();
                if let ShortcutPart::Table { alias } = &shortcut.part {
                    changes.make = Some(alias.clone());
                }
                changes.created.push(Created { part: shortcut, device, end });
            }
        }
        networks
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

/// Changes a program and what it knows; false where there is none and is to be none.
fn by_program(kernel: &HostKernel, doing: &str, device: &IfName, changes: &Changes<'_>) -> Result<bool, KernelError> {
    let refuse = |error: io::Error| shortcuts::refused(doing, &error);
    let index = changes.created.first().map(|created| created.device);
    let Some(index) = index.or_else(|| sys::interface_index(device.as_str())) else { return Ok(false) };
    let running = if kernel.knows_of_none() { None } else { programs::at(index).map_err(refuse)? };
    if let Some(alias) = changes.make.as_ref().filter(|_| kernel.has_programs().unwrap_or_default()) {
        let parts: Vec<_> = changes.created.iter().map(|created| (created.part, created.end)).collect();
        Running::make(index, alias, &parts, running.as_ref()).map_err(refuse)?;
        // From before there were programs.
        return kernel.with_netfilter(|socket| {
            drop_table(socket, device).map_err(|error| refusal(doing, &error))?;
            Ok(true)
        });
    }
    let Some(running) = running else { return Ok(false) };
    if changes.unmake {
        running.unmake(index).map_err(refuse)?;
        return Ok(changes.make.is_none());
    }
    let after: BTreeMap<_, _> = changes.created.iter().map(|after| (after.part.part.key(), after.part)).collect();
    for part in &changes.deleted {
        running.remove(part, after.get(&part.part.key()).copied()).map_err(refuse)?;
    }
    changes.created.iter().try_for_each(|created| running.add(created.part, created.end)).map_err(refuse)?;
    Ok(true)
}

fn drop_table(socket: &mut Socket, device: &IfName) -> Result<(), NetlinkError> {
    if !decode::table_exists(socket, Table::Shortcuts, device.as_str())? {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.begin_nft(None);
    encode::delete_ruleset(&mut batch, device.as_str(), Table::Shortcuts);
    batch.end_nft();
    socket.transact(&batch).map(drop)
}

/// Changes a table in one transaction.
fn by_table(
    socket: &mut Socket,
    kernel: &HostKernel,
    device: &IfName,
    changes: &Changes<'_>,
    insist: Insist,
) -> Result<(), NetlinkError> {
    let name = device.as_str();
    // Keys are all that deleting takes.
    let deleted: Vec<Element> = changes.deleted.iter().flat_map(|part| table::elements(part, 0, 0)).collect();
    let of = |created: &Created<'_>| table::elements(created.part, created.device, created.end);
    let created: Vec<Element> = changes.created.iter().flat_map(of).collect();
    let is_there = match insist {
        Insist::Yes if !changes.unmake => changes.make.is_none(),
        _ => decode::table_exists(socket, Table::Shortcuts, name)?,
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
        encode::delete_elements(&mut batch, name, &in_order(&deleted), insist);
        if insist == Insist::No {
            // What is there with other data cannot be overwritten.
            encode::delete_elements(&mut batch, name, &in_order(&created), insist);
        }
    }
    if changes.make.is_some() || !changes.unmake {
        for created in &changes.created {
            if let ShortcutPart::Near { host_end, .. } = &created.part.part {
                encode::hook_shortcuts(&mut batch, name, host_end.as_str());
            }
        }
        encode::add_elements(&mut batch, name, &in_order(&created), insist);
    }
    batch.end_nft();
    if batch.len() <= 2 {
        return Ok(());
    }
    match socket.transact(&batch) {
        Ok(_) => Ok(()),
        // Packets take the long way then.
        Err(_) if !kernel.takes_tables(socket)? => Ok(()),
        Err(error) => Err(error),
    }
}

/// Elements set by set.
fn in_order(elements: &[Element]) -> Vec<&Element> {
    let mut ordered: Vec<&Element> = elements.iter().collect();
    ordered.sort_by_key(|element| element.set);
    ordered
}
