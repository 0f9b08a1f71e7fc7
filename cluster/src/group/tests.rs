//! Scripts of a follower, whose leaders say what a test has them say.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost011::Message as _;
use raft::eraftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata};

use super::message;
use super::{CheckpointBase, Committed, Configuration, Role};
use crate::disk::{Disk, SimDisk, SyncSite};
use crate::identity::{GroupId, NodeId};
use crate::log::{GroupLog, Log, LogId};
use crate::node::{Node, NodeConfig, Sink};

const GROUP: GroupId = GroupId(0);

/// The follower.
const ME: NodeId = NodeId(2);

const SEGMENT_BYTES: u64 = 1024 * 1024;

/// Where the log of a new group begins.
const FOUNDED: LogId = LogId { index: 5, term: 5 };

/// What its leaders say is committed, whatever they send.
const COMMITTED: u64 = 8;

/// What the follower said.
#[derive(Default)]
struct Said {
    /// The last entry that it acknowledged.
    acknowledged: u64,
    fetches: Vec<CheckpointBase>,
    /// It asked the others whether it may lead.
    stood: bool,
}

impl Sink for Said {
    fn send(&mut self, _: NodeId, _: GroupId, message: Bytes, _: bool) {
        let message = Message::decode(message).expect("a message");
        if message.get_msg_type() == MessageType::MsgAppendResponse && !message.reject {
            self.acknowledged = message.index;
        }
        self.stood |= message.get_msg_type() == MessageType::MsgRequestPreVote;
    }

    fn fetch_snapshot(&mut self, _: GroupId, _: NodeId, checkpoint: &CheckpointBase) {
        self.fetches.push(checkpoint.clone());
    }

    fn committed(&mut self, _: GroupId, _: LogId, _: Committed) {}
    fn role(&mut self, _: GroupId, _: u64, _: Role) {}
    fn query(&mut self, _: GroupId, _: u64) {}
    fn query_dropped(&mut self, _: GroupId, _: u64) {}
    fn read_ready(&mut self, _: GroupId, _: u64, _: u64) {}
    fn read_dropped(&mut self, _: GroupId, _: u64) {}
}

fn members() -> Configuration {
    Configuration::of([1, 2, 3].map(NodeId))
}

fn at(term: u64, index: u64) -> LogId {
    LogId { index, term }
}

struct Follower {
    disk: SimDisk,
    node: Node,
    said: Said,
}

impl Follower {
    fn open(disk: SimDisk, checkpoint: CheckpointBase) -> Self {
        Self::open_with(disk, checkpoint, 1)
    }

    fn open_with(disk: SimDisk, checkpoint: CheckpointBase, seed: u64) -> Self {
        let config = NodeConfig::new(ME, SEGMENT_BYTES, true, seed);
        let node = Node::open(config, Arc::new(disk.clone()), BTreeMap::from([(GROUP, checkpoint)])).expect("opens");
        let mut follower = Self { disk, node, said: Said::default() };
        follower.round();
        follower
    }

    fn round(&mut self) {
        while self.node.round(&mut self.said).expect("a disk that does not fail").busy {}
    }

    fn hear(&mut self, leader: u64, term: u64, kind: MessageType, message: Message) {
        let message = Message { msg_type: kind as i32, from: leader, to: ME.0, term, ..message };
        self.node.step(NodeId(leader), GROUP, message::encode(&message)).expect("from a leader");
        self.round();
    }

    /// A leader of `term` sends entries behind `after`.
    fn append(&mut self, leader: u64, term: u64, after: LogId, entries: &[LogId]) {
        let entry = |id: &LogId| Entry { index: id.index, term: id.term, data: vec![7; 30].into(), ..Entry::default() };
        let entries = entries.iter().map(entry).collect();
        let message =
            Message { index: after.index, log_term: after.term, entries, commit: COMMITTED, ..Message::default() };
        self.hear(leader, term, MessageType::MsgAppend, message);
    }

    /// A leader of `term` offers its checkpoint.
    fn offer(&mut self, leader: u64, term: u64, applied: LogId) {
        let conf_state = Some((&members()).into());
        let metadata = Some(SnapshotMetadata { conf_state, index: applied.index, term: applied.term });
        let snapshot = Some(Snapshot { metadata, ..Snapshot::default() });
        self.hear(leader, term, MessageType::MsgSnapshot, Message { snapshot, ..Message::default() });
        assert_eq!(self.said.fetches.last().map(|checkpoint| checkpoint.applied), Some(applied), "it is fetched");
    }

    /// What the log on its disk has of the group, as the next process finds it.
    fn log(&self) -> GroupLog {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.after_kill());
        let (_, mut logs) = Log::open(disk, SEGMENT_BYTES).expect("a log");
        logs.remove(&GROUP).expect("of the group")
    }
}

/// What may be left of the log if the power goes while the round that takes up `checkpoint` is written: its beginning up to any
/// byte, or its end behind zeros up to any byte.
fn torn_while_installing(mut follower: Follower, checkpoint: &CheckpointBase) -> Vec<(String, SimDisk)> {
    let names = follower.disk.contents().into_keys().collect::<Vec<_>>();
    let [name] = &names[..] else { panic!("one segment: {names:?}") };
    // It begins with the log, and what is written ahead does not count.
    let from = follower.node.log().position() as usize;
    follower.disk.ignore_sync(Some(SyncSite::LogRound));
    follower.node.installed(GROUP, checkpoint.clone()).expect("a sound configuration");
    follower.round();
    assert!(follower.disk.contents().into_keys().eq([name.clone()]), "all of it goes to one segment");
    let written = follower.node.log().position() as usize - from;
    assert!(written > 0, "it is written");
    let mut left = Vec::new();
    for bytes in 0..=written {
        let torn = follower.disk.after_kill();
        torn.power_cycle(|_, _| bytes);
        left.push((format!("{bytes} of {written} bytes are left"), torn));
        let holed = follower.disk.after_kill();
        holed.damage(name, |all| all[from..from + bytes].fill(0));
        left.push((format!("{bytes} of {written} bytes are zeros"), holed));
    }
    left.iter().for_each(|(_, disk)| disk.ignore_sync(None));
    left
}

