//! A set of kernel objects.

use std::collections::BTreeMap;

use super::{Key, Object};

/// Objects by key, in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objects(BTreeMap<Key, Object>);

impl Objects {
    /// No objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an object; one with the same key is replaced.
    pub fn insert(&mut self, object: Object) {
        self.0.insert(object.key(), object);
    }

    /// The object of this key.
    pub fn find(&self, key: &Key) -> Option<&Object> {
        self.0.get(key)
    }

    /// All of them, in order of creation.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Key, &Object)> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps those for which `keep` answers true.
    pub fn retain(&mut self, mut keep: impl FnMut(&Object) -> bool) {
        self.0.retain(|_, object| keep(object));
    }
}

impl Extend<Object> for Objects {
    fn extend<I: IntoIterator<Item = Object>>(&mut self, objects: I) {
        for object in objects {
            self.insert(object);
        }
    }
}

impl FromIterator<Object> for Objects {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut all = Self::new();
        all.extend(objects);
        all
    }
}

impl IntoIterator for Objects {
    type Item = Object;
    type IntoIter = std::collections::btree_map::IntoValues<Key, Object>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_values()
    }
}
