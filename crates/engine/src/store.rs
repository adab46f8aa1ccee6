//! The port through which the engine reads and writes its rows.

mod remotes;

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use portolan_model::{Container, Endpoint, Family, Id, Mac, Network, Phase, Pool, PortRange, Protocol, Publication};

pub use remotes::Remotes;

/// A row of the published ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationRow {
    /// The container whose port it is.
    pub container: Id,
    /// What is published where.
    pub publication: Publication,
    /// Where it stands.
    pub phase: Phase,
}

/// A row that some process is making or removing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transition {
    /// A network.
    Network(Id),
    /// A container.
    Container(Id),
    /// An endpoint, of this container.
    Endpoint {
        /// The endpoint.
        endpoint: Id,
        /// Its container.
        container: Id,
    },
    /// A published port.
    Publication(PublicationRow),
}

/// An address that was freed and rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestingLease {
    /// The address.
    pub address: IpAddr,
    /// The MAC that last held it.
    pub mac: Option<Mac>,
}

/// Who holds an address of a network, or held it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRow {
    /// The endpoint, or of a pool whoever claims the address; none while it rests.
    pub endpoint: Option<Id>,
    /// The MAC that holds or last held it.
    pub mac: Option<Mac>,
}

/// Why the store could not serve.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state file is not what it should be.
    #[error("read state file `{path}`: it is damaged")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the library found.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The state file was written by a later version.
    #[error("read state file `{path}`: its format {found} is newer than this version's {supported}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: i64,
        /// The newest format this version reads.
        supported: i64,
    },
    /// No room.
    #[error("write state file `{path}`: the disk is full")]
    Full {
        /// The file.
        path: PathBuf,
        /// What the library found.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Not allowed, or a read-only file system.
    #[error("{doing} `{path}`: no permission")]
    Denied {
        /// What was tried, e.g. `open state file`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the library found.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Somebody else has the lock, and does not let go of it.
    #[error("lock `{path}`: {} has {}", said(.holder), since(*.waited))]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long the same process had it while we waited.
        waited: Duration,
        /// That process, if it can be known.
        holder: Option<Holder>,
    },
    /// Anything else that went wrong with the file.
    #[error("{doing} `{path}`")]
    Io {
        /// What was tried, e.g. `commit to state file`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the library found.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StoreError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Corrupt { path, .. } => {
                format!("move `{}` away and run `portolan gc`; networks must be made again", path.display())
            }
            Self::Newer { .. } => "use the newer version of portolan that wrote it".to_owned(),
            Self::Full { .. } => "free some room; nothing has changed".to_owned(),
            Self::Denied { .. } => "run as root, or choose another --root".to_owned(),
            Self::Busy { holder: Some(Holder { pid, stopped: true, .. }), .. } => format!(
                "`kill -CONT {pid}` lets it go on; if it is killed instead, the next command puts in order what it left"
            ),
            Self::Busy { holder: Some(Holder { pid, .. }), .. } => format!(
                "wait longer with --wait SECONDS; if process {pid} hangs, kill it: the next command puts in order what it left"
            ),
            Self::Busy { holder: None, .. } => "wait longer with --wait SECONDS".to_owned(),
            Self::Io { .. } => return None,
        })
    }
}

/// Who has a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// The program's name; empty if it is gone or may not be looked at.
    pub name: String,
    /// It is stopped, by a signal or a debugger.
    pub stopped: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        match (self.name.as_str(), self.stopped) {
            ("", false) => Ok(()),
            ("", true) => f.write_str(" (stopped)"),
            (name, false) => write!(f, " (`{name}`)"),
            (name, true) => write!(f, " (`{name}`, stopped)"),
        }
    }
}

fn said(holder: &Option<Holder>) -> String {
    holder.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string)
}

fn since(waited: Duration) -> String {
    if waited.is_zero() { "it".to_owned() } else { format!("held it for {} s", waited.as_secs()) }
}

/// What a commit changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Touched {
    /// A network.
    Network(Id),
    /// A container, or its endpoints or published ports.
    Container(Id),
    /// An endpoint at another host.
    Remote(Id),
}

/// How long a commit must last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Survives the death of the process. Enough for rows about the living kernel, which does not outlive a
    /// power cut either.
    Process,
    /// Survives a power cut: what a person configured.
    Disk,
}

/// The state of one root.
pub trait Store {
    /// One transaction.
    type Tx<'a>: Tx
    where
        Self: 'a;

