//! The peers as this node knows them, and the links with each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use kentongan_proto::peer::{Batch, wire};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::copies::{Began, Newest};
use super::credit::Budget;
use super::doorbell::Doorbell;
use super::event::{Class, Direction, Event, Incoming, LinkEpoch, Sink};
use super::identity::{ClusterId, LocalIdentity, NodeId, PeerHello};
use super::outbox::Outbox;
use super::refusal::Refusal;
use super::stats::{TransportStats, add, count};
use super::strangers::Lines;
use super::tls::Tls;
use super::{PeerAddress, PeerStatus, TransportConfig};

/// What every part of the transport knows.
pub(super) struct Shared {
    pub config: TransportConfig,
    pub identity: RwLock<LocalIdentity>,
    /// What the cluster uses; 0 before this node knows.
    pub feature_level: AtomicU32,
    /// Nodes that were members once.
    pub removed: RwLock<BTreeSet<NodeId>>,
    pub tls: Option<Tls>,
    pub sink: Arc<dyn Sink>,
    pub stats: Arc<TransportStats>,
    /// About strangers.
    pub lines: Lines,
    /// About those that speak as peers, and are refused.
    pub refusals: Lines,
    pub doorbell: Arc<Doorbell>,
    pub peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    /// Clusters whose place ours has taken.
    pub succeeded: RwLock<Vec<ClusterId>>,
    /// The newest process of each peer that was heard of.
    pub newest: Mutex<BTreeMap<NodeId, Newest>>,
    /// Random for each start of the process.
    pub nonce: u64,
    /// Where this node is found by whoever set the peers.
    pub own_address: Mutex<Option<String>>,
    /// The tasks that keep the outgoing links up, one a class.
    pub links: Mutex<BTreeMap<NodeId, Vec<JoinHandle<()>>>>,
    links_begun: AtomicU32,
}

impl Shared {
    pub(super) fn new(config: TransportConfig, tls: Option<Tls>, sink: Arc<dyn Sink>) -> Self {
        Self {
            identity: RwLock::new(config.identity.clone()),
            feature_level: AtomicU32::new(0),
            removed: RwLock::default(),
            tls,
            sink,
            stats: Arc::default(),
            lines: Lines::new(),
            refusals: Lines::new(),
            doorbell: Arc::default(),
            peers: RwLock::default(),
            succeeded: RwLock::default(),
            links: Mutex::default(),
            newest: Mutex::default(),
            nonce: rand::random(),
            own_address: Mutex::default(),
            links_begun: AtomicU32::new(0),
            config,
        }
    }

    pub(super) fn identity(&self) -> LocalIdentity {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a peer is of our cluster; and if not, whether it should know better.
    pub(super) fn verify_cluster(&self, peer: &PeerHello) -> Result<(), Refusal> {
        let ours = self.identity().cluster;
        let succeeded = self.succeeded.read().unwrap_or_else(PoisonError::into_inner);
        match peer.cluster.filter(|theirs| succeeded.contains(theirs)) {
            Some(theirs) => Err(Refusal::Succeeded { theirs, ours }),
            None => peer.verify_cluster(ours),
        }
    }

    pub(super) fn hello(&self) -> wire::Hello {
        let (address, start) = (self.config.advertise.clone(), self.config.start);
        wire::Hello { address, start, ..self.identity().hello(self.nonce) }
    }

    /// Takes note of where whoever says this is, if it is one of our peers.
    pub(super) fn note_address(&self, hello: &PeerHello) {
        let peer = self.peer(hello.node).filter(|peer| hello.verify_node(peer.node, &peer.name).is_ok());
        if let Some(peer) = peer
            && self.verify_cluster(hello).is_ok()
            && self.verify_process(hello).is_ok()
        {
            peer.says_it_is_at(&hello.address);
        }
    }

    /// Whether this node is to speak with anybody.
    pub(super) fn has_peers(&self) -> bool {
        !self.peers.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether the program of a node knows what the cluster uses, as far as this node knows that.
    pub(super) fn verify_level(&self, peer: &PeerHello) -> Result<(), Refusal> {
        match self.feature_level.load(Ordering::Relaxed) {
            0 => Ok(()),
            used => Ok(peer.feature_levels.check(used)?),
        }
    }

    /// Whether a peer, which is one of ours, has the newest data directory of its node, as far as this node has heard.
    pub(super) fn verify_process(&self, peer: &PeerHello) -> Result<(), Refusal> {
        if peer.start == 0 {
            return Ok(());
        }
        let (node, began) = (peer.node, Began { start: peer.start, nonce: peer.nonce });
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let lives = |process| self.peer(node).is_some_and(|peer| peer.inboxes.iter().any(|inbox| inbox.is_of(process)));
        let known = newest.entry(node).or_insert_with(|| Newest::of(began));
        match known.take(began, lives, Instant::now(), self.config.rival_patience()) {
            Ok(()) => Ok(()),
            Err(Some(how)) => Err(Refusal::Copied { node, how }),
            Err(None) => Err(Refusal::NotGone { node }),
        }
    }

    pub(super) fn was_removed(&self, node: NodeId) -> bool {
        self.removed.read().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    pub(super) fn next_epoch(&self) -> LinkEpoch {
        let number = self.links_begun.fetch_add(1, Ordering::Relaxed) + 1;
        LinkEpoch(self.nonce >> 32 << 32 | u64::from(number))
    }

    pub(super) fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }
}

/// Where a peer says that it is, if that is not where it is by what the peers were set with: it was started with another address,
/// which those who set the peers learn once it has registered, and it must be reached before it can.
#[derive(Default)]
struct Moved {
    to: Option<String>,
    /// The last link to it came up there.
    is_there: bool,
}

/// At which of its two addresses a peer is dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub address: String,
    /// It is where the peer says that it is, and nobody else.
    pub is_own_word: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.address)
    }
}

