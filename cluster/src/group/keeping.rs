//! From where on a leader keeps its log for others that lack something of it.
//!
//! Who fetches a snapshot needs what comes behind it once it is there, and who is a little behind needs no snapshot. A leader can keep the
//! log for both, in memory and within bounds; without it, a snapshot that takes longer than the next checkpoint is never the last.

use std::collections::BTreeMap;

use crate::identity::NodeId;

const MIB: usize = 1024 * 1024;

/// How much of what checkpoints have a node keeps in memory for others, in bytes of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// Of each group, whether anybody is known to need it or not.
    pub usual: usize,
    /// Of a group that somebody needs it of.
    pub group: usize,
    /// Of all groups together, beyond what is usual.
    pub node: usize,
}

impl Default for Keeping {
    fn default() -> Self {
        Self { usual: 4 * MIB, group: 64 * MIB, node: 256 * MIB }
    }
}

/// What is needed by one that lacks something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// It needs what lies behind this.
    pub(super) index: u64,
    /// The tick from which on it does.
    pub(super) since: u64,
    /// It was offered a snapshot, which goes to there at least.
    is_offered: bool,
}

/// What is needed by the others of a group.
#[derive(Debug, Default)]
pub(super) struct Marks(BTreeMap<NodeId, Mark>);

impl Marks {
    /// A snapshot was offered to one that has the log up to `matched`. It fetches one at a time, and takes no notice of what it is
    /// offered meanwhile: only the first offer says what it has at least when it is done.
    pub(super) fn offered(&mut self, node: NodeId, index: u64, matched: u64, now: u64) {
        let is_under_way = |mark: &Mark| mark.is_offered && matched < mark.index;
        if !self.0.get(&node).is_some_and(is_under_way) {
            self.0.insert(node, Mark { index, since: now, is_offered: true });
        }
    }

    /// A node does not fetch what it was offered, or not any more.
    pub(super) fn failed(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// Another one leads.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What is needed by the one of `others` that is furthest behind and can be helped. They are those that are heard of, with how far
    /// they have the log, which begins behind `base`. What the `checkpoint` does not have is kept anyway.
    pub(super) fn first(
        &mut self,
        others: impl Iterator<Item = (NodeId, u64)>,
        base: u64,
        checkpoint: u64,
        now: u64,
    ) -> Option<Mark> {
        let mut before = std::mem::take(&mut self.0);
        for (node, matched) in others.filter(|&(_, matched)| matched < checkpoint) {
            let known = before.remove(&node);
            let mark = if matched >= base {
                let since = known.map_or(now, |mark| mark.since);
                Some(Mark { index: matched, since, is_offered: false })
            } else {
                // It comes to an offer's index even if what lies behind that went: it may fetch a later one.
                known.filter(|mark| mark.is_offered && matched < mark.index)
            };
            self.0.extend(mark.map(|mark| (node, mark)));
        }
        self.0.values().copied().min_by_key(|mark| mark.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(2);

    fn first(marks: &mut Marks, matched: u64, base: u64, checkpoint: u64, now: u64) -> Option<(u64, u64)> {
        marks.first([(NODE, matched)].into_iter(), base, checkpoint, now).map(|mark| (mark.index, mark.since))
    }

    #[test]
    fn what_was_offered_first_is_needed_until_it_is_acknowledged_or_failed() {
        let mut marks = Marks::default();
        marks.offered(NODE, 100, 0, 1);
        marks.offered(NODE, 200, 0, 2);
        assert_eq!(first(&mut marks, 0, 90, 200, 3), Some((100, 1)), "the second offer is not taken up");
        assert_eq!(first(&mut marks, 0, 150, 200, 3), Some((100, 1)), "something of it went");
        assert_eq!(first(&mut marks, 120, 100, 200, 4), Some((120, 1)), "it goes on from there");
        assert_eq!(first(&mut marks, 200, 150, 200, 5), None, "it has all that could go");

        marks.offered(NODE, 100, 0, 1);
        marks.offered(NODE, 200, 100, 2);
        assert_eq!(first(&mut marks, 100, 150, 200, 3), Some((200, 2)), "the first came too late");

        marks.failed(NODE);
        assert_eq!(first(&mut marks, 100, 150, 200, 4), None);
        marks.offered(NODE, 300, 100, 5);
        assert_eq!(first(&mut marks, 100, 150, 300, 6), Some((300, 5)), "it begins anew");
    }

    #[test]
    fn nothing_is_needed_by_those_that_are_not_heard_of_or_are_beyond_help() {
        let mut marks = Marks::default();
        marks.offered(NODE, 100, 0, 1);
        assert_eq!(marks.first(std::iter::empty(), 90, 200, 2), None);
        assert_eq!(first(&mut marks, 0, 90, 200, 3), None, "nor once it is heard of again, before the next offer");
        assert_eq!(first(&mut marks, 95, 90, 200, 4), Some((95, 4)), "it lags");
        assert_eq!(first(&mut marks, 95, 96, 200, 5), None, "what it lacks has gone");
    }

    #[test]
    fn of_several_the_one_that_is_furthest_behind_counts() {
        let mut marks = Marks::default();
        marks.offered(NODE, 100, 0, 1);
        let others = [(NodeId(3), 120), (NODE, 0), (NodeId(4), 95), (NodeId(5), 500)];
        let mark = marks.first(others.into_iter(), 90, 200, 7).expect("three lack something");
        assert_eq!((mark.index, mark.since), (95, 7));
    }
}
