//! Where pairs are kept: in fjall, or in memory for simulations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fjall::{Database, Keyspace, PersistMode, Readable, Snapshot};

use super::{Pair, StateError, Write, base_key, data_prefix, parse_base};
use crate::group::CheckpointBase;
use crate::identity::GroupId;

/// Pairs in the order of their keys.
pub type PairIter = Box<dyn Iterator<Item = Result<Pair, StateError>> + Send>;

#[derive(Clone)]
pub(super) enum Backend {
    Fjall { database: Database, data: Keyspace },
    Memory(MemoryState),
}

impl Backend {
    /// Everything as of now, whatever is written meanwhile.
    pub(super) fn read(&self) -> View {
        match self {
            Self::Fjall { database, data } => View::Fjall { snapshot: database.snapshot(), data: data.clone() },
            Self::Memory(state) => View::Memory(state.lock().seen()),
        }
    }

    /// All of it or nothing, also after a power cut.
    pub(super) fn commit(&self, writes: Vec<Write>) -> Result<(), StateError> {
        match self {
            Self::Fjall { database, data } => {
                let mut batch = database.batch();
                for (key, value) in writes {
                    match value {
                        Some(value) => batch.insert(data, key, value),
                        None => batch.remove(data, key),
                    }
                }
                batch.commit()?;
            }
            Self::Memory(state) => state.lock().unsynced.push(writes),
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), fjall::Error> {
        match self {
            Self::Fjall { database, .. } => database.persist(PersistMode::SyncAll),
            Self::Memory(state) => {
                state.lock().sync(usize::MAX);
                Ok(())
            }
        }
    }
}

/// What was stored at one moment.
pub(super) enum View {
    Fjall { snapshot: Snapshot, data: Keyspace },
    Memory(BTreeMap<Vec<u8>, Vec<u8>>),
}

impl View {
    pub(super) fn prefix(&self, prefix: &[u8]) -> PairIter {
        match self {
            Self::Fjall { snapshot, data } => Box::new(snapshot.prefix(data, prefix).map(|guard| {
                let (key, value) = guard.into_inner()?;
                Ok((key.to_vec(), value.to_vec()))
            })),
            Self::Memory(pairs) => {
                let from = pairs.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
                let found: Vec<_> = from.map(|(key, value)| Ok((key.clone(), value.clone()))).collect();
                Box::new(found.into_iter())
            }
        }
    }

    /// Those of a group, under its own keys.
    pub(super) fn group(&self, group: GroupId) -> PairIter {
        let prefix = data_prefix(group);
        Box::new(self.prefix(&prefix).map(move |pair| pair.map(|(key, value)| (key[prefix.len()..].to_vec(), value))))
    }

    fn base(&self, group: GroupId) -> Result<Option<CheckpointBase>, StateError> {
        let key = base_key(group);
        match self.prefix(&key).next().transpose()? {
            Some((found, value)) if found == key => match parse_base(&found, &value) {
                Some((_, base, _)) => Ok(Some(base)),
                None => Err(StateError::Applied),
            },
            _ => Ok(None),
        }
    }
}

/// Reads checkpoints while others are written.
#[derive(Clone)]
pub struct StateReader(Backend);

impl std::fmt::Debug for StateReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StateReader").finish_non_exhaustive()
    }
}

impl StateReader {
    pub(super) fn of(backend: Backend) -> Self {
        Self(backend)
    }

    /// The newest checkpoint of a group, all of one moment. `None`: there is none.
    ///
    /// # Errors
    /// The store failed.
    pub fn open(&self, group: GroupId) -> Result<Option<(CheckpointBase, PairIter)>, StateError> {
        let view = self.0.read();
        Ok(view.base(group)?.map(|base| (base, view.group(group))))
    }
}

/// The pairs of a simulated node, which outlive its processes.
#[derive(Debug, Clone, Default)]
pub struct MemoryState(Arc<Mutex<Pairs>>);

#[derive(Debug, Default)]
struct Pairs {
    synced: BTreeMap<Vec<u8>, Vec<u8>>,
    unsynced: Vec<Vec<Write>>,
}

impl Pairs {
    fn sync(&mut self, batches: usize) {
        let batches = batches.min(self.unsynced.len());
        for (key, value) in self.unsynced.drain(..batches).flatten() {
            match value {
                Some(value) => drop(self.synced.insert(key, value)),
                None => drop(self.synced.remove(&key)),
            }
        }
    }

    fn seen(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut all = Self { synced: self.synced.clone(), unsynced: self.unsynced.clone() };
        all.sync(usize::MAX);
        all.synced
    }
}

impl MemoryState {
    fn lock(&self) -> MutexGuard<'_, Pairs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes: of the batches that were not synced, which it is told the number of, only the first so many stay.
    pub fn power_cut(&self, kept: impl FnOnce(usize) -> usize) {
        let mut pairs = self.lock();
        let kept = kept(pairs.unsynced.len());
        pairs.sync(kept);
        pairs.unsynced.clear();
    }
}
