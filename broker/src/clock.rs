//! The clocks of a node, and the one place that reads them.
//!
//! Whoever needs the time is handed a [`Clock`]. That of a simulation stands still until somebody moves it, so that a run
//! repeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kentongan_cluster::clock::boottime_ns;

/// The clocks of one start of a node. All clones count from the same start.
#[derive(Debug, Clone)]
pub struct Clock {
    source: Source,
    /// By how many milliseconds the cluster's wall clock is ahead of the time since this machine booted, or [`OWN_WALL_CLOCK`].
    cluster_ahead_ms: Arc<AtomicI64>,
}

/// There is nobody else whose wall clock is known.
const OWN_WALL_CLOCK: i64 = i64::MIN;

#[derive(Debug, Clone)]
enum Source {
    Real { started_ns: u64 },
    Manual { machine: Arc<ManualClock>, started_ns: u64 },
}

impl Clock {
    /// The clocks of this machine, for a process that starts now.
    #[must_use]
    pub fn real() -> Self {
        Self::of(Source::Real { started_ns: boottime_ns() })
    }

    /// The clocks of a simulated machine, for a process that starts there now.
    #[must_use]
    pub fn manual(machine: Arc<ManualClock>) -> Self {
        let started_ns = machine.boottime_ns();
        Self::of(Source::Manual { machine, started_ns })
    }

    fn of(source: Source) -> Self {
        Self { source, cluster_ahead_ms: Arc::new(AtomicI64::new(OWN_WALL_CLOCK)) }
    }

    /// Time since the process started, while the machine was suspended too: what expires does so meanwhile. Never goes back.
    #[inline]
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        let (Source::Real { started_ns } | Source::Manual { started_ns, .. }) = &self.source;
        Duration::from_nanos(self.boottime_ns().saturating_sub(*started_ns))
    }

    /// [`Self::elapsed`] in milliseconds: the process clock.
    #[inline]
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.elapsed().as_millis() as u64
    }

    /// Milliseconds since 1970 by the wall clock, which may jump, also backwards.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        match &self.source {
            Source::Real { .. } => {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
            }
            Source::Manual { machine, .. } => machine.wall_ms(),
        }
    }

    /// Nanoseconds since the machine booted, by which leases are counted; see [`kentongan_cluster::clock`].
    #[must_use]
    pub fn boottime_ns(&self) -> u64 {
        match &self.source {
            Source::Real { .. } => boottime_ns(),
            Source::Manual { machine, .. } => machine.boottime_ns(),
        }
    }

    /// Milliseconds since 1970 by the wall clocks of most nodes of the cluster: what concerns all of them goes by it, so that a node whose
    /// clock is wrong does not decide for the others. Where no other node has said what its clock says, [`Self::wall_ms`].
    #[must_use]
    pub fn cluster_wall_ms(&self) -> u64 {
        match self.cluster_ahead_ms.load(Ordering::Relaxed) {
            OWN_WALL_CLOCK => self.wall_ms(),
            ahead_ms => (self.boottime_ns() / 1_000_000).saturating_add_signed(ahead_ms),
        }
    }

    /// Whether some other node has said what its wall clock says.
    #[must_use]
    pub fn knows_cluster_wall(&self) -> bool {
        self.cluster_ahead_ms.load(Ordering::Relaxed) != OWN_WALL_CLOCK
    }

    /// By how many milliseconds the wall clock of the cluster is ahead of [`Self::boottime_ns`], if it is known.
    pub fn set_cluster_wall(&self, ahead_ms: Option<i64>) {
        self.cluster_ahead_ms.store(ahead_ms.unwrap_or(OWN_WALL_CLOCK), Ordering::Relaxed);
    }
}

/// The clocks of a simulated machine. They outlive the processes there.
#[derive(Debug)]
pub struct ManualClock {
    boottime_ns: AtomicU64,
    /// What the wall clock would have shown when the machine booted.
    wall_ms_at_boot: AtomicU64,
}

