//! What hosts share: the keys and records in etcd, what one host knows of them, blocks of addresses, and which transaction
//! does what. Everything here is a value or a function of values; sockets, clocks and etcd itself are elsewhere.
//!
//! Three rules keep hosts from getting the same thing twice, whatever is lost in between:
//!
//! - whatever must be one host's or one network's alone has a key of its own, which is written only where there is none
//!   ([`Write`]);
//! - a host uses what it has seen to be its own, never what it has only asked for;
//! - it offers only what it does not use any more ([`portolan_model::Withheld`]), and uses it again when it has seen that the offer
//!   came to nothing.
//!
//! A host knows what all share, and all of those networks that it is on; of others, that they are there.

#![forbid(unsafe_code)]

mod blocks;
mod follow;
mod key;
mod moves;
mod network;
mod paths;
mod record;
mod rotation;
mod view;
mod way;
mod write;

pub use blocks::{block_length, block_of, blocks_of, choose, free_around, without};
pub use follow::{abandoned, concerns};
pub use key::{Key, Layout, Part};
pub use moves::{Idle, Own, free, offer, own, turn, unused};
pub use network::{NewNetwork, Refusal, plan_network};
pub use paths::{Figures, PATIENCE, Passage, PathTo, Paths, Probe, Shot, Tunnel};
pub use record::{
    BUNDLES, Block, Checked, ClusterNetwork, ClusterRecord, EndpointRecord, FORMAT, HostRecord, KeyRecord, Reach,
    SealRecord, VXLAN_PORT, WayRecord,
};
pub use rotation::{Other, Step, lane, lane_to, step};
pub use view::{Change, Event, Found, View, WentBack};
pub use way::{Heard, Way, begins, common, instead_of, pair, relay_for, relays, way};
pub use write::{Condition, Operation, Write};
