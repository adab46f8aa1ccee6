//! eBPF: programs, the maps they share with us, and interfaces they are at (bpf(2), linux/bpf.h).

pub(crate) mod asm;
mod call;

pub(crate) use call::{COMMANDS, Fd, Map, MapKind, Program, at_ingress, attach, attached, detach, id, load, replace};
