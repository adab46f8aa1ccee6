//! What comes by the encrypted link translated, as a program at its ingress: it knows the ends of tunnels by the numbers of
//! their networks. As long as that is there, nothing comes in by the link translated that is for no network here.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv6Addr;

use portolan_model::{IfName, Mac, Vni};
use portolan_plan::Inlet;

use super::programs::{TEXT, put_text, text};
use super::translate;
use crate::bpf::{self, Fd, Map, MapKind};
use crate::sys;

/// Networks on one host.
const MAX: u32 = 1 << 14;
/// A number of a network, as it is in packets.
const KEY: usize = 4;
/// Offsets in a value: the index of an end of tunnels first, then for us alone what made the program, and who it is there for.
const OWN: usize = 4;
const MAC: usize = 20;
const OWNER: usize = 28;
const VALUE: usize = OWNER + TEXT;

fn name(inlet: &Inlet) -> String {
    super::programs::name_of(&translate::program(inlet.own, inlet.mac, 0))
}

fn value(inlet: &Inlet, end: u32) -> [u8; VALUE] {
    let mut value = [0; VALUE];
    value[..OWN].copy_from_slice(&end.to_ne_bytes());
    value[OWN..MAC].copy_from_slice(&inlet.own.octets());
    value[MAC..MAC + 6].copy_from_slice(&inlet.mac.octets());
    put_text(&mut value[OWNER..], &inlet.owner);
    value
}

fn key(inlet: &Inlet) -> [u8; KEY] {
    inlet.vni.number().to_be_bytes()
}

/// The programs of this kind at a link, with their names and maps.
fn at(link: u32) -> io::Result<Vec<(String, Fd, Map)>> {
    let programs = match bpf::at_ingress(link, super::programs::is_name_of_ours) {
        Err(error) if super::programs::is_refused(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let of_link = |program: bpf::Program| {
        let (_, map) = program.maps.into_iter().find(|(name, _)| name == "ends")?;
        Some((program.name, program.fd, map))
    };
    Ok(programs.into_iter().filter_map(of_link).collect())
}

/// Whether there is a program at the link of this index.
pub(super) fn is_at(link: u32) -> io::Result<bool> {
    Ok(!at(link)?.is_empty())
}

/// Has what comes for a network go into the end of tunnels of index `end`.
pub(in super::super) fn add(inlet: &Inlet, end: u32) -> io::Result<()> {
    let Some(index) = sys::interface_index(inlet.link.as_str()) else {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    };
    let (name, there) = (name(inlet), at(index)?);
    if let Some((_, _, map)) = there.iter().find(|(other, ..)| *other == name) {
        return map.put(&key(inlet), &value(inlet, end));
    }
    let map = Map::create("ends", MapKind::Hash, KEY, VALUE, MAX)?;
    // Of a host that is somewhere else on the link now.
    for (_, _, before) in &there {
        // One of another version has others; they are made known anew by whoever finds them missing.
        for (key, value) in before.all()?.into_iter().filter(|(key, value)| (key.len(), value.len()) == (KEY, VALUE)) {
            map.put(&key, &value)?;
        }
    }
    map.put(&key(inlet), &value(inlet, end))?;
    let program = bpf::load(&name, &translate::program(inlet.own, inlet.mac, map.number()))?;
    match there.first() {
        Some((_, before, _)) => bpf::replace(index, before, &program),
        None => bpf::attach(index, &program),
    }
}

/// Takes the program of the link of this index away.
pub(super) fn take_away(link: u32) -> io::Result<()> {
    at(link)?.iter().try_for_each(|(_, program, _)| bpf::detach(link, program))
}

/// Has what comes for a network be dropped.
pub(in super::super) fn remove(inlet: &Inlet) -> io::Result<()> {
    let Some(index) = sys::interface_index(inlet.link.as_str()) else { return Ok(()) };
    at(index)?.iter().try_for_each(|(_, _, map)| super::programs::remove(map, &key(inlet)))
}

/// Where what comes by a link goes, with the names of interfaces by index; what is not as this process would have it, goes nowhere.
pub(super) fn read(link: &IfName, names: &BTreeMap<u32, &str>) -> io::Result<Vec<Inlet>> {
    let mut found = Vec::new();
    let Some(index) = sys::interface_index(link.as_str()) else { return Ok(found) };
    for (name, _, map) in at(index)? {
        for (key, value) in map.all()? {
            found.extend(entry(link, &key, &value, names).filter(|inlet| self::name(inlet) == name));
        }
    }
    Ok(found)
}

fn entry(link: &IfName, key: &[u8], value: &[u8], names: &BTreeMap<u32, &str>) -> Option<Inlet> {
    let end = u32::from_ne_bytes(value.get(..OWN)?.try_into().ok()?);
    let own = Ipv6Addr::from(<[u8; 16]>::try_from(value.get(OWN..MAC)?).ok()?);
    let mac = Mac::from_bytes(value.get(MAC..MAC + 6)?.try_into().ok()?);
    let vni = Vni::new(u32::from_be_bytes(key.try_into().ok()?)).ok()?;
    let (device, owner) = (names.get(&end)?.parse().ok()?, text(value.get(OWNER..)?));
    Some(Inlet { device, link: link.clone(), own, mac, vni, owner })
}
