//! The table of one arbiter: which of its connections want a topic, and on what terms.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::ops::Deref;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};
use kentongan_proto::mqtt::QoS;
use smallvec::{SmallVec, smallvec};

use super::holding::{Holding, Waits};
use super::trie::{FilterValue, WildcardTrie};
use super::{Place, SHARDS, first_level_shard, shard_of, topic_hash};

/// Subscribers of one filter, or matches of one topic, up to which a walk finds one faster than a table.
const WALK_MAX: usize = 32;

/// One subscription of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalSubscription {
    /// Whose.
    pub connection: u64,
    /// Maximum QoS, as granted.
    pub qos: QoS,
    /// Messages that the connection itself published do not go to it [MQTT-3.8.3-3].
    pub no_local: bool,
    /// RETAIN goes on as it was published [MQTT-3.3.1-13].
    pub retain_as_published: bool,
    /// Goes with each message [MQTT-3.3.4-3].
    pub subscription_identifier: Option<NonZeroU32>,
    /// A group keeps the session: only what never enters a log goes directly.
    pub persistent: bool,
    /// Its retained messages are not sent yet; live ones wait. Until [`LocalSubscriptions::release_held`].
    pub held: bool,
}

/// Subscription Identifiers that go with a message: mostly none or one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Identifiers {
    /// None of the subscriptions has one.
    #[default]
    None,
    /// One.
    One(u32),
    /// One for each subscription that has one [MQTT-3.3.4-4], in no particular order.
    Many(Box<Vec<u32>>),
}

impl Identifiers {
    fn push(&mut self, identifier: u32) {
        match self {
            Self::None => *self = Self::One(identifier),
            Self::One(first) => *self = Self::Many(Box::new(vec![*first, identifier])),
            Self::Many(many) => many.push(identifier),
        }
    }

    /// What it takes beside its own place.
    fn boxed_bytes(&self) -> usize {
        match self {
            Self::None | Self::One(_) => 0,
            Self::Many(many) => size_of::<Vec<u32>>() + many.capacity() * size_of::<u32>(),
        }
    }
}

impl Deref for Identifiers {
    type Target = [u32];

    #[inline]
    fn deref(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(identifier) => std::slice::from_ref(identifier),
            Self::Many(many) => many,
        }
    }
}

/// The terms on which one copy goes to one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The highest granted.
    pub qos: QoS,
    /// Some subscription asked for RETAIN as published.
    pub retain_as_published: bool,
    /// Of all the subscriptions.
    pub subscription_identifiers: Identifiers,
}

impl Merged {
    fn of(subscriber: &Subscriber) -> Self {
        let identifiers = subscriber.identifier.map_or(Identifiers::None, |id| Identifiers::One(id.get()));
        Self {
            qos: subscriber.qos,
            retain_as_published: subscriber.has(RETAIN_AS_PUBLISHED),
            subscription_identifiers: identifiers,
        }
    }

    fn add(&mut self, subscriber: &Subscriber) {
        self.qos = self.qos.max(subscriber.qos);
        self.retain_as_published |= subscriber.has(RETAIN_AS_PUBLISHED);
        if let Some(identifier) = subscriber.identifier {
            self.subscription_identifiers.push(identifier.get());
        }
    }
}

/// A connection that wants a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalMatch {
    /// Which.
    pub connection: u64,
    merged: Merged,
    own: Own,
    /// A group keeps the session.
    pub persistent: bool,
    /// Some subscription waits for its retained messages.
    pub held: bool,
}

/// What the connection gets of what it published itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Own {
    /// The same as from others: no subscription is No Local.
    Same,
    /// Nothing: all are.
    Nothing,
    /// By the subscriptions that are not.
    Differs(Box<Merged>),
}

