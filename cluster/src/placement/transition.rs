//! From where a group is to where it is to be, one change after the other.
//!
//! 1. Whoever is to keep the group and does not is made a learner, and begins with a snapshot.
//! 2. Voters change in one joint step from one odd number to another: several are added at once, or taken at once, or one
//!    takes the place of another. Nobody gets a vote before it has caught up.
//! 3. A leader that is to lose its vote hands over first, to one that keeps its own.
//! 4. Whoever is not to keep the group any more is taken out at last.
//!
//! Only a sole voter that is to give way to another leaves the odd numbers: it cannot hand over to a node without a vote, so
//! for a moment both have one.

use std::collections::BTreeSet;

use crate::directory::Placement;
use crate::group::{Change, Configuration};
use crate::identity::NodeId;

/// What the leader of a group does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transition {
    /// Propose these changes, in one step.
    Change(Vec<Change>),
    /// Let another one lead.
    HandOver(NodeId),
}

/// A member of a group as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// It is heard of, and lacks next to nothing of what is committed.
    pub is_ready: bool,
}

/// Whether a group is where it is to be.
#[must_use]
pub fn is_settled(now: &Configuration, wanted: &Placement) -> bool {
    let is =
        |list: &[NodeId], set: &BTreeSet<NodeId>| list.len() == set.len() && list.iter().all(|one| set.contains(one));
    now.voters_outgoing.is_empty() && is(&now.voters, &wanted.voters) && is(&now.learners, &wanted.learners)
}

/// What `me`, the leader, does next; `None` if there is nothing to do, or it must wait for somebody to catch up.
///
/// `preferred` leads if it can, once the group is where it is to be.
pub fn next(
    me: NodeId,
    now: &Configuration,
    wanted: &Placement,
    preferred: Option<NodeId>,
    peer: impl Fn(NodeId) -> Peer,
) -> Option<Transition> {
    // The leader ends a joint step by itself.
    if wanted.voters.is_empty() || !now.voters_outgoing.is_empty() {
        return None;
    }
    if let Some(node) = wanted.nodes().find(|&node| !now.contains(node)) {
        return Some(Transition::Change(vec![Change::AddLearner(node)]));
    }
    let is_ready = |node: &NodeId| peer(*node).is_ready;
    let voters: BTreeSet<NodeId> = now.voters.iter().copied().collect();
    if voters == wanted.voters {
        return settle(now, wanted).or_else(|| {
            let preferred = preferred.filter(|node| *node != me && voters.contains(node))?;
            is_ready(&preferred).then_some(Transition::HandOver(preferred))
        });
    }
    let coming: Vec<NodeId> = wanted.voters.difference(&voters).copied().filter(is_ready).collect();
    // Those that are not heard of go first.
    let (mut going, answering): (Vec<NodeId>, Vec<NodeId>) =
        voters.difference(&wanted.voters).copied().filter(|&node| node != me).partition(|node| !is_ready(node));
    going.extend(answering);
    let leave = |node: NodeId| {
        if wanted.learners.contains(&node) { Change::AddLearner(node) } else { Change::Remove(node) }
    };

    if voters.len() < wanted.voters.len() {
        let room = wanted.voters.len() - voters.len();
        let added = to_odd(coming.len().min(room), |count| voters.len() + count);
        if added > 0 {
            return Some(Transition::Change(coming[..added].iter().copied().map(Change::AddVoter).collect()));
        }
    }
    if !wanted.voters.contains(&me) {
        // Whoever keeps its vote can do the rest.
        if let Some(&heir) = voters.intersection(&wanted.voters).find(|&node| is_ready(node)) {
            return Some(Transition::HandOver(heir));
        }
    }
    match (coming.first(), going.first()) {
        (Some(&new), Some(&old)) => Some(Transition::Change(vec![Change::AddVoter(new), leave(old)])),
        (Some(&new), None) if voters.len() == 1 && !wanted.voters.contains(&me) => {
            Some(Transition::Change(vec![Change::AddVoter(new)]))
        }
        (None, Some(_)) if wanted.voters.is_subset(&voters) => {
            let taken = to_odd(going.len(), |count| voters.len() - count);
            (taken > 0).then(|| Transition::Change(going[..taken].iter().copied().map(leave).collect()))
        }
        _ => None,
    }
}

