//! Messages that must survive their origin until every lane has them.
//!
//! Which member of a shared subscription gets one is committed before anything is sent: a new leader would pick another, and
//! two would get it. An entry is for everybody at first. What the leader picks ([`command::Picked`]) becomes an entry of its
//! own for each shared subscription, at a *new* position: targets ignore what is not above the last position that they had,
//! and whoever led before may have routed what stands behind the old one.
//!
//! With as many shared subscriptions as there may be, that is more than an entry of the log holds. It is said in pieces then, in the order
//! of the names, each of which says where it begins: so one name tells what is decided, whoever says which piece, and how often. A piece
//! that begins behind that comes too early: one before it was lost.
//!
//! An entry that a node was picked for is kept until a member there settled it; one that the node gives back, or whose node is
//! fenced, becomes an entry without a pick again, at a new position as well. So the outbox is to these messages what an arbiter
//! is to those of its own publishers (`router::share_settling`), and outlives its node.

use std::sync::Arc;

use kentongan_proto::mqtt::ReasonCode;
use kentongan_proto::mqtt::codec::AckKind;

use super::{
    GroupState, HeldPubRec, OutboxEntry, PickTarget, RECEIVED_BYTES_MAX, RECEIVED_MAX, Timer, packet_id,
    unrouted_effect,
};
use crate::later::PIECES_LEVEL;
use crate::message::Message;
use crate::replicated::command;
use crate::replicated::effect::{Drop, Effect};
use crate::replicated::store::Key;

