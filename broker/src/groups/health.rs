//! Whether this node's replicas are what others count on when they send clients here, or take another node down.
//!
//! A node that was just started votes and holds a lease long before it has what was committed while it was away. If a rolling
//! restart went on to the next node by then, groups of three would be down to one replica that has everything. So a node
//! asks for the read index of each group that it keeps (Raft, section 6.4), and has caught up when it has applied as much
//! of all of them. From then on it keeps up; it asks again when it lost its lease, for then it may have been away.
//!
//! A group that went to other nodes while this one was away never tells it so: who leads it now does not know of this replica. So
//! what the directory says counts: what others are to keep, this node is not asked for.

use std::collections::{BTreeMap, BTreeSet};

use crossbeam::channel::{Receiver, TryRecvError, bounded};
use kentongan_cluster::data_dir::UnsyncedLog;
use kentongan_cluster::group::{GroupStatus, Role};
use kentongan_cluster::{GroupId, NodeId, PipelineHandle};

use crate::replicated::Query;

/// What is known of the replicas of this node. Asked from time to time, and never waits.
#[derive(Debug)]
pub struct Health {
    pipeline: PipelineHandle<Query>,
    status: Option<Receiver<Vec<(GroupId, GroupStatus)>>>,
    elsewhere: Option<Receiver<BTreeSet<GroupId>>>,
    view: View,
    /// The log may lack what this node acknowledged before it had caught up.
    unsynced: Option<UnsyncedLog>,
}

impl Health {
    pub(super) fn new(node: NodeId, pipeline: PipelineHandle<Query>, unsynced: Option<UnsyncedLog>) -> Self {
        Self { pipeline, status: None, elsewhere: None, view: View::new(node), unsynced }
    }

    /// Takes in what was asked at the look before, and asks again. `in_step`: whether the node holds a lease.
    pub fn look(&mut self, in_step: bool) {
        if !in_step {
            self.view.begin_anew();
        }
        self.look_elsewhere();
        let answer = self.status.as_ref().map(Receiver::try_recv);
        match answer {
            Some(Err(TryRecvError::Empty)) => return,
            Some(Ok(groups)) if in_step => self.view.see(&groups, |group| {
                let (reached, answered) = bounded(1);
                self.pipeline.read_index(group, Query::Reached(reached));
                answered
            }),
            _ => {}
        }
        if let Some(unsynced) = self.unsynced.take_if(|_| self.view.has_caught_up)
            && let Err(error) = unsynced.end()
        {
            // The next process is as careful, which does no harm.
            tracing::warn!(%error, "that the log is whole again could not be noted");
        }
        self.status = Some(self.pipeline.status());
    }

    fn look_elsewhere(&mut self) {
        match self.elsewhere.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return,
            Some(Ok(groups)) => self.view.elsewhere = groups,
            _ => {}
        }
        let (told, elsewhere) = bounded(1);
        self.pipeline.notify(Query::PlacedElsewhere(told));
        self.elsewhere = Some(elsewhere);
    }

    /// Whether each group in which this node votes has a leader.
    #[must_use]
    pub fn has_leaders(&self) -> bool {
        self.view.has_leaders
    }

    /// Whether this node has had, since it was started or had no lease, all that was committed in the groups that it keeps.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        self.view.has_caught_up
    }
}

#[derive(Debug)]
struct View {
    node: NodeId,
    has_leaders: bool,
    has_caught_up: bool,
    /// Questions for a read index that wait for it to be applied here.
    asked: BTreeMap<GroupId, Receiver<()>>,
    reached: BTreeSet<GroupId>,
    /// Groups that others are to keep.
    elsewhere: BTreeSet<GroupId>,
}

impl View {
    fn new(node: NodeId) -> Self {
        let (asked, reached, elsewhere) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { node, has_leaders: false, has_caught_up: false, asked, reached, elsewhere }
    }

    fn begin_anew(&mut self) {
        *self = Self { elsewhere: std::mem::take(&mut self.elsewhere), ..Self::new(self.node) };
    }

    fn see(&mut self, groups: &[(GroupId, GroupStatus)], mut ask: impl FnMut(GroupId) -> Receiver<()>) {
        let is_here = |group: &GroupId| !self.elsewhere.contains(group);
        let votes = |group: &GroupId, status: &GroupStatus| is_here(group) && status.configuration.votes(self.node);
        self.has_leaders = groups.iter().all(|(group, status)| !votes(group, status) || has_leader(status));
        // Replicas that come later are no reason to send clients elsewhere: those that were there are as good as before.
        if self.has_caught_up {
            return;
        }
        let is_kept =
            |(group, status): &&(GroupId, GroupStatus)| is_here(group) && status.configuration.contains(self.node);
        let kept: BTreeSet<GroupId> = groups.iter().filter(is_kept).map(|&(group, _)| group).collect();
        let missing: Vec<GroupId> = kept.difference(&self.reached).copied().collect();
        for group in missing {
            match self.asked.get(&group).map(Receiver::try_recv) {
                Some(Ok(())) => {
                    self.reached.insert(group);
                }
                Some(Err(TryRecvError::Empty)) => {}
                // Not asked yet, or given up since nobody leads the group.
                Some(Err(TryRecvError::Disconnected)) | None => drop(self.asked.insert(group, ask(group))),
            }
        }
        self.has_caught_up = kept.is_subset(&self.reached);
        if self.has_caught_up {
            self.asked.clear();
        }
    }
}

