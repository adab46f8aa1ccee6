//! The three calls, and the leases that are held for callers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use portolan_dhcp::{ClientId, Happened, Keeper, Place, readdress};
use portolan_model::{DhcpLease, Family, Id, IfName, Mac, Sandbox};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{sleep_until, timeout};

use crate::grpc::{Code, Status};
use crate::wire::{Lease, NetworkConfig, OperationResponse};

/// How long giving back may take: as long as it takes to send a frame.
const PATIENCE: Duration = Duration::from_secs(2);

/// A lease that is held, or asked for.
struct Held {
    place: Place,
    lease: Option<DhcpLease>,
    /// Why there is none yet.
    reason: Option<String>,
    /// Its namespace is gone.
    is_gone: bool,
}

type Key = (Id, Family);
type Table = Arc<Mutex<BTreeMap<Key, Held>>>;

fn lock(table: &Table) -> MutexGuard<'_, BTreeMap<Key, Held>> {
    table.lock().expect("nothing panics while holding it")
}

/// What answers.
pub(crate) struct Service {
    keeper: Keeper,
    held: Table,
    changed: Arc<Notify>,
    file: PathBuf,
    timeout: Duration,
    last: Cell<Instant>,
}

/// Takes a question back whose asker does not wait for the answer.
struct Asked<'a> {
    service: &'a Service,
    key: Key,
    is_answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            drop(self.service.forget(vec![self.key]));
        }
        self.service.last.set(Instant::now());
    }
}

impl Service {
    /// Starts the thread that keeps leases; they are listed in `file`.
    pub(crate) fn start(file: PathBuf, timeout: Duration) -> Result<Self> {
        let (held, changed) = (Table::default(), Arc::new(Notify::new()));
        let (table, notify, path) = (held.clone(), changed.clone(), file.clone());
        write(&file, &BTreeMap::new())?;
        let tell = move |place: &Place, happened| {
            note(&table, place, happened);
            if let Err(error) = write(&path, &lock(&table)) {
                tracing::warn!("{error:#}");
            }
            notify.notify_waiters();
        };
        let keeper = Keeper::start(Box::new(tell)).context("start the thread that keeps leases")?;
        Ok(Self { keeper, held, changed, file, timeout, last: Cell::new(Instant::now()) })
    }

    /// Whether anything is held or asked for.
    pub(crate) fn is_busy(&self) -> bool {
        !lock(&self.held).is_empty()
    }

    /// How long ago the last call was answered.
    pub(crate) fn idle(&self) -> Duration {
        self.last.get().elapsed()
    }

    /// Gives back from the host what was held by containers that are gone.
    pub(crate) fn sweep(&self) {
        let gone: Vec<Key> = lock(&self.held).iter().filter(|(_, held)| held.is_gone).map(|(key, _)| *key).collect();
        if gone.is_empty() {
            return;
        }
        drop(self.forget(gone));
        if let Err(status) = self.list() {
            tracing::warn!("{}", status.message);
        }
    }

    /// Ready when, from now on, something is held that was not, or the other way round.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Acquires a lease, gives the container its address and default route, and keeps it.
    pub(crate) async fn setup(&self, config: NetworkConfig) -> Result<Lease, Status> {
        self.last.set(Instant::now());
        let place = place(&config)?;
        let (key, mac) = ((place.endpoint, place.family), place.mac);
        drop(self.forget(vec![key]));
        self.hand_over(&place);
        lock(&self.held).insert(key, Held { place: place.clone(), lease: None, reason: None, is_gone: false });
        let mut asked = Asked { service: self, key, is_answered: false };
        self.keeper.keep(place, None);
        let until = tokio::time::Instant::now() + self.timeout;
        loop {
            let changed = self.changed.notified();
            let mut reason = None;
            if let Some(held) = lock(&self.held).get(&key) {
                if let Some(lease) = &held.lease {
                    asked.is_answered = true;
                    return Ok(Lease::new(lease, mac));
                }
                reason.clone_from(&held.reason);
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(until) => {
                    let why = reason.unwrap_or_else(|| format!("no DHCP server answered within {} s", self.timeout.as_secs()));
                    let what = format!("get a lease for interface `{}`: {why}", config.container_iface);
                    return Err(Status::new(Code::DeadlineExceeded, what));
                }
            }
        }
    }

    /// Gives a lease back; what it was, or an empty one where none is held.
    pub(crate) async fn teardown(&self, config: &NetworkConfig) -> Result<Lease, Status> {
        self.last.set(Instant::now());
        let mac = mac(config)?;
        let key = (id(mac), family(config)?);
        let lease = lock(&self.held).get(&key).and_then(|held| held.lease.clone());
        self.take_back(vec![key]).await?;
        Ok(lease.map_or_else(Lease::default, |lease| Lease::new(&lease, mac)))
    }

    /// Gives all leases back.
    pub(crate) async fn clean(&self) -> Result<OperationResponse, Status> {
        self.last.set(Instant::now());
        let keys: Vec<Key> = lock(&self.held).keys().copied().collect();
        self.take_back(keys).await?;
        Ok(OperationResponse { success: true })
    }

