//! Several hosts by way of a real etcd.

mod joining;
mod overlay;
mod world;