    /// The exclusive right to change the state and to delete kernel objects; released on drop and when the
    /// process dies.
    type Guard<'a>
    where
        Self: 'a;

    /// Waits for the write lock, first come first served.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when one process does not let go of it; others when the lock file cannot be opened.
    fn lock(&self) -> Result<Self::Guard<'_>, StoreError>;

    /// Starts a read-only transaction: a consistent view, which never waits for writers.
    ///
    /// # Errors
    /// [`StoreError`] when the state cannot be read.
    fn read(&self) -> Result<Self::Tx<'_>, StoreError>;

    /// Starts a read-write transaction under `guard`; rolled back when dropped without commit.
    ///
    /// # Errors
    /// [`StoreError`] when the state cannot be opened for writing.
    fn write<'a>(&'a self, guard: &'a Self::Guard<'_>) -> Result<Self::Tx<'a>, StoreError>;

    /// Marks the rows as perhaps not what the kernel has, or takes the mark away. It outlives the process, and can be set
    /// where no row can be written any more.
    ///
    /// # Errors
    /// [`StoreError`] when not even that can be written.
    fn mark_doubtful(&self, guard: &Self::Guard<'_>, doubtful: bool) -> Result<(), StoreError>;

    /// Whether they are marked.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    fn is_doubtful(&self, guard: &Self::Guard<'_>) -> Result<bool, StoreError>;
}

/// One transaction over the rows.
///
/// Look-ups by key and by index cost the same however many rows there are; only what is named a list is linear.
pub trait Tx: Remotes {
    /// Makes the changes visible to others.
    ///
    /// # Errors
    /// [`StoreError::Full`] and others; nothing has changed then.
    fn commit(self, durability: Durability) -> Result<(), StoreError>;

    /// A value by its key.
    fn meta(&self, key: &str) -> Result<Option<String>, StoreError>;
    /// Sets or, with none, removes a value.
    fn put_meta(&self, key: &str, value: Option<&str>) -> Result<(), StoreError>;

    /// A network by its id.
    fn network(&self, id: Id) -> Result<Option<Network>, StoreError>;
    /// A network by its name.
    fn network_named(&self, name: &str) -> Result<Option<Network>, StoreError>;
    /// Up to two networks whose id starts with these hexadecimal digits.
    fn networks_with_prefix(&self, prefix: &str) -> Result<Vec<Network>, StoreError>;
    /// All networks, by name.
    fn networks(&self) -> Result<Vec<Network>, StoreError>;
    /// Adds or replaces a network.
    fn put_network(&self, network: &Network) -> Result<(), StoreError>;
    /// Removes a network, its resting leases, and what other hosts have of it.
    fn delete_network(&self, id: Id) -> Result<(), StoreError>;
    /// The network that makes the host's interface of this name: a bridge of ours, or the VLAN that it is on.
    fn network_of_device(&self, name: &str) -> Result<Option<Network>, StoreError>;
    /// The network, other than the predefined one, whose bridge of ours has addresses in common with `net`. Such networks
    /// have none in common with each other.
    fn claimant(&self, net: IpNet) -> Result<Option<Id>, StoreError>;
    /// Whether there is any network with rules of ours but the predefined one; of several hosts, one that somebody is on.
    fn has_user_bridges(&self) -> Result<bool, StoreError>;

    /// A network over several hosts that somebody here is on, if there is any.
    fn overlay_in_use(&self) -> Result<Option<Network>, StoreError>;

    /// A container by its id.
    fn container(&self, id: Id) -> Result<Option<Container>, StoreError>;
    /// A container by its name.
    fn container_named(&self, name: &str) -> Result<Option<Container>, StoreError>;
    /// Up to two containers whose id starts with these hexadecimal digits.
    fn containers_with_prefix(&self, prefix: &str) -> Result<Vec<Container>, StoreError>;
    /// The container whose sandbox is this namespace.
    fn container_in(&self, device: u64, inode: u64) -> Result<Option<Container>, StoreError>;
    /// The ids of all containers, oldest first.
    fn container_ids(&self) -> Result<Vec<Id>, StoreError>;
    /// All containers, oldest first.
    fn containers(&self) -> Result<Vec<Container>, StoreError>;
    /// Adds or replaces a container.
    fn put_container(&self, container: &Container) -> Result<(), StoreError>;
    /// Removes a container.
    fn delete_container(&self, id: Id) -> Result<(), StoreError>;