impl LocalMatch {
    /// What it takes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        let own = match &self.own {
            Own::Same | Own::Nothing => 0,
            Own::Differs(own) => size_of::<Merged>() + own.subscription_identifiers.boxed_bytes(),
        };
        size_of::<Self>() + self.merged.subscription_identifiers.boxed_bytes() + own
    }

    fn of(subscriber: &Subscriber) -> Self {
        Self {
            connection: subscriber.connection,
            merged: Merged::of(subscriber),
            own: if subscriber.has(NO_LOCAL) { Own::Nothing } else { Own::Same },
            persistent: subscriber.has(PERSISTENT),
            held: subscriber.has(HELD),
        }
    }

    fn add(&mut self, subscriber: &Subscriber) {
        match (&mut self.own, subscriber.has(NO_LOCAL)) {
            (Own::Same, false) | (Own::Nothing | Own::Differs(_), true) => {}
            (Own::Same, true) => self.own = Own::Differs(Box::new(self.merged.clone())),
            (Own::Nothing, false) => self.own = Own::Differs(Box::new(Merged::of(subscriber))),
            (Own::Differs(own), false) => own.add(subscriber),
        }
        self.merged.add(subscriber);
        self.persistent |= subscriber.has(PERSISTENT);
        self.held |= subscriber.has(HELD);
    }

    /// The terms for what others published.
    #[inline]
    #[must_use]
    pub fn merged(&self) -> &Merged {
        &self.merged
    }

    /// The terms for what the connection itself published. `None`: it does not get that [MQTT-3.8.3-3].
    #[inline]
    #[must_use]
    pub fn own(&self) -> Option<&Merged> {
        match &self.own {
            Own::Same => Some(&self.merged),
            Own::Nothing => None,
            Own::Differs(own) => Some(own),
        }
    }
}

const NO_LOCAL: u8 = 1;
const RETAIN_AS_PUBLISHED: u8 = 2;
const PERSISTENT: u8 = 4;
const HELD: u8 = 8;

/// A [`LocalSubscription`] in 16 bytes.
#[derive(Debug, Clone, Copy)]
struct Subscriber {
    connection: u64,
    identifier: Option<NonZeroU32>,
    qos: QoS,
    flags: u8,
}

impl Subscriber {
    fn new(subscription: &LocalSubscription) -> Self {
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        Self {
            connection: subscription.connection,
            identifier: subscription.subscription_identifier,
            qos: subscription.qos,
            flags: flag(subscription.no_local, NO_LOCAL)
                | flag(subscription.retain_as_published, RETAIN_AS_PUBLISHED)
                | flag(subscription.persistent, PERSISTENT)
                | flag(subscription.held, HELD),
        }
    }

    #[inline]
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn subscription(&self) -> LocalSubscription {
        LocalSubscription {
            connection: self.connection,
            qos: self.qos,
            no_local: self.has(NO_LOCAL),
            retain_as_published: self.has(RETAIN_AS_PUBLISHED),
            subscription_identifier: self.identifier,
            persistent: self.has(PERSISTENT),
            held: self.has(HELD),
        }
    }
}

/// The subscribers of one filter. Most have one, which costs no allocation.
#[derive(Debug, Default)]
enum Subscribers {
    #[default]
    None,
    One(Subscriber),
    Many(Box<Crowd>),
}

// The variants share the place of a QoS that does not exist: a filter's entry is its text and these 16 bytes.
const _: () = assert!(size_of::<Subscribers>() == 16);

/// Two subscribers or more.
#[derive(Debug, Default)]
struct Crowd {
    /// Two stand here without another allocation, and so without another cache line to wait for.
    subscribers: SmallVec<[Subscriber; 2]>,
    /// Where each stands, once there are too many to walk past.
    positions: Option<Box<HashMap<u64, u32, RandomState>>>,
}

impl Crowd {
    fn position(&self, connection: u64) -> Option<usize> {
        match &self.positions {
            Some(positions) => positions.get(&connection).map(|&at| at as usize),
            None => self.subscribers.iter().position(|subscriber| subscriber.connection == connection),
        }
    }

    fn push(&mut self, subscriber: Subscriber) {
        let at = self.subscribers.len();
        self.subscribers.push(subscriber);
        if let Some(positions) = &mut self.positions {
            positions.insert(subscriber.connection, at as u32);
        } else if at >= WALK_MAX {
            let numbered = self.subscribers.iter().zip(0..);
            let numbered = numbered.map(|(subscriber, at)| (subscriber.connection, at));
            self.positions = Some(Box::new(numbered.collect()));
        }
    }

    fn swap_remove(&mut self, at: usize) {
        let removed = self.subscribers.swap_remove(at);
        if let Some(positions) = &mut self.positions {
            positions.remove(&removed.connection);
            if let Some(moved) = self.subscribers.get(at) {
                positions.insert(moved.connection, at as u32);
            }
            if self.subscribers.len() < WALK_MAX / 2 {
                self.positions = None;
            }
        }
        if self.subscribers.len() < self.subscribers.capacity() / 4 {
            self.subscribers.shrink_to_fit();
        }
    }
}

impl FilterValue for Subscribers {
    #[inline]
    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }
}

impl Subscribers {
    #[inline]
    fn as_slice(&self) -> &[Subscriber] {
        match self {
            Self::None => &[],
            Self::One(subscriber) => std::slice::from_ref(subscriber),
            Self::Many(crowd) => &crowd.subscribers,
        }
    }

