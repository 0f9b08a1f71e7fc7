//! Deadlines of an arbiter's connections: one coarse wheel, re-armed lazily.
//!
//! A connection that is active never touches the wheel: when its entry comes up, whoever owns the connection looks
//! at its last activity and says when to look again.

use super::ConnectionKey;

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
        while self.next <= now {
            let slot = self.next as usize % SLOTS;
            let current = self.next;
            self.slots[slot].retain(|&(key, second)| {
                if second <= current {
                    due.push(key);
                }
                second > current
            });
            if self.slots[slot].is_empty() {
                self.slots[slot] = Vec::new();
            }
            self.next += 1;
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
}
