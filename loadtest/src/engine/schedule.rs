//! Work that is due at times fixed beforehand, whether or not the broker keeps up.

/// Ticks at an even rate. Tick n is due at `start + n / rate`, however late those before it came.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start_ns: u64,
    interval_ns: f64,
    /// Number of the next tick.
    next: u64,
}

impl Schedule {
    /// `per_second` ticks from `start_ns` on.
    pub fn new(start_ns: u64, per_second: f64) -> Self {
        assert!(per_second > 0.0, "a rate is above zero");
        Self { start_ns, interval_ns: 1e9 / per_second, next: 0 }
    }

    /// Begins again with tick 0 at `start_ns`.
    pub fn restart(&mut self, start_ns: u64) {
        self.start_ns = start_ns;
        self.next = 0;
    }

    /// When the next tick is due.
    pub fn next_due_ns(&self) -> u64 {
        self.start_ns + (self.next as f64 * self.interval_ns) as u64
    }

    /// The next tick, if it is due: its number and when it was due.
    pub fn take(&mut self, now_ns: u64) -> Option<(u64, u64)> {
        let due = self.next_due_ns();
        (due <= now_ns).then(|| {
            self.next += 1;
            (self.next - 1, due)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_due_by_the_plan_and_not_by_when_they_were_taken() {
        let mut schedule = Schedule::new(1000, 2e6);
        assert_eq!(schedule.take(999), None);
        assert_eq!(schedule.take(2100), Some((0, 1000)));
        assert_eq!(schedule.take(2100), Some((1, 1500)));
        assert_eq!(schedule.take(2100), Some((2, 2000)));
        assert_eq!(schedule.take(2100), None);
        assert_eq!(schedule.next_due_ns(), 2500);
    }

    #[test]
    fn rounding_does_not_add_up() {
        let mut schedule = Schedule::new(0, 30_000.0);
        let mut ticks = 0;
        while schedule.take(10_000_000_000 - 1).is_some() {
            ticks += 1;
        }
        assert_eq!(ticks, 300_000);
    }
}
