//! Until when the lease is valid, for the threads that acknowledge.

use std::sync::atomic::{AtomicU64, Ordering};

/// The end of this node's lease, written by its [`super::Holder`] and read wherever something is acknowledged.
///
/// The order of reading is part of the promise: **match, then read the clock, then ask [`LeaseCell::is_valid`]**, and only then
/// acknowledge, or mark an outbox entry as routed. If the clock is read first, once for a whole turn of a loop say,
/// the process may be stopped just then. While it stands, it is declared dead and lost, a subscriber elsewhere gets
/// its SUBACK without this node's confirmation, and a publish sent after that waits in the socket here. Continued, the
/// process would match it against what it knew before, and find the old time within the old lease.
#[derive(Debug)]
pub struct LeaseCell {
    /// Nanoseconds of [`crate::clock::boottime_ns`]; 0: no lease.
    valid_until: AtomicU64,
}

impl LeaseCell {
    /// No lease yet.
    #[must_use]
    pub fn new() -> Self {
        Self { valid_until: AtomicU64::new(0) }
    }

    /// The lease of a cluster of one, which nobody can take away.
    #[must_use]
    pub fn endless() -> Self {
        Self { valid_until: AtomicU64::new(u64::MAX) }
    }

    /// Whether the lease is valid at `now_ns`, which must have been read after the match.
    #[must_use]
    pub fn is_valid(&self, now_ns: u64) -> bool {
        now_ns < self.valid_until.load(Ordering::Acquire)
    }

    /// Until when; 0 for not at all, [`u64::MAX`] for as long as the node is alone.
    #[must_use]
    pub fn valid_until_ns(&self) -> u64 {
        self.valid_until.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, valid_until_ns: u64) {
        self.valid_until.store(valid_until_ns, Ordering::Release);
    }
}

impl Default for LeaseCell {
    fn default() -> Self {
        Self::new()
    }
}
