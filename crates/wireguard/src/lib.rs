//! Encrypted links between hosts: WireGuard devices, by the kernel where it has them and by a process of ours where not.
//!
//! [`Config`] is what a device should be, [`changes`] what leads from one to another; both are values. Whatever carries
//! the packets is a [`Device`]: [`Control`] talks to a process over a unix socket in the cross-platform configuration
//! protocol, [`kernel::Link`] to the kernel over netlink, and [`kernel::probe`] says which of the two a host has.
//! [`worker`] is that process: it makes a TUN interface and carries its packets with the library `gotatun`. [`relay`] decides where to
//! what two hosts send each other by a third one is passed on.
//!
//! Addresses, routes and the choice of keys are the caller's, and so is what keeps packets from going around the device.
//!
//! Protocol: <https://www.wireguard.com/protocol/>; configuration protocol: <https://www.wireguard.com/xplatform/>.

#![forbid(unsafe_code)]

mod config;
mod control;
pub mod kernel;
mod key;
pub mod relay;
mod secret;
mod uapi;
pub mod worker;

pub use config::{Config, Peer, State, Status, changes};
pub use control::{Control, ControlError};
pub use key::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use secret::Secret;
pub use uapi::{Changes, PeerChange, UapiError};

/// Something that carries the packets of one device.
pub trait Device {
    /// Why it could not be asked, or refused.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What it is set to, and what its peers are at.
    ///
    /// # Errors
    /// When the device is gone, or answers what is not understood.
    fn get(&mut self) -> Result<State, Self::Error>;

    /// Makes all of `changes` or, when they are refused, none.
    ///
    /// # Errors
    /// When the device is gone or refuses.
    fn set(&mut self, changes: &Changes) -> Result<(), Self::Error>;
}
