//! Prefixes whose keys are kept once more in a few keys, as bundles: etcd looks up each key by itself, so that a bundle of a
//! thousand comes for a hundredth of the work.
//!
//! A bundle says what was there at a revision. Every transaction that writes under the prefix writes a key beside it as well, whose
//! revision and count say whether, and after how many transactions, something else is there now. What that is comes from a watch of
//! both, which has caught up when it shows the last of them. A bundle is written on condition that nothing was since it was read, so
//! that it is right in the history in which it is found, also where etcd was restored from a backup meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tokio::time::timeout;

use crate::client::{Client, Compare, KeyValue, Op, Txn};
use crate::error::Error;
use crate::watch::Event;
use crate::wire;

/// A value is no longer than this, as etcd takes no longer request than 1.5 MB (`--max-request-bytes`), and a bundle has no more of
/// them.
const LONGEST: usize = 1_000_000;
const MOST: usize = 16;
/// A bundle is made anew after so many transactions for each key in it, as a part: so it costs etcd only a few times what these do.
const PART: i64 = 4;
/// How long to wait for what was written since, of all that is asked for together. Not too short: who is slow because all ask at
/// once is not to be asked for all keys as well.
const CATCH_UP: Duration = Duration::from_secs(10);

/// A prefix of which there may be a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundled {
    /// What its keys begin with.
    pub prefix: Vec<u8>,
    /// What those of them begin with that come and go with leases: they are not in the bundle, and nothing is written beside them.
    pub apart: Vec<u8>,
    /// The key that is written with all others. It is in order before them, and no other between, so that one watch sees it with them.
    pub written: Vec<u8>,
    /// What the keys of the bundle begin with.
    pub bundle: Vec<u8>,
}

impl Bundled {
    /// Of fewer keys no bundle is made.
    pub const LEAST: usize = 128;

    fn is_in(&self, key: &[u8]) -> bool {
        key.starts_with(&self.prefix) && !key.starts_with(&self.apart)
    }

    fn key(&self, number: usize) -> Vec<u8> {
        [&self.bundle, format!("{number:04}").as_bytes()].concat()
    }
}

/// A value of a bundle.
#[derive(Clone, PartialEq, Message)]
struct Chunk {
    /// At which revision it was so.
    #[prost(int64, tag = "1")]
    revision: i64,
    /// How often the key beside it had been written then.
    #[prost(int64, tag = "2")]
    writes: i64,
    /// How many keys are in the whole bundle.
    #[prost(int64, tag = "3")]
    keys: i64,
    #[prost(message, repeated, tag = "4")]
    kvs: Vec<wire::KeyValue>,
}

impl Chunk {
    fn of(found: &KeyValue) -> Option<Self> {
        let chunk = Self::decode(found.value.clone()).ok()?;
        (chunk.revision > 0 && chunk.revision < found.mod_revision && chunk.keys > 0).then_some(chunk)
    }
}

/// A bundle as it was found.
struct Whole {
    revision: i64,
    /// Until then nothing had changed.
    written: i64,
    writes: i64,
    kvs: Vec<KeyValue>,
}

impl Whole {
    /// None, if they are no whole one.
    fn of(chunks: &[KeyValue]) -> Option<Self> {
        let mut whole: Option<Self> = None;
        for found in chunks {
            let chunk = Chunk::of(found)?;
            let now = whole.get_or_insert(Self {
                revision: chunk.revision,
                written: found.mod_revision,
                writes: chunk.writes,
                kvs: Vec::with_capacity(usize::try_from(chunk.keys).ok()?.min(found.value.len())),
            });
            if now.writes != chunk.writes {
                return None;
            }
            // Two that made it at once saw the same.
            now.revision = now.revision.min(chunk.revision);
            now.written = now.written.min(found.mod_revision);
            now.kvs.extend(chunk.kvs.into_iter().map(KeyValue::from));
            if now.kvs.len() as i64 == chunk.keys {
                return whole;
            }
        }
        None
    }
}

/// As the values of a bundle; none if there were too many.
fn chunks(found: Vec<KeyValue>, revision: i64, writes: i64) -> Option<Vec<Vec<u8>>> {
    let keys = i64::try_from(found.len()).ok()?;
    let begin = || Chunk { revision, writes, keys, kvs: Vec::new() };
    let (mut all, mut chunk, mut length) = (Vec::new(), begin(), 0);
    for kv in found {
        let kv = wire::KeyValue::from(kv);
        // With what says how long it is.
        let its = kv.encoded_len() + 8;
        if length + its > LONGEST {
            all.push(std::mem::replace(&mut chunk, begin()).encode_to_vec());
            length = 0;
        }
        length += its;
        chunk.kvs.push(kv);
    }
    all.push(chunk.encode_to_vec());
    (all.len() <= MOST).then_some(all)
}