/// Times that a message is given back before it counts as one that nobody takes: nodes whose counts of members are wrong
/// must not hand it round for ever.
const GIVEN_BACK_MAX: u32 = 16;

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
        let held = (session.number, packet_id);
        let mut reason = ReasonCode::Success;
        let is_full = self.received >= RECEIVED_MAX || self.received_bytes >= RECEIVED_BYTES_MAX;
        // Until PUBREL, a repeated identifier is answered and not routed again [MQTT-4.3.3-10].
        if session.received.insert(packet_id) {
            self.dirty.changed(Key::Session(session.number));
            let message = Arc::new(self.arrived(record, clock_ms));
            let retain = message.retain;
            let refused = match receive.delay_ms {
                Some(delay_ms) => self.delay(message, delay_ms.saturating_sub(clock_ms), effects),
                // Nobody but its publisher is told of it, so it can be refused.
                None if is_full => Some(ReasonCode::QuotaExceeded),
                None => {
                    self.post_entry(OutboxEntry { received: true, ..OutboxEntry::new(message, None, None) }, effects);
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
        self.post_entry(OutboxEntry::new(message, due_ms, share), effects);
    }

    /// The same for a will; `due_ms` is for one that is published with a delay of its own.
    pub(super) fn post_will(
        &mut self,
        message: Arc<Message>,
        identity: &Arc<str>,
        is_granted: bool,
        due_ms: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        let will_of = Some(Arc::clone(identity));
        self.post_entry(OutboxEntry { will_of, is_granted, ..OutboxEntry::new(message, due_ms, None) }, effects);
    }

    /// The same for one that was in an outbox before. Positions increase in the order of routing.
    fn post_entry(&mut self, entry: OutboxEntry, effects: &mut Vec<Effect>) {
        self.last_position += 1;
        let position = self.last_position;
        match entry.due_ms {
            Some(due) => {
                self.delayed += 1;
                self.delayed_bytes += entry.message.weight_bytes();
                self.timers.insert((due, Timer::Outbox(position)));
            }
            None => effects.push(Effect::Route { position }),
        }
        if let Some(at) = entry.settled_at() {
            self.picked_at.entry(at).or_default().insert(position);
        }
        if entry.received {
            *self.unrouted.entry(Arc::clone(&entry.message.publisher)).or_default() += 1;
            self.received += 1;
            self.received_bytes += entry.message.weight_bytes();
        }
        self.outbox.insert(position, entry);
        self.dirty.created(Key::Outbox(position));
    }

    fn remove_entry(&mut self, position: u64) -> Option<OutboxEntry> {
        let entry = self.outbox.remove(&position)?;
        self.dirty.deleted(Key::Outbox(position));
        if entry.due_ms.is_some() {
            self.delayed -= 1;
            self.delayed_bytes -= entry.message.weight_bytes();
        }
        if entry.received {
            self.received -= 1;
            self.received_bytes -= entry.message.weight_bytes();
        }
        if let Some(at) = entry.settled_at()
            && let Some(positions) = self.picked_at.get_mut(&at)
        {
            positions.remove(&position);
            if positions.is_empty() {
                self.picked_at.remove(&at);
            }
        }
        Some(entry)
    }

    /// It is wherever it has to be, and whoever waits for that may know.
    fn remove_routed(&mut self, position: u64, effects: &mut Vec<Effect>) {
        let Some(entry) = self.remove_entry(position) else {
            return;
        };
        if let Some(held) = entry.awaited_by {
            self.release_pubrec(held, effects);
        }
        if entry.received {
            self.one_less_unrouted(&entry.message.publisher, effects);
        }
    }

    /// A message of the client is routed: with the last of them, a claim of it that waits for that is granted.
    fn one_less_unrouted(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(left) = self.unrouted.get_mut(client_id) else {
            return;
        };
        *left -= 1;
        if *left > 0 {
            return;
        }
        self.unrouted.remove(client_id);
        if self.sessions.get(client_id).is_none_or(|session| session.transient) {
            effects.push(unrouted_effect(client_id, false));
        }
        self.open_held_back(client_id, effects);
    }

    pub(super) fn routed(&mut self, routed: &command::Routed, effects: &mut Vec<Effect>) {
        for &position in &routed.positions {
            match self.outbox.get_mut(&position) {
                // What is not due yet was never handed out to be routed.
                Some(entry) if entry.due_ms.is_some() => {}
                Some(entry) if entry.settled_at().is_some() => {
                    entry.routed = true;
                    self.dirty.changed(Key::Outbox(position));
                }
                _ => self.remove_routed(position, effects),
            }
        }
    }

    /// A delayed message is due: it goes on under a new position.
    pub(super) fn outbox_due(&mut self, position: u64, effects: &mut Vec<Effect>) {
        if let Some(entry) = self.remove_entry(position) {
            self.post_entry(OutboxEntry { due_ms: None, ..entry }, effects);
        }
    }

    /// It is decided who gets messages of shared subscriptions.
    pub(super) fn picked(&mut self, picked: command::Picked, effects: &mut Vec<Effect>) {
        for entry in picked.entries {
            let position = entry.position;
            self.picked_one(entry, effects);
            match self.outbox.get(&position).filter(|entry| entry.awaits_pick()) {
                Some(entry) => {
                    let share = entry.picked_up_to.clone();
                    effects.extend(share.map(|share| Effect::PickedUpTo { position, share }));
                }
                None => effects.push(Effect::Picked { position }),
            }
        }
    }

    fn picked_one(&mut self, picked: command::PickedEntry, effects: &mut Vec<Effect>) {
        let position = picked.position;
        let knows_pieces = self.level >= PIECES_LEVEL;
        let Some(entry) = self.outbox.get_mut(&position).filter(|entry| entry.awaits_pick()) else {
            // Another leader was first, or somebody picks who leads no more.
            return;
        };
        if knows_pieces && !picked.after.is_empty() && !entry.is_picked_of(&picked.after) {
            return;
        }
        let (message, given_back) = (Arc::clone(&entry.message), entry.given_back);
        let before = entry.picked_up_to.take();
        let is_decided = |share: &str| before.as_deref().is_some_and(|up_to| share <= up_to);
        if knows_pieces && picked.more && entry.share.is_none() {
            let last = picked.picks.last().filter(|last| !is_decided(&last.share));
            entry.picked_up_to = last.map(|last| Arc::from(last.share.as_str())).or_else(|| before.clone());
            self.dirty.changed(Key::Outbox(position));
        } else if picked.routed || entry.share.is_some() {
            self.remove_routed(position, effects);
        } else {
            entry.picked = true;
            self.dirty.changed(Key::Outbox(position));
        }
        for pick in picked.picks.into_iter().filter(|pick| !is_decided(&pick.share)) {
            let target = pick.target.and_then(PickTarget::from_record);
            // Proposed before the fence, committed after it: nothing was sent there yet.
            let is_over = |target: &PickTarget| match *target {
                PickTarget::Group(_) => false,
                PickTarget::Node { node, incarnation } => self.is_fenced(node, incarnation),
            };
            let pick_target = target.filter(|target| !is_over(target));
            let share = Some(Arc::from(pick.share));
            let entry = OutboxEntry::new(Arc::clone(&message), None, share);
            self.post_entry(OutboxEntry { pick: pick_target, given_back, ..entry }, effects);
        }
    }

    /// The node that was picked for an entry says what became of it.
    pub(super) fn outbox_settled(&mut self, settled: command::OutboxSettled, effects: &mut Vec<Effect>) {
        let position = settled.position;
        let Some(entry) = self.outbox.get_mut(&position) else {
            return;
        };
        let Some(at) = entry.settled_at() else {
            return;
        };
        if !settled.given_back {
            self.remove_entry(position);
            return;
        }
        entry.given_back += 1;
        entry.passed_over = Some(at);
        self.pick_again(position, effects);
    }

    /// Nobody at the node that was picked can acknowledge the message any more: another target is to get it.
    pub(super) fn pick_again(&mut self, position: u64, effects: &mut Vec<Effect>) {
        let Some(entry) = self.remove_entry(position) else {
            return;
        };
        let reason = if entry.message.expires_at_ms.is_some_and(|at| at <= self.clock_ms) {
            Drop::Expired
        } else if entry.given_back >= GIVEN_BACK_MAX {
            Drop::NoMember
        } else {
            return self.post_entry(OutboxEntry { pick: None, routed: false, ..entry }, effects);
        };
        effects.push(Effect::Dropped { reason, count: 1 });
    }
}
