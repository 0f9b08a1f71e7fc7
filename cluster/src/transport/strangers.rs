//! What those may cost who connect to the port for peers, and have not shown that they are any, or are refused.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::lock;
use super::refusal::Refusal;
use super::stats::{TransportStats, count};
use crate::log_rate::LogRate;

/// The lines of the log about them.
#[derive(Debug)]
pub(super) struct Lines {
    since: Instant,
    rate: Mutex<LogRate>,
}

impl Lines {
    pub fn new() -> Self {
        Self { since: Instant::now(), rate: Mutex::default() }
    }

    /// Says why one of them was turned away, if there are not too many of them.
    pub fn warn(&self, from: SocketAddr, why: &str) {
        let Some(unlogged) = self.admit() else { return };
        tracing::warn!(%from, "{why}");
        if unlogged > 0 {
            tracing::warn!(unlogged, "before that more connections from no peers than are logged one by one");
        }
    }

    /// Says why one that speaks as a peer was refused, likewise.
    pub fn warn_refused(&self, refusal: &Refusal) {
        let Some(unlogged) = self.admit() else { return };
        tracing::warn!("a peer was refused: {refusal}");
        if unlogged > 0 {
            tracing::warn!(unlogged, "before that more peers were refused than are logged one by one");
        }
    }

    /// Whether one more is to be said, and how many were not since the last one that was.
    fn admit(&self) -> Option<u64> {
        let mut rate = lock(&self.rate);
        rate.admits(self.since.elapsed().as_secs() as u32).then(|| rate.take_unlogged())
    }

    /// How many had no line since the last that had one.
    #[cfg(test)]
    pub fn take_unlogged(&self) -> u64 {
        lock(&self.rate).take_unlogged()
    }
}

/// Whether a connection is a peer's for all that its certificate says.
#[derive(Debug, Clone, Default)]
pub(super) struct Proven(Arc<AtomicBool>);

impl Proven {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The connections that were accepted. Those of strangers end soon, by themselves or for others.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// The oldest first. Some of them may have ended.
    by_age: VecDeque<(AbortHandle, Proven)>,
}

impl Accepted {
    /// Whether there is room for one more; the oldest stranger makes it, if there are as many as may be, of all or of strangers. Whoever has
    /// none is counted.
    pub fn make_room(&mut self, connections_max: usize, strangers_max: usize, stats: &TransportStats) -> bool {
        let is_full = |by_age: &VecDeque<(AbortHandle, Proven)>| {
            let strangers = by_age.iter().filter(|(_, proven)| !proven.is_set()).count();
            by_age.len() >= connections_max || strangers >= strangers_max
        };
        if is_full(&self.by_age) {
            self.by_age.retain(|(task, _)| !task.is_finished());
        }
        if is_full(&self.by_age) {
            count(&stats.refused_connections);
            let stranger = self.by_age.iter().position(|(_, proven)| !proven.is_set());
            let Some((stranger, _)) = stranger.and_then(|at| self.by_age.remove(at)) else {
                return false;
            };
            stranger.abort();
        }
        true
    }

    pub fn add(&mut self, task: AbortHandle, proven: Proven) {
        self.by_age.push_back((task, proven));
    }
}