impl Client {
    /// What begins with the prefix of each of these, then with each of `others`, in their order, all as of `revision`, or of the one
    /// that is answered if that is 0: as [`Self::ranges_at`] says it, but from bundles where there are any.
    ///
    /// # Errors
    /// As there.
    pub async fn look_at(
        &self,
        bundled: &[Bundled],
        others: &[Vec<u8>],
        revision: i64,
    ) -> Result<(i64, Vec<Vec<KeyValue>>), Error> {
        let three = bundled.iter().flat_map(|of| [&of.bundle, &of.written, &of.apart]);
        let prefixes: Vec<Vec<u8>> = three.chain(others).cloned().collect();
        let (revision, answers) = self.ranges_at(&prefixes, revision).await?;
        let mut answers = answers.into_iter();
        let mut all: Vec<Option<Vec<KeyValue>>> = Vec::with_capacity(bundled.len() + others.len());
        let mut patience = CATCH_UP;
        for of in bundled {
            let mut next = || answers.next().unwrap_or_default();
            let (bundle, written, apart) = (next(), next(), next());
            let mut found = self.unbundle(of, &bundle, &written, revision, &mut patience).await;
            found.iter_mut().for_each(|found| found.extend(apart.iter().cloned()));
            all.push(found);
        }
        // Somebody who uses other programs may have removed keys, or written some.
        let prefixes = bundled.iter().zip(&all).filter(|(_, found)| found.is_some());
        let prefixes: Vec<&[u8]> = prefixes.map(|(of, _)| &of.prefix[..]).collect();
        let mut counts = self.counts_at(&prefixes, revision).await?.into_iter();
        for found in all.iter_mut().filter(|found| found.is_some()) {
            let count = counts.next();
            found.take_if(|found| Some(found.len() as i64) != count);
        }
        all.extend(answers.map(Some));
        let missing = bundled.iter().zip(&all).filter(|(_, found)| found.is_none());
        let missing: Vec<Vec<u8>> = missing.map(|(of, _)| of.prefix.clone()).collect();
        let (_, listed) = self.ranges_at(&missing, revision).await?;
        let mut listed = listed.into_iter();
        let all = all.into_iter().map(|found| found.or_else(|| listed.next()).unwrap_or_default()).collect();
        Ok((revision, all))
    }

    /// What is in a bundle, and what became of it up to `revision`; none where it is not known, or comes faster from the keys. Who
    /// has no `patience` left is not waited for.
    async fn unbundle(
        &self,
        of: &Bundled,
        bundle: &[KeyValue],
        written: &[KeyValue],
        revision: i64,
        patience: &mut Duration,
    ) -> Option<Vec<KeyValue>> {
        let Whole { revision: seen, written: unchanged, writes, kvs } = Whole::of(bundle)?;
        let last = written.first()?;
        let since = last.version - writes;
        if last.mod_revision < unchanged && since == 0 {
            return Some(kvs);
        }
        if since <= 0 || since > kvs.len() as i64 {
            return None;
        }
        let found = kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        let work = self.catch_up(of, found, seen, last.mod_revision, revision);
        let began = Instant::now();
        let found = timeout(*patience, work).await;
        *patience = patience.saturating_sub(began.elapsed());
        // Whatever is in the way: the keys are there.
        let found = found.ok()?.ok()?;
        Some(found.into_values().collect())
    }

    /// What `found` at revision `seen` is at `now`, when `last` was the last revision by which any of it was written.
    async fn catch_up(
        &self,
        of: &Bundled,
        mut found: BTreeMap<Bytes, KeyValue>,
        seen: i64,
        last: i64,
        now: i64,
    ) -> Result<BTreeMap<Bytes, KeyValue>, Error> {
        let mut watch = self.watch_from(of.written.clone(), &of.prefix, seen + 1).await?;
        loop {
            let batch = watch.next().await?;
            for event in batch.events {
                match event {
                    Event::Put(kv) if kv.mod_revision <= now && of.is_in(&kv.key) => {
                        drop(found.insert(kv.key.clone(), kv))
                    }
                    Event::Delete { key, revision } if revision <= now && of.is_in(&key) => {
                        drop(found.remove(&key[..]))
                    }
                    Event::Put(_) | Event::Delete { .. } => {}
                }
            }
            if batch.revision >= last {
                return Ok(found);
            }
        }
    }

