//! Passing on what two hosts send each other that do not reach each other. Who passes it on can neither read nor change it.
//!
//! Both send to one port of his. He knows their public keys and nothing else: that a message which begins an agreement on keys, or
//! answers it, is for one of the two can be told by its `mac1` (whitepaper §5.4.4), which nobody can make who does not know the
//! public key; all other messages name a number that the one whom they are for drew and told the other one in such a message
//! (§5.4.6). So what is neither is not passed on.
//!
//! Where the two are, he learns of what they send, also when NAT puts them elsewhere. A place that a number was told from gets more
//! than greetings only when the other one uses that number: he has seen that what told it was authentic and no old recording.
//! What comes from somewhere else and names a number of the session has to be newer than all before (§5.4.6, `counter`). Whoever can
//! read the packets on their way, and send from others' addresses, can have what is encrypted be sent elsewhere until the two
//! agree on keys anew, and nobody else can.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac};
use serde::{Deserialize, Serialize};

use crate::PublicKey;

/// Types of messages and how long they are (whitepaper §5.4).
const INITIATION: (u32, usize) = (1, 148);
const RESPONSE: (u32, usize) = (2, 92);
const COOKIE: (u32, usize) = (3, 64);
const DATA: (u32, usize) = (4, 32);
/// What ends the two that have codes: `mac1` and `mac2`.
const MAC: usize = 16;

/// So many numbers of each end are known: three sessions (whitepaper §6.1), and greetings that nobody answered yet.
const NUMBERS: usize = 12;
/// How much further a counter may be than the highest before, where it comes from somewhere else.
const AHEAD: u64 = 1 << 16;
/// How long one of two who greet each other at once is kept from it.
const HOLD: Duration = Duration::from_secs(8);

/// Somewhere to pass a message on to, twice where it is not known which of two places is the right one.
pub type To = [Option<SocketAddr>; 2];

/// What is passed on between two keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Between {
    ends: [End; 2],
    /// Since when both greet each other.
    #[serde(skip)]
    both: Option<Instant>,
    /// What the first one greeted with while it was not known where the second one is.
    #[serde(skip)]
    waiting: Option<Vec<u8>>,
    /// How often anything else than counters was other than before.
    #[serde(skip)]
    changes: u64,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    key: PublicKey,
    /// Where it is, as the other one has found authentic.
    place: Option<SocketAddr>,
    /// What it told, the last one last.
    told: VecDeque<Told>,
}

/// A number that is in each message for who told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    number: u32,
    from: SocketAddr,
    /// The other one has used it.
    is_used: bool,
    /// The highest that came with it.
    counter: u64,
}

impl End {
    const fn new(key: PublicKey) -> Self {
        Self { key, place: None, told: VecDeque::new() }
    }

    /// Whether a message of this end's is made for it.
    fn is_for(&self, message: &[u8]) -> bool {
        let Some(signed) = message.len().checked_sub(2 * MAC) else { return false };
        let (signed, macs) = message.split_at(signed);
        let key = Blake2s256::new().chain_update(b"mac1----").chain_update(self.key.as_bytes()).finalize();
        let Ok(mac) = Blake2sMac::<U16>::new_from_slice(&key) else { return false };
        mac.chain_update(signed).verify_slice(&macs[..MAC]).is_ok()
    }

    /// Takes note of a number. One that is known stays whose it was: this may be a recording.
    fn tell(&mut self, number: u32, from: SocketAddr) -> bool {
        if self.told.iter().any(|told| told.number == number) {
            return false;
        }
        if self.told.len() >= NUMBERS {
            let used = self.told.iter().filter(|told| told.is_used).count();
            let goes = self.told.iter().position(|told| used > 4 || !told.is_used).unwrap_or(0);
            self.told.remove(goes);
        }
        self.told.push_back(Told { number, from, is_used: false, counter: 0 });
        true
    }

