//! A part of a shared table, and how often it changed.
//!
//! Tried by loom (in the tests of the parent module), which puts its own types in the place of `sync`.

use super::sync::{AtomicU64, Ordering, PoisonError, RwLock};

/// State that many threads read, and a number that says whether something read earlier still holds.
///
/// The number's lowest bit tells whether there is anything at all, so that a look-up passes an empty shard without
/// touching its lock.
#[derive(Debug)]
pub struct Shard<T> {
    generation: AtomicU64,
    guarded: RwLock<Guarded<T>>,
}

#[derive(Debug)]
struct Guarded<T> {
    state: T,
    /// Kept here so that a writer only stores the generation. Were it loaded just before, loom would take that for
    /// the last access that may be reordered with the store, and not try the readers' ones.
    edits: u64,
}

/// What an edit did to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// What was read earlier still holds.
    None,
    /// What was read earlier may be wrong. Says whether anything is left in the shard.
    Changed { occupied: bool },
}

impl<T> Shard<T> {
    /// Empty as `state` is.
    pub fn new(state: T) -> Self {
        Self { generation: AtomicU64::new(0), guarded: RwLock::new(Guarded { state, edits: 0 }) }
    }

    /// Calls `look` unless the shard is empty, and returns the generation that what it saw is at least of.
    ///
    /// The number is taken *before* the look: a change that comes between makes the result look outdated although it
    /// is not, never the other way round.
    #[inline]
    pub fn read(&self, look: impl FnOnce(&T)) -> u64 {
        let generation = self.generation();
        if generation & 1 == 1 {
            look(&self.guarded.read().unwrap_or_else(PoisonError::into_inner).state);
        }
        generation
    }

    /// Whether nothing changed since [`Self::read`] returned this number is whether it still returns it.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Changes the state. The new generation is visible before this returns, and not before the change is: whoever
    /// sees it and then reads waits for the lock.
    pub fn write<R>(&self, edit: impl FnOnce(&mut T) -> (R, Change)) -> R {
        let mut guarded = self.guarded.write().unwrap_or_else(PoisonError::into_inner);
        let (result, change) = edit(&mut guarded.state);
        if let Change::Changed { occupied } = change {
            guarded.edits += 1;
            self.generation.store(guarded.edits << 1 | u64::from(occupied), Ordering::Release);
        }
        result
    }

    /// Looks at the state, for figures.
    pub fn inspect<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.guarded.read().unwrap_or_else(PoisonError::into_inner).state)
    }
}
