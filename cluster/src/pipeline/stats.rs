//! What the threads did, and how the groups are, for whoever wants figures: read without waiting for any of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::group::{GroupStatus, Role};
use crate::identity::{GroupId, NodeId};
use crate::log::UnderWay;
use crate::times::Times;

/// What the pipeline did, for metrics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Syncs of the log.
    pub syncs: AtomicU64,
    /// Time they took.
    pub sync_nanoseconds: AtomicU64,
    /// The same, by how long each took.
    pub sync_times: Times,
    /// What the log waits for now.
    pub under_way: Arc<UnderWay>,
    /// From submitting a command to its commit, where this node leads. One command of a group at a time is watched.
    pub commit_times: Times,
    /// Commands committed.
    pub commands: AtomicU64,
    /// Bytes of the log now.
    pub log_bytes: AtomicU64,
    /// Room on the disk of the log, as looked at within a second.
    pub free_bytes: AtomicU64,
    /// Checkpoints completed.
    pub checkpoints: AtomicU64,
    /// Times that a checkpoint, or a new segment of the log, was due and found no descriptor.
    pub descriptors_missing: AtomicU64,
    /// Segments removed.
    pub segments_purged: AtomicU64,
    /// Commands that were not proposed, because no frame can hold them.
    pub commands_too_long: AtomicU64,
    /// Snapshots of other nodes that were wanted and not got, or that were older than what was there.
    pub snapshots_failed: AtomicU64,
    /// Of each group that there was at the start; there are no others.
    counts: BTreeMap<GroupId, GroupCounts>,
    figures: Mutex<Vec<GroupFigures>>,
}

/// What happened to a group on this node.
#[derive(Debug, Default)]
pub struct GroupCounts {
    /// The index up to which it is applied.
    pub applied: AtomicU64,
    /// Times that this node became its leader.
    pub elections_won: AtomicU64,
    /// Times that it was seen to have another leader than before.
    pub leader_changes: AtomicU64,
    /// Snapshots of other nodes that it goes on from.
    pub snapshots: AtomicU64,
}

/// A group as this node sees it, at most a second ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupFigures {
    /// Which.
    pub group: GroupId,
    /// The latest term seen.
    pub term: u64,
    /// Whether this node leads it.
    pub leads: bool,
    /// Whether it is known to have a leader that is ready.
    pub has_leader: bool,
    /// Where its log ends.
    pub last: u64,
    /// Known to be committed.
    pub committed: u64,
    /// Applied.
    pub applied: u64,
    /// Those who vote in it.
    pub voters: usize,
    /// Those of them of whom the leader, this node, has heard of late; `None` if it does not lead.
    pub voters_heard: Option<usize>,
    /// By how many entries the voter that has fewest is behind, likewise.
    pub behind: Option<u64>,
}

impl GroupFigures {
    fn new(group: GroupId, own: NodeId, status: &GroupStatus, applied: u64) -> Self {
        let (leads, has_leader) = match status.role {
            Role::Leader { ready } => (true, ready),
            Role::Follower { leader } => (false, leader.is_some()),
        };
        let voters = &status.configuration.voters;
        let peers = || status.peers.iter().filter(|peer| voters.contains(&peer.node));
        let heard = peers().filter(|peer| peer.active || peer.node == own).count();
        let fewest = peers().map(|peer| peer.matched).min();
        Self {
            group,
            term: status.term,
            leads,
            has_leader,
            last: status.last,
            committed: status.committed,
            applied,
            voters: voters.len(),
            voters_heard: leads.then_some(heard),
            behind: fewest.filter(|_| leads).map(|fewest| status.last.saturating_sub(fewest)),
        }
    }
}

impl Stats {
    /// Of these groups, with up to where each is applied, and of the log that waits so.
    pub(super) fn of(groups: impl IntoIterator<Item = (GroupId, u64)>, under_way: Arc<UnderWay>) -> Self {
        let counts =
            |(group, applied): (_, u64)| (group, GroupCounts { applied: applied.into(), ..Default::default() });
        Self { counts: groups.into_iter().map(counts).collect(), under_way, ..Self::default() }
    }

    /// What happened to a group.
    #[must_use]
    pub fn counts(&self, group: GroupId) -> Option<&GroupCounts> {
        self.counts.get(&group)
    }

