//! Repair: what others change in the kernel is put back, and containers whose namespace died are taken down.
//!
//! One thread hears of changes ([`Monitor`]), decides which of them may concern us, and then looks for itself, under the
//! lock that every verb holds: what a verb changes is what the rows say by then, so there is nothing to do. It also holds
//! the fence ([`portolan_plan::ruleset`]).

mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use portolan_engine::{Kernel as _, Repaired};
use portolan_kernel::memory;
use portolan_kernel::netlink::{Batch, Event, Monitor, NETFILTER, NetlinkError, Socket};
use portolan_kernel::nft::encode;
use portolan_kernel::rtnl::link::Link;
use portolan_model::{FirewallDriver, Id, Mac, Mtu, Network};
use portolan_plan::{Firewall, Groups, Table};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::daemon::{self, Engine};

/// The name of our own program, whatever it was called as: rules that it changed are what the rows say.
pub const OURS: &str = "portolan";

/// How the aliases of our host ends begin ([`portolan_plan::alias_of_endpoint`]).
const ENDPOINT: &str = "portolan:";

/// The kind of host ends; those in the group of the bridges are on none.
const VETH: &str = "veth";

/// The kind of ends of tunnels.
const VXLAN: &str = "vxlan";

/// The interface that IPv6 says routes lead to which lead nowhere.
const LOOPBACK: u32 = 1;

/// How long one process may hold the lock for which this thread waits: who waits for the thread has a bound as well.
const PATIENCE: Duration = Duration::from_secs(5);

/// When what could not be done for want of the lock is tried again.
const AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What happens to the kernel happens in bursts, a verb's among them: woken by each event of one, we would take turns with its
/// maker.
const GATHER: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// What was done so far.
#[derive(Debug, Default)]
pub struct Stats {
    /// Times that something was missing and was put back.
    pub repairs: AtomicU64,
    /// Containers taken down because their namespace died.
    pub reaped: AtomicU64,
    /// Microseconds that the last repair took, from the moment it was heard of.
    pub last_micros: AtomicU64,
}

/// Something that was repaired, or could not be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// What somebody else did, as far as it can be told.
    pub because: String,
    /// Containers that were taken down.
    pub containers: Vec<String>,
    /// What was changed in the kernel, a sentence each; the first few.
    pub steps: Vec<String>,
    /// How many changes there were.
    pub count: usize,
    /// What could not be changed.
    pub failures: Vec<String>,
    /// Microseconds that it took.
    pub micros: u64,
}

/// So many steps are told one by one.
const TOLD: usize = 8;

enum Command {
    /// Whether any container is on any network.
    Needed(bool, mpsc::Sender<Option<String>>),
    HandOver(mpsc::Sender<Option<OwnedFd>>),
    Stop,
}

/// How putting up the fence went, or will have gone ([`Repairer::set_needed`]).
#[derive(Debug)]
pub struct Answer(mpsc::Receiver<Option<String>>);

impl Answer {
    /// Waits until it is done; the reason if it cannot be.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn wait(self) -> Result<Option<String>> {
        self.0.recv().context("the repairing thread has ended")
    }
}

