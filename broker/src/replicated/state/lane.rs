//! Messages that come by the lanes: matched against the subscriptions committed before them, or kept.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use kentongan_proto::mqtt::ReasonCode;

use super::{GroupConfig, GroupState, LaneState, REFUSED_MAX, Timer};
use crate::later::DELAYED_BYTES_LEVEL;
use crate::message::Message;
use crate::plants::{Plant, is_planted};
use crate::replicated::command::{self, SessionCommand};
use crate::replicated::effect::Effect;
use crate::replicated::store::Key;

/// A payload is a part of its whole batch, which would be kept as long as any message of it waits: one that is small beside a
/// batch is copied.
const OWN_PAYLOAD_BYTES_MAX: usize = 16 * 1024;

impl GroupState {
    pub(super) fn lane(&mut self, batch: command::LaneBatch, effects: &mut Vec<Effect>) {
        if self.is_fenced(batch.node, batch.incarnation) {
            return;
        }
        let key = (batch.node, batch.lane);
        let fresh = || LaneState { incarnation: batch.incarnation, last: 0, refused: VecDeque::new() };
        // Its place stays: to take it out and put it in again costs more than many a command.
        let mut lane = std::mem::replace(self.lanes.entry(key).or_insert_with(fresh), fresh());
        lane.incarnation = lane.incarnation.max(batch.incarnation);
        while lane.refused.front().is_some_and(|&(number, _)| number <= batch.answered) {
            lane.refused.pop_front();
        }
        // Applied over a gap, what was lost in between would be taken for a repetition when it comes again.
        if batch.previous > lane.last {
            effects.push(lane_answered(batch.node, batch.lane, &lane, 0));
            return self.put_back(key, lane);
        }
        // A node that is alone says nothing of what it knows, and hears each answer.
        let first = batch.messages.first().filter(|_| batch.node == 0).map_or(0, |message| message.number);
        for message in batch.messages {
            if message.number <= lane.last && !is_planted(Plant::ForgetLane) {
                continue;
            }
            // What is forgotten of refusals would be taken for successes: the origin sends the rest again, and says what it knows.
            // A node that is alone keeps nothing to send, and needs no second answer.
            if lane.refused.len() >= REFUSED_MAX && batch.node != 0 {
                break;
            }
            lane.last = message.number;
            if let Some(command) = message.command {
                self.session_command(command, batch.clock_ms, effects);
            } else if let Some(reason) = self.take_message(message, batch.clock_ms, effects) {
                lane.refused.push_back((lane.last, reason));
            }
            self.body = None;
        }
        // Also those of batches before, of which the origin does not say that it knows: the answer to them may be lost, and this one
        // has a number that is above theirs. A refusal must not turn into a success by that, or by a change of leader.
        effects.push(lane_answered(batch.node, batch.lane, &lane, first));
        while lane.refused.len() > REFUSED_MAX {
            lane.refused.pop_front();
        }
        self.put_back(key, lane);
    }

    /// Nothing that comes by a lane takes lanes away.
    fn put_back(&mut self, key: (u64, u64), lane: LaneState) {
        match self.lanes.get_mut(&key) {
            Some(place) => *place = lane,
            None => unreachable!("its place stayed"),
        }
    }

