//! The table that all threads share: which arbiters, groups and other nodes want a topic.
//!
//! A filter's subscribers are counted a target, so only the first and the last of each change what a match returns,
//! and only those raise a generation: ten thousand clients that come for the same topic outdate its cached matches
//! once an arbiter.
//!
//! Filters without wildcards are known by their 64-bit hash alone, which makes them 25 bytes before the table's
//! slack, whatever their length. Two that collide are taken for one: their targets get a message that they then find
//! nobody for. Never is one missed, as long as only what was subscribed is unsubscribed.

use std::fmt;
use std::sync::Arc;

use crossbeam::utils::CachePadded;
use hashbrown::HashTable;
use kentongan_proto::mqtt::QoS;
use kentongan_proto::topic::ParsedFilter;
use smallvec::SmallVec;

use super::interest::{NodeInterest, ShareSessions};
use super::shard::{Change, Shard};
use super::share::{IndexedNode, NodeNumber, ShareGroup, ShareMember, ShareTarget, Told};
use super::trie::{FilterValue, WildcardTrie};
use super::{Place, SHARDS, first_level_shard, shard_of, topic_hash};

/// Arbiters that the index can tell apart.
pub const ARBITERS_MAX: u16 = 256;

/// Who wants a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The arbiter of connections that subscribed; below [`ARBITERS_MAX`].
    Arbiter(u16),
    /// The Raft group of persistent sessions that subscribed.
    Group(u16),
    /// Another node, whose clients want messages of any QoS directly: by its number in
    /// [`crate::router::node_lanes::Nodes`].
    Node(NodeNumber),
    /// Another node, whose clients want only those of QoS 0 directly.
    NodeQos0(NodeNumber),
}

/// Another node that wants a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatchedNode {
    /// Its number.
    pub node: NodeNumber,
    /// It gets what has a QoS by the groups of its sessions.
    pub qos0_only: bool,
}

/// A set of arbiters.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct ArbiterSet([u64; ARBITERS_MAX as usize / 64]);

impl ArbiterSet {
    /// Adds one, which must be below [`ARBITERS_MAX`].
    #[inline]
    pub fn insert(&mut self, arbiter: u16) {
        self.0[usize::from(arbiter) / 64] |= 1 << (arbiter % 64);
    }

    /// Whether it is in the set.
    #[inline]
    #[must_use]
    pub fn contains(&self, arbiter: u16) -> bool {
        arbiter < ARBITERS_MAX && self.0[usize::from(arbiter) / 64] & 1 << (arbiter % 64) != 0
    }

    /// Whether nobody is.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// In ascending order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().enumerate().flat_map(|(word, &bits)| {
            let mut bits = bits;
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as u16)?;
                bits &= bits - 1;
                Some(word as u16 * 64 + bit)
            })
        })
    }
}

impl fmt::Debug for ArbiterSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What a match depends on: three shards, and the generations they had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    exact_shard: u8,
    first_level_shard: u8,
    exact: u64,
    first_level: u64,
    root: u64,
}

impl Default for Stamp {
    /// Of a match that was never made: no shard ever reaches these generations.
    fn default() -> Self {
        Self { exact_shard: 0, first_level_shard: 0, exact: u64::MAX, first_level: u64::MAX, root: u64::MAX }
    }
}

/// Who wants a topic, and until when that holds; see [`SubscriptionIndex::is_current`].
#[derive(Debug, Clone, Default)]
pub struct Matched {
    /// Those with connections that want it.
    pub arbiters: ArbiterSet,
    /// Those with persistent sessions that want it, ascending, each once.
    pub groups: SmallVec<[u16; 8]>,
    /// Other nodes whose clients want it directly, ascending, each once. See [`Self::nodes_for`].
    pub nodes: SmallVec<[MatchedNode; 4]>,
    /// Of each, one member gets it.
    pub shares: Vec<Arc<ShareGroup>>,
    stamp: Stamp,
    /// Nodes of tries that it took, until somebody asks.
    visited: usize,
}

