//! One device of the encrypted link between hosts: WireGuard by the kernel, or by a process of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use portolan_cluster::SealRecord;
use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::link::{self, AddrGenMode, LinkChange};
use portolan_model::IfName;
use portolan_wireguard::kernel::{KernelError, Link};
use portolan_wireguard::worker::{self, Options};
use portolan_wireguard::{Changes, Config, Control, Device as _, PrivateKey, PublicKey, State, Status, changes};

/// By what a program of ours is told to carry encrypted packets.
pub const WORKER: &str = "wireguard-worker";

/// Bytes of the message that begins an agreement on keys (whitepaper §5.4.2). Who got nothing else does not know yet whether his answer
/// arrived.
const GREETING: u64 = 148;
/// How long a process may take to end when its interface is gone.
const ENDING: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// A device, as far as this process has to do with it.
pub(super) struct Lane {
    pub(super) name: IfName,
    socket: PathBuf,
    log: PathBuf,
    /// What it was last told, and as whom it answers.
    told: Option<Config>,
    device: Option<Device>,
    /// Who has answered: what was sent to them arrives.
    pub(super) answered: BTreeSet<PublicKey>,
    /// What it last said of itself.
    pub(super) state: State,
    /// The key that it has while it is to have none of this host's: there is no word for taking one away.
    idle: PrivateKey,
}

/// Who carries the packets.
enum Device {
    Kernel(Link),
    Process(Control),
}

impl Device {
    fn get(&mut self) -> Result<State> {
        Ok(match self {
            Self::Kernel(link) => link.get()?,
            Self::Process(control) => control.get()?,
        })
    }

    fn set(&mut self, changes: &Changes) -> Result<()> {
        match self {
            Self::Kernel(link) => link.set(changes)?,
            Self::Process(control) => control.set(changes)?,
        }
        Ok(())
    }
}

impl Lane {
    /// The interface called `name`, of a process that is reached at `RUN/FILE.sock` if there is one.
    pub(super) fn new(name: IfName, run: &Path, file: &str) -> Self {
        let (socket, log) = (run.join(format!("{file}.sock")), run.join(format!("{file}.log")));
        Self {
            name,
            socket,
            log,
            told: None,
            device: None,
            answered: BTreeSet::new(),
            state: State::default(),
            idle: PrivateKey::random(),
        }
    }

    /// Has it be there, with this MTU, as `wanted` says, under `address` if it is to have one; whether it was not there. Hosts of which it
    /// is not known where they are, are where they were last `seen`. If it was not there, `prepare` comes before it is told of anybody:
    /// from then on they may send.
    ///
    /// # Errors
    /// When this host cannot have one, or it cannot be set.
    pub(super) fn ensure(
        &mut self,
        mtu: u32,
        address: Option<Ipv6Addr>,
        mut wanted: Config,
        seen: &BTreeMap<PublicKey, SocketAddr>,
        prepare: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        wanted.private_key.get_or_insert_with(|| self.idle.clone());
        let is_there = self.is_there(mtu);
        if !is_there {
            self.told = None;
            self.answered.clear();
            let device = self.make(mtu).context("make the encrypted link between hosts")?;
            prepare()?;
            self.device = Some(device);
        }
        let Some(device) = &mut self.device else { bail!("the encrypted link is not there") };
        if self.told.as_ref() != Some(&wanted) {
            // Where a host was seen last is not what it says of itself.
            let (from, is_read) = match self.told.take() {
                Some(told) => (told, false),
                None => (device.get().context("read the encrypted link's state")?.config, true),
            };
            let mut first = wanted.clone();
            for (key, peer) in first.peers.iter_mut().filter(|(_, peer)| peer.endpoint.is_none()) {
                if from.peers.get(key).is_none_or(|old| is_read && old.endpoint.is_none()) {
                    peer.endpoint = seen.get(key).copied();
                }
            }
            device.set(&changes(&from, &first)).context("set the encrypted link's peers")?;
            self.told = Some(wanted);
        }
        if !is_there {
            self.bring_up(address).context("bring the encrypted link up")?;
        }
        Ok(!is_there)
    }