    /// Gives back what is held under `keys`, from the containers' interfaces if those are there. It is begun at once, and
    /// done before whatever the keeper is told next; the future is ready when it is done, or has taken too long.
    fn forget(&self, mut keys: Vec<Key>) -> impl Future<Output = ()> + use<> {
        let mut held = lock(&self.held);
        keys.retain(|key| held.remove(key).is_some());
        drop(held);
        let sent = (!keys.is_empty()).then(|| self.keeper.begin_release(keys.clone()));
        for (endpoint, family) in keys {
            self.keeper.leave(endpoint, family);
        }
        if sent.is_some() {
            self.changed.notify_waiters();
        }
        async move {
            if let Some(sent) = sent
                && timeout(PATIENCE, sent).await.is_err()
            {
                tracing::warn!("a lease is given back late");
            }
        }
    }

    /// Lets go of what `place` holds under another MAC, of a container that ended without a `Teardown`: the server gives
    /// it to the same client once more.
    fn hand_over(&self, place: &Place) {
        lock(&self.held).retain(|key, held| {
            let is_same = held.place.is_same_client(place);
            if is_same {
                self.keeper.hand_over(key.0, key.1);
            }
            !is_same
        });
    }

    /// Gives back what is held under `keys` and lists what is left; the list is right even if the caller leaves.
    async fn take_back(&self, keys: Vec<Key>) -> Result<(), Status> {
        let given_back = self.forget(keys);
        let listed = self.list();
        given_back.await;
        listed
    }

    fn list(&self) -> Result<(), Status> {
        write(&self.file, &lock(&self.held)).map_err(|error| Status::new(Code::Internal, format!("{error:#}")))
    }
}

/// Takes note of what happened to a lease, and puts its address in place.
fn note(table: &Table, place: &Place, happened: Happened) {
    let mut table = lock(table);
    let Some(held) = table.get_mut(&(place.endpoint, place.family)) else { return };
    let (lease, reason) = match happened {
        Happened::Granted(lease, _) => (Some(lease), None),
        Happened::Ended => (None, None),
        Happened::Failed(reason) => (held.lease.clone(), Some(reason)),
        Happened::SandboxGone => {
            held.is_gone = true;
            return;
        }
    };
    let set = |lease: Option<&DhcpLease>| lease.map(|lease| (lease.address, lease.gateway));
    if held.lease.is_some() && set(held.lease.as_ref()) != set(lease.as_ref()) {
        tracing::info!("ip or gateway for mac {} changed, update address", place.mac);
    }
    if set(held.lease.as_ref()) != set(lease.as_ref())
        && let Err(error) = readdress(place, held.lease.as_ref(), lease.as_ref())
    {
        let why = format!("give `{}` its address: {error}", place.ifname);
        if held.lease.is_none() {
            // Nobody has been told of it yet.
            held.reason = Some(why);
            return;
        }
        tracing::warn!("{why}");
    }
    (held.lease, held.reason) = (lease, reason);
}

/// Lists what is held, as netavark does: by MAC.
fn write(file: &Path, held: &BTreeMap<Key, Held>) -> Result<()> {
    let mut leases: BTreeMap<String, Vec<Lease>> = BTreeMap::new();
    for held in held.values() {
        if let Some(lease) = &held.lease {
            leases.entry(held.place.mac.to_string()).or_default().push(Lease::new(lease, held.place.mac));
        }
    }
    let doing = || format!("write `{}`", file.display());
    let fresh = file.with_extension("new");
    fs::write(&fresh, serde_json::to_vec(&leases)?).with_context(doing)?;
    fs::rename(&fresh, file).with_context(doing)
}

fn refuse(error: impl std::fmt::Display) -> Status {
    Status::new(Code::InvalidArgument, error.to_string())
}

fn mac(config: &NetworkConfig) -> Result<Mac, Status> {
    config.container_mac_addr.to_ascii_lowercase().parse().map_err(refuse)
}

fn family(config: &NetworkConfig) -> Result<Family, Status> {
    match config.version {
        0 => Ok(Family::V4),
        1 => Ok(Family::V6),
        other => Err(refuse(format!("IP version `{other}` is unknown"))),
    }
}

/// A container is known by its MAC here.
fn id(mac: Mac) -> Id {
    let mut bytes = [0; 32];
    bytes[..6].copy_from_slice(&mac.octets());
    Id::from_bytes(bytes)
}

pub(crate) fn place(config: &NetworkConfig) -> Result<Place, Status> {
    let mac = mac(config)?;
    let name = |text: &str| text.parse::<IfName>().map_err(refuse);
    let found = fs::metadata(&config.ns_path)
        .map_err(|error| refuse(format!("open network namespace `{}`: {error}", config.ns_path)))?;
    let ifname = name(&config.container_iface)?;
    Ok(Place {
        endpoint: id(mac),
        family: family(config)?,
        client_id: ClientId::new(&config.container_id, &ifname),
        sandbox: Sandbox {
            device: found.dev(),
            inode: found.ino(),
            path: config.ns_path.clone().into(),
            process: None,
        },
        ifname,
        mac,
        hostname: config.host_name.clone(),
        requested: None,
        parent: Some(name(&config.host_iface)?),
    })
}
