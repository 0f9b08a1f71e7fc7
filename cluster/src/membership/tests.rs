//! Scripts of a few nodes over a log and links that do what the script says.

use std::collections::BTreeSet;

use super::wire::Malformed;
use super::*;
use crate::directory::Placement;
use crate::directory::bans::{BANS_LEVEL, BanRefusal};
use crate::directory::command::{Form, Join};
use crate::interest::{Content, Update};
use crate::lease::GRANTED_NS;

const MS: u64 = 1_000_000;
const GROUP: GroupId = GroupId(0);

fn id(node: u64) -> NodeId {
    NodeId::new(node).expect("not zero")
}

fn record(node: u64) -> MemberRecord {
    MemberRecord { node, name: format!("node {node}"), ..MemberRecord::default() }
}

fn filter(name: &str) -> Arc<str> {
    Arc::from(name)
}

fn interest(source: SourceId, name: &str, old: u32, new: u32) -> Output {
    Output::Interest { source, filter: filter(name), old, new }
}

fn released(waiter: u64) -> Output {
    Output::Released { group: None, waiter }
}

fn placement(voters: &[u64], learners: &[u64]) -> Placement {
    let ids = |nodes: &[u64]| nodes.iter().copied().map(id).collect();
    Placement { voters: ids(voters), learners: ids(learners) }
}

struct Node {
    membership: Membership,
    cell: Arc<LeaseCell>,
    /// What was to be done, but for messages, proposals and rounds, which the script carries out.
    seen: Vec<Output>,
    messages_sent: usize,
}

struct Cluster {
    /// What every program knows and the cluster uses.
    level: u32,
    now_ms: u64,
    nodes: BTreeMap<u64, Node>,
    /// The entry at index `i + 1`.
    log: Vec<Bytes>,
    term: u64,
    leader: u64,
    group_leader: u64,
    /// Cut off from everyone.
    away: BTreeSet<u64>,
    /// Are heard, and hear messages, but what is committed does not come to them.
    behind: BTreeSet<u64>,
    /// Rounds get no majority.
    rounds_fail: bool,
}

impl Cluster {
    /// Formed of these nodes, of which the first leads the directory and the only group. Nothing is placed.
    fn of(nodes: &[u64]) -> Self {
        Self::with_placements(nodes, Vec::new())
    }

    /// The same, and both are kept by all of them.
    fn placed(nodes: &[u64]) -> Self {
        let placement = placement(nodes, &[]);
        Self::with_placements(nodes, vec![placement.command(GROUP), placement.command(GroupId::DIRECTORY)])
    }

    fn with_placements(nodes: &[u64], placements: Vec<command::Placement>) -> Self {
        Self::formed(nodes, placements, 0, 1)
    }

    /// Of several groups, all led by the first node.
    fn of_groups(nodes: &[u64], groups: u16) -> Self {
        let mut cluster = Self::formed(nodes, Vec::new(), 0, groups);
        for group in 1..groups {
            cluster.with(nodes[0], |membership, now| membership.on_group_role(now, GroupId(group), Some(1)));
        }
        cluster
    }

    /// The same, of programs that know this feature level, which is used.
    fn at_level(nodes: &[u64], level: u32) -> Self {
        let mut cluster = Self::formed(nodes, Vec::new(), level, 1);
        cluster.pass(1_000);
        cluster
    }

    fn formed(nodes: &[u64], placements: Vec<command::Placement>, feature_level: u32, groups: u16) -> Self {
        let members = nodes.iter().map(|&node| MemberRecord { feature_level, ..record(node) }).collect();
        let groups = groups.into();
        let form = Form { cluster_id: vec![1].into(), groups, members, placements, feature_level, voters: 0 };
        let mut cluster = Self {
            level: feature_level,
            now_ms: 1_000,
            nodes: BTreeMap::new(),
            log: vec![command::encode(Command::Form(form))],
            term: 1,
            leader: nodes[0],
            group_leader: nodes[0],
            away: BTreeSet::new(),
            behind: BTreeSet::new(),
            rounds_fail: false,
        };
        for &node in nodes {
            cluster.start(node);
        }
        cluster.with(nodes[0], |membership, now| membership.on_group_role(now, GROUP, Some(1)));
        cluster
    }

    /// The same, and every node serves.
    fn serving(nodes: &[u64]) -> Self {
        let mut cluster = Self::of(nodes);
        cluster.pass(1_000);
        for &node in nodes {
            assert_eq!(cluster.node(node).standing(), Some(Standing::Serving), "node {node}");
            cluster.seen(node);
        }
        cluster
    }

    fn start(&mut self, node: u64) {
        let cell = Arc::new(LeaseCell::new());
        let limits = Limits { update_bytes_max: 100, feed_bytes_per_tick: 1_000, ..Limits::default() };
        let record = MemberRecord { feature_level: self.level, ..record(node) };
        let membership = Membership::new(id(node), record, node * 1_000, Arc::clone(&cell), limits);
        self.nodes.insert(node, Node { membership, cell, seen: Vec::new(), messages_sent: 0 });
        self.link(node);
        self.elect(self.leader);
    }

    /// New links from a node to everyone.
    fn link(&mut self, node: u64) {
        let others: Vec<_> = self.nodes.keys().copied().filter(|&other| other != node).collect();
        for other in others {
            let link = Some(LinkId(self.now_ms * 100 + node * 10 + other));
            self.with(node, |membership, now| membership.on_link(now, id(other), link));
            self.with(other, |membership, now| membership.on_link(now, id(node), link));
        }
    }

    /// Two nodes do not hear each other any more.
    fn cut(&mut self, one: u64, other: u64) {
        self.with(one, |membership, now| membership.on_link(now, id(other), None));
        self.with(other, |membership, now| membership.on_link(now, id(one), None));
    }

    fn node(&self, node: u64) -> &Membership {
        &self.nodes[&node].membership
    }

    fn with<T>(&mut self, node: u64, input: impl FnOnce(&mut Membership, u64) -> T) -> T {
        let now_ns = self.now_ms * MS;
        let membership = &mut self.nodes.get_mut(&node).expect("started").membership;
        let result = input(membership, now_ns);
        membership.flush(now_ns);
        self.run();
        result
    }

    fn elect(&mut self, leader: u64) {
        if leader != self.leader {
            self.term += 1;
            self.leader = leader;
        }
        let term = self.term;
        let present: Vec<_> = self.nodes.keys().copied().filter(|node| !self.away.contains(node)).collect();
        for node in present {
            self.with(node, |membership, now| membership.on_directory_role(now, Some(id(leader)), term));
        }
    }

    fn seen(&mut self, node: u64) -> Vec<Output> {
        std::mem::take(&mut self.nodes.get_mut(&node).expect("started").seen)
    }

