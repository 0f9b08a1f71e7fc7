//! The way from an arbiter to the groups, and what waits for their answers.
//!
//! A lane is (this arbiter, a group): its messages carry consecutive numbers, so that the group applies each exactly
//! once and in order, whoever leads it. What gathers during a turn is proposed as one command.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use kentongan_cluster::lane::Outgoing;
use kentongan_cluster::pipeline::together;
use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, ReasonCode};
use slab::Slab;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::cluster::Leader;
use super::ended::EndCause;
use super::node_lanes::NodeLanes;
use super::publish::Publication;
use crate::peers::{PIECE_BYTES, Peers, in_pieces, write_item};
use crate::plants::{Plant, is_planted};
use crate::replicated::command::{self, Command, LaneBatch, LaneMessage, MessageRecord, OutboxSettled, SessionCommand};
use crate::replicated::{LaneAnswer, PersistentSession, Slots};
use crate::subscription::NodeNumber;

/// A message whose publisher waits for groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter(pub(super) usize);

#[derive(Debug)]
pub(super) struct Waiting {
    /// Groups that have not answered.
    remaining: u32,
    /// By whom the message came, and what is to be settled there.
    pub(super) connection: Option<(ConnectionKey, Option<u64>)>,
    /// The worst that a group said.
    reason: ReasonCode,
}

/// When what gathered in a lane is sent, at the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Urgency {
    /// With what is said to the group next: nobody waits for it.
    #[default]
    Whenever,
    /// Once everything that was sent before is answered: so the busier a group is, the more of it goes together.
    BehindAnswers,
    /// When the turn ends: somebody waits for the answer.
    Now,
}

#[derive(Debug, Default)]
struct GroupLane {
    next: u64,
    gathered: Vec<LaneMessage>,
    /// Of what gathered, the highest.
    urgency: Urgency,
    /// Places in clients' windows that are free once the group has what gathered.
    frees: usize,
    /// The last number that was sent.
    sent: u64,
    /// Up to where the group has answered.
    answered: u64,
    unanswered: VecDeque<(u64, Waiter)>,
    /// Delayed messages that are not answered, by their numbers: a group may refuse them.
    delayed: VecDeque<u64>,
    /// What was proposed and is not answered, where it could be lost: with several nodes.
    kept: Option<Kept>,
}

impl GroupLane {
    /// Whether what gathered is sent when the turn ends.
    fn is_due(&self) -> bool {
        let is_due = match self.urgency {
            Urgency::Whenever => false,
            Urgency::BehindAnswers => self.answered >= self.sent,
            Urgency::Now => true,
        };
        is_due || self.gathered.len() >= UNHURRIED_MAX
    }

    fn is_silent(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.silent_seconds >= SILENT_SECONDS)
    }

    fn is_paused(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.outgoing.is_paused())
    }

    /// It is full, and its group answers nothing: who puts more into it waits, and nobody else.
    fn is_blocked(&self) -> bool {
        self.is_silent() && self.is_paused()
    }
}

/// What an arbiter keeps of a lane until it is answered.
#[derive(Debug)]
struct Kept {
    outgoing: Outgoing,
    leader: Option<Leader>,
    /// Up to where the group has answered.
    answered: u64,
    /// The same a second ago.
    answered_before: u64,
    /// How long it has not, though something is to be answered.
    silent_seconds: u32,
    /// The last resync found no room, or its rest did not.
    resync_held: bool,
    /// The first place of the rest; 0 if there is none.
    resync_from: u32,
}

/// Bytes that may wait in the lanes of one arbiter to one group before its publishers pause.
const KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Delayed messages that may wait in a lane for the group's answer. A group remembers twice as many refusals of a lane
/// (`REFUSED_MAX`); were there more, it would leave the rest of what is sent to it, and a resync that stands behind that would not be heard.
pub(super) const DELAYED_UNANSWERED_MAX: usize = 2048;

/// What may gather in a lane while nobody waits for it. At most a second passes, too.
const UNHURRIED_MAX: usize = 64;

/// What clients acknowledge may wait while less than the window of any of them, divided by this, waits with it.
const WINDOW_PARTS: usize = 4;

/// Seconds without an answer after which clients are not kept waiting for a group, nor all of them for a lane. Longer than a
/// lease lasts.
pub(super) const SILENT_SECONDS: u32 = 4;

/// A full lane whose group or node answers nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockedLane {
    Group(u16),
    Node(NodeNumber),
    /// As many delayed messages as may wait for the group's answer do.
    Delayed(u16),
}

/// A publish that every group answered.
#[derive(Debug)]
pub(super) struct Settled {
    /// The connection it came by, if it did.
    pub came_by: Option<ConnectionKey>,
    /// `None`: of QoS 0, which nobody is told of.
    pub ticket: Option<u64>,
    pub reason: ReasonCode,
}

/// The entry of the message at hand in a lane, to which something may be added.
#[derive(Debug, Clone, Copy)]
struct OwnEntry {
    group: u16,
    number: u64,
    /// Names of shared subscriptions in it.
    shares_bytes: usize,
}

