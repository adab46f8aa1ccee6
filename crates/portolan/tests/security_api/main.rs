//! Attacks on what Portolan serves and on what it is told: names, sockets, texts. Each is carried out for real, and shown to
//! bite where nothing keeps it off.
//!
//! What came of them is the table in `docs/security-services.md`. `PORTOLAN_SECURITY=WORD` carries out only the cases whose
//! name has it; `PORTOLAN_BLESS=1 cargo test -p portolan --test security_api` writes the table.

#[path = "../common/mod.rs"]
mod common;
mod inside;
mod internal;
mod local_names;
mod name_server;
mod rights;
mod sockets;
mod table;
mod texts;
