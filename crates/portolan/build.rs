//! Links the binary at a fixed address where the linker can: a short-lived process then starts without relocating
//! itself, which costs as much as reading its command line.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
