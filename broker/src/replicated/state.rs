//! The state machine of one group: `apply(command) → effects`, the same on every replica.
//!
//! Nothing here reads a clock or draws a random number; time comes as ticks. Matching happens here, at apply, against
//! the subscriptions committed before the message. Effects are for the leader; a replica drops them.

mod claim;
mod delivery;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod inspect;
mod lane;
mod left_behind;
mod outbox;
mod paging;
pub mod resync;
mod retained_read;
pub mod shown;
mod subscribing;
mod timing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, QoS, ReasonCode};
use kentongan_proto::topic::ParsedFilter;

use super::bodies::Bodies;
use super::command::{Command, MessageRecord, Owner, PickTargetRecord};
use super::effect::{Delivery, Effect, FilterOutcome, OpenedSession};
use super::retained::{Page, Retained, RetainedLimits};
use super::session::{Entry, PersistentSession, Subscription};
use super::store::{Dirty, EntryRecord};
use crate::later::FIRST_LEVEL;
use crate::message::Message;
use crate::session::outbound::{Backlog, DropPolicy, QueueCaps, Stage};
use crate::subscription::{LocalMatch, LocalSubscriptions, PickStrategy};

pub(super) use left_behind::{LaterClaim, LeftBehind};
use paging::EndedQueues;
pub use paging::LET_GO_MESSAGES_MAX;
pub(crate) use timing::CLOCK_LAG_MS_MAX;

/// Live messages of one session that may wait behind retained ones. With more they go ahead, into its queue, which has bounds of its own:
/// nobody reads for a client that is away, and it may be so for days.
const HELD_MESSAGES_MAX: usize = 10_000;

/// What the timers of one tick may cost: one for each of them, and for each message of a session that ends. Those left over
/// run with the next, so that no entry holds the others up for long: the thread that applies it keeps the lease as well.
const TICK_WORK_MAX: usize = 20_000;

/// Messages of clients that may wait in the outbox to be routed: each is in the memory of all replicas, and the target of one
/// may answer nothing for as long as nodes are away.
const RECEIVED_MAX: usize = 100_000;

/// Their weight.
const RECEIVED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Refused numbers that a lane remembers, for an origin that asks again.
const REFUSED_MAX: usize = 4_096;

/// What the settings say about a group's state. Every node of a cluster has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupConfig {
    /// Messages behind a session's window.
    pub queue_messages_max: usize,
    /// Their weight.
    pub queue_bytes_max: usize,
    /// What gives way.
    pub drop_policy: DropPolicy,
    /// Bounds of the retained messages here.
    pub retained: RetainedLimits,
    /// Age at which a retained message is forgotten; 0 is never.
    pub retained_age_ms_max: u64,
    /// A session gets one copy for each of its subscriptions that match.
    pub one_each: bool,
    /// Which member here of a shared subscription gets a message.
    pub share_strategy: PickStrategy,
    /// Delayed messages that may wait here.
    pub delayed_messages_max: usize,
    /// Their weight; 0 is no bound.
    pub delayed_bytes_max: usize,
}

/// A message that this group still has to route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEntry {
    /// The message.
    pub message: Arc<Message>,
    /// On the group's clock; `None`: now.
    pub due_ms: Option<u64>,
    /// Only to a member of this shared subscription.
    pub share: Option<Arc<str>>,
    /// Who was picked of [`Self::share`].
    pub pick: Option<PickTarget>,
    /// For each shared subscription that its topic matches there is an entry with a pick.
    pub picked: bool,
    /// So it is for those up to this one, in the order of their names, and the rest is still to be said.
    pub picked_up_to: Option<Arc<str>>,
    /// Every lane has answered. It is kept for what becomes of it at the node that was picked.
    pub routed: bool,
    /// How often nodes gave the message back.
    pub given_back: u32,
    /// The node that did so last, and which of its starts: others come first.
    pub passed_over: Option<(u64, u64)>,
    /// The PUBREC that waits until it is routed.
    pub awaited_by: Option<HeldPubRec>,
    /// A client sent it just so: nothing that it sends by another way may overtake it (P5).
    pub received: bool,
    /// A will, of a session that belonged to this identity: whether it may be published is to be asked when it is routed.
    pub will_of: Option<Arc<str>>,
    /// The rules that came with the login of that session allowed it.
    pub is_granted: bool,
}

