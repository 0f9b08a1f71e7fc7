//! Applies what was committed, and carries the effects out: the one thread on which groups change.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Instant;

use bytes::Bytes;
use kentongan_cluster::{GroupId, NodeId, StateMachine, Write};
use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{QoS, ReasonCode};

use super::pushes::Pushes;
use crate::connection_key::ConnectionKey;
use crate::message::Message;
use crate::metrics::{ArbiterCounters, DropReason};
use crate::peers::wire::{EventKind, Resync};
use crate::replicated::command::{self, Command, LaneBatch, LaneMessage, MessageRecord, Owner};
use crate::replicated::effect::{Drop, Effect, FilterOutcome, OpenedSession};
use crate::replicated::state::{GroupState, OUTBOX_LANE};
use crate::replicated::submitter::{Asker, Query};
use crate::replicated::{
    ClaimRequest, DeliverPersistent, InterestChanges, LaneAnswer, Opened, RetainedCursor, RetainedPage,
    SubscribeOutcome, SubscribedPersistent, UnsubscribedPersistent,
};
use crate::router::batch::Addressee;
use crate::router::cluster::Leader;
use crate::router::{Event, Shared};
use crate::session::outbound::Backlog;
use crate::subscription::{Matched, PickStrategy, ShareGroup, ShareMember, ShareTarget, Target, topic_hash};

/// Retained messages of one page.
const PAGE_MESSAGES_MAX: usize = 256;

/// Topics looked at for one page: bounds the time that others wait behind it.
const PAGE_SCAN_MAX: usize = 4096;

/// Sessions released by one fence command.
const FENCE_SESSIONS_MAX: u32 = 1000;

/// What start-up hands over once it has it: the machine is made before the pipeline that it submits to.
pub type SharedCell = Arc<OnceLock<Arc<Shared>>>;

/// What all groups hold at one moment, as the metrics show it.
#[derive(Debug, Clone, Copy, Default)]
struct HeldByGroups {
    retained_messages: i64,
    retained_bytes: i64,
    delayed_messages: i64,
    backlog: Backlog,
    subscriptions: i64,
    subscriptions_shared: i64,
}

/// All groups of this node, and what their leader keeps in memory only.
pub struct Machine {
    groups: Vec<GroupState>,
    shared: SharedCell,
    counters: ArbiterCounters,
    effects: Vec<Effect>,
    /// Groups that this node leads.
    led: BTreeSet<u16>,
    /// Whether effects are acted upon.
    leads: bool,
    /// Told once every group has let go of what an earlier start held.
    fenced: Option<mpsc::Sender<()>>,
    unfenced: usize,
    /// CONNECTs that wait until the present owner has let go.
    waiting: HashMap<Arc<str>, ClaimRequest>,
    /// Outbox entries under way: lanes that have not answered.
    routing: HashMap<(u16, u64), usize>,
    /// By (origin, target): positions in their order.
    unanswered: BTreeMap<(u16, u16), VecDeque<u64>>,
    /// Lane messages of outboxes, by (origin, target).
    lanes: BTreeMap<(u16, u16), Vec<LaneMessage>>,
    routed: BTreeMap<u16, Vec<u64>>,
    /// Events for each arbiter, in their order.
    events: Vec<Vec<Event>>,
    /// Events for the arbiters of other nodes.
    pushes: Pushes,
    /// What was counted last.
    held: HeldByGroups,
    counted: Instant,
}

impl Machine {
    /// `groups` are as the store had them.
    #[must_use]
    pub fn new(
        groups: Vec<GroupState>,
        shared: SharedCell,
        counters: ArbiterCounters,
        fenced: mpsc::Sender<()>,
    ) -> Self {
        Self {
            unfenced: groups.len(),
            groups,
            shared,
            counters,
            effects: Vec::new(),
            led: BTreeSet::new(),
            leads: false,
            fenced: Some(fenced),
            waiting: HashMap::new(),
            routing: HashMap::new(),
            unanswered: BTreeMap::new(),
            lanes: BTreeMap::new(),
            routed: BTreeMap::new(),
            events: Vec::new(),
            pushes: Pushes::default(),
            held: HeldByGroups::default(),
            counted: Instant::now(),
        }
    }

