//! What a node that serves sessions has of them, and what a leader then sends: what is missing, and nothing else.
//!
//! Nothing here changes the state. What the node acknowledged before must have been applied.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, ReasonCode};

use super::{GroupState, close_effect, delivery, opened};
use crate::connection_key::ConnectionKey;
use crate::peers::wire::Resync;
use crate::plants::{Plant, is_planted};
use crate::replicated::command::{Owner, Released};
use crate::replicated::effect::Effect;
use crate::replicated::session::PersistentSession;
use crate::session::outbound::Stage;

/// What an owner has of one session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Has {
    /// PUBLISHes that the client was sent and has not acknowledged, and those for which it was sent PUBREL.
    pub sent: BTreeSet<PacketId>,
    /// Those of them for which it was sent PUBREL.
    pub released: BTreeSet<PacketId>,
    /// QoS 2 messages of the client that wait for PUBREC.
    pub receiving: Vec<PacketId>,
    /// PUBRELs of the client that wait for PUBCOMP.
    pub completing: Vec<PacketId>,
}

impl GroupState {
    /// Whether all has been applied that the arbiter of a node had said when it wrote this. What it says of its clients counts on that.
    #[must_use]
    pub fn has_heard(&self, node: u64, resync: &Resync) -> bool {
        let lane = resync.incarnation << 12 | u64::from(resync.arbiter);
        self.lanes.get(&(node, lane)).map_or(0, |lane| lane.last) >= resync.said || is_planted(Plant::ResyncAhead)
    }

    /// An arbiter of a node says what its clients have, and those in `places` are answered. Returns what must be proposed.
    #[must_use]
    pub fn answer_resync(
        &self,
        node: u64,
        resync: &Resync,
        places: &Range<u32>,
        effects: &mut Vec<Effect>,
    ) -> Vec<Released> {
        // The others were said before, and may have been sent something since; or they are still to be said.
        let is_in = |connection| ConnectionKey::from_raw(connection).is_in(places);
        let owner = |connection| Owner { incarnation: resync.incarnation, connection, node };
        let mut known = BTreeSet::new();
        for served in resync.sessions.iter().filter(|served| is_in(served.connection)) {
            known.insert(served.connection);
            self.resync(&served.client_id, owner(served.connection), served.epoch, &served.has(), effects);
        }
        let mut released = Vec::new();
        for claim in resync.claims.iter().filter(|claim| is_in(claim.connection)) {
            known.insert(claim.connection);
            released.extend(self.claim_again(&claim.client_id, owner(claim.connection), effects));
        }
        let is_unknown = |owner: Owner| {
            let arbiter = ConnectionKey::from_raw(owner.connection).arbiter();
            u32::from(arbiter) == resync.arbiter && is_in(owner.connection) && !known.contains(&owner.connection)
        };
        self.close_unknown((node, resync.incarnation), is_unknown, effects);
        released
    }

    /// `owner` serves `client_id` under `epoch`, and has this.
    pub fn resync(&self, client_id: &str, owner: Owner, epoch: u64, has: &Has, effects: &mut Vec<Effect>) {
        let held = self.sessions.get(client_id).filter(|session| session.owner == Some(owner));
        match held {
            Some(session) if session.waiting.is_some() => effects.extend(close_effect(session)),
            Some(session) if session.epoch == epoch => {
                self.send_missing(session, owner, has, effects);
                self.answer_client(session, owner, has, effects);
            }
            // It was taken over and not told, or its node was taken for dead.
            _ => effects.push(Effect::Close { owner, client_id: client_id.into(), epoch }),
        }
    }