    /// A group's members, as every node that keeps it has applied them.
    fn members_are(&mut self, group: GroupId, placement: &Placement) {
        let learners = placement.learners.iter().copied().collect();
        let configuration = Configuration { learners, ..Configuration::of(placement.voters.iter().copied()) };
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.with(node, |membership, _| membership.on_configuration(group, configuration.clone()));
        }
    }

    /// Groups move where the directory says, as it says so, until it says nothing new.
    fn settle(&mut self) {
        for _ in 0..20 {
            for (group, placement) in self.node(self.leader).directory().placements().clone() {
                self.members_are(group, &placement);
            }
            self.pass(500);
        }
    }

    /// Where the leaders of groups were told to keep them, the last word of each.
    fn targets(&mut self, node: u64) -> BTreeMap<GroupId, Placement> {
        let place = |output| match output {
            Output::Place { group, target, .. } => Some((group, target.placement)),
            _ => None,
        };
        self.seen(node).into_iter().filter_map(place).collect()
    }

    fn incarnation(&self, node: u64) -> Incarnation {
        self.node(node).incarnation().expect("registered")
    }

    fn source(&self, node: u64) -> SourceId {
        SourceId::Node(id(node), self.incarnation(node))
    }

    fn is_valid(&self, node: u64, at_ms: u64) -> bool {
        self.nodes[&node].cell.is_valid(at_ms * MS)
    }

    /// Subscribes at a node; returns whether everyone knows at once.
    fn subscribe(&mut self, node: u64, name: &str, waiter: u64) -> bool {
        self.with(node, |membership, _| {
            let version = membership.set_node_interest(&filter(name), 1).expect("registered");
            membership.wait_node(version, waiter).expect("room")
        })
    }

    fn subscribe_in_group(&mut self, index: u64, name: &str, waiter: u64) -> bool {
        let leader = self.group_leader;
        self.with(leader, |membership, _| {
            let version = membership.set_group_interest(GROUP, Version(index), &filter(name), 1);
            membership.wait_group(GROUP, version, waiter).expect("room")
        })
    }

    /// Time passes in steps of 100 ms.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now_ms += 100;
            let nodes: Vec<_> = self.nodes.keys().copied().collect();
            for node in nodes {
                self.with(node, |membership, now| membership.tick(now));
            }
        }
    }

    /// Until nothing is left to do.
    fn run(&mut self) {
        loop {
            let mut done = 0;
            let nodes: Vec<_> = self.nodes.keys().copied().collect();
            for node in nodes {
                self.learn(node);
                for output in self.nodes.get_mut(&node).expect("started").membership.take_outputs() {
                    done += 1;
                    self.on_output(node, output);
                }
            }
            if done == 0 {
                break;
            }
        }
    }

    fn learn(&mut self, node: u64) {
        if self.away.contains(&node) || self.behind.contains(&node) {
            return;
        }
        let now_ns = self.now_ms * MS;
        let membership = &mut self.nodes.get_mut(&node).expect("started").membership;
        for index in membership.directory().applied()..self.log.len() as u64 {
            membership.on_directory(now_ns, index + 1, self.log[index as usize].clone()).expect("ours");
        }
    }

    fn on_output(&mut self, node: u64, output: Output) {
        let now_ns = self.now_ms * MS;
        let is_away = self.away.contains(&node);
        match output {
            Output::Send { to, message } => {
                self.nodes.get_mut(&node).expect("started").messages_sent += 1;
                let is_heard = !is_away && !self.away.contains(&to.get());
                // One that has ended hears nothing.
                if let Some(to) = self.nodes.get_mut(&to.get()).filter(|_| is_heard) {
                    to.membership.on_message(now_ns, id(node), message).expect("well-formed");
                }
            }
            Output::Propose { term, command } => {
                if node == self.leader && term == self.term && !is_away {
                    self.log.push(command);
                }
            }
            Output::StartDirectoryRead { token } => {
                if !is_away && !self.rounds_fail && !self.away.contains(&self.leader) {
                    self.learn(node);
                    self.nodes.get_mut(&node).expect("started").membership.on_read(now_ns, token);
                }
            }
            Output::StartGroupRead { group: _, token } => {
                if !is_away && !self.rounds_fail && node == self.group_leader {
                    self.nodes.get_mut(&node).expect("started").membership.on_read(now_ns, token);
                }
            }
            // Every node here can reach every other.
            Output::Members => {}
            output => self.nodes.get_mut(&node).expect("started").seen.push(output),
        }
    }
}

#[test]
fn the_first_node_alone_serves_without_a_message_and_without_end() {
    let mut cluster = Cluster::of(&[1]);
    cluster.pass(300);
    let joined = Output::Joined { incarnation: Incarnation(2) };
    assert_eq!(cluster.seen(1), [joined, Output::Standing(Standing::Serving)]);
    assert!(cluster.is_valid(1, u64::MAX / MS), "nobody could take it away");
    assert!(cluster.subscribe(1, "a", 1), "nobody else need know");
    assert!(!cluster.subscribe_in_group(1, "b", 2), "the node itself matches against it");
    let released = Output::Released { group: Some(GROUP), waiter: 2 };
    assert_eq!(cluster.seen(1), [interest(SourceId::Group(GROUP), "b", 0, 1), released]);
    assert_eq!(cluster.nodes[&1].messages_sent, 0);
}

#[test]
fn who_joins_is_waited_for_from_then_on_and_ends_the_endless_lease() {
    let mut cluster = Cluster::serving(&[1]);
    assert!(cluster.subscribe(1, "a", 1));
    cluster.start(2);
    cluster.away.insert(2);
    assert_eq!(cluster.log.len(), 3, "its Join is committed");
    assert!(!cluster.is_valid(1, cluster.now_ms + 2_000), "others may declare this node dead now");
    assert!(cluster.is_valid(1, cluster.now_ms + 500));
    assert!(!cluster.subscribe(1, "b", 2), "node 2 does not know");
    assert!(!cluster.subscribe_in_group(1, "c", 3));
    cluster.pass(1_000);
    assert_eq!(cluster.seen(1), [interest(SourceId::Group(GROUP), "c", 0, 1)]);

    cluster.away.clear();
    cluster.link(2);
    cluster.pass(1_000);
    assert_eq!(cluster.seen(1), [released(2), Output::Released { group: Some(GROUP), waiter: 3 }]);
    let source = cluster.source(1);
    let seen = cluster.seen(2);
    assert!(seen.contains(&interest(source, "a", 0, 1)) && seen.contains(&interest(source, "b", 0, 1)), "{seen:?}");
    assert_eq!(seen.last(), Some(&Output::Standing(Standing::Serving)), "after it knows: {seen:?}");
}

#[test]
fn another_leader_of_the_directory_renews_the_leases() {
    let mut cluster = Cluster::serving(&[1, 2, 3]);
    cluster.elect(2);
    cluster.pass(5_000);
    for node in [1, 2, 3] {
        assert_eq!(cluster.seen(node), [], "node {node}");
        assert!(cluster.is_valid(node, cluster.now_ms));
    }
}

