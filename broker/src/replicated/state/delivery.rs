//! From a message to the windows of sessions, and back by their acknowledgements.

use std::num::NonZeroU32;
use std::sync::Arc;

use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, QoS, ReasonCode};

use super::paging::is_running_out;
use super::{GroupState, HELD_MESSAGES_MAX, Terms, delivery, packet_id, resend};
use crate::drops;
use crate::later::ROOM_LEVEL;
use crate::message::Message;
use crate::replicated::command;
use crate::replicated::effect::{Drop, Effect};
use crate::replicated::session::{Entry, HeldBack, PersistentSession};
use crate::replicated::store::Key;
use crate::session::outbound::{Full, Offer};
use crate::subscription::{LEAST_IN_FLIGHT_COMPARED_MAX, PickStrategy, mix, name_hash, topic_hash};

impl GroupState {
    pub(super) fn deliver_to_subscribers(&mut self, message: &Arc<Message>, effects: &mut Vec<Effect>) {
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

    /// The member that gets a message: one that is connected, or any if none is. What it is drawn or reckoned from is the
    /// same on every replica.
    fn pick_member(&self, name: &Arc<str>, message: &Message) -> Option<Arc<str>> {
        let share = self.shares.get(name)?;
        let last = self.turns.get(name);
        let closest_to = |key: u64| share.turns(None).max_by_key(|member| mix(name_hash(member), key));
        let picked = match self.config.share_strategy {
            PickStrategy::RoundRobin => share.turns(last).next(),
            PickStrategy::Random => {
                // Every message that was delivered before, and which one this is.
                let draw = mix(self.last_body, message.identity.number);
                share.turns(None).nth((draw % share.eligible().max(1) as u64) as usize)
            }
            PickStrategy::Sticky => last.filter(|last| share.is_eligible(last)).or_else(|| share.turns(last).next()),
            PickStrategy::HashClient => closest_to(name_hash(&message.publisher)),
            PickStrategy::HashTopic => closest_to(name_hash(&message.topic)),
            PickStrategy::LeastInflight => {
                share.turns(last).take(LEAST_IN_FLIGHT_COMPARED_MAX).min_by_key(|member| self.load(member))
            }
        };
        picked.cloned()
    }

    /// Messages that a session has not acknowledged.
    fn load(&self, client_id: &str) -> usize {
        self.sessions.get(client_id).map_or(0, |session| session.outbound.in_flight() + session.outbound.queue_len())
    }

    /// Remembers to say how loaded the members of a shared subscription are.
    pub(super) fn load_changed(&mut self, share: &Arc<str>) {
        if self.config.share_strategy == PickStrategy::LeastInflight {
            self.loads_changed.insert(Arc::clone(share));
        }
    }

    pub(super) fn share_in_flight(&self, share: Arc<str>) -> Option<Effect> {
        let members = self.shares.get(&share)?.turns(None).take(LEAST_IN_FLIGHT_COMPARED_MAX);
        let least = members.map(|member| self.load(member)).min()?;
        Some(Effect::ShareInFlight { share, least: u32::try_from(least).unwrap_or(u32::MAX) })
    }

    /// One member gets it.
    pub(super) fn deliver_to_share(&mut self, message: &Arc<Message>, name: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.pick_member(name, message) else {
            // Everyone left while the message was on its way: another group may have members.
            self.post(Arc::clone(message), None, Some(Arc::clone(name)), effects);
            return;
        };
        match self.turns.insert(Arc::clone(name), Arc::clone(&client_id)) {
            None => self.dirty.created(Key::Turn(Arc::clone(name))),
            Some(last) if last != client_id => self.dirty.changed(Key::Turn(Arc::clone(name))),
            Some(_) => {}
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
    pub(super) fn deliver(
        &mut self,
        client_id: &Arc<str>,
        message: &Arc<Message>,
        terms: Terms,
        held: bool,
        effects: &mut Vec<Effect>,
    ) {
        let is_reading = |session: &&mut PersistentSession| held && session.is_reading();
        if let Some(session) = self.sessions.get_mut(client_id).filter(is_reading) {
            let weight = message.weight_bytes();
            let bytes_max = session.outbound.limits().queue_bytes_max;
            if weight > bytes_max {
                drops::note(client_id, Full::Bytes, 1);
                effects.push(Effect::Dropped { reason: Full::Bytes.into(), count: 1 });
                return;
            }
            if session.held.len() >= HELD_MESSAGES_MAX || session.held_bytes.saturating_add(weight) > bytes_max {
                self.let_held_overflow(client_id, effects);
                self.body = None;
            }
            let Some(session) = self.sessions.get_mut(client_id) else {
                return;
            };
            let Terms { qos, retain, identifiers, .. } = terms;
            let sequence = session.next_sequence;
            session.next_sequence += 1;
            let holders = self.matcher.holders(session.number, &message.topic);
            let message = Arc::clone(message);
            session.held.push(HeldBack { sequence, message, qos, retain, identifiers, holders });
            session.held_bytes += weight;
            self.dirty.changed(Key::Session(session.number));
            self.dirty.created(Key::Held(session.number, sequence));
            return;
        }
        self.enqueue(client_id, message, terms, effects);
        self.pump(client_id, effects);
    }

    pub(super) fn enqueue(
        &mut self,
        client_id: &Arc<str>,
        message: &Arc<Message>,
        terms: Terms,
        effects: &mut Vec<Effect>,
    ) {
        let body = self.body_of(message);
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Terms { qos, retain, identifiers, share } = terms;
        let changed = share.clone();
        let sequence = session.next_sequence;
        let number = session.number;
        let entry = Entry { body, sequence, message: Arc::clone(message), qos, retain, identifiers, share };
        let before = session.outbound.backlog();
        let was_empty = session.outbound.queue_len() == 0;
        let weight = message.weight_bytes();
        let read = |middle| self.bodies.read(number, middle);
        let (mut expired, mut passing) = (Vec::new(), 0);
        if self.level >= ROOM_LEVEL {
            let clock = self.clock_ms;
            let is_expired = |entry: &Entry| entry.message.expires_at_ms.is_some_and(|at| at <= clock);
            expired = session.outbound.take_expired_reading(weight, is_expired, read);
            // What is sent as soon as this command is applied.
            passing = if session.served().is_some() { session.outbound.window_free() } else { 0 };
        }
        let read = |middle| self.bodies.read(number, middle);
        let offer = session.outbound.offer_reading(entry, weight, qos, passing, read);
        let has_fewer = matches!(offer, Offer::DroppedOldest(..)) || !expired.is_empty();
        let runs_out = has_fewer && is_running_out(&session.outbound);
        self.backlog += session.outbound.backlog() - before;
        if !expired.is_empty() {
            self.dirty.changed(Key::Session(number));
            effects.push(Effect::Dropped { reason: Drop::Expired, count: expired.len() as u64 });
        }
        match offer {
            Offer::DroppedNew(full) => {
                drops::note(client_id, full, 1);
                effects.push(Effect::Dropped { reason: full.into(), count: 1 });
            }
            offer => {
                session.next_sequence += 1;
                session.may_queue_shared = changed.is_some() || (session.may_queue_shared && !was_empty);
                self.dirty.changed(Key::Session(number));
                self.dirty.created(Key::Entry(number, sequence));
                self.bodies.reference(body, message, &mut self.dirty);
                if let Some(share) = changed {
                    self.load_changed(&share);
                }
                if let Offer::DroppedOldest(full, oldest) = offer {
                    drops::note(client_id, full, oldest.len());
                    effects.push(Effect::Dropped { reason: full.into(), count: oldest.len() as u64 });
                    for entry in &oldest {
                        self.settle(number, entry);
                    }
                }
            }
        }
        for entry in &expired {
            self.settle(number, entry);
        }
        if runs_out {
            self.running_out.insert(number);
        }
    }

    /// The number of a message's body: the same for all sessions that get it with one command.
    pub(super) fn body_of(&mut self, message: &Arc<Message>) -> u64 {
        match &self.body {
            Some((body, number)) if Arc::ptr_eq(body, message) => *number,
            _ => {
                self.last_body += 1;
                self.body = Some((Arc::clone(message), self.last_body));
                self.last_body
            }
        }
    }

    /// An entry left its session for good.
    pub(super) fn settle(&mut self, session: u64, entry: &Entry) {
        self.dirty.deleted(Key::Entry(session, entry.sequence));
        self.bodies.release(entry.body, &mut self.dirty);
        if let Some(share) = &entry.share {
            self.load_changed(share);
        }
    }

    /// Sends what the connection may have: first again what was in flight, then what waits.
    pub(super) fn pump(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let (clock, latest) = (self.clock_ms, self.latest_ms());
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(owner) = session.served() else {
            return;
        };
        let number = session.number;
        let epoch = session.epoch;
        resend(session, owner, latest, effects);
        if !session.to_resend.is_empty() {
            return;
        }
        let before = session.outbound.backlog();
        let mut expired = Vec::new();
        let is_expired = |entry: &Entry| entry.message.expires_at_ms.is_some_and(|at| at <= clock);
        let mut sent = false;
        let (outbound, bodies) = (&mut session.outbound, &mut self.bodies);
        while let Some((packet_id, _, entry)) =
            outbound.pop_sendable_reading(is_expired, |entry| expired.push(entry), |middle| bodies.read(number, middle))
        {
            effects.push(Effect::Deliver(Box::new(delivery(entry, owner, epoch, packet_id, false, latest))));
            sent = true;
        }
        if is_running_out(outbound) {
            self.running_out.insert(number);
        }
        self.backlog += session.outbound.backlog() - before;
        if sent || !expired.is_empty() {
            self.dirty.changed(Key::Session(number));
        }
        if !expired.is_empty() {
            effects.push(Effect::Dropped { reason: Drop::Expired, count: expired.len() as u64 });
        }
        for entry in expired {
            self.settle(number, &entry);
        }
    }

    pub(super) fn acknowledge(&mut self, acknowledge: &command::Acknowledge, effects: &mut Vec<Effect>) {
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

    pub(super) fn acknowledge_one(
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
        let before = session.outbound.backlog();
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
        self.backlog += session.outbound.backlog() - before;
        if let Some(at) = session.to_resend.iter().position(|&id| id == packet_id) {
            session.to_resend.remove(at);
        }
        if let Some(entry) = settled {
            session.sent_before.remove(&packet_id);
            effects.push(Effect::Settled { owner, packet_id });
            self.settle(number, &entry);
        }
    }
}
