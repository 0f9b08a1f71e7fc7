//! The pipeline without threads, for simulations: whoever owns it says what time it is, and when it is its turn.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;

use super::apply::{Applier, write_checkpoints};
use super::raft::{ROUND_BYTES_MAX, RaftThread};
use super::{Parts, Peers, PipelineConfig, PipelineHandle, StartError, StateMachine, Submission};
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
    to_write: Receiver<Vec<Checkpoint>>,
    handle: PipelineHandle<M::Query>,
    /// A round found no room on the disk, and comes before anything else.
    full: bool,
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
        Ok(Self { raft, applier, store, submitted, notified, to_write, handle, full: false })
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

    /// Does what is due at `now` and what was submitted, in one round. Returns whether another is wanted at once.
    ///
    /// # Errors
    /// The process would have ended.
    pub fn turn(&mut self, now: Duration) -> Result<bool, InlineError> {
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
        self.full = round.is_none();
        if let Some(round) = self.raft.take_round() {
            self.applier.apply(now, round);
        }
        while let Ok(query) = self.notified.try_recv() {
            self.applier.notified(query);
        }
        self.applier.tick_if_due(now);
        while let Ok(checkpoints) = self.to_write.try_recv() {
            write_checkpoints(&mut self.store, checkpoints, &self.handle.submissions, &self.handle.stats)?;
            self.applier.idle.store(true, std::sync::atomic::Ordering::Release);
        }
        Ok(!self.full && (round == Some(true) || !self.submitted.is_empty() || !self.notified.is_empty()))
    }
}
