//! The links between nodes: who is at the other end, and batches of opaque messages in order.
//!
//! From each node to each other goes one link a [`Class`], over a connection of its own that the sender dials. A link that
//! breaks is dialled again and has a new [`LinkEpoch`], of which both ends hear; what of the old one arrived, only the
//! upper layers know, so they send again whatever was not answered. Sending never waits, every queue is bounded, and a
//! peer that is slow to take what it gets is slowed down, not buffered.
//!
//! Beside the links a node may ask another who it is ([`Transport::who`]), ask it [`Question`]s while a cluster forms, and
//! fetch a checkpoint. What is absent: what any message means. What crosses the wire is in `kentongan_proto::peer`.
//!
//! [`outbox`] is the sender's queue, [`codec`] writes its frames, [`doorbell`] wakes who sends them, [`rest`] puts
//! the thread to sleep, [`link`] dials, [`service`] accepts, [`credit`] bounds what was received, [`identity`] and [`tls`] decide
//! who is believed.

mod codec;
mod connection;
mod copies;
mod credit;
mod doorbell;
mod event;
mod identity;
mod link;
mod outbox;
mod peers;
mod refusal;
mod requests;
mod rest;
mod service;
mod stats;
mod strangers;
#[allow(missing_docs, unused_qualifications, clippy::all)]
#[rustfmt::skip]
mod stubs;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, io, thread};

use bytes::Bytes;
use crossbeam::channel::{Receiver, bounded};
use futures_util::{StreamExt, stream};
use kentongan_proto::peer::{Kind, wire};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use self::connection::{Channel, Connection, SERVER_PATIENCE, Timing, dial, is_within_machine};
use self::peers::{Peer, Shared};
use self::rest::give_way;
use self::service::PeerService;
use self::stats::count;
use self::strangers::{Accepted, Proven};
use self::stubs::peer_client::PeerClient;
use self::stubs::peer_server::PeerServer;
use self::tls::Tls;
use crate::GroupId;

pub use self::connection::LinkError;
pub use self::copies::Copied;
pub use self::credit::Credit;
pub use self::event::{Class, Direction, Event, Incoming, LinkEpoch, Sink};
pub use self::identity::{ClusterId, Incarnation, LocalIdentity, NodeId, PeerHello};
pub use self::outbox::SendError;
pub use self::refusal::Refusal;
pub use self::requests::{Answerer, Asked, Conversation, Question, Responder, Snapshot, SnapshotChunks, Talk, Target};
pub use self::stats::{ClassStats, TransportStats};
pub use self::tls::{TlsError, TlsFiles};

/// Pause after an accept that failed, which it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Chunks of a snapshot that are received before they are taken.
const CHUNKS_AHEAD: usize = 2;

/// Threads for resolving names and reading checkpoints.
const BLOCKING_THREADS_MAX: usize = 16;

/// How long threads that wait for a disk may delay the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How this node speaks with others.
#[derive(Debug, Clone)]
pub struct TransportConfig {
    /// Where peers connect to. Without TLS, a loopback address.
    pub listen: SocketAddr,
    /// Who this node is.
    pub identity: LocalIdentity,
    /// Where others find it (`host:port`), which it tells them. Empty: it does not say.
    pub advertise: String,
    /// The number of this start of its data directory, which it tells them. 0: it has none.
    pub start: u64,
    /// Certificates. Without them, all nodes must be on this machine.
    pub tls: Option<TlsFiles>,
    /// What may wait to be sent to one peer of [`Class::Control`]. Over it the oldest Raft messages are dropped.
    pub control_queue_bytes_max: usize,
    /// Likewise of [`Class::Append`]. Over it messages are refused: the entries that wait come before those.
    pub append_queue_bytes_max: usize,
    /// What may wait to be sent to one peer of [`Class::Forward`]. Over it messages are refused.
    pub forward_queue_bytes_max: usize,
    /// What one peer may have waiting here in one class before its link is read no further.
    pub receive_bytes_max: usize,
    /// The longest frame that is accepted, so also the longest message; at least 64 KiB, the same on all nodes.
    pub frame_bytes_max: usize,
    /// Silence after which a peer is asked for a sign of life.
    pub keep_alive_interval: Duration,
    /// Time that it has to give one before it counts as gone.
    pub keep_alive_timeout: Duration,
    /// Time for a connection to be made, and again for the hello over it.
    pub connect_timeout: Duration,
    /// Time for an answer to a question.
    pub request_timeout: Duration,
    /// First pause before a broken link is dialled again.
    pub backoff_min: Duration,
    /// Longest such pause.
    pub backoff_max: Duration,
    /// Checkpoints sent at once, to all peers; who asks for more is told to try later.
    pub snapshots_max: usize,
    /// Connections accepted at once, from all peers.
    pub connections_max: usize,
    /// Those of them that have not shown a certificate yet; the oldest makes room for the next.
    pub strangers_max: usize,
}

