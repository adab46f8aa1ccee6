//! The verbs: create and delete a network, attach and detach a container, publish and unpublish a port, reconcile,
//! gc. One way through for every face.
//!
//! Owns the transaction of each verb, address management and the repair of what a killed process left. Decides from
//! rows and from facts it asks its two ports for, [`Store`] and [`Kernel`]; it makes no system call itself, so that
//! everything here is tested without root.
//!
//! Every changing verb holds the store's lock from its first read to its last commit. A row in transition seen under
//! that lock therefore belongs to a process that died, and is taken down before anything else is done.

#![forbid(unsafe_code)]

mod api;
mod attach;
mod bandwidth;
mod cluster;
mod connect;
mod containers;
mod engine;
mod error;
mod follow;
mod grow;
mod ipam;
mod kernel;
mod leases;
mod link;
mod membership;
mod networks;
mod overlay;
mod pools;
mod promote;
mod publish;
mod refer;
mod repair;
mod sets;
mod store;
mod tuning;

pub use api::{
    AttachRequest, Change, ContainerInfo, EndpointRequest, Followed, NetworkInfo, NetworkRequest, RangeRequest,
    Repaired, Rules, RulesOf,
};
pub use bandwidth::BandwidthChange;
pub use cluster::{Cluster, ClusterError, Wanting};
pub use engine::Engine;
pub use error::{Error, Kind, Result};
pub use kernel::{About, HostInterface, HostRoute, Kernel, KernelError, PortClash};
pub use overlay::{OverlayNetwork, Remote, RemoteChanges, Room, first_of};
pub use pools::{AddressRequest, Call, Given, PoolNet, PoolRequest};
pub use store::{
    Durability, Holder, LeaseRow, PublicationRow, Remotes, RestingLease, Store, StoreError, Touched, Transition, Tx,
};
