use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::config::Config;
use crate::error::{Error, said};
use crate::watch::{Watch, create};
use crate::wire;

/// So many keys come with one answer at most: for each, etcd looks at all that are left.
const PAGE: i64 = 4000;
/// So many prefixes are asked for at once at most: fewer than a transaction may have parts.
const TOGETHER: usize = 64;
/// An answer is no longer than this; etcd's own limit for a request is 1.5 MB.
const LONGEST: usize = 64 << 20;
/// So much may be under way of one answer, and of all on a connection: a list comes without waiting for a word from here.
const WINDOW: u32 = 1 << 20;
const WINDOWS: u32 = 4 << 20;
/// A connection that is silent is asked whether it is there, and given up if it does not answer.
const PING: Duration = Duration::from_secs(5);
const PONG: Duration = Duration::from_secs(3);

/// A key as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Its value. Both are parts of the answer that they came with, which stays in memory as long as either.
    pub value: Bytes,
    /// The revision by which it came to be.
    pub create_revision: i64,
    /// The revision by which it was last written.
    pub mod_revision: i64,
    /// How often it was written since it came to be.
    pub version: i64,
    /// The lease that it goes with; 0 for none.
    pub lease: i64,
}

impl From<wire::KeyValue> for KeyValue {
    fn from(found: wire::KeyValue) -> Self {
        let wire::KeyValue { key, create_revision, mod_revision, version, value, lease } = found;
        Self { key, value, create_revision, mod_revision, version, lease }
    }
}

impl From<KeyValue> for wire::KeyValue {
    fn from(found: KeyValue) -> Self {
        let KeyValue { key, value, create_revision, mod_revision, version, lease } = found;
        Self { key, create_revision, mod_revision, version, value, lease }
    }
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Compare(wire::Compare);

impl Compare {
    fn new(key: impl Into<Vec<u8>>, greater: bool, target: i32, than: wire::Target) -> Self {
        let (key, result) = (key.into(), i32::from(greater));
        Self(wire::Compare { result, target, key, than: Some(than), range_end: Vec::new() })
    }

    /// The key is there.
    pub fn exists(key: impl Into<Vec<u8>>) -> Self {
        Self::new(key, true, 1, wire::Target::CreateRevision(0))
    }

    /// The key came to be by this revision; 0 if it is not there.
    pub fn create_revision(key: impl Into<Vec<u8>>, revision: i64) -> Self {
        Self::new(key, false, 1, wire::Target::CreateRevision(revision))
    }

    /// The key was last written by this revision; 0 if it is not there.
    pub fn mod_revision(key: impl Into<Vec<u8>>, revision: i64) -> Self {
        Self::new(key, false, 2, wire::Target::ModRevision(revision))
    }

    /// The key has this value.
    pub fn value(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::new(key, false, 3, wire::Target::Value(value.into()))
    }

    /// No key begins with this.
    pub fn none_under(prefix: impl Into<Vec<u8>>) -> Self {
        let Self(mut compare) = Self::create_revision(prefix, 0);
        compare.range_end = after(&compare.key);
        Self(compare)
    }
}

/// A part of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Op(wire::Request);

impl Op {
    /// Writes a key; with a lease it goes when that does.
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: Option<i64>) -> Self {
        Self(wire::Request::Put(wire::PutRequest { key: key.into(), value: value.into(), lease: lease.unwrap_or(0) }))
    }

    /// Removes a key, if it is there.
    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self(wire::Request::Delete(wire::DeleteRangeRequest { key: key.into(), range_end: Vec::new() }))
    }

    /// Removes all keys that begin with this.
    pub fn delete_prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let key = prefix.into();
        let range_end = after(&key);
        Self(wire::Request::Delete(wire::DeleteRangeRequest { key, range_end }))
    }

    /// Removes the keys from this one on that begin with `prefix`.
    pub(crate) fn delete_range(key: Vec<u8>, prefix: &[u8]) -> Self {
        Self(wire::Request::Delete(wire::DeleteRangeRequest { key, range_end: after(prefix) }))
    }
}