    /// The endpoints of a container, by interface name's creation order.
    fn endpoints_of(&self, container: Id) -> Result<Vec<Endpoint>, StoreError>;
    /// The endpoints on a network (a list).
    fn endpoints_on(&self, network: Id) -> Result<Vec<Endpoint>, StoreError>;
    /// How many endpoints a network has, counted to `limit` at most.
    fn endpoint_count(&self, network: Id, limit: usize) -> Result<usize, StoreError>;
    /// Whether an interface name is taken on the host side.
    fn host_end_taken(&self, host_end: &str) -> Result<bool, StoreError>;
    /// Adds or replaces an endpoint.
    fn put_endpoint(&self, endpoint: &Endpoint) -> Result<(), StoreError>;
    /// Removes an endpoint; its leases come to rest.
    fn delete_endpoint(&self, id: Id) -> Result<(), StoreError>;
    /// The endpoint whose interface on the host side has this name.
    fn endpoint_at(&self, host_end: &str) -> Result<Option<Endpoint>, StoreError>;
    /// The endpoint that holds a MAC on a network.
    fn mac_holder(&self, network: Id, mac: Mac) -> Result<Option<Id>, StoreError>;
    /// An endpoint by its id.
    fn endpoint(&self, id: Id) -> Result<Option<Endpoint>, StoreError>;

    /// Who holds or last held an address of a network.
    fn lease(&self, network: Id, address: IpAddr) -> Result<Option<LeaseRow>, StoreError>;
    /// Gives an address to an endpoint.
    fn take_lease(&self, network: Id, address: IpAddr, endpoint: Id, mac: Mac) -> Result<(), StoreError>;
    /// Has an address rest, whoever had it, if anybody; its prefix length is its subnet's.
    fn rest_lease(&self, network: Id, address: IpNet) -> Result<(), StoreError>;
    /// All addresses of a network or pool that are taken, with who has them (a list).
    fn leases(&self, network: Id) -> Result<Vec<(IpAddr, Id)>, StoreError>;

    /// A pool by its id. Its addresses are leases under its id, whose endpoint is its holder.
    fn pool(&self, id: Id) -> Result<Option<Pool>, StoreError>;
    /// All pools, by subnet.
    fn pools(&self) -> Result<Vec<Pool>, StoreError>;
    /// A pool that has addresses in common with `net`.
    fn pool_overlapping(&self, net: IpNet) -> Result<Option<Pool>, StoreError>;
    /// Adds a pool or replaces the one with its id, whose subnet stays.
    fn put_pool(&self, pool: &Pool) -> Result<(), StoreError>;
    /// Removes a pool and all its leases.
    fn delete_pool(&self, id: Id) -> Result<(), StoreError>;

    /// The highest address of `subnet` ever handed out in sequence. Host bits tell ranges of one subnet apart.
    fn lease_cursor(&self, network: Id, subnet: IpNet) -> Result<Option<IpAddr>, StoreError>;
    /// Moves the cursor.
    fn put_lease_cursor(&self, network: Id, subnet: IpNet, cursor: IpAddr) -> Result<(), StoreError>;
    /// The address in `first..=last` that has rested longest.
    fn oldest_resting(&self, network: Id, first: IpAddr, last: IpAddr) -> Result<Option<RestingLease>, StoreError>;
    /// How many addresses of `family` a network has leased.
    fn lease_count(&self, network: Id, family: Family) -> Result<usize, StoreError>;

    /// The published ports of a container, in the order they were asked for.
    fn publications_of(&self, container: Id) -> Result<Vec<PublicationRow>, StoreError>;
    /// Published ports of `protocol` that have a host port in `ports`.
    fn publications_overlapping(&self, protocol: Protocol, ports: PortRange)
    -> Result<Vec<PublicationRow>, StoreError>;
    /// Adds a published port or replaces the one with the same container and publication.
    fn put_publication(&self, row: &PublicationRow) -> Result<(), StoreError>;
    /// Removes a published port.
    fn delete_publication(&self, container: Id, publication: &Publication) -> Result<(), StoreError>;

    /// Rows in transition, oldest first, up to `limit`.
    fn transitions(&self, limit: usize) -> Result<Vec<(Transition, Phase)>, StoreError>;

    /// The number of the last commit that changed a network or a container; 0 before the first.
    fn revision(&self) -> Result<u64, StoreError>;
    /// What the commits after `revision` changed, and the number of the last one. None when the log of changes does
    /// not reach back so far: then everything may have.
    fn touched_since(&self, revision: u64) -> Result<Option<(u64, BTreeSet<Touched>)>, StoreError>;
}
