//! How the transport's thread goes to rest: where much is said, not before others had their turn.
//!
//! Those who are about to say more then find the thread awake, and what they say goes in one frame. With threads that share
//! cores this saves a third of the transport's work; without, a yield costs one call. But to programs that compute for long it
//! would give away milliseconds, so it stops yielding for a while whenever one took the core.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Rests that follow each other by more than this are those of a quiet node: nothing would gather.
const DENSE: Duration = Duration::from_micros(500);

/// A yield that takes longer went to somebody who does not wait for us.
const YIELD_MAX: Duration = Duration::from_millis(2);

/// For so many times as long as that took, there is none.
const PAUSE_FACTOR: u32 = 10;

/// To be called whenever the thread is about to rest.
pub(super) fn give_way() -> impl Fn() + Send + Sync + 'static {
    let begun = Instant::now();
    let state = Resting::default();
    move || {
        let before = begun.elapsed();
        if state.should_yield(before) {
            thread::yield_now();
            state.yielded(before, begun.elapsed());
        }
    }
}

/// Microseconds of the thread's clock. Only that thread writes them.
#[derive(Debug, Default)]
struct Resting {
    rested: AtomicU64,
    not_before: AtomicU64,
}

impl Resting {
    fn should_yield(&self, now: Duration) -> bool {
        let now = micros(now);
        let rested = self.rested.swap(now, Ordering::Relaxed);
        now.saturating_sub(rested) < micros(DENSE) && now >= self.not_before.load(Ordering::Relaxed)
    }

    fn yielded(&self, before: Duration, after: Duration) {
        self.rested.store(micros(after), Ordering::Relaxed);
        let took = after.saturating_sub(before);
        if took > YIELD_MAX {
            self.not_before.store(micros(after + took * PAUSE_FACTOR), Ordering::Relaxed);
        }
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn a_quiet_node_yields_to_nobody() {
        let state = Resting::default();
        assert!(!state.should_yield(us(10_000)));
        assert!(!state.should_yield(us(11_000)));
        assert!(state.should_yield(us(11_100)), "more is being said");
        state.yielded(us(11_100), us(11_500));
        assert!(state.should_yield(us(11_900)), "counted from the end of the yield");
    }

    #[test]
    fn a_yield_that_took_long_is_the_last_one_for_a_while() {
        let state = Resting::default();
        assert!(state.should_yield(us(100)));
        state.yielded(us(100), us(3_100));
        for now in (3_200..33_100).step_by(100) {
            assert!(!state.should_yield(us(now)), "{now}");
        }
        assert!(state.should_yield(us(33_100)));
    }
}