    /// The number was used: where it was told is where this end is. The place to send to, and whether that is news.
    fn answer(&mut self, number: u32) -> Option<(SocketAddr, bool)> {
        let told = self.told.iter_mut().find(|told| told.number == number)?;
        let is_new = !std::mem::replace(&mut told.is_used, true);
        if is_new {
            self.place = Some(told.from);
        }
        Some((self.place?, is_new))
    }

    /// Where greetings go: where it is, and where it says to be since.
    fn places(&self) -> To {
        let last = self.told.iter().rev().find(|told| !told.is_used).map(|told| told.from);
        [self.place, last.filter(|last| self.place != Some(*last))]
    }

    fn is_known_at(&self, place: SocketAddr) -> bool {
        self.place == Some(place) || self.told.iter().any(|told| told.from == place)
    }

    fn was_answered(&self) -> bool {
        self.told.iter().any(|told| told.is_used)
    }
}

fn word(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*message.get(at..)?.first_chunk()?))
}

impl Between {
    /// Between these two; the first is the one who begins when both do at once.
    pub const fn new(first: PublicKey, second: PublicKey) -> Self {
        Self { ends: [End::new(first), End::new(second)], both: None, waiting: None, changes: 0 }
    }

    /// Whom it is between.
    pub const fn keys(&self) -> [PublicKey; 2] {
        [self.ends[0].key, self.ends[1].key]
    }

    /// How often something changed that is worth being written down.
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// A greeting that waited until it was known where it goes, and where that is; to be asked for after each message.
    pub fn release(&mut self) -> Option<(Vec<u8>, SocketAddr)> {
        let place = self.ends[1].places().into_iter().flatten().last()?;
        Some((self.waiting.take()?, place))
    }

