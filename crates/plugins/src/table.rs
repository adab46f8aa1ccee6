//! The nftables table of the plugins ([`portolan_plan::Table::Plugins`]): elements put in and taken out, with the table
//! around them.
//!
//! Each element says whose it is by its comment, so what a container has is found without a file. Several plugins at once
//! need no lock: what depends on what was read is a transaction of that generation of the ruleset, and tried again when
//! somebody was faster.

use std::time::{Duration, Instant};

use portolan_cni::{Call, Code, Error};
use portolan_kernel::netlink::{Batch, NETFILTER, NetlinkError, Socket};
use portolan_kernel::nft::decode::{self, RuleShape};
use portolan_kernel::nft::encode::{self, Insist};
use portolan_kernel::nft::{COMMENT_MAX, is_outrun, outrun};
use portolan_plan::{Element, Set, Table, ruleset};

use crate::waiting::{WAITING, heirs, is_port, replaced_by, waits};

const NAME: &str = Table::PLUGINS_NAME;

/// How long others may be faster.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who an element is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner<'a> {
    pub(crate) network: &'a str,
    pub(crate) container: &'a str,
    pub(crate) ifname: &'a str,
}

impl<'a> Owner<'a> {
    pub(crate) fn of(call: &'a Call, network: &'a str) -> Self {
        Self { network, container: &call.container, ifname: &call.ifname }
    }

    /// As it stands in comments; neither of the names has a space in it.
    pub(crate) fn text(self) -> Result<String, Error> {
        let text = format!("cni {} {} {}", self.network, self.container, self.ifname);
        if text.len() > COMMENT_MAX {
            let msg = format!("the names `{}` and `{}` are too long", self.network, self.container);
            return Err(Error::new(Code::InvalidConfig, msg).details(format!(
                "rules say whose they are in {COMMENT_MAX} bytes, and these names need {}",
                text.len()
            )));
        }
        Ok(text)
    }

    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.strip_prefix("cni ")?.split(' ');
        let (network, container, ifname) = (words.next()?, words.next()?, words.next()?);
        words.next().is_none().then_some(Self { network, container, ifname })
    }
}

/// Why elements were not put in.
#[derive(Debug)]
pub(crate) enum Refused {
    /// A port is published by somebody else, as this says.
    Taken(Element),
    /// By the kernel.
    Kernel(NetlinkError),
}

impl From<NetlinkError> for Refused {
    fn from(error: NetlinkError) -> Self {
        Self::Kernel(error)
    }
}

/// How the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    /// Somebody changed it.
    Damaged,
    Whole,
}

fn open() -> Result<Socket, NetlinkError> {
    Socket::open(NETFILTER)
}

fn state(socket: &mut Socket) -> Result<State, NetlinkError> {
    if !decode::table_exists(socket, Table::Plugins, NAME)? {
        return Ok(State::Missing);
    }
    let mut rules = decode::rules(socket, Table::Plugins, NAME)?;
    let mut is_whole = true;
    for chain in ruleset::chains(Table::Plugins) {
        let is: Vec<RuleShape> = rules.remove(chain.name()).unwrap_or_default();
        let should = ruleset::rules(chain);
        is_whole &= is.len() == should.len() && is.iter().zip(&should).all(|(is, should)| is.comment == should.comment);
    }
    Ok(if is_whole && rules.is_empty() { State::Whole } else { State::Damaged })
}

/// Everything in the table that is of our making.
fn all(socket: &mut Socket) -> Result<Vec<Element>, NetlinkError> {
    of_sets(socket, &Set::PLUGINS)
}

fn of_sets(socket: &mut Socket, sets: &[Set]) -> Result<Vec<Element>, NetlinkError> {
    let mut elements = Vec::new();
    for set in sets {
        elements.extend(decode::elements(socket, NAME, *set)?.0);
    }
    Ok(elements)
}

/// Does `work` again until nobody was faster.
fn settle<T, E: From<NetlinkError>>(mut work: impl FnMut() -> Result<Option<T>, E>) -> Result<T, E> {
    let begin = Instant::now();
    loop {
        if let Some(done) = work()? {
            return Ok(done);
        }
        if begin.elapsed() > PATIENCE {
            return Err(outrun().into());
        }
    }
}

