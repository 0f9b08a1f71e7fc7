//! Scripts of what the simulation hardly comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::{Node, NodeConfig, Sink};
use crate::disk::{SimDisk, SyncSite};
use crate::group::{Change, CheckpointBase, Committed, Configuration, Keeping, Role};
use crate::identity::{GroupId, NodeId};
use crate::log::LogId;
use crate::transport::FRAME_BYTES_MAX;

mod keeping;

const GROUP: GroupId = GroupId(0);

/// A message that waits to be carried.
struct Message {
    to: NodeId,
    group: GroupId,
    bytes: Bytes,
    carries_entries: bool,
}

/// Messages, the members as they were handed out last, and from whom snapshots are to be fetched.
#[derive(Default)]
struct Said {
    messages: Vec<Message>,
    members: Option<Configuration>,
    fetches: Vec<NodeId>,
}

impl Sink for Said {
    fn send(&mut self, to: NodeId, group: GroupId, bytes: Bytes, carries_entries: bool) {
        self.messages.push(Message { to, group, bytes, carries_entries });
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

    fn fetch_snapshot(&mut self, _: GroupId, from: NodeId, _: &CheckpointBase) {
        self.fetches.push(from);
    }
}

/// Nodes with one group or more, in which all vote at first.
struct Cluster {
    founders: Configuration,
    groups: Vec<GroupId>,
    keeping: Keeping,
    disks: BTreeMap<NodeId, SimDisk>,
    nodes: BTreeMap<NodeId, Node>,
    members: BTreeMap<NodeId, Configuration>,
    /// Each round is synced.
    sync: bool,
    /// An earlier process of the nodes did not.
    has_not_synced: bool,
    /// Nothing comes to it, and nothing from it.
    cut_off: Option<NodeId>,
    /// Entries of these groups do not come to these nodes, and all else does.
    starved: BTreeSet<(NodeId, GroupId)>,
    /// Who is to fetch a snapshot, and from whom.
    fetches: Vec<(NodeId, NodeId)>,
    /// The longest message that was carried, in bytes, since somebody was cut off. No frame holds one of [`FRAME_BYTES_MAX`].
    longest: usize,
}

impl Cluster {
    fn of(nodes: u64) -> Self {
        Self::that_syncs(nodes, true)
    }

    fn that_syncs(nodes: u64, sync: bool) -> Self {
        let ids = (1..=nodes).map(NodeId);
        let mut cluster = Self {
            founders: Configuration::of(ids.clone()),
            groups: vec![GROUP],
            keeping: Keeping::default(),
            disks: ids.clone().map(|node| (node, SimDisk::new())).collect(),
            nodes: BTreeMap::new(),
            members: BTreeMap::new(),
            sync,
            has_not_synced: false,
            cut_off: None,
            starved: BTreeSet::new(),
            fetches: Vec::new(),
            longest: 0,
        };
        ids.for_each(|node| cluster.start(node));
        cluster
    }

    fn start(&mut self, node: NodeId) {
        let config = NodeConfig::new(node, 1024 * 1024, self.sync, node.0);
        let forgets = config.forgets || self.has_not_synced;
        let config = NodeConfig { election_ticks: 10, forgets, keeping: self.keeping, ..config };
        let checkpoint = if self.founders.votes(node) {
            CheckpointBase::new_group(self.founders.clone())
        } else {
            CheckpointBase::default()
        };
        let disk = Arc::new(self.disks[&node].clone());
        let checkpoints = self.groups.iter().map(|&group| (group, checkpoint.clone())).collect();
        let opened = Node::open(config, disk, checkpoints).expect("opens");
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
            under_way.extend(said.messages.into_iter().map(|message| (id, message)));
            self.fetches.extend(said.fetches.into_iter().map(|from| (id, from)));
            self.members.extend(said.members.map(|members| (id, members)));
        }
        busy |= !under_way.is_empty();
        for (from, Message { to, group, bytes, carries_entries }) in under_way {
            self.longest = self.longest.max(bytes.len());
            let is_starved = carries_entries && self.starved.contains(&(to, group));
            let is_cut_off = self.cut_off.is_some_and(|away| [from, to].contains(&away));
            if bytes.len() >= FRAME_BYTES_MAX || is_starved || is_cut_off {
                continue;
            }
            if let Some(node) = self.nodes.get_mut(&to) {
                node.step(from, group, bytes).expect("from a peer");
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

impl Cluster {
    fn led() -> (Self, NodeId) {
        let mut cluster = Self::of(3);
        assert!(cluster.tick_until(|cluster| cluster.leader().is_some()));
        let leader = cluster.leader().expect("just seen");
        (cluster, leader)
    }

    fn tick(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.nodes.values_mut().for_each(Node::tick);
            while self.round() {}
        }
    }

    fn others_of(&self, node: NodeId) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|other| *other != node).collect()
    }