    /// Whether it is there and answers. A link of another MTU gets this one.
    fn is_there(&mut self, mtu: u32) -> bool {
        let Ok(mut socket) = Socket::open(ROUTE) else { return false };
        let Ok(Some(found)) = link::lookup(&mut socket, self.name.as_str()) else { return false };
        if found.mtu != mtu {
            let mut batch = Batch::new();
            link::set(&mut batch, found.index, &LinkChange { mtu: Some(mtu), ..LinkChange::default() });
            if let Err(error) = socket.transact(&batch) {
                tracing::warn!(%error, mtu, "the encrypted link keeps its MTU");
            }
        }
        match self.device.as_mut().map(Device::get) {
            Some(Ok(state)) => {
                self.answered.retain(|key| state.status.contains_key(key));
                let has_answered = |status: &Status| !status.received.is_multiple_of(GREETING);
                let answered = state.status.iter().filter(|(_, status)| has_answered(status));
                self.answered.extend(answered.map(|(key, _)| *key));
                self.state = state;
                found.up
            }
            _ => false,
        }
    }

    fn make(&mut self, mtu: u32) -> Result<Device> {
        let name = self.name.as_str();
        // A kernel that has it says so by making one.
        match Link::open(name).or_else(|_| Link::create(name, mtu)) {
            Ok(link) => return Ok(Device::Kernel(link)),
            Err(KernelError::Unsupported | KernelError::Kind { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if link::lookup(&mut Socket::open(ROUTE)?, name)?.is_some() {
            if let Ok(control) = Control::connect(&self.socket) {
                return Ok(Device::Process(control));
            }
        } else {
            // What it is told, and whom it answers, would be lost with it.
            self.outlive();
        }
        let options = Options { name: name.to_owned(), mtu, socket: self.socket.clone(), log: Some(self.log.clone()) };
        // Whatever became of the file that this process was started from.
        let mut program = Command::new("/proc/self/exe");
        program.arg0("portolan").arg(WORKER);
        Ok(Device::Process(worker::start(program, &options)?))
    }

    /// Waits until the process whose interface is gone has ended.
    fn outlive(&self) {
        let end = Instant::now() + ENDING;
        while UnixStream::connect(&self.socket).is_ok() && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
    }

    /// Has it be up, with this host's address as far as it has not.
    fn bring_up(&self, address: Option<Ipv6Addr>) -> Result<()> {
        let mut socket = Socket::open(ROUTE)?;
        let Some(found) = link::lookup(&mut socket, self.name.as_str())? else { bail!("`{}` is gone", self.name) };
        let mut batch = Batch::new();
        let change = LinkChange { up: Some(true), addr_gen_mode: Some(AddrGenMode::None), ..LinkChange::default() };
        link::set(&mut batch, found.index, &change);
        if let Some(address) = address {
            addr::replace(&mut batch, &Address::new(found.index, address.into(), SealRecord::LINK));
        }
        socket.transact(&batch)?;
        Ok(())
    }

    /// Has it forget those of these hosts who have never answered, so that they are greeted anew when they are told to it again: it
    /// would only do so by itself after five seconds (`REKEY_TIMEOUT`, whitepaper §6.1).
    pub(super) fn forget_silent(&mut self, keys: &BTreeSet<PublicKey>) {
        let Some(device) = &mut self.device else { return };
        // Whoever has answered may send by what was agreed on.
        let Ok(state) = device.get() else { return };
        let is_silent = |key: &&PublicKey| state.status.get(key).is_some_and(|status| status.received == 0);
        self.forget(&keys.iter().filter(is_silent).copied().collect());
    }

    /// Has it forget these hosts, with all that was agreed on with them.
    pub(super) fn forget(&mut self, keys: &BTreeSet<PublicKey>) {
        let (Some(told), Some(device)) = (&self.told, &mut self.device) else { return };
        let mut without = told.clone();
        without.peers.retain(|key, _| !keys.contains(key));
        if without == *told {
            return;
        }
        match device.set(&changes(told, &without)) {
            Ok(()) => self.told = Some(without),
            // It is asked what it is at.
            Err(_) => self.told = None,
        }
    }

    /// Removes it, if it is there; whoever carries its packets ends.
    pub(super) fn remove(&mut self) -> Result<()> {
        (self.device, self.told, self.state) = (None, None, State::default());
        self.answered.clear();
        remove(&self.name)
    }
}

/// Removes the interface of this name, if it is there; whoever carries its packets ends.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn remove(name: &IfName) -> Result<()> {
    let mut socket = Socket::open(ROUTE)?;
    if link::lookup(&mut socket, name.as_str())?.is_some() {
        let mut batch = Batch::new();
        link::delete(&mut batch, name.as_str());
        socket.transact(&batch)?;
    }
    Ok(())
}