    /// Makes a bundle, if there is none that does; whether it did.
    ///
    /// # Errors
    /// What etcd says.
    pub async fn bundle(&self, of: &Bundled) -> Result<bool, Error> {
        let (revision, answers) = self.ranges_at(&[of.written.clone(), of.key(0)], 0).await?;
        let mut answers = answers.into_iter().map(|found| found.into_iter().next());
        let (Some(Some(written)), before) = (answers.next(), answers.next().flatten()) else { return Ok(false) };
        if let Some(chunk) = before.as_ref().and_then(Chunk::of) {
            let since = written.version - chunk.writes;
            if since >= 0 && since * PART <= chunk.keys {
                return Ok(false);
            }
        }
        let (_, mut found) = self.range_at(of.prefix.clone(), revision).await?;
        found.retain(|kv| of.is_in(&kv.key));
        if found.len() < Bundled::LEAST || found.iter().any(|kv| kv.lease != 0) {
            return Ok(false);
        }
        let Some(chunks) = chunks(found, revision, written.version) else { return Ok(false) };
        let end = chunks.len();
        // The first one last: by it is told whether there is one to be made.
        for (number, chunk) in chunks.into_iter().enumerate().rev() {
            let put = Op::put(of.key(number), chunk, None);
            let rest = (number == 0).then(|| Op::delete_range(of.key(end), &of.bundle));
            let compares = vec![Compare::mod_revision(of.written.clone(), written.mod_revision)];
            let txn = Txn { compares, then: [put].into_iter().chain(rest).collect() };
            if !self.txn(txn).await?.succeeded {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(number: usize, length: usize) -> KeyValue {
        let key = format!("/a/{number:05}").into();
        KeyValue { key, value: vec![b'x'; length].into(), create_revision: 1, mod_revision: 2, version: 1, lease: 0 }
    }

    fn found(chunks: Vec<Vec<u8>>, revision: i64) -> Vec<KeyValue> {
        let as_found = |chunk: Vec<u8>| KeyValue { value: chunk.into(), mod_revision: revision, ..kv(0, 0) };
        chunks.into_iter().map(as_found).collect()
    }

    #[test]
    fn values_are_not_too_long_and_a_whole_again_together() {
        let all: Vec<KeyValue> = (0..30_000).map(|number| kv(number, 300)).collect();
        let chunks = chunks(all.clone(), 7, 5).unwrap();
        assert!(chunks.len() > 5 && chunks.iter().all(|chunk| chunk.len() <= LONGEST + 100), "{}", chunks.len());
        let mut values = found(chunks, 9);
        // What is left of a longer one.
        values.push(kv(0, 10));
        let whole = Whole::of(&values).unwrap();
        assert_eq!((whole.revision, whole.written, whole.writes), (7, 9, 5));
        assert!(whole.kvs == all);
    }

    #[test]
    fn what_is_no_whole_bundle_is_none() {
        let all: Vec<KeyValue> = (0..10_000).map(|number| kv(number, 300)).collect();
        let values = found(chunks(all.clone(), 7, 5).unwrap(), 9);
        assert!(Whole::of(&[]).is_none());
        assert!(Whole::of(&values[..values.len() - 1]).is_none(), "the last is missing");
        assert!(Whole::of(&values[1..]).is_none(), "the first is missing");
        assert!(Whole::of(&[kv(0, 10)]).is_none(), "garbage");
        let later = found(chunks(all.clone(), 8, 6).unwrap(), 9);
        assert!(Whole::of(&[&values[..1], &later[1..]].concat()).is_none(), "of two writes");
        let same = found(chunks(all.clone(), 6, 5).unwrap(), 12);
        let of_two = Whole::of(&[&values[..1], &same[1..]].concat()).unwrap();
        assert_eq!((of_two.revision, of_two.written), (6, 9), "by two at once, of the same");
        // It says to be of a time that is still to come: it was written into another history.
        assert!(Whole::of(&found(chunks(all, 9, 5).unwrap(), 9)).is_none());
    }

    #[test]
    fn too_much_for_a_bundle() {
        let all: Vec<KeyValue> = (0..17).map(|number| kv(number, LONGEST - 100)).collect();
        assert!(chunks(all[..16].to_vec(), 7, 5).is_some());
        assert!(chunks(all, 7, 5).is_none());
    }
}
