//! How long the disk has been at work, for whoever looks from another thread: one that does not return moves no other figure.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the log waits for now: a write, a sync, or whatever else it asks of the disk.
#[derive(Debug, Default)]
pub struct UnderWay {
    began: Mutex<Option<Instant>>,
}

impl UnderWay {
    /// Something begins, and is over when what this returns is dropped. One at a time.
    pub(super) fn begin(self: &Arc<Self>) -> Ends {
        self.set(Some(Instant::now()));
        Ends(Arc::clone(self))
    }

    /// How long it has taken so far; 0 if nothing is waited for.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.began.lock().unwrap_or_else(PoisonError::into_inner).map_or(Duration::ZERO, |began| began.elapsed())
    }

    fn set(&self, began: Option<Instant>) {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }
}

/// Ends what was begun.
pub(super) struct Ends(Arc<UnderWay>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.set(None);
    }
}
