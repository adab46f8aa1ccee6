//! What goes wrong: at one of the calls of kernel and store, counted over both, the process dies, the call is refused, or
//! it takes place and its answer is lost.
//!
//! A fault is armed for a thread, and so for one simulated host.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::path::PathBuf;

use ipnet::IpNet;
use portolan_engine::{
    Durability, LeaseRow, PublicationRow, Remotes, RestingLease, Store, StoreError, Touched, Transition, Tx,
};
use portolan_model::{
    Container, Endpoint, Family, Id, Mac, Network, Peer, Phase, Pool, PortRange, Protocol, RemoteBlock, RemoteEndpoint,
};
use portolan_store::{SqliteGuard, SqliteStore, SqliteTx};

/// What the unwinding of a dying process carries.
pub(crate) struct Death;

/// Whose call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    Kernel,
    Store,
}

/// What becomes of a call that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ack {
    /// It did not take place.
    Refused,
    /// It did, and its answer says that it did not.
    Lost,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Death,
    Errno(i32, Ack),
}

/// What goes wrong where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The call, from 1, of those that can fail so.
    pub(crate) at: usize,
    /// Whose; none for anybody's.
    pub(crate) site: Option<Site>,
    pub(crate) how: How,
    /// Whether all later ones fail as well.
    pub(crate) lasting: bool,
}

/// The errors that calls end with, by errno(3).
pub(crate) const ERRNOS: [i32; 7] = [105, 16, 5, 28, 24, 12, 4];

pub(crate) const fn name(errno: i32) -> &'static str {
    match errno {
        105 => "no buffer space available (ENOBUFS)",
        16 => "device or resource busy (EBUSY)",
        5 => "input/output error (EIO)",
        28 => "no space left on device (ENOSPC)",
        24 => "too many open files (EMFILE)",
        12 => "cannot allocate memory (ENOMEM)",
        4 => "interrupted system call (EINTR)",
        _ => "unknown error",
    }
}

thread_local! {
    static ARMED: Cell<Option<Fault>> = const { Cell::new(None) };
    static HITS: Cell<usize> = const { Cell::new(0) };
}

pub(crate) fn arm(fault: Option<Fault>) {
    ARMED.set(fault);
    HITS.set(0);
}

/// Disarms, and answers how often the fault came to pass.
pub(crate) fn disarm() -> usize {
    ARMED.set(None);
    HITS.get()
}

fn is_due(site: Site, wanted: impl Fn(How) -> bool) -> Option<Fault> {
    let mut fault = ARMED.get().filter(|fault| wanted(fault.how) && fault.site.is_none_or(|other| other == site))?;
    fault.at = fault.at.saturating_sub(1);
    let due = fault.at == 0;
    ARMED.set((!due || fault.lasting).then_some(fault));
    due.then(|| {
        HITS.set(HITS.get() + 1);
        fault
    })
}

/// A call at which the process may die.
pub(crate) fn pass(site: Site) {
    if is_due(site, |how| how == How::Death).is_some() {
        ARMED.set(None);
        // Not by a panic: nobody is to be told.
        resume_unwind(Box::new(Death));
    }
}

/// Whether a call that can fail does.
pub(crate) fn hit(site: Site) -> Option<(i32, Ack)> {
    match is_due(site, |how| how != How::Death)?.how {
        How::Errno(errno, ack) => Some((errno, ack)),
        How::Death => None,
    }
}

fn failed(errno: i32) -> StoreError {
    let (path, source) = (PathBuf::from("state.db"), name(errno).into());
    match errno {
        28 => StoreError::Full { path, source },
        _ => StoreError::Io { doing: "use state file", path, source },
    }
}

/// A call of the store that reads, or of a transaction that is not committed: it fails, or nothing happens.
fn ask() -> Result<(), StoreError> {
    pass(Site::Store);
    hit(Site::Store).map_or(Ok(()), |(errno, _)| Err(failed(errno)))
}

/// A store whose calls fail.
pub(crate) struct BrokenStore(pub(crate) SqliteStore);

/// A transaction of it.
pub(crate) struct BrokenTx<'a>(SqliteTx<'a>);

impl Store for BrokenStore {
    type Tx<'a> = BrokenTx<'a>;
    type Guard<'a> = SqliteGuard<'a>;

    fn lock(&self) -> Result<Self::Guard<'_>, StoreError> {
        ask()?;
        self.0.lock()
    }

    fn read(&self) -> Result<Self::Tx<'_>, StoreError> {
        ask()?;
        self.0.read().map(BrokenTx)
    }

    fn write<'a>(&'a self, guard: &'a Self::Guard<'_>) -> Result<Self::Tx<'a>, StoreError> {
        ask()?;
        self.0.write(guard).map(BrokenTx)
    }

    // No row: what makes these fail does not make that fail.
    fn mark_doubtful(&self, guard: &Self::Guard<'_>, doubtful: bool) -> Result<(), StoreError> {
        self.0.mark_doubtful(guard, doubtful)
    }

    fn is_doubtful(&self, guard: &Self::Guard<'_>) -> Result<bool, StoreError> {
        self.0.is_doubtful(guard)
    }
}