impl Matched {
    /// Whether nobody wants it.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.arbiters.is_empty() && self.groups.is_empty() && self.nodes.is_empty() && self.shares.is_empty()
    }

    /// How many nodes of tries were looked at since the last call: what it took if it was found anew.
    pub fn take_visited(&mut self) -> usize {
        std::mem::take(&mut self.visited)
    }

    /// The other nodes that a message of this QoS is sent to, for their clients.
    #[inline]
    pub fn nodes_for(&self, qos: QoS) -> impl Iterator<Item = NodeNumber> + '_ {
        self.nodes
            .iter()
            .filter(move |matched| qos == QoS::AtMostOnce || !matched.qos0_only)
            .map(|matched| matched.node)
    }

    /// Makes it one that was never made.
    pub(super) fn forget(&mut self) {
        self.arbiters = ArbiterSet::default();
        self.groups.clear();
        self.nodes.clear();
        self.shares.clear();
        self.stamp = Stamp::default();
    }

    /// `filter`: by whose hash the targets were found. Another one may have it, and a share knows its own.
    fn add(&mut self, targets: &Targets, filter: Option<&str>) {
        match targets {
            Targets::None => {}
            Targets::One { target, .. } => self.add_target(*target),
            Targets::Many(many) => {
                for &(target, _) in &many.counted {
                    self.add_target(target);
                }
                let is_its = |share: &&Arc<ShareGroup>| filter.is_none_or(|filter| share.filter() == filter);
                self.shares.extend(many.shares().iter().filter(is_its).cloned());
            }
        }
    }

    #[inline]
    fn add_target(&mut self, target: Target) {
        match target {
            Target::Arbiter(arbiter) => self.arbiters.insert(arbiter),
            Target::Group(group) => {
                if let Err(at) = self.groups.binary_search(&group) {
                    self.groups.insert(at, group);
                }
            }
            Target::Node(node) => self.add_node(node, false),
            Target::NodeQos0(node) => self.add_node(node, true),
        }
    }

    fn add_node(&mut self, node: NodeNumber, qos0_only: bool) {
        match self.nodes.binary_search_by_key(&node, |matched| matched.node) {
            // By several filters: who wants any QoS by one of them wants it.
            Ok(at) => self.nodes[at].qos0_only &= qos0_only,
            Err(at) => self.nodes.insert(at, MatchedNode { node, qos0_only }),
        }
    }
}

/// Who wants one filter. Most have one target, which then costs no allocation.
#[derive(Debug, Default)]
enum Targets {
    #[default]
    None,
    One {
        target: Target,
        count: u32,
    },
    Many(Box<ManyTargets>),
}

#[derive(Debug, Default)]
struct ManyTargets {
    /// Sorted. Four stand here without another allocation, and so without another cache line to wait for.
    counted: SmallVec<[(Target, u32); 4]>,
    #[expect(clippy::box_collection, reason = "few filters have any, and an empty list would cost each 24 bytes")]
    /// In the order of [`find_share`].
    shares: Option<Box<Vec<Arc<ShareGroup>>>>,
}

impl FilterValue for Targets {
    #[inline]
    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }
}

impl Targets {
    /// Counts one more subscriber. `true`: its target is new.
    fn add(&mut self, target: Target) -> bool {
        match self {
            Self::None => *self = Self::One { target, count: 1 },
            Self::One { target: known, count } if *known == target => {
                *count += 1;
                return false;
            }
            Self::One { .. } => return self.make_many().add(target),
            Self::Many(many) => return many.add(target),
        }
        true
    }

    /// Counts one subscriber less. `Some(true)`: it was the last of its target; `None`: there was none.
    fn remove(&mut self, target: Target) -> Option<bool> {
        match self {
            Self::One { target: known, count } if *known == target => {
                *count -= 1;
                let gone = *count == 0;
                if gone {
                    *self = Self::None;
                }
                Some(gone)
            }
            Self::Many(many) => {
                let gone = many.remove(target);
                self.shrink();
                gone
            }
            Self::None | Self::One { .. } => None,
        }
    }

    fn make_many(&mut self) -> &mut ManyTargets {
        if let Self::None | Self::One { .. } = self {
            let mut counted = SmallVec::new();
            if let Self::One { target, count } = *self {
                counted.push((target, count));
            }
            *self = Self::Many(Box::new(ManyTargets { counted, shares: None }));
        }
        match self {
            Self::Many(many) => many,
            _ => unreachable!("it was made so just now"),
        }
    }

