use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::mpsc;
use tonic::Streaming;

use crate::client::{KeyValue, after};
use crate::error::Error;
use crate::wire;

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It was written.
    Put(KeyValue),
    /// It is gone.
    Delete {
        /// The key.
        key: Vec<u8>,
        /// By which revision.
        revision: i64,
    },
}

/// What happened to the keys of one prefix up to a revision; nothing where etcd only says how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Which prefix: what [`Watch::follow`] answered; 0 for the one that the watch began with.
    pub of: u64,
    /// The revision.
    pub revision: i64,
    /// In order. Those of one revision are never in two batches.
    pub events: Vec<Event>,
}

/// Follows the keys of several prefixes in one conversation; ends when it is dropped.
///
/// What happens to the keys of one prefix comes in order. Between those of two it does not: what one revision did to both may come
/// with others in between.
#[derive(Debug)]
pub struct Watch {
    answers: Streaming<wire::WatchResponse>,
    /// The watch lasts as long as this side of the conversation.
    asks: mpsc::UnboundedSender<wire::WatchRequest>,
    /// The prefixes that were asked for and not answered yet: etcd answers in this order.
    asked: VecDeque<u64>,
    /// The others, by etcd's number.
    followed: BTreeMap<i64, u64>,
    /// Those that were left before they were answered.
    left: BTreeSet<u64>,
    next: u64,
    url: String,
    seconds: u64,
}

/// Of the keys from `key` to the last one that begins with `prefix`.
pub(crate) fn create(key: Vec<u8>, prefix: &[u8], revision: i64) -> wire::WatchCreateRequest {
    let range_end = after(prefix);
    wire::WatchCreateRequest { key, range_end, start_revision: revision, progress_notify: true }
}

impl Watch {
    /// Of one prefix that was asked for.
    pub(crate) async fn begin(
        answers: Streaming<wire::WatchResponse>,
        asks: mpsc::UnboundedSender<wire::WatchRequest>,
        url: &str,
        seconds: u64,
    ) -> Result<Self, Error> {
        let mut watch = Self {
            answers,
            asks,
            asked: VecDeque::from([0]),
            followed: BTreeMap::new(),
            left: BTreeSet::new(),
            next: 1,
            url: url.to_owned(),
            seconds,
        };
        let answer = watch.answer().await?;
        if !answer.created {
            return Err(Error::Other("the watch began with something else".to_owned()));
        }
        watch.note(answer.watch_id);
        Ok(watch)
    }

    /// Has all keys that begin with `prefix` be followed as well, from `revision` on; by which number.
    ///
    /// Whether it can be shows when the next batch is waited for.
    pub fn follow(&mut self, prefix: impl Into<Vec<u8>>, revision: i64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.asked.push_back(number);
        let prefix = prefix.into();
        self.ask(wire::WatchAsk::Create(create(prefix.clone(), &prefix, revision)));
        number
    }

    /// Has the keys of that number be followed no more: nothing comes of them from now on.
    pub fn leave(&mut self, number: u64) {
        let found = self.followed.iter().find(|(_, of)| **of == number).map(|(id, _)| *id);
        match found {
            Some(id) => self.cancel(id),
            None => drop(self.left.insert(number)),
        }
    }

    fn cancel(&mut self, watch_id: i64) {
        self.followed.remove(&watch_id);
        self.ask(wire::WatchAsk::Cancel(wire::WatchCancelRequest { watch_id }));
    }

    fn ask(&self, request: wire::WatchAsk) {
        // Where nobody takes it the conversation is over, which its next answer says.
        let _ = self.asks.send(wire::WatchRequest { request: Some(request) });
    }

    /// Takes note of etcd's number for the prefix that was asked for first.
    fn note(&mut self, watch_id: i64) {
        let Some(number) = self.asked.pop_front() else { return };
        self.followed.insert(watch_id, number);
        if self.left.remove(&number) {
            self.cancel(watch_id);
        }
    }

    async fn answer(&mut self) -> Result<wire::WatchResponse, Error> {
        loop {
            let answer = match self.answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(Error::Lost("the connection ended".to_owned())),
                Err(status) => return Err(Error::of(&self.url, &status, self.seconds)),
            };
            // Of one that was left comes a last word, and may come what was under way.
            if !answer.created && !self.followed.contains_key(&answer.watch_id) {
                continue;
            }
            if answer.compact_revision > 0 {
                return Err(Error::Compacted(answer.compact_revision));
            }
            if answer.canceled {
                let reason = answer.cancel_reason;
                return Err(match reason.contains("permission denied") || reason.contains("auth") {
                    true => Error::Denied(reason),
                    false => Error::Lost(reason),
                });
            }
            return Ok(answer);
        }
    }

    /// Waits for what happens next. May be given up and asked again: nothing is lost.
    ///
    /// # Errors
    /// [`Error::Compacted`]: list again. [`Error::Lost`]: begin again after the last revision seen. Others as etcd says.
    pub async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            let answer = self.answer().await?;
            if answer.created {
                self.note(answer.watch_id);
                continue;
            }
            let Some(of) = self.followed.get(&answer.watch_id).copied() else { continue };
            let event = |event: wire::WatchEvent| {
                let kv = event.kv?;
                Some(match event.kind {
                    0 => Event::Put(kv.into()),
                    _ => Event::Delete { key: kv.key.to_vec(), revision: kv.mod_revision },
                })
            };
            // The header says how far etcd is, which to who has to catch up does not send all of it at once (`watchBatchMaxRevs`
            // in etcd, mvcc/watcher_group.go).
            let last = answer.events.last().and_then(|event| Some(event.kv.as_ref()?.mod_revision));
            let revision = last.unwrap_or_else(|| answer.header.unwrap_or_default().revision);
            return Ok(Batch { of, revision, events: answer.events.into_iter().filter_map(event).collect() });
        }
    }
}
