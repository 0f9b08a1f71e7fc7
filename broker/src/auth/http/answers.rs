//! Decisions of the server that are not asked for again for a while.
//!
//! Each stands under a keyed hash of everything that was asked, the password among it, under a key that this process draws at its start
//! and tells nobody: what the table holds is worth nothing to whoever reads it. Rights that came with a decision are kept with it.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use ring::rand::SystemRandom;
use ring::{digest, hmac};

use super::contract::{Allowed, Decision};

/// What all the rules in the table may take, about.
const RULES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An entry without rules.
const ENTRY_BYTES: usize = 128;

/// What a question is known by.
pub type Mark = [u8; digest::SHA256_OUTPUT_LEN];

#[derive(Debug)]
struct Entry {
    decision: Decision,
    /// Of who it is about: a decision to let somebody in may be taken back.
    identity: u64,
    decided_ms: u64,
    until_ms: u64,
}

impl Entry {
    fn bytes(&self) -> usize {
        let rules = match &self.decision {
            Decision::Allow(Allowed { rules: Some(rules), .. }) => rules.bytes(),
            _ => 0,
        };
        ENTRY_BYTES + rules
    }
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Mark, Entry, RandomState>,
    /// The oldest first; each mark stands here once.
    order: VecDeque<Mark>,
    bytes: usize,
    /// Until when decisions about somebody count no more, in milliseconds of the process clock.
    taken_back: HashMap<u64, u64, RandomState>,
}

impl Table {
    fn insert(&mut self, mark: Mark, entry: Entry) {
        self.bytes += entry.bytes();
        match self.entries.insert(mark, entry) {
            Some(before) => self.bytes -= before.bytes(),
            None => self.order.push_back(mark),
        }
    }

    fn forget_oldest(&mut self) {
        let entry = self.order.pop_front().and_then(|oldest| self.entries.remove(&oldest));
        self.bytes -= entry.map_or(0, |entry| entry.bytes());
    }
}

/// Decisions, each for a while.
#[derive(Debug)]
pub struct Answers {
    key: hmac::Key,
    hasher: RandomState,
    table: Mutex<Table>,
    count_max: usize,
}

