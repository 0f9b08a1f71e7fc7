//! Who subscribed to what.
//!
//! Two tables, because what is shared between threads should be small and change rarely:
//!
//! - [`SubscriptionIndex`], one a process: Topic Filter → the arbiters, groups and other nodes that want it, counted, and
//!   the shared subscriptions. Every thread reads it.
//! - [`LocalSubscriptions`], one an arbiter: Topic Filter → its connections, with their options. One thread.
//!
//! Both keep filters without wildcards in a hash table, where one look-up answers for all of them, and only the
//! others in a trie. A publisher's topics repeat, so what both said is kept in a [`MatchCache`], validated by the
//! generations of the shards it came from: a SUBSCRIBE outdates only what it may concern.
//!
//! Filters and names are taken as valid: they were parsed at the edge. Nothing here performs I/O or reads a clock.

use std::hash::BuildHasher;
use std::sync::LazyLock;

mod cache;
mod holding;
mod index;
mod interest;
mod local;
mod shard;
#[cfg(test)]
mod shard_model;
mod share;
#[cfg(test)]
mod tests;
mod trie;

pub use cache::{CachedMatch, MatchCache};
pub use holding::Waits;
pub use index::{ARBITERS_MAX, ArbiterSet, Matched, MatchedNode, SubscriptionIndex, Target};
pub use interest::{InterestKind, NodeInterest, ShareSessions};
pub use local::{Identifiers, LocalMatch, LocalStamp, LocalSubscription, LocalSubscriptions, Merged};
pub use share::{
    IndexedNode, LEAST_IN_FLIGHT_COMPARED_MAX, NodeNumber, PassedOver, PickStrategy, ShareGroup, ShareMember,
    ShareTarget, mix, name_hash,
};
pub(crate) use trie::{FilterValue, WildcardTrie};

/// What [`shard`] is made of; its model test puts loom's types here.
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering};
    pub use std::sync::{PoisonError, RwLock};
}

/// Shards of each kind, in both tables.
const SHARDS: usize = 64;

/// Keyed once a process, so that nobody outside can choose topics that collide. Only where things stand in tables follows
/// from its hashes, never what is found there or in which order.
static TOPIC_HASHER: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

/// The hash of a Topic Name, or of a filter without wildcards, by which both tables find it. The same in the whole
/// process, and in no other one: computed once a PUBLISH and carried along.
#[inline]
#[must_use]
pub fn topic_hash(topic: &str) -> u64 {
    TOPIC_HASHER.hash_one(topic)
}

/// The shard of a hash, from bits that the hash tables use neither as a position nor as a tag.
#[inline]
fn shard_of(hash: u64) -> usize {
    (hash >> 48) as usize % SHARDS
}

/// The shard for what begins with the first level of `topic`.
#[inline]
fn first_level_shard(topic: &str) -> usize {
    let end = topic.bytes().position(|byte| byte == b'/').unwrap_or(topic.len());
    shard_of(topic_hash(&topic[..end]))
}

/// Where a filter is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Without wildcards, in this shard by its hash.
    Exact { shard: usize, hash: u64 },
    /// With wildcards, none at the first level: in this shard by its first level.
    FirstLevel { shard: usize },
    /// With a wildcard at the first level: may concern every topic.
    Root,
}

impl Place {
    fn of(filter: &str) -> Self {
        // In a valid filter these two never stand but for a wildcard [MQTT-4.7.1-1, MQTT-4.7.1-2].
        match filter.bytes().position(|byte| matches!(byte, b'+' | b'#')) {
            None => {
                let hash = topic_hash(filter);
                Self::Exact { shard: shard_of(hash), hash }
            }
            Some(0) => Self::Root,
            Some(_) => Self::FirstLevel { shard: first_level_shard(filter) },
        }
    }
}
