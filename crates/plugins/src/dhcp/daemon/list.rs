//! The file that leases are listed in, for the daemon that comes after one that was killed or stopped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use portolan_dhcp::Place;
use portolan_model::DhcpLease;
use serde::{Deserialize, Serialize};

use super::held::Held;

/// What the file says of its own shape.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    /// Clocks and namespaces are those of one boot.
    boot: String,
    leases: Vec<Row>,
}

/// A lease and whose it is.
#[derive(Serialize, Deserialize)]
struct Row {
    container: String,
    network: String,
    place: Place,
    lease: DhcpLease,
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Writes down what was granted to whom.
pub(super) fn write<'a>(file: &Path, held: impl Iterator<Item = &'a Held>) -> io::Result<()> {
    let row = |held: &Held| {
        // One that nobody waited for to its end was not given to a container.
        let lease = held.lease.clone().filter(|_| held.is_given)?;
        let Held { container, network, place, .. } = held;
        Some(Row { container: container.clone(), network: network.clone(), place: place.clone(), lease })
    };
    let wire = Wire { version: VERSION, boot: boot(), leases: held.filter_map(row).collect() };
    let mut fresh = file.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    fs::write(&fresh, serde_json::to_vec(&wire)?)?;
    fs::rename(&fresh, file)
}

/// Reads what another wrote; nothing of another boot.
pub(super) fn read(file: &Path) -> io::Result<Vec<Held>> {
    let text = match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let wire: Wire = serde_json::from_slice(&text)?;
    if wire.version != VERSION || wire.boot != boot() {
        return Ok(Vec::new());
    }
    let held = |Row { container, network, place, lease }| {
        let placed = Some(lease.clone());
        Held { lease: Some(lease), placed, is_given: true, ..Held::new(container, network, place) }
    };
    Ok(wire.leases.into_iter().map(held).collect())
}
