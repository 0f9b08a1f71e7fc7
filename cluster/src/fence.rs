//! When a dead incarnation is lost.
//!
//! A *fence* is what refuses the lanes of a dead incarnation. Every group commits one and releases its sessions; every node
//! drops its lanes. Each says so to the leader of the directory with every renewal, again and again, so that a new leader
//! needs nothing of the old one. Only when all have said so is the incarnation *lost*: then nobody waits for it any more, its
//! sessions are taken over, and a batch of it that is still on its way finds no door open.

use std::collections::{BTreeMap, BTreeSet};

use crate::directory::{Dead, Directory};
use crate::identity::GroupId;
use crate::identity::{Incarnation, NodeId};

/// Who says that it has fenced an incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Witness {
    /// Its fence is applied and the last session of the dead incarnation released. Any leader of the group may say so, also a
    /// deposed one: what it applied was committed.
    Group(GroupId),
    /// Dropped its lanes when it applied the `Dead`.
    Node(Incarnation),
}

/// Collects what witnesses say, at the leader of the directory. Lives as long as one leadership.
#[derive(Debug, Default)]
pub struct Fences {
    /// Only of incarnations that are dead and not lost, so it is bounded by the members.
    fenced_by: BTreeMap<Incarnation, BTreeSet<Witness>>,
}

impl Fences {
    /// Nothing said yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A witness says that it has fenced `dead`. What is said before the `Dead` is applied here is forgotten: it will be said
    /// again. So is what nobody waits for.
    pub fn on_fenced(&mut self, directory: &Directory, witness: Witness, dead: &[Incarnation]) {
        let is_waited_for = |dead: &Dead| match witness {
            Witness::Group(group) => directory.groups().any(|known| known == group),
            Witness::Node(incarnation) => dead.witnesses.contains(&incarnation),
        };
        for incarnation in dead {
            if directory.dead_not_lost().get(incarnation).is_some_and(is_waited_for) {
                self.fenced_by.entry(*incarnation).or_default().insert(witness);
            }
        }
    }

    /// Those whose `Lost` can be proposed, oldest first. Repeats itself until it is committed.
    pub fn lost(&mut self, directory: &Directory) -> Vec<(NodeId, Incarnation)> {
        self.fenced_by.retain(|incarnation, _| directory.dead_not_lost().contains_key(incarnation));
        let is_lost = |witnesses: &BTreeSet<Incarnation>, said: &BTreeSet<Witness>| {
            witnesses.iter().all(|&witness| said.contains(&Witness::Node(witness)))
                && directory.groups().all(|group| said.contains(&Witness::Group(group)))
        };
        (self.fenced_by.iter())
            .filter_map(|(&incarnation, said)| {
                let dead = directory.dead_not_lost().get(&incarnation)?;
                is_lost(&dead.witnesses, said).then_some((dead.node, incarnation))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::command::{Command, Departed, Form, Join, MemberRecord};

    fn node(id: u64) -> NodeId {
        NodeId::new(id).expect("not zero")
    }

    /// Two groups; nodes 1, 2 and 3 joined as incarnations 2, 3 and 4.
    fn directory() -> Directory {
        let mut directory = Directory::new();
        let form = Form { cluster_id: vec![1].into(), groups: 2, ..Form::default() };
        directory.apply(1, Command::Form(form));
        for id in [1, 2, 3] {
            let member = MemberRecord { node: id, name: id.to_string(), ..MemberRecord::default() };
            directory.apply(id + 1, Command::Join(Join { member: Some(member), attempt: 1, newest: 0 }));
        }
        directory
    }

    fn departed(id: u64) -> Departed {
        Departed { node: id, incarnation: id + 1 }
    }

    fn kill(directory: &mut Directory, id: u64) {
        directory.apply(directory.applied() + 1, Command::Dead(departed(id)));
    }

    const GROUPS: [Witness; 2] = [Witness::Group(GroupId(0)), Witness::Group(GroupId(1))];

    fn living(incarnation: u64) -> Witness {
        Witness::Node(Incarnation(incarnation))
    }

    /// Feeds one confirmation and says who is lost now.
    fn say(fences: &mut Fences, directory: &Directory, witness: Witness, dead: u64) -> Vec<u64> {
        fences.on_fenced(directory, witness, &[Incarnation(dead)]);
        fences.lost(directory).into_iter().map(|(_, incarnation)| incarnation.0).collect()
    }

    #[test]
    fn lost_waits_for_every_group_and_every_node_that_lived() {
        let mut directory = directory();
        let mut fences = Fences::new();
        kill(&mut directory, 1);
        for witness in [GROUPS[0], GROUPS[1], living(3), living(3), GROUPS[0]] {
            assert_eq!(say(&mut fences, &directory, witness, 2), [0; 0], "{witness:?}");
        }
        assert_eq!(say(&mut fences, &directory, living(4), 2), [2]);
        assert_eq!(fences.lost(&directory), [(node(1), Incarnation(2))], "until it is committed");
        directory.apply(6, Command::Lost(departed(1)));
        assert_eq!(fences.lost(&directory), []);
        assert!(fences.fenced_by.is_empty());
    }

    #[test]
    fn a_node_that_joined_after_the_death_is_not_waited_for() {
        let mut directory = directory();
        let mut fences = Fences::new();
        kill(&mut directory, 1);
        let member = MemberRecord { node: 4, name: "4".to_owned(), ..MemberRecord::default() };
        directory.apply(6, Command::Join(Join { member: Some(member), attempt: 1, newest: 0 }));
        for witness in [GROUPS[0], GROUPS[1], living(3)] {
            say(&mut fences, &directory, witness, 2);
        }
        assert_eq!(say(&mut fences, &directory, living(4), 2), [2]);
    }

    #[test]
    fn a_witness_that_died_meanwhile_is_not_waited_for() {
        let mut directory = directory();
        let mut fences = Fences::new();
        kill(&mut directory, 1);
        for witness in [GROUPS[0], GROUPS[1]] {
            say(&mut fences, &directory, witness, 2);
        }
        assert_eq!(say(&mut fences, &directory, living(3), 2), [0; 0]);
        kill(&mut directory, 3);
        assert_eq!(fences.lost(&directory), [(node(1), Incarnation(2))]);
    }

    #[test]
    fn what_is_said_before_the_death_is_applied_here_does_not_count_and_is_not_kept() {
        let mut directory = directory();
        let mut fences = Fences::new();
        assert_eq!(say(&mut fences, &directory, living(3), 2), [0; 0]);
        assert!(fences.fenced_by.is_empty());
        kill(&mut directory, 1);
        for witness in [GROUPS[0], GROUPS[1], living(4)] {
            assert_eq!(say(&mut fences, &directory, witness, 2), [0; 0]);
        }
        assert_eq!(say(&mut fences, &directory, living(3), 2), [2]);
    }

    #[test]
    fn the_last_node_is_lost_when_the_groups_say_so() {
        let mut directory = directory();
        let mut fences = Fences::new();
        for id in [2, 3, 1] {
            kill(&mut directory, id);
        }
        assert_eq!(fences.lost(&directory), [], "no witness is left, but the groups have not said so");
        assert_eq!(say(&mut fences, &directory, GROUPS[0], 2), [0; 0]);
        assert_eq!(say(&mut fences, &directory, GROUPS[1], 2), [2]);
    }
}
