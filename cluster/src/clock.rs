//! The clock by which leases are counted.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine booted, time spent suspended included.
///
/// A clock that stands still in suspend (CLOCK_MONOTONIC) would tell a laptop that wakes after an hour that its lease is
/// still good, while the others have long declared it dead.
#[must_use]
pub fn boottime_ns() -> u64 {
    let now = clock_gettime(CLOCK);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;

/// The nearest there is elsewhere; not for clusters that hold data, since it may stand still in suspend.
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

#[cfg(test)]
mod tests {
    use super::boottime_ns;

    #[test]
    fn the_clock_runs_forward_from_boot() {
        let first = boottime_ns();
        assert!(first > 0);
        assert!(boottime_ns() >= first);
    }
}
