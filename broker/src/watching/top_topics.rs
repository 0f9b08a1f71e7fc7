//! The topics that clients publish most to, by messages and by bytes, while somebody asks for it.
//!
//! Each arbiter counts into a sketch of its own; what is asked for is put together from all of them, and from all nodes: a message
//! counts on the node that it came to.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::space_saving::SpaceSaving;

/// Topics that an arbiter counts at a time.
const TOPICS_MAX: usize = 256;

/// How long topics are counted at most.
pub const SECONDS_MAX: u32 = 300;

/// How long what was counted is kept when that is over.
const KEPT_MS: u64 = 60_000;

/// By what topics are ranked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TopBy)]
pub enum Ranking {
    /// How many messages.
    #[default]
    Messages,
    /// How many bytes of payload.
    Bytes,
}

/// A topic and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TopTopic {
    /// Topic Name; only its beginning, if it is long.
    pub topic: String,
    /// Messages, or bytes: at most so many, and at least `error` fewer.
    pub count: u64,
    /// By how much `count` may be too large.
    pub error: u64,
}

/// What was counted of all topics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Those that have most, in order.
    pub topics: Vec<TopTopic>,
    /// What a topic that is not there has at most.
    pub others_at_most: u64,
    /// For how long it was counted, in milliseconds.
    pub milliseconds: u64,
}

impl Counts {
    /// What several have counted, `limit` of them.
    #[must_use]
    pub fn merged(parts: &[Self], limit: usize) -> Self {
        let mut topics: HashMap<&str, TopTopic> = HashMap::new();
        let mut seen_by: HashMap<&str, u64> = HashMap::new();
        let others_at_most: u64 = parts.iter().map(|part| part.others_at_most).sum();
        for part in parts {
            for one in &part.topics {
                let topic = one.topic.clone();
                let sum = topics.entry(&one.topic).or_insert_with(|| TopTopic { topic, count: 0, error: 0 });
                sum.count += one.count;
                sum.error += one.error;
                *seen_by.entry(&one.topic).or_default() += part.others_at_most;
            }
        }
        let mut merged: Vec<_> = topics
            .into_iter()
            .map(|(name, mut sum)| {
                // Whoever does not have it may have counted so much of it.
                let unseen = others_at_most - seen_by[name];
                sum.count += unseen;
                sum.error += unseen;
                sum
            })
            .collect();
        merged
            .sort_unstable_by(|one, other| (Reverse(one.count), &one.topic).cmp(&(Reverse(other.count), &other.topic)));
        let milliseconds = parts.iter().map(|part| part.milliseconds).max().unwrap_or(0);
        let cut_at = merged.get(limit).map_or(0, |first| first.count);
        merged.truncate(limit);
        Self { topics: merged, others_at_most: others_at_most.max(cut_at), milliseconds }
    }
}

#[derive(Debug, Default)]
struct Sketches {
    messages: SpaceSaving,
    bytes: SpaceSaving,
}

/// The counts of a node.
#[derive(Debug)]
pub struct TopTopics {
    arbiters: Vec<Mutex<Sketches>>,
    begun_ms: AtomicU64,
    /// 0: nothing was counted.
    ends_ms: AtomicU64,
    /// For those who begin and end.
    turn: Mutex<()>,
}