impl OutboxEntry {
    fn new(message: Arc<Message>, due_ms: Option<u64>, share: Option<Arc<str>>) -> Self {
        Self {
            message,
            due_ms,
            share,
            pick: None,
            picked: false,
            picked_up_to: None,
            routed: false,
            given_back: 0,
            passed_over: None,
            awaited_by: None,
            received: false,
            will_of: None,
            is_granted: false,
        }
    }

    /// Whether it is still to be decided who gets it of shared subscriptions.
    fn awaits_pick(&self) -> bool {
        self.due_ms.is_none() && self.pick.is_none() && !self.picked
    }

    /// Whether it is decided who gets it of a shared subscription.
    #[must_use]
    pub fn is_picked_of(&self, share: &str) -> bool {
        self.picked || self.picked_up_to.as_deref().is_some_and(|up_to| share <= up_to)
    }

    /// The node whose member is to settle it. Nobody settles QoS 0.
    fn settled_at(&self) -> Option<(u64, u64)> {
        match self.pick {
            Some(PickTarget::Node { node, incarnation }) if is_wanted(self.message.qos) => Some((node, incarnation)),
            _ => None,
        }
    }
}

/// Who was picked for a message of a shared subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickTarget {
    /// A group, for one of its sessions.
    Group(u16),
    /// One start of a node, for a connection there.
    Node {
        /// The node; 0 where there is only one.
        node: u64,
        /// Which of its starts.
        incarnation: u64,
    },
}

impl PickTarget {
    /// As it stands in a command and in the store.
    #[must_use]
    pub fn record(self) -> PickTargetRecord {
        match self {
            Self::Group(group) => PickTargetRecord { group: Some(u32::from(group)), ..PickTargetRecord::default() },
            Self::Node { node, incarnation } => PickTargetRecord { group: None, node, incarnation },
        }
    }

    /// `None`: there can be no such group.
    #[must_use]
    pub fn from_record(record: PickTargetRecord) -> Option<Self> {
        match record.group {
            Some(group) => u16::try_from(group).ok().map(Self::Group),
            None => Some(Self::Node { node: record.node, incarnation: record.incarnation }),
        }
    }
}

/// A PUBREC that waits until the message is retained (P6): the number of the session, and the Packet Identifier.
pub type HeldPubRec = (u64, PacketId);

/// The members here of a shared subscription; those granted QoS 0 are not among them, they are served directly.
#[derive(Debug, Default)]
struct Share {
    /// Client Identifier → whether it is connected.
    members: BTreeMap<Arc<str>, bool>,
    online: u32,
}

impl Share {
    fn set(&mut self, member: &Arc<str>, online: bool) {
        let before = self.members.insert(Arc::clone(member), online).unwrap_or(false);
        self.online = self.online + u32::from(online) - u32::from(before);
    }

    fn remove(&mut self, member: &str) {
        let before = self.members.remove(member).unwrap_or(false);
        self.online -= u32::from(before);
    }

    /// How many may get a message: those that are connected, or all if none is.
    fn eligible(&self) -> usize {
        if self.online > 0 { self.online as usize } else { self.members.len() }
    }

    fn is_eligible(&self, member: &str) -> bool {
        self.members.get(member).is_some_and(|online| *online || self.online == 0)
    }

    /// Those that may get a message, from the one after `last` on.
    fn turns<'a>(&'a self, last: Option<&'a Arc<str>>) -> impl Iterator<Item = &'a Arc<str>> {
        let after = last.map_or(Bound::Unbounded, |last| Bound::Excluded(&**last));
        let until = last.map_or(Bound::Excluded(""), |last| Bound::Included(&**last));
        let after = self.members.range::<str, _>((after, Bound::Unbounded));
        let turns = after.chain(self.members.range::<str, _>((Bound::Unbounded, until)));
        turns.filter(|(_, online)| **online || self.online == 0).map(|(member, _)| member)
    }
}

/// How far a lane got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LaneState {
    pub incarnation: u64,
    /// The last number applied.
    pub last: u64,
    /// Those of them that were refused and may be asked for again.
    pub refused: VecDeque<(u64, ReasonCode)>,
}

/// What happens when its time has come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    SessionExpiry(Arc<str>),
    Will(Arc<str>),
    Outbox(u64),
    Retained(Arc<str>),
    LaterClaim(Arc<str>),
}

