//! The text of `/metrics`, made as often as the thread that makes it has time for: it answers `/livez` too.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Time that making it may take at once.
const BURST: Duration = Duration::from_secs(1);

/// What it may take in the long run: one part of so many of all time.
const PART: u32 = 4;

/// What was made last, and how much may be made.
#[derive(Debug, Default)]
pub(super) struct Rendered(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    text: Bytes,
    budget: Budget,
}

impl Rendered {
    /// The text as `render` makes it now; if it was asked for too often, that of the last time.
    pub(super) fn text(&self, render: impl FnOnce() -> String) -> Bytes {
        // Whoever panicked left the text of before.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        if state.budget.has_time(began) {
            state.text = Bytes::from(render());
            state.budget.spend(began, Instant::now());
        }
        state.text.clone()
    }
}

/// What making it has taken of the time that it may take.
#[derive(Debug, Default)]
struct Budget {
    /// When that is made up for.
    until: Option<Instant>,
}

impl Budget {
    fn has_time(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now + BURST * PART)
    }

    fn spend(&mut self, began: Instant, ended: Instant) {
        let from = self.until.map_or(began, |until| until.max(began));
        self.until = Some(from + ended.saturating_duration_since(began) * PART);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Abuse: [http-bounds]
    #[test]
    fn a_text_that_is_asked_for_without_end_is_made_for_a_part_of_the_time() {
        let took = Duration::from_millis(50);
        let mut budget = Budget::default();
        let began = Instant::now();
        let (mut now, mut made) = (began, 0);
        while now - began < Duration::from_secs(100) {
            if budget.has_time(now) {
                budget.spend(now, now + took);
                now += took;
                made += 1;
            } else {
                now += Duration::from_millis(1);
            }
        }
        // A second's worth at first, then a fourth of a hundred.
        assert!((500..=530).contains(&made), "{made}");
    }

    #[test]
    fn what_was_made_last_is_shown_while_there_is_no_time() {
        let rendered = Rendered::default();
        assert_eq!(rendered.text(|| String::from("one")), "one");
        assert_eq!(rendered.text(|| String::from("two")), "two");
        let now = Instant::now();
        rendered.0.lock().unwrap().budget.until = Some(now + Duration::from_secs(3600));
        assert_eq!(rendered.text(|| String::from("three")), "two");
    }
}