    fn get(&self, connection: u64) -> Option<&Subscriber> {
        match self {
            Self::One(subscriber) if subscriber.connection == connection => Some(subscriber),
            Self::Many(crowd) => crowd.position(connection).map(|at| &crowd.subscribers[at]),
            Self::None | Self::One(_) => None,
        }
    }

    fn get_mut(&mut self, connection: u64) -> Option<&mut Subscriber> {
        match self {
            Self::One(subscriber) if subscriber.connection == connection => Some(subscriber),
            Self::Many(crowd) => crowd.position(connection).map(|at| &mut crowd.subscribers[at]),
            Self::None | Self::One(_) => None,
        }
    }

    /// `true`: it had no subscription before.
    fn insert(&mut self, subscriber: Subscriber) -> bool {
        if let Some(known) = self.get_mut(subscriber.connection) {
            *known = subscriber;
            return false;
        }
        match self {
            Self::None => *self = Self::One(subscriber),
            Self::One(first) => {
                *self = Self::Many(Box::new(Crowd { subscribers: smallvec![*first, subscriber], positions: None }));
            }
            Self::Many(crowd) => crowd.push(subscriber),
        }
        true
    }

    fn remove(&mut self, connection: u64) -> bool {
        match self {
            Self::One(subscriber) if subscriber.connection == connection => *self = Self::None,
            Self::Many(crowd) => {
                let Some(at) = crowd.position(connection) else {
                    return false;
                };
                crowd.swap_remove(at);
                if let [last] = crowd.subscribers[..] {
                    *self = Self::One(last);
                }
            }
            Self::None | Self::One(_) => return false,
        }
        true
    }

    fn heap_bytes(&self) -> usize {
        let Self::Many(crowd) = self else {
            return 0;
        };
        let positions = crowd.positions.as_ref().map_or(0, |positions| positions.allocation_size());
        let spilled = if crowd.subscribers.spilled() { crowd.subscribers.capacity() } else { 0 };
        size_of::<Crowd>() + spilled * size_of::<Subscriber>() + positions
    }
}

#[derive(Debug)]
struct ExactFilter {
    filter: Box<str>,
    subscribers: Subscribers,
}

/// Until when what was matched holds; see [`LocalSubscriptions::is_current`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalStamp {
    exact_shard: u8,
    first_level_shard: u8,
    exact: u64,
    first_level: u64,
    root: u64,
}

impl Default for LocalStamp {
    /// Of a match that was never made.
    fn default() -> Self {
        Self { exact_shard: 0, first_level_shard: 0, exact: u64::MAX, first_level: u64::MAX, root: u64::MAX }
    }
}

/// Topic Filter → the connections of one arbiter that want it.
#[derive(Debug)]
pub struct LocalSubscriptions {
    /// In shards so that none is ever long in growing: the arbiter stands still meanwhile.
    exact: Box<[HashTable<ExactFilter>]>,
    wildcards: WildcardTrie<Subscribers>,
    exact_generations: Box<[u64; SHARDS]>,
    first_level_generations: Box<[u64; SHARDS]>,
    root_generation: u64,
    /// The filters by which a connection's live messages wait.
    held: HashMap<u64, Holding, RandomState>,
    len: usize,
    /// Nodes of the trie that were looked at, until somebody asks.
    visited: Cell<usize>,
}

impl Default for LocalSubscriptions {
    fn default() -> Self {
        Self::new()
    }
}

impl LocalSubscriptions {
    /// Without subscriptions.
    #[must_use]
    pub fn new() -> Self {
        Self {
            exact: (0..SHARDS).map(|_| HashTable::new()).collect(),
            wildcards: WildcardTrie::default(),
            exact_generations: Box::new([0; SHARDS]),
            first_level_generations: Box::new([0; SHARDS]),
            root_generation: 0,
            held: HashMap::default(),
            len: 0,
            visited: Cell::new(0),
        }
    }

    /// Makes a connection a subscriber of `filter`, or changes its options there. `true`: it was none.
    pub fn insert(&mut self, filter: &str, subscription: &LocalSubscription) -> bool {
        let subscriber = Subscriber::new(subscription);
        let place = Place::of(filter);
        let new = match place {
            Place::Exact { shard, hash } => {
                let text = |entry: &ExactFilter| topic_hash(&entry.filter);
                self.exact[shard]
                    .entry(hash, |entry| *entry.filter == *filter, text)
                    .or_insert_with(|| ExactFilter { filter: Box::from(filter), subscribers: Subscribers::None })
                    .into_mut()
                    .subscribers
                    .insert(subscriber)
            }
            Place::FirstLevel { .. } | Place::Root => {
                self.wildcards.upsert(filter, |subscribers| subscribers.insert(subscriber))
            }
        };
        self.len += usize::from(new);
        if subscription.held {
            self.held.entry(subscription.connection).or_default().begin(filter);
        } else if !new {
            self.forget_held(filter, subscription.connection);
        }
        self.outdate(place);
        new
    }

