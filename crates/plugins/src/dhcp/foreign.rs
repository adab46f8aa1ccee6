//! The protocol of the daemon without its sockets, for [`crate::foreign`].

use portolan_cni::{Error, Success};

use super::daemon::connection;
use super::gob::{Decoder, Encoder};
use super::options;
use super::rpc::{self, Arguments, Request};

pub(crate) fn calls(bytes: &[u8], piece: usize) -> (Vec<String>, Option<String>) {
    let (mut decoder, mut found) = (Decoder::default(), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(value)) => {
                    found.push(format!("{:?} {:?} {value:?}", Request::read(&value), Arguments::read(&value)));
                }
                Ok(None) => break,
                Err(error) => return (found, Some(error.to_string())),
            }
        }
    }
    (found, None)
}

pub(crate) fn lease(bytes: &[u8]) -> Option<Success> {
    let mut decoder = Decoder::default();
    decoder.feed(bytes);
    let _head = decoder.next().ok()??;
    rpc::success(&decoder.next().ok()??).ok()
}

pub(crate) fn write_lease(lease: &Success) -> Vec<u8> {
    let request = Request { method: rpc::ALLOCATE.to_owned(), number: 0 };
    request.answer(Ok(Some(lease.clone())), &mut Encoder::default())
}

pub(crate) fn greeting(said: &[u8]) -> (usize, Option<&'static str>) {
    let taken = (0..said.len()).find(|end| rpc::is_head(&said[..*end])).unwrap_or(said.len());
    (taken, connection::refusal(&said[..taken]))
}

pub(crate) fn options(text: &[u8]) -> Result<String, Error> {
    options::read(text).map(|wire| format!("{wire:?}"))
}