#[test]
fn leases_lapse_without_a_majority_and_return_with_it() {
    let mut cluster = Cluster::serving(&[1, 2, 3]);
    cluster.rounds_fail = true;
    cluster.pass(3_000);
    for node in [1, 2, 3] {
        assert_eq!(cluster.seen(node), [Output::Standing(Standing::Lapsed)], "node {node}");
        assert!(!cluster.is_valid(node, cluster.now_ms));
    }
    cluster.rounds_fail = false;
    cluster.pass(1_000);
    for node in [1, 2, 3] {
        assert_eq!(cluster.seen(node), [Output::Standing(Standing::Serving)], "nobody died");
    }
    cluster.rounds_fail = true;
    cluster.pass(12_000);
    let lapsed = [Output::Standing(Standing::Lapsed), Output::Standing(Standing::LapsedLong)];
    assert_eq!(cluster.seen(3), lapsed);
}

#[test]
fn a_dead_node_is_fenced_then_lost_and_registers_when_its_clients_are_closed() {
    let mut cluster = Cluster::serving(&[1, 2, 3]);
    let (dead, below) = (cluster.incarnation(3), Incarnation(cluster.incarnation(3).0 + 1));
    let source = cluster.source(3);
    cluster.subscribe(3, "a", 1);
    for node in [1, 2, 3] {
        cluster.seen(node);
    }
    cluster.away.insert(3);
    assert!(!cluster.subscribe(2, "b", 2));
    assert!(!cluster.subscribe_in_group(1, "c", 3));
    let wanted = interest(SourceId::Group(GROUP), "c", 0, 1);
    cluster.pass(2_000);
    let died = Output::Died { node: id(3), below };
    assert_eq!(cluster.seen(2), [wanted.clone(), died.clone()]);
    let fence = Output::ProposeFence { group: GROUP, node: id(3), below };
    assert_eq!(cluster.seen(1), [interest(cluster.source(2), "b", 0, 1), wanted, died.clone(), fence.clone()]);
    cluster.pass(1_100);
    assert_eq!(cluster.seen(1), [fence], "again, until it is complete");
    assert_eq!(cluster.seen(2), [], "it may still act upon what it knew");

    cluster.with(2, |membership, _| membership.on_group_fenced(GROUP, id(3), below));
    cluster.pass(1_000);
    let gone = interest(source, "a", 1, 0);
    let lost = Output::Lost { node: id(3), incarnation: dead };
    assert_eq!(cluster.seen(2), [gone.clone(), lost.clone(), released(2)]);
    assert_eq!(cluster.seen(1), [gone, lost, Output::Released { group: Some(GROUP), waiter: 3 }]);

    cluster.seen(3);
    cluster.away.clear();
    cluster.link(3);
    cluster.pass(1_000);
    let seen = cluster.seen(3);
    assert_eq!(seen[..2], [Output::Standing(Standing::Dead), died], "{seen:?}");
    assert_eq!(cluster.node(3).incarnation(), None, "its clients are still there");
    cluster.with(3, |membership, now| membership.on_clients_closed(now));
    cluster.pass(1_000);
    assert!(cluster.incarnation(3) > dead);
    assert_eq!(cluster.node(3).standing(), Some(Standing::Serving));
}

#[test]
fn a_process_that_starts_again_takes_the_place_of_the_one_before() {
    let mut cluster = Cluster::serving(&[1, 2, 3]);
    let before = cluster.incarnation(3);
    cluster.nodes.remove(&3);
    cluster.away.insert(3);
    let cell = Arc::new(LeaseCell::new());
    let membership = Membership::new(id(3), record(3), 77, Arc::clone(&cell), Limits::default());
    cluster.nodes.insert(3, Node { membership, cell, seen: Vec::new(), messages_sent: 0 });
    cluster.away.clear();
    cluster.learn(3);
    assert_eq!(cluster.node(3).incarnation(), None, "that Join was not its own");
    cluster.link(3);
    cluster.elect(1);
    assert_eq!(cluster.node(1).directory().dead_not_lost().keys().collect::<Vec<_>>(), [&before]);
    cluster.pass(1_000);
    assert_eq!(cluster.node(3).standing(), Some(Standing::Serving));
}

/// What a deposed leader knows of a group may lack what its successor acknowledged.
#[test]
fn a_late_joiner_serves_when_it_knows_what_nodes_and_groups_want() {
    let mut cluster = Cluster::serving(&[1, 2]);
    cluster.subscribe(2, "a", 1);
    cluster.subscribe_in_group(1, "b", 2);
    cluster.group_leader = 9;
    cluster.start(3);
    cluster.pass(1_000);
    assert_eq!(cluster.node(3).standing(), Some(Standing::Joining), "who leads the group is not known");
    let group = SourceId::Group(GROUP);
    let joined = Output::Joined { incarnation: cluster.incarnation(3) };
    let seen = cluster.seen(3);
    assert_eq!(seen.first(), Some(&joined), "{seen:?}");
    let known: BTreeSet<_> = seen[1..].iter().map(|output| format!("{output:?}")).collect();
    let expected = [interest(cluster.source(2), "a", 0, 1), interest(group, "b", 0, 1)];
    assert_eq!(known, expected.iter().map(|output| format!("{output:?}")).collect());

    cluster.group_leader = 1;
    cluster.pass(1_000);
    assert_eq!(cluster.seen(3), [Output::Standing(Standing::Serving)]);
}

/// Its predecessor may have counted a node whose `Join` is not applied here yet.
#[test]
fn a_new_leader_of_a_group_releases_nobody_before_it_knows_who_joined() {
    let mut cluster = Cluster::serving(&[1, 2]);
    let before = cluster.subscribe_in_group(1, "a", 1);
    assert!(!before);
    cluster.seen(1);
    cluster.rounds_fail = true;
    cluster.with(1, |membership, now| membership.on_group_role(now, GROUP, None));
    assert_eq!(cluster.node(1).groups[&GROUP].source.value("a"), 1, "replicas keep it");
    let refused = cluster.with(1, |membership, _| membership.wait_group(GROUP, Version(1), 2));
    assert_eq!(refused, Err(WaitError::NotLed));
    cluster.group_leader = 2;
    cluster.with(2, |membership, _| membership.set_group_interest(GROUP, Version(1), &filter("a"), 1));
    cluster.with(2, |membership, now| membership.on_group_role(now, GROUP, Some(2)));
    cluster.seen(2);
    assert!(!cluster.subscribe_in_group(2, "b", 3));
    cluster.pass(1_000);
    let change = interest(SourceId::Group(GROUP), "b", 0, 1);
    assert_eq!(cluster.seen(1), std::slice::from_ref(&change));
    assert_eq!(cluster.seen(2), [change], "and nobody is released");
    cluster.rounds_fail = false;
    cluster.pass(1_000);
    let waiter = Output::Released { group: Some(GROUP), waiter: 3 };
    assert!(cluster.seen(2).contains(&waiter));
}