    /// Ends a connection's subscription to `filter`. `false`: it had none.
    pub fn remove(&mut self, filter: &str, connection: u64) -> bool {
        let place = Place::of(filter);
        let removed = match place {
            Place::Exact { shard, hash } => {
                match self.exact[shard].find_entry(hash, |entry| *entry.filter == *filter) {
                    Err(_) => false,
                    Ok(mut entry) => {
                        let removed = entry.get_mut().subscribers.remove(connection);
                        if entry.get().subscribers.is_empty() {
                            entry.remove();
                        }
                        removed
                    }
                }
            }
            Place::FirstLevel { .. } | Place::Root => {
                self.wildcards.update(filter, |subscribers| subscribers.remove(connection)).unwrap_or(false)
            }
        };
        if !removed {
            return false;
        }
        self.len -= 1;
        self.forget_held(filter, connection);
        self.outdate(place);
        true
    }

    /// `false`: it held nothing back.
    fn forget_held(&mut self, filter: &str, connection: u64) -> bool {
        let Some(holding) = self.held.get_mut(&connection) else {
            return false;
        };
        let held = holding.end(filter);
        if holding.is_empty() {
            self.held.remove(&connection);
        }
        held
    }

    /// Whether a filter of a connection holds live messages back.
    #[must_use]
    pub fn is_holding(&self, connection: u64, filter: &str) -> bool {
        self.held.get(&connection).is_some_and(|holding| holding.contains(filter))
    }

    /// Whether some filter of a connection holds back what is published to a topic.
    #[must_use]
    pub fn holds(&self, connection: u64, topic: &str) -> bool {
        self.held.get(&connection).is_some_and(|holding| holding.count(topic) > 0)
    }

    /// How many filters of a connection hold a message back that begins to wait now, as all that wait count them.
    #[must_use]
    pub fn holders(&self, connection: u64, topic: &str) -> u32 {
        self.held.get(&connection).map_or(0, |holding| holding.count_before(topic))
    }

    /// All messages that wait for a connection: each counts anew the filters that hold it back.
    pub fn recount_holders(&mut self, connection: u64, waiting: &mut [impl Waits]) {
        match self.held.get_mut(&connection) {
            Some(holding) => holding.recount(waiting),
            None => waiting.iter_mut().for_each(|message| *message.holders() = 0),
        }
    }

    /// A filter of a connection holds nothing back any more.
    pub fn stop_holding(&mut self, connection: u64, filter: &str) {
        if self.forget_held(filter, connection) {
            self.release(connection, filter);
        }
    }

    /// The retained messages of a connection's subscriptions are sent: none of them is held any more. Returns those that were.
    pub fn release_held(&mut self, connection: u64) -> Vec<Box<str>> {
        let held: Vec<_> = self.held.remove(&connection).into_iter().flat_map(Holding::into_filters).collect();
        held.iter().for_each(|filter| self.release(connection, filter));
        held
    }

    fn release(&mut self, connection: u64, filter: &str) {
        let release = |subscribers: &mut Subscribers| {
            if let Some(subscriber) = subscribers.get_mut(connection) {
                subscriber.flags &= !HELD;
            }
        };
        let place = Place::of(filter);
        match place {
            Place::Exact { shard, hash } => {
                if let Some(entry) = self.exact[shard].find_mut(hash, |entry| *entry.filter == *filter) {
                    release(&mut entry.subscribers);
                }
            }
            Place::FirstLevel { .. } | Place::Root => {
                self.wildcards.update(filter, release);
            }
        }
        self.outdate(place);
    }

    /// The connections that want `topic`, whose hash is `hash`; each once, its subscriptions merged. What `out` held
    /// before is gone. Their order tells of who came and went before: replicas that must agree sort.
    pub fn matches(&self, topic: &str, hash: u64, out: &mut Vec<LocalMatch>) -> LocalStamp {
        out.clear();
        let found = self.find(topic, hash);
        let total = found.iter().map(|subscribers| subscribers.len()).sum();
        out.reserve(total);
        match found.as_slice() {
            // A connection subscribes to a filter once at most.
            [only] => out.extend(only.iter().map(LocalMatch::of)),
            _ if total <= WALK_MAX => merge_by_walking(&found, out),
            _ => merge_by_table(&found, out),
        }
        self.stamp(topic, hash)
    }

