/// A table that is looked up for every question and never listed in its own order.
#[expect(clippy::disallowed_types, reason = "looked up, never listed, and on the path of every question")]
pub(crate) type Table<K, V> = std::collections::HashMap<K, V>;
