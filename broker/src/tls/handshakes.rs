//! How many handshakes there are, and what came of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::metrics::{HandshakeOutcome, TlsMetrics};

/// Time between two log lines about handshakes that failed: scanners and devices that nobody looks after make many.
const LOG_INTERVAL_SECONDS: u64 = 10;

/// The handshakes of one listener: one number, however often its certificates are read again.
#[derive(Debug, Default)]
pub struct Handshakes {
    in_progress: AtomicU32,
    metrics: TlsMetrics,
    logged_at: AtomicU64,
    unlogged: AtomicU64,
}

impl Handshakes {
    /// None, counted in `metrics`.
    #[must_use]
    pub fn new(metrics: TlsMetrics) -> Self {
        Self { metrics, ..Self::default() }
    }

    fn log_failure(&self, error: &rustls::Error) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let last = self.logged_at.load(Ordering::Relaxed);
        let is_turn = now >= last + LOG_INTERVAL_SECONDS || now < last;
        let is_mine =
            is_turn && self.logged_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_mine {
            let unlogged = self.unlogged.swap(0, Ordering::Relaxed);
            tracing::warn!(%error, unlogged, "a TLS handshake failed");
        } else {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A handshake that is going on. Dropped without an outcome, it was given up.
#[derive(Debug)]
pub struct HandshakeGuard {
    handshakes: Arc<Handshakes>,
    outcome: HandshakeOutcome,
}

impl HandshakeGuard {
    /// Counts one in, unless `handshakes_max` are going on; 0 means no bound.
    pub(crate) fn begin(handshakes: &Arc<Handshakes>, handshakes_max: u32) -> Option<Self> {
        let before = handshakes.in_progress.fetch_add(1, Ordering::Relaxed);
        if handshakes_max != 0 && before >= handshakes_max {
            handshakes.in_progress.fetch_sub(1, Ordering::Relaxed);
            handshakes.metrics.ended(HandshakeOutcome::Refused);
            return None;
        }
        handshakes.metrics.begun();
        Some(Self { handshakes: Arc::clone(handshakes), outcome: HandshakeOutcome::GivenUp })
    }

    /// It succeeded, and with a ticket if `resumed`.
    pub(crate) fn done(mut self, resumed: bool) {
        self.outcome = if resumed { HandshakeOutcome::Resumed } else { HandshakeOutcome::Full };
    }

    /// It failed, by the peer's doing or because the two do not fit.
    pub(crate) fn failed(&mut self, error: &rustls::Error) {
        self.outcome = HandshakeOutcome::Failed;
        self.handshakes.log_failure(error);
    }
}

impl Drop for HandshakeGuard {
    fn drop(&mut self) {
        self.handshakes.in_progress.fetch_sub(1, Ordering::Relaxed);
        self.handshakes.metrics.gone();
        self.handshakes.metrics.ended(self.outcome);
    }
}