/// The running thread; dropping it ends it and removes the fence.
pub struct Repairer {
    commands: mpsc::Sender<Command>,
    wake: Arc<OwnedFd>,
    stats: Arc<Stats>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Repairer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repairer").field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// Called, on the thread, with what was repaired.
pub type Tell = Box<dyn Fn(Report) + Send>;
/// Called with the socket that owns the fence, once it is open.
pub type Keep = Box<dyn Fn(BorrowedFd<'_>) + Send>;

impl Repairer {
    /// Starts the thread (`portolan-repair`) for the state at `root`, in the network namespace of the calling thread.
    ///
    /// `fence` is the socket that owned the fence before us, if there was one.
    ///
    /// # Errors
    /// When out of descriptors or threads, or the kernel has no nftables.
    pub fn start(root: PathBuf, fence: Option<OwnedFd>, keep: Keep, tell: Tell) -> Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, queue) = mpsc::channel();
        let stats = Arc::new(Stats::default());
        let monitor = Monitor::open().context("hear of changes in the kernel")?;
        let fence = match fence {
            Some(fd) => Socket::from(fd),
            None => {
                let socket = Socket::open(NETFILTER).context("open a netlink socket")?;
                keep(socket.as_fd());
                socket
            }
        };
        let (waits, counts) = (wake.clone(), stats.clone());
        let work = move || match daemon::engine_within(&root, PATIENCE) {
            Ok(engine) => {
                let path_mtu = engine.kernel().path_mtu().ok();
                let thread = Thread {
                    engine,
                    monitor,
                    fence: Some(fence),
                    fenced: None,
                    path_mtu,
                    left: Work::default(),
                    is_new: true,
                    programs: programs::Watch::default(),
                    wake: waits,
                    queue,
                    stats: counts,
                    tell,
                };
                thread.run();
            }
            Err(error) => tracing::error!("repair: {error:#}"),
        };
        let thread = std::thread::Builder::new().name("portolan-repair".into()).spawn(work)?;
        Ok(Self { commands, wake, stats, thread: Some(thread) })
    }

    /// Says whether any container is on any network or comes to one: the fence stands as long as there is one. What is
    /// returned can be waited for until it does.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn set_needed(&self, is_needed: bool) -> Result<Answer> {
        let (reply, answer) = mpsc::channel();
        self.send(Command::Needed(is_needed, reply))?;
        Ok(Answer(answer))
    }

    /// What was done so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Ends the thread and returns the socket that owns the fence, which stays.
    ///
    /// # Errors
    /// When the thread has ended before its time.
    pub fn hand_over(mut self) -> Result<Option<OwnedFd>> {
        let (reply, answer) = mpsc::channel();
        self.send(Command::HandOver(reply))?;
        let fence = answer.recv().context("the repairing thread has ended")?;
        self.join();
        Ok(fence)
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).ok().context("the repairing thread has ended")?;
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        Ok(())
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the repairing thread panicked");
        }
    }
}

impl Drop for Repairer {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
        self.join();
    }
}

fn transact(socket: &mut Socket, fill: impl FnOnce(&mut Batch)) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    batch.begin_nft(None);
    fill(&mut batch);
    batch.end_nft();
    socket.transact(&batch).map(drop)
}

/// Whether a task of this name is one of ours, a command or a thread of the daemon: the kernel tells the name and the id of
/// the thread that changed rules, not of its process (`nf_tables_fill_gen_info()`, net/netfilter/nf_tables_api.c).
fn is_of_us(task: &str) -> bool {
    task.strip_prefix(OURS).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Whether rules of ours are in the nftables table of this name. iptables-nft(8) keeps its tables there under their own
/// names; what iptables-legacy(8) does is not told.
fn holds_our_rules(driver: FirewallDriver, table: &str) -> bool {
    match driver {
        FirewallDriver::Nftables => table.starts_with(OURS),
        FirewallDriver::Iptables => matches!(table, "raw" | "nat" | "filter"),
        // It tells of its reloads itself.
        FirewallDriver::Firewalld | FirewallDriver::None => false,
    }
}

/// Whether an nftables table of this name could be one of shortcuts, which are called as the ends of tunnels.
fn is_of_shortcuts(driver: FirewallDriver, table: &str) -> bool {
    driver == FirewallDriver::Nftables && table.starts_with("vx-")
}

struct Thread {
    engine: Engine,
    monitor: Monitor,
    fence: Option<Socket>,
    /// The name of the tables beside which the fence stands; none while it does not.
    fenced: Option<String>,
    path_mtu: Option<Mtu>,
    /// What could not be done, because somebody does not let go of the lock.
    left: Work,
    /// Nothing was looked at yet that may have happened before it was heard of.
    is_new: bool,
    programs: programs::Watch,
    wake: Arc<OwnedFd>,
    queue: mpsc::Receiver<Command>,
    stats: Arc<Stats>,
    tell: Tell,
}

/// What is to be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Work {
    rules: bool,
    firewall: bool,
    links: bool,
    mtu: bool,
    host_ends: BTreeSet<String>,
    because: BTreeSet<String>,
}

