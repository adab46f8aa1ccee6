//! Servers that say who they are and whom they see.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_kernel::netns::with_netns;
use portolan_kernel::socket::wait_readable;

use crate::{InNetns, eventually};

/// A thread that serves until told to stop.
#[derive(Debug)]
pub(crate) struct Service {
    /// Its closing wakes the thread.
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Runs `serve` with a pipe that becomes readable when it is time to go.
    pub(crate) fn start(name: &str, serve: impl FnOnce(&io::PipeReader) + Send + 'static) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || serve(&stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed already.
            let _ = thread.join();
        }
    }
}

/// What clients a server had.
#[derive(Debug, Default)]
struct Log {
    count: AtomicUsize,
    last: Mutex<Option<SocketAddr>>,
}

impl Log {
    fn note(&self, client: SocketAddr) {
        self.count.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().expect("nothing panics while holding it") = Some(client);
    }
}

/// Accepts TCP connections and greets each with `<banner> <client>\n`, then sends back what it
/// receives. Stops on drop, closing its connections.
#[derive(Debug)]
pub struct TcpServer {
    addr: SocketAddr,
    log: Arc<Log>,
    _service: Service,
}

impl TcpServer {
    /// Starts one in the namespace of `place`. Port 0 picks a free one.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(place: &impl InNetns, bind: SocketAddr, banner: &str) -> Result<Self> {
        Self::start_with(place, bind, banner, false)
    }

    /// Starts one that speaks HTTP/1.0: answers every request with the greeting as its body.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start_http(place: &impl InNetns, bind: SocketAddr, banner: &str) -> Result<Self> {
        Self::start_with(place, bind, banner, true)
    }

    fn start_with(place: &impl InNetns, bind: SocketAddr, banner: &str, http: bool) -> Result<Self> {
        let listener = with_netns(place.netns(), || once_free(|| TcpListener::bind(bind)))?
            .with_context(|| format!("TCP server `{banner}` on `{bind}`"))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let log = Arc::new(Log::default());
        let (banner, noted) = (banner.to_owned(), Arc::clone(&log));
        let service = Service::start("tcp-server", move |stopped| {
            let mut clients: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
            while let Ok([false, _]) = wait_readable([stopped.as_fd(), listener.as_fd()], None) {
                let Ok((stream, client)) = listener.accept() else { continue };
                noted.note(client);
                let greeting = format!("{banner} {client}\n");
                // Linux lets accepted sockets start out blocking.
                let Ok(ours) = stream.try_clone() else { continue };
                let thread = std::thread::spawn(move || {
                    // A client that goes away is no failure of the server.
                    let _ = if http { serve_http(&stream, &greeting) } else { serve_echo(&stream, &greeting) };
                    // The listening thread keeps a handle as well.
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
                clients.retain(|(_, thread)| !thread.is_finished());
                clients.push((ours, thread));
            }
            for (stream, thread) in clients {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                let _ = thread.join();
            }
        })?;
        Ok(Self { addr, log, _service: service })
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.log.count.load(Ordering::Relaxed)
    }

    /// The latest client, as seen from here.
    pub fn last_client(&self) -> Option<SocketAddr> {
        *self.log.last.lock().expect("nothing panics while holding it")
    }
}

fn serve_echo(mut stream: &TcpStream, greeting: &str) -> io::Result<()> {
    stream.write_all(greeting.as_bytes())?;
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf)? {
            0 => return Ok(()),
            len => stream.write_all(&buf[..len])?,
        }
    }
}

fn serve_http(mut stream: &TcpStream, greeting: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let mut buf = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 1 << 16 {
        match stream.read(&mut buf)? {
            0 => break,
            len => request.extend_from_slice(&buf[..len]),
        }
    }
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{greeting}",
        greeting.len()
    )
}

/// Answers every UDP datagram with `<banner> <client>\n`. Stops on drop.
#[derive(Debug)]
pub struct UdpServer {
    addr: SocketAddr,
    log: Arc<Log>,
    _service: Service,
}

impl UdpServer {
    /// Starts one in the namespace of `place`. Port 0 picks a free one.
    ///
    /// Bound to all addresses, it answers from the one the route back prefers, as most servers do.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(place: &impl InNetns, bind: SocketAddr, banner: &str) -> Result<Self> {
        let socket = with_netns(place.netns(), || once_free(|| UdpSocket::bind(bind)))?
            .with_context(|| format!("UDP server `{banner}` on `{bind}`"))?;
        socket.set_nonblocking(true)?;
        let addr = socket.local_addr()?;
        let log = Arc::new(Log::default());
        let (banner, noted) = (banner.to_owned(), Arc::clone(&log));
        let service = Service::start("udp-server", move |stopped| {
            let mut buf = [0; 2048];
            while let Ok([false, _]) = wait_readable([stopped.as_fd(), socket.as_fd()], None) {
                let Ok((_, client)) = socket.recv_from(&mut buf) else { continue };
                noted.note(client);
                // An answer that cannot be sent is one that the client misses.
                let _ = socket.send_to(format!("{banner} {client}\n").as_bytes(), client);
            }
        })?;
        Ok(Self { addr, log, _service: service })
    }

    /// The address it is bound to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Datagrams so far.
    pub fn datagrams(&self) -> usize {
        self.log.count.load(Ordering::Relaxed)
    }

    /// The latest client, as seen from here.
    pub fn last_client(&self) -> Option<SocketAddr> {
        *self.log.last.lock().expect("nothing panics while holding it")
    }
}

/// Binds when the port is free, which may be a moment after its server was dropped: a process that another thread is just
/// starting has a copy of every descriptor until its execve(2).
///
/// # Errors
/// What `bind` says last.
pub fn once_free<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    const MOMENT: Duration = Duration::from_secs(10);
    let mut bound = bind();
    let is_settled = || {
        let in_use = bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
        if in_use {
            bound = bind();
        }
        !in_use
    };
    let _ = eventually(MOMENT, is_settled);
    bound
}