    fn connected(&mut self, at: NodeId, peer: NodeId, is_connected: bool) {
        self.nodes.get_mut(&at).expect("runs").connected(peer, is_connected.then_some(1));
    }
}

/// Less than the ten ticks of an election timeout, of which the second voter may need four more than the first.
#[test]
fn a_leader_whose_connections_end_and_do_not_come_back_is_followed_by_another_before_an_election_times_out() {
    let (mut cluster, leader) = Cluster::led();
    // So that nobody is about to stand for election anyway.
    cluster.tick(8);
    cluster.end(leader);
    let others = cluster.others_of(leader);
    others.iter().for_each(|&other| cluster.connected(other, leader, false));
    cluster.tick(super::REDIAL_TICKS - 1);
    assert_eq!(cluster.leader(), None);
    cluster.tick(3);
    assert!(cluster.leader().is_some(), "the first of them did not stand for election, or the other one did not vote");
}

/// The first in turn has not what is committed: the second one has its turn soon after.
#[test]
fn who_is_next_stands_for_election_where_the_one_before_cannot() {
    let (mut cluster, leader) = Cluster::led();
    cluster.tick(8);
    cluster.end(leader);
    let others = cluster.others_of(leader);
    // Whichever is first: it alone has noticed, and nobody votes for it, since the other one follows the leader still.
    for (alone, late) in [(others[0], others[1]), (others[1], others[0])] {
        let mut notices = Cluster::led().0;
        assert_eq!(notices.leader(), Some(leader), "the same seeds");
        notices.tick(8);
        notices.end(leader);
        notices.connected(alone, leader, false);
        notices.tick(3);
        notices.connected(late, leader, false);
        notices.tick(super::REDIAL_TICKS + 2 + 4);
        assert!(notices.leader().is_some(), "{alone:?} noticed first");
    }
}

#[test]
fn a_leader_that_dials_again_in_time_or_is_heard_by_a_majority_stays() {
    let (mut cluster, leader) = Cluster::led();
    let others = cluster.others_of(leader);
    let term = |cluster: &Cluster| cluster.nodes[&leader].status(GROUP).map(|status| status.term);
    let before = term(&cluster);
    others.iter().for_each(|&other| cluster.connected(other, leader, false));
    cluster.tick(super::REDIAL_TICKS - 1);
    others.iter().for_each(|&other| cluster.connected(other, leader, true));
    cluster.tick(20);
    cluster.connected(others[0], leader, false);
    cluster.tick(20);
    assert_eq!((cluster.leader(), term(&cluster)), (Some(leader), before));
}

/// It does not lead, and says nothing as long as nobody does.
#[test]
fn a_leader_that_begins_anew_in_time_is_followed_by_another_before_an_election_times_out() {
    let (mut cluster, leader) = Cluster::led();
    let others = cluster.others_of(leader);
    others.iter().for_each(|&other| cluster.connected(other, leader, true));
    cluster.tick(8);
    cluster.end(leader);
    others.iter().for_each(|&other| cluster.connected(other, leader, false));
    cluster.tick(super::REDIAL_TICKS - 1);
    cluster.start(leader);
    for other in &others {
        cluster.nodes.get_mut(other).expect("runs").connected(leader, Some(2));
    }
    cluster.tick(4);
    assert!(cluster.leader().is_some(), "the first of them did not stand for election, or nobody voted for it");
}

/// Durability `memory` may lose messages in a power cut, and no vote: with two leaders of a term replicas would differ for good.
#[test]
fn who_voted_knows_of_it_after_a_power_cut_whether_rounds_are_synced_or_not() {
    for sync in [true, false] {
        let mut cluster = Cluster::that_syncs(3, sync);
        assert!(cluster.tick_until(|cluster| cluster.leader().is_some()));
        let term = |cluster: &Cluster, node| cluster.nodes[&node].status(GROUP).expect("kept").term;
        for node in cluster.nodes.keys().copied().collect::<Vec<_>>() {
            let voted_in = term(&cluster, node);
            cluster.end(node);
            cluster.disks[&node].power_cycle(|_, _| 0);
            cluster.start(node);
            assert_eq!(term(&cluster, node), voted_in, "node {node}, synced: {sync}");
        }
    }
}

impl Cluster {
    /// The power of a node fails, which takes what it had not synced.
    fn power_cut(&mut self, node: NodeId) {
        self.end(node);
        self.disks[&node].power_cycle(|_, _| 0);
        self.start(node);
    }

