//! Messages that must survive their origin until every lane has them.

use std::sync::Arc;

use kentongan_proto::mqtt::ReasonCode;
use kentongan_proto::mqtt::codec::AckKind;

use super::{GroupState, HeldPubRec, OutboxEntry, Timer, packet_id, route};
use crate::message::Message;
use crate::replicated::command;
use crate::replicated::effect::Effect;
use crate::replicated::store::Key;

impl GroupState {
    pub(super) fn receive(&mut self, receive: command::Receive, effects: &mut Vec<Effect>) {
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
        let held = (session.number, packet_id);
        let mut reason = ReasonCode::Success;
        // Until PUBREL, a repeated identifier is answered and not routed again [MQTT-4.3.3-10].
        if session.received.insert(packet_id) {
            self.dirty.changed(Key::Session(session.number));
            let message = Arc::new(record.into_message(self.latest_ms()));
            let retain = message.retain;
            let refused = match receive.delay_ms {
                Some(delay_ms) => self.delay(message, delay_ms, effects),
                None => {
                    self.post(message, None, None, effects);
                    if retain {
                        self.hold_pubrec(held);
                    }
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
        if !self.held_pubrecs.contains(&held) {
            effects.push(Effect::Acknowledge { owner, epoch, kind: AckKind::PubRec, packet_id, reason });
        }
    }

    /// What was posted last is to be retained: the client may not believe that it is before it is routed (P6). Until then
    /// whoever subscribes would find what was retained before, and what the client publishes next, with another QoS, goes
    /// another way and might be overwritten by it.
    fn hold_pubrec(&mut self, held: HeldPubRec) {
        if let Some(entry) = self.outbox.get_mut(&self.last_position) {
            entry.awaited_by = Some(held);
            self.held_pubrecs.insert(held);
        }
    }

    /// The message of a PUBREC is routed. A client that is away is answered when it sends PUBLISH again.
    fn release_pubrec(&mut self, held: HeldPubRec, effects: &mut Vec<Effect>) {
        self.held_pubrecs.remove(&held);
        let (number, packet_id) = held;
        let Some(session) = self.names.get(&number).and_then(|client_id| self.sessions.get(client_id)) else {
            return;
        };
        if let Some(owner) = session.served()
            && session.received.contains(&packet_id)
        {
            let (epoch, kind, reason) = (session.epoch, AckKind::PubRec, ReasonCode::Success);
            effects.push(Effect::Acknowledge { owner, epoch, kind, packet_id, reason });
        }
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
        let entry = OutboxEntry { message, due_ms, share, awaited_by: None };
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

    pub(super) fn routed(&mut self, routed: &command::Routed, effects: &mut Vec<Effect>) {
        for position in &routed.positions {
            // What is not due yet was never handed out to be routed.
            if self.outbox.get(position).is_none_or(|entry| entry.due_ms.is_some()) {
                continue;
            }
            self.dirty.deleted(Key::Outbox(*position));
            let entry = self.outbox.remove(position);
            if let Some(held) = entry.and_then(|entry| entry.awaited_by) {
                self.release_pubrec(held, effects);
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