impl ManualClock {
    /// Those of a machine that boots now, when its wall clock shows `wall_ms`.
    #[must_use]
    pub fn new(wall_ms: u64) -> Self {
        Self { boottime_ns: AtomicU64::new(0), wall_ms_at_boot: AtomicU64::new(wall_ms) }
    }

    /// Time passes, on both clocks.
    pub fn advance(&self, by: Duration) {
        self.boottime_ns.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Somebody sets the wall clock.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        let up_ms = self.boottime_ns() / 1_000_000;
        self.wall_ms_at_boot.store(wall_ms.saturating_sub(up_ms), Ordering::Relaxed);
    }

    fn boottime_ns(&self) -> u64 {
        self.boottime_ns.load(Ordering::Relaxed)
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms_at_boot.load(Ordering::Relaxed) + self.boottime_ns() / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand_and_each_process_counts_from_its_own_start() {
        let machine = Arc::new(ManualClock::new(5_000));
        machine.advance(Duration::from_millis(250));
        let first = Clock::manual(Arc::clone(&machine));
        machine.advance(Duration::from_millis(1_750));
        let second = Clock::manual(Arc::clone(&machine));
        assert_eq!((first.now_ms(), second.now_ms()), (1_750, 0));
        assert_eq!(first.boottime_ns(), second.boottime_ns());
        assert_eq!((first.wall_ms(), second.wall_ms()), (7_000, 7_000));
    }

    #[test]
    fn who_sets_the_wall_clock_moves_no_other() {
        let machine = Arc::new(ManualClock::new(10_000));
        let clock = Clock::manual(Arc::clone(&machine));
        machine.advance(Duration::from_secs(2));
        machine.set_wall_ms(3_700);
        machine.advance(Duration::from_millis(1));
        assert_eq!((clock.wall_ms(), clock.now_ms()), (3_701, 2_001));
    }

    #[test]
    fn what_concerns_the_cluster_goes_by_its_wall_clock_whoever_sets_that_of_one_machine() {
        let machine = Arc::new(ManualClock::new(10_000_000));
        let clock = Clock::manual(Arc::clone(&machine));
        machine.advance(Duration::from_secs(2));
        assert_eq!(clock.cluster_wall_ms(), 10_002_000, "nobody else is known");
        clock.clone().set_cluster_wall(Some(6_000_000));
        assert_eq!(clock.cluster_wall_ms(), 6_002_000);
        machine.set_wall_ms(70_000_000);
        machine.advance(Duration::from_secs(1));
        assert_eq!((clock.wall_ms(), clock.cluster_wall_ms()), (70_001_000, 6_003_000));
        clock.set_cluster_wall(None);
        assert_eq!(clock.cluster_wall_ms(), 70_001_000);
    }

    /// A clock that stands still while the machine is suspended would deliver what expired meanwhile [MQTT-3.3.2-5].
    #[test]
    fn the_process_clock_goes_by_the_clock_that_runs_while_the_machine_is_suspended() {
        let since_boot = Clock::of(Source::Real { started_ns: 0 });
        let before = Duration::from_nanos(boottime_ns());
        let elapsed = since_boot.elapsed();
        assert!(before <= elapsed && elapsed <= Duration::from_nanos(boottime_ns()));
        let later = Clock::of(Source::Real { started_ns: boottime_ns() + 1_000_000_000_000 });
        assert_eq!(later.elapsed(), Duration::ZERO);
    }

    #[test]
    fn real_clocks_run_forward() {
        let clock = Clock::real();
        let (elapsed, boottime_ns) = (clock.elapsed(), clock.boottime_ns());
        assert!(clock.elapsed() >= elapsed && clock.boottime_ns() >= boottime_ns && boottime_ns > 0);
        assert!(clock.wall_ms() > 1_600_000_000_000, "after 2020");
    }
}
