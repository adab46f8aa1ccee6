//! What the daemon is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_cni::Success;
use portolan_dhcp::{ClientId, Keeper, Place};
use portolan_kernel::carrier::carrier;
use portolan_kernel::netlink::{Batch, NetlinkError, ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_kernel::rtnl::link::{self, Link, LinkChange};
use portolan_model::{Family, Id, IfName, Mac, Sandbox};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::flags::Flags;
use super::held::{Held, Table, identity, key, lock};
use super::list;
use crate::dhcp::options::{self, Wire, WireIpam};
use crate::dhcp::rpc::{ALLOCATE, Arguments, COLLECT, HELD, RELEASE, STATUS};

/// How long giving back may take: as long as it takes to send a frame.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an interface that is brought up may take for its carrier; without it, the first question would be lost.
const CARRIER: Duration = Duration::from_secs(1);

/// What answers.
pub(super) struct Service {
    keeper: Keeper,
    held: Table,
    changed: Arc<Notify>,
    file: PathBuf,
    host_prefix: String,
    patience: Duration,
}

/// Takes a question back when nobody waits for the answer any more.
struct Asked<'a> {
    service: &'a Service,
    key: Id,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut held = lock(&self.service.held);
        let Some(asked) = held.get_mut(&self.key) else { return };
        asked.waiting = asked.waiting.saturating_sub(1);
        if asked.waiting == 0 && !asked.is_given {
            drop(held);
            drop(self.service.forget(vec![self.key]));
        }
    }
}

impl Service {
    /// Starts the thread that keeps leases, with those that `file` lists.
    pub(super) fn start(flags: &Flags, file: PathBuf) -> Result<Self> {
        let (held, changed) = (Table::default(), Arc::new(Notify::new()));
        let (table, notify, path) = (held.clone(), changed.clone(), file.clone());
        let tell = move |place: &Place, happened| {
            let mut held = lock(&table);
            if let Some(one) = held.get_mut(&place.endpoint) {
                one.note(happened);
                write(&path, held.values());
            }
            drop(held);
            notify.notify_waiters();
        };
        let keeper = Keeper::start(Box::new(tell)).context("start the thread that keeps leases")?;
        let before = list::read(&file).unwrap_or_else(|error| {
            tracing::warn!("the leases of before are lost: read `{}`: {error}", file.display());
            Vec::new()
        });
        for one in before {
            tracing::info!("{}: going on with the lease of before", one.name());
            let (place, lease) = (one.place.clone(), one.lease.clone());
            lock(&held).insert(place.endpoint, one);
            keeper.keep(place, lease);
        }
        Ok(Self { keeper, held, changed, file, host_prefix: flags.host_prefix.clone(), patience: flags.patience() })
    }

    /// Ready when, from now on, something has become of a lease.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Gives back from the host what was held by containers that are gone.
    pub(super) fn sweep(&self) {
        let gone: Vec<Id> = lock(&self.held).iter().filter(|(_, held)| held.is_gone).map(|(key, _)| *key).collect();
        if !gone.is_empty() {
            drop(self.forget(gone));
        }
    }

    /// Does what a method is for.
    pub(super) async fn call(&self, method: &str, arguments: &Arguments) -> Result<Option<Success>, String> {
        let known = [ALLOCATE, RELEASE, HELD, COLLECT, STATUS];
        if !known.contains(&method) {
            return Err(unknown(method));
        }
        let wire = options::read(&arguments.text).map_err(|error| format!("error parsing netconf: {error}"))?;
        match method {
            ALLOCATE => self.allocate(arguments, &wire).await.map(Some),
            RELEASE => {
                self.forget(vec![key(&arguments.container, &wire.name, &arguments.ifname)]).await;
                Ok(None)
            }
            HELD => self.which(arguments, &wire).map(Some),
            STATUS => needed(&wire)?.options(&arguments.args).map(|_| None),
            _ => self.collect(&wire).await.map(|()| None),
        }
    }

    /// Acquires a lease and keeps it; the caller gives the container its address. One that is held already is the answer.
    async fn allocate(&self, arguments: &Arguments, wire: &Wire) -> Result<Success, String> {
        let place = self.place(arguments, wire).await?;
        let key = place.endpoint;
        self.ask(arguments, wire, place);
        let _asked = Asked { service: self, key };
        let until = Instant::now() + self.patience;
        loop {
            let changed = self.changed.notified();
            let mut reason = None;
            {
                let mut held = lock(&self.held);
                let Some(one) = held.get_mut(&key) else { return Err("it was released meanwhile".to_owned()) };
                if let Some(answer) = one.answer() {
                    let answer = answer?;
                    if !one.is_given {
                        (one.is_given, one.placed) = (true, one.lease.clone());
                        write(&self.file, held.values());
                    }
                    return Ok(answer);
                }
                if one.is_gone {
                    return Err("the network namespace is gone".to_owned());
                }
                reason.clone_from(&one.reason);
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(until) => {
                    let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                    return Err(format!("no more tries{why}"));
                }
            }
        }
    }

    /// Begins to ask for a lease, unless it is asked for or held already. A container of the same name in another place
    /// asks for what the one before has had.
    fn ask(&self, arguments: &Arguments, wire: &Wire, place: Place) {
        let mut held = lock(&self.held);
        let before = held.remove(&place.endpoint);
        if let Some(mut same) = before.clone().filter(|before| before.place == place && !before.is_gone) {
            same.waiting += 1;
            held.insert(place.endpoint, same);
            return;
        }
        let (waiting, lease) = before.map(|before| (before.waiting, before.lease)).unwrap_or_default();
        let fresh = Held::new(arguments.container.clone(), wire.name.clone(), place.clone());
        tracing::info!("{}: acquiring a lease", fresh.name());
        held.insert(place.endpoint, Held { waiting: waiting + 1, ..fresh });
        self.keeper.keep(place, lease);
    }

