//! One clock and one list for all that the clients of a run see.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use kentongan_history::{Action, History, MessageId, Nanoseconds, Symbol, What};

pub struct Recorder {
    began: Instant,
    history: Mutex<History>,
    messages: AtomicU64,
}

impl Recorder {
    pub fn new() -> Self {
        Self { began: Instant::now(), history: Mutex::default(), messages: AtomicU64::new(0) }
    }

    /// A moment. Of what is sent it is taken before, of what comes after.
    pub fn now(&self) -> Nanoseconds {
        u64::try_from(self.began.elapsed().as_nanos()).expect("a test ends within centuries")
    }

    pub fn symbol(&self, name: &str) -> Symbol {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).symbol(name)
    }

    pub fn note(&self, what: What) {
        self.note_at(self.now(), what);
    }

    pub fn note_at(&self, at: Nanoseconds, what: What) {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).push(at, what);
    }

    pub fn note_client(&self, at: Nanoseconds, client: Symbol, connection: u32, node: u16, action: Action) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.push_client(at, client, connection, node, action);
    }

    /// A number that no other message has.
    pub fn message(&self) -> MessageId {
        MessageId(self.messages.fetch_add(1, Relaxed) + 1)
    }

    pub fn finish(self) -> History {
        let mut history = self.history.into_inner().unwrap_or_else(PoisonError::into_inner);
        history.sort();
        history
    }
}
