//! What firewalld answers, without a bus: the ways in for `fuzz/`, and for nothing else.

use std::collections::{BTreeMap, BTreeSet};

use zbus::zvariant::serialized::{Context, Data};
use zbus::zvariant::{LE, OwnedValue};

/// The rules in the body of what `getPolicySettings` answers; none of what is no such body.
pub fn rules(body: &[u8]) -> Option<BTreeSet<String>> {
    let data = Data::new(body, Context::new_dbus(LE, 0));
    let (settings, _) = data.deserialize::<BTreeMap<String, OwnedValue>>().ok()?;
    Some(crate::rules(settings))
}

/// Whether the body of what `Get` answers says that a setting is on; none of what is no such body.
pub fn is_yes(body: &[u8]) -> Option<bool> {
    let data = Data::new(body, Context::new_dbus(LE, 0));
    Some(crate::is_yes(data.deserialize::<OwnedValue>().ok()?.0))
}

/// The body that has these rules among its settings.
pub fn write_rules(rules: &BTreeSet<String>) -> Vec<u8> {
    let rules: OwnedValue = zbus::zvariant::Value::from(rules.iter().cloned().collect::<Vec<_>>())
        .try_into()
        .expect("texts are no descriptors");
    let settings = BTreeMap::from([("rich_rules", rules)]);
    zbus::zvariant::to_bytes(Context::new_dbus(LE, 0), &settings).expect("texts can be written").to_vec()
}
