//! The names that Docker has for the containers on its networks here.
//!
//! Docker does not tell a network driver whose an endpoint is, so its API is asked: after it was answered, and in a thread of its
//! own, for Docker holds locks while it calls us, and would wait for itself. What is found is written to labels
//! ([`portolan_model::CALLED`]). A Docker that is away or has another socket costs nothing but the names.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use portolan_docker::names;
use portolan_engine::Error;
use portolan_model::{CALLED, Container, ContainerKind, Id};
use tokio::net::UnixStream;
use tokio::runtime;
use tokio::sync::watch;

use crate::daemon::{self, Engine};
use crate::http;

/// Where Docker's API is, unless `DOCKER_HOST` says otherwise.
const SOCKET: &str = "/var/run/docker.sock";
/// The longest answer: a network with thousands of containers.
const BODY: usize = 16 << 20;

/// The running thread (`portolan-names`); it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Names {
    wake: watch::Sender<()>,
}

impl Names {
    /// Starts it for the state at `root`; `run` is where the resident's control socket is.
    ///
    /// # Errors
    /// When there can be no thread, or the state cannot be opened.
    pub(crate) fn start(root: &Path, run: &Path) -> Result<Self> {
        let (wake, woken) = watch::channel(());
        let Some(socket) = socket(std::env::var("DOCKER_HOST").ok()) else { return Ok(Self { wake }) };
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let names = Follower { engine: daemon::engine(root)?, run: run.to_owned(), socket };
        let work = move || runtime.block_on(names.follow(woken));
        std::thread::Builder::new().name("portolan-names".into()).spawn(work)?;
        Ok(Self { wake })
    }

    /// Says that there may be something to ask for.
    pub(crate) fn wake(&self) {
        self.wake.send_replace(());
    }
}

/// The unix socket that a `DOCKER_HOST` means.
fn socket(host: Option<String>) -> Option<PathBuf> {
    match host.as_deref() {
        None | Some("") => Some(SOCKET.into()),
        Some(host) => {
            let socket = host.strip_prefix("unix://").map(PathBuf::from);
            if socket.is_none() {
                tracing::warn!(
                    "DOCKER_HOST is `{host}`, no unix socket: names of Docker's containers are not asked for"
                );
            }
            socket
        }
    }
}

struct Follower {
    engine: Engine,
    run: PathBuf,
    socket: PathBuf,
}

impl Follower {
    /// Listens to Docker as long as it is there, and again when somebody says that it may be.
    async fn follow(self, mut woken: watch::Receiver<()>) {
        loop {
            tokio::select! {
                ended = self.listen() => if let Err(error) = ended {
                    tracing::info!("names of Docker's containers are not asked for now: {error:#}");
                },
                () = dropped(woken.clone()) => return,
            }
            if woken.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes in the names there are, and those that come, until Docker goes.
    async fn listen(&self) -> Result<()> {
        // Events first: whoever comes while the others are looked at is in them.
        let mut events = self.get(names::EVENTS).await?.into_body();
        for network in self.networks()? {
            for container in names::members(&self.ask(&names::network_path(&network)).await?)? {
                self.name_or_say(container).await;
            }
        }
        let mut line = Vec::new();
        while let Some(frame) = events.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            for part in data.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                ensure!(line.len() <= BODY, "an event is too long");
                if line.ends_with(b"\n")
                    && let Some(container) = names::subject(&std::mem::take(&mut line))?
                {
                    self.name_or_say(container).await;
                }
            }
        }
        Ok(())
    }

    /// Docker's networks that somebody is on: who came or was renamed while nobody listened is on one of them.
    fn networks(&self) -> Result<BTreeSet<String>> {
        let containers = self.engine.containers()?;
        let handed = containers.iter().filter(|info| info.container.kind == ContainerKind::Handed);
        let ours: BTreeSet<Id> =
            handed.flat_map(|info| &info.endpoints).map(|(endpoint, _)| endpoint.network).collect();
        let references = self.engine.references()?;
        let others = references.into_iter().filter(|(_, network)| ours.contains(network)).map(|(theirs, _)| theirs);
        // Docker knows no network by our id that it has under another, and says so.
        Ok(others.chain(ours.iter().map(ToString::to_string)).collect())
    }

    /// [`Self::name`]; one that cannot be named does not keep others from it.
    async fn name_or_say(&self, container: Id) {
        if let Err(error) = self.name(container).await {
            tracing::warn!(%container, "what Docker calls it is not known: {error:#}");
        }
    }

    /// Writes down what a container is called. It may be none of ours, or have gone.
    async fn name(&self, container: Id) -> Result<()> {
        let answer = self.get(&names::container_path(container)).await?;
        if answer.status() == hyper::StatusCode::NOT_FOUND {
            return Ok(());
        }
        for (endpoint, labels) in names::labels(&body(answer).await?)? {
            let known: Option<Container> = match self.engine.container(&endpoint.to_string()) {
                Ok(info) => Some(info.container).filter(|container| container.kind == ContainerKind::Handed),
                Err(Error::NotFound { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let is_new =
                |container: &Container| labels.iter().any(|(key, value)| container.labels.get(key) != Some(value));
            let Some(known) = known.filter(is_new) else { continue };
            tracing::debug!(container = %known.name, "Docker calls it `{}`", labels[CALLED]);
            match self.engine.label(known.id, &labels) {
                Ok(()) => http::settle(&self.run, "names"),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn ask(&self, path: &str) -> Result<Bytes> {
        body(self.get(path).await?).await
    }

    /// A request on a connection of its own.
    async fn get(&self, path: &str) -> Result<Response<Incoming>> {
        let doing = || format!("ask Docker at `{}`", self.socket.display());
        let stream = UnixStream::connect(&self.socket).await.with_context(doing)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(doing)?;
        tokio::spawn(connection);
        let request = Request::get(path).header(header::HOST, "docker").body(Empty::<Bytes>::new())?;
        sender.send_request(request).await.with_context(doing)
    }
}

/// The body of an answer.
async fn body(answer: Response<Incoming>) -> Result<Bytes> {
    let body = Limited::new(answer.into_body(), BODY).collect().await;
    Ok(body.map_err(|error| io::Error::other(error.to_string())).context("read Docker's answer")?.to_bytes())
}

/// Returns when nobody can wake us any more.
async fn dropped(mut woken: watch::Receiver<()>) {
    while woken.changed().await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_docker_is() {
        for (host, socket) in [
            (None, Some(SOCKET)),
            (Some(""), Some(SOCKET)),
            (Some("unix:///run/user/0/docker.sock"), Some("/run/user/0/docker.sock")),
            (Some("tcp://127.0.0.1:2375"), None),
        ] {
            assert_eq!(super::socket(host.map(str::to_owned)), socket.map(PathBuf::from));
        }
    }
}
