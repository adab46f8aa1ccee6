//! The server of the configuration protocol.

use std::io;
use std::sync::Arc;

use portolan_kernel::door::Door;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use super::EINVAL;
use super::device::WgDevice;
use crate::Changes;

const LONGEST: u64 = 16 << 20;

/// The signals that end a worker.
pub(super) struct Signals(Signal, Signal);

impl Signals {
    pub(super) fn take() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

/// Answers whoever connects.
pub(super) fn start(door: &Door, device: Arc<WgDevice>) -> io::Result<JoinHandle<()>> {
    let listener = door.listener().try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    Ok(tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let device = Arc::clone(&device);
                    tokio::spawn(async move {
                        // A caller that goes away is no failure of ours.
                        let _ = converse(stream, &device).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a caller");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }))
}

/// Requests one after the other, until the caller has no more.
async fn converse(stream: UnixStream, device: &WgDevice) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut request = String::new();
        let mut limited = (&mut read).take(LONGEST);
        loop {
            let before = request.len();
            if limited.read_line(&mut request).await? == 0 {
                if request.is_empty() || limited.limit() == 0 {
                    return Ok(());
                }
                break;
            }
            if request[before..].trim_end_matches(['\r', '\n']).is_empty() {
                request.truncate(before);
                break;
            }
        }
        let answer = answer(&request, device).await;
        write.write_all(answer.as_bytes()).await?;
    }
}

async fn answer(request: &str, device: &WgDevice) -> String {
    let (first, rest) = request.split_once('\n').unwrap_or((request, ""));
    let (text, errno) = match first {
        "get=1" => (device.get().await, 0),
        "set=1" => match rest.parse::<Changes>() {
            Ok(changes) => (String::new(), device.set(&changes).await),
            Err(error) => {
                tracing::warn!(%error, "caller says what is not understood");
                (String::new(), EINVAL)
            }
        },
        _ => (String::new(), EINVAL),
    };
    format!("{text}errno={errno}\n\n")
}