    fn shared(&self) -> Arc<Shared> {
        match self.shared.get() {
            Some(shared) => Arc::clone(shared),
            None => unreachable!("effects are carried out only after start-up handed it over"),
        }
    }

    fn push(&mut self, arbiter: u16, event: Event) {
        let arbiter = usize::from(arbiter);
        if self.events.len() <= arbiter {
            self.events.resize_with(arbiter + 1, Vec::new);
        }
        self.events[arbiter].push(event);
    }

    /// Begins to act on effects once every group is led, and start-up handed over what that needs.
    fn begin_if_due(&mut self) {
        let Some(shared) = self.shared.get().cloned() else {
            return;
        };
        if self.leads || self.led.len() < self.groups.len() {
            return;
        }
        self.leads = true;
        let mut to_route = Vec::new();
        for group in 0..self.groups.len() as u16 {
            let mut effects = Vec::new();
            self.groups[usize::from(group)].lead(&mut effects);
            let (routes, others) = effects.into_iter().partition(|effect| matches!(effect, Effect::Route { .. }));
            self.carry_out(group, others);
            to_route.push(routes);
            if !self.groups[usize::from(group)].retained().is_empty() {
                shared.retained_possible.store(true, Ordering::Relaxed);
            }
            let fence = command::Fence { below: shared.incarnation, sessions_max: FENCE_SESSIONS_MAX, node: 0 };
            shared.submitter.propose(group, Command::Fence(fence));
        }
        // Only now does the index know what every group wants: routed earlier, a message would miss some.
        for (group, routes) in to_route.into_iter().enumerate() {
            self.carry_out(group as u16, routes);
        }
    }

    /// Arbiters send what they have for a group to whoever leads it.
    fn learn_leader(&self, group: u16, leader: Leader) {
        if let Some(shared) = self.shared.get()
            && let Some(cluster) = &shared.cluster
        {
            cluster.leaders.learn(shared, group, leader);
        }
    }

    /// What was said to a node, or by it, may be lost.
    fn on_link_broken(&mut self, node: u64) {
        self.pushes.on_link_broken(node);
        if let Some(shared) = self.shared.get()
            && let Some(cluster) = &shared.cluster
        {
            cluster.leaders.on_link_broken(shared, node);
        }
    }

    fn carry_out(&mut self, group: u16, effects: Vec<Effect>) {
        let shared = self.shared();
        for effect in effects {
            self.carry_out_one(&shared, group, effect);
        }
    }

