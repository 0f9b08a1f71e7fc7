//! Where pairs are kept: in fjall, or in memory for simulations.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fjall::{Database, Keyspace, LsmError, PersistMode, Readable, Snapshot};

use super::{Pair, StateError, Write, base_key, data_prefix, parse_base};
use crate::disk::is_out_of_descriptors;
use crate::group::CheckpointBase;
use crate::identity::GroupId;

/// Of fjall, which panics over a longer one.
const KEY_BYTES_MAX: usize = u16::MAX as usize;

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

    /// One value as of now.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self {
            Self::Fjall { data, .. } => patiently(|| Ok(data.get(key)?.map(|value| value.to_vec()))),
            Self::Memory(state) => Ok(state.lock().get(key)),
        }
    }

    /// The first pairs from one key on, below another.
    fn range(&self, from: &[u8], until: &[u8], pairs_max: usize) -> Result<Vec<Pair>, StateError> {
        match self {
            Self::Fjall { data, .. } => {
                let pair = |guard: fjall::Guard| {
                    let (key, value) = guard.into_inner()?;
                    Ok((key.to_vec(), value.to_vec()))
                };
                patiently(|| data.range(from..until).take(pairs_max).map(pair).collect())
            }
            Self::Memory(state) => Ok(state.lock().range(from, until, pairs_max)),
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
            Self::Memory(state) => {
                let longest = writes.iter().map(|(key, _)| key.len()).max();
                assert!(longest.is_none_or(|longest| longest <= KEY_BYTES_MAX), "a key that fjall would not take");
                state.lock().unsynced.push(writes);
            }
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

/// Time until something is read again that found no descriptor.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// Reads until there is a descriptor for the table that is wanted, if only that was missing: whoever reads for a group cannot go on
/// without, and would end the process.
fn patiently<T>(mut read: impl FnMut() -> Result<T, fjall::Error>) -> Result<T, StateError> {
    let mut is_said = false;
    loop {
        match read() {
            Err(fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)))
                if is_out_of_descriptors(&error) =>
            {
                if !std::mem::replace(&mut is_said, true) {
                    tracing::error!(
                        %error,
                        "a table of the stored state cannot be opened (RLIMIT_NOFILE): it is tried again until it can be"
                    );
                }
                std::thread::sleep(READ_PAUSE);
            }
            result => return Ok(result?),
        }
    }
}

/// What was stored at one moment.
pub(super) enum View {
    Fjall { snapshot: Snapshot, data: Keyspace },
    Memory(BTreeMap<Vec<u8>, Vec<u8>>),
}

/// Pairs of a snapshot, read [`patiently`].
struct Patient {
    snapshot: Snapshot,
    data: Keyspace,
    prefix: Vec<u8>,
    pairs: fjall::Iter,
    /// The key that was read last.
    last: Option<Vec<u8>>,
}

impl Patient {
    /// After an error, what is behind the last key.
    fn again(&self) -> fjall::Iter {
        match &self.last {
            Some(last) => self.snapshot.range::<&[u8], _>(&self.data, (Bound::Excluded(&last[..]), Bound::Unbounded)),
            None => self.snapshot.prefix(&self.data, &self.prefix),
        }
    }
}

impl Iterator for Patient {
    type Item = Result<Pair, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut failed = false;
        let pair = patiently(|| {
            if std::mem::replace(&mut failed, true) {
                self.pairs = self.again();
            }
            let Some(guard) = self.pairs.next() else {
                return Ok(None);
            };
            let (key, value) = guard.into_inner()?;
            Ok(Some((key.to_vec(), value.to_vec())))
        });
        let pair = pair.transpose()?;
        // What was read again goes on behind the prefix.
        let pair = pair.map(|pair| pair.0.starts_with(&self.prefix).then_some(pair)).transpose()?;
        if let Ok((key, _)) = &pair {
            self.last.get_or_insert_default().clone_from(key);
        }
        Some(pair)
    }
}

impl View {
    pub(super) fn prefix(&self, prefix: &[u8]) -> PairIter {
        match self {
            Self::Fjall { snapshot, data } => {
                let (snapshot, data, prefix) = (snapshot.clone(), data.clone(), prefix.to_vec());
                let pairs = snapshot.prefix(&data, &prefix);
                Box::new(Patient { snapshot, data, prefix, pairs, last: None })
            }
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

    pub(super) fn base(&self, group: GroupId) -> Result<Option<CheckpointBase>, StateError> {
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

    /// The entry that the newest checkpoint of a group goes to; 0 if there is none.
    ///
    /// # Errors
    /// The store failed.
    pub fn applied(&self, group: GroupId) -> Result<u64, StateError> {
        Ok(self.0.read().base(group)?.map_or(0, |base| base.applied.index))
    }

    /// What is stored of a group under a key.
    ///
    /// # Errors
    /// The store failed.
    pub fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.0.get(&[&data_prefix(group)[..], key].concat())
    }

    /// What is stored of a group from one key on and below another, in order, and no more than so many pairs.
    ///
    /// # Errors
    /// The store failed.
    pub fn range(&self, group: GroupId, from: &[u8], until: &[u8], pairs_max: usize) -> Result<Vec<Pair>, StateError> {
        let prefix = data_prefix(group);
        let mut pairs = self.0.range(&[&prefix[..], from].concat(), &[&prefix[..], until].concat(), pairs_max)?;
        for (key, _) in &mut pairs {
            key.drain(..prefix.len());
        }
        Ok(pairs)
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

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let unsynced = self.unsynced.iter().rev().flat_map(|batch| batch.iter().rev());
        let written = unsynced.filter(|(written, _)| written == key).map(|(_, value)| value.clone()).next();
        written.unwrap_or_else(|| self.synced.get(key).cloned())
    }

    fn range(&self, from: &[u8], until: &[u8], pairs_max: usize) -> Vec<Pair> {
        let of = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), Some(value.clone()));
        let bounds = (Bound::Included(from), Bound::Excluded(until));
        let mut pairs: BTreeMap<_, _> = self.synced.range::<[u8], _>(bounds).map(of).collect();
        let unsynced = self.unsynced.iter().flatten().filter(|(key, _)| (from..until).contains(&&key[..]));
        pairs.extend(unsynced.cloned());
        pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).take(pairs_max).collect()
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use rustix::io::Errno;

    use super::*;

    /// F10: a table that cannot be opened for want of a descriptor is no failure of the store.
    #[test]
    fn what_finds_no_descriptor_is_read_again_and_what_fails_is_not() {
        let tries = Cell::new(0);
        let read = |error: fn(io::Error) -> fjall::Error, errno: Errno| {
            tries.set(0);
            let result = patiently(|| match tries.replace(tries.get() + 1) {
                0 => Err(error(errno.into())),
                _ => Ok(7),
            });
            (result.ok(), tries.get())
        };
        assert_eq!(read(|error| fjall::Error::Storage(LsmError::Io(error)), Errno::MFILE), (Some(7), 2));
        assert_eq!(read(fjall::Error::Io, Errno::NFILE), (Some(7), 2));
        assert_eq!(read(fjall::Error::Io, Errno::IO), (None, 1));
    }
}