/// A peer and the links with it.
pub(super) struct Peer {
    pub node: NodeId,
    pub name: String,
    pub address: String,
    moved: Mutex<Moved>,
    /// Tells those who wait to dial it that it says that it is elsewhere.
    pub has_moved: Notify,
    /// The link for control broke, or nothing came over it: nor will it over the others.
    pub fell_silent: Notify,
    pub outboxes: [Arc<Outbox>; Class::COUNT],
    pub inboxes: [Arc<Inbox>; Class::COUNT],
    /// Why there is no link to it, as last seen.
    pub last_error: Mutex<Option<String>>,
}

impl Peer {
    pub(super) fn new(node: NodeId, name: String, address: String, shared: &Shared) -> Self {
        let config = &shared.config;
        let outbox = |class| {
            let bytes_max = match class {
                Class::Control => config.control_queue_bytes_max,
                Class::Append => config.append_queue_bytes_max,
                Class::Forward => config.forward_queue_bytes_max,
            };
            Outbox::new(
                class,
                bytes_max,
                config.frame_bytes_max,
                Arc::clone(&shared.stats),
                Arc::clone(&shared.doorbell),
            )
        };
        Self {
            node,
            name,
            address,
            moved: Mutex::default(),
            has_moved: Notify::new(),
            fell_silent: Notify::new(),
            outboxes: Class::ALL.map(outbox),
            inboxes: Class::ALL.map(|class| Arc::new(Inbox::new(node, class, shared))),
            last_error: Mutex::default(),
        }
    }

    pub(super) fn address(&self) -> PeerAddress {
        PeerAddress { node: self.node, name: self.name.clone(), address: self.address.clone() }
    }

    /// The peer says where it is. One such address is kept, until it says another one, or is known to be there: a peer whose
    /// address changes for those who set the peers is a new [`Peer`].
    pub(super) fn says_it_is_at(&self, address: &str) {
        let to = (!address.is_empty() && address != self.address).then(|| address.to_owned());
        let mut moved = self.moved();
        if moved.to == to {
            return;
        }
        if let Some(to) = &to {
            tracing::info!(
                peer = %self.node, name = self.name, address = self.address, now = to,
                "a node says that it is at another address than it was, and is dialled at both"
            );
        }
        *moved = Moved { to, is_there: false };
        drop(moved);
        self.has_moved.notify_waiters();
    }

    /// Where to dial it after so many dials in a row failed: where it was reached last, and each other time at its other address,
    /// so that its word, if it is wrong or not its own, costs dials and no more.
    pub(super) fn place(&self, failed: u32) -> Place {
        let moved = self.moved();
        match &moved.to {
            Some(to) if moved.is_there == failed.is_multiple_of(2) => Place { address: to.clone(), is_own_word: true },
            _ => Place { address: self.address.clone(), is_own_word: false },
        }
    }

    /// A link to it is up.
    pub(super) fn was_reached_at(&self, place: &Place) {
        let mut moved = self.moved();
        // It may have said another one meanwhile.
        moved.is_there = place.is_own_word && moved.to.as_ref() == Some(&place.address);
    }

