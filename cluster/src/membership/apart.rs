//! Who is left out because it and others do not hear each other.
//!
//! Whoever lives is waited for: by who subscribes, and by who publishes to what it leads. Two that live, hear the directory's leader and do
//! not hear each other would keep each other's clients waiting until somebody mends the network. So one of them gets no lease any
//! more: it dies, the others go on without it, and it lives again once it and all who live hear each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::directory::Directory;
use crate::identity::{Incarnation, NodeId};
use crate::lease::LEASE_NS;

/// How long two may not hear each other: a link that breaks is up again before, unless the network is broken.
pub(super) const APART_NS_MAX: u64 = 4_000_000_000;

#[derive(Debug)]
struct Report {
    incarnation: Incarnation,
    unheard: BTreeSet<NodeId>,
    at_ns: u64,
}

/// What members say of whom they do not hear, as long as this node leads the directory.
#[derive(Debug, Default)]
pub(super) struct Apart {
    /// The last word of each.
    reports: BTreeMap<NodeId, Report>,
    /// Since when two that live do not hear each other, the lower one first.
    since_ns: BTreeMap<(NodeId, NodeId), u64>,
    left_out: BTreeSet<NodeId>,
}

impl Apart {
    /// A member says whom it does not hear: nodes, living or not.
    pub(super) fn on_report(&mut self, now_ns: u64, node: NodeId, incarnation: Incarnation, unheard: &[u64]) {
        let unheard = unheard.iter().copied().filter_map(NodeId::new).collect();
        self.reports.insert(node, Report { incarnation, unheard, at_ns: now_ns });
    }

    /// Whether it gets no lease.
    pub(super) fn is_left_out(&self, node: NodeId) -> bool {
        self.left_out.contains(&node)
    }

    /// Whether a node may live (again) that says whom it does not hear.
    pub(super) fn may_join(&mut self, node: NodeId, unheard: &[u64], directory: &Directory) -> bool {
        if self.left_out.contains(&node) {
            let mut others = directory.living().map(|(other, _)| other).filter(|&other| other != node);
            let is_unheard_by = |other| self.reports.get(&other).is_some_and(|report| report.unheard.contains(&node));
            if others.any(|other| unheard.contains(&other.get()) || is_unheard_by(other)) {
                return false;
            }
            self.left_out.remove(&node);
        }
        true
    }

    /// Decides who is left out, and returns who was not before, each with one whom it does not hear or who does not hear it. `me`, who
    /// leads the directory, never is. Otherwise it is who keeps apart from most; of equals, who has the fewest clients.
    pub(super) fn judge(
        &mut self,
        now_ns: u64,
        me: NodeId,
        directory: &Directory,
        clients: impl Fn(NodeId) -> u64,
    ) -> Vec<(NodeId, NodeId)> {
        self.follow(now_ns, directory);
        let mut new = Vec::new();
        loop {
            let is_open =
                |pair: &(NodeId, NodeId)| !self.left_out.contains(&pair.0) && !self.left_out.contains(&pair.1);
            let lasts = |since_ns: u64| now_ns.saturating_sub(since_ns) >= APART_NS_MAX;
            let pairs = self.since_ns.iter().filter(|&(pair, &since_ns)| is_open(pair) && lasts(since_ns));
            let mut others: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
            for (&(one, other), _) in pairs {
                others.entry(one).or_default().push(other);
                others.entry(other).or_default().push(one);
            }
            others.remove(&me);
            let rank = |node: NodeId, others: &[NodeId]| (others.len(), std::cmp::Reverse(clients(node)), node);
            let Some((node, others)) = others.into_iter().max_by_key(|(node, others)| rank(*node, others)) else {
                return new;
            };
            self.left_out.insert(node);
            new.extend(others.first().map(|&other| (node, other)));
        }
    }