/// Apply may be far behind, for longer than another round is waited for.
#[test]
fn a_slow_round_counts_though_others_were_begun() {
    let mut membership = Membership::new(id(1), record(1), 1, Arc::default(), Limits::default());
    let join = Join { member: Some(record(2)), attempt: 1, newest: 0 };
    let form = Form { cluster_id: vec![1].into(), groups: 1, ..Form::default() };
    for (index, command) in [(1, Command::Form(form)), (2, Command::Join(join))] {
        membership.on_directory(0, index, command::encode(command)).expect("ours");
    }
    membership.on_group_role(0, GROUP, Some(1));
    let first = membership.take_outputs();
    let [.., Output::StartDirectoryRead { token: directory }, Output::StartGroupRead { token: group, .. }] = first[..]
    else {
        panic!("{first:?}")
    };
    membership.tick(1_000 * MS);
    let led = |membership: &Membership| {
        let led = membership.groups[&GROUP].led.as_ref().expect("led");
        (led.receivers_known, led.supply.as_of, led.receivers.0.len(), led.leadership.0.len())
    };
    assert_eq!(led(&membership), (false, 0, 2, 2));
    membership.on_read(1_100 * MS, directory);
    membership.on_read(1_100 * MS, group);
    assert_eq!(led(&membership), (true, 2, 1, 1));
    let mut rounds = Rounds::default();
    for token in 0..100 {
        rounds.begin(Round { token, begun_ns: 0, as_of: 0 });
    }
    assert!(rounds.0.len() <= ROUNDS_MAX && rounds.complete(0).is_none());
}

#[test]
fn a_restored_directory_says_what_happened_meanwhile() {
    let mut cluster = Cluster::serving(&[1, 2, 3]);
    let (second, third) = (cluster.incarnation(2), cluster.incarnation(3));
    let mut ahead = cluster.node(1).directory().clone();
    let dead = |node, incarnation: Incarnation| Departed { node, incarnation: incarnation.0 };
    let at = ahead.applied();
    ahead.apply(at + 1, Command::Dead(dead(3, third)));
    ahead.apply(at + 2, Command::Lost(dead(3, third)));
    ahead.apply(at + 3, Command::Dead(dead(2, second)));
    let now_ns = cluster.now_ms * MS;
    let membership = &mut cluster.nodes.get_mut(&2).expect("started").membership;
    membership.on_directory_restored(now_ns, ahead);
    let happened = membership.take_outputs();
    let no_lease = wire::encode(Body::Lease(wire::Lease { held: false }));
    let expected = [
        Output::Standing(Standing::Dead),
        Output::Send { to: id(1), message: no_lease.clone() },
        Output::Send { to: id(3), message: no_lease },
        Output::Died { node: id(2), below: Incarnation(second.0 + 1) },
        Output::Died { node: id(3), below: Incarnation(third.0 + 1) },
        Output::Lost { node: id(3), incarnation: third },
    ];
    assert_eq!(happened, expected);
    assert_eq!(membership.set_node_interest(&filter("a"), 1), None);
    assert_eq!(membership.wait_node(Version(1), 1), Err(WaitError::NotRegistered));
}

/// Messages are lost with their link; what both sides know is kept.
#[test]
fn a_new_link_brings_what_was_lost_with_the_old_one() {
    let mut cluster = Cluster::serving(&[1, 2]);
    cluster.subscribe(1, "a", 1);
    assert_eq!(cluster.seen(2), [interest(cluster.source(1), "a", 0, 1)]);
    cluster.away.insert(2);
    cluster.subscribe(1, "b", 2);
    cluster.away.clear();
    cluster.pass(300);
    assert_eq!(cluster.seen(2), [], "the source believes that it was sent");
    cluster.link(2);
    assert_eq!(cluster.seen(2), [interest(cluster.source(1), "b", 0, 1)], "and not everything again");
    assert_eq!(cluster.seen(1), [released(1), released(2)]);
}

/// Either side may notice first, and the other not at all.
#[test]
fn one_side_that_notices_a_new_link_is_enough() {
    for (notices, peer) in [(1, 2), (2, 1)] {
        let mut cluster = Cluster::serving(&[1, 2]);
        cluster.away.insert(2);
        cluster.subscribe(1, "a", 1);
        cluster.subscribe_in_group(1, "b", 2);
        cluster.away.clear();
        cluster.seen(1);
        cluster.with(notices, |membership, now| membership.on_link(now, id(peer), Some(LinkId(7))));
        let expected = [interest(cluster.source(1), "a", 0, 1), interest(SourceId::Group(GROUP), "b", 0, 1)];
        let seen = cluster.seen(2);
        assert!(expected.iter().all(|change| seen.contains(change)), "noticed by {notices}: {seen:?}");
        assert_eq!(cluster.seen(1).len(), 2, "both are released");
    }
}

#[test]
fn a_node_asks_to_be_registered_until_it_is() {
    let mut cluster = Cluster::serving(&[1]);
    cluster.away.insert(1);
    cluster.start(2);
    cluster.pass(500);
    assert_eq!(cluster.node(2).incarnation(), None);
    cluster.away.clear();
    cluster.pass(1_000);
    assert_eq!(cluster.node(2).standing(), Some(Standing::Serving));
}

/// The copy of the directory takes its time. Registered meanwhile it would be declared dead, and every subscription wait for that.
#[test]
fn nobody_waits_for_a_node_that_has_no_directory_yet() {
    let mut cluster = Cluster::serving(&[1, 2]);
    cluster.with(1, |membership, _| membership.admit(record(3)));
    cluster.behind.insert(3);
    cluster.start(3);
    for waiter in 0..50 {
        cluster.pass(100);
        assert!(cluster.node(1).directory().living().all(|(node, _)| node != id(3)), "registered, and cannot know it");
        cluster.subscribe(1, &format!("filter {waiter}"), waiter);
        assert!(cluster.seen(1).contains(&released(waiter)), "{waiter}");
    }
    cluster.behind.clear();
    cluster.pass(1_000);
    assert_eq!(cluster.node(3).standing(), Some(Standing::Serving));
}

#[test]
fn much_interest_is_spread_over_ticks() {
    let mut cluster = Cluster::serving(&[1, 2]);
    let names: Vec<_> = (0..100).map(|number| filter(&format!("filter {number}"))).collect();
    cluster.with(1, |membership, _| {
        for name in &names {
            membership.set_node_interest(name, 1);
        }
    });
    let first = cluster.seen(2).len();
    assert!(first > 0 && first < 30, "{first} at once");
    cluster.pass(2_000);
    assert_eq!(first + cluster.seen(2).len(), 100);
}

