//! The filters of one session that hold live messages back while retained ones are read, and by how many of them each message
//! that waits is held.
//!
//! A session may have as many filters that hold as it has subscriptions, and as many messages may wait: nothing here matches
//! each with each. A message carries how many filters match it, and what changes is counted once for all that wait.

use hashbrown::HashSet;
use kentongan_proto::topic;

use super::trie::{FilterValue, WildcardTrie};

/// Filters up to which each is matched: that takes less than a table and a trie.
const FEW: usize = 4;

/// A live message that waits behind retained ones.
pub trait Waits {
    /// Its Topic Name.
    fn topic(&self) -> &str;

    /// How many filters hold it back, as it was when that was counted last.
    fn holders(&mut self) -> &mut u32;
}

/// The filters of one session that hold live messages back.
#[derive(Debug, Default)]
pub struct Holding {
    all: Filters,
    /// Of these, those that the messages which wait do not count yet.
    begun: Filters,
    /// Those that they count still.
    ended: Filters,
}

impl Holding {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a filter is one of them.
    pub fn contains(&self, filter: &str) -> bool {
        self.all.contains(filter)
    }

    /// A filter holds messages back from now on.
    pub fn begin(&mut self, filter: &str) {
        if self.all.insert(filter) && !self.ended.remove(filter) {
            self.begun.insert(filter);
        }
    }

    /// A filter holds none back any more. `false`: it did not before.
    pub fn end(&mut self, filter: &str) -> bool {
        let was_there = self.all.remove(filter);
        if was_there && !self.begun.remove(filter) {
            self.ended.insert(filter);
        }
        was_there
    }

    /// How many of them match a topic.
    pub fn count(&self, topic: &str) -> u32 {
        self.all.count(topic)
    }

    /// As [`Self::count`] was at the last [`Self::recount`]: what a message counts that begins to wait.
    pub fn count_before(&self, topic: &str) -> u32 {
        (self.all.count(topic) + self.ended.count(topic)).saturating_sub(self.begun.count(topic))
    }

    /// The messages that wait, which are all there are, count what changed since the last time.
    pub fn recount(&mut self, waiting: &mut [impl Waits]) {
        if self.begun.is_empty() && self.ended.is_empty() {
            return;
        }
        for message in waiting {
            let begun = self.begun.count(message.topic());
            let ended = self.ended.count(message.topic());
            let holders = message.holders();
            *holders = (*holders + begun).saturating_sub(ended);
        }
        (self.begun, self.ended) = (Filters::default(), Filters::default());
    }

    /// All of them, in no particular order.
    pub fn into_filters(self) -> impl Iterator<Item = Box<str>> {
        self.all.texts.into_iter()
    }
}

/// A filter that is there.
#[derive(Debug, Default)]
struct Stands(bool);

impl FilterValue for Stands {
    fn is_empty(&self) -> bool {
        !self.0
    }
}

#[derive(Debug, Default)]
struct Filters {
    /// All, with wildcards or without.
    texts: HashSet<Box<str>, foldhash::quality::RandomState>,
    /// Those with wildcards.
    wildcards: Option<Box<WildcardTrie<Stands>>>,
}

impl Filters {
    fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    fn contains(&self, filter: &str) -> bool {
        self.texts.contains(filter)
    }

    /// `false`: it was there.
    fn insert(&mut self, filter: &str) -> bool {
        if self.texts.contains(filter) {
            return false;
        }
        self.texts.insert(Box::from(filter));
        if filter.contains(['+', '#']) {
            self.wildcards.get_or_insert_default().upsert(filter, |stands| stands.0 = true);
        }
        true
    }

    /// `false`: it was not there.
    fn remove(&mut self, filter: &str) -> bool {
        if !self.texts.remove(filter) {
            return false;
        }
        if let Some(wildcards) = &mut self.wildcards {
            wildcards.update(filter, |stands| stands.0 = false);
        }
        true
    }

    /// How many match.
    fn count(&self, topic: &str) -> u32 {
        if self.texts.len() <= FEW {
            return self.texts.iter().map(|filter| u32::from(topic::matches(filter, topic))).sum();
        }
        let mut found = u32::from(self.texts.contains(topic));
        if let Some(wildcards) = &self.wildcards {
            wildcards.matches(topic, |_| found += 1);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    struct Message {
        topic: String,
        holders: u32,
    }

    impl Waits for Message {
        fn topic(&self) -> &str {
            &self.topic
        }

        fn holders(&mut self) -> &mut u32 {
            &mut self.holders
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin(String),
        End(String),
        Wait(String),
        Recount,
    }

    fn step() -> impl Strategy<Value = Step> {
        let filter = "[ab+](/[ab+]){0,2}(/#)?";
        prop_oneof![
            filter.prop_map(Step::Begin),
            filter.prop_map(Step::End),
            "[ab](/[ab]){0,2}".prop_map(Step::Wait),
            Just(Step::Recount),
        ]
    }

    proptest! {
        /// What each message counts is what matching it with every filter would say, however the filters came and went.
        #[test]
        fn each_message_counts_the_filters_that_hold_it(steps in prop::collection::vec(step(), 0..60)) {
            let (mut holding, mut filters) = (Holding::default(), std::collections::BTreeSet::new());
            let mut waiting: Vec<Message> = Vec::new();
            for step in steps.into_iter().chain([Step::Recount]) {
                match step {
                    Step::Begin(filter) => {
                        holding.begin(&filter);
                        filters.insert(filter);
                    }
                    Step::End(filter) => prop_assert_eq!(holding.end(&filter), filters.remove(&filter)),
                    Step::Wait(topic) => waiting.push(Message { holders: holding.count_before(&topic), topic }),
                    Step::Recount => {
                        holding.recount(&mut waiting);
                        for Message { topic, holders } in &waiting {
                            let expected = filters.iter().filter(|filter| topic::matches(filter, topic)).count();
                            prop_assert_eq!(*holders as usize, expected, "{} and {:?}", topic, &filters);
                            prop_assert_eq!(holding.count(topic), *holders);
                        }
                    }
                }
            }
        }
    }

    /// Thousands of filters hold thousands of messages back, and packets with a thousand of them come and go: each with each
    /// would be millions of matches a packet.
    #[test]
    fn many_filters_that_hold_many_messages_are_counted_in_a_moment() {
        let began = Instant::now();
        let filters: Vec<String> = (0..10_000).map(|number| format!("z/{number}/+")).chain(["#".to_owned()]).collect();
        let mut holding = Holding::default();
        filters.iter().for_each(|filter| holding.begin(filter));
        let message = |number| Message { topic: format!("live/{number}"), holders: 1 };
        let mut waiting: Vec<Message> = (0..5_000).map(message).collect();
        waiting.iter_mut().for_each(|message| message.holders = holding.count_before(&message.topic));
        holding.recount(&mut waiting);
        for packet in filters.chunks(1000) {
            for filter in packet {
                assert!(holding.end(filter));
            }
            holding.recount(&mut waiting);
        }
        assert!(waiting.iter().all(|message| message.holders == 0));
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
}