/// An arbiter's lanes to all groups.
#[derive(Debug)]
pub struct Lanes {
    id: u64,
    node: u64,
    incarnation: u64,
    slots: Slots,
    groups: Vec<GroupLane>,
    pub(super) waiting: Slab<Waiting>,
    /// How many of those came by each connection: as many connections end at once as there are, and each asks.
    came_by: HashMap<ConnectionKey, usize, foldhash::fast::RandomState>,
    /// Of the message being routed, once a group is among its targets.
    current: Option<Waiter>,
    /// The last entries of that message in the lanes.
    own: Vec<OwnEntry>,
    /// Names of shared subscriptions that go in one entry, in bytes.
    shares_bytes_max: usize,
    touched: Vec<u16>,
    /// Something went into this one.
    touched_blocked: Option<BlockedLane>,
    acknowledged: Vec<(PersistentSession, ConnectionKey, AckKind, PacketId, ReasonCode)>,
    pub(super) nodes: NodeLanes,
}

impl Lanes {
    /// `among`: this node, where there are others, and how they are spoken with.
    pub(super) fn new(among: Option<(u64, &dyn Peers)>, incarnation: u64, arbiter: u16, groups: u16) -> Self {
        let node = among.map(|(node, _)| node);
        let batch_bytes_max = among.map_or(PIECE_BYTES, |(_, peers)| peers.piece_bytes());
        let kept = || {
            node.map(|_| Kept {
                outgoing: Outgoing::new(KEPT_BYTES_MAX, batch_bytes_max),
                leader: None,
                answered: 0,
                answered_before: 0,
                silent_seconds: 0,
                resync_held: false,
                resync_from: 0,
            })
        };
        Self {
            id: incarnation << 12 | u64::from(arbiter),
            node: node.unwrap_or(0),
            incarnation,
            slots: Slots::new(groups),
            groups: (0..groups).map(|_| GroupLane { kept: kept(), ..GroupLane::default() }).collect(),
            waiting: Slab::new(),
            came_by: HashMap::default(),
            current: None,
            own: Vec::new(),
            shares_bytes_max: batch_bytes_max,
            touched: Vec::new(),
            touched_blocked: None,
            acknowledged: Vec::new(),
            nodes: NodeLanes::new(batch_bytes_max, node.is_some() && incarnation == 0),
        }
    }

    /// Unlike that of any other arbiter, of this or an earlier start.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The group that keeps the retained message of a topic.
    pub(super) fn group_of(&self, topic: &str) -> u16 {
        self.slots.group_of(topic)
    }

    /// The message goes to the persistent sessions of `group`: those that subscribe, or a member of `share`.
    pub(super) fn publish(&mut self, group: u16, publication: &mut Publication<'_>, share: Option<String>) {
        let Some(share) = share else {
            self.entry(group, publication).match_subscriptions = true;
            return;
        };
        // There may be as many shared subscriptions as there are subscribers, and together their names are longer than a frame.
        let is_full = |own: &OwnEntry| {
            let is_own = own.group == group && own.shares_bytes > 0;
            is_own && own.shares_bytes + share.len() > self.shares_bytes_max
        };
        self.own.retain(|own| !is_full(own));
        self.entry(group, publication);
        if let Some(own) = self.own.iter_mut().rev().find(|own| own.group == group) {
            own.shares_bytes += share.len();
        }
        self.entry(group, publication).shares.push(share);
    }

    /// The message becomes (or, empty, removes) the retained message of its topic.
    pub(super) fn store_retained(&mut self, group: u16, publication: &mut Publication<'_>) {
        self.entry(group, publication).store_retained = true;
    }

    /// The entry of the publication at hand in a lane: its own, if it has one there that waits to be sent. Not whatever came last: what
    /// a delivery brought about, such as the end of a connection, may stand behind it.
    fn entry(&mut self, group: u16, publication: &mut Publication<'_>) -> &mut LaneMessage {
        let waiter = self.waiter();
        let own = self.own.iter().rev().find(|own| own.group == group).map(|own| own.number);
        let gathered = &self.groups[usize::from(group)].gathered;
        let at = own.and_then(|own| gathered.iter().rposition(|message| message.number == own)).unwrap_or_else(|| {
            let record = MessageRecord::from_message(&publication.share_message(), 0);
            let number = self.push(group, LaneMessage { message: Some(record), ..LaneMessage::default() }, waiter);
            self.own.push(OwnEntry { group, number, shares_bytes: 0 });
            self.groups[usize::from(group)].gathered.len() - 1
        });
        &mut self.groups[usize::from(group)].gathered[at]
    }