/// One queue takes what a node is sent of all groups that another one leads. It would be too short for as much of each.
#[test]
fn what_a_node_is_sent_at_once_is_bounded_however_many_sources_there_are_and_each_has_its_turn() {
    const GROUPS: u16 = 12;
    const FILTERS: u64 = 40;
    let mut cluster = Cluster::of_groups(&[1, 2], GROUPS);
    cluster.pass(1_000);
    assert_eq!(cluster.node(2).standing(), Some(Standing::Serving));
    cluster.seen(2);
    let mut taken: BTreeMap<SourceId, u64> = BTreeMap::new();
    let mut take = |cluster: &mut Cluster| {
        let before = taken.values().sum::<u64>();
        for output in cluster.seen(2) {
            let Output::Interest { source, .. } = output else { panic!("{output:?}") };
            *taken.entry(source).or_default() += 1;
        }
        let now = taken.values().sum::<u64>() - before;
        assert!(now < 30, "{now} in one tick");
        taken.clone()
    };
    cluster.with(1, |membership, _| {
        for number in 1..=FILTERS {
            let name = filter(&format!("filter {number}"));
            membership.set_node_interest(&name, 1);
            for group in 0..GROUPS {
                membership.set_group_interest(GroupId(group), Version(number), &name, 1);
            }
        }
    });
    for _ in 0..10 {
        take(&mut cluster);
        cluster.pass(100);
    }
    let taken_so_far = take(&mut cluster);
    assert_eq!(taken_so_far.len(), usize::from(GROUPS) + 1, "{taken_so_far:?}");
    let (least, most) = (taken_so_far.values().min(), taken_so_far.values().max());
    assert!(most < Some(&FILTERS) && most <= least.map(|least| least + 6).as_ref(), "{taken_so_far:?}");
    for _ in 0..60 {
        cluster.pass(100);
        take(&mut cluster);
    }
    let everything = take(&mut cluster);
    assert!(
        everything.len() == taken_so_far.len() && everything.values().all(|&taken| taken == FILTERS),
        "{everything:?}"
    );
}

mod bytes_of_others {
    use proptest::prelude::*;

    use super::*;

    fn take(cluster: &mut Cluster, peer: u64, message: Bytes) -> Result<(), Malformed> {
        cluster.with(1, |membership, now| membership.on_message(now, id(peer), message))
    }

    #[test]
    fn what_says_something_about_others_is_malformed() {
        let mut cluster = Cluster::serving(&[1, 2]);
        let registration = wire::Registration { member: Some(record(3)), attempt: 1, ..Default::default() };
        let update = Update {
            source: cluster.source(1),
            version: Version(5),
            as_of: 9,
            content: Content::Delta { from: Version(0), changes: vec![(filter("a"), 1)] },
        };
        let nowhere = wire::SourceRecord { node: 0, incarnation: 3, group: None };
        let far_group = wire::SourceRecord { node: 0, incarnation: 0, group: Some(70_000) };
        let back = wire::UpdateRecord { from: Some(9), version: 3, ..cluster_update(&cluster) };
        let malformed = [
            Body::Join(registration),
            Body::Update(update.into()),
            Body::Update(back),
            Body::Offer(wire::Offer { source: None }),
            Body::Offer(wire::Offer { source: Some(nowhere) }),
            Body::Confirm(wire::Confirm { source: Some(far_group), version: 1, receiver: 1 }),
        ];
        for body in malformed {
            let message = wire::encode(body.clone());
            assert!(matches!(take(&mut cluster, 2, message), Err(Malformed::Invalid(_))), "{body:?}");
        }
        let garbage = take(&mut cluster, 2, Bytes::from_static(&[0xff; 9]));
        assert!(matches!(garbage, Err(Malformed::Undecodable(_))));
        assert_eq!(cluster.seen(1), []);
    }

    fn cluster_update(cluster: &Cluster) -> wire::UpdateRecord {
        wire::UpdateRecord { source: Some(cluster.source(2).into()), ..wire::UpdateRecord::default() }
    }

    /// A field and a kind of message that this program does not know.
    #[test]
    fn what_a_later_version_adds_is_skipped() {
        let mut cluster = Cluster::serving(&[1, 2]);
        let later_kind = Bytes::from_static(&[0x9a, 0x06, 0x01, 0x00]);
        assert_eq!(take(&mut cluster, 2, later_kind), Ok(()));
        let content = Content::Delta { from: Version(0), changes: vec![(filter("a"), 7)] };
        let update = Update { source: cluster.source(2), version: Version(1), as_of: 0, content };
        let mut message = wire::encode(Body::Update(update.into())).to_vec();
        message.extend([0x98, 0x06, 0x01]);
        assert_eq!(take(&mut cluster, 2, message.into()), Ok(()));
        assert_eq!(cluster.seen(1), [interest(cluster.source(2), "a", 0, 7)]);
    }

    fn source() -> impl Strategy<Value = SourceId> {
        let node = (1..u64::MAX, any::<u64>()).prop_map(|(node, of)| SourceId::Node(id(node), Incarnation(of)));
        prop_oneof![node, any::<u16>().prop_map(|group| SourceId::Group(GroupId(group)))]
    }

    fn update() -> impl Strategy<Value = Update> {
        let entries = || prop::collection::vec((".{0,9}".prop_map(Arc::from), any::<u32>()), 0..5);
        let snapshot = (any::<u32>(), any::<bool>(), entries()).prop_map(|(piece, last, entries)| Content::Snapshot {
            piece,
            last,
            entries,
        });
        let delta = (0..100_u64, entries()).prop_map(|(from, changes)| Content::Delta { from: Version(from), changes });
        (source(), 100..u64::MAX, any::<u64>(), prop_oneof![snapshot, delta])
            .prop_map(|(source, version, as_of, content)| Update { source, version: Version(version), as_of, content })
    }

    proptest! {
        #[test]
        fn updates_survive_the_wire(update in update()) {
            let message = wire::encode(Body::Update(update.clone().into()));
            let Ok(Some(Body::Update(record))) = wire::decode(message) else { panic!("another message") };
            prop_assert_eq!(Update::try_from(record), Ok(update));
        }

        #[test]
        fn no_bytes_make_a_node_panic(message in prop::collection::vec(any::<u8>(), 0..60), kind in 0..9_u8) {
            let mut cluster = Cluster::of(&[1, 2]);
            let mut framed = vec![kind << 3 | 2, message.len() as u8];
            framed.extend(message);
            let _ = take(&mut cluster, 2, framed.into());
        }
    }
}

/// A node asks whoever it knows; who leads the directory has it admitted, and the others say who that is.
#[test]
fn a_node_is_admitted_by_whoever_leads_the_directory() {
    let mut cluster = Cluster::placed(&[1, 2]);
    cluster.pass(1_000);
    let elsewhere = Wish::Elsewhere { address: String::new() };
    assert_eq!(cluster.with(2, |membership, _| membership.admit(record(3))), elsewhere);
    assert_eq!(cluster.with(1, |membership, _| membership.admit(record(3))), Wish::Proposed);
    for node in [1, 2] {
        assert_eq!(cluster.with(node, |membership, _| membership.admit(record(3))), Wish::Fulfilled);
    }
    let namesake = MemberRecord { name: record(1).name, ..record(4) };
    let taken = Wish::Refused(JoinRefusal::NameTaken { by: id(1) }.into());
    assert_eq!(cluster.with(1, |membership, _| membership.admit(namesake)), taken);
    cluster.leader = 9;
    cluster.with(1, |membership, now| membership.on_directory_role(now, None, 2));
    assert_eq!(cluster.with(1, |membership, _| membership.admit(record(5))), Wish::NoLeader);
}

