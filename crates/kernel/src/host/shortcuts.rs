//! Shortcuts as elements of their tables, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_engine::KernelError;
use portolan_model::{Family, IfName};
use portolan_plan::{Chain, Data, Element, Field, Object, Objects, Set, Shortcut, ShortcutPart, Table, ruleset};

use super::{HostKernel, refusal};
use crate::netlink::{Batch, NetlinkError, Socket};
use crate::nft::{decode, encode};

/// The elements of a part, with the indexes of the end of the tunnels and of the host end.
pub(super) fn elements(shortcut: &Shortcut, device: u32, end: u32) -> Vec<Element> {
    let element = |set, key, data| Element { set, key, data, owner: shortcut.owner.clone() };
    match &shortcut.part {
        ShortcutPart::Table { .. } => Vec::new(),
        ShortcutPart::Near { host_end, addresses } => addresses
            .iter()
            .flat_map(|address| {
                let (family, here) = (Family::of(*address), Field::Address(*address));
                let near = vec![Field::IfName(host_end.clone()), here.clone()];
                [
                    element(Set::Near(family), near, Data::Interface(device)),
                    element(Set::Here(family), vec![here], Data::Interface(end)),
                ]
            })
            .collect(),
        ShortcutPart::Far { block, via } => {
            let (family, key) = (Family::of(block.addr()), vec![Field::Prefix(*block)]);
            vec![
                element(Set::Far(family), key.clone(), Data::Address(*via)),
                element(Set::Beyond(family), key, Data::Member),
            ]
        }
    }
}

/// What a table holds, as it was read.
struct Content {
    alias: Option<String>,
    /// Whether chains and rules are ours.
    is_whole: bool,
    /// The interfaces at whose ingress `shortcut_out` is.
    hooked: BTreeSet<String>,
    elements: Vec<Element>,
}

/// The parts that `content` is made of, owners included; none where it is not as we leave it: whatever there is of such a table
/// is made anew.
fn parts(content: &Content, device: &IfName, indexes: &BTreeMap<String, u32>) -> Option<Vec<Shortcut>> {
    let own = indexes.get(device.as_str()).copied();
    let mut near: BTreeMap<IfName, (BTreeSet<IpAddr>, String)> = BTreeMap::new();
    let mut parts = Vec::new();
    for element in &content.elements {
        match (element.set, element.key.as_slice(), element.data) {
            (Set::Near(_), [Field::IfName(host_end), Field::Address(address)], Data::Interface(_)) => {
                let of = near.entry(host_end.clone()).or_insert_with(|| (BTreeSet::new(), element.owner.clone()));
                of.0.insert(*address);
            }
            (Set::Far(_), [Field::Prefix(block)], Data::Address(via)) => parts.push(Shortcut {
                device: device.clone(),
                part: ShortcutPart::Far { block: *block, via },
                owner: element.owner.clone(),
            }),
            _ => {}
        }
    }
    parts.extend(near.into_iter().map(|(host_end, (addresses, owner))| {
        let part = ShortcutPart::Near { host_end, addresses };
        Shortcut { device: device.clone(), part, owner }
    }));
    // That these and no others make up all there is says that both halves of each agree, and that the interfaces are those.
    let mut all = Vec::new();
    for part in &parts {
        let end = match &part.part {
            ShortcutPart::Near { host_end, .. } if !content.hooked.contains(host_end.as_str()) => return None,
            ShortcutPart::Near { host_end, .. } => *indexes.get(host_end.as_str())?,
            ShortcutPart::Table { .. } | ShortcutPart::Far { .. } => 0,
        };
        all.extend(elements(part, own?, end));
    }
    let is_same = all.iter().collect::<BTreeSet<_>>() == content.elements.iter().collect::<BTreeSet<_>>();
    is_same.then_some(parts)
}

