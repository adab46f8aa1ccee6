//! Steps into messages, in as few batches as their order allows.

use std::collections::{BTreeMap, BTreeSet};

use portolan_engine::{About, KernelError, Kind};
use portolan_model::{FirewallDriver, IfName, Sandbox};
use portolan_plan::{Element, Firewall, Groups, HostEnd, Object, Port, Step, Table};

mod inlets;
mod links;
mod ports;
mod routes;
mod sandbox;
mod shapers;
mod shortcuts;
mod tunnels;

pub(super) use routes::{BY_LAN, host_route};
pub(super) use sandbox::{routed, static_route};
pub(super) use shapers::bucket;

use super::{HostKernel, failure, refusal, unset};
use crate::netlink::{self, Batch, NetlinkError, Socket};
use crate::netns::NetnsFd;
use crate::nft::encode::{self, Insist};
use crate::sysctl;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Stop at the first refusal; nothing may be there already or be gone already.
    Strict,
    /// Go on; being there or gone already is fine.
    Lenient,
}

/// Which batch a step can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Sysctl,
    Rules,
    Host,
    Shortcuts,
    Inlets,
    Sandbox,
}

fn place(step: &Step) -> Place {
    match step.object() {
        // It is made from the host's side, where the parent is, and removed where it is.
        Object::Child(child) if matches!(step, Step::Delete(_)) && !child.handed => Place::Sandbox,
        Object::Setting(_) => Place::Sysctl,
        Object::Ruleset(_) | Object::Element(_) => Place::Rules,
        Object::Shortcut(_) => Place::Shortcuts,
        Object::Inlet(_) => Place::Inlets,
        Object::Bridge(_)
        | Object::Port(_)
        | Object::Shaper(_)
        | Object::Neighbour(_)
        | Object::HostRoute(_)
        | Object::Vlan(_)
        | Object::Vxlan(_)
        | Object::Forwarding(_)
        | Object::Child(_) => Place::Host,
        Object::Interface(_) | Object::DefaultRoute(_) | Object::Route(_) | Object::SandboxSetting(_) => Place::Sandbox,
    }
}

/// Takes `steps` in order, runs of one place together. Answers the failures: at most one in strict mode.
pub(super) fn run(kernel: &HostKernel, firewall: &Firewall, steps: &[Step], mode: Mode) -> Vec<KernelError> {
    let groups = Groups::of(&firewall.name);
    let mut context = Context {
        kernel,
        table: &firewall.name,
        groups,
        mode,
        steps,
        peers: BTreeMap::new(),
        indexes: BTreeMap::new(),
        readdressed: BTreeSet::new(),
        failures: Vec::new(),
    };
    if let Err(error) = super::firewalld::tell(firewall, steps) {
        context.failures.push(error);
        if mode == Mode::Strict {
            return context.failures;
        }
    }
    let mut rest = steps;
    while let Some(first) = rest.first() {
        let here = place(first);
        let length = rest.iter().take_while(|step| place(step) == here).count();
        let (now, later) = rest.split_at(length);
        match here {
            Place::Sysctl => context.settings(now),
            Place::Rules => match firewall.driver {
                FirewallDriver::Nftables => context.nftables(now),
                FirewallDriver::None => {}
                FirewallDriver::Iptables => context.failures.extend(super::iptables::apply(firewall, now, mode).err()),
                FirewallDriver::Firewalld => context.failures.extend(super::firewalld::apply(firewall, now).err()),
            },
            Place::Host => context.host(now),
            Place::Shortcuts => {
                if firewall.driver == FirewallDriver::Nftables {
                    context.shortcuts(now);
                }
            }
            Place::Inlets => context.inlets(now),
            Place::Sandbox => context.sandboxes(now),
        }
        if mode == Mode::Strict && !context.failures.is_empty() {
            context.failures.truncate(1);
            break;
        }
        rest = later;
    }
    kernel.leave_lingering();
    context.failures
}

struct Context<'a> {
    kernel: &'a HostKernel,
    table: &'a str,
    groups: Groups,
    mode: Mode,
    steps: &'a [Step],
    /// Indexes of sandbox ends just made, by host end.
    peers: BTreeMap<IfName, u32>,
    /// Indexes of host interfaces.
    indexes: BTreeMap<IfName, u32>,
    /// Host ends that have got the MAC that the host routes by.
    readdressed: BTreeSet<IfName>,
    failures: Vec<KernelError>,
}