impl TopTopics {
    pub(super) fn new(arbiters: usize) -> Self {
        Self {
            arbiters: (0..arbiters).map(|_| Mutex::default()).collect(),
            begun_ms: AtomicU64::new(0),
            ends_ms: AtomicU64::new(0),
            turn: Mutex::default(),
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sketches(&self) -> impl Iterator<Item = MutexGuard<'_, Sketches>> {
        self.arbiters.iter().map(|sketches| sketches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn clear(&self) {
        for mut sketches in self.sketches() {
            sketches.messages.clear();
            sketches.bytes.clear();
        }
    }

    pub(super) fn begin(&self, seconds: u32, now_ms: u64) {
        let _turn = self.turn();
        let ends_ms = now_ms + u64::from(seconds.min(SECONDS_MAX)) * 1000;
        if self.ends_ms.load(Ordering::Relaxed) > now_ms {
            self.ends_ms.fetch_max(ends_ms, Ordering::Relaxed);
            return;
        }
        self.clear();
        self.begun_ms.store(now_ms, Ordering::Relaxed);
        self.ends_ms.store(ends_ms, Ordering::Relaxed);
    }

    /// Whether nothing is to be counted any more.
    pub(super) fn end_if_over(&self, now_ms: u64) -> bool {
        let _turn = self.turn();
        let ends_ms = self.ends_ms.load(Ordering::Relaxed);
        if ends_ms != 0 && now_ms >= ends_ms + KEPT_MS {
            self.clear();
            self.ends_ms.store(0, Ordering::Relaxed);
        }
        now_ms >= ends_ms
    }

    /// A client has published to a topic.
    pub fn count(&self, arbiter: u16, topic_hash: u64, topic: &str, payload_bytes: usize) {
        if let Some(sketches) = self.arbiters.get(usize::from(arbiter)) {
            let mut sketches = sketches.lock().unwrap_or_else(PoisonError::into_inner);
            sketches.messages.count(TOPICS_MAX, topic_hash, topic, 1);
            sketches.bytes.count(TOPICS_MAX, topic_hash, topic, payload_bytes as u64);
        }
    }

    /// What was counted here.
    #[must_use]
    pub fn counts(&self, ranking: Ranking, limit: usize, now_ms: u64) -> Counts {
        let (begun_ms, ends_ms) = (self.begun_ms.load(Ordering::Relaxed), self.ends_ms.load(Ordering::Relaxed));
        let milliseconds = ends_ms.min(now_ms).saturating_sub(begun_ms);
        let of_arbiter = |sketches: MutexGuard<'_, Sketches>| {
            let sketch = match ranking {
                Ranking::Messages => &sketches.messages,
                Ranking::Bytes => &sketches.bytes,
            };
            let topics =
                sketch.counted().map(|one| TopTopic { topic: one.name.clone(), count: one.count, error: one.error });
            Counts { topics: topics.collect(), others_at_most: sketch.least(TOPICS_MAX), milliseconds }
        };
        let parts: Vec<Counts> = self.sketches().map(of_arbiter).collect();
        Counts::merged(&parts, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(topic: &str, count: u64, error: u64) -> TopTopic {
        TopTopic { topic: topic.to_owned(), count, error }
    }

    #[test]
    fn what_arbiters_count_is_put_together_and_ranked() {
        let topics = TopTopics::new(2);
        topics.begin(10, 1000);
        for (arbiter, name, bytes) in [(0, "a", 1), (0, "a", 1), (1, "a", 1), (1, "b", 90), (0, "c", 5)] {
            topics.count(arbiter, u64::from(name.as_bytes()[0]), name, bytes);
        }
        topics.count(9, 1, "no such arbiter", 1);
        let counts = topics.counts(Ranking::Messages, 2, 3500);
        assert_eq!(counts.topics, [topic("a", 3, 0), topic("b", 1, 0)]);
        assert_eq!((counts.milliseconds, counts.others_at_most), (2500, 1), "`c` has one");
        let counts = topics.counts(Ranking::Bytes, 9, 99_000);
        assert_eq!(counts.topics, [topic("b", 90, 0), topic("c", 5, 0), topic("a", 3, 0)]);
        assert_eq!((counts.milliseconds, counts.others_at_most), (10_000, 0));
    }

    #[test]
    fn who_may_have_counted_a_topic_that_it_has_not_kept_is_reckoned_with() {
        let one = Counts { topics: vec![topic("a", 10, 0)], others_at_most: 0, milliseconds: 1 };
        let full = Counts { topics: vec![topic("b", 20, 4)], others_at_most: 4, milliseconds: 2 };
        let merged = Counts::merged(&[one, full], 9);
        assert_eq!(merged.topics, [topic("b", 20, 4), topic("a", 14, 4)]);
        assert_eq!((merged.others_at_most, merged.milliseconds), (4, 2));
    }

    #[test]
    fn counting_again_begins_anew_unless_it_goes_on() {
        let topics = TopTopics::new(1);
        topics.begin(1, 1000);
        topics.count(0, 1, "a", 1);
        topics.begin(5, 1500);
        assert!(!topics.end_if_over(6000), "the later end counts");
        assert_eq!(topics.counts(Ranking::Messages, 9, 6000).topics.len(), 1);
        assert!(topics.end_if_over(6500));
        topics.begin(1, 7000);
        assert_eq!(topics.counts(Ranking::Messages, 9, 7000), Counts::default());
        topics.count(0, 1, "a", 1);
        assert!(topics.end_if_over(8000 + KEPT_MS));
        assert_eq!(topics.counts(Ranking::Messages, 9, 8000 + KEPT_MS).topics, [], "nothing is kept for ever");
    }
}