/// Puts `elements` in, all or none; those that are there already are left. A port stays with the container that has it, and
/// leads to the network that it came to last; those before wait. A table that is missing is made, one that somebody changed is
/// made anew with all that is in it.
pub(crate) fn put(elements: &[Element]) -> Result<(), Refused> {
    if elements.is_empty() {
        return Ok(());
    }
    let mut socket = open()?;
    // One that lacks a set is of before there was that set.
    let mut lacks_a_set = false;
    settle(|| {
        let generation = decode::generation(&mut socket)?;
        let state = if lacks_a_set { State::Damaged } else { state(&mut socket)? };
        let mut batch = Batch::new();
        batch.begin_nft(Some(generation));
        let mut there: Vec<Element> = match state {
            State::Missing => Vec::new(),
            State::Damaged => all(&mut socket)?,
            State::Whole => {
                let mut there = Vec::new();
                for element in elements {
                    there.extend(decode::element_like(&mut socket, NAME, element)?);
                }
                there
            }
        };
        let is_same = |a: &Element, b: &Element| a.set == b.set && a.key == b.key;
        let in_the_way = |is: &Element| {
            elements.iter().any(|wanted| is_same(is, wanted) && (&is.owner, is.data) != (&wanted.owner, wanted.data))
        };
        // What was the container's by another configuration, or by another network of it, is replaced.
        let is_foreign = |is: &Element| elements.iter().all(|wanted| container(&wanted.owner) != container(&is.owner));
        if let Some(taken) = there.iter().find(|is| is_port(is) && in_the_way(is) && is_foreign(is)) {
            return Err(Refused::Taken(taken.clone()));
        }
        let (mut gone, mut stays): (Vec<Element>, Vec<Element>) = there.drain(..).partition(in_the_way);
        let waiting = if gone.is_empty() { Vec::new() } else { of_sets(&mut socket, &WAITING)? };
        let (waits_no_longer, waits) = replaced_by(elements, &gone, &waiting);
        stays.retain(|is| !waits_no_longer.contains(is));
        gone.extend(waits_no_longer);
        let new = elements.iter().filter(|wanted| !stays.iter().any(|is| is_same(is, wanted)));
        let mut wanted: Vec<&Element> = new.chain(&waits).collect();
        match state {
            State::Whole => {
                encode::delete_elements(&mut batch, NAME, &gone.iter().collect::<Vec<_>>(), Insist::Yes);
            }
            State::Missing => encode::create_plugins(&mut batch),
            State::Damaged => {
                encode::delete_ruleset(&mut batch, NAME, Table::Plugins);
                encode::create_plugins(&mut batch);
                wanted.extend(&stays);
            }
        }
        if wanted.is_empty() && state == State::Whole {
            return Ok(Some(()));
        }
        wanted.sort_by_key(|element| element.set);
        encode::add_elements(&mut batch, NAME, &wanted, Insist::Yes);
        batch.end_nft();
        match socket.transact(&batch) {
            Ok(_) => Ok(Some(())),
            Err(error) if is_outrun(&error) => Ok(None),
            Err(error) if error.is_missing() && state == State::Whole => {
                lacks_a_set = true;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    })
}

/// Whose an element is, by its owner.
fn container(owner: &str) -> &str {
    Owner::parse(owner).map_or(owner, |owner| owner.container)
}

/// Takes out of `sets` what `is_gone` says of owners, and the table with its last element.
pub(crate) fn take_where(sets: &[Set], is_gone: impl Fn(Owner<'_>) -> bool) -> Result<Vec<Element>, NetlinkError> {
    take(|socket| {
        let mut gone = of_sets(socket, sets)?;
        gone.retain(|element| Owner::parse(&element.owner).is_some_and(&is_gone));
        Ok(gone)
    })
}

/// Takes out those of `elements` that are there for the same owner, and the table with its last element. It takes the
/// same time whoever else has elements.
pub(crate) fn take_these(elements: &[Element]) -> Result<Vec<Element>, NetlinkError> {
    take(|socket| {
        let mut gone = Vec::new();
        for element in elements {
            let there = decode::element_like(socket, NAME, element)?;
            gone.extend(there.filter(|there| there.owner == element.owner));
        }
        Ok(gone)
    })
}

/// Takes out what `find` finds. A port for which another network of its container waits leads there in the same
/// transaction.
fn take(find: impl Fn(&mut Socket) -> Result<Vec<Element>, NetlinkError>) -> Result<Vec<Element>, NetlinkError> {
    let mut socket = open()?;
    let gone = settle(|| {
        let generation = decode::generation(&mut socket)?;
        let gone = find(&mut socket)?;
        if gone.is_empty() {
            return Ok(Some(gone));
        }
        let waiting = if gone.iter().any(is_port) { of_sets(&mut socket, &WAITING)? } else { Vec::new() };
        let heirs = heirs(&gone, &waiting);
        // Where nobody takes over, all that may be different by now is that somebody was faster with the same.
        let generation = (!heirs.is_empty()).then_some(generation);
        let mut batch = Batch::new();
        batch.begin_nft(generation);
        let waited = heirs.iter().map(|(waited, _)| waited);
        encode::delete_elements(&mut batch, NAME, &gone.iter().chain(waited).collect::<Vec<_>>(), Insist::Yes);
        encode::add_elements(&mut batch, NAME, &heirs.iter().map(|(_, port)| port).collect::<Vec<_>>(), Insist::Yes);
        batch.end_nft();
        match socket.transact(&batch) {
            Ok(_) => Ok(Some(gone)),
            Err(error) if is_outrun(&error) => Ok(None),
            Err(error) if error.is_missing() => {
                gone.iter().try_for_each(|element| delete(&mut socket, element))?;
                Ok(Some(gone))
            }
            Err(error) => Err(error),
        }
    })?;
    if !gone.is_empty() {
        remove_if_empty(&mut socket)?;
    }
    Ok(gone)
}

fn delete(socket: &mut Socket, element: &Element) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    batch.begin_nft(None);
    encode::delete_elements(&mut batch, NAME, &[element], Insist::Yes);
    batch.end_nft();
    match socket.transact(&batch) {
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}

/// Removes the table if it has no element. Whoever puts one in meanwhile keeps it.
fn remove_if_empty(socket: &mut Socket) -> Result<(), NetlinkError> {
    settle(|| {
        let generation = decode::generation(socket)?;
        for set in Set::PLUGINS {
            if !decode::is_empty(open()?, NAME, set)? {
                return Ok(Some(()));
            }
        }
        let mut batch = Batch::new();
        batch.begin_nft(Some(generation));
        encode::delete_ruleset(&mut batch, NAME, Table::Plugins);
        batch.end_nft();
        match socket.transact(&batch) {
            Ok(_) => Ok(Some(())),
            Err(error) if error.is_missing() => Ok(Some(())),
            Err(error) if is_outrun(&error) => Ok(None),
            Err(error) => Err(error),
        }
    })
}

/// Whether the kernel has all of `elements`, and the rules that they mean something to. A port may wait for another network
/// of its container.
pub(crate) fn holds(elements: &[Element]) -> Result<bool, NetlinkError> {
    let mut socket = open()?;
    for element in elements {
        let is = decode::element_like(&mut socket, NAME, element)?;
        let waits = |is: &Element, socket: &mut Socket| {
            let is_own = is_port(element) && container(&is.owner) == container(&element.owner);
            Ok::<_, NetlinkError>(is_own && waits(element, &of_sets(socket, &WAITING)?))
        };
        match is {
            Some(is) if is == *element => {}
            Some(is) if waits(&is, &mut socket)? => {}
            _ => return Ok(false),
        }
    }
    Ok(elements.is_empty() || state(&mut socket)? == State::Whole)
}

/// Whether the kernel has such tables at all.
pub(crate) fn probe() -> Result<(), NetlinkError> {
    decode::generation(&mut open()?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_back() {
        let owner = Owner { network: "web", container: "c1", ifname: "eth0" };
        assert_eq!(owner.text().unwrap(), "cni web c1 eth0");
        assert_eq!(Owner::parse("cni web c1 eth0"), Some(owner));
        for text in ["cni web c1", "cni web c1 eth0 more", "container web", ""] {
            assert_eq!(Owner::parse(text), None, "{text}");
        }
        let long = "n".repeat(COMMENT_MAX);
        assert_eq!(Owner { network: &long, ..owner }.text().unwrap_err().code, Code::InvalidConfig);
    }
}