/// A batch whose messages know which step they are for, and what may be forgiven.
#[derive(Default)]
struct Labelled {
    batch: Batch,
    labels: Vec<String>,
    /// What all of it is about.
    about: Option<Box<About>>,
}

impl Labelled {
    /// An empty one that is to make the interface `name` in a sandbox.
    fn to_make(name: &IfName) -> Self {
        Self { about: Some(Box::new(About::Interface(name.clone()))), ..Self::default() }
    }

    /// Appends messages on behalf of `doing`.
    fn add(&mut self, doing: &str, build: impl FnOnce(&mut Batch)) {
        build(&mut self.batch);
        self.labels.resize(self.batch.len(), doing.to_owned());
    }
}

impl Context<'_> {
    fn insist(&self) -> Insist {
        match self.mode {
            Mode::Strict => Insist::Yes,
            Mode::Lenient => Insist::No,
        }
    }

    /// Whether a refusal means that things are as wanted.
    fn forgiven(&self, error: &NetlinkError) -> bool {
        self.mode == Mode::Lenient && (error.is_missing() || error.is_exists() || error.errno() == libc::EADDRNOTAVAIL)
    }

    /// Sends a routing batch and keeps what the kernel refused.
    fn send(&mut self, socket: &mut Socket, labelled: &Labelled) -> Vec<netlink::Reply> {
        if labelled.batch.is_empty() {
            return Vec::new();
        }
        match socket.transact_each(&labelled.batch) {
            Ok(outcome) => {
                for error in &outcome.errors {
                    if !self.forgiven(error) {
                        let doing =
                            error.index().and_then(|index| labelled.labels.get(index)).cloned().unwrap_or_default();
                        self.failures.push(KernelError { about: labelled.about.clone(), ..refusal(doing, error) });
                    }
                }
                outcome.replies
            }
            Err(error) => {
                self.failures.push(refusal("speak netlink", &error));
                Vec::new()
            }
        }
    }

    fn settings(&mut self, steps: &[Step]) {
        for step in steps {
            let (setting, value) = match step {
                Step::Create(Object::Setting(setting)) | Step::Change(_, Object::Setting(setting)) => {
                    (setting, &setting.value)
                }
                Step::Delete(Object::Setting(setting)) => (setting, &setting.before),
                _ => continue,
            };
            let components: Vec<&str> = setting.path.split('/').collect();
            // What somebody else has changed since is theirs.
            if matches!(step, Step::Delete(_)) && sysctl::read(&components).is_ok_and(|now| now != setting.value) {
                continue;
            }
            if let Err(error) = sysctl::write(&components, value) {
                if self.mode == Mode::Lenient && error.is_missing() {
                    continue;
                }
                if is_read_only(&error) && setting.path.starts_with("net/ipv6/") && !self.brings_ipv6() {
                    tracing::info!(%error, "left as it is: no network here speaks IPv6");
                    continue;
                }
                self.failures
                    .push(unset(format!("set sysctl `{}` to {value}", setting.path.replace('/', ".")), &error));
                if self.mode == Mode::Strict {
                    return;
                }
            }
        }
    }

    /// Whether a bridge that speaks IPv6, or a host end that does without one, is among what is made.
    fn brings_ipv6(&self) -> bool {
        self.steps.iter().any(|step| match step.object() {
            Object::Bridge(bridge) => bridge.ipv6,
            Object::Port(Port { place: HostEnd::Routed(routed), .. }) => routed.ipv6,
            Object::Vxlan(vxlan) => vxlan.ipv6,
            _ => false,
        })
    }

    fn nftables(&mut self, steps: &[Step]) {
        let mut created: Vec<&Element> = Vec::new();
        let mut deleted: Vec<&Element> = Vec::new();
        let (mut make, mut unmake) = (None, None);
        for step in steps {
            match step {
                Step::Create(Object::Ruleset(ruleset)) => make = Some(ruleset),
                Step::Delete(Object::Ruleset(ruleset)) => unmake = Some(ruleset),
                Step::Change(Object::Ruleset(from), Object::Ruleset(to)) => {
                    unmake = Some(from);
                    make = Some(to);
                }
                Step::Create(Object::Element(element)) => created.push(element),
                Step::Delete(Object::Element(element)) => deleted.push(element),
                Step::Change(Object::Element(from), Object::Element(to)) => {
                    deleted.push(from);
                    created.push(to);
                }
                _ => {}
            }
        }
        let (kernel, table, insist) = (self.kernel, self.table, self.insist());
        let doing = match (make, unmake) {
            (Some(_), _) => format!("create nftables table `{table}`"),
            (None, Some(_)) => format!("delete nftables table `{table}`"),
            (None, None) => format!("change nftables table `{table}`"),
        };
        let result = kernel.with_netfilter(|socket| {
            let mut exists = [false; 2];
            if unmake.is_some() || (make.is_some() && insist == Insist::No) {
                for (slot, kind) in exists.iter_mut().zip(Table::ALL) {
                    *slot = crate::nft::decode::table_exists(socket, kind, table)
                        .map_err(|error| refusal(&doing, &error))?;
                }
            }
            let mut batch = Batch::new();
            batch.begin_nft(None);
            // A table that is half there is made anew.
            for (_, kind) in exists.iter().zip(Table::ALL).filter(|(exists, _)| **exists) {
                encode::delete_ruleset(&mut batch, table, kind);
            }
            if make.is_some() {
                encode::create_ruleset(&mut batch, table);
            } else if unmake.is_none() {
                encode::delete_elements(&mut batch, table, &deleted, insist);
            }
            if unmake.is_none() || make.is_some() {
                encode::add_elements(&mut batch, table, &created, insist);
            }
            batch.end_nft();
            // Opening and closing alone change nothing.
            if batch.len() <= 2 {
                return Ok(());
            }
            match socket.transact(&batch) {
                Ok(_) => {
                    if unmake.is_some() || !deleted.is_empty() {
                        kernel.lingers.set(true);
                    }
                    Ok(())
                }
                Err(error) if insist == Insist::No && error.is_missing() && make.is_none() => Ok(()),
                Err(error) => Err(refusal(&doing, &error)),
            }
        });
        if let Err(error) = result {
            // Elements that are there with other data cannot be overwritten: take them one by one.
            if insist == Insist::No && make.is_none() && unmake.is_none() {
                self.elements_one_by_one(&deleted, &created);
            } else {
                self.failures.push(error);
            }
        }
    }

    /// The slow way, for repairs in which one element is not as expected.
    fn elements_one_by_one(&mut self, deleted: &[&Element], created: &[&Element]) {
        let (kernel, table) = (self.kernel, self.table);
        let one = |element: &Element, add: bool| {
            kernel.with_netfilter(|socket| {
                let mut transact = |build: &dyn Fn(&mut Batch)| {
                    let mut batch = Batch::new();
                    batch.begin_nft(None);
                    build(&mut batch);
                    batch.end_nft();
                    socket.transact(&batch)
                };
                let gone = transact(&|batch| encode::delete_elements(batch, table, &[element], Insist::Yes));
                let result = if add {
                    transact(&|batch| encode::add_elements(batch, table, &[element], Insist::No))
                } else {
                    gone
                };
                match result {
                    Ok(_) => Ok(()),
                    Err(error) if !add && error.is_missing() => Ok(()),
                    Err(error) => Err(refusal(format!("repair {}", Object::Element(element.clone())), &error)),
                }
            })
        };
        let failures: Vec<KernelError> = deleted
            .iter()
            .map(|element| one(element, false))
            .chain(created.iter().map(|element| one(element, true)))
            .filter_map(Result::err)
            .collect();
        self.failures.extend(failures);
    }
}

/// Whether `/proc/sys` is mounted read-only, as in most containers.
fn is_read_only(error: &sysctl::SysctlError) -> bool {
    error.errno() == Some(libc::EROFS)
}

fn is_link_local(address: std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Opens a sandbox and makes sure that it is still the one we know.
pub(super) fn open_sandbox(sandbox: &Sandbox) -> Result<NetnsFd, KernelError> {
    let doing = || format!("open namespace `{}`", sandbox.path.display());
    let gone = |reason: String| KernelError {
        doing: doing(),
        reason,
        errno: 0,
        kind: Kind::NotFound,
        hint: Some("`portolan gc` takes down containers whose namespace is gone".to_owned()),
        about: None,
    };
    let ns = NetnsFd::open(&sandbox.path).map_err(|error| match error.errno() {
        // Whoever has no descriptor left, say, knows nothing of it.
        Some(errno) if !error.is_missing() && errno != libc::ENOTDIR => failure(doing(), error.in_full(), errno),
        _ => gone(error.to_string()),
    })?;
    let id = ns.identity();
    if (id.dev, id.ino) != (sandbox.device, sandbox.inode) {
        return Err(gone("it is another namespace by now".to_owned()));
    }
    Ok(ns)
}
