//! What the transport counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::event::Class;

/// Counters of one class of traffic, over all peers.
#[derive(Debug, Default)]
pub struct ClassStats {
    /// Messages handed to the network.
    pub messages_sent: AtomicU64,
    /// Frames they were packed into.
    pub frames_sent: AtomicU64,
    /// Bytes of them with their headers.
    pub bytes_sent: AtomicU64,
    /// Messages handed to the sink.
    pub messages_received: AtomicU64,
    /// Frames they came in.
    pub frames_received: AtomicU64,
    /// Bytes of them with their headers.
    pub bytes_received: AtomicU64,
    /// Messages refused because the queue was full.
    pub refused_full: AtomicU64,
    /// Messages refused because there was no link.
    pub refused_down: AtomicU64,
    /// Messages that no frame can hold.
    pub refused_too_large: AtomicU64,
    /// The oldest Raft messages, dropped to make room for newer ones.
    pub dropped_oldest: AtomicU64,
    /// Messages that waited in the queue of a link that broke.
    pub dropped_reset: AtomicU64,
    /// Links that came up, in either direction.
    pub links_up: AtomicU64,
}

/// What the transport did, for metrics.
#[derive(Debug, Default)]
pub struct TransportStats {
    classes: [ClassStats; Class::COUNT],
    /// Connections dialled.
    pub dials: AtomicU64,
    /// Dials that came to no link.
    pub dials_failed: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections closed since there were too many, or plain TCP from elsewhere than this machine.
    pub refused_connections: AtomicU64,
    /// TLS handshakes that failed or took too long.
    pub failed_handshakes: AtomicU64,
    /// Connections that ended in an error, those that never spoke HTTP/2 among them.
    pub broken_connections: AtomicU64,
    /// Peers turned away for what they said of themselves.
    pub refused_peers: AtomicU64,
    /// Links ended for bytes that are no frame, or no batch.
    pub malformed_frames: AtomicU64,
    /// Links ended for a frame over the limit.
    pub oversize_frames: AtomicU64,
}

impl TransportStats {
    /// Those of one class.
    pub fn class(&self, class: Class) -> &ClassStats {
        &self.classes[class.index()]
    }
}

pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub(super) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}