    /// The message waits in the group's outbox for `delay_ms`, and then goes to `topic`.
    pub(super) fn delay(
        &mut self,
        group: u16,
        publication: &mut Publication<'_>,
        topic: &str,
        delay_ms: u64,
        now_ms: u64,
    ) -> Waiter {
        let waiter = self.waiter();
        let mut record = MessageRecord::from_message(&publication.share_message(), 0);
        record.topic = topic.to_owned();
        let delay_ms = Some(now_ms.saturating_add(delay_ms));
        let number =
            self.push(group, LaneMessage { message: Some(record), delay_ms, ..LaneMessage::default() }, waiter);
        self.groups[usize::from(group)].delayed.push_back(number);
        if self.is_blocked(BlockedLane::Delayed(group)) {
            self.touched_blocked = Some(BlockedLane::Delayed(group));
        }
        self.current = None;
        waiter
    }

    /// What a client did, for the group that keeps its session. Its effects come as events of their own.
    pub(super) fn command(&mut self, group: u16, command: SessionCommand) {
        self.gather(group, LaneMessage { command: Some(command), ..LaneMessage::default() });
    }

    /// Whose lanes they are; 0: nobody's, as the node is not registered.
    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// What a client did, of which nobody waits to hear: it goes with what is said to the group next.
    pub(super) fn command_without_hurry(&mut self, group: u16, command: SessionCommand) {
        self.gather_for(Urgency::Whenever, group, LaneMessage { command: Some(command), ..LaneMessage::default() });
    }

    /// What a client acknowledged. `frees` so many of the `window` messages that may be on their way to it; 0: it waits for an answer
    /// itself.
    fn acknowledged(&mut self, group: u16, frees: usize, window: u16, command: SessionCommand) {
        let lane = &mut self.groups[usize::from(group)];
        lane.frees += frees;
        // Whoever could be sent the next message only after this must not wait for it.
        let has_room = frees > 0 && lane.frees * WINDOW_PARTS < usize::from(window);
        let urgency = if has_room { Urgency::BehindAnswers } else { Urgency::Now };
        self.gather_for(urgency, group, LaneMessage { command: Some(command), ..LaneMessage::default() });
    }

    /// Whether something in the lane has waited for what the group answered, and is to be sent when the turn ends.
    pub(super) fn is_due(&self, group: u16) -> bool {
        self.groups.get(usize::from(group)).is_some_and(|lane| !lane.gathered.is_empty() && lane.is_due())
    }

    /// What a client did, and the connection by which it came waits for the group's answer.
    pub(super) fn command_of(&mut self, connection: ConnectionKey, group: u16, command: SessionCommand) {
        let waiting = Waiting { remaining: 0, connection: None, reason: ReasonCode::Success };
        let waiter = Waiter(self.waiting.insert(waiting));
        self.answer_to(waiter, connection, None);
        self.push(group, LaneMessage { command: Some(command), ..LaneMessage::default() }, waiter);
    }

    /// What became of a message that the group's outbox has for a member here. Returns its number in the lane.
    pub(super) fn settle_outbox(&mut self, group: u16, position: u64, given_back: bool) -> u64 {
        let command = Some(SessionCommand::OutboxSettled(OutboxSettled { position, given_back }));
        self.gather(group, LaneMessage { command, ..LaneMessage::default() })
    }

    fn push(&mut self, group: u16, message: LaneMessage, waiter: Waiter) -> u64 {
        let number = self.gather(group, message);
        self.groups[usize::from(group)].unanswered.push_back((number, waiter));
        self.wait_for_one_more(waiter);
        number
    }

    /// No frame could hold what has this number in the lane, which goes on without it: who waits for it hears so with the answer. Returns a
    /// connection that asked its group for something, and would wait for that in vain.
    fn refuse(&mut self, group: u16, number: u64, is_command: bool) -> Option<ConnectionKey> {
        let unanswered = &self.groups.get(usize::from(group))?.unanswered;
        let (_, waiter) = *unanswered.iter().rev().find(|(unanswered, _)| *unanswered == number)?;
        self.refuse_to(waiter);
        self.waiting.get(waiter.0)?.connection.filter(|_| is_command).map(|(connection, _)| connection)
    }

    /// Who waits for this hears that it is refused, once all else is answered.
    pub(super) fn refuse_to(&mut self, waiter: Waiter) {
        if let Some(waiting) = self.waiting.get_mut(waiter.0) {
            waiting.reason = ReasonCode::QuotaExceeded;
        }
    }

    pub(super) fn wait_for_one_more(&mut self, waiter: Waiter) {
        self.waiting[waiter.0].remaining += 1;
    }

    fn gather(&mut self, group: u16, message: LaneMessage) -> u64 {
        self.gather_for(Urgency::Now, group, message)
    }

    /// Gives the next thing in the lane its number.
    fn gather_for(&mut self, urgency: Urgency, group: u16, mut message: LaneMessage) -> u64 {
        let lane = &mut self.groups[usize::from(group)];
        lane.urgency = lane.urgency.max(urgency);
        if lane.is_blocked() {
            self.touched_blocked = Some(BlockedLane::Group(group));
        }
        lane.next += 1;
        message.number = lane.next;
        if lane.gathered.is_empty() {
            self.touched.push(group);
        }
        lane.gathered.push(message);
        lane.next
    }

