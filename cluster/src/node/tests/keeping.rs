//! What a leader keeps of its log for those that lack something of it.

use super::*;

const COMMAND_BYTES: usize = 10_000;

/// Less than the load writes between two checkpoints.
const KEEPING: Keeping = Keeping { usual: 40_000, group: 4_000_000, node: 8_000_000 };

/// Ticks between two checkpoints.
const CHECKPOINT_TICKS: u32 = 5;

/// Ticks until it is certain that what is not needed any more is gone.
const RELEASED_TICKS: u32 = 300;

impl Cluster {
    /// Of `nodes`, three of which keep all groups; the first leads them.
    fn that_keeps(keeping: Keeping, nodes: u64, groups: &[GroupId]) -> Self {
        let mut cluster = Self::that_syncs(nodes, true);
        cluster.founders = Configuration::of((1..=3).map(NodeId));
        (cluster.groups, cluster.keeping) = (groups.to_vec(), keeping);
        (1..=nodes).map(NodeId).for_each(|node| cluster.start_anew(node));
        assert!(cluster.tick_until(|cluster| groups.iter().all(|&group| cluster.leader_of(group).is_some())));
        for &group in groups {
            for _ in 0..10 {
                let leader = cluster.leader_of(group).expect("no fault");
                // As soon as it can.
                let _ = cluster.nodes.get_mut(&leader).expect("runs").transfer_leader(group, LEADER);
                cluster.tick(2);
            }
            assert_eq!(cluster.leader_of(group), Some(LEADER));
        }
        cluster
    }

    /// With an empty disk.
    fn start_anew(&mut self, node: NodeId) {
        self.disks.insert(node, SimDisk::new());
        self.start(node);
    }

    fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        let leads = |node: &Node| node.status(group).is_some_and(|status| status.role == Role::Leader { ready: true });
        self.nodes.iter().find(|(_, node)| leads(node)).map(|(&id, _)| id)
    }

    fn checkpoint_of(&self, node: NodeId, group: GroupId) -> CheckpointBase {
        let status = self.nodes[&node].status(group).expect("kept");
        CheckpointBase { applied: status.handed_out, configuration: status.configuration }
    }

    /// At the leader, of what it handed out.
    fn checkpoint(&mut self) -> BTreeMap<GroupId, CheckpointBase> {
        let groups = self.groups.iter();
        let checkpoints: BTreeMap<_, _> = groups.map(|&group| (group, self.checkpoint_of(LEADER, group))).collect();
        let leader = self.nodes.get_mut(&LEADER).expect("runs");
        leader.checkpointed(checkpoints.clone()).expect("a disk that does not fail");
        checkpoints
    }

    /// Load for as long as there are two checkpoints.
    fn write(&mut self, groups: &[GroupId]) {
        for _ in 0..2 {
            for _ in 0..CHECKPOINT_TICKS {
                self.write_for_a_tick(groups);
            }
            self.checkpoint();
        }
    }

    fn write_for_a_tick(&mut self, groups: &[GroupId]) {
        for &group in groups {
            let leader = self.nodes.get_mut(&LEADER).expect("runs");
            leader.propose(group, &[7; COMMAND_BYTES]).expect("leads");
            while self.round() {}
        }
        self.tick(1);
    }

    fn lacks(&self, node: NodeId, group: GroupId) -> u64 {
        let handed_out = |node: NodeId| self.nodes[&node].status(group).expect("kept").handed_out.index;
        handed_out(LEADER).saturating_sub(handed_out(node))
    }

    fn kept(&self, group: GroupId) -> usize {
        self.nodes[&LEADER].kept(group)
    }
}

const LEADER: NodeId = NodeId(1);

const FOLLOWER: NodeId = NodeId(3);

/// Fetches that take time, while the load goes on and checkpoints are made.
#[derive(Default)]
struct Fetcher {
    checkpoint: CheckpointBase,
    /// What is fetched, and for how many ticks more.
    under_way: Option<(CheckpointBase, u32)>,
    begun: u32,
    /// At which tick the last one was there.
    done: u32,
}

impl Fetcher {
    /// `fail`: of those begun, by their number, which come to nothing.
    fn tick(&mut self, cluster: &mut Cluster, tick: u32, ticks_of_a_fetch: u32, fail: impl Fn(u32) -> bool) {
        cluster.write_for_a_tick(&[GROUP]);
        if tick.is_multiple_of(CHECKPOINT_TICKS) {
            self.checkpoint = cluster.checkpoint()[&GROUP].clone();
        }
        for (at, from) in std::mem::take(&mut cluster.fetches) {
            assert_eq!(from, LEADER);
            assert!(self.under_way.is_none(), "node {at} fetches one at a time");
            self.begun += 1;
            // The newest, whatever was offered.
            self.under_way = Some((self.checkpoint.clone(), ticks_of_a_fetch));
        }
        let Some((checkpoint, ticks)) = &mut self.under_way else { return };
        *ticks -= 1;
        if *ticks == 0 {
            let node = cluster.nodes.keys().copied().next_back().expect("several");
            let node = cluster.nodes.get_mut(&node).expect("runs");
            if fail(self.begun) {
                node.fetch_failed(GROUP);
            } else {
                node.installed(GROUP, checkpoint.clone()).expect("a sound configuration");
            }
            self.under_way = None;
            self.done = tick;
        }
    }
}

