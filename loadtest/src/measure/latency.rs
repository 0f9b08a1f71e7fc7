//! Latencies, from the send timestamp in a payload to its arrival.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A histogram of nanoseconds, exact to three digits, up to a minute.
#[derive(Debug, Clone)]
pub struct Latency(Histogram<u64>);

/// The figures of one histogram that people compare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// How many arrivals were measured.
    pub count: u64,
    /// Microseconds.
    pub mean_us: f64,
    /// Microseconds that half of the messages did not exceed.
    pub p50_us: f64,
    /// Microseconds that 99 % of the messages did not exceed.
    pub p99_us: f64,
    /// Microseconds that 99.9 % of the messages did not exceed.
    pub p999_us: f64,
    /// Microseconds of the slowest.
    pub max_us: f64,
}

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("fixed bounds are valid"))
    }
}

impl Latency {
    /// Takes one latency; what exceeds a minute counts as a minute.
    #[inline]
    pub fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    /// Forgets everything, for the end of a warm-up.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// The figures so far.
    pub fn summary(&self) -> LatencySummary {
        let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        LatencySummary {
            count: self.0.len(),
            mean_us: self.0.mean() / 1e3,
            p50_us: us(self.0.value_at_quantile(0.5)),
            p99_us: us(self.0.value_at_quantile(0.99)),
            p999_us: us(self.0.value_at_quantile(0.999)),
            max_us: us(self.0.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_values_within_a_thousandth() {
        let mut latency = Latency::default();
        for microsecond in 1..=1000 {
            latency.record(microsecond * 1000);
        }
        let summary = latency.summary();
        assert_eq!(summary.count, 1000);
        for (figure, expected) in [
            (summary.p50_us, 500.0),
            (summary.p99_us, 990.0),
            (summary.p999_us, 999.0),
            (summary.max_us, 1000.0),
            (summary.mean_us, 500.5),
        ] {
            assert!((figure - expected).abs() <= expected / 500.0, "{figure} is not {expected}");
        }
    }

    #[test]
    fn values_out_of_range_are_kept_as_the_bound() {
        let mut latency = Latency::default();
        latency.record(0);
        latency.record(u64::MAX);
        assert_eq!(latency.summary().count, 2);
        assert!(latency.summary().max_us >= 60e6);
    }

    #[test]
    fn reset_forgets() {
        let mut latency = Latency::default();
        latency.record(5);
        latency.reset();
        assert_eq!(latency.summary().count, 0);
    }
}