/// The state of one group.
#[derive(Debug)]
pub struct GroupState {
    pub(super) config: GroupConfig,
    /// What was committed of it; 0: nothing yet.
    pub(super) level: u32,
    pub(super) clock_ms: u64,
    pub(super) wall_ms: u64,
    pub(super) last_epoch: u64,
    pub(super) last_number: u64,
    pub(super) last_body: u64,
    pub(super) last_position: u64,
    pub(super) last_read: u64,
    /// Node → its first incarnation that is not fenced. Outlives its lanes.
    pub(super) fenced_below: BTreeMap<u64, u64>,
    /// (Node, lane).
    pub(super) lanes: BTreeMap<(u64, u64), LaneState>,
    pub(super) sessions: HashMap<Arc<str>, PersistentSession>,
    pub(super) names: HashMap<u64, Arc<str>>,
    pub(super) bodies: Bodies,
    pub(super) ended: EndedQueues,
    pub(super) retained: Retained,
    pub(super) outbox: BTreeMap<u64, OutboxEntry>,
    pub(super) dirty: Dirty,
    pub(super) retained_dues: HashMap<Arc<str>, u64>,
    /// Shared subscription → the member that had the last turn.
    pub(super) turns: HashMap<Arc<str>, Arc<str>>,
    matcher: LocalSubscriptions,
    shares: HashMap<Arc<str>, Share>,
    timers: BTreeSet<(u64, Timer)>,
    /// (Node, incarnation) → the sessions that it owns, or will own once another has let go.
    owned: BTreeMap<(u64, u64), BTreeSet<Arc<str>>>,
    /// Client Identifier → the dead incarnation that had it, and who gets it next.
    pub(super) left_behind: BTreeMap<Arc<str>, LeftBehind>,
    /// (Node, incarnation) → the Client Identifiers that it left behind.
    left_by: BTreeMap<(u64, u64), BTreeSet<Arc<str>>>,
    /// (Node, incarnation) → the positions of what members there are to settle.
    picked_at: BTreeMap<(u64, u64), BTreeSet<u64>>,
    /// The body of the message that the present command delivers.
    body: Option<(Arc<Message>, u64)>,
    delayed: usize,
    /// Their weight.
    delayed_bytes: usize,
    /// Those that entries of the outbox are awaited by.
    held_pubrecs: BTreeSet<HeldPubRec>,
    /// Client Identifier → the entries of the outbox that it sent, and must not overtake.
    unrouted: HashMap<Arc<str>, usize>,
    /// How many these are of all clients, and their weight.
    received: usize,
    received_bytes: usize,
    /// Sessions that outlive their connections.
    persistent: usize,
    /// Of all sessions.
    backlog: Backlog,
    subscriptions: usize,
    /// Those of them that are shared.
    subscriptions_shared: usize,
    matches: Vec<LocalMatch>,
    /// Sessions of which more should be in memory soon.
    running_out: BTreeSet<u64>,
    /// Sessions out of whose queues something was taken since the last checkpoint, behind the first: the store still has it.
    pub(super) fresh_gaps: BTreeSet<u64>,
    /// Shared subscriptions whose members' load the present command changed, where that decides who is picked.
    loads_changed: BTreeSet<Arc<str>>,
}

/// The terms of one delivery.
struct Terms {
    qos: QoS,
    retain: bool,
    identifiers: Vec<u32>,
    share: Option<Arc<str>>,
}

impl GroupState {
    /// Without sessions or retained messages.
    #[must_use]
    pub fn new(config: GroupConfig) -> Self {
        Self {
            config,
            level: 0,
            clock_ms: 0,
            wall_ms: 0,
            last_epoch: 0,
            last_number: 0,
            last_body: 0,
            last_position: 0,
            last_read: 0,
            fenced_below: BTreeMap::new(),
            lanes: BTreeMap::new(),
            sessions: HashMap::new(),
            names: HashMap::new(),
            bodies: Bodies::default(),
            ended: EndedQueues::default(),
            running_out: BTreeSet::new(),
            fresh_gaps: BTreeSet::new(),
            retained: Retained::new(config.retained),
            outbox: BTreeMap::new(),
            dirty: Dirty::default(),
            retained_dues: HashMap::new(),
            turns: HashMap::new(),
            matcher: LocalSubscriptions::new(),
            shares: HashMap::new(),
            timers: BTreeSet::new(),
            owned: BTreeMap::new(),
            left_behind: BTreeMap::new(),
            left_by: BTreeMap::new(),
            picked_at: BTreeMap::new(),
            body: None,
            delayed: 0,
            delayed_bytes: 0,
            held_pubrecs: BTreeSet::new(),
            unrouted: HashMap::new(),
            received: 0,
            received_bytes: 0,
            persistent: 0,
            backlog: Backlog::default(),
            subscriptions: 0,
            subscriptions_shared: 0,
            matches: Vec::new(),
            loads_changed: BTreeSet::new(),
        }
    }

