//! Passwords that were right a moment ago, so that a fleet that comes back is not verified again one by one.
//!
//! Not the passwords themselves: a keyed hash of user, password and generation of the file, under a key that this process draws
//! at its start and tells nobody. What the table holds is worth nothing to whoever reads it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use ring::rand::SystemRandom;
use ring::{digest, hmac};

type Mark = [u8; digest::SHA256_OUTPUT_LEN];

#[derive(Debug, Default)]
struct Table {
    /// Until when, in milliseconds of the process clock.
    until_ms: HashMap<Mark, u64, RandomState>,
    /// The oldest first; each mark stands here once.
    order: VecDeque<Mark>,
}

/// Verified credentials, each for a while.
#[derive(Debug)]
pub struct Remembered {
    key: hmac::Key,
    table: Mutex<Table>,
    count_max: usize,
    milliseconds: u64,
}

impl Remembered {
    /// Remembers at most `count_max`, each for `seconds`. `None`: nothing is to be remembered.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new(count_max: usize, seconds: u32) -> anyhow::Result<Option<Self>> {
        if count_max == 0 || seconds == 0 {
            return Ok(None);
        }
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        Ok(Some(Self { key, table: Mutex::default(), count_max, milliseconds: u64::from(seconds) * 1000 }))
    }

    fn mark(&self, generation: u64, user: &str, password: &[u8]) -> Mark {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&generation.to_le_bytes());
        // Or the end of one would pass for the beginning of the other.
        context.update(&(user.len() as u64).to_le_bytes());
        context.update(user.as_bytes());
        context.update(password);
        let mut mark = Mark::default();
        mark.copy_from_slice(context.sign().as_ref());
        mark
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether they were verified against that generation of the file, not long ago.
    #[must_use]
    pub fn knows(&self, generation: u64, user: &str, password: &[u8], now_ms: u64) -> bool {
        let mark = self.mark(generation, user, password);
        self.table().until_ms.get(&mark).is_some_and(|&until| now_ms < until)
    }

    /// They were verified. The oldest is forgotten if there are too many.
    pub fn remember(&self, generation: u64, user: &str, password: &[u8], now_ms: u64) {
        let mark = self.mark(generation, user, password);
        let mut table = self.table();
        if table.until_ms.insert(mark, now_ms + self.milliseconds).is_none() {
            table.order.push_back(mark);
        }
        while table.order.len() > self.count_max {
            if let Some(oldest) = table.order.pop_front() {
                table.until_ms.remove(&oldest);
            }
        }
    }

    /// Another file is in force: what was verified against the one before counts no more.
    pub fn forget_all(&self) {
        *self.table() = Table::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_verified_is_known_for_a_while() {
        let remembered = Remembered::new(10, 5).expect("randomness").expect("something to remember");
        remembered.remember(1, "ab", b"c", 1_000);
        assert!(remembered.knows(1, "ab", b"c", 5_999));
        assert!(!remembered.knows(1, "ab", b"c", 6_000), "not for ever");
        assert!(!remembered.knows(1, "a", b"bc", 2_000), "not somebody else's");
        assert!(!remembered.knows(1, "ab", b"d", 2_000));
        assert!(!remembered.knows(2, "ab", b"c", 2_000), "not by another file");
        remembered.forget_all();
        assert!(!remembered.knows(1, "ab", b"c", 2_000));
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let remembered = Remembered::new(2, 5).expect("randomness").expect("something to remember");
        for user in ["a", "b", "a", "c"] {
            remembered.remember(1, user, b"x", 0);
        }
        let known = ["a", "b", "c"].map(|user| remembered.knows(1, user, b"x", 1));
        assert_eq!(known, [false, true, true]);
        assert_eq!(remembered.table().until_ms.len(), 2);
        assert!(Remembered::new(0, 5).expect("nothing drawn").is_none());
    }
}