    pub(super) fn waiter(&mut self) -> Waiter {
        *self.current.get_or_insert_with(|| {
            self.own.clear();
            Waiter(self.waiting.insert(Waiting { remaining: 0, connection: None, reason: ReasonCode::Success }))
        })
    }

    /// Ends the message at hand: who waits for groups, if any are among its targets.
    #[inline]
    pub(super) fn take_waiter(&mut self) -> Option<Waiter> {
        self.current.take()
    }

    /// Who is told when all groups have answered.
    pub(super) fn answer_to(&mut self, waiter: Waiter, connection: ConnectionKey, ticket: Option<u64>) {
        let Some(waiting) = self.waiting.get_mut(waiter.0) else {
            return;
        };
        if let Some((before, _)) = waiting.connection.replace((connection, ticket)) {
            self.forget_one_of(before);
        }
        *self.came_by.entry(connection).or_default() += 1;
    }

    /// Messages that came by `key` and that some group has not answered for.
    pub(super) fn under_way(&self, key: ConnectionKey) -> usize {
        self.came_by.get(&key).copied().unwrap_or(0)
    }

    fn forget_one_of(&mut self, key: ConnectionKey) {
        if let Entry::Occupied(mut count) = self.came_by.entry(key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// What gathered goes into the lane for good. Returns a connection that would wait in vain for what it asked for.
    fn keep(&mut self, group: u16, message: &LaneMessage) -> Option<ConnectionKey> {
        let number = message.number;
        let mut too_long = None;
        self.kept(group)?.outgoing.push_at(number, |out| {
            let place = || LaneMessage { number, ..LaneMessage::default() };
            let write = command::encode_lane_message;
            too_long = write_item(out, |out| write(message, out), |out| write(&place(), out));
        });
        let bytes = too_long?;
        let kind = message.command.as_ref().map_or("message", SessionCommand::kind);
        tracing::error!(
            group,
            kind,
            bytes,
            "what is said to a group is longer than a frame may be, and is refused; this is a mistake of the broker, please report it"
        );
        self.refuse(group, number, message.command.is_some())
    }

    /// Who leads a group, as far as this arbiter was told.
    pub(super) fn leader(&self, group: u16) -> Option<Leader> {
        self.groups.get(usize::from(group))?.kept.as_ref()?.leader
    }

    /// Whatever the lane has is to be sent again, to this one.
    pub(super) fn set_leader(&mut self, group: u16, leader: Option<Leader>) {
        if let Some(kept) = self.kept(group) {
            // One that asks again as before may have what was said of the resync, which goes on from there: beginning anew, one that
            // is long would never come to its end.
            if std::mem::replace(&mut kept.leader, leader) != leader {
                kept.resync_from = 0;
            }
            kept.resync_held = false;
            kept.outgoing.on_reset();
        }
    }

    /// The next batch for a group that has a leader, as a command for it.
    pub(super) fn next_batch(&mut self, group: u16, clock_ms: u64) -> Option<(Leader, Bytes)> {
        let (lane, node, incarnation) = (self.id, self.node, self.incarnation);
        let kept = self.kept(group)?;
        let leader = kept.leader?;
        let batch = kept.outgoing.next_batch()?;
        let (answered, previous) = (kept.answered, batch.previous);
        let head = LaneBatch { lane, incarnation, node, answered, previous, messages: vec![], clock_ms };
        Some((leader, command::encode_lane(&head, &batch.payload)))
    }

    /// There was no room for a batch: it is tried again in a second.
    pub(super) fn hold(&mut self, group: u16) {
        if let Some(kept) = self.kept(group) {
            kept.outgoing.on_reset();
        }
    }

    /// The last number in the lane, if all of it was sent to the present leader.
    pub(super) fn sent_up_to(&self, group: u16) -> Option<u64> {
        let lane = self.groups.get(usize::from(group))?;
        let is_sent = lane.gathered.is_empty() && lane.kept.as_ref().is_none_or(|kept| kept.outgoing.is_sent());
        (is_sent || is_planted(Plant::ResyncAhead)).then_some(lane.next)
    }

    /// The first place of the connections of which the present leader was not told in this resync.
    pub(super) fn resync_from(&self, group: u16) -> u32 {
        let kept = self.groups.get(usize::from(group)).and_then(|lane| lane.kept.as_ref());
        kept.map_or(0, |kept| kept.resync_from)
    }

    /// The leader was told of those before; `None`: of all.
    pub(super) fn set_resync_from(&mut self, group: u16, place: Option<u32>) {
        if let Some(kept) = self.kept(group) {
            kept.resync_from = place.unwrap_or(0);
        }
    }

    /// There was no room for a resync or its rest, or for what goes before it.
    pub(super) fn hold_resync(&mut self, group: u16) {
        if let Some(kept) = self.kept(group) {
            kept.resync_held = true;
        }
    }

    /// The groups whose lanes made no progress since this was asked last, which try again, and those whose resync found no
    /// room.
    pub(super) fn stuck(&mut self) -> (Vec<u16>, Vec<u16>) {
        let (mut lanes, mut resyncs) = (Vec::new(), Vec::new());
        for (group, lane) in self.groups.iter_mut().enumerate() {
            let Some(kept) = &mut lane.kept else {
                continue;
            };
            if std::mem::take(&mut kept.resync_held) {
                resyncs.push(group as u16);
            }
            if !kept.outgoing.is_settled() && kept.answered == kept.answered_before {
                kept.outgoing.on_silence();
                kept.silent_seconds = kept.silent_seconds.saturating_add(1);
                lanes.push(group as u16);
            } else {
                kept.silent_seconds = 0;
            }
            kept.answered_before = kept.answered;
        }
        (lanes, resyncs)
    }

    /// Whether a group has answered nothing for longer than it takes to find another leader: it has no majority, as far as can
    /// be seen from here.
    pub(super) fn is_silent(&self, group: u16) -> bool {
        self.groups.get(usize::from(group)).is_some_and(GroupLane::is_silent)
    }

    pub(super) fn is_any_silent(&self) -> bool {
        self.groups.iter().any(GroupLane::is_silent)
    }

    /// Whether publishers should pause until groups and nodes have answered. For those that answer nothing only they wait who
    /// have something for them ([`Self::take_touched_blocked`]): it may take for ever.
    pub(super) fn is_paused(&self) -> bool {
        self.groups.iter().any(|lane| lane.is_paused() && !lane.is_silent()) || self.nodes.is_paused()
    }

    /// Whether the lane to this group is full.
    pub(super) fn is_full(&self, group: u16) -> bool {
        self.groups.get(usize::from(group)).is_some_and(GroupLane::is_paused)
    }

    /// Whether this lane is still full, and its group or node answers nothing.
    pub(super) fn is_blocked(&self, lane: BlockedLane) -> bool {
        match lane {
            BlockedLane::Group(group) => self.groups.get(usize::from(group)).is_some_and(GroupLane::is_blocked),
            BlockedLane::Node(node) => self.nodes.is_blocked(node),
            BlockedLane::Delayed(group) => {
                let lane = self.groups.get(usize::from(group)).filter(|lane| lane.kept.is_some());
                lane.is_some_and(|lane| lane.delayed.len() >= DELAYED_UNANSWERED_MAX)
            }
        }
    }

    /// A lane that is so, if something went into one since this was asked last.
    pub(super) fn take_touched_blocked(&mut self) -> Option<BlockedLane> {
        self.nodes.take_touched_blocked().or(self.touched_blocked.take())
    }

    /// Whether the delayed messages in a lane are as many as may be, and the packet at hand put one more there.
    pub(super) fn is_touched_for_delayed(&self) -> bool {
        matches!(self.touched_blocked, Some(BlockedLane::Delayed(_)))
    }

    /// How much each group has not answered for, where that could be lost.
    pub(super) fn held(&self) -> Vec<u64> {
        let held = |lane: &GroupLane| lane.kept.as_ref().map_or(0, |kept| lane.next.saturating_sub(kept.answered));
        self.groups.iter().map(held).collect()
    }

    /// What nobody waits for any more, once everything came to rest.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn leftovers(&self) -> Vec<String> {
        let mut left = self.nodes.leftovers();
        if !self.waiting.is_empty() {
            left.push(format!("{} messages that wait for groups and nodes", self.waiting.len()));
        }
        if !self.came_by.is_empty() {
            left.push(format!("counts of what came by {} connections", self.came_by.len()));
        }
        for (group, lane) in self.groups.iter().enumerate() {
            let is_settled = lane.kept.as_ref().is_none_or(|kept| kept.outgoing.is_settled());
            if !(lane.gathered.is_empty() && lane.unanswered.is_empty() && is_settled) {
                left.push(format!("something in the lane to group {group}"));
            }
        }
        left
    }

    fn kept(&mut self, group: u16) -> Option<&mut Kept> {
        self.groups.get_mut(usize::from(group))?.kept.as_mut()
    }

    /// A subscriber's acknowledgement, for the group that keeps its session.
    pub(super) fn acknowledge(
        &mut self,
        session: PersistentSession,
        connection: ConnectionKey,
        kind: AckKind,
        packet_id: PacketId,
        reason: ReasonCode,
    ) {
        self.acknowledged.push((session, connection, kind, packet_id, reason));
    }

    /// A publisher's PUBREL, for the group that keeps its session.
    pub(super) fn release(&mut self, session: PersistentSession, connection: ConnectionKey, packet_id: PacketId) {
        self.acknowledged.push((session, connection, AckKind::PubRel, packet_id, ReasonCode::Success));
    }

    /// A group has answered up to a number. Returns whether something waits to be sent because of that.
    pub(super) fn on_answer(&mut self, answer: &LaneAnswer, settled: &mut Vec<Settled>) -> bool {
        let Some(lane) = self.groups.get_mut(usize::from(answer.group)) else {
            return false;
        };
        let mut goes_on = false;
        lane.answered = lane.answered.max(answer.number);
        while lane.delayed.pop_front_if(|number| *number <= answer.number).is_some() {}
        if let Some(kept) = &mut lane.kept {
            kept.answered = kept.answered.max(answer.number);
            let has_progress = kept.outgoing.on_answer(answer.number).is_some();
            // The group remembers no more refusals before this arbiter has said what it knows of.
            if has_progress && kept.outgoing.is_answered_in_part() {
                kept.outgoing.on_reset();
                goes_on = true;
            }
            goes_on |= kept.outgoing.is_trying();
        }
        while let Some((number, waiter)) =
            self.groups[usize::from(answer.group)].unanswered.pop_front_if(|(number, _)| *number <= answer.number)
        {
            let refused = answer.refused.iter().find(|(refused, _)| *refused == number);
            self.settle_one(waiter, refused.map_or(ReasonCode::Success, |(_, reason)| *reason), settled);
        }
        goes_on
    }

    /// One of those that `waiter` waits for has answered.
    pub(super) fn settle_one(&mut self, waiter: Waiter, reason: ReasonCode, settled: &mut Vec<Settled>) {
        let Some(waiting) = self.waiting.get_mut(waiter.0) else {
            return;
        };
        if reason != ReasonCode::Success {
            waiting.reason = reason;
        }
        waiting.remaining -= 1;
        if waiting.remaining == 0 {
            let Waiting { connection, reason, .. } = self.waiting.remove(waiter.0);
            if connection.is_some() || reason.is_error() {
                let came_by = connection.map(|(came_by, _)| came_by);
                came_by.into_iter().for_each(|key| self.forget_one_of(key));
                settled.push(Settled { came_by, ticket: connection.and_then(|(_, ticket)| ticket), reason });
            }
        }
    }
}

impl ArbiterState {
    /// Proposes what gathered.
    ///
    /// And before that, what gathered for other arbiters: a live copy must be in their inboxes before a group can answer a
    /// retained read that knows of the same message, or grant the claim of the session's next connection.
    pub(super) fn flush_lanes(&mut self) {
        self.flush_lanes_but(|_| false);
    }