    fn follow(&mut self, now_ns: u64, directory: &Directory) {
        let lives = |node: NodeId, incarnation| directory.is_living(node, incarnation);
        self.reports
            .retain(|&node, report| lives(node, report.incarnation) && now_ns.saturating_sub(report.at_ns) < LEASE_NS);
        // Who says nothing dies of that.
        let is_known = |node: &NodeId| self.reports.contains_key(node);
        let mut pairs = BTreeSet::new();
        for (&node, report) in &self.reports {
            pairs.extend(
                report.unheard.iter().filter(|&other| is_known(other)).map(|&other| (node.min(other), node.max(other))),
            );
        }
        self.since_ns.retain(|pair, _| pairs.contains(pair));
        for pair in pairs {
            self.since_ns.entry(pair).or_insert(now_ns);
        }
        // Who lives, and is heard again before it is dead, stays. Who is dead has to ask.
        let is_apart = |node: NodeId| self.since_ns.keys().any(|&(one, other)| one == node || other == node);
        self.left_out.retain(|&node| {
            directory.members().get(&node).is_some_and(|member| member.living.is_none() || is_apart(node))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::command::{Command, Departed, Form, Join, MemberRecord};

    const MS: u64 = 1_000_000;

    fn id(node: u64) -> NodeId {
        NodeId::new(node).expect("not zero")
    }

    /// Members that live as incarnations 2, 3, 4 and so on.
    struct Script {
        directory: Directory,
        apart: Apart,
        now_ns: u64,
        clients: BTreeMap<u64, u64>,
    }

    impl Script {
        fn of(nodes: u64) -> Self {
            let record = |node| MemberRecord { node, name: format!("node {node}"), ..MemberRecord::default() };
            let members = (1..=nodes).map(record).collect();
            let form = Form { cluster_id: vec![1].into(), groups: 1, members, ..Form::default() };
            let mut directory = Directory::new();
            directory.apply(1, Command::Form(form));
            for node in 1..=nodes {
                let join = Join { member: Some(record(node)), attempt: 1, newest: 0 };
                directory.apply(node + 1, Command::Join(join));
            }
            Self { directory, apart: Apart::default(), now_ns: 0, clients: BTreeMap::new() }
        }

        fn dies(&mut self, node: u64) {
            let incarnation = self.directory.members()[&id(node)].newest.0;
            self.directory.apply(self.directory.applied() + 1, Command::Dead(Departed { node, incarnation }));
        }

        /// Everybody who lives reports for so long, every 300 ms; node 1 leads. Returns who was left out meanwhile.
        fn pass(&mut self, ms: u64, unheard: &[(u64, &[u64])]) -> Vec<u64> {
            let mut left_out = Vec::new();
            for _ in 0..ms / 300 {
                self.now_ns += 300 * MS;
                let living: Vec<_> = self.directory.living().collect();
                for (node, incarnation) in living {
                    let unheard =
                        unheard.iter().find(|&&(who, _)| who == node.get()).map_or(&[][..], |&(_, whom)| whom);
                    self.apart.on_report(self.now_ns, node, incarnation, unheard);
                }
                let clients = |node: NodeId| self.clients.get(&node.get()).copied().unwrap_or(0);
                let new = self.apart.judge(self.now_ns, id(1), &self.directory, clients);
                left_out.extend(new.into_iter().map(|(node, _)| node.get()));
            }
            left_out
        }
    }

    #[test]
    fn of_two_that_do_not_hear_each_other_for_long_the_one_with_fewer_clients_is_left_out() {
        let mut script = Script::of(3);
        script.clients = BTreeMap::from([(1, 0), (2, 3), (3, 5)]);
        assert_eq!(script.pass(3_900, &[(2, &[3]), (3, &[2])]), [0u64; 0]);
        assert_eq!(script.pass(300, &[]), [0u64; 0], "they heard each other again");
        assert_eq!(script.pass(3_900, &[(3, &[2])]), [0u64; 0]);
        assert_eq!(script.pass(900, &[(3, &[2])]), [2], "the word of one is enough");
        script.clients.insert(2, 9);
        assert_eq!(script.pass(900, &[(3, &[2])]), [0u64; 0], "and it stays the one");
        assert!(script.apart.is_left_out(id(2)) && !script.apart.is_left_out(id(3)));
    }

    #[test]
    fn who_is_left_out_lives_again_when_it_and_all_who_live_hear_each_other() {
        let mut script = Script::of(3);
        assert_eq!(script.pass(4_800, &[(2, &[3]), (3, &[2])]), [3]);
        script.dies(3);
        assert_eq!(script.pass(9_000, &[(2, &[3])]), [0u64; 0]);
        assert!(!script.apart.may_join(id(3), &[2], &script.directory));
        assert!(!script.apart.may_join(id(3), &[], &script.directory), "node 2 does not hear it");
        assert_eq!(script.pass(300, &[]), [0u64; 0]);
        assert!(!script.apart.may_join(id(3), &[2], &script.directory), "it does not hear node 2");
        script.dies(2);
        assert!(script.apart.may_join(id(3), &[2], &script.directory), "who is dead is not heard by anybody");
        assert!(script.apart.may_join(id(2), &[1, 3], &script.directory), "it was never left out");
    }

    #[test]
    fn who_hears_others_again_before_it_is_dead_stays() {
        let mut script = Script::of(3);
        assert_eq!(script.pass(4_800, &[(2, &[3]), (3, &[2])]), [3]);
        assert_eq!(script.pass(300, &[]), [0u64; 0]);
        assert!(!script.apart.is_left_out(id(3)));
    }

    #[test]
    fn who_leads_the_directory_stays_and_so_do_as_many_as_can() {
        let mut script = Script::of(3);
        script.clients.insert(2, 5);
        assert_eq!(script.pass(4_800, &[(1, &[2])]), [2], "however many clients it has");

        let mut script = Script::of(5);
        script.clients.insert(4, 100);
        let unheard: &[(u64, &[u64])] = &[(2, &[4]), (3, &[4]), (5, &[4])];
        assert_eq!(script.pass(4_800, unheard), [4], "all others hear each other");

        let mut script = Script::of(5);
        let all: &[(u64, &[u64])] = &[(2, &[3, 4, 5]), (3, &[2, 4, 5]), (4, &[2, 3, 5]), (5, &[2, 3, 4])];
        assert_eq!(script.pass(4_800, all), [5, 4, 3], "each hears node 1 alone");
    }

    #[test]
    fn who_is_silent_keeps_apart_from_nobody() {
        let mut script = Script::of(3);
        script.dies(3);
        assert_eq!(script.pass(9_000, &[(1, &[3]), (2, &[3, 77])]), [0u64; 0]);
    }
}
