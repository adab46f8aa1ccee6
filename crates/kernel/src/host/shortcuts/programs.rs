//! Shortcuts as a program and its maps (Linux 6.6): one for each end of tunnels, at the ingress of that and of the host ends of
//! containers. It lives as long as it is at an interface, whoever put it there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use portolan_model::{IfName, Mac, Vni};
use portolan_plan::{Macs, Shortcut, ShortcutPart, Translated};

use super::program::{self, Maps, far, here};
use super::translate;
use crate::bpf::{self, Fd, Map, MapKind};
use crate::sys;

/// The loopback interface's index, in every namespace.
const LOOPBACK: u32 = 1;
/// Addresses of containers of one network on one host.
const MAX_HERE: u32 = 1 << 14;
/// Blocks of other hosts.
const MAX_FAR: u32 = 1 << 16;
/// Bytes of who something is there for, with a zero at its end; the longest names of a container and a network fit.
pub(super) const TEXT: usize = 160;
const HERE: usize = here::OWNER + TEXT;
const FAR: usize = far::OWNER + TEXT;
/// The only key of `whose`.
const ONLY: [u8; 4] = [0; 4];

/// A program that is at interfaces, with its maps.
#[derive(Debug)]
pub(in super::super) struct Running {
    program: Fd,
    id: u32,
    here: Map,
    far: Map,
    /// Whose it is: the alias of its end of tunnels.
    alias: String,
    /// Whether it is as this process would write it.
    is_current: bool,
}

/// What a container's host end is in the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Near {
    interface: u32,
    queued: bool,
    owner: String,
}

/// How many packets took a shortcut to a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Packets.
    pub packets: u64,
    /// Their bytes, with the headers of Ethernet.
    pub bytes: u64,
}

/// What all programs of ours are called, before a number that says which text they have.
const OURS: &str = "portolan_";

fn name() -> String {
    name_of(&program::program(0, Maps { here: 0, far: 0, whose: 0 }))
}

/// Whether a program is called as one of ours.
pub(super) fn is_name_of_ours(name: &str) -> bool {
    name.starts_with(OURS)
}

/// What a program is called that has this text.
pub(super) fn name_of(text: &[u64]) -> String {
    // FNV-1a.
    let add = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = text.iter().flat_map(|word| word.to_le_bytes()).fold(0x811c_9dc5, add);
    format!("{OURS}{:06x}", hash >> 8)
}

pub(super) fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(super) fn put_text(to: &mut [u8], text: &str) {
    let length = text.len().min(TEXT - 1);
    to[..length].copy_from_slice(&text.as_bytes()[..length]);
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn counter(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// An address as a key: IPv4 in `::ffff:0:0/96`.
fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn address(key: &[u8]) -> Option<IpAddr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(key).ok()?).to_canonical())
}

fn block_key(block: IpNet) -> [u8; 20] {
    let bits = u32::from(block.prefix_len()) + if block.addr().is_ipv4() { 96 } else { 0 };
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&bits.to_ne_bytes());
    bytes[4..].copy_from_slice(&key(block.network()));
    bytes
}

fn block(key: &[u8]) -> Option<IpNet> {
    let (bits, address) = (number(key, 0), address(key.get(4..)?)?);
    let bits = if address.is_ipv4() { bits.checked_sub(96)? } else { bits };
    IpNet::new(address, u8::try_from(bits).ok()?).ok()
}

/// Without its link a packet goes by none.
fn far_value(via: IpAddr, macs: Macs, by: Option<&Translated>, owner: &str) -> [u8; FAR] {
    let mut value = [0; FAR];
    let family = if via.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    value[..4].copy_from_slice(&family.to_ne_bytes());
    match via {
        IpAddr::V4(via) => value[4..8].copy_from_slice(&via.octets()),
        IpAddr::V6(via) => value[4..far::NEIGHBOUR].copy_from_slice(&via.octets()),
    }
    if let Some(by) = by {
        let link = sys::interface_index(by.link.as_str()).unwrap_or(u32::MAX);
        value[far::LINK..far::TO].copy_from_slice(&link.to_ne_bytes());
        value[far::TO..far::FROM].copy_from_slice(&translate::start(by.to, by.vni));
        value[far::FROM..far::MACS].copy_from_slice(&translate::start(by.own, by.vni));
    }
    value[far::MACS..far::MACS + 6].copy_from_slice(&macs.to.octets());
    value[far::MACS + 6..far::OWNER].copy_from_slice(&macs.own.octets());
    put_text(&mut value[far::OWNER..], owner);
    value
}

