//! What the tables said about the topics that were published last.

use super::{LocalMatch, LocalStamp, LocalSubscriptions, Matched, SubscriptionIndex};

const SLOTS: usize = 4096;

/// Longer topics are looked up each time: a publisher must not fill the cache with names.
const TOPIC_BYTES_MAX: usize = 256;

/// What the matches that all slots hold may take in memory together, with their Subscription Identifiers. A topic with many subscribers gains little from the cache:
/// what its delivery costs is the deliveries.
pub(super) const BYTES_MAX: usize = 14 << 20;

/// Everyone who wants a topic.
#[derive(Debug, Default)]
pub struct CachedMatch {
    topic: String,
    hash: u64,
    /// Arbiters, groups and shared subscriptions. Not filled in by [`MatchCache::take_local`].
    pub global: Matched,
    /// Connections of this arbiter.
    pub local: Vec<LocalMatch>,
    local_stamp: LocalStamp,
    /// What `local` takes in memory.
    local_bytes: usize,
}

/// Topic → who wants it: direct-mapped, one an arbiter. Never wrong, only sometimes of no use: a match is taken from
/// here only if neither table has changed where it came from.
#[derive(Debug)]
pub struct MatchCache {
    slots: Box<[Option<Box<CachedMatch>>]>,
    /// Of each slot, a part of the hash of the topic that was last refused it.
    refused: Box<[u32]>,
    /// What the matches in all slots take in memory.
    bytes: usize,
    /// Where room is made next.
    hand: usize,
    spare: Option<Box<CachedMatch>>,
    hits: u64,
    misses: u64,
    /// A connection gets a copy for each of its subscriptions.
    one_each: bool,
}

impl Default for MatchCache {
    fn default() -> Self {
        Self::new()
    }
}

impl MatchCache {
    /// Empty; overlapping subscriptions of a connection are merged.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| None).collect(),
            refused: vec![0; SLOTS].into_boxed_slice(),
            bytes: 0,
            hand: 0,
            spare: None,
            hits: 0,
            misses: 0,
            one_each: false,
        }
    }

    /// Empty; a connection gets a copy for each subscription that matches.
    #[must_use]
    pub fn one_each() -> Self {
        Self { one_each: true, ..Self::new() }
    }

    /// Who wants `topic`, whose hash is `hash`. Give it back by [`Self::put_back`], so that the next one has it.
    #[must_use]
    pub fn take(
        &mut self,
        topic: &str,
        hash: u64,
        index: &SubscriptionIndex,
        subscriptions: &LocalSubscriptions,
    ) -> Box<CachedMatch> {
        let mut cached = self.take_local(topic, hash, subscriptions);
        if !index.is_current(&cached.global) {
            index.matches(topic, hash, &mut cached.global);
        }
        cached
    }

    /// Only the connections of this arbiter that want `topic`: for what another arbiter matched.
    #[must_use]
    pub fn take_local(&mut self, topic: &str, hash: u64, subscriptions: &LocalSubscriptions) -> Box<CachedMatch> {
        let cached = match self.slots[slot_of(hash)].take() {
            Some(cached) if cached.hash == hash && *cached.topic == *topic => {
                self.bytes -= cached.local_bytes;
                cached
            }
            other => {
                self.slots[slot_of(hash)] = other;
                self.empty_for(topic, hash)
            }
        };
        self.keep_local(cached, subscriptions)
    }

    /// The same for one that was taken by [`Self::take_local`] and not given back, for another message of its topic.
    #[must_use]
    pub fn keep_local(&mut self, mut cached: Box<CachedMatch>, subscriptions: &LocalSubscriptions) -> Box<CachedMatch> {
        if subscriptions.is_current(&cached.local_stamp) {
            self.hits += 1;
            return cached;
        }
        self.misses += 1;
        let CachedMatch { topic, hash, local, .. } = &mut *cached;
        cached.local_stamp = if self.one_each {
            subscriptions.matches_each(topic, *hash, local)
        } else {
            subscriptions.matches(topic, *hash, local)
        };
        cached.local_bytes = cached.local.iter().map(LocalMatch::memory_bytes).sum();
        cached
    }

    /// Keeps a match for the next message of its topic. A slot that another topic has passes to this one when it
    /// comes for the second time: topics that never repeat do not drive out those that do.
    pub fn put_back(&mut self, cached: Box<CachedMatch>) {
        if cached.topic.len() > TOPIC_BYTES_MAX || cached.local_bytes > BYTES_MAX / 4 {
            return;
        }
        let slot = slot_of(cached.hash);
        if self.slots[slot].is_some() {
            let sign = (cached.hash >> 32) as u32;
            if self.refused[slot] != sign {
                self.refused[slot] = sign;
                self.spare = Some(cached);
                return;
            }
        }
        self.bytes += cached.local_bytes;
        if let Some(other) = self.slots[slot].replace(cached) {
            self.bytes -= other.local_bytes;
            self.spare = Some(other);
        }
        while self.bytes > BYTES_MAX {
            self.hand = (self.hand + 1) % SLOTS;
            if self.hand != slot
                && let Some(evicted) = self.slots[self.hand].take()
            {
                self.bytes -= evicted.local_bytes;
            }
        }
    }

    /// Look-ups of [`Self::take`] and [`Self::take_local`] that the local half of a slot answered, and all others, since
    /// the last call.
    pub fn take_hits_and_misses(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.hits), std::mem::take(&mut self.misses))
    }

    /// What the matches that the slots hold take in memory together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> impl Iterator<Item = &CachedMatch> {
        self.slots.iter().flatten().map(|cached| &**cached)
    }

    fn empty_for(&mut self, topic: &str, hash: u64) -> Box<CachedMatch> {
        let mut cached = self.spare.take().unwrap_or_default();
        cached.local.clear();
        cached.local_bytes = 0;
        cached.local_stamp = LocalStamp::default();
        cached.global.forget();
        cached.topic.clear();
        cached.topic.push_str(topic);
        cached.hash = hash;
        cached
    }
}

#[inline]
fn slot_of(hash: u64) -> usize {
    hash as usize % SLOTS
}
