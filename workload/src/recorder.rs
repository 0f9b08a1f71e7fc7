//! One clock and one list for all that the clients of a run see.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use kentongan_history::{Action, History, MessageId, Nanoseconds, Symbol, What};

/// Where the clients of a run note what they see.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    history: Mutex<History>,
    messages: AtomicU64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { began: Instant::now(), history: Mutex::default(), messages: AtomicU64::new(0) }
    }
}

impl Recorder {
    /// One whose clock begins now.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A moment. Of what is sent it is taken before, of what comes after.
    pub fn now(&self) -> Nanoseconds {
        u64::try_from(self.began.elapsed().as_nanos()).expect("a run ends within centuries")
    }

    /// The symbol of a text.
    pub fn symbol(&self, name: &str) -> Symbol {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).symbol(name)
    }

    /// Notes what happens now.
    pub fn note(&self, what: What) {
        self.note_at(self.now(), what);
    }

    /// Notes what happened then.
    pub fn note_at(&self, at: Nanoseconds, what: What) {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).push(at, what);
    }

    /// Notes what a client sent, received or saw.
    pub fn note_client(&self, at: Nanoseconds, client: Symbol, connection: u32, node: u16, action: Action) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.push_client(at, client, connection, node, action);
    }

    /// A number that no other message has.
    pub fn message(&self) -> MessageId {
        MessageId(self.messages.fetch_add(1, Relaxed) + 1)
    }

    /// All of it, in its order.
    #[must_use]
    pub fn finish(self) -> History {
        let mut history = self.history.into_inner().unwrap_or_else(PoisonError::into_inner);
        history.sort();
        history
    }
}