    /// How many nodes of the trie [`Self::matches`] looked at since the last call.
    pub fn take_visited(&self) -> usize {
        self.visited.take()
    }

    /// Like [`Self::matches`], with a match for each subscription: further copies for overlapping subscriptions are
    /// as good as one [MQTT-3.3.4-2].
    pub fn matches_each(&self, topic: &str, hash: u64, out: &mut Vec<LocalMatch>) -> LocalStamp {
        out.clear();
        for subscribers in self.find(topic, hash) {
            out.extend(subscribers.iter().map(LocalMatch::of));
        }
        self.stamp(topic, hash)
    }

    /// The subscriptions of one connection that match `topic`, whose hash is `hash`. Takes as long as to match the topic, however
    /// many the connection has.
    pub fn each_of(&self, connection: u64, topic: &str, hash: u64, mut each: impl FnMut(LocalSubscription)) {
        debug_assert_eq!(hash, topic_hash(topic), "the hash of another topic");
        let mut look = |subscribers: &Subscribers| {
            if let Some(subscriber) = subscribers.get(connection) {
                each(subscriber.subscription());
            }
        };
        if let Some(entry) = self.exact[shard_of(hash)].find(hash, |entry| *entry.filter == *topic) {
            look(&entry.subscribers);
        }
        self.wildcards.matches(topic, look);
    }

    fn find(&self, topic: &str, hash: u64) -> SmallVec<[&[Subscriber]; 16]> {
        debug_assert_eq!(hash, topic_hash(topic), "the hash of another topic");
        let mut found = SmallVec::new();
        if let Some(entry) = self.exact[shard_of(hash)].find(hash, |entry| *entry.filter == *topic) {
            found.push(entry.subscribers.as_slice());
        }
        let visited = self.wildcards.matches(topic, |subscribers| found.push(subscribers.as_slice()));
        self.visited.set(self.visited.get() + visited);
        found
    }

    fn stamp(&self, topic: &str, hash: u64) -> LocalStamp {
        let (exact_shard, first_level_shard) = (shard_of(hash), first_level_shard(topic));
        LocalStamp {
            exact_shard: exact_shard as u8,
            first_level_shard: first_level_shard as u8,
            exact: self.exact_generations[exact_shard],
            first_level: self.first_level_generations[first_level_shard],
            root: self.root_generation,
        }
    }

    /// Whether the match that returned this stamp would still return the same.
    #[inline]
    #[must_use]
    pub fn is_current(&self, stamp: &LocalStamp) -> bool {
        self.exact_generations[usize::from(stamp.exact_shard)] == stamp.exact
            && self.first_level_generations[usize::from(stamp.first_level_shard)] == stamp.first_level
            && self.root_generation == stamp.root
    }

    fn outdate(&mut self, place: Place) {
        match place {
            Place::Exact { shard, .. } => self.exact_generations[shard] += 1,
            Place::FirstLevel { shard } => self.first_level_generations[shard] += 1,
            Place::Root => self.root_generation += 1,
        }
    }

    /// Subscriptions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held, estimated from capacities. Walks over all filters: for figures asked for by people.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let exact = |table: &HashTable<ExactFilter>| {
            let heap = |entry: &ExactFilter| entry.filter.len() + entry.subscribers.heap_bytes();
            table.allocation_size() + table.iter().map(heap).sum::<usize>()
        };
        self.exact.iter().map(exact).sum::<usize>() + self.wildcards.memory_bytes()
    }
}

fn merge_by_walking(found: &[&[Subscriber]], out: &mut Vec<LocalMatch>) {
    for subscriber in found.iter().copied().flatten() {
        match out.iter_mut().find(|known| known.connection == subscriber.connection) {
            Some(known) => known.add(subscriber),
            None => out.push(LocalMatch::of(subscriber)),
        }
    }
}

fn merge_by_table(found: &[&[Subscriber]], out: &mut Vec<LocalMatch>) {
    let mut positions: HashMap<u64, usize, RandomState> = HashMap::default();
    for subscriber in found.iter().copied().flatten() {
        match positions.entry(subscriber.connection) {
            hashbrown::hash_map::Entry::Occupied(known) => out[*known.get()].add(subscriber),
            hashbrown::hash_map::Entry::Vacant(new) => {
                new.insert(out.len());
                out.push(LocalMatch::of(subscriber));
            }
        }
    }
}
