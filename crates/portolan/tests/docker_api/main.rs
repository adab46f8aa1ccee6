//! Docker's Engine API as its own clients use it, beside a real dockerd.
//!
//! `script.txt` and `sdk.py` are what is done; what dockerd made of it is recorded in `dockerd.json`.
//! `PORTOLAN_BLESS=1 cargo test -p portolan --test docker_api` starts a dockerd, records it anew, and writes
//! `docs/docker-api-outcomes.md`.

#[path = "../common/mod.rs"]
mod common;
mod differences;
mod hostile;
mod lines;
#[path = "../machine/mod.rs"]
mod machine;
mod openapi;
#[path = "../docker/scene.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests of Docker")]
mod scene;
mod served;
mod table;
mod traffic;
