//! Applies what was committed, and carries the effects out: the one thread on which groups change.

mod effects;
#[cfg(any(test, feature = "simulation"))]
mod inspect;
mod levels;
mod routing;

#[cfg(test)]
pub(crate) use routing::identified;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, unbounded};
use kentongan_cluster::pipeline::{Prepare, Prepared};
use kentongan_cluster::state::Spool;
use kentongan_cluster::{Configuration, GroupId, Incarnation, NodeId, StateMachine, Write};
use kentongan_proto::mqtt::ReasonCode;

use super::member::Member;
use super::outboxes::Outboxes;
use super::pushes::Pushes;
use super::read_ahead::ReadAhead;
use super::share_loads::ChangedLoads;
use super::start::FRONT_MESSAGES;
use super::under_way::UnderWay;
use crate::connection_key::ConnectionKey;
use crate::ending::Ending;
use crate::later;
use crate::message::Message;
use crate::metrics::ArbiterCounters;
use crate::peers::wire::{EventKind, Forwarded, OutboxAnswered, Resync};
use crate::plants::{Plant, is_planted};
use crate::replicated::command::{self, Command, Owner};
use crate::replicated::effect::Effect;
use crate::replicated::rows::SpooledRows;
use crate::replicated::state::{GroupConfig, GroupState, LET_GO_MESSAGES_MAX, OUTBOX_LANE};
use crate::replicated::store::RestoreError;
use crate::replicated::submitter::{Asker, OutboxTarget, Query};
use crate::replicated::{ClaimRequest, LaneAnswer, Opened, RetainedCursor, RetainedPage};
use crate::router::cluster::{HeldLeaders, Leader};
use crate::router::{Event, Shared};
use crate::session::outbound::Backlog;

/// Retained messages of one page.
const PAGE_MESSAGES_MAX: usize = 256;

/// Topics looked at for one page: bounds the time that others wait behind it.
const PAGE_SCAN_MAX: usize = 4096;

/// What must have come since the last checkpoint, at least, for memory to be a reason for another.
const GROWTH_BYTES_MIN: usize = 1024 * 1024;

/// Sessions released by one fence command.
pub(super) const FENCE_SESSIONS_MAX: u32 = 1000;

/// Room for so many effects of a command is kept for the next one.
const EFFECTS_KEPT_MAX: usize = 256;

/// Calls of `tick` after which lanes of outboxes without progress begin anew, and groups are told again of who is lost.
const RETRY_TICKS: u32 = 10;

/// Entries of an outbox of which one command says who gets them.
const PICKED_ENTRIES_MAX: usize = 1024;

/// Something for an arbiter of this node.
#[derive(Debug)]
struct Told {
    /// A leader's word, among several nodes: of which group, in which term. It is nobody's once another leads.
    by: Option<(u16, u64)>,
    event: Event,
}

/// What start-up hands over once it has it: the machine is made before the pipeline that it submits to.
pub type SharedCell = Arc<OnceLock<Arc<Shared>>>;

/// What all groups hold at one moment, as the metrics show it.
#[derive(Debug, Clone, Copy, Default)]
struct HeldByGroups {
    sessions: i64,
    retained_messages: i64,
    retained_bytes: i64,
    delayed_messages: i64,
    delayed_bytes: i64,
    backlog: Backlog,
    queue_memory_bytes: i64,
    subscriptions: i64,
    subscriptions_shared: i64,
}

/// How much of the sessions' queues is in memory.
pub(crate) struct QueueMemory {
    bytes_max: usize,
    /// When something was let go of last, how much was left.
    bytes_left: usize,
    /// Who reads pages before they are needed. `None`: they are read when they are.
    read_ahead: Option<Sender<ReadAhead>>,
}

impl QueueMemory {
    /// Up to `bytes_max` there is no need to let go of anything.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes_left: 0, read_ahead: None }
    }

    /// Whether so much came since something was let go of last that a checkpoint is due for it.
    fn wants_checkpoint(&self, bytes: usize) -> bool {
        let growth = (self.bytes_max / 8).max(GROWTH_BYTES_MIN);
        bytes > self.bytes_max && bytes >= self.bytes_left.saturating_add(growth)
    }

    /// How much may be left when something is let go of: there must be room for what comes, and for what is read back.
    fn bytes_left_max(&self) -> usize {
        self.bytes_max / 4 * 3
    }
}