impl Work {
    fn add(&mut self, other: Self) {
        self.rules |= other.rules;
        self.firewall |= other.firewall;
        self.links |= other.links;
        self.mtu |= other.mtu;
        self.host_ends.extend(other.host_ends);
        self.because.extend(other.because);
    }

    fn links(&mut self, because: String) {
        self.links = true;
        self.because.insert(because);
    }
}

/// Who is at other hosts, of networks that are one broadcast domain: entries of those who left are gone for good. Looked up once
/// for what happens at once.
#[derive(Default)]
struct Places(BTreeMap<Id, Option<Guests>>);

/// MACs and addresses.
type Guests = (BTreeSet<Mac>, BTreeSet<IpAddr>);

impl Places {
    /// Nothing where it cannot be read, which the repair tells that follows.
    fn of(&mut self, engine: &Engine, network: Id) -> Option<&Guests> {
        self.0.entry(network).or_insert_with(|| engine.remote_places(network).ok()).as_ref()
    }

    fn has_mac(&mut self, engine: &Engine, network: Id, mac: Mac) -> bool {
        self.of(engine, network).is_none_or(|(macs, _)| macs.contains(&mac))
    }

    fn has_address(&mut self, engine: &Engine, network: Id, address: IpAddr) -> bool {
        self.of(engine, network).is_none_or(|(_, addresses)| addresses.contains(&address))
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<portolan_engine::Error>();
    matches!(cause, Some(portolan_engine::Error::Store(portolan_engine::StoreError::Busy { .. })))
}

impl Thread {
    fn run(mut self) {
        loop {
            match self.wait() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => tracing::error!("repair: {error:#}"),
            }
        }
    }

