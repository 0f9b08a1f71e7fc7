use super::*;
use crate::directory::command::{Admit, Departed, Drain, Form, Join, MemberRecord, Prefer};

const GROUPS: u32 = 4;

/// A directory that was formed by some nodes, and what was planned for it since.
struct Cluster {
    directory: Directory,
    zones: BTreeMap<u64, &'static str>,
}

impl Cluster {
    /// Formed by these; all live and keep everything.
    fn of(nodes: &[u64]) -> Self {
        Self::zoned(nodes, &[])
    }

    fn zoned(nodes: &[u64], zones: &[(u64, &'static str)]) -> Self {
        let mut cluster = Self { directory: Directory::new(), zones: zones.iter().copied().collect() };
        let voters: Vec<u64> = nodes[..nodes.len().min(3)].to_vec();
        let groups = (0..GROUPS).chain([u32::from(GroupId::DIRECTORY.0)]);
        let placement =
            |group| crate::directory::command::Placement { group, voters: voters.clone(), learners: vec![] };
        cluster.feed(Command::Form(Form {
            cluster_id: vec![1].into(),
            groups: GROUPS,
            members: nodes.iter().map(|&node| cluster.record(node)).collect(),
            placements: groups.map(placement).collect(),
            ..Form::default()
        }));
        nodes.iter().for_each(|&node| cluster.live(node));
        cluster
    }

    fn record(&self, node: u64) -> MemberRecord {
        let zone = self.zones.get(&node).copied().unwrap_or_default().to_owned();
        MemberRecord { node, name: format!("n{node}"), zone, ..MemberRecord::default() }
    }

    fn feed(&mut self, command: Command) {
        self.directory.apply(self.directory.applied() + 1, command);
    }

    fn live(&mut self, node: u64) {
        let newest = self.directory.members().get(&NodeId(node)).map_or(0, |member| member.newest.0);
        let member = Some(self.record(node));
        self.feed(Command::Join(Join { member, attempt: self.directory.applied(), newest }));
    }

    fn join(&mut self, node: u64) {
        self.feed(Command::Admit(Admit { member: Some(self.record(node)) }));
        self.live(node);
    }

    fn die(&mut self, node: u64) {
        let incarnation = self.directory.members()[&NodeId(node)].newest.0;
        self.feed(Command::Dead(Departed { node, incarnation }));
    }

    fn remove(&mut self, node: u64) {
        self.feed(Command::Remove(Departing { node }));
    }

    /// Takes all steps until there is none, each group settling at once; says how many.
    fn settle(&mut self) -> usize {
        for steps in 0..200 {
            let Some(step) = next_step(&self.directory, |_| true) else { return steps };
            if let Step::Place(group, wanted) = &step {
                self.check(*group, wanted);
            }
            self.feed(step.command());
        }
        panic!("it never comes to rest: {:?}", self.directory.placements());
    }

    /// Of voters one step exchanges one, or adds or takes some.
    fn check(&self, group: GroupId, wanted: &Placement) {
        let before = &self.directory.placements()[&group].voters;
        let (added, taken) = (wanted.voters.difference(before).count(), before.difference(&wanted.voters).count());
        assert!(added.min(taken) <= 1, "{before:?} to {wanted:?}");
        assert_eq!(wanted.voters.len() % 2, 1, "{wanted:?}");
        assert!(wanted.voters.is_disjoint(&wanted.learners));
    }

    fn voters(&self, group: u16) -> Vec<u64> {
        self.directory.placements()[&GroupId(group)].voters.iter().map(|node| node.0).collect()
    }

    fn learners(&self, group: u16) -> Vec<u64> {
        self.directory.placements()[&GroupId(group)].learners.iter().map(|node| node.0).collect()
    }

    fn everywhere(&self, voters: &[u64], learners: &[u64]) {
        for group in (0..GROUPS as u16).chain([GroupId::DIRECTORY.0]) {
            assert_eq!(
                (self.voters(group), self.learners(group)),
                (voters.to_vec(), learners.to_vec()),
                "group {group}"
            );
        }
    }

    /// Seats in data groups.
    fn seats(&self) -> Vec<usize> {
        let view = View::new(&self.directory);
        self.directory.members().keys().map(|&node| view.load(node)).collect()
    }
}

#[test]
fn two_nodes_are_one_voter_and_a_learner_and_three_are_three_voters() {
    let mut cluster = Cluster::of(&[1]);
    assert_eq!(cluster.settle(), 0);
    cluster.join(2);
    cluster.settle();
    cluster.everywhere(&[1], &[2]);
    cluster.join(3);
    cluster.settle();
    cluster.everywhere(&[1, 2, 3], &[]);
}

#[test]
fn a_node_that_was_admitted_is_told_of_everything_and_votes_only_when_it_lives() {
    let mut cluster = Cluster::of(&[1]);
    for node in [2, 3] {
        cluster.feed(Command::Admit(Admit { member: Some(cluster.record(node)) }));
    }
    assert!(matches!(next_step(&cluster.directory, |_| false), Some(Step::Place(GroupId::DIRECTORY, _))));
    cluster.settle();
    cluster.everywhere(&[1], &[2, 3]);
    cluster.live(2);
    cluster.live(3);
    cluster.settle();
    cluster.everywhere(&[1, 2, 3], &[]);
}

#[test]
fn seats_are_shared_evenly_and_five_nodes_vote_in_the_directory() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.join(4);
    cluster.settle();
    assert_eq!(cluster.voters(GroupId::DIRECTORY.0), [1, 2, 3]);
    assert_eq!(cluster.seats(), [3, 3, 3, 3]);
    cluster.join(5);
    cluster.settle();
    assert_eq!(cluster.voters(GroupId::DIRECTORY.0), [1, 2, 3, 4, 5]);
    assert!(cluster.seats().iter().all(|seats| (2..=3).contains(seats)), "{:?}", cluster.seats());
}

#[test]
fn who_is_down_keeps_its_seats() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.join(4);
    cluster.settle();
    let before = cluster.directory.placements().clone();
    cluster.die(2);
    assert_eq!(cluster.settle(), 0);
    assert_eq!(cluster.directory.placements(), &before);
    cluster.live(2);
    assert_eq!(cluster.settle(), 0);
}

