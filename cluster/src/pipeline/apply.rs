//! The apply thread, which owns the state machine, and the checkpoints of what it applied.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::Sender;

use super::bell::Ringing;
use super::{FetchedState, Item, PipelineConfig, Round, StateMachine, Stats, Submission};
use crate::disk::Disk;
use crate::group::CheckpointBase;
use crate::identity::GroupId;
use crate::log::LogId;
use crate::state::{Checkpoint, Spool, StateError, StateStore};

/// How often the state machine hears that time passes.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// What part of the reserve of free space must be there for a checkpoint.
pub(super) const CHECKPOINT_RESERVE_SHARE: u64 = 8;

/// What the checkpoint thread is to write.
pub(super) enum ToWrite {
    Checkpoints(Vec<Checkpoint>),
    Install(Arc<Spool>),
}

pub(super) struct Applier<M: StateMachine> {
    pub(super) machine: M,
    pub(super) applied: BTreeMap<GroupId, CheckpointBase>,
    /// What the last checkpoint of each group has, or the one that is being written.
    pub(super) checkpointed: BTreeMap<GroupId, u64>,
    pub(super) config: PipelineConfig,
    /// Of the log, for how much room there is.
    pub(super) disk: Arc<dyn Disk>,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) stats: Arc<Stats>,
    pub(super) checkpoints: Sender<ToWrite>,
    /// Checkpoints that are to be written, the one that is being written among them.
    pub(super) unwritten: Arc<AtomicUsize>,
    /// Whether the state machine hears of it when all are.
    pub(super) tells_stored: bool,
    /// A checkpoint waits for descriptors, and that has been said.
    pub(super) is_held_up: bool,
    /// Whether it has heard of the last one.
    pub(super) is_told: bool,
    pub(super) last_checkpoint: (Duration, u64),
    /// Somebody waits for a checkpoint: it joined a group after the last one.
    pub(super) wanted: bool,
    pub(super) ticked: Duration,
}

impl<M: StateMachine> Applier<M> {
    pub(super) fn tick_if_due(&mut self, now: Duration) {
        if now.saturating_sub(self.ticked) >= TICK {
            self.ticked = now;
            self.machine.tick(now);
            self.machine.flush();
            self.checkpoint_if_due(now, 0);
        }
    }

    /// Something was said that concerns no group.
    pub(super) fn notified(&mut self, query: M::Query) {
        self.machine.query(query);
        self.machine.flush();
    }

    pub(super) fn apply(&mut self, now: Duration, round: Round<M::Query>) {
        for item in round.items {
            match item {
                Item::Commands { group, id, commands, live } => {
                    // A snapshot may have come before them.
                    if self.is_new(group, id) {
                        for command in &commands {
                            self.machine.apply(group, id.index, command, live);
                        }
                        self.applied(group, id);
                    }
                }
                Item::Configuration(group, id, configuration) => {
                    if self.is_new(group, id) {
                        self.machine.members(group, &configuration);
                        let before = std::mem::replace(&mut self.applied(group, id).configuration, configuration);
                        let now = &self.applied[&group].configuration;
                        // Who is new begins with a snapshot that names it.
                        self.wanted |= now.learners.iter().any(|&node| !before.contains(node));
                    }
                }
                Item::Empty(group, id) => {
                    if self.is_new(group, id) {
                        self.applied(group, id);
                    }
                }
                Item::Lead(group, term) => self.machine.lead(group, term),
                Item::Follow(group, term, leader) => self.machine.follow(group, term, leader),
                Item::Query(query) => self.machine.query(query),
                Item::Refuse(query) => self.machine.refuse(query),
                Item::Install(group, fetched) => self.install(group, fetched),
            }
        }
        self.in_flight.fetch_sub(round.bytes, Ordering::Relaxed);
        self.machine.flush();
        self.checkpoint_if_due(now, round.log_position);
    }

    fn is_new(&self, group: GroupId, id: LogId) -> bool {
        self.applied.get(&group).is_none_or(|base| id.index > base.applied.index)
    }

    fn applied(&mut self, group: GroupId, id: LogId) -> &mut CheckpointBase {
        if let Some(counts) = self.stats.counts(group) {
            counts.applied.store(id.index, Ordering::Relaxed);
        }
        let base = self.applied.entry(group).or_default();
        base.applied = id;
        base
    }