/// To whom `me`, the leader, gives way at once because it is drained: to whoever is `preferred`, or else to any other that is
/// not drained and has everything. `None`: it may lead, or nobody could in its place.
///
/// Whoever is to lose its vote is no heir: it would have to hand over itself, perhaps to this one, and neither would come to
/// change the members.
pub fn heir(
    me: NodeId,
    now: &Configuration,
    wanted: &Placement,
    preferred: Option<NodeId>,
    drained: &BTreeSet<NodeId>,
    peer: impl Fn(NodeId) -> Peer,
) -> Option<NodeId> {
    if !drained.contains(&me) || !now.voters_outgoing.is_empty() {
        return None;
    }
    let has_vote = |node: &NodeId| now.voters.contains(node) && wanted.voters.contains(node);
    let could = |node: &NodeId| *node != me && has_vote(node) && !drained.contains(node) && peer(*node).is_ready;
    preferred.into_iter().chain(now.voters.iter().copied()).find(could)
}

/// The most of `count` with which an odd number of voters is left.
fn to_odd(count: usize, left: impl Fn(usize) -> usize) -> usize {
    (1..=count).rev().find(|&count| left(count) % 2 == 1).unwrap_or(0)
}

/// Voters are right: learners follow.
fn settle(now: &Configuration, wanted: &Placement) -> Option<Transition> {
    let gone = now.learners.iter().copied().find(|node| !wanted.learners.contains(node))?;
    Some(Transition::Change(vec![Change::Remove(gone)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids<C: FromIterator<NodeId>>(numbers: &[u64]) -> C {
        numbers.iter().copied().map(NodeId).collect()
    }

    fn placed(voters: &[u64], learners: &[u64]) -> Placement {
        Placement { voters: ids(voters), learners: ids(learners) }
    }

    fn group(voters: &[u64], learners: &[u64]) -> Configuration {
        Configuration { voters: ids(voters), learners: ids(learners), ..Configuration::default() }
    }

    /// The next step of node `me` if those named are ready.
    fn step(me: u64, now: &Configuration, wanted: &Placement, ready: &[u64]) -> Option<Transition> {
        next(NodeId(me), now, wanted, None, |node| Peer { is_ready: ready.contains(&node.0) })
    }

    fn change(changes: &[Change]) -> Option<Transition> {
        Some(Transition::Change(changes.to_vec()))
    }

    fn hand_over(to: u64) -> Option<Transition> {
        Some(Transition::HandOver(NodeId(to)))
    }

    use Change::{AddLearner, AddVoter, Remove};

    #[test]
    fn a_single_node_grows_to_three_in_one_joint_step() {
        let wanted = placed(&[1, 2, 3], &[]);
        assert_eq!(step(1, &group(&[1], &[]), &wanted, &[1]), change(&[AddLearner(NodeId(2))]));
        assert_eq!(step(1, &group(&[1], &[2]), &wanted, &[1, 2]), change(&[AddLearner(NodeId(3))]));
        let both = group(&[1], &[2, 3]);
        assert_eq!(step(1, &both, &wanted, &[1, 2]), None, "two voters would be worse than one");
        assert_eq!(step(1, &both, &wanted, &[1, 2, 3]), change(&[AddVoter(NodeId(2)), AddVoter(NodeId(3))]));
    }

    #[test]
    fn a_voter_is_replaced_by_one_that_caught_up() {
        let wanted = placed(&[1, 2, 4], &[]);
        assert_eq!(step(1, &group(&[1, 2, 3], &[]), &wanted, &[1, 2, 3]), change(&[AddLearner(NodeId(4))]));
        let followed = group(&[1, 2, 3], &[4]);
        assert_eq!(step(1, &followed, &wanted, &[1, 2, 3]), None, "it has not caught up");
        assert_eq!(step(1, &followed, &wanted, &[1, 2, 3, 4]), change(&[AddVoter(NodeId(4)), Remove(NodeId(3))]));
        let kept = placed(&[1, 2, 4], &[3]);
        assert_eq!(step(1, &followed, &kept, &[1, 2, 3, 4]), change(&[AddVoter(NodeId(4)), AddLearner(NodeId(3))]));
    }

    #[test]
    fn a_leader_that_is_drained_gives_way_to_the_preferred_one_or_to_any_that_can() {
        let now = group(&[1, 2, 3], &[4]);
        let wanted = placed(&[1, 2, 3], &[4]);
        let heir = |me: u64, preferred: u64, drained: &[u64], ready: &[u64]| {
            let is_ready = |node: NodeId| Peer { is_ready: ready.contains(&node.0) };
            heir(NodeId(me), &now, &wanted, NodeId::new(preferred), &ids(drained), is_ready).map(|node| node.0)
        };
        assert_eq!(heir(1, 3, &[], &[1, 2, 3]), None, "it may stay until it has been in office for a while");
        assert_eq!(heir(1, 3, &[1], &[1, 2, 3]), Some(3));
        assert_eq!(heir(1, 3, &[1], &[1, 2]), Some(2), "the preferred one is down");
        assert_eq!(heir(1, 3, &[1, 2], &[1, 2]), None, "the other one is drained as well");
        assert_eq!(heir(1, 4, &[1], &[1, 4]), None, "a learner cannot lead");
        let joint = Configuration { voters_outgoing: ids(&[1, 2]), ..now.clone() };
        let ready = |_| Peer { is_ready: true };
        assert_eq!(
            super::heir(NodeId(1), &joint, &wanted, None, &ids(&[1]), ready),
            None,
            "it ends the joint step first"
        );
        let moving = placed(&[1, 3, 4], &[]);
        assert_eq!(super::heir(NodeId(1), &now, &moving, NodeId::new(2), &ids(&[1]), ready), NodeId::new(3));
        let only = placed(&[1, 4, 5], &[]);
        assert_eq!(super::heir(NodeId(1), &now, &only, None, &ids(&[1]), ready), None, "it changes the members first");
    }

    #[test]
    fn several_are_replaced_one_by_one_and_those_that_are_silent_first() {
        let wanted = placed(&[1, 4, 5], &[]);
        let now = group(&[1, 2, 3], &[4, 5]);
        assert_eq!(step(1, &now, &wanted, &[1, 2, 4, 5]), change(&[AddVoter(NodeId(4)), Remove(NodeId(3))]));
    }

    #[test]
    fn a_leader_hands_over_before_it_loses_its_vote() {
        let wanted = placed(&[2, 3, 4], &[]);
        assert_eq!(step(1, &group(&[1, 2, 3], &[4]), &wanted, &[1, 3, 4]), hand_over(3));
        assert_eq!(
            step(3, &group(&[1, 2, 3], &[4]), &wanted, &[3, 4]),
            change(&[AddVoter(NodeId(4)), Remove(NodeId(1))])
        );
    }

    #[test]
    fn a_sole_voter_gives_way_to_another() {
        let wanted = placed(&[2], &[]);
        assert_eq!(step(1, &group(&[1], &[2]), &wanted, &[1]), None);
        assert_eq!(step(1, &group(&[1], &[2]), &wanted, &[1, 2]), change(&[AddVoter(NodeId(2))]));
        assert_eq!(step(1, &group(&[1, 2], &[]), &wanted, &[1, 2]), hand_over(2));
        assert_eq!(step(2, &group(&[1, 2], &[]), &wanted, &[2]), change(&[Remove(NodeId(1))]));
    }

    #[test]
    fn a_group_shrinks_between_odd_numbers() {
        let wanted = placed(&[1], &[2]);
        let taken = change(&[AddLearner(NodeId(2)), Remove(NodeId(3))]);
        assert_eq!(
            step(1, &group(&[1, 2, 3], &[]), &wanted, &[1, 2, 3]),
            change(&[AddLearner(NodeId(2)), Remove(NodeId(3))])
        );
        assert_eq!(step(1, &group(&[1, 2, 3], &[]), &wanted, &[1, 2]).map(sorted), taken.map(sorted));
        let five = group(&[1, 2, 3, 4, 5], &[]);
        assert_eq!(
            step(1, &five, &placed(&[1, 2, 3], &[]), &[1, 2, 3, 4, 5]),
            change(&[Remove(NodeId(4)), Remove(NodeId(5))])
        );
        assert_eq!(step(4, &five, &placed(&[1, 2, 3], &[]), &[1, 2, 3, 4, 5]), hand_over(1));
    }

    fn sorted(transition: Transition) -> Transition {
        match transition {
            Transition::Change(mut changes) => {
                changes.sort_by_key(|change| match *change {
                    AddVoter(node) | AddLearner(node) | Remove(node) => node,
                });
                Transition::Change(changes)
            }
            other => other,
        }
    }

    #[test]
    fn learners_go_last_and_then_the_preferred_one_leads() {
        let wanted = placed(&[1, 2, 3], &[]);
        assert_eq!(step(1, &group(&[1, 2, 3], &[4]), &wanted, &[1, 2, 3]), change(&[Remove(NodeId(4))]));
        let there = group(&[1, 2, 3], &[]);
        let prefer =
            |node: u64, ready: bool| next(NodeId(1), &there, &wanted, Some(NodeId(node)), |_| Peer { is_ready: ready });
        assert_eq!(prefer(2, true), hand_over(2));
        assert_eq!(prefer(2, false), None);
        assert_eq!(prefer(1, true), None);
        assert_eq!(prefer(9, true), None, "no voter");
    }

    #[test]
    fn nothing_is_done_during_a_joint_step_or_towards_nothing() {
        let joint = Configuration { voters_outgoing: ids(&[1]), auto_leave: true, ..group(&[1, 2, 3], &[]) };
        assert_eq!(step(1, &joint, &placed(&[1], &[]), &[1, 2, 3]), None);
        assert_eq!(step(1, &group(&[1], &[]), &placed(&[], &[]), &[1]), None);
        assert!(!is_settled(&joint, &placed(&[1, 2, 3], &[])));
        assert!(is_settled(&group(&[1, 2], &[3]), &placed(&[2, 1], &[3])));
    }

    /// From anywhere to anywhere, over any leader: it ends where it should, over odd numbers but for the sole voter, and the
    /// directory is never followed into a group without a voter that is there.
    #[test]
    fn every_way_ends_where_it_should() {
        let sets: Vec<Vec<u64>> =
            (1_u32..32).map(|bits| (1..=5).filter(|node| bits & (1 << (node - 1)) != 0).collect()).collect();
        let odd: Vec<_> = sets.iter().filter(|set| set.len() % 2 == 1).collect();
        for from in &odd {
            for to in &odd {
                let rest: Vec<u64> = (1..=5).filter(|node| !to.contains(node)).collect();
                for learners in [&[][..], &rest] {
                    walk(from, &placed(to, learners));
                }
            }
        }
    }

    fn walk(from: &[u64], wanted: &Placement) {
        let mut now = group(from, &[]);
        let mut leader = NodeId(from[0]);
        for _ in 0..40 {
            match next(leader, &now, wanted, None, |_| Peer { is_ready: true }) {
                None => break,
                Some(Transition::HandOver(to)) => leader = to,
                Some(Transition::Change(changes)) => {
                    let before = now.voters.len();
                    changes.iter().for_each(|change| apply(&mut now, *change));
                    let is_odd = now.voters.len() % 2 == 1;
                    assert!(is_odd || (before == 1 && wanted.voters.len() == 1), "{from:?} {wanted:?} {now:?}");
                    assert!(now.voters.contains(&leader), "{from:?} {wanted:?} {now:?}");
                }
            }
        }
        assert!(is_settled(&now, wanted), "from {from:?} to {wanted:?}: {now:?}");
    }

    fn apply(now: &mut Configuration, change: Change) {
        let (AddVoter(node) | AddLearner(node) | Remove(node)) = change;
        now.voters.retain(|&other| other != node);
        now.learners.retain(|&other| other != node);
        match change {
            AddVoter(_) => now.voters.push(node),
            AddLearner(_) => now.learners.push(node),
            Remove(_) => {}
        }
    }
}
