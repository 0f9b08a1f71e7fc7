//! Bounds that do not fit together.

use super::Settings;

/// Logs a warning if what is kept for good may fill memory so far that nobody is let in.
pub fn warn_of_bounds(settings: &Settings) {
    if may_shut_everybody_out(settings) {
        tracing::warn!(
            retained_bytes_max = settings.retained.bytes_max,
            queue_memory_bytes_max = settings.session.queue_memory_bytes_max,
            delayed_bytes_max = settings.delayed.bytes_max,
            memory_bytes_high_water = settings.limits.memory_bytes_high_water,
            "retained and delayed messages and queues may fill memory up to its mark, and then nobody is let in, not even to delete some: \
             together they should stay below three quarters of it (retained.bytes_max, delayed.bytes_max, session.queue_memory_bytes_max)"
        );
    }
}

/// What publishers fill does not get less when they are refused, and is there again after a start.
fn may_shut_everybody_out(settings: &Settings) -> bool {
    let mark = settings.limits.memory_bytes_high_water;
    let (retained, delayed) = (settings.retained.bytes_max, settings.delayed.bytes_max);
    let together = retained.saturating_add(delayed).saturating_add(settings.session.queue_memory_bytes_max);
    mark != 0 && (retained == 0 || delayed == 0 || together > mark / 4 * 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1024 * 1024 * 1024;

    #[test]
    fn what_is_kept_for_good_is_to_leave_room_below_the_mark() {
        let with_delayed = |mark: u64, retained: u64, queues: u64, delayed: u64| {
            let mut settings = Settings::default();
            settings.limits.memory_bytes_high_water = mark;
            settings.retained.bytes_max = retained;
            settings.session.queue_memory_bytes_max = queues;
            settings.delayed.bytes_max = delayed;
            may_shut_everybody_out(&settings)
        };
        let with = |mark, retained, queues| with_delayed(mark, retained, queues, 1);
        assert!(!may_shut_everybody_out(&Settings::default()), "without a mark nobody is refused");
        assert!(with(GIB, GIB, GIB / 4));
        assert!(with(GIB, GIB / 2 + 1, GIB / 4));
        assert!(!with(GIB, GIB / 2, GIB / 4 - 1));
        assert!(with_delayed(GIB, GIB / 4, GIB / 4, GIB / 4 + 1));
        assert!(with_delayed(GIB, GIB / 4, GIB / 4, 0));
        assert!(with(GIB, 0, 0), "no bound at all");
        assert!(with(GIB, u64::MAX, 1));
    }
}