    /// Applies one committed command.
    pub fn apply(&mut self, command: Command, effects: &mut Vec<Effect>) {
        self.dirty.touch();
        match command {
            Command::Connect(connect) => self.connect(connect, effects),
            Command::Disconnect(disconnect) => self.disconnect(&disconnect, effects),
            Command::Subscribe(subscribe) => self.subscribe(subscribe, effects),
            Command::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe, effects),
            Command::Lane(batch) => self.lane(batch, effects),
            Command::Acknowledge(acknowledge) => self.acknowledge(&acknowledge, effects),
            Command::Receive(receive) => self.receive(receive, 0, effects),
            Command::Routed(routed) => self.routed(&routed, effects),
            Command::Picked(picked) => self.picked(picked, effects),
            Command::RetainedPage(page) => self.take_retained(page, 0, effects),
            Command::Tick(tick) => self.tick(tick, effects),
            Command::Fence(fence) => self.fence(fence, effects),
            Command::Released(released) => self.released(&released, effects),
            Command::Level(raised) => self.level = self.level.max(raised.level),
            Command::BeginAnew(anew) => self.begin_anew(anew, effects),
            Command::Lost(lost) => self.lost(lost, effects),
        }
        self.body = None;
        for share in std::mem::take(&mut self.loads_changed) {
            effects.extend(self.share_in_flight(share));
        }
    }

    /// When the next timer is due, on the group's clock.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// The feature level whose behaviour it has, by what is applied.
    #[must_use]
    pub fn level(&self) -> u32 {
        self.level.max(FIRST_LEVEL)
    }

    /// The group's clock.
    #[must_use]
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// Retained messages here.
    #[must_use]
    pub fn retained(&self) -> &Retained {
        &self.retained
    }

    /// See [`Retained::page`].
    #[must_use]
    pub fn retained_page(
        &self,
        filter: &str,
        after: Option<&str>,
        messages_max: usize,
        bytes_max: usize,
        scan_max: usize,
    ) -> Page {
        self.retained.page(filter, after, messages_max, bytes_max, scan_max)
    }

    /// Sessions here.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Whether that is the connection of a session.
    #[must_use]
    pub fn is_owned_by(&self, client_id: &str, owner: Owner) -> bool {
        self.sessions.get(client_id).is_some_and(|session| session.owner == Some(owner))
    }

    /// Those of them that outlive their connections.
    #[must_use]
    pub fn persistent_sessions(&self) -> usize {
        self.persistent
    }

    /// What the sessions here want: of each filter how many do, of each shared subscription how many members it has and
    /// how many of them are connected.
    pub fn for_each_interest(&self, mut tell: impl FnMut(&Arc<str>, u32, u32)) {
        let mut plain: HashMap<&Arc<str>, u32> = HashMap::new();
        for session in self.sessions.values() {
            for (filter, subscription) in &session.subscriptions {
                if is_wanted(subscription.options.qos) && !filter.starts_with("$share/") {
                    *plain.entry(filter).or_default() += 1;
                }
            }
        }
        plain.into_iter().for_each(|(filter, sessions)| tell(filter, sessions, 0));
        self.shares.iter().for_each(|(share, of)| tell(share, of.members.len() as u32, of.online));
    }

    /// An entry of the outbox.
    #[must_use]
    pub fn outbox_entry(&self, position: u64) -> Option<&OutboxEntry> {
        self.outbox.get(&position)
    }

    /// The fences that are complete: all sessions of those incarnations are released, and what they had for members of
    /// shared subscriptions is for others.
    pub fn fences_complete(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let is_complete = |&(&node, &below): &(&u64, &u64)| !self.has_of_dead(node, below);
        self.fenced_below.iter().filter(is_complete).map(|(&node, &below)| (node, below))
    }

    /// What is held for the sessions here.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        self.backlog
    }

    /// Subscriptions of the sessions here, and how many of them are shared.
    #[must_use]
    pub fn subscriptions(&self) -> (usize, usize) {
        (self.subscriptions, self.subscriptions_shared)
    }

    /// Messages here that wait for their time.
    #[must_use]
    pub fn delayed(&self) -> usize {
        self.delayed
    }

    /// Their weight.
    #[must_use]
    pub fn delayed_bytes(&self) -> usize {
        self.delayed_bytes
    }

    /// What a new leader must know and carry on with.
    pub fn lead(&self, effects: &mut Vec<Effect>) {
        // Effects come in the same order whatever the keys of the tables are, so that a simulation repeats.
        let mut sessions: Vec<_> = self.sessions.values().collect();
        sessions.sort_unstable_by_key(|session| &session.client_id);
        for session in sessions {
            if !session.transient {
                effects.push(session_effect(session, true));
            }
            for (filter, subscription) in &session.subscriptions {
                if is_wanted(subscription.options.qos) {
                    self.interest(filter, true, effects);
                }
            }
            effects.extend(close_effect(session));
        }
        let is_kept = |client_id: &&Arc<str>| self.sessions.get(*client_id).is_some_and(|own| !own.transient);
        let mut unrouted: Vec<_> = self.unrouted.keys().filter(|client_id| !is_kept(client_id)).collect();
        unrouted.sort_unstable();
        effects.extend(unrouted.into_iter().map(|client_id| unrouted_effect(client_id, true)));
        let mut shares: Vec<_> = self.shares.keys().collect();
        shares.sort_unstable();
        for filter in shares {
            self.share_online(filter, effects);
            if self.config.share_strategy == PickStrategy::LeastInflight {
                effects.extend(self.share_in_flight(Arc::clone(filter)));
            }
        }
        for (&position, entry) in &self.outbox {
            if entry.due_ms.is_none() && !entry.routed {
                effects.push(Effect::Route { position });
            }
        }
    }

    pub(super) fn arm_retained_timer(&mut self, topic: &Arc<str>, due: u64) {
        self.timers.insert((due, Timer::Retained(Arc::clone(topic))));
        self.retained_dues.insert(Arc::clone(topic), due);
    }

    /// Builds what is not stored from what is, after a restart.
    pub(super) fn rebuild(&mut self) {
        let mut names: Vec<_> = self.sessions.keys().cloned().collect();
        names.sort_unstable();
        for client_id in &names {
            let Some(session) = self.sessions.get(client_id) else {
                continue;
            };
            let subscriptions = session.subscriptions.clone();
            self.persistent += usize::from(!session.transient);
            self.backlog += session.outbound.backlog();
            self.subscriptions += subscriptions.len();
            self.subscriptions_shared += subscriptions.keys().filter(|filter| filter.starts_with("$share/")).count();
            let (expires, will) = (session.expires_at_ms, session.will_due_ms);
            self.names.insert(session.number, Arc::clone(client_id));
            for (filter, own) in subscriptions {
                if let Ok(parsed) = ParsedFilter::parse(&filter) {
                    self.enter_subscription(client_id, &filter, &parsed, own);
                }
            }
            self.timers.extend(expires.map(|due| (due, Timer::SessionExpiry(Arc::clone(client_id)))));
            self.timers.extend(will.map(|due| (due, Timer::Will(Arc::clone(client_id)))));
            if let Some(session) = self.sessions.get(client_id) {
                own(&mut self.owned, session.owner, client_id);
                let next = session.waiting.as_ref().and_then(|waiting| waiting.connect.owner);
                own(&mut self.owned, next, client_id);
            }
        }
        for (&position, entry) in &self.outbox {
            self.held_pubrecs.extend(entry.awaited_by);
            if entry.received {
                *self.unrouted.entry(Arc::clone(&entry.message.publisher)).or_default() += 1;
                self.received += 1;
                self.received_bytes += entry.message.weight_bytes();
            }
            if let Some(due) = entry.due_ms {
                self.delayed += 1;
                self.delayed_bytes += entry.message.weight_bytes();
                self.timers.insert((due, Timer::Outbox(position)));
            }
            if let Some(at) = entry.settled_at() {
                self.picked_at.entry(at).or_default().insert(position);
            }
        }
        self.rebuild_left_behind();
        self.loads_changed.clear();
        self.dirty.clear();
    }

    /// Every body is in some queue, and known to be in as many as it is; every queue weighs what it is known to weigh.
    fn assert_bodies(&self) {
        if self.ended_messages() > 0 {
            return; // Theirs are still there.
        }
        let mut references: HashMap<u64, u32> = HashMap::new();
        for session in self.sessions.values() {
            let mut bytes = 0;
            let mut add = |body: u64, weight_bytes: usize| {
                *references.entry(body).or_default() += 1;
                bytes += weight_bytes;
            };
            session.outbound.queued().for_each(|entry| add(entry.body, entry.message.weight_bytes()));
            let mut messages = session.outbound.queued().count();
            if let Some(middle) = session.outbound.middle() {
                let tell = |_, record: EntryRecord| {
                    let in_memory = self.bodies.message(record.body).map(Arc::clone);
                    let message = in_memory.map_or_else(|| self.bodies.read_body(record.body).map(|read| read.0), Ok);
                    add(record.body, message.expect("what is not in memory is stored").weight_bytes());
                    messages += 1;
                };
                let told = self.bodies.for_each_away(session.number, middle, tell);
                told.expect("what is not in memory is stored");
            }
            let in_flight = session.outbound.resend();
            in_flight.into_iter().filter_map(|(.., entry)| entry).for_each(|entry| add(entry.body, 0));
            assert_eq!((messages, bytes), (session.outbound.queue_len(), session.outbound.queue_bytes()));
        }
        for number in self.bodies.numbers() {
            assert!(references.contains_key(&number), "body {number} is in no queue");
        }
        for (number, count) in references {
            let known = self.bodies.references(number);
            let known = known.unwrap_or_else(|| self.bodies.read_body(number).expect("it is stored").1);
            assert_eq!(known, count, "references of body {number}");
        }
    }

    /// Whether [`Self::assert_invariants`], which looks at everything, costs little.
    #[must_use]
    pub fn is_small(&self) -> bool {
        let is_here = |session: &PersistentSession| session.outbound.middle().is_none();
        self.sessions.len() < 16 && self.bodies.len() < 1000 && self.sessions.values().all(is_here)
    }

    /// What holds messages back is known alike to the session and to the table by which they are counted.
    fn assert_holders(&self, session: &PersistentSession) {
        let holding = || session.subscriptions.iter().filter(|(_, own)| own.held).map(|(filter, _)| &**filter);
        let number = session.number;
        assert!(holding().all(|filter| self.matcher.is_holding(number, filter)), "what holds is in the table");
        for topic in session.held.iter().map(|held| &held.message.topic).take(10) {
            let is_held = holding().any(|filter| kentongan_proto::topic::matches(filter, topic));
            assert_eq!(is_held, self.matcher.holds(number, topic), "what is held by a filter, {topic}");
        }
    }

    /// What must hold after every command.
    ///
    /// # Panics
    /// It does not: the node must stop rather than spread that.
    pub fn assert_invariants(&self) {
        self.assert_bodies();
        for session in self.sessions.values() {
            assert_eq!(self.names.get(&session.number), Some(&session.client_id));
            assert!(session.owner.is_some() || session.to_resend.is_empty());
            let is_held_back = self.is_held_back(&session.client_id);
            assert!(session.owner.is_some() || session.waiting.is_none() || is_held_back);
            assert!(!is_held_back || self.unrouted.contains_key(&session.client_id), "what it waits for will come");
            assert!(session.owner.is_none() || session.expires_at_ms.is_none(), "who is connected does not expire");
            assert_eq!(session.held_bytes, session.held.iter().map(|held| held.message.weight_bytes()).sum::<usize>());
            assert!(!session.transient || (session.subscriptions.is_empty() && session.expiry_seconds == 0));
            let known = session.to_resend.iter().all(|&id| session.outbound.in_flight_under(id).is_some());
            assert!(known, "what is to be sent again is in flight");
            let is_publish = |&id| session.outbound.in_flight_under(id).is_some_and(|(_, entry)| entry.is_some());
            assert!(session.sent_before.iter().all(is_publish), "what may have been sent before waits for its answer");
            assert!(session.is_reading() || session.held.is_empty(), "what is held is let go in the end");
            assert!(session.held.is_sorted_by_key(|held| held.sequence));
            let reads = session.subscriptions.values().filter(|own| own.read.is_some()).count();
            assert_eq!(session.reads, reads, "what is counted");
            self.assert_holders(session);
            let next = session.waiting.as_ref().and_then(|waiting| waiting.connect.owner);
            for owner in session.owner.into_iter().chain(next) {
                let sessions = &self.owned[&(owner.node, owner.incarnation)];
                assert!(sessions.contains(&session.client_id), "a fence finds every session of its incarnation");
            }
            for (filter, subscription) in &session.subscriptions {
                if filter.starts_with("$share/") && is_wanted(subscription.options.qos) {
                    let online = self.shares[filter].members[&session.client_id];
                    assert_eq!(online, session.owner.is_some());
                }
            }
        }
        for (filter, share) in &self.shares {
            assert!(!share.members.is_empty(), "{filter} without members");
            assert_eq!(share.members.values().filter(|online| **online).count(), share.online as usize);
        }
        let mut backlog = Backlog::default();
        let mut subscriptions = (0, 0);
        for session in self.sessions.values() {
            backlog += session.outbound.backlog();
            subscriptions.0 += session.subscriptions.len();
            subscriptions.1 += session.subscriptions.keys().filter(|filter| filter.starts_with("$share/")).count();
        }
        assert_eq!((self.backlog, self.subscriptions()), (backlog, subscriptions), "what is counted");
        assert_eq!(self.persistent, self.sessions.values().filter(|session| !session.transient).count());
        let delayed = || self.outbox.values().filter(|entry| entry.due_ms.is_some());
        assert_eq!(self.delayed, delayed().count());
        assert_eq!(self.delayed_bytes, delayed().map(|entry| entry.message.weight_bytes()).sum::<usize>());
        let mut picked_at: BTreeMap<(u64, u64), BTreeSet<u64>> = BTreeMap::new();
        for (&position, entry) in &self.outbox {
            assert!(entry.pick.is_none() || entry.share.is_some(), "who was picked was picked of something");
            let is_in_pieces = entry.picked_up_to.is_some();
            assert!(!is_in_pieces || (entry.awaits_pick() && entry.share.is_none()), "what is said in pieces ends");
            assert!(!entry.routed || entry.settled_at().is_some(), "what is routed and kept is to be settled");
            if let Some(at) = entry.settled_at() {
                picked_at.entry(at).or_default().insert(position);
            }
        }
        assert_eq!(self.picked_at, picked_at, "a fence finds every pick of its incarnation");
        self.assert_left_behind();
        let held_pubrecs = self.outbox.values().filter_map(|entry| entry.awaited_by);
        assert_eq!(self.held_pubrecs, held_pubrecs.collect(), "each is released once its message is routed");
        let mut unrouted: HashMap<Arc<str>, usize> = HashMap::new();
        for entry in self.outbox.values().filter(|entry| entry.received) {
            *unrouted.entry(Arc::clone(&entry.message.publisher)).or_default() += 1;
        }
        assert_eq!(self.unrouted, unrouted, "what a client must not overtake");
        let received = || self.outbox.values().filter(|entry| entry.received);
        let weights = received().map(|entry| entry.message.weight_bytes());
        assert_eq!((self.received, self.received_bytes), (received().count(), weights.sum()), "what is bounded");
    }
}