/// Growth from one to three, from the side of the directory: the leader of each group is told where it is to be kept.
#[test]
fn groups_are_told_where_they_are_to_be_kept_as_nodes_come() {
    let mut cluster = Cluster::placed(&[1]);
    cluster.settle();
    let (alone, two, three) = (placement(&[1], &[]), placement(&[1], &[2]), placement(&[1, 2, 3], &[]));
    let both =
        |placement: &Placement| BTreeMap::from([GROUP, GroupId::DIRECTORY].map(|group| (group, placement.clone())));
    assert_eq!(cluster.targets(1), both(&alone));
    for (node, expected) in [(2, &two), (3, &three)] {
        cluster.with(1, |membership, _| membership.admit(record(node)));
        cluster.start(node);
        cluster.settle();
        assert_eq!(cluster.targets(1), both(expected));
        assert_eq!(cluster.node(node).standing(), Some(Standing::Serving));
    }
    assert_eq!(cluster.targets(2), BTreeMap::new(), "who leads nothing is told nothing");
}

/// A new leader of a group may have heard less of the directory than the one before, which acted upon it.
#[test]
fn a_leader_is_told_nothing_before_it_knows_every_placement_there_was() {
    let mut cluster = Cluster::placed(&[1, 2, 3]);
    cluster.settle();
    cluster.seen(2);
    cluster.rounds_fail = true;
    cluster.with(1, |membership, now| membership.on_group_role(now, GROUP, None));
    cluster.group_leader = 2;
    cluster.with(2, |membership, now| membership.on_group_role(now, GROUP, Some(2)));
    cluster.pass(1_000);
    assert_eq!(cluster.targets(2), BTreeMap::new());
    cluster.rounds_fail = false;
    cluster.pass(1_000);
    assert_eq!(cluster.targets(2), BTreeMap::from([(GROUP, placement(&[1, 2, 3], &[]))]));
}

/// It is removed only when the groups have moved, by the word of their leaders; it hears of it, and never registers again.
#[test]
fn a_member_that_leaves_is_removed_when_its_groups_have_moved() {
    let mut cluster = Cluster::placed(&[1, 2, 3]);
    cluster.settle();
    assert_eq!(cluster.with(2, |membership, _| membership.remove(id(3))), Wish::Elsewhere { address: String::new() });
    assert_eq!(cluster.with(1, |membership, _| membership.remove(id(3))), Wish::Proposed);
    cluster.seen(3);
    cluster.pass(5_000);
    assert!(cluster.node(1).directory().members().contains_key(&id(3)), "the groups have not moved");
    assert_eq!(cluster.node(3).standing(), Some(Standing::Serving), "it is counted on, and serves");
    for asked in [1, 2] {
        let back = cluster.with(asked, |membership, _| membership.drain(id(3), false));
        assert_eq!(back, Wish::Refused(WishRefusal::Leaves), "it does not come back");
    }
    cluster.settle();
    assert_eq!(cluster.node(1).directory().removed(), &BTreeSet::from([id(3)]));
    let seen = cluster.seen(3);
    let position = |wanted: &Output| seen.iter().position(|output| output == wanted);
    let (dead, removed) = (position(&Output::Standing(Standing::Dead)), position(&Output::Removed));
    assert!(dead.is_some() && dead < removed, "{seen:?}");
    let entries = cluster.log.len();
    cluster.with(3, |membership, now| membership.on_clients_closed(now));
    cluster.pass(2_000);
    assert_eq!(cluster.node(3).incarnation(), None);
    for node in [1, 2] {
        assert_eq!(cluster.with(node, |membership, _| membership.remove(id(3))), Wish::Fulfilled, "that is final");
    }
    assert_eq!(cluster.with(1, |membership, _| membership.remove(id(9))), Wish::Fulfilled);
    assert_eq!(
        cluster.with(2, |membership, _| membership.remove(id(9))),
        Wish::Elsewhere { address: String::new() },
        "it may not know yet that it was admitted"
    );
    assert!(cluster.log.len() <= entries + 1, "it asks for nothing any more, and only its fence is completed");
}

/// P1, P7: who is removed while it lives may act upon its lease for as long as it was granted.
#[test]
fn a_member_that_is_removed_is_lost_when_its_lease_is_over() {
    let mut cluster = Cluster::placed(&[1, 2, 3]);
    cluster.settle();
    let dead = cluster.incarnation(3);
    assert_eq!(cluster.with(1, |membership, _| membership.remove(id(3))), Wish::Proposed);
    let is_removed = |cluster: &Cluster| cluster.node(1).directory().removed().contains(&id(3));
    while !is_removed(&cluster) {
        assert!(cluster.now_ms < 30_000, "it is removed once the groups have moved");
        for (group, placement) in cluster.node(1).directory().placements().clone() {
            cluster.members_are(group, &placement);
        }
        cluster.pass(100);
    }
    let removed_ms = cluster.now_ms;
    let below = Incarnation(dead.0 + 1);
    for node in [1, 2] {
        cluster.with(node, |membership, _| membership.on_group_fenced(GROUP, id(3), below));
        cluster.with(node, |membership, _| membership.on_group_fenced(GroupId::DIRECTORY, id(3), below));
    }
    while cluster.node(1).directory().dead_not_lost().contains_key(&dead) {
        assert!(cluster.now_ms < removed_ms + 5_000, "everybody has fenced it");
        cluster.pass(100);
    }
    assert!(cluster.now_ms >= removed_ms + GRANTED_NS / MS, "after {} ms", cluster.now_ms - removed_ms);
}

#[test]
fn leaders_are_told_who_is_drained() {
    let mut cluster = Cluster::placed(&[1, 2, 3]);
    cluster.pass(1_000);
    let drained = |cluster: &mut Cluster, node: u64| {
        let told = cluster.seen(node).into_iter().filter_map(|output| match output {
            Output::Place { group, target, .. } => Some((group, (target.leader, target.drained))),
            _ => None,
        });
        told.collect::<BTreeMap<_, _>>()
    };
    drained(&mut cluster, 1);
    assert_eq!(
        cluster.with(2, |membership, _| membership.drain(id(1), true)),
        Wish::Elsewhere { address: String::new() }
    );
    assert_eq!(cluster.with(1, |membership, _| membership.drain(id(1), true)), Wish::Proposed);
    cluster.pass(300);
    let told = drained(&mut cluster, 1);
    let is_drained =
        |target: &(Option<NodeId>, BTreeSet<NodeId>)| target.0 != Some(id(1)) && target.1 == [id(1)].into();
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), [GROUP, GroupId::DIRECTORY]);
    assert!(told.values().all(is_drained), "{told:?}");
    assert_eq!(cluster.with(1, |membership, _| membership.drain(id(1), true)), Wish::Fulfilled);
    assert_eq!(
        cluster.with(2, |membership, _| membership.drain(id(1), true)),
        Wish::Elsewhere { address: String::new() },
        "it may have missed that it was undone"
    );
    assert_eq!(cluster.with(1, |membership, _| membership.prefer(GROUP, Some(id(3)))), Wish::Proposed);
    cluster.pass(300);
    assert_eq!(drained(&mut cluster, 1)[&GROUP].0, Some(id(3)));
    assert_eq!(cluster.with(1, |membership, _| membership.prefer(GROUP, Some(id(3)))), Wish::Fulfilled);
    assert_eq!(
        cluster.with(3, |membership, _| membership.prefer(GROUP, Some(id(3)))),
        Wish::Elsewhere { address: String::new() },
        "it may have missed that another one was chosen"
    );
}

