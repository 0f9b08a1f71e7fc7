//! What an operator sees of a group.

use std::collections::BinaryHeap;
use std::sync::Arc;

use super::GroupState;
use crate::replicated::session::PersistentSession;

impl GroupState {
    /// The session of this name, if it outlives its connection.
    #[must_use]
    pub fn shown_session(&self, client_id: &str) -> Option<&PersistentSession> {
        self.sessions.get(client_id).filter(|session| !session.transient)
    }

    /// The first `count` sessions that outlive their connections and meet `wanted`, by their names, behind `after`.
    ///
    /// Looks at all of them, some 50 ns each: the table has no order.
    pub fn show_sessions(
        &self,
        after: Option<&str>,
        count: usize,
        wanted: impl Fn(&PersistentSession) -> bool,
    ) -> Vec<&PersistentSession> {
        let mut first: BinaryHeap<&Arc<str>> = BinaryHeap::with_capacity(count + 1);
        for (name, session) in &self.sessions {
            let is_behind = after.is_none_or(|after| **name > *after);
            let is_first = first.len() < count || first.peek().is_some_and(|last| name < *last);
            if is_behind && is_first && !session.transient && wanted(session) {
                first.push(name);
                if first.len() > count {
                    first.pop();
                }
            }
        }
        first.into_sorted_vec().into_iter().filter_map(|name| self.sessions.get(name)).collect()
    }
}
