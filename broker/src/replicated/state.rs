//! The state machine of one group: `apply(command) → effects`, the same on every replica.
//!
//! Nothing here reads a clock or draws a random number; time comes as ticks. Matching happens here, at apply, against
//! the subscriptions committed before the message. Effects are for the leader; a replica drops them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::ops::Bound;
use std::sync::Arc;

use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, QoS, ReasonCode, RetainHandling, SubscriptionOptions};
use kentongan_proto::topic::ParsedFilter;

use super::command::{self, Command, MessageRecord, Owner};
use super::effect::{Delivery, Drop, Effect, FilterOutcome, OpenedSession};
use super::retained::{Page, Retained, RetainedLimits};
use super::session::{Entry, HeldBack, PersistentSession, Subscription, Waiting};
use super::store::{Dirty, Key};
use crate::message::Message;
use crate::session::handshake::NEVER_EXPIRES;
use crate::session::outbound::{DropPolicy, Offer, Outbound, OutboundLimits, QueueCaps, Stage};
use crate::subscription::{LocalMatch, LocalSubscription, LocalSubscriptions, topic_hash};

/// Live messages of one session that may wait behind retained ones.
const HELD_MESSAGES_MAX: usize = 10_000;

/// Timers that one tick runs: those left over run with the next, so that no entry holds the others up for long.
const TIMERS_PER_TICK_MAX: usize = 50_000;

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
    /// Delayed messages that may wait here.
    pub delayed_messages_max: usize,
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
}

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

    /// Whose turn it is after `last`: the next one that is connected, else the next one.
    fn pick(&self, last: Option<&Arc<str>>) -> Option<&Arc<str>> {
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let until = last.map_or(Bound::Excluded(""), |last| Bound::Included(&**last));
        let after = self.members.range::<str, _>((after.map(|last| &**last), Bound::Unbounded));
        let mut turns = after.chain(self.members.range::<str, _>((Bound::Unbounded, until)));
        if self.online > 0 { turns.find(|(_, online)| **online) } else { turns.next() }.map(|(member, _)| member)
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

#[derive(Debug)]
pub(super) struct Body {
    pub message: Arc<Message>,
    pub references: u32,
}

/// What happens when its time has come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    SessionExpiry(Arc<str>),
    Will(Arc<str>),
    Outbox(u64),
    Retained(Arc<str>),
}

