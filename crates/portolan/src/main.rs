//! The one binary: the command line over the engine.
//!
//! Owns the words and flags people type, what is printed, and the processes that `portolan run` starts. Leaves out
//! every decision about networks: the engine takes them, `portolan-kernel` makes the system calls.

#![forbid(unsafe_code)]
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "comments of arguments are their help: brackets say what may be left out"
)]

mod cli;
mod clock;
mod cmd;
mod containers_conf;
mod context;
mod failure;
mod log;
mod output;
mod resolv;
mod runtime;
mod spec;
mod table;

use std::io::Write;

fn main() {
    if let Some(code) = cmd::netavark::called().or_else(cmd::overlay::called).or_else(cmd::cni::called) {
        exit(code);
    }
    exit(match cli::parse() {
        Ok(cli) => cli.run(),
        Err(code) => code,
    })
}

fn exit(code: i32) -> ! {
    let _ = std::io::stdout().flush();
    // Nothing is left to drop that the kernel does not drop itself.
    std::process::exit(code)
}
