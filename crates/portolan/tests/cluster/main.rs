//! Several hosts by way of a real etcd.

mod blocks;
mod drain;
mod failures;
mod forged;
mod joining;
mod lossless;
mod many;
mod overlay;
mod paths;
mod rotation;
mod sealed;
mod secret;
mod shortcuts;
mod underlay;
mod world;