    fn carry_out_one(&mut self, shared: &Shared, group: u16, effect: Effect) {
        match effect {
            Effect::Opened(opened) => self.opened(shared, group, opened),
            Effect::Refused { owner, reason } => {
                let connection = connection_of(owner);
                self.push_to(shared, group, owner, Event::Refused { connection, reason });
            }
            Effect::Close { owner, client_id, epoch } => {
                let connection = connection_of(owner);
                self.push_to(shared, group, owner, Event::Close { connection, group, client_id, epoch });
            }
            Effect::Session { client_id, identity, exists } => {
                shared.registry.set_persistent(&client_id, &identity, exists);
                self.counters.sessions.add(if exists { 1 } else { -1 });
            }
            Effect::Subscribed { owner, epoch, packet_id, ticket, outcomes } => {
                let connection = connection_of(owner);
                let outcomes = outcomes.into_iter().map(outcome).collect();
                let subscribed = SubscribedPersistent { connection, epoch, packet_id, ticket, outcomes };
                self.push_to(shared, group, owner, Event::Subscribed(subscribed));
            }
            Effect::Unsubscribed { owner, epoch, packet_id, ticket, outcomes } => {
                let connection = connection_of(owner);
                let unsubscribed = UnsubscribedPersistent { connection, epoch, packet_id, ticket, outcomes };
                self.push_to(shared, group, owner, Event::Unsubscribed(unsubscribed));
            }
            Effect::Interest { filter, wanted: true } => shared.index.subscribe(&filter, Target::Group(group)),
            Effect::Interest { filter, wanted: false } => {
                shared.index.unsubscribe(&filter, Target::Group(group));
            }
            Effect::ShareInterest { share, joined } => share_interest(shared, group, &share, joined),
            Effect::ShareOnline { share, online } => {
                if let Some(share) = find_share(shared, &share) {
                    share.set_sessions_online(group, online);
                }
            }
            Effect::ShareInFlight { share, least } => {
                if let Some(share) = find_share(shared, &share) {
                    share.set_sessions_in_flight(group, least);
                }
            }
            Effect::Deliver(delivery) => {
                let owner = delivery.owner;
                let connection = connection_of(owner);
                let now_ms = shared.now_ms();
                let delivery = DeliverPersistent {
                    connection,
                    epoch: delivery.epoch,
                    packet_id: delivery.packet_id,
                    qos: delivery.qos,
                    dup: delivery.dup,
                    retain: delivery.retain,
                    subscription_identifiers: delivery.identifiers,
                    message: delivery.message,
                    expires_at_ms: delivery.expiry_left_ms.map(|left| now_ms + left),
                };
                self.deliver(shared, group, owner, delivery);
            }
            Effect::Acknowledge { owner, epoch, kind, packet_id, reason } => {
                let connection = connection_of(owner);
                if kind == AckKind::PubRec && reason.is_error() {
                    self.counters.publishes_refused.inc(reason.into());
                }
                let event = Event::Acknowledge { connection, epoch, kind, packet_id, reason };
                self.push_to(shared, group, owner, event);
            }
            Effect::LaneAnswered { node, lane, number, refused } => {
                self.lane_answered(shared, group, node, lane, number, refused)
            }
            Effect::Route { position, message, share } => {
                self.route(shared, group, position, &message, share.as_deref())
            }
            Effect::RetainedTaken { owner, epoch, read, queued } => {
                let connection = connection_of(owner);
                self.push_to(shared, group, owner, Event::RetainedTaken { connection, epoch, read, queued });
            }
            Effect::Fenced { more } => self.was_fenced(shared, group, more),
            Effect::Dropped { reason, count } => {
                let reason = match reason {
                    Drop::QueueMessages => DropReason::QueueMessages,
                    Drop::QueueBytes => DropReason::QueueBytes,
                    Drop::Expired => DropReason::Expired,
                    Drop::SessionEnded => DropReason::SessionEnded,
                    Drop::NoMember => DropReason::NoSharedMember,
                    Drop::Delayed => DropReason::Delayed,
                };
                self.counters.messages_dropped.add(reason, count);
            }
            Effect::RetainedNotKept => self.counters.retained_not_kept.inc(),
            Effect::WillPublished => self.counters.wills_published.inc(),
            Effect::SessionExpired => self.counters.sessions_expired.inc(),
        }
    }

    /// Consecutive deliveries for an arbiter travel as one event.
    fn deliver(&mut self, shared: &Shared, group: u16, owner: Owner, delivery: DeliverPersistent) {
        let arbiter = delivery.connection.arbiter();
        if shared.cluster.is_some() {
            return self.push_to(shared, group, owner, Event::Deliver(vec![delivery]));
        }
        match self.events.get_mut(usize::from(arbiter)).and_then(|events| events.last_mut()) {
            Some(Event::Deliver(deliveries)) => deliveries.push(delivery),
            _ => self.push(arbiter, Event::Deliver(vec![delivery])),
        }
    }

    fn was_fenced(&mut self, shared: &Shared, group: u16, more: bool) {
        if more {
            let fence = command::Fence { below: shared.incarnation, sessions_max: FENCE_SESSIONS_MAX, node: 0 };
            shared.submitter.propose(group, Command::Fence(fence));
            return;
        }
        self.unfenced = self.unfenced.saturating_sub(1);
        if self.unfenced == 0
            && let Some(fenced) = self.fenced.take()
        {
            // Start-up may have given up waiting.
            let _ = fenced.send(());
        }
    }

    // Where the owner is.