macro_rules! pass_on {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> Result<$answer, StoreError> {
            ask()?;
            self.0.$name($($arg),*)
        })*
    };
}

impl Tx for BrokenTx<'_> {
    fn commit(self, durability: Durability) -> Result<(), StoreError> {
        pass(Site::Store);
        match hit(Site::Store) {
            Some((errno, Ack::Refused)) => return Err(failed(errno)),
            Some((errno, Ack::Lost)) => self.0.commit(durability).and(Err(failed(errno)))?,
            None => self.0.commit(durability)?,
        }
        // Dead as soon as it is committed.
        pass(Site::Store);
        Ok(())
    }

    pass_on! {
        fn meta(key: &str) -> Option<String>;
        fn put_meta(key: &str, value: Option<&str>) -> ();
        fn network(id: Id) -> Option<Network>;
        fn network_named(name: &str) -> Option<Network>;
        fn networks_with_prefix(prefix: &str) -> Vec<Network>;
        fn networks() -> Vec<Network>;
        fn put_network(network: &Network) -> ();
        fn delete_network(id: Id) -> ();
        fn network_of_device(name: &str) -> Option<Network>;
        fn claimant(net: IpNet) -> Option<Id>;
        fn has_user_bridges() -> bool;
        fn overlay_in_use() -> Option<Network>;
        fn container(id: Id) -> Option<Container>;
        fn container_named(name: &str) -> Option<Container>;
        fn containers_with_prefix(prefix: &str) -> Vec<Container>;
        fn container_in(device: u64, inode: u64) -> Option<Container>;
        fn container_ids() -> Vec<Id>;
        fn containers() -> Vec<Container>;
        fn put_container(container: &Container) -> ();
        fn delete_container(id: Id) -> ();
        fn endpoints_of(container: Id) -> Vec<Endpoint>;
        fn endpoints_on(network: Id) -> Vec<Endpoint>;
        fn endpoint_count(network: Id, limit: usize) -> usize;
        fn host_end_taken(host_end: &str) -> bool;
        fn put_endpoint(endpoint: &Endpoint) -> ();
        fn delete_endpoint(id: Id) -> ();
        fn endpoint_at(host_end: &str) -> Option<Endpoint>;
        fn mac_holder(network: Id, mac: Mac) -> Option<Id>;
        fn endpoint(id: Id) -> Option<Endpoint>;
        fn lease(network: Id, address: IpAddr) -> Option<LeaseRow>;
        fn take_lease(network: Id, address: IpAddr, endpoint: Id, mac: Mac) -> ();
        fn rest_lease(network: Id, address: IpNet) -> ();
        fn leases(network: Id) -> Vec<(IpAddr, Id)>;
        fn pool(id: Id) -> Option<Pool>;
        fn pools() -> Vec<Pool>;
        fn pool_overlapping(net: IpNet) -> Option<Pool>;
        fn put_pool(pool: &Pool) -> ();
        fn delete_pool(id: Id) -> ();
        fn lease_cursor(network: Id, subnet: IpNet) -> Option<IpAddr>;
        fn put_lease_cursor(network: Id, subnet: IpNet, cursor: IpAddr) -> ();
        fn oldest_resting(network: Id, first: IpAddr, last: IpAddr) -> Option<RestingLease>;
        fn lease_count(network: Id, family: Family) -> usize;
        fn publications_of(container: Id) -> Vec<PublicationRow>;
        fn publications_overlapping(protocol: Protocol, ports: PortRange) -> Vec<PublicationRow>;
        fn put_publication(row: &PublicationRow) -> ();
        fn delete_publication(container: Id, publication: &portolan_model::Publication) -> ();
        fn transitions(limit: usize) -> Vec<(Transition, Phase)>;
        fn revision() -> u64;
        fn touched_since(revision: u64) -> Option<(u64, BTreeSet<Touched>)>;
    }
}

impl Remotes for BrokenTx<'_> {
    pass_on! {
        fn peer(host: Id) -> Option<Peer>;
        fn peers() -> Vec<Peer>;
        fn put_peer(peer: &Peer) -> ();
        fn delete_peer(host: Id) -> ();
        fn remote_block(network: Id, block: IpNet) -> Option<Id>;
        fn remote_blocks() -> Vec<RemoteBlock>;
        fn remote_blocks_of(network: Id) -> Vec<RemoteBlock>;
        fn remote_blocks_at(host: Id) -> Vec<RemoteBlock>;
        fn put_remote_block(block: &RemoteBlock) -> ();
        fn delete_remote_block(network: Id, block: IpNet) -> ();
        fn remote_endpoint(id: Id) -> Option<RemoteEndpoint>;
        fn remote_endpoints() -> Vec<RemoteEndpoint>;
        fn remote_endpoints_of(network: Id) -> Vec<RemoteEndpoint>;
        fn put_remote_endpoint(endpoint: &RemoteEndpoint) -> ();
        fn delete_remote_endpoint(id: Id) -> ();
    }
}