fn packet_id(number: u32) -> Option<PacketId> {
    PacketId::new(u16::try_from(number).ok()?)
}

fn session_effect(session: &PersistentSession, exists: bool) -> Effect {
    Effect::Session { client_id: Arc::clone(&session.client_id), identity: Arc::clone(&session.identity), exists }
}

fn unrouted_effect(client_id: &Arc<str>, exists: bool) -> Effect {
    Effect::Unrouted { client_id: Arc::clone(client_id), exists }
}

fn transient_opened(owner: Owner, client_id: &Arc<str>, epoch: u64) -> OpenedSession {
    OpenedSession {
        owner,
        client_id: Arc::clone(client_id),
        epoch,
        persistent: false,
        session_present: false,
        subscriptions: Vec::new(),
        received: Vec::new(),
    }
}

/// What the owner of a session is told when its claim is granted. A message whose PUBREC is held is to be sent again, or
/// nobody would ask for the answer.
fn opened(session: &PersistentSession, owner: Owner, held_pubrecs: &BTreeSet<HeldPubRec>) -> OpenedSession {
    if session.transient {
        return transient_opened(owner, &session.client_id, session.epoch);
    }
    let outcome = |(filter, own): (&Arc<str>, &Subscription)| FilterOutcome {
        filter: filter.to_string(),
        reason: ReasonCode::Success,
        options: own.options,
        identifier: own.identifier,
        read: own.read,
    };
    OpenedSession {
        owner,
        client_id: Arc::clone(&session.client_id),
        epoch: session.epoch,
        persistent: true,
        session_present: session.resumed,
        subscriptions: session.subscriptions.iter().map(outcome).collect(),
        received: answered(session, held_pubrecs).collect(),
    }
}