/// Takes `checkpoint` up and hears of one more entry; then the power goes, and only what was synced is left.
fn cut_after_installing(mut follower: Follower, checkpoint: &CheckpointBase, leader: u64, after: LogId) -> Follower {
    follower.node.installed(GROUP, checkpoint.clone()).expect("a sound configuration");
    follower.round();
    follower.append(leader, after.term, after, &[at(after.term, after.index + 1)]);
    assert_eq!(follower.said.acknowledged, after.index + 1);
    follower.disk.power_cycle(|_, _| 0);
    Follower::open(follower.disk, checkpoint.clone())
}

/// While a snapshot is fetched another leader may send what lies behind it, and count on what is acknowledged of that.
#[test]
fn what_was_acknowledged_behind_a_snapshot_survives_a_power_cut_while_it_is_taken_up() {
    let checkpoint = CheckpointBase { applied: at(6, 11), configuration: members() };
    let fetched = || {
        let mut follower = Follower::open(SimDisk::new(), CheckpointBase::new_group(members()));
        follower.append(1, 6, FOUNDED, &[at(6, 6), at(6, 7), at(6, 8)]);
        follower.offer(1, 6, checkpoint.applied);
        let entries = (9..=13).map(|index| at(6, index)).chain([at(7, 14), at(7, 15)]);
        follower.append(3, 7, at(6, 8), &entries.collect::<Vec<_>>());
        assert_eq!(follower.said.acknowledged, 15);
        let handed_out = follower.node.status(GROUP).map(|status| status.handed_out.index);
        assert_eq!(handed_out, Some(COMMITTED), "it needs it still");
        follower
    };
    for (what, disk) in torn_while_installing(fetched(), &checkpoint) {
        let mut follower = Follower::open(disk, checkpoint.clone());
        let status = follower.node.status(GROUP).expect("it is here");
        assert_eq!((status.last, status.term, status.handed_out.index), (15, 7, 11), "{what}");
        follower.append(3, 7, at(7, 15), &[at(7, 16)]);
        let log = follower.log();
        let terms: Vec<_> = (11..=17).map(|index| log.term_at(index)).collect();
        assert_eq!(terms, [Some(6), Some(6), Some(6), Some(7), Some(7), Some(7), None], "{what}");
    }
    let follower = cut_after_installing(fetched(), &checkpoint, 3, at(7, 15));
    assert_eq!(follower.node.status(GROUP).map(|status| status.last), Some(16));
}

/// What an earlier leader sent and no other one has is not committed: it goes, and the snapshot stands in its place.
#[test]
fn a_snapshot_that_contradicts_the_log_is_taken_up_whole_wherever_the_power_fails() {
    let checkpoint = CheckpointBase { applied: at(8, 11), configuration: members() };
    let fetched = || {
        let mut follower = Follower::open(SimDisk::new(), CheckpointBase::new_group(members()));
        let old = (6..=8).map(|index| at(6, index)).chain((9..=14).map(|index| at(7, index)));
        follower.append(1, 7, FOUNDED, &old.collect::<Vec<_>>());
        assert_eq!(follower.said.acknowledged, 14);
        follower.offer(3, 8, checkpoint.applied);
        follower
    };
    for (what, disk) in torn_while_installing(fetched(), &checkpoint) {
        let mut follower = Follower::open(disk, checkpoint.clone());
        let status = follower.node.status(GROUP).expect("it is here");
        assert_eq!((status.last, status.term, status.handed_out.index), (11, 8, 11), "{what}");
        follower.append(3, 8, at(8, 11), &[at(8, 12), at(8, 13)]);
        let log = follower.log();
        assert_eq!((log.term_at(11), log.last()), (Some(8), at(8, 13)), "{what}");
    }
    let follower = cut_after_installing(fetched(), &checkpoint, 3, at(8, 11));
    assert_eq!(follower.node.status(GROUP).map(|status| status.last), Some(12));
}

/// All that follow the leader would stand for election at the same ticks, in all groups, if it went silently later, and split the votes.
#[test]
fn who_follows_a_leader_again_that_had_lost_its_connection_stands_when_it_would_have_anyway() {
    let stands_after = |seed, breaks: bool| {
        let mut follower = Follower::open_with(SimDisk::new(), CheckpointBase::new_group(members()), seed);
        follower.node.connected(NodeId(1), (!breaks).then_some(1));
        for _ in 0..40 {
            follower.node.tick();
            follower.hear(1, 6, MessageType::MsgHeartbeat, Message::default());
        }
        assert!(!follower.said.stood, "it follows");
        follower.node.connected(NodeId(1), Some(1));
        let stands = (1..100).find(|_| {
            follower.node.tick();
            follower.round();
            follower.said.stood
        });
        stands.expect("it stands for election")
    };
    let mut compared = 0;
    for seed in 1..=20 {
        let anyway = stands_after(seed, false);
        // Whose time is as short as that stands as soon as it notices.
        if anyway > 22 {
            assert_eq!(stands_after(seed, true), anyway, "seed {seed}");
            compared += 1;
        }
    }
    assert!(compared > 10, "{compared} seeds");
}
