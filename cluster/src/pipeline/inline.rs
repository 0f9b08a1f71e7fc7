//! The pipeline without threads, for simulations: whoever owns it says what time it is, and when it is its turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;

use super::apply::{Applier, ToWrite, write_checkpoints};
use super::raft::{ROUND_BYTES_MAX, RaftThread};
use super::{Item, Parts, Peers, PipelineConfig, PipelineHandle, Round, StartError, StateMachine, Submission};
use crate::disk::Disk;
use crate::node::Node;
use crate::state::{Checkpoint, StateError, StateStore};

/// Why the process that this stands for would have ended.
#[derive(Debug, thiserror::Error)]
pub enum InlineError {
    /// The log's disk failed.
    #[error("the log: {0}")]
    Log(#[from] std::io::Error),
    /// A checkpoint could not be written.
    #[error(transparent)]
    State(#[from] StateError),
}

/// All of a pipeline in the hands of its owner.
pub struct Inline<M: StateMachine, P: Peers> {
    raft: RaftThread<M::Query, P>,
    applier: Applier<M>,
    store: StateStore,
    submitted: Receiver<Submission<M::Query>>,
    notified: Receiver<M::Query>,
    to_write: Receiver<ToWrite>,
    handle: PipelineHandle<M::Query>,
    /// A round found no room on the disk, and comes before anything else.
    full: bool,
    /// The last round left something for another.
    busy: bool,
    /// What rounds came to, and was not applied yet.
    rounds: VecDeque<Round<M::Query>>,
    /// See [`Self::turn_raft_to_stall`].
    withheld: Option<Round<M::Query>>,
    /// See [`Self::purge_early`].
    purges_early: bool,
    unwritten: Vec<Checkpoint>,
}

impl<M: StateMachine, P: Peers> std::fmt::Debug for Inline<M, P> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inline").finish_non_exhaustive()
    }
}

impl<M: StateMachine, P: Peers> Inline<M, P> {
    /// As [`super::Pipeline::start`], at `now`.
    ///
    /// # Errors
    /// The same.
    pub fn start(
        config: PipelineConfig,
        disk: Arc<dyn Disk>,
        store: StateStore,
        machine: M,
        peers: P,
        now: Duration,
    ) -> Result<Self, StartError> {
        let Parts { raft, applier, store, submitted, notified, to_write, handle, .. } =
            Parts::new(config, disk, store, machine, peers, now)?;
        Ok(Self {
            raft,
            applier,
            store,
            submitted,
            notified,
            to_write,
            handle,
            full: false,
            busy: true,
            rounds: VecDeque::new(),
            withheld: None,
            purges_early: false,
            unwritten: Vec::new(),
        })
    }

    /// A mistake that simulations must find: a checkpoint counts as complete, so that the log may be purged, and is written
    /// only when the next one is due.
    pub fn purge_early(&mut self) {
        self.purges_early = true;
        self.applier.tells_stored = false;
    }

    /// To submit with.
    #[must_use]
    pub fn handle(&self) -> &PipelineHandle<M::Query> {
        &self.handle
    }

    /// The state machine.
    #[must_use]
    pub fn machine(&self) -> &M {
        &self.applier.machine
    }

    /// The state machine.
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.applier.machine
    }

    /// The groups.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.raft.node
    }

    /// Does what is due at `now` and what was submitted, in one turn of each thread. Returns whether another is wanted at
    /// once.
    ///
    /// # Errors
    /// The process would have ended.
    pub fn turn(&mut self, now: Duration) -> Result<bool, InlineError> {
        self.turn_raft(now)?;
        while self.turn_apply(now) {}
        while self.turn_checkpoint()? {}
        Ok(self.raft_waits() || self.apply_waits())
    }

    /// Whether the thread that owns the log would go on at once.
    #[must_use]
    pub fn raft_waits(&self) -> bool {
        self.withheld.is_some() || !self.full && (self.busy || !self.submitted.is_empty())
    }

    /// Whether the thread that owns the state machine would go on at once.
    #[must_use]
    pub fn apply_waits(&self) -> bool {
        !self.rounds.is_empty() || !self.notified.is_empty()
    }

    /// Whether a checkpoint is to be written.
    #[must_use]
    pub fn checkpoint_waits(&self) -> bool {
        !self.to_write.is_empty()
    }

    /// A turn of the thread that owns the log.
    ///
    /// # Errors
    /// The process would have ended.
    pub fn turn_raft(&mut self, now: Duration) -> Result<(), InlineError> {
        self.rounds.extend(self.withheld.take());
        self.take_turn(now)?;
        self.rounds.extend(self.raft.take_round());
        Ok(())
    }

    /// The same, but what a leader committed is handed over only when the thread has its next turn: others have heard of the round by
    /// then, and may lead. Returns whether there was such.
    ///
    /// # Errors
    /// The process would have ended.
    pub fn turn_raft_to_stall(&mut self, now: Duration) -> Result<bool, InlineError> {
        self.rounds.extend(self.withheld.take());
        self.take_turn(now)?;
        let round = self.raft.take_round();
        let is_led = |item: &Item<M::Query>| matches!(item, Item::Commands { live: true, .. });
        if round.as_ref().is_some_and(|round| round.items.iter().any(is_led)) {
            self.withheld = round;
        } else {
            self.rounds.extend(round);
        }
        Ok(self.withheld.is_some())
    }

    fn take_turn(&mut self, now: Duration) -> Result<(), InlineError> {
        if !self.full {
            self.raft.on_time(now)?;
            let mut bytes = 0;
            while bytes < ROUND_BYTES_MAX
                && let Ok(submission) = self.submitted.try_recv()
            {
                bytes += self.raft.take(submission).unwrap_or(0);
            }
        }
        let round = self.raft.round(now)?;
        self.raft.show(now);
        self.full = round.is_none();
        self.busy = round == Some(true);
        Ok(())
    }

    /// A turn of the thread that owns the state machine: one round, one notice, or what is due. `false`: nothing waited.
    pub fn turn_apply(&mut self, now: Duration) -> bool {
        // Two queues that a thread takes from as it likes: whichever is longer is as good as any.
        let waited = if self.rounds.len() >= self.notified.len()
            && let Some(round) = self.rounds.pop_front()
        {
            self.applier.apply(now, round);
            true
        } else if let Ok(query) = self.notified.try_recv() {
            self.applier.notified(query);
            true
        } else {
            false
        };
        self.applier.tick_if_due(now);
        waited
    }

    /// A turn of the thread that writes checkpoints. `false`: there was none to write.
    ///
    /// # Errors
    /// The process would have ended.
    pub fn turn_checkpoint(&mut self) -> Result<bool, InlineError> {
        let Ok(write) = self.to_write.try_recv() else {
            return Ok(false);
        };
        match write {
            ToWrite::Checkpoints(checkpoints) if self.purges_early => {
                let bases = checkpoints.iter().map(|checkpoint| (checkpoint.group, checkpoint.base.clone())).collect();
                drop(self.handle.submissions.send(Submission::Checkpointed(bases)));
                self.store.write(std::mem::replace(&mut self.unwritten, checkpoints))?;
            }
            write => {
                if !self.unwritten.is_empty() {
                    self.store.write(std::mem::take(&mut self.unwritten))?;
                }
                write_checkpoints(&mut self.store, write, &self.handle.submissions, &self.handle.stats)?;
            }
        }
        self.applier.unwritten.fetch_sub(1, std::sync::atomic::Ordering::Release);
        Ok(true)
    }
}