    fn shrink(&mut self) {
        if let Self::Many(many) = self
            && many.shares.is_none()
            && many.counted.len() <= 1
        {
            *self = match many.counted.pop() {
                Some((target, count)) => Self::One { target, count },
                None => Self::None,
            };
        }
    }

    fn shares(&self) -> &[Arc<ShareGroup>] {
        match self {
            Self::Many(many) => many.shares(),
            _ => &[],
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Many(many) => {
                size_of::<ManyTargets>()
                    + if many.counted.spilled() { many.counted.capacity() * size_of::<(Target, u32)>() } else { 0 }
                    + size_of_val(many.shares())
            }
            _ => 0,
        }
    }
}

impl ManyTargets {
    fn shares(&self) -> &[Arc<ShareGroup>] {
        self.shares.as_ref().map_or(&[], |shares| shares)
    }

    fn add(&mut self, target: Target) -> bool {
        match self.counted.binary_search_by_key(&target, |&(known, _)| known) {
            Ok(at) => {
                self.counted[at].1 += 1;
                false
            }
            Err(at) => {
                self.counted.insert(at, (target, 1));
                true
            }
        }
    }

    fn remove(&mut self, target: Target) -> Option<bool> {
        let at = self.counted.binary_search_by_key(&target, |&(known, _)| known).ok()?;
        self.counted[at].1 -= 1;
        let gone = self.counted[at].1 == 0;
        if gone {
            self.counted.remove(at);
        }
        Some(gone)
    }
}

#[derive(Debug, Default)]
struct ExactFilters {
    table: HashTable<(u64, Targets)>,
    subscriptions: usize,
}

impl ExactFilters {
    #[inline]
    fn get(&self, hash: u64) -> Option<&Targets> {
        self.table.find(hash, |&(known, _)| known == hash).map(|(_, targets)| targets)
    }
}

#[derive(Debug, Default)]
struct WildcardFilters {
    trie: WildcardTrie<Targets>,
    subscriptions: usize,
}

/// What both kinds of shards do.
trait Filters: Default {
    /// Changes what is kept for a filter; `create` it if it is new.
    fn edit<R>(&mut self, filter: &str, create: bool, edit: impl FnOnce(&mut Targets) -> R) -> Option<R>;
    fn is_empty(&self) -> bool;
    fn subscriptions(&mut self) -> &mut usize;
}

impl Filters for ExactFilters {
    fn edit<R>(&mut self, filter: &str, create: bool, edit: impl FnOnce(&mut Targets) -> R) -> Option<R> {
        let hash = topic_hash(filter);
        if create {
            self.table.entry(hash, |&(known, _)| known == hash, |&(known, _)| known).or_insert((hash, Targets::None));
        }
        let mut entry = self.table.find_entry(hash, |&(known, _)| known == hash).ok()?;
        let result = edit(&mut entry.get_mut().1);
        if entry.get().1.is_empty() {
            entry.remove();
        }
        Some(result)
    }

    fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    fn subscriptions(&mut self) -> &mut usize {
        &mut self.subscriptions
    }
}

impl Filters for WildcardFilters {
    fn edit<R>(&mut self, filter: &str, create: bool, edit: impl FnOnce(&mut Targets) -> R) -> Option<R> {
        if create { Some(self.trie.upsert(filter, edit)) } else { self.trie.update(filter, edit) }
    }

    fn is_empty(&self) -> bool {
        self.trie.is_empty()
    }

    fn subscriptions(&mut self) -> &mut usize {
        &mut self.subscriptions
    }
}

/// One step of a table's life, the same for both kinds of shards.
#[derive(Debug, Clone, Copy)]
enum Edit<'a> {
    Subscribe(Target),
    Unsubscribe(Target),
    /// One subscriber less at the first, and one more at the second.
    Move(Option<Target>, Option<Target>),
    Join(&'a str, &'a ShareMember),
    Leave(&'a str, &'a ShareTarget),
    /// What a node or a group says of its members.
    Weigh(&'a str, Told),
}

/// What an edit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing was there to undo.
    Nothing,
    /// A member of a share has new options; it was counted before.
    Replaced,
    /// Counted, so many more or less; `matches_change` if what a match returns is now different.
    Counted { change: isize, matches_change: bool },
}