/// Operators' programs that ask at the same moment have all seen a cluster in which nobody is drained.
#[test]
fn of_drains_at_the_same_moment_the_one_that_would_leave_nobody_is_refused() {
    let mut cluster = Cluster::placed(&[1, 2, 3]);
    cluster.pass(1_000);
    let refused = Wish::Refused(WishRefusal::NobodyLeft);
    let ask = |cluster: &mut Cluster, asked: u64, node: u64, on| {
        cluster.with(asked, |membership, _| membership.drain(id(node), on))
    };
    let all = cluster.with(1, |membership, _| [1, 2, 3, 1].map(|node| membership.drain(id(node), true)));
    assert_eq!(all, [Wish::Proposed, Wish::Proposed, refused.clone(), Wish::Proposed]);
    cluster.pass(300);
    assert_eq!([1, 3].map(|node| ask(&mut cluster, 1, node, true)), [Wish::Fulfilled, refused.clone()]);
    assert_eq!(ask(&mut cluster, 1, 1, false), Wish::Proposed);
    cluster.pass(300);
    assert_eq!(ask(&mut cluster, 1, 3, true), Wish::Proposed, "that one is there again");

    let mut cluster = Cluster::placed(&[1, 2, 3]);
    cluster.pass(1_000);
    let both = cluster.with(1, |membership, _| (membership.remove(id(2)), membership.drain(id(3), true)));
    assert_eq!(both, (Wish::Proposed, Wish::Proposed), "the first one stays");
    let both = cluster.with(1, |membership, _| membership.drain(id(1), true));
    assert_eq!(both, refused);

    let mut cluster = Cluster::placed(&[1, 2, 3]);
    cluster.pass(1_000);
    cluster.elect(2);
    assert_eq!(ask(&mut cluster, 2, 1, true), Wish::NoLeader, "the one before may have drained others");
    cluster.pass(300);
    assert_eq!(ask(&mut cluster, 2, 1, true), Wish::Proposed);
}

/// As while leadership is handed over, which may come to nothing.
#[test]
fn a_drain_that_was_proposed_and_lost_keeps_the_others_from_it_for_a_while() {
    let mut cluster = Cluster::placed(&[1, 2]);
    cluster.pass(1_000);
    cluster.leader = 2; // Nobody says so, but what the first one proposes is lost.
    let ask = |cluster: &mut Cluster, node| cluster.with(1, |membership, _| membership.drain(id(node), true));
    assert_eq!(ask(&mut cluster, 1), Wish::Proposed);
    cluster.leader = 1;
    cluster.pass(50_000);
    assert_eq!(ask(&mut cluster, 2), Wish::Refused(WishRefusal::NobodyLeft));
    cluster.pass(20_000);
    assert_eq!(ask(&mut cluster, 2), Wish::Proposed);
}

#[test]
fn nodes_know_of_whom_they_hear_whether_they_hold_a_lease() {
    let mut cluster = Cluster::serving(&[1, 2, 3]);
    let leases = |cluster: &Cluster, node: u64| cluster.node(node).leases().clone();
    assert_eq!(leases(&cluster, 1), [(id(2), true), (id(3), true)].into());
    cluster.away.insert(1);
    cluster.pass(3_000);
    assert_eq!(leases(&cluster, 2), [(id(1), true), (id(3), false)].into(), "the first said nothing else");
    cluster.cut(1, 2);
    assert_eq!(leases(&cluster, 2), [(id(3), false)].into());
    cluster.away.remove(&1);
    cluster.link(1);
    cluster.pass(3_000);
    assert_eq!(leases(&cluster, 2), [(id(1), true), (id(3), true)].into());
}

