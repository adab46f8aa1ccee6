//! Devices of the worker, in namespaces.

mod carry;
mod rotate;
mod speed;
mod world;