    /// Where a message that came `from` there is to be passed on to; none if it is not for one of the two, or cannot be.
    pub fn pass(&mut self, message: &[u8], from: SocketAddr, now: Instant) -> Option<To> {
        let kind = word(message, 0)?;
        match (kind, message.len()) {
            INITIATION => {
                let to = self.ends.iter().position(|end| end.is_for(message))?;
                let by = 1 - to;
                self.changes += u64::from(self.ends[by].tell(word(message, 4)?, from));
                let places = self.ends[to].places();
                if by == 0 {
                    self.waiting = (places == [None, None]).then(|| message.to_vec());
                }
                if !self.ends.iter().any(End::was_answered) && places != [None, None] {
                    // What the second one has sent tells where he is, and is enough: he will be greeted.
                    let since = *self.both.get_or_insert(now);
                    if by == 1 && now.saturating_duration_since(since) < HOLD {
                        return None;
                    }
                }
                Some(places)
            }
            RESPONSE => {
                let (number, answered) = (word(message, 4)?, word(message, 8)?);
                let to = self.ends.iter().position(|end| end.is_for(message))?;
                let (place, _) = self.ends[to].answer(answered)?;
                self.changes += 1;
                self.ends[1 - to].tell(number, from);
                Some([Some(place), None])
            }
            COOKIE => {
                let number = word(message, 4)?;
                let told = |end: &End| end.told.iter().find(|told| told.number == number).map(|told| told.from);
                let (to, place) = self.ends.iter().enumerate().find_map(|(to, end)| Some((to, told(end)?)))?;
                self.ends[1 - to].is_known_at(from).then_some([Some(place), None])
            }
            (kind, length) if kind == DATA.0 && length >= DATA.1 => {
                let number = word(message, 4)?;
                let counter = u64::from_le_bytes(*message.get(8..)?.first_chunk()?);
                let has = |end: &End| end.told.iter().any(|told| told.number == number);
                let to = self.ends.iter().position(has)?;
                let is_elsewhere = !self.ends[1 - to].is_known_at(from);
                let told = self.ends[to].told.iter_mut().find(|told| told.number == number)?;
                if is_elsewhere && !(told.is_used && counter > told.counter && counter - told.counter < AHEAD) {
                    return None;
                }
                told.counter = told.counter.max(counter);
                let (place, is_new) = self.ends[to].answer(number)?;
                if is_elsewhere {
                    self.ends[1 - to].place = Some(from);
                }
                self.changes += u64::from(is_new || is_elsewhere);
                Some([Some(place), None])
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two hosts, at these places, and a stranger.
    const PLACES: [&str; 3] = ["192.0.2.1:1001", "192.0.2.2:1002", "192.0.2.9:9"];

    fn at(place: usize) -> SocketAddr {
        PLACES[place].parse().unwrap()
    }

    fn key(end: usize) -> PublicKey {
        PublicKey::from([end as u8 + 1; 32])
    }

    fn message(kind: (u32, usize), words: &[u32]) -> Vec<u8> {
        let mut message: Vec<u8> = [kind.0].iter().chain(words).flat_map(|word| word.to_le_bytes()).collect();
        message.resize(kind.1, 0);
        message
    }

    fn signed(kind: (u32, usize), words: &[u32], to: PublicKey) -> Vec<u8> {
        let mut message = message(kind, words);
        let end = message.len() - 2 * MAC;
        let key = Blake2s256::new().chain_update(b"mac1----").chain_update(to.as_bytes()).finalize();
        let mac = Blake2sMac::<U16>::new_from_slice(&key).unwrap().chain_update(&message[..end]).finalize();
        message[end..end + MAC].copy_from_slice(&mac.into_bytes());
        message
    }

    fn begin(number: u32, to: usize) -> Vec<u8> {
        signed(INITIATION, &[number], key(to))
    }

    fn respond(number: u32, answered: u32, to: usize) -> Vec<u8> {
        signed(RESPONSE, &[number, answered], key(to))
    }

    fn data(number: u32, counter: u32) -> Vec<u8> {
        let mut data = message(DATA, &[number, counter]);
        data.resize(96, 7);
        data
    }

    struct Lab(Between, Instant);

    impl Lab {
        fn new() -> Self {
            Self(Between::new(key(0), key(1)), Instant::now())
        }

        /// Who gets it.
        fn pass(&mut self, message: &[u8], from: SocketAddr) -> Vec<SocketAddr> {
            // It is written down and read at any moment.
            let text = serde_json::to_string(&self.0).unwrap();
            let (both, waiting, changes) = (self.0.both, self.0.waiting.clone(), self.0.changes);
            self.0 = Between { both, waiting, changes, ..serde_json::from_str(&text).unwrap() };
            self.0.pass(message, from, self.1).into_iter().flatten().flatten().collect()
        }

        /// Both have agreed, by the numbers 10 of the first and 20 of the second.
        fn agreed() -> Self {
            let mut lab = Self::new();
            assert_eq!(lab.pass(&begin(10, 1), at(0)), [], "nobody knows where the other one is");
            assert_eq!(lab.0.release(), None);
            assert_eq!(lab.pass(&begin(19, 0), at(1)), [], "he will be greeted");
            assert_eq!(lab.0.release(), Some((begin(10, 1), at(1))));
            assert_eq!(lab.0.release(), None);
            assert_eq!(lab.pass(&respond(20, 10, 0), at(1)), [at(0)]);
            assert_eq!(lab.pass(&data(20, 0), at(0)), [at(1)]);
            assert_eq!(lab.pass(&data(10, 0), at(1)), [at(0)]);
            lab
        }
    }

    #[test]
    fn what_two_send_each_other_is_passed_on() {
        let mut lab = Lab::agreed();
        for number in 1..100 {
            assert_eq!(lab.pass(&data(20, number), at(0)), [at(1)]);
            assert_eq!(lab.pass(&data(10, number), at(1)), [at(0)]);
        }
        // Either begins anew, and what is on its way by the old numbers arrives.
        assert_eq!(lab.pass(&begin(21, 0), at(1)), [at(0)]);
        assert_eq!(lab.pass(&respond(11, 21, 1), at(0)), [at(1)]);
        assert_eq!(lab.pass(&data(11, 0), at(1)), [at(0)]);
        assert_eq!(lab.pass(&data(20, 100), at(0)), [at(1)]);
        assert_eq!(lab.pass(&message(COOKIE, &[11]), at(1)), [at(0)]);
    }

    #[test]
    fn what_is_nobodys_is_passed_on_to_nobody() {
        let mut lab = Lab::agreed();
        let stranger = at(2);
        for garbage in
            [&[][..], &[1, 0, 0], &[0; 148], &[1; 148], &message(INITIATION, &[5]), &message(RESPONSE, &[5, 10])]
        {
            assert_eq!(lab.pass(garbage, stranger), []);
        }
        assert_eq!(lab.pass(&data(99, 5), stranger), [], "a number of nobody's");
        assert_eq!(lab.pass(&data(20, 0), stranger), [], "what was sent before");
        assert_eq!(lab.pass(&message(COOKIE, &[10]), stranger), []);
        assert_eq!(lab.pass(&signed(INITIATION, &[7], key(5)), at(0)), [], "for a third one");
        let mut bent = begin(12, 1);
        bent[50] ^= 1;
        assert_eq!(lab.pass(&bent, at(0)), []);
        // A recording is greeted with, and gets nothing but greetings: nobody answers it.
        assert_eq!(lab.pass(&begin(12, 1), stranger), [at(1)]);
        assert_eq!(lab.pass(&data(10, 1), at(1)), [at(0)]);
        assert_eq!(lab.pass(&begin(13, 1), at(0)), [at(1)]);
        assert_eq!(lab.pass(&begin(13, 1), stranger), [at(1)], "nor does it take its place");
        assert_eq!(lab.pass(&respond(22, 13, 0), at(1)), [at(0)]);
        // However many there are.
        (100..200).for_each(|number| drop(lab.pass(&begin(number, 1), stranger)));
        assert_eq!(lab.pass(&data(10, 2), at(1)), [at(0)]);
        assert_eq!(lab.pass(&data(13, 0), at(1)), [at(0)]);
        assert!(lab.0.ends.iter().all(|end| end.told.len() <= NUMBERS));
    }

    #[test]
    fn whom_nat_puts_elsewhere_is_followed() {
        let mut lab = Lab::agreed();
        let elsewhere: SocketAddr = "192.0.2.1:4444".parse().unwrap();
        assert_eq!(lab.pass(&data(20, 5), elsewhere), [at(1)]);
        assert_eq!(lab.pass(&data(10, 5), at(1)), [elsewhere]);
        // Both at once: neither is where the other one greets it, and both greet.
        let mut lab = Lab::agreed();
        let other: SocketAddr = "192.0.2.2:5555".parse().unwrap();
        assert_eq!(lab.pass(&begin(11, 1), elsewhere), [at(1)]);
        assert_eq!(lab.pass(&begin(21, 0), other), [at(0), elsewhere]);
        assert_eq!(lab.pass(&respond(12, 21, 1), elsewhere), [other]);
        assert_eq!(lab.pass(&data(12, 0), other), [elsewhere]);
        assert_eq!(lab.pass(&data(21, 0), elsewhere), [other]);
    }

    #[test]
    fn of_two_who_greet_each_other_one_is_kept_from_it_for_a_while() {
        let mut lab = Lab::new();
        assert_eq!(lab.pass(&begin(20, 0), at(1)), []);
        assert_eq!(lab.pass(&begin(10, 1), at(0)), [at(1)]);
        assert_eq!(lab.pass(&begin(21, 0), at(1)), []);
        lab.1 += HOLD;
        assert_eq!(lab.pass(&begin(22, 0), at(1)), [at(0)], "the other one has had his time");
    }
}