/// QoS 2 identifiers of the client whose PUBREC was sent, or may be.
fn answered<'a>(
    session: &'a PersistentSession,
    held_pubrecs: &'a BTreeSet<HeldPubRec>,
) -> impl Iterator<Item = PacketId> + 'a {
    session.received.iter().copied().filter(|&packet_id| !held_pubrecs.contains(&(session.number, packet_id)))
}

fn close_effect(session: &PersistentSession) -> Option<Effect> {
    let waiting = session.waiting.as_ref()?;
    Some(Effect::Close { owner: session.owner?, client_id: Arc::clone(&session.client_id), epoch: waiting.owner_epoch })
}

fn same_incarnation(one: Owner, other: Owner) -> bool {
    (one.node, one.incarnation) == (other.node, other.incarnation)
}

fn own(owned: &mut BTreeMap<(u64, u64), BTreeSet<Arc<str>>>, owner: Option<Owner>, client_id: &Arc<str>) {
    if let Some(owner) = owner {
        owned.entry((owner.node, owner.incarnation)).or_default().insert(Arc::clone(client_id));
    }
}

fn disown(owned: &mut BTreeMap<(u64, u64), BTreeSet<Arc<str>>>, owner: Option<Owner>, client_id: &Arc<str>) {
    let Some(owner) = owner else {
        return;
    };
    let key = (owner.node, owner.incarnation);
    if let Some(sessions) = owned.get_mut(&key) {
        sessions.remove(client_id);
        if sessions.is_empty() {
            owned.remove(&key);
        }
    }
}