    /// At the end of a turn: what nobody waits for may gather for longer.
    pub(super) fn flush_hurried_lanes(&mut self) {
        self.flush_lanes_but(|lane| !lane.is_due());
    }

    fn flush_lanes_but(&mut self, stays: fn(&GroupLane) -> bool) {
        self.flush_batches();
        self.gather_acknowledged();
        self.flush_node_lanes();
        together(|| self.flush_groups(stays));
    }

    fn flush_groups(&mut self, stays: fn(&GroupLane) -> bool) {
        let mut asked_in_vain = Vec::new();
        for group in std::mem::take(&mut self.lanes.touched) {
            if stays(&self.lanes.groups[usize::from(group)]) {
                self.lanes.touched.push(group);
                continue;
            }
            let own = &mut self.lanes.groups[usize::from(group)];
            (own.urgency, own.frees, own.sent) = (Urgency::default(), 0, own.next);
            let messages = std::mem::take(&mut own.gathered);
            if self.lanes.kept(group).is_some() {
                for message in messages {
                    asked_in_vain.extend(self.lanes.keep(group, &message));
                }
                self.send_lane(group);
                continue;
            }
            let mut previous = messages.first().map_or(0, |first| first.number - 1);
            let (lane, incarnation, clock_ms) = (self.lanes.id, self.lanes.incarnation, self.now_ms);
            // Others may join this node, and are sent what is in its log.
            for messages in in_pieces(messages, PIECE_BYTES) {
                let last = messages.last().map_or(previous, |last| last.number);
                let batch = LaneBatch { lane, incarnation, messages, previous, clock_ms, ..LaneBatch::default() };
                self.shared.submitter.propose(group, Command::Lane(batch));
                previous = last;
            }
        }
        for connection in asked_in_vain {
            self.end(connection, EndCause::NotCarried, Some(ReasonCode::QuotaExceeded));
        }
    }