/// Longer than the offers are apart.
const FETCH_TICKS: u32 = 12 * CHECKPOINT_TICKS;

#[test]
fn a_follower_whose_snapshot_takes_several_checkpoints_is_level_behind_it_though_the_load_goes_on() {
    let mut cluster = Cluster::that_keeps(KEEPING, 3, &[GROUP]);
    cluster.cut_off = Some(FOLLOWER);
    for _ in 0..RELEASED_TICKS / CHECKPOINT_TICKS / 2 {
        cluster.write(&[GROUP]);
    }
    cluster.cut_off = None;
    let mut fetcher = Fetcher::default();
    let level = (0..5 * FETCH_TICKS).find(|&tick| {
        fetcher.tick(&mut cluster, tick, FETCH_TICKS, |_| false);
        fetcher.begun > 0 && cluster.lacks(FOLLOWER, GROUP) <= 2
    });
    assert!(level.is_some(), "it lacks {} entries after {} snapshots", cluster.lacks(FOLLOWER, GROUP), fetcher.begun);
    assert!(fetcher.begun <= 2, "{} snapshots", fetcher.begun);
    let took = level.map(|tick| tick - fetcher.done);
    assert!(took <= Some(5), "it waits for another offer: {took:?} ticks");
    for tick in 0..5 * FETCH_TICKS {
        fetcher.tick(&mut cluster, tick, FETCH_TICKS, |_| false);
        assert!(cluster.lacks(FOLLOWER, GROUP) <= 2, "it stays so");
    }
    assert!(fetcher.begun <= 2, "{} snapshots", fetcher.begun);
    cluster.checkpoint();
    assert_eq!(cluster.kept(GROUP), 0, "nobody needs it any more");
}

/// Its vote is only worth something once it has the log.
#[test]
fn a_learner_whose_snapshot_takes_several_checkpoints_gets_a_vote_though_the_load_goes_on() {
    let mut cluster = Cluster::that_keeps(KEEPING, 4, &[GROUP]);
    let learner = NodeId(4);
    cluster.write(&[GROUP]);
    let leader =
        |cluster: &mut Cluster, change| cluster.nodes.get_mut(&LEADER).expect("runs").propose_change(GROUP, &[change]);
    leader(&mut cluster, Change::AddLearner(learner)).expect("nothing else is under way");
    let mut fetcher = Fetcher::default();
    // One that lacks less than is written meanwhile would have a vote without having caught up.
    let fetch_ticks = 2 * FETCH_TICKS;
    let promoted = (0..5 * fetch_ticks).find(|&tick| {
        fetcher.tick(&mut cluster, tick, fetch_ticks, |_| false);
        fetcher.begun > 0 && leader(&mut cluster, Change::AddVoter(learner)).is_ok()
    });
    assert!(promoted.is_some(), "it lacks {} entries", cluster.lacks(learner, GROUP));
    assert!(fetcher.begun <= 2, "{} snapshots", fetcher.begun);
    cluster.tick(1);
    assert!(cluster.members[&LEADER].votes(learner));
}

/// What was offered to it before is not kept for that any longer: it fetches a later one.
#[test]
fn a_follower_whose_snapshots_come_to_nothing_says_so() {
    let mut cluster = Cluster::that_keeps(KEEPING, 3, &[GROUP]);
    cluster.cut_off = Some(FOLLOWER);
    for _ in 0..RELEASED_TICKS / CHECKPOINT_TICKS / 2 {
        cluster.write(&[GROUP]);
    }
    cluster.cut_off = None;
    let mut fetcher = Fetcher::default();
    let of_a_fetch = FETCH_TICKS as usize * (COMMAND_BYTES + 1000);
    let level = (0..10 * FETCH_TICKS).find(|&tick| {
        fetcher.tick(&mut cluster, tick, FETCH_TICKS, |begun| begun < 5);
        assert!(cluster.kept(GROUP) < 3 * of_a_fetch, "{} bytes for {} fetches", cluster.kept(GROUP), fetcher.begun);
        fetcher.begun > 0 && cluster.lacks(FOLLOWER, GROUP) <= 2
    });
    assert!(level.is_some(), "it lacks {} entries after {} snapshots", cluster.lacks(FOLLOWER, GROUP), fetcher.begun);
    assert!(fetcher.begun <= 6, "{} snapshots", fetcher.begun);
}

