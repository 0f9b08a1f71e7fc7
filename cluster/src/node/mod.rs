//! All groups of one node, and the one log below them.
//!
//! Whoever owns a [`Node`] feeds it (proposals, messages, ticks) and then calls [`Node::round`]: what every group has to
//! send, to write and to hand out becomes one write and one sync, and goes to a [`Sink`] in the order in which it may.
//! Nothing here reads a clock or touches a socket; the log writes to the [`Disk`] it was given.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use raft::Ready;

use crate::disk::{Disk, SyncSite};
use crate::group::{
    Change, CheckpointBase, Committed, Group, GroupConfig, GroupStatus, HandOverError, Keeping, MessageError,
    NotLeader, ProposeChangeError, Role, Target,
};
use crate::group::{GroupStorage, write_anew};
use crate::identity::{GroupId, NodeId};
use crate::log::{EntryKind, GroupLog, Log, LogError};
use crate::transport::FRAME_BYTES_MAX;

/// Where the outcome of a round goes.
///
/// What is handed over for one group keeps its order: `committed` one index after the other, `role` and `query` at their
/// place among them.
pub trait Sink {
    /// A Raft message for a peer. It may be lost. Those that carry entries may be large, and should keep their order.
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes, carries_entries: bool);

    /// What was handed to [`Sink::send`] is all that can leave for now: what comes next is said after a sync, or in another
    /// round. Many messages may wait for this, so that their links are woken once.
    fn flush(&mut self) {}

    /// An entry is committed, with everything before it: it will never be another.
    fn committed(&mut self, group: GroupId, id: crate::log::LogId, what: Committed);

    /// What this node is in a group has changed.
    fn role(&mut self, group: GroupId, term: u64, role: Role);

    /// Everything proposed before [`Node::query`] has been handed over, and nothing proposed after it.
    fn query(&mut self, group: GroupId, token: u64);

    /// A question will not be answered: this node does not lead the group any more.
    fn query_dropped(&mut self, group: GroupId, token: u64);

    /// Everything has been handed over, up to `index` at least, that was committed anywhere before [`Node::read_index`].
    fn read_ready(&mut self, group: GroupId, token: u64, index: u64);

    /// No majority confirmed a read in time.
    fn read_dropped(&mut self, group: GroupId, token: u64);

    /// The group must go on from a checkpoint that `from` has. Answer with [`Node::installed`] or [`Node::fetch_failed`].
    fn fetch_snapshot(&mut self, group: GroupId, from: NodeId, checkpoint: &CheckpointBase);
}

/// Mistakes that the simulation must find.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlantedBug {
    SkipSync,
    HandOutBeforeCommit,
    PurgeBeforeCheckpoint,
    PromoteEarly,
    ReadWithoutQuorum,
}

/// How a node drives its groups.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Who it is.
    pub node: NodeId,
    /// Size of a segment of the log.
    pub segment_bytes: u64,
    /// Whether a round is synced before what depends on it leaves. If not, [`Node::sync`] must be called soon after.
    pub sync: bool,
    /// Whether the log may lack what this node acknowledged: a power cut may have taken what was not synced.
    pub forgets: bool,
    /// The log is not written ahead where less than this would be left free, in bytes.
    pub free_bytes_reserve: u64,
    /// A follower that hears nothing for this many ticks, up to twice as many, stands for election.
    pub election_ticks: u32,
    /// A leader is heard of this often.
    pub heartbeat_ticks: u32,
    /// How much of the log is kept in memory for others.
    pub keeping: Keeping,
    /// For everything drawn by chance. Another one at each start.
    pub seed: u64,
    #[cfg(test)]
    pub(crate) planted: Option<PlantedBug>,
}

impl NodeConfig {
    /// With the usual times.
    #[must_use]
    pub fn new(node: NodeId, segment_bytes: u64, sync: bool, seed: u64) -> Self {
        Self {
            node,
            segment_bytes,
            sync,
            forgets: !sync,
            free_bytes_reserve: 0,
            election_ticks: 20,
            heartbeat_ticks: 4,
            keeping: Keeping::default(),
            seed,
            #[cfg(test)]
            planted: None,
        }
    }
}