    /// The group goes on from another node's checkpoint, which is written here before Raft hears of it.
    fn install(&mut self, group: GroupId, FetchedState { spool, prepared }: FetchedState) {
        let base = spool.base().clone();
        debug_assert!(self.is_new(group, base.applied), "an older one is refused where it comes in");
        self.machine.restore(group, base.applied.index, &spool, prepared);
        self.machine.members(group, &base.configuration);
        self.applied(group, base.applied);
        self.checkpointed.insert(group, base.applied.index);
        self.applied.insert(group, base);
        self.write(ToWrite::Install(spool));
    }

    /// `position` is 0 where only time passed.
    fn checkpoint_if_due(&mut self, now: Duration, position: u64) {
        if self.unwritten.load(Ordering::Acquire) > 0 {
            return;
        }
        if !std::mem::replace(&mut self.is_told, true) && self.tells_stored {
            self.machine.stored();
        }
        let (at, before) = self.last_checkpoint;
        let by_log = position.saturating_sub(before) >= self.config.checkpoint_log_bytes;
        let by_time = now.saturating_sub(at) >= self.config.checkpoint_interval;
        let is_due = by_log || by_time || self.wanted || self.machine.wants_checkpoint();
        if is_due && self.has_room() {
            self.wanted = false;
            self.last_checkpoint = (now, position.max(before));
            self.checkpoint();
        }
    }

    /// A checkpoint that finds no room half way ends the process, or no descriptor for the files it wants, so it waits for some: until
    /// then the log has everything.
    pub(super) fn has_room(&mut self) -> bool {
        let room = self.config.free_bytes_reserve / CHECKPOINT_RESERVE_SHARE;
        // A disk that fails says so when it is written to.
        !self.disk.free_bytes().is_ok_and(|free| free < room) && self.has_descriptors()
    }

    fn has_descriptors(&mut self) -> bool {
        let has_some = self.disk.can_open_more();
        if !has_some {
            self.stats.descriptors_missing.fetch_add(1, Ordering::Relaxed);
        }
        match (std::mem::replace(&mut self.is_held_up, !has_some), has_some) {
            (false, false) => tracing::error!(
                "the process has no descriptors left for a checkpoint (RLIMIT_NOFILE): it waits for some, and the log grows meanwhile"
            ),
            (true, true) => tracing::info!("there are descriptors for a checkpoint again"),
            _ => {}
        }
        has_some
    }

    pub(super) fn checkpoint(&mut self) {
        let mut checkpoints = Vec::new();
        for (&group, base) in &self.applied {
            let Some(writes) = self.machine.checkpoint(group) else {
                continue;
            };
            // Entries that changed nothing keep the log as well, until a checkpoint says so.
            let advanced = self.checkpointed.insert(group, base.applied.index) != Some(base.applied.index);
            if advanced || !writes.is_empty() {
                checkpoints.push(Checkpoint { group, base: base.clone(), writes });
            }
        }
        if !checkpoints.is_empty() {
            self.write(ToWrite::Checkpoints(checkpoints));
        }
    }

    fn write(&mut self, write: ToWrite) {
        self.is_told = false;
        self.unwritten.fetch_add(1, Ordering::Relaxed);
        // Fails only if the thread is gone, which ends the process.
        drop(self.checkpoints.send(write));
    }
}

/// Makes checkpoints safe, and says so.
///
/// # Errors
/// The disk failed: the process must end.
pub(super) fn write_checkpoints<Q>(
    store: &mut StateStore,
    write: ToWrite,
    completed: &Ringing<Submission<Q>>,
    stats: &Stats,
) -> Result<(), StateError> {
    let written = match write {
        ToWrite::Checkpoints(checkpoints) => {
            let bases = checkpoints.iter().map(|checkpoint| (checkpoint.group, checkpoint.base.clone())).collect();
            store.write(checkpoints)?;
            Submission::Checkpointed(bases)
        }
        ToWrite::Install(spool) => {
            store.install(&spool)?;
            Submission::Installed(spool.group(), spool.base().clone())
        }
    };
    stats.checkpoints.fetch_add(1, Ordering::Relaxed);
    // Fails only at the end, when the log stays as it is.
    drop(completed.send(written));
    Ok(())
}