/// A few seconds, in which there are checkpoints.
#[test]
fn a_follower_that_lags_a_little_needs_no_snapshot() {
    let mut cluster = Cluster::that_keeps(KEEPING, 3, &[GROUP]);
    cluster.starved.insert((FOLLOWER, GROUP));
    for _ in 0..10 {
        cluster.write(&[GROUP]);
    }
    assert!(cluster.lacks(FOLLOWER, GROUP) > 50);
    assert!(cluster.kept(GROUP) > 0);
    cluster.starved.clear();
    cluster.tick(20);
    assert_eq!((cluster.lacks(FOLLOWER, GROUP), cluster.fetches.len()), (0, 0));
    cluster.tick(RELEASED_TICKS);
    assert_eq!(cluster.kept(GROUP), 0, "nobody needs it any more");
}

#[test]
fn nothing_is_kept_for_a_silent_peer_or_one_that_left_or_by_one_that_leads_no_more() {
    let lagging = || {
        let mut cluster = Cluster::that_keeps(KEEPING, 3, &[GROUP]);
        cluster.starved.insert((FOLLOWER, GROUP));
        (0..10).for_each(|_| cluster.write(&[GROUP]));
        assert!(cluster.kept(GROUP) > 0, "it is heard of");
        cluster.tick(RELEASED_TICKS);
        assert!(cluster.kept(GROUP) > 0, "and still is");
        cluster
    };
    let mut silent = lagging();
    silent.cut_off = Some(FOLLOWER);
    silent.tick(RELEASED_TICKS);
    assert_eq!((silent.leader_of(GROUP), silent.kept(GROUP)), (Some(LEADER), 0));

    let mut left = lagging();
    let leader = left.nodes.get_mut(&LEADER).expect("runs");
    leader.propose_change(GROUP, &[Change::Remove(FOLLOWER)]).expect("nothing else is under way");
    left.tick(50);
    assert_eq!((left.leader_of(GROUP), left.kept(GROUP)), (Some(LEADER), 0));

    let mut follows = lagging();
    let leader = follows.nodes.get_mut(&LEADER).expect("runs");
    leader.transfer_leader(GROUP, NodeId(2)).expect("it has everything");
    follows.tick(50);
    assert_eq!((follows.leader_of(GROUP), follows.kept(GROUP)), (Some(NodeId(2)), 0));
}

/// Of a snapshot that takes longer than what is kept lasts, too.
#[test]
fn no_group_keeps_more_than_it_may() {
    let keeping = Keeping { group: 200_000, ..KEEPING };
    let mut cluster = Cluster::that_keeps(keeping, 3, &[GROUP]);
    cluster.starved.insert((FOLLOWER, GROUP));
    let mut most = 0;
    for _ in 0..20 {
        cluster.write(&[GROUP]);
        most = most.max(cluster.kept(GROUP));
        assert!(cluster.kept(GROUP) <= keeping.group - keeping.usual, "{} bytes", cluster.kept(GROUP));
    }
    assert!(most > 100_000, "{most} bytes");
    cluster.starved.clear();
    let mut fetcher = Fetcher::default();
    let mut most = 0;
    for tick in 0..200 {
        fetcher.tick(&mut cluster, tick, 1000, |_| false);
        if tick.is_multiple_of(CHECKPOINT_TICKS) {
            most = most.max(cluster.kept(GROUP));
            assert!(cluster.kept(GROUP) <= keeping.group - keeping.usual, "{} bytes", cluster.kept(GROUP));
        }
    }
    assert_eq!(fetcher.begun, 1);
    assert!(most > 100_000, "{most} bytes");
}

/// The others keep what they have, and their followers need no snapshots.
#[test]
fn of_what_a_node_may_not_keep_what_was_needed_for_longest_goes_first() {
    let groups = [0, 1, 2].map(GroupId);
    let keeping = Keeping { node: 400_000, ..KEEPING };
    let mut cluster = Cluster::that_keeps(keeping, 3, &groups);
    // One is in need for longer than the others, and it is not the first.
    cluster.starved.insert((FOLLOWER, groups[1]));
    cluster.write(&[groups[1]]);
    cluster.starved.extend(groups.map(|group| (FOLLOWER, group)));
    for _ in 0..2 {
        cluster.write(&groups);
        let kept: usize = groups.iter().map(|&group| cluster.kept(group)).sum();
        assert!((250_000..=keeping.node).contains(&kept), "{kept} bytes");
    }
    cluster.starved.clear();
    cluster.tick(20);
    assert_eq!(groups.map(|group| cluster.lacks(FOLLOWER, group) > 0), [false, true, false]);
    assert_eq!(cluster.fetches, [(FOLLOWER, LEADER)], "for what went");
}
