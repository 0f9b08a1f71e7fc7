//! How much a peer may have waiting here.
//!
//! A link is read only while what came over it and was not yet dealt with stays under a limit. When reading stops, the
//! windows of HTTP/2 fill, then the sender's queue, whose bound the sender's upper layer sees. So at most the limit, one
//! frame and one window lie here for a peer and class, whatever happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The limit of one peer and class. Outlives the links, so that reconnecting gains a peer nothing.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    held: AtomicUsize,
    room: Notify,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicUsize::new(0), room: Notify::new() })
    }

    /// Waits until more may be read.
    pub(super) async fn room(&self) {
        while self.held.load(Ordering::Acquire) >= self.limit {
            // A permit that was stored before this line is taken by it: no wake-up is lost.
            self.room.notified().await;
        }
    }

    pub(super) fn hold(self: &Arc<Self>, bytes: usize) -> Credit {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        Credit { budget: Arc::clone(self), bytes }
    }
}

/// Bytes held of what a peer may have waiting here; dropping it gives them back.
#[derive(Debug)]
pub struct Credit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Credit {
    fn drop(&mut self) {
        let before = self.budget.held.fetch_sub(self.bytes, Ordering::AcqRel);
        let after = before - self.bytes;
        if before >= self.budget.limit && after < self.budget.limit {
            self.budget.room.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn there_is_room_again_once_enough_was_given_back() {
        let budget = Budget::new(100);
        let first = budget.hold(60);
        assert!(budget.room().now_or_never().is_some());
        let second = budget.hold(60);
        let mut waiting = Box::pin(budget.room());
        assert!(waiting.as_mut().now_or_never().is_none(), "120 of 100 are held");
        drop(first);
        assert!(waiting.now_or_never().is_some());
        drop(second);
    }
}
