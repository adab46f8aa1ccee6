//! The thread that holds all leases.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use mozim::DhcpError;
use portolan_model::{DhcpLease, Family, Id};
use tokio::runtime;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, LocalSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::{Client, Granted4, Place, Step, give_back};
use crate::inside::{Closed, inside};
use crate::now;
use crate::routing::Routing;

/// How long the server that granted a lease has to renew it before all are asked. A refusal looks like silence to
/// `mozim` while it renews; the question to all is refused audibly.
const RENEWAL: Duration = Duration::from_secs(10);
/// How long the server that made an offer has to grant it before all are asked anew. It may have given the address to another
/// who was faster, and `mozim` does not hear that refusal either: it asks for the same for ever.
const OFFER: Duration = Duration::from_secs(4);
/// How long to wait after a failure of our own: no interface, no descriptors.
const RETRY: Duration = Duration::from_secs(5);
/// How long a lease that never ends counts as just obtained.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What has become of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// A server granted it, new or once more.
    Granted(DhcpLease, Routing),
    /// Its time is over, and no server gave another: the address is not the container's any more.
    Ended,
    /// It could not be asked for; it will be tried again.
    Failed(String),
    /// The namespace is gone: it is not tried again.
    SandboxGone,
}

/// Called, on the thread and in the namespace that it was started in, with what happens.
pub type Tell = Box<dyn FnMut(&Place, Happened) + Send>;

type Key = (Id, Family);

enum Command {
    Keep(Box<Place>, Option<Box<DhcpLease>>),
    Leave(Key),
    HandOver(Key),
    Release(Vec<Key>, Box<dyn FnOnce() + Send>),
}

/// The running thread; dropping it ends it, and leases stay with their containers.
pub struct Keeper {
    commands: Option<UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl Keeper {
    /// Starts the thread (`portolan-dhcp`) in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When out of descriptors or threads.
    pub fn start(tell: Tell) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (commands, queue) = mpsc::unbounded_channel();
        let work = move || LocalSet::new().block_on(&runtime, Hub::new(tell).run(queue));
        let thread = std::thread::Builder::new().name("portolan-dhcp".into()).spawn(work)?;
        Ok(Self { commands: Some(commands), thread: Some(thread) })
    }

    /// Acquires a lease for `place` and keeps it, from now on. `held` is what it has had so far.
    pub fn keep(&self, place: Place, held: Option<DhcpLease>) {
        self.send(Command::Keep(Box::new(place), held.map(Box::new)));
    }

    /// Takes note that the endpoint is gone: what it held is given back from the host.
    pub fn leave(&self, endpoint: Id, family: Family) {
        self.send(Command::Leave((endpoint, family)));
    }

    /// Takes note that the endpoint is gone and another is the same client ([`Place::is_same_client`]): what it held is
    /// kept for that one, which is to be told next.
    pub fn hand_over(&self, endpoint: Id, family: Family) {
        self.send(Command::HandOver((endpoint, family)));
    }

    /// Gives back what endpoints hold, while their interfaces are there; returns when the messages are sent, or after
    /// `patience`.
    pub fn release(&self, leases: Vec<(Id, Family)>, patience: Duration) {
        let (reply, done) = std::sync::mpsc::channel();
        let sent = move || {
            let _ = reply.send(());
        };
        self.send(Command::Release(leases, Box::new(sent)));
        let _ = done.recv_timeout(patience);
    }

    /// The same for callers that do not block. It is begun at once; the future is ready when the messages are sent.
    pub fn begin_release(&self, leases: Vec<(Id, Family)>) -> impl Future<Output = ()> + use<> {
        let (reply, done) = oneshot::channel();
        let sent = move || {
            let _ = reply.send(());
        };
        self.send(Command::Release(leases, Box::new(sent)));
        async move { drop(done.await) }
    }

    fn send(&self, command: Command) {
        // A thread that panicked has said so.
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps leases panicked");
        }
    }
}

/// What a task says to the hub.
struct Said {
    key: Key,
    happened: Happened,
    granted: Option<Granted4>,
}

/// A lease that is kept.
struct Kept {
    place: Place,
    held: Option<DhcpLease>,
    /// The same as the library knows it.
    granted: Option<Granted4>,
    /// It was given back, and is not asked for anew while its row is still there.
    is_released: bool,
    task: AbortHandle,
}

struct Hub {
    tell: Tell,
    kept: BTreeMap<Key, Kept>,
    say: UnboundedSender<Said>,
    said: UnboundedReceiver<Said>,
}

impl Hub {
    fn new(tell: Tell) -> Self {
        let (say, said) = mpsc::unbounded_channel();
        Self { tell, kept: BTreeMap::new(), say, said }
    }

