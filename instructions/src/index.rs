//! The subscription tables, with some thousands of subscriptions to filters of five levels: nine in ten without
//! wildcards, one in twenty with a `+`, one in twenty with a `#` at the end. A topic has a few subscribers.

use std::hint::black_box;

use kentongan::subscription::{
    LocalSubscription, LocalSubscriptions, MatchCache, Matched, SubscriptionIndex, Target, topic_hash,
};
use kentongan_proto::mqtt::QoS;

use crate::{Counter, Row};

const SUBSCRIPTIONS: u64 = 5_000;
const TOPICS: usize = 5_000;
const CHANGES: u64 = 2_000;

pub const ROWS: &[Row] = &[
    Row { name: "look-up in the shared index", run: shared_look_up },
    Row { name: "look-up in an arbiter's table", run: local_look_up },
    Row { name: "look-up, cached", run: cached_look_up },
    Row { name: "subscribe and unsubscribe", run: subscribe_and_unsubscribe },
];

/// SplitMix64: the same workload at every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn levels(&mut self) -> Vec<String> {
        let bounds = [("area", 6), ("site", 6), ("line", 6), ("unit", 4), ("value", 2)];
        bounds.map(|(name, bound)| format!("{name}{}", self.below(bound))).to_vec()
    }

    fn topic(&mut self) -> (String, u64) {
        let topic = self.levels().join("/");
        let hash = topic_hash(&topic);
        (topic, hash)
    }

    fn filter(&mut self) -> String {
        let mut levels = self.levels();
        match self.below(20) {
            0 => levels[self.below(5) as usize] = "+".to_owned(),
            1 => {
                levels.truncate(3 + self.below(2) as usize);
                levels.push("#".to_owned());
            }
            _ => {}
        }
        levels.join("/")
    }
}

fn subscription(connection: u64) -> LocalSubscription {
    LocalSubscription {
        connection,
        qos: QoS::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        subscription_identifier: None,
        persistent: false,
        held: false,
    }
}

fn tables() -> (SubscriptionIndex, LocalSubscriptions) {
    let (index, mut local) = (SubscriptionIndex::new(), LocalSubscriptions::new());
    let mut draws = Draws(1);
    for connection in 0..SUBSCRIPTIONS {
        let filter = draws.filter();
        index.subscribe(&filter, Target::Arbiter((connection % 8) as u16));
        local.insert(&filter, &subscription(connection));
    }
    (index, local)
}

fn topics() -> Vec<(String, u64)> {
    let mut draws = Draws(2);
    (0..TOPICS).map(|_| draws.topic()).collect()
}

fn shared_look_up(counter: &mut Counter) {
    let (index, _) = tables();
    let topics = topics();
    let mut matched = Matched::default();
    counter.count(topics.len() as u64, || {
        for (topic, hash) in &topics {
            index.matches(black_box(topic), *hash, &mut matched);
            black_box(&matched);
        }
    });
}

fn local_look_up(counter: &mut Counter) {
    let (_, local) = tables();
    let topics = topics();
    let mut found = Vec::new();
    counter.count(topics.len() as u64, || {
        for (topic, hash) in &topics {
            black_box(local.matches(black_box(topic), *hash, &mut found));
        }
    });
}

/// With the hash of the topic, which a PUBLISH takes along. One topic: two could have to share a slot.
fn cached_look_up(counter: &mut Counter) {
    let (index, local) = tables();
    let (topic, _) = Draws(2).topic();
    let mut cache = MatchCache::new();
    let mut look_up = || {
        let topic = black_box(topic.as_str());
        let cached = cache.take(topic, topic_hash(topic), &index, &local);
        cache.put_back(black_box(cached));
    };
    look_up();
    counter.count(TOPICS as u64, || (0..TOPICS).for_each(|_| look_up()));
    assert_eq!(cache.take_hits_and_misses(), (TOPICS as u64, 1));
}

/// In both tables, as for a transient session.
fn subscribe_and_unsubscribe(counter: &mut Counter) {
    let (index, mut local) = tables();
    let mut draws = Draws(3);
    let filters: Vec<String> = (0..CHANGES).map(|_| draws.filter()).collect();
    let (target, connection) = (Target::Arbiter(9), SUBSCRIPTIONS);
    counter.count(CHANGES, || {
        for filter in &filters {
            index.subscribe(filter, target);
            local.insert(filter, &subscription(connection));
            assert!(local.remove(filter, connection));
            assert!(index.unsubscribe(filter, target));
        }
    });
}