    fn moved(&self) -> MutexGuard<'_, Moved> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> PeerStatus {
        let up = |is_up: &dyn Fn(usize) -> bool| Class::ALL.into_iter().filter(|class| is_up(class.index())).collect();
        PeerStatus {
            peer: self.address(),
            outgoing: up(&|index| self.outboxes[index].is_up()),
            incoming: up(&|index| self.inboxes[index].is_up()),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Where the messages of one peer and class come in. Has at most one link at a time.
pub(super) struct Inbox {
    peer: NodeId,
    class: Class,
    sink: Arc<dyn Sink>,
    stats: Arc<TransportStats>,
    budget: Arc<Budget>,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// The peer was taken from the set: no link may begin any more.
    closed: bool,
    link: Option<CurrentLink>,
}

struct CurrentLink {
    epoch: LinkEpoch,
    /// Dropped when another link takes this one's place.
    _place: oneshot::Sender<()>,
}

impl Inbox {
    fn new(peer: NodeId, class: Class, shared: &Shared) -> Self {
        Self {
            peer,
            class,
            sink: Arc::clone(&shared.sink),
            stats: Arc::clone(&shared.stats),
            budget: Budget::new(shared.config.receive_bytes_max),
            current: Mutex::default(),
        }
    }

    /// Begins a link in the place of the one before it.
    pub(super) fn accept(self: &Arc<Self>, epoch: LinkEpoch, hello: PeerHello) -> Result<IncomingLink, Refusal> {
        let mut current = self.lock();
        let is_late = current.link.as_ref().is_some_and(|link| epoch == link.epoch || epoch.is_before(link.epoch));
        if current.closed || is_late {
            return Err(Refusal::Superseded);
        }
        self.end(&mut current);
        let (place, superseded) = oneshot::channel();
        current.link = Some(CurrentLink { epoch, _place: place });
        count(&self.stats.class(self.class).links_up);
        self.sink.on_event(Event::LinkUp {
            peer: self.peer,
            class: self.class,
            direction: Direction::Incoming,
            epoch,
            hello,
        });
        Ok(IncomingLink { inbox: Arc::clone(self), epoch, superseded })
    }

    /// Ends the link, for good.
    pub(super) fn close(&self) {
        let mut current = self.lock();
        current.closed = true;
        self.end(&mut current);
    }

    pub(super) fn is_up(&self) -> bool {
        self.lock().link.is_some()
    }

    /// Whether its link, if it is up, is one of this process.
    fn is_of(&self, process: u32) -> bool {
        self.lock().link.as_ref().is_some_and(|link| link.epoch.process() == process)
    }

    fn end(&self, current: &mut Current) {
        if let Some(link) = current.link.take() {
            let (peer, class) = (self.peer, self.class);
            self.sink.on_event(Event::LinkDown { peer, class, direction: Direction::Incoming, epoch: link.epoch });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A link on which messages come in. Dropping it ends it.
pub(super) struct IncomingLink {
    inbox: Arc<Inbox>,
    epoch: LinkEpoch,
    superseded: oneshot::Receiver<()>,
}

impl IncomingLink {
    /// Waits until more may be read. False if another link has taken this one's place.
    pub(super) async fn room(&mut self) -> bool {
        tokio::select! {
            () = self.inbox.budget.room() => true,
            _ = &mut self.superseded => false,
        }
    }

    /// Waits for what another link's beginning, or the end of the peer's membership, does to this one.
    pub(super) async fn superseded(&mut self) {
        // Nothing is ever sent: the sender is dropped.
        let _ = (&mut self.superseded).await;
    }

    /// Hands messages over, unless another link has taken this one's place: after its `LinkUp` nothing older may come.
    pub(super) fn deliver(&self, messages: Batch) -> Result<(), Refusal> {
        let current = self.inbox.lock();
        if current.link.as_ref().is_none_or(|link| link.epoch != self.epoch) {
            return Err(Refusal::Superseded);
        }
        let stats = self.inbox.stats.class(self.inbox.class);
        count(&stats.frames_received);
        add(&stats.messages_received, messages.len());
        add(&stats.bytes_received, messages.packed_bytes());
        let credit = self.inbox.budget.hold(messages.packed_bytes());
        let (from, class, epoch) = (self.inbox.peer, self.inbox.class, self.epoch);
        self.inbox.sink.on_event(Event::Batch(Incoming { from, class, epoch, messages, credit }));
        Ok(())
    }
}

impl Drop for IncomingLink {
    fn drop(&mut self) {
        let mut current = self.inbox.lock();
        if current.link.as_ref().is_some_and(|link| link.epoch == self.epoch) {
            self.inbox.end(&mut current);
        }
    }
}
