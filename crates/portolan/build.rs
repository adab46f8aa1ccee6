//! Says which sources the binary is made of, for `netavark version`.
//!
//! It is linked as usual, to run at any address: without, a command starts 0.3 ms earlier, but the daemon is root and reads
//! what strangers send.

// The program's own: both write times in the same form.
#[allow(dead_code, unreachable_pub)]
#[path = "../model/src/clock.rs"]
mod clock;

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../model/src/clock.rs");
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // A release that is built outside of a checkout says when it was made by the usual variable.
    let unknown = || "unknown".to_owned();
    let commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(unknown);
    let epoch = || std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok().map(clock::rfc3339);
    let time = git(&["log", "-1", "--format=%cI"]).or_else(epoch);
    println!("cargo::rustc-env=PORTOLAN_COMMIT={commit}");
    println!("cargo::rustc-env=PORTOLAN_COMMIT_TIME={}", time.unwrap_or_else(unknown));
    println!("cargo::rustc-env=PORTOLAN_TARGET={}", std::env::var("TARGET").unwrap_or_else(|_| unknown()));
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
}