    /// What clients acknowledged goes into the lanes of their groups, in front of what is said to those from here on.
    pub(super) fn gather_acknowledged(&mut self) {
        let acknowledged = std::mem::take(&mut self.lanes.acknowledged);
        if !acknowledged.is_empty() {
            self.gather_acknowledgements(acknowledged);
        }
    }

    /// Those of one connection become one command.
    fn gather_acknowledgements(
        &mut self,
        mut acknowledged: Vec<(PersistentSession, ConnectionKey, AckKind, PacketId, ReasonCode)>,
    ) {
        // Stable: within a session they stay in the order in which they came.
        acknowledged.sort_by_key(|(_, connection, ..)| *connection);
        for run in acknowledged.chunk_by(|first, second| first.1 == second.1) {
            let (session, connection, ..) = run[0];
            let Some(client) = self.client(connection) else {
                continue;
            };
            let client_id = std::sync::Arc::clone(&client.client_id);
            let window = client.session.as_ref().map_or(0, |session| session.outbound.limits().window_max);
            let is_awaited = |kind| matches!(kind, AckKind::PubRec | AckKind::PubRel);
            let frees = if run.iter().any(|&(_, _, kind, ..)| is_awaited(kind)) { 0 } else { run.len() };
            let items = run.iter().map(|&(_, _, kind, packet_id, reason)| (kind, packet_id, reason));
            let command = SessionCommand::acknowledge(&client_id, session, items);
            self.lanes.acknowledged(session.group, frees, window, command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{ITEM_BYTES_MAX, NoPeers};

    /// A node that has a lease may hear nothing of a group: those who keep it are not those who vote in the directory.
    #[test]
    fn a_group_is_silent_that_answers_nothing_for_longer_than_an_election() {
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 7, 0, 2);
        let say = |lanes: &mut Lanes, number| {
            if let Some(kept) = lanes.kept(1) {
                kept.outgoing.push_at(number, |_| {});
            }
        };
        say(&mut lanes, 1);
        for second in 1..SILENT_SECONDS {
            assert_eq!(lanes.stuck(), (vec![1], vec![]), "second {second}: it is tried again");
            assert!(!lanes.is_silent(1));
        }
        lanes.stuck();
        assert!(lanes.is_silent(1) && !lanes.is_silent(0), "nothing was said to the other one");
        say(&mut lanes, 2);
        lanes.on_answer(&LaneAnswer { group: 1, number: 1, refused: vec![] }, &mut Vec::new());
        assert_eq!(lanes.stuck(), (vec![], vec![]));
        assert!(!lanes.is_silent(1), "it has answered something");
    }

    /// It may be so for ever, and the other groups are well.
    #[test]
    fn a_full_lane_of_a_silent_group_makes_nobody_pause_who_has_nothing_for_it() {
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 7, 0, 2);
        let disconnect = || SessionCommand::never_began("c", PersistentSession { group: 0, epoch: 1 });
        if let Some(kept) = lanes.kept(1) {
            kept.outgoing.push_at(1, |out| out.resize(KEPT_BYTES_MAX, 0));
        }
        assert!(lanes.is_paused() && lanes.is_full(1) && !lanes.is_full(0));
        lanes.command(1, disconnect());
        assert_eq!(lanes.take_touched_blocked(), None, "it may answer: all wait");
        (0..SILENT_SECONDS).for_each(|_| drop(lanes.stuck()));
        assert!(!lanes.is_paused() && lanes.is_full(1));
        lanes.command(0, disconnect());
        assert_eq!(lanes.take_touched_blocked(), None);
        lanes.command(1, disconnect());
        assert_eq!(lanes.take_touched_blocked(), Some(BlockedLane::Group(1)));
        assert_eq!([0, 1].map(|group| lanes.is_blocked(BlockedLane::Group(group))), [false, true]);
    }

    /// P6: PUBACK says that it is stored. What a delivery brings about comes between the two parts of its entry.
    #[test]
    fn what_is_said_between_the_parts_of_an_entry_takes_none_of_them() {
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 7, 0, 2);
        let mut publication = crate::router::node_lanes::tests::publication(kentongan_proto::mqtt::QoS::AtLeastOnce);
        for _ in 0..2 {
            lanes.publish(1, &mut publication, None);
            lanes.command(1, SessionCommand::never_began("c", PersistentSession { group: 1, epoch: 1 }));
            lanes.store_retained(1, &mut publication);
            assert!(lanes.take_waiter().is_some());
        }
        let what =
            |message: &LaneMessage| (message.match_subscriptions, message.store_retained, message.command.is_some());
        let gathered: Vec<_> = lanes.groups[1].gathered.iter().map(what).collect();
        let (entry, command) = ((true, true, false), (false, false, true));
        assert_eq!(gathered, [entry, command, entry, command]);
        assert_eq!(lanes.groups[1].unanswered.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 3]);
    }