/// A transaction: all of `then` if all of `compares`, otherwise nothing. At most 128 of each, unless etcd was told
/// otherwise (`--max-txn-ops`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// What is done.
    pub then: Vec<Op>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Whether the conditions held, and it was done.
    pub succeeded: bool,
    /// etcd's revision after it.
    pub revision: i64,
}

/// The first key after all that begin with `prefix`; of nothing or the last one, etcd's word for "to the end".
pub(crate) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// Asks for what begins with `prefix` from `key` on.
fn range(prefix: &[u8], key: Vec<u8>, limit: i64, revision: i64) -> wire::RangeRequest {
    // What was at a revision does not change: who has it need not ask the others.
    let range_end = after(prefix);
    wire::RangeRequest { key, range_end, limit, revision, serializable: revision > 0, count_only: false }
}

/// Adds what was answered; where more begins, if there is more.
fn next_page(answer: wire::RangeResponse, found: &mut Vec<KeyValue>) -> Option<Vec<u8>> {
    let is_empty = answer.kvs.is_empty();
    found.extend(answer.kvs.into_iter().map(KeyValue::from));
    let last = found.last().filter(|_| answer.more && !is_empty)?;
    Some([&last.key[..], &[0]].concat())
}

/// A client. Calls are made one after the other, of the member that answered last; another is asked when it does not.
#[derive(Debug)]
pub struct Client {
    members: Vec<(String, Channel)>,
    user: Option<(String, String)>,
    /// Whether we show no certificate.
    lacks_identity: bool,
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Which member answers.
    member: usize,
    token: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Looks for a member that answers; with a user, lets itself be known.
    ///
    /// # Errors
    /// [`Error::Config`], when nothing can be reached like that; what the last member said.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let members: Vec<(String, Channel)> = config
            .endpoints
            .iter()
            .map(|url| Ok((url.clone(), channel(url, config)?)))
            .collect::<Result<_, Error>>()?;
        if members.is_empty() {
            return Err(Error::Config("no endpoint of etcd is given".to_owned()));
        }
        let lacks_identity = config.tls.as_ref().is_none_or(|tls| tls.identity.is_none());
        let (user, patience) = (config.user.clone(), config.timeout);
        let client = Self { members, user, lacks_identity, patience, state: Mutex::default() };
        if client.user.is_some() {
            client.authenticate().await?;
        }
        Ok(client)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding it")
    }

    async fn authenticate(&self) -> Result<(), Error> {
        let Some((name, password)) = self.user.clone() else {
            return Err(Error::Denied("etcd asks who we are, and no user is given".to_owned()));
        };
        self.state().token = None;
        let request = wire::AuthenticateRequest { name, password };
        let answer: wire::AuthenticateResponse = self.ask_members("etcdserverpb.Auth/Authenticate", &request).await?;
        let token = answer.token.parse().map_err(|_| Error::Other("the token is no text".to_owned()))?;
        self.state().token = Some(token);
        Ok(())
    }

    /// Asks the member that answered last, then the others; once more with a new token if this one is too old. Only for what
    /// may be done twice.
    async fn call<Q, A>(&self, method: &'static str, request: &Q) -> Result<A, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        match self.ask_members(method, request).await {
            Err(error) if error.is_of_token() && self.user.is_some() => {
                self.authenticate().await?;
                self.ask_members(method, request).await
            }
            done => done,
        }
    }

    async fn ask_members<Q, A>(&self, method: &'static str, request: &Q) -> Result<A, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut failure = None;
        // One whose connection has just ended is worth another one.
        for _ in 0..=self.members.len() {
            let member = self.state().member;
            match self.ask(member, method, request).await {
                Err(error) if error.is_of_member() => {
                    self.pass_over(member);
                    // What one says that was reached tells more than that another one was not.
                    if !matches!((&failure, &error), (Some(Error::NoLeader(_)), Error::Unreachable(_))) {
                        failure = Some(error);
                    }
                }
                done => return done,
            }
        }
        Err(failure.unwrap_or_else(|| Error::Unreachable("there is none".to_owned())))
    }

    fn pass_over(&self, member: usize) {
        let mut state = self.state();
        if state.member == member {
            state.member = (member + 1) % self.members.len();
        }
    }

    async fn ask<Q, A>(&self, member: usize, method: &'static str, request: &Q) -> Result<A, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let (url, channel) = &self.members[member];
        let (mut grpc, request) = (grpc(channel), self.request(request.clone()));
        let work = async {
            ready(&mut grpc, url).await?;
            grpc.unary(request, path(method)?, ProstCodec::<Q, A>::default())
                .await
                .map_err(|status| self.failed(url, &status))
        };
        match timeout(self.patience, work).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            // It ends the connection then, and says why only to who listens after that (RFC 8446 §4.4.2.4).
            Err(_) | Ok(Err(Error::Lost(_))) if self.lacks_identity && url.starts_with("https://") => {
                let why = "it does not answer, and may want a certificate from this host, which shows none";
                Err(Error::Unreachable(format!("{url}: {why}")))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout(self.patience.as_secs())),
        }
    }

    fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        // A member that is cut off from the others says so, rather than wait for them.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.state().token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    fn failed(&self, url: &str, status: &Status) -> Error {
        Error::of(url, status, self.patience.as_secs())
    }

    /// All keys that begin with `prefix`, in order, and the revision at which they were so.
    ///
    /// # Errors
    /// What etcd says.
    pub async fn range_all(&self, prefix: impl Into<Vec<u8>>) -> Result<(i64, Vec<KeyValue>), Error> {
        self.range_at(prefix, 0).await
    }

    /// The same as of `revision`; 0 for now. They come in several answers, none of which is too long.
    ///
    /// # Errors
    /// [`Error::Compacted`] when that is thrown away already; what etcd says.
    pub async fn range_at(&self, prefix: impl Into<Vec<u8>>, revision: i64) -> Result<(i64, Vec<KeyValue>), Error> {
        let prefix = prefix.into();
        let mut found = Vec::new();
        let revision = self.range_from(&prefix, prefix.clone(), revision, &mut found).await?;
        Ok((revision, found))
    }

    /// The same of several prefixes, all as of one revision: of each prefix, in their order, what begins with it. Asked for
    /// together, as far as answers do not get too long.
    ///
    /// # Errors
    /// As [`Self::range_at`].
    pub async fn ranges_at(&self, prefixes: &[Vec<u8>], mut revision: i64) -> Result<(i64, Vec<Vec<KeyValue>>), Error> {
        let mut all = Vec::with_capacity(prefixes.len());
        for together in prefixes.chunks(TOGETHER) {
            let range = |prefix: &Vec<u8>| wire::Request::Range(range(prefix, prefix.clone(), PAGE, revision));
            let operations = together.iter().map(|prefix| wire::RequestOp { request: Some(range(prefix)) });
            let request = wire::TxnRequest { compare: Vec::new(), success: operations.collect() };
            // Nothing is written, so it may be asked for twice.
            let answer: wire::TxnResponse = match self.call("etcdserverpb.KV/Txn", &request).await {
                Err(error) if error.is_of_length() => wire::TxnResponse::default(),
                answer => answer?,
            };
            if let Some(header) = answer.header.filter(|_| revision == 0) {
                revision = header.revision;
            }
            let mut answers = answer.responses.into_iter();
            for prefix in together {
                let mut found = Vec::new();
                let rest = match answers.next().and_then(|answer| answer.range) {
                    Some(answer) => next_page(answer, &mut found),
                    None => Some(prefix.clone()),
                };
                if let Some(from) = rest {
                    revision = self.range_from(prefix, from, revision, &mut found).await?;
                }
                all.push(found);
            }
        }
        Ok((revision, all))
    }

    /// How many keys begin with each of these prefixes as of `revision`.
    ///
    /// # Errors
    /// As [`Self::range_at`].
    pub(crate) async fn counts_at(&self, prefixes: &[&[u8]], revision: i64) -> Result<Vec<i64>, Error> {
        let mut counts = Vec::with_capacity(prefixes.len());
        for together in prefixes.chunks(TOGETHER) {
            let count = |prefix: &&[u8]| wire::RequestOp {
                request: Some(wire::Request::Range(wire::RangeRequest {
                    count_only: true,
                    ..range(prefix, prefix.to_vec(), 0, revision)
                })),
            };
            let request = wire::TxnRequest { compare: Vec::new(), success: together.iter().map(count).collect() };
            let answer: wire::TxnResponse = self.call("etcdserverpb.KV/Txn", &request).await?;
            counts.extend(answer.responses.into_iter().filter_map(|answer| Some(answer.range?.count)));
        }
        Ok(counts)
    }

    /// Adds what begins with `prefix` and is not before `key`, as of `revision`, or of the one that is answered.
    async fn range_from(
        &self,
        prefix: &[u8],
        mut key: Vec<u8>,
        mut revision: i64,
        found: &mut Vec<KeyValue>,
    ) -> Result<i64, Error> {
        let mut limit = PAGE;
        loop {
            let request = range(prefix, key.clone(), limit, revision);
            let mut answer: wire::RangeResponse = match self.call("etcdserverpb.KV/Range", &request).await {
                Err(error) if error.is_of_length() && limit > 1 => {
                    limit = (limit / 10).max(1);
                    continue;
                }
                answer => answer?,
            };
            if revision == 0 {
                revision = answer.header.take().unwrap_or_default().revision;
            }
            match next_page(answer, found) {
                Some(next) => key = next,
                None => return Ok(revision),
            }
        }
    }

    /// A key.
    ///
    /// # Errors
    /// What etcd says.
    pub async fn find(&self, key: impl Into<Vec<u8>>) -> Result<Option<KeyValue>, Error> {
        let request = wire::RangeRequest { key: key.into(), limit: 1, ..wire::RangeRequest::default() };
        let answer: wire::RangeResponse = self.call("etcdserverpb.KV/Range", &request).await?;
        Ok(answer.kvs.into_iter().next().map(KeyValue::from))
    }

    /// Does a transaction. It is sent once: the next member gets it only where the one before cannot have had it, for no
    /// connection came about, or has no leader, or does not take our token.
    ///
    /// # Errors
    /// [`Error::Unknown`] when it was sent, and no answer came; what etcd says.
    pub async fn txn(&self, txn: Txn) -> Result<Answer, Error> {
        let request = wire::TxnRequest {
            compare: txn.compares.into_iter().map(|Compare(compare)| compare).collect(),
            success: txn.then.into_iter().map(|Op(request)| wire::RequestOp { request: Some(request) }).collect(),
        };
        match self.send_once(&request).await {
            Err(error) if error.is_of_token() && self.user.is_some() => {
                self.authenticate().await?;
                self.send_once(&request).await
            }
            done => done,
        }
    }

    async fn send_once(&self, request: &wire::TxnRequest) -> Result<Answer, Error> {
        let mut failure = Error::Unreachable("there is none".to_owned());
        for _ in 0..self.members.len() {
            let member = self.state().member;
            let (url, channel) = &self.members[member];
            let seal = Arc::new(Seal::default());
            // A unary request and a stream of one message are the same to gRPC; of this one we know whether it was taken.
            let message = tokio_stream::once(request.clone()).filter({
                let seal = Arc::clone(&seal);
                move |_| seal.is_broken_first()
            });
            let mut grpc = grpc(channel);
            let work = async {
                ready(&mut grpc, url).await?;
                let codec = ProstCodec::<wire::TxnRequest, wire::TxnResponse>::default();
                let answer = grpc.client_streaming(self.request(message), path("etcdserverpb.KV/Txn")?, codec).await;
                answer.map_err(|status| self.failed(url, &status))
            };
            let error = match timeout(self.patience, work).await {
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    let revision = answer.header.unwrap_or_default().revision;
                    return Ok(Answer { succeeded: answer.succeeded, revision });
                }
                Ok(Err(error)) => error,
                Err(_) => Error::Timeout(self.patience.as_secs()),
            };
            if !error.is_of_member() {
                return Err(error);
            }
            self.pass_over(member);
            failure = match error {
                // It is said before the transaction is looked at.
                Error::NoLeader(text) if text.contains("no leader") => Error::NoLeader(text),
                Error::Unreachable(text) => Error::Unreachable(text),
                error if seal.is_broken_first() => {
                    Error::Unreachable(format!("{url}: there was no connection to send it by: {error}"))
                }
                error => return Err(Error::Unknown(error.to_string())),
            };
        }
        Err(failure)
    }

    /// A lease of so many seconds; its id. One that nobody keeps ends by itself, so that two are no harm.
    ///
    /// # Errors
    /// What etcd says.
    pub async fn lease_grant(&self, seconds: i64) -> Result<i64, Error> {
        let request = wire::LeaseGrantRequest { ttl: seconds };
        let answer: wire::LeaseGrantResponse = self.call("etcdserverpb.Lease/LeaseGrant", &request).await?;
        if answer.error.is_empty() { Ok(answer.id) } else { Err(Error::Other(answer.error)) }
    }

    /// Has a lease begin anew; how many seconds it has.
    ///
    /// # Errors
    /// [`Error::LeaseGone`]; what etcd says.
    pub async fn keep_alive(&self, lease: i64) -> Result<i64, Error> {
        let mut failure = Error::Unreachable("there is none".to_owned());
        for _ in 0..self.members.len() {
            let member = self.state().member;
            match timeout(self.patience, self.keep_alive_at(member, lease)).await {
                Ok(Ok(0)) => return Err(Error::LeaseGone),
                Ok(Ok(seconds)) => return Ok(seconds),
                Ok(Err(error)) if error.is_of_member() => failure = error,
                Ok(Err(error)) => return Err(error),
                Err(_) => failure = Error::Timeout(self.patience.as_secs()),
            }
            self.pass_over(member);
        }
        Err(failure)
    }

    async fn keep_alive_at(&self, member: usize, lease: i64) -> Result<i64, Error> {
        let (url, channel) = &self.members[member];
        let mut grpc = grpc(channel);
        ready(&mut grpc, url).await?;
        let codec = ProstCodec::<wire::LeaseKeepAliveRequest, wire::LeaseKeepAliveResponse>::default();
        let request = self.request(tokio_stream::once(wire::LeaseKeepAliveRequest { id: lease }));
        let answers = grpc.streaming(request, path("etcdserverpb.Lease/LeaseKeepAlive")?, codec).await;
        let mut answers = answers.map_err(|status| self.failed(url, &status))?.into_inner();
        match answers.message().await {
            Ok(Some(answer)) => Ok(answer.ttl),
            Ok(None) => Err(Error::Unreachable("the connection ended".to_owned())),
            Err(status) => Err(self.failed(url, &status)),
        }
    }

    /// Ends a lease, and what goes with it.
    ///
    /// # Errors
    /// [`Error::LeaseGone`]; what etcd says.
    pub async fn lease_revoke(&self, lease: i64) -> Result<(), Error> {
        let request = wire::LeaseRevokeRequest { id: lease };
        self.call::<_, wire::Nothing>("etcdserverpb.Lease/LeaseRevoke", &request).await.map(drop)
    }

    /// Follows all keys that begin with `prefix`, from `revision` on; 0 for from now on. Begun at the member that answers.
    /// [`Watch::follow`] has other keys be followed with them.
    ///
    /// # Errors
    /// [`Error::Compacted`] when that is thrown away already; what etcd says.
    pub async fn watch(&self, prefix: impl Into<Vec<u8>>, revision: i64) -> Result<Watch, Error> {
        let prefix = prefix.into();
        self.watch_from(prefix.clone(), &prefix, revision).await
    }

    /// The same of the keys from `key` to the last one that begins with `prefix`.
    pub(crate) async fn watch_from(&self, key: Vec<u8>, prefix: &[u8], revision: i64) -> Result<Watch, Error> {
        let create = create(key, prefix, revision);
        match self.watch_members(&create).await {
            Err(error) if error.is_of_token() && self.user.is_some() => {
                self.authenticate().await?;
                self.watch_members(&create).await
            }
            done => done,
        }
    }

    async fn watch_members(&self, create: &wire::WatchCreateRequest) -> Result<Watch, Error> {
        let mut failure = Error::Unreachable("there is none".to_owned());
        // One whose connection has just ended is worth another one.
        for _ in 0..=self.members.len() {
            let member = self.state().member;
            match timeout(self.patience, self.watch_at(member, create.clone())).await {
                Ok(Err(error)) if error.is_of_member() => failure = error,
                Ok(done) => return done,
                Err(_) => failure = Error::Timeout(self.patience.as_secs()),
            }
            self.pass_over(member);
        }
        Err(failure)
    }

    async fn watch_at(&self, member: usize, create: wire::WatchCreateRequest) -> Result<Watch, Error> {
        let (url, channel) = &self.members[member];
        let mut grpc = grpc(channel);
        ready(&mut grpc, url).await?;
        let (asks, requests) = tokio::sync::mpsc::unbounded_channel();
        let _ = asks.send(wire::WatchRequest { request: Some(wire::WatchAsk::Create(create)) });
        let codec = ProstCodec::<wire::WatchRequest, wire::WatchResponse>::default();
        let request = self.request(tokio_stream::wrappers::UnboundedReceiverStream::new(requests));
        let answers = grpc.streaming(request, path("etcdserverpb.Watch/Watch")?, codec).await;
        let answers = answers.map_err(|status| self.failed(url, &status))?.into_inner();
        Watch::begin(answers, asks, url, self.patience.as_secs()).await
    }
}