    /// To the arbiter that serves a session, here or elsewhere, unless it has still to say what it has: then it will be
    /// sent what is missing.
    fn push_to(&mut self, shared: &Shared, group: u16, owner: Owner, event: Event) {
        let arbiter = connection_of(owner).arbiter();
        if shared.cluster.is_some() && !self.pushes.is_synced(group, owner.node, arbiter) {
            return;
        }
        self.send(shared, group, (owner.node, owner.incarnation, arbiter), 0, event);
    }

    fn send(&mut self, shared: &Shared, group: u16, to: (u64, u64, u16), lane: u64, event: Event) {
        let (node, incarnation, arbiter) = to;
        match &shared.cluster {
            Some(cluster) if cluster.node != node => {
                self.pushes.push(group, node, incarnation, EventKind::of(&event, lane, shared.now_ms()));
            }
            // What was meant for the process before this one is for nobody.
            _ if incarnation == shared.incarnation => self.push(arbiter, event),
            _ => {}
        }
    }

    /// The clients of an arbiter here want something else. Whoever is to hear of that has, where there is nobody else.
    fn interest_changed(&mut self, changes: InterestChanges) {
        for (connection, ticket) in changes.barriers {
            self.push(connection.arbiter(), Event::Barrier { connection, ticket });
        }
    }

    /// An arbiter says what its clients have.
    fn resync(&mut self, node: u64, resync: Resync) {
        let Some(group) = self.pushes.synced(node, &resync) else {
            return;
        };
        let owner = |connection| Owner { incarnation: resync.incarnation, connection, node };
        let mut effects = Vec::new();
        let state = &self.groups[usize::from(group)];
        for served in &resync.sessions {
            state.resync(&served.client_id, owner(served.connection), served.epoch, &served.has(), &mut effects);
        }
        for claim in &resync.claims {
            state.claim_again(&claim.client_id, owner(claim.connection), &mut effects);
        }
        self.carry_out(group, effects);
    }

    // Claims.

    fn claim(&mut self, request: ClaimRequest) {
        let shared = self.shared();
        let claim = shared.registry.get(&request.client_id);
        let connection = request.connection;
        if claim.as_ref().is_some_and(|claim| claim.identity != request.identity) {
            let reason = ReasonCode::NotAuthorized;
            return self.push(connection.arbiter(), Event::Refused { connection, reason });
        }
        if let Some(owner) = claim.as_ref().and_then(|claim| claim.owner) {
            let client_id = Arc::clone(&request.client_id);
            let event = Event::TakeOver { connection: owner, client_id: Arc::clone(&client_id) };
            self.push(owner.arbiter(), event);
            if let Some(older) = self.waiting.insert(client_id, request) {
                let connection = older.connection;
                let reason = ReasonCode::ServerBusy;
                self.push(connection.arbiter(), Event::Refused { connection, reason });
            }
            return;
        }
        shared.registry.set_owner(&request.client_id, &request.identity, connection);
        let stored = claim.is_some_and(|claim| claim.persistent);
        if request.session_expiry_seconds == 0 && !stored {
            let opened = Opened::transient(connection, request.client_id);
            return self.push(connection.arbiter(), opened.into());
        }
        let group = shared.submitter.slots().group_of(&request.client_id);
        shared.submitter.propose(
            group,
            Command::Connect(request.command(Owner {
                incarnation: shared.incarnation,
                connection: request.connection.raw(),
                node: 0,
            })),
        );
    }

    fn opened(&mut self, shared: &Shared, group: u16, opened: OpenedSession) {
        let owner = opened.owner;
        let connection = connection_of(owner);
        let subscriptions = opened.subscriptions.into_iter().map(outcome).collect();
        let opened = Opened {
            connection,
            client_id: opened.client_id,
            epoch: opened.epoch,
            group: opened.persistent.then_some(group),
            session_present: opened.session_present,
            subscriptions,
            received: opened.received,
        };
        self.push_to(shared, group, owner, opened.into());
    }

    // Outboxes.

