//! How many handshakes there are, and what came of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The handshakes of one listener: one number, however often its certificates are read again.
#[derive(Debug, Default)]
pub struct Handshakes {
    in_progress: AtomicU32,
}

impl Handshakes {
    /// Handshakes that have begun and not ended.
    #[must_use]
    pub fn in_progress(&self) -> u32 {
        self.in_progress.load(Ordering::Relaxed)
    }
}

/// A handshake that is going on. Dropped without an outcome, it was given up.
#[derive(Debug)]
pub(crate) struct HandshakeGuard {
    handshakes: Arc<Handshakes>,
}

impl HandshakeGuard {
    pub(super) fn begin(handshakes: &Arc<Handshakes>) -> Self {
        handshakes.in_progress.fetch_add(1, Ordering::Relaxed);
        Self { handshakes: Arc::clone(handshakes) }
    }

    /// It succeeded, and with a ticket if `resumed`.
    pub(crate) fn done(self, _resumed: bool) {}

    /// It failed, by the peer's doing or because the two do not fit.
    pub(crate) fn failed(&mut self, error: &rustls::Error) {
        tracing::debug!(%error, "a TLS handshake failed");
    }
}

impl Drop for HandshakeGuard {
    fn drop(&mut self) {
        self.handshakes.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}
