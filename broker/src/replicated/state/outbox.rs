//! Messages that must survive their origin until every lane has them.

use std::sync::Arc;

use kentongan_proto::mqtt::ReasonCode;
use kentongan_proto::mqtt::codec::AckKind;

use super::{GroupState, OutboxEntry, Timer, packet_id, route};
use crate::message::Message;
use crate::replicated::command;
use crate::replicated::effect::Effect;
use crate::replicated::store::Key;

impl GroupState {
    pub(super) fn receive(&mut self, receive: command::Receive, clock_ms: u64, effects: &mut Vec<Effect>) {
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
            let message = Arc::new(self.arrived(record, clock_ms));
            let refused = match receive.delay_ms {
                Some(delay_ms) => self.delay(message, delay_ms.saturating_sub(clock_ms), effects),
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
    pub(super) fn post(
        &mut self,
        message: Arc<Message>,
        due_ms: Option<u64>,
        share: Option<Arc<str>>,
        effects: &mut Vec<Effect>,
    ) {
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

    pub(super) fn routed(&mut self, routed: &command::Routed) {
        for position in &routed.positions {
            // What is not due yet was never handed out to be routed.
            if self.outbox.get(position).is_some_and(|entry| entry.due_ms.is_none()) {
                self.outbox.remove(position);
                self.dirty.deleted(Key::Outbox(*position));
            }
        }
    }

    /// A delayed message is due: it goes on under a new position, for positions increase in the order of routing.
    pub(super) fn outbox_due(&mut self, position: u64, effects: &mut Vec<Effect>) {
        if let Some(entry) = self.outbox.remove(&position) {
            self.delayed -= 1;
            self.dirty.deleted(Key::Outbox(position));
            self.post(entry.message, None, entry.share, effects);
        }
    }
}