    fn route(&mut self, shared: &Shared, origin: u16, position: u64, message: &Arc<Message>, share: Option<&str>) {
        let mut targets: BTreeMap<u16, LaneMessage> = BTreeMap::new();
        let mut matched = Matched::default();
        let clock = self.groups[usize::from(origin)].clock_ms();
        let local = on_process_clock(message, clock, shared.now_ms());
        match share {
            Some(name) => match find_share(shared, name) {
                Some(group) => self.route_to_share(shared, &local, &group, &mut targets),
                None => self.counters.messages_dropped.inc(DropReason::NoSharedMember),
            },
            None => {
                shared.index.matches(&message.topic, topic_hash(&message.topic), &mut matched);
                for arbiter in matched.arbiters.iter() {
                    let event =
                        Event::Route { message: Arc::clone(&local), addressee: Addressee::Subscribers, weight: 0 };
                    self.push(arbiter, event);
                }
                if message.qos != QoS::AtMostOnce {
                    for &group in &matched.groups {
                        targets.entry(group).or_default().match_subscriptions = true;
                    }
                }
                for group in &matched.shares {
                    self.route_to_share(shared, &local, group, &mut targets);
                }
                if message.retain {
                    shared.retained_possible.store(true, Ordering::Relaxed);
                    let group = shared.submitter.slots().group_of(&message.topic);
                    targets.entry(group).or_default().store_retained = true;
                }
            }
        }
        if targets.is_empty() {
            self.routed.entry(origin).or_default().push(position);
            return;
        }
        self.routing.insert((origin, position), targets.len());
        for (target, mut lane_message) in targets {
            lane_message.number = position;
            lane_message.message = Some(MessageRecord::from_message(message, clock));
            self.unanswered.entry((origin, target)).or_default().push_back(position);
            self.lanes.entry((origin, target)).or_default().push(lane_message);
        }
    }

    fn route_to_share(
        &mut self,
        shared: &Shared,
        message: &Arc<Message>,
        group: &Arc<ShareGroup>,
        targets: &mut BTreeMap<u16, LaneMessage>,
    ) {
        let strategy: PickStrategy = shared.settings.shared.strategy.into();
        let publisher = strategy.publisher_hash(&message.publisher);
        let topic = strategy.topic_hash(&message.topic, topic_hash(&message.topic));
        let online_only = message.qos == QoS::AtMostOnce;
        match group.pick(strategy, publisher, topic, None, online_only) {
            Some(ShareTarget::Connection { connection, .. }) => {
                let member = ConnectionKey::from_raw(connection);
                let addressee = Addressee::Member(member, Arc::clone(group), None);
                self.push(member.arbiter(), Event::Route { message: Arc::clone(message), addressee, weight: 0 });
            }
            Some(ShareTarget::Session { group: target }) => {
                targets.entry(target).or_default().shares.push(group.subscription_name().to_owned());
            }
            None => self.counters.messages_dropped.inc(DropReason::NoSharedMember),
        }
    }

    fn lane_answered(
        &mut self,
        shared: &Shared,
        group: u16,
        node: u64,
        lane: u64,
        number: u64,
        refused: Vec<(u64, ReasonCode)>,
    ) {
        if lane & OUTBOX_LANE == 0 {
            let (incarnation, arbiter) = (lane >> 12, (lane & 0xFFF) as u16);
            let answer = LaneAnswer { group, number, refused };
            // Safe to repeat, so it needs no resync before it.
            return self.send(shared, group, (node, incarnation, arbiter), lane, Event::LaneAnswered(answer));
        }
        // Nothing that comes from an outbox asks for what can be refused.
        let origin = (lane & !OUTBOX_LANE) as u16;
        let Some(positions) = self.unanswered.get_mut(&(origin, group)) else {
            return;
        };
        while let Some(&position) = positions.front()
            && position <= number
        {
            positions.pop_front();
            let Some(remaining) = self.routing.get_mut(&(origin, position)) else {
                continue;
            };
            *remaining -= 1;
            if *remaining == 0 {
                self.routing.remove(&(origin, position));
                self.routed.entry(origin).or_default().push(position);
            }
        }
    }

