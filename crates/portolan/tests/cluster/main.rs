//! Several hosts by way of a real etcd.

mod blocks;
mod capture;
mod cni;
mod direct;
mod drain;
mod failures;
mod forged;
mod health;
mod joining;
mod l2;
mod lossless;
mod many;
mod nat;
mod overlay;
mod paths;
mod promote;
mod rotation;
mod sealed;
mod secret;
mod segments;
mod shortcuts;
mod translated;
mod underlay;
mod untracked;
mod world;
