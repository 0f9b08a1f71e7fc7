//! Deadlines of an arbiter's connections: one coarse wheel, re-armed lazily.
//!
//! A connection that is active never touches the wheel: when its entry comes up, whoever owns the connection looks
//! at its last activity and says when to look again.

use std::time::Duration;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::client::Phase;

const SLOTS: usize = 512;

/// Whole seconds of the clock after which a client with this keep-alive has been silent for one and a half times that
/// [MQTT-3.1.2-22]: half a second counts as one, and what came, came late in its second.
pub fn silence_seconds_max(keep_alive_seconds: u16) -> u32 {
    (u32::from(keep_alive_seconds) * 3).div_ceil(2) + 1
}

/// A wheel of one-second slots.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<(ConnectionKey, u32)>>,
    /// The second whose slot is emptied next.
    next: u32,
}

impl Default for Wheel {
    fn default() -> Self {
        Self { slots: vec![Vec::new(); SLOTS], next: 0 }
    }
}

impl Wheel {
    /// Looks at `key` again in second `due` (at the earliest in the next one that passes).
    pub fn arm(&mut self, key: ConnectionKey, due: u32) {
        let due = due.max(self.next);
        self.slots[due as usize % SLOTS].push((key, due));
    }

    /// What is armed, in all.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.slots.iter().map(Vec::len).sum()
    }

    /// Every key that was due up to and including second `now` goes into `due`, in no particular order.
    pub fn advance(&mut self, now: u32, due: &mut Vec<ConnectionKey>) {
        let after = now.saturating_add(1).max(self.next);
        // Whoever comes after hours, as when the machine was suspended, looks at each slot once.
        let slots = ((after - self.next) as usize).min(SLOTS);
        let first = self.next as usize;
        for slot in (first..first + slots).map(|second| second % SLOTS) {
            self.slots[slot].retain(|&(key, second)| {
                if second <= now {
                    due.push(key);
                }
                second > now
            });
            if self.slots[slot].is_empty() {
                self.slots[slot] = Vec::new();
            }
        }
        self.next = after;
    }
}

/// Notices that an arbiter did not run for a while: the machine was suspended, the process stopped, or its virtual machine moved.
#[derive(Debug, Default)]
pub struct Standstill {
    /// When somebody looked last.
    seen: Option<Duration>,
}

/// Somebody looks each second, so that this was none of being late.
const STANDSTILL_MIN: Duration = Duration::from_secs(3);

impl Standstill {
    /// Whether nothing ran here since the last look, as [`Clock::elapsed`](crate::clock::Clock::elapsed) is now.
    pub fn is_over(&mut self, elapsed: Duration) -> bool {
        let before = self.seen.replace(elapsed).unwrap_or(elapsed);
        elapsed.saturating_sub(before) >= STANDSTILL_MIN
    }
}

impl ArbiterState {
    /// Looks whether nothing ran here for a while, before it is asked who has been silent for too long: what clients said meanwhile is still
    /// to be read.
    pub fn look_for_standstill(&mut self, standstill: &mut Standstill) {
        if standstill.is_over(self.shared.clock.elapsed()) {
            self.excuse_silence();
        }
    }

    /// Nobody can be blamed for what he did not say, or take, while nothing could be read or written here.
    pub(super) fn excuse_silence(&mut self) {
        self.read_clock();
        let now = self.now_seconds();
        for (_, client) in &mut self.clients {
            // Of those that go it is the second in which they are gone.
            if !matches!(client.phase, Phase::Leaving | Phase::Closing) {
                client.last_activity = now;
            }
            if client.blocked_since != 0 {
                client.blocked_since = now.max(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_comes_up_in_its_second_even_beyond_one_turn_of_the_wheel() {
        let mut wheel = Wheel::default();
        let near = ConnectionKey::new(0, 1, 0);
        let far = ConnectionKey::new(0, 2, 0);
        wheel.arm(near, 3);
        wheel.arm(far, 3 + SLOTS as u32);
        let mut due = Vec::new();
        wheel.advance(2, &mut due);
        assert_eq!(due, []);
        wheel.advance(3, &mut due);
        assert_eq!(due, [near]);
        due.clear();
        wheel.advance(2 + SLOTS as u32, &mut due);
        assert_eq!(due, []);
        wheel.advance(3 + SLOTS as u32, &mut due);
        assert_eq!(due, [far]);
    }

    #[test]
    fn a_standstill_is_what_no_look_that_is_only_late_makes() {
        let mut standstill = Standstill::default();
        let mut is_over = |elapsed_s| standstill.is_over(Duration::from_secs(elapsed_s));
        assert!(!is_over(100), "nobody looked before");
        assert!(!is_over(101) && !is_over(103));
        assert!(is_over(106) && is_over(3600));
        assert!(!is_over(3601), "it is told once");
    }

    #[test]
    fn after_a_leap_all_that_was_due_comes_up_and_nothing_else() {
        let mut wheel = Wheel::default();
        wheel.advance(99, &mut Vec::new());
        let week = 7 * 24 * 60 * 60;
        let keys: Vec<_> = (0..1200).map(|index| ConnectionKey::new(0, index, 0)).collect();
        // Half of them before the leap ends, in every slot, the others just behind it.
        let (before, behind) = keys.split_at(600);
        for (&key, second) in before.iter().zip(100..) {
            wheel.arm(key, second);
        }
        for (&key, second) in behind.iter().zip(week + 1..) {
            wheel.arm(key, second);
        }
        let mut due = Vec::new();
        wheel.advance(week, &mut due);
        due.sort_unstable_by_key(|key| key.index());
        assert_eq!(due, before);
        due.clear();
        for (&key, second) in behind.iter().zip(week + 1..) {
            wheel.advance(second, &mut due);
            assert_eq!(due.last(), Some(&key), "in its second");
        }
        assert_eq!(due, behind);
        wheel.advance(u32::MAX, &mut due);
        wheel.advance(u32::MAX, &mut due);
    }
}
