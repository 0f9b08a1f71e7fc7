//! Claims on Client Identifiers, a few of each group at a time.
//!
//! When a node dies, all its clients come to the others at once. What a round of a group has to commit, apply and answer holds up
//! everything behind it, also the messages of clients that never went away; thousands of claims in one round would be noticed
//! by all of them. Here they wait for their turn, each group's in a line of its own: a group that nobody leads for the moment
//! must not keep clients from the others.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::connection_key::ConnectionKey;

/// Claims of an arbiter that a group has to answer for at a time. Enough for 50,000 connections a second of a node with two arbiters and
/// 16 groups that takes 10 ms to commit.
pub const UNDER_WAY_MAX: u16 = 16;

/// Whose turn it is.
#[derive(Debug)]
pub struct ClaimTurns {
    /// By group.
    lines: Vec<Line>,
    under_way_max: u16,
    /// Which group each of them waits for.
    under_way: HashMap<ConnectionKey, u16, foldhash::fast::RandomState>,
}

#[derive(Debug, Default, Clone)]
struct Line {
    under_way: u16,
    waiting: VecDeque<ConnectionKey>,
}

impl ClaimTurns {
    /// Of an arbiter with so many groups to claim from, each of which answers for so many claims at a time.
    #[must_use]
    pub fn new(groups: u16, under_way_max: u16) -> Self {
        Self { lines: vec![Line::default(); usize::from(groups)], under_way_max, under_way: HashMap::default() }
    }

    /// Whether this connection may claim now. If not, it stands in the line, until [`Self::next`] names it.
    #[must_use]
    pub fn may_begin(&mut self, key: ConnectionKey, group: u16) -> bool {
        let Some(line) = self.lines.get_mut(usize::from(group)) else {
            return true;
        };
        if line.under_way >= self.under_way_max {
            line.waiting.push_back(key);
            return false;
        }
        line.under_way += 1;
        self.under_way.insert(key, group);
        true
    }

    /// The claim of this connection was answered, or nobody waits for the answer. Returns the group in whose line the next one may begin.
    pub fn ended(&mut self, key: ConnectionKey) -> Option<u16> {
        let group = self.under_way.remove(&key)?;
        if let Some(line) = self.lines.get_mut(usize::from(group)) {
            line.under_way -= 1;
        }
        Some(group)
    }

    /// Who is the next in the line of the group, if there is one. It may be gone meanwhile.
    pub fn next(&mut self, group: u16) -> Option<ConnectionKey> {
        let line = self.lines.get_mut(usize::from(group))?;
        let key = line.waiting.pop_front();
        if line.waiting.is_empty() {
            // As long as a storm was, so much memory it took.
            line.waiting = VecDeque::new();
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> ConnectionKey {
        ConnectionKey::new(0, index, 1)
    }

    #[test]
    fn a_group_has_so_many_claims_to_answer_for_and_others_are_not_held_up() {
        let mut turns = ClaimTurns::new(2, UNDER_WAY_MAX);
        let many = u32::from(UNDER_WAY_MAX);
        assert!((0..many).all(|index| turns.may_begin(key(index), 0)));
        assert!(!turns.may_begin(key(many), 0));
        assert!(!turns.may_begin(key(many + 1), 0));
        assert!(turns.may_begin(key(many + 2), 1));
        assert_eq!(turns.ended(key(1)), Some(0));
        assert_eq!(turns.ended(key(1)), None, "once");
        assert_eq!(turns.next(0), Some(key(many)), "who came first");
        assert!(turns.may_begin(key(many), 0));
        assert!(!turns.may_begin(key(many + 3), 0));
        assert_eq!((turns.next(0), turns.next(0), turns.next(0)), (Some(key(many + 1)), Some(key(many + 3)), None));
    }
}