    /// One round; whether to go on.
    fn wait(&mut self) -> Result<bool> {
        let [rules, routing] = self.monitor.fds();
        let entry = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut entries = [entry(self.wake.as_fd()), entry(rules), entry(routing)];
        let look = self.programs.due().and_then(|due| Timespec::try_from(due).ok());
        let again = if self.left == Work::default() { look } else { Some(AGAIN) };
        match poll(&mut entries, again.as_ref()) {
            Err(Errno::INTR) => return Ok(true),
            other => other?,
        };
        let heard = Instant::now();
        if entries[0].revents().is_empty() {
            match poll(&mut [entry(self.wake.as_fd())], Some(&GATHER)) {
                Err(Errno::INTR) => {}
                other => drop(other?),
            }
        }
        // Somebody waits for these; what happened in the kernel may keep us at the lock that he holds.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        while let Ok(command) = self.queue.try_recv() {
            match command {
                Command::Needed(is_needed, reply) => {
                    let _ = reply.send(self.set_fence(is_needed).err().map(|error| format!("{error:#}")));
                }
                Command::HandOver(reply) => {
                    let _ = reply.send(self.fence.take().map(OwnedFd::from));
                    return Ok(false);
                }
                Command::Stop => {
                    let _ = self.set_fence(false);
                    // Nobody would hear of a firewall that needs to have them tracked.
                    let _ = self.engine.set_link_ports(&BTreeSet::new());
                    return Ok(false);
                }
            }
        }
        let events = self.monitor.read().context("hear of changes in the kernel")?;
        // Until a first network there is no table, and no interface of ours either.
        let firewall = self.engine.firewall()?;
        let was_told = self.left != Work::default();
        let mut work = std::mem::take(&mut self.left);
        work.add(self.sort(&events, &firewall));
        if std::mem::take(&mut self.is_new) {
            work.firewall = true;
            work.because.insert("rules of the host's own may have changed before".to_owned());
        }
        let lost = self.programs.look().context("look for programs")?;
        for end in &lost {
            work.links(format!("no program passes packets on by `{end}`"));
        }
        if work == Work::default() {
            return Ok(true);
        }
        match self.work(work.clone(), heard) {
            Err(error) if is_busy(&error) => {
                self.left = work;
                if was_told { Ok(true) } else { Err(error.context("tried again until it can be done")) }
            }
            done => {
                if !lost.is_empty() {
                    self.programs.settle().context("look for programs")?;
                }
                done.map(|()| true)
            }
        }
    }

    /// Puts the fence up or takes it down. It knows what may begin by a mark that no other driver makes.
    fn set_fence(&mut self, is_needed: bool) -> Result<()> {
        let Some(socket) = &mut self.fence else { return Ok(()) };
        let Firewall { driver, name: table } = self.engine.firewall()?;
        let is_needed = is_needed && driver == FirewallDriver::Nftables;
        if is_needed == self.fenced.is_some() && self.fenced.as_ref().is_none_or(|name| *name == table) {
            return Ok(());
        }
        let changed = match (is_needed, &self.fenced) {
            (true, _) => match transact(socket, |batch| encode::create_fence(batch, &table)) {
                Err(error) if error.is_exists() => transact(socket, |batch| encode::adopt_fence(batch, &table)),
                other => other,
            },
            (false, Some(name)) => transact(socket, |batch| encode::delete_fence(batch, name)),
            (false, None) => Ok(()),
        };
        changed.context("the fence, which holds while others flush our rules, cannot be put up")?;
        self.fenced = is_needed.then_some(table);
        Ok(())
    }

    /// Which events may concern us.
    fn sort(&self, events: &[Event], firewall: &Firewall) -> Work {
        let groups = Groups::of(&firewall.name);
        let mut work = Work::default();
        let mut places = Places::default();
        for event in events {
            match event {
                Event::Rules { tables, by: (pid, name) } => {
                    if !is_of_us(name) && !tables.iter().all(|table| Table::is_ours(table)) {
                        work.firewall = true;
                        work.because.insert(format!("`{name}`, process {pid}, changed rules of the host's own"));
                    }
                    if !is_of_us(name) && tables.iter().any(|table| holds_our_rules(firewall.driver, table)) {
                        work.rules = true;
                        work.because.insert(format!("`{name}`, process {pid}, changed our rules"));
                    }
                    if !is_of_us(name) && tables.iter().any(|table| is_of_shortcuts(firewall.driver, table)) {
                        work.links(format!("`{name}`, process {pid}, changed what takes packets past rules"));
                    }
                }
                // The end of tunnels that is on a bridge.
                Event::LinkGone(link) if link.group == groups.ports && link.kind.as_deref() == Some(VXLAN) => {
                    if self.network_on(link).is_some() {
                        work.links(format!("interface `{}` is gone", link.name));
                    }
                }
                Event::Link(link) if link.group == groups.ports && link.kind.as_deref() == Some(VXLAN) => {
                    if self.is_down(link) && self.network_on(link).is_some() {
                        work.links(format!("interface `{}` is down", link.name));
                    }
                }
                Event::LinkGone(link) if link.group == groups.ports => {
                    work.because.insert(format!("interface `{}` is gone", link.name));
                    work.host_ends.insert(link.name.clone());
                }
                Event::LinkGone(link) if link.group == groups.bridges && link.kind.as_deref() != Some(VETH) => {
                    if self.network_on(link).is_some() {
                        work.links(format!("bridge `{}` is gone", link.name));
                    }
                }
                // A verb makes it down, and takes it down; its rows say that it is at it. It may be done by the time we hear
                // of it, and the interface up.
                Event::Link(link) if link.group == groups.ports => {
                    if self.is_down(link) && self.engine.is_host_end(&link.name).unwrap_or(true) {
                        work.links(format!("interface `{}` is down", link.name));
                    }
                }
                Event::Link(link) if link.group == groups.bridges => {
                    if self.is_down(link) && self.network_on(link).is_some() {
                        let what = if link.kind.as_deref() == Some(VETH) { "interface" } else { "bridge" };
                        work.links(format!("{what} `{}` is down", link.name));
                    }
                }
                Event::Link(link) => {
                    work.mtu = true;
                    if link.up && self.engine.goes_by_lan(&link.name).unwrap_or(true) {
                        work.links(format!("interface `{}` changed", link.name));
                    }
                }
                Event::DefaultRoute | Event::RouteGone { is_default: true, .. } => work.mtu = true,
                Event::LinkGone(link) if link.kind.as_deref() == Some("ifb") => {
                    if let Some(host_end) = self.limited_through(link) {
                        work.links(format!("the limit of `{host_end}` is gone"));
                    }
                }
                // On a bridge of somebody else's it is in no group, and on none in that of the bridges.
                Event::LinkGone(link) if link.alias.as_deref().is_some_and(|alias| alias.starts_with(ENDPOINT)) => {
                    work.because.insert(format!("interface `{}` is gone", link.name));
                    work.host_ends.insert(link.name.clone());
                }
                Event::LinkGone(_) => {}
                Event::LimitGone { index } => {
                    if let Some(link) = self.engine.kernel().interface(*index) {
                        let host_end = self.limited_through(&link).unwrap_or(link.name);
                        if self.engine.is_limited(&host_end).unwrap_or(true) {
                            work.links(format!("a limit of `{host_end}` is gone"));
                        }
                    }
                }
                Event::AddressGone { index, address } => {
                    if let Some(network) = self.network_at(*index) {
                        work.links(format!("address {address} of network `{}` is gone", network.name));
                    }
                }
                Event::RouteGone { index, destination, .. } => {
                    if let Some(network) = index.and_then(|index| self.network_at(index))
                        && self.is_wanted(&network, *destination)
                    {
                        work.links(format!("a route to network `{}` is gone", network.name));
                    } else if index.is_none_or(|index| index == LOOPBACK)
                        && self.engine.has_routed_networks().unwrap_or(true)
                    {
                        work.links("a route to nowhere is gone".to_owned());
                    } else if let Some(destination) = destination
                        && self.engine.is_way_by_lan(*destination).unwrap_or(true)
                    {
                        work.links(format!("the route to {destination} by a LAN is gone"));
                    }
                }
                Event::NeighbourGone { index, address: Some(address), .. } => {
                    let is_wanted = |network: &Network| match network.overlay {
                        Some(_) if network.is_routed() => true,
                        Some(_) if places.has_address(&self.engine, network.id, *address) => true,
                        _ => self.engine.is_leased(network.id, *address).unwrap_or(true),
                    };
                    if let Some(network) = self.network_at(*index).filter(is_wanted) {
                        work.links(format!("neighbour {address} on network `{}` is gone", network.name));
                    }
                }
                Event::NeighbourGone { address: None, index, mac } => {
                    // A bridge loses its first MAC's when it gets the one it is to have.
                    let is_wanted = |network: Network| match mac.filter(|mac| *mac != [0; 6]) {
                        Some(mac) if network.is_l2() => places.has_mac(&self.engine, network.id, Mac::from_bytes(mac)),
                        _ => network.overlay.is_some(),
                    };
                    if let Some(link) = self.engine.kernel().interface(*index)
                        && (self.engine.is_host_end(&link.name).unwrap_or(true)
                            || self.network_on(&link).is_some_and(is_wanted))
                    {
                        work.links(format!("a forwarding entry of `{}` is gone", link.name));
                    }
                }
                Event::Lost => {
                    work.because.insert("more happened than could be heard".to_owned());
                    work.rules = true;
                    work.links = true;
                    work.mtu = true;
                }
            }
        }
        work
    }

    /// Whether a route of a network should still be there: those to other hosts' addresses come and go with these.
    fn is_wanted(&self, network: &Network, destination: Option<IpNet>) -> bool {
        match destination.filter(|_| network.overlay.is_some()) {
            Some(destination) => self.engine.is_remote_block(network.id, destination).unwrap_or(true),
            None => true,
        }
    }

    /// Whether an interface was down and still is.
    fn is_down(&self, link: &Link) -> bool {
        !link.up && self.engine.kernel().interface(link.index).is_some_and(|now| !now.up)
    }

    /// The host end whose packets are led through this interface, while they are to be.
    fn limited_through(&self, link: &Link) -> Option<String> {
        let host_end = self.engine.limited_through(link.alias.as_deref()?)?;
        self.engine.is_limited(&host_end).unwrap_or(true).then_some(host_end)
    }

    /// The network whose bridge or host end is at this index, and is there.
    fn network_at(&self, index: u32) -> Option<Network> {
        self.network_on(&self.engine.kernel().interface(index)?)
    }

    /// The network whose bridge or, without one, host end this is.
    fn network_on(&self, link: &Link) -> Option<Network> {
        // What cannot be read is told by the repair that follows the next event.
        self.engine.network_of_device(link.alias.as_deref()?).ok()?
    }

    fn work(&mut self, work: Work, heard: Instant) -> Result<()> {
        let reads_everything = work.rules || work.links;
        let result = self.repair(work, heard);
        if reads_everything {
            memory::give_back();
        }
        result
    }

    fn repair(&mut self, work: Work, heard: Instant) -> Result<()> {
        let mut done = Repaired::default();
        let mut add = |more: Repaired| {
            done.containers.extend(more.containers);
            done.rows += more.rows;
            done.steps.extend(more.steps);
            done.failures.extend(more.failures);
        };
        // What is open comes before what does not work.
        if work.rules {
            add(self.engine.repair_rules()?);
        } else if work.firewall {
            add(self.engine.look_for_firewall()?);
        }
        if !work.host_ends.is_empty() {
            add(self.engine.repair_ports(&work.host_ends.into_iter().collect::<Vec<_>>())?);
        }
        if work.links {
            add(self.engine.reconcile()?);
        }
        if work.mtu {
            let now = self.engine.kernel().path_mtu().ok();
            if now.is_some() && now != self.path_mtu {
                self.path_mtu = now;
                add(self.engine.follow_path_mtu()?);
            }
        }
        let Repaired { containers, steps, failures, .. } = done;
        if containers.is_empty() && steps.is_empty() && failures.is_empty() {
            return Ok(());
        }
        let micros = u64::try_from(heard.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.stats.repairs.fetch_add(u64::from(!steps.is_empty()), Ordering::Relaxed);
        self.stats.reaped.fetch_add(containers.len() as u64, Ordering::Relaxed);
        self.stats.last_micros.store(micros, Ordering::Relaxed);
        let because = work.because.into_iter().collect::<Vec<_>>().join("; ");
        tracing::info!(because, steps = steps.len(), micros, "repaired");
        for failure in &failures {
            tracing::error!(failure, "cannot be repaired");
        }
        (self.tell)(Report {
            because,
            containers: containers.iter().map(ToString::to_string).collect(),
            count: steps.len(),
            steps: steps.iter().take(TOLD).map(ToString::to_string).collect(),
            failures,
            micros,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::is_of_us;

    #[test]
    fn commands_and_threads_are_of_us() {
        for task in ["portolan", "portolan-repair", "portolan-docker", "portolan-api"] {
            assert!(is_of_us(task), "{task}");
        }
        for task in ["nft", "firewalld", "portolano", "my-portolan", ""] {
            assert!(!is_of_us(task), "{task}");
        }
    }
}
