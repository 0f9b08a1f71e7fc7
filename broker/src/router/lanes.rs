//! The way from an arbiter to the groups, and what waits for their answers.
//!
//! A lane is (this arbiter, a group): its messages carry consecutive numbers, so that the group applies each exactly
//! once and in order, whoever leads it. What gathers during a turn is proposed as one command.

use std::collections::VecDeque;

use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, ReasonCode};
use slab::Slab;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::publish::Publication;
use crate::replicated::command::{Command, LaneBatch, LaneMessage, MessageRecord};
use crate::replicated::{LaneAnswer, PersistentSession, Slots};

/// A message whose publisher waits for groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter(usize);

#[derive(Debug)]
struct Waiting {
    /// Groups that have not answered.
    remaining: u32,
    connection: Option<(ConnectionKey, u64)>,
    /// The worst that a group said.
    reason: ReasonCode,
}

#[derive(Debug, Default)]
struct GroupLane {
    next: u64,
    gathered: Vec<LaneMessage>,
    unanswered: VecDeque<(u64, Waiter)>,
}

/// A publish that every group answered.
#[derive(Debug)]
pub(super) struct Settled {
    /// Who is to be told under which ticket, if anybody is.
    pub waits: Option<(ConnectionKey, u64)>,
    pub reason: ReasonCode,
}

/// An arbiter's lanes to all groups.
#[derive(Debug)]
pub struct Lanes {
    id: u64,
    incarnation: u64,
    slots: Slots,
    groups: Vec<GroupLane>,
    waiting: Slab<Waiting>,
    /// Of the message being routed, once a group is among its targets.
    current: Option<Waiter>,
    touched: Vec<u16>,
    acknowledged: Vec<(PersistentSession, ConnectionKey, AckKind, PacketId, ReasonCode)>,
}

impl Lanes {
    pub(super) fn new(incarnation: u64, arbiter: u16, groups: u16) -> Self {
        Self {
            id: incarnation << 12 | u64::from(arbiter),
            incarnation,
            slots: Slots::new(groups),
            groups: (0..groups).map(|_| GroupLane::default()).collect(),
            waiting: Slab::new(),
            current: None,
            touched: Vec::new(),
            acknowledged: Vec::new(),
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
    pub(super) fn publish(
        &mut self,
        group: u16,
        publication: &mut Publication<'_>,
        now_ms: u64,
        share: Option<String>,
    ) {
        let message = self.entry(group, publication, now_ms);
        match share {
            Some(share) => message.shares.push(share),
            None => message.match_subscriptions = true,
        }
    }

    /// The message becomes (or, empty, removes) the retained message of its topic.
    pub(super) fn store_retained(&mut self, group: u16, publication: &mut Publication<'_>, now_ms: u64) {
        self.entry(group, publication, now_ms).store_retained = true;
    }

    /// The entry of the publication at hand in a lane: the last one, if that is its own already.
    fn entry(&mut self, group: u16, publication: &mut Publication<'_>, now_ms: u64) -> &mut LaneMessage {
        let waiter = self.waiter();
        let lane = &mut self.groups[usize::from(group)];
        let own = lane.unanswered.back().is_some_and(|&(_, last)| last == waiter) && !lane.gathered.is_empty();
        if !own {
            let record = MessageRecord::from_message(&publication.share_message(), now_ms);
            self.push(group, LaneMessage { message: Some(record), ..LaneMessage::default() }, waiter);
        }
        let Some(last) = self.groups[usize::from(group)].gathered.last_mut() else {
            unreachable!("pushed above");
        };
        last
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
        let mut record = MessageRecord::from_message(&publication.share_message(), now_ms);
        record.topic = topic.to_owned();
        self.push(
            group,
            LaneMessage { message: Some(record), delay_ms: Some(delay_ms), ..LaneMessage::default() },
            waiter,
        );
        self.current = None;
        waiter
    }

    fn push(&mut self, group: u16, mut message: LaneMessage, waiter: Waiter) {
        let lane = &mut self.groups[usize::from(group)];
        lane.next += 1;
        message.number = lane.next;
        lane.unanswered.push_back((lane.next, waiter));
        if lane.gathered.is_empty() {
            self.touched.push(group);
        }
        lane.gathered.push(message);
        self.waiting[waiter.0].remaining += 1;
    }

    fn waiter(&mut self) -> Waiter {
        *self.current.get_or_insert_with(|| {
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
        if let Some(waiting) = self.waiting.get_mut(waiter.0) {
            waiting.connection = ticket.map(|ticket| (connection, ticket));
        }
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

    /// A group has answered up to a number.
    pub(super) fn on_answer(&mut self, answer: &LaneAnswer, settled: &mut Vec<Settled>) {
        let lane = &mut self.groups[usize::from(answer.group)];
        while let Some(&(number, waiter)) = lane.unanswered.front() {
            if number > answer.number {
                break;
            }
            lane.unanswered.pop_front();
            let Some(waiting) = self.waiting.get_mut(waiter.0) else {
                continue;
            };
            if let Some((_, reason)) = answer.refused.iter().find(|(refused, _)| *refused == number) {
                waiting.reason = *reason;
            }
            waiting.remaining -= 1;
            if waiting.remaining == 0 {
                let Waiting { connection: waits, reason, .. } = self.waiting.remove(waiter.0);
                if waits.is_some() || reason.is_error() {
                    settled.push(Settled { waits, reason });
                }
            }
        }
    }
}

impl ArbiterState {
    /// Proposes what gathered: acknowledgements first, they came from packets before.
    pub(super) fn flush_lanes(&mut self) {
        let acknowledged = std::mem::take(&mut self.lanes.acknowledged);
        if !acknowledged.is_empty() {
            self.propose_acknowledgements(acknowledged);
        }
        for group in std::mem::take(&mut self.lanes.touched) {
            let lane = self.lanes.id;
            let incarnation = self.lanes.incarnation;
            let messages = std::mem::take(&mut self.lanes.groups[usize::from(group)].gathered);
            let batch = LaneBatch { lane, incarnation, messages, ..LaneBatch::default() };
            self.shared.submitter.propose(group, Command::Lane(batch));
        }
    }

    fn propose_acknowledgements(
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
            let items = run.iter().map(|&(_, _, kind, packet_id, reason)| (kind, packet_id, reason));
            self.shared.submitter.acknowledge(session, &client_id, items);
        }
    }
}
