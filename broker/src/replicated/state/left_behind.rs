//! What a dead node had connected: nobody else gets such a Client Identifier before that node is lost.
//!
//! The fence of this group refuses what the dead node's connections still had on its way *here*, and lets go of their sessions. What they
//! had on its way to other groups and nodes those refuse only once they have heard of the death, and until then it may arrive behind what a
//! new connection publishes (P5), and take effect after its CONNACK (P7). *Lost* means that all of them have.

use std::collections::BTreeSet;
use std::sync::Arc;

use kentongan_proto::mqtt::ReasonCode;

use super::claim::HELD_BACK_MS_MAX;
use super::{GroupState, Timer, disown};
use crate::replicated::command::{self, Connect, Owner};
use crate::replicated::effect::Effect;
use crate::replicated::store::Key;

/// A Client Identifier that a dead incarnation left behind.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::replicated) struct LeftBehind {
    /// The node.
    pub node: u64,
    /// Which of its starts.
    pub incarnation: u64,
    /// Who gets it next.
    pub claim: Option<Box<LaterClaim>>,
}

/// A claim that waits until a dead node is lost.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::replicated) struct LaterClaim {
    /// The claim, as it came.
    pub connect: Connect,
    /// When it is refused, on the group's clock.
    pub due_ms: u64,
}

impl GroupState {
    /// `dead` owns the session still, and is to be released. Whoever waited for that goes on waiting.
    pub(super) fn leave_behind(&mut self, client_id: &Arc<str>, dead: Owner) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let waiting = session.waiting.take_if(|waiting| waiting.connect.owner.is_some());
        let (node, incarnation) = (dead.node, dead.incarnation);
        self.left_by.entry((node, incarnation)).or_default().insert(Arc::clone(client_id));
        self.left_behind.insert(Arc::clone(client_id), LeftBehind { node, incarnation, claim: None });
        self.dirty.created(Key::LeftBehind(Arc::clone(client_id)));
        if let Some(waiting) = waiting {
            disown(&mut self.owned, waiting.connect.owner, client_id);
            self.keep_claim(client_id, waiting.connect);
        }
    }

    /// The claim waits if a node that is not lost yet left its Client Identifier behind. Else it is returned.
    pub(super) fn wait_until_lost(
        &mut self,
        client_id: &Arc<str>,
        connect: Connect,
        effects: &mut Vec<Effect>,
    ) -> Option<Connect> {
        let Some(left) = self.left_behind.get(client_id) else {
            return Some(connect);
        };
        if let Some(waiting) = left.claim.as_ref().map(|claim| &claim.connect) {
            if waiting.owner == connect.owner {
                return None; // Proposed again; it waits for the same.
            }
            if waiting.identity != connect.identity {
                effects.extend(connect.owner.map(|owner| refused(owner, ReasonCode::NotAuthorized)));
                return None;
            }
        }
        self.refuse_later_claim(client_id, ReasonCode::SessionTakenOver, effects);
        self.keep_claim(client_id, connect);
        None
    }

    /// Whether the claim of `owner` waits until a dead node is lost.
    pub(super) fn waits_for_lost(&self, client_id: &str, owner: Owner) -> bool {
        let claim = self.left_behind.get(client_id).and_then(|left| left.claim.as_ref());
        claim.is_some_and(|claim| claim.connect.owner == Some(owner))
    }

    fn keep_claim(&mut self, client_id: &Arc<str>, connect: Connect) {
        let due_ms = self.latest_ms() + HELD_BACK_MS_MAX;
        if let Some(left) = self.left_behind.get_mut(client_id) {
            left.claim = Some(Box::new(LaterClaim { connect, due_ms }));
            self.timers.insert((due_ms, Timer::LaterClaim(Arc::clone(client_id))));
            self.dirty.changed(Key::LeftBehind(Arc::clone(client_id)));
        }
    }

    /// The claim that waits does so no more, and is not granted.
    pub(super) fn refuse_later_claim(&mut self, client_id: &Arc<str>, reason: ReasonCode, effects: &mut Vec<Effect>) {
        let Some(claim) = self.left_behind.get_mut(client_id).and_then(|left| left.claim.take()) else {
            return;
        };
        self.timers.remove(&(claim.due_ms, Timer::LaterClaim(Arc::clone(client_id))));
        self.dirty.changed(Key::LeftBehind(Arc::clone(client_id)));
        effects.extend(claim.connect.owner.map(|owner| refused(owner, reason)));
    }

    /// Nothing that the incarnation had on its way takes effect anywhere any more.
    pub(super) fn lost(&mut self, lost: command::Lost, effects: &mut Vec<Effect>) {
        let by = (lost.node, lost.incarnation);
        let names_max = lost.sessions_max.max(1) as usize;
        let names: Vec<_> = self.left_by.get(&by).into_iter().flatten().take(names_max).cloned().collect();
        for client_id in names {
            if let Some(connect) = self.forget_left_behind(&client_id) {
                self.connect(connect, effects);
            }
        }
        effects.push(Effect::Lost {
            node: lost.node,
            incarnation: lost.incarnation,
            more: self.left_by.contains_key(&by),
        });
    }

    /// Returns the claim that waited.
    fn forget_left_behind(&mut self, client_id: &Arc<str>) -> Option<Connect> {
        let LeftBehind { node, incarnation, claim } = self.left_behind.remove(client_id)?;
        self.dirty.deleted(Key::LeftBehind(Arc::clone(client_id)));
        if let Some(names) = self.left_by.get_mut(&(node, incarnation)) {
            names.remove(client_id);
            if names.is_empty() {
                self.left_by.remove(&(node, incarnation));
            }
        }
        let claim = claim?;
        self.timers.remove(&(claim.due_ms, Timer::LaterClaim(Arc::clone(client_id))));
        Some(claim.connect)
    }

    /// Nobody is there any more whose connections left something behind, nor who waits for it.
    pub(super) fn forget_all_left_behind(&mut self) {
        for client_id in self.left_behind.keys().cloned().collect::<Vec<_>>() {
            self.forget_left_behind(&client_id);
        }
    }

    /// The dead incarnations, each with its node, that left something behind: it is for the directory to say that they are lost.
    pub fn not_known_to_be_lost(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.left_by.keys().copied()
    }

    pub(super) fn rebuild_left_behind(&mut self) {
        for (client_id, left) in &self.left_behind {
            self.left_by.entry((left.node, left.incarnation)).or_default().insert(Arc::clone(client_id));
            let due = left.claim.as_ref().map(|claim| (claim.due_ms, Timer::LaterClaim(Arc::clone(client_id))));
            self.timers.extend(due);
        }
    }

    pub(super) fn assert_left_behind(&self) {
        for (client_id, left) in &self.left_behind {
            assert!(self.is_fenced(left.node, left.incarnation), "who lives leaves nothing behind");
            assert!(
                self.left_by[&(left.node, left.incarnation)].contains(client_id),
                "it is found when its node is lost"
            );
            let session = self.sessions.get(client_id);
            let is_free = session.is_none_or(|session| session.owner.is_none() && session.waiting.is_none());
            assert!(is_free, "nobody gets it before");
            let timer = |due_ms| (due_ms, Timer::LaterClaim(Arc::clone(client_id)));
            assert!(left.claim.as_ref().is_none_or(|claim| self.timers.contains(&timer(claim.due_ms))));
        }
        assert_eq!(self.left_behind.len(), self.left_by.values().map(BTreeSet::len).sum::<usize>());
    }
}

fn refused(owner: Owner, reason: ReasonCode) -> Effect {
    Effect::Refused { owner, reason }
}