    /// The groups that this node keeps.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupFigures> {
        self.lock().clone()
    }

    /// Says how the groups are that this node keeps.
    pub(super) fn show_groups(&self, own: NodeId, statuses: impl Iterator<Item = (GroupId, GroupStatus)>) {
        let figures = |(group, status): (GroupId, GroupStatus)| {
            let applied = self.counts(group).map_or(0, |counts| counts.applied.load(Ordering::Relaxed));
            GroupFigures::new(group, own, &status, applied)
        };
        let kept = statuses.filter(|(_, status)| status.configuration.contains(own));
        *self.lock() = kept.map(figures).collect();
    }

    /// How often the log was synced so far, and the time that took.
    pub(super) fn show_syncs(&self, (syncs, time): (u64, Duration)) {
        let nanoseconds = time.as_nanos() as u64;
        // Written by this thread only.
        let more = syncs.saturating_sub(self.syncs.swap(syncs, Ordering::Relaxed));
        let before = self.sync_nanoseconds.swap(nanoseconds, Ordering::Relaxed);
        if let Some(each) = nanoseconds.saturating_sub(before).checked_div(more) {
            self.sync_times.record_many(Duration::from_nanos(each), more);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<GroupFigures>> {
        // Figures are whole after any panic.
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts of one kind for a group, where there are any.
pub(super) fn count(stats: &Stats, group: GroupId, which: impl FnOnce(&GroupCounts) -> &AtomicU64) {
    if let Some(counts) = stats.counts(group) {
        which(counts).fetch_add(1, Ordering::Relaxed);
    }
}

/// From submitting a command to its commit: of each group one at a time, the next when that is done.
#[derive(Debug, Default)]
pub(super) struct CommitWatch {
    watched: BTreeMap<GroupId, Watched>,
    /// When those were submitted that were committed since this was looked at.
    committed: Vec<Duration>,
}

#[derive(Debug)]
struct Watched {
    since: Duration,
    /// Bytes of the group up to the end of the command that are not committed.
    ahead: usize,
}

impl CommitWatch {
    /// A command of the group was submitted; with it, so many bytes wait there for their commit.
    pub(super) fn submitted(&mut self, group: GroupId, waiting_bytes: usize, now: Duration) {
        self.watched.entry(group).or_insert(Watched { since: now, ahead: waiting_bytes });
    }

    /// So many bytes of the group were committed.
    pub(super) fn committed(&mut self, group: GroupId, bytes: usize) {
        let Some(watched) = self.watched.get_mut(&group) else { return };
        watched.ahead = watched.ahead.saturating_sub(bytes);
        if watched.ahead == 0
            && let Some(watched) = self.watched.remove(&group)
        {
            self.committed.push(watched.since);
        }
    }

    /// This node does not lead the group any more: nobody knows what becomes of the command.
    pub(super) fn lost(&mut self, group: GroupId) {
        self.watched.remove(&group);
    }

    /// Counts those that were committed, as of `now`.
    pub(super) fn count(&mut self, times: &Times, now: Duration) {
        for since in self.committed.drain(..) {
            times.record(now.saturating_sub(since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::{Configuration, PeerStatus};
    use crate::log::LogId;
    use crate::times::BUCKETS;

    const GROUP: GroupId = GroupId(3);

    fn status(role: Role, peers: Vec<PeerStatus>) -> GroupStatus {
        let configuration = Configuration::of([NodeId(1), NodeId(2), NodeId(3)]);
        let handed_out = LogId { term: 4, index: 18 };
        GroupStatus { term: 4, role, committed: 18, handed_out, last: 20, configuration, peers }
    }

    #[test]
    fn a_leader_tells_how_far_its_voters_are() {
        let peer = |node, matched, active| PeerStatus { node: NodeId(node), matched, active };
        // The fourth is a learner.
        let peers = vec![peer(1, 20, false), peer(2, 19, true), peer(3, 5, false), peer(4, 0, true)];
        let stats = Stats::of([(GROUP, 17)], Arc::default());
        stats.show_groups(NodeId(1), [(GROUP, status(Role::Leader { ready: true }, peers))].into_iter());
        let expected = GroupFigures {
            group: GROUP,
            term: 4,
            leads: true,
            has_leader: true,
            last: 20,
            committed: 18,
            applied: 17,
            voters: 3,
            voters_heard: Some(2),
            behind: Some(15),
        };
        assert_eq!(stats.groups(), [expected]);
    }

    #[test]
    fn a_follower_tells_whether_it_knows_a_leader_and_nobody_tells_of_groups_elsewhere() {
        let stats = Stats::of([(GROUP, 0)], Arc::default());
        let orphan = status(Role::Follower { leader: None }, Vec::new());
        stats.show_groups(NodeId(1), [(GROUP, orphan.clone())].into_iter());
        let [seen] = &stats.groups()[..] else { panic!("one") };
        assert_eq!((seen.leads, seen.has_leader, seen.voters_heard, seen.behind), (false, false, None, None));
        stats.show_groups(NodeId(9), [(GROUP, orphan)].into_iter());
        assert_eq!(stats.groups(), []);
    }

    #[test]
    fn syncs_are_counted_by_how_long_they_took() {
        let stats = Stats::default();
        stats.show_syncs((1, Duration::from_millis(3)));
        stats.show_syncs((1, Duration::from_millis(3)));
        stats.show_syncs((3, Duration::from_millis(43)));
        let buckets = stats.sync_times.buckets();
        assert_eq!((buckets[5], buckets[7], buckets.iter().sum::<u64>()), (1, 2, 3), "{buckets:?}");
    }

    #[test]
    fn a_command_is_watched_until_everything_up_to_it_is_committed() {
        let (mut watch, times) = (CommitWatch::default(), Times::default());
        let seconds = Duration::from_secs;
        watch.submitted(GROUP, 30, seconds(1));
        watch.submitted(GROUP, 40, seconds(2));
        watch.committed(GROUP, 20);
        watch.count(&times, seconds(9));
        assert_eq!(times.buckets(), [0; BUCKETS]);
        watch.committed(GROUP, 20);
        watch.count(&times, seconds(3));
        assert_eq!((times.sum(), times.buckets()[13]), (seconds(2), 1));

        watch.submitted(GROUP, 5, seconds(4));
        watch.lost(GROUP);
        watch.committed(GROUP, 5);
        watch.count(&times, seconds(9));
        assert_eq!(times.sum(), seconds(2), "the commit of another term says nothing of it");
    }
}