    async fn run(mut self, mut queue: UnboundedReceiver<Command>) {
        loop {
            tokio::select! {
                biased;
                command = queue.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                Some(said) = self.said.recv() => self.note(said),
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Keep(place, held) => {
                let (place, held) = (*place, held.map(|held| *held));
                let key = (place.endpoint, place.family);
                if self.kept.get(&key).is_some_and(|kept| kept.place == place) {
                    return;
                }
                let task = keep(place.clone(), held.clone(), self.say.clone());
                let task = tokio::task::spawn_local(task).abort_handle();
                if let Some(before) =
                    self.kept.insert(key, Kept { place, held, granted: None, is_released: false, task })
                {
                    before.task.abort();
                }
            }
            Command::Leave(key) => {
                let Some(kept) = self.kept.remove(&key) else { return };
                kept.task.abort();
                if let (Some(lease), Some(parent)) = (&kept.held, &kept.place.parent) {
                    let released = give_back(&kept.place, lease, kept.granted, parent).await;
                    report(&kept.place, lease, &released);
                }
            }
            Command::HandOver(key) => {
                if let Some(kept) = self.kept.remove(&key) {
                    kept.task.abort();
                }
            }
            Command::Release(keys, sent) => {
                for key in keys {
                    let Some(kept) = self.kept.get_mut(&key) else { continue };
                    kept.task.abort();
                    kept.is_released = true;
                    let Some(lease) = kept.held.take() else { continue };
                    let place = &kept.place;
                    let release = give_back(place, &lease, kept.granted.clone(), &place.ifname);
                    match inside(&place.sandbox, release).await {
                        Ok(Ok(())) => report(place, &lease, &Ok(())),
                        // Then it is given back from the host.
                        Ok(Err(_)) | Err(_) => kept.held = Some(lease),
                    }
                }
                sent();
            }
        }
    }

    fn note(&mut self, said: Said) {
        // What was on its way when the lease was given back.
        let Some(kept) = self.kept.get_mut(&said.key).filter(|kept| !kept.is_released) else { return };
        match &said.happened {
            Happened::Granted(lease, _) => (kept.held, kept.granted) = (Some(lease.clone()), said.granted),
            Happened::Ended => (kept.held, kept.granted) = (None, None),
            Happened::Failed(_) | Happened::SandboxGone => {}
        }
        (self.tell)(&kept.place, said.happened);
    }
}

fn report(place: &Place, lease: &DhcpLease, released: &Result<(), DhcpError>) {
    match released {
        Ok(()) => tracing::info!(address = %lease.address, mac = %place.mac, "gave a lease back"),
        Err(error) => {
            tracing::warn!(%error, address = %lease.address, "a lease ends by itself: it cannot be given back")
        }
    }
}

/// How a round of [`round`] ended.
enum Round {
    Step(Box<Step>, Option<Granted4>),
    /// The lease is over.
    Over,
    /// Nobody has answered for long enough.
    Silence,
    Failed(DhcpError),
}

/// Acquires a lease and keeps it for good.
async fn keep(place: Place, mut held: Option<DhcpLease>, say: UnboundedSender<Said>) {
    let key = (place.endpoint, place.family);
    let tell = |happened, granted| drop(say.send(Said { key, happened, granted }));
    let mut client: Option<Client> = None;
    // Until when the one server that was asked may answer.
    let mut asked: Option<Instant> = None;
    // What the next client asks for.
    let mut known = held.clone();
    if held.as_ref().is_some_and(|lease| lease.left(now()).is_none()) {
        (held, known) = (None, None);
        tell(Happened::Ended, None);
    }
    loop {
        match inside(&place.sandbox, round(&place, &mut client, known.as_ref(), held.as_ref(), asked)).await {
            Ok(Round::Step(step, granted)) => match *step {
                Step::Granted(lease, routing) => {
                    asked = None;
                    held = Some((*lease).clone());
                    tell(Happened::Granted(*lease, routing), granted);
                }
                Step::Renewing => drop(asked.get_or_insert_with(|| Instant::now() + RENEWAL)),
                Step::Choosing => asked = Some(Instant::now() + OFFER),
                Step::Looking => asked = None,
            },
            Ok(Round::Silence) => {
                (client, asked) = (None, None);
                // A DHCPv6 server that knows of no such lease says so in words that `mozim` does not hear.
                known = held.clone().filter(|_| place.family == Family::V4);
            }
            Ok(Round::Over) => {
                (held, known, client, asked) = (None, None, None, None);
                tell(Happened::Ended, None);
            }
            Ok(Round::Failed(error)) => {
                client = None;
                known = held.clone();
                tell(Happened::Failed(error.to_string()), None);
                sleep(RETRY).await;
            }
            Err(Closed::Gone(_)) => return tell(Happened::SandboxGone, None),
            Err(error @ Closed::Netns(_)) => {
                tell(Happened::Failed(error.to_string()), None);
                sleep(RETRY).await;
            }
        }
    }
}

/// Waits until the client has come one step further, the lease that is `held` is over, or `asked` is past. A client
/// that is made for it asks for the lease that is `known`.
async fn round(
    place: &Place,
    client: &mut Option<Client>,
    known: Option<&DhcpLease>,
    held: Option<&DhcpLease>,
    asked: Option<Instant>,
) -> Round {
    let client = match client {
        Some(client) => client,
        None => match Client::new(place, known).await {
            Ok(new) => client.insert(new),
            Err(error) => return Round::Failed(error),
        },
    };
    tokio::select! {
        step = client.step() => match step {
            Ok(step) => Round::Step(Box::new(step), client.granted().cloned()),
            Err(error) => Round::Failed(error),
        },
        () = over(held) => Round::Over,
        () = sleep_until(asked.unwrap_or_else(Instant::now)), if asked.is_some() => Round::Silence,
    }
}

/// Returns when the lease has ended.
async fn over(held: Option<&DhcpLease>) {
    let Some(lease) = held else { return std::future::pending().await };
    // A machine that slept is woken by the renewal, whose clock went on; then this looks at the time again.
    while let Some(left) = lease.left(now()) {
        sleep(Duration::from_secs(left.into()).min(FOREVER)).await;
    }
}
