//! Several hosts by way of a real etcd.

mod blocks;
mod capture;
mod direct;
mod failures;
mod forged;
mod joining;
mod l2;
mod lossless;
mod many;
mod overlay;
mod rotation;
mod sealed;
mod secret;
mod segments;
mod shortcuts;
mod underlay;
mod world;
