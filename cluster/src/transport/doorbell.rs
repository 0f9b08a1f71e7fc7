//! How other threads wake connections: by one system call for all that have something to send.
//!
//! Each wake-up that crosses into a runtime is a write to its eventfd, whether the thread sleeps or not. Arbiters and Raft
//! feed many links, and a round feeds all of them, so their wake-ups gather here, and only the first one rings.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;

/// Connections that are to be woken, and the task within the runtime that does it.
#[derive(Debug, Default)]
pub(super) struct Doorbell {
    waiting: Mutex<Vec<Waker>>,
    answering: AtomicWaker,
}

impl Doorbell {
    /// Sees to it that a connection is woken.
    pub(super) fn ring(&self, connection: Waker) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = waiting.is_empty();
        waiting.push(connection);
        drop(waiting);
        // Whoever came before has rung for this one too.
        if is_first {
            self.answering.wake();
        }
    }

    /// Wakes those that wait, in the task that does so for ever.
    pub(super) fn poll_answer(&self, context: &mut Context<'_>) -> Poll<Infallible> {
        // First: who comes after the taking finds nobody waiting, and rings.
        self.answering.register(context.waker());
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counting() -> (Arc<Counting>, Waker) {
        let counting = Arc::new(Counting::default());
        (Arc::clone(&counting), Waker::from(counting))
    }

    #[test]
    fn many_rings_are_one_wake_up_and_nobody_is_left_asleep() {
        let doorbell = Doorbell::default();
        let (rings, task) = counting();
        let (woken, connection) = counting();
        let count = |counting: &Counting| counting.0.load(Ordering::Relaxed);
        doorbell.ring(connection.clone());
        assert!(doorbell.poll_answer(&mut Context::from_waker(&task)).is_pending());
        assert_eq!((count(&rings), count(&woken)), (0, 1), "it rang before anybody listened");
        for _ in 0..3 {
            doorbell.ring(connection.clone());
        }
        assert_eq!((count(&rings), count(&woken)), (1, 1));
        assert!(doorbell.poll_answer(&mut Context::from_waker(&task)).is_pending());
        assert_eq!(count(&woken), 4);
        doorbell.ring(connection);
        assert_eq!(count(&rings), 2);
    }
}