    async fn place(&self, arguments: &Arguments, wire: &Wire) -> Result<Place, String> {
        let options = needed(wire)?.options(&arguments.args)?;
        let path = PathBuf::from(format!("{}{}", self.host_prefix, arguments.netns));
        let ns = NetnsFd::open(&path).map_err(|error| match error {
            gone if gone.is_missing() => format!("failed to Statfs {path:?}: no such file or directory"),
            other => format!("open network namespace {path:?}: {other}"),
        })?;
        let name = &arguments.ifname;
        let ifname: IfName = name.parse().map_err(|error| format!("error looking up {name:?}: {error}"))?;
        let failed = |error: &dyn std::fmt::Display| format!("error looking up {name:?}: {error}");
        let found =
            with_netns(&ns, || find_up(name)).map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        let found = found.ok_or_else(|| failed(&"Link not found"))?;
        let mac = found.mac.filter(|mac| *mac != [0; 6]).ok_or_else(|| failed(&"it has no Ethernet address"))?;
        let until = Instant::now() + CARRIER;
        let has_carrier = || with_netns(&ns, || carrier(name).unwrap_or(true)).unwrap_or(true);
        while !has_carrier() && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
        let id = ns.identity();
        let own = identity(&arguments.container, &wire.name, name);
        Ok(Place {
            endpoint: key(&arguments.container, &wire.name, name),
            family: Family::V4,
            sandbox: Sandbox { device: id.dev, inode: id.ino, path, process: None },
            ifname,
            mac: Mac::from_bytes(mac),
            client_id: Some(options.client_id.unwrap_or_else(|| ClientId::text(&own))),
            hostname: options.hostname,
            requested: Some(options.requested),
            parent: wire.parent().and_then(|name| name.parse().ok()),
        })
    }

    fn which(&self, arguments: &Arguments, wire: &Wire) -> Result<Success, String> {
        let held = lock(&self.held);
        let one = held.get(&key(&arguments.container, &wire.name, &arguments.ifname));
        let name = identity(&arguments.container, &wire.name, &arguments.ifname);
        let one = one.filter(|one| one.is_given).ok_or_else(|| format!("no lease is held for {name}"))?;
        // One that was taken over counts before its server is heard.
        match (one.answer(), &one.lease) {
            (Some(answer), _) => answer,
            (None, Some(lease)) => Ok(Success {
                ips: vec![portolan_cni::Ip { interface: None, address: lease.address, gateway: lease.gateway }],
                ..Success::default()
            }),
            (None, None) => Err(format!("the lease of {name} has ended, and no server gives another")),
        }
    }

    /// Gives back what a network's containers hold that nobody lists.
    async fn collect(&self, wire: &Wire) -> Result<(), String> {
        let valid = wire.valid.as_ref().ok_or("cni.dev/valid-attachments is missing")?;
        let is_listed = |held: &Held| {
            valid.iter().any(|at| at.container == held.container && at.ifname == held.place.ifname.as_str())
        };
        let is_left = |held: &Held| held.network == wire.name && held.waiting == 0 && !is_listed(held);
        let left = lock(&self.held).iter().filter(|(_, held)| is_left(held)).map(|(key, _)| *key).collect();
        self.forget(left).await;
        Ok(())
    }

    /// Gives back what is held under `keys`, from the containers' interfaces if those are there. It is begun at once, and
    /// done before whatever the keeper is told next; the future is ready when it is done, or has taken too long.
    fn forget(&self, mut keys: Vec<Id>) -> impl Future<Output = ()> + use<> {
        let mut held = lock(&self.held);
        keys.retain(|key| {
            let gone = held.remove(key);
            gone.inspect(|gone| tracing::info!("{}: releasing the lease", gone.name())).is_some()
        });
        let sent = (!keys.is_empty()).then(|| {
            write(&self.file, held.values());
            let sent = self.keeper.begin_release(keys.iter().map(|key| (*key, Family::V4)).collect());
            keys.iter().for_each(|key| self.keeper.leave(*key, Family::V4));
            self.changed.notify_waiters();
            sent
        });
        async move {
            if let Some(sent) = sent
                && timeout(PATIENCE, sent).await.is_err()
            {
                tracing::warn!("a lease is given back late");
            }
        }
    }
}

fn needed(wire: &Wire) -> Result<&WireIpam, String> {
    wire.ipam.as_ref().ok_or_else(|| "IPAM config missing 'ipam' key".to_owned())
}

/// What Go says of a method that is not there.
fn unknown(method: &str) -> String {
    match method.rsplit_once('.') {
        None => format!("rpc: service/method request ill-formed: {method}"),
        Some(("DHCP", _)) => format!("rpc: can't find method {method}"),
        Some(_) => format!("rpc: can't find service {method}"),
    }
}

/// The interface of that name in the namespace of the thread, which is brought up if it is not.
fn find_up(name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut socket = Socket::open(ROUTE)?;
    let Some(found) = link::lookup(&mut socket, name)? else { return Ok(None) };
    if !found.up {
        let mut batch = Batch::new();
        link::set(&mut batch, found.index, &LinkChange { up: Some(true), ..LinkChange::default() });
        socket.transact(&batch)?;
    }
    Ok(Some(found))
}

fn write<'a>(file: &Path, held: impl Iterator<Item = &'a Held>) {
    if let Err(error) = list::write(file, held) {
        tracing::warn!(
            "a daemon that comes after this one does not know its leases: write `{}`: {error}",
            file.display()
        );
    }
}