impl Answers {
    /// Remembers at most `count_max`.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new(count_max: usize) -> anyhow::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        Ok(Self { key, hasher: RandomState::default(), table: Mutex::default(), count_max })
    }

    /// Of a request, under the settings of that generation.
    #[must_use]
    pub fn mark(&self, generation: u64, request: &[u8]) -> Mark {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&generation.to_le_bytes());
        context.update(request);
        let mut mark = Mark::default();
        mark.copy_from_slice(context.sign().as_ref());
        mark
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was decided not long ago, and when.
    #[must_use]
    pub fn find(&self, mark: &Mark, now_ms: u64) -> Option<(Decision, u64)> {
        let table = self.table();
        let entry = table.entries.get(mark).filter(|entry| now_ms < entry.until_ms)?;
        let is_taken_back = table.taken_back.get(&entry.identity).is_some_and(|&until| entry.decided_ms <= until);
        (!is_taken_back).then(|| (entry.decision.clone(), entry.decided_ms))
    }

    /// Keeps a decision about `identity` for `seconds`. The oldest are forgotten if there are too many.
    pub fn remember(&self, mark: Mark, identity: &str, decision: &Decision, seconds: u32, now_ms: u64) {
        if seconds == 0 || self.count_max == 0 {
            return;
        }
        let identity = self.hasher.hash_one(identity);
        let until_ms = now_ms.saturating_add(u64::from(seconds) * 1000);
        let mut table = self.table();
        table.insert(mark, Entry { decision: decision.clone(), identity, decided_ms: now_ms, until_ms });
        while table.order.len() > self.count_max || table.bytes > RULES_BYTES_MAX {
            table.forget_oldest();
        }
    }

    /// The server has changed its mind about somebody: what it said before counts no more.
    pub fn take_back(&self, identity: &str, now_ms: u64) {
        let identity = self.hasher.hash_one(identity);
        let mut table = self.table();
        if table.taken_back.len() >= self.count_max.max(1) {
            // To forget them alone would bring back what they were about.
            *table = Table::default();
            return;
        }
        table.taken_back.insert(identity, now_ms);
    }

    /// Other settings are in force.
    pub fn forget_all(&self) {
        *self.table() = Table::default();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::granted::GrantedRules;
    use super::*;

    fn allow() -> Decision {
        Decision::Allow(Allowed::default())
    }

    fn answers(count_max: usize) -> Answers {
        Answers::new(count_max).expect("randomness")
    }

    #[test]
    fn a_decision_holds_for_a_while_and_for_what_was_asked() {
        let answers = answers(10);
        let mark = answers.mark(1, b"ana:tabuh");
        answers.remember(mark, "ana", &allow(), 5, 1_000);
        assert_eq!(answers.find(&mark, 5_999), Some((allow(), 1_000)));
        assert_eq!(answers.find(&mark, 6_000), None, "not for ever");
        assert_eq!(answers.find(&answers.mark(1, b"ana:tabuh "), 1_000), None, "another password");
        assert_eq!(answers.find(&answers.mark(2, b"ana:tabuh"), 1_000), None, "under other settings");
        assert_ne!(mark, self::answers(10).mark(1, b"ana:tabuh"), "another process");
        answers.remember(mark, "ana", &Decision::Deny, 5, 2_000);
        assert_eq!(answers.find(&mark, 2_000), Some((Decision::Deny, 2_000)));
        answers.forget_all();
        assert_eq!(answers.find(&mark, 2_000), None);
        answers.remember(mark, "ana", &allow(), 0, 1_000);
        assert_eq!(answers.find(&mark, 1_000), None, "nothing is to be remembered");
    }

    #[test]
    fn what_was_taken_back_counts_no_more_and_what_was_decided_since_does() {
        let answers = answers(3);
        let (ana, budi) = (answers.mark(1, b"ana"), answers.mark(1, b"budi"));
        for (mark, name) in [(ana, "ana"), (budi, "budi")] {
            answers.remember(mark, name, &allow(), 100, 1_000);
        }
        answers.take_back("ana", 2_000);
        assert_eq!(answers.find(&ana, 2_000), None);
        assert!(answers.find(&budi, 2_000).is_some());
        answers.remember(ana, "ana", &allow(), 100, 2_001);
        assert!(answers.find(&ana, 2_001).is_some());
        for name in ["c", "d", "e"] {
            answers.take_back(name, 2_002);
        }
        assert_eq!(answers.find(&budi, 2_002), None, "rather too much is forgotten");
        assert!(answers.table().taken_back.is_empty());
    }

    #[test]
    fn entries_and_their_rules_are_bounded() {
        let few = answers(2);
        let marks = [b"a", b"b", b"c"].map(|one| few.mark(1, one));
        for mark in marks {
            few.remember(mark, "x", &allow(), 100, 0);
        }
        assert_eq!(marks.map(|mark| few.find(&mark, 1).is_some()), [false, true, true]);

        let many = answers(1_000_000);
        let rules = GrantedRules::parse(&json!({ "pub": vec!["x".repeat(200); 64] })).expect("rules");
        let decision = Decision::Allow(Allowed { rules: Some(rules), ..Allowed::default() });
        for number in 0_u32..6_000 {
            many.remember(many.mark(1, &number.to_le_bytes()), "x", &decision, 100, 0);
        }
        let table = many.table();
        assert!(table.bytes <= RULES_BYTES_MAX && table.entries.len() < 6_000 && table.entries.len() > 1_000);
        assert_eq!(table.order.len(), table.entries.len());
        let counted: usize = table.entries.values().map(Entry::bytes).sum();
        assert_eq!(table.bytes, counted);
    }
}