    /// There may be as many shared subscriptions as there are subscribers: all their names in one entry would be more than a frame holds, and
    /// that entry would wait for ever, with all that stands behind it.
    #[test]
    fn names_of_shared_subscriptions_beyond_a_piece_go_in_further_entries_and_all_are_waited_for() {
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 7, 0, 2);
        let mut publication = crate::router::node_lanes::tests::publication(kentongan_proto::mqtt::QoS::AtLeastOnce);
        let shares: Vec<String> = (0..40).map(|number| format!("$share/{number:060000}/t")).collect();
        shares.iter().for_each(|share| lanes.publish(1, &mut publication, Some(share.clone())));
        lanes.publish(1, &mut publication, None);
        lanes.store_retained(1, &mut publication);
        let connection = ConnectionKey::new(0, 1, 1);
        let waiter = lanes.take_waiter().expect("a group");
        lanes.answer_to(waiter, connection, Some(9));
        let gathered = &lanes.groups[1].gathered;
        assert_eq!(gathered.iter().map(|message| message.number).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(gathered.iter().all(|message| message.message.is_some()));
        assert_eq!(gathered.iter().flat_map(|message| message.shares.clone()).collect::<Vec<_>>(), shares);
        let bytes = |message: &LaneMessage| message.shares.iter().map(String::len).sum::<usize>();
        assert!(gathered.iter().all(|message| bytes(message) <= PIECE_BYTES));
        let is_direct = |message: &LaneMessage| (message.match_subscriptions, message.store_retained);
        assert_eq!(gathered.iter().map(is_direct).collect::<Vec<_>>(), [(false, false), (false, false), (true, true)]);

        let mut settled = Vec::new();
        lanes.on_answer(&LaneAnswer { group: 1, number: 2, refused: vec![] }, &mut settled);
        assert_eq!(settled.len(), 0);
        lanes.on_answer(&LaneAnswer { group: 1, number: 3, refused: vec![] }, &mut settled);
        assert_eq!(
            settled.iter().map(|settled| (settled.ticket, settled.reason)).collect::<Vec<_>>(),
            [(Some(9), ReasonCode::Success)]
        );
    }

