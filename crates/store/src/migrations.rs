//! How the file came to look as it does: one frozen step per format, never edited once released.
//!
//! A new format adds `migrations/vN.sql`, which turns format N-1 into N, and a snapshot of the outcome in
//! `tests/snapshots/schema-vN.sql`. A step that has to rewrite bodies brings its own frozen copies of the row
//! types; those of `portolan-model` move on.

use rusqlite::Connection;

use crate::tx::ends;

/// The format that this version writes: `PRAGMA user_version`.
pub(crate) const FORMAT: i64 = STEPS.len() as i64;

/// What leads from format `n` to `n + 1`, at index `n`.
const STEPS: &[&str] = &[
    include_str!("migrations/v1.sql"),
    include_str!("migrations/v2.sql"),
    include_str!("migrations/v3.sql"),
    include_str!("migrations/v4.sql"),
    include_str!("migrations/v5.sql"),
];

/// Brings the file from format `found` to [`FORMAT`], all or nothing.
pub(crate) fn run(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for (step, format) in
        STEPS.iter().zip(1..).skip(usize::try_from(found).expect("the caller refused negative formats"))
    {
        tx.execute_batch(step)?;
        if format == 3 {
            claim_subnets(&tx)?;
        }
    }
    tx.pragma_update(None, "user_version", FORMAT)?;
    tx.commit()
}

/// What SQL alone cannot say of format 3: the ends of the subnets of bridges.
fn claim_subnets(tx: &rusqlite::Transaction<'_>) -> rusqlite::Result<()> {
    let mut subnets = tx.prepare(
        "SELECT network.id, subnet.value ->> 'net' FROM network, json_each(network.body, '$.subnets') AS subnet
            WHERE network.ruled = 1",
    )?;
    let mut claim = tx.prepare("INSERT INTO claim (family, first, last, network) VALUES (?1, ?2, ?3, ?4)")?;
    let mut rows = subnets.query([])?;
    while let Some(row) = rows.next()? {
        let (network, net): ([u8; 32], String) = (row.get(0)?, row.get(1)?);
        let Ok(net) = net.parse() else { continue };
        let (family, first, last) = ends(net);
        claim.execute(rusqlite::params![family, first, last, network])?;
    }
    Ok(())
}