/// The state of one group.
#[derive(Debug)]
pub struct GroupState {
    pub(super) config: GroupConfig,
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
    pub(super) bodies: HashMap<u64, Body>,
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
    /// The body of the message that the present command delivers.
    body: Option<(Arc<Message>, u64)>,
    delayed: usize,
    matches: Vec<LocalMatch>,
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
            bodies: HashMap::new(),
            retained: Retained::new(config.retained),
            outbox: BTreeMap::new(),
            dirty: Dirty::default(),
            retained_dues: HashMap::new(),
            turns: HashMap::new(),
            matcher: LocalSubscriptions::new(),
            shares: HashMap::new(),
            timers: BTreeSet::new(),
            owned: BTreeMap::new(),
            body: None,
            delayed: 0,
            matches: Vec::new(),
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
            Command::Receive(receive) => self.receive(receive, effects),
            Command::Routed(routed) => self.routed(&routed),
            Command::RetainedPage(page) => self.take_retained(page, effects),
            Command::Tick(tick) => self.tick(tick, effects),
            Command::Fence(fence) => self.fence(fence, effects),
            Command::Released(released) => self.released(&released, effects),
        }
        self.body = None;
    }

    /// When the next timer is due, on the group's clock.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.timers.first().map(|(due, _)| *due)
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
    pub fn retained_page(&self, filter: &str, after: Option<&str>, messages_max: usize, scan_max: usize) -> Page {
        self.retained.page(filter, after, messages_max, scan_max)
    }

    /// Sessions here.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// What a new leader must know and carry on with.
    pub fn lead(&self, effects: &mut Vec<Effect>) {
        for session in self.sessions.values() {
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
        for filter in self.shares.keys() {
            self.share_online(filter, effects);
        }
        for (&position, entry) in &self.outbox {
            if entry.due_ms.is_none() {
                effects.push(route(position, entry));
            }
        }
    }

    /// For a new leader: sends what a living connection should have and, as its owner says, has not. The owner's
    /// acknowledgements must have been applied before. Nothing that it `has` is sent again [MQTT-4.4.0-1].
    pub fn redeliver(&self, client_id: &str, epoch: u64, has: impl Fn(PacketId) -> bool, effects: &mut Vec<Effect>) {
        let session = self.current(client_id, epoch).and_then(|client_id| self.sessions.get(&client_id));
        let Some((session, owner)) = session.and_then(|session| Some((session, session.served()?))) else {
            return;
        };
        for (packet_id, stage, _, entry) in session.outbound.resend() {
            if has(packet_id) || session.to_resend.contains(&packet_id) {
                continue;
            }
            match (stage, entry) {
                (Stage::AwaitingPubComp, _) => effects.push(Effect::Acknowledge {
                    owner,
                    epoch,
                    kind: AckKind::PubRel,
                    packet_id,
                    reason: ReasonCode::Success,
                }),
                (_, Some(entry)) => {
                    // Of a session that was resumed it may be the second time, and a second time must say so.
                    let delivery = delivery(entry, owner, epoch, packet_id, session.resumed, self.clock_ms);
                    effects.push(Effect::Deliver(Box::new(delivery)));
                }
                (_, None) => {}
            }
        }
    }

    // Claims.

    fn connect(&mut self, connect: command::Connect, effects: &mut Vec<Effect>) {
        let Some(owner) = connect.owner else {
            return;
        };
        if self.is_fenced(owner.node, owner.incarnation) {
            // Nobody would ever release it.
            effects.push(Effect::Refused { owner, reason: ReasonCode::ServerUnavailable });
            return;
        }
        let client_id: Arc<str> = Arc::from(connect.client_id.as_str());
        self.end_if_overdue(&client_id, effects);
        if self.sessions.get(&client_id).is_some_and(|session| *session.identity != *connect.identity) {
            effects.push(Effect::Refused { owner, reason: ReasonCode::NotAuthorized });
            return;
        }
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        let present = self.sessions.get(&client_id).and_then(|session| Some((session.owner?, session.resumed)));
        if let Some((present, resumed)) = present
            && present == owner
        {
            // Proposed again because the answer was lost: the same answer, and nothing ends.
            self.attach(&client_id, owner, epoch, resumed, connect, effects);
            return;
        }
        if connect.wait_for_release && present.is_some() {
            self.wait(&client_id, connect, epoch, effects);
            return;
        }
        // Another that waited comes too late: this one is granted.
        self.refuse_waiting(&client_id, effects);
        self.detach(&client_id, true, None, connect.clean_start, effects);
        self.open(&client_id, owner, epoch, connect, effects);
    }

    /// P7: nothing of the new connection before the old one is gone, nothing of the old one from here on.
    fn wait(&mut self, client_id: &Arc<str>, connect: command::Connect, epoch: u64, effects: &mut Vec<Effect>) {
        let waiting = self.sessions.get(client_id).and_then(|session| session.waiting.as_ref());
        if waiting.is_some_and(|waiting| waiting.connect.owner == connect.owner) {
            effects.extend(self.sessions.get(client_id).and_then(close_effect));
            return;
        }
        let owner_epoch = self.refuse_waiting(client_id, effects);
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let owner_epoch = owner_epoch.unwrap_or(session.epoch);
        session.epoch = epoch;
        own(&mut self.owned, connect.owner, client_id);
        session.waiting = Some(Box::new(Waiting { connect, owner_epoch }));
        self.dirty.changed(Key::Session(session.number));
        effects.extend(close_effect(session));
    }

    /// The claim that waits does so no more. Returns the epoch of the owner it waited for.
    fn refuse_waiting(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) -> Option<u64> {
        let session = self.sessions.get_mut(client_id)?;
        let waiting = session.waiting.take()?;
        self.dirty.changed(Key::Session(session.number));
        if let Some(owner) = waiting.connect.owner {
            if session.owner.is_none_or(|present| !same_incarnation(present, owner)) {
                disown(&mut self.owned, Some(owner), client_id);
            }
            effects.push(Effect::Refused { owner, reason: ReasonCode::SessionTakenOver });
        }
        Some(waiting.owner_epoch)
    }

    fn released(&mut self, released: &command::Released, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get(released.client_id.as_str()) else {
            return;
        };
        let owner_epoch = session.waiting.as_ref().map_or(session.epoch, |waiting| waiting.owner_epoch);
        if session.owner.is_none() || owner_epoch != released.epoch {
            return;
        }
        let client_id = Arc::clone(&session.client_id);
        self.let_go(&client_id, released.publish_will, None, effects);
    }

    /// The owner is gone; whoever waited for that is next.
    fn let_go(
        &mut self,
        client_id: &Arc<str>,
        publish_will: bool,
        expiry_seconds: Option<u32>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let epoch = session.epoch;
        let waiting = session.waiting.take();
        let clean_start = waiting.as_ref().is_some_and(|waiting| waiting.connect.clean_start);
        disown(&mut self.owned, waiting.as_ref().and_then(|waiting| waiting.connect.owner), client_id);
        self.detach(client_id, publish_will, expiry_seconds, clean_start, effects);
        if let Some(waiting) = waiting
            && let Some(owner) = waiting.connect.owner
        {
            self.open(client_id, owner, epoch, waiting.connect, effects);
        } else {
            self.hand_on_waiting(client_id, effects);
        }
    }

    /// P11: what waits for a member of a shared subscription that went away goes to those here that are connected. What
    /// is in flight stays: its client may come back with the answer.
    fn hand_on_waiting(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let number = session.number;
        let shares = &self.shares;
        let has_members = |share: &Arc<str>| shares.get(share).is_some_and(|share| share.online > 0);
        for entry in session.outbound.extract_queued(|entry| entry.share.as_ref().is_some_and(has_members)) {
            self.body = None;
            if let Some(share) = &entry.share {
                self.deliver_to_share(&entry.message, share, effects);
            }
            self.settle(number, &entry);
        }
        self.dirty.changed(Key::Session(number));
    }

    /// Nobody owns the session: the claim is granted.
    fn open(
        &mut self,
        client_id: &Arc<str>,
        owner: Owner,
        epoch: u64,
        connect: command::Connect,
        effects: &mut Vec<Effect>,
    ) {
        if connect.clean_start {
            self.end_session(client_id, effects);
        }
        let session_present = self.sessions.contains_key(client_id);
        let transient = !session_present && connect.session_expiry_seconds == 0;
        if transient && !connect.keep_transient {
            effects.push(Effect::Opened(transient_opened(owner, client_id, epoch)));
            return;
        }
        if !session_present {
            self.begin_session(client_id, &connect, transient, effects);
        }
        self.attach(client_id, owner, epoch, session_present, connect, effects);
    }

    fn begin_session(
        &mut self,
        client_id: &Arc<str>,
        connect: &command::Connect,
        transient: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.last_number += 1;
        let session = PersistentSession {
            number: self.last_number,
            client_id: Arc::clone(client_id),
            identity: Arc::from(connect.identity.as_str()),
            epoch: 0,
            owner: None,
            waiting: None,
            transient,
            resumed: false,
            expiry_seconds: 0,
            expires_at_ms: None,
            will: None,
            will_due_ms: None,
            subscriptions: BTreeMap::new(),
            outbound: Outbound::new(self.limits(0, QueueCaps::default())),
            to_resend: VecDeque::new(),
            received: BTreeSet::new(),
            held: Vec::new(),
            held_bytes: 0,
            next_sequence: 0,
            window_max: 0,
            caps: QueueCaps::default(),
        };
        if !transient {
            effects.push(session_effect(&session, true));
        }
        self.names.insert(session.number, Arc::clone(client_id));
        self.dirty.created(Key::Session(session.number));
        self.sessions.insert(Arc::clone(client_id), session);
    }

    fn limits(&self, window_max: u16, caps: QueueCaps) -> OutboundLimits {
        OutboundLimits {
            window_max,
            queue_messages_max: self.config.queue_messages_max,
            queue_bytes_max: self.config.queue_bytes_max,
            drop_policy: self.config.drop_policy,
        }
        .capped(caps)
    }

    /// A connection takes the session up: whatever waited for its absence to end is off.
    fn attach(
        &mut self,
        client_id: &Arc<str>,
        owner: Owner,
        epoch: u64,
        session_present: bool,
        connect: command::Connect,
        effects: &mut Vec<Effect>,
    ) {
        let window_max = u16::try_from(connect.window_max).unwrap_or(u16::MAX).max(1);
        let caps = queue_caps(connect.queue_messages_max, connect.queue_bytes_max);
        let limits = self.limits(window_max, caps);
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        if let Some(due) = session.expires_at_ms.take() {
            self.timers.remove(&(due, Timer::SessionExpiry(Arc::clone(client_id))));
        }
        if let Some(due) = session.will_due_ms.take() {
            // Resumed before the delay ran out: the old will is never sent [MQTT-3.1.3-9].
            self.timers.remove(&(due, Timer::Will(Arc::clone(client_id))));
        }
        session.owner = Some(owner);
        own(&mut self.owned, Some(owner), client_id);
        session.epoch = epoch;
        session.resumed = session_present;
        session.expiry_seconds = connect.session_expiry_seconds;
        session.will = connect.will;
        session.window_max = window_max;
        session.caps = caps;
        session.outbound.set_limits(limits);
        let in_flight = session.outbound.resend();
        session.to_resend = in_flight.iter().map(|(id, ..)| *id).collect();
        self.dirty.changed(Key::Session(session.number));
        if session.transient {
            effects.push(Effect::Opened(transient_opened(owner, client_id, epoch)));
            return;
        }
        let opened = OpenedSession {
            owner,
            client_id: Arc::clone(client_id),
            epoch,
            persistent: true,
            session_present,
            subscriptions: session
                .subscriptions
                .iter()
                .map(|(filter, own)| FilterOutcome {
                    filter: filter.to_string(),
                    reason: ReasonCode::Success,
                    options: own.options,
                    identifier: own.identifier,
                    read: own.read,
                })
                .collect(),
            received: session.received.iter().copied().collect(),
        };
        effects.push(Effect::Opened(opened));
        self.update_shares_online(client_id, effects);
        self.pump(client_id, effects);
    }

    /// The session has no connection any more. `ends` says that it does not outlive this, whatever its expiry.
    fn detach(
        &mut self,
        client_id: &Arc<str>,
        publish_will: bool,
        expiry_seconds: Option<u32>,
        ends: bool,
        effects: &mut Vec<Effect>,
    ) {
        let clock = self.clock_ms;
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(owner) = session.owner.take() else {
            return;
        };
        disown(&mut self.owned, Some(owner), client_id);
        session.to_resend.clear();
        // What was to end with the connection does so, whatever DISCONNECT says.
        if let Some(seconds) = expiry_seconds.filter(|_| session.expiry_seconds != 0) {
            session.expiry_seconds = seconds;
        }
        let expiry = session.expiry_seconds;
        self.dirty.changed(Key::Session(session.number));
        if !publish_will {
            session.will = None;
        }
        let delay_seconds = session.will.as_ref().map(|will| will.delay_seconds);
        if let Some(delay_seconds) = delay_seconds {
            // Whichever comes first, the delay or the end of the session [MQTT-3.1.2-8].
            let due = clock + u64::from(delay_seconds.min(expiry)) * 1000;
            session.will_due_ms = Some(due);
            self.timers.insert((due, Timer::Will(Arc::clone(client_id))));
        }
        if expiry != NEVER_EXPIRES {
            let due = clock + u64::from(expiry) * 1000;
            session.expires_at_ms = Some(due);
            self.timers.insert((due, Timer::SessionExpiry(Arc::clone(client_id))));
        }
        if ends || expiry == 0 {
            self.end_session(client_id, effects);
            return;
        }
        self.update_shares_online(client_id, effects);
        if delay_seconds == Some(0) {
            self.fire_will(client_id, effects);
        }
    }

    /// Timers may lag behind the clock when many are due at once: what is over is over.
    fn end_if_overdue(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let clock = self.clock_ms;
        let Some(session) = self.sessions.get(client_id) else {
            return;
        };
        let (expires, will) = (session.expires_at_ms, session.will_due_ms);
        if expires.is_some_and(|due| due <= clock) {
            effects.push(Effect::SessionExpired);
            self.end_session(client_id, effects);
        } else if will.is_some_and(|due| due <= clock) {
            self.fire_will(client_id, effects);
        }
    }

    fn is_fenced(&self, node: u64, incarnation: u64) -> bool {
        self.fenced_below.get(&node).is_some_and(|&below| incarnation < below)
    }

    fn disconnect(&mut self, disconnect: &command::Disconnect, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.claimed(&disconnect.client_id, disconnect.epoch) else {
            return;
        };
        self.let_go(&client_id, disconnect.publish_will, disconnect.session_expiry_seconds, effects);
    }

    /// The session of that claim; commands of an older epoch change nothing.
    fn claimed(&self, client_id: &str, epoch: u64) -> Option<Arc<str>> {
        let session = self.sessions.get(client_id)?;
        (session.epoch == epoch && session.served().is_some()).then(|| Arc::clone(&session.client_id))
    }

    /// [`Self::claimed`], of a session that is kept here.
    fn current(&self, client_id: &str, epoch: u64) -> Option<Arc<str>> {
        self.claimed(client_id, epoch)
            .filter(|client_id| self.sessions.get(client_id).is_some_and(|own| !own.transient))
    }

    fn end_session(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        self.fire_will(client_id, effects);
        let filters: Vec<_> =
            self.sessions.get(client_id).iter().flat_map(|session| session.subscriptions.keys().cloned()).collect();
        for filter in filters {
            self.remove_subscription(client_id, &filter, effects);
        }
        let Some(mut session) = self.sessions.remove(client_id) else {
            return;
        };
        self.names.remove(&session.number);
        if let Some(due) = session.expires_at_ms {
            self.timers.remove(&(due, Timer::SessionExpiry(Arc::clone(client_id))));
        }
        for (.., entry) in session.outbound.resend() {
            if let Some(entry) = entry {
                self.dirty.deleted(Key::Entry(session.number, entry.sequence));
            }
        }
        for entry in session.outbound.queued() {
            self.dirty.deleted(Key::Entry(session.number, entry.sequence));
        }
        let began: Vec<u64> = session
            .outbound
            .resend()
            .iter()
            .filter(|(_, stage, ..)| *stage == Stage::AwaitingPubRec)
            .filter_map(|(.., entry)| entry.map(|entry| entry.body))
            .collect();
        let mut dropped = 0;
        for entry in session.outbound.drain_undelivered() {
            match &entry.share {
                Some(share) => {
                    self.post(Arc::clone(&entry.message), None, Some(Arc::clone(share)), effects);
                }
                None => dropped += 1,
            }
            self.release_body(entry.body);
        }
        for body in began {
            self.release_body(body);
        }
        if dropped > 0 {
            effects.push(Effect::Dropped { reason: Drop::SessionEnded, count: dropped });
        }
        self.dirty.deleted(Key::Session(session.number));
        if !session.transient {
            effects.push(session_effect(&session, false));
        }
    }

    /// The will of a session goes to the outbox, once.
    fn fire_will(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let clock = self.clock_ms;
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(due) = session.will_due_ms.take() else {
            return;
        };
        self.timers.remove(&(due, Timer::Will(Arc::clone(client_id))));
        self.dirty.changed(Key::Session(session.number));
        if let Some(record) = session.will.take().and_then(|will| will.message) {
            let message = Arc::new(record.into_message(clock));
            effects.push(Effect::WillPublished);
            self.post(message, None, None, effects);
        }
    }

    fn fence(&mut self, fence: command::Fence, effects: &mut Vec<Effect>) {
        let fenced = self.fenced_below.entry(fence.node).or_default();
        *fenced = fence.below.max(*fenced);
        let below = *fenced;
        self.lanes.retain(|&(node, _), lane| node != fence.node || lane.incarnation >= below);
        let dead = self.owned.range((fence.node, 0)..(fence.node, below));
        let sessions_max = fence.sessions_max.max(1) as usize;
        let owned: Vec<_> = dead.flat_map(|(_, sessions)| sessions.iter().cloned()).take(sessions_max).collect();
        for client_id in owned {
            self.release_dead(&client_id, effects);
        }
        let more = self.owned.range((fence.node, 0)..(fence.node, below)).next().is_some();
        effects.push(Effect::Fenced { more });
    }

    /// The node of a session's owner is dead, or that of the claim that waits for it.
    fn release_dead(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get(client_id) else {
            return;
        };
        let next = session.waiting.as_ref().and_then(|waiting| waiting.connect.owner);
        let owner = session.owner;
        let is_dead = |owner: Option<Owner>| owner.is_some_and(|owner| self.is_fenced(owner.node, owner.incarnation));
        let (owner_is_dead, next_is_dead) = (is_dead(owner), is_dead(next));
        if next_is_dead && let Some(owner_epoch) = self.refuse_waiting(client_id, effects) {
            // What the present owner says counts again until it has let go.
            if let Some(session) = self.sessions.get_mut(client_id) {
                session.epoch = owner_epoch;
            }
            self.pump(client_id, effects);
        }
        if owner_is_dead {
            self.let_go(client_id, true, None, effects);
        }
    }

    // Subscriptions.

    fn subscribe(&mut self, subscribe: command::Subscribe, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.current(&subscribe.client_id, subscribe.epoch) else {
            return;
        };
        let Some(packet_id) = packet_id(subscribe.packet_id) else {
            return;
        };
        let outcomes =
            subscribe.filters.into_iter().map(|filter| self.subscribe_one(&client_id, filter, effects)).collect();
        self.finish_reads(&client_id, effects);
        if let Some((owner, epoch)) = self.owner(&client_id) {
            effects.push(Effect::Subscribed { owner, epoch, packet_id, outcomes });
        }
    }

    fn owner(&self, client_id: &str) -> Option<(Owner, u64)> {
        let session = self.sessions.get(client_id)?;
        Some((session.served()?, session.epoch))
    }

    fn subscribe_one(
        &mut self,
        client_id: &Arc<str>,
        asked: command::SubscribeFilter,
        effects: &mut Vec<Effect>,
    ) -> FilterOutcome {
        let options = SubscriptionOptions {
            qos: command::qos(asked.qos),
            no_local: asked.no_local,
            retain_as_published: asked.retain_as_published,
            retain_handling: match asked.retain_handling {
                0 => RetainHandling::Always,
                1 => RetainHandling::IfNew,
                _ => RetainHandling::Never,
            },
        };
        let identifier = asked.subscription_identifier.and_then(NonZeroU32::new);
        let mut outcome = FilterOutcome {
            filter: asked.filter,
            reason: crate::session::subscribing::granted(options.qos),
            options,
            identifier,
            read: None,
        };
        if let Some(refused) = asked.refused {
            outcome.reason = ReasonCode::from_byte(refused as u8).unwrap_or(ReasonCode::UnspecifiedError);
            return outcome;
        }
        let Ok(parsed) = ParsedFilter::parse(&outcome.filter) else {
            outcome.reason = ReasonCode::TopicFilterInvalid;
            return outcome;
        };
        let filter: Arc<str> = Arc::from(outcome.filter.as_str());
        let replaced = self.remove_quietly(client_id, &filter, effects);
        if crate::session::subscribing::wants_retained(&filter, options.retain_handling, replaced.is_none()) {
            self.last_read += 1;
            outcome.read = Some(self.last_read);
        }
        let subscription = Subscription { options, identifier, read: outcome.read, held: outcome.read.is_some() };
        self.enter_subscription(client_id, &filter, &parsed, subscription);
        // Replacing must not lose messages [MQTT-3.8.4-4]: the interest never lapses in between.
        let was_wanted = replaced.is_some_and(|replaced| is_wanted(replaced.options.qos));
        if was_wanted != is_wanted(options.qos) {
            self.interest(&filter, !was_wanted, effects);
        }
        self.share_online(&filter, effects);
        outcome
    }

    /// Makes a subscription stand in the tables that are not stored.
    fn enter_subscription(
        &mut self,
        client_id: &Arc<str>,
        filter: &Arc<str>,
        parsed: &ParsedFilter,
        subscription: Subscription,
    ) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        session.subscriptions.insert(Arc::clone(filter), subscription);
        let online = session.owner.is_some();
        self.dirty.changed(Key::Session(session.number));
        match parsed {
            ParsedFilter::Plain(plain) => {
                let local = LocalSubscription {
                    connection: session.number,
                    qos: subscription.options.qos,
                    no_local: subscription.options.no_local,
                    retain_as_published: subscription.options.retain_as_published,
                    subscription_identifier: subscription.identifier,
                    persistent: true,
                    held: subscription.held,
                };
                self.matcher.insert(plain.as_str(), &local);
            }
            ParsedFilter::Shared(_) => {
                if is_wanted(subscription.options.qos) {
                    self.shares.entry(Arc::clone(filter)).or_default().set(client_id, online);
                }
            }
        }
    }

    fn interest(&self, filter: &Arc<str>, wanted: bool, effects: &mut Vec<Effect>) {
        if filter.starts_with("$share/") {
            effects.push(Effect::ShareInterest { share: Arc::clone(filter), joined: wanted });
        } else {
            effects.push(Effect::Interest { filter: Arc::clone(filter), wanted });
        }
    }

    fn unsubscribe(&mut self, unsubscribe: command::Unsubscribe, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.current(&unsubscribe.client_id, unsubscribe.epoch) else {
            return;
        };
        let Some(packet_id) = packet_id(unsubscribe.packet_id) else {
            return;
        };
        let mut outcomes = Vec::with_capacity(unsubscribe.filters.len());
        for filter in unsubscribe.filters {
            let existed = self.remove_subscription(&client_id, &Arc::from(filter.as_str()), effects);
            let reason = if existed { ReasonCode::Success } else { ReasonCode::NoSubscriptionExisted };
            outcomes.push((filter, reason));
        }
        if let Some((owner, epoch)) = self.owner(&client_id) {
            effects.push(Effect::Unsubscribed { owner, epoch, packet_id, outcomes });
        }
    }

    fn remove_subscription(&mut self, client_id: &Arc<str>, filter: &Arc<str>, effects: &mut Vec<Effect>) -> bool {
        let Some(removed) = self.remove_quietly(client_id, filter, effects) else {
            return false;
        };
        if is_wanted(removed.options.qos) {
            self.interest(filter, false, effects);
        }
        self.share_online(filter, effects);
        self.finish_reads(client_id, effects);
        true
    }

    /// Takes it out of the tables; the interest is the caller's.
    fn remove_quietly(
        &mut self,
        client_id: &Arc<str>,
        filter: &Arc<str>,
        effects: &mut Vec<Effect>,
    ) -> Option<Subscription> {
        let session = self.sessions.get_mut(client_id)?;
        let number = session.number;
        let subscription = session.subscriptions.remove(filter)?;
        self.dirty.changed(Key::Session(number));
        if filter.starts_with("$share/") {
            if let Some(share) = self.shares.get_mut(filter) {
                share.remove(client_id);
                if share.members.is_empty() {
                    self.shares.remove(filter);
                    if self.turns.remove(filter).is_some() {
                        self.dirty.deleted(Key::Turn(Arc::clone(filter)));
                    }
                }
            }
        } else {
            self.matcher.remove(filter, number);
        }
        if subscription.held {
            // What waits because of it must not be overtaken by what another subscription lets through from now on.
            self.enqueue_all_held(client_id, effects);
        }
        Some(subscription)
    }

    /// The session came or went: its shared subscriptions tell how many of their members are connected.
    fn update_shares_online(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get(client_id) else {
            return;
        };
        let online = session.owner.is_some();
        let from: (Bound<&str>, Bound<&str>) = (Bound::Included("$share/"), Bound::Unbounded);
        let shared = session.subscriptions.range::<str, _>(from).map(|(filter, _)| filter);
        for filter in shared.take_while(|filter| filter.starts_with("$share/")) {
            if let Some(share) = self.shares.get_mut(filter).filter(|share| share.members.contains_key(client_id)) {
                share.set(client_id, online);
                effects.push(Effect::ShareOnline { share: Arc::clone(filter), online: share.online });
            }
        }
    }

    /// Also where nobody is left: a group that was said to have members online would be picked.
    fn share_online(&self, filter: &Arc<str>, effects: &mut Vec<Effect>) {
        if filter.starts_with("$share/") {
            let online = self.shares.get(filter).map_or(0, |share| share.online);
            effects.push(Effect::ShareOnline { share: Arc::clone(filter), online });
        }
    }

    // Messages in.

    fn lane(&mut self, batch: command::LaneBatch, effects: &mut Vec<Effect>) {
        if self.is_fenced(batch.node, batch.incarnation) {
            return;
        }
        let key = (batch.node, batch.lane);
        let fresh = LaneState { incarnation: batch.incarnation, last: 0, refused: VecDeque::new() };
        let mut lane = self.lanes.remove(&key).unwrap_or(fresh);
        lane.incarnation = lane.incarnation.max(batch.incarnation);
        while lane.refused.front().is_some_and(|&(number, _)| number <= batch.answered) {
            lane.refused.pop_front();
        }
        let first = batch.messages.first().map_or(u64::MAX, |message| message.number);
        for message in batch.messages {
            if message.number <= lane.last {
                continue;
            }
            lane.last = message.number;
            if let Some(reason) = self.take_message(message, effects) {
                lane.refused.push_back((lane.last, reason));
            }
        }
        // Also those of a batch that comes again: a refusal must not turn into a success by a change of leader.
        let refused = lane.refused.iter().copied().filter(|&(number, _)| number >= first).collect();
        while lane.refused.len() > REFUSED_MAX {
            lane.refused.pop_front();
        }
        effects.push(Effect::LaneAnswered { node: batch.node, lane: batch.lane, number: lane.last, refused });
        self.lanes.insert(key, lane);
    }

    fn take_message(&mut self, lane_message: command::LaneMessage, effects: &mut Vec<Effect>) -> Option<ReasonCode> {
        let message = Arc::new(lane_message.message?.into_message(self.clock_ms));
        if let Some(delay_ms) = lane_message.delay_ms {
            return self.delay(message, delay_ms, effects);
        }
        if lane_message.match_subscriptions {
            self.deliver_to_subscribers(&message, effects);
        }
        for share in &lane_message.shares {
            self.deliver_to_share(&message, &Arc::from(share.as_str()), effects);
        }
        if lane_message.store_retained { self.retain(&message) } else { None }
    }

    fn delay(&mut self, message: Arc<Message>, delay_ms: u64, effects: &mut Vec<Effect>) -> Option<ReasonCode> {
        if self.delayed >= self.config.delayed_messages_max {
            return Some(ReasonCode::QuotaExceeded);
        }
        self.post(message, Some(self.clock_ms.saturating_add(delay_ms)), None, effects);
        None
    }

    /// Stores, replaces or removes the retained message of a topic.
    fn retain(&mut self, message: &Arc<Message>) -> Option<ReasonCode> {
        let topic = &message.topic;
        let key = Key::Retained(Arc::clone(topic));
        if message.payload.is_empty() {
            // Never stored itself [MQTT-3.3.1-7].
            self.forget_retained_timer(topic);
            if self.retained.remove(topic).is_some() {
                self.dirty.deleted(key);
            }
            return None;
        }
        let replaced = self.retained.get(topic).is_some();
        if !self.retained.set(Arc::clone(message)) {
            return Some(ReasonCode::QuotaExceeded);
        }
        if replaced {
            self.dirty.changed(key)
        } else {
            self.dirty.created(key)
        }
        self.forget_retained_timer(topic);
        let age = self.config.retained_age_ms_max;
        let by_age = (age != 0).then(|| self.clock_ms.saturating_add(age));
        if let Some(due) = message.expires_at_ms.into_iter().chain(by_age).min() {
            self.arm_retained_timer(topic, due);
        }
        None
    }

    pub(super) fn arm_retained_timer(&mut self, topic: &Arc<str>, due: u64) {
        self.timers.insert((due, Timer::Retained(Arc::clone(topic))));
        self.retained_dues.insert(Arc::clone(topic), due);
    }

    fn forget_retained_timer(&mut self, topic: &Arc<str>) {
        if let Some(due) = self.retained_dues.remove(topic) {
            self.timers.remove(&(due, Timer::Retained(Arc::clone(topic))));
        }
    }

    fn deliver_to_subscribers(&mut self, message: &Arc<Message>, effects: &mut Vec<Effect>) {
        let mut matches = std::mem::take(&mut self.matches);
        let hash = topic_hash(&message.topic);
        if self.config.one_each {
            self.matcher.matches_each(&message.topic, hash, &mut matches);
        } else {
            self.matcher.matches(&message.topic, hash, &mut matches);
        }
        // The table's order tells of who came and went before a restart; the state must not.
        matches.sort_by_key(|target| target.connection);
        for copies in matches.chunk_by_mut(|one, next| one.connection == next.connection) {
            // A copy that waits is not overtaken by that of another subscription.
            let held = copies.iter().any(|target| target.held);
            copies.iter_mut().for_each(|target| target.held = held);
        }
        for target in &matches {
            let Some(client_id) = self.names.get(&target.connection).cloned() else {
                continue;
            };
            // No Local [MQTT-3.8.3-3].
            let merged = if *client_id == *message.publisher { target.own() } else { Some(target.merged()) };
            let Some(merged) = merged else {
                continue;
            };
            let terms = Terms {
                qos: message.qos.min(merged.qos),
                retain: message.retain && merged.retain_as_published,
                identifiers: merged.subscription_identifiers.to_vec(),
                share: None,
            };
            if terms.qos != QoS::AtMostOnce {
                self.deliver(&client_id, message, terms, target.held, effects);
            }
        }
        self.matches = matches;
    }

    /// One member gets it: the next one that is connected, else the next one.
    fn deliver_to_share(&mut self, message: &Arc<Message>, name: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.shares.get(name).and_then(|share| share.pick(self.turns.get(name))).cloned() else {
            // Everyone left while the message was on its way: another group may have members.
            self.post(Arc::clone(message), None, Some(Arc::clone(name)), effects);
            return;
        };
        match self.turns.insert(Arc::clone(name), Arc::clone(&client_id)) {
            None => self.dirty.created(Key::Turn(Arc::clone(name))),
            Some(_) => self.dirty.changed(Key::Turn(Arc::clone(name))),
        }
        let Some(own) = self.sessions.get(&client_id).and_then(|session| session.subscriptions.get(name)).copied()
        else {
            return;
        };
        let terms = Terms {
            qos: message.qos.min(own.options.qos),
            retain: message.retain && own.options.retain_as_published,
            identifiers: own.identifier.map(NonZeroU32::get).into_iter().collect(),
            share: Some(Arc::clone(name)),
        };
        if terms.qos != QoS::AtMostOnce {
            self.deliver(&client_id, message, terms, false, effects);
        }
    }

    /// Into the session's queue, and on into its window.
    fn deliver(
        &mut self,
        client_id: &Arc<str>,
        message: &Arc<Message>,
        terms: Terms,
        held: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        if held && session.is_reading() {
            let weight = message.weight_bytes();
            let full = session.held.len() >= HELD_MESSAGES_MAX
                || session.held_bytes.saturating_add(weight) > session.outbound.limits().queue_bytes_max;
            if full {
                effects.push(Effect::Dropped { reason: Drop::QueueFull, count: 1 });
                return;
            }
            let Terms { qos, retain, identifiers, .. } = terms;
            session.held.push(HeldBack { message: Arc::clone(message), qos, retain, identifiers });
            session.held_bytes += weight;
            self.dirty.changed(Key::Session(session.number));
            return;
        }
        self.enqueue(client_id, message, terms, effects);
        self.pump(client_id, effects);
    }

    fn enqueue(&mut self, client_id: &Arc<str>, message: &Arc<Message>, terms: Terms, effects: &mut Vec<Effect>) {
        let body = self.body_of(message);
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Terms { qos, retain, identifiers, share } = terms;
        let sequence = session.next_sequence;
        let number = session.number;
        let entry = Entry { body, sequence, message: Arc::clone(message), qos, retain, identifiers, share };
        match session.outbound.offer(entry, message.weight_bytes(), qos) {
            Offer::DroppedNew => effects.push(Effect::Dropped { reason: Drop::QueueFull, count: 1 }),
            offer => {
                session.next_sequence += 1;
                self.dirty.changed(Key::Session(number));
                self.dirty.created(Key::Entry(number, sequence));
                self.reference_body(body, message);
                if let Offer::DroppedOldest(oldest) = offer {
                    effects.push(Effect::Dropped { reason: Drop::QueueFull, count: oldest.len() as u64 });
                    for entry in &oldest {
                        self.settle(number, entry);
                    }
                }
            }
        }
    }

    /// The number of a message's body: the same for all sessions that get it with one command.
    fn body_of(&mut self, message: &Arc<Message>) -> u64 {
        match &self.body {
            Some((body, number)) if Arc::ptr_eq(body, message) => *number,
            _ => {
                self.last_body += 1;
                self.body = Some((Arc::clone(message), self.last_body));
                self.last_body
            }
        }
    }

    fn reference_body(&mut self, number: u64, message: &Arc<Message>) {
        let dirty = &mut self.dirty;
        let body = self.bodies.entry(number).or_insert_with(|| {
            dirty.created(Key::Body(number));
            Body { message: Arc::clone(message), references: 0 }
        });
        body.references += 1;
    }

    fn release_body(&mut self, number: u64) {
        if let Some(body) = self.bodies.get_mut(&number) {
            body.references -= 1;
            if body.references == 0 {
                self.bodies.remove(&number);
                self.dirty.deleted(Key::Body(number));
            }
        }
    }

    /// An entry left its session for good.
    fn settle(&mut self, session: u64, entry: &Entry) {
        self.dirty.deleted(Key::Entry(session, entry.sequence));
        self.release_body(entry.body);
    }

    // Messages out.

    /// Sends what the connection may have: first again what was in flight, then what waits.
    fn pump(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let clock = self.clock_ms;
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(owner) = session.served() else {
            return;
        };
        let number = session.number;
        let epoch = session.epoch;
        resend(session, owner, clock, effects);
        if !session.to_resend.is_empty() {
            return;
        }
        let mut expired = Vec::new();
        let is_expired = |entry: &Entry| entry.message.expires_at_ms.is_some_and(|at| at <= clock);
        let mut sent = false;
        while let Some((packet_id, _, entry)) = session.outbound.pop_sendable(is_expired, |entry| expired.push(entry)) {
            effects.push(Effect::Deliver(Box::new(delivery(entry, owner, epoch, packet_id, false, clock))));
            sent = true;
        }
        if sent {
            self.dirty.changed(Key::Session(number));
        }
        if !expired.is_empty() {
            effects.push(Effect::Dropped { reason: Drop::Expired, count: expired.len() as u64 });
        }
        for entry in expired {
            self.settle(number, &entry);
        }
    }

    fn acknowledge(&mut self, acknowledge: &command::Acknowledge, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.current(&acknowledge.client_id, acknowledge.epoch) else {
            return;
        };
        for item in &acknowledge.items {
            if let Some(id) = packet_id(item.packet_id) {
                self.acknowledge_one(&client_id, item.kind, id, item.reason >= 0x80, effects);
            }
        }
        self.pump(&client_id, effects);
    }

    fn acknowledge_one(
        &mut self,
        client_id: &Arc<str>,
        kind: u32,
        packet_id: PacketId,
        refused: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(owner) = session.owner else {
            return;
        };
        let (number, epoch) = (session.number, session.epoch);
        self.dirty.changed(Key::Session(number));
        let answer = |kind, known| Effect::Acknowledge {
            owner,
            epoch,
            kind,
            packet_id,
            reason: if known { ReasonCode::Success } else { ReasonCode::PacketIdentifierNotFound },
        };
        let settled = match kind {
            4 => session.outbound.on_puback(packet_id).ok().flatten(),
            5 => {
                let outcome = session.outbound.on_pubrec(packet_id, refused);
                // Committed before PUBREL leaves; one for an identifier we do not know is answered too.
                if !refused {
                    effects.push(answer(AckKind::PubRel, outcome.is_ok()));
                }
                outcome.ok().flatten()
            }
            6 => {
                let known = session.received.remove(&packet_id);
                effects.push(answer(AckKind::PubComp, known));
                None
            }
            _ => {
                // Whether it was known changes nothing for either side.
                let _ = session.outbound.on_pubcomp(packet_id);
                None
            }
        };
        if let Some(at) = session.to_resend.iter().position(|&id| id == packet_id) {
            session.to_resend.remove(at);
        }
        if let Some(entry) = settled {
            self.settle(number, &entry);
        }
    }

    // Outbox.

    fn receive(&mut self, receive: command::Receive, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.current(&receive.client_id, receive.epoch) else {
            return;
        };
        let (Some(packet_id), Some(record)) = (packet_id(receive.packet_id), receive.message) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&client_id) else {
            return;
        };
        let Some(owner) = session.owner else {
            return;
        };
        let epoch = session.epoch;
        let mut reason = ReasonCode::Success;
        // Until PUBREL, a repeated identifier is answered and not routed again [MQTT-4.3.3-10].
        if session.received.insert(packet_id) {
            self.dirty.changed(Key::Session(session.number));
            let message = Arc::new(record.into_message(self.clock_ms));
            let refused = match receive.delay_ms {
                Some(delay_ms) => self.delay(message, delay_ms, effects),
                None => {
                    self.post(message, None, None, effects);
                    None
                }
            };
            if let Some(refused) = refused {
                reason = refused;
                if let Some(session) = self.sessions.get_mut(&client_id) {
                    session.received.remove(&packet_id);
                }
            }
        }
        effects.push(Effect::Acknowledge { owner, epoch, kind: AckKind::PubRec, packet_id, reason });
    }

    /// Into the outbox: from here on this group sees to it that the message is routed.
    fn post(&mut self, message: Arc<Message>, due_ms: Option<u64>, share: Option<Arc<str>>, effects: &mut Vec<Effect>) {
        self.last_position += 1;
        let position = self.last_position;
        let entry = OutboxEntry { message, due_ms, share };
        match due_ms {
            Some(due) => {
                self.delayed += 1;
                self.timers.insert((due, Timer::Outbox(position)));
            }
            None => effects.push(route(position, &entry)),
        }
        self.outbox.insert(position, entry);
        self.dirty.created(Key::Outbox(position));
    }

    fn routed(&mut self, routed: &command::Routed) {
        for position in &routed.positions {
            // What is not due yet was never handed out to be routed.
            if self.outbox.get(position).is_some_and(|entry| entry.due_ms.is_none()) {
                self.outbox.remove(position);
                self.dirty.deleted(Key::Outbox(*position));
            }
        }
    }

    /// A delayed message is due: it goes on under a new position, for positions increase in the order of routing.
    fn outbox_due(&mut self, position: u64, effects: &mut Vec<Effect>) {
        if let Some(entry) = self.outbox.remove(&position) {
            self.delayed -= 1;
            self.dirty.deleted(Key::Outbox(position));
            self.post(entry.message, None, entry.share, effects);
        }
    }

    // Retained messages for a subscription.

    fn take_retained(&mut self, page: command::RetainedPage, effects: &mut Vec<Effect>) {
        let clock = self.clock_ms;
        let Some(session) = self.sessions.get(page.client_id.as_str()) else {
            return;
        };
        let client_id = Arc::clone(&session.client_id);
        let Some((filter, own)) = session.subscriptions.get_key_value(page.filter.as_str()) else {
            return;
        };
        if own.read != Some(page.read) {
            return;
        }
        let (filter, own) = (Arc::clone(filter), *own);
        for record in page.messages {
            let message = Arc::new(record.into_message(clock));
            let qos = message.qos.min(own.options.qos);
            if qos == QoS::AtMostOnce {
                continue;
            }
            self.enqueue_held_before(&client_id, &message, effects);
            let identifiers = own.identifier.map(NonZeroU32::get).into_iter().collect();
            let terms = Terms { qos, retain: true, identifiers, share: None };
            self.enqueue(&client_id, &message, terms, effects);
        }
        if page.last {
            self.end_read(&client_id, &filter);
            self.finish_reads(&client_id, effects);
        }
        self.pump(&client_id, effects);
        if let Some((owner, epoch)) = self.owner(&client_id) {
            let queued = self.sessions.get(&client_id).map_or(0, |session| session.outbound.queue_len());
            effects.push(Effect::RetainedTaken { owner, epoch, read: page.read, queued });
        }
    }

    /// A live copy of a retained message may wait: it is dropped for the retained one, and what waits of the same topic
    /// from before it goes first, so that the order stays.
    fn enqueue_held_before(&mut self, client_id: &Arc<str>, retained: &Message, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(copy) = session.held.iter().position(|held| held.message.is_copy_of(retained)) else {
            return;
        };
        let dropped = session.held.remove(copy);
        session.held_bytes -= dropped.message.weight_bytes();
        self.dirty.changed(Key::Session(session.number));
        let (older, rest) = std::mem::take(&mut session.held)
            .into_iter()
            .enumerate()
            .partition::<Vec<_>, _>(|(at, held)| *at < copy && held.message.topic == retained.topic);
        session.held = rest.into_iter().map(|(_, held)| held).collect();
        session.held_bytes -= older.iter().map(|(_, held)| held.message.weight_bytes()).sum::<usize>();
        for (_, HeldBack { message, qos, retain, identifiers }) in older {
            self.body = None;
            self.enqueue(client_id, &message, Terms { qos, retain, identifiers, share: None }, effects);
        }
    }

    fn end_read(&mut self, client_id: &Arc<str>, filter: &Arc<str>) {
        if let Some(session) = self.sessions.get_mut(client_id)
            && let Some(own) = session.subscriptions.get_mut(filter)
        {
            own.read = None;
            self.dirty.changed(Key::Session(session.number));
        }
    }

    /// Once no subscription of the session waits for retained messages, the live ones that waited follow.
    fn finish_reads(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        if session.is_reading() {
            return;
        }
        let number = session.number;
        let mut released = false;
        for subscription in session.subscriptions.values_mut() {
            released |= std::mem::take(&mut subscription.held);
        }
        if released {
            self.matcher.release_held(number);
            self.dirty.changed(Key::Session(number));
        }
        self.enqueue_all_held(client_id, effects);
    }

    fn enqueue_all_held(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(client_id).filter(|session| !session.held.is_empty()) else {
            return;
        };
        session.held_bytes = 0;
        self.dirty.changed(Key::Session(session.number));
        for HeldBack { message, qos, retain, identifiers } in std::mem::take(&mut session.held) {
            // After a restart no two that wait share a body, so they never do.
            self.body = None;
            self.enqueue(client_id, &message, Terms { qos, retain, identifiers, share: None }, effects);
        }
        self.pump(client_id, effects);
    }

    // Time.

    fn tick(&mut self, tick: command::Tick, effects: &mut Vec<Effect>) {
        let bridged = if tick.bridge && self.wall_ms != 0 { tick.wall_ms.saturating_sub(self.wall_ms) } else { 0 };
        self.clock_ms = self.clock_ms.saturating_add(tick.elapsed_ms.max(bridged));
        self.wall_ms = self.wall_ms.max(tick.wall_ms);
        self.run_timers(effects);
    }

    fn run_timers(&mut self, effects: &mut Vec<Effect>) {
        for _ in 0..TIMERS_PER_TICK_MAX {
            let Some((_, timer)) = self.timers.first().filter(|(due, _)| *due <= self.clock_ms).cloned() else {
                return;
            };
            self.timers.pop_first();
            match timer {
                Timer::Will(client_id) => self.fire_will(&client_id, effects),
                Timer::SessionExpiry(client_id) => {
                    effects.push(Effect::SessionExpired);
                    self.end_session(&client_id, effects);
                }
                Timer::Outbox(position) => self.outbox_due(position, effects),
                Timer::Retained(topic) => {
                    self.retained_dues.remove(&topic);
                    if self.retained.remove(&topic).is_some() {
                        self.dirty.deleted(Key::Retained(topic));
                    }
                }
            }
        }
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
            if let Some(due) = entry.due_ms {
                self.delayed += 1;
                self.timers.insert((due, Timer::Outbox(position)));
            }
        }
        self.dirty.clear();
    }

    /// What must hold after every command.
    ///
    /// # Panics
    /// It does not: the node must stop rather than spread that.
    pub fn assert_invariants(&self) {
        let mut references: HashMap<u64, u32> = HashMap::new();
        for session in self.sessions.values() {
            let in_flight = session.outbound.resend();
            for (.., entry) in &in_flight {
                if let Some(entry) = entry {
                    *references.entry(entry.body).or_default() += 1;
                }
            }
            for entry in session.outbound.queued() {
                *references.entry(entry.body).or_default() += 1;
            }
            assert_eq!(self.names.get(&session.number), Some(&session.client_id));
            assert!(session.owner.is_some() || (session.to_resend.is_empty() && session.waiting.is_none()));
            assert!(session.owner.is_none() || session.expires_at_ms.is_none(), "who is connected does not expire");
            assert_eq!(session.held_bytes, session.held.iter().map(|held| held.message.weight_bytes()).sum::<usize>());
            assert!(!session.transient || (session.subscriptions.is_empty() && session.expiry_seconds == 0));
            let known = session.to_resend.iter().all(|&id| session.outbound.in_flight_under(id).is_some());
            assert!(known, "what is to be sent again is in flight");
            assert!(session.is_reading() || session.held.is_empty(), "what is held is let go in the end");
            assert_eq!(session.outbound.queue_bytes(), queue_bytes(session));
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
        assert_eq!(references.len(), self.bodies.len(), "every body is in some queue");
        for (number, body) in &self.bodies {
            assert_eq!(references.get(number), Some(&body.references), "references of body {number}");
        }
        for (filter, share) in &self.shares {
            assert!(!share.members.is_empty(), "{filter} without members");
            assert_eq!(share.members.values().filter(|online| **online).count(), share.online as usize);
        }
        assert_eq!(self.delayed, self.outbox.values().filter(|entry| entry.due_ms.is_some()).count());
    }
}

