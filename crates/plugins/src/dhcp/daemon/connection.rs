//! A connection of a caller, who may make several calls at a time.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::service::Service;
use crate::dhcp::gob::{Decoder, Encoder, Malformed};
use crate::dhcp::rpc::{Arguments, CONNECTED, Request, is_head};

/// How long a caller may take to say what it wants to speak, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// As many calls of one caller are worked on at a time.
const MOST_CALLS: usize = 64;

/// Answers what comes over a connection, until it ends. What was begun for a caller that leaves is taken back.
pub(super) async fn converse(mut stream: UnixStream, service: Rc<Service>) {
    match timeout(PATIENCE, greet(&mut stream)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return tracing::debug!("a caller does not speak net/rpc"),
        Ok(Err(error)) => return tracing::debug!(%error, "a caller left before it said anything"),
        Err(_) => return tracing::debug!("a caller says nothing"),
    }
    if let Err(error) = answer(stream, service).await {
        tracing::debug!(%error, "a connection ended");
    }
}

/// Reads what the caller wants to speak and says whether it is spoken here.
async fn greet(stream: &mut UnixStream) -> io::Result<bool> {
    let mut head = Vec::new();
    while !is_head(&head) {
        head.push(stream.read_u8().await?);
    }
    let refusal = refusal(&head);
    match refusal {
        None => stream.write_all(CONNECTED.as_bytes()).await?,
        Some(status) => {
            stream.write_all(format!("HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
        }
    }
    Ok(refusal.is_none())
}

/// Why what a caller says first is not the beginning of net/rpc, as a status of HTTP.
pub(in crate::dhcp) fn refusal(head: &[u8]) -> Option<&'static str> {
    let head = String::from_utf8_lossy(head);
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, path, version) = (words.next(), words.next(), words.next());
    match (method, path) {
        _ if !version.is_some_and(|version| version.starts_with("HTTP/1.")) => Some("400 Bad Request"),
        (Some("CONNECT"), Some("/_goRPC_")) => None,
        (_, Some("/_goRPC_")) => Some("405 Method Not Allowed"),
        _ => Some("404 Not Found"),
    }
}

async fn answer(mut stream: UnixStream, service: Rc<Service>) -> io::Result<()> {
    let malformed = |error: Malformed| io::Error::new(io::ErrorKind::InvalidData, error);
    let (mut decoder, mut encoder) = (Decoder::default(), Encoder::default());
    let mut calls = JoinSet::new();
    let mut head: Option<Request> = None;
    let mut bytes = vec![0; 16 << 10];
    loop {
        while calls.len() < MOST_CALLS
            && let Some(value) = decoder.next().map_err(malformed)?
        {
            let Some(request) = head.take() else {
                head = Some(Request::read(&value).map_err(malformed)?);
                continue;
            };
            let arguments = Arguments::read(&value);
            let service = service.clone();
            calls.spawn_local(async move {
                let answer = match arguments {
                    Ok(arguments) => service.call(&request.method, &arguments).await,
                    Err(error) => Err(error.to_string()),
                };
                (request, answer)
            });
        }
        tokio::select! {
            Some(done) = calls.join_next() => {
                let (request, answer) = done.map_err(io::Error::other)?;
                let answer = request.answer(answer, &mut encoder);
                timeout(PATIENCE, stream.write_all(&answer)).await??;
            }
            count = stream.read(&mut bytes), if calls.len() < MOST_CALLS => match count? {
                // Those that are worked on end with this set.
                0 => return Ok(()),
                count => decoder.feed(&bytes[..count]),
            },
        }
    }
}
