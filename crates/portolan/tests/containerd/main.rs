//! A real containerd that has this binary as its CNI plugins, and no others.
//!
//! [`tasks`] by `ctr run --cni`, [`pods`] by the calls that a kubelet makes (CRI).

#[path = "../machine/mod.rs"]
mod machine;

mod cri;
mod pods;
mod scene;
mod tasks;
