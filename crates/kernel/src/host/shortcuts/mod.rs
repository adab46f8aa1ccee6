//! Shortcuts in the kernel: as a program at interfaces, or where there can be none as a table of nftables.

pub(super) mod inlets;
mod program;
pub(super) mod programs;
pub(super) mod table;
mod translate;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use portolan_engine::KernelError;
use portolan_model::IfName;
use portolan_plan::{Object, Objects, Shortcut, ShortcutPart};

use super::{HostKernel, failure, refusal};
use crate::netlink::NetlinkError;
use crate::sys;
pub use programs::Taken;

/// What the interfaces that have shortcuts begin with.
const END_OF_TUNNELS: &str = "vx-";
/// What the encrypted link begins with.
const LINK: &str = "ps";

/// What the kernel said of a program or a map.
pub(super) fn refused(doing: &str, error: &io::Error) -> KernelError {
    let error = NetlinkError::from_errno(error.raw_os_error().unwrap_or(libc::EIO));
    match error.errno() {
        // A map has no room for more.
        libc::E2BIG | libc::ENOSPC => failure(doing, error.to_string(), libc::EXFULL),
        _ => refusal(doing, &error),
    }
}

/// Reads where what comes translated comes in: by a program, whoever carries out the rules.
pub(super) fn observe_inlets(
    kernel: &HostKernel,
    root: &str,
    desired: &Objects,
    indexes: &BTreeMap<String, u32>,
    found: &mut Objects,
) -> Result<(), KernelError> {
    let names = indexes.iter().map(|(name, index)| (*index, name.as_str())).collect();
    let read = inlets::read(&portolan_plan::seal_name(root), &names);
    found.extend(read.map_err(|error| refused("read the encrypted link", &error))?.into_iter().map(Object::Inlet));
    let is_missing = |object: &Object| matches!(object, Object::Inlet(_)) && found.find(&object.key()).is_none();
    let missing: Vec<Object> = desired.iter().map(|(_, object)| object).filter(|it| is_missing(it)).cloned().collect();
    // Where there can be none, none is missing.
    if !missing.is_empty() && !kernel.has_programs()? {
        found.extend(missing);
    }
    Ok(())
}

/// Reads all shortcuts of this root, and those that `desired` speaks of.
pub(super) fn observe(
    kernel: &HostKernel,
    root: &str,
    desired: &Objects,
    indexes: &BTreeMap<String, u32>,
    found: &mut Objects,
) -> Result<(), KernelError> {
    let wanted: Vec<&Shortcut> = desired
        .iter()
        .filter_map(|(_, object)| match object {
            Object::Shortcut(shortcut) => Some(shortcut),
            _ => None,
        })
        .collect();
    let mut seen = Seen {
        of_root: format!("portolan:{root}:network:"),
        missing: wanted.iter().map(|shortcut| &shortcut.device).collect(),
        by_program: BTreeSet::new(),
        wanted: &wanted,
        found,
    };
    if kernel.has_programs()? {
        for (name, index) in indexes.iter().filter(|(name, _)| name.starts_with(END_OF_TUNNELS)) {
            let Ok(device) = name.parse::<IfName>() else { continue };
            let refuse = |error: io::Error| refused("read shortcuts", &error);
            let Some(running) = programs::at(*index).map_err(refuse)? else { continue };
            if seen.is_ours(&device, Some(running.alias())) {
                let parts = running.parts(&device, indexes, &wanted).map_err(refuse)?;
                seen.by_program.insert(device.clone());
                seen.add(device, running.alias(), parts);
            }
        }
    }
    table::observe(kernel, indexes, &mut seen)?;
    // Where there can be none, none is missing.
    if !seen.missing.is_empty() && !kernel.has_programs()? && !kernel.has_tables()? {
        found.extend(wanted.into_iter().cloned().map(Object::Shortcut));
    }
    Ok(())
}

/// How many packets took a shortcut to each address behind an end of tunnels of the calling thread's namespace, since it is there:
/// host ends do not see them. Nothing where they go another way.
///
/// # Errors
/// What the kernel said.
pub fn took_shortcuts(device: &IfName) -> Result<Vec<(IpAddr, Taken)>, NetlinkError> {
    let Some(index) = sys::interface_index(device.as_str()) else { return Ok(Vec::new()) };
    Ok(programs::at(index)?.map(|running| running.taken()).transpose()?.unwrap_or_default())
}

