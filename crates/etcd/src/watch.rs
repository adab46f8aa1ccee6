use tokio::sync::mpsc;
use tonic::Streaming;

use crate::client::KeyValue;
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

/// What happened up to a revision; nothing where etcd only says how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: i64,
    /// In order. Those of one revision are never in two batches.
    pub events: Vec<Event>,
}

/// Follows keys; ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    answers: Streaming<wire::WatchResponse>,
    /// The watch lasts as long as this side of the conversation.
    _keep: mpsc::Sender<wire::WatchRequest>,
    url: String,
    seconds: u64,
}

impl Watch {
    pub(crate) async fn begin(
        answers: Streaming<wire::WatchResponse>,
        keep: mpsc::Sender<wire::WatchRequest>,
        url: &str,
        seconds: u64,
    ) -> Result<Self, Error> {
        let mut watch = Self { answers, _keep: keep, url: url.to_owned(), seconds };
        let answer = watch.answer().await?;
        if !answer.created {
            return Err(Error::Other("the watch began with something else".to_owned()));
        }
        Ok(watch)
    }

    async fn answer(&mut self) -> Result<wire::WatchResponse, Error> {
        let answer = match self.answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(Error::Lost("the connection ended".to_owned())),
            Err(status) => return Err(Error::of(&self.url, &status, self.seconds)),
        };
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
        Ok(answer)
    }

    /// Waits for what happens next. May be given up and asked again: nothing is lost.
    ///
    /// # Errors
    /// [`Error::Compacted`]: list again. [`Error::Lost`]: begin again after the last revision seen. Others as etcd says.
    pub async fn next(&mut self) -> Result<Batch, Error> {
        let answer = self.answer().await?;
        let event = |event: wire::WatchEvent| {
            let kv = event.kv?;
            Some(match event.kind {
                0 => Event::Put(kv.into()),
                _ => Event::Delete { key: kv.key, revision: kv.mod_revision },
            })
        };
        let revision = answer.header.unwrap_or_default().revision;
        Ok(Batch { revision, events: answer.events.into_iter().filter_map(event).collect() })
    }
}