fn has_leader(status: &GroupStatus) -> bool {
    match status.role {
        Role::Leader { ready } => ready,
        Role::Follower { leader } => leader.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::Sender;
    use kentongan_cluster::Configuration;
    use kentongan_cluster::log::LogId;

    use super::*;

    const ME: NodeId = NodeId(1);
    const FOLLOWS: Role = Role::Follower { leader: Some(NodeId(2)) };
    const ORPHAN: Role = Role::Follower { leader: None };

    fn group(number: u16, role: Role, configuration: Configuration) -> (GroupId, GroupStatus) {
        let (committed, last, peers) = (0, 0, Vec::new());
        let handed_out = LogId { term: 1, index: 0 };
        (GroupId(number), GroupStatus { term: 1, role, committed, handed_out, last, configuration, peers })
    }

    fn voting(number: u16, role: Role) -> (GroupId, GroupStatus) {
        group(number, role, Configuration::of([ME, NodeId(2), NodeId(3)]))
    }

    /// A view, and the questions that it asked.
    struct Seen {
        view: View,
        asked: Vec<(GroupId, Sender<()>)>,
    }

    impl Seen {
        fn new() -> Self {
            Self { view: View::new(ME), asked: Vec::new() }
        }

        fn see(&mut self, groups: &[(GroupId, GroupStatus)]) -> (bool, bool) {
            let asked = &mut self.asked;
            self.view.see(groups, |group| {
                let (reached, answered) = bounded(1);
                asked.push((group, reached));
                answered
            });
            (self.view.has_leaders, self.view.has_caught_up)
        }

        fn reach(&mut self, number: u16) {
            let place = self.asked.iter().position(|(group, _)| *group == GroupId(number)).expect("it asked");
            self.asked.remove(place).1.send(()).unwrap();
        }
    }

    #[test]
    fn a_node_has_caught_up_when_it_reached_the_read_index_of_every_group_that_it_keeps() {
        let mut seen = Seen::new();
        let learns = Configuration { learners: vec![ME], ..Configuration::of([NodeId(2)]) };
        let groups = [voting(0, FOLLOWS), group(1, FOLLOWS, learns), group(2, FOLLOWS, Configuration::of([NodeId(2)]))];
        assert_eq!(seen.see(&groups), (true, false));
        assert_eq!(seen.asked.len(), 2, "the third one is others'");
        seen.reach(0);
        assert_eq!(seen.see(&groups), (true, false));
        assert_eq!(seen.asked.len(), 1, "none is asked for twice");
        seen.reach(1);
        assert_eq!(seen.see(&groups), (true, true));
    }

    #[test]
    fn a_question_that_was_given_up_is_asked_again() {
        let mut seen = Seen::new();
        seen.see(&[voting(0, ORPHAN)]);
        seen.asked.clear();
        assert_eq!(seen.see(&[voting(0, FOLLOWS)]), (true, false));
        seen.reach(0);
        assert_eq!(seen.see(&[voting(0, FOLLOWS)]), (true, true));
    }

    #[test]
    fn what_it_is_given_later_does_not_make_it_lag() {
        let mut seen = Seen::new();
        assert_eq!(seen.see(&[]), (true, true));
        assert_eq!(seen.see(&[voting(0, FOLLOWS)]), (true, true));
        seen.view.begin_anew();
        assert_eq!(seen.see(&[voting(0, FOLLOWS)]), (true, false), "unless it was away");
    }

    /// It went there while this node was away, and nobody who leads it knows of this replica.
    #[test]
    fn a_group_that_others_are_to_keep_is_not_waited_for() {
        let mut seen = Seen::new();
        let groups = [voting(0, FOLLOWS), voting(1, ORPHAN)];
        assert_eq!(seen.see(&groups), (false, false));
        seen.view.elsewhere = BTreeSet::from([GroupId(1)]);
        seen.reach(0);
        assert_eq!(seen.see(&groups), (true, true));
        seen.view.begin_anew();
        assert_eq!(seen.see(&groups), (true, false), "that it goes on being so is known");
    }

    #[test]
    fn a_vote_in_a_group_without_a_leader_is_missed() {
        let mut seen = Seen::new();
        let learns = Configuration { learners: vec![ME], ..Configuration::of([NodeId(2)]) };
        assert!(seen.see(&[voting(0, FOLLOWS), group(1, ORPHAN, learns)]).0);
        assert!(!seen.see(&[voting(0, FOLLOWS), voting(1, ORPHAN)]).0);
        assert!(!seen.see(&[voting(0, Role::Leader { ready: false })]).0);
        assert!(seen.see(&[voting(0, Role::Leader { ready: true })]).0);
    }
}
