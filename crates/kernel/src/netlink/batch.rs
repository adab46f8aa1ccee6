//! Messages encoded to be sent together.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{ACK, REQUEST};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// `NFNL_BATCH_GENID`, include/uapi/linux/netfilter/nfnetlink.h.
const NFNL_BATCH_GENID: u16 = 1;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Messages outside a netfilter transaction go out in pieces, so that the acknowledgements of one
/// piece always fit in the receive buffer.
const PIECE_MESSAGES: usize = 2048;

static NEXT_SEQUENCE: AtomicU32 = AtomicU32::new(1);

fn next_sequence() -> u32 {
    NEXT_SEQUENCE.fetch_add(1, Ordering::Relaxed)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    start: usize,
    pub(super) sequence: u32,
    pub(super) wants_ack: bool,
}

/// Encoded messages that travel to the kernel together.
///
/// Outside a netfilter transaction each message stands for itself: the kernel goes on after a
/// failed one. Between [`Batch::begin_nft`] and [`Batch::end_nft`] all messages take effect or none.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) buf: Vec<u8>,
    pub(super) messages: Vec<Message>,
    pub(super) nft_begin: Option<usize>,
    nft_open: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of messages, the ones delimiting a transaction included.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Size on the wire in bytes.
    pub fn bytes(&self) -> usize {
        self.buf.len()
    }

    /// Appends a message whose payload `build` writes; returns its position.
    ///
    /// `NLM_F_REQUEST` is added to `flags`, and `NLM_F_ACK` too unless a netfilter transaction is
    /// open, in which the last message alone is acknowledged: the answers to all of a large
    /// transaction would overflow the receive buffer before anybody can read them.
    pub fn message(&mut self, msg_type: u16, flags: u16, build: impl FnOnce(&mut Vec<u8>)) -> usize {
        let ack = if self.nft_open { 0 } else { ACK };
        self.raw_message(msg_type, flags | REQUEST | ack, build)
    }

    /// Appends a message that asks for no acknowledgement; a failure is still reported.
    pub fn raw_message_no_ack(&mut self, msg_type: u16, flags: u16, build: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.raw_message(msg_type, (flags | REQUEST) & !ACK, build)
    }

    pub(super) fn raw_message(&mut self, msg_type: u16, flags: u16, build: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.buf.len();
        let sequence = next_sequence();
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&msg_type.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&sequence.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 4]);
        build(&mut self.buf);
        netlink_bindings::utils::align(&mut self.buf);
        let len = u32::try_from(self.buf.len() - start).expect("a message is below 4 GiB");
        self.buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.messages.push(Message { start, sequence, wants_ack: flags & ACK != 0 });
        self.messages.len() - 1
    }

    /// Opens an nftables transaction (`NFNL_MSG_BATCH_BEGIN`).
    ///
    /// With `generation` the kernel refuses the transaction with `ERESTART` when the ruleset
    /// changed since that generation was read (`NFNL_BATCH_GENID`).
    pub fn begin_nft(&mut self, generation: Option<u32>) -> usize {
        let index = self.raw_message_no_ack(NFNL_MSG_BATCH_BEGIN, 0, |buf| {
            push_nfgenmsg(buf, 0, NFNL_SUBSYS_NFTABLES);
            if let Some(generation) = generation {
                netlink_bindings::utils::push_header(buf, NFNL_BATCH_GENID, 4);
                buf.extend_from_slice(&generation.to_be_bytes());
            }
        });
        self.nft_begin = Some(index);
        self.nft_open = true;
        index
    }

    /// Closes the transaction opened by [`Batch::begin_nft`].
    pub fn end_nft(&mut self) {
        let begin = self.nft_begin.expect("a transaction was opened");
        let last = self.messages.len() - 1;
        if last > begin {
            let message = &mut self.messages[last];
            message.wants_ack = true;
            let at = message.start + 6;
            let flags = u16::from_ne_bytes([self.buf[at], self.buf[at + 1]]) | ACK;
            self.buf[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        self.nft_open = false;
        self.raw_message_no_ack(NFNL_MSG_BATCH_END, 0, |buf| {
            push_nfgenmsg(buf, 0, NFNL_SUBSYS_NFTABLES);
        });
    }

    pub(super) fn position(&self, sequence: u32) -> Option<usize> {
        let first = self.messages.first()?.sequence;
        let key = sequence.wrapping_sub(first);
        self.messages.binary_search_by_key(&key, |message| message.sequence.wrapping_sub(first)).ok()
    }

    /// Byte ranges to send one after the other, with the messages in each.
    pub(super) fn pieces(&self) -> Vec<(Range<usize>, Range<usize>)> {
        if self.nft_begin.is_some() || self.messages.len() <= PIECE_MESSAGES {
            return vec![(0..self.buf.len(), 0..self.messages.len())];
        }
        let mut pieces = Vec::new();
        let mut from = 0;
        while from < self.messages.len() {
            let to = (from + PIECE_MESSAGES).min(self.messages.len());
            let end = self.messages.get(to).map_or(self.buf.len(), |message| message.start);
            pieces.push((self.messages[from].start..end, from..to));
            from = to;
        }
        pieces
    }
}

/// Appends a `struct nfgenmsg` (version 0) with the big-endian `resource`.
pub fn push_nfgenmsg(buf: &mut Vec<u8>, family: u8, resource: u16) {
    buf.extend_from_slice(&[family, 0]);
    buf.extend_from_slice(&resource.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::answer::Messages;

    #[test]
    fn batch_fills_in_lengths_and_finds_messages_by_sequence() {
        let mut batch = Batch::new();
        batch.message(1, 0, |buf| buf.extend_from_slice(&[1, 2, 3]));
        next_sequence();
        batch.message(2, 0, |_| {});
        let lengths: Vec<usize> = Messages::new(&batch.buf).map(|message| message.payload.len()).collect();
        assert_eq!(lengths, [4, 0]);
        for (index, message) in batch.messages.iter().enumerate() {
            assert_eq!(batch.position(message.sequence), Some(index));
        }
        assert_eq!(batch.position(batch.messages[0].sequence + 1), None);
    }

    #[test]
    fn only_the_last_message_of_a_transaction_is_acknowledged() {
        let mut batch = Batch::new();
        batch.begin_nft(Some(7));
        batch.message(0xa00, 0, |_| {});
        batch.message(0xa00, 0, |_| {});
        batch.end_nft();
        let acks: Vec<bool> = Messages::new(&batch.buf).map(|message| message.flags & ACK != 0).collect();
        assert_eq!(acks, [false, false, true, false]);
    }
}