    /// `owner` waits for an answer to its claim, which was applied ([`Self::has_heard`]). If there is none yet, it will come when the
    /// present owner lets go, or a dead node is lost. Returns what must be proposed: if it was granted, and another one waits already, it
    /// lets go before it was ever served.
    #[must_use]
    pub fn claim_again(&self, client_id: &str, owner: Owner, effects: &mut Vec<Effect>) -> Option<Released> {
        let waits_in = |session: &PersistentSession| {
            session.waiting.as_ref().is_some_and(|waiting| waiting.connect.owner == Some(owner))
        };
        match self.sessions.get(client_id) {
            Some(session) if waits_in(session) => effects.extend(close_effect(session)),
            Some(session) if session.owner == Some(owner) => {
                if let Some(waiting) = &session.waiting {
                    effects.push(Effect::Refused { owner, reason: ReasonCode::SessionTakenOver });
                    let (client_id, epoch) = (client_id.to_owned(), waiting.owner_epoch);
                    return Some(Released { client_id, epoch, publish_will: false, never_began: true });
                }
                effects.push(Effect::Opened(opened(session, owner, &self.held_pubrecs)));
                self.send_missing(session, owner, &Has::default(), effects);
            }
            _ if self.waits_for_lost(client_id, owner) => {}
            // It was refused, and the word is lost with the leader who had it. What for, nobody knows any more.
            _ => effects.push(Effect::Refused { owner, reason: ReasonCode::ServerUnavailable }),
        }
        None
    }

    /// Connections of a process that own sessions here, and that it does not have (any more): who is gone, and was never told that its
    /// claim was granted, or that another one waits. Each is asked to let go; nobody else would ever ask.
    pub fn close_unknown(
        &self,
        (node, incarnation): (u64, u64),
        is_unknown: impl Fn(Owner) -> bool,
        effects: &mut Vec<Effect>,
    ) {
        for client_id in self.owned.get(&(node, incarnation)).into_iter().flatten() {
            let Some(session) = self.sessions.get(client_id) else { continue };
            let Some(owner) = session.owner.filter(|owner| (owner.node, owner.incarnation) == (node, incarnation))
            else {
                // Its claim waits.
                continue;
            };
            if is_unknown(owner) {
                let epoch = session.waiting.as_ref().map_or(session.epoch, |waiting| waiting.owner_epoch);
                effects.push(Effect::Close { owner, client_id: Arc::clone(client_id), epoch });
            }
        }
    }

    fn send_missing(&self, session: &PersistentSession, owner: Owner, has: &Has, effects: &mut Vec<Effect>) {
        let epoch = session.epoch;
        for (packet_id, stage, _, entry) in session.outbound.resend() {
            if session.to_resend.contains(&packet_id) {
                continue; // Its turn comes when the client has acknowledged others.
            }
            match (stage, entry) {
                (Stage::AwaitingPubComp, _) if !has.released.contains(&packet_id) => {
                    let (kind, reason) = (AckKind::PubRel, ReasonCode::Success);
                    effects.push(Effect::Acknowledge { owner, epoch, kind, packet_id, reason });
                }
                (Stage::AwaitingPubComp, _) => {}
                // Nothing is sent again on a living connection [MQTT-4.4.0-1].
                (_, Some(entry)) if !has.sent.contains(&packet_id) || is_planted(Plant::ResendLiving) => {
                    // What this connection began is sent for the first time: its owner would have it otherwise, or it would
                    // be acknowledged. Leadership is handed over without any fault, and DUP says that there was one [MQTT-3.3.1-1].
                    let dup = session.sent_before.contains(&packet_id);
                    let delivery = delivery(entry, owner, epoch, packet_id, dup, self.latest_ms());
                    effects.push(Effect::Deliver(Box::new(delivery)));
                }
                (_, Some(entry)) => {
                    let weight_bytes = entry.message.weight_bytes();
                    effects.push(Effect::HasBeenSent { owner, packet_id, weight_bytes });
                }
                (_, None) => {}
            }
        }
    }

    fn answer_client(&self, session: &PersistentSession, owner: Owner, has: &Has, effects: &mut Vec<Effect>) {
        let epoch = session.epoch;
        let is_held = |packet_id| self.held_pubrecs.contains(&(session.number, packet_id));
        for &packet_id in has.receiving.iter().filter(|packet_id| !is_held(**packet_id)) {
            // Applied and not kept: there was no room for it.
            let taken = session.received.contains(&packet_id);
            let reason = if taken { ReasonCode::Success } else { ReasonCode::QuotaExceeded };
            effects.push(Effect::Acknowledge { owner, epoch, kind: AckKind::PubRec, packet_id, reason });
        }
        for &packet_id in has.completing.iter().filter(|packet_id| !session.received.contains(packet_id)) {
            let (kind, reason) = (AckKind::PubComp, ReasonCode::Success);
            effects.push(Effect::Acknowledge { owner, epoch, kind, packet_id, reason });
        }
    }
}