impl Edit<'_> {
    /// Returns whether it found what it was to undo, and what that did to matches.
    fn apply<F: Filters>(self, filters: &mut F, filter: &str) -> (bool, Change) {
        let create = match self {
            Self::Subscribe(_) | Self::Join(..) => true,
            Self::Unsubscribe(_) | Self::Leave(..) => false,
            Self::Move(_, to) => to.is_some(),
            Self::Weigh(_, told) => told.members() > 0,
        };
        let effect = filters.edit(filter, create, |targets| match self {
            Self::Subscribe(target) => Effect::Counted { change: 1, matches_change: targets.add(target) },
            Self::Unsubscribe(target) => {
                let removed = targets.remove(target);
                removed.map_or(Effect::Nothing, |matches_change| Effect::Counted { change: -1, matches_change })
            }
            Self::Move(from, to) => move_subscriber(targets, from, to),
            Self::Join(name, member) => join(targets, name, filter, member),
            Self::Leave(name, target) => leave(targets, name, filter, |share| share.leave(target).then_some(1)),
            Self::Weigh(name, told) if told.members() > 0 => weigh(targets, name, filter, told),
            Self::Weigh(name, told) => leave(targets, name, filter, |share| share.forget(told)),
        });
        let (change, matches_change) = match effect {
            None | Some(Effect::Nothing) => return (false, Change::None),
            Some(Effect::Replaced) => return (true, Change::None),
            Some(Effect::Counted { change, matches_change }) => (change, matches_change),
        };
        let subscriptions = filters.subscriptions();
        *subscriptions = subscriptions.saturating_add_signed(change);
        let occupied = !filters.is_empty();
        (true, if matches_change { Change::Changed { occupied } } else { Change::None })
    }
}

/// The new target first, though nobody looks in between: what is wanted throughout keeps its place.
fn move_subscriber(targets: &mut Targets, from: Option<Target>, to: Option<Target>) -> Effect {
    let added = to.map(|to| targets.add(to));
    let removed = from.and_then(|from| targets.remove(from));
    if added.is_none() && removed.is_none() {
        return Effect::Nothing;
    }
    let change = isize::from(added.is_some()) - isize::from(removed.is_some());
    Effect::Counted { change, matches_change: added == Some(true) || removed == Some(true) }
}

/// The share of that name, made if there is none: `true`.
fn share_of<'t>(targets: &'t mut Targets, name: &str, filter: &str) -> (&'t ShareGroup, bool) {
    let shares = targets.make_many().shares.get_or_insert_default();
    let known = find_share(shares, name, filter);
    let at = known.unwrap_or_else(|at| {
        shares.insert(at, Arc::new(ShareGroup::new(name, filter)));
        at
    });
    (&shares[at], known.is_err())
}

fn join(targets: &mut Targets, name: &str, filter: &str, member: &ShareMember) -> Effect {
    let (share, made) = share_of(targets, name, filter);
    if share.join(member) { Effect::Counted { change: 1, matches_change: made } } else { Effect::Replaced }
}

/// What is told of some members makes there be some.
fn weigh(targets: &mut Targets, name: &str, filter: &str, told: Told) -> Effect {
    let (share, made) = share_of(targets, name, filter);
    Effect::Counted { change: share.weigh(told), matches_change: made }
}

/// `leave` says how many members left; `None`: it found nobody who could.
fn leave(targets: &mut Targets, name: &str, filter: &str, leave: impl FnOnce(&ShareGroup) -> Option<usize>) -> Effect {
    let Targets::Many(many) = targets else {
        return Effect::Nothing;
    };
    let Ok(at) = find_share(many.shares(), name, filter) else {
        return Effect::Nothing;
    };
    let Some(left) = leave(&many.shares()[at]) else {
        return Effect::Nothing;
    };
    let gone = many.shares()[at].is_empty();
    if gone && let Some(shares) = &mut many.shares {
        shares.remove(at);
        if shares.is_empty() {
            many.shares = None;
        }
        targets.shrink();
    }
    Effect::Counted { change: -isize::try_from(left).unwrap_or(isize::MAX), matches_change: gone }
}

/// Where the share of that name is, or belongs: they are kept in order, for a filter may have as many as there are subscribers.
fn find_share(shares: &[Arc<ShareGroup>], name: &str, filter: &str) -> Result<usize, usize> {
    shares.binary_search_by(|share| share.name().cmp(name).then_with(|| share.filter().cmp(filter)))
}