/// Why a node cannot take up its groups.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// What is stored of a group contradicts itself.
    #[error("group {group} cannot be taken up: {error}")]
    Group {
        /// Which group.
        group: GroupId,
        /// What raft-rs says.
        error: raft::Error,
    },
    /// A group has a log and no checkpoint, and every group is made with one.
    #[error(
        "group {group} has a log and no checkpoint: part of the state was lost. Restore this data directory from a backup, \
         or start with an empty one; nothing was changed"
    )]
    NoCheckpoint {
        /// Which group.
        group: GroupId,
    },
}

/// What a round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Whether something is left for another round.
    pub busy: bool,
    /// Whether something was written to the log.
    pub wrote: bool,
}

/// All groups of one node.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    log: Log,
    groups: BTreeMap<GroupId, Group>,
    /// Ticks so far.
    now: u64,
    /// Groups whose part of the present round is not safe yet.
    writing: Vec<(GroupId, Ready)>,
    /// One of them has another term, or a vote.
    votes: bool,
    /// Peers whose connection ended, and for how many ticks they may still come back before they count as gone.
    cut_off: BTreeMap<NodeId, u32>,
    /// Which process of each peer had the last connection, but for those that count as gone.
    processes: BTreeMap<NodeId, u32>,
}

/// Ticks in which a peer that lives has dialled again. [`NodeConfig::new`]'s are 50 ms, as long as the first pause of a link.
const REDIAL_TICKS: u32 = 4;

/// How often it is looked what of the log nobody needs any more, beside each checkpoint.
const RELEASE_TICKS: u64 = 40;

impl Node {
    /// Takes up the groups that have a checkpoint. What their log has beyond it and is known to be committed is handed out
    /// again by the first round.
    ///
    /// # Errors
    /// The log is damaged, or does not reach back to a checkpoint.
    pub fn open(
        config: NodeConfig,
        disk: Arc<dyn Disk>,
        checkpoints: BTreeMap<GroupId, CheckpointBase>,
    ) -> Result<Self, OpenError> {
        let (mut log, mut logs) = Log::open(disk, config.segment_bytes)?;
        log.keep_free(config.free_bytes_reserve);
        let mut node = Self {
            config,
            log,
            groups: BTreeMap::new(),
            now: 0,
            writing: Vec::new(),
            votes: false,
            cut_off: BTreeMap::new(),
            processes: BTreeMap::new(),
        };
        for (group, checkpoint) in checkpoints {
            let log = logs.remove(&group);
            node.open_group(group, checkpoint, log)?;
        }
        match logs.pop_first() {
            Some((group, _)) => Err(OpenError::NoCheckpoint { group }),
            None => Ok(node),
        }
    }

    fn open_group(&mut self, id: GroupId, checkpoint: CheckpointBase, log: Option<GroupLog>) -> Result<(), OpenError> {
        let applied = checkpoint.applied;
        let log = match log {
            Some(log) if log.base.index > applied.index => {
                let (expected, found) = (applied.index + 1, log.base.index + 1);
                return Err(LogError::Gap { group: id, expected, found }.into());
            }
            Some(log) if log.term_at(applied.index) == Some(applied.term) => log,
            // The group is new; or the checkpoint was a snapshot whose base is not in the log yet; or one whose log was never
            // synced (durability `memory`).
            log => {
                let hard = log.unwrap_or_default().hard;
                let log = GroupLog { base: applied, entries: Vec::new(), hard };
                let hard = GroupStorage::new(checkpoint.clone(), &log).hard();
                write_anew(&mut self.log, id, &log, hard);
                GroupLog { hard, ..log }
            }
        };
        let log = without_unsendable(id, &checkpoint, log);
        let config = GroupConfig {
            node: self.config.node,
            forgets: self.config.forgets,
            election_ticks: self.config.election_ticks,
            heartbeat_ticks: self.config.heartbeat_ticks,
            keeping: self.config.keeping,
            seed: self.config.seed,
            #[cfg(test)]
            planted: self.config.planted,
        };
        let group = Group::open(id, config, checkpoint, &log).map_err(|error| OpenError::Group { group: id, error })?;
        self.groups.insert(id, group);
        Ok(())
    }

