//! Docker's plugin: HTTP on a unix socket, one call at a time.
//!
//! What a call means is [`portolan_docker`]'s. This thread has an engine of its own; that names and ports are in force before
//! a call is answered it learns as every command does, from the main thread.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use portolan_docker::plugin;
use portolan_kernel::door::{self, Door};
use portolan_model::{FirewallDriver, ProcessId};
use serde_json::{Value, json};

use crate::cluster::AtDaemon;
use crate::daemon::{self, Engine};
use crate::docker_names::Names;
use crate::http::{self, Caller, Service};

/// The longest body: a container with every port published has four megabytes.
const BODY: usize = 8 << 20;
/// What Docker expects of a plugin that knows this version of the protocol.
const CONTENT: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");

/// The running thread; dropping it ends it and removes the socket.
#[derive(Debug)]
pub struct Plugin {
    _service: Service,
}

/// What a call needs.
struct Served {
    engine: Mutex<Engine>,
    run: PathBuf,
    names: Names,
}

impl Plugin {
    /// Starts the thread (`portolan-docker`) for the state at `root`, served at `socket` to root alone; `run` is where the
    /// resident's control socket is, `firewall` who carries out the rules if the first network is made here.
    ///
    /// # Errors
    /// When somebody else serves there, or the socket cannot be made.
    pub fn start(root: &Path, run: &Path, firewall: Option<FirewallDriver>, socket: &Path) -> Result<Self> {
        let doing = || format!("serve Docker's plugin at `{}`", socket.display());
        if let Some(directory) = socket.parent() {
            door::directory(directory).with_context(doing)?;
        }
        let door = Door::private(socket).context("serve Docker's plugin")?;
        let engine = daemon::engine(root)?.with_firewall(firewall);
        let engine = engine.with_cluster(Box::new(AtDaemon::new(run.to_owned())));
        engine.begin_answering().with_context(doing)?;
        let names = Names::start(root, run)?;
        let served = Arc::new(Served { engine: Mutex::new(engine), run: run.to_owned(), names });
        let app = Router::new().fallback(call).layer(DefaultBodyLimit::max(BODY)).with_state(served);
        Ok(Self { _service: Service::start("portolan-docker", door, 1, app)? })
    }
}

async fn call(
    State(served): State<Arc<Served>>,
    ConnectInfo(Caller(caller)): ConnectInfo<Caller>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    if method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "a plugin is called by POST\n").into_response();
    }
    let done = move || served.answer(uri.path().trim_start_matches('/'), &body, caller);
    match tokio::task::spawn_blocking(done).await {
        Ok(Some(body)) => ([(header::CONTENT_TYPE, CONTENT)], body.to_string()).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, "no such method\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

impl Served {
    fn answer(&self, method: &str, body: &[u8], caller: Option<ProcessId>) -> Option<Value> {
        // A call that panicked left the engine as it was: it holds nothing but connections.
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = plugin::answer(&engine, method, body, caller)?;
        if answer.changed {
            http::settle(&self.run, method);
        }
        if let Some(number) = answer.number
            && let Err(error) = engine.answered(number)
        {
            // It would be given again.
            tracing::warn!("{method}: not given after all: {error}");
            return Some(json!({ "Error": error.to_string() }));
        }
        // Docker is there.
        if matches!(method, "Plugin.Activate" | "NetworkDriver.Join") {
            self.names.wake();
        }
        Some(answer.body)
    }
}