fn macs(value: &[u8]) -> Option<Macs> {
    let mac = |at: usize| Some(Mac::from_bytes(value.get(at..at + 6)?.try_into().ok()?));
    Some(Macs { to: mac(far::MACS)?, own: mac(far::MACS + 6)? })
}

/// How packets go by the link, if they do. Of addresses the prefix alone is known.
fn by(value: &[u8], names: &BTreeMap<u32, &str>) -> Option<Translated> {
    let link = names.get(&number(value, far::LINK))?.parse().ok()?;
    let prefix = |at: usize| {
        let mut octets = [0; 16];
        octets[..6].copy_from_slice(value.get(at..at + 6)?);
        Some(Ipv6Addr::from(octets))
    };
    let vni = u32::from_be_bytes(value.get(far::TO + 8..far::FROM)?.try_into().ok()?);
    Some(Translated { link, own: prefix(far::FROM)?, to: prefix(far::TO)?, vni: Vni::new(vni).ok()? })
}

fn via(value: &[u8]) -> Option<IpAddr> {
    match i32::from_ne_bytes(value.get(..4)?.try_into().ok()?) {
        libc::AF_INET => Some(IpAddr::from(<[u8; 4]>::try_from(value.get(4..8)?).ok()?)),
        libc::AF_INET6 => Some(IpAddr::from(<[u8; 16]>::try_from(value.get(4..far::NEIGHBOUR)?).ok()?)),
        _ => None,
    }
}

impl Near {
    fn value(&self) -> [u8; HERE] {
        let mut value = [0; HERE];
        value[here::INTERFACE..][..4].copy_from_slice(&self.interface.to_ne_bytes());
        value[here::QUEUED..][..4].copy_from_slice(&u32::from(self.queued).to_ne_bytes());
        put_text(&mut value[here::OWNER..], &self.owner);
        value
    }

    fn read(value: &[u8]) -> Self {
        let (interface, queued) = (number(value, here::INTERFACE), number(value, here::QUEUED) != 0);
        Self { interface, queued, owner: text(value.get(here::OWNER..).unwrap_or_default()) }
    }
}

/// The programs of ours at an interface; none where the kernel has none or does not say.
fn ours(interface: u32) -> io::Result<Vec<Running>> {
    let current = name();
    let mut ours = Vec::new();
    for bpf::Program { name, id, maps, fd } in bpf::at_ingress(interface, is_name_of_ours)? {
        let mut maps: BTreeMap<String, Map> = maps.into_iter().collect();
        let (Some(here), Some(far), Some(whose)) = (maps.remove("here"), maps.remove("far"), maps.remove("whose"))
        else {
            continue;
        };
        let alias = whose.get(&ONLY)?.map(|alias| text(&alias)).unwrap_or_default();
        ours.push(Running { program: fd, id, here, far, alias, is_current: name == current });
    }
    Ok(ours)
}