/// An end of tunnels, or the encrypted link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndOfTunnels {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether its program is wherever it should be; nothing without one.
    pub is_whole: Option<bool>,
}

/// The ends of tunnels of the calling thread's namespace, and its encrypted link.
///
/// # Errors
/// What the kernel said.
pub fn programs() -> Result<Vec<EndOfTunnels>, NetlinkError> {
    let mut ends = Vec::new();
    for (name, index) in sys::interfaces()? {
        let is_whole = match name.as_str() {
            name if name.starts_with(END_OF_TUNNELS) => {
                programs::at(index)?.map(|running| running.is_whole()).transpose()?
            }
            name if name.starts_with(LINK) => inlets::is_at(index)?.then_some(true),
            _ => continue,
        };
        ends.push(EndOfTunnels { name, index, is_whole });
    }
    Ok(ends)
}

/// Takes the program of an end of tunnels, or of the encrypted link, away, as somebody else might.
///
/// # Errors
/// What the kernel said.
#[doc(hidden)]
pub fn remove_program(index: u32) -> Result<(), NetlinkError> {
    inlets::take_away(index)?;
    Ok(programs::at(index)?.map_or(Ok(()), |running| running.unmake(index))?)
}

/// Whether a program passes packets on at an end of tunnels.
pub(super) fn runs_program(device: &IfName) -> Result<bool, KernelError> {
    let Some(index) = sys::interface_index(device.as_str()) else { return Ok(false) };
    Ok(programs::at(index).map_err(|error| refused("look for a program", &error))?.is_some())
}

/// What was read of shortcuts so far.
struct Seen<'a> {
    of_root: String,
    missing: BTreeSet<&'a IfName>,
    by_program: BTreeSet<IfName>,
    wanted: &'a [&'a Shortcut],
    found: &'a mut Objects,
}

impl Seen<'_> {
    /// Whether it is for us to say what becomes of the shortcuts of `device`, which are `alias`' by their own word.
    fn is_ours(&mut self, device: &IfName, alias: Option<&str>) -> bool {
        self.missing.remove(device)
            || self.by_program.contains(device)
            || alias.is_some_and(|alias| alias.starts_with(&self.of_root))
    }

    /// Adds them; without parts they are made anew.
    fn add(&mut self, device: IfName, alias: &str, parts: Option<Vec<Shortcut>>) {
        // The whole carries no owner of its own.
        let is_table = |part: &ShortcutPart| matches!(part, ShortcutPart::Table { .. });
        let table = self.wanted.iter().find(|shortcut| shortcut.device == device && is_table(&shortcut.part));
        let owner = table.map(|table| table.owner.clone()).unwrap_or_default();
        // Nor what was read of it by the other means.
        if parts.is_none() {
            self.found.retain(|object| !matches!(object, Object::Shortcut(shortcut) if shortcut.device == device));
        }
        let alias = if parts.is_some() { alias.to_owned() } else { format!("{alias} (damaged)") };
        self.found.insert(Object::Shortcut(Shortcut { device, part: ShortcutPart::Table { alias }, owner }));
        self.found.extend(parts.into_iter().flatten().map(Object::Shortcut));
    }
}

impl HostKernel {
    /// From now on, has nftables pass packets on, as where there can be no programs.
    #[doc(hidden)]
    pub fn without_programs(self) -> Self {
        self.programs.set(Some(false));
        self
    }

    /// Whether it was found that there can be no programs. Whoever did not try looks for what others made.
    pub(super) fn knows_of_none(&self) -> bool {
        self.programs.get() == Some(false)
    }

    /// Whether this kernel runs programs at interfaces for us, which pass packets on for half of what a table costs. Tried once.
    pub(super) fn has_programs(&self) -> Result<bool, KernelError> {
        if let Some(known) = self.programs.get() {
            return Ok(known);
        }
        let can = programs::can().map_err(|error| refused("try a program", &error))?;
        self.programs.set(Some(can));
        Ok(can)
    }
}
