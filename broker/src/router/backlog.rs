//! What an arbiter's lanes hold without an answer, for operators: looked at once a second.

use std::collections::BTreeMap;

use super::arbiter::ArbiterState;

/// Messages and commands in lanes that nobody has answered for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// By the group that they are for.
    pub groups: Vec<u64>,
    /// By the node whose clients they are for.
    pub nodes: BTreeMap<u64, u64>,
}

impl Backlog {
    /// With what others hold.
    #[must_use]
    pub fn sum<'a>(backlogs: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for Self { groups, nodes } in backlogs {
            sum.groups.resize(sum.groups.len().max(groups.len()), 0);
            sum.groups.iter_mut().zip(groups).for_each(|(sum, held)| *sum += held);
            nodes.iter().for_each(|(&node, held)| *sum.nodes.entry(node).or_default() += held);
        }
        sum
    }
}

impl ArbiterState {
    /// Says what the lanes here hold. Once a second.
    pub(super) fn show_backlog(&self) {
        let Some(cluster) = &self.shared.cluster else {
            return;
        };
        let mut nodes: BTreeMap<u64, u64> = BTreeMap::new();
        for (number, held) in self.lanes.nodes.held() {
            if let Some(process) = cluster.nodes.get(number) {
                *nodes.entry(process.node).or_default() += held;
            }
        }
        self.shared.show_backlog(self.id, Backlog { groups: self.lanes.held(), nodes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_arbiters_hold_is_added_up() {
        let one = Backlog { groups: vec![1, 2], nodes: BTreeMap::from([(7, 3)]) };
        let other = Backlog { groups: vec![0, 5, 1], nodes: BTreeMap::from([(7, 1), (8, 2)]) };
        let sum = Backlog { groups: vec![1, 7, 1], nodes: BTreeMap::from([(7, 4), (8, 2)]) };
        assert_eq!(Backlog::sum([&one, &other]), sum);
        assert_eq!(Backlog::sum([]), Backlog::default());
    }
}