    /// Whoever made it that long: the lane goes on, and who waits hears of it.
    #[test]
    fn what_no_frame_holds_is_refused_and_what_stands_behind_it_goes_on() {
        use kentongan_proto::mqtt::QoS;

        let mut lanes = Lanes::new(Some((1, &NoPeers)), 7, 0, 1);
        let payload = vec![0; ITEM_BYTES_MAX];
        let small = || crate::router::node_lanes::tests::publication(QoS::AtLeastOnce);
        let mut large = Publication { payload: crate::router::publish::Payload::copied(&payload), ..small() };
        let connection = |place| ConnectionKey::new(0, place, 1);
        for (publication, ticket) in [(&mut large, 1), (&mut small(), 2)] {
            lanes.publish(0, publication, None);
            let waiter = lanes.take_waiter().expect("a group");
            lanes.answer_to(waiter, connection(1), Some(ticket));
        }
        let session = PersistentSession { group: 0, epoch: 1 };
        let client_id = "c".repeat(ITEM_BYTES_MAX);
        lanes.command_of(connection(2), 0, SessionCommand::never_began(&client_id, session));
        let messages = std::mem::take(&mut lanes.groups[0].gathered);
        let in_vain: Vec<_> = messages.iter().filter_map(|message| lanes.keep(0, message)).collect();
        assert_eq!(in_vain, [connection(2)], "nothing else would tell its client");

        lanes.set_leader(0, Some(Leader { node: 2, term: 1, round: 0 }));
        let batches =
            std::iter::from_fn(|| lanes.next_batch(0, 0)).flat_map(|(_, batch)| match command::decode(batch) {
                Ok(command::Entry { command: Some(Command::Lane(batch)), .. }) => batch.messages,
                other => panic!("a batch of a lane: {other:?}"),
            });
        let said: Vec<_> = batches.map(|message| (message.number, message.message.is_some())).collect();
        assert_eq!(said, [(1, false), (2, true), (3, false)]);
        let mut settled = Vec::new();
        lanes.on_answer(&LaneAnswer { group: 0, number: 3, refused: vec![] }, &mut settled);
        let settled: Vec<_> = settled.iter().map(|settled| (settled.ticket, settled.reason)).collect();
        let refused = ReasonCode::QuotaExceeded;
        assert_eq!(settled, [(Some(1), refused), (Some(2), ReasonCode::Success), (None, refused)]);
    }

    /// A group that remembers no more refusals takes a part of a batch, and nothing behind it.
    #[test]
    fn what_a_group_left_of_a_batch_is_sent_again_at_once_and_says_what_is_known() {
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 7, 0, 1);
        lanes.set_leader(0, Some(Leader { node: 2, term: 1, round: 0 }));
        let sent = |lanes: &mut Lanes| {
            let batches = std::iter::from_fn(|| lanes.next_batch(0, 0));
            let head = |(_, batch)| match command::decode(batch) {
                Ok(command::Entry { command: Some(Command::Lane(batch)), .. }) => (batch.previous, batch.answered),
                other => panic!("a batch of a lane: {other:?}"),
            };
            batches.map(head).collect::<Vec<_>>()
        };
        for last in [2, 4] {
            for number in last - 1..=last {
                let message = LaneMessage { number, ..LaneMessage::default() };
                let kept = lanes.kept(0).expect("one of several nodes");
                kept.outgoing.push_at(number, |out| command::encode_lane_message(&message, out));
            }
            assert_eq!(sent(&mut lanes), [(last - 2, 0)]);
        }
        let answer = |lanes: &mut Lanes, number| {
            lanes.on_answer(&LaneAnswer { group: 0, number, refused: vec![] }, &mut Vec::new())
        };
        assert!(answer(&mut lanes, 1));
        assert_eq!(sent(&mut lanes), [(0, 1), (2, 1)]);
        assert!(!answer(&mut lanes, 1), "that of the batch behind it");
        assert_eq!(sent(&mut lanes), []);
        assert!(!answer(&mut lanes, 2) && !answer(&mut lanes, 4));
    }
}
