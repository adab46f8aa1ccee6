//! What iptables-save(8) prints.

use std::collections::BTreeMap;

use portolan_model::{Family, FirewallDriver};
use portolan_plan::Firewall;
use portolan_plan::iptables::{Door, Found, Saved, create, delete, find, mend};

/// Text of both families.
pub fn saved(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    let saved = Saved::parse(text);
    let firewall = Firewall { driver: FirewallDriver::Iptables, name: "portolan_1a2b3c4d".to_owned() };
    let both = BTreeMap::from(Family::ALL.map(|family| (family, saved.clone())));
    if let Found::Whole(elements) = find(&firewall, &both) {
        for element in &elements {
            for family in Family::ALL {
                let batch = mend(&firewall, family, &saved, &[element], &[]).unwrap_or_default();
                lines(&batch);
            }
        }
    }
    for family in Family::ALL {
        lines(&create(&firewall, family, &saved, &[]));
    }
    lines(&delete(&firewall, &saved).unwrap_or_default());
    let door = Door::new(&firewall, "/var/lib/portolan");
    door.state(&saved);
    lines(&door.open(&saved).unwrap_or_default());
    lines(&door.close(&saved).unwrap_or_default());
}

/// Input of iptables-restore(8): tables, each with lines that have a verb, and an end.
fn lines(batch: &str) {
    let mut is_in_table = false;
    for line in batch.lines() {
        let verb = line.split(' ').next().unwrap_or_default();
        match verb {
            "COMMIT" => {
                assert!(is_in_table, "{batch}");
                is_in_table = false;
            }
            _ if line.starts_with('*') => {
                assert!(!is_in_table && ["*raw", "*filter", "*nat"].contains(&line), "{batch}");
                is_in_table = true;
            }
            "-A" | "-D" | "-I" | "-F" | "-X" | "-N" => assert!(is_in_table, "{batch}"),
            _ => assert!(line.starts_with(':') && is_in_table, "{line:?} in {batch}"),
        }
    }
    assert!(!is_in_table, "{batch}");
}