/// P12: it would lead for others that do not reach it, or give the group up again.
#[test]
fn who_says_that_it_has_no_lease_is_to_lead_nothing_but_the_directory() {
    let mut cluster = Cluster::placed(&[1, 2, 3]);
    cluster.pass(1_000);
    assert_eq!(cluster.with(1, |membership, _| membership.prefer(GROUP, Some(id(3)))), Wish::Proposed);
    cluster.pass(300);
    let target = |cluster: &mut Cluster| {
        let told = cluster.seen(1).into_iter().filter_map(|output| match output {
            Output::Place { group, target, .. } => Some((group, (target.leader, target.drained))),
            _ => None,
        });
        told.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(target(&mut cluster)[&GROUP], (Some(id(3)), BTreeSet::new()));
    let says = |cluster: &mut Cluster, node: u64, held| {
        let message = wire::encode(Body::Lease(wire::Lease { held }));
        cluster.with(1, |membership, now| membership.on_message(now, id(node), message).expect("well-formed"));
    };
    says(&mut cluster, 3, false);
    assert_eq!(target(&mut cluster), [(GROUP, (None, [id(3)].into()))].into(), "of the directory nothing else is said");
    says(&mut cluster, 3, false);
    assert_eq!(target(&mut cluster), [].into(), "once");
    cluster.pass(1_100);
    assert_eq!(target(&mut cluster), [(GROUP, (Some(id(3)), BTreeSet::new()))].into(), "it says so again and again");
}

/// F5: one that the directory's leader does not hear, and has declared dead, may be heard by who leads a group: that does not hand it over.
#[test]
fn who_is_dead_is_to_lead_nothing() {
    let mut cluster = Cluster::placed(&[1, 2, 3]);
    cluster.pass(1_000);
    let leader = |cluster: &mut Cluster| {
        let told = cluster.seen(1).into_iter().filter_map(|output| match output {
            Output::Place { group: GROUP, target, .. } => Some(target.leader),
            _ => None,
        });
        told.last()
    };
    assert_eq!(cluster.with(1, |membership, _| membership.prefer(GROUP, Some(id(3)))), Wish::Proposed);
    cluster.pass(300);
    assert_eq!(leader(&mut cluster), Some(Some(id(3))));
    cluster.nodes.remove(&3);
    cluster.pass(5_000);
    assert_eq!(leader(&mut cluster), Some(None));
    let cell = Arc::new(LeaseCell::new());
    let membership = Membership::new(id(3), record(3), 77, Arc::clone(&cell), Limits::default());
    cluster.nodes.insert(3, Node { membership, cell, seen: Vec::new(), messages_sent: 0 });
    cluster.link(3);
    cluster.elect(1);
    cluster.pass(1_000);
    assert_eq!(cluster.node(3).standing(), Some(Standing::Serving));
    assert_eq!(leader(&mut cluster), Some(Some(id(3))), "it is back");
}

/// A node that does not know the command would stop at it.
#[test]
fn a_ban_reaches_every_node_once_all_of_them_know_what_it_is() {
    let ban = || command::Ban { subject: "somebody".into(), ..command::Ban::default() };
    let mut cluster = Cluster::serving(&[1, 2]);
    let refused = Wish::Refused(BanRefusal::FeatureLevel { used: 0 }.into());
    assert_eq!(cluster.with(1, |membership, _| membership.ban(ban())), refused);

    let mut cluster = Cluster::at_level(&[1, 2], BANS_LEVEL);
    assert_eq!(
        cluster.with(2, |membership, _| membership.ban(ban())),
        Wish::Elsewhere { address: String::new() },
        "who leads the directory decides"
    );
    assert_eq!(cluster.with(1, |membership, _| membership.ban(ban())), Wish::Proposed);
    cluster.pass(300);
    for node in [1, 2] {
        assert!(cluster.seen(node).contains(&Output::Bans));
        let banned: Vec<_> = cluster.node(node).directory().bans().iter().map(|(subject, _)| subject).collect();
        assert_eq!(banned, ["somebody"], "as node {node} has it");
    }
    assert_eq!(cluster.with(1, |membership, _| membership.ban(ban())), Wish::Fulfilled);
    assert_eq!(
        cluster.with(2, |membership, _| membership.ban(ban())),
        Wish::Elsewhere { address: String::new() },
        "it may have missed that it was lifted"
    );
    let lifted = command::Ban { lifted: true, ..ban() };
    assert_eq!(cluster.with(1, |membership, _| membership.ban(lifted)), Wish::Proposed);
    cluster.pass(300);
    assert_eq!(cluster.node(2).directory().bans().iter().count(), 0);
}

/// A node that was away is handed the state, not the commands.
#[test]
fn a_restored_directory_tells_who_is_banned() {
    let mut directory = Directory::new();
    directory.apply(1, Command::Ban(command::Ban { subject: "somebody".into(), ..command::Ban::default() }));
    let mut membership = Membership::new(id(1), record(1), 7, Arc::new(LeaseCell::new()), Limits::default());
    membership.on_directory_restored(0, directory);
    assert!(membership.take_outputs().contains(&Output::Bans));
}

#[test]
fn a_process_that_is_about_to_end_is_drained_by_whoever_leads_the_directory_until_it_starts_again() {
    let mut cluster = Cluster::serving(&[1, 2]);
    cluster.with(2, |membership, _| membership.set_stops());
    cluster.pass(1_000);
    for node in [1, 2] {
        assert_eq!(cluster.node(node).directory().drained(), [id(2)].into(), "as node {node} has it");
    }
    let drains = |cluster: &Cluster| {
        let command = |entry: &Bytes| command::decode(entry.clone()).unwrap();
        cluster.log.iter().filter(|entry| matches!(command(entry), Some(Command::Drain(_)))).count()
    };
    assert_eq!(drains(&cluster), 1, "it is said once, however often it is asked for");
    let cell = Arc::new(LeaseCell::new());
    let membership = Membership::new(id(2), record(2), 77, Arc::clone(&cell), Limits::default());
    cluster.nodes.insert(2, Node { membership, cell, seen: Vec::new(), messages_sent: 0 });
    cluster.learn(2);
    cluster.link(2);
    cluster.elect(1);
    cluster.pass(1_000);
    assert_eq!(cluster.node(1).directory().drained(), [].into());
}

#[test]
fn every_node_hears_how_many_clients_the_others_have() {
    let mut cluster = Cluster::serving(&[1, 2, 3]);
    for (node, connections) in [(1, Some(10)), (2, Some(0)), (3, None)] {
        cluster.with(node, |membership, _| membership.set_connections(connections));
    }
    cluster.pass(1_000);
    for node in [1, 2, 3] {
        assert_eq!(cluster.node(node).loads(), &[(id(1), 10), (id(2), 0)].into(), "who takes none is not counted");
    }
    cluster.elect(2);
    cluster.with(1, |membership, _| membership.set_connections(None));
    cluster.with(3, |membership, _| membership.set_connections(Some(7)));
    cluster.pass(2_000);
    for node in [1, 2, 3] {
        assert_eq!(cluster.node(node).loads(), &[(id(2), 0), (id(3), 7)].into());
    }
}

#[test]
fn of_two_that_do_not_hear_each_other_one_is_left_out_and_waited_for_no_more() {
    let mut cluster = Cluster::serving(&[1, 2, 3]);
    let below = Incarnation(cluster.incarnation(3).0 + 1);
    cluster.cut(2, 3);
    cluster.pass(3_000);
    assert!(!cluster.subscribe(2, "a", 1), "node 3 may acknowledge what matches it");
    cluster.seen(2);
    cluster.pass(900);
    assert_eq!(cluster.seen(2), [], "they may hear each other in a moment");
    cluster.pass(3_000);
    assert!(!cluster.is_valid(3, cluster.now_ms));
    cluster.with(1, |membership, _| membership.on_group_fenced(GROUP, id(3), below));
    cluster.pass(1_000);
    assert_eq!(cluster.seen(2).pop(), Some(released(1)), "nobody waits for who is left out");
    cluster.with(3, |membership, now| membership.on_clients_closed(now));
    cluster.pass(9_000);
    assert_eq!(cluster.node(3).incarnation(), None, "node 2 would wait for it again");

    cluster.link(3);
    cluster.pass(2_000);
    assert_eq!(cluster.node(3).standing(), Some(Standing::Serving));
}

/// P10: a node that joins has no directory yet, nor has one that starts again and has not heard what is committed, and either may lead
/// groups before the others say once more what time it is.
#[test]
fn what_time_it_is_by_others_counts_before_the_directory_is_known() {
    let process = |node| Membership::new(id(node), record(node), node, Arc::new(LeaseCell::new()), Limits::default());
    let (mut member, mut joiner, link) = (process(1), process(3), Some(LinkId(1)));
    member.set_wall_clock(0, 1_000_000);
    joiner.set_wall_clock(0, 9_000_000);
    joiner.on_link(0, id(1), link);
    member.on_link(0, id(3), link);
    member.flush(0);
    for output in member.take_outputs() {
        if let Output::Send { message, .. } = output {
            joiner.on_message(0, id(1), message).expect("well-formed");
        }
    }
    for _ in 0..2 {
        assert_eq!(joiner.agreed_wall_clock().map(|agreed| agreed.own_ahead_ms), Some(8_000_000));
    }
}
