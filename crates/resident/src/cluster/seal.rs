//! The encrypted link between hosts: a WireGuard device with one address for each host, through which the tunnels of encrypted
//! networks go.
//!
//! Whom a packet may be for is said once for each host, so nothing of it changes with containers or networks. The tunnels are
//! bound to the link: without it, or without its key for the other host, nothing is sent, and nothing that came by another way is
//! taken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use ipnet::{IpNet, Ipv6Net};
use portolan_cluster::{HostRecord, SealRecord, View};
use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::link::{self, AddrGenMode, LinkChange};
use portolan_model::{Id, IfName, SEAL};
use portolan_wireguard::kernel::{KernelError, Link};
use portolan_wireguard::worker::{self, Options};
use portolan_wireguard::{Config, Control, Device as _, Peer, PrivateKey, changes};

use super::Membership;

/// The link, as far as this process has to do with it.
pub(super) struct Seal {
    name: IfName,
    socket: PathBuf,
    log: PathBuf,
    /// What the device was last told, and as whom it answers.
    told: Option<Config>,
    device: Option<Device>,
}

/// Who carries the packets.
enum Device {
    Kernel(Link),
    Process(Control),
}

impl Device {
    fn get(&mut self) -> Result<Config> {
        Ok(match self {
            Self::Kernel(link) => link.get()?,
            Self::Process(control) => control.get()?,
        }
        .config)
    }

    fn set(&mut self, changes: &portolan_wireguard::Changes) -> Result<()> {
        match self {
            Self::Kernel(link) => link.set(changes)?,
            Self::Process(control) => control.set(changes)?,
        }
        Ok(())
    }
}

impl Seal {
    /// The link called `name` of a resident whose run-time directory is `run`.
    pub(super) fn new(name: IfName, run: &Path) -> Self {
        let (socket, log) = (run.join("wireguard.sock"), run.join("wireguard.log"));
        Self { name, socket, log, told: None, device: None }
    }

    /// Has the link be there, with all hosts on it that `view` shows; whether it was not.
    ///
    /// # Errors
    /// When this host cannot have one, or it cannot be set.
    pub(super) fn ensure(&mut self, membership: &Membership, view: &BTreeMap<Id, HostRecord>) -> Result<bool> {
        let Some(own) = &membership.record.seal else {
            bail!("this host has no IPv6, and no encrypted link without it")
        };
        let wanted = config(membership, own, view)?;
        let is_there = self.is_there();
        if !is_there {
            self.told = None;
            self.device = Some(self.make(membership).context("make the encrypted link between hosts")?);
        }
        let Some(device) = &mut self.device else { bail!("the encrypted link is not there") };
        if self.told.as_ref() != Some(&wanted) {
            // Where a host was seen last is not what it says of itself.
            let from = match self.told.take() {
                Some(told) => told,
                None => device.get().context("read the encrypted link's state")?,
            };
            device.set(&changes(&from, &wanted)).context("set the encrypted link's peers")?;
            self.told = Some(wanted);
        }
        if !is_there {
            self.bring_up(own).context("bring the encrypted link up")?;
        }
        Ok(!is_there)
    }

    /// Whether the link is there and answers.
    fn is_there(&mut self) -> bool {
        let has_link = Socket::open(ROUTE).ok().and_then(|mut socket| {
            let found = link::lookup(&mut socket, self.name.as_str()).ok()?;
            Some(found.is_some_and(|link| link.up))
        });
        has_link == Some(true) && self.device.as_mut().is_some_and(|device| device.get().is_ok())
    }

    fn make(&mut self, membership: &Membership) -> Result<Device> {
        let name = self.name.as_str();
        let mtu = membership.record.mtu.bytes().saturating_sub(SEAL);
        // A kernel that has it says so by making one.
        match Link::open(name).or_else(|_| Link::create(name, mtu)) {
            Ok(link) => return Ok(Device::Kernel(link)),
            Err(KernelError::Unsupported | KernelError::Kind { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if let Ok(control) = Control::connect(&self.socket) {
            return Ok(Device::Process(control));
        }
        let options = Options { name: name.to_owned(), mtu, socket: self.socket.clone(), log: Some(self.log.clone()) };
        // Whatever became of the file that this process was started from.
        let mut program = Command::new("/proc/self/exe");
        program.arg0("portolan").arg(WORKER);
        Ok(Device::Process(worker::start(program, &options)?))
    }

    /// Gives it this host's address, as far as it has not.
    fn bring_up(&self, own: &SealRecord) -> Result<()> {
        let mut socket = Socket::open(ROUTE)?;
        let Some(found) = link::lookup(&mut socket, self.name.as_str())? else { bail!("`{}` is gone", self.name) };
        let mut batch = Batch::new();
        let change = LinkChange { up: Some(true), addr_gen_mode: Some(AddrGenMode::None), ..LinkChange::default() };
        link::set(&mut batch, found.index, &change);
        addr::replace(&mut batch, &Address::new(found.index, own.address.into(), 64));
        socket.transact(&batch)?;
        Ok(())
    }

    /// Removes it, if it is there.
    pub(super) fn remove(&mut self) -> Result<()> {
        (self.device, self.told) = (None, None);
        remove(&self.name)
    }
}

/// Removes the link of this name, if it is there; whoever carries its packets ends.
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

/// By what a program of ours is told to carry encrypted packets.
pub const WORKER: &str = "wireguard-worker";

/// What the device is to be: an address for each other host that has one.
fn config(membership: &Membership, own: &SealRecord, hosts: &BTreeMap<Id, HostRecord>) -> Result<Config> {
    let private: PrivateKey = membership.private_key.parse().context("read this host's key")?;
    let mut peers = BTreeMap::new();
    for (_, record) in hosts.iter().filter(|(host, _)| **host != membership.host) {
        let Some(seal) = &record.seal else { continue };
        let Ok(key) = seal.key.parse() else {
            tracing::warn!(host = %record.name, "its public key is none");
            continue;
        };
        let underlay = membership.record.underlay;
        let common = underlay.v4.and(record.underlay.v4).or(underlay.v6.and(record.underlay.v6));
        let allowed = BTreeSet::from([IpNet::V6(Ipv6Net::from(seal.address))]);
        let endpoint = common.map(|address| SocketAddr::new(address, seal.port));
        peers.insert(key, Peer { preshared: None, endpoint, allowed, keepalive: None });
    }
    Ok(Config { private_key: Some(private), listen_port: own.port, peers })
}

/// Whether any network that all hosts have is encrypted.
pub(super) fn is_needed(view: &View) -> bool {
    view.networks().values().any(|network| super::plan::is_encrypted(&network.options))
}
