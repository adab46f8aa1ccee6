//! Hosts over an etcd that is a value.

mod etcd;
mod hosts;
mod moves;
mod rotation;
mod thousand;
