//! Metrics by HTTP: on a unix socket, and on an address if one is configured.
//!
//! A thread of its own, so that a client that stalls keeps nobody else waiting; what is told comes from the main thread.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use portolan_kernel::door;
use portolan_kernel::privilege;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// How long a client may take for its request, and as long again for taking the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A request is a line and a few headers.
const REQUEST: usize = 8 << 10;

/// Somebody wants the metrics.
pub type Ask = mpsc::Sender<String>;

/// The running thread; dropping it ends it.
pub struct Scrape {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Scrape {
    /// Listens at `path`, for root alone, and at `address` if there is one; `ask` is called for each request, and has the
    /// answer sent.
    ///
    /// # Errors
    /// When one of them cannot be listened on.
    pub fn start(path: &Path, address: Option<SocketAddr>, ask: impl Fn(Ask) + Send + 'static) -> Result<Self> {
        let doing = || format!("listen at `{}`", path.display());
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(doing),
            _ => {}
        }
        let local = door::listen_alone(path).with_context(doing)?;
        let tcp = address
            .map(|address| TcpListener::bind(address).with_context(|| format!("listen at `{address}` for metrics")))
            .transpose()?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("portolan-metrics".into()).spawn(move || {
            privilege::serve_only();
            while let Some(ready) = wait(&stopped, &local, tcp.as_ref()) {
                // A client that goes away is nobody's loss.
                let _ = match (ready, &tcp) {
                    (Ready::Local, _) => local.accept().and_then(|(stream, _)| serve(&stream, &ask)),
                    (Ready::Tcp, Some(tcp)) => tcp.accept().and_then(|(stream, _)| serve(&stream, &ask)),
                    (Ready::Tcp, None) => Ok(()),
                };
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Scrape {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum Ready {
    Local,
    Tcp,
}

/// Waits for a client; none when it is time to end.
fn wait(stop: &OwnedFd, local: &UnixListener, tcp: Option<&TcpListener>) -> Option<Ready> {
    let entry = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    loop {
        let mut entries = vec![entry(stop.as_fd()), entry(local.as_fd())];
        entries.extend(tcp.map(|tcp| entry(tcp.as_fd())));
        match poll(&mut entries, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
            Ok(_) => {}
        }
        if !entries[0].revents().is_empty() {
            return None;
        }
        return Some(if entries[1].revents().is_empty() { Ready::Tcp } else { Ready::Local });
    }
}

/// A client, of whichever kind.
pub(crate) trait Client: Copy + Read + Write {
    /// How long the next transfer may take.
    fn wait_at_most(self, left: Duration) -> io::Result<()>;
}

impl Client for &UnixStream {
    fn wait_at_most(self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left)).and_then(|()| self.set_write_timeout(Some(left)))
    }
}

impl Client for &TcpStream {
    fn wait_at_most(self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left)).and_then(|()| self.set_write_timeout(Some(left)))
    }
}

/// Gives `client` until then for its next transfer: in all, since one that sends a byte now and then would keep the others
/// waiting for good.
fn until(client: impl Client, end: Instant) -> io::Result<()> {
    match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => client.wait_at_most(left),
    }
}

/// Answers one request (RFC 9112): `GET /metrics`, and nothing else.
pub(crate) fn serve(stream: impl Client, ask: &impl Fn(Ask)) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    let mut reader = stream;
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        until(stream, end)?;
        let length = reader.read(&mut chunk)?;
        request.extend(&chunk[..length]);
        if length == 0 || request.len() > REQUEST {
            return respond(stream, "400 Bad Request", "no request\n");
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics" | b"/")) => {}
        (Some(b"GET"), _) => return respond(stream, "404 Not Found", "it is at /metrics\n"),
        _ => return respond(stream, "405 Method Not Allowed", "GET only\n"),
    }
    let (reply, answer) = mpsc::channel();
    ask(reply);
    match answer.recv_timeout(PATIENCE) {
        Ok(text) => respond(stream, "200 OK", &text),
        Err(_) => respond(stream, "503 Service Unavailable", "busy\n"),
    }
}

fn respond(stream: impl Client, status: &str, body: &str) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut writer = stream;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = [head.as_bytes(), body.as_bytes()].concat();
    let mut left = answer.as_slice();
    while !left.is_empty() {
        until(stream, end)?;
        left = &left[writer.write(left)?..];
    }
    Ok(())
}
