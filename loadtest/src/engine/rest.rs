//! Keeps the generator from being the bottleneck of what it measures.
//!
//! A generator that is always busy measures itself. In a closed loop it can simply rest: then what is under way waits
//! for it, and the broker has as much to do as before for each message.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::measure::{SECOND, now_ns};

/// How often the share is looked at.
const WINDOW_NS: u64 = SECOND / 1000;

/// CPU time in percent of the time that passed, above which the generator rests. A measurement is void from 90 on.
const BUSY_PERCENT_MAX: u64 = 85;

/// The generator's own CPU time since a moment.
#[derive(Debug)]
pub struct Rest {
    since_ns: u64,
    cpu_since_ns: u64,
}

impl Rest {
    /// From now on.
    pub fn begin() -> Self {
        Self { since_ns: now_ns(), cpu_since_ns: thread_cpu_ns() }
    }

    /// Sleeps as long as it takes to have been busy for no more than the allowed share.
    pub fn take(&mut self) {
        let passed = now_ns() - self.since_ns;
        if passed < WINDOW_NS {
            return;
        }
        let rest_ns = due_rest_ns(thread_cpu_ns() - self.cpu_since_ns, passed);
        if rest_ns > 0 {
            std::thread::sleep(Duration::from_nanos(rest_ns));
        }
        *self = Self::begin();
    }
}

fn due_rest_ns(busy_ns: u64, passed_ns: u64) -> u64 {
    (busy_ns * 100 / BUSY_PERCENT_MAX).saturating_sub(passed_ns)
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_busy_rest() {
        assert_eq!(due_rest_ns(850, 1000), 0);
        assert_eq!(due_rest_ns(100, 1000), 0);
        assert_eq!(due_rest_ns(1000, 1000), 176);
    }

    #[test]
    fn a_busy_thread_is_brought_to_its_share() {
        let mut rest = Rest::begin();
        let (begun, cpu) = (now_ns(), thread_cpu_ns());
        while now_ns() - begun < SECOND / 10 {
            rest.take();
        }
        let share = (thread_cpu_ns() - cpu) * 100 / (now_ns() - begun);
        assert!(share <= BUSY_PERCENT_MAX + 4, "{share} %");
    }
}