/// Connections accepted at once, by [`TransportConfig::new`].
pub const CONNECTIONS_MAX: usize = 1024;

/// Those of them that have proved nothing, by [`TransportConfig::new`]. With fewer it is too easy to keep peers out.
pub const STRANGERS_MIN: usize = 64;

/// Bytes of the longest frame, by [`TransportConfig::new`]. Nodes that speak with each other have the same.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

impl TransportConfig {
    /// The defaults. A peer that vanishes is noticed within 3 s.
    pub fn new(listen: SocketAddr, identity: LocalIdentity) -> Self {
        Self {
            listen,
            identity,
            advertise: String::new(),
            start: 0,
            tls: None,
            control_queue_bytes_max: 8 * 1024 * 1024,
            append_queue_bytes_max: 64 * 1024 * 1024,
            forward_queue_bytes_max: 16 * 1024 * 1024,
            receive_bytes_max: 16 * 1024 * 1024,
            frame_bytes_max: FRAME_BYTES_MAX,
            keep_alive_interval: Duration::from_secs(1),
            keep_alive_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            snapshots_max: 2,
            connections_max: CONNECTIONS_MAX,
            strangers_max: STRANGERS_MIN,
        }
    }

    /// How long a process that lives keeps another one of its node out: twice as long as the links of one that is dead may last.
    fn rival_patience(&self) -> Duration {
        (self.keep_alive_interval * SERVER_PATIENCE + self.keep_alive_timeout) * 2
    }

    fn timing(&self) -> Timing {
        Timing {
            connect: self.connect_timeout,
            keep_alive_interval: self.keep_alive_interval,
            keep_alive_timeout: self.keep_alive_timeout,
        }
    }
}

/// Why the transport cannot do what it is told. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Without TLS, other machines could read and forge everything.
    #[error("{address} is not on this machine: nodes on several machines need TLS (CA, certificate and key)")]
    PlainNotLoopback {
        /// The address.
        address: String,
    },
    /// The certificates are no good.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The port is taken, or the address is not ours.
    #[error("cannot listen for peers on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The system gives us no thread.
    #[error("cannot start the thread that speaks with peers: {0}")]
    Thread(#[source] io::Error),
}

/// A node that this one keeps links with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its identity: nobody else is spoken with.
    pub node: NodeId,
    /// Its label, for which its certificate must be valid.
    pub name: String,
    /// Where it listens: `host:port`. If it says itself that it is elsewhere, it is dialled there as well.
    pub address: String,
}

/// How the links with a peer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub peer: PeerAddress,
    /// Classes in which we can send to it.
    pub outgoing: Vec<Class>,
    /// Classes in which it can send to us.
    pub incoming: Vec<Class>,
    /// Why the last attempt to reach it failed; `None` since a link came up.
    pub last_error: Option<String>,
}

/// The links of this node. Cheap to clone; [`Transport::stop`] ends them.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Handle,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop: oneshot::Sender<Duration>,
    thread: JoinHandle<()>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Transport").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

