//! Unary calls of gRPC over HTTP/2 (grpc/grpc, doc/PROTOCOL-HTTP2.md).

use std::future::poll_fn;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use tokio::net::UnixStream;
use tokio::task::spawn_local;

use crate::service::Service;
use crate::wire::{Empty, NetworkConfig};

/// No question is longer.
const LONGEST: usize = 64 << 10;

/// The status codes that are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    Unimplemented = 12,
    Internal = 13,
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Status {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Answers what comes over a connection, until it ends.
pub(crate) async fn converse(stream: UnixStream, service: Rc<Service>) {
    let mut connection = match h2::server::handshake(stream).await {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%error, "a caller does not speak HTTP/2"),
    };
    while let Some(accepted) = connection.accept().await {
        match accepted {
            Ok((request, respond)) => {
                let service = service.clone();
                spawn_local(async move {
                    if let Err(error) = answer(request, respond, &service).await {
                        tracing::debug!("a caller did not get its answer: {error:#}");
                    }
                });
            }
            Err(error) => return tracing::debug!(%error, "a connection ended"),
        }
    }
}

async fn answer(mut request: Request<RecvStream>, mut respond: SendResponse<Bytes>, service: &Service) -> Result<()> {
    let body = read(request.body_mut()).await?;
    let done = tokio::select! {
        done = call(request.uri().path(), &body, service) => done,
        // The caller has gone; what was begun for it is taken back as the call is dropped.
        gone = poll_fn(|context| respond.poll_reset(context)) => bail!("the caller left: {:?}", gone),
    };
    let mut response = Response::new(());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    match done {
        Ok(message) => {
            let mut stream = respond.send_response(response, false)?;
            let mut frame = BytesMut::with_capacity(5 + message.len());
            frame.put_u8(0);
            frame.put_u32(u32::try_from(message.len()).context("an answer is short")?);
            frame.put_slice(&message);
            stream.send_data(frame.freeze(), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers)?;
        }
        Err(status) => {
            let headers = response.headers_mut();
            headers.insert("grpc-status", HeaderValue::from(status.code as u16));
            headers.insert("grpc-message", HeaderValue::from_str(&percent(&status.message))?);
            respond.send_response(response, true)?;
        }
    }
    Ok(())
}

/// The one message of a question, whose frame says that it is not compressed.
async fn read(body: &mut RecvStream) -> Result<Bytes> {
    let mut frame = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if frame.len() + chunk.len() > LONGEST {
            bail!("no question is that long");
        }
        frame.extend_from_slice(&chunk);
    }
    let Some(message) = message(&frame) else { bail!("no message, or one of another length") };
    let start = frame.len() - message.len();
    Ok(frame.freeze().slice(start..))
}

/// The message of a frame that has one, not compressed.
pub(crate) fn message(frame: &[u8]) -> Option<&[u8]> {
    let (&[0, a, b, c, d], message) = frame.split_first_chunk::<5>()? else { return None };
    (message.len() == u32::from_be_bytes([a, b, c, d]) as usize).then_some(message)
}

async fn call(path: &str, body: &[u8], service: &Service) -> Result<Vec<u8>, Status> {
    let bad = |error: prost::DecodeError| Status::new(Code::InvalidArgument, format!("read the question: {error}"));
    let config = || NetworkConfig::decode(body).map_err(bad);
    match path {
        "/netavark_proxy.NetavarkProxy/Setup" => Ok(service.setup(config()?).await?.encode_to_vec()),
        "/netavark_proxy.NetavarkProxy/Teardown" => Ok(service.teardown(&config()?).await?.encode_to_vec()),
        "/netavark_proxy.NetavarkProxy/Clean" => {
            Empty::decode(body).map_err(bad)?;
            Ok(service.clean().await?.encode_to_vec())
        }
        other => Err(Status::new(Code::Unimplemented, format!("there is no call `{other}`"))),
    }
}

/// Text as a header can carry it: all but printable ASCII, and `%`, as `%XX`.
pub(crate) fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_fit_into_headers() {
        assert_eq!(percent("no `x`: 100%\n\u{e9}"), "no `x`: 100%25%0A%C3%A9");
        assert!(HeaderValue::from_str(&percent("a\0b\u{7f}")).is_ok());
    }
}