fn read(socket: &mut Socket, device: &IfName, alias: Option<String>) -> Result<Content, NetlinkError> {
    let name = device.as_str();
    let mut rules = decode::rules(socket, Table::Shortcuts, name)?;
    let mut hooked = decode::hooked(socket, name)?;
    let mut is_whole = hooked.len() == Chain::SHORTCUTS.len();
    for chain in Chain::SHORTCUTS {
        let (found, wanted) = (rules.remove(chain.name()).unwrap_or_default(), ruleset::rules(chain));
        is_whole &=
            found.len() == wanted.len() && found.iter().zip(&wanted).all(|(is, should)| is.comment == should.comment);
        is_whole &= hooked.get(chain.name()).is_some_and(|interfaces| interfaces.contains(name));
    }
    is_whole &= rules.is_empty();
    let mut elements = Vec::new();
    for set in Set::SHORTCUTS {
        let (found, unknown) = decode::elements(socket, name, set)?;
        is_whole &= unknown == 0;
        elements.extend(found);
    }
    let hooked = hooked.remove(Chain::ShortcutOut.name()).unwrap_or_default();
    Ok(Content { alias, is_whole, hooked, elements })
}

/// Reads all tables of shortcuts of this root, and those that `desired` speaks of.
pub(super) fn observe(
    kernel: &HostKernel,
    root: &str,
    desired: &Objects,
    indexes: &BTreeMap<String, u32>,
    found: &mut Objects,
) -> Result<(), KernelError> {
    let wanted = || {
        desired.iter().filter_map(|(_, object)| match object {
            Object::Shortcut(shortcut) => Some(shortcut),
            _ => None,
        })
    };
    let of_root = format!("portolan:{root}:network:");
    kernel.with_netfilter(|socket| {
        let refuse = |error: NetlinkError| refusal("read shortcuts", &error);
        let mut missing: BTreeSet<&IfName> = wanted().map(|shortcut| &shortcut.device).collect();
        for (name, alias) in decode::tables(socket, Table::Shortcuts).map_err(refuse)? {
            let Ok(device) = name.parse::<IfName>() else { continue };
            let is_ours = alias.as_ref().is_some_and(|alias| alias.starts_with(&of_root));
            if !missing.remove(&device) && !is_ours {
                continue;
            }
            let content = read(socket, &device, alias).map_err(refuse)?;
            let parts = if content.is_whole { parts(&content, &device, indexes) } else { None };
            // It carries no owner of its own.
            let is_table = |part: &ShortcutPart| matches!(part, ShortcutPart::Table { .. });
            let table = wanted().find(|shortcut| shortcut.device == device && is_table(&shortcut.part));
            let owner = table.map(|table| table.owner.clone()).unwrap_or_default();
            let alias = content.alias.unwrap_or_default();
            let alias = if parts.is_some() { alias } else { format!("{alias} (damaged)") };
            found.insert(Object::Shortcut(Shortcut { device, part: ShortcutPart::Table { alias }, owner }));
            found.extend(parts.into_iter().flatten().map(Object::Shortcut));
        }
        // Where there can be none, none is missing.
        if !missing.is_empty() && !kernel.has_shortcuts(socket).map_err(refuse)? {
            found.extend(wanted().cloned().map(Object::Shortcut));
        }
        Ok(())
    })
}

impl HostKernel {
    /// Whether this kernel can pass packets on at the ingress of interfaces that come later: nftables' family `netdev` with its
    /// statement `fwd`, from Linux 6.4 on. Tried once, by a table that is removed in the transaction which makes it.
    pub(super) fn has_shortcuts(&self, socket: &mut Socket) -> Result<bool, NetlinkError> {
        if let Some(known) = self.shortcuts.get() {
            return Ok(*known);
        }
        let mut batch = Batch::new();
        batch.begin_nft(None);
        encode::try_shortcuts(&mut batch);
        batch.end_nft();
        let can = match socket.transact(&batch) {
            Ok(_) => true,
            Err(error) if [libc::EOPNOTSUPP, libc::ENOENT, libc::EINVAL].contains(&error.errno()) => {
                tracing::info!(%error, "packets between hosts are routed: this kernel has no other way");
                false
            }
            Err(error) => return Err(error),
        };
        Ok(*self.shortcuts.get_or_init(|| can))
    }
}