/// The program that passes packets on at an end of tunnels, if one does.
pub(in super::super) fn at(device: u32) -> io::Result<Option<Running>> {
    match ours(device) {
        Ok(ours) => Ok(ours.into_iter().next()),
        // The kernel is older, nobody is to ask it, or the interface went.
        Err(error) if is_refused(&error) || error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the kernel has no such thing, or not for us.
pub(in super::super) fn is_refused(error: &io::Error) -> bool {
    const REFUSED: [i32; 6] = [libc::EPERM, libc::EACCES, libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::E2BIG];
    error.raw_os_error().is_some_and(|errno| REFUSED.contains(&errno))
}

/// Whether the kernel takes the program, and has a place for it. Nothing is left of it.
pub(in super::super) fn can() -> io::Result<bool> {
    let tried = bpf::attached(LOOPBACK).and_then(|_| Running::load(LOOPBACK, ""));
    match tried {
        Ok(_) => Ok(true),
        Err(error) if is_refused(&error) => {
            tracing::info!(%error, "packets between hosts are not passed on by programs");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Has `new` see what comes in by an interface, and no other program of ours.
fn put(new: &Running, interface: u32) -> io::Result<()> {
    let there = ours(interface)?;
    if there.iter().any(|other| other.id == new.id) {
        return Ok(());
    }
    match there.first() {
        Some(old) => bpf::replace(interface, &old.program, &new.program),
        None => bpf::attach(interface, &new.program),
    }
}

impl Running {
    /// A program for an end of tunnels, which is nowhere yet.
    fn load(device: u32, alias: &str) -> io::Result<Self> {
        let here = Map::create("here", MapKind::Hash, 16, HERE, MAX_HERE)?;
        let far = Map::create("far", MapKind::Prefixes, 20, FAR, MAX_FAR)?;
        let whose = Map::create("whose", MapKind::Hash, ONLY.len(), TEXT, 1)?;
        let mut value = [0; TEXT];
        put_text(&mut value, alias);
        whose.put(&ONLY, &value)?;
        let maps = Maps { here: here.number(), far: far.number(), whose: whose.number() };
        let program = bpf::load(&name(), &program::program(device, maps))?;
        let id = bpf::id(&program)?;
        Ok(Self { program, id, here, far, alias: alias.to_owned(), is_current: true })
    }

    /// Makes it with all of its parts, in place of the one there is; each with the index of its host end, if it has one.
    pub(in super::super) fn make(
        device: u32,
        alias: &str,
        parts: &[(&Shortcut, u32)],
        before: Option<&Self>,
    ) -> io::Result<()> {
        let new = Self::load(device, alias)?;
        for (part, end) in parts {
            new.fill(part, *end, before.unwrap_or(&new))?;
        }
        // Out of the tunnels first: what comes by them finds no tracked connection that saw only answers.
        put(&new, device)?;
        let ends: BTreeSet<u32> = parts.iter().map(|(_, end)| *end).filter(|end| *end != 0).collect();
        for end in &ends {
            new.hook(*end)?;
        }
        if let Some(before) = before {
            before.unhook(before.ends()?.into_iter().filter(|end| !ends.contains(end)))?;
        }
        Ok(())
    }

    /// Takes it from all of its interfaces.
    pub(in super::super) fn unmake(&self, device: u32) -> io::Result<()> {
        self.unhook(self.ends()?.into_iter().chain([device]))
    }

    /// Adds a part, or has it be another; `end` is the index of its host end.
    pub(in super::super) fn add(&self, part: &Shortcut, end: u32) -> io::Result<()> {
        self.fill(part, end, self)?;
        if end == 0 { Ok(()) } else { self.hook(end) }
    }

    /// Removes a part, which may be gone already, but for what it is to have in common with `after`.
    pub(in super::super) fn remove(&self, part: &Shortcut, after: Option<&Shortcut>) -> io::Result<()> {
        match (&part.part, after.map(|after| &after.part)) {
            (ShortcutPart::Table { .. }, _) | (ShortcutPart::Far { .. }, Some(_)) => Ok(()),
            (ShortcutPart::Far { block, .. }, None) => remove(&self.far, &block_key(*block)),
            (ShortcutPart::Near { host_end, addresses, .. }, after) => {
                let stays = |address: &&IpAddr| match after {
                    Some(ShortcutPart::Near { addresses, .. }) => addresses.contains(*address),
                    _ => false,
                };
                for address in addresses.iter().filter(|address| !stays(address)) {
                    remove(&self.here, &key(*address))?;
                }
                if after.is_some() { Ok(()) } else { self.unhook(sys::interface_index(host_end.as_str())) }
            }
        }
    }

    /// What was counted `before` goes on from there.
    fn fill(&self, part: &Shortcut, end: u32, before: &Self) -> io::Result<()> {
        match &part.part {
            ShortcutPart::Table { .. } => Ok(()),
            ShortcutPart::Far { block, via, macs, by } => {
                self.far.put(&block_key(*block), &far_value(*via, *macs, by.as_ref(), &part.owner))
            }
            ShortcutPart::Near { addresses, queued, .. } => {
                let mut value = Near { interface: end, queued: *queued, owner: part.owner.clone() }.value();
                let counted = here::PACKETS..here::OWNER;
                for address in addresses {
                    let known = before.here.get(&key(*address))?.filter(|known| Near::read(known).interface == end);
                    match known.as_ref().and_then(|known| known.get(counted.clone())) {
                        Some(known) => value[counted.clone()].copy_from_slice(known),
                        None => value[counted.clone()].fill(0),
                    }
                    self.here.put(&key(*address), &value)?;
                }
                Ok(())
            }
        }
    }

    /// Has it see what a container sends. An interface that went has nobody behind it.
    fn hook(&self, end: u32) -> io::Result<()> {
        match put(self, end) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            done => done,
        }
    }

    fn unhook(&self, interfaces: impl IntoIterator<Item = u32>) -> io::Result<()> {
        for interface in interfaces {
            match bpf::detach(interface, &self.program) {
                Err(error) if ![Some(libc::ENOENT), Some(libc::ENODEV)].contains(&error.raw_os_error()) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn near(&self) -> io::Result<Vec<(IpAddr, Near)>> {
        let all = self.here.all()?;
        Ok(all.into_iter().filter_map(|(key, value)| Some((address(&key)?, Near::read(&value)))).collect())
    }

    fn ends(&self) -> io::Result<BTreeSet<u32>> {
        Ok(self.near()?.into_iter().map(|(_, near)| near.interface).collect())
    }

    /// Whether it is at all host ends that it knows.
    pub(in super::super) fn is_whole(&self) -> io::Result<bool> {
        Ok(self.ends()?.into_iter().all(|end| self.is_at(end)))
    }

    fn is_at(&self, interface: u32) -> bool {
        bpf::attached(interface).is_ok_and(|ids| ids.contains(&self.id))
    }

    /// How many packets took it to each address.
    pub(in super::super) fn taken(&self) -> io::Result<Vec<(IpAddr, Taken)>> {
        let taken = |value: &[u8]| Taken { packets: counter(value, here::PACKETS), bytes: counter(value, here::BYTES) };
        let all = self.here.all()?;
        Ok(all.into_iter().filter_map(|(key, value)| Some((address(&key)?, taken(&value)))).collect())
    }

    /// Whose it is.
    pub(in super::super) fn alias(&self) -> &str {
        &self.alias
    }

    /// The parts that it has, where it is at the interfaces that they are about; none where it is not as we leave it: it is made
    /// anew then.
    pub(in super::super) fn parts(
        &self,
        device: &IfName,
        indexes: &BTreeMap<String, u32>,
        wanted: &[&Shortcut],
    ) -> io::Result<Option<Vec<Shortcut>>> {
        if !self.is_current {
            return Ok(None);
        }
        let names: BTreeMap<u32, &str> = indexes.iter().map(|(name, index)| (*index, name.as_str())).collect();
        let mut ends: BTreeMap<u32, (Near, BTreeSet<IpAddr>)> = BTreeMap::new();
        for (address, near) in self.near()? {
            let (like, addresses) = ends.entry(near.interface).or_insert_with(|| (near.clone(), BTreeSet::new()));
            if *like != near {
                return Ok(None);
            }
            addresses.insert(address);
        }
        let mut parts = Vec::new();
        for (index, (Near { queued, owner, .. }, addresses)) in ends {
            let Some(host_end) = names.get(&index).and_then(|name| name.parse().ok()) else { return Ok(None) };
            if self.is_at(index) {
                let part = ShortcutPart::Near { host_end, addresses, queued };
                parts.push(Shortcut { device: device.clone(), part, owner });
            }
        }
        let wanted: BTreeMap<IpNet, &Shortcut> = wanted
            .iter()
            .filter(|wanted| wanted.device == *device)
            .filter_map(|wanted| match &wanted.part {
                ShortcutPart::Far { block, .. } => Some((*block, *wanted)),
                _ => None,
            })
            .collect();
        for (key, value) in self.far.all()? {
            let (Some(block), Some(via), Some(macs)) = (block(&key), via(&value), macs(&value)) else {
                return Ok(None);
            };
            let is_same = |wanted: &&Shortcut| match &wanted.part {
                ShortcutPart::Far { via, macs, by, .. } => {
                    far_value(*via, *macs, by.as_ref(), &wanted.owner)[..] == value[..]
                }
                _ => false,
            };
            if let Some(wanted) = wanted.get(&block).copied().filter(is_same) {
                parts.push(wanted.clone());
                continue;
            }
            let (by, owner) = (by(&value, &names), text(&value[far::OWNER..]));
            parts.push(Shortcut { device: device.clone(), part: ShortcutPart::Far { block, via, macs, by }, owner });
        }
        Ok(Some(parts))
    }
}

pub(super) fn remove(map: &Map, key: &[u8]) -> io::Result<()> {
    match map.remove(key) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}
