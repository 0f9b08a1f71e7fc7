//! How long something took, as one arbiter counts it.

use std::cell::Cell;
use std::time::Duration;

use kentongan_cluster::times::{BUCKETS, Times, bucket_of};

use super::counters::{Flushed, LabelInfo, is_counting};
use super::page::Page;
use super::{Family, Kind};

/// Times between two flushes.
#[derive(Debug, Default)]
pub struct TimeCounts {
    buckets: [Cell<u64>; BUCKETS],
    nanoseconds: Cell<u64>,
}

impl TimeCounts {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        if is_counting() {
            let bucket = &self.buckets[bucket_of(took)];
            bucket.set(bucket.get() + 1);
            self.nanoseconds.set(self.nanoseconds.get().wrapping_add(took.as_nanos() as u64));
        }
    }

    /// How many gathered since the last flush.
    #[must_use]
    pub fn unflushed(&self) -> u64 {
        self.buckets.iter().map(Cell::get).sum()
    }
}

impl Flushed for TimeCounts {
    type Total = Times;

    const KIND: Kind = Kind::Histogram;
    const LABEL: Option<LabelInfo> = None;

    fn register(_: &'static str) -> Times {
        Times::default()
    }

    fn flush(&self, total: &Times) {
        for (bucket, count) in self.buckets.iter().map(Cell::take).enumerate().filter(|&(_, count)| count > 0) {
            total.add_to_bucket(bucket, count);
        }
        total.add_to_sum(self.nanoseconds.take());
    }

    /// The recorder of the `metrics` crate would have to be told of each.
    fn render(total: &Times, family: &Family, page: &mut Page<'_>) {
        page.times(family, total);
    }
}
