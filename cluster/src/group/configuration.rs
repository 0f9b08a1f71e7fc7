//! Who votes in a group.

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};

use crate::directory::Placement;
use crate::identity::NodeId;
use crate::log::LogId;

/// The members of a group: during a joint step (Raft, section 6) a decision needs a majority of `voters` and one of
/// `voters_outgoing`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Those who vote.
    pub voters: Vec<NodeId>,
    /// Those who follow without a vote.
    pub learners: Vec<NodeId>,
    /// Those who voted before the joint step that is under way.
    pub voters_outgoing: Vec<NodeId>,
    /// Voters that the joint step makes learners when it ends.
    pub learners_next: Vec<NodeId>,
    /// Whether the leader ends the joint step by itself.
    pub auto_leave: bool,
}

impl Configuration {
    /// Of voters only.
    #[must_use]
    pub fn of(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// Whether `node` is a member of any kind.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.lists().iter().any(|list| list.contains(&node))
    }

    /// Whether `node` has a vote.
    #[must_use]
    pub fn votes(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.voters_outgoing.contains(&node)
    }

    /// Whether `node` decides and stores alone.
    #[must_use]
    pub fn is_only(&self, node: NodeId) -> bool {
        self.voters == [node] && self.lists()[1..].iter().all(|list| list.is_empty())
    }

    fn lists(&self) -> [&Vec<NodeId>; 4] {
        [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next]
    }

    /// Bytes to be stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.auto_leave)];
        for list in self.lists() {
            bytes.extend_from_slice(&(list.len() as u32).to_be_bytes());
            list.iter().for_each(|node| bytes.extend_from_slice(&node.0.to_be_bytes()));
        }
        bytes
    }

    /// From the bytes that were stored.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&auto_leave, mut rest) = bytes.split_first()?;
        let mut list = || {
            let (length, tail) = rest.split_at_checked(4)?;
            let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
            let (nodes, tail) = tail.split_at_checked(length.checked_mul(8)?)?;
            rest = tail;
            Some(
                nodes
                    .chunks_exact(8)
                    .map(|node| NodeId(u64::from_be_bytes(node.try_into().unwrap_or_default())))
                    .collect(),
            )
        };
        let (voters, learners, voters_outgoing, learners_next) = (list()?, list()?, list()?, list()?);
        let auto_leave = auto_leave != 0;
        rest.is_empty().then_some(Self { voters, learners, voters_outgoing, learners_next, auto_leave })
    }

    /// Whether `raft-rs` can take this for a configuration: it ends the process over one that contradicts itself.
    pub(super) fn is_sound(&self) -> bool {
        let once = |list: &[NodeId]| {
            list.iter().all(|node| node.0 != 0 && list.iter().filter(|other| *other == node).count() == 1)
        };
        !self.voters.is_empty()
            && self.lists().into_iter().all(|list| once(list))
            && !self.learners.iter().any(|&node| self.votes(node) || self.learners_next.contains(&node))
            && self.learners_next.iter().all(|node| self.voters_outgoing.contains(node) && !self.voters.contains(node))
            && (!self.auto_leave || !self.voters_outgoing.is_empty())
    }
}

fn numbers(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

/// Sorted: `raft-rs` keeps members in hash sets.
fn nodes(numbers: &[u64]) -> Vec<NodeId> {
    let mut nodes: Vec<_> = numbers.iter().copied().map(NodeId).collect();
    nodes.sort_unstable();
    nodes
}

impl From<&Placement> for Configuration {
    fn from(placement: &Placement) -> Self {
        let nodes = |nodes: &std::collections::BTreeSet<NodeId>| nodes.iter().copied().collect();
        Self { voters: nodes(&placement.voters), learners: nodes(&placement.learners), ..Self::default() }
    }
}

impl From<&Configuration> for ConfState {
    fn from(configuration: &Configuration) -> Self {
        Self {
            voters: numbers(&configuration.voters),
            learners: numbers(&configuration.learners),
            voters_outgoing: numbers(&configuration.voters_outgoing),
            learners_next: numbers(&configuration.learners_next),
            auto_leave: configuration.auto_leave,
        }
    }
}

impl From<&ConfState> for Configuration {
    fn from(state: &ConfState) -> Self {
        Self {
            voters: nodes(&state.voters),
            learners: nodes(&state.learners),
            voters_outgoing: nodes(&state.voters_outgoing),
            learners_next: nodes(&state.learners_next),
            auto_leave: state.auto_leave,
        }
    }
}

/// One change of a configuration. Several at once are made in one joint step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A learner that caught up gets a vote.
    AddVoter(NodeId),
    /// A node follows without a vote, or loses its vote.
    AddLearner(NodeId),
    /// A node is no member any more.
    Remove(NodeId),
}

pub(super) fn conf_change(changes: &[Change]) -> ConfChangeV2 {
    let single = |change: &Change| {
        let (kind, node) = match *change {
            Change::AddVoter(node) => (ConfChangeType::AddNode, node),
            Change::AddLearner(node) => (ConfChangeType::AddLearnerNode, node),
            Change::Remove(node) => (ConfChangeType::RemoveNode, node),
        };
        ConfChangeSingle { change_type: kind as i32, node_id: node.0 }
    };
    ConfChangeV2 { changes: changes.iter().map(single).collect(), ..ConfChangeV2::default() }
}

/// How far a group's checkpoint goes: where its log may begin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointBase {
    /// The last entry that is in it.
    pub applied: LogId,
    /// The members as of that entry.
    pub configuration: Configuration,
}

impl CheckpointBase {
    /// Of a group that was never written to. Its log begins above index 0, so that who joins later begins with a snapshot,
    /// and the configuration in it.
    #[must_use]
    pub fn new_group(configuration: Configuration) -> Self {
        Self { applied: LogId { index: 5, term: 5 }, configuration }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint() -> Configuration {
        Configuration {
            voters: vec![NodeId(1), NodeId(2)],
            learners: vec![NodeId(3)],
            voters_outgoing: vec![NodeId(1), NodeId(4)],
            learners_next: vec![NodeId(4)],
            auto_leave: true,
        }
    }

    #[test]
    fn a_configuration_is_read_as_it_was_stored() {
        let bytes = joint().to_bytes();
        assert_eq!(Configuration::from_bytes(&bytes), Some(joint()));
        for length in 0..bytes.len() {
            assert_eq!(Configuration::from_bytes(&bytes[..length]), None, "cut at {length}");
        }
        assert_eq!(Configuration::from_bytes(&[0, 0xFF, 0xFF, 0xFF, 0xFF]), None);
    }

    #[test]
    fn a_configuration_that_contradicts_itself_is_not_sound() {
        assert!(joint().is_sound());
        assert!(!Configuration::default().is_sound());
        assert!(!Configuration::of([NodeId(1), NodeId(1)]).is_sound());
        assert!(!Configuration { learners: vec![NodeId(1)], ..joint() }.is_sound());
        assert!(!Configuration { learners_next: vec![NodeId(3)], ..joint() }.is_sound());
        assert!(!Configuration { auto_leave: true, ..Configuration::of([NodeId(1)]) }.is_sound());
    }
}