impl Transport {
    /// Listens, on a thread and runtime of its own. Speaks with nobody before [`Transport::set_peers`].
    pub fn start(
        config: TransportConfig,
        sink: Arc<dyn Sink>,
        responder: Arc<dyn Responder>,
    ) -> Result<Self, TransportError> {
        if config.tls.is_none() && !is_within_machine(config.listen) {
            return Err(TransportError::PlainNotLoopback { address: config.listen.to_string() });
        }
        let tls = config.tls.clone().map(|files| Tls::load(files, &config.identity.name)).transpose()?;
        let (listener, address) =
            bind(config.listen).map_err(|source| TransportError::Listen { address: config.listen, source })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .on_thread_park(give_way())
            .build()
            .map_err(TransportError::Thread)?;

        let handle = runtime.handle().clone();
        let snapshots = Arc::new(Semaphore::new(config.snapshots_max));
        // Two would hold each other up.
        let backups = Arc::new(Semaphore::new(1));
        let shared = Arc::new(Shared::new(config, tls, sink));
        let service = PeerService { shared: Arc::clone(&shared), responder, snapshots, backups, certificate: None };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("peers".into())
            .spawn(move || {
                runtime.block_on(run(listener, service, stopped));
                runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
            })
            .map_err(TransportError::Thread)?;
        let running = Mutex::new(Some(Running { stop, thread }));
        Ok(Self { inner: Arc::new(Inner { shared, address, runtime: handle, running }) })
    }

    /// Where peers connect to: the port that the system chose, if it was asked to.
    pub fn local_address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Sends a message to a peer. Never waits; see [`SendError`] for what it means not to be taken.
    ///
    /// Taken does not mean arrived: a link that breaks loses what was under way.
    pub fn send(&self, to: NodeId, class: Class, kind: Kind, body: Bytes) -> Result<(), SendError> {
        self.send_pieces(to, class, kind, [body, Bytes::new()], None).map(drop)
    }

    /// The same for a message whose body is in two pieces, and which may be worth something only behind what went before it: given
    /// the life of the link over which that went, it goes over the same or is not taken, as if that link were still down. Whoever sends
    /// may be ahead of the [`Event::LinkUp`] of a new one. Returns the life over which it goes.
    pub fn send_pieces(
        &self,
        to: NodeId,
        class: Class,
        kind: Kind,
        body: [Bytes; 2],
        over: Option<LinkEpoch>,
    ) -> Result<LinkEpoch, SendError> {
        let peers = self.inner.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.get(&to).ok_or(SendError::UnknownPeer)?;
        peer.outboxes[class.index()].push(kind, body, over)
    }