/// The groups that this node keeps, and what their leader keeps in memory only.
pub struct Machine {
    /// Of those that it does not keep, empty ones.
    pub(crate) groups: BTreeMap<u16, GroupState>,
    config: GroupConfig,
    memory: QueueMemory,
    pub(super) shared: SharedCell,
    /// `None`: this is the only node there is.
    pub(super) member: Option<Member>,
    pub(super) counters: ArbiterCounters,
    /// Empty between two commands.
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
    pub(super) outboxes: Outboxes,
    /// Positions in outboxes that wait for the lease, by their groups.
    unrouted: BTreeMap<u16, VecDeque<u64>>,
    loads: ChangedLoads,
    retry_in: u32,
    /// Events for each arbiter, in their order.
    events: Vec<Vec<Told>>,
    /// Events for the arbiters of other nodes.
    pushes: Pushes,
    /// What was sent to clients, and what waits until they have acknowledged some of it.
    under_way: UnderWay,
    /// Up to where the log of each group was there when this process started.
    reread: BTreeMap<u16, u64>,
    /// A checkpoint is wanted by somebody who waits for it.
    wants_checkpoint: bool,
    /// As long as this is kept, and not longer than until then, nothing is taken out of the outboxes.
    outboxes_held: Option<(Weak<()>, u64)>,
    /// What was counted last.
    held: HeldByGroups,
    counted: Duration,
    /// When the feature level of groups was looked at last.
    leveled: Duration,
    /// It must not apply anything any more.
    pub(super) ended: Option<Ending>,
    on_end: fn(Ending),
}

impl Machine {
    /// `groups` are as the store had them; `member` knows them already.
    #[must_use]
    pub(crate) fn new(
        groups: BTreeMap<u16, GroupState>,
        config: GroupConfig,
        memory: QueueMemory,
        shared: SharedCell,
        counters: ArbiterCounters,
        fenced: mpsc::Sender<()>,
        member: Option<Member>,
    ) -> Self {
        Self {
            unfenced: groups.len(),
            groups,
            config,
            memory,
            shared,
            member,
            counters,
            effects: Vec::new(),
            led: BTreeSet::new(),
            leads: false,
            fenced: Some(fenced),
            waiting: HashMap::new(),
            outboxes: Outboxes::default(),
            unrouted: BTreeMap::new(),
            loads: ChangedLoads::default(),
            retry_in: RETRY_TICKS,
            events: Vec::new(),
            pushes: Pushes::default(),
            under_way: UnderWay::default(),
            reread: BTreeMap::new(),
            wants_checkpoint: false,
            outboxes_held: None,
            held: HeldByGroups::default(),
            counted: Duration::ZERO,
            leveled: Duration::ZERO,
            ended: None,
            on_end: |_| (),
        }
    }

    /// What is called where it must not go on.
    pub(super) fn ending_by(self, on_end: fn(Ending)) -> Self {
        Self { on_end, ..self }
    }

    /// Pages of queues are read by whoever takes what is asked for here, before they are needed.
    pub(super) fn read_ahead(&mut self) -> Receiver<ReadAhead> {
        let (ask, asked) = unbounded();
        self.memory.read_ahead = Some(ask);
        asked
    }

    fn queue_memory_bytes(&self) -> usize {
        self.groups.values().map(GroupState::queue_memory_bytes).sum()
    }

    /// The queues of sessions that ended go bit by bit: each may be long, and this thread keeps the lease.
    fn let_ended_go(&mut self) {
        let mut left = LET_GO_MESSAGES_MAX;
        for state in self.groups.values_mut() {
            let before = state.ended_messages();
            if before > 0 && !state.let_ended_go(left) {
                return;
            }
            left -= before;
        }
    }

    /// Asks for what queues will soon run out of, if what is read beforehand finds room.
    fn ask_for_pages(&mut self) {
        let has_room = self.queue_memory_bytes() <= self.memory.bytes_max;
        let Some(ask) = self.memory.read_ahead.as_ref().filter(|_| has_room) else {
            return;
        };
        for (&group, state) in &mut self.groups {
            for request in state.take_page_requests() {
                // Fails only when the thread is gone: then they are read when they are needed.
                drop(ask.send(ReadAhead { group, request }));
            }
        }
    }