/// F8: a lost disk under the same name.
#[test]
fn a_successor_takes_the_seats_of_the_one_whose_disk_was_lost() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.die(2);
    let successor = MemberRecord { name: "n2".into(), ..cluster.record(4) };
    cluster.feed(Command::Admit(Admit { member: Some(successor.clone()) }));
    cluster.settle();
    assert_eq!(cluster.voters(0), [1, 2, 3], "no seat is given up before somebody can take it");
    let (member, attempt) = (Some(successor), 7);
    cluster.feed(Command::Join(Join { member, attempt, newest: 0 }));
    cluster.settle();
    cluster.everywhere(&[1, 3, 4], &[]);
    assert_eq!(cluster.directory.removed(), &[NodeId(2)].into());
}

#[test]
fn who_leaves_is_removed_when_no_group_counts_on_it() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.join(4);
    cluster.settle();
    cluster.remove(1);
    // Groups that have not moved hold it back.
    for _ in 0..50 {
        match next_step(&cluster.directory, |group| group != GroupId(2)) {
            Some(Step::Removed(node)) => panic!("{node} was removed while a group had not moved"),
            Some(step) => cluster.feed(step.command()),
            None => break,
        }
    }
    assert!(cluster.learners(GroupId::DIRECTORY.0).contains(&1), "it is to hear of its removal");
    cluster.settle();
    cluster.everywhere(&[2, 3, 4], &[]);
    assert_eq!(cluster.directory.removed(), &[NodeId(1)].into());
}

#[test]
fn a_cluster_shrinks_to_one_voter_and_a_learner_and_then_to_one() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.remove(1);
    cluster.settle();
    assert_eq!(cluster.directory.members().len(), 2);
    for group in 0..GROUPS as u16 {
        assert_eq!((cluster.voters(group).len(), cluster.learners(group).len()), (1, 1));
    }
    cluster.remove(2);
    cluster.settle();
    cluster.everywhere(&[3], &[]);
}

