//! What is stored of a group, as the group reads it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use kentongan_cluster::GroupId;
use kentongan_cluster::state::{Pair, Spool, StateError, StateReader};

/// Rows of one group in the order of their keys. Reading may wait for a disk.
pub trait StoredRows: fmt::Debug + Send + Sync {
    /// One value.
    ///
    /// # Errors
    /// The store failed.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// The first pairs from one key on and below another.
    ///
    /// # Errors
    /// The store failed.
    fn range(&self, from: &[u8], until: &[u8], pairs_max: usize) -> Result<Vec<Pair>, StateError>;
}

/// Those that a trial wrote.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct MemoryRows(std::sync::Mutex<std::collections::BTreeMap<Vec<u8>, Vec<u8>>>);

#[cfg(test)]
impl MemoryRows {
    /// Writes what a checkpoint has.
    pub(super) fn write(&self, writes: Vec<super::store::Write>) {
        let mut rows = self.0.lock().expect("nobody panicked");
        for (key, value) in writes {
            match value {
                Some(value) => drop(rows.insert(key, value)),
                None => assert!(rows.remove(&key).is_some(), "what was never stored is deleted"),
            }
        }
    }

    pub(super) fn all(&self) -> std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
        self.0.lock().expect("nobody panicked").clone()
    }
}

#[cfg(test)]
impl StoredRows for MemoryRows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.0.lock().expect("nobody panicked").get(key).cloned())
    }

    fn range(&self, from: &[u8], until: &[u8], pairs_max: usize) -> Result<Vec<Pair>, StateError> {
        let rows = self.0.lock().expect("nobody panicked");
        let range = rows.range(from.to_vec()..until.to_vec());
        Ok(range.map(|(key, value)| (key.clone(), value.clone())).take(pairs_max).collect())
    }
}

/// Those in a node's state store.
#[derive(Debug)]
pub struct GroupRows {
    /// The store.
    pub reader: StateReader,
    /// Whose.
    pub group: GroupId,
}

impl StoredRows for GroupRows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.reader.get(self.group, key)
    }

    fn range(&self, from: &[u8], until: &[u8], pairs_max: usize) -> Result<Vec<Pair>, StateError> {
        self.reader.range(self.group, from, until, pairs_max)
    }
}

/// Those that came from another node: in their file, and once the store has them, there.
#[derive(Debug)]
pub struct SpooledRows(pub Arc<Spool>);

impl StoredRows for SpooledRows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.0.get(key)
    }

    fn range(&self, from: &[u8], until: &[u8], pairs_max: usize) -> Result<Vec<Pair>, StateError> {
        self.0.range(from, until, pairs_max)
    }
}

/// Those that came from another node, all of them in memory.
#[derive(Debug)]
pub(super) struct Pairs<'a>(Cow<'a, [Pair]>);

impl<'a> Pairs<'a> {
    pub(super) fn new(pairs: impl Into<Cow<'a, [Pair]>>) -> Self {
        let mut pairs = pairs.into();
        if !pairs.is_sorted_by_key(|(key, _)| key) {
            pairs.to_mut().sort_unstable();
        }
        Self(pairs)
    }

    fn position(&self, key: &[u8]) -> usize {
        self.0.partition_point(|(stored, _)| &stored[..] < key)
    }
}

impl StoredRows for Pairs<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let found = self.0.get(self.position(key)).filter(|(stored, _)| stored == key);
        Ok(found.map(|(_, value)| value.clone()))
    }

    fn range(&self, from: &[u8], until: &[u8], pairs_max: usize) -> Result<Vec<Pair>, StateError> {
        let pairs = self.0.get(self.position(from)..self.position(until)).unwrap_or_default();
        Ok(pairs.iter().take(pairs_max).cloned().collect())
    }
}
