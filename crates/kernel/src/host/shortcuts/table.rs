//! Shortcuts as elements of their tables of nftables, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_engine::KernelError;
use portolan_model::{Family, IfName, Mac};
use portolan_plan::{Chain, Data, Element, Field, Macs, Set, Shortcut, ShortcutPart, Table, ruleset};

use super::super::{HostKernel, refusal};
use super::Seen;
use crate::netlink::{Batch, NetlinkError, Socket};
use crate::nft::{decode, encode};

/// The elements of a part, with the indexes of the end of the tunnels and of the host end.
pub(in super::super) fn elements(shortcut: &Shortcut, device: u32, end: u32) -> Vec<Element> {
    let element = |set, key, data| Element { set, key, data, owner: shortcut.owner.clone() };
    match &shortcut.part {
        ShortcutPart::Table { .. } => Vec::new(),
        ShortcutPart::Near { host_end, addresses, .. } => addresses
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
        // It knows no way but the tunnel.
        ShortcutPart::Far { block, via, .. } => {
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
fn parts(
    content: &Content,
    device: &IfName,
    indexes: &BTreeMap<String, u32>,
    wanted: &[&Shortcut],
) -> Option<Vec<Shortcut>> {
    let own = indexes.get(device.as_str()).copied();
    let mut near: BTreeMap<IfName, (BTreeSet<IpAddr>, String)> = BTreeMap::new();
    let of_block = |wanted: &&Shortcut| match wanted.part {
        ShortcutPart::Far { block, macs, .. } if wanted.device == *device => Some((block, macs)),
        _ => None,
    };
    let macs: BTreeMap<IpNet, Macs> = wanted.iter().filter_map(of_block).collect();
    let mut parts = Vec::new();
    for element in &content.elements {
        match (element.set, element.key.as_slice(), element.data) {
            (Set::Near(_), [Field::IfName(host_end), Field::Address(address)], Data::Interface(_)) => {
                let of = near.entry(host_end.clone()).or_insert_with(|| (BTreeSet::new(), element.owner.clone()));
                of.0.insert(*address);
            }
            // Who the neighbour is, is its own entry's to say.
            (Set::Far(_), [Field::Prefix(block)], Data::Address(via)) => {
                let nobody = Mac::from_bytes([0; 6]);
                let macs = macs.get(block).copied().unwrap_or(Macs { own: nobody, to: nobody });
                let part = ShortcutPart::Far { block: *block, via, macs, by: None };
                parts.push(Shortcut { device: device.clone(), part, owner: element.owner.clone() });
            }
            _ => {}
        }
    }
    parts.extend(near.into_iter().map(|(host_end, (addresses, owner))| {
        // All go by the queue.
        let is_queued = |part: &ShortcutPart| matches!(part, ShortcutPart::Near { queued: true, host_end: end, .. } if *end == host_end);
        let queued = wanted.iter().any(|wanted| is_queued(&wanted.part));
        let part = ShortcutPart::Near { host_end, addresses, queued };
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

/// Reads all such tables. One that is there serves, also where there could be a program; beside one it is too much.
pub(super) fn observe(
    kernel: &HostKernel,
    indexes: &BTreeMap<String, u32>,
    seen: &mut Seen<'_>,
) -> Result<(), KernelError> {
    kernel.with_netfilter(|socket| {
        let refuse = |error: NetlinkError| refusal("read shortcuts", &error);
        for (name, alias) in decode::tables(socket, Table::Shortcuts).map_err(refuse)? {
            let Ok(device) = name.parse::<IfName>() else { continue };
            if !seen.is_ours(&device, alias.as_deref()) {
                continue;
            }
            let content = read(socket, &device, alias).map_err(refuse)?;
            let is_whole = content.is_whole && !seen.by_program.contains(&device);
            let parts = if is_whole { parts(&content, &device, indexes, seen.wanted) } else { None };
            seen.add(device, &content.alias.unwrap_or_default(), parts);
        }
        Ok(())
    })
}

impl HostKernel {
    /// Whether this kernel can pass packets on at the ingress of interfaces that come later: nftables' family `netdev` with its
    /// statement `fwd`, from Linux 6.4 on. Tried once, by a table that is removed in the transaction which makes it.
    pub(in super::super) fn takes_tables(&self, socket: &mut Socket) -> Result<bool, NetlinkError> {
        if let Some(known) = self.tables.get() {
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
        Ok(*self.tables.get_or_init(|| can))
    }

    /// The same for who has no socket at hand.
    pub(super) fn has_tables(&self) -> Result<bool, KernelError> {
        self.with_netfilter(|socket| self.takes_tables(socket).map_err(|error| refusal("try shortcuts", &error)))
    }
}
