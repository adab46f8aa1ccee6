//! Several hosts by way of a real etcd.

mod blocks;
mod cni;
mod drain;
mod failures;
mod forged;
mod health;
mod joining;
mod lossless;
mod many;
mod nat;
mod overlay;
mod paths;
mod promote;
mod rotation;
mod sealed;
mod secret;
mod shortcuts;
mod underlay;
mod world;
