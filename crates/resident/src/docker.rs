//! Docker's plugin: HTTP on a unix socket, one call at a time.
//!
//! What a call means is [`portolan_docker`]'s. This thread has an engine of its own; that names and ports are in force before
//! a call is answered it learns as every command does, from the main thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use portolan_docker::plugin;
use portolan_kernel::door::Door;
use tokio::net::UnixListener;
use tokio::runtime;
use tokio::sync::oneshot;

use crate::control::{Client, Request};
use crate::daemon::{self, Engine};
use crate::docker_names::Names;

/// The longest body: a container with every port published has four megabytes.
const BODY: usize = 8 << 20;
/// What Docker expects of a plugin that knows this version of the protocol.
const CONTENT: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");
/// How long a call may go on when the thread is to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// The running thread; dropping it ends it and removes the socket.
#[derive(Debug)]
pub struct Plugin {
    door: Option<Door>,
    stop: Option<oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
}

/// What a call needs.
struct Served {
    engine: Mutex<Engine>,
    run: PathBuf,
    names: Names,
}

impl Plugin {
    /// Starts the thread (`portolan-docker`) for the state at `root`, served at `socket` to root alone; `run` is where the
    /// resident's control socket is.
    ///
    /// # Errors
    /// When somebody else serves there, or the socket cannot be made.
    pub fn start(root: &Path, run: &Path, socket: &Path) -> Result<Self> {
        let doing = || format!("serve Docker's plugin at `{}`", socket.display());
        if let Some(directory) = socket.parent() {
            fs::create_dir_all(directory).with_context(doing)?;
        }
        let door = Door::private(socket).context("serve Docker's plugin")?;
        let listener = door.listener().try_clone()?;
        listener.set_nonblocking(true)?;
        let served = Arc::new(Served {
            engine: Mutex::new(daemon::engine(root)?),
            run: run.to_owned(),
            names: Names::start(root, run)?,
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = mpsc::channel();
        let runtime = runtime::Builder::new_current_thread().enable_io().max_blocking_threads(1).build()?;
        let serve = async move {
            let app = Router::new().fallback(call).layer(DefaultBodyLimit::max(BODY)).with_state(served);
            let listener = UnixListener::from_std(listener)?;
            axum::serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) }).await
        };
        let work = move || {
            if let Err(error) = runtime.block_on(serve) {
                tracing::error!("Docker's plugin: {error}");
            }
            drop(end);
        };
        std::thread::Builder::new().name("portolan-docker".into()).spawn(work)?;
        Ok(Self { door: Some(door), stop: Some(stop), ended })
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        drop((self.door.take(), self.stop.take()));
        // Idle connections of Docker's stay open: it is enough that no call is under way.
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}

async fn call(State(served): State<Arc<Served>>, method: Method, uri: Uri, body: Bytes) -> Response {
    if method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "a plugin is called by POST\n").into_response();
    }
    let done = tokio::task::spawn_blocking(move || served.answer(uri.path().trim_start_matches('/'), &body)).await;
    match done {
        Ok(Some(body)) => ([(header::CONTENT_TYPE, CONTENT)], body.to_string()).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, "no such method\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

impl Served {
    fn answer(&self, method: &str, body: &[u8]) -> Option<serde_json::Value> {
        // A call that panicked left the engine as it was: it holds nothing but connections.
        let engine = self.engine.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let answer = plugin::answer(&engine, method, body)?;
        if answer.changed
            && let Err(error) = settle(&self.run, method)
        {
            tracing::warn!("{method}: names and proxied ports are not served: {error:#}");
        }
        // Docker is there.
        if matches!(method, "Plugin.Activate" | "NetworkDriver.Join") {
            self.names.wake();
        }
        Some(answer.body)
    }
}

/// Waits until what was committed is in force; `run` is where the resident's control socket is.
pub(crate) fn settle(run: &Path, method: &str) -> Result<()> {
    let mut client = Client::connect(run)?.context("the control socket is gone")?;
    let done = client.tell(&Request::Sync { command: None })?.unwrap_or_default();
    done.warnings.iter().for_each(|warning| tracing::warn!("{method}: {warning}"));
    Ok(())
}
