//! What clients and predecessors say, without sockets: the ways in for `fuzz/`, and for nothing else.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::time::Duration;

use crate::dns::HandOver;
use crate::services::Memory;
use crate::{proxy, scrape};

/// A client that has said what it says.
struct Said<'a>(RefCell<(&'a [u8], Vec<u8>)>);

impl Read for &Said<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // In pieces, as a client may.
        let length = buffer.len().min(7);
        self.0.borrow_mut().0.read(&mut buffer[..length])
    }
}

impl Write for &Said<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl scrape::Client for &Said<'_> {
    fn wait_at_most(self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// What a client of the metrics is answered.
pub fn metrics(request: &[u8]) -> Vec<u8> {
    let said = Said(RefCell::new((request, Vec::new())));
    let told = scrape::serve(&said, &|ask: scrape::Ask| drop(ask.send("portolan_up 1\n".to_owned())));
    told.expect("it can be written to");
    said.0.into_inner().1
}

/// What a predecessor remembered, read and written again; the descriptors are all gone. None of what is no memory.
pub fn memory(text: &[u8]) -> Option<String> {
    let memory: Memory = serde_json::from_slice(text).ok()?;
    let again = serde_json::to_string(&memory).expect("plain values serialise");
    let (dns, proxied) = memory.into_data();
    if let Some(data) = dns {
        // Of what it describes nothing is there: that is told, or nothing is missing.
        drop(HandOver::from_parts(Vec::new(), data));
    }
    if let Some(data) = proxied {
        drop(proxy::HandOver::from_parts(Vec::new(), data));
    }
    Some(again)
}
