//! How the file came to look as it does: one frozen step per format, never edited once released.
//!
//! A new format adds `migrations/vN.sql`, which turns format N-1 into N, and a snapshot of the outcome in
//! `tests/snapshots/schema-vN.sql`. A step that has to rewrite bodies brings its own frozen copies of the row
//! types; those of `portolan-model` move on.

use rusqlite::Connection;

/// The format that this version writes: `PRAGMA user_version`.
pub(crate) const FORMAT: i64 = STEPS.len() as i64;

/// What leads from format `n` to `n + 1`, at index `n`.
const STEPS: &[&str] = &[include_str!("migrations/v1.sql"), include_str!("migrations/v2.sql")];

/// Brings the file from format `found` to [`FORMAT`], all or nothing.
pub(crate) fn run(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for step in STEPS.iter().skip(usize::try_from(found).expect("the caller refused negative formats")) {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", FORMAT)?;
    tx.commit()
}
