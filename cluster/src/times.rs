//! How long something took, counted in buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, but for the last one, which has none. From what a disk with a cache takes to what makes an
/// operator get up.
pub const BOUNDS: [Duration; BUCKETS - 1] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// How many buckets there are.
pub const BUCKETS: usize = 17;

/// The bucket that a time belongs to.
#[must_use]
pub fn bucket_of(took: Duration) -> usize {
    BOUNDS.iter().position(|&bound| took <= bound).unwrap_or(BOUNDS.len())
}

/// Times by bucket, and their sum. Each is counted in one bucket only.
#[derive(Debug, Default)]
pub struct Times {
    buckets: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
}

impl Times {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        self.record_many(took, 1);
    }

    /// Counts several that took as long each.
    pub fn record_many(&self, took: Duration, count: u64) {
        self.add_to_bucket(bucket_of(took), count);
        self.add_to_sum(took.as_nanos() as u64 * count);
    }

    /// So many more in a bucket, one of [`BUCKETS`].
    pub fn add_to_bucket(&self, bucket: usize, count: u64) {
        self.buckets[bucket].fetch_add(count, Ordering::Relaxed);
    }

    /// So many nanoseconds more in all.
    pub fn add_to_sum(&self, nanoseconds: u64) {
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// How many there are in each bucket.
    #[must_use]
    pub fn buckets(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed))
    }

    /// All of them together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_once_under_the_next_bound() {
        let times = Times::default();
        times.record(Duration::ZERO);
        times.record(BOUNDS[3]);
        times.record_many(BOUNDS[3] + Duration::from_nanos(1), 2);
        times.record(Duration::from_secs(3600));
        let mut expected = [0; BUCKETS];
        (expected[0], expected[3], expected[4], expected[BUCKETS - 1]) = (1, 1, 2, 1);
        assert_eq!(times.buckets(), expected);
        assert_eq!(times.sum(), BOUNDS[3] * 3 + Duration::from_nanos(2) + Duration::from_secs(3600));
        assert!(BOUNDS.is_sorted());
    }
}
