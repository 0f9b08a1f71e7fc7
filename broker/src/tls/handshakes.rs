//! How many handshakes there are, and what came of them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;

use crate::config::ListenAddress;
use crate::connection::Spoken;
use crate::metrics::{HandshakeOutcome, TlsMetrics};

/// Time between two log lines about handshakes that failed: scanners and devices that nobody looks after make many.
const LOG_INTERVAL_SECONDS: u64 = 10;

/// The handshakes of one listener: one number, however often its certificates are read again.
#[derive(Debug, Default)]
pub struct Handshakes {
    in_progress: AtomicU32,
    /// Of each address that has some, how many of them. No more addresses than handshakes.
    by_address: Mutex<HashMap<IpAddr, u32>>,
    /// Its address, for the log.
    listener: String,
    metrics: TlsMetrics,
    logged_at: AtomicU64,
    unlogged: AtomicU64,
}

impl Handshakes {
    /// None, of the listener at this address, counted in `metrics`.
    #[must_use]
    pub fn new(listener: &ListenAddress, metrics: TlsMetrics) -> Self {
        Self { listener: listener.to_string(), metrics, ..Self::default() }
    }

    /// Counts one of `address` in. One address has no more than are still free: alone it gets half of them, and whatever it
    /// does with those, for somebody else there is room.
    fn take(&self, address: IpAddr, free: u32) -> bool {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        // Where there is none yet, one is free.
        let has_room = *count < free;
        if has_room {
            *count += 1;
        } else if *count == 0 {
            by_address.remove(&address);
        }
        has_room
    }

    fn give_back(&self, address: IpAddr) {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&address);
            }
        }
    }

    fn log_failure(&self, error: &rustls::Error, spoken: Option<Spoken>, address: Option<IpAddr>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let last = self.logged_at.load(Ordering::Relaxed);
        let is_turn = now >= last + LOG_INTERVAL_SECONDS || now < last;
        let is_mine =
            is_turn && self.logged_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_mine {
            let unlogged = self.unlogged.swap(0, Ordering::Relaxed);
            let address = address.map(tracing::field::display);
            let listener = &self.listener;
            match spoken {
                Some(spoken) => {
                    tracing::warn!(
                        listener,
                        address,
                        unlogged,
                        "a TLS handshake failed: the client speaks {spoken} without TLS"
                    );
                }
                None => tracing::warn!(listener, address, unlogged, "a TLS handshake failed: {error}"),
            }
        } else {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A handshake that is going on. Dropped without an outcome, it was given up.
#[derive(Debug)]
pub struct HandshakeGuard {
    handshakes: Arc<Handshakes>,
    /// Where it counts too.
    address: Option<IpAddr>,
    outcome: HandshakeOutcome,
}

impl HandshakeGuard {
    /// Counts one in, unless `handshakes_max` are going on, or as many as there may be of `address`; 0 means no bound.
    pub(crate) fn begin(handshakes: &Arc<Handshakes>, handshakes_max: u32, address: Option<IpAddr>) -> Option<Self> {
        let before = handshakes.in_progress.fetch_add(1, Ordering::Relaxed);
        let free = handshakes_max.saturating_sub(before);
        let address = address.filter(|_| handshakes_max != 0);
        let has_room = handshakes_max == 0 || free > 0;
        if !has_room || address.is_some_and(|address| !handshakes.take(address, free)) {
            handshakes.in_progress.fetch_sub(1, Ordering::Relaxed);
            handshakes.metrics.ended(HandshakeOutcome::Refused);
            return None;
        }
        handshakes.metrics.begun();
        Some(Self { handshakes: Arc::clone(handshakes), address, outcome: HandshakeOutcome::GivenUp })
    }

    /// Counts it for `address` too, of which nothing was known when it began. `false`: there are as many of that address as there may
    /// be, and it must not go on.
    pub(crate) fn count_for(&mut self, address: IpAddr, handshakes_max: u32) -> bool {
        if handshakes_max == 0 || self.address.is_some() {
            return true;
        }
        let others = self.handshakes.in_progress.load(Ordering::Relaxed).saturating_sub(1);
        if !self.handshakes.take(address, handshakes_max.saturating_sub(others)) {
            self.outcome = HandshakeOutcome::Refused;
            return false;
        }
        self.address = Some(address);
        true
    }

    /// It succeeded, and with a ticket if `resumed`.
    pub(crate) fn done(mut self, resumed: bool) {
        self.outcome = if resumed { HandshakeOutcome::Resumed } else { HandshakeOutcome::Full };
    }

    /// It failed, by the peer's doing or because the two do not fit. `spoken`: what came instead of TLS, if that is known.
    pub(crate) fn failed(&mut self, error: &rustls::Error, spoken: Option<Spoken>) {
        self.outcome = HandshakeOutcome::Failed;
        self.handshakes.log_failure(error, spoken, self.address);
    }
}

impl Drop for HandshakeGuard {
    fn drop(&mut self) {
        self.handshakes.in_progress.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.address {
            self.handshakes.give_back(address);
        }
        self.handshakes.metrics.gone();
        self.handshakes.metrics.ended(self.outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u32 = 64;

    /// As many as `address` gets.
    fn take_all(handshakes: &Arc<Handshakes>, address: Option<[u8; 4]>) -> Vec<HandshakeGuard> {
        let begin = || HandshakeGuard::begin(handshakes, MAX, address.map(IpAddr::from));
        std::iter::from_fn(begin).take(1000).collect()
    }

    /// Who takes handshakes up and does nothing with them leaves some to others; all together never have more than there are.
    #[test]
    fn nobody_has_more_handshakes_than_are_left_for_others() {
        let handshakes = Arc::new(Handshakes::default());
        let first = take_all(&handshakes, Some([10, 0, 0, 1]));
        assert_eq!(first.len(), 32);
        let second = take_all(&handshakes, Some([10, 0, 0, 2]));
        assert_eq!(second.len(), 16);
        let others: Vec<_> = (0..=255).flat_map(|number| take_all(&handshakes, Some([10, 0, 1, number]))).collect();
        assert_eq!(first.len() + second.len() + others.len(), MAX as usize);
        drop(first);
        assert!(!take_all(&handshakes, Some([10, 0, 0, 2])).is_empty());
        drop((second, others));
        assert!(handshakes.by_address.lock().unwrap().is_empty());
        assert_eq!(take_all(&handshakes, Some([10, 0, 0, 1])).len(), 32);
    }

    /// A balancer stands for many.
    #[test]
    fn without_an_address_there_is_one_bound_and_without_a_bound_no_address_counts() {
        let handshakes = Arc::new(Handshakes::default());
        assert_eq!(take_all(&handshakes, None).len(), MAX as usize);
        let unbounded: Vec<_> =
            (0..1000).map_while(|_| HandshakeGuard::begin(&handshakes, 0, Some([10, 0, 0, 1].into()))).collect();
        assert_eq!(unbounded.len(), 1000);
        assert!(handshakes.by_address.lock().unwrap().is_empty());
    }
}
