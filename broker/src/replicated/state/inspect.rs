//! What a group holds, for a simulation that looks for what should be gone.

use std::sync::Arc;

use super::GroupState;
use crate::replicated::command::Owner;

/// Who has a session.
#[derive(Debug, Clone)]
pub(crate) struct HeldSession {
    pub(crate) client_id: Arc<str>,
    pub(crate) owner: Option<Owner>,
    pub(crate) epoch: u64,
    pub(crate) transient: bool,
}

impl GroupState {
    /// All sessions, by their names.
    pub(crate) fn held_sessions(&self) -> Vec<HeldSession> {
        let held = |session: &super::PersistentSession| HeldSession {
            client_id: Arc::clone(&session.client_id),
            owner: session.owner,
            epoch: session.epoch,
            transient: session.transient,
        };
        let mut sessions: Vec<_> = self.sessions.values().map(held).collect();
        sessions.sort_unstable_by(|one, other| one.client_id.cmp(&other.client_id));
        sessions
    }

    /// What nobody waits for any more, once everything came to rest.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (position, entry) in self.outbox.iter().filter(|(_, entry)| entry.due_ms.is_none()) {
            left.push(format!("entry {position} of the outbox, on {}, is not routed", entry.message.topic));
        }
        for (&(node, lane), state) in &self.lanes {
            if self.fenced_below.get(&node).is_some_and(|&below| state.incarnation < below) {
                left.push(format!("lane {lane} of incarnation {} of node {node}, which is fenced", state.incarnation));
            }
        }
        for (&(node, incarnation), sessions) in &self.owned {
            if self.is_fenced(node, incarnation) {
                left.push(format!("{sessions:?} owned by incarnation {incarnation} of node {node}, which is fenced"));
            }
        }
        for (&(node, incarnation), names) in &self.left_by {
            left.push(format!("{names:?} left behind by incarnation {incarnation} of node {node}, which is lost"));
        }
        for (client_id, session) in &self.sessions {
            if session.waiting.is_some() {
                left.push(format!("a claim that waits for {client_id}"));
            }
            if session.transient && session.owner.is_none() && session.will_due_ms.is_none() {
                left.push(format!("the transient session of {client_id}, which has no connection"));
            }
            if session.owner.is_some() && session.is_reading() {
                left.push(format!("a read of retained messages for {client_id}"));
            }
        }
        if self.ended_messages() > 0 {
            left.push(format!("{} messages of sessions that ended", self.ended_messages()));
        }
        left.sort_unstable();
        left
    }
}
