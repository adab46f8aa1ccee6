//! A web server that says whom it sees (HTTP/1.1, RFC 9112).

use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The longest head of a request that is read.
const HEAD: u64 = 16 * 1024;
/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves on `port` of all addresses until `life` is over.
pub(super) fn serve(port: u16, life: Duration) -> Result<i32> {
    // One socket for both families where the host has IPv6, bindv6only being off as it is by default.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .with_context(|| format!("listen on port {port}"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away is no failure of the server.
            std::thread::spawn(move || talk(&stream));
        }
    });
    std::thread::sleep(life);
    Ok(0)
}

/// Answers the requests of one connection.
fn talk(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (client, server) = (plain(stream.peer_addr()?), plain(stream.local_addr()?));
    let mut reader = BufReader::new(stream);
    loop {
        let Some(request) = Request::read(&mut reader)? else { return Ok(()) };
        let (status, body) = request.answer(client, server);
        let connection = if request.keep_alive { "keep-alive" } else { "close" };
        let mut text = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        if request.method != "HEAD" {
            text.push_str(&body);
        }
        (&mut &*stream).write_all(text.as_bytes())?;
        if !request.keep_alive {
            return Ok(());
        }
    }
}

/// An IPv4 address that came in on an IPv6 socket, as what it is.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What we look at in the head of a request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    well_formed: bool,
    keep_alive: bool,
}

impl Request {
    /// Reads one; none if the client has no more.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = reader.take(HEAD);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let modern = words.get(2).is_some_and(|version| version == "HTTP/1.1");
        let (mut host, mut has_body, mut close, mut open) = (false, false, false, false);
        let complete = loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                break false;
            }
            if line.trim_end().is_empty() {
                break true;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "host" => host = true,
                "content-length" => has_body |= value != "0",
                "transfer-encoding" => has_body = true,
                "connection" => {
                    close |= value.eq_ignore_ascii_case("close");
                    open |= value.eq_ignore_ascii_case("keep-alive");
                }
                _ => {}
            }
        };
        let well_formed = complete && words.len() == 3 && words[2].starts_with("HTTP/1.") && (host || !modern);
        // A body would have to be read before the next request; nobody we talk to sends one.
        let keep_alive = well_formed && !has_body && !close && (modern || open);
        Ok(Some(Self { method: words.into_iter().next().unwrap_or_default(), well_formed, keep_alive }))
    }

    fn answer(&self, client: SocketAddr, server: SocketAddr) -> (&'static str, String) {
        match self.method.as_str() {
            _ if !self.well_formed => ("400 Bad Request", "this is not HTTP\n".to_owned()),
            "GET" | "HEAD" => ("200 OK", format!("hello {client}, this is {server}\n")),
            _ => ("501 Not Implemented", "only GET and HEAD\n".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Request> {
        Request::read(&mut text.as_bytes()).unwrap()
    }

    #[test]
    fn connections_are_kept_as_the_versions_have_it() {
        let kept = |text: &str| read(text).unwrap().keep_alive;
        assert!(kept("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(!kept("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert!(!kept("GET / HTTP/1.0\r\n\r\n"));
        assert!(kept("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
        assert!(!kept("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"));
    }

    #[test]
    fn what_is_no_request_is_said_to_be_none() {
        assert_eq!(read(""), None);
        for text in ["\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n"] {
            assert!(!read(text).unwrap().well_formed, "{text:?}");
        }
    }
}
