use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::table::Table;

/// What an entry costs besides its bytes: its places in the table and in the queue, and what allocators add.
const OVERHEAD: usize = 160;

/// Answers of others, for as long as they say.
///
/// It is bounded in bytes. What was not asked for since it was last looked at goes first (the "second chance" order),
/// which costs a hit one bit.
#[derive(Debug)]
pub struct Cache {
    entries: Table<Arc<[u8]>, Entry>,
    /// Every key once, in the order in which they are looked at for eviction.
    queue: VecDeque<Arc<[u8]>>,
    bytes: usize,
    limit: usize,
}

#[derive(Debug)]
struct Entry {
    message: Box<[u8]>,
    stored: Instant,
    expires: Instant,
    used: bool,
}

impl Cache {
    /// A cache of at most `limit` bytes, keys and bookkeeping included; with 0 it keeps nothing.
    pub fn new(limit: usize) -> Self {
        Self { entries: Table::default(), queue: VecDeque::new(), bytes: 0, limit }
    }

    /// What was put under `key`, and its age in whole seconds, unless its time is over.
    pub fn get(&mut self, key: &[u8], now: Instant) -> Option<(&[u8], u32)> {
        let entry = self.entries.get_mut(key).filter(|entry| now < entry.expires)?;
        entry.used = true;
        let age = now.saturating_duration_since(entry.stored).as_secs();
        Some((&entry.message, u32::try_from(age).unwrap_or(u32::MAX)))
    }

    /// Keeps `message` for `ttl`, in the place of what was there under `key`.
    pub fn put(&mut self, key: &[u8], message: Box<[u8]>, ttl: Duration, now: Instant) {
        let cost = key.len() + message.len() + OVERHEAD;
        if ttl.is_zero() || cost > self.limit {
            return;
        }
        let entry = Entry { stored: now, expires: now + ttl, used: false, message };
        match self.entries.get_mut(key) {
            Some(old) => {
                self.bytes = self.bytes + entry.message.len() - old.message.len();
                *old = entry;
            }
            None => {
                let key: Arc<[u8]> = key.into();
                self.queue.push_back(key.clone());
                self.entries.insert(key, entry);
                self.bytes += cost;
            }
        }
        while self.bytes > self.limit {
            self.evict(now);
        }
    }

    /// Forgets everything, as after a change of upstreams.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.queue.clear();
        self.bytes = 0;
    }

    /// Entries in it, those included whose time is over.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes it takes; never more than its limit.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn evict(&mut self, now: Instant) {
        let Some(key) = self.queue.pop_front() else { return };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.used && now < entry.expires {
            entry.used = false;
            self.queue.push_back(key);
            return;
        }
        self.bytes -= key.len() + entry.message.len() + OVERHEAD;
        self.entries.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Box<[u8]> {
        vec![7; len].into()
    }

    #[test]
    fn an_entry_ages_and_ends() {
        let now = Instant::now();
        let mut cache = Cache::new(10_000);
        cache.put(b"a", message(3), Duration::from_secs(10), now);
        assert_eq!(cache.get(b"a", now + Duration::from_millis(2900)), Some((&[7; 3][..], 2)));
        assert_eq!(cache.get(b"a", now + Duration::from_secs(10)), None);
        assert_eq!(cache.get(b"b", now), None);
    }

    #[test]
    fn it_never_outgrows_its_limit_and_keeps_what_is_used() {
        let now = Instant::now();
        let mut cache = Cache::new(100 * (OVERHEAD + 50));
        cache.put(b"wanted", message(20), Duration::from_secs(60), now);
        for number in 0..10_000u32 {
            assert!(cache.get(b"wanted", now).is_some());
            cache.put(&number.to_be_bytes(), message(number as usize % 90), Duration::from_secs(60), now);
            assert!(cache.bytes() <= 100 * (OVERHEAD + 50));
        }
        assert!(cache.len() > 50);
        cache.put(b"large", message(1 << 20), Duration::from_secs(60), now);
        assert_eq!(cache.get(b"large", now), None);
    }

    #[test]
    fn a_new_answer_takes_the_place_of_the_old() {
        let now = Instant::now();
        let mut cache = Cache::new(1000);
        cache.put(b"a", message(100), Duration::from_secs(1), now);
        cache.put(b"a", message(10), Duration::from_secs(5), now);
        assert_eq!((cache.len(), cache.bytes()), (1, 1 + 10 + OVERHEAD));
        assert!(cache.get(b"a", now + Duration::from_secs(3)).is_some());
        cache.clear();
        assert!(cache.is_empty() && cache.bytes() == 0);
    }
}
