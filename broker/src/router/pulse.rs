//! Whether the arbiters' loops turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Event, Shared};

/// A question to all arbiters, put into their inboxes like everything that comes from other threads: one that does not turn
/// never takes it out.
#[derive(Debug)]
pub struct Pulse {
    unanswered: Arc<AtomicUsize>,
}

impl Pulse {
    /// Asks all of them.
    #[must_use]
    pub fn ask(shared: &Shared) -> Self {
        let unanswered = Arc::new(AtomicUsize::new(shared.inboxes.len()));
        for inbox in &shared.inboxes {
            inbox.push(Event::Pulse(Arc::clone(&unanswered)), 0);
        }
        Self { unanswered }
    }

    /// Whether all of them have answered.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) == 0
    }
}