    fn propose(&mut self, node: NodeId, payload: &[u8]) {
        self.nodes.get_mut(&node).expect("runs").propose(GROUP, payload).expect("leads");
    }

    /// Whether a node has handed out what another one has.
    fn follows(&self, node: NodeId, leader: NodeId) -> bool {
        let handed_out = |node: &NodeId| self.nodes[node].status(GROUP).map(|status| status.handed_out);
        handed_out(&node) == handed_out(&leader)
    }
}

/// Its leader goes on, and may have nothing to send. Whether the next process syncs is all the same.
#[test]
fn who_lost_what_it_had_acknowledged_has_it_again_from_the_same_leader() {
    [false, true].into_iter().for_each(lose_what_was_acknowledged);
}

fn lose_what_was_acknowledged(syncs_then: bool) {
    let mut cluster = Cluster::that_syncs(3, false);
    assert!(cluster.tick_until(|cluster| cluster.leader().is_some()));
    let leader = cluster.leader().expect("just seen");
    let term = cluster.nodes[&leader].status(GROUP).expect("kept").term;
    for number in 0..60_u8 {
        cluster.propose(leader, &[number; 20_000]);
        while cluster.round() {}
    }
    let follower = cluster.others_of(leader)[0];
    cluster.tick(5);
    assert!(cluster.follows(follower, leader));
    (cluster.sync, cluster.has_not_synced) = (syncs_then, true);
    cluster.power_cut(follower);
    assert!(!cluster.follows(follower, leader), "it lost something");
    assert!(cluster.tick_until(|cluster| cluster.follows(follower, leader)));
    assert_eq!(cluster.nodes[&leader].status(GROUP).expect("kept").term, term, "nobody had to be elected");
    assert_eq!(cluster.nodes[&follower].entries(GROUP), cluster.nodes[&leader].entries(GROUP));
}

/// A power cut may bring back what was overwritten: then it is no use that its leader knows it to be as long as it should be.
#[test]
fn who_has_again_what_was_overwritten_takes_it_for_nothing() {
    [false, true].into_iter().for_each(have_again_what_was_overwritten);
}

fn have_again_what_was_overwritten(syncs_then: bool) {
    let mut cluster = Cluster::that_syncs(3, false);
    assert!(cluster.tick_until(|cluster| cluster.leader().is_some()));
    let first = cluster.leader().expect("just seen");
    cluster.cut_off = Some(first);
    for number in 0..10 {
        cluster.propose(first, &[number; 100]);
        while cluster.round() {}
    }
    cluster.nodes.get_mut(&first).expect("runs").sync(SyncSite::LogBackground).expect("a disk that does not fail");
    let others = cluster.others_of(first);
    let leads = |cluster: &Cluster, node: &NodeId| {
        cluster.nodes[node].status(GROUP).is_some_and(|status| status.role == Role::Leader { ready: true })
    };
    assert!(cluster.tick_until(|cluster| others.iter().any(|node| leads(cluster, node))));
    let second = others.into_iter().find(|node| leads(&cluster, node)).expect("just seen");
    cluster.cut_off = None;
    // First it hears of the term, which is synced, and then of entries, which are not.
    cluster.tick(5);
    for number in 0..3 {
        cluster.propose(second, &[100 + number; 100]);
        while cluster.round() {}
    }
    cluster.tick(5);
    assert!(cluster.follows(first, second));
    (cluster.sync, cluster.has_not_synced) = (syncs_then, true);
    cluster.power_cut(first);
    assert!(cluster.tick_until(|cluster| cluster.follows(first, second)));
    cluster.propose(second, b"more");
    cluster.tick(5);
    let entries = cluster.nodes[&second].entries(GROUP);
    let found = cluster.nodes[&first].entries(GROUP);
    assert!(found.iter().all(|(index, entry)| entries.get(index) == Some(entry)), "{found:?}");
    assert!(cluster.follows(first, second));
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

/// A group of this node and another one, and one of its own that goes on writing.
struct Pair {
    disk: SimDisk,
    node: Node,
    other: Node,
    handed_out: BTreeMap<GroupId, CheckpointBase>,
}

const OWN: GroupId = GroupId(1);

/// What was handed out, by its group, and messages for the other node.
#[derive(Default)]
struct HandedOut {
    messages: Vec<Bytes>,
    last: BTreeMap<GroupId, LogId>,
}

impl Sink for HandedOut {
    fn send(&mut self, _: NodeId, _: GroupId, message: Bytes, _: bool) {
        self.messages.push(message);
    }

    fn committed(&mut self, group: GroupId, id: LogId, _: Committed) {
        self.last.insert(group, id);
    }

    fn role(&mut self, _: GroupId, _: u64, _: Role) {}
    fn query(&mut self, _: GroupId, _: u64) {}
    fn query_dropped(&mut self, _: GroupId, _: u64) {}
    fn read_ready(&mut self, _: GroupId, _: u64, _: u64) {}
    fn read_dropped(&mut self, _: GroupId, _: u64) {}
    fn fetch_snapshot(&mut self, _: GroupId, _: NodeId, _: &CheckpointBase) {}
}

const SEGMENT_BYTES: u64 = 2000;

impl Pair {
    fn new() -> Self {
        let checkpoint =
            |members: &[u64]| CheckpointBase::new_group(Configuration::of(members.iter().map(|&id| NodeId(id))));
        let handed_out = BTreeMap::from([(GROUP, checkpoint(&[1, 2])), (OWN, checkpoint(&[1]))]);
        let disk = SimDisk::new();
        let node = open(1, &disk, &handed_out);
        let other = open(2, &SimDisk::new(), &BTreeMap::from([(GROUP, checkpoint(&[1, 2]))]));
        Self { disk, node, other, handed_out }
    }

    /// A round of each; what they say to each other arrives if the link is up.
    fn round(&mut self, is_linked: bool) -> bool {
        let (mut said, mut answered) = (HandedOut::default(), HandedOut::default());
        let mut busy = self.node.round(&mut said).expect("a disk that does not fail").busy;
        busy |= self.other.round(&mut answered).expect("a disk that does not fail").busy;
        for (group, id) in said.last {
            self.handed_out.get_mut(&group).expect("known").applied = id;
        }
        if is_linked {
            busy |= !said.messages.is_empty() || !answered.messages.is_empty();
            said.messages.into_iter().for_each(|message| self.other.step(NodeId(1), GROUP, message).expect("taken"));
            answered.messages.into_iter().for_each(|message| self.node.step(NodeId(2), GROUP, message).expect("taken"));
        }
        busy
    }

    /// `also_other`: the other one's time passes too. It must know less, or it would lead.
    fn lead(&mut self, also_other: bool) {
        for _ in 0..200 {
            self.node.tick();
            if also_other {
                self.other.tick();
            }
            while self.round(true) {}
            if self.node.status(GROUP).is_some_and(|status| status.role == Role::Leader { ready: true }) {
                return;
            }
        }
        panic!("it does not come to lead");
    }

    /// The group of its own writes a segment, all of which is in a checkpoint then.
    fn write_a_segment(&mut self) {
        let until = self.node.log().position() + SEGMENT_BYTES;
        while self.node.log().position() < until {
            self.node.propose(OWN, &[b'x'; 200]).expect("leads");
            while self.round(false) {}
        }
        self.node.checkpointed(self.handed_out.clone()).expect("a disk that does not fail");
    }
}

fn open(id: u64, disk: &SimDisk, checkpoints: &BTreeMap<GroupId, CheckpointBase>) -> Node {
    let config = NodeConfig { election_ticks: 10, ..NodeConfig::new(NodeId(id), SEGMENT_BYTES, true, id) };
    Node::open(config, Arc::new(disk.clone()), checkpoints.clone()).expect("opens")
}

/// It was moved away, or has no majority, for good: what it has and does not know to be committed no checkpoint takes.
#[test]
fn a_group_that_hears_nothing_more_does_not_keep_the_log_of_all_the_others() {
    let mut pair = Pair::new();
    pair.lead(false);
    for number in 0..5 {
        pair.node.propose(GROUP, &[number; 100]).expect("leads");
        pair.round(false);
    }
    let tail = pair.node.entries(GROUP);
    let last = *tail.keys().last().expect("some");
    assert!(last >= pair.handed_out[&GROUP].applied.index + 5, "nothing of it is committed");
    for start in 1..=3 {
        for _ in 0..10 {
            pair.write_a_segment();
        }
        let bytes = pair.node.log().bytes();
        assert!(bytes <= 5 * SEGMENT_BYTES, "start {start}: {bytes} bytes are kept");
        pair.disk.power_cycle(|_, _| 0);
        pair.node = open(1, &pair.disk, &pair.handed_out);
        let found = pair.node.entries(GROUP);
        let expected: BTreeMap<_, _> = tail.range(pair.handed_out[&GROUP].applied.index + 1..).collect();
        assert_eq!(found.iter().collect::<BTreeMap<_, _>>(), expected, "start {start}");
    }
    pair.lead(true);
    assert!(pair.handed_out[&GROUP].applied.index > last, "it goes on, once it is heard of again");
}

/// What is taken over from one segment to the next is there at each moment, wherever the power fails.
#[test]
fn what_a_segment_takes_over_survives_a_power_cut_at_any_operation() {
    for operations in 0..60 {
        let mut pair = Pair::new();
        pair.lead(false);
        for number in 0..5 {
            pair.node.propose(GROUP, &[number; 100]).expect("leads");
            pair.round(false);
        }
        let base = pair.handed_out[&GROUP].applied.index;
        let tail: BTreeMap<_, _> = pair.node.entries(GROUP).into_iter().filter(|(index, _)| *index > base).collect();
        pair.write_a_segment();
        pair.disk.cut_power_after(operations);
        let mut checkpoints = pair.handed_out.clone();
        'running: for _ in 0..40 {
            if pair.node.propose(OWN, &[b'x'; 200]).is_err() {
                break;
            }
            let mut said = HandedOut::default();
            loop {
                match pair.node.round(&mut said) {
                    Ok(round) if round.busy => {}
                    Ok(_) => break,
                    Err(_) => break 'running,
                }
            }
            if let Some(&applied) = said.last.get(&OWN) {
                checkpoints.get_mut(&OWN).expect("known").applied = applied;
            }
            if pair.node.checkpointed(checkpoints.clone()).is_err() {
                break;
            }
        }
        pair.disk.power_cycle(|name, unsynced| (name.len() + operations as usize * 7) % (unsynced + 1));
        let node = open(1, &pair.disk, &checkpoints);
        assert_eq!(node.entries(GROUP), tail, "power cut after {operations} operations");
    }
}

/// What it lacks is more than a frame holds, and what is written meanwhile is as much again, so it must not come little by little.
#[test]
fn who_was_cut_off_for_longer_than_a_frame_holds_catches_up() {
    const COMMAND_BYTES: usize = 200_000;
    let mut cluster = Cluster::of(3);
    assert!(cluster.tick_until(|cluster| cluster.leader().is_some()));
    let leader = cluster.leader().expect("just seen");
    let away = cluster.nodes.keys().copied().find(|node| *node != leader).expect("two others");
    let write = |cluster: &mut Cluster, bytes: usize| {
        let mut written = 0;
        while written < bytes {
            let command = vec![written as u8; COMMAND_BYTES];
            cluster.nodes.get_mut(&leader).expect("it is there").propose(GROUP, &command).expect("it leads");
            written += COMMAND_BYTES;
            while cluster.round() {}
        }
    };
    let handed_out =
        |cluster: &Cluster, node: NodeId| cluster.nodes[&node].status(GROUP).expect("it is here").handed_out;

    cluster.cut_off = Some(away);
    write(&mut cluster, 2 * FRAME_BYTES_MAX);
    let behind = handed_out(&cluster, away);
    assert!(handed_out(&cluster, leader).index > behind.index + 100, "the others go on");
    cluster.cut_off = None;
    // A few heartbeats; in each tick much more is written than one message holds.
    for _ in 0..10 {
        cluster.nodes.values_mut().for_each(Node::tick);
        while cluster.round() {}
        write(&mut cluster, 2 * 1024 * 1024);
    }
    assert!(cluster.longest < 1024 * 1024, "a message of {} bytes", cluster.longest);
    assert_eq!(cluster.leader(), Some(leader));
    cluster.nodes.values_mut().for_each(Node::tick);
    while cluster.round() {}
    let lacks = handed_out(&cluster, leader).index - handed_out(&cluster, away).index;
    assert!(lacks <= 20, "it lacks {lacks} entries");
}

/// Earlier versions proposed whatever they were told to. With such an entry in its log no leader commits anything, and it is led by
/// nobody else as long as one of three is away.
#[test]
fn a_group_whose_leader_has_what_no_frame_holds_goes_on_after_a_start() {
    let (mut cluster, leader) = Cluster::led();
    let last = |cluster: &Cluster, node: NodeId| cluster.nodes[&node].status(GROUP).expect("it is here").last;
    let before = last(&cluster, leader);
    for bytes in [FRAME_BYTES_MAX + 1, 1] {
        cluster.nodes.get_mut(&leader).expect("it is there").propose(GROUP, &vec![0; bytes]).expect("it leads");
        while cluster.round() {}
    }
    assert_eq!(last(&cluster, leader), before + 2);
    let nodes: Vec<NodeId> = cluster.nodes.keys().copied().collect();
    for &node in &nodes {
        cluster.end(node);
        cluster.start(node);
    }
    cluster.cut_off = nodes.into_iter().find(|node| *node != leader);
    assert!(cluster.tick_until(|cluster| cluster.leader().is_some()));
    assert_eq!(cluster.leader().map(|leader| last(&cluster, leader)), Some(before + 1), "its first entry");
}

/// What a node that votes alone wrote is committed, whatever its length.
#[test]
fn what_no_frame_holds_is_kept_where_nobody_else_votes() {
    let mut cluster = Cluster::of(1);
    let node = NodeId(1);
    assert!(cluster.tick_until(|cluster| cluster.leader().is_some()));
    cluster.nodes.get_mut(&node).expect("it is there").propose(GROUP, &vec![0; FRAME_BYTES_MAX + 1]).expect("it leads");
    while cluster.round() {}
    let last = |cluster: &Cluster| cluster.nodes[&node].status(GROUP).expect("it is here").last;
    let before = last(&cluster);
    cluster.end(node);
    cluster.start(node);
    assert_eq!(last(&cluster), before + 1, "and leads at once");
}