fn packet_id(number: u32) -> Option<PacketId> {
    PacketId::new(u16::try_from(number).ok()?)
}

fn session_effect(session: &PersistentSession, exists: bool) -> Effect {
    Effect::Session { client_id: Arc::clone(&session.client_id), identity: Arc::clone(&session.identity), exists }
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

fn queue_bytes(session: &PersistentSession) -> usize {
    session.outbound.queued().map(|entry| entry.message.weight_bytes()).sum()
}

fn route(position: u64, entry: &OutboxEntry) -> Effect {
    Effect::Route { position, message: Arc::clone(&entry.message), share: entry.share.clone() }
}

/// Marks the lanes of outboxes, which outlive every incarnation.
pub const OUTBOX_LANE: u64 = 1 << 63;

fn delivery(entry: &Entry, owner: Owner, epoch: u64, packet_id: PacketId, dup: bool, clock_ms: u64) -> Delivery {
    Delivery {
        owner,
        epoch,
        packet_id,
        qos: entry.qos,
        dup,
        retain: entry.retain,
        identifiers: entry.identifiers.clone(),
        message: Arc::clone(&entry.message),
        expiry_left_ms: entry.message.expires_at_ms.map(|at| at.saturating_sub(clock_ms)),
    }
}

/// What was in flight goes out again in its original order [MQTT-4.4.0-1], no more PUBLISH at once than the connection
/// allows [MQTT-3.3.4-9].
fn resend(session: &mut PersistentSession, owner: Owner, clock_ms: u64, effects: &mut Vec<Effect>) {
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
                let delivery = delivery(entry, owner, session.epoch, packet_id, true, clock_ms);
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
mod replicas;
#[cfg(test)]
mod tests;
