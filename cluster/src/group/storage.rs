//! A group's log in memory, as `raft-rs` reads it.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot, SnapshotMetadata};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use super::configuration::CheckpointBase;
use crate::log::{self, EntryKind, GroupLog, LogEntry, LogId};

/// What `raft-rs` may read of a group. Everything in it was added to the round that is written next, or before.
#[derive(Debug)]
pub(crate) struct GroupStorage {
    /// The entries begin after this.
    base: LogId,
    /// Consecutive.
    entries: VecDeque<Entry>,
    /// What the entries take.
    bytes: usize,
    /// What those take that the checkpoint has, and that are kept only for others.
    covered: usize,
    hard: HardState,
    /// What a snapshot of this group would be.
    checkpoint: CheckpointBase,
}

impl GroupStorage {
    /// What the log has behind the checkpoint.
    pub(crate) fn new(checkpoint: CheckpointBase, log: &GroupLog) -> Self {
        let applied = checkpoint.applied;
        let hard = HardState {
            term: log.hard.term.max(applied.term),
            vote: if log.hard.term < applied.term { 0 } else { log.hard.vote },
            // The commit index is not synced for its own sake: what was applied was committed.
            commit: log.hard.commit.max(applied.index),
        };
        let mut storage = Self { base: applied, entries: VecDeque::new(), bytes: 0, covered: 0, hard, checkpoint };
        storage.append(log.entries.iter().filter(|entry| entry.id.index > applied.index).map(raft_entry));
        storage.hard.commit = storage.hard.commit.min(storage.last());
        storage
    }

    pub(crate) fn last(&self) -> u64 {
        self.base.index + self.entries.len() as u64
    }

    pub(crate) fn checkpoint(&self) -> &CheckpointBase {
        &self.checkpoint
    }

    pub(crate) fn hard(&self) -> log::HardState {
        log::HardState { term: self.hard.term, vote: self.hard.vote, commit: self.hard.commit }
    }

    pub(crate) fn set_hard(&mut self, hard: HardState) {
        self.hard = hard;
    }

    pub(crate) fn set_commit(&mut self, commit: u64) {
        self.hard.commit = commit;
    }

    /// Adds entries in the place of what stands at their index and behind.
    pub(crate) fn append(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            while self.last() >= entry.index
                && let Some(overwritten) = self.entries.pop_back()
            {
                self.uncount(&overwritten);
            }
            assert_eq!(entry.index, self.last() + 1, "entries of a group's log are consecutive");
            self.bytes += size(&entry);
            self.entries.push_back(entry);
        }
    }

    /// A checkpoint was completed. What it has is kept only for others, until [`Self::drop_to`].
    pub(crate) fn set_checkpoint(&mut self, checkpoint: CheckpointBase) {
        let place = |index: u64| (index.clamp(self.base.index, self.last()) - self.base.index) as usize;
        let from = place(self.checkpoint.applied.index);
        let more = from..place(checkpoint.applied.index).max(from);
        self.covered += self.entries.range(more).map(size).sum::<usize>();
        self.checkpoint = checkpoint;
    }

    /// Drops entries up to `index` that the checkpoint has, as long as all take more than `bytes_max`.
    pub(crate) fn drop_to(&mut self, index: u64, bytes_max: usize) {
        let index = index.min(self.checkpoint.applied.index);
        while self.bytes > bytes_max && self.base.index < index && self.drop_first() {}
    }

    /// Bytes that would go if no more than `bytes_max` were kept for others.
    pub(crate) fn bytes_beyond(&self, bytes_max: usize) -> usize {
        self.bytes.saturating_sub(bytes_max).min(self.covered)
    }

    /// What the entries take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entries begin behind this.
    pub(crate) fn base(&self) -> u64 {
        self.base.index
    }

    /// Forgets entries up to `index`. Who asks for them gets a snapshot.
    pub(crate) fn forget_to(&mut self, index: u64) {
        while self.base.index < index && self.drop_first() {}
    }

    fn drop_first(&mut self) -> bool {
        let Some(first) = self.entries.pop_front() else {
            return false;
        };
        self.uncount(&first);
        self.base = LogId { index: first.index, term: first.term };
        true
    }

    fn uncount(&mut self, gone: &Entry) {
        self.bytes -= size(gone);
        if gone.index <= self.checkpoint.applied.index {
            self.covered -= size(gone);
        }
    }

    /// The entries behind a snapshot that takes the place of everything up to `checkpoint`. `None`: the log does not go through
    /// it, and nothing of it is kept.
    pub(crate) fn behind_snapshot(&self, checkpoint: &CheckpointBase) -> Option<Vec<LogEntry>> {
        let applied = checkpoint.applied;
        (self.term(applied.index).ok() == Some(applied.term)).then(|| self.behind(applied.index))
    }

    /// The entries behind `index`.
    pub(crate) fn behind(&self, index: u64) -> Vec<LogEntry> {
        self.entries.iter().filter(|entry| entry.index > index).map(log_entry).collect()
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        self.entries.get(index.checked_sub(self.base.index + 1)? as usize)
    }
}

/// What an entry takes in memory, about.
fn size(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.data.len()
}

pub(crate) fn kind_of(entry: &Entry) -> EntryKind {
    match entry.get_entry_type() {
        EntryType::EntryNormal => EntryKind::Commands,
        EntryType::EntryConfChange => EntryKind::ConfChange,
        EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
    }
}

fn log_entry(entry: &Entry) -> LogEntry {
    let id = LogId { index: entry.index, term: entry.term };
    LogEntry { id, kind: kind_of(entry), payload: entry.data.clone() }
}

fn raft_entry(entry: &LogEntry) -> Entry {
    let kind = match entry.kind {
        EntryKind::Commands => EntryType::EntryNormal,
        EntryKind::ConfChange => EntryType::EntryConfChange,
        EntryKind::ConfChangeV2 => EntryType::EntryConfChangeV2,
    };
    // A copy: the payload is a slice of its whole segment.
    let data = bytes::Bytes::copy_from_slice(&entry.payload);
    Entry { entry_type: kind as i32, term: entry.id.term, index: entry.id.index, data, ..Entry::default() }
}

impl Storage for GroupStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), ConfState::from(&self.checkpoint.configuration)))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        bytes_max: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let Some(from) = low.checked_sub(self.base.index + 1) else {
            return Err(Error::Store(StorageError::Compacted));
        };
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let bytes_max = bytes_max.into().unwrap_or(u64::MAX);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in self.entries.range(from as usize..(high - self.base.index - 1) as usize) {
            bytes += entry.data.len() as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.index {
            return Ok(self.base.term);
        }
        let missing = if index < self.base.index { StorageError::Compacted } else { StorageError::Unavailable };
        self.at(index).map(|entry| entry.term).ok_or(Error::Store(missing))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Only a manifest: which checkpoint it is. Its data travels apart from Raft.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let applied = self.checkpoint.applied;
        // One that does not reach the entries kept would leave a gap; the next checkpoint closes it.
        if applied.index < request_index || applied.index < self.base.index || applied.index == 0 {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let conf_state = Some(ConfState::from(&self.checkpoint.configuration));
        let metadata = Some(SnapshotMetadata { conf_state, index: applied.index, term: applied.term });
        Ok(Snapshot { metadata, ..Snapshot::default() })
    }
}
