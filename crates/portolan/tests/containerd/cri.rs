//! What a kubelet says to containerd: the Container Runtime Interface, as gRPC over HTTP/2 on a unix socket.
//!
//! Of the messages of `runtime.v1` (kubernetes/cri-api, `pkg/apis/runtime/v1/api.proto`) only the fields that are needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

/// No call takes longer, fifty at once included.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub(crate) hostname: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) dns: Option<DnsConfig>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) ports: Vec<PortMapping>,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DnsConfig {
    #[prost(string, repeated, tag = "1")]
    pub(crate) servers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) searches: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PortMapping {
    /// 0 for TCP, 1 for UDP.
    #[prost(int32, tag = "1")]
    pub(crate) protocol: i32,
    #[prost(int32, tag = "2")]
    pub(crate) container: i32,
    #[prost(int32, tag = "3")]
    pub(crate) host: i32,
}

/// A sandbox by its id: what most calls take, and what the first answers.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Sandbox {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(bool, tag = "2")]
    pub(crate) verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<PodSandboxStatus>,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) info: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandboxStatus {
    /// 0 while it is ready.
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
    #[prost(message, optional, tag = "5")]
    pub(crate) network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    pub(crate) ip: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) additional: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodIp {
    #[prost(string, tag = "1")]
    pub(crate) ip: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    pub(crate) conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RuntimeCondition {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(bool, tag = "2")]
    pub(crate) status: bool,
    #[prost(string, tag = "4")]
    pub(crate) message: String,
}

/// Who calls.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// Calls who listens at `socket`.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Calls `method` of the runtime service, by a connection of its own.
    ///
    /// # Errors
    /// When it is not answered, or with a status other than 0: with the message of it.
    pub(crate) fn call<T: Message + Default>(&self, method: &str, question: &impl Message) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(async {
            let answer = tokio::time::timeout(PATIENCE, self.ask(method, question.encode_to_vec()));
            answer.await.context("no answer in time")?
        });
        Ok(T::decode(answer.with_context(|| format!("call {method}"))?)?)
    }

    async fn ask(&self, method: &str, question: Vec<u8>) -> Result<Bytes> {
        let (mut client, connection) = h2::client::handshake(UnixStream::connect(&self.socket).await?).await?;
        tokio::spawn(connection);
        let request = Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, mut stream) = client.send_request(request, false)?;
        let mut frame = BytesMut::with_capacity(5 + question.len());
        frame.put_u8(0);
        frame.put_u32(u32::try_from(question.len())?);
        frame.put_slice(&question);
        stream.send_data(frame.freeze(), true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            answer.extend_from_slice(&chunk);
        }
        // A call that fails at once has its status in the only headers.
        check(&body.trailers().await?.unwrap_or(head.headers))?;
        let Some((&[0, a, b, c, d], message)) = answer.split_first_chunk::<5>() else { bail!("no message") };
        ensure!(message.len() == u32::from_be_bytes([a, b, c, d]) as usize, "a message of another length");
        Ok(answer.freeze().slice(5..))
    }
}

fn check(headers: &HeaderMap) -> Result<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    ensure!(text("grpc-status") == "0", "status {}: {}", text("grpc-status"), text("grpc-message"));
    Ok(())
}