    /// Sends messages that may be lost, one after the other. None of them is waited for, and a full queue drops some.
    pub fn send_all(&self, to: NodeId, class: Class, kind: Kind, bodies: impl IntoIterator<Item = Bytes>) {
        let peers = self.inner.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&to) {
            peer.outboxes[class.index()].push_all(kind, bodies);
        }
    }

    /// Ends the link to a peer in one class. It is dialled again, and both ends hear of it as of any other end.
    pub fn break_link(&self, to: NodeId, class: Class) {
        let peers = self.inner.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&to) {
            peer.outboxes[class.index()].down();
        }
    }

    /// Says what changed about this node. The rest is fixed; hellos from here on carry this.
    pub fn set_identity(&self, cluster: Option<ClusterId>, incarnation: Option<Incarnation>) {
        let mut identity = self.inner.shared.identity.write().unwrap_or_else(PoisonError::into_inner);
        (identity.cluster, identity.incarnation) = (cluster, incarnation);
    }

    /// What the cluster uses, by which links and snapshots from here on are refused to programs that do not know it.
    pub fn set_feature_level(&self, used: u32) {
        self.inner.shared.feature_level.store(used, Ordering::Relaxed);
    }

    /// Nodes that were members and are none any more. They are told so, should they come.
    pub fn set_removed(&self, removed: BTreeSet<NodeId>) {
        *self.inner.shared.removed.write().unwrap_or_else(PoisonError::into_inner) = removed;
    }

    /// Says whose place this node's cluster has taken: nodes of those are told so when they are refused.
    pub fn set_succeeded(&self, clusters: Vec<ClusterId>) {
        *self.inner.shared.succeeded.write().unwrap_or_else(PoisonError::into_inner) = clusters;
    }

    /// Keeps links with these nodes and no others. Links with those that stay as they were are left alone; of this node
    /// itself only the address is kept. One that cannot be dialled, as its address is not on this machine and there is no TLS, is
    /// none of the others' concern: its own links fail.
    pub fn set_peers(&self, wanted: impl IntoIterator<Item = PeerAddress>) {
        let shared = &self.inner.shared;
        let mut wanted: BTreeMap<NodeId, PeerAddress> = wanted.into_iter().map(|peer| (peer.node, peer)).collect();
        let own = wanted.remove(&shared.config.identity.node).map(|own| own.address);
        *lock(&shared.own_address) = own;
        lock(&shared.newest).retain(|node, _| wanted.contains_key(node));
        let mut links = lock(&shared.links);
        let mut peers = shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        let leaves =
            |node: &NodeId, peer: &mut Arc<Peer>| wanted.get(node).is_none_or(|wanted| *wanted != peer.address());
        let gone: Vec<Arc<Peer>> = peers.extract_if(.., leaves).map(|(_, peer)| peer).collect();
        for peer in &gone {
            links.remove(&peer.node).into_iter().flatten().for_each(|task| task.abort());
        }
        wanted.retain(|node, _| !peers.contains_key(node));
        for (node, PeerAddress { name, address, .. }) in wanted {
            let peer = Arc::new(Peer::new(node, name, address, shared));
            let keep = |class| self.inner.runtime.spawn(link::keep(Arc::clone(shared), Arc::clone(&peer), class));
            links.insert(node, Class::ALL.map(keep).into());
            peers.insert(node, peer);
        }
        // The sink hears of these, and may send.
        drop((links, peers));
        gone.iter().flat_map(|peer| &peer.inboxes).for_each(|inbox| inbox.close());
    }

    /// Where this node is found by what [`Transport::set_peers`] was told last, if that named it.
    pub fn own_address(&self) -> Option<String> {
        lock(&self.inner.shared.own_address).clone()
    }

    /// How the links with each peer are.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let peers = self.inner.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().map(|peer| peer.status()).collect()
    }

    /// What was counted so far.
    pub fn stats(&self) -> &Arc<TransportStats> {
        &self.inner.shared.stats
    }

    /// Asks an address (`host:port`) who it is. The channel gets the answer, or closes if the transport stops.
    ///
    /// [`PeerHello::node`] is our own if we asked ourselves.
    pub fn who(&self, address: String) -> Receiver<Result<PeerHello, LinkError>> {
        self.call(move |shared| async move {
            let mut call = Call::dial(&shared, Target::Address(address)).await?;
            let answer = call.client.who(shared.hello()).await?.into_inner();
            call.verify(&shared, Some(answer))
        })
    }

    /// Asks a node something. The channel gets who answered, and the answer, or closes if the transport stops.
    pub fn ask(
        &self,
        target: Target,
        question: Question,
        body: Bytes,
    ) -> Receiver<Result<(PeerHello, Bytes), LinkError>> {
        self.call(move |shared| async move {
            let mut call = Call::dial(&shared, target).await?;
            let request = wire::Question { hello: Some(shared.hello()), body };
            let answer = match question {
                Question::Promise => call.client.promise(request).await,
                Question::Form => call.client.form(request).await,
                Question::Join => call.client.join(request).await,
                Question::Remove => call.client.remove(request).await,
                Question::Administer => call.client.administer(request).await,
                Question::Status => call.client.status(request).await,
            }?;
            let answer = answer.into_inner();
            Ok((call.verify(&shared, answer.hello)?, answer.body))
        })
    }

    /// Fetches a checkpoint of a group from a peer.
    pub fn fetch_snapshot(&self, peer: NodeId, group: GroupId, checkpoint: u64) -> Snapshot {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let shared = Arc::clone(&self.inner.shared);
        self.inner.runtime.spawn(async move {
            let end = fetch(&shared, peer, group, checkpoint, &sender).await.map(|()| None);
            // Whoever no longer wants it dropped the receiver.
            let _ = sender.send(end).await;
        });
        Snapshot { chunks, ended: false }
    }

    /// Begins a conversation with whoever is at an address, in which it hands out what it keeps; `first` is the first order.
    pub fn talk(&self, address: String, first: Bytes) -> Talk {
        let (orders, ordered) = mpsc::unbounded_channel();
        let (sender, answers) = mpsc::channel(CHUNKS_AHEAD);
        let shared = Arc::clone(&self.inner.shared);
        self.inner.runtime.spawn(async move {
            let end = converse(&shared, address, first, ordered, &sender).await.map(|()| None);
            // Whoever no longer listens dropped the receiver.
            let _ = sender.send(end).await;
        });
        Talk { orders, answers }
    }

    /// Reads the certificates again, for connections from here on. On error they stay as they were.
    pub fn reload_certificates(&self) -> Result<(), TlsError> {
        self.inner.shared.tls.as_ref().ok_or(TlsError::Plain)?.reload()
    }

    /// Takes no more messages, sends those that wait, and ends all links, within this time. Returns when the thread has
    /// ended; after that no event comes.
    pub fn stop(&self, within: Duration) {
        let Some(Running { stop, thread }) = lock(&self.inner.running).take() else {
            return;
        };
        // The thread ends only on this.
        let _ = stop.send(within);
        if thread.join().is_err() {
            tracing::error!("the thread that speaks with peers panicked");
        }
    }

    fn call<T, F>(&self, call: impl FnOnce(Arc<Shared>) -> F) -> Receiver<Result<T, LinkError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, LinkError>> + Send + 'static,
    {
        let (answer, answered) = bounded(1);
        let limit = self.inner.shared.config.connect_timeout + self.inner.shared.config.request_timeout;
        let call = call(Arc::clone(&self.inner.shared));
        self.inner.runtime.spawn(async move {
            let outcome = timeout(limit, call).await.unwrap_or(Err(LinkError::Timeout("the answer")));
            // Whoever no longer wants it dropped the receiver.
            let _ = answer.send(outcome);
        });
        answered
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without a stop: the thread ends when this sender is dropped. It is not waited for, since it may be the one that
        // drops us.
        *lock(&self.running) = None;
    }
}