/// Of a message that may be sent once. Who breaks it first decides: the transport, which then has the message, or who gives
/// up waiting, and then it is never sent, however late a connection is there.
#[derive(Debug, Default)]
struct Seal(AtomicBool);

impl Seal {
    fn is_broken_first(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

fn grpc(channel: &Channel) -> Grpc<Channel> {
    Grpc::new(channel.clone()).max_decoding_message_size(LONGEST)
}

/// Waits until the channel takes a request. Whether it has a connection shows only later.
async fn ready(grpc: &mut Grpc<Channel>, url: &str) -> Result<(), Error> {
    grpc.ready().await.map_err(|error| Error::Unreachable(format!("{url}: {}", said(&error))))
}

fn path(method: &str) -> Result<PathAndQuery, Error> {
    format!("/{method}").parse().map_err(|_| Error::Other(format!("`{method}` is no method")))
}

fn channel(url: &str, config: &Config) -> Result<Channel, Error> {
    let wrong = |why: String| Error::Config(format!("endpoint `{url}`: {why}"));
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(wrong("does not begin with http:// or https://".to_owned()));
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| wrong(said(&error)))?;
    let mut endpoint = endpoint
        .connect_timeout(config.timeout)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOWS)
        .tcp_nodelay(true);
    if url.starts_with("https://") {
        let Some(tls) = &config.tls else { return Err(wrong("nothing says who may sign its certificate".to_owned())) };
        let mut settings = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
        if let Some((certificate, key)) = &tls.identity {
            settings = settings.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &tls.server_name {
            settings = settings.domain_name(name);
        }
        endpoint = endpoint.tls_config(settings).map_err(|error| wrong(said(&error)))?;
    }
    Ok(endpoint.connect_lazy())
}

#[cfg(test)]
mod tests {
    use super::after;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(after(b"a/"), b"a0");
        assert_eq!(after(b"a\xff\xff"), b"b");
        assert_eq!(after(b"\xff"), b"\0");
        assert_eq!(after(b""), b"\0");
    }
}