    /// Proposes what routing led to.
    fn submit(&mut self, shared: &Shared) {
        for ((origin, target), messages) in std::mem::take(&mut self.lanes) {
            // An outbox outlives every incarnation.
            let batch = LaneBatch {
                lane: OUTBOX_LANE | u64::from(origin),
                incarnation: u64::MAX,
                messages,
                ..LaneBatch::default()
            };
            shared.submitter.propose(target, Command::Lane(batch));
        }
        for (group, positions) in std::mem::take(&mut self.routed) {
            shared.submitter.propose(group, Command::Routed(command::Routed { positions }));
        }
    }

    // Retained messages.

    fn retained_page(&mut self, asker: Asker, number: u64, filter: &str, cursor: RetainedCursor) {
        let shared = self.shared();
        let connection = asker.connection;
        let asked = cursor.clone();
        let now_ms = shared.now_ms();
        let slots = shared.submitter.slots();
        let exact = !filter.contains(['+', '#']);
        let group = if exact { slots.group_of(filter) } else { cursor.group };
        let mut messages = Vec::new();
        let state = &self.groups[usize::from(group)];
        let page = state.retained_page(filter, cursor.after.as_deref(), PAGE_MESSAGES_MAX, PAGE_SCAN_MAX);
        messages.extend(page.messages.iter().map(|message| on_process_clock(message, state.clock_ms(), now_ms)));
        let next = match page.next {
            Some(after) => Some(RetainedCursor { group, after: Some(after.to_string()) }),
            None if exact || usize::from(group) + 1 >= self.groups.len() => None,
            None => Some(RetainedCursor { group: group + 1, after: None }),
        };
        let page = RetainedPage { connection, number, asked, messages, next };
        // Known by what was asked for, so it needs no resync before it.
        let to = (asker.node, asker.incarnation, connection.arbiter());
        self.send(&shared, group, to, 0, Event::RetainedPage(page));
    }

    fn count_held(&mut self) {
        let mut now = HeldByGroups::default();
        for group in &self.groups {
            now.retained_messages += group.retained().len() as i64;
            now.retained_bytes += group.retained().bytes() as i64;
            now.delayed_messages += group.delayed() as i64;
            now.backlog += group.backlog();
            let (subscriptions, shared) = group.subscriptions();
            now.subscriptions += subscriptions as i64;
            now.subscriptions_shared += shared as i64;
        }
        let before = std::mem::replace(&mut self.held, now);
        let backlog = now.backlog - before.backlog;
        let counters = &self.counters;
        counters.retained_messages.add(now.retained_messages - before.retained_messages);
        counters.retained_bytes.add(now.retained_bytes - before.retained_bytes);
        counters.delayed_messages.add(now.delayed_messages - before.delayed_messages);
        counters.queued_messages.add(backlog.queued_messages);
        counters.queued_bytes.add(backlog.queued_bytes);
        counters.inflight_messages.add(backlog.in_flight);
        counters.subscriptions.add(now.subscriptions - before.subscriptions);
        counters.subscriptions_shared.add(now.subscriptions_shared - before.subscriptions_shared);
    }
}

impl StateMachine for Machine {
    type Query = Query;

    fn apply(&mut self, group: GroupId, _index: u64, entry: &Bytes, live: bool) {
        let state = &mut self.groups[usize::from(group.0)];
        match command::decode(entry.clone()) {
            Ok(Some(command)) => state.apply(command, &mut self.effects),
            Ok(None) => tracing::error!("the log holds a command that this version does not know; it is skipped"),
            Err(error) => {
                // Its checksum was right, so these are the bytes that were written: not a disk's fault.
                tracing::error!(%error, "the log holds something that is no command");
                std::process::abort();
            }
        }
        #[cfg(debug_assertions)]
        if state.is_small() {
            state.assert_invariants();
        }
        let effects = std::mem::take(&mut self.effects);
        if live && self.leads {
            self.carry_out(group.0, effects);
        }
    }