/// The group wants of a filter what has a QoS there; what is delivered at QoS 0 never comes here.
fn is_wanted(qos: QoS) -> bool {
    qos != QoS::AtMostOnce
}

/// Marks the lanes of outboxes, which outlive every incarnation.
pub const OUTBOX_LANE: u64 = 1 << 63;

fn delivery(entry: &Entry, owner: Owner, epoch: u64, packet_id: PacketId, dup: bool, latest_ms: u64) -> Delivery {
    Delivery {
        owner,
        epoch,
        packet_id,
        qos: entry.qos,
        dup,
        retain: entry.retain,
        identifiers: entry.identifiers.clone(),
        message: Arc::clone(&entry.message),
        // What is handed out still lives.
        expiry_left_ms: entry.message.expires_at_ms.map(|at| at.saturating_sub(latest_ms).max(1)),
        shared: entry.share.is_some(),
    }
}

/// What was in flight goes out again in its original order [MQTT-4.4.0-1], no more PUBLISH at once than the connection
/// allows [MQTT-3.3.4-9].
fn resend(session: &mut PersistentSession, owner: Owner, latest_ms: u64, effects: &mut Vec<Effect>) {
    let sent = session.outbound.in_flight().saturating_sub(session.to_resend.len());
    let mut room = usize::from(session.window_max).saturating_sub(sent);
    while let Some(&packet_id) = session.to_resend.front() {
        match session.outbound.in_flight_under(packet_id) {
            Some((Stage::AwaitingPubComp, _)) => effects.push(Effect::Acknowledge {
                owner,
                epoch: session.epoch,
                kind: AckKind::PubRel,
                packet_id,
                reason: ReasonCode::Success,
            }),
            Some((_, Some(entry))) if room > 0 => {
                room -= 1;
                let delivery = delivery(entry, owner, session.epoch, packet_id, true, latest_ms);
                effects.push(Effect::Deliver(Box::new(delivery)));
            }
            _ => break,
        }
        session.to_resend.pop_front();
    }
}

/// A record of a message, its expiry on the group's own clock.
pub(super) fn absolute(message: &Message) -> MessageRecord {
    MessageRecord::from_message(message, 0)
}

/// Caps as they stand in a command and in the store.
pub(super) fn queue_caps(messages_max: Option<u64>, bytes_max: Option<u64>) -> QueueCaps {
    let bound = |bound: u64| usize::try_from(bound).unwrap_or(usize::MAX);
    QueueCaps { messages_max: messages_max.map(bound), bytes_max: bytes_max.map(bound) }
}

#[cfg(test)]
mod checkpoints;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod tests;
