//! What rows say of other hosts.

use ipnet::IpNet;
use portolan_model::{Id, Peer, RemoteBlock, RemoteEndpoint};

use super::StoreError;

/// The part of a transaction that is about other hosts of the cluster: a copy of what they share, as far as this one has seen
/// it.
///
/// Look-ups cost the same however many rows there are; what is named a list is linear in what it lists.
pub trait Remotes {
    /// Another host by its id.
    fn peer(&self, host: Id) -> Result<Option<Peer>, StoreError>;
    /// All of them (a list).
    fn peers(&self) -> Result<Vec<Peer>, StoreError>;
    /// Adds or replaces one.
    fn put_peer(&self, peer: &Peer) -> Result<(), StoreError>;
    /// Removes one.
    fn delete_peer(&self, host: Id) -> Result<(), StoreError>;

    /// The host that gives out the addresses of a block.
    fn remote_block(&self, network: Id, block: IpNet) -> Result<Option<Id>, StoreError>;
    /// The blocks of all networks (a list).
    fn remote_blocks(&self) -> Result<Vec<RemoteBlock>, StoreError>;
    /// The blocks of one network (a list).
    fn remote_blocks_of(&self, network: Id) -> Result<Vec<RemoteBlock>, StoreError>;
    /// The blocks that a host has, by network (a list).
    fn remote_blocks_at(&self, host: Id) -> Result<Vec<RemoteBlock>, StoreError>;
    /// Adds a block, or gives it to another host.
    fn put_remote_block(&self, block: &RemoteBlock) -> Result<(), StoreError>;
    /// Removes a block.
    fn delete_remote_block(&self, network: Id, block: IpNet) -> Result<(), StoreError>;

    /// An endpoint by its id.
    fn remote_endpoint(&self, id: Id) -> Result<Option<RemoteEndpoint>, StoreError>;
    /// All of them (a list).
    fn remote_endpoints(&self) -> Result<Vec<RemoteEndpoint>, StoreError>;
    /// Those on a network (a list).
    fn remote_endpoints_of(&self, network: Id) -> Result<Vec<RemoteEndpoint>, StoreError>;
    /// Adds or replaces one.
    fn put_remote_endpoint(&self, endpoint: &RemoteEndpoint) -> Result<(), StoreError>;
    /// Removes one.
    fn delete_remote_endpoint(&self, id: Id) -> Result<(), StoreError>;
}