    /// Makes a group, whose first checkpoint must be safe. An empty configuration makes a group that waits to be told of
    /// one by a leader's snapshot. Nothing happens if it is here.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn create_group(&mut self, group: GroupId, checkpoint: CheckpointBase) -> Result<(), OpenError> {
        if self.groups.contains_key(&group) {
            return Ok(());
        }
        self.open_group(group, checkpoint, None)
    }

    /// Time passes.
    pub fn tick(&mut self) {
        self.assert_between_rounds();
        let (groups, processes) = (&mut self.groups, &mut self.processes);
        self.cut_off.retain(|&peer, ticks| {
            *ticks -= 1;
            if *ticks == 0 {
                groups.values_mut().for_each(|group| group.lost(peer));
                processes.remove(&peer);
            }
            *ticks > 0
        });
        self.groups.values_mut().for_each(Group::tick);
        self.now += 1;
        if self.now.is_multiple_of(RELEASE_TICKS) {
            self.release();
        }
    }

    /// Drops from memory what nobody needs of the groups' logs; and of what others need, what is beyond the bounds: first of all what has
    /// been needed for longest. Who waited for that gets another snapshot.
    fn release(&mut self) {
        let kept = self.groups.iter_mut().map(|(&id, group)| (id, group.release()));
        let mut kept: Vec<_> = kept.filter(|(_, kept)| kept.bytes > 0).collect();
        let all: usize = kept.iter().map(|(_, kept)| kept.bytes).sum();
        let mut beyond = all.saturating_sub(self.config.keeping.node);
        kept.sort_by_key(|(_, kept)| Reverse(kept.age));
        for (id, _) in kept {
            if beyond == 0 {
                break;
            }
            let gone = self.groups.get_mut(&id).map_or(0, |group| group.release_bytes(beyond));
            beyond = beyond.saturating_sub(gone);
        }
    }

    /// Which process of a peer has a connection over which it would be heard, if one has. Whose process dies has none at once, and
    /// its groups need not wait for an election timeout, nor every node for its lease to lapse, until somebody else leads them. Who
    /// only lost its connection dials again within [`REDIAL_TICKS`]; should that take longer, those who hear it refuse to elect
    /// another. If another process of it dials, the one before is dead, and leads nothing any more.
    pub fn connected(&mut self, peer: NodeId, process: Option<u32>) {
        let Some(process) = process else {
            self.cut_off.entry(peer).or_insert(REDIAL_TICKS);
            return;
        };
        self.cut_off.remove(&peer);
        if self.processes.insert(peer, process).is_some_and(|before| before != process) {
            self.groups.values_mut().for_each(|group| group.lost(peer));
        }
    }

    /// Takes a message from a peer.
    ///
    /// # Errors
    /// It is none that an honest peer would send. Nothing was changed.
    pub fn step(&mut self, from: NodeId, group: GroupId, message: Bytes) -> Result<(), MessageError> {
        self.assert_between_rounds();
        match self.groups.get_mut(&group) {
            Some(group) => group.step(from, message),
            None => Err(MessageError::UnknownGroup { from }),
        }
    }

    /// raft-rs must be left alone while what it said is being written.
    fn assert_between_rounds(&self) {
        assert!(self.writing.is_empty(), "a round that found no room comes before anything else");
    }

    fn led(&mut self, group: GroupId) -> Result<&mut Group, NotLeader> {
        self.assert_between_rounds();
        self.groups.get_mut(&group).ok_or(NotLeader { leader: None })
    }

    /// Proposes a command. It may still be lost if this node stops leading; that is told by [`Sink::role`].
    ///
    /// # Errors
    /// This node does not lead the group.
    pub fn propose(&mut self, group: GroupId, command: &[u8]) -> Result<(), NotLeader> {
        self.led(group)?.propose(command)
    }

    /// Asks for [`Sink::query`] with this token once everything that was proposed here before has been handed out, and
    /// before anything that is proposed after.
    ///
    /// # Errors
    /// This node does not lead the group.
    pub fn query(&mut self, group: GroupId, token: u64) -> Result<(), NotLeader> {
        self.led(group)?.query(token)
    }

    /// Asks for [`Sink::read_ready`] with this token once everything was handed out that is committed anywhere now. Can be
    /// asked of any replica.
    ///
    /// # Errors
    /// This node has no such group.
    pub fn read_index(&mut self, group: GroupId, token: u64) -> Result<(), NotLeader> {
        self.led(group)?.read_index(token);
        Ok(())
    }

    /// Proposes that the members change.
    ///
    /// # Errors
    /// They cannot be changed now, or not here.
    pub fn propose_change(&mut self, group: GroupId, changes: &[Change]) -> Result<(), ProposeChangeError> {
        self.led(group)?.propose_change(changes)
    }

    /// Says where a group is to be kept, to its leader of this term: it goes there step by step. Whoever leads another term must
    /// be told anew.
    pub fn place(&mut self, group: GroupId, term: u64, target: Target) {
        self.assert_between_rounds();
        if let Some(group) = self.groups.get_mut(&group) {
            group.place(term, target);
        }
    }

    /// Hands leadership over. It stays with this node if the other one does not stand for election within an election timeout.
    ///
    /// # Errors
    /// This node does not lead the group, or the other one could not.
    pub fn transfer_leader(&mut self, group: GroupId, to: NodeId) -> Result<(), HandOverError> {
        self.led(group)?.transfer_leader(to)
    }

    /// Messages to a peer were lost: groups that lead send carefully until they hear of it.
    pub fn report_unreachable(&mut self, peer: NodeId) {
        self.assert_between_rounds();
        self.groups.values_mut().for_each(|group| group.report_unreachable(peer));
    }

    /// A peer has fetched a snapshot, or failed to.
    pub fn report_snapshot(&mut self, group: GroupId, peer: NodeId, delivered: bool) {
        self.assert_between_rounds();
        if let Some(group) = self.groups.get_mut(&group) {
            group.report_snapshot(peer, delivered);
        }
    }

    /// A snapshot was installed: it is this node's checkpoint, and safe. The group goes on from it with the next round.
    ///
    /// # Errors
    /// Its configuration contradicts itself.
    pub fn installed(&mut self, id: GroupId, checkpoint: CheckpointBase) -> Result<(), OpenError> {
        self.assert_between_rounds();
        match self.groups.get_mut(&id) {
            None => Ok(()),
            Some(group) => {
                group.installed(checkpoint, &mut self.log).map_err(|error| OpenError::Group { group: id, error })
            }
        }
    }

    /// A snapshot could not be fetched. The leader will offer one again.
    pub fn fetch_failed(&mut self, group: GroupId) {
        self.assert_between_rounds();
        if let Some(group) = self.groups.get_mut(&group) {
            group.fetch_failed();
        }
    }

    /// Checkpoints were completed, and are safe: what they have may go from memory and from the log. Returns how many
    /// segments went.
    ///
    /// # Errors
    /// The disk failed to remove a segment; it only takes room.
    pub fn checkpointed(
        &mut self,
        checkpoints: impl IntoIterator<Item = (GroupId, CheckpointBase)>,
    ) -> io::Result<usize> {
        for (group, checkpoint) in checkpoints {
            if let Some(group) = self.groups.get_mut(&group) {
                group.checkpointed(checkpoint);
            }
        }
        self.release();
        let reached = |(&id, group): (&GroupId, &Group)| (id, group.checkpoint().applied.index);
        #[cfg(test)]
        let reached = |(&id, group): (&GroupId, &Group)| match self.config.planted {
            Some(PlantedBug::PurgeBeforeCheckpoint) => (id, group.status().handed_out.index),
            _ => reached((&id, group)),
        };
        self.log.purge(&self.groups.iter().map(reached).collect())
    }

    /// Sends, writes, syncs and hands out what gathered. If there was no room on the disk, the round is still there: call
    /// this again, and nothing else before it succeeds.
    ///
    /// # Errors
    /// The disk is full, or failed. If it failed, the process must end: what the disk has now is unknown.
    pub fn round(&mut self, sink: &mut dyn Sink) -> io::Result<Round> {
        if self.writing.is_empty() {
            for (&id, group) in &mut self.groups {
                let ready = group.begin_round(&mut self.log, sink);
                self.votes |= group.take_voted();
                self.writing.extend(ready.map(|ready| (id, ready)));
            }
        }
        sink.flush();
        let wrote = self.log.has_round();
        if wrote {
            self.log.write()?;
            if self.config.sync || self.votes {
                self.sync(SyncSite::LogRound)?;
            }
            self.votes = false;
        }
        let mut busy = false;
        for (id, ready) in self.writing.drain(..) {
            if let Some(group) = self.groups.get_mut(&id) {
                group.finish_round(ready, sink);
                busy |= group.is_busy();
            }
        }
        sink.flush();
        Ok(Round { busy, wrote })
    }

    /// Makes what was written survive a power cut.
    ///
    /// # Errors
    /// The disk failed. The process must end: what the disk has now is unknown.
    pub fn sync(&mut self, site: SyncSite) -> io::Result<()> {
        #[cfg(test)]
        if self.config.planted == Some(PlantedBug::SkipSync) {
            return Ok(());
        }
        // A full disk here is no reason to try again: what a failed sync left is unknown.
        let stuck = |group: GroupId| self.groups.get(&group)?.stuck();
        self.log.sync(site).and_then(|()| self.log.rotate_if_full(stuck)).map_err(io::Error::other)
    }

    /// Makes what was written survive a power cut, before the node ends.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn end(&mut self) -> io::Result<()> {
        self.log.end().map_err(io::Error::other)
    }

    /// One group as this node sees it.
    #[must_use]
    pub fn status(&self, group: GroupId) -> Option<GroupStatus> {
        self.groups.get(&group).map(Group::status)
    }

    /// The term in which this node leads a group.
    #[must_use]
    pub fn leads_in(&self, group: GroupId) -> Option<u64> {
        self.groups.get(&group).and_then(Group::leads_in)
    }

    /// The groups here.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.keys().copied()
    }

    /// Whether this node is the group's only member, so that nobody else could lead it.
    #[must_use]
    pub fn is_alone(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(Group::is_alone)
    }

    /// Term and a hash of the payload of every entry in memory, by index.
    #[cfg(test)]
    fn entries(&self, group: GroupId) -> BTreeMap<u64, (u64, u64)> {
        self.groups.get(&group).map(Group::entries).unwrap_or_default()
    }

    /// What of a group's log is kept in memory for others, beyond what is usual, in bytes.
    #[cfg(test)]
    fn kept(&self, group: GroupId) -> usize {
        self.groups.get(&group).map_or(0, Group::kept)
    }

    /// The log below.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }
}

/// The log without an entry that no frame can hold, and what stands behind that. Versions that did not look at the length of a command wrote
/// such entries. Where others vote too, none was ever committed, for it went to nobody; and this node, should it lead with one, would
/// commit nothing any more.
fn without_unsendable(group: GroupId, checkpoint: &CheckpointBase, mut log: GroupLog) -> GroupLog {
    let members = &checkpoint.configuration;
    let needs_others = members.voters.len() > 1 || members.voters_outgoing.len() > 1;
    let known = log.hard.commit.max(checkpoint.applied.index);
    // Behind a change of members it may be these who decide, or others.
    let mut open = log.entries.iter().filter(|entry| entry.id.index > checkpoint.applied.index);
    let end = open.find(|entry| entry.payload.len() > FRAME_BYTES_MAX || entry.kind != EntryKind::Commands);
    let Some(end) = end.filter(|end| needs_others && end.id.index > known && end.kind == EntryKind::Commands) else {
        return log;
    };
    let (index, bytes) = (end.id.index, end.payload.len());
    tracing::warn!(%group, index, bytes, "cut off what no other node can be sent: it was never committed");
    log.entries.retain(|entry| entry.id.index < index);
    log
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
