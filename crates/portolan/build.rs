//! Says which sources the binary is made of, for `netavark version`, and links it at a fixed address where the linker can:
//! a short-lived process then starts without relocating itself, which costs as much as reading its command line.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // A release that is built outside of a checkout says when it was made by the usual variable.
    let unknown = || "unknown".to_owned();
    let commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(unknown);
    let time = git(&["log", "-1", "--format=%cI"]).or_else(|| std::env::var("SOURCE_DATE_EPOCH").ok());
    println!("cargo::rustc-env=PORTOLAN_COMMIT={commit}");
    println!("cargo::rustc-env=PORTOLAN_COMMIT_TIME={}", time.unwrap_or_else(unknown));
    println!("cargo::rustc-env=PORTOLAN_TARGET={}", std::env::var("TARGET").unwrap_or_else(|_| unknown()));
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
}