    fn lead(&mut self, group: GroupId, term: u64) {
        self.led.insert(group.0);
        self.pushes.lead(group.0, term);
        self.begin_if_due();
        if let Some(cluster) = self.shared.get().and_then(|shared| shared.cluster.as_ref()) {
            self.learn_leader(group.0, Leader { node: cluster.node, term });
        }
    }

    fn follow(&mut self, group: GroupId, term: u64, leader: Option<NodeId>) {
        self.led.remove(&group.0);
        self.pushes.follow(group.0);
        if let Some(node) = leader {
            self.learn_leader(group.0, Leader { node: node.get(), term });
        }
    }

    fn refuse(&mut self, query: Query) {
        if let Query::Claim(request) = query {
            let connection = request.connection;
            let reason = ReasonCode::ServerUnavailable;
            self.push(connection.arbiter(), Event::Refused { connection, reason });
        }
    }

    fn query(&mut self, query: Query) {
        match query {
            Query::Begin => self.begin_if_due(),
            Query::Claim(request) => self.claim(request),
            Query::Released(client_id) => {
                if let Some(request) = self.waiting.remove(&client_id) {
                    self.claim(request);
                }
            }
            Query::LinkBroken(node) => self.on_link_broken(node),
            Query::Interest(changes) => self.interest_changed(changes),
            Query::Resync { node, resync } => self.resync(node, resync),
            Query::RetainedPage { asker, number, filter, cursor } => {
                self.retained_page(asker, number, &filter, cursor);
            }
        }
    }

    fn flush(&mut self) {
        if !self.leads {
            return;
        }
        let shared = self.shared();
        self.submit(&shared);
        self.pushes.flush(&shared);
        for (arbiter, events) in self.events.iter_mut().enumerate() {
            for event in events.drain(..) {
                shared.inboxes[arbiter].push(event, 0);
            }
        }
        shared.wake_paused_publishers();
    }

    fn tick(&mut self, now: Instant) {
        if !self.leads {
            return;
        }
        let shared = self.shared();
        if let Some(cluster) = &shared.cluster {
            self.pushes.ask_behind(&*cluster.peers);
        }
        for (group, state) in self.groups.iter().enumerate() {
            if let Some(due) = state.next_due_ms() {
                shared.submitter.tick_if_due(group as u16, due.saturating_sub(state.clock_ms()));
            }
        }
        if now.duration_since(self.counted).as_millis() >= 500 {
            self.counted = now;
            self.count_held();
            self.counters.flush();
        }
    }

    fn checkpoint(&mut self, group: GroupId) -> Option<Vec<Write>> {
        Some(self.groups[usize::from(group.0)].take_dirty())
    }
}

fn connection_of(owner: Owner) -> ConnectionKey {
    ConnectionKey::from_raw(owner.connection)
}

fn outcome(outcome: FilterOutcome) -> SubscribeOutcome {
    let FilterOutcome { filter, reason, options, identifier, read } = outcome;
    SubscribeOutcome { filter, reason, options, identifier, read }
}

fn share_parts(share: &str) -> Option<(&str, &str)> {
    share.strip_prefix("$share/")?.split_once('/')
}

fn find_share(shared: &Shared, share: &str) -> Option<Arc<ShareGroup>> {
    let (name, filter) = share_parts(share)?;
    shared.index.share(name, filter)
}

fn share_interest(shared: &Shared, group: u16, share: &str, joined: bool) {
    let Some((name, filter)) = share_parts(share) else {
        return;
    };
    let target = ShareTarget::Session { group };
    if joined {
        let member = ShareMember { target, client_id_hash: u64::from(group), qos0_only: false };
        shared.index.join_share(name, filter, member);
    } else {
        shared.index.leave_share(name, filter, &target);
    }
}

/// The message with its expiry moved from a group's clock to that of the process.
fn on_process_clock(message: &Arc<Message>, clock_ms: u64, now_ms: u64) -> Arc<Message> {
    match message.expires_at_ms {
        None => Arc::clone(message),
        Some(at) => {
            let expires_at_ms = Some(now_ms + at.saturating_sub(clock_ms));
            Arc::new(Message { expires_at_ms, ..Message::clone(message) })
        }
    }
}
