//! A data directory for the one node of a new cluster that goes on from what an older one had.
//!
//! What is put in comes from the disks of survivors ([`crate::recovery`]) or from a backup. The cluster has an id of its own and its
//! node too, so no disk of the old cluster is ever believed by the new one, nor the other way round: links
//! are for members of the same cluster only. Until everything is there and safe, the directory cannot be started from.

use std::collections::BTreeSet;
use std::path::Path;
use std::slice;
use std::sync::Arc;

use bytes::Bytes;

use crate::data_dir::{DataDir, DataDirError};
use crate::directory::command::MemberRecord;
use crate::directory::{Directory, STATE_KEY};
use crate::disk::{Disk, RealDisk};
use crate::formation::{AdoptError, Formation, Ledger, LedgerError, PromiseError, Proposal, Terms};
use crate::group::{CheckpointBase, Configuration, pack, write_anew};
use crate::identity::{GroupId, NodeId};
use crate::log::{EntryKind, GroupLog, HardState, Log, LogEntry, LogError, LogId};
use crate::state::{Pair, StateError, StateStore};
use crate::transport::ClusterId;

/// Size of a segment of the log, as long as only this writes it.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// Why no cluster can begin there.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk failed.
    #[error("the new data directory: {0}")]
    Io(#[from] std::io::Error),
    /// The record of the formation cannot be written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// It cannot be proposed.
    #[error("the new cluster cannot be formed: {0}")]
    Promise(#[from] PromiseError),
    /// It cannot be adopted.
    #[error("the new cluster cannot be formed: {0}")]
    Adopt(#[from] AdoptError),
}

/// A new node's data directory, while it is being filled.
pub struct Seed {
    data_dir: DataDir,
    store: StateStore,
    log: Log,
    ledger: Ledger,
    proposal: Proposal,
    me: MemberRecord,
    filled: BTreeSet<GroupId>,
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Seed").field("data_dir", &self.data_dir).field("filled", &self.filled).finish()
    }
}

impl Seed {
    /// Begins in a directory that is empty, or is not there. `me` is the new node as others shall know it, but for its id.
    ///
    /// # Errors
    /// The directory is not empty, or cannot be used.
    pub fn begin(path: &Path, me: MemberRecord) -> Result<Self, SeedError> {
        let data_dir = DataDir::make_unfinished(path)?;
        let me = MemberRecord { node: data_dir.node().get(), ..me };
        let mut ledger = Ledger::open(Arc::new(RealDisk::existing(path)), data_dir.node())?;
        let proposal = ledger.propose(&me, vec![me.node], 1)?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&path.join("log"))?);
        let (log, _) = Log::open(Arc::clone(&disk), SEGMENT_BYTES)?;
        let store = StateStore::open(&path.join("state"), disk)?;
        Ok(Self { data_dir, store, log, ledger, proposal, me, filled: BTreeSet::new() })
    }

    /// The new cluster.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        match self.proposal.cluster() {
            Some(cluster) => cluster,
            None => unreachable!("it was proposed here"),
        }
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.data_dir.node()
    }

    /// Takes in a group: its state after the entry `applied`, and the entries behind, all of which count as committed. `last` is a
    /// command that comes after all of them. Says how many pairs the state has.
    ///
    /// # Errors
    /// The disk failed, or the pairs broke off.
    pub fn fill<E: From<StateError> + From<SeedError>>(
        &mut self,
        group: GroupId,
        applied: LogId,
        pairs: impl IntoIterator<Item = Result<Pair, E>>,
        mut behind: Vec<LogEntry>,
        last: &Bytes,
    ) -> Result<u64, E> {
        let base = CheckpointBase { applied, configuration: Configuration::of([self.node()]) };
        let count = self.store.fill(group, base, pairs)?;
        let before = behind.last().map_or(applied, |entry| entry.id);
        let id = LogId { index: before.index + 1, term: before.term };
        behind.push(LogEntry { id, kind: EntryKind::Commands, payload: pack(slice::from_ref(last)) });
        let hard = HardState { term: id.term, vote: 0, commit: id.index };
        write_anew(&mut self.log, group, &GroupLog { base: applied, entries: behind, hard }, hard);
        self.log.write().and_then(|()| self.log.end()).map_err(SeedError::from)?;
        self.filled.insert(group);
        Ok(count)
    }

    /// The cluster begins: groups that were not filled are empty, and the node can be started from here on.
    ///
    /// `directory` is that of the old cluster, as of the entry in `term`.
    ///
    /// # Errors
    /// The disk failed.
    pub fn finish(mut self, directory: Directory, term: u64, terms: Terms) -> Result<ClusterId, SeedError> {
        let (cluster_id, me) = (self.cluster_id(), self.me.clone());
        let directory = directory.begin_anew(cluster_id.0.to_be_bytes().to_vec(), me.clone());
        let missing: Vec<GroupId> = directory.groups().filter(|group| !self.filled.contains(group)).collect();
        for group in missing {
            let base = CheckpointBase::new_group(Configuration::of([self.node()]));
            self.store.fill::<StateError>(group, base, [])?;
        }
        let base = CheckpointBase {
            applied: LogId { index: directory.applied(), term },
            configuration: Configuration::of([self.node()]),
        };
        // The last: who has a directory makes no groups any more.
        self.store.fill::<StateError>(GroupId::DIRECTORY, base, [Ok((STATE_KEY.to_vec(), directory.snapshot()))])?;
        let formation = Formation { cluster_id, terms, members: vec![me], is_joined: false };
        self.ledger.decide(&self.proposal, formation)?;
        self.data_dir.finish()?;
        Ok(cluster_id)
    }
}