#[test]
fn the_voters_of_a_group_are_in_different_zones() {
    let zones = [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c"), (6, "c")];
    let mut cluster = Cluster::zoned(&[1, 2, 3, 4], &zones);
    cluster.settle();
    cluster.join(5);
    cluster.join(6);
    cluster.settle();
    let zone = |node: u64| zones[node as usize - 1].1;
    for group in 0..GROUPS as u16 {
        let of: BTreeSet<_> = cluster.voters(group).into_iter().map(zone).collect();
        assert_eq!(of.len(), 3, "group {group}: {:?}", cluster.voters(group));
    }
    assert!(cluster.seats().iter().all(|&seats| seats == 2), "{:?}", cluster.seats());
    cluster.die(5);
    cluster.die(6);
    assert_eq!(cluster.settle(), 0, "a zone that is down keeps its seats");
}

#[test]
fn leaders_are_spread_over_the_voters() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.settle();
    let mut led: BTreeMap<NodeId, usize> = BTreeMap::new();
    leaders(&cluster.directory).values().for_each(|&node| *led.entry(node).or_default() += 1);
    assert_eq!(led.values().copied().collect::<Vec<_>>(), [2, 2, 1]);
    cluster.remove(1);
    assert!(!leaders(&cluster.directory).values().any(|&node| node == NodeId(1)), "who leaves leads nothing");
}

#[test]
fn who_is_drained_leads_nothing_until_that_is_over_and_then_the_same_as_before() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.settle();
    let before = leaders(&cluster.directory);
    let drain = |node, on| Command::Drain(Drain { node, on, incarnation: 0 });
    cluster.feed(drain(1, true));
    assert!(!leaders(&cluster.directory).values().any(|&node| node == NodeId(1)));
    cluster.feed(drain(2, true));
    assert!(leaders(&cluster.directory).values().all(|&node| node == NodeId(3)));
    cluster.feed(drain(3, true));
    assert_eq!(leaders(&cluster.directory), before, "if all are drained, somebody must lead");
    for node in [1, 2, 3] {
        cluster.feed(drain(node, false));
    }
    assert_eq!(leaders(&cluster.directory), before);
    assert_eq!(cluster.settle(), 0, "seats stay where they are");
}

#[test]
fn whom_an_operator_chose_leads_unless_it_is_drained_and_the_rest_is_dealt_out_with_regard_to_that() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.settle();
    for group in [0, 1, 2] {
        cluster.feed(Command::Prefer(Prefer { group, node: 3 }));
    }
    let led = |cluster: &Cluster, by: u64| {
        leaders(&cluster.directory)
            .into_iter()
            .filter(|(_, node)| node.0 == by)
            .map(|(group, _)| group.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(led(&cluster, 3), [0, 1, 2]);
    assert_eq!((led(&cluster, 1).len(), led(&cluster, 2).len()), (1, 1));
    cluster.feed(Command::Drain(Drain { node: 3, on: true, incarnation: 0 }));
    assert_eq!(led(&cluster, 3), [0; 0]);
    cluster.feed(Command::Drain(Drain { node: 3, on: false, incarnation: 0 }));
    assert_eq!(led(&cluster, 3), [0, 1, 2], "it was chosen, so they come back");
}

/// Nodes come, go and lose their disks in any order: it comes to rest, and no group is left without a voter that stays.
#[test]
fn whatever_happens_it_comes_to_rest() {
    for seed in 0..300_u64 {
        let mut state = seed;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let zones: Vec<(u64, &'static str)> =
            (1..20).map(|node| (node, ["", "a", "b", "c"][below(4) as usize])).collect();
        let mut cluster = Cluster::zoned(&[1], &zones);
        let mut newest = 1;
        for _ in 0..25 {
            let nodes: Vec<u64> = cluster.directory.members().keys().map(|node| node.0).collect();
            let node = nodes[below(nodes.len() as u64) as usize];
            let is_living = cluster.directory.members()[&NodeId(node)].living.is_some();
            match below(4) {
                0 if newest < 19 => {
                    newest += 1;
                    cluster.join(newest);
                }
                1 if is_living && cluster.directory.living().count() > 1 => cluster.die(node),
                2 if !is_living => cluster.live(node),
                3 => cluster.remove(node),
                _ => {}
            }
            cluster.settle();
            for placed in cluster.directory.placements().values() {
                assert!(placed.voters.iter().all(|node| cluster.directory.members().contains_key(node)), "seed {seed}");
            }
        }
    }
}
