//! Scripts of what the simulation hardly comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::{Node, NodeConfig, Sink};
use crate::disk::SimDisk;
use crate::group::{Change, CheckpointBase, Committed, Configuration, Role};
use crate::identity::{GroupId, NodeId};
use crate::log::LogId;

const GROUP: GroupId = GroupId(0);

/// Messages that wait to be carried, and the members as they were handed out last.
#[derive(Default)]
struct Said {
    messages: Vec<(NodeId, Bytes)>,
    members: Option<Configuration>,
}

impl Sink for Said {
    fn send(&mut self, to: NodeId, _: GroupId, message: Bytes, _: bool) {
        self.messages.push((to, message));
    }

    fn committed(&mut self, _: GroupId, _: LogId, what: Committed) {
        if let Committed::Configuration(configuration) = what {
            self.members = Some(configuration);
        }
    }

    fn role(&mut self, _: GroupId, _: u64, _: Role) {}
    fn query(&mut self, _: GroupId, _: u64) {}
    fn query_dropped(&mut self, _: GroupId, _: u64) {}
    fn read_ready(&mut self, _: GroupId, _: u64, _: u64) {}
    fn read_dropped(&mut self, _: GroupId, _: u64) {}
    fn fetch_snapshot(&mut self, _: GroupId, _: NodeId, _: &CheckpointBase) {}
}

/// Nodes with one group, of which all vote at first.
struct Cluster {
    founders: Configuration,
    disks: BTreeMap<NodeId, SimDisk>,
    nodes: BTreeMap<NodeId, Node>,
    members: BTreeMap<NodeId, Configuration>,
}

impl Cluster {
    fn of(nodes: u64) -> Self {
        let ids = (1..=nodes).map(NodeId);
        let mut cluster = Self {
            founders: Configuration::of(ids.clone()),
            disks: ids.clone().map(|node| (node, SimDisk::new())).collect(),
            nodes: BTreeMap::new(),
            members: BTreeMap::new(),
        };
        ids.for_each(|node| cluster.start(node));
        cluster
    }

    fn start(&mut self, node: NodeId) {
        let config = NodeConfig { election_ticks: 10, ..NodeConfig::new(node, 1024 * 1024, true, node.0) };
        let checkpoint = CheckpointBase::new_group(self.founders.clone());
        let disk = Arc::new(self.disks[&node].clone());
        let opened = Node::open(config, disk, BTreeMap::from([(GROUP, checkpoint)])).expect("opens");
        self.nodes.insert(node, opened);
    }

    fn end(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.members.remove(&node);
    }

    /// A round of each node; then what they said is carried. Whether anybody said anything.
    fn round(&mut self) -> bool {
        let mut under_way = Vec::new();
        let mut busy = false;
        for (&id, node) in &mut self.nodes {
            let mut said = Said::default();
            busy |= node.round(&mut said).expect("a disk that does not fail").busy;
            under_way.extend(said.messages.into_iter().map(|(to, message)| (id, to, message)));
            self.members.extend(said.members.map(|members| (id, members)));
        }
        busy |= !under_way.is_empty();
        for (from, to, message) in under_way {
            if let Some(node) = self.nodes.get_mut(&to) {
                node.step(from, GROUP, message).expect("from a peer");
            }
        }
        busy
    }

    /// Ticks until `is_so`, or for as long as several elections take.
    fn tick_until(&mut self, is_so: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..200 {
            self.nodes.values_mut().for_each(Node::tick);
            while self.round() {}
            if is_so(self) {
                return true;
            }
        }
        false
    }

    fn leader(&self) -> Option<NodeId> {
        let leads = |node: &Node| node.status(GROUP).is_some_and(|status| status.role == Role::Leader { ready: true });
        self.nodes.iter().find(|(_, node)| leads(node)).map(|(&id, _)| id)
    }
}

/// The end of a joint step was handed out, nothing was written since, and those that the step took out are gone: who is left
/// must know that they are not needed any more.
#[test]
fn who_handed_out_a_change_of_members_knows_of_it_after_a_restart() {
    let mut cluster = Cluster::of(3);
    assert!(cluster.tick_until(|cluster| cluster.leader().is_some()));
    let leader = cluster.leader().expect("just seen");
    let others: Vec<_> = cluster.nodes.keys().copied().filter(|node| *node != leader).collect();
    let leave: Vec<_> = others.iter().copied().map(Change::Remove).collect();
    cluster.nodes.get_mut(&leader).expect("leads").propose_change(GROUP, &leave).expect("nothing else is under way");

    let alone = Configuration::of([leader]);
    // No round more than it takes: the next write would say what is committed.
    let mut ticks = 0;
    while cluster.members.get(&leader) != Some(&alone) {
        if !cluster.round() {
            ticks += 1;
            assert!(ticks < 200, "the joint step does not end");
            cluster.nodes.values_mut().for_each(Node::tick);
        }
    }
    others.into_iter().for_each(|node| cluster.end(node));
    cluster.end(leader);
    cluster.disks[&leader].power_cycle(|_, _| 0);
    cluster.start(leader);
    assert!(cluster.tick_until(|cluster| cluster.leader() == Some(leader)), "it waits for nodes that are no members");
}

/// Who voted before may be gone a moment later, and without its vote nobody could lead who thinks that it has one.
#[test]
fn a_change_of_members_is_known_to_all_of_them_before_time_passes() {
    let mut cluster = Cluster::of(3);
    assert!(cluster.tick_until(|cluster| cluster.leader().is_some()));
    let leader = cluster.leader().expect("just seen");
    let others: Vec<_> = cluster.nodes.keys().copied().filter(|node| *node != leader).collect();
    while cluster.round() {}
    let all = [leader, others[0], others[1]];
    // The last of these changes is one after which a leader has nothing more to send.
    for (change, voters) in [
        (Change::Remove(others[0]), vec![leader, others[1]]),
        (Change::AddLearner(others[0]), vec![leader, others[1]]),
        (Change::AddVoter(others[0]), all.to_vec()),
    ] {
        let nodes = cluster.nodes.get_mut(&leader).expect("leads");
        nodes.propose_change(GROUP, &[change]).expect("nothing else is under way");
        while cluster.round() {}
        for node in &voters {
            let known = cluster.members.get(node).map(|members| &members.voters);
            let known: Option<BTreeSet<_>> = known.map(|voters| voters.iter().copied().collect());
            assert_eq!(known, Some(voters.iter().copied().collect()), "at {node} after {change:?}");
        }
    }
}