/// Topic Filter → the arbiters, groups and nodes that want it. Any thread may read and change it.
pub struct SubscriptionIndex {
    exact: Box<[CachePadded<Shard<ExactFilters>>]>,
    first_level: Box<[CachePadded<Shard<WildcardFilters>>]>,
    root: CachePadded<Shard<WildcardFilters>>,
}

impl fmt::Debug for SubscriptionIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("SubscriptionIndex");
        debug.field("subscriptions", &self.subscriptions()).field("filters", &self.filters()).finish()
    }
}

impl Default for SubscriptionIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl SubscriptionIndex {
    /// Without subscriptions.
    #[must_use]
    pub fn new() -> Self {
        Self {
            exact: (0..SHARDS).map(|_| CachePadded::new(Shard::new(ExactFilters::default()))).collect(),
            first_level: (0..SHARDS).map(|_| CachePadded::new(Shard::new(WildcardFilters::default()))).collect(),
            root: CachePadded::new(Shard::new(WildcardFilters::default())),
        }
    }

    /// The hash of a topic that [`Self::matches`] takes; see [`topic_hash`].
    #[inline]
    #[must_use]
    pub fn hash(&self, topic: &str) -> u64 {
        topic_hash(topic)
    }

    /// Counts one more subscriber of `filter` at `target`. When this returns, every match that begins finds it, and
    /// every earlier one that it concerns is not current any more.
    pub fn subscribe(&self, filter: &str, target: Target) {
        if let Target::Arbiter(arbiter) = target {
            assert!(arbiter < ARBITERS_MAX, "arbiter {arbiter} is beyond what the index can tell apart");
        }
        self.apply(filter, Edit::Subscribe(target));
    }

    /// Counts one subscriber less, who must have been counted by [`Self::subscribe`]. `false`: there was none.
    pub fn unsubscribe(&self, filter: &str, target: Target) -> bool {
        self.apply(filter, Edit::Unsubscribe(target))
    }

    /// Adds a member to the shared subscription `$share/share_name/filter`, making it if it is the first. A connection
    /// that is one already takes its new options; a [`ShareTarget::Session`] weighs one more.
    pub fn join_share(&self, share_name: &str, filter: &str, member: ShareMember) {
        self.apply(filter, Edit::Join(share_name, &member));
    }

    /// Takes a member out; the last one takes the shared subscription with it. `false`: it was none.
    pub fn leave_share(&self, share_name: &str, filter: &str, target: &ShareTarget) -> bool {
        self.apply(filter, Edit::Leave(share_name, target))
    }

    /// What another node says that its clients want of a filter, or of `$share/NAME/FILTER`, changes from one
    /// [`NodeInterest::to_value`] to another. `old` is what this was called with last, or 0.
    pub fn set_node(&self, filter: &str, node: IndexedNode, old: u32, new: u32) {
        let (old, new) = (NodeInterest::from_value(old), NodeInterest::from_value(new));
        match ParsedFilter::parse(filter) {
            Ok(ParsedFilter::Plain(plain)) => {
                let target = |interest: NodeInterest| match interest {
                    NodeInterest { any: 0, qos0_only: 0 } => None,
                    NodeInterest { any: 0, .. } => Some(Target::NodeQos0(node.number)),
                    _ => Some(Target::Node(node.number)),
                };
                self.move_target(plain.as_str(), target(old), target(new));
            }
            Ok(ParsedFilter::Shared(shared)) => {
                self.apply(shared.filter().as_str(), Edit::Weigh(shared.share_name(), Told::Node(node, new)));
            }
            Err(_) => tracing::warn!(filter, "another node wants what is no topic filter; it gets nothing for it"),
        }
    }

    /// What a group says that its persistent sessions want changes: of a filter their number, of `$share/NAME/FILTER` a
    /// [`ShareSessions::to_value`]. `old` is what this was called with last, or 0.
    pub fn set_group(&self, filter: &str, group: u16, old: u32, new: u32) {
        match ParsedFilter::parse(filter) {
            Ok(ParsedFilter::Plain(plain)) => {
                let target = |sessions: u32| (sessions > 0).then_some(Target::Group(group));
                self.move_target(plain.as_str(), target(old), target(new));
            }
            Ok(ParsedFilter::Shared(shared)) => {
                let told = Told::Group(group, ShareSessions::from_value(new));
                self.apply(shared.filter().as_str(), Edit::Weigh(shared.share_name(), told));
            }
            Err(_) => tracing::warn!(filter, "a group wants what is no topic filter; it gets nothing for it"),
        }
    }