/// A connection for one question, which are too rare to keep one.
struct Call {
    client: PeerClient<Channel>,
    connection: Connection,
    expected: Option<Arc<Peer>>,
}

impl Call {
    async fn dial(shared: &Shared, target: Target) -> Result<Self, LinkError> {
        let (expected, address) = match target {
            Target::Address(address) => (None, address),
            Target::Peer(node) => {
                let peer = shared.peer(node).ok_or(Refusal::UnknownPeer { node })?;
                let address = peer.place(0).to_string();
                (Some(peer), address)
            }
        };
        let connection = dial(&address, shared.tls.as_ref(), shared.config.timing()).await?;
        let client = PeerClient::with_origin(connection.channel.clone(), Channel::origin())
            .max_decoding_message_size(shared.config.frame_bytes_max);
        Ok(Self { client, connection, expected })
    }

    fn verify(&self, shared: &Shared, hello: Option<wire::Hello>) -> Result<PeerHello, LinkError> {
        let hello = PeerHello::verify(hello, self.connection.certificate.as_ref())?;
        if let Some(expected) = &self.expected {
            shared.verify_cluster(&hello)?;
            hello.verify_node(expected.node, &expected.name)?;
        }
        Ok(hello)
    }
}

/// Fetches chunks until their end. The first carries nothing but who sends them.
async fn fetch(
    shared: &Shared,
    peer: NodeId,
    group: GroupId,
    checkpoint: u64,
    sender: &mpsc::Sender<Result<Option<Bytes>, LinkError>>,
) -> Result<(), LinkError> {
    let mut call = Call::dial(shared, Target::Peer(peer)).await?;
    let request = wire::SnapshotRequest { hello: Some(shared.hello()), group: group.0.into(), checkpoint };
    let mut chunks = call.client.fetch_snapshot(request).await?.into_inner();
    let first = chunks.message().await?;
    call.verify(shared, first.and_then(|chunk| chunk.hello))?;
    while let Some(chunk) = chunks.message().await? {
        if sender.send(Ok(Some(chunk.data))).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Takes orders and hands over answers until the other side ends.
async fn converse(
    shared: &Shared,
    address: String,
    first: Bytes,
    mut ordered: mpsc::UnboundedReceiver<Bytes>,
    sender: &mpsc::Sender<Result<Option<Bytes>, LinkError>>,
) -> Result<(), LinkError> {
    let mut call = Call::dial(shared, Target::Address(address)).await?;
    let first = wire::Question { hello: Some(shared.hello()), body: first };
    let rest = stream::poll_fn(move |context| ordered.poll_recv(context));
    let rest = rest.map(|body| wire::Question { hello: None, body });
    let mut answers = call.client.backup(stream::once(async { first }).chain(rest)).await?.into_inner();
    let mut next = answers.message().await?;
    call.verify(shared, next.as_mut().and_then(|first| first.hello.take()))?;
    while let Some(answer) = next {
        if sender.send(Ok(Some(answer.body))).await.is_err() {
            break;
        }
        next = answers.message().await?;
    }
    Ok(())
}

fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The transport's thread: serves until told to stop, then drains.
async fn run(listener: TcpListener, service: PeerService, stopped: oneshot::Receiver<Duration>) {
    let shared = Arc::clone(&service.shared);
    let accepting = tokio::spawn(accept(listener, service));
    let doorbell = Arc::clone(&shared.doorbell);
    tokio::spawn(poll_fn(move |context| doorbell.poll_answer(context)));
    // A transport that was dropped drains nothing.
    let within = stopped.await.unwrap_or_default();
    accepting.abort();
    drain(&shared, Instant::now() + within).await;
}

/// Sends what waits. Peers go on sending to us meanwhile; their links end with the runtime.
async fn drain(shared: &Shared, deadline: Instant) {
    let peers: Vec<Arc<Peer>> = shared.peers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
    let mut links = std::mem::take(&mut *lock(&shared.links));
    peers.iter().flat_map(|peer| &peer.outboxes).for_each(|outbox| outbox.finish());
    for peer in &peers {
        let tasks = links.remove(&peer.node).into_iter().flatten();
        for (task, outbox) in tasks.zip(&peer.outboxes) {
            // One that is not up has nothing to send.
            if !outbox.is_up() || timeout_at(deadline, task).await.is_err() {
                tracing::debug!(peer = %peer.node, "a link ends with the transport");
            }
        }
    }
    // The links that peers dialled: each hears of it as of any other end.
    peers.iter().flat_map(|peer| &peer.inboxes).for_each(|inbox| inbox.close());
}

async fn accept(listener: TcpListener, service: PeerService) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("cannot listen for peers: {error}"),
    };
    let mut connections = Accepted::default();
    let mut is_failing = false;
    loop {
        let (socket, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Once, until it succeeds: it may fail for as long as there are no descriptors.
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!("cannot accept a peer: {error}");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        is_failing = false;
        let config = &service.shared.config;
        if !connections.make_room(config.connections_max, config.strangers_max, &service.shared.stats) {
            continue;
        }
        let proven = Proven::default();
        let serving = tokio::spawn(serve(socket, from, service.clone(), proven.clone()));
        connections.add(serving.abort_handle(), proven);
    }
}

async fn serve(socket: TcpStream, from: SocketAddr, mut service: PeerService, proven: Proven) {
    let shared = Arc::clone(&service.shared);
    if shared.tls.is_none() && !is_within_machine(from) {
        count(&shared.stats.refused_connections);
        let why = "a peer on another machine was refused: without TLS all must be on this one";
        return shared.lines.warn(from, why);
    }
    count(&shared.stats.accepted);
    // Without it only small messages are late.
    let _ = socket.set_nodelay(true);
    let timing = shared.config.timing();
    let ended = match &shared.tls {
        None => {
            proven.set();
            connection::serve(socket, server(service), timing).await
        }
        Some(tls) => match timeout(shared.config.connect_timeout, tls.accept(socket)).await {
            Ok(Ok((stream, certificate))) => {
                proven.set();
                service.certificate = Some(Arc::new(certificate));
                connection::serve(stream, server(service), timing).await
            }
            failed => {
                count(&shared.stats.failed_handshakes);
                let why = failed.map_or("it took too long".to_owned(), |failed| {
                    failed.err().map_or_else(String::new, |error| error.to_string())
                });
                return shared.lines.warn(from, &format!("the TLS handshake with a peer failed: {why}"));
            }
        },
    };
    if let Err(error) = ended {
        count(&shared.stats.broken_connections);
        tracing::debug!(%from, "a connection from a peer broke: {error}");
    }
}

fn server(service: PeerService) -> PeerServer<PeerService> {
    let frame_bytes_max = service.shared.config.frame_bytes_max;
    PeerServer::new(service).max_decoding_message_size(frame_bytes_max)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