    /// Adds what was counted since the last time to what the metrics show.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn flush_counters(&self) {
        self.counters.flush();
    }

    /// The only voter of a group leads it with its first round, which may come before start-up has handed over what leading takes.
    /// A node that is alone makes up for that ([`Self::begin_if_due`]); elsewhere nobody would ever begin.
    fn wait_for_start(&self) {
        if self.member.is_some() {
            self.shared.wait();
        }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        match self.shared.get() {
            Some(shared) => Arc::clone(shared),
            None => unreachable!("effects are carried out only after start-up handed it over"),
        }
    }

    pub(super) fn push(&mut self, arbiter: u16, event: Event) {
        self.tell(arbiter, Told { by: None, event });
    }

    /// Others may have told the arbiters of a new leader before this thread hears that it leads no more: its log may have been waiting for
    /// the disk all the while. What that leader sent them would come a second time (P3, P4).
    fn tell_arbiters(&mut self, shared: &Shared) {
        let leaders = shared.cluster.as_ref().map(|cluster| cluster.leaders.hold());
        for (events, inbox) in self.events.iter_mut().zip(&shared.inboxes) {
            for Told { by, event } in events.drain(..) {
                let is_stale =
                    |leaders: &HeldLeaders<'_>| by.is_some_and(|(group, term)| leaders.is_deposed(group, term));
                if !leaders.as_ref().is_some_and(is_stale) || is_planted(Plant::DeposedTells) {
                    inbox.push(event, 0);
                }
            }
        }
    }

    fn tell(&mut self, arbiter: u16, told: Told) {
        let arbiter = usize::from(arbiter);
        if self.events.len() <= arbiter {
            self.events.resize_with(arbiter + 1, Vec::new);
        }
        self.events[arbiter].push(told);
    }

    /// Begins to act on effects once every group is led, and start-up handed over what that needs.
    fn begin_if_due(&mut self) {
        let Some(shared) = self.shared.get().cloned() else {
            return;
        };
        if self.leads || self.member.is_some() || self.led.len() < self.groups.len() {
            return;
        }
        self.leads = true;
        for group in self.led.clone() {
            self.begin_to_lead_alone(&shared, group);
        }
    }

    fn begin_to_lead_alone(&mut self, shared: &Shared, group: u16) {
        let mut effects = Vec::new();
        if let Some(state) = self.groups.get_mut(&group) {
            state.lead(&mut effects);
            if !state.retained().is_empty() {
                shared.retained_possible.store(true, Ordering::Relaxed);
            }
        }
        // What is to be routed waits for the flush: before the index knows what every group wants, it would miss some.
        self.carry_out(group, effects);
        let fence = command::Fence { below: shared.incarnation(), sessions_max: FENCE_SESSIONS_MAX, node: 0 };
        shared.submitter.propose(group, Command::Fence(fence));
    }

    /// Where there are several nodes, each group is led on its own.
    fn begin_to_lead(&mut self, group: u16) {
        let mut effects = Vec::new();
        if let Some(state) = self.groups.get_mut(&group) {
            state.lead(&mut effects);
        }
        // The index hears of the group's interest as of any other's.
        let is_wanted = |effect: &Effect| {
            matches!(effect, Effect::Route { .. } | Effect::Close { .. } | Effect::ShareInFlight { .. })
        };
        effects.retain(is_wanted);
        self.carry_out(group, effects);
        self.release_what_was_alone(group);
        self.release_lost();
    }

    /// P5, P7: what connections of dead nodes left behind is free once the directory says that those are lost.
    pub(super) fn release_lost(&self) {
        let (Some(member), Some(shared)) = (&self.member, self.shared.get()) else {
            return;
        };
        for &group in &self.led {
            let waited_for = self.groups.get(&group).into_iter().flat_map(GroupState::not_known_to_be_lost);
            for (node, incarnation) in waited_for {
                let id = NodeId::new(node);
                if id.is_some_and(|id| member.directory().is_lost(id, Incarnation(incarnation))) {
                    propose_lost(shared, group, node, incarnation);
                }
            }
        }
    }

    /// The connections to a node that was alone before it formed a cluster ended with its process.
    fn release_what_was_alone(&self, group: u16) {
        if self.groups.get(&group).is_some_and(GroupState::has_of_node_alone) {
            let fence = command::Fence { below: u64::MAX, sessions_max: FENCE_SESSIONS_MAX, node: 0 };
            self.shared().submitter.propose(group, Command::Fence(fence));
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

    /// Those who keep no replica of the group have it from its leader who that is.
    fn announce(&mut self, group: u16) {
        if let Some(shared) = self.shared.get()
            && let Some(cluster) = &shared.cluster
        {
            let nodes = self.other_nodes(cluster.node);
            self.pushes.announce(group, &*cluster.peers, &nodes, keeps(self.member.as_ref()));
        }
    }

    /// What was said to a node may be lost.
    fn on_link_broken(&mut self, node: NodeId) {
        self.pushes.on_link_broken(node.get());
        if let Some(shared) = self.shared.get().cloned()
            && let Some(cluster) = &shared.cluster
        {
            self.reset_outboxes_to(cluster, node);
        }
    }

    // Where the owner is.

    /// To the arbiter that serves a session, here or elsewhere, unless it has still to say what it has: then it will be
    /// sent what is missing.
    pub(super) fn push_to(&mut self, shared: &Shared, group: u16, owner: Owner, event: Event) {
        if self.is_synced(shared, group, owner) {
            let arbiter = connection_of(owner).arbiter();
            self.send(shared, group, (owner.node, owner.incarnation, arbiter), 0, event);
        }
    }

    /// Whether the arbiter that serves a session has said what it has.
    fn is_synced(&self, shared: &Shared, group: u16, owner: Owner) -> bool {
        shared.cluster.is_none() || self.pushes.is_synced(group, owner.node, connection_of(owner))
    }

    fn send(&mut self, shared: &Shared, group: u16, to: (u64, u64, u16), lane: u64, event: Event) {
        let (node, incarnation, arbiter) = to;
        match &shared.cluster {
            Some(cluster) if cluster.node != node => {
                self.pushes.push(group, node, incarnation, EventKind::of(&event, lane, shared.now_ms()));
            }
            // What was meant for the process before this one is for nobody.
            _ if incarnation != shared.incarnation() => {}
            None => self.push(arbiter, event),
            Some(_) => {
                if let Some(term) = self.pushes.term(group) {
                    self.tell(arbiter, Told { by: Some((group, term)), event });
                }
            }
        }
    }

    /// An arbiter says what its clients have, those in some of its places.
    fn resync(&mut self, node: u64, resync: Resync, places: Range<u32>) {
        let state = u16::try_from(resync.group).ok().and_then(|group| self.groups.get(&group));
        let Some(state) = state.filter(|state| state.has_heard(node, &resync)) else {
            // Something that went before it was lost. The node is asked again.
            return;
        };
        let Some((group, places)) = self.pushes.synced(node, &resync, places) else {
            return;
        };
        self.under_way.restart_all_in(group, node, resync.arbiter as u16, &places);
        let mut effects = Vec::new();
        let released = state.answer_resync(node, &resync, &places, &mut effects);
        let shared = self.shared();
        for released in released {
            shared.submitter.propose(group, Command::Released(released));
        }
        self.carry_out(group, effects);
    }

    // Claims.

    fn claim(&mut self, request: ClaimRequest) {
        let shared = self.shared();
        let claim = shared.registry.get(&request.client_id);
        let connection = request.connection;
        if claim.as_ref().is_some_and(|claim| claim.belongs_to_other(&request.identity)) {
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
        let concerns_group = claim.is_some_and(|claim| claim.persistent || claim.unrouted);
        if request.session_expiry_seconds == 0 && !concerns_group {
            let opened = Opened::transient(connection, request.client_id);
            return self.push(connection.arbiter(), opened.into());
        }
        let group = shared.submitter.slots().group_of(&request.client_id);
        shared.submitter.propose(
            group,
            Command::Connect(request.command(Owner {
                incarnation: shared.incarnation(),
                connection: request.connection.raw(),
                node: 0,
            })),
        );
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
        let led = self.led.contains(&origin);
        if led {
            self.outboxes.on_answer(origin, OutboxTarget::Group(group), number);
        }
        // This thread may not have heard yet that another node leads it.
        if let Some(cluster) = &shared.cluster
            && let Some(leader) = cluster.leaders.get(origin)
            && (!led || leader.node != cluster.node)
        {
            let answered = OutboxAnswered { origin: u32::from(origin), group: u32::from(group), number };
            // Whoever hears no answer sends again.
            let _ = cluster.peers.forward(leader.node, Forwarded::OutboxAnswered(answered));
        }
    }

    // Retained messages.

    fn retained_page(&mut self, asker: Asker, number: u64, filter: &str, cursor: RetainedCursor) {
        let shared = self.shared();
        let connection = asker.connection;
        let asked = cursor.clone();
        let now_ms = shared.now_ms();
        let group = cursor.group;
        let mut messages = Vec::new();
        let Some(state) = self.groups.get(&group) else {
            return;
        };
        let (after, bytes_max) = (cursor.after.as_deref(), shared.piece_bytes());
        let page = state.retained_page(filter, after, PAGE_MESSAGES_MAX, bytes_max, PAGE_SCAN_MAX);
        let clock_ms = shared.submitter.clock_ms(group, state.clock_ms());
        messages.extend(page.messages.iter().map(|message| on_process_clock_since(message, state, clock_ms, now_ms)));
        let next = page.next.map(|after| RetainedCursor { group, after: Some(after.to_string()) });
        let page = RetainedPage { connection, number, asked, messages, next };
        // Known by what was asked for, so it needs no resync before it.
        let to = (asker.node, asker.incarnation, connection.arbiter());
        self.send(&shared, group, to, 0, Event::RetainedPage(page));
    }

    fn count_held(&mut self) {
        let queue_memory_bytes = self.queue_memory_bytes() as i64;
        let mut now = HeldByGroups { queue_memory_bytes, ..HeldByGroups::default() };
        for (number, group) in &self.groups {
            // Each counts where it is led.
            if self.member.is_some() && !self.led.contains(number) {
                continue;
            }
            now.sessions += group.persistent_sessions() as i64;
            now.retained_messages += group.retained().len() as i64;
            now.retained_bytes += group.retained().bytes() as i64;
            now.delayed_messages += group.delayed() as i64;
            now.delayed_bytes += group.delayed_bytes() as i64;
            now.backlog += group.backlog();
            let (subscriptions, shared) = group.subscriptions();
            now.subscriptions += subscriptions as i64;
            now.subscriptions_shared += shared as i64;
        }
        let before = std::mem::replace(&mut self.held, now);
        let backlog = now.backlog - before.backlog;
        let counters = &self.counters;
        counters.sessions.add(now.sessions - before.sessions);
        counters.retained_messages.add(now.retained_messages - before.retained_messages);
        counters.retained_bytes.add(now.retained_bytes - before.retained_bytes);
        counters.delayed_messages.add(now.delayed_messages - before.delayed_messages);
        counters.delayed_bytes.add(now.delayed_bytes - before.delayed_bytes);
        counters.queue_memory_bytes.add(now.queue_memory_bytes - before.queue_memory_bytes);
        counters.queued_messages.add(backlog.queued_messages);
        counters.queued_bytes.add(backlog.queued_bytes);
        counters.inflight_messages.add(backlog.in_flight);
        counters.subscriptions.add(now.subscriptions - before.subscriptions);
        counters.subscriptions_shared.add(now.subscriptions_shared - before.subscriptions_shared);
    }
}

impl StateMachine for Machine {
    type Query = Query;

    fn reread(&mut self, group: GroupId, last: u64) {
        self.reread.insert(group.0, last);
    }

    fn apply(&mut self, group: GroupId, index: u64, entry: &Bytes, live: bool) {
        if group == GroupId::DIRECTORY {
            return self.apply_directory(index, entry);
        }
        if self.ended.is_some() {
            return;
        }
        let Some(state) = self.groups.get_mut(&group.0) else {
            // Each group begins with a state, be it empty.
            tracing::error!(%group, "the log has an entry of a group that there is not");
            kentongan_cluster::ending::abort();
        };
        let mut effects = std::mem::take(&mut self.effects);
        match command::decode(entry.clone()) {
            Ok(command::Entry { needs_level, .. }) if needs_level > state.level() => {
                tracing::debug!(%group, needs_level, "an entry came before its level, and is passed over");
            }
            Ok(command::Entry { command: Some(Command::Level(raised)), .. })
                if later::feature_levels().check(raised.level).is_err() =>
            {
                return self.end_over_level(raised.level);
            }
            Ok(command::Entry { command: Some(command), .. }) => {
                let tick = if let Command::Tick(tick) = &command { Some(*tick) } else { None };
                state.apply(command, &mut effects);
                if let (Some(shared), Some(tick)) = (self.shared.get(), tick) {
                    let is_reread = self.reread.get(&group.0).is_some_and(|&last| index <= last);
                    shared.submitter.ticked(group.0, state.clock_ms(), tick, is_reread);
                }
            }
            Ok(command::Entry { command: None, .. }) if levels::apply_ahead(group, entry, state.level()) => {}
            Ok(command::Entry { command: None, .. }) => {
                // Its group has the level, and so has this program: a mistake of ours. Without it, this replica would differ.
                tracing::error!(%group, "the log holds a command that this version does not know");
                kentongan_cluster::ending::abort();
            }
            Err(error) => {
                // Its checksum was right, so these are the bytes that were written: not a disk's fault.
                tracing::error!(%error, "the log holds something that is no command");
                kentongan_cluster::ending::abort();
            }
        }
        #[cfg(debug_assertions)]
        if state.is_small() {
            state.assert_invariants();
        }
        if let Some(member) = &mut self.member {
            // All of it before anybody is told: SUBACK waits for the interest of its own entry.
            effects.retain(|effect| !member.note(group.0, index, effect));
            if live && self.led.contains(&group.0) {
                self.carry_out(group.0, effects.drain(..));
            }
        } else if live && self.leads {
            self.carry_out(group.0, effects.drain(..));
        }
        effects.clear();
        effects.shrink_to(EFFECTS_KEPT_MAX);
        self.effects = effects;
    }

    fn lead(&mut self, group: GroupId, term: u64) {
        self.wait_for_start();
        let me = self.shared.get().and_then(|shared| shared.cluster.as_ref()).map(|cluster| cluster.node);
        if group == GroupId::DIRECTORY {
            return self.on_directory_role(me.and_then(NodeId::new), term);
        }
        self.led.insert(group.0);
        if let Some(shared) = self.shared.get() {
            shared.submitter.led(group.0);
        }
        self.pushes.lead(group.0, term);
        self.under_way.forget(group.0);
        self.begin_if_due();
        if let Some(node) = me {
            self.on_group_role(group.0, Some(term));
            self.begin_to_lead(group.0);
            self.learn_leader(group.0, Leader { node, term, round: 0 });
            self.announce(group.0);
        }
    }

    fn follow(&mut self, group: GroupId, term: u64, leader: Option<NodeId>) {
        self.wait_for_start();
        if group == GroupId::DIRECTORY {
            return self.on_directory_role(leader, term);
        }
        self.led.remove(&group.0);
        self.pushes.follow(group.0);
        self.under_way.forget(group.0);
        self.outboxes.forget(group.0);
        self.unrouted.remove(&group.0);
        self.loads.forget(group.0);
        self.on_group_role(group.0, None);
        if let Some(node) = leader {
            self.learn_leader(group.0, Leader { node: node.get(), term, round: 0 });
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
            Query::Listening => self.on_listening(),
            Query::Claim(request) => self.claim(request),
            Query::Released(client_id) => {
                if let Some(request) = self.waiting.remove(&client_id) {
                    self.claim(request);
                }
            }
            Query::Led(group) => self.outboxes.reset(OutboxTarget::Group(group)),
            Query::LinkBroken(node) => self.on_link_broken(node),
            Query::ControlLink { node, link } => self.on_control_link(node, link),
            Query::Control { node, message } => self.on_control(node, message),
            Query::RoundComplete(token) => self.on_round_complete(token),
            Query::ClientsClosed => self.on_clients_closed(),
            Query::ToldRemoved(by) => self.on_told_removed(by),
            Query::Members(named) => self.on_members_named(named),
            Query::PlacedElsewhere(answer) => drop(answer.send(self.placed_elsewhere())),
            Query::Admit(record, answer) => self.wish(|membership| membership.admit(record), &answer),
            Query::Remove(node, answer) => self.wish(|membership| membership.remove(node), &answer),
            // Askers that are gone need no answer.
            Query::Reached(answer) => drop(answer.send(())),
            Query::WantCheckpoint => self.wants_checkpoint = true,
            Query::HoldOutboxes { token, answer } => self.hold_outboxes(token, &answer),
            Query::Drain(node, on, answer) => self.wish(|membership| membership.drain(node, on), &answer),
            Query::Prefer(group, node, answer) => self.wish(|membership| membership.prefer(group, node), &answer),
            Query::Ban(ban, answer) => self.ban(ban, &answer),
            Query::Look(look) => {
                let group = self.groups.get(&look.group).filter(|_| self.led.contains(&look.group));
                look.carry_out(group);
            }
            Query::Bans(behind, answer) => drop(answer.send(self.bans_behind(&behind))),
            Query::Stops => self.on_stops(),
            Query::Status(answer) => drop(answer.send(self.status())),
            Query::OutboxAnswered { origin, target, number, gap_in_round } => match gap_in_round {
                Some(round) => self.outboxes.on_gap(origin, target, round, number),
                None => self.outboxes.on_answer(origin, target, number),
            },
            Query::QueuePage { group, page } => {
                if let Some(state) = self.groups.get_mut(&group) {
                    state.take_page(*page);
                }
            }
            Query::Interest(changes) => self.change_interest(changes),
            Query::Resync { node, resync, places } => self.resync(node, resync, places),
            Query::RetainedPage { asker, number, filter, cursor } => {
                self.retained_page(asker, number, &filter, cursor);
            }
        }
    }

    fn flush(&mut self) {
        if !self.leads && self.member.is_none() {
            return;
        }
        let Some(shared) = self.shared.get().cloned() else {
            return;
        };
        self.carry_out_membership();
        self.let_ended_go();
        self.ask_for_pages();
        self.submit(&shared);
        self.pushes.flush(&shared);
        self.tell_arbiters(&shared);
        shared.wake_paused_publishers();
    }

    fn tick(&mut self, now: Duration) {
        let Some(shared) = self.shared.get().cloned().filter(|_| self.leads || self.member.is_some()) else {
            return;
        };
        if let Some(cluster) = &shared.cluster {
            self.tick_member();
            cluster.answer_patient(&shared);
            let nodes = self.other_nodes(cluster.node);
            self.pushes.ask(&*cluster.peers, &nodes, keeps(self.member.as_ref()));
            for (group, term, round) in self.pushes.ask_own(cluster.node) {
                cluster.leaders.on_asked(&shared, group, Leader { node: cluster.node, term, round });
            }
            for told in self.loads.take() {
                for &node in &nodes {
                    // Where there is no room for it, the next change tells.
                    let _ = cluster.peers.forward(node, Forwarded::ShareLoads(told.clone()));
                }
            }
            self.retry_in -= 1;
            if self.retry_in == 0 {
                self.retry_in = RETRY_TICKS;
                self.outboxes.retry();
                self.release_lost();
            }
        }
        self.raise_groups(now, &shared);
        for &group in &self.led {
            if let Some(state) = self.groups.get(&group)
                && let Some(due) = state.next_due_ms()
            {
                shared.submitter.tick_if_due(group, due.saturating_sub(state.clock_ms()));
            }
            shared.submitter.tick_if_wall_clock_was_set(group);
        }
        if now.saturating_sub(self.counted).as_millis() >= 500 {
            self.counted = now;
            let unacknowledged = self.under_way.go_on(now, effects::under_way_bytes_max(&shared));
            if !unacknowledged.is_empty() {
                for (group, owner, delivery) in unacknowledged {
                    self.deliver(&shared, group, owner, delivery);
                }
                self.pushes.flush(&shared);
                self.tell_arbiters(&shared);
            }
            self.count_held();
            self.counters.flush();
        }
    }

    fn members(&mut self, group: GroupId, configuration: &Configuration) {
        self.on_configuration(group, configuration);
    }

    fn prepare(&self) -> Prepare {
        let config = self.config;
        Arc::new(move |group, spool| {
            let rows = || Arc::new(SpooledRows(Arc::clone(spool)));
            let state = (group != GroupId::DIRECTORY).then(|| GroupState::resume(config, rows(), FRONT_MESSAGES));
            Box::new(state)
        })
    }

    fn restore(&mut self, group: GroupId, index: u64, spool: &Arc<Spool>, prepared: Prepared) {
        if group == GroupId::DIRECTORY {
            return self.restore_directory(spool);
        }
        let Ok(Some(state)) = prepared.downcast::<RestoredState>().map(|restored| *restored) else {
            unreachable!("it was prepared above");
        };
        match state {
            Ok(state) if later::feature_levels().check(state.level()).is_err() => self.end_over_level(state.level()),
            Ok(state) => {
                if let Some(member) = &mut self.member {
                    member.restored(group.0, index, &state);
                }
                if let Some(before) = self.groups.insert(group.0, state) {
                    let_go(before);
                }
            }
            Err(error) => {
                tracing::error!(%error, %group, "the state that another node sent of a group cannot be used");
                kentongan_cluster::ending::abort();
            }
        }
    }

    fn checkpoint(&mut self, group: GroupId) -> Option<Vec<Write>> {
        if self.ended.is_some() {
            return None;
        }
        self.wants_checkpoint = false;
        if group == GroupId::DIRECTORY {
            return self.member.as_mut().and_then(Member::directory_writes);
        }
        self.groups.get_mut(&group.0).map(GroupState::take_dirty)
    }

    fn wants_checkpoint(&self) -> bool {
        self.wants_checkpoint || self.memory.wants_checkpoint(self.queue_memory_bytes())
    }

    fn stored(&mut self) {
        let (bytes, left_max) = (self.queue_memory_bytes(), self.memory.bytes_left_max());
        if bytes > left_max {
            for group in self.groups.values_mut() {
                // Each gives as much of what it has.
                let share = group.queue_memory_bytes() as u128 * left_max as u128 / bytes as u128;
                group.put_away(share as usize);
            }
        }
        self.memory.bytes_left = self.queue_memory_bytes();
    }
}

/// A group's state as it is prepared; the directory has none.
type RestoredState = Option<Result<GroupState, RestoreError>>;

/// To let go of much takes its time, which this thread has not.
const LET_GO_BYTES_MAX: usize = 1024 * 1024;

fn let_go(state: GroupState) {
    if state.queue_memory_bytes() > LET_GO_BYTES_MAX {
        // If the system gives no thread, it happens here.
        let _ = std::thread::Builder::new().name("let-go".into()).spawn(move || drop(state));
    }
}

/// Whether a node has a replica of a group, by the directory.
fn keeps(member: Option<&Member>) -> impl Fn(u16, u64) -> bool {
    move |group, node| {
        let placed = member.and_then(|member| member.directory().placement(GroupId(group)));
        NodeId::new(node).zip(placed).is_some_and(|(node, placed)| placed.keeps(node))
    }
}

fn propose_lost(shared: &Shared, group: u16, node: u64, incarnation: u64) {
    let lost = command::Lost { node, incarnation, sessions_max: FENCE_SESSIONS_MAX };
    shared.submitter.propose(group, Command::Lost(lost));
}

fn connection_of(owner: Owner) -> ConnectionKey {
    ConnectionKey::from_raw(owner.connection)
}

/// Whether it expired by its group's clock, as it asks of what is queued: when the clock says so, and not only after that.
fn is_over(message: &Message, group: &GroupState) -> bool {
    message.expires_at_ms.is_some_and(|at| at <= group.clock_ms())
}

/// The message with its expiry moved from its group's clock to that of the process.
fn on_process_clock(message: &Arc<Message>, group: &GroupState, now_ms: u64) -> Arc<Message> {
    on_process_clock_since(message, group, group.clock_ms(), now_ms)
}

/// Likewise, of a group to which nobody said anything since, so that its clock would say `clock_ms` by now.
fn on_process_clock_since(message: &Arc<Message>, group: &GroupState, clock_ms: u64, now_ms: u64) -> Arc<Message> {
    match message.expires_at_ms {
        None => Arc::clone(message),
        Some(at) => {
            let latest_ms = group.latest_ms().max(clock_ms);
            // What is over by the group's clock is so by every clock, also by one that was looked at before.
            let expires_at_ms = if at <= clock_ms { 0 } else { now_ms + at.saturating_sub(latest_ms).max(1) };
            Arc::new(Message { expires_at_ms: Some(expires_at_ms), ..Message::clone(message) })
        }
    }
}