    fn move_target(&self, filter: &str, from: Option<Target>, to: Option<Target>) {
        if from != to {
            self.apply(filter, Edit::Move(from, to));
        }
    }

    fn apply(&self, filter: &str, edit: Edit<'_>) -> bool {
        match Place::of(filter) {
            Place::Exact { shard, .. } => self.exact[shard].write(|filters| edit.apply(filters, filter)),
            Place::FirstLevel { shard } => self.first_level[shard].write(|filters| edit.apply(filters, filter)),
            Place::Root => self.root.write(|filters| edit.apply(filters, filter)),
        }
    }

    /// Who wants `topic`, whose hash is `hash`. What `out` held before is gone.
    pub fn matches(&self, topic: &str, hash: u64, out: &mut Matched) {
        debug_assert_eq!(hash, topic_hash(topic), "the hash of another topic");
        out.forget();
        let (exact_shard, first_level_shard) = (shard_of(hash), first_level_shard(topic));
        let exact = self.exact[exact_shard].read(|filters| {
            if let Some(targets) = filters.get(hash) {
                out.add(targets, Some(topic));
            }
        });
        let first_level = self.first_level[first_level_shard].read(|filters| {
            out.visited += filters.trie.matches(topic, |targets| out.add(targets, None));
        });
        let root = self.root.read(|filters| {
            out.visited += filters.trie.matches(topic, |targets| out.add(targets, None));
        });
        let (exact_shard, first_level_shard) = (exact_shard as u8, first_level_shard as u8);
        out.stamp = Stamp { exact_shard, first_level_shard, exact, first_level, root };
    }

    /// Whether [`Self::matches`] would still return the same: three loads.
    #[inline]
    #[must_use]
    pub fn is_current(&self, matched: &Matched) -> bool {
        let stamp = &matched.stamp;
        self.exact[usize::from(stamp.exact_shard)].generation() == stamp.exact
            && self.first_level[usize::from(stamp.first_level_shard)].generation() == stamp.first_level
            && self.root.generation() == stamp.root
    }

    /// The shared subscription of that name, if it has members.
    #[must_use]
    pub fn share(&self, share_name: &str, filter: &str) -> Option<Arc<ShareGroup>> {
        let find = |targets: Option<&Targets>| {
            let shares = targets?.shares();
            find_share(shares, share_name, filter).ok().map(|at| Arc::clone(&shares[at]))
        };
        match Place::of(filter) {
            Place::Exact { shard, hash } => self.exact[shard].inspect(|filters| find(filters.get(hash))),
            Place::FirstLevel { shard } => self.first_level[shard].inspect(|filters| find(filters.trie.get(filter))),
            Place::Root => self.root.inspect(|filters| find(filters.trie.get(filter))),
        }
    }

    /// Subscriptions counted, members of shared ones included.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.sum(|exact| exact.subscriptions, |wildcards| wildcards.subscriptions)
    }

    /// Different filters among them.
    #[must_use]
    pub fn filters(&self) -> usize {
        self.sum(|exact| exact.table.len(), |wildcards| wildcards.trie.len())
    }

    /// Bytes held, estimated from capacities. Walks over all filters: for figures asked for by people.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let shards = self.exact.len() * size_of::<CachePadded<Shard<ExactFilters>>>()
            + self.first_level.len() * size_of::<CachePadded<Shard<WildcardFilters>>>();
        let exact = |exact: &ExactFilters| {
            let heap: usize = exact.table.iter().map(|(_, targets)| targets.heap_bytes()).sum();
            heap + exact.table.allocation_size()
        };
        shards + self.sum(exact, |wildcards| wildcards.trie.memory_bytes())
    }

    fn sum(&self, exact: impl Fn(&ExactFilters) -> usize, wildcards: impl Fn(&WildcardFilters) -> usize) -> usize {
        let exact: usize = self.exact.iter().map(|shard| shard.inspect(&exact)).sum();
        let first: usize = self.first_level.iter().map(|shard| shard.inspect(&wildcards)).sum();
        exact + first + self.root.inspect(&wildcards)
    }
}