    fn session_command(&mut self, command: SessionCommand, clock_ms: u64, effects: &mut Vec<Effect>) {
        match command {
            SessionCommand::Connect(connect) => self.connect(connect, effects),
            SessionCommand::Disconnect(disconnect) => self.disconnect(&disconnect, effects),
            SessionCommand::Subscribe(subscribe) => self.subscribe(subscribe, effects),
            SessionCommand::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe, effects),
            SessionCommand::Acknowledge(acknowledge) => self.acknowledge(&acknowledge, effects),
            SessionCommand::Receive(receive) => self.receive(receive, clock_ms, effects),
            SessionCommand::RetainedPage(page) => self.take_retained(page, clock_ms, effects),
            SessionCommand::Released(released) => self.released(&released, effects),
            SessionCommand::OutboxSettled(settled) => self.outbox_settled(settled, effects),
        }
    }

    /// Deals with a message, or says why it is refused: then nobody has got any of it.
    pub(super) fn take_message(
        &mut self,
        lane_message: command::LaneMessage,
        clock_ms: u64,
        effects: &mut Vec<Effect>,
    ) -> Option<ReasonCode> {
        let message = Arc::new(self.arrived(lane_message.message?, clock_ms));
        if let Some(delay_ms) = lane_message.delay_ms {
            return self.delay(message, delay_ms.saturating_sub(clock_ms), effects);
        }
        if lane_message.match_subscriptions {
            self.deliver_to_subscribers(&message, effects);
        }
        for share in &lane_message.shares {
            self.deliver_to_share(&message, &Arc::from(share.as_str()), effects);
        }
        if lane_message.store_retained {
            self.retain(&message, effects);
        }
        None
    }

    /// A message that was written by the clock of its lane's origin, which said `clock_ms` when it was sent. What expired on its
    /// way is over by every clock; what did not lives at least as long as is left.
    pub(super) fn arrived(&self, mut record: command::MessageRecord, clock_ms: u64) -> Message {
        record.expiry_left_ms = record.expiry_left_ms.map(|left| left.saturating_sub(clock_ms));
        if record.payload.len() <= OWN_PAYLOAD_BYTES_MAX {
            record.payload = Bytes::copy_from_slice(&record.payload);
        }
        let is_over = record.expiry_left_ms == Some(0);
        record.into_message(if is_over { self.clock_ms } else { self.latest_ms() })
    }

    pub(super) fn delay(
        &mut self,
        message: Arc<Message>,
        delay_ms: u64,
        effects: &mut Vec<Effect>,
    ) -> Option<ReasonCode> {
        if let Some(refused) = self.delay_refusal(&message) {
            return Some(refused);
        }
        self.post(message, Some(self.latest_ms().saturating_add(delay_ms)), None, effects);
        None
    }

    /// Why a message cannot wait for its time, if it cannot.
    pub(super) fn delay_refusal(&self, message: &Message) -> Option<ReasonCode> {
        let GroupConfig { delayed_messages_max, delayed_bytes_max, .. } = self.config;
        let is_heavy = self.level >= DELAYED_BYTES_LEVEL
            && delayed_bytes_max != 0
            && self.delayed_bytes + message.weight_bytes() > delayed_bytes_max;
        (is_heavy || self.delayed >= delayed_messages_max).then_some(ReasonCode::QuotaExceeded)
    }

    /// Stores, replaces or removes the retained message of a topic.
    ///
    /// One that finds no room is not kept, and that is all: others have it already, so it cannot be refused. What was
    /// retained before goes too, for it would pass for the newest.
    pub(super) fn retain(&mut self, message: &Arc<Message>, effects: &mut Vec<Effect>) {
        let topic = &message.topic;
        if message.payload.is_empty() {
            // Never stored itself [MQTT-3.3.1-7].
            return self.forget_retained(topic);
        }
        let key = Key::Retained(Arc::clone(topic));
        let replaced = self.retained.get(topic).is_some();
        if !self.retained.set(Arc::clone(message)) {
            effects.push(Effect::RetainedNotKept);
            return self.forget_retained(topic);
        }
        if replaced {
            self.dirty.changed(key)
        } else {
            self.dirty.created(key)
        }
        self.forget_retained_timer(topic);
        let age = self.config.retained_age_ms_max;
        let by_age = (age != 0).then(|| self.latest_ms().saturating_add(age));
        if let Some(due) = message.expires_at_ms.into_iter().chain(by_age).min() {
            self.arm_retained_timer(topic, due);
        }
    }

    fn forget_retained(&mut self, topic: &Arc<str>) {
        self.forget_retained_timer(topic);
        if self.retained.remove(topic).is_some() {
            self.dirty.deleted(Key::Retained(Arc::clone(topic)));
        }
    }

    pub(super) fn forget_retained_timer(&mut self, topic: &Arc<str>) {
        if let Some(due) = self.retained_dues.remove(topic) {
            self.timers.remove(&(due, Timer::Retained(Arc::clone(topic))));
        }
    }
}

/// Refusals from `first` on are part of the answer.
fn lane_answered(node: u64, lane: u64, state: &LaneState, first: u64) -> Effect {
    let refused = state.refused.iter().copied().filter(|&(number, _)| number >= first).collect();
    Effect::LaneAnswered { node, lane, number: state.last, refused }
}
